/* SPDX-License-Identifier: MIT
 *
 * Scenario commit: what a persistent store makes of a device with a slow flush. How many records
 * share one flush, how many writes go on meanwhile, and how much metadata is written for them.
 *
 * Each record needs a flush between its data and itself, and then one more or a durable write.
 * Flushes of a device go one after the other. So w writers get at most w records from a flush if
 * the device has durable writes, and w / 2 if not. These bounds are rows of their own.
 */
#include "bench.h"
#include "writers.h"

#include <string.h>

#define MS         UINT64_C(1000000)
#define DURABLE_NS UINT64_C(100000)

enum commit_figure {
	RECORDS_PER_FLUSH,
	WRITES_PER_FLUSH_TIME,
	CHUNKS_PER_CHUNK, /* of the device, for one of data */
	FORMAT_CHUNKS_PER_CHUNK,
	METADATA_PER_RECORD, /* bytes written */
};

struct commit_case {
	struct writers writers;
	enum commit_figure figure;
};

static double figure_of(const struct commit_case *c, const struct writers_round *round)
{
	uint64_t flush_ns = c->writers.device.flush_ns;
	double records = (double)round->records;

	switch (c->figure) {
	case RECORDS_PER_FLUSH:
		return records / (double)round->device.flushes;
	case WRITES_PER_FLUSH_TIME:
		return (double)round->writes / (double)round->ns * (double)flush_ns;
	case CHUNKS_PER_CHUNK:
		return (double)round->device.written_chunks / records;
	case FORMAT_CHUNKS_PER_CHUNK:
		return (double)writers_format_chunks(round->records) / records;
	case METADATA_PER_RECORD:
		return (double)round->device.written_bytes / records - (double)WRITERS_CHUNK_BYTES;
	}
	return 0;
}

static int commit_setup(void *arg)
{
	return writers_open(&((struct commit_case *)arg)->writers);
}

static int commit_teardown(void *arg)
{
	return writers_close(&((struct commit_case *)arg)->writers);
}

static int commit_run(void *arg, struct bench_samples *samples)
{
	struct commit_case *c = arg;
	struct writers_round round;
	int err = writers_run(&c->writers, &round);

	if (!err)
		bench_sample(samples, figure_of(c, &round));
	return err;
}

/* A bound: nothing to measure. */
static int constant_run(void *arg, struct bench_samples *samples)
{
	bench_sample(samples, *(const double *)arg);
	return 0;
}

static const struct bench_work commit_work = {commit_setup, commit_run, commit_teardown};
static const struct bench_work constant_work = {NULL, constant_run, NULL};

static struct commit_case slow_case(const struct bench_options *options, enum commit_figure figure,
	unsigned threads, uint64_t flush_ns, bool durable)
{
	struct commit_case c = {.figure = figure,
		.writers = {
			.options = options,
			.device = {.flush = true,
				.flush_ns = flush_ns,
				.write_durable = durable,
				.durable_ns = DURABLE_NS},
			.persistent = true,
			.threads = threads,
			.write_bytes = WRITERS_CHUNK_BYTES,
			.writes = options->quick ? 5 : 200,
		}};

	/* One writer alone waits for all of its flushes. */
	if (!options->quick && threads == 1)
		c.writers.writes = 20;
	if (options->ops)
		c.writers.writes = options->ops;
	return c;
}

struct row {
	unsigned threads;
	uint64_t flush_ms;
	bool durable;
	struct bench_target target;
};

#define ROWS_MAX 8

/* Each row with the bound of its device, and the ratio of the two. */
static int slow_group(struct bench_report *report, const struct bench_options *options,
	enum commit_figure figure, const struct row *rows, size_t count)
{
	bool per_flush = figure == RECORDS_PER_FLUSH;
	struct bench_group *group = bench_group_add(report, "commit",
		per_flush ? "records" : "writes in the time of one flush", "%s",
		per_flush ? "records per flush" : "writes against a flush for each");
	struct commit_case cases[ROWS_MAX];
	double bounds[ROWS_MAX];

