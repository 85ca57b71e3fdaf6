/* SPDX-License-Identifier: MIT
 *
 * Merges in which something fails: each call of a device, each allocation, at each moment. Nobody
 * hears that a merge has ended before it has; what is resumed ends with the right content; and the
 * other snapshots keep theirs. Merges beside what else is done to an origin and its snapshots.
 */
#include "concurrent/merging.h"

#include "support/fail_alloc.h"
#include "support/pending.h"

/* ---- Failures: the state in between ---------------------------------------------------------- */

/* Each stop is told once, and leaves a merge that can go on. */
static void expect_stopped(struct family *f, int rc, unsigned failures)
{
	struct cowsnap_merge_info info = merge_info(f->merged);

	cr_assert_eq(scene_count_events(&f->s, COWSNAP_EVENT_MERGE_FAILED), failures);
	cr_assert_eq(scene_count_events(&f->s, COWSNAP_EVENT_MERGED), 0);
	cr_assert_eq(info.error, rc);
	cr_assert_eq(info.running, 0);
	cr_assert_leq(info.moved_bytes, info.total_bytes);
	cr_assert_eq(state_of(f->merged), COWSNAP_SNAPSHOT_MERGING);
}

/* 2023, Jiazi Li: a merge said that it had finished, and then that it had failed. */
static void expect_ended(struct family *f)
{
	struct cowsnap_merge_info info;

	cr_assert_eq(scene_count_events(&f->s, COWSNAP_EVENT_MERGED), 1);
	cr_assert_eq(f->s.event[atomic_load(&f->s.events) - 1].type, COWSNAP_EVENT_MERGED);
	cr_assert_eq(state_of(f->merged), COWSNAP_SNAPSHOT_DROPPED);
	cr_assert_eq(cowsnap_merge_info(f->merged, &info, sizeof(info)), -EINVAL);
}

static void expect_merged(struct family *f)
{
	uint8_t *model = malloc(ALL);

	model_merged(model);
	expect_device(f->s.origin_test[0], model, ALL);
	free(model);
	expect_family(f);
}

/* ---- Devices --------------------------------------------------------------------------------- */

enum { ORIGIN, STORE, STORE_1, DEVICES };

static struct test_device *device_of(struct family *f, unsigned which)
{
	if (which == ORIGIN)
		return f->s.origin_test[0];
	if (which == STORE_1)
		return f->s.store_test[1];
	return f->records ? f->records_test : f->s.store_test[0];
}

struct fault {
	bool records;
	unsigned device;
	enum test_io kind;
	bool by_steps;
};

static int run(struct family *f, const struct fault *fault)
{
	int rc;

	do
		rc = cowsnap_merge_run(f->merged, fault->by_steps ? 8 * CHUNK : WHOLE);
	while (rc == 1);
	return rc;
}

/* Returns: whether the n-th call failed. */
static bool fails_once(const struct fault *fault, uint64_t n)
{
	struct test_device *device;
	uint8_t *model = malloc(ALL);
	bool failed, opened = false;
	struct family f;
	int rc;

	make_family_with(&f, &(struct family_options){.records = fault->records});
	device = device_of(&f, fault->device);
	test_device_fail(device, fault->kind, n, false, -EIO);
	rc = cowsnap_merge_begin(f.merged);
	cr_assert_eq(rc, 0, "it asks nothing of the devices: %d", rc);
	rc = run(&f, fault);
	failed = test_device_failed(device) > 0;
	test_device_heal(device);
	cr_assert_eq(rc, failed ? -EIO : 0, "call %llu: %d", (unsigned long long)n, rc);
	if (failed) {
		expect_stopped(&f, -EIO, 1);
		expect_volume_merged(&f);
		expect_family(&f);
		rc = run(&f, fault);
		opened = rc && fault->records && fault->device == STORE &&
			 fault->kind == TEST_IO_FLUSH;
		/* A flush that failed has broken the store: what is on the device is merged. */
		if (opened)
			family_open_anew(&f);
		cr_assert_eq(opened ? run(&f, fault) : rc, 0);
	}
	expect_ended(&f);
	model_merged(model);
	expect_device(f.s.origin_test[0], model, ALL);
	free(model);
	if (opened) {
		close_family(&f);
	} else {
		expect_family(&f);
		end_family(&f);
	}
	return failed;
}

