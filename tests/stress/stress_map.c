/* SPDX-License-Identifier: MIT
 *
 * The exception map under threads. The oracle: each chunk has a word of its own that says who may
 * do what with it; a claim, a publication and a removal must move it from exactly one state to the
 * next, and a location must carry its chunk and a version that the chunk has had.
 *
 * Work is bounded by counts, not by time. COWSNAP_SEED=n replays the choices, not the schedule.
 */
#include "support/test.h"

#include "map.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#define THREADS 4

enum { FREE = 0, MINE = 1, DONE = 2 };

/* location = version * 2^32 + place; place p of the oracle is chunk chunk_of(p) */
struct place {
	_Atomic uint64_t owner;   /* FREE, MINE (claimed by somebody) or DONE */
	_Atomic uint64_t version; /* of the last publication or replacement that began */
	_Atomic uint64_t floor;   /* of the last that has returned: none older may be seen then */
};

struct bed {
	struct cowsnap_map *map;
	struct place *places;
	unsigned count;
	uint64_t stride; /* between groups of 64 places, in chunks */
	unsigned steps;
	uint64_t seed;
	atomic_uint next_thread;
	atomic_bool stop;
	uint64_t removals; /* go on until there have been as many; 0: nobody removes */
	uint64_t replacements;
	pthread_barrier_t ready;
	_Atomic uint64_t claimed;
	_Atomic uint64_t published;
	_Atomic uint64_t aborted;
	_Atomic uint64_t removed;
	_Atomic uint64_t waits;
	_Atomic uint64_t replaced;
};

static uint64_t chunk_of(const struct bed *bed, unsigned place)
{
	return place / 64 * bed->stride + place % 64;
}

static unsigned place_of(const struct bed *bed, uint64_t chunk)
{
	return (unsigned)(chunk / bed->stride * 64 + chunk % bed->stride);
}

static uint64_t draw(uint64_t *random, uint64_t below)
{
	*random ^= *random << 13;
	*random ^= *random >> 7;
	*random ^= *random << 17;
	return *random % below;
}

/* A location that is handed out for a place must be one of its own, and not older than @floor,
 * which was read before the look-up. */
static void check_location(const struct bed *bed, unsigned place, uint64_t location, uint64_t floor)
{
	uint64_t newest = atomic_load(&bed->places[place].version);

	cr_assert_eq(location % (UINT64_C(1) << 32), place);
	cr_assert_geq(location >> 32, floor ? floor : 1);
	cr_assert_leq(location >> 32, newest);
}

static uint64_t floor_of(const struct bed *bed, unsigned place)
{
	return atomic_load(&bed->places[place].floor);
}

static void own_run(struct bed *bed, const struct cowsnap_run *run)
{
	for (uint64_t i = 0; i < run->count; i++) {
		struct place *place = &bed->places[place_of(bed, run->first + i)];
		uint64_t expected = FREE;

		cr_assert(atomic_compare_exchange_strong(&place->owner, &expected, MINE),
			"claimed twice: state %llu", (unsigned long long)expected);
	}
	atomic_fetch_add(&bed->claimed, run->count);
}

static void raise_floor(struct place *place, uint64_t version)
{
	uint64_t floor = atomic_load(&place->floor);

	while (floor < version && !atomic_compare_exchange_weak(&place->floor, &floor, version))
		;
}

static void publish_one(struct bed *bed, uint64_t chunk)
{
	unsigned at = place_of(bed, chunk);
	struct place *place = &bed->places[at];
	uint64_t version = atomic_fetch_add(&place->version, 1) + 1;
	const struct cowsnap_run run = {chunk, 1, version << 32 | at};
	uint64_t location = 0;

	/* First the oracle: a removal may follow the publication at once. */
	cr_assert_eq(atomic_exchange(&place->owner, DONE), MINE);
	cowsnap_map_publish(bed->map, &run);
	raise_floor(place, version);
	if (cowsnap_map_lookup(bed->map, chunk, &location))
		check_location(bed, at, location, version);
	else
		cr_assert(bed->removals, "published, but not there");
	atomic_fetch_add(&bed->published, 1);
}

static void end_run(struct bed *bed, uint64_t *random, const struct cowsnap_run *run)
{
	bool give_up = draw(random, 4) == 0;

	/* So that others meet it busy, also on few processors. */
	if (draw(random, 4) == 0)
		sched_yield();
	for (uint64_t i = 0; i < run->count; i++) {
		const struct cowsnap_run one = {run->first + i, 1, 0};

		if (!give_up) {
			publish_one(bed, one.first);
			continue;
		}
		cr_assert_eq(
			atomic_exchange(&bed->places[place_of(bed, one.first)].owner, FREE), MINE);
		cowsnap_map_abort(bed->map, &one);
	}
	if (give_up)
		atomic_fetch_add(&bed->aborted, run->count);
}

struct sleeper {
	struct cowsnap_map_waiter waiter;
	atomic_int woken;
};

