/* SPDX-License-Identifier: MIT
 *
 * The interleavings that broke the relatives, one at a time and without luck: a test device stops
 * one call in the middle, and others go past it.
 */
#include "concurrent/scene.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK SCENE_CHUNK
#define OLD   1
#define NEW   2
#define NEWER 3

/* Stops the next call that touches a chunk, before its bytes move. */
static int hold_chunk(struct test_device *device, enum test_io kind, uint64_t chunk)
{
	return scene_hold(device, kind, chunk * CHUNK, CHUNK);
}

static void fill(struct scene *s, unsigned origin, uint8_t value)
{
	cr_assert_eq(scene_write(s, origin, 0, SCENE_BYTES, value), 0);
}

/* ---- Readers against writers ----------------------------------------------------------------- */

/* The reader has found no exception and is on its way to the origin; the writer passes it. */
Test(interleave, reader_is_overtaken_by_the_write, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct actor reader;
	struct scene s;
	int hold;

	scene_open(&s, NULL);
	fill(&s, 0, OLD);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	hold = hold_chunk(s.origin_test[0], TEST_IO_READ, 3);
	actor_read(&reader, snapshot, 3 * CHUNK, CHUNK);
	scene_wait_held(s.origin_test[0], hold);
	cr_assert_eq(scene_write(&s, 0, 3 * CHUNK, CHUNK, NEW), 0, "no writer waits for a reader");
	test_device_release(s.origin_test[0], hold);
	cr_assert_eq(actor_join(&reader), 0);
	actor_expect(&reader, OLD);
	free(reader.data);
	cr_assert_eq(scene_stats(&s).reread_chunks, 1);
	scene_drop(snapshot);
	scene_close(&s);
}

/* The same in the middle of a long run, with parts of two chunks: only these are read again. */
Test(interleave, reader_of_a_long_run_is_overtaken_in_the_middle, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct actor reader;
	struct scene s;
	int hold;

	scene_open(&s, NULL);
	fill(&s, 0, OLD);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	hold = hold_chunk(s.origin_test[0], TEST_IO_READ, 5);
	actor_read(&reader, snapshot, 100, 20 * CHUNK);
	scene_wait_held(s.origin_test[0], hold);
	cr_assert_eq(scene_write(&s, 0, 7 * CHUNK - 10, 20, NEW), 0);
	test_device_release(s.origin_test[0], hold);
	cr_assert_eq(actor_join(&reader), 0);
	actor_expect(&reader, OLD);
	free(reader.data);
	cr_assert_eq(scene_stats(&s).reread_chunks, 2);
	scene_drop(snapshot);
	scene_close(&s);
}

/* The older snapshot's reader finds what the newer one's copy saved meanwhile. */
Test(interleave, reader_of_an_older_snapshot_is_overtaken, .timeout = 60)
{
	struct cowsnap_snapshot *older, *newer;
	struct actor reader;
	struct scene s;
	int hold;

	scene_open(&s, NULL);
	fill(&s, 0, OLD);
	older = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	hold = hold_chunk(s.origin_test[0], TEST_IO_READ, 3);
	actor_read(&reader, older, 2 * CHUNK, 4 * CHUNK);
	scene_wait_held(s.origin_test[0], hold);
	newer = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scene_write(&s, 0, 3 * CHUNK, 2 * CHUNK, NEW), 0);
	cr_assert_eq(scene_write(&s, 0, 3 * CHUNK, 2 * CHUNK, NEWER), 0);
	test_device_release(s.origin_test[0], hold);
	cr_assert_eq(actor_join(&reader), 0);
	actor_expect(&reader, OLD);
	free(reader.data);
	scene_expect(newer, 0, SCENE_BYTES, OLD);
	cr_assert_eq(scene_stats(&s).copied_chunks, 2, "one copy serves both");
	scene_drop(newer);
	scene_expect(older, 0, SCENE_BYTES, OLD);
	scene_drop(older);
	scene_close(&s);
}

/* A reader is inside the store while its snapshot goes: it gets nothing, and nobody gets the space
 * before it has left. */
