/* SPDX-License-Identifier: MIT
 *
 * Merging from a store with records: batches, in steps.
 *
 *   find     the newest records, as runs
 *   plan     who moves which of them; the throttle
 *   save     each has what others need saved
 *   move     claims and copies, some at a time; in a queue the store is asked for the next batch
 *            meanwhile
 *   forget   the origin is flushed, the records go, the chunks are settled; and on
 *
 * What a batch costs beside its copies does not depend on its length: a flush, a write of records
 * and perhaps a read, one after the other. So batches grow while that takes more than an eighth of
 * the copies, and shrink where it takes next to nothing, because who waits for a chunk waits for
 * its batch. Where the host throttles, its writes come first: batches stay short.
 *
 * Invariants: those of merge.c and merge_run.c, and:
 *  R1 The runs of a batch have no chunk in common: what is moved is what the newest record says.
 *  R2 Nothing of a batch is given up before its records are gone or it has failed; all of it is
 *     saved for others, and the throttle asked, before the first claim. So who waits for a chunk of
 *     it waits for I/O.
 *  R4 The store is asked one thing at a time.
 *
 * Locking: none over a step.
 *
 * Failure: the runs that are newer than those of a mover that failed are forgotten all the same.
 */
#include <errno.h>
#include <string.h>

#include "merge_move.h"
#include "snapshot.h"

#define BATCH_BYTES_MIN UINT64_C(1048576)
#define BATCH_BYTES_MAX UINT64_C(16777216)
/* Where others may have to save each run, and where a chunk may have two records. */
#define FEW_RUNS        256u
/* So many movers have work before one gets a second run. */
#define MOVERS_BUSY     16u
#define GROW_PART       8u
#define SHRINK_PART     32u

/* ---- Answers of the store -------------------------------------------------------------------- */

enum { ASKED, AWAITED, GIVEN };

static void ask(struct cs_merge_answer *answer, struct cs_moving *moving)
{
	answer->task = &moving->op->task;
	atomic_store_explicit(&answer->state, ASKED, memory_order_relaxed);
}

/* On any thread. If it is not awaited yet the call may be over as soon as it is given. */
static void give(struct cs_merge_answer *answer, int error)
{
	answer->error = error;
	/* Release and acquire: pairs with is_open. */
	if (atomic_exchange_explicit(&answer->state, GIVEN, memory_order_acq_rel) == AWAITED)
		cs_task_wake(answer->task);
}

/* Returns: true: the task is woken when it is given. */
static bool is_open(struct cs_merge_answer *answer)
{
	int state = ASKED;

	/* Release: the step; acquire: the answer; pairs with give. */
	return atomic_compare_exchange_strong_explicit(
		&answer->state, &state, AWAITED, memory_order_acq_rel, memory_order_acquire);
}

/* ---- The end of a batch ---------------------------------------------------------------------- */

/* Those who wait for the others of their batch are let go. @keep: of this run of it and those
 * behind it claims are kept. */
static void release_movers(struct cs_moving *moving, size_t keep)
{
	for (unsigned i = 0; i < moving->movers; i++) {
		struct cs_mover *mover = &moving->mover[i];
		size_t end = mover->batch + mover->parts;
		size_t kept = end > keep ? end - keep : 0;

		if (mover->stage == CS_MOVER_WORKS)
			continue;
		cs_mover_release(mover, kept < mover->parts ? (unsigned)kept : mover->parts);
		mover->stage = CS_MOVER_WORKS;
	}
}

static void end_batch(struct cs_moving *moving, size_t keep)
{
	release_movers(moving, keep);
	cs_copier_piece_ends(cs_moving_copier(moving));
	cs_merge_wake_waiting(moving->merge);
}

/* R3 */
static enum cs_step leave(struct cs_moving *moving)
{
	moving->step = leave;
	if (moving->looks && is_open(&moving->found))
		return CS_PARK;
	return cs_moving_go_to(moving, cs_moving_over);
}

static enum cs_step batch_failed(struct cs_moving *moving, int error)
{
	moving->error = error;
	end_batch(moving, moving->now->runs);
	return cs_moving_go_to(moving, leave);
}

/* ---- Forgetting ------------------------------------------------------------------------------ */

