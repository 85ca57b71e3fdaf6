/* SPDX-License-Identifier: MIT
 *
 * What all stores share: refusals at creation, the marks, waiting for space, waiting for a commit.
 * The table here is a host's: a counter of chunks, and commits that end when the test says so.
 */
#include "support/fail_alloc.h"
#include "support/test.h"
#include "support/test_device.h"
#include "support/waits.h"

#include "store.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#define CHUNK 4096u

struct host {
	_Atomic uint64_t used;
	_Atomic uint64_t limit;
	_Atomic int closes;
	_Atomic int emptied;
	_Atomic int reason;
	int commit_error;
	bool commit_inline;
	pthread_mutex_t lock;
	pthread_cond_t queued;
	struct cowsnap_commit *queue; /* newest first */
	int queue_length;
};

static int host_alloc(void *user, uint64_t want, uint64_t *location, uint64_t *count)
{
	struct host *h = user;
	uint64_t used = atomic_load(&h->used);

	do {
		uint64_t left = atomic_load(&h->limit) - used;

		if (!left)
			return -ENOSPC;
		*count = want < left ? want : left;
	} while (!atomic_compare_exchange_weak(&h->used, &used, used + *count));
	*location = used;
	return 0;
}

static void host_free(void *user, uint64_t location, uint64_t count)
{
	struct host *h = user;

	(void)location;
	atomic_fetch_sub(&h->used, count);
}

static void host_space(void *user, struct cowsnap_store_space *space)
{
	struct host *h = user;

	space->used_chunks = atomic_load(&h->used);
	space->limit_chunks = atomic_load(&h->limit);
}

static void host_commit(void *user, struct cowsnap_commit *commit)
{
	struct host *h = user;

	if (h->commit_inline) {
		commit->done(commit, h->commit_error);
		return;
	}
	pthread_mutex_lock(&h->lock);
	commit->next = h->queue;
	h->queue = commit;
	h->queue_length++;
	pthread_cond_broadcast(&h->queued);
	pthread_mutex_unlock(&h->lock);
}

static int host_set_limit(void *user, uint64_t limit_chunks)
{
	struct host *h = user;

	if (limit_chunks > 1000)
		return -ERANGE;
	if (limit_chunks < atomic_load(&h->used))
		return -EBUSY;
	atomic_store(&h->limit, limit_chunks);
	return 0;
}

static int host_invalidate(void *user, int reason)
{
	struct host *h = user;

	atomic_store(&h->reason, reason);
	return -EIO;
}

static void host_emptied(void *user)
{
	struct host *h = user;

	atomic_fetch_add(&h->emptied, 1);
}

static void host_close(void *user)
{
	struct host *h = user;

	atomic_fetch_add(&h->closes, 1);
}

static const struct cowsnap_store_ops bare_ops = {
	.size = sizeof(bare_ops),
	.alloc = host_alloc,
	.free = host_free,
	.space = host_space,
};

static const struct cowsnap_store_ops full_ops = {
	.size = sizeof(full_ops),
	.alloc = host_alloc,
	.free = host_free,
	.space = host_space,
	.commit = host_commit,
	.invalidate = host_invalidate,
	.set_limit = host_set_limit,
	.emptied = host_emptied,
	.close = host_close,
};

/* One store of @limit chunks on a device of its own. */
struct rig {
	struct cowsnap_ctx *ctx;
	struct test_device *device;
	struct host host;
	struct cowsnap_store *store;
};

static void set_up(struct rig *r, const struct cowsnap_store_ops *ops, uint64_t limit,
	uint64_t low_water_bytes)
{
	struct test_device_options device = {.size_bytes = 1000 * CHUNK};
	struct cowsnap_store_options options = {.size = sizeof(options),
		.chunk_size_bytes = CHUNK,
		.low_water_bytes = low_water_bytes};

	memset(r, 0, sizeof(*r));
	atomic_store(&r->host.limit, limit);
	pthread_mutex_init(&r->host.lock, NULL);
	pthread_cond_init(&r->host.queued, NULL);
	cr_assert_eq(cowsnap_ctx_create(NULL, &r->ctx), 0);
	r->device = test_device_create(r->ctx, &device);
	cr_assert_not_null(r->device);
	options.device = test_device(r->device);
	cr_assert_eq(cowsnap_store_create(r->ctx, ops, &options, &r->host, &r->store), 0);
}

