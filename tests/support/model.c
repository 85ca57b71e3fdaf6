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
	free(image->chunk);
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

void model_add_origin(struct model *m, uint64_t size_bytes, uint64_t room_bytes)
{
	struct model_origin *origin = &m->origin[m->origins++];

	origin->size_bytes = size_bytes;
	origin->room_bytes = room_bytes;
	origin->data = get(room_bytes, 1);
}

void model_add_store(struct model *m, uint64_t chunk_bytes)
{
	m->chunk_bytes[m->stores++] = chunk_bytes;
}

static bool same_chain(const struct model_image *a, const struct model_image *b)
{
	return a->origin == b->origin && a->store == b->store;
}

struct model_image *model_take(
	struct model *m, unsigned origin, unsigned store, bool map_only, void *user)
{
	const struct model_origin *from = &m->origin[origin];
	struct model_image *image;

	if (m->images == MODEL_IMAGES)
		return NULL;
	image = get(1, sizeof(*image));
	image->state = map_only ? MODEL_MAP_ONLY : MODEL_ACTIVE;
	image->origin = origin;
	image->store = store;
	image->user = user;
	image->size_bytes = image->known_bytes = from->size_bytes;
	image->chunks = (from->size_bytes - 1) / m->chunk_bytes[store] + 1;
	image->data = get(from->size_bytes, 1);
	memcpy(image->data, from->data, from->size_bytes);
	image->chunk = get(image->chunks, sizeof(*image->chunk));
	m->image[m->images++] = image;
	return image;
}

unsigned model_index(const struct model *m, const struct model_image *image)
{
	unsigned at = 0;

	while (m->image[at] != image)
		at++;
	return at;
}

/* The nearest older one of the same chain; NULL: none. */
static struct model_image *next_older(const struct model *m, unsigned at)
{
	for (unsigned i = at; i-- > 0;) {
		if (same_chain(m->image[i], m->image[at]))
			return m->image[i];
	}
	return NULL;
}

void model_drop(struct model *m, struct model_image *image)
{
	unsigned at = model_index(m, image);
	struct model_image *older = next_older(m, at);

	/* What has changed since an older one is still told. */
	for (uint64_t c = 0; older && c < older->chunks; c++)
		older->chunk[c].touched |= image->chunk[c].touched;
	memmove(&m->image[at], &m->image[at + 1], (m->images - at - 1) * sizeof(m->image[0]));
	m->images--;
	image_free(image);
}

void model_write(
	struct model *m, unsigned origin, const void *data, uint64_t offset, uint64_t length)
{
	memcpy(m->origin[origin].data + offset, data, length);
}

/* ---- Preimages ------------------------------------------------------------------------------- */

bool model_needs(const struct model_image *image, uint64_t chunk)
{
	return image->state == MODEL_ACTIVE && chunk < image->chunks && !image->chunk[chunk].copy &&
	       !image->chunk[chunk].released;
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
	const uint8_t *data = from->data + chunk * m->chunk_bytes[store];
	uint64_t left = from->size_bytes - chunk * m->chunk_bytes[store];
	uint64_t length = left < m->chunk_bytes[store] ? left : m->chunk_bytes[store];

	return !data[0] && !memcmp(data, data + 1, length - 1);
}

