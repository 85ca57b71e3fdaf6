/* SPDX-License-Identifier: MIT
 *
 * Short workloads, cut off everywhere, on devices of several kinds; and random ones for as long as
 * one likes: COWSNAP_CRASH_STATES says how many states.
 */
#include "crash/workloads.h"
#include "support/test.h"

#include <stdio.h>
#include <stdlib.h>

#define STATES_SHORT  50000u
#define STATES_RANDOM 10000u

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define STRIDE 25u
#else
#define STRIDE 1u
#endif

static const struct outage_plan plan = {
	.exhaustive_units = 6,
	.singles = 6,
	.randoms = 6,
};

static const struct power_traits *const devices[] = {
	&scenario_cached, &scenario_flush_only, &scenario_cacheless};

#define DEVICES (sizeof(devices) / sizeof(*devices))
#define CACHED  2u /* the first of them */

static void expect_sound(
	const struct scenario_result *result, const struct scenario_options *options)
{
	cr_assert_eq(result->violations, 0,
		"on a device with %s, effect %u, variant %u: %llu violations, the first: %s",
		options->traits->name, options->effect, options->variant,
		(unsigned long long)result->violations, result->message);
}

static uint64_t check_one(const struct workload *workload, const struct power_traits *traits,
	enum power_effect effect, unsigned variant, struct check_counts *sum)
{
	struct scenario_options options = {
		.traits = traits,
		.plan = plan,
		.effect = effect,
		.variant = variant,
		.stop = true,
		.stride = STRIDE,
		.seed = {workload->chunk_bytes + effect + variant},
	};
	struct scenario_result result;

	scenario_run(workload, &options, &result);
	expect_sound(&result, &options);
	scenario_count(sum, &result.counts);
	return result.counts.states;
}

static void check_workload(const struct workload *workload, struct check_counts *sum)
{
	uint64_t before = sum->states;

	for (unsigned i = 0; i < DEVICES; i++)
		check_one(workload, devices[i], POWER_NOTHING, 0, sum);
	fprintf(stderr, "%s: %llu states\n", workload->name,
		(unsigned long long)(sum->states - before));
}

static void check_faults(
	const struct workload *workload, unsigned variant, struct check_counts *sum)
{
	uint64_t before = sum->states;

	for (unsigned i = 0; i < DEVICES; i++)
		for (unsigned effect = 0; effect < POWER_EFFECTS; effect++)
			check_one(workload, devices[i], (enum power_effect)effect, variant, sum);
	fprintf(stderr, "%s: %llu states\n", workload->name,
		(unsigned long long)(sum->states - before));
}

/* A device with write_durable flushes once for a group of records, another one twice. */
static void check_flush_faults(const struct power_traits *traits, struct check_counts *sum)
{
	unsigned flushes = traits->durable ? 1 : 2;

	for (unsigned i = 1; i <= flushes; i++) {
		check_one(&workload_flush_fails, traits, POWER_NOTHING, i, sum);
		check_one(&workload_flush_fails_write_loses, traits, POWER_NOTHING, i, sum);
		check_one(&workload_take_fails, traits, POWER_NOTHING, i, sum);
	}
	if (!traits->durable) {
		check_one(&workload_invalidation_fails, traits, POWER_NOTHING, 0, sum);
		check_one(&workload_drop_fails, traits, POWER_NOTHING, 0, sum);
	}
}

/* One case for all, so that the number of states is that of CI. */
Test(crash, every_boundary_of_short_workloads)
{
	static const struct workload *const plain[] = {
		&workload_create_take,
		&workload_first_touches,
		&workload_area_crossing,
		&workload_spanning_groups,
		&workload_torn_area,
		&workload_odd_end,
		&workload_reopen,
		&workload_grow,
		&workload_full_invalidates,
		&workload_full_write_loses,
		&workload_drop,
		&workload_drop_take_again,
		&workload_overwrite,
		&workload_generation,
	};
	struct check_counts sum = {0};

	for (unsigned i = 0; i < sizeof(plain) / sizeof(*plain); i++)
		check_workload(plain[i], &sum);
	check_faults(&workload_data_write_fails, 0, &sum);
	check_faults(&workload_record_write_fails, 0, &sum);
	check_faults(&workload_record_write_fails_write_loses, 0, &sum);
	for (unsigned which = 1; which <= 3; which++)
		check_faults(&workload_spanning_commit_fails, which, &sum);
	check_faults(&workload_areas_fail_write_loses, 0, &sum);
	for (unsigned i = 0; i < CACHED; i++)
		check_flush_faults(devices[i], &sum);
	for (unsigned records = 30; records <= 34; records++)
		check_one(&workload_reopen_full_areas, devices[records % DEVICES], POWER_NOTHING,
			records, &sum);
	check_one(&workload_reopen_full_areas, &scenario_cached, POWER_NOTHING, 64, &sum);
	check_one(&workload_torn_large_area, &scenario_cached, POWER_NOTHING, 0, &sum);
	check_one(&workload_torn_large_area, &scenario_blocks, POWER_NOTHING, 0, &sum);
	scenario_print("short workloads", &sum);
	cr_assert_geq(sum.states, STATES_SHORT / STRIDE);
	cr_assert(sum.none && sum.exact && sum.invalid && sum.stale && sum.reopened &&
		  sum.continued && sum.filled && sum.dropped && sum.recreated && sum.nested);
}

static void check_killed(
	const struct workload *workload, unsigned variants, struct check_counts *sum)
{
	for (unsigned variant = 1; variant <= variants; variant++)
		for (unsigned device = 0; device < DEVICES; device++)
			check_one(workload, devices[device], POWER_NOTHING, variant, sum);
}

/* Before each of the writes and flushes that there may be, and once after them. */
Test(crash, killed_processes)
{
	struct check_counts sum = {0};

	check_killed(&workload_killed_in_commit, 9, &sum);
	check_killed(&workload_killed_in_take, 5, &sum);
	check_killed(&workload_killed_in_drop, 3, &sum);
	check_killed(&workload_killed_in_drop_created_again, 3, &sum);
	check_killed(&workload_killed_in_invalidation, 3, &sum);
	scenario_print("killed processes", &sum);
}

static uint64_t states_wanted(uint64_t otherwise)
{
	const char *given = getenv("COWSNAP_CRASH_STATES");

	return given ? strtoull(given, NULL, 0) : otherwise;
}

/* So few places of each that many journals are seen. */
static void check_random(const struct workload *workload)
{
	struct seed seed = seed_for(workload->name);
	uint64_t wanted = states_wanted(STATES_RANDOM / STRIDE);
	struct check_counts sum = {0};

	while (sum.states < wanted) {
		struct scenario_options options = {
			.traits = devices[seed_below(&seed, DEVICES)],
			.plan = {.exhaustive_units = 5,
				.singles = 4,
				.randoms = 12,
				.positions = 60},
			.stop = true,
			.seed = {seed_next(&seed)},
		};
		struct scenario_result result;

		scenario_run(workload, &options, &result);
		expect_sound(&result, &options);
		scenario_count(&sum, &result.counts);
	}
	scenario_print(workload->name, &sum);
}

Test(crash, random_workloads)
{
	check_random(&workload_random);
}

Test(crash, random_workloads_on_a_device_with_errors)
{
	check_random(&workload_random_faults);
}
