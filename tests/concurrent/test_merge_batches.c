/* SPDX-License-Identifier: MIT
 *
 * Merges from a store with so many records that batches follow each other, on a queue: the records
 * of the next one are read while this one is copied.
 */
#include "support/fail_alloc.h"
#include "support/pending.h"
#include "support/seed.h"
#include "support/test.h"
#include "support/test_device_async.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK  4096u
#define CHUNKS 640u /* two batches, or three */
#define BYTES  ((uint64_t)CHUNKS * CHUNK)
#define WHOLE  UINT64_MAX
/* ThreadSanitizer is slow, and looks for races, not at each state. */
#if defined(__SANITIZE_THREAD__)
#define STRIDE 8u
#else
#define STRIDE 1u
#endif

enum { ORIGIN, STORE, DEVICES };

struct volume {
	struct cowsnap_ctx *ctx;
	struct test_async *device[DEVICES];
	struct cowsnap_queue *queue;
	struct cowsnap_origin *origin;
	struct cowsnap_store *store, *other;
	struct cowsnap_snapshot *merged, *sibling; /* NULL: there is none */
	uint8_t *model;                            /* what the volume shows */
	uint8_t *before;                           /* what the sibling shows */
	uint8_t *data;
	struct seed seed;
};

struct options {
	enum test_async_mode mode;
	bool sibling;
	bool in_order;
	const struct cowsnap_allocator *allocator;
};

static struct test_device *rig(struct volume *v, unsigned device)
{
	return test_async_rig(v->device[device]);
}

/* Tells each chunk from each other one, and from what it was. */
static void stamp(uint8_t *chunk, uint64_t number)
{
	for (unsigned i = 0; i < CHUNK; i += sizeof(number))
		memcpy(chunk + i, &number, sizeof(number));
}

static void write_chunk(struct volume *v, uint64_t chunk, uint64_t number)
{
	struct cowsnap_device *device = test_async_device(v->device[ORIGIN]);
	uint8_t bytes[CHUNK];
	struct cowsnap_op op;

	stamp(bytes, number);
	cr_assert_eq(cowsnap_write_begin(v->origin, COWSNAP_WRITE, chunk * CHUNK, CHUNK, &op), 0);
	cr_assert_eq(cowsnap_device_write(device, bytes, chunk * CHUNK, CHUNK), 0);
	cowsnap_write_end(&op);
	memcpy(v->before + chunk * CHUNK, bytes, CHUNK);
}

static struct cowsnap_snapshot *take(struct volume *v, struct cowsnap_store *store)
{
	struct cowsnap_take_entry entry = {
		.origin = v->origin, .store = store, .on_full = COWSNAP_LOSER_WRITE};

	cr_assert_eq(cowsnap_take(v->ctx, NULL, &entry, 1), 0);
	return entry.snapshot;
}

static void shuffle(struct volume *v, uint64_t order[CHUNKS])
{
	for (uint64_t i = CHUNKS - 1; i; i--) {
		uint64_t k = seed_below(&v->seed, i + 1), was = order[i];

		order[i] = order[k];
		order[k] = was;
	}
}

static void open_devices(struct volume *v)
{
	const uint64_t bytes[DEVICES] = {BYTES, 2 * BYTES};

	for (unsigned i = 0; i < DEVICES; i++) {
		v->device[i] = test_async_create(v->ctx,
			&(struct test_device_options){.size_bytes = bytes[i], .lockable = true},
			TEST_ASYNC_INLINE);
		cr_assert_not_null(v->device[i]);
	}
}

static void open_stores(struct volume *v, const struct options *options)
{
	struct cowsnap_dm_options dm = {.size = sizeof(dm),
		.chunk_size_bytes = CHUNK,
		.device = test_async_device(v->device[STORE])};
	struct cowsnap_transient_options transient = {
		.size = sizeof(transient), .chunk_size_bytes = 4 * CHUNK};

	cr_assert_eq(cowsnap_store_dm_create(v->ctx, &dm, &v->store), 0);
	if (options->sibling)
		cr_assert_eq(cowsnap_store_transient(v->ctx, &transient, &v->other), 0);
}

