/* SPDX-License-Identifier: MIT
 *
 * The exception map on one thread: each operation in each state, the edges of leaves and of the
 * number range, growth, memory, failure at every allocation. Against a plain array:
 * test_map_model.c. Several threads: stress/stress_map.c.
 */
#include "support/test.h"

#include "map.h"
#include "support/fail_alloc.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct fail_alloc *mem;
static struct cowsnap_map *map;

static void open_map(void)
{
	mem = fail_alloc_create(false);
	cr_assert_eq(cowsnap_map_create(fail_alloc_table(mem), &map), 0);
}

static void close_map(void)
{
	cowsnap_map_destroy(map);
	cr_assert_eq(fail_alloc_live(mem), 0);
	fail_alloc_destroy(mem);
}

TestSuite(map, .init = open_map, .fini = close_map);

static void put(uint64_t first, uint64_t count, uint64_t location)
{
	struct cowsnap_run run;

	cr_assert_eq(cowsnap_map_claim(map, first, count, &run), COWSNAP_CLAIM_MINE);
	cr_assert_eq(run.first, first);
	cr_assert_eq(run.count, count);
	run.location = location;
	cowsnap_map_publish(map, &run);
}

static void claim(uint64_t first, uint64_t count)
{
	struct cowsnap_run run;

	cr_assert_eq(cowsnap_map_claim(map, first, count, &run), COWSNAP_CLAIM_MINE);
	cr_assert_eq(run.first, first);
	cr_assert_eq(run.count, count);
}

static void give_up(uint64_t first, uint64_t count)
{
	const struct cowsnap_run run = {.first = first, .count = count};

	cowsnap_map_abort(map, &run);
}

static void check_run(
	const struct cowsnap_run *run, uint64_t first, uint64_t count, uint64_t location)
{
	cr_assert_eq(run->first, first, "first %llu", (unsigned long long)run->first);
	cr_assert_eq(run->count, count, "count %llu", (unsigned long long)run->count);
	cr_assert_eq(run->location, location, "location %llu", (unsigned long long)run->location);
}

static void check_at(uint64_t chunk, uint64_t location)
{
	uint64_t found = 0;

	cr_assert(cowsnap_map_lookup(map, chunk, &found), "chunk %llu", (unsigned long long)chunk);
	cr_assert_eq(found, location, "chunk %llu at %llu", (unsigned long long)chunk,
		(unsigned long long)found);
}

static void check_free(uint64_t chunk)
{
	uint64_t found = 77;

	cr_assert_not(cowsnap_map_lookup(map, chunk, &found));
	cr_assert_not(cowsnap_map_done(map, chunk, 1));
	cr_assert_eq(found, 77);
}

/* ---- Empty ---------------------------------------------------------------------------------- */

Test(map, empty)
{
	struct cowsnap_run run;
	struct cowsnap_map_waiter waiter = {0};
	uint64_t cursor = 0;

	check_free(0);
	check_free(COWSNAP_CHUNK_MAX);
	cr_assert(cowsnap_map_done(map, 5, 0));
	cr_assert_eq(cowsnap_map_count(map), 0);
	cr_assert_leq(cowsnap_map_memory(map), 96);
	cr_assert_leq(sizeof(struct cowsnap_map), 96);
	cr_assert_eq(cowsnap_map_remove(map, 0, UINT64_MAX), 0);
	cr_assert_eq(cowsnap_map_replace(map, 3, 4), -ENOENT);
	cr_assert_eq(cowsnap_map_wait(map, 3, &waiter), -EAGAIN);
	cr_assert_not(cowsnap_map_next(map, 0, UINT64_MAX, &run));
	cr_assert_not(cowsnap_map_walk(map, &cursor, 10, NULL, NULL));
	/* Only the handle was allocated. */
	cr_assert_eq(fail_alloc_calls(mem), 1);
}

Test(map, ending_what_was_never_claimed_does_nothing)
{
	const struct cowsnap_run run = {.first = 60, .count = 8, .location = 1};

	cowsnap_map_publish(map, &run);
	cowsnap_map_abort(map, &run);
	claim(62, 1);
	cowsnap_map_publish(map, &run);
	check_at(62, 3);
	cr_assert_eq(cowsnap_map_count(map), 1);
	cowsnap_map_abort(map, &run);
	check_at(62, 3);
}

