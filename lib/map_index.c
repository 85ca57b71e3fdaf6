/* SPDX-License-Identifier: MIT
 *
 * Index: see map_index.h for shape, invariants and locking.
 */
#include "map_index.h"

#include <assert.h>

static_assert(sizeof(struct cs_bucket) == 64, "a bucket is a cache line");
static_assert(CS_POOL_ALIGN > CS_SLOT_MARKS, "marks fit below an address");

/* Leaves per bucket, doubled: 3.5 of 7 slots. Buckets that wait for their split hold twice what
 * split ones do, so a higher load would send many look-ups to overflow buckets. */
#define LOAD_TWICE 7

/* Positions in a chain that cs_index_next() counts: the slots of a bucket and one more. */
#define PLACES_PER_BUCKET 8

static uint64_t own(const _Atomic uint64_t *word)
{
	return atomic_load_explicit(word, memory_order_relaxed);
}

/* Pairs with the acquires of cs_bucket_find() and cs_index_visit(). */
static void set(_Atomic uint64_t *word, uint64_t value)
{
	atomic_store_explicit(word, value, memory_order_release);
}

static void bucket_init(struct cs_bucket *bucket)
{
	set(&bucket->tags, 0);
	for (unsigned i = 0; i < CS_BUCKET_SLOTS; i++)
		set(&bucket->slot[i], 0);
}

void cs_index_init(struct cs_index *index, struct cs_bucket *first)
{
	for (unsigned i = 0; i < CS_STRIPES; i++)
		bucket_init(&first[i]);
	for (unsigned i = 0; i < CS_INDEX_SEGMENTS; i++)
		atomic_init(&index->segments[i], 0);
	for (unsigned i = 0; i <= cs_index_segment(CS_STRIPES - 1); i++)
		set(&index->segments[i], (uint64_t)(uintptr_t)first);
	atomic_init(&index->leaves, 0);
	atomic_init(&index->splitting, false);
	set(&index->size, CS_STRIPES | (uint64_t)CS_STRIPE_BITS << CS_SIZE_SHIFT);
}

static struct cs_bucket *chain_of(const struct cs_index *index, uint64_t hash)
{
	return cs_index_bucket(index, cs_index_address(hash, own(&index->size)));
}

/* The next bucket of a chain, NULL at its end. */
static struct cs_bucket *link_of(const struct cs_bucket *bucket)
{
	/* Pairs with the release in overflow(). */
	uint64_t slot =
		atomic_load_explicit(&bucket->slot[CS_BUCKET_SLOTS - 1], memory_order_acquire);

	return slot & CS_SLOT_LINK ? cs_slot_pointer(slot) : NULL;
}

struct cs_leaf *cs_index_search(const struct cs_index *index, uint64_t key)
{
	uint64_t hash = cs_index_hash(key);
	/* Pairs with cs_index_split(): see invariant 3. */
	uint64_t at =
		cs_index_address(hash, atomic_load_explicit(&index->size, memory_order_acquire));

	for (;;) {
		const struct cs_bucket *bucket = cs_index_bucket(index, at);
		uint64_t now;

		for (; bucket; bucket = link_of(bucket)) {
			struct cs_leaf *leaf = cs_bucket_find(bucket, key, cs_index_tag(hash));

			if (leaf)
				return leaf;
		}
		/* Pairs with cs_index_split(). */
		now = cs_index_address(
			hash, atomic_load_explicit(&index->size, memory_order_acquire));
		if (now == at)
			return NULL;
		at = now;
	}
}

/* The first empty slot, CS_BUCKET_SLOTS if there is none. */
static unsigned bucket_room(const struct cs_bucket *bucket)
{
	unsigned i = 0;

	while (i < CS_BUCKET_SLOTS && own(&bucket->slot[i]))
		i++;
	return i;
}

static uint64_t tags_with(uint64_t tags, unsigned i, uint64_t tag)
{
	return (tags & ~(UINT64_C(0xff) << 8 * i)) | tag << 8 * i;
}

/* The slot before its tag: who sees the tag finds the leaf. */
static void bucket_set(struct cs_bucket *bucket, unsigned i, struct cs_leaf *leaf, uint64_t tag)
{
	set(&bucket->slot[i], (uint64_t)(uintptr_t)leaf | CS_SLOT_LEAF);
	set(&bucket->tags, tags_with(own(&bucket->tags), i, tag));
}

static void bucket_wipe(struct cs_bucket *bucket, unsigned i)
{
	set(&bucket->tags, tags_with(own(&bucket->tags), i, 0));
	set(&bucket->slot[i], 0);
}

static struct cs_leaf *slot_leaf(uint64_t slot)
{
	return slot & CS_SLOT_LEAF ? cs_slot_pointer(slot) : NULL;
}

/* Appends an empty bucket to a full one. Its last slot becomes the link, and the leaf that was
 * there the first of the new bucket. */
static struct cs_bucket *overflow(struct cs_bucket *bucket, struct cs_pool_list *lines)
{
	unsigned last = CS_BUCKET_SLOTS - 1;
	struct cs_leaf *moved = slot_leaf(own(&bucket->slot[last]));
	struct cs_bucket *next = cs_pool_pop(lines);

	assert(next && moved);
	bucket_init(next);
	bucket_set(next, 0, moved, cs_index_tag(cs_index_hash(moved->key)));
	set(&bucket->slot[last], (uint64_t)(uintptr_t)next | CS_SLOT_LINK);
	set(&bucket->tags, tags_with(own(&bucket->tags), last, 0));
	return next;
}

