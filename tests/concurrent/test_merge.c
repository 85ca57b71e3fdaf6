/* SPDX-License-Identifier: MIT
 *
 * Merging: an origin becomes what a snapshot shows, while it is read and written.
 */
#include "concurrent/merging.h"

#include "support/dm_scene.h"

/* ---- A store without records ----------------------------------------------------------------- */

/* 3452c2a1eb5b */
Test(merge, siblings_keep_their_content)
{
	uint8_t *model = malloc(ALL);
	struct family f;
	int rc;

	make_family(&f);
	model_merged(model);
	cr_assert_eq(cowsnap_merge_begin(f.merged), 0);
	expect_volume(f.s.origin[0], 0, ALL / 2, 2);
	expect_volume(f.s.origin[0], ALL / 2, ALL / 2, 1);
	do {
		expect_family(&f);
		rc = cowsnap_merge_run(f.merged, CHUNK);
		cr_assert(rc >= 0, "error %d", rc);
	} while (rc);
	expect_family(&f);
	cr_assert_eq(state_of(f.merged), COWSNAP_SNAPSHOT_DROPPED);
	cr_assert_eq(scene_count_events(&f.s, COWSNAP_EVENT_MERGED), 1);
	expect_device(f.s.origin_test[0], model, ALL);
	free(model);
	end_family(&f);
}

/* A part of a chunk, of each kind of write, at each stage. */
Test(merge, writes_are_kept)
{
	uint8_t *model = malloc(ALL);
	unsigned step = 0;
	struct family f;
	int rc;

	make_family(&f);
	model_merged(model);
	cr_assert_eq(cowsnap_merge_begin(f.merged), 0);
	do {
		uint64_t at = (step * 7 * CHUNK + 100) % (ALL - 2 * CHUNK);

		if (step % 3 == 0) {
			cr_assert_eq(put(f.s.origin[0], at, CHUNK + 50, 9), 0);
			memset(model + at, 9, CHUNK + 50);
		} else if (step % 3 == 1) {
			cr_assert_eq(scene_write(&f.s, 0, at, 60, 8), 0);
			memset(model + at, 8, 60);
		} else {
			cr_assert_eq(cowsnap_origin_write(
					     f.s.origin[0], COWSNAP_WRITE_ZEROES, NULL, at, 70),
				0);
			memset(model + at, 0, 70);
		}
		step++;
		rc = cowsnap_merge_run(f.merged, 2 * CHUNK);
		cr_assert(rc >= 0, "error %d", rc);
	} while (rc);
	cr_assert_gt(step, 4);
	expect_device(f.s.origin_test[0], model, ALL);
	expect_family(&f);
	free(model);
	end_family(&f);
}

Test(merge, refuses_what_would_disturb_it)
{
	struct cowsnap_take_entry entry = {.on_full = COWSNAP_LOSER_WRITE};
	struct family f;
	char byte = 0;

	make_family(&f);
	entry.origin = f.s.origin[0];
	entry.store = f.s.store[0];
	cr_assert_eq(cowsnap_merge_run(f.merged, WHOLE), -EINVAL);
	cr_assert_eq(cowsnap_merge_begin(f.merged), 0);
	cr_assert_eq(state_of(f.merged), COWSNAP_SNAPSHOT_MERGING);
	cr_assert_gt(merge_info(f.merged).total_bytes, 0);
	cr_assert_eq(merge_info(f.merged).moved_bytes, 0);
	cr_assert_eq(cowsnap_merge_begin(f.merged), -EBUSY);
	cr_assert_eq(cowsnap_merge_begin(f.newer), -EBUSY);
	cr_assert_eq(cowsnap_merge_run(f.newer, WHOLE), -EINVAL);
	cr_assert_eq(cowsnap_snapshot_drop(f.merged), -EBUSY);
	cr_assert_eq(cowsnap_snapshot_downgrade(f.merged), -EBUSY);
	cr_assert_eq(cowsnap_snapshot_read(f.merged, &byte, 0, 1), -EBUSY);
	cr_assert_eq(cowsnap_snapshot_write(f.merged, COWSNAP_WRITE, &byte, 0, 1), -EBUSY);
	cr_assert_eq(cowsnap_take(f.s.ctx, NULL, &entry, 1), -EBUSY);
	cr_assert_eq(cowsnap_store_close(f.s.store[0]), -EBUSY);
	cr_assert_eq(cowsnap_origin_close(f.s.origin[0]), -EBUSY);
	cr_assert_eq(cowsnap_merge_run(f.merged, WHOLE), 0);
	cr_assert_eq(cowsnap_merge_begin(f.merged), -EIDRM);
	end_family(&f);
}

