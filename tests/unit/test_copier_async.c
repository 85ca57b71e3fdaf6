/* SPDX-License-Identifier: MIT
 *
 * Copies without waiting: their refusals, cancelling, want of memory, the background, workers.
 */
#include "support/fail_alloc.h"
#include "unit/copier_async.h"

#include "copier_parts.h"

/* ---- Refusals -------------------------------------------------------------------------------- */

Test(copier_async, bad_calls_are_refused)
{
	struct cowsnap_queue *queue;
	struct cowsnap_ctx *other;
	struct job job = {0};
	struct scene s;

	scene_open(&s, &(struct setting){.mode = SLOW_INLINE});
	job_add(&job, &s, 0, 0, 100, 0);
#define START(queue, done) \
	cowsnap_copier_copy_async(s.copier, queue, &job.copy, &job.op, done, &job)
	cr_assert_eq(START(NULL, job_done), -EINVAL, "no queue, no workers");
	cr_assert_eq(START(s.queue, NULL), -EINVAL);
	job.copy.count = 0;
	cr_assert_eq(START(s.queue, job_done), -EINVAL);
	job.copy.count = 1;
	job.target[0].length = 0;
	cr_assert_eq(START(s.queue, job_done), -EINVAL);
	job.target[0].length = UINT64_MAX;
	job.target[0].offset = 1;
	cr_assert_eq(START(s.queue, job_done), -EOVERFLOW);
	job.target[0].length = 100;
	cr_assert_eq(cowsnap_ctx_create(NULL, &other), 0);
	cr_assert_eq(cowsnap_queue_create(other, 1, &queue), 0);
	cr_assert_eq(START(queue, job_done), -EXDEV);
	cr_assert_eq(cowsnap_queue_close(queue), 0);
	cr_assert_eq(cowsnap_ctx_destroy(other), 0);
	cr_assert_eq(cowsnap_queue_create(s.ctx, 1, &queue), 0);
	cr_assert_eq(cowsnap_queue_close(queue), 0);
	cr_assert_eq(START(queue, job_done), -EBADF);
	settle_queue(&s);
	cr_assert_eq(job.calls, 0);
	cr_assert_eq(s.source.calls[COWSNAP_IO_READ], 0);
	/* A queue with an operation is not closed. */
	job_start(&job, &s);
	cr_assert_eq(cowsnap_queue_close(s.queue), -EBUSY);
	wait_for(&s, &job);
	scene_close(&s);
#undef START
}

Test(copier_async, a_copier_may_end_before_its_queue)
{
	struct cowsnap_copier_options options = {.size = sizeof(options), .job_bytes = 128 * KIB};
	struct job job = {0};
	struct scene s;

	scene_open(&s, &(struct setting){.mode = SLOW_INLINE});
	job_add(&job, &s, 0, 0, MIB, 0);
	job_start(&job, &s);
	wait_for(&s, &job);
	cowsnap_copier_destroy(s.copier);
	/* What the queue keeps of the first does for the next, whose jobs are shorter. */
	cr_assert_eq(cowsnap_copier_create(s.ctx, &options, &s.copier), 0);
	atomic_store(&job.calls, 0);
	job_start(&job, &s);
	wait_for(&s, &job);
	expect_all(&s, &job);
	cr_assert_eq(s.source.calls[COWSNAP_IO_READ], 1 + 8);
	scene_close(&s);
}

/* ---- Credits and cancelling ------------------------------------------------------------------ */

static void cancel(struct scene *s, struct job *job)
{
	cr_assert_eq(cowsnap_op_cancel(&job->op), 0);
	cr_assert_eq(cowsnap_op_cancel(&job->op), 0, "twice is as once");
	settle_queue(s);
}

static void expect_cancelled(const struct job *job)
{
	cr_assert_eq(job->calls, 1);
	cr_assert_eq(job->error, -ECANCELED);
	for (size_t i = 0; i < job->copy.count; i++)
		cr_assert_eq(job->target[i].error, -ECANCELED);
}

