/* SPDX-License-Identifier: MIT
 *
 * The tables of scenario map: see map_baselines.h.
 */
#include "map_baselines.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define URCU_INLINE_SMALL_FUNCTIONS
#define URCU_API_MAP
#include <urcu/urcu-bp.h>

#include <urcu/rculfhash.h>

static void *need(void *memory)
{
	if (!memory) {
		fprintf(stderr, "cowsnap-bench: no memory\n");
		exit(EXIT_FAILURE);
	}
	return memory;
}

static uint64_t mix(uint64_t key)
{
	key *= UINT64_C(0x9e3779b97f4a7c15);
	return key ^ key >> 32;
}

/* Inlined together with @find. A location is below 2^56, so its top bits add nothing but the wait.
 */
static inline __attribute__((always_inline)) uint64_t look_loop(
	bool (*find)(void *table, uint64_t chunk, uint64_t *location), void *table,
	const uint64_t *chunks, uint64_t count, bool chained)
{
	uint64_t location = 0;
	uint64_t found = 0;

	for (uint64_t i = 0; i < count; i++) {
		uint64_t chunk = chunks[chained ? i + (location >> 60) : i];

		location = 0;
		found += find(table, chunk, &location) && location == chunk;
	}
	return found;
}

/* ---- cowsnap -------------------------------------------------------------------------------- */

static void *cowsnap_create(const struct map_shape *shape)
{
	struct cowsnap_map *map = NULL;

	return bench_check(cowsnap_map_create(shape->allocator, &map), "cowsnap_map_create")
		       ? need(NULL)
		       : map;
}

static uint64_t cowsnap_fill(void *table, const uint64_t *chunks, uint64_t count)
{
	uint64_t claimed = 0;

	for (uint64_t i = 0; i < count; i++) {
		struct cowsnap_run run;

		if (cowsnap_map_claim(table, chunks[i], 1, &run) != COWSNAP_CLAIM_MINE)
			continue;
		run.location = chunks[i];
		cowsnap_map_publish(table, &run);
		claimed++;
	}
	return claimed;
}

static inline bool cowsnap_find(void *table, uint64_t chunk, uint64_t *location)
{
	return cowsnap_map_lookup(table, chunk, location);
}

static uint64_t cowsnap_look(void *table, const uint64_t *chunks, uint64_t count, bool chained)
{
	return chained ? look_loop(cowsnap_find, table, chunks, count, true)
		       : look_loop(cowsnap_find, table, chunks, count, false);
}

static uint64_t cowsnap_bytes(void *table)
{
	return cowsnap_map_memory(table);
}

static void cowsnap_destroy(void *table)
{
	cowsnap_map_destroy(table);
}

const struct map_table_ops map_table_cowsnap = {
	.name = "cowsnap",
	.create = cowsnap_create,
	.fill = cowsnap_fill,
	.look = cowsnap_look,
	.bytes = cowsnap_bytes,
	.destroy = cowsnap_destroy,
};

/* ---- Page table ----------------------------------------------------------------------------- */

#define PAGE_WORDS 512
#define SLAB_PAGES 64
#define WORD_BUSY  UINT64_MAX

struct pages {
	_Atomic(_Atomic uint64_t *) *roots;
	uint64_t root_count;
	pthread_mutex_t slab_lock;
	_Atomic uint64_t *slab; /* the newest; its last page links to the one before */
	unsigned slab_used;
	uint64_t slab_count;
};

static void *pages_create(const struct map_shape *shape)
{
	struct pages *pages = need(calloc(1, sizeof(*pages)));

	pages->root_count = shape->volume_chunks / PAGE_WORDS + 1;
	pages->roots = need(calloc(pages->root_count, sizeof(*pages->roots)));
	pages->slab_used = SLAB_PAGES;
	pthread_mutex_init(&pages->slab_lock, NULL);
	return pages;
}

/* Pages from slabs of 256 KiB; the first word of a slab's first page links the slabs. */
static _Atomic uint64_t *page_new(struct pages *pages)
{
	size_t page_bytes = PAGE_WORDS * sizeof(uint64_t);
	_Atomic uint64_t *page;

	pthread_mutex_lock(&pages->slab_lock);
	if (pages->slab_used == SLAB_PAGES) {
		_Atomic uint64_t *slab =
			need(aligned_alloc(page_bytes, (SLAB_PAGES + 1) * page_bytes));

		atomic_init(&slab[0], (uint64_t)(uintptr_t)pages->slab);
		pages->slab = slab;
		pages->slab_used = 0;
		pages->slab_count++;
	}
	page = pages->slab + (size_t)++pages->slab_used * PAGE_WORDS;
	pthread_mutex_unlock(&pages->slab_lock);
	memset((void *)page, 0, page_bytes);
	return page;
}

static _Atomic uint64_t *page_of(struct pages *pages, uint64_t chunk)
{
	_Atomic(_Atomic uint64_t *) *root = &pages->roots[chunk / PAGE_WORDS];
	_Atomic uint64_t *page = atomic_load_explicit(root, memory_order_acquire);
	_Atomic uint64_t *made;

	if (page)
		return page;
	made = page_new(pages);
	/* A page that comes second is lost in its slab; that does not happen often. */
	return atomic_compare_exchange_strong(root, &page, made) ? made : page;
}

