/* SPDX-License-Identifier: MIT
 *
 * Merges of snapshots with records: in which order things become durable, who writes where, who
 * waits until a record is gone. In the persistent store, and in one of the host's.
 */
#include "concurrent/merging.h"

#include "support/dm_image.h"
#include "support/dm_scene.h"
#include "support/newest.h"
#include "support/pending.h"

/* ---- The order on the devices ---------------------------------------------------------------- */

#define DM_CHUNK  UINT64_C(512)
#define DM_BYTES  UINT64_C(65536)
#define DM_SAVED  48u /* more than one area of records */
#define DM_LENGTH 3u  /* that many lie together */

/* Of record @k. */
static uint64_t saved_chunk(unsigned k)
{
	return k / DM_LENGTH * 11 % 40 * DM_LENGTH + k % DM_LENGTH;
}

static bool writes(const struct test_device_entry *call)
{
	return call->kind == TEST_IO_WRITE || call->kind == TEST_IO_WRITE_DURABLE ||
	       call->kind == TEST_IO_ZERO;
}

/* Was all of the range written, and did a flush begin after that, and end? */
static bool is_flushed(struct test_device *device, uint64_t offset, uint64_t length)
{
	struct test_device_entry *call = malloc(TEST_DEVICE_LOG_MAX * sizeof(*call));
	size_t count = test_device_log(device, call, TEST_DEVICE_LOG_MAX);
	uint64_t bytes = 0, written = 0, flushed = 0;

	cr_assert_leq(count, TEST_DEVICE_LOG_MAX);
	for (size_t i = 0; i < count; i++) {
		uint64_t end = call[i].offset + call[i].length;
		bool inside = call[i].offset < offset + length && offset < end;

		if (writes(&call[i]) && inside) {
			written = call[i].ended ? call[i].ended : UINT64_MAX;
			end = end < offset + length ? end : offset + length;
			bytes += end - (call[i].offset > offset ? call[i].offset : offset);
		} else if (call[i].kind == TEST_IO_FLUSH && call[i].ended && !call[i].error) {
			flushed = call[i].began;
		}
	}
	free(call);
	return bytes >= length && flushed > written;
}

/* Looks at each write to the store that erases a record. */
struct order {
	struct dm_store *at;
	unsigned left;
	unsigned too_early;
	unsigned holes;
};

static bool erases(const struct test_device_entry *call, const uint8_t *data, unsigned k)
{
	uint64_t slot = dm_image_slot(DM_CHUNK, k);

	if (slot < call->offset || slot >= call->offset + call->length)
		return false;
	return !data || !dm_image_get(data + (slot - call->offset) + 8, 8);
}

/* A list ends at its first slot that is zero: what lies behind it in later areas is gone too, and
 * what lies behind it in its own must be zero. */
static void look_at_write(void *user, const struct test_device_entry *call, const void *data)
{
	unsigned per_area = DM_CHUNK / 16, end = 0;
	struct order *o = user;

	if (!writes(call))
		return;
	while (end < o->left && !erases(call, data, end))
		end++;
	for (unsigned k = end; k < o->left; k++) {
		o->too_early +=
			!is_flushed(o->at->origin_test, saved_chunk(k) * DM_CHUNK, DM_CHUNK);
		o->holes += k / per_area == end / per_area && !erases(call, data, k);
	}
	o->left = end;
}

/* fcc42338375a: records were erased before the origin was flushed; the newest have to go first, for
 * a list of records ends at its first hole. */
