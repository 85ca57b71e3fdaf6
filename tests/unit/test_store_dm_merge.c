/* SPDX-License-Identifier: MIT
 *
 * The newest records of a persistent store, and how they are forgotten: against what the slots on
 * the device hold, read without the library's code.
 */
#include "support/dm_image.h"
#include "support/dm_scene.h"
#include "support/image.h"
#include "support/newest.h"
#include "support/seed.h"
#include "support/test.h"

#include "store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define RECORDS 400u

struct record {
	uint64_t origin, store;
};

/* What the slots of the device hold up to the first that is zero. Whatever lies behind it in its
 * area must be zero too. */
static unsigned read_records(struct dm_scene *s, struct record *records)
{
	uint64_t chunk = s->options.chunk_bytes, length;
	uint8_t *bytes = dm_bytes(s, 0, &length);
	unsigned n = 0;

	for (; n < RECORDS; n++) {
		const uint8_t *slot = bytes + dm_image_slot(chunk, n);

		records[n] = (struct record){dm_image_get(slot, 8), dm_image_get(slot + 8, 8)};
		if (!records[n].store)
			break;
	}
	for (uint64_t i = n; i / (chunk / 16) == n / (chunk / 16); i++) {
		const uint8_t *slot = bytes + dm_image_slot(chunk, i);

		cr_assert(!dm_image_get(slot, 8) && !dm_image_get(slot + 8, 8),
			"slot %llu behind record %u", (unsigned long long)i, n);
	}
	free(bytes);
	return n;
}

/* The run that ends the list, as the kernel looks for it. Up to an eighth less is given for it to
 * end at a block, of @per_block records. */
static struct cowsnap_run tail_run(
	const struct record *records, unsigned n, uint64_t per_block, uint64_t most)
{
	uint64_t at = n, last = n > most ? n - most : 0;
	uint64_t rounded = (last + per_block - 1) / per_block * per_block;
	struct cowsnap_run run = {0};

	if (rounded - last <= most / 8)
		last = rounded;
	while (at > last) {
		const struct record *r = &records[at - 1];

		if (run.count && (r->origin + 1 != run.first || r->store + 1 != run.location))
			break;
		run = (struct cowsnap_run){r->origin, run.count + 1, r->store};
		at--;
	}
	return run;
}

/* The newest run alone; count 0: there is none. */
static int newest(struct cowsnap_store *store, uint64_t most, struct cowsnap_run *run)
{
	int count;

	*run = (struct cowsnap_run){0};
	count = store_newest(store, 0, most, run, 1);
	return count < 0 ? count : 0;
}

static int forget_run(struct cowsnap_store *store, const struct cowsnap_run *run)
{
	return store_forget(store, run, 1);
}

static void expect_newest(struct dm_scene *s, uint64_t most, const struct cowsnap_run *must)
{
	struct cowsnap_run run;
	int rc = newest(s->at[0].store, most, &run);

	cr_assert_eq(rc, 0, "%d: %s", rc, s->line);
	cr_assert(run.first == must->first && run.count == must->count &&
			  run.location == must->location,
		"%llu from %llu at %llu, not %llu from %llu at %llu", (unsigned long long)run.count,
		(unsigned long long)run.first, (unsigned long long)run.location,
		(unsigned long long)must->count, (unsigned long long)must->first,
		(unsigned long long)must->location);
}

/* A run of @count chunks, in one commit; less if the store's space is in pieces. */
static uint64_t save(struct dm_scene *s, uint64_t first, uint64_t count)
{
	struct cowsnap_run run = {.first = first};

	cr_assert_eq(cowsnap_store_alloc(s->at[0].store, count, &run.location, &run.count), 0);
	cr_assert_eq(cowsnap_store_commit(s->at[0].store, &run, 1), 0);
	return run.count;
}

static void save_all(struct dm_scene *s, uint64_t first, uint64_t count)
{
	while (count) {
		uint64_t saved = save(s, first, count);

		first += saved;
		count -= saved;
	}
}

