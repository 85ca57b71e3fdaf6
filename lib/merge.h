/* SPDX-License-Identifier: MIT
 *
 * A merge: what brackets and the volume's own reads and writes know of it. Design in merge.c.
 */
#ifndef CS_MERGE_H
#define CS_MERGE_H

#include "origin.h"

/* So many chunks, and runs, at most have their records forgotten together. */
#define CS_MERGE_BATCH 4096u

struct cs_merge {
	struct cowsnap_snapshot *snapshot;
	struct cowsnap_origin *origin;
	struct cs_merge *next;  /* that could not be freed yet; of the origin */
	bool records;           /* its store's */
	atomic_bool ready;      /* the brackets of before have ended */
	atomic_bool ended;      /* brackets that wait for it go on without */
	atomic_bool moved;      /* all is: what the maps get from now on is nobody's to move */
	struct cs_heads *spare; /* for those without it; under ctx->admin */
	struct cs_bits settled;
	struct cowsnap_map busy; /* claims of those who settle a chunk, or write it in place */
	struct cs_mutex lock;
	struct cs_waitlist waiting; /* brackets: for it to be ready, or to move on; under lock */
	/* Of who begins it. */
	struct {
		struct cs_op *op;
		enum cs_step (*step)(struct cs_merge *m);
		uint64_t deadline_ns;
		bool shown; /* it is, or was, the origin's */
	} begin;
	/* Of who runs it. */
	atomic_bool running;
	/* Whose records are gone, and which are not settled for want of memory: still claimed. Room
	 * for CS_MERGE_BATCH; NULL without records. */
	struct cowsnap_run *forgotten;
	size_t forgotten_count;
	uint64_t batch_bytes; /* of the next batch, about; 0: not known */
	bool dropped;         /* the snapshot */
	uint64_t cursor;      /* chunk */
	uint64_t total_bytes; /* under ctx->admin until it is ready */
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

/* Who waits for a claim of others in `busy`. */
struct cs_merge_claimant {
	struct cowsnap_map_waiter waiter;
	struct cs_task *task;
};

/* Claims the first chunks of a range, that nobody else has. Returns: 0; COWSNAP_CLAIM_BUSY: the
 * same step of @claimant's task is to come again, as *@step says; -ENOMEM. */
int cs_merge_claim(struct cs_merge *m, uint64_t first, uint64_t count, struct cowsnap_run *run,
	struct cs_merge_claimant *claimant, enum cs_step *step);
/* Where a run is copied to, from where the snapshot has it; zeroes have no source. */
void cs_merge_set_target(const struct cs_merge *m, const struct cowsnap_run *run,
	struct cowsnap_copy_target *target);
/* The same for a copy of one run. */
void cs_merge_set_copy(const struct cs_merge *m, const struct cowsnap_run *run,
	struct cowsnap_copy *copy, struct cowsnap_copy_target *target);
/* So many chunks were moved. */
void cs_merge_count(struct cs_merge *m, uint64_t chunks);
/* The origin has these claimed chunks. Returns: 0, -ENOMEM. */
int cs_merge_settle(struct cs_merge *m, const struct cowsnap_run *run);
/* The same of chunks of one group of 64: bit i of @mask is @first + i. */
int cs_merge_settle_mask(struct cs_merge *m, uint64_t first, uint64_t mask);
/* The same of chunks that were overwritten: of these not all had to be moved. */
int cs_merge_settle_over(struct cs_merge *m, const struct cowsnap_run *run);
/* What forgotten records were about, and is still claimed. */
int cs_merge_settle_forgotten(struct cs_merge *m);
/* Is there something in the range that others need before it is overwritten? @heads: NULL: none. */
bool cs_merge_others_need(const struct cs_heads *heads, uint64_t offset, uint64_t length);
/* It has moved on: brackets that wait for it look again. */
void cs_merge_wake_waiting(struct cs_merge *m);

/* M2. Returns: 0, or what became of the snapshot. */
int cs_merge_set_merging(struct cowsnap_snapshot *snapshot, bool merging);
/* Brackets go on without it, and it goes when the origin does: who entered with it may still be
 * inside, so the caller drains before he gives up M2. With the turn. Returns: 0; -EBUSY (no
 * generation is free), -ENOMEM. */
int cs_merge_retire(struct cs_merge *m);
/* Frees what grows with the volume. It was retired, and all who were inside have left. */
void cs_merge_empty(struct cs_merge *m);

extern const struct cs_merge_ops cs_merge_ops;

/* Returns: false if it is ready, or has ended. True: @waiter will be woken, once, when it has moved
 * on; then look again. */
bool cs_merge_await_ready(struct cs_merge *m, struct cs_waiter *waiter);
/* Waits no longer. Returns: false if the wake has come or is on its way. */
bool cs_merge_forsake(struct cs_merge *m, struct cs_waiter *waiter);
static inline void cs_merge_unclaim(struct cs_merge *m, const struct cowsnap_run *run)
{
	cowsnap_map_abort(&m->busy, run);
}

#endif
