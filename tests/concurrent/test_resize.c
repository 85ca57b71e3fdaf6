/* SPDX-License-Identifier: MIT
 *
 * Origins that grow while snapshots live, and stores of several kinds and chunk sizes beside each
 * other on one of them.
 */
#include "concurrent/scene.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "support/seed.h"

#define SMALL UINT64_C(100000)
#define LARGE UINT64_C(200000)
#define CHUNK UINT64_C(4096)

struct volume {
	struct cowsnap_ctx *ctx;
	struct test_device *device;
	struct cowsnap_origin *origin;
	struct cowsnap_store *store;
	uint8_t live[LARGE];
};

static void volume_open(struct volume *v)
{
	memset(v, 0, sizeof(*v));
	cr_assert_eq(cowsnap_ctx_create(NULL, &v->ctx), 0);
	v->device = test_device_create(
		v->ctx, &(struct test_device_options){.size_bytes = SMALL, .max_bytes = LARGE});
	cr_assert_not_null(v->device);
	cr_assert_eq(cowsnap_origin_open(v->ctx, test_device(v->device), &v->origin), 0);
	cr_assert_eq(cowsnap_store_transient(v->ctx, NULL, &v->store), 0);
}

static void volume_close(struct volume *v)
{
	cr_assert_eq(cowsnap_store_close(v->store), 0);
	cr_assert_eq(cowsnap_origin_close(v->origin), 0);
	cr_assert_eq(test_device_destroy(v->device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(v->ctx), 0);
}

static void volume_grow(struct volume *v)
{
	test_device_resize(v->device, LARGE);
	cr_assert_eq(cowsnap_device_refresh(test_device(v->device)), 0);
	cr_assert_eq(cowsnap_origin_resize(v->origin, 0), 0);
}

static int volume_write(struct volume *v, uint64_t offset, uint64_t length, uint8_t value)
{
	struct cowsnap_op op;
	int rc = cowsnap_write_begin(v->origin, COWSNAP_WRITE, offset, length, &op);

	if (rc)
		return rc;
	memset(v->live + offset, value, length);
	rc = cowsnap_device_write(test_device(v->device), v->live + offset, offset, length);
	cowsnap_write_end(&op);
	return rc;
}

static struct cowsnap_snapshot *take(struct volume *v, struct cowsnap_store *store)
{
	struct cowsnap_take_entry entry = {.origin = v->origin, .store = store};

	cr_assert_eq(cowsnap_take(v->ctx, NULL, &entry, 1), 0);
	return entry.snapshot;
}

static void expect_image(struct cowsnap_snapshot *snapshot, const uint8_t *image, uint64_t size)
{
	uint8_t *data = malloc(size);

	cr_assert_eq(cowsnap_snapshot_read(snapshot, data, 0, size), 0);
	cr_assert_eq(memcmp(data, image, size), 0);
	cr_assert_eq(cowsnap_snapshot_read(snapshot, data, size, 1), -ERANGE);
	free(data);
}

static uint64_t used_chunks(struct cowsnap_store *store)
{
	struct cowsnap_store_usage usage;

	cr_assert_eq(cowsnap_store_usage(store, &usage, sizeof(usage)), 0);
	return usage.used_bytes / usage.chunk_size_bytes;
}

Test(resize, each_snapshot_keeps_its_size)
{
	static uint8_t before[SMALL], after[LARGE];
	struct cowsnap_snapshot *small, *large;
	static struct volume v;

	volume_open(&v);
	cr_assert_eq(cowsnap_origin_size(v.origin), SMALL);
	cr_assert_eq(volume_write(&v, 0, SMALL, 1), 0);
	cr_assert_eq(volume_write(&v, SMALL, 1, 1), -ERANGE);
	memcpy(before, v.live, SMALL);
	small = take(&v, v.store);
	volume_grow(&v);
	cr_assert_eq(cowsnap_origin_size(v.origin), LARGE);
	cr_assert_eq(volume_write(&v, SMALL + 3 * CHUNK, 5 * CHUNK, 2), 0);
	cr_assert_eq(used_chunks(v.store), 0, "nobody has what lies behind its end");
	cr_assert_eq(volume_write(&v, SMALL - 10, 20, 2), 0);
	cr_assert_eq(used_chunks(v.store), 1, "the chunk in which it ends is saved");
	memcpy(after, v.live, LARGE);
	large = take(&v, v.store);
	cr_assert_eq(volume_write(&v, 0, LARGE, 3), 0);
	expect_image(small, before, SMALL);
	expect_image(large, after, LARGE);
	cr_assert_eq(cowsnap_snapshot_drop(large), 0);
	cowsnap_snapshot_unref(large);
	cowsnap_reclaim(v.ctx, UINT64_MAX);
	expect_image(small, before, SMALL);
	cr_assert_eq(cowsnap_snapshot_drop(small), 0);
	cowsnap_snapshot_unref(small);
	volume_close(&v);
}

/* The store's device writes blocks, and the origin's is longer than the origin: the last chunk was
 * neither cut off nor filled up, so its copy was refused and the snapshot lost. */
Test(resize, a_last_chunk_before_the_origin_has_grown)
{
	struct cowsnap_transient_options options = {
		.size = sizeof(options), .chunk_size_bytes = CHUNK};
	static uint8_t before[SMALL];
	struct cowsnap_snapshot *snapshot;
	struct cowsnap_store *store;
	struct test_device *blocks;
	static struct volume v;

	volume_open(&v);
	blocks = test_device_create(
		v.ctx, &(struct test_device_options){
			       .size_bytes = 2 * LARGE / 512 * 512, .block_size = 512});
	cr_assert_not_null(blocks);
	options.device = test_device(blocks);
	cr_assert_eq(cowsnap_store_transient(v.ctx, &options, &store), 0);
	cr_assert_eq(volume_write(&v, 0, SMALL, 1), 0);
	memcpy(before, v.live, SMALL);
	snapshot = take(&v, store);
	test_device_resize(v.device, LARGE);
	cr_assert_eq(cowsnap_device_refresh(test_device(v.device)), 0);
	cr_assert_eq(volume_write(&v, SMALL - 10, 10, 2), 0);
	cr_assert_eq(used_chunks(store), 1);
	expect_image(snapshot, before, SMALL);
	cr_assert_eq(cowsnap_snapshot_drop(snapshot), 0);
	cowsnap_snapshot_unref(snapshot);
	cr_assert_eq(cowsnap_store_close(store), 0);
	cr_assert_eq(test_device_destroy(blocks), 0);
	volume_close(&v);
}

Test(resize, what_was_added_has_changed)
{
	struct cowsnap_snapshot *small, *large;
	struct cowsnap_change change[4];
	static struct volume v;
	uint64_t offset = 0;

	volume_open(&v);
	small = take(&v, v.store);
	cr_assert_eq(volume_write(&v, 0, 10, 1), 0);
	volume_grow(&v);
	large = take(&v, v.store);
	cr_assert_eq(cowsnap_changes(small, large, &offset, change, 4), 2);
	cr_assert_eq(offset, LARGE);
	cr_assert_eq(change[0].offset, 0);
	cr_assert_eq(change[0].length, CHUNK);
	cr_assert_eq(change[1].offset, SMALL / CHUNK * CHUNK);
	cr_assert_eq(change[1].offset + change[1].length, LARGE);
	offset = 0;
	cr_assert_eq(cowsnap_changes(small, NULL, &offset, change, 4), 2);
	for (unsigned i = 0; i < 2; i++) {
		struct cowsnap_snapshot *s = i ? small : large;

		cr_assert_eq(cowsnap_snapshot_drop(s), 0);
		cowsnap_snapshot_unref(s);
	}
	volume_close(&v);
}

/* The snapshot ends within a chunk: what the volume has behind that is not in the store. */
Test(resize, what_was_added_is_the_origins_during_a_merge)
{
	static uint8_t data[LARGE];
	struct cowsnap_snapshot *small;
	static struct volume v;

	volume_open(&v);
	cr_assert_eq(volume_write(&v, 0, SMALL, 1), 0);
	small = take(&v, v.store);
	cr_assert_eq(volume_write(&v, SMALL - 10, 10, 2), 0);
	volume_grow(&v);
	cr_assert_eq(volume_write(&v, SMALL, LARGE - SMALL, 3), 0);
	memset(v.live, 1, SMALL);
	cr_assert_eq(cowsnap_merge_begin(small), 0);
	cr_assert_eq(cowsnap_origin_read(v.origin, data, 0, LARGE), 0);
	cr_assert_eq(memcmp(data, v.live, LARGE), 0);
	cr_assert_eq(cowsnap_origin_read(v.origin, data, SMALL - 5, 10), 0);
	cr_assert_eq(memcmp(data, v.live + SMALL - 5, 10), 0);
	cr_assert_eq(cowsnap_merge_run(small, UINT64_MAX), 0);
	cr_assert_eq(cowsnap_device_read(test_device(v.device), data, 0, LARGE), 0);
	cr_assert_eq(memcmp(data, v.live, LARGE), 0);
	cowsnap_snapshot_unref(small);
	volume_close(&v);
}

/* What is written across the end of a snapshot whose records are being merged: a part in place, and
 * a part to the origin. */
Test(resize, what_was_added_can_be_written_during_a_merge)
{
	static uint8_t data[LARGE];
	struct cowsnap_snapshot *small, *sibling;
	struct cowsnap_dm_options dm = {.size = sizeof(dm)};
	static uint8_t before[LARGE];
	struct cowsnap_store *store;
	static struct volume v;

	volume_open(&v);
	cr_assert_eq(cowsnap_device_memory(v.ctx, 2 * LARGE, &dm.device), 0);
	cr_assert_eq(cowsnap_store_dm_create(v.ctx, &dm, &store), 0);
	cr_assert_eq(volume_write(&v, 0, SMALL, 1), 0);
	small = take(&v, store);
	cr_assert_eq(volume_write(&v, SMALL - 10, 10, 2), 0);
	volume_grow(&v);
	memcpy(before, v.live, LARGE);
	sibling = take(&v, v.store);
	cr_assert_eq(cowsnap_merge_begin(small), 0);
	memset(v.live, 1, SMALL);
	memset(v.live + SMALL - 5, 4, 10);
	cr_assert_eq(
		cowsnap_origin_write(v.origin, COWSNAP_WRITE, v.live + SMALL - 5, SMALL - 5, 10),
		0);
	cr_assert_eq(cowsnap_origin_read(v.origin, data, 0, LARGE), 0);
	cr_assert_eq(memcmp(data, v.live, LARGE), 0);
	cr_assert_eq(cowsnap_merge_run(small, UINT64_MAX), 0);
	cr_assert_eq(cowsnap_device_read(test_device(v.device), data, 0, LARGE), 0);
	cr_assert_eq(memcmp(data, v.live, LARGE), 0);
	expect_image(sibling, before, LARGE);
	cowsnap_snapshot_unref(small);
	cr_assert_eq(cowsnap_snapshot_drop(sibling), 0);
	cowsnap_snapshot_unref(sibling);
	cr_assert_eq(cowsnap_store_close(store), 0);
	cr_assert_eq(cowsnap_device_close(dm.device), 0);
	volume_close(&v);
}

Test(resize, refused)
{
	static struct volume v;

	volume_open(&v);
	cr_assert_eq(cowsnap_origin_resize(v.origin, SMALL + 1), -ERANGE);
	cr_assert_eq(cowsnap_origin_resize(v.origin, SMALL - 1), -ENOTSUP);
	cr_assert_eq(cowsnap_origin_resize(v.origin, SMALL), 0);
	volume_grow(&v);
	cr_assert_eq(cowsnap_origin_resize(v.origin, SMALL), -ENOTSUP);
	cr_assert_eq(cowsnap_origin_size(v.origin), LARGE);
	volume_close(&v);
}

/* ---- Beside writers and takes ---------------------------------------------------------------- */

static void *write_always(void *user)
{
	struct volume *v = user;

	for (uint64_t i = 0; i < 400; i++) {
		uint64_t offset = i * 257 % (SMALL - 100);

		cr_assert_eq(volume_write(v, offset, 100, (uint8_t)i), 0);
	}
	return NULL;
}

Test(resize, while_others_write_and_take)
{
	struct cowsnap_snapshot *snapshot[8];
	static struct volume v;
	pthread_t writer;

	volume_open(&v);
	cr_assert_eq(pthread_create(&writer, NULL, write_always, &v), 0);
	for (unsigned i = 0; i < 8; i++) {
		struct cowsnap_snapshot_info info;

		if (i == 4)
			volume_grow(&v);
		snapshot[i] = take(&v, v.store);
		cr_assert_eq(cowsnap_snapshot_info(snapshot[i], &info, sizeof(info)), 0);
		cr_assert_eq(info.size_bytes, i < 4 ? SMALL : LARGE);
	}
	pthread_join(writer, NULL);
	for (unsigned i = 0; i < 8; i++) {
		cr_assert_eq(cowsnap_snapshot_drop(snapshot[i]), 0);
		cowsnap_snapshot_unref(snapshot[i]);
	}
	volume_close(&v);
}

/* ---- Mixed stores ---------------------------------------------------------------------------- */

#define KINDS 4

struct mixed {
	struct volume v;
	struct cowsnap_device *dm_device;
	struct cowsnap_store *store[KINDS];
	struct cowsnap_snapshot *snapshot[KINDS];
	uint8_t image[KINDS][LARGE];
	uint64_t size[KINDS];
	struct seed seed;
};

static void mixed_open(struct mixed *m)
{
	volume_open(&m->v);
	cr_assert_eq(cowsnap_device_memory(m->v.ctx, 1 << 20, &m->dm_device), 0);
	cr_assert_eq(cowsnap_store_dm_create(m->v.ctx,
			     &(struct cowsnap_dm_options){.size = sizeof(struct cowsnap_dm_options),
				     .device = m->dm_device,
				     .chunk_size_bytes = 1024},
			     &m->store[0]),
		0);
	for (unsigned i = 1; i < KINDS; i++)
		cr_assert_eq(cowsnap_store_transient(m->v.ctx,
				     &(struct cowsnap_transient_options){
					     .size = sizeof(struct cowsnap_transient_options),
					     .chunk_size_bytes = UINT64_C(512) << 2 * (i - 1)},
				     &m->store[i]),
			0);
}

static void mixed_drop(struct mixed *m, unsigned i)
{
	expect_image(m->snapshot[i], m->image[i], m->size[i]);
	cr_assert_eq(cowsnap_snapshot_drop(m->snapshot[i]), 0);
	cowsnap_snapshot_unref(m->snapshot[i]);
	m->snapshot[i] = NULL;
	cowsnap_reclaim(m->v.ctx, UINT64_MAX);
}

/* 6d45d93ead31: snapshots of several chunk sizes, transient and persistent, on one origin that
 * grows. */
Test(resize, several_chunk_sizes_and_kinds_of_stores)
{
	static struct mixed m;

	m.seed = seed_for("mixed");
	mixed_open(&m);
	for (unsigned step = 0; step < 800; step++) {
		unsigned i = (unsigned)seed_below(&m.seed, KINDS);
		uint64_t size = cowsnap_origin_size(m.v.origin), offset, length;

		if (step == 400)
			volume_grow(&m.v);
		offset = seed_below(&m.seed, size);
		length = 1 + seed_below(&m.seed, size - offset < 9000 ? size - offset : 9000);
		cr_assert_eq(volume_write(&m.v, offset, length, (uint8_t)(step + 1)), 0);
		if (seed_below(&m.seed, 16))
			continue;
		if (m.snapshot[i]) {
			mixed_drop(&m, i);
			continue;
		}
		m.snapshot[i] = take(&m.v, m.store[i]);
		m.size[i] = cowsnap_origin_size(m.v.origin);
		memcpy(m.image[i], m.v.live, m.size[i]);
	}
	for (unsigned i = 0; i < KINDS; i++) {
		if (m.snapshot[i])
			mixed_drop(&m, i);
		cr_assert_eq(cowsnap_store_close(m.store[i]), 0);
	}
	cr_assert_eq(cowsnap_device_close(m.dm_device), 0);
	volume_close(&m.v);
}
