/* SPDX-License-Identifier: MIT
 *
 * The space of a persistent store: which chunks are given out, what is full, what a limit and a
 * longer device change, what the figures say; and who loses when there is none, or a call fails.
 */
#include "support/dm_image.h"
#include "support/dm_scene.h"
#include "support/test.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK UINT64_C(512)
#define AREA  32u
#define MIB   (UINT64_C(1) << 20)
#define GIB   (UINT64_C(1) << 30)

static void begin(struct dm_scene *s, const struct dm_scene_options *options)
{
	dm_open(s, options);
	cr_assert_eq(dm_begin(s), 0, "%s", s->line);
}

static void end(struct dm_scene *s)
{
	dm_expect_promise(s, 0);
	dm_close(s);
}

/* Writes every chunk of the origin, one after the other. Returns: how many were admitted before the
 * first that was not. */
static uint64_t fill(struct dm_scene *s)
{
	uint64_t chunks = s->options.origin_bytes / s->options.chunk_bytes, c = 0;

	while (c < chunks && dm_write(s, 0, c * s->options.chunk_bytes, 1, 0xdd) == 0)
		c++;
	return c;
}

/* Where the records say that the origin's chunks are; the number of records is returned. */
static unsigned records(struct dm_scene *s, uint64_t *stores, unsigned room)
{
	uint64_t length;
	uint8_t *bytes = dm_bytes(s, 0, &length);
	unsigned n = 0;

	for (; n < room; n++) {
		uint64_t at = dm_image_slot(s->options.chunk_bytes, n);

		if (at >= length || !dm_image_get(bytes + at + 8, 8))
			break;
		stores[n] = dm_image_get(bytes + at + 8, 8);
	}
	free(bytes);
	return n;
}

/* ---- Full ------------------------------------------------------------------------------------ */

/* For each length of device: what fits is what the page says. */
Test(store_dm_space, as_many_records_as_fit, .timeout = 60)
{
	for (uint64_t chunks = 3; chunks <= 2 * (AREA + 1) + 4; chunks++) {
		uint64_t areas = (chunks - 1 + AREA) / (AREA + 1);
		uint64_t data = chunks - 1 - areas;
		uint64_t fit = data < areas * AREA - 1 ? data : areas * AREA - 1;
		struct dm_scene s;

		begin(&s, &(struct dm_scene_options){.store_bytes = chunks * CHUNK + chunks % 3,
				  .on_full = COWSNAP_LOSER_WRITE});
		cr_assert_eq(dm_usage(&s, 0).limit_bytes, fit * CHUNK);
		cr_assert_eq(fill(&s), fit, "%llu chunks", (unsigned long long)chunks);
		cr_assert_eq(dm_usage(&s, 0).used_bytes, fit * CHUNK);
		cr_assert_eq(dm_state(&s, 0, NULL), COWSNAP_SNAPSHOT_ACTIVE);
		cr_assert_geq(s.events[COWSNAP_EVENT_FULL], 1);
		end(&s);
	}
}

