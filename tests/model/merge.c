/* SPDX-License-Identifier: MIT
 *
 * Merging, in portions, with all other steps in between: from its begin on the volume shows what
 * the snapshot has, others keep their content, and in the end the device has it.
 */
#include "model/driver.h"

#include <errno.h>
#include <stdlib.h>

/* ---- Begin ----------------------------------------------------------------------------------- */

static int begin_error(const struct driver *d, const struct model_image *image)
{
	int rc = driver_read_error(d, image, 0, image->size_bytes);

	if (!rc && d->merging[image->origin])
		rc = -EBUSY;
	return rc;
}

void merge_begin(struct driver *d, struct driver_taken *taken)
{
	struct model_image *image = taken->image;
	struct cowsnap_merge_info info;
	int rc = begin_error(d, image);

	driver_note(d, "merge origin %u store %u", image->origin, image->store);
	want_eq(d, cowsnap_merge_info(taken->snapshot, &info, sizeof(info)),
		image->state == MODEL_MERGING ? 0 : -EINVAL);
	driver_end_open(d);
	want_eq(d, cowsnap_merge_begin(taken->snapshot), rc);
	if (rc)
		return;
	model_merge(&d->model, image);
	d->merging[image->origin] = taken;
	taken->merged_events = taken->merge_failures = 0;
	taken->moved_bytes = 0;
}

/* ---- What is refused meanwhile --------------------------------------------------------------- */

static void refusals_of_sibling(struct driver *d, struct driver_taken *merging)
{
	struct driver_taken *other = driver_pick(d, true);
	struct cowsnap_merge_info info;

	if (!other || other->image->origin != merging->image->origin)
		return;
	want_eq(d, cowsnap_merge_begin(other->snapshot), begin_error(d, other->image));
	want_eq(d, cowsnap_merge_run(other->snapshot, UINT64_MAX), -EINVAL);
	want_eq(d, cowsnap_merge_info(other->snapshot, &info, sizeof(info)), -EINVAL);
}

static void refusals(struct driver *d, struct driver_taken *merging)
{
	struct cowsnap_snapshot *snapshot = merging->snapshot;
	struct cowsnap_extent extent;
	struct cowsnap_op op;

	driver_note(d, "what is refused during the merge of origin %u", merging->image->origin);
	want_eq(d, cowsnap_snapshot_read(snapshot, d->scratch, 0, 1), -EBUSY);
	want_eq(d, cowsnap_snapshot_extent(snapshot, 0, 1, &extent), -EBUSY);
	want_eq(d, cowsnap_snapshot_write(snapshot, COWSNAP_WRITE_ZEROES, NULL, 0, 1), -EBUSY);
	want_eq(d, cowsnap_snapshot_release(snapshot, 0, 1), -EBUSY);
	if (!d->model.records[merging->image->store])
		want_eq(d, cowsnap_snapshot_downgrade(snapshot), -EBUSY);
	want_eq(d, cowsnap_snapshot_detach(snapshot, 1), -EBUSY);
	want_eq(d, cowsnap_snapshot_drop(snapshot), -EBUSY);
	want_eq(d, cowsnap_snapshot_drop_async(snapshot, d->queue, &op, NULL, NULL), -EINVAL);
	want_eq(d, cowsnap_merge_begin(snapshot), -EBUSY);
	refusals_of_sibling(d, merging);
}

/* ---- A portion ------------------------------------------------------------------------------- */

static void check_progress(struct driver *d, struct driver_taken *taken, int rc)
{
	struct cowsnap_merge_info info;

	want_eq(d, cowsnap_merge_info(taken->snapshot, &info, sizeof(info)), 0);
	want_eq(d, info.error, rc < 0 ? rc : 0);
	want_eq(d, info.running, 0);
	want(d, info.moved_bytes >= taken->moved_bytes);
	taken->moved_bytes = info.moved_bytes;
}