/* How long the next one is to be. One that was short for another reason says nothing. */
static void adapt(struct cs_moving *moving)
{
	struct cs_merge *m = moving->merge;
	uint64_t bytes = moving->now->chunks << cs_merge_shift(m);
	uint64_t copies_ns = moving->arrived_ns - moving->began_ns;
	uint64_t rest_ns = cs_monotonic_ns() - moving->arrived_ns;

	if (bytes <= m->batch_bytes / 2)
		return;
	if (rest_ns > copies_ns / GROW_PART && m->batch_bytes < BATCH_BYTES_MAX)
		m->batch_bytes *= 2;
	else if (rest_ns < copies_ns / SHRINK_PART && m->batch_bytes > BATCH_BYTES_MIN)
		m->batch_bytes /= 2;
}

/* The records are gone. A chunk that has an older one too counts once. */
static enum cs_step settle_batch(struct cs_moving *moving)
{
	const struct cs_merge_batch *now = moving->now;
	struct cs_merge *m = moving->merge;
	size_t settled = 0;
	int rc = 0;

	adapt(moving);
	while (settled < now->runs && !rc) {
		rc = cs_merge_settle_over(m, &now->run[settled]);
		settled += !rc;
	}
	/* What is not settled nobody may write in place any more: it stays claimed until there is
	 * memory. */
	m->forgotten_count = now->runs - settled;
	memcpy(m->forgotten, &now->run[settled], m->forgotten_count * sizeof(*m->forgotten));
	if (rc)
		moving->error = rc;
	end_batch(moving, settled);
	return cs_moving_go_to(moving, cs_merge_batch);
}

static enum cs_step forgotten(struct cs_moving *moving)
{
	if (is_open(&moving->forgot))
		return CS_PARK;
	if (moving->forgot.error)
		return batch_failed(moving, moving->forgot.error);
	cs_moving_count_down(moving, moving->now->chunks << cs_merge_shift(moving->merge));
	return settle_batch(moving);
}

static void commit_done(struct cowsnap_commit *commit, int error)
{
	give(&cs_container_of(commit, struct cs_moving, commit)->forgot, error);
}

/* M3, R4 */
static enum cs_step forget(struct cs_moving *moving)
{
	if (moving->looks && is_open(&moving->found))
		return CS_PARK;
	if (moving->result)
		return batch_failed(moving, moving->result);
	moving->commit = (struct cowsnap_commit){.runs = moving->now->run,
		.count = moving->now->runs,
		.done = commit_done,
		.queue = moving->op->task.queue};
	ask(&moving->forgot, moving);
	moving->step = forgotten;
	cs_store_start_forget(cs_moving_store(moving), &moving->commit);
	return CS_GO_ON;
}

/* ---- Moving ---------------------------------------------------------------------------------- */

/* Somebody has failed, or not begun. The newest runs before his, of which all have come to @stage,
 * can go on; the others are given up. */
static void cut_batch(struct cs_moving *moving, enum cs_mover_stage stage)
{
	struct cs_merge_batch *now = moving->now;

	for (unsigned i = 0; i < moving->movers; i++) {
		const struct cs_mover *mover = &moving->mover[i];

		if (mover->stage != stage && mover->batch < now->runs)
			now->runs = mover->batch;
	}
	for (unsigned i = 0; i < moving->movers; i++) {
		struct cs_mover *mover = &moving->mover[i];

		if (mover->stage != CS_MOVER_WORKS && mover->batch >= now->runs) {
			cs_mover_release(mover, 0);
			mover->stage = CS_MOVER_WORKS;
		}
	}
}

static enum cs_step moved(struct cs_moving *moving)
{
	if (moving->open)
		return cs_moving_await(moving, moved);
	moving->arrived_ns = cs_monotonic_ns();
	if (cs_moving_has_ended(moving))
		cut_batch(moving, CS_MOVER_ARRIVED);
	return moving->now->runs ? cs_moving_flush(moving, forget)
				 : batch_failed(moving, moving->error);
}

/* No more at a time than is good for the caches. When a copy has failed nobody else begins; where
 * it was a save, the batch was cut before. */
static enum cs_step move(struct cs_moving *moving)
{
	moving->step = move;
	while (moving->started < moving->movers && !moving->op->cancelled &&
		(!moving->error || moving->save_failed)) {
		struct cs_mover *mover = &moving->mover[moving->started];

		if (moving->open_bytes >= CS_MOVERS_BYTES)
			return cs_moving_await(moving, move);
		if (cs_moving_rests(moving))
			return CS_PARK;
		moving->started++;
		if (mover->stage != CS_MOVER_SAVED)
			continue;
		moving->at_once += mover->bytes;
		cs_mover_go_on(mover);
	}
	return cs_moving_go_to(moving, moved);
}

