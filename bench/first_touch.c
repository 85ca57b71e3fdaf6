/* SPDX-License-Identifier: MIT
 *
 * Scenario first-touch: the first write to each chunk after a take, beside the bare sum of what it
 * consists of: one read of the origin, one write of the store, the host's own write. Both sides use
 * the same origin device in the same order, and memory in the same state.
 */
#include "bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES UINT64_C(4096)

struct touch_bed {
	const struct bench_options *options;
	struct bench_rig rig;              /* the origin, and the store that is used again */
	struct cowsnap_device *bare_store; /* memory for the bare side that is used again */
	uint64_t *order;                   /* of the blocks */
	unsigned char *buffers;            /* two blocks for each thread */
	uint64_t bytes;
	uint64_t block_bytes; /* of a host write */
	unsigned threads;
	bool fresh; /* store memory that nobody has touched, in each round */
	unsigned users;
};

enum touch_parts {
	PART_READ = 1,
	PART_STORE = 2,
	PART_HOST = 4,
	PART_OURS = 8,
};

struct touch_case {
	struct touch_bed *bed;
	unsigned parts;
	struct cowsnap_device *store; /* of this round */
};

static int touch_setup(void *arg)
{
	struct touch_bed *bed = ((struct touch_case *)arg)->bed;
	uint64_t blocks = bed->bytes / bed->block_bytes;
	struct bench_rig_options what = {
		.origins = 1,
		.origin_bytes = bed->bytes,
		.chunk_bytes = CHUNK_BYTES,
		.store_bytes = bed->bytes,
		/* A store gives memory of its own back when it is emptied, but not a device. */
		.store_device = !bed->fresh,
	};
	int err;

	if (bed->users++)
		return 0;
	bed->order = bench_alloc(blocks, sizeof(*bed->order));
	bed->buffers = bench_alloc(2 * bed->threads, bed->block_bytes);
	memset(bed->buffers, 1, 2 * bed->threads * bed->block_bytes);
	if (bed->block_bytes == CHUNK_BYTES)
		bench_shuffle(bed->order, blocks);
	else
		for (uint64_t i = 0; i < blocks; i++)
			bed->order[i] = i;
	err = bench_rig_open(&bed->rig, bed->options, &what);
	if (!err)
		err = bench_device_fill(bed->rig.devices[0], bed->bytes);
	if (err || bed->fresh)
		return err;
	err = cowsnap_device_memory(bed->rig.ctx, bed->bytes, &bed->bare_store);
	if (bench_check(err, "cowsnap_device_memory") < 0)
		return err;
	return bench_device_fill(bed->bare_store, bed->bytes);
}

static int touch_teardown(void *arg)
{
	struct touch_bed *bed = ((struct touch_case *)arg)->bed;
	int err;

	if (--bed->users)
		return 0;
	err = bench_check(cowsnap_device_close(bed->bare_store), "cowsnap_device_close");
	free(bed->order);
	free(bed->buffers);
	if (err)
		return err;
	return bench_rig_close(&bed->rig);
}

/* ---- The bare side -------------------------------------------------------------------------- */

static int bare_thread(void *arg, unsigned index)
{
	const struct touch_case *c = arg;
	const struct touch_bed *bed = c->bed;
	struct cowsnap_device *origin = bed->rig.devices[0];
	uint64_t length = bed->block_bytes;
	uint64_t share = bed->bytes / length / bed->threads;
	unsigned char *data = bed->buffers + 2 * index * length;
	int err = 0;

	for (uint64_t i = index * share; i < (index + 1) * share && !err; i++) {
		uint64_t offset = bed->order[i] * length;

		if (c->parts & PART_READ)
			err = cowsnap_device_read(origin, data, offset, length);
		if (!err && c->parts & PART_STORE)
			err = cowsnap_device_write(c->store, data, i * length, length);
		if (!err && c->parts & PART_HOST)
			err = cowsnap_device_write(origin, data + length, offset, length);
	}
	return bench_check(err, "device read or write");
}

static void sample_of(const struct touch_bed *bed, uint64_t ns, struct bench_samples *samples)
{
	uint64_t writes = bed->bytes / bed->block_bytes / bed->threads;

	bench_sample(samples, (double)ns / (double)writes);
}

static int bare_run(void *arg, struct bench_samples *samples)
{
	struct touch_case *c = arg;
	struct touch_bed *bed = c->bed;
	uint64_t ns;
	int err = 0;

	c->store = bed->bare_store;
	if (bed->fresh)
		err = cowsnap_device_memory(bed->rig.ctx, bed->bytes, &c->store);
	if (bench_check(err, "cowsnap_device_memory") < 0)
		return err;
	err = bench_threads(bed->options, bed->threads, bare_thread, c, &ns);
	if (!err)
		sample_of(bed, ns, samples);
	if (bed->fresh && !err)
		err = bench_check(cowsnap_device_close(c->store), "cowsnap_device_close");
	return err;
}

/* ---- Our side ------------------------------------------------------------------------------- */

static int ours_thread(void *arg, unsigned index)
{
	const struct touch_case *c = arg;
	const struct touch_bed *bed = c->bed;
	uint64_t length = bed->block_bytes;
	uint64_t share = bed->bytes / length / bed->threads;
	unsigned char *data = bed->buffers + 2 * index * length;
	struct cowsnap_op op;
	int err = 0;

	for (uint64_t i = index * share; i < (index + 1) * share && !err; i++) {
		uint64_t offset = bed->order[i] * length;

		err = cowsnap_write_begin(bed->rig.origins[0], COWSNAP_WRITE, offset, length, &op);
		if (err)
			break;
		err = cowsnap_device_write(bed->rig.devices[0], data, offset, length);
		cowsnap_write_end(&op);
	}
	return bench_check(err, "bracketed write");
}

