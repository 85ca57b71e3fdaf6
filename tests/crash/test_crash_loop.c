/* SPDX-License-Identifier: MIT
 *
 * An event loop with many writes under way, cut off at random places. Without threads beside it a
 * seed replays all of it, but for deadlines.
 */
#include "crash/workloads.h"
#include "support/test.h"

#include <stdlib.h>

#if defined(__SANITIZE_THREAD__)
#define STATES 200u
#elif defined(__SANITIZE_ADDRESS__)
#define STATES 600u
#else
#define STATES 3000u
#endif
#define WRITES 24u

/* So many places of each journal that it takes several journals. */
static void check_loop(const struct workload *workload)
{
	static const struct power_traits *const devices[] = {
		&scenario_cached, &scenario_flush_only, &scenario_cacheless};
	const char *given = getenv("COWSNAP_CRASH_STATES");
	uint64_t states = given ? strtoull(given, NULL, 0) : STATES;
	struct seed seed = seed_for(workload->name);
	struct check_counts sum = {0};

	for (unsigned run = 0; sum.states < states; run++) {
		const struct power_traits *traits = devices[run % 3];
		struct scenario_options options = {
			.traits = traits,
			.plan = {.exhaustive_units = 5,
				.singles = 4,
				.randoms = 20,
				.positions = STATES / 100},
			.variant = WRITES,
			.stop = true,
			.seed = {seed_next(&seed)},
		};
		struct scenario_result result;

		scenario_run(workload, &options, &result);
		cr_assert_eq(result.violations, 0, "on a device with %s: %llu violations: %s",
			traits->name, (unsigned long long)result.violations, result.message);
		scenario_count(&sum, &result.counts);
	}
	scenario_print(workload->name, &sum);
}

Test(crash_loop, writes_in_groups)
{
	check_loop(&workload_loop);
}

Test(crash_loop, writes_in_groups_with_areas_of_many_sectors)
{
	check_loop(&workload_loop_large_chunks);
}

Test(crash_loop, threads_beside_the_loop)
{
	check_loop(&workload_loop_and_threads);
}

Test(crash_loop, writes_of_which_some_find_no_room)
{
	check_loop(&workload_loop_invalidate);
}

Test(crash_loop, writes_whose_records_fail)
{
	check_loop(&workload_loop_records_fail);
}