/* As a merge does. */
static int forget(struct dm_scene *s, const struct cowsnap_run *run)
{
	int rc = forget_run(s->at[0].store, run);

	if (!rc)
		cowsnap_store_free(s->at[0].store, run->location, run->count);
	return rc;
}

static struct cowsnap_run last_part(struct cowsnap_run run, uint64_t count)
{
	return (struct cowsnap_run){
		run.first + (run.count - count), count, run.location + (run.count - count)};
}

static void reopen(struct dm_scene *s, unsigned n)
{
	struct cowsnap_snapshot_info info;

	cr_assert_eq(dm_detach(s, 0), 0);
	image_keep(s->at[0].store_device, IMAGE_GOOD, s->options.origin_bytes);
	cr_assert_eq(dm_attach(s, 0), 0, "%s", s->line);
	cr_assert_eq(cowsnap_snapshot_info(s->at[0].snapshot, &info, sizeof(info)), 0);
	cr_assert_eq(info.saved_chunks, n);
	cr_assert_eq(dm_usage(s, 0).used_bytes, n * s->options.chunk_bytes);
}

static void begin(struct dm_scene *s, const struct dm_scene_options *options)
{
	dm_open(s, options);
	cr_assert_eq(dm_begin(s), 0, "%s", s->line);
}

/* ---- What is there --------------------------------------------------------------------------- */

Test(store_dm_merge, an_empty_store_has_none)
{
	const struct cowsnap_run none = {0}, some = {0, 1, 2};
	struct cowsnap_run run;
	struct dm_scene s;

	begin(&s, NULL);
	expect_newest(&s, 1, &none);
	expect_newest(&s, UINT64_MAX, &none);
	cr_assert_eq(newest(s.at[0].store, 0, &run), -EINVAL);
	cr_assert_eq(forget(&s, &none), -EINVAL);
	cr_assert_eq(forget(&s, &some), -EINVAL);
	dm_close(&s);
}

Test(store_dm_merge, the_run_is_the_kernel_s)
{
	struct cowsnap_run run[3] = {{.first = 7}, {.first = 6}, {.first = 9}};
	uint64_t count;
	struct dm_scene s;

	begin(&s, NULL);
	save_all(&s, 1, 4);
	expect_newest(&s, 100, &(struct cowsnap_run){1, 4, 2});
	expect_newest(&s, 4, &(struct cowsnap_run){1, 4, 2});
	expect_newest(&s, 3, &(struct cowsnap_run){2, 3, 3});
	expect_newest(&s, 1, &(struct cowsnap_run){4, 1, 5});
	/* Downwards is no run, in whatever order the chunks of the store are. */
	for (unsigned i = 0; i < 3; i++)
		cr_assert_eq(
			cowsnap_store_alloc(s.at[0].store, 1, &run[2 - i].location, &count), 0);
	for (unsigned i = 0; i < 3; i++)
		run[i].count = 1;
	cr_assert_eq(cowsnap_store_commit(s.at[0].store, &run[0], 1), 0);
	cr_assert_eq(cowsnap_store_commit(s.at[0].store, &run[1], 1), 0);
	expect_newest(&s, 100, &run[1]);
	cr_assert_eq(cowsnap_store_commit(s.at[0].store, &run[2], 1), 0);
	expect_newest(&s, 100, &run[2]);
	/* A run of the origin that is none of the store, and the other way round. */
	for (unsigned i = 3; i > 0; i--) {
		expect_newest(&s, 100, &run[i - 1]);
		cr_assert_eq(forget(&s, &run[i - 1]), 0);
	}
	expect_newest(&s, 100, &(struct cowsnap_run){1, 4, 2});
	dm_close(&s);
}

