/* SPDX-License-Identifier: MIT
 *
 * The exception map: life cycle, claims and changes. Look-ups are in map_read.c.
 *
 * A chunk is free, busy or done; see cowsnap/blocks.h. Invariants and locking are those of
 * map_body.h, map_index.h and map_leaf.h, from the outside to the inside. Each change finds the
 * leaf without a lock (it stays where it is), locks its stripe, changes the leaf, unlocks, and only
 * then wakes who waited.
 * Failure: only a claim can fail, and then it has changed nothing.
 */
#include <assert.h>
#include <errno.h>

#include "alloc.h"
#include "map_body.h"

int cowsnap_map_create(const struct cowsnap_allocator *allocator, struct cowsnap_map **map)
{
	const struct cowsnap_allocator *alloc = allocator ? allocator : cs_alloc_libc();
	int err = cs_alloc_check(alloc);

	if (err)
		return err;
	*map = cs_alloc(alloc, sizeof(**map));
	if (!*map)
		return -ENOMEM;
	cs_map_init(*map, alloc);
	return 0;
}

void cs_map_fini(struct cowsnap_map *map)
{
	struct cs_map_body *body = atomic_load_explicit(&map->body, memory_order_relaxed);

	if (body)
		cs_map_body_free(map, body);
}

void cowsnap_map_destroy(struct cowsnap_map *map)
{
	if (!map)
		return;
	cs_map_fini(map);
	cs_free(map->alloc, map, sizeof(*map));
}

/* The lowest bits of @bits that follow each other; @bits is not 0. */
static uint64_t first_run(uint64_t bits)
{
	return bits & ~(bits + (bits & -bits));
}

/* ---- Claim ---------------------------------------------------------------------------------- */

/* What of one leaf is asked for, and what came of it. */
struct part {
	uint64_t key;
	uint64_t want;
	uint64_t bits; /* claimed, or busy */
	bool joins;    /* only a claim from the lowest bit of `want` on is of use */
};

/* @leaf: NULL if there is none, which is a leaf of free chunks. */
static int part_state(struct part *part, const struct cs_leaf *leaf)
{
	uint64_t open = leaf ? part->want & ~cs_leaf_done(leaf) : part->want;
	uint64_t busy = leaf ? part->want & leaf->busy : 0;
	uint64_t lowest = open & -open;

	part->bits = 0;
	if (!open)
		return COWSNAP_CLAIM_NOTHING;
	if (busy & lowest) {
		part->bits = first_run(busy & -lowest);
		return COWSNAP_CLAIM_BUSY;
	}
	if (part->joins && lowest != (part->want & -part->want))
		return COWSNAP_CLAIM_NOTHING;
	part->bits = first_run(open & ~busy);
	return COWSNAP_CLAIM_MINE;
}

static struct cs_leaf *insert_leaf(struct cs_map_body *body, struct cs_stripe *stripe, uint64_t key)
	CS_REQUIRES(stripe->lock)
{
	struct cs_leaf *leaf = cs_pool_pop(&stripe->lines);

	assert(leaf);
	cs_leaf_init(leaf, key);
	cs_index_insert(&body->index, leaf, &stripe->lines);
	return leaf;
}

/* The part of claim_part() that may need memory. */
static int claim_slowly(struct cs_map_body *body, struct cs_stripe *stripe, struct part *part,
	struct cs_leaf *leaf) CS_RELEASE(stripe->lock)
{
	static const struct cs_leaf empty = {0};
	bool grown = false;
	int state;

	for (;;) {
		struct cs_leaf_plan plan;
		uint32_t lines = 0;
		int err;

		if (!leaf)
			leaf = cs_index_search(&body->index, part->key);
		state = part_state(part, leaf);
		if (state != COWSNAP_CLAIM_MINE)
			break;
		if (!leaf)
			lines = cs_index_full(&body->index, cs_index_hash(part->key)) ? 2 : 1;
		plan = cs_leaf_plan(leaf ? leaf : &empty, part->bits);
		if (lines <= stripe->lines.count && plan.pieces <= stripe->pieces.count) {
			grown = !leaf;
			if (!leaf)
				leaf = insert_leaf(body, stripe, part->key);
			cs_leaf_claim(leaf, part->bits, &plan, &stripe->pieces);
			break;
		}
		err = cs_stripe_refill(body, stripe, lines, plan.pieces);
		if (err) {
			state = err;
			break;
		}
	}
	cs_stripe_unlock(body, stripe);
	if (grown)
		cs_map_grow(body);
	return state;
}

