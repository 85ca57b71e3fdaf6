/* SPDX-License-Identifier: MIT
 *
 * When a store is full. The library may choose which chunks still fit, but not who loses: for each
 * chunk that could not be saved those that need it, and never one that needs nothing of the range.
 */
#include "model/driver.h"

#include <errno.h>

void full_begin(struct driver *d)
{
	for (unsigned i = 0; i < d->model.images; i++) {
		struct driver_taken *taken = d->model.image[i]->user;

		taken->answer = -1;
		taken->attempts = 0;
	}
}

static bool lets_write_fail(const struct driver_taken *taken)
{
	return taken->on_full == COWSNAP_LOSER_WRITE ||
	       (taken->on_full == COWSNAP_LOSER_ASK && taken->answer == COWSNAP_DECIDE_WRITE);
}

static bool lets_snapshot_lose(const struct driver_taken *taken)
{
	return taken->on_full == COWSNAP_LOSER_SNAPSHOT ||
	       (taken->on_full == COWSNAP_LOSER_ASK && taken->answer == COWSNAP_DECIDE_SNAPSHOT);
}

/* Even after everything dropped is given back. */
bool full_possible(struct driver *d, unsigned s, uint64_t wanted)
{
	if (!wanted)
		return false;
	for (unsigned i = 0; i < DRIVER_OPEN_MAX; i++) {
		if (d->open[i].used)
			return true; /* a write under way may hold dropped space back */
	}
	for (unsigned i = 0; i < d->model.images; i++) {
		enum model_state state = d->model.image[i]->state;

		/* It may keep its space until it is dropped; and where one is merged nothing is
		 * given back. */
		if (d->model.image[i]->store == s &&
			(state == MODEL_INVALID || state == MODEL_MERGING))
			return true;
	}
	return model_held(&d->model, s, true) + wanted > d->limit_chunks[s];
}

/* ---- Who loses ------------------------------------------------------------------------------- */

static bool newly_invalid(struct driver *d, struct model_image *image)
{
	return (image->state == MODEL_ACTIVE || image->state == MODEL_MAP_ONLY) &&
	       driver_info(d, image->user).state == COWSNAP_SNAPSHOT_INVALID;
}

static void check_loser(struct driver *d, struct model_image *image)
{
	struct driver_taken *taken = image->user;
	uint64_t chunk_bytes = d->model.chunk_bytes[image->store];
	uint64_t first = d->write_offset / chunk_bytes * chunk_bytes;
	uint64_t end = (d->write_offset + d->write_length - 1) / chunk_bytes * chunk_bytes;
	struct cowsnap_snapshot_info info = driver_info(d, taken);

	end += chunk_bytes;
	want_eq(d, image->state, MODEL_ACTIVE);
	want_eq(d, image->origin, d->write_origin);
	want(d, lets_snapshot_lose(taken));
	want_eq(d, taken->invalid_events, 1);
	want_eq(d, taken->event_reason, -ENOSPC);
	want_eq(d, info.reason, -ENOSPC);
	want(d, info.reason_length > 0);
	want(d, info.reason_offset >= first && info.reason_offset < end);
	want(d, info.reason_offset + info.reason_length <= end);
	want(d, model_needs(image, info.reason_offset / chunk_bytes));
}

/* All that needed the chunk which one has lost have lost too. */
static void check_chain(struct driver *d, unsigned at, const bool *lost)
{
	const struct model_image *image = d->model.image[at];
	struct cowsnap_snapshot_info info = driver_info(d, image->user);
	uint64_t chunk = info.reason_offset / d->model.chunk_bytes[image->store];

	for (unsigned i = 0; i < d->model.images; i++) {
		const struct model_image *other = d->model.image[i];

		if (other->origin == image->origin && other->store == image->store)
			want(d, lost[i] || !model_needs(other, chunk) || other->chunk[chunk].maybe);
	}
}

bool full_settle(struct driver *d, int rc, const bool *may_fail)
{
	bool lost[MODEL_IMAGES] = {false};
	bool refused = false;
	bool any = false;

	for (unsigned i = 0; i < d->model.images; i++) {
		struct model_image *image = d->model.image[i];

		lost[i] = newly_invalid(d, image);
		any = any || lost[i];
		if (lost[i]) {
			want(d, may_fail[image->store]);
			check_loser(d, image);
		} else if (may_fail[image->store] && image->origin == d->write_origin &&
			   model_needs_range(&d->model, image, d->write_offset, d->write_length)) {
			refused = refused || lets_write_fail(image->user);
		}
	}
	if (rc < 0)
		want(d, refused);
	for (unsigned i = 0; i < d->model.images; i++) {
		if (lost[i])
			check_chain(d, i, lost);
	}
	for (unsigned i = 0; i < d->model.images; i++) {
		if (lost[i])
			d->model.image[i]->state = MODEL_INVALID;
	}
	return any;
}

/* ---- What was saved -------------------------------------------------------------------------- */

static bool chunk_saved(struct driver *d, const struct model_image *image, uint64_t chunk)
{
	const struct driver_taken *taken = image->user;
	struct cowsnap_extent extent;
	uint64_t offset = chunk * d->model.chunk_bytes[image->store];

	want_eq(d, cowsnap_snapshot_extent(taken->snapshot, offset, 1, &extent), 0);
	return extent.saved;
}

/* Only those that were written to need it, which have the chunk in any case. */
static void set_maybe(struct driver *d, unsigned s, uint64_t chunk)
{
	for (unsigned i = 0; i < d->model.images; i++) {
		struct model_image *image = d->model.image[i];

		if (image->origin == d->write_origin && image->store == s &&
			model_needs(image, chunk))
			image->chunk[chunk].maybe = true;
	}
	d->exact = false;
}

/* For all or for none. Returns: was it saved? */
static bool adopt_chunk(struct driver *d, unsigned s, uint64_t chunk)
{
	int saved = -1;

	if (!model_wanted(&d->model, d->write_origin, s, chunk))
		return false;
	for (unsigned i = 0; i < d->model.images; i++) {
		const struct model_image *image = d->model.image[i];

		if (image->origin != d->write_origin || image->store != s ||
			!model_needs(image, chunk) || image->chunk[chunk].own)
			continue;
		if (saved < 0)
			saved = chunk_saved(d, image, chunk);
		want_eq(d, chunk_saved(d, image, chunk), saved);
	}
	if (saved < 0)
		set_maybe(d, s, chunk);
	if (saved > 0)
		model_save_chunk(&d->model, d->write_origin, s, chunk);
	return saved > 0;
}

uint64_t full_adopt(struct driver *d)
{
	uint64_t copies = 0;

	d->model.moving = d->merging[d->write_origin];
	for (unsigned s = 0; s < d->model.stores; s++) {
		uint64_t last = model_last_chunk(&d->model, s, d->write_offset, d->write_length);

		for (uint64_t c = model_first_chunk(&d->model, s, d->write_offset); c <= last; c++)
			copies += adopt_chunk(d, s, c);
	}
	d->model.moving = false;
	return copies;
}
