/* SPDX-License-Identifier: MIT
 *
 * Takes that do not wait: for older writes, for each other, for room; past their deadline; and
 * cancelled in each of these.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "concurrent/scene.h"
#include "support/fail_alloc.h"
#include "support/pending.h"
#include "support/seed.h"

#define CHUNK    SCENE_CHUNK
#define OLD      1
#define NEW      2
#define FOR_EVER UINT64_MAX

static const struct scene_options looped = {.engine = COWSNAP_ENGINE_LOOP};

/* An asynchronous take of origins 0 to count - 1 into store 0. */
struct taker {
	struct pending_op pending;
	struct scene *scene;
	struct cowsnap_take_entry entry[SCENE_ORIGINS];
	size_t count;
	pthread_t frozen_on;
	unsigned freezes, thaws;
	int freeze_error;
};

static int freeze(void *user)
{
	struct taker *t = user;

	t->freezes++;
	t->frozen_on = pthread_self();
	return t->freeze_error;
}

static void thaw(void *user)
{
	struct taker *t = user;

	t->thaws++;
}

static int take_into(struct taker *t, struct scene *s, struct cowsnap_queue *queue, size_t count,
	struct cowsnap_store *store, uint64_t deadline_ns)
{
	const struct cowsnap_take_options options = {.size = sizeof(options),
		.deadline_ns = deadline_ns,
		.freeze = freeze,
		.thaw = thaw,
		.user = t};

	t->scene = s;
	t->count = count;
	t->freezes = t->thaws = 0;
	memset(&t->pending, 0, sizeof(t->pending));
	memset(t->entry, 0, sizeof(t->entry));
	for (size_t i = 0; i < count; i++) {
		t->entry[i].origin = s->origin[i];
		t->entry[i].store = store;
	}
	return cowsnap_take_async(s->ctx, queue, &options, t->entry, count, &t->pending.op,
		pending_done, &t->pending);
}

static void start(
	struct taker *t, struct scene *s, struct cowsnap_queue *queue, size_t count, uint64_t ns)
{
	cr_assert_eq(take_into(t, s, queue, count, s->store[0], ns), COWSNAP_PENDING);
	cr_assert(!queue || !atomic_load(&t->pending.calls), "not inside the call");
}

static int end_of(struct taker *t, struct cowsnap_queue *queue)
{
	cr_assert(pending_wait(queue, &t->pending), "nothing happens any more");
	cr_assert_eq(atomic_load(&t->pending.calls), 1);
	return t->pending.error;
}

static void expect_pending(const struct taker *t, struct cowsnap_queue *queue)
{
	pending_settle(queue);
	cr_assert_eq(atomic_load(&t->pending.calls), 0);
}

static void drop_all(struct taker *t)
{
	for (size_t i = 0; i < t->count; i++)
		scene_drop(t->entry[i].snapshot);
}

static void expect_none(const struct taker *t)
{
	for (size_t i = 0; i < t->count; i++)
		cr_assert_null(t->entry[i].snapshot);
}

static int cancel(struct taker *t, struct cowsnap_queue *queue)
{
	cr_assert_eq(cowsnap_op_cancel(&t->pending.op), 0);
	return end_of(t, queue);
}

static void open_bracket(struct scene *s, unsigned origin, struct cowsnap_op *op)
{
	cr_assert_eq(cowsnap_write_begin(s->origin[origin], COWSNAP_WRITE, 0, CHUNK, op), 0);
}

static void end_bracket(struct scene *s, unsigned origin, struct cowsnap_op *op, uint8_t value)
{
	uint8_t data[CHUNK];

	memset(data, value, sizeof(data));
	cr_assert_eq(cowsnap_device_write(s->origin_device[origin], data, 0, CHUNK), 0);
	cowsnap_write_end(op);
}

