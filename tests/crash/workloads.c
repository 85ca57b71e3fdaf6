/* SPDX-License-Identifier: MIT */
#include "crash/workloads.h"
#include "support/test.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK    512u
#define PER_AREA 32u /* records in an area of 512 bytes */
#define CHUNKS   64u

static void begin(struct scenario *s, enum cowsnap_loser on_full)
{
	scenario_start(s);
	scenario_create(s, s->workload->chunk_bytes, 0, 0);
	scenario_take(s, on_full);
}

/* ---- Plain ones ------------------------------------------------------------------------------ */

static void run_create_take(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_SNAPSHOT);
	scenario_stop(s);
}

const struct workload workload_create_take = {
	.name = "create-take",
	.run = run_create_take,
	.chunk_bytes = CHUNK,
	.origin_bytes = 16 * CHUNK,
	.store_chunks = 40,
};

static void run_first_touches(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_SNAPSHOT);
	scenario_touch(s, 3, 2);
	scenario_touch(s, 3, 1);
	scenario_touch(s, 0, 2);
	cr_assert_eq(scenario_write(s, 2, 5), 0);
	scenario_touch(s, 12, 4);
	scenario_stop(s);
}

const struct workload workload_first_touches = {
	.name = "first-touches",
	.run = run_first_touches,
	.chunk_bytes = CHUNK,
	.origin_bytes = 16 * CHUNK,
	.store_chunks = 40,
};

static void run_area_crossing(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scenario_write(s, 0, PER_AREA - 3), 0);
	scenario_flush_origin(s);
	scenario_touch(s, PER_AREA - 3, 6);
	scenario_stop(s);
}

const struct workload workload_area_crossing = {
	.name = "area-crossing",
	.run = run_area_crossing,
	.chunk_bytes = CHUNK,
	.origin_bytes = CHUNKS * CHUNK,
	.store_chunks = 100,
};

static void run_spanning_groups(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_SNAPSHOT);
	for (unsigned i = 0; i < 14; i++) {
		cr_assert_eq(scenario_write(s, UINT64_C(5) * i, 5), 0);
		scenario_flush_origin(s);
	}
	scenario_stop(s);
}

const struct workload workload_spanning_groups = {
	.name = "spanning-groups",
	.run = run_spanning_groups,
	.chunk_bytes = CHUNK,
	.origin_bytes = 80 * CHUNK,
	.store_chunks = 100,
};

/* Many records at once, which share an area of several sectors. */
static void run_torn_area(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scenario_write(s, 0, 40), 0);
	scenario_flush_origin(s);
	cr_assert_eq(scenario_write(s, 40, 3), 0);
	cr_assert_eq(scenario_write(s, 50, 30), 0);
	scenario_flush_origin(s);
	cr_assert_eq(scenario_write(s, 43, 7), 0);
	scenario_stop(s);
}

const struct workload workload_torn_area = {
	.name = "torn-area",
	.run = run_torn_area,
	.chunk_bytes = 1024,
	.origin_bytes = 84 * 1024,
	.store_chunks = 150,
};
const struct workload workload_torn_large_area = {
	.name = "torn-large-area",
	.run = run_torn_area,
	.chunk_bytes = 4096,
	.origin_bytes = 84 * 4096,
	.store_chunks = 90,
};

static void run_odd_end(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_SNAPSHOT);
	scenario_touch(s, 9, 1);
	cr_assert_eq(scenario_write(s, 0, 3), 0);
	cr_assert_eq(scenario_write(s, 7, 2), 0);
	scenario_stop(s);
}

const struct workload workload_odd_end = {
	.name = "odd-end",
	.run = run_odd_end,
	.chunk_bytes = 1024,
	.origin_bytes = 9 * 1024 + 512,
	.store_chunks = 20,
};

/* ---- More than one life ---------------------------------------------------------------------- */

static void next_life(struct scenario *s, enum cowsnap_loser on_full)
{
	scenario_stop(s);
	scenario_start(s);
	scenario_attach(s, on_full);
}

static void run_reopen(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_SNAPSHOT);
	scenario_touch(s, 0, 5);
	next_life(s, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scenario_write(s, 20, 7), 0);
	next_life(s, COWSNAP_LOSER_SNAPSHOT);
	next_life(s, COWSNAP_LOSER_SNAPSHOT);
	scenario_touch(s, 3, 4);
	scenario_stop(s);
}

const struct workload workload_reopen = {
	.name = "reopen",
	.run = run_reopen,
	.chunk_bytes = CHUNK,
	.origin_bytes = CHUNKS * CHUNK,
	.store_chunks = 80,
};

