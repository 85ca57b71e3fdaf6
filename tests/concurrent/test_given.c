/* SPDX-License-Identifier: MIT
 *
 * Preimages from the host where something else goes on: a merge, devices and memory that fail,
 * chunks that are given and turn out to be zeroes, many writes at once in an event loop.
 */
#include "concurrent/async.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK  SCENE_CHUNK
#define CHUNKS (SCENE_BYTES / SCENE_CHUNK)

static const struct scene_options skipping = {.store_flags = COWSNAP_TRANSIENT_SKIP_ZEROES};

/* What the host sees of its volume, and hands over. */
struct host {
	struct cowsnap_preimage preimage;
	enum cowsnap_preimage_kind kind;
	uint8_t seen[SCENE_BYTES];
	_Atomic unsigned asks;
};

static enum cowsnap_preimage_kind give_seen(void *user, struct cowsnap_preimage_ask *ask)
{
	struct host *h = user;

	atomic_fetch_add(&h->asks, 1);
	ask->data = h->seen + ask->offset;
	return h->kind;
}

static void host_init(struct host *h, enum cowsnap_preimage_kind kind, uint8_t value)
{
	memset(h, 0, sizeof(*h));
	memset(h->seen, value, sizeof(h->seen));
	h->preimage = (struct cowsnap_preimage){.get = give_seen, .user = h};
	h->kind = kind;
}

static int write_with(struct scene *s, struct host *h, uint64_t offset, uint64_t length)
{
	static const uint8_t data[SCENE_BYTES];
	struct cowsnap_op op;
	int rc = cowsnap_write_begin_with(
		s->origin[0], COWSNAP_WRITE, offset, length, &h->preimage, &op);

	if (rc)
		return rc;
	cr_assert_eq(cowsnap_device_write(s->origin_device[0], data, offset, length), 0);
	cowsnap_write_end(&op);
	return 0;
}

/* ---- Merges ---------------------------------------------------------------------------------- */

/* During a merge the volume shows what the snapshot has, and the device has what the others need.
 */
static void write_during_merge(enum cowsnap_preimage_kind kind)
{
	struct cowsnap_snapshot *merged, *other;
	struct host h;
	struct scene s;

	scene_open(&s, NULL);
	host_init(&h, kind, 1);
	cr_assert_eq(scene_write(&s, 0, 0, SCENE_BYTES, 1), 0);
	merged = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scene_write(&s, 0, 0, 4 * CHUNK, 2), 0);
	other = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(cowsnap_merge_begin(merged), 0);
	cr_assert_eq(write_with(&s, &h, CHUNK, CHUNK), 0);
	scene_expect(other, 0, 4 * CHUNK, 2);
	cr_assert_eq(cowsnap_merge_run(merged, UINT64_MAX), 0);
	scene_expect(other, 0, 4 * CHUNK, 2);
	scene_expect(other, 4 * CHUNK, SCENE_BYTES - 4 * CHUNK, 1);
	cr_assert_eq(atomic_load(&h.asks), 0);
	/* Afterwards as ever. */
	cr_assert_eq(write_with(&s, &h, 5 * CHUNK, CHUNK), 0);
	cr_assert_eq(atomic_load(&h.asks), 1);
	cowsnap_snapshot_unref(merged);
	scene_drop(other);
	scene_close(&s);
}

Test(given, nobody_is_asked_while_a_merge_is_on, .timeout = 60)
{
	write_during_merge(COWSNAP_PREIMAGE_GIVEN);
	write_during_merge(COWSNAP_PREIMAGE_ZERO);
}

/* ---- Detaching ------------------------------------------------------------------------------- */

static __attribute__((noinline)) void soil_stack(void)
{
	volatile uint8_t bytes[1 << 16];

	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = 0xa5;
}