Test(merge_records, fcc42338375a_newest_first_and_flushed)
{
	static const struct dm_scene_options options[] = {
		{0}, {.durable = true}, {.no_flush = true}};
	static const uint64_t steps[] = {DM_CHUNK, 5 * DM_CHUNK, WHOLE};

	for (unsigned i = 0; i < 9; i++) {
		struct dm_scene d;
		struct dm_store *at = &d.at[0];
		struct order order = {.at = at, .left = DM_SAVED};
		int rc;

		dm_open(&d, &options[i / 3]);
		cr_assert_eq(dm_begin(&d), 0);
		for (unsigned k = 0; k < DM_SAVED; k++)
			cr_assert_eq(dm_write(&d, 0, saved_chunk(k) * DM_CHUNK, DM_CHUNK, 1), 0);
		cr_assert_eq(cowsnap_merge_begin(at->snapshot), 0);
		test_device_reset(at->origin_test);
		test_device_watch(at->store_test, look_at_write, &order);
		cr_assert_eq(put(at->origin, saved_chunk(5) * DM_CHUNK + 3, 7, 9), 0);
		memset(at->image + saved_chunk(5) * DM_CHUNK + 3, 9, 7);
		do
			rc = cowsnap_merge_run(at->snapshot, steps[i % 3]);
		while (rc == 1);
		cr_assert_eq(rc, 0);
		cr_assert_eq(order.too_early, 0, "records went before the origin was flushed");
		cr_assert_eq(order.holes, 0, "records went before newer ones");
		cr_assert_eq(order.left, 0);
		expect_device(at->origin_test, at->image, DM_BYTES);
		cowsnap_snapshot_unref(at->snapshot);
		at->snapshot = NULL;
		dm_close(&d);
	}
}

/* ---- A store of the host's ------------------------------------------------------------------- */

#define RECORDS 256u
#define BLOCK   512u
#define LATE    64u

/* An answer that another thread gives. */
struct late {
	pthread_t thread;
	struct cowsnap_newest *newest;
	struct cowsnap_commit *commit;
	int error;
};

/* Keeps its records in memory, and looks at what the origin's device was told when one goes. */
struct records {
	struct scene *s;
	struct test_device *device;
	struct cowsnap_store *store;
	pthread_mutex_t lock;
	struct cowsnap_run run[RECORDS]; /* of one chunk each */
	size_t count;
	uint64_t next;
	uint64_t used;
	int fail;                    /* what forget returns next */
	struct cowsnap_run nonsense; /* what newest gives next; of no chunk: nothing */
	unsigned forgot;
	unsigned unflushed; /* records that went too early */
	unsigned out_of_order;
	bool answers_late;
	bool holds; /* the next question is not answered: */
	struct cowsnap_newest *held;
	struct late late[LATE];
	unsigned late_count;
};

static int records_alloc(void *user, uint64_t want, uint64_t *location, uint64_t *count)
{
	struct records *r = user;

	pthread_mutex_lock(&r->lock);
	*location = r->next;
	*count = want;
	r->next += want;
	r->used += want;
	pthread_mutex_unlock(&r->lock);
	return 0;
}

static void records_free(void *user, uint64_t location, uint64_t count)
{
	struct records *r = user;

	(void)location;
	pthread_mutex_lock(&r->lock);
	r->used -= count;
	pthread_mutex_unlock(&r->lock);
}

static void records_space(void *user, struct cowsnap_store_space *space)
{
	struct records *r = user;

	pthread_mutex_lock(&r->lock);
	space->used_chunks = r->used;
	pthread_mutex_unlock(&r->lock);
	space->limit_chunks = 4 * ALL / CHUNK;
}

static void records_commit(void *user, struct cowsnap_commit *commit)
{
	struct records *r = user;

	pthread_mutex_lock(&r->lock);
	for (size_t i = 0; i < commit->count; i++) {
		for (uint64_t k = 0; k < commit->runs[i].count; k++) {
			struct cowsnap_run one = commit->runs[i];

			one.first += k;
			one.count = 1;
			if (one.location <= COWSNAP_LOCATION_MAX)
				one.location += k;
			cr_assert_lt(r->count, RECORDS);
			r->run[r->count++] = one;
		}
	}
	pthread_mutex_unlock(&r->lock);
	commit->done(commit, 0);
}

static void *give_late(void *argument)
{
	struct late *late = argument;

	if (late->newest)
		late->newest->done(late->newest, late->error);
	else
		late->commit->done(late->commit, late->error);
	return NULL;
}

static void answer(struct records *r, struct late now)
{
	struct late *late = &r->late[r->late_count];

	if (!r->answers_late) {
		give_late(&now);
		return;
	}
	cr_assert_lt(r->late_count++, LATE);
	*late = now;
	cr_assert_eq(pthread_create(&late->thread, NULL, give_late, late), 0);
}

