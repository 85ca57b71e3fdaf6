/* SPDX-License-Identifier: MIT
 *
 * The copier on a queue: pieces side by side, in any order, on any thread; errors; zeroes.
 */
#include "unit/copier_async.h"

/* ---- Side by side ---------------------------------------------------------------------------- */

Test(copier_queue, pieces_are_under_way_side_by_side)
{
	struct job job = {0};
	struct scene s;

	scene_open(&s, &(struct setting){.job_bytes = 16 * KIB});
	job_add(&job, &s, 0, 1000, 96 * KIB, 500);
	job_start(&job, &s);
	cr_assert_eq(s.source.calls[COWSNAP_IO_READ], 0, "not before a poll");
	settle_queue(&s);
	cr_assert_eq(s.source.count, 6);
	cr_assert_eq(s.to[0].count, 0);
	/* The last one read is written first. */
	for (size_t n = 6; n--;) {
		slow_complete(&s.source, n);
		settle_queue(&s);
		cr_assert_eq(s.to[0].count, 6 - n);
		cr_assert_eq(s.to[0].held[5 - n]->offset, 500 + n * 16 * KIB);
	}
	for (size_t n = 6; n--;) {
		cr_assert_eq(job.calls, 0);
		slow_complete(&s.to[0], n);
		settle_queue(&s);
	}
	cr_assert_eq(job.calls, 1);
	expect_all(&s, &job);
	cr_assert_eq(s.source.calls[COWSNAP_IO_READ], 6);
	cr_assert_eq(s.to[0].calls[COWSNAP_IO_WRITE], 6);
	scene_close(&s);
}

Test(copier_queue, a_copy_has_so_many_pieces_at_a_time)
{
	static const struct {
		uint64_t inflight, most;
	} cases[] = {{0, 8}, {128 * KIB, 8}, {127 * KIB, 7}, {33 * KIB, 2}, {16 * KIB, 1}, {1, 1}};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct job job = {0};
		struct scene s;

		scene_open(&s, &(struct setting){
				       .job_bytes = 16 * KIB, .inflight_bytes = cases[i].inflight});
		job_add(&job, &s, 1, 0, MIB, 0);
		job_start(&job, &s);
		finish(&s, &job);
		expect_all(&s, &job);
		cr_assert_eq(s.source.most, cases[i].most);
		cr_assert_eq(s.source.calls[COWSNAP_IO_READ], 64);
		cr_assert_eq(s.source.longest, 16 * KIB);
		scene_close(&s);
	}
}

Test(copier_queue, a_queue_has_so_many_pieces_at_a_time)
{
	enum { JOBS = 300 };
	struct job *job = calloc(JOBS, sizeof(*job));
	struct scene s;

	scene_open(&s, &(struct setting){.job_bytes = 4 * KIB});
	for (uint64_t i = 0; i < JOBS; i++) {
		job_add(&job[i], &s, 0, i * 4096, 4096, i * 4096);
		job_start(&job[i], &s);
	}
	settle_queue(&s);
	cr_assert_eq(s.source.count, 256);
	/* In the order of their coming. */
	slow_complete(&s.source, 7);
	settle_queue(&s);
	cr_assert_eq(s.source.count, 255);
	slow_complete(&s.to[0], 0);
	settle_queue(&s);
	cr_assert_eq(s.source.count, 256);
	cr_assert_eq(s.source.held[255]->offset, UINT64_C(256) * 4096);
	for (int i = 0; i < JOBS; i++) {
		finish(&s, &job[i]);
		expect_all(&s, &job[i]);
	}
	scene_close(&s);
	free(job);
}