/* What was written to the snapshot itself comes too. */
Test(merge, what_was_written_to_it)
{
	uint8_t mine[100], *model = malloc(ALL);
	struct family f;

	make_family(&f);
	model_merged(model);
	memset(mine, 7, sizeof(mine));
	cr_assert_eq(
		cowsnap_snapshot_write(f.merged, COWSNAP_WRITE, mine, ALL - CHUNK + 5, 100), 0);
	memset(model + ALL - CHUNK + 5, 7, 100);
	cr_assert_eq(cowsnap_merge_begin(f.merged), 0);
	cr_assert_eq(cowsnap_merge_run(f.merged, WHOLE), 0);
	expect_device(f.s.origin_test[0], model, ALL);
	expect_family(&f);
	free(model);
	end_family(&f);
}

/* ---- Failures -------------------------------------------------------------------------------- */

static bool failed_once(enum test_io kind, bool store, unsigned n)
{
	uint8_t *model = malloc(ALL);
	struct test_device *device;
	bool failed;
	struct family f;
	int rc;

	make_family(&f);
	model_merged(model);
	cr_assert_eq(cowsnap_merge_begin(f.merged), 0);
	device = store ? f.s.store_test[0] : f.s.origin_test[0];
	test_device_fail(device, kind, n, false, -EIO);
	rc = cowsnap_merge_run(f.merged, WHOLE);
	failed = test_device_failed(device) > 0;
	test_device_heal(device);
	cr_assert_eq(rc, failed ? -EIO : 0, "%d", rc);
	if (failed) {
		cr_assert_eq(state_of(f.merged), COWSNAP_SNAPSHOT_MERGING);
		cr_assert_eq(merge_info(f.merged).error, -EIO);
		cr_assert_eq(scene_count_events(&f.s, COWSNAP_EVENT_MERGED), 0);
		cr_assert_eq(scene_count_events(&f.s, COWSNAP_EVENT_MERGE_FAILED), 1);
		expect_volume(f.s.origin[0], 0, ALL / 2, 2);
		expect_volume(f.s.origin[0], ALL / 2, ALL / 2, 1);
		cr_assert_eq(cowsnap_merge_run(f.merged, WHOLE), 0);
	}
	expect_device(f.s.origin_test[0], model, ALL);
	expect_family(&f);
	free(model);
	end_family(&f);
	return failed;
}

/* Whichever call fails, it is not merged unless the origin is what the snapshot was. */
Test(merge, each_failure_can_be_resumed)
{
	uint64_t n;

	for (n = 1; failed_once(TEST_IO_WRITE, false, n); n = test_sweep_next(n))
		;
	cr_assert_gt(n, 1);
	for (n = 1; failed_once(TEST_IO_READ, true, n); n = test_sweep_next(n))
		;
	cr_assert_gt(n, 1);
	cr_assert(failed_once(TEST_IO_FLUSH, false, 1));
}

/* ---- A store with records -------------------------------------------------------------------- */

#define DM_CHUNK UINT64_C(512)
#define DM_BYTES UINT64_C(65536)

static void begin_dm_with(struct dm_scene *d, const struct dm_scene_options *options)
{
	dm_open(d, options);
	cr_assert_eq(dm_begin(d), 0);
	cr_assert_eq(dm_write(d, 0, 0, 8 * DM_CHUNK, 5), 0);
	cr_assert_eq(dm_write(d, 0, 20 * DM_CHUNK, 8 * DM_CHUNK, 6), 0);
}

static void begin_dm(struct dm_scene *d)
{
	begin_dm_with(d, NULL);
}

static void end_dm(struct dm_scene *d)
{
	cowsnap_snapshot_unref(d->at[0].snapshot);
	d->at[0].snapshot = NULL;
	cr_assert_eq(dm_close_store(d, 0), 0);
	dm_close(d);
}