Test(map, created_with_an_incomplete_table)
{
	struct cowsnap_allocator table = *fail_alloc_table(mem);
	struct cowsnap_map *other = NULL;

	table.free = NULL;
	cr_assert_eq(cowsnap_map_create(&table, &other), -EINVAL);
	cr_assert_eq(cowsnap_map_create(NULL, &other), 0);
	cowsnap_map_destroy(other);
	cowsnap_map_destroy(NULL);
}

/* ---- Claims --------------------------------------------------------------------------------- */

Test(map, claims_out_of_bounds)
{
	struct cowsnap_run run;

	cr_assert_eq(cowsnap_map_claim(map, 0, 0, &run), -EINVAL);
	cr_assert_eq(cowsnap_map_claim(map, COWSNAP_CHUNK_MAX, 2, &run), -EOVERFLOW);
	cr_assert_eq(cowsnap_map_claim(map, COWSNAP_CHUNK_MAX + 1, 1, &run), -EOVERFLOW);
	cr_assert_eq(cowsnap_map_claim(map, 1, UINT64_MAX, &run), -EOVERFLOW);
	cr_assert_eq(cowsnap_map_claim(map, UINT64_MAX, UINT64_MAX, &run), -EOVERFLOW);
	put(COWSNAP_CHUNK_MAX, 1, 9);
	check_at(COWSNAP_CHUNK_MAX, 9);
	cr_assert(cowsnap_map_done(map, COWSNAP_CHUNK_MAX, 1));
	cr_assert_not(cowsnap_map_done(map, COWSNAP_CHUNK_MAX, 2));
	cr_assert_not(cowsnap_map_done(map, UINT64_MAX, 1));
	cr_assert_eq(cowsnap_map_remove(map, UINT64_MAX, 1), 0);
	cr_assert_eq(cowsnap_map_remove(map, COWSNAP_CHUNK_MAX, UINT64_MAX), 1);
}

Test(map, states_of_a_chunk)
{
	struct cowsnap_run run;

	claim(100, 1);
	check_free(100);
	cr_assert_eq(cowsnap_map_claim(map, 100, 1, &run), COWSNAP_CLAIM_BUSY);
	cr_assert_eq(run.first, 100);
	cr_assert_eq(run.count, 1);
	give_up(100, 1);
	claim(100, 1);
	run = (struct cowsnap_run){100, 1, 5};
	cowsnap_map_publish(map, &run);
	check_at(100, 5);
	cr_assert_eq(cowsnap_map_claim(map, 100, 1, &run), COWSNAP_CLAIM_NOTHING);
	cr_assert_eq(cowsnap_map_remove(map, 100, 1), 1);
	check_free(100);
	put(100, 1, 6);
	check_at(100, 6);
}

/* Whatever the range and what is done in it, a claim is the first free run and no shorter. */
Test(map, claims_are_as_long_as_possible)
{
	struct cowsnap_run run;

	claim(10, 500);
	give_up(10, 500);
	put(64, 64, 1000);
	put(200, 1, 2000);
	cr_assert_eq(cowsnap_map_claim(map, 64, 500, &run), COWSNAP_CLAIM_MINE);
	cr_assert_eq(run.first, 128);
	cr_assert_eq(run.count, 72);
	give_up(128, 72);
	cr_assert_eq(cowsnap_map_claim(map, 3, 500, &run), COWSNAP_CLAIM_MINE);
	cr_assert_eq(run.first, 3);
	cr_assert_eq(run.count, 61);
	/* Of a claim, parts end one by one. */
	give_up(3, 1);
	run = (struct cowsnap_run){4, 59, 300};
	cowsnap_map_publish(map, &run);
	give_up(63, 1);
	cr_assert_eq(cowsnap_map_claim(map, 4, 61, &run), COWSNAP_CLAIM_MINE);
	cr_assert_eq(run.first, 63);
	cr_assert_eq(run.count, 1);
}