Test(copier_async, cancelled_before_it_began)
{
	struct job job = {0};
	struct scene s;

	for (int background = 0; background < 2; background++) {
		job = (struct job){.copy.background = background};
		scene_open(&s, &(struct setting){.mode = SLOW_INLINE});
		job_add(&job, &s, 0, 0, 100, 0);
		/* The nudge comes before the first step, or after it, which has done all. */
		job_start(&job, &s);
		cancel(&s, &job);
		cr_assert_eq(job.calls, 1);
		cr_assert(job.error == 0 || job.error == -ECANCELED);
		cr_assert_eq(job.target[0].error, job.error);
		scene_close(&s);
	}
}

Test(copier_async, cancelled_while_it_waits_for_credits)
{
	struct job first = {0}, second = {0}, third = {0};
	struct scene s;

	for (int background = 0; background < 2; background++) {
		scene_open(&s, &(struct setting){.inflight_bytes = 4096});
		first = second = third = (struct job){0};
		second.copy.background = background;
		job_add(&first, &s, 0, 0, 10000, 0);
		job_add(&second, &s, 1, 0, 10000, 0);
		job_add(&third, &s, 2, 0, 10000, 0);
		job_start(&first, &s);
		job_start(&second, &s);
		job_start(&third, &s);
		settle_queue(&s);
		cr_assert_eq(s.source.count, 1, "the first has all credits");
		cancel(&s, &second);
		expect_cancelled(&second);
		finish(&s, &first);
		expect_all(&s, &first);
		finish(&s, &third);
		expect_all(&s, &third);
		cr_assert_eq(s.to[1].calls[COWSNAP_IO_WRITE], 0);
		scene_close(&s);
	}
}

Test(copier_async, cancelled_when_the_credits_are_on_their_way)
{
	struct job first = {0}, second = {0};
	struct scene s;

	for (int background = 0; background < 2; background++) {
		scene_open(&s, &(struct setting){.inflight_bytes = 4096});
		first = second = (struct job){0};
		second.copy.background = background;
		job_add(&first, &s, 0, 0, 4096, 0);
		job_add(&second, &s, 1, 0, 10000, 0);
		job_start(&first, &s);
		job_start(&second, &s);
		settle_queue(&s);
		slow_complete(&s.source, 0);
		settle_queue(&s);
		slow_complete(&s.to[0], 0);
		/* In one poll: the last write ends and wakes the second, and the nudge. */
		cr_assert_eq(cowsnap_op_cancel(&second.op), 0);
		settle_queue(&s);
		cr_assert_eq(first.calls, 1);
		expect_cancelled(&second);
		scene_close(&s);
	}
}

Test(copier_async, cancelled_between_pieces)
{
	struct job job = {0};
	struct scene s;

	for (int background = 0; background < 2; background++) {
		scene_open(&s, &(struct setting){.job_bytes = 16 * KIB});
		job = (struct job){.copy.background = background};
		job_add(&job, &s, 0, 0, MIB, 0);
		/* This one gets all; and this one all that was under way. */
		job_add(&job, &s, 1, 1000, 20000, 0);
		job_add(&job, &s, 2, 0, 128 * KIB, 0);
		job_start(&job, &s);
		settle_queue(&s);
		cr_assert_eq(s.source.count, 8);
		cancel(&s, &job);
		cr_assert_eq(job.calls, 0, "what is under way ends first");
		finish(&s, &job);
		cr_assert_eq(job.error, -ECANCELED);
		cr_assert_eq(job.target[0].error, -ECANCELED);
		cr_assert_eq(job.target[1].error, 0);
		cr_assert_eq(job.target[2].error, 0);
		cr_assert_eq(s.source.calls[COWSNAP_IO_READ], 8);
		expect_copied(&s, &job, 1);
		expect_copied(&s, &job, 2);
		scene_close(&s);
	}
}

Test(copier_async, cancelled_when_all_has_begun)
{
	struct job job = {0};
	struct scene s;

	scene_open(&s, &(struct setting){.job_bytes = 16 * KIB});
	job_add(&job, &s, 0, 0, 32 * KIB, 0);
	job_start(&job, &s);
	settle_queue(&s);
	cancel(&s, &job);
	finish(&s, &job);
	expect_all(&s, &job);
	scene_close(&s);
}

