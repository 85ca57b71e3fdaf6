/* SPDX-License-Identifier: MIT */
#include "support/test.h"

#include "alloc.h"

#include <cowsnap-jemalloc.h>
#include <jemalloc/jemalloc.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>

static size_t statistic(const char *name)
{
	uint64_t epoch = 1;
	size_t size = sizeof(epoch);
	size_t value = 0;

	/* What lies in this thread's cache counts as allocated. */
	cr_assert_eq(mallctl("thread.tcache.flush", NULL, NULL, NULL, 0), 0);
	cr_assert_eq(mallctl("epoch", &epoch, &size, &epoch, size), 0);
	size = sizeof(value);
	cr_assert_eq(mallctl(name, &value, &size, NULL, 0), 0);
	return value;
}

/* The arena that a block lies in: 0 and a few more are the automatic ones. */
static unsigned int arena_of(void *memory)
{
	unsigned int index = 0;
	size_t size = sizeof(index);

	cr_assert_eq(mallctl("arenas.lookup", &index, &size, &memory, sizeof(memory)), 0);
	return index;
}

static unsigned int automatic_arenas(void)
{
	unsigned int count = 0;
	size_t size = sizeof(count);

	cr_assert_eq(mallctl("opt.narenas", &count, &size, NULL, 0), 0);
	return count;
}

Test(jemalloc, the_table_is_complete)
{
	const struct cowsnap_allocator *table = cowsnap_jemalloc();

	cr_assert_eq(cs_alloc_check(table), 0);
	cr_assert(table->arena_create);
}

Test(jemalloc, every_alignment_is_kept)
{
	const struct cowsnap_allocator *table = cowsnap_jemalloc();
	void *arena = table->arena_create(table->user);

	cr_assert_not_null(arena);
	for (int round = 0; round < 4; round++) {
		for (size_t align = sizeof(void *); align <= 65536; align *= 2) {
			void *a = table->alloc(table->user, align + 1, align);
			void *b = table->arena_alloc(table->user, arena, align + 1, align);

			cr_assert_eq((uintptr_t)a % align, 0);
			cr_assert_eq((uintptr_t)b % align, 0);
			memset(a, 1, align + 1);
			memset(b, 1, align + 1);
			table->free(table->user, a, align + 1);
			table->arena_free(table->user, arena, b, align + 1);
		}
	}
	table->arena_destroy(table->user, arena);
}

Test(jemalloc, a_small_arena_is_no_jemalloc_arena)
{
	const struct cowsnap_allocator *table = cowsnap_jemalloc();
	size_t before = statistic("stats.allocated");
	void *arenas[100];

	for (int i = 0; i < 100; i++) {
		arenas[i] = table->arena_create(table->user);
		for (int j = 0; j < 32; j++) {
			void *block = table->arena_alloc(table->user, arenas[i], 100, 8);

			cr_assert_lt(arena_of(block), automatic_arenas());
			if (j % 3 == 0)
				table->arena_free(table->user, arenas[i], block, 100);
		}
	}
	for (int i = 0; i < 100; i++)
		table->arena_destroy(table->user, arenas[i]);
	cr_assert_eq(statistic("stats.allocated"), before, "destroy frees what is left");
}

Test(jemalloc, a_large_arena_is_given_back_as_a_whole)
{
	const struct cowsnap_allocator *table = cowsnap_jemalloc();
	size_t before = statistic("stats.allocated");
	unsigned int first_index = 0;

	for (int round = 0; round < 5; round++) {
		void *arena = table->arena_create(table->user);
		void *block = NULL;

		for (int i = 0; i < 50000; i++) {
			block = table->arena_alloc(table->user, arena, 256, 64);
			cr_assert_not_null(block);
			memset(block, 1, 256);
			if (i % 5 == 4)
				table->arena_free(table->user, arena, block, 256);
		}
		block = table->arena_alloc(table->user, arena, 256, 64);
		cr_assert_geq(arena_of(block), automatic_arenas());
		if (round == 0)
			first_index = arena_of(block);
		cr_assert_eq(arena_of(block), first_index, "the index is used again");
		cr_assert_gt(statistic("stats.allocated"), before + 5000000);
		table->arena_destroy(table->user, arena);
		cr_assert_eq(statistic("stats.allocated"), before);
	}
}

#define THREADS 4
#define BLOCKS  2000

static void *fill(void *arena)
{
	const struct cowsnap_allocator *table = cowsnap_jemalloc();
	uint64_t *blocks[BLOCKS];

	for (size_t i = 0; i < BLOCKS; i++) {
		blocks[i] = table->arena_alloc(table->user, arena, 64, 64);
		if (!blocks[i])
			return NULL;
		*blocks[i] = (uintptr_t)blocks + i;
	}
	for (size_t i = 0; i < BLOCKS; i++) {
		if (*blocks[i] != (uintptr_t)blocks + i)
			return NULL;
		if (i % 2)
			table->arena_free(table->user, arena, blocks[i], 64);
	}
	return arena;
}

Test(jemalloc, threads_share_an_arena)
{
	const struct cowsnap_allocator *table = cowsnap_jemalloc();

	for (int round = 0; round < 20; round++) {
		void *arena = table->arena_create(table->user);
		pthread_t threads[THREADS];

		for (int i = 0; i < THREADS; i++)
			cr_assert_eq(pthread_create(&threads[i], NULL, fill, arena), 0);
		for (int i = 0; i < THREADS; i++) {
			void *result = NULL;

			pthread_join(threads[i], &result);
			cr_assert_eq(result, arena, "each thread found its own bytes");
		}
		table->arena_destroy(table->user, arena);
	}
}

Test(jemalloc, no_memory_is_null)
{
	const struct cowsnap_allocator *table = cowsnap_jemalloc();
	void *arena = table->arena_create(table->user);

	cr_assert_null(table->alloc(table->user, SIZE_MAX / 2, 8));
	for (int i = 0; i < 40; i++)
		cr_assert_null(table->arena_alloc(table->user, arena, SIZE_MAX / 2, 8));
	table->arena_destroy(table->user, arena);
}
