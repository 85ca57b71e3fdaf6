/* SPDX-License-Identifier: MIT
 *
 * Mutations that know the format. Most random bytes in an area are refused at the first record;
 * here slots are set to records that could be right, copied, moved and wiped, so that duplicates,
 * full areas and stale tails come up. One mutation in two is libFuzzer's own.
 */
#include "fuzz/fuzz.h"

#include <string.h>

#define SLOT 16u

struct dice {
	uint64_t state;
};

static uint64_t roll(struct dice *d, uint64_t end)
{
	d->state = d->state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (d->state >> 33) % end;
}

static void put(uint8_t *at, uint64_t value, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		at[i] = (uint8_t)(value >> (8 * i));
}

/* Where slot @number lies in the image; 0: beyond its end. */
static size_t slot_at(size_t chunk, size_t length, uint64_t number)
{
	size_t in_area = chunk / SLOT;
	size_t at = (1 + number / in_area * (in_area + 1)) * chunk + number % in_area * SLOT;

	return at + SLOT <= length ? at : 0;
}

static void set_header(uint8_t *image, struct dice *d, size_t chunk)
{
	put(image, UINT32_C(0x70416E53), 4);
	put(image + 4, roll(d, 8) > 0, 4);
	put(image + 8, 1, 4);
	put(image + 12, chunk / 512, 4);
}

/* A record that points at a data chunk of the device, mostly the one that is its turn. */
static void set_record(uint8_t *slot, struct dice *d, size_t chunk, size_t length, uint64_t number)
{
	uint64_t in_area = chunk / SLOT, k = roll(d, 4) ? number : roll(d, length / chunk + 1);

	put(slot, roll(d, 4) ? number : roll(d, 300), 8);
	put(slot + 8, 2 + k + k / in_area, 8);
}

static void change_slots(uint8_t *image, size_t length, struct dice *d)
{
	size_t chunk = (size_t)512 << (image[12] > 1 ? roll(d, 3) : 0);
	uint64_t areas = length / chunk / (chunk / SLOT + 1) + 1;
	uint64_t first = roll(d, areas * (chunk / SLOT) + 1), count = 1;

	if (roll(d, 3) == 0)
		set_header(image, d, chunk);
	if (roll(d, 4) == 0) {
		first = 0;
		count = roll(d, areas * (chunk / SLOT) + 2);
	}
	for (uint64_t n = first; n < first + count; n++) {
		size_t at = slot_at(chunk, length, n),
		       from = slot_at(chunk, length, roll(d, n + 1));

		if (!at)
			return;
		if (count == 1 && roll(d, 3) == 0)
			memset(image + at, 0, SLOT);
		else if (count == 1 && from && roll(d, 3) == 0)
			memmove(image + at, image + from, SLOT);
		else
			set_record(image + at, d, chunk, length, n);
	}
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
	struct dice d = {seed};

	if (roll(&d, 2) || size < FUZZ_CHOICES + 1024)
		return LLVMFuzzerMutate(data, size, max_size);
	for (uint64_t n = 1 + roll(&d, 3); n > 0; n--)
		change_slots(data + FUZZ_CHOICES, size - FUZZ_CHOICES, &d);
	return size;
}