/* Several runs at once, the newest first; the last may be forgotten in part. */
Test(store_dm_merge, many_runs_are_forgotten_together)
{
	static const struct cowsnap_run must[] = {{30, 1, 8}, {20, 2, 6}, {10, 4, 2}};
	struct record records[RECORDS + 1];
	struct cowsnap_run run[4], wrong[2];
	struct dm_scene s;

	begin(&s, NULL);
	save_all(&s, 10, 4);
	save_all(&s, 20, 2);
	save_all(&s, 30, 1);
	cr_assert_eq(store_newest(s.at[0].store, 0, 100, run, 4), 3);
	cr_assert_arr_eq(run, must, sizeof(must));
	cr_assert_eq(store_newest(s.at[0].store, 0, 100, run, 2), 2);
	cr_assert_arr_eq(run, must, 2 * sizeof(must[0]));
	cr_assert_eq(store_newest(s.at[0].store, 0, 5, run, 4), 3);
	cr_assert_eq(run[2].first, 12);
	cr_assert_eq(run[2].count, 2);
	cr_assert_eq(store_newest(s.at[0].store, 2, 2, run, 4), 2);
	cr_assert_eq(run[0].first, 20);
	cr_assert_eq(run[1].first, 13);
	cr_assert_eq(store_newest(s.at[0].store, 7, 1, run, 4), 0);
	cr_assert_eq(store_newest(s.at[0].store, UINT64_MAX, 1, run, 4), 0);
	cr_assert_eq(store_newest(s.at[0].store, 0, 5, run, 4), 3);
	wrong[0] = must[1];
	wrong[1] = must[0];
	cr_assert_eq(store_forget(s.at[0].store, wrong, 2), -EINVAL);
	cr_assert_eq(read_records(&s, records), 7);
	cr_assert_eq(store_forget(s.at[0].store, run, 3), 0);
	cr_assert_eq(read_records(&s, records), 2);
	for (unsigned i = 0; i < 3; i++)
		cs_store_free(s.at[0].store, run[i].location, run[i].count);
	reopen(&s, 2);
	expect_newest(&s, 100, &(struct cowsnap_run){10, 2, 2});
	dm_close(&s);
}

/* What could not be made durable is put back, whole: of several runs too. */
Test(store_dm_merge, many_runs_are_put_back)
{
	struct record records[RECORDS + 1], again[RECORDS + 1];
	struct cowsnap_run run[3];
	struct dm_scene s;
	unsigned n;

	begin(&s, NULL);
	save_all(&s, 10, 4);
	save_all(&s, 20, 2);
	save_all(&s, 30, 1);
	n = read_records(&s, records);
	cr_assert_eq(store_newest(s.at[0].store, 0, 6, run, 3), 3);
	test_device_fail(s.at[0].store_test, TEST_IO_WRITE, 1, false, -EIO);
	cr_assert_eq(store_forget(s.at[0].store, run, 3), -EIO);
	cr_assert_eq(read_records(&s, again), n);
	cr_assert_arr_eq(again, records, n * sizeof(records[0]));
	cr_assert_eq(store_forget(s.at[0].store, run, 3), 0);
	cr_assert_eq(read_records(&s, again), n - 6);
	dm_close(&s);
}

/* The newest @most records, together. Returns: how many there were. */
static unsigned forget_newest(struct dm_scene *s, uint64_t most)
{
	struct cowsnap_run runs[8];
	unsigned gone = 0;
	int count = store_newest(s->at[0].store, 0, most, runs, 8);

	cr_assert_gt(count, 0);
	cr_assert_eq(store_forget(s->at[0].store, runs, (size_t)count), 0);
	for (int i = 0; i < count; i++) {
		cs_store_free(s->at[0].store, runs[i].location, runs[i].count);
		gone += (unsigned)runs[i].count;
	}
	return gone;
}

/* With one write, to the area of the new end: what is left behind in later ones is not found again,
 * not even when the list grows over it. */
