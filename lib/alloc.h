/* SPDX-License-Identifier: MIT
 *
 * Memory: the one place that names malloc and mmap. Everything else asks an allocator table.
 */
#ifndef CS_ALLOC_H
#define CS_ALLOC_H

#include <cowsnap.h>

/* The built-in table: libc. */
const struct cowsnap_allocator *cs_alloc_libc(void);

/* Returns: 0, or -EINVAL if the table is incomplete. */
int cs_alloc_check(const struct cowsnap_allocator *table);

void *cs_alloc(const struct cowsnap_allocator *table, size_t bytes);
void *cs_alloc_zeroed(const struct cowsnap_allocator *table, size_t bytes);
void *cs_alloc_aligned(const struct cowsnap_allocator *table, size_t bytes, size_t align);
/* @bytes as allocated; NULL is accepted. */
void cs_free(const struct cowsnap_allocator *table, void *memory, size_t bytes);

/* Address space of zero pages that cost nothing until written: bulk data of memory devices. Not
 * from the table, which hands out objects. Returns: NULL if there is no address space. */
void *cs_pages_reserve(uint64_t bytes);
/* Makes whole pages in [offset, offset + length) zero and gives them back; safe against readers. */
void cs_pages_discard(void *pages, uint64_t offset, uint64_t length);
void cs_pages_release(void *pages, uint64_t bytes);

#endif