/* The variant is how many records there are when the store is opened again: at exactly m areas'
 * worth a reader that forgets what the last area held, or which chunk comes next, goes wrong. */
static void run_reopen_full_areas(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scenario_write(s, 0, s->variant), 0);
	scenario_flush_origin(s);
	next_life(s, COWSNAP_LOSER_SNAPSHOT);
	scenario_touch(s, s->variant, 1);
	next_life(s, COWSNAP_LOSER_SNAPSHOT);
	scenario_touch(s, s->variant + 1, 2);
	scenario_stop(s);
}

const struct workload workload_reopen_full_areas = {
	.name = "reopen-full-areas",
	.run = run_reopen_full_areas,
	.chunk_bytes = CHUNK,
	.origin_bytes = 80 * CHUNK,
	.store_chunks = 110,
};

/* ---- Growing --------------------------------------------------------------------------------- */

/* From exactly one stripe, which is full one record early, to the middle of the next and beyond. */
static void run_grow(struct scenario *s)
{
	uint64_t done = PER_AREA - 1;

	begin(s, COWSNAP_LOSER_WRITE);
	cr_assert_eq(scenario_write(s, 0, done), 0);
	scenario_flush_origin(s);
	cr_assert_eq(scenario_write(s, done, 1), -ENOSPC);
	scenario_grow(s, s->workload->store_chunks + 1);
	scenario_touch(s, done, 1);
	cr_assert_eq(scenario_write(s, done + 1, 1), -ENOSPC);
	scenario_grow(s, s->workload->store_chunks + 4);
	scenario_touch(s, done + 1, 2);
	next_life(s, COWSNAP_LOSER_WRITE);
	scenario_touch(s, done + 3, 1);
	scenario_grow(s, s->workload->grown_chunks);
	scenario_touch(s, done + 4, 2);
	scenario_stop(s);
}

const struct workload workload_grow = {
	.name = "grow",
	.run = run_grow,
	.chunk_bytes = CHUNK,
	.origin_bytes = CHUNKS * CHUNK,
	.store_chunks = 1 + PER_AREA + 1,
	.grown_chunks = 70,
};

/* ---- No room, and errors --------------------------------------------------------------------- */

/* The write may go on only when it is durable that the snapshot is worth nothing. */
static void lose_snapshot(struct scenario *s, uint64_t chunk)
{
	scenario_promise(s, MAY_EXACT | MAY_INVALID);
	cr_assert_eq(scenario_write(s, chunk, 1), 0);
	scenario_promise(s, MAY_INVALID);
}

static void run_full_invalidates(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scenario_write(s, 1, 6), 0);
	lose_snapshot(s, 7);
	cr_assert_eq(scenario_write(s, 9, 3), 0);
	scenario_flush_origin(s);
	scenario_drop(s);
	scenario_touch(s, 12, 1);
	scenario_take(s, COWSNAP_LOSER_SNAPSHOT);
	scenario_touch(s, 2, 2);
	scenario_stop(s);
}

const struct workload workload_full_invalidates = {
	.name = "full-invalidates",
	.run = run_full_invalidates,
	.chunk_bytes = CHUNK,
	.origin_bytes = 16 * CHUNK,
	.store_chunks = 8,
};

static void run_full_write_loses(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_WRITE);
	cr_assert_eq(scenario_write(s, 0, 5), 0);
	cr_assert_eq(scenario_write(s, 5, 1), 0);
	cr_assert_eq(scenario_write(s, 6, 1), -ENOSPC);
	cr_assert_eq(scenario_write(s, 4, 4), -ENOSPC);
	cr_assert_eq(scenario_write(s, 2, 1), 0);
	scenario_stop(s);
}

const struct workload workload_full_write_loses = {
	.name = "full-write-loses",
	.run = run_full_write_loses,
	.chunk_bytes = CHUNK,
	.origin_bytes = 16 * CHUNK,
	.store_chunks = 8,
};

static void run_data_write_fails(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_SNAPSHOT);
	scenario_touch(s, 0, 3);
	s->rig.power[POWER_STORE].write_fault =
		(struct power_fault){.countdown = 1, .error = -EIO, .effect = s->effect};
	lose_snapshot(s, 7);
	scenario_touch(s, 8, 2);
	scenario_stop(s);
}

const struct workload workload_data_write_fails = {
	.name = "data-write-fails",
	.run = run_data_write_fails,
	.chunk_bytes = CHUNK,
	.origin_bytes = 16 * CHUNK,
	.store_chunks = 30,
};

static void fail_records(struct scenario *s)
{
	s->rig.power[POWER_STORE].area_fault =
		(struct power_fault){.countdown = 1, .error = -EIO, .effect = s->effect};
}

