/* SPDX-License-Identifier: MIT
 *
 * The operations whose cost has a budget, OPERATIONS of each. check.py runs this under callgrind,
 * which counts the instructions between zero and dump. What has to be set up is set up before.
 */
#include <cowsnap.h>

#include <stdio.h>
#include <stdlib.h>
#include <valgrind/callgrind.h>

#define OPERATIONS        10000
#define CHUNK_BYTES       UINT64_C(4096)
#define SMALL_CHUNK_BYTES UINT64_C(512)
#define VOLUME_BYTES      (UINT64_C(64) << 20)

struct volume {
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *device;
	struct cowsnap_origin *origin;
	struct cowsnap_store *store;
};

static void check(bool good, const char *what)
{
	if (!good) {
		fprintf(stderr, "budget: %s\n", what);
		exit(1);
	}
}

static inline void bracket(struct cowsnap_origin *origin, uint64_t offset, uint64_t length)
{
	struct cowsnap_op op;

	if (cowsnap_write_begin(origin, COWSNAP_WRITE, offset, length, &op) == 0)
		cowsnap_write_end(&op);
}

static void bracket_all(struct cowsnap_origin *origin, uint64_t length)
{
	for (uint64_t i = 0; i < OPERATIONS; i++)
		bracket(origin, i * length, length);
}

static void look_up_all(const struct cowsnap_map *map)
{
	uint64_t location;

	for (uint64_t i = 0; i < OPERATIONS; i++)
		(void)cowsnap_map_lookup(map, i, &location);
}

/* Claims and publishes chunk by chunk. Returns: how many chunks it could claim. */
static uint64_t publish_all(struct cowsnap_map *map, uint64_t stride)
{
	uint64_t claimed = 0;

	for (uint64_t i = 0; i < OPERATIONS; i++) {
		struct cowsnap_run run;

		if (cowsnap_map_claim(map, i * stride, 1, &run) != COWSNAP_CLAIM_MINE)
			break;
		run.location = i;
		cowsnap_map_publish(map, &run);
		claimed++;
	}
	return claimed;
}

static struct volume open_volume(uint64_t chunk_bytes)
{
	struct cowsnap_ctx_options options = {.size = sizeof(options)};
	struct cowsnap_transient_options in_memory = {.size = sizeof(in_memory)};
	struct volume v;

	in_memory.chunk_size_bytes = chunk_bytes;
	in_memory.limit_bytes = 2 * VOLUME_BYTES;
	check(cowsnap_ctx_create(&options, &v.ctx) == 0, "ctx_create");
	check(cowsnap_device_memory(v.ctx, VOLUME_BYTES, &v.device) == 0, "device_memory");
	check(cowsnap_origin_open(v.ctx, v.device, &v.origin) == 0, "origin_open");
	check(cowsnap_store_transient(v.ctx, &in_memory, &v.store) == 0, "store_transient");
	return v;
}

static void close_volume(const struct volume *v)
{
	while (cowsnap_reclaim(v->ctx, UINT64_MAX) == 1)
		;
	check(cowsnap_store_close(v->store) == 0, "store_close");
	check(cowsnap_origin_close(v->origin) == 0, "origin_close");
	check(cowsnap_device_close(v->device) == 0, "device_close");
	check(cowsnap_ctx_destroy(v->ctx) == 0, "ctx_destroy");
}

static struct cowsnap_snapshot *take(const struct volume *v)
{
	struct cowsnap_take_options options = {.size = sizeof(options)};
	struct cowsnap_take_entry entry = {.origin = v->origin, .store = v->store};

	check(cowsnap_take(v->ctx, &options, &entry, 1) == 0, "take");
	return entry.snapshot;
}

static void drop(struct cowsnap_snapshot *snapshot)
{
	check(cowsnap_snapshot_drop(snapshot) == 0, "drop");
	cowsnap_snapshot_unref(snapshot);
}

/* Brackets with @count snapshots, each chunk saved already. */
static void hook_with_snapshots(int count, const char *name)
{
	struct volume v = open_volume(CHUNK_BYTES);
	struct cowsnap_snapshot *snapshots[16];
	struct cowsnap_stats before = {0};
	struct cowsnap_stats after = {0};

	for (int i = 0; i < count; i++) {
		snapshots[i] = take(&v);
		bracket(v.origin, 0, CHUNK_BYTES);
	}
	bracket_all(v.origin, CHUNK_BYTES);
	check(cowsnap_origin_stats(v.origin, &before, sizeof(before)) == 0, "origin_stats");
	CALLGRIND_ZERO_STATS;
	bracket_all(v.origin, CHUNK_BYTES);
	CALLGRIND_DUMP_STATS_AT(name);
	check(cowsnap_origin_stats(v.origin, &after, sizeof(after)) == 0, "origin_stats");
	check(after.fast_writes - before.fast_writes == OPERATIONS, "a write was not fast");
	for (int i = 0; i < count; i++)
		drop(snapshots[i]);
	close_volume(&v);
}

/* Each chunk saved. They are small, so that what copies bytes, which differs from one CPU to the
 * next, counts for little. */
static void first_touch(void)
{
	struct volume v = open_volume(SMALL_CHUNK_BYTES);
	struct cowsnap_snapshot *snapshot = take(&v);
	struct cowsnap_stats after = {0};

	CALLGRIND_ZERO_STATS;
	bracket_all(v.origin, SMALL_CHUNK_BYTES);
	CALLGRIND_DUMP_STATS_AT("first_touch");
	check(cowsnap_origin_stats(v.origin, &after, sizeof(after)) == 0, "origin_stats");
	check(after.copied_chunks == OPERATIONS, "a chunk was not copied");
	drop(snapshot);
	close_volume(&v);
}

static void measure_map(void)
{
	/* Each chunk far from all others is the worst that a write pattern can do to the map. */
	const uint64_t apart = 1000003;
	struct cowsnap_map *map;
	struct cowsnap_map *sparse;
	uint64_t claimed = 0;

	check(cowsnap_map_create(NULL, &map) == 0, "map_create");
	check(cowsnap_map_create(NULL, &sparse) == 0, "map_create");
	CALLGRIND_ZERO_STATS;
	claimed += publish_all(map, 1);
	CALLGRIND_DUMP_STATS_AT("map_publish");
	CALLGRIND_ZERO_STATS;
	look_up_all(map);
	CALLGRIND_DUMP_STATS_AT("map_lookup");
	CALLGRIND_ZERO_STATS;
	claimed += publish_all(sparse, apart);
	CALLGRIND_DUMP_STATS_AT("map_publish_apart");
	check(claimed == 2 * OPERATIONS, "map_claim");
	check(cowsnap_map_done(map, 0, OPERATIONS), "map_done");
	check(cowsnap_map_count(sparse) == OPERATIONS, "map_count");
	cowsnap_map_destroy(map);
	cowsnap_map_destroy(sparse);
}

int main(void)
{
	hook_with_snapshots(0, "hook_idle");
	hook_with_snapshots(1, "hook_saved");
	hook_with_snapshots(16, "hook_saved_16");
	first_touch();
	measure_map();
	return 0;
}
