/* SPDX-License-Identifier: MIT
 *
 * Scenario uring: first touches of 4 KiB on files that are submitted to, beside what fio gets out
 * of io_uring for the same mix on the same files: of three requests one is a read. Both keep DEPTH
 * requests under way from one thread: ours those of DEPTH writes, each one after the other.
 */
#include "bench.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHUNK_BYTES UINT64_C(4096)
#define DEPTH       32u

struct uring_bed {
	const struct bench_options *options;
	const char *folder;
	uint64_t bytes;
	uint32_t flags;
	unsigned users;
	char origin_path[128];
	char store_path[128];
	uint64_t *order;
	unsigned char *data;
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *origin_device;
	struct cowsnap_device *store_device;
	struct cowsnap_origin *origin;
	struct cowsnap_store *store;
	struct cowsnap_queue *queue;
	/* Of a round. */
	uint64_t next; /* in order */
	unsigned active;
	int error;
};

struct touch {
	struct uring_bed *bed;
	struct cowsnap_op op;
	struct cowsnap_io io;
};

/* ---- Files and what is on them --------------------------------------------------------------- */

static void log_line(void *user, enum cowsnap_log_level level, const char *message)
{
	(void)user;
	/* A store that is filled to its limit is part of a run; a kernel without io_uring is not.
	 */
	if (level == COWSNAP_LOG_ERROR || strstr(message, "no io_uring"))
		fprintf(stderr, "cowsnap-bench: library: %s\n", message);
}

static const struct cowsnap_log uring_log = {.size = sizeof(uring_log), .write = log_line};

static int open_device(struct uring_bed *bed, const char *path, struct cowsnap_device **device)
{
	struct cowsnap_file_options options = {.size = sizeof(options), .flags = bed->flags};
	int err = cowsnap_device_uring(bed->ctx, path, &options, device);

	if (bench_check(err, "cowsnap_device_uring") < 0)
		return err;
	/* What was never written costs more to write. */
	return bench_device_fill(*device, bed->bytes);
}

static int open_all(struct uring_bed *bed)
{
	struct cowsnap_ctx_options ctx_options = {
		.size = sizeof(ctx_options),
		.allocator = bed->options->allocator,
		.log = &uring_log,
		.engine = COWSNAP_ENGINE_LOOP,
	};
	struct bench_rig_options what = {.chunk_bytes = CHUNK_BYTES, .store_bytes = bed->bytes};
	int err = bench_check(cowsnap_ctx_create(&ctx_options, &bed->ctx), "cowsnap_ctx_create");

	if (!err)
		err = open_device(bed, bed->origin_path, &bed->origin_device);
	if (!err)
		err = open_device(bed, bed->store_path, &bed->store_device);
	if (!err)
		err = bench_check(
			cowsnap_origin_open(bed->ctx, bed->origin_device, &bed->origin), "origin");
	if (!err)
		err = bench_store_open(bed->ctx, &what, bed->store_device, &bed->store);
	if (!err)
		err = bench_check(cowsnap_queue_create(bed->ctx, DEPTH, &bed->queue), "queue");
	return err;
}

static int uring_setup(void *arg)
{
	struct uring_bed *bed = arg;
	uint64_t blocks = bed->bytes / CHUNK_BYTES;
	int err;

	if (bed->users++)
		return 0;
	bed->order = bench_alloc(blocks, sizeof(*bed->order));
	bench_shuffle(bed->order, blocks);
	if (posix_memalign((void **)&bed->data, CHUNK_BYTES, CHUNK_BYTES))
		return bench_check(-ENOMEM, "memory");
	memset(bed->data, 1, CHUNK_BYTES);
	err = bench_file_make(
		bed->folder, "origin", bed->bytes, bed->origin_path, sizeof(bed->origin_path));
	if (!err)
		err = bench_file_make(
			bed->folder, "store", bed->bytes, bed->store_path, sizeof(bed->store_path));
	return err ? err : open_all(bed);
}

