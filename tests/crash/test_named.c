/* SPDX-License-Identifier: MIT
 *
 * What went wrong in dm-snapshot over the years, or could have, each with the way in which a store
 * that has the fault would fail here.
 */
#include "crash/workloads.h"
#include "support/test.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#define CHUNK     1024u
#define CHUNKS    100u
#define PER_AREA  (CHUNK / 16)
#define SECTOR    512u
#define IN_SECTOR (SECTOR / 16) /* records */

static const struct outage_plan plan = {.exhaustive_units = 6, .singles = 6, .randoms = 6};

static struct scenario_result run(const struct workload *workload, unsigned variant,
	enum mutation mutation, const struct power_traits *traits)
{
	struct scenario_options options = {
		.traits = traits,
		.plan = plan,
		.variant = variant,
		.mutation = mutation,
		.stop = true,
		.seed = {11},
	};
	struct scenario_result result;

	scenario_run(workload, &options, &result);
	return result;
}

static void expect_sound(const struct workload *workload, unsigned variant)
{
	struct scenario_result result = run(workload, variant, MUTATION_NONE, &scenario_cached);

	cr_assert_eq(result.violations, 0, "%s", result.message);
	cr_assert_gt(result.counts.states, 0);
}

static void expect_caught(const struct workload *workload, enum mutation mutation)
{
	struct scenario_result result = run(workload, 0, mutation, &scenario_cached);

	cr_assert_gt(result.mutated, 0);
	cr_assert_gt(result.violations, 0);
}

/* ---- By hand --------------------------------------------------------------------------------- */

static struct rig rig;
static uint8_t image[CHUNKS * CHUNK];
static uint8_t image_before[sizeof(image)];

static void start(uint64_t store_chunks)
{
	static const struct power_traits *const traits[POWER_DEVICES] = {
		&scenario_origin, &scenario_cached};

	cr_assert_eq(rig_start(&rig, traits, sizeof(image), store_chunks * CHUNK), 0);
}

static void open_rig(uint64_t store_chunks)
{
	struct seed seed = {3};

	rig_init(&rig, sizeof(image), store_chunks * CHUNK);
	seed_fill(&seed, rig.live[POWER_ORIGIN], sizeof(image));
	memcpy(image, rig.live[POWER_ORIGIN], sizeof(image));
	start(store_chunks);
	cr_assert_eq(rig_create(&rig, CHUNK, 0, 0), 0);
	cr_assert_eq(rig_take(&rig, COWSNAP_LOSER_WRITE), 0);
}

static void close_rig(void)
{
	cr_assert_eq(rig_stop(&rig), 0);
	rig_fini(&rig);
}

static int write_chunks(uint64_t first, uint64_t count)
{
	return rig_write(&rig, first * CHUNK, count * CHUNK);
}

static void expect_image(void)
{
	static uint8_t found[sizeof(image)];

	cr_assert_eq(cowsnap_snapshot_read(rig.snapshot, found, 0, sizeof(found)), 0);
	cr_assert_arr_eq(found, image, sizeof(image));
}

static void next_life(uint64_t store_chunks)
{
	cr_assert_eq(rig_stop(&rig), 0);
	start(store_chunks);
	cr_assert_eq(rig_attach(&rig, CHUNK, 0, COWSNAP_LOSER_WRITE), 0);
}

#define STORE_CHUNKS 120u

/* 40 records in an area of two sectors, torn: the second sector is there, the first one is not.
 * None of them was acknowledged, so nothing has changed in the origin. */
static void tear(uint8_t *tail)
{
	uint8_t *area;

	open_rig(STORE_CHUNKS);
	cr_assert_eq(write_chunks(0, IN_SECTOR + 8), 0);
	cr_assert_eq(rig_stop(&rig), 0);
	area = rig.live[POWER_STORE] + CHUNK;
	memset(area, 0, SECTOR);
	memcpy(tail, area + SECTOR, SECTOR);
	memcpy(rig.live[POWER_ORIGIN], image, sizeof(image));
	start(STORE_CHUNKS);
	cr_assert_eq(rig_attach(&rig, CHUNK, 0, COWSNAP_LOSER_WRITE), 0);
	cr_assert_eq(rig_info(&rig).saved_chunks, 0);
}

