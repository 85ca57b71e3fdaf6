/* SPDX-License-Identifier: MIT
 *
 * Commits of event loops: the steps of a group as requests of a queue. The store's device lets each
 * request wait until the test releases it, so each test says what happens when.
 */
#include "support/dm_scene.h"
#include "support/slow_device.h"
#include "support/test.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define CHUNK   UINT64_C(512)
#define WRITERS 8u
#define QUEUES  2u
#define AREA    32u /* records */

struct rig {
	struct dm_scene s;
	struct slow_device slow;
	struct cowsnap_queue *queue[QUEUES];
	_Atomic unsigned ended;
};

struct awrite {
	struct cowsnap_op op;
	struct rig *rig;
	uint64_t chunk;
	bool done;
	int rc;
	unsigned order; /* in which they ended */
};

struct twrite {
	struct rig *rig;
	pthread_t thread;
	uint64_t chunk;
	_Atomic bool done;
	int rc;
};

/* ---- The rig --------------------------------------------------------------------------------- */

static void begin(struct rig *r, struct dm_scene_options options)
{
	options.engine = COWSNAP_ENGINE_LOOP;
	dm_open(&r->s, &options);
	slow_device_open(&r->slow, r->s.ctx, test_device_inner(r->s.at[0].store_test), 1,
		!options.no_flush, options.durable);
	r->s.at[0].store_device = r->slow.device;
	atomic_store(&r->ended, 0);
	for (unsigned i = 0; i < QUEUES; i++)
		cr_assert_eq(cowsnap_queue_create(r->s.ctx, 64, &r->queue[i]), 0);
	cr_assert_eq(dm_begin(&r->s), 0, "%s", r->s.line);
	slow_device_reset(&r->slow);
}

/* Its store is closed, so that the device of the test can be. */
static void end(struct rig *r)
{
	struct dm_store *at = &r->s.at[0];

	for (unsigned i = 0; i < QUEUES; i++)
		cr_assert_eq(cowsnap_queue_close(r->queue[i]), 0);
	if (at->snapshot) {
		dm_expect_exact(&r->s, 0, false);
		dm_expect_promise(&r->s, 0);
		if (dm_drop(&r->s, 0)) {
			cr_assert_eq(cowsnap_snapshot_deactivate(at->snapshot), 0);
			cowsnap_snapshot_unref(at->snapshot);
			at->snapshot = NULL;
		}
	}
	cr_assert_eq(dm_close_store(&r->s, 0), 0);
	slow_device_close(&r->slow);
	dm_close(&r->s);
}

static void end_healthy(struct rig *r)
{
	dm_expect_exact(&r->s, 0, true);
	end(r);
}

/* ---- Writes ---------------------------------------------------------------------------------- */

static void ready(struct cowsnap_op *op, void *user, int error)
{
	struct awrite *w = user;
	struct dm_scene *s = &w->rig->s;
	struct dm_store *at = &s->at[0];

	w->rc = error;
	w->done = true;
	w->order = atomic_fetch_add(&w->rig->ended, 1) + 1;
	if (error) {
		if (s->options.on_full == COWSNAP_LOSER_SNAPSHOT)
			atomic_store(&at->maybe_invalid, true);
		return;
	}
	at->live[w->chunk * CHUNK] = 1;
	cr_assert_eq(cowsnap_device_write(
			     at->origin_device, at->live + w->chunk * CHUNK, w->chunk * CHUNK, 1),
		0);
	cowsnap_write_end(op);
}

static void start(struct awrite *w, struct rig *r, unsigned queue, uint64_t chunk)
{
	int rc;

	*w = (struct awrite){.rig = r, .chunk = chunk};
	rc = cowsnap_write_begin_async(r->s.at[0].origin, r->queue[queue], COWSNAP_WRITE,
		chunk * CHUNK, 1, &w->op, ready, w);
	if (rc != COWSNAP_PENDING)
		ready(&w->op, w, rc);
}