/* One chunk. */
static int begin_write(struct pending_op *p, struct scene *s, struct cowsnap_queue *queue,
	unsigned origin, uint64_t offset)
{
	memset(p, 0, sizeof(*p));
	return cowsnap_write_begin_async(
		s->origin[origin], queue, COWSNAP_WRITE, offset, CHUNK, &p->op, pending_done, p);
}

/* Waits until it is admitted, and writes. */
static void end_write(struct pending_op *p, struct scene *s, struct cowsnap_queue *queue,
	unsigned origin, uint64_t offset, uint8_t value)
{
	uint8_t data[CHUNK];

	cr_assert(pending_wait(queue, p), "nothing happens any more");
	cr_assert_eq(p->error, 0);
	memset(data, value, sizeof(data));
	cr_assert_eq(cowsnap_device_write(s->origin_device[origin], data, offset, CHUNK), 0);
	cowsnap_write_end(&p->op);
}

static struct cowsnap_queue *make_queue(struct scene *s)
{
	struct cowsnap_queue *queue;

	cr_assert_eq(cowsnap_queue_create(s->ctx, 4, &queue), 0);
	return queue;
}

static void close_scene(struct scene *s, struct cowsnap_queue *queue)
{
	cr_assert_eq(cowsnap_queue_close(queue), 0);
	scene_close(s);
}

/* ---- As it should be ------------------------------------------------------------------------- */

Test(async_take, calls_back_in_a_poll_also_where_nothing_is_waited_for, .timeout = 60)
{
	struct cowsnap_queue *queue;
	struct taker t = {0};
	struct scene s;

	scene_open(&s, &looped);
	queue = make_queue(&s);
	cr_assert_eq(scene_write(&s, 0, 0, SCENE_BYTES, OLD), 0);
	start(&t, &s, queue, 2, 0);
	cr_assert_eq(end_of(&t, queue), 0);
	cr_assert_eq(t.freezes, 1);
	cr_assert_eq(t.thaws, 1);
	cr_assert(pthread_equal(t.frozen_on, pthread_self()));
	cr_assert_eq(scene_write(&s, 0, 0, SCENE_BYTES, NEW), 0);
	scene_expect(t.entry[0].snapshot, 0, SCENE_BYTES, OLD);
	drop_all(&t);
	close_scene(&s, queue);
}

Test(async_take, is_pending_until_older_writes_have_ended, .timeout = 60)
{
	struct cowsnap_op older[2];
	struct pending_op younger;
	struct cowsnap_queue *queue;
	struct taker t = {0};
	struct scene s;

	scene_open(&s, &looped);
	queue = make_queue(&s);
	open_bracket(&s, 0, &older[0]);
	open_bracket(&s, 1, &older[1]);
	start(&t, &s, queue, 2, FOR_EVER);
	expect_pending(&t, queue);
	cr_assert_eq(t.thaws, 1, "the instant has passed");
	end_bracket(&s, 1, &older[1], OLD);
	expect_pending(&t, queue);
	/* One of the new generation wakes it for nothing. */
	cr_assert_eq(begin_write(&younger, &s, queue, 0, CHUNK), COWSNAP_PENDING);
	cr_assert_eq(cowsnap_op_cancel(&younger.op), 0);
	cr_assert(pending_wait(queue, &younger));
	cr_assert_eq(younger.error, -ECANCELED);
	expect_pending(&t, queue);
	end_bracket(&s, 0, &older[0], OLD);
	cr_assert_eq(end_of(&t, queue), 0);
	scene_expect(t.entry[0].snapshot, 0, CHUNK, OLD);
	drop_all(&t);
	close_scene(&s, queue);
}

