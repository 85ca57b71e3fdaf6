/* SPDX-License-Identifier: MIT
 *
 * Scenario release: how much of a store a full backup takes while random writes go on, with and
 * without the release of what was read.
 *
 * Reader and writer take turns on one thread, so that the figures do not depend on the machine:
 * after each 64 KiB that the backup has read, some chunks are written.
 */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>

#define CHUNK_BYTES UINT64_C(4096)
#define READ_BYTES  UINT64_C(65536)

struct release_bed {
	const struct bench_options *options;
	struct bench_rig rig;
	uint64_t bytes;
	unsigned writes; /* after each read */
	bool release;
};

static int release_setup(void *arg)
{
	struct release_bed *bed = arg;
	struct bench_rig_options what = {
		.origins = 1,
		.origin_bytes = bed->bytes,
		.chunk_bytes = CHUNK_BYTES,
		.store_bytes = 2 * bed->bytes,
	};

	return bench_rig_open(&bed->rig, bed->options, &what);
}

static int release_teardown(void *arg)
{
	struct release_bed *bed = arg;

	return bench_rig_close(&bed->rig);
}

static int write_some(struct release_bed *bed, uint64_t *state)
{
	int err = 0;

	for (unsigned i = 0; i < bed->writes && !err; i++) {
		*state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		err = bench_bracket(bed->rig.origins[0],
			(*state >> 33) % (bed->bytes / CHUNK_BYTES) * CHUNK_BYTES, CHUNK_BYTES);
	}
	return err;
}

static int back_up(struct release_bed *bed)
{
	struct cowsnap_snapshot *snapshot = bed->rig.entries[0].snapshot;
	unsigned char *data = bench_alloc(1, READ_BYTES);
	uint64_t state = 1;
	int err = 0;

	for (uint64_t at = 0; at < bed->bytes && !err; at += READ_BYTES) {
		err = bench_check(cowsnap_snapshot_read(snapshot, data, at, READ_BYTES),
			"cowsnap_snapshot_read");
		if (!err && bed->release)
			err = bench_check(cowsnap_snapshot_release(snapshot, at, READ_BYTES),
				"cowsnap_snapshot_release");
		if (!err)
			err = write_some(bed, &state);
	}
	free(data);
	return err;
}

static int release_run(void *arg, struct bench_samples *samples)
{
	struct release_bed *bed = arg;
	struct cowsnap_store_usage usage = {0};
	int drop_err, err = bench_rig_take(&bed->rig);

	if (err)
		return err;
	err = back_up(bed);
	if (!err)
		err = bench_check(cowsnap_store_usage(bed->rig.store, &usage, sizeof(usage)),
			"cowsnap_store_usage");
	if (!err)
		bench_sample(samples, (double)usage.high_water_bytes / (double)bed->bytes);
	drop_err = bench_rig_drop(&bed->rig);
	return err ? err : drop_err;
}

static const struct bench_work work = {release_setup, release_run, release_teardown};

/* @writes for each 16 chunks that are read */
static int release_group(
	struct bench_report *report, const struct bench_options *options, unsigned writes)
{
	struct bench_group *group = bench_group_add(report, "release", "high-water mark / volume",
		"%.2f writes per chunk read", writes / 16.0);
	struct release_bed beds[2];
	struct bench_variant *variants[2];

	for (unsigned i = 0; i < 2; i++) {
		beds[i] = (struct release_bed){.options = options,
			.bytes = UINT64_C(1) << (options->quick ? 22 : 27),
			.writes = writes,
			.release = i};
		variants[i] = bench_variant_add(
			group, &work, &beds[i], i ? "with release" : "without release");
	}
	bench_ratio_add(group, NULL, variants[1], variants[0], bench_at_most(0.6));
	return bench_group_run(group, options);
}

int bench_release(struct bench_report *report, const struct bench_options *options)
{
	static const unsigned writes[] = {2, 16, 48};
	int err = 0;

	for (size_t i = 0; i < sizeof(writes) / sizeof(writes[0]) && !err; i++)
		err = release_group(report, options, writes[i]);
	return err;
}