Test(interleave, drop_while_a_reader_is_in_the_store, .timeout = 60)
{
	const struct scene_options options = {.limit_chunks = 1};
	struct cowsnap_snapshot *snapshot, *other;
	struct actor reader;
	struct scene s;
	int hold;

	scene_open(&s, &options);
	fill(&s, 0, OLD);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	other = scene_take(&s, 1, 0, COWSNAP_LOSER_WRITE);
	cr_assert_eq(scene_write(&s, 0, 3 * CHUNK, CHUNK, NEW), 0);
	hold = scene_hold(s.store_test[0], TEST_IO_READ, 0, SCENE_BYTES);
	actor_read(&reader, cowsnap_snapshot_ref(snapshot), 3 * CHUNK, CHUNK);
	scene_wait_held(s.store_test[0], hold);
	scene_drop(snapshot);
	scene_reclaim(&s);
	cr_assert_eq(scene_usage(&s, 0).used_bytes, CHUNK, "the reader is still there");
	cr_assert_eq(scene_write(&s, 1, 0, CHUNK, NEW), -ENOSPC);
	cr_assert_eq(scene_usage(&s, 0).snapshots, 1);
	test_device_release(s.store_test[0], hold);
	cr_assert_eq(actor_join(&reader), -EIDRM);
	cowsnap_snapshot_unref(reader.snapshot);
	free(reader.data);
	cr_assert_eq(scene_write(&s, 1, 0, CHUNK, NEW), 0, "now the space is free");
	scene_drop(other);
	scene_close(&s);
}

/* A preimage moves to an older snapshot's map while that one's reader is on its way to it. */
Test(interleave, drop_of_the_newer_one_while_the_older_is_read, .timeout = 60)
{
	struct cowsnap_snapshot *older, *newer;
	struct actor reader;
	struct scene s;
	int hold;

	scene_open(&s, NULL);
	fill(&s, 0, OLD);
	older = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	newer = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scene_write(&s, 0, 0, 8 * CHUNK, NEW), 0);
	hold = scene_hold(s.store_test[0], TEST_IO_READ, 0, 4 * SCENE_BYTES);
	actor_read(&reader, older, 0, 16 * CHUNK);
	scene_wait_held(s.store_test[0], hold);
	scene_drop(newer);
	scene_reclaim(&s);
	cr_assert_eq(scene_write(&s, 0, 0, 16 * CHUNK, NEWER), 0);
	test_device_release(s.store_test[0], hold);
	cr_assert_eq(actor_join(&reader), 0);
	actor_expect(&reader, OLD);
	free(reader.data);
	scene_reclaim(&s);
	scene_expect(older, 0, SCENE_BYTES, OLD);
	cr_assert_eq(scene_usage(&s, 0).used_bytes, 16 * CHUNK);
	scene_drop(older);
	scene_close(&s);
}

/* The middle one of three goes, and what only it had saved moves into the older one's map, while a
 * reader of the older one is on its way to the store. */
Test(interleave, preimages_move_under_a_reader, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot[3];
	struct actor reader;
	struct scene s;
	int hold;

	scene_open(&s, NULL);
	fill(&s, 0, OLD);
	snapshot[0] = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	snapshot[1] = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scene_write(&s, 0, 0, 8 * CHUNK, NEW), 0);
	snapshot[2] = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scene_write(&s, 0, 0, 16 * CHUNK, NEWER), 0);
	hold = scene_hold(s.store_test[0], TEST_IO_READ, 0, 4 * SCENE_BYTES);
	actor_read(&reader, snapshot[0], 0, 16 * CHUNK);
	scene_wait_held(s.store_test[0], hold);
	scene_drop(snapshot[1]);
	scene_reclaim(&s);
	scene_expect(snapshot[0], 0, SCENE_BYTES, OLD);
	scene_expect(snapshot[2], 0, 8 * CHUNK, NEW);
	test_device_release(s.store_test[0], hold);
	cr_assert_eq(actor_join(&reader), 0);
	actor_expect(&reader, OLD);
	free(reader.data);
	scene_reclaim(&s);
	cr_assert_eq(scene_usage(&s, 0).used_bytes, (8 + 16) * CHUNK);
	scene_drop(snapshot[2]);
	scene_reclaim(&s);
	scene_expect(snapshot[0], 0, SCENE_BYTES, OLD);
	cr_assert_eq(scene_usage(&s, 0).used_bytes, 16 * CHUNK);
	scene_drop(snapshot[0]);
	scene_close(&s);
}

/* A reader stands in the store for long. Other snapshots are dropped and reclaimed meanwhile, in
 * turns, with readers that come and go: what is given up after the first reader came must wait for
 * those that came later too. */
