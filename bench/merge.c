/* SPDX-License-Identifier: MIT
 *
 * Scenario merge: how fast a snapshot is merged, beside what its two devices give when the same
 * runs are copied by nothing but the copier, as many at a time as it pleases. And what a merge does
 * to the writes of a host: merge_latency.c.
 *
 * The merge is the asynchronous form on a queue; so is the copy.
 */
#include <stdio.h>
#include <stdlib.h>

#include "merge_bed.h"

#define BYTES       (UINT64_C(128) << 20) /* of a volume */
#define BYTES_QUICK (UINT64_C(4) << 20)
#define COPIES_MAX  256u             /* at a time */
#define COPY_BYTES  UINT64_C(262144) /* of one copy, where chunks lie together */
/* More of these at a time are slower: their buffers leave the caches. */
#define LONG_COPIES 16u

struct copying;

/* One copy of the bare copier, again and again. */
struct slot {
	struct copying *copying;
	struct cowsnap_copy copy;
	struct cowsnap_copy_target target;
	struct cowsnap_op op;
	bool busy;
};

struct copying {
	struct merge_queue *queue;
	uint64_t *chunk; /* in order */
	uint64_t *place; /* of each chunk among the saved ones, from 1 on; 0: it is not saved */
	uint64_t next;   /* of chunk */
	unsigned busy;
	int err;
	struct slot slots[COPIES_MAX];
};

static void copied(struct cowsnap_op *op, void *user, int error)
{
	struct slot *slot = user;
	struct copying *c = slot->copying;

	(void)op;
	slot->busy = false;
	c->busy--;
	if (!c->err)
		c->err = error ? error : slot->target.error;
}

/* The chunks in the order in which a merge comes to them: that of the volume, or of the records. */
static void sort(struct copying *c)
{
	const struct merge_bed *bed = c->queue->bed;

	c->place = bench_alloc(bed->chunks, sizeof(*c->place));
	c->chunk = bench_alloc(bed->saved, sizeof(*c->chunk));
	for (uint64_t i = 0; i < bed->saved; i++)
		c->place[bed->order[i]] = i + 1;
	for (uint64_t chunk = 0, n = 0; chunk < bed->chunks; chunk++) {
		if (c->place[chunk])
			c->chunk[n++] = chunk;
	}
	for (uint64_t i = 0; bed->persistent && bed->random && i < bed->saved; i++)
		c->chunk[i] = bed->order[bed->saved - 1 - i];
}

/* Where the store has a chunk: they were saved in their order. */
static uint64_t location(const struct copying *c, uint64_t chunk)
{
	uint64_t i = c->place[chunk] - 1;

	return (c->queue->bed->persistent ? 2 + i + i / 256 : i) * c->queue->bed->chunk_bytes;
}

static int start(struct copying *c, struct slot *slot)
{
	struct merge_bed *bed = c->queue->bed;
	uint64_t count = bed->random ? 1 : COPY_BYTES / bed->chunk_bytes;

	if (count > bed->saved - c->next)
		count = bed->saved - c->next;
	slot->copying = c;
	slot->target = (struct cowsnap_copy_target){.device = bed->devices[0],
		.offset = c->chunk[c->next] * bed->chunk_bytes,
		.source_offset = location(c, c->chunk[c->next]),
		.length = count * bed->chunk_bytes};
	slot->copy.source = bed->devices[1];
	slot->copy.targets = &slot->target;
	slot->copy.count = 1;
	slot->busy = true;
	c->next += count;
	c->busy++;
	return cowsnap_copier_copy_async(
		bed->copier, c->queue->queue, &slot->copy, &slot->op, copied, slot);
}

static int copy_all(struct copying *c)
{
	struct merge_queue *queue = c->queue;
	bool small = queue->bed->random && queue->bed->chunk_bytes == 4096;
	unsigned most = small ? COPIES_MAX : LONG_COPIES;
	int err = 0;

	while ((c->next < queue->bed->saved || c->busy) && !err) {
		for (unsigned i = 0; i < most && c->next < queue->bed->saved && !err; i++) {
			if (!c->slots[i].busy && start(c, &c->slots[i]) != COWSNAP_PENDING)
				err = -1;
		}
		if (!err)
			err = merge_queue_poll(queue);
	}
	if (!err)
		err = c->err;
	return bench_check(err, "cowsnap_copier_copy_async");
}

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
	struct copying *c = bench_alloc(1, sizeof(*c));
	struct merge_queue queue;
	uint64_t began;
	int err = merge_bed_take(bed);

	if (!err)
		err = merge_queue_open(bed, &queue);
	if (err)
		return err;
	c->queue = &queue;
	sort(c);
	began = now_ns(bed);
	err = copy_all(c);
	if (!err)
		err = sample(bed, began, samples);
	free(c->chunk);
	free(c->place);
	free(c);
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
