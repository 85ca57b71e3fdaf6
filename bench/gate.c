/* SPDX-License-Identifier: MIT
 *
 * Scenario gate: what it costs to enter and leave the set of newest snapshots, by the library's
 * gate and by other means; and how long a take waits for writes under way, against the grace period
 * of user-space RCU. Enter and leave may run on different threads, so the means that need the same
 * thread at both ends are there as a floor only.
 */
#define _LGPL_SOURCE
#include "bench.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <urcu/urcu-bp.h>

#define BLOCK_BYTES  UINT64_C(4096)
#define STRIPES      BENCH_THREADS_MAX
#define SECTION_NS   UINT64_C(4000)
#define BUSY_THREADS 2
#define IDLE_THREADS 8

/* ---- Other gates ---------------------------------------------------------------------------- */

struct stripe {
	_Alignas(128) pthread_rwlock_t lock;
	_Alignas(128) _Atomic int64_t count;
};

struct target_set {
	_Alignas(128) _Atomic int64_t references;
	uint64_t snapshots;
	struct stripe stripes[STRIPES];
};

struct token {
	struct target_set *set;
	struct stripe *stripe;
};

struct gate_bed {
	const struct bench_options *options;
	struct bench_rig rig;
	struct target_set *set;
	const struct gate_kind *kind; /* NULL: the library's */
	unsigned threads;
	uint64_t ops;
};

struct gate_kind {
	const char *name;
	uint64_t (*enter)(struct gate_bed *bed, struct token *token);
	void (*leave)(struct token *token);
};

static struct stripe *own_stripe(struct target_set *set)
{
	return &set->stripes[(unsigned)sched_getcpu() % STRIPES];
}

/* The pointer is protected by RCU, the bracket by a reference that is shared by all. */
static uint64_t rcu_shared_enter(struct gate_bed *bed, struct token *token)
{
	urcu_bp_read_lock();
	token->set = rcu_dereference(bed->set);
	atomic_fetch_add_explicit(&token->set->references, 1, memory_order_acquire);
	urcu_bp_read_unlock();
	return token->set->snapshots;
}

static void rcu_shared_leave(struct token *token)
{
	atomic_fetch_sub_explicit(&token->set->references, 1, memory_order_release);
}

/* The same with one reference per CPU. */
static uint64_t rcu_striped_enter(struct gate_bed *bed, struct token *token)
{
	urcu_bp_read_lock();
	token->set = rcu_dereference(bed->set);
	token->stripe = own_stripe(token->set);
	atomic_fetch_add_explicit(&token->stripe->count, 1, memory_order_acquire);
	urcu_bp_read_unlock();
	return token->set->snapshots;
}

static void rcu_striped_leave(struct token *token)
{
	atomic_fetch_sub_explicit(&token->stripe->count, 1, memory_order_release);
}

/* A floor: the bracket is the read section, which must end on the thread that began it. */
static uint64_t rcu_section_enter(struct gate_bed *bed, struct token *token)
{
	urcu_bp_read_lock();
	token->set = rcu_dereference(bed->set);
	return token->set->snapshots;
}

static void rcu_section_leave(struct token *token)
{
	(void)token;
	urcu_bp_read_unlock();
}

static uint64_t rwlock_enter(struct gate_bed *bed, struct token *token)
{
	token->set = bed->set;
	token->stripe = &bed->set->stripes[0];
	pthread_rwlock_rdlock(&token->stripe->lock);
	return token->set->snapshots;
}

static uint64_t striped_rwlock_enter(struct gate_bed *bed, struct token *token)
{
	token->set = bed->set;
	token->stripe = own_stripe(bed->set);
	pthread_rwlock_rdlock(&token->stripe->lock);
	return token->set->snapshots;
}

static void rwlock_leave(struct token *token)
{
	pthread_rwlock_unlock(&token->stripe->lock);
}

static uint64_t counter_enter(struct gate_bed *bed, struct token *token)
{
	token->set = bed->set;
	atomic_fetch_add_explicit(&token->set->references, 1, memory_order_seq_cst);
	return token->set->snapshots;
}