/* The last stripe is whole: its last slot is the terminator's, and a chunk is left over. */
Test(store_dm_space, whole_stripes_are_full_not_invalid)
{
	for (uint64_t m = 1; m <= 3; m++) {
		struct dm_scene s;

		begin(&s, &(struct dm_scene_options){.store_bytes = (1 + m * (AREA + 1)) * CHUNK,
				  .max_bytes = MIB,
				  .on_full = COWSNAP_LOSER_WRITE});
		cr_assert_eq(fill(&s), m * AREA - 1);
		cr_assert_eq(dm_write(&s, 0, 120 * CHUNK, 1, 1), -ENOSPC);
		cr_assert_eq(dm_state(&s, 0, NULL), COWSNAP_SNAPSHOT_ACTIVE);
		dm_expect_promise(&s, 0);
		/* Full after the next start too. */
		cr_assert_eq(dm_detach(&s, 0), 0);
		cr_assert_eq(dm_attach(&s, 0), 0);
		cr_assert_eq(dm_write(&s, 0, 120 * CHUNK, 1, 1), -ENOSPC);
		/* One chunk more is an area, and with it the one that was left over. */
		cr_assert_eq(dm_grow(&s, 0, (2 + m * (AREA + 1)) * CHUNK), 0);
		cr_assert_eq(dm_usage(&s, 0).limit_bytes, m * AREA * CHUNK);
		cr_assert_eq(dm_write(&s, 0, 120 * CHUNK, 1, 1), 0);
		cr_assert_eq(dm_write(&s, 0, 121 * CHUNK, 1, 1), -ENOSPC);
		dm_expect_promise(&s, 0);
		cr_assert_eq(dm_grow(&s, 0, (8 + m * (AREA + 1)) * CHUNK), 0);
		cr_assert_eq(dm_write(&s, 0, 121 * CHUNK, 6 * CHUNK, 1), 0);
		cr_assert_eq(dm_write(&s, 0, 127 * CHUNK, 1, 1), -ENOSPC);
		dm_expect_exact(&s, 0, true);
		end(&s);
	}
}

Test(store_dm_space, full_store_becomes_invalid_where_the_snapshot_loses)
{
	struct dm_scene s;
	int reason;

	begin(&s, &(struct dm_scene_options){.store_bytes = 6 * CHUNK});
	cr_assert_eq(dm_write(&s, 0, 0, 4 * CHUNK, 1), 0);
	cr_assert_eq(dm_state(&s, 0, NULL), COWSNAP_SNAPSHOT_ACTIVE);
	cr_assert_eq(dm_write(&s, 0, 9 * CHUNK, 1, 1), 0, "the write goes on");
	cr_assert_eq(dm_state(&s, 0, &reason), COWSNAP_SNAPSHOT_INVALID);
	cr_assert_eq(reason, -ENOSPC);
	cr_assert_eq(s.events[COWSNAP_EVENT_INVALID], 1);
	dm_expect_promise(&s, 0);
	cr_assert_eq(dm_drop(&s, 0), 0);
	end(&s);
}

/* As long as it is not dropped the store has it. */
Test(store_dm_space, no_other_snapshot_beside_an_invalid_one)
{
	struct cowsnap_take_entry entry = {0};
	struct dm_scene s;

	begin(&s, &(struct dm_scene_options){.store_bytes = 6 * CHUNK});
	entry.origin = s.at[0].origin;
	entry.store = s.at[0].store;
	cr_assert_eq(dm_write(&s, 0, 0, 5 * CHUNK, 1), 0);
	cr_assert_eq(dm_state(&s, 0, NULL), COWSNAP_SNAPSHOT_INVALID);
	cr_assert_eq(cowsnap_take(s.ctx, NULL, &entry, 1), -ENOTSUP);
	dm_expect_promise(&s, 0);
	cr_assert_eq(dm_drop(&s, 0), 0);
	cr_assert_eq(dm_take(&s), 0);
	end(&s);
}

/* The invalidation is on the device before the write is let go. */
Test(store_dm_space, write_fails_if_invalidity_cannot_be_recorded)
{
	static const enum test_io kinds[] = {TEST_IO_WRITE, TEST_IO_FLUSH};

	for (unsigned i = 0; i < 2; i++) {
		struct dm_scene s;

		begin(&s, &(struct dm_scene_options){.store_bytes = 4 * CHUNK});
		cr_assert_eq(dm_write(&s, 0, 0, 2 * CHUNK, 1), 0);
		test_device_fail(s.at[0].store_test, kinds[i], 1, true, -EIO);
		cr_assert_eq(dm_write(&s, 0, 9 * CHUNK, 1, 1), -EIO);
		cr_assert_eq(dm_state(&s, 0, NULL), COWSNAP_SNAPSHOT_ACTIVE);
		dm_expect_exact(&s, 0, true);
		dm_expect_promise(&s, 0);
		/* As the header says: deactivate it, and writes go on. */
		cr_assert_eq(dm_detach(&s, 0), 0);
		cr_assert_eq(dm_write(&s, 0, 9 * CHUNK, 1, 1), 0);
		dm_close(&s);
	}
}