Test(store_dm_merge, areas_are_crossed)
{
	static const unsigned counts[] = {31, 32, 33, 63, 64, 65, 96, 100};
	static const unsigned goes[] = {1, 3, 4, 5, 31, 32, 33, 64, 70, 100};

	for (unsigned i = 0; i < 80; i++) {
		struct record records[RECORDS + 1], again[RECORDS + 1];
		unsigned n = counts[i / 10], most = goes[i % 10], gone;
		struct test_device_entry call[TEST_DEVICE_LOG_MAX];
		size_t calls, writes = 0;
		struct dm_scene s;

		begin(&s, &(struct dm_scene_options){.no_flush = i & 1,
				  .origin_bytes = 300 * 512,
				  .store_bytes = 300 * 512});
		save_all(&s, 3, n);
		cr_assert_eq(read_records(&s, records), n);
		test_device_reset(s.at[0].store_test);
		gone = forget_newest(&s, most);
		calls = test_device_log(s.at[0].store_test, call, TEST_DEVICE_LOG_MAX);
		for (size_t k = 0; k < calls; k++)
			writes += call[k].kind == TEST_IO_WRITE;
		cr_assert_eq(writes, 1);
		cr_assert_leq(gone, most);
		cr_assert_geq(gone, (most < n ? most : n) - most / 8);
		n -= gone;
		cr_assert_eq(read_records(&s, again), n);
		cr_assert_arr_eq(again, records, n * sizeof(*records));
		if (i & 2)
			reopen(&s, n);
		for (unsigned k = 0; k < 80; k++, n++) {
			save_all(&s, 200 + k, 1);
			cr_assert_eq(read_records(&s, again), n + 1);
			cr_assert_eq(again[n].origin, 200 + k);
		}
		cr_assert_arr_eq(again, records, (n - 80) * sizeof(*records));
		reopen(&s, n);
		dm_close(&s);
	}
}

Test(store_dm_merge, only_the_last_ones_can_be_forgotten)
{
	static const struct cowsnap_run wrong[] = {{10, 0, 2}, {10, 1, 2}, {11, 1, 4}, {12, 1, 3},
		{11, 2, 2}, {9, 4, 1}, {0, UINT64_MAX, 2}, {10, 33, 2}};
	struct record records[RECORDS + 1];
	struct dm_scene s;

	begin(&s, NULL);
	save_all(&s, 10, 3);
	for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		cr_assert_eq(forget_run(s.at[0].store, &wrong[i]), -EINVAL, "%u", i);
	cr_assert_eq(read_records(&s, records), 3);
	cr_assert_eq(forget(&s, &(struct cowsnap_run){12, 1, 4}), 0);
	cr_assert_eq(forget(&s, &(struct cowsnap_run){10, 2, 2}), 0);
	cr_assert_eq(dm_usage(&s, 0).used_bytes, 0);
	dm_close(&s);
}

/* Runs are as long as what is written at once, though an area of 64 KiB chunks is longer. */
Test(store_dm_merge, a_long_run_comes_in_parts)
{
	struct cowsnap_run run = {0};
	uint64_t left = 5000;
	struct dm_scene s;

	begin(&s, &(struct dm_scene_options){.chunk_bytes = 1 << 17,
			  .origin_bytes = UINT64_C(1) << 17,
			  .store_bytes = UINT64_C(5100) << 17});
	save_all(&s, 0, left);
	while (left) {
		cr_assert_eq(newest(s.at[0].store, UINT64_MAX, &run), 0);
		cr_assert_geq(run.count, left < 4000 ? left : 4000);
		cr_assert_eq(run.first + run.count, left);
		cr_assert_eq(run.location, run.first + 2);
		cr_assert_eq(forget(&s, &run), 0);
		left -= run.count;
	}
	expect_newest(&s, 1, &(struct cowsnap_run){0});
	dm_close(&s);
}

/* ---- Going on -------------------------------------------------------------------------------- */

