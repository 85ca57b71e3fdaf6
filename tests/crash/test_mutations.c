/* SPDX-License-Identifier: MIT
 *
 * The tests can fail: a store that leaves one thing out is caught, for each thing.
 */
#include "crash/workloads.h"
#include "support/test.h"

static const struct outage_plan plan = {.exhaustive_units = 6, .singles = 6, .randoms = 6};

static struct scenario_options options_for(const struct power_traits *traits)
{
	return (struct scenario_options){
		.traits = traits,
		.plan = plan,
		.effect = POWER_ALL,
		.stop = true,
		.seed = {5},
	};
}

static void expect_caught(const struct workload *workload, struct scenario_options options)
{
	enum mutation mutation = options.mutation ? options.mutation : options.nested_mutation;
	struct scenario_result result;

	scenario_run(workload, &options, &result);
	cr_assert_gt(result.mutated, 0, "%s, %s: nothing to leave out in %s",
		mutation_name(mutation), options.traits->name, workload->name);
	cr_assert_gt(result.violations, 0, "%s, %s: not caught with %s in %llu states",
		mutation_name(mutation), options.traits->name, workload->name,
		(unsigned long long)result.counts.states);
	fprintf(stderr, "%s, %s: caught: %s\n", mutation_name(mutation), options.traits->name,
		result.message);
}

static void expect_mutation_caught(const struct workload *workload, enum mutation mutation)
{
	static const struct power_traits *const devices[] = {
		&scenario_cached, &scenario_flush_only};

	for (unsigned i = 0; i < 2; i++) {
		struct scenario_options options = options_for(devices[i]);

		options.mutation = mutation;
		expect_caught(workload, options);
	}
}

Test(mutations, no_flush_before_records)
{
	expect_mutation_caught(&workload_first_touches, MUTATION_NO_OPENING_FLUSH);
	expect_mutation_caught(&workload_spanning_groups, MUTATION_NO_OPENING_FLUSH);
}

Test(mutations, no_flush_after_records)
{
	expect_mutation_caught(&workload_first_touches, MUTATION_NO_CLOSING_FLUSH);
	expect_mutation_caught(&workload_torn_area, MUTATION_NO_CLOSING_FLUSH);
}

Test(mutations, next_area_not_zeroed)
{
	expect_mutation_caught(&workload_area_crossing, MUTATION_NO_AREA_ZEROED);
}

Test(mutations, next_area_zeroed_too_late)
{
	expect_mutation_caught(&workload_area_crossing, MUTATION_AREA_ZEROED_LATE);
}

/* It takes two cuts: one that leaves the tail, and one after what was done then. */
Test(mutations, stale_tail_not_zeroed)
{
	struct scenario_options options = options_for(&scenario_cached);

	options.nested_mutation = MUTATION_NO_TAIL_ZEROED;
	options.plan.randoms = 40;
	expect_caught(&workload_torn_area, options);
}

Test(mutations, no_flush_between_area_and_header)
{
	expect_mutation_caught(&workload_create_take, MUTATION_NO_CREATE_FLUSH);
}

Test(mutations, no_flush_after_an_invalid_header)
{
	expect_mutation_caught(&workload_full_invalidates, MUTATION_NO_INVALID_FLUSH);
}

Test(mutations, no_flush_after_a_drop)
{
	expect_mutation_caught(&workload_drop, MUTATION_NO_DROP_FLUSH);
}

Test(mutations, slots_of_a_failed_write_not_zeroed)
{
	expect_mutation_caught(&workload_record_write_fails_write_loses, MUTATION_NO_SLOT_ZEROED);
}
