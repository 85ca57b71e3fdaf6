/* SPDX-License-Identifier: MIT
 *
 * The end of a context, and the next one: snapshots in persistent stores go on. Each is handed over
 * with its state, or left on its device, in the middle of its merge too; the others are dropped.
 */
#include "model/driver.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* What the next owner gets. */
struct state {
	uint8_t *data; /* NULL: nothing, it reads the records */
	size_t bytes;
	size_t next;
};

static int put(void *user, const void *data, size_t bytes)
{
	struct state *state = user;

	state->data = realloc(state->data, state->bytes + bytes);
	memcpy(state->data + state->bytes, data, bytes);
	state->bytes += bytes;
	return 0;
}

static int get(void *user, void *data, size_t bytes)
{
	struct state *state = user;

	if (bytes > state->bytes - state->next)
		return -ENODATA;
	memcpy(data, state->data + state->next, bytes);
	state->next += bytes;
	return 0;
}

/* ---- The end --------------------------------------------------------------------------------- */

/* Returns: one that ends with the context; NULL: none. */
static struct driver_taken *ends(const struct driver *d)
{
	for (unsigned i = 0; i < d->model.images; i++) {
		if (!d->model.records[d->model.image[i]->store])
			return d->model.image[i]->user;
	}
	return NULL;
}

static void drop_others(struct driver *d)
{
	struct driver_taken *taken;

	for (unsigned o = 0; o < d->model.origins; o++) {
		if (d->merging[o] && !d->model.records[d->merging[o]->image->store])
			merge_end(d, o);
	}
	while ((taken = ends(d)))
		driver_drop(d, taken);
}

static void end_snapshot(struct driver *d, struct driver_taken *taken, struct state *state)
{
	struct model_image *image = taken->image;
	struct cowsnap_store *store = d->store[image->store];
	int rc;

	memset(state, 0, sizeof(*state));
	if (image->state == MODEL_INVALID)
		want_eq(d, cowsnap_store_export(store, 0, put, state), -ENODATA);
	else if (d->merging[image->origin])
		want_eq(d, cowsnap_store_export(store, 0, put, state), -EBUSY);
	else if (driver_below(d, 3) > 0)
		want_eq(d, cowsnap_store_export(store, 0, put, state), 0);
	rc = cowsnap_snapshot_deactivate(taken->snapshot);
	want_eq(d, rc, state->data ? -EIDRM : 0);
	want_eq(d, driver_info(d, taken).state, COWSNAP_SNAPSHOT_DROPPED);
	cowsnap_snapshot_unref(taken->snapshot);
	taken->snapshot = NULL;
}

/* ---- The next context ------------------------------------------------------------------------ */

/* What was merged in part shows what the volume did. */
static void was_merging(struct driver *d, struct model_image *image)
{
	memcpy(image->data, d->model.origin[image->origin].data, image->size_bytes);
	image->known_bytes = 0;
	image->state = MODEL_ACTIVE;
	for (uint64_t c = 0; c < image->chunks; c++) {
		const struct driver_taken *taken = image->user;
		struct cowsnap_extent extent;

		want_eq(d,
			cowsnap_snapshot_extent(taken->snapshot,
				c * d->model.chunk_bytes[image->store], 1, &extent),
			0);
		/* What was moved is in the origin. */
		want(d, !extent.saved || image->chunk[c].copy);
		image->chunk[c].touched |= image->chunk[c].copy != 0;
		if (!extent.saved)
			image->chunk[c].copy = 0;
	}
}

/* The format does not say how long the snapshot is: without a state it is as long as its origin,
 * and what it has not got is there. */