/* All that was forgotten can be had again, and a list that grows goes over the same slots. */
Test(store_dm_merge, what_was_forgotten_is_used_again)
{
	struct record records[RECORDS + 1];
	struct cowsnap_run run;
	struct dm_scene s;

	begin(&s, &(struct dm_scene_options){
			  .store_bytes = 80 * 512, .on_full = COWSNAP_LOSER_WRITE});
	for (unsigned round = 0; round < 3; round++) {
		uint64_t room = dm_usage(&s, 0).limit_bytes / 512;
		unsigned n = 20;

		save_all(&s, 0, room);
		cr_assert_eq(
			cowsnap_store_alloc(s.at[0].store, 1, &run.location, &run.count), -ENOSPC);
		for (n = read_records(&s, records); n > 20 + round; n -= run.count) {
			cr_assert_eq(newest(s.at[0].store, n - (20 + round), &run), 0);
			cr_assert_eq(forget(&s, &run), 0);
		}
		reopen(&s, n);
		save_all(&s, room, 40);
		cr_assert_eq(read_records(&s, records), n + 40);
		cr_assert_eq(records[n].origin, room);
		for (n += 40; n; n -= run.count) {
			cr_assert_eq(newest(s.at[0].store, 100, &run), 0);
			cr_assert_eq(forget(&s, &run), 0);
		}
		cr_assert_eq(dm_usage(&s, 0).used_bytes, 0);
	}
	dm_close(&s);
}

static void random_saves(struct dm_scene *s, struct seed *seed, uint8_t *taken, uint64_t chunks)
{
	uint64_t first = seed_below(seed, chunks), count = 1 + seed_below(seed, 12);

	for (uint64_t c = first; c < chunks && count; c++, count--) {
		uint64_t run = 0;

		while (c + run < chunks && run < count && !taken[c + run])
			run++;
		if (!run || dm_usage(s, 0).used_bytes + run * s->options.chunk_bytes >
				    dm_usage(s, 0).limit_bytes)
			return;
		save_all(s, c, run);
		memset(taken + c, 1, run);
		c += run - 1;
		count -= run - 1;
	}
}

static unsigned random_forget(struct dm_scene *s, struct seed *seed, const struct record *records,
	unsigned n, uint8_t *taken)
{
	uint64_t most = 1 + seed_below(seed, 60);
	uint64_t block = s->options.block_size > 512 ? s->options.block_size : 512;
	struct cowsnap_run run = tail_run(records, n, block / 16, most);

	expect_newest(s, most, &run);
	if (seed_below(seed, 2))
		run = last_part(run, 1 + seed_below(seed, run.count));
	cr_assert_eq(forget(s, &run), 0);
	memset(taken + run.first, 0, run.count);
	return (unsigned)run.count;
}

static void random_life(struct seed *seed)
{
	static const uint64_t chunk_sizes[] = {512, 512, 1024, 4096};
	static const uint32_t blocks[] = {1, 512, 4096};
	static struct record records[RECORDS + 1], again[RECORDS + 1];
	struct dm_scene_options options = {.chunk_bytes = chunk_sizes[seed_below(seed, 4)],
		.block_size = blocks[seed_below(seed, 3)],
		.durable = seed_below(seed, 2),
		.no_flush = seed_below(seed, 3) == 0};
	uint8_t taken[200] = {0};
	struct dm_scene s;

	if (options.block_size > options.chunk_bytes)
		options.block_size = 512;
	options.origin_bytes = sizeof(taken) * options.chunk_bytes;
	options.store_bytes = 150 * options.chunk_bytes;
	begin(&s, &options);
	for (unsigned i = 0; i < 60; i++) {
		unsigned n = read_records(&s, records), gone;

		if (n < 20 || seed_below(seed, 3) == 0) {
			random_saves(&s, seed, taken, sizeof(taken));
			continue;
		}
		gone = random_forget(&s, seed, records, n, taken);
		cr_assert_eq(read_records(&s, again), n - gone);
		cr_assert_arr_eq(records, again, (n - gone) * sizeof(*records));
		if (seed_below(seed, 6) == 0)
			reopen(&s, n - gone);
	}
	dm_close(&s);
}

Test(store_dm_merge, random_lists, .timeout = 60)
{
	struct seed seed = seed_for("store_dm_merge.random_lists");

	for (unsigned i = 0; i < 30; i++)
		random_life(&seed);
}

/* ---- Faults ---------------------------------------------------------------------------------- */

