/* SPDX-License-Identifier: MIT
 *
 * What tests of the volume's own reads and writes share: a volume with a snapshot to be merged and
 * another one, a model of it, and operations that are checked against the model.
 */
#ifndef COWSNAP_TESTS_VOLUME_IO_H
#define COWSNAP_TESTS_VOLUME_IO_H

#include <cowsnap.h>

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "origin.h"
#include "support/pending.h"
#include "support/test.h"
#include "support/test_device.h"
#include "support/test_device_async.h"

#define CHUNK UINT64_C(4096)
#define TAKEN (20 * CHUNK + 1536) /* the snapshots end inside of a chunk */
#define ALL   (22 * CHUNK + 700)  /* and so does the origin, which is longer */
#define WHOLE UINT64_MAX

enum where { QUEUE, INLINE, WORKER, PLACES };

struct volume_options {
	enum where where;
	bool records; /* of the store of the snapshot that is merged */
	enum test_async_mode mode;
	const struct cowsnap_allocator *allocator;
	uint64_t copy_inflight_bytes;
};

enum { ORIGIN, STORE, OTHER, DEVICES };

/* A volume with a snapshot to be merged, and a younger one in a store with longer chunks. */
struct volume {
	struct cowsnap_ctx *ctx;
	struct cowsnap_queue *queue; /* NULL: a worker */
	struct test_async *async[DEVICES];
	struct test_device *rig[DEVICES];
	struct cowsnap_device *device[DEVICES];
	struct cowsnap_store *store[DEVICES];
	struct cowsnap_origin *origin;
	struct cowsnap_snapshot *merged, *other;
	uint8_t model[ALL]; /* the volume */
	bool vague[ALL];    /* was discarded */
	uint8_t merging[ALL];
	uint8_t at_other[TAKEN];
};

/* ---- Opening --------------------------------------------------------------------------------- */

static inline void open_device(
	struct volume *v, unsigned which, uint64_t bytes, const struct volume_options *options)
{
	const struct test_device_options device = {.size_bytes = bytes,
		.block_size = which == STORE ? 512 : 1,
		.lockable = which == STORE};

	if (options->where == INLINE) {
		v->rig[which] = test_device_create(v->ctx, &device);
		v->device[which] = test_device(v->rig[which]);
		return;
	}
	v->async[which] = test_async_create(v->ctx, &device, options->mode);
	v->rig[which] = test_async_rig(v->async[which]);
	v->device[which] = test_async_device(v->async[which]);
}

static inline void open_stores(struct volume *v, bool records)
{
	struct cowsnap_transient_options transient = {.size = sizeof(transient)};
	struct cowsnap_dm_options dm = {
		.size = sizeof(dm), .chunk_size_bytes = CHUNK, .device = v->device[STORE]};

	transient.device = v->device[OTHER];
	transient.chunk_size_bytes = 4 * CHUNK;
	cr_assert_eq(cowsnap_store_transient(v->ctx, &transient, &v->store[OTHER]), 0);
	transient.device = v->device[STORE];
	transient.chunk_size_bytes = CHUNK;
	if (records)
		cr_assert_eq(cowsnap_store_dm_create(v->ctx, &dm, &v->store[STORE]), 0);
	else
		cr_assert_eq(cowsnap_store_transient(v->ctx, &transient, &v->store[STORE]), 0);
}

static inline struct cowsnap_snapshot *take(struct volume *v, unsigned store)
{
	struct cowsnap_take_entry entry = {
		.origin = v->origin, .store = v->store[store], .on_full = COWSNAP_LOSER_WRITE};

	cr_assert_eq(cowsnap_take(v->ctx, NULL, &entry, 1), 0);
	return entry.snapshot;
}

static inline void put(struct volume *v, uint64_t offset, uint64_t length, uint8_t value)
{
	int rc;

	memset(v->model + offset, value, length);
	rc = cowsnap_origin_write(v->origin, COWSNAP_WRITE, v->model + offset, offset, length);
	cr_assert_eq(rc, 0, "%llu: error %d", (unsigned long long)offset, rc);
}

/* The merged one has 1, but for zeroes in [14, 16) chunks; [2, 12) and [15, 17) chunks were written
 * since. Behind its end the volume has 4. */
