/* SPDX-License-Identifier: MIT
 *
 * The tools themselves: what the devices note, and what a cut makes of it.
 */
#include "crash/outage.h"
#include "crash/scenario.h"
#include "support/test.h"

#include <errno.h>
#include <string.h>

#define BYTES     4096u
#define MAX_FOUND 300u

/* Devices of zeroes with a journal, and the images that were found after all cuts. */
struct bench {
	struct rig rig;
	const struct power_traits *traits[POWER_DEVICES];
	uint8_t base[BYTES];
	uint8_t target[POWER_DEVICES][BYTES];
	unsigned found;
	char sectors[MAX_FOUND][BYTES / 512 + 1]; /* of the store, one letter each */
	uint64_t times[MAX_FOUND];
};

static struct bench bench;

static void open_bench(const struct power_traits *traits)
{
	memset(&bench, 0, sizeof(bench));
	bench.traits[POWER_ORIGIN] = &scenario_origin;
	bench.traits[POWER_STORE] = traits;
	rig_init(&bench.rig, BYTES, BYTES);
	cr_assert_eq(rig_start(&bench.rig, bench.traits, BYTES, BYTES), 0);
	bench.rig.journal.recording = true;
	journal_note(&bench.rig.journal, &(struct promise){.may = MAY_NONE});
}

static struct cowsnap_device *store(void)
{
	return bench.rig.device[POWER_STORE];
}

/* @count sectors of one letter. */
static int put(unsigned sector, unsigned count, char letter)
{
	uint8_t data[BYTES];

	memset(data, letter, sizeof(data));
	return cowsnap_device_write(store(), data, sector * UINT64_C(512), count * UINT64_C(512));
}

static void flush(void)
{
	cr_assert_eq(cowsnap_device_flush(store()), 0);
}

static bool note_state(void *user, const struct outage_state *state)
{
	(void)user;
	cr_assert_lt(bench.found, MAX_FOUND);
	bench.times[bench.found] = state->time;
	for (unsigned i = 0; i < BYTES / 512; i++) {
		uint8_t letter = bench.target[POWER_STORE][i * 512];

		bench.sectors[bench.found][i] = letter ? (char)letter : '.';
		for (unsigned at = 0; at < 512; at++)
			cr_assert_eq(bench.target[POWER_STORE][i * 512 + at], letter);
	}
	bench.found++;
	return true;
}

static void cut(const struct outage_plan *plan)
{
	struct outage_source source = {
		.journal = &bench.rig.journal,
		.base = {bench.base, bench.base},
		.bytes = {BYTES, BYTES},
		.traits = {bench.traits[0], bench.traits[1]},
		.chunk_bytes = 512,
	};
	struct outage_visitor visitor = {
		.visit = note_state,
		.target = {bench.target[0], bench.target[1]},
	};
	struct seed seed = {7};

	bench.rig.journal.recording = false;
	outage_prepare(&source);
	cr_assert_eq(outage_run(&source, plan, &seed, &visitor), bench.found);
}

static void cut_everywhere(void)
{
	cut(&(struct outage_plan){.exhaustive_units = 8});
}

static void close_bench(void)
{
	cr_assert_eq(rig_stop(&bench.rig), 0);
	rig_fini(&bench.rig);
}

/* How often these sectors were found from a time on; the rest does not matter. */
static unsigned times_found(const char *sectors, uint64_t from)
{
	unsigned count = 0;

	for (unsigned i = 0; i < bench.found; i++)
		count += bench.times[i] >= from &&
			 strncmp(bench.sectors[i], sectors, strlen(sectors)) == 0;
	return count;
}

static uint64_t now(void)
{
	return bench.rig.journal.now;
}

Test(power, a_write_is_there_or_torn_or_not)
{
	open_bench(&scenario_cached);
	cr_assert_eq(put(0, 3, 'a'), 0);
	cut_everywhere();
	/* Before it, and the 8 subsets. */
	cr_assert_eq(bench.found, 9);
	cr_assert_eq(times_found("....", 0), 2);
	cr_assert_eq(times_found("aaa.", 0), 1);
	cr_assert_eq(times_found("a.a.", 0), 1);
	cr_assert_eq(times_found("..a.", 0), 1);
	close_bench();
}

Test(power, a_flush_makes_durable_what_had_ended)
{
	uint64_t flushed;

	open_bench(&scenario_cached);
	cr_assert_eq(put(0, 1, 'a'), 0);
	flush();
	flushed = now();
	cr_assert_eq(put(1, 1, 'b'), 0);
	cut_everywhere();
	cr_assert_gt(times_found("..", 0), 0);
	cr_assert_gt(times_found("ab", flushed), 0);
	cr_assert_gt(times_found("a.", flushed), 0);
	cr_assert_eq(times_found(".", flushed), 0);
	cr_assert_eq(times_found(".b", 0), 0, "the second began when the first was durable");
	close_bench();
}

