/* SPDX-License-Identifier: MIT
 *
 * What is done to a snapshot itself: it is written to, gives up what was read, or all its data, and
 * is made independent of its origin.
 */
#include "model/driver.h"

#include <errno.h>

/* ---- Writing --------------------------------------------------------------------------------- */

struct put {
	enum cowsnap_write_kind kind;
	uint64_t offset;
	uint64_t length;
	struct model_put change; /* of a discard, whole chunks only */
};

static void choose_put(struct driver *d, const struct model_image *image, struct put *put)
{
	uint64_t chunk_bytes = d->model.chunk_bytes[image->store];

	put->kind = COWSNAP_WRITE;
	if (driver_below(d, 3) == 0)
		put->kind = driver_below(d, 2) ? COWSNAP_WRITE_ZEROES : COWSNAP_DISCARD;
	driver_range(d, image->size_bytes, &put->offset, &put->length);
	put->change.data = put->kind == COWSNAP_WRITE ? d->scratch : NULL;
	put->change.offset = put->offset;
	put->change.end = put->offset + put->length;
	/* Never zeroes, so that what was written shows. */
	driver_fill(d, d->scratch, put->length);
	for (uint64_t i = 0; i < put->length; i++)
		d->scratch[i] |= 1;
	if (put->kind != COWSNAP_DISCARD)
		return;
	put->change.offset = (put->offset + chunk_bytes - 1) / chunk_bytes * chunk_bytes;
	if (put->change.end != image->size_bytes)
		put->change.end -= put->change.end % chunk_bytes;
	if (put->change.end < put->change.offset)
		put->change.end = put->change.offset;
}

static uint64_t space_wanted(struct driver *d, const struct model_image *image,
	const struct model_put *put, uint64_t first, uint64_t end)
{
	uint64_t wanted = 0;

	for (uint64_t c = first; c < end; c++)
		wanted += !image->chunk[c].released && model_put_wants(&d->model, image, put, c);
	return wanted;
}

static uint64_t count_own(const struct model_image *image)
{
	uint64_t own = 0;

	for (uint64_t c = 0; c < image->chunks; c++)
		own += image->chunk[c].own != MODEL_OWN_NO;
	return own;
}

/* Has a chunk, which had been made zeroes before, what this write gave it? */
static bool has_put(struct driver *d, const struct model_image *image, const struct model_put *put,
	uint64_t chunk)
{
	const struct driver_taken *taken = image->user;
	uint64_t at = chunk * d->model.chunk_bytes[image->store];
	uint8_t byte;

	if (at < put->offset)
		at = put->offset;
	want_eq(d, cowsnap_snapshot_read(taken->snapshot, &byte, at, 1), 0);
	return byte != 0;
}

/* Was one chunk written that wanted space? @added: how many are known to have been. */
static bool had_space(struct driver *d, const struct model_image *image,
	const struct model_put *put, uint64_t chunk, uint64_t added)
{
	const struct driver_taken *taken = image->user;
	struct cowsnap_extent extent;

	if (!d->model.records[image->store])
		return image->chunk[chunk].own == MODEL_OWN_NO ? added > 0
							       : has_put(d, image, put, chunk);
	want_eq(d,
		cowsnap_snapshot_extent(
			taken->snapshot, chunk * d->model.chunk_bytes[image->store], 1, &extent),
		0);
	return extent.saved;
}

/* Chunk after chunk until one has no space, or was released. Returns: where it ended. */
static uint64_t adopt_put(
	struct driver *d, struct model_image *image, const struct put *put, int rc, uint64_t end)
{
	uint64_t c = model_first_chunk(&d->model, image->store, put->change.offset);
	uint64_t added = driver_info(d, image->user).written_chunks - count_own(image);

	for (; c < end && !image->chunk[c].released; c++) {
		bool first = !d->model.records[image->store] && image->chunk[c].own == MODEL_OWN_NO;

		if (rc == -ENOSPC &&
			(first || model_put_wants(&d->model, image, &put->change, c)) &&
			!had_space(d, image, &put->change, c, added))
			break;
		added -= first;
		model_put_chunk(&d->model, image, &put->change, c);
	}
	want_eq(d, added, 0);
	return c;
}