Test(copier_async, cancelled_while_it_waits_for_a_piece)
{
	enum { JOBS = 256 };
	struct job *job = calloc(JOBS + 2, sizeof(*job));
	struct scene s;

	for (int background = 0; background < 2; background++) {
		memset(job, 0, (JOBS + 2) * sizeof(*job));
		scene_open(&s, &(struct setting){0});
		job[JOBS].copy.background = background;
		for (uint64_t i = 0; i < JOBS + 2; i++) {
			job_add(&job[i], &s, 0, i * 4096, 4096, i * 4096);
			job_start(&job[i], &s);
		}
		settle_queue(&s);
		cr_assert_eq(s.source.count, JOBS);
		cancel(&s, &job[JOBS]);
		expect_cancelled(&job[JOBS]);
		for (int i = 0; i < JOBS + 2; i++) {
			if (i == JOBS)
				continue;
			finish(&s, &job[i]);
			expect_all(&s, &job[i]);
		}
		scene_close(&s);
	}
	free(job);
}

/* Cancels come from another thread, at any moment. */
static void *cancel_later(void *argument)
{
	struct job *job = argument;

	cowsnap_op_cancel(&job->op);
	return NULL;
}

Test(copier_async, cancelled_by_another_thread)
{
	struct scene s;

	scene_open(&s,
		&(struct setting){.mode = SLOW_THREAD, .job_bytes = 4096, .inflight_bytes = 20000});
	for (int round = 0; round < 60; round++) {
		struct job job = {.copy.background = round % 2};
		struct job other = {0};
		pthread_t thread;

		job_add(&job, &s, 0, 0, MIB / 4, 0);
		job_add(&other, &s, 1, 0, 10000, 0);
		job_start(&job, &s);
		job_start(&other, &s);
		cr_assert_eq(pthread_create(&thread, NULL, cancel_later, &job), 0);
		wait_for(&s, &other);
		pthread_join(thread, NULL);
		wait_for(&s, &job);
		if (job.error)
			cr_assert_eq(job.target[0].error, -ECANCELED);
		else
			expect_all(&s, &job);
		expect_all(&s, &other);
	}
	scene_close(&s);
}

/* ---- Memory ---------------------------------------------------------------------------------- */

/* However many allocations succeed: all is copied, or the copy says why not. */
Test(copier_async, every_allocation_fails_once)
{
	struct fail_alloc *mem = fail_alloc_create(false);
	bool failed = true;

	for (uint64_t n = 1; failed; n++) {
		struct job job = {0}, other = {0};
		struct scene s;

		scene_open(&s,
			&(struct setting){.job_bytes = 100 * KIB, .alloc = fail_alloc_table(mem)});
		job_add(&job, &s, 0, 0, MIB, 0);
		job_add(&job, &s, 1, 0, 5000, 0);
		job_add(&other, &s, 2, 0, 1000, 0);
		fail_alloc_at(mem, n, true);
		job_start(&job, &s);
		job_start(&other, &s);
		finish(&s, &job);
		finish(&s, &other);
		failed = fail_alloc_failed(mem) != 0;
		fail_alloc_at(mem, 0, false);
		if (n <= 2) {
			/* Without the pool, or a piece for it. */
			cr_assert_eq(job.error, -ENOMEM);
			cr_assert_eq(job.target[0].error, -ENOMEM);
			cr_assert_eq(job.target[1].error, -ENOMEM);
			cr_assert_eq(s.source.calls[COWSNAP_IO_READ], 0);
		} else {
			expect_all(&s, &job);
			expect_all(&s, &other);
			cr_assert_leq(s.source.most, n - 2, "one for each that there is");
		}
		scene_close(&s);
		cr_assert_eq(fail_alloc_live(mem), 0);
	}
	fail_alloc_destroy(mem);
}

Test(copier_async, who_waits_for_a_buffer_gets_the_next)
{
	struct fail_alloc *mem = fail_alloc_create(false);
	struct job job[3] = {0};
	struct scene s;

	scene_open(&s, &(struct setting){.job_bytes = 16 * KIB, .alloc = fail_alloc_table(mem)});
	for (int i = 0; i < 3; i++) {
		job_add(&job[i], &s, i, (uint64_t)i * 1000, 48 * KIB, 0);
		job_start(&job[i], &s);
	}
	fail_alloc_at(mem, 3, true);
	/* One piece for all: they take turns. */
	for (int n = 0; n < 9; n++) {
		settle_queue(&s);
		cr_assert_eq(s.source.count, 1);
		cr_assert_eq(s.source.held[0]->offset,
			(uint64_t)(n % 3) * 1000 + (uint64_t)(n / 3) * 16 * KIB);
		slow_complete(&s.source, 0);
		settle_queue(&s);
		cr_assert_eq(s.to[n % 3].count, 1);
		slow_complete(&s.to[n % 3], 0);
	}
	for (int i = 0; i < 3; i++) {
		wait_for(&s, &job[i]);
		expect_all(&s, &job[i]);
	}
	fail_alloc_at(mem, 0, false);
	scene_close(&s);
	fail_alloc_destroy(mem);
}

