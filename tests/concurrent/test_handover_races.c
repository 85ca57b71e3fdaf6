/* SPDX-License-Identifier: MIT
 *
 * The moment at which a persistent store is handed over: who is seen to be inside, who waits, and
 * who else wants to end the snapshot.
 */
#include "concurrent/exporter.h"

static struct cowsnap_stats stats(struct dm_scene *s)
{
	struct cowsnap_stats stats;

	cr_assert_eq(cowsnap_origin_stats(s->at[0].origin, &stats, sizeof(stats)), 0);
	return stats;
}

/* ---- Races ----------------------------------------------------------------------------------- */

#define RACERS 3

struct racer {
	struct dm_scene *scene;
	struct cowsnap_snapshot *snapshot;
	pthread_t thread;
	unsigned number;
	uint64_t salt;
	_Atomic unsigned *started;
	const _Atomic bool *over; /* the export; if it has failed the snapshot stays */
	unsigned brackets;
};

/* Returns: is the snapshot there, as seen from inside a bracket? Then it is for as long as that is
 * open, and the chunk is saved. */
static bool race_once(struct racer *r, uint64_t chunk)
{
	struct cowsnap_snapshot_info info;
	struct cowsnap_op op;

	bracket_begin(r->scene, chunk, &op);
	cr_assert_eq(cowsnap_snapshot_info(r->snapshot, &info, sizeof(info)), 0);
	if (info.state != COWSNAP_SNAPSHOT_ACTIVE) {
		cowsnap_write_end(&op);
		return false;
	}
	sched_yield();
	bracket_end(r->scene, chunk, &op);
	r->brackets++;
	return true;
}

static void *run_race(void *argument)
{
	struct racer *r = argument;
	uint64_t chunk = r->number;

	atomic_fetch_add(r->started, 1);
	/* Each has chunks of its own, in another order each time. */
	while (!atomic_load(r->over) && race_once(r, chunk)) {
		chunk = (chunk + RACERS * (1 + r->salt % 7)) % (RACERS * 42);
		sched_yield();
	}
	return NULL;
}

static void race(struct dm_scene *s, uint64_t salt)
{
	struct racer racers[RACERS];
	_Atomic unsigned started = 0;
	_Atomic bool over = false;
	struct exporter e;

	for (unsigned i = 0; i < RACERS; i++) {
		racers[i] = (struct racer){.scene = s,
			.snapshot = s->at[0].snapshot,
			.number = i,
			.salt = salt,
			.started = &started,
			.over = &over};
		cr_assert_eq(pthread_create(&racers[i].thread, NULL, run_race, &racers[i]), 0);
	}
	while (atomic_load(&started) < RACERS)
		sched_yield();
	start(&e, s);
	while (!atomic_load(&e.done))
		sched_yield();
	atomic_store(&over, true);
	for (unsigned i = 0; i < RACERS; i++)
		pthread_join(racers[i].thread, NULL);
	finish(&e);
}

/* Who sees the snapshot from inside his bracket has what he writes in the state; the others began
 * afterwards. And nobody's record is in the way: an export that met the commit of a bracket which
 * had begun behind its look said -EBUSY. */
Test(handover_races, brackets_race_with_the_end)
{
	struct dm_scene s;

	begin(&s, NULL);
	for (unsigned round = 0; round < SOME(100); round++) {
		race(&s, round);
		dm_expect_exact(&s, 0, true);
		if (round % 8)
			continue;
		/* There must be something to save again. */
		dm_expect_promise(&s, 0);
		cr_assert_eq(dm_drop(&s, 0), 0);
		cr_assert_eq(dm_take(&s), 0);
	}
	end(&s);
}

struct ender {
	struct dm_scene *scene;
	pthread_barrier_t *barrier;
	pthread_t thread;
	int (*how)(struct cowsnap_snapshot *snapshot);
	int rc;
};

static void *run_end(void *argument)
{
	struct ender *e = argument;

	if (e->barrier)
		pthread_barrier_wait(e->barrier);
	e->rc = e->how(e->scene->at[0].snapshot);
	return NULL;
}

