/* SPDX-License-Identifier: MIT
 *
 * Scenario changes: how fast cowsnap_changes() goes over what has changed and what has not, and
 * what a map-only snapshot takes in memory.
 *
 * A volume of 32 TiB in chunks of 4 KiB, on devices that move no bytes. One snapshot with data, one
 * map-only, and ten million chunks that are written after them: four in ten side by side, three in
 * ten one among 16 chunks, three in ten one among 256.
 */
#include "bench.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define CHUNK_BYTES   UINT64_C(4096)
#define VOLUME_CHUNKS (UINT64_C(1) << 33)
#define RUNS          4096
#define REGIONS       4
#define SNAPSHOTS     2

struct region {
	const char *name;
	uint64_t first;
	uint64_t among; /* one chunk of so many; 0: none */
	unsigned tenths;
};

static const struct region regions[REGIONS] = {
	{"unchanged", UINT64_C(1) << 32, 0, 0},
	{"dense", 0, 1, 4},
	{"1 in 16", UINT64_C(1) << 28, 16, 3},
	{"1 in 256", UINT64_C(1) << 30, 256, 3},
};

struct changes_bed {
	const struct bench_options *options;
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *device, *store_device;
	struct cowsnap_origin *origin;
	struct cowsnap_store *store[SNAPSHOTS];
	struct cowsnap_take_entry entry[SNAPSHOTS];
	uint64_t exceptions;
};

struct changes_work {
	struct changes_bed *bed;
	const struct region *region;
	struct cowsnap_snapshot *snapshot;
};

/* ---- A volume that moves no bytes ------------------------------------------------------------ */

static int no_read(void *user, void *buffer, uint64_t offset, uint64_t length)
{
	(void)user;
	(void)buffer;
	(void)offset;
	(void)length;
	return 0;
}

static int no_write(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	(void)user;
	(void)buffer;
	(void)offset;
	(void)length;
	return 0;
}

static int open_device(struct cowsnap_ctx *ctx, struct cowsnap_device **device)
{
	static const struct cowsnap_device_ops ops = {
		.size = sizeof(ops), .read = no_read, .write = no_write};
	struct cowsnap_device_options options = {
		.size = sizeof(options), .size_bytes = VOLUME_CHUNKS * CHUNK_BYTES};

	return bench_check(
		cowsnap_device_create(ctx, &ops, &options, NULL, device), "cowsnap_device_create");
}

/* The last of @snapshots is map-only. */
static int open_bed(struct changes_bed *bed, unsigned snapshots)
{
	struct bench_rig_options what = {
		.chunk_bytes = CHUNK_BYTES, .store_bytes = VOLUME_CHUNKS * CHUNK_BYTES / 2};
	int err = bench_context(bed->options, &bed->ctx);

	if (!err)
		err = open_device(bed->ctx, &bed->device);
	if (!err)
		err = open_device(bed->ctx, &bed->store_device);
	if (!err)
		err = bench_check(cowsnap_origin_open(bed->ctx, bed->device, &bed->origin),
			"cowsnap_origin_open");
	for (unsigned i = 0; i < snapshots && !err; i++) {
		bool last = i == snapshots - 1;

		what.store_bytes = last ? CHUNK_BYTES : what.store_bytes;
		err = bench_store_open(
			bed->ctx, &what, last ? NULL : bed->store_device, &bed->store[i]);
		bed->entry[i] = (struct cowsnap_take_entry){.origin = bed->origin,
			.store = bed->store[i],
			.flags = last ? COWSNAP_TAKE_MAP_ONLY : 0};
	}
	if (!err)
		err = bench_check(
			cowsnap_take(bed->ctx, NULL, bed->entry, snapshots), "cowsnap_take");
	return err;
}