Test(map, a_claim_stops_before_what_is_busy)
{
	struct cowsnap_run run;

	for (unsigned at = 0; at < 140; at++) {
		claim(at, 1);
		if (at > 0) {
			cr_assert_eq(cowsnap_map_claim(map, 0, 200, &run), COWSNAP_CLAIM_MINE);
			cr_assert_eq(run.first, 0);
			cr_assert_eq(run.count, at);
			give_up(0, at);
		}
		give_up(at, 1);
	}
}

Test(map, busy_runs_are_reported)
{
	struct cowsnap_run run;

	put(0, 10, 0);
	claim(10, 4);
	cr_assert_eq(cowsnap_map_claim(map, 0, 100, &run), COWSNAP_CLAIM_BUSY);
	cr_assert_eq(run.first, 10);
	cr_assert_eq(run.count, 4);
	cr_assert_eq(cowsnap_map_claim(map, 11, 2, &run), COWSNAP_CLAIM_BUSY);
	cr_assert_eq(run.first, 11);
	cr_assert_eq(run.count, 2);
	claim(63, 65);
	cr_assert_eq(cowsnap_map_claim(map, 64, 64, &run), COWSNAP_CLAIM_BUSY);
	cr_assert_eq(run.first, 64);
	cr_assert_eq(run.count, 64);
}

Test(map, edges_of_leaves)
{
	static const uint64_t edges[] = {0, 1, 62, 63, 64, 65, 127, 128, 4095, 4096};

	for (unsigned i = 0; i < sizeof(edges) / sizeof(edges[0]); i++)
		put(edges[i], 1, edges[i] * 3);
	for (unsigned i = 0; i < sizeof(edges) / sizeof(edges[0]); i++)
		check_at(edges[i], edges[i] * 3);
	check_free(2);
	check_free(61);
	check_free(66);
	check_free(126);
	check_free(129);
	cr_assert(cowsnap_map_done(map, 62, 4));
	cr_assert_not(cowsnap_map_done(map, 62, 5));
	cr_assert_not(cowsnap_map_done(map, 61, 2));
	cr_assert(cowsnap_map_done(map, 127, 2));
	cr_assert(cowsnap_map_done(map, 4095, 2));
	put(1000, 1000, 5);
	cr_assert(cowsnap_map_done(map, 1000, 1000));
	cr_assert_not(cowsnap_map_done(map, 999, 1001));
	cr_assert_not(cowsnap_map_done(map, 1000, 1001));
}

Test(map, extreme_locations)
{
	put(1, 1, COWSNAP_LOCATION_MAX);
	put(2, 1, 0);
	put(3, 60, COWSNAP_LOCATION_NONE);
	put(COWSNAP_CHUNK_MAX - 63, 64, COWSNAP_LOCATION_MAX - 63);
	check_at(1, COWSNAP_LOCATION_MAX);
	check_at(2, 0);
	check_at(3, COWSNAP_LOCATION_NONE);
	check_at(62, COWSNAP_LOCATION_NONE);
	check_at(COWSNAP_CHUNK_MAX, COWSNAP_LOCATION_MAX);
}

/* ---- Growth --------------------------------------------------------------------------------- */

/* Through each layout of a leaf, in several orders, looked at after each step. */
static void grow_leaf(uint64_t base, unsigned stride)
{
	for (unsigned i = 0; i < 64; i++) {
		put(base + i * stride % 64, 1, stride * 1000 + i);
		for (unsigned j = 0; j <= i; j++)
			check_at(base + j * stride % 64, stride * 1000 + j);
	}
	cr_assert(cowsnap_map_done(map, base, 64));
}

Test(map, a_leaf_grows_through_its_layouts)
{
	grow_leaf(0, 1);
	grow_leaf(64, 63);
	grow_leaf(640, 17);
	grow_leaf(6400, 33);
	grow_leaf(UINT64_C(1) << 60, 31);
	cr_assert_eq(cowsnap_map_count(map), 5 * 64);
}

/* Room is set aside at the claim: claims of any size, published in any order, always fit. */
Test(map, publishing_needs_no_memory)
{
	for (unsigned size = 1; size <= 64; size++) {
		uint64_t base = size * 64;

		for (unsigned i = 0; i < 64; i += size)
			claim(base + i, i + size > 64 ? 64 - i : size);
		fail_alloc_at(mem, 1, true);
		for (unsigned i = 64; i-- > 0;) {
			const struct cowsnap_run run = {base + i, 1, base + i};

			cowsnap_map_publish(map, &run);
		}
		cr_assert_eq(fail_alloc_calls(mem), 0);
		fail_alloc_at(mem, 0, false);
		for (unsigned i = 0; i < 64; i++)
			check_at(base + i, base + i);
	}
}

