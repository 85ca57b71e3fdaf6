/* SPDX-License-Identifier: MIT */
#include "support/fail_alloc.h"
#include "support/test.h"

#include "alloc.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

Test(alloc, libc_table_is_complete_and_has_no_arenas)
{
	const struct cowsnap_allocator *table = cs_alloc_libc();

	cr_assert_eq(cs_alloc_check(table), 0);
	cr_assert(!table->arena_create);
	cr_assert_eq(table, cs_alloc_libc(), "the table is one and static");
}

Test(alloc, every_alignment_is_kept)
{
	for (size_t align = sizeof(void *); align <= 65536; align *= 2) {
		unsigned char *memory = cs_alloc_aligned(cs_alloc_libc(), align + 1, align);

		cr_assert_not_null(memory);
		cr_assert_eq((uintptr_t)memory % align, 0, "alignment %zu", align);
		memset(memory, 0xff, align + 1);
		cs_free(cs_alloc_libc(), memory, align + 1);
	}
}

Test(alloc, zeroed_memory_is_zero)
{
	struct fail_alloc *mem = fail_alloc_create(false);
	unsigned char *memory = cs_alloc_zeroed(fail_alloc_table(mem), 1000);

	cr_assert_not_null(memory);
	for (int i = 0; i < 1000; i++)
		cr_assert_eq(memory[i], 0, "byte %d", i);
	cs_free(fail_alloc_table(mem), memory, 1000);
	fail_alloc_destroy(mem);
}

Test(alloc, failure_is_null_and_null_may_be_freed)
{
	struct fail_alloc *mem = fail_alloc_create(false);
	const struct cowsnap_allocator *table = fail_alloc_table(mem);

	fail_alloc_at(mem, 1, true);
	cr_assert_null(cs_alloc(table, 8));
	cr_assert_null(cs_alloc_zeroed(table, 8));
	cr_assert_null(cs_alloc_aligned(table, 8, 64));
	cr_assert_eq(fail_alloc_failed(mem), 3);
	cs_free(table, NULL, 8);
	fail_alloc_destroy(mem);
	cr_assert_null(cs_alloc(cs_alloc_libc(), SIZE_MAX / 2));
}

static void *some_create(void *user)
{
	return user;
}

static void *some_alloc(void *user, void *arena, size_t bytes, size_t align)
{
	(void)user, (void)bytes, (void)align;
	return arena;
}

static void some_free(void *user, void *arena, void *memory, size_t bytes)
{
	(void)user, (void)arena, (void)memory, (void)bytes;
}

static void some_destroy(void *user, void *arena)
{
	(void)user, (void)arena;
}

Test(alloc, tables_need_both_functions_and_their_size)
{
	struct cowsnap_allocator table = *cs_alloc_libc();

	table.alloc = NULL;
	cr_assert_eq(cs_alloc_check(&table), -EINVAL);
	table = *cs_alloc_libc();
	table.free = NULL;
	cr_assert_eq(cs_alloc_check(&table), -EINVAL);
	table = *cs_alloc_libc();
	table.size = 0;
	cr_assert_eq(cs_alloc_check(&table), -EINVAL);
	table.size = sizeof(table) - 1;
	cr_assert_eq(cs_alloc_check(&table), -EINVAL);
}

Test(alloc, arena_members_come_together)
{
	for (unsigned int set = 0; set < 16; set++) {
		struct cowsnap_allocator table = *cs_alloc_libc();

		table.arena_create = set & 1 ? some_create : NULL;
		table.arena_alloc = set & 2 ? some_alloc : NULL;
		table.arena_free = set & 4 ? some_free : NULL;
		table.arena_destroy = set & 8 ? some_destroy : NULL;
		cr_assert_eq(
			cs_alloc_check(&table), set == 0 || set == 15 ? 0 : -EINVAL, "set %u", set);
	}
}