static int close_bed(struct changes_bed *bed)
{
	int err = 0;

	for (unsigned i = 0; i < SNAPSHOTS && !err; i++) {
		if (bed->entry[i].snapshot)
			err = bench_drop(bed->entry[i].snapshot);
		bed->entry[i].snapshot = NULL;
	}
	if (!err && bed->ctx)
		err = bench_reclaim(bed->ctx);
	if (!err && bed->origin)
		err = bench_check(cowsnap_origin_close(bed->origin), "cowsnap_origin_close");
	for (unsigned i = 0; i < SNAPSHOTS && !err; i++) {
		if (bed->store[i])
			err = bench_check(
				cowsnap_store_close(bed->store[i]), "cowsnap_store_close");
	}
	if (!err && bed->store_device)
		err = bench_check(cowsnap_device_close(bed->store_device), "cowsnap_device_close");
	if (!err && bed->device)
		err = bench_check(cowsnap_device_close(bed->device), "cowsnap_device_close");
	if (!err && bed->ctx)
		err = bench_check(cowsnap_ctx_destroy(bed->ctx), "cowsnap_ctx_destroy");
	return err;
}

/* splitmix64 */
static uint64_t random_of(uint64_t n)
{
	n = (n + 1) * UINT64_C(0x9e3779b97f4a7c15);
	n = (n ^ (n >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	n = (n ^ (n >> 27)) * UINT64_C(0x94d049bb133111eb);
	return n ^ (n >> 31);
}

static int touch(struct changes_bed *bed, uint64_t chunk, uint64_t count)
{
	return bench_bracket(bed->origin, chunk * CHUNK_BYTES, count * CHUNK_BYTES);
}

static uint64_t region_exceptions(const struct changes_bed *bed, const struct region *region)
{
	return bed->exceptions / 10 * region->tenths;
}

static int touch_region(struct changes_bed *bed, const struct region *region)
{
	uint64_t n = region_exceptions(bed, region);
	uint64_t step = region->among == 1 ? 256 : 1;
	int err = 0;

	for (uint64_t i = 0; i < n && !err; i += step) {
		uint64_t in_group = region->among == 1 ? 0 : random_of(i) % region->among;

		err = touch(bed, region->first + i * region->among + in_group,
			n - i < step ? n - i : step);
	}
	return err;
}

/* ---- How fast -------------------------------------------------------------------------------- */

/* Chunks of the region: what is looked at. */
static uint64_t region_chunks(const struct changes_bed *bed, const struct region *region)
{
	return region->among ? region_exceptions(bed, region) * region->among
			     : bed->exceptions * 100;
}

static int scan(struct cowsnap_snapshot *snapshot, uint64_t first, uint64_t end, uint64_t *found)
{
	static struct cowsnap_change runs[RUNS];
	uint64_t offset = first * CHUNK_BYTES, chunks = 0;

	while (offset < end * CHUNK_BYTES) {
		int n = cowsnap_changes(snapshot, NULL, &offset, runs, RUNS);

		if (n < 0)
			return bench_check(n, "cowsnap_changes");
		for (int i = 0; i < n; i++)
			chunks += runs[i].length / CHUNK_BYTES;
	}
	*found = chunks;
	return 0;
}

/* Millions a second: of chunks looked at where none has changed, else of those that have. */
static int scan_run(void *arg, struct bench_samples *samples)
{
	const struct changes_work *work = arg;
	uint64_t chunks = region_chunks(work->bed, work->region), found = 0;
	uint64_t began = bench_timer(work->bed->options);
	int err = scan(work->snapshot, work->region->first, work->region->first + chunks, &found);
	uint64_t ns = bench_timer(work->bed->options) - began;

	if (err)
		return err;
	if (found != region_exceptions(work->bed, work->region))
		return bench_check(-EIO, "cowsnap_changes left something out");
	bench_sample(samples, (double)(work->region->among ? found : chunks) * 1000 / (double)ns);
	return 0;
}

static const struct bench_work scan_work = {NULL, scan_run, NULL};

/* 50 M chunks/s where nothing has changed, and 5 M/s where something has: both together. */
static double least_rate(const struct region *region)
{
	return region->among ? 1 / ((double)(region->among - 1) / 50 + 1.0 / 5) : 50;
}

static int scan_groups(struct bench_report *report, struct changes_bed *bed)
{
	static const char *const kinds[SNAPSHOTS] = {"data", "map-only"};
	struct changes_work work[REGIONS * SNAPSHOTS], *next = work;
	int err = 0;

	for (unsigned r = 0; r < REGIONS && !err; r++) {
		const struct region *region = &regions[r];
		struct bench_group *group = bench_group_add(report, "changes",
			region->among ? "M changed chunks/s" : "M chunks/s", "scan, %s",
			region->name);

		for (unsigned i = 0; i < SNAPSHOTS; i++, next++) {
			*next = (struct changes_work){bed, region, bed->entry[i].snapshot};
			bench_variant_add(group, &scan_work, next, "%s", kinds[i])->target =
				bench_at_least(least_rate(region));
		}
		err = bench_group_run(group, bed->options);
	}
	return err;
}

/* ---- How large ------------------------------------------------------------------------------- */

struct memory_work {
	const struct bench_options *options;
	struct bench_variant *variant;
	struct bench_group *group;
	uint64_t among;
	uint64_t touches;
};

/* The least that a set of k out of n can take: log2(n over k) bits; in bytes for each. */
static double least_bytes(double n, double k)
{
	return (lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)) / log(2) / 8 / k;
}

static int memory_run(void *arg, struct bench_samples *samples)
{
	struct memory_work *work = arg;
	struct changes_bed bed = {.options = work->options};
	uint64_t span = work->touches * work->among, found = 1;
	struct cowsnap_snapshot_info info = {0};
	int close_err, err = open_bed(&bed, 1);

	for (uint64_t i = 0; i < work->touches && !err; i++)
		err = touch(&bed, work->among == 1 ? i : random_of(i) % span, 1);
	if (!err)
		err = scan(bed.entry[0].snapshot, 0, span, &found);
	if (!err)
		err = bench_check(cowsnap_snapshot_info(bed.entry[0].snapshot, &info, sizeof(info)),
			"cowsnap_snapshot_info");
	if (!err) {
		bench_sample(samples, (double)info.map_bytes / (double)found);
		if (work->group->counts)
			bench_sample(&work->variant->details[0],
				least_bytes((double)span, (double)found));
	}
	close_err = close_bed(&bed);
	return err ? err : close_err;
}

static const struct bench_work memory_work = {NULL, memory_run, NULL};

static int memory_group(struct bench_report *report, const struct bench_options *options)
{
	static const uint64_t among[] = {1, 2, 8, 16, 64, 256, 4096};
	struct memory_work work[sizeof(among) / sizeof(among[0])];
	struct bench_group *group = bench_group_add(
		report, "changes", "bytes per chunk touched", "memory of a map-only snapshot");

	group->detail_names[group->detail_count++] = "least possible";
	for (size_t i = 0; i < sizeof(among) / sizeof(among[0]); i++) {
		work[i] = (struct memory_work){.options = options,
			.group = group,
			.among = among[i],
			.touches = options->quick ? 20000 : 1000000};
		work[i].variant = bench_variant_add(group, &memory_work, &work[i],
			among[i] == 1 ? "all" : "1 in %llu", (unsigned long long)among[i]);
		work[i].variant->target = bench_at_most(1);
	}
	return bench_group_run(group, options);
}

int bench_changes(struct bench_report *report, const struct bench_options *options)
{
	struct changes_bed bed = {.options = options};
	int close_err, err;

	bed.exceptions = options->ops ? options->ops : options->quick ? 20000 : 10000000;
	bed.exceptions -= bed.exceptions % 10;
	err = open_bed(&bed, SNAPSHOTS);
	for (unsigned r = 0; r < REGIONS && !err; r++)
		err = touch_region(&bed, &regions[r]);
	if (!err)
		err = scan_groups(report, &bed);
	close_err = close_bed(&bed);
	err = err ? err : close_err;
	return err ? err : memory_group(report, options);
}