Test(async_take, on_a_worker, .timeout = 60)
{
	const struct scene_options options = {.engine = COWSNAP_ENGINE_WORKERS, .workers = 2};
	struct cowsnap_op older;
	struct taker t = {0};
	struct scene s;

	scene_open(&s, &options);
	open_bracket(&s, 0, &older);
	start(&t, &s, NULL, 2, FOR_EVER);
	end_bracket(&s, 0, &older, OLD);
	while (!atomic_load(&t.pending.calls))
		sched_yield();
	cr_assert_eq(t.pending.error, 0);
	cr_assert(!pthread_equal(t.frozen_on, pthread_self()));
	cr_assert(pthread_equal(t.frozen_on, t.pending.called_on));
	scene_expect(t.entry[0].snapshot, 0, CHUNK, OLD);
	drop_all(&t);
	scene_close(&s);
}

/* The writes that a drain waits for may need all records of the queue that the take is in. */
Test(async_take, needs_no_record_of_its_queue, .timeout = 60)
{
	const struct scene_options options = {.engine = COWSNAP_ENGINE_LOOP, .limit_chunks = 1};
	struct cowsnap_take_entry patient = {.wait_ns = FOR_EVER};
	struct pending_op first, second;
	struct cowsnap_queue *queue;
	struct taker t = {0};
	struct scene s;

	scene_open(&s, &options);
	cr_assert_eq(cowsnap_queue_create(s.ctx, 1, &queue), 0);
	patient.origin = s.origin[0];
	patient.store = s.store[0];
	cr_assert_eq(cowsnap_take(s.ctx, NULL, &patient, 1), 0);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEW), 0);
	cr_assert_eq(begin_write(&first, &s, queue, 0, CHUNK), COWSNAP_PENDING);
	cr_assert_eq(begin_write(&second, &s, queue, 0, 2 * CHUNK), COWSNAP_PENDING);
	start(&t, &s, queue, 1, FOR_EVER);
	expect_pending(&t, queue);
	cr_assert_eq(cowsnap_store_set_limit(s.store[0], 64 * CHUNK), 0);
	end_write(&first, &s, queue, 0, CHUNK, NEW);
	cr_assert_eq(end_of(&t, queue), 0);
	end_write(&second, &s, queue, 0, 2 * CHUNK, NEW);
	scene_expect(patient.snapshot, 0, 4 * CHUNK, SCENE_BLANK);
	scene_expect(t.entry[0].snapshot, CHUNK, CHUNK, NEW);
	scene_expect(t.entry[0].snapshot, 2 * CHUNK, CHUNK, SCENE_BLANK);
	drop_all(&t);
	scene_drop(patient.snapshot);
	close_scene(&s, queue);
}

struct chain {
	struct taker taker;
	struct cowsnap_queue *queue;
	unsigned left;
};

static void take_again(struct pending_op *p)
{
	struct chain *c = p->user;

	cr_assert_eq(p->error, 0);
	drop_all(&c->taker);
	if (!--c->left)
		return;
	start(&c->taker, c->taker.scene, c->queue, 2, 0);
	p->then = take_again;
	p->user = c;
}

Test(async_take, a_callback_takes_again, .timeout = 60)
{
	struct chain c = {.left = 50};
	struct scene s;

	scene_open(&s, &looped);
	c.queue = make_queue(&s);
	start(&c.taker, &s, c.queue, 2, 0);
	c.taker.pending.then = take_again;
	c.taker.pending.user = &c;
	while (c.left)
		cr_assert(pending_poll(c.queue, PENDING_WAIT_MS));
	close_scene(&s, c.queue);
}

/* ---- Deadlines ------------------------------------------------------------------------------- */

