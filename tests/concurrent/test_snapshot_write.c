/* SPDX-License-Identifier: MIT
 *
 * Writing to snapshots: who sees what, what it costs, and what happens at the same time.
 */
#include "concurrent/put.h"

#include <errno.h>

#include "concurrent/async.h"
#include "support/pending.h"
#include "support/seed.h"

static void expect_origin(struct scene *s, uint64_t offset, uint64_t length, uint8_t value)
{
	uint8_t *data = malloc(length);

	cr_assert_eq(
		cowsnap_device_read(test_device_inner(s->origin_test[0]), data, offset, length), 0);
	for (uint64_t i = 0; i < length; i++)
		cr_assert_eq(data[i], value, "byte %llu", (unsigned long long)(offset + i));
	free(data);
}

/* ---- Who sees it ----------------------------------------------------------------------------- */

Test(snapshot_write, is_seen_by_nobody_else)
{
	struct cowsnap_snapshot *older, *written, *newer;
	struct scene s;

	scene_open(&s, NULL);
	origin_write(&s, 0, ALL, OLD);
	older = take(&s);
	written = take(&s);
	newer = take(&s);
	cr_assert_eq(put(written, CHUNK, 2 * CHUNK, MINE), 0);
	cr_assert_eq(put(written, 5 * CHUNK + 100, 50, MINE), 0);
	expect_origin(&s, 0, ALL, OLD);
	origin_write(&s, 0, ALL, NEW);
	cr_assert_eq(put(written, 8 * CHUNK, CHUNK, MINE), 0);
	scene_expect(older, 0, ALL, OLD);
	scene_expect(newer, 0, ALL, OLD);
	scene_expect(written, 0, CHUNK, OLD);
	scene_expect(written, CHUNK, 2 * CHUNK, MINE);
	scene_expect(written, 3 * CHUNK, 2 * CHUNK + 100, OLD);
	scene_expect(written, 5 * CHUNK + 100, 50, MINE);
	scene_expect(written, 5 * CHUNK + 150, 3 * CHUNK - 150, OLD);
	scene_expect(written, 8 * CHUNK, CHUNK, MINE);
	expect_origin(&s, 0, ALL, NEW);
	cr_assert_eq(info_of(written).written_chunks, 4);
	scene_drop(newer);
	scene_drop(older);
	scene_reclaim(&s);
	scene_expect(written, CHUNK, 2 * CHUNK, MINE);
	scene_drop(written);
	scene_close(&s);
}

/* What only one snapshot has goes with it, also where its map has to stay for an older one. */
Test(snapshot_write, space_goes_with_the_snapshot)
{
	struct cowsnap_snapshot *older, *written;
	struct scene s;

	scene_open(&s, NULL);
	origin_write(&s, 0, ALL, OLD);
	older = take(&s);
	written = take(&s);
	origin_write(&s, 0, CHUNK, NEW);
	cr_assert_eq(put(written, 0, 8 * CHUNK, MINE), 0);
	cr_assert_eq(scene_usage(&s, 0).used_bytes, 9 * CHUNK);
	scene_drop(written);
	scene_reclaim(&s);
	cr_assert_eq(scene_usage(&s, 0).used_bytes, CHUNK);
	scene_expect(older, 0, ALL, OLD);
	scene_drop(older);
	scene_close(&s);
}

Test(snapshot_write, extents_say_that_it_is_saved)
{
	struct cowsnap_extent extent;
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	scene_open(&s, NULL);
	snapshot = take(&s);
	cr_assert_eq(put(snapshot, 2 * CHUNK, CHUNK, MINE), 0);
	cr_assert_eq(cowsnap_snapshot_extent(snapshot, 2 * CHUNK, 4 * CHUNK, &extent), 0);
	cr_assert(extent.saved);
	cr_assert_eq(extent.length, CHUNK);
	scene_drop(snapshot);
	scene_close(&s);
}

/* ---- What it costs --------------------------------------------------------------------------- */