static void save_all(struct volume *v, const struct options *options)
{
	uint64_t order[CHUNKS];

	for (uint64_t i = 0; i < CHUNKS; i++)
		order[i] = i;
	if (!options->in_order)
		shuffle(v, order);
	for (uint64_t i = 0; i < CHUNKS; i++)
		write_chunk(v, order[i], order[i] + CHUNKS);
}

static void set_mode(struct volume *v, enum test_async_mode mode)
{
	for (unsigned i = 0; i < DEVICES; i++)
		test_async_set_mode(v->device[i], mode);
}

static void volume_open(struct volume *v, const struct options *options, struct seed seed)
{
	struct cowsnap_ctx_options ctx = {.size = sizeof(ctx),
		.engine = COWSNAP_ENGINE_LOOP,
		.allocator = options->allocator};

	memset(v, 0, sizeof(*v));
	v->seed = seed;
	v->model = malloc(BYTES);
	v->before = malloc(BYTES);
	v->data = malloc(BYTES);
	cr_assert_eq(cowsnap_ctx_create(&ctx, &v->ctx), 0);
	open_devices(v);
	cr_assert_eq(cowsnap_queue_create(v->ctx, 64, &v->queue), 0);
	cr_assert_eq(
		cowsnap_origin_open(v->ctx, test_async_device(v->device[ORIGIN]), &v->origin), 0);
	open_stores(v, options);
	for (uint64_t i = 0; i < CHUNKS; i++)
		write_chunk(v, i, i);
	memcpy(v->model, v->before, BYTES);
	v->merged = take(v, v->store);
	save_all(v, options);
	v->sibling = options->sibling ? take(v, v->other) : NULL;
	set_mode(v, options->mode);
	test_device_reset(rig(v, ORIGIN));
	cr_assert_eq(cowsnap_merge_begin(v->merged), 0);
}

static void expect_volume(struct volume *v)
{
	cr_assert_eq(cowsnap_origin_read(v->origin, v->data, 0, BYTES), 0);
	cr_assert_arr_eq(v->data, v->model, BYTES);
	if (!v->sibling)
		return;
	cr_assert_eq(cowsnap_snapshot_read(v->sibling, v->data, 0, BYTES), 0);
	cr_assert_arr_eq(v->data, v->before, BYTES);
}

/* It was merged. */
static void volume_close(struct volume *v)
{
	struct cowsnap_device *device = test_async_device(v->device[ORIGIN]);

	set_mode(v, TEST_ASYNC_INLINE);
	expect_volume(v);
	cr_assert_eq(cowsnap_device_read(device, v->data, 0, BYTES), 0);
	cr_assert_arr_eq(v->data, v->model, BYTES);
	if (v->sibling)
		cr_assert_eq(cowsnap_snapshot_drop(v->sibling), 0);
	cowsnap_snapshot_unref(v->sibling);
	cowsnap_snapshot_unref(v->merged);
	while (cowsnap_reclaim(v->ctx, 1024) == 1)
		;
	cr_assert_eq(cowsnap_queue_close(v->queue), 0);
	cr_assert_eq(cowsnap_origin_close(v->origin), 0);
	cr_assert_eq(cowsnap_store_close(v->store), 0);
	if (v->other)
		cr_assert_eq(cowsnap_store_close(v->other), 0);
	for (unsigned i = 0; i < DEVICES; i++)
		cr_assert_eq(test_async_destroy(v->device[i]), 0);
	cr_assert_eq(cowsnap_ctx_destroy(v->ctx), 0);
	free(v->model);
	free(v->before);
	free(v->data);
}

static int begin(struct volume *v, struct pending_op *p, uint64_t max_bytes)
{
	memset(p, 0, sizeof(*p));
	return cowsnap_merge_run_async(v->merged, v->queue, max_bytes, &p->op, pending_done, p);
}

static int wait_end(struct volume *v, struct pending_op *p)
{
	cr_assert(pending_wait(v->queue, p), "nothing happens any more");
	return p->error;
}

static int run(struct volume *v, uint64_t max_bytes)
{
	struct pending_op p;
	int rc = begin(v, &p, max_bytes);

	return rc == COWSNAP_PENDING ? wait_end(v, &p) : rc;
}

/* ---- To the end ------------------------------------------------------------------------------ */

