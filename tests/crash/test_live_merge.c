/* SPDX-License-Identifier: MIT
 *
 * Power cuts during merges of a volume that is in use.
 */
#include "crash/live_merge.h"
#include "crash/scenario.h"
#include "support/test.h"

#include <stdio.h>

#if defined(__SANITIZE_THREAD__)
#define STRIDE 25u
#elif defined(__SANITIZE_ADDRESS__)
#define STRIDE 5u
#else
#define STRIDE 1u
#endif

static const struct outage_plan plan = {.exhaustive_units = 5, .singles = 6, .randoms = 6};

static void expect_live(struct live_merge_options options, const char *what)
{
	struct live_merge_result result;

	options.plan = plan;
	options.stride = options.writes ? STRIDE : 1;
	live_merge_run(&options, &result);
	cr_assert_eq(result.violations, 0, "%s: %s", what, result.message);
	fprintf(stderr, "%s: %llu states, %llu of them merged, %llu merged on\n", what,
		(unsigned long long)result.states, (unsigned long long)result.merged,
		(unsigned long long)result.again);
	cr_assert_gt(result.states, 0);
	cr_assert(options.writes || (result.merged && result.again));
}

Test(crash_live_merge, nobody_uses_the_volume)
{
	expect_live(
		(struct live_merge_options){
			.traits = &scenario_cached, .chunk_bytes = 512, .seed = {1}},
		"idle, 512");
	expect_live(
		(struct live_merge_options){
			.traits = &scenario_flush_only, .chunk_bytes = 2048, .seed = {2}},
		"idle, 2048");
}

Test(crash_live_merge, writers_in_turn)
{
	static const struct power_traits *const devices[] = {
		&scenario_cached, &scenario_flush_only, &scenario_cacheless};
	struct seed seed = seed_for("crash_live_merge.writers_in_turn");

	for (unsigned i = 0; i < 6; i++)
		expect_live((struct live_merge_options){.traits = devices[i % 3],
				    .chunk_bytes = i % 2 ? 512 : 2048,
				    .writes = 30,
				    .seed = {seed_next(&seed)}},
			"in turn");
}

Test(crash_live_merge, writers_beside_it)
{
	struct seed seed = seed_for("crash_live_merge.writers_beside_it");

	for (unsigned i = 0; i < 4; i++)
		expect_live((struct live_merge_options){.traits = i % 2 ? &scenario_cached
									: &scenario_flush_only,
				    .chunk_bytes = i / 2 ? 512 : 1024,
				    .writes = 30,
				    .threads = true,
				    .seed = {seed_next(&seed)}},
			"beside it");
}

/* The requests of the store end in any order, and those of writers between those of the merge. */
Test(crash_live_merge, in_a_queue)
{
	static const struct power_traits *const devices[] = {
		&scenario_cached, &scenario_flush_only, &scenario_cacheless};
	struct seed seed = seed_for("crash_live_merge.in_a_queue");

	for (unsigned i = 0; i < 6; i++)
		expect_live((struct live_merge_options){.traits = devices[i % 3],
				    .chunk_bytes = i % 2 ? 512 : 2048,
				    .writes = 30,
				    .queue = true,
				    .seed = {seed_next(&seed)}},
			"in a queue");
}

/* Kernel 5.11, fcc42338375a, in the library's own merge. */
Test(crash_live_merge, fcc42338375a_origin_not_flushed)
{
	for (unsigned queue = 0; queue < 2; queue++) {
		struct live_merge_options options = {.traits = &scenario_cached,
			.chunk_bytes = 512,
			.queue = queue,
			.plan = plan,
			.seed = {1},
			.mutation = MUTATION_NO_ORIGIN_FLUSH};
		struct live_merge_result result;

		live_merge_run(&options, &result);
		cr_assert_gt(result.mutated, 0);
		cr_assert_gt(result.violations, 0);
	}
}
