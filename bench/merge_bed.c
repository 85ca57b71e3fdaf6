/* SPDX-License-Identifier: MIT */
#include "merge_bed.h"

#include <sched.h>
#include <stdlib.h>

static uint64_t volume_bytes(const struct merge_bed *bed)
{
	return bed->chunks * bed->chunk_bytes;
}

/* Of the store: all chunks, and what a persistent one has beside them. */
static uint64_t store_bytes(const struct merge_bed *bed)
{
	return volume_bytes(bed) + volume_bytes(bed) / 128 + 64 * bed->chunk_bytes;
}

static int open_device(struct merge_bed *bed, unsigned i)
{
	uint64_t bytes = i ? store_bytes(bed) : volume_bytes(bed);
	int err;

	if (!bed->simulated) {
		err = bench_check(cowsnap_device_memory(bed->ctx, bytes, &bed->devices[i]),
			"cowsnap_device_memory");
	} else {
		err = sim_volume_open(&bed->volumes[i], &bed->array, bytes);
		if (!err)
			err = sim_volume_device(&bed->volumes[i], bed->ctx, &bed->devices[i]);
	}
	return err ? err : bench_device_fill(bed->devices[i], bytes);
}

static int open_store(struct merge_bed *bed)
{
	struct cowsnap_transient_options transient = {.size = sizeof(transient),
		.chunk_size_bytes = bed->chunk_bytes,
		.device = bed->devices[1]};
	struct cowsnap_dm_options persistent = {.size = sizeof(persistent),
		.chunk_size_bytes = bed->chunk_bytes,
		.device = bed->devices[1]};

	int err;

	if (!bed->persistent)
		return bench_check(cowsnap_store_transient(bed->ctx, &transient, &bed->store),
			"cowsnap_store_transient");
	/* Where there is something no store is made. */
	err = bench_check(
		cowsnap_device_zero(bed->devices[1], 0, bed->chunk_bytes), "cowsnap_device_zero");
	if (err)
		return err;
	return bench_check(cowsnap_store_dm_create(bed->ctx, &persistent, &bed->store),
		"cowsnap_store_dm_create");
}

static void set_instant(struct merge_bed *bed, bool instant)
{
	if (bed->simulated)
		atomic_store(&bed->array.instant, instant);
}

int merge_bed_open(struct merge_bed *bed)
{
	const struct sim_options sim = {.seed = 1};
	const struct cowsnap_copier_options copier = {.size = sizeof(copier)};
	int err;

	if (bed->users++)
		return 0;
	bed->order = bench_alloc(bed->chunks, sizeof(*bed->order));
	for (uint64_t i = 0; i < bed->chunks; i++)
		bed->order[i] = i;
	if (bed->random)
		bench_shuffle(bed->order, bed->chunks);
	bed->saved = bed->random ? bed->chunks / 2 : bed->chunks;
	err = bench_context_engine(bed->options, COWSNAP_ENGINE_LOOP, 0, &bed->ctx);
	if (!err && bed->simulated)
		err = sim_array_open(&bed->array, &sim);
	set_instant(bed, true); /* what is not measured */
	for (unsigned i = 0; i < 2 && !err; i++)
		err = open_device(bed, i);
	if (!err)
		err = bench_check(cowsnap_origin_open(bed->ctx, bed->devices[0], &bed->origin),
			"cowsnap_origin_open");
	if (!err)
		err = open_store(bed);
	if (!err)
		err = bench_check(cowsnap_copier_create(bed->ctx, &copier, &bed->copier),
			"cowsnap_copier_create");
	return err;
}

int merge_bed_close(struct merge_bed *bed)
{
	int err;

	if (--bed->users)
		return 0;
	cowsnap_copier_destroy(bed->copier);
	err = bench_check(cowsnap_origin_close(bed->origin), "cowsnap_origin_close");
	if (!err)
		err = bench_check(cowsnap_store_close(bed->store), "cowsnap_store_close");
	for (unsigned i = 0; i < 2 && !err; i++) {
		err = bench_check(cowsnap_device_close(bed->devices[i]), "cowsnap_device_close");
		if (!err && bed->simulated)
			sim_volume_close(&bed->volumes[i]);
	}
	if (!err)
		err = bench_check(cowsnap_ctx_destroy(bed->ctx), "cowsnap_ctx_destroy");
	if (!err && bed->simulated)
		sim_array_close(&bed->array);
	free(bed->order);
	return err;
}

int merge_bed_take(struct merge_bed *bed)
{
	struct cowsnap_take_entry entry = {.origin = bed->origin, .store = bed->store};
	int err;

	set_instant(bed, true);
	err = bench_check(cowsnap_take(bed->ctx, NULL, &entry, 1), "cowsnap_take");
	bed->snapshot = entry.snapshot;
	for (uint64_t i = 0; i < bed->saved && !err; i++)
		err = bench_bracket(
			bed->origin, bed->order[i] * bed->chunk_bytes, bed->chunk_bytes);
	set_instant(bed, false);
	return err;
}

int merge_bed_drop(struct merge_bed *bed)
{
	int err = bench_drop(bed->snapshot);

	return err ? err : bench_reclaim(bed->ctx);
}

/* ---- The queue ------------------------------------------------------------------------------- */

int merge_queue_open(struct merge_bed *bed, struct merge_queue *q)
{
	int err =
		bench_check(cowsnap_queue_create(bed->ctx, 512, &q->queue), "cowsnap_queue_create");

	q->bed = bed;
	q->port = !err && bed->simulated ? sim_attach(&bed->array, q->queue) : NULL;
	return err;
}

int merge_queue_close(struct merge_queue *q)
{
	sim_detach(q->port);
	return bench_check(cowsnap_queue_close(q->queue), "cowsnap_queue_close");
}

int merge_queue_poll(struct merge_queue *q)
{
	unsigned done = q->port ? sim_poll(&q->bed->array, q->port) : 0;
	int polled = cowsnap_queue_poll(q->queue);

	/* Others may have work for this CPU. */
	if (!done && !polled)
		sched_yield();
	return polled < 0 ? bench_check(polled, "cowsnap_queue_poll") : 0;
}

static void merged(struct cowsnap_op *op, void *user, int error)
{
	(void)op;
	*(int *)user = error;
}

int merge_all(struct merge_queue *q)
{
	struct cowsnap_snapshot *snapshot = q->bed->snapshot;
	int result = COWSNAP_PENDING, err;
	struct cowsnap_op op;

	err = cowsnap_merge_run_async(snapshot, q->queue, UINT64_MAX, &op, merged, &result);
	if (err != COWSNAP_PENDING)
		return bench_check(err, "cowsnap_merge_run_async");
	for (err = 0; result == COWSNAP_PENDING && !err;)
		err = merge_queue_poll(q);
	return err ? err : bench_check(result, "cowsnap_merge_run_async");
}
