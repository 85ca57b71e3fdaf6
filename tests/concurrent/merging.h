/* SPDX-License-Identifier: MIT
 *
 * What tests of merges share: a family of snapshots of one volume, one of which is merged; threads
 * that do one call of a merge; what the volume shows, and what its device has.
 */
#ifndef COWSNAP_TESTS_MERGING_H
#define COWSNAP_TESTS_MERGING_H

#include "concurrent/scene.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK SCENE_CHUNK
#define ALL   SCENE_BYTES
#define WHOLE UINT64_MAX

/* ---- What is there --------------------------------------------------------------------------- */

static inline void expect_bytes(const uint8_t *data, const uint8_t *model, uint64_t length)
{
	if (memcmp(data, model, length) == 0)
		return;
	for (uint64_t i = 0; i < length; i++)
		cr_assert(data[i] == model[i], "byte %llu is %u, not %u", (unsigned long long)i,
			data[i], model[i]);
}

static inline void expect_volume(
	struct cowsnap_origin *origin, uint64_t offset, uint64_t length, uint8_t value)
{
	uint8_t *data = malloc(length), *model = malloc(length);

	memset(model, value, length);
	cr_assert_eq(cowsnap_origin_read(origin, data, offset, length), 0);
	expect_bytes(data, model, length);
	free(data);
	free(model);
}

static inline void expect_device(struct test_device *device, const uint8_t *model, uint64_t length)
{
	uint8_t *data = malloc(length);

	cr_assert_eq(cowsnap_device_read(test_device_inner(device), data, 0, length), 0);
	expect_bytes(data, model, length);
	free(data);
}

static inline enum cowsnap_snapshot_state state_of(struct cowsnap_snapshot *snapshot)
{
	struct cowsnap_snapshot_info info;

	cr_assert_eq(cowsnap_snapshot_info(snapshot, &info, sizeof(info)), 0);
	return info.state;
}

static inline struct cowsnap_merge_info merge_info(struct cowsnap_snapshot *snapshot)
{
	struct cowsnap_merge_info info;

	cr_assert_eq(cowsnap_merge_info(snapshot, &info, sizeof(info)), 0);
	return info;
}

static inline int put(
	struct cowsnap_origin *origin, uint64_t offset, uint64_t length, uint8_t value)
{
	uint8_t *data = malloc(length);
	int rc;

	memset(data, value, length);
	rc = cowsnap_origin_write(origin, COWSNAP_WRITE, data, offset, length);
	free(data);
	return rc;
}

/* ---- A family -------------------------------------------------------------------------------- */

/* In store 0 an older one, the one to merge and a newer one; in store 1, with longer chunks, one of
 * each time. With records, the one to merge is in a persistent store of its own. */
struct family {
	struct scene s;
	struct test_device *records_test; /* NULL: without */
	struct cowsnap_store *records;
	struct cowsnap_snapshot *older, *merged, *newer, *other_old, *other_new;
};

struct family_options {
	bool records;
	bool large; /* the chunks of the one to merge are four times as long: as those of store 1 */
	struct scene_options scene; /* but for chunk_bytes */
};

static inline void family_open_records(struct family *f, uint64_t chunk_bytes)
{
	struct cowsnap_dm_options options = {
		.size = sizeof(options), .chunk_size_bytes = chunk_bytes};

	f->records_test = test_device_create(
		f->s.ctx, &(struct test_device_options){.size_bytes = 4 * ALL, .lockable = true});
	cr_assert_not_null(f->records_test);
	options.device = test_device(f->records_test);
	cr_assert_eq(cowsnap_store_dm_create(f->s.ctx, &options, &f->records), 0);
}

static inline struct cowsnap_snapshot *family_take_merged(struct family *f, bool large)
{
	struct cowsnap_take_entry entry = {.origin = f->s.origin[0],
		.store = f->records ? f->records : f->s.store[large],
		.on_full = COWSNAP_LOSER_WRITE};

	cr_assert_eq(cowsnap_take(f->s.ctx, NULL, &entry, 1), 0);
	return entry.snapshot;
}

static inline void make_family_with(struct family *f, const struct family_options *options)
{
	struct scene_options scene = options->scene;

	scene.chunk_bytes[0] = CHUNK;
	scene.chunk_bytes[1] = 4 * CHUNK;
	memset(f, 0, sizeof(*f));
	scene_open(&f->s, &scene);
	if (options->records)
		family_open_records(f, scene.chunk_bytes[options->large]);
	cr_assert_eq(scene_write(&f->s, 0, 0, ALL, 1), 0);
	f->older = scene_take(&f->s, 0, 0, COWSNAP_LOSER_WRITE);
	f->other_old = scene_take(&f->s, 0, 1, COWSNAP_LOSER_WRITE);
	cr_assert_eq(scene_write(&f->s, 0, 0, ALL / 2, 2), 0);
	f->merged = family_take_merged(f, options->large);
	cr_assert_eq(scene_write(&f->s, 0, ALL / 4, ALL / 2, 3), 0);
	f->newer = scene_take(&f->s, 0, 0, COWSNAP_LOSER_WRITE);
	f->other_new = scene_take(&f->s, 0, 1, COWSNAP_LOSER_WRITE);
	cr_assert_eq(scene_write(&f->s, 0, ALL / 8, CHUNK / 2, 4), 0);
}

static inline void make_family(struct family *f)
{
	make_family_with(f, &(struct family_options){0});
}

