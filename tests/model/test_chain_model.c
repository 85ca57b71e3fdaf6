/* SPDX-License-Identifier: MIT
 *
 * Snapshots that are released, downgraded, map-only and dropped in any order, in two stores of
 * different chunk sizes, against plain arrays: what each shows, what has changed since, and that no
 * store holds a chunk more than is needed. Once with all the memory in the world, once with
 * allocations that fail now and then.
 */
#include <cowsnap.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "support/fail_alloc.h"
#include "support/seed.h"
#include "support/test.h"

#define UNIT      UINT64_C(4096)
#define UNITS     301 /* more than four groups of 64; the last chunk of store 1 is cut off */
#define STORES    2
#define SNAPSHOTS 12
#define STEPS     4000
#define WRITES    20000

struct image {
	struct cowsnap_snapshot *handle; /* NULL: no snapshot */
	enum cowsnap_snapshot_state state;
	unsigned store;
	uint32_t taken; /* when */
	uint32_t value[UNITS];
	bool released[UNITS]; /* by chunks of its store */
};

struct model {
	struct seed seed;
	struct fail_alloc *memory;
	bool fails;
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *device;
	struct cowsnap_origin *origin;
	struct cowsnap_store *store[STORES];
	uint32_t now;
	uint32_t value[UNITS];
	struct {
		uint32_t when;
		uint16_t first, end;
	} write[WRITES];
	unsigned writes;
	struct image image[SNAPSHOTS];
	uint8_t buffer[UNITS * UNIT];
};

static unsigned per_chunk(unsigned store)
{
	return store ? 4 : 1;
}

static unsigned below(struct model *m, unsigned end)
{
	return (unsigned)seed_below(&m->seed, end);
}

/* Returns: was it done? Where allocations fail it may be refused. */
static bool done(const struct model *m, int rc)
{
	cr_assert(rc == 0 || (m->fails && rc == -ENOMEM), "error %d", rc);
	return rc == 0;
}

static void open_model(struct model *m, bool fails)
{
	struct cowsnap_ctx_options options = {.size = sizeof(options)};
	struct cowsnap_transient_options transient = {.size = sizeof(transient)};

	m->fails = fails;
	m->memory = fail_alloc_create(false);
	options.allocator = fail_alloc_table(m->memory);
	cr_assert_eq(cowsnap_ctx_create(&options, &m->ctx), 0);
	cr_assert_eq(cowsnap_device_memory(m->ctx, UNITS * UNIT, &m->device), 0);
	cr_assert_eq(cowsnap_origin_open(m->ctx, m->device, &m->origin), 0);
	for (unsigned i = 0; i < STORES; i++) {
		transient.chunk_size_bytes = per_chunk(i) * UNIT;
		cr_assert_eq(cowsnap_store_transient(m->ctx, &transient, &m->store[i]), 0);
	}
}

static void random_range(struct model *m, unsigned *first, unsigned *end)
{
	unsigned most = below(m, 4) ? 8 : UNITS;

	*first = below(m, UNITS);
	*end = *first + 1 + below(m, most);
	if (*end > UNITS)
		*end = UNITS;
}

static void fill(struct model *m, unsigned first, unsigned end)
{
	for (unsigned i = first; i < end; i++) {
		for (unsigned at = 0; at < UNIT; at += sizeof(m->now))
			memcpy(m->buffer + i * UNIT + at, &m->now, sizeof(m->now));
		m->value[i] = m->now;
	}
}

static void do_write(struct model *m)
{
	unsigned first, end;
	struct cowsnap_op op;

	if (m->writes == WRITES)
		return;
	random_range(m, &first, &end);
	if (!done(m, cowsnap_write_begin(
			     m->origin, COWSNAP_WRITE, first * UNIT, (end - first) * UNIT, &op)))
		return;
	fill(m, first, end);
	cr_assert_eq(cowsnap_device_write(m->device, m->buffer + first * UNIT, first * UNIT,
			     (end - first) * UNIT),
		0);
	cowsnap_write_end(&op);
	m->write[m->writes].when = m->now;
	m->write[m->writes].first = (uint16_t)first;
	m->write[m->writes++].end = (uint16_t)end;
}

static struct image *pick(struct model *m)
{
	struct image *image = &m->image[below(m, SNAPSHOTS)];

	return image->handle ? image : NULL;
}

static void do_take(struct model *m)
{
	struct image *image = &m->image[below(m, SNAPSHOTS)];
	unsigned store = below(m, STORES);
	struct cowsnap_take_entry entry = {.origin = m->origin,
		.store = m->store[store],
		.flags = below(m, 3) ? 0 : COWSNAP_TAKE_MAP_ONLY,
		.on_full = below(m, 2) ? COWSNAP_LOSER_SNAPSHOT : COWSNAP_LOSER_WRITE};

	if (image->handle || !done(m, cowsnap_take(m->ctx, NULL, &entry, 1)))
		return;
	memset(image, 0, sizeof(*image));
	image->handle = entry.snapshot;
	image->state = entry.flags ? COWSNAP_SNAPSHOT_MAP_ONLY : COWSNAP_SNAPSHOT_ACTIVE;
	image->store = store;
	image->taken = m->now;
	memcpy(image->value, m->value, sizeof(m->value));
}

