/* SPDX-License-Identifier: MIT
 *
 * Operations that do not wait, and more than one thread: cancels from elsewhere that cross the end,
 * workers, threads that start something and are gone, fork.
 */
#include "concurrent/async.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHUNK    SCENE_CHUNK
#define CHUNKS   (SCENE_BYTES / SCENE_CHUNK)
#define OLD      1
#define NEW      2
#define FOR_EVER UINT64_MAX

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define ROUNDS 60u
#else
#define ROUNDS 250u
#endif

static const struct scene_options evented = {.engine = COWSNAP_ENGINE_LOOP};
static const struct scene_options one_chunk = {.engine = COWSNAP_ENGINE_LOOP, .limit_chunks = 1};
static const struct scene_options two_workers = {.engine = COWSNAP_ENGINE_WORKERS, .workers = 2};

static struct cowsnap_snapshot *take_waiting(struct scene *s, unsigned origin)
{
	struct cowsnap_take_entry entry = {.origin = s->origin[origin],
		.store = s->store[0],
		.on_full = COWSNAP_LOSER_WRITE,
		.wait_ns = FOR_EVER};

	cr_assert_eq(cowsnap_take(s->ctx, NULL, &entry, 1), 0);
	return entry.snapshot;
}

/* ---- A cancel from elsewhere crosses the end ------------------------------------------------- */

/* Cancels one operation after the other, each as soon as it is there. */
struct canceller {
	pthread_t thread;
	_Atomic(struct async *) victim;
	_Atomic unsigned cancelled;
	_Atomic bool ends;
};

static void *canceller_main(void *argument)
{
	struct canceller *c = argument;

	while (!atomic_load(&c->ends)) {
		struct async *victim = atomic_exchange(&c->victim, NULL);

		if (!victim) {
			sched_yield();
			continue;
		}
		cr_assert_eq(cowsnap_op_cancel(&victim->op), 0);
		atomic_fetch_add(&c->cancelled, 1);
	}
	return NULL;
}

static void canceller_start(struct canceller *c)
{
	memset(c, 0, sizeof(*c));
	cr_assert_eq(pthread_create(&c->thread, NULL, canceller_main, c), 0);
}

/* It is to be cancelled about now: a little later or sooner in each round. */
static void offer(struct canceller *c, struct async *a, unsigned round)
{
	atomic_store(&c->victim, a);
	while (round % 4 && atomic_load(&c->victim))
		sched_yield();
	for (volatile unsigned i = 0; i < round % 16 * 40; i++)
		;
}

static void canceller_stop(struct canceller *c)
{
	atomic_store(&c->ends, true);
	pthread_join(c->thread, NULL);
}

/* A callback may not return before the last call on its operation has: the host's part. */
static void await_canceller(struct async *a)
{
	struct canceller *c = a->user;

	while (!atomic_exchange(&c->cancelled, 0))
		sched_yield();
}

/* Its memory goes at once: nothing of the library may still be in it. */
static void finish(struct async *a, struct loop *l, unsigned *cancelled)
{
	if (l)
		loop_until(l, a);
	while (!atomic_load(&a->calls))
		sched_yield();
	cr_assert(a->error == 0 || a->error == -ECANCELED, "error %d", a->error);
	if (!a->error)
		cowsnap_write_end(&a->op);
	*cancelled += a->error != 0;
	free(a);
}

static struct async *victim(struct canceller *c)
{
	struct async *a = calloc(1, sizeof(*a));

	a->then = await_canceller;
	a->user = c;
	return a;
}

Test(async_threads, a_cancel_crosses_the_end_of_a_wait_for_space, .timeout = 120)
{
	unsigned cancelled = 0;
	struct canceller c;
	struct scene s;
	struct loop l;

	scene_open(&s, &one_chunk);
	loop_open(&l, &s, 1);
	canceller_start(&c);
	for (unsigned i = 0; i < ROUNDS; i++) {
		struct cowsnap_snapshot *snapshot = take_waiting(&s, 0);
		struct async *a = victim(&c);

		cr_assert_eq(async_begin(a, &l, 0, 0, 2 * CHUNK), COWSNAP_PENDING);
		offer(&c, a, i);
		if (i % 2)
			loop_poll(&l);
		cr_assert_eq(cowsnap_store_set_limit(s.store[0], 2 * CHUNK), 0);
		finish(a, &l, &cancelled);
		scene_drop(snapshot);
		scene_reclaim(&s);
		cr_assert_eq(cowsnap_store_set_limit(s.store[0], CHUNK), 0);
	}
	canceller_stop(&c);
	cr_log_info("%u of %u were cancelled", cancelled, ROUNDS);
	loop_close(&l);
	scene_close(&s);
}

