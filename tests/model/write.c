/* SPDX-License-Identifier: MIT
 *
 * The write step. While the store has room everything is predicted. When it is full the library may
 * choose which chunks still fit, but not who loses: of one chain those that need a chunk that could
 * not be saved, hence a newest part of it; never one that needs nothing of the range.
 *
 * Some writes come from a host that tells what it knows of the old content: always the truth, by
 * chance all or a part of it, or in a way that is not allowed.
 */
#include "model/driver.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Makes room as a host would: a larger limit, or one snapshot less. */
static bool make_room(struct driver *d, struct driver_taken *taken)
{
	unsigned s = taken->image->store;
	uint64_t limit = d->limit_chunks[s] + 1 + driver_below(d, 8);

	if (driver_below(d, 2) > 0 && limit <= d->grow_chunks[s]) {
		want_eq(d, cowsnap_store_set_limit(d->store[s], limit * d->model.chunk_bytes[s]),
			0);
		d->limit_chunks[s] = limit;
		return true;
	}
	for (unsigned i = 0; i < d->model.images; i++) {
		struct driver_taken *other = d->model.image[i]->user;

		if (other != taken && other->image->store == s) {
			driver_drop(d, other);
			d->exact = false; /* it may have wanted copies of this write */
			return true;
		}
	}
	return false;
}

enum cowsnap_decision write_decide(void *user, const struct cowsnap_trouble *trouble)
{
	struct driver_taken *taken = user;
	struct driver *d = taken->driver;

	want(d, d->writing);
	want(d, trouble->snapshot == taken->snapshot);
	want(d, trouble->store == d->store[taken->image->store]);
	want_eq(d, trouble->reason, -ENOSPC);
	want_eq(d, taken->on_full, COWSNAP_LOSER_ASK);
	want_eq(d, taken->image->origin, d->write_origin);
	want(d, trouble->length > 0);
	want(d, model_needs_range(&d->model, taken->image, trouble->offset, trouble->length));
	want(d, trouble->attempt > taken->attempts);
	taken->attempts = trouble->attempt;
	if (driver_below(d, 2) > 0 && make_room(d, taken))
		taken->answer = COWSNAP_DECIDE_RETRY;
	else if (taken->attempts < 3 && driver_below(d, 3) == 0)
		taken->answer = COWSNAP_DECIDE_RETRY;
	else if (driver_below(d, 2) > 0)
		taken->answer = COWSNAP_DECIDE_WRITE;
	else
		taken->answer = COWSNAP_DECIDE_SNAPSHOT;
	return (enum cowsnap_decision)taken->answer;
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

/* Could the store be too small for this write, even after everything dropped is given back? */
static bool may_run_full(struct driver *d, unsigned s)
{
	uint64_t wanted = model_copies_wanted(
		&d->model, d->write_origin, s, d->write_offset, d->write_length);

	for (unsigned i = 0; i < DRIVER_OPEN_MAX; i++) {
		if (d->open[i].used && wanted > 0)
			return true; /* a write under way may hold dropped space back */
	}
	for (unsigned i = 0; i < d->model.images; i++) {
		const struct model_image *image = d->model.image[i];

		if (image->store == s && image->state == MODEL_INVALID && wanted > 0)
			return true; /* it may keep its space until it is dropped */
	}
	return model_held(&d->model, s, true) + wanted > d->limit_chunks[s];
}

static bool newly_invalid(struct driver *d, struct model_image *image)
{
	struct driver_taken *taken = image->user;
	struct cowsnap_snapshot_info info;

	if (image->state != MODEL_ACTIVE)
		return false;
	want_eq(d, cowsnap_snapshot_info(taken->snapshot, &info, sizeof(info)), 0);
	return info.state == COWSNAP_SNAPSHOT_INVALID;
}

static void check_loser(struct driver *d, struct model_image *image)
{
	struct driver_taken *taken = image->user;
	uint64_t chunk_bytes = d->model.chunk_bytes[image->store];
	uint64_t first = d->write_offset / chunk_bytes * chunk_bytes;
	uint64_t end = (d->write_offset + d->write_length - 1) / chunk_bytes * chunk_bytes;
	struct cowsnap_snapshot_info info;

	end += chunk_bytes;
	want_eq(d, image->origin, d->write_origin);
	want(d, model_needs_range(&d->model, image, d->write_offset, d->write_length));
	want(d, lets_snapshot_lose(taken));
	want_eq(d, taken->invalid_events, 1);
	want_eq(d, taken->event_reason, -ENOSPC);
	want_eq(d, cowsnap_snapshot_info(taken->snapshot, &info, sizeof(info)), 0);
	want_eq(d, info.reason, -ENOSPC);
	want(d, info.reason_length > 0);
	want(d, info.reason_offset >= first && info.reason_offset < end);
	want(d, info.reason_offset + info.reason_length <= end);
}

/* After a write that went on: in each chain the losers are the newest ones. */
static void check_chain(struct driver *d, const bool *lost)
{
	for (unsigned i = 0; i < d->model.images; i++) {
		const struct model_image *older = d->model.image[i];

		for (unsigned j = i + 1; lost[i] && j < d->model.images; j++) {
			const struct model_image *newer = d->model.image[j];

			if (newer->origin == older->origin && newer->store == older->store &&
				newer->state == MODEL_ACTIVE)
				want(d, lost[j]);
		}
	}
}

/* Returns: whether anybody lost. */
static bool settle_losers(struct driver *d, int rc, const bool *may_fail)
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
	if (rc == 0)
		check_chain(d, lost);
	else
		want(d, refused);
	for (unsigned i = 0; i < d->model.images; i++) {
		if (lost[i])
			d->model.image[i]->state = MODEL_INVALID;
	}
	return any;
}