Test(map, many_leaves)
{
	enum { LEAVES = 20000 };

	/* A stride that a poor hash would put into one bucket. */
	for (uint64_t i = 0; i < LEAVES; i++)
		put(i << 21, 1, i);
	for (uint64_t i = 0; i < LEAVES; i++) {
		check_at(i << 21, i);
		check_free((i << 21) + (1 << 20));
	}
	cr_assert_eq(cowsnap_map_count(map), LEAVES);
	cr_assert_leq(cowsnap_map_memory(map), LEAVES * UINT64_C(100));
}

Test(map, dense_memory)
{
	enum { CHUNKS = 1 << 19, MULTIPLIER = 77773 };
	uint64_t bytes;

	for (uint64_t i = 0; i < CHUNKS; i++)
		put(i * MULTIPLIER % CHUNKS, 1, i);
	bytes = cowsnap_map_memory(map);
	cr_assert_leq(bytes, CHUNKS * UINT64_C(10));
	cr_assert_geq(bytes, CHUNKS * UINT64_C(8));
	/* All is free again, and the memory for locations is used for others. */
	cr_assert_eq(cowsnap_map_remove(map, 0, CHUNKS), CHUNKS);
	cr_assert_eq(cowsnap_map_count(map), 0);
	put(CHUNKS, CHUNKS / 2, 0);
	cr_assert_leq(cowsnap_map_memory(map), bytes * 11 / 10);
	/* The allocator agrees. */
	cr_assert_eq(fail_alloc_live_bytes(mem), cowsnap_map_memory(map));
}

/* ---- Waiters -------------------------------------------------------------------------------- */

struct counted {
	struct cowsnap_map_waiter waiter;
	unsigned woken;
};

static void count_wake(struct cowsnap_map_waiter *waiter)
{
	/* It is the owner's again: the map must not look at it any more. */
	waiter->next = NULL;
	waiter->chunk = UINT64_MAX;
	((struct counted *)(void *)waiter)->woken++;
}

static void queue(struct counted *counted, uint64_t chunk)
{
	counted->waiter.wake = count_wake;
	counted->woken = 0;
	cr_assert_eq(cowsnap_map_wait(map, chunk, &counted->waiter), 0);
}

Test(map, waiters_are_woken_once)
{
	struct counted waiters[40];
	const struct cowsnap_run run = {20, 1, 1};

	claim(0, 40);
	for (unsigned i = 0; i < 40; i++)
		queue(&waiters[i], i);
	cowsnap_map_publish(map, &run);
	for (unsigned i = 0; i < 40; i++)
		cr_assert_eq(waiters[i].woken, 1);
	cr_assert_eq(cowsnap_map_wait(map, 20, &waiters[20].waiter), -EAGAIN);
	cr_assert_eq(cowsnap_map_wait(map, 41, &waiters[20].waiter), -EAGAIN);
	queue(&waiters[0], 39);
	give_up(0, 20);
	cr_assert_eq(waiters[0].woken, 1);
	give_up(21, 19);
	cr_assert_eq(waiters[0].woken, 1);
	cr_assert_eq(cowsnap_map_wait(map, 39, &waiters[0].waiter), -EAGAIN);
}

/* Leaves share stripes; their waiters do not mix. */
Test(map, waiters_of_other_leaves_stay)
{
	enum { LEAVES = 300 };
	static struct counted waiters[LEAVES];

	for (unsigned i = 0; i < LEAVES; i++) {
		claim(i * 64, 1);
		queue(&waiters[i], i * 64);
	}
	for (unsigned i = 0; i < LEAVES; i += 2)
		give_up(i * 64, 1);
	for (unsigned i = 0; i < LEAVES; i++)
		cr_assert_eq(waiters[i].woken, i % 2 ? 0 : 1);
	for (unsigned i = 1; i < LEAVES; i += 2)
		give_up(i * 64, 1);
	for (unsigned i = 0; i < LEAVES; i++)
		cr_assert_eq(waiters[i].woken, 1);
}

