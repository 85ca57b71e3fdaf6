/* SPDX-License-Identifier: MIT
 *
 * Space: what a store says that it holds, against what it must and may; giving back; limits.
 */
#include "model/driver.h"

#include <errno.h>

static unsigned count_images(const struct driver *d, unsigned s, bool *invalid, bool *merging)
{
	unsigned count = 0;

	*invalid = *merging = false;
	for (unsigned i = 0; i < d->model.images; i++) {
		if (d->model.image[i]->store != s)
			continue;
		count++;
		*invalid = *invalid || d->model.image[i]->state == MODEL_INVALID;
		*merging = *merging || d->model.image[i]->state == MODEL_MERGING;
	}
	return count;
}

/* @reclaimed: everything that can be given back has been. */
void space_check(struct driver *d, unsigned s, bool reclaimed)
{
	uint64_t chunk_bytes = d->model.chunk_bytes[s];
	uint64_t held = model_held(&d->model, s, false);
	uint64_t surely = model_held_surely(&d->model, s);
	struct cowsnap_store_usage usage;
	bool invalid, merging;
	unsigned images = count_images(d, s, &invalid, &merging);

	want_eq(d, cowsnap_store_usage(d->store[s], &usage, sizeof(usage)), 0);
	want_eq(d, usage.chunk_size_bytes, chunk_bytes);
	want_eq(d, usage.limit_bytes, d->limit_chunks[s] * chunk_bytes);
	want(d, usage.used_bytes <= usage.limit_bytes);
	want(d, usage.used_bytes <= usage.high_water_bytes);
	want(d, usage.used_bytes >= surely * chunk_bytes);
	want(d, usage.reclaimable_bytes <= usage.used_bytes);
	want(d, usage.snapshots <= images);
	if (!invalid)
		want_eq(d, usage.snapshots, images);
	/* Where one is merged nothing is given back. */
	if (!reclaimed || merging)
		return;
	want_eq(d, usage.reclaimable_bytes, 0);
	if (!invalid)
		want(d, usage.used_bytes <= held * chunk_bytes);
	if (images == 0) {
		want_eq(d, usage.used_bytes, 0);
		want_eq(d, usage.ghosts, 0);
	}
}

void space_reclaim_step(struct driver *d)
{
	bool all = driver_below(d, 3) == 0;
	unsigned rounds = all ? 1000000 : 1 + (unsigned)driver_below(d, 4);
	uint64_t budget = driver_below(d, 4) ? 1 + driver_below(d, 200) : UINT64_MAX;
	int more = 1;

	driver_note(d, "reclaim %s, %llu a time", all ? "all" : "some", (unsigned long long)budget);
	if (all)
		driver_end_open(d);
	while (more == 1 && rounds-- > 0)
		more = cowsnap_reclaim(d->ctx, budget);
	want(d, more == 0 || (!all && more == 1));
	for (unsigned s = 0; s < d->model.stores; s++)
		space_check(d, s, more == 0 && all);
}

void space_limit_step(struct driver *d)
{
	unsigned s = (unsigned)driver_below(d, d->model.stores);
	uint64_t chunks = 1 + driver_below(d, 150);
	uint64_t chunk_bytes = d->model.chunk_bytes[s];
	struct cowsnap_store_usage usage;
	int rc;

	driver_note(d, "limit of store %u to %llu chunks", s, (unsigned long long)chunks);
	want_eq(d, cowsnap_store_usage(d->store[s], &usage, sizeof(usage)), 0);
	rc = cowsnap_store_set_limit(d->store[s], chunks * chunk_bytes);
	if (chunks > d->grow_chunks[s])
		want_eq(d, rc, -ERANGE);
	else if (chunks * chunk_bytes >= usage.used_bytes)
		want_eq(d, rc, 0);
	else if (chunks * chunk_bytes < usage.used_bytes - usage.reclaimable_bytes)
		want_eq(d, rc, -EBUSY);
	else
		want(d, rc == 0 || rc == -EBUSY);
	if (rc == 0)
		d->limit_chunks[s] = chunks;
	space_check(d, s, false);
}
