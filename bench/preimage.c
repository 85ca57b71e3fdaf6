/* SPDX-License-Identifier: MIT
 *
 * Scenario preimage: the bracket of a first touch, with the preimage handed over by the host,
 * beside the same with a read of the origin; on memory, on files, and on the simulated array.
 *
 * A host that has just read what it is about to change hands over what is in the cache of its CPU;
 * one that keeps the volume in memory hands over memory. To read that takes as long as to read a
 * memory device, so there are both. What nobody can beat: the same bracket on an origin whose read
 * returns at once. What memory alone allows: a copy through a buffer beside one without.
 *
 * And first touches of a volume of zeroes: those that are found need no space and no write. Of one
 * without: what it costs to look.
 */
#include "bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sim_device.h"

#define CHUNK_BYTES UINT64_C(4096)
#define HUGE_BYTES  (UINT64_C(2) << 20)

enum place { MEMORY, PAGE_CACHE, DIRECT, ARRAY };
enum { ORIGIN, STORE, FREE, DEVICES };
enum way { READ, GIVEN_COLD, GIVEN_WARM, FREE_READ, BARE_READ_WRITE, BARE_WRITE, WAYS };

struct preimage_bed {
	const struct bench_options *options;
	uint64_t chunks;
	enum place place;
	bool zeroes;    /* are in the origin */
	uint32_t flags; /* of the store */
	struct sim_array array;
	struct sim_volume volumes[2]; /* origin, store */
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *devices[DEVICES];
	struct cowsnap_origin *origin, *free_origin;
	struct cowsnap_store *store;
	uint64_t *order;
	unsigned char *cache; /* of the host: all of the origin */
	unsigned users;
};

struct preimage_case {
	struct preimage_bed *bed;
	enum way way;
};

/* ---- What it runs on ------------------------------------------------------------------------- */

static int open_file(struct preimage_bed *bed, unsigned i)
{
	struct cowsnap_file_options options = {.size = sizeof(options)};
	const char *folder = ".";
	char path[256];
	int err;

	if (bed->place == DIRECT)
		options.flags = COWSNAP_FILE_DIRECT;
	else
		folder = getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
	err = bench_file_make(folder, "preimage", bed->chunks * CHUNK_BYTES, path, sizeof(path));
	if (err)
		return err;
	err = bench_check(cowsnap_device_file(bed->ctx, path, &options, &bed->devices[i]),
		"cowsnap_device_file");
	unlink(path);
	return err;
}

static int open_device(struct preimage_bed *bed, unsigned i)
{
	uint64_t bytes = bed->chunks * CHUNK_BYTES;
	int err = 0;

	if (bed->place == MEMORY) {
		err = bench_check(cowsnap_device_memory(bed->ctx, bytes, &bed->devices[i]),
			"cowsnap_device_memory");
	} else if (bed->place == ARRAY) {
		err = sim_volume_open(&bed->volumes[i], &bed->array, bytes);
		if (!err)
			err = sim_volume_device(&bed->volumes[i], bed->ctx, &bed->devices[i]);
	} else {
		err = open_file(bed, i);
	}
	if (!err)
		err = bench_device_fill(bed->devices[i], bytes);
	if (!err && bed->zeroes)
		err = bench_check(
			cowsnap_device_zero(bed->devices[i], 0, bytes), "cowsnap_device_zero");
	return err;
}

static int read_nothing(void *user, void *buffer, uint64_t offset, uint64_t length)
{
	(void)user;
	(void)buffer;
	(void)offset;
	(void)length;
	return 0;
}

static int open_free(struct preimage_bed *bed)
{
	static const struct cowsnap_device_ops ops = {.size = sizeof(ops), .read = read_nothing};
	struct cowsnap_device_options options = {
		.size = sizeof(options), .size_bytes = bed->chunks * CHUNK_BYTES};
	int err = bench_check(
		cowsnap_device_create(bed->ctx, &ops, &options, NULL, &bed->devices[FREE]),
		"cowsnap_device_create");

	if (err)
		return err;
	return bench_check(cowsnap_origin_open(bed->ctx, bed->devices[FREE], &bed->free_origin),
		"cowsnap_origin_open");
}

