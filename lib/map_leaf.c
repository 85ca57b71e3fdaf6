/* SPDX-License-Identifier: MIT
 *
 * Leaf: see map_leaf.h for layouts, invariants and locking.
 */
#include "map_leaf.h"

#include <assert.h>

/* Layouts change twice at most within an epoch (invariant 4), so the third look is at rest. */
#define LOOKS_MAX 3

static_assert(sizeof(struct cs_leaf) == 64, "a leaf is a cache line");
static_assert(sizeof(struct cs_piece) == 128, "a piece is an object of the pool");

static uint64_t piece_word(const struct cs_piece *piece, uint64_t piece_kind)
{
	return (uint64_t)(uintptr_t)piece | piece_kind << CS_KIND_SHIFT;
}

static uint64_t entry_of(unsigned chunk, uint64_t location)
{
	return CS_KIND_ENTRY << CS_KIND_SHIFT | (uint64_t)chunk << CS_CHUNK_SHIFT |
	       cs_entry_location(location);
}

/* Pairs with cs_leaf_get(). */
static void set(_Atomic uint64_t *word, uint64_t value)
{
	atomic_store_explicit(word, value, memory_order_release);
}

static uint64_t own(const _Atomic uint64_t *word)
{
	return atomic_load_explicit(word, memory_order_relaxed);
}

/* ---- Readers -------------------------------------------------------------------------------- */

/* A list is filled from entry chunk % 16 on, so the search mostly ends at its first step. */
static uint64_t list_find(const struct cs_piece *list, unsigned chunk)
{
	for (unsigned i = 0; i < CS_LIST_ENTRIES; i++) {
		uint64_t entry = cs_leaf_get(&list->entry[(chunk + i) % CS_LIST_ENTRIES]);

		if (cs_entry_is_of(entry, chunk))
			return entry;
	}
	return 0;
}

static uint64_t few_find(const struct cs_leaf *leaf, unsigned chunk)
{
	for (unsigned i = 0; i < CS_LEAF_WORDS; i++) {
		uint64_t entry = cs_leaf_get(&leaf->word[i]);

		if (cs_entry_is_of(entry, chunk))
			return entry;
	}
	return 0;
}

/* By the order of invariant 5, in a leaf that may change its layout meanwhile. */
static uint64_t search(const struct cs_leaf *leaf, unsigned chunk)
{
	for (unsigned look = 0; look < LOOKS_MAX; look++) {
		uint64_t first = cs_leaf_get(&leaf->word[0]);
		uint64_t entry;

		if (cs_word_kind(first) == CS_KIND_TABLE) {
			/* Its other words were set before word[0]. */
			uint64_t word = cs_leaf_get(&leaf->word[chunk / CS_PIECE_ENTRIES]);

			if (cs_word_kind(word) != CS_KIND_TABLE || !cs_word_piece(word))
				return 0;
			return cs_leaf_get(&cs_word_piece(word)->entry[chunk % CS_PIECE_ENTRIES]);
		}
		if (cs_word_kind(first) == CS_KIND_LIST) {
			entry = list_find(cs_word_piece(first), chunk);
			/* The list may have been given up, and filled by another leaf. */
			if (cs_leaf_get(&leaf->word[0]) == first)
				return entry;
			continue;
		}
		entry = few_find(leaf, chunk);
		if (entry)
			return entry;
		first = cs_leaf_get(&leaf->word[0]);
		if (cs_word_kind(first) != CS_KIND_LIST && cs_word_kind(first) != CS_KIND_TABLE)
			return 0;
	}
	return 0;
}

uint64_t cs_leaf_entry(const struct cs_leaf *leaf, unsigned chunk)
{
	uint64_t entry = cs_leaf_table_entry(leaf, chunk);

	return cs_likely(entry) ? entry : search(leaf, chunk);
}