static void wake(struct cowsnap_map_waiter *waiter)
{
	struct sleeper *sleeper = (struct sleeper *)(void *)waiter;

	atomic_fetch_add(&sleeper->woken, 1);
}

static void wait_for(struct bed *bed, uint64_t chunk)
{
	struct sleeper sleeper = {.waiter.wake = wake};
	int err = cowsnap_map_wait(bed->map, chunk, &sleeper.waiter);

	if (err) {
		cr_assert_eq(err, -EAGAIN);
		return;
	}
	while (!atomic_load(&sleeper.woken))
		sched_yield();
	cr_assert_eq(atomic_load(&sleeper.woken), 1);
	atomic_fetch_add(&bed->waits, 1);
}

static void write_step(struct bed *bed, uint64_t *random)
{
	unsigned first = (unsigned)draw(random, bed->count);
	unsigned room = bed->stride == 64 ? bed->count - first : 64 - first % 64;
	unsigned count = 1 + (unsigned)draw(random, draw(random, 8) ? 6 : 150);
	struct cowsnap_run run;
	int state;

	if (count > room)
		count = room;
	state = cowsnap_map_claim(bed->map, chunk_of(bed, first), count, &run);
	cr_assert_geq(state, 0);
	if (state == COWSNAP_CLAIM_MINE) {
		cr_assert_geq(run.first, chunk_of(bed, first));
		cr_assert_leq(run.first + run.count, chunk_of(bed, first) + count);
		own_run(bed, &run);
		end_run(bed, random, &run);
	} else if (state == COWSNAP_CLAIM_BUSY) {
		wait_for(bed, run.first);
	}
}

static void read_step(struct bed *bed, uint64_t *random)
{
	unsigned first = (unsigned)draw(random, bed->count) & ~63u;
	uint64_t locations[64];
	uint64_t floors[64];
	uint64_t mask;
	struct cowsnap_run run;

	for (unsigned i = 0; i < 64; i++)
		floors[i] = floor_of(bed, first + i);
	mask = cs_map_window(bed->map, chunk_of(bed, first), 64, locations);
	for (unsigned i = 0; i < 64; i++) {
		if (mask >> i & 1)
			check_location(bed, first + i, locations[i], floors[i]);
	}
	if (!bed->removals && mask)
		cr_assert_eq(cs_map_done_mask(bed->map, chunk_of(bed, first), 64) & mask, mask);
	if (cowsnap_map_next(bed->map, chunk_of(bed, first), chunk_of(bed, first) + 64, &run))
		check_location(bed, place_of(bed, run.first), run.location,
			floors[place_of(bed, run.first) - first]);
}

static bool more_to_do(const struct bed *bed, unsigned step)
{
	return step < bed->steps || atomic_load(&bed->removed) < bed->removals ||
	       atomic_load(&bed->replaced) < bed->replacements;
}

static void *writer(void *arg)
{
	struct bed *bed = arg;
	uint64_t random = (bed->seed + atomic_fetch_add(&bed->next_thread, 1)) * 2 + 1;

	pthread_barrier_wait(&bed->ready);
	for (unsigned i = 0; more_to_do(bed, i); i++) {
		write_step(bed, &random);
		if (i % 4 == 0)
			read_step(bed, &random);
	}
	return NULL;
}

static void *reader(void *arg)
{
	struct bed *bed = arg;
	uint64_t random = (bed->seed + atomic_fetch_add(&bed->next_thread, 1)) * 2 + 1;

	pthread_barrier_wait(&bed->ready);
	while (!atomic_load(&bed->stop))
		read_step(bed, &random);
	return NULL;
}

static void see(void *user, const struct cowsnap_run *run)
{
	struct bed *bed = user;

	for (uint64_t i = 0; i < run->count; i++)
		check_location(bed, place_of(bed, run->first + i), run->location + i, 0);
}

static void remove_one(struct bed *bed, unsigned place)
{
	uint64_t expected = DONE;

	if (!cowsnap_map_done(bed->map, chunk_of(bed, place), 1))
		return;
	/* Only one thread removes, so it is still there. */
	cr_assert(atomic_compare_exchange_strong(&bed->places[place].owner, &expected, FREE));
	cr_assert_eq(cowsnap_map_remove(bed->map, chunk_of(bed, place), 1), 1);
	atomic_fetch_add(&bed->removed, 1);
}

/* Takes away what is done: here and there, or all of a leaf, which then loses its memory. */
static void *remover(void *arg)
{
	struct bed *bed = arg;
	uint64_t random = bed->seed * 2 + 77;

	pthread_barrier_wait(&bed->ready);
	while (!atomic_load(&bed->stop)) {
		unsigned place = (unsigned)draw(&random, bed->count);
		bool whole = draw(&random, 16) == 0;
		uint64_t cursor = 0;

		if (draw(&random, 1000) == 0) {
			while (cowsnap_map_walk(bed->map, &cursor, 10, see, bed))
				;
		}
		if (!whole)
			remove_one(bed, place);
		for (unsigned i = 0; whole && i < 64; i++)
			remove_one(bed, (place & ~63u) + i);
	}
	return NULL;
}

