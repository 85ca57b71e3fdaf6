/* SPDX-License-Identifier: MIT
 *
 * Power cuts while a merge, made by hand, has records forgotten.
 */
#include "crash/workloads.h"
#include "support/test.h"

#include <stdio.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define STRIDE 11u
#else
#define STRIDE 1u
#endif

static const struct outage_plan plan = {.exhaustive_units = 5, .singles = 6, .randoms = 6};

static struct scenario_result run(
	const struct workload *workload, const struct power_traits *traits, enum mutation mutation)
{
	struct scenario_options options = {
		.traits = traits,
		.plan = plan,
		.mutation = mutation,
		.stop = true,
		.stride = mutation == MUTATION_NONE ? STRIDE : 1,
		.seed = {17},
	};
	struct scenario_result result;

	scenario_run(workload, &options, &result);
	return result;
}

/* What is forgotten, and when: cut off between its writes and inside each of them. */
Test(crash_merge, records_are_a_beginning_of_what_they_were)
{
	static const struct workload *const workloads[] = {
		&workload_merge_by_hand, &workload_merge_by_hand_torn};
	static const struct power_traits *const devices[] = {
		&scenario_cached, &scenario_flush_only, &scenario_cacheless, &scenario_blocks};

	for (unsigned w = 0; w < 2; w++) {
		struct check_counts sum = {0};

		for (unsigned d = w; d < 3 + w; d++) {
			struct scenario_result result =
				run(workloads[w], devices[d], MUTATION_NONE);

			cr_assert_eq(result.violations, 0, "%s", result.message);
			scenario_count(&sum, &result.counts);
		}
		scenario_print(workloads[w]->name, &sum);
		cr_assert_gt(sum.exact, 0);
		cr_assert_gt(sum.none, 0);
	}
}

/* Kernel 5.11, fcc42338375a: records were erased while what they had stood for was only in the
 * cache of the origin. */
Test(crash_merge, records_erased_before_the_origin_is_flushed)
{
	struct scenario_result result =
		run(&workload_merge_by_hand, &scenario_cached, MUTATION_NO_ORIGIN_FLUSH);

	cr_assert_gt(result.mutated, 0);
	cr_assert_gt(result.violations, 0);
	fprintf(stderr, "found: %s\n", result.message);
}

Test(crash_merge, records_whose_end_is_not_durable)
{
	struct scenario_result result =
		run(&workload_merge_by_hand, &scenario_cached, MUTATION_NO_CLOSING_FLUSH);

	cr_assert_gt(result.violations, 0);
}