static void records_newest(void *user, struct cowsnap_newest *newest)
{
	struct records *r = user;

	newest_of(newest, r->run, r->count);
	if (r->nonsense.count) {
		newest->runs[0] = r->nonsense;
		newest->count = 1;
		r->nonsense = (struct cowsnap_run){0};
	}
	if (r->holds)
		r->held = newest;
	else
		answer(r, (struct late){.newest = newest});
}

static int forget_run(struct records *r, const struct cowsnap_run *run)
{
	r->unflushed += !is_flushed(r->s->origin_test[0], run->first * CHUNK, run->count * CHUNK);
	if (run->count > r->count || r->run[r->count - run->count].first != run->first ||
		r->run[r->count - 1].first != run->first + run->count - 1) {
		r->out_of_order++;
		return -EINVAL;
	}
	r->count -= run->count;
	return 0;
}

static void records_forget(void *user, struct cowsnap_commit *commit)
{
	struct records *r = user;
	int rc = r->fail;

	r->fail = 0;
	for (size_t i = 0; i < commit->count && !rc; i++)
		rc = forget_run(r, &commit->runs[i]);
	r->forgot += !rc;
	answer(r, (struct late){.commit = commit, .error = rc});
}

static void records_open(struct records *r, struct scene *s, uint32_t flags, bool forgets)
{
	const struct cowsnap_store_ops ops = {
		.size = sizeof(ops),
		.alloc = records_alloc,
		.free = records_free,
		.space = records_space,
		.commit = records_commit,
		.newest = forgets ? records_newest : NULL,
		.forget = records_forget,
	};
	struct cowsnap_store_options options = {
		.size = sizeof(options),
		.flags = COWSNAP_STORE_ONE_SNAPSHOT | flags,
		.chunk_size_bytes = CHUNK,
	};

	*r = (struct records){.s = s, .lock = PTHREAD_MUTEX_INITIALIZER};
	r->device = test_device_create(
		s->ctx, &(struct test_device_options){.size_bytes = 4 * ALL, .block_size = BLOCK});
	cr_assert_not_null(r->device);
	options.device = test_device(r->device);
	cr_assert_eq(cowsnap_store_create(s->ctx, &ops, &options, r, &r->store), 0);
}

static void records_close(struct records *r)
{
	for (unsigned i = 0; i < r->late_count; i++)
		pthread_join(r->late[i].thread, NULL);
	scene_reclaim(r->s);
	cr_assert_eq(cowsnap_store_close(r->store), 0);
	cr_assert_eq(r->used, 0);
	cr_assert_eq(r->unflushed, 0, "the origin was not flushed before");
	cr_assert_eq(r->out_of_order, 0);
	cr_assert_eq(test_device_destroy(r->device), 0);
	pthread_mutex_destroy(&r->lock);
}

static struct cowsnap_snapshot *records_take(struct records *r)
{
	struct cowsnap_take_entry entry = {
		.origin = r->s->origin[0], .store = r->store, .on_full = COWSNAP_LOSER_WRITE};

	cr_assert_eq(cowsnap_take(r->s->ctx, NULL, &entry, 1), 0);
	return entry.snapshot;
}

#define OLD   1
#define NEW   2
#define NEWER 3

/* A volume of OLD, a snapshot, and the first half written since. */
static struct cowsnap_snapshot *records_begin_with(
	struct records *r, struct scene *s, const struct scene_options *options)
{
	struct cowsnap_snapshot *snapshot;

	scene_open(s, options);
	records_open(r, s, 0, true);
	cr_assert_eq(scene_write(s, 0, 0, ALL, OLD), 0);
	snapshot = records_take(r);
	cr_assert_eq(scene_write(s, 0, 0, ALL / 4, NEW), 0);
	cr_assert_eq(scene_write(s, 0, ALL / 4, ALL / 4, NEW), 0);
	test_device_reset(s->origin_test[0]);
	return snapshot;
}

static struct cowsnap_snapshot *records_begin(struct records *r, struct scene *s)
{
	return records_begin_with(r, s, NULL);
}

static void fill(uint8_t *model, uint64_t offset, uint64_t length, uint8_t value)
{
	memset(model + offset, value, length);
}