static void look(struct cs_moving *moving, uint64_t skip);

/* R2 */
static enum cs_step saved(struct cs_moving *moving)
{
	if (moving->open)
		return cs_moving_await(moving, saved);
	if (moving->op->cancelled)
		moving->now->runs = 0;
	if (cs_moving_has_ended(moving))
		cut_batch(moving, CS_MOVER_SAVED);
	else if (moving->op->task.queue && moving->left > moving->admit_bytes)
		look(moving, moving->now->chunks);
	moving->save_failed = moving->error;
	moving->began_ns = cs_monotonic_ns();
	moving->started = 0;
	return cs_moving_go_to(moving, move);
}

static enum cs_step start(struct cs_moving *moving)
{
	cs_copier_piece_begins(cs_moving_copier(moving));
	/* After a failure nobody else is asked for anything. */
	for (unsigned i = 0; i < moving->movers && !moving->error; i++)
		cs_mover_start(&moving->mover[i]);
	return cs_moving_go_to(moving, saved);
}

/* ---- Planning -------------------------------------------------------------------------------- */

/* How many runs one mover gets. Where others may need some, each is a bracket of its own. */
static size_t runs_each(const struct cs_moving *moving)
{
	size_t each = moving->now->runs / MOVERS_BUSY;

	if (!moving->alone || each < 1)
		return 1;
	return each < CS_MOVER_PARTS ? each : CS_MOVER_PARTS;
}

/* How many of the runs from the @first on go to one mover; 0: not even that one, whole. */
static size_t fit(const struct cs_moving *moving, size_t first, size_t each)
{
	const struct cs_merge_batch *now = moving->now;
	uint64_t left = cs_mover_chunks(moving, UINT64_MAX);
	size_t count = 0;

	while (count < each && first + count < now->runs && now->run[first + count].count <= left)
		left -= now->run[first + count++].count;
	return count;
}

static struct cs_mover *next_mover(struct cs_moving *moving, size_t batch)
{
	struct cs_mover *mover = &moving->mover[moving->movers++];

	mover->moving = moving;
	mover->batch = batch;
	mover->chunks = 0;
	mover->stage = CS_MOVER_WORKS;
	mover->save = NULL;
	return mover;
}

/* The oldest first, which mostly lie in the store in that order. */
static void plan_whole(struct cs_moving *moving, size_t batch, size_t count)
{
	struct cs_mover *mover = next_mover(moving, batch);

	mover->parts = (unsigned)count;
	for (size_t i = 0; i < count; i++) {
		mover->part[i] = moving->now->run[batch + count - 1 - i];
		mover->chunks += mover->part[i].count;
	}
	mover->run = mover->part[0];
}

/* Returns: false: there are not enough movers. */
static bool plan_pieces(struct cs_moving *moving, size_t batch)
{
	const struct cowsnap_run *run = &moving->now->run[batch];
	uint64_t most = cs_mover_chunks(moving, UINT64_MAX), count;

	if ((run->count + most - 1) / most > CS_MOVERS - moving->movers)
		return false;
	for (uint64_t done = 0; done < run->count; done += count) {
		struct cs_mover *mover = next_mover(moving, batch);

		count = run->count - done < most ? run->count - done : most;
		mover->run = *run;
		mover->run.first += done;
		mover->run.count = count;
		if (run->location != COWSNAP_LOCATION_ZERO)
			mover->run.location += done;
		mover->part[0] = mover->run;
		mover->parts = 1;
		mover->chunks = count;
	}
	return true;
}

/* Who moves what. A batch for which there are not enough movers is shortened. */
static void plan(struct cs_moving *moving)
{
	struct cs_merge_batch *now = moving->now;
	size_t each = runs_each(moving), batch = 0, count;

	moving->movers = 0;
	while (batch < now->runs && moving->movers < CS_MOVERS) {
		count = fit(moving, batch, each);
		if (count)
			plan_whole(moving, batch, count);
		else if (!plan_pieces(moving, batch))
			break;
		batch += count ? count : 1;
	}
	now->runs = batch;
	now->chunks = 0;
	for (size_t i = 0; i < now->runs; i++)
		now->chunks += now->run[i].count;
}

/* ---- Finding --------------------------------------------------------------------------------- */

