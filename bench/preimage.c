/* SPDX-License-Identifier: MIT
 *
 * Scenario preimage: the bracket of a first touch, with the preimage handed over by the host,
 * beside the same with a read of the origin; on memory, and on the simulated array.
 *
 * And first touches of a volume of zeroes: those that are found need no space and no write. Of one
 * without: what it costs to look.
 *
 * A host that has just read what it is about to change hands over what is in the cache of its CPU;
 * one that keeps the volume in memory hands over memory. To read that takes as long as to read a
 * memory device, so there are both.
 */
#include "bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim_device.h"

#define CHUNK_BYTES UINT64_C(4096)

struct preimage_bed {
	const struct bench_options *options;
	uint64_t chunks;
	bool simulated;
	bool zeroes;    /* are in the origin */
	uint32_t flags; /* of the store */
	struct sim_array array;
	struct sim_volume volumes[2]; /* origin, store */
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *devices[2];
	struct cowsnap_origin *origin;
	struct cowsnap_store *store;
	uint64_t *order;
	unsigned char *cache; /* of the host: all of the origin */
	unsigned users;
};

struct preimage_case {
	struct preimage_bed *bed;
	bool given;
	bool warm; /* what is given is in the CPU's cache */
	bool bare; /* no bracket: what is given is written to the store's device, in its order */
};

static int open_device(struct preimage_bed *bed, unsigned i)
{
	uint64_t bytes = bed->chunks * CHUNK_BYTES;
	int err;

	if (!bed->simulated) {
		err = bench_check(cowsnap_device_memory(bed->ctx, bytes, &bed->devices[i]),
			"cowsnap_device_memory");
	} else {
		err = sim_volume_open(&bed->volumes[i], &bed->array, bytes);
		if (!err)
			err = sim_volume_device(&bed->volumes[i], bed->ctx, &bed->devices[i]);
	}
	if (!err)
		err = bench_device_fill(bed->devices[i], bytes);
	if (!err && bed->zeroes)
		err = bench_check(
			cowsnap_device_zero(bed->devices[i], 0, bytes), "cowsnap_device_zero");
	return err;
}

static int open_array(struct preimage_bed *bed)
{
	const struct sim_options options = {.seed = 1};
	int err = sim_array_open(&bed->array, &options);

	if (!err)
		atomic_store(&bed->array.instant, true);
	return err;
}

static int preimage_setup(void *arg)
{
	struct preimage_bed *bed = ((struct preimage_case *)arg)->bed;
	struct cowsnap_transient_options options = {
		.size = sizeof(options), .flags = bed->flags, .chunk_size_bytes = CHUNK_BYTES};
	int err;

	if (bed->users++)
		return 0;
	bed->order = bench_alloc(bed->chunks, sizeof(*bed->order));
	bench_shuffle(bed->order, bed->chunks);
	bed->cache = bench_alloc(bed->chunks, CHUNK_BYTES);
	memset(bed->cache, 1, bed->chunks * CHUNK_BYTES);
	err = bench_context(bed->options, &bed->ctx);
	if (!err && bed->simulated)
		err = open_array(bed);
	for (unsigned i = 0; i < 2 && !err; i++)
		err = open_device(bed, i);
	options.device = bed->devices[1];
	if (!err)
		err = bench_check(cowsnap_origin_open(bed->ctx, bed->devices[0], &bed->origin),
			"cowsnap_origin_open");
	if (!err)
		err = bench_check(cowsnap_store_transient(bed->ctx, &options, &bed->store),
			"cowsnap_store_transient");
	atomic_store(&bed->array.instant, false);
	return err;
}

static int preimage_teardown(void *arg)
{
	struct preimage_bed *bed = ((struct preimage_case *)arg)->bed;
	int err;

	if (--bed->users)
		return 0;
	err = bench_check(cowsnap_origin_close(bed->origin), "cowsnap_origin_close");
	if (!err)
		err = bench_check(cowsnap_store_close(bed->store), "cowsnap_store_close");
	for (unsigned i = 0; i < 2 && !err; i++) {
		err = bench_check(cowsnap_device_close(bed->devices[i]), "cowsnap_device_close");
		if (!err && bed->simulated)
			sim_volume_close(&bed->volumes[i]);
	}
	if (!err)
		err = bench_check(cowsnap_ctx_destroy(bed->ctx), "cowsnap_ctx_destroy");
	if (!err && bed->simulated)
		sim_array_close(&bed->array);
	free(bed->order);
	free(bed->cache);
	return err;
}

static enum cowsnap_preimage_kind give(void *user, struct cowsnap_preimage_ask *ask)
{
	const struct preimage_case *c = user;

	ask->data = c->bed->cache + (c->warm ? 0 : ask->offset);
	return COWSNAP_PREIMAGE_GIVEN;
}

static int bare_thread(void *arg, unsigned index)
{
	const struct preimage_bed *bed = ((struct preimage_case *)arg)->bed;
	int err = 0;

	(void)index;
	for (uint64_t i = 0; i < bed->chunks && !err; i++)
		err = cowsnap_device_write(bed->devices[1],
			bed->cache + bed->order[i] * CHUNK_BYTES, i * CHUNK_BYTES, CHUNK_BYTES);
	return bench_check(err, "cowsnap_device_write");
}