static void tear_down(struct rig *r)
{
	cr_assert_eq(cowsnap_store_close(r->store), 0);
	cr_assert_eq(cowsnap_store_close(r->store), -EBADF);
	cr_assert_eq(test_device_destroy(r->device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(r->ctx), 0);
	pthread_cond_destroy(&r->host.queued);
	pthread_mutex_destroy(&r->host.lock);
}

/* ---- Making ---------------------------------------------------------------------------------- */

static int try_create(struct cowsnap_ctx *ctx, const struct cowsnap_store_ops *ops,
	struct cowsnap_device *device, uint64_t chunk, uint32_t flags)
{
	struct cowsnap_store_options options = {.size = sizeof(options),
		.flags = flags,
		.chunk_size_bytes = chunk,
		.device = device};
	struct cowsnap_store *store = NULL;
	int rc = cowsnap_store_create(ctx, ops, &options, NULL, &store);

	cr_assert_eq(rc == 0, store != NULL);
	if (!rc)
		cr_assert_eq(cowsnap_store_close(store), 0);
	return rc;
}

Test(store, bad_tables_and_options_are_refused)
{
	struct cowsnap_ctx *ctx;
	struct test_device_options device = {.size_bytes = 1 << 20, .block_size = 4096};
	struct test_device *t;
	struct cowsnap_store_ops ops = bare_ops;
	struct cowsnap_store *store = NULL;
	static const uint64_t not_powers[] = {0, 1000, 4097, 12288, UINT64_MAX};
	static const uint64_t out_of_bounds[] = {1, 256, UINT64_C(1) << 31, UINT64_C(1) << 63};

	cr_assert_eq(cowsnap_ctx_create(NULL, &ctx), 0);
	t = test_device_create(ctx, &device);
	for (size_t i = 0; i < 5; i++)
		cr_assert_eq(try_create(ctx, &bare_ops, test_device(t), not_powers[i], 0), -EINVAL);
	for (size_t i = 0; i < 4; i++)
		cr_assert_eq(
			try_create(ctx, &bare_ops, test_device(t), out_of_bounds[i], 0), -ERANGE);
	cr_assert_eq(try_create(ctx, &bare_ops, test_device(t), 512, 0), -EINVAL,
		"less than a block of the device");
	cr_assert_eq(try_create(ctx, &bare_ops, NULL, CHUNK, 0), -EINVAL);
	cr_assert_eq(try_create(ctx, &bare_ops, test_device(t), CHUNK, 4), -EINVAL);
	cr_assert_eq(try_create(ctx, NULL, test_device(t), CHUNK, 0), -EINVAL);
	cr_assert_eq(cowsnap_store_create(ctx, &bare_ops, NULL, NULL, &store), -EINVAL);
	ops.alloc = NULL;
	cr_assert_eq(try_create(ctx, &ops, test_device(t), CHUNK, 0), -EINVAL);
	ops = bare_ops;
	ops.free = NULL;
	cr_assert_eq(try_create(ctx, &ops, test_device(t), CHUNK, 0), -EINVAL);
	ops = bare_ops;
	ops.space = NULL;
	cr_assert_eq(try_create(ctx, &ops, test_device(t), CHUNK, 0), -EINVAL);
	ops = bare_ops;
	ops.size--;
	cr_assert_eq(try_create(ctx, &ops, test_device(t), CHUNK, 0), -EINVAL);
	cr_assert_eq(try_create(ctx, &bare_ops, test_device(t), CHUNK, COWSNAP_STORE_ONE_SNAPSHOT),
		0, "after all these the device is free");
	cr_assert_eq(cowsnap_device_close(test_device(t)), 0);
	cr_assert_eq(try_create(ctx, &bare_ops, test_device(t), CHUNK, 0), -EBADF);
	cr_assert_eq(test_device_destroy(t), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

Test(store, its_device_is_taken)
{
	struct cowsnap_origin *origin;
	struct rig r;

	set_up(&r, &full_ops, 10, 0);
	cr_assert_eq(try_create(r.ctx, &bare_ops, test_device(r.device), CHUNK, 0), -EBUSY);
	cr_assert_eq(cowsnap_origin_open(r.ctx, test_device(r.device), &origin), -EBUSY);
	cr_assert_eq(cowsnap_device_close(test_device(r.device)), -EBUSY);
	cr_assert_eq(cowsnap_store_device(r.store), test_device(r.device));
	cr_assert_eq(cowsnap_store_chunk_size(r.store), CHUNK);
	tear_down(&r);
	cr_assert_eq(r.host.closes, 1);
}

Test(store, a_closed_store_refuses_everything)
{
	struct cowsnap_run run = {0};
	uint64_t location, count;
	struct rig r;

	set_up(&r, &full_ops, 10, 0);
	cr_assert_eq(cowsnap_store_close(r.store), 0);
	cr_assert_eq(cowsnap_store_alloc(r.store, 1, &location, &count), -EBADF);
	cr_assert_eq(cowsnap_store_commit(r.store, &run, 1), -EBADF);
	cr_assert_eq(cowsnap_store_set_limit(r.store, CHUNK), -EBADF);
	cr_assert_eq(cowsnap_store_close(NULL), 0);
	cr_assert_eq(test_device_destroy(r.device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(r.ctx), 0);
}

Test(store, without_memory_nothing_is_left_behind)
{
	struct fail_alloc *mem = fail_alloc_create(false);
	struct cs_base base = {.alloc = fail_alloc_table(mem)};
	struct cowsnap_store_options options = {.size = sizeof(options), .chunk_size_bytes = CHUNK};
	struct cowsnap_store *store = NULL;

	cr_assert_eq(cs_dev_memory(&base, 1 << 20, &options.device), 0);
	fail_alloc_at(mem, 1, false);
	cr_assert_eq(cs_store_create(&base, &bare_ops, &options, NULL, &store), -ENOMEM);
	cr_assert_not(cs_dev_claimed(options.device));
	cr_assert_eq(cs_store_create(&base, &bare_ops, &options, NULL, &store), 0);
	cs_store_destroy(store);
	cs_store_destroy(NULL);
	cs_dev_destroy(options.device);
	fail_alloc_destroy(mem);
}

Test(store, what_a_table_leaves_out_has_a_fallback)
{
	struct cowsnap_run run = {0};
	struct rig r;

	set_up(&r, &bare_ops, 10, 0);
	cr_assert_eq(cowsnap_store_commit(r.store, &run, 1), 0);
	cr_assert_eq(cowsnap_store_set_limit(r.store, CHUNK), -ENOTSUP);
	cr_assert_eq(cs_store_invalidate(r.store, -EIO), 0);
	cs_store_emptied(r.store);
	tear_down(&r);
	set_up(&r, &full_ops, 10, 0);
	cr_assert_eq(cs_store_invalidate(r.store, -ENOSPC), -EIO, "its answer is passed on");
	cr_assert_eq(r.host.reason, -ENOSPC);
	cs_store_emptied(r.store);
	cr_assert_eq(r.host.emptied, 1);
	tear_down(&r);
}

/* ---- The marks ------------------------------------------------------------------------------- */

Test(store, low_water_is_told_once_per_crossing)
{
	uint64_t location, count;
	bool low;
	struct rig r;

	/* Free space of less than 2.5 chunks: 2 are too few, 3 are not. */
	set_up(&r, &full_ops, 10, 2 * CHUNK + CHUNK / 2);
	cr_assert_eq(cs_store_alloc(r.store, 7, &location, &count, &low), 0);
	cr_assert_not(low, "3 are left");
	cr_assert_eq(cs_store_alloc(r.store, 1, &location, &count, &low), 0);
	cr_assert(low, "2 are left");
	cr_assert_eq(cs_store_alloc(r.store, 1, &location, &count, &low), 0);
	cr_assert_not(low, "told already");
	cs_store_free(r.store, 0, 1);
	cr_assert_eq(cs_store_alloc(r.store, 1, &location, &count, &low), 0);
	cr_assert_not(low, "it was not above the mark meanwhile");
	cs_store_free(r.store, 0, 2);
	cr_assert_eq(cs_store_alloc(r.store, 5, &location, &count, &low), 0);
	cr_assert_eq(count, 3);
	cr_assert(low, "it was");
	cr_assert_eq(cs_store_alloc(r.store, 1, &location, &count, &low), -ENOSPC);
	cr_assert_not(low);
	cr_assert_eq(cs_store_set_limit(r.store, 20 * CHUNK), 0);
	cr_assert_eq(cs_store_alloc(r.store, 8, &location, &count, &low), 0);
	cr_assert(low, "a new limit counts as well");
	cr_assert_eq(cs_store_alloc(r.store, 0, &location, &count, &low), -EINVAL);
	cs_store_free(r.store, 0, 18);
	tear_down(&r);
}

Test(store, no_mark_is_never_told)
{
	uint64_t location, count;
	bool low;
	struct rig r;

	set_up(&r, &full_ops, 4, 0);
	for (int i = 0; i < 4; i++) {
		cr_assert_eq(cs_store_alloc(r.store, 1, &location, &count, &low), 0);
		cr_assert_not(low);
	}
	cs_store_free(r.store, 0, 4);
	tear_down(&r);
}

Test(store, high_water_is_the_most_there_was)
{
	struct cowsnap_store_usage usage;
	uint64_t location, count;
	struct rig r;

	set_up(&r, &full_ops, 10, 0);
	cr_assert_eq(cs_store_high_water(r.store), 0);
	cr_assert_eq(cowsnap_store_alloc(r.store, 7, &location, &count), 0);
	cowsnap_store_free(r.store, 0, 5);
	cr_assert_eq(cowsnap_store_alloc(r.store, 1, &location, &count), 0);
	cr_assert_eq(cs_store_high_water(r.store), 7);
	cr_assert_eq(cowsnap_store_usage(r.store, &usage, sizeof(usage)), 0);
	cr_assert_eq(usage.high_water_bytes, 7 * CHUNK);
	cr_assert_eq(usage.used_bytes, 3 * CHUNK);
	cr_assert_eq(usage.limit_bytes, 10 * CHUNK);
	cowsnap_store_free(r.store, 0, 3);
	tear_down(&r);
}

Test(store, limits)
{
	struct rig r;

	set_up(&r, &full_ops, 10, 0);
	cr_assert_eq(cowsnap_store_set_limit(r.store, 0), 0, "the table knows what that is");
	cr_assert_eq(r.host.limit, 0);
	cr_assert_eq(cowsnap_store_set_limit(r.store, CHUNK - 1), -ERANGE);
	cr_assert_eq(cowsnap_store_set_limit(r.store, UINT64_MAX), -ERANGE);
	cr_assert_eq(cowsnap_store_set_limit(r.store, 2 * CHUNK - 1), 0, "whole chunks");
	cr_assert_eq(r.host.limit, 1);
	tear_down(&r);
}

/* ---- Waiting for space ------------------------------------------------------------------------
 */

Test(store, a_wait_ends_at_its_deadline)
{
	struct rig r;

	set_up(&r, &full_ops, 1, 0);
	cr_assert_not(wait_space(r.store, cs_store_space_epoch(r.store), 1), "long past");
	cr_assert_not(wait_space(r.store, cs_store_space_epoch(r.store), cs_deadline_ns(2000000)));
	tear_down(&r);
}

Test(store, space_that_came_before_the_wait_is_seen)
{
	uint64_t location, count, epoch;
	bool low;
	struct rig r;

	set_up(&r, &full_ops, 1, 0);
	cr_assert_eq(cs_store_alloc(r.store, 1, &location, &count, &low), 0);
	epoch = cs_store_space_epoch(r.store);
	cs_store_free(r.store, location, 1);
	cr_assert(wait_space(r.store, epoch, UINT64_MAX), "free");
	epoch = cs_store_space_epoch(r.store);
	cr_assert_eq(cs_store_set_limit(r.store, 2 * CHUNK), 0);
	cr_assert(wait_space(r.store, epoch, UINT64_MAX), "limit");
	epoch = cs_store_space_epoch(r.store);
	cr_assert_eq(cs_store_set_limit(r.store, 2000 * CHUNK), -ERANGE);
	cr_assert_not(wait_space(r.store, epoch, 1), "a refused limit is no space");
	cs_store_wake(r.store);
	cr_assert(wait_space(r.store, epoch, 1), "a wake, even past the deadline");
	tear_down(&r);
}

struct sleeper {
	struct rig *rig;
	pthread_t thread;
	bool woken;
};

static void *sleep_for_space(void *argument)
{
	struct sleeper *s = argument;
	struct cowsnap_store *store = s->rig->store;

	s->woken = wait_space(store, cs_store_space_epoch(store), UINT64_MAX);
	return NULL;
}

/* Calls @change when two threads are asleep. */
static void wake_by(struct rig *r, void (*change)(struct rig *r))
{
	struct sleeper sleeper[2];

	for (int i = 0; i < 2; i++) {
		sleeper[i] = (struct sleeper){.rig = r};
		cr_assert_eq(
			pthread_create(&sleeper[i].thread, NULL, sleep_for_space, &sleeper[i]), 0);
	}
	/* Raised under the lock that only sleeping gives up. */
	while (atomic_load(&r->store->space_waiters) < 2)
		;
	change(r);
	for (int i = 0; i < 2; i++) {
		pthread_join(sleeper[i].thread, NULL);
		cr_assert(sleeper[i].woken);
	}
}

static void free_one(struct rig *r)
{
	cs_store_free(r->store, 0, 1);
}

static void raise_limit(struct rig *r)
{
	cr_assert_eq(cowsnap_store_set_limit(r->store, 20 * CHUNK), 0);
}

static void just_wake(struct rig *r)
{
	cs_store_wake(r->store);
}

Test(store, all_who_sleep_are_woken)
{
	uint64_t location, count;
	struct rig r;

	set_up(&r, &full_ops, 10, 0);
	cr_assert_eq(cowsnap_store_alloc(r.store, 10, &location, &count), 0);
	wake_by(&r, free_one);
	wake_by(&r, raise_limit);
	wake_by(&r, just_wake);
	cs_store_free(r.store, 0, 9);
	tear_down(&r);
}

#define FIGHTERS 6
#define ROUNDS   3000

/* Takes the only chunk, gives it back, and for ever so. A lost wake-up hangs the test. */
static void *fight(void *argument)
{
	struct rig *r = argument;
	uint64_t location, count;
	bool low;

	for (int i = 0; i < ROUNDS; i++) {
		uint64_t epoch = cs_store_space_epoch(r->store);

		while (cs_store_alloc(r->store, 1, &location, &count, &low)) {
			wait_space(r->store, epoch, UINT64_MAX);
			epoch = cs_store_space_epoch(r->store);
		}
		cs_store_free(r->store, location, count);
	}
	return NULL;
}

Test(store, no_wake_up_is_lost)
{
	pthread_t thread[FIGHTERS];
	struct rig r;

	set_up(&r, &full_ops, 1, 0);
	for (int i = 0; i < FIGHTERS; i++)
		cr_assert_eq(pthread_create(&thread[i], NULL, fight, &r), 0);
	for (int i = 0; i < FIGHTERS; i++)
		pthread_join(thread[i], NULL);
	cr_assert_eq(r.host.used, 0);
	tear_down(&r);
}

/* ---- Commit -----------------------------------------------------------------------------------
 */

Test(store, a_commit_may_end_at_once)
{
	struct cowsnap_run run = {.first = 1, .count = 2, .location = 3};
	struct rig r;

	set_up(&r, &full_ops, 10, 0);
	r.host.commit_inline = true;
	cr_assert_eq(cowsnap_store_commit(r.store, &run, 1), 0);
	r.host.commit_error = -EIO;
	cr_assert_eq(cowsnap_store_commit(r.store, &run, 1), -EIO);
	cr_assert_eq(cowsnap_store_commit(r.store, &run, 0), 0, "nothing to record");
	tear_down(&r);
}

#define COMMITTERS 8

struct committer {
	struct rig *rig;
	pthread_t thread;
	uint64_t number;
	int rc;
};

static void *commit_one(void *argument)
{
	struct committer *c = argument;
	struct cowsnap_run run = {.first = c->number, .count = 1, .location = c->number};

	c->rc = cowsnap_store_commit(c->rig->store, &run, 1);
	return NULL;
}

Test(store, commits_end_in_any_order_on_any_thread)
{
	struct committer c[COMMITTERS];
	struct rig r;

	set_up(&r, &full_ops, 10, 0);
	for (uint64_t i = 0; i < COMMITTERS; i++) {
		c[i] = (struct committer){.rig = &r, .number = i, .rc = 1};
		cr_assert_eq(pthread_create(&c[i].thread, NULL, commit_one, &c[i]), 0);
	}
	pthread_mutex_lock(&r.host.lock);
	while (r.host.queue_length < COMMITTERS)
		pthread_cond_wait(&r.host.queued, &r.host.lock);
	pthread_mutex_unlock(&r.host.lock);
	/* Newest first; each has the error of its own number. */
	while (r.host.queue) {
		struct cowsnap_commit *commit = r.host.queue;

		r.host.queue = commit->next;
		cr_assert_eq(commit->count, 1);
		commit->done(commit, -(int)commit->runs[0].first);
	}
	for (int i = 0; i < COMMITTERS; i++) {
		pthread_join(c[i].thread, NULL);
		cr_assert_eq(c[i].rc, -i);
	}
	tear_down(&r);
}