static void start_all(struct awrite *w, struct rig *r, unsigned queue, uint64_t chunk)
{
	for (unsigned i = 0; i < WRITERS; i++)
		start(&w[i], r, queue, chunk + i);
}

/* What can go on without waiting goes on. */
static bool pump(struct rig *r, unsigned queue, int wait_ms)
{
	struct pollfd fd = {.fd = cowsnap_queue_fd(r->queue[queue]), .events = POLLIN};

	if (poll(&fd, 1, wait_ms) <= 0)
		return false;
	cr_assert_geq(cowsnap_queue_poll(r->queue[queue]), 0);
	return true;
}

static void pump_all(struct rig *r)
{
	bool again = true;

	while (again) {
		again = false;
		for (unsigned i = 0; i < QUEUES; i++)
			again |= pump(r, i, 0);
	}
}

static void until_held(struct rig *r, unsigned count)
{
	while (slow_device_held(&r->slow) < count) {
		pump_all(r);
		sched_yield();
	}
}

static void until_done(struct rig *r, const struct awrite *w, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		while (!w[i].done) {
			pump_all(r);
			sched_yield();
		}
	}
}

static unsigned count_done(const struct awrite *w, unsigned count)
{
	unsigned done = 0;

	for (unsigned i = 0; i < count; i++)
		done += w[i].done;
	return done;
}

static void expect_all(const struct awrite *w, unsigned count, int rc)
{
	for (unsigned i = 0; i < count; i++)
		cr_assert_eq(w[i].rc, rc, "writer %u: %d", i, w[i].rc);
}

static void *write_one(void *argument)
{
	struct twrite *w = argument;

	w->rc = dm_write(&w->rig->s, 0, w->chunk * CHUNK, 1, 1);
	atomic_store(&w->done, true);
	return NULL;
}

static void start_thread(struct twrite *w, struct rig *r, uint64_t chunk)
{
	*w = (struct twrite){.rig = r, .chunk = chunk};
	cr_assert_eq(pthread_create(&w->thread, NULL, write_one, w), 0);
}

static int join(struct twrite *w)
{
	pthread_join(w->thread, NULL);
	return w->rc;
}

/* Its data is written, and then its commit is queued: for all that the test can see. */
static void until_data_written(struct rig *r, unsigned writes)
{
	while (slow_device_calls(&r->slow, COWSNAP_IO_WRITE) < writes)
		sched_yield();
	for (unsigned i = 0; i < 2000; i++)
		sched_yield();
}

static void hold_flushes(struct rig *r, bool hold)
{
	slow_device_hold(&r->slow, COWSNAP_IO_FLUSH, hold);
}

/* Lets one flush go and waits for the next. */
static void next_flush(struct rig *r)
{
	cr_assert(slow_device_release(&r->slow));
	until_held(r, 1);
}

/* No more flushes are held; what waits goes. */
static void let_go(struct rig *r)
{
	hold_flushes(r, false);
	while (slow_device_release(&r->slow))
		;
}

/* ---- Groups ---------------------------------------------------------------------------------- */

/* One writer's flush is held, the others gather; the flush of its record serves as that of their
 * data, and one more makes all their records durable. */
static void gather(bool durable, unsigned flushes)
{
	struct awrite first, other[WRITERS];
	struct rig r;

	begin(&r, (struct dm_scene_options){.durable = durable});
	hold_flushes(&r, true);
	start(&first, &r, 0, 0);
	until_held(&r, 1);
	start_all(other, &r, 0, 2);
	pump_all(&r);
	let_go(&r);
	until_done(&r, &first, 1);
	until_done(&r, other, WRITERS);
	expect_all(&first, 1, 0);
	expect_all(other, WRITERS, 0);
	cr_assert_eq(slow_device_calls(&r.slow, COWSNAP_IO_FLUSH), flushes);
	cr_assert_eq(slow_device_calls(&r.slow, COWSNAP_IO_WRITE_DURABLE), durable ? 2 : 0);
	end_healthy(&r);
}

