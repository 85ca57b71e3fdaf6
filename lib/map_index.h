/* SPDX-License-Identifier: MIT
 *
 * Index: finds the leaf of a key. A hash table that grows by one bucket at a time (linear hashing),
 * so that no insertion ever waits for a resize.
 *
 *     buckets  0 .. n-1   in segments that never move
 *     bucket   one line:  7 tag bytes, 7 slots; a slot is a leaf, or (the last one) a link to an
 *                         overflow bucket, or nothing
 *
 * With 2^l <= n < 2^(l+1), a key whose hash is h is in the chain of bucket h mod 2^(l+1) if that is
 * below n, else of h mod 2^l. Splitting bucket n - 2^l fills bucket n and then makes n one more.
 * The table begins with 64 buckets, so source and target of a split have the same low 6 bits, which
 * are the number of the stripe that guards them.
 *
 * Invariants:
 *  1. A leaf stays in its slot, but for two moves. A split copies it to bucket n, stores n + 1, and
 *     then wipes the old slot. A last slot that becomes a link is copied to the new bucket first.
 *  2. Chains only grow; buckets are never freed before the map ends.
 *  3. So whoever misses a leaf because it moved sees another n afterwards that gives its key
 *     another bucket. That happens to a key once for each doubling: look-ups are wait-free.
 *  4. Slots are filled before tags are set.
 *
 * Locking: a chain changes under its stripe's lock. `splitting` is taken by trying only and keeps
 * splits one at a time; its holder alone stores `size` and segments. Readers take no lock.
 * Failure: a segment that cannot be had is tried again at the next insertion; chains grow until
 * then, and nothing else fails.
 */
#ifndef CS_MAP_INDEX_H
#define CS_MAP_INDEX_H

#include <string.h>

#include "map_leaf.h"

#define CS_STRIPE_BITS    6
#define CS_STRIPES        (1u << CS_STRIPE_BITS)
#define CS_BUCKET_SLOTS   7
#define CS_INDEX_SEGMENTS 148 /* 2^42 buckets: more than there is address space */
#define CS_SIZE_SHIFT     56

/* Marks in the low bits of a slot; leaves and buckets are aligned to 64. */
#define CS_SLOT_LEAF  UINT64_C(1)
#define CS_SLOT_LINK  UINT64_C(2)
#define CS_SLOT_MARKS (CS_SLOT_LEAF | CS_SLOT_LINK)

struct cs_bucket {
	_Atomic uint64_t tags; /* byte i: tag of slot i; the top byte is 0 */
	_Atomic uint64_t slot[CS_BUCKET_SLOTS];
};

struct cs_index {
	_Atomic uint64_t size; /* n in the low 56 bits, l above */
	/* Of segment s: its address less what its first bucket's number stands for, so that adding
	 * 64 times the number of a bucket gives the bucket. */
	_Atomic uint64_t segments[CS_INDEX_SEGMENTS];
	/* Apart from what readers read. */
	_Alignas(CS_CACHE_BYTES) _Atomic uint64_t leaves;
	atomic_bool splitting;
};

/* A bijection. The folds bring the upper bits of keys and products down to where buckets and
 * stripes are chosen, so that no regular distance between keys fills few buckets only. */
static inline uint64_t cs_index_hash(uint64_t key)
{
	key ^= key >> 31;
	key *= UINT64_C(0xd6e8feb86659fd93);
	return key ^ key >> 32;
}

static inline unsigned cs_index_stripe(uint64_t hash)
{
	return (unsigned)(hash % CS_STRIPES);
}

/* Bits that choose no bucket. */
static inline uint64_t cs_index_tag(uint64_t hash)
{
	return hash >> 56;
}

static inline uint64_t cs_index_count(uint64_t size)
{
	return size & ((UINT64_C(1) << CS_SIZE_SHIFT) - 1);
}

/* 2^l */
static inline uint64_t cs_index_half(uint64_t size)
{
	return UINT64_C(1) << (size >> CS_SIZE_SHIFT);
}

/* The bucket of a hash in a table of that size. */
static inline uint64_t cs_index_address(uint64_t hash, uint64_t size)
{
	uint64_t half = cs_index_half(size);
	uint64_t at = hash & (2 * half - 1);

	/* Without a branch: it would be taken at random. */
	return at & ~(half & -(uint64_t)(at >= cs_index_count(size)));
}

/*
 * Segments grow by a fifth of the table or less: they end where 64 more than the bucket's number
 * passes a quarter of a doubling, which exponent and first bits of the mantissa tell. (Not by
 * counting leading zeroes: that instruction, as gcc 12 uses it, waits for what its target register
 * held before, here the cache miss of the look-up before. It made look-ups one after the other
 * three times slower.)
 */
static inline unsigned cs_index_segment(uint64_t bucket)
{
	double value = (double)(int64_t)(bucket + CS_STRIPES);
	uint64_t bits;

	memcpy(&bits, &value, sizeof(bits));
	return (unsigned)(bits >> 50) - ((1023 + CS_STRIPE_BITS) << 2);
}