Test(async_take, is_withdrawn_at_its_deadline_and_parked_writers_go_on, .timeout = 60)
{
	struct cowsnap_op older;
	struct pending_op parked;
	struct cowsnap_queue *queue;
	struct actor waits;
	struct taker t = {0};
	struct scene s;

	scene_open(&s, &looped);
	queue = make_queue(&s);
	open_bracket(&s, 0, &older);
	start(&t, &s, queue, 2, 50000000);
	cr_assert_eq(begin_write(&parked, &s, queue, 1, CHUNK), COWSNAP_PENDING);
	actor_write(&waits, &s, 1, 2 * CHUNK, CHUNK, NEW);
	cr_assert_eq(end_of(&t, queue), -ETIMEDOUT);
	expect_none(&t);
	end_write(&parked, &s, queue, 1, CHUNK, NEW);
	cr_assert_eq(actor_join(&waits), 0);
	end_bracket(&s, 0, &older, NEW);
	cr_assert_eq(scene_stats(&s).copied_chunks, 0);
	start(&t, &s, queue, 2, 0);
	cr_assert_eq(end_of(&t, queue), 0, "the next one is");
	drop_all(&t);
	close_scene(&s, queue);
}

Test(async_take, its_turn_may_not_come_in_time, .timeout = 60)
{
	struct cowsnap_queue *queue;
	struct taker first = {0}, second = {0};
	struct cowsnap_op older;
	struct scene s;

	scene_open(&s, &looped);
	queue = make_queue(&s);
	open_bracket(&s, 0, &older);
	start(&first, &s, queue, 1, FOR_EVER);
	start(&second, &s, queue, 2, 20000000);
	cr_assert_eq(end_of(&second, queue), -ETIMEDOUT);
	cr_assert_eq(second.freezes, 0);
	expect_pending(&first, queue);
	end_bracket(&s, 0, &older, NEW);
	cr_assert_eq(end_of(&first, queue), 0);
	drop_all(&first);
	close_scene(&s, queue);
}

/* ---- One after the other --------------------------------------------------------------------- */

Test(async_take, loops_and_threads_take_in_the_order_in_which_they_came, .timeout = 60)
{
	struct taker first = {0}, second = {0};
	struct cowsnap_queue *a, *b;
	struct cowsnap_op older;
	struct actor thread;
	struct scene s;

	scene_open(&s, &looped);
	a = make_queue(&s);
	b = make_queue(&s);
	open_bracket(&s, 0, &older);
	start(&first, &s, a, 1, FOR_EVER);
	start(&second, &s, b, 1, FOR_EVER);
	actor_take(&thread, &s, 1, FOR_EVER);
	expect_pending(&first, a);
	expect_pending(&second, b);
	cr_assert(!atomic_load(&thread.frozen));
	end_bracket(&s, 0, &older, OLD);
	expect_pending(&second, b);
	cr_assert_eq(end_of(&first, a), 0);
	cr_assert_eq(end_of(&second, b), 0);
	cr_assert_eq(actor_join(&thread), 0);
	drop_all(&first);
	drop_all(&second);
	scene_drop(thread.entry[0].snapshot);
	cr_assert_eq(cowsnap_queue_close(b), 0);
	close_scene(&s, a);
}

/* ---- Cancelled ------------------------------------------------------------------------------- */

Test(async_take, cancelled_before_its_turn, .timeout = 60)
{
	struct taker first = {0}, second = {0};
	struct cowsnap_queue *queue;
	struct cowsnap_op older;
	struct scene s;

	scene_open(&s, &looped);
	queue = make_queue(&s);
	open_bracket(&s, 0, &older);
	start(&first, &s, queue, 1, FOR_EVER);
	start(&second, &s, queue, 1, FOR_EVER);
	cr_assert_eq(cancel(&second, queue), -ECANCELED);
	start(&second, &s, queue, 1, FOR_EVER);
	end_bracket(&s, 0, &older, OLD);
	/* Its turn has come, or is on its way. */
	cr_assert_eq(cancel(&second, queue), -ECANCELED);
	cr_assert_eq(end_of(&first, queue), 0);
	drop_all(&first);
	expect_none(&second);
	start(&second, &s, queue, 1, 0);
	cr_assert_eq(end_of(&second, queue), 0, "the turn was handed on");
	drop_all(&second);
	close_scene(&s, queue);
}