static uint64_t pages_fill(void *table, const uint64_t *chunks, uint64_t count)
{
	uint64_t claimed = 0;

	for (uint64_t i = 0; i < count; i++) {
		_Atomic uint64_t *word = page_of(table, chunks[i]) + chunks[i] % PAGE_WORDS;
		uint64_t expected = 0;

		if (!atomic_compare_exchange_strong_explicit(
			    word, &expected, WORD_BUSY, memory_order_acquire, memory_order_acquire))
			continue;
		atomic_store_explicit(word, chunks[i] + 1, memory_order_release);
		claimed++;
	}
	return claimed;
}

static inline bool pages_find(void *table, uint64_t chunk, uint64_t *location)
{
	struct pages *pages = table;
	_Atomic uint64_t *page;
	uint64_t word;

	if (chunk / PAGE_WORDS >= pages->root_count)
		return false;
	page = atomic_load_explicit(&pages->roots[chunk / PAGE_WORDS], memory_order_acquire);
	if (!page)
		return false;
	word = atomic_load_explicit(&page[chunk % PAGE_WORDS], memory_order_acquire);
	*location = word - 1;
	return word && word != WORD_BUSY;
}

static uint64_t pages_look(void *table, const uint64_t *chunks, uint64_t count, bool chained)
{
	return chained ? look_loop(pages_find, table, chunks, count, true)
		       : look_loop(pages_find, table, chunks, count, false);
}

static uint64_t pages_bytes(void *table)
{
	const struct pages *pages = table;

	return pages->root_count * sizeof(*pages->roots) +
	       pages->slab_count * (SLAB_PAGES + 1) * PAGE_WORDS * sizeof(uint64_t);
}

static void pages_destroy(void *table)
{
	struct pages *pages = table;
	_Atomic uint64_t *slab = pages->slab;

	while (slab) {
		_Atomic uint64_t *next = (_Atomic uint64_t *)(uintptr_t)atomic_load(&slab[0]);

		free((void *)slab);
		slab = next;
	}
	pthread_mutex_destroy(&pages->slab_lock);
	free((void *)pages->roots);
	free(pages);
}

const struct map_table_ops map_table_pages = {
	.name = "page table",
	.create = pages_create,
	.fill = pages_fill,
	.look = pages_look,
	.bytes = pages_bytes,
	.destroy = pages_destroy,
};

/* ---- cds_lfht ------------------------------------------------------------------------------- */

struct lfht_node {
	struct cds_lfht_node node;
	uint64_t chunk;
	_Atomic uint64_t location;
};

struct lfht {
	struct cds_lfht *table;
	uint64_t buckets;
	_Atomic uint64_t nodes;
};

static void *lfht_create(const struct map_shape *shape)
{
	struct lfht *lfht = need(calloc(1, sizeof(*lfht)));

	lfht->buckets = 1;
	while (lfht->buckets < shape->exceptions)
		lfht->buckets *= 2;
	lfht->table = need(cds_lfht_new(lfht->buckets, 1, 0, 0, NULL));
	return lfht;
}

static int lfht_match(struct cds_lfht_node *node, const void *key)
{
	return caa_container_of(node, struct lfht_node, node)->chunk == *(const uint64_t *)key;
}

static uint64_t lfht_fill(void *table, const uint64_t *chunks, uint64_t count)
{
	struct lfht *lfht = table;
	uint64_t claimed = 0;

	for (uint64_t i = 0; i < count; i++) {
		struct lfht_node *node = need(malloc(sizeof(*node)));
		struct cds_lfht_node *there;

		cds_lfht_node_init(&node->node);
		node->chunk = chunks[i];
		atomic_init(&node->location, WORD_BUSY);
		rcu_read_lock();
		there = cds_lfht_add_unique(
			lfht->table, mix(chunks[i]), lfht_match, &chunks[i], &node->node);
		rcu_read_unlock();
		if (there != &node->node) {
			free(node);
			continue;
		}
		atomic_store_explicit(&node->location, chunks[i], memory_order_release);
		claimed++;
	}
	atomic_fetch_add(&lfht->nodes, claimed);
	return claimed;
}

static inline bool lfht_find(void *table, uint64_t chunk, uint64_t *location)
{
	struct lfht *lfht = table;
	struct cds_lfht_iter iter;
	struct cds_lfht_node *node;

	rcu_read_lock();
	cds_lfht_lookup(lfht->table, mix(chunk), lfht_match, &chunk, &iter);
	node = cds_lfht_iter_get_node(&iter);
	if (node)
		*location = atomic_load_explicit(
			&caa_container_of(node, struct lfht_node, node)->location,
			memory_order_acquire);
	rcu_read_unlock();
	return node && *location != WORD_BUSY;
}

static uint64_t lfht_look(void *table, const uint64_t *chunks, uint64_t count, bool chained)
{
	return chained ? look_loop(lfht_find, table, chunks, count, true)
		       : look_loop(lfht_find, table, chunks, count, false);
}

