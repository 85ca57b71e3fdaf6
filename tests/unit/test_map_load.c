/* SPDX-License-Identifier: MIT
 *
 * The bulk load of a map: the same as claims and publications of the same chunks, in whatever order
 * and batches they come; the invariants of the map's parts afterwards; duplicates; failure at every
 * allocation. The seed is printed; COWSNAP_SEED=n replays it.
 */
#include "support/test.h"

#include "map_body.h"
#include "support/fail_alloc.h"
#include "support/seed.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define UNTOUCHED UINT64_C(0xdead)

static struct fail_alloc *mem;
static struct cowsnap_map *map;

static void open_map(void)
{
	mem = fail_alloc_create(true);
	cr_assert_eq(cowsnap_map_create(fail_alloc_table(mem), &map), 0);
}

static void close_map(void)
{
	cowsnap_map_destroy(map);
	cr_assert_eq(fail_alloc_live(mem), 0);
	fail_alloc_destroy(mem);
}

static void renew_map(void)
{
	cowsnap_map_destroy(map);
	cr_assert_eq(cowsnap_map_create(fail_alloc_table(mem), &map), 0);
}

TestSuite(map_load, .init = open_map, .fini = close_map);

/* ---- What a map must be --------------------------------------------------------------------- */

/* Entries that mark themselves as those of a chunk, in a leaf that is no table. */
static unsigned marked_entries(const struct cs_leaf *leaf, unsigned chunk)
{
	uint64_t first = cs_leaf_get(&leaf->word[0]);
	bool list = cs_word_kind(first) == CS_KIND_LIST;
	const _Atomic uint64_t *entries = list ? cs_word_piece(first)->entry : leaf->word;
	unsigned found = 0;

	for (unsigned i = 0; i < (list ? CS_LIST_ENTRIES : CS_LEAF_WORDS); i++)
		found += cs_entry_is_of(cs_leaf_get(&entries[i]), chunk);
	return found;
}

static void check_leaf(const struct cs_leaf *leaf)
{
	uint64_t done = cs_leaf_done(leaf);
	unsigned count = (unsigned)__builtin_popcountll(done);
	uint64_t kind = cs_word_kind(cs_leaf_get(&leaf->word[0]));

	cr_assert_eq(leaf->busy & done, 0);
	if (kind != CS_KIND_TABLE)
		cr_assert_leq(count, kind == CS_KIND_LIST ? CS_LIST_ENTRIES : CS_LEAF_WORDS);
	for (unsigned i = 0; i < CS_LEAF_CHUNKS; i++) {
		bool is_done = done >> i & 1;
		uint64_t entry = cs_leaf_entry(leaf, i);

		cr_assert_eq(cs_entry_is_of(entry, i), is_done);
		if (!is_done)
			cr_assert_eq(entry, 0);
		if (kind != CS_KIND_TABLE)
			cr_assert_eq(marked_entries(leaf, i), is_done);
	}
}

/* The invariants of leaves, index and stripes that can be seen. */
static void check_structure(const struct cowsnap_map *some)
{
	const struct cs_map_body *body = cs_map_body(some);
	uint64_t size = body ? atomic_load(&body->index.size) : 0;
	uint64_t done[CS_STRIPES] = {0};
	uint64_t leaves = 0;

	for (uint64_t bucket = 0; body && bucket < cs_index_count(size); bucket++) {
		const struct cs_leaf *leaf;
		uint64_t place = 0;

		while ((leaf = cs_index_next(&body->index, bucket, &place)) != NULL) {
			uint64_t hash = cs_index_hash(leaf->key);

			cr_assert_eq(cs_index_address(hash, size), bucket);
			cr_assert_eq(cs_index_find(&body->index, leaf->key), leaf);
			check_leaf(leaf);
			done[cs_index_stripe(hash)] +=
				(unsigned)__builtin_popcountll(cs_leaf_done(leaf));
			leaves++;
		}
	}
	if (!body)
		return;
	cr_assert_eq(atomic_load(&body->index.leaves), leaves);
	for (unsigned i = 0; i < CS_STRIPES; i++) {
		cr_assert_eq(atomic_load(&body->stripes[i].done), done[i]);
		cr_assert_null(body->stripes[i].waiters);
	}
}

static int by_chunk(const void *a, const void *b)
{
	const struct cs_map_entry *x = a;
	const struct cs_map_entry *y = b;

	return (x->chunk > y->chunk) - (x->chunk < y->chunk);
}

/* What should be in a map, in order of chunks. */
struct model {
	struct cs_map_entry *entries;
	size_t count;
	size_t walked;
};