Test(store_dm_async, one_flush_covers_many, .timeout = 60)
{
	gather(false, 3);
}

Test(store_dm_async, one_flush_covers_many_with_durable_writes, .timeout = 60)
{
	gather(true, 2);
}

Test(store_dm_async, a_device_without_cache_pays_no_flush, .timeout = 60)
{
	struct awrite other[WRITERS];
	struct rig r;

	begin(&r, (struct dm_scene_options){.no_flush = true});
	start_all(other, &r, 0, 0);
	until_done(&r, other, WRITERS);
	expect_all(other, WRITERS, 0);
	cr_assert_eq(slow_device_calls(&r.slow, COWSNAP_IO_FLUSH), 0);
	end_healthy(&r);
}

/* Each is released when its own record is durable, and in the order of the queue. */
Test(store_dm_async, who_is_durable_need_not_wait_for_the_next_group, .timeout = 60)
{
	struct awrite first, other[WRITERS], late;
	struct rig r;

	begin(&r, (struct dm_scene_options){.stores = 1});
	hold_flushes(&r, true);
	start(&first, &r, 0, 0);
	until_held(&r, 1);
	start_all(other, &r, 0, 2);
	pump_all(&r);
	cr_assert_not(first.done);
	next_flush(&r); /* that of its record */
	cr_assert_not(first.done);
	next_flush(&r); /* that of the others' records */
	cr_assert(first.done, "its record is durable");
	cr_assert_eq(count_done(other, WRITERS), 0);
	start(&late, &r, 0, 40);
	pump_all(&r);
	next_flush(&r); /* of the late one's data */
	until_done(&r, other, WRITERS);
	for (unsigned i = 0; i < WRITERS; i++)
		cr_assert_eq(other[i].order, 2 + i);
	cr_assert_not(late.done);
	let_go(&r);
	until_done(&r, &late, 1);
	end_healthy(&r);
}

Test(store_dm_async, commits_with_more_records_than_an_area, .timeout = 60)
{
	struct cowsnap_op op;
	struct rig r;
	struct awrite w = {.rig = &r};

	begin(&r, (struct dm_scene_options){.stores = 1});
	cr_assert_eq(cowsnap_write_begin_async(r.s.at[0].origin, r.queue[0], COWSNAP_WRITE, 0,
			     80 * CHUNK, &op, ready, &w),
		COWSNAP_PENDING);
	until_done(&r, &w, 1);
	cr_assert_eq(w.rc, 0);
	end_healthy(&r);
}

/* ---- Who leads ------------------------------------------------------------------------------- */

/* The first one leads, the second is queued behind its group, and leads the next. */
static void thread_then_queue(bool durable)
{
	struct twrite first;
	struct awrite second;
	struct rig r;

	begin(&r, (struct dm_scene_options){.durable = durable});
	hold_flushes(&r, true);
	start_thread(&first, &r, 0);
	until_held(&r, 1);
	start(&second, &r, 0, 2);
	pump_all(&r);
	let_go(&r);
	until_done(&r, &second, 1);
	cr_assert_eq(join(&first), 0);
	expect_all(&second, 1, 0);
	end_healthy(&r);
}

Test(store_dm_async, a_thread_hands_over_to_a_queue, .timeout = 60)
{
	thread_then_queue(false);
	thread_then_queue(true);
}

static void queue_then_thread(bool durable)
{
	struct awrite first;
	struct twrite second;
	struct rig r;

	begin(&r, (struct dm_scene_options){.durable = durable});
	hold_flushes(&r, true);
	start(&first, &r, 0, 0);
	until_held(&r, 1);
	start_thread(&second, &r, 2);
	until_data_written(&r, 2);
	let_go(&r);
	until_done(&r, &first, 1);
	/* Nobody polls any more: the thread must lead by itself. */
	cr_assert_eq(join(&second), 0);
	expect_all(&first, 1, 0);
	end_healthy(&r);
}

