/* SPDX-License-Identifier: MIT
 *
 * Look-ups against changes of the map, in every interleaving of one look-up with one change that is
 * whole in the other: the sources are compiled into this file with a hook at each atomic load and
 * store. At the k-th load of a look-up the change is made; at the k-th load or store of a change
 * the look-up is made; for k = 0, 1, 2 ... until the hook is not reached any more. What a look-up
 * says must have been so before the change, after it, or (where the change has several steps)
 * between. No threads, no luck.
 */
#include "support/test.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static struct {
	bool armed;
	unsigned at; /* points still to pass */
	void (*action)(void);
} hook;

static void hook_point(void)
{
	if (!hook.armed)
		return;
	if (hook.at-- > 0)
		return;
	hook.armed = false;
	hook.action();
}

#undef atomic_load_explicit
#undef atomic_store_explicit
#if defined(__clang__)
#define atomic_load_explicit(object, order) (hook_point(), __c11_atomic_load(object, order))
#define atomic_store_explicit(object, value, order) \
	(hook_point(), __c11_atomic_store(object, value, order))
#else
#define atomic_load_explicit(object, order)         \
	__extension__({                             \
		__auto_type at_ = (object);         \
		__typeof__((void)0, *at_) value_;   \
		hook_point();                       \
		__atomic_load(at_, &value_, order); \
		value_;                             \
	})
#define atomic_store_explicit(object, value, order)         \
	__extension__({                                     \
		__auto_type at_ = (object);                 \
		__typeof__((void)0, *at_) value_ = (value); \
		hook_point();                               \
		__atomic_store(at_, &value_, order);        \
	})
#endif

/* Two files have helpers of the same name. */
#define own leaf_own
#define set leaf_set
#include "map_leaf.c"
#undef own
#undef set
#include "map.c"
#include "map_body.c"
#include "map_index.c"
#include "map_read.c"
#include "pool.c"

#define ABSENT UINT64_MAX
#define X      37u

static struct cowsnap_map *map;
static uint64_t seen; /* by the look-up that ran inside a change */

static void put_at(uint64_t chunk, uint64_t count, uint64_t location)
{
	struct cowsnap_run run;

	cr_assert_eq(cowsnap_map_claim(map, chunk, count, &run), COWSNAP_CLAIM_MINE);
	cr_assert_eq(run.count, count);
	run.location = location;
	cowsnap_map_publish(map, &run);
}

/* The three ways to look; they need not agree with each other while a change is under way. */
static uint64_t look_up(uint64_t chunk)
{
	uint64_t location = ABSENT;

	return cowsnap_map_lookup(map, chunk, &location) ? location : ABSENT;
}

static uint64_t look_window(uint64_t chunk)
{
	uint64_t locations[64];
	uint64_t base = chunk & ~UINT64_C(63);

	return cs_map_window(map, base, 64, locations) >> chunk % 64 & 1 ? locations[chunk % 64]
									 : ABSENT;
}

/* Any location stands for all: this one only says whether. */
static uint64_t look_done(uint64_t chunk)
{
	return cowsnap_map_done(map, chunk, 1) ? UINT64_MAX - 1 : ABSENT;
}

struct scenario {
	const char *name;
	uint64_t chunk; /* that is looked for */
	void (*prepare)(void);
	void (*change)(void);
	bool gap; /* the chunk may be absent for a moment */
};

static const struct scenario *current;
static uint64_t (*looker)(uint64_t chunk);

static void look_inside(void)
{
	seen = looker(current->chunk);
}

static void open_scenario(void)
{
	cr_assert_eq(cowsnap_map_create(NULL, &map), 0);
	current->prepare();
}

static void check_seen(uint64_t before, uint64_t after, unsigned k, const char *what)
{
	cr_assert(seen == before || seen == after || (current->gap && seen == ABSENT),
		"%s, %s, point %u: saw %llx, before %llx, after %llx", current->name, what, k,
		(unsigned long long)seen, (unsigned long long)before, (unsigned long long)after);
}

/* Returns false once the hook was not reached. */
static bool change_inside_look(unsigned k)
{
	uint64_t before;
	bool reached;

	open_scenario();
	before = looker(current->chunk);
	hook.at = k;
	hook.action = current->change;
	hook.armed = true;
	seen = looker(current->chunk);
	reached = !hook.armed;
	hook.armed = false;
	if (reached)
		check_seen(before, looker(current->chunk), k, "change inside look-up");
	cowsnap_map_destroy(map);
	return reached;
}

