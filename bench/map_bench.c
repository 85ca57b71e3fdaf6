/* SPDX-License-Identifier: MIT
 *
 * Scenario map: look up, claim and publish, memory; beside the tables of map_baselines.h.
 *
 *     dense      every chunk of a volume, in a pseudo-random order ("in order": as they lie)
 *     volume     pseudo-random chunks of a volume of 16 times as many
 *     isolated   pseudo-random chunks of a petabyte in chunks of 4 KiB
 */
#include "map_baselines.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define TABLES        4
#define LOOKS_MAX     (UINT64_C(4) << 20)
#define PETABYTE_LOG2 38

static const struct map_table_ops *const tables[TABLES] = {
	&map_table_cowsnap,
	&map_table_pages,
	&map_table_lfht,
	&map_table_striped,
};

enum { COWSNAP, PAGES, LFHT, STRIPED };

struct pattern {
	const char *name;
	unsigned volume_log2; /* in chunks; 0: as many as there are exceptions */
	unsigned times_log2;  /* that many times as many */
	bool in_order;
	bool pages; /* a page table is possible */
};

static const struct pattern patterns[] = {
	{.name = "dense", .pages = true},
	{.name = "dense in order", .in_order = true, .pages = true},
	{.name = "volume", .times_log2 = 4, .pages = true},
	{.name = "isolated", .volume_log2 = PETABYTE_LOG2},
};

/* One size and pattern. The heap is the same for all tables: the map's own arena would be new, and
 * its pages faulted in, each round. */
struct map_bed {
	struct cowsnap_allocator heap;
	const struct bench_options *options;
	const struct pattern *pattern;
	struct map_shape shape;
	unsigned volume_log2;
	uint64_t *chunks; /* those that are there, and as many that are not */
	void *filled[TABLES];
	uint64_t bytes[TABLES];
};

/* One variant. */
struct map_work {
	struct map_bed *bed;
	unsigned table;
	unsigned threads;
	bool chained;
	bool miss;
	/* Of the round. */
	void *target;
	uint64_t count;
	uint64_t wrong;
};

/* A bijection on numbers of that many bits. */
static uint64_t scatter(uint64_t value, unsigned bits)
{
	uint64_t mask = (UINT64_C(1) << bits) - 1;

	for (unsigned i = 0; i < 3; i++) {
		value = value * UINT64_C(0x9e3779b97f4a7c15) & mask;
		value ^= value >> bits / 2;
	}
	return value;
}

/* Chunks after those of the pattern are in the same volume, where it has room for them. */
static void make_chunks(struct map_bed *bed)
{
	uint64_t n = bed->shape.exceptions;

	bed->chunks = bench_alloc(2 * n, sizeof(*bed->chunks));
	for (uint64_t i = 0; i < 2 * n; i++) {
		if (bed->pattern->in_order)
			bed->chunks[i] = i;
		else if (n == bed->shape.volume_chunks)
			bed->chunks[i] = scatter(i % n, bed->volume_log2) + i / n * n;
		else
			bed->chunks[i] = scatter(i, bed->volume_log2);
	}
}

static int fill_thread(void *arg, unsigned index)
{
	struct map_work *work = arg;
	uint64_t share = work->count / work->threads;
	uint64_t claimed =
		tables[work->table]->fill(work->target, work->bed->chunks + index * share, share);

	return claimed == share ? 0 : bench_check(-EPROTO, "claims");
}

static int look_thread(void *arg, unsigned index)
{
	struct map_work *work = arg;
	uint64_t share = work->count / work->threads;
	const uint64_t *chunks =
		work->bed->chunks + index * share + (work->miss ? work->bed->shape.exceptions : 0);
	uint64_t found = tables[work->table]->look(work->target, chunks, share, work->chained);

	return found == (work->miss ? 0 : share) ? 0 : bench_check(-EPROTO, "look-ups");
}

static int timed(struct map_work *work, int (*body)(void *arg, unsigned index),
	struct bench_samples *samples)
{
	uint64_t ns = 0;
	int err = bench_threads(work->bed->options, work->threads, body, work, &ns);

	bench_sample(samples, (double)ns / (double)work->count);
	return err;
}