static uint64_t flushes(struct volume *v)
{
	struct test_device_entry *call = malloc(TEST_DEVICE_LOG_MAX * sizeof(*call));
	size_t count = test_device_log(rig(v, ORIGIN), call, TEST_DEVICE_LOG_MAX);
	uint64_t flushes = 0;

	for (size_t i = 0; i < count && i < TEST_DEVICE_LOG_MAX; i++)
		flushes += call[i].kind == TEST_IO_FLUSH;
	free(call);
	return flushes;
}

/* Host writes between its requests, of parts of chunks too. */
static void write_beside(struct volume *v, struct pending_op *merge)
{
	while (!atomic_load(&merge->calls)) {
		uint64_t length = 1 + seed_below(&v->seed, 3 * CHUNK);
		uint64_t at = seed_below(&v->seed, BYTES - length);
		struct pending_op p = {0};
		int rc;

		seed_fill(&v->seed, v->model + at, length);
		rc = cowsnap_origin_write_async(v->origin, v->queue, COWSNAP_WRITE, v->model + at,
			at, length, &p.op, pending_done, &p);
		cr_assert_eq(rc, COWSNAP_PENDING);
		cr_assert(pending_wait(v->queue, &p));
		cr_assert_eq(p.error, 0);
	}
}

Test(merge_batches, whole_and_in_portions_each_way)
{
	static const enum test_async_mode modes[] = {
		TEST_ASYNC_INLINE, TEST_ASYNC_FOREIGN, TEST_ASYNC_REVERSE};
	struct seed seed = seed_for("merge_batches.whole_and_in_portions_each_way");

	for (unsigned i = 0; i<3 * 2 * 2 * 2; i += STRIDE> 1 ? 5 : 1) {
		struct options options = {
			.mode = modes[i % 3], .sibling = i / 3 & 1, .in_order = i / 6 & 1};
		struct pending_op p;
		struct volume v;
		int rc;

		volume_open(&v, &options, (struct seed){seed_next(&seed)});
		do {
			uint64_t bytes = i / 12 ? WHOLE : 1 + seed_below(&seed, 3 * BYTES / 4);

			cr_assert_eq(begin(&v, &p, bytes), COWSNAP_PENDING);
			write_beside(&v, &p);
			rc = wait_end(&v, &p);
			expect_volume(&v);
		} while (rc == 1);
		cr_assert_eq(rc, 0, "%u: %d", i, rc);
		volume_close(&v);
	}
}

/* Who throttles wants his writes to wait for little: each megabyte is a batch. */
Test(merge_batches, short_where_the_host_throttles)
{
	for (unsigned i = 0; i < 2; i++) {
		struct seed seed = {1};
		struct volume v;

		volume_open(&v, &(struct options){.in_order = i}, seed);
		cr_assert_eq(run(&v, UINT64_C(1) << 20), 1);
		cr_assert_eq(cowsnap_ctx_throttle(v.ctx, UINT64_C(1) << 40, 100), 0);
		cr_assert_eq(run(&v, WHOLE), 0);
		cr_assert_geq(flushes(&v), (BYTES + (1 << 20) - 1) >> 20);
		volume_close(&v);
	}
}

/* ---- Not to the end -------------------------------------------------------------------------- */

/* After so many polls, in whatever it was waiting for. */
Test(merge_batches, cancelled_anywhere)
{
	struct seed seed = seed_for("merge_batches.cancelled_anywhere");

	for (unsigned i = 0; i<24; i += STRIDE> 1 ? 5 : 1) {
		struct options options = {.mode = i & 1 ? TEST_ASYNC_FOREIGN : TEST_ASYNC_REVERSE,
			.sibling = i & 2,
			.in_order = i & 4};
		unsigned cancelled = 0;
		struct volume v;
		int rc;

		volume_open(&v, &options, (struct seed){seed_next(&seed)});
		do {
			struct pending_op p;

			cr_assert_eq(begin(&v, &p, WHOLE), COWSNAP_PENDING);
			for (uint64_t n = seed_below(&seed, 60);
				n && !atomic_load(&p.calls) && cancelled < 6; n--)
				pending_poll(v.queue, PENDING_WAIT_MS);
			if (cancelled++ < 6 && !atomic_load(&p.calls))
				cr_assert_eq(cowsnap_op_cancel(&p.op), 0);
			rc = wait_end(&v, &p);
			cr_assert(rc == 0 || rc == -ECANCELED, "%d", rc);
			expect_volume(&v);
		} while (rc);
		volume_close(&v);
	}
}

