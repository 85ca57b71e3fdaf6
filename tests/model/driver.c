/* SPDX-License-Identifier: MIT */
#include "model/driver.h"
#include "support/test.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* splitmix64: any seed is a good one. */
static uint64_t next(struct driver *d)
{
	uint64_t z = d->random += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

uint64_t driver_below(struct driver *d, uint64_t bound)
{
	return next(d) % bound;
}

void driver_fill(struct driver *d, uint8_t *bytes, uint64_t length)
{
	uint64_t word = next(d);

	for (uint64_t i = 0; i < length; i++) {
		if (i % 8 == 0)
			word = word * UINT64_C(6364136223846793005) + 1442695040888963407;
		bytes[i] = (uint8_t)(word >> (8 * (i % 8)));
	}
}

void driver_note(struct driver *d, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(d->last, sizeof(d->last), format, args);
	va_end(args);
	if (d->trace)
		fprintf(stderr, "%6u %s\n", d->step, d->last);
}

void driver_fail(struct driver *d, const char *file, int line, const char *what, long long value)
{
	cr_assert(0,
		"%s:%d: %s (value %lld) at step %u: %s\n"
		"replay with COWSNAP_SEED=%llu COWSNAP_STEPS=%u COWSNAP_TRACE=1",
		file, line, what, value, d->step, d->last, (unsigned long long)d->seed,
		d->step + 1);
}

struct driver_taken *driver_pick(struct driver *d, bool active_only)
{
	unsigned at, i;

	if (d->model.images == 0)
		return NULL;
	at = (unsigned)driver_below(d, d->model.images);
	for (i = 0; i < d->model.images; i++) {
		struct model_image *image = d->model.image[(at + i) % d->model.images];

		if (!active_only || image->state == MODEL_ACTIVE)
			return image->user;
	}
	return NULL;
}

void driver_drop(struct driver *d, struct driver_taken *taken)
{
	struct cowsnap_snapshot *again = cowsnap_snapshot_ref(taken->snapshot);
	struct cowsnap_snapshot_info info;
	struct cowsnap_extent extent;

	want(d, again == taken->snapshot);
	want_eq(d, cowsnap_snapshot_drop(taken->snapshot), 0);
	cowsnap_snapshot_unref(taken->snapshot);
	want_eq(d, cowsnap_snapshot_drop(again), -EIDRM);
	want_eq(d, cowsnap_snapshot_extent(again, 0, 1, &extent), -EIDRM);
	if (!d->writing) /* in a callback nothing may be read */
		want_eq(d, cowsnap_snapshot_read(again, d->scratch, 0, 1), -EIDRM);
	want_eq(d, cowsnap_snapshot_info(again, &info, sizeof(info)), 0);
	want_eq(d, info.state, COWSNAP_SNAPSHOT_DROPPED);
	cowsnap_snapshot_unref(again);
	model_drop(&d->model, taken->image);
	free(taken);
}

void driver_end_open(struct driver *d)
{
	for (unsigned i = 0; i < DRIVER_OPEN_MAX; i++) {
		if (d->open[i].used)
			cowsnap_write_end(&d->open[i].op);
		d->open[i].used = false;
	}
}

void driver_check_states(struct driver *d)
{
	uint64_t id[MODEL_ORIGINS * MODEL_STORES] = {0};

	for (unsigned i = 0; i < d->model.images; i++) {
		const struct model_image *image = d->model.image[i];
		const struct driver_taken *taken = image->user;
		uint64_t *older = &id[image->origin * MODEL_STORES + image->store];
		struct cowsnap_snapshot_info info;

		want_eq(d, cowsnap_snapshot_info(taken->snapshot, &info, sizeof(info)), 0);
		want_eq(d, info.state, image->state);
		want_eq(d, info.size_bytes, d->model.origin[image->origin].size_bytes);
		want_eq(d, info.chunk_size_bytes, d->model.chunk_bytes[image->store]);
		want(d, info.saved_chunks <= image->chunks);
		want(d, info.id > *older);
		*older = info.id;
	}
}

static void take_entry(struct driver *d, struct cowsnap_take_entry *entry, unsigned o, unsigned s)
{
	struct driver_taken *taken = calloc(1, sizeof(*taken));

	taken->driver = d;
	taken->on_full = (enum cowsnap_loser)driver_below(d, 3);
	*entry = (struct cowsnap_take_entry){
		.origin = d->origin[o],
		.store = d->store[s],
		.on_full = taken->on_full,
		.wait_ns = driver_below(d, 8) == 0 ? 20000 : 0,
		.decide = write_decide,
		.user = taken,
	};
}

/* One origin, or a random set of origins and stores at one instant. */
static void take_step(struct driver *d)
{
	struct cowsnap_take_entry entries[MODEL_ORIGINS * MODEL_STORES];
	unsigned from[MODEL_ORIGINS * MODEL_STORES];
	bool group = driver_below(d, 3) == 0;
	unsigned pairs = d->model.origins * d->model.stores;
	unsigned first = (unsigned)driver_below(d, pairs);
	size_t count = 0;

	driver_end_open(d);
	for (unsigned i = 0; i < pairs; i++) {
		unsigned pair = (first + i) % pairs;

		if (i > 0 && (!group || driver_below(d, 2) == 0))
			continue;
		take_entry(d, &entries[count], pair % d->model.origins, pair / d->model.origins);
		from[count++] = pair;
	}
	driver_note(d, "take of %zu, first origin %u store %u", count, first % d->model.origins,
		first / d->model.origins);
	want_eq(d, cowsnap_take(d->ctx, NULL, entries, count), 0);
	for (size_t i = 0; i < count; i++) {
		struct driver_taken *taken = entries[i].user;

		want(d, entries[i].snapshot);
		want(d, cowsnap_snapshot_user(entries[i].snapshot) == taken);
		taken->snapshot = entries[i].snapshot;
		taken->image = model_take(
			&d->model, from[i] % d->model.origins, from[i] / d->model.origins, taken);
	}
}

static void drop_step(struct driver *d)
{
	unsigned newest = d->model.images - 1;
	unsigned at = 0;

	if (d->model.images == 0)
		return;
	switch (driver_below(d, 3)) {
	case 0:
		at = 0;
		break;
	case 1:
		at = newest;
		break;
	default:
		at = (unsigned)driver_below(d, d->model.images);
		break;
	}
	driver_note(d, "drop snapshot %u of %u", at, d->model.images);
	driver_drop(d, d->model.image[at]->user);
}

static void compare(struct driver *d, struct driver_taken *taken, uint64_t offset, uint64_t length)
{
	const struct model_image *image = taken->image;
	int rc = cowsnap_snapshot_read(taken->snapshot, d->scratch, offset, length);

	if (image->state == MODEL_INVALID) {
		want_eq(d, rc, -ESTALE);
		return;
	}
	want_eq(d, rc, 0);
	for (uint64_t i = 0; i < length; i++) {
		if (d->scratch[i] != image->data[offset + i])
			driver_fail(d, __FILE__, __LINE__, "image differs at offset",
				(long long)(offset + i));
	}
}

static void read_step(struct driver *d)
{
	struct driver_taken *taken = driver_pick(d, false);
	uint64_t size, offset, length;

	if (!taken)
		return;
	size = d->model.origin[taken->image->origin].size_bytes;
	offset = driver_below(d, size);
	length = 1 + driver_below(d, size - offset);
	driver_note(d, "read origin %u store %u offset %llu length %llu", taken->image->origin,
		taken->image->store, (unsigned long long)offset, (unsigned long long)length);
	compare(d, taken, offset, length);
}

static void check_extent(
	struct driver *d, const struct model_image *image, const struct cowsnap_extent *extent)
{
	uint64_t last = model_last_chunk(&d->model, image->store, extent->offset, extent->length);

	for (uint64_t c = model_first_chunk(&d->model, image->store, extent->offset); c <= last;
		c++)
		want_eq(d, image->copy[c] != 0, extent->saved);
}

static void extent_step(struct driver *d)
{
	struct driver_taken *taken = driver_pick(d, true);
	struct cowsnap_extent extent;
	uint64_t size, offset, end;

	if (!taken)
		return;
	size = d->model.origin[taken->image->origin].size_bytes;
	offset = driver_below(d, size);
	end = offset + 1 + driver_below(d, size - offset);
	driver_note(d, "extents origin %u store %u offset %llu end %llu", taken->image->origin,
		taken->image->store, (unsigned long long)offset, (unsigned long long)end);
	while (offset < end) {
		want_eq(d, cowsnap_snapshot_extent(taken->snapshot, offset, end - offset, &extent),
			0);
		want_eq(d, extent.offset, offset);
		want(d, extent.length > 0 && extent.length <= end - offset);
		check_extent(d, taken->image, &extent);
		offset += extent.length;
	}
}

static unsigned count_images(const struct driver *d, unsigned s, bool *invalid)
{
	unsigned count = 0;

	*invalid = false;
	for (unsigned i = 0; i < d->model.images; i++) {
		if (d->model.image[i]->store != s)
			continue;
		count++;
		*invalid = *invalid || d->model.image[i]->state == MODEL_INVALID;
	}
	return count;
}

/* @reclaimed: everything that can be given back has been. */
static void check_usage(struct driver *d, unsigned s, bool reclaimed)
{
	uint64_t chunk_bytes = d->model.chunk_bytes[s];
	uint64_t held = model_held(&d->model, s, false);
	uint64_t surely = model_held_surely(&d->model, s);
	struct cowsnap_store_usage usage;
	bool invalid;
	unsigned images = count_images(d, s, &invalid);

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
	if (!reclaimed)
		return;
	want_eq(d, usage.reclaimable_bytes, 0);
	if (!invalid)
		want(d, usage.used_bytes <= held * chunk_bytes);
	if (images == 0) {
		want_eq(d, usage.used_bytes, 0);
		want_eq(d, usage.ghosts, 0);
	}
}

static void check_copies(struct driver *d)
{
	struct cowsnap_stats stats;

	want_eq(d, cowsnap_ctx_stats(d->ctx, &stats, sizeof(stats)), 0);
	if (d->exact)
		want_eq(d, stats.copied_chunks, d->copied);
}

static void reclaim_step(struct driver *d)
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
		check_usage(d, s, more == 0 && all);
}

