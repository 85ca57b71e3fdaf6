/* SPDX-License-Identifier: MIT
 *
 * Brackets that do not wait: where one parks, what lets it go on, and how it is cancelled there.
 * One event loop on the test's own thread; whoever stands in its way is held still elsewhere.
 */
#include "concurrent/async.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK    SCENE_CHUNK
#define OLD      1
#define NEW      2
#define FOR_EVER UINT64_MAX
#define MS       UINT64_C(1000000)

/* ---- The stage ------------------------------------------------------------------------------- */

static const struct scene_options evented = {.engine = COWSNAP_ENGINE_LOOP};
static const struct scene_options one_chunk = {.engine = COWSNAP_ENGINE_LOOP, .limit_chunks = 1};

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

static struct cowsnap_snapshot *take(
	struct scene *s, unsigned origin, enum cowsnap_loser on_full, uint64_t wait_ns)
{
	struct cowsnap_take_entry entry = {.origin = s->origin[origin],
		.store = s->store[0],
		.on_full = on_full,
		.wait_ns = wait_ns};

	cr_assert_eq(cowsnap_take(s->ctx, NULL, &entry, 1), 0);
	return entry.snapshot;
}

/* A writer elsewhere stands still in the copy of chunk 0 of origin 0. */
static int make_busy(struct scene *s, struct actor *writer)
{
	int hold = scene_hold(s->origin_test[0], TEST_IO_READ, 0, 1);

	actor_write(writer, s, 0, 0, CHUNK, NEW);
	scene_wait_held(s->origin_test[0], hold);
	return hold;
}

/* A take of origin 0 elsewhere drains: it waits for @old, which this thread holds open. */
static void make_draining(
	struct scene *s, struct actor *taker, struct cowsnap_op *old, uint64_t deadline_ns)
{
	cr_assert_eq(
		cowsnap_write_begin(s->origin[0], COWSNAP_WRITE, SCENE_BYTES - CHUNK, CHUNK, old),
		0);
	actor_take(taker, s, 1, deadline_ns);
	while (!atomic_load(&taker->thawed))
		sched_yield();
}

/* ---- Without waiting ------------------------------------------------------------------------- */

Test(async, what_need_not_wait_returns_0_and_is_not_called_back, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct async a = {0};
	struct scene s;
	struct loop l;

	open_stage(&s, &l, &evented, 4);
	cr_assert_eq(async_begin(&a, &l, 0, 0, CHUNK), 0, "no snapshot");
	async_write(&a, &s, OLD);
	snapshot = take(&s, 0, COWSNAP_LOSER_SNAPSHOT, 0);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEW), 0);
	cr_assert_eq(async_begin(&a, &l, 0, 0, CHUNK), 0, "saved already");
	async_write(&a, &s, OLD);
	cr_assert_eq(async_begin(&a, &l, 0, 5 * CHUNK, 3 * CHUNK), 0, "the devices only block");
	async_write(&a, &s, NEW);
	cr_assert_eq(loop_poll(&l), 0);
	cr_assert_eq(loop_poll(&l), 0);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	cr_assert_eq(scene_stats(&s).copied_chunks, 4);
	scene_drop(snapshot);
	close_stage(&s, &l);
}

Test(async, a_refused_bracket_is_not_called_back, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct async a = {0};
	struct scene s;
	struct loop l;

	open_stage(&s, &l, &one_chunk, 1);
	snapshot = take(&s, 0, COWSNAP_LOSER_WRITE, 0);
	cr_assert_eq(async_begin(&a, &l, 0, 0, 0), -EINVAL);
	cr_assert_eq(async_begin(&a, &l, 0, SCENE_BYTES, 1), -ERANGE);
	cr_assert_eq(async_begin(&a, &l, 0, UINT64_MAX, 2), -EOVERFLOW);
	for (int i = 0; i < 3; i++)
		cr_assert_eq(async_begin(&a, &l, 0, 0, 2 * CHUNK), -ENOSPC, "the write loses");
	cr_assert_eq(loop_poll(&l), 0);
	cr_assert_eq(async_begin(&a, &l, 0, CHUNK, CHUNK), -ENOSPC);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEW), 0, "its record and its claims are free");
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_drop(snapshot);
	close_stage(&s, &l);
}

/* ---- Where it parks -------------------------------------------------------------------------- */