static void counter_leave(struct token *token)
{
	atomic_fetch_sub_explicit(&token->set->references, 1, memory_order_release);
}

static const struct gate_kind kinds[] = {
	{"urcu-bp-shared-reference", rcu_shared_enter, rcu_shared_leave},
	{"urcu-bp-striped-reference", rcu_striped_enter, rcu_striped_leave},
	{"urcu-bp-section-only", rcu_section_enter, rcu_section_leave},
	{"rwlock-global", rwlock_enter, rwlock_leave},
	{"rwlock-striped", striped_rwlock_enter, rwlock_leave},
	{"counter-global", counter_enter, counter_leave},
};

#define KIND_COUNT (sizeof(kinds) / sizeof(kinds[0]))

/* ---- Enter and leave ------------------------------------------------------------------------ */

static int open_rig(struct gate_bed *bed)
{
	struct bench_rig_options what = {
		.origins = 1,
		.origin_bytes = UINT64_C(1) << 20,
		.chunk_bytes = BLOCK_BYTES,
		.store_bytes = UINT64_C(1) << 24,
	};

	return bench_rig_open(&bed->rig, bed->options, &what);
}

static int gate_setup(void *arg)
{
	struct gate_bed *bed = arg;

	if (!bed->kind)
		return open_rig(bed);
	if (posix_memalign((void **)&bed->set, _Alignof(struct target_set), sizeof(*bed->set)))
		return bench_check(-ENOMEM, "posix_memalign");
	memset(bed->set, 0, sizeof(*bed->set));
	for (size_t i = 0; i < STRIPES; i++)
		pthread_rwlock_init(&bed->set->stripes[i].lock, NULL);
	return 0;
}

static int gate_teardown(void *arg)
{
	struct gate_bed *bed = arg;

	if (!bed->kind)
		return bench_rig_close(&bed->rig);
	for (size_t i = 0; bed->set && i < STRIPES; i++)
		pthread_rwlock_destroy(&bed->set->stripes[i].lock);
	free(bed->set);
	return 0;
}

static int ours_thread(void *arg, unsigned index)
{
	struct gate_bed *bed = arg;
	struct cowsnap_op op;

	for (uint64_t i = 0; i < bed->ops; i++) {
		int err = cowsnap_write_begin(
			bed->rig.origins[0], COWSNAP_WRITE, index * BLOCK_BYTES, BLOCK_BYTES, &op);

		if (err)
			return bench_check(err, "cowsnap_write_begin");
		cowsnap_write_end(&op);
	}
	return 0;
}

static int other_thread(void *arg, unsigned index)
{
	struct gate_bed *bed = arg;
	/* Calls through pointers, as ours is a call into a library. */
	uint64_t (*enter)(struct gate_bed *, struct token *) = bed->kind->enter;
	void (*leave)(struct token *) = bed->kind->leave;
	struct token token;

	(void)index;
	for (uint64_t i = 0; i < bed->ops; i++) {
		if (enter(bed, &token))
			return -EPROTO;
		leave(&token);
	}
	return 0;
}

static int gate_run(void *arg, struct bench_samples *samples)
{
	struct gate_bed *bed = arg;
	uint64_t ns;
	int err = bench_threads(
		bed->options, bed->threads, bed->kind ? other_thread : ours_thread, bed, &ns);

	if (!err)
		bench_sample(samples, (double)ns / (double)bed->ops);
	return err;
}

static const struct bench_work gate_work = {gate_setup, gate_run, gate_teardown};

static int gate_group(
	struct bench_report *report, const struct bench_options *options, unsigned threads)
{
	struct bench_group *group = bench_group_add(report, "gate", "ns per enter+leave",
		"enter and leave, %u thread%s", threads, threads > 1 ? "s" : "");
	struct gate_bed beds[KIND_COUNT + 1];
	struct bench_variant *variants[KIND_COUNT + 1];