static void put_done(struct driver *d, struct model_image *image, const struct put *put, int rc)
{
	uint64_t first = model_first_chunk(&d->model, image->store, put->change.offset);
	uint64_t end = model_last_chunk(&d->model, image->store, put->change.offset,
			       put->change.end - put->change.offset) +
		       1;
	uint64_t wanted = space_wanted(d, image, &put->change, first, end), stop, got;
	bool full = full_possible(d, image->store, wanted);

	stop = adopt_put(d, image, put, rc, end);
	got = wanted - space_wanted(d, image, &put->change, stop, end);
	if (rc == 0)
		want_eq(d, stop, end);
	else if (rc == -ENODATA)
		want(d, stop < end && image->chunk[stop].released);
	else
		want(d, rc == -ENOSPC && full && stop < end && !image->chunk[stop].released);
	/* What was not asked for space says nothing of it. */
	if (rc == -ENOSPC || got)
		image->overflowed = rc == -ENOSPC;
}

void snapshots_write_step(struct driver *d)
{
	struct driver_taken *taken = driver_pick(d, driver_below(d, 16) > 0);
	struct model_image *image = taken ? taken->image : NULL;
	struct put put;
	int rc;

	if (!taken)
		return;
	choose_put(d, image, &put);
	driver_note(d, "write kind %d to snapshot of origin %u store %u offset %llu length %llu",
		put.kind, image->origin, image->store, (unsigned long long)put.offset,
		(unsigned long long)put.length);
	rc = cowsnap_snapshot_write(
		taken->snapshot, put.kind, put.change.data, put.offset, put.length);
	if (image->state != MODEL_ACTIVE)
		want_eq(d, rc, driver_read_error(d, image, put.offset, put.length));
	else if (put.change.offset == put.change.end)
		want_eq(d, rc, 0);
	else
		put_done(d, image, &put, rc);
	rc = cowsnap_snapshot_flush(taken->snapshot);
	want_eq(d, rc, image->state == MODEL_ACTIVE ? 0 : driver_read_error(d, image, 0, 1));
}

/* ---- Giving up ------------------------------------------------------------------------------- */

void snapshots_release_step(struct driver *d)
{
	struct driver_taken *taken = driver_pick(d, driver_below(d, 8) > 0);
	struct model_image *image = taken ? taken->image : NULL;
	uint64_t chunk_bytes, offset, length, end;
	int rc;

	if (!taken)
		return;
	chunk_bytes = d->model.chunk_bytes[image->store];
	driver_range(d, image->size_bytes, &offset, &length);
	driver_note(d, "release origin %u store %u offset %llu length %llu", image->origin,
		image->store, (unsigned long long)offset, (unsigned long long)length);
	rc = cowsnap_snapshot_release(taken->snapshot, offset, length);
	if (image->state == MODEL_INVALID || image->state == MODEL_MERGING) {
		want_eq(d, rc, driver_read_error(d, image, offset, length));
		return;
	}
	want_eq(d, rc, d->model.records[image->store] ? -ENOTSUP : 0);
	if (rc || image->state != MODEL_ACTIVE)
		return;
	end = offset + length == image->size_bytes ? image->chunks
						   : (offset + length) / chunk_bytes;
	for (uint64_t c = (offset + chunk_bytes - 1) / chunk_bytes; c < end; c++)
		image->chunk[c].released = true;
}

void snapshots_downgrade_step(struct driver *d)
{
	struct driver_taken *taken = driver_pick(d, driver_below(d, 4) > 0);
	struct model_image *image = taken ? taken->image : NULL;
	int rc;

	if (!taken)
		return;
	driver_note(d, "downgrade origin %u store %u", image->origin, image->store);
	rc = cowsnap_snapshot_downgrade(taken->snapshot);
	if (d->model.records[image->store]) {
		want_eq(d, rc, -ENOTSUP);
		return;
	}
	if (image->state == MODEL_INVALID || image->state == MODEL_MERGING) {
		want_eq(d, rc, driver_read_error(d, image, 0, 1));
		return;
	}
	want_eq(d, rc, 0);
	image->state = MODEL_MAP_ONLY;
}