Test(merge_records, fcc42338375a_in_a_store_of_the_host_s)
{
	struct cowsnap_snapshot *merged, *sibling[2];
	uint8_t *model = malloc(ALL);
	struct records r;
	struct scene s;
	int rc;

	merged = records_begin(&r, &s);
	sibling[0] = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	sibling[1] = scene_take(&s, 0, 1, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scene_write(&s, 0, 0, 2 * CHUNK, NEWER), 0);
	cr_assert_eq(cowsnap_merge_begin(merged), 0);
	cr_assert_eq(merge_info(merged).total_bytes, ALL / 2);
	expect_volume(s.origin[0], 0, ALL, OLD);
	cr_assert_eq(cowsnap_merge_run(merged, CHUNK), 1);
	cr_assert_lt(r.count, ALL / 2 / CHUNK);
	fill(model, 0, ALL, OLD);
	fill(model, 0, r.count * CHUNK, NEW);
	fill(model, 0, 2 * CHUNK, NEWER);
	expect_device(s.origin_test[0], model, ALL);
	while ((rc = cowsnap_merge_run(merged, 5 * CHUNK)) == 1)
		expect_volume(s.origin[0], 0, ALL, OLD);
	cr_assert_eq(rc, 0);
	cr_assert_eq(r.count, 0);
	cr_assert_gt(r.forgot, 1);
	cowsnap_snapshot_unref(merged);
	fill(model, 0, ALL, OLD);
	expect_device(s.origin_test[0], model, ALL);
	for (unsigned i = 0; i < 2; i++) {
		scene_expect(sibling[i], 0, ALL / 2, NEW);
		scene_expect(sibling[i], ALL / 2, ALL / 2, OLD);
		scene_drop(sibling[i]);
	}
	merged = records_take(&r);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, 9), 0);
	scene_expect(merged, 0, CHUNK, OLD);
	scene_drop(merged);
	records_close(&r);
	scene_close(&s);
	free(model);
}

Test(merge_records, a_store_that_cannot_forget_refuses)
{
	struct cowsnap_snapshot *snapshot;
	struct records r;
	struct scene s;

	scene_open(&s, NULL);
	records_open(&r, &s, 0, false);
	snapshot = records_take(&r);
	cr_assert_eq(cowsnap_merge_begin(snapshot), -ENOTSUP);
	cr_assert_eq(state_of(snapshot), COWSNAP_SNAPSHOT_ACTIVE);
	scene_drop(snapshot);
	records_close(&r);
	scene_close(&s);
}

/* Nothing is settled whose record is still there: it is what the next run begins with. */
Test(merge_records, a_record_that_does_not_go)
{
	struct cowsnap_snapshot *merged;
	uint8_t *model = malloc(ALL);
	struct records r;
	struct scene s;

	merged = records_begin(&r, &s);
	cr_assert_eq(cowsnap_merge_begin(merged), 0);
	for (unsigned i = 1; i <= 3; i++) {
		r.fail = -EIO;
		cr_assert_eq(cowsnap_merge_run(merged, WHOLE), -EIO);
		cr_assert_eq(merge_info(merged).error, -EIO);
		cr_assert_eq(scene_count_events(&s, COWSNAP_EVENT_MERGE_FAILED), i);
		cr_assert_eq(r.count, ALL / 2 / CHUNK);
		/* Its record is there, so the store is where it is written. */
		cr_assert_eq(put(s.origin[0], ALL / 2 - CHUNK, 5, 9), 0);
		expect_volume(s.origin[0], ALL / 2 - CHUNK, 5, 9);
	}
	cr_assert_eq(cowsnap_merge_run(merged, WHOLE), 0);
	cowsnap_snapshot_unref(merged);
	fill(model, 0, ALL, OLD);
	fill(model, ALL / 2 - CHUNK, 5, 9);
	expect_device(s.origin_test[0], model, ALL);
	records_close(&r);
	scene_close(&s);
	free(model);
}