Test(async_take, cancelled_in_the_drain, .timeout = 60)
{
	struct pending_op parked;
	struct cowsnap_queue *queue;
	struct cowsnap_op older;
	struct taker t = {0};
	struct scene s;

	scene_open(&s, &looped);
	queue = make_queue(&s);
	open_bracket(&s, 0, &older);
	start(&t, &s, queue, 2, FOR_EVER);
	cr_assert_eq(begin_write(&parked, &s, queue, 0, CHUNK), COWSNAP_PENDING);
	cr_assert_eq(cancel(&t, queue), -ECANCELED);
	expect_none(&t);
	end_write(&parked, &s, queue, 0, CHUNK, NEW);
	/* The cancel comes first, the end of the drain before it has been seen. */
	start(&t, &s, queue, 2, FOR_EVER);
	cr_assert_eq(cowsnap_op_cancel(&t.pending.op), 0);
	end_bracket(&s, 0, &older, OLD);
	cr_assert_eq(end_of(&t, queue), -ECANCELED);
	cr_assert_eq(scene_stats(&s).copied_chunks, 0);
	close_scene(&s, queue);
}

Test(async_take, cancelled_on_its_way_to_a_worker, .timeout = 60)
{
	const struct scene_options options = {.engine = COWSNAP_ENGINE_WORKERS, .workers = 1};
	struct scene s;

	scene_open(&s, &options);
	for (unsigned i = 0; i < 200; i++) {
		struct taker t = {0};

		start(&t, &s, NULL, 1, FOR_EVER);
		if (!atomic_load(&t.pending.calls))
			cowsnap_op_cancel(&t.pending.op);
		while (!atomic_load(&t.pending.calls))
			sched_yield();
		cr_assert(t.pending.error == 0 || t.pending.error == -ECANCELED);
		if (!t.pending.error)
			drop_all(&t);
	}
	scene_close(&s);
}

struct stop {
	atomic_bool reached, go;
};

/* Runs on the worker, and keeps it. */
static void keep_worker(struct cowsnap_op *op, void *user, int error)
{
	struct stop *stop = user;

	(void)op;
	(void)error;
	atomic_store(&stop->reached, true);
	while (!atomic_load(&stop->go))
		sched_yield();
}

/* They were, as long as no worker had come to it. */
Test(async_take, nothing_of_a_take_on_its_way_to_a_worker_is_closed, .timeout = 60)
{
	const struct scene_options options = {.engine = COWSNAP_ENGINE_WORKERS, .workers = 1};
	struct cowsnap_copy_target target = {.length = CHUNK};
	struct cowsnap_copy copy = {.targets = &target, .count = 1};
	struct cowsnap_copier *copier;
	struct stop stop = {false};
	struct cowsnap_op op;
	struct taker t = {0};
	struct scene s;

	scene_open(&s, &options);
	cr_assert_eq(cowsnap_copier_create(s.ctx, NULL, &copier), 0);
	cr_assert_eq(cowsnap_device_memory(s.ctx, CHUNK, &target.device), 0);
	cr_assert_eq(cowsnap_copier_copy_async(copier, NULL, &copy, &op, keep_worker, &stop),
		COWSNAP_PENDING);
	while (!atomic_load(&stop.reached))
		sched_yield();
	start(&t, &s, NULL, 1, FOR_EVER);
	cr_assert_eq(cowsnap_origin_close(s.origin[0]), -EBUSY);
	cr_assert_eq(cowsnap_store_close(s.store[0]), -EBUSY);
	atomic_store(&stop.go, true);
	while (!atomic_load(&t.pending.calls))
		sched_yield();
	cr_assert_eq(t.pending.error, 0);
	drop_all(&t);
	cowsnap_copier_destroy(copier);
	cr_assert_eq(cowsnap_device_close(target.device), 0);
	scene_close(&s);
}

/* ---- All of it at once ----------------------------------------------------------------------- */

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define ROUNDS 100
#else
#define ROUNDS 300
#endif
#define LOOPS 3