static int open_array(struct preimage_bed *bed)
{
	const struct sim_options options = {.seed = 1};
	int err = sim_array_open(&bed->array, &options);

	if (!err)
		atomic_store(&bed->array.instant, true);
	return err;
}

/* In huge pages, as memory devices are. */
static void fill_cache(struct preimage_bed *bed)
{
	uint64_t bytes = bed->chunks * CHUNK_BYTES;

	if (posix_memalign((void **)&bed->cache, HUGE_BYTES, bytes)) {
		fprintf(stderr, "cowsnap-bench: no memory\n");
		exit(EXIT_FAILURE);
	}
	(void)madvise(bed->cache, bytes, MADV_HUGEPAGE);
	memset(bed->cache, 1, bytes);
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
	fill_cache(bed);
	err = bench_context(bed->options, &bed->ctx);
	if (!err && bed->place == ARRAY)
		err = open_array(bed);
	for (unsigned i = ORIGIN; i <= STORE && !err; i++)
		err = open_device(bed, i);
	options.device = bed->devices[STORE];
	if (!err)
		err = bench_check(cowsnap_origin_open(bed->ctx, bed->devices[ORIGIN], &bed->origin),
			"cowsnap_origin_open");
	if (!err)
		err = open_free(bed);
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
		err = bench_check(cowsnap_origin_close(bed->free_origin), "cowsnap_origin_close");
	if (!err)
		err = bench_check(cowsnap_store_close(bed->store), "cowsnap_store_close");
	for (unsigned i = 0; i < DEVICES && !err; i++)
		err = bench_check(cowsnap_device_close(bed->devices[i]), "cowsnap_device_close");
	for (unsigned i = ORIGIN; i <= STORE && !err && bed->place == ARRAY; i++)
		sim_volume_close(&bed->volumes[i]);
	if (!err)
		err = bench_check(cowsnap_ctx_destroy(bed->ctx), "cowsnap_ctx_destroy");
	if (!err && bed->place == ARRAY)
		sim_array_close(&bed->array);
	free(bed->order);
	free(bed->cache);
	return err;
}

/* ---- The load -------------------------------------------------------------------------------- */

static struct cowsnap_origin *origin_of(const struct preimage_case *c)
{
	return c->way == FREE_READ ? c->bed->free_origin : c->bed->origin;
}

static enum cowsnap_preimage_kind give(void *user, struct cowsnap_preimage_ask *ask)
{
	const struct preimage_case *c = user;

	ask->data = c->bed->cache + (c->way == GIVEN_WARM ? 0 : ask->offset);
	return COWSNAP_PREIMAGE_GIVEN;
}

static int bare_thread(void *arg, unsigned index)
{
	const struct preimage_case *c = arg;
	const struct preimage_bed *bed = c->bed;
	static _Alignas(4096) unsigned char buffer[CHUNK_BYTES];
	int err = 0;

	(void)index;
	for (uint64_t i = 0; i < bed->chunks && !err; i++) {
		uint64_t at = bed->order[i] * CHUNK_BYTES;
		const unsigned char *data = bed->cache + at;

		if (c->way == BARE_READ_WRITE) {
			err = cowsnap_device_read(bed->devices[ORIGIN], buffer, at, CHUNK_BYTES);
			data = buffer;
		}
		if (!err)
			err = cowsnap_device_write(
				bed->devices[STORE], data, i * CHUNK_BYTES, CHUNK_BYTES);
	}
	return bench_check(err, "device read or write");
}

static int touch_thread(void *arg, unsigned index)
{
	struct preimage_case *c = arg;
	const struct cowsnap_preimage preimage = {.get = give, .user = c};
	bool given = c->way == GIVEN_COLD || c->way == GIVEN_WARM;
	struct cowsnap_origin *origin = origin_of(c);
	struct cowsnap_op op;
	int err = 0;

	(void)index;
	for (uint64_t i = 0; i < c->bed->chunks && !err; i++) {
		err = cowsnap_write_begin_with(origin, COWSNAP_WRITE,
			c->bed->order[i] * CHUNK_BYTES, CHUNK_BYTES, given ? &preimage : NULL, &op);
		if (!err)
			cowsnap_write_end(&op);
	}
	return bench_check(err, "cowsnap_write_begin_with");
}

