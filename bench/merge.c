/* SPDX-License-Identifier: MIT
 *
 * Scenario merge: how fast a snapshot is merged, beside what its two devices give when the same
 * runs are copied by nothing but the copier, as many at a time as it pleases: merge_copies.c. And
 * what a merge does to the writes of a host: merge_latency.c.
 *
 * The merge is the asynchronous form on a queue; so is the copy.
 */
#include "merge_bed.h"

#define BYTES       (UINT64_C(128) << 20) /* of a volume */
#define BYTES_QUICK (UINT64_C(4) << 20)

/* ---- Variants -------------------------------------------------------------------------------- */

static int setup(void *arg)
{
	return merge_bed_open(arg);
}

static int teardown(void *arg)
{
	return merge_bed_close(arg);
}

/* Memory never waits. */
static uint64_t now_ns(const struct merge_bed *bed)
{
	return bed->simulated ? bench_now_ns() : bench_timer(bed->options);
}

static int sample(const struct merge_bed *bed, uint64_t began, struct bench_samples *samples)
{
	double seconds = (double)(now_ns(bed) - began) / 1e9;

	bench_sample(samples, (double)(bed->saved * bed->chunk_bytes) / (1 << 20) / seconds);
	return 0;
}

static int copy_run(void *arg, struct bench_samples *samples)
{
	struct merge_bed *bed = arg;
	struct merge_copies *copies;
	struct merge_queue queue;
	uint64_t began;
	int err = merge_bed_take(bed);

	if (!err)
		err = merge_queue_open(bed, &queue);
	if (err)
		return err;
	copies = merge_copies_create(&queue, false);
	began = now_ns(bed);
	err = merge_copies_run(copies);
	if (!err)
		err = sample(bed, began, samples);
	merge_copies_destroy(copies);
	if (!err)
		err = merge_queue_close(&queue);
	return err ? err : merge_bed_drop(bed);
}

static int end_merge(struct merge_bed *bed)
{
	cowsnap_snapshot_unref(bed->snapshot);
	return bench_reclaim(bed->ctx);
}

static int merge_run(void *arg, struct bench_samples *samples)
{
	struct merge_bed *bed = arg;
	struct merge_queue queue;
	uint64_t began;
	int err = merge_bed_take(bed);

	if (!err)
		err = merge_queue_open(bed, &queue);
	if (!err)
		err = bench_check(cowsnap_merge_begin(bed->snapshot), "cowsnap_merge_begin");
	if (err)
		return err;
	began = now_ns(bed);
	err = merge_all(&queue);
	if (!err)
		err = sample(bed, began, samples);
	if (!err)
		err = merge_queue_close(&queue);
	return err ? err : end_merge(bed);
}

static int rate_group(struct bench_report *report, struct merge_bed *bed)
{
	static const struct bench_work copy = {setup, copy_run, teardown};
	static const struct bench_work merge = {setup, merge_run, teardown};
	struct bench_group *group = bench_group_add(report, "merge", "MiB/s", "%uk %s, %s, %s",
		(unsigned)(bed->chunk_bytes >> 10), bed->random ? "random" : "all in order",
		bed->simulated ? "simulated array" : "memory",
		bed->persistent ? "persistent" : "transient");
	struct bench_variant *copies = bench_variant_add(group, &copy, bed, "copy");
	struct bench_variant *merges = bench_variant_add(group, &merge, bed, "merge");

	bench_ratio_add(group, NULL, merges, copies, bench_at_least(0.7));
	return bench_group_run(group, bed->options);
}

static struct merge_bed bed_of(const struct bench_options *options, uint64_t chunk_bytes)
{
	return (struct merge_bed){.options = options,
		.chunk_bytes = chunk_bytes,
		.chunks = (options->quick ? BYTES_QUICK : BYTES) / chunk_bytes};
}

int bench_merge(struct bench_report *report, const struct bench_options *options)
{
	int err = 0;

	for (unsigned i = 0; i < 8 && !err; i++) {
		struct merge_bed bed = bed_of(options, 4096);

		bed.simulated = i & 1;
		bed.persistent = i & 2;
		bed.random = i & 4;
		err = rate_group(report, &bed);
	}
	for (unsigned i = 0; i < 2 && !err; i++) {
		struct merge_bed bed = bed_of(options, 65536);

		bed.simulated = bed.persistent = true;
		bed.random = i;
		err = rate_group(report, &bed);
	}
	return err ? err : merge_latency_groups(report, options);
}
