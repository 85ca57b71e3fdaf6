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

	for (uint64_t at = 0; at < length; at += sizeof(word)) {
		uint64_t left = length - at;

		word = word * UINT64_C(6364136223846793005) + 1442695040888963407;
		memcpy(bytes + at, &word, left < sizeof(word) ? left : sizeof(word));
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

struct cowsnap_snapshot_info driver_info(struct driver *d, const struct driver_taken *taken)
{
	struct cowsnap_snapshot_info info;

	want_eq(d, cowsnap_snapshot_info(taken->snapshot, &info, sizeof(info)), 0);
	return info;
}

void driver_range(struct driver *d, uint64_t size, uint64_t *offset, uint64_t *length)
{
	uint64_t chunk_bytes = d->model.chunk_bytes[driver_below(d, d->model.stores)];
	uint64_t room;

	*offset = driver_below(d, size);
	if (driver_below(d, 3) == 0)
		*offset = *offset / chunk_bytes * chunk_bytes;
	room = size - *offset;
	switch (driver_below(d, 8)) {
	case 0:
		*length = room;
		break;
	case 1:
		*length = 1 + driver_below(d, room);
		break;
	case 2:
		*length = 1 + driver_below(d, chunk_bytes * 6);
		break;
	case 3:
		*length = chunk_bytes * (1 + driver_below(d, 3));
		break;
	default:
		*length = 1 + driver_below(d, chunk_bytes);
		break;
	}
	if (*length > room)
		*length = room;
}

/* ---- Take and drop --------------------------------------------------------------------------- */

void driver_done(struct cowsnap_op *op, void *user, int error)
{
	(void)op;
	*(int *)user = error;
}

int driver_await(struct driver *d, int rc, const int *error)
{
	while (rc == COWSNAP_PENDING && *error == DRIVER_UNDER_WAY)
		want(d, cowsnap_queue_poll(d->queue) >= 0);
	return rc == COWSNAP_PENDING ? *error : rc;
}

/* Returns: as the call that waits. */
static int drop_in_queue(struct driver *d, struct cowsnap_snapshot *snapshot)
{
	struct cowsnap_op op;
	int error = DRIVER_UNDER_WAY;
	int rc = cowsnap_snapshot_drop_async(snapshot, d->queue, &op, driver_done, &error);

	return driver_await(d, rc, &error);
}

void driver_drop(struct driver *d, struct driver_taken *taken)
{
	struct cowsnap_snapshot *again = cowsnap_snapshot_ref(taken->snapshot);
	struct cowsnap_snapshot_info info;
	struct cowsnap_extent extent;
	bool queue = !d->writing && driver_below(d, 3) == 0;

	want(d, again == taken->snapshot);
	want_eq(d,
		queue ? drop_in_queue(d, taken->snapshot) : cowsnap_snapshot_drop(taken->snapshot),
		0);
	cowsnap_snapshot_unref(taken->snapshot);
	want_eq(d, queue ? drop_in_queue(d, again) : cowsnap_snapshot_drop(again), -EIDRM);
	want_eq(d, cowsnap_snapshot_extent(again, 0, 1, &extent), -EIDRM);
	if (!d->writing) { /* in a callback nothing may be read */
		want_eq(d, cowsnap_snapshot_read(again, d->scratch, 0, 1), -EIDRM);
		want_eq(d, cowsnap_snapshot_write(again, COWSNAP_WRITE, d->scratch, 0, 1), -EIDRM);
	}
	want_eq(d, cowsnap_snapshot_release(again, 0, 1), -EIDRM);
	want_eq(d, cowsnap_snapshot_info(again, &info, sizeof(info)), 0);
	want_eq(d, info.state, COWSNAP_SNAPSHOT_DROPPED);
	cowsnap_snapshot_unref(again);
	model_drop(&d->model, taken->image);
	free(taken);
}

struct cowsnap_take_entry driver_take_entry(
	struct driver *d, struct driver_taken *taken, unsigned origin)
{
	taken->driver = d;
	taken->on_full = (enum cowsnap_loser)driver_below(d, 3);
	return (struct cowsnap_take_entry){
		.origin = d->origin[origin],
		.on_full = taken->on_full,
		.wait_ns = driver_below(d, 8) == 0 ? 20000 : 0,
		.decide = write_decide,
		.user = taken,
	};
}

/* Is it more than a persistent store can say, or hold? */
static bool not_supported(
	const struct driver *d, const struct cowsnap_take_entry *entry, unsigned s)
{
	if (!d->model.records[s])
		return false;
	if (entry->flags & COWSNAP_TAKE_MAP_ONLY)
		return true;
	for (unsigned i = 0; i < d->model.images; i++) {
		if (d->model.image[i]->store == s)
			return true;
	}
	return false;
}

static void take_entry(struct driver *d, struct cowsnap_take_entry *entry, unsigned o, unsigned s)
{
	*entry = driver_take_entry(d, calloc(1, sizeof(struct driver_taken)), o);
	entry->store = d->store[s];
	/* Seldom what a store is known to refuse. */
	if (driver_below(d, d->model.records[s] ? 40 : 6) == 0)
		entry->flags = COWSNAP_TAKE_MAP_ONLY;
}

/* Persistent stores with a snapshot, and two in one persistent store, seldom come. */
static bool pass_over(struct driver *d, unsigned s, const bool *in_use)
{
	return d->model.records[s] && in_use[s] && driver_below(d, 12) > 0;
}

static unsigned choose_pairs(struct driver *d, unsigned *from, bool *twice)
{
	bool group = driver_below(d, 3) == 0, in_use[MODEL_STORES] = {false};
	unsigned pairs = d->model.origins * d->model.stores, count = 0;
	unsigned first = (unsigned)driver_below(d, pairs);

	for (unsigned i = 0; i < d->model.images; i++)
		in_use[d->model.image[i]->store] = true;
	*twice = false;
	for (unsigned i = 0; i < pairs; i++) {
		unsigned pair = (first + i) % pairs, s = pair / d->model.origins;

		if (count > 0 && (!group || driver_below(d, 2) == 0))
			continue;
		if (pass_over(d, s, in_use))
			continue;
		for (unsigned k = 0; k < count; k++)
			*twice |= d->model.records[s] && from[k] / d->model.origins == s;
		in_use[s] = true;
		from[count++] = pair;
	}
	return count;
}

/* It is that of one of the entries. */
static void check_take_error(struct driver *d, const struct cowsnap_take_entry *entries,
	const unsigned *from, unsigned count, bool twice, int rc)
{
	bool unsupported = twice, busy = false;

	for (unsigned i = 0; i < count; i++) {
		busy |= d->merging[from[i] % d->model.origins] != NULL;
		unsupported |= not_supported(d, &entries[i], from[i] / d->model.origins);
	}
	if (rc == -EBUSY)
		want(d, busy);
	else
		want_eq(d, rc, unsupported ? -ENOTSUP : busy ? -EBUSY : 0);
}

/* One origin, or a random set of origins and stores at one instant. */
static void take_step(struct driver *d)
{
	struct cowsnap_take_entry entries[MODEL_ORIGINS * MODEL_STORES];
	unsigned from[MODEL_ORIGINS * MODEL_STORES], count;
	bool twice;
	int rc;

	driver_end_open(d);
	count = choose_pairs(d, from, &twice);
	for (unsigned i = 0; i < count; i++)
		take_entry(d, &entries[i], from[i] % d->model.origins, from[i] / d->model.origins);
	if (!count)
		return;
	driver_note(d, "take of %u, first origin %u store %u", count, from[0] % d->model.origins,
		from[0] / d->model.origins);
	rc = cowsnap_take(d->ctx, NULL, entries, count);
	check_take_error(d, entries, from, count, twice, rc);
	if (rc) {
		for (unsigned i = 0; i < count; i++)
			free(entries[i].user);
		return;
	}
	for (size_t i = 0; i < count; i++) {
		struct driver_taken *taken = entries[i].user;

		want(d, entries[i].snapshot);
		want(d, cowsnap_snapshot_user(entries[i].snapshot) == taken);
		taken->snapshot = entries[i].snapshot;
		taken->image = model_take(&d->model, from[i] % d->model.origins,
			from[i] / d->model.origins, entries[i].flags & COWSNAP_TAKE_MAP_ONLY,
			taken);
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
	if (d->model.image[at]->state != MODEL_MERGING)
		driver_drop(d, d->model.image[at]->user);
}

/* ---- Reading --------------------------------------------------------------------------------- */

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
		struct cowsnap_snapshot_info info = driver_info(d, taken);

		want_eq(d, info.state, image->state);
		want_eq(d, info.size_bytes, image->size_bytes);
		want_eq(d, info.chunk_size_bytes, d->model.chunk_bytes[image->store]);
		want(d, info.saved_chunks <= image->chunks);
		snapshots_check_info(d, image, &info);
		want(d, info.id > *older);
		*older = info.id;
	}
}