/* Returns: enum cowsnap_claim or -ENOMEM. */
static int claim_part(struct cs_map_body *body, struct part *part)
{
	struct cs_stripe *stripe = cs_map_stripe(body, part->key);
	struct cs_leaf *leaf = cs_index_find_quick(&body->index, part->key);
	int state;

	if (!leaf) {
		cs_mutex_lock(&stripe->lock);
		return claim_slowly(body, stripe, part, NULL);
	}
	if (!(part->want & ~cs_leaf_done(leaf)))
		return COWSNAP_CLAIM_NOTHING;
	cs_mutex_lock(&stripe->lock);
	state = part_state(part, leaf);
	if (state == COWSNAP_CLAIM_MINE && cs_unlikely(!cs_leaf_claim_quick(leaf, part->bits)))
		return claim_slowly(body, stripe, part, leaf);
	cs_mutex_unlock(&stripe->lock);
	return state;
}

int cowsnap_map_claim(
	struct cowsnap_map *map, uint64_t first, uint64_t count, struct cowsnap_run *run)
{
	struct cs_map_body *body;
	uint64_t end = first + count;

	if (!count)
		return -EINVAL;
	if (first > COWSNAP_CHUNK_MAX || count > COWSNAP_CHUNK_MAX + 1 - first)
		return -EOVERFLOW;
	body = cs_map_body(map);
	if (cs_unlikely(!body))
		body = cs_map_body_make(map);
	if (!body)
		return -ENOMEM;
	*run = (struct cowsnap_run){0};
	for (uint64_t at = first; at < end;) {
		unsigned chunks = cs_map_in_leaf(at, end - at);
		struct part part = {
			.key = at / CS_LEAF_CHUNKS,
			.want = cs_leaf_bits((unsigned)(at % CS_LEAF_CHUNKS), chunks),
			.joins = run->count > 0,
		};
		int state = claim_part(body, &part);

		if (run->count && state != COWSNAP_CLAIM_MINE)
			return COWSNAP_CLAIM_MINE;
		if (state < 0)
			return state;
		if (state != COWSNAP_CLAIM_NOTHING) {
			if (!run->count)
				run->first = part.key * CS_LEAF_CHUNKS +
					     (unsigned)__builtin_ctzll(part.bits);
			run->count += cs_leaf_run_length(part.bits);
			/* The run ends inside the leaf, or goes on in the next. */
			if (state == COWSNAP_CLAIM_BUSY || (part.want & ~part.bits) > part.bits)
				return state;
		}
		at += chunks;
	}
	return run->count ? COWSNAP_CLAIM_MINE : COWSNAP_CLAIM_NOTHING;
}

/* ---- The end of claims, and who waits for it ------------------------------------------------ */

int cowsnap_map_wait(struct cowsnap_map *map, uint64_t chunk, struct cowsnap_map_waiter *waiter)
{
	struct cs_leaf *leaf = cs_map_leaf(map, chunk);
	struct cs_stripe *stripe;
	bool busy;

	if (!leaf)
		return -EAGAIN;
	stripe = cs_map_stripe(cs_map_body(map), leaf->key);
	cs_mutex_lock(&stripe->lock);
	busy = leaf->busy >> chunk % CS_LEAF_CHUNKS & 1;
	if (busy) {
		waiter->chunk = chunk;
		waiter->next = stripe->waiters;
		stripe->waiters = waiter;
	}
	cs_mutex_unlock(&stripe->lock);
	return busy ? 0 : -EAGAIN;
}

/* Takes the waiters of a leaf out of the stripe's list. */
static struct cowsnap_map_waiter *detach(struct cs_stripe *stripe, uint64_t key)
	CS_REQUIRES(stripe->lock)
{
	struct cowsnap_map_waiter **link = &stripe->waiters;
	struct cowsnap_map_waiter *taken = NULL;

	while (*link) {
		struct cowsnap_map_waiter *waiter = *link;

		if (waiter->chunk / CS_LEAF_CHUNKS != key) {
			link = &waiter->next;
			continue;
		}
		*link = waiter->next;
		waiter->next = taken;
		taken = waiter;
	}
	return taken;
}

static void wake_all(struct cowsnap_map_waiter *waiter)
{
	while (waiter) {
		/* Read first: the waiter is its owner's from wake on. */
		struct cowsnap_map_waiter *next = waiter->next;

		waiter->wake(waiter);
		waiter = next;
	}
}