/* Those that are not merged. */
static inline void expect_family(struct family *f)
{
	scene_expect(f->older, 0, ALL, 1);
	scene_expect(f->other_old, 0, ALL, 1);
	scene_expect(f->newer, 0, ALL / 4, 2);
	scene_expect(f->newer, ALL / 4, ALL / 2, 3);
	scene_expect(f->newer, 3 * ALL / 4, ALL / 4, 1);
	scene_expect(f->other_new, 0, ALL / 4, 2);
	scene_expect(f->other_new, ALL / 4, ALL / 2, 3);
	scene_expect(f->other_new, 3 * ALL / 4, ALL / 4, 1);
}

static inline void model_merged(uint8_t *model)
{
	memset(model, 2, ALL / 2);
	memset(model + ALL / 2, 1, ALL / 2);
}

static inline void expect_volume_merged(struct family *f)
{
	expect_volume(f->s.origin[0], 0, ALL / 2, 2);
	expect_volume(f->s.origin[0], ALL / 2, ALL / 2, 1);
}

static inline void drop_siblings(struct family *f)
{
	scene_drop(f->older);
	scene_drop(f->newer);
	scene_drop(f->other_old);
	scene_drop(f->other_new);
	scene_reclaim(&f->s);
}

/* It was merged, and its siblings are dropped. */
static inline void close_family(struct family *f)
{
	cowsnap_snapshot_unref(f->merged);
	scene_reclaim(&f->s);
	if (f->records) {
		cr_assert_eq(cowsnap_store_close(f->records), 0);
		cr_assert_eq(test_device_destroy(f->records_test), 0);
	}
	scene_close(&f->s);
}

/* The merged one is deactivated, and nobody else is there: as after a restart, the merge begins
 * again. */
static inline void family_attach(struct family *f)
{
	struct cowsnap_take_entry entry = {.on_full = COWSNAP_LOSER_WRITE};
	struct cowsnap_dm_options options = {
		.size = sizeof(options), .device = test_device(f->records_test)};

	cowsnap_snapshot_unref(f->merged);
	scene_reclaim(&f->s);
	cr_assert_eq(cowsnap_store_close(f->records), 0);
	cr_assert_eq(cowsnap_origin_close(f->s.origin[0]), 0);
	cr_assert_eq(cowsnap_origin_open(f->s.ctx, f->s.origin_device[0], &f->s.origin[0]), 0);
	entry.origin = f->s.origin[0];
	cr_assert_eq(cowsnap_store_dm_open(f->s.ctx, &options, &entry, &f->records), 0);
	f->merged = entry.snapshot;
	cr_assert_eq(cowsnap_merge_begin(f->merged), 0);
}

static inline void family_open_anew(struct family *f)
{
	drop_siblings(f);
	cr_assert_eq(cowsnap_snapshot_deactivate(f->merged), 0);
	family_attach(f);
}

static inline void end_family(struct family *f)
{
	drop_siblings(f);
	close_family(f);
}

/* ---- Who does one call on a thread ----------------------------------------------------------- */

struct beginner {
	struct cowsnap_snapshot *snapshot;
	pthread_t thread;
	_Atomic bool finished;
	int rc;
};

static inline void *beginner_body(void *argument)
{
	struct beginner *b = argument;

	b->rc = cowsnap_merge_begin(b->snapshot);
	atomic_store(&b->finished, true);
	return NULL;
}

/* Returns when brackets that begin are of the merge: they wait for those before them. */
static inline void beginner_start(struct beginner *b, struct cowsnap_snapshot *snapshot)
{
	struct cowsnap_merge_info info;

	*b = (struct beginner){.snapshot = snapshot};
	cr_assert_eq(pthread_create(&b->thread, NULL, beginner_body, b), 0);
	while (cowsnap_merge_info(snapshot, &info, sizeof(info)) != 0)
		sched_yield();
}

static inline int beginner_join(struct beginner *b)
{
	pthread_join(b->thread, NULL);
	return b->rc;
}

struct mover {
	struct cowsnap_snapshot *snapshot;
	uint64_t step; /* run with this much until it is merged; 0: run once, to the end */
	pthread_t thread;
	_Atomic bool finished;
	int rc;
};

static inline void *mover_body(void *argument)
{
	struct mover *m = argument;

	do {
		m->rc = cowsnap_merge_run(m->snapshot, m->step ? m->step : WHOLE);
		sched_yield();
	} while (m->rc == 1);
	atomic_store(&m->finished, true);
	return NULL;
}

static inline void mover_start(struct mover *m, struct cowsnap_snapshot *snapshot, uint64_t step)
{
	*m = (struct mover){.snapshot = snapshot, .step = step};
	cr_assert_eq(pthread_create(&m->thread, NULL, mover_body, m), 0);
}

static inline int mover_join(struct mover *m)
{
	pthread_join(m->thread, NULL);
	return m->rc;
}

struct putter {
	struct cowsnap_origin *origin;
	uint64_t offset;
	uint64_t length;
	uint8_t value;
	pthread_t thread;
	_Atomic bool finished;
	int rc;
};

static inline void *putter_body(void *argument)
{
	struct putter *p = argument;

	p->rc = put(p->origin, p->offset, p->length, p->value);
	atomic_store(&p->finished, true);
	return NULL;
}

static inline void putter_start(struct putter *p, struct cowsnap_origin *origin, uint64_t offset,
	uint64_t length, uint8_t value)
{
	*p = (struct putter){.origin = origin, .offset = offset, .length = length, .value = value};
	cr_assert_eq(pthread_create(&p->thread, NULL, putter_body, p), 0);
}

static inline int putter_join(struct putter *p)
{
	pthread_join(p->thread, NULL);
	return p->rc;
}

#endif