Test(merge, writes_go_into_a_store_with_records)
{
	struct dm_scene d;
	struct dm_store *at = &d.at[0];
	unsigned step = 0;
	int rc;

	begin_dm(&d);
	cr_assert_eq(cowsnap_merge_begin(at->snapshot), 0);
	do {
		uint64_t offset = (step * 3 * DM_CHUNK + 40) % (40 * DM_CHUNK);

		cr_assert_eq(put(at->origin, offset, DM_CHUNK, (uint8_t)(50 + step)), 0);
		memset(at->image + offset, (int)(50 + step), DM_CHUNK);
		expect_volume(at->origin, offset, DM_CHUNK, (uint8_t)(50 + step));
		cr_assert_eq(cowsnap_origin_flush(at->origin), 0);
		step++;
		rc = cowsnap_merge_run(at->snapshot, DM_CHUNK);
		cr_assert(rc >= 0, "error %d", rc);
	} while (rc);
	cr_assert_gt(step, 1);
	expect_device(at->origin_test, at->image, DM_BYTES);
	end_dm(&d);
}

struct writer {
	struct cowsnap_origin *origin;
	pthread_t thread;
	uint64_t offset;
	int rc;
	_Atomic bool done;
};

static void *bracket_body(void *argument)
{
	struct writer *w = argument;
	struct cowsnap_op op;

	w->rc = cowsnap_write_begin(w->origin, COWSNAP_WRITE, w->offset, 1, &op);
	if (!w->rc)
		cowsnap_write_end(&op);
	atomic_store(&w->done, true);
	return NULL;
}

/* fcc42338375a: a record is forgotten after the origin was flushed; a bracket waits for that. */
Test(merge, the_origin_is_flushed_before_records_go)
{
	struct dm_scene d;
	struct dm_store *at = &d.at[0];
	struct writer w = {0};
	int hold;

	begin_dm(&d);
	cr_assert_eq(cowsnap_merge_begin(at->snapshot), 0);
	test_device_reset(at->store_test);
	hold = test_device_hold(at->origin_test, TEST_IO_FLUSH, 0, 0, TEST_HOLD_BEFORE);
	cr_assert(hold >= 0);
	w = (struct writer){.origin = at->origin, .offset = 20 * DM_CHUNK};
	cr_assert_eq(pthread_create(&w.thread, NULL, bracket_body, &w), 0);
	test_device_fail(at->origin_test, TEST_IO_FLUSH, 1, false, -EIO);
	test_device_release(at->origin_test, hold);
	cr_assert_eq(cowsnap_merge_run(at->snapshot, WHOLE), -EIO);
	/* Nothing was forgotten, so nobody went on. */
	cr_assert_eq(test_device_calls(at->store_test, TEST_IO_WRITE), 0);
	cr_assert(!atomic_load(&w.done));
	cr_assert_eq(state_of(at->snapshot), COWSNAP_SNAPSHOT_MERGING);
	cr_assert_eq(cowsnap_merge_run(at->snapshot, WHOLE), 0);
	pthread_join(w.thread, NULL);
	cr_assert_eq(w.rc, 0);
	expect_device(at->origin_test, at->image, DM_BYTES);
	end_dm(&d);
}

static void *run_body(void *argument)
{
	struct dm_scene *d = argument;

	cr_assert(cowsnap_merge_run(d->at[0].snapshot, DM_CHUNK) >= 0);
	return NULL;
}

/* A host that ends must not take the merge away from a thread that runs it. */
Test(merge, cannot_be_left_while_it_runs)
{
	struct dm_scene d;
	struct dm_store *at = &d.at[0];
	pthread_t thread;
	int hold;

	begin_dm(&d);
	cr_assert_eq(cowsnap_merge_begin(at->snapshot), 0);
	hold = scene_hold(at->origin_test, TEST_IO_WRITE, 0, DM_BYTES);
	cr_assert_eq(pthread_create(&thread, NULL, run_body, &d), 0);
	scene_wait_held(at->origin_test, hold);
	cr_assert_eq(cowsnap_merge_run(at->snapshot, WHOLE), -EALREADY);
	cr_assert_eq(cowsnap_snapshot_deactivate(at->snapshot), -EBUSY);
	test_device_release(at->origin_test, hold);
	pthread_join(thread, NULL);
	cr_assert_eq(cowsnap_snapshot_deactivate(at->snapshot), 0);
	cr_assert_eq(cowsnap_merge_run(at->snapshot, WHOLE), -EINVAL);
	end_dm(&d);
}

