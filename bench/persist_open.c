/* SPDX-License-Identifier: MIT
 *
 * Scenario open: how long it takes to attach a persistent store with many records, beside a read of
 * its metadata, and what memory that takes.
 */
#include "bench.h"
#include "counting.h"
#include "dm_image.h"
#include "model_device.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PATH_BYTES         64
#define RECORDS_PER_SECOND 5e6

/* An image and where it is: in memory that outlives contexts, or in a file that has no name. */
struct open_bed {
	struct bench_options options; /* with the counting allocator */
	struct bench_counting counting;
	struct dm_image image;
	bool file;
	int fd;
	struct bench_model model;
	struct cowsnap_ctx *ctx; /* for the plain reads */
	struct cowsnap_device *device;
	unsigned users;
};

enum open_figure {
	FIGURE_OPEN,    /* ms */
	FIGURE_READ,    /* ms */
	FIGURE_RATE,    /* ms that the required rate of records takes */
	FIGURE_ALLOWED, /* ms: the longer of that and twice the read */
	FIGURE_PEAK,    /* bytes for a record, above what the context had before */
	FIGURE_AFTER,
};

struct open_case {
	struct open_bed *bed;
	enum open_figure figure;
};

/* What one open took. */
struct open_cost {
	uint64_t ns;
	uint64_t peak_bytes;
	uint64_t after_bytes;
};

static int unnamed_file(struct open_bed *bed)
{
	const char *folder = getenv("TMPDIR");
	char path[4096];

	snprintf(path, sizeof(path), "%s/cowsnap-bench.XXXXXX", folder ? folder : "/tmp");
	bed->fd = mkstemp(path);
	if (bed->fd < 0)
		return bench_check(-errno, path);
	unlink(path);
	if (ftruncate(bed->fd, (off_t)dm_image_device_bytes(&bed->image)))
		return bench_check(-errno, "the length of a temporary file");
	return 0;
}

static int open_device(
	struct open_bed *bed, struct cowsnap_ctx *ctx, struct cowsnap_device **device)
{
	char path[PATH_BYTES];

	if (!bed->file)
		return bench_model_device(ctx, &bed->model, device);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", bed->fd);
	return bench_check(cowsnap_device_file(ctx, path, NULL, device), "cowsnap_device_file");
}

static int make_image(struct open_bed *bed)
{
	struct bench_model_options model = {
		.bytes = dm_image_device_bytes(&bed->image),
		/* A huge page for each area would be most of the store. */
		.small_pages = true,
	};
	int err = bed->file ? unnamed_file(bed) : bench_model_open(&bed->model, &model);

	if (!err)
		err = bench_context(&bed->options, &bed->ctx);
	if (!err)
		err = open_device(bed, bed->ctx, &bed->device);
	return err ? err : dm_image_write(bed->device, &bed->image);
}

static int open_setup(void *arg)
{
	struct open_bed *bed = ((struct open_case *)arg)->bed;

	return bed->users++ ? 0 : make_image(bed);
}

static int open_teardown(void *arg)
{
	struct open_bed *bed = ((struct open_case *)arg)->bed;
	int err;

	if (--bed->users)
		return 0;
	err = bench_check(cowsnap_device_close(bed->device), "cowsnap_device_close");
	if (!err)
		err = bench_check(cowsnap_ctx_destroy(bed->ctx), "cowsnap_ctx_destroy");
	if (!err)
		bench_model_close(&bed->model);
	if (bed->fd >= 0)
		close(bed->fd);
	return err;
}

/* ---- One open ------------------------------------------------------------------------------- */

/* Every record is there, or the figure is not that of an open. */
static int check_store(const struct open_bed *bed, struct cowsnap_store *store)
{
	struct cowsnap_store_usage usage;
	int err = cowsnap_store_usage(store, &usage, sizeof(usage));

	if (bench_check(err, "cowsnap_store_usage") < 0)
		return err;
	if (usage.used_bytes == bed->image.records * DM_IMAGE_CHUNK_BYTES)
		return 0;
	fprintf(stderr, "cowsnap-bench: the store has %llu bytes, not those of %llu records\n",
		(unsigned long long)usage.used_bytes, (unsigned long long)bed->image.records);
	return -EPROTO;
}

