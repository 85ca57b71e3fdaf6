/* SPDX-License-Identifier: MIT
 *
 * Sparse bitmaps: see bits.h for shape, invariants and locking.
 */
#include "bits.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "alloc.h"
#include "pool.h"

#define STRIPES     16u
#define WORD_BITS   64u
#define WORDS       (CS_BITS_GROUP / WORD_BITS)
#define NUMBER_BITS 12u
#define SLIPS_MAX   16u /* of a list; a node takes no more than a quarter above that */
#define SLIPS_AHEAD 16u
#define MANY        16u /* more new ones of 64 do not go into a list */

/* The word of a group, by its low two bits; none of them is one of the map's special locations. */
#define KIND_MASK UINT64_C(3)
#define KIND_LIST UINT64_C(0)
#define KIND_FEW  UINT64_C(1)
#define KIND_NODE UINT64_C(2)
#define KIND_FULL UINT64_C(3) /* and nothing else */
#define FEW_MAX   4u
#define FEW_SHIFT 2u

/* In a list, word[0] is the next one, and the others hold up to five numbers each: those that are
 * not there repeat the first. Above the numbers is how many there are. 0: none. */
#define SLIP_WORDS   4u
#define WORD_NUMBERS 5u
#define COUNT_SHIFT  60u
#define EACH_NUMBER  UINT64_C(0x1001001001001) /* a 1 for each */

struct slip {
	_Atomic uint64_t word[SLIP_WORDS];
};

#define NODE_SLIPS (CS_BITS_GROUP / (SLIP_WORDS * WORD_BITS))

struct node {
	_Atomic(struct slip *) slip[NODE_SLIPS];
};

static_assert(2 * sizeof(struct slip) == 64, "two slips are an object of the pool");
static_assert(sizeof(struct node) == 128, "a node is one");

struct bits_stripe {
	_Alignas(CS_CACHE_BYTES) struct cs_mutex lock;
	struct cs_pool_list slips, nodes; /* set aside; under lock */
};

struct cs_bits_body {
	struct cowsnap_map groups;
	_Atomic uint64_t given_back; /* lists whose slips were */
	struct cs_pool pool;
	unsigned many; /* MANY; 0: nothing goes into a list */
	_Atomic uint64_t count;
	struct bits_stripe stripes[STRIPES];
};

static struct cs_bits_body *body_of(const struct cs_bits *bits)
{
	/* Acquire: pairs with make_body. */
	return atomic_load_explicit(&bits->body, memory_order_acquire);
}

static void free_body(struct cs_bits *bits, struct cs_bits_body *body)
{
	for (unsigned i = 0; i < STRIPES; i++)
		cs_mutex_fini(&body->stripes[i].lock);
	cs_map_fini(&body->groups);
	cs_pool_fini(&body->pool);
	cs_free(bits->alloc, body, sizeof(*body));
}

static struct cs_bits_body *make_body(struct cs_bits *bits)
{
	struct cs_bits_body *made =
		cs_alloc_aligned(bits->alloc, sizeof(*made), _Alignof(struct cs_bits_body));
	struct cs_bits_body *body = NULL;

	if (!made)
		return NULL;
	memset(made, 0, sizeof(*made));
	if (cs_pool_init(&made->pool, bits->alloc)) {
		cs_free(bits->alloc, made, sizeof(*made));
		return NULL;
	}
	made->many = bits->dense ? 0 : MANY;
	cs_map_init(&made->groups, bits->alloc);
	for (unsigned i = 0; i < STRIPES; i++)
		cs_mutex_init(&made->stripes[i].lock);
	/* Release: pairs with body_of; acquire: what another thread made. */
	if (atomic_compare_exchange_strong_explicit(
		    &bits->body, &body, made, memory_order_acq_rel, memory_order_acquire))
		return made;
	free_body(bits, made);
	return body;
}