void driver_same(
	struct driver *d, const char *what, const uint8_t *data, uint64_t offset, uint64_t length)
{
	uint64_t i = 0;

	if (!memcmp(d->scratch, data + offset, length))
		return;
	while (d->scratch[i] == data[offset + i])
		i++;
	driver_fail(d, __FILE__, __LINE__, what, (long long)(offset + i));
}

int driver_read_error(
	const struct driver *d, const struct model_image *image, uint64_t offset, uint64_t length)
{
	switch (image->state) {
	case MODEL_ACTIVE:
		return model_any_released(&d->model, image, offset, length) ? -ENODATA : 0;
	case MODEL_INVALID:
		return -ESTALE;
	case MODEL_MAP_ONLY:
		return -ENODATA;
	case MODEL_MERGING:
		return -EBUSY;
	case MODEL_DROPPED:
		break;
	}
	return -EIDRM;
}

void driver_compare(struct driver *d, struct driver_taken *taken, uint64_t offset, uint64_t length)
{
	const struct model_image *image = taken->image;
	uint64_t reads = rig_reads(d, image->origin);
	int rc = cowsnap_snapshot_read(taken->snapshot, d->scratch, offset, length);

	want_eq(d, rc, driver_read_error(d, image, offset, length));
	if (image->detached)
		want_eq(d, rig_reads(d, image->origin), reads);
	if (!rc)
		driver_same(d, "the image differs at", image->data, offset, length);
}