static void sweep_devices(bool records, const unsigned expected[DEVICES][TEST_IO_KINDS])
{
	static const enum test_io kinds[] = {TEST_IO_READ, TEST_IO_WRITE, TEST_IO_FLUSH};

	for (unsigned d = 0; d < DEVICES; d++) {
		for (unsigned k = 0; k < 3; k++) {
			struct fault fault = {records, d, kinds[k], (d + k) % 2};
			uint64_t n = 1;

			while (fails_once(&fault, n))
				n++;
			cr_assert_geq(n - 1, expected[d][kinds[k]], "device %u, kind %u: %llu", d,
				kinds[k], (unsigned long long)n - 1);
		}
	}
}

/* The numbers are the fewest calls that make sense, so that a sweep that sweeps nothing is seen. */
Test(merge_faults, each_device_call_fails_once)
{
	static const unsigned expected[DEVICES][TEST_IO_KINDS] = {
		[ORIGIN] = {[TEST_IO_READ] = 1, [TEST_IO_WRITE] = 1, [TEST_IO_FLUSH] = 1},
		[STORE] = {[TEST_IO_READ] = 1, [TEST_IO_WRITE] = 1},
		[STORE_1] = {[TEST_IO_WRITE] = 1},
	};

	sweep_devices(false, expected);
}

Test(merge_faults, each_device_call_fails_once_with_records)
{
	static const unsigned expected[DEVICES][TEST_IO_KINDS] = {
		[ORIGIN] = {[TEST_IO_READ] = 1, [TEST_IO_WRITE] = 2, [TEST_IO_FLUSH] = 1},
		[STORE] = {[TEST_IO_READ] = 4, [TEST_IO_WRITE] = 2, [TEST_IO_FLUSH] = 2},
		[STORE_1] = {[TEST_IO_WRITE] = 1},
	};

	sweep_devices(true, expected);
}

/* ---- Brackets -------------------------------------------------------------------------------- */

enum how { BRACKET, QUEUED, PUT };

#define SOME_OFFSET (17 * CHUNK + 10)
#define SOME_BYTES  (2 * CHUNK)

static int begin_some(struct family *f, struct cowsnap_queue *queue, struct pending_op *p)
{
	int rc;

	if (!queue)
		return cowsnap_write_begin(
			f->s.origin[0], COWSNAP_WRITE, SOME_OFFSET, SOME_BYTES, &p->op);
	rc = cowsnap_write_begin_async(f->s.origin[0], queue, COWSNAP_WRITE, SOME_OFFSET,
		SOME_BYTES, &p->op, pending_done, p);
	if (rc != COWSNAP_PENDING)
		return rc;
	cr_assert(pending_wait(queue, p), "nothing happens any more");
	return p->error;
}

/* Of a part of two chunks and all of another one, that were not merged. The host's own write works.
 */
static int write_some(struct family *f, enum how how, struct cowsnap_queue *queue)
{
	struct pending_op p = {0};
	uint8_t data[SOME_BYTES];
	int rc;

	if (how == PUT)
		return put(f->s.origin[0], SOME_OFFSET, SOME_BYTES, 9);
	rc = begin_some(f, how == QUEUED ? queue : NULL, &p);
	if (rc)
		return rc;
	memset(data, 9, sizeof(data));
	rc = cowsnap_device_write(
		test_device_inner(f->s.origin_test[0]), data, SOME_OFFSET, SOME_BYTES);
	cowsnap_write_end(&p.op);
	return rc;
}

/* Which calls a bracket makes: all is submitted then. With records, a write in place. */
static struct family_options options_of(enum how how)
{
	return (struct family_options){.records = how == PUT,
		.scene = {.engine = how == QUEUED ? COWSNAP_ENGINE_LOOP : COWSNAP_ENGINE_INLINE,
			.submits = how == QUEUED}};
}

/* What did not work has changed nothing. */
static void expect_as_if_nothing_was(struct family *f)
{
	cr_assert_eq(scene_count_events(&f->s, COWSNAP_EVENT_MERGE_FAILED), 0);
	cr_assert_eq(merge_info(f->merged).error, 0);
	expect_volume_merged(f);
	expect_family(f);
}

