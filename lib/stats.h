/* SPDX-License-Identifier: MIT
 *
 * Counters of one origin. Everything here is counted off the fast path only: brackets come from
 * the gate, fast ones are what is left.
 *
 * Invariants: counters only rise. Locking: none; each is read at a moment of its own.
 * Failure: without memory for the histogram, copies are not timed.
 */
#ifndef CS_STATS_H
#define CS_STATS_H

#include <cowsnap.h>
#include <stdatomic.h>

#include "hist.h"

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
	CS_STATS,
};

struct cs_stats {
	_Atomic uint64_t count[CS_STATS];
	/* Comes with the first copy: it is far larger than all else that an origin needs, and a
	 * take of many origins should not walk over it. */
	_Atomic(struct cs_hist *) copy_ns;
};

/* Of one or many origins, for one reader. */
struct cs_stats_sum {
	uint64_t writes;
	uint64_t count[CS_STATS];
	struct cs_hist_sum copy_ns;
};

struct cs_stats *cs_stats_create(const struct cowsnap_allocator *alloc);
void cs_stats_destroy(const struct cowsnap_allocator *alloc, struct cs_stats *stats);
/* Without memory for the histogram the duration is not counted. */
void cs_stats_copy(
	const struct cowsnap_allocator *alloc, struct cs_stats *stats, uint64_t duration_ns);
/* Adds an origin that has begun @writes brackets. @sum starts as zeroes. */
void cs_stats_sum(struct cs_stats_sum *sum, const struct cs_stats *stats, uint64_t writes);
void cs_stats_report(const struct cs_stats_sum *sum, struct cowsnap_stats *out);

static inline void cs_stats_add(struct cs_stats *stats, enum cs_stat which, uint64_t n)
{
	atomic_fetch_add_explicit(&stats->count[which], n, memory_order_relaxed);
}

#endif
