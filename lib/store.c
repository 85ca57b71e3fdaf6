/* SPDX-License-Identifier: MIT
 *
 * Stores: what all of them share, whatever their table does.
 *
 * A store is open until cs_store_fini(). Its device is claimed for as long.
 *
 * Invariants:
 *  S1 space_epoch rises after every change that may have made space: a free, a new limit.
 *  S2 Who waits has raised space_waiters before he looks at space_epoch; one that makes
 *     space raises space_epoch before it looks at space_waiters. Both are sequentially consistent,
 *     so one of the two sees the other and no wake-up is lost.
 *  S3 low_water_told is set by the allocation that crosses the mark, and by no other until space
 *     has been above the mark again. So the event comes once per crossing.
 *
 * Locking: space_lock is held by threads that go to sleep or wake sleepers, and over nothing else.
 * The table is never called with a lock held.
 *
 * Failure: the table's errors are passed on. A free cannot fail.
 */
#include "store.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "alloc.h"

static int check_options(const struct cs_base *base, const struct cowsnap_store_ops *ops,
	const struct cowsnap_store_options *options)
{
	uint64_t chunk = options->chunk_size_bytes;

	if (!ops->alloc || !ops->free || !ops->space) {
		cs_log(base, COWSNAP_LOG_ERROR, "store: alloc, free or space is missing");
		return -EINVAL;
	}
	if (options->flags & ~(COWSNAP_STORE_ONE_SNAPSHOT | COWSNAP_STORE_ZEROES)) {
		cs_log(base, COWSNAP_LOG_ERROR, "store: unknown flags 0x%x", options->flags);
		return -EINVAL;
	}
	if (!options->device) {
		cs_log(base, COWSNAP_LOG_ERROR, "store: no device");
		return -EINVAL;
	}
	if (cs_handle_closed(&options->device->handle))
		return -EBADF;
	if (!chunk || (chunk & (chunk - 1))) {
		cs_log(base, COWSNAP_LOG_ERROR, "store: chunk size %llu is not a power of two",
			(unsigned long long)chunk);
		return -EINVAL;
	}
	if (chunk < COWSNAP_CHUNK_SIZE_MIN || chunk > COWSNAP_CHUNK_SIZE_MAX) {
		cs_log(base, COWSNAP_LOG_ERROR, "store: chunk size %llu is not %llu to %llu",
			(unsigned long long)chunk, (unsigned long long)COWSNAP_CHUNK_SIZE_MIN,
			(unsigned long long)COWSNAP_CHUNK_SIZE_MAX);
		return -ERANGE;
	}
	if (chunk % options->device->block_size) {
		cs_log(base, COWSNAP_LOG_ERROR,
			"store: chunk size %llu is less than '%s' writes at once, %u",
			(unsigned long long)chunk, options->device->name,
			options->device->block_size);
		return -EINVAL;
	}
	return 0;
}

int cs_store_create(const struct cs_base *base, const struct cowsnap_store_ops *user_ops,
	const struct cowsnap_store_options *user_options, void *user, struct cowsnap_store **out)
{
	struct cowsnap_store_ops ops = {0};
	struct cowsnap_store_options options = {0};
	struct cowsnap_store *store;
	int rc;

	rc = cs_options_copy(base, "store table", &ops, sizeof(ops), user_ops, sizeof(ops));
	if (!rc)
		rc = cs_options_copy(base, "store options", &options, sizeof(options), user_options,
			sizeof(options));
	if (!rc)
		rc = check_options(base, &ops, &options);
	if (rc)
		return rc;
	store = cs_alloc_aligned(base->alloc, sizeof(*store), CS_CACHE_BYTES);
	if (!store)
		return -ENOMEM;
	memset(store, 0, sizeof(*store));
	rc = cs_dev_claim(options.device, CS_DEV_STORE);
	if (rc) {
		cs_log(base, COWSNAP_LOG_ERROR, "store: device '%s' is an origin or a store",
			options.device->name);
		cs_free(base->alloc, store, sizeof(*store));
		return rc;
	}
	store->handle.bytes = sizeof(*store);
	store->base = base;
	store->ops = ops;
	store->user = user;
	store->flags = options.flags;
	store->chunk_shift = (uint32_t)__builtin_ctzll(options.chunk_size_bytes);
	store->device = options.device;
	store->low_water_bytes = options.low_water_bytes;
	cs_mutex_init(&store->space_lock);
	*out = store;
	return 0;
}

void cs_store_fini(struct cowsnap_store *store)
{
	assert(atomic_load_explicit(&store->space_waiters, memory_order_relaxed) == 0);
	atomic_store_explicit(&store->handle.closed, true, memory_order_relaxed);
	cs_dev_unclaim(store->device);
	if (store->ops.close)
		store->ops.close(store->user);
	store->device = NULL; /* the table may have freed it */
	cs_mutex_fini(&store->space_lock);
}

void cs_store_destroy(struct cowsnap_store *store)
{
	if (!store)
		return;
	cs_store_fini(store);
	cs_free(store->base->alloc, store, sizeof(*store));
}

/* ---- Space ---------------------------------------------------------------------------------- */

