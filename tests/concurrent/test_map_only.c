/* SPDX-License-Identifier: MIT
 *
 * Map-only snapshots and changed extents: what they cost, what they say, and that nothing is left
 * out whatever happens to the snapshots around them.
 */
#include "concurrent/scene.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "support/fail_alloc.h"

#define CHUNK  SCENE_CHUNK
#define ALL    SCENE_BYTES
#define CHUNKS (SCENE_BYTES / SCENE_CHUNK)
#define NEW    2
#define NEWER  3

static struct cowsnap_snapshot *take_map(struct scene *s, enum cowsnap_loser on_full)
{
	struct cowsnap_take_entry entry = {.origin = s->origin[0],
		.store = s->store[0],
		.flags = COWSNAP_TAKE_MAP_ONLY,
		.on_full = on_full};

	cr_assert_eq(cowsnap_take(s->ctx, NULL, &entry, 1), 0);
	return entry.snapshot;
}

static struct cowsnap_snapshot *take(struct scene *s)
{
	return scene_take(s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
}

static void write_chunks(struct scene *s, uint64_t first, uint64_t count, uint8_t value)
{
	cr_assert_eq(scene_write(s, 0, first * CHUNK, count * CHUNK, value), 0);
}

/* A bit for each chunk that has changed. */
static uint64_t changes(struct cowsnap_snapshot *from, struct cowsnap_snapshot *to)
{
	struct cowsnap_change runs[CHUNKS];
	uint64_t offset = 0, mask = 0;
	int n = cowsnap_changes(from, to, &offset, runs, CHUNKS);

	cr_assert_geq(n, 0, "error %d", n);
	cr_assert_eq(offset, ALL);
	for (int i = 0; i < n; i++) {
		for (uint64_t c = 0; c < runs[i].length / CHUNK; c++)
			mask |= UINT64_C(1) << (runs[i].offset / CHUNK + c);
	}
	return mask;
}

static uint64_t bits(unsigned first, unsigned count)
{
	return ~UINT64_C(0) >> (64 - count) << first;
}

static uint64_t used_chunks(struct scene *s)
{
	return scene_usage(s, 0).used_bytes / CHUNK;
}

/* ---- What it is ------------------------------------------------------------------------------ */

Test(map_only, says_what_changed_and_copies_nothing)
{
	struct cowsnap_snapshot *snapshot;
	struct cowsnap_extent extent;
	struct cowsnap_snapshot_info info;
	uint8_t data[CHUNK];
	struct scene s;

	scene_open(&s, NULL);
	snapshot = take_map(&s, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(changes(snapshot, NULL), 0);
	write_chunks(&s, 3, 4, NEW);
	write_chunks(&s, 5, 7, NEW);
	cr_assert_eq(scene_write(&s, 0, 63 * CHUNK + 1, 1, NEW), 0);
	cr_assert_eq(changes(snapshot, NULL), bits(3, 9) | bits(63, 1));
	cr_assert_eq(scene_stats(&s).fast_writes, 0);
	write_chunks(&s, 3, 9, NEW);
	cr_assert_eq(scene_stats(&s).fast_writes, 1, "what is known already is admitted at once");
	cr_assert_eq(scene_stats(&s).copied_chunks, 0);
	cr_assert_eq(used_chunks(&s), 0);
	cr_assert_eq(cowsnap_snapshot_read(snapshot, data, 0, CHUNK), -ENODATA);
	cr_assert_eq(cowsnap_snapshot_extent(snapshot, 0, CHUNK, &extent), -ENODATA);
	cr_assert_eq(
		cowsnap_snapshot_release(snapshot, 0, CHUNK), 0, "there is nothing to release");
	cr_assert_eq(cowsnap_snapshot_info(snapshot, &info, sizeof(info)), 0);
	cr_assert_eq(info.state, COWSNAP_SNAPSHOT_MAP_ONLY);
	cr_assert_eq(info.saved_chunks, 0, "no claim is left");
	cr_assert_eq(scene_usage(&s, 0).snapshots, 1);
	cr_assert_eq(cowsnap_store_close(s.store[0]), -EBUSY);
	scene_drop(snapshot);
	scene_close(&s);
}

/* A write that has only to be known waits for nobody's copies. */
Test(map_only, needs_no_credits, .timeout = 60)
{
	const struct scene_options options = {.copy_inflight_bytes = CHUNK};
	struct cowsnap_snapshot *map, *other;
	struct cowsnap_take_entry entry = {0};
	struct actor writer;
	struct scene s;
	int hold;

	scene_open(&s, &options);
	map = take_map(&s, COWSNAP_LOSER_SNAPSHOT);
	entry.origin = s.origin[1];
	entry.store = s.store[1];
	cr_assert_eq(cowsnap_take(s.ctx, NULL, &entry, 1), 0);
	other = entry.snapshot;
	hold = scene_hold(s.origin_test[1], TEST_IO_READ, 0, ALL);
	actor_write(&writer, &s, 1, 0, CHUNK, NEW);
	scene_wait_held(s.origin_test[1], hold);
	write_chunks(&s, 0, 64, NEW);
	cr_assert_eq(scene_stats(&s).credit_waits, 0);
	test_device_release(s.origin_test[1], hold);
	cr_assert_eq(actor_join(&writer), 0);
	cr_assert_eq(changes(map, NULL), ~UINT64_C(0));
	scene_drop(map);
	scene_drop(other);
	scene_close(&s);
}

/* Between two that have data, it holds what the older one needs, for as long as that does. */
Test(map_only, between_two_with_data)
{
	struct cowsnap_snapshot *older, *map, *newer;
	struct scene s;

	scene_open(&s, NULL);
	older = take(&s);
	write_chunks(&s, 0, 4, 1);
	map = take_map(&s, COWSNAP_LOSER_SNAPSHOT);
	write_chunks(&s, 2, 4, NEW);
	newer = take(&s);
	write_chunks(&s, 4, 4, NEWER);
	cr_assert_eq(used_chunks(&s), 4 + 2 + 4);
	scene_expect(older, 0, ALL, SCENE_BLANK);
	scene_expect(newer, 2 * CHUNK, 4 * CHUNK, NEW);
	cr_assert_eq(changes(older, map), bits(0, 4));
	cr_assert_eq(changes(map, newer), bits(2, 4));
	cr_assert_eq(changes(map, NULL), bits(2, 6));
	scene_drop(older);
	scene_reclaim(&s);
	cr_assert_eq(used_chunks(&s), 4);
	cr_assert_eq(changes(map, newer), bits(2, 4));
	scene_drop(newer);
	scene_reclaim(&s);
	cr_assert_eq(used_chunks(&s), 0);
	cr_assert_eq(changes(map, NULL), bits(2, 6));
	scene_drop(map);
	scene_close(&s);
}

/* Whoever goes hands down what it knows: data, bits, or both. */
Test(map_only, dropped_ones_hand_down_what_they_know)
{
	for (unsigned kinds = 0; kinds < 8; kinds++) {
		struct cowsnap_snapshot *snapshot[3];
		struct scene s;

		scene_open(&s, NULL);
		for (unsigned i = 0; i < 3; i++) {
			snapshot[i] =
				kinds >> i & 1 ? take_map(&s, COWSNAP_LOSER_SNAPSHOT) : take(&s);
			write_chunks(&s, 8 * i, 10, (uint8_t)(i + 1));
		}
		cr_assert_eq(cowsnap_snapshot_downgrade(snapshot[1]), 0);
		scene_drop(snapshot[1]);
		cr_assert_eq(changes(snapshot[0], snapshot[2]), bits(0, 18), "before reclaiming");
		scene_reclaim(&s);
		cr_assert_eq(changes(snapshot[0], snapshot[2]), bits(0, 18));
		cr_assert_eq(changes(snapshot[0], NULL), bits(0, 26));
		scene_drop(snapshot[2]);
		scene_reclaim(&s);
		cr_assert_eq(changes(snapshot[0], NULL), bits(0, 26));
		write_chunks(&s, 40, 2, NEW);
		cr_assert_eq(changes(snapshot[0], NULL), bits(0, 26) | bits(40, 2));
		if (!(kinds & 1))
			scene_expect(snapshot[0], 0, ALL, SCENE_BLANK);
		scene_drop(snapshot[0]);
		scene_close(&s);
	}
}

/* What was released is not forgotten as a change, nor what is written after it. */
Test(map_only, released_ranges_have_changed_too)
{
	struct cowsnap_snapshot *snapshot, *next;
	struct scene s;

	scene_open(&s, NULL);
	snapshot = take(&s);
	write_chunks(&s, 0, 4, NEW);
	cr_assert_eq(cowsnap_snapshot_release(snapshot, 0, 8 * CHUNK), 0);
	cr_assert_eq(changes(snapshot, NULL), bits(0, 4));
	write_chunks(&s, 6, 4, NEW);
	cr_assert_eq(changes(snapshot, NULL), bits(0, 4) | bits(6, 4));
	next = take(&s);
	cr_assert_eq(changes(snapshot, next), bits(0, 4) | bits(6, 4));
	cr_assert_eq(changes(next, NULL), 0);
	scene_drop(snapshot);
	scene_drop(next);
	scene_close(&s);
}

/* ---- The call -------------------------------------------------------------------------------- */

Test(map_only, changes_refuses)
{
	struct cowsnap_snapshot *first, *second, *elsewhere;
	struct cowsnap_take_entry entry = {0};
	struct cowsnap_change run;
	uint64_t offset = 0;
	struct scene s;

	scene_open(&s, NULL);
	first = take(&s);
	second = take(&s);
	entry.origin = s.origin[1];
	entry.store = s.store[0];
	cr_assert_eq(cowsnap_take(s.ctx, NULL, &entry, 1), 0);
	elsewhere = entry.snapshot;
	cr_assert_eq(cowsnap_changes(first, NULL, &offset, &run, 0), -EINVAL);
	cr_assert_eq(cowsnap_changes(second, first, &offset, &run, 1), -EINVAL);
	cr_assert_eq(cowsnap_changes(first, first, &offset, &run, 1), -EINVAL);
	cr_assert_eq(cowsnap_changes(first, elsewhere, &offset, &run, 1), -EXDEV);
	offset = ALL + 1;
	cr_assert_eq(cowsnap_changes(first, NULL, &offset, &run, 1), -ERANGE);
	cr_assert_eq(offset, ALL + 1, "an error moves nothing");
	offset = ALL;
	cr_assert_eq(cowsnap_changes(first, NULL, &offset, &run, 1), 0);
	cowsnap_snapshot_ref(first);
	scene_drop(first);
	offset = 0;
	cr_assert_eq(cowsnap_changes(first, second, &offset, &run, 1), -EIDRM);
	cowsnap_snapshot_unref(first);
	scene_drop(second);
	scene_drop(elsewhere);
	scene_close(&s);
}

Test(map_only, one_run_at_a_time)
{
	struct cowsnap_snapshot *snapshot;
	struct cowsnap_change run;
	uint64_t offset = 0;
	struct scene s;

	scene_open(&s, NULL);
	snapshot = take_map(&s, COWSNAP_LOSER_SNAPSHOT);
	for (uint64_t i = 0; i < CHUNKS; i += 8)
		write_chunks(&s, i, 3, NEW);
	for (uint64_t i = 0; i < CHUNKS; i += 8) {
		cr_assert_eq(cowsnap_changes(snapshot, NULL, &offset, &run, 1), 1);
		cr_assert_eq(run.offset, i * CHUNK);
		cr_assert_eq(run.length, 3 * CHUNK);
		cr_assert_geq(offset, run.offset + run.length);
	}
	cr_assert_eq(cowsnap_changes(snapshot, NULL, &offset, &run, 1), 0);
	cr_assert_eq(offset, ALL);
	/* From the middle of a run. */
	offset = CHUNK + 100;
	cr_assert_eq(cowsnap_changes(snapshot, NULL, &offset, &run, 1), 1);
	cr_assert_eq(run.offset, CHUNK + 100);
	cr_assert_eq(run.length, 2 * CHUNK - 100);
	scene_drop(snapshot);
	scene_close(&s);
}

/* Two stores whose chunks differ: each is asked in its own. */
Test(map_only, snapshots_in_two_stores)
{
	const struct scene_options options = {.chunk_bytes = {4 * CHUNK, CHUNK}};
	struct cowsnap_snapshot *large, *small;
	struct scene s;

	scene_open(&s, &options);
	large = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	write_chunks(&s, 1, 1, NEW);
	small = scene_take(&s, 0, 1, COWSNAP_LOSER_SNAPSHOT);
	write_chunks(&s, 9, 2, NEW);
	cr_assert_eq(changes(large, NULL), bits(0, 4) | bits(8, 4));
	cr_assert_eq(changes(small, NULL), bits(9, 2));
	cr_assert_eq(changes(large, small) & bits(0, 4), bits(0, 4));
	scene_drop(large);
	scene_drop(small);
	scene_close(&s);
}

/* What a merge has still to move is what the volume shows, in whatever store it is. */
Test(map_only, now_is_what_the_volume_shows_during_a_merge)
{
	const struct scene_options options = {.chunk_bytes = {CHUNK, 2 * CHUNK}};
	struct cowsnap_snapshot *older, *merged, *newer, *elsewhere;
	struct cowsnap_change runs[3];
	uint64_t offset;
	struct scene s;

	scene_open(&s, &options);
	older = take(&s);
	write_chunks(&s, 2, 1, NEW);
	merged = take(&s);
	write_chunks(&s, 5, 2, NEW);
	newer = take(&s);
	elsewhere = scene_take(&s, 0, 1, COWSNAP_LOSER_SNAPSHOT);
	write_chunks(&s, 9, 1, NEW);
	cr_assert_eq(
		cowsnap_snapshot_write(merged, COWSNAP_WRITE_ZEROES, NULL, 20 * CHUNK, CHUNK), 0);
	cr_assert_eq(cowsnap_merge_begin(merged), 0);
	/* Halfway, and then at its end. */
	for (unsigned i = 0; i < 3; i++) {
		cr_assert_eq(changes(older, NULL) & (bits(2, 1) | bits(20, 1)),
			bits(2, 1) | bits(20, 1));
		cr_assert_eq(changes(newer, NULL), bits(5, 2) | bits(9, 1) | bits(20, 1));
		/* In pairs of chunks: 4 to 9, and 20. */
		offset = 0;
		cr_assert_eq(cowsnap_changes(elsewhere, NULL, &offset, runs, 3), 2);
		cr_assert_eq(runs[0].offset, 4 * CHUNK);
		cr_assert_eq(runs[0].length, 6 * CHUNK);
		cr_assert_eq(runs[1].offset, 20 * CHUNK);
		cr_assert_eq(changes(older, newer), bits(2, 1) | bits(5, 2));
		if (i < 2)
			cr_assert_eq(cowsnap_merge_run(merged, i ? UINT64_MAX : CHUNK), !i);
	}
	cowsnap_snapshot_unref(merged);
	scene_drop(older);
	scene_drop(newer);
	scene_drop(elsewhere);
	scene_close(&s);
}

/* A persistent store has one map: a preimage that was overwritten there looks like one. */
Test(map_only, preimages_that_were_written_to_have_changed)
{
	struct cowsnap_dm_options dm = {.size = sizeof(dm)};
	struct cowsnap_take_entry entry = {0};
	struct cowsnap_snapshot *older, *later;
	struct cowsnap_store *store;
	struct scene s;

	scene_open(&s, NULL);
	cr_assert_eq(cowsnap_device_memory(s.ctx, 2 * ALL, &dm.device), 0);
	cr_assert_eq(cowsnap_store_dm_create(s.ctx, &dm, &store), 0);
	older = take(&s);
	entry.origin = s.origin[0];
	entry.store = store;
	cr_assert_eq(cowsnap_take(s.ctx, NULL, &entry, 1), 0);
	later = take(&s); /* which has what comes now */
	write_chunks(&s, 2, 1, NEW);
	cr_assert_eq(changes(older, entry.snapshot), 0);
	cr_assert_eq(cowsnap_snapshot_write(
			     entry.snapshot, COWSNAP_WRITE_ZEROES, NULL, 2 * CHUNK, CHUNK),
		0);
	cr_assert_eq(changes(older, entry.snapshot), bits(2, 1));
	scene_drop(older);
	scene_drop(later);
	scene_drop(entry.snapshot);
	cr_assert_eq(cowsnap_store_close(store), 0);
	cr_assert_eq(cowsnap_device_close(dm.device), 0);
	scene_close(&s);
}

/* Its store gets no more records, and what is written beside these has changed all the same. */
Test(map_only, written_since_a_merge_of_records_began)
{
	struct cowsnap_dm_options dm = {.size = sizeof(dm)};
	struct cowsnap_take_entry entry = {0};
	struct cowsnap_store *store;
	static uint8_t data[CHUNK];
	struct scene s;

	scene_open(&s, NULL);
	cr_assert_eq(cowsnap_device_memory(s.ctx, 2 * ALL, &dm.device), 0);
	cr_assert_eq(cowsnap_store_dm_create(s.ctx, &dm, &store), 0);
	entry.origin = s.origin[0];
	entry.store = store;
	cr_assert_eq(cowsnap_take(s.ctx, NULL, &entry, 1), 0);
	write_chunks(&s, 2, 1, NEW);
	cr_assert_eq(cowsnap_merge_begin(entry.snapshot), 0);
	memset(data, NEW, CHUNK);
	for (unsigned chunk = 2; chunk <= 10; chunk += 8)
		cr_assert_eq(cowsnap_origin_write(
				     s.origin[0], COWSNAP_WRITE, data, chunk * CHUNK, CHUNK),
			0);
	cr_assert_eq(changes(entry.snapshot, NULL), bits(2, 1) | bits(10, 1));
	cr_assert_eq(cowsnap_merge_run(entry.snapshot, UINT64_MAX), 0);
	cowsnap_snapshot_unref(entry.snapshot);
	cr_assert_eq(cowsnap_store_close(store), 0);
	cr_assert_eq(cowsnap_device_close(dm.device), 0);
	scene_close(&s);
}

/* A call looks at a million chunks at most; what has changed is found whatever lies before it. */
Test(map_only, a_large_volume_in_steps, .timeout = 60)
{
	const uint64_t bytes = UINT64_C(5) << 32, at = (UINT64_C(1) << 32) + 3 * CHUNK;
	struct cowsnap_take_entry entry = {.flags = COWSNAP_TAKE_MAP_ONLY};
	struct cowsnap_change run;
	struct cowsnap_device *device;
	struct cowsnap_op op;
	uint64_t offset = 0, before;
	unsigned calls = 0, runs = 0;
	struct scene s;

	scene_open(&s, NULL);
	cr_assert_eq(cowsnap_device_memory(s.ctx, bytes, &device), 0);
	cr_assert_eq(cowsnap_origin_open(s.ctx, device, &entry.origin), 0);
	entry.store = s.store[0];
	cr_assert_eq(cowsnap_take(s.ctx, NULL, &entry, 1), 0);
	/* Across the place where the second call begins, and a long one. */
	cr_assert_eq(
		cowsnap_write_begin(entry.origin, COWSNAP_DISCARD, at - 4 * CHUNK, 2 * CHUNK, &op),
		0);
	cowsnap_write_end(&op);
	cr_assert_eq(cowsnap_write_begin(entry.origin, COWSNAP_DISCARD, UINT64_C(2) << 32,
			     (UINT64_C(2) << 32) + CHUNK, &op),
		0);
	cowsnap_write_end(&op);
	while (offset < bytes) {
		int n;

		before = offset;
		n = cowsnap_changes(entry.snapshot, NULL, &offset, &run, 1);
		cr_assert_geq(n, 0);
		cr_assert_gt(offset, before);
		cr_assert_leq(offset - before, (UINT64_C(1048576) + 64) * CHUNK);
		if (n && !runs++) {
			cr_assert_eq(run.offset, at - 4 * CHUNK);
			cr_assert_eq(run.length, 2 * CHUNK, "a run that was begun is not cut");
		}
		calls++;
	}
	cr_assert(runs >= 3 && calls >= 5, "%u runs in %u calls", runs, calls);
	scene_drop(entry.snapshot);
	scene_reclaim(&s);
	cr_assert_eq(cowsnap_origin_close(entry.origin), 0);
	cr_assert_eq(cowsnap_device_close(device), 0);
	scene_close(&s);
}

/* ---- Without memory -------------------------------------------------------------------------- */

/* That a chunk changes must be known, or the snapshot says that it does not know all, or the write
 * fails. */
Test(map_only, without_memory, .timeout = 60)
{
	struct fail_alloc *memory = fail_alloc_create(false);
	const struct scene_options options = {.allocator = fail_alloc_table(memory)};
	struct cowsnap_snapshot *loses, *stays;
	struct cowsnap_change run;
	uint64_t offset = 0;
	struct scene s;

	scene_open(&s, &options);
	stays = take_map(&s, COWSNAP_LOSER_WRITE);
	fail_alloc_at(memory, 1, true);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEW), -ENOMEM);
	fail_alloc_at(memory, 0, false);
	cr_assert_eq(changes(stays, NULL), 0);
	write_chunks(&s, 0, 1, NEW);
	cr_assert_eq(changes(stays, NULL), 1);
	scene_drop(stays);
	loses = take_map(&s, COWSNAP_LOSER_SNAPSHOT);
	fail_alloc_at(memory, 1, true);
	write_chunks(&s, 0, 1, NEW);
	write_chunks(&s, 1, 1, NEW);
	fail_alloc_at(memory, 0, false);
	scene_expect_state(loses, COWSNAP_SNAPSHOT_INVALID, -ENOMEM);
	cr_assert_eq(cowsnap_changes(loses, NULL, &offset, &run, 1), -ESTALE);
	cr_assert_eq(cowsnap_snapshot_downgrade(loses), -ESTALE);
	cr_assert_eq(cowsnap_snapshot_release(loses, 0, CHUNK), -ESTALE);
	scene_drop(loses);
	scene_close(&s);
	fail_alloc_destroy(memory);
}