static void claim_again(struct cowsnap_map_waiter *waiter)
{
	struct counted *counted = (struct counted *)(void *)waiter;

	/* No lock is held here. */
	counted->woken++;
	claim(7, 1);
}

Test(map, a_waiter_may_use_the_map)
{
	struct counted counted = {.waiter.wake = claim_again};

	claim(7, 1);
	cr_assert_eq(cowsnap_map_wait(map, 7, &counted.waiter), 0);
	give_up(7, 1);
	cr_assert_eq(counted.woken, 1);
	queue(&counted, 7);
	give_up(7, 1);
	cr_assert_eq(counted.woken, 1);
}

/* ---- Changes -------------------------------------------------------------------------------- */

Test(map, replace)
{
	for (unsigned size = 1; size <= 64; size *= 4) {
		uint64_t base = size * 64;

		put(base, size, 100);
		claim(base + size, 1);
		cr_assert_eq(cowsnap_map_replace(map, base + size, 1), -ENOENT);
		for (unsigned i = 0; i < size; i++)
			cr_assert_eq(cowsnap_map_replace(map, base + i, 500 - i), 0);
		for (unsigned i = 0; i < size; i++)
			check_at(base + i, 500 - i);
		cr_assert_eq(cowsnap_map_replace(map, base, COWSNAP_LOCATION_NONE), 0);
		check_at(base, COWSNAP_LOCATION_NONE);
		give_up(base + size, 1);
	}
}

Test(map, remove_leaves_what_is_busy)
{
	put(0, 30, 100);
	claim(30, 4);
	put(34, 200, 200);
	cr_assert_eq(cowsnap_map_count(map), 230);
	cr_assert_eq(cowsnap_map_remove(map, 10, 30), 26);
	cr_assert_eq(cowsnap_map_count(map), 204);
	for (unsigned i = 0; i < 10; i++)
		check_at(i, 100 + i);
	for (unsigned i = 10; i < 40; i++)
		check_free(i);
	check_at(40, 206);
	cowsnap_map_publish(map, &(struct cowsnap_run){30, 4, 900});
	check_at(33, 903);
	cr_assert_eq(cowsnap_map_remove(map, 0, 1000), 208);
	cr_assert_eq(cowsnap_map_remove(map, 0, 1000), 0);
	cr_assert_eq(cowsnap_map_count(map), 0);
}

/* Entries are freed and taken again in each layout, with busy neighbours that need their room. */
Test(map, remove_and_claim_again)
{
	for (unsigned kept = 0; kept < 64; kept++) {
		uint64_t base = kept * 64;

		put(base, kept ? kept : 1, 10);
		for (unsigned round = 0; round < 40; round++) {
			unsigned i = round * 7 % (kept ? kept : 1);

			cr_assert_eq(cowsnap_map_remove(map, base + i, 1), 1);
			check_free(base + i);
			put(base + i, 1, 1000 + round);
			check_at(base + i, 1000 + round);
		}
		cr_assert(cowsnap_map_done(map, base, kept ? kept : 1));
	}
}

/* ---- Runs in order, and walks --------------------------------------------------------------- */

Test(map, next_goes_in_order_over_gaps)
{
	struct cowsnap_run run;

	put(5, 3, 100);
	put(8, 2, 200);
	put(60, 200, 300);
	put(100000, 1, COWSNAP_LOCATION_MAX);
	put(100001, 70, COWSNAP_LOCATION_NONE);
	cr_assert(cowsnap_map_next(map, 0, UINT64_MAX, &run));
	check_run(&run, 5, 3, 100);
	cr_assert(cowsnap_map_next(map, 8, UINT64_MAX, &run));
	check_run(&run, 8, 2, 200);
	cr_assert(cowsnap_map_next(map, 10, UINT64_MAX, &run));
	check_run(&run, 60, 200, 300);
	cr_assert(cowsnap_map_next(map, 70, 200, &run));
	check_run(&run, 70, 130, 310);
	cr_assert(cowsnap_map_next(map, 70, 128, &run));
	check_run(&run, 70, 58, 310);
	cr_assert(cowsnap_map_next(map, 260, UINT64_MAX, &run));
	check_run(&run, 100000, 1, COWSNAP_LOCATION_MAX);
	cr_assert(cowsnap_map_next(map, 100001, 200000, &run));
	check_run(&run, 100001, 70, COWSNAP_LOCATION_NONE);
	cr_assert_not(cowsnap_map_next(map, 260, 100000, &run));
	cr_assert_not(cowsnap_map_next(map, 100071, 200000, &run));
	cr_assert_not(cowsnap_map_next(map, 7, 7, &run));
}

