/* SPDX-License-Identifier: MIT */
#include "support/model.h"

#include <stdlib.h>
#include <string.h>

static void *get(uint64_t count, uint64_t bytes)
{
	void *memory = calloc(count, bytes);

	if (!memory)
		abort();
	return memory;
}

void model_init(struct model *m)
{
	memset(m, 0, sizeof(*m));
}

static void image_free(struct model_image *image)
{
	free(image->data);
	free(image->copy);
	free(image->spare);
	free(image);
}

void model_fini(struct model *m)
{
	for (unsigned i = 0; i < m->images; i++)
		image_free(m->image[i]);
	for (unsigned o = 0; o < m->origins; o++)
		free(m->origin[o].data);
	memset(m, 0, sizeof(*m));
}

void model_add_origin(struct model *m, uint64_t size_bytes)
{
	struct model_origin *origin = &m->origin[m->origins++];

	origin->size_bytes = size_bytes;
	origin->data = get(size_bytes, 1);
}

void model_add_store(struct model *m, uint64_t chunk_bytes)
{
	m->chunk_bytes[m->stores++] = chunk_bytes;
}

struct model_image *model_take(struct model *m, unsigned origin, unsigned store, void *user)
{
	const struct model_origin *from = &m->origin[origin];
	struct model_image *image;

	if (m->images == MODEL_IMAGES)
		return NULL;
	image = get(1, sizeof(*image));
	image->state = MODEL_ACTIVE;
	image->origin = origin;
	image->store = store;
	image->user = user;
	image->chunks = (from->size_bytes - 1) / m->chunk_bytes[store] + 1;
	image->data = get(from->size_bytes, 1);
	memcpy(image->data, from->data, from->size_bytes);
	image->copy = get(image->chunks, sizeof(*image->copy));
	image->spare = get(image->chunks, sizeof(*image->spare));
	m->image[m->images++] = image;
	return image;
}

void model_drop(struct model *m, struct model_image *image)
{
	unsigned at = 0;

	while (m->image[at] != image)
		at++;
	memmove(&m->image[at], &m->image[at + 1], (m->images - at - 1) * sizeof(m->image[0]));
	m->images--;
	image_free(image);
}

void model_write(
	struct model *m, unsigned origin, const void *data, uint64_t offset, uint64_t length)
{
	memcpy(m->origin[origin].data + offset, data, length);
}

bool model_needs(const struct model_image *image, uint64_t chunk)
{
	return image->state == MODEL_ACTIVE && image->copy[chunk] == 0;
}

bool model_needs_range(
	const struct model *m, const struct model_image *image, uint64_t offset, uint64_t length)
{
	uint64_t last = model_last_chunk(m, image->store, offset, length);

	for (uint64_t c = model_first_chunk(m, image->store, offset); c <= last; c++) {
		if (model_needs(image, c))
			return true;
	}
	return false;
}

bool model_wanted(const struct model *m, unsigned origin, unsigned store, uint64_t chunk)
{
	for (unsigned i = 0; i < m->images; i++) {
		const struct model_image *image = m->image[i];

		if (image->origin == origin && image->store == store && model_needs(image, chunk))
			return true;
	}
	return false;
}

uint64_t model_copies_wanted(
	const struct model *m, unsigned origin, unsigned store, uint64_t offset, uint64_t length)
{
	uint64_t last = model_last_chunk(m, store, offset, length);
	uint64_t wanted = 0;

	for (uint64_t c = model_first_chunk(m, store, offset); c <= last; c++)
		wanted += model_wanted(m, origin, store, c);
	return wanted;
}

bool model_zero(const struct model *m, unsigned origin, unsigned store, uint64_t chunk)
{
	const struct model_origin *from = &m->origin[origin];
	uint64_t at = chunk * m->chunk_bytes[store], end = at + m->chunk_bytes[store];

	for (; at < end && at < from->size_bytes; at++) {
		if (from->data[at])
			return false;
	}
	return true;
}

void model_save_chunk(struct model *m, unsigned origin, unsigned store, uint64_t chunk)
{
	bool spare = (m->skips[store] || m->told) && model_zero(m, origin, store, chunk);
	uint32_t number = m->copies + 1;

	for (unsigned i = 0; i < m->images; i++) {
		struct model_image *image = m->image[i];

		if (image->origin != origin || image->store != store || !model_needs(image, chunk))
			continue;
		image->copy[chunk] = number;
		image->spare[chunk] = spare;
		m->copies = number;
	}
}

void model_save(struct model *m, unsigned origin, uint64_t offset, uint64_t length)
{
	for (unsigned s = 0; s < m->stores; s++) {
		uint64_t last = model_last_chunk(m, s, offset, length);

		for (uint64_t c = model_first_chunk(m, s, offset); c <= last; c++)
			model_save_chunk(m, origin, s, c);
	}
}

/* Of the snapshots of one chain, in order of take, the older one's copy of a chunk is either the
 * same as the younger one's or has a smaller number. */
static uint64_t image_holds(const struct model *m, unsigned at, bool invalid_too, bool surely)
{
	const struct model_image *image = m->image[at];
	const struct model_image *older = NULL;
	uint64_t held = 0;

	for (unsigned i = 0; i < at; i++) {
		const struct model_image *other = m->image[i];

		if (other->origin == image->origin && other->store == image->store &&
			(invalid_too || other->state == MODEL_ACTIVE))
			older = other;
	}
	for (uint64_t c = 0; c < image->chunks; c++) {
		if (image->copy[c] && !(surely && image->spare[c]) &&
			(!older || older->copy[c] != image->copy[c]))
			held++;
	}
	return held;
}

static uint64_t store_holds(const struct model *m, unsigned store, bool invalid_too, bool surely)
{
	uint64_t held = 0;

	for (unsigned i = 0; i < m->images; i++) {
		const struct model_image *image = m->image[i];

		if (image->store == store && (invalid_too || image->state == MODEL_ACTIVE))
			held += image_holds(m, i, invalid_too, surely);
	}
	return held;
}

uint64_t model_held(const struct model *m, unsigned store, bool invalid_too)
{
	return store_holds(m, store, invalid_too, false);
}

uint64_t model_held_surely(const struct model *m, unsigned store)
{
	return store_holds(m, store, false, true);
}