static struct model model_of(const struct cs_map_entry *entries, size_t count)
{
	struct model model = {.entries = malloc(count * sizeof(*entries)), .count = count};

	memcpy(model.entries, entries, count * sizeof(*entries));
	qsort(model.entries, count, sizeof(*entries), by_chunk);
	return model;
}

static void walk_run(void *user, const struct cowsnap_run *run)
{
	struct model *model = user;
	struct cs_map_entry key = {.chunk = run->first};
	const struct cs_map_entry *at =
		bsearch(&key, model->entries, model->count, sizeof(key), by_chunk);

	cr_assert_not_null(at);
	for (uint64_t i = 0; i < run->count; i++, at++) {
		cr_assert_lt(at, model->entries + model->count);
		cr_assert_eq(at->chunk, run->first + i);
		cr_assert_eq(at->location, run->location + i);
	}
	model->walked += run->count;
}

/* The map says the same as the model, in each way in which it can be asked. */
static void check_model(struct model *model)
{
	uint64_t cursor = 0;
	uint64_t location;

	check_structure(map);
	cr_assert_eq(cowsnap_map_count(map), model->count);
	for (size_t i = 0; i < model->count; i++) {
		uint64_t chunk = model->entries[i].chunk;
		bool next = i + 1 < model->count && model->entries[i + 1].chunk == chunk + 1;

		cr_assert(cowsnap_map_lookup(map, chunk, &location));
		cr_assert_eq(location, model->entries[i].location);
		cr_assert(cowsnap_map_done(map, chunk, 1));
		cr_assert_eq(cowsnap_map_done(map, chunk, 2), next);
	}
	model->walked = 0;
	while (cowsnap_map_walk(map, &cursor, 100, walk_run, model))
		;
	cr_assert_eq(model->walked, model->count);
}

/* ---- Entries -------------------------------------------------------------------------------- */

enum order { ASCENDING, DESCENDING, RANDOM };

/* @count chunks, each at a distance below 2 * @gap from the one before; any locations. */
static struct cs_map_entry *make_entries(
	struct seed *seed, size_t count, uint64_t first, uint64_t gap, enum order order)
{
	struct cs_map_entry *entries = calloc(count + 1, sizeof(*entries));
	uint64_t chunk = first;

	for (size_t i = 0; i < count; i++) {
		entries[i].chunk = chunk;
		entries[i].location =
			seed_below(seed, 4) ? i + 1 : seed_below(seed, COWSNAP_LOCATION_MAX + 1);
		chunk += 1 + (gap > 1 ? seed_below(seed, 2 * gap - 1) : 0);
	}
	for (size_t i = count; i-- > 1 && order != ASCENDING;) {
		size_t other = order == RANDOM ? seed_below(seed, i + 1) : count - 1 - i;
		struct cs_map_entry moved = entries[i];

		if (order == DESCENDING && other >= i)
			break;
		entries[i] = entries[other];
		entries[other] = moved;
	}
	return entries;
}

static void load_ok(struct cs_map_entry *entries, size_t count, size_t batch)
{
	uint64_t duplicate = UNTOUCHED;

	for (size_t at = 0; at < count; at += batch) {
		size_t part = count - at < batch ? count - at : batch;

		cr_assert_eq(cs_map_load(map, entries + at, part, &duplicate), 0);
	}
	cr_assert_eq(duplicate, UNTOUCHED);
}

static void load_and_check(
	struct seed *seed, size_t count, uint64_t first, uint64_t gap, enum order order)
{
	static const size_t batches[] = {1, 63, 64, 65, 256, 100000};

	for (size_t b = 0; b < sizeof(batches) / sizeof(batches[0]); b++) {
		struct cs_map_entry *entries = make_entries(seed, count, first, gap, order);
		struct model model = model_of(entries, count);

		load_ok(entries, count, batches[b]);
		check_model(&model);
		free(entries);
		free(model.entries);
		renew_map();
	}
}

Test(map_load, nothing)
{
	uint64_t duplicate = UNTOUCHED;

	fail_alloc_at(mem, 0, false);
	cr_assert_eq(cs_map_load(map, NULL, 0, &duplicate), 0);
	cr_assert_eq(fail_alloc_calls(mem), 0);
	cr_assert_eq(cowsnap_map_count(map), 0);
}

Test(map_load, dense_in_each_order)
{
	struct seed seed = seed_for("dense_in_each_order");

	load_and_check(&seed, 5000, 0, 1, ASCENDING);
	load_and_check(&seed, 5000, 30, 1, DESCENDING);
	load_and_check(&seed, 5000, 100, 1, RANDOM);
}