Test(copier_queue, many_targets_from_one_read)
{
	struct job job = {0};
	struct scene s;

	scene_open(&s, &(struct setting){0});
	for (uint64_t i = 0; i < 10; i++)
		job_add(&job, &s, (int)(i % 2), 8192 + i * 100, 20000, i * 30000);
	job_start(&job, &s);
	settle_queue(&s);
	slow_complete(&s.source, 0);
	settle_queue(&s);
	cr_assert_eq(s.to[0].count + s.to[1].count, 4, "so many side by side");
	slow_complete(&s.to[1], 0);
	settle_queue(&s);
	cr_assert_eq(s.to[0].count + s.to[1].count, 4, "and the next");
	finish(&s, &job);
	expect_all(&s, &job);
	cr_assert_eq(s.source.calls[COWSNAP_IO_READ], 1);
	cr_assert_eq(s.to[0].calls[COWSNAP_IO_WRITE] + s.to[1].calls[COWSNAP_IO_WRITE], 10);
	scene_close(&s);
}

/* Devices that complete inside submit, and those that cannot be submitted to at all. */
Test(copier_queue, what_ends_inline_needs_no_stack)
{
	for (int no_submit = 0; no_submit < 2; no_submit++) {
		struct job job = {0};
		struct scene s;

		scene_open(&s,
			&(struct setting){
				.job_bytes = 4 * KIB, .mode = SLOW_INLINE, .no_submit = no_submit});
		job_add(&job, &s, 0, 0, SIZE, 0);
		job_add(&job, &s, 1, 0, SIZE, 0);
		job_start(&job, &s);
		wait_for(&s, &job);
		expect_all(&s, &job);
		cr_assert_eq(s.source.calls[COWSNAP_IO_READ], SIZE / 4096);
		cr_assert_eq(s.source.called[COWSNAP_IO_READ], no_submit ? SIZE / 4096 : 0);
		scene_close(&s);
	}
}

Test(copier_queue, devices_may_be_of_both_kinds)
{
	struct slow plain;
	struct job job = {0};
	struct scene s;

	scene_open(&s, &(struct setting){.job_bytes = 4 * KIB});
	slow_open(&plain, s.ctx, &(struct slow_options){.size_bytes = SIZE, .no_submit = true});
	memcpy(plain.bytes, s.source.bytes, SIZE);
	job_add(&job, &s, 0, 0, MIB, 0);
	job.copy.source = plain.device;
	job_start(&job, &s);
	finish(&s, &job);
	expect_all(&s, &job);
	job = (struct job){0};
	job_add(&job, &s, 0, MIB, MIB, 0);
	job_add(&job, &s, 1, MIB, MIB, 0);
	job.target[0].device = plain.device;
	job_start(&job, &s);
	finish(&s, &job);
	expect_all(&s, &job);
	cr_assert_arr_eq(plain.bytes, s.source.bytes + MIB, MIB);
	slow_close(&plain);
	scene_close(&s);
}

/* ---- Any order, any thread ------------------------------------------------------------------- */

static void random_job(struct seed *seed, struct scene *s, struct job *job, uint64_t number)
{
	size_t count = 1 + seed_below(seed, 8);
	bool ordered = seed_below(seed, 2);
	uint64_t end = 0;

	*job = (struct job){0};
	job->copy.background = seed_below(seed, 3) == 0;
	for (size_t i = 0; i < count; i++) {
		uint64_t most = ordered ? 15000 : 60000;
		uint64_t length = 1 + seed_below(seed, seed_below(seed, 2) ? 300 : most);
		uint64_t from = ordered ? end + seed_below(seed, 2) * seed_below(seed, 300)
					: seed_below(seed, 100000);

		/* Places of its own in the targets. */
		job_add(job, s, (int)(i % TARGETS), from, length,
			(number * 3 + i / TARGETS) * 60000);
		end = from + length;
	}
}

