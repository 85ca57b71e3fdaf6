/* SPDX-License-Identifier: MIT
 *
 * A merge: what brackets and the volume's own reads and writes know of it. Design in merge.c.
 */
#ifndef CS_MERGE_H
#define CS_MERGE_H

#include "origin.h"

struct cs_merge {
	struct cowsnap_snapshot *snapshot;
	struct cowsnap_origin *origin;
	struct cs_merge *next;  /* that could not be freed yet; of the origin */
	bool records;           /* its store's */
	atomic_bool ready;      /* the brackets of before have ended */
	atomic_bool ended;      /* brackets that wait for it go on without */
	struct cs_heads *spare; /* for those without it; under ctx->admin */
	struct cs_bits settled;
	struct cowsnap_map busy; /* claims of those who settle a chunk, or write it in place */
	struct cs_mutex lock;
	struct cs_waitlist waiting; /* brackets: for it to be ready, or to move on; under lock */
	/* Of who runs it. */
	atomic_bool running;
	struct cowsnap_run forgotten; /* whose records are gone, but not settled */
	bool moved_all;
	bool dropped;    /* the snapshot */
	uint64_t cursor; /* chunk */
	uint64_t total_bytes;
	_Atomic uint64_t moved_bytes;
	_Atomic int error;
};

static inline uint32_t cs_merge_shift(const struct cs_merge *m)
{
	return m->snapshot->chain->store->chunk_shift;
}

/* Of these chunks, of one group of 64, those that the snapshot has for the volume still: a bit
 * each, and where. Inside the store's read gate. */
uint64_t cs_merge_unmoved(
	const struct cs_merge *m, uint64_t first, unsigned count, uint64_t locations[64]);
/* Where one chunk is. Returns: false if it is in the origin. Enters the read gate. */
bool cs_merge_lookup(const struct cs_merge *m, uint64_t chunk, uint64_t *location);
static inline bool cs_merge_is_ready(const struct cs_merge *m)
{
	/* Acquire: pairs with set_ready. */
	return atomic_load_explicit(&m->ready, memory_order_acquire) ||
	       atomic_load_explicit(&m->ended, memory_order_acquire);
}

/* What the copy of a run is, from where the snapshot has it. */
void cs_merge_set_copy(const struct cs_merge *m, const struct cowsnap_run *run,
	struct cowsnap_copy *copy, struct cowsnap_copy_target *target);
/* So many chunks were moved. */
void cs_merge_count(struct cs_merge *m, uint64_t chunks);

extern const struct cs_merge_ops cs_merge_ops;

/* For a thread that waits: until it is ready, or has ended. */
void cs_merge_await_ready(struct cs_merge *m);
/* For a thread that waits: claims the first part of a run of chunks. Returns: 0, -ENOMEM. */
int cs_merge_claim(struct cs_merge *m, uint64_t first, uint64_t count, struct cowsnap_run *run);
static inline void cs_merge_unclaim(struct cs_merge *m, const struct cowsnap_run *run)
{
	cowsnap_map_abort(&m->busy, run);
}

#endif