Test(pages, are_zero_and_hold_what_is_written)
{
	const uint64_t bytes = UINT64_C(1) << 40;
	unsigned char *pages = cs_pages_reserve(bytes);

	cr_assert_not_null(pages, "a terabyte of address space costs nothing");
	cr_assert_eq(pages[0], 0);
	cr_assert_eq(pages[bytes - 1], 0);
	pages[bytes / 2] = 7;
	cr_assert_eq(pages[bytes / 2], 7);
	cs_pages_release(pages, bytes);
	cs_pages_release(NULL, bytes);
}

Test(pages, impossible_sizes_are_refused)
{
	cr_assert_null(cs_pages_reserve(0));
	cr_assert_null(cs_pages_reserve(UINT64_MAX));
	cr_assert_null(cs_pages_reserve(UINT64_C(1) << 62), "more than the address space");
}

static bool resident(void *page)
{
	unsigned char state = 0;

	cr_assert_eq(mincore(page, 1, &state), 0);
	return state & 1;
}

Test(pages, discard_zeroes_whole_pages_only)
{
	const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	unsigned char *pages = cs_pages_reserve(8 * page);

	cr_assert_not_null(pages);
	memset(pages, 1, 8 * page);
	cs_pages_discard(pages, page + 1, 4 * page - 2);
	for (uint64_t i = 0; i < 8; i++) {
		bool whole = i >= 2 && i <= 3;

		cr_assert_eq(pages[i * page], whole ? 0 : 1, "first byte of page %d", (int)i);
		cr_assert_eq(
			pages[i * page + page - 1], whole ? 0 : 1, "last byte of page %d", (int)i);
	}
	cs_pages_discard(pages, 5 * page + 1, page - 1);
	cr_assert_eq(pages[5 * page + 1], 1, "no whole page: nothing is done");
	cs_pages_discard(pages, 0, 8 * page);
	cr_assert_not(resident(pages + 7 * page), "a discarded page is given back");
	cs_pages_release(pages, 8 * page);
}

/* The allocator of the failure sweeps is itself something that tests rely on. */
Test(fail_alloc, fails_the_nth_call_once)
{
	struct fail_alloc *mem = fail_alloc_create(true);
	const struct cowsnap_allocator *table = fail_alloc_table(mem);
	void *arena;
	void *block;

	fail_alloc_at(mem, 2, false);
	arena = table->arena_create(table->user);
	cr_assert_not_null(arena);
	cr_assert_null(table->arena_alloc(table->user, arena, 10, 8));
	block = table->arena_alloc(table->user, arena, 10, 64);
	cr_assert_not_null(block);
	cr_assert_eq((uintptr_t)block % 64, 0);
	cr_assert_eq(fail_alloc_failed(mem), 1);
	cr_assert_eq(fail_alloc_calls(mem), 3);
	cr_assert_eq(fail_alloc_live(mem), 2);
	cr_assert_eq(fail_alloc_live_bytes(mem), 10);
	table->arena_destroy(table->user, arena);
	cr_assert_eq(fail_alloc_live(mem), 0, "an arena takes its blocks with it");
	cr_assert_eq(fail_alloc_peak_bytes(mem), 10);
	fail_alloc_destroy(mem);
}

Test(fail_alloc, fails_for_good)
{
	struct fail_alloc *mem = fail_alloc_create(false);
	const struct cowsnap_allocator *table = fail_alloc_table(mem);
	void *block;

	fail_alloc_at(mem, 2, true);
	block = cs_alloc(table, 1);
	cr_assert_not_null(block);
	for (int i = 0; i < 5; i++)
		cr_assert_null(cs_alloc(table, 1));
	cr_assert_eq(fail_alloc_failed(mem), 5);
	fail_alloc_at(mem, 0, false);
	cs_free(table, block, 1);
	block = cs_alloc(table, 1);
	cr_assert_not_null(block);
	cs_free(table, block, 1);
	fail_alloc_destroy(mem);
}