/* Each round fills a new table. */
static int run_fill(void *arg, struct bench_samples *samples)
{
	struct map_work *work = arg;
	const struct map_table_ops *ops = tables[work->table];
	int err;

	work->count = work->bed->shape.exceptions;
	work->target = ops->create(&work->bed->shape);
	err = timed(work, fill_thread, samples);
	work->bed->bytes[work->table] = ops->bytes(work->target);
	ops->destroy(work->target);
	return err;
}

static int setup_look(void *arg)
{
	struct map_work *work = arg;
	struct map_bed *bed = work->bed;
	const struct map_table_ops *ops = tables[work->table];
	uint64_t n = bed->shape.exceptions;

	if (bed->filled[work->table])
		return 0;
	bed->filled[work->table] = ops->create(&bed->shape);
	if (ops->fill(bed->filled[work->table], bed->chunks, n) != n)
		return bench_check(-EPROTO, "claims");
	bed->bytes[work->table] = ops->bytes(bed->filled[work->table]);
	return 0;
}

static int teardown_look(void *arg)
{
	struct map_work *work = arg;
	void **filled = &work->bed->filled[work->table];

	if (*filled)
		tables[work->table]->destroy(*filled);
	*filled = NULL;
	return 0;
}

static int run_look(void *arg, struct bench_samples *samples)
{
	struct map_work *work = arg;
	uint64_t n = work->bed->shape.exceptions;

	work->target = work->bed->filled[work->table];
	work->count = n < LOOKS_MAX ? n : LOOKS_MAX;
	return timed(work, look_thread, samples);
}

/* What the fill or the look-ups before have noted; otherwise it is filled now. */
static int run_bytes(void *arg, struct bench_samples *samples)
{
	struct map_work *work = arg;
	uint64_t *bytes = &work->bed->bytes[work->table];
	int err = 0;

	if (!*bytes) {
		err = setup_look(work);
		teardown_look(work);
	}
	bench_sample(samples, (double)*bytes / (double)work->bed->shape.exceptions);
	return err;
}

static const struct bench_work fill_work = {.run = run_fill};
static const struct bench_work bytes_work = {.run = run_bytes};
static const struct bench_work look_work = {
	.setup = setup_look,
	.run = run_look,
	.teardown = teardown_look,
};

/* ---- Groups --------------------------------------------------------------------------------- */

struct kind {
	const char *name; /* after that of the table */
	unsigned threads;
	bool chained;
	bool miss;
	bool targets;
};

static struct bench_variant *add(struct bench_group *group, const struct bench_work *work,
	struct map_bed *bed, unsigned table, const struct kind *kind)
{
	struct map_work *arg = bench_alloc(1, sizeof(*arg));

	*arg = (struct map_work){
		.bed = bed,
		.table = table,
		.threads = kind->threads,
		.chained = kind->chained,
		.miss = kind->miss,
	};
	return bench_variant_add(group, work, arg, "%s%s", tables[table]->name, kind->name);
}

/* One variant for each table, and the ratios that have targets. */
static void add_kind(struct bench_group *group, const struct bench_work *work, struct map_bed *bed,
	const struct kind *kind)
{
	struct bench_variant *variants[TABLES] = {NULL};

	for (unsigned i = 0; i < TABLES; i++) {
		if (i != PAGES || bed->pattern->pages)
			variants[i] = add(group, work, bed, i, kind);
	}
	if (variants[PAGES])
		bench_ratio_add(group, NULL, variants[COWSNAP], variants[PAGES],
			kind->targets ? bench_at_most(2) : bench_no_target());
	bench_ratio_add(group, NULL, variants[LFHT], variants[COWSNAP],
		kind->targets ? bench_at_least(4) : bench_no_target());
	bench_ratio_add(group, NULL, variants[STRIPED], variants[COWSNAP],
		kind->targets ? bench_at_least(1.5) : bench_no_target());
}

static void free_args(const struct bench_group *group)
{
	for (size_t i = 0; i < group->variant_count; i++)
		free(group->variants[i].arg);
}

static int run_group(struct bench_group *group, const struct bench_options *options)
{
	int err = bench_group_run(group, options);

	free_args(group);
	return err;
}