/* ---- Threads --------------------------------------------------------------------------------- */

#define WRITERS 2
#define ROUNDS  150

struct crowd {
	struct scene scene;
	_Atomic bool stop;
	_Atomic bool asked;
	_Atomic uint64_t written; /* chunks whose write has ended, and began when it was asked */
};

struct writer {
	struct crowd *crowd;
	unsigned index;
};

/* Slowly one chunk after the other, and again those that were written before. */
static void *keep_writing(void *argument)
{
	struct writer *w = argument;
	struct crowd *c = w->crowd;

	for (unsigned i = 0; !atomic_load(&c->stop); i++) {
		bool counts = atomic_load(&c->asked);
		unsigned chunk =
			(i / 50 + i % 3) % (unsigned)(CHUNKS / WRITERS) * WRITERS + w->index;

		cr_assert_eq(scene_write(&c->scene, 0, chunk * CHUNK, CHUNK, (uint8_t)i), 0);
		if (counts)
			atomic_fetch_or(&c->written, UINT64_C(1) << chunk);
	}
	return NULL;
}

/* Ghosts of all kinds come and go above the map-only snapshot that is asked all the time. */
static void one_round(struct scene *s, unsigned i)
{
	struct cowsnap_snapshot *first = i % 3 ? take(s) : take_map(s, COWSNAP_LOSER_SNAPSHOT);
	struct cowsnap_snapshot *second = take(s);

	if (i % 2)
		cowsnap_snapshot_release(second, i % 50 * CHUNK, 10 * CHUNK);
	scene_drop(i % 5 ? first : second);
	cowsnap_reclaim(s->ctx, 20);
	if (i % 7 == 0)
		cowsnap_snapshot_downgrade(i % 5 ? second : first);
	scene_drop(i % 5 ? second : first);
	cowsnap_reclaim(s->ctx, 5);
}

