/* SPDX-License-Identifier: MIT
 *
 * Writes and reads the metadata of images.
 */
#include "dm_image.h"

#include <stdlib.h>
#include <string.h>

#include "bench.h"

#define AREA_RECORDS (DM_IMAGE_CHUNK_BYTES / 16)

static uint64_t areas_of(const struct dm_image *image)
{
	return image->records / AREA_RECORDS + 1; /* the end of the list is in the last */
}

static uint64_t area_offset(uint64_t area)
{
	return (1 + area * (AREA_RECORDS + 1)) * DM_IMAGE_CHUNK_BYTES;
}

uint64_t dm_image_chunks(const struct dm_image *image)
{
	return 1 + image->records + areas_of(image);
}

uint64_t dm_image_device_bytes(const struct dm_image *image)
{
	/* A whole stripe is left: the store is not full. */
	return (dm_image_chunks(image) + AREA_RECORDS + 1) * DM_IMAGE_CHUNK_BYTES;
}

uint64_t dm_image_origin_bytes(const struct dm_image *image)
{
	return image->records * DM_IMAGE_CHUNK_BYTES;
}

uint64_t dm_image_metadata_bytes(const struct dm_image *image)
{
	return (1 + areas_of(image)) * DM_IMAGE_CHUNK_BYTES;
}

static void put_little_endian(unsigned char *to, uint64_t value, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		to[i] = (unsigned char)(value >> 8 * i);
}

static int put_chunk(struct cowsnap_device *device, const unsigned char *chunk, uint64_t offset)
{
	return bench_check(cowsnap_device_write(device, chunk, offset, DM_IMAGE_CHUNK_BYTES),
		"writing an image");
}

static int put_header(struct cowsnap_device *device, unsigned char *chunk)
{
	memset(chunk, 0, DM_IMAGE_CHUNK_BYTES);
	memcpy(chunk, "SnAp", 4);
	put_little_endian(chunk + 4, 1, 4); /* valid */
	put_little_endian(chunk + 8, 1, 4); /* version */
	put_little_endian(chunk + 12, DM_IMAGE_CHUNK_BYTES / 512, 4);
	return put_chunk(device, chunk, 0);
}

/* @order: a permutation for the random orders, else NULL. Its mirror image serves as another one.
 */
static void put_record(
	unsigned char *slot, const struct dm_image *image, const uint64_t *order, uint64_t number)
{
	uint64_t origin = order ? order[number] : number;
	uint64_t data = number;

	if (image->order == DM_IMAGE_RANDOM_BOTH)
		data = order[image->records - 1 - number];
	put_little_endian(slot, origin, 8);
	put_little_endian(slot + 8, 2 + data + data / AREA_RECORDS, 8);
}

int dm_image_write(struct cowsnap_device *device, const struct dm_image *image)
{
	unsigned char *chunk = bench_alloc(1, DM_IMAGE_CHUNK_BYTES);
	uint64_t *order = NULL;
	int err = put_header(device, chunk);

	if (image->order != DM_IMAGE_ASCENDING) {
		order = bench_alloc(image->records, sizeof(*order));
		bench_shuffle(order, image->records);
	}
	for (uint64_t area = 0; area < areas_of(image) && !err; area++) {
		memset(chunk, 0, DM_IMAGE_CHUNK_BYTES);
		for (uint64_t slot = 0; slot < AREA_RECORDS; slot++) {
			uint64_t number = area * AREA_RECORDS + slot;

			if (number < image->records)
				put_record(chunk + slot * 16, image, order, number);
		}
		err = put_chunk(device, chunk, area_offset(area));
	}
	free(order);
	free(chunk);
	return err;
}

int dm_image_read(struct cowsnap_device *device, const struct dm_image *image)
{
	unsigned char *chunk = bench_alloc(1, DM_IMAGE_CHUNK_BYTES);
	int err = cowsnap_device_read(device, chunk, 0, DM_IMAGE_CHUNK_BYTES);

	for (uint64_t area = 0; area < areas_of(image) && !err; area++)
		err = cowsnap_device_read(device, chunk, area_offset(area), DM_IMAGE_CHUNK_BYTES);
	free(chunk);
	return bench_check(err, "reading an image");
}