static bool chunk_saved(struct driver *d, const struct model_image *image, uint64_t chunk)
{
	const struct driver_taken *taken = image->user;
	struct cowsnap_extent extent;
	uint64_t offset = chunk * d->model.chunk_bytes[image->store];

	want_eq(d, cowsnap_snapshot_extent(taken->snapshot, offset, 1, &extent), 0);
	return extent.saved;
}

/* After a refused write: some chunks were saved before one could not be. For all or for none. */
static void adopt_chunk(struct driver *d, unsigned s, uint64_t chunk)
{
	int saved = -1;

	for (unsigned i = 0; i < d->model.images; i++) {
		const struct model_image *image = d->model.image[i];

		if (image->origin != d->write_origin || image->store != s ||
			!model_needs(image, chunk))
			continue;
		if (saved < 0)
			saved = chunk_saved(d, image, chunk);
		want_eq(d, chunk_saved(d, image, chunk), saved);
	}
	if (saved > 0)
		model_save_chunk(&d->model, d->write_origin, s, chunk);
}

static void adopt_partial(struct driver *d)
{
	for (unsigned s = 0; s < d->model.stores; s++) {
		uint64_t last = model_last_chunk(&d->model, s, d->write_offset, d->write_length);

		for (uint64_t c = model_first_chunk(&d->model, s, d->write_offset); c <= last; c++)
			adopt_chunk(d, s, c);
	}
}

static void host_writes(struct driver *d, enum cowsnap_write_kind kind)
{
	struct cowsnap_device *device = d->origin_device[d->write_origin];
	uint64_t offset = d->write_offset;
	uint64_t length = d->write_length;

	switch (kind) {
	case COWSNAP_WRITE:
		driver_fill(d, d->scratch, length);
		want_eq(d, cowsnap_device_write(device, d->scratch, offset, length), 0);
		break;
	case COWSNAP_DISCARD:
		/* Reads as anything afterwards: as what, the device says. */
		want_eq(d, cowsnap_device_discard(device, offset, length), 0);
		want_eq(d, cowsnap_device_read(device, d->scratch, offset, length), 0);
		break;
	case COWSNAP_WRITE_ZEROES:
		memset(d->scratch, 0, length);
		want_eq(d, cowsnap_device_zero(device, offset, length), 0);
		break;
	}
	model_write(&d->model, d->write_origin, d->scratch, offset, length);
}

static void choose_range(struct driver *d)
{
	uint64_t chunk_bytes = d->model.chunk_bytes[driver_below(d, d->model.stores)];
	uint64_t size, room;

	d->write_origin = (unsigned)driver_below(d, d->model.origins);
	size = d->model.origin[d->write_origin].size_bytes;
	d->write_offset = driver_below(d, size);
	if (driver_below(d, 3) == 0)
		d->write_offset = d->write_offset / chunk_bytes * chunk_bytes;
	room = size - d->write_offset;
	switch (driver_below(d, 8)) {
	case 0:
		d->write_length = room;
		break;
	case 1:
		d->write_length = 1 + driver_below(d, room);
		break;
	case 2:
		d->write_length = 1 + driver_below(d, chunk_bytes * 6);
		break;
	default:
		d->write_length = 1 + driver_below(d, chunk_bytes);
		break;
	}
	if (d->write_length > room)
		d->write_length = room;
}

/* Ends the bracket now, or leaves it open over the next steps. */
static void end_or_keep(struct driver *d, struct cowsnap_op *op, unsigned place)
{
	if (place < DRIVER_OPEN_MAX && driver_below(d, 2) > 0)
		d->open[place].used = true;
	else
		cowsnap_write_end(op);
}

/* ---- What the host knows --------------------------------------------------------------------- */

