/* SPDX-License-Identifier: MIT
 *
 * The transient store on one thread: runs, reuse, limits, its memory.
 */
#include "support/fail_alloc.h"
#include "support/test_device.h"
#include "unit/transient_rig.h"

#include <errno.h>
#include <string.h>

/* One run, which must be as long and where it is expected. */
static void expect_run(
	struct cowsnap_store *store, uint64_t want, uint64_t location, uint64_t count)
{
	uint64_t got_location = 0, got_count = 0;

	cr_assert_eq(cowsnap_store_alloc(store, want, &got_location, &got_count), 0);
	cr_assert_eq(got_location, location, "at %llu", (unsigned long long)got_location);
	cr_assert_eq(got_count, count, "of %llu", (unsigned long long)got_count);
}

static void expect_full(struct cowsnap_store *store)
{
	uint64_t location, count;

	cr_assert_eq(cowsnap_store_alloc(store, 1, &location, &count), -ENOSPC);
}

/* ---- Making ---------------------------------------------------------------------------------- */

static int try_make(struct cowsnap_ctx *ctx, uint64_t chunk, uint64_t limit,
	struct cowsnap_device *device, uint32_t flags)
{
	struct cowsnap_transient_options options = {.size = sizeof(options),
		.flags = flags,
		.chunk_size_bytes = chunk,
		.device = device,
		.limit_bytes = limit};
	struct cowsnap_store *store = NULL;
	int rc = cowsnap_store_transient(ctx, &options, &store);

	cr_assert_eq(rc == 0, store != NULL);
	if (!rc)
		cr_assert_eq(cowsnap_store_close(store), 0);
	return rc;
}

Test(store_transient, bad_options_are_refused)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct cowsnap_device *d;
	struct cowsnap_store *store = NULL;
	struct {
		struct cowsnap_transient_options known;
		uint64_t unknown;
	} options = {.known = {.size = sizeof(options)}, .unknown = 1};

	cr_assert_eq(cowsnap_device_memory(ctx, 100000, &d), 0);
	cr_assert_eq(try_make(ctx, 4095, 0, NULL, 0), -EINVAL);
	cr_assert_eq(try_make(ctx, 12288, 0, NULL, 0), -EINVAL);
	cr_assert_eq(try_make(ctx, 256, 0, NULL, 0), -ERANGE);
	cr_assert_eq(try_make(ctx, UINT64_C(1) << 31, 0, NULL, 0), -ERANGE);
	cr_assert_eq(try_make(ctx, 4096, 4095, NULL, 0), -ERANGE, "less than a chunk");
	cr_assert_eq(try_make(ctx, 4096, UINT64_MAX, NULL, 0), -ERANGE);
	cr_assert_eq(try_make(ctx, 4096, 100001, d, 0), -ERANGE, "more than the device");
	cr_assert_eq(try_make(ctx, 131072, 0, d, 0), -ERANGE, "a device of less than a chunk");
	cr_assert_eq(try_make(ctx, 4096, 0, NULL, 2), -EINVAL);
	cr_assert_eq(cowsnap_store_transient(ctx, &options.known, &store), -E2BIG);
	options.known.size = 8;
	cr_assert_eq(cowsnap_store_transient(ctx, &options.known, &store), -EINVAL);
	cr_assert_null(store);
	cr_assert_eq(try_make(ctx, 4096, 0, d, 0), 0, "after all these the device is free");
	cr_assert_eq(try_make(ctx, 512, 512, NULL, 0), 0);
	cr_assert_eq(cowsnap_device_close(d), 0);
	cr_assert_eq(try_make(ctx, 4096, 0, d, 0), -EBADF);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