static void many_random_jobs(enum slow_mode mode, uint64_t inflight_bytes)
{
	enum { JOBS = 8, ROUNDS = 12 };
	struct seed seed = seed_for("many_random_jobs");
	static struct job job[JOBS];
	struct scene s;

	scene_open(&s, &(struct setting){
			       .mode = mode, .job_bytes = 5000, .inflight_bytes = inflight_bytes});
	for (int round = 0; round < ROUNDS; round++) {
		for (uint64_t i = 0; i < JOBS; i++) {
			random_job(&seed, &s, &job[i], i);
			job_start(&job[i], &s);
		}
		while (mode == SLOW_HELD) {
			struct slow *some[TARGETS + 1];
			size_t n = 0;

			settle_queue(&s);
			for (int i = 0; i < TARGETS; i++) {
				if (s.to[i].count)
					some[n++] = &s.to[i];
			}
			if (s.source.count)
				some[n++] = &s.source;
			if (!n)
				break;
			n = seed_below(&seed, n);
			slow_complete(some[n], seed_below(&seed, some[n]->count));
		}
		for (int i = 0; i < JOBS; i++) {
			wait_for(&s, &job[i]);
			expect_all(&s, &job[i]);
			cr_assert(pthread_equal(job[i].thread, pthread_self()));
		}
	}
	scene_close(&s);
}

Test(copier_queue, in_any_order)
{
	many_random_jobs(SLOW_HELD, 0);
	many_random_jobs(SLOW_HELD, 20000);
}

Test(copier_queue, completed_by_other_threads)
{
	many_random_jobs(SLOW_THREAD, 0);
	many_random_jobs(SLOW_THREAD, 1);
}

Test(copier_queue, completed_inside_submit)
{
	many_random_jobs(SLOW_INLINE, 1);
}

/* ---- Errors ---------------------------------------------------------------------------------- */

/* Eight pieces; the targets share the middle four. */
static void errors_start(struct scene *s, struct job *job)
{
	*job = (struct job){0};
	s->source.fault.set = s->to[0].fault.set = s->to[1].fault.set = false;
	memset(s->to[0].calls, 0, sizeof(s->to[0].calls));
	memset(s->to[1].calls, 0, sizeof(s->to[1].calls));
	memset(s->to[0].bytes, 0xee, SIZE);
	memset(s->to[1].bytes, 0xee, SIZE);
	job_add(job, s, 0, 0, 96 * KIB, 0);
	job_add(job, s, 1, 32 * KIB, 96 * KIB, 0);
}

Test(copier_queue, a_target_that_fails_does_not_stop_the_other)
{
	struct job job;
	struct scene s;

	/* Two at a time. */
	scene_open(&s, &(struct setting){.job_bytes = 16 * KIB, .inflight_bytes = 32 * KIB});
	for (int bad = 0; bad < 2; bad++) {
		for (uint64_t n = 0; n < 6; n++) {
			errors_start(&s, &job);
			s.to[bad].fault =
				(struct slow_fault){true, COWSNAP_IO_WRITE, n * 16 * KIB + 5, -EIO};
			job_start(&job, &s);
			finish_by(&s, &job, true);
			cr_assert_eq(job.error, 0);
			cr_assert_eq(job.target[bad].error, -EIO);
			cr_assert_eq(job.target[!bad].error, 0);
			expect_copied(&s, &job, !bad);
			/* The one that was under way beside it, and then no more. */
			cr_assert_leq(s.to[bad].calls[COWSNAP_IO_WRITE], n + 2);
			cr_assert_eq(s.to[!bad].calls[COWSNAP_IO_WRITE], 6);
		}
	}
	scene_close(&s);
}

Test(copier_queue, a_read_that_fails_hits_those_who_want_it)
{
	struct job job;
	struct scene s;

	scene_open(&s, &(struct setting){.job_bytes = 16 * KIB});
	for (uint64_t piece = 0; piece < 8; piece++) {
		errors_start(&s, &job);
		s.source.fault =
			(struct slow_fault){true, COWSNAP_IO_READ, piece * 16 * KIB + 5, -ENODATA};
		job_start(&job, &s);
		finish(&s, &job);
		cr_assert_eq(job.error, 0);
		cr_assert_eq(job.target[0].error, piece < 6 ? -ENODATA : 0);
		cr_assert_eq(job.target[1].error, piece >= 2 ? -ENODATA : 0);
		for (size_t i = 0; i < 2; i++) {
			if (!job.target[i].error)
				expect_copied(&s, &job, i);
		}
	}
	/* Everything fails: each keeps its first error. */
	errors_start(&s, &job);
	s.source.fault = (struct slow_fault){true, COWSNAP_IO_READ, 96 * KIB, -ENODATA};
	s.to[0].fault = (struct slow_fault){true, COWSNAP_IO_WRITE, 0, -ENOSPC};
	s.to[1].fault = (struct slow_fault){true, COWSNAP_IO_WRITE, 0, -EIO};
	job_start(&job, &s);
	settle_queue(&s);
	while (s.source.count) {
		slow_complete(&s.source, 0);
		settle_queue(&s);
	}
	finish(&s, &job);
	cr_assert_eq(job.target[0].error, -ENOSPC);
	cr_assert_eq(job.target[1].error, -ENODATA);
	scene_close(&s);
}