Test(async, waits_for_a_busy_chunk, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct async a = {0}, b = {0};
	struct actor writer;
	struct scene s;
	struct loop l;
	int hold;

	open_stage(&s, &l, &evented, 4);
	snapshot = take(&s, 0, COWSNAP_LOSER_SNAPSHOT, 0);
	hold = make_busy(&s, &writer);
	cr_assert_eq(async_begin(&a, &l, 0, 0, 2 * CHUNK), COWSNAP_PENDING);
	cr_assert_eq(async_begin(&b, &l, 0, 0, 1), COWSNAP_PENDING);
	cr_assert_eq(scene_stats(&s).copied_chunks, 1, "all that can be started is");
	loop_settle(&l);
	async_expect_pending(&a);
	cr_assert(!loop_readable(&l), "nothing to do before the copy ends");
	cr_assert_eq(cowsnap_queue_close(l.queue), -EBUSY);
	cr_assert_eq(cowsnap_ctx_destroy(s.ctx), -EBUSY);
	test_device_release(s.origin_test[0], hold);
	cr_assert_eq(actor_join(&writer), 0);
	loop_until(&l, &a);
	loop_until(&l, &b);
	cr_assert(a.error == 0 && b.error == 0);
	async_write(&a, &s, NEW);
	async_write(&b, &s, NEW);
	cr_assert_eq(scene_stats(&s).copied_chunks, 2, "each chunk is copied once");
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_drop(snapshot);
	close_stage(&s, &l);
}

Test(async, waits_for_the_drain, .timeout = 60)
{
	struct cowsnap_op old;
	struct actor taker;
	struct async a = {0};
	struct scene s;
	struct loop l;

	open_stage(&s, &l, &evented, 4);
	make_draining(&s, &taker, &old, FOR_EVER);
	cr_assert_eq(async_begin(&a, &l, 0, 0, CHUNK), COWSNAP_PENDING);
	loop_settle(&l);
	async_expect_pending(&a);
	cr_assert_eq(scene_stats(&s).copied_chunks, 0, "nothing is read before the drain is over");
	cowsnap_write_end(&old);
	cr_assert_eq(actor_join(&taker), 0);
	loop_until(&l, &a);
	cr_assert_eq(a.error, 0);
	async_write(&a, &s, NEW);
	scene_expect(taker.entry[0].snapshot, 0, SCENE_BYTES, OLD);
	scene_drop(taker.entry[0].snapshot);
	close_stage(&s, &l);
}

/* It looks afresh, and finds nothing to save. */
Test(async, goes_on_when_the_take_is_withdrawn, .timeout = 60)
{
	struct cowsnap_op old;
	struct actor taker;
	struct async a = {0};
	struct scene s;
	struct loop l;

	open_stage(&s, &l, &evented, 1);
	make_draining(&s, &taker, &old, 200 * MS);
	cr_assert_eq(async_begin(&a, &l, 0, 0, CHUNK), COWSNAP_PENDING);
	cr_assert_eq(actor_join(&taker), -ETIMEDOUT);
	loop_until(&l, &a);
	cr_assert_eq(a.error, 0);
	async_write(&a, &s, NEW);
	cowsnap_write_end(&old);
	cr_assert_eq(scene_stats(&s).copied_chunks, 0);
	close_stage(&s, &l);
}

Test(async, waits_for_space, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct async a = {0};
	struct scene s;
	struct loop l;

	open_stage(&s, &l, &one_chunk, 4);
	snapshot = take(&s, 0, COWSNAP_LOSER_WRITE, FOR_EVER);
	cr_assert_eq(async_begin(&a, &l, 0, 0, 2 * CHUNK), COWSNAP_PENDING);
	loop_settle(&l);
	async_expect_pending(&a);
	cr_assert_eq(scene_count_events(&s, COWSNAP_EVENT_FULL), 1);
	cr_assert_eq(cowsnap_store_set_limit(s.store[0], 2 * CHUNK), 0);
	cr_assert(loop_readable(&l));
	loop_until(&l, &a);
	cr_assert_eq(a.error, 0);
	async_write(&a, &s, NEW);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_drop(snapshot);
	close_stage(&s, &l);
}

