/* SPDX-License-Identifier: MIT
 *
 * The state of a persistent store on its way to the next owner: what it carries; what is read for
 * it on the device; what is refused, because it is damaged, or of something else, or old.
 */
#include "support/handed.h"
#include "support/image.h"
#include "support/seed.h"
#include "support/test.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK UINT64_C(512)
#define AREA  32u

/* A store with @records, every other chunk from the end, so that no two make a run. */
static void begin(struct dm_scene *s, const struct dm_scene_options *options, unsigned records)
{
	dm_open(s, options);
	cr_assert_eq(dm_begin(s), 0);
	for (unsigned n = 0; n < records; n++)
		cr_assert_eq(dm_write(s, 0, (126 - 2 * n) * CHUNK, CHUNK, (uint8_t)n), 0);
}

/* The store is whole and serves on, from here and from its device. */
static void expect_whole(struct dm_scene *s)
{
	dm_expect_exact(s, 0, true);
	dm_expect_promise(s, 0);
	for (unsigned n = 0; n < 128; n += 3)
		cr_assert_eq(dm_write(s, 0, n * CHUNK, CHUNK, 200), 0);
	dm_expect_exact(s, 0, true);
	dm_expect_promise(s, 0);
}

static void hand_over(const struct dm_scene_options *options, unsigned records)
{
	struct handed h = {0};
	struct dm_scene s;

	begin(&s, options, records);
	cr_assert_eq(dm_set_generation(&s, 0, 77), 0);
	cr_assert_eq(handed_out(&s, 0, 0, &h), 0, "%u records", records);
	test_device_reset(s.at[0].store_test);
	cr_assert_eq(handed_in(&s, 0, &h), 0, "%u records", records);
	cr_assert_eq(h.at, h.bytes);
	cr_assert_not(h.beyond);
	cr_assert_eq(test_device_calls(s.at[0].store_test, TEST_IO_WRITE), 0);
	cr_assert_eq(test_device_calls(s.at[0].store_test, TEST_IO_ZERO), 0);
	cr_assert_eq(dm_usage(&s, 0).used_bytes, records * CHUNK);
	cr_assert_eq(test_device_locked(s.at[0].store_test), COWSNAP_LOCK_EXCLUSIVE);
	expect_whole(&s);
	dm_close(&s);
	handed_free(&h);
}

Test(store_dm_state, carries_any_number_of_records)
{
	/* The terminator at each place of a block, and at the beginning of an area. */
	for (unsigned records = 0; records <= 2 * AREA - 1; records++)
		hand_over(NULL, records);
}

Test(store_dm_state, carries_stores_of_every_kind)
{
	const struct dm_scene_options kinds[] = {
		{.no_flush = true},
		{.durable = true},
		{.block_size = 512},
		{.chunk_bytes = 4096, .store_bytes = 1 << 20, .origin_bytes = 4096 * 128},
		{.chunk_bytes = 65536, .store_bytes = 64 << 20, .origin_bytes = 65536 * 128},
		/* The origin ends in the middle of a chunk. */
		{.origin_bytes = 127 * CHUNK + 100, .memory = true},
	};

	for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		struct handed h = {0};
		struct dm_scene s;

		dm_open(&s, &kinds[i]);
		cr_assert_eq(dm_begin(&s), 0);
		for (unsigned n = 0; n < 40; n++)
			cr_assert_eq(dm_write(&s, 0, (120 - n * 2) * CHUNK, 700, (uint8_t)n), 0);
		cr_assert_eq(handed_out(&s, 0, 0, &h), 0);
		cr_assert_eq(handed_in(&s, 0, &h), 0, "kind %u", i);
		expect_whole(&s);
		dm_close(&s);
		handed_free(&h);
	}
}