void cs_bits_fini(struct cs_bits *bits)
{
	struct cs_bits_body *body = body_of(bits);

	if (body)
		free_body(bits, body);
	atomic_store_explicit(&bits->body, NULL, memory_order_relaxed);
}

/* ---- What a group holds ---------------------------------------------------------------------- */

static uint64_t kind_of(uint64_t value)
{
	return value & KIND_MASK;
}

static struct slip *slip_of(uint64_t value)
{
	return (struct slip *)(uintptr_t)value;
}

static struct node *node_of(uint64_t value)
{
	return (struct node *)(uintptr_t)(value & ~KIND_MASK);
}

/* Of slips that are in use, or may be used again: pairs with set_word. */
static uint64_t word_at(const struct slip *slip, unsigned at)
{
	return atomic_load_explicit(&slip->word[at], memory_order_acquire);
}

static void set_word(struct slip *slip, unsigned at, uint64_t word)
{
	/* Release: pairs with word_at. */
	atomic_store_explicit(&slip->word[at], word, memory_order_release);
}

static struct slip *node_slip(const struct node *node, unsigned at)
{
	/* Acquire: pairs with slip_for. */
	return atomic_load_explicit(&node->slip[at / SLIP_WORDS], memory_order_acquire);
}

/* May one of five packed numbers lie in word @at of the group? All at once: the upper half of each
 * is compared, and a carry says that it differs. */
static bool may_be_in(uint64_t packed, unsigned at)
{
	uint64_t differ = (packed / WORD_BITS & EACH_NUMBER * (WORDS - 1)) ^ EACH_NUMBER * at;

	return ~(differ + EACH_NUMBER * (WORDS - 1)) & EACH_NUMBER * WORDS;
}

/* Those of @count packed numbers that lie in word @at of the group. */
static uint64_t unpack(uint64_t packed, unsigned count, unsigned at)
{
	uint64_t word = 0;

	if (!may_be_in(packed, at))
		return 0;
	for (unsigned i = 0; i < count; i++, packed >>= NUMBER_BITS) {
		if (packed / WORD_BITS % WORDS == at)
			word |= UINT64_C(1) << packed % WORD_BITS;
	}
	return word;
}

static uint64_t slip_numbers(const struct slip *slip, unsigned at)
{
	uint64_t word = 0;

	for (unsigned i = 1; i < SLIP_WORDS; i++) {
		uint64_t packed = word_at(slip, i);

		if (packed)
			word |= unpack(packed, WORD_NUMBERS, at);
	}
	return word;
}

/* One of the 64 words of a group; of a list: under its lock. */
static uint64_t word_of(uint64_t value, unsigned at)
{
	const struct slip *slip;
	uint64_t word = 0;

	switch (kind_of(value)) {
	case KIND_FEW:
		return unpack(value >> FEW_SHIFT, FEW_MAX, at);
	case KIND_LIST:
		for (slip = slip_of(value); slip; slip = slip_of(word_at(slip, 0)))
			word |= slip_numbers(slip, at);
		return word;
	case KIND_NODE:
		slip = node_slip(node_of(value), at);
		return slip ? word_at(slip, at % SLIP_WORDS) : 0;
	default:
		return ~UINT64_C(0);
	}
}

/* Without the lock. Each address in a list is followed only if the group was a list after it was
 * read, or no slips at all were given back: else it may be anything. */
static uint64_t read_word(const struct cs_bits_body *body, uint64_t key, unsigned at)
{
	/* Acquire: pairs with give_slips_back. */
	uint64_t before = atomic_load_explicit(&body->given_back, memory_order_acquire);
	uint64_t value, word = 0, next;

	if (!cowsnap_map_lookup(&body->groups, key, &value))
		return 0;
	for (next = value; kind_of(value) == KIND_LIST && next;) {
		const struct slip *slip = slip_of(next);

		word |= slip_numbers(slip, at);
		next = word_at(slip, 0);
		/* Acquire: pairs with give_slips_back. 3 of bits.h. A group is not taken out of the
		 * map. */
		if (atomic_load_explicit(&body->given_back, memory_order_acquire) != before)
			cowsnap_map_lookup(&body->groups, key, &value);
	}
	return kind_of(value) == KIND_LIST ? word : word_of(value, at);
}

