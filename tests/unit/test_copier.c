/* SPDX-License-Identifier: MIT
 *
 * The copier: what is read and written, in which pieces, and who gets which error.
 */
#include "unit/copier_rig.h"

#include <errno.h>

/* ---- Making and refusals ----------------------------------------------------------------------
 */

Test(copier, bad_options_are_refused)
{
	struct cowsnap_copier_options options = {.size = sizeof(options)};
	static const uint64_t bad[] = {1, 4 * KIB - 1, 64 * MIB + 1, UINT64_MAX};
	struct cowsnap_copier *copier = NULL;
	struct cowsnap_ctx *ctx;

	cr_assert_eq(cowsnap_ctx_create(NULL, &ctx), 0);
	for (size_t i = 0; i < 4; i++) {
		options.job_bytes = bad[i];
		cr_assert_eq(cowsnap_copier_create(ctx, &options, &copier), -EINVAL);
	}
	options = (struct cowsnap_copier_options){.size = sizeof(options), .flags = 1};
	cr_assert_eq(cowsnap_copier_create(ctx, &options, &copier), -EINVAL);
	options.size = sizeof(options) - 1;
	cr_assert_eq(cowsnap_copier_create(ctx, &options, &copier), -EINVAL);
	cr_assert_null(copier);
	cr_assert_eq(cowsnap_copier_create(ctx, NULL, &copier), 0);
	cowsnap_copier_destroy(copier);
	cowsnap_copier_destroy(NULL);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

Test(copier, bad_targets_are_refused)
{
	struct cowsnap_copy_target t[2];
	struct rig r;

	set_up(&r, 0, 0);
	t[0] = target(&r, 0, 0, 100, 0);
	cr_assert_eq(copy(&r, t, 0), -EINVAL);
	cr_assert_eq(copy(&r, NULL, 1), -EINVAL);
	t[1] = target(&r, 0, 0, 0, 0);
	cr_assert_eq(copy(&r, t, 2), -EINVAL, "a length of 0");
	t[1] = target(&r, 0, 2, UINT64_MAX, 0);
	cr_assert_eq(copy(&r, t, 2), -EOVERFLOW);
	t[1] = target(&r, 0, 0, UINT64_MAX, 2);
	cr_assert_eq(copy(&r, t, 2), -EOVERFLOW);
	t[1] = target(&r, 0, 0, 100, 0);
	t[1].device = NULL;
	cr_assert_eq(copy(&r, t, 2), -EINVAL);
	cr_assert_eq(test_device_calls(r.source, TEST_IO_READ), 0);
	cr_assert_eq(test_device_calls(r.to[0], TEST_IO_WRITE), 0, "nothing was copied");
	/* What only the devices can know is the target's error. */
	t[1] = target(&r, 1, SIZE, 100, 0);
	cr_assert_eq(copy(&r, t, 2), 0);
	cr_assert_eq(t[0].error, 0);
	cr_assert_eq(t[1].error, -ERANGE, "outside the source");
	t[1] = target(&r, 1, 0, 100, 2 * SIZE);
	cr_assert_eq(copy(&r, t, 2), 0);
	cr_assert_eq(t[0].error, 0);
	cr_assert_eq(t[1].error, -ERANGE, "outside the target");
	tear_down(&r);
}

/* ---- Pieces -----------------------------------------------------------------------------------
 */

Test(copier, a_run_is_one_read_and_one_write)
{
	struct cowsnap_copy_target t[1];
	struct rig r;

	set_up(&r, 0, 0);
	t[0] = target(&r, 0, 64 * KIB, MIB, 3 * KIB);
	cr_assert_eq(copy(&r, t, 1), 0);
	cr_assert_eq(t[0].error, 0);
	cr_assert_eq(test_device_calls(r.source, TEST_IO_READ), 1);
	cr_assert_eq(test_device_calls(r.to[0], TEST_IO_WRITE), 1);
	expect_bytes(&r, 0, 64 * KIB, MIB, 3 * KIB);
	tear_down(&r);
}

Test(copier, neighbours_are_read_together)
{
	struct cowsnap_copy_target t[256];
	struct rig r;

	set_up(&r, 0, 0);
	/* Neighbours in the source, scattered in the target, in no order. */
	for (uint64_t i = 0; i < 256; i++) {
		uint64_t n = i * 37 % 256;

		t[i] = target(&r, (int)(n % 2), n * 4 * KIB, 4 * KIB, (255 - n) * 8 * KIB);
	}
	cr_assert_eq(copy(&r, t, 256), 0);
	cr_assert_eq(test_device_calls(r.source, TEST_IO_READ), 1);
	cr_assert_eq(test_device_bytes(r.source, TEST_IO_READ), MIB);
	for (uint64_t i = 0; i < 256; i++) {
		cr_assert_eq(t[i].error, 0);
		expect_bytes(&r, (int)(i % 2), i * 4 * KIB, 4 * KIB, (255 - i) * 8 * KIB);
	}
	tear_down(&r);
}

Test(copier, what_targets_share_is_read_once)
{
	struct cowsnap_copy_target t[3];
	struct rig r;

	set_up(&r, 0, 0);
	t[0] = target(&r, 0, 10000, 20000, 0);
	t[1] = target(&r, 1, 10000, 20000, 500);
	t[2] = target(&r, 1, 25000, 10000, 100000);
	cr_assert_eq(copy(&r, t, 3), 0);
	cr_assert_eq(test_device_calls(r.source, TEST_IO_READ), 1);
	cr_assert_eq(test_device_bytes(r.source, TEST_IO_READ), 25000);
	expect_bytes(&r, 0, 10000, 20000, 0);
	expect_bytes(&r, 1, 10000, 20000, 500);
	expect_bytes(&r, 1, 25000, 10000, 100000);
	/* A hole between targets is not read. */
	test_device_reset(r.source);
	t[0] = target(&r, 0, 0, 10, 0);
	t[1] = target(&r, 1, 11, 10, 0);
	cr_assert_eq(copy(&r, t, 2), 0);
	cr_assert_eq(test_device_calls(r.source, TEST_IO_READ), 2);
	cr_assert_eq(test_device_bytes(r.source, TEST_IO_READ), 20);
	tear_down(&r);
}

Test(copier, no_piece_is_longer_than_a_job)
{
	static const uint64_t jobs[] = {4 * KIB, 5000, 64 * KIB, 100 * KIB, 2 * MIB};
	static struct test_device_entry log[TEST_DEVICE_LOG_MAX];
	struct cowsnap_copy_target t[1];
	struct rig r;

	for (size_t j = 0; j < sizeof(jobs) / sizeof(jobs[0]); j++) {
		uint64_t at = 777;
		size_t n;

		set_up(&r, 0, jobs[j]);
		t[0] = target(&r, 0, 777, 3 * MIB, 99);
		cr_assert_eq(copy(&r, t, 1), 0);
		expect_bytes(&r, 0, 777, 3 * MIB, 99);
		n = test_device_log(r.source, log, TEST_DEVICE_LOG_MAX);
		cr_assert_eq(n, (3 * MIB + jobs[j] - 1) / jobs[j]);
		for (size_t i = 0; i < n; i++) {
			cr_assert_eq(log[i].offset, at, "in ascending order");
			cr_assert_leq(log[i].length, jobs[j]);
			at += log[i].length;
		}
		cr_assert_eq(test_device_calls(r.to[0], TEST_IO_WRITE), n);
		tear_down(&r);
	}
}

#define ROOM 100000

/* Anywhere, or @ordered: behind @end, most often at once. */
static void random_range(
	struct seed *seed, bool ordered, uint64_t end, uint64_t *from, uint64_t *length)
{
	uint64_t most = ordered ? ROOM / 4 : ROOM;

	*from = ordered ? end + seed_below(seed, 2) * seed_below(seed, 300)
			: seed_below(seed, 300000);
	*length = 1 + seed_below(seed, seed_below(seed, 2) ? 300 : most);
}

/* Random targets, compared with copies made by hand. */
Test(copier, agrees_with_memcpy)
{
	enum { TARGETS = 9 };
	struct seed seed = seed_for("agrees_with_memcpy");
	static uint8_t wanted[SIZE / 4], read_map[SIZE];
	static struct test_device_entry log[TEST_DEVICE_LOG_MAX];
	struct rig r;

	set_up(&r, 0, 20000);
	for (int round = 0; round < 60; round++) {
		struct cowsnap_copy_target t[TARGETS];
		size_t count = 1 + seed_below(&seed, TARGETS), reads;
		uint64_t union_bytes = 0, from = 0, length = 0;
		bool ordered = seed_below(&seed, 2);

		test_device_reset(r.source);
		memset(wanted, 0, sizeof(wanted));
		memset(read_map, 0, sizeof(read_map));
		for (size_t i = 0; i < count; i++) {
			random_range(&seed, ordered, from + length, &from, &length);
			t[i] = target(&r, (int)(i % 2), from, length, i * ROOM);
			for (uint64_t b = from; b < from + length; b++)
				union_bytes += !read_map[b], read_map[b] = 1;
		}
		cr_assert_eq(copy(&r, t, count), 0);
		for (size_t i = 0; i < count; i++) {
			cr_assert_eq(t[i].error, 0);
			expect_bytes(&r, (int)(i % 2), t[i].source_offset, t[i].length, i * ROOM);
		}
		cr_assert_eq(test_device_bytes(r.source, TEST_IO_READ), union_bytes);
		reads = test_device_log(r.source, log, TEST_DEVICE_LOG_MAX);
		for (size_t i = 0; i < reads; i++) {
			cr_assert(!i || log[i].offset >= log[i - 1].offset + log[i - 1].length);
			for (uint64_t b = 0; b < log[i].length; b++)
				cr_assert_eq(read_map[log[i].offset + b], 1, "nobody wants it");
		}
	}
	tear_down(&r);
}

/* ---- Blocks -----------------------------------------------------------------------------------
 */

Test(copier, pieces_end_at_blocks_of_the_target)
{
	static struct test_device_entry log[64];
	struct cowsnap_copy_target t[2];
	size_t n;
	struct rig r;

	/* A job of 10000 bytes, blocks of 4096: pieces of 8192. */
	set_up_blocks(&r, 0, 10000, 4096);
	t[0] = target(&r, 0, 4096, 81920, 0);
	t[1] = target(&r, 1, 0, 86016, 4096);
	cr_assert_eq(copy(&r, t, 2), 0);
	cr_assert_eq(t[0].error, 0);
	cr_assert_eq(t[1].error, 0);
	expect_bytes(&r, 0, 4096, 81920, 0);
	expect_bytes(&r, 1, 0, 86016, 4096);
	n = test_device_log(r.source, log, 64);
	for (size_t i = 0; i < n; i++)
		cr_assert_eq(log[i].length % 4096, 0);
	cr_assert_eq(n, 11);
	/* Also when the first begins inside a block. */
	t[0] = target(&r, 0, 4096, 81920, 0);
	t[1] = target(&r, 1, 512, 40000, 0);
	t[1].device = test_device_inner(r.to[1]);
	cr_assert_eq(copy(&r, t, 2), 0);
	cr_assert_eq(t[0].error, 0);
	cr_assert_eq(t[1].error, 0);
	expect_bytes(&r, 0, 4096, 81920, 0);
	expect_bytes(&r, 1, 512, 40000, 0);
	tear_down(&r);
	/* Blocks longer than the job: a piece is a block. */
	set_up_blocks(&r, 0, 4096, 65536);
	t[0] = target(&r, 0, 0, 131072, 65536);
	cr_assert_eq(copy(&r, t, 1), 0);
	cr_assert_eq(t[0].error, 0);
	expect_bytes(&r, 0, 0, 131072, 65536);
	tear_down(&r);
}

/* A source that ends inside a block, a target on a store of whole chunks. */
static void copy_the_end(uint32_t block, uint64_t tail, uint64_t extra)
{
	struct rig r;
	struct test_device_options odd = {.size_bytes = SIZE - block + tail};
	struct cowsnap_transient_options options = {
		.size = sizeof(options), .chunk_size_bytes = block};
	struct cowsnap_copy_target t[2];
	struct cowsnap_store *store;
	uint8_t *chunk = malloc(block);
	uint64_t from = SIZE - block - extra, location, count;

	set_up_blocks(&r, 0, 0, block);
	cr_assert_eq(test_device_destroy(r.source), 0);
	r.source = test_device_create(r.ctx, &odd);
	cr_assert_eq(cowsnap_device_write(test_device(r.source), r.bytes, 0, odd.size_bytes), 0);
	options.device = test_device(r.to[0]);
	cr_assert_eq(cowsnap_store_transient(r.ctx, &options, &store), 0);
	cr_assert_eq(cowsnap_store_alloc(store, 1, &location, &count), 0);
	memset(chunk, 0xee, block);
	cr_assert_eq(cowsnap_device_write(test_device(r.to[0]), chunk, 0, block), 0);
	t[0] = target(&r, 0, SIZE - block, tail, 0);
	t[1] = target(&r, 1, SIZE - block, tail, 0);
	cr_assert_eq(copy(&r, t, 2), 0);
	cr_assert_eq(t[0].error, 0, "the store's last block is filled up");
	cr_assert_eq(t[1].error, -EINVAL, "any other device is not written beyond the target");
	expect_bytes(&r, 0, SIZE - block, tail, 0);
	cr_assert(untouched(&r, 0, tail, block - tail), "with zeroes");
	/* Another part of a block is not filled up: what follows it is the host's. */
	t[0] = target(&r, 0, 0, 100, 0);
	cr_assert_eq(copy(&r, t, 1), 0);
	cr_assert_eq(t[0].error, -EINVAL);
	/* With bytes before it that only another target wants. */
	t[0] = target(&r, 0, SIZE - block, tail, 0);
	t[1] = target(&r, 1, from, extra, block);
	t[1].device = test_device_inner(r.to[1]);
	cr_assert_eq(copy(&r, t, 2), 0);
	cr_assert_eq(t[0].error, 0);
	cr_assert_eq(t[1].error, 0);
	expect_bytes(&r, 0, SIZE - block, tail, 0);
	expect_bytes(&r, 1, from, extra, block);
	cowsnap_store_free(store, location, count);
	cr_assert_eq(cowsnap_store_close(store), 0);
	free(chunk);
	tear_down(&r);
}

Test(copier, the_end_of_a_source_fills_a_block)
{
	copy_the_end(4096, 1, 512);
	copy_the_end(4096, 4095, 4095);
	copy_the_end(4096, 4000, 61441);
	copy_the_end(65536, 1, 65536);
	copy_the_end(65536, 65535, 65535);
}

/* ---- Errors -----------------------------------------------------------------------------------
 */

static void start_errors(struct rig *r, struct cowsnap_copy_target t[2])
{
	uint8_t *zeroes = calloc(1, 128 * KIB);

	/* 8 pieces of 16 KiB; the targets share the middle four. */
	t[0] = target(r, 0, 0, 96 * KIB, 0);
	t[1] = target(r, 1, 32 * KIB, 96 * KIB, 0);
	for (int i = 0; i < 2; i++) {
		cr_assert_eq(
			cowsnap_device_write(test_device_inner(r->to[i]), zeroes, 0, 128 * KIB), 0);
		test_device_heal(r->to[i]);
		test_device_reset(r->to[i]);
	}
	test_device_heal(r->source);
	test_device_reset(r->source);
	free(zeroes);
}

Test(copier, a_target_that_fails_does_not_stop_the_other)
{
	struct cowsnap_copy_target t[2];
	struct rig r;

	set_up(&r, 0, 16 * KIB);
	for (int bad = 0; bad < 2; bad++) {
		for (uint64_t n = 1; n <= 6; n++) {
			start_errors(&r, t);
			/* For once only: it must not be written again even so. */
			test_device_fail(r.to[bad], TEST_IO_WRITE, n, false, -EIO);
			cr_assert_eq(copy(&r, t, 2), 0);
			cr_assert_eq(t[bad].error, -EIO);
			cr_assert_eq(t[!bad].error, 0);
			cr_assert_eq(test_device_calls(r.to[bad], TEST_IO_WRITE), n);
			cr_assert(untouched(&r, bad, (n - 1) * 16 * KIB, (7 - n) * 16 * KIB));
			expect_bytes(&r, !bad, t[!bad].source_offset, 96 * KIB, 0);
			/* What only it wanted is not read any more. */
			cr_assert_eq(test_device_calls(r.source, TEST_IO_READ),
				bad ? (n > 4 ? 2 + n : 6) : (n <= 2 ? n + 6 : 8));
		}
	}
	tear_down(&r);
}

Test(copier, a_read_that_fails_hits_those_who_want_it)
{
	struct cowsnap_copy_target t[2];
	struct rig r;

	set_up(&r, 0, 16 * KIB);
	for (uint64_t piece = 0; piece < 8; piece++) {
		start_errors(&r, t);
		test_device_fail_range(r.source, TEST_IO_READ, piece * 16 * KIB + 5, 1, -ENODATA);
		cr_assert_eq(copy(&r, t, 2), 0);
		cr_assert_eq(t[0].error, piece < 6 ? -ENODATA : 0, "piece %d", (int)piece);
		cr_assert_eq(t[1].error, piece >= 2 ? -ENODATA : 0, "piece %d", (int)piece);
		for (int i = 0; i < 2; i++) {
			uint64_t before = piece * 16 * KIB;

			if (!t[i].error)
				expect_bytes(&r, i, t[i].source_offset, 96 * KIB, 0);
			else if (before > t[i].source_offset)
				expect_bytes(
					&r, i, t[i].source_offset, before - t[i].source_offset, 0);
		}
	}
	tear_down(&r);
}

Test(copier, the_first_error_is_kept)
{
	struct cowsnap_copy_target t[2];
	struct rig r;

	set_up(&r, 0, 16 * KIB);
	start_errors(&r, t);
	test_device_fail(r.to[0], TEST_IO_WRITE, 2, true, -ENOSPC);
	test_device_fail(r.source, TEST_IO_READ, 4, true, -EIO);
	cr_assert_eq(copy(&r, t, 2), 0);
	cr_assert_eq(t[0].error, -ENOSPC);
	cr_assert_eq(t[1].error, -EIO);
	cr_assert_eq(test_device_calls(r.source, TEST_IO_READ), 4, "nobody is left");
	start_errors(&r, t);
	cr_assert_eq(copy(&r, t, 2), 0);
	cr_assert_eq(t[0].error | t[1].error, 0, "an old error is forgotten");
	cr_assert_eq(cowsnap_device_close(test_device(r.source)), 0);
	cr_assert_eq(copy(&r, t, 2), 0);
	cr_assert_eq(t[0].error, -EBADF);
	cr_assert_eq(t[1].error, -EBADF);
	tear_down(&r);
}