Test(async_threads, a_cancel_crosses_the_end_of_a_drain, .timeout = 120)
{
	unsigned cancelled = 0;
	struct canceller c;
	struct scene s;
	struct loop l;

	scene_open(&s, &evented);
	loop_open(&l, &s, 1);
	canceller_start(&c);
	for (unsigned i = 0; i < ROUNDS; i++) {
		struct async *a = victim(&c);
		struct cowsnap_op old;
		struct actor taker;

		cr_assert_eq(cowsnap_write_begin(s.origin[0], COWSNAP_WRITE, 0, 1, &old), 0);
		actor_take(&taker, &s, 1, FOR_EVER);
		while (!atomic_load(&taker.thawed))
			sched_yield();
		cr_assert_eq(async_begin(a, &l, 0, CHUNK, CHUNK), COWSNAP_PENDING);
		offer(&c, a, i);
		cowsnap_write_end(&old);
		finish(a, &l, &cancelled);
		cr_assert_eq(actor_join(&taker), 0);
		scene_drop(taker.entry[0].snapshot);
		scene_reclaim(&s);
	}
	canceller_stop(&c);
	cr_log_info("%u of %u were cancelled", cancelled, ROUNDS);
	loop_close(&l);
	scene_close(&s);
}

/* One holds the only record; it ends while the one that waits for its turn is cancelled. */
Test(async_threads, a_cancel_crosses_a_turn, .timeout = 120)
{
	unsigned cancelled = 0;
	struct canceller c;
	struct scene s;
	struct loop l;

	scene_open(&s, &one_chunk);
	loop_open(&l, &s, 1);
	canceller_start(&c);
	for (unsigned i = 0; i < ROUNDS; i++) {
		struct cowsnap_snapshot *snapshot = take_waiting(&s, 0);
		struct async *a = victim(&c), holder = {0};

		cr_assert_eq(async_begin(&holder, &l, 0, 0, 2 * CHUNK), COWSNAP_PENDING);
		cr_assert_eq(async_begin(a, &l, 0, CHUNK, CHUNK), COWSNAP_PENDING);
		offer(&c, a, i);
		cr_assert_eq(cowsnap_store_set_limit(s.store[0], 2 * CHUNK), 0);
		loop_until(&l, &holder);
		cr_assert_eq(holder.error, 0);
		cowsnap_write_end(&holder.op);
		finish(a, &l, &cancelled);
		scene_drop(snapshot);
		scene_reclaim(&s);
		cr_assert_eq(cowsnap_store_set_limit(s.store[0], CHUNK), 0);
	}
	canceller_stop(&c);
	cr_log_info("%u of %u were cancelled", cancelled, ROUNDS);
	loop_close(&l);
	scene_close(&s);
}

Test(async_threads, a_cancel_crosses_the_end_on_a_worker, .timeout = 120)
{
	unsigned cancelled = 0;
	struct canceller c;
	struct scene s;

	scene_open(&s, &two_workers);
	canceller_start(&c);
	for (unsigned i = 0; i < ROUNDS; i++) {
		struct cowsnap_snapshot *snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_WRITE);
		struct async *a = victim(&c);

		cr_assert_eq(async_begin_on_worker(a, &s, 0, i % CHUNKS * CHUNK, CHUNK),
			COWSNAP_PENDING);
		offer(&c, a, i);
		finish(a, NULL, &cancelled);
		scene_drop(snapshot);
		scene_reclaim(&s);
	}
	canceller_stop(&c);
	cr_log_info("%u of %u were cancelled", cancelled, ROUNDS);
	scene_close(&s);
}

/* ---- Every chunk is copied once -------------------------------------------------------------- */

#define HOSTS   3
#define FLIGHTS 8

struct crowd {
	struct scene scene;
	bool workers;
	bool busy;
	uint8_t value;
};

