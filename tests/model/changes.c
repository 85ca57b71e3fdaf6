/* SPDX-License-Identifier: MIT
 *
 * What has changed between two snapshots, or since one: nothing is left out that differs, and
 * nothing is told that was not written.
 */
#include "model/driver.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define RUNS 8

struct images {
	const struct model_image *from, *to; /* to NULL: now */
	struct cowsnap_snapshot *from_snapshot, *to_snapshot;
	uint64_t chunk_bytes;
	uint64_t size_to;
	uint64_t longer, shorter;
	const uint8_t *data_to;
	bool *told; /* by chunk */
};

static void look_at(
	struct driver *d, struct driver_taken *from, struct driver_taken *to, struct images *images)
{
	const struct model_origin *now = &d->model.origin[from->image->origin];
	uint64_t size_from = from->image->size_bytes;

	images->from = from->image;
	images->to = to ? to->image : NULL;
	images->from_snapshot = from->snapshot;
	images->to_snapshot = to ? to->snapshot : NULL;
	images->chunk_bytes = d->model.chunk_bytes[from->image->store];
	images->size_to = to ? to->image->size_bytes : now->size_bytes;
	images->data_to = to ? to->image->data : now->data;
	images->longer = images->size_to > size_from ? images->size_to : size_from;
	images->shorter = images->size_to < size_from ? images->size_to : size_from;
}

static int expected(const struct driver *d, const struct images *images)
{
	const struct model_image *from = images->from, *to = images->to;

	if (to && to->origin != from->origin)
		return -EXDEV;
	if (to && model_index(&d->model, to) <= model_index(&d->model, from))
		return -EINVAL;
	if (from->state == MODEL_INVALID || (to && to->state == MODEL_INVALID))
		return -ESTALE;
	return 0;
}

static void note_run(struct driver *d, const struct images *images,
	const struct cowsnap_change *run, uint64_t begin, uint64_t end, uint64_t *last)
{
	uint64_t chunk_bytes = images->chunk_bytes, stop = run->offset + run->length;

	want(d, run->length > 0);
	want(d, run->offset >= begin && stop <= end);
	/* In order, and none touches the next one. */
	want(d, *last == UINT64_MAX || run->offset > *last);
	want(d, run->offset % chunk_bytes == 0 || run->offset == begin);
	want(d, stop % chunk_bytes == 0 || stop == images->longer);
	*last = stop;
	for (uint64_t c = run->offset / chunk_bytes; c * chunk_bytes < stop; c++) {
		images->told[c] = true;
		want(d, model_may_differ(&d->model, images->from, images->to, c));
	}
}

/* Nothing from @begin on is left out; between two, of what both have had since they were taken. */
static void check_told(struct driver *d, const struct images *images, uint64_t begin)
{
	const uint8_t *data_from = images->from->data;
	uint64_t chunk_bytes = images->chunk_bytes, stop = images->longer;

	if (images->to && images->from->known_bytes != images->from->size_bytes)
		stop = images->from->known_bytes;
	for (uint64_t at = begin, end; at < stop; at = end) {
		end = (at / chunk_bytes + 1) * chunk_bytes;
		end = end < stop ? end : stop;
		if (images->told[at / chunk_bytes])
			continue;
		/* Where one has nothing they differ. */
		want(d, end <= images->shorter);
		if (memcmp(data_from + at, images->data_to + at, end - at) != 0)
			driver_fail(
				d, __FILE__, __LINE__, "change left out at offset", (long long)at);
	}
}

static void check_changes(struct driver *d, struct images *images)
{
	uint64_t begin = driver_below(d, 4) ? 0 : driver_below(d, images->longer);
	uint64_t offset = begin, last = UINT64_MAX;
	struct cowsnap_change runs[RUNS];

	images->told = calloc(images->longer / images->chunk_bytes + 1, sizeof(bool));
	while (offset < images->longer) {
		uint64_t from = offset;
		unsigned count = 1 + (unsigned)driver_below(d, RUNS);
		int n = cowsnap_changes(
			images->from_snapshot, images->to_snapshot, &offset, runs, count);

		want(d, n >= 0 && n <= (int)count);
		want(d, offset > from && offset <= images->longer);
		/* A run is clipped where the first call begins, and nowhere else. */
		for (int i = 0; i < n; i++)
			note_run(d, images, &runs[i], i || from > begin ? from : begin, offset,
				&last);
	}
	check_told(d, images, begin);
	free(images->told);
}

void changes_step(struct driver *d)
{
	struct driver_taken *from = driver_pick(d, false);
	struct driver_taken *to = driver_below(d, 3) ? driver_pick(d, false) : NULL;
	struct cowsnap_change run;
	struct images images;
	uint64_t offset = 0;
	int rc;

	if (!from)
		return;
	/* Mostly in the right order. */
	if (to && driver_below(d, 4) > 0 &&
		model_index(&d->model, to->image) < model_index(&d->model, from->image)) {
		struct driver_taken *older = to;

		to = from;
		from = older;
	}
	look_at(d, from, to, &images);
	rc = expected(d, &images);
	driver_note(d, "changes of origin %u store %u from %u to %d", from->image->origin,
		from->image->store, model_index(&d->model, from->image),
		to ? (int)model_index(&d->model, to->image) : -1);
	if (rc) {
		want_eq(d, cowsnap_changes(from->snapshot, images.to_snapshot, &offset, &run, 1),
			rc);
		return;
	}
	check_changes(d, &images);
	offset = images.longer + 1;
	want_eq(d, cowsnap_changes(from->snapshot, images.to_snapshot, &offset, &run, 1), -ERANGE);
	want_eq(d, cowsnap_changes(from->snapshot, images.to_snapshot, &offset, &run, 0), -EINVAL);
}
