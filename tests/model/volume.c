/* SPDX-License-Identifier: MIT */
#include "model/volume.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "model/driver.h"

struct volume {
	enum volume_kind kind;
	uint64_t size_bytes;
	uint8_t *bytes; /* of the host's */
	uint64_t reads;
	int fd; /* of a file */
};

/* ---- A device as a host writes it: bytes, and only the functions that must be there ---------- */

static int host_read(void *user, void *buffer, uint64_t offset, uint64_t length)
{
	struct volume *volume = user;

	memcpy(buffer, volume->bytes + offset, length);
	volume->reads++;
	return 0;
}

static int host_write(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	struct volume *volume = user;

	memcpy(volume->bytes + offset, buffer, length);
	return 0;
}

static int host_length(void *user, uint64_t *size_bytes)
{
	const struct volume *volume = user;

	*size_bytes = volume->size_bytes;
	return 0;
}

static struct cowsnap_device *host_open(struct driver *d, struct volume *volume)
{
	const struct cowsnap_device_ops ops = {
		.size = sizeof(ops),
		.read = host_read,
		.write = host_write,
		.length = host_length,
	};
	const struct cowsnap_device_options options = {
		.size = sizeof(options),
		.size_bytes = volume->size_bytes,
		.name = "host",
	};
	struct cowsnap_device *device = NULL;

	want_eq(d, cowsnap_device_create(d->ctx, &ops, &options, volume, &device), 0);
	return device;
}

/* ---- Volumes --------------------------------------------------------------------------------- */

static int make_file_on_disk(void)
{
	char path[256];
	const char *folder = getenv("TMPDIR");
	int fd;

	snprintf(path, sizeof(path), "%s/cowsnap-model-XXXXXX", folder ? folder : "/tmp");
	fd = mkstemp(path);
	if (fd >= 0)
		unlink(path);
	return fd;
}

static int make_file(struct driver *d, uint64_t size_bytes)
{
	/* Records are flushed all the time, which takes a disk long. */
	int fd = d->restarts ? memfd_create("cowsnap-model", MFD_CLOEXEC) : make_file_on_disk();

	want(d, fd >= 0);
	want_eq(d, ftruncate(fd, (off_t)size_bytes), 0);
	return fd;
}

struct volume *volume_create(
	struct driver *d, enum volume_kind kind, uint64_t size_bytes, uint64_t room_bytes)
{
	struct volume *volume = calloc(1, sizeof(*volume));

	volume->kind = kind;
	volume->size_bytes = size_bytes;
	volume->fd = kind == VOLUME_FILE ? make_file(d, size_bytes) : -1;
	if (kind == VOLUME_HOST)
		volume->bytes = calloc(room_bytes, 1);
	return volume;
}

void volume_destroy(struct volume *volume)
{
	if (!volume)
		return;
	if (volume->fd >= 0)
		close(volume->fd);
	free(volume->bytes);
	free(volume);
}

struct cowsnap_device *volume_open(struct driver *d, struct volume *volume)
{
	struct cowsnap_device *device = NULL;
	char path[64];

	switch (volume->kind) {
	case VOLUME_FILE:
		snprintf(path, sizeof(path), "/proc/self/fd/%d", volume->fd);
		want_eq(d, cowsnap_device_file(d->ctx, path, NULL, &device), 0);
		break;
	case VOLUME_HOST:
		device = host_open(d, volume);
		break;
	case VOLUME_MEMORY:
		want_eq(d, cowsnap_device_memory(d->ctx, volume->size_bytes, &device), 0);
		break;
	}
	want_eq(d, cowsnap_device_size(device), volume->size_bytes);
	return device;
}

void volume_grow(struct driver *d, struct volume *volume, uint64_t size_bytes)
{
	if (volume->kind == VOLUME_MEMORY)
		return;
	if (volume->kind == VOLUME_FILE)
		want_eq(d, ftruncate(volume->fd, (off_t)size_bytes), 0);
	volume->size_bytes = size_bytes;
}

uint64_t volume_reads(const struct volume *volume)
{
	return volume->reads;
}