/* A table may answer later, on any thread: also when the call that asked is to end. */
Test(merge_records, answers_that_come_later)
{
	for (unsigned queued = 0; queued < 2; queued++) {
		const struct scene_options options = {.engine = COWSNAP_ENGINE_LOOP};
		struct cowsnap_queue *queue;
		struct cowsnap_snapshot *merged;
		struct records r;
		struct scene s;
		int rc = 1;

		merged = records_begin_with(&r, &s, queued ? &options : NULL);
		cr_assert_eq(cowsnap_queue_create(s.ctx, 64, &queue), 0);
		cr_assert_eq(cowsnap_merge_begin(merged), 0);
		r.answers_late = true;
		for (unsigned i = 0; rc == 1 && i < LATE / 3; i++) {
			uint64_t bytes = i % 4 == 3 ? WHOLE : (1 + i) * CHUNK;
			struct pending_op p = {0};

			if (!queued) {
				rc = cowsnap_merge_run(merged, bytes);
				continue;
			}
			rc = cowsnap_merge_run_async(merged, queue, bytes, &p.op, pending_done, &p);
			cr_assert_eq(rc, COWSNAP_PENDING);
			if (i % 2)
				cowsnap_op_cancel(&p.op);
			cr_assert(pending_wait(queue, &p));
			rc = p.error == -ECANCELED ? 1 : p.error;
		}
		cr_assert_eq(rc, 0, "%d", rc);
		expect_volume(s.origin[0], 0, ALL, OLD);
		cr_assert_eq(cowsnap_queue_close(queue), 0);
		cowsnap_snapshot_unref(merged);
		records_close(&r);
		scene_close(&s);
	}
}

/* It went on to the throttle when it was told, and nobody woke it there. */
Test(merge_records, cancelled_while_the_store_is_asked)
{
	struct pending_op p = {0};
	struct cowsnap_snapshot *merged;
	struct cowsnap_queue *queue;
	struct records r;
	struct scene s;

	merged = records_begin_with(&r, &s, &(struct scene_options){.engine = COWSNAP_ENGINE_LOOP});
	cr_assert_eq(cowsnap_queue_create(s.ctx, 64, &queue), 0);
	cr_assert_eq(cowsnap_merge_begin(merged), 0);
	/* The first batch is paid for when it goes on, the next one would wait for days. */
	cr_assert_eq(cowsnap_ctx_throttle(s.ctx, 1, 100), 0);
	cr_assert_eq(cowsnap_merge_run(merged, CHUNK), 1);
	r.holds = true;
	cr_assert_eq(cowsnap_merge_run_async(merged, queue, WHOLE, &p.op, pending_done, &p),
		COWSNAP_PENDING);
	pending_settle(queue);
	cr_assert_not_null(r.held);
	cr_assert_eq(cowsnap_op_cancel(&p.op), 0);
	pending_settle(queue);
	cr_assert_eq(atomic_load(&p.calls), 0);
	r.held->done(r.held, 0);
	cr_assert(pending_wait(queue, &p), "it waits for the throttle");
	cr_assert_eq(p.error, -ECANCELED);
	r.holds = false;
	cr_assert_eq(cowsnap_ctx_throttle(s.ctx, 0, 100), 0);
	cr_assert_eq(cowsnap_merge_run(merged, WHOLE), 0);
	expect_volume(s.origin[0], 0, ALL, OLD);
	cr_assert_eq(cowsnap_queue_close(queue), 0);
	cowsnap_snapshot_unref(merged);
	records_close(&r);
	scene_close(&s);
}

/* What lies behind the snapshot's end, or the device's, is not moved anywhere. */
Test(merge_records, nonsense_of_the_host_s)
{
	static const struct cowsnap_run nonsense[] = {
		{.first = ALL / CHUNK, .count = 1, .location = 0},
		{.first = ALL / CHUNK - 1, .count = 2, .location = 0},
		{.first = UINT64_MAX, .count = 1, .location = 0},
		{.first = 0, .count = 1, .location = 4 * ALL / CHUNK},
		{.first = 0, .count = 1, .location = COWSNAP_LOCATION_ZERO},
	};
	const unsigned count = sizeof(nonsense) / sizeof(nonsense[0]);
	struct cowsnap_snapshot *merged;
	uint8_t *model = malloc(ALL);
	struct records r;
	struct scene s;

	merged = records_begin(&r, &s);
	cr_assert_eq(cowsnap_merge_begin(merged), 0);
	for (unsigned i = 0; i < count; i++) {
		r.nonsense = nonsense[i];
		cr_assert_eq(cowsnap_merge_run(merged, 2 * CHUNK), -EIO, "%u", i);
		cr_assert_eq(state_of(merged), COWSNAP_SNAPSHOT_MERGING);
	}
	cr_assert_eq(test_device_calls(s.origin_test[0], TEST_IO_WRITE), 0);
	cr_assert_eq(scene_count_events(&s, COWSNAP_EVENT_MERGE_FAILED), count);
	cr_assert_eq(cowsnap_merge_run(merged, WHOLE), 0);
	cowsnap_snapshot_unref(merged);
	fill(model, 0, ALL, OLD);
	expect_device(s.origin_test[0], model, ALL);
	records_close(&r);
	scene_close(&s);
	free(model);
}

