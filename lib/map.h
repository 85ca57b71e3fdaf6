/* SPDX-License-Identifier: MIT
 *
 * The exception map inside the library: embedded maps, the look-ups that read a window at a time,
 * and the bulk load. The rest is public: see cowsnap/blocks.h. How it works: docs/design/map.md.
 */
#ifndef CS_MAP_H
#define CS_MAP_H

#include <cowsnap.h>
#include <cowsnap/blocks.h>
#include <stdatomic.h>

struct cs_map_body;

/* All that an empty map is; the body comes with the first claim. */
struct cowsnap_map {
	const struct cowsnap_allocator *alloc;
	_Atomic(struct cs_map_body *) body;
};

/* Never fails, allocates nothing. @alloc is complete and outlives the map. */
static inline void cs_map_init(struct cowsnap_map *map, const struct cowsnap_allocator *alloc)
{
	map->alloc = alloc;
	atomic_init(&map->body, NULL);
}

/* What is in @from is in @to, which was empty. Nobody uses either; both have the same allocator. */
static inline void cs_map_move(struct cowsnap_map *to, struct cowsnap_map *from)
{
	/* Release: pairs with cs_map_body. */
	atomic_store_explicit(&to->body,
		atomic_exchange_explicit(&from->body, NULL, memory_order_relaxed),
		memory_order_release);
}

/* Frees what the map holds, not the struct. Nobody uses the map, no waiter is queued. */
void cs_map_fini(struct cowsnap_map *map);

/*
 * Of the chunks @first to @first + @count - 1, which do not cross a multiple of 64: a bit for each
 * that is done (bit 0 is @first), and its location in locations[] at the same number. Elsewhere
 * locations[] is left undefined. Each chunk is looked up by itself, all in one pass. Wait-free.
 */
uint64_t cs_map_window(
	const struct cowsnap_map *map, uint64_t first, unsigned count, uint64_t locations[]);
/* The same without locations. */
uint64_t cs_map_done_mask(const struct cowsnap_map *map, uint64_t first, unsigned count);
/* For who looks at many groups of 64 in order: brings some of what the look-ups of the next ones
 * read into the cache, given that the last call was of the group before this one. */
void cs_map_look_ahead(const struct cowsnap_map *map, uint64_t chunk);

struct cs_map_entry {
	uint64_t chunk;    /* COWSNAP_CHUNK_MAX at most */
	uint64_t location; /* COWSNAP_LOCATION_MAX at most */
};

/*
 * Makes each entry's chunk done, as a claim and a publication would, but faster: several hundred
 * entries or more at a time, in any order. None of the chunks is busy, and nobody else uses the
 * map.
 * Returns: 0; -ENOMEM; -EEXIST (@duplicate is done already, in the map or by an entry before).
 * After a failure some of the entries are in the map; what was there before is as it was.
 */
int cs_map_load(struct cowsnap_map *map, const struct cs_map_entry *entries, size_t count,
	uint64_t *duplicate);

#endif
