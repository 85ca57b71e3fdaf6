/* SPDX-License-Identifier: MIT
 *
 * What the scenarios of cowsnap-bench set up: a context, memory devices, origins, a store.
 */
#include "bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model_device.h"

#define FILL_BYTES (UINT64_C(1) << 20)

static void log_line(void *user, enum cowsnap_log_level level, const char *message)
{
	(void)user;
	/* Warnings are part of a run: stores here are filled to their limit. */
	if (level == COWSNAP_LOG_ERROR)
		fprintf(stderr, "cowsnap-bench: library: %s\n", message);
}

static const struct cowsnap_log bench_log = {.size = sizeof(bench_log), .write = log_line};

int bench_context_engine(const struct bench_options *options, enum cowsnap_engine engine,
	unsigned workers, struct cowsnap_ctx **ctx)
{
	struct cowsnap_ctx_options ctx_options = {
		.size = sizeof(ctx_options),
		.allocator = options->allocator,
		.log = &bench_log,
		.engine = engine,
		.workers = workers,
	};

	return bench_check(cowsnap_ctx_create(&ctx_options, ctx), "cowsnap_ctx_create");
}

int bench_context(const struct bench_options *options, struct cowsnap_ctx **ctx)
{
	return bench_context_engine(options, COWSNAP_ENGINE_INLINE, 0, ctx);
}

int bench_device_fill(struct cowsnap_device *device, uint64_t bytes)
{
	unsigned char *buffer = bench_alloc(1, FILL_BYTES);
	int err = 0;

	memset(buffer, 0x5a, FILL_BYTES);
	for (uint64_t at = 0; at < bytes && !err; at += FILL_BYTES) {
		uint64_t length = bytes - at < FILL_BYTES ? bytes - at : FILL_BYTES;

		err = bench_check(
			cowsnap_device_write(device, buffer, at, length), "cowsnap_device_write");
	}
	free(buffer);
	return err;
}

int bench_file_make(const char *folder, const char *what, uint64_t bytes, char *path, size_t room)
{
	int fd;

	snprintf(path, room, "%s/cowsnap-bench-%s.XXXXXX", folder, what);
	fd = mkstemp(path);
	if (fd < 0)
		return bench_check(-errno, path);
	if (ftruncate(fd, (off_t)bytes) < 0) {
		close(fd);
		return bench_check(-errno, "ftruncate");
	}
	close(fd);
	return 0;
}

int bench_store_open(struct cowsnap_ctx *ctx, const struct bench_rig_options *what,
	struct cowsnap_device *device, struct cowsnap_store **store)
{
	struct cowsnap_transient_options store_options = {
		.size = sizeof(store_options),
		.chunk_size_bytes = what->chunk_bytes,
		.device = device,
		.limit_bytes = what->store_bytes,
		.low_water_bytes = what->chunk_bytes,
	};

	return bench_check(
		cowsnap_store_transient(ctx, &store_options, store), "cowsnap_store_transient");
}

static int open_persistent(struct bench_rig *rig, const struct bench_rig_options *what)
{
	struct cowsnap_dm_options dm_options = {
		.size = sizeof(dm_options),
		.device = rig->store_device,
		.chunk_size_bytes = what->chunk_bytes,
		.low_water_bytes = what->chunk_bytes,
	};

	return bench_check(cowsnap_store_dm_create(rig->ctx, &dm_options, &rig->store),
		"cowsnap_store_dm_create");
}

static int open_store_device(struct bench_rig *rig, const struct bench_rig_options *what)
{
	int err;

	if (what->model)
		return bench_model_device(rig->ctx, what->model, &rig->store_device);
	if (!what->store_device)
		return 0;
	err = cowsnap_device_memory(rig->ctx, what->store_bytes, &rig->store_device);
	if (bench_check(err, "cowsnap_device_memory") < 0)
		return err;
	return bench_device_fill(rig->store_device, what->store_bytes);
}

