/* SPDX-License-Identifier: MIT
 *
 * The persistent store: what create, take, drop, deactivate and the generation leave on the device,
 * what they refuse, and how space is counted, used again and grown.
 */
#include "support/dm_image.h"
#include "support/dm_scene.h"
#include "support/image.h"
#include "support/test.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK UINT64_C(512)
#define AREA  32u

static const uint8_t zeroes[4096];

static struct cowsnap_dm_options options_for(struct dm_scene *s)
{
	return (struct cowsnap_dm_options){.size = sizeof(struct cowsnap_dm_options),
		.device = s->at[0].store_device,
		.chunk_size_bytes = CHUNK};
}

static int create_with(struct dm_scene *s, const struct cowsnap_dm_options *options)
{
	struct cowsnap_store *store = NULL;
	int rc = cowsnap_store_dm_create(s->ctx, options, &store);

	if (rc == 0)
		cr_assert_eq(cowsnap_store_close(store), 0);
	return rc;
}

static void begin(struct dm_scene *s, const struct dm_scene_options *options)
{
	dm_open(s, options);
	cr_assert_eq(dm_begin(s), 0, "%s", s->line);
}

/* Ends the scene after a look at what is on the device. */
static void end(struct dm_scene *s)
{
	for (unsigned i = 0; i < s->options.stores; i++)
		dm_expect_promise(s, i);
	dm_close(s);
}

/* ---- Create: refusals ------------------------------------------------------------------------ */

Test(store_dm, create_refuses_bad_options)
{
	struct {
		struct cowsnap_dm_options known;
		uint64_t newer;
	} larger;
	struct cowsnap_dm_options o;
	struct dm_scene s;

	dm_open(&s, NULL);
	o = options_for(&s);
	o.size = 0;
	cr_assert_eq(create_with(&s, &o), -EINVAL);
	o = options_for(&s);
	o.flags = UINT32_C(1) << 31;
	cr_assert_eq(create_with(&s, &o), -EINVAL);
	o = options_for(&s);
	o.device = NULL;
	cr_assert_eq(create_with(&s, &o), -EINVAL);
	memset(&larger, 0, sizeof(larger));
	larger.known = options_for(&s);
	larger.known.size = sizeof(larger);
	larger.newer = 1;
	cr_assert_eq(create_with(&s, &larger.known), -E2BIG);
	larger.newer = 0;
	cr_assert_eq(create_with(&s, &larger.known), 0);
	dm_close(&s);
}

Test(store_dm, create_refuses_bad_chunk_sizes)
{
	static const struct {
		uint64_t chunk;
		int rc;
	} sizes[] = {
		{1000, -EINVAL}, {4096 + 512, -EINVAL}, {256, -ERANGE},
		{UINT64_C(1) << 31, -ERANGE}, {UINT64_C(1) << 63, -ERANGE},
		{512, -EINVAL},            /* the device's block is 1024 */
		{1024, 0}, {32 * 1024, 0}, /* three chunks: the least */
		{64 * 1024, -ERANGE},      /* one chunk and a half */
	};
	struct cowsnap_dm_options o;
	struct dm_scene s;

	dm_open(&s, &(struct dm_scene_options){.block_size = 1024, .chunk_bytes = 1024});
	o = options_for(&s);
	for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		o.chunk_size_bytes = sizes[i].chunk;
		cr_assert_eq(create_with(&s, &o), sizes[i].rc, "chunk size %llu",
			(unsigned long long)sizes[i].chunk);
	}
	dm_close(&s);
}

Test(store_dm, create_chooses_the_chunk_size)
{
	static const uint32_t blocks[] = {1, 512, 4096, 16384};

	for (unsigned i = 0; i < sizeof(blocks) / sizeof(blocks[0]); i++) {
		struct cowsnap_dm_options o;
		struct dm_scene s;

		dm_open(&s, &(struct dm_scene_options){.block_size = blocks[i]});
		o = options_for(&s);
		o.chunk_size_bytes = 0;
		cr_assert_eq(cowsnap_store_dm_create(s.ctx, &o, &s.at[0].store), 0);
		cr_assert_eq(cowsnap_store_chunk_size(s.at[0].store),
			blocks[i] > 4096 ? blocks[i] : 4096);
		cr_assert_eq(cowsnap_store_device(s.at[0].store), s.at[0].store_device);
		dm_close(&s);
	}
}

