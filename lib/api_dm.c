/* SPDX-License-Identifier: MIT
 *
 * Persistent stores: making, attaching, and looking at one.
 */
#include <stdio.h>

#include "api_device.h"
#include "api_store.h"
#include "origin.h"
#include "store_dm.h"

static struct cowsnap_device *device_of(const struct cowsnap_dm_options *options)
{
	return options && options->size >= sizeof(*options) ? options->device : NULL;
}

int cowsnap_store_dm_create(struct cowsnap_ctx *ctx, const struct cowsnap_dm_options *options,
	struct cowsnap_store **out)
{
	struct cowsnap_device *device = device_of(options);
	struct cowsnap_store *store = NULL;
	int rc = device ? cs_api_name_device(ctx, device) : 0;

	if (rc)
		return rc;
	rc = cs_store_dm_create(&ctx->base, options, &store);
	return cs_api_store_opened(ctx, rc, device, store, out);
}

/* ---- Attaching ------------------------------------------------------------------------------ */

struct attaching {
	struct cowsnap_store *store;
	struct cowsnap_take_entry *entry;
	struct cs_dm_state *state; /* from another owner; NULL: the records are read */
	bool valid;
};

static int load_map(void *user, struct cowsnap_map *map)
{
	struct attaching *a = user;
	struct cowsnap_snapshot *snapshot = a->entry->snapshot;

	if (!a->state)
		return cs_store_dm_attach(a->store, a->entry->origin->device, map, &a->valid);
	if (snapshot->size_bytes > cs_dm_state_snapshot_bytes(a->state))
		snapshot->size_bytes = cs_dm_state_snapshot_bytes(a->state);
	atomic_store_explicit(
		&snapshot->written, cs_dm_state_written(a->state), memory_order_relaxed);
	return cs_store_dm_attach_state(a->store, a->state, map);
}

/* Another thread's take keeps a store from being closed, for as long as it lasts. */
static void close_store(struct cowsnap_store *store)
{
	struct cowsnap_ctx *ctx = store->handle.ctx;

	while (cowsnap_store_close(store)) {
		cs_turn_wait(ctx, UINT64_MAX);
		cs_turn_end(ctx);
	}
}

static int check_origin(struct cowsnap_ctx *ctx, const struct cowsnap_take_entry *entry)
{
	if (!entry || !entry->origin) {
		cs_log(&ctx->base, COWSNAP_LOG_ERROR, "store not attached: no origin is named");
		return -EINVAL;
	}
	if (cs_handle_closed(&entry->origin->handle))
		return -EBADF;
	return entry->origin->handle.ctx == ctx ? 0 : -EXDEV;
}

/* @state: NULL if there is none. */
static int open_store(struct cowsnap_ctx *ctx, const struct cowsnap_dm_options *options,
	struct cs_dm_state *state, struct cowsnap_take_entry *entry, struct cowsnap_store **out)
{
	struct cowsnap_device *device = device_of(options);
	struct cowsnap_store *store = NULL;
	struct attaching attaching = {.entry = entry, .state = state, .valid = true};
	struct cs_attach attach = {.load = load_map, .user = &attaching};
	int rc = device ? cs_api_name_device(ctx, device) : 0;

	if (rc)
		return rc;
	rc = cs_store_dm_open(&ctx->base, options, entry->origin->device, &store);
	rc = cs_api_store_opened(ctx, rc, device, store, &attaching.store);
	if (rc)
		return rc;
	entry->store = attaching.store;
	rc = cs_take_attach(ctx, entry, &attach);
	if (rc) {
		entry->store = NULL;
		close_store(attaching.store);
		return rc;
	}
	if (!attaching.valid) {
		cs_snapshot_found_invalid(entry->snapshot);
		cs_origin_lost_one(entry->origin);
	}
	*out = attaching.store;
	return 0;
}

int cowsnap_store_dm_open(struct cowsnap_ctx *ctx, const struct cowsnap_dm_options *options,
	struct cowsnap_take_entry *entry, struct cowsnap_store **out)
{
	int rc = check_origin(ctx, entry);

	return rc ? rc : open_store(ctx, options, NULL, entry, out);
}

int cowsnap_store_dm_import(struct cowsnap_ctx *ctx, const struct cowsnap_dm_options *options,
	int (*read)(void *user, void *data, size_t bytes), void *user,
	struct cowsnap_take_entry *entry, struct cowsnap_store **out)
{
	struct cowsnap_device *device = device_of(options);
	struct cs_dm_import from = {.device = device, .read = read, .user = user};
	struct cs_dm_state *state;
	int rc = check_origin(ctx, entry);