Test(store_dm_async, a_queue_hands_over_to_a_thread, .timeout = 60)
{
	queue_then_thread(false);
	queue_then_thread(true);
}

Test(store_dm_async, a_queue_hands_over_to_another, .timeout = 60)
{
	struct awrite first, second;
	struct rig r;

	begin(&r, (struct dm_scene_options){.stores = 1});
	hold_flushes(&r, true);
	start(&first, &r, 0, 0);
	until_held(&r, 1);
	start(&second, &r, 1, 2);
	pump_all(&r);
	let_go(&r);
	while (!first.done)
		pump(&r, 0, 10);
	cr_assert_not(second.done);
	/* The first one's queue has nothing to do with the second, and may end. */
	cr_assert_eq(cowsnap_queue_close(r.queue[0]), 0);
	r.queue[0] = NULL;
	while (!second.done)
		pump(&r, 1, 10);
	expect_all(&second, 1, 0);
	r.queue[0] = r.queue[1];
	r.queue[1] = NULL;
	dm_expect_exact(&r.s, 0, true);
	cr_assert_eq(cowsnap_queue_close(r.queue[0]), 0);
	r.queue[0] = NULL;
	end(&r);
}

/* A queue that leads leads on for its own, past the commits of others in the same group. */
Test(store_dm_async, a_queue_leads_on_for_its_own, .timeout = 60)
{
	struct awrite first, second, third;
	struct rig r;

	begin(&r, (struct dm_scene_options){.durable = true});
	hold_flushes(&r, true);
	start(&first, &r, 0, 0);
	until_held(&r, 1);
	start(&second, &r, 0, 2);
	start(&third, &r, 1, 4);
	pump_all(&r);
	let_go(&r);
	while (!second.done)
		pump(&r, 0, 10);
	while (!third.done)
		pump(&r, 1, 10);
	cr_assert_eq(third.rc, 0);
	cr_assert_eq(slow_device_calls(&r.slow, COWSNAP_IO_FLUSH), 2, "two groups");
	end_healthy(&r);
}

/* ---- Many at once ---------------------------------------------------------------------------- */

struct loop {
	struct rig *rig;
	pthread_t thread;
	unsigned queue;
	uint64_t chunk;
	unsigned writes;
	int rc;
};

/* An event loop: it keeps several writes under way. */
static void *run_loop(void *argument)
{
	struct loop *loop = argument;
	struct awrite w[4];
	unsigned begun = 0, ended = 0;

	memset(w, 0, sizeof(w));
	while (ended < loop->writes) {
		for (unsigned i = 0; i < 4; i++) {
			if (w[i].rig && w[i].done) {
				loop->rc = w[i].rc ? w[i].rc : loop->rc;
				w[i].rig = NULL;
				ended++;
			}
			if (!w[i].rig && begun < loop->writes)
				start(&w[i], loop->rig, loop->queue, loop->chunk + begun++);
		}
		pump(loop->rig, loop->queue, 1);
	}
	return NULL;
}

static void *run_writer(void *argument)
{
	struct loop *loop = argument;

	for (unsigned i = 0; i < loop->writes && !loop->rc; i++)
		loop->rc = dm_write(&loop->rig->s, 0, (loop->chunk + i) * CHUNK, 1, 1);
	return NULL;
}

