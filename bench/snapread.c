/* SPDX-License-Identifier: MIT
 *
 * Scenario snapread: a sequential read of a snapshot against the read of as many bytes of the
 * device that holds them.
 */
#include "bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES UINT64_C(4096)

enum saved {
	SAVED_NOTHING,
	SAVED_ALL,         /* in the order of the volume, so the store has it in that order */
	SAVED_HALF,        /* every other 64 KiB */
	SAVED_HALF_CHUNKS, /* every other chunk: nothing can be gathered */
};

struct read_bed {
	const struct bench_options *options;
	struct bench_rig rig;
	enum saved saved;
	uint64_t bytes;
	uint64_t request_bytes;
	unsigned char *buffer;
	unsigned users;
};

/* Stamps every chunk with its number and what stands for its time. */
static int stamp(struct read_bed *bed, uint64_t offset, uint64_t length, uint64_t time)
{
	unsigned char *data = bench_alloc(1, length);
	int err;

	for (uint64_t at = 0; at < length; at += CHUNK_BYTES) {
		uint64_t words[2] = {(offset + at) / CHUNK_BYTES, time};

		memcpy(data + at, words, sizeof(words));
	}
	err = cowsnap_device_write(bed->rig.devices[0], data, offset, length);
	free(data);
	return bench_check(err, "cowsnap_device_write");
}

static int overwrite(struct read_bed *bed, uint64_t step, uint64_t length)
{
	struct cowsnap_op op;
	int err = 0;

	for (uint64_t at = 0; at < bed->bytes && !err; at += step) {
		err = cowsnap_write_begin(bed->rig.origins[0], COWSNAP_WRITE, at, length, &op);
		if (bench_check(err, "cowsnap_write_begin") < 0)
			return err;
		err = stamp(bed, at, length, 2);
		cowsnap_write_end(&op);
	}
	return err;
}

/* The frozen image is what it was at the take: else a fast read is worth nothing. */
static int check_image(struct read_bed *bed)
{
	for (uint64_t at = 0; at < bed->bytes; at += CHUNK_BYTES) {
		uint64_t words[2];
		int err = cowsnap_snapshot_read(
			bed->rig.entries[0].snapshot, words, at, sizeof(words));

		if (err)
			return bench_check(err, "cowsnap_snapshot_read");
		if (words[0] == at / CHUNK_BYTES && words[1] == 1)
			continue;
		fprintf(stderr, "cowsnap-bench: wrong content in the snapshot at %llu\n",
			(unsigned long long)at);
		return -EPROTO;
	}
	return 0;
}

static int read_setup(void *arg)
{
	struct read_bed *bed = arg;
	struct bench_rig_options what = {
		.origins = 1,
		.origin_bytes = bed->bytes,
		.chunk_bytes = CHUNK_BYTES,
		.store_bytes = bed->bytes,
		.store_device = true,
	};
	int err;

	if (bed->users++)
		return 0;
	bed->buffer = bench_alloc(1, bed->request_bytes);
	memset(bed->buffer, 1, bed->request_bytes);
	err = bench_rig_open(&bed->rig, bed->options, &what);
	for (uint64_t at = 0; at < bed->bytes && !err; at += UINT64_C(1) << 20)
		err = stamp(bed, at, UINT64_C(1) << 20, 1);
	if (!err)
		err = bench_rig_take(&bed->rig);
	if (!err && bed->saved == SAVED_ALL)
		err = overwrite(bed, UINT64_C(1) << 20, UINT64_C(1) << 20);
	if (!err && bed->saved == SAVED_HALF)
		err = overwrite(bed, UINT64_C(128) << 10, UINT64_C(64) << 10);
	if (!err && bed->saved == SAVED_HALF_CHUNKS)
		err = overwrite(bed, 2 * CHUNK_BYTES, CHUNK_BYTES);
	return err ? err : check_image(bed);
}

static int read_teardown(void *arg)
{
	struct read_bed *bed = arg;
	int err = 0;
	int close_err;

	if (--bed->users)
		return 0;
	if (bed->rig.entries[0].snapshot)
		err = bench_rig_drop(&bed->rig);
	close_err = bench_rig_close(&bed->rig);
	free(bed->buffer);
	return err ? err : close_err;
}

static void sample_rate(const struct read_bed *bed, uint64_t began, struct bench_samples *samples)
{
	double seconds = (double)(bench_timer(bed->options) - began) / 1e9;

	bench_sample(samples, (double)bed->bytes / (1 << 20) / seconds);
}

static int snapshot_run(void *arg, struct bench_samples *samples)
{
	struct read_bed *bed = arg;
	uint64_t began = bench_timer(bed->options);
	int err = 0;

	for (uint64_t at = 0; at < bed->bytes && !err; at += bed->request_bytes)
		err = cowsnap_snapshot_read(
			bed->rig.entries[0].snapshot, bed->buffer, at, bed->request_bytes);
	sample_rate(bed, began, samples);
	return bench_check(err, "cowsnap_snapshot_read");
}

static int device_run(void *arg, struct bench_samples *samples)
{
	struct read_bed *bed = arg;
	struct cowsnap_device *device =
		bed->saved == SAVED_ALL ? bed->rig.store_device : bed->rig.devices[0];
	uint64_t began = bench_timer(bed->options);
	int err = 0;

	for (uint64_t at = 0; at < bed->bytes && !err; at += bed->request_bytes)
		err = cowsnap_device_read(device, bed->buffer, at, bed->request_bytes);
	sample_rate(bed, began, samples);
	return bench_check(err, "cowsnap_device_read");
}

static const struct bench_work snapshot_work = {read_setup, snapshot_run, read_teardown};
static const struct bench_work device_work = {read_setup, device_run, read_teardown};

static int read_group(struct bench_report *report, struct read_bed *bed)
{
	static const char *const names[] = {
		"nothing-saved", "all-saved", "half-saved", "half-saved-by-chunks"};
	const char *request = bed->request_bytes == UINT64_C(1) << 20 ? "1m" : "64k";
	const char *name = names[bed->saved];
	struct bench_group *group =
		bench_group_add(report, "snapread", "MiB/s", "%s, %s requests", name, request);
	struct bench_variant *ours =
		bench_variant_add(group, &snapshot_work, bed, "snapshot-%s-%s", name, request);
	struct bench_variant *bare =
		bench_variant_add(group, &device_work, bed, "device-%s-%s", name, request);

	/* One I/O per chunk is not what the target is about. */
	bench_ratio_add(group, "snapshot / device", ours, bare,
		bed->saved == SAVED_HALF_CHUNKS ? bench_no_target() : bench_at_least(0.95));
	return bench_group_run(group, bed->options);
}

int bench_snapread(struct bench_report *report, const struct bench_options *options)
{
	int err = 0;

	for (int saved = SAVED_NOTHING; saved <= SAVED_HALF_CHUNKS && !err; saved++) {
		for (unsigned shift = 16; shift <= 20 && !err; shift += 4) {
			struct read_bed bed = {
				.options = options,
				.saved = (enum saved)saved,
				.bytes = UINT64_C(1) << (options->quick ? 22 : 28),
				.request_bytes = UINT64_C(1) << shift,
			};

			err = read_group(report, &bed);
		}
	}
	return err;
}