/* It may have been given up for want of memory. */
static bool gone(const struct model *m, struct image *image)
{
	struct cowsnap_snapshot_info info;

	cr_assert_eq(cowsnap_snapshot_info(image->handle, &info, sizeof(info)), 0);
	if (info.state == COWSNAP_SNAPSHOT_INVALID) {
		cr_assert(m->fails);
		image->state = COWSNAP_SNAPSHOT_INVALID;
	}
	cr_assert_eq(info.state, image->state);
	return info.state == COWSNAP_SNAPSHOT_INVALID;
}

static void do_drop(struct model *m)
{
	struct image *image = pick(m);

	if (!image)
		return;
	cr_assert_eq(cowsnap_snapshot_drop(image->handle), 0);
	cowsnap_snapshot_unref(image->handle);
	image->handle = NULL;
}

static void do_downgrade(struct model *m)
{
	struct image *image = pick(m);

	if (!image || gone(m, image))
		return;
	cr_assert_eq(cowsnap_snapshot_downgrade(image->handle), 0);
	image->state = COWSNAP_SNAPSHOT_MAP_ONLY;
}

static void do_release(struct model *m)
{
	struct image *image = pick(m);
	unsigned first, end, per;

	if (!image || gone(m, image))
		return;
	random_range(m, &first, &end);
	/* Where it fails a part may have been released; here all of it is, or nothing more. */
	if (!done(m, cowsnap_snapshot_release(image->handle, first * UNIT, (end - first) * UNIT)))
		fail_alloc_at(m->memory, 0, false);
	cr_assert_eq(
		cowsnap_snapshot_release(image->handle, first * UNIT, (end - first) * UNIT), 0);
	per = per_chunk(image->store);
	first = (first + per - 1) / per * per;
	end = end == UNITS ? UNITS : end / per * per;
	for (unsigned i = first; i < end; i++)
		image->released[i] = true;
}

static void check_read(struct model *m, const struct image *image)
{
	unsigned first, end, per = per_chunk(image->store);
	bool released = false;
	int rc;

	random_range(m, &first, &end);
	for (unsigned i = first / per * per; i < (end + per - 1) / per * per && i < UNITS; i++)
		released |= image->released[i];
	rc = cowsnap_snapshot_read(image->handle, m->buffer, first * UNIT, (end - first) * UNIT);
	if (image->state == COWSNAP_SNAPSHOT_INVALID) {
		cr_assert_eq(rc, -ESTALE);
		return;
	}
	if (image->state == COWSNAP_SNAPSHOT_MAP_ONLY || released) {
		cr_assert_eq(rc, -ENODATA, "error %d, released %d", rc, released);
		return;
	}
	cr_assert_eq(rc, 0, "error %d", rc);
	for (unsigned i = first; i < end; i++) {
		uint32_t got;

		memcpy(&got, m->buffer + (i - first) * UNIT + UNIT / 2, sizeof(got));
		cr_assert_eq(got, image->value[i], "unit %u of snapshot of %u: %u, not %u", i,
			image->taken, got, image->value[i]);
	}
}

/* ---- Changes --------------------------------------------------------------------------------- */

/* What was written after @from and before @to, by chunks of @per units. */
static void written(const struct model *m, uint32_t from, uint32_t to, unsigned per, bool *set)
{
	memset(set, 0, UNITS);
	for (unsigned w = 0; w < m->writes; w++) {
		unsigned first = m->write[w].first / per * per;
		unsigned end = (m->write[w].end + per - 1) / per * per;

		for (unsigned i = first; i < end && i < UNITS; i++)
			set[i] |= m->write[w].when > from && m->write[w].when < to;
	}
}

static void get_changes(
	struct model *m, const struct image *from, const struct image *to, bool *set)
{
	struct cowsnap_change runs[8];
	uint64_t offset = 0, last = UINT64_MAX;

	memset(set, 0, UNITS);
	while (offset < UNITS * UNIT) {
		int n = cowsnap_changes(
			from->handle, to ? to->handle : NULL, &offset, runs, 1 + below(m, 8));

		cr_assert_geq(n, 0, "error %d", n);
		for (int i = 0; i < n; i++) {
			cr_assert(last == UINT64_MAX || runs[i].offset > last);
			cr_assert_eq(runs[i].offset % (per_chunk(from->store) * UNIT), 0);
			last = runs[i].offset + runs[i].length;
			cr_assert(last <= offset && last <= UNITS * UNIT);
			for (uint64_t u = runs[i].offset / UNIT; u < last / UNIT; u++)
				set[u] = true;
		}
	}
}