/* A drop in the same event loop is what it waits for. */
Test(async, waits_for_space_until_a_drop, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct async a = {0};
	struct scene s;
	struct loop l;

	open_stage(&s, &l, &one_chunk, 4);
	snapshot = take(&s, 0, COWSNAP_LOSER_SNAPSHOT, FOR_EVER);
	cr_assert_eq(async_begin(&a, &l, 0, 0, 2 * CHUNK), COWSNAP_PENDING);
	loop_settle(&l);
	async_expect_pending(&a);
	scene_drop(snapshot);
	loop_until(&l, &a);
	cr_assert_eq(a.error, 0);
	async_write(&a, &s, NEW);
	close_stage(&s, &l);
}

static void space_does_not_come(enum cowsnap_loser on_full, int error)
{
	struct cowsnap_snapshot *snapshot;
	struct async a = {0};
	struct scene s;
	struct loop l;

	open_stage(&s, &l, &one_chunk, 4);
	snapshot = take(&s, 0, on_full, 2 * MS);
	cr_assert_eq(async_begin(&a, &l, 0, 0, 2 * CHUNK), COWSNAP_PENDING);
	loop_until(&l, &a);
	cr_assert_eq(a.error, error);
	if (!error)
		async_write(&a, &s, NEW);
	scene_expect_state(snapshot, error ? COWSNAP_SNAPSHOT_ACTIVE : COWSNAP_SNAPSHOT_INVALID,
		error ? 0 : -ENOSPC);
	cr_assert(!loop_readable(&l));
	scene_drop(snapshot);
	close_stage(&s, &l);
}

Test(async, space_does_not_come_and_the_snapshot_loses, .timeout = 60)
{
	space_does_not_come(COWSNAP_LOSER_SNAPSHOT, 0);
}

Test(async, space_does_not_come_and_the_write_loses, .timeout = 60)
{
	space_does_not_come(COWSNAP_LOSER_WRITE, -ENOSPC);
}

Test(async, a_failed_copy_is_tried_again_after_a_pause, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct async a = {0};
	struct scene s;
	struct loop l;

	open_stage(&s, &l, &evented, 4);
	snapshot = take(&s, 0, COWSNAP_LOSER_SNAPSHOT, 80 * MS);
	test_device_fail(s.origin_test[0], TEST_IO_READ, 1, false, -EIO);
	cr_assert_eq(async_begin(&a, &l, 0, 0, CHUNK), COWSNAP_PENDING);
	loop_until(&l, &a);
	cr_assert_eq(a.error, 0);
	async_write(&a, &s, NEW);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	test_device_fail(s.origin_test[0], TEST_IO_READ, 1, true, -EIO);
	cr_assert_eq(async_begin(&a, &l, 0, CHUNK, CHUNK), COWSNAP_PENDING);
	loop_until(&l, &a);
	cr_assert_eq(a.error, 0);
	async_write(&a, &s, NEW);
	test_device_heal(s.origin_test[0]);
	scene_expect_state(snapshot, COWSNAP_SNAPSHOT_INVALID, -EIO);
	scene_drop(snapshot);
	close_stage(&s, &l);
}

