/* SPDX-License-Identifier: MIT
 *
 * The exception map: look-ups, runs, walks, numbers. Nothing here locks or writes; see map_leaf.h
 * and map_index.h for why what is read is right.
 */
#include "map_body.h"

/* A walk's cursor: bucket, and place in its chain. */
#define CURSOR_PLACE_BITS 16
#define CURSOR_PLACE_MAX  ((UINT64_C(1) << CURSOR_PLACE_BITS) - 1)

/* Chunks of one leaf. */
static inline bool part_done(const struct cs_map_body *body, uint64_t first, unsigned chunks)
{
	const struct cs_leaf *leaf = cs_index_find(&body->index, first / CS_LEAF_CHUNKS);
	uint64_t bits = cs_leaf_bits((unsigned)(first % CS_LEAF_CHUNKS), chunks);

	return leaf && !(bits & ~cs_leaf_done(leaf));
}

/* Apart, so that the short one does without its registers. */
static __attribute__((noinline)) bool range_done(
	const struct cs_map_body *body, uint64_t first, uint64_t count)
{
	if (count && (first > COWSNAP_CHUNK_MAX || count > COWSNAP_CHUNK_MAX + 1 - first))
		return false;
	while (count) {
		unsigned chunks = cs_map_in_leaf(first, count);

		if (!part_done(body, first, chunks))
			return false;
		first += chunks;
		count -= chunks;
	}
	return true;
}

bool cowsnap_map_done(const struct cowsnap_map *map, uint64_t first, uint64_t count)
{
	const struct cs_map_body *body = cs_map_body(map);

	if (cs_unlikely(!body))
		return !count;
	/* No leaf is beyond COWSNAP_CHUNK_MAX, and none across it. */
	if (cs_likely(count - 1 < CS_LEAF_CHUNKS - first % CS_LEAF_CHUNKS))
		return part_done(body, first, (unsigned)count);
	return range_done(body, first, count);
}

/* Apart, so that the quick one calls nothing and needs few registers. */
static __attribute__((noinline)) bool lookup_slowly(
	const struct cs_map_body *body, uint64_t chunk, uint64_t *location)
{
	const struct cs_leaf *leaf = cs_index_search(&body->index, chunk / CS_LEAF_CHUNKS);
	unsigned in_leaf = (unsigned)(chunk % CS_LEAF_CHUNKS);
	uint64_t epoch;

	if (!leaf)
		return false;
	/* Pairs with the release in trim(). */
	epoch = cs_leaf_get(&leaf->epoch);
	return (cs_leaf_done(leaf) >> in_leaf & 1) &&
	       cs_leaf_confirm(leaf, epoch, in_leaf, cs_leaf_entry(leaf, in_leaf), location);
}

bool cowsnap_map_lookup(const struct cowsnap_map *map, uint64_t chunk, uint64_t *location)
{
	const struct cs_map_body *body = cs_map_body(map);
	unsigned in_leaf = (unsigned)(chunk % CS_LEAF_CHUNKS);
	const struct cs_leaf *leaf;
	uint64_t epoch;
	uint64_t entry;

	if (cs_unlikely(!body))
		return false;
	leaf = cs_index_find_quick(&body->index, chunk / CS_LEAF_CHUNKS);
	if (cs_unlikely(!leaf))
		return lookup_slowly(body, chunk, location);
	/* Pairs with the release in trim(). */
	epoch = cs_leaf_get(&leaf->epoch);
	if (!(cs_leaf_done(leaf) >> in_leaf & 1))
		return false;
	entry = cs_leaf_table_entry(leaf, in_leaf);
	if (cs_unlikely(!entry))
		return lookup_slowly(body, chunk, location);
	return cs_leaf_confirm(leaf, epoch, in_leaf, entry, location);
}

uint64_t cs_map_window(
	const struct cowsnap_map *map, uint64_t first, unsigned count, uint64_t locations[])
{
	const struct cs_leaf *leaf = cs_map_leaf(map, first);
	unsigned base = (unsigned)(first % CS_LEAF_CHUNKS);

	return leaf ? cs_leaf_read(leaf, cs_leaf_bits(base, count), base, locations) >> base : 0;
}

uint64_t cs_map_done_mask(const struct cowsnap_map *map, uint64_t first, unsigned count)
{
	const struct cs_leaf *leaf = cs_map_leaf(map, first);
	unsigned base = (unsigned)(first % CS_LEAF_CHUNKS);

	return leaf ? (cs_leaf_done(leaf) & cs_leaf_bits(base, count)) >> base : 0;
}

/* Buckets are asked for this many groups ahead, leaves when their buckets have come. */
#define BUCKETS_AHEAD 16
#define LEAVES_AHEAD  8

