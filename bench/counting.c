/* SPDX-License-Identifier: MIT
 *
 * The counting allocator. Bytes count as they were asked for; what the allocator below adds to them
 * is its own affair. An arena knows its bytes, since destroying it gives back what is left in it.
 * Relaxed everywhere: the counters order nothing.
 */
#include "counting.h"

#include <stdbool.h>
#include <stdlib.h>

struct arena {
	void *inner;
	_Atomic uint64_t bytes;
};

static void add(struct bench_counting *c, uint64_t bytes)
{
	uint64_t now = atomic_fetch_add_explicit(&c->bytes, bytes, memory_order_relaxed) + bytes;
	uint64_t peak = atomic_load_explicit(&c->peak_bytes, memory_order_relaxed);

	while (now > peak && !atomic_compare_exchange_weak_explicit(&c->peak_bytes, &peak, now,
				     memory_order_relaxed, memory_order_relaxed))
		;
}

static void subtract(struct bench_counting *c, uint64_t bytes)
{
	atomic_fetch_sub_explicit(&c->bytes, bytes, memory_order_relaxed);
}

static void *counting_alloc(void *user, size_t bytes, size_t align)
{
	struct bench_counting *c = user;
	void *memory = c->inner.alloc(c->inner.user, bytes, align);

	if (memory)
		add(c, bytes);
	return memory;
}

static void counting_free(void *user, void *memory, size_t bytes)
{
	struct bench_counting *c = user;

	c->inner.free(c->inner.user, memory, bytes);
	subtract(c, bytes);
}

static void *libc_alloc(void *user, size_t bytes, size_t align)
{
	void *memory;

	(void)user;
	return posix_memalign(&memory, align, bytes) ? NULL : memory;
}

static void libc_free(void *user, void *memory, size_t bytes)
{
	(void)user;
	(void)bytes;
	free(memory);
}

static void *counting_arena_create(void *user)
{
	struct bench_counting *c = user;
	struct arena *arena = calloc(1, sizeof(*arena));

	if (!arena)
		return NULL;
	arena->inner = c->inner.arena_create(c->inner.user);
	if (arena->inner)
		return arena;
	free(arena);
	return NULL;
}

static void *counting_arena_alloc(void *user, void *arena_pointer, size_t bytes, size_t align)
{
	struct bench_counting *c = user;
	struct arena *arena = arena_pointer;
	void *memory = c->inner.arena_alloc(c->inner.user, arena->inner, bytes, align);

	if (memory) {
		atomic_fetch_add_explicit(&arena->bytes, bytes, memory_order_relaxed);
		add(c, bytes);
	}
	return memory;
}

static void counting_arena_free(void *user, void *arena_pointer, void *memory, size_t bytes)
{
	struct bench_counting *c = user;
	struct arena *arena = arena_pointer;

	c->inner.arena_free(c->inner.user, arena->inner, memory, bytes);
	atomic_fetch_sub_explicit(&arena->bytes, bytes, memory_order_relaxed);
	subtract(c, bytes);
}

static void counting_arena_destroy(void *user, void *arena_pointer)
{
	struct bench_counting *c = user;
	struct arena *arena = arena_pointer;

	c->inner.arena_destroy(c->inner.user, arena->inner);
	subtract(c, atomic_load_explicit(&arena->bytes, memory_order_relaxed));
	free(arena);
}

void bench_counting_init(struct bench_counting *counting, const struct cowsnap_allocator *inner)
{
	static const struct cowsnap_allocator libc = {
		.size = sizeof(libc), .alloc = libc_alloc, .free = libc_free};

	*counting = (struct bench_counting){
		.inner = inner ? *inner : libc,
		.table = {.size = sizeof(counting->table),
			.user = counting,
			.alloc = counting_alloc,
			.free = counting_free},
	};
	if (!counting->inner.arena_create)
		return;
	counting->table.arena_create = counting_arena_create;
	counting->table.arena_alloc = counting_arena_alloc;
	counting->table.arena_free = counting_arena_free;
	counting->table.arena_destroy = counting_arena_destroy;
}

uint64_t bench_counting_bytes(const struct bench_counting *counting)
{
	return atomic_load_explicit(&counting->bytes, memory_order_relaxed);
}

uint64_t bench_counting_peak(struct bench_counting *counting)
{
	return atomic_exchange_explicit(
		&counting->peak_bytes, bench_counting_bytes(counting), memory_order_relaxed);
}
