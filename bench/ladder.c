/* SPDX-License-Identifier: MIT
 *
 * Scenario ladder: the same first-touch load on each step from dm-snapshot as it was to cowsnap. A
 * round writes each block of a volume exactly once, in random order, after a take: one read of the
 * origin, one write of the store, and the host's own write. Afterwards the snapshot is compared
 * with what the volume held.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ladder_dm.h"
#include "load.h"

#define CHUNK_BYTES   UINT64_C(4096)
#define TOTAL_DEPTH   256u /* of all threads, on the simulated array: all servers busy */
#define THREAD_DEPTH  32u  /* at least so many requests of each thread */
#define THREADS_KNOWN 256u /* of cowsnap_ctx_thread_io() */
#define WAITING_PART  32u  /* of the volume: who waits for each request is slow on the array */
#define IO_PER_TOUCH  3    /* one read, one write, and the host's own */

enum detail { MEAN_US, P50_US, P99_US, P999_US, IO_LEAST, IO_MOST, OF_BOUND, DETAILS };

static const char *const detail_names[DETAILS] = {
	"mean us", "p50 us", "p99 us", "p99.9 us", "io min", "io max", "of bound"};

/* The devices of all groups of one kind. */
struct ladder_bed {
	const struct bench_options *options;
	bool simulated;
	uint64_t bytes;
	struct sim_array array;
	struct sim_volume volumes[2]; /* origin and store */
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *devices[2];
	struct cowsnap_origin *origin;
	struct cowsnap_store *store;
	uint64_t generation; /* of what the volume holds */
};

enum rung_kind { RUNG_DM, RUNG_WAITING, RUNG_QUEUE };

struct rung {
	const char *name;
	enum rung_kind kind;
	enum dm_mode mode;
	unsigned hash_shift;
};

static const struct rung rungs[] = {
	{"bare", RUNG_DM, DM_BARE, 0},
	{"a-one-lock", RUNG_DM, DM_ONE_LOCK, 8},
	{"a-one-lock-good-hash", RUNG_DM, DM_ONE_LOCK, 0},
	{"b-fine-locks", RUNG_DM, DM_FINE_LOCKS, 8},
	{"b-fine-locks-good-hash", RUNG_DM, DM_FINE_LOCKS, 0},
	{"c-parallel-in-order", RUNG_DM, DM_PARALLEL, 8},
	{"c-parallel-in-order-good-hash", RUNG_DM, DM_PARALLEL, 0},
	{"d-cowsnap-waiting", RUNG_WAITING, DM_BARE, 0},
	{"d-cowsnap", RUNG_QUEUE, DM_BARE, 0},
};

#define RUNG_COUNT (sizeof(rungs) / sizeof(rungs[0]))
#define RUNG_A     1
#define RUNG_D     (RUNG_COUNT - 1)

struct ladder_cell {
	struct ladder_bed *bed;
	const struct rung *rung;
	unsigned threads;
	unsigned depth; /* of each thread */
	uint64_t bytes; /* of the volume, that are written to */
	struct bench_group *group;
	struct bench_variant *variant;
	const struct ladder_cell *base; /* with the mean latency of this one ... */
	struct bench_ratio *ratio;      /* ... its round is compared here; or NULL */
	double mean_ns;                 /* of the last round */
};

/* ---- The bed -------------------------------------------------------------------------------- */

static int bed_device(struct ladder_bed *bed, unsigned i)
{
	int err;

	if (!bed->simulated) {
		err = cowsnap_device_memory(bed->ctx, bed->bytes, &bed->devices[i]);
		return bench_check(err, "cowsnap_device_memory");
	}
	err = sim_volume_open(&bed->volumes[i], &bed->array, bed->bytes);
	return err ? err : sim_volume_device(&bed->volumes[i], bed->ctx, &bed->devices[i]);
}