/* a6e50b409d3f, d136f2efdf3a: whole chunks are not read before, and nothing of the way is left. */
Test(snapshot_write, whole_chunks_copy_nothing)
{
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	scene_open(&s, NULL);
	snapshot = take(&s);
	test_device_reset(s.origin_test[0]);
	test_device_reset(s.store_test[0]);
	cr_assert_eq(put(snapshot, 0, 8 * CHUNK, MINE), 0);
	cr_assert_eq(test_device_calls(s.origin_test[0], TEST_IO_READ), 0);
	cr_assert_eq(test_device_calls(s.store_test[0], TEST_IO_WRITE), 1);
	cr_assert_eq(put(snapshot, 100, 8 * CHUNK - 200, MINE), 0);
	cr_assert_eq(test_device_calls(s.store_test[0], TEST_IO_WRITE), 2, "written in place");
	cr_assert_eq(test_device_calls(s.store_test[0], TEST_IO_READ), 0);
	cr_assert_eq(put(snapshot, 9 * CHUNK - 1, CHUNK + 2, MINE), 0);
	cr_assert_eq(test_device_bytes(s.origin_test[0], TEST_IO_READ), 2 * CHUNK,
		"the parts of two chunks, and not the one between them");
	scene_drop(snapshot);
	scene_close(&s);
}

Test(snapshot_write, zeroes_of_whole_chunks_take_no_space)
{
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	scene_open(&s, NULL);
	origin_write(&s, 0, ALL, OLD);
	snapshot = take(&s);
	cr_assert_eq(
		cowsnap_snapshot_write(snapshot, COWSNAP_WRITE_ZEROES, NULL, CHUNK / 2, 4 * CHUNK),
		0);
	cr_assert_eq(scene_usage(&s, 0).used_bytes, 2 * CHUNK, "the two at the edges");
	scene_expect(snapshot, 0, CHUNK / 2, OLD);
	scene_expect(snapshot, CHUNK / 2, 4 * CHUNK, 0);
	scene_expect(snapshot, CHUNK / 2 + 4 * CHUNK, CHUNK / 2, OLD);
	cr_assert_eq(put(snapshot, 2 * CHUNK + 10, 10, MINE), 0);
	scene_expect(snapshot, 2 * CHUNK, 10, 0);
	scene_expect(snapshot, 2 * CHUNK + 10, 10, MINE);
	scene_expect(snapshot, 2 * CHUNK + 20, CHUNK - 20, 0);
	cr_assert_eq(scene_usage(&s, 0).used_bytes, 3 * CHUNK);
	scene_drop(snapshot);
	scene_close(&s);
}

/* The discard review of 2019: what a discard covers in whole reads as zeroes, whether the chunk was
 * there or not; what it covers in part stays; the origin is not told. */
Test(snapshot_write, discards)
{
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	scene_open(&s, NULL);
	origin_write(&s, 0, ALL, OLD);
	snapshot = take(&s);
	cr_assert_eq(put(snapshot, CHUNK, CHUNK, MINE), 0);
	origin_write(&s, 2 * CHUNK, CHUNK, NEW);
	cr_assert_eq(
		cowsnap_snapshot_write(snapshot, COWSNAP_DISCARD, NULL, CHUNK / 2, 4 * CHUNK), 0);
	scene_expect(snapshot, 0, CHUNK, OLD);
	scene_expect(snapshot, CHUNK, 3 * CHUNK, 0);
	scene_expect(snapshot, 4 * CHUNK, 2 * CHUNK, OLD);
	cr_assert_eq(cowsnap_snapshot_write(snapshot, COWSNAP_DISCARD, NULL, 10, CHUNK), 0);
	scene_expect(snapshot, 0, CHUNK, OLD);
	cr_assert_eq(
		cowsnap_snapshot_write(snapshot, COWSNAP_DISCARD, NULL, ALL - CHUNK - 1, CHUNK + 1),
		0);
	scene_expect(snapshot, ALL - CHUNK - 1, 1, OLD);
	scene_expect(snapshot, ALL - CHUNK, CHUNK, 0);
	expect_origin(&s, CHUNK, CHUNK, OLD);
	scene_drop(snapshot);
	scene_close(&s);
}

/* ---- What goes wrong ------------------------------------------------------------------------- */

