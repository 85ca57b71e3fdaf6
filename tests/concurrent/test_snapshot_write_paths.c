/* SPDX-License-Identifier: MIT
 *
 * Writing to snapshots: what meets a write on its way (releases, drops, merges, readers who hold
 * space back), what a full store and a discard do, and what the ends of volumes and blocks do.
 */
#include "concurrent/put.h"

#include <errno.h>

#define FIVE_MINUTES UINT64_C(300000000000)

static int discard(struct cowsnap_snapshot *snapshot, uint64_t offset, uint64_t length)
{
	return cowsnap_snapshot_write(snapshot, COWSNAP_DISCARD, NULL, offset, length);
}

/* ---- Releases, drops ------------------------------------------------------------------------- */

Test(snapshot_write_paths, a_release_gives_back_what_was_written)
{
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	scene_open(&s, NULL);
	snapshot = take(&s);
	cr_assert_eq(put(snapshot, 0, 4 * CHUNK, MINE), 0);
	cr_assert_eq(zero(snapshot, 4 * CHUNK, CHUNK), 0);
	origin_write(&s, 0, 2 * CHUNK, NEW);
	cr_assert_eq(used_chunks(&s), 6);
	cr_assert_eq(cowsnap_snapshot_release(snapshot, 0, 3 * CHUNK), 0);
	scene_reclaim(&s);
	cr_assert_eq(used_chunks(&s), 1, "what was written and not released");
	scene_expect(snapshot, 3 * CHUNK, CHUNK, MINE);
	scene_drop(snapshot);
	scene_close(&s);
}

/* A run of chunks of its own, of which one was released: up to there. */
Test(snapshot_write_paths, a_write_ends_at_what_was_released)
{
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	scene_open(&s, NULL);
	snapshot = take(&s);
	cr_assert_eq(put(snapshot, 0, 4 * CHUNK, MINE), 0);
	cr_assert_eq(cowsnap_snapshot_release(snapshot, 2 * CHUNK, CHUNK), 0);
	cr_assert_eq(cowsnap_snapshot_release(snapshot, 6 * CHUNK, CHUNK), 0);
	cr_assert_eq(put(snapshot, 0, 4 * CHUNK, MINE + 1), -ENODATA);
	scene_expect(snapshot, 0, 2 * CHUNK, MINE + 1);
	scene_expect(snapshot, 3 * CHUNK, CHUNK, MINE);
	cr_assert_eq(put(snapshot, 5 * CHUNK, 3 * CHUNK, MINE), -ENODATA);
	scene_expect(snapshot, 5 * CHUNK, CHUNK, MINE);
	scene_expect(snapshot, 7 * CHUNK, CHUNK, SCENE_BLANK);
	scene_drop(snapshot);
	scene_close(&s);
}

/* The space that a write in place goes to is not given to anybody else before it has ended. */
Test(snapshot_write_paths, released_during_a_write_in_place)
{
	struct cowsnap_snapshot *snapshot;
	struct scene s;
	int hold;

	scene_open(&s, &(struct scene_options){.limit_chunks = 2});
	snapshot = take(&s);
	cr_assert_eq(put(snapshot, 0, 2 * CHUNK, MINE), 0);
	hold = scene_hold(s.store_test[0], TEST_IO_WRITE, 0, UINT64_MAX / 2);
	struct putter p = {.snapshot = snapshot, .length = CHUNK, .value = MINE, .times = 1};
	putter_start(&p);
	scene_wait_held(s.store_test[0], hold);
	cr_assert_eq(cowsnap_snapshot_release(snapshot, 0, 2 * CHUNK), 0);
	scene_reclaim(&s);
	cr_assert_eq(used_chunks(&s), 2, "the write is still under way");
	cr_assert_eq(put(snapshot, 4 * CHUNK, CHUNK, MINE), -ENOSPC);
	test_device_release(s.store_test[0], hold);
	cr_assert_eq(putter_join(&p), 0);
	cr_assert_eq(put(snapshot, 4 * CHUNK, 2 * CHUNK, MINE), 0, "now it is free");
	scene_expect(snapshot, 4 * CHUNK, 2 * CHUNK, MINE);
	scene_drop(snapshot);
	scene_close(&s);
}

