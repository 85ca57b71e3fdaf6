/* SPDX-License-Identifier: MIT
 *
 * Scenario hook: what begin and end cost when nothing is to be copied.
 */
#include "bench.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK_BYTES 4096
#define STEP_BLOCKS 40503

/* One variant: threads that bracket blocks of their own ranges. */
struct hook_bed {
	const struct bench_options *options;
	struct bench_rig rig;
	unsigned threads;
	size_t origins;        /* 1, or as many as threads */
	unsigned snapshots;    /* in the chain; 0: none */
	uint64_t origin_bytes; /* a power of two */
	uint64_t block_bytes;  /* of a bracket and of a chunk */
	uint64_t ops;          /* of each thread in one round */
	struct cowsnap_snapshot **chain;
};

/* Every snapshot has everything saved that was written before the next one was taken, and the
 * newest one has it all. */
static int make_chain(struct hook_bed *bed)
{
	int err = 0;

	bed->chain = bench_alloc(bed->snapshots, sizeof(struct cowsnap_snapshot *));
	for (unsigned i = 0; i < bed->snapshots && !err; i++) {
		err = bench_rig_take(&bed->rig);
		if (err)
			return err;
		bed->chain[i] = bed->rig.entries[0].snapshot;
		err = bench_touch_all(bed->rig.origins[0], bed->origin_bytes);
	}
	return err;
}

static int hook_setup(void *arg)
{
	struct hook_bed *bed = arg;
	struct bench_rig_options what = {
		.origins = bed->origins,
		.origin_bytes = bed->origin_bytes,
		.chunk_bytes = bed->block_bytes,
		.store_bytes = bed->origin_bytes * (bed->snapshots + 1),
	};
	int err = bench_rig_open(&bed->rig, bed->options, &what);

	if (!err && bed->snapshots)
		err = make_chain(bed);
	return err;
}

static int hook_teardown(void *arg)
{
	struct hook_bed *bed = arg;
	int err = 0;
	int close_err;

	for (unsigned i = 0; bed->chain && i < bed->snapshots; i++) {
		if (bed->chain[i] && !err)
			err = bench_drop(bed->chain[i]);
	}
	free(bed->chain);
	if (!err && bed->rig.ctx)
		err = bench_reclaim(bed->rig.ctx);
	close_err = bench_rig_close(&bed->rig);
	return err ? err : close_err;
}

static int hook_thread(void *arg, unsigned index)
{
	const struct hook_bed *bed = arg;
	struct cowsnap_origin *origin = bed->rig.origins[index % bed->origins];
	uint64_t blocks = bed->origin_bytes / bed->block_bytes / bed->threads;
	uint64_t base = blocks * index;
	/* An odd step visits every block of a power of two, far from the one before. */
	uint64_t step = STEP_BLOCKS % blocks;
	uint64_t block = 0;
	struct cowsnap_op op;

	for (uint64_t i = 0; i < bed->ops; i++) {
		int err = cowsnap_write_begin(origin, COWSNAP_WRITE,
			(base + block) * bed->block_bytes, bed->block_bytes, &op);

		if (err)
			return bench_check(err, "cowsnap_write_begin");
		cowsnap_write_end(&op);
		block += step;
		if (block >= blocks)
			block -= blocks;
	}
	return 0;
}

static int hook_run(void *arg, struct bench_samples *samples)
{
	struct hook_bed *bed = arg;
	uint64_t ns;
	int err = bench_threads(bed->options, bed->threads, hook_thread, bed, &ns);

	if (!err)
		bench_sample(samples, (double)ns / (double)bed->ops);
	return err;
}

