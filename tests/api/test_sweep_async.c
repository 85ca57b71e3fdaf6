/* SPDX-License-Identifier: MIT
 *
 * Memory runs out where nobody waits: as test_sweep.c, with queues, event loops and workers. Each
 * call either does its work or is refused with -ENOMEM, each operation that was accepted ends, and
 * nothing is left.
 */
#include "support/fail_alloc.h"
#include "support/test.h"
#include "support/test_device_async.h"

#include <cowsnap.h>
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define BYTES  UINT64_C(262144)
#define CHUNK  UINT64_C(4096)
#define WRITES 6

/* Many more than any scenario allocates: the sweep itself must end. */
#define SWEEP_MAX 20000

struct scene;

struct write {
	struct cowsnap_op op;
	struct scene *scene;
	uint64_t offset, length;
	int error;
	_Atomic bool pending;
};

struct scene {
	struct fail_alloc *memory;
	enum cowsnap_engine engine;
	bool submits;
	struct cowsnap_ctx *ctx;
	struct cowsnap_queue *queue;
	struct test_async *async;
	struct cowsnap_device *device;
	struct cowsnap_origin *origin;
	struct cowsnap_store *store;
	struct cowsnap_snapshot *snapshot;
	struct write write[WRITES];
	struct write other; /* the take, the read */
	uint8_t live[BYTES];
	uint8_t image[BYTES]; /* at the take */
};

/* Nothing but -ENOMEM may be wrong. */
static bool done(int rc)
{
	cr_assert(rc == 0 || rc == -ENOMEM, "error %d", rc);
	return rc == 0;
}

static bool open_device(struct scene *s)
{
	if (!s->submits)
		return done(cowsnap_device_memory(s->ctx, BYTES, &s->device));
	/* It says no more than that it could not be made. */
	s->async = test_async_create(
		s->ctx, &(struct test_device_options){.size_bytes = BYTES}, TEST_ASYNC_INLINE);
	if (s->async)
		s->device = test_async_device(s->async);
	return s->async;
}

static bool open_scene(struct scene *s)
{
	const struct cowsnap_ctx_options options = {.size = sizeof(options),
		.allocator = fail_alloc_table(s->memory),
		.engine = s->engine,
		.workers = s->engine == COWSNAP_ENGINE_WORKERS ? 2 : 0};
	const struct cowsnap_transient_options transient = {
		.size = sizeof(transient), .chunk_size_bytes = CHUNK};

	return done(cowsnap_ctx_create(&options, &s->ctx)) &&
	       (s->engine == COWSNAP_ENGINE_WORKERS ||
		       done(cowsnap_queue_create(s->ctx, 2, &s->queue))) &&
	       open_device(s) && done(cowsnap_origin_open(s->ctx, s->device, &s->origin)) &&
	       done(cowsnap_store_transient(s->ctx, &transient, &s->store));
}