static void run_record_write_fails(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_SNAPSHOT);
	scenario_touch(s, 0, 3);
	fail_records(s);
	lose_snapshot(s, 7);
	scenario_touch(s, 8, 2);
	scenario_stop(s);
}

const struct workload workload_record_write_fails = {
	.name = "record-write-fails",
	.run = run_record_write_fails,
	.chunk_bytes = CHUNK,
	.origin_bytes = 16 * CHUNK,
	.store_chunks = 30,
};

/* What the failed write has left of its records must be gone before their chunks are used again. */
static void run_record_write_fails_write_loses(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_WRITE);
	cr_assert_eq(scenario_write(s, 0, 3), 0);
	fail_records(s);
	cr_assert_eq(scenario_write(s, 4, 40), -EIO);
	scenario_touch(s, 50, 2);
	fail_records(s);
	cr_assert_eq(scenario_write(s, 4, 1), -EIO);
	scenario_touch(s, 52, 1);
	scenario_touch(s, 4, 2);
	scenario_flush_origin(s);
	cr_assert_eq(scenario_write(s, 4, 40), 0);
	scenario_stop(s);
}

const struct workload workload_record_write_fails_write_loses = {
	.name = "record-write-fails-write-loses",
	.run = run_record_write_fails_write_loses,
	.chunk_bytes = 1024,
	.origin_bytes = 64 * 1024,
	.store_chunks = 90,
};

/* One commit in two areas, of which the zeroing of the second, the records in the first or those in
 * the second fail: the variant says which. The commit is taken back as a whole. */
static void run_spanning_commit_fails(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_WRITE);
	cr_assert_eq(scenario_write(s, 0, 20), 0);
	fail_records(s);
	s->rig.power[POWER_STORE].area_fault.countdown = s->variant;
	cr_assert_eq(scenario_write(s, 20, 20), -EIO);
	scenario_flush_origin(s);
	scenario_touch(s, 40, 2);
	cr_assert_eq(scenario_write(s, 25, 9), 0);
	scenario_flush_origin(s);
	cr_assert_eq(scenario_write(s, 42, 8), 0);
	scenario_stop(s);
}

const struct workload workload_spanning_commit_fails = {
	.name = "spanning-commit-fails",
	.run = run_spanning_commit_fails,
	.chunk_bytes = CHUNK,
	.origin_bytes = CHUNKS * CHUNK,
	.store_chunks = 90,
};

/* The store cannot say any more what is durable: nothing but the header is written to it. The
 * variant is which flush it is. */
static void run_flush_fails(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_SNAPSHOT);
	scenario_touch(s, 0, 3);
	s->rig.power[POWER_STORE].flush_fault =
		(struct power_fault){.countdown = s->variant, .error = -EIO};
	lose_snapshot(s, 7);
	scenario_touch(s, 8, 2);
	scenario_stop(s);
}

const struct workload workload_flush_fails = {
	.name = "flush-fails",
	.run = run_flush_fails,
	.chunk_bytes = CHUNK,
	.origin_bytes = 16 * CHUNK,
	.store_chunks = 30,
};

/* From one failure on no write that needs a copy is admitted, and what is on the device is good. */
static void run_flush_fails_write_loses(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_WRITE);
	scenario_touch(s, 0, 3);
	s->rig.power[POWER_STORE].flush_fault =
		(struct power_fault){.countdown = s->variant, .error = -EIO};
	cr_assert_eq(scenario_write(s, 7, 2), -EIO);
	cr_assert_eq(scenario_write(s, 8, 1), -EIO);
	cr_assert_eq(scenario_write(s, 10, 1), -EIO);
	scenario_touch(s, 1, 2);
	scenario_stop(s);
}

const struct workload workload_flush_fails_write_loses = {
	.name = "flush-fails-write-loses",
	.run = run_flush_fails_write_loses,
	.chunk_bytes = CHUNK,
	.origin_bytes = 16 * CHUNK,
	.store_chunks = 30,
};

/* Neither records nor their removal can be written: none of their chunks is used again. */
static void run_areas_fail_write_loses(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_WRITE);
	scenario_touch(s, 0, 3);
	fail_records(s);
	s->rig.power[POWER_STORE].area_fault.for_good = true;
	cr_assert_eq(scenario_write(s, 7, 2), -EIO);
	s->rig.power[POWER_STORE].area_fault = (struct power_fault){0};
	cr_assert_eq(scenario_write(s, 10, 2), -EIO);
	cr_assert_eq(scenario_write(s, 7, 1), -EIO);
	scenario_stop(s);
}

