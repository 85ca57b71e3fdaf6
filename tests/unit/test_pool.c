/* SPDX-License-Identifier: MIT */
#include "support/test.h"

#include "pool.h"
#include "support/fail_alloc.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static struct fail_alloc *mem;

static struct cs_pool *new_pool(struct cs_pool *pool, bool arenas)
{
	mem = fail_alloc_create(arenas);
	cr_assert_eq(cs_pool_init(pool, fail_alloc_table(mem)), 0);
	return pool;
}

static void end_pool(struct cs_pool *pool)
{
	cs_pool_fini(pool);
	cr_assert_eq(fail_alloc_live(mem), 0);
	fail_alloc_destroy(mem);
}

static void check_objects(bool arenas, enum cs_pool_size size, uint64_t bytes)
{
	struct cs_pool pool;
	struct cs_pool_list list = {0};
	enum { COUNT = 5000 };
	void **objects = calloc(COUNT, sizeof(*objects));

	new_pool(&pool, arenas);
	for (unsigned i = 0; i < COUNT; i++) {
		cr_assert_eq(cs_pool_get(&pool, size, 1, 1, &list), 0);
		cr_assert_eq(list.count, 1);
		objects[i] = cs_pool_pop(&list);
		cr_assert_eq((uintptr_t)objects[i] % CS_POOL_ALIGN, 0);
		memset(objects[i], (int)(i & 0xff), bytes);
	}
	/* None overlaps another. */
	for (unsigned i = 0; i < COUNT; i++) {
		unsigned char *byte = objects[i];

		cr_assert_eq(byte[0], i & 0xff);
		cr_assert_eq(byte[bytes - 1], i & 0xff);
	}
	cr_assert_geq(atomic_load(&pool.bytes), COUNT * bytes);
	cr_assert_leq(atomic_load(&pool.bytes), COUNT * bytes * 5 / 4);
	end_pool(&pool);
	free(objects);
}

Test(pool, objects_are_apart_and_aligned)
{
	check_objects(false, CS_POOL_64, 64);
	check_objects(false, CS_POOL_128, 128);
	check_objects(true, CS_POOL_64, 64);
	check_objects(true, CS_POOL_128, 128);
}

Test(pool, what_comes_back_is_used_again)
{
	struct cs_pool pool;
	struct cs_pool_list list = {0};
	uint64_t bytes;

	new_pool(&pool, false);
	cr_assert_eq(cs_pool_get(&pool, CS_POOL_128, 1000, 1000, &list), 0);
	cr_assert_eq(list.count, 1000);
	bytes = atomic_load(&pool.bytes);
	for (unsigned i = 0; i < 100; i++) {
		cs_pool_put(&pool, CS_POOL_128, &list);
		cr_assert_eq(list.count, 0);
		cr_assert_null(cs_pool_pop(&list));
		cr_assert_eq(cs_pool_get(&pool, CS_POOL_128, 1000, 1000, &list), 0);
	}
	cr_assert_eq(atomic_load(&pool.bytes), bytes);
	end_pool(&pool);
}

Test(pool, more_than_needed_comes_only_if_it_is_there)
{
	struct cs_pool pool;
	struct cs_pool_list list = {0};

	new_pool(&pool, false);
	/* 4 KiB less the header: 63 objects. */
	cr_assert_eq(cs_pool_get(&pool, CS_POOL_64, 1, 100, &list), 0);
	cr_assert_eq(list.count, 63);
	cr_assert_eq(fail_alloc_calls(mem), 1);
	end_pool(&pool);
}

Test(pool, a_get_that_fails_takes_nothing)
{
	struct cs_pool pool;
	struct cs_pool_list list = {0};

	new_pool(&pool, false);
	cr_assert_eq(cs_pool_get(&pool, CS_POOL_64, 10, 10, &list), 0);
	fail_alloc_at(mem, 1, true);
	cr_assert_eq(cs_pool_get(&pool, CS_POOL_64, 10 + 54, 10 + 54, &list), -ENOMEM);
	cr_assert_eq(list.count, 10);
	cr_assert_null(cs_pool_keep(&pool, 64));
	/* The 53 that the first block still has are not lost. */
	cr_assert_eq(cs_pool_get(&pool, CS_POOL_64, 63, 63, &list), 0);
	cr_assert_eq(list.count, 63);
	end_pool(&pool);
}

Test(pool, an_arena_that_cannot_be_had)
{
	struct cs_pool pool;
	struct fail_alloc *none = fail_alloc_create(true);

	fail_alloc_at(none, 1, false);
	cr_assert_eq(cs_pool_init(&pool, fail_alloc_table(none)), -ENOMEM);
	cr_assert_eq(fail_alloc_live(none), 0);
	fail_alloc_destroy(none);
}

Test(pool, kept_memory_lasts)
{
	struct cs_pool pool;
	unsigned char *kept[2];

	new_pool(&pool, false);
	for (unsigned i = 0; i < 2; i++) {
		kept[i] = cs_pool_keep(&pool, 1 << 20);
		cr_assert_not_null(kept[i]);
		memset(kept[i], (int)i + 1, 1 << 20);
	}
	cr_assert_eq(kept[0][(1 << 20) - 1], 1);
	cr_assert_eq(kept[1][0], 2);
	cr_assert_geq(atomic_load(&pool.bytes), 2u << 20);
	end_pool(&pool);
}

static void *high_alloc(void *user, size_t bytes, size_t align)
{
	(void)bytes;
	(void)align;
	return user;
}

static void high_free(void *user, void *memory, size_t bytes)
{
	(void)bytes;
	cr_assert_eq(user, memory);
}

/* An address of more than 48 bits cannot be marked: it is as good as none. The block is in reach
 * here, but its length says that it ends too high. */
Test(pool, addresses_above_48_bits_are_refused)
{
	static _Alignas(64) char block[4096];
	const struct cowsnap_allocator table = {
		.size = sizeof(table), .user = block, .alloc = high_alloc, .free = high_free};
	struct cs_pool pool;

	cr_assert_eq(cs_pool_init(&pool, &table), 0);
	cr_assert_null(cs_pool_keep(&pool, UINT64_C(1) << 48));
	cs_pool_fini(&pool);
}