static void close_scene(struct scene *s)
{
	if (s->snapshot) {
		cr_assert_eq(cowsnap_snapshot_drop(s->snapshot), 0, "a drop needs no memory");
		cowsnap_snapshot_unref(s->snapshot);
	}
	cr_assert_eq(cowsnap_store_close(s->store), 0);
	cr_assert_eq(cowsnap_origin_close(s->origin), 0);
	cr_assert_eq(cowsnap_queue_close(s->queue), 0);
	if (s->async)
		cr_assert_eq(test_async_destroy(s->async), 0);
	else
		cr_assert_eq(cowsnap_device_close(s->device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(s->ctx), 0);
}

/* ---- Writes ---------------------------------------------------------------------------------- */

static void admitted(struct write *w, int rc)
{
	struct scene *s = w->scene;

	if (done(rc)) {
		cr_assert_eq(
			cowsnap_device_write(s->device, s->live + w->offset, w->offset, w->length),
			0);
		cowsnap_write_end(&w->op);
	}
	atomic_store(&w->pending, false);
}

static void ready(struct cowsnap_op *op, void *user, int error)
{
	(void)op;
	admitted(user, error);
}

static void start_write(struct scene *s, unsigned i)
{
	struct write *w = &s->write[i];
	int rc;

	w->scene = s;
	w->offset = i * 7 * CHUNK;
	w->length = 10 * CHUNK - 1;
	memset(s->live + w->offset, 2, w->length);
	atomic_store(&w->pending, true);
	rc = cowsnap_write_begin_async(
		s->origin, s->queue, COWSNAP_WRITE, w->offset, w->length, &w->op, ready, w);
	if (rc != COWSNAP_PENDING)
		admitted(w, rc);
}

static void await_end(struct scene *s, struct write *w)
{
	struct pollfd p = {.events = POLLIN};

	if (s->queue)
		p.fd = cowsnap_queue_fd(s->queue);
	while (atomic_load(&w->pending)) {
		if (!s->queue) {
			sched_yield();
			continue;
		}
		cr_assert_eq(poll(&p, 1, 30000), 1, "an operation does not end");
		cr_assert_geq(cowsnap_queue_poll(s->queue), 0);
	}
}

static void ended(struct cowsnap_op *op, void *user, int error)
{
	struct write *w = user;

	(void)op;
	w->error = error;
	atomic_store(&w->pending, false);
}

/* Returns: how the take or the read has ended, whose call returned @rc. */
static int end_of(struct scene *s, int rc)
{
	if (rc != COWSNAP_PENDING)
		return rc;
	await_end(s, &s->other);
	return s->other.error;
}

static bool take(struct scene *s)
{
	struct cowsnap_take_entry entry = {.origin = s->origin, .store = s->store};
	int rc;

	atomic_store(&s->other.pending, true);
	rc = cowsnap_take_async(s->ctx, s->queue, NULL, &entry, 1, &s->other.op, ended, &s->other);
	if (!done(end_of(s, rc))) {
		cr_assert_null(entry.snapshot);
		return false;
	}
	s->snapshot = entry.snapshot;
	return true;
}

/* What can be read is right. */
static void check_image(struct scene *s)
{
	static uint8_t data[BYTES];
	struct cowsnap_snapshot_info info;
	int rc;

	atomic_store(&s->other.pending, true);
	rc = end_of(s, cowsnap_snapshot_read_async(s->snapshot, s->queue, data, 0, BYTES,
			       &s->other.op, ended, &s->other));

	if (rc == -ESTALE) {
		cr_assert_eq(cowsnap_snapshot_info(s->snapshot, &info, sizeof(info)), 0);
		cr_assert_eq(info.reason, -ENOMEM);
	} else if (done(rc)) {
		cr_assert_arr_eq(data, s->image, BYTES);
	}
}

static void scenario(struct scene *s)
{
	if (!open_scene(s))
		return;
	memset(s->live, 1, BYTES);
	memcpy(s->image, s->live, BYTES);
	cr_assert_eq(cowsnap_device_write(s->device, s->live, 0, BYTES), 0);
	if (!take(s))
		return;
	for (unsigned i = 0; i < WRITES; i++)
		start_write(s, i);
	for (unsigned i = 0; i < WRITES; i++)
		await_end(s, &s->write[i]);
	check_image(s);
}

/* ---- The sweep ------------------------------------------------------------------------------- */

/* Returns: whether an allocation failed. */
static bool run_once(enum cowsnap_engine engine, bool submits, uint64_t n, bool for_good)
{
	struct scene *s = calloc(1, sizeof(*s));
	bool failed;

	s->memory = fail_alloc_create(false);
	s->engine = engine;
	s->submits = submits;
	fail_alloc_at(s->memory, n, for_good);
	scenario(s);
	close_scene(s);
	failed = fail_alloc_failed(s->memory) > 0;
	cr_assert_eq(fail_alloc_live(s->memory), 0, "allocation %llu failed: %llu blocks leaked",
		(unsigned long long)n, (unsigned long long)fail_alloc_live(s->memory));
	fail_alloc_destroy(s->memory);
	free(s);
	return failed;
}

static void sweep(enum cowsnap_engine engine, bool submits)
{
	for (int for_good = 0; for_good < 2; for_good++) {
		uint64_t n = 1;

		while (run_once(engine, submits, n, for_good)) {
			n++;
			cr_assert(n < SWEEP_MAX);
		}
		cr_assert(n > 10, "only %llu allocations", (unsigned long long)n - 1);
	}
}

Test(sweep_async, event_loop_that_calls_devices, .timeout = 120)
{
	sweep(COWSNAP_ENGINE_INLINE, false);
}

Test(sweep_async, event_loop_that_submits, .timeout = 120)
{
	sweep(COWSNAP_ENGINE_LOOP, true);
}

Test(sweep_async, workers, .timeout = 120)
{
	sweep(COWSNAP_ENGINE_WORKERS, false);
}

Test(sweep_async, workers_that_submit, .timeout = 120)
{
	sweep(COWSNAP_ENGINE_WORKERS, true);
}