uint64_t cs_leaf_read(
	const struct cs_leaf *leaf, uint64_t want, unsigned base, uint64_t locations[])
{
	uint64_t epoch = cs_leaf_get(&leaf->epoch);
	uint64_t mask = cs_leaf_done(leaf) & want;

	for (uint64_t rest = mask; rest; rest &= rest - 1) {
		unsigned chunk = (unsigned)__builtin_ctzll(rest);
		uint64_t entry = cs_leaf_entry(leaf, chunk);

		locations[chunk - base] = cs_entry_location(entry);
		if (!cs_entry_is_of(entry, chunk))
			mask &= ~(UINT64_C(1) << chunk);
	}
	/* As in cs_leaf_confirm(). */
	mask &= cs_leaf_done(leaf);
	return own(&leaf->epoch) == epoch ? mask : 0;
}

/* ---- Writers, under the stripe's lock ------------------------------------------------------- */

void cs_leaf_init(struct cs_leaf *leaf, uint64_t key)
{
	leaf->key = key;
	leaf->busy = 0;
	set(&leaf->done, 0);
	set(&leaf->epoch, 0);
	for (unsigned i = 0; i < CS_LEAF_WORDS; i++)
		set(&leaf->word[i], 0);
}

/* The quarters that hold at least one of @bits, one bit each. */
static unsigned quarters_of(uint64_t bits)
{
	unsigned quarters = 0;

	for (unsigned q = 0; q < CS_LEAF_WORDS; q++) {
		if (bits >> (q * CS_PIECE_ENTRIES) & 0xffff)
			quarters |= 1u << q;
	}
	return quarters;
}

/* Adds the quarters of @bits that a table has no piece for. */
static void plan_quarters(struct cs_leaf_plan *plan, const struct cs_leaf *leaf, uint64_t bits)
{
	for (unsigned q = 0; q < CS_LEAF_WORDS; q++) {
		if ((bits >> (q * CS_PIECE_ENTRIES) & 0xffff) &&
			!cs_word_piece(own(&leaf->word[q]))) {
			plan->quarters |= 1u << q;
			plan->pieces++;
		}
	}
}

struct cs_leaf_plan cs_leaf_plan(const struct cs_leaf *leaf, uint64_t bits)
{
	uint64_t now = cs_word_kind(own(&leaf->word[0]));
	uint64_t all = own(&leaf->done) | leaf->busy | bits;
	struct cs_leaf_plan plan = {.layout = CS_KIND_TABLE};
	unsigned count;

	if (cs_likely(now == CS_KIND_TABLE)) {
		plan_quarters(&plan, leaf, bits);
		return plan;
	}
	count = (unsigned)__builtin_popcountll(all);
	if (count > CS_LIST_ENTRIES) {
		plan.quarters = quarters_of(all);
		plan.pieces = (unsigned)__builtin_popcount(plan.quarters);
		/* From few by way of a list, if there are entries: readers follow one change of
		 * word[0] at a time. */
		if (now != CS_KIND_LIST && own(&leaf->done))
			plan.pieces++;
		return plan;
	}
	plan.layout = now == CS_KIND_LIST || count > CS_LEAF_WORDS ? CS_KIND_LIST : CS_KIND_ENTRY;
	plan.pieces = plan.layout == CS_KIND_LIST && now != CS_KIND_LIST;
	return plan;
}

static struct cs_piece *piece_take(struct cs_pool_list *pieces)
{
	struct cs_piece *piece = cs_pool_pop(pieces);

	assert(piece);
	for (unsigned i = 0; i < CS_PIECE_ENTRIES; i++)
		set(&piece->entry[i], 0);
	return piece;
}

/* NULL: the list is full. */
static _Atomic uint64_t *list_room(struct cs_piece *list, unsigned chunk)
{
	for (unsigned i = 0; i < CS_LIST_ENTRIES; i++) {
		_Atomic uint64_t *at = &list->entry[(chunk + i) % CS_LIST_ENTRIES];

		if (!own(at))
			return at;
	}
	return NULL;
}

static unsigned chunk_of(uint64_t entry)
{
	return (unsigned)(entry >> CS_CHUNK_SHIFT) % CS_LEAF_CHUNKS;
}