/* Two loops and two threads, on a device whose requests end on a thread of its own. */
static void mix(bool durable)
{
	struct loop loop[4];
	struct rig r;

	begin(&r, (struct dm_scene_options){.durable = durable, .store_bytes = 160 * 1024});
	slow_device_run(&r.slow);
	for (int kind = COWSNAP_IO_READ; kind <= COWSNAP_IO_WRITE_DURABLE; kind++)
		slow_device_hold(&r.slow, (enum cowsnap_io_kind)kind, true);
	for (unsigned i = 0; i < 4; i++) {
		loop[i] = (struct loop){
			.rig = &r, .queue = i % QUEUES, .chunk = 30 * i, .writes = 30};
		cr_assert_eq(pthread_create(&loop[i].thread, NULL,
				     i < QUEUES ? run_loop : run_writer, &loop[i]),
			0);
	}
	for (unsigned i = 0; i < 4; i++) {
		pthread_join(loop[i].thread, NULL);
		cr_assert_eq(loop[i].rc, 0, "%u: %d", i, loop[i].rc);
	}
	for (int kind = COWSNAP_IO_READ; kind <= COWSNAP_IO_WRITE_DURABLE; kind++)
		slow_device_hold(&r.slow, (enum cowsnap_io_kind)kind, false);
	slow_device_stop(&r.slow);
	end_healthy(&r);
}

Test(store_dm_async, loops_and_threads_on_one_store, .timeout = 60)
{
	for (unsigned round = 0; round < 6; round++)
		mix(round % 2);
}

#define IN_FLIGHT 32u
#define ROUNDS    20u

/* A loop with 32 writes in flight: each that ends makes place for another. Where the device writes
 * through, at least 16 records share a flush. */
Test(store_dm_async, groups_form_by_themselves, .timeout = 60)
{
	struct awrite w[IN_FLIGHT];
	unsigned begun, flushes;
	struct rig r;

	begin(&r, (struct dm_scene_options){
			  .durable = true, .origin_bytes = 1 << 20, .store_bytes = 1 << 20});
	hold_flushes(&r, true);
	for (begun = 0; begun < IN_FLIGHT; begun++)
		start(&w[begun], &r, 0, begun);
	while (begun < IN_FLIGHT * ROUNDS) {
		pump_all(&r);
		slow_device_release(&r.slow);
		for (unsigned i = 0; i < IN_FLIGHT; i++) {
			if (w[i].done)
				start(&w[i], &r, 0, begun++);
		}
	}
	flushes = slow_device_calls(&r.slow, COWSNAP_IO_FLUSH);
	let_go(&r);
	until_done(&r, w, IN_FLIGHT);
	expect_all(w, IN_FLIGHT, 0);
	/* A flush here takes no longer than the loop; groups of areas' ends are smaller. */
	cr_assert_leq(flushes, begun / 8, "%u flushes for %u records", flushes, begun);
	end_healthy(&r);
}

/* ---- Failures -------------------------------------------------------------------------------- */

static const struct dm_scene_options write_loses = {.on_full = COWSNAP_LOSER_WRITE};

/* Each is told; what comes next succeeds, or not. */
static void fail_one(bool durable, enum cowsnap_io_kind kind, unsigned n, int later)
{
	struct dm_scene_options options = write_loses;
	struct awrite w, other[WRITERS];
	struct rig r;

	options.durable = durable;
	begin(&r, options);
	slow_device_fail(&r.slow, kind, n, -EIO);
	start(&w, &r, 0, 0);
	until_done(&r, &w, 1);
	cr_assert_eq(w.rc, -EIO, "%d", w.rc);
	start_all(other, &r, 0, 2);
	until_done(&r, other, WRITERS);
	expect_all(other, WRITERS, later);
	end(&r);
}

Test(store_dm_async, a_failed_record_fails_its_group_alone, .timeout = 60)
{
	fail_one(false, COWSNAP_IO_WRITE, 2, 0); /* the first is data */
	fail_one(true, COWSNAP_IO_WRITE_DURABLE, 1, 0);
}

Test(store_dm_async, a_failed_flush_breaks_the_store, .timeout = 60)
{
	fail_one(false, COWSNAP_IO_FLUSH, 1, -EIO);
	fail_one(false, COWSNAP_IO_FLUSH, 2, -EIO);
	fail_one(true, COWSNAP_IO_FLUSH, 1, -EIO);
}