/* One of the two has the snapshot. */
static void end_during_export(
	int (*how)(struct cowsnap_snapshot *snapshot), bool gone, unsigned *exports)
{
	pthread_barrier_t barrier;
	struct handed h = {0};
	struct dm_scene s;
	struct ender e = {.scene = &s, .barrier = &barrier, .how = how};
	int rc;

	begin(&s, NULL);
	pthread_barrier_init(&barrier, NULL, 2);
	cr_assert_eq(pthread_create(&e.thread, NULL, run_end, &e), 0);
	pthread_barrier_wait(&barrier);
	rc = cowsnap_store_export(s.at[0].store, UINT64_MAX, handed_write, &h);
	pthread_join(e.thread, NULL);
	pthread_barrier_destroy(&barrier);
	cr_assert(rc == 0 || rc == -ENODATA, "%d", rc);
	cr_assert_eq(e.rc, rc ? 0 : -EIDRM, "%d, %d", rc, e.rc);
	*exports += !rc;
	if (rc && gone)
		s.at[0].promise = DM_ABSENT;
	cowsnap_snapshot_unref(s.at[0].snapshot);
	s.at[0].snapshot = NULL;
	cr_assert_eq(dm_close_store(&s, 0), 0);
	cr_assert_eq(dm_renew_origin(&s, 0), 0);
	dm_expect_promise(&s, 0);
	if (!rc)
		cr_assert_eq(handed_in(&s, 0, &h), 0);
	else
		cr_assert_eq(dm_attach(&s, 0), gone ? -ENOENT : 0);
	if (!rc || !gone)
		dm_expect_exact(&s, 0, true);
	dm_close(&s);
	handed_free(&h);
}

/* ---- The moment of the end ------------------------------------------------------------------- */

/* An allocator that does something else at one moment: with the gate looked at, and not closed. */
struct slipper {
	struct cowsnap_ctx *ctx;
	struct cowsnap_origin *origin;
	pthread_t thread, exporter;
	bool armed;        /* the next allocation of the exporter is the one */
	bool ready;        /* to be armed */
	_Atomic int state; /* of the snapshot, in the bracket */
	struct cowsnap_snapshot *snapshot;
};

static void *run_slip(void *argument)
{
	struct slipper *slipper = argument;
	struct cowsnap_snapshot_info info;
	struct cowsnap_op op;

	cr_assert_eq(cowsnap_write_begin(slipper->origin, COWSNAP_WRITE, 0, CHUNK, &op), 0);
	cr_assert_eq(cowsnap_snapshot_info(slipper->snapshot, &info, sizeof(info)), 0);
	atomic_store(&slipper->state, info.state);
	cowsnap_write_end(&op);
	return NULL;
}

static void *slip_alloc(void *user, size_t bytes, size_t align)
{
	struct slipper *slipper = user;
	void *memory = NULL;

	if (!pthread_equal(pthread_self(), slipper->exporter))
		return posix_memalign(&memory, align, bytes) ? NULL : memory;
	if (slipper->armed) {
		slipper->armed = slipper->ready = false;
		cr_assert_eq(pthread_create(&slipper->thread, NULL, run_slip, slipper), 0);
		while (cs_gate_empty(&slipper->origin->gate))
			sched_yield();
	}
	/* The buffer of the state. */
	slipper->armed = slipper->ready && bytes > 60000;
	return posix_memalign(&memory, align, bytes) ? NULL : memory;
}

static void slip_free(void *user, void *memory, size_t bytes)
{
	(void)user;
	(void)bytes;
	free(memory);
}