Test(snapshot_write_paths, released_during_a_first_write)
{
	struct cowsnap_snapshot *snapshot;
	struct scene s;
	int hold;

	scene_open(&s, NULL);
	snapshot = take(&s);
	hold = scene_hold(s.store_test[0], TEST_IO_WRITE, 0, UINT64_MAX / 2);
	struct putter p = {.snapshot = snapshot, .length = 3 * CHUNK, .value = MINE, .times = 1};
	putter_start(&p);
	scene_wait_held(s.store_test[0], hold);
	cr_assert_eq(cowsnap_snapshot_release(snapshot, CHUNK, CHUNK), 0);
	test_device_release(s.store_test[0], hold);
	cr_assert_eq(putter_join(&p), 0);
	scene_reclaim(&s);
	cr_assert_eq(used_chunks(&s), 2);
	scene_drop(snapshot);
	scene_close(&s);
}

/* A snapshot that has released something is looked through, and dropped in the middle of that. */
Test(snapshot_write_paths, dropped_while_it_is_looked_through)
{
	struct cowsnap_snapshot *snapshot, *younger;
	struct scene s;

	scene_open(&s, NULL);
	snapshot = take(&s);
	younger = take(&s);
	cr_assert_eq(put(snapshot, 0, 4 * CHUNK, MINE), 0);
	cr_assert_eq(cowsnap_snapshot_release(snapshot, 8 * CHUNK, CHUNK), 0);
	scene_drop(younger);
	cr_assert_eq(cowsnap_reclaim(s.ctx, 1), 1);
	scene_drop(snapshot);
	scene_reclaim(&s);
	cr_assert_eq(used_chunks(&s), 0, "what was written to it is not forgotten");
	scene_close(&s);
}

/* What would be given back is said, too. */
Test(snapshot_write_paths, space_of_a_dropped_one_is_reclaimable)
{
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	scene_open(&s, NULL);
	snapshot = take(&s);
	cr_assert_eq(put(snapshot, 0, 4 * CHUNK, MINE), 0);
	cr_assert_eq(scene_usage(&s, 0).reclaimable_bytes, 0);
	scene_drop(snapshot);
	cr_assert_eq(scene_usage(&s, 0).reclaimable_bytes, 4 * CHUNK);
	scene_close(&s);
}

/* A full store: first what ghosts hold. */
Test(snapshot_write_paths, space_of_ghosts_is_used)
{
	struct cowsnap_snapshot *first, *second;
	struct scene s;

	scene_open(&s, &(struct scene_options){.limit_chunks = 4});
	first = take(&s);
	second = take(&s);
	cr_assert_eq(put(first, 0, 4 * CHUNK, MINE), 0);
	cr_assert_eq(put(second, 0, CHUNK, MINE), -ENOSPC);
	cr_assert_eq(info_of(second).overflowed, 1);
	cr_assert_eq(info_of(first).overflowed, 0);
	scene_drop(first);
	cr_assert_eq(put(second, 0, 4 * CHUNK, MINE), 0);
	cr_assert_eq(info_of(second).overflowed, 0);
	scene_expect(second, 0, 4 * CHUNK, MINE);
	scene_drop(second);
	scene_close(&s);
}