/* ---- Writes ---------------------------------------------------------------------------------- */

/* Into the store where there is a record, to the origin where there is none. The store's device
 * writes blocks, the origin's bytes. */
Test(merge_records, writes_in_place_over_larger_blocks)
{
	struct cowsnap_snapshot *merged;
	uint8_t *model = malloc(ALL);
	struct cowsnap_origin *origin;
	struct records r;
	struct scene s;

	merged = records_begin(&r, &s);
	origin = s.origin[0];
	cr_assert_eq(cowsnap_merge_begin(merged), 0);
	test_device_reset(r.device);
	test_device_reset(s.origin_test[0]);
	fill(model, 0, ALL, OLD);
	cr_assert_eq(put(origin, 4 * CHUNK, 4 * CHUNK, 5), 0);
	fill(model, 4 * CHUNK, 4 * CHUNK, 5);
	cr_assert_eq(test_device_bytes(r.device, TEST_IO_WRITE), 4 * CHUNK);
	cr_assert_eq(put(origin, 9 * CHUNK + 7, CHUNK + 20, 6), 0);
	fill(model, 9 * CHUNK + 7, CHUNK + 20, 6);
	cr_assert_eq(put(origin, 11 * CHUNK + BLOCK + 3, 9, 7), 0);
	fill(model, 11 * CHUNK + BLOCK + 3, 9, 7);
	cr_assert_eq(put(origin, 12 * CHUNK + BLOCK - 3, BLOCK + 6, 7), 0);
	fill(model, 12 * CHUNK + BLOCK - 3, BLOCK + 6, 7);
	cr_assert_eq(test_device_calls(s.origin_test[0], TEST_IO_WRITE), 0);
	cr_assert_eq(put(origin, ALL / 2 - 10, 20, 7), 0);
	fill(model, ALL / 2 - 10, 20, 7);
	cr_assert_eq(test_device_bytes(s.origin_test[0], TEST_IO_WRITE), 10);
	cr_assert_eq(cowsnap_origin_write(origin, COWSNAP_WRITE_ZEROES, NULL, CHUNK + 3, 3), 0);
	fill(model, CHUNK + 3, 3, 0);
	cr_assert_eq(
		cowsnap_origin_write(origin, COWSNAP_WRITE_ZEROES, NULL, 13 * CHUNK, CHUNK), 0);
	fill(model, 13 * CHUNK, CHUNK, 0);
	cr_assert_eq(r.count, ALL / 2 / CHUNK);
	test_device_reset(r.device);
	cr_assert_eq(cowsnap_origin_flush(origin), 0);
	cr_assert_eq(test_device_calls(r.device, TEST_IO_FLUSH), 1);
	for (unsigned moved = 0; moved < 2; moved++) {
		uint8_t *data = malloc(ALL);

		cr_assert_eq(cowsnap_origin_read(origin, data, 0, ALL), 0);
		expect_bytes(data, model, ALL);
		free(data);
		if (!moved)
			cr_assert_eq(cowsnap_merge_run(merged, WHOLE), 0);
	}
	expect_device(s.origin_test[0], model, ALL);
	cowsnap_snapshot_unref(merged);
	records_close(&r);
	scene_close(&s);
	free(model);
}