Test(copier_queue, ranges_outside_of_devices)
{
	struct job job = {0};
	struct scene s;

	scene_open(&s, &(struct setting){.job_bytes = 16 * KIB});
	job_add(&job, &s, 0, 0, 40 * KIB, 0);
	job_add(&job, &s, 1, 0, 40 * KIB, SIZE);
	job_add(&job, &s, 2, SIZE - 16 * KIB, 32 * KIB, 0);
	job_start(&job, &s);
	finish(&s, &job);
	cr_assert_eq(job.error, 0);
	cr_assert_eq(job.target[0].error, 0);
	cr_assert_eq(job.target[1].error, -ERANGE);
	cr_assert_eq(job.target[2].error, -ERANGE);
	expect_copied(&s, &job, 0);
	cr_assert_eq(s.to[1].calls[COWSNAP_IO_WRITE], 0);
	scene_close(&s);
}

/* A target fails while a piece that only it wants is being read. */
Test(copier_queue, a_piece_that_nobody_wants_any_more_ends)
{
	struct job job = {0};
	struct scene s;

	scene_open(&s, &(struct setting){.job_bytes = 16 * KIB});
	job_add(&job, &s, 0, 0, 160 * KIB, 0);
	s.to[0].fault = (struct slow_fault){true, COWSNAP_IO_WRITE, 0, -EIO};
	job_start(&job, &s);
	settle_queue(&s);
	slow_complete(&s.source, 0);
	settle_queue(&s);
	slow_complete(&s.to[0], 0);
	settle_queue(&s);
	cr_assert_eq(s.source.count, 7, "no more are read");
	finish(&s, &job);
	cr_assert_eq(job.target[0].error, -EIO);
	cr_assert_eq(s.to[0].calls[COWSNAP_IO_WRITE], 1);
	scene_close(&s);
}

/* ---- The end of the source ------------------------------------------------------------------- */

Test(copier_queue, the_end_of_a_source_fills_a_block)
{
	struct cowsnap_transient_options options = {
		.size = sizeof(options), .chunk_size_bytes = 4096};
	struct cowsnap_store *store;
	struct job job = {0};
	struct scene s;

	scene_open(&s, &(struct setting){.source_bytes = 70000, .block_size = 4096});
	options.device = s.to[0].device;
	cr_assert_eq(cowsnap_store_transient(s.ctx, &options, &store), 0);
	job_add(&job, &s, 0, 65536, 70000 - 65536, 0);
	job_add(&job, &s, 1, 65536, 70000 - 65536, 0);
	job_start(&job, &s);
	finish(&s, &job);
	cr_assert_eq(job.target[0].error, 0);
	expect_copied(&s, &job, 0);
	cr_assert(is_all(s.to[0].bytes + 4464, 0, 8192 - 4464));
	cr_assert_eq(s.to[0].bytes[8192], 0xee);
	cr_assert_eq(cowsnap_store_close(store), 0);
	scene_close(&s);
}

/* ---- Zeroes ---------------------------------------------------------------------------------- */

static void expect_zeroes(struct scene *s, uint64_t offset, uint64_t length)
{
	cr_assert_eq(s->to[0].bytes[offset - 1], 0xee);
	cr_assert(is_all(s->to[0].bytes + offset, 0, length));
	cr_assert_eq(s->to[0].bytes[offset + length], 0xee);
	cr_assert_eq(s->source.calls[COWSNAP_IO_READ], 0);
}