static int open_origins(struct bench_rig *rig)
{
	int err = 0;

	for (size_t i = 0; i < rig->count && !err; i++) {
		err = cowsnap_device_memory(rig->ctx, rig->origin_bytes, &rig->devices[i]);
		if (bench_check(err, "cowsnap_device_memory") < 0)
			return err;
		err = cowsnap_origin_open(rig->ctx, rig->devices[i], &rig->origins[i]);
		rig->entries[i].origin = rig->origins[i];
		rig->entries[i].store = rig->store;
	}
	return bench_check(err, "cowsnap_origin_open");
}

int bench_rig_open(struct bench_rig *rig, const struct bench_options *options,
	const struct bench_rig_options *what)
{
	int err;

	*rig = (struct bench_rig){.count = what->origins, .origin_bytes = what->origin_bytes};
	rig->devices = bench_alloc(rig->count, sizeof(*rig->devices));
	rig->origins = bench_alloc(rig->count, sizeof(*rig->origins));
	rig->entries = bench_alloc(rig->count, sizeof(*rig->entries));
	err = bench_context(options, &rig->ctx);
	if (!err)
		err = open_store_device(rig, what);
	if (!err && what->persistent)
		err = open_persistent(rig, what);
	else if (!err)
		err = bench_store_open(rig->ctx, what, rig->store_device, &rig->store);
	if (!err)
		err = open_origins(rig);
	return err;
}

static int first_error(int err, int next, const char *what)
{
	bench_check(next, what);
	return err ? err : next;
}

int bench_rig_close(struct bench_rig *rig)
{
	int err = 0;

	for (size_t i = 0; i < rig->count; i++) {
		err = first_error(
			err, cowsnap_origin_close(rig->origins[i]), "cowsnap_origin_close");
		err = first_error(
			err, cowsnap_device_close(rig->devices[i]), "cowsnap_device_close");
	}
	err = first_error(err, cowsnap_store_close(rig->store), "cowsnap_store_close");
	err = first_error(err, cowsnap_device_close(rig->store_device), "cowsnap_device_close");
	err = first_error(err, cowsnap_ctx_destroy(rig->ctx), "cowsnap_ctx_destroy");
	free(rig->devices);
	free(rig->origins);
	free(rig->entries);
	*rig = (struct bench_rig){0};
	return err;
}

int bench_bracket(struct cowsnap_origin *origin, uint64_t offset, uint64_t length)
{
	struct cowsnap_op op;
	int err = cowsnap_write_begin(origin, COWSNAP_WRITE, offset, length, &op);

	if (err)
		return bench_check(err, "cowsnap_write_begin");
	cowsnap_write_end(&op);
	return 0;
}

int bench_touch_all(struct cowsnap_origin *origin, uint64_t bytes)
{
	int err = 0;

	for (uint64_t at = 0; at < bytes && !err; at += FILL_BYTES)
		err = bench_bracket(origin, at, bytes - at < FILL_BYTES ? bytes - at : FILL_BYTES);
	return err;
}

int bench_rig_take(struct bench_rig *rig)
{
	return bench_check(cowsnap_take(rig->ctx, NULL, rig->entries, rig->count), "cowsnap_take");
}

int bench_drop(struct cowsnap_snapshot *snapshot)
{
	int err = bench_check(cowsnap_snapshot_drop(snapshot), "cowsnap_snapshot_drop");

	cowsnap_snapshot_unref(snapshot);
	return err;
}

int bench_reclaim(struct cowsnap_ctx *ctx)
{
	int err;

	do {
		err = cowsnap_reclaim(ctx, UINT64_MAX);
	} while (err > 0);
	return bench_check(err, "cowsnap_reclaim");
}

int bench_rig_drop(struct bench_rig *rig)
{
	int err = 0;

	for (size_t i = 0; i < rig->count; i++) {
		int drop_err = bench_drop(rig->entries[i].snapshot);

		err = err ? err : drop_err;
	}
	return err ? err : bench_reclaim(rig->ctx);
}