/* Chunks that no record names are found free, also between others. */
Test(store_dm_state, finds_free_chunks)
{
	const struct dm_scene_options options = {
		.store_bytes = 40 * CHUNK, .on_full = COWSNAP_LOSER_WRITE};
	struct handed h = {0};
	struct dm_scene s;
	uint64_t location, count;

	begin(&s, &options, 5);
	/* Given out, and lost: as by a crash. */
	cr_assert_eq(cowsnap_store_alloc(s.at[0].store, 3, &location, &count), 0);
	for (unsigned n = 0; n < 5; n++)
		cr_assert_eq(dm_write(&s, 0, n * CHUNK, CHUNK, 9), 0);
	cr_assert_eq(handed_out(&s, 0, 0, &h), 0);
	cr_assert_eq(handed_in(&s, 0, &h), 0);
	cr_assert_eq(dm_usage(&s, 0).used_bytes, 10 * CHUNK);
	cr_assert_eq(cowsnap_store_alloc(s.at[0].store, 3, &location, &count), 0);
	cr_assert_eq(location, 7);
	cr_assert_eq(count, 3);
	cowsnap_store_free(s.at[0].store, location, count);
	for (unsigned n = 5; n < 128; n++)
		(void)dm_write(&s, 0, n * CHUNK, CHUNK, 10);
	cr_assert_eq(dm_usage(&s, 0).used_bytes, dm_usage(&s, 0).limit_bytes);
	dm_expect_exact(&s, 0, true);
	dm_expect_promise(&s, 0);
	dm_close(&s);
	handed_free(&h);
}

#define MANY       UINT64_C(1000000)
#define MANY_CHUNK UINT64_C(4096)
#define IN_AREA    (MANY_CHUNK / 16)

/* A device of which only the header and the areas are there; a memory device would be long. */
struct many {
	uint8_t *areas; /* one after the other */
	uint64_t bytes_read;
};

/* The records are scattered over the origin. */
static uint64_t scattered(uint64_t n)
{
	return n * 7919 % (2 * MANY - 1);
}

static void many_fill(struct many *m)
{
	m->areas = calloc(MANY / IN_AREA + 1, MANY_CHUNK);
	for (uint64_t n = 0; n < MANY; n++) {
		dm_image_put(m->areas + 16 * n, scattered(n), 8);
		dm_image_put(m->areas + 16 * n + 8, dm_image_data(MANY_CHUNK, n), 8);
	}
}

/* Within one chunk. */
static int many_read(void *user, void *buffer, uint64_t offset, uint64_t length)
{
	uint64_t chunk = offset / MANY_CHUNK, at = offset % MANY_CHUNK;
	uint8_t header[MANY_CHUNK] = {0};
	struct many *m = user;

	dm_image_header(header, DM_IMAGE_MAGIC, 1, 1, MANY_CHUNK / 512);
	m->bytes_read += length;
	if (chunk)
		memcpy(buffer, m->areas + (chunk - 1) / (IN_AREA + 1) * MANY_CHUNK + at, length);
	else
		memcpy(buffer, header + at, length);
	return 0;
}

static int many_write(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	(void)user;
	(void)buffer;
	(void)offset;
	(void)length;
	return -EIO;
}

static struct cowsnap_device *many_open(struct cowsnap_ctx *ctx, struct many *m)
{
	struct cowsnap_device_ops ops = {
		.size = sizeof(ops), .read = many_read, .write = many_write};
	struct cowsnap_device_options options = {
		.size = sizeof(options), .size_bytes = (MANY + MANY / 128) * MANY_CHUNK};
	struct cowsnap_device *device;

	many_fill(m);
	cr_assert_eq(cowsnap_device_create(ctx, &ops, &options, m, &device), 0);
	return device;
}

static void expect_many(struct cowsnap_snapshot *snapshot)
{
	for (uint64_t n = 0; n < MANY; n += 97) {
		struct cowsnap_extent extent;

		cr_assert_eq(cowsnap_snapshot_extent(
				     snapshot, scattered(n) * MANY_CHUNK, MANY_CHUNK, &extent),
			0);
		cr_assert(extent.saved);
	}
}