static void expect_written(struct family *f)
{
	uint8_t *model = malloc(ALL);

	cr_assert_eq(cowsnap_merge_run(f->merged, WHOLE), 0);
	expect_ended(f);
	model_merged(model);
	memset(model + SOME_OFFSET, 9, SOME_BYTES);
	expect_device(f->s.origin_test[0], model, ALL);
	expect_family(f);
	free(model);
}

/* A bracket that cannot move its chunks fails, and so does nothing else. Returns: whether the n-th
 * call failed. */
static bool bracket_fails_once(enum how how, unsigned which, enum test_io kind, uint64_t n)
{
	const struct family_options options = options_of(how);
	struct cowsnap_queue *queue;
	struct test_device *device;
	struct family f;
	bool failed;
	int rc;

	make_family_with(&f, &options);
	cr_assert_eq(cowsnap_queue_create(f.s.ctx, 1, &queue), 0);
	device = device_of(&f, which);
	cr_assert_eq(cowsnap_merge_begin(f.merged), 0);
	test_device_fail(device, kind, n, false, -EIO);
	rc = write_some(&f, how, queue);
	failed = test_device_failed(device) > 0;
	test_device_heal(device);
	cr_assert_eq(rc, failed ? -EIO : 0, "call %llu: %d", (unsigned long long)n, rc);
	/* A write in place that has failed may have been done in part. */
	if (rc && how != PUT)
		expect_as_if_nothing_was(&f);
	if (rc)
		cr_assert_eq(write_some(&f, how, queue), 0);
	expect_written(&f);
	cr_assert_eq(cowsnap_queue_close(queue), 0);
	end_family(&f);
	return failed;
}

Test(merge_faults, each_device_call_of_a_bracket_fails_once)
{
	for (enum how how = BRACKET; how <= PUT; how++) {
		unsigned failed = 0;

		for (unsigned d = 0; d < DEVICES; d++) {
			for (enum test_io kind = TEST_IO_READ; kind <= TEST_IO_WRITE; kind++) {
				uint64_t n = 1;

				for (; bracket_fails_once(how, d, kind, n); n++)
					failed++;
			}
		}
		cr_assert_geq(failed, how == PUT ? 1 : 8, "%u: %u", how, failed);
	}
}

static bool bracket_without_memory(enum how how, uint64_t n)
{
	struct fail_alloc *memory = fail_alloc_create(true);
	struct family_options options = options_of(how);
	struct cowsnap_queue *queue;
	struct family f;
	bool failed;
	int rc;

	options.scene.allocator = fail_alloc_table(memory);
	make_family_with(&f, &options);
	cr_assert_eq(cowsnap_queue_create(f.s.ctx, 1, &queue), 0);
	cr_assert_eq(cowsnap_merge_begin(f.merged), 0);
	fail_alloc_at(memory, n, true);
	rc = write_some(&f, how, queue);
	failed = fail_alloc_failed(memory) > 0;
	fail_alloc_at(memory, 0, false);
	cr_assert(rc == 0 || (failed && rc == -ENOMEM), "error %d", rc);
	if (rc)
		expect_as_if_nothing_was(&f);
	cr_assert_eq(write_some(&f, how, queue), 0);
	expect_written(&f);
	cr_assert_eq(cowsnap_queue_close(queue), 0);
	end_family(&f);
	cr_assert_eq(fail_alloc_live(memory), 0);
	fail_alloc_destroy(memory);
	return failed;
}

Test(merge_faults, each_allocation_of_a_bracket_fails)
{
	for (enum how how = BRACKET; how <= PUT; how++) {
		uint64_t n = 1;

		while (bracket_without_memory(how, n))
			cr_assert_lt(++n, 100);
		cr_assert_gt(n, 1, "%u", how);
	}
}

/* ---- Memory ---------------------------------------------------------------------------------- */