	for (size_t i = 0; i <= KIND_COUNT; i++) {
		beds[i] = (struct gate_bed){
			.options = options,
			.kind = i ? &kinds[i - 1] : NULL,
			.threads = threads,
			.ops = options->quick ? 20000 : 2000000,
		};
		if (options->ops)
			beds[i].ops = options->ops;
		variants[i] = bench_variant_add(group, &gate_work, &beds[i], "%s-%ut",
			i ? kinds[i - 1].name : "cowsnap-hook", threads);
	}
	variants[0]->target = bench_at_most(20);
	for (size_t i = 1; i <= KIND_COUNT; i++)
		bench_ratio_add(group, NULL, variants[0], variants[i], bench_no_target());
	return bench_group_run(group, options);
}

/* ---- The drain ------------------------------------------------------------------------------ */

static void spin(uint64_t ns)
{
	uint64_t until = bench_now_ns() + ns;

	while (bench_now_ns() < until)
		;
}

static int ours_step(void *arg, unsigned index)
{
	struct gate_bed *bed = arg;
	struct cowsnap_op op;
	int err = cowsnap_write_begin(
		bed->rig.origins[0], COWSNAP_WRITE, index * BLOCK_BYTES, BLOCK_BYTES, &op);

	if (err)
		return bench_check(err, "cowsnap_write_begin");
	spin(SECTION_NS);
	cowsnap_write_end(&op);
	return 0;
}

static int rcu_step(void *arg, unsigned index)
{
	(void)arg;
	(void)index;
	urcu_bp_read_lock();
	spin(SECTION_NS);
	urcu_bp_read_unlock();
	return 0;
}

static int take_once(struct gate_bed *bed, struct bench_samples *samples)
{
	uint64_t began = bench_now_ns();
	int err = bench_rig_take(&bed->rig);

	if (err)
		return err;
	bench_sample(samples, (double)(bench_now_ns() - began) / 1000);
	return bench_rig_drop(&bed->rig);
}

static int drain_run(struct gate_bed *bed, struct bench_samples *samples, bool ours)
{
	struct bench_load load = {
		.options = bed->options,
		.step = ours ? ours_step : rcu_step,
		.arg = bed,
		.busy = BUSY_THREADS,
		.idle = IDLE_THREADS,
	};
	int err = 0;
	int load_err;

	bench_load_start(&load);
	for (uint64_t i = 0; i < bed->ops && !err; i++) {
		uint64_t began = bench_now_ns();

		if (ours) {
			err = take_once(bed, samples);
			continue;
		}
		urcu_bp_synchronize_rcu();
		bench_sample(samples, (double)(bench_now_ns() - began) / 1000);
	}
	load_err = bench_load_stop(&load);
	return err ? err : load_err;
}

static int ours_drain(void *arg, struct bench_samples *samples)
{
	return drain_run(arg, samples, true);
}

static int rcu_drain(void *arg, struct bench_samples *samples)
{
	return drain_run(arg, samples, false);
}

static const struct bench_work ours_drain_work = {gate_setup, ours_drain, gate_teardown};
static const struct bench_work rcu_drain_work = {NULL, rcu_drain, NULL};

static int drain_group(struct bench_report *report, const struct bench_options *options)
{
	struct bench_group *group = bench_group_add(report, "gate", "us",
		"waiting for %d busy threads, %d idle", BUSY_THREADS, IDLE_THREADS);
	struct gate_bed bed = {.options = options, .ops = options->quick ? 3 : 50};
	struct bench_variant *ours =
		bench_variant_add(group, &ours_drain_work, &bed, "drain-of-a-take");
	struct bench_variant *rcu =
		bench_variant_add(group, &rcu_drain_work, &bed, "drain-urcu-bp-synchronize");

	bench_ratio_add(group, NULL, ours, rcu, bench_no_target());
	return bench_group_run(group, options);
}

int bench_gate(struct bench_report *report, const struct bench_options *options)
{
	int err = gate_group(report, options, 1);

	if (!err)
		err = gate_group(report, options, options->threads);
	return err ? err : drain_group(report, options);
}