uint64_t cs_bits_window(const struct cs_bits *bits, uint64_t first, unsigned count)
{
	const struct cs_bits_body *body = body_of(bits);

	if (!body)
		return 0;
	return read_word(body, first / CS_BITS_GROUP,
		       (unsigned)(first % CS_BITS_GROUP) / WORD_BITS) >>
		       first % WORD_BITS &
	       ~UINT64_C(0) >> (WORD_BITS - count);
}

/* ---- Memory ---------------------------------------------------------------------------------- */

/* The stripe is unlocked and locked again. Returns: -EAGAIN (look again), -ENOMEM. */
static int get_memory(struct cs_bits_body *body, struct bits_stripe *stripe, uint32_t slips,
	uint32_t nodes) CS_REQUIRES(stripe->lock)
{
	struct cs_pool_list lines = {0}, got = {0};
	int rc = 0;

	cs_mutex_unlock(&stripe->lock);
	if (slips)
		rc = cs_pool_get(&body->pool, CS_POOL_64, (slips + 1) / 2, SLIPS_AHEAD / 2, &lines);
	if (!rc && nodes)
		rc = cs_pool_get(&body->pool, CS_POOL_128, nodes, nodes, &got);
	cs_mutex_lock(&stripe->lock);
	while (lines.count) {
		struct slip *two = cs_pool_pop(&lines);

		cs_pool_push(&stripe->slips, &two[0]);
		cs_pool_push(&stripe->slips, &two[1]);
	}
	while (got.count)
		cs_pool_push(&stripe->nodes, cs_pool_pop(&got));
	return rc ? rc : -EAGAIN;
}

static struct slip *new_slip(struct bits_stripe *stripe) CS_REQUIRES(stripe->lock)
{
	struct slip *slip = cs_pool_pop(&stripe->slips);

	assert(slip);
	for (unsigned i = 0; i < SLIP_WORDS; i++)
		set_word(slip, i, 0);
	return slip;
}

/* ---- Setting --------------------------------------------------------------------------------- */

static void count_in(struct cs_bits_body *body, uint64_t added)
{
	if (added)
		atomic_fetch_add_explicit(&body->count, added, memory_order_relaxed);
}

/* Gives a group its word. @new: it had none. */
static int store_value(struct cs_bits_body *body, uint64_t key, uint64_t value, bool new)
{
	struct cowsnap_run run;
	int rc;

	if (!new)
		return cowsnap_map_replace(&body->groups, key, value);
	rc = cowsnap_map_claim(&body->groups, key, 1, &run);
	if (rc < 0)
		return rc;
	assert(rc == COWSNAP_CLAIM_MINE);
	run.location = value;
	cowsnap_map_publish(&body->groups, &run);
	return 0;
}

static void set_in_slip(struct cs_bits_body *body, struct slip *slip, unsigned at, uint64_t mask)
{
	uint64_t before;

	if (!(mask & ~word_at(slip, at)))
		return;
	/* Release: pairs with word_at. */
	before = atomic_fetch_or_explicit(&slip->word[at], mask, memory_order_release);
	count_in(body, (unsigned)__builtin_popcountll(mask & ~before));
}

/* The slip of a node, made if need be. NULL: there is none set aside. */
static struct slip *slip_for(struct bits_stripe *stripe, struct node *node, unsigned at)
	CS_REQUIRES(stripe->lock)
{
	struct slip *slip = node_slip(node, at);

	if (slip || !stripe->slips.count)
		return slip;
	slip = new_slip(stripe);
	/* Release: pairs with node_slip. */
	atomic_store_explicit(&node->slip[at / SLIP_WORDS], slip, memory_order_release);
	return slip;
}