/* Operations that wait for a record are outside of the gate: a take does not wait for them. */
Test(async, waits_for_a_record_without_being_in_the_way, .timeout = 60)
{
	struct cowsnap_snapshot *full, *snapshot, *second;
	struct async a = {0}, b = {0}, c = {0};
	struct scene s;
	struct loop l;

	open_stage(&s, &l, &one_chunk, 1);
	full = take(&s, 1, COWSNAP_LOSER_WRITE, FOR_EVER);
	snapshot = scene_take(&s, 0, 1, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(async_begin(&a, &l, 1, 0, 2 * CHUNK), COWSNAP_PENDING);
	cr_assert_eq(async_begin(&b, &l, 0, 0, CHUNK), COWSNAP_PENDING);
	cr_assert_eq(async_begin(&c, &l, 0, CHUNK, CHUNK), COWSNAP_PENDING);
	loop_settle(&l);
	async_expect_pending(&b);
	second = scene_take(&s, 0, 1, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(cowsnap_store_set_limit(s.store[0], 2 * CHUNK), 0);
	loop_until(&l, &a);
	loop_until(&l, &b);
	loop_until(&l, &c);
	cr_assert(a.error == 0 && b.error == 0 && c.error == 0);
	async_write(&a, &s, NEW);
	async_write(&b, &s, NEW);
	async_write(&c, &s, NEW);
	scene_expect(full, 0, SCENE_BYTES, OLD);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_expect(second, 0, SCENE_BYTES, OLD);
	scene_drop(full);
	scene_drop(snapshot);
	scene_drop(second);
	close_stage(&s, &l);
}

/* It is in no gate while it waits for a record: once, the origin could be closed under it. */
Test(async, an_origin_with_a_pending_bracket_is_not_closed, .timeout = 60)
{
	struct cowsnap_snapshot *full, *snapshot;
	struct async a = {0}, b = {0};
	struct scene s;
	struct loop l;

	open_stage(&s, &l, &one_chunk, 1);
	full = take(&s, 1, COWSNAP_LOSER_WRITE, FOR_EVER);
	snapshot = scene_take(&s, 0, 1, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(async_begin(&a, &l, 1, 0, 2 * CHUNK), COWSNAP_PENDING);
	cr_assert_eq(async_begin(&b, &l, 0, 0, CHUNK), COWSNAP_PENDING);
	scene_drop(snapshot);
	cr_assert_eq(cowsnap_origin_close(s.origin[0]), -EBUSY);
	cr_assert_eq(cowsnap_origin_close(s.origin[1]), -EBUSY);
	scene_drop(full);
	loop_until(&l, &a);
	loop_until(&l, &b);
	cr_assert_eq(cowsnap_origin_close(s.origin[0]), -EBUSY);
	async_write(&a, &s, NEW);
	async_write(&b, &s, NEW);
	close_stage(&s, &l);
}

/* ---- Cancelling ------------------------------------------------------------------------------ */

Test(async, cancel_while_it_waits_for_a_record, .timeout = 60)
{
	struct cowsnap_snapshot *full;
	struct async a = {0}, b[3] = {0};
	struct scene s;
	struct loop l;

	open_stage(&s, &l, &one_chunk, 1);
	full = take(&s, 0, COWSNAP_LOSER_WRITE, FOR_EVER);
	cr_assert_eq(async_begin(&a, &l, 0, 0, 2 * CHUNK), COWSNAP_PENDING);
	for (int i = 0; i < 3; i++)
		cr_assert_eq(async_begin(&b[i], &l, 0, CHUNK, CHUNK), COWSNAP_PENDING);
	cr_assert_eq(async_cancel(&b[1]), -ECANCELED);
	async_expect_pending(&a);
	async_expect_pending(&b[0]);
	cr_assert_eq(async_cancel(&a), -ECANCELED, "it holds the record, and waits for space");
	loop_settle(&l);
	async_expect_pending(&b[0]);
	cr_assert_eq(async_cancel(&b[2]), -ECANCELED);
	cr_assert_eq(async_cancel(&b[0]), -ECANCELED);
	cr_assert_eq(scene_stats(&s).failed_writes, 0, "cancelled is not failed");
	scene_expect(full, 0, SCENE_BYTES, OLD);
	scene_drop(full);
	close_stage(&s, &l);
}

Test(async, cancel_while_it_waits_for_the_drain, .timeout = 60)
{
	struct cowsnap_op old;
	struct async a = {0};
	struct actor taker;
	struct scene s;
	struct loop l;

	open_stage(&s, &l, &evented, 1);
	make_draining(&s, &taker, &old, FOR_EVER);
	cr_assert_eq(async_begin(&a, &l, 0, 0, CHUNK), COWSNAP_PENDING);
	loop_settle(&l);
	cr_assert_eq(async_cancel(&a), -ECANCELED);
	cowsnap_write_end(&old);
	cr_assert_eq(actor_join(&taker), 0);
	cr_assert(!loop_readable(&l));
	scene_drop(taker.entry[0].snapshot);
	close_stage(&s, &l);
}

Test(async, cancel_while_it_waits_for_space_or_pauses, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot, *other;
	struct async a = {0}, b = {0};
	struct scene s;
	struct loop l;

	open_stage(&s, &l, &one_chunk, 4);
	snapshot = take(&s, 0, COWSNAP_LOSER_WRITE, UINT64_C(3600000) * MS);
	cr_assert_eq(async_begin(&a, &l, 0, 0, 2 * CHUNK), COWSNAP_PENDING);
	loop_settle(&l);
	cr_assert_eq(async_cancel(&a), -ECANCELED);
	cr_assert_eq(scene_stats(&s).copied_chunks, 1, "what was copied is kept");
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEW), 0);
	test_device_fail(s.origin_test[0], TEST_IO_READ, 1, true, -EIO);
	cr_assert_eq(cowsnap_store_set_limit(s.store[0], 8 * CHUNK), 0);
	cr_assert_eq(async_begin(&b, &l, 0, 5 * CHUNK, CHUNK), COWSNAP_PENDING);
	loop_settle(&l);
	cr_assert_eq(async_cancel(&b), -ECANCELED);
	test_device_heal(s.origin_test[0]);
	cr_assert_eq(scene_write(&s, 0, 5 * CHUNK, CHUNK, NEW), 0, "no claim is left");
	/* Nobody is left in the gate. */
	other = take(&s, 0, COWSNAP_LOSER_SNAPSHOT, 0);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_drop(snapshot);
	scene_drop(other);
	close_stage(&s, &l);
}

/* The copy is another's: it ends when that has ended. */
Test(async, cancel_while_it_waits_for_a_busy_chunk, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct async a = {0}, b = {0};
	struct actor writer;
	struct scene s;
	struct loop l;
	int hold;

	open_stage(&s, &l, &evented, 4);
	snapshot = take(&s, 0, COWSNAP_LOSER_SNAPSHOT, 0);
	hold = make_busy(&s, &writer);
	cr_assert_eq(async_begin(&a, &l, 0, 0, CHUNK), COWSNAP_PENDING);
	cr_assert_eq(async_begin(&b, &l, 0, 0, CHUNK), COWSNAP_PENDING);
	cr_assert_eq(cowsnap_op_cancel(&a.op), 0);
	cr_assert_eq(cowsnap_op_cancel(&a.op), 0, "twice is as once");
	loop_settle(&l);
	async_expect_pending(&a);
	cr_assert_eq(cowsnap_op_cancel(&a.op), 0);
	test_device_release(s.origin_test[0], hold);
	cr_assert_eq(actor_join(&writer), 0);
	loop_until(&l, &a);
	loop_until(&l, &b);
	cr_assert_eq(a.error, -ECANCELED);
	cr_assert_eq(b.error, 0);
	async_write(&b, &s, NEW);
	loop_settle(&l);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEW), 0);
	scene_drop(snapshot);
	close_stage(&s, &l);
}