struct looper {
	struct scene *scene;
	struct cowsnap_queue *queue;
	pthread_t thread;
	struct seed seed;
	_Atomic unsigned *left; /* loopers that take */
	unsigned taken;
};

static void *take_body(void *argument)
{
	struct looper *l = argument;
	uint64_t deadlines[] = {1, 200000, FOR_EVER};

	for (unsigned i = 0; i < ROUNDS; i++) {
		struct taker t = {0};
		int rc;

		start(&t, l->scene, l->queue, 1 + seed_below(&l->seed, SCENE_ORIGINS),
			deadlines[seed_below(&l->seed, 3)]);
		for (uint64_t n = seed_below(&l->seed, 3); n; n--)
			pending_poll(l->queue, 0);
		if (!atomic_load(&t.pending.calls) && seed_below(&l->seed, 2))
			cr_assert_eq(cowsnap_op_cancel(&t.pending.op), 0);
		rc = end_of(&t, l->queue);
		cr_assert(rc == 0 || rc == -ETIMEDOUT || rc == -ECANCELED, "%d", rc);
		l->taken += rc == 0;
		if (rc)
			expect_none(&t);
		else
			drop_all(&t);
	}
	atomic_fetch_sub(l->left, 1);
	return NULL;
}

static void *write_body(void *argument)
{
	struct looper *l = argument;

	while (atomic_load(l->left)) {
		uint64_t offset = seed_below(&l->seed, 8) * CHUNK;
		unsigned origin = (unsigned)seed_below(&l->seed, SCENE_ORIGINS);
		struct pending_op p;

		if (begin_write(&p, l->scene, l->queue, origin, offset) == 0)
			atomic_store(&p.calls, 1);
		end_write(&p, l->scene, l->queue, origin, offset, NEW);
	}
	return NULL;
}

Test(async_take, takes_that_end_in_all_ways_at_once, .timeout = 120)
{
	struct seed seed = seed_for("async_take");
	struct looper loop[2 * LOOPS] = {0};
	_Atomic unsigned left = LOOPS;
	unsigned taken = 0;
	struct scene s;

	scene_open(&s, &looped);
	for (unsigned i = 0; i < 2 * LOOPS; i++) {
		struct looper *l = &loop[i];

		l->scene = &s;
		l->queue = make_queue(&s);
		l->seed.state = seed_next(&seed);
		l->left = &left;
		cr_assert_eq(
			pthread_create(&l->thread, NULL, i < LOOPS ? take_body : write_body, l), 0);
	}
	for (unsigned i = 0; i < 2 * LOOPS; i++) {
		pthread_join(loop[i].thread, NULL);
		taken += loop[i].taken;
		cr_assert_eq(cowsnap_queue_close(loop[i].queue), 0);
	}
	cr_assert_gt(taken, 0);
	scene_close(&s);
}

/* ---- Errors ---------------------------------------------------------------------------------- */

Test(async_take, arguments)
{
	struct cowsnap_queue *queue;
	struct taker t = {0};
	struct scene s;

	scene_open(&s, &looped);
	queue = make_queue(&s);
	cr_assert_eq(take_into(&t, &s, queue, 0, s.store[0], 0), -EINVAL);
	cr_assert_eq(take_into(&t, &s, queue, 1, NULL, 0), -EINVAL);
	cr_assert_eq(take_into(&t, &s, NULL, 1, s.store[0], 0), -EINVAL, "no workers");
	cr_assert_eq(cowsnap_take_async(s.ctx, queue, NULL, t.entry, 1, &t.pending.op, NULL, NULL),
		-EINVAL);
	t.entry[1] = t.entry[0];
	cr_assert_eq(cowsnap_take_async(s.ctx, queue, NULL, t.entry, 2, &t.pending.op, pending_done,
			     &t.pending),
		COWSNAP_PENDING);
	cr_assert_eq(end_of(&t, queue), -EINVAL, "named twice");
	t.freeze_error = -EAGAIN;
	start(&t, &s, queue, 2, 0);
	cr_assert_eq(end_of(&t, queue), -EAGAIN);
	cr_assert_eq(t.thaws, 0);
	expect_none(&t);
	close_scene(&s, queue);
}