/* The group is a node already. */
static void give_slips_back(struct cs_bits_body *body, struct bits_stripe *stripe,
	struct slip *slip) CS_REQUIRES(stripe->lock)
{
	/* Before any of them changes: pairs with read_word. */
	atomic_fetch_add_explicit(&body->given_back, 1, memory_order_release);
	while (slip) {
		struct slip *next = slip_of(word_at(slip, 0));

		cs_pool_push(&stripe->slips, slip);
		slip = next;
	}
}

/* Returns: 0: the group is a node now. */
static int make_node(struct cs_bits_body *body, struct bits_stripe *stripe, uint64_t key,
	uint64_t value, bool new) CS_REQUIRES(stripe->lock)
{
	struct node *node;
	int rc;

	if (stripe->slips.count < NODE_SLIPS || !stripe->nodes.count)
		return get_memory(body, stripe, stripe->slips.count < NODE_SLIPS ? NODE_SLIPS : 0,
			!stripe->nodes.count);
	node = cs_pool_pop(&stripe->nodes);
	for (unsigned i = 0; i < NODE_SLIPS; i++)
		atomic_init(&node->slip[i], NULL);
	for (unsigned at = 0; !new &&at < WORDS; at++) {
		uint64_t word = word_of(value, at);

		if (word)
			set_word(slip_for(stripe, node, at), at % SLIP_WORDS, word);
	}
	rc = store_value(body, key, (uint64_t)(uintptr_t)node | KIND_NODE, new);
	assert(!rc || new);
	if (rc)
		cs_pool_push(&stripe->nodes, node);
	else if (!new &&kind_of(value) == KIND_LIST)
		give_slips_back(body, stripe, slip_of(value));
	return rc;
}

/* @count numbers that are packed from bit 0 on, and one more. */
static uint64_t pack(uint64_t packed, unsigned count, unsigned most, unsigned number)
{
	packed |= (uint64_t)number << count * NUMBER_BITS;
	for (unsigned i = count + 1; i < most; i++)
		packed |= (packed & (CS_BITS_GROUP - 1)) << i * NUMBER_BITS;
	return packed;
}

static uint64_t low_numbers(uint64_t packed, unsigned count)
{
	return packed & ((UINT64_C(1) << count * NUMBER_BITS) - 1);
}

/* Returns: false: it is full. */
static bool add_to_slip(struct slip *slip, unsigned number)
{
	for (unsigned i = 1; i < SLIP_WORDS; i++) {
		uint64_t word = word_at(slip, i);
		unsigned count = (unsigned)(word >> COUNT_SHIFT);

		if (count == WORD_NUMBERS)
			continue;
		word = pack(low_numbers(word, count), count, WORD_NUMBERS, number);
		set_word(slip, i, word | (uint64_t)(count + 1) << COUNT_SHIFT);
		return true;
	}
	return false;
}

static bool slip_has_room(const struct slip *slip)
{
	return word_at(slip, SLIP_WORDS - 1) >> COUNT_SHIFT < WORD_NUMBERS;
}

static unsigned few_count(uint64_t value)
{
	unsigned first = (unsigned)(value >> FEW_SHIFT) % CS_BITS_GROUP, count = FEW_MAX;

	while (count > 1 &&
		(value >> (FEW_SHIFT + (count - 1) * NUMBER_BITS)) % CS_BITS_GROUP == first)
		count--;
	return count;
}

