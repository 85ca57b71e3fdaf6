/* SPDX-License-Identifier: MIT
 *
 * The body of a map: see map_body.h for invariants and locking.
 */
#include "map_body.h"

#include "alloc.h"

/* A stripe fetches objects ahead, one for so many leaves of the map, so that what is set aside
 * stays a small part of the whole. It keeps twice as many, and what one claim may take. */
#define AHEAD_LEAVES 1024
#define AHEAD_MAX    16
#define CLAIM_MAX    (CS_LEAF_WORDS + 1)
/* Splits by one thread after one insertion: more than one, so that a table which fell behind while
 * another thread was splitting catches up. */
#define SPLITS_MAX   2

void cs_map_body_free(struct cowsnap_map *map, struct cs_map_body *body)
{
	for (unsigned i = 0; i < CS_STRIPES; i++)
		cs_mutex_fini(&body->stripes[i].lock);
	cs_pool_fini(&body->pool);
	cs_free(map->alloc, body, sizeof(*body));
}

static struct cs_map_body *body_new(struct cowsnap_map *map)
{
	struct cs_map_body *body =
		cs_alloc_aligned(map->alloc, sizeof(*body), _Alignof(struct cs_map_body));

	if (!body)
		return NULL;
	if (cs_pool_init(&body->pool, map->alloc) != 0) {
		cs_free(map->alloc, body, sizeof(*body));
		return NULL;
	}
	cs_index_init(&body->index, body->first_buckets);
	for (unsigned i = 0; i < CS_STRIPES; i++) {
		struct cs_stripe *stripe = &body->stripes[i];

		cs_mutex_init(&stripe->lock);
		stripe->waiters = NULL;
		stripe->lines = (struct cs_pool_list){0};
		stripe->pieces = (struct cs_pool_list){0};
		atomic_init(&stripe->done, 0);
	}
	return body;
}

struct cs_map_body *cs_map_body_make(struct cowsnap_map *map)
{
	struct cs_map_body *body = NULL;
	struct cs_map_body *made = body_new(map);

	if (!made)
		return NULL;
	/* Pairs with cs_map_body(), and with itself in the thread that comes second. */
	if (atomic_compare_exchange_strong_explicit(
		    &map->body, &body, made, memory_order_acq_rel, memory_order_acquire))
		return made;
	cs_map_body_free(map, made);
	return body;
}

static void move_all(struct cs_pool_list *to, struct cs_pool_list *from)
{
	while (from->count)
		cs_pool_push(to, cs_pool_pop(from));
}

static uint32_t ahead(const struct cs_map_body *body)
{
	uint64_t leaves = atomic_load_explicit(&body->index.leaves, memory_order_relaxed);

	return leaves / AHEAD_LEAVES < AHEAD_MAX ? (uint32_t)(leaves / AHEAD_LEAVES) : AHEAD_MAX;
}

int cs_stripe_refill(
	struct cs_map_body *body, struct cs_stripe *stripe, uint32_t lines, uint32_t pieces)
{
	uint32_t more = ahead(body);
	struct cs_pool_list got_lines = {0};
	struct cs_pool_list got_pieces = {0};
	int err = 0;

	lines -= lines < stripe->lines.count ? lines : stripe->lines.count;
	pieces -= pieces < stripe->pieces.count ? pieces : stripe->pieces.count;
	cs_mutex_unlock(&stripe->lock);
	if (lines)
		err = cs_pool_get(&body->pool, CS_POOL_64, lines, lines + more, &got_lines);
	if (!err && pieces)
		err = cs_pool_get(&body->pool, CS_POOL_128, pieces, pieces + more, &got_pieces);
	cs_mutex_lock(&stripe->lock);
	/* Whatever has come is used by a later claim, also when the rest could not be had. */
	move_all(&stripe->lines, &got_lines);
	move_all(&stripe->pieces, &got_pieces);
	return err;
}

void cs_stripe_unlock(struct cs_map_body *body, struct cs_stripe *stripe)
{
	struct cs_pool_list surplus = {0};

	if (cs_unlikely(stripe->pieces.count > CLAIM_MAX) &&
		stripe->pieces.count > 2 * ahead(body) + CLAIM_MAX) {
		while (stripe->pieces.count > ahead(body))
			cs_pool_push(&surplus, cs_pool_pop(&stripe->pieces));
	}
	cs_mutex_unlock(&stripe->lock);
	if (surplus.count)
		cs_pool_put(&body->pool, CS_POOL_128, &surplus);
}

/* Returns false if there is no memory for it. */
static bool split_next(struct cs_map_body *body)
{
	struct cs_stripe *stripe = &body->stripes[cs_index_split_stripe(&body->index)];
	int err = 0;

	if (!cs_index_segment_ready(&body->index, &body->pool))
		return false;
	cs_mutex_lock(&stripe->lock);
	while (!err) {
		unsigned need = cs_index_split_need(&body->index);

		if (need <= stripe->lines.count) {
			cs_index_split(&body->index, &stripe->lines);
			break;
		}
		err = cs_stripe_refill(body, stripe, need, 0);
	}
	cs_mutex_unlock(&stripe->lock);
	return !err;
}

void cs_map_grow(struct cs_map_body *body)
{
	struct cs_index *index = &body->index;

	if (!cs_index_crowded(index))
		return;
	/* Tried, never waited for: pairs with the release below, by the thread before. */
	if (atomic_exchange_explicit(&index->splitting, true, memory_order_acquire))
		return;
	for (unsigned i = 0; i < SPLITS_MAX && cs_index_crowded(index); i++) {
		if (!split_next(body))
			break;
	}
	/* Pairs with the exchange above. */
	atomic_store_explicit(&index->splitting, false, memory_order_release);
}
