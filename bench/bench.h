/* SPDX-License-Identifier: MIT
 *
 * cowsnap-bench: what its scenarios share. A scenario makes groups; a group holds variants that are
 * run in turn (A B C A B C ...), so that a disturbance of the machine meets all of them, and ratios
 * of variants that are taken round by round. The report prints them for people or as JSON.
 */
#ifndef COWSNAP_BENCH_H
#define COWSNAP_BENCH_H

#include <cowsnap.h>
#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BENCH_THREADS_MAX  64
#define BENCH_VARIANTS_MAX 24
#define BENCH_RATIOS_MAX   16
#define BENCH_NAME_MAX     64
#define BENCH_DETAILS_MAX  8

struct bench_model; /* model_device.h */

struct bench_options {
	unsigned repeat;     /* rounds that count; one more before them warms up */
	unsigned threads;    /* of the variants with several threads */
	bool threads_given;  /* on the command line */
	unsigned iodepth;    /* ladder: requests in flight of each thread; 0: the scenario's own */
	uint64_t ops;        /* operations per thread and round; 0: the scenario's own number */
	const char *variant; /* a shell pattern: only these variants; NULL: all */
	const char *allocator_name;
	const struct cowsnap_allocator *allocator;
	bool quick;
	bool pin;
	bool cpu_time; /* what bench_timer() reads */
};

/* ---- Samples, variants, ratios, groups (group.c) -------------------------------------------- */

enum bench_bound {
	BENCH_NO_TARGET = 0,
	BENCH_AT_MOST,
	BENCH_AT_LEAST,
};

struct bench_target {
	enum bench_bound bound;
	double value;
};

struct bench_samples {
	double *values;
	size_t count;
	size_t room;
};

struct bench_variant {
	char name[BENCH_NAME_MAX];
	/* Each returns 0 or a negative errno whose cause it has reported. setup and teardown may be
	 * NULL; they run once, run once per round and adds one sample or more. */
	int (*setup)(void *arg);
	int (*run)(void *arg, struct bench_samples *samples);
	int (*teardown)(void *arg);
	void *arg;
	struct bench_target target; /* for the median of all samples */
	/* The group's. */
	struct bench_samples samples; /* of all rounds that count */
	struct bench_samples rounds;  /* the median of each round */
	struct bench_samples details[BENCH_DETAILS_MAX];
	bool selected;
};

/* above[0] + above[1] + ... over below, round by round; without below, what the scenario puts into
 * rounds. */
struct bench_ratio {
	char name[BENCH_NAME_MAX * 2 + 4];
	const struct bench_variant *above[3];
	const struct bench_variant *below;
	struct bench_target target;
	struct bench_samples rounds;
};

struct bench_group {
	char name[BENCH_NAME_MAX];
	const char *scenario;
	const char *unit;
	struct bench_variant variants[BENCH_VARIANTS_MAX];
	size_t variant_count;
	struct bench_ratio ratios[BENCH_RATIOS_MAX];
	size_t ratio_count;
	/* More columns: what run puts into the details of its variant while the round counts. */
	const char *detail_names[BENCH_DETAILS_MAX];
	size_t detail_count;
	bool counts; /* this round */
	struct bench_group *next;
};

struct bench_report {
	struct bench_group *first;
	struct bench_group **last;
};

/* What a variant does: the functions of a struct bench_variant. */
struct bench_work {
	int (*setup)(void *arg);
	int (*run)(void *arg, struct bench_samples *samples);
	int (*teardown)(void *arg);
};

/* These never fail: without memory the program ends with a message and status 1. The group and its
 * variants stay in place until bench_report_free(). */
struct bench_group *bench_group_add(struct bench_report *report, const char *scenario,
	const char *unit, const char *name_format, ...) __attribute__((format(printf, 4, 5)));
struct bench_variant *bench_variant_add(struct bench_group *group, const struct bench_work *work,
	void *arg, const char *name_format, ...) __attribute__((format(printf, 4, 5)));
/* @name: NULL for "above / below". More parts may be added to above afterwards. */
struct bench_ratio *bench_ratio_add(struct bench_group *group, const char *name,
	const struct bench_variant *above, const struct bench_variant *below,
	struct bench_target target);
void bench_sample(struct bench_samples *samples, double value);

/* Runs all selected variants of a group in turn. Returns 0, or the error of the first that fails.
 */
int bench_group_run(struct bench_group *group, const struct bench_options *options);

double bench_median(const struct bench_samples *samples);
double bench_minimum(const struct bench_samples *samples);
double bench_maximum(const struct bench_samples *samples);

static inline struct bench_target bench_at_most(double value)
{
	return (struct bench_target){.bound = BENCH_AT_MOST, .value = value};
}

static inline struct bench_target bench_at_least(double value)
{
	return (struct bench_target){.bound = BENCH_AT_LEAST, .value = value};
}

static inline struct bench_target bench_no_target(void)
{
	return (struct bench_target){.bound = BENCH_NO_TARGET};
}

/* ---- The report (report.c) ------------------------------------------------------------------ */

void bench_report_init(struct bench_report *report);
void bench_report_free(struct bench_report *report);
void bench_report_table(const struct bench_report *report, const char *command,
	const struct bench_options *options);
/* Returns 0, or a negative errno if the file (NULL: standard output) cannot be written. */
int bench_report_json(const struct bench_report *report, const char *command,
	const struct bench_options *options, const char *path);

