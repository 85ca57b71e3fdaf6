/* SPDX-License-Identifier: MIT
 *
 * The transient store: space on a device and nothing written but preimages. It keeps no records,
 * because what it holds is worthless once the process is gone.
 *
 * Chunks [0, fresh) have been given out at least once; each of them is in use, or has its bit set
 * in the bitmap of freed ones. Chunks [fresh, capacity) have never been given out since the store
 * was last empty. Allocation takes freed runs first, then raises `fresh` by compare-and-exchange.
 * The limit is a number of chunks in use, not a place: chunks may lie anywhere below the capacity.
 *
 * Threads that allocate side by side would all write the same few words. So each CPU has a *lease*:
 * a run of chunks that were allocated for it together, and from which it gives out a few at a time.
 * They count as used; how many of them are not given out is `spare`. There are leases only while
 * space is plentiful, and whoever finds the store full takes back all that is left in them.
 *
 * Memory of its own is address space as long as the machine's memory, or as the limit if that is
 * longer; the limit can be raised to that, and only what is in use costs anything. A device of the
 * host's is never discarded: it may have been allocated on purpose.
 *
 * Invariants:
 *  T1 used <= limit, but for the moment in which a shrinking limit and an allocation meet; then one
 *     of the two takes its step back: the allocator adds to `used` before it looks at `limit`
 *     again, a new limit is stored before `used` is looked at, all sequentially consistent.
 *  T2 A chunk below `fresh` is counted in `used` while it is in use: until after its bit is set,
 * and from before its allocation returns; in the moment between its place and its count the thread
 *     is counted in `placing`. So nobody owns a chunk below `fresh` if, under the lock, these are
 *     read in this order: fresh, placing == 0, used == 0.
 *  T3 The bitmap covers all chunks below `fresh`: memory for it is had before `fresh` rises. So a
 *     free cannot fail.
 *  T4 Who waits for others to settle raises `waiting` before it looks at `placing`; who settles
 *     lowers `placing` before it looks at `waiting`; all sequentially consistent, so that no
 *     wake-up is lost.
 *
 *  T5 What is left in a lease is in use by it, as T1 to T4 see it.
 *
 * Locking: each lease has a lock of its own, which nobody waits for but who finds the store full:
 * who finds it taken allocates for himself. `lock` may be taken under it. `lock` guards the bitmap,
 * its growth, and changes of the limit. It is held while freed memory of our own is given back to
 * the system (microseconds per MiB), never over I/O; an allocation that finds it taken goes on with
 * fresh chunks if there are any.
 *
 * Failure: without memory for the bitmap an allocation is -ENOMEM. A free of what is not in use is
 * logged and ignored.
 */
#include "store.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "alloc.h"
#include "cpu.h"
#include "runs.h"

#define CHUNK_SIZE_DEFAULT UINT64_C(4096)

/* Memory is given back in areas of this length, a huge page, once more than WARM_BYTES are free: to
 * fault pages in again costs more than to copy into them. */
#define AREA_BYTES (UINT64_C(2) << 20)
#define WARM_BYTES (UINT64_C(64) << 20)

#define LEASE_BYTES (UINT64_C(256) << 10)
#define LEASE_LEAST 8u /* chunks; with fewer it is not worth it */
#define LEASES_MAX  64u
/* No lease is begun when less than so many of all of them are free. */
#define PLENTY      16u

struct lease {
	_Alignas(CS_CACHE_BYTES) struct cs_mutex lock;
	uint64_t location;     /* under lock */
	_Atomic uint64_t left; /* chunks; changes under lock */
};

struct transient {
	const struct cs_base *base;
	struct cowsnap_device *device;
	bool own_device;
	uint32_t chunk_shift;
	_Atomic uint64_t capacity; /* chunks; rises with the device, under lock */

	_Alignas(CS_CACHE_BYTES) _Atomic uint64_t used;
	_Atomic uint64_t fresh;
	_Atomic uint64_t placing; /* threads in take_fresh() */
	_Atomic uint32_t waiting; /* threads in wait_settled() */
	_Alignas(CS_CACHE_BYTES) _Atomic uint64_t limit;
	_Atomic uint64_t covered; /* chunks that the bitmap has room for */
	_Atomic uint64_t freed;   /* bits set; changes under lock */