/* May a store ask about this range: its own chunks, each wanted? */
static bool may_ask(struct driver *d, unsigned s, uint64_t offset, uint64_t length)
{
	uint64_t chunk_bytes = d->model.chunk_bytes[s], end = offset + length;

	if (offset % chunk_bytes ||
		(end % chunk_bytes && end != d->model.origin[d->write_origin].size_bytes))
		return false;
	for (uint64_t at = offset; at < end; at += chunk_bytes) {
		if (!model_wanted(&d->model, d->write_origin, s, at / chunk_bytes))
			return false;
	}
	return true;
}

static uint64_t largest_chunk(const struct driver *d)
{
	uint64_t largest = 0;

	for (unsigned s = 0; s < d->model.stores; s++) {
		if (d->model.chunk_bytes[s] > largest)
			largest = d->model.chunk_bytes[s];
	}
	return largest;
}

static bool reads_as_zeroes(const uint8_t *bytes, uint64_t length)
{
	return !bytes[0] && !memcmp(bytes, bytes + 1, length - 1);
}

static enum cowsnap_preimage_kind answer_badly(struct driver *d, struct cowsnap_preimage_ask *ask)
{
	ask->data = NULL;
	switch (driver_below(d, 3)) {
	case 0:
		ask->length = 0;
		return COWSNAP_PREIMAGE_ZERO;
	case 1:
		ask->length++;
		return COWSNAP_PREIMAGE_ZERO;
	default:
		return COWSNAP_PREIMAGE_GIVEN;
	}
}

static enum cowsnap_preimage_kind tell(void *user, struct cowsnap_preimage_ask *ask)
{
	struct driver *d = user;
	const uint8_t *data = d->model.origin[d->write_origin].data + ask->offset;
	uint64_t part = largest_chunk(d) * (1 + driver_below(d, 3));
	bool may = false;

	want(d, d->writing);
	for (unsigned s = 0; s < d->model.stores; s++)
		may |= may_ask(d, s, ask->offset, ask->length);
	want(d, may);
	if (driver_below(d, 16) == 0)
		return answer_badly(d, ask);
	if (part < ask->length && driver_below(d, 2) > 0)
		ask->length = part;
	ask->data = data;
	if (driver_below(d, 4) == 0)
		return COWSNAP_PREIMAGE_READ;
	if (driver_below(d, 4) > 0 && reads_as_zeroes(data, ask->length))
		return COWSNAP_PREIMAGE_ZERO;
	return COWSNAP_PREIMAGE_GIVEN;
}

static int begin(struct driver *d, enum cowsnap_write_kind kind, struct cowsnap_op *op)
{
	const struct cowsnap_preimage preimage = {.get = tell, .user = d};
	int rc;

	for (unsigned i = 0; i < d->model.images; i++) {
		struct driver_taken *taken = d->model.image[i]->user;

		taken->answer = -1;
		taken->attempts = 0;
	}
	d->writing = true;
	rc = cowsnap_write_begin_with(d->origin[d->write_origin], kind, d->write_offset,
		d->write_length, d->model.told ? &preimage : NULL, op);
	d->writing = false;
	return rc;
}

void write_step(struct driver *d)
{
	static const enum cowsnap_write_kind kinds[] = {COWSNAP_WRITE, COWSNAP_WRITE, COWSNAP_WRITE,
		COWSNAP_WRITE, COWSNAP_DISCARD, COWSNAP_WRITE_ZEROES};
	enum cowsnap_write_kind kind = kinds[driver_below(d, sizeof(kinds) / sizeof(kinds[0]))];
	unsigned place = (unsigned)driver_below(d, DRIVER_OPEN_MAX * 6);
	bool may_fail[MODEL_STORES];
	struct cowsnap_op brief;
	struct cowsnap_op *op = &brief;
	uint64_t wanted = 0;
	int rc;

	choose_range(d);
	d->model.told = driver_below(d, 3) == 0;
	driver_note(d, "write kind %d origin %u offset %llu length %llu%s", kind, d->write_origin,
		(unsigned long long)d->write_offset, (unsigned long long)d->write_length,
		d->model.told ? ", told" : "");
	if (place < DRIVER_OPEN_MAX && !d->open[place].used)
		op = &d->open[place].op;
	else
		place = DRIVER_OPEN_MAX;
	for (unsigned s = 0; s < d->model.stores; s++) {
		may_fail[s] = may_run_full(d, s);
		wanted += model_copies_wanted(
			&d->model, d->write_origin, s, d->write_offset, d->write_length);
	}
	rc = begin(d, kind, op);
	want(d, rc == 0 || rc == -ENOSPC);
	if (settle_losers(d, rc, may_fail) || rc)
		d->exact = false;
	if (rc) {
		adopt_partial(d);
		return;
	}
	d->copied += wanted;
	model_save(&d->model, d->write_origin, d->write_offset, d->write_length);
	host_writes(d, kind);
	end_or_keep(d, op, place);
}
