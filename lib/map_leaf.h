/* SPDX-License-Identifier: MIT
 *
 * Leaf: 64 consecutive chunks of a map in one cache line, with the locations of those that are
 * done, in one of three layouts:
 *
 *     few     word[0..3] are up to 4 entries, each marked with its chunk
 *     list    word[0] points to a piece of 16 entries, each marked with its chunk; the rest is 0
 *     table   word[q] points to the piece of quarter q, where entry i is that of chunk 16 q + i
 *
 * A leaf goes few -> list -> table as claims come, and back to few when it has become empty.
 *
 *     entry    bits 62..63: 2    bits 56..61: chunk in the leaf    bits 0..55: location
 *     list     bits 62..63: 1    bits 0..61: address of the piece
 *     table    bits 62..63: 3    bits 0..61: address of the piece, 0 while the quarter has none
 *     nothing  0
 *
 * Invariants:
 *  1. A leaf never moves and is never freed before the map ends; `key` never changes.
 *  2. A chunk is in `done` or in `busy` or in neither. A done chunk has exactly one entry, written
 *     before its done bit is set; a chunk that is not done has none once the lock is free.
 *  3. There is room for an entry of each chunk that is done or busy, so publishing cannot fail.
 *  4. Within one `epoch` word[0] only ever goes few -> list -> table, and a piece that left the
 *     leaf does not come back to the same word. `epoch` changes only while nothing is done or busy.
 *  5. At each moment the entry of a done chunk is found by following the words in the order in
 *     which leaf_entry() reads them, whatever change of layout is under way.
 *
 * Locking: all changes are made under the lock of the leaf's stripe. Readers take no lock and write
 * nothing. A reader that sees `epoch` change knows that all chunks of the leaf were free at some
 * moment of its call and may say so; with 4 that bounds its retries.
 * Failure: none here. Pieces that a change needs are asked for with cs_leaf_plan() and brought in.
 */
#ifndef CS_MAP_LEAF_H
#define CS_MAP_LEAF_H

#include <cowsnap.h>
#include <cowsnap/blocks.h>

#include "pool.h"

#define CS_LEAF_CHUNKS   64
#define CS_LEAF_WORDS    4
#define CS_PIECE_ENTRIES 16u
#define CS_LIST_ENTRIES  16

struct cs_piece {
	_Atomic uint64_t entry[CS_PIECE_ENTRIES];
};

struct cs_leaf {
	uint64_t key; /* chunk / 64 */
	_Atomic uint64_t done;
	uint64_t busy; /* under the stripe's lock */
	_Atomic uint64_t epoch;
	_Atomic uint64_t word[CS_LEAF_WORDS];
};

/* Bits @first to @first + @count - 1 of a leaf; @count is 1 to 64. */
static inline uint64_t cs_leaf_bits(unsigned first, unsigned count)
{
	return (~UINT64_C(0) >> (CS_LEAF_CHUNKS - count)) << first;
}

#define CS_KIND_LIST   UINT64_C(1)
#define CS_KIND_ENTRY  UINT64_C(2)
#define CS_KIND_TABLE  UINT64_C(3)
#define CS_KIND_SHIFT  62
#define CS_CHUNK_SHIFT 56

static inline uint64_t cs_word_kind(uint64_t word)
{
	return word >> CS_KIND_SHIFT;
}

static inline struct cs_piece *cs_word_piece(uint64_t word)
{
	return (struct cs_piece *)(uintptr_t)(word & ((UINT64_C(1) << CS_KIND_SHIFT) - 1));
}

static inline bool cs_entry_is_of(uint64_t entry, unsigned chunk)
{
	return entry >> CS_CHUNK_SHIFT ==
	       (CS_KIND_ENTRY << (CS_KIND_SHIFT - CS_CHUNK_SHIFT) | chunk);
}

static inline uint64_t cs_entry_location(uint64_t entry)
{
	return entry & ((UINT64_C(1) << CS_CHUNK_SHIFT) - 1);
}

/* What is read through this may be of a later use of the same memory. It pairs with
 * set() in map_leaf.c: whoever reads a later word also sees the word or epoch that went before. */
static inline uint64_t cs_leaf_get(const _Atomic uint64_t *word)
{
	return atomic_load_explicit(word, memory_order_acquire);
}

/* How many bits there are in a run of them; @bits is not 0. */
static inline unsigned cs_leaf_run_length(uint64_t bits)
{
	uint64_t run = bits >> __builtin_ctzll(bits);

	return ~run ? (unsigned)__builtin_ctzll(~run) : CS_LEAF_CHUNKS;
}

