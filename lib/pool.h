/* SPDX-License-Identifier: MIT
 *
 * Pool: objects of two fixed sizes, cut from blocks that belong to one owner (one map) and are
 * given back all at once.
 *
 * What is cut as one size stays that size until the pool ends, and every word of a free object is
 * written with atomic release stores only. A lock-free reader may therefore still look at an object
 * that has been put back: it reads words that mean nothing, never memory that is gone.
 *
 * States of an object: uncut (in a block), out (the owner's), free (in the pool's or an owner's
 * list).
 *
 * Invariants:
 *  1. An object is in one list at most.
 *  2. Addresses of objects fit 48 bits and are multiples of 64, so an owner can keep marks in the
 *     rest of the word.
 *  3. The host's allocator is never called with the pool's lock held.
 *
 * Locking: `lock` guards the block list and the classes. A struct cs_pool_list is its owner's.
 * Failure: a get that cannot have what it needs changes nothing.
 */
#ifndef CS_POOL_H
#define CS_POOL_H

#include <cowsnap.h>

#include "sync.h"

#define CS_POOL_ALIGN UINT64_C(64)

enum cs_pool_size {
	CS_POOL_64 = 0,
	CS_POOL_128 = 1,
	CS_POOL_SIZES,
};

/* What a free object begins with. */
struct cs_pool_object {
	_Atomic uint64_t next;
};

struct cs_pool_list {
	struct cs_pool_object *head;
	uint32_t count;
};

struct cs_pool_block;

struct cs_pool_class {
	struct cs_pool_list free;
	char *uncut; /* the rest of the newest block */
	uint64_t uncut_bytes;
	uint64_t bytes; /* of all blocks of the class */
};

struct cs_pool {
	const struct cowsnap_allocator *alloc;
	void *arena; /* NULL: the table has none, and blocks are freed one by one */
	struct cs_mutex lock;
	struct cs_pool_block *blocks;
	struct cs_pool_class classes[CS_POOL_SIZES];
	_Atomic uint64_t bytes; /* all that the allocator gave */
};

/* Returns: 0, -ENOMEM. */
int cs_pool_init(struct cs_pool *pool, const struct cowsnap_allocator *alloc);
/* Gives back everything, objects that are out included. */
void cs_pool_fini(struct cs_pool *pool);

/* Adds objects to @list until it holds @want, or at least @need when the next one would cost a new
 * block. Returns: 0, -ENOMEM (@list is as it was). */
int cs_pool_get(struct cs_pool *pool, enum cs_pool_size size, uint32_t need, uint32_t want,
	struct cs_pool_list *list) CS_EXCLUDES(pool->lock);
/* Takes all of @list back. */
void cs_pool_put(struct cs_pool *pool, enum cs_pool_size size, struct cs_pool_list *list)
	CS_EXCLUDES(pool->lock);
/* Memory that stays the owner's until the pool ends; a multiple of 64 bytes. NULL: there is none.
 */
void *cs_pool_keep(struct cs_pool *pool, uint64_t bytes) CS_EXCLUDES(pool->lock);

static inline void cs_pool_push(struct cs_pool_list *list, void *memory)
{
	struct cs_pool_object *object = memory;

	/* Pairs with cs_leaf_get() of whoever still reads the object. */
	atomic_store_explicit(&object->next, (uint64_t)(uintptr_t)list->head, memory_order_release);
	list->head = object;
	list->count++;
}

static inline void *cs_pool_pop(struct cs_pool_list *list)
{
	struct cs_pool_object *object = list->head;

	if (!object)
		return NULL;
	list->head = (struct cs_pool_object *)(uintptr_t)atomic_load_explicit(
		&object->next, memory_order_relaxed);
	list->count--;
	return object;
}

#endif