Test(interleave, reclaiming_goes_on_behind_a_slow_reader, .timeout = 60)
{
	struct cowsnap_snapshot *keep, *gone[2];
	struct actor slow, late;
	struct scene s;
	int hold[2];

	scene_open(&s, NULL);
	fill(&s, 0, OLD);
	keep = scene_take(&s, 1, 0, COWSNAP_LOSER_SNAPSHOT);
	gone[0] = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEW), 0);
	gone[1] = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEWER), 0);
	hold[0] = scene_hold(s.origin_test[1], TEST_IO_READ, 0, CHUNK);
	actor_read(&slow, keep, 0, CHUNK);
	scene_wait_held(s.origin_test[1], hold[0]);
	scene_drop(gone[0]);
	scene_reclaim(&s);
	cr_assert_eq(scene_usage(&s, 0).used_bytes, 2 * CHUNK, "the slow reader is in the way");
	/* A reader of the second one comes after that, and is inside when the second one goes. */
	hold[1] = scene_hold(s.store_test[0], TEST_IO_READ, 0, 4 * SCENE_BYTES);
	actor_read(&late, cowsnap_snapshot_ref(gone[1]), 0, CHUNK);
	scene_wait_held(s.store_test[0], hold[1]);
	scene_drop(gone[1]);
	scene_reclaim(&s);
	test_device_release(s.origin_test[1], hold[0]);
	cr_assert_eq(actor_join(&slow), 0);
	free(slow.data);
	scene_reclaim(&s);
	cr_assert(scene_usage(&s, 0).used_bytes >= CHUNK, "the late reader is still there");
	test_device_release(s.store_test[0], hold[1]);
	cr_assert_eq(actor_join(&late), -EIDRM);
	cowsnap_snapshot_unref(late.snapshot);
	free(late.data);
	scene_reclaim(&s);
	cr_assert_eq(scene_usage(&s, 0).used_bytes, 0);
	scene_drop(keep);
	scene_close(&s);
}

Test(interleave, store_is_not_closed_under_a_reader, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct actor reader;
	struct scene s;
	int hold;

	scene_open(&s, NULL);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	hold = hold_chunk(s.origin_test[0], TEST_IO_READ, 0);
	actor_read(&reader, cowsnap_snapshot_ref(snapshot), 0, CHUNK);
	scene_wait_held(s.origin_test[0], hold);
	scene_drop(snapshot);
	cr_assert_eq(cowsnap_store_close(s.store[0]), -EBUSY);
	test_device_release(s.origin_test[0], hold);
	cr_assert_eq(actor_join(&reader), -EIDRM);
	cowsnap_snapshot_unref(reader.snapshot);
	free(reader.data);
	scene_close(&s);
}

/* ---- Writers against writers ----------------------------------------------------------------- */

Test(interleave, two_writers_on_one_fresh_chunk, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct actor first, second;
	struct scene s;
	int hold;

	scene_open(&s, NULL);
	fill(&s, 0, OLD);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	hold = hold_chunk(s.origin_test[0], TEST_IO_READ, 3);
	actor_write(&first, &s, 0, 3 * CHUNK, 512, NEW);
	scene_wait_held(s.origin_test[0], hold);
	actor_write(&second, &s, 0, 3 * CHUNK + 512, 512, NEWER);
	scene_until(&s, claim_waits, 1);
	cr_assert(!atomic_load(&second.finished));
	test_device_release(s.origin_test[0], hold);
	cr_assert_eq(actor_join(&first), 0);
	cr_assert_eq(actor_join(&second), 0);
	cr_assert_eq(scene_stats(&s).copied_chunks, 1);
	cr_assert_eq(scene_stats(&s).origin_reads, 1);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_drop(snapshot);
	scene_close(&s);
}

/* The second writer copies what is fresh of its range before it waits for what is busy. */
Test(interleave, overlapping_writers_copy_at_the_same_time, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct actor first, second;
	struct scene s;
	int hold;

	scene_open(&s, NULL);
	fill(&s, 0, OLD);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	hold = hold_chunk(s.origin_test[0], TEST_IO_READ, 3);
	actor_write(&first, &s, 0, 3 * CHUNK, CHUNK, NEW);
	scene_wait_held(s.origin_test[0], hold);
	actor_write(&second, &s, 0, 0, 8 * CHUNK, NEWER);
	scene_until(&s, copied_chunks, 7);
	cr_assert(!atomic_load(&second.finished));
	test_device_release(s.origin_test[0], hold);
	cr_assert_eq(actor_join(&first), 0);
	cr_assert_eq(actor_join(&second), 0);
	cr_assert_eq(scene_stats(&s).copied_chunks, 8);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_drop(snapshot);
	scene_close(&s);
}