const struct workload workload_areas_fail_write_loses = {
	.name = "areas-fail-write-loses",
	.run = run_areas_fail_write_loses,
	.chunk_bytes = CHUNK,
	.origin_bytes = 16 * CHUNK,
	.store_chunks = 30,
};

/* It cannot be recorded that the snapshot is invalid, so the write does not go on. */
static void run_invalidation_fails(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scenario_write(s, 1, 6), 0);
	scenario_promise(s, MAY_EXACT | MAY_INVALID);
	s->rig.power[POWER_STORE].flush_fault =
		(struct power_fault){.countdown = 1, .for_good = true, .error = -EIO};
	cr_assert_eq(scenario_write(s, 7, 1), -EIO);
	cr_assert_eq(scenario_write(s, 9, 1), -EIO);
	scenario_touch(s, 1, 1);
	s->rig.power[POWER_STORE].flush_fault = (struct power_fault){0};
	lose_snapshot(s, 8);
	scenario_touch(s, 10, 2);
	scenario_stop(s);
}

const struct workload workload_invalidation_fails = {
	.name = "invalidation-fails",
	.run = run_invalidation_fails,
	.chunk_bytes = CHUNK,
	.origin_bytes = 16 * CHUNK,
	.store_chunks = 8,
};

/* The snapshot stays, though what the device makes of the zeroed header nobody knows. */
static void run_drop_fails(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_WRITE);
	scenario_touch(s, 0, 3);
	s->rig.power[POWER_STORE].flush_fault = (struct power_fault){.countdown = 1, .error = -EIO};
	scenario_promise(s, MAY_EXACT | MAY_NONE);
	cr_assert_eq(rig_drop(&s->rig), -EIO);
	(void)scenario_write(s, 5, 2);
	scenario_drop(s);
	scenario_touch(s, 7, 2);
	scenario_stop(s);
}

const struct workload workload_drop_fails = {
	.name = "drop-fails",
	.run = run_drop_fails,
	.chunk_bytes = CHUNK,
	.origin_bytes = 16 * CHUNK,
	.store_chunks = 30,
};

/* There is no snapshot, whatever the take has written before it failed. The variant is which flush
 * it is. */
static void run_take_fails(struct scenario *s)
{
	uint8_t *image = malloc(s->workload->origin_bytes);

	scenario_start(s);
	scenario_create(s, CHUNK, 0, 0);
	cr_assert_not_null(image);
	memcpy(image, s->rig.live[POWER_ORIGIN], s->workload->origin_bytes);
	s->images[s->image_count++] = image;
	s->promise.image = image;
	s->rig.power[POWER_STORE].flush_fault =
		(struct power_fault){.countdown = s->variant, .error = -EIO};
	scenario_promise(s, MAY_EXACT | MAY_NONE);
	cr_assert_eq(rig_take(&s->rig, COWSNAP_LOSER_WRITE), -EIO);
	scenario_promise(s, MAY_NONE);
	scenario_touch(s, 0, 3);
	scenario_take(s, COWSNAP_LOSER_WRITE);
	scenario_touch(s, 2, 2);
	scenario_stop(s);
}

const struct workload workload_take_fails = {
	.name = "take-fails",
	.run = run_take_fails,
	.chunk_bytes = CHUNK,
	.origin_bytes = 16 * CHUNK,
	.store_chunks = 30,
};

/* ---- Ends and new beginnings ----------------------------------------------------------------- */

static void run_drop(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scenario_write(s, 0, 6), 0);
	scenario_drop(s);
	scenario_touch(s, 0, 8);
	scenario_stop(s);
}

const struct workload workload_drop = {
	.name = "drop",
	.run = run_drop,
	.chunk_bytes = CHUNK,
	.origin_bytes = 16 * CHUNK,
	.store_chunks = 30,
};

/* The records of the first snapshot are still there, and must not come alive in the second. */
static void run_drop_take_again(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scenario_write(s, 0, PER_AREA + 8), 0);
	scenario_drop(s);
	scenario_touch(s, 0, 4);
	scenario_take(s, COWSNAP_LOSER_SNAPSHOT);
	scenario_touch(s, 10, 3);
	cr_assert_eq(scenario_write(s, 20, PER_AREA - 2), 0);
	scenario_drop(s);
	scenario_stop(s);
	scenario_start(s);
	scenario_create(s, CHUNK, 0, 0);
	scenario_take(s, COWSNAP_LOSER_SNAPSHOT);
	scenario_touch(s, 30, 2);
	scenario_stop(s);
}

