/* SPDX-License-Identifier: MIT
 *
 * The copier with many threads: credits, copies that stand still, buffers, counters.
 */
#include "support/fail_alloc.h"
#include "unit/copier_rig.h"

#include "copier_parts.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

/* As a thread that waits. */
static uint64_t reserve(struct cowsnap_copier *copier, uint64_t want, bool *waited)
{
	struct cs_credit credit;
	struct cs_task task;

	cs_task_init(&task, NULL, NULL);
	*waited = !cs_copier_reserve(
		copier, cs_copier_flow(copier, NULL, false), &credit, want, &task);
	if (*waited)
		cs_task_sleep(&task);
	return credit.bytes;
}

static struct cs_copier_io run(struct cowsnap_copier *copier, struct cowsnap_device *source,
	struct cowsnap_copy_target *targets, size_t count)
{
	struct cowsnap_copy copy = {.source = source, .targets = targets, .count = count};
	struct cs_task task;

	cs_task_init(&task, NULL, NULL);
	cr_assert(cs_copier_start(copier, &copy, &task));
	return cs_copier_read(&copy);
}

/* ---- Credits ----------------------------------------------------------------------------------
 */

struct small_copies {
	struct cowsnap_copier *copier;
	atomic_bool *stop;
	pthread_t thread;
};

static void *copy_small(void *argument)
{
	struct small_copies *s = argument;
	bool waited;

	while (!atomic_load(s->stop))
		cs_copier_release(s->copier, reserve(s->copier, 4096, &waited));
	return NULL;
}

/* What is set aside for CPUs counts as under way: who wants the whole bound gets it all the
 * same. */