static void newest_done(struct cowsnap_newest *newest, int error)
{
	give(&cs_container_of(newest, struct cs_moving, newest)->found, error);
}

/* Asks for what comes when the newest @skip records are gone. */
static void look(struct cs_moving *moving, uint64_t skip)
{
	struct cowsnap_store *store = cs_moving_store(moving);
	struct cs_merge *m = moving->merge;
	bool throttled = cs_copier_is_throttled(cs_moving_copier(moving));
	uint64_t longest = throttled ? BATCH_BYTES_MIN : m->batch_bytes;
	uint64_t bytes = moving->left < longest ? moving->left : longest;
	uint64_t chunks = bytes >> cs_merge_shift(m);
	bool few = !moving->alone || (store->flags & COWSNAP_STORE_ZEROES);

	if (chunks > CS_MERGE_BATCH)
		chunks = CS_MERGE_BATCH;
	moving->newest = (struct cowsnap_newest){.skip = skip,
		.most = chunks ? chunks : 1,
		.runs = moving->ahead->run,
		.room = few ? FEW_RUNS : CS_MERGE_BATCH,
		.done = newest_done,
		.queue = moving->op->task.queue};
	moving->looks = true;
	ask(&moving->found, moving);
	cs_store_start_newest(store, &moving->newest);
}

/* R1. A chunk may have two records: zeroes, and then space. Returns: is none of these in a run that
 * was added before? */
static bool add(struct cs_moving *moving, const struct cowsnap_run *run)
{
	size_t mask = moving->seen_slots - 1;

	for (uint64_t chunk = run->first; chunk < run->first + run->count; chunk++) {
		size_t at = (size_t)(chunk * UINT64_C(0x9e3779b97f4a7c15) >> 32) & mask;

		for (; moving->seen[at]; at = (at + 1) & mask) {
			if (moving->seen[at] == chunk + 1)
				return false;
		}
		moving->seen[at] = chunk + 1;
	}
	return true;
}

/* Twice as many slots as chunks at least. */
static void clear_seen(struct cs_moving *moving)
{
	uint64_t chunks = 0;

	for (size_t i = 0; i < moving->newest.count; i++)
		chunks += moving->newest.runs[i].count;
	moving->seen_slots = 64;
	while (moving->seen_slots < 2 * chunks)
		moving->seen_slots *= 2;
	memset(moving->seen, 0, moving->seen_slots * sizeof(*moving->seen));
}

/* What was found, up to a run that has a chunk for the second time. Returns: 0, -EIO. */
static int take(struct cs_moving *moving)
{
	uint64_t chunks = cs_snapshot_chunks(moving->merge->snapshot);
	struct cs_merge_batch *b = moving->ahead;
	int rc = moving->found.error;

	if (!rc)
		rc = cs_store_check_newest(cs_moving_store(moving), &moving->newest);
	if (rc)
		return rc;
	clear_seen(moving);
	for (b->runs = 0; b->runs < moving->newest.count; b->runs++) {
		const struct cowsnap_run *run = &b->run[b->runs];

		if (run->first >= chunks || run->count > chunks - run->first)
			return -EIO;
		if (!add(moving, run))
			break;
	}
	moving->ahead = moving->now;
	moving->now = b;
	return 0;
}

static enum cs_step found(struct cs_moving *moving)
{
	moving->step = found;
	if (is_open(&moving->found))
		return CS_PARK;
	moving->looks = false;
	if (moving->op->cancelled)
		return cs_moving_go_to(moving, cs_moving_over);
	moving->error = take(moving);
	moving->all = !moving->error && !moving->now->runs;
	if (moving->error || moving->all)
		return cs_moving_go_to(moving, cs_moving_over);
	plan(moving);
	return cs_moving_admit(moving, moving->now->chunks << cs_merge_shift(moving->merge), start);
}

enum cs_step cs_merge_batch(struct cs_moving *moving)
{
	struct cs_merge *m = moving->merge;

	if (cs_moving_stops(moving))
		return cs_moving_go_to(moving, leave);
	if (cs_moving_rests(moving))
		return CS_PARK;
	if (!m->batch_bytes)
		m->batch_bytes = BATCH_BYTES_MIN;
	moving->error = cs_merge_settle_forgotten(m);
	if (moving->error)
		return cs_moving_go_to(moving, leave);
	if (!moving->looks)
		look(moving, 0);
	return cs_moving_go_to(moving, found);
}
