/* SPDX-License-Identifier: MIT
 *
 * Requests to the live volume. Each write is in its bracket. While a snapshot is merged into the
 * volume the file alone is neither the old image nor the new one, and the library reads and writes.
 */
#include "volume.h"

#include <errno.h>

int volume_read(struct volume *volume, void *buffer, uint64_t offset, uint64_t length)
{
	if (atomic_load(&volume->merging))
		return cowsnap_origin_read(volume->origin, buffer, offset, length);
	return cowsnap_device_read(volume->device, buffer, offset, length);
}

static int change(struct volume *volume, enum cowsnap_write_kind kind, const void *buffer,
	uint64_t offset, uint64_t length)
{
	switch (kind) {
	case COWSNAP_WRITE:
		return cowsnap_device_write(volume->device, buffer, offset, length);
	case COWSNAP_DISCARD:
		return cowsnap_device_discard(volume->device, offset, length);
	case COWSNAP_WRITE_ZEROES:
		return cowsnap_device_zero(volume->device, offset, length);
	}
	return -EINVAL;
}

int volume_write(struct volume *volume, enum cowsnap_write_kind kind, const void *buffer,
	uint64_t offset, uint64_t length)
{
	struct cowsnap_op op;
	int error;

	if (atomic_load(&volume->merging)) {
		error = cowsnap_origin_write(volume->origin, kind, buffer, offset, length);
	} else {
		error = cowsnap_write_begin(volume->origin, kind, offset, length, &op);
		if (error != 0)
			return error;
		error = change(volume, kind, buffer, offset, length);
		cowsnap_write_end(&op);
	}
	if (kind != COWSNAP_WRITE)
		atomic_store_explicit(&volume->has_holes, true, memory_order_relaxed);
	return error;
}

int volume_flush(struct volume *volume)
{
	if (atomic_load(&volume->merging))
		return cowsnap_origin_flush(volume->origin);
	return cowsnap_device_flush(volume->device);
}