/* ---- Which chunks ---------------------------------------------------------------------------- */

/* Lowest first, over the areas. */
Test(store_dm_space, chunks_go_upwards)
{
	uint64_t stores[100];
	struct dm_scene s;

	begin(&s, NULL);
	for (uint64_t c = 0; c < 80; c++)
		cr_assert_eq(dm_write(&s, 0, c * CHUNK, 1, 1), 0);
	cr_assert_eq(records(&s, stores, 100), 80);
	for (unsigned n = 0; n < 80; n++)
		cr_assert_eq(stores[n], dm_image_data(CHUNK, n));
	end(&s);
}

/* What a crash, or a reader of another kind, left between used chunks. */
Test(store_dm_space, holes_are_used_again)
{
	uint64_t stores[16];
	struct dm_scene s;
	uint8_t image[20 * CHUNK] = {0};

	dm_open(&s, &(struct dm_scene_options){
			    .store_bytes = sizeof(image), .on_full = COWSNAP_LOSER_WRITE});
	dm_image_header(image, DM_IMAGE_MAGIC, 1, 1, 1);
	dm_image_record(image, CHUNK, 0, 50, 9);
	dm_image_record(image, CHUNK, 1, 51, 3);
	dm_image_record(image, CHUNK, 2, 52, 19);
	memcpy(image + 9 * CHUNK, s.at[0].live + 50 * CHUNK, CHUNK);
	memcpy(image + 3 * CHUNK, s.at[0].live + 51 * CHUNK, CHUNK);
	memcpy(image + 19 * CHUNK, s.at[0].live + 52 * CHUNK, CHUNK);
	dm_put_bytes(&s, 0, image, sizeof(image));
	memcpy(s.at[0].image, s.at[0].live, s.options.origin_bytes);
	s.at[0].promise = DM_ACTIVE;
	cr_assert_eq(dm_attach(&s, 0), 0, "%s", s.line);
	cr_assert_eq(dm_usage(&s, 0).used_bytes, 3 * CHUNK);
	cr_assert_eq(dm_usage(&s, 0).limit_bytes, 18 * CHUNK);
	cr_assert_eq(dm_write(&s, 0, 0, 1, 1), 0);
	cr_assert_eq(dm_write(&s, 0, 2 * CHUNK, 3 * CHUNK, 1), 0);
	cr_assert_eq(records(&s, stores, 16), 7);
	cr_assert_eq(stores[3], 2);
	cr_assert_eq(stores[4], 4);
	cr_assert_eq(stores[5], 5);
	cr_assert_eq(stores[6], 6);
	cr_assert_eq(dm_write(&s, 0, 20 * CHUNK, 11 * CHUNK, 1), 0, "all that is left");
	cr_assert_eq(dm_usage(&s, 0).used_bytes, 18 * CHUNK);
	cr_assert_eq(dm_write(&s, 0, 40 * CHUNK, 1, 1), -ENOSPC);
	end(&s);
}

/* A chunk whose data or record could not be written is free again, and nothing names it. */
Test(store_dm_space, failed_copies_lose_no_space)
{
	static const enum test_io kinds[] = {TEST_IO_WRITE, TEST_IO_READ};
	struct dm_scene s;
	uint64_t fit;

	begin(&s, &(struct dm_scene_options){
			  .store_bytes = 30 * CHUNK, .on_full = COWSNAP_LOSER_WRITE});
	for (unsigned n = 1; n <= 2; n++) {
		for (unsigned k = 0; k < 2; k++) {
			struct test_device *t = k ? s.at[0].origin_test : s.at[0].store_test;

			test_device_fail(t, kinds[k], n, false, -EIO);
			for (unsigned c = 0; c < 2; c++)
				dm_write(&s, 0, (60 + 20 * n + 4 * k + c) * CHUNK, 1, 1);
			test_device_heal(t);
		}
	}
	fit = dm_usage(&s, 0).limit_bytes / CHUNK;
	cr_assert_eq(fit, 28);
	fill(&s);
	cr_assert_eq(dm_usage(&s, 0).used_bytes, fit * CHUNK);
	end(&s);
}