static inline void fill(struct volume *v)
{
	static uint8_t image[TAKEN];

	put(v, 0, TAKEN, 1);
	v->merged = take(v, STORE);
	memcpy(image, v->model, TAKEN);
	cr_assert_eq(cowsnap_snapshot_write(
			     v->merged, COWSNAP_WRITE_ZEROES, NULL, 14 * CHUNK, 2 * CHUNK),
		0);
	memset(image + 14 * CHUNK, 0, 2 * CHUNK);
	put(v, 2 * CHUNK, 10 * CHUNK, 2);
	put(v, 15 * CHUNK, 2 * CHUNK, 3);
	put(v, 19 * CHUNK, TAKEN - 19 * CHUNK, 3);
	v->other = take(v, OTHER);
	memcpy(v->at_other, v->model, TAKEN);
	cr_assert_eq(cowsnap_origin_resize(v->origin, 0), 0);
	put(v, TAKEN, ALL - TAKEN, 4);
	memcpy(v->merging, v->model, ALL);
	memcpy(v->merging, image, TAKEN);
}

static inline struct volume *volume_open(const struct volume_options *options)
{
	static const enum cowsnap_engine engines[] = {
		COWSNAP_ENGINE_LOOP, COWSNAP_ENGINE_INLINE, COWSNAP_ENGINE_WORKERS};
	struct cowsnap_ctx_options ctx = {.size = sizeof(ctx),
		.engine = engines[options->where],
		.workers = options->where == WORKER,
		.copy_inflight_bytes = options->copy_inflight_bytes,
		.allocator = options->allocator};
	struct volume *v = calloc(1, sizeof(*v));

	cr_assert_eq(cowsnap_ctx_create(&ctx, &v->ctx), 0);
	open_device(v, ORIGIN, ALL, options);
	open_device(v, STORE, 4 * ALL, options);
	open_device(v, OTHER, 4 * ALL, options);
	open_stores(v, options->records);
	cr_assert_eq(cowsnap_origin_open(v->ctx, v->device[ORIGIN], &v->origin), 0);
	/* As if the device had been shorter. */
	atomic_store(&v->origin->size_bytes, TAKEN);
	if (options->where != WORKER)
		cr_assert_eq(cowsnap_queue_create(v->ctx, 2, &v->queue), 0);
	fill(v);
	return v;
}

static inline void begin_merge(struct volume *v)
{
	cr_assert_eq(cowsnap_merge_begin(v->merged), 0);
	memcpy(v->model, v->merging, ALL);
}

/* ---- What is there --------------------------------------------------------------------------- */

static inline void expect_model(const struct volume *v, const uint8_t *data, uint64_t offset,
	uint64_t length, const char *what)
{
	if (memcmp(data, v->model + offset, length) == 0)
		return;
	for (uint64_t i = 0; i < length; i++)
		cr_assert(v->vague[offset + i] || data[i] == v->model[offset + i],
			"%s: byte %llu is %u, not %u", what, (unsigned long long)(offset + i),
			data[i], v->model[offset + i]);
}

static inline void expect_volume(const struct volume *v)
{
	static uint8_t data[ALL];

	cr_assert_eq(cowsnap_origin_read(v->origin, data, 0, ALL), 0);
	expect_model(v, data, 0, ALL, "the volume");
}

static inline void expect_other(const struct volume *v)
{
	static uint8_t data[TAKEN];

	cr_assert_eq(cowsnap_snapshot_read(v->other, data, 0, TAKEN), 0);
	if (memcmp(data, v->at_other, TAKEN) == 0)
		return;
	for (uint64_t i = 0; i < TAKEN; i++)
		cr_assert_eq(data[i], v->at_other[i], "byte %llu of the other snapshot",
			(unsigned long long)i);
}

static inline bool is_merging(const struct volume *v)
{
	struct cowsnap_merge_info info;

	return cowsnap_merge_info(v->merged, &info, sizeof(info)) == 0;
}