/* A bracket begins after the look that found none, and before the gate is closed. */
Test(handover_races, who_slips_in_is_seen)
{
	struct slipper slipper = {.exporter = pthread_self()};
	const struct cowsnap_allocator table = {
		.size = sizeof(table), .user = &slipper, .alloc = slip_alloc, .free = slip_free};
	struct cowsnap_ctx_options ctx_options = {.size = sizeof(ctx_options), .allocator = &table};
	struct cowsnap_dm_options options = {.size = sizeof(options), .chunk_size_bytes = CHUNK};
	struct cowsnap_take_entry entry = {.on_full = COWSNAP_LOSER_WRITE};
	struct cowsnap_device *device;
	struct handed h = {0};

	cr_assert_eq(cowsnap_ctx_create(&ctx_options, &slipper.ctx), 0);
	cr_assert_eq(cowsnap_device_memory(slipper.ctx, 64 * CHUNK, &device), 0);
	cr_assert_eq(cowsnap_device_memory(slipper.ctx, 64 * CHUNK, &options.device), 0);
	cr_assert_eq(cowsnap_origin_open(slipper.ctx, device, &entry.origin), 0);
	cr_assert_eq(cowsnap_store_dm_create(slipper.ctx, &options, &entry.store), 0);
	cr_assert_eq(cowsnap_take(slipper.ctx, NULL, &entry, 1), 0);
	slipper.origin = entry.origin;
	slipper.snapshot = entry.snapshot;
	slipper.ready = true;
	cr_assert_eq(cowsnap_store_export(entry.store, UINT64_MAX, handed_write, &h), 0);
	pthread_join(slipper.thread, NULL);
	cr_assert_not(slipper.ready);
	cr_assert_eq(atomic_load(&slipper.state), COWSNAP_SNAPSHOT_ACTIVE);
	/* Its record is in the state. */
	cr_assert_eq(dm_image_get(h.data + 56, 8), 1);
	cowsnap_snapshot_unref(entry.snapshot);
	cr_assert_eq(cowsnap_store_close(entry.store), 0);
	cr_assert_eq(cowsnap_origin_close(entry.origin), 0);
	cr_assert_eq(cowsnap_device_close(options.device), 0);
	cr_assert_eq(cowsnap_device_close(device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(slipper.ctx), 0);
	handed_free(&h);
}

static bool is_closed(struct cowsnap_ctx *ctx)
{
	return atomic_load(&ctx->established) < atomic_load(&ctx->epoch);
}

/* While the gate is closed, here because a drop is in the way, nothing is copied: a copy might end
 * when the store is another's. */
static void closed_gate(bool drop)
{
	struct exporter e;
	struct dm_scene s;
	struct writer w = {.scene = &s, .chunk = 77};
	struct ender d = {.scene = &s, .how = cowsnap_snapshot_drop};
	uint64_t before;
	int hold, look;

	begin(&s, NULL);
	/* The drop comes behind the look at the header, and before the end. */
	look = test_device_hold(
		s.at[0].store_test, TEST_IO_READ, 0, s.options.store_bytes, TEST_HOLD_BEFORE);
	start(&e, &s);
	cr_assert(test_device_wait_held(s.at[0].store_test, look));
	hold = test_device_hold(s.at[0].store_test, TEST_IO_WRITE, 0, 1, TEST_HOLD_BEFORE);
	cr_assert_eq(pthread_create(&d.thread, NULL, run_end, &d), 0);
	cr_assert(test_device_wait_held(s.at[0].store_test, hold));
	test_device_release(s.at[0].store_test, look);
	while (!is_closed(s.ctx))
		sched_yield();
	before = test_device_calls(s.at[0].store_test, TEST_IO_WRITE);
	cr_assert_eq(pthread_create(&w.thread, NULL, run_write, &w), 0);
	while (!stats(&s).drain_waits &&
		test_device_calls(s.at[0].store_test, TEST_IO_WRITE) == before)
		sched_yield();
	cr_assert_eq(stats(&s).drain_waits, 1);
	if (!drop)
		test_device_fail(s.at[0].store_test, TEST_IO_WRITE, 1, false, -EIO);
	test_device_release(s.at[0].store_test, hold);
	pthread_join(d.thread, NULL);
	pthread_join(w.thread, NULL);
	cr_assert_eq(w.rc, 0);
	cr_assert_eq(d.rc, drop ? 0 : -EIO);
	/* The drop wrote the header; if it failed, once more. The write was not saved. */
	cr_assert_leq(test_device_calls(s.at[0].store_test, TEST_IO_WRITE), before + 1);
	pthread_join(e.thread, NULL);
	cr_assert_eq(e.rc, drop ? -ENODATA : 0);
	cowsnap_snapshot_unref(s.at[0].snapshot);
	s.at[0].snapshot = NULL;
	cr_assert_eq(dm_close_store(&s, 0), 0);
	cr_assert_eq(dm_renew_origin(&s, 0), 0);
	cr_assert_eq(dm_attach(&s, 0), drop ? -ENOENT : 0);
	dm_close(&s);
	handed_free(&e.state);
}

Test(handover_races, nothing_is_copied_while_the_gate_is_closed)
{
	closed_gate(false);
}

Test(handover_races, who_waits_is_let_in_when_a_drop_was_first)
{
	closed_gate(true);
}

/* ---- Somebody else ends it ---- */

/* LMAX, 2017: a destroy that raced with a handover left the snapshot half merged, and invalid. */
Test(handover_races, lmax_2017_a_drop_races_with_the_export)
{
	unsigned exports = 0;

	for (unsigned round = 0; round < SOME(100); round++)
		end_during_export(cowsnap_snapshot_drop, true, &exports);
	cr_log_info("%u exports", exports);
}

Test(handover_races, a_deactivation_races_with_the_export)
{
	unsigned exports = 0;

	for (unsigned round = 0; round < SOME(100); round++)
		end_during_export(cowsnap_snapshot_deactivate, false, &exports);
	cr_log_info("%u exports", exports);
}

/* ---- Those who are not waited for ------------------------------------------------------------ */

/* Writes to the snapshot itself. */
struct scribe {
	struct dm_scene *scene;
	pthread_t thread;
	uint64_t chunk;
	_Atomic bool done;
	int rc;
};

static void *run_scribe(void *argument)
{
	struct scribe *w = argument;
	uint8_t bytes[CHUNK];

	memset(bytes, 0x77, sizeof(bytes));
	w->rc = cowsnap_snapshot_write(
		w->scene->at[0].snapshot, COWSNAP_WRITE, bytes, w->chunk * CHUNK, sizeof(bytes));
	/* Where it succeeds that is what the snapshot shows. */
	if (!w->rc)
		memcpy(w->scene->at[0].image + w->chunk * CHUNK, bytes, sizeof(bytes));
	atomic_store(&w->done, true);
	return NULL;
}

Test(handover_races, what_was_written_to_the_snapshot_goes_along)
{
	struct handed h = {0};
	struct dm_scene s;
	struct scribe w = {.scene = &s};

	begin(&s, NULL);
	/* Saved before, and not. */
	for (w.chunk = 10; w.chunk < 14; w.chunk++) {
		run_scribe(&w);
		cr_assert_eq(w.rc, 0);
	}
	cr_assert_eq(handed_out(&s, 0, 0, &h), 0);
	cr_assert_eq(handed_in(&s, 0, &h), 0);
	w.chunk = 15;
	run_scribe(&w);
	cr_assert_eq(w.rc, 0);
	end(&s);
	handed_free(&h);
}

Test(handover_races, a_write_to_the_snapshot_is_in_the_way)
{
	struct dm_scene s;
	struct scribe w = {.scene = &s, .chunk = 99};
	int hold;

	begin(&s, NULL);
	hold = test_device_hold(
		s.at[0].store_test, TEST_IO_WRITE, 0, s.options.store_bytes, TEST_HOLD_BEFORE);
	cr_assert_eq(pthread_create(&w.thread, NULL, run_scribe, &w), 0);
	cr_assert(test_device_wait_held(s.at[0].store_test, hold));
	expect_refused(&s, -EBUSY);
	test_device_release(s.at[0].store_test, hold);
	pthread_join(w.thread, NULL);
	cr_assert_eq(w.rc, 0);
	end(&s);
}

/* It begins behind the look, and has its bytes on their way when the snapshot ends: the device is
 * kept until they are there. */
Test(handover_races, a_late_write_to_the_snapshot_is_waited_for)
{
	struct exporter e;
	struct dm_scene s;
	struct scribe w = {.scene = &s, .chunk = 99};
	int hold, look;

	begin(&s, NULL);
	look = test_device_hold(
		s.at[0].store_test, TEST_IO_READ, 0, s.options.store_bytes, TEST_HOLD_BEFORE);
	start(&e, &s);
	cr_assert(test_device_wait_held(s.at[0].store_test, look));
	hold = test_device_hold(
		s.at[0].store_test, TEST_IO_WRITE, 0, s.options.store_bytes, TEST_HOLD_BEFORE);
	cr_assert_eq(pthread_create(&w.thread, NULL, run_scribe, &w), 0);
	cr_assert(test_device_wait_held(s.at[0].store_test, hold));
	test_device_release(s.at[0].store_test, look);
	while (dm_state(&s, 0, NULL) == COWSNAP_SNAPSHOT_ACTIVE)
		sched_yield();
	for (unsigned i = 0; i < 1000; i++) {
		cr_assert_eq(test_device_locked(s.at[0].store_test), COWSNAP_LOCK_EXCLUSIVE);
		cr_assert_not(atomic_load(&e.done));
		sched_yield();
	}
	test_device_release(s.at[0].store_test, hold);
	pthread_join(w.thread, NULL);
	cr_assert_eq(w.rc, -EIDRM);
	finish(&e);
	cr_assert_eq(dm_usage(&s, 0).used_bytes, 20 * CHUNK);
	end(&s);
}

/* Linux 09ee96b21456: a handover while a merge was under way. */
Test(handover_races, linux_09ee96b21456_a_merge_is_in_the_way)
{
	struct handed h = {0};
	struct dm_scene s;
	int rc;

	begin(&s, NULL);
	cr_assert_eq(cowsnap_merge_begin(s.at[0].snapshot), 0);
	do {
		cr_assert_eq(
			cowsnap_store_export(s.at[0].store, UINT64_MAX, handed_write, &h), -EBUSY);
		rc = cowsnap_merge_run(s.at[0].snapshot, CHUNK);
	} while (rc > 0);
	cr_assert_eq(rc, 0);
	cr_assert_eq(cowsnap_store_export(s.at[0].store, 0, handed_write, &h), -ENODATA);
	cr_assert_eq(h.bytes, 0);
	cowsnap_snapshot_unref(s.at[0].snapshot);
	s.at[0].snapshot = NULL;
	dm_close(&s);
}
