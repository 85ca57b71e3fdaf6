/* SPDX-License-Identifier: MIT
 *
 * The allocator table on jemalloc. What a map allocates lies in a jemalloc arena of its own, and
 * dropping the map destroys that arena: its cost follows the memory, not the number of blocks.
 *
 * A jemalloc arena costs about 70 us and 84 KiB, and there can be about 4,000 of them. A map with
 * few exceptions must not pay for one, nor must the take of a thousand origins. So the first
 * SHARED_BLOCKS blocks of an arena come from the common heap and are remembered one by one; the
 * jemalloc arena is made for the block after them.
 *
 * States of an arena: small (index 0, blocks remembered) -> own (index set, for good).
 *
 * Invariants:
 * 1. A block of the common heap is in `shared` from before its address is handed out until it is
 *    freed.
 * 2. Blocks of a jemalloc arena never enter a thread cache, which would outlive the arena.
 *
 * Locking: none. The owner orders a free behind its alloc, and destroy behind everything.
 *
 * Failure: no memory, or no more jemalloc arenas: NULL, and the arena is as before.
 */
#include <cowsnap-jemalloc.h>

#include <assert.h>
#include <jemalloc/jemalloc.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdio.h>

#define SHARED_BLOCKS 32

struct arena {
	atomic_uint index; /* of the jemalloc arena; 0, the automatic one, stands for none */
	atomic_uint shared_count;
	void *_Atomic shared[SHARED_BLOCKS];
};

static void *table_alloc(void *user, size_t bytes, size_t align)
{
	(void)user;
	return mallocx(bytes, MALLOCX_ALIGN(align));
}

/* Not sdallocx(): that wants the alignment too. */
static void table_free(void *user, void *memory, size_t bytes)
{
	(void)user;
	(void)bytes;
	dallocx(memory, 0);
}

static void *arena_create(void *user)
{
	(void)user;
	return mallocx(sizeof(struct arena), MALLOCX_ALIGN(alignof(struct arena)) | MALLOCX_ZERO);
}

static void destroy_index(unsigned int index)
{
	char name[sizeof("arena.4294967295.destroy")];
	int error;

	snprintf(name, sizeof(name), "arena.%u.destroy", index);
	error = mallctl(name, NULL, NULL, NULL, 0);
	/* Fails only while a thread is bound to the arena, and this index is known to nobody else.
	 */
	assert(error == 0);
	(void)error;
}

/* Returns: the index of the jemalloc arena, made now if need be; 0 if there is none to be had. */
static unsigned int own_index(struct arena *arena)
{
	/* pairs with own_index: whoever sees the number also sees what jemalloc did for it */
	unsigned int index = atomic_load_explicit(&arena->index, memory_order_acquire);
	unsigned int none = 0;
	size_t size = sizeof(index);

	if (index != 0)
		return index;
	if (mallctl("arenas.create", &index, &size, NULL, 0) != 0)
		return 0;
	/* pairs with own_index */
	if (atomic_compare_exchange_strong_explicit(
		    &arena->index, &none, index, memory_order_acq_rel, memory_order_acquire))
		return index;
	destroy_index(index);
	return none;
}

static void *shared_alloc(struct arena *arena, size_t bytes, size_t align)
{
	void *memory = mallocx(bytes, MALLOCX_ALIGN(align));
	unsigned int slot;

	if (!memory)
		return NULL;
	slot = atomic_fetch_add_explicit(&arena->shared_count, 1, memory_order_relaxed);
	if (slot >= SHARED_BLOCKS) {
		dallocx(memory, 0);
		return NULL;
	}
	atomic_store_explicit(&arena->shared[slot], memory, memory_order_relaxed);
	return memory;
}

static void *arena_alloc(void *user, void *handle, size_t bytes, size_t align)
{
	struct arena *arena = handle;
	unsigned int index;
	void *memory;

	(void)user;
	if (atomic_load_explicit(&arena->shared_count, memory_order_relaxed) < SHARED_BLOCKS) {
		memory = shared_alloc(arena, bytes, align);
		if (memory)
			return memory;
	}
	index = own_index(arena);
	if (index == 0)
		return NULL;
	return mallocx(bytes, MALLOCX_ARENA(index) | MALLOCX_TCACHE_NONE | MALLOCX_ALIGN(align));
}

static void arena_free(void *user, void *handle, void *memory, size_t bytes)
{
	struct arena *arena = handle;

	(void)user;
	(void)bytes;
	for (unsigned int i = 0; i < SHARED_BLOCKS; i++) {
		if (atomic_load_explicit(&arena->shared[i], memory_order_relaxed) == memory) {
			atomic_store_explicit(&arena->shared[i], NULL, memory_order_relaxed);
			dallocx(memory, 0);
			return;
		}
	}
	dallocx(memory, MALLOCX_TCACHE_NONE);
}

static void arena_destroy(void *user, void *handle)
{
	struct arena *arena = handle;
	unsigned int index = atomic_load_explicit(&arena->index, memory_order_relaxed);

	(void)user;
	for (unsigned int i = 0; i < SHARED_BLOCKS; i++) {
		void *memory = atomic_load_explicit(&arena->shared[i], memory_order_relaxed);

		if (memory)
			dallocx(memory, 0);
	}
	if (index != 0)
		destroy_index(index);
	dallocx(arena, 0);
}

const struct cowsnap_allocator *cowsnap_jemalloc(void)
{
	static const struct cowsnap_allocator table = {
		.size = sizeof(table),
		.alloc = table_alloc,
		.free = table_free,
		.arena_create = arena_create,
		.arena_alloc = arena_alloc,
		.arena_free = arena_free,
		.arena_destroy = arena_destroy,
	};

	return &table;
}