	struct cs_mutex lock;
	struct cs_cond settled; /* with lock: a thread is out of take_fresh(), and somebody waits */
	struct cs_runs freed_runs; /* under lock */
	uint64_t next;             /* chunk at which to look on; under lock */

	uint64_t lease_chunks;
	uint32_t lease_mask;
	struct lease *leases; /* NULL: none */
};

/* Makes room for chunks below @end. */
static int cover(struct transient *t, uint64_t end)
{
	int rc;

	cs_mutex_lock(&t->lock);
	rc = cs_runs_cover(&t->freed_runs, end);
	/* Release: pairs with take_place. */
	atomic_store_explicit(&t->covered, cs_runs_end(&t->freed_runs), memory_order_release);
	cs_mutex_unlock(&t->lock);
	return rc;
}

/* ---- Allocation ----------------------------------------------------------------------------- */

/* Counts up to @want chunks as used. Returns: how many. */
static uint64_t count_in(struct transient *t, uint64_t want)
{
	uint64_t used = atomic_load_explicit(&t->used, memory_order_relaxed);

	for (;;) {
		/* seq_cst: T1; pairs with set_limit. */
		uint64_t limit = atomic_load_explicit(&t->limit, memory_order_seq_cst);
		uint64_t n;

		if (used >= limit)
			return 0;
		n = want < limit - used ? want : limit - used;
		if (!atomic_compare_exchange_weak_explicit(
			    &t->used, &used, used + n, memory_order_seq_cst, memory_order_relaxed))
			continue;
		/* seq_cst, with the exchange: T1; pairs with set_limit. */
		if (cs_likely(used + n <= atomic_load_explicit(&t->limit, memory_order_seq_cst)))
			return n;
		used = atomic_fetch_sub_explicit(&t->used, n, memory_order_relaxed) - n;
	}
}

/* Returns: how many chunks; 0 if there are none, or @wait is false and the lock is taken. */
static uint64_t take_freed(struct transient *t, uint64_t want, uint64_t *location, bool wait)
{
	uint64_t count = 0;

	if (!atomic_load_explicit(&t->freed, memory_order_relaxed))
		return 0;
	if (wait)
		cs_mutex_lock(&t->lock);
	else if (!cs_mutex_trylock(&t->lock))
		return 0;
	*location = cs_runs_pick(&t->freed_runs, t->next, want, &count);
	if (count)
		count = count_in(t, count);
	if (count) {
		cs_runs_mark(&t->freed_runs, *location, count, false);
		atomic_fetch_sub_explicit(&t->freed, count, memory_order_relaxed);
		t->next = *location + count;
	}
	cs_mutex_unlock(&t->lock);
	return count;
}

/* Marks a run as freed. Returns: how many of its chunks were in use. Under the lock. */
static uint64_t put_back(struct transient *t, uint64_t location, uint64_t count)
	CS_REQUIRES(t->lock)
{
	uint64_t changed = cs_runs_mark(&t->freed_runs, location, count, true);

	atomic_fetch_add_explicit(&t->freed, changed, memory_order_relaxed);
	return changed;
}

/* A place for up to @want fresh chunks, not counted yet. Sets @count; 0 if there are none, or the
 * limit is reached. */
static int take_place(struct transient *t, uint64_t want, uint64_t *location, uint64_t *count)
{
	/* Acquire: the memory from here on was given back before; pairs with reset. */
	uint64_t at = atomic_load_explicit(&t->fresh, memory_order_acquire);
	uint64_t n;

	*count = 0;
	do {
		uint64_t used = atomic_load_explicit(&t->used, memory_order_relaxed);
		uint64_t limit = atomic_load_explicit(&t->limit, memory_order_relaxed);
		uint64_t left = limit > used ? limit - used : 0;
		uint64_t capacity = atomic_load_explicit(&t->capacity, memory_order_relaxed);

		n = capacity - at < want ? capacity - at : want;
		n = n < left ? n : left;
		if (!n)
			return 0;
		/* Acquire: the words of the bitmap are there; pairs with cover. */
		if (at + n > atomic_load_explicit(&t->covered, memory_order_acquire)) {
			int rc = cover(t, at + n);

			if (rc)
				return rc;
		}
		/* Acquire: as above. Release: T2, this thread is seen in `placing`; pairs with
		 * reset. */
	} while (!atomic_compare_exchange_weak_explicit(
		&t->fresh, &at, at + n, memory_order_acq_rel, memory_order_acquire));
	*location = at;
	*count = n;
	return 0;
}

