/* SPDX-License-Identifier: MIT
 *
 * The rig of a stream: 1 to 3 origins and 1 to 3 stores with chunks of 512 bytes to 1 MiB, each on
 * memory, on a file or on a device of the host's. In half of the streams some stores are
 * persistent, and all of it can be closed and opened again.
 */
#include "model/driver.h"

#include <errno.h>
#include <stdlib.h>

#include "model/volume.h"

#define VOLUME_BYTES UINT64_C(393216)

static void event(void *user, const struct cowsnap_event *event)
{
	struct driver *d = user;
	struct driver_taken *taken;

	want(d, event->store);
	want(d, event->used_bytes <= event->limit_bytes);
	if (event->type == COWSNAP_EVENT_LOW_WATER || event->type == COWSNAP_EVENT_FULL)
		return;
	want(d, d->writing);
	want(d, event->snapshot);
	taken = cowsnap_snapshot_user(event->snapshot);
	want(d, taken->snapshot == event->snapshot);
	taken->invalid_events += event->type == COWSNAP_EVENT_INVALID;
	taken->merged_events += event->type == COWSNAP_EVENT_MERGED;
	taken->merge_failures += event->type == COWSNAP_EVENT_MERGE_FAILED;
	if (event->type == COWSNAP_EVENT_INVALID)
		taken->event_reason = event->reason;
}

static uint64_t chunk_size(struct driver *d)
{
	static const unsigned shifts[] = {9, 9, 10, 11, 12, 12, 12, 13, 14, 16, 18, 20};

	return UINT64_C(1) << shifts[driver_below(d, sizeof(shifts) / sizeof(shifts[0]))];
}

/* Mostly no multiple of any chunk, sometimes smaller than one. */
static uint64_t volume_size(struct driver *d, uint64_t chunk_bytes)
{
	uint64_t most = VOLUME_BYTES / chunk_bytes < 90 ? VOLUME_BYTES / chunk_bytes + 1 : 90;
	uint64_t chunks = 1 + driver_below(d, most);
	uint64_t size_bytes = chunks * chunk_bytes;

	if (driver_below(d, 3) > 0)
		size_bytes -= driver_below(d, chunk_bytes);
	else if (driver_below(d, 2) > 0)
		size_bytes -= driver_below(d, chunk_bytes / 512) * 512;
	return size_bytes;
}

static enum volume_kind choose_kind(struct driver *d)
{
	static const enum volume_kind kinds[] = {
		VOLUME_FILE, VOLUME_HOST, VOLUME_MEMORY, VOLUME_MEMORY};

	return kinds[driver_below(d, d->restarts ? 2 : 4)];
}

/* ---- Stores ---------------------------------------------------------------------------------- */

static void transient_open(struct driver *d, unsigned s)
{
	uint64_t chunk_bytes = d->model.chunk_bytes[s];
	struct cowsnap_transient_options options = {
		.size = sizeof(options),
		.chunk_size_bytes = chunk_bytes,
	};
	bool tight = driver_below(d, 2) > 0;
	uint64_t chunks = tight ? 1 + driver_below(d, 100) : 8192, size;

	d->model.skips[s] = driver_below(d, 3) == 0;
	if (d->model.skips[s])
		options.flags = COWSNAP_TRANSIENT_SKIP_ZEROES;
	d->limit_chunks[s] = chunks;
	d->grow_chunks[s] = UINT64_C(1) << 30;
	options.limit_bytes = chunks * chunk_bytes;
	if (tight && driver_below(d, 2) > 0) {
		uint64_t spare = driver_below(d, 20);

		d->grow_chunks[s] = chunks + spare;
		size = (chunks + spare) * chunk_bytes + driver_below(d, 512);
		d->store_volume[s] = volume_create(d, choose_kind(d), size, size);
		d->store_device[s] = volume_open(d, d->store_volume[s]);
		options.device = d->store_device[s];
	}
	want_eq(d, cowsnap_store_transient(d->ctx, &options, &d->store[s]), 0);
}

static struct cowsnap_dm_options dm_options(const struct driver *d, unsigned s)
{
	return (struct cowsnap_dm_options){
		.size = sizeof(struct cowsnap_dm_options),
		.device = d->store_device[s],
		.chunk_size_bytes = d->model.chunk_bytes[s],
	};
}

static void dm_create(struct driver *d, unsigned s)
{
	uint64_t size =
		(3 + driver_below(d, driver_below(d, 2) ? 60 : 400)) * d->model.chunk_bytes[s];
	struct cowsnap_dm_options options;

	if (!d->store_volume[s])
		d->store_volume[s] = volume_create(d, choose_kind(d), size, size);
	if (!d->store_device[s])
		d->store_device[s] = volume_open(d, d->store_volume[s]);
	options = dm_options(d, s);
	options.flags = COWSNAP_DM_OVERWRITE;
	want_eq(d, cowsnap_store_dm_create(d->ctx, &options, &d->store[s]), 0);
}

/* What fits on the device is the limit. */
static void dm_opened(struct driver *d, unsigned s)
{
	struct cowsnap_store_usage usage;

	want_eq(d, cowsnap_store_usage(d->store[s], &usage, sizeof(usage)), 0);
	d->limit_chunks[s] = d->grow_chunks[s] = usage.limit_bytes / d->model.chunk_bytes[s];
}