/* A step of a sweep over allocations: what cannot be done for want of memory is done again. */
static bool without_memory(const struct family_options *options, uint64_t n, bool for_good)
{
	struct fail_alloc *memory = fail_alloc_create(true);
	struct family_options with = *options;
	unsigned failures = 0;
	bool wrote;
	struct family f;
	int rc;

	with.scene.allocator = fail_alloc_table(memory);
	make_family_with(&f, &with);
	fail_alloc_at(memory, n, for_good);
	rc = cowsnap_merge_begin(f.merged);
	cr_assert(rc == 0 || rc == -ENOMEM, "error %d", rc);
	if (rc) {
		cr_assert_gt(fail_alloc_failed(memory), 0);
		cr_assert_eq(state_of(f.merged), COWSNAP_SNAPSHOT_ACTIVE);
		fail_alloc_at(memory, 0, false);
		scene_expect(f.merged, 0, ALL / 2, 2);
		cr_assert_eq(cowsnap_merge_begin(f.merged), 0);
	}
	expect_volume_merged(&f);
	rc = put(f.s.origin[0], 30 * CHUNK + 7, 10, 9);
	cr_assert(rc == 0 || rc == -ENOMEM, "error %d", rc);
	wrote = !rc;
	while ((rc = cowsnap_merge_run(f.merged, 8 * CHUNK)) != 0) {
		if (rc == 1)
			continue;
		cr_assert_eq(rc, -ENOMEM, "error %d", rc);
		cr_assert_lt(++failures, 3);
		expect_stopped(&f, rc, failures);
		fail_alloc_at(memory, 0, false);
	}
	/* Counts begin anew when it heals: it ends when nothing was left to fail. */
	rc = !fail_alloc_failed(memory) && wrote && !failures;
	rc &= fail_alloc_calls(memory) < n;
	fail_alloc_at(memory, 0, false);
	expect_ended(&f);
	if (wrote) {
		expect_volume(f.s.origin[0], 30 * CHUNK + 7, 10, 9);
		cr_assert_eq(put(f.s.origin[0], 30 * CHUNK + 7, 10, 2), 0);
	}
	expect_merged(&f);
	end_family(&f);
	cr_assert_eq(fail_alloc_live(memory), 0);
	fail_alloc_destroy(memory);
	return !rc;
}

static void sweep_memory(const struct family_options *options)
{
	for (int for_good = 0; for_good < 2; for_good++) {
		uint64_t n = 1;

		while (without_memory(options, n, for_good))
			cr_assert_lt(++n, 300);
		cr_assert_gt(n, 5);
	}
}

Test(merge_faults, each_allocation_fails)
{
	sweep_memory(&(struct family_options){0});
}

Test(merge_faults, each_allocation_fails_with_records)
{
	sweep_memory(&(struct family_options){.records = true});
}

/* ---- Beside other things --------------------------------------------------------------------- */

static enum cowsnap_preimage_kind count_asks(void *user, struct cowsnap_preimage_ask *ask)
{
	(void)ask;
	++*(unsigned *)user;
	return COWSNAP_PREIMAGE_ZERO;
}

/* The host knows what the volume shows, which is not what other snapshots need of its origin. */
Test(merge_faults, the_host_is_not_asked_for_preimages)
{
	struct cowsnap_snapshot *merged, *newer;
	unsigned asked = 0;
	const struct cowsnap_preimage preimage = {.get = count_asks, .user = &asked};
	struct cowsnap_op op;
	struct scene s;

	scene_open(&s, NULL);
	cr_assert_eq(scene_write(&s, 0, 0, ALL, 1), 0);
	merged = scene_take(&s, 0, 0, COWSNAP_LOSER_WRITE);
	cr_assert_eq(scene_write(&s, 0, 16 * CHUNK, 16 * CHUNK, 2), 0);
	newer = scene_take(&s, 0, 0, COWSNAP_LOSER_WRITE);
	cr_assert_eq(cowsnap_merge_begin(merged), 0);
	for (unsigned i = 0; i < 2; i++) {
		cr_assert_eq(cowsnap_write_begin_with(s.origin[0], COWSNAP_WRITE, (17 + i) * CHUNK,
				     1, &preimage, &op),
			0);
		cowsnap_write_end(&op);
	}
	cr_assert_eq(cowsnap_merge_run(merged, WHOLE), 0);
	cr_assert_eq(asked, 0);
	scene_expect(newer, 0, 16 * CHUNK, 1);
	scene_expect(newer, 16 * CHUNK, 16 * CHUNK, 2);
	cr_assert_eq(
		cowsnap_write_begin_with(s.origin[0], COWSNAP_WRITE, 40 * CHUNK, 1, &preimage, &op),
		0);
	cowsnap_write_end(&op);
	cr_assert_eq(asked, 1, "again when it has ended");
	cowsnap_snapshot_unref(merged);
	scene_drop(newer);
	scene_close(&s);
}

