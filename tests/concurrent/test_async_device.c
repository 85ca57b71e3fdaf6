/* SPDX-License-Identifier: MIT
 *
 * Brackets that do not wait, on devices that are submitted to: completions inline, elsewhere, in
 * reverse, twice, late, never; failures; credits; the host's descriptor while all that goes on.
 */
#include "concurrent/async.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHUNK    SCENE_CHUNK
#define CHUNKS   (SCENE_BYTES / SCENE_CHUNK)
#define OLD      1
#define NEW      2
#define FOR_EVER UINT64_MAX
#define MS       UINT64_C(1000000)

static const struct scene_options held = {
	.engine = COWSNAP_ENGINE_LOOP, .submits = true, .mode = TEST_ASYNC_HELD};
static const struct scene_options tight = {.engine = COWSNAP_ENGINE_LOOP,
	.submits = true,
	.mode = TEST_ASYNC_HELD,
	.copy_inflight_bytes = 1};

static void open_stage(
	struct scene *s, struct loop *l, const struct scene_options *options, uint32_t depth)
{
	scene_open(s, options);
	for (unsigned o = 0; o < SCENE_ORIGINS; o++)
		cr_assert_eq(scene_write(s, o, 0, SCENE_BYTES, OLD), 0);
	loop_open(l, s, depth);
}

static void close_stage(struct scene *s, struct loop *l)
{
	loop_close(l);
	scene_close(s);
}

static unsigned release_all(struct test_async **async, unsigned count, enum test_release order)
{
	unsigned released = 0;

	for (unsigned i = 0; i < count; i++)
		released += test_async_release(async[i], UINT32_MAX, order);
	return released;
}

/* Everything that is held ends, however often more comes. */
static void let_go(struct scene *s, struct loop *l)
{
	do
		loop_settle(l);
	while (release_all(s->origin_async, SCENE_ORIGINS, TEST_RELEASE_FIRST) +
		release_all(s->store_async, SCENE_STORES, TEST_RELEASE_LAST));
}

/* ---- Where and when a device completes ------------------------------------------------------- */

static void all_is_copied(enum test_async_mode mode, uint64_t inflight_bytes, bool twice)
{
	const struct scene_options options = {.engine = COWSNAP_ENGINE_LOOP,
		.submits = true,
		.mode = mode,
		.copy_inflight_bytes = inflight_bytes};
	struct cowsnap_snapshot *snapshot, *other;
	struct async *a = calloc(CHUNKS, sizeof(*a));
	struct scene s;
	struct loop l;

	open_stage(&s, &l, &options, 8);
	for (unsigned i = 0; twice && i < SCENE_ORIGINS; i++)
		test_async_set_twice(s.origin_async[i], true);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	other = scene_take(&s, 0, 1, COWSNAP_LOSER_SNAPSHOT);
	for (unsigned i = 0; i < CHUNKS; i++)
		cr_assert_eq(
			async_begin(&a[i], &l, 0, i * CHUNK, i + 1 < CHUNKS ? 2 * CHUNK : CHUNK),
			COWSNAP_PENDING, "chunk %u", i);
	for (unsigned i = 0; i < CHUNKS; i++) {
		loop_until(&l, &a[i]);
		cr_assert_eq(a[i].error, 0);
		async_write(&a[i], &s, NEW);
	}
	cr_assert_eq(scene_stats(&s).copied_chunks, 2 * CHUNKS, "once for each store");
	if (!inflight_bytes)
		cr_assert_eq(scene_stats(&s).origin_bytes, CHUNKS * CHUNK, "read once for both");
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_expect(other, 0, SCENE_BYTES, OLD);
	loop_settle(&l);
	scene_drop(snapshot);
	scene_drop(other);
	close_stage(&s, &l);
	free(a);
}

Test(async_device, completes_inside_submit, .timeout = 60)
{
	all_is_copied(TEST_ASYNC_INLINE, 0, false);
}