Test(async_take, without_memory)
{
	struct fail_alloc *mem = fail_alloc_create(false);
	const struct scene_options options = {
		.engine = COWSNAP_ENGINE_LOOP, .allocator = fail_alloc_table(mem)};
	struct cowsnap_queue *queue;
	struct taker t = {0};
	struct scene s;
	int rc = -ENOMEM;

	scene_open(&s, &options);
	queue = make_queue(&s);
	fail_alloc_at(mem, 1, false);
	cr_assert_eq(take_into(&t, &s, queue, 2, s.store[0], 0), -ENOMEM);
	for (uint64_t n = 2; rc == -ENOMEM; n++) {
		fail_alloc_at(mem, n, false);
		start(&t, &s, queue, 2, 0);
		rc = end_of(&t, queue);
		if (rc)
			expect_none(&t);
	}
	cr_assert_eq(rc, 0);
	fail_alloc_at(mem, 0, false);
	drop_all(&t);
	close_scene(&s, queue);
	fail_alloc_destroy(mem);
}

/* ---- A store of one snapshot ----------------------------------------------------------------- */

/* A persistent store for origin 0. */
struct one {
	struct cowsnap_device *device;
	struct cowsnap_store *store;
	struct cowsnap_queue *queue;
	struct scene scene;
	struct taker taker;
};

static void one_open(struct one *o)
{
	struct cowsnap_dm_options options = {.size = sizeof(options), .chunk_size_bytes = CHUNK};

	memset(o, 0, sizeof(*o));
	scene_open(&o->scene, &looped);
	o->queue = make_queue(&o->scene);
	cr_assert_eq(cowsnap_device_memory(o->scene.ctx, 64 * CHUNK, &o->device), 0);
	options.device = o->device;
	cr_assert_eq(cowsnap_store_dm_create(o->scene.ctx, &options, &o->store), 0);
}

static void one_close(struct one *o)
{
	cr_assert_eq(cowsnap_store_drain(o->store, UINT64_MAX), 0);
	cr_assert_eq(cowsnap_store_close(o->store), 0);
	cr_assert_eq(cowsnap_device_close(o->device), 0);
	close_scene(&o->scene, o->queue);
}

static void one_take(struct one *o, uint64_t deadline_ns)
{
	cr_assert_eq(take_into(&o->taker, &o->scene, o->queue, 1, o->store, deadline_ns),
		COWSNAP_PENDING);
}

Test(async_take, waits_for_a_write_into_what_was_dropped, .timeout = 60)
{
	struct cowsnap_snapshot *last;
	struct cowsnap_op older;
	struct one o;

	one_open(&o);
	one_take(&o, 0);
	cr_assert_eq(end_of(&o.taker, o.queue), 0);
	open_bracket(&o.scene, 0, &older);
	drop_all(&o.taker);
	cr_assert_eq(cowsnap_store_drain(o.store, 0), -ETIMEDOUT);
	one_take(&o, 20000000);
	cr_assert_eq(end_of(&o.taker, o.queue), -ETIMEDOUT);
	cr_assert_eq(o.taker.freezes, 0);
	one_take(&o, FOR_EVER);
	expect_pending(&o.taker, o.queue);
	cr_assert_eq(cancel(&o.taker, o.queue), -ECANCELED);
	one_take(&o, FOR_EVER);
	expect_pending(&o.taker, o.queue);
	end_bracket(&o.scene, 0, &older, NEW);
	cr_assert_eq(end_of(&o.taker, o.queue), 0);
	last = o.taker.entry[0].snapshot;
	scene_expect(last, 0, CHUNK, NEW);
	one_take(&o, 0);
	cr_assert_eq(end_of(&o.taker, o.queue), -ENOTSUP, "it has one");
	cr_assert_eq(cowsnap_store_drain(o.store, 0), 0, "nothing is dropped");
	scene_drop(last);
	one_close(&o);
}