static int looks(struct bench_report *report, struct map_bed *bed, const char *size)
{
	const bool targets = !bed->pattern->times_log2 && !bed->pattern->volume_log2;
	const struct kind kinds[] = {
		{.name = " hit", .threads = 1, .targets = targets},
		{.name = " hit, one by one", .threads = 1, .chained = true, .targets = targets},
		{.name = " miss", .threads = 1, .miss = true},
		{.name = " hit, threads", .threads = bed->options->threads},
	};
	struct bench_group *group =
		bench_group_add(report, "map", "ns/op", "%s %s, look up", size, bed->pattern->name);

	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		add_kind(group, &look_work, bed, &kinds[i]);
	return run_group(group, bed->options);
}

static int fills(struct bench_report *report, struct map_bed *bed, const char *size)
{
	const bool targets = !bed->pattern->times_log2 && !bed->pattern->volume_log2;
	const struct kind one = {.name = "", .threads = 1, .targets = targets};
	const struct kind more = {.name = ", threads", .threads = bed->options->threads};
	struct bench_group *group = bench_group_add(
		report, "map", "ns/op", "%s %s, claim and publish", size, bed->pattern->name);

	add_kind(group, &fill_work, bed, &one);
	add_kind(group, &fill_work, bed, &more);
	return run_group(group, bed->options);
}

static int bytes(struct bench_report *report, struct map_bed *bed, const char *size)
{
	const struct kind kind = {.name = "", .threads = 1};
	struct bench_group *group = bench_group_add(
		report, "map", "B/exception", "%s %s, memory", size, bed->pattern->name);

	for (unsigned i = 0; i < TABLES; i++) {
		struct bench_variant *variant;

		if (i == PAGES && !bed->pattern->pages)
			continue;
		variant = add(group, &bytes_work, bed, i, &kind);
		if (i == COWSNAP && bed->pattern->volume_log2)
			variant->target = bench_at_most(100);
		else if (i == COWSNAP && !bed->pattern->times_log2)
			variant->target = bench_at_most(10);
	}
	return run_group(group, bed->options);
}

static int bed_run(struct bench_report *report, const struct bench_options *options,
	const struct pattern *pattern, unsigned log2, const char *size)
{
	unsigned volume_log2 =
		pattern->volume_log2 ? pattern->volume_log2 : log2 + pattern->times_log2;
	struct map_bed bed = {
		.options = options,
		.pattern = pattern,
		.volume_log2 = volume_log2,
		.shape =
			{
				.exceptions = UINT64_C(1) << log2,
				.volume_chunks = UINT64_C(1) << volume_log2,
			},
	};
	int err;

	if (options->allocator) {
		bed.heap = *options->allocator;
		bed.heap.arena_create = NULL;
		bed.heap.arena_alloc = NULL;
		bed.heap.arena_free = NULL;
		bed.heap.arena_destroy = NULL;
		bed.shape.allocator = &bed.heap;
	}
	make_chunks(&bed);
	err = looks(report, &bed, size);
	if (!err)
		err = fills(report, &bed, size);
	if (!err)
		err = bytes(report, &bed, size);
	free(bed.chunks);
	return err;
}

/* The exceptions that were asked for, rounded down to a power of two. */
static int one_size(struct bench_report *report, const struct bench_options *options)
{
	unsigned log2 = 6;
	char name[32];
	int err = 0;

	while (log2 < 30 && options->ops >> (log2 + 1))
		log2++;
	snprintf(name, sizeof(name), "2^%u", log2);
	for (size_t p = 0; p < sizeof(patterns) / sizeof(patterns[0]) && !err; p++)
		err = bed_run(report, options, &patterns[p], log2, name);
	return err;
}

int bench_map(struct bench_report *report, const struct bench_options *options)
{
	static const struct {
		unsigned log2;
		const char *name;
	} sizes[] = {{16, "64K"}, {20, "1M"}, {24, "16M"}};
	size_t first = options->quick ? 0 : 1;
	size_t end = options->quick ? 1 : sizeof(sizes) / sizeof(sizes[0]);
	int err = 0;

	if (options->ops)
		return one_size(report, options);
	for (size_t s = first; s < end; s++) {
		for (size_t p = 0; p < sizeof(patterns) / sizeof(patterns[0]) && !err; p++)
			err = bed_run(report, options, &patterns[p], sizes[s].log2, sizes[s].name);
	}
	return err;
}