void model_save_chunk(struct model *m, unsigned origin, unsigned store, uint64_t chunk)
{
	bool spare =
		(m->skips[store] || m->told) && (m->moving || model_zero(m, origin, store, chunk));
	uint32_t number = m->copies + 1;

	m->copies += 1 + m->images;
	for (unsigned i = 0; i < m->images; i++) {
		struct model_image *image = m->image[i];

		if (image->origin != origin || image->store != store || !model_needs(image, chunk))
			continue;
		/* One that may have been saved before may have a copy of its own. */
		image->chunk[chunk].copy = image->chunk[chunk].maybe ? number + i : m->copies;
		image->chunk[chunk].spare = spare || image->chunk[chunk].maybe;
		image->chunk[chunk].maybe = false;
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

/* ---- Space ----------------------------------------------------------------------------------- */

enum counting { SURELY, AT_MOST, WITH_INVALID };

static bool is_held(const struct model_image *image, uint64_t chunk, enum counting how)
{
	return (image->state == MODEL_ACTIVE ||
		       (how == WITH_INVALID && image->state == MODEL_INVALID)) &&
	       chunk < image->chunks && !image->chunk[chunk].released;
}

/* Of the snapshots of one chain, in order of take, the older one's copy of a chunk is either the
 * same as the younger one's or has a smaller number. */
static bool is_shared(const struct model *m, unsigned at, uint64_t chunk, enum counting how)
{
	for (unsigned i = at; i-- > 0;) {
		const struct model_image *older = m->image[i];

		if (same_chain(older, m->image[at]) && is_held(older, chunk, how))
			return older->chunk[chunk].copy == m->image[at]->chunk[chunk].copy;
	}
	return false;
}

static uint64_t image_holds(const struct model *m, unsigned at, enum counting how)
{
	const struct model_image *image = m->image[at];
	uint64_t held = 0;

	for (uint64_t c = 0; c < image->chunks; c++) {
		const struct model_chunk *chunk = &image->chunk[c];

		if (!is_held(image, c, how))
			continue;
		held += chunk->own == MODEL_OWN_SPACE;
		if (chunk->maybe && how != SURELY)
			held++;
		else if (chunk->copy && !(how == SURELY && chunk->spare))
			held += !is_shared(m, at, c, how);
	}
	return held;
}

static uint64_t store_holds(const struct model *m, unsigned store, enum counting how)
{
	uint64_t held = 0;

	for (unsigned i = 0; i < m->images; i++) {
		if (m->image[i]->store == store)
			held += image_holds(m, i, how);
	}
	return held;
}

uint64_t model_held(const struct model *m, unsigned store, bool invalid_too)
{
	return store_holds(m, store, invalid_too ? WITH_INVALID : AT_MOST);
}

uint64_t model_held_surely(const struct model *m, unsigned store)
{
	return store_holds(m, store, SURELY);
}

/* ---- Written to a snapshot, released, changed ------------------------------------------------ */

static void part_of(const struct model *m, const struct model_image *image,
	const struct model_put *put, uint64_t chunk, uint64_t *from, uint64_t *to)
{
	*from = chunk * m->chunk_bytes[image->store];
	*to = *from + m->chunk_bytes[image->store];
	if (*to > image->size_bytes)
		*to = image->size_bytes;
	if (*from < put->offset)
		*from = put->offset;
	if (*to > put->end)
		*to = put->end;
}

static bool is_whole(const struct model *m, const struct model_image *image,
	const struct model_put *put, uint64_t chunk)
{
	uint64_t from, to, begin = chunk * m->chunk_bytes[image->store];

	part_of(m, image, put, chunk, &from, &to);
	return from == begin &&
	       (to == begin + m->chunk_bytes[image->store] || to == image->size_bytes);
}

bool model_put_wants(const struct model *m, const struct model_image *image,
	const struct model_put *put, uint64_t chunk)
{
	uint8_t own = image->chunk[chunk].own;

	if (m->records[image->store])
		return !image->chunk[chunk].copy;
	if (own == MODEL_OWN_SPACE || put->data)
		return own != MODEL_OWN_SPACE;
	return own == MODEL_OWN_NO && !is_whole(m, image, put, chunk);
}

static void put_recorded(struct model *m, struct model_image *image, uint64_t chunk)
{
	if (!image->chunk[chunk].copy)
		image->chunk[chunk].copy = ++m->copies;
	image->chunk[chunk].spare = false;
	image->chunk[chunk].touched = true;
	image->written = true;
}

void model_put_chunk(
	struct model *m, struct model_image *image, const struct model_put *put, uint64_t chunk)
{
	uint64_t from, to;

	part_of(m, image, put, chunk, &from, &to);
	if (m->records[image->store])
		put_recorded(m, image, chunk);
	else if (model_put_wants(m, image, put, chunk))
		image->chunk[chunk].own = MODEL_OWN_SPACE;
	else if (image->chunk[chunk].own == MODEL_OWN_NO)
		image->chunk[chunk].own = MODEL_OWN_ZERO;
	if (put->data)
		memcpy(image->data + from, put->data + (from - put->offset), to - from);
	else
		memset(image->data + from, 0, to - from);
}

bool model_any_released(
	const struct model *m, const struct model_image *image, uint64_t offset, uint64_t length)
{
	uint64_t last = model_last_chunk(m, image->store, offset, length);

	for (uint64_t c = model_first_chunk(m, image->store, offset); c <= last; c++) {
		if (image->chunk[c].released)
			return true;
	}
	return false;
}

void model_touch_chunk(struct model *m, unsigned origin, unsigned store, uint64_t chunk)
{
	for (unsigned i = m->images; i-- > 0;) {
		struct model_image *image = m->image[i];

		if (image->origin != origin || image->store != store)
			continue;
		if (chunk < image->chunks)
			image->chunk[chunk].touched = true;
		return;
	}
}

void model_touch(struct model *m, unsigned origin, uint64_t offset, uint64_t length)
{
	for (unsigned s = 0; s < m->stores; s++) {
		uint64_t last = model_last_chunk(m, s, offset, length);

		for (uint64_t c = model_first_chunk(m, s, offset); c <= last; c++)
			model_touch_chunk(m, origin, s, c);
	}
}

static bool own_in(
	const struct model *m, const struct model_image *image, uint64_t from, uint64_t to)
{
	uint64_t chunk_bytes = m->chunk_bytes[image->store];

	for (uint64_t c = from / chunk_bytes; c * chunk_bytes < to && c < image->chunks; c++) {
		if (image->chunk[c].own || (image->written && image->chunk[c].copy))
			return true;
	}
	return false;
}

/* Who tells what the snapshot at @at knows: where it is invalid an older one of its chain does. */
static unsigned teller(const struct model *m, unsigned at)
{
	unsigned i = at;

	while (i > 0 &&
		!(same_chain(m->image[i], m->image[at]) && m->image[i]->state != MODEL_INVALID))
		i--;
	return i;
}

bool model_may_differ(const struct model *m, const struct model_image *from,
	const struct model_image *to, uint64_t chunk)
{
	uint64_t chunk_bytes = m->chunk_bytes[from->store], at = chunk * chunk_bytes;
	uint64_t size = to ? to->size_bytes : m->origin[from->origin].size_bytes;
	uint64_t shorter = size < from->size_bytes ? size : from->size_bytes;

	/* What both do not have wholly. */
	if (size != from->size_bytes && at + chunk_bytes > shorter)
		return true;
	if (own_in(m, from, at, at + chunk_bytes) || (to && own_in(m, to, at, at + chunk_bytes)))
		return true;
	for (unsigned i = model_index(m, from); i < m->images; i++) {
		const struct model_image *image = m->image[i];

		if (same_chain(image, from) && chunk < image->chunks &&
			image->chunk[chunk].touched && (!to || teller(m, i) < model_index(m, to)))
			return true;
	}
	return false;
}

void model_merge(struct model *m, struct model_image *image)
{
	uint64_t chunk_bytes = m->chunk_bytes[image->store];

	for (uint64_t c = 0; c < image->chunks; c++) {
		const struct model_chunk *chunk = &image->chunk[c];
		uint64_t at = c * chunk_bytes, left = image->size_bytes - at;

		/* What it has is moved, whatever the volume holds. */
		if (chunk->copy || chunk->own || chunk->maybe)
			model_touch(m, image->origin, at, left < chunk_bytes ? left : chunk_bytes);
	}
	model_write(m, image->origin, image->data, 0, image->size_bytes);
	image->state = MODEL_MERGING;
}