static int uring_teardown(void *arg)
{
	struct uring_bed *bed = arg;
	int err;

	if (--bed->users)
		return 0;
	err = bench_check(cowsnap_origin_close(bed->origin), "cowsnap_origin_close");
	if (!err)
		err = bench_check(cowsnap_store_close(bed->store), "cowsnap_store_close");
	if (!err)
		err = bench_check(cowsnap_queue_close(bed->queue), "cowsnap_queue_close");
	if (!err)
		err = bench_check(cowsnap_device_close(bed->origin_device), "cowsnap_device_close");
	if (!err)
		err = bench_check(cowsnap_device_close(bed->store_device), "cowsnap_device_close");
	if (!err)
		err = bench_check(cowsnap_ctx_destroy(bed->ctx), "cowsnap_ctx_destroy");
	unlink(bed->origin_path);
	unlink(bed->store_path);
	free(bed->order);
	free(bed->data);
	return err;
}

/* ---- Ours ------------------------------------------------------------------------------------ */

static void begin_next(struct touch *t);

static void fail(struct uring_bed *bed, int error)
{
	if (!bed->error)
		bed->error = error;
	bed->active--;
}

static void written(struct cowsnap_io *io, int error)
{
	struct touch *t = io->user;

	cowsnap_write_end(&t->op);
	if (error)
		fail(t->bed, error);
	else
		begin_next(t);
}

static void admitted(struct cowsnap_op *op, void *user, int error)
{
	struct touch *t = user;

	(void)op;
	if (!error) {
		error = cowsnap_device_submit(t->bed->origin_device, t->bed->queue, &t->io);
		if (error)
			cowsnap_write_end(&t->op);
	}
	if (error)
		fail(t->bed, error);
}

static void begin_next(struct touch *t)
{
	struct uring_bed *bed = t->bed;
	int rc;

	if (bed->error || bed->next == bed->bytes / CHUNK_BYTES) {
		bed->active--;
		return;
	}
	t->io = (struct cowsnap_io){.kind = COWSNAP_IO_WRITE,
		.buffer = bed->data,
		.offset = bed->order[bed->next++] * CHUNK_BYTES,
		.length = CHUNK_BYTES,
		.done = written,
		.user = t};
	rc = cowsnap_write_begin_async(bed->origin, bed->queue, COWSNAP_WRITE, t->io.offset,
		CHUNK_BYTES, &t->op, admitted, t);
	if (rc != COWSNAP_PENDING)
		admitted(&t->op, t, rc);
}

static int touch_all(struct uring_bed *bed)
{
	struct pollfd fd = {.fd = cowsnap_queue_fd(bed->queue), .events = POLLIN};
	struct touch touches[DEPTH];

	bed->next = 0;
	bed->error = 0;
	bed->active = DEPTH;
	for (unsigned i = 0; i < DEPTH; i++) {
		touches[i].bed = bed;
		begin_next(&touches[i]);
	}
	while (bed->active) {
		int n = cowsnap_queue_poll(bed->queue);

		if (n < 0)
			return bench_check(n, "cowsnap_queue_poll");
		if (!n && bed->active)
			poll(&fd, 1, -1);
	}
	return bench_check(bed->error, "a first touch");
}

static int check_copies(struct uring_bed *bed, uint64_t before)
{
	struct cowsnap_stats stats;
	int err = cowsnap_origin_stats(bed->origin, &stats, sizeof(stats));

	if (!err && stats.copied_chunks - before != bed->bytes / CHUNK_BYTES)
		err = -EBADMSG;
	return bench_check(err, "each chunk was to be copied once");
}

static void sample(const struct uring_bed *bed, uint64_t ns, struct bench_samples *samples)
{
	bench_sample(samples, 3 * (double)(bed->bytes / CHUNK_BYTES) * 1e6 / (double)ns);
}