/* The copy that the second writer waits for fails: it must claim the chunk itself. The first one is
 * refused, unless the second has saved the chunk before it comes to ask who loses. */
Test(interleave, claim_is_retried_after_the_other_copy_failed, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct actor first, second;
	struct scene s;
	int hold;

	scene_open(&s, NULL);
	fill(&s, 0, OLD);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_WRITE);
	hold = hold_chunk(s.origin_test[0], TEST_IO_READ, 3);
	test_device_fail(s.origin_test[0], TEST_IO_READ, 1, false, -EIO);
	actor_write(&first, &s, 0, 3 * CHUNK, 512, NEW);
	scene_wait_held(s.origin_test[0], hold);
	actor_write(&second, &s, 0, 3 * CHUNK + 512, 512, NEWER);
	scene_until(&s, claim_waits, 1);
	test_device_release(s.origin_test[0], hold);
	actor_join(&first);
	cr_assert(first.rc == -EIO || first.rc == 0);
	cr_assert_eq(actor_join(&second), 0);
	cr_assert_eq(scene_stats(&s).copied_chunks, 1);
	cr_assert_eq(scene_stats(&s).failed_writes, first.rc ? 1 : 0);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	cr_assert_eq(scene_write(&s, 0, 3 * CHUNK, 512, NEW), 0);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_drop(snapshot);
	scene_close(&s);
}

/* The store's write is held, not the origin's read: the chunk is busy until its data is there. */
Test(interleave, no_write_before_the_store_has_the_data, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct actor writer;
	struct scene s;
	int hold;

	scene_open(&s, NULL);
	fill(&s, 0, OLD);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	hold = scene_hold(s.store_test[0], TEST_IO_WRITE, 0, 4 * SCENE_BYTES);
	actor_write(&writer, &s, 0, 3 * CHUNK, CHUNK, NEW);
	scene_wait_held(s.store_test[0], hold);
	cr_assert(!atomic_load(&writer.finished));
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	test_device_release(s.store_test[0], hold);
	cr_assert_eq(actor_join(&writer), 0);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_drop(snapshot);
	scene_close(&s);
}

/* The kernel let the second write slip through: snapshots of one origin with different chunks. */
Test(interleave, write_that_spans_two_stores_with_different_chunks, .timeout = 60)
{
	const struct scene_options options = {.chunk_bytes = {4096, 16384}};
	struct cowsnap_snapshot *small, *large;
	struct actor first, second;
	struct scene s;
	int hold;

	scene_open(&s, &options);
	fill(&s, 0, OLD);
	small = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	large = scene_take(&s, 0, 1, COWSNAP_LOSER_SNAPSHOT);
	hold = scene_hold(s.store_test[1], TEST_IO_WRITE, 0, 4 * SCENE_BYTES);
	actor_write(&first, &s, 0, 12288, 8192, NEW);
	scene_wait_held(s.store_test[1], hold);
	actor_write(&second, &s, 0, 8192, 4096, NEWER); /* a neighbour: fresh here, busy there */
	scene_until(&s, claim_waits, 1);
	cr_assert(!atomic_load(&second.finished));
	test_device_release(s.store_test[1], hold);
	cr_assert_eq(actor_join(&first), 0);
	cr_assert_eq(actor_join(&second), 0);
	scene_expect(small, 0, SCENE_BYTES, OLD);
	scene_expect(large, 0, SCENE_BYTES, OLD);
	cr_assert_eq(scene_stats(&s).copied_chunks, 3 + 2);
	scene_drop(large);
	cr_assert_eq(scene_write(&s, 0, 0, 65536, NEWER), 0);
	scene_expect(small, 0, SCENE_BYTES, OLD);
	scene_drop(small);
	scene_close(&s);
}

/* ---- Drop under a copy ----------------------------------------------------------------------- */