/* A writer of the origin waits for space that only the reading of a part holds back. */
Test(snapshot_write_paths, who_waits_for_space_is_woken_by_the_reading_of_a_part)
{
	struct cowsnap_take_entry patient = {
		.on_full = COWSNAP_LOSER_WRITE, .wait_ns = FIVE_MINUTES};
	struct cowsnap_snapshot *dropped;
	struct actor writer = {0};
	struct scene s;
	int hold;

	scene_open(&s, &(struct scene_options){.limit_chunks = 4});
	dropped = take(&s);
	origin_write(&s, 0, 3 * CHUNK, OLD);
	patient.origin = s.origin[0];
	patient.store = s.store[0];
	cr_assert_eq(cowsnap_take(s.ctx, NULL, &patient, 1), 0);
	hold = scene_hold(s.origin_test[0], TEST_IO_READ, 8 * CHUNK, CHUNK);
	struct putter p = {.snapshot = patient.snapshot,
		.offset = 8 * CHUNK,
		.length = 10,
		.value = MINE,
		.times = 1};
	putter_start(&p);
	scene_wait_held(s.origin_test[0], hold);
	scene_drop(dropped);
	actor_write(&writer, &s, 0, 0, 3 * CHUNK, NEW);
	scene_until(&s, space_waits, 1);
	test_device_release(s.origin_test[0], hold);
	cr_assert_eq(actor_join(&writer), 0);
	cr_assert_eq(putter_join(&p), 0);
	scene_expect(patient.snapshot, 0, 3 * CHUNK, OLD);
	scene_expect(patient.snapshot, 8 * CHUNK, 10, MINE);
	scene_drop(patient.snapshot);
	scene_close(&s);
}

/* The mark is told of once per crossing: not by a write that fails to get lost. */
Test(snapshot_write_paths, low_water_is_told_also_by_a_write_that_fails)
{
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	scene_open(&s, &(struct scene_options){.limit_chunks = 8, .low_water_chunks = 6});
	snapshot = take(&s);
	test_device_fail(s.store_test[0], TEST_IO_WRITE, 1, false, -EIO);
	cr_assert_eq(put(snapshot, 0, 4 * CHUNK, MINE), -EIO);
	cr_assert_eq(scene_count_events(&s, COWSNAP_EVENT_LOW_WATER), 1);
	cr_assert_eq(put(snapshot, 0, 4 * CHUNK, MINE), 0);
	cr_assert_eq(scene_count_events(&s, COWSNAP_EVENT_LOW_WATER), 2);
	scene_drop(snapshot);
	scene_close(&s);
}

/* ---- Merges ---------------------------------------------------------------------------------- */

struct releaser {
	struct scene *s;
	struct cowsnap_snapshot *snapshot;
	int hold;
	pthread_t thread;
};

static void *release_when_merging(void *user)
{
	struct releaser *r = user;

	while (info_of(r->snapshot).state != COWSNAP_SNAPSHOT_MERGING)
		sched_yield();
	cr_assert_eq(put(r->snapshot, 0, CHUNK, MINE), -EBUSY);
	test_device_release(r->s->store_test[0], r->hold);
	return NULL;
}

/* A write that is under way when a merge begins is in it whole, or not at all. */
Test(snapshot_write_paths, a_merge_waits_for_writes)
{
	struct cowsnap_snapshot *snapshot;
	uint8_t byte[2];
	struct scene s;

	scene_open(&s, NULL);
	origin_write(&s, 0, ALL, OLD);
	snapshot = take(&s);
	origin_write(&s, 0, ALL, NEW);
	struct releaser r = {.s = &s, .snapshot = snapshot};
	r.hold = scene_hold(s.store_test[0], TEST_IO_WRITE, 0, UINT64_MAX / 2);
	struct putter p = {.snapshot = snapshot, .length = 2 * CHUNK, .value = MINE, .times = 1};
	putter_start(&p);
	scene_wait_held(s.store_test[0], r.hold);
	cr_assert_eq(pthread_create(&r.thread, NULL, release_when_merging, &r), 0);
	cr_assert_eq(cowsnap_merge_begin(snapshot), 0);
	cr_assert_eq(info_of(snapshot).written_chunks, 2, "it has waited");
	pthread_join(r.thread, NULL);
	cr_assert_eq(putter_join(&p), -EBUSY);
	cr_assert_eq(cowsnap_merge_run(snapshot, UINT64_MAX), 0);
	cr_assert_eq(cowsnap_origin_read(s.origin[0], byte, 2 * CHUNK - 1, 2), 0);
	cr_assert_eq(byte[0], MINE);
	cr_assert_eq(byte[1], OLD);
	cr_assert_eq(info_of(snapshot).state, COWSNAP_SNAPSHOT_DROPPED);
	cowsnap_snapshot_unref(snapshot);
	scene_close(&s);
}

/* ---- Zeroes and discards --------------------------------------------------------------------- */