/* What a host gives has to stay as it is until the bracket has begun: here there is none. */
Test(given, nobody_is_asked_for_a_detach, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct host h;
	struct scene s;

	scene_open(&s, NULL);
	host_init(&h, COWSNAP_PREIMAGE_GIVEN, 1);
	cr_assert_eq(cowsnap_origin_set_preimage(s.origin[0], &h.preimage), 0);
	cr_assert_eq(scene_write(&s, 0, 0, SCENE_BYTES, 2), 0);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	soil_stack();
	cr_assert_eq(cowsnap_snapshot_detach(snapshot, UINT64_MAX), 0);
	cr_assert_eq(atomic_load(&h.asks), 0);
	scene_expect(snapshot, 0, SCENE_BYTES, 2);
	scene_drop(snapshot);
	scene_close(&s);
}

/* ---- Zeroes that are given ------------------------------------------------------------------- */

Test(given, zeroes_that_are_given_take_no_space, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct host h;
	struct scene s;

	scene_open(&s, &skipping);
	host_init(&h, COWSNAP_PREIMAGE_GIVEN, 0);
	/* The last byte of a chunk, the first, all of one. */
	h.seen[3 * CHUNK - 1] = 1;
	h.seen[3 * CHUNK] = 1;
	memset(h.seen + 9 * CHUNK, 2, CHUNK);
	cr_assert_eq(scene_write(&s, 0, 0, SCENE_BYTES, 9), 0);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	test_device_reset(s.origin_test[0]);
	cr_assert_eq(write_with(&s, &h, 0, SCENE_BYTES), 0);
	cr_assert_eq(test_device_calls(s.origin_test[0], TEST_IO_READ), 0);
	cr_assert_eq(scene_usage(&s, 0).used_bytes, 3 * CHUNK);
	cr_assert_eq(scene_usage(&s, 0).high_water_bytes, 3 * CHUNK, "nor for a while");
	cr_assert_eq(scene_stats(&s).zero_chunks, CHUNKS - 3);
	cr_assert_eq(scene_stats(&s).given_bytes, 3 * CHUNK);
	scene_expect(snapshot, 0, 3 * CHUNK - 1, 0);
	scene_expect(snapshot, 3 * CHUNK - 1, 2, 1);
	scene_expect(snapshot, 3 * CHUNK + 1, 6 * CHUNK - 1, 0);
	scene_expect(snapshot, 9 * CHUNK, CHUNK, 2);
	scene_expect(snapshot, 10 * CHUNK, SCENE_BYTES - 10 * CHUNK, 0);
	scene_drop(snapshot);
	scene_close(&s);
}

/* ---- Full stores ----------------------------------------------------------------------------- */

/* To be read zeroes need space for a while: a chunk is enough, if there is one. */
Test(given, a_store_of_one_chunk_holds_a_volume_of_zeroes, .timeout = 60)
{
	struct scene_options one = skipping;
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	one.limit_chunks = 1;
	scene_open(&s, &one);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_WRITE);
	cr_assert_eq(scene_write(&s, 0, 0, SCENE_BYTES, 1), 0);
	cr_assert_eq(scene_usage(&s, 0).used_bytes, 0);
	scene_expect(snapshot, 0, SCENE_BYTES, 0);
	scene_drop(snapshot);
	scene_close(&s);
}

/* The store's device fails beside it: that must not go on for ever. */
Test(given, zeroes_found_in_a_failed_copy_are_no_space, .timeout = 60)
{
	struct scene_options two = skipping;
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	two.limit_chunks = 2;
	scene_open(&s, &two);
	cr_assert_eq(scene_write(&s, 0, CHUNK, CHUNK, 1), 0);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_WRITE);
	test_device_fail(s.store_test[0], TEST_IO_WRITE, 1, true, -EIO);
	cr_assert_lt(scene_write(&s, 0, 0, 8 * CHUNK, 2), 0);
	test_device_heal(s.store_test[0]);
	scene_expect(snapshot, 0, CHUNK, 0);
	scene_expect(snapshot, CHUNK, CHUNK, 1);
	scene_drop(snapshot);
	scene_close(&s);
}

/* With none left a chunk of zeroes that has to be read is as any other, one that is given is
 * not. */
