/* SPDX-License-Identifier: MIT
 *
 * A histogram of durations for one thread.
 */
#include "latency.h"

#include <math.h>
#include <string.h>

void latency_init(struct latency *latency)
{
	memset(latency, 0, sizeof(*latency));
	latency->min_ns = UINT64_MAX;
}

static unsigned bucket_of(uint64_t ns)
{
	unsigned power;

	if (ns < LATENCY_STEPS)
		return (unsigned)ns;
	power = 63u - (unsigned)__builtin_clzll(ns);
	if (power >= LATENCY_MAX_BITS)
		return LATENCY_BUCKETS - 1;
	power -= LATENCY_STEP_BITS;
	return power * LATENCY_STEPS + (unsigned)(ns >> power);
}

/* The longest duration of a bucket. */
static uint64_t bucket_end(unsigned bucket)
{
	unsigned power = bucket / LATENCY_STEPS;

	if (!power)
		return bucket;
	power--;
	return (((uint64_t)(bucket - power * LATENCY_STEPS) + 1) << power) - 1;
}

void latency_record(struct latency *latency, uint64_t ns)
{
	latency->count++;
	latency->min_ns = ns < latency->min_ns ? ns : latency->min_ns;
	latency->max_ns = ns > latency->max_ns ? ns : latency->max_ns;
	latency->sum_ns += (double)ns;
	latency->sum_squares += (double)ns * (double)ns;
	latency->counts[bucket_of(ns)]++;
}

void latency_add(struct latency *sum, const struct latency *latency)
{
	sum->count += latency->count;
	sum->min_ns = latency->min_ns < sum->min_ns ? latency->min_ns : sum->min_ns;
	sum->max_ns = latency->max_ns > sum->max_ns ? latency->max_ns : sum->max_ns;
	sum->sum_ns += latency->sum_ns;
	sum->sum_squares += latency->sum_squares;
	for (unsigned i = 0; i < LATENCY_BUCKETS; i++)
		sum->counts[i] += latency->counts[i];
}

double latency_mean_ns(const struct latency *latency)
{
	return latency->count ? latency->sum_ns / (double)latency->count : 0;
}

double latency_stddev_ns(const struct latency *latency)
{
	double mean = latency_mean_ns(latency);

	if (!latency->count)
		return 0;
	return sqrt(fmax(0, latency->sum_squares / (double)latency->count - mean * mean));
}

uint64_t latency_percentile_ns(const struct latency *latency, double percent)
{
	double wanted = percent / 100 * (double)latency->count;
	uint64_t seen = 0;

	if (!latency->count)
		return 0;
	for (unsigned i = 0; i < LATENCY_BUCKETS - 1; i++) {
		seen += latency->counts[i];
		if (seen && (double)seen >= wanted)
			return bucket_end(i) < latency->max_ns ? bucket_end(i) : latency->max_ns;
	}
	return latency->max_ns;
}