/* The gap is filled exactly; then 8 more chunks are copied into those that the tail names, and the
 * power fails before their records are written. @second is what the second sector holds then. */
static void fill_gap(const uint8_t *second)
{
	for (unsigned i = 0; i < IN_SECTOR; i++)
		cr_assert_eq(write_chunks(50 + i, 1), 0);
	memcpy(image_before, rig.live[POWER_ORIGIN], sizeof(image));
	cr_assert_eq(write_chunks(50 + IN_SECTOR, 8), 0);
	cr_assert_eq(rig_stop(&rig), 0);
	memcpy(rig.live[POWER_ORIGIN], image_before, sizeof(image));
	memcpy(rig.live[POWER_STORE] + CHUNK + SECTOR, second, SECTOR);
	start(STORE_CHUNKS);
	cr_assert_eq(rig_attach(&rig, CHUNK, 0, COWSNAP_LOSER_WRITE), 0);
}

/* No kernel has a fix; the format page has it in what a crash can leave. Records behind the
 * terminator that a torn write has left are kept there, until new ones fill the gap exactly up to
 * them; their chunks are others' by then. */
Test(named, stale_tail_comes_alive)
{
	static const uint8_t nothing[SECTOR];
	uint8_t tail[SECTOR];

	tear(tail);
	cr_assert_arr_eq(rig.live[POWER_STORE] + CHUNK + SECTOR, nothing, SECTOR);
	fill_gap(nothing);
	cr_assert_eq(rig_info(&rig).saved_chunks, IN_SECTOR);
	expect_image();
	close_rig();
}

/* The same, with a store that has left the tail: the test above is one that can fail. */
Test(named, stale_tail_comes_alive_if_it_is_left)
{
	static uint8_t found[sizeof(image)];
	uint8_t tail[SECTOR];

	tear(tail);
	fill_gap(tail);
	cr_assert_eq(rig_info(&rig).saved_chunks, IN_SECTOR + 8);
	cr_assert_eq(cowsnap_snapshot_read(rig.snapshot, found, 0, sizeof(found)), 0);
	cr_assert_arr_neq(found, image, sizeof(image));
	close_rig();
}

/* Kernel 2.6.28, 7acedc5b98a2: the next area was zeroed after the current one was full on disk, and
 * a crash in between left garbage for records. */
Test(named, next_area_zeroed_too_late)
{
	expect_sound(&workload_area_crossing, 0);
	expect_caught(&workload_area_crossing, MUTATION_AREA_ZEROED_LATE);
	expect_caught(&workload_area_crossing, MUTATION_NO_AREA_ZEROED);
}

/* Kernels 3.14, 2c945820cab9: a reader that did not keep the last area in memory, so that the next
 * commit wiped its records; and 3.12, e9c6a182649f: the next free chunk after exactly m * E records
 * is that of an area, and data was written over it. */
Test(named, area_image_lost_after_reload_at_exactly_m_times_E_records)
{
	static const unsigned records[] = {
		PER_AREA - 1, PER_AREA, PER_AREA + 1, PER_AREA + IN_SECTOR};

	for (unsigned i = 0; i < sizeof(records) / sizeof(*records); i++) {
		open_rig(STORE_CHUNKS);
		cr_assert_eq(write_chunks(0, records[i]), 0);
		next_life(STORE_CHUNKS);
		cr_assert_eq(rig_info(&rig).saved_chunks, records[i]);
		cr_assert_eq(write_chunks(records[i], 1), 0);
		next_life(STORE_CHUNKS);
		cr_assert_eq(rig_info(&rig).saved_chunks, records[i] + 1);
		expect_image();
		cr_assert_eq(write_chunks(records[i] + 1, 2), 0);
		next_life(STORE_CHUNKS);
		cr_assert_eq(rig_info(&rig).saved_chunks, records[i] + 3);
		expect_image();
		close_rig();
	}
	expect_sound(&workload_reopen_full_areas, 32);
	expect_sound(&workload_reopen_full_areas, 64);
}