static int bed_open(struct ladder_bed *bed)
{
	struct bench_rig_options what = {.chunk_bytes = CHUNK_BYTES, .store_bytes = bed->bytes};
	struct sim_options options = {.seed = 1};
	int err = bench_context_engine(bed->options, COWSNAP_ENGINE_LOOP, 0, &bed->ctx);

	if (!err && bed->simulated)
		err = sim_array_open(&bed->array, &options);
	for (unsigned i = 0; i < 2 && !err; i++)
		err = bed_device(bed, i);
	if (err)
		return err;
	atomic_store_explicit(&bed->array.instant, true, memory_order_relaxed);
	bed->generation = 1;
	err = load_stamp_all(bed->devices[0], bed->bytes, CHUNK_BYTES, bed->generation);
	if (!err)
		err = bench_device_fill(bed->devices[1], bed->bytes);
	if (!err)
		err = bench_check(
			cowsnap_origin_open(bed->ctx, bed->devices[0], &bed->origin), "origin");
	if (!err)
		err = bench_store_open(bed->ctx, &what, bed->devices[1], &bed->store);
	return err;
}

static int bed_close(struct ladder_bed *bed)
{
	int err = bench_check(cowsnap_store_close(bed->store), "cowsnap_store_close");

	if (!err)
		err = bench_check(cowsnap_origin_close(bed->origin), "cowsnap_origin_close");
	for (unsigned i = 0; i < 2 && !err; i++)
		err = bench_check(cowsnap_device_close(bed->devices[i]), "cowsnap_device_close");
	if (!err)
		err = bench_check(cowsnap_ctx_destroy(bed->ctx), "cowsnap_ctx_destroy");
	/* Devices that could not be closed still name the memory. */
	for (unsigned i = 0; i < 2 && !err; i++)
		sim_volume_close(&bed->volumes[i]);
	sim_array_close(&bed->array);
	return err;
}

/* ---- A round -------------------------------------------------------------------------------- */

struct ladder_round {
	struct load_result load;
	uint64_t io_least; /* copy I/O of the thread that issued the least, and the most */
	uint64_t io_most;
};

static void count_io(struct ladder_round *round, uint64_t io)
{
	round->io_least = io < round->io_least ? io : round->io_least;
	round->io_most = io > round->io_most ? io : round->io_most;
}

static int wrong(const char *what, uint64_t got, uint64_t wanted)
{
	fprintf(stderr, "cowsnap-bench: %s: %llu, not %llu\n", what, (unsigned long long)got,
		(unsigned long long)wanted);
	return -EPROTO;
}

static int run_load(struct ladder_cell *cell, struct load_gate gate, struct ladder_round *round)
{
	struct ladder_bed *bed = cell->bed;
	struct load_job job = {
		.name = cell->rung->name,
		.writes = true,
		.random = true,
		.bs = CHUNK_BYTES,
		.iodepth = cell->depth,
		.numjobs = cell->threads,
		.size = cell->bytes,
		.engine = cell->rung->kind == RUNG_WAITING ? LOAD_WAIT : LOAD_QUEUE,
	};
	struct load_target target = {
		.ctx = bed->ctx,
		.device = bed->devices[0],
		.submits = bed->simulated,
		.sim = bed->simulated ? &bed->array : NULL,
		.gate = gate,
		.generation = bed->generation + 1,
	};
	int err;

	atomic_store_explicit(&bed->array.instant, false, memory_order_relaxed);
	err = load_run(bed->options, &job, &target, &round->load);
	atomic_store_explicit(&bed->array.instant, true, memory_order_relaxed);
	return err;
}

static int check_dm(struct ladder_cell *cell, struct dm_snapshot *snapshot)
{
	struct ladder_bed *bed = cell->bed;
	uint64_t chunks = bed->bytes / CHUNK_BYTES;
	unsigned char block[CHUNK_BYTES];

	if (cell->rung->mode == DM_BARE)
		return 0;
	if (dm_completed(snapshot) != chunks)
		return wrong("chunks completed", dm_completed(snapshot), chunks);
	for (uint64_t chunk = 0; chunk < chunks; chunk++) {
		uint64_t location;
		int err;

		if (!dm_lookup(snapshot, chunk, &location))
			return wrong("chunks saved", chunk, chunks);
		err = cowsnap_device_read(
			bed->devices[1], block, location * CHUNK_BYTES, CHUNK_BYTES);
		if (err)
			return bench_check(err, "cowsnap_device_read");
		if (!load_is_stamped(block, CHUNK_BYTES, chunk, bed->generation))
			return wrong("chunks with the old content", chunk, chunks);
	}
	return 0;
}