/* 76c44f6d80, b0d3cc011e53: no space for a write to a snapshot leaves it as it was. */
Test(snapshot_write, a_full_store_leaves_the_snapshot_readable)
{
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	scene_open(&s, &(struct scene_options){.limit_chunks = 4});
	origin_write(&s, 0, ALL, OLD);
	snapshot = take(&s);
	cr_assert_eq(put(snapshot, 0, 3 * CHUNK, MINE), 0);
	cr_assert_eq(put(snapshot, 8 * CHUNK, 2 * CHUNK, MINE), -ENOSPC);
	cr_assert_eq(info_of(snapshot).overflowed, 1);
	cr_assert_eq(info_of(snapshot).state, COWSNAP_SNAPSHOT_ACTIVE);
	scene_expect(snapshot, 0, 3 * CHUNK, MINE);
	scene_expect(snapshot, 9 * CHUNK, CHUNK, OLD);
	cr_assert_eq(put(snapshot, CHUNK, CHUNK, MINE + 1), 0, "it has space of its own");
	scene_expect(snapshot, CHUNK, CHUNK, MINE + 1);
	cr_assert_eq(cowsnap_store_set_limit(s.store[0], 16 * CHUNK), 0);
	cr_assert_eq(put(snapshot, 8 * CHUNK, 2 * CHUNK, MINE), 0);
	cr_assert_eq(info_of(snapshot).overflowed, 0);
	scene_expect(snapshot, 8 * CHUNK, 2 * CHUNK, MINE);
	scene_drop(snapshot);
	scene_close(&s);
}

Test(snapshot_write, refused)
{
	struct cowsnap_snapshot *snapshot;
	uint8_t byte = 0;
	struct scene s;

	scene_open(&s, NULL);
	snapshot = take(&s);
	cr_assert_eq(
		cowsnap_snapshot_write(snapshot, (enum cowsnap_write_kind)9, &byte, 0, 1), -EINVAL);
	cr_assert_eq(cowsnap_snapshot_write(snapshot, COWSNAP_WRITE, NULL, 0, 1), -EINVAL);
	cr_assert_eq(cowsnap_snapshot_write(snapshot, COWSNAP_WRITE_ZEROES, &byte, 0, 1), -EINVAL);
	cr_assert_eq(cowsnap_snapshot_write(snapshot, COWSNAP_WRITE, &byte, 0, 0), -EINVAL);
	cr_assert_eq(cowsnap_snapshot_write(snapshot, COWSNAP_WRITE, &byte, ALL, 1), -ERANGE);
	cr_assert_eq(
		cowsnap_snapshot_write(snapshot, COWSNAP_WRITE, &byte, UINT64_MAX, 2), -EOVERFLOW);
	cr_assert_eq(cowsnap_snapshot_release(snapshot, 0, CHUNK), 0);
	cr_assert_eq(cowsnap_snapshot_write(snapshot, COWSNAP_WRITE, &byte, 5, 1), -ENODATA);
	cr_assert_eq(cowsnap_snapshot_flush(snapshot), 0);
	cr_assert_eq(cowsnap_snapshot_downgrade(snapshot), 0);
	cr_assert_eq(cowsnap_snapshot_write(snapshot, COWSNAP_WRITE, &byte, CHUNK, 1), -ENODATA);
	cr_assert_eq(cowsnap_snapshot_drop(snapshot), 0);
	cr_assert_eq(cowsnap_snapshot_write(snapshot, COWSNAP_WRITE, &byte, 5, 1), -EIDRM);
	cr_assert_eq(cowsnap_snapshot_flush(snapshot), -EIDRM);
	cowsnap_snapshot_unref(snapshot);
	scene_close(&s);
}