static inline uint64_t cs_index_segment_buckets(unsigned segment)
{
	return (uint64_t)CS_STRIPES / 4 << segment / 4;
}

static inline struct cs_bucket *cs_index_bucket(const struct cs_index *index, uint64_t bucket)
{
	/* Pairs with the release in cs_index_segment_ready(); the count that named the bucket came
	 * later. */
	uint64_t base = atomic_load_explicit(
		&index->segments[cs_index_segment(bucket)], memory_order_acquire);

	return (struct cs_bucket *)(uintptr_t)(base + bucket * sizeof(struct cs_bucket));
}

static inline void *cs_slot_pointer(uint64_t slot)
{
	return (void *)(uintptr_t)(slot & ~CS_SLOT_MARKS);
}

/* The top bit of each byte of @tags that equals @tag; now and then also of one above such a byte.
 * That is harmless: keys are compared. */
static inline uint64_t cs_bucket_match(uint64_t tags, uint64_t tag)
{
	uint64_t differ = tags ^ tag * UINT64_C(0x0101010101010101);

	return (differ - UINT64_C(0x0101010101010101)) & ~differ & UINT64_C(0x0080808080808080);
}

static inline struct cs_leaf *cs_bucket_find(
	const struct cs_bucket *bucket, uint64_t key, uint64_t tag)
{
	/* Pairs with bucket_set(). */
	uint64_t match =
		cs_bucket_match(atomic_load_explicit(&bucket->tags, memory_order_acquire), tag);

	for (; match; match &= match - 1) {
		/* Pairs with bucket_set(), and with overflow(). */
		uint64_t slot = atomic_load_explicit(
			&bucket->slot[(unsigned)__builtin_ctzll(match) / 8], memory_order_acquire);
		struct cs_leaf *leaf = cs_slot_pointer(slot);

		if (cs_likely((slot & CS_SLOT_LEAF) && leaf->key == key))
			return leaf;
	}
	return NULL;
}

/* The leaf of a key if it is where most are, in the first bucket of its chain; else NULL. */
static inline struct cs_leaf *cs_index_find_quick(const struct cs_index *index, uint64_t key)
{
	uint64_t hash = cs_index_hash(key);
	/* Pairs with the release in cs_index_split(). */
	uint64_t size = atomic_load_explicit(&index->size, memory_order_acquire);

	return cs_bucket_find(
		cs_index_bucket(index, cs_index_address(hash, size)), key, cs_index_tag(hash));
}

/* Brings the first bucket of a key's chain into the cache. */
static inline void cs_index_ask_for(const struct cs_index *index, uint64_t key)
{
	/* Pairs with the release in cs_index_split(). */
	uint64_t size = atomic_load_explicit(&index->size, memory_order_acquire);

	__builtin_prefetch(cs_index_bucket(index, cs_index_address(cs_index_hash(key), size)));
}

/* The leaf of a key wherever it is, NULL if it has none. Wait-free. */
struct cs_leaf *cs_index_search(const struct cs_index *index, uint64_t key);

/* The same, quick where it can be. */
static inline struct cs_leaf *cs_index_find(const struct cs_index *index, uint64_t key)
{
	struct cs_leaf *leaf = cs_index_find_quick(index, key);

	return cs_likely(leaf) ? leaf : cs_index_search(index, key);
}

/* @first: memory for the first 64 buckets. */
void cs_index_init(struct cs_index *index, struct cs_bucket *first);

/* ---- Under the lock of the stripe ----------------------------------------------------------- */

/* Will cs_index_insert() of this hash take a bucket? */
bool cs_index_full(const struct cs_index *index, uint64_t hash);
/* @lines: a list that has a bucket if cs_index_full(). @leaf is not in the index. */
void cs_index_insert(struct cs_index *index, struct cs_leaf *leaf, struct cs_pool_list *lines);
/* How many buckets cs_index_split() would take from @lines. */
unsigned cs_index_split_need(const struct cs_index *index);
/* Splits the next bucket; its segment is there. */
void cs_index_split(struct cs_index *index, struct cs_pool_list *lines);

/* ---- By the holder of `splitting` ----------------------------------------------------------- */

bool cs_index_crowded(const struct cs_index *index);
/* The stripe of the next split. */
unsigned cs_index_split_stripe(const struct cs_index *index);
/* Returns false if memory for the next bucket cannot be had. No lock is held. */
bool cs_index_segment_ready(struct cs_index *index, struct cs_pool *pool);

/* ---- By anyone ------------------------------------------------------------------------------- */

/* The next leaf in the chain of a bucket, from *@place on; 0 to begin. NULL at the end. A leaf that
 * is in the chain all the time is not missed; one may come twice. */
const struct cs_leaf *cs_index_next(const struct cs_index *index, uint64_t bucket, uint64_t *place);

#endif