/* Leaves of each layout. */
Test(map_load, sparse_in_each_order)
{
	struct seed seed = seed_for("sparse_in_each_order");

	for (uint64_t gap = 2; gap <= 64; gap *= 2) {
		load_and_check(&seed, 2000, 5, gap, ASCENDING);
		load_and_check(&seed, 2000, 5, gap, DESCENDING);
		load_and_check(&seed, 2000, 5, gap, RANDOM);
	}
}

Test(map_load, isolated_over_all_chunks)
{
	struct seed seed = seed_for("isolated_over_all_chunks");

	load_and_check(&seed, 5000, 0, COWSNAP_CHUNK_MAX / 20000, RANDOM);
	load_and_check(&seed, 5000, 0, COWSNAP_CHUNK_MAX / 20000, ASCENDING);
	load_and_check(&seed, 70, COWSNAP_CHUNK_MAX - 69, 1, RANDOM);
	load_and_check(&seed, 70, COWSNAP_CHUNK_MAX - 69, 1, ASCENDING);
}

Test(map_load, many)
{
	struct seed seed = seed_for("many");
	const size_t count = 100000;
	struct cs_map_entry *entries = make_entries(&seed, count, 0, 4, RANDOM);
	struct model model = model_of(entries, count);

	load_ok(entries, count, 4096);
	check_model(&model);
	cr_assert_not(cs_index_crowded(&cs_map_body(map)->index));
	free(entries);
	free(model.entries);
}

/* ---- Duplicates ----------------------------------------------------------------------------- */

/* @count entries of chunks @step apart, the one at @at again at @again. */
static void load_twice(size_t count, uint64_t step, size_t at, size_t again, size_t batch)
{
	struct cs_map_entry *entries = calloc(count, sizeof(*entries));
	uint64_t duplicate = UNTOUCHED;
	int err = 0;

	for (size_t i = 0; i < count; i++)
		entries[i] = (struct cs_map_entry){.chunk = 7 + i * step, .location = i};
	entries[again] = (struct cs_map_entry){.chunk = 7 + at * step, .location = 99};
	for (size_t i = 0; i < count && !err; i += batch)
		err = cs_map_load(
			map, entries + i, count - i < batch ? count - i : batch, &duplicate);
	cr_assert_eq(err, -EEXIST);
	cr_assert_eq(duplicate, 7 + at * step);
	check_structure(map);
	free(entries);
	cr_assert_leq(cowsnap_map_count(map), again);
	renew_map();
}

Test(map_load, duplicates_in_one_leaf)
{
	load_twice(2, 1, 0, 1, 2);
	load_twice(50, 1, 0, 1, 50);
	load_twice(50, 1, 0, 49, 50);
	load_twice(50, 1, 40, 49, 50);
}

Test(map_load, duplicates_in_other_leaves)
{
	load_twice(50, 64, 3, 4, 50);
	load_twice(50, 64, 3, 40, 50);
	load_twice(500, 64, 3, 400, 500);
}

Test(map_load, duplicates_in_other_batches)
{
	load_twice(50, 1, 3, 4, 1);
	load_twice(500, 64, 3, 400, 100);
	load_twice(500, 1, 3, 400, 100);
}

Test(map_load, duplicates_of_what_was_claimed_and_published)
{
	struct cs_map_entry entries[64];
	struct cowsnap_run run;
	uint64_t duplicate = UNTOUCHED;
	uint64_t location;

	cr_assert_eq(cowsnap_map_claim(map, 20, 10, &run), COWSNAP_CLAIM_MINE);
	run.location = 500;
	cowsnap_map_publish(map, &run);
	/* The first of the array that is done, not the lowest. */
	for (unsigned i = 0; i < 64; i++)
		entries[i] = (struct cs_map_entry){.chunk = 63 - i, .location = i};
	cr_assert_eq(cs_map_load(map, entries, 64, &duplicate), -EEXIST);
	cr_assert_eq(duplicate, 29);
	cr_assert(cowsnap_map_lookup(map, 29, &location));
	cr_assert_eq(location, 509);
	check_structure(map);
}

/* ---- Together with the other operations ----------------------------------------------------- */