Test(power, a_cache_writes_back_in_any_order)
{
	open_bench(&scenario_cached);
	cr_assert_eq(put(0, 1, 'a'), 0);
	cr_assert_eq(put(1, 1, 'b'), 0);
	cr_assert_eq(put(0, 1, 'c'), 0);
	cut_everywhere();
	cr_assert_gt(times_found(".b", 0), 0);
	cr_assert_gt(times_found("a.", 0), 0);
	cr_assert_gt(times_found("ab", 0), 0);
	cr_assert_gt(times_found("c.", 0), 0);
	cr_assert_gt(times_found("cb", 0), 0);
	close_bench();
}

static int put_durable(unsigned sector, char letter)
{
	uint8_t data[512];

	memset(data, letter, sizeof(data));
	return power_write_durable(
		&bench.rig.power[POWER_STORE], data, sector * UINT64_C(512), sizeof(data));
}

Test(power, a_durable_write_passes_others_by)
{
	uint64_t done;

	open_bench(&scenario_cached);
	cr_assert_eq(put(0, 1, 'a'), 0);
	cr_assert_eq(put_durable(1, 'b'), 0);
	done = now();
	cr_assert_eq(put(2, 1, 'c'), 0);
	cut_everywhere();
	cr_assert_gt(times_found(".b", done), 0);
	cr_assert_gt(times_found("ab", done), 0);
	cr_assert_eq(times_found("..", done), 0);
	cr_assert_eq(times_found("a.", done), 0);
	close_bench();
}

Test(power, a_device_without_a_cache_keeps_what_has_ended)
{
	uint64_t done;

	open_bench(&scenario_cacheless);
	cr_assert_eq(put(0, 2, 'a'), 0);
	done = now();
	cr_assert_eq(put(2, 2, 'b'), 0);
	cut_everywhere();
	cr_assert_gt(times_found("a...", 0), 0, "torn while it was written");
	cr_assert_gt(times_found(".a..", 0), 0);
	cr_assert_eq(times_found("a...", done), 0);
	cr_assert_gt(times_found("aa.b", done), 0);
	cr_assert_eq(times_found("..", done), 0);
	close_bench();
}

Test(power, a_failed_flush_loses_what_it_should_have_kept)
{
	uint64_t later;

	open_bench(&scenario_cached);
	cr_assert_eq(put(0, 1, 'a'), 0);
	flush();
	cr_assert_eq(put(1, 1, 'b'), 0);
	bench.rig.power[POWER_STORE].flush_fault =
		(struct power_fault){.countdown = 1, .error = -EIO};
	cr_assert_eq(cowsnap_device_flush(store()), -EIO);
	cr_assert_eq(put(2, 1, 'c'), 0);
	flush();
	later = now();
	cr_assert_eq(put(3, 1, 'd'), 0);
	cut_everywhere();
	cr_assert_gt(times_found("abc", later), 0);
	cr_assert_gt(times_found("a.c", later), 0);
	cr_assert_eq(times_found("ab.", later), 0);
	close_bench();
}

Test(power, a_failed_write_does_what_it_was_told)
{
	static const char *const after[POWER_EFFECTS] = {
		[POWER_NOTHING] = "....", [POWER_ALL] = "aaaa", [POWER_REAR] = "..aa"};

	for (unsigned effect = 0; effect < POWER_EFFECTS; effect++) {
		open_bench(&scenario_cacheless);
		bench.rig.power[POWER_STORE].write_fault = (struct power_fault){
			.countdown = 1, .error = -ENOSPC, .effect = (enum power_effect)effect};
		cr_assert_eq(put(0, 4, 'a'), -ENOSPC);
		for (unsigned i = 0; i < 4; i++)
			cr_assert_eq(bench.rig.live[POWER_STORE][i * 512],
				after[effect][i] == 'a' ? 'a' : 0);
		cr_assert_eq(put(4, 1, 'b'), 0);
		cut_everywhere();
		cr_assert_gt(times_found(after[effect], 0), 0);
		close_bench();
	}
}

Test(power, many_units_are_sampled)
{
	open_bench(&scenario_cached);
	cr_assert_eq(put(0, 8, 'a'), 0);
	cut(&(struct outage_plan){.exhaustive_units = 4, .singles = 8, .randoms = 10});
	cr_assert_eq(bench.found, 1 + 2 + 16 + 10);
	cr_assert_geq(times_found("aaaaaaaa", 0), 1);
	cr_assert_geq(times_found("aaa.aaaa", 0), 1);
	cr_assert_geq(times_found("...a....", 0), 1);
	cr_assert_geq(times_found("........", 0), 2);
	close_bench();
}

Test(power, the_layout_is_that_of_the_format_page)
{
	/* The example of the page, and a device that ends with a stripe. */
	cr_assert_eq(power_record_limit(4096, 4 * 4096), 2);
	cr_assert_eq(power_record_limit(512, 34 * 512), 31);
	cr_assert_eq(power_record_limit(512, 35 * 512), 32);
	cr_assert_eq(power_record_limit(512, 36 * 512), 33);
	cr_assert(power_in_area(512, 512));
	cr_assert(power_in_area(512, 34 * 512));
	cr_assert_not(power_in_area(512, 0));
	cr_assert_not(power_in_area(512, 33 * 512));
}