static int round_dm(struct ladder_cell *cell, struct ladder_round *round)
{
	struct ladder_bed *bed = cell->bed;
	struct dm_options options = {
		.mode = cell->rung->mode,
		.ctx = bed->ctx,
		.origin = bed->devices[0],
		.store = bed->devices[1],
		.sim = bed->simulated ? &bed->array : NULL,
		.chunk_bytes = CHUNK_BYTES,
		.chunks = bed->bytes / CHUNK_BYTES,
		.threads = cell->threads,
		.depth = cell->depth,
		.hash_shift = cell->rung->hash_shift,
		.bench = bed->options,
	};
	struct dm_snapshot *snapshot = NULL;
	int err = dm_open(&options, &snapshot);
	int close_err;

	if (!err)
		err = run_load(cell, dm_gate(snapshot), round);
	for (unsigned i = 0; i <= cell->threads && !err; i++) {
		struct dm_thread_io io = dm_thread_io(snapshot, i);

		if (i < cell->threads || io.reads)
			count_io(round, io.reads + io.writes);
	}
	if (!err)
		err = check_dm(cell, snapshot);
	close_err = dm_close(snapshot);
	return err ? err : close_err;
}

static int check_snapshot(const struct ladder_cell *cell, struct cowsnap_snapshot *snapshot)
{
	const struct ladder_bed *bed = cell->bed;
	uint64_t chunks = cell->bytes / CHUNK_BYTES;
	unsigned char block[CHUNK_BYTES];

	for (uint64_t chunk = 0; chunk < chunks; chunk++) {
		int err = cowsnap_snapshot_read(snapshot, block, chunk * CHUNK_BYTES, CHUNK_BYTES);

		if (err)
			return bench_check(err, "cowsnap_snapshot_read");
		if (!load_is_stamped(block, CHUNK_BYTES, chunk, bed->generation))
			return wrong("chunks with the old content", chunk, chunks);
	}
	return 0;
}

/* The threads that have issued copy I/O since @before. */
static void count_threads(struct ladder_cell *cell, struct ladder_round *round,
	const struct cowsnap_thread_io *before)
{
	struct cowsnap_thread_io now[THREADS_KNOWN];
	int known = cowsnap_ctx_thread_io(cell->bed->ctx, now, THREADS_KNOWN);
	unsigned busy = 0;

	for (int i = 0; i < known && i < (int)THREADS_KNOWN; i++) {
		uint64_t io = now[i].reads + now[i].writes - before[i].reads - before[i].writes;

		busy += io > 0;
		if (io)
			count_io(round, io);
	}
	if (busy < cell->threads)
		round->io_least = 0;
}

static int round_cowsnap(struct ladder_cell *cell, struct ladder_round *round)
{
	struct ladder_bed *bed = cell->bed;
	struct cowsnap_take_entry entry = {.origin = bed->origin, .store = bed->store};
	struct cowsnap_thread_io before[THREADS_KNOWN] = {0};
	enum load_engine engine = cell->rung->kind == RUNG_WAITING ? LOAD_WAIT : LOAD_QUEUE;
	struct cowsnap_stats stats[2];
	uint64_t copied;
	int err = bench_check(cowsnap_take(bed->ctx, NULL, &entry, 1), "cowsnap_take");

	if (err)
		return err;
	cowsnap_ctx_thread_io(bed->ctx, before, THREADS_KNOWN);
	cowsnap_origin_stats(bed->origin, &stats[0], sizeof(stats[0]));
	err = run_load(cell, load_origin_gate(bed->origin, engine), round);
	if (err)
		return err;
	cowsnap_origin_stats(bed->origin, &stats[1], sizeof(stats[1]));
	count_threads(cell, round, before);
	copied = stats[1].copied_chunks - stats[0].copied_chunks;
	if (copied != cell->bytes / CHUNK_BYTES)
		return wrong("chunks copied", copied, cell->bytes / CHUNK_BYTES);
	err = check_snapshot(cell, entry.snapshot);
	if (!err)
		err = bench_drop(entry.snapshot);
	if (!err)
		err = bench_reclaim(bed->ctx);
	if (err || cell->bytes == bed->bytes)
		return err;
	return load_stamp_all(bed->devices[0], bed->bytes, CHUNK_BYTES, bed->generation + 1);
}

