/* SPDX-License-Identifier: MIT
 *
 * A histogram of durations for one thread: logarithmic with 64 linear steps in each power of two,
 * as that of fio, so that a percentile is within 1/64 of the truth. Mean and deviation are exact.
 * Debian has no package of HdrHistogram_c.
 */
#ifndef COWSNAP_BENCH_LATENCY_H
#define COWSNAP_BENCH_LATENCY_H

#include <stdint.h>

#define LATENCY_STEP_BITS 6
#define LATENCY_STEPS     (1u << LATENCY_STEP_BITS)
#define LATENCY_MAX_BITS  40 /* longer ones share the last bucket */
#define LATENCY_BUCKETS   ((LATENCY_MAX_BITS - LATENCY_STEP_BITS + 1) * LATENCY_STEPS + 1)

struct latency {
	uint64_t count;
	uint64_t min_ns;
	uint64_t max_ns;
	double sum_ns;
	double sum_squares;
	uint32_t counts[LATENCY_BUCKETS];
};

void latency_init(struct latency *latency);
void latency_record(struct latency *latency, uint64_t ns);
void latency_add(struct latency *sum, const struct latency *latency);
double latency_mean_ns(const struct latency *latency);
double latency_stddev_ns(const struct latency *latency);
/* The end of the step that @percent of all do not exceed, never above the maximum; 0: nothing was
 * recorded. */
uint64_t latency_percentile_ns(const struct latency *latency, double percent);

#endif