static int touch_thread(void *arg, unsigned index)
{
	struct preimage_case *c = arg;
	const struct cowsnap_preimage preimage = {.get = give, .user = c};
	struct cowsnap_op op;
	int err = 0;

	(void)index;
	for (uint64_t i = 0; i < c->bed->chunks && !err; i++) {
		err = cowsnap_write_begin_with(c->bed->origin, COWSNAP_WRITE,
			c->bed->order[i] * CHUNK_BYTES, CHUNK_BYTES, c->given ? &preimage : NULL,
			&op);
		if (!err)
			cowsnap_write_end(&op);
	}
	return bench_check(err, "cowsnap_write_begin_with");
}

static int read_bytes(const struct preimage_bed *bed, uint64_t *bytes)
{
	struct cowsnap_stats stats;
	int err = cowsnap_origin_stats(bed->origin, &stats, sizeof(stats));

	*bytes = stats.origin_bytes;
	return bench_check(err, "cowsnap_origin_stats");
}

/* All was read, or nothing: else the figure is that of something else. */
static int check_reads(const struct preimage_case *c, uint64_t before)
{
	uint64_t want = c->given || c->bare ? 0 : c->bed->chunks * CHUNK_BYTES, bytes;
	int err = read_bytes(c->bed, &bytes);

	if (err || bytes - before == want)
		return err;
	fprintf(stderr, "cowsnap-bench: %llu bytes of the origin were read, not %llu\n",
		(unsigned long long)(bytes - before), (unsigned long long)want);
	return -EPROTO;
}

static int preimage_run(void *arg, struct bench_samples *samples)
{
	struct preimage_case *c = arg;
	struct preimage_bed *bed = c->bed;
	struct cowsnap_take_entry entry = {.origin = bed->origin, .store = bed->store};
	uint64_t before, ns;
	int err = read_bytes(bed, &before);

	if (!err)
		err = bench_check(cowsnap_take(bed->ctx, NULL, &entry, 1), "cowsnap_take");
	if (err)
		return err;
	err = bench_threads(bed->options, 1, c->bare ? bare_thread : touch_thread, c, &ns);
	if (!err)
		err = check_reads(c, before);
	if (!err)
		bench_sample(samples, (double)ns / (double)bed->chunks);
	if (!err)
		err = bench_drop(entry.snapshot);
	return err ? err : bench_reclaim(bed->ctx);
}

static const struct bench_work work = {preimage_setup, preimage_run, preimage_teardown};

static int preimage_group(struct bench_report *report, struct preimage_bed *bed, double target)
{
	const char *where = bed->simulated ? "simulated array" : "memory";
	struct bench_group *group = bench_group_add(
		report, "preimage", "ns per bracket", "4k-random, %s, 1 thread", where);
	static const char *const names[] = {"read", "given-cold", "given-warm", "bare-write"};
	struct preimage_case cases[] = {{.bed = bed}, {.bed = bed, .given = true},
		{.bed = bed, .given = true, .warm = true}, {.bed = bed, .bare = true}};
	struct bench_variant *v[4];

	for (unsigned i = 0; i < 4; i++)
		v[i] = bench_variant_add(group, &work, &cases[i], "%s-%s", names[i],
			bed->simulated ? "sim" : "memory");
	for (unsigned i = 1; i < 3; i++)
		bench_ratio_add(group, NULL, v[0], v[i], bench_at_least(target));
	/* More than this no hand-over can reach, if what is given is not in the CPU's cache. */
	bench_ratio_add(group, NULL, v[0], v[3], bench_no_target());
	return bench_group_run(group, bed->options);
}

/* What a store that looks for zeroes saves, and what it costs where there are none. */
static int zero_group(struct bench_report *report, const struct bench_options *options)
{
	static const char *const names[] = {
		"zeroes-written", "zeroes-skipped", "data-not-looked-at", "data-looked-at"};
	struct bench_group *group = bench_group_add(report, "preimage", "ns per bracket",
		"4k-random, memory, a store that skips zeroes");
	struct preimage_bed beds[4];
	struct preimage_case cases[4];
	struct bench_variant *v[4];

	for (unsigned i = 0; i < 4; i++) {
		beds[i] = (struct preimage_bed){.options = options,
			.chunks = options->quick ? 1024 : 16384,
			.zeroes = i < 2,
			.flags = i % 2 ? COWSNAP_TRANSIENT_SKIP_ZEROES : 0};
		cases[i] = (struct preimage_case){.bed = &beds[i]};
		v[i] = bench_variant_add(group, &work, &cases[i], "%s", names[i]);
	}
	bench_ratio_add(group, NULL, v[0], v[1], bench_no_target());
	bench_ratio_add(group, NULL, v[3], v[2], bench_no_target());
	return bench_group_run(group, options);
}

int bench_preimage(struct bench_report *report, const struct bench_options *options)
{
	struct preimage_bed memory = {.options = options, .chunks = options->quick ? 1024 : 65536};
	struct preimage_bed sim = {
		.options = options, .chunks = options->quick ? 64 : 512, .simulated = true};
	int err = preimage_group(report, &memory, 1.3);

	if (!err)
		err = preimage_group(report, &sim, 1.8);
	return err ? err : zero_group(report, options);
}