static void few_to_list(struct cs_leaf *leaf, struct cs_pool_list *pieces)
{
	struct cs_piece *list = piece_take(pieces);

	for (unsigned i = 0; i < CS_LEAF_WORDS; i++) {
		uint64_t entry = own(&leaf->word[i]);

		/* It is new, so there is room. */
		if (entry)
			set(list_room(list, chunk_of(entry)), entry);
	}
	/* The list first: who misses an entry in the words that are wiped next, finds it there. */
	set(&leaf->word[0], piece_word(list, CS_KIND_LIST));
	for (unsigned i = 1; i < CS_LEAF_WORDS; i++)
		set(&leaf->word[i], 0);
}

static void to_table(struct cs_leaf *leaf, unsigned quarters, struct cs_pool_list *pieces)
{
	struct cs_piece *table[CS_LEAF_WORDS] = {NULL};
	struct cs_piece *list = NULL;

	for (unsigned q = 0; q < CS_LEAF_WORDS; q++)
		table[q] = quarters >> q & 1 ? piece_take(pieces) : NULL;
	if (cs_word_kind(own(&leaf->word[0])) == CS_KIND_LIST)
		list = cs_word_piece(own(&leaf->word[0]));
	for (unsigned i = 0; list && i < CS_LIST_ENTRIES; i++) {
		uint64_t entry = own(&list->entry[i]);
		unsigned chunk = chunk_of(entry);

		if (entry)
			set(&table[chunk / CS_PIECE_ENTRIES]->entry[chunk % CS_PIECE_ENTRIES],
				entry);
	}
	/* word[0] last: while it is the list, the list is whole. */
	for (unsigned q = CS_LEAF_WORDS; q-- > 0;)
		set(&leaf->word[q], piece_word(table[q], CS_KIND_TABLE));
	if (list)
		cs_pool_push(pieces, list);
}

static void add_quarters(struct cs_leaf *leaf, unsigned quarters, struct cs_pool_list *pieces)
{
	for (unsigned q = 0; q < CS_LEAF_WORDS; q++) {
		if (quarters >> q & 1)
			set(&leaf->word[q], piece_word(piece_take(pieces), CS_KIND_TABLE));
	}
}

/* Room for one more entry in a list or among few; NULL: there is none. */
static _Atomic uint64_t *room_marked(struct cs_leaf *leaf, unsigned chunk)
{
	uint64_t first = own(&leaf->word[0]);

	if (cs_word_kind(first) == CS_KIND_LIST)
		return list_room(cs_word_piece(first), chunk);
	for (unsigned i = 0; i < CS_LEAF_WORDS; i++) {
		if (!own(&leaf->word[i]))
			return &leaf->word[i];
	}
	return NULL;
}

/* The part of place() that is not for tables. */
static _Atomic uint64_t *place_marked(struct cs_leaf *leaf, unsigned chunk, bool busy)
{
	uint64_t first = own(&leaf->word[0]);
	_Atomic uint64_t *entries = leaf->word;
	unsigned count = CS_LEAF_WORDS;

	if (busy) {
		entries = room_marked(leaf, chunk);
		assert(entries && "invariant 3");
		return entries;
	}
	if (cs_word_kind(first) == CS_KIND_LIST) {
		entries = cs_word_piece(first)->entry;
		count = CS_LIST_ENTRIES;
	}
	for (unsigned i = 0; i < count; i++) {
		if (cs_entry_is_of(own(&entries[i]), chunk))
			return &entries[i];
	}
	assert(!"invariant 2");
	return NULL;
}

/* Where the entry of a done chunk is; where that of a busy one goes. */
static inline _Atomic uint64_t *place(struct cs_leaf *leaf, unsigned chunk, bool busy)
{
	uint64_t word = own(&leaf->word[chunk / CS_PIECE_ENTRIES]);

	if (cs_likely(cs_word_kind(word) == CS_KIND_TABLE))
		return &cs_word_piece(word)->entry[chunk % CS_PIECE_ENTRIES];
	return place_marked(leaf, chunk, busy);
}

void cs_leaf_claim(struct cs_leaf *leaf, uint64_t bits, const struct cs_leaf_plan *plan,
	struct cs_pool_list *pieces)
{
	uint64_t now = cs_word_kind(own(&leaf->word[0]));

