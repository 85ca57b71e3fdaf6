/* SPDX-License-Identifier: MIT
 *
 * Devices: the checks, the fallbacks, identity, and the memory device.
 */
#include "support/fail_alloc.h"
#include "support/seed.h"
#include "support/test.h"
#include "support/test_device.h"

#include "alloc.h"
#include "dev.h"
#include "sync.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

static struct cowsnap_ctx *make_ctx(void)
{
	struct cowsnap_ctx *ctx = NULL;

	cr_assert_eq(cowsnap_ctx_create(NULL, &ctx), 0);
	return ctx;
}

static struct test_device *make(
	struct cowsnap_ctx *ctx, uint64_t size_bytes, uint32_t block_size, bool bare)
{
	struct test_device_options options = {
		.size_bytes = size_bytes, .block_size = block_size, .bare = bare};
	struct test_device *t = test_device_create(ctx, &options);

	cr_assert_not_null(t);
	return t;
}

static void finish(struct cowsnap_ctx *ctx, struct test_device *t)
{
	cr_assert_eq(test_device_destroy(t), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

static uint64_t all_calls(struct test_device *t)
{
	uint64_t n = 0;

	for (int kind = 0; kind < TEST_IO_KINDS; kind++)
		n += test_device_calls(t, kind);
	return n;
}

Test(dev, ranges_are_checked_before_the_table_is_called)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct test_device *t = make(ctx, 10000, 0, false);
	struct cowsnap_device *d = test_device(t);
	static const struct {
		uint64_t offset, length;
		int rc;
	} bad[] = {
		{0, 0, -EINVAL},
		{10000, 0, -EINVAL},
		{20000, 0, -EINVAL},
		{0, 10001, -ERANGE},
		{10000, 1, -ERANGE},
		{9999, 2, -ERANGE},
		{20000, 1, -ERANGE},
		{UINT64_MAX, 1, -EOVERFLOW},
		{UINT64_MAX, UINT64_MAX, -EOVERFLOW},
		{1, UINT64_MAX, -EOVERFLOW},
		{0, UINT64_MAX, -ERANGE},
		{UINT64_MAX - 1, 1, -ERANGE},
	};
	uint8_t byte = 0;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		cr_assert_eq(cowsnap_device_read(d, &byte, bad[i].offset, bad[i].length), bad[i].rc,
			"case %zu", i);
		cr_assert_eq(cowsnap_device_write(d, &byte, bad[i].offset, bad[i].length),
			bad[i].rc, "case %zu", i);
		cr_assert_eq(cowsnap_device_zero(d, bad[i].offset, bad[i].length), bad[i].rc,
			"case %zu", i);
		cr_assert_eq(cowsnap_device_discard(d, bad[i].offset, bad[i].length), bad[i].rc,
			"case %zu", i);
	}
	cr_assert_eq(all_calls(t), 0);
	cr_assert_eq(cowsnap_device_read(d, &byte, 9999, 1), 0);
	cr_assert_eq(cowsnap_device_flush(d), 0);
	cr_assert_eq(all_calls(t), 2);
	finish(ctx, t);
}

Test(dev, blocks_are_for_writes_only)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct test_device *t = make(ctx, 65536, 4096, false);
	struct cowsnap_device *d = test_device(t);
	static uint8_t buffer[8192];

	cr_assert_eq(cowsnap_device_read(d, buffer, 7, 99), 0);
	cr_assert_eq(cowsnap_device_write(d, buffer, 4096, 8192), 0);
	cr_assert_eq(cowsnap_device_write(d, buffer, 512, 4096), -EINVAL);
	cr_assert_eq(cowsnap_device_write(d, buffer, 4096, 512), -EINVAL);
	cr_assert_eq(cowsnap_device_zero(d, 4096, 512), -EINVAL);
	cr_assert_eq(cowsnap_device_zero(d, 0, 65536), 0);
	cr_assert_eq(test_device_calls(t, TEST_IO_WRITE), 1);
	finish(ctx, t);
}

Test(dev, a_discard_never_leaves_its_range)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct test_device *t = make(ctx, 65536, 4096, false);
	struct test_device_entry entry[2];

	test_device_reset(t);
	cr_assert_eq(cowsnap_device_discard(test_device(t), 100, 200), 0, "part of a block");
	cr_assert_eq(cowsnap_device_discard(test_device(t), 100, 4096), 0, "parts of two");
	cr_assert_eq(test_device_log(t, entry, 2), 0);
	cr_assert_eq(cowsnap_device_discard(test_device(t), 100, 9000), 0);
	cr_assert_eq(test_device_log(t, entry, 2), 1);
	cr_assert_eq(entry[0].offset, 4096);
	cr_assert_eq(entry[0].length, 4096);
	finish(ctx, t);
}

