/* SPDX-License-Identifier: MIT
 *
 * Memory. The built-in allocator table is libc; the bulk pages of memory devices are anonymous
 * mappings, reserved without a promise and filled by the first write.
 */
#include "alloc.h"

#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void *libc_alloc(void *user, size_t bytes, size_t align)
{
	void *memory = NULL;

	(void)user;
	if (align <= _Alignof(max_align_t))
		return malloc(bytes);
	return posix_memalign(&memory, align, bytes) == 0 ? memory : NULL;
}

static void libc_free(void *user, void *memory, size_t bytes)
{
	(void)user;
	(void)bytes;
	free(memory);
}

const struct cowsnap_allocator *cs_alloc_libc(void)
{
	static const struct cowsnap_allocator table = {
		.size = sizeof(table),
		.alloc = libc_alloc,
		.free = libc_free,
	};

	return &table;
}

int cs_alloc_check(const struct cowsnap_allocator *table)
{
	/* No later release has a longer table yet: only the whole one is known. */
	if (table->size != sizeof(*table) || !table->alloc || !table->free)
		return -EINVAL;

	unsigned int arena_members = (table->arena_create ? 1 : 0) + (table->arena_alloc ? 1 : 0) +
				     (table->arena_free ? 1 : 0) + (table->arena_destroy ? 1 : 0);

	return arena_members == 0 || arena_members == 4 ? 0 : -EINVAL;
}

void *cs_alloc(const struct cowsnap_allocator *table, size_t bytes)
{
	return cs_alloc_aligned(table, bytes, _Alignof(max_align_t));
}

void *cs_alloc_zeroed(const struct cowsnap_allocator *table, size_t bytes)
{
	void *memory = cs_alloc(table, bytes);

	if (memory)
		memset(memory, 0, bytes);
	return memory;
}

void *cs_alloc_aligned(const struct cowsnap_allocator *table, size_t bytes, size_t align)
{
	/* What malloc(0) gives differs from table to table. */
	assert(bytes > 0);
	assert(align >= sizeof(void *) && (align & (align - 1)) == 0);
	return table->alloc(table->user, bytes, align);
}

void cs_free(const struct cowsnap_allocator *table, void *memory, size_t bytes)
{
	if (memory)
		table->free(table->user, memory, bytes);
}

void *cs_pages_reserve(uint64_t bytes)
{
	void *pages;

	if (bytes == 0 || bytes > SIZE_MAX / 2)
		return NULL;
	pages = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (pages == MAP_FAILED)
		return NULL;
	/* Fewer page faults where the system has huge pages; nothing is lost where it has none. */
	(void)madvise(pages, (size_t)bytes, MADV_HUGEPAGE);
	return pages;
}

void cs_pages_discard(void *pages, uint64_t offset, uint64_t length)
{
	uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
	uint64_t first = (offset + page_bytes - 1) / page_bytes * page_bytes;
	uint64_t end = (offset + length) / page_bytes * page_bytes;

	if (first >= end)
		return;
	/* A reader at the same time sees the old bytes or zeroes. It cannot fail on a range that
	 * was mapped by cs_pages_reserve(), short of the host locking it into memory: zero it by
	 * hand. */
	if (madvise((char *)pages + first, (size_t)(end - first), MADV_DONTNEED) != 0)
		memset((char *)pages + first, 0, (size_t)(end - first));
}

void cs_pages_release(void *pages, uint64_t bytes)
{
	if (pages)
		munmap(pages, (size_t)bytes);
}
