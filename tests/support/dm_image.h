/* SPDX-License-Identifier: MIT
 *
 * Store images made by hand: any number in any field, with none of the library's code.
 */
#ifndef COWSNAP_TESTS_DM_IMAGE_H
#define COWSNAP_TESTS_DM_IMAGE_H

#include <stdint.h>

#define DM_IMAGE_MAGIC UINT32_C(0x70416E53)

static inline void dm_image_put(uint8_t *at, uint64_t value, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		at[i] = (uint8_t)(value >> (8 * i));
}

static inline uint64_t dm_image_get(const uint8_t *at, unsigned bytes)
{
	uint64_t value = 0;

	for (unsigned i = bytes; i > 0; i--)
		value = value << 8 | at[i - 1];
	return value;
}

static inline void dm_image_header(
	uint8_t *image, uint32_t magic, uint32_t valid, uint32_t version, uint32_t sectors)
{
	dm_image_put(image, magic, 4);
	dm_image_put(image + 4, valid, 4);
	dm_image_put(image + 8, version, 4);
	dm_image_put(image + 12, sectors, 4);
}

/* Where slot @number of an image with chunks of @chunk bytes begins. */
static inline uint64_t dm_image_slot(uint64_t chunk, uint64_t number)
{
	uint64_t in_area = chunk / 16;

	return (1 + number / in_area * (in_area + 1)) * chunk + number % in_area * 16;
}

static inline void dm_image_record(
	uint8_t *image, uint64_t chunk, uint64_t number, uint64_t origin, uint64_t store)
{
	uint8_t *slot = image + dm_image_slot(chunk, number);

	dm_image_put(slot, origin, 8);
	dm_image_put(slot + 8, store, 8);
}

/* The number of the n-th data chunk. */
static inline uint64_t dm_image_data(uint64_t chunk, uint64_t n)
{
	return 2 + n + n / (chunk / 16);
}

#endif