/* ---- Samples -------------------------------------------------------------------------------- */

/* What the model allows, in first touches a second. */
static double bound_of(const struct ladder_cell *cell)
{
	double in_flight = cell->threads;

	if (!cell->bed->simulated)
		return NAN;
	if (cell->rung->kind != RUNG_WAITING)
		in_flight *= cell->depth;
	return sim_bound_iops(&cell->bed->array, in_flight) / IO_PER_TOUCH;
}

static void add_details(struct ladder_cell *cell, const struct ladder_round *round, double iops)
{
	const struct latency *w = &round->load.write;
	double values[DETAILS] = {
		[MEAN_US] = latency_mean_ns(w) / 1e3,
		[P50_US] = (double)latency_percentile_ns(w, 50) / 1e3,
		[P99_US] = (double)latency_percentile_ns(w, 99) / 1e3,
		[P999_US] = (double)latency_percentile_ns(w, 99.9) / 1e3,
		[IO_LEAST] = (double)round->io_least,
		[IO_MOST] = (double)round->io_most,
		[OF_BOUND] = iops / bound_of(cell),
	};

	for (unsigned i = 0; i < DETAILS; i++) {
		if (!isnan(values[i]))
			bench_sample(&cell->variant->details[i], values[i]);
	}
	if (cell->ratio && cell->base->mean_ns > 0)
		bench_sample(&cell->ratio->rounds, cell->base->mean_ns / cell->mean_ns);
}

static int cell_run(void *arg, struct bench_samples *samples)
{
	struct ladder_cell *cell = arg;
	struct ladder_round *round = bench_alloc(1, sizeof(*round));
	double iops;
	int err;

	round->io_least = UINT64_MAX;
	err = cell->rung->kind == RUNG_DM ? round_dm(cell, round) : round_cowsnap(cell, round);
	if (!err) {
		iops = (double)round->load.write.count * 1e9 / (double)round->load.ns;
		cell->bed->generation++;
		cell->mean_ns = latency_mean_ns(&round->load.write);
		bench_sample(samples, iops);
		if (cell->group->counts)
			add_details(cell, round, iops);
	}
	free(round);
	return err;
}

/* ---- Groups --------------------------------------------------------------------------------- */

static const struct bench_work cell_work = {.run = cell_run};

static unsigned depth_of(const struct ladder_bed *bed, unsigned threads)
{
	if (bed->options->iodepth)
		return bed->options->iodepth;
	if (!bed->simulated || threads * THREAD_DEPTH >= TOTAL_DEPTH)
		return THREAD_DEPTH;
	return TOTAL_DEPTH / threads;
}

static struct ladder_cell cell_of(struct ladder_bed *bed, struct bench_group *group,
	const struct rung *rung, unsigned threads)
{
	struct ladder_cell cell = {.bed = bed, .rung = rung, .threads = threads, .group = group};

	cell.depth = rung->kind == RUNG_WAITING ? 1 : depth_of(bed, threads);
	cell.bytes = bed->bytes;
	if (rung->kind == RUNG_WAITING && bed->simulated && !bed->options->quick)
		cell.bytes /= WAITING_PART;
	return cell;
}

static struct bench_group *add_group(
	struct bench_report *report, const struct ladder_bed *bed, const char *what)
{
	struct bench_group *group = bench_group_add(report, "ladder", "first touches a second",
		"%s, %s", bed->simulated ? "simulated array" : "memory device", what);

	memcpy(group->detail_names, detail_names, sizeof(detail_names));
	group->detail_count = DETAILS;
	return group;
}

static const char *device_name(const struct ladder_bed *bed)
{
	return bed->simulated ? "sim" : "mem";
}