/* Chunks @first to @first + @count - 1 lie in one leaf. What of it is not busy is left alone. */
static void end_part(struct cowsnap_map *map, const struct cowsnap_run *run, uint64_t first,
	unsigned count, bool publish)
{
	struct cs_leaf *leaf = cs_map_leaf(map, first);
	uint64_t bits = cs_leaf_bits((unsigned)(first % CS_LEAF_CHUNKS), count);
	unsigned step = run->location <= COWSNAP_LOCATION_MAX;
	struct cs_map_body *body = cs_map_body(map);
	struct cowsnap_map_waiter *waiters = NULL;
	struct cs_stripe *stripe;
	uint64_t mine;

	if (!leaf)
		return;
	stripe = cs_map_stripe(body, leaf->key);
	cs_mutex_lock(&stripe->lock);
	mine = bits & leaf->busy;
	if (mine && cs_unlikely(stripe->waiters))
		waiters = detach(stripe, leaf->key);
	if (publish && mine) {
		/* What chunk 0 of the leaf would get; it may wrap. */
		uint64_t zero = run->location - (run->first - leaf->key * CS_LEAF_CHUNKS) * step;

		cs_leaf_publish(leaf, mine, zero, step);
		/* A run is counted with less ado than what is left of one. */
		cs_stripe_count(stripe,
			cs_likely(mine == bits) ? count : (unsigned)__builtin_popcountll(mine));
		cs_mutex_unlock(&stripe->lock);
	} else {
		if (mine)
			cs_leaf_abort(leaf, mine, &stripe->pieces);
		cs_stripe_unlock(body, stripe);
	}
	wake_all(waiters);
}

static void end_claims(struct cowsnap_map *map, const struct cowsnap_run *run, bool publish)
{
	uint64_t at = run->first;
	uint64_t left = run->count;

	while (left) {
		unsigned chunks = cs_map_in_leaf(at, left);

		end_part(map, run, at, chunks, publish);
		at += chunks;
		left -= chunks;
	}
}

void cowsnap_map_publish(struct cowsnap_map *map, const struct cowsnap_run *run)
{
	end_claims(map, run, true);
}

void cowsnap_map_abort(struct cowsnap_map *map, const struct cowsnap_run *run)
{
	end_claims(map, run, false);
}

/* ---- Changes to what is done ---------------------------------------------------------------- */

int cowsnap_map_replace(struct cowsnap_map *map, uint64_t chunk, uint64_t location)
{
	struct cs_leaf *leaf = cs_map_leaf(map, chunk);
	unsigned in_leaf = (unsigned)(chunk % CS_LEAF_CHUNKS);
	struct cs_stripe *stripe;
	bool done;

	if (!leaf)
		return -ENOENT;
	stripe = cs_map_stripe(cs_map_body(map), leaf->key);
	cs_mutex_lock(&stripe->lock);
	done = cs_leaf_done(leaf) >> in_leaf & 1;
	if (done)
		cs_leaf_replace(leaf, in_leaf, location);
	cs_mutex_unlock(&stripe->lock);
	return done ? 0 : -ENOENT;
}

static uint64_t remove_part(struct cowsnap_map *map, uint64_t first, unsigned count)
{
	struct cs_leaf *leaf = cs_map_leaf(map, first);
	uint64_t bits = cs_leaf_bits((unsigned)(first % CS_LEAF_CHUNKS), count);
	struct cs_map_body *body = cs_map_body(map);
	struct cs_stripe *stripe;
	uint64_t removed;

	if (!leaf || !(cs_leaf_done(leaf) & bits))
		return 0;
	stripe = cs_map_stripe(body, leaf->key);
	cs_mutex_lock(&stripe->lock);
	bits &= cs_leaf_done(leaf);
	removed = (unsigned)__builtin_popcountll(bits);
	if (bits) {
		cs_leaf_remove(leaf, bits, &stripe->pieces);
		cs_stripe_count(stripe, -removed);
	}
	cs_stripe_unlock(body, stripe);
	return removed;
}

uint64_t cowsnap_map_remove(struct cowsnap_map *map, uint64_t first, uint64_t count)
{
	uint64_t removed = 0;

	if (!cs_map_body(map) || first > COWSNAP_CHUNK_MAX)
		return 0;
	if (count > COWSNAP_CHUNK_MAX + 1 - first)
		count = COWSNAP_CHUNK_MAX + 1 - first;
	while (count) {
		unsigned chunks = cs_map_in_leaf(first, count);

		removed += remove_part(map, first, chunks);
		first += chunks;
		count -= chunks;
	}
	return removed;
}