static void *keep_asking(void *argument)
{
	struct crowd *c = argument;
	struct cowsnap_snapshot *snapshot = take_map(&c->scene, COWSNAP_LOSER_SNAPSHOT);

	atomic_store(&c->asked, true);
	while (!atomic_load(&c->stop)) {
		uint64_t before = atomic_load(&c->written), got = changes(snapshot, NULL);

		cr_assert_eq(
			before & ~got, 0, "left out: %llx", (unsigned long long)(before & ~got));
	}
	scene_drop(snapshot);
	return NULL;
}

Test(map_only, nothing_is_left_out_meanwhile, .timeout = 120)
{
	struct crowd *c = calloc(1, sizeof(*c));
	struct writer writer[WRITERS];
	pthread_t thread[WRITERS + 1];

	scene_open(&c->scene, NULL);
	cr_assert_eq(pthread_create(&thread[WRITERS], NULL, keep_asking, c), 0);
	for (unsigned i = 0; i < WRITERS; i++) {
		writer[i] = (struct writer){c, i};
		cr_assert_eq(pthread_create(&thread[i], NULL, keep_writing, &writer[i]), 0);
	}
	for (unsigned i = 0; i < ROUNDS; i++)
		one_round(&c->scene, i);
	atomic_store(&c->stop, true);
	for (unsigned i = 0; i <= WRITERS; i++)
		pthread_join(thread[i], NULL);
	scene_close(&c->scene);
	free(c);
}