/* What others have claimed in a leaf keeps its room, whatever the layout. */
Test(map_load, beside_busy_chunks)
{
	for (unsigned loaded = 1; loaded <= 60; loaded++) {
		uint64_t base = loaded * 64;
		struct cowsnap_run run;
		struct cs_map_entry entry;
		uint64_t duplicate;
		uint64_t location;

		cr_assert_eq(cowsnap_map_claim(map, base, 4, &run), COWSNAP_CLAIM_MINE);
		for (unsigned i = 0; i < loaded; i++) {
			entry = (struct cs_map_entry){.chunk = base + 63 - i, .location = i};
			cr_assert_eq(cs_map_load(map, &entry, 1, &duplicate), 0);
		}
		run.location = 1000;
		cowsnap_map_publish(map, &run);
		check_structure(map);
		cr_assert_eq(cowsnap_map_remove(map, base + 1, 1), 1);
		for (unsigned i = 0; i < loaded; i++) {
			cr_assert(cowsnap_map_lookup(map, base + 63 - i, &location));
			cr_assert_eq(location, i);
		}
		cr_assert(cowsnap_map_lookup(map, base + 3, &location));
		cr_assert_eq(location, 1003);
	}
	check_structure(map);
}

/* A map that was loaded is changed and asked as any other. */
Test(map_load, before_the_other_operations)
{
	struct seed seed = seed_for("before_the_other_operations");
	const size_t count = 20000;
	struct cs_map_entry *entries = make_entries(&seed, count, 1, 2, RANDOM);
	struct model model = model_of(entries, count);
	struct cowsnap_map_waiter waiter = {0};
	struct cowsnap_run run;

	load_ok(entries, count, 1000);
	for (size_t i = 0; i < count; i++) {
		struct cs_map_entry *entry = &model.entries[i];
		uint64_t location = seed_below(&seed, COWSNAP_LOCATION_MAX);

		cr_assert_eq(cowsnap_map_claim(map, entry->chunk, 1, &run), COWSNAP_CLAIM_NOTHING);
		cr_assert_eq(cowsnap_map_wait(map, entry->chunk, &waiter), -EAGAIN);
		if (seed_below(&seed, 2)) {
			entry->location = location;
			cr_assert_eq(cowsnap_map_replace(map, entry->chunk, location), 0);
		}
		if (seed_below(&seed, 2)) {
			entry->location = location;
			cr_assert_eq(cowsnap_map_remove(map, entry->chunk, 1), 1);
			cr_assert_eq(
				cowsnap_map_claim(map, entry->chunk, 1, &run), COWSNAP_CLAIM_MINE);
			run.location = location;
			cowsnap_map_publish(map, &run);
		}
	}
	check_model(&model);
	free(entries);
	free(model.entries);
}

/* What removals free, also whole leaves, is loaded again: into lists with holes, and from the
 * beginning. */
Test(map_load, after_removals)
{
	struct seed seed = seed_for("after_removals");
	const size_t count = 20000;
	struct cs_map_entry *entries = make_entries(&seed, count, 1, 5, RANDOM);
	struct model model = model_of(entries, count);

	load_ok(entries, count, 1000);
	for (unsigned round = 0; round < 5; round++) {
		size_t removed = 0;

		for (size_t i = 0; i < count; i++) {
			struct cs_map_entry entry = entries[i];

			if (round && seed_below(&seed, 2))
				continue;
			cr_assert_eq(cowsnap_map_remove(map, entry.chunk, 1), 1);
			entries[i] = entries[removed];
			entries[removed++] = entry;
		}
		cr_assert_eq(cowsnap_map_count(map), count - removed);
		check_structure(map);
		load_ok(entries, removed, 700);
		check_model(&model);
	}
	free(entries);
	free(model.entries);
}

/* Loads and claims in turn, over chunks of both. */
Test(map_load, between_claims)
{
	struct seed seed = seed_for("between_claims");
	const size_t count = 20000;
	struct cs_map_entry *entries = make_entries(&seed, count, 1, 2, RANDOM);
	struct model model = model_of(entries, count);

	for (size_t at = 0; at < count;) {
		size_t batch = 1 + seed_below(&seed, 200);
		struct cowsnap_run run;

		batch = batch < count - at ? batch : count - at;
		load_ok(entries + at, batch, batch);
		at += batch;
		for (size_t end = at + seed_below(&seed, 200); at < end && at < count; at++) {
			cr_assert_eq(cowsnap_map_claim(map, entries[at].chunk, 1, &run),
				COWSNAP_CLAIM_MINE);
			run.location = entries[at].location;
			cowsnap_map_publish(map, &run);
		}
	}
	check_model(&model);
	free(entries);
	free(model.entries);
}

/* ---- Memory --------------------------------------------------------------------------------- */

