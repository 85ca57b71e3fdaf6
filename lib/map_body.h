/* SPDX-License-Identifier: MIT
 *
 * The body of a map: what it has from its first claim on. 64 stripes guard an equal share of the
 * leaves each; the index finds a leaf; the pool has the memory.
 *
 * Invariants:
 *  1. A stripe guards the leaves, and the chains of the index, whose hash has its number in the low
 *     6 bits.
 *  2. A stripe's `lines` and `pieces` are free objects set aside, so that a claim takes all that it
 *     needs or nothing without calling the pool under the lock.
 *  3. A waiter is in its stripe's list from wait until the leaf's next publish or abort.
 *  4. `done` is the number of done chunks of the stripe's leaves.
 *
 * Locking: one stripe's lock at a time, nothing else under it: the pool and the allocator are
 * called, and waiters woken, with no lock held.
 */
#ifndef CS_MAP_BODY_H
#define CS_MAP_BODY_H

#include "map.h"
#include "map_index.h"

struct cs_stripe {
	_Alignas(CS_CACHE_BYTES) struct cs_mutex lock;
	struct cowsnap_map_waiter *waiters;
	struct cs_pool_list lines;  /* for leaves and overflow buckets */
	struct cs_pool_list pieces; /* for locations */
	_Atomic uint64_t done;      /* written under the lock, read without */
};

struct cs_map_body {
	struct cs_index index;
	struct cs_stripe stripes[CS_STRIPES];
	struct cs_bucket first_buckets[CS_STRIPES];
	struct cs_pool pool;
};

static inline struct cs_map_body *cs_map_body(const struct cowsnap_map *map)
{
	/* Pairs with cs_map_body_make(). */
	return atomic_load_explicit(&map->body, memory_order_acquire);
}

/* Of @count chunks from @first on, how many are in the leaf of the first? */
static inline unsigned cs_map_in_leaf(uint64_t first, uint64_t count)
{
	unsigned room = CS_LEAF_CHUNKS - (unsigned)(first % CS_LEAF_CHUNKS);

	return count < room ? (unsigned)count : room;
}

/* No allocation; NULL if there is no body or no leaf. */
static inline struct cs_leaf *cs_map_leaf(const struct cowsnap_map *map, uint64_t chunk)
{
	const struct cs_map_body *body = cs_map_body(map);

	return cs_likely(body) ? cs_index_find(&body->index, chunk / CS_LEAF_CHUNKS) : NULL;
}

static inline struct cs_stripe *cs_map_stripe(struct cs_map_body *body, uint64_t key)
{
	return &body->stripes[cs_index_stripe(cs_index_hash(key))];
}

static inline void cs_stripe_count(struct cs_stripe *stripe, uint64_t add) CS_REQUIRES(stripe->lock)
{
	uint64_t done = atomic_load_explicit(&stripe->done, memory_order_relaxed);

	atomic_store_explicit(&stripe->done, done + add, memory_order_relaxed);
}

/* A new body, or that of a thread which was first. NULL: no memory. */
struct cs_map_body *cs_map_body_make(struct cowsnap_map *map);
void cs_map_body_free(struct cowsnap_map *map, struct cs_map_body *body);

/* Sees to it that the stripe has that many free objects, or did have them a moment ago: the lock is
 * given up meanwhile. Returns: 0 or -ENOMEM, locked in either case. */
int cs_stripe_refill(struct cs_map_body *body, struct cs_stripe *stripe, uint32_t lines,
	uint32_t pieces) CS_REQUIRES(stripe->lock);
/* Unlocks, and gives objects back of which the stripe has too many. */
void cs_stripe_unlock(struct cs_map_body *body, struct cs_stripe *stripe) CS_RELEASE(stripe->lock);
/* After an insertion: splits a bucket if it is time to. */
void cs_map_grow(struct cs_map_body *body);

#endif