Test(store_transient, defaults)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct cowsnap_store_usage usage;
	struct cowsnap_transient_options options = {.size = sizeof(options)};
	struct cowsnap_store *store;

	cr_assert_eq(cowsnap_store_transient(ctx, NULL, &store), 0);
	cr_assert_eq(cowsnap_store_chunk_size(store), 4096);
	cr_assert_eq(cowsnap_store_usage(store, &usage, sizeof(usage)), 0);
	cr_assert_gt(usage.limit_bytes, UINT64_C(1) << 20);
	cr_assert_eq(usage.used_bytes, 0);
	cr_assert_eq(cowsnap_store_close(store), 0);
	cr_assert_eq(cowsnap_device_memory(ctx, 10 * CHUNK + 100, &options.device), 0);
	cr_assert_eq(cowsnap_store_transient(ctx, &options, &store), 0);
	cr_assert_eq(cowsnap_store_usage(store, &usage, sizeof(usage)), 0);
	cr_assert_eq(usage.limit_bytes, 10 * CHUNK, "whole chunks of the device");
	cr_assert_eq(store->low_water_bytes, (10 * CHUNK + 100) / 8);
	cr_assert_eq(cowsnap_store_close(store), 0);
	cr_assert_eq(cowsnap_device_close(options.device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

Test(store_transient, its_own_memory_is_taken)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct cowsnap_store *store = make(ctx, 10);
	struct cowsnap_device *d = cowsnap_store_device(store);
	struct cowsnap_origin *origin;

	cr_assert_not_null(d);
	cr_assert_lt(cowsnap_origin_open(ctx, d, &origin), 0);
	cr_assert_eq(cowsnap_device_close(d), -EBUSY);
	cr_assert_eq(cowsnap_device_write(d, "preimage", 9 * CHUNK, 8), 0);
	finish(ctx, store);
}

Test(store_transient, a_device_longer_than_anything)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct test_device *unused;
	struct cowsnap_device_ops ops = {.size = sizeof(ops)};
	struct cowsnap_device_options device = {
		.size = sizeof(device), .size_bytes = COWSNAP_SIZE_MAX};
	struct cowsnap_transient_options options = {
		.size = sizeof(options), .chunk_size_bytes = COWSNAP_CHUNK_SIZE_MIN};
	struct test_device_options small = {.size_bytes = 1};
	struct cowsnap_store *store;

	/* Any table will do: nothing is read or written. */
	unused = test_device_create(ctx, &small);
	ops.read = test_device(unused)->ops.read;
	ops.write = test_device(unused)->ops.write;
	cr_assert_eq(cowsnap_device_create(ctx, &ops, &device, unused, &options.device), 0);
	cr_assert_eq(cowsnap_store_transient(ctx, &options, &store), 0);
	expect_run(store, 1000, 0, 1000);
	cowsnap_store_free(store, 0, 1000);
	cr_assert_eq(cowsnap_store_close(store), 0);
	cr_assert_eq(cowsnap_device_close(options.device), 0);
	cr_assert_eq(test_device_destroy(unused), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

/* ---- Runs -------------------------------------------------------------------------------------
 */

Test(store_transient, runs_are_as_long_as_asked)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct cowsnap_store *store = make(ctx, 1000);
	uint64_t location, count;

	cr_assert_eq(cowsnap_store_alloc(store, 0, &location, &count), -EINVAL);
	expect_run(store, 256, 0, 256);
	expect_run(store, 1, 256, 1);
	expect_run(store, 700, 257, 700);
	expect_run(store, UINT64_MAX, 957, 43);
	expect_full(store);
	cr_assert_eq(used(store), 1000);
	cowsnap_store_free(store, 100, 300);
	cr_assert_eq(used(store), 700);
	expect_run(store, 1000, 100, 300);
	expect_full(store);
	cowsnap_store_free(store, 0, 1000);
	cr_assert_eq(used(store), 0);
	finish(ctx, store);
}

Test(store_transient, the_longest_of_a_few_freed_runs)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct cowsnap_store *store = make(ctx, 1000);

	expect_run(store, 1000, 0, 1000);
	cowsnap_store_free(store, 10, 1);
	cowsnap_store_free(store, 20, 5);
	cowsnap_store_free(store, 60, 40);
	cowsnap_store_free(store, 200, 8);
	expect_run(store, 30, 60, 30);
	expect_run(store, 100, 90, 10);
	expect_run(store, 100, 200, 8);
	expect_run(store, 100, 20, 5);
	expect_run(store, 100, 10, 1);
	expect_full(store);
	cowsnap_store_free(store, 0, 1000);
	finish(ctx, store);
}

Test(store_transient, freed_runs_join)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct cowsnap_store *store = make(ctx, 300);

	expect_run(store, 300, 0, 300);
	for (uint64_t i = 299; i >= 30; i -= 3)
		cowsnap_store_free(store, i - 2, 3);
	expect_run(store, 300, 30, 270);
	cowsnap_store_free(store, 0, 300);
	finish(ctx, store);
}

