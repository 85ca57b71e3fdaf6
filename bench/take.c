/* SPDX-License-Identifier: MIT
 *
 * Scenario take: how long a take of 1, 100 and 1,000 origins at one instant lasts, and the drop.
 */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>

#define ORIGIN_BYTES (UINT64_C(1) << 20)
#define CHUNK_BYTES  UINT64_C(4096)

struct take_bed {
	const struct bench_options *options;
	struct bench_rig rig;
	size_t origins;
	unsigned takes; /* in one round */
	bool load;      /* one thread writes to all origins meanwhile */
	bool drop;      /* the drop is what is timed */
};

static int open_bed(struct take_bed *bed)
{
	struct bench_rig_options what = {
		.origins = bed->origins,
		.origin_bytes = ORIGIN_BYTES,
		.chunk_bytes = CHUNK_BYTES,
		.store_bytes = ORIGIN_BYTES * (bed->origins + 1),
	};

	return bench_rig_open(&bed->rig, bed->options, &what);
}

static int take_setup(void *arg)
{
	return open_bed(arg);
}

static int take_teardown(void *arg)
{
	struct take_bed *bed = arg;

	return bench_rig_close(&bed->rig);
}

/* Only the drops: the space is given back outside the time. */
static int timed_drop(struct bench_rig *rig, double *us)
{
	uint64_t began = bench_now_ns();
	int err = 0;

	for (size_t i = 0; i < rig->count && !err; i++)
		err = bench_check(
			cowsnap_snapshot_drop(rig->entries[i].snapshot), "cowsnap_snapshot_drop");
	*us = (double)(bench_now_ns() - began) / 1000;
	for (size_t i = 0; i < rig->count; i++)
		cowsnap_snapshot_unref(rig->entries[i].snapshot);
	return err ? err : bench_reclaim(rig->ctx);
}

static int take_once(struct take_bed *bed, struct bench_samples *samples)
{
	uint64_t began = bench_now_ns();
	int err = bench_rig_take(&bed->rig);
	double take_us = (double)(bench_now_ns() - began) / 1000;
	double drop_us;

	if (err)
		return err;
	err = timed_drop(&bed->rig, &drop_us);
	if (!err)
		bench_sample(samples, bed->drop ? drop_us : take_us);
	return err;
}

/* One bracketed write; the origins in turn. */
static int write_step(void *arg, unsigned index)
{
	static const unsigned char data[CHUNK_BYTES];
	static _Atomic uint64_t counter;
	struct take_bed *bed = arg;
	uint64_t n = atomic_fetch_add_explicit(&counter, 1, memory_order_relaxed);
	uint64_t offset = n / bed->origins * CHUNK_BYTES % ORIGIN_BYTES;
	struct cowsnap_op op;
	int err;

	(void)index;
	err = cowsnap_write_begin(
		bed->rig.origins[n % bed->origins], COWSNAP_WRITE, offset, CHUNK_BYTES, &op);
	if (err)
		return bench_check(err, "cowsnap_write_begin");
	err = cowsnap_device_write(bed->rig.devices[n % bed->origins], data, offset, CHUNK_BYTES);
	cowsnap_write_end(&op);
	return bench_check(err, "cowsnap_device_write");
}

static int repeated_run(void *arg, struct bench_samples *samples)
{
	struct take_bed *bed = arg;
	struct bench_load load = {
		.options = bed->options, .step = write_step, .arg = bed, .busy = 1};
	int err = 0;
	int load_err = 0;

	if (bed->load)
		bench_load_start(&load);
	for (unsigned i = 0; i < bed->takes && !err; i++)
		err = take_once(bed, samples);
	if (bed->load)
		load_err = bench_load_stop(&load);
	return err ? err : load_err;
}

/* The first take of a new context. */
static int first_run(void *arg, struct bench_samples *samples)
{
	struct take_bed *bed = arg;
	int err = open_bed(bed);
	int close_err;

	if (!err)
		err = take_once(bed, samples);
	close_err = bench_rig_close(&bed->rig);
	return err ? err : close_err;
}

static const struct bench_work first_work = {NULL, first_run, NULL};
static const struct bench_work repeated_work = {take_setup, repeated_run, take_teardown};

static int take_group(
	struct bench_report *report, const struct bench_options *options, size_t origins)
{
	struct bench_group *group = bench_group_add(report, "take", "us for all of them",
		"%zu origin%s", origins, origins > 1 ? "s" : "");
	struct take_bed bed = {
		.options = options,
		.origins = origins,
		.takes = options->quick ? 3 : 20,
	};
	struct take_bed beds[] = {bed, bed, bed, bed};
	struct bench_variant *first;
	struct bench_variant *again;

	beds[2].load = true;
	beds[3].drop = true;
	first = bench_variant_add(group, &first_work, &beds[0], "take-%zu-first", origins);
	again = bench_variant_add(group, &repeated_work, &beds[1], "take-%zu-again", origins);
	bench_variant_add(group, &repeated_work, &beds[2], "take-%zu-while-writing", origins);
	bench_variant_add(group, &repeated_work, &beds[3], "drop-%zu", origins);
	first->target = again->target = bench_at_most(100);
	return bench_group_run(group, options);
}

int bench_take(struct bench_report *report, const struct bench_options *options)
{
	static const size_t counts[] = {1, 100, 1000};
	int err = 0;

	for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]) && !err; i++)
		err = take_group(report, options, counts[i]);
	return err;
}