Test(interleave, drop_while_its_copy_is_under_way, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct actor writer;
	struct scene s;
	int hold;

	scene_open(&s, NULL);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	hold = scene_hold(s.store_test[0], TEST_IO_WRITE, 0, 4 * SCENE_BYTES);
	actor_write(&writer, &s, 0, 0, 2 * CHUNK, NEW);
	scene_wait_held(s.store_test[0], hold);
	scene_drop(snapshot);
	cowsnap_reclaim(s.ctx, UINT64_MAX);
	test_device_release(s.store_test[0], hold);
	cr_assert_eq(actor_join(&writer), 0);
	scene_close(&s);
}

/* The newest of two goes while a copy for both is under way: the older one still needs it. */
Test(interleave, drop_of_the_newest_while_a_copy_for_both_is_under_way, .timeout = 60)
{
	struct cowsnap_snapshot *older, *newer;
	struct actor writer;
	struct scene s;
	int hold;

	scene_open(&s, NULL);
	fill(&s, 0, OLD);
	older = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	newer = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	hold = hold_chunk(s.origin_test[0], TEST_IO_READ, 1);
	actor_write(&writer, &s, 0, CHUNK, CHUNK, NEW);
	scene_wait_held(s.origin_test[0], hold);
	scene_drop(newer);
	cowsnap_reclaim(s.ctx, UINT64_MAX);
	test_device_release(s.origin_test[0], hold);
	cr_assert_eq(actor_join(&writer), 0);
	scene_expect(older, 0, SCENE_BYTES, OLD);
	scene_reclaim(&s);
	scene_expect(older, 0, SCENE_BYTES, OLD);
	cr_assert_eq(scene_write(&s, 0, CHUNK, CHUNK, NEWER), 0);
	cr_assert_eq(scene_stats(&s).copied_chunks, 1, "what is saved stays saved");
	cr_assert_eq(scene_usage(&s, 0).used_bytes, CHUNK);
	scene_drop(older);
	scene_close(&s);
}

/* Each of three goes: the others keep their images, and nothing is copied twice. */
Test(interleave, drop_newest_oldest_and_middle, .timeout = 60)
{
	for (unsigned gone = 0; gone < 3; gone++) {
		struct cowsnap_snapshot *snapshot[3];
		struct scene s;

		scene_open(&s, NULL);
		for (unsigned i = 0; i < 3; i++) {
			fill(&s, 0, (uint8_t)(10 + i));
			snapshot[i] = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
		}
		cr_assert_eq(scene_write(&s, 0, 0, 10 * CHUNK, NEW), 0);
		cr_assert_eq(scene_stats(&s).copied_chunks, 2 * SCENE_BYTES / CHUNK + 10);
		scene_drop(snapshot[gone]);
		cr_assert_eq(scene_write(&s, 0, 0, 10 * CHUNK, NEWER), 0);
		cr_assert_eq(scene_stats(&s).copied_chunks, 2 * SCENE_BYTES / CHUNK + 10);
		for (unsigned round = 0; round < 2; round++) {
			for (unsigned i = 0; i < 3; i++) {
				if (i != gone)
					scene_expect(
						snapshot[i], 0, SCENE_BYTES, (uint8_t)(10 + i));
			}
			scene_reclaim(&s);
		}
		for (unsigned i = 0; i < 3; i++) {
			if (i != gone)
				scene_drop(snapshot[i]);
		}
		cr_assert_eq(scene_write(&s, 0, 0, SCENE_BYTES, OLD), 0);
		cr_assert_eq(scene_stats(&s).copied_chunks, 2 * SCENE_BYTES / CHUNK + 10);
		scene_close(&s);
	}
}

/* ---- Takes ----------------------------------------------------------------------------------- */

#define FOR_EVER UINT64_MAX
#define SHORT    UINT64_C(20000000)

/* A take meets a copy under way. It waits for that write; a later write that needs a copy waits for
 * the take; one on an origin without a snapshot waits for nobody. */