Test(given, a_full_store_has_no_room_to_look_for_zeroes, .timeout = 60)
{
	struct scene_options one = skipping;
	struct cowsnap_snapshot *snapshot;
	struct host h;
	struct scene s;

	one.limit_chunks = 1;
	scene_open(&s, &one);
	host_init(&h, COWSNAP_PREIMAGE_GIVEN, 0);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, 1), 0);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_WRITE);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, 2), 0);
	cr_assert_eq(scene_write(&s, 0, CHUNK, CHUNK, 2), -ENOSPC);
	cr_assert_eq(write_with(&s, &h, CHUNK, SCENE_BYTES - CHUNK), 0);
	scene_expect(snapshot, 0, CHUNK, 1);
	scene_expect(snapshot, CHUNK, SCENE_BYTES - CHUNK, 0);
	scene_drop(snapshot);
	scene_close(&s);
}

/* ---- In an event loop ------------------------------------------------------------------------ */

#define MANY 20u /* chunks; more than are written side by side */
#define SIDE 8u

static enum cowsnap_preimage_kind give_one(void *user, struct cowsnap_preimage_ask *ask)
{
	ask->length = CHUNK;
	return give_seen(user, ask);
}

struct many {
	struct scene scene;
	struct host host;
	struct loop loop;
	struct async write;
	struct cowsnap_snapshot *snapshot;
};

/* Each chunk is a job of its own, and its write is held. */
static void begin_many(struct many *m)
{
	const struct scene_options held = {
		.engine = COWSNAP_ENGINE_LOOP, .submits = true, .mode = TEST_ASYNC_HELD};

	scene_open(&m->scene, &held);
	host_init(&m->host, COWSNAP_PREIMAGE_GIVEN, 0);
	for (unsigned i = 0; i < MANY; i++)
		memset(m->host.seen + i * CHUNK, (int)i + 1, CHUNK);
	m->host.preimage.get = give_one;
	cr_assert_eq(cowsnap_origin_set_preimage(m->scene.origin[0], &m->host.preimage), 0);
	m->snapshot = scene_take(&m->scene, 0, 0, COWSNAP_LOSER_WRITE);
	loop_open(&m->loop, &m->scene, 1);
	m->write = (struct async){0};
	cr_assert_eq(async_begin(&m->write, &m->loop, 0, 0, MANY * CHUNK), COWSNAP_PENDING);
	cr_assert_eq(atomic_load(&m->host.asks), MANY);
}

static void end_many(struct many *m)
{
	cr_assert_eq(m->write.error, 0);
	async_write(&m->write, &m->scene, 99);
	for (unsigned i = 0; i < MANY; i++)
		scene_expect(m->snapshot, i * CHUNK, CHUNK, (uint8_t)(i + 1));
	cr_assert_eq(test_device_calls(m->scene.origin_test[0], TEST_IO_READ), 0);
	scene_drop(m->snapshot);
	loop_close(&m->loop);
	scene_close(&m->scene);
}

Test(given, what_is_given_is_written_side_by_side, .timeout = 60)
{
	static struct many m;
	struct test_async *store;

	begin_many(&m);
	store = m.scene.store_async[0];
	for (unsigned left = MANY; left; left--) {
		cr_assert_eq(test_async_held(store), left < SIDE ? left : SIDE);
		async_expect_pending(&m.write);
		cr_assert_eq(test_async_release(store, 1, TEST_RELEASE_LAST), 1);
		loop_settle(&m.loop);
	}
	loop_until(&m.loop, &m.write);
	cr_assert_eq(test_async_submitted(store), MANY);
	end_many(&m);
}

/* The others are saved nevertheless. */
Test(given, one_of_many_writes_fails, .timeout = 60)
{
	static struct many m;
	struct test_async *store;

	begin_many(&m);
	store = m.scene.store_async[0];
	test_device_fail(m.scene.store_test[0], TEST_IO_WRITE, 3, false, -EIO);
	while (test_async_release(store, SIDE, TEST_RELEASE_FIRST))
		loop_settle(&m.loop);
	loop_until(&m.loop, &m.write);
	cr_assert_eq(m.write.error, -EIO);
	cr_assert_eq(test_async_submitted(store), MANY);
	cr_assert_eq(async_begin(&m.write, &m.loop, 0, 0, MANY * CHUNK), COWSNAP_PENDING);
	cr_assert_eq(test_async_release(store, SIDE, TEST_RELEASE_FIRST), 1);
	loop_until(&m.loop, &m.write);
	end_many(&m);
}
