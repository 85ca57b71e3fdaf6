/* SPDX-License-Identifier: MIT
 *
 * The write step. While the store has room everything is predicted; full.c says what may come when
 * it has not.
 *
 * Some writes come from a host that tells what it knows of the old content: always the truth, by
 * chance all or a part of it, or in a way that is not allowed. Some leave all the I/O to the
 * library.
 */
#include "model/driver.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* All of a snapshot, or its data. */
static void give_up(struct driver *d, struct driver_taken *taken)
{
	struct model_image *image = taken->image;

	/* It may have lost in this very write. */
	if (driver_info(d, taken).state != COWSNAP_SNAPSHOT_ACTIVE ||
		d->model.records[image->store] || driver_below(d, 3) > 0) {
		driver_drop(d, taken);
		return;
	}
	if (driver_below(d, 2) > 0) {
		want_eq(d, cowsnap_snapshot_downgrade(taken->snapshot), 0);
		image->state = MODEL_MAP_ONLY;
		return;
	}
	want_eq(d, cowsnap_snapshot_release(taken->snapshot, 0, image->size_bytes), 0);
	for (uint64_t c = 0; c < image->chunks; c++)
		image->chunk[c].released = true;
}

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

		if (other == taken || other->image->store != s ||
			other->image->state == MODEL_MERGING)
			continue;
		give_up(d, other);
		d->exact = false; /* it may have wanted copies of this write */
		return true;
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
	/* A merge is many writes. */
	want(d, trouble->attempt > taken->attempts || d->merging[d->write_origin]);
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

/* ---- The range ------------------------------------------------------------------------------- */

/* While a snapshot of the origin is merged, others keep what they need of all its chunks. */
static void widen(struct driver *d)
{
	const struct driver_taken *merging = d->merging[d->write_origin];
	uint64_t size = d->model.origin[d->write_origin].size_bytes;
	uint64_t chunk_bytes, end;

	d->host_offset = d->write_offset;
	d->host_length = d->write_length;
	if (!merging)
		return;
	chunk_bytes = d->model.chunk_bytes[merging->image->store];
	end = (d->write_offset + d->write_length + chunk_bytes - 1) / chunk_bytes * chunk_bytes;
	d->write_offset -= d->write_offset % chunk_bytes;
	d->write_length = (end < size ? end : size) - d->write_offset;
}