/* ---- Time, memory, threads (run.c) ---------------------------------------------------------- */

uint64_t bench_now_ns(void);
/* For work that never waits: the time of the clock, or the time that this thread had a CPU. */
uint64_t bench_timer(const struct bench_options *options);
/* Zeroed. Ends the program when there is none; free with free(). */
void *bench_alloc(size_t count, size_t bytes);
/* Prints what failed when @err is negative. Returns @err. */
int bench_check(int err, const char *what);
/* The calling thread to the index-th CPU of those that the process may use, round robin. */
void bench_pin(const struct bench_options *options, unsigned index);
/* 0 to count - 1 in a pseudo-random order, the same one each time. */
void bench_shuffle(uint64_t *order, uint64_t count);

/* Runs work(arg, 0) to work(arg, count - 1) at once on pinned threads; one runs on the caller's.
 * @ns: the time of the slowest. Returns 0 or the first error. */
int bench_threads(const struct bench_options *options, unsigned count,
	int (*work)(void *arg, unsigned index), void *arg, uint64_t *ns);

/* Threads that disturb a measurement: the busy ones repeat step until they are stopped, the idle
 * ones do it once and then sleep. They take the CPUs after the first, round robin. */
struct bench_load {
	const struct bench_options *options;
	int (*step)(void *arg, unsigned index);
	void *arg;
	unsigned busy;
	unsigned idle;
	/* run.c's */
	pthread_t threads[BENCH_THREADS_MAX];
	pthread_barrier_t ready;
	pthread_barrier_t done; /* idle threads sleep here */
	atomic_uint next_index;
	atomic_bool stop;
	atomic_int error;
};

/* Returns when each thread has done its first step. */
void bench_load_start(struct bench_load *load);
/* Returns 0 or the first error of a step. */
int bench_load_stop(struct bench_load *load);

/* ---- A context with what a measurement needs (rig.c) ---------------------------------------- */

struct bench_rig {
	struct cowsnap_ctx *ctx;
	struct cowsnap_device **devices;
	struct cowsnap_origin **origins;
	size_t count;
	uint64_t origin_bytes;
	struct cowsnap_device *store_device; /* NULL: the store has memory of its own */
	struct cowsnap_store *store;
	struct cowsnap_take_entry *entries; /* as many as origins */
};

struct bench_rig_options {
	size_t origins;
	uint64_t origin_bytes;
	uint64_t chunk_bytes;
	uint64_t store_bytes;
	bool store_device; /* the store is on a memory device of the rig, written once */
	/* The store is on a device made of this one; it must outlive the rig. NULL: none. */
	struct bench_model *model;
	bool persistent; /* with model: a persistent store, as large as the device allows */
};

int bench_context(const struct bench_options *options, struct cowsnap_ctx **ctx);
int bench_context_engine(const struct bench_options *options, enum cowsnap_engine engine,
	unsigned workers, struct cowsnap_ctx **ctx);
/* What was opened before a failure stays for bench_rig_close(). */
int bench_rig_open(struct bench_rig *rig, const struct bench_options *options,
	const struct bench_rig_options *what);
int bench_rig_close(struct bench_rig *rig);
int bench_store_open(struct cowsnap_ctx *ctx, const struct bench_rig_options *what,
	struct cowsnap_device *device, struct cowsnap_store **store);
/* Writes each page, so that no page fault is left. */
int bench_device_fill(struct cowsnap_device *device, uint64_t bytes);
/* A new file of zeroes in @folder; its name into @path. */
int bench_file_make(const char *folder, const char *what, uint64_t bytes, char *path, size_t room);

/* One bracket with nothing in it. */
int bench_bracket(struct cowsnap_origin *origin, uint64_t offset, uint64_t length);
/* Empty brackets of 1 MiB over a whole origin: all of it is saved. */
int bench_touch_all(struct cowsnap_origin *origin, uint64_t bytes);

/* One snapshot of each origin of the rig in its entries; drop gives all of them and their space
 * back. */
int bench_rig_take(struct bench_rig *rig);
int bench_rig_drop(struct bench_rig *rig);
int bench_drop(struct cowsnap_snapshot *snapshot);
int bench_reclaim(struct cowsnap_ctx *ctx);

/* ---- Scenarios ------------------------------------------------------------------------------ */

int bench_hook(struct bench_report *report, const struct bench_options *options);
int bench_first_touch(struct bench_report *report, const struct bench_options *options);
int bench_take(struct bench_report *report, const struct bench_options *options);
int bench_snapread(struct bench_report *report, const struct bench_options *options);
int bench_gate(struct bench_report *report, const struct bench_options *options);
int bench_map(struct bench_report *report, const struct bench_options *options);
int bench_commit(struct bench_report *report, const struct bench_options *options);
int bench_persist(struct bench_report *report, const struct bench_options *options);
int bench_open(struct bench_report *report, const struct bench_options *options);
int bench_handover(struct bench_report *report, const struct bench_options *options);
int bench_uring(struct bench_report *report, const struct bench_options *options);
int bench_changes(struct bench_report *report, const struct bench_options *options);
int bench_preimage(struct bench_report *report, const struct bench_options *options);
int bench_release(struct bench_report *report, const struct bench_options *options);
int bench_drop_many(struct bench_report *report, const struct bench_options *options);
int bench_merge(struct bench_report *report, const struct bench_options *options);
int bench_ladder(struct bench_report *report, const struct bench_options *options);

#endif