Test(copier_async, the_second_copy_allocates_nothing)
{
	struct fail_alloc *mem = fail_alloc_create(false);
	struct scene s;

	scene_open(&s, &(struct setting){.mode = SLOW_INLINE, .alloc = fail_alloc_table(mem)});
	for (int round = 0; round < 3; round++) {
		struct job small = {0}, large = {0}, none = {0};

		fail_alloc_at(mem, round ? 1 : 0, true);
		job_add(&small, &s, 0, 0, 4096, 0);
		job_add(&large, &s, 1, 0, MIB, 0);
		job_add(&none, &s, 2, 0, MIB, 0);
		none.copy.source = NULL;
		job_start(&small, &s);
		job_start(&large, &s);
		job_start(&none, &s);
		settle_queue(&s);
		cr_assert_eq(small.calls + large.calls + none.calls, 3);
		expect_all(&s, &small);
		expect_all(&s, &large);
		cr_assert_eq(none.target[0].error, 0);
		cr_assert(!round || fail_alloc_calls(mem) == 0);
	}
	fail_alloc_at(mem, 0, false);
	scene_close(&s);
	fail_alloc_destroy(mem);
}

/* ---- Background ------------------------------------------------------------------------------ */

Test(copier_async, the_background_has_credits_for_a_piece_at_a_time)
{
	struct job back = {.copy.background = true}, job = {0};
	struct scene s;

	scene_open(&s, &(struct setting){.job_bytes = 16 * KIB, .inflight_bytes = 40 * KIB});
	job_add(&back, &s, 0, 0, MIB, 0);
	job_add(&job, &s, 1, MIB, 16 * KIB, 0);
	job_start(&back, &s);
	settle_queue(&s);
	cr_assert_eq(s.source.count, 2);
	/* It comes next, though the background copy has begun and is far from done. */
	job_start(&job, &s);
	settle_queue(&s);
	cr_assert_eq(s.source.count, 2);
	slow_complete(&s.source, 0);
	settle_queue(&s);
	slow_complete(&s.to[0], 0);
	settle_queue(&s);
	cr_assert_eq(s.source.held[1]->offset, MIB);
	finish(&s, &job);
	cr_assert_eq(back.calls, 0);
	finish(&s, &back);
	expect_all(&s, &job);
	expect_all(&s, &back);
	scene_close(&s);
}

/* Held back for ever by its throttle, it holds up nobody and no poll; a change lets it go on. */
static void throttled(bool blocking, bool zero)
{
	struct job back = {.copy.background = true}, job = {0};
	struct scene s;

	scene_open(&s, &(struct setting){.mode = SLOW_INLINE,
			       .job_bytes = 16 * KIB,
			       .inflight_bytes = 16 * KIB,
			       .blocking = blocking});
	cr_assert_eq(cowsnap_copier_throttle(s.copier, 1, 100), 0);
	job_add(&back, &s, 0, 0, 128 * KIB, 0);
	if (zero)
		back.copy.source = NULL;
	job_start(&back, &s);
	settle_queue(&s);
	cr_assert_eq(s.source.calls[COWSNAP_IO_READ] + s.to[0].calls[COWSNAP_IO_ZERO], 1,
		"the first is paid for afterwards");
	job_add(&job, &s, 1, 0, MIB, 0);
	job_start(&job, &s);
	settle_queue(&s);
	cr_assert_eq(job.calls, 1);
	expect_all(&s, &job);
	cr_assert_eq(cowsnap_copier_copy(s.copier, &job.copy), 0);
	cr_assert_eq(back.calls, 0);
	/* From the next piece on. */
	cr_assert_eq(cowsnap_copier_throttle(s.copier, 1, 100), 0);
	settle_queue(&s);
	cr_assert_eq(s.to[0].calls[COWSNAP_IO_WRITE] + s.to[0].calls[COWSNAP_IO_ZERO], 2);
	cr_assert_eq(cowsnap_copier_throttle(s.copier, 0, 100), 0);
	settle_queue(&s);
	cr_assert_eq(back.calls, 1);
	cr_assert_eq(back.error, 0);
	scene_close(&s);
}

