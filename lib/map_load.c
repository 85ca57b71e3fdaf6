/* SPDX-License-Identifier: MIT
 *
 * Bulk load of a map that nobody else uses.
 *
 * A chunk in random order costs three cache misses that wait for each other: bucket, leaf, piece.
 * So entries are taken in blocks, and the whole block makes each step of the look-up before the
 * next: while the processor waits for one line, it asks for those of the others. What lies in one
 * leaf and comes in a row is a part, and is put at once.
 *
 * Invariants: those of map_body.h, map_index.h and map_leaf.h, whenever a part has been put. What
 * the steps before it find are hints, but for a leaf, which stays where it is.
 * Locking: none, but for the stripes that splits lock.
 * Failure: what was put before stays.
 */
#include <assert.h>
#include <errno.h>

#include "map_body.h"

/* More than the processor can wait for at once, and few enough that all their lines stay in the
 * first-level cache. */
#define BLOCK_PARTS 64
/* Objects that are fetched from the pool at a time. */
#define AHEAD_MAX   32
/* Buckets between the split that comes next and those that are asked for. */
#define SPLITS_FAR  16

/* Entries in a row whose chunks lie in one leaf and differ. */
struct part {
	const struct cs_map_entry *entries;
	unsigned count;
	uint64_t key;
	uint64_t bits;
	uint64_t tag;
	const struct cs_bucket *bucket; /* of the chain, as far as it was followed */
	struct cs_leaf *leaf;           /* NULL: not found yet */
};

struct load {
	struct cs_map_body *body;
	struct cs_pool_list lines;
	struct cs_pool_list pieces;
	uint32_t ahead;
	unsigned parts;
	struct part part[BLOCK_PARTS];
};

static uint64_t own(const _Atomic uint64_t *word)
{
	return atomic_load_explicit(word, memory_order_relaxed);
}

static inline unsigned in_leaf(const struct cs_map_entry *entry)
{
	return (unsigned)(entry->chunk % CS_LEAF_CHUNKS);
}

/* ---- The steps of the look-up --------------------------------------------------------------- */

/* Cuts a block's parts off the entries, and asks for their buckets. Returns where it ends. */
static const struct cs_map_entry *cut_block(
	struct load *load, const struct cs_map_entry *at, const struct cs_map_entry *end)
{
	const struct cs_index *index = &load->body->index;
	uint64_t size = own(&index->size);

	for (load->parts = 0; load->parts < BLOCK_PARTS && at < end; load->parts++) {
		struct part *part = &load->part[load->parts];
		uint64_t key = at->chunk / CS_LEAF_CHUNKS;
		uint64_t hash = cs_index_hash(key);
		uint64_t bits = 0;
		uint64_t bit = UINT64_C(1) << in_leaf(at);

		part->entries = at;
		part->key = key;
		part->tag = cs_index_tag(hash);
		part->bucket = cs_index_bucket(index, cs_index_address(hash, size));
		__builtin_prefetch(part->bucket);
		do {
			bits |= bit;
			if (++at == end)
				break;
			bit = UINT64_C(1) << in_leaf(at);
		} while (at->chunk / CS_LEAF_CHUNKS == key && !(bits & bit));
		part->bits = bits;
		part->count = (unsigned)(at - part->entries);
	}
	return at;
}

/* Asks for a part's leaf, or else for the next bucket of its chain: then it returns true. */
static inline bool ask_leaf(struct part *part)
{
	const struct cs_bucket *bucket = part->bucket;
	uint64_t match = cs_bucket_match(own(&bucket->tags), part->tag);
	uint64_t last = own(&bucket->slot[CS_BUCKET_SLOTS - 1]);

	if (cs_likely(match)) {
		uint64_t slot = own(&bucket->slot[(unsigned)__builtin_ctzll(match) / 8]);

		__builtin_prefetch(cs_slot_pointer(slot), 1);
		return false;
	}
	if (!(last & CS_SLOT_LINK))
		return false;
	part->bucket = cs_slot_pointer(last);
	__builtin_prefetch(part->bucket);
	return true;
}

static void ask_leaves(struct load *load)
{
	struct part *waiting[BLOCK_PARTS];
	unsigned count = 0;

	for (unsigned i = 0; i < load->parts; i++) {
		if (cs_unlikely(ask_leaf(&load->part[i])))
			waiting[count++] = &load->part[i];
	}
	while (count) {
		unsigned left = 0;

		for (unsigned i = 0; i < count; i++) {
			if (ask_leaf(waiting[i]))
				waiting[left++] = waiting[i];
		}
		count = left;
	}
}

/* Asks for where a leaf's entry of the chunk will be. */
static inline void ask_piece(const struct cs_leaf *leaf, unsigned chunk)
{
	uint64_t word = own(&leaf->word[0]);
	const struct cs_piece *piece;

	if (cs_word_kind(word) == CS_KIND_TABLE)
		word = own(&leaf->word[chunk / CS_PIECE_ENTRIES]);
	else if (cs_word_kind(word) != CS_KIND_LIST)
		return;
	piece = cs_word_piece(word);
	if (cs_unlikely(!piece))
		return;
	__builtin_prefetch(&piece->entry[chunk % CS_PIECE_ENTRIES], 1);
	/* The search for room in a list goes on in the other line. */
	if (cs_word_kind(word) == CS_KIND_LIST)
		__builtin_prefetch(&piece->entry[(chunk + 8) % CS_PIECE_ENTRIES], 1);
}