Test(async_device, completes_twice, .timeout = 60)
{
	all_is_copied(TEST_ASYNC_INLINE, 0, true);
}

Test(async_device, completes_elsewhere, .timeout = 60)
{
	all_is_copied(TEST_ASYNC_FOREIGN, 0, false);
}

Test(async_device, completes_elsewhere_in_reverse, .timeout = 60)
{
	all_is_copied(TEST_ASYNC_REVERSE, 0, false);
}

Test(async_device, one_copy_at_a_time, .timeout = 60)
{
	all_is_copied(TEST_ASYNC_INLINE, 1, false);
	all_is_copied(TEST_ASYNC_REVERSE, 1, false);
}

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define LIVES 100
#else
#define LIVES 500
#endif

/* The thread of the device may still be in cowsnap_io_complete() when the host is through. */
Test(async_device, a_queue_ends_right_after_the_last_completion, .timeout = 120)
{
	const struct scene_options options = {
		.engine = COWSNAP_ENGINE_LOOP, .submits = true, .mode = TEST_ASYNC_FOREIGN};
	struct scene s;

	scene_open(&s, &options);
	for (unsigned i = 0; i < LIVES; i++) {
		struct cowsnap_snapshot *snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
		struct async a = {0};
		struct loop l;

		loop_open(&l, &s, 1);
		cr_assert_eq(async_begin(&a, &l, 0, i % CHUNKS * CHUNK, CHUNK), COWSNAP_PENDING);
		while (!atomic_load(&a.calls))
			loop_poll(&l);
		cr_assert_eq(a.error, 0);
		cowsnap_write_end(&a.op);
		loop_close(&l);
		scene_drop(snapshot);
		scene_reclaim(&s);
	}
	scene_close(&s);
}

/* ---- Never, and then yet --------------------------------------------------------------------- */