Test(store_dm, create_refuses_a_device_in_use)
{
	struct cowsnap_dm_options o;
	struct dm_scene s;

	dm_open(&s, NULL);
	o = options_for(&s);
	o.device = s.at[0].origin_device;
	cr_assert_eq(create_with(&s, &o), -EBUSY, "a store on an origin");
	cr_assert_eq(dm_create(&s, 0, 0), 0);
	cr_assert_eq(test_device_locked(s.at[0].store_test), COWSNAP_LOCK_EXCLUSIVE);
	o = options_for(&s);
	cr_assert_eq(create_with(&s, &o), -EBUSY, "a second store on the device");
	dm_close(&s);
}

Test(store_dm, create_refuses_the_same_bytes_under_two_handles)
{
	static const struct cowsnap_device_identity identity = {{1, 2, 3, 4}};
	const struct test_device_options twin = {.size_bytes = 65536, .identity = &identity};
	struct test_device *one, *other;
	struct cowsnap_store *store;
	struct cowsnap_origin *origin;
	struct cowsnap_dm_options o;
	struct dm_scene s;

	dm_open(&s, NULL);
	one = test_device_create(s.ctx, &twin);
	other = test_device_create(s.ctx, &twin);
	o = options_for(&s);
	o.device = test_device(one);
	cr_assert_eq(cowsnap_store_dm_create(s.ctx, &o, &store), 0);
	o.device = test_device(other);
	cr_assert_eq(create_with(&s, &o), -EBUSY);
	cr_assert_eq(cowsnap_origin_open(s.ctx, test_device(other), &origin), -EBUSY);
	cr_assert_eq(cowsnap_store_close(store), 0);
	cr_assert_eq(cowsnap_origin_open(s.ctx, test_device(other), &origin), 0);
	o.device = test_device(one);
	cr_assert_eq(create_with(&s, &o), -EBUSY, "a store on its origin");
	cr_assert_eq(cowsnap_origin_close(origin), 0);
	cr_assert_eq(test_device_destroy(one), 0);
	cr_assert_eq(test_device_destroy(other), 0);
	dm_close(&s);
}

Test(store_dm, create_refuses_a_device_of_another_process)
{
	struct cowsnap_dm_options o;
	struct dm_scene s;

	dm_open(&s, NULL);
	o = options_for(&s);
	test_device_set_busy(s.at[0].store_test, true);
	cr_assert_eq(create_with(&s, &o), -EBUSY);
	cr_assert_gt(s.lines, 0, "nothing was said");
	test_device_set_busy(s.at[0].store_test, false);
	cr_assert_eq(create_with(&s, &o), 0);
	cr_assert_eq(test_device_locked(s.at[0].store_test), COWSNAP_LOCK_NONE);
	dm_close(&s);
}

static int read_nothing(void *user, void *buffer, uint64_t offset, uint64_t length)
{
	(void)user;
	(void)offset;
	memset(buffer, 0, length);
	return 0;
}