struct host {
	struct crowd *crowd;
	struct loop loop;
	pthread_t thread;
	unsigned number;
	struct async flight[FLIGHTS];
};

static void end_flight(struct async *a)
{
	struct crowd *crowd = a->user;

	cr_assert_eq(a->error, 0);
	async_write(a, &crowd->scene, crowd->value);
}

static void wait_for_flight(struct host *h, struct async *a)
{
	if (h->crowd->workers || h->crowd->busy) {
		while (!atomic_load(&a->calls)) {
			if (!h->crowd->workers)
				loop_poll(&h->loop);
			sched_yield();
		}
	} else {
		loop_until(&h->loop, a);
	}
}

static void launch(struct host *h, struct async *a, uint64_t chunk)
{
	struct crowd *crowd = h->crowd;
	uint64_t length = chunk + 3 <= CHUNKS ? 3 * CHUNK : CHUNK;
	int rc;

	a->then = end_flight;
	a->user = crowd;
	if (crowd->workers)
		rc = async_begin_on_worker(a, &crowd->scene, 0, chunk * CHUNK, length);
	else
		rc = async_begin(a, &h->loop, 0, chunk * CHUNK, length);
	cr_assert(rc == 0 || rc == COWSNAP_PENDING, "error %d", rc);
	if (rc)
		return;
	async_write(a, &crowd->scene, crowd->value);
	atomic_store(&a->calls, 1);
}

/* Each goes over all chunks, from a place of its own. */
static void *host_main(void *argument)
{
	struct host *h = argument;

	if (!h->crowd->workers)
		loop_open(&h->loop, &h->crowd->scene, FLIGHTS / 2);
	for (uint64_t i = 0; i < CHUNKS; i++) {
		struct async *a = &h->flight[i % FLIGHTS];

		if (i >= FLIGHTS)
			wait_for_flight(h, a);
		launch(h, a, (i + h->number * CHUNKS / HOSTS) % CHUNKS);
	}
	for (unsigned i = 0; i < FLIGHTS; i++)
		wait_for_flight(h, &h->flight[i]);
	if (!h->crowd->workers)
		loop_close(&h->loop);
	return NULL;
}

static void run_hosts(struct crowd *crowd)
{
	static struct host host[HOSTS];
	struct actor writer;

	memset(host, 0, sizeof(host));
	for (unsigned i = 0; i < HOSTS; i++) {
		host[i].crowd = crowd;
		host[i].number = i;
		cr_assert_eq(pthread_create(&host[i].thread, NULL, host_main, &host[i]), 0);
	}
	/* One of those who wait is among them. */
	actor_write(&writer, &crowd->scene, 0, 0, SCENE_BYTES, crowd->value);
	cr_assert_eq(actor_join(&writer), 0);
	for (unsigned i = 0; i < HOSTS; i++)
		pthread_join(host[i].thread, NULL);
}

static void all_chunks_are_copied_once(const struct scene_options *options, bool workers, bool busy)
{
	struct crowd *crowd = calloc(1, sizeof(*crowd));
	struct scene *s = &crowd->scene;

	scene_open(s, options);
	crowd->workers = workers;
	crowd->busy = busy;
	for (unsigned round = 1; round <= ROUNDS / 30; round++) {
		struct cowsnap_snapshot *snapshot = scene_take(s, 0, 0, COWSNAP_LOSER_SNAPSHOT);

		crowd->value = (uint8_t)round;
		run_hosts(crowd);
		cr_assert_eq(scene_stats(s).copied_chunks, round * CHUNKS);
		scene_expect(snapshot, 0, SCENE_BYTES, (uint8_t)(round - 1));
		scene_drop(snapshot);
		scene_reclaim(s);
	}
	scene_close(s);
	free(crowd);
}

Test(async_threads, event_loops_copy_every_chunk_once, .timeout = 120)
{
	all_chunks_are_copied_once(&evented, false, false);
}

Test(async_threads, busy_loops_copy_every_chunk_once, .timeout = 120)
{
	const struct scene_options options = {
		.engine = COWSNAP_ENGINE_INLINE, .copy_inflight_bytes = 1};

	all_chunks_are_copied_once(&options, false, true);
}

