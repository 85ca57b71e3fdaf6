/* SPDX-License-Identifier: MIT
 *
 * Counters of one origin: making, merging and reporting them.
 */
#include "stats.h"

#include <cowsnap.h>

#include "alloc.h"
#include "cpu.h"

#define STRIPES_MAX 32u

struct cs_stats *cs_stats_create(const struct cowsnap_allocator *alloc)
{
	struct cs_stats *stats = cs_alloc_zeroed(alloc, sizeof(*stats));

	if (stats)
		stats->stripe_mask = cs_cpu_stripes(STRIPES_MAX) - 1;
	return stats;
}

static struct cs_stats_stripe *get_stripes(const struct cs_stats *stats)
{
	/* Acquire: their zeroes; pairs with make_stripes. */
	return atomic_load_explicit(&stats->stripes, memory_order_acquire);
}

static size_t stripe_bytes(const struct cs_stats *stats)
{
	return (stats->stripe_mask + 1) * sizeof(struct cs_stats_stripe);
}

void cs_stats_destroy(const struct cowsnap_allocator *alloc, struct cs_stats *stats)
{
	if (!stats)
		return;
	cs_free(alloc, get_stripes(stats), stripe_bytes(stats));
	cs_free(alloc, stats, sizeof(*stats));
}

static void init_stripe(struct cs_stats_stripe *stripe)
{
	for (size_t i = 0; i < CS_STATS; i++)
		atomic_init(&stripe->count[i], 0);
	cs_hist_init(&stripe->copy_ns);
}

static struct cs_stats_stripe *make_stripes(
	const struct cowsnap_allocator *alloc, struct cs_stats *stats)
{
	struct cs_stats_stripe *others = NULL;
	struct cs_stats_stripe *made = cs_alloc_aligned(alloc, stripe_bytes(stats), CS_CACHE_BYTES);

	if (!made)
		return NULL;
	for (uint32_t i = 0; i <= stats->stripe_mask; i++)
		init_stripe(&made[i]);
	/* Release: pairs with get_stripes. */
	if (atomic_compare_exchange_strong_explicit(
		    &stats->stripes, &others, made, memory_order_acq_rel, memory_order_acquire))
		return made;
	cs_free(alloc, made, stripe_bytes(stats));
	return others;
}

static struct cs_stats_stripe *mine(const struct cs_stats *stats, struct cs_stats_stripe *stripes)
{
	return &stripes[cs_cpu_current() & stats->stripe_mask];
}

static void add(_Atomic uint64_t *count, uint64_t n)
{
	atomic_fetch_add_explicit(count, n, memory_order_relaxed);
}

void cs_stats_add(struct cs_stats *stats, enum cs_stat which, uint64_t n)
{
	struct cs_stats_stripe *stripes = get_stripes(stats);
	_Atomic uint64_t *count = stripes ? mine(stats, stripes)->count : stats->count;

	add(&count[which], n);
}

void cs_stats_copied(const struct cowsnap_allocator *alloc, struct cs_stats *stats,
	const struct cs_stats_round *round)
{
	struct cs_stats_stripe *stripes = get_stripes(stats), *stripe;
	_Atomic uint64_t *count;

	if (!stripes)
		stripes = make_stripes(alloc, stats);
	stripe = stripes ? mine(stats, stripes) : NULL;
	count = stripe ? stripe->count : stats->count;
	add(&count[CS_STAT_ORIGIN_READS], round->origin_reads);
	add(&count[CS_STAT_ORIGIN_BYTES], round->origin_bytes);
	add(&count[CS_STAT_COPIED_CHUNKS], round->chunks);
	add(&count[CS_STAT_COPIED_BYTES], round->bytes);
	if (round->given_bytes)
		add(&count[CS_STAT_GIVEN_BYTES], round->given_bytes);
	if (round->zero_chunks)
		add(&count[CS_STAT_ZERO_CHUNKS], round->zero_chunks);
	if (stripe)
		cs_hist_record(&stripe->copy_ns, round->took_ns);
}

static void add_counts(struct cs_stats_sum *sum, const _Atomic uint64_t *count)
{
	for (size_t i = 0; i < CS_STATS; i++)
		sum->count[i] += atomic_load_explicit(&count[i], memory_order_relaxed);
}

void cs_stats_sum(struct cs_stats_sum *sum, const struct cs_stats *stats, uint64_t writes)
{
	const struct cs_stats_stripe *stripes = get_stripes(stats);

	sum->writes += writes;
	add_counts(sum, stats->count);
	for (uint32_t i = 0; stripes && i <= stats->stripe_mask; i++) {
		add_counts(sum, stripes[i].count);
		cs_hist_add(&sum->copy_ns, &stripes[i].copy_ns);
	}
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
		.given_bytes = count[CS_STAT_GIVEN_BYTES],
		.zero_chunks = count[CS_STAT_ZERO_CHUNKS],
	};
}
