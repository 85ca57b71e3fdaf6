/* SPDX-License-Identifier: MIT
 *
 * Counters of one origin: making, merging and reporting them.
 */
#include "stats.h"

#include <cowsnap.h>

#include "alloc.h"

struct cs_stats *cs_stats_create(const struct cowsnap_allocator *alloc)
{
	return cs_alloc_zeroed(alloc, sizeof(struct cs_stats));
}

static struct cs_hist *get_hist(const struct cs_stats *stats)
{
	/* Acquire: its zeroes; pairs with make_hist. */
	return atomic_load_explicit(&stats->copy_ns, memory_order_acquire);
}

void cs_stats_destroy(const struct cowsnap_allocator *alloc, struct cs_stats *stats)
{
	if (!stats)
		return;
	cs_free(alloc, get_hist(stats), sizeof(struct cs_hist));
	cs_free(alloc, stats, sizeof(*stats));
}

static struct cs_hist *make_hist(const struct cowsnap_allocator *alloc, struct cs_stats *stats)
{
	struct cs_hist *made = cs_alloc(alloc, sizeof(*made)), *others = NULL;

	if (!made)
		return NULL;
	cs_hist_init(made);
	/* Release: pairs with get_hist. */
	if (atomic_compare_exchange_strong_explicit(
		    &stats->copy_ns, &others, made, memory_order_acq_rel, memory_order_acquire))
		return made;
	cs_free(alloc, made, sizeof(*made));
	return others;
}

void cs_stats_copy(
	const struct cowsnap_allocator *alloc, struct cs_stats *stats, uint64_t duration_ns)
{
	struct cs_hist *hist = get_hist(stats);

	if (!hist)
		hist = make_hist(alloc, stats);
	if (hist)
		cs_hist_record(hist, duration_ns);
}

void cs_stats_sum(struct cs_stats_sum *sum, const struct cs_stats *stats, uint64_t writes)
{
	const struct cs_hist *hist = get_hist(stats);

	sum->writes += writes;
	for (size_t i = 0; i < CS_STATS; i++)
		sum->count[i] += atomic_load_explicit(&stats->count[i], memory_order_relaxed);
	if (hist)
		cs_hist_add(&sum->copy_ns, hist);
}

void cs_stats_report(const struct cs_stats_sum *sum, struct cowsnap_stats *out)
{
	const uint64_t *count = sum->count;
	uint64_t slow = count[CS_STAT_SLOW_WRITES];

	*out = (struct cowsnap_stats){
		.writes = sum->writes,
		/* Read one by one: a slow write may be counted before its bracket is. */
		.fast_writes = sum->writes > slow ? sum->writes - slow : 0,
		.copied_chunks = count[CS_STAT_COPIED_CHUNKS],
		.copied_bytes = count[CS_STAT_COPIED_BYTES],
		.origin_reads = count[CS_STAT_ORIGIN_READS],
		.origin_bytes = count[CS_STAT_ORIGIN_BYTES],
		.claim_waits = count[CS_STAT_CLAIM_WAITS],
		.drain_waits = count[CS_STAT_DRAIN_WAITS],
		.credit_waits = count[CS_STAT_CREDIT_WAITS],
		.space_waits = count[CS_STAT_SPACE_WAITS],
		.failed_writes = count[CS_STAT_FAILED_WRITES],
		.snapshot_reads = count[CS_STAT_SNAPSHOT_READS],
		.reread_chunks = count[CS_STAT_REREAD_CHUNKS],
		.copies = sum->copy_ns.count,
		.copy_ns_p50 = cs_hist_percentile_ns(&sum->copy_ns, 500),
		.copy_ns_p90 = cs_hist_percentile_ns(&sum->copy_ns, 900),
		.copy_ns_p99 = cs_hist_percentile_ns(&sum->copy_ns, 990),
		.copy_ns_p999 = cs_hist_percentile_ns(&sum->copy_ns, 999),
		.copy_ns_max = sum->copy_ns.max_ns,
	};
}