Test(dev, what_a_table_leaves_out_has_a_fallback)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct test_device *t = make(ctx, 300000, 0, true);
	struct cowsnap_device *d = test_device(t);
	uint8_t *image = malloc(300000);

	cr_assert_not_null(image);
	memset(image, 0x5a, 300000);
	cr_assert_eq(cowsnap_device_write(d, image, 0, 300000), 0);
	test_device_reset(t);
	cr_assert_eq(cowsnap_device_zero(d, 1001, 200000), 0);
	cr_assert_eq(cowsnap_device_discard(d, 0, 300000), 0);
	cr_assert_eq(cowsnap_device_flush(d), 0);
	cr_assert_eq(test_device_bytes(t, TEST_IO_WRITE), 200000);
	cr_assert_leq(test_device_calls(t, TEST_IO_WRITE), 4, "zeroes go in large pieces");
	cr_assert_eq(cowsnap_device_read(d, image, 0, 300000), 0);
	for (size_t i = 0; i < 300000; i++)
		cr_assert_eq(image[i], i >= 1001 && i < 201001 ? 0 : 0x5a, "byte %zu", i);
	test_device_fail(t, TEST_IO_WRITE, 2, false, -EIO);
	cr_assert_eq(cowsnap_device_zero(d, 0, 200000), -EIO);
	free(image);
	finish(ctx, t);
}

Test(dev, a_zero_that_is_not_supported_is_written)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct test_device *t = make(ctx, 8192, 0, false);
	uint8_t buffer[16];

	memset(buffer, 0xff, sizeof(buffer));
	cr_assert_eq(cowsnap_device_write(test_device(t), buffer, 0, 16), 0);
	test_device_fail(t, TEST_IO_ZERO, 1, false, -EOPNOTSUPP);
	cr_assert_eq(cowsnap_device_zero(test_device(t), 0, 16), 0);
	cr_assert_eq(test_device_calls(t, TEST_IO_WRITE), 2);
	cr_assert_eq(cowsnap_device_read(test_device(t), buffer, 0, 16), 0);
	cr_assert_eq(buffer[0] | buffer[15], 0);
	test_device_fail(t, TEST_IO_ZERO, 1, false, -ENOSPC);
	cr_assert_eq(cowsnap_device_zero(test_device(t), 0, 16), -ENOSPC);
	finish(ctx, t);
}

static int plain_read(void *user, void *buffer, uint64_t offset, uint64_t length)
{
	(void)user;
	(void)offset;
	memset(buffer, 7, length);
	return 0;
}

static int plain_write(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	(void)user;
	(void)buffer;
	(void)offset;
	(void)length;
	return 0;
}

static int failing_identity(void *user, struct cowsnap_device_identity *identity)
{
	(void)user;
	(void)identity;
	return -EIO;
}