static int read_bytes(const struct preimage_case *c, uint64_t *bytes)
{
	struct cowsnap_stats stats;
	int err = cowsnap_origin_stats(origin_of(c), &stats, sizeof(stats));

	*bytes = stats.origin_bytes;
	return bench_check(err, "cowsnap_origin_stats");
}

/* All was read, or nothing: else the figure is that of something else. */
static int check_reads(const struct preimage_case *c, uint64_t before)
{
	bool reads = c->way == READ || c->way == FREE_READ;
	uint64_t want = reads ? c->bed->chunks * CHUNK_BYTES : 0, bytes;
	int err = read_bytes(c, &bytes);

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
	struct cowsnap_take_entry entry = {.origin = origin_of(c), .store = bed->store};
	uint64_t before, ns;
	int err = read_bytes(c, &before);

	if (!err)
		err = bench_check(cowsnap_take(bed->ctx, NULL, &entry, 1), "cowsnap_take");
	if (err)
		return err;
	err = bench_threads(
		bed->options, 1, c->way >= BARE_READ_WRITE ? bare_thread : touch_thread, c, &ns);
	if (!err)
		err = check_reads(c, before);
	if (!err)
		bench_sample(samples, (double)ns / (double)bed->chunks);
	if (!err)
		err = bench_drop(entry.snapshot);
	return err ? err : bench_reclaim(bed->ctx);
}

static const struct bench_work work = {preimage_setup, preimage_run, preimage_teardown};

/* ---- Groups ---------------------------------------------------------------------------------- */

static int preimage_group(struct bench_report *report, struct preimage_bed *bed, double target)
{
	static const char *const places[] = {
		"memory", "file in the page cache", "file with O_DIRECT", "simulated array"};
	static const char *const suffix[] = {"memory", "file", "direct", "sim"};
	static const char *const names[] = {
		"read", "given-cold", "given-warm", "free-read", "bare-read-write", "bare-write"};
	struct bench_group *group = bench_group_add(report, "preimage", "ns per bracket",
		"4k-random, %s, 1 thread", places[bed->place]);
	struct preimage_case cases[WAYS];
	struct bench_variant *v[WAYS];

	for (unsigned i = 0; i < WAYS; i++) {
		cases[i] = (struct preimage_case){.bed = bed, .way = i};
		v[i] = bench_variant_add(
			group, &work, &cases[i], "%s-%s", names[i], suffix[bed->place]);
	}
	bench_ratio_add(group, NULL, v[READ], v[GIVEN_COLD], bench_at_least(target));
	bench_ratio_add(group, NULL, v[READ], v[GIVEN_WARM], bench_at_least(target));
	/* The most that a hand-over can reach, and how near it comes. */
	bench_ratio_add(group, NULL, v[READ], v[FREE_READ], bench_no_target());
	bench_ratio_add(group, NULL, v[FREE_READ], v[GIVEN_COLD], bench_no_target());
	bench_ratio_add(group, NULL, v[FREE_READ], v[GIVEN_WARM], bench_no_target());
	/* The same without any bracket, if what is given is not in the CPU's cache. */
	bench_ratio_add(group, NULL, v[BARE_READ_WRITE], v[BARE_WRITE], bench_no_target());
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
	static const struct {
		uint64_t chunks, quick_chunks;
		enum place place;
		double target;
	} groups[] = {
		{65536, 1024, MEMORY, 1.3},
		{16384, 1024, PAGE_CACHE, 1.3},
		{1024, 64, DIRECT, 1.3},
		{512, 64, ARRAY, 1.8},
	};
	int err = 0;

	for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]) && !err; i++) {
		struct preimage_bed bed = {.options = options,
			.chunks = options->quick ? groups[i].quick_chunks : groups[i].chunks,
			.place = groups[i].place};

		err = preimage_group(report, &bed, groups[i].target);
	}
	return err ? err : zero_group(report, options);
}