/* The place comes first and the count after it, so that `used` never says more than is in use:
 * another thread would take that for a full store. */
static int take_fresh(struct transient *t, uint64_t want, uint64_t *location, uint64_t *count)
{
	uint64_t n = 0;
	int rc;

	atomic_fetch_add_explicit(&t->placing, 1, memory_order_relaxed);
	rc = take_place(t, want, location, &n);
	*count = n ? count_in(t, n) : 0;
	if (cs_unlikely(*count < n)) {
		cs_mutex_lock(&t->lock);
		put_back(t, *location + *count, n - *count);
		cs_mutex_unlock(&t->lock);
	}
	/* Release: T2, what was placed is counted; pairs with reset. seq_cst: T4; pairs with
	 * wait_settled. */
	atomic_fetch_sub_explicit(&t->placing, 1, memory_order_seq_cst);
	if (cs_unlikely(atomic_load_explicit(&t->waiting, memory_order_seq_cst))) {
		cs_mutex_lock(&t->lock);
		cs_cond_broadcast(&t->settled);
		cs_mutex_unlock(&t->lock);
	}
	return rc;
}

static bool full(const struct transient *t)
{
	return atomic_load_explicit(&t->used, memory_order_relaxed) >=
	       atomic_load_explicit(&t->limit, memory_order_relaxed);
}

/* There is some space, but another thread has it between its place and its count: it gives back
 * what it cannot count, or the store turns out to be full. */
static void wait_settled(struct transient *t)
{
	cs_mutex_lock(&t->lock);
	/* seq_cst here and below: T4; pairs with take_fresh. */
	atomic_fetch_add_explicit(&t->waiting, 1, memory_order_seq_cst);
	while (!full(t) && !atomic_load_explicit(&t->freed, memory_order_relaxed) &&
		atomic_load_explicit(&t->placing, memory_order_seq_cst))
		cs_cond_wait_until(&t->settled, &t->lock, UINT64_MAX);
	atomic_fetch_sub_explicit(&t->waiting, 1, memory_order_relaxed);
	cs_mutex_unlock(&t->lock);
}

static int allocate(struct transient *t, uint64_t want, uint64_t *location, uint64_t *count)
{
	bool wait = false;

	for (;;) {
		int rc;

		*count = take_freed(t, want, location, wait);
		if (*count)
			return 0;
		rc = take_fresh(t, want, location, count);
		if (rc || *count)
			return rc;
		if (full(t))
			return -ENOSPC;
		wait_settled(t);
		wait = true;
	}
}

/* ---- Leases --------------------------------------------------------------------------------- */

static void transient_free(void *user, uint64_t location, uint64_t count);

static bool plentiful(const struct transient *t)
{
	uint64_t used = atomic_load_explicit(&t->used, memory_order_relaxed);
	uint64_t limit = atomic_load_explicit(&t->limit, memory_order_relaxed);

	return used < limit && limit - used > PLENTY * t->lease_chunks * (t->lease_mask + 1);
}

static void set_left(struct lease *lease, uint64_t left) CS_REQUIRES(lease->lock)
{
	atomic_store_explicit(&lease->left, left, memory_order_relaxed);
}

static uint64_t left_of(const struct lease *lease)
{
	return atomic_load_explicit(&lease->left, memory_order_relaxed);
}

/* Up to @want chunks of a lease, which is begun anew if there is nothing left in it. */
static uint64_t take_leased(struct transient *t, struct lease *lease, uint64_t want,
	uint64_t *location) CS_REQUIRES(lease->lock)
{
	uint64_t left = left_of(lease), n;

	if (!left && (!plentiful(t) || allocate(t, t->lease_chunks, &lease->location, &left)))
		return 0;
	n = want < left ? want : left;
	*location = lease->location;
	lease->location += n;
	set_left(lease, left - n);
	return n;
}

