/* SPDX-License-Identifier: MIT
 *
 * Pool: see pool.h for states, invariants and locking.
 */
#include "pool.h"

#include <assert.h>

#include "alloc.h"

#define BLOCK_BYTES_MIN UINT64_C(4096)
#define BLOCK_BYTES_MAX (UINT64_C(256) << 10)
#define ADDRESS_BITS    48

/* At the start of each block; as long as the alignment, so that the objects are aligned too. */
struct cs_pool_block {
	struct cs_pool_block *next;
	uint64_t bytes;
	uint64_t unused[6];
};

static_assert(sizeof(struct cs_pool_block) == CS_POOL_ALIGN, "objects follow the header");

static uint64_t object_bytes(enum cs_pool_size size)
{
	return size == CS_POOL_64 ? 64 : 128;
}

int cs_pool_init(struct cs_pool *pool, const struct cowsnap_allocator *alloc)
{
	*pool = (struct cs_pool){.alloc = alloc};
	if (alloc->arena_create) {
		pool->arena = alloc->arena_create(alloc->user);
		if (!pool->arena)
			return -ENOMEM;
	}
	cs_mutex_init(&pool->lock);
	return 0;
}

static void block_free(struct cs_pool *pool, struct cs_pool_block *block)
{
	const struct cowsnap_allocator *alloc = pool->alloc;

	if (pool->arena)
		alloc->arena_free(alloc->user, pool->arena, block, block->bytes);
	else
		cs_free(alloc, block, block->bytes);
}

void cs_pool_fini(struct cs_pool *pool)
{
	struct cs_pool_block *block = pool->blocks;

	cs_mutex_fini(&pool->lock);
	if (pool->arena) {
		pool->alloc->arena_destroy(pool->alloc->user, pool->arena);
		return;
	}
	while (block) {
		struct cs_pool_block *next = block->next;

		block_free(pool, block);
		block = next;
	}
}

static struct cs_pool_block *block_new(struct cs_pool *pool, uint64_t bytes)
{
	const struct cowsnap_allocator *alloc = pool->alloc;
	struct cs_pool_block *block;

	if (pool->arena)
		block = alloc->arena_alloc(alloc->user, pool->arena, bytes, CS_POOL_ALIGN);
	else
		block = cs_alloc_aligned(alloc, bytes, CS_POOL_ALIGN);
	if (!block)
		return NULL;
	block->bytes = bytes;
	/* An address that does not fit is as good as none; see invariant 2. */
	if (((uint64_t)(uintptr_t)block + bytes) >> ADDRESS_BITS) {
		block_free(pool, block);
		return NULL;
	}
	return block;
}

static void block_link(struct cs_pool *pool, struct cs_pool_block *block) CS_REQUIRES(pool->lock)
{
	block->next = pool->blocks;
	pool->blocks = block;
	atomic_fetch_add_explicit(&pool->bytes, block->bytes, memory_order_relaxed);
}

/* A sixteenth of what the class has: little is idle in a small map, and a large one asks seldom. */
static uint64_t next_block_bytes(const struct cs_pool_class *class)
{
	uint64_t bytes = (class->bytes / 16) & ~(BLOCK_BYTES_MIN - 1);

	if (bytes < BLOCK_BYTES_MIN)
		return BLOCK_BYTES_MIN;
	return bytes > BLOCK_BYTES_MAX ? BLOCK_BYTES_MAX : bytes;
}

/* Returns how many bytes the next block should have, 0 if none is needed. */
static uint64_t fill(struct cs_pool *pool, enum cs_pool_size size, uint32_t need, uint32_t want,
	struct cs_pool_list *list) CS_REQUIRES(pool->lock)
{
	struct cs_pool_class *class = &pool->classes[size];
	uint64_t bytes = object_bytes(size);

	while (list->count < want && class->free.count)
		cs_pool_push(list, cs_pool_pop(&class->free));
	while (list->count < want && class->uncut_bytes >= bytes) {
		cs_pool_push(list, class->uncut);
		class->uncut += bytes;
		class->uncut_bytes -= bytes;
	}
	return list->count >= need ? 0 : next_block_bytes(class);
}

/* Returns false if another thread has brought a block meanwhile. */
static bool install(struct cs_pool *pool, enum cs_pool_size size, struct cs_pool_block *block)
	CS_REQUIRES(pool->lock)
{
	struct cs_pool_class *class = &pool->classes[size];

	if (class->uncut_bytes >= object_bytes(size))
		return false;
	class->uncut = (char *)(block + 1);
	class->uncut_bytes = block->bytes - sizeof(*block);
	class->bytes += block->bytes;
	block_link(pool, block);
	return true;
}

static void put_above(struct cs_pool *pool, enum cs_pool_size size, struct cs_pool_list *list,
	uint32_t count) CS_EXCLUDES(pool->lock)
{
	cs_mutex_lock(&pool->lock);
	while (list->count > count)
		cs_pool_push(&pool->classes[size].free, cs_pool_pop(list));
	cs_mutex_unlock(&pool->lock);
}

int cs_pool_get(struct cs_pool *pool, enum cs_pool_size size, uint32_t need, uint32_t want,
	struct cs_pool_list *list)
{
	uint32_t before = list->count;

	assert(need <= want);
	for (;;) {
		struct cs_pool_block *block;
		uint64_t bytes;
		bool installed;

		cs_mutex_lock(&pool->lock);
		bytes = fill(pool, size, need, want, list);
		cs_mutex_unlock(&pool->lock);
		if (!bytes)
			return 0;
		block = block_new(pool, bytes);
		if (!block) {
			put_above(pool, size, list, before);
			return -ENOMEM;
		}
		cs_mutex_lock(&pool->lock);
		installed = install(pool, size, block);
		cs_mutex_unlock(&pool->lock);
		if (!installed)
			block_free(pool, block);
	}
}

void cs_pool_put(struct cs_pool *pool, enum cs_pool_size size, struct cs_pool_list *list)
{
	put_above(pool, size, list, 0);
}

void *cs_pool_keep(struct cs_pool *pool, uint64_t bytes)
{
	struct cs_pool_block *block;

	assert(bytes % CS_POOL_ALIGN == 0);
	block = block_new(pool, bytes + sizeof(*block));
	if (!block)
		return NULL;
	cs_mutex_lock(&pool->lock);
	block_link(pool, block);
	cs_mutex_unlock(&pool->lock);
	return block + 1;
}