Test(snapshot_write, a_device_that_fails_changes_nothing_else)
{
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	scene_open(&s, NULL);
	origin_write(&s, 0, ALL, OLD);
	snapshot = take(&s);
	test_device_fail(s.store_test[0], TEST_IO_WRITE, 1, false, -EIO);
	cr_assert_eq(put(snapshot, 0, CHUNK, MINE), -EIO);
	test_device_fail(s.store_test[0], TEST_IO_WRITE, 1, false, -EIO);
	cr_assert_eq(put(snapshot, 10, CHUNK, MINE), -EIO);
	test_device_fail(s.origin_test[0], TEST_IO_READ, 1, false, -EIO);
	cr_assert_eq(put(snapshot, 10, 10, MINE), -EIO);
	test_device_heal(s.store_test[0]);
	test_device_heal(s.origin_test[0]);
	cr_assert_eq(scene_usage(&s, 0).used_bytes, 0);
	scene_expect(snapshot, 0, ALL, OLD);
	cr_assert_eq(put(snapshot, 10, CHUNK, MINE), 0);
	scene_expect(snapshot, 10, CHUNK, MINE);
	scene_drop(snapshot);
	scene_close(&s);
}

/* One allocation after the other fails. */
Test(snapshot_write, without_memory)
{
	for (uint64_t n = 1;; n++) {
		struct fail_alloc *memory = fail_alloc_create(true);
		struct cowsnap_snapshot *snapshot;
		struct scene s;
		uint64_t failed;
		int rc[2];

		scene_open(&s, &(struct scene_options){.allocator = fail_alloc_table(memory)});
		origin_write(&s, 0, ALL, OLD);
		snapshot = take(&s);
		fail_alloc_at(memory, n, false);
		rc[0] = put(snapshot, 0, 4 * CHUNK, MINE);
		rc[1] = put(snapshot, 6 * CHUNK + 1, 10, MINE);
		failed = fail_alloc_failed(memory);
		fail_alloc_at(memory, 0, false);
		for (unsigned i = 0; i < 2; i++)
			cr_assert(rc[i] == 0 || (failed && rc[i] == -ENOMEM), "error %d", rc[i]);
		scene_expect(snapshot, 0, 4 * CHUNK, rc[0] ? OLD : MINE);
		scene_expect(snapshot, 6 * CHUNK + 1, 10, rc[1] ? OLD : MINE);
		scene_expect(snapshot, 10 * CHUNK, CHUNK, OLD);
		scene_drop(snapshot);
		scene_close(&s);
		fail_alloc_destroy(memory);
		if (!failed)
			return;
	}
}

/* ---- What has changed ------------------------------------------------------------------------ */

Test(snapshot_write, is_told_among_changes_also_when_only_the_map_is_kept)
{
	struct cowsnap_snapshot *from, *to;
	struct cowsnap_change change[4];
	uint64_t offset = 0;
	struct scene s;

	scene_open(&s, NULL);
	from = take(&s);
	to = take(&s);
	cr_assert_eq(put(from, CHUNK, CHUNK, MINE), 0);
	cr_assert_eq(put(to, 3 * CHUNK, CHUNK, MINE), 0);
	for (unsigned i = 0; i < 2; i++) {
		offset = 0;
		cr_assert_eq(cowsnap_changes(from, to, &offset, change, 4), 2);
		cr_assert_eq(change[0].offset, CHUNK);
		cr_assert_eq(change[1].offset, 3 * CHUNK);
		cr_assert_eq(cowsnap_snapshot_downgrade(from), 0);
		scene_reclaim(&s);
	}
	cr_assert_eq(scene_usage(&s, 0).used_bytes, CHUNK, "what was written to it is given up");
	scene_drop(from);
	scene_drop(to);
	scene_close(&s);
}

/* ---- At the same time ------------------------------------------------------------------------ */

