/* SPDX-License-Identifier: MIT
 *
 * Sparse bitmaps: sets of chunk numbers that only grow, at a fraction of what map entries take.
 *
 * 4,096 neighbouring numbers are a *group*. A map (map.h) says what each group that has any holds:
 *
 *     few    up to four numbers of 12 bits each, in the word itself
 *     list   the first of a list of slips: 32 bytes, 15 numbers
 *     node   16 addresses of slips that are bitmaps of 256 numbers each
 *     full   all of them
 *
 * So memory follows what is set: a sixth of a byte a number where it is dense, two or three where
 * it is thin, about ten for the only one of a group, and ninety if the 63 groups beside it have
 * none: see docs/adr/0009-map-only-is-exact.md.
 *
 * A *dense* one begins a group with a node, 640 bytes at most: for a set that soon has much of what
 * it has any of, and is used while others wait. To walk a list takes up to a microsecond.
 *
 * Invariants:
 *  1. A number that is in stays in.
 *  2. A group goes few -> list -> node and never back; nothing but a full one comes of nothing at
 *     once. A slip of a node stays its node's until the end, so its bits are set without a lock.
 *  3. Slips of a list are used again only when the group has become a node, and that was counted.
 *     So what a reader found in them is right if afterwards nothing was counted, or the group is a
 *     list.
 *
 * Locking: a group's word and its lists change under the lock of its stripe. Readers take no lock
 * and write nothing; they look twice at most.
 * Failure: who finds no memory has set nothing, or the first part of a range.
 */
#ifndef CS_BITS_H
#define CS_BITS_H

#include "map.h"

#define CS_BITS_GROUP 4096u

struct cs_bits_body;

/* All that an empty one is; the body comes with the first number. */
struct cs_bits {
	const struct cowsnap_allocator *alloc;
	_Atomic(struct cs_bits_body *) body;
	bool dense;
};

/* Never fails, allocates nothing. @alloc is complete and outlives the bitmap. */
static inline void cs_bits_init(struct cs_bits *bits, const struct cowsnap_allocator *alloc)
{
	bits->alloc = alloc;
	bits->dense = false;
	atomic_init(&bits->body, NULL);
}

static inline void cs_bits_init_dense(struct cs_bits *bits, const struct cowsnap_allocator *alloc)
{
	cs_bits_init(bits, alloc);
	bits->dense = true;
}

/* Frees what it holds, not the struct: it is empty then. Nobody uses it. */
void cs_bits_fini(struct cs_bits *bits);

/* Was anything ever put into it? One load. */
static inline bool cs_bits_any(const struct cs_bits *bits)
{
	/* Acquire: pairs with make_body. */
	return atomic_load_explicit(&bits->body, memory_order_acquire) != NULL;
}

/*
 * Of the numbers @first to @first + @count - 1, which do not cross a multiple of 64: a bit for each
 * that is in (bit 0 is @first). An acquire of what its setter did before. Wait-free.
 */
uint64_t cs_bits_window(const struct cs_bits *bits, uint64_t first, unsigned count);

static inline bool cs_bits_test(const struct cs_bits *bits, uint64_t number)
{
	return cs_bits_window(bits, number, 1);
}

/*
 * Puts @first to @first + @count - 1 (COWSNAP_CHUNK_MAX at most) in. A release. Any thread. Locks
 * one part at a time, for a few hundred nanoseconds and an allocation; where a line is, none.
 * Returns: 0; -ENOMEM (some of them may be in).
 */
int cs_bits_set(struct cs_bits *bits, uint64_t first, uint64_t count);
/* The same for those of [first, first + 64) whose bit is in @mask; @first is a multiple of 64. */
int cs_bits_set_mask(struct cs_bits *bits, uint64_t first, uint64_t mask);

/*
 * Puts what is in @from into @to, up to 64 * @max_leaves groups at a time; *@cursor is 0 to begin.
 * Nobody puts anything into @from meanwhile, or it may be missed.
 * Returns: 1 (there is more), 0, -ENOMEM (the cursor is where it was: try again).
 */
int cs_bits_or(
	struct cs_bits *to, const struct cs_bits *from, uint64_t *cursor, uint64_t max_leaves);

uint64_t cs_bits_count(const struct cs_bits *bits);
/* Bytes that it holds. */
uint64_t cs_bits_memory(const struct cs_bits *bits);

#endif