Test(map, windows)
{
	uint64_t locations[64];

	put(130, 5, 50);
	put(140, 1, 7);
	cr_assert_eq(cs_map_window(map, 128, 64, locations), UINT64_C(0x107c));
	cr_assert_eq(locations[2], 50);
	cr_assert_eq(locations[6], 54);
	cr_assert_eq(locations[12], 7);
	cr_assert_eq(cs_map_window(map, 131, 4, locations), 0xf);
	cr_assert_eq(locations[0], 51);
	cr_assert_eq(cs_map_done_mask(map, 131, 10), 0x20f);
	cr_assert_eq(cs_map_window(map, 64, 64, locations), 0);
	cr_assert_eq(cs_map_done_mask(map, 0, 64), 0);
}

enum { WALK_CHUNKS = 60000 };

struct seen {
	unsigned char times[WALK_CHUNKS];
	unsigned runs;
	bool remove;
};

static void see(void *user, const struct cowsnap_run *run)
{
	struct seen *seen = user;

	seen->runs++;
	for (uint64_t i = 0; i < run->count; i++) {
		cr_assert_eq(run->location + i, 2 * (run->first + i));
		seen->times[run->first + i]++;
	}
	if (seen->remove)
		cr_assert_eq(cowsnap_map_remove(map, run->first, run->count), run->count);
}

Test(map, walks_resume)
{
	static const uint64_t steps[] = {0, 1, 3, 100, UINT64_MAX};
	struct seen *seen = malloc(sizeof(*seen));

	for (uint64_t i = 0; i < WALK_CHUNKS; i += 3)
		put(i, 1, 2 * i);
	for (unsigned s = 0; s < sizeof(steps) / sizeof(steps[0]); s++) {
		uint64_t cursor = 0;

		memset(seen, 0, sizeof(*seen));
		seen->remove = s + 1 == sizeof(steps) / sizeof(steps[0]);
		while (cowsnap_map_walk(map, &cursor, steps[s], see, seen)) {
			cr_assert_leq(seen->runs, 22 * (steps[s] ? steps[s] : 1));
			seen->runs = 0;
		}
		cr_assert_not(cowsnap_map_walk(map, &cursor, 1, see, seen));
		for (uint64_t i = 0; i < WALK_CHUNKS; i++)
			cr_assert_eq(seen->times[i], i % 3 ? 0 : 1);
	}
	cr_assert_eq(cowsnap_map_count(map), 0);
	free(seen);
}

/* What is done all the time is seen, though the index grows during the walk. */
Test(map, walks_see_all_while_the_map_grows)
{
	struct seen *seen = calloc(1, sizeof(*seen));
	uint64_t cursor = 0;
	uint64_t more = WALK_CHUNKS;

	for (uint64_t i = 0; i < WALK_CHUNKS; i += 64)
		put(i, 1, 2 * i);
	while (cowsnap_map_walk(map, &cursor, 1, see, seen)) {
		/* Two new leaves for each visited, for a while; empty, so there is nothing to see.
		 */
		for (unsigned i = 0; i < 2 && more < 20 * WALK_CHUNKS; i++, more += 64) {
			claim(more, 1);
			give_up(more, 1);
		}
	}
	for (uint64_t i = 0; i < WALK_CHUNKS; i += 64)
		cr_assert_geq(seen->times[i], 1);
	free(seen);
}

/* ---- Failure -------------------------------------------------------------------------------- */