	if (!rc && (!read || !device))
		rc = -EINVAL;
	if (!rc && cs_handle_closed(&device->handle))
		rc = -EBADF;
	if (rc)
		return rc;
	/* Nothing is made before all of it has come, and is sound. */
	from.origin = entry->origin->device;
	rc = cs_dm_state_read(&ctx->base, &from, &state);
	if (rc)
		return rc;
	rc = open_store(ctx, options, state, entry, out);
	cs_dm_state_free(state);
	return rc;
}

int cowsnap_store_dm_set_generation(struct cowsnap_store *store, uint64_t generation)
{
	if (cs_handle_closed(&store->handle))
		return -EBADF;
	return cs_store_dm_set_generation(store, generation);
}

/* ---- Looking -------------------------------------------------------------------------------- */

static void fill_report(const struct cs_dm_load *load, struct cowsnap_dm_report *report)
{
	report->device_bytes = cs_dev_size(load->device);
	if (load->fault.error) {
		snprintf(report->fault, sizeof(report->fault), "%s",
			cs_format_dm_name(load->fault.error));
		cs_format_dm_explain(&load->fault, report->reason, sizeof(report->reason));
	}
	if (!load->layout.chunks)
		return;
	report->chunk_size_bytes = load->header.chunk_size_bytes;
	report->valid = load->header.valid;
	report->generation = load->generation;
	report->chunks = load->layout.chunks;
	report->areas = load->layout.areas;
	report->record_limit = load->layout.records;
	report->records = load->records;
	report->highest_chunk = load->highest;
	report->stale_offset = load->stale_offset;
	report->stale_bytes = load->stale_bytes;
}

static int inspect(struct cs_dm_load *load)
{
	struct cs_runs used;
	struct cowsnap_map own;
	int rc = cs_dm_load_header(load);

	if (rc || !load->header.valid)
		return rc;
	cs_runs_init(&used, load->base->alloc);
	cs_map_init(&own, load->base->alloc);
	load->used = &used;
	if (!load->map)
		load->map = &own;
	rc = cs_dm_load_records(load);
	cs_map_fini(&own);
	cs_runs_fini(&used);
	return rc;
}

static int check_inspection(
	const struct cs_base *base, const struct cowsnap_dm_inspect_options *options)
{
	if (options->flags) {
		cs_log(base, COWSNAP_LOG_ERROR, "dm_inspect: unknown flags 0x%x", options->flags);
		return -EINVAL;
	}
	if (options->map && cowsnap_map_count(options->map)) {
		cs_log(base, COWSNAP_LOG_ERROR, "dm_inspect: the map is not empty");
		return -EINVAL;
	}
	return 0;
}

/* For as long as it is looked at, nobody makes an origin or a store of it. */
static int hold_device(struct cowsnap_device *device)
{
	int rc = cs_api_name_device(device->handle.ctx, device);

	if (rc)
		return rc;
	rc = cs_dev_lock(device, COWSNAP_LOCK_SHARED);
	if (rc)
		cs_api_unname_device(device);
	return rc;
}

int cowsnap_dm_inspect(struct cowsnap_device *device,
	const struct cowsnap_dm_inspect_options *host_options, struct cowsnap_dm_report *out,
	size_t size)
{
	struct cowsnap_dm_inspect_options options = {0};
	struct cowsnap_dm_report report = {0};
	struct cs_dm_load load = {0};
	int rc;

	if (cs_handle_closed(&device->handle))
		return -EBADF;
	rc = cs_options_copy(device->base, "inspect options", &options, sizeof(options),
		host_options, sizeof(options));
	if (!rc)
		rc = check_inspection(device->base, &options);
	if (!rc)
		rc = hold_device(device);
	if (rc)
		return rc;
	load.base = device->base;
	load.device = device;
	load.origin_bytes = options.origin_bytes;
	load.map = options.map;
	load.visit = options.visit;
	load.user = options.visit_user;
	rc = inspect(&load);
	cs_dev_lock(device, COWSNAP_LOCK_NONE);
	cs_api_unname_device(device);
	fill_report(&load, &report);
	if (cs_result_copy(out, size, &report, sizeof(report)))
		return -EINVAL;
	return rc;
}