Test(store_dm, create_refuses_devices_that_cannot)
{
	const struct cowsnap_device_ops ops = {.size = sizeof(ops), .read = read_nothing};
	const struct cowsnap_device_options device_options = {
		.size = sizeof(device_options), .size_bytes = 65536};
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *device, *foreign;
	struct cowsnap_dm_options o;
	struct dm_scene s;

	dm_open(&s, NULL);
	o = options_for(&s);
	cr_assert_eq(cowsnap_device_create(s.ctx, &ops, &device_options, NULL, &device), 0);
	o.device = device;
	cr_assert_eq(create_with(&s, &o), -EROFS);
	cr_assert_eq(cowsnap_device_close(device), 0);
	cr_assert_eq(create_with(&s, &o), -EBADF);
	cr_assert_eq(cowsnap_ctx_create(NULL, &ctx), 0);
	cr_assert_eq(cowsnap_device_memory(ctx, 65536, &foreign), 0);
	o.device = foreign;
	cr_assert_eq(create_with(&s, &o), -EXDEV);
	cr_assert_eq(cowsnap_device_close(foreign), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
	test_device_fail(s.at[0].store_test, TEST_IO_READ, 1, false, -ENXIO);
	o = options_for(&s);
	cr_assert_eq(create_with(&s, &o), -ENXIO);
	dm_close(&s);
}

Test(store_dm, create_keeps_what_is_on_the_device)
{
	struct cowsnap_dm_options o;
	struct dm_scene s;
	uint64_t length;
	uint8_t *before, *after;
	uint8_t byte = 1;

	begin(&s, NULL);
	cr_assert_eq(dm_detach(&s, 0), 0);
	before = dm_bytes(&s, 0, &length);
	o = options_for(&s);
	cr_assert_eq(create_with(&s, &o), -EEXIST);
	after = dm_bytes(&s, 0, &length);
	cr_assert_arr_eq(before, after, length);
	free(before);
	free(after);
	/* Something else than a store. */
	dm_put_bytes(&s, 0, zeroes, sizeof(zeroes));
	dm_put_bytes(&s, 0, &byte, 1);
	cr_assert_eq(create_with(&s, &o), -EEXIST);
	o.flags = COWSNAP_DM_OVERWRITE;
	cr_assert_eq(create_with(&s, &o), 0);
	s.at[0].promise = DM_NOTHING;
	dm_close(&s);
}

/* ---- What is on the device ------------------------------------------------------------------- */

Test(store_dm, create_alone_makes_no_snapshot)
{
	struct cowsnap_run run = {0, 1, 2};
	struct dm_scene s;

	dm_open(&s, NULL);
	cr_assert_eq(dm_create(&s, 0, 0), 0);
	cr_assert_eq(cowsnap_store_commit(s.at[0].store, &run, 1), -ESRCH);
	s.at[0].promise = DM_ABSENT;
	end(&s);
}

Test(store_dm, take_writes_header_and_empty_area)
{
	struct dm_scene s;
	uint64_t length;
	uint8_t must[2 * CHUNK] = {0};
	uint8_t *bytes;

	/* Whatever was there before, behind the first block. */
	dm_open(&s, &(struct dm_scene_options){.generation = UINT64_C(0x1122334455667788)});
	memset(must, 0xff, sizeof(must));
	memset(must, 0, CHUNK);
	dm_put_bytes(&s, 0, must, sizeof(must));
	cr_assert_eq(dm_begin(&s), 0);
	memset(must, 0, sizeof(must));
	dm_image_header(must, DM_IMAGE_MAGIC, 1, 1, 1);
	dm_image_put(must + 16, UINT64_C(0x1122334455667788), 8);
	bytes = dm_bytes(&s, 0, &length);
	cr_assert_arr_eq(bytes, must, sizeof(must));
	free(bytes);
	end(&s);
}

Test(store_dm, a_copy_is_data_and_record)
{
	struct dm_scene s;
	uint64_t length;
	uint8_t *bytes;

	begin(&s, NULL);
	cr_assert_eq(dm_write(&s, 0, 7 * CHUNK + 3, 5, 9), 0);
	bytes = dm_bytes(&s, 0, &length);
	cr_assert_eq(dm_image_get(bytes + dm_image_slot(CHUNK, 0), 8), 7);
	cr_assert_eq(dm_image_get(bytes + dm_image_slot(CHUNK, 0) + 8, 8), 2, "the lowest chunk");
	cr_assert_arr_eq(bytes + 2 * CHUNK, s.at[0].image + 7 * CHUNK, CHUNK);
	cr_assert_arr_eq(bytes + dm_image_slot(CHUNK, 1), zeroes, CHUNK - 16);
	free(bytes);
	end(&s);
}

Test(store_dm, one_snapshot_only)
{
	struct cowsnap_take_entry entry[2];
	struct dm_scene s;

	begin(&s, NULL);
	entry[0] = (struct cowsnap_take_entry){.origin = s.at[0].origin, .store = s.at[0].store};
	cr_assert_eq(cowsnap_take(s.ctx, NULL, entry, 1), -ENOTSUP);
	end(&s);

	dm_open(&s, &(struct dm_scene_options){.stores = 2});
	cr_assert_eq(dm_create(&s, 0, 0), 0);
	for (unsigned i = 0; i < 2; i++)
		entry[i] = (struct cowsnap_take_entry){
			.origin = s.at[i].origin, .store = s.at[0].store};
	cr_assert_eq(cowsnap_take(s.ctx, NULL, entry, 2), -ENOTSUP);
	s.at[0].promise = DM_ABSENT;
	s.at[1].promise = DM_ABSENT;
	end(&s);
}

Test(store_dm, drop_is_on_the_device_before_it_is_done)
{
	struct dm_scene s;
	uint64_t length;
	uint8_t *bytes;

	begin(&s, NULL);
	cr_assert_eq(dm_write(&s, 0, 0, 10 * CHUNK, 1), 0);
	cr_assert_eq(dm_drop(&s, 0), 0);
	bytes = dm_bytes(&s, 0, &length);
	cr_assert_arr_eq(bytes, zeroes, CHUNK);
	free(bytes);
	cr_assert_eq(cowsnap_reclaim(s.ctx, UINT64_MAX), 0);
	cr_assert_eq(dm_usage(&s, 0).used_bytes, 0);
	end(&s);
}

Test(store_dm, a_drop_that_fails_leaves_the_snapshot)
{
	struct dm_scene s;

	begin(&s, NULL);
	cr_assert_eq(dm_write(&s, 0, 0, 4 * CHUNK, 1), 0);
	test_device_fail(s.at[0].store_test, TEST_IO_WRITE, 1, true, -EIO);
	cr_assert_eq(dm_drop(&s, 0), -EIO);
	cr_assert_eq(dm_state(&s, 0, NULL), COWSNAP_SNAPSHOT_ACTIVE);
	dm_expect_exact(&s, 0, true);
	test_device_heal(s.at[0].store_test);
	dm_expect_promise(&s, 0);
	cr_assert_eq(dm_drop(&s, 0), 0, "the second try");
	end(&s);
}

/* A write was under way while the snapshot was dropped, and has ended: its store is free for
 * another one. */
Test(store_dm, take_after_a_drop_during_a_write)
{
	struct cowsnap_op op;
	struct dm_scene s;

	begin(&s, NULL);
	cr_assert_eq(cowsnap_write_begin(s.at[0].origin, COWSNAP_WRITE, 0, CHUNK, &op), 0);
	cr_assert_eq(dm_drop(&s, 0), 0);
	cowsnap_write_end(&op);
	cr_assert_eq(dm_take(&s), 0);
	end(&s);
}

Test(store_dm, deactivate_refuses)
{
	struct cowsnap_transient_options transient = {.size = sizeof(transient)};
	struct cowsnap_take_entry entry;
	struct cowsnap_store *store;
	struct cowsnap_snapshot *snapshot;
	struct dm_scene s;

	begin(&s, NULL);
	cr_assert_eq(cowsnap_store_transient(s.ctx, &transient, &store), 0);
	entry = (struct cowsnap_take_entry){.origin = s.at[0].origin, .store = store};
	cr_assert_eq(cowsnap_take(s.ctx, NULL, &entry, 1), 0);
	cr_assert_eq(cowsnap_snapshot_deactivate(entry.snapshot), -ENOTSUP);
	cr_assert_eq(cowsnap_snapshot_drop(entry.snapshot), 0);
	cowsnap_snapshot_unref(entry.snapshot);
	cr_assert_eq(cowsnap_store_close(store), 0);

	snapshot = s.at[0].snapshot;
	cr_assert_eq(cowsnap_snapshot_deactivate(snapshot), 0);
	cr_assert_eq(cowsnap_snapshot_deactivate(snapshot), -EIDRM);
	cr_assert_eq(cowsnap_snapshot_drop(snapshot), -EIDRM);
	cowsnap_snapshot_unref(snapshot);
	s.at[0].snapshot = NULL;
	end(&s);
}

/* It ends in memory alone: nothing is written, so that it can end on a device that has failed. */
Test(store_dm, deactivate_writes_nothing)
{
	struct cowsnap_snapshot *snapshot;
	struct cowsnap_snapshot_info info;
	struct dm_scene s;
	uint8_t byte;

	begin(&s, NULL);
	cr_assert_eq(dm_write(&s, 0, 0, 4 * CHUNK, 1), 0);
	for (int kind = 0; kind < TEST_IO_LENGTH; kind++)
		test_device_fail(s.at[0].store_test, (enum test_io)kind, 1, true, -EIO);
	snapshot = s.at[0].snapshot;
	cr_assert_eq(cowsnap_snapshot_deactivate(snapshot), 0);
	cr_assert_eq(cowsnap_snapshot_info(snapshot, &info, sizeof(info)), 0);
	cr_assert_eq(info.state, COWSNAP_SNAPSHOT_DROPPED);
	cr_assert_eq(cowsnap_snapshot_read(snapshot, &byte, 0, 1), -EIDRM);
	cowsnap_snapshot_unref(snapshot);
	s.at[0].snapshot = NULL;
	cr_assert_eq(dm_close_store(&s, 0), 0);
	test_device_heal(s.at[0].store_test);
	end(&s);
}

/* ---- Generation ------------------------------------------------------------------------------ */

static uint64_t generation_on(struct dm_scene *s)
{
	uint64_t length;
	uint8_t *bytes = dm_bytes(s, 0, &length);
	uint64_t generation = dm_image_get(bytes + 16, 8);

	free(bytes);
	return generation;
}

Test(store_dm, generation_is_kept)
{
	struct dm_scene s;

	dm_open(&s, &(struct dm_scene_options){.generation = 3});
	cr_assert_eq(dm_create(&s, 0, 0), 0);
	cr_assert_eq(dm_set_generation(&s, 0, 4), 0);
	cr_assert_eq(dm_take(&s), 0);
	cr_assert_eq(generation_on(&s), 4);
	cr_assert_eq(dm_set_generation(&s, 0, UINT64_MAX), 0);
	cr_assert_eq(generation_on(&s), UINT64_MAX);
	cr_assert_eq(dm_write(&s, 0, 0, CHUNK, 1), 0);
	cr_assert_eq(dm_detach(&s, 0), 0);
	cr_assert_eq(dm_attach(&s, 0), 0);
	cr_assert_eq(dm_write(&s, 0, 2 * CHUNK, CHUNK, 1), 0);
	cr_assert_eq(generation_on(&s), UINT64_MAX);
	end(&s);
}

Test(store_dm, generation_stays_in_an_invalid_store)
{
	struct dm_scene s;

	begin(&s, &(struct dm_scene_options){.generation = 77,
			  .store_bytes = 3 * CHUNK,
			  .on_full = COWSNAP_LOSER_SNAPSHOT});
	cr_assert_eq(dm_write(&s, 0, 0, 4 * CHUNK, 1), 0);
	cr_assert_eq(dm_state(&s, 0, NULL), COWSNAP_SNAPSHOT_INVALID);
	cr_assert_eq(generation_on(&s), 77);
	/* A new one must not make it valid. */
	cr_assert_eq(dm_set_generation(&s, 0, 78), 0);
	cr_assert_eq(generation_on(&s), 78);
	end(&s);
}

Test(store_dm, generation_refuses)
{
	struct cowsnap_transient_options transient = {.size = sizeof(transient)};
	struct cowsnap_store *store;
	struct dm_scene s;

	begin(&s, NULL);
	cr_assert_eq(cowsnap_store_transient(s.ctx, &transient, &store), 0);
	cr_assert_eq(cowsnap_store_dm_set_generation(store, 1), -EINVAL);
	cr_assert_eq(cowsnap_store_close(store), 0);
	test_device_fail(s.at[0].store_test, TEST_IO_WRITE, 1, true, -EIO);
	cr_assert_eq(dm_set_generation(&s, 0, 1), -EIO);
	test_device_heal(s.at[0].store_test);
	dm_expect_promise(&s, 0);
	cr_assert_eq(dm_detach(&s, 0), 0);
	cr_assert_eq(cowsnap_device_refresh(s.at[0].store_device), 0);
	cr_assert_eq(dm_attach(&s, 0), 0);
	store = s.at[0].store;
	cr_assert_eq(dm_detach(&s, 0), 0);
	cr_assert_eq(cowsnap_store_dm_set_generation(store, 1), -EBADF);
	end(&s);
}