/* What is newer than a chunk that could not be saved for a sibling is moved all the same: else the
 * next call would find the same batch, and fail again. */
Test(merge_batches, newer_ones_go_though_a_sibling_is_full)
{
	const struct options options = {.sibling = true, .in_order = true};
	struct cowsnap_merge_info info;
	struct volume v;

	volume_open(&v, &options, (struct seed){1});
	cr_assert_eq(cowsnap_store_set_limit(v.other, BYTES / 4), 0);
	cr_assert_eq(run(&v, WHOLE), -ENOSPC);
	expect_volume(&v);
	cr_assert_eq(cowsnap_merge_info(v.merged, &info, sizeof(info)), 0);
	cr_assert_geq(info.moved_bytes, BYTES / 8);
	cr_assert_eq(cowsnap_store_set_limit(v.other, 2 * BYTES), 0);
	cr_assert_eq(run(&v, WHOLE), 0);
	volume_close(&v);
}

/* Returns: whether the n-th call failed. */
static bool fails_once(
	const struct options *options, unsigned device, enum test_io kind, uint64_t n)
{
	struct volume v;
	bool failed;
	int rc;

	volume_open(&v, options, (struct seed){n});
	test_device_fail(rig(&v, device), kind, n, false, -EIO);
	rc = run(&v, WHOLE);
	failed = test_device_failed(rig(&v, device)) > 0;
	test_device_heal(rig(&v, device));
	cr_assert_eq(rc, failed ? -EIO : 0, "call %llu: %d", (unsigned long long)n, rc);
	if (failed) {
		expect_volume(&v);
		cr_assert_eq(run(&v, WHOLE), 0);
	}
	volume_close(&v);
	return failed;
}

/* But for a flush of the store, which breaks it. Where there are many calls, one in some. */
Test(merge_batches, a_device_call_fails, .timeout = 120)
{
	static const struct {
		unsigned device;
		enum test_io kind;
		unsigned step;
	} calls[] = {{ORIGIN, TEST_IO_WRITE, 97}, {ORIGIN, TEST_IO_FLUSH, 1},
		{STORE, TEST_IO_READ, 97}, {STORE, TEST_IO_WRITE, 1}};

	for (unsigned i = 0; i < 8; i++) {
		const struct options options = {
			.mode = TEST_ASYNC_REVERSE, .sibling = i & 1, .in_order = true};
		uint64_t n = 1;

		while (fails_once(&options, calls[i / 2].device, calls[i / 2].kind, n))
			n += n > 4 / STRIDE ? calls[i / 2].step * STRIDE : 1;
		cr_assert_gt(n, 1);
	}
}

/* Only what settles needs memory, and what saves for the sibling. */
Test(merge_batches, an_allocation_fails, .timeout = 120)
{
	for (unsigned i = 0; i < 2; i++) {
		struct fail_alloc *memory = fail_alloc_create(true);
		const struct options options = {.mode = TEST_ASYNC_REVERSE,
			.sibling = i,
			.in_order = true,
			.allocator = fail_alloc_table(memory)};
		bool failed = true;

		for (uint64_t n = 1; failed; n += n < 12 / STRIDE ? 1 : 7 * STRIDE) {
			struct volume v;
			int rc;

			volume_open(&v, &options, (struct seed){n});
			fail_alloc_at(memory, n, false);
			rc = run(&v, WHOLE);
			failed = fail_alloc_failed(memory) > 0;
			fail_alloc_at(memory, 0, false);
			cr_assert(!rc || (failed && rc == -ENOMEM), "%llu: %d",
				(unsigned long long)n, rc);
			expect_volume(&v);
			if (rc)
				cr_assert_eq(run(&v, WHOLE), 0);
			volume_close(&v);
		}
		cr_assert_eq(fail_alloc_live(memory), 0);
		fail_alloc_destroy(memory);
	}
}