/* ---- Detaching ------------------------------------------------------------------------------- */

static bool in_origin(const struct model_image *image, uint64_t chunk)
{
	return !image->chunk[chunk].copy && !image->chunk[chunk].own;
}

/* What was copied. Returns: is all of it in the store? */
static bool adopt_detached(struct driver *d, struct model_image *image)
{
	struct driver_taken *taken = image->user;
	uint64_t chunk_bytes = d->model.chunk_bytes[image->store];
	bool all = true;

	for (uint64_t c = 0; c < image->chunks; c++) {
		struct cowsnap_extent extent;

		if (!in_origin(image, c))
			continue;
		want_eq(d, cowsnap_snapshot_extent(taken->snapshot, c * chunk_bytes, 1, &extent),
			0);
		all = all && extent.saved;
		if (!extent.saved)
			continue;
		model_save_chunk(&d->model, image->origin, image->store, c);
		model_touch_chunk(&d->model, image->origin, image->store, c);
		/* It looks as if it had to be moved, and is. */
		if (d->merging[image->origin])
			model_touch(&d->model, image->origin, c * chunk_bytes, chunk_bytes);
		d->copied++;
	}
	return all;
}

static int detach_in_queue(struct driver *d, struct cowsnap_snapshot *snapshot, uint64_t portion)
{
	struct cowsnap_op op;
	int error = DRIVER_UNDER_WAY;
	int rc = cowsnap_snapshot_detach_async(
		snapshot, d->queue, portion, &op, driver_done, &error);

	return driver_await(d, rc, &error);
}

void snapshots_detach_step(struct driver *d)
{
	bool queue = driver_below(d, 2);
	struct driver_taken *taken = driver_pick(d, driver_below(d, 8) > 0);
	struct model_image *image = taken ? taken->image : NULL;
	uint64_t portion, wanted = 0;
	unsigned calls = 1 + (unsigned)driver_below(d, 6);
	int rc = 1;
	bool full, all;

	if (!taken)
		return;
	portion = driver_below(d, 4) ? 1 + driver_below(d, image->size_bytes) : UINT64_MAX;
	driver_note(d, "detach origin %u store %u, %u times %llu", image->origin, image->store,
		calls, (unsigned long long)portion);
	for (uint64_t c = 0; c < image->chunks; c++)
		wanted += in_origin(image, c);
	full = full_possible(d, image->store, wanted);
	while (rc == 1 && calls-- > 0)
		rc = queue ? detach_in_queue(d, taken->snapshot, portion)
			   : cowsnap_snapshot_detach(taken->snapshot, portion);
	if (driver_read_error(d, image, 0, image->size_bytes)) {
		want_eq(d, rc, driver_read_error(d, image, 0, image->size_bytes));
		return;
	}
	want(d, rc == 0 || rc == 1 || (rc == -ENOSPC && full));
	d->model.told = false;
	d->model.moving = d->merging[image->origin];
	all = adopt_detached(d, image);
	d->model.moving = false;
	want(d, all || rc != 0);
	image->detached |= rc == 0;
}

/* ---- What it says of itself ------------------------------------------------------------------ */

void snapshots_check_info(
	struct driver *d, const struct model_image *image, const struct cowsnap_snapshot_info *info)
{
	uint64_t released = 0;

	for (uint64_t c = 0; c < image->chunks; c++)
		released += image->chunk[c].released;
	want_eq(d, info->overflowed, image->overflowed);
	want_eq(d, info->detached, image->detached);
	if (image->state == MODEL_INVALID)
		return;
	want_eq(d, info->released_chunks, released);
	want_eq(d, info->written_chunks, count_own(image));
}
