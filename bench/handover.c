/* SPDX-License-Identifier: MIT
 *
 * Scenario handover: how long it takes to hand a persistent store with many records over, in
 * memory, beside opening it.
 */
#include "bench.h"
#include "dm_image.h"
#include "model_device.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* An image, and the state that an owner of it has left. */
struct handover_bed {
	struct bench_options options;
	struct dm_image image;
	struct bench_model model;
	uint8_t *state;
	size_t state_bytes;
	size_t room;
	size_t at;
	unsigned users;
};

enum handover_figure {
	FIGURE_OPEN,
	FIGURE_IMPORT,
	FIGURE_EXPORT,
	FIGURES,
};

struct handover_case {
	struct handover_bed *bed;
	enum handover_figure figure;
};

/* One owner. */
struct owner {
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *device, *origin_device;
	struct cowsnap_take_entry entry;
	struct cowsnap_store *store;
	uint64_t attach_ns;
	uint64_t export_ns;
};

/* ---- The state ------------------------------------------------------------------------------- */

static int keep(void *user, const void *data, size_t bytes)
{
	struct handover_bed *bed = user;

	if (bytes > bed->room - bed->state_bytes) {
		size_t room = (bed->room + bytes) * 2;
		uint8_t *state = realloc(bed->state, room);

		if (!state)
			return -ENOMEM;
		bed->state = state;
		bed->room = room;
	}
	memcpy(bed->state + bed->state_bytes, data, bytes);
	bed->state_bytes += bytes;
	return 0;
}

static int give(void *user, void *data, size_t bytes)
{
	struct handover_bed *bed = user;

	if (bytes > bed->state_bytes - bed->at)
		return -ENODATA;
	memcpy(data, bed->state + bed->at, bytes);
	bed->at += bytes;
	return 0;
}

/* ---- Owners ---------------------------------------------------------------------------------- */

static int owner_make(struct handover_bed *bed, struct owner *o)
{
	int err = bench_context(&bed->options, &o->ctx);

	if (!err)
		err = bench_model_device(o->ctx, &bed->model, &o->device);
	if (err)
		return err;
	err = cowsnap_device_memory(o->ctx, dm_image_origin_bytes(&bed->image), &o->origin_device);
	if (bench_check(err, "cowsnap_device_memory") < 0)
		return err;
	return bench_check(cowsnap_origin_open(o->ctx, o->origin_device, &o->entry.origin),
		"cowsnap_origin_open");
}

static int owner_attach(struct handover_bed *bed, struct owner *o, bool import)
{
	struct cowsnap_dm_options options = {.size = sizeof(options), .device = o->device};
	uint64_t began = bench_timer(&bed->options);
	int err;

	bed->at = 0;
	if (import)
		err = cowsnap_store_dm_import(o->ctx, &options, give, bed, &o->entry, &o->store);
	else
		err = cowsnap_store_dm_open(o->ctx, &options, &o->entry, &o->store);
	o->attach_ns = bench_timer(&bed->options) - began;
	return bench_check(err, import ? "cowsnap_store_dm_import" : "cowsnap_store_dm_open");
}

static int owner_export(struct handover_bed *bed, struct owner *o)
{
	uint64_t began = bench_timer(&bed->options);
	int err;

	bed->state_bytes = 0;
	err = cowsnap_store_export(o->store, 0, keep, bed);
	o->export_ns = bench_timer(&bed->options) - began;
	return bench_check(err, "cowsnap_store_export");
}

static int owner_end(struct owner *o)
{
	int err;

	cowsnap_snapshot_unref(o->entry.snapshot);
	err = bench_check(cowsnap_store_close(o->store), "cowsnap_store_close");
	if (!err)
		err = bench_check(cowsnap_origin_close(o->entry.origin), "cowsnap_origin_close");
	if (!err)
		err = bench_check(cowsnap_device_close(o->origin_device), "cowsnap_device_close");
	if (!err)
		err = bench_check(cowsnap_device_close(o->device), "cowsnap_device_close");
	return err ? err : bench_check(cowsnap_ctx_destroy(o->ctx), "cowsnap_ctx_destroy");
}