static int ours_run(void *arg, struct bench_samples *samples)
{
	struct uring_bed *bed = arg;
	struct cowsnap_take_entry entry = {.origin = bed->origin, .store = bed->store};
	struct cowsnap_stats before;
	uint64_t start_ns, ns = 0;
	int err = bench_check(
		cowsnap_origin_stats(bed->origin, &before, sizeof(before)), "cowsnap_origin_stats");

	if (!err)
		err = bench_check(cowsnap_take(bed->ctx, NULL, &entry, 1), "cowsnap_take");
	if (err)
		return err;
	start_ns = bench_now_ns();
	err = touch_all(bed);
	ns = bench_now_ns() - start_ns;
	if (!err)
		err = check_copies(bed, before.copied_chunks);
	if (!err)
		err = bench_drop(entry.snapshot);
	if (!err)
		err = bench_reclaim(bed->ctx);
	if (!err)
		sample(bed, ns, samples);
	return err;
}

/* ---- fio ------------------------------------------------------------------------------------- */

/* Requests in a millisecond. Returns: 0 if it cannot be read. */
static double parse_fio(FILE *out)
{
	json_t *report = json_loadf(out, JSON_DISABLE_EOF_CHECK, NULL);
	json_t *job = json_array_get(json_object_get(report, "jobs"), 0);
	double iops = 0;

	if (!json_integer_value(json_object_get(job, "error")))
		iops = json_number_value(json_object_get(json_object_get(job, "read"), "iops")) +
		       json_number_value(json_object_get(json_object_get(job, "write"), "iops"));
	json_decref(report);
	return iops / 1000;
}

static int fio_run(void *arg, struct bench_samples *samples)
{
	struct uring_bed *bed = arg;
	char command[640];
	double rate;
	FILE *out;

	snprintf(command, sizeof(command),
		"fio --name=mix --filename=%s:%s --filesize=%llu --io_size=%llu --rw=randrw "
		"--rwmixread=33 --bs=4k --ioengine=io_uring --iodepth=%u --direct=%d "
		"--invalidate=0 "
		"--output-format=json",
		bed->origin_path, bed->store_path, (unsigned long long)bed->bytes,
		(unsigned long long)(3 * bed->bytes), DEPTH, bed->flags == COWSNAP_FILE_DIRECT);
	out = popen(command, "r");
	if (!out)
		return bench_check(-errno, "popen");
	rate = parse_fio(out);
	if (pclose(out) != 0 || rate <= 0)
		return bench_check(-EIO, command);
	bench_sample(samples, rate);
	return 0;
}

/* ---- Groups ---------------------------------------------------------------------------------- */

static const struct bench_work ours_work = {uring_setup, ours_run, uring_teardown};
static const struct bench_work fio_work = {uring_setup, fio_run, uring_teardown};

int bench_uring(struct bench_report *report, const struct bench_options *options)
{
	const char *memory = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : ".";
	struct uring_bed beds[2] = {
		{.options = options, .folder = memory},
		{.options = options, .folder = ".", .flags = COWSNAP_FILE_DIRECT},
	};
	static const char *const names[] = {"page-cache", "disk-direct"};
	int err = 0;

	for (unsigned i = 0; i < 2 && !err; i++) {
		struct bench_group *group = bench_group_add(report, "uring",
			"thousand requests a second", "%s, 4k-random, depth %u", names[i], DEPTH);
		struct bench_variant *ours, *fio;

		beds[i].bytes = UINT64_C(1) << (options->quick ? 22 : 25);
		ours = bench_variant_add(group, &ours_work, &beds[i], "first-touch-%s", names[i]);
		fio = bench_variant_add(group, &fio_work, &beds[i], "fio-%s", names[i]);
		bench_ratio_add(group, NULL, ours, fio, bench_at_least(0.8));
		err = bench_group_run(group, options);
	}
	return err;
}
