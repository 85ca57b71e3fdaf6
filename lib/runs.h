/* SPDX-License-Identifier: MIT
 *
 * A set of chunk numbers as a bitmap that grows: the freed chunks of a store.
 *
 * Segment k is RUNS_FIRST_WORDS << k words long, so that 56 bits of numbers need few of them and a
 * small set is small. A summary says which words are not zero, so that a search passes over 4,096
 * chunks at a time.
 *
 * Invariants:
 *  1. A summary bit is set exactly when its word is not zero.
 *  2. The set has room for every number below cs_runs_end(): to add or take out what lies there
 *     cannot fail.
 *
 * Locking: the owner's. Failure: only cs_runs_cover() asks for memory.
 */
#ifndef CS_RUNS_H
#define CS_RUNS_H

#include <cowsnap.h>

#define CS_RUNS_SEGMENTS 48u
#define CS_RUNS_NONE     UINT64_MAX

struct cs_runs_segment {
	uint64_t *words;
	uint64_t *summary; /* behind the words */
};

struct cs_runs {
	const struct cowsnap_allocator *alloc;
	uint64_t end;
	struct cs_runs_segment segment[CS_RUNS_SEGMENTS];
};

void cs_runs_init(struct cs_runs *runs, const struct cowsnap_allocator *alloc);
void cs_runs_fini(struct cs_runs *runs);

/* Makes room for numbers below @end. Returns: 0, -ENOMEM. */
int cs_runs_cover(struct cs_runs *runs, uint64_t end);
static inline uint64_t cs_runs_end(const struct cs_runs *runs)
{
	return runs->end;
}

/* The rest is about numbers below cs_runs_end(). */

/* Adds a run, or takes it out. Returns: how many of it were not so before. */
uint64_t cs_runs_mark(struct cs_runs *runs, uint64_t first, uint64_t count, bool in);
/* What is in is out, and the other way round, below @end; what lies beyond is out. */
void cs_runs_invert(struct cs_runs *runs, uint64_t end);
void cs_runs_clear(struct cs_runs *runs);
/* Adds one. Returns: false if it was in. */
bool cs_runs_add(struct cs_runs *runs, uint64_t number);
/* It will be added soon. */
void cs_runs_prefetch(const struct cs_runs *runs, uint64_t number);
/* The first one from @from on, or CS_RUNS_NONE. */
uint64_t cs_runs_next(const struct cs_runs *runs, uint64_t from);
/* How many follow each other from @first on, up to @most. */
uint64_t cs_runs_length(const struct cs_runs *runs, uint64_t first, uint64_t most);
/* A run of @want, or the longest of a few, that begins at or after @from, else one from the
 * beginning. Returns: its first, or CS_RUNS_NONE. */
uint64_t cs_runs_pick(const struct cs_runs *runs, uint64_t from, uint64_t want, uint64_t *count);

#endif