static void has_grown(struct driver *d, struct model_image *image, uint64_t size_bytes)
{
	const struct model_origin *origin = &d->model.origin[image->origin];
	uint64_t chunk_bytes = d->model.chunk_bytes[image->store];
	uint64_t chunks = (size_bytes - 1) / chunk_bytes + 1;
	const struct driver_taken *taken = image->user;

	want_eq(d, size_bytes, origin->size_bytes);
	image->data = realloc(image->data, size_bytes);
	want_eq(d,
		cowsnap_snapshot_read(taken->snapshot, image->data + image->size_bytes,
			image->size_bytes, size_bytes - image->size_bytes),
		0);
	image->chunk = realloc(image->chunk, chunks * sizeof(*image->chunk));
	memset(image->chunk + image->chunks, 0, (chunks - image->chunks) * sizeof(*image->chunk));
	image->chunks = chunks;
	image->size_bytes = size_bytes;
}

/* Returns: was it handed over, with its state? */
static bool attach(struct driver *d, struct driver_taken *taken, struct state *state)
{
	struct model_image *image = taken->image;
	struct cowsnap_take_entry entry = driver_take_entry(d, taken, image->origin);
	bool damaged = state->data && driver_below(d, 8) == 0;
	bool handed_over = state->data && !damaged;
	int rc;

	if (damaged) {
		state->data[driver_below(d, state->bytes)] ^= 1 << driver_below(d, 8);
		rc = rig_attach(d, image->store, &entry, get, state);
		want(d, rc == -EBADMSG || rc == -ESTALE);
	}
	rc = rig_attach(d, image->store, &entry, handed_over ? get : NULL, state);
	want_eq(d, rc, 0);
	free(state->data);
	taken->snapshot = entry.snapshot;
	want(d, cowsnap_snapshot_user(entry.snapshot) == taken);
	image->detached = image->overflowed = false;
	image->written |= !handed_over; /* records do not say what they are */
	return handed_over;
}

/* What has no snapshot any more cannot be opened. */
static void check_dropped(struct driver *d, const bool *has)
{
	for (unsigned s = 0; s < d->model.stores; s++) {
		struct driver_taken nobody;
		struct cowsnap_take_entry entry = driver_take_entry(d, &nobody, 0);

		if (d->model.records[s] && !has[s])
			want_eq(d, rig_attach(d, s, &entry, NULL, NULL), -ENOENT);
	}
}

static void check_attached(
	struct driver *d, struct driver_taken *taken, bool merging, bool handed_over)
{
	struct model_image *image = taken->image;
	struct cowsnap_snapshot_info info = driver_info(d, taken);

	if (image->state == MODEL_INVALID) {
		want_eq(d, info.state, COWSNAP_SNAPSHOT_INVALID);
		want_eq(d, info.reason, -EUCLEAN);
		image->size_bytes = info.size_bytes;
		return;
	}
	if (merging)
		was_merging(d, image);
	if (info.size_bytes != image->size_bytes && !handed_over)
		has_grown(d, image, info.size_bytes);
	driver_compare(d, taken, 0, image->size_bytes);
}

void restart_step(struct driver *d)
{
	struct state states[MODEL_STORES];
	bool merging[MODEL_STORES] = {false}, has[MODEL_STORES] = {false};
	bool handed_over[MODEL_STORES];

	if (!d->restarts)
		return;
	driver_note(d, "restart");
	driver_end_open(d);
	drop_others(d);
	for (unsigned i = 0; i < d->model.images; i++) {
		struct model_image *image = d->model.image[i];

		has[image->store] = true;
		merging[image->store] = image->state == MODEL_MERGING;
		end_snapshot(d, image->user, &states[image->store]);
		if (merging[image->store])
			d->merging[image->origin] = NULL;
	}
	rig_end(d);
	rig_begin(d);
	/* In the order of their takes, which is that of their numbers then. */
	for (unsigned i = 0; i < d->model.images; i++) {
		struct model_image *image = d->model.image[i];

		handed_over[image->store] = attach(d, image->user, &states[image->store]);
	}
	check_dropped(d, has);
	rig_open_stores(d, has);
	for (unsigned i = 0; i < d->model.images; i++) {
		struct model_image *image = d->model.image[i];

		check_attached(d, image->user, merging[image->store], handed_over[image->store]);
	}
	for (unsigned i = 0; i < d->model.images; i++) {
		struct model_image *image = d->model.image[i];

		if (merging[image->store])
			merge_begin(d, image->user);
	}
}