/* Two parts of each chunk, by two threads, while the origin is written to: none is lost. */
Test(snapshot_write, parts_of_one_chunk_beside_each_other)
{
	struct cowsnap_snapshot *snapshot, *older;
	struct scene s;

	scene_open(&s, NULL);
	origin_write(&s, 0, ALL, OLD);
	older = take(&s);
	snapshot = take(&s);
	struct putter left = {.snapshot = snapshot,
		.length = 100,
		.value = 11,
		.times = ALL / CHUNK,
		.step = CHUNK};
	struct putter right = {.snapshot = snapshot,
		.offset = 200,
		.length = 300,
		.value = 12,
		.times = ALL / CHUNK,
		.step = CHUNK};
	putter_start(&left);
	putter_start(&right);
	for (uint64_t at = 0; at < ALL; at += CHUNK)
		origin_write(&s, at, CHUNK, NEW);
	cr_assert_eq(putter_join(&left), 0);
	cr_assert_eq(putter_join(&right), 0);
	for (uint64_t at = 0; at < ALL; at += CHUNK) {
		scene_expect(snapshot, at, 100, 11);
		scene_expect(snapshot, at + 100, 100, OLD);
		scene_expect(snapshot, at + 200, 300, 12);
		scene_expect(snapshot, at + 500, CHUNK - 500, OLD);
	}
	scene_expect(older, 0, ALL, OLD);
	expect_origin(&s, 0, ALL, NEW);
	scene_drop(snapshot);
	scene_drop(older);
	scene_close(&s);
}

/* Zeroed chunks, which have no space, get some from two sides at once. */
Test(snapshot_write, zeroed_chunks_are_written_by_two)
{
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	scene_open(&s, NULL);
	origin_write(&s, 0, ALL, OLD);
	snapshot = take(&s);
	cr_assert_eq(cowsnap_snapshot_write(snapshot, COWSNAP_WRITE_ZEROES, NULL, 0, ALL), 0);
	struct putter left = {.snapshot = snapshot,
		.length = 100,
		.value = 11,
		.times = ALL / CHUNK,
		.step = CHUNK};
	struct putter right = {.snapshot = snapshot,
		.offset = 200,
		.length = 300,
		.value = 12,
		.times = ALL / CHUNK,
		.step = CHUNK};
	putter_start(&left);
	putter_start(&right);
	cr_assert_eq(putter_join(&left), 0);
	cr_assert_eq(putter_join(&right), 0);
	for (uint64_t at = 0; at < ALL; at += CHUNK) {
		scene_expect(snapshot, at, 100, 11);
		scene_expect(snapshot, at + 100, 100, 0);
		scene_expect(snapshot, at + 200, 300, 12);
	}
	cr_assert_eq(scene_usage(&s, 0).used_bytes, ALL);
	scene_drop(snapshot);
	scene_close(&s);
}

Test(snapshot_write, dropped_during_the_write)
{
	struct cowsnap_snapshot *snapshot;
	struct scene s;
	int hold;

	scene_open(&s, NULL);
	snapshot = take(&s);
	cr_assert_eq(put(snapshot, 0, CHUNK, MINE), 0);
	hold = scene_hold(s.store_test[0], TEST_IO_WRITE, 0, UINT64_MAX / 2);
	struct putter p = {.snapshot = cowsnap_snapshot_ref(snapshot),
		.length = 2 * CHUNK,
		.offset = 4 * CHUNK,
		.value = MINE,
		.times = 1};
	putter_start(&p);
	scene_wait_held(s.store_test[0], hold);
	scene_drop(snapshot);
	scene_reclaim(&s);
	cr_assert_eq(scene_usage(&s, 0).used_bytes, 3 * CHUNK, "the write is still under way");
	test_device_release(s.store_test[0], hold);
	cr_assert_eq(putter_join(&p), -EIDRM);
	scene_reclaim(&s);
	cr_assert_eq(scene_usage(&s, 0).used_bytes, 0);
	cowsnap_snapshot_unref(p.snapshot);
	scene_close(&s);
}

/* ---- Without waiting ------------------------------------------------------------------------- */

static void begin_put(struct pending_op *p, struct cowsnap_snapshot *snapshot,
	struct cowsnap_queue *queue, const uint8_t *data, uint64_t offset, uint64_t length)
{
	int rc = cowsnap_snapshot_write_async(
		snapshot, queue, COWSNAP_WRITE, data, offset, length, &p->op, pending_done, p);

	cr_assert_eq(rc, COWSNAP_PENDING, "error %d", rc);
}

