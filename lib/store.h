/* SPDX-License-Identifier: MIT
 *
 * Stores: space for preimages behind a table of functions, with what every store needs beside it:
 * waiting for space, the low-water mark, the high-water mark, a commit that waits.
 */
#ifndef CS_STORE_H
#define CS_STORE_H

#include <cowsnap.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "dev.h"
#include "handle.h"
#include "obs.h"
#include "sync.h"

struct cs_store_upper; /* what the levels above keep with a store */

struct cowsnap_store {
	struct cs_handle handle;
	const struct cs_base *base;
	struct cowsnap_store_ops ops;
	void *user;
	uint32_t flags;
	uint32_t chunk_shift; /* log2 of the chunk size in bytes */
	struct cowsnap_device *device;
	uint64_t low_water_bytes;
	struct cs_store_upper *upper; /* NULL until the levels above set it; theirs */

	_Atomic uint64_t high_water_chunks;
	atomic_bool low_water_told;

	_Atomic uint64_t space_epoch;   /* counts the moments at which there may be new space */
	_Atomic uint32_t space_waiters; /* threads in cs_store_wait_space() */
	struct cs_mutex space_lock;
	struct cs_cond space_freed;
};

/* Each makes an open store whose handle.bytes is set and claims its device. Errors as the public
 * function of the same name; that another handle may name the device's bytes is the caller's to
 * check. */
int cs_store_create(const struct cs_base *base, const struct cowsnap_store_ops *ops,
	const struct cowsnap_store_options *options, void *user, struct cowsnap_store **store);
int cs_store_transient(const struct cs_base *base, const struct cowsnap_transient_options *options,
	struct cowsnap_store **store);

int cs_store_dm_create(const struct cs_base *base, const struct cowsnap_dm_options *options,
	struct cowsnap_store **store);
/* @origin: for the bounds of its chunks, and its block. The records are not read yet. */
int cs_store_dm_open(const struct cs_base *base, const struct cowsnap_dm_options *options,
	const struct cowsnap_device *origin, struct cowsnap_store **store);
/* Reads the records into a map and makes the store ready for more. Returns: as the public function;
 * sets *@valid to whether the snapshot is. */
int cs_store_dm_attach(struct cowsnap_store *store, const struct cowsnap_device *origin,
	struct cowsnap_map *map, bool *valid);
int cs_store_dm_set_generation(struct cowsnap_store *store, uint64_t generation);

/* Marks it closed, gives the device up and calls the table's close. No call may be running. */
void cs_store_fini(struct cowsnap_store *store);
/* The same, and frees it; NULL is accepted. */
void cs_store_destroy(struct cowsnap_store *store);

static inline uint64_t cs_store_chunk_bytes(const struct cowsnap_store *store)
{
	return UINT64_C(1) << store->chunk_shift;
}

/* A run of @want chunks or fewer. @low_water is set to whether free space fell below the mark just
 * now: once per crossing, the caller tells the host. Returns: 0, -ENOSPC, -EINVAL (want 0), or the
 * table's error. */
int cs_store_alloc(struct cowsnap_store *store, uint64_t want, uint64_t *location, uint64_t *count,
	bool *low_water);
/* Gives a run back and wakes who waits for space. */
void cs_store_free(struct cowsnap_store *store, uint64_t location, uint64_t count);

/*
 * Waiting for space: read the epoch, try to get space, wait with that epoch. A change between the
 * reading and the wait ends the wait at once, so none is missed. Returns false when @deadline_ns
 * (of CLOCK_MONOTONIC, UINT64_MAX: never) has passed without a change.
 */
uint64_t cs_store_space_epoch(const struct cowsnap_store *store);
bool cs_store_wait_space(struct cowsnap_store *store, uint64_t seen_epoch, uint64_t deadline_ns);
/* Makes every waiter look again. */
void cs_store_wake(struct cowsnap_store *store);

/* Waits until the table has said that it is done. @runs may be on the stack. */
int cs_store_commit(struct cowsnap_store *store, const struct cowsnap_run *runs, size_t count);
void cs_store_space(const struct cowsnap_store *store, struct cowsnap_store_space *space);
uint64_t cs_store_high_water(struct cowsnap_store *store); /* chunks */
/* A snapshot begins, becomes invalid, ends: made durable by a store that outlives the process. */
int cs_store_begin(struct cowsnap_store *store);
int cs_store_invalidate(struct cowsnap_store *store, int reason);
int cs_store_drop(struct cowsnap_store *store);
static inline bool cs_store_persistent(const struct cowsnap_store *store)
{
	return store->ops.drop != NULL;
}
void cs_store_emptied(struct cowsnap_store *store);
/* Returns: as the public function, except that closed is the caller's to check. */
int cs_store_set_limit(struct cowsnap_store *store, uint64_t limit_bytes);

#endif