/* All rungs, with as many threads. */
static int rung_group(struct bench_report *report, struct ladder_bed *bed, unsigned threads)
{
	char what[BENCH_NAME_MAX];
	bool counts = bed->simulated && threads == 8 && sysconf(_SC_NPROCESSORS_ONLN) >= 16;
	struct ladder_cell cells[RUNG_COUNT];
	struct bench_group *group;
	struct bench_variant *a;
	struct bench_variant *d;

	snprintf(what, sizeof(what), "%u thread%s with %u in flight each", threads,
		threads > 1 ? "s" : "", depth_of(bed, threads));
	group = add_group(report, bed, what);
	for (size_t i = 0; i < RUNG_COUNT; i++) {
		cells[i] = cell_of(bed, group, &rungs[i], threads);
		cells[i].variant = bench_variant_add(group, &cell_work, &cells[i], "%s-%s-%ut",
			rungs[i].name, device_name(bed), threads);
	}
	a = cells[RUNG_A].variant;
	d = cells[RUNG_D].variant;
	bench_ratio_add(
		group, "IOPS, (d) / (a)", d, a, counts ? bench_at_least(4) : bench_no_target());
	bench_ratio_add(group, "IOPS, (b) / (a)", cells[RUNG_A + 2].variant, a, bench_no_target());
	bench_ratio_add(group, "IOPS, (c) / (a)", cells[RUNG_A + 4].variant, a, bench_no_target());
	bench_ratio_add(group, "IOPS, (d) / bare", d, cells[0].variant, bench_no_target());
	cells[RUNG_D].base = &cells[RUNG_A];
	cells[RUNG_D].ratio = bench_ratio_add(group, "mean latency, (a) / (d)", NULL, NULL,
		counts ? bench_at_least(5) : bench_no_target());
	return bench_group_run(group, bed->options);
}

/* (d) alone: what another thread brings. */
static int scaling_group(
	struct bench_report *report, struct ladder_bed *bed, const unsigned *threads, size_t count)
{
	struct ladder_cell cells[BENCH_VARIANTS_MAX];
	struct bench_group *group = add_group(report, bed, "(d) by threads");
	long cores = sysconf(_SC_NPROCESSORS_ONLN);

	for (size_t i = 0; i < count; i++) {
		char name[BENCH_NAME_MAX];
		struct bench_target target = bench_no_target();

		cells[i] = cell_of(bed, group, &rungs[RUNG_D], threads[i]);
		cells[i].variant = bench_variant_add(group, &cell_work, &cells[i], "scaling-%s-%ut",
			device_name(bed), threads[i]);
		if (!i)
			continue;
		if (!bed->simulated && threads[i] == 2 && cores >= 2)
			target = bench_at_least(1.6);
		if (!bed->simulated && threads[i] == 16 && cores >= 16)
			target = bench_at_least(10);
		snprintf(name, sizeof(name), "%u threads / 1", threads[i]);
		bench_ratio_add(group, name, cells[i].variant, cells[0].variant, target);
	}
	return bench_group_run(group, bed->options);
}

static size_t thread_counts(const struct bench_options *options, unsigned *threads)
{
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned most = options->threads_given ? options->threads : 8;
	size_t count = 0;

	if (!options->threads_given && cores > 4)
		most = cores < 16 ? 2 * (unsigned)cores : 32;
	for (unsigned n = 1; n <= most; n *= 2)
		threads[count++] = n;
	return count;
}

static int run_bed(struct bench_report *report, struct ladder_bed *bed)
{
	unsigned threads[8];
	size_t count = thread_counts(bed->options, threads);
	int err = bed_open(bed);
	int close_err;

	for (size_t i = 0; i < count && !err; i++)
		err = rung_group(report, bed, threads[i]);
	if (!err)
		err = scaling_group(report, bed, threads, count);
	if (err)
		return err;
	close_err = bed_close(bed);
	return close_err;
}

int bench_ladder(struct bench_report *report, const struct bench_options *options)
{
	int err = 0;

	for (int simulated = 0; simulated < 2 && !err; simulated++) {
		struct ladder_bed *bed = aligned_alloc(64, sizeof(*bed));

		if (!bed)
			return bench_check(-ENOMEM, "a ladder");
		memset(bed, 0, sizeof(*bed));
		bed->options = options;
		bed->simulated = simulated;
		bed->bytes = UINT64_C(256) << 20;
		if (options->quick)
			bed->bytes = UINT64_C(4) << 20;
		err = run_bed(report, bed);
		free(bed);
	}
	return err;
}