static void chain_insert(
	struct cs_bucket *bucket, struct cs_leaf *leaf, uint64_t hash, struct cs_pool_list *lines)
{
	unsigned i = bucket_room(bucket);

	while (i == CS_BUCKET_SLOTS) {
		struct cs_bucket *next = link_of(bucket);

		bucket = next ? next : overflow(bucket, lines);
		i = bucket_room(bucket);
	}
	bucket_set(bucket, i, leaf, cs_index_tag(hash));
}

bool cs_index_full(const struct cs_index *index, uint64_t hash)
{
	const struct cs_bucket *bucket = chain_of(index, hash);

	for (; bucket; bucket = link_of(bucket)) {
		if (bucket_room(bucket) < CS_BUCKET_SLOTS)
			return false;
	}
	return true;
}

void cs_index_insert(struct cs_index *index, struct cs_leaf *leaf, struct cs_pool_list *lines)
{
	uint64_t hash = cs_index_hash(leaf->key);

	chain_insert(chain_of(index, hash), leaf, hash, lines);
	atomic_fetch_add_explicit(&index->leaves, 1, memory_order_relaxed);
}

bool cs_index_crowded(const struct cs_index *index)
{
	return 2 * own(&index->leaves) > LOAD_TWICE * cs_index_count(own(&index->size));
}

unsigned cs_index_split_stripe(const struct cs_index *index)
{
	return cs_index_stripe(cs_index_count(own(&index->size)));
}

/* The slots whose leaves have @bit in their hash. */
static unsigned movers(const struct cs_bucket *bucket, uint64_t bit)
{
	unsigned found = 0;

	for (unsigned i = 0; i < CS_BUCKET_SLOTS; i++) {
		const struct cs_leaf *leaf = slot_leaf(own(&bucket->slot[i]));

		if (leaf && (cs_index_hash(leaf->key) & bit))
			found |= 1u << i;
	}
	return found;
}

unsigned cs_index_split_need(const struct cs_index *index)
{
	uint64_t size = own(&index->size);
	/* The hash bit that tells the two halves of the bucket apart. */
	uint64_t bit = cs_index_half(size);
	const struct cs_bucket *bucket = cs_index_bucket(index, cs_index_count(size) - bit);
	unsigned leaves = 0;

	for (; bucket; bucket = link_of(bucket))
		leaves += (unsigned)__builtin_popcount(movers(bucket, bit));
	/* All but the last bucket of a chain spend a slot on their link; the first is there. */
	return leaves <= CS_BUCKET_SLOTS ? 0 : (leaves - 2) / (CS_BUCKET_SLOTS - 1);
}

void cs_index_split(struct cs_index *index, struct cs_pool_list *lines)
{
	uint64_t size = own(&index->size);
	uint64_t count = cs_index_count(size);
	uint64_t bit = cs_index_half(size);
	struct cs_bucket *source = cs_index_bucket(index, count - bit);
	struct cs_bucket *target = cs_index_bucket(index, count);

	bucket_init(target);
	for (struct cs_bucket *from = source; from; from = link_of(from)) {
		for (unsigned moving = movers(from, bit); moving; moving &= moving - 1) {
			struct cs_leaf *leaf = slot_leaf(own(&from->slot[__builtin_ctz(moving)]));

			chain_insert(target, leaf, cs_index_hash(leaf->key), lines);
		}
	}
	size++;
	if (count + 1 == 2 * bit)
		size += UINT64_C(1) << CS_SIZE_SHIFT;
	/* Between filling and wiping: pairs with the acquires of cs_index_find(). */
	set(&index->size, size);
	for (struct cs_bucket *from = source; from; from = link_of(from)) {
		for (unsigned moved = movers(from, bit); moved; moved &= moved - 1)
			bucket_wipe(from, (unsigned)__builtin_ctz(moved));
	}
}

bool cs_index_segment_ready(struct cs_index *index, struct cs_pool *pool)
{
	uint64_t first = cs_index_count(own(&index->size));
	unsigned segment = cs_index_segment(first);
	void *memory;

	if (segment >= CS_INDEX_SEGMENTS)
		return false;
	if (own(&index->segments[segment]))
		return true;
	/* Buckets are written when they are split into: this touches none of it. A segment begins
	 * with its first bucket, because splits go on from there. */
	memory = cs_pool_keep(pool, cs_index_segment_buckets(segment) * sizeof(struct cs_bucket));
	if (!memory)
		return false;
	/* Pairs with cs_index_bucket(). */
	set(&index->segments[segment],
		(uint64_t)(uintptr_t)memory - first * sizeof(struct cs_bucket));
	return true;
}

const struct cs_leaf *cs_index_next(const struct cs_index *index, uint64_t bucket, uint64_t *place)
{
	const struct cs_bucket *at = cs_index_bucket(index, bucket);
	uint64_t skip = *place;

	for (; at && skip >= PLACES_PER_BUCKET; skip -= PLACES_PER_BUCKET)
		at = link_of(at);
	for (; at; at = link_of(at)) {
		for (; skip < CS_BUCKET_SLOTS; skip++) {
			/* Pairs with bucket_set(). */
			const struct cs_leaf *leaf = slot_leaf(
				atomic_load_explicit(&at->slot[skip], memory_order_acquire));

			*place += 1;
			if (leaf)
				return leaf;
		}
		*place += PLACES_PER_BUCKET - skip;
		skip = 0;
	}
	return NULL;
}
