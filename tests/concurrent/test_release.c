/* SPDX-License-Identifier: MIT
 *
 * Releasing what was read, and downgrading: what comes back, what stays, and what happens at the
 * same time.
 */
#include "concurrent/scene.h"

#include <errno.h>
#include <stdlib.h>

#include "concurrent/host_store.h"
#include "origin.h"
#include "snapshot.h"

#define CHUNK SCENE_CHUNK
#define ALL   SCENE_BYTES
#define HALF  (SCENE_BYTES / 2)
#define OLD   1
#define NEW   2
#define NEWER 3

static uint64_t used_chunks(struct scene *s)
{
	return scene_usage(s, 0).used_bytes / CHUNK;
}

static void expect_released(struct cowsnap_snapshot *snapshot, uint64_t offset, uint64_t length)
{
	struct cowsnap_extent extent;
	uint8_t *data = malloc(length);
	int rc = cowsnap_snapshot_read(snapshot, data, offset, length);

	cr_assert_eq(rc, -ENODATA, "error %d", rc);
	cr_assert_eq(cowsnap_snapshot_extent(snapshot, offset, length, &extent), -ENODATA);
	free(data);
}

static struct cowsnap_snapshot *take(struct scene *s)
{
	return scene_take(s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
}

static void write_value(struct scene *s, uint64_t offset, uint64_t length, uint8_t value)
{
	cr_assert_eq(scene_write(s, 0, offset, length, value), 0);
}

static void release(struct cowsnap_snapshot *snapshot, uint64_t offset, uint64_t length)
{
	cr_assert_eq(cowsnap_snapshot_release(snapshot, offset, length), 0);
}

/* ---- One after the other --------------------------------------------------------------------- */

Test(release, space_comes_back_at_once)
{
	struct cowsnap_snapshot_info info;
	struct cowsnap_snapshot *snapshot;
	struct cowsnap_extent extent;
	struct scene s;

	scene_open(&s, NULL);
	write_value(&s, 0, ALL, OLD);
	snapshot = take(&s);
	write_value(&s, 0, ALL, NEW);
	cr_assert_eq(used_chunks(&s), ALL / CHUNK);
	release(snapshot, 0, HALF);
	cr_assert_eq(used_chunks(&s), HALF / CHUNK);
	expect_released(snapshot, 0, CHUNK);
	expect_released(snapshot, HALF - CHUNK, 2 * CHUNK - 1);
	scene_expect(snapshot, HALF, HALF, OLD);
	cr_assert_eq(cowsnap_snapshot_info(snapshot, &info, sizeof(info)), 0);
	cr_assert_eq(info.released_chunks, HALF / CHUNK);
	cr_assert_eq(info.state, COWSNAP_SNAPSHOT_ACTIVE);
	release(snapshot, ALL - CHUNK, CHUNK);
	cr_assert_eq(cowsnap_snapshot_extent(snapshot, HALF, HALF, &extent), 0);
	cr_assert_eq(extent.length, HALF - CHUNK, "an extent ends before what was released");
	scene_drop(snapshot);
	snapshot = take(&s);
	release(snapshot, 7 * CHUNK, CHUNK);
	cr_assert_eq(cowsnap_snapshot_extent(snapshot, 100, HALF, &extent), 0);
	cr_assert_eq(extent.length, 7 * CHUNK - 100);
	scene_drop(snapshot);
	scene_close(&s);
}

Test(release, later_writes_copy_nothing)
{
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	scene_open(&s, NULL);
	snapshot = take(&s);
	write_value(&s, 0, CHUNK, NEW);
	release(snapshot, 0, 8 * CHUNK);
	write_value(&s, 0, 8 * CHUNK, NEW);
	write_value(&s, 4 * CHUNK + 1, 5 * CHUNK, NEWER);
	cr_assert_eq(used_chunks(&s), 2, "of the last write two chunks were not released");
	cr_assert_eq(scene_stats(&s).copied_chunks, 3);
	scene_expect(snapshot, 8 * CHUNK, 2 * CHUNK, SCENE_BLANK);
	scene_drop(snapshot);
	scene_close(&s);
}

Test(release, whole_chunks_and_the_end)
{
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	scene_open(&s, NULL);
	snapshot = take(&s);
	write_value(&s, 0, ALL, NEW);
	release(snapshot, 1, 2 * CHUNK - 2);
	release(snapshot, 3, 5);
	cr_assert_eq(used_chunks(&s), ALL / CHUNK);
	release(snapshot, 1, 2 * CHUNK - 1);
	cr_assert_eq(used_chunks(&s), ALL / CHUNK - 1);
	scene_expect(snapshot, 0, CHUNK, SCENE_BLANK);
	expect_released(snapshot, CHUNK, 1);
	release(snapshot, CHUNK, CHUNK);
	release(snapshot, ALL - CHUNK, CHUNK);
	cr_assert_eq(used_chunks(&s), ALL / CHUNK - 2);
	cr_assert_eq(cowsnap_snapshot_release(snapshot, 0, 0), -EINVAL);
	cr_assert_eq(cowsnap_snapshot_release(snapshot, ALL, 1), -ERANGE);
	cr_assert_eq(cowsnap_snapshot_release(snapshot, UINT64_MAX, 2), -EOVERFLOW);
	cowsnap_snapshot_ref(snapshot);
	scene_drop(snapshot);
	cr_assert_eq(cowsnap_snapshot_release(snapshot, 0, CHUNK), -EIDRM);
	cr_assert_eq(cowsnap_snapshot_downgrade(snapshot), -EIDRM);
	cowsnap_snapshot_unref(snapshot);
	scene_close(&s);
}

/* The last chunk of a snapshot may be a part of one. */
Test(release, the_last_chunk_is_cut_off)
{
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *device;
	struct cowsnap_origin *origin;
	struct cowsnap_store *store;
	struct cowsnap_take_entry entry = {0};
	struct cowsnap_op op;
	uint8_t data[512];

	cr_assert_eq(cowsnap_ctx_create(NULL, &ctx), 0);
	cr_assert_eq(cowsnap_device_memory(ctx, 2 * CHUNK + 512, &device), 0);
	cr_assert_eq(cowsnap_origin_open(ctx, device, &origin), 0);
	cr_assert_eq(cowsnap_store_transient(ctx, NULL, &store), 0);
	entry.origin = origin;
	entry.store = store;
	cr_assert_eq(cowsnap_take(ctx, NULL, &entry, 1), 0);
	release(entry.snapshot, 2 * CHUNK, 511);
	cr_assert_eq(cowsnap_snapshot_read(entry.snapshot, data, 2 * CHUNK, 512), 0);
	release(entry.snapshot, 2 * CHUNK, 512);
	expect_released(entry.snapshot, 2 * CHUNK, 512);
	cr_assert_eq(cowsnap_write_begin(origin, COWSNAP_WRITE, 2 * CHUNK, 512, &op), 0);
	cowsnap_write_end(&op);
	scene_drop(entry.snapshot);
	cr_assert_eq(cowsnap_origin_close(origin), 0);
	cr_assert_eq(cowsnap_store_close(store), 0);
	cr_assert_eq(cowsnap_device_close(device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

/* An exception that serves two goes with the second. */
Test(release, another_snapshot_shares_the_range)
{
	struct cowsnap_snapshot *older, *newer;
	struct scene s;

	for (unsigned first = 0; first < 2; first++) {
		scene_open(&s, NULL);
		write_value(&s, 0, ALL, OLD);
		older = take(&s);
		newer = take(&s);
		write_value(&s, 0, 8 * CHUNK, NEW);
		release(first ? older : newer, 0, 8 * CHUNK);
		cr_assert_eq(used_chunks(&s), 8);
		scene_expect(first ? newer : older, 0, ALL, OLD);
		/* Written before and after: still saved for the other one. */
		write_value(&s, 0, 16 * CHUNK, NEWER);
		scene_expect(first ? newer : older, 0, ALL, OLD);
		release(first ? newer : older, 0, 8 * CHUNK);
		cr_assert_eq(used_chunks(&s), 8, "those that were not released");
		scene_expect(older, 8 * CHUNK, ALL - 8 * CHUNK, OLD);
		scene_expect(newer, 8 * CHUNK, ALL - 8 * CHUNK, OLD);
		scene_drop(older);
		scene_drop(newer);
		scene_close(&s);
	}
}

/* The newer one has released what it holds for the older one: it goes when that is dropped. */
Test(release, kept_for_an_older_one_that_is_dropped)
{
	struct cowsnap_snapshot *older, *newer, *newest;
	struct scene s;

	scene_open(&s, NULL);
	older = take(&s);
	newer = take(&s);
	write_value(&s, 0, 4 * CHUNK, NEW);
	newest = take(&s);
	write_value(&s, 0, 4 * CHUNK, NEWER);
	release(newer, 0, 4 * CHUNK);
	release(newest, 0, 4 * CHUNK);
	cr_assert_eq(used_chunks(&s), 4);
	scene_drop(older);
	scene_reclaim(&s);
	cr_assert_eq(used_chunks(&s), 0);
	expect_released(newer, 0, CHUNK);
	scene_drop(newer);
	scene_drop(newest);
	scene_close(&s);
}

/* In each order of drops: what is left is right, and nothing is left in the end. */
Test(release, then_drop_in_each_order)
{
	static const unsigned order[6][3] = {
		{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};

	for (unsigned k = 0; k < 6; k++) {
		struct cowsnap_snapshot *snapshot[3];
		struct scene s;

		scene_open(&s, NULL);
		for (unsigned i = 0; i < 3; i++) {
			snapshot[i] = take(&s);
			write_value(&s, i * CHUNK, 16 * CHUNK, (uint8_t)(i + 1));
		}
		release(snapshot[1], 0, 8 * CHUNK);
		for (unsigned i = 0; i < 3; i++) {
			scene_drop(snapshot[order[k][i]]);
			snapshot[order[k][i]] = NULL;
			scene_reclaim(&s);
			if (snapshot[0])
				scene_expect(snapshot[0], 0, ALL, SCENE_BLANK);
			if (snapshot[1])
				scene_expect(snapshot[1], 8 * CHUNK, 8 * CHUNK, 1);
			if (snapshot[2])
				scene_expect(snapshot[2], 2 * CHUNK, 15 * CHUNK, 2);
		}
		cr_assert_eq(used_chunks(&s), 0);
		scene_close(&s);
	}
}

static void commit_nothing(void *user, struct cowsnap_commit *commit)
{
	(void)user;
	commit->done(commit, 0);
}

Test(release, a_store_that_records_refuses)
{
	struct host_store host = {.chunks = 64};
	struct cowsnap_store_ops ops = {.size = sizeof(ops),
		.alloc = host_store_alloc,
		.free = host_store_free,
		.space = host_store_space,
		.commit = commit_nothing};
	struct cowsnap_store_options options = {.size = sizeof(options), .chunk_size_bytes = CHUNK};
	struct cowsnap_take_entry entry = {0};
	struct scene s;

	scene_open(&s, NULL);
	cr_assert_eq(cowsnap_device_memory(s.ctx, ALL, &host.device), 0);
	options.device = host.device;
	cr_assert_eq(cowsnap_store_create(s.ctx, &ops, &options, &host, &host.store), 0);
	entry.origin = s.origin[0];
	entry.store = host.store;
	entry.flags = COWSNAP_TAKE_MAP_ONLY;
	cr_assert_eq(cowsnap_take(s.ctx, NULL, &entry, 1), -ENOTSUP);
	entry.flags = 2;
	cr_assert_eq(cowsnap_take(s.ctx, NULL, &entry, 1), -EINVAL);
	entry.flags = 0;
	cr_assert_eq(cowsnap_take(s.ctx, NULL, &entry, 1), 0);
	cr_assert_eq(cowsnap_snapshot_release(entry.snapshot, 0, CHUNK), -ENOTSUP);
	cr_assert_eq(cowsnap_snapshot_downgrade(entry.snapshot), -ENOTSUP);
	scene_drop(entry.snapshot);
	scene_reclaim(&s);
	cr_assert_eq(cowsnap_store_close(host.store), 0);
	cr_assert_eq(cowsnap_device_close(host.device), 0);
	scene_close(&s);
}

/* ---- Meanwhile ------------------------------------------------------------------------------- */

/* Its range is written after the release, without a copy: it must not be handed out. */
Test(release, during_a_read_of_the_origin, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct actor reader;
	struct scene s;
	int hold;

	scene_open(&s, NULL);
	snapshot = take(&s);
	hold = scene_hold(s.origin_test[0], TEST_IO_READ, 0, ALL);
	actor_read(&reader, snapshot, 0, 4 * CHUNK);
	scene_wait_held(s.origin_test[0], hold);
	release(snapshot, 2 * CHUNK, CHUNK);
	write_value(&s, 2 * CHUNK, CHUNK, NEW);
	test_device_release(s.origin_test[0], hold);
	cr_assert_eq(actor_join(&reader), -ENODATA);
	free(reader.data);
	cr_assert_eq(scene_stats(&s).copied_chunks, 0);
	scene_drop(snapshot);
	scene_close(&s);
}

/* The space stays until the reader has left. */
Test(release, during_a_read_of_the_store, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct actor reader;
	struct scene s;
	int hold;

	scene_open(&s, NULL);
	snapshot = take(&s);
	write_value(&s, 0, 4 * CHUNK, NEW);
	hold = scene_hold(s.store_test[0], TEST_IO_READ, 0, 4 * ALL);
	actor_read(&reader, snapshot, 0, 4 * CHUNK);
	scene_wait_held(s.store_test[0], hold);
	release(snapshot, 0, 2 * CHUNK);
	/* Limbo waits for the reader now: these wait for the next ones. */
	release(snapshot, 2 * CHUNK, 2 * CHUNK);
	cr_assert_eq(used_chunks(&s), 4);
	test_device_release(s.store_test[0], hold);
	cr_assert_eq(actor_join(&reader), -ENODATA);
	free(reader.data);
	scene_reclaim(&s);
	cr_assert_eq(used_chunks(&s), 0);
	scene_drop(snapshot);
	scene_close(&s);
}

/* More is released than can wait for readers: who looks later finds the rest. */
Test(release, limbo_is_full, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct cs_gate_pass pass;
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *device;
	struct cowsnap_take_entry entry = {0};
	struct cowsnap_store_usage usage;
	struct cowsnap_op op;
	const uint64_t chunks = 2048;

	cr_assert_eq(cowsnap_ctx_create(NULL, &ctx), 0);
	cr_assert_eq(cowsnap_device_memory(ctx, chunks * CHUNK, &device), 0);
	cr_assert_eq(cowsnap_origin_open(ctx, device, &entry.origin), 0);
	cr_assert_eq(cowsnap_store_transient(ctx, NULL, &entry.store), 0);
	cr_assert_eq(cowsnap_take(ctx, NULL, &entry, 1), 0);
	snapshot = entry.snapshot;
	/* Neighbours in the volume are none in the store. */
	for (uint64_t i = 0; i < chunks; i++) {
		cr_assert_eq(cowsnap_write_begin(entry.origin, COWSNAP_DISCARD,
				     i * 5 % chunks * CHUNK, CHUNK, &op),
			0);
		cowsnap_write_end(&op);
	}
	cs_gate_enter(&entry.store->upper->reads, &pass);
	release(snapshot, 0, chunks * CHUNK);
	cs_gate_leave(&entry.store->upper->reads, &pass);
	while (cowsnap_reclaim(ctx, 1000) == 1)
		;
	cr_assert_eq(cowsnap_store_usage(entry.store, &usage, sizeof(usage)), 0);
	cr_assert_eq(usage.used_bytes, 0);
	scene_drop(snapshot);
	cr_assert_eq(cowsnap_origin_close(entry.origin), 0);
	cr_assert_eq(cowsnap_store_close(entry.store), 0);
	cr_assert_eq(cowsnap_device_close(device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

/* What was copied for nobody in the end is not kept. */
Test(release, during_a_copy, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct actor writer;
	struct scene s;
	int hold;

	scene_open(&s, NULL);
	snapshot = take(&s);
	hold = scene_hold(s.origin_test[0], TEST_IO_READ, 0, ALL);
	actor_write(&writer, &s, 0, 0, CHUNK, NEW);
	scene_wait_held(s.origin_test[0], hold);
	release(snapshot, 0, CHUNK);
	/* Another write of the chunk does not wait for the copy. */
	write_value(&s, 0, CHUNK, NEWER);
	test_device_release(s.origin_test[0], hold);
	cr_assert_eq(actor_join(&writer), 0);
	cr_assert_eq(used_chunks(&s), 0);
	write_value(&s, 0, CHUNK, NEW);
	cr_assert_eq(scene_stats(&s).copied_chunks, 1);
	scene_drop(snapshot);
	scene_close(&s);
}

/* A write that waits for space goes on when some is released. */
Test(release, a_writer_waits_for_the_space, .timeout = 60)
{
	const struct scene_options options = {.limit_chunks = 4};
	struct cowsnap_take_entry entry = {.wait_ns = UINT64_MAX};
	struct actor writer;
	struct scene s;

	scene_open(&s, &options);
	entry.origin = s.origin[0];
	entry.store = s.store[0];
	cr_assert_eq(cowsnap_take(s.ctx, NULL, &entry, 1), 0);
	write_value(&s, 0, 4 * CHUNK, NEW);
	actor_write(&writer, &s, 0, 4 * CHUNK, CHUNK, NEW);
	scene_until(&s, space_waits, 1);
	release(entry.snapshot, 0, CHUNK);
	cr_assert_eq(actor_join(&writer), 0);
	scene_expect(entry.snapshot, CHUNK, ALL - CHUNK, SCENE_BLANK);
	cr_assert_eq(used_chunks(&s), 4);
	scene_drop(entry.snapshot);
	scene_close(&s);
}

/* It is dropped after a read has looked at its state, and before that is inside the gate: then its
 * bits and maps may go any time. A read looked into them. */
Test(release, dropped_before_a_read_is_inside)
{
	struct cowsnap_snapshot *snapshot;
	struct cs_read read;
	uint8_t data[CHUNK];
	struct scene s;

	scene_open(&s, NULL);
	snapshot = take(&s);
	release(snapshot, 0, CHUNK);
	cr_assert_eq(cs_read_check(snapshot, CHUNK, CHUNK), 0);
	cowsnap_snapshot_ref(snapshot);
	scene_drop(snapshot);
	test_device_reset(s.origin_test[0]);
	cs_read_begin(&read, snapshot, NULL, data, CHUNK, CHUNK);
	cs_read_run(&read);
	cr_assert_eq(read.error, -EIDRM);
	cr_assert_eq(test_device_calls(s.origin_test[0], TEST_IO_READ), 0);
	cowsnap_snapshot_unref(snapshot);
	scene_close(&s);
}

/* ---- Downgrade ------------------------------------------------------------------------------- */

/* Of three that were written between, the k-th. */
Test(release, downgrade_the_oldest_the_middle_the_newest)
{
	for (unsigned k = 0; k < 3; k++) {
		struct cowsnap_snapshot *snapshot[3];
		uint8_t data[CHUNK];
		struct scene s;

		scene_open(&s, NULL);
		for (unsigned i = 0; i < 3; i++) {
			snapshot[i] = take(&s);
			write_value(&s, i * CHUNK, 2 * CHUNK, (uint8_t)(i + 1));
		}
		cr_assert_eq(used_chunks(&s), 6);
		cr_assert_eq(cowsnap_snapshot_downgrade(snapshot[k]), 0);
		cr_assert_eq(cowsnap_snapshot_downgrade(snapshot[k]), 0, "it is one already");
		cr_assert_eq(cowsnap_snapshot_read(snapshot[k], data, 0, CHUNK), -ENODATA);
		scene_reclaim(&s);
		/* Each has one chunk that only it needs, and one that the one before needs too. */
		cr_assert_eq(used_chunks(&s), k ? 5 : 4);
		if (k != 0)
			scene_expect(snapshot[0], 0, ALL, SCENE_BLANK);
		if (k != 1) {
			scene_expect(snapshot[1], 0, 2 * CHUNK, 1);
			scene_expect(snapshot[1], 2 * CHUNK, ALL - 2 * CHUNK, SCENE_BLANK);
		}
		if (k != 2)
			scene_expect(snapshot[2], CHUNK, 2 * CHUNK, 2);
		for (unsigned i = 0; i < 3; i++) {
			scene_drop(snapshot[i]);
			scene_reclaim(&s);
		}
		cr_assert_eq(used_chunks(&s), 0);
		scene_close(&s);
	}
}

Test(release, downgrade_during_a_read, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct actor reader;
	struct scene s;
	int hold;

	scene_open(&s, NULL);
	snapshot = take(&s);
	hold = scene_hold(s.origin_test[0], TEST_IO_READ, 0, ALL);
	actor_read(&reader, snapshot, 0, CHUNK);
	scene_wait_held(s.origin_test[0], hold);
	cr_assert_eq(cowsnap_snapshot_downgrade(snapshot), 0);
	write_value(&s, 0, CHUNK, NEW);
	cr_assert_eq(used_chunks(&s), 0);
	test_device_release(s.origin_test[0], hold);
	cr_assert_eq(actor_join(&reader), -ENODATA);
	free(reader.data);
	scene_drop(snapshot);
	scene_close(&s);
}

/* A take's newest snapshot is downgraded while a write copies for it and for an older one. */
Test(release, downgrade_during_a_copy, .timeout = 60)
{
	struct cowsnap_snapshot *older, *newer;
	struct actor writer;
	struct scene s;
	int hold;

	scene_open(&s, NULL);
	older = take(&s);
	newer = take(&s);
	hold = scene_hold(s.origin_test[0], TEST_IO_READ, 0, ALL);
	actor_write(&writer, &s, 0, 0, CHUNK, NEW);
	scene_wait_held(s.origin_test[0], hold);
	cr_assert_eq(cowsnap_snapshot_downgrade(newer), 0);
	test_device_release(s.origin_test[0], hold);
	cr_assert_eq(actor_join(&writer), 0);
	scene_expect(older, 0, ALL, SCENE_BLANK);
	write_value(&s, CHUNK, CHUNK, NEW);
	scene_expect(older, 0, ALL, SCENE_BLANK);
	cr_assert_eq(used_chunks(&s), 2);
	scene_drop(older);
	scene_reclaim(&s);
	cr_assert_eq(used_chunks(&s), 0);
	scene_drop(newer);
	scene_close(&s);
}

/* ---- Threads --------------------------------------------------------------------------------- */

#define ROUNDS 60

struct crowd {
	struct scene scene;
	_Atomic bool stop;
	pthread_mutex_t lock;
	struct cowsnap_snapshot *current; /* under lock; whoever uses it has a reference */
	_Atomic unsigned wrong;
};

static struct cowsnap_snapshot *current(struct crowd *c)
{
	struct cowsnap_snapshot *snapshot;

	pthread_mutex_lock(&c->lock);
	snapshot = c->current ? cowsnap_snapshot_ref(c->current) : NULL;
	pthread_mutex_unlock(&c->lock);
	return snapshot;
}

/* Each chunk always holds one byte throughout, another one after each write. */
static void *keep_writing(void *argument)
{
	struct crowd *c = argument;

	for (unsigned i = 0; !atomic_load(&c->stop); i++)
		scene_write(&c->scene, 0, i * 5 % 64 * CHUNK, CHUNK, (uint8_t)(i / 64));
	return NULL;
}

/* What is read twice is the same, or released. */
static void *keep_reading(void *argument)
{
	struct crowd *c = argument;
	uint8_t *data = malloc(2 * ALL);

	while (!atomic_load(&c->stop)) {
		struct cowsnap_snapshot *snapshot = current(c);
		int first, second;

		if (!snapshot)
			continue;
		for (uint64_t at = 0; at < ALL; at += 4 * CHUNK) {
			first = cowsnap_snapshot_read(snapshot, data, at, 4 * CHUNK);
			second = cowsnap_snapshot_read(snapshot, data + ALL, at, 4 * CHUNK);
			if (!first && !second) {
				for (unsigned i = 0; i < 4 * CHUNK; i++)
					if (data[i] != data[ALL + i])
						atomic_fetch_add(&c->wrong, 1);
			}
			if (first != 0 && second == 0)
				atomic_fetch_add(&c->wrong, 1);
		}
		cowsnap_snapshot_unref(snapshot);
	}
	free(data);
	return NULL;
}

static void *keep_releasing(void *argument)
{
	struct crowd *c = argument;

	for (unsigned i = 0; !atomic_load(&c->stop); i++) {
		struct cowsnap_snapshot *snapshot = current(c);

		if (!snapshot)
			continue;
		cowsnap_snapshot_release(snapshot, i % 60 * CHUNK, 5 * CHUNK);
		cowsnap_reclaim(c->scene.ctx, 16);
		cowsnap_snapshot_unref(snapshot);
	}
	return NULL;
}

static void change_current(struct crowd *c, struct cowsnap_snapshot *to)
{
	struct cowsnap_snapshot *before;

	pthread_mutex_lock(&c->lock);
	before = c->current;
	c->current = to;
	pthread_mutex_unlock(&c->lock);
	if (before)
		scene_drop(before);
}

Test(release, threads, .timeout = 120)
{
	void *(*const work[])(void *) = {keep_writing, keep_writing, keep_reading, keep_releasing};
	struct crowd *c = calloc(1, sizeof(*c));
	struct cowsnap_snapshot *map_only = NULL;
	pthread_t thread[4];

	scene_open(&c->scene, NULL);
	pthread_mutex_init(&c->lock, NULL);
	for (unsigned i = 0; i < 4; i++)
		cr_assert_eq(pthread_create(&thread[i], NULL, work[i], c), 0);
	for (unsigned i = 0; i < ROUNDS; i++) {
		change_current(c, take(&c->scene));
		if (i % 4 == 1) {
			map_only = take(&c->scene);
			cr_assert_eq(cowsnap_snapshot_downgrade(map_only), 0);
		} else if (i % 4 == 3) {
			scene_drop(map_only);
		}
		sched_yield();
	}
	atomic_store(&c->stop, true);
	for (unsigned i = 0; i < 4; i++)
		pthread_join(thread[i], NULL);
	cr_assert_eq(atomic_load(&c->wrong), 0);
	change_current(c, NULL);
	scene_close(&c->scene);
	pthread_mutex_destroy(&c->lock);
	free(c);
}
