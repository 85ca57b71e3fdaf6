/* SPDX-License-Identifier: MIT
 *
 * Snapshots that are made independent of their origin by a thread that polls.
 */
#include "concurrent/scene.h"
#include "support/fail_alloc.h"
#include "support/pending.h"

#include <errno.h>
#include <string.h>

#define CHUNKS (SCENE_BYTES / SCENE_CHUNK)
#define ALL    UINT64_MAX

struct stage {
	struct scene s;
	struct cowsnap_queue *queue; /* NULL: with workers */
	struct cowsnap_snapshot *snapshot;
	struct pending_op op;
};

static void stage_open(struct stage *t, const struct scene_options *options)
{
	memset(t, 0, sizeof(*t));
	scene_open(&t->s, options);
	if (!options->workers)
		cr_assert_eq(cowsnap_queue_create(t->s.ctx, 8, &t->queue), 0);
	t->snapshot = scene_take(&t->s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
}

static void stage_close(struct stage *t)
{
	scene_drop(t->snapshot);
	if (t->queue)
		cr_assert_eq(cowsnap_queue_close(t->queue), 0);
	scene_close(&t->s);
}

static bool is_detached(const struct stage *t)
{
	struct cowsnap_snapshot_info info;

	cr_assert_eq(cowsnap_snapshot_info(t->snapshot, &info, sizeof(info)), 0);
	return info.detached;
}

static int start(struct stage *t, uint64_t max_bytes)
{
	memset(&t->op, 0, sizeof(t->op));
	return cowsnap_snapshot_detach_async(
		t->snapshot, t->queue, max_bytes, &t->op.op, pending_done, &t->op);
}

static int finish(struct stage *t)
{
	if (t->queue)
		cr_assert(pending_wait(t->queue, &t->op), "nothing happens any more");
	while (!atomic_load(&t->op.calls))
		sched_yield();
	return t->op.error;
}

static int detach(struct stage *t, uint64_t max_bytes)
{
	int rc = start(t, max_bytes);

	return rc == COWSNAP_PENDING ? finish(t) : rc;
}

/* The origin is not needed any more. */
static void expect_independent(struct stage *t)
{
	cr_assert(is_detached(t));
	test_device_fail(t->s.origin_test[0], TEST_IO_READ, 1, true, -EIO);
	scene_expect(t->snapshot, 0, SCENE_BYTES, SCENE_BLANK);
	test_device_heal(t->s.origin_test[0]);
}

static void cancel(struct stage *t)
{
	cr_assert_eq(cowsnap_op_cancel(&t->op.op), 0);
	cr_assert_eq(finish(t), -ECANCELED);
	cr_assert(!is_detached(t));
}

Test(detach_async, on_every_kind_of_device)
{
	static const struct scene_options options[] = {
		{.engine = COWSNAP_ENGINE_INLINE},
		{.engine = COWSNAP_ENGINE_LOOP},
		{.engine = COWSNAP_ENGINE_LOOP, .submits = true, .mode = TEST_ASYNC_INLINE},
		{.engine = COWSNAP_ENGINE_LOOP, .submits = true, .mode = TEST_ASYNC_FOREIGN},
		{.engine = COWSNAP_ENGINE_LOOP, .submits = true, .mode = TEST_ASYNC_REVERSE},
		{.engine = COWSNAP_ENGINE_LOOP,
			.copy_inflight_bytes = SCENE_CHUNK,
			.submits = true,
			.mode = TEST_ASYNC_REVERSE},
		{.engine = COWSNAP_ENGINE_WORKERS, .workers = 2},
	};

	for (unsigned i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
		unsigned steps = 0;
		struct stage t;
		int rc;

		stage_open(&t, &options[i]);
		cr_assert_eq(scene_write(&t.s, 0, 5 * SCENE_CHUNK, 3 * SCENE_CHUNK, 7), 0);
		do {
			rc = detach(&t, i % 2 ? 10 * SCENE_CHUNK : ALL);
			cr_assert_eq(is_detached(&t), rc == 0);
			cr_assert_eq(scene_write(&t.s, 0, steps * SCENE_CHUNK, 1, 3), 0);
			steps++;
		} while (rc == 1);
		cr_assert_eq(rc, 0, "%u: %d", i, rc);
		cr_assert(i % 2 ? steps > 1 && steps <= CHUNKS : steps == 1);
		expect_independent(&t);
		cr_assert_eq(detach(&t, ALL), 0);
		stage_close(&t);
	}
}

Test(detach_async, refused)
{
	struct pending_op op = {0};
	struct stage t;

	stage_open(&t, &(struct scene_options){.engine = COWSNAP_ENGINE_LOOP});
	cr_assert_eq(cowsnap_snapshot_detach_async(t.snapshot, NULL, 1, &op.op, pending_done, &op),
		-EINVAL);
	cr_assert_eq(
		cowsnap_snapshot_detach_async(t.snapshot, t.queue, 1, &op.op, NULL, &op), -EINVAL);
	cr_assert_eq(cowsnap_snapshot_release(t.snapshot, 0, SCENE_CHUNK), 0);
	cr_assert_eq(start(&t, ALL), -ENODATA);
	cr_assert_eq(cowsnap_snapshot_drop(t.snapshot), 0);
	cr_assert_eq(start(&t, ALL), -EIDRM);
	cowsnap_snapshot_unref(t.snapshot);
	t.snapshot = scene_take(&t.s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(detach(&t, ALL), 0);
	stage_close(&t);
}

Test(detach_async, without_memory)
{
	struct fail_alloc *memory = fail_alloc_create(false);
	struct stage t;

	stage_open(&t, &(struct scene_options){.engine = COWSNAP_ENGINE_LOOP,
			       .allocator = fail_alloc_table(memory)});
	for (uint64_t n = 1;; n++) {
		int rc;

		fail_alloc_at(memory, n, false);
		rc = detach(&t, ALL);
		fail_alloc_at(memory, 0, false);
		scene_expect(t.snapshot, 0, SCENE_BYTES, SCENE_BLANK);
		if (!rc)
			break;
		cr_assert_eq(rc, -ENOMEM, "%d", rc);
	}
	expect_independent(&t);
	stage_close(&t);
	fail_alloc_destroy(memory);
}

/* The next call goes on with the range that failed. */
Test(detach_async, each_device_call_fails_once)
{
	const struct scene_options options = {
		.engine = COWSNAP_ENGINE_LOOP, .submits = true, .mode = TEST_ASYNC_REVERSE};

	for (unsigned store = 0; store < 2; store++) {
		bool failed = true;

		for (uint64_t n = 1; failed; n++) {
			struct test_device *device;
			struct stage t;
			int rc;

			stage_open(&t, &options);
			device = store ? t.s.store_test[0] : t.s.origin_test[0];
			for (unsigned i = 1; i < CHUNKS; i += 4)
				cr_assert_eq(scene_write(&t.s, 0, i * SCENE_CHUNK, 1, 7), 0);
			test_device_fail(
				device, store ? TEST_IO_WRITE : TEST_IO_READ, n, false, -EIO);
			rc = detach(&t, ALL);
			failed = test_device_failed(device) > 0;
			test_device_heal(device);
			cr_assert_eq(
				rc, failed ? -EIO : 0, "call %llu: %d", (unsigned long long)n, rc);
			cr_assert_eq(is_detached(&t), !failed);
			cr_assert_eq(detach(&t, ALL), 0);
			expect_independent(&t);
			stage_close(&t);
		}
	}
}

/* ---- Cancelled ------------------------------------------------------------------------------- */

/* While it waits for the throttle. A second call is refused until then. */
Test(detach_async, cancelled_while_it_is_held_back)
{
	struct stage t;

	stage_open(&t, &(struct scene_options){.engine = COWSNAP_ENGINE_LOOP});
	cr_assert_eq(scene_write(&t.s, 0, SCENE_CHUNK, 1, 7), 0);
	/* The first range is paid for when it goes on, the next one would wait for days. */
	cr_assert_eq(cowsnap_ctx_throttle(t.s.ctx, 1, 100), 0);
	for (unsigned i = 0; i < 2; i++) {
		cr_assert_eq(start(&t, ALL), COWSNAP_PENDING);
		pending_settle(t.queue);
		cr_assert_eq(atomic_load(&t.op.calls), 0);
		cr_assert_eq(cowsnap_snapshot_detach(t.snapshot, ALL), -EALREADY);
		cancel(&t);
	}
	cr_assert_eq(start(&t, ALL), COWSNAP_PENDING);
	pending_settle(t.queue);
	cr_assert_eq(cowsnap_ctx_throttle(t.s.ctx, 0, 100), 0);
	cr_assert_eq(finish(&t), 0);
	expect_independent(&t);
	stage_close(&t);
}

/* In the middle of a copy, which comes to its end. */
Test(detach_async, cancelled_while_it_copies)
{
	struct stage t;

	stage_open(&t,
		&(struct scene_options){
			.engine = COWSNAP_ENGINE_LOOP, .submits = true, .mode = TEST_ASYNC_INLINE});
	/* In three ranges. */
	for (unsigned i = 1; i < 3; i++)
		cr_assert_eq(scene_write(&t.s, 0, i * 20 * SCENE_CHUNK, 1, 7), 0);
	for (unsigned i = 0; i < 3; i++) {
		test_async_set_mode(t.s.origin_async[0], TEST_ASYNC_HELD);
		test_async_set_mode(t.s.store_async[0], TEST_ASYNC_HELD);
		cr_assert_eq(start(&t, ALL), COWSNAP_PENDING);
		pending_settle(t.queue);
		cr_assert_gt(test_async_held(t.s.origin_async[0]), 0);
		cr_assert_eq(cowsnap_op_cancel(&t.op.op), 0);
		pending_settle(t.queue);
		while (!atomic_load(&t.op.calls)) {
			test_async_release(t.s.origin_async[0], 1, TEST_RELEASE_LAST);
			test_async_release(t.s.store_async[0], 1, TEST_RELEASE_FIRST);
			pending_settle(t.queue);
		}
		/* The last range is all that there was. */
		cr_assert_eq(t.op.error, i < 2 ? -ECANCELED : 0);
		cr_assert_eq(is_detached(&t), i == 2);
		/* A write does not wait for anything of it. */
		test_async_set_mode(t.s.origin_async[0], TEST_ASYNC_INLINE);
		test_async_set_mode(t.s.store_async[0], TEST_ASYNC_INLINE);
		cr_assert_eq(scene_write(&t.s, 0, i * SCENE_CHUNK, SCENE_CHUNK, 9), 0);
	}
	expect_independent(&t);
	stage_close(&t);
}

/* While it waits for credits that writers have: in the gate, which it leaves. */
Test(detach_async, cancelled_while_it_waits_for_credits)
{
	struct pending_op write = {0};
	struct stage t;

	stage_open(&t, &(struct scene_options){.engine = COWSNAP_ENGINE_LOOP,
			       .copy_inflight_bytes = SCENE_CHUNK,
			       .submits = true,
			       .mode = TEST_ASYNC_HELD});
	cr_assert_eq(cowsnap_write_begin_async(t.s.origin[0], t.queue, COWSNAP_WRITE, 0, 1,
			     &write.op, pending_done, &write),
		COWSNAP_PENDING);
	pending_settle(t.queue);
	cr_assert_eq(start(&t, ALL), COWSNAP_PENDING);
	pending_settle(t.queue);
	cr_assert_eq(atomic_load(&t.op.calls), 0);
	cancel(&t);
	while (!atomic_load(&write.calls)) {
		test_async_release(t.s.origin_async[0], 1, TEST_RELEASE_FIRST);
		test_async_release(t.s.store_async[0], 1, TEST_RELEASE_FIRST);
		pending_settle(t.queue);
	}
	cowsnap_write_end(&write.op);
	test_async_set_mode(t.s.origin_async[0], TEST_ASYNC_INLINE);
	test_async_set_mode(t.s.store_async[0], TEST_ASYNC_INLINE);
	/* Nobody is left in the gate. */
	scene_drop(scene_take(&t.s, 0, 0, COWSNAP_LOSER_SNAPSHOT));
	cr_assert_eq(detach(&t, ALL), 0);
	expect_independent(&t);
	stage_close(&t);
}

/* Outside of the gate, while a take drains; and it goes on when that is over, or given up. */
Test(detach_async, during_the_drain_of_a_take)
{
	for (unsigned i = 0; i < 4; i++) {
		bool withdrawn = i & 1, cancels = i & 2;
		struct cowsnap_op bracket;
		struct actor taker;
		struct stage t;

		stage_open(&t, &(struct scene_options){.engine = COWSNAP_ENGINE_LOOP});
		cr_assert_eq(cowsnap_write_begin(t.s.origin[0], COWSNAP_WRITE, 0, 1, &bracket), 0);
		actor_take(&taker, &t.s, 1, withdrawn ? 200000000 : UINT64_MAX);
		while (!atomic_load(&taker.thawed))
			sched_yield();
		cr_assert_eq(start(&t, ALL), COWSNAP_PENDING);
		pending_settle(t.queue);
		if (cancels)
			cancel(&t);
		if (!withdrawn)
			cowsnap_write_end(&bracket);
		cr_assert_eq(actor_join(&taker), withdrawn ? -ETIMEDOUT : 0);
		if (withdrawn)
			cowsnap_write_end(&bracket);
		cr_assert_eq(cancels ? detach(&t, ALL) : finish(&t), 0);
		expect_independent(&t);
		if (!withdrawn)
			scene_drop(taker.entry[0].snapshot);
		stage_close(&t);
	}
}

/* ---- Beside others --------------------------------------------------------------------------- */

/* The snapshot is dropped while the call waits: it is told, and until then the origin stays. */
Test(detach_async, dropped_while_it_is_held_back)
{
	struct cowsnap_op bracket;
	struct stage t;

	stage_open(&t, &(struct scene_options){.engine = COWSNAP_ENGINE_LOOP});
	cr_assert_eq(scene_write(&t.s, 0, SCENE_CHUNK, 1, 7), 0);
	cr_assert_eq(cowsnap_ctx_throttle(t.s.ctx, 1, 100), 0);
	cr_assert_eq(start(&t, ALL), COWSNAP_PENDING);
	pending_settle(t.queue);
	cr_assert_eq(cowsnap_snapshot_drop(t.snapshot), 0);
	cr_assert_eq(cowsnap_origin_close(t.s.origin[0]), -EBUSY);
	cr_assert_eq(cowsnap_ctx_throttle(t.s.ctx, 0, 100), 0);
	cr_assert_eq(finish(&t), -EIDRM);
	cowsnap_snapshot_unref(t.snapshot);
	cr_assert_eq(cowsnap_write_begin(t.s.origin[0], COWSNAP_WRITE, 0, 1, &bracket), 0);
	cowsnap_write_end(&bracket);
	t.snapshot = scene_take(&t.s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	stage_close(&t);
}

Test(detach_async, beside_writers_takes_and_drops)
{
	for (unsigned round = 0; round < 6; round++) {
		const struct scene_options options = {.engine = COWSNAP_ENGINE_LOOP,
			.submits = round % 2,
			.mode = TEST_ASYNC_FOREIGN};
		pthread_t writer;
		struct stage t;

		stage_open(&t, &options);
		cr_assert_eq(pthread_create(&writer, NULL, scene_write_on, &t.s), 0);
		cr_assert_eq(start(&t, ALL), COWSNAP_PENDING);
		for (int i = 0; i < 4; i++) {
			struct cowsnap_take_entry entry = {
				.origin = t.s.origin[0], .store = t.s.store[0]};
			struct pending_op take = {0};

			cr_assert_eq(cowsnap_take_async(t.s.ctx, t.queue, NULL, &entry, 1, &take.op,
					     pending_done, &take),
				COWSNAP_PENDING);
			cr_assert(pending_wait(t.queue, &take));
			cr_assert_eq(take.error, 0);
			scene_drop(entry.snapshot);
			cowsnap_reclaim(t.s.ctx, 16);
		}
		cr_assert_eq(finish(&t), 0);
		pthread_join(writer, NULL);
		expect_independent(&t);
		stage_close(&t);
	}
}