Test(snapshot_write_paths, zeroes_over_zeroes_take_nothing)
{
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	scene_open(&s, NULL);
	origin_write(&s, 0, ALL, OLD);
	snapshot = take(&s);
	cr_assert_eq(zero(snapshot, 0, 4 * CHUNK), 0);
	test_device_reset(s.store_test[0]);
	cr_assert_eq(zero(snapshot, 10, 2 * CHUNK), 0);
	cr_assert_eq(discard(snapshot, CHUNK, 2 * CHUNK), 0);
	cr_assert_eq(used_chunks(&s), 0);
	cr_assert_eq(test_device_calls(s.store_test[0], TEST_IO_ZERO), 0);
	cr_assert_eq(put(snapshot, 3 * CHUNK, CHUNK, MINE), 0);
	cr_assert_eq(test_device_calls(s.store_test[0], TEST_IO_READ), 0, "a whole chunk");
	scene_expect(snapshot, 0, 3 * CHUNK, 0);
	scene_expect(snapshot, 3 * CHUNK, CHUNK, MINE);
	scene_drop(snapshot);
	scene_close(&s);
}

/* What a chunk was before the discard. */
enum before { UNTOUCHED, SAVED, WRITTEN, ZEROED, BEFORES };

static uint8_t prepare(struct scene *s, struct cowsnap_snapshot *snapshot, uint64_t at, int before)
{
	if (before == SAVED)
		origin_write(s, at, CHUNK, NEW);
	if (before == WRITTEN)
		cr_assert_eq(put(snapshot, at, CHUNK, MINE), 0);
	if (before == ZEROED)
		cr_assert_eq(zero(snapshot, at, CHUNK), 0);
	return before == WRITTEN ? MINE : before == ZEROED ? 0 : OLD;
}

/*
 * The discard review of 2019, as a matrix: three chunks, the middle one in each state, and discards
 * that cover of it all, the first part, the last part, and the middle. Whole: zeroes. Else nothing.
 * Neither the origin nor the store's device is told to discard, and other snapshots see nothing.
 */
Test(snapshot_write_paths, discard_matrix)
{
	static const struct {
		uint64_t offset, length;
		bool whole;
	} range[] = {
		{CHUNK, CHUNK, true},
		{CHUNK - 1, CHUNK + 2, true},
		{CHUNK, CHUNK - 1, false},
		{CHUNK + 1, CHUNK - 1, false},
		{CHUNK + 1, 10, false},
		{CHUNK - 10, 20, false},
	};

	for (int before = 0; before < BEFORES; before++) {
		for (size_t i = 0; i < sizeof(range) / sizeof(range[0]); i++) {
			struct cowsnap_snapshot *snapshot, *other;
			struct scene s;
			uint8_t value;

			scene_open(&s, NULL);
			origin_write(&s, 0, ALL, OLD);
			snapshot = take(&s);
			other = take(&s);
			value = prepare(&s, snapshot, CHUNK, before);
			cr_assert_eq(discard(snapshot, range[i].offset, range[i].length), 0);
			scene_expect(snapshot, 0, CHUNK, OLD);
			scene_expect(snapshot, CHUNK, CHUNK, range[i].whole ? 0 : value);
			scene_expect(snapshot, 2 * CHUNK, CHUNK, OLD);
			scene_expect(other, 0, 3 * CHUNK, OLD);
			cr_assert_eq(test_device_calls(s.origin_test[0], TEST_IO_DISCARD), 0);
			cr_assert_eq(test_device_calls(s.store_test[0], TEST_IO_DISCARD), 0);
			scene_drop(other);
			scene_drop(snapshot);
			scene_close(&s);
		}
	}
}

/* ---- The ends of volumes and blocks ---------------------------------------------------------- */

/* An origin that ends in the middle of a chunk, and of a block of the store's device. */
struct odd {
	struct cowsnap_ctx *ctx;
	struct test_device *origin_test, *store_test;
	struct cowsnap_origin *origin;
	struct cowsnap_store *store;
	struct cowsnap_snapshot *snapshot;
};

#define ODD_BYTES (3 * CHUNK + 700)