/* A slip before the others; @few: with what the group had in its word. */
static int longer_list(struct cs_bits_body *body, struct bits_stripe *stripe, uint64_t key,
	uint64_t value, unsigned number) CS_REQUIRES(stripe->lock)
{
	struct slip *slip;

	if (!stripe->slips.count)
		return get_memory(body, stripe, 1, 0);
	slip = new_slip(stripe);
	if (kind_of(value) == KIND_LIST)
		set_word(slip, 0, value);
	for (unsigned i = 0; kind_of(value) == KIND_FEW && i < FEW_MAX; i++)
		add_to_slip(
			slip, (unsigned)(value >> (FEW_SHIFT + i * NUMBER_BITS)) % CS_BITS_GROUP);
	add_to_slip(slip, number);
	return store_value(body, key, (uint64_t)(uintptr_t)slip, false);
}

static unsigned list_length(const struct slip *slip)
{
	unsigned n = 0;

	for (; slip; slip = slip_of(word_at(slip, 0)))
		n++;
	return n;
}

/* Puts one number, which is not in, into a group that is not a node. */
static int add_number(struct cs_bits_body *body, struct bits_stripe *stripe, uint64_t key,
	uint64_t value, bool new, unsigned number) CS_REQUIRES(stripe->lock)
{
	unsigned count = new ? 0 : few_count(value);
	int rc = 0;

	if (new || (kind_of(value) == KIND_FEW && count < FEW_MAX)) {
		uint64_t packed = new ? 0 : low_numbers(value >> FEW_SHIFT, count);

		packed = pack(packed, count, FEW_MAX, number);
		rc = store_value(body, key, packed << FEW_SHIFT | KIND_FEW, new);
	} else if (kind_of(value) == KIND_LIST && list_length(slip_of(value)) == SLIPS_MAX &&
		   !slip_has_room(slip_of(value))) {
		/* It is put into the node next. */
		return make_node(body, stripe, key, value, false);
	} else if (kind_of(value) == KIND_FEW || !add_to_slip(slip_of(value), number)) {
		rc = longer_list(body, stripe, key, value, number);
	}
	count_in(body, !rc);
	return rc;
}

/* One step of it. Returns: 0: all of @mask is in; 1 or -EAGAIN: look again; -ENOMEM. */
static int set_locked(struct cs_bits_body *body, struct bits_stripe *stripe, uint64_t key,
	unsigned at, uint64_t mask) CS_REQUIRES(stripe->lock)
{
	uint64_t value = 0, missing;
	bool new = !cowsnap_map_lookup(&body->groups, key, &value);
	int rc;

	if (!new &&kind_of(value) == KIND_NODE) {
		struct slip *slip = slip_for(stripe, node_of(value), at);

		if (!slip)
			return get_memory(body, stripe, 1, 0);
		set_in_slip(body, slip, at % SLIP_WORDS, mask);
		return 0;
	}
	missing = new ? mask : mask & ~word_of(value, at);
	if (!missing)
		return 0;
	if ((unsigned)__builtin_popcountll(missing) > body->many) {
		rc = make_node(body, stripe, key, value, new);
		return rc ? rc : 1;
	}
	rc = add_number(
		body, stripe, key, value, new, at * WORD_BITS + (unsigned)__builtin_ctzll(missing));
	return rc ? rc : 1;
}

/* @mask of word @at of a group. */
static int set_part(struct cs_bits_body *body, uint64_t key, unsigned at, uint64_t mask)
{
	struct bits_stripe *stripe = &body->stripes[key % STRIPES];
	uint64_t value;
	int rc = 1;

	if (cowsnap_map_lookup(&body->groups, key, &value) && kind_of(value) >= KIND_NODE) {
		struct slip *slip = value == KIND_FULL ? NULL : node_slip(node_of(value), at);

		if (slip)
			set_in_slip(body, slip, at % SLIP_WORDS, mask);
		if (slip || value == KIND_FULL)
			return 0;
	}
	cs_mutex_lock(&stripe->lock);
	while (rc == 1 || rc == -EAGAIN)
		rc = set_locked(body, stripe, key, at, mask);
	cs_mutex_unlock(&stripe->lock);
	return rc;
}