Test(copier_queue, zeroes_are_asked_for)
{
	struct job job = {0};
	struct scene s;

	scene_open(&s, &(struct setting){.job_bytes = 100 * KIB});
	job_add(&job, &s, 0, 0, MIB, 4096);
	job_add(&job, &s, 1, 0, 10, 0);
	job.copy.source = NULL;
	job_start(&job, &s);
	settle_queue(&s);
	cr_assert_eq(s.to[0].count, 8, "side by side");
	finish(&s, &job);
	cr_assert_eq(job.error | job.target[0].error | job.target[1].error, 0);
	expect_zeroes(&s, 4096, MIB);
	cr_assert_eq(s.to[0].calls[COWSNAP_IO_WRITE], 0, "without a buffer");
	cr_assert_eq(s.to[0].calls[COWSNAP_IO_ZERO], 11);
	cr_assert_leq(s.to[0].longest, 100 * KIB);
	cr_assert(is_all(s.to[1].bytes, 0, 10));
	/* Who fails gets no more. */
	job.target[0].offset = MIB;
	job.target[0].error = 0;
	s.to[0].fault = (struct slow_fault){true, COWSNAP_IO_ZERO, MIB, -EIO};
	s.to[0].calls[COWSNAP_IO_ZERO] = 0;
	atomic_store(&job.calls, 0);
	job_start(&job, &s);
	settle_queue(&s);
	slow_complete(&s.to[0], 0);
	finish(&s, &job);
	cr_assert_eq(job.target[0].error, -EIO);
	cr_assert_eq(job.target[1].error, 0);
	cr_assert_eq(s.to[0].calls[COWSNAP_IO_ZERO], 8);
	scene_close(&s);
}

Test(copier_queue, who_cannot_zero_is_written_zeroes)
{
	for (int refuses = 0; refuses < 2; refuses++) {
		for (int mode = SLOW_HELD; mode <= SLOW_INLINE; mode++) {
			struct job job = {0};
			struct scene s;

			scene_open(&s, &(struct setting){.mode = (enum slow_mode)mode,
					       .job_bytes = 200 * KIB,
					       .no_zero = !refuses});
			s.to[0].fault = (struct slow_fault){
				refuses, COWSNAP_IO_ZERO, 300 * KIB, -EOPNOTSUPP};
			job_add(&job, &s, 0, 0, 500 * KIB, 77);
			job.copy.source = NULL;
			job_start(&job, &s);
			if (mode == SLOW_HELD)
				finish(&s, &job);
			else
				wait_for(&s, &job);
			cr_assert_eq(job.error | job.target[0].error, 0);
			expect_zeroes(&s, 77, 500 * KIB);
			cr_assert_eq(s.to[0].called[COWSNAP_IO_WRITE], 0, "nobody waits for it");
			scene_close(&s);
		}
	}
}

Test(copier_queue, a_thread_that_waits_zeroes_too)
{
	for (int no_zero = 0; no_zero < 2; no_zero++) {
		struct job job = {0};
		struct scene s;

		scene_open(&s, &(struct setting){.job_bytes = 100 * KIB, .no_zero = no_zero});
		job_add(&job, &s, 0, 0, MIB, 4096);
		job_add(&job, &s, 1, 0, 10, 0);
		job_add(&job, &s, 2, 0, 10, SIZE);
		job.copy.source = NULL;
		cr_assert_eq(cowsnap_copier_copy(s.copier, &job.copy), 0);
		cr_assert_eq(job.target[0].error | job.target[1].error, 0);
		cr_assert_eq(job.target[2].error, -ERANGE);
		expect_zeroes(&s, 4096, MIB);
		if (!no_zero) {
			cr_assert_eq(s.to[0].calls[COWSNAP_IO_ZERO], 11);
			cr_assert_eq(s.to[0].longest, 100 * KIB);
		}
		scene_close(&s);
	}
}