/* The rest of the merge, if there is one; then the device alone is the volume. */
static inline void volume_close(struct volume *v)
{
	static uint8_t data[ALL];
	bool merged = is_merging(v);

	if (merged) {
		expect_volume(v);
		cr_assert_eq(cowsnap_merge_run(v->merged, WHOLE), 0);
	}
	cr_assert_eq(cowsnap_device_read(test_device_inner(v->rig[ORIGIN]), data, 0, ALL), 0);
	expect_model(v, data, 0, ALL, "the device");
	expect_other(v);
	cowsnap_snapshot_drop(v->merged);
	cowsnap_snapshot_unref(v->merged);
	cr_assert_eq(cowsnap_snapshot_drop(v->other), 0);
	cowsnap_snapshot_unref(v->other);
	cr_assert_geq(cowsnap_reclaim(v->ctx, UINT64_MAX), 0);
	cr_assert_eq(cowsnap_queue_close(v->queue), 0);
	cr_assert_eq(cowsnap_store_close(v->store[STORE]), 0);
	cr_assert_eq(cowsnap_store_close(v->store[OTHER]), 0);
	cr_assert_eq(cowsnap_origin_close(v->origin), 0);
	for (unsigned i = 0; i < DEVICES; i++)
		cr_assert_eq(v->async[i] ? test_async_destroy(v->async[i])
					 : test_device_destroy(v->rig[i]),
			0);
	cr_assert_eq(cowsnap_ctx_destroy(v->ctx), 0);
	free(v);
}

/* ---- Operations ------------------------------------------------------------------------------ */

enum what { READ, WRITE, ZERO, DISCARD, FLUSH, WHATS };

struct request {
	enum what what;
	uint64_t offset, length;
	struct pending_op p;
	uint8_t *data;
};

static const enum cowsnap_write_kind kinds[] = {
	[WRITE] = COWSNAP_WRITE, [ZERO] = COWSNAP_WRITE_ZEROES, [DISCARD] = COWSNAP_DISCARD};

static inline void request_init(
	struct request *r, enum what what, uint64_t offset, uint64_t length, uint8_t value)
{
	*r = (struct request){.what = what, .offset = offset, .length = length};
	r->data = malloc(length);
	memset(r->data, what == READ ? 0xee : value, length);
}

static inline int request_begin(struct volume *v, struct request *r)
{
	memset(&r->p, 0, sizeof(r->p));
	if (r->what == READ)
		return cowsnap_origin_read_async(v->origin, v->queue, r->data, r->offset, r->length,
			&r->p.op, pending_done, &r->p);
	if (r->what == FLUSH)
		return cowsnap_origin_flush_async(
			v->origin, v->queue, &r->p.op, pending_done, &r->p);
	return cowsnap_origin_write_async(v->origin, v->queue, kinds[r->what],
		r->what == WRITE ? r->data : NULL, r->offset, r->length, &r->p.op, pending_done,
		&r->p);
}

static inline int request_wait(struct volume *v, struct request *r)
{
	if (v->queue)
		cr_assert(pending_wait(v->queue, &r->p), "nothing happens any more");
	while (!atomic_load(&r->p.calls))
		sched_yield();
	cr_assert_eq(atomic_load(&r->p.calls), 1);
	return r->p.error;
}

/* Of one that has succeeded. */
static inline void request_check(struct volume *v, struct request *r)
{
	if (r->what == READ)
		expect_model(v, r->data, r->offset, r->length, "a read");
	if (r->what == WRITE)
		memcpy(v->model + r->offset, r->data, r->length);
	if (r->what == ZERO)
		memset(v->model + r->offset, 0, r->length);
	if (r->what == WRITE || r->what == ZERO)
		memset(v->vague + r->offset, 0, r->length * sizeof(*v->vague));
	if (r->what == DISCARD)
		memset(v->vague + r->offset, 1, r->length * sizeof(*v->vague));
}

/* One that has failed may have been done in part, but it has touched nothing else. */
static inline void request_forget(struct volume *v, const struct request *r)
{
	if (r->what != READ && r->what != FLUSH)
		memset(v->vague + r->offset, 1, r->length * sizeof(*v->vague));
}

/* Returns: how it ended; all of it was checked. */
static inline int request_do(struct volume *v, struct request *r)
{
	int rc = request_begin(v, r);

	if (rc == COWSNAP_PENDING)
		rc = request_wait(v, r);
	if (rc)
		request_forget(v, r);
	else
		request_check(v, r);
	return rc;
}

static inline int do_one(
	struct volume *v, enum what what, uint64_t offset, uint64_t length, uint8_t value)
{
	struct request r;
	int rc;

	request_init(&r, what, offset, length, value);
	rc = request_do(v, &r);
	free(r.data);
	return rc;
}

#endif
