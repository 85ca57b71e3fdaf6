/* SPDX-License-Identifier: MIT
 *
 * Counters of one origin. Everything here is counted off the fast path only: brackets come from
 * the gate, fast ones are what is left.
 *
 * With the first copy they are split by CPU, so that threads that copy side by side share no
 * written cache line. Until then they are in one place: an origin without copies stays small, and a
 * take of many does not walk over them.
 *
 * Invariants: counters only rise. Locking: none; each is read at a moment of its own.
 * Failure: without memory for the stripes all go on counting in one place, and copies are not
 * timed.
 */
#ifndef CS_STATS_H
#define CS_STATS_H

#include <cowsnap.h>
#include <stdatomic.h>

#include "hist.h"
#include "sync.h"

enum cs_stat {
	CS_STAT_SLOW_WRITES,
	CS_STAT_COPIED_CHUNKS,
	CS_STAT_COPIED_BYTES,
	CS_STAT_ORIGIN_READS,
	CS_STAT_ORIGIN_BYTES,
	CS_STAT_CLAIM_WAITS,
	CS_STAT_DRAIN_WAITS,
	CS_STAT_CREDIT_WAITS,
	CS_STAT_SPACE_WAITS,
	CS_STAT_FAILED_WRITES,
	CS_STAT_SNAPSHOT_READS,
	CS_STAT_REREAD_CHUNKS,
	CS_STAT_GIVEN_BYTES,
	CS_STAT_ZERO_CHUNKS,
	CS_STATS,
};

struct cs_stats_stripe {
	_Alignas(CS_CACHE_BYTES) _Atomic uint64_t count[CS_STATS];
	struct cs_hist copy_ns;
};

struct cs_stats {
	_Atomic uint64_t count[CS_STATS]; /* of before the stripes */
	_Atomic(struct cs_stats_stripe *) stripes;
	uint32_t stripe_mask;
};

/* Of one or many origins, for one reader. */
struct cs_stats_sum {
	uint64_t writes;
	uint64_t count[CS_STATS];
	struct cs_hist_sum copy_ns;
};

struct cs_stats *cs_stats_create(const struct cowsnap_allocator *alloc);
void cs_stats_destroy(const struct cowsnap_allocator *alloc, struct cs_stats *stats);
/* What a round of copies comes to. */
struct cs_stats_round {
	uint64_t origin_reads;
	uint64_t origin_bytes;
	uint64_t chunks; /* saved */
	uint64_t bytes;
	uint64_t given_bytes; /* by the host */
	uint64_t zero_chunks; /* saved without space */
	uint64_t took_ns;
};

/* Also splits the counters, if that was not done yet. */
void cs_stats_copied(const struct cowsnap_allocator *alloc, struct cs_stats *stats,
	const struct cs_stats_round *round);
/* Adds an origin that has begun @writes brackets. @sum starts as zeroes. */
void cs_stats_sum(struct cs_stats_sum *sum, const struct cs_stats *stats, uint64_t writes);
void cs_stats_report(const struct cs_stats_sum *sum, struct cowsnap_stats *out);

void cs_stats_add(struct cs_stats *stats, enum cs_stat which, uint64_t n);

#endif
