/* SPDX-License-Identifier: MIT
 *
 * Merging: how some chunks are moved, in steps.
 *
 *   enter    the origin's gate, as a bracket
 *   save     what others need of it, by the steps of save.c; with records it then waits until all
 *            of its batch have
 *   reserve  credits
 *   claim    in `busy`
 *   copy     what of it is not settled
 *   settle   without records; with records it has *arrived*, and keeps gate and claims until the
 *            records are gone: see merge_batch.c
 *
 * Invariants: beside those of merge.c,
 *  V1 Who waits for a record to save with is outside of the gate: who has one may wait for space
 *     that is freed only after an older generation has ended.
 *  V2 Credits are taken before the first claim, and given back after the copy: who has arrived
 *     holds none while others of his batch wait for theirs.
 *
 * Locking: none; all is one thread's.
 *
 * Failure: everything is given back, and the error is the call's.
 */
#include <errno.h>
#include <string.h>

#include "merge_move.h"

static struct cs_merge *merge_of(const struct cs_mover *mover)
{
	return mover->moving->merge;
}

static struct cowsnap_copier *copier_of(const struct cs_mover *mover)
{
	return cs_moving_copier(mover->moving);
}

/* ---- Movers ---------------------------------------------------------------------------------- */

void cs_movers_init(struct cs_moving *moving)
{
	moving->error = 0;
	moving->open = 0;
	moving->movers = 0;
	moving->stopped = false;
	moving->open_bytes = 0;
	moving->waits = false;
	moving->used = 0;
	moving->free = NULL;
	moving->saves_used = moving->free_saves = 0;
	moving->want_save = NULL;
	moving->want_save_last = &moving->want_save;
	memset(&moving->flow, 0, sizeof(moving->flow));
}

struct cs_mover *cs_mover_get(struct cs_moving *moving)
{
	struct cs_mover *mover = moving->free;

	if (mover)
		moving->free = mover->next;
	else if (moving->used < CS_MOVERS)
		mover = &moving->mover[moving->used++];
	if (mover) {
		mover->moving = moving;
		mover->save = NULL;
	}
	return mover;
}

bool cs_mover_is_free(const struct cs_moving *moving)
{
	return moving->free || moving->used < CS_MOVERS;
}

void cs_mover_put(struct cs_mover *mover)
{
	mover->next = mover->moving->free;
	mover->moving->free = mover;
}

static void wake_call(const struct cs_mover *mover)
{
	struct cs_moving *moving = mover->moving;

	moving->open--;
	moving->open_bytes -= mover->bytes;
	/* Nobody has the throttle let go of bytes only to hear of a failure. */
	if (moving->error && moving->op->abandon)
		moving->op->abandon(moving->op);
	if (!moving->waits)
		return;
	moving->waits = false;
	cs_task_wake(&moving->op->task);
}

static void give_credit(struct cs_mover *mover)
{
	if (mover->credited)
		cs_copier_release(copier_of(mover), mover->credit.bytes);
	mover->credited = false;
}

/* What is claimed of it at once: without records the run, so that nobody writes between the parts
 * either; with records each part. */
static const struct cowsnap_run *claim_of(const struct cs_mover *mover, unsigned i)
{
	return merge_of(mover)->records ? &mover->part[i] : &mover->run;
}

static unsigned claims_of(const struct cs_mover *mover)
{
	return merge_of(mover)->records ? mover->parts : 1;
}

void cs_mover_release(struct cs_mover *mover, unsigned keep)
{
	struct cs_merge *m = merge_of(mover);

	for (unsigned i = keep; i < mover->claims; i++)
		cs_merge_unclaim(m, claim_of(mover, i));
	if (mover->claimed) {
		const struct cowsnap_run held = {
			.first = claim_of(mover, mover->claims)->first, .count = mover->claimed};

		cs_merge_unclaim(m, &held);
	}
	if (mover->inside)
		cs_gate_cancel(&m->origin->gate, &mover->op.pass);
	if (!m->records) /* a batch has those that it counts */
		cs_mover_put(mover);
}

static enum cs_step ended(struct cs_mover *mover, int error)
{
	struct cs_moving *moving = mover->moving;
	struct cs_merge *m = moving->merge;

	give_credit(mover);
	if (error && !moving->error)
		moving->error = error;
	if (error && m->cursor > mover->run.first)
		m->cursor = mover->run.first;
	if (!m->records)
		cs_copier_piece_ends(copier_of(mover));
	cs_mover_release(mover, 0);
	wake_call(mover);
	return CS_DONE;
}

/* ---- The copy -------------------------------------------------------------------------------- */

static enum cs_step next_copy(struct cs_mover *mover);

/* Without records all parts are in one group of 64 chunks. */
static int settle_copied(struct cs_mover *mover)
{
	uint64_t first = mover->moved[0].first & ~UINT64_C(63), mask = 0;

	for (size_t i = 0; i < mover->copy.count; i++) {
		const struct cowsnap_run *run = &mover->moved[i];

		if (!mover->target[i].error)
			mask |= ~UINT64_C(0) >> (64 - run->count) << (run->first - first);
	}
	return cs_merge_settle_mask(merge_of(mover), first, mask);
}