Test(async_threads, workers_copy_every_chunk_once, .timeout = 120)
{
	all_chunks_are_copied_once(&two_workers, true, false);
}

/* ---- Workers --------------------------------------------------------------------------------- */

static void await(struct async *a)
{
	while (!atomic_load(&a->calls))
		sched_yield();
}

/* All that a thread starts goes to one worker, and is called back there. */
Test(async_threads, a_thread_has_one_worker, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	pthread_t worker;
	struct scene s;

	scene_open(&s, &two_workers);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	for (unsigned i = 0; i < 20; i++) {
		struct async a = {0};

		cr_assert_eq(async_begin_on_worker(&a, &s, 0, i * CHUNK, CHUNK), COWSNAP_PENDING);
		await(&a);
		cr_assert_eq(a.error, 0);
		cr_assert(!pthread_equal(a.called_on, pthread_self()));
		cr_assert(i == 0 || pthread_equal(a.called_on, worker));
		worker = a.called_on;
		async_write(&a, &s, NEW);
		cr_assert_eq(async_begin_on_worker(&a, &s, 0, i * CHUNK, CHUNK), 0, "saved");
		cowsnap_write_end(&a.op);
	}
	scene_expect(snapshot, 0, SCENE_BYTES, SCENE_BLANK);
	scene_drop(snapshot);
	scene_close(&s);
}

static void *called_on_which(void *argument)
{
	struct async *a = argument;

	cr_assert_eq(async_begin_on_worker(a, a->user, 0, 0, CHUNK), COWSNAP_PENDING);
	await(a);
	cowsnap_write_end(&a->op);
	return NULL;
}

/* Two threads are dealt to two workers: no load falls on one by chance. */
Test(async_threads, two_threads_have_two_workers, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct async a[2] = {0};
	pthread_t thread[2];
	struct scene s;

	for (unsigned round = 0; round < 5; round++) {
		scene_open(&s, &two_workers);
		snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
		for (unsigned i = 0; i < 2; i++) {
			a[i].user = &s;
			a[i].origin = 0;
		}
		/* The second comes while the first is still there: its number is another. */
		cr_assert_eq(async_begin_on_worker(&a[0], &s, 0, CHUNK, CHUNK), COWSNAP_PENDING);
		cr_assert_eq(pthread_create(&thread[1], NULL, called_on_which, &a[1]), 0);
		pthread_join(thread[1], NULL);
		await(&a[0]);
		cowsnap_write_end(&a[0].op);
		cr_assert(!pthread_equal(a[0].called_on, a[1].called_on));
		scene_drop(snapshot);
		scene_close(&s);
	}
}

static void *start_on_worker(void *argument)
{
	struct async *a = argument;

	cr_assert_eq(async_begin_on_worker(a, a->user, 0, 0, CHUNK), COWSNAP_PENDING);
	return NULL;
}

Test(async_threads, a_thread_ends_with_a_job_on_a_worker, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct async a = {0};
	pthread_t thread;
	struct scene s;
	int hold;

	scene_open(&s, &two_workers);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	a.user = &s;
	hold = scene_hold(s.origin_test[0], TEST_IO_READ, 0, 1);
	cr_assert_eq(pthread_create(&thread, NULL, start_on_worker, &a), 0);
	pthread_join(thread, NULL);
	scene_wait_held(s.origin_test[0], hold);
	cr_assert_eq(cowsnap_ctx_destroy(s.ctx), -EBUSY);
	async_expect_pending(&a);
	test_device_release(s.origin_test[0], hold);
	await(&a);
	cr_assert_eq(a.error, 0);
	async_write(&a, &s, NEW);
	scene_expect(snapshot, 0, SCENE_BYTES, SCENE_BLANK);
	scene_drop(snapshot);
	scene_close(&s);
}