static uint64_t loaded_bytes(struct cs_map_entry *entries, size_t count)
{
	uint64_t bytes;

	/* What a batch has over is the next one's. */
	load_ok(entries, count, 64);
	/* It has nothing but what the map has, and never had. */
	cr_assert_leq(fail_alloc_peak_bytes(mem), cowsnap_map_memory(map));
	bytes = cowsnap_map_memory(map);
	cowsnap_map_destroy(map);
	map = NULL;
	return bytes;
}

static uint64_t claimed_bytes(const struct cs_map_entry *entries, size_t count)
{
	uint64_t bytes;

	cr_assert_eq(cowsnap_map_create(fail_alloc_table(mem), &map), 0);
	for (size_t i = 0; i < count; i++) {
		struct cowsnap_run run;

		cr_assert_eq(cowsnap_map_claim(map, entries[i].chunk, 1, &run), COWSNAP_CLAIM_MINE);
		run.location = entries[i].location;
		cowsnap_map_publish(map, &run);
	}
	bytes = cowsnap_map_memory(map);
	return bytes;
}

Test(map_load, memory_dense)
{
	struct seed seed = seed_for("memory_dense");
	const size_t count = 200000;
	struct cs_map_entry *entries = make_entries(&seed, count, 0, 1, RANDOM);
	uint64_t bytes = loaded_bytes(entries, count);

	cr_assert_leq(bytes, 10 * count);
	/* But for a block of the pool more or less. */
	cr_assert_leq(bytes, claimed_bytes(entries, count) * 101 / 100);
	free(entries);
}

Test(map_load, memory_isolated)
{
	struct seed seed = seed_for("memory_isolated");
	const size_t count = 50000;
	struct cs_map_entry *entries = make_entries(&seed, count, 0, 1000000, RANDOM);
	uint64_t bytes = loaded_bytes(entries, count);

	cr_assert_leq(bytes, 100 * count);
	/* But for a block of the pool more or less. */
	cr_assert_leq(bytes, claimed_bytes(entries, count) * 101 / 100);
	free(entries);
}

/* ---- Failure -------------------------------------------------------------------------------- */

/* Returns whether no allocation failed. */
static bool fail_at(uint64_t n, bool arenas, struct cs_map_entry *entries, size_t count)
{
	uint64_t duplicate = UNTOUCHED;
	int err = 0;
	bool failed;

	mem = fail_alloc_create(arenas);
	cr_assert_eq(cowsnap_map_create(fail_alloc_table(mem), &map), 0);
	fail_alloc_at(mem, n, false);
	for (size_t i = 0; i < count && !err; i += 500)
		err = cs_map_load(map, entries + i, 500, &duplicate);
	failed = fail_alloc_failed(mem) > 0;
	/* A part of the index that cannot be had is tried again. */
	cr_assert(err == 0 || (err == -ENOMEM && failed));
	cr_assert_eq(duplicate, UNTOUCHED);
	check_structure(map);
	cr_assert_eq(cowsnap_map_count(map) == count, err == 0);
	for (size_t i = 0; i < count; i++) {
		uint64_t location = entries[i].location;

		cr_assert(cowsnap_map_lookup(map, entries[i].chunk, &location) || err);
		cr_assert_eq(location, entries[i].location);
	}
	close_map();
	return !failed;
}

static void sweep(bool arenas)
{
	struct seed seed = seed_for("every_allocation");
	const size_t count = 4000;
	struct cs_map_entry *entries = make_entries(&seed, count, 0, 9, RANDOM);
	uint64_t n = 1;

	while (!fail_at(n, arenas, entries, count))
		n++;
	/* The body, pieces, leaves, parts of the index. */
	cr_assert_gt(n, 10);
	free(entries);
}

Test(map_load_failure, every_allocation)
{
	sweep(false);
	sweep(true);
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

/* Chains of many buckets: followed, and appended to. */
Test(map_load, no_memory_for_the_index)
{
	const struct cowsnap_allocator table = {
		.size = sizeof(table), .user = mem, .alloc = no_index_alloc, .free = no_index_free};
	struct seed seed = seed_for("no_memory_for_the_index");
	const size_t count = 5000;
	struct cs_map_entry *entries = make_entries(&seed, count, 0, 64, RANDOM);
	struct model model = model_of(entries, count);

	cowsnap_map_destroy(map);
	cr_assert_eq(cowsnap_map_create(&table, &map), 0);
	load_ok(entries, count, 256);
	check_model(&model);
	free(entries);
	free(model.entries);
	cowsnap_map_destroy(map);
	map = NULL;
}
