/* SPDX-License-Identifier: MIT
 *
 * The volumes of a stream: 1 to 3 origins and 1 to 3 stores with chunks of 512 bytes to 1 MiB, each
 * on memory, on a file or on a device of the host's.
 */
#include "model/driver.h"
#include "support/test.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A device as a host writes it: bytes, and only the functions that must be there. */
struct host_device {
	uint8_t *bytes;
};

static int host_read(void *user, void *buffer, uint64_t offset, uint64_t length)
{
	const struct host_device *host = user;

	memcpy(buffer, host->bytes + offset, length);
	return 0;
}

static int host_write(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	struct host_device *host = user;

	memcpy(host->bytes + offset, buffer, length);
	return 0;
}

static void host_close(void *user)
{
	struct host_device *host = user;

	free(host->bytes);
	free(host);
}

static struct cowsnap_device *host_open(struct driver *d, uint64_t size_bytes)
{
	const struct cowsnap_device_ops ops = {
		.size = sizeof(ops),
		.read = host_read,
		.write = host_write,
		.close = host_close,
	};
	const struct cowsnap_device_options options = {
		.size = sizeof(options),
		.size_bytes = size_bytes,
		.name = "host",
	};
	struct host_device *host = calloc(1, sizeof(*host));
	struct cowsnap_device *device = NULL;

	host->bytes = calloc(size_bytes, 1);
	want_eq(d, cowsnap_device_create(d->ctx, &ops, &options, host, &device), 0);
	return device;
}

static struct cowsnap_device *file_open(struct driver *d, uint64_t size_bytes)
{
	struct cowsnap_device *device = NULL;
	char path[256];
	const char *folder = getenv("TMPDIR");
	int fd;

	snprintf(path, sizeof(path), "%s/cowsnap-model-XXXXXX", folder ? folder : "/tmp");
	fd = mkstemp(path);
	want(d, fd >= 0);
	want_eq(d, ftruncate(fd, (off_t)size_bytes), 0);
	want_eq(d, cowsnap_device_file(d->ctx, path, NULL, &device), 0);
	unlink(path);
	close(fd);
	return device;
}

static struct cowsnap_device *device_open(struct driver *d, uint64_t size_bytes)
{
	struct cowsnap_device *device = NULL;

	switch (driver_below(d, 4)) {
	case 0:
		device = file_open(d, size_bytes);
		break;
	case 1:
		device = host_open(d, size_bytes);
		break;
	default:
		want_eq(d, cowsnap_device_memory(d->ctx, size_bytes, &device), 0);
		break;
	}
	want_eq(d, cowsnap_device_size(device), size_bytes);
	return device;
}

static void event(void *user, const struct cowsnap_event *event)
{
	struct driver *d = user;
	struct driver_taken *taken;

	want(d, event->store);
	want(d, event->used_bytes <= event->limit_bytes);
	if (event->type != COWSNAP_EVENT_INVALID)
		return;
	want(d, d->writing);
	want(d, event->snapshot);
	taken = cowsnap_snapshot_user(event->snapshot);
	want(d, taken->snapshot == event->snapshot);
	taken->invalid_events++;
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
	uint64_t chunks = chunk_bytes >= 1 << 18 ? 1 + driver_below(d, 2) : 1 + driver_below(d, 90);
	uint64_t size_bytes = chunks * chunk_bytes;

	if (driver_below(d, 3) > 0)
		size_bytes -= driver_below(d, chunk_bytes);
	else if (driver_below(d, 2) > 0)
		size_bytes -= driver_below(d, chunk_bytes / 512) * 512;
	return size_bytes;
}

static void store_open(struct driver *d, unsigned s)
{
	uint64_t chunk_bytes = d->model.chunk_bytes[s];
	struct cowsnap_transient_options options = {
		.size = sizeof(options),
		.chunk_size_bytes = chunk_bytes,
	};
	bool tight = driver_below(d, 2) > 0;
	uint64_t chunks = tight ? 1 + driver_below(d, 100) : UINT64_C(1) << 20;

	d->model.skips[s] = driver_below(d, 3) == 0;
	if (d->model.skips[s])
		options.flags = COWSNAP_TRANSIENT_SKIP_ZEROES;
	d->limit_chunks[s] = chunks;
	d->grow_chunks[s] = UINT64_C(1) << 30;
	options.limit_bytes = chunks * chunk_bytes;
	if (tight && driver_below(d, 2) > 0) {
		uint64_t spare = driver_below(d, 20);

		d->grow_chunks[s] = chunks + spare;
		d->store_device[s] =
			device_open(d, (chunks + spare) * chunk_bytes + driver_below(d, 512));
		options.device = d->store_device[s];
	}
	want_eq(d, cowsnap_store_transient(d->ctx, &options, &d->store[s]), 0);
	want_eq(d, cowsnap_store_chunk_size(d->store[s]), chunk_bytes);
}

void rig_open(struct driver *d)
{
	struct cowsnap_ctx_options options = {
		.size = sizeof(options),
		.copy_inflight_bytes = driver_below(d, 2) ? 0 : 1,
		.copy_job_bytes = driver_below(d, 2) ? 0 : 4096,
		.event = event,
		.event_user = d,
	};
	unsigned origins = 1 + (unsigned)driver_below(d, MODEL_ORIGINS);
	unsigned stores = 1 + (unsigned)driver_below(d, MODEL_STORES);

	model_init(&d->model);
	want_eq(d, cowsnap_ctx_create(&options, &d->ctx), 0);
	for (unsigned s = 0; s < stores; s++)
		model_add_store(&d->model, chunk_size(d));
	for (unsigned o = 0; o < origins; o++) {
		uint64_t size = volume_size(d, d->model.chunk_bytes[driver_below(d, stores)]);

		model_add_origin(&d->model, size);
		d->origin_device[o] = device_open(d, size);
		want_eq(d, cowsnap_origin_open(d->ctx, d->origin_device[o], &d->origin[o]), 0);
		if (size > d->scratch_bytes)
			d->scratch_bytes = size;
	}
	for (unsigned s = 0; s < stores; s++)
		store_open(d, s);
	d->scratch = malloc(d->scratch_bytes);
	want(d, d->scratch);
	d->exact = true;
}

void rig_close(struct driver *d)
{
	for (unsigned s = 0; s < d->model.stores; s++) {
		want_eq(d, cowsnap_store_close(d->store[s]), 0);
		want_eq(d, cowsnap_device_close(d->store_device[s]), 0);
	}
	for (unsigned o = 0; o < d->model.origins; o++) {
		want_eq(d, cowsnap_origin_close(d->origin[o]), 0);
		want_eq(d, cowsnap_device_close(d->origin_device[o]), 0);
	}
	want_eq(d, cowsnap_ctx_destroy(d->ctx), 0);
	free(d->scratch);
	model_fini(&d->model);
}