/* A bucket is a node of 16 bytes; a node takes what malloc gives for 32. */
static uint64_t lfht_bytes(void *table)
{
	struct lfht *lfht = table;

	return lfht->buckets * sizeof(struct cds_lfht_node) +
	       atomic_load(&lfht->nodes) * (sizeof(struct lfht_node) + 16);
}

static void lfht_destroy(void *table)
{
	struct lfht *lfht = table;
	struct cds_lfht_iter iter;
	struct cds_lfht_node *node;

	rcu_read_lock();
	cds_lfht_first(lfht->table, &iter);
	while ((node = cds_lfht_iter_get_node(&iter))) {
		cds_lfht_next(lfht->table, &iter);
		cds_lfht_del(lfht->table, node);
		/* Nobody else is here, so no grace period is needed. */
		free(caa_container_of(node, struct lfht_node, node));
	}
	rcu_read_unlock();
	bench_check(cds_lfht_destroy(lfht->table, NULL), "cds_lfht_destroy");
	free(lfht);
}

const struct map_table_ops map_table_lfht = {
	.name = "cds_lfht",
	.create = lfht_create,
	.fill = lfht_fill,
	.look = lfht_look,
	.bytes = lfht_bytes,
	.destroy = lfht_destroy,
};

/* ---- Striped -------------------------------------------------------------------------------- */

#define STRIPES 256

struct slot {
	uint64_t chunk_plus_1; /* 0: empty */
	uint64_t location;
};

struct stripe {
	_Alignas(128) pthread_mutex_t lock;
	struct slot *slots;
};

struct striped {
	uint64_t slots; /* of each stripe; a power of two */
	struct stripe stripes[STRIPES];
};

static void *striped_create(const struct map_shape *shape)
{
	struct striped *striped = need(aligned_alloc(128, sizeof(*striped)));

	striped->slots = 16;
	while (striped->slots * STRIPES < 2 * shape->exceptions)
		striped->slots *= 2;
	for (unsigned i = 0; i < STRIPES; i++) {
		pthread_mutex_init(&striped->stripes[i].lock, NULL);
		striped->stripes[i].slots = need(calloc(striped->slots, sizeof(struct slot)));
	}
	return striped;
}

/* The chunk's slot, or the empty one where it would be. */
static struct slot *slot_of(
	const struct striped *striped, const struct stripe *stripe, uint64_t chunk, uint64_t hash)
{
	uint64_t at = hash / STRIPES;

	for (;; at++) {
		struct slot *slot = &stripe->slots[at & (striped->slots - 1)];

		if (!slot->chunk_plus_1 || slot->chunk_plus_1 == chunk + 1)
			return slot;
	}
}

static uint64_t striped_fill(void *table, const uint64_t *chunks, uint64_t count)
{
	struct striped *striped = table;
	uint64_t claimed = 0;

	for (uint64_t i = 0; i < count; i++) {
		uint64_t hash = mix(chunks[i]);
		struct stripe *stripe = &striped->stripes[hash % STRIPES];
		struct slot *slot;
		bool mine;

		pthread_mutex_lock(&stripe->lock);
		slot = slot_of(striped, stripe, chunks[i], hash);
		mine = !slot->chunk_plus_1;
		if (mine)
			*slot = (struct slot){chunks[i] + 1, WORD_BUSY};
		pthread_mutex_unlock(&stripe->lock);
		if (!mine)
			continue;
		pthread_mutex_lock(&stripe->lock);
		slot_of(striped, stripe, chunks[i], hash)->location = chunks[i];
		pthread_mutex_unlock(&stripe->lock);
		claimed++;
	}
	return claimed;
}

static inline bool striped_find(void *table, uint64_t chunk, uint64_t *location)
{
	struct striped *striped = table;
	uint64_t hash = mix(chunk);
	struct stripe *stripe = &striped->stripes[hash % STRIPES];
	const struct slot *slot;
	bool there;

	pthread_mutex_lock(&stripe->lock);
	slot = slot_of(striped, stripe, chunk, hash);
	there = slot->chunk_plus_1 && slot->location != WORD_BUSY;
	if (there)
		*location = slot->location;
	pthread_mutex_unlock(&stripe->lock);
	return there;
}

static uint64_t striped_look(void *table, const uint64_t *chunks, uint64_t count, bool chained)
{
	return chained ? look_loop(striped_find, table, chunks, count, true)
		       : look_loop(striped_find, table, chunks, count, false);
}

static uint64_t striped_bytes(void *table)
{
	const struct striped *striped = table;

	return sizeof(*striped) + STRIPES * striped->slots * sizeof(struct slot);
}

static void striped_destroy(void *table)
{
	struct striped *striped = table;

	for (unsigned i = 0; i < STRIPES; i++) {
		pthread_mutex_destroy(&striped->stripes[i].lock);
		free(striped->stripes[i].slots);
	}
	free(striped);
}

const struct map_table_ops map_table_striped = {
	.name = "striped",
	.create = striped_create,
	.fill = striped_fill,
	.look = striped_look,
	.bytes = striped_bytes,
	.destroy = striped_destroy,
};
