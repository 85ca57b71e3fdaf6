/* SPDX-License-Identifier: MIT
 *
 * What scenario map measures: tables from chunk to location, cowsnap's and three others, all filled
 * in two steps (claim, publish) as a copy needs it.
 *
 *     cowsnap     cowsnap_map_claim(), cowsnap_map_publish(), cowsnap_map_lookup()
 *     page table  two levels, leaves of 512 words; claim is a compare-and-swap of the word, publish
 *                 a store to it: the least that can be done. Its first level is as long as the
 *                 volume needs, so there is none for a petabyte
 *     cds_lfht    the lock-free hash table of liburcu, flavour bp, made with as many buckets as
 *                 there will be chunks; a node from malloc for each chunk; publish stores into it
 *     striped     256 open-addressing tables with a mutex each, made to be half full in the end
 */
#ifndef COWSNAP_BENCH_MAP_BASELINES_H
#define COWSNAP_BENCH_MAP_BASELINES_H

#include "bench.h"

struct map_shape {
	uint64_t exceptions;
	uint64_t volume_chunks;
	const struct cowsnap_allocator *allocator;
};

/* The loops are inside, so that no call through a pointer is measured. */
struct map_table_ops {
	const char *name;
	/* NULL without a message is not possible: the program ends. */
	void *(*create)(const struct map_shape *shape);
	/* Claims and publishes each chunk; its location is the chunk itself. Returns how many were
	 * claimed. */
	uint64_t (*fill)(void *table, const uint64_t *chunks, uint64_t count);
	/* Returns how many of the chunks have their location. @chained: each look-up waits for the
	 * one before, as a program does that uses what it finds; otherwise the processor works on
	 * many at a time. */
	uint64_t (*look)(void *table, const uint64_t *chunks, uint64_t count, bool chained);
	uint64_t (*bytes)(void *table);
	void (*destroy)(void *table);
};

extern const struct map_table_ops map_table_cowsnap;
extern const struct map_table_ops map_table_pages;
extern const struct map_table_ops map_table_lfht;
extern const struct map_table_ops map_table_striped;

#endif