/* A flush of the volume that fails may have lost what the next one would be believed to have. */
Test(merge, a_failed_flush_breaks_the_store)
{
	struct dm_scene d;
	struct dm_store *at = &d.at[0];

	begin_dm(&d);
	cr_assert_eq(cowsnap_merge_begin(at->snapshot), 0);
	test_device_fail(at->store_test, TEST_IO_FLUSH, 1, false, -EIO);
	cr_assert_eq(cowsnap_origin_flush(at->origin), -EIO);
	cr_assert_lt(cowsnap_merge_run(at->snapshot, WHOLE), 0);
	cr_assert_eq(state_of(at->snapshot), COWSNAP_SNAPSHOT_MERGING);
	cr_assert_eq(cowsnap_snapshot_deactivate(at->snapshot), 0);
	end_dm(&d);
}

/* Records that could be neither erased nor put back: what was written in place after that was said
 * to be done, and durable. */
Test(merge, a_broken_store_takes_no_writes_in_place)
{
	const struct dm_scene_options options = {.durable = true};
	struct dm_scene d;
	struct dm_store *at = &d.at[0];

	begin_dm_with(&d, &options);
	cr_assert_eq(cowsnap_merge_begin(at->snapshot), 0);
	cr_assert_eq(put(at->origin, 20 * DM_CHUNK, 10, 7), 0);
	test_device_fail(at->store_test, TEST_IO_WRITE_DURABLE, 1, true, -EIO);
	cr_assert_eq(cowsnap_merge_run(at->snapshot, WHOLE), -EIO);
	test_device_heal(at->store_test);
	cr_assert_eq(put(at->origin, 21 * DM_CHUNK, 10, 7), -EIO);
	cr_assert_eq(cowsnap_origin_flush(at->origin), -EIO);
	cr_assert_eq(cowsnap_snapshot_deactivate(at->snapshot), 0);
	end_dm(&d);
}

/* With each allocation failing once: it is resumed, or was never begun. */
Test(merge, without_memory)
{
	const struct dm_scene_options options = {.memory = true};
	bool failed = true;

	for (uint64_t n = 1; failed; n = test_sweep_next(n)) {
		struct dm_scene d;
		struct dm_store *at = &d.at[0];
		int rc;

		cr_assert_lt(n, 200);
		begin_dm_with(&d, &options);
		fail_alloc_at(d.memory, n, false);
		rc = cowsnap_merge_begin(at->snapshot);
		failed = rc != 0;
		if (rc) {
			cr_assert_eq(rc, -ENOMEM);
			dm_expect_exact(&d, 0, true);
			cr_assert_eq(cowsnap_merge_begin(at->snapshot), 0);
		}
		while ((rc = cowsnap_merge_run(at->snapshot, DM_CHUNK))) {
			cr_assert(rc == 1 || rc == -ENOMEM, "error %d", rc);
			failed |= rc < 0;
		}
		fail_alloc_at(d.memory, 0, false);
		expect_device(at->origin_test, at->image, DM_BYTES);
		end_dm(&d);
	}
}

/* Writes that waited for a merge that could not begin go where they would have gone without. */
Test(merge, that_cannot_begin_changes_nothing)
{
	struct dm_scene d;
	struct dm_store *at = &d.at[0];
	struct putter p;
	struct writer w = {0};
	struct cowsnap_op op;
	struct beginner beginner;

	begin_dm(&d);
	cr_assert_eq(cowsnap_write_begin(at->origin, COWSNAP_WRITE, 0, 1, &op), 0);
	beginner_start(&beginner, at->snapshot);
	/* Of the new generation: one to what is saved, one to what has to be. */
	putter_start(&p, at->origin, 2 * DM_CHUNK, DM_CHUNK, 77);
	w = (struct writer){.origin = at->origin, .offset = 50 * DM_CHUNK};
	cr_assert_eq(pthread_create(&w.thread, NULL, bracket_body, &w), 0);
	cr_assert_eq(beginner_join(&beginner), -ETIMEDOUT);
	cr_assert_eq(putter_join(&p), 0);
	pthread_join(w.thread, NULL);
	cowsnap_write_end(&op);
	cr_assert_eq(w.rc, 0);
	memset(at->live + 2 * DM_CHUNK, 77, DM_CHUNK);
	expect_device(at->origin_test, at->live, DM_BYTES);
	{
		struct cowsnap_extent extent;

		cr_assert_eq(cowsnap_snapshot_extent(at->snapshot, 50 * DM_CHUNK, 1, &extent), 0);
		cr_assert(extent.saved);
	}
	dm_expect_exact(&d, 0, true);
	dm_close(&d);
}