/* A group that has none yet gets all. Returns: 1: it has some. */
static int set_full(struct cs_bits_body *body, uint64_t key)
{
	struct bits_stripe *stripe = &body->stripes[key % STRIPES];
	uint64_t value;
	int rc = 1;

	cs_mutex_lock(&stripe->lock);
	if (!cowsnap_map_lookup(&body->groups, key, &value))
		rc = store_value(body, key, KIND_FULL, true);
	cs_mutex_unlock(&stripe->lock);
	if (!rc)
		count_in(body, CS_BITS_GROUP);
	return rc;
}

int cs_bits_set(struct cs_bits *bits, uint64_t first, uint64_t count)
{
	struct cs_bits_body *body = body_of(bits);
	int rc = 0;

	if (!body && count)
		body = make_body(bits);
	if (!body)
		return count ? -ENOMEM : 0;
	while (count && rc >= 0) {
		uint64_t key = first / CS_BITS_GROUP, n = WORD_BITS - first % WORD_BITS;

		if (!(first % CS_BITS_GROUP) && count >= CS_BITS_GROUP) {
			rc = set_full(body, key);
			n = rc == 1 ? n : CS_BITS_GROUP;
		} else {
			rc = 1;
		}
		n = n < count ? n : count;
		if (rc == 1)
			rc = set_part(body, key, (unsigned)(first % CS_BITS_GROUP) / WORD_BITS,
				~UINT64_C(0) >> (WORD_BITS - n) << first % WORD_BITS);
		first += n;
		count -= n;
	}
	return rc;
}

int cs_bits_set_mask(struct cs_bits *bits, uint64_t first, uint64_t mask)
{
	struct cs_bits_body *body = body_of(bits);

	if (!mask)
		return 0;
	if (!body)
		body = make_body(bits);
	if (!body)
		return -ENOMEM;
	return set_part(
		body, first / CS_BITS_GROUP, (unsigned)(first % CS_BITS_GROUP) / WORD_BITS, mask);
}

/* ---- One into another ------------------------------------------------------------------------ */

struct or
{
	struct cs_bits_body *to;
	int rc;
};

/* Nobody changes where it comes from. */
static int or_group(struct cs_bits_body *to, uint64_t key, uint64_t value)
{
	int rc = value == KIND_FULL ? set_full(to, key) : 1;

	for (unsigned at = 0; rc == 1 && at < WORDS; at++) {
		uint64_t word = word_of(value, at);
		int err = word ? set_part(to, key, at, word) : 0;

		rc = err ? err : rc;
	}
	return rc < 0 ? rc : 0;
}

static void or_run(void *user, const struct cowsnap_run *run)
{
	struct or * or = user;

	for (uint64_t i = 0; i < run->count && ! or->rc; i++)
		or->rc = or_group(or->to, run->first + i, run->location + i);
}

int cs_bits_or(
	struct cs_bits *to, const struct cs_bits *from, uint64_t *cursor, uint64_t max_leaves)
{
	struct or or = {.to = body_of(to)};
	uint64_t at = *cursor;
	bool more;

	if (!body_of(from))
		return 0;
	if (! or.to)
		or.to = make_body(to);
	if (! or.to)
		return -ENOMEM;
	more = cowsnap_map_walk(&body_of(from)->groups, &at, max_leaves, or_run, & or);
	if (or.rc)
		return or.rc;
	*cursor = at;
	return more;
}

/* ---- Numbers --------------------------------------------------------------------------------- */

uint64_t cs_bits_count(const struct cs_bits *bits)
{
	const struct cs_bits_body *body = body_of(bits);

	return body ? atomic_load_explicit(&body->count, memory_order_relaxed) : 0;
}

uint64_t cs_bits_memory(const struct cs_bits *bits)
{
	const struct cs_bits_body *body = body_of(bits);

	if (!body)
		return 0;
	return sizeof(*body) + cowsnap_map_memory(&body->groups) +
	       atomic_load_explicit(&body->pool.bytes, memory_order_relaxed);
}