enum { SAVED = 40 };

struct fault {
	enum test_io kind;
	uint64_t n;
	bool for_good;
	bool halfway;
	unsigned goes; /* records: of the last area, or of two */
};

static void inject(struct dm_scene *s, const struct fault *f)
{
	if (f->halfway)
		test_device_fail_short(s->at[0].store_test, f->kind, f->n, f->for_good, -EIO);
	else
		test_device_fail(s->at[0].store_test, f->kind, f->n, f->for_good, -EIO);
}

/* The records are as they were, or the store is broken and they are a part of it. */
static void look_at_failed(struct dm_scene *s, const struct fault *f, bool healthy)
{
	struct record records[RECORDS + 1];
	uint64_t location, count;
	struct cowsnap_run run;

	test_device_heal(s->at[0].store_test);
	if (newest(s->at[0].store, 100, &run) == -EIO) {
		cr_assert(!healthy, "broken");
		cr_assert_eq(forget_run(s->at[0].store, &run), -EIO);
		cr_assert_eq(cowsnap_store_alloc(s->at[0].store, 1, &location, &count), -EIO);
		return;
	}
	cr_assert_eq(read_records(s, records), SAVED);
	save_all(s, 50, 1);
	cr_assert_eq(read_records(s, records), SAVED + 1);
	cr_assert_eq(forget(s, &(struct cowsnap_run){50, 1, SAVED + 3}), 0);
	cr_assert_eq(forget_newest(s, f->goes), f->goes);
	cr_assert_eq(read_records(s, records), SAVED - f->goes);
	reopen(s, SAVED - f->goes);
}

/* Returns: did the fault come? */
static bool fault_life(const struct dm_scene_options *options, const struct fault *f)
{
	struct cowsnap_run runs[4];
	struct dm_scene s;
	bool came;
	int rc;

	begin(&s, options);
	save_all(&s, 0, SAVED - 8);
	save_all(&s, SAVED - 8, 2);
	save_all(&s, SAVED - 6, 6);
	inject(&s, f);
	rc = store_newest(s.at[0].store, 0, f->goes, runs, 4);
	if (rc > 0)
		rc = store_forget(s.at[0].store, runs, (size_t)rc);
	came = test_device_failed(s.at[0].store_test) > 0;
	cr_assert_eq(rc, came ? -EIO : 0);
	if (came)
		look_at_failed(&s, f, !f->for_good && f->kind != TEST_IO_FLUSH);
	test_device_heal(s.at[0].store_test);
	cr_assert_eq(dm_detach(&s, 0), 0);
	cr_assert_eq(dm_attach(&s, 0), 0, "%s", s.line);
	dm_close(&s);
	return came;
}

Test(store_dm_merge, each_request_may_fail)
{
	static const struct dm_scene_options devices[] = {
		{.durable = true}, {.durable = false}, {.no_flush = true}, {.block_size = 512}};
	unsigned failed = 0;

	for (unsigned i = 0; i < 4 * TEST_IO_KINDS * 8; i++) {
		struct fault f = {.kind = i / 8 % TEST_IO_KINDS,
			.n = 1,
			.for_good = i & 1,
			.halfway = i & 2,
			.goes = i & 4 ? 25 : 6};

		while (fault_life(&devices[i / 8 / TEST_IO_KINDS], &f)) {
			failed++;
			f.n++;
		}
	}
	cr_assert_geq(failed, 40);
}