/* A file system that has no room where the store's file has a hole. */
Test(store_dm_space, no_room_below_the_device)
{
	static const enum cowsnap_loser losers[] = {COWSNAP_LOSER_WRITE, COWSNAP_LOSER_SNAPSHOT};

	for (unsigned i = 0; i < 2; i++) {
		struct dm_scene s;

		begin(&s, &(struct dm_scene_options){.on_full = losers[i]});
		cr_assert_eq(dm_write(&s, 0, 0, 4 * CHUNK, 1), 0);
		test_device_fail_range(s.at[0].store_test, TEST_IO_WRITE, 8 * CHUNK, MIB, -ENOSPC);
		cr_assert_eq(dm_write(&s, 0, 20 * CHUNK, 10 * CHUNK, 1), i ? 0 : -ENOSPC);
		cr_assert_eq(dm_state(&s, 0, NULL),
			i ? COWSNAP_SNAPSHOT_INVALID : COWSNAP_SNAPSHOT_ACTIVE);
		dm_expect_promise(&s, 0);
		test_device_heal(s.at[0].store_test);
		cr_assert_eq(dm_write(&s, 0, 20 * CHUNK, 10 * CHUNK, 1), 0);
		end(&s);
	}
}

/* ---- Failures of the record ------------------------------------------------------------------ */

/* The blocks of an area fail to be written, once: what may have landed is taken back, the store
 * goes on. */
Test(store_dm_space, a_record_that_fails_is_taken_back)
{
	struct dm_scene s;
	uint64_t stores[8];

	begin(&s, &(struct dm_scene_options){.on_full = COWSNAP_LOSER_WRITE});
	cr_assert_eq(dm_write(&s, 0, 0, 1, 1), 0);
	/* Data first, then the record. */
	test_device_fail_short(s.at[0].store_test, TEST_IO_WRITE, 2, false, -EIO);
	cr_assert_eq(dm_write(&s, 0, 4 * CHUNK, 1, 1), -EIO);
	cr_assert_eq(records(&s, stores, 8), 1);
	cr_assert_eq(dm_write(&s, 0, 8 * CHUNK, 1, 1), 0);
	cr_assert_eq(records(&s, stores, 8), 2);
	cr_assert_eq(stores[1], 3, "the chunk of the one that failed");
	cr_assert_eq(dm_write(&s, 0, 4 * CHUNK, 1, 1), 0);
	end(&s);
}

Test(store_dm_space, a_failed_flush_breaks_the_store)
{
	struct dm_scene s;

	begin(&s, &(struct dm_scene_options){.on_full = COWSNAP_LOSER_WRITE});
	cr_assert_eq(dm_write(&s, 0, 0, 1, 1), 0);
	test_device_fail(s.at[0].store_test, TEST_IO_FLUSH, 1, false, -EIO);
	cr_assert_eq(dm_write(&s, 0, 4 * CHUNK, 1, 1), -EIO);
	cr_assert_eq(dm_write(&s, 0, 8 * CHUNK, 1, 1), -EIO, "and so it stays");
	cr_assert_eq(dm_write(&s, 0, 0, 1, 2), 0, "what is saved is saved");
	dm_expect_exact(&s, 0, true);
	dm_expect_promise(&s, 0);
	cr_assert_eq(dm_detach(&s, 0), 0);
	cr_assert_eq(dm_attach(&s, 0), 0, "the next one knows again what is there");
	cr_assert_eq(dm_write(&s, 0, 8 * CHUNK, 1, 1), 0);
	end(&s);
}