Test(copier_threads, who_wants_the_whole_bound_gets_what_lies_idle, .timeout = 120)
{
	struct cowsnap_copier_options options = {.size = sizeof(options), .inflight_bytes = MIB};
	struct small_copies small[3];
	struct cowsnap_copier *copier;
	struct cowsnap_ctx *ctx;
	atomic_bool stop = false;
	bool waited;

	cr_assert_eq(cowsnap_ctx_create(NULL, &ctx), 0);
	cr_assert_eq(cowsnap_copier_create(ctx, &options, &copier), 0);
	for (size_t i = 0; i < sizeof(small) / sizeof(small[0]); i++) {
		small[i] = (struct small_copies){.copier = copier, .stop = &stop};
		cr_assert_eq(pthread_create(&small[i].thread, NULL, copy_small, &small[i]), 0);
	}
	for (unsigned i = 0; i < 300; i++) {
		cr_assert_eq(reserve(copier, MIB, &waited), MIB);
		cr_assert_eq(cs_copier_inflight(copier), MIB, "nobody else has any");
		cs_copier_release(copier, MIB);
	}
	atomic_store(&stop, true);
	for (size_t i = 0; i < sizeof(small) / sizeof(small[0]); i++)
		cr_assert_eq(pthread_join(small[i].thread, NULL), 0);
	cr_assert_eq(cs_copier_inflight(copier), 0);
	cowsnap_copier_destroy(copier);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

Test(copier_threads, nobody_gets_more_than_the_bound)
{
	struct cowsnap_copier_options options = {.size = sizeof(options), .inflight_bytes = 100};
	struct cowsnap_copier *copier;
	struct cowsnap_ctx *ctx;
	bool waited = true;

	cr_assert_eq(cowsnap_ctx_create(NULL, &ctx), 0);
	cr_assert_eq(cowsnap_copier_create(ctx, &options, &copier), 0);
	cr_assert_eq(reserve(copier, 60, &waited), 60);
	cr_assert_not(waited);
	cr_assert_eq(reserve(copier, 40, &waited), 40);
	cs_copier_release(copier, 60);
	cs_copier_release(copier, 40);
	cr_assert_eq(reserve(copier, UINT64_MAX, &waited), 100);
	cr_assert_not(waited);
	cs_copier_release(copier, 100);
	cowsnap_copier_destroy(copier);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

struct crowd {
	struct cowsnap_copier *copier;
	uint64_t bound;
	_Atomic uint64_t inside;
	_Atomic uint64_t seen_most;
	atomic_bool broken;
};

static void *reserve_often(void *argument)
{
	struct crowd *c = argument;
	struct seed seed = {(uint64_t)(uintptr_t)&seed};

	for (int i = 0; i < 5000; i++) {
		uint64_t want = 1 + seed_below(&seed, 2 * c->bound);
		bool waited;
		uint64_t got = reserve(c->copier, want, &waited);

		if (got != (want < c->bound ? want : c->bound) ||
			atomic_fetch_add(&c->inside, got) + got > c->bound)
			atomic_store(&c->broken, true);
		atomic_fetch_sub(&c->inside, got);
		cs_copier_release(c->copier, got);
	}
	return NULL;
}

/* A lost wake-up hangs the test. */
static void run_crowd(uint64_t bound)
{
	struct cowsnap_copier_options options = {.size = sizeof(options), .inflight_bytes = bound};
	struct crowd crowd = {.bound = bound};
	struct cowsnap_ctx *ctx;
	pthread_t thread[8];

	cr_assert_eq(cowsnap_ctx_create(NULL, &ctx), 0);
	cr_assert_eq(cowsnap_copier_create(ctx, &options, &crowd.copier), 0);
	for (int i = 0; i < 8; i++)
		cr_assert_eq(pthread_create(&thread[i], NULL, reserve_often, &crowd), 0);
	for (int i = 0; i < 8; i++)
		pthread_join(thread[i], NULL);
	cr_assert_not(crowd.broken);
	cowsnap_copier_destroy(crowd.copier);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

Test(copier_threads, credits_of_one_byte)
{
	run_crowd(1);
}

Test(copier_threads, credits_of_many_bytes)
{
	run_crowd(1000);
}

/* A thread that asks for credits, and what can be known of it from outside. */
struct asker {
	struct cowsnap_copier *copier;
	uint64_t want;
	pthread_t thread;
	_Atomic int tid; /* 0: it has not come to the question yet */
	atomic_bool served;
	bool waited;
};

static void *ask(void *argument)
{
	struct asker *a = argument;
	uint64_t got;

	atomic_store(&a->tid, (int)gettid());
	got = reserve(a->copier, a->want, &a->waited);
	atomic_store(&a->served, true);
	cs_copier_release(a->copier, got);
	return NULL;
}

/* The state letter of /proc: S sleeps, and has nothing else to sleep on than the credits. */
static bool asleep(int tid)
{
	char path[64], state = '?';
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
	file = fopen(path, "r");
	if (!file)
		return false;
	if (fscanf(file, "%*d (%*[^)]) %c", &state) != 1)
		state = '?';
	fclose(file);
	return state == 'S';
}

/* Returns: true if it waits, false if it was served. */
static bool start_asking(struct asker *a, struct cowsnap_copier *copier, uint64_t want)
{
	*a = (struct asker){.copier = copier, .want = want};
	cr_assert_eq(pthread_create(&a->thread, NULL, ask, a), 0);
	while (!atomic_load(&a->served)) {
		int tid = atomic_load(&a->tid);

		if (tid && asleep(tid))
			return true;
	}
	return false;
}

Test(copier_threads, first_come_first_served)
{
	struct cowsnap_copier_options options = {.size = sizeof(options), .inflight_bytes = 100};
	struct cowsnap_copier *copier;
	struct asker large, small;
	struct cowsnap_ctx *ctx;
	bool waited;

	cr_assert_eq(cowsnap_ctx_create(NULL, &ctx), 0);
	cr_assert_eq(cowsnap_copier_create(ctx, &options, &copier), 0);
	cr_assert_eq(reserve(copier, 60, &waited), 60);
	cr_assert_not(start_asking(&small, copier, 10), "it fits and nobody is before it");
	pthread_join(small.thread, NULL);
	cr_assert_not(small.waited);
	cr_assert(start_asking(&large, copier, 80));
	cr_assert(start_asking(&small, copier, 10), "it fits, but would pass the large one");
	cr_assert_not(large.served);
	cs_copier_release(copier, 60);
	pthread_join(large.thread, NULL);
	pthread_join(small.thread, NULL);
	cr_assert(large.waited && small.waited);
	cowsnap_copier_destroy(copier);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

struct line {
	struct cowsnap_copier *copier;
	pthread_barrier_t barrier;
};

#define LINE_ROUNDS 500

static void *stand_in_line(void *argument)
{
	struct line *line = argument;

	for (int i = 0; i < LINE_ROUNDS; i++) {
		bool waited;

		pthread_barrier_wait(&line->barrier);
		reserve(line->copier, 20, &waited);
		/* Nobody releases before all have been served. */
		pthread_barrier_wait(&line->barrier);
		cs_copier_release(line->copier, 20);
	}
	return NULL;
}

Test(copier_threads, one_release_may_serve_many)
{
	struct cowsnap_copier_options options = {.size = sizeof(options), .inflight_bytes = 100};
	struct line line = {0};
	struct cowsnap_ctx *ctx;
	pthread_t thread[5];
	bool waited;

	cr_assert_eq(cowsnap_ctx_create(NULL, &ctx), 0);
	cr_assert_eq(cowsnap_copier_create(ctx, &options, &line.copier), 0);
	pthread_barrier_init(&line.barrier, NULL, 6);
	for (int i = 0; i < 5; i++)
		cr_assert_eq(pthread_create(&thread[i], NULL, stand_in_line, &line), 0);
	for (int i = 0; i < LINE_ROUNDS; i++) {
		cr_assert_eq(reserve(line.copier, 100, &waited), 100);
		pthread_barrier_wait(&line.barrier);
		cs_copier_release(line.copier, 100);
		pthread_barrier_wait(&line.barrier);
	}
	for (int i = 0; i < 5; i++)
		pthread_join(thread[i], NULL);
	pthread_barrier_destroy(&line.barrier);
	cowsnap_copier_destroy(line.copier);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

struct worker {
	struct rig *rig;
	pthread_t thread;
	uint64_t from;
	uint64_t length;
	uint64_t offset;
	int rounds;
	bool done;
};

static void *copy_often(void *argument)
{
	struct worker *w = argument;

	for (int i = 0; i < w->rounds; i++) {
		struct cowsnap_copy_target t[2] = {
			target(w->rig, 0, w->from, w->length, w->offset),
			target(w->rig, 1, w->from, w->length, w->offset),
		};

		if (copy(w->rig, t, 2) || t[0].error || t[1].error)
			return NULL;
	}
	w->done = true;
	return NULL;
}

static void start(struct worker *w)
{
	cr_assert_eq(pthread_create(&w->thread, NULL, copy_often, w), 0);
}

static void join(struct worker *w)
{
	pthread_join(w->thread, NULL);
	cr_assert(w->done);
}

Test(copier_threads, a_bound_of_one_job_with_many_threads)
{
	struct worker w[8];
	struct rig r;

	/* Less than a job even. */
	set_up(&r, 512, 16 * KIB);
	for (uint64_t i = 0; i < 8; i++) {
		w[i] = (struct worker){.rig = &r,
			.from = i * 100000,
			.length = 50000 + i,
			.offset = i * 60000,
			.rounds = 20};
		start(&w[i]);
	}
	for (uint64_t i = 0; i < 8; i++) {
		join(&w[i]);
		expect_bytes(&r, 0, w[i].from, w[i].length, w[i].offset);
		expect_bytes(&r, 1, w[i].from, w[i].length, w[i].offset);
	}
	tear_down(&r);
}

/* ---- Held copies ------------------------------------------------------------------------------
 */

Test(copier_threads, a_copy_that_stands_still_holds_up_nobody)
{
	struct worker held, other;
	struct rig r;
	int at;

	set_up(&r, MIB, 0);
	at = test_device_hold(r.source, TEST_IO_READ, 0, 4096, TEST_HOLD_AFTER);
	held = (struct worker){.rig = &r, .from = 0, .length = 200000, .rounds = 1};
	start(&held);
	cr_assert(test_device_wait_held(r.source, at));
	other = (struct worker){
		.rig = &r, .from = MIB, .length = 200000, .offset = MIB, .rounds = 10};
	start(&other);
	join(&other);
	expect_bytes(&r, 1, MIB, 200000, MIB);
	test_device_release(r.source, at);
	join(&held);
	expect_bytes(&r, 0, 0, 200000, 0);
	tear_down(&r);
}

Test(copier_threads, a_full_bound_is_waited_for)
{
	struct asker asker;
	struct worker held;
	struct rig r;
	int at;

	set_up(&r, 100000, 0);
	at = test_device_hold(r.to[1], TEST_IO_WRITE, 0, 4096, TEST_HOLD_BEFORE);
	held = (struct worker){.rig = &r, .from = 0, .length = 99999, .rounds = 1};
	start(&held);
	cr_assert(test_device_wait_held(r.to[1], at));
	cr_assert(start_asking(&asker, r.copier, 2));
	test_device_release(r.to[1], at);
	join(&held);
	pthread_join(asker.thread, NULL);
	cr_assert(asker.waited);
	tear_down(&r);
}

/* ---- Memory -----------------------------------------------------------------------------------
 */

Test(copier_threads, without_memory_nothing_is_left_behind)
{
	struct fail_alloc *mem = fail_alloc_create(false);
	struct cs_base base = {.alloc = fail_alloc_table(mem)};
	struct cowsnap_copier *copier = NULL;
	struct cowsnap_copy_target t;
	struct cs_copier_io io;
	struct rig r;

	set_up(&r, 0, 0);
	fail_alloc_at(mem, 1, false);
	cr_assert_eq(cs_copier_create(&base, NULL, &copier), -ENOMEM);
	cr_assert_eq(cs_copier_create(&base, NULL, &copier), 0);
	fail_alloc_at(mem, 1, true);
	t = target(&r, 0, 0, MIB, 0);
	io = run(copier, test_device(r.source), &t, 1);
	cr_assert_eq(io.reads, 0);
	cr_assert_eq(t.error, -ENOMEM);
	cr_assert_eq(test_device_calls(r.source, TEST_IO_READ), 0);
	fail_alloc_at(mem, 1, false);
	io = run(copier, test_device(r.source), &t, 1);
	cr_assert_eq(t.error, 0);
	cr_assert_eq(io.reads, 16, "with a small buffer");
	cr_assert_eq(io.read_bytes, MIB);
	expect_bytes(&r, 0, 0, MIB, 0);
	/* What is kept is used again. */
	io = run(copier, test_device(r.source), &t, 1);
	cr_assert_eq(io.reads, 1);
	fail_alloc_at(mem, 1, true);
	io = run(copier, test_device(r.source), &t, 1);
	t.length = 4096;
	io = run(copier, test_device(r.source), &t, 1);
	cr_assert_eq(t.error, 0);
	cr_assert_eq(fail_alloc_calls(mem), 0);
	cs_copier_destroy(copier);
	cr_assert_eq(fail_alloc_live(mem), 0);
	fail_alloc_destroy(mem);
	tear_down(&r);
}

Test(copier_threads, the_public_copy_says_that_memory_is_short)
{
	struct fail_alloc *mem = fail_alloc_create(false);
	struct cowsnap_ctx_options options = {
		.size = sizeof(options), .allocator = fail_alloc_table(mem)};
	struct cowsnap_copy_target t;
	struct cowsnap_copier *copier;
	struct cowsnap_copy copy;
	struct cowsnap_ctx *ctx;
	struct rig r;

	set_up(&r, 0, 0);
	cr_assert_eq(cowsnap_ctx_create(&options, &ctx), 0);
	cr_assert_eq(cowsnap_copier_create(ctx, NULL, &copier), 0);
	t = target(&r, 0, 0, 100, 0);
	copy = (struct cowsnap_copy){.source = test_device(r.source), .targets = &t, .count = 1};
	fail_alloc_at(mem, 1, true);
	cr_assert_eq(cowsnap_copier_copy(copier, &copy), -ENOMEM);
	fail_alloc_at(mem, 0, false);
	cr_assert_eq(cowsnap_copier_copy(copier, &copy), 0);
	cowsnap_copier_destroy(copier);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
	fail_alloc_destroy(mem);
	tear_down(&r);
}

/* ---- Threads ----------------------------------------------------------------------------------
 */

Test(copier_threads, io_is_counted_by_thread)
{
	struct cowsnap_thread_io io[3];
	struct worker w[2];
	struct rig r;
	int at, less;

	set_up(&r, 0, 16 * KIB);
	/* The first is held until the second is done: threads one after the other may be one. */
	at = test_device_hold(r.source, TEST_IO_READ, 0, 1, TEST_HOLD_BEFORE);
	for (int i = 0; i < 2; i++) {
		w[i] = (struct worker){
			.rig = &r, .length = (uint64_t)(i + 1) * 16384, .rounds = 10};
		start(&w[i]);
		cr_assert(i || test_device_wait_held(r.source, at));
	}
	join(&w[1]);
	test_device_release(r.source, at);
	join(&w[0]);
	io[0].thread = 12345;
	cr_assert_eq(cs_copier_threads(r.copier, io, 0), 2);
	cr_assert_eq(io[0].thread, 12345, "no room, nothing written");
	cr_assert_eq(cs_copier_threads(r.copier, io, 3), 2);
	less = io[0].reads > io[1].reads;
	cr_assert_eq(io[less].reads, 10);
	cr_assert_eq(io[less].read_bytes, 163840);
	cr_assert_eq(io[less].writes, 20);
	cr_assert_eq(io[less].write_bytes, 327680);
	cr_assert_eq(io[!less].reads, 20);
	cr_assert_eq(io[!less].write_bytes, 655360);
	cr_assert_neq(io[0].thread, io[1].thread);
	cr_assert_neq(io[0].thread, 0);
	tear_down(&r);
}

#define MANY 270

struct many {
	struct rig *rig;
	pthread_barrier_t all_there;
	pthread_barrier_t all_done;
	_Atomic int failed;
};

static void *copy_among_many(void *argument)
{
	struct many *many = argument;
	struct cowsnap_copy_target t = target(many->rig, 0, 0, 10, 0);

	pthread_barrier_wait(&many->all_there);
	if (copy(many->rig, &t, 1) || t.error)
		atomic_fetch_add(&many->failed, 1);
	pthread_barrier_wait(&many->all_done);
	return NULL;
}

Test(copier_threads, the_last_entry_has_those_without_one)
{
	static struct cowsnap_thread_io io[MANY];
	static pthread_t thread[MANY];
	struct many many = {0};
	pthread_attr_t attr;
	uint64_t reads = 0;
	struct rig r;

	set_up(&r, 0, 0);
	many.rig = &r;
	pthread_barrier_init(&many.all_there, NULL, MANY);
	pthread_barrier_init(&many.all_done, NULL, MANY);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 256 * 1024);
	for (int i = 0; i < MANY; i++)
		cr_assert_eq(pthread_create(&thread[i], &attr, copy_among_many, &many), 0);
	for (int i = 0; i < MANY; i++)
		pthread_join(thread[i], NULL);
	cr_assert_eq(many.failed, 0);
	cr_assert_eq(cs_copier_threads(r.copier, io, MANY), 256);
	for (int i = 0; i < 256; i++) {
		cr_assert_eq(io[i].reads, i < 255 ? 1 : MANY - 255);
		cr_assert_eq(io[i].thread != 0, i < 255);
		reads += io[i].reads;
	}
	cr_assert_eq(reads, MANY);
	pthread_attr_destroy(&attr);
	pthread_barrier_destroy(&many.all_there);
	pthread_barrier_destroy(&many.all_done);
	tear_down(&r);
}