static void table_space(const struct cowsnap_store *store, struct cowsnap_store_space *space)
{
	*space = (struct cowsnap_store_space){0};
	store->ops.space(store->user, space);
}

void cs_store_space(const struct cowsnap_store *store, struct cowsnap_store_space *space)
{
	/* What is given out between the two looks is taken for spare still: too little, for a
	 * moment. */
	uint64_t spare = store->spare ? store->spare(store->user) : 0;

	table_space(store, space);
	space->used_chunks -= spare < space->used_chunks ? spare : space->used_chunks;
}

static bool below_mark(const struct cowsnap_store *store, const struct cowsnap_store_space *space)
{
	uint64_t free_chunks = space->limit_chunks > space->used_chunks
				       ? space->limit_chunks - space->used_chunks
				       : 0;
	uint64_t mark_chunks = store->low_water_bytes >> store->chunk_shift;

	if (free_chunks != mark_chunks)
		return free_chunks < mark_chunks;
	return store->low_water_bytes & (cs_store_chunk_bytes(store) - 1);
}

static void note_high_water(struct cowsnap_store *store, uint64_t used_chunks)
{
	uint64_t high = atomic_load_explicit(&store->high_water_chunks, memory_order_relaxed);

	while (high < used_chunks &&
		!atomic_compare_exchange_weak_explicit(&store->high_water_chunks, &high,
			used_chunks, memory_order_relaxed, memory_order_relaxed))
		;
}

uint64_t cs_store_high_water(struct cowsnap_store *store)
{
	struct cowsnap_store_space space;

	cs_store_space(store, &space);
	note_high_water(store, space.used_chunks);
	return atomic_load_explicit(&store->high_water_chunks, memory_order_relaxed);
}

/* The table may be the host's: what it gives must lie on the device. */
static bool run_sane(
	const struct cowsnap_store *store, uint64_t want, uint64_t location, uint64_t count)
{
	uint64_t chunks = cs_dev_size(store->device) >> store->chunk_shift;

	if (count && count <= want && location < chunks && count <= chunks - location)
		return true;
	cs_log(store->base, COWSNAP_LOG_ERROR,
		"store on %s gave location %llu, count %llu for %llu chunks of %llu",
		store->device->name, (unsigned long long)location, (unsigned long long)count,
		(unsigned long long)want, (unsigned long long)chunks);
	return false;
}

/* Is it below the mark, and nobody has told of that yet? */
static bool tells_low_water(struct cowsnap_store *store)
{
	struct cowsnap_store_space space;

	if (atomic_load_explicit(&store->low_water_told, memory_order_relaxed))
		return false;
	cs_store_space(store, &space);
	return below_mark(store, &space) &&
	       !atomic_exchange_explicit(&store->low_water_told, true, memory_order_relaxed);
}

int cs_store_alloc(struct cowsnap_store *store, uint64_t want, uint64_t *location, uint64_t *count,
	bool *low_water)
{
	struct cowsnap_store_space space;
	int rc;

	*low_water = false;
	if (!want)
		return -EINVAL;
	rc = store->ops.alloc(store->user, want, location, count);
	if (!rc && cs_unlikely(!run_sane(store, want, *location, *count)))
		rc = -EIO;
	if (rc)
		return rc;
	/* With what is set aside: to look at that costs more, and is done where it matters. */
	table_space(store, &space);
	if (cs_unlikely(below_mark(store, &space)))
		*low_water = tells_low_water(store);
	return 0;
}

void cs_store_wake(struct cowsnap_store *store)
{
	struct cs_waiter *waiters;

	/* seq_cst: S2; pairs with cs_store_await_space. */
	atomic_fetch_add_explicit(&store->space_epoch, 1, memory_order_seq_cst);
	if (!atomic_load_explicit(&store->space_waiters, memory_order_seq_cst))
		return;
	cs_mutex_lock(&store->space_lock);
	waiters = cs_waitlist_take(&store->space_list);
	atomic_store_explicit(&store->space_waiters, 0, memory_order_relaxed);
	cs_mutex_unlock(&store->space_lock);
	cs_waiters_wake(waiters);
}

static void made_space(struct cowsnap_store *store)
{
	struct cowsnap_store_space space;

	if (atomic_load_explicit(&store->low_water_told, memory_order_relaxed)) {
		cs_store_space(store, &space);
		if (!below_mark(store, &space))
			atomic_store_explicit(&store->low_water_told, false, memory_order_relaxed);
	}
	cs_store_wake(store);
}

void cs_store_free(struct cowsnap_store *store, uint64_t location, uint64_t count)
{
	/* It is at its highest just before something is given back. */
	cs_store_high_water(store);
	store->ops.free(store->user, location, count);
	made_space(store);
}

uint64_t cs_store_space_epoch(const struct cowsnap_store *store)
{
	/* Acquire: space that is looked for next is that of this epoch or later; pairs with
	 * cs_store_wake. */
	return atomic_load_explicit(&store->space_epoch, memory_order_acquire);
}

bool cs_store_await_space(
	struct cowsnap_store *store, uint64_t seen_epoch, struct cs_waiter *waiter)
{
	bool changed;