static void odd_open(struct odd *o, uint32_t block_size)
{
	const struct cowsnap_ctx_options options = {.size = sizeof(options)};
	struct cowsnap_transient_options transient = {
		.size = sizeof(transient), .chunk_size_bytes = CHUNK};
	struct cowsnap_take_entry entry = {0};

	cr_assert_eq(cowsnap_ctx_create(&options, &o->ctx), 0);
	o->origin_test =
		test_device_create(o->ctx, &(struct test_device_options){.size_bytes = ODD_BYTES});
	o->store_test = test_device_create(o->ctx,
		&(struct test_device_options){.size_bytes = 16 * CHUNK, .block_size = block_size});
	cr_assert_eq(cowsnap_origin_open(o->ctx, test_device(o->origin_test), &o->origin), 0);
	transient.device = test_device(o->store_test);
	cr_assert_eq(cowsnap_store_transient(o->ctx, &transient, &o->store), 0);
	entry.origin = o->origin;
	entry.store = o->store;
	cr_assert_eq(cowsnap_take(o->ctx, NULL, &entry, 1), 0);
	o->snapshot = entry.snapshot;
}

static void odd_close(struct odd *o)
{
	scene_drop(o->snapshot);
	cr_assert_eq(cowsnap_store_close(o->store), 0);
	cr_assert_eq(cowsnap_origin_close(o->origin), 0);
	cr_assert_eq(test_device_destroy(o->store_test), 0);
	cr_assert_eq(test_device_destroy(o->origin_test), 0);
	cr_assert_eq(cowsnap_ctx_destroy(o->ctx), 0);
}

Test(snapshot_write_paths, a_last_chunk_that_is_cut_off_is_a_whole_one)
{
	struct cowsnap_store_usage usage;
	struct odd o;

	odd_open(&o, 0);
	cr_assert_eq(zero(o.snapshot, 2 * CHUNK, ODD_BYTES - 2 * CHUNK), 0);
	cr_assert_eq(cowsnap_store_usage(o.store, &usage, sizeof(usage)), 0);
	cr_assert_eq(usage.used_bytes, 0);
	cr_assert_eq(put(o.snapshot, 3 * CHUNK, 700, MINE), 0);
	cr_assert_eq(put(o.snapshot, 0, CHUNK, MINE), 0);
	cr_assert_eq(test_device_calls(o.origin_test, TEST_IO_READ), 0, "nothing is left to copy");
	scene_expect(o.snapshot, 2 * CHUNK, CHUNK, 0);
	scene_expect(o.snapshot, 3 * CHUNK, 700, MINE);
	odd_close(&o);
}

/* What the device writes at once is asked of each write, whatever it finds. */
Test(snapshot_write_paths, blocks_of_the_store)
{
	struct odd o;

	odd_open(&o, 512);
	for (unsigned i = 0; i < 2; i++) {
		cr_assert_eq(put(o.snapshot, 100, 412, MINE), -EINVAL);
		cr_assert_eq(put(o.snapshot, 512, 100, MINE), -EINVAL);
		cr_assert_eq(zero(o.snapshot, 512, 100), -EINVAL);
		cr_assert_eq(discard(o.snapshot, 10, 100), 0);
		cr_assert_eq(put(o.snapshot, 512, 1024, (uint8_t)(MINE + i)), 0);
		cr_assert_eq(put(o.snapshot, 2 * CHUNK + 512, ODD_BYTES - 2 * CHUNK - 512,
				     (uint8_t)(MINE + i)),
			0, "up to the end");
		scene_expect(o.snapshot, 0, 512, SCENE_BLANK);
		scene_expect(o.snapshot, 512, 1024, (uint8_t)(MINE + i));
		scene_expect(o.snapshot, 2 * CHUNK + 512, ODD_BYTES - 2 * CHUNK - 512,
			(uint8_t)(MINE + i));
	}
	cr_assert_eq(put(o.snapshot, 3 * CHUNK + 512, 188, 3), 0, "the last block alone, in place");
	cr_assert_eq(zero(o.snapshot, 3 * CHUNK, 700), 0);
	scene_expect(o.snapshot, 3 * CHUNK, 700, 0);
	odd_close(&o);
}