/* ---- Under load ------------------------------------------------------------------------------ */

#define USERS 2

/* Writes and reads back every USERS-th piece of a volume, with a model of its own pieces. */
struct user {
	struct cowsnap_origin *origin;
	pthread_t thread;
	unsigned number;
	uint64_t bytes;
	uint64_t piece;
	uint8_t *model;
	_Atomic bool *stop;
	unsigned rounds;
	int rc;
};

static int use_piece(struct user *u, uint64_t at, uint8_t value)
{
	uint8_t data[1024];
	int rc = cowsnap_origin_read(u->origin, data, at, u->piece);

	if (rc)
		return rc;
	if (memcmp(data, u->model + at, u->piece) != 0)
		return -EILSEQ;
	/* A part only, so that the rest has to come from the snapshot. */
	memset(u->model + at + 10, value, u->piece / 2);
	return cowsnap_origin_write(
		u->origin, COWSNAP_WRITE, u->model + at + 10, at + 10, u->piece / 2);
}

static void *user_body(void *argument)
{
	struct user *u = argument;
	uint64_t pieces = u->bytes / u->piece;

	for (unsigned i = 0; !u->rc && (!atomic_load(u->stop) || i < pieces); i++) {
		uint64_t piece = (uint64_t)i * 13 % (pieces / USERS) * USERS + u->number;

		u->rc = use_piece(u, piece * u->piece, (uint8_t)(i | 1));
		u->rounds++;
	}
	return NULL;
}

static void merge_under_load(
	struct cowsnap_snapshot *snapshot, struct cowsnap_origin *origin, struct user like)
{
	struct user user[USERS];
	_Atomic bool stop = false;
	int rc;

	cr_assert_eq(cowsnap_merge_begin(snapshot), 0);
	for (unsigned i = 0; i < USERS; i++) {
		user[i] = like;
		user[i].origin = origin;
		user[i].number = i;
		user[i].stop = &stop;
		cr_assert_eq(pthread_create(&user[i].thread, NULL, user_body, &user[i]), 0);
	}
	do {
		rc = cowsnap_merge_run(snapshot, 1);
		sched_yield();
	} while (rc == 1);
	atomic_store(&stop, true);
	for (unsigned i = 0; i < USERS; i++) {
		pthread_join(user[i].thread, NULL);
		cr_assert_eq(user[i].rc, 0, "user %u, round %u: %d", i, user[i].rounds, user[i].rc);
	}
	cr_assert_eq(rc, 0, "error %d", rc);
	cr_assert_eq(state_of(snapshot), COWSNAP_SNAPSHOT_DROPPED);
}

Test(merge, under_load)
{
	uint8_t *model = malloc(ALL);

	for (unsigned round = 0; round < 8; round++) {
		struct family f;

		make_family(&f);
		model_merged(model);
		merge_under_load(f.merged, f.s.origin[0],
			(struct user){.bytes = ALL, .piece = 1024, .model = model});
		expect_device(f.s.origin_test[0], model, ALL);
		expect_family(&f);
		end_family(&f);
	}
	free(model);
}

Test(merge, under_load_with_records)
{
	for (unsigned round = 0; round < 8; round++) {
		struct dm_scene d;
		struct dm_store *at = &d.at[0];

		begin_dm(&d);
		merge_under_load(at->snapshot, at->origin,
			(struct user){.bytes = DM_BYTES, .piece = 256, .model = at->image});
		expect_device(at->origin_test, at->image, DM_BYTES);
		end_dm(&d);
	}
}