Test(store_dm_async, a_failed_wipe_breaks_the_store, .timeout = 60)
{
	struct dm_scene_options options = write_loses;
	struct awrite w;
	struct rig r;

	options.durable = true;
	begin(&r, options);
	hold_flushes(&r, true);
	slow_device_fail(&r.slow, COWSNAP_IO_WRITE_DURABLE, 1, -EIO);
	start(&w, &r, 0, 0);
	until_held(&r, 1); /* its data; the record fails, and the wipe is flushed */
	next_flush(&r);
	slow_device_fail(&r.slow, COWSNAP_IO_FLUSH, 1, -ENXIO);
	let_go(&r);
	until_done(&r, &w, 1);
	cr_assert_eq(w.rc, -EIO);
	end(&r);
}

/* All in the queue are told, nobody is left waiting. */
Test(store_dm_async, a_failed_flush_wakes_all, .timeout = 60)
{
	struct awrite first, other[WRITERS], elsewhere;
	struct twrite thread;
	struct rig r;

	begin(&r, write_loses);
	hold_flushes(&r, true);
	slow_device_fail(&r.slow, COWSNAP_IO_FLUSH, 2, -EIO);
	start(&first, &r, 0, 0);
	until_held(&r, 1);
	start_all(other, &r, 0, 2);
	start(&elsewhere, &r, 1, 40);
	pump_all(&r);
	start_thread(&thread, &r, 50);
	until_data_written(&r, 11);
	let_go(&r);
	until_done(&r, &first, 1);
	until_done(&r, other, WRITERS);
	until_done(&r, &elsewhere, 1);
	cr_assert_eq(join(&thread), -EIO);
	expect_all(&first, 1, -EIO);
	expect_all(other, WRITERS, -EIO);
	expect_all(&elsewhere, 1, -EIO);
	end(&r);
}

/* The group that fills an area must have the next one zeroed first. */
Test(store_dm_async, a_failed_zero_fails_its_group_alone, .timeout = 60)
{
	struct awrite w[AREA], last;
	struct rig r;

	begin(&r, write_loses);
	for (unsigned i = 0; i < AREA - 1; i++) {
		start(&w[i], &r, 0, i);
		until_done(&r, &w[i], 1);
		cr_assert_eq(w[i].rc, 0);
	}
	slow_device_fail(&r.slow, COWSNAP_IO_WRITE, 2, -EIO);
	start(&last, &r, 0, 60);
	until_done(&r, &last, 1);
	cr_assert_eq(last.rc, -EIO);
	start(&last, &r, 0, 60);
	until_done(&r, &last, 1);
	cr_assert_eq(last.rc, 0);
	end_healthy(&r);
}

/* ---- The snapshot's end, half-way ------------------------------------------------------------ */

/* The write that loses the snapshot is on the queue that has a flush under way: it must not wait
 * for that with the only thread that can end it. */
Test(store_dm_async, an_invalidation_does_not_wait_on_the_thread_of_a_flush, .timeout = 60)
{
	struct awrite first, second;
	struct rig r;
	int reason;

	begin(&r, (struct dm_scene_options){.on_full = COWSNAP_LOSER_SNAPSHOT});
	hold_flushes(&r, true);
	start(&first, &r, 0, 0);
	until_held(&r, 1);
	slow_device_fail(&r.slow, COWSNAP_IO_WRITE, 1, -EIO);
	start(&second, &r, 0, 2);
	pump_all(&r);
	cr_assert_not(second.done);
	cr_assert_eq(dm_state(&r.s, 0, NULL), COWSNAP_SNAPSHOT_ACTIVE);
	let_go(&r);
	until_done(&r, &first, 1);
	until_done(&r, &second, 1);
	cr_assert_eq(first.rc, 0);
	cr_assert_eq(second.rc, 0, "the snapshot lost");
	cr_assert_eq(dm_state(&r.s, 0, &reason), COWSNAP_SNAPSHOT_INVALID);
	cr_assert_eq(reason, -EIO);
	end(&r);
}

