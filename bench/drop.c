/* SPDX-License-Identifier: MIT
 *
 * Scenario drop: what a snapshot with very many exceptions costs at its end, and whom it holds up.
 * The kernel once freed such a table in one go, and other work on that CPU stood still.
 *
 * One thread writes to a small part of the origin all the time, of which the newest snapshot has
 * everything. The older one, with an exception for each chunk, is dropped and reclaimed by another
 * thread, step by step. The devices move no bytes.
 */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define CHUNK_BYTES  COWSNAP_CHUNK_SIZE_MIN
#define STEP_CHUNKS  UINT64_C(4096) /* reclaimed in one call */
#define SMALL_CHUNKS UINT64_C(4096) /* that are written all the time */

enum detail { DROP_US, BRACKET_US, CALM_US };

struct drop_bed {
	const struct bench_options *options;
	struct bench_group *group;
	struct bench_variant *variant;
	uint64_t chunks;
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *volume, *device;
	struct cowsnap_origin *origin;
	struct cowsnap_store *store;
	_Atomic uint64_t longest_ns; /* of the writer's brackets, since it was set to 0 */
	_Atomic uint64_t next;
};

static int null_read(void *user, void *buffer, uint64_t offset, uint64_t length)
{
	(void)user, (void)buffer, (void)offset, (void)length;
	return 0;
}

static int null_write(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	(void)user, (void)buffer, (void)offset, (void)length;
	return 0;
}

static int null_device(struct cowsnap_ctx *ctx, uint64_t bytes, struct cowsnap_device **device)
{
	const struct cowsnap_device_ops ops = {
		.size = sizeof(ops), .read = null_read, .write = null_write};
	const struct cowsnap_device_options options = {
		.size = sizeof(options), .size_bytes = bytes};

	return bench_check(
		cowsnap_device_create(ctx, &ops, &options, NULL, device), "cowsnap_device_create");
}

static int drop_setup(void *arg)
{
	struct drop_bed *bed = arg;
	const struct bench_rig_options store = {.chunk_bytes = CHUNK_BYTES};
	uint64_t bytes = bed->chunks * CHUNK_BYTES;
	int err = bench_context(bed->options, &bed->ctx);

	if (!err)
		err = null_device(bed->ctx, bytes, &bed->volume);
	if (!err)
		err = null_device(bed->ctx, 2 * bytes, &bed->device);
	if (!err)
		err = bench_store_open(bed->ctx, &store, bed->device, &bed->store);
	if (!err)
		err = bench_check(cowsnap_origin_open(bed->ctx, bed->volume, &bed->origin),
			"cowsnap_origin_open");
	return err;
}

static int drop_teardown(void *arg)
{
	struct drop_bed *bed = arg;
	int err = bench_reclaim(bed->ctx);

	if (!err)
		err = bench_check(cowsnap_origin_close(bed->origin), "cowsnap_origin_close");
	if (!err)
		err = bench_check(cowsnap_store_close(bed->store), "cowsnap_store_close");
	if (!err)
		err = bench_check(cowsnap_device_close(bed->volume), "cowsnap_device_close");
	if (!err)
		err = bench_check(cowsnap_device_close(bed->device), "cowsnap_device_close");
	return err ? err : bench_check(cowsnap_ctx_destroy(bed->ctx), "cowsnap_ctx_destroy");
}

static int take(struct drop_bed *bed, struct cowsnap_snapshot **snapshot)
{
	struct cowsnap_take_entry entry = {.origin = bed->origin, .store = bed->store};
	int err = bench_check(cowsnap_take(bed->ctx, NULL, &entry, 1), "cowsnap_take");

	*snapshot = entry.snapshot;
	return err;
}

/* One bracket of the writer; it alone changes the longest upwards. */
static int write_step(void *arg, unsigned index)
{
	struct drop_bed *bed = arg;
	uint64_t at = atomic_fetch_add_explicit(&bed->next, 1, memory_order_relaxed);
	uint64_t began = bench_now_ns(), took;
	int err = bench_bracket(bed->origin, at % SMALL_CHUNKS * CHUNK_BYTES, CHUNK_BYTES);

	(void)index;
	took = bench_now_ns() - began;
	if (took > atomic_load_explicit(&bed->longest_ns, memory_order_relaxed))
		atomic_store_explicit(&bed->longest_ns, took, memory_order_relaxed);
	return err;
}

static double longest_us(struct drop_bed *bed)
{
	return (double)atomic_exchange_explicit(&bed->longest_ns, 0, memory_order_relaxed) / 1000;
}

static int reclaim_all(struct drop_bed *bed)
{
	int more;

	do
		more = cowsnap_reclaim(bed->ctx, STEP_CHUNKS);
	while (more > 0);
	return bench_check(more, "cowsnap_reclaim");
}

/* The calm before is as long as the drop lasts. */
static int measure(
	struct drop_bed *bed, struct cowsnap_snapshot *old, struct bench_samples *samples)
{
	struct timespec calm;
	uint64_t began, dropped, took;
	double busy_us;
	int err;

	longest_us(bed);
	began = bench_now_ns();
	err = bench_drop(old);
	dropped = bench_now_ns() - began;
	if (!err)
		err = reclaim_all(bed);
	took = bench_now_ns() - began;
	busy_us = longest_us(bed);
	calm = (struct timespec){(time_t)(took / 1000000000), (long)(took % 1000000000)};
	nanosleep(&calm, NULL);
	bench_sample(samples, (double)took / 1000);
	if (!bed->group->counts)
		return err;
	bench_sample(&bed->variant->details[DROP_US], (double)dropped / 1000);
	bench_sample(&bed->variant->details[BRACKET_US], busy_us);
	bench_sample(&bed->variant->details[CALM_US], longest_us(bed));
	return err;
}

static int drop_run(void *arg, struct bench_samples *samples)
{
	struct drop_bed *bed = arg;
	struct bench_load load = {
		.options = bed->options, .step = write_step, .arg = bed, .busy = 1};
	struct cowsnap_snapshot *old, *newest;
	int load_err, err = take(bed, &old);

	if (!err)
		err = bench_touch_all(bed->origin, bed->chunks * CHUNK_BYTES);
	if (!err)
		err = take(bed, &newest);
	if (err)
		return err;
	err = bench_touch_all(bed->origin, SMALL_CHUNKS * CHUNK_BYTES);
	bench_load_start(&load);
	if (!err)
		err = measure(bed, old, samples);
	load_err = bench_load_stop(&load);
	if (!err)
		err = bench_drop(newest);
	return err ? err : load_err;
}

int bench_drop_many(struct bench_report *report, const struct bench_options *options)
{
	static const struct bench_work work = {drop_setup, drop_run, drop_teardown};
	struct bench_group *group = bench_group_add(
		report, "drop", "us to the end of reclaiming", "a writer beside it");
	struct drop_bed bed = {.options = options, .group = group};

	bed.chunks = options->ops ? options->ops : UINT64_C(1000000) * (options->quick ? 1 : 10);
	if (bed.chunks < SMALL_CHUNKS)
		bed.chunks = SMALL_CHUNKS;
	group->detail_names[group->detail_count++] = "drop";
	group->detail_names[group->detail_count++] = "longest";
	group->detail_names[group->detail_count++] = "in calm";
	bed.variant = bench_variant_add(
		group, &work, &bed, "drop-%llu-exceptions", (unsigned long long)bed.chunks);
	return bench_group_run(group, options);
}