/* It is woken, and then cancelled, and only then polled; and the other way round. */
Test(async, cancel_crosses_the_wake, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct async a = {0};
	struct scene s;
	struct loop l;

	for (int cancel_first = 0; cancel_first < 2; cancel_first++) {
		open_stage(&s, &l, &one_chunk, 1);
		snapshot = take(&s, 0, COWSNAP_LOSER_WRITE, FOR_EVER);
		cr_assert_eq(async_begin(&a, &l, 0, 0, 2 * CHUNK), COWSNAP_PENDING);
		if (cancel_first)
			cr_assert_eq(cowsnap_op_cancel(&a.op), 0);
		cr_assert_eq(cowsnap_store_set_limit(s.store[0], 2 * CHUNK), 0);
		if (!cancel_first)
			cr_assert_eq(cowsnap_op_cancel(&a.op), 0);
		loop_until(&l, &a);
		cr_assert(a.error == 0 || a.error == -ECANCELED, "error %d", a.error);
		if (!a.error)
			cowsnap_write_end(&a.op);
		cr_assert_eq(loop_poll(&l), 0);
		scene_drop(snapshot);
		close_stage(&s, &l);
	}
}

/* ---- What a callback may do ------------------------------------------------------------------ */

struct busy_callback {
	struct scene *scene;
	struct loop *loop;
	struct cowsnap_snapshot *drop;
	struct async next;    /* begun by it */
	struct async *other;  /* cancelled by it */
	struct cowsnap_op op; /* a take begun by it */
	struct cowsnap_take_entry entry;
	unsigned taken;
};

static void taken(struct cowsnap_op *op, void *user, int error)
{
	struct busy_callback *b = user;

	cr_assert_eq(op, &b->op);
	cr_assert_eq(error, 0);
	b->taken++;
	b->loop->callbacks++;
}