/* The bitmap comes in segments, each twice as long as the one before. */
Test(store_transient, many_chunks)
{
	enum { CHUNKS = 1 << 19, STEP = 1 << 12 };
	struct cowsnap_ctx *ctx = make_ctx();
	struct cowsnap_transient_options options = {.size = sizeof(options),
		.chunk_size_bytes = 512,
		.limit_bytes = CHUNKS * UINT64_C(512)};
	struct cowsnap_store *store;

	cr_assert_eq(cowsnap_store_transient(ctx, &options, &store), 0);
	for (uint64_t at = 0; at < CHUNKS; at += STEP)
		expect_run(store, STEP, at, STEP);
	expect_full(store);
	/* Lone chunks, on both sides of each border of words, summaries and segments. */
	for (uint64_t at = STEP; at < CHUNKS; at += STEP) {
		cowsnap_store_free(store, at, 1);
		cowsnap_store_free(store, at - 1, 1);
	}
	for (uint64_t at = STEP; at < CHUNKS; at += STEP)
		expect_run(store, 2, at - 1, 2);
	expect_full(store);
	cowsnap_store_free(store, 0, CHUNKS);
	cr_assert_eq(used(store), 0);
	cs_store_emptied(store);
	expect_run(store, CHUNKS, 0, CHUNKS);
	cowsnap_store_free(store, 0, CHUNKS);
	finish(ctx, store);
}

Test(store_transient, what_is_not_in_use_cannot_be_freed)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct cowsnap_store *store = make(ctx, 100);

	cowsnap_store_free(store, 0, 1);
	expect_run(store, 10, 0, 10);
	cowsnap_store_free(store, 10, 1);
	cowsnap_store_free(store, 5, 6);
	cowsnap_store_free(store, UINT64_MAX, 2);
	cowsnap_store_free(store, 2, UINT64_MAX);
	cr_assert_eq(used(store), 10);
	cowsnap_store_free(store, 2, 3);
	cowsnap_store_free(store, 0, 4);
	cr_assert_eq(used(store), 5, "two of four were in use");
	expect_run(store, 10, 0, 5);
	cowsnap_store_free(store, 0, 10);
	cr_assert_eq(used(store), 0);
	finish(ctx, store);
}

/* ---- Limits -----------------------------------------------------------------------------------
 */

Test(store_transient, the_limit_of_memory_can_grow_and_shrink)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct cowsnap_store *store = make(ctx, 10);

	expect_run(store, 100, 0, 10);
	expect_full(store);
	cr_assert_eq(cowsnap_store_set_limit(store, 9 * CHUNK), -EBUSY);
	cr_assert_eq(cowsnap_store_set_limit(store, UINT64_MAX), -ERANGE);
	cr_assert_eq(cowsnap_store_set_limit(store, CHUNK - 1), -ERANGE);
	cr_assert_eq(cowsnap_store_set_limit(store, 1000 * CHUNK), 0);
	expect_run(store, 100, 10, 100);
	cr_assert_eq(cowsnap_device_write(cowsnap_store_device(store), "x", 109 * CHUNK, 1), 0);
	cowsnap_store_free(store, 0, 50);
	cr_assert_eq(cowsnap_store_set_limit(store, 60 * CHUNK), 0, "what is used, not where");
	expect_full(store);
	cowsnap_store_free(store, 109, 1);
	expect_run(store, 2, 0, 1);
	expect_full(store);
	cowsnap_store_free(store, 0, 1);
	cowsnap_store_free(store, 50, 59);
	cr_assert_eq(used(store), 0);
	finish(ctx, store);
}

