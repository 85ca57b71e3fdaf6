/* SPDX-License-Identifier: MIT
 *
 * The volumes: what they show, during a merge too, and becoming longer while snapshots live.
 */
#include "model/driver.h"

#include <errno.h>

static void compare(struct driver *d, unsigned o, uint64_t offset, uint64_t length)
{
	want_eq(d, cowsnap_origin_read(d->origin[o], d->scratch, offset, length), 0);
	driver_same(d, "the volume differs at", d->model.origin[o].data, offset, length);
}

void origins_read_step(struct driver *d)
{
	unsigned o = (unsigned)driver_below(d, d->model.origins);
	uint64_t offset, length;

	driver_range(d, d->model.origin[o].size_bytes, &offset, &length);
	driver_note(d, "read the volume of origin %u offset %llu length %llu", o,
		(unsigned long long)offset, (unsigned long long)length);
	compare(d, o, offset, length);
	if (driver_below(d, 4) == 0)
		want_eq(d, cowsnap_origin_flush(d->origin[o]), 0);
}

void origins_check(struct driver *d)
{
	for (unsigned o = 0; o < d->model.origins; o++) {
		const struct model_origin *origin = &d->model.origin[o];

		want_eq(d, cowsnap_origin_size(d->origin[o]), origin->size_bytes);
		compare(d, o, 0, origin->size_bytes);
		if (d->merging[o])
			continue;
		want_eq(d,
			cowsnap_device_read(d->origin_device[o], d->scratch, 0, origin->size_bytes),
			0);
		driver_same(d, "the device differs at", origin->data, 0, origin->size_bytes);
	}
}

void origins_resize_step(struct driver *d)
{
	unsigned o = (unsigned)driver_below(d, d->model.origins);
	struct model_origin *origin = &d->model.origin[o];
	uint64_t room = origin->room_bytes - origin->size_bytes, more;
	uint64_t device = cowsnap_device_size(d->origin_device[o]);

	more = room ? 1 + driver_below(d, driver_below(d, 2) ? room : room / 4 + 1) : 0;
	driver_note(d, "origin %u of %llu bytes: %llu more", o,
		(unsigned long long)origin->size_bytes, (unsigned long long)more);
	want_eq(d, cowsnap_origin_resize(d->origin[o], device + 1), -ERANGE);
	if (origin->size_bytes > 1)
		want_eq(d, cowsnap_origin_resize(d->origin[o], origin->size_bytes - 1), -ENOTSUP);
	if (device < origin->size_bytes + more && !rig_grow(d, o, origin->size_bytes + more))
		return;
	device = cowsnap_device_size(d->origin_device[o]);
	want(d, device >= origin->size_bytes + more);
	if (device == origin->size_bytes + more && driver_below(d, 2) > 0)
		want_eq(d, cowsnap_origin_resize(d->origin[o], 0), 0);
	else
		want_eq(d, cowsnap_origin_resize(d->origin[o], origin->size_bytes + more), 0);
	origin->size_bytes += more;
	want_eq(d, cowsnap_origin_size(d->origin[o]), origin->size_bytes);
}