Test(interleave, take_waits_for_copies_and_later_writers_for_the_take, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct actor before, after, take;
	struct scene s;
	int hold;

	scene_open(&s, NULL);
	fill(&s, 0, OLD);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	hold = hold_chunk(s.origin_test[0], TEST_IO_READ, 0);
	actor_write(&before, &s, 0, 0, CHUNK, NEW);
	scene_wait_held(s.origin_test[0], hold);
	actor_take(&take, &s, 1, FOR_EVER);
	while (!atomic_load(&take.thawed))
		sched_yield();
	actor_write(&after, &s, 0, CHUNK, CHUNK, NEWER);
	scene_until(&s, drain_waits, 1);
	cr_assert_eq(scene_write(&s, 1, 0, SCENE_BYTES, NEW), 0);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	cr_assert(!atomic_load(&after.finished));
	cr_assert(!atomic_load(&take.finished));
	test_device_release(s.origin_test[0], hold);
	cr_assert_eq(actor_join(&before), 0);
	cr_assert_eq(actor_join(&take), 0);
	cr_assert_eq(actor_join(&after), 0);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_expect(take.entry[0].snapshot, 0, CHUNK, NEW);
	scene_expect(take.entry[0].snapshot, CHUNK, SCENE_BYTES - CHUNK, OLD);
	cr_assert_eq(scene_stats(&s).copied_chunks, 2);
	scene_drop(take.entry[0].snapshot);
	scene_drop(snapshot);
	scene_close(&s);
}

/* The same with a deadline: the take is withdrawn as a whole, and the later writer goes on while
 * the older one is still stuck. */
Test(interleave, take_past_its_deadline_is_withdrawn, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct actor before, after, take;
	struct scene s;
	int hold;

	scene_open(&s, NULL);
	fill(&s, 0, OLD);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	hold = hold_chunk(s.origin_test[0], TEST_IO_READ, 0);
	actor_write(&before, &s, 0, 0, CHUNK, NEW);
	scene_wait_held(s.origin_test[0], hold);
	actor_take(&take, &s, 2, SHORT);
	while (!atomic_load(&take.thawed))
		sched_yield();
	actor_write(&after, &s, 0, CHUNK, CHUNK, NEWER);
	cr_assert_eq(actor_join(&take), -ETIMEDOUT);
	cr_assert_null(take.entry[0].snapshot);
	cr_assert_null(take.entry[1].snapshot);
	cr_assert_eq(actor_join(&after), 0, "parked writes go on");
	cr_assert_eq(scene_usage(&s, 0).snapshots, 1);
	cr_assert_eq(scene_write(&s, 1, 0, SCENE_BYTES, NEW), 0);
	cr_assert_eq(scene_stats(&s).copied_chunks, 1, "nothing is saved for a take withdrawn");
	test_device_release(s.origin_test[0], hold);
	cr_assert_eq(actor_join(&before), 0);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	actor_take(&take, &s, 2, FOR_EVER);
	cr_assert_eq(actor_join(&take), 0, "the next one succeeds");
	cr_assert_eq(scene_write(&s, 0, 0, SCENE_BYTES, OLD), 0);
	scene_expect(take.entry[0].snapshot, 0, CHUNK, NEW);
	scene_expect(take.entry[0].snapshot, CHUNK, CHUNK, NEWER);
	scene_expect(take.entry[1].snapshot, 0, SCENE_BYTES, NEW);
	scene_drop(take.entry[0].snapshot);
	scene_drop(take.entry[1].snapshot);
	scene_drop(snapshot);
	scene_close(&s);
}

/* Many takes in a row are withdrawn while one old write is stuck; then everything works again. */
Test(interleave, many_withdrawn_takes, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct actor before, take;
	struct scene s;
	int hold;

	scene_open(&s, NULL);
	fill(&s, 0, OLD);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	hold = hold_chunk(s.origin_test[0], TEST_IO_READ, 0);
	actor_write(&before, &s, 0, 0, CHUNK, NEW);
	scene_wait_held(s.origin_test[0], hold);
	for (uint64_t i = 1; i <= 20; i++) {
		actor_take(&take, &s, 1, 100000);
		cr_assert_eq(actor_join(&take), -ETIMEDOUT);
		cr_assert_eq(scene_write(&s, 0, i * CHUNK, CHUNK, NEWER), 0);
	}
	test_device_release(s.origin_test[0], hold);
	cr_assert_eq(actor_join(&before), 0);
	cr_assert_eq(scene_stats(&s).copied_chunks, 21);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	actor_take(&take, &s, 1, FOR_EVER);
	cr_assert_eq(actor_join(&take), 0);
	scene_expect(take.entry[0].snapshot, 0, CHUNK, NEW);
	scene_drop(take.entry[0].snapshot);
	scene_drop(snapshot);
	scene_close(&s);
}

/* Each withdrawn take leaves one bracket of its own generation open. However many there are, writes
 * and drops go on, and a take comes through once they have ended. */