Test(store_transient, the_limit_of_a_device_is_its_length)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct cowsnap_transient_options options = {
		.size = sizeof(options), .limit_bytes = 10 * CHUNK};
	struct cowsnap_store *store;

	cr_assert_eq(cowsnap_device_memory(ctx, 20 * CHUNK + 1, &options.device), 0);
	cr_assert_eq(cowsnap_store_transient(ctx, &options, &store), 0);
	expect_run(store, 100, 0, 10);
	cr_assert_eq(cowsnap_store_set_limit(store, 21 * CHUNK), -ERANGE);
	cr_assert_eq(cowsnap_store_set_limit(store, 20 * CHUNK + 1), 0);
	expect_run(store, 100, 10, 10);
	expect_full(store);
	cowsnap_store_free(store, 0, 20);
	cr_assert_eq(cowsnap_store_close(store), 0);
	cr_assert_eq(cowsnap_device_close(options.device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

/* ---- Memory -----------------------------------------------------------------------------------
 */

static bool is_zero(struct cowsnap_store *store, uint64_t location)
{
	static const uint8_t zeroes[CHUNK];
	uint8_t chunk[CHUNK];

	cr_assert_eq(
		cowsnap_device_read(cowsnap_store_device(store), chunk, location * CHUNK, CHUNK),
		0);
	return memcmp(chunk, zeroes, CHUNK) == 0;
}

static void stamp(struct cowsnap_store *store, uint64_t location)
{
	uint8_t chunk[CHUNK];

	memset(chunk, 0xa5, CHUNK);
	cr_assert_eq(
		cowsnap_device_write(cowsnap_store_device(store), chunk, location * CHUNK, CHUNK),
		0);
}

Test(store_transient, an_empty_store_gives_its_memory_back)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct cowsnap_store *store = make(ctx, 1000);

	expect_run(store, 100, 0, 100);
	stamp(store, 0);
	stamp(store, 99);
	cs_store_emptied(store);
	cr_assert_not(is_zero(store, 99), "it is not empty");
	cowsnap_store_free(store, 0, 99);
	cs_store_emptied(store);
	cr_assert_not(is_zero(store, 99), "nor now");
	cowsnap_store_free(store, 99, 1);
	cs_store_emptied(store);
	cr_assert(is_zero(store, 0) && is_zero(store, 99));
	expect_run(store, 1000, 0, 1000);
	cowsnap_store_free(store, 0, 1000);
	finish(ctx, store);
}

Test(store_transient, much_freed_memory_is_given_back)
{
	enum { CHUNKS = 40960 }; /* 160 MiB */
	struct cowsnap_ctx *ctx = make_ctx();
	struct cowsnap_store *store = make(ctx, CHUNKS);

	expect_run(store, CHUNKS, 0, CHUNKS);
	for (uint64_t at = 0; at < CHUNKS; at += 256)
		stamp(store, at);
	/* In runs as short as a drop frees them; the first chunk stays, and one near the end. */
	cowsnap_store_free(store, 1, 63);
	for (uint64_t at = 64; at < CHUNKS; at += 64) {
		uint64_t kept = at == CHUNKS - 2048;

		cowsnap_store_free(store, at + kept, 64 - kept);
	}
	cr_assert_not(is_zero(store, 0));
	cr_assert_not(is_zero(store, CHUNKS - 2048), "it is in use");
	cr_assert_not(is_zero(store, 256), "a little is kept warm");
	cr_assert(is_zero(store, CHUNKS - 256));
	cr_assert(is_zero(store, CHUNKS - 8192));
	cowsnap_store_free(store, CHUNKS - 2048, 1);
	cowsnap_store_free(store, 0, 1);
	finish(ctx, store);
}

Test(store_transient, the_hosts_device_is_left_alone)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct test_device_options device = {.size_bytes = 100 * CHUNK, .log = true};
	struct test_device *t = test_device_create(ctx, &device);
	struct cowsnap_transient_options options = {
		.size = sizeof(options), .device = test_device(t)};
	struct cowsnap_store *store;

	cr_assert_eq(cowsnap_store_transient(ctx, &options, &store), 0);
	expect_run(store, 100, 0, 100);
	cowsnap_store_free(store, 0, 100);
	cs_store_emptied(store);
	expect_run(store, 10, 0, 10);
	cowsnap_store_free(store, 0, 10);
	cr_assert_eq(cowsnap_store_close(store), 0);
	cr_assert_eq(test_device_log(t, NULL, 0), 0, "neither read, written nor discarded");
	cr_assert_eq(test_device_destroy(t), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

Test(store_transient, without_memory_nothing_is_left_behind)
{
	struct fail_alloc *mem = fail_alloc_create(false);
	struct cs_base base = {.alloc = fail_alloc_table(mem)};
	struct cowsnap_transient_options options = {
		.size = sizeof(options), .chunk_size_bytes = 512, .limit_bytes = 65536 * 512};
	uint64_t n = 0, failed;
	int rc;

	do {
		struct cowsnap_store *store = NULL;
		uint64_t location, count;
		bool low;

		fail_alloc_at(mem, ++n, false);
		rc = cs_store_transient(&base, &options, &store);
		failed = fail_alloc_failed(mem);
		if (!rc) {
			/* More chunks than the first segment of the bitmap has room for. */
			rc = cs_store_alloc(store, 40000, &location, &count, &low);
			failed = fail_alloc_failed(mem);
			if (rc) {
				struct cowsnap_store_space space;

				cs_store_space(store, &space);
				cr_assert_eq(space.used_chunks, 0);
				cr_assert_eq(
					cs_store_alloc(store, 40000, &location, &count, &low), 0);
			}
			fail_alloc_at(mem, 1, true);
			cs_store_free(store, location, count);
			cr_assert_eq(fail_alloc_calls(mem), 0, "a free asks for no memory");
			cr_assert_eq(cs_store_alloc(store, 40000, &location, &count, &low), 0,
				"nor what was freed");
			fail_alloc_at(mem, 0, false);
		}
		cr_assert(rc == 0 || rc == -ENOMEM);
		cs_store_destroy(store);
		cr_assert_eq(fail_alloc_live(mem), 0, "failure %d", (int)n);
	} while (failed);
	cr_assert_gt(n, 5);
	fail_alloc_destroy(mem);
}

/* ---- One owner per chunk ----------------------------------------------------------------------
 */

static void random_stream(struct seed *seed, uint64_t chunks)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct cowsnap_store *store = make(ctx, chunks);
	uint8_t *owner = calloc(1, chunks + 64);
	static struct owned list[OWNED_MAX];
	uint64_t limit = chunks, in_use = 0, most = 0;
	size_t length = 0;

	for (int step = 0; step < 4000; step++) {
		struct owned run;
		uint64_t want = 1 + seed_below(seed, seed_below(seed, 2) ? 4 : chunks / 2);

		if (length < OWNED_MAX && seed_below(seed, 100) < 55) {
			int rc = cowsnap_store_alloc(store, want, &run.location, &run.count);

			cr_assert_eq(rc, in_use < limit ? 0 : -ENOSPC, "step %d", step);
			if (rc)
				continue;
			cr_assert(run.count >= 1 && run.count <= want);
			in_use += run.count;
			for (uint64_t c = run.location; c < run.location + run.count; c++)
				cr_assert_eq(owner[c]++, 0, "step %d: two own %d", step, (int)c);
			list[length++] = run;
		} else if (length && seed_below(seed, 100) < 98) {
			run = let_go(list, &length, seed);
			memset(owner + run.location, 0, run.count);
			in_use -= run.count;
			cowsnap_store_free(store, run.location, run.count);
		} else {
			uint64_t wish = 1 + seed_below(seed, chunks);
			int rc = cowsnap_store_set_limit(store, wish * CHUNK);

			cr_assert_eq(rc, wish < in_use ? -EBUSY : 0);
			limit = rc ? limit : wish;
			cs_store_emptied(store);
		}
		cr_assert_eq(used(store), in_use);
		most = in_use > most ? in_use : most;
	}
	cr_assert_eq(cs_store_high_water(store), most);
	while (length--)
		cowsnap_store_free(store, list[length].location, list[length].count);
	cr_assert_eq(used(store), 0);
	free(owner);
	finish(ctx, store);
}

Test(store_transient, agrees_with_an_array_of_owners)
{
	struct seed seed = seed_for("agrees_with_an_array_of_owners");
	static const uint64_t chunks[] = {2, 3, 63, 64, 65, 1000, 40000};

	for (size_t i = 0; i < sizeof(chunks) / sizeof(chunks[0]); i++)
		random_stream(&seed, chunks[i]);
}

/* What is set aside for CPUs is free: it was told with that counted as used, and forgotten without,
 * again and again. */
Test(store_transient, low_water_is_not_told_for_what_is_set_aside)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct cowsnap_transient_options options = {.size = sizeof(options),
		.chunk_size_bytes = CHUNK,
		.limit_bytes = UINT64_C(40000) * CHUNK,
		.low_water_bytes = UINT64_C(30005) * CHUNK};
	struct cowsnap_store *store = NULL;
	uint64_t location, count;
	bool low;

	cr_assert_eq(cowsnap_store_transient(ctx, &options, &store), 0);
	/* 10 more than the mark are free, and 63 of them in a lease that was just begun. */
	while (used(store) < 9985) {
		cr_assert_eq(cs_store_alloc(store, 1, &location, &count, &low), 0);
		cr_assert_not(low);
	}
	for (unsigned i = 0; i < 100; i++) {
		cs_store_free(store, location, count);
		cr_assert_eq(cs_store_alloc(store, 1, &location, &count, &low), 0);
		cr_assert_not(low);
	}
	while (used(store) < 9996) {
		cr_assert_eq(cs_store_alloc(store, 1, &location, &count, &low), 0);
		cr_assert_eq(low, used(store) == 9996);
	}
	finish(ctx, store);
}