static int detach(struct cowsnap_take_entry *entry, struct cowsnap_store *store)
{
	int err = bench_check(
		cowsnap_snapshot_deactivate(entry->snapshot), "cowsnap_snapshot_deactivate");

	cowsnap_snapshot_unref(entry->snapshot);
	if (!err)
		err = bench_check(cowsnap_store_close(store), "cowsnap_store_close");
	return err;
}

static int attach(struct open_bed *bed, struct cowsnap_ctx *ctx, struct cowsnap_device *device,
	struct cowsnap_origin *origin, struct open_cost *cost)
{
	struct cowsnap_dm_options dm_options = {.size = sizeof(dm_options), .device = device};
	struct cowsnap_take_entry entry = {.origin = origin};
	uint64_t bytes_before = bench_counting_bytes(&bed->counting);
	struct cowsnap_store *store;
	uint64_t began;
	int err;

	bench_counting_peak(&bed->counting);
	began = bench_timer(&bed->options);
	err = cowsnap_store_dm_open(ctx, &dm_options, &entry, &store);
	cost->ns = bench_timer(&bed->options) - began;
	if (bench_check(err, "cowsnap_store_dm_open") < 0)
		return err;
	cost->after_bytes = bench_counting_bytes(&bed->counting) - bytes_before;
	cost->peak_bytes = bench_counting_peak(&bed->counting) - bytes_before;
	err = check_store(bed, store);
	return err ? err : detach(&entry, store);
}

static int with_origin(struct open_bed *bed, struct cowsnap_ctx *ctx, struct open_cost *cost)
{
	struct cowsnap_device *device;
	struct cowsnap_device *origin_device;
	struct cowsnap_origin *origin;
	int err = open_device(bed, ctx, &device);

	if (err)
		return err;
	err = cowsnap_device_memory(ctx, dm_image_origin_bytes(&bed->image), &origin_device);
	if (bench_check(err, "cowsnap_device_memory") < 0)
		return err;
	err = cowsnap_origin_open(ctx, origin_device, &origin);
	if (bench_check(err, "cowsnap_origin_open") < 0)
		return err;
	err = attach(bed, ctx, device, origin, cost);
	if (!err)
		err = bench_check(cowsnap_origin_close(origin), "cowsnap_origin_close");
	if (!err)
		err = bench_check(cowsnap_device_close(origin_device), "cowsnap_device_close");
	if (!err)
		err = bench_check(cowsnap_device_close(device), "cowsnap_device_close");
	return err;
}

/* In a context of its own. After a failure things stay as they are: the program ends. */
static int open_once(struct open_bed *bed, struct open_cost *cost)
{
	struct cowsnap_ctx *ctx;
	int err = bench_context(&bed->options, &ctx);

	if (!err)
		err = with_origin(bed, ctx, cost);
	if (!err)
		err = bench_check(cowsnap_ctx_destroy(ctx), "cowsnap_ctx_destroy");
	return err;
}

/* ---- Figures -------------------------------------------------------------------------------- */

static int read_ms(struct open_bed *bed, double *ms)
{
	uint64_t began = bench_timer(&bed->options);
	int err = dm_image_read(bed->device, &bed->image);

	*ms = (double)(bench_timer(&bed->options) - began) / 1e6;
	return err;
}

static int read_run(void *arg, struct bench_samples *samples)
{
	const struct open_case *c = arg;
	double rate_ms = (double)c->bed->image.records / RECORDS_PER_SECOND * 1e3;
	double read;
	int err = read_ms(c->bed, &read);

	if (err)
		return err;
	if (c->figure == FIGURE_READ)
		bench_sample(samples, read);
	else if (c->figure == FIGURE_RATE)
		bench_sample(samples, rate_ms);
	else
		bench_sample(samples, 2 * read > rate_ms ? 2 * read : rate_ms);
	return 0;
}

