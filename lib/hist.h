/* SPDX-License-Identifier: MIT
 *
 * Latency histogram: durations in nanoseconds, logarithmic with 16 linear steps in each power of
 * two, so a percentile is at most 1/16 above the truth. Any number of threads may record at the
 * same time as others read; readers see each counter at some moment. The memory is the owner's.
 * Debian has no package of HdrHistogram_c, which does this and more: that is why it is ours.
 */
#ifndef CS_HIST_H
#define CS_HIST_H

#include <stdatomic.h>
#include <stdint.h>

#define CS_HIST_STEP_BITS 4
#define CS_HIST_STEPS     (1 << CS_HIST_STEP_BITS)
/* Durations from 2^40 ns (18 minutes) on share the last bucket; the maximum stays exact. */
#define CS_HIST_MAX_BITS  40
#define CS_HIST_BUCKETS   ((CS_HIST_MAX_BITS - CS_HIST_STEP_BITS + 1) * CS_HIST_STEPS + 1)

struct cs_hist {
	_Atomic uint64_t max_ns;
	_Atomic uint64_t counts[CS_HIST_BUCKETS];
};

/* The sum of several histograms, for one reader. */
struct cs_hist_sum {
	uint64_t count;
	uint64_t max_ns;
	uint64_t counts[CS_HIST_BUCKETS];
};

/* For memory that is not known to be zero. */
void cs_hist_init(struct cs_hist *hist);
void cs_hist_record(struct cs_hist *hist, uint64_t duration_ns);

/* @sum starts as zeroes. */
void cs_hist_add(struct cs_hist_sum *sum, const struct cs_hist *hist);
/* The smallest recorded duration, rounded up to the end of its step, that at least @per_mille of
 * all do not exceed (500: the median). 0 if nothing was recorded. Never above the maximum. */
uint64_t cs_hist_percentile_ns(const struct cs_hist_sum *sum, uint32_t per_mille);

#endif