/* After a failure things stay as they are: the program ends. */
static int own(struct handover_bed *bed, struct owner *o, bool import, bool export)
{
	int err = owner_make(bed, o);

	if (!err)
		err = owner_attach(bed, o, import);
	if (!err && export)
		err = owner_export(bed, o);
	else if (!err)
		err = bench_check(cowsnap_snapshot_deactivate(o->entry.snapshot),
			"cowsnap_snapshot_deactivate");
	return err ? err : owner_end(o);
}

/* ---- Figures --------------------------------------------------------------------------------- */

static int make_image(struct handover_bed *bed)
{
	struct bench_model_options model = {
		.bytes = dm_image_device_bytes(&bed->image), .small_pages = true};
	struct owner maker = {0};
	struct cowsnap_device *device;
	int err = bench_model_open(&bed->model, &model);

	if (!err)
		err = bench_context(&bed->options, &maker.ctx);
	if (!err)
		err = bench_model_device(maker.ctx, &bed->model, &device);
	if (!err)
		err = dm_image_write(device, &bed->image);
	if (!err)
		err = bench_check(cowsnap_device_close(device), "cowsnap_device_close");
	if (!err)
		err = bench_check(cowsnap_ctx_destroy(maker.ctx), "cowsnap_ctx_destroy");
	return err ? err : own(bed, &(struct owner){0}, false, true);
}

static int setup(void *arg)
{
	struct handover_bed *bed = ((struct handover_case *)arg)->bed;

	return bed->users++ ? 0 : make_image(bed);
}

static int teardown(void *arg)
{
	struct handover_bed *bed = ((struct handover_case *)arg)->bed;

	if (--bed->users)
		return 0;
	bench_model_close(&bed->model);
	free(bed->state);
	bed->state = NULL;
	bed->state_bytes = bed->room = 0;
	return 0;
}

static int run(void *arg, struct bench_samples *samples)
{
	const struct handover_case *c = arg;
	bool export = c->figure == FIGURE_EXPORT;
	struct owner o = {0};
	int err = own(c->bed, &o, c->figure != FIGURE_OPEN, export);

	if (!err)
		bench_sample(samples, (double)(export ? o.export_ns : o.attach_ns) / 1e6);
	return err;
}

static const struct bench_work work = {setup, run, teardown};

static int handover_group(struct bench_report *report, const struct bench_options *options,
	uint64_t records, enum dm_image_order order)
{
	static const char *const orders[] = {"ascending", "random-origin", "random-both"};
	static const char *const figures[FIGURES] = {"open", "import", "export"};
	struct bench_group *group = bench_group_add(report, "handover", "ms for all of it",
		"%llu records %s", (unsigned long long)records, orders[order]);
	struct handover_bed bed = {.options = *options, .image = {records, order}};
	struct handover_case cases[FIGURES];
	struct bench_variant *v[FIGURES];

	for (unsigned i = 0; i < FIGURES; i++) {
		cases[i] = (struct handover_case){&bed, (enum handover_figure)i};
		v[i] = bench_variant_add(group, &work, &cases[i], "%s-%llu-%s", figures[i],
			(unsigned long long)records, orders[order]);
	}
	bench_ratio_add(
		group, "open / import", v[FIGURE_OPEN], v[FIGURE_IMPORT], bench_no_target());
	return bench_group_run(group, options);
}

int bench_handover(struct bench_report *report, const struct bench_options *options)
{
	uint64_t most = options->quick ? UINT64_C(100000) : UINT64_C(10000000);
	int err = 0;

	if (options->ops)
		most = options->ops;
	for (uint64_t records = most / 10; records <= most; records *= 10)
		for (unsigned order = 0; order < 2 && !err; order++)
			err = handover_group(report, options, records, (enum dm_image_order)order);
	return err;
}