static enum cs_step copied(struct cs_mover *mover)
{
	int rc = merge_of(mover)->records ? 0 : settle_copied(mover);

	for (size_t i = 0; i < mover->copy.count; i++) {
		if (!rc)
			rc = mover->target[i].error;
	}
	if (rc)
		return ended(mover, rc);
	mover->step = next_copy;
	return CS_GO_ON;
}

static enum cs_step all_copied(struct cs_mover *mover)
{
	if (!merge_of(mover)->records)
		return ended(mover, 0);
	give_credit(mover);
	mover->stage = CS_MOVER_ARRIVED;
	wake_call(mover);
	return CS_DONE;
}

/* The next chunks that are not settled and lie together; count 0: there are none. What is claimed
 * and not settled is where the parts say: M1, M2. */
static struct cowsnap_run next_unsettled(struct cs_mover *mover)
{
	const struct cs_bits *settled = &merge_of(mover)->settled;
	struct cowsnap_run run = {0};

	for (; mover->at < mover->parts; mover->at++, mover->at_chunk = 0) {
		const struct cowsnap_run *part = &mover->part[mover->at];
		uint64_t end = part->first + part->count;

		run.first = mover->at_chunk > part->first ? mover->at_chunk : part->first;
		while (run.first < end && cs_bits_test(settled, run.first))
			run.first++;
		while (run.first + run.count < end && !cs_bits_test(settled, run.first + run.count))
			run.count++;
		run.location = part->location == COWSNAP_LOCATION_ZERO
				       ? part->location
				       : part->location + (run.first - part->first);
		mover->at_chunk = run.first + run.count;
		if (run.count)
			break;
	}
	return run;
}

/* Zeroes are a copy of their own: they have no source. */
static enum cs_step next_copy(struct cs_mover *mover)
{
	struct cs_merge *m = merge_of(mover);
	unsigned count = 0;

	while (count < CS_MOVER_PARTS) {
		struct cowsnap_run run = next_unsettled(mover);
		bool zero = run.location == COWSNAP_LOCATION_ZERO;

		if (!run.count)
			break;
		if (zero && count) {
			mover->at_chunk = run.first;
			break;
		}
		cs_merge_set_target(m, &run, &mover->target[count]);
		mover->moved[count++] = run;
		mover->copy.source = zero ? NULL : m->snapshot->chain->store->device;
		if (zero)
			break;
	}
	if (!count)
		return all_copied(mover);
	mover->copy.targets = mover->target;
	mover->copy.count = count;
	mover->copy.background = false;
	mover->step = copied;
	return cs_copier_start(copier_of(mover), &mover->copy, &mover->op.task) ? CS_GO_ON
										: CS_PARK;
}

/* ---- The claim ------------------------------------------------------------------------------- */

static enum cs_step claim(struct cs_mover *mover)
{
	mover->credited = true;
	mover->step = claim;
	mover->claimant.task = &mover->op.task;
	while (mover->claims < claims_of(mover)) {
		const struct cowsnap_run *run = claim_of(mover, mover->claims);
		struct cowsnap_run got;
		enum cs_step step;
		int rc = cs_merge_claim(merge_of(mover), run->first + mover->claimed,
			run->count - mover->claimed, &got, &mover->claimant, &step);

		if (rc == COWSNAP_CLAIM_BUSY)
			return step;
		if (rc)
			return ended(mover, rc);
		mover->claimed = got.first + got.count - run->first;
		if (mover->claimed == run->count) {
			mover->claimed = 0;
			mover->claims++;
		}
	}
	return next_copy(mover);
}

static enum cs_step reserve(struct cs_mover *mover)
{
	mover->step = claim;
	return cs_copier_reserve(copier_of(mover), &mover->moving->flow, &mover->credit,
		       mover->bytes, &mover->op.task)
		       ? CS_GO_ON
		       : CS_PARK;
}

/* With records nobody of a batch has a claim while another one saves: that may wait for a host, and
 * who waits for a claim is to wait for I/O only. */
static enum cs_step saved(struct cs_mover *mover)
{
	if (!merge_of(mover)->records)
		return reserve(mover);
	mover->stage = CS_MOVER_SAVED;
	wake_call(mover);
	return CS_DONE;
}

/* ---- What others need ------------------------------------------------------------------------ */

static bool get_save(struct cs_mover *mover)
{
	struct cs_moving *moving = mover->moving;

	if (mover->save)
		return true;
	if (moving->free_saves)
		mover->save = moving->free_save[--moving->free_saves];
	else if (moving->saves_used < CS_MOVER_SAVES)
		mover->save = &moving->save[moving->saves_used++];
	return mover->save;
}

