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
#include "task.h"

struct cs_store_upper; /* what the levels above keep with a store */

struct cowsnap_store {
	struct cs_handle handle;
	const struct cs_base *base;
	struct cowsnap_store_ops ops;
	void *user;
	/* Of the chunks that the table says are used, how many are not: set aside for a CPU. NULL:
	 * none. */
	uint64_t (*spare)(void *user);
	uint32_t flags;
	uint32_t chunk_shift; /* log2 of the chunk size in bytes */
	struct cowsnap_device *device;
	uint64_t low_water_bytes;
	struct cs_store_upper *upper; /* NULL until the levels above set it; theirs */

	/* Written now and then by those who save; what is above is only read. */
	_Alignas(CS_CACHE_BYTES) _Atomic uint64_t high_water_chunks;
	atomic_bool low_water_told;

	_Atomic uint64_t space_epoch;   /* counts the moments at which there may be new space */
	_Atomic uint32_t space_waiters; /* in the list */
	struct cs_mutex space_lock;
	struct cs_waitlist space_list; /* under space_lock */

	/* Why it can record nothing any more; 0: it can. NULL: always 0. */
	int (*broken)(void *user);
	/* Of a store with a header on its device; else NULL. See cs_store_hold(). */
	bool (*hold)(void *user, struct cs_waiter *waiter);
	int (*hold_waiting)(void *user);
	int (*flush)(void *user); /* of its device, by who holds it; NULL: nothing to be told */
	void (*unhold)(void *user);
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

/*
 * Handing a persistent store over: store_dm_state.c.
 *
 * Begin stops commits and looks at the device: for what @map holds, which nobody changes. Returns:
 * 0; -EBUSY (a commit is under way, or was not published), -ENODATA (it is not valid), -ENOMEM,
 * what broke it, or the device's error. Then cancel: it goes on. Or end: commits and all else fail,
 * and nothing is written to the device any more but what is on its way; then export, behind which
 * the device is not locked, whatever it returns: 0, the error of @write, -EIO.
 */
struct cs_dm_export {
	const struct cowsnap_map *map;
	uint64_t origin_bytes;
	uint64_t snapshot_bytes;
	bool written; /* to the snapshot itself, ever */
	int (*write)(void *user, const void *data, size_t bytes);
	void *user;
};

bool cs_store_dm_is(const struct cowsnap_store *store);
int cs_store_dm_export_begin(struct cowsnap_store *store, const struct cowsnap_map *map);
void cs_store_dm_export_cancel(struct cowsnap_store *store);
void cs_store_dm_export_end(struct cowsnap_store *store);
int cs_store_dm_export(struct cowsnap_store *store, const struct cs_dm_export *to);

struct cs_dm_import {
	const struct cowsnap_device *device;
	const struct cowsnap_device *origin;
	int (*read)(void *user, void *data, size_t bytes);
	void *user;
};

struct cs_dm_state;

/* Reads and checks a state, up to its end; looks at no device but for its size. Returns: 0;
 * -EBADMSG, -ESTALE (of another device or origin), -ENOMEM, or the error of @read. */
int cs_dm_state_read(
	const struct cs_base *base, const struct cs_dm_import *from, struct cs_dm_state **state);
void cs_dm_state_free(struct cs_dm_state *state); /* NULL is accepted */
uint64_t cs_dm_state_snapshot_bytes(const struct cs_dm_state *state);
bool cs_dm_state_written(const struct cs_dm_state *state);
/* As cs_store_dm_attach(), with records from @state, which is empty afterwards. Returns: 0; -ESTALE
 * (the device has changed), -EBUSY, or the device's error. */
int cs_store_dm_attach_state(
	struct cowsnap_store *store, struct cs_dm_state *state, struct cowsnap_map *map);

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
 * Waiting for space: read the epoch, try to get space, wait with that epoch. @waiter is woken,
 * once, when it has changed. Returns: false if it has already: there is nothing to wait for.
 */
uint64_t cs_store_space_epoch(const struct cowsnap_store *store);
bool cs_store_await_space(
	struct cowsnap_store *store, uint64_t seen_epoch, struct cs_waiter *waiter);
/* Waits no longer. Returns: false if the wake has come or is on its way. */
bool cs_store_forsake_space(struct cowsnap_store *store, struct cs_waiter *waiter);
/* Makes every waiter look again. */
void cs_store_wake(struct cowsnap_store *store);

/* Does it record what is saved in it? */
static inline bool cs_store_records(const struct cowsnap_store *store)
{
	return store->ops.commit != NULL;
}
/* Are zeroes looked for in what is saved? What is recorded must be known before. */
static inline bool cs_store_sifts(const struct cowsnap_store *store)
{
	return (store->flags & COWSNAP_STORE_ZEROES) && !cs_store_records(store);
}
/* Starts a commit whose runs, count, done and queue are set; done is called once, inside or later,
 * on any thread. */
void cs_store_start_commit(struct cowsnap_store *store, struct cowsnap_commit *commit);
/* Waits until the table has said that it is done. @runs may be on the stack. */
int cs_store_commit(struct cowsnap_store *store, const struct cowsnap_run *runs, size_t count);
/* Can its records be taken off, so that its snapshot can be merged? */
static inline bool cs_store_forgets(const struct cowsnap_store *store)
{
	return store->ops.newest && store->ops.forget;
}
/* For one caller at a time, with no commit under way. As the members of the table; done is also
 * told of -ENOTSUP (it cannot), -EINVAL (0 of something). */
void cs_store_start_newest(struct cowsnap_store *store, struct cowsnap_newest *newest);
void cs_store_start_forget(struct cowsnap_store *store, struct cowsnap_commit *commit);
/* Returns: 0; -EIO (what the table gave cannot be). */
int cs_store_check_newest(const struct cowsnap_store *store, const struct cowsnap_newest *newest);
void cs_store_space(const struct cowsnap_store *store, struct cowsnap_store_space *space);
uint64_t cs_store_high_water(struct cowsnap_store *store); /* chunks */
/*
 * To change what a store's device says of its snapshot one must hold it. Returns: false: @waiter is
 * woken when it may be free: ask again. Nobody keeps it while he is parked, but for a queue that
 * has a flush under way: that goes on only when the queue is polled, and its thread must not wait
 * here.
 */
static inline bool cs_store_hold(struct cowsnap_store *store, struct cs_waiter *waiter)
{
	return !store->hold || store->hold(store->user, waiter);
}

static inline void cs_store_unhold(struct cowsnap_store *store)
{
	if (store->unhold)
		store->unhold(store->user);
}

/* Why its device is not what its records were to say; 0: it is. */
static inline int cs_store_broken(const struct cowsnap_store *store)
{
	return store->broken ? store->broken(store->user) : 0;
}

/* For a thread that may sleep. Returns: 0; -EDEADLK (it would wait for a queue that it polls). */
static inline int cs_store_hold_waiting(struct cowsnap_store *store)
{
	return store->hold_waiting ? store->hold_waiting(store->user) : 0;
}

/* A snapshot begins, becomes invalid, ends: made durable by a store that outlives the process. The
 * first and the last wait until they hold the store; to invalidate the caller must hold it. */
int cs_store_begin(struct cowsnap_store *store);
int cs_store_invalidate(struct cowsnap_store *store, int reason);
int cs_store_drop(struct cowsnap_store *store);
int cs_store_drop_held(struct cowsnap_store *store); /* for a caller that holds it */
static inline bool cs_store_persistent(const struct cowsnap_store *store)
{
	return store->ops.drop != NULL;
}
void cs_store_emptied(struct cowsnap_store *store);
/* Returns: as the public function, except that closed is the caller's to check. */
int cs_store_set_limit(struct cowsnap_store *store, uint64_t limit_bytes);

#endif
