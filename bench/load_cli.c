/* SPDX-License-Identifier: MIT
 *
 * cowsnap-bench load: one load from the command line, on devices that it makes.
 */
#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "load.h"

#define CHUNK_BYTES UINT64_C(4096)

/* ---- Options -------------------------------------------------------------------------------- */

enum {
	KEY_SHAPE = 512,
	KEY_RW,
	KEY_BS,
	KEY_NUMJOBS,
	KEY_SIZE,
	KEY_MIX,
	KEY_RUNTIME,
	KEY_NUMBER,
	KEY_TARGET,
	KEY_HOOK,
	KEY_ENGINE,
	KEY_URING,
	KEY_SIM_IOPS,
	KEY_SIM_LATENCY,
	KEY_SIM_JITTER,
	KEY_SIM_DEPTH,
	KEY_SIM_FLUSH,
};

static const struct argp_option load_options[] = {
	{NULL, 0, NULL, 0, "Options of load, in fio's terms:", 10},
	{"shape", KEY_SHAPE, "NAME", 0,
		"A benchmark of the device-mapper test suite; 'help' lists them. First, what "
		"follows "
		"changes it",
		10},
	{"rw", KEY_RW, "KIND", 0, "[rand]read, [rand]write or [rand]rw (default randwrite)", 10},
	{"bs", KEY_BS, "SIZE", 0, "Of a request (default 4k)", 10},
	{"numjobs", KEY_NUMJOBS, "N", 0, "Threads, each with a slice of its own, 1 to 64", 10},
	{"size", KEY_SIZE, "SIZE", 0, "Of the volume (default 256m)", 10},
	{"rwmixread", KEY_MIX, "PERCENT", 0, "Reads of rw and randrw (default 50)", 10},
	{"runtime", KEY_RUNTIME, "SECONDS", 0, "Again and again; else once over the volume", 10},
	{"number_ios", KEY_NUMBER, "N", 0, "Of each job, at most", 10},
	{"target", KEY_TARGET, "memory|sim|PATH", 0,
		"Where the volume is; at PATH.store is the store (default memory)", 10},
	{"hook", KEY_HOOK, "bare|origin|snapshot", 0,
		"No library, brackets without a snapshot, or with one (default snapshot)", 10},
	{"engine", KEY_ENGINE, "wait|queue|workers", 0, "How threads wait (default queue)", 10},
	{"uring", KEY_URING, NULL, 0, "PATH with io_uring", 10},
	{"sim-iops", KEY_SIM_IOPS, "N", 0, "Of the simulated array (default 700000)", 10},
	{"sim-latency", KEY_SIM_LATENCY, "NS", 0, "The same (default 350000)", 10},
	{"sim-jitter", KEY_SIM_JITTER, "PERCENT", 0, "The same: random part of the latency", 10},
	{"sim-depth", KEY_SIM_DEPTH, "N", 0, "The same: requests of one thread at a time", 10},
	{"sim-flush", KEY_SIM_FLUSH, "NS", 0, "The same: a flush", 10},
	{0},
};

void load_command_init(struct load_command *command)
{
	*command = (struct load_command){
		.job = {.name = "load",
			.writes = true,
			.random = true,
			.rwmixread = 50,
			.bs = 4096,
			.iodepth = 32,
			.numjobs = 1,
			.size = UINT64_C(256) << 20,
			.engine = LOAD_QUEUE},
		.target = "memory",
		.hook = LOAD_SNAPSHOT,
	};
}

/* A number, with k, m or g behind it. */
static uint64_t parse_size(
	struct argp_state *state, const char *what, const char *text, uint64_t least, uint64_t most)
{
	static const char units[] = "kmg";
	char *end;
	unsigned long long value;
	unsigned shift = 0;
	const char *unit;