/* What a commit that fails has left is wiped behind the end that the list has now. */
Test(store_dm_merge, a_commit_fails_after_a_forget)
{
	struct record records[RECORDS + 1];
	struct cowsnap_run run = {.first = 20};
	struct dm_scene s;

	begin(&s, NULL);
	save_all(&s, 0, 34);
	for (unsigned n = 34; n > 28; n -= (unsigned)run.count) {
		cr_assert_eq(newest(s.at[0].store, n - 28, &run), 0);
		cr_assert_eq(forget(&s, &run), 0);
	}
	run = (struct cowsnap_run){.first = 40};
	cr_assert_eq(cowsnap_store_alloc(s.at[0].store, 3, &run.location, &run.count), 0);
	cr_assert_eq(run.count, 3);
	test_device_fail_short(s.at[0].store_test, TEST_IO_WRITE, 1, false, -EIO);
	cr_assert_eq(cowsnap_store_commit(s.at[0].store, &run, 1), -EIO);
	cr_assert_eq(read_records(&s, records), 28);
	cr_assert_eq(cowsnap_store_commit(s.at[0].store, &run, 1), 0);
	cr_assert_eq(read_records(&s, records), 31);
	expect_newest(&s, 9, &run);
	dm_close(&s);
}

Test(store_dm_merge, damage_is_told)
{
	struct cowsnap_run run;
	struct dm_scene s;
	uint64_t length;
	uint8_t *bytes;

	begin(&s, NULL);
	save_all(&s, 0, 3);
	bytes = dm_bytes(&s, 0, &length);
	dm_image_record(bytes, 512, 2, 2, 1);
	dm_put_bytes(&s, 0, bytes, length);
	cr_assert_eq(newest(s.at[0].store, 1, &run), -EBADMSG);
	dm_image_record(bytes, 512, 2, 0, 0);
	dm_put_bytes(&s, 0, bytes, length);
	cr_assert_eq(newest(s.at[0].store, 1, &run), -EBADMSG);
	cr_assert_gt(s.lines, 0);
	dm_image_record(bytes, 512, 2, 2, 4);
	dm_put_bytes(&s, 0, bytes, length);
	free(bytes);
	expect_newest(&s, 5, &(struct cowsnap_run){0, 3, 2});
	dm_close(&s);
}

/* What stays of a block is read before the rest of it is wiped. */
Test(store_dm_merge, damage_in_what_stays_is_told)
{
	struct cowsnap_run runs[4];
	struct dm_scene s;
	uint64_t length;
	uint8_t *bytes;
	int count;

	begin(&s, NULL);
	save_all(&s, 0, 40);
	count = store_newest(s.at[0].store, 0, 25, runs, 4);
	cr_assert_eq(count, 2);
	bytes = dm_bytes(&s, 0, &length);
	dm_image_record(bytes, 512, 20, 20, 1);
	dm_put_bytes(&s, 0, bytes, length);
	cr_assert_eq(store_forget(s.at[0].store, runs, 2), -EBADMSG);
	cr_assert_gt(s.lines, 0);
	dm_image_record(bytes, 512, 20, 21, 22);
	dm_put_bytes(&s, 0, bytes, length);
	cr_assert_eq(store_forget(s.at[0].store, runs, 2), -EINVAL);
	dm_image_record(bytes, 512, 20, 20, 22);
	dm_put_bytes(&s, 0, bytes, length);
	free(bytes);
	cr_assert_eq(store_forget(s.at[0].store, runs, 2), 0);
	dm_close(&s);
}

Test(store_dm_merge, no_memory_is_needed)
{
	struct cowsnap_run run;
	struct dm_scene s;

	begin(&s, &(struct dm_scene_options){.memory = true});
	save_all(&s, 0, 40);
	fail_alloc_at(s.memory, 1, true);
	for (unsigned n = 40; n; n -= (unsigned)run.count) {
		cr_assert_eq(newest(s.at[0].store, 7, &run), 0);
		cr_assert_eq(forget(&s, &run), 0);
	}
	cr_assert_eq(fail_alloc_calls(s.memory), 0);
	fail_alloc_at(s.memory, 0, false);
	dm_close(&s);
}

/* ---- A table of the host's ------------------------------------------------------------------- */

struct host {
	struct cowsnap_run gives;
	size_t runs;
	struct cowsnap_run forgot;
	int error;
};

static int host_alloc(void *user, uint64_t want, uint64_t *location, uint64_t *count)
{
	(void)user;
	(void)want;
	(void)location;
	(void)count;
	return -ENOSPC;
}

