/* SPDX-License-Identifier: MIT
 *
 * Saving: one round of copies for one bracket.
 *
 * gather: for each head, claim the free runs of the range and get space for them: a run of chunks
 *	that lies together in both is one *job*. Busy chunks are passed over, so that everything
 *	that can be started is started before anybody waits.
 * copy: one call of the copier for all jobs; what two stores want is read once.
 * commit, settle: record, publish what succeeded, abort what failed.
 *
 * Invariants:
 *  S1 Credits are taken before the first claim and given back after the last claim has ended: who
 *     holds a claim never waits for credits, so a bound of a single job works.
 *  S2 Each claim of a round has ended when the round returns, and before the host is told of
 *     anything. Whoever holds one waits for I/O and for a reclaimer, never for credits, space or a
 *     writer.
 *
 * Locking: none. Failure: the first difficulty of a round is left in the trouble record.
 */
#include <assert.h>
#include <string.h>

#include "copier.h"
#include "origin.h"

#define JOBS        32u
#define SPACE_TRIES 16u

struct job {
	const struct cs_head *head;
	struct cowsnap_run run;
	int error;
	bool low_water; /* its space crossed the store's mark */
};

struct round {
	struct cowsnap_origin *origin;
	uint64_t offset;
	uint64_t end;
	uint64_t budget; /* credits not yet spent */
	struct cowsnap_map *busy_map;
	uint64_t busy_chunk;
	struct cs_trouble *trouble;
	bool more; /* credits or jobs ran out before the range did */
	size_t count;
	struct job job[JOBS];
};

static void note_trouble(
	struct round *round, const struct cs_head *head, uint64_t chunk, int reason)
{
	struct cs_trouble *trouble = round->trouble;

	if (trouble->head)
		return;
	trouble->head = head;
	trouble->chunk = chunk;
	trouble->reason = reason;
	trouble->no_space = false;
}

/* Space for a run, if need be from what dropped snapshots left. Not for ever: others may be as
 * quick to use what was freed, and this thread holds a claim. */
static int get_space(struct cowsnap_store *store, struct job *job, const struct cowsnap_run *run)
{
	int rc = -ENOSPC;

	job->run = *run;
	for (unsigned tries = 0; rc == -ENOSPC && tries < SPACE_TRIES; tries++) {
		if (tries && !cs_reclaim_for_space(store))
			break;
		rc = cs_store_alloc(
			store, run->count, &job->run.location, &job->run.count, &job->low_water);
	}
	return rc;
}

static void no_space(
	struct round *round, const struct cs_head *head, uint64_t chunk, uint64_t epoch)
{
	note_trouble(round, head, chunk, -ENOSPC);
	round->trouble->no_space = true;
	round->trouble->space_epoch = epoch;
}

/* Makes jobs of a claimed run; what finds no room among the jobs or in the store is aborted. */
static void place(struct round *round, const struct cs_head *head, struct cowsnap_run run)
{
	struct cowsnap_store *store = head->chain->store;
	uint64_t epoch = cs_store_space_epoch(store);

	while (run.count && round->count < JOBS && !round->trouble->head) {
		struct job *job = &round->job[round->count];
		uint64_t bytes;
		int rc = get_space(store, job, &run);

		if (rc == -ENOSPC)
			no_space(round, head, run.first, epoch);
		else if (rc)
			note_trouble(round, head, run.first, rc);
		if (rc)
			break;
		job->head = head;
		job->error = 0;
		round->count++;
		bytes = job->run.count << store->chunk_shift;
		round->budget -= bytes < round->budget ? bytes : round->budget;
		run.first += job->run.count;
		run.count -= job->run.count;
	}
	if (run.count) {
		cowsnap_map_abort(&head->newest->map, &run);
		round->more = true;
	}
}

/* Does anybody need a chunk that the newest map has not got? */
static bool needed(const struct cs_head *head, uint64_t chunk)
{
	bool wanted;

	if (cs_snapshot_live(head->newest))
		return true;
	wanted = cs_chain_needs(head->chain, head->newest, chunk);
	cs_reclaim_after_reading(head->chain->store);
	return wanted;
}