/* One body for the sweep: claims of all kinds. A claim that fails has changed nothing. */
static bool fill_some(struct cowsnap_map *some)
{
	for (uint64_t i = 0; i < 400; i++) {
		uint64_t first = (i % 2 ? i * 12345 : i) * 16;
		struct cowsnap_run run;
		uint64_t before = cowsnap_map_count(some);
		int state = cowsnap_map_claim(some, first, 1 + i % 70, &run);

		if (state == -ENOMEM) {
			cr_assert_eq(cowsnap_map_count(some), before);
			fail_alloc_at(mem, 0, false);
			state = cowsnap_map_claim(some, first, 1 + i % 70, &run);
			cr_assert_geq(state, 0);
			if (state == COWSNAP_CLAIM_MINE)
				cowsnap_map_abort(some, &run);
			return false;
		}
		cr_assert_neq(state, COWSNAP_CLAIM_BUSY);
		if (state != COWSNAP_CLAIM_MINE)
			continue;
		run.location = run.first;
		cowsnap_map_publish(some, &run);
		cr_assert(cowsnap_map_done(some, run.first, run.count));
	}
	return true;
}

static void check_filled(struct cowsnap_map *some)
{
	uint64_t at = 0;
	uint64_t total = 0;
	struct cowsnap_run run;

	while (cowsnap_map_next(some, at, 400 * 12345 * 16 + 100, &run)) {
		cr_assert_eq(run.location, run.first);
		at = run.first + run.count;
		total += run.count;
	}
	cr_assert_eq(total, cowsnap_map_count(some));
}

static void sweep(bool arenas)
{
	for (uint64_t n = 1;; n++) {
		struct cowsnap_map *some = NULL;
		bool complete = false;
		bool failed;
		int err;

		mem = fail_alloc_create(arenas);
		fail_alloc_at(mem, n, false);
		err = cowsnap_map_create(fail_alloc_table(mem), &some);
		if (err) {
			cr_assert_eq(err, -ENOMEM);
		} else {
			complete = fill_some(some);
			check_filled(some);
		}
		failed = fail_alloc_failed(mem) > 0;
		cowsnap_map_destroy(some);
		cr_assert_eq(fail_alloc_live(mem), 0, "n = %llu", (unsigned long long)n);
		fail_alloc_destroy(mem);
		/* A segment that fails is tried again: complete, though a call failed. */
		if (complete && !failed)
			return;
	}
}

Test(map_failure, every_allocation)
{
	sweep(false);
	sweep(true);
}

/* Nothing can be allocated for good: each claim fails and changes nothing, the rest works on. */
Test(map, no_memory_for_good)
{
	struct cowsnap_run run;
	uint64_t first = 0;

	put(0, 4, 0);
	fail_alloc_at(mem, 1, true);
	while (cowsnap_map_claim(map, first, 1, &run) >= 0)
		first += 64;
	cr_assert_eq(cowsnap_map_claim(map, first, 1, &run), -ENOMEM);
	cr_assert_eq(cowsnap_map_claim(map, first, 1000, &run), -ENOMEM);
	check_free(first);
	check_at(3, 3);
	cr_assert_eq(cowsnap_map_remove(map, 0, 64), 4);
	fail_alloc_at(mem, 0, false);
	claim(first, 1000);
}

/* Blocks of the pool are whole pages; parts of the index are a power of two and a header. */
static void *no_index_alloc(void *user, size_t bytes, size_t align)
{
	const struct cowsnap_allocator *table = fail_alloc_table(user);

	return bytes % 1024 == 64 ? NULL : table->alloc(table->user, bytes, align);
}

static void no_index_free(void *user, void *memory, size_t bytes)
{
	const struct cowsnap_allocator *table = fail_alloc_table(user);

	table->free(table->user, memory, bytes);
}

/* The index cannot grow: chains get long, and everything is still found. */
Test(map, no_memory_for_the_index)
{
	const struct cowsnap_allocator table = {
		.size = sizeof(table), .user = mem, .alloc = no_index_alloc, .free = no_index_free};

	cowsnap_map_destroy(map);
	cr_assert_eq(cowsnap_map_create(&table, &map), 0);
	for (uint64_t i = 0; i < 3000; i++)
		put(i * 64, 1, i);
	for (uint64_t i = 0; i < 3000; i++)
		check_at(i * 64, i);
	cowsnap_map_destroy(map);
	map = NULL;
}