void cs_map_look_ahead(const struct cowsnap_map *map, uint64_t chunk)
{
	const struct cs_map_body *body = cs_map_body(map);
	uint64_t key = chunk / CS_LEAF_CHUNKS;
	const struct cs_leaf *leaf;

	if (!body)
		return;
	cs_index_ask_for(&body->index, key + BUCKETS_AHEAD);
	leaf = cs_index_find_quick(&body->index, key + LEAVES_AHEAD);
	if (leaf)
		__builtin_prefetch(&leaf->done);
}

/* Does a chunk at @location go on where the run ends? */
static bool follows(const struct cowsnap_run *run, uint64_t location)
{
	if (run->location > COWSNAP_LOCATION_MAX || location > COWSNAP_LOCATION_MAX)
		return run->location == location;
	return location == run->location + run->count;
}

bool cowsnap_map_next(
	const struct cowsnap_map *map, uint64_t first, uint64_t end, struct cowsnap_run *run)
{
	uint64_t locations[CS_LEAF_CHUNKS];

	run->count = 0;
	if (!cs_map_body(map))
		return false;
	if (end > COWSNAP_CHUNK_MAX + 1)
		end = COWSNAP_CHUNK_MAX + 1;
	while (first < end) {
		unsigned chunks = cs_map_in_leaf(first, end - first);
		uint64_t mask = cs_map_window(map, first, chunks, locations);
		unsigned i = 0;

		if (!run->count && mask) {
			i = (unsigned)__builtin_ctzll(mask);
			run->first = first + i;
			run->location = locations[i];
		}
		if (mask || run->count) {
			while (i < chunks && (mask >> i & 1) && follows(run, locations[i])) {
				run->count++;
				i++;
			}
			if (i < chunks)
				return true;
		}
		first += chunks;
	}
	return run->count > 0;
}

static void visit_leaf(const struct cs_leaf *leaf,
	void (*visit)(void *user, const struct cowsnap_run *run), void *user)
{
	uint64_t locations[CS_LEAF_CHUNKS];
	uint64_t mask = cs_leaf_read(leaf, ~UINT64_C(0), 0, locations);

	while (mask) {
		unsigned i = (unsigned)__builtin_ctzll(mask);
		struct cowsnap_run run = {
			.first = leaf->key * CS_LEAF_CHUNKS + i,
			.location = locations[i],
		};

		while (i < CS_LEAF_CHUNKS && (mask >> i & 1) && follows(&run, locations[i])) {
			run.count++;
			mask &= ~(UINT64_C(1) << i);
			i++;
		}
		visit(user, &run);
	}
}

/*
 * Buckets are visited in ascending order, as many as there are by then. A split moves leaves to a
 * bucket that is higher than all: one that is moved while the walk goes on is met there.
 */
bool cowsnap_map_walk(const struct cowsnap_map *map, uint64_t *cursor, uint64_t max_leaves,
	void (*visit)(void *user, const struct cowsnap_run *run), void *user)
{
	const struct cs_map_body *body = cs_map_body(map);
	uint64_t bucket = *cursor >> CURSOR_PLACE_BITS;
	uint64_t place = *cursor & CURSOR_PLACE_MAX;
	uint64_t visited = 0;

	if (!body)
		return false;
	/* Pairs with cs_index_split(). */
	while (bucket <
		cs_index_count(atomic_load_explicit(&body->index.size, memory_order_acquire))) {
		uint64_t before = place;
		const struct cs_leaf *leaf = cs_index_next(&body->index, bucket, &place);

		if (!leaf) {
			bucket++;
			place = 0;
			continue;
		}
		/* A chain too long for a cursor is walked to its end. */
		if (visited >= max_leaves && visited && before <= CURSOR_PLACE_MAX) {
			*cursor = bucket << CURSOR_PLACE_BITS | before;
			return true;
		}
		visit_leaf(leaf, visit, user);
		visited++;
	}
	*cursor = bucket << CURSOR_PLACE_BITS;
	return false;
}

uint64_t cowsnap_map_count(const struct cowsnap_map *map)
{
	const struct cs_map_body *body = cs_map_body(map);
	uint64_t count = 0;

	for (unsigned i = 0; body && i < CS_STRIPES; i++)
		count += atomic_load_explicit(&body->stripes[i].done, memory_order_relaxed);
	return count;
}

uint64_t cowsnap_map_memory(const struct cowsnap_map *map)
{
	const struct cs_map_body *body = cs_map_body(map);
	uint64_t bytes = sizeof(*map);

	if (body)
		bytes += sizeof(*body) +
			 atomic_load_explicit(&body->pool.bytes, memory_order_relaxed);
	return bytes;
}