static void ended(struct driver *d, struct driver_taken *taken)
{
	struct cowsnap_snapshot *snapshot = taken->snapshot;

	d->merging[taken->image->origin] = NULL;
	want_eq(d, taken->merged_events, 1);
	want_eq(d, driver_info(d, taken).state, COWSNAP_SNAPSHOT_DROPPED);
	want_eq(d, cowsnap_merge_run(snapshot, 1), -EINVAL);
	want_eq(d, cowsnap_snapshot_drop(snapshot), -EIDRM);
	want_eq(d, cowsnap_snapshot_read(snapshot, d->scratch, 0, 1), -EIDRM);
	cowsnap_snapshot_unref(snapshot);
	model_drop(&d->model, taken->image);
	free(taken);
	origins_check(d);
}

static int run_in_queue(struct driver *d, struct cowsnap_snapshot *snapshot, uint64_t portion)
{
	struct cowsnap_op op;
	int error = DRIVER_UNDER_WAY;
	int rc = cowsnap_merge_run_async(snapshot, d->queue, portion, &op, driver_done, &error);

	return driver_await(d, rc, &error);
}

/* Returns: as the call. It is a write of anything that is still to be moved. */
static int run(struct driver *d, struct driver_taken *taken, uint64_t portion)
{
	const struct model_image *image = taken->image;
	bool may_fail[MODEL_STORES];
	unsigned failures = taken->merge_failures;
	bool queue = driver_below(d, 2);
	int rc;

	driver_end_open(d);
	driver_note(d, "run the merge of origin %u store %u, %llu bytes%s", image->origin,
		image->store, (unsigned long long)portion, queue ? ", in a queue" : "");
	d->write_origin = image->origin;
	d->write_offset = 0;
	d->write_length = image->size_bytes;
	d->model.told = false;
	for (unsigned s = 0; s < d->model.stores; s++)
		may_fail[s] = full_possible(d, s,
			model_copies_wanted(&d->model, image->origin, s, 0, image->size_bytes));
	full_begin(d);
	d->writing = true;
	rc = queue ? run_in_queue(d, taken->snapshot, portion)
		   : cowsnap_merge_run(taken->snapshot, portion);
	d->writing = false;
	want(d, rc == 0 || rc == 1 || rc == -ENOSPC);
	want_eq(d, taken->merge_failures, failures + (rc < 0));
	if (full_settle(d, rc, may_fail) || rc < 0)
		d->exact = false;
	d->copied += full_adopt(d);
	if (rc)
		check_progress(d, taken, rc);
	else
		ended(d, taken);
	return rc;
}

static uint64_t portion(struct driver *d, const struct model_image *image)
{
	switch (driver_below(d, 5)) {
	case 0:
		return 1;
	case 1:
		return d->model.chunk_bytes[image->store] * (1 + driver_below(d, 4));
	case 2:
		return UINT64_MAX;
	default:
		return 1 + driver_below(d, image->size_bytes);
	}
}

void merge_step(struct driver *d)
{
	unsigned o = (unsigned)driver_below(d, d->model.origins);
	struct driver_taken *merging = d->merging[o], *taken;

	if (merging && driver_below(d, 6) == 0) {
		refusals(d, merging);
	} else if (merging) {
		run(d, merging, portion(d, merging->image));
	} else if (driver_below(d, 3) == 0) {
		taken = driver_pick(d, driver_below(d, 4) > 0);
		if (taken)
			merge_begin(d, taken);
	}
}

void merge_end(struct driver *d, unsigned o)
{
	while (d->merging[o] && run(d, d->merging[o], UINT64_MAX) < 0) {
		struct driver_taken *other = driver_pick(d, true);

		/* Who refuses it goes. */
		want(d, other);
		driver_drop(d, other);
	}
}

void merge_end_all(struct driver *d)
{
	for (unsigned i = d->model.images; i-- > 0;) {
		if (d->model.image[i]->state != MODEL_MERGING && driver_below(d, 2) > 0)
			driver_drop(d, d->model.image[i]->user);
	}
	for (unsigned o = 0; o < d->model.origins; o++)
		merge_end(d, o);
}