	cs_mutex_lock(&store->space_lock);
	/* seq_cst: S2; pairs with cs_store_wake. */
	atomic_fetch_add_explicit(&store->space_waiters, 1, memory_order_seq_cst);
	changed = atomic_load_explicit(&store->space_epoch, memory_order_seq_cst) != seen_epoch;
	if (changed)
		atomic_fetch_sub_explicit(&store->space_waiters, 1, memory_order_relaxed);
	else
		cs_waitlist_add(&store->space_list, waiter);
	cs_mutex_unlock(&store->space_lock);
	return !changed;
}

bool cs_store_forsake_space(struct cowsnap_store *store, struct cs_waiter *waiter)
{
	bool waited;

	cs_mutex_lock(&store->space_lock);
	waited = cs_waitlist_remove(&store->space_list, waiter);
	if (waited)
		atomic_fetch_sub_explicit(&store->space_waiters, 1, memory_order_relaxed);
	cs_mutex_unlock(&store->space_lock);
	return waited;
}

int cs_store_set_limit(struct cowsnap_store *store, uint64_t limit_bytes)
{
	uint64_t limit_chunks = limit_bytes >> store->chunk_shift;
	int rc;

	if (!store->ops.set_limit)
		return -ENOTSUP;
	if ((limit_bytes && !limit_chunks) || limit_bytes > cs_dev_size(store->device))
		return -ERANGE;
	rc = store->ops.set_limit(store->user, limit_chunks);
	if (!rc)
		made_space(store);
	return rc;
}

void cs_store_emptied(struct cowsnap_store *store)
{
	cs_store_high_water(store);
	if (store->ops.emptied)
		store->ops.emptied(store->user);
}

static int change(struct cowsnap_store *store, int (*call)(void *user))
{
	int rc;

	if (!call)
		return 0;
	rc = cs_store_hold_waiting(store);
	if (rc)
		return rc;
	rc = call(store->user);
	cs_store_unhold(store);
	return rc;
}

int cs_store_begin(struct cowsnap_store *store)
{
	return change(store, store->ops.begin);
}

int cs_store_drop(struct cowsnap_store *store)
{
	cs_store_high_water(store);
	return change(store, store->ops.drop);
}

int cs_store_drop_held(struct cowsnap_store *store)
{
	cs_store_high_water(store);
	return store->ops.drop ? store->ops.drop(store->user) : 0;
}

int cs_store_invalidate(struct cowsnap_store *store, int reason)
{
	return store->ops.invalidate ? store->ops.invalidate(store->user, reason) : 0;
}

/* ---- Commit --------------------------------------------------------------------------------- */

struct waiting_commit {
	struct cowsnap_commit commit;
	struct cs_event finished;
	int error;
};

static void commit_done(struct cowsnap_commit *commit, int error)
{
	struct waiting_commit *w = cs_container_of(commit, struct waiting_commit, commit);

	w->error = error;
	cs_event_set(&w->finished);
}

void cs_store_start_commit(struct cowsnap_store *store, struct cowsnap_commit *commit)
{
	if (!cs_store_records(store) || !commit->count)
		commit->done(commit, 0);
	else
		store->ops.commit(store->user, commit);
}

int cs_store_commit(struct cowsnap_store *store, const struct cowsnap_run *runs, size_t count)
{
	struct waiting_commit w = {.commit = {.runs = runs, .count = count, .done = commit_done}};

	cs_event_init(&w.finished);
	cs_store_start_commit(store, &w.commit);
	cs_event_wait(&w.finished);
	return w.error;
}

/* ---- Forgetting ------------------------------------------------------------------------------ */

/* Of the origin only the caller knows the length. */
static bool newest_sane(
	const struct cowsnap_store *store, uint64_t most, const struct cowsnap_run *run)
{
	if (run->first > UINT64_MAX - run->count)
		return false;
	if (run->location == COWSNAP_LOCATION_ZERO && (store->flags & COWSNAP_STORE_ZEROES))
		return run->count && run->count <= most;
	return run_sane(store, most, run->location, run->count);
}

int cs_store_check_newest(const struct cowsnap_store *store, const struct cowsnap_newest *newest)
{
	uint64_t most = newest->most;

	if (newest->count > newest->room)
		return -EIO;
	for (size_t i = 0; i < newest->count; i++) {
		if (!newest_sane(store, most, &newest->runs[i]))
			return -EIO;
		most -= newest->runs[i].count;
	}
	return 0;
}

void cs_store_start_newest(struct cowsnap_store *store, struct cowsnap_newest *newest)
{
	newest->count = 0;
	if (!cs_store_forgets(store))
		newest->done(newest, -ENOTSUP);
	else if (!newest->most || !newest->room)
		newest->done(newest, -EINVAL);
	else
		store->ops.newest(store->user, newest);
}

void cs_store_start_forget(struct cowsnap_store *store, struct cowsnap_commit *commit)
{
	if (!cs_store_forgets(store))
		commit->done(commit, -ENOTSUP);
	else if (!commit->count)
		commit->done(commit, -EINVAL);
	else
		store->ops.forget(store->user, commit);
}