Test(copier_async, a_throttled_copy_holds_up_nobody)
{
	throttled(false, false);
	throttled(true, false);
	throttled(false, true);
}

Test(copier_async, a_throttled_copy_is_cancelled)
{
	struct job back = {.copy.background = true};
	struct scene s;

	scene_open(&s, &(struct setting){.mode = SLOW_INLINE, .job_bytes = 16 * KIB});
	/* With a deadline, and beyond all deadlines. */
	for (uint64_t rate = 1; rate <= 1000; rate += 999) {
		back = (struct job){.copy.background = true};
		cr_assert_eq(cowsnap_copier_throttle(s.copier, rate, 50), 0);
		job_add(&back, &s, 0, 0, 64 * KIB, 0);
		job_start(&back, &s);
		settle_queue(&s);
		cr_assert_eq(back.calls, 0);
		cancel(&s, &back);
		expect_cancelled(&back);
	}
	/* The change of the throttle and the cancel in one poll. */
	back = (struct job){.copy.background = true};
	job_add(&back, &s, 0, 0, 64 * KIB, 0);
	cr_assert_eq(cowsnap_copier_throttle(s.copier, 1, 100), 0);
	job_start(&back, &s);
	settle_queue(&s);
	cr_assert_eq(cowsnap_copier_throttle(s.copier, 0, 100), 0);
	cancel(&s, &back);
	cr_assert_eq(back.calls, 1);
	scene_close(&s);
}

/* The deadlines come by themselves: 16 pieces of 16 KiB, a thousandth of a second for each. */
Test(copier_async, a_throttled_copy_gets_there)
{
	for (int share = 40; share <= 100; share += 60) {
		struct job back = {.copy.background = true};
		struct scene s;

		scene_open(&s, &(struct setting){.mode = SLOW_THREAD, .job_bytes = 16 * KIB});
		cr_assert_eq(cowsnap_copier_throttle(s.copier, 16 * MIB, (unsigned)share), 0);
		job_add(&back, &s, 0, 0, 256 * KIB, 0);
		job_start(&back, &s);
		wait_for(&s, &back);
		expect_all(&s, &back);
		cr_assert_eq(cowsnap_copier_copy(s.copier, &back.copy), 0);
		scene_close(&s);
	}
}

static void *copy_and_wait(void *argument)
{
	struct job *job = argument;

	job->error = cowsnap_copier_copy((struct cowsnap_copier *)job->op.words[0], &job->copy);
	atomic_store(&job->calls, 1);
	return NULL;
}

Test(copier_async, a_thread_that_waits_is_throttled_too)
{
	struct job back = {.copy.background = true};
	bool waits = false;
	pthread_t thread;
	struct scene s;

	scene_open(&s, &(struct setting){.job_bytes = 16 * KIB, .inflight_bytes = 16 * KIB});
	cr_assert_eq(cowsnap_copier_throttle(s.copier, 1, 100), 0);
	job_add(&back, &s, 0, 0, 64 * KIB, 0);
	back.op.words[0] = (uintptr_t)s.copier;
	cr_assert_eq(pthread_create(&thread, NULL, copy_and_wait, &back), 0);
	while (!waits) {
		cs_mutex_lock(&s.copier->throttle_lock);
		waits = s.copier->throttled.first;
		cs_mutex_unlock(&s.copier->throttle_lock);
	}
	cr_assert_eq(cs_copier_inflight(s.copier), 0, "nobody waits for it");
	cr_assert_eq(atomic_load(&back.calls), 0);
	cr_assert_eq(cowsnap_copier_throttle(s.copier, 0, 100), 0);
	pthread_join(thread, NULL);
	expect_all(&s, &back);
	scene_close(&s);
}

/* ---- Threads --------------------------------------------------------------------------------- */

struct looper {
	struct scene *scene;
	struct scene own; /* with a queue of its own; devices and copier are shared */
	uint64_t number;
	pthread_t thread;
};