/* The mover and a write in place on one chunk, in both orders. */
Test(merge_records, a_write_in_place_meets_the_mover)
{
	for (unsigned first = 0; first < 2; first++) {
		struct cowsnap_snapshot *merged;
		uint8_t *model = malloc(ALL);
		struct test_device *held;
		struct putter putter;
		struct mover mover;
		struct records r;
		struct scene s;
		int hold;

		merged = records_begin(&r, &s);
		cr_assert_eq(cowsnap_merge_begin(merged), 0);
		held = first ? s.origin_test[0] : r.device;
		hold = scene_hold(held, first ? TEST_IO_FLUSH : TEST_IO_WRITE, 0, 4 * ALL);
		if (first)
			mover_start(&mover, merged, 0);
		else
			putter_start(&putter, s.origin[0], 30 * CHUNK + 5, 10, 9);
		scene_wait_held(held, hold);
		if (first)
			putter_start(&putter, s.origin[0], 30 * CHUNK + 5, 10, 9);
		else
			mover_start(&mover, merged, 0);
		expect_volume(s.origin[0], 31 * CHUNK, CHUNK, OLD);
		cr_assert_not(atomic_load(first ? &putter.finished : &mover.finished));
		test_device_release(held, hold);
		cr_assert_eq(putter_join(&putter), 0);
		cr_assert_eq(mover_join(&mover), 0);
		cowsnap_snapshot_unref(merged);
		fill(model, 0, ALL, OLD);
		fill(model, 30 * CHUNK + 5, 10, 9);
		expect_device(s.origin_test[0], model, ALL);
		records_close(&r);
		scene_close(&s);
		free(model);
	}
}

static enum cowsnap_preimage_kind all_zeroes(void *user, struct cowsnap_preimage_ask *ask)
{
	(void)user;
	(void)ask;
	return COWSNAP_PREIMAGE_ZERO;
}

/* Preimages of zeroes have records, and no place to write to: newest() was refused for them, and a
 * write went astray. */
Test(merge_records, zeroes_that_take_no_space)
{
	const struct cowsnap_preimage preimage = {.get = all_zeroes};
	struct cowsnap_snapshot *merged;
	uint8_t *model = malloc(ALL);
	struct putter putter;
	struct cowsnap_op op;
	struct records r;
	struct scene s;

	scene_open(&s, NULL);
	records_open(&r, &s, COWSNAP_STORE_ZEROES, true);
	merged = records_take(&r);
	cr_assert_eq(
		cowsnap_write_begin_with(s.origin[0], COWSNAP_WRITE, 0, 8 * CHUNK, &preimage, &op),
		0);
	cowsnap_write_end(&op);
	cr_assert_eq(scene_write(&s, 0, 0, 8 * CHUNK, NEW), 0);
	cr_assert_eq(scene_write(&s, 0, 16 * CHUNK, CHUNK, NEW), 0);
	cr_assert_eq(r.used, 1);
	test_device_reset(s.origin_test[0]);
	test_device_reset(r.device);
	cr_assert_eq(cowsnap_merge_begin(merged), 0);
	expect_volume(s.origin[0], 0, ALL, 0);
	/* What reads as zeroes then has nothing to wait for. */
	cr_assert_eq(
		cowsnap_origin_write(s.origin[0], COWSNAP_WRITE_ZEROES, NULL, CHUNK + 1, CHUNK), 0);
	cr_assert_eq(cowsnap_origin_write(s.origin[0], COWSNAP_DISCARD, NULL, CHUNK, CHUNK), 0);
	putter_start(&putter, s.origin[0], 3 * CHUNK + 1, 1, 9);
	cr_assert_eq(put(s.origin[0], 16 * CHUNK + 1, 1, 9), 0);
	cr_assert_eq(test_device_calls(r.device, TEST_IO_WRITE), 1);
	cr_assert_eq(cowsnap_merge_run(merged, WHOLE), 0);
	cr_assert_eq(putter_join(&putter), 0);
	cowsnap_snapshot_unref(merged);
	fill(model, 0, ALL, 0);
	model[3 * CHUNK + 1] = 9;
	model[16 * CHUNK + 1] = 9;
	expect_device(s.origin_test[0], model, ALL);
	records_close(&r);
	scene_close(&s);
	free(model);
}