static bool look_inside_change(unsigned k)
{
	uint64_t before;
	bool reached;

	open_scenario();
	before = looker(current->chunk);
	hook.at = k;
	hook.action = look_inside;
	hook.armed = true;
	current->change();
	reached = !hook.armed;
	hook.armed = false;
	if (reached)
		check_seen(before, looker(current->chunk), k, "look-up inside change");
	cowsnap_map_destroy(map);
	return reached;
}

static void run_scenario(const struct scenario *scenario)
{
	static uint64_t (*const lookers[])(uint64_t) = {look_up, look_window, look_done};

	current = scenario;
	for (unsigned i = 0; i < sizeof(lookers) / sizeof(lookers[0]); i++) {
		unsigned points = 0;

		looker = lookers[i];
		while (change_inside_look(points))
			points++;
		cr_assert_geq(points, 4, "%s", scenario->name);
		for (points = 0; look_inside_change(points); points++)
			;
		cr_assert_geq(points, 2, "%s", scenario->name);
	}
}

/* ---- Layouts -------------------------------------------------------------------------------- */

/* @count chunks, X among them in the place where a layout ends. */
static void fill_leaf(unsigned count)
{
	for (unsigned i = 1; i < count; i++)
		put_at((X + 5 * i) % 64, 1, 1000 + i);
	put_at(X, 1, 500);
}

static void fill_3(void)
{
	fill_leaf(3);
}

static void fill_4(void)
{
	fill_leaf(4);
}

static void fill_16(void)
{
	fill_leaf(16);
}

static void fill_40(void)
{
	fill_leaf(40);
}

/* A free chunk next to the others: one more is one too many. */
static void add_one(void)
{
	put_at((X + 63) % 64, 1, 77);
}

/* From three to a table at once. */
static void add_many(void)
{
	struct cowsnap_run run;

	cr_assert_eq(cowsnap_map_claim(map, X + 6, 4, &run), COWSNAP_CLAIM_MINE);
	cr_assert_eq(cowsnap_map_claim(map, 0, 32, &run), COWSNAP_CLAIM_MINE);
	run.location = 9000;
	cowsnap_map_publish(map, &run);
}

/* All the way up, within one look-up. */
static void add_step_by_step(void)
{
	put_at((X + 63) % 64, 1, 71);
	for (unsigned i = 4; i < 20; i++)
		put_at((X + 5 * i) % 64, 1, 2000 + i);
}

static void replace_x(void)
{
	cr_assert_eq(cowsnap_map_replace(map, X, 501), 0);
}

static void remove_x(void)
{
	cr_assert_eq(cowsnap_map_remove(map, X, 1), 1);
}

static void move_x(void)
{
	remove_x();
	/* Takes the place that X had, where places are marked. */
	put_at(60, 1, 600);
	put_at(X, 1, 502);
}

/* The leaf's memory goes to others of its stripe, whose entries have the same numbers in
 * the same places. */
static void empty_and_reuse(void)
{
	unsigned stripe = cs_index_stripe(cs_index_hash(0));
	unsigned others = 0;

	cr_assert_gt(cowsnap_map_remove(map, 0, 64), 0);
	for (uint64_t key = 1; others < 6; key++) {
		if (cs_index_stripe(cs_index_hash(key)) != stripe)
			continue;
		others++;
		put_at(key * 64 + 32, 16, 7000);
	}
}

/* The list that the leaf gives up is filled by another in the same way. */
static void add_one_and_reuse(void)
{
	unsigned stripe = cs_index_stripe(cs_index_hash(0));
	uint64_t key = 1;

	add_one();
	while (cs_index_stripe(cs_index_hash(key)) != stripe)
		key++;
	put_at(key * 64 + 32, 16, 7000);
}

static void empty_and_refill(void)
{
	empty_and_reuse();
	fill_leaf(24);
	cr_assert_eq(cowsnap_map_replace(map, X, 503), 0);
}