/* Returns: how many chunks; 0: allocate for yourself. */
static uint64_t from_lease(struct transient *t, uint64_t want, uint64_t *location)
{
	struct lease *lease;
	uint64_t count;

	if (!t->leases || want >= t->lease_chunks)
		return 0;
	lease = &t->leases[cs_cpu_current() & t->lease_mask];
	if (!cs_mutex_trylock(&lease->lock))
		return 0;
	count = take_leased(t, lease, want, location);
	cs_mutex_unlock(&lease->lock);
	return count;
}

/* Takes back what is left in all of them. Returns: was there anything? */
static bool end_leases(struct transient *t)
{
	bool any = false;

	for (uint32_t i = 0; t->leases && i <= t->lease_mask; i++) {
		struct lease *lease = &t->leases[i];
		uint64_t left;

		cs_mutex_lock(&lease->lock);
		left = left_of(lease);
		if (left)
			transient_free(t, lease->location, left);
		set_left(lease, 0);
		cs_mutex_unlock(&lease->lock);
		any |= left > 0;
	}
	return any;
}

static uint64_t transient_spare(void *user)
{
	const struct transient *t = user;
	uint64_t spare = 0;

	for (uint32_t i = 0; t->leases && i <= t->lease_mask; i++)
		spare += left_of(&t->leases[i]);
	return spare;
}

/* Without memory there are none. */
static void make_leases(struct transient *t)
{
	uint32_t count = cs_cpu_stripes(LEASES_MAX);

	t->lease_chunks = LEASE_BYTES >> t->chunk_shift;
	if (t->lease_chunks < LEASE_LEAST)
		return;
	t->leases = cs_alloc_aligned(t->base->alloc, count * sizeof(*t->leases), CS_CACHE_BYTES);
	if (!t->leases)
		return;
	memset(t->leases, 0, count * sizeof(*t->leases));
	for (uint32_t i = 0; i < count; i++)
		cs_mutex_init(&t->leases[i].lock);
	t->lease_mask = count - 1;
}

static void free_leases(struct transient *t)
{
	for (uint32_t i = 0; t->leases && i <= t->lease_mask; i++)
		cs_mutex_fini(&t->leases[i].lock);
	cs_free(t->base->alloc, t->leases, (t->lease_mask + 1) * sizeof(*t->leases));
}

static int transient_alloc(void *user, uint64_t want, uint64_t *location, uint64_t *count)
{
	struct transient *t = user;
	int rc;

	*count = from_lease(t, want, location);
	if (*count)
		return 0;
	do
		rc = allocate(t, want, location, count);
	while (rc == -ENOSPC && end_leases(t));
	return rc;
}

/* ---- Free ----------------------------------------------------------------------------------- */

static void give_back_areas(struct transient *t, uint64_t location, uint64_t count)
	CS_REQUIRES(t->lock)
{
	uint64_t step = AREA_BYTES >> t->chunk_shift ? AREA_BYTES >> t->chunk_shift : 1;
	uint64_t area = location - location % step;

	for (; area < location + count; area += step) {
		if (cs_runs_length(&t->freed_runs, area, step) == step)
			cs_dev_discard(t->device, area << t->chunk_shift, step << t->chunk_shift);
	}
}

/* Goes back to the beginning if nothing is in use. */
static void reset(struct transient *t)
{
	uint64_t fresh;

	cs_mutex_lock(&t->lock);
	/* Acquire: T2; pairs with take_place, take_fresh and transient_free, in this order. */
	fresh = atomic_load_explicit(&t->fresh, memory_order_acquire);
	if (!fresh || atomic_load_explicit(&t->placing, memory_order_acquire) ||
		atomic_load_explicit(&t->used, memory_order_acquire)) {
		cs_mutex_unlock(&t->lock);
		return;
	}
	if (t->own_device)
		cs_dev_discard(t->device, 0, fresh << t->chunk_shift);
	/* Fails if a fresh chunk has been given out meanwhile: then all is as it was. Release: the
	 * memory is no longer touched here; pairs with take_place. */
	if (atomic_compare_exchange_strong_explicit(
		    &t->fresh, &fresh, 0, memory_order_release, memory_order_relaxed)) {
		cs_runs_clear(&t->freed_runs);
		atomic_store_explicit(&t->freed, 0, memory_order_relaxed);
		t->next = 0;
	}
	cs_mutex_unlock(&t->lock);
}