/* Gives done chunks their location again, with a newer version. */
static void *replacer(void *arg)
{
	struct bed *bed = arg;
	uint64_t random = bed->seed * 2 + 99;

	pthread_barrier_wait(&bed->ready);
	while (!atomic_load(&bed->stop)) {
		unsigned at = (unsigned)draw(&random, bed->count);
		uint64_t version;
		int err;

		if (!cowsnap_map_done(bed->map, chunk_of(bed, at), 1))
			continue;
		version = atomic_fetch_add(&bed->places[at].version, 1) + 1;
		err = cowsnap_map_replace(bed->map, chunk_of(bed, at), version << 32 | at);
		cr_assert_eq(err, 0);
		raise_floor(&bed->places[at], version);
		atomic_fetch_add(&bed->replaced, 1);
	}
	return NULL;
}

static void start(pthread_t *thread, void *(*body)(void *), struct bed *bed)
{
	cr_assert_eq(pthread_create(thread, NULL, body, bed), 0);
}

static void open_bed(struct bed *bed)
{
	const char *given = getenv("COWSNAP_SEED");

	bed->seed = given ? strtoull(given, NULL, 0) : 7;
	fprintf(stderr, "seed %llu; to replay: COWSNAP_SEED=%llu\n", (unsigned long long)bed->seed,
		(unsigned long long)bed->seed);
	bed->places = calloc(bed->count, sizeof(*bed->places));
	cr_assert_not_null(bed->places);
	pthread_barrier_init(&bed->ready, NULL, THREADS + 2);
	cr_assert_eq(cowsnap_map_create(NULL, &bed->map), 0);
}

static void check_end(struct bed *bed)
{
	uint64_t done = 0;

	for (unsigned i = 0; i < bed->count; i++) {
		uint64_t owner = atomic_load(&bed->places[i].owner);
		uint64_t location = 0;

		cr_assert_neq(owner, MINE);
		cr_assert_eq(
			cowsnap_map_lookup(bed->map, chunk_of(bed, i), &location), owner == DONE);
		if (owner == DONE)
			check_location(bed, i, location, floor_of(bed, i));
		done += owner == DONE;
	}
	cr_assert_eq(cowsnap_map_count(bed->map), done);
	cr_assert_eq(atomic_load(&bed->claimed),
		atomic_load(&bed->published) + atomic_load(&bed->aborted));
	cr_assert_eq(atomic_load(&bed->published), done + atomic_load(&bed->removed));
	cr_assert_gt(atomic_load(&bed->published), 0);
	fprintf(stderr, "claimed %llu, published %llu, removed %llu, waited %llu times\n",
		(unsigned long long)atomic_load(&bed->claimed),
		(unsigned long long)atomic_load(&bed->published),
		(unsigned long long)atomic_load(&bed->removed),
		(unsigned long long)atomic_load(&bed->waits));
	cowsnap_map_destroy(bed->map);
	pthread_barrier_destroy(&bed->ready);
	free(bed->places);
}

static void run_bed(struct bed *bed, void *(*first)(void *), void *(*second)(void *))
{
	pthread_t writers[THREADS];
	pthread_t others[2];

	open_bed(bed);
	start(&others[0], first, bed);
	start(&others[1], second, bed);
	for (unsigned i = 0; i < THREADS; i++)
		start(&writers[i], writer, bed);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(writers[i], NULL);
	atomic_store(&bed->stop, true);
	pthread_join(others[0], NULL);
	pthread_join(others[1], NULL);
	check_end(bed);
}

/* Many leaves, far apart: the index splits all the time, and the body is made by a race. */
Test(stress_map, the_index_grows)
{
	struct bed bed = {.count = 64 * 4000, .stride = UINT64_C(1) << 21, .steps = 6000};

	run_bed(&bed, reader, reader);
}

/* Few leaves, next to each other: layouts change under readers, claims meet. */
Test(stress_map, leaves_change_their_layout)
{
	for (unsigned round = 0; round < 20; round++) {
		struct bed bed = {.count = 640, .stride = 64, .steps = 300};

		run_bed(&bed, reader, reader);
	}
}

Test(stress_map, claims_against_removal)
{
	struct bed bed = {.count = 320, .stride = 64, .steps = 1000, .removals = 60000};

	run_bed(&bed, reader, remover);
}

/* Leaves get empty and lose their memory to others, while they are read. */
Test(stress_map, removal_over_many_leaves)
{
	struct bed bed = {.count = 64 * 40, .stride = 4096, .steps = 1000, .removals = 60000};

	run_bed(&bed, remover, reader);
}

Test(stress_map, replacement_under_readers)
{
	for (unsigned round = 0; round < 5; round++) {
		struct bed bed = {
			.count = 1280, .stride = 64, .steps = 1000, .replacements = 20000};

		run_bed(&bed, reader, replacer);
	}
}