Test(interleave, withdrawn_takes_with_a_bracket_left_in_each_generation, .timeout = 60)
{
	struct cowsnap_op op[12];
	struct actor take;
	struct scene s;

	scene_open(&s, NULL);
	fill(&s, 0, OLD);
	for (unsigned i = 0; i < 12; i++) {
		cr_assert_eq(
			cowsnap_write_begin(s.origin[0], COWSNAP_WRITE, i * CHUNK, CHUNK, &op[i]),
			0);
		actor_take(&take, &s, 1, 100000);
		cr_assert_eq(actor_join(&take), -ETIMEDOUT);
		cr_assert_null(take.entry[0].snapshot);
	}
	cr_assert_eq(scene_write(&s, 0, 0, SCENE_BYTES, NEW), 0);
	for (unsigned i = 0; i < 12; i++)
		cowsnap_write_end(&op[i]);
	cr_assert_eq(scene_stats(&s).copied_chunks, 0);
	actor_take(&take, &s, 1, FOR_EVER);
	cr_assert_eq(actor_join(&take), 0);
	cr_assert_eq(scene_write(&s, 0, 0, SCENE_BYTES, NEWER), 0);
	scene_expect(take.entry[0].snapshot, 0, SCENE_BYTES, NEW);
	scene_drop(take.entry[0].snapshot);
	scene_close(&s);
}

/* A bracket of the taking thread itself: it cannot end before the take does. */
Test(interleave, take_inside_a_bracket_of_the_same_thread, .timeout = 60)
{
	struct cowsnap_take_entry entry = {0};
	const struct cowsnap_take_options options = {
		.size = sizeof(options), .deadline_ns = 1000000};
	struct cowsnap_op op;
	struct scene s;

	scene_open(&s, NULL);
	entry.origin = s.origin[0];
	entry.store = s.store[0];
	cr_assert_eq(cowsnap_write_begin(s.origin[0], COWSNAP_WRITE, 0, CHUNK, &op), 0);
	cr_assert_eq(cowsnap_take(s.ctx, &options, &entry, 1), -ETIMEDOUT);
	entry.origin = s.origin[1];
	cr_assert_eq(cowsnap_take(s.ctx, &options, &entry, 1), 0, "another origin's take may");
	cowsnap_write_end(&op);
	scene_drop(entry.snapshot);
	scene_close(&s);
}

/* Two takes at once go one after the other. */
Test(interleave, second_take_waits_for_the_first, .timeout = 60)
{
	struct cowsnap_snapshot_info first_info, second_info;
	struct actor first, second;
	struct cowsnap_op op;
	struct scene s;

	scene_open(&s, NULL);
	cr_assert_eq(cowsnap_write_begin(s.origin[0], COWSNAP_WRITE, 0, CHUNK, &op), 0);
	actor_take(&first, &s, 1, FOR_EVER);
	while (!atomic_load(&first.thawed))
		sched_yield();
	actor_take(&second, &s, 2, FOR_EVER);
	cowsnap_write_end(&op);
	cr_assert_eq(actor_join(&first), 0);
	cr_assert_eq(actor_join(&second), 0);
	cowsnap_snapshot_info(first.entry[0].snapshot, &first_info, sizeof(first_info));
	cowsnap_snapshot_info(second.entry[0].snapshot, &second_info, sizeof(second_info));
	cr_assert(first_info.id < second_info.id);
	scene_drop(first.entry[0].snapshot);
	scene_drop(second.entry[0].snapshot);
	scene_drop(second.entry[1].snapshot);
	scene_close(&s);
}

/* ---- Credits --------------------------------------------------------------------------------- */

/* One copy in flight: the second writer waits for credits, holding nothing that a take or a drop of
 * another origin needs. */
Test(interleave, one_copy_in_flight, .timeout = 60)
{
	const struct scene_options options = {.copy_inflight_bytes = 1};
	struct cowsnap_snapshot *snapshot;
	struct actor first, second;
	struct scene s;
	int hold;

	scene_open(&s, &options);
	fill(&s, 0, OLD);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	hold = hold_chunk(s.origin_test[0], TEST_IO_READ, 0);
	actor_write(&first, &s, 0, 0, CHUNK, NEW);
	scene_wait_held(s.origin_test[0], hold);
	actor_write(&second, &s, 0, 8 * CHUNK, 8 * CHUNK, NEW);
	scene_until(&s, writes, 3);
	for (int i = 0; i < 50; i++) {
		struct cowsnap_snapshot *other = scene_take(&s, 1, 0, COWSNAP_LOSER_SNAPSHOT);

		scene_drop(other);
		cowsnap_reclaim(s.ctx, 8);
	}
	cr_assert(!atomic_load(&second.finished));
	test_device_release(s.origin_test[0], hold);
	cr_assert_eq(actor_join(&first), 0);
	cr_assert_eq(actor_join(&second), 0);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_drop(snapshot);
	scene_close(&s);
}