/* What two uncontended atomic additions cost on this machine: the floor of any gate that counts. */
static int additions_run(void *arg, struct bench_samples *samples)
{
	static _Alignas(128) _Atomic uint64_t word;
	const struct hook_bed *bed = arg;
	uint64_t began = bench_timer(bed->options);

	for (uint64_t i = 0; i < bed->ops; i++) {
		atomic_fetch_add_explicit(&word, 1, memory_order_seq_cst);
		atomic_fetch_sub_explicit(&word, 1, memory_order_seq_cst);
	}
	bench_sample(samples, (double)(bench_timer(bed->options) - began) / (double)bed->ops);
	return 0;
}

static const struct bench_work hook_work = {hook_setup, hook_run, hook_teardown};
static const struct bench_work additions_work = {NULL, additions_run, NULL};

static struct hook_bed bed_of(
	const struct bench_options *options, unsigned threads, size_t origins, unsigned snapshots)
{
	uint64_t ops = options->quick ? 20000 : 4000000;

	return (struct hook_bed){
		.options = options,
		.threads = threads,
		.origins = origins,
		.snapshots = snapshots,
		.origin_bytes = UINT64_C(4) << 20,
		.block_bytes = BLOCK_BYTES,
		.ops = options->ops ? options->ops : ops,
	};
}

static int hook_without(struct bench_report *report, const struct bench_options *options)
{
	struct bench_group *group =
		bench_group_add(report, "hook", "ns per begin+end", "no snapshot");
	unsigned n = options->threads;
	struct hook_bed beds[] = {
		bed_of(options, 1, 1, 0),
		bed_of(options, n, 1, 0),
		bed_of(options, n, n, 0),
	};
	struct bench_variant *one = bench_variant_add(group, &hook_work, &beds[0], "no-snapshot");
	struct bench_variant *same =
		bench_variant_add(group, &hook_work, &beds[1], "no-snapshot-%u-threads", n);
	struct bench_variant *own = bench_variant_add(
		group, &hook_work, &beds[2], "no-snapshot-%u-threads-own-origins", n);

	bench_variant_add(group, &additions_work, &beds[0], "two-atomic-additions");
	one->target = same->target = own->target = bench_at_most(20);
	bench_ratio_add(group, NULL, same, one, bench_no_target());
	bench_ratio_add(group, NULL, own, one, bench_no_target());
	return bench_group_run(group, options);
}

static int hook_saved(struct bench_report *report, const struct bench_options *options)
{
	static const unsigned depths[] = {1, 4, 16, 64};
	struct bench_group *group =
		bench_group_add(report, "hook", "ns per begin+end", "everything saved");
	struct hook_bed beds[6];
	struct bench_variant *variants[6];
	unsigned n = options->threads;

	for (size_t i = 0; i < 4; i++) {
		beds[i] = bed_of(options, 1, 1, depths[i]);
		variants[i] = bench_variant_add(
			group, &hook_work, &beds[i], "saved-%u-snapshots", depths[i]);
	}
	beds[4] = bed_of(options, n, 1, 64);
	variants[4] =
		bench_variant_add(group, &hook_work, &beds[4], "saved-64-snapshots-%u-threads", n);
	/* A map that no cache holds: 1 M exceptions, visited in a scattered order. */
	beds[5] = bed_of(options, 1, 1, 1);
	beds[5].block_bytes = COWSNAP_CHUNK_SIZE_MIN;
	beds[5].origin_bytes = UINT64_C(512) << (options->quick ? 14 : 20);
	variants[5] = bench_variant_add(group, &hook_work, &beds[5], "saved-%llu-chunks",
		(unsigned long long)(beds[5].origin_bytes / beds[5].block_bytes));
	for (size_t i = 0; i < 6; i++)
		variants[i]->target = bench_at_most(60);
	bench_ratio_add(group, NULL, variants[3], variants[0], bench_at_most(1.1));
	bench_ratio_add(group, NULL, variants[4], variants[3], bench_no_target());
	return bench_group_run(group, options);
}

int bench_hook(struct bench_report *report, const struct bench_options *options)
{
	int err = hook_without(report, options);

	return err ? err : hook_saved(report, options);
}