Test(async_device, a_request_that_does_not_end, .timeout = 60)
{
	const struct cowsnap_take_options soon = {.size = sizeof(soon), .deadline_ns = 20 * MS};
	struct cowsnap_snapshot *snapshot, *other, *later;
	struct cowsnap_take_entry entry = {0};
	struct async a = {0}, b = {0}, c = {0};
	struct scene s;
	struct loop l;

	open_stage(&s, &l, &held, 4);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	other = scene_take(&s, 1, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(async_begin(&a, &l, 0, 0, CHUNK), COWSNAP_PENDING);
	cr_assert_eq(async_begin(&c, &l, 0, 0, CHUNK), COWSNAP_PENDING, "it waits for the first");
	loop_settle(&l);
	cr_assert_eq(test_async_held(s.origin_async[0]), 1);
	/* Its origin cannot be taken; it is not torn. */
	entry.origin = s.origin[0];
	entry.store = s.store[0];
	cr_assert_eq(cowsnap_take(s.ctx, &soon, &entry, 1), -ETIMEDOUT);
	/* Others do not notice. */
	test_async_set_mode(s.origin_async[1], TEST_ASYNC_INLINE);
	test_async_set_mode(s.store_async[0], TEST_ASYNC_INLINE);
	cr_assert_eq(async_begin(&b, &l, 1, 0, 4 * CHUNK), COWSNAP_PENDING);
	loop_until(&l, &b);
	cr_assert_eq(b.error, 0);
	async_write(&b, &s, NEW);
	cr_assert_eq(scene_write(&s, 1, 8 * CHUNK, CHUNK, NEW), 0);
	later = scene_take(&s, 1, 0, COWSNAP_LOSER_SNAPSHOT);
	scene_expect(other, 0, SCENE_BYTES, OLD);
	/* A drop returns; a cancel is heard when the request has ended. */
	scene_drop(snapshot);
	cr_assert_eq(cowsnap_op_cancel(&a.op), 0);
	cr_assert_eq(cowsnap_op_cancel(&c.op), 0);
	loop_settle(&l);
	async_expect_pending(&a);
	async_expect_pending(&c);
	cr_assert_eq(cowsnap_origin_close(s.origin[0]), -EBUSY);
	cr_assert_eq(cowsnap_queue_close(l.queue), -EBUSY);
	let_go(&s, &l);
	cr_assert_eq(atomic_load(&a.calls), 1);
	cr_assert_eq(atomic_load(&c.calls), 1);
	cr_assert(a.error == 0 || a.error == -ECANCELED);
	if (!a.error)
		cowsnap_write_end(&a.op);
	cr_assert_eq(c.error, -ECANCELED);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_drop(snapshot);
	scene_drop(other);
	scene_drop(later);
	close_stage(&s, &l);
}

/* ---- Credits --------------------------------------------------------------------------------- */

Test(async_device, waits_for_credits_and_is_cancelled_there, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct async a = {0}, b = {0}, c = {0};
	struct actor writer;
	struct scene s;
	struct loop l;

	open_stage(&s, &l, &tight, 8);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(async_begin(&a, &l, 0, 0, CHUNK), COWSNAP_PENDING);
	cr_assert_eq(async_begin(&b, &l, 0, CHUNK, CHUNK), COWSNAP_PENDING);
	cr_assert_eq(async_begin(&c, &l, 0, 2 * CHUNK, CHUNK), COWSNAP_PENDING);
	actor_write(&writer, &s, 0, 3 * CHUNK, CHUNK, NEW);
	scene_until(&s, credit_waits, 3);
	loop_settle(&l);
	cr_assert_eq(test_async_held(s.origin_async[0]), 1, "one copy at a time");
	cr_assert_eq(async_cancel(&b), -ECANCELED);
	async_expect_pending(&c);
	let_go(&s, &l);
	loop_until(&l, &a);
	cr_assert_eq(a.error, 0);
	/* The waiting writer and the event loop hand the credits to each other. */
	while (!atomic_load(&c.calls)) {
		let_go(&s, &l);
		sched_yield();
	}
	cr_assert_eq(c.error, 0);
	cr_assert_eq(actor_join(&writer), 0);
	async_write(&a, &s, NEW);
	async_write(&c, &s, NEW);
	cr_assert_eq(scene_stats(&s).copied_chunks, 3);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_drop(snapshot);
	close_stage(&s, &l);
}

/* The credits are granted, and then it is cancelled; or it is cancelled, but the grant comes before
 * that is heard. In neither case do they get lost. */
static void cancel_crosses_grant(bool cancel_first)
{
	struct cowsnap_snapshot *snapshot;
	struct async a = {0}, b = {0}, c = {0};
	struct scene s;
	struct loop l;

	open_stage(&s, &l, &tight, 8);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(async_begin(&a, &l, 0, 0, CHUNK), COWSNAP_PENDING);
	cr_assert_eq(async_begin(&b, &l, 0, CHUNK, CHUNK), COWSNAP_PENDING);
	cr_assert_eq(async_begin(&c, &l, 0, 2 * CHUNK, CHUNK), COWSNAP_PENDING);
	loop_settle(&l);
	cr_assert_eq(test_async_release(s.origin_async[0], 1, TEST_RELEASE_FIRST), 1);
	loop_settle(&l);
	/* The last request of a. One poll hears of it; in the next its credits go to b. */
	cr_assert_eq(test_async_release(s.store_async[0], 1, TEST_RELEASE_FIRST), 1);
	cr_assert_eq(loop_poll(&l), 0);
	if (cancel_first)
		cr_assert_eq(cowsnap_op_cancel(&b.op), 0);
	cr_assert_eq(loop_poll(&l), 1);
	cr_assert_eq(atomic_load(&a.calls), 1);
	if (!cancel_first)
		cr_assert_eq(cowsnap_op_cancel(&b.op), 0);
	let_go(&s, &l);
	loop_until(&l, &b);
	loop_until(&l, &c);
	cr_assert(b.error == 0 || b.error == -ECANCELED);
	cr_assert_eq(c.error, 0);
	cowsnap_write_end(&a.op);
	if (!b.error)
		cowsnap_write_end(&b.op);
	cowsnap_write_end(&c.op);
	cr_assert_eq(scene_write(&s, 0, 4 * CHUNK, CHUNK, NEW), 0, "the credits are all back");
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_drop(snapshot);
	close_stage(&s, &l);
}

Test(async_device, a_cancel_crosses_the_grant_of_credits, .timeout = 60)
{
	cancel_crosses_grant(false);
	cancel_crosses_grant(true);
}

/* ---- Cancelling what is under way ------------------------------------------------------------ */

/* While the origin is read, while the store is written, and when the last of it has ended but
 * nobody has polled yet. */
Test(async_device, cancel_during_the_copy, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct scene s;
	struct loop l;

	open_stage(&s, &l, &held, 1);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	for (unsigned when = 0; when < 3; when++) {
		uint64_t copied = scene_stats(&s).copied_chunks;
		struct async a = {0};

		cr_assert_eq(async_begin(&a, &l, 0, when * 2 * CHUNK, 2 * CHUNK), COWSNAP_PENDING);
		loop_settle(&l);
		cr_assert_eq(test_async_held(s.origin_async[0]), 1);
		if (when > 0) {
			test_async_release(s.origin_async[0], 1, TEST_RELEASE_FIRST);
			loop_settle(&l);
			cr_assert_eq(test_async_held(s.store_async[0]), 1);
		}
		if (when > 1)
			test_async_release(s.store_async[0], 1, TEST_RELEASE_FIRST);
		cr_assert_eq(cowsnap_op_cancel(&a.op), 0);
		if (when < 2) {
			loop_settle(&l);
			async_expect_pending(&a);
		}
		let_go(&s, &l);
		loop_until(&l, &a);
		cr_assert_eq(a.error, 0, "nothing was left to be done: it ends as it would have");
		cowsnap_write_end(&a.op);
		cr_assert_eq(scene_stats(&s).copied_chunks, copied + 2);
	}
	cr_assert_eq(scene_write(&s, 0, 0, SCENE_BYTES, NEW), 0);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_drop(snapshot);
	close_stage(&s, &l);
}

/* More was to be done: the copy that was made is kept, the bracket is not opened. */
Test(async_device, cancel_between_two_rounds, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct async a = {0};
	struct scene s;
	struct loop l;

	open_stage(&s, &l, &tight, 1);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(async_begin(&a, &l, 0, 0, 3 * CHUNK), COWSNAP_PENDING);
	loop_settle(&l);
	cr_assert_eq(cowsnap_op_cancel(&a.op), 0);
	let_go(&s, &l);
	loop_until(&l, &a);
	cr_assert_eq(a.error, -ECANCELED);
	cr_assert_eq(scene_stats(&s).copied_chunks, 1);
	cr_assert_eq(scene_write(&s, 0, 0, SCENE_BYTES, NEW), 0);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_drop(snapshot);
	close_stage(&s, &l);
}

/* ---- Fairness, and where the I/O is done ----------------------------------------------------- */

#define CROWD 16

/* One copy at a time, and a crowd of writers of one origin: the only one of another origin does not
 * stand behind them all. */
Test(async_device, origins_are_served_in_turn, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot[SCENE_ORIGINS];
	struct async crowd[CROWD] = {0}, single = {0};
	unsigned ended = 0;
	struct scene s;
	struct loop l;

	open_stage(&s, &l, &tight, CROWD + 1);
	for (unsigned o = 0; o < SCENE_ORIGINS; o++)
		snapshot[o] = scene_take(&s, o, 0, COWSNAP_LOSER_SNAPSHOT);
	for (unsigned i = 0; i < CROWD; i++)
		cr_assert_eq(async_begin(&crowd[i], &l, 0, i * CHUNK, CHUNK), COWSNAP_PENDING);
	cr_assert_eq(async_begin(&single, &l, 1, 0, CHUNK), COWSNAP_PENDING);
	while (!single.calls) {
		loop_settle(&l);
		release_all(s.origin_async, SCENE_ORIGINS, TEST_RELEASE_FIRST);
		release_all(s.store_async, SCENE_STORES, TEST_RELEASE_FIRST);
	}
	for (unsigned i = 0; i < CROWD; i++)
		ended += crowd[i].calls;
	cr_assert_leq(ended, 2, "%u of the crowd came first", ended);
	let_go(&s, &l);
	for (unsigned i = 0; i < CROWD; i++) {
		loop_until(&l, &crowd[i]);
		async_write(&crowd[i], &s, NEW);
	}
	async_write(&single, &s, NEW);
	for (unsigned o = 0; o < SCENE_ORIGINS; o++) {
		scene_expect(snapshot[o], 0, SCENE_BYTES, OLD);
		scene_drop(snapshot[o]);
	}
	close_stage(&s, &l);
}

struct local {
	struct scene *scene;
	pthread_t thread;
	unsigned origin;
	uint64_t tid;
};

/* Copies each chunk of its origin, four at a time. */
static void *copy_all(void *argument)
{
	struct local *local = argument;
	struct loop l;

	local->tid = (uint64_t)gettid();
	loop_open(&l, local->scene, 4);
	for (uint64_t chunk = 0; chunk < CHUNKS; chunk += 4) {
		struct async a[4] = {0};

		for (unsigned i = 0; i < 4; i++)
			cr_assert_eq(
				async_begin(&a[i], &l, local->origin, (chunk + i) * CHUNK, CHUNK),
				COWSNAP_PENDING);
		for (unsigned i = 0; i < 4; i++) {
			loop_until(&l, &a[i]);
			async_write(&a[i], local->scene, NEW);
		}
	}
	loop_close(&l);
	return NULL;
}

/* Devices complete on threads of their own; reads and writes are issued where they were asked. */
Test(async_device, copies_stay_on_the_thread_that_polls, .timeout = 60)
{
	const struct scene_options options = {
		.engine = COWSNAP_ENGINE_LOOP, .submits = true, .mode = TEST_ASYNC_FOREIGN};
	struct cowsnap_thread_io io[4];
	struct cowsnap_snapshot *snapshot[SCENE_ORIGINS];
	struct local local[SCENE_ORIGINS];
	struct scene s;

	scene_open(&s, &options);
	for (unsigned o = 0; o < SCENE_ORIGINS; o++) {
		snapshot[o] = scene_take(&s, o, o, COWSNAP_LOSER_SNAPSHOT);
		local[o] = (struct local){.scene = &s, .origin = o};
		cr_assert_eq(pthread_create(&local[o].thread, NULL, copy_all, &local[o]), 0);
	}
	for (unsigned o = 0; o < SCENE_ORIGINS; o++)
		cr_assert_eq(pthread_join(local[o].thread, NULL), 0);
	cr_assert_eq(cowsnap_ctx_thread_io(s.ctx, io, 4), SCENE_ORIGINS);
	for (unsigned o = 0; o < SCENE_ORIGINS; o++) {
		const struct cowsnap_thread_io *mine =
			io[0].thread == local[o].tid ? &io[0] : &io[1];

		cr_assert_eq(mine->thread, local[o].tid);
		cr_assert_eq(mine->reads, CHUNKS);
		cr_assert_eq(mine->read_bytes, SCENE_BYTES);
		cr_assert_eq(mine->writes, CHUNKS);
		cr_assert_eq(mine->write_bytes, SCENE_BYTES);
		scene_drop(snapshot[o]);
	}
	scene_close(&s);
}

/* ---- Failures -------------------------------------------------------------------------------- */

static void a_device_fails(enum test_io kind, bool store, enum cowsnap_loser on_full)
{
	const struct scene_options options = {
		.engine = COWSNAP_ENGINE_LOOP, .submits = true, .mode = TEST_ASYNC_REVERSE};
	struct cowsnap_snapshot *snapshot;
	struct async a[4] = {0};
	bool write_loses = on_full == COWSNAP_LOSER_WRITE;
	struct test_device *rig;
	struct scene s;
	struct loop l;

	open_stage(&s, &l, &options, 2);
	rig = store ? s.store_test[0] : s.origin_test[0];
	snapshot = scene_take(&s, 0, 0, on_full);
	test_device_fail(rig, kind, 2, true, -EIO);
	for (unsigned i = 0; i < 4; i++)
		cr_assert_eq(async_begin(&a[i], &l, 0, 2 * i * CHUNK, CHUNK), COWSNAP_PENDING);
	for (unsigned i = 0; i < 4; i++) {
		loop_until(&l, &a[i]);
		cr_assert(a[i].error == 0 || (write_loses && a[i].error == -EIO));
		if (!a[i].error)
			cowsnap_write_end(&a[i].op);
	}
	test_device_heal(rig);
	if (write_loses) {
		cr_assert_eq(scene_stats(&s).copied_chunks, 1);
		cr_assert_eq(scene_write(&s, 0, 0, SCENE_BYTES, NEW), 0, "no claim is left");
		scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	} else {
		scene_expect_state(snapshot, COWSNAP_SNAPSHOT_INVALID, -EIO);
	}
	scene_drop(snapshot);
	close_stage(&s, &l);
}

Test(async_device, the_origin_fails, .timeout = 60)
{
	a_device_fails(TEST_IO_READ, false, COWSNAP_LOSER_SNAPSHOT);
	a_device_fails(TEST_IO_READ, false, COWSNAP_LOSER_WRITE);
}

Test(async_device, the_store_fails, .timeout = 60)
{
	a_device_fails(TEST_IO_WRITE, true, COWSNAP_LOSER_SNAPSHOT);
	a_device_fails(TEST_IO_WRITE, true, COWSNAP_LOSER_WRITE);
}

/* Read and write of the next to last request fail, however they come: swept by number. */
Test(async_device, every_request_fails_once, .timeout = 120)
{
	for (unsigned n = 1;; n++) {
		const struct scene_options options = {.engine = COWSNAP_ENGINE_LOOP,
			.submits = true,
			.mode = TEST_ASYNC_INLINE,
			.copy_inflight_bytes = 2 * CHUNK};
		struct cowsnap_take_entry entry = {0};
		struct async a[3] = {0};
		bool failed;
		struct scene s;
		struct loop l;

		open_stage(&s, &l, &options, 2);
		entry.origin = s.origin[0];
		entry.store = s.store[0];
		entry.on_full = COWSNAP_LOSER_WRITE;
		entry.wait_ns = n % 3 ? 8 * MS : 0;
		cr_assert_eq(cowsnap_take(s.ctx, NULL, &entry, 1), 0);
		test_device_fail(n % 2 ? s.origin_test[0] : s.store_test[0],
			n % 2 ? TEST_IO_READ : TEST_IO_WRITE, (n + 1) / 2, false, -EIO);
		for (unsigned i = 0; i < 3; i++)
			cr_assert_geq(async_begin(&a[i], &l, 0, 3 * i * CHUNK, 4 * CHUNK), 0);
		for (unsigned i = 0; i < 3; i++) {
			if (a[i].began != COWSNAP_PENDING)
				continue;
			loop_until(&l, &a[i]);
			cr_assert(a[i].error == 0 || (!entry.wait_ns && a[i].error == -EIO),
				"failure %u: error %d", n, a[i].error);
			if (!a[i].error)
				async_write(&a[i], &s, NEW);
		}
		failed = test_device_failed(s.origin_test[0]) + test_device_failed(s.store_test[0]);
		test_device_heal(s.origin_test[0]);
		test_device_heal(s.store_test[0]);
		scene_expect(entry.snapshot, 0, SCENE_BYTES, OLD);
		scene_drop(entry.snapshot);
		close_stage(&s, &l);
		if (!failed && n > 2)
			break;
		cr_assert(n < 200);
	}
}