const struct workload workload_drop_take_again = {
	.name = "drop-take-again",
	.run = run_drop_take_again,
	.chunk_bytes = CHUNK,
	.origin_bytes = CHUNKS * CHUNK,
	.store_chunks = 80,
};

/* A store with another chunk size is given up, with its snapshot. */
static void run_overwrite(struct scenario *s)
{
	scenario_start(s);
	scenario_create(s, 4 * (uint64_t)CHUNK, 0, 0);
	scenario_take(s, COWSNAP_LOSER_SNAPSHOT);
	scenario_touch(s, 0, 3);
	cr_assert_eq(scenario_write(s, 8, 20), 0);
	scenario_stop(s);
	scenario_start(s);
	scenario_create(s, CHUNK, COWSNAP_DM_OVERWRITE, 0);
	scenario_touch(s, 40, 3);
	scenario_take(s, COWSNAP_LOSER_SNAPSHOT);
	scenario_touch(s, 2, 4);
	scenario_stop(s);
}

const struct workload workload_overwrite = {
	.name = "overwrite",
	.run = run_overwrite,
	.chunk_bytes = CHUNK,
	.origin_bytes = CHUNKS * CHUNK,
	.store_chunks = 80,
};

static void run_generation(struct scenario *s)
{
	scenario_start(s);
	scenario_create(s, CHUNK, 0, 41);
	scenario_take(s, COWSNAP_LOSER_SNAPSHOT);
	scenario_touch(s, 0, 2);
	scenario_generation(s, 42);
	scenario_touch(s, 2, 2);
	scenario_generation(s, 43);
	next_life(s, COWSNAP_LOSER_SNAPSHOT);
	scenario_generation(s, 44);
	scenario_touch(s, 4, 2);
	scenario_stop(s);
}

const struct workload workload_generation = {
	.name = "generation",
	.run = run_generation,
	.chunk_bytes = CHUNK,
	.origin_bytes = 16 * CHUNK,
	.store_chunks = 30,
};

/* ---- Whatever comes -------------------------------------------------------------------------- */

static void random_write(struct scenario *s, bool faults)
{
	uint64_t chunks = s->workload->origin_bytes / s->workload->chunk_bytes;
	uint64_t first = seed_below(&s->seed, chunks);
	uint64_t count = 1 + seed_below(&s->seed, seed_below(&s->seed, 4) ? 3 : 40);
	int rc = scenario_write(s, first, count < chunks - first ? count : chunks - first);

	cr_assert(!rc || rc == -ENOSPC || (faults && rc == -EIO), "%d", rc);
}

static void random_fault(struct scenario *s)
{
	struct power_fault fault = {
		.countdown = 1 + seed_below(&s->seed, 4),
		.error = -EIO,
		.effect = (enum power_effect)seed_below(&s->seed, POWER_EFFECTS),
	};

	if (seed_below(&s->seed, 3))
		s->rig.power[POWER_STORE].area_fault = fault;
	else
		s->rig.power[POWER_STORE].write_fault = fault;
}

static void heal(struct scenario *s)
{
	s->rig.power[POWER_STORE].area_fault = (struct power_fault){0};
	s->rig.power[POWER_STORE].write_fault = (struct power_fault){0};
}

static void random_step(struct scenario *s, bool faults)
{
	uint64_t kind = seed_below(&s->seed, 100);

	if (faults && kind < 10) {
		random_fault(s);
	} else if (kind < 80) {
		random_write(s, faults);
	} else if (kind < 90) {
		scenario_flush_origin(s);
	} else if (kind < 96) {
		heal(s);
		next_life(s, COWSNAP_LOSER_WRITE);
	} else if (s->image_count < SCENARIO_IMAGES) {
		heal(s);
		scenario_drop(s);
		/* What a failed commit broke stays so until the store is opened again. */
		scenario_stop(s);
		scenario_start(s);
		scenario_create(s, s->workload->chunk_bytes, 0, 0);
		scenario_take(s, COWSNAP_LOSER_WRITE);
	}
}

#define STEPS 60

static void run_random(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_WRITE);
	for (unsigned i = 0; i < STEPS; i++)
		random_step(s, false);
	scenario_stop(s);
}

static void run_random_faults(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_WRITE);
	for (unsigned i = 0; i < STEPS; i++)
		random_step(s, true);
	scenario_stop(s);
}

const struct workload workload_random = {
	.name = "random",
	.run = run_random,
	.chunk_bytes = 1024,
	.origin_bytes = 120 * 1024,
	.store_chunks = 100,
};
const struct workload workload_random_faults = {
	.name = "random-faults",
	.run = run_random_faults,
	.chunk_bytes = 1024,
	.origin_bytes = 120 * 1024,
	.store_chunks = 110,
};