	errno = 0;
	value = strtoull(text, &end, 10);
	unit = *end ? strchr(units, *end | 0x20) : NULL;
	if (unit) {
		shift = 10 * (unsigned)(unit - units + 1);
		end++;
	}
	if (text[0] < '0' || text[0] > '9' || *end || errno || value > most >> shift ||
		value << shift < least)
		argp_error(state, "--%s: '%s' is not a number from %llu to %llu", what, text,
			(unsigned long long)least, (unsigned long long)most);
	return value << shift;
}

static unsigned parse_name(struct argp_state *state, const char *what, const char *text,
	const char *const *names, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		if (!strcmp(text, names[i]))
			return i;
	}
	argp_error(state, "--%s: '%s' is not known", what, text);
	return 0;
}

static void set_shape(struct argp_state *state, struct load_command *c, const char *name)
{
	const struct load_shape *shape = load_find_shape(name);

	if (!strcmp(name, "help")) {
		for (size_t i = 0; load_shape_name(i); i++)
			printf("%s\n", load_shape_name(i));
		exit(EXIT_SUCCESS);
	}
	if (!shape) {
		argp_error(state, "--shape: '%s' is not known; try --shape=help", name);
		return;
	}
	c->job = shape->job;
	c->reads_snapshot = shape->snapshot;
}

static void set_rw(struct argp_state *state, struct load_command *c, const char *text)
{
	static const char *const names[] = {
		"read", "write", "rw", "randread", "randwrite", "randrw"};
	unsigned i = parse_name(state, "rw", text, names, 6);

	c->job.random = i >= 3;
	c->job.reads = i % 3 != 1;
	c->job.writes = i % 3 != 0;
}

static bool parse_sim(int key, const char *text, struct argp_state *state, struct sim_options *sim)
{
	switch (key) {
	case KEY_SIM_IOPS:
		sim->iops = parse_size(state, "sim-iops", text, 1, 100000000);
		return true;
	case KEY_SIM_LATENCY:
		sim->latency_ns = parse_size(state, "sim-latency", text, 1, 1000000000);
		return true;
	case KEY_SIM_JITTER:
		sim->jitter_percent = (unsigned)parse_size(state, "sim-jitter", text, 0, 100);
		return true;
	case KEY_SIM_DEPTH:
		sim->depth = (unsigned)parse_size(state, "sim-depth", text, 1, LOAD_DEPTH_MAX);
		return true;
	case KEY_SIM_FLUSH:
		sim->flush_ns = parse_size(state, "sim-flush", text, 1, 1000000000);
		return true;
	default:
		return false;
	}
}

static bool is_sim(const struct load_command *command)
{
	return !strcmp(command->target, "sim");
}

static error_t parse_load(int key, char *text, struct argp_state *state)
{
	static const char *const hooks[] = {"bare", "origin", "snapshot"};
	static const char *const engines[] = {"wait", "queue", "workers"};
	struct load_command *c = state->input;

	if (key >= KEY_SHAPE && key <= KEY_SIM_FLUSH)
		c->any = true;
	switch (key) {
	case KEY_SHAPE:
		set_shape(state, c, text);
		return 0;
	case KEY_RW:
		set_rw(state, c, text);
		return 0;
	case KEY_BS:
		c->job.bs = parse_size(state, "bs", text, 512, UINT64_C(64) << 20);
		return 0;
	case KEY_NUMJOBS:
		c->job.numjobs = (unsigned)parse_size(state, "numjobs", text, 1, BENCH_THREADS_MAX);
		return 0;
	case KEY_SIZE:
		c->job.size = parse_size(state, "size", text, 4096, UINT64_C(1) << 44);
		return 0;
	case KEY_MIX:
		c->job.rwmixread = (unsigned)parse_size(state, "rwmixread", text, 0, 100);
		return 0;
	case KEY_RUNTIME:
		c->job.runtime_ns =
			parse_size(state, "runtime", text, 1, 86400) * UINT64_C(1000000000);
		return 0;
	case KEY_NUMBER:
		c->job.number_ios = parse_size(state, "number_ios", text, 1, UINT64_C(1) << 40);
		return 0;
	case KEY_TARGET:
		c->target = text;
		return 0;
	case KEY_HOOK:
		c->hook = (enum load_hook)parse_name(state, "hook", text, hooks, 3);
		return 0;
	case KEY_ENGINE:
		c->job.engine = (enum load_engine)parse_name(state, "engine", text, engines, 3);
		return 0;
	case KEY_URING:
		c->uring = true;
		return 0;
	case ARGP_KEY_END:
		if (c->uring && (is_sim(c) || !strcmp(c->target, "memory")))
			argp_error(state, "--uring: '%s' is not a file", c->target);
		return 0;
	default:
		return parse_sim(key, text, state, &c->sim) ? 0 : ARGP_ERR_UNKNOWN;
	}
}