/* Asks for the leaves of the buckets that are split soon, if @leaves are inserted. */
static void ask_splits(const struct cs_index *index, unsigned leaves)
{
	uint64_t size = own(&index->size);
	uint64_t half = cs_index_half(size);
	uint64_t bucket = cs_index_count(size) - half;

	for (unsigned i = 0; i < leaves && bucket + SPLITS_FAR < half; i += 3, bucket++) {
		const struct cs_bucket *source = cs_index_bucket(index, bucket);

		__builtin_prefetch(cs_index_bucket(index, bucket + SPLITS_FAR));
		for (unsigned k = 0; k < CS_BUCKET_SLOTS; k++)
			__builtin_prefetch(cs_slot_pointer(own(&source->slot[k])));
	}
}

static void ask_pieces(struct load *load)
{
	unsigned missing = 0;

	for (unsigned i = 0; i < load->parts; i++) {
		struct part *part = &load->part[i];

		part->leaf = cs_bucket_find(part->bucket, part->key, part->tag);
		if (part->leaf)
			ask_piece(part->leaf, in_leaf(part->entries));
		else
			missing++;
	}
	if (missing)
		ask_splits(&load->body->index, missing);
}

/* ---- Putting -------------------------------------------------------------------------------- */

/* Sees to it that there are that many free objects. */
static int refill(struct load *load, uint32_t lines, uint32_t pieces)
{
	struct cs_pool *pool = &load->body->pool;
	int err = 0;

	if (lines > load->lines.count)
		err = cs_pool_get(pool, CS_POOL_64, lines, lines + load->ahead, &load->lines);
	if (!err && pieces > load->pieces.count)
		err = cs_pool_get(pool, CS_POOL_128, pieces, pieces + load->ahead, &load->pieces);
	return err;
}

/* What is claimed becomes done: as runs, where chunks and locations follow each other. */
static void publish(struct cs_leaf *leaf, const struct part *part)
{
	const struct cs_map_entry *end = part->entries + part->count;

	for (const struct cs_map_entry *at = part->entries; at < end;) {
		const struct cs_map_entry *first = at++;

		while (at < end && at->chunk == at[-1].chunk + 1 &&
			at->location == at[-1].location + 1)
			at++;
		cs_leaf_publish(leaf, cs_leaf_bits(in_leaf(first), (unsigned)(at - first)),
			first->location - in_leaf(first), 1);
	}
}

/* All that cs_leaf_put() cannot do. @leaf: NULL if there is none yet. */
static int put_slowly(struct load *load, const struct part *part, struct cs_leaf *leaf)
{
	static const struct cs_leaf empty = {0};
	struct cs_index *index = &load->body->index;
	const struct cs_leaf_plan plan = cs_leaf_plan(leaf ? leaf : &empty, part->bits);
	bool grown = !leaf;
	uint32_t lines = 0;
	int err;

	if (grown)
		lines = cs_index_full(index, cs_index_hash(part->key)) ? 2 : 1;
	err = refill(load, lines, plan.pieces);
	if (err)
		return err;
	if (grown) {
		leaf = cs_pool_pop(&load->lines);
		assert(leaf);
		cs_leaf_init(leaf, part->key);
		cs_index_insert(index, leaf, &load->lines);
	}
	cs_leaf_claim(leaf, part->bits, &plan, &load->pieces);
	publish(leaf, part);
	if (grown)
		cs_map_grow(load->body);
	return 0;
}

/* The first of a part's chunks that is done. */
static uint64_t first_done(const struct part *part, const struct cs_leaf *leaf)
{
	unsigned i = 0;

	while (!(cs_leaf_done(leaf) >> in_leaf(&part->entries[i]) & 1))
		i++;
	return part->entries[i].chunk;
}

static int put_part(struct load *load, const struct part *part, uint64_t *duplicate) CS_NO_TSA
{
	struct cs_leaf *leaf = part->leaf;
	int err = 0;

	/* A part before may have made it. */
	if (cs_unlikely(!leaf))
		leaf = cs_index_search(&load->body->index, part->key);
	if (cs_unlikely(leaf && (cs_leaf_done(leaf) & part->bits))) {
		*duplicate = first_done(part, leaf);
		return -EEXIST;
	}
	if (cs_unlikely(!leaf || part->count > 1 ||
			!cs_leaf_put(leaf, in_leaf(part->entries), part->entries->location)))
		err = put_slowly(load, part, leaf);
	if (!err)
		cs_stripe_count(cs_map_stripe(load->body, part->key), part->count);
	return err;
}

int cs_map_load(struct cowsnap_map *map, const struct cs_map_entry *entries, size_t count,
	uint64_t *duplicate)
{
	const struct cs_map_entry *at = entries;
	struct load load = {
		.body = cs_map_body(map),
		.ahead = count < AHEAD_MAX ? (uint32_t)count : AHEAD_MAX,
	};
	int err = 0;

	if (!load.body && count)
		load.body = cs_map_body_make(map);
	if (!load.body)
		return count ? -ENOMEM : 0;
	while (!err && at < entries + count) {
		at = cut_block(&load, at, entries + count);
		ask_leaves(&load);
		ask_pieces(&load);
		for (unsigned i = 0; i < load.parts && !err; i++)
			err = put_part(&load, &load.part[i], duplicate);
	}
	cs_pool_put(&load.body->pool, CS_POOL_64, &load.lines);
	cs_pool_put(&load.body->pool, CS_POOL_128, &load.pieces);
	return err;
}