/* The records of a million are not read. */
Test(store_dm_state, reads_a_few_blocks_of_a_million_records)
{
	struct cowsnap_dm_options options = {.size = sizeof(options)};
	struct cowsnap_take_entry entry = {.on_full = COWSNAP_LOSER_WRITE};
	struct cowsnap_device *device;
	struct cowsnap_store *store;
	struct handed h = {0};
	struct many many = {0};
	struct cowsnap_ctx *ctx;

	cr_assert_eq(cowsnap_ctx_create(NULL, &ctx), 0);
	options.device = many_open(ctx, &many);
	cr_assert_eq(cowsnap_device_memory(ctx, 2 * MANY * MANY_CHUNK, &device), 0);
	cr_assert_eq(cowsnap_origin_open(ctx, device, &entry.origin), 0);
	cr_assert_eq(cowsnap_store_dm_open(ctx, &options, &entry, &store), 0);
	cr_assert_geq(many.bytes_read, 16 * MANY);

	many.bytes_read = 0;
	cr_assert_eq(cowsnap_store_export(store, 0, handed_write, &h), 0);
	cr_assert_leq(many.bytes_read, 3 * 4096);
	cowsnap_snapshot_unref(entry.snapshot);
	cr_assert_eq(cowsnap_store_close(store), 0);
	many.bytes_read = 0;
	cr_assert_eq(cowsnap_store_dm_import(ctx, &options, handed_read, &h, &entry, &store), 0);
	cr_assert_leq(many.bytes_read, 4 * 4096);
	expect_many(entry.snapshot);
	cr_assert_eq(cowsnap_snapshot_deactivate(entry.snapshot), 0);
	cowsnap_snapshot_unref(entry.snapshot);
	cr_assert_eq(cowsnap_store_close(store), 0);
	cr_assert_eq(cowsnap_origin_close(entry.origin), 0);
	cr_assert_eq(cowsnap_device_close(device), 0);
	cr_assert_eq(cowsnap_device_close(options.device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
	handed_free(&h);
	free(many.areas);
}

/* ---- What is exported ------------------------------------------------------------------------ */

Test(store_dm_state, exports_only_what_is_whole)
{
	struct dm_scene_options options = {.store_bytes = 8 * CHUNK};
	struct cowsnap_transient_options transient = {
		.size = sizeof(transient), .limit_bytes = 1 << 20, .chunk_size_bytes = 4096};
	struct cowsnap_store *other;
	struct handed h = {0};
	struct dm_scene s;

	dm_open(&s, &options);
	cr_assert_eq(cowsnap_store_transient(s.ctx, &transient, &other), 0);
	cr_assert_eq(cowsnap_store_export(other, 0, handed_write, &h), -ENOTSUP);
	cr_assert_eq(cowsnap_store_close(other), 0);
	cr_assert_eq(cowsnap_store_export(other, 0, handed_write, &h), -EBADF);

	cr_assert_eq(dm_create(&s, 0, 0), 0);
	cr_assert_eq(cowsnap_store_export(s.at[0].store, 0, handed_write, &h), -ENODATA);
	cr_assert_eq(dm_take(&s), 0);
	cr_assert_eq(cowsnap_store_export(s.at[0].store, 0, NULL, &h), -EINVAL);
	for (unsigned n = 0; n < 10; n++)
		cr_assert_eq(dm_write(&s, 0, n * CHUNK, CHUNK, 1), 0);
	cr_assert_eq(dm_state(&s, 0, NULL), COWSNAP_SNAPSHOT_INVALID);
	cr_assert_eq(cowsnap_store_export(s.at[0].store, 0, handed_write, &h), -ENODATA);
	dm_note(&s);
	cr_assert_eq(dm_drop(&s, 0), 0);
	cr_assert_eq(cowsnap_store_export(s.at[0].store, 0, handed_write, &h), -ENODATA);
	cr_assert_eq(dm_take(&s), 0);
	cr_assert_eq(cowsnap_snapshot_deactivate(s.at[0].snapshot), 0);
	cr_assert_eq(cowsnap_store_export(s.at[0].store, 0, handed_write, &h), -ENODATA);
	cr_assert_eq(h.bytes, 0);
	cr_assert_eq(test_device_locked(s.at[0].store_test), COWSNAP_LOCK_EXCLUSIVE);
	cowsnap_snapshot_unref(s.at[0].snapshot);
	s.at[0].snapshot = NULL;
	dm_close(&s);
}

Test(store_dm_state, a_broken_store_is_not_handed_over)
{
	struct dm_scene_options options = {.on_full = COWSNAP_LOSER_WRITE};
	struct handed h = {0};
	struct dm_scene s;

	begin(&s, &options, 3);
	test_device_fail(s.at[0].store_test, TEST_IO_FLUSH, 1, true, -EIO);
	cr_assert_eq(dm_write(&s, 0, 0, CHUNK, 1), -EIO);
	test_device_heal(s.at[0].store_test);
	cr_assert_eq(cowsnap_store_export(s.at[0].store, 0, handed_write, &h), -EIO);
	cr_assert_eq(h.bytes, 0);
	dm_expect_exact(&s, 0, true);
	dm_close(&s);
}

/* Between the records of the host's own and its snapshot nobody knows. */
Test(store_dm_state, a_record_that_is_not_published_is_in_the_way)
{
	struct handed h = {0};
	struct cowsnap_run run = {.first = 7};
	struct dm_scene s;

	begin(&s, NULL, 3);
	cr_assert_eq(cowsnap_store_alloc(s.at[0].store, 1, &run.location, &run.count), 0);
	cr_assert_eq(cowsnap_store_commit(s.at[0].store, &run, 1), 0);
	cr_assert_eq(cowsnap_store_export(s.at[0].store, 0, handed_write, &h), -EBUSY);
	cr_assert_eq(h.bytes, 0);
	cr_assert_eq(dm_write(&s, 0, 0, CHUNK, 1), 0);
	dm_expect_exact(&s, 0, true);
	dm_close(&s);
}

static void poke(void *user)
{
	struct dm_scene *s = user;
	struct dm_store *at = &s->at[0];
	struct cowsnap_run run = {.first = 1, .count = 1, .location = 2};
	struct cowsnap_take_entry entry = {.origin = at->origin, .store = at->store};
	uint64_t location, count;
	uint8_t byte;

	/* Nothing gets to the device any more, and nothing is reclaimed under the walk. */
	cr_assert_eq(cowsnap_store_commit(at->store, &run, 1), -EBADF);
	cr_assert_eq(cowsnap_store_alloc(at->store, 1, &location, &count), -EBADF);
	cr_assert_eq(cowsnap_store_dm_set_generation(at->store, 5), -EBADF);
	cr_assert_eq(cowsnap_snapshot_drop(at->snapshot), -EIDRM);
	cr_assert_eq(cowsnap_snapshot_read(at->snapshot, &byte, 0, 1), -EIDRM);
	cr_assert_eq(cowsnap_store_close(at->store), -EBUSY);
	cr_assert_eq(cowsnap_origin_close(at->origin), -EBUSY);
	cr_assert_eq(cowsnap_store_export(at->store, 0, handed_write, NULL), -ENODATA);
	cowsnap_reclaim(s->ctx, UINT64_MAX);
	(void)entry;
}

Test(store_dm_state, an_exported_store_is_good_for_nothing)
{
	struct handed h = {.then = poke};
	struct dm_scene s;
	struct cowsnap_take_entry entry;

	h.user = &s;
	begin(&s, NULL, 40);
	test_device_reset(s.at[0].store_test);
	cr_assert_eq(cowsnap_store_export(s.at[0].store, 0, handed_write, &h), 0);
	h.then(&s);
	entry = (struct cowsnap_take_entry){.origin = s.at[0].origin, .store = s.at[0].store};
	cowsnap_snapshot_unref(s.at[0].snapshot);
	s.at[0].snapshot = NULL;
	cr_assert_eq(cowsnap_take(s.ctx, NULL, &entry, 1), -EEXIST);
	cr_assert_eq(test_device_calls(s.at[0].store_test, TEST_IO_WRITE), 0);
	cr_assert_eq(test_device_calls(s.at[0].store_test, TEST_IO_ZERO), 0);
	/* It is unlocked once: from then on the lock is another's. */
	cr_assert_eq(test_device_calls(s.at[0].store_test, TEST_IO_LOCK), 1);
	cr_assert_eq(dm_close_store(&s, 0), 0);
	cr_assert_eq(test_device_calls(s.at[0].store_test, TEST_IO_LOCK), 1);
	cr_assert_eq(dm_renew_origin(&s, 0), 0);
	cr_assert_eq(handed_in(&s, 0, &h), 0);
	expect_whole(&s);
	dm_close(&s);
	handed_free(&h);
}

/* The store is on its device all the same. */
Test(store_dm_state, a_state_that_cannot_be_written)
{
	for (unsigned n = 1; n <= 3; n++) {
		struct handed h = {.fail_at = n};
		struct dm_scene s;

		begin(&s, NULL, 40);
		cr_assert_eq(handed_out(&s, 0, 0, &h), -EPIPE, "call %u", n);
		cr_assert_eq(test_device_locked(s.at[0].store_test), COWSNAP_LOCK_NONE);
		cowsnap_snapshot_unref(s.at[0].snapshot);
		s.at[0].snapshot = NULL;
		cr_assert_eq(dm_close_store(&s, 0), 0);
		cr_assert_eq(dm_renew_origin(&s, 0), 0);
		h.fail_at = 0;
		cr_assert_eq(handed_in(&s, 0, &h), -EBADMSG);
		cr_assert_eq(dm_attach(&s, 0), 0);
		expect_whole(&s);
		dm_close(&s);
		handed_free(&h);
	}
}

/* ---- Damaged --------------------------------------------------------------------------------- */

/* The state of a store that was closed again, and goes on to be there. */
static void begin_and_export(struct dm_scene *s, struct handed *h, unsigned records)
{
	const struct dm_scene_options options = {.memory = true};

	begin(s, &options, records);
	cr_assert_eq(handed_out(s, 0, 0, h), 0);
	test_device_reset(s->at[0].store_test);
}

static void expect_untouched(struct dm_scene *s)
{
	cr_assert_eq(test_device_calls(s->at[0].store_test, TEST_IO_WRITE), 0);
	cr_assert_eq(test_device_calls(s->at[0].store_test, TEST_IO_ZERO), 0);
	cr_assert_eq(test_device_locked(s->at[0].store_test), COWSNAP_LOCK_NONE);
}

Test(store_dm_state, each_damaged_byte_is_found)
{
	struct handed h = {0};
	struct dm_scene s;

	begin_and_export(&s, &h, 20);
	for (size_t at = 0; at < h.bytes; at++) {
		for (unsigned bit = at % 2; bit < 8; bit += 3) {
			h.data[at] ^= (uint8_t)(1u << bit);
			cr_assert_eq(handed_in(&s, 0, &h), -EBADMSG, "byte %zu", at);
			h.data[at] ^= (uint8_t)(1u << bit);
		}
	}
	expect_untouched(&s);
	cr_assert_eq(test_device_calls(s.at[0].store_test, TEST_IO_READ), 0);
	cr_assert_eq(handed_in(&s, 0, &h), 0);
	expect_whole(&s);
	dm_close(&s);
	handed_free(&h);
}

Test(store_dm_state, each_shorter_state_is_refused)
{
	struct handed h = {0};
	struct dm_scene s;
	size_t bytes;

	begin_and_export(&s, &h, 20);
	bytes = h.bytes;
	for (h.bytes = 0; h.bytes < bytes; h.bytes++)
		cr_assert_eq(handed_in(&s, 0, &h), -EBADMSG, "%zu bytes", h.bytes);
	cr_assert_eq(handed_in(&s, 0, &h), 0);
	expect_whole(&s);
	dm_close(&s);
	handed_free(&h);
}

Test(store_dm_state, the_error_of_a_read_is_passed_on)
{
	struct handed h = {0};
	struct dm_scene s;

	begin_and_export(&s, &h, 20);
	for (h.fail_at = 1; h.fail_at <= 5; h.fail_at++)
		cr_assert_eq(handed_in(&s, 0, &h), -ECONNRESET, "call %u", h.fail_at);
	expect_untouched(&s);
	cr_assert_eq(handed_in(&s, 0, &h), 0);
	dm_close(&s);
	handed_free(&h);
}

/* Words with whatever a liar likes, and right checksums: refused, or taken where it is the same in
 * the end; never more memory than there are records. */
static void mutate(struct seed *seed, struct handed *h)
{
	static const uint64_t values[] = {0, 1, 2, 19, 20, 21, 33, 511, 512, 4096, 4097, UINT64_MAX,
		UINT64_MAX - 1, UINT64_C(1) << 56, UINT64_C(255) << 56, UINT64_C(1) << 63,
		UINT64_C(1) << 62, UINT64_C(1) << 40};
	unsigned count = 1 + (unsigned)seed_below(seed, 3);

	for (unsigned i = 0; i < count; i++) {
		uint8_t *word = h->data + 8 * seed_below(seed, h->bytes / 8);
		uint64_t value = values[seed_below(seed, sizeof(values) / sizeof(values[0]))];

		switch (seed_below(seed, 4)) {
		case 0:
			value = dm_image_get(word, 8) + value;
			break;
		case 1:
			value = dm_image_get(h->data + 8 * seed_below(seed, h->bytes / 8), 8);
			break;
		case 2:
			value = dm_image_get(word, 8) ^ UINT64_C(1) << seed_below(seed, 64);
			break;
		}
		dm_image_put(word, value, 8);
	}
	handed_seal(h->data, h->bytes);
}

Test(store_dm_state, lies_are_survived)
{
	struct seed seed = seed_for("store_dm_state/lies_are_survived");
	struct handed h = {0};
	struct dm_scene s;
	uint8_t *good;
	uint64_t taken = 0, idle;

	begin_and_export(&s, &h, 20);
	good = malloc(h.bytes);
	memcpy(good, h.data, h.bytes);
	idle = fail_alloc_live_bytes(s.memory);
	handed_seal(h.data, h.bytes);
	cr_assert_arr_eq(good, h.data, h.bytes);
	for (unsigned i = 0; i < 4000; i++) {
		int rc;

		memcpy(h.data, good, h.bytes);
		mutate(&seed, &h);
		rc = handed_in(&s, 0, &h);
		cr_assert(rc == 0 || rc == -EBADMSG || rc == -ESTALE, "%d", rc);
		if (rc)
			continue;
		taken++;
		cr_assert_eq(dm_usage(&s, 0).used_bytes, 20 * CHUNK);
		cr_assert_eq(dm_detach(&s, 0), 0);
	}
	cr_assert_leq(fail_alloc_peak_bytes(s.memory), idle + (UINT64_C(2) << 20));
	expect_untouched(&s);
	cr_log_info("%llu of the lies were taken", (unsigned long long)taken);
	memcpy(h.data, good, h.bytes);
	cr_assert_eq(handed_in(&s, 0, &h), 0);
	expect_whole(&s);
	dm_close(&s);
	handed_free(&h);
	free(good);
}

/* ---- Of something else ----------------------------------------------------------------------- */

/* Twenty records of the same chunks, but one, and of the same place. */
Test(store_dm_state, another_store_is_not_the_same)
{
	struct handed h = {0};
	struct dm_scene s;

	begin_and_export(&s, &h, 20);
	/* Another list, with as many records. */
	cr_assert_eq(dm_create(&s, 0, COWSNAP_DM_OVERWRITE), 0);
	cr_assert_eq(dm_take(&s), 0);
	for (unsigned n = 0; n < 20; n++)
		cr_assert_eq(dm_write(&s, 0, (n == 10 ? 3 : 126 - 2 * n) * CHUNK, CHUNK, 1), 0);
	cr_assert_eq(dm_detach(&s, 0), 0);
	test_device_reset(s.at[0].store_test);
	cr_assert_eq(handed_in(&s, 0, &h), -ESTALE);
	expect_untouched(&s);
	cr_assert_eq(dm_attach(&s, 0), 0);
	expect_whole(&s);
	dm_close(&s);
	handed_free(&h);
}

enum meanwhile {
	NOTHING,
	A_RECORD,
	A_GENERATION,
	A_DROP,
	AN_INVALIDATION,
	A_LONGER_DEVICE,
	A_SHORTER_ORIGIN,
	BYTES_BEHIND_THE_END,
	MEANWHILES,
};

static void change(struct dm_scene *s, enum meanwhile what)
{
	struct dm_store *at = &s->at[0];
	struct cowsnap_device *inner = test_device_inner(at->store_test);
	uint8_t byte = 1;

	switch (what) {
	case A_RECORD:
	case A_GENERATION:
	case A_DROP:
		cr_assert_eq(dm_attach(s, 0), 0);
		if (what == A_RECORD)
			cr_assert_eq(dm_write(s, 0, CHUNK, CHUNK, 3), 0);
		if (what == A_GENERATION)
			cr_assert_eq(dm_set_generation(s, 0, 8), 0);
		if (what == A_DROP) {
			cr_assert_eq(dm_drop(s, 0), 0);
			cr_assert_eq(dm_close_store(s, 0), 0);
			cr_assert_eq(dm_renew_origin(s, 0), 0);
		} else {
			cr_assert_eq(dm_detach(s, 0), 0);
		}
		break;
	case AN_INVALIDATION:
		byte = 0;
		cr_assert_eq(cowsnap_device_write(inner, &byte, 4, 1), 0);
		break;
	case A_LONGER_DEVICE:
		test_device_resize(at->store_test, 256 * CHUNK);
		cr_assert_eq(cowsnap_device_refresh(at->store_device), 0);
		break;
	case BYTES_BEHIND_THE_END:
		cr_assert_eq(
			cowsnap_device_write(inner, &byte, dm_image_slot(CHUNK, 25) + 3, 1), 0);
		break;
	default:
		break;
	}
}

Test(store_dm_state, what_has_changed_meanwhile_is_stale)
{
	static const int expected[MEANWHILES] = {[A_RECORD] = -ESTALE,
		[A_GENERATION] = -ESTALE,
		[A_DROP] = -ENOENT,
		[AN_INVALIDATION] = -ESTALE,
		[A_LONGER_DEVICE] = -ESTALE,
		[A_SHORTER_ORIGIN] = -ESTALE,
		[BYTES_BEHIND_THE_END] = -ESTALE};
	const struct dm_scene_options options = {.max_bytes = 256 * CHUNK};
	struct cowsnap_device *device;
	struct cowsnap_origin *origin;

	for (enum meanwhile what = NOTHING; what < MEANWHILES; what++) {
		struct handed h = {0};
		struct dm_scene s;

		begin(&s, &options, 20);
		cr_assert_eq(handed_out(&s, 0, 0, &h), 0);
		change(&s, what);
		test_device_reset(s.at[0].store_test);
		origin = s.at[0].origin;
		cr_assert_eq(cowsnap_device_memory(s.ctx, 64 * 1024 - CHUNK, &device), 0);
		if (what == A_SHORTER_ORIGIN)
			cr_assert_eq(cowsnap_origin_open(s.ctx, device, &s.at[0].origin), 0);
		cr_assert_eq(handed_in(&s, 0, &h), expected[what], "%u", what);
		if (what != NOTHING)
			expect_untouched(&s);
		if (what == A_SHORTER_ORIGIN)
			cr_assert_eq(cowsnap_origin_close(s.at[0].origin), 0);
		s.at[0].origin = origin;
		cr_assert_eq(cowsnap_device_close(device), 0);
		if (what == A_RECORD || what == A_GENERATION || what == BYTES_BEHIND_THE_END) {
			cr_assert_eq(dm_attach(&s, 0), 0);
			expect_whole(&s);
		}
		dm_close(&s);
		handed_free(&h);
	}
}

Test(store_dm_state, who_may_not_import)
{
	struct handed h = {0};
	struct dm_scene s;
	struct cowsnap_take_entry entry = {0};
	struct cowsnap_dm_options options = {.size = sizeof(options)};
	struct cowsnap_store *store;

	begin_and_export(&s, &h, 20);
	options.device = s.at[0].store_device;
	cr_assert_eq(
		cowsnap_store_dm_import(s.ctx, &options, handed_read, &h, NULL, &store), -EINVAL);
	cr_assert_eq(
		cowsnap_store_dm_import(s.ctx, &options, handed_read, &h, &entry, &store), -EINVAL);
	entry.origin = s.at[0].origin;
	cr_assert_eq(cowsnap_store_dm_import(s.ctx, &options, NULL, &h, &entry, &store), -EINVAL);
	cr_assert_eq(
		cowsnap_store_dm_import(s.ctx, NULL, handed_read, &h, &entry, &store), -EINVAL);
	options.chunk_size_bytes = 1024;
	cr_assert_eq(
		cowsnap_store_dm_import(s.ctx, &options, handed_read, &h, &entry, &store), -EINVAL);
	options.chunk_size_bytes = 0;
	h.at = 0;
	options.generation = 9;
	cr_assert_eq(
		cowsnap_store_dm_import(s.ctx, &options, handed_read, &h, &entry, &store), -ESTALE);
	/* Another process has it. */
	test_device_set_busy(s.at[0].store_test, true);
	cr_assert_eq(handed_in(&s, 0, &h), -EBUSY);
	test_device_set_busy(s.at[0].store_test, false);
	/* The origin was written to. */
	cr_assert_eq(dm_write(&s, 0, 0, CHUNK, s.at[0].live[0]), 0);
	cr_assert_eq(handed_in(&s, 0, &h), -EBUSY);
	cr_assert_eq(dm_renew_origin(&s, 0), 0);
	expect_untouched(&s);
	cr_assert_eq(handed_in(&s, 0, &h), 0);
	dm_close(&s);
	handed_free(&h);
}

/* ---- Failures -------------------------------------------------------------------------------- */

/* The n-th allocation, or call of the store's device, fails in both calls. */
struct fault {
	bool memory;
	enum test_io kind;
};

static bool sweep_one(const struct fault *fault, uint64_t n)
{
	const struct dm_scene_options options = {.memory = true};
	struct handed h = {0};
	struct dm_scene s;
	bool failed;
	int rc;

	begin(&s, &options, 40);
	if (fault->memory)
		fail_alloc_at(s.memory, n, false);
	else
		test_device_fail(s.at[0].store_test, fault->kind, n, false, -EIO);
	rc = handed_out(&s, 0, 0, &h);
	if (!rc) {
		rc = handed_in(&s, 0, &h);
		cr_assert(!rc || test_device_locked(s.at[0].store_test) == COWSNAP_LOCK_NONE);
		if (rc)
			rc = handed_in(&s, 0, &h);
	}
	failed = fault->memory ? fail_alloc_failed(s.memory)
			       : test_device_failed(s.at[0].store_test);
	fail_alloc_at(s.memory, 0, false);
	test_device_heal(s.at[0].store_test);
	/* Exported or not, with or without a second try. */
	if (!s.at[0].origin)
		cr_assert_eq(cowsnap_origin_open(s.ctx, s.at[0].origin_device, &s.at[0].origin), 0);
	if (!s.at[0].store)
		cr_assert_eq(handed_in(&s, 0, &h), 0);
	cr_assert(!rc || failed);
	expect_whole(&s);
	dm_close(&s);
	handed_free(&h);
	return failed;
}

static void sweep(const struct fault *fault)
{
	uint64_t n = 1;

	while (sweep_one(fault, n))
		n++;
	cr_assert_gt(n, 1);
	cr_log_info("%llu calls", (unsigned long long)n);
}

Test(store_dm_state, each_allocation_may_fail)
{
	sweep(&(struct fault){.memory = true});
}

Test(store_dm_state, each_call_of_the_device_may_fail)
{
	sweep(&(struct fault){.kind = TEST_IO_READ});
	sweep(&(struct fault){.kind = TEST_IO_LOCK});
	sweep(&(struct fault){.kind = TEST_IO_FLUSH});
}
