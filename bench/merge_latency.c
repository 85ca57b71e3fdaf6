/* SPDX-License-Identifier: MIT
 *
 * Scenario merge: what the writes of a host wait for while a snapshot is merged by another thread,
 * held back to half of the time, beside the same writes without a merge, and beside copies of the
 * same chunks by nothing but the copier. One thread writes chunks in random order, one at a time,
 * with cowsnap_origin_write().
 */
#include <stdio.h>
#include <stdlib.h>

#include "latency.h"
#include "merge_bed.h"

#define SHARE_PERCENT 50

enum beside { ALONE, COPIES, MERGE, BESIDES };

enum detail { P50_US, WRITES, DETAILS };

struct writes {
	struct merge_bed *bed;
	struct bench_group *group;
	struct bench_variant *variant;
	enum beside beside;
	uint64_t alone; /* writes where nobody does anything */
	unsigned char *data;
	struct latency latency;
	atomic_bool over; /* for the other thread */
};

static int setup(void *arg)
{
	return merge_bed_open(((struct writes *)arg)->bed);
}

static int teardown(void *arg)
{
	return merge_bed_close(((struct writes *)arg)->bed);
}

static int write_all(struct writes *w)
{
	struct merge_bed *bed = w->bed;
	uint64_t state = 1, began;
	int err = 0;

	for (uint64_t i = 0; !err; i++) {
		bool over = w->beside == ALONE ? i == w->alone : atomic_load(&w->over);

		if (over)
			break;
		state = state * UINT64_C(6364136223846793005) + 1442695040888963407;
		began = bench_now_ns();
		err = cowsnap_origin_write(bed->origin, COWSNAP_WRITE, w->data,
			(state >> 33) % bed->chunks * bed->chunk_bytes, bed->chunk_bytes);
		latency_record(&w->latency, bench_now_ns() - began);
	}
	return bench_check(err, "cowsnap_origin_write");
}

static int copy_all(struct merge_queue *queue)
{
	struct merge_copies *copies = merge_copies_create(queue, true);
	int err = merge_copies_run(copies);

	merge_copies_destroy(copies);
	return err;
}

static int disturb(struct writes *w)
{
	struct merge_queue queue;
	int err = merge_queue_open(w->bed, &queue);

	if (!err)
		err = w->beside == MERGE ? merge_all(&queue) : copy_all(&queue);
	if (!err)
		err = merge_queue_close(&queue);
	atomic_store(&w->over, true);
	return err;
}

static int work(void *arg, unsigned index)
{
	return index ? disturb(arg) : write_all(arg);
}

static void detail(struct writes *w, enum detail which, double value)
{
	if (w->group->counts)
		bench_sample(&w->variant->details[which], value);
}

static int run(void *arg, struct bench_samples *samples)
{
	struct writes *w = arg;
	struct merge_bed *bed = w->bed;
	uint64_t ns;
	int err = merge_bed_take(bed);

	latency_init(&w->latency);
	atomic_store(&w->over, false);
	w->data = bench_alloc(1, bed->chunk_bytes);
	if (!err && w->beside == MERGE)
		err = bench_check(cowsnap_merge_begin(bed->snapshot), "cowsnap_merge_begin");
	if (!err)
		err = bench_threads(bed->options, w->beside == ALONE ? 1 : 2, work, w, &ns);
	free(w->data);
	if (err)
		return err;
	bench_sample(samples, (double)latency_percentile_ns(&w->latency, 99) / 1000);
	detail(w, P50_US, (double)latency_percentile_ns(&w->latency, 50) / 1000);
	detail(w, WRITES, (double)w->latency.count);
	if (w->beside != MERGE)
		return merge_bed_drop(bed);
	cowsnap_snapshot_unref(bed->snapshot);
	return bench_reclaim(bed->ctx);
}

static int throttled_setup(void *arg)
{
	struct writes *w = arg;
	int err = setup(w);

	return err ? err
		   : bench_check(cowsnap_ctx_throttle(w->bed->ctx, 0, SHARE_PERCENT),
			     "cowsnap_ctx_throttle");
}

static int latency_group(struct bench_report *report, struct merge_bed *bed)
{
	static const struct bench_work alone = {setup, run, teardown};
	static const struct bench_work merging = {throttled_setup, run, teardown};
	struct bench_group *group = bench_group_add(report, "merge", "us, p99", "writes, %s, %s",
		bed->simulated ? "simulated array" : "memory",
		bed->persistent ? "persistent" : "transient");
	struct writes w[BESIDES];

	for (unsigned i = 0; i < BESIDES; i++)
		w[i] = (struct writes){.bed = bed,
			.group = group,
			.beside = i,
			.alone = bed->options->quick ? 100 : 3000};
	group->detail_names[P50_US] = "p50 us";
	group->detail_names[WRITES] = "writes";
	group->detail_count = DETAILS;
	w[ALONE].variant = bench_variant_add(group, &alone, &w[ALONE], "alone");
	w[COPIES].variant = bench_variant_add(group, &alone, &w[COPIES], "beside copies");
	w[MERGE].variant = bench_variant_add(group, &merging, &w[MERGE], "beside a merge");
	bench_ratio_add(group, NULL, w[MERGE].variant, w[ALONE].variant, bench_at_most(2));
	bench_ratio_add(group, NULL, w[COPIES].variant, w[ALONE].variant, bench_no_target());
	bench_ratio_add(group, NULL, w[MERGE].variant, w[COPIES].variant, bench_no_target());
	return bench_group_run(group, bed->options);
}

int merge_latency_groups(struct bench_report *report, const struct bench_options *options)
{
	int err = 0;

	for (unsigned i = 0; i < 4 && !err; i++) {
		struct merge_bed bed = {.options = options,
			.chunk_bytes = 4096,
			.chunks = options->quick ? 1024 : 65536,
			.simulated = i & 1,
			.persistent = i & 2,
			.random = true};

		err = latency_group(report, &bed);
	}
	return err;
}