static void *loop(void *argument)
{
	struct looper *l = argument;
	struct pollfd fd;

	fd = (struct pollfd){.fd = cowsnap_queue_fd(l->own.queue), .events = POLLIN};
	for (int round = 0; round < 30; round++) {
		struct job job[4] = {0};

		for (uint64_t i = 0; i < 4; i++) {
			job[i].copy.background = i == 3;
			job_add(&job[i], l->scene, (int)(i % TARGETS), i * 9999, 30000,
				(l->number * 4 + i) * 30000);
			cr_assert_eq(cowsnap_copier_copy_async(l->scene->copier, l->own.queue,
					     &job[i].copy, &job[i].op, job_done, &job[i]),
				COWSNAP_PENDING);
		}
		for (int i = 0; i < 4; i++) {
			while (!atomic_load(&job[i].calls)) {
				cr_assert_geq(cowsnap_queue_poll(l->own.queue), 0);
				if (!atomic_load(&job[i].calls))
					cr_assert_eq(poll(&fd, 1, 30000), 1);
			}
			cr_assert(pthread_equal(job[i].thread, pthread_self()));
			expect_all(l->scene, &job[i]);
		}
	}
	return NULL;
}

/* Queues, threads that wait and background share a bound of one job. */
Test(copier_async, many_queues_and_a_bound_of_one_job)
{
	struct cowsnap_thread_io io[8];
	struct looper l[4] = {0};
	struct job job = {0};
	struct scene s;

	scene_open(&s,
		&(struct setting){.mode = SLOW_THREAD, .job_bytes = 8192, .inflight_bytes = 8192});
	for (uint64_t i = 0; i < 4; i++) {
		l[i].scene = &s;
		l[i].number = i;
		cr_assert_eq(cowsnap_queue_create(s.ctx, 4, &l[i].own.queue), 0);
		cr_assert_eq(pthread_create(&l[i].thread, NULL, loop, &l[i]), 0);
	}
	job_add(&job, &s, 0, 0, 50000, MIB);
	for (int i = 0; i < 30; i++) {
		job.copy.background = i % 2;
		cr_assert_eq(cowsnap_copier_copy(s.copier, &job.copy), 0);
		expect_all(&s, &job);
	}
	for (int i = 0; i < 4; i++) {
		pthread_join(l[i].thread, NULL);
		cr_assert_eq(cowsnap_queue_close(l[i].own.queue), 0);
	}
	/* Each has issued its own. */
	cr_assert_eq(cs_copier_threads(s.copier, io, 8), 5);
	for (int i = 0; i < 5; i++)
		cr_assert(io[i].read_bytes == UINT64_C(30) * 4 * 30000 ||
			  io[i].read_bytes == UINT64_C(30) * 50000);
	scene_close(&s);
}

Test(copier_async, workers_copy_what_comes_without_a_queue)
{
	struct job job[6] = {0};
	struct scene s;

	scene_open(&s, &(struct setting){.engine = COWSNAP_ENGINE_WORKERS,
			       .workers = 2,
			       .mode = SLOW_THREAD,
			       .job_bytes = 8192});
	for (uint64_t i = 0; i < 6; i++) {
		job[i].copy.background = i == 5;
		job_add(&job[i], &s, (int)(i % TARGETS), i * 1000, 100000, i * 100000);
		cr_assert_eq(cowsnap_copier_copy_async(
				     s.copier, NULL, &job[i].copy, &job[i].op, job_done, &job[i]),
			COWSNAP_PENDING);
	}
	for (int i = 0; i < 6; i++) {
		while (!atomic_load(&job[i].calls))
			sched_yield();
		cr_assert_not(pthread_equal(job[i].thread, pthread_self()));
		cr_assert(pthread_equal(job[i].thread, job[0].thread), "one worker for a thread");
		expect_all(&s, &job[i]);
	}
	scene_close(&s);
}

Test(copier_async, a_queue_that_calls_its_devices)
{
	struct job job = {0};
	struct scene s;

	scene_open(&s, &(struct setting){.blocking = true, .job_bytes = 8192});
	job_add(&job, &s, 0, 0, MIB, 0);
	job_add(&job, &s, 1, 5, MIB, 0);
	job_start(&job, &s);
	wait_for(&s, &job);
	expect_all(&s, &job);
	cr_assert_eq(s.source.called[COWSNAP_IO_READ], s.source.calls[COWSNAP_IO_READ]);
	scene_close(&s);
}
