/* SPDX-License-Identifier: MIT
 *
 * Scenario persist: what keeping records costs when the device's flush costs nothing. First touches
 * of a persistent store beside those of a transient one, on devices of the same kind.
 */
#include "bench.h"
#include "writers.h"

static int persist_setup(void *arg)
{
	return writers_open(arg);
}

static int persist_teardown(void *arg)
{
	return writers_close(arg);
}

static int persist_run(void *arg, struct bench_samples *samples)
{
	struct writers *w = arg;
	struct writers_round round;
	int err = writers_run(w, &round);

	if (!err)
		bench_sample(samples, (double)round.ns / (double)w->writes);
	return err;
}

static const struct bench_work persist_work = {persist_setup, persist_run, persist_teardown};

static int persist_group(struct bench_report *report, const struct bench_options *options,
	unsigned threads, uint64_t write_bytes)
{
	uint64_t volume_bytes = UINT64_C(256) << 20;
	bool small = write_bytes == WRITERS_CHUNK_BYTES;
	const char *size = small ? "4k-random" : "1m-sequential";
	struct bench_group *group = bench_group_add(report, "persist", "ns per host write",
		"%s, %u thread%s", size, threads, threads > 1 ? "s" : "");
	struct writers w = {.options = options, .threads = threads, .write_bytes = write_bytes};
	struct writers cases[4];
	static const char *const names[] = {
		"transient", "persistent", "transient-no-flush", "persistent-no-flush"};
	struct bench_variant *v[4];

	if (options->quick)
		volume_bytes = UINT64_C(4) << 20;
	w.writes = volume_bytes / write_bytes / threads;
	if (!w.writes)
		w.writes = 1;
	for (unsigned i = 0; i < 4; i++) {
		cases[i] = w;
		cases[i].persistent = i % 2;
		cases[i].device.flush = i < 2;
		v[i] = bench_variant_add(
			group, &persist_work, &cases[i], "%s-%s-%ut", names[i], size, threads);
	}
	bench_ratio_add(group, NULL, v[0], v[1], bench_at_least(0.8));
	bench_ratio_add(group, NULL, v[2], v[3], bench_at_least(0.8));
	return bench_group_run(group, options);
}

int bench_persist(struct bench_report *report, const struct bench_options *options)
{
	int err = persist_group(report, options, 1, WRITERS_CHUNK_BYTES);

	if (!err)
		err = persist_group(report, options, options->threads, WRITERS_CHUNK_BYTES);
	if (!err)
		err = persist_group(report, options, 1, UINT64_C(1) << 20);
	return err;
}