/* Every chunk was copied exactly once, or the figure is not that of a first touch. */
static int check_copies(struct touch_bed *bed, uint64_t copied_before)
{
	struct cowsnap_stats stats;
	int err = cowsnap_origin_stats(bed->rig.origins[0], &stats, sizeof(stats));

	if (bench_check(err, "cowsnap_origin_stats") < 0)
		return err;
	if (stats.copied_chunks - copied_before == bed->bytes / CHUNK_BYTES)
		return 0;
	fprintf(stderr, "cowsnap-bench: %llu chunks were copied, not %llu\n",
		(unsigned long long)(stats.copied_chunks - copied_before),
		(unsigned long long)(bed->bytes / CHUNK_BYTES));
	return -EPROTO;
}

static int touch_once(struct touch_case *c, struct bench_samples *samples)
{
	struct touch_bed *bed = c->bed;
	struct cowsnap_stats before;
	uint64_t ns;
	int err = cowsnap_origin_stats(bed->rig.origins[0], &before, sizeof(before));

	if (bench_check(err, "cowsnap_origin_stats") < 0)
		return err;
	err = bench_rig_take(&bed->rig);
	if (err)
		return err;
	err = bench_threads(bed->options, bed->threads, ours_thread, c, &ns);
	if (!err)
		err = check_copies(bed, before.copied_chunks);
	if (!err)
		sample_of(bed, ns, samples);
	return err ? err : bench_rig_drop(&bed->rig);
}

static int ours_run(void *arg, struct bench_samples *samples)
{
	struct touch_case *c = arg;
	struct touch_bed *bed = c->bed;
	struct cowsnap_store *kept = bed->rig.store;
	struct bench_rig_options what = {.chunk_bytes = CHUNK_BYTES, .store_bytes = bed->bytes};
	int err;

	if (!bed->fresh)
		return touch_once(c, samples);
	err = bench_store_open(bed->rig.ctx, &what, NULL, &bed->rig.entries[0].store);
	if (!err)
		err = touch_once(c, samples);
	if (!err)
		err = bench_check(
			cowsnap_store_close(bed->rig.entries[0].store), "cowsnap_store_close");
	bed->rig.entries[0].store = kept;
	return err;
}

/* ---- Groups --------------------------------------------------------------------------------- */

static const struct bench_work ours_work = {touch_setup, ours_run, touch_teardown};
static const struct bench_work bare_work = {touch_setup, bare_run, touch_teardown};

static int touch_group(struct bench_report *report, struct touch_bed *bed)
{
	const char *size = bed->block_bytes == CHUNK_BYTES ? "4k-random" : "1m-sequential";
	const char *memory = bed->fresh ? "fresh" : "reused";
	struct bench_group *group = bench_group_add(report, "first-touch", "ns per host write",
		"%s, %s store memory, %u thread%s", size, memory, bed->threads,
		bed->threads > 1 ? "s" : "");
	struct touch_case cases[] = {
		{.bed = bed, .parts = PART_OURS},
		{.bed = bed, .parts = PART_READ | PART_STORE | PART_HOST},
		{.bed = bed, .parts = PART_READ},
		{.bed = bed, .parts = PART_STORE},
		{.bed = bed, .parts = PART_HOST},
	};
	static const char *const names[] = {
		"ours", "bare-three-in-turn", "bare-read", "bare-store", "bare-host"};
	struct bench_variant *v[5];
	struct bench_ratio *sum;

	for (size_t i = 0; i < 5; i++)
		v[i] = bench_variant_add(group, i ? &bare_work : &ours_work, &cases[i],
			"%s-%s-%s-%ut", names[i], size, memory, bed->threads);
	bench_ratio_add(group, "bare three in turn / ours", v[1], v[0], bench_at_least(0.7));
	sum = bench_ratio_add(
		group, "bare read + store + host / ours", v[2], v[0], bench_at_least(0.7));
	sum->above[1] = v[3];
	sum->above[2] = v[4];
	return bench_group_run(group, bed->options);
}

int bench_first_touch(struct bench_report *report, const struct bench_options *options)
{
	uint64_t bytes = UINT64_C(256) << 20;
	struct {
		uint64_t block_bytes;
		bool fresh;
		unsigned threads;
	} groups[] = {
		{CHUNK_BYTES, false, 1},
		{CHUNK_BYTES, true, 1},
		{CHUNK_BYTES, false, options->threads},
		{UINT64_C(1) << 20, false, 1},
		{UINT64_C(1) << 20, true, 1},
	};
	int err = 0;

	if (options->quick)
		bytes = UINT64_C(4) << 20;
	/* Each thread has the same number of blocks. */
	bytes -= bytes % (options->threads * CHUNK_BYTES);
	for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]) && !err; i++) {
		struct touch_bed bed = {
			.options = options,
			.bytes = bytes - bytes % groups[i].block_bytes,
			.block_bytes = groups[i].block_bytes,
			.fresh = groups[i].fresh,
			.threads = groups[i].threads,
		};

		err = touch_group(report, &bed);
	}
	return err;
}