/* What is moved goes from the merging snapshot's store into the map of the one that is asked. */
struct asker {
	struct cowsnap_snapshot *snapshot;
	uint64_t least;
	_Atomic bool stop;
};

static void *ask_until_stopped(void *argument)
{
	struct asker *a = argument;

	do {
		uint64_t got = changes(a->snapshot, NULL);

		cr_assert_eq(a->least & ~got, 0, "left out: %llx",
			(unsigned long long)(a->least & ~got));
	} while (!atomic_load(&a->stop));
	return NULL;
}

Test(map_only, nothing_is_left_out_during_a_merge, .timeout = 120)
{
	struct scene s;

	scene_open(&s, NULL);
	for (unsigned round = 0; round < 40; round++) {
		struct cowsnap_snapshot *merged = take(&s);
		struct asker asker = {.least = bits(round % 8, 24)};
		pthread_t thread;
		int rc;

		write_chunks(&s, round % 8, 24, (uint8_t)round);
		/* In the same store, and in another one. */
		asker.snapshot = scene_take(&s, 0, round % 2, COWSNAP_LOSER_SNAPSHOT);
		cr_assert_eq(cowsnap_merge_begin(merged), 0);
		cr_assert_eq(pthread_create(&thread, NULL, ask_until_stopped, &asker), 0);
		while ((rc = cowsnap_merge_run(merged, CHUNK)) == 1)
			;
		cr_assert_eq(rc, 0);
		atomic_store(&asker.stop, true);
		pthread_join(thread, NULL);
		cowsnap_snapshot_unref(merged);
		scene_drop(asker.snapshot);
		scene_reclaim(&s);
	}
	scene_close(&s);
}