static void limit_step(struct driver *d)
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
	check_usage(d, s, false);
}

static void check_origins(struct driver *d)
{
	for (unsigned o = 0; o < d->model.origins; o++) {
		const struct model_origin *origin = &d->model.origin[o];

		want_eq(d,
			cowsnap_device_read(d->origin_device[o], d->scratch, 0, origin->size_bytes),
			0);
		want(d, memcmp(d->scratch, origin->data, origin->size_bytes) == 0);
	}
}

static void compare_all(struct driver *d)
{
	driver_note(d, "compare everything");
	for (unsigned i = 0; i < d->model.images; i++) {
		const struct model_image *image = d->model.image[i];

		compare(d, image->user, 0, d->model.origin[image->origin].size_bytes);
	}
	check_origins(d);
}

static void random_step(struct driver *d)
{
	uint64_t choice = driver_below(d, 100);

	if (choice < 48)
		write_step(d);
	else if (choice < 58)
		d->model.images < 10 ? take_step(d) : drop_step(d);
	else if (choice < 64)
		drop_step(d);
	else if (choice < 80)
		read_step(d);
	else if (choice < 88)
		extent_step(d);
	else if (choice < 94)
		reclaim_step(d);
	else if (choice < 96)
		limit_step(d);
	else if (choice < 98)
		driver_end_open(d);
	else
		compare_all(d);
}

static void finish(struct driver *d)
{
	compare_all(d);
	driver_end_open(d);
	driver_note(d, "drop everything");
	while (d->model.images > 0)
		driver_drop(d, driver_pick(d, false));
	while (cowsnap_reclaim(d->ctx, UINT64_MAX) == 1)
		;
	for (unsigned s = 0; s < d->model.stores; s++)
		check_usage(d, s, true);
	check_origins(d);
}

void driver_run(uint64_t seed, unsigned steps)
{
	struct driver d;

	memset(&d, 0, sizeof(d));
	d.seed = seed;
	d.random = seed;
	d.trace = getenv("COWSNAP_TRACE");
	driver_note(&d, "open");
	rig_open(&d);
	for (d.step = 0; d.step < steps; d.step++) {
		random_step(&d);
		driver_check_states(&d);
		check_copies(&d);
	}
	finish(&d);
	rig_close(&d);
}