/* Nothing else is open, and a worker has a job still: not even then does the context end. */
Test(async_threads, a_worker_with_an_operation_keeps_the_context, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct async a = {0}, b = {0};
	struct scene s;
	int hold;

	scene_open(&s, &two_workers);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	hold = scene_hold(s.origin_test[0], TEST_IO_READ, 0, 1);
	cr_assert_eq(async_begin_on_worker(&a, &s, 0, 0, CHUNK), COWSNAP_PENDING);
	scene_wait_held(s.origin_test[0], hold);
	/* Behind it, and in no gate. */
	cr_assert_eq(async_begin_on_worker(&b, &s, 0, CHUNK, CHUNK), COWSNAP_PENDING);
	cr_assert_eq(cowsnap_origin_close(s.origin[0]), -EBUSY);
	test_device_release(s.origin_test[0], hold);
	await(&a);
	await(&b);
	cowsnap_write_end(&a.op);
	cowsnap_write_end(&b.op);
	scene_drop(snapshot);
	scene_close(&s);
}

/* ---- Threads that are gone, processes that are not ours -------------------------------------- */

static void *start_in_loop(void *argument)
{
	struct async *a = argument;

	cr_assert_eq(async_begin(a, a->user, 0, 0, 2 * CHUNK), COWSNAP_PENDING);
	return NULL;
}

Test(async_threads, one_thread_starts_and_another_polls, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct async a = {0}, b = {0};
	pthread_t thread;
	struct scene s;
	struct loop l;

	scene_open(&s, &one_chunk);
	loop_open(&l, &s, 1);
	snapshot = take_waiting(&s, 0);
	a.user = b.user = &l;
	cr_assert_eq(pthread_create(&thread, NULL, start_in_loop, &a), 0);
	pthread_join(thread, NULL);
	cr_assert_eq(pthread_create(&thread, NULL, start_in_loop, &b), 0);
	pthread_join(thread, NULL);
	loop_settle(&l);
	cr_assert_eq(cowsnap_store_set_limit(s.store[0], 2 * CHUNK), 0);
	loop_until(&l, &a);
	loop_until(&l, &b);
	cr_assert(a.error == 0 && b.error == 0);
	cowsnap_write_end(&a.op);
	cowsnap_write_end(&b.op);
	scene_drop(snapshot);
	loop_close(&l);
	scene_close(&s);
}

static void child_ends(bool executes)
{
	pid_t child = fork();
	int status;

	cr_assert(child >= 0);
	if (!child) {
		if (executes)
			execl("/bin/sh", "sh", "-c", "exit 0", (char *)NULL);
		_exit(executes);
	}
	cr_assert_eq(waitpid(child, &status, 0), child);
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", status);
}

/* The child does nothing with the library; the parent notices nothing. */
Test(async_threads, fork_and_exec_while_operations_are_pending, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct async a = {0}, b = {0};
	struct scene s;
	struct loop l;

	scene_open(&s, &one_chunk);
	loop_open(&l, &s, 1);
	snapshot = take_waiting(&s, 0);
	cr_assert_eq(async_begin(&a, &l, 0, 0, 2 * CHUNK), COWSNAP_PENDING);
	cr_assert_eq(async_begin(&b, &l, 0, CHUNK, CHUNK), COWSNAP_PENDING);
	child_ends(false);
	child_ends(true);
	loop_settle(&l);
	async_expect_pending(&a);
	cr_assert_eq(cowsnap_store_set_limit(s.store[0], 2 * CHUNK), 0);
	child_ends(false);
	cr_assert(loop_readable(&l));
	loop_until(&l, &a);
	loop_until(&l, &b);
	cr_assert(a.error == 0 && b.error == 0);
	cowsnap_write_end(&a.op);
	cowsnap_write_end(&b.op);
	scene_expect(snapshot, 0, SCENE_BYTES, SCENE_BLANK);
	scene_drop(snapshot);
	loop_close(&l);
	scene_close(&s);
}

Test(async_threads, fork_while_a_worker_copies, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct async a = {0};
	struct scene s;
	int hold;

	scene_open(&s, &two_workers);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	hold = scene_hold(s.origin_test[0], TEST_IO_READ, 0, 1);
	cr_assert_eq(async_begin_on_worker(&a, &s, 0, 0, CHUNK), COWSNAP_PENDING);
	scene_wait_held(s.origin_test[0], hold);
	child_ends(false);
	child_ends(true);
	test_device_release(s.origin_test[0], hold);
	await(&a);
	cr_assert_eq(a.error, 0);
	async_write(&a, &s, NEW);
	scene_expect(snapshot, 0, SCENE_BYTES, SCENE_BLANK);
	scene_drop(snapshot);
	scene_close(&s);
}