	for (size_t i = 0; i < count; i++) {
		const struct row *row = &rows[i];
		const char *kind = row->durable ? "durable-writes" : "flush-only";
		struct bench_variant *ours;
		struct bench_variant *bound;

		cases[i] =
			slow_case(options, figure, row->threads, row->flush_ms * MS, row->durable);
		bounds[i] = row->durable ? row->threads : row->threads / 2.0;
		ours = bench_variant_add(group, &commit_work, &cases[i], "%uw-%ums-%s",
			row->threads, (unsigned)row->flush_ms, kind);
		ours->target = row->target;
		bound = bench_variant_add(group, &constant_work, &bounds[i], "bound-%uw-%ums-%s",
			row->threads, (unsigned)row->flush_ms, kind);
		bench_ratio_add(group, NULL, ours, bound, bench_no_target());
	}
	return bench_group_run(group, options);
}

static int per_flush_group(struct bench_report *report, const struct bench_options *options)
{
	const struct row rows[] = {
		{32, 5, true, bench_at_least(16)},
		{32, 1, true, bench_at_least(16)},
		{32, 5, false, bench_no_target()},
		{32, 1, false, bench_no_target()},
		{64, 5, true, bench_no_target()},
		{64, 5, false, bench_no_target()},
	};

	return slow_group(report, options, RECORDS_PER_FLUSH, rows, sizeof(rows) / sizeof(rows[0]));
}

static int in_flight_group(struct bench_report *report, const struct bench_options *options)
{
	const struct row rows[] = {
		{64, 5, true, bench_at_least(50)},
		{64, 5, false, bench_no_target()},
		{1, 5, true, bench_no_target()},
		{1, 5, false, bench_no_target()},
	};

	return slow_group(
		report, options, WRITES_PER_FLUSH_TIME, rows, sizeof(rows) / sizeof(rows[0]));
}

/* ---- Metadata ------------------------------------------------------------------------------- */

static struct commit_case metadata_case(
	const struct bench_options *options, enum commit_figure figure, unsigned threads)
{
	/* One writer makes no groups, whatever the flush takes. */
	struct commit_case c = slow_case(options, figure, threads, threads == 1 ? 0 : MS, false);

	c.writers.device.counted_chunk = WRITERS_CHUNK_BYTES;
	if (!options->ops)
		c.writers.writes = (options->quick ? 960 : 9600) / threads;
	return c;
}

/* The device is used up to where the format says, and not one chunk further. */
static int space_group(struct bench_report *report, const struct bench_options *options)
{
	struct bench_group *group = bench_group_add(
		report, "commit", "chunks for one of data", "space on the store's device");
	struct commit_case ours = metadata_case(options, CHUNKS_PER_CHUNK, 32);
	struct commit_case format = metadata_case(options, FORMAT_CHUNKS_PER_CHUNK, 32);
	struct bench_variant *used =
		bench_variant_add(group, &commit_work, &ours, "written-chunks");
	struct bench_variant *wanted =
		bench_variant_add(group, &commit_work, &format, "the-format-s-formula");

	bench_ratio_add(group, NULL, used, wanted, bench_at_most(1));
	return bench_group_run(group, options);
}

static int metadata_group(struct bench_report *report, const struct bench_options *options)
{
	struct bench_group *group = bench_group_add(
		report, "commit", "bytes for one record", "metadata written to the device");
	struct commit_case cases[] = {
		metadata_case(options, METADATA_PER_RECORD, 1),
		metadata_case(options, METADATA_PER_RECORD, 32),
	};

	bench_variant_add(group, &commit_work, &cases[0], "1-writer");
	bench_variant_add(group, &commit_work, &cases[1], "32-writers-1ms");
	return bench_group_run(group, options);
}

int bench_commit(struct bench_report *report, const struct bench_options *options)
{
	struct bench_options by_clock = *options;
	int err;

	/* A writer that waits for a flush uses no CPU; this scenario is about the waiting. */
	by_clock.cpu_time = false;
	err = per_flush_group(report, &by_clock);
	if (!err)
		err = in_flight_group(report, &by_clock);
	if (!err)
		err = space_group(report, &by_clock);
	if (!err)
		err = metadata_group(report, &by_clock);
	return err;
}