/* ---- Out of order ---------------------------------------------------------------------------- */

#define SMALL_STORE 12u

/* The first copy stands still before its data is written. */
static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool held, released;
} gate = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void hold_first(void *user, enum power_kind kind, uint64_t offset, uint64_t length)
{
	(void)user;
	(void)length;
	if (kind == POWER_FLUSH || offset != UINT64_C(2) * CHUNK)
		return;
	pthread_mutex_lock(&gate.lock);
	gate.held = true;
	pthread_cond_broadcast(&gate.changed);
	while (!gate.released)
		pthread_cond_wait(&gate.changed, &gate.lock);
	pthread_mutex_unlock(&gate.lock);
}

static void *write_first(void *argument)
{
	*(int *)argument = write_chunks(0, 1);
	return NULL;
}

static void wait_held(void)
{
	pthread_mutex_lock(&gate.lock);
	while (!gate.held)
		pthread_cond_wait(&gate.changed, &gate.lock);
	pthread_mutex_unlock(&gate.lock);
}

static void release(void)
{
	pthread_mutex_lock(&gate.lock);
	gate.released = true;
	pthread_cond_broadcast(&gate.changed);
	pthread_mutex_unlock(&gate.lock);
}

/* Kernel 3.13, 230c83afdd9c: a record of a high chunk was durable and those of lower ones were not.
 * A reader that goes on above the highest chunk never finds the lower ones again. */
Test(named, leak_after_out_of_order_records)
{
	uint64_t limit = power_record_limit(CHUNK, SMALL_STORE * CHUNK);
	uint8_t found[POWER_DEVICES][CHUNKS * CHUNK];
	pthread_t thread;
	int rc = 1;

	open_rig(SMALL_STORE);
	rig.power[POWER_STORE].hook = (struct power_hook){.call = hold_first};
	cr_assert_eq(pthread_create(&thread, NULL, write_first, &rc), 0);
	wait_held();
	cr_assert_eq(write_chunks(1, 1), 0);
	memcpy(found[POWER_ORIGIN], rig.live[POWER_ORIGIN], sizeof(image));
	memcpy(found[POWER_STORE], rig.live[POWER_STORE], SMALL_STORE * CHUNK);
	release();
	pthread_join(thread, NULL);
	cr_assert_eq(rc, 0);
	cr_assert_eq(rig_stop(&rig), 0);

	/* The power failed while the first copy stood still. */
	memcpy(rig.live[POWER_ORIGIN], found[POWER_ORIGIN], sizeof(image));
	memcpy(rig.live[POWER_STORE], found[POWER_STORE], SMALL_STORE * CHUNK);
	start(SMALL_STORE);
	cr_assert_eq(rig_attach(&rig, CHUNK, 0, COWSNAP_LOSER_WRITE), 0);
	cr_assert_eq(rig_usage(&rig).used_bytes, CHUNK);
	cr_assert_eq(rig_usage(&rig).limit_bytes, limit * CHUNK);
	for (unsigned i = 0; i < limit - 1; i++)
		cr_assert_eq(write_chunks(2 + i, 1), 0);
	cr_assert_eq(write_chunks(2 + limit, 1), -ENOSPC);
	next_life(SMALL_STORE);
	cr_assert_eq(rig_info(&rig).saved_chunks, limit);
	expect_image();
	close_rig();
}

/* No kernel has a fix. The header that says invalid was not flushed before the write that had no
 * preimage went on, so that a power cut left a valid header over a snapshot with a hole. */
Test(named, undurable_invalidation)
{
	expect_sound(&workload_full_invalidates, 0);
	expect_sound(&workload_data_write_fails, 0);
	expect_sound(&workload_flush_fails, 1);
	expect_caught(&workload_full_invalidates, MUTATION_NO_INVALID_FLUSH);
}