static void put_save(struct cs_mover *mover)
{
	struct cs_moving *moving = mover->moving;
	struct cs_mover *next = moving->want_save;

	if (!next) {
		moving->free_save[moving->free_saves++] = mover->save;
	} else {
		moving->want_save = next->next;
		if (!moving->want_save)
			moving->want_save_last = &moving->want_save;
		next->save = mover->save;
		cs_task_wake(&next->op.task);
	}
	mover->save = NULL;
}

static void abandoned(struct cs_save *save)
{
	struct cs_mover *mover = cs_container_of(save->op, struct cs_mover, op);

	cs_queue_untime(&mover->op.task);
	mover->op.abandon = NULL;
	put_save(mover);
	mover->inside = false;
	ended(mover, -ECANCELED);
}

void cs_movers_stop(struct cs_moving *moving)
{
	unsigned count = moving->merge->records ? moving->movers : moving->used;

	if (moving->stopped)
		return;
	moving->stopped = true;
	for (unsigned i = 0; i < count; i++) {
		struct cs_op *op = &moving->mover[i].op;

		op->cancelled = true;
		if (moving->mover[i].save && op->abandon)
			op->abandon(op);
	}
}

static enum cs_step save(struct cs_mover *mover)
{
	enum cs_step step = cs_save_run(mover->save);

	if (step == CS_PARK)
		return CS_PARK;
	mover->op.abandon = NULL;
	put_save(mover);
	if (!mover->op.error)
		return saved(mover);
	mover->inside = false; /* the steps have left the gate */
	return ended(mover, mover->op.error);
}

static enum cs_step enter(struct cs_mover *mover)
{
	struct cowsnap_origin *origin = mover->op.origin;
	struct cs_moving *moving = mover->moving;
	struct cs_heads *heads;

	/* It may have waited for a record. */
	if (mover->op.cancelled) {
		if (mover->save)
			put_save(mover);
		return ended(mover, -ECANCELED);
	}
	cs_gate_enter(&origin->gate, &mover->op.pass);
	heads = cs_origin_heads(origin, mover->op.pass.slot);
	/* What lies between the parts is not the merging snapshot's to be told of: it has not
	 * changed. */
	if (moving->alone || !cs_merge_others_need(heads, mover->op.offset, mover->op.length)) {
		if (mover->save)
			put_save(mover);
		mover->inside = true;
		return saved(mover);
	}
	if (!get_save(mover)) {
		cs_gate_cancel(&origin->gate, &mover->op.pass); /* V1 */
		mover->next = NULL;
		*moving->want_save_last = mover;
		moving->want_save_last = &mover->next;
		return CS_PARK;
	}
	mover->inside = true;
	cs_save_init(mover->save, &mover->op, heads, cs_save_look);
	mover->save->moving = true;
	mover->save->abandoned = abandoned;
	mover->op.turn.record = mover->save; /* where its steps look for it */
	mover->step = save;
	return CS_GO_ON;
}

/* ---- Going on -------------------------------------------------------------------------------- */

/* Returns: CS_PARK or CS_DONE; then it may be at work on something else soon. */
static enum cs_step go_on(struct cs_mover *mover)
{
	enum cs_step step;

	do
		step = mover->step(mover);
	while (step == CS_GO_ON);
	return step;
}

static void run_on(struct cs_task *task)
{
	struct cs_mover *mover = cs_container_of(cs_op_of_task(task), struct cs_mover, op);

	if (go_on(mover) == CS_PARK)
		cs_queue_time(task->queue, task);
}

static void set_going(struct cs_mover *mover)
{
	struct cs_task *task = &mover->op.task;

	mover->moving->open++;
	mover->moving->open_bytes += mover->bytes;
	if (task->queue) {
		run_on(task);
		return;
	}
	while (go_on(mover) == CS_PARK)
		cs_task_sleep(task);
}

void cs_mover_start(struct cs_mover *mover)
{
	struct cs_moving *moving = mover->moving;
	struct cs_merge *m = moving->merge;
	struct cs_task *task = &mover->op.task;
	uint64_t at = mover->run.first << cs_merge_shift(m);
	uint64_t length = mover->run.count << cs_merge_shift(m), size = m->snapshot->size_bytes;

	cs_task_init(task, moving->op->task.queue, run_on);
	mover->op.origin = m->origin;
	mover->op.offset = at;
	mover->op.length = length < size - at ? length : size - at;
	mover->bytes = m->records ? mover->chunks << cs_merge_shift(m) : mover->op.length;
	mover->op.error = 0;
	mover->op.cancelled = false;
	mover->op.abandon = NULL;
	mover->stage = CS_MOVER_WORKS;
	mover->inside = mover->credited = false;
	mover->save = NULL;
	mover->claims = 0;
	mover->claimed = 0;
	mover->at = 0;
	mover->at_chunk = 0;
	mover->step = enter;
	set_going(mover);
}

void cs_mover_go_on(struct cs_mover *mover)
{
	mover->stage = CS_MOVER_WORKS;
	mover->step = reserve;
	set_going(mover);
}
