/* SPDX-License-Identifier: MIT
 *
 * cowsnap-bench-load [RECORDS [BATCH [ROUNDS]]]: the bulk load of an exception map beside claim and
 * publish, in processor time per record. A program of its own, because the load is not exported.
 *
 *     in order   chunks as they lie
 *     dense      every chunk of a volume, in a pseudo-random order
 *     4x, 16x    pseudo-random chunks of a volume of that many times as many
 *     isolated   pseudo-random chunks of a petabyte in chunks of 4 KiB
 */
#include "bench.h"

#include "map.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sysexits.h>

#define PETABYTE_CHUNKS (UINT64_C(1) << 38)

struct pattern {
	const char *name;
	unsigned times;  /* 0: a petabyte */
	uint64_t volume; /* in chunks */
	unsigned bits;   /* that its numbers have */
	uint64_t records;
	uint64_t batch;
	const struct bench_options *options;
	uint64_t bytes; /* of the map made last */
};

static struct pattern patterns[] = {
	{.name = "in order", .times = 1},
	{.name = "dense", .times = 1},
	{.name = "4x", .times = 4},
	{.name = "16x", .times = 16},
	{.name = "isolated"},
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

/* The next chunk of the pattern. */
static uint64_t next_chunk(const struct pattern *pattern, uint64_t *counter)
{
	uint64_t chunk;

	if (pattern == &patterns[0])
		return (*counter)++;
	do
		chunk = scatter((*counter)++, pattern->bits);
	while (chunk >= pattern->volume);
	return chunk;
}

static int put_load(struct cowsnap_map *map, struct cs_map_entry *entries, uint64_t count)
{
	uint64_t duplicate;

	return bench_check(cs_map_load(map, entries, count, &duplicate), "cs_map_load");
}

static int put_claims(struct cowsnap_map *map, struct cs_map_entry *entries, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++) {
		struct cowsnap_run run;

		if (cowsnap_map_claim(map, entries[i].chunk, 1, &run) != COWSNAP_CLAIM_MINE)
			return bench_check(-EPROTO, "cowsnap_map_claim");
		run.location = entries[i].location;
		cowsnap_map_publish(map, &run);
	}
	return 0;
}

/* A new map each time. Making the entries is not measured. */
static int run_put(struct pattern *pattern, struct bench_samples *samples,
	int (*put)(struct cowsnap_map *map, struct cs_map_entry *entries, uint64_t count))
{
	struct cs_map_entry *entries = bench_alloc(pattern->batch, sizeof(*entries));
	struct cowsnap_map *map = NULL;
	uint64_t counter = 0;
	uint64_t ns = 0;
	int err = bench_check(cowsnap_map_create(NULL, &map), "cowsnap_map_create");

	for (uint64_t at = 0; at < pattern->records && !err;) {
		uint64_t begin;
		uint64_t count = 0;

		for (; count < pattern->batch && at < pattern->records; count++)
			entries[count] = (struct cs_map_entry){
				.chunk = next_chunk(pattern, &counter), .location = at++};
		begin = bench_timer(pattern->options);
		err = put(map, entries, count);
		ns += bench_timer(pattern->options) - begin;
	}
	bench_sample(samples, (double)ns / (double)pattern->records);
	if (!err)
		pattern->bytes = cowsnap_map_memory(map);
	cowsnap_map_destroy(map);
	free(entries);
	return err;
}

static int run_load(void *arg, struct bench_samples *samples)
{
	return run_put(arg, samples, put_load);
}

static int run_claims(void *arg, struct bench_samples *samples)
{
	return run_put(arg, samples, put_claims);
}

static int run_bytes(void *arg, struct bench_samples *samples)
{
	const struct pattern *pattern = arg;

	bench_sample(samples, (double)pattern->bytes / (double)pattern->records);
	return 0;
}

static int run_pattern(struct bench_report *report, struct pattern *pattern)
{
	static const struct bench_work claims_work = {.run = run_claims};
	static const struct bench_work load_work = {.run = run_load};
	static const struct bench_work bytes_work = {.run = run_bytes};
	struct bench_group *time =
		bench_group_add(report, "load", "ns/record", "%s", pattern->name);
	struct bench_group *memory =
		bench_group_add(report, "load", "B/record", "%s, memory", pattern->name);
	const struct bench_variant *claims =
		bench_variant_add(time, &claims_work, pattern, "claim and publish");
	struct bench_variant *load = bench_variant_add(time, &load_work, pattern, "load");
	int err;

	bench_ratio_add(time, NULL, claims, load, bench_no_target());
	/* The loader has some 40 ns of its own, of 200 in all. */
	if (pattern->times == 1 || pattern->times == 4)
		load->target = bench_at_most(160);
	err = bench_group_run(time, pattern->options);
	bench_variant_add(memory, &bytes_work, pattern, "load");
	return err ? err : bench_group_run(memory, pattern->options);
}

static uint64_t number(int argc, char **argv, int at, uint64_t otherwise, uint64_t most)
{
	char *end = NULL;
	uint64_t value = otherwise;

	if (at < argc)
		value = strtoull(argv[at], &end, 10);
	if ((end && *end) || !value || value > most) {
		fprintf(stderr, "usage: %s [RECORDS [BATCH [ROUNDS]]]\n", argv[0]);
		exit(EX_USAGE);
	}
	return value;
}

int main(int argc, char **argv)
{
	uint64_t records = number(argc, argv, 1, 10000000, UINT64_C(1) << 30);
	uint64_t batch = number(argc, argv, 2, 4096, UINT64_C(1) << 24);
	const struct bench_options options = {
		.repeat = (unsigned)number(argc, argv, 3, 7, 1000),
		.allocator_name = "libc",
		.cpu_time = true,
	};
	struct bench_report report;
	char command[BENCH_NAME_MAX];
	int err = 0;

	snprintf(command, sizeof(command), "cowsnap-bench-load %llu %llu %u",
		(unsigned long long)records, (unsigned long long)batch, options.repeat);
	bench_report_init(&report);
	for (size_t i = 0; i < sizeof(patterns) / sizeof(patterns[0]) && !err; i++) {
		struct pattern *pattern = &patterns[i];

		pattern->volume = pattern->times ? pattern->times * records : PETABYTE_CHUNKS;
		while (UINT64_C(1) << pattern->bits < pattern->volume)
			pattern->bits++;
		pattern->records = records;
		pattern->batch = batch;
		pattern->options = &options;
		err = run_pattern(&report, pattern);
	}
	if (!err)
		bench_report_table(&report, command, &options);
	bench_report_free(&report);
	return err ? EXIT_FAILURE : EXIT_SUCCESS;
}