/* The first chunk that is not done: the one that a claim failed on. */
static uint64_t first_open(const struct cs_head *head, uint64_t chunk, uint64_t end)
{
	while (chunk < end && cowsnap_map_done(&head->newest->map, chunk, 1))
		chunk++;
	return chunk;
}

/* The newest snapshot is a ghost: what only it would need is done without data (C5). */
static void place_needed(struct round *round, const struct cs_head *head, struct cowsnap_run run)
{
	uint64_t end = run.first + run.count;

	while (run.first < end) {
		run.count = 1;
		run.location = COWSNAP_LOCATION_NONE;
		if (needed(head, run.first))
			place(round, head, run);
		else
			cowsnap_map_publish(&head->newest->map, &run);
		run.first++;
	}
}

static void gather(struct round *round, const struct cs_head *head)
{
	uint32_t shift = head->chain->store->chunk_shift;
	uint64_t chunk = round->offset >> shift;
	uint64_t end = ((round->end - 1) >> shift) + 1;

	/* Relaxed: who misses the end of the last snapshot copies once too often. */
	if (!atomic_load_explicit(&head->chain->live, memory_order_relaxed))
		return;
	while (chunk < end && round->count < JOBS && !round->trouble->head) {
		uint64_t most = round->budget >> shift;
		struct cowsnap_run run;
		int rc;

		if (!most && round->count)
			break;
		if (!most)
			most = 1;
		rc = cowsnap_map_claim(
			&head->newest->map, chunk, end - chunk < most ? end - chunk : most, &run);
		if (rc < 0) {
			chunk = first_open(head, chunk, end);
			if (chunk < end && needed(head, chunk)) {
				note_trouble(round, head, chunk, rc);
				return;
			}
			chunk++;
			continue;
		}
		if (rc == COWSNAP_CLAIM_NOTHING) {
			chunk += most;
			continue;
		}
		chunk = run.first + run.count;
		if (rc == COWSNAP_CLAIM_BUSY && !round->busy_map) {
			round->busy_map = &head->newest->map;
			round->busy_chunk = run.first;
		} else if (rc == COWSNAP_CLAIM_MINE) {
			if (cs_snapshot_live(head->newest))
				place(round, head, run);
			else
				place_needed(round, head, run);
		}
	}
	round->more |= chunk < end;
}

static void copy(struct round *round)
{
	struct cowsnap_origin *origin = round->origin;
	struct cowsnap_copy_target target[JOBS];

	for (size_t i = 0; i < round->count; i++) {
		const struct job *job = &round->job[i];
		struct cowsnap_store *store = job->head->chain->store;
		uint64_t from = job->run.first << store->chunk_shift;
		uint64_t length = job->run.count << store->chunk_shift;

		/* The last chunk of an origin may be a part of one. */
		if (length > origin->size_bytes - from)
			length = origin->size_bytes - from;
		target[i] = (struct cowsnap_copy_target){.device = store->device,
			.offset = job->run.location << store->chunk_shift,
			.source_offset = from,
			.length = length};
	}
	struct cs_copier_io io =
		cs_copier_run(origin->handle.ctx->copier, origin->device, target, round->count);
	cs_stats_add(origin->stats, CS_STAT_ORIGIN_READS, io.reads);
	cs_stats_add(origin->stats, CS_STAT_ORIGIN_BYTES, io.read_bytes);
	for (size_t i = 0; i < round->count; i++)
		round->job[i].error = target[i].error;
}