static int open_run(void *arg, struct bench_samples *samples)
{
	const struct open_case *c = arg;
	double records = (double)c->bed->image.records;
	struct open_cost cost = {0};
	int err = open_once(c->bed, &cost);

	if (err)
		return err;
	if (c->figure == FIGURE_OPEN)
		bench_sample(samples, (double)cost.ns / 1e6);
	else if (c->figure == FIGURE_PEAK)
		bench_sample(samples, (double)cost.peak_bytes / records);
	else
		bench_sample(samples, (double)cost.after_bytes / records);
	return 0;
}

static const struct bench_work read_work = {open_setup, read_run, open_teardown};
static const struct bench_work open_work = {open_setup, open_run, open_teardown};

/* ---- Groups --------------------------------------------------------------------------------- */

static const char *const order_names[] = {"ascending", "random-origin", "random-both"};

static void bed_init(struct open_bed *bed, const struct bench_options *options, bool file,
	enum dm_image_order order)
{
	*bed = (struct open_bed){.options = *options, .file = file, .fd = -1};
	bed->image.records = options->quick ? UINT64_C(100000) : UINT64_C(10000000);
	if (options->ops)
		bed->image.records = options->ops;
	bed->image.order = order;
	bench_counting_init(&bed->counting, options->allocator);
	bed->options.allocator = &bed->counting.table;
}

static int time_group(struct bench_report *report, const struct bench_options *options, bool file,
	enum dm_image_order order)
{
	const char *place = file ? "page-cache" : "memory";
	struct bench_group *group = bench_group_add(
		report, "open", "ms for all of it", "%s, records %s", place, order_names[order]);
	struct open_bed bed;
	struct open_case cases[] = {
		{&bed, FIGURE_OPEN},
		{&bed, FIGURE_READ},
		{&bed, FIGURE_RATE},
		{&bed, FIGURE_ALLOWED},
	};
	static const char *const names[] = {"open", "read", "5M-records-a-second", "allowed"};
	struct bench_variant *v[4];

	bed_init(&bed, options, file, order);
	for (size_t i = 0; i < 4; i++)
		v[i] = bench_variant_add(group, i ? &read_work : &open_work, &cases[i], "%s-%s-%s",
			names[i], place, order_names[order]);
	bench_ratio_add(group, "read / open", v[1], v[0], bench_no_target());
	bench_ratio_add(group, "5 M records a second / open", v[2], v[0], bench_no_target());
	bench_ratio_add(
		group, "the longer of these times allowed / open", v[3], v[0], bench_at_least(1));
	return bench_group_run(group, options);
}

/* The same each time, so once is enough. */
static int memory_group(
	struct bench_report *report, const struct bench_options *options, enum dm_image_order order)
{
	struct bench_group *group = bench_group_add(
		report, "open", "bytes for one record", "memory, records %s", order_names[order]);
	struct bench_options once = *options;
	struct open_bed bed;
	struct open_case cases[] = {{&bed, FIGURE_PEAK}, {&bed, FIGURE_AFTER}};
	struct bench_variant *v;
	double bits;

	bed_init(&bed, options, false, order);
	bits = (double)dm_image_chunks(&bed.image) / 8 / (double)bed.image.records;
	v = bench_variant_add(group, &open_work, &cases[0], "peak-%s", order_names[order]);
	v->target = bench_at_most(10 + bits);
	v = bench_variant_add(group, &open_work, &cases[1], "after-%s", order_names[order]);
	v->target = bench_at_most(10 + bits);
	once.repeat = 1;
	return bench_group_run(group, &once);
}

int bench_open(struct bench_report *report, const struct bench_options *options)
{
	int err = 0;

	for (unsigned file = 0; file < 2; file++)
		for (unsigned order = 0; order < 3 && !err; order++)
			err = time_group(report, options, file, (enum dm_image_order)order);
	for (unsigned order = 0; order < 3 && !err; order++)
		err = memory_group(report, options, (enum dm_image_order)order);
	return err;
}
