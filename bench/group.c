/* SPDX-License-Identifier: MIT
 *
 * Groups of cowsnap-bench: variants run in turn, and the figures that come of it.
 */
#include "bench.h"

#include <fnmatch.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void bench_sample(struct bench_samples *samples, double value)
{
	if (samples->count == samples->room) {
		size_t room = samples->room ? samples->room * 2 : 16;
		double *values = bench_alloc(room, sizeof(*values));

		if (samples->count)
			memcpy(values, samples->values, samples->count * sizeof(*values));
		free(samples->values);
		samples->values = values;
		samples->room = room;
	}
	samples->values[samples->count++] = value;
}

static int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a;
	double y = *(const double *)b;

	return (x > y) - (x < y);
}

double bench_median(const struct bench_samples *samples)
{
	size_t n = samples->count;
	double *sorted;
	double median;

	if (!n)
		return NAN;
	sorted = bench_alloc(n, sizeof(*sorted));
	memcpy(sorted, samples->values, n * sizeof(*sorted));
	qsort(sorted, n, sizeof(*sorted), compare_doubles);
	median = n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
	free(sorted);
	return median;
}

double bench_minimum(const struct bench_samples *samples)
{
	double least = samples->count ? samples->values[0] : NAN;

	for (size_t i = 1; i < samples->count; i++)
		least = fmin(least, samples->values[i]);
	return least;
}

double bench_maximum(const struct bench_samples *samples)
{
	double most = samples->count ? samples->values[0] : NAN;

	for (size_t i = 1; i < samples->count; i++)
		most = fmax(most, samples->values[i]);
	return most;
}

struct bench_group *bench_group_add(struct bench_report *report, const char *scenario,
	const char *unit, const char *name_format, ...)
{
	struct bench_group *group = bench_alloc(1, sizeof(*group));
	va_list args;

	va_start(args, name_format);
	vsnprintf(group->name, sizeof(group->name), name_format, args);
	va_end(args);
	group->scenario = scenario;
	group->unit = unit;
	*report->last = group;
	report->last = &group->next;
	return group;
}

struct bench_variant *bench_variant_add(struct bench_group *group, const struct bench_work *work,
	void *arg, const char *name_format, ...)
{
	struct bench_variant *variant;
	va_list args;

	if (group->variant_count == BENCH_VARIANTS_MAX) {
		fprintf(stderr, "cowsnap-bench: too many variants in group %s\n", group->name);
		exit(EXIT_FAILURE);
	}
	variant = &group->variants[group->variant_count++];
	va_start(args, name_format);
	vsnprintf(variant->name, sizeof(variant->name), name_format, args);
	va_end(args);
	variant->setup = work->setup;
	variant->run = work->run;
	variant->teardown = work->teardown;
	variant->arg = arg;
	return variant;
}

struct bench_ratio *bench_ratio_add(struct bench_group *group, const char *name,
	const struct bench_variant *above, const struct bench_variant *below,
	struct bench_target target)
{
	struct bench_ratio *ratio;

	if (group->ratio_count == BENCH_RATIOS_MAX) {
		fprintf(stderr, "cowsnap-bench: too many ratios in group %s\n", group->name);
		exit(EXIT_FAILURE);
	}
	ratio = &group->ratios[group->ratio_count++];
	if (name)
		snprintf(ratio->name, sizeof(ratio->name), "%s", name);
	else
		snprintf(ratio->name, sizeof(ratio->name), "%s / %s", above->name, below->name);
	ratio->above[0] = above;
	ratio->below = below;
	ratio->target = target;
	return ratio;
}

static int run_round(struct bench_group *group, bool counts)
{
	group->counts = counts;
	for (size_t i = 0; i < group->variant_count; i++) {
		struct bench_variant *variant = &group->variants[i];
		struct bench_samples samples = {0};
		int err;

		if (!variant->selected)
			continue;
		err = variant->run(variant->arg, &samples);
		if (err < 0) {
			fprintf(stderr, "cowsnap-bench: variant %s failed\n", variant->name);
			free(samples.values);
			return err;
		}
		for (size_t k = 0; counts && k < samples.count; k++)
			bench_sample(&variant->samples, samples.values[k]);
		if (counts)
			bench_sample(&variant->rounds, bench_median(&samples));
		free(samples.values);
	}
	return 0;
}

/* The ratio of one round; not a number if a part was not selected. */
static double ratio_of_round(const struct bench_ratio *ratio, unsigned round)
{
	double above = 0;

	if (!ratio->below || !ratio->below->selected)
		return NAN;
	for (size_t i = 0; i < sizeof(ratio->above) / sizeof(ratio->above[0]); i++) {
		if (!ratio->above[i])
			continue;
		if (!ratio->above[i]->selected)
			return NAN;
		above += ratio->above[i]->rounds.values[round];
	}
	return above / ratio->below->rounds.values[round];
}

static void make_ratios(struct bench_group *group, unsigned rounds)
{
	for (size_t i = 0; i < group->ratio_count; i++) {
		struct bench_ratio *ratio = &group->ratios[i];

		for (unsigned round = 0; round < rounds; round++) {
			double value = ratio_of_round(ratio, round);

			if (!isnan(value))
				bench_sample(&ratio->rounds, value);
		}
	}
}

int bench_group_run(struct bench_group *group, const struct bench_options *options)
{
	size_t ready = 0; /* variants [0, ready) are set up */
	int err = 0;

	for (size_t i = 0; i < group->variant_count; i++) {
		struct bench_variant *variant = &group->variants[i];

		variant->selected =
			!options->variant || !fnmatch(options->variant, variant->name, 0);
	}
	for (; ready < group->variant_count && !err; ready++) {
		struct bench_variant *variant = &group->variants[ready];

		if (variant->selected && variant->setup)
			err = variant->setup(variant->arg);
	}
	if (!err)
		err = run_round(group, false);
	for (unsigned round = 0; round < options->repeat && !err; round++)
		err = run_round(group, true);
	for (size_t i = 0; i < ready; i++) {
		struct bench_variant *variant = &group->variants[i];
		int close_err = 0;

		if (variant->selected && variant->teardown)
			close_err = variant->teardown(variant->arg);
		err = err ? err : close_err;
	}
	if (!err)
		make_ratios(group, options->repeat);
	return err;
}