static void do_all(struct async *a)
{
	struct busy_callback *b = a->user;
	struct scene *s = b->scene;

	cr_assert_eq(a->error, 0);
	async_write(a, s, NEW);
	cr_assert_eq(cowsnap_op_cancel(&b->other->op), 0);
	cr_assert_eq(async_begin(&b->next, a->loop, 1, 0, CHUNK), 0);
	async_write(&b->next, s, NEW);
	cr_assert_eq(async_begin(&b->next, a->loop, 0, 8 * CHUNK, 2 * CHUNK), COWSNAP_PENDING);
	scene_usage(s, 0);
	scene_stats(s);
	cr_assert_geq(cowsnap_reclaim(s->ctx, 64), 0);
	scene_drop(b->drop);
	b->entry = (struct cowsnap_take_entry){.origin = s->origin[1], .store = s->store[1]};
	cr_assert_eq(
		cowsnap_take_async(s->ctx, b->loop->queue, NULL, &b->entry, 1, &b->op, taken, b),
		COWSNAP_PENDING);
	cr_assert_eq(cowsnap_queue_poll(a->loop->queue), -EDEADLK);
	cr_assert_geq(cowsnap_queue_fd(a->loop->queue), 0);
}

Test(async, a_callback_may_begin_end_cancel_take_and_drop, .timeout = 60)
{
	struct busy_callback b = {0};
	struct cowsnap_snapshot *snapshot;
	struct async a = {0}, other = {0};
	struct scene s;
	struct loop l;

	open_stage(&s, &l, &one_chunk, 2);
	b.scene = &s;
	b.loop = &l;
	b.other = &other;
	snapshot = take(&s, 0, COWSNAP_LOSER_WRITE, FOR_EVER);
	b.drop = scene_take(&s, 1, 1, COWSNAP_LOSER_SNAPSHOT);
	a.then = do_all;
	a.user = &b;
	cr_assert_eq(async_begin(&a, &l, 0, 0, 2 * CHUNK), COWSNAP_PENDING);
	cr_assert_eq(async_begin(&other, &l, 0, 2 * CHUNK, 2 * CHUNK), COWSNAP_PENDING);
	loop_settle(&l);
	cr_assert_eq(cowsnap_store_set_limit(s.store[0], 2 * CHUNK), 0);
	loop_until(&l, &a);
	loop_until(&l, &other);
	cr_assert_eq(other.error, -ECANCELED);
	loop_settle(&l);
	async_expect_pending(&b.next);
	cr_assert_eq(cowsnap_store_set_limit(s.store[0], 4 * CHUNK), 0);
	loop_until(&l, &b.next);
	cr_assert_eq(b.next.error, 0);
	cowsnap_write_end(&b.next.op);
	cr_assert_eq(b.taken, 1);
	scene_drop(b.entry.snapshot);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_drop(snapshot);
	close_stage(&s, &l);
}

struct answer {
	struct scene *scene;
	unsigned asked;
};

static enum cowsnap_decision grow(void *user, const struct cowsnap_trouble *trouble)
{
	struct answer *answer = user;

	cr_assert_eq(trouble->attempt, ++answer->asked);
	if (answer->asked < 3)
		return COWSNAP_DECIDE_RETRY;
	cr_assert_eq(cowsnap_store_set_limit(answer->scene->store[0], 4 * CHUNK), 0);
	return COWSNAP_DECIDE_RETRY;
}

Test(async, the_host_is_asked, .timeout = 60)
{
	struct answer answer = {0};
	struct cowsnap_take_entry entry = {
		.on_full = COWSNAP_LOSER_ASK, .decide = grow, .user = &answer};
	struct async a = {0};
	struct scene s;
	struct loop l;

	open_stage(&s, &l, &one_chunk, 1);
	answer.scene = &s;
	entry.origin = s.origin[0];
	entry.store = s.store[0];
	cr_assert_eq(cowsnap_take(s.ctx, NULL, &entry, 1), 0);
	cr_assert_eq(async_begin(&a, &l, 0, 0, 3 * CHUNK), 0);
	async_write(&a, &s, NEW);
	cr_assert_eq(answer.asked, 3);
	scene_expect(entry.snapshot, 0, SCENE_BYTES, OLD);
	scene_drop(entry.snapshot);
	close_stage(&s, &l);
}