/* ---- The persistent store -------------------------------------------------------------------- */

/* A drop that is recorded while a write is at the device: no record of it is added. */
Test(snapshot_write_paths, a_persistent_one_is_dropped_during_the_write)
{
	struct cowsnap_snapshot *snapshot;
	struct dm_scene s;
	int hold;

	dm_open(&s, NULL);
	cr_assert_eq(dm_begin(&s), 0);
	cr_assert_eq(dm_put(&s, 0, 512, MINE), 0);
	hold = scene_hold(s.at[0].store_test, TEST_IO_WRITE, 0, UINT64_MAX / 2);
	snapshot = cowsnap_snapshot_ref(s.at[0].snapshot);
	struct putter p = {
		.snapshot = snapshot, .offset = 4096, .length = 1024, .value = MINE, .times = 1};
	putter_start(&p);
	scene_wait_held(s.at[0].store_test, hold);
	cr_assert_eq(dm_drop(&s, 0), 0);
	test_device_release(s.at[0].store_test, hold);
	cr_assert_eq(putter_join(&p), -EIDRM);
	cowsnap_snapshot_unref(snapshot);
	dm_expect_promise(&s, 0);
	cr_assert_eq(dm_take(&s), 0, "the store is empty again");
	cr_assert_eq(dm_put(&s, 4096, 100, MINE), 0);
	dm_expect_exact(&s, 0, true);
	dm_expect_promise(&s, 0);
	dm_close(&s);
}

/* Writers of the origin want the chunk that is written in part: they wait, and find it done. */
Test(snapshot_write_paths, a_persistent_chunk_is_wanted_by_the_origin_too)
{
	struct dm_scene s;
	int hold;

	dm_open(&s, NULL);
	cr_assert_eq(dm_begin(&s), 0);
	hold = scene_hold(s.at[0].origin_test, TEST_IO_READ, 0, 512);
	struct putter p = {.snapshot = s.at[0].snapshot,
		.offset = 10,
		.length = 20,
		.value = MINE,
		.times = 1};
	putter_start(&p);
	scene_wait_held(s.at[0].origin_test, hold);
	cr_assert_eq(dm_write(&s, 0, 4096, 512, NEW), 0, "others go on");
	test_device_release(s.at[0].origin_test, hold);
	cr_assert_eq(dm_write(&s, 0, 0, 512, NEW), 0);
	cr_assert_eq(putter_join(&p), 0);
	memset(s.at[0].image + 10, MINE, 20);
	dm_expect_exact(&s, 0, true);
	dm_expect_promise(&s, 0);
	dm_close(&s);
}

/* Where writes are among the preimages, what has changed up to the written one is not left out. */
Test(snapshot_write_paths, changes_up_to_a_persistent_one_that_was_written)
{
	struct cowsnap_transient_options transient = {
		.size = sizeof(transient), .chunk_size_bytes = 1024};
	struct cowsnap_take_entry entry = {0};
	struct cowsnap_change change[4];
	uint64_t offset = 0;
	struct dm_scene s;

	dm_open(&s, NULL);
	cr_assert_eq(dm_create(&s, 0, 0), 0);
	cr_assert_eq(cowsnap_store_transient(s.ctx, &transient, &entry.store), 0);
	entry.origin = s.at[0].origin;
	cr_assert_eq(cowsnap_take(s.ctx, NULL, &entry, 1), 0);
	cr_assert_eq(dm_take(&s), 0);
	cr_assert_eq(cowsnap_changes(entry.snapshot, s.at[0].snapshot, &offset, change, 4), 0);
	cr_assert_eq(dm_put(&s, 4096, 512, MINE), 0);
	offset = 0;
	cr_assert_eq(cowsnap_changes(entry.snapshot, s.at[0].snapshot, &offset, change, 4), 1);
	cr_assert_eq(change[0].offset, 4096);
	cr_assert_eq(change[0].length, 1024);
	scene_drop(entry.snapshot);
	cr_assert_eq(cowsnap_store_close(entry.store), 0);
	dm_close(&s);
}