const struct argp load_argp = {.options = load_options, .parser = parse_load};

/* ---- What it needs -------------------------------------------------------------------------- */

struct load_bed {
	struct load_command *command;
	struct sim_array array;
	struct sim_volume volumes[2]; /* volume and store */
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *devices[2];
	struct cowsnap_origin *origin;
	struct cowsnap_store *store;
	struct cowsnap_snapshot *snapshot;
};

static int open_file(struct load_bed *bed, unsigned i)
{
	struct cowsnap_file_options options = {.size = sizeof(options),
		.flags = COWSNAP_FILE_CREATE,
		.length_bytes = bed->command->job.size};
	char path[4096];

	snprintf(path, sizeof(path), "%s%s", bed->command->target, i ? ".store" : "");
	if (bed->command->uring)
		return bench_check(
			cowsnap_device_uring(bed->ctx, path, &options, &bed->devices[i]), path);
	return bench_check(cowsnap_device_file(bed->ctx, path, &options, &bed->devices[i]), path);
}

static int open_device(struct load_bed *bed, unsigned i)
{
	uint64_t bytes = bed->command->job.size;
	int err;

	if (is_sim(bed->command)) {
		err = sim_volume_open(&bed->volumes[i], &bed->array, bytes);
		return err ? err : sim_volume_device(&bed->volumes[i], bed->ctx, &bed->devices[i]);
	}
	if (strcmp(bed->command->target, "memory"))
		err = open_file(bed, i);
	else
		err = bench_check(cowsnap_device_memory(bed->ctx, bytes, &bed->devices[i]),
			"cowsnap_device_memory");
	/* A page fault, or a file that grows, is not what is measured. */
	return err ? err : bench_device_fill(bed->devices[i], bytes);
}

static int open_snapshot(struct load_bed *bed)
{
	struct bench_rig_options what = {
		.chunk_bytes = CHUNK_BYTES, .store_bytes = bed->command->job.size};
	struct cowsnap_take_entry entry = {0};
	int err = bench_check(cowsnap_origin_open(bed->ctx, bed->devices[0], &bed->origin),
		"cowsnap_origin_open");

	if (err || bed->command->hook == LOAD_ORIGIN)
		return err;
	err = bench_store_open(bed->ctx, &what, bed->devices[1], &bed->store);
	entry.origin = bed->origin;
	entry.store = bed->store;
	if (!err)
		err = bench_check(cowsnap_take(bed->ctx, NULL, &entry, 1), "cowsnap_take");
	bed->snapshot = entry.snapshot;
	return err;
}

static int open_bed(struct load_bed *bed, const struct bench_options *options)
{
	static const enum cowsnap_engine engines[] = {
		COWSNAP_ENGINE_INLINE, COWSNAP_ENGINE_LOOP, COWSNAP_ENGINE_WORKERS};
	const struct load_job *job = &bed->command->job;
	int err = bench_context_engine(options, engines[job->engine],
		job->engine == LOAD_WORKERS ? job->numjobs : 0, &bed->ctx);

	if (!err && is_sim(bed->command))
		err = sim_array_open(&bed->array, &bed->command->sim);
	for (unsigned i = 0; i < 2 && !err; i++)
		err = open_device(bed, i);
	return err || bed->command->hook == LOAD_BARE ? err : open_snapshot(bed);
}