/* Siblings come to need less, or more, while it goes on; what is left is found at the end. */
Test(merge_faults, siblings_are_dropped_released_and_detached)
{
	struct cowsnap_snapshot *older[2], *merged, *newer[2];
	uint8_t *model = malloc(ALL);
	struct scene s;

	scene_open(&s, NULL);
	cr_assert_eq(scene_write(&s, 0, 0, ALL, 1), 0);
	for (unsigned i = 0; i < 2; i++)
		older[i] = scene_take(&s, 0, 0, COWSNAP_LOSER_WRITE);
	cr_assert_eq(scene_write(&s, 0, 0, 4 * CHUNK, 2), 0);
	merged = scene_take(&s, 0, 0, COWSNAP_LOSER_WRITE);
	cr_assert_eq(scene_write(&s, 0, 2 * CHUNK, 8 * CHUNK, 3), 0);
	for (unsigned i = 0; i < 2; i++)
		newer[i] = scene_take(&s, 0, 0, COWSNAP_LOSER_WRITE);
	cr_assert_eq(scene_write(&s, 0, 8 * CHUNK, 8 * CHUNK, 4), 0);
	cr_assert_eq(cowsnap_merge_begin(merged), 0);
	cr_assert_eq(cowsnap_merge_run(merged, 2 * CHUNK), 1);
	cr_assert_eq(cowsnap_snapshot_detach(newer[0], UINT64_MAX), 0);
	scene_drop(newer[1]);
	scene_drop(older[0]);
	cr_assert_eq(cowsnap_snapshot_release(older[1], 0, 2 * CHUNK), 0);
	scene_reclaim(&s);
	cr_assert_eq(put(s.origin[0], 30 * CHUNK, CHUNK, 5), 0);
	scene_reclaim(&s);
	cr_assert_eq(cowsnap_merge_run(merged, WHOLE), 0);
	cowsnap_snapshot_unref(merged);
	memset(model, 1, ALL);
	memset(model, 2, 4 * CHUNK);
	memset(model + 30 * CHUNK, 5, CHUNK);
	expect_device(s.origin_test[0], model, ALL);
	for (unsigned reclaimed = 0; reclaimed < 2; reclaimed++) {
		scene_expect(older[1], 2 * CHUNK, ALL - 2 * CHUNK, 1);
		scene_expect(newer[0], 0, 2 * CHUNK, 2);
		scene_expect(newer[0], 2 * CHUNK, 8 * CHUNK, 3);
		scene_expect(newer[0], 10 * CHUNK, 54 * CHUNK, 1);
		scene_reclaim(&s);
	}
	scene_drop(older[1]);
	scene_drop(newer[0]);
	scene_close(&s);
	free(model);
}

/* Room for seven chunks of what the younger one comes to need: the write that loses is the mover's,
 * and a bracket's. */
Test(merge_faults, the_store_of_a_sibling_is_full)
{
	for (unsigned records = 0; records < 2; records++) {
		const struct family_options options = {
			.records = records, .large = !records, .scene = {.limit_chunks = 56}};
		struct family f;
		int rc;

		make_family_with(&f, &options);
		cr_assert_eq(cowsnap_merge_begin(f.merged), 0);
		while ((rc = cowsnap_merge_run(f.merged, CHUNK)) == 1)
			expect_volume_merged(&f);
		cr_assert_eq(rc, -ENOSPC, "error %d", rc);
		expect_stopped(&f, -ENOSPC, 1);
		expect_family(&f);
		cr_assert_eq(scene_write(&f.s, 0, 20 * CHUNK, 8 * CHUNK, 9), -ENOSPC);
		expect_volume_merged(&f);
		cr_assert_eq(cowsnap_store_set_limit(f.s.store[0], 0), 0);
		cr_assert_eq(cowsnap_merge_run(f.merged, WHOLE), 0);
		expect_ended(&f);
		expect_merged(&f);
		end_family(&f);
	}
}