static void store_open(struct driver *d, unsigned s)
{
	if (d->model.records[s])
		dm_create(d, s);
	else
		transient_open(d, s);
	if (d->model.records[s])
		dm_opened(d, s);
	want_eq(d, cowsnap_store_chunk_size(d->store[s]), d->model.chunk_bytes[s]);
}

static void store_close(struct driver *d, unsigned s)
{
	want_eq(d, cowsnap_store_close(d->store[s]), 0);
	want_eq(d, cowsnap_device_close(d->store_device[s]), 0);
	d->store_device[s] = NULL;
	if (d->model.records[s])
		return;
	volume_destroy(d->store_volume[s]);
	d->store_volume[s] = NULL;
}

int rig_attach(struct driver *d, unsigned s, struct cowsnap_take_entry *entry,
	int (*read)(void *user, void *data, size_t bytes), void *user)
{
	struct cowsnap_dm_options options;
	int rc;

	if (!d->store_device[s])
		d->store_device[s] = volume_open(d, d->store_volume[s]);
	options = dm_options(d, s);
	rc = read ? cowsnap_store_dm_import(d->ctx, &options, read, user, entry, &d->store[s])
		  : cowsnap_store_dm_open(d->ctx, &options, entry, &d->store[s]);
	if (!rc)
		dm_opened(d, s);
	return rc;
}

/* ---- Origins --------------------------------------------------------------------------------- */

static void origin_create(struct driver *d, unsigned o)
{
	uint64_t chunk_bytes = d->model.chunk_bytes[driver_below(d, d->model.stores)];
	uint64_t size = volume_size(d, chunk_bytes), room = size + driver_below(d, 5 * chunk_bytes);

	model_add_origin(&d->model, size, room);
	d->volume[o] = volume_create(d, choose_kind(d), size, room);
	d->asks[o] = driver_below(d, 4) == 0;
	if (room > d->scratch_bytes)
		d->scratch_bytes = room;
}

static void origin_open(struct driver *d, unsigned o)
{
	const struct cowsnap_preimage preimage = {.get = write_tell, .user = d};

	d->origin_device[o] = volume_open(d, d->volume[o]);
	want_eq(d, cowsnap_origin_open(d->ctx, d->origin_device[o], &d->origin[o]), 0);
	if (d->asks[o])
		want_eq(d, cowsnap_origin_set_preimage(d->origin[o], &preimage), 0);
}

bool rig_grow(struct driver *d, unsigned o, uint64_t size_bytes)
{
	volume_grow(d, d->volume[o], size_bytes);
	want_eq(d, cowsnap_device_refresh(d->origin_device[o]), 0);
	return cowsnap_device_size(d->origin_device[o]) >= size_bytes;
}

uint64_t rig_reads(const struct driver *d, unsigned o)
{
	return volume_reads(d->volume[o]);
}

/* ---- All of it ------------------------------------------------------------------------------- */

void rig_begin(struct driver *d)
{
	struct cowsnap_ctx_options options = {
		.size = sizeof(options),
		.copy_inflight_bytes = driver_below(d, 2) ? 0 : 1,
		.copy_job_bytes = driver_below(d, 2) ? 0 : 4096,
		.event = event,
		.event_user = d,
	};

	want_eq(d, cowsnap_ctx_create(&options, &d->ctx), 0);
	want_eq(d, cowsnap_queue_create(d->ctx, 4, &d->queue), 0);
	for (unsigned o = 0; o < d->model.origins; o++)
		origin_open(d, o);
	d->exact = true;
	d->copied = 0;
}

void rig_open_stores(struct driver *d, const bool * not )
{
	for (unsigned s = 0; s < d->model.stores; s++) {
		if (!not || !not [s])
			store_open(d, s);
	}
}

void rig_end(struct driver *d)
{
	for (unsigned s = 0; s < d->model.stores; s++)
		store_close(d, s);
	for (unsigned o = 0; o < d->model.origins; o++) {
		want_eq(d, cowsnap_origin_close(d->origin[o]), 0);
		want_eq(d, cowsnap_device_close(d->origin_device[o]), 0);
	}
	want_eq(d, cowsnap_queue_close(d->queue), 0);
	want_eq(d, cowsnap_ctx_destroy(d->ctx), 0);
}

void rig_open(struct driver *d)
{
	unsigned origins = 1 + (unsigned)driver_below(d, MODEL_ORIGINS);
	unsigned stores = 1 + (unsigned)driver_below(d, MODEL_STORES);

	model_init(&d->model);
	d->restarts = driver_below(d, 2) == 0;
	for (unsigned s = 0; s < stores; s++) {
		uint64_t chunk_bytes = chunk_size(d);
		bool records =
			d->restarts && chunk_bytes <= 65536 && (s == 0 || driver_below(d, 2) > 0);

		model_add_store(&d->model, chunk_bytes);
		d->model.records[s] = records;
	}
	for (unsigned o = 0; o < origins; o++)
		origin_create(d, o);
	d->scratch = malloc(d->scratch_bytes);
	want(d, d->scratch);
	rig_begin(d);
	rig_open_stores(d, NULL);
}

void rig_close(struct driver *d)
{
	rig_end(d);
	for (unsigned s = 0; s < d->model.stores; s++)
		volume_destroy(d->store_volume[s]);
	for (unsigned o = 0; o < d->model.origins; o++)
		volume_destroy(d->volume[o]);
	free(d->scratch);
	model_fini(&d->model);
}