Test(dev, a_table_without_write_is_read_only)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct cowsnap_device_ops ops = {.size = sizeof(ops), .read = plain_read};
	struct cowsnap_device_options options = {.size = sizeof(options), .size_bytes = 100};
	struct cowsnap_device *d;
	uint8_t byte = 0;

	cr_assert_eq(cowsnap_device_create(ctx, &ops, &options, NULL, &d), 0);
	cr_assert_eq(cowsnap_device_read(d, &byte, 99, 1), 0);
	cr_assert_eq(byte, 7);
	cr_assert_eq(cowsnap_device_write(d, &byte, 99, 1), -EROFS);
	cr_assert_eq(cowsnap_device_zero(d, 99, 1), -EROFS);
	cr_assert_eq(cowsnap_device_discard(d, 99, 1), -EROFS);
	cr_assert_eq(cowsnap_device_write(d, &byte, 99, 2), -ERANGE, "the range comes first");
	cr_assert_eq(cowsnap_device_flush(d), 0);
	cr_assert_eq(cowsnap_device_close(d), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

Test(dev, bad_tables_and_options_are_refused)
{
	struct cowsnap_ctx *ctx = make_ctx();
	const struct cowsnap_device_ops good_ops = {
		.size = sizeof(good_ops), .read = plain_read, .write = plain_write};
	const struct cowsnap_device_options good = {.size = sizeof(good), .size_bytes = 100};
	struct cowsnap_device_ops ops = good_ops;
	struct cowsnap_device_options options = good;
	struct cowsnap_device *d = NULL;

	cr_assert_eq(cowsnap_device_create(ctx, NULL, &good, NULL, &d), -EINVAL);
	cr_assert_eq(cowsnap_device_create(ctx, &good_ops, NULL, NULL, &d), -EINVAL);
	ops.read = NULL;
	cr_assert_eq(cowsnap_device_create(ctx, &ops, &good, NULL, &d), -EINVAL);
	ops = good_ops;
	ops.size = sizeof(ops) - 1;
	cr_assert_eq(cowsnap_device_create(ctx, &ops, &good, NULL, &d), -EINVAL);
	ops.size = 0;
	cr_assert_eq(cowsnap_device_create(ctx, &ops, &good, NULL, &d), -EINVAL);
	ops = good_ops;
	ops.identity = failing_identity;
	cr_assert_eq(cowsnap_device_create(ctx, &ops, &good, NULL, &d), -EIO);
	options.size_bytes = 0;
	cr_assert_eq(cowsnap_device_create(ctx, &good_ops, &options, NULL, &d), -EINVAL);
	options.size_bytes = COWSNAP_SIZE_MAX + 1;
	cr_assert_eq(cowsnap_device_create(ctx, &good_ops, &options, NULL, &d), -EFBIG);
	options = good;
	options.block_size = 3;
	cr_assert_eq(cowsnap_device_create(ctx, &good_ops, &options, NULL, &d), -EINVAL);
	options.block_size = 131072;
	cr_assert_eq(cowsnap_device_create(ctx, &good_ops, &options, NULL, &d), -EINVAL);
	options = good;
	options.flags = 1;
	cr_assert_eq(cowsnap_device_create(ctx, &good_ops, &options, NULL, &d), -EINVAL);
	cr_assert_null(d);
	options = good;
	options.size_bytes = COWSNAP_SIZE_MAX;
	options.block_size = 65536;
	cr_assert_eq(cowsnap_device_create(ctx, &good_ops, &options, NULL, &d), 0);
	cr_assert_eq(cowsnap_device_size(d), COWSNAP_SIZE_MAX);
	cr_assert_eq(cowsnap_device_close(d), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

Test(dev, options_of_a_newer_release)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct {
		struct cowsnap_device_options known;
		uint64_t unknown;
	} options = {.known = {.size = sizeof(options), .size_bytes = 100}};
	struct {
		struct cowsnap_device_ops known;
		void (*unknown)(void);
	} ops = {.known = {.size = sizeof(ops), .read = plain_read}};
	struct cowsnap_device *d = NULL;

	cr_assert_eq(cowsnap_device_create(ctx, &ops.known, &options.known, NULL, &d), 0);
	cr_assert_eq(cowsnap_device_close(d), 0);
	options.unknown = 1;
	cr_assert_eq(cowsnap_device_create(ctx, &ops.known, &options.known, NULL, &d), -E2BIG);
	options.unknown = 0;
	ops.unknown = (void (*)(void))make_ctx;
	cr_assert_eq(cowsnap_device_create(ctx, &ops.known, &options.known, NULL, &d), -E2BIG);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

Test(dev, identity_decides_what_is_the_same)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct cowsnap_device_identity one = {{1, 2, 3, 4}}, other = {{1, 2, 3, 5}}, zero = {{0}};
	struct test_device_options options = {.size_bytes = 100};
	struct test_device *t[6];
	const struct cowsnap_device_identity *identity[6] = {&one, &one, &other, NULL, NULL, &zero};

	for (int i = 0; i < 6; i++) {
		options.identity = identity[i];
		t[i] = test_device_create(ctx, &options);
		cr_assert_not_null(t[i]);
	}
	for (int i = 0; i < 6; i++) {
		for (int j = 0; j < 6; j++)
			cr_assert_eq(cs_dev_same(test_device(t[i]), test_device(t[j])),
				i == j || (i < 2 && j < 2), "%d and %d", i, j);
	}
	for (int i = 0; i < 6; i++)
		cr_assert_eq(test_device_destroy(t[i]), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

Test(dev, a_device_has_one_use_at_a_time)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct test_device *t = make(ctx, 100, 0, false);
	struct cowsnap_device *d = test_device(t);

	cr_assert_eq(cs_dev_claim(d, CS_DEV_ORIGIN), 0);
	cr_assert_eq(cs_dev_claim(d, CS_DEV_ORIGIN), -EBUSY);
	cr_assert_eq(cs_dev_claim(d, CS_DEV_STORE), -EBUSY);
	cr_assert_eq(cowsnap_device_close(d), -EBUSY);
	cs_dev_unclaim(d);
	cr_assert_eq(cs_dev_claim(d, CS_DEV_STORE), 0);
	cs_dev_unclaim(d);
	cr_assert_eq(cowsnap_device_close(d), 0);
	cr_assert_eq(cs_dev_claim(d, CS_DEV_STORE), -EBADF);
	finish(ctx, t);
}

Test(dev, a_closed_device_refuses_everything)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct test_device *t = make(ctx, 100, 0, false);
	struct cowsnap_device *d = test_device(t);
	uint8_t byte = 0;

	cr_assert_eq(cowsnap_device_close(NULL), 0);
	cr_assert_eq(cowsnap_device_close(d), 0);
	cr_assert_eq(test_device_closes(t), 1);
	cr_assert_eq(cowsnap_device_close(d), -EBADF);
	cr_assert_eq(cowsnap_device_read(d, &byte, 0, 1), -EBADF);
	cr_assert_eq(cowsnap_device_write(d, &byte, 0, 1), -EBADF);
	cr_assert_eq(cowsnap_device_zero(d, 0, 1), -EBADF);
	cr_assert_eq(cowsnap_device_discard(d, 0, 1), -EBADF);
	cr_assert_eq(cowsnap_device_flush(d), -EBADF);
	cr_assert_eq(cowsnap_device_size(d), 0);
	cr_assert_eq(test_device_closes(t), 1);
	cr_assert_eq(all_calls(t), 0);
	finish(ctx, t);
}

Test(dev, errors_of_the_table_are_passed_on)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct test_device *t = make(ctx, 100, 0, false);
	uint8_t byte = 0;

	for (int kind = 0; kind < TEST_IO_KINDS; kind++)
		test_device_fail(t, kind, 1, true, -100 - kind);
	cr_assert_eq(cowsnap_device_read(test_device(t), &byte, 0, 1), -100);
	cr_assert_eq(cowsnap_device_write(test_device(t), &byte, 0, 1), -101);
	cr_assert_eq(cowsnap_device_zero(test_device(t), 0, 1), -102);
	cr_assert_eq(cowsnap_device_discard(test_device(t), 0, 1), -103);
	cr_assert_eq(cowsnap_device_flush(test_device(t)), -104);
	test_device_heal(t);
	cr_assert_eq(cowsnap_device_read(test_device(t), &byte, 0, 1), 0);
	finish(ctx, t);
}

/* ---- Memory ---------------------------------------------------------------------------------- */

Test(dev, memory_sizes)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct cowsnap_device *d = NULL;
	uint64_t word = 1;

	cr_assert_eq(cowsnap_device_memory(ctx, 0, &d), -EINVAL);
	cr_assert_eq(cowsnap_device_memory(ctx, COWSNAP_SIZE_MAX + 1, &d), -EFBIG);
	cr_assert_eq(cowsnap_device_memory(ctx, UINT64_MAX, &d), -EFBIG);
	cr_assert_eq(cowsnap_device_memory(ctx, COWSNAP_SIZE_MAX, &d), -ENOMEM);
	cr_assert_null(d);
	cr_assert_eq(cowsnap_device_memory(ctx, UINT64_C(8) << 30, &d), 0, "it is not filled");
	cr_assert_eq(cowsnap_device_read(d, &word, (UINT64_C(8) << 30) - 8, 8), 0);
	cr_assert_eq(word, 0);
	cr_assert_eq(cowsnap_device_close(d), 0);
	cr_assert_eq(cowsnap_device_memory(ctx, 1, &d), 0);
	cr_assert_eq(cowsnap_device_write(d, "x", 0, 1), 0);
	cr_assert_eq(cowsnap_device_zero(d, 0, 1), 0);
	cr_assert_eq(cowsnap_device_read(d, &word, 0, 1), 0);
	cr_assert_eq(cowsnap_device_close(d), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

#define MODEL_BYTES 70001u

Test(dev, memory_agrees_with_an_array)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct seed seed = seed_for("memory_agrees_with_an_array");
	static uint8_t model[MODEL_BYTES], buffer[MODEL_BYTES];
	struct cowsnap_device *d;

	cr_assert_eq(cowsnap_device_memory(ctx, MODEL_BYTES, &d), 0);
	memset(model, 0, sizeof(model));
	for (int step = 0; step < 3000; step++) {
		uint64_t offset = seed_below(&seed, MODEL_BYTES);
		uint64_t most = seed_below(&seed, 4) ? 300 : MODEL_BYTES;
		uint64_t length = 1 + seed_below(&seed, most);

		if (length > MODEL_BYTES - offset)
			length = MODEL_BYTES - offset;
		switch (seed_below(&seed, 4)) {
		case 0:
			seed_fill(&seed, buffer, length);
			memcpy(model + offset, buffer, length);
			cr_assert_eq(cowsnap_device_write(d, buffer, offset, length), 0);
			break;
		case 1:
			memset(model + offset, 0, length);
			cr_assert_eq(cowsnap_device_zero(d, offset, length), 0);
			break;
		case 2:
			memset(model + offset, 0, length);
			cr_assert_eq(cowsnap_device_discard(d, offset, length), 0);
			break;
		default:
			cr_assert_eq(cowsnap_device_read(d, buffer, offset, length), 0);
			cr_assert_arr_eq(buffer, model + offset, length, "step %d", step);
		}
	}
	cr_assert_eq(cowsnap_device_read(d, buffer, 0, MODEL_BYTES), 0);
	cr_assert_arr_eq(buffer, model, MODEL_BYTES);
	cr_assert_eq(cowsnap_device_close(d), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

struct shared {
	struct cowsnap_device *device;
	atomic_bool stop;
};

static void *rewrite(void *argument)
{
	struct shared *shared = argument;
	uint64_t page[512];

	for (uint64_t round = 1; !atomic_load(&shared->stop); round++) {
		for (int i = 0; i < 512; i++)
			page[i] = round << 32 | round;
		cowsnap_device_write(shared->device, page, 0, sizeof(page));
		if (round % 16 == 0)
			cowsnap_device_discard(shared->device, 0, sizeof(page));
	}
	return NULL;
}

/* By design: see dev_mem.c. ThreadSanitizer must say nothing. There, aligned words are not torn;
 * elsewhere memcpy may copy byte by byte (rep movsb does), and nobody relies on more. */
Test(dev, memory_may_be_read_while_it_is_written)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct shared shared = {0};
	uint64_t page[512];
	pthread_t writer;

	cr_assert_eq(cowsnap_device_memory(ctx, 8192, &shared.device), 0);
	cr_assert_eq(pthread_create(&writer, NULL, rewrite, &shared), 0);
	for (int round = 0; round < 2000; round++) {
		cr_assert_eq(cowsnap_device_read(shared.device, page, 0, sizeof(page)), 0);
		for (int i = 0; CS_TSAN && i < 512; i++)
			cr_assert_eq(page[i] >> 32, (uint32_t)page[i]);
	}
	atomic_store(&shared.stop, true);
	pthread_join(writer, NULL);
	cr_assert_eq(cowsnap_device_close(shared.device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

Test(dev, without_memory_nothing_is_left_behind)
{
	struct fail_alloc *mem = fail_alloc_create(false);
	struct cs_base base = {.alloc = fail_alloc_table(mem)};
	struct cowsnap_device_ops ops = {
		.size = sizeof(ops), .read = plain_read, .write = plain_write};
	struct cowsnap_device_options options = {.size = sizeof(options), .size_bytes = 100};
	uint64_t n = 0;
	int rc;

	do {
		struct cowsnap_device *memory = NULL, *table = NULL;

		fail_alloc_at(mem, ++n, false);
		rc = cs_dev_memory(&base, 10000, &memory);
		if (!rc)
			rc = cs_dev_create(&base, &ops, &options, NULL, &table);
		cr_assert(rc == 0 || rc == -ENOMEM);
		cs_dev_destroy(memory);
		cs_dev_destroy(table);
		cr_assert_eq(fail_alloc_live(mem), 0, "failure %d", (int)n);
		cr_assert_eq(rc != 0, fail_alloc_failed(mem) > 0);
	} while (rc);
	cr_assert_gt(n, 3);
	fail_alloc_destroy(mem);
}