/* An acquire: pairs with the release in cs_leaf_publish(). */
static inline uint64_t cs_leaf_done(const struct cs_leaf *leaf)
{
	return cs_leaf_get(&leaf->done);
}

/* The entry of a chunk, 0 if there is none: of this leaf, unless its epoch has changed. Wait-free.
 */
uint64_t cs_leaf_entry(const struct cs_leaf *leaf, unsigned chunk);

/* A table's entry of a chunk, 0 if there is none or the leaf is not a table. */
static inline uint64_t cs_leaf_table_entry(const struct cs_leaf *leaf, unsigned chunk)
{
	uint64_t word = cs_leaf_get(&leaf->word[chunk / CS_PIECE_ENTRIES]);

	if (cs_unlikely(cs_word_kind(word) != CS_KIND_TABLE || !cs_word_piece(word)))
		return 0;
	return cs_leaf_get(&cs_word_piece(word)->entry[chunk % CS_PIECE_ENTRIES]);
}

/*
 * The location of a chunk that has this entry, if it is done. Done is looked at before and after
 * the entry. Before: an entry that a removal has not wiped yet must not come back from the dead.
 * After: an entry of a later claim counts once it is published.
 */
static inline bool cs_leaf_confirm(const struct cs_leaf *leaf, uint64_t epoch, unsigned chunk,
	uint64_t entry, uint64_t *location)
{
	if (cs_unlikely(!cs_entry_is_of(entry, chunk) || !(cs_leaf_done(leaf) >> chunk & 1) ||
			cs_leaf_get(&leaf->epoch) != epoch))
		return false;
	*location = cs_entry_location(entry);
	return true;
}

/* Which of the chunks @want are done; their locations go to locations[chunk - @base]. Wait-free. */
uint64_t cs_leaf_read(
	const struct cs_leaf *leaf, uint64_t want, unsigned base, uint64_t locations[]);

/* ---- Under the lock of the leaf's stripe ---------------------------------------------------- */

void cs_leaf_init(struct cs_leaf *leaf, uint64_t key);
/* Claims if that needs no more than setting bits: all of @bits are in one quarter of a table. */
static inline bool cs_leaf_claim_quick(struct cs_leaf *leaf, uint64_t bits)
{
	unsigned chunk = (unsigned)__builtin_ctzll(bits);
	uint64_t word =
		atomic_load_explicit(&leaf->word[chunk / CS_PIECE_ENTRIES], memory_order_relaxed);

	if (cs_word_kind(word) != CS_KIND_TABLE || !cs_word_piece(word) ||
		bits >> (chunk & ~(CS_PIECE_ENTRIES - 1)) >> CS_PIECE_ENTRIES)
		return false;
	leaf->busy |= bits;
	/* The next to be written, as a rule soon. */
	__builtin_prefetch((void *)&cs_word_piece(word)->entry[chunk % CS_PIECE_ENTRIES], 1);
	return true;
}

/* What a claim changes besides `busy`. */
struct cs_leaf_plan {
	uint64_t layout;   /* CS_KIND_TABLE, CS_KIND_LIST, or CS_KIND_ENTRY for few */
	unsigned quarters; /* of the table that get a piece, one bit each */
	unsigned pieces;   /* how many it takes in all */
};

/* @bits are free. */
struct cs_leaf_plan cs_leaf_plan(const struct cs_leaf *leaf, uint64_t bits);
/* By the plan just made; @pieces holds as many as it takes. A piece that is no longer used goes
 * there. */
void cs_leaf_claim(struct cs_leaf *leaf, uint64_t bits, const struct cs_leaf_plan *plan,
	struct cs_pool_list *pieces);
/* Claims and publishes a free chunk if there is room for its entry. Returns: whether there was; if
 * not, nothing has changed. */
bool cs_leaf_put(struct cs_leaf *leaf, unsigned chunk, uint64_t location);
/* @bits are busy. Chunk i of the leaf gets @location + i * @step. */
void cs_leaf_publish(struct cs_leaf *leaf, uint64_t bits, uint64_t location, unsigned step);
void cs_leaf_abort(struct cs_leaf *leaf, uint64_t bits, struct cs_pool_list *pieces);
/* @chunk is done. */
void cs_leaf_replace(struct cs_leaf *leaf, unsigned chunk, uint64_t location);
/* @bits are done. */
void cs_leaf_remove(struct cs_leaf *leaf, uint64_t bits, struct cs_pool_list *pieces);

#endif