static int close_bed(struct load_bed *bed)
{
	int err = 0;

	if (bed->snapshot)
		err = bench_drop(bed->snapshot);
	if (!err)
		err = bench_check(cowsnap_store_close(bed->store), "cowsnap_store_close");
	if (!err)
		err = bench_check(cowsnap_origin_close(bed->origin), "cowsnap_origin_close");
	for (unsigned i = 0; i < 2 && !err; i++)
		err = bench_check(cowsnap_device_close(bed->devices[i]), "cowsnap_device_close");
	if (!err)
		err = bench_check(cowsnap_ctx_destroy(bed->ctx), "cowsnap_ctx_destroy");
	for (unsigned i = 0; i < 2 && !err; i++)
		sim_volume_close(&bed->volumes[i]);
	sim_array_close(&bed->array);
	return err;
}

/* ---- Running -------------------------------------------------------------------------------- */

/* What fio does not know: who copied, and how much. */
static json_t *library_json(const struct load_bed *bed)
{
	struct cowsnap_thread_io threads[BENCH_THREADS_MAX];
	int count = cowsnap_ctx_thread_io(bed->ctx, threads, BENCH_THREADS_MAX);
	struct cowsnap_stats stats = {0};
	json_t *list = json_array();

	cowsnap_ctx_stats(bed->ctx, &stats, sizeof(stats));
	for (int i = 0; i < count && i < BENCH_THREADS_MAX; i++) {
		if (threads[i].reads || threads[i].writes)
			json_array_append_new(
				list, json_pack("{s:I, s:I, s:I, s:I, s:I}", "thread",
					      (json_int_t)threads[i].thread, "reads",
					      (json_int_t)threads[i].reads, "read_bytes",
					      (json_int_t)threads[i].read_bytes, "writes",
					      (json_int_t)threads[i].writes, "write_bytes",
					      (json_int_t)threads[i].write_bytes));
	}
	return json_pack("{s:I, s:I, s:I, s:o}", "writes", (json_int_t)stats.writes, "fast_writes",
		(json_int_t)stats.fast_writes, "copied_chunks", (json_int_t)stats.copied_chunks,
		"thread_io", list);
}

static int run_and_report(struct load_bed *bed, const struct bench_options *options,
	const char *line, bool json, const char *json_path)
{
	const struct load_command *command = bed->command;
	struct load_target target = {
		.ctx = bed->ctx,
		.device = bed->devices[0],
		.snapshot = command->reads_snapshot ? bed->snapshot : NULL,
		.submits = is_sim(command) || command->uring,
		.sim = is_sim(command) ? &bed->array : NULL,
	};
	struct load_result *result = bench_alloc(1, sizeof(*result));
	int err;

	if (command->hook != LOAD_BARE)
		target.gate = load_origin_gate(bed->origin, command->job.engine);
	err = load_run(options, &command->job, &target, result);
	if (!err && (!json || json_path))
		load_report_text(&command->job, result);
	if (!err && json)
		err = load_report_json(&command->job, result, line, library_json(bed), json_path);
	free(result);
	return err;
}

int load_command_run(const struct bench_options *options, struct load_command *command,
	const char *line, bool json, const char *json_path)
{
	struct load_bed *bed = aligned_alloc(64, sizeof(*bed));
	int close_err;
	int err;

	if (!bed)
		return bench_check(-ENOMEM, "a load");
	memset(bed, 0, sizeof(*bed));
	bed->command = command;
	if (options->iodepth)
		command->job.iodepth = options->iodepth;
	command->job.size -= command->job.size % CHUNK_BYTES;
	err = open_bed(bed, options);
	if (!err)
		err = run_and_report(bed, options, line, json, json_path);
	close_err = err ? 0 : close_bed(bed);
	free(bed);
	return err ? err : close_err;
}