static void transient_free(void *user, uint64_t location, uint64_t count)
{
	struct transient *t = user;
	/* A chunk in use is below `fresh` on every thread that may free it. */
	uint64_t fresh = atomic_load_explicit(&t->fresh, memory_order_relaxed);
	uint64_t changed, freed;

	if (count > fresh || location > fresh - count) {
		cs_log(t->base, COWSNAP_LOG_ERROR,
			"transient store: free of %llu chunks at %llu, which are not in use",
			(unsigned long long)count, (unsigned long long)location);
		return;
	}
	cs_mutex_lock(&t->lock);
	changed = put_back(t, location, count);
	freed = atomic_load_explicit(&t->freed, memory_order_relaxed);
	if (t->own_device && freed << t->chunk_shift > WARM_BYTES)
		give_back_areas(t, location, count);
	cs_mutex_unlock(&t->lock);
	/* Release: T2; pairs with reset. */
	atomic_fetch_sub_explicit(&t->used, changed, memory_order_release);
	if (changed != count)
		cs_log(t->base, COWSNAP_LOG_ERROR,
			"transient store: free of %llu chunks at %llu, %llu of which are not in "
			"use",
			(unsigned long long)count, (unsigned long long)location,
			(unsigned long long)(count - changed));
}

static void transient_emptied(void *user)
{
	end_leases(user);
	reset(user);
}

/* ---- The rest ------------------------------------------------------------------------------- */

static void transient_space(void *user, struct cowsnap_store_space *space)
{
	const struct transient *t = user;

	space->used_chunks = atomic_load_explicit(&t->used, memory_order_relaxed);
	space->limit_chunks = atomic_load_explicit(&t->limit, memory_order_relaxed);
}

static uint64_t device_chunks(const struct transient *t)
{
	uint64_t chunks = cs_dev_size(t->device) >> t->chunk_shift;

	return chunks < COWSNAP_LOCATION_MAX + 1 ? chunks : COWSNAP_LOCATION_MAX + 1;
}

static int set_limit(struct transient *t, uint64_t limit_chunks)
{
	uint64_t before;
	int rc = 0;

	cs_mutex_lock(&t->lock);
	atomic_store_explicit(&t->capacity, device_chunks(t), memory_order_relaxed);
	if (!limit_chunks)
		limit_chunks = device_chunks(t);
	before = atomic_load_explicit(&t->limit, memory_order_relaxed);
	/* First without harm: a limit that goes down and up again may refuse an allocation. */
	if (limit_chunks > device_chunks(t)) {
		rc = -ERANGE;
	} else if (atomic_load_explicit(&t->used, memory_order_relaxed) > limit_chunks) {
		rc = -EBUSY;
	} else {
		/* seq_cst: T1; pairs with count_in. */
		atomic_store_explicit(&t->limit, limit_chunks, memory_order_seq_cst);
		if (atomic_load_explicit(&t->used, memory_order_seq_cst) > limit_chunks) {
			/* seq_cst: as above; pairs with count_in. */
			atomic_store_explicit(&t->limit, before, memory_order_seq_cst);
			rc = -EBUSY;
		}
	}
	cs_mutex_unlock(&t->lock);
	return rc;
}

static int transient_set_limit(void *user, uint64_t limit_chunks)
{
	int rc = set_limit(user, limit_chunks);

	/* What is set aside may be what is in the way. */
	return rc == -EBUSY && end_leases(user) ? set_limit(user, limit_chunks) : rc;
}

static void transient_close(void *user)
{
	struct transient *t = user;

	free_leases(t);
	cs_runs_fini(&t->freed_runs);
	if (t->own_device)
		cs_dev_destroy(t->device);
	else
		cs_dev_lock(t->device, COWSNAP_LOCK_NONE);
	cs_cond_fini(&t->settled);
	cs_mutex_fini(&t->lock);
	cs_free(t->base->alloc, t, sizeof(*t));
}

static const struct cowsnap_store_ops transient_ops = {
	.size = sizeof(transient_ops),
	.alloc = transient_alloc,
	.free = transient_free,
	.space = transient_space,
	.set_limit = transient_set_limit,
	.emptied = transient_emptied,
	.close = transient_close,
};