/* ---- Limits and figures ---------------------------------------------------------------------- */

Test(store_dm_space, limits)
{
	struct dm_scene s;

	begin(&s, &(struct dm_scene_options){
			  .store_bytes = 20 * CHUNK, .on_full = COWSNAP_LOSER_WRITE});
	cr_assert_eq(dm_write(&s, 0, 0, 4 * CHUNK, 1), 0);
	cr_assert_eq(cowsnap_store_set_limit(s.at[0].store, 19 * CHUNK), -ERANGE);
	cr_assert_eq(cowsnap_store_set_limit(s.at[0].store, CHUNK - 1), -ERANGE);
	cr_assert_eq(cowsnap_store_set_limit(s.at[0].store, 3 * CHUNK), -EBUSY);
	cr_assert_eq(cowsnap_store_set_limit(s.at[0].store, 5 * CHUNK), 0);
	cr_assert_eq(dm_usage(&s, 0).limit_bytes, 5 * CHUNK);
	cr_assert_eq(dm_write(&s, 0, 10 * CHUNK, 1, 1), 0);
	cr_assert_eq(dm_write(&s, 0, 11 * CHUNK, 1, 1), -ENOSPC);
	cr_assert_eq(cowsnap_store_set_limit(s.at[0].store, 0), 0);
	cr_assert_eq(dm_usage(&s, 0).limit_bytes, 18 * CHUNK);
	cr_assert_eq(dm_write(&s, 0, 11 * CHUNK, 1, 1), 0);
	end(&s);
}

Test(store_dm_space, refresh)
{
	struct cowsnap_device *memory;
	struct dm_scene s;

	begin(&s, &(struct dm_scene_options){.store_bytes = 20 * CHUNK, .max_bytes = MIB});
	cr_assert_eq(cowsnap_device_refresh(s.at[0].store_device), 0);
	cr_assert_eq(cowsnap_device_refresh(s.at[0].origin_device), 0, "it cannot tell");
	test_device_resize(s.at[0].store_test, 30 * CHUNK);
	cr_assert_eq(cowsnap_store_set_limit(s.at[0].store, 28 * CHUNK), -ERANGE, "not asked yet");
	test_device_fail(s.at[0].store_test, TEST_IO_LENGTH, 1, false, -EIO);
	cr_assert_eq(cowsnap_device_refresh(s.at[0].store_device), -EIO);
	cr_assert_eq(cowsnap_device_size(s.at[0].store_device), 20 * CHUNK);
	cr_assert_eq(cowsnap_device_refresh(s.at[0].store_device), 0);
	cr_assert_eq(cowsnap_device_size(s.at[0].store_device), 30 * CHUNK);
	cr_assert_eq(dm_usage(&s, 0).limit_bytes, 18 * CHUNK, "growth is not taken unasked");
	cr_assert_eq(cowsnap_store_set_limit(s.at[0].store, 0), 0);
	cr_assert_eq(dm_usage(&s, 0).limit_bytes, 28 * CHUNK);
	test_device_resize(s.at[0].store_test, 29 * CHUNK);
	cr_assert_eq(cowsnap_device_refresh(s.at[0].store_device), -ERANGE);
	cr_assert_eq(cowsnap_device_size(s.at[0].store_device), 30 * CHUNK);
	test_device_resize(s.at[0].store_test, 30 * CHUNK);
	cr_assert_eq(cowsnap_device_memory(s.ctx, 4096, &memory), 0);
	cr_assert_eq(cowsnap_device_refresh(memory), 0);
	cr_assert_eq(cowsnap_device_close(memory), 0);
	cr_assert_eq(cowsnap_device_refresh(memory), -EBADF);
	end(&s);
}