/* Or the snapshot loses, and the merge goes on. */
Test(merge_faults, a_sibling_loses)
{
	struct cowsnap_snapshot *merged, *sibling;
	uint8_t *model = malloc(ALL);
	struct scene s;

	scene_open(&s, &(struct scene_options){.limit_chunks = 4});
	merged = scene_take(&s, 0, 1, COWSNAP_LOSER_WRITE);
	cr_assert_eq(scene_write(&s, 0, 0, 8 * CHUNK, 2), 0);
	sibling = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(cowsnap_merge_begin(merged), 0);
	cr_assert_eq(cowsnap_merge_run(merged, WHOLE), 0);
	scene_expect_state(sibling, COWSNAP_SNAPSHOT_INVALID, -ENOSPC);
	cr_assert_eq(scene_count_events(&s, COWSNAP_EVENT_MERGE_FAILED), 0);
	memset(model, SCENE_BLANK, ALL);
	expect_device(s.origin_test[0], model, ALL);
	cowsnap_snapshot_unref(merged);
	scene_drop(sibling);
	scene_close(&s);
	free(model);
}

#define SMALL (10 * CHUNK + 512)

static void open_small_store(struct cowsnap_ctx *ctx, bool records, struct test_device *device,
	struct cowsnap_store **store)
{
	struct cowsnap_dm_options dm = {
		.size = sizeof(dm), .chunk_size_bytes = CHUNK, .device = test_device(device)};
	struct cowsnap_transient_options transient = {.size = sizeof(transient),
		.chunk_size_bytes = CHUNK,
		.device = test_device(device)};

	cr_assert_eq(records ? cowsnap_store_dm_create(ctx, &dm, store)
			     : cowsnap_store_transient(ctx, &transient, store),
		0);
}

/* The snapshot ends in the middle of its last chunk, and the origin does not any more. */
static void merge_grown(bool records)
{
	struct test_device *device, *store_device;
	struct cowsnap_take_entry entry = {0};
	struct cowsnap_ctx *ctx;
	struct mover mover;

	cr_assert_eq(cowsnap_ctx_create(NULL, &ctx), 0);
	device = test_device_create(
		ctx, &(struct test_device_options){.size_bytes = SMALL, .max_bytes = 12 * CHUNK});
	store_device = test_device_create(
		ctx, &(struct test_device_options){.size_bytes = 32 * CHUNK, .lockable = true});
	cr_assert_eq(cowsnap_origin_open(ctx, test_device(device), &entry.origin), 0);
	open_small_store(ctx, records, store_device, &entry.store);
	cr_assert_eq(cowsnap_take(ctx, NULL, &entry, 1), 0);
	test_device_resize(device, 12 * CHUNK);
	cr_assert_eq(cowsnap_device_refresh(test_device(device)), 0);
	cr_assert_eq(cowsnap_origin_resize(entry.origin, 0), 0);
	cr_assert_eq(put(entry.origin, SMALL - 1024, 2560, 2), 0);
	cr_assert_eq(cowsnap_merge_begin(entry.snapshot), 0);
	expect_volume(entry.origin, 8 * CHUNK, SMALL - 8 * CHUNK, 0);
	expect_volume(entry.origin, SMALL, 1536, 2);
	cr_assert_eq(put(entry.origin, SMALL - 20, 10, 4), 0);
	mover_start(&mover, entry.snapshot, CHUNK);
	cr_assert_eq(put(entry.origin, SMALL + 512, 512, 3), 0);
	for (unsigned moved = 0; moved < 2; moved++) {
		expect_volume(entry.origin, 8 * CHUNK, SMALL - 20 - 8 * CHUNK, 0);
		expect_volume(entry.origin, SMALL - 20, 10, 4);
		expect_volume(entry.origin, SMALL - 10, 10, 0);
		expect_volume(entry.origin, SMALL, 512, 2);
		expect_volume(entry.origin, SMALL + 512, 512, 3);
		expect_volume(entry.origin, SMALL + 1024, 512, 2);
		if (!moved)
			cr_assert_eq(mover_join(&mover), 0);
	}
	cowsnap_snapshot_unref(entry.snapshot);
	cr_assert_eq(cowsnap_store_close(entry.store), 0);
	cr_assert_eq(cowsnap_origin_close(entry.origin), 0);
	cr_assert_eq(test_device_destroy(device), 0);
	cr_assert_eq(test_device_destroy(store_device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

/* What lies behind the snapshot's end is not the merge's, also in the chunk in which it ends: it
 * was read from there, and written to there and lost. */
Test(merge_faults, the_origin_has_grown)
{
	merge_grown(false);
	merge_grown(true);
}