Test(async_take, waits_for_a_reader_of_what_was_dropped, .timeout = 60)
{
	struct actor reader;
	struct one o;
	int hold;

	one_open(&o);
	one_take(&o, 0);
	cr_assert_eq(end_of(&o.taker, o.queue), 0);
	cr_assert_eq(scene_write(&o.scene, 0, 0, CHUNK, NEW), 0);
	hold = scene_hold(o.scene.origin_test[0], TEST_IO_READ, 2 * CHUNK, CHUNK);
	actor_read(&reader, o.taker.entry[0].snapshot, 2 * CHUNK, CHUNK);
	scene_wait_held(o.scene.origin_test[0], hold);
	cowsnap_snapshot_ref(o.taker.entry[0].snapshot);
	drop_all(&o.taker);
	cr_assert_eq(cowsnap_store_drain(o.store, 0), -ETIMEDOUT);
	one_take(&o, FOR_EVER);
	pending_settle(o.queue);
	test_device_release(o.scene.origin_test[0], hold);
	cr_assert_eq(actor_join(&reader), -EIDRM);
	free(reader.data);
	cowsnap_snapshot_unref(reader.snapshot);
	cr_assert_eq(end_of(&o.taker, o.queue), 0);
	drop_all(&o.taker);
	one_close(&o);
}

/* ---- A snapshot that is there already -------------------------------------------------------- */

struct opener {
	struct scene *scene;
	struct cowsnap_dm_options options;
	struct cowsnap_take_entry entry;
	struct cowsnap_store *store;
	pthread_t thread;
	int rc;
};

static void *open_body(void *argument)
{
	struct opener *o = argument;

	o->entry.origin = o->scene->origin[1];
	o->rc = cowsnap_store_dm_open(o->scene->ctx, &o->options, &o->entry, &o->store);
	return NULL;
}

Test(async_take, an_attach_waits_for_it, .timeout = 60)
{
	struct opener opener = {0};
	struct cowsnap_op older;
	struct one o;

	one_open(&o);
	opener.scene = &o.scene;
	opener.options.size = sizeof(opener.options);
	opener.options.device = o.device;
	/* Of origin 1, to which nothing is written before it is attached. */
	opener.entry.origin = o.scene.origin[1];
	opener.entry.store = o.store;
	cr_assert_eq(cowsnap_take(o.scene.ctx, NULL, &opener.entry, 1), 0);
	cr_assert_eq(cowsnap_snapshot_deactivate(opener.entry.snapshot), 0);
	cowsnap_snapshot_unref(opener.entry.snapshot);
	cr_assert_eq(cowsnap_store_drain(o.store, 0), 0);
	cr_assert_eq(cowsnap_store_close(o.store), 0);
	open_bracket(&o.scene, 0, &older);
	start(&o.taker, &o.scene, o.queue, 1, FOR_EVER);
	cr_assert_eq(pthread_create(&opener.thread, NULL, open_body, &opener), 0);
	expect_pending(&o.taker, o.queue);
	end_bracket(&o.scene, 0, &older, NEW);
	cr_assert_eq(end_of(&o.taker, o.queue), 0);
	pthread_join(opener.thread, NULL);
	cr_assert_eq(opener.rc, 0);
	drop_all(&o.taker);
	cr_assert_eq(scene_write(&o.scene, 1, 0, CHUNK, NEW), 0);
	scene_expect(opener.entry.snapshot, 0, CHUNK, SCENE_BLANK);
	scene_drop(opener.entry.snapshot);
	o.store = opener.store;
	one_close(&o);
}