static uint64_t machine_bytes(void)
{
	long pages = sysconf(_SC_PHYS_PAGES);
	long page_bytes = sysconf(_SC_PAGESIZE);

	return pages > 0 && page_bytes > 0 ? (uint64_t)pages * (uint64_t)page_bytes
					   : UINT64_C(1) << 30;
}

/* Memory with room to grow, or without where address space is short. */
static int make_memory(struct transient *t, uint64_t limit_bytes)
{
	uint64_t room_bytes = machine_bytes();

	t->own_device = true;
	if (room_bytes > limit_bytes && cs_dev_memory(t->base, room_bytes, &t->device) == 0)
		return 0;
	return cs_dev_memory(t->base, limit_bytes, &t->device);
}

static int check_transient(const struct cs_base *base, struct cowsnap_transient_options *options)
{
	uint64_t chunk = options->chunk_size_bytes;

	if (options->flags & ~COWSNAP_TRANSIENT_SKIP_ZEROES) {
		cs_log(base, COWSNAP_LOG_ERROR, "transient store: unknown flags 0x%x",
			options->flags);
		return -EINVAL;
	}
	if (options->device && cs_handle_closed(&options->device->handle))
		return -EBADF;
	if (!options->limit_bytes)
		options->limit_bytes =
			options->device ? cs_dev_size(options->device) : machine_bytes() / 4;
	if (!chunk)
		options->chunk_size_bytes = chunk = CHUNK_SIZE_DEFAULT;
	if (chunk & (chunk - 1)) {
		cs_log(base, COWSNAP_LOG_ERROR,
			"transient store: chunk size %llu is not a power of two",
			(unsigned long long)chunk);
		return -EINVAL;
	}
	if (chunk < COWSNAP_CHUNK_SIZE_MIN || chunk > COWSNAP_CHUNK_SIZE_MAX ||
		options->limit_bytes < chunk || options->limit_bytes > COWSNAP_SIZE_MAX ||
		(options->device && options->limit_bytes > cs_dev_size(options->device))) {
		cs_log(base, COWSNAP_LOG_ERROR,
			"transient store: chunk size %llu or limit %llu is out of bounds",
			(unsigned long long)chunk, (unsigned long long)options->limit_bytes);
		return -ERANGE;
	}
	if (!options->low_water_bytes)
		options->low_water_bytes = options->limit_bytes / 8;
	return 0;
}

int cs_store_transient(const struct cs_base *base,
	const struct cowsnap_transient_options *user_options, struct cowsnap_store **store)
{
	struct cowsnap_transient_options options = {0};
	struct cowsnap_store_options generic = {.size = sizeof(generic)};
	struct transient *t;
	int rc = cs_options_copy(base, "transient store options", &options, sizeof(options),
		user_options, sizeof(options));

	if (!rc)
		rc = check_transient(base, &options);
	if (rc)
		return rc;
	t = cs_alloc_aligned(base->alloc, sizeof(*t), CS_CACHE_BYTES);
	if (!t)
		return -ENOMEM;
	memset(t, 0, sizeof(*t));
	t->base = base;
	cs_mutex_init(&t->lock);
	cs_cond_init(&t->settled);
	cs_runs_init(&t->freed_runs, base->alloc);
	t->chunk_shift = (uint32_t)__builtin_ctzll(options.chunk_size_bytes);
	t->device = options.device;
	if (t->device)
		rc = cs_dev_lock(t->device, COWSNAP_LOCK_EXCLUSIVE);
	else
		rc = make_memory(t, options.limit_bytes);
	if (!rc) {
		atomic_init(&t->capacity, device_chunks(t));
		atomic_init(&t->limit, options.limit_bytes >> t->chunk_shift);
		generic.chunk_size_bytes = options.chunk_size_bytes;
		generic.device = t->device;
		if (options.flags & COWSNAP_TRANSIENT_SKIP_ZEROES)
			generic.flags = COWSNAP_STORE_ZEROES;
		generic.low_water_bytes = options.low_water_bytes;
		make_leases(t);
		rc = cs_store_create(base, &transient_ops, &generic, t, store);
	}
	if (!rc)
		(*store)->spare = transient_spare;
	if (rc)
		transient_close(t);
	return rc;
}