	assert(!((own(&leaf->done) | leaf->busy) & bits));
	assert(plan->pieces <= pieces->count);
	leaf->busy |= bits;
	if (cs_likely(!plan->pieces && plan->layout != CS_KIND_TABLE))
		return;
	if (now == CS_KIND_TABLE) {
		if (cs_unlikely(plan->quarters))
			add_quarters(leaf, plan->quarters, pieces);
		return;
	}
	if (now != CS_KIND_LIST && (plan->layout == CS_KIND_LIST || own(&leaf->done)))
		few_to_list(leaf, pieces);
	if (plan->layout == CS_KIND_TABLE)
		to_table(leaf, plan->quarters, pieces);
}

bool cs_leaf_put(struct cs_leaf *leaf, unsigned chunk, uint64_t location)
{
	uint64_t word = own(&leaf->word[chunk / CS_PIECE_ENTRIES]);
	_Atomic uint64_t *at = NULL;

	if (cs_word_kind(word) == CS_KIND_TABLE) {
		if (cs_word_piece(word))
			at = &cs_word_piece(word)->entry[chunk % CS_PIECE_ENTRIES];
	} else if (!leaf->busy) {
		/* What is busy has a claim to room that cannot be told from free room. */
		at = room_marked(leaf, chunk);
	}
	if (!at)
		return false;
	set(at, entry_of(chunk, location));
	/* Pairs with cs_leaf_done(). */
	set(&leaf->done, own(&leaf->done) | UINT64_C(1) << chunk);
	return true;
}

void cs_leaf_publish(struct cs_leaf *leaf, uint64_t bits, uint64_t location, unsigned step)
{
	assert((leaf->busy & bits) == bits);
	for (uint64_t rest = bits; rest; rest &= rest - 1) {
		unsigned chunk = (unsigned)__builtin_ctzll(rest);

		set(place(leaf, chunk, true), entry_of(chunk, location + (uint64_t)chunk * step));
	}
	leaf->busy &= ~bits;
	/* Pairs with cs_leaf_done(). */
	set(&leaf->done, own(&leaf->done) | bits);
}

/* Gives the pieces of an empty leaf away. */
static void trim(struct cs_leaf *leaf, struct cs_pool_list *pieces)
{
	uint64_t words[CS_LEAF_WORDS];

	if ((own(&leaf->done) | leaf->busy) || cs_word_kind(own(&leaf->word[0])) == 0)
		return;
	/* Before any word changes: pairs with the second look of cs_leaf_read(). */
	set(&leaf->epoch, own(&leaf->epoch) + 1);
	for (unsigned i = 0; i < CS_LEAF_WORDS; i++) {
		words[i] = own(&leaf->word[i]);
		set(&leaf->word[i], 0);
	}
	for (unsigned i = 0; i < CS_LEAF_WORDS; i++) {
		if (cs_word_piece(words[i]))
			cs_pool_push(pieces, cs_word_piece(words[i]));
	}
}

void cs_leaf_abort(struct cs_leaf *leaf, uint64_t bits, struct cs_pool_list *pieces)
{
	assert((leaf->busy & bits) == bits);
	leaf->busy &= ~bits;
	trim(leaf, pieces);
}

void cs_leaf_replace(struct cs_leaf *leaf, unsigned chunk, uint64_t location)
{
	assert(own(&leaf->done) >> chunk & 1);
	set(place(leaf, chunk, false), entry_of(chunk, location));
}

void cs_leaf_remove(struct cs_leaf *leaf, uint64_t bits, struct cs_pool_list *pieces)
{
	assert((own(&leaf->done) & bits) == bits);
	/* Done first, then the entries: pairs with the first look of cs_leaf_read(). */
	set(&leaf->done, own(&leaf->done) & ~bits);
	for (uint64_t rest = bits; rest; rest &= rest - 1)
		set(place(leaf, (unsigned)__builtin_ctzll(rest), false), 0);
	trim(leaf, pieces);
}