Test(map_races, layouts)
{
	static const struct scenario scenarios[] = {
		{"few to list", X, fill_4, add_one, false},
		{"list to table", X, fill_16, add_one, false},
		{"list to table, list reused", X, fill_16, add_one_and_reuse, false},
		{"few to table", X, fill_3, add_many, false},
		{"few to list to table", X, fill_4, add_step_by_step, false},
		{"replace, few", X, fill_4, replace_x, false},
		{"replace, list", X, fill_16, replace_x, false},
		{"replace, table", X, fill_40, replace_x, false},
		{"remove, few", X, fill_4, remove_x, false},
		{"remove, list", X, fill_16, remove_x, false},
		{"remove, table", X, fill_40, remove_x, false},
		{"move, few", X, fill_3, move_x, true},
		{"move, list", X, fill_16, move_x, true},
		{"move, table", X, fill_40, move_x, true},
		{"another's memory, few", X, fill_4, empty_and_reuse, true},
		{"another's memory, list", X, fill_16, empty_and_reuse, true},
		{"another's memory, table", X, fill_40, empty_and_reuse, true},
		{"and back, few", X, fill_4, empty_and_refill, true},
		{"and back, list", X, fill_16, empty_and_refill, true},
		{"and back, table", X, fill_40, empty_and_refill, true},
	};

	for (unsigned i = 0; i < sizeof(scenarios) / sizeof(scenarios[0]); i++)
		run_scenario(&scenarios[i]);
}

/* ---- Index ---------------------------------------------------------------------------------- */

enum { LEAVES = 230, MORE = 90 };

/* The number of leaves at which splits begin is just passed. */
static void fill_index(void)
{
	for (uint64_t i = 0; i < LEAVES; i++)
		put_at(i * 64 * 1021, 1, i);
}

static void grow_index(void)
{
	for (uint64_t i = LEAVES; i < LEAVES + MORE; i++)
		put_at(i * 64 * 1021, 1, i);
}

/* The i-th key of the first bucket, as long as there are 64. */
static uint64_t key_of_bucket_0(unsigned i)
{
	uint64_t key = 0;

	for (unsigned found = 0;; key++) {
		if (cs_index_hash(key) % CS_STRIPES == 0 && found++ == i)
			return key;
	}
}

static void fill_bucket(void)
{
	for (unsigned i = 0; i < CS_BUCKET_SLOTS; i++)
		put_at(key_of_bucket_0(i) * 64, 1, i);
}

static void overfill_bucket(void)
{
	for (unsigned i = CS_BUCKET_SLOTS; i < 3 * CS_BUCKET_SLOTS; i++)
		put_at(key_of_bucket_0(i) * 64, 1, i);
}

/* The last slot becomes a link; its leaf moves. */
Test(map_races, overflow)
{
	for (unsigned i = 0; i < CS_BUCKET_SLOTS; i++) {
		const struct scenario scenario = {
			"overflow", key_of_bucket_0(i) * 64, fill_bucket, overfill_bucket, false};

		run_scenario(&scenario);
	}
}

/* Each leaf is looked for while buckets are split and others fill up. */
Test(map_races, index)
{
	for (uint64_t i = 0; i < LEAVES; i += 3) {
		const struct scenario scenario = {
			"index", i * 64 * 1021, fill_index, grow_index, false};

		current = &scenario;
		looker = look_up;
		for (unsigned k = 0; change_inside_look(k); k++)
			;
	}
}

Test(map_races, look_ups_inside_splits)
{
	for (uint64_t i = 0; i < LEAVES; i += 29) {
		const struct scenario scenario = {
			"index", i * 64 * 1021, fill_index, grow_index, false};

		current = &scenario;
		looker = look_up;
		for (unsigned k = i % 7; look_inside_change(k); k += 7)
			;
	}
}

/* A walk that is interrupted by a change misses nothing that stays. */
static unsigned char visited[LEAVES];

static void visit_leaf_of(void *user, const struct cowsnap_run *run)
{
	uint64_t i = run->first / (64 * 1021);

	(void)user;
	if (i < LEAVES)
		visited[i] = 1;
}

Test(map_races, walks)
{
	for (unsigned k = 0;; k += 3) {
		uint64_t cursor = 0;
		bool reached;

		cr_assert_eq(cowsnap_map_create(NULL, &map), 0);
		fill_index();
		memset(visited, 0, sizeof(visited));
		hook.at = k;
		hook.action = grow_index;
		hook.armed = true;
		while (cowsnap_map_walk(map, &cursor, 7, visit_leaf_of, NULL))
			;
		reached = !hook.armed;
		hook.armed = false;
		for (unsigned i = 0; i < LEAVES; i++)
			cr_assert(visited[i], "leaf %u, point %u", i, k);
		cowsnap_map_destroy(map);
		if (!reached)
			return;
	}
}
