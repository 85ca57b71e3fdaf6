/* SPDX-License-Identifier: MIT
 *
 * Writers that touch each block first. All memory has been written before, so that no page fault is
 * left in what is timed.
 */
#include "writers.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int writers_open(struct writers *w)
{
	uint64_t blocks = w->threads * w->writes;
	struct bench_rig_options what = {
		.origins = 1,
		.chunk_bytes = WRITERS_CHUNK_BYTES,
		.model = &w->model,
		.persistent = w->persistent,
	};
	uint64_t records;
	int err;

	w->volume_bytes = blocks * w->write_bytes;
	records = w->volume_bytes / WRITERS_CHUNK_BYTES;
	what.origin_bytes = w->volume_bytes;
	what.store_bytes = w->volume_bytes; /* of a transient store */
	/* One more stripe than is needed: nothing here is about stores that are nearly full. */
	w->device.bytes =
		(writers_format_chunks(records) + WRITERS_AREA_RECORDS + 1) * WRITERS_CHUNK_BYTES;
	w->order = bench_alloc(blocks, sizeof(*w->order));
	w->data = bench_alloc(1, w->write_bytes);
	memset(w->data, 1, w->write_bytes);
	if (w->write_bytes == WRITERS_CHUNK_BYTES)
		bench_shuffle(w->order, blocks);
	else
		for (uint64_t i = 0; i < blocks; i++)
			w->order[i] = i;
	err = bench_model_open(&w->model, &w->device);
	if (err)
		return err;
	memset(w->model.pages, 0, w->device.bytes);
	err = bench_rig_open(&w->rig, w->options, &what);
	if (err)
		return err;
	return bench_device_fill(w->rig.devices[0], w->volume_bytes);
}

int writers_close(struct writers *w)
{
	int err = 0;

	if (w->rig.ctx)
		err = bench_rig_close(&w->rig);
	/* A device that could not be closed still names the memory. */
	if (!err)
		bench_model_close(&w->model);
	free(w->order);
	free(w->data);
	return err;
}

static int write_thread(void *arg, unsigned index)
{
	const struct writers *w = arg;
	struct cowsnap_origin *origin = w->rig.origins[0];
	struct cowsnap_device *device = w->rig.devices[0];
	struct cowsnap_op op;
	int err = 0;

	for (uint64_t i = index * w->writes; i < (index + 1) * w->writes && !err; i++) {
		uint64_t offset = w->order[i] * w->write_bytes;

		err = cowsnap_write_begin(origin, COWSNAP_WRITE, offset, w->write_bytes, &op);
		if (err)
			break;
		err = cowsnap_device_write(device, w->data, offset, w->write_bytes);
		cowsnap_write_end(&op);
	}
	return bench_check(err, "bracketed write");
}

static int copied_chunks(const struct writers *w, uint64_t *chunks)
{
	struct cowsnap_stats stats;
	int err = cowsnap_origin_stats(w->rig.origins[0], &stats, sizeof(stats));

	*chunks = stats.copied_chunks;
	return bench_check(err, "cowsnap_origin_stats");
}

/* Every chunk was saved exactly once, or the figure is not that of a first touch. */
static int check_records(const struct writers *w, const struct writers_round *round)
{
	if (round->records == w->volume_bytes / WRITERS_CHUNK_BYTES)
		return 0;
	fprintf(stderr, "cowsnap-bench: %llu chunks were saved, not %llu\n",
		(unsigned long long)round->records,
		(unsigned long long)(w->volume_bytes / WRITERS_CHUNK_BYTES));
	return -EPROTO;
}

int writers_run(struct writers *w, struct writers_round *round)
{
	struct bench_model_counts before;
	uint64_t records_before;
	int err = copied_chunks(w, &records_before);

	if (!err)
		err = bench_rig_take(&w->rig);
	if (err)
		return err;
	before = bench_model_counts(&w->model);
	err = bench_threads(w->options, w->threads, write_thread, w, &round->ns);
	round->device = bench_model_counts(&w->model);
	round->device.flushes -= before.flushes;
	round->device.written_bytes -= before.written_bytes;
	round->writes = w->threads * w->writes;
	if (!err)
		err = copied_chunks(w, &round->records);
	round->records -= records_before;
	if (!err)
		err = check_records(w, round);
	return err ? err : bench_rig_drop(&w->rig);
}