static void *drop(void *argument)
{
	struct rig *r = argument;

	return (void *)(intptr_t)dm_drop(&r->s, 0);
}

/* On another thread: a drop waits for the device. Both end well; there is no snapshot after it. */
Test(store_dm_async, a_drop_meets_a_commit_half_way, .timeout = 60)
{
	struct awrite first, second;
	pthread_t dropper;
	struct rig r;
	void *rc;

	begin(&r, write_loses);
	hold_flushes(&r, true);
	start(&first, &r, 0, 0);
	until_held(&r, 1);
	cr_assert_eq(pthread_create(&dropper, NULL, drop, &r), 0);
	start(&second, &r, 0, 2);
	pump_all(&r);
	let_go(&r);
	until_done(&r, &first, 1);
	until_done(&r, &second, 1);
	pthread_join(dropper, &rc);
	cr_assert_null(rc);
	cr_assert_eq(first.rc, 0);
	cr_assert_eq(second.rc, 0);
	cr_assert_eq(dm_take(&r.s), 0, "the next one begins");
	start(&first, &r, 0, 0);
	until_done(&r, &first, 1);
	cr_assert_eq(first.rc, 0);
	end_healthy(&r);
}

/* On the thread of the queue, which has a flush under way that only a poll can end: refused, rather
 * than waited for for ever; and not even that where the header needs no flush. */
static void drop_on_the_same_thread(bool durable)
{
	struct dm_scene_options options = write_loses;
	struct awrite first;
	struct rig r;

	options.durable = durable;
	begin(&r, options);
	hold_flushes(&r, true);
	start(&first, &r, 0, 0);
	until_held(&r, 1);
	if (!durable)
		cr_assert_eq(dm_set_generation(&r.s, 0, 1), -EDEADLK);
	cr_assert_eq(dm_drop(&r.s, 0), durable ? 0 : -EDEADLK);
	let_go(&r);
	until_done(&r, &first, 1);
	cr_assert_eq(first.rc, 0);
	if (!durable)
		cr_assert_eq(dm_drop(&r.s, 0), 0, "%s", r.s.line);
	dm_expect_promise(&r.s, 0);
	end(&r);
}

Test(store_dm_async, a_drop_does_not_wait_on_the_thread_of_a_flush, .timeout = 60)
{
	drop_on_the_same_thread(false);
	drop_on_the_same_thread(true);
}

/* The header's flush fails while a chain has its record in the cache: see test_store_dm_group.c. */
static void *set_generation(void *argument)
{
	struct rig *r = argument;

	return (void *)(intptr_t)dm_set_generation(&r->s, 0, 1);
}

Test(store_dm_async, a_failed_flush_of_the_header_counts_for_records, .timeout = 60)
{
	struct awrite first;
	pthread_t changer;
	struct rig r;
	void *rc;

	begin(&r, write_loses);
	hold_flushes(&r, true);
	start(&first, &r, 0, 0);
	until_held(&r, 1);
	/* Its data goes, its record is held. */
	slow_device_hold(&r.slow, COWSNAP_IO_WRITE, true);
	next_flush(&r);
	hold_flushes(&r, false);
	slow_device_hold(&r.slow, COWSNAP_IO_WRITE, false);
	slow_device_fail(&r.slow, COWSNAP_IO_FLUSH, 1, -EIO);
	cr_assert_eq(pthread_create(&changer, NULL, set_generation, &r), 0);
	pthread_join(changer, &rc);
	cr_assert_eq((intptr_t)rc, -EIO);
	cr_assert(slow_device_release(&r.slow));
	until_done(&r, &first, 1);
	cr_assert_eq(first.rc, -EIO, "its record was written before a flush that failed");
	end(&r);
}