static void check_changes(struct model *m)
{
	struct image *from = pick(m), *to = below(m, 3) ? pick(m) : NULL;
	struct cowsnap_change run;
	bool got[UNITS], want[UNITS];
	uint64_t offset = 0;
	int rc;

	if (!from || from == to)
		return;
	if (gone(m, from) || (to && gone(m, to))) {
		rc = cowsnap_changes(from->handle, to ? to->handle : NULL, &offset, &run, 1);
		cr_assert(rc == -ESTALE || rc == -EINVAL, "error %d", rc);
		return;
	}
	if (to && to->taken < from->taken) {
		rc = cowsnap_changes(from->handle, to->handle, &offset, &run, 1);
		cr_assert_eq(rc, -EINVAL, "error %d", rc);
		return;
	}
	get_changes(m, from, to, got);
	written(m, from->taken, to ? to->taken : UINT32_MAX, per_chunk(from->store), want);
	for (unsigned i = 0; i < UNITS; i++) {
		cr_assert(got[i] || !want[i], "unit %u left out", i);
		/* In one chain it is exact, but for writes that failed half-way. */
		if (!m->fails && (!to || to->store == from->store))
			cr_assert_eq(got[i], want[i], "unit %u, from %u (%u) to %u (%u)", i,
				from->taken, from->store, to ? to->taken : 0, to ? to->store : 0);
	}
}

/* ---- Space ----------------------------------------------------------------------------------- */

/* When chunk @unit of a store was first written after @taken; 0: never. */
static uint32_t first_write(const struct model *m, unsigned unit, unsigned per, uint32_t taken)
{
	for (unsigned w = 0; w < m->writes; w++) {
		if (m->write[w].when > taken && m->write[w].first < unit + per &&
			m->write[w].end > unit)
			return m->write[w].when;
	}
	return 0;
}

/* Chunks that must be saved: one for each that was written, and moment, that somebody needs. */
static unsigned chunks_needed(const struct model *m, unsigned store)
{
	unsigned per = per_chunk(store), needed = 0;

	for (unsigned unit = 0; unit < UNITS; unit += per) {
		uint32_t when[SNAPSHOTS];
		unsigned n = 0;

		for (unsigned i = 0; i < SNAPSHOTS; i++) {
			const struct image *image = &m->image[i];
			uint32_t first;
			unsigned k = 0;

			if (!image->handle || image->state != COWSNAP_SNAPSHOT_ACTIVE ||
				image->store != store || image->released[unit])
				continue;
			first = first_write(m, unit, per, image->taken);
			while (k < n && when[k] != first)
				k++;
			if (first && k == n)
				when[n++] = first;
		}
		needed += n;
	}
	return needed;
}

static void check_space(struct model *m)
{
	while (cowsnap_reclaim(m->ctx, 1 + below(m, 500)) == 1)
		;
	for (unsigned i = 0; i < STORES; i++) {
		struct cowsnap_store_usage usage;

		cr_assert_eq(cowsnap_store_usage(m->store[i], &usage, sizeof(usage)), 0);
		cr_assert_eq(usage.used_bytes, chunks_needed(m, i) * per_chunk(i) * UNIT,
			"store %u holds %llu chunks, needs %u", i,
			(unsigned long long)(usage.used_bytes / UNIT / per_chunk(i)),
			chunks_needed(m, i));
	}
}

/* ---- All of it ------------------------------------------------------------------------------- */

static void step(struct model *m)
{
	unsigned what = below(m, 100);

	m->now++;
	if (m->fails && !below(m, 2))
		fail_alloc_at(m->memory, 1 + below(m, 4), below(m, 2));
	if (what < 35)
		do_write(m);
	else if (what < 45)
		do_take(m);
	else if (what < 50)
		do_drop(m);
	else if (what < 54)
		do_downgrade(m);
	else if (what < 66)
		do_release(m);
	else if (what < 70)
		cowsnap_reclaim(m->ctx, 1 + below(m, 100));
	fail_alloc_at(m->memory, 0, false);
	if (what >= 70 && what < 85) {
		struct image *image = pick(m);

		if (image && !(m->fails && gone(m, image)))
			check_read(m, image);
	} else if (what >= 85 && what < 97) {
		check_changes(m);
	} else if (what >= 99 && !m->fails) {
		check_space(m);
	}
}

static void close_model(struct model *m)
{
	for (unsigned i = 0; i < SNAPSHOTS; i++) {
		if (!m->image[i].handle)
			continue;
		cr_assert_eq(cowsnap_snapshot_drop(m->image[i].handle), 0);
		cowsnap_snapshot_unref(m->image[i].handle);
		m->image[i].handle = NULL;
	}
	check_space(m);
	cr_assert_eq(cowsnap_origin_close(m->origin), 0);
	for (unsigned i = 0; i < STORES; i++)
		cr_assert_eq(cowsnap_store_close(m->store[i]), 0);
	cr_assert_eq(cowsnap_device_close(m->device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(m->ctx), 0);
	fail_alloc_destroy(m->memory);
	free(m);
}

static void run(const char *name, bool fails)
{
	struct model *m = calloc(1, sizeof(*m));

	cr_assert_not_null(m);
	m->seed = seed_for(name);
	open_model(m, fails);
	for (unsigned i = 0; i < STEPS; i++)
		step(m);
	close_model(m);
}

Test(chain_model, with_all_the_memory_in_the_world, .timeout = 60)
{
	run("chain_model", false);
}

Test(chain_model, with_allocations_that_fail, .timeout = 60)
{
	run("chain_model, failing", true);
}