/* Jobs of one head follow each other: one commit for all of them that succeeded. */
static void commit(struct round *round)
{
	struct cowsnap_run run[JOBS];
	size_t from = 0, to;

	for (; from < round->count; from = to) {
		struct cowsnap_store *store = round->job[from].head->chain->store;
		size_t n = 0;
		int rc;

		for (to = from; to < round->count && round->job[to].head == round->job[from].head;
			to++) {
			if (!round->job[to].error)
				run[n++] = round->job[to].run;
		}
		rc = n ? cs_store_commit(store, run, n) : 0;
		for (size_t i = from; rc && i < to; i++) {
			if (!round->job[i].error)
				round->job[i].error = rc;
		}
	}
}

static void settle(struct round *round)
{
	struct cs_stats *stats = round->origin->stats;

	for (size_t i = 0; i < round->count; i++) {
		struct job *job = &round->job[i];
		struct cowsnap_store *store = job->head->chain->store;
		struct cowsnap_map *map = &job->head->newest->map;

		if (job->error) {
			cs_store_free(store, job->run.location, job->run.count);
			cowsnap_map_abort(map, &job->run);
			note_trouble(round, job->head, job->run.first, job->error);
			continue;
		}
		cowsnap_map_publish(map, &job->run);
		cs_stats_add(stats, CS_STAT_COPIED_CHUNKS, job->run.count);
		cs_stats_add(stats, CS_STAT_COPIED_BYTES, job->run.count << store->chunk_shift);
	}
}

struct busy_waiter {
	struct cowsnap_map_waiter waiter;
	struct cs_event woken;
};

static void busy_wake(struct cowsnap_map_waiter *waiter)
{
	cs_event_set(&cs_container_of(waiter, struct busy_waiter, waiter)->woken);
}

static void wait_busy(struct round *round)
{
	struct busy_waiter waiter = {.waiter.wake = busy_wake};

	cs_event_init(&waiter.woken);
	if (cowsnap_map_wait(round->busy_map, round->busy_chunk, &waiter.waiter))
		return;
	cs_stats_add(round->origin->stats, CS_STAT_CLAIM_WAITS, 1);
	cs_event_wait(&waiter.woken);
}

/* The most that the range can take: whole chunks of each store. */
static uint64_t bytes_wanted(const struct cs_heads *heads, uint64_t offset, uint64_t length)
{
	uint64_t want = 0;

	for (size_t i = 0; i < heads->count; i++) {
		uint32_t shift = heads->head[i].chain->store->chunk_shift;

		uint64_t chunks = ((offset + length - 1) >> shift) - (offset >> shift) + 1;

		if (chunks << shift > UINT64_MAX - want)
			return UINT64_MAX;
		want += chunks << shift;
	}
	return want;
}

int cs_save_round(struct cowsnap_origin *origin, const struct cs_heads *heads, uint64_t offset,
	uint64_t length, struct cs_trouble *trouble)
{
	struct cowsnap_ctx *ctx = origin->handle.ctx;
	struct round round;
	uint64_t granted, started_ns;
	bool waited = false;

	round.origin = origin;
	round.offset = offset;
	round.end = offset + length;
	round.busy_map = NULL;
	round.trouble = trouble;
	round.more = false;
	round.count = 0;
	trouble->head = NULL;
	granted = cs_copier_reserve(ctx->copier, bytes_wanted(heads, offset, length), &waited);
	if (waited)
		cs_stats_add(origin->stats, CS_STAT_CREDIT_WAITS, 1);
	round.budget = granted;
	started_ns = cs_now_ns(&ctx->base);
	for (size_t i = 0; i < heads->count; i++)
		gather(&round, &heads->head[i]);
	if (round.count) {
		copy(&round);
		commit(&round);
		settle(&round);
		cs_stats_copy(ctx->base.alloc, origin->stats, cs_now_ns(&ctx->base) - started_ns);
	}
	cs_copier_release(ctx->copier, granted);
	for (size_t i = 0; i < round.count; i++) {
		if (round.job[i].low_water)
			cs_event_store(round.job[i].head->chain->store, COWSNAP_EVENT_LOW_WATER, 0);
	}
	if (trouble->head || round.more)
		return 1;
	if (!round.busy_map)
		return 0;
	if (!round.count)
		wait_busy(&round);
	return 1;
}
