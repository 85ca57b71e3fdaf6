/* SPDX-License-Identifier: MIT
 *
 * Images of persistent stores, written from the format's arithmetic (docs/design/dm-format.md) and
 * not by the library: ten million records take no ten million copies. There is no data behind the
 * records.
 */
#ifndef COWSNAP_BENCH_DM_IMAGE_H
#define COWSNAP_BENCH_DM_IMAGE_H

#include <cowsnap.h>
#include <stdint.h>

#define DM_IMAGE_CHUNK_BYTES UINT64_C(4096)

enum dm_image_order {
	DM_IMAGE_ASCENDING,     /* both chunks rise: one long run */
	DM_IMAGE_RANDOM_ORIGIN, /* what random writes leave: store chunks rise */
	DM_IMAGE_RANDOM_BOTH,   /* store chunks jump too */
};

struct dm_image {
	uint64_t records; /* of origin chunks 0 to records - 1 */
	enum dm_image_order order;
};

uint64_t dm_image_device_bytes(const struct dm_image *image);
uint64_t dm_image_origin_bytes(const struct dm_image *image);
/* Bytes of header and areas. */
uint64_t dm_image_metadata_bytes(const struct dm_image *image);
/* Chunks up to the highest one used. */
uint64_t dm_image_chunks(const struct dm_image *image);
/* Returns 0, or the error of the device, which it has reported. */
int dm_image_write(struct cowsnap_device *device, const struct dm_image *image);
/* Reads header and areas where they are, one after the other. The same return. */
int dm_image_read(struct cowsnap_device *device, const struct dm_image *image);

#endif