static void choose_range(struct driver *d)
{
	d->write_origin = (unsigned)driver_below(d, d->model.origins);
	driver_range(
		d, d->model.origin[d->write_origin].size_bytes, &d->write_offset, &d->write_length);
	widen(d);
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

enum cowsnap_preimage_kind write_tell(void *user, struct cowsnap_preimage_ask *ask)
{
	struct driver *d = user;
	const uint8_t *data = d->model.origin[d->write_origin].data + ask->offset;
	uint64_t part = largest_chunk(d) * (1 + driver_below(d, 3));
	bool may = false;

	want(d, d->writing && !d->merging[d->write_origin]);
	want(d, d->model.told);
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

static bool merges_records(const struct driver *d)
{
	const struct driver_taken *merging = d->merging[d->write_origin];

	return merging && d->model.records[merging->image->store];
}

/* Would a bracket wait until a merge of records has come to the range? */
static bool would_wait(const struct driver *d)
{
	const struct model_image *image;
	uint64_t last;

	if (!merges_records(d))
		return false;
	image = d->merging[d->write_origin]->image;
	last = model_last_chunk(&d->model, image->store, d->host_offset, d->host_length);
	for (uint64_t c = model_first_chunk(&d->model, image->store, d->host_offset);
		c <= last && c < image->chunks; c++) {
		if (image->chunk[c].copy)
			return true;
	}
	return false;
}

/* ---- The write ------------------------------------------------------------------------------- */

struct write {
	enum cowsnap_write_kind kind;
	bool by_library; /* all of it: cowsnap_origin_write() */
	bool tells;      /* what it knows, in this bracket */
	struct cowsnap_op brief;
	struct cowsnap_op *op;
	unsigned place; /* among those that may stay open; else DRIVER_OPEN_MAX */
	bool may_fail[MODEL_STORES];
	uint64_t wanted; /* copies */
};

static void choose(struct driver *d, struct write *w)
{
	static const enum cowsnap_write_kind kinds[] = {COWSNAP_WRITE, COWSNAP_WRITE, COWSNAP_WRITE,
		COWSNAP_WRITE, COWSNAP_DISCARD, COWSNAP_WRITE_ZEROES};

	w->kind = kinds[driver_below(d, sizeof(kinds) / sizeof(kinds[0]))];
	choose_range(d);
	w->by_library = driver_below(d, 5) == 0 || would_wait(d);
	w->tells = !w->by_library && driver_below(d, 3) == 0;
	w->place = (unsigned)driver_below(d, DRIVER_OPEN_MAX * 6);
	w->op = &w->brief;
	if (!w->by_library && w->place < DRIVER_OPEN_MAX && !d->open[w->place].used)
		w->op = &d->open[w->place].op;
	else
		w->place = DRIVER_OPEN_MAX;
	d->model.told = w->tells || d->asks[d->write_origin];
	w->wanted = 0;
	for (unsigned s = 0; s < d->model.stores; s++) {
		uint64_t wanted = model_copies_wanted(
			&d->model, d->write_origin, s, d->write_offset, d->write_length);

		w->may_fail[s] = full_possible(d, s, wanted);
		w->wanted += wanted;
	}
}

static int begin(struct driver *d, struct write *w)
{
	const struct cowsnap_preimage preimage = {.get = write_tell, .user = d};
	struct cowsnap_origin *origin = d->origin[d->write_origin];
	int rc;

	full_begin(d);
	if (w->kind == COWSNAP_WRITE)
		driver_fill(d, d->scratch, d->host_length);
	d->writing = true;
	if (w->by_library)
		rc = cowsnap_origin_write(origin, w->kind,
			w->kind == COWSNAP_WRITE ? d->scratch : NULL, d->host_offset,
			d->host_length);
	else
		rc = cowsnap_write_begin_with(origin, w->kind, d->host_offset, d->host_length,
			w->tells ? &preimage : NULL, w->op);
	d->writing = false;
	return rc;
}

static void host_writes(struct driver *d, enum cowsnap_write_kind kind)
{
	struct cowsnap_device *device = d->origin_device[d->write_origin];

	switch (kind) {
	case COWSNAP_WRITE:
		want_eq(d, cowsnap_device_write(device, d->scratch, d->host_offset, d->host_length),
			0);
		break;
	case COWSNAP_DISCARD:
		want_eq(d, cowsnap_device_discard(device, d->host_offset, d->host_length), 0);
		break;
	case COWSNAP_WRITE_ZEROES:
		want_eq(d, cowsnap_device_zero(device, d->host_offset, d->host_length), 0);
		break;
	}
}

/* What was discarded reads as anything afterwards: as what, the volume says. */
static void model_changes(struct driver *d, enum cowsnap_write_kind kind)
{
	if (kind == COWSNAP_WRITE_ZEROES)
		memset(d->scratch, 0, d->host_length);
	if (kind == COWSNAP_DISCARD)
		want_eq(d,
			cowsnap_origin_read(d->origin[d->write_origin], d->scratch, d->host_offset,
				d->host_length),
			0);
	model_write(&d->model, d->write_origin, d->scratch, d->host_offset, d->host_length);
}

/* The library wrote chunk after chunk of what is merged, until one failed. */
static void model_changes_partly(struct driver *d, enum cowsnap_write_kind kind)
{
	const struct model_origin *origin = &d->model.origin[d->write_origin];
	const struct model_image *merging = d->merging[d->write_origin]->image;
	uint64_t chunk_bytes = d->model.chunk_bytes[merging->store];
	uint64_t end = d->host_offset + d->host_length, to;
	uint8_t *now = malloc(d->host_length);
	bool failed = false;

	if (kind != COWSNAP_WRITE)
		memset(d->scratch, 0, d->host_length);
	want_eq(d,
		cowsnap_origin_read(
			d->origin[d->write_origin], now, d->host_offset, d->host_length),
		0);
	for (uint64_t at = d->host_offset; at < end; at = to) {
		const uint8_t *is = now + (at - d->host_offset);

		to = (at / chunk_bytes + 1) * chunk_bytes;
		to = to < end ? to : end;
		/* What lies behind its end is a part of its own. */
		if (at < merging->size_bytes && to > merging->size_bytes)
			to = merging->size_bytes;
		failed = failed || (kind != COWSNAP_DISCARD &&
					   memcmp(is, d->scratch + (at - d->host_offset), to - at));
		want(d, !failed || !memcmp(is, origin->data + at, to - at));
	}
	model_write(&d->model, d->write_origin, now, d->host_offset, d->host_length);
	free(now);
}

/* The bracket has begun: all that needs the range has it. */
static void saved(struct driver *d, const struct write *w)
{
	if (!d->merging[d->write_origin]) {
		d->copied += w->wanted;
		model_save(&d->model, d->write_origin, d->write_offset, d->write_length);
		return;
	}
	d->copied += full_adopt(d);
	/* There it was written in place, where it was not moved. */
	if (would_wait(d))
		return;
	for (unsigned i = 0; i < d->model.images; i++) {
		const struct model_image *image = d->model.image[i];
		uint64_t c = model_first_chunk(&d->model, image->store, d->host_offset);
		uint64_t last =
			model_last_chunk(&d->model, image->store, d->host_offset, d->host_length);

		for (; image->origin == d->write_origin && c <= last; c++)
			want(d, !model_needs(image, c) || image->chunk[c].maybe);
	}
}

/* Ends the bracket now, or leaves it open over the next steps. */
static void end_or_keep(struct driver *d, const struct write *w)
{
	if (w->by_library)
		return;
	if (w->place < DRIVER_OPEN_MAX && driver_below(d, 2) > 0)
		d->open[w->place].used = true;
	else
		cowsnap_write_end(w->op);
}

void write_step(struct driver *d)
{
	struct write w;
	int rc;

	choose(d, &w);
	driver_note(d, "write kind %d origin %u offset %llu length %llu%s%s%s", w.kind,
		d->write_origin, (unsigned long long)d->host_offset,
		(unsigned long long)d->host_length, d->model.told ? ", told" : "",
		w.by_library ? ", by the library" : "",
		d->merging[d->write_origin] ? ", during a merge" : "");
	rc = begin(d, &w);
	want(d, rc == 0 || rc == -ENOSPC);
	model_touch(&d->model, d->write_origin, d->write_offset, d->write_length);
	if (full_settle(d, rc, w.may_fail) || rc)
		d->exact = false;
	if (rc) {
		full_adopt(d);
		if (merges_records(d) && w.by_library)
			model_changes_partly(d, w.kind);
		return;
	}
	saved(d, &w);
	if (!w.by_library)
		host_writes(d, w.kind);
	model_changes(d, w.kind);
	end_or_keep(d, &w);
}