static void read_step(struct driver *d)
{
	struct driver_taken *taken = driver_pick(d, false);
	uint64_t offset, length;

	if (!taken)
		return;
	offset = driver_below(d, taken->image->size_bytes);
	length = 1 + driver_below(d, taken->image->size_bytes - offset);
	driver_note(d, "read origin %u store %u offset %llu length %llu", taken->image->origin,
		taken->image->store, (unsigned long long)offset, (unsigned long long)length);
	driver_compare(d, taken, offset, length);
}

static void check_extent(
	struct driver *d, const struct model_image *image, const struct cowsnap_extent *extent)
{
	uint64_t last = model_last_chunk(&d->model, image->store, extent->offset, extent->length);

	for (uint64_t c = model_first_chunk(&d->model, image->store, extent->offset); c <= last;
		c++) {
		const struct model_chunk *chunk = &image->chunk[c];

		want(d, !chunk->released);
		if (!chunk->maybe || chunk->own)
			want_eq(d, chunk->copy || chunk->own, extent->saved);
	}
}

/* Returns: where the next one begins. */
static uint64_t one_extent(
	struct driver *d, const struct driver_taken *taken, uint64_t offset, uint64_t end)
{
	const struct model_image *image = taken->image;
	uint64_t chunk_bytes = d->model.chunk_bytes[image->store];
	struct cowsnap_extent extent;
	int rc = cowsnap_snapshot_extent(taken->snapshot, offset, end - offset, &extent);

	want_eq(d, rc, driver_read_error(d, image, offset, 1));
	if (rc)
		return (offset / chunk_bytes + 1) * chunk_bytes;
	want_eq(d, extent.offset, offset);
	want(d, extent.length > 0 && extent.length <= end - offset);
	check_extent(d, image, &extent);
	return offset + extent.length;
}

static void extent_step(struct driver *d)
{
	struct driver_taken *taken = driver_pick(d, driver_below(d, 8) > 0);
	uint64_t size, offset, end;

	if (!taken)
		return;
	size = taken->image->size_bytes;
	offset = driver_below(d, size);
	end = offset + 1 + driver_below(d, size - offset);
	driver_note(d, "extents origin %u store %u offset %llu end %llu", taken->image->origin,
		taken->image->store, (unsigned long long)offset, (unsigned long long)end);
	while (offset < end)
		offset = one_extent(d, taken, offset, end);
}

/* ---- A stream -------------------------------------------------------------------------------- */

static void check_copies(struct driver *d)
{
	struct cowsnap_stats stats;

	want_eq(d, cowsnap_ctx_stats(d->ctx, &stats, sizeof(stats)), 0);
	if (d->exact)
		want_eq(d, stats.copied_chunks, d->copied);
}

static void compare_all(struct driver *d)
{
	driver_note(d, "compare everything");
	for (unsigned i = 0; i < d->model.images; i++) {
		const struct model_image *image = d->model.image[i];

		driver_compare(d, image->user, 0, image->size_bytes);
	}
	origins_check(d);
}

static void take_or_drop_step(struct driver *d)
{
	if (d->model.images < 10)
		take_step(d);
	else
		drop_step(d);
}

static const struct step {
	unsigned weight;
	void (*run)(struct driver *d);
} step_table[] = {
	{36, write_step},
	{11, take_or_drop_step},
	{4, drop_step},
	{9, read_step},
	{2, origins_read_step},
	{6, extent_step},
	{9, snapshots_write_step},
	{4, snapshots_release_step},
	{1, snapshots_downgrade_step},
	{3, snapshots_detach_step},
	{6, changes_step},
	{9, merge_step},
	{2, origins_resize_step},
	{5, space_reclaim_step},
	{2, space_limit_step},
	{2, driver_end_open},
	{2, compare_all},
	{2, restart_step},
};

static void random_step(struct driver *d)
{
	unsigned all = 0, choice, i = 0;

	for (unsigned k = 0; k < sizeof(step_table) / sizeof(step_table[0]); k++)
		all += step_table[k].weight;
	choice = (unsigned)driver_below(d, all);
	while (choice >= step_table[i].weight)
		choice -= step_table[i++].weight;
	step_table[i].run(d);
}

static void finish(struct driver *d)
{
	compare_all(d);
	driver_end_open(d);
	merge_end_all(d);
	driver_note(d, "drop everything");
	while (d->model.images > 0)
		driver_drop(d, driver_pick(d, false));
	while (cowsnap_reclaim(d->ctx, UINT64_MAX) == 1)
		;
	for (unsigned s = 0; s < d->model.stores; s++)
		space_check(d, s, true);
	origins_check(d);
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