static void in_a_queue(enum cowsnap_engine engine, bool submits)
{
	static uint8_t data[3 * CHUNK];
	struct cowsnap_snapshot *snapshot;
	struct pending_op p[3] = {0};
	struct scene s;
	struct loop l;

	memset(data, MINE, sizeof(data));
	scene_open(&s, &(struct scene_options){.engine = engine, .submits = submits});
	origin_write(&s, 0, ALL, OLD);
	snapshot = take(&s);
	loop_open(&l, &s, 4);
	begin_put(&p[0], snapshot, l.queue, data, 0, 2 * CHUNK);
	begin_put(&p[1], snapshot, l.queue, data, 4 * CHUNK + 7, 2 * CHUNK);
	begin_put(&p[2], snapshot, l.queue, data, 4 * CHUNK, 7);
	for (unsigned i = 0; i < 3; i++) {
		cr_assert(pending_wait(l.queue, &p[i]));
		cr_assert_eq(p[i].error, 0, "error %d", p[i].error);
	}
	scene_expect(snapshot, 0, 2 * CHUNK, MINE);
	scene_expect(snapshot, 2 * CHUNK, 2 * CHUNK, OLD);
	scene_expect(snapshot, 4 * CHUNK, 2 * CHUNK + 7, MINE);
	scene_expect(snapshot, 6 * CHUNK + 7, CHUNK - 7, OLD);
	loop_close(&l);
	scene_drop(snapshot);
	scene_close(&s);
}

Test(snapshot_write, in_a_queue_that_calls)
{
	in_a_queue(COWSNAP_ENGINE_INLINE, false);
}

Test(snapshot_write, in_a_queue_that_submits)
{
	in_a_queue(COWSNAP_ENGINE_LOOP, true);
}

Test(snapshot_write, on_a_worker)
{
	static uint8_t data[2 * CHUNK];
	struct cowsnap_snapshot *snapshot;
	struct pending_op p = {0};
	struct scene s;

	memset(data, MINE, sizeof(data));
	scene_open(&s, &(struct scene_options){.engine = COWSNAP_ENGINE_WORKERS, .workers = 1});
	origin_write(&s, 0, ALL, OLD);
	snapshot = take(&s);
	begin_put(&p, snapshot, NULL, data, 100, 2 * CHUNK);
	while (!atomic_load(&p.calls))
		sched_yield();
	cr_assert_eq(p.error, 0);
	scene_expect(snapshot, 0, 100, OLD);
	scene_expect(snapshot, 100, 2 * CHUNK, MINE);
	scene_drop(snapshot);
	scene_close(&s);
}

Test(snapshot_write, cancelled)
{
	static uint8_t data[CHUNK];
	struct cowsnap_snapshot *snapshot;
	struct pending_op p = {0};
	struct scene s;
	struct loop l;

	scene_open(&s, &(struct scene_options){.engine = COWSNAP_ENGINE_LOOP, .submits = true});
	origin_write(&s, 0, ALL, OLD);
	snapshot = take(&s);
	loop_open(&l, &s, 4);
	begin_put(&p, snapshot, l.queue, data, 100, 2 * CHUNK - 200);
	cr_assert_eq(cowsnap_op_cancel(&p.op), 0);
	cr_assert(pending_wait(l.queue, &p));
	cr_assert(p.error == -ECANCELED || p.error == 0, "error %d", p.error);
	loop_close(&l);
	scene_expect(snapshot, 2 * CHUNK, CHUNK, OLD);
	cr_assert_eq(put(snapshot, 0, 2 * CHUNK, MINE), 0, "no claim is left");
	scene_drop(snapshot);
	scene_close(&s);
}

/* ---- The persistent store -------------------------------------------------------------------- */

/* Ordinary exceptions, as the kernel's: they survive, and the origin's writer finds the chunk
 * saved. */
