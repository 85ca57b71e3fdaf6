/* SPDX-License-Identifier: MIT
 *
 * Latency histogram. Durations below 16 ns have a bucket each; above, the bucket is the position of
 * the highest bit and the four bits after it.
 *
 * All counters are relaxed: nothing is published through them.
 */
#include "hist.h"

#include <assert.h>

static unsigned int bucket_of(uint64_t duration_ns)
{
	unsigned int high_bit;

	if (duration_ns < CS_HIST_STEPS)
		return (unsigned int)duration_ns;
	high_bit = 63 - (unsigned int)__builtin_clzll(duration_ns);
	if (high_bit >= CS_HIST_MAX_BITS)
		return CS_HIST_BUCKETS - 1;
	return (high_bit - CS_HIST_STEP_BITS + 1) * CS_HIST_STEPS +
	       (unsigned int)(duration_ns >> (high_bit - CS_HIST_STEP_BITS)) % CS_HIST_STEPS;
}

/* The longest duration that falls into a bucket. */
static uint64_t bucket_end_ns(unsigned int bucket)
{
	unsigned int shift;
	uint64_t step;

	if (bucket < CS_HIST_STEPS)
		return bucket;
	shift = bucket / CS_HIST_STEPS - 1;
	step = CS_HIST_STEPS + bucket % CS_HIST_STEPS;
	return ((step + 1) << shift) - 1;
}

void cs_hist_init(struct cs_hist *hist)
{
	atomic_init(&hist->max_ns, 0);
	for (unsigned int i = 0; i < CS_HIST_BUCKETS; i++)
		atomic_init(&hist->counts[i], 0);
}

void cs_hist_record(struct cs_hist *hist, uint64_t duration_ns)
{
	uint64_t max = atomic_load_explicit(&hist->max_ns, memory_order_relaxed);

	atomic_fetch_add_explicit(&hist->counts[bucket_of(duration_ns)], 1, memory_order_relaxed);
	while (duration_ns > max &&
		!atomic_compare_exchange_weak_explicit(&hist->max_ns, &max, duration_ns,
			memory_order_relaxed, memory_order_relaxed))
		;
}

void cs_hist_add(struct cs_hist_sum *sum, const struct cs_hist *hist)
{
	uint64_t max = atomic_load_explicit(&hist->max_ns, memory_order_relaxed);

	if (max > sum->max_ns)
		sum->max_ns = max;
	for (unsigned int i = 0; i < CS_HIST_BUCKETS; i++) {
		uint64_t n = atomic_load_explicit(&hist->counts[i], memory_order_relaxed);

		sum->counts[i] += n;
		sum->count += n;
	}
}

uint64_t cs_hist_percentile_ns(const struct cs_hist_sum *sum, uint32_t per_mille)
{
	uint64_t rank;
	uint64_t seen = 0;

	assert(per_mille <= 1000);
	if (sum->count == 0)
		return 0;
	/* ceil(count * per_mille / 1000) without overflow, and at least the first one */
	rank = sum->count / 1000 * per_mille + (sum->count % 1000 * per_mille + 999) / 1000;
	if (rank == 0)
		rank = 1;
	for (unsigned int i = 0; i < CS_HIST_BUCKETS - 1; i++) {
		seen += sum->counts[i];
		if (seen >= rank) {
			uint64_t end_ns = bucket_end_ns(i);

			return end_ns < sum->max_ns ? end_ns : sum->max_ns;
		}
	}
	return sum->max_ns;
}