static void host_free(void *user, uint64_t location, uint64_t count)
{
	(void)user;
	(void)location;
	(void)count;
}

static void host_space(void *user, struct cowsnap_store_space *space)
{
	(void)user;
	space->limit_chunks = 16;
}

static void host_newest(void *user, struct cowsnap_newest *newest)
{
	struct host *host = user;

	*newest->runs = host->gives;
	newest->count = host->runs;
	newest->done(newest, host->error);
}

static void host_forget(void *user, struct cowsnap_commit *commit)
{
	struct host *host = user;

	host->forgot = *commit->runs;
	commit->done(commit, host->error);
}

static struct cowsnap_store *host_store(
	struct dm_scene *s, struct host *host, bool forgets, uint32_t flags)
{
	struct cowsnap_store_ops ops = {.size = sizeof(ops),
		.alloc = host_alloc,
		.free = host_free,
		.space = host_space,
		.newest = host_newest,
		.forget = forgets ? host_forget : NULL};
	struct cowsnap_store_options options = {.size = sizeof(options),
		.flags = flags,
		.chunk_size_bytes = 4096,
		.device = s->at[0].store_device};
	struct cowsnap_store *store;

	cr_assert_eq(cowsnap_store_create(s->ctx, &ops, &options, host, &store), 0);
	return store;
}

Test(store_dm_merge, what_a_host_s_table_gives_is_checked)
{
	static const struct cowsnap_run wrong[] = {{0, 5, 2}, {0, 2, 23}, {0, 1, 24},
		{0, 1, COWSNAP_LOCATION_NONE}, {0, 0, 2}, {0, 1, COWSNAP_LOCATION_ZERO},
		{UINT64_MAX, 2, 2}, {0, UINT64_MAX, 2}};
	struct host host = {.gives = {7, 4, 20}, .runs = 1};
	struct cowsnap_store *store;
	struct cowsnap_run run;
	struct dm_scene s;

	dm_open(&s, NULL);
	store = host_store(&s, &host, false, 0);
	cr_assert_eq(newest(store, 4, &run), -ENOTSUP);
	cr_assert_eq(forget_run(store, &run), -ENOTSUP);
	cr_assert_eq(cowsnap_store_close(store), 0);
	store = host_store(&s, &host, true, 0);
	cr_assert_eq(newest(store, 4, &run), 0);
	cr_assert_eq(forget_run(store, &run), 0);
	cr_assert_arr_eq(&host.forgot, &run, sizeof(run));
	for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		host.gives = wrong[i];
		cr_assert_eq(newest(store, 4, &run), -EIO, "%u", i);
	}
	host.runs = 2;
	cr_assert_eq(newest(store, 4, &run), -EIO, "more than there is room for");
	host.runs = 0;
	cr_assert_eq(newest(store, 4, &run), 0);
	cr_assert_eq(store_forget(store, &run, 0), -EINVAL);
	host.error = -ENXIO;
	cr_assert_eq(newest(store, 4, &run), -ENXIO);
	cr_assert_eq(forget_run(store, &wrong[0]), -ENXIO);
	cr_assert_eq(cowsnap_store_close(store), 0);
	dm_close(&s);
}

/* They were refused, so that a merge of such a store failed. */
Test(store_dm_merge, a_host_s_table_may_give_zeroes)
{
	struct host host = {.gives = {7, 4, COWSNAP_LOCATION_ZERO}, .runs = 1};
	struct cowsnap_store *store;
	struct cowsnap_run run;
	struct dm_scene s;

	dm_open(&s, NULL);
	store = host_store(&s, &host, true, COWSNAP_STORE_ZEROES);
	cr_assert_eq(newest(store, 4, &run), 0);
	cr_assert_eq(run.location, COWSNAP_LOCATION_ZERO);
	cr_assert_eq(newest(store, 3, &run), -EIO);
	host.gives.first = UINT64_MAX - 2;
	cr_assert_eq(newest(store, 4, &run), -EIO);
	cr_assert_eq(cowsnap_store_close(store), 0);
	dm_close(&s);
}