Test(snapshot_write, in_a_persistent_store)
{
	struct dm_scene s;

	dm_open(&s, NULL);
	cr_assert_eq(dm_begin(&s), 0);
	cr_assert_eq(dm_put(&s, 512, 1024, MINE), 0);
	cr_assert_eq(dm_put(&s, 4096 + 10, 20, MINE), 0);
	cr_assert_eq(dm_write(&s, 0, 0, 8192, NEW), 0);
	cr_assert_eq(dm_put(&s, 600, 10, MINE + 1), 0);
	cr_assert_eq(cowsnap_snapshot_flush(s.at[0].snapshot), 0);
	dm_expect_exact(&s, 0, true);
	cr_assert_eq(
		cowsnap_snapshot_write(s.at[0].snapshot, COWSNAP_WRITE_ZEROES, NULL, 8192, 1024),
		0);
	memset(s.at[0].image + 8192, 0, 1024);
	dm_expect_exact(&s, 0, true);
	dm_expect_promise(&s, 0);
	cr_assert_eq(dm_detach(&s, 0), 0);
	cr_assert_eq(dm_attach(&s, 0), 0);
	dm_expect_exact(&s, 0, true);
	dm_close(&s);
}

Test(snapshot_write, a_full_persistent_store_keeps_its_image)
{
	struct dm_scene s;
	uint64_t at = 0;
	int rc = 0;

	dm_open(&s, &(struct dm_scene_options){.store_bytes = 16384});
	cr_assert_eq(dm_begin(&s), 0);
	while (!rc && at < 65536) {
		rc = put(s.at[0].snapshot, at, 512, MINE);
		if (!rc)
			memset(s.at[0].image + at, MINE, 512);
		at += 512;
	}
	cr_assert_eq(rc, -ENOSPC);
	cr_assert_eq(info_of(s.at[0].snapshot).overflowed, 1);
	dm_expect_exact(&s, 0, true);
	dm_expect_promise(&s, 0);
	dm_close(&s);
}

/* ---- At random ------------------------------------------------------------------------------- */

#define SNAPSHOTS 4

struct world {
	struct scene s;
	uint8_t live[ALL];
	struct cowsnap_snapshot *snapshot[SNAPSHOTS];
	uint8_t image[SNAPSHOTS][ALL];
	struct seed seed;
};

static void random_write(struct world *w, int which, uint8_t value)
{
	uint64_t offset = seed_below(&w->seed, ALL);
	uint64_t length = 1 + seed_below(&w->seed, 4 * CHUNK);
	enum cowsnap_write_kind kind =
		seed_below(&w->seed, 4) ? COWSNAP_WRITE : COWSNAP_WRITE_ZEROES;

	if (length > ALL - offset)
		length = ALL - offset;
	if (which < 0) {
		origin_write(&w->s, offset, length, value);
		memset(w->live + offset, value, length);
		return;
	}
	if (kind == COWSNAP_WRITE)
		cr_assert_eq(put(w->snapshot[which], offset, length, value), 0);
	else
		cr_assert_eq(
			cowsnap_snapshot_write(w->snapshot[which], kind, NULL, offset, length), 0);
	memset(w->image[which] + offset, kind == COWSNAP_WRITE ? value : 0, length);
}

static void check_image(struct world *w, unsigned which)
{
	static uint8_t data[ALL];

	cr_assert_eq(cowsnap_snapshot_read(w->snapshot[which], data, 0, ALL), 0);
	cr_assert_eq(memcmp(data, w->image[which], ALL), 0, "snapshot %u", which);
}

Test(snapshot_write, random_streams_against_arrays)
{
	static struct world w;

	w.seed = seed_for("snapshot_write");
	scene_open(&w.s, NULL);
	for (unsigned step = 0; step < 600; step++) {
		unsigned which = (unsigned)seed_below(&w.seed, SNAPSHOTS);

		if (w.snapshot[which] && !seed_below(&w.seed, 8)) {
			check_image(&w, which);
			scene_drop(w.snapshot[which]);
			w.snapshot[which] = NULL;
			scene_reclaim(&w.s);
		} else if (!w.snapshot[which]) {
			w.snapshot[which] = take(&w.s);
			memcpy(w.image[which], w.live, ALL);
		} else {
			random_write(
				&w, seed_below(&w.seed, 2) ? (int)which : -1, (uint8_t)(step + 1));
			check_image(&w, which);
		}
	}
	for (unsigned i = 0; i < SNAPSHOTS; i++) {
		if (!w.snapshot[i])
			continue;
		check_image(&w, i);
		scene_drop(w.snapshot[i]);
	}
	scene_close(&w.s);
}