Test(store_dm_space, figures_are_the_same_after_a_reopen)
{
	struct cowsnap_snapshot_info info_before, info_after;
	struct cowsnap_store_usage before, after;
	struct dm_scene s;

	begin(&s, NULL);
	cr_assert_eq(dm_write(&s, 0, 0, 40 * CHUNK, 1), 0);
	cr_assert_eq(dm_write(&s, 0, 100 * CHUNK, 7, 1), 0);
	before = dm_usage(&s, 0);
	cr_assert_eq(before.used_bytes, 41 * CHUNK);
	cr_assert_eq(cowsnap_snapshot_info(s.at[0].snapshot, &info_before, sizeof(info_before)), 0);
	cr_assert_eq(dm_detach(&s, 0), 0);
	cr_assert_eq(dm_attach(&s, 0), 0);
	after = dm_usage(&s, 0);
	cr_assert_eq(cowsnap_snapshot_info(s.at[0].snapshot, &info_after, sizeof(info_after)), 0);
	cr_assert_eq(after.chunk_size_bytes, before.chunk_size_bytes);
	cr_assert_eq(after.used_bytes, before.used_bytes);
	cr_assert_eq(after.limit_bytes, before.limit_bytes);
	cr_assert_eq(after.high_water_bytes, before.high_water_bytes);
	cr_assert_eq(after.snapshots, 1);
	cr_assert_eq(after.ghosts, 0);
	cr_assert_eq(info_after.saved_chunks, info_before.saved_chunks);
	cr_assert_eq(info_after.size_bytes, s.options.origin_bytes);
	cr_assert_eq(info_after.chunk_size_bytes, CHUNK);
	cr_assert_neq(info_after.id, info_before.id);
	end(&s);
}

Test(store_dm_space, low_water_is_an_eighth)
{
	struct dm_scene s;

	begin(&s, &(struct dm_scene_options){.store_bytes = 26 * CHUNK});
	cr_assert_eq(dm_write(&s, 0, 0, 21 * CHUNK, 1), 0);
	cr_assert_eq(s.events[COWSNAP_EVENT_LOW_WATER], 0, "3 of 24 are free");
	cr_assert_eq(dm_write(&s, 0, 30 * CHUNK, 1, 1), 0);
	cr_assert_eq(s.events[COWSNAP_EVENT_LOW_WATER], 1);
	end(&s);
}

/* ---- Chunk sizes ----------------------------------------------------------------------------- */

static void chunk_size(uint64_t chunk, uint64_t origin_bytes, uint64_t store_bytes)
{
	struct dm_scene s;

	begin(&s, &(struct dm_scene_options){.chunk_bytes = chunk,
			  .origin_bytes = origin_bytes,
			  .store_bytes = store_bytes,
			  .on_full = COWSNAP_LOSER_WRITE});
	cr_assert_eq(cowsnap_store_chunk_size(s.at[0].store), chunk);
	cr_assert_eq(dm_write(&s, 0, 1, 1, 1), 0);
	cr_assert_eq(dm_write(&s, 0, origin_bytes - 10, 10, 1), 0, "the last chunk is cut short");
	dm_expect_exact(&s, 0, true);
	cr_assert_eq(dm_detach(&s, 0), 0);
	cr_assert_eq(dm_attach(&s, 0), 0);
	dm_expect_exact(&s, 0, true);
	cr_assert_eq(dm_write(&s, 0, origin_bytes / 2, 1, 2), 0);
	dm_expect_exact(&s, 0, true);
	if (store_bytes <= 64 * MIB)
		dm_expect_promise(&s, 0);
	dm_close(&s);
}

Test(store_dm_space, chunk_sizes, .timeout = 60)
{
	for (uint64_t chunk = 512; chunk <= MIB; chunk *= 2)
		chunk_size(chunk, 3 * chunk - 500, 12 * chunk + 100);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(CS_TEST_STANDIN)
/* An area of 1 GiB is written when the snapshot is taken: once is enough. */
Test(store_dm_space, chunk_of_1_gib, .timeout = 120)
{
	chunk_size(GIB, 4096, 3 * GIB);
}
#endif