/* The drain needs the credits that a later writer would like to have: it must not have them yet. */
Test(interleave, one_copy_in_flight_and_a_take, .timeout = 60)
{
	const struct scene_options options = {.copy_inflight_bytes = 1};
	struct cowsnap_snapshot *snapshot;
	struct actor before[2], after, take;
	struct scene s;
	int hold;

	scene_open(&s, &options);
	fill(&s, 0, OLD);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	hold = hold_chunk(s.origin_test[0], TEST_IO_READ, 0);
	actor_write(&before[0], &s, 0, 0, CHUNK, NEW);
	scene_wait_held(s.origin_test[0], hold);
	actor_write(&before[1], &s, 0, 4 * CHUNK, CHUNK, NEW);
	scene_until(&s, writes, 3);
	actor_take(&take, &s, 1, FOR_EVER);
	while (!atomic_load(&take.thawed))
		sched_yield();
	actor_write(&after, &s, 0, 8 * CHUNK, CHUNK, NEWER);
	scene_until(&s, drain_waits, 1);
	test_device_release(s.origin_test[0], hold);
	cr_assert_eq(actor_join(&before[0]), 0);
	cr_assert_eq(actor_join(&before[1]), 0);
	cr_assert_eq(actor_join(&take), 0);
	cr_assert_eq(actor_join(&after), 0);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_expect(take.entry[0].snapshot, 8 * CHUNK, CHUNK, OLD);
	scene_expect(take.entry[0].snapshot, 4 * CHUNK, CHUNK, NEW);
	scene_drop(take.entry[0].snapshot);
	scene_drop(snapshot);
	scene_close(&s);
}

/* ---- Statistics ------------------------------------------------------------------------------ */

Test(interleave, statistics, .timeout = 60)
{
	const struct scene_options options = {.chunk_bytes = {4096, 16384}};
	struct cowsnap_snapshot *snapshot[4];
	struct cowsnap_thread_io io[4];
	struct cowsnap_stats stats;
	struct scene s;

	scene_open(&s, &options);
	fill(&s, 0, OLD);
	stats = scene_stats(&s);
	cr_assert_eq(stats.writes, 1);
	cr_assert_eq(stats.fast_writes, 1);
	for (unsigned i = 0; i < 3; i++)
		snapshot[i] = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	snapshot[3] = scene_take(&s, 0, 1, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scene_write(&s, 0, 12288, 8192, NEW), 0);
	cr_assert_eq(scene_write(&s, 0, 12288, 8192, NEW), 0);
	stats = scene_stats(&s);
	cr_assert_eq(stats.writes, 3);
	cr_assert_eq(stats.fast_writes, 2);
	cr_assert_eq(stats.copied_chunks, 2 + 2, "once for three snapshots, once for each store");
	cr_assert_eq(stats.copied_bytes, 8192 + 32768);
	cr_assert_eq(stats.origin_reads, 1, "one read serves all stores");
	cr_assert_eq(stats.origin_bytes, 32768);
	cr_assert(stats.copies >= 1);
	cr_assert(stats.copy_ns_p50 <= stats.copy_ns_p99);
	cr_assert_eq(
		stats.claim_waits + stats.drain_waits + stats.credit_waits + stats.space_waits, 0);
	cr_assert_eq(cowsnap_ctx_thread_io(s.ctx, io, 4), 1);
	cr_assert_eq(io[0].reads, 1);
	cr_assert_eq(io[0].read_bytes, 32768);
	cr_assert_eq(io[0].write_bytes, 8192 + 32768);
	scene_expect(snapshot[0], 0, SCENE_BYTES, OLD);
	cr_assert_eq(scene_stats(&s).snapshot_reads, 1);
	cr_assert_eq(scene_stats(&s).reread_chunks, 0);
	for (unsigned i = 0; i < 4; i++)
		scene_drop(snapshot[i]);
	scene_close(&s);
}
