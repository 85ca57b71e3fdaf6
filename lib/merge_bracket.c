/* SPDX-License-Identifier: MIT
 *
 * Merging: what a bracket does before its write may begin. It notes which chunks nobody has to
 * move; its range, widened to whole chunks, is saved for others by save.c; then it moves the rest,
 * or waits until whoever runs the merge has. Invariants, locking and failure: see merge.c.
 */
#include "merge.h"

bool cs_merge_await_ready(struct cs_merge *m, struct cs_waiter *waiter)
{
	bool waits;

	if (cs_merge_is_ready(m))
		return false;
	cs_mutex_lock(&m->lock);
	waits = !cs_merge_is_ready(m);
	if (waits)
		cs_waitlist_add(&m->waiting, waiter);
	cs_mutex_unlock(&m->lock);
	return waits;
}

bool cs_merge_forsake(struct cs_merge *m, struct cs_waiter *waiter)
{
	bool waited;

	cs_mutex_lock(&m->lock);
	waited = cs_waitlist_remove(&m->waiting, waiter);
	cs_mutex_unlock(&m->lock);
	return waited;
}

static struct cs_merge *merge_of(const struct cs_save *save)
{
	return save->heads->merge;
}

static void abandon_wait(struct cs_op *op)
{
	struct cs_save *save = op->turn.record;

	if (cs_merge_forsake(merge_of(save), &op->task.waiter))
		cs_save_abandoned(save);
}

static enum cs_step look_again(struct cs_save *save)
{
	save->op->abandon = NULL;
	return cs_save_look(save);
}

/* Until the merge has moved on, or @ready only: is ready. */
static enum cs_step wait_for_merge(struct cs_save *save, uint64_t chunk, bool ready)
{
	struct cs_merge *m = merge_of(save);
	bool parks;

	/* Cancelled while it did something that is not abandoned: nobody would wake it. */
	if (save->op->cancelled)
		return cs_save_fail(save, -ECANCELED);
	save->step = look_again;
	save->op->abandon = abandon_wait;
	cs_mutex_lock(&m->lock);
	parks = ready ? !cs_merge_is_ready(m)
		      : !cs_bits_test(&m->settled, chunk) &&
				!atomic_load_explicit(&m->ended, memory_order_relaxed);
	if (parks)
		cs_waitlist_add(&m->waiting, &save->op->task.waiter);
	cs_mutex_unlock(&m->lock);
	return parks ? CS_PARK : CS_GO_ON;
}

static enum cs_step wait_for_claim(struct cs_save *save, uint64_t chunk)
{
	save->step = look_again;
	save->busy.wake = cs_save_busy_woken;
	return cowsnap_map_wait(&merge_of(save)->busy, chunk, &save->busy) ? CS_GO_ON : CS_PARK;
}

static void chunks_of(
	const struct cs_save *save, const struct cs_merge *m, uint64_t *chunk, uint64_t *end)
{
	uint32_t shift = cs_merge_shift(m);
	uint64_t chunks = cs_snapshot_chunks(m->snapshot);

	*chunk = save->op->offset >> shift;
	*end = ((save->op->offset + save->op->length - 1) >> shift) + 1;
	if (*end > chunks)
		*end = chunks;
}

static bool next_unsettled(const struct cs_merge *m, uint64_t *chunk, uint64_t end)
{
	while (*chunk < end && cs_bits_test(&m->settled, *chunk))
		++*chunk;
	return *chunk < end;
}

/* Notes what nobody has anything to move for, before it may be saved into a map. Returns: CS_DONE:
 * all of that was noted. */
static enum cs_step prepare(struct cs_save *save)
{
	struct cs_merge *m = merge_of(save);
	uint64_t chunk, end, location;

	/* Acquire: pairs with set_ready. */
	if (!atomic_load_explicit(&m->ready, memory_order_acquire))
		return wait_for_merge(save, 0, true);
	chunks_of(save, m, &chunk, &end);
	for (; next_unsettled(m, &chunk, end); chunk++) {
		struct cowsnap_run run;
		int rc;

		if (cs_merge_lookup(m, chunk, &location))
			continue;
		rc = cowsnap_map_claim(&m->busy, chunk, 1, &run);
		if (rc == COWSNAP_CLAIM_BUSY)
			return wait_for_claim(save, chunk);
		if (rc >= 0 && !cs_merge_lookup(m, chunk, &location))
			rc = cs_bits_set(&m->settled, chunk, 1);
		if (rc >= 0)
			cs_merge_unclaim(m, &run);
		if (rc < 0)
			return cs_save_fail(save, rc);
	}
	return CS_DONE;
}

static enum cs_step chunk_moved(struct cs_save *save)
{
	struct cs_merge *m = merge_of(save);
	int rc = save->target[0].error;

	if (!rc)
		rc = cs_bits_set(&m->settled, save->run[0].first, 1);
	cs_merge_unclaim(m, &save->run[0]);
	if (rc)
		return cs_save_fail(save, rc);
	cs_merge_count(m, 1);
	return look_again(save);
}

/* All that others need of the range is saved: moves its first chunk that has to be, M1. */
static enum cs_step settle(struct cs_save *save)
{
	struct cs_merge *m = merge_of(save);
	uint64_t chunk, end, location;
	int rc;

	chunks_of(save, m, &chunk, &end);
	if (!next_unsettled(m, &chunk, end))
		return CS_DONE;
	if (m->records)
		return wait_for_merge(save, chunk, false);
	rc = cowsnap_map_claim(&m->busy, chunk, 1, &save->run[0]);
	if (rc == COWSNAP_CLAIM_BUSY)
		return wait_for_claim(save, chunk);
	if (rc < 0)
		return cs_save_fail(save, rc);
	if (!cs_merge_lookup(m, chunk, &location)) {
		cs_merge_unclaim(m, &save->run[0]);
		return look_again(save);
	}
	save->run[0].location = location;
	cs_merge_set_copy(m, &save->run[0], &save->copy, save->target);
	save->step = chunk_moved;
	if (cs_copier_start(m->origin->handle.ctx->copier, &save->copy, &save->op->task))
		return chunk_moved(save);
	return CS_PARK;
}

static bool taken_back(const struct cs_merge *m)
{
	/* Acquire: the new heads; pairs with cs_merge_retire. */
	return atomic_load_explicit(&m->ended, memory_order_acquire) &&
	       !atomic_load_explicit(&m->ready, memory_order_relaxed);
}

/* Is all of the range settled? Of one that was taken back nothing is: its heads lack a chain. */
static bool is_settled(const struct cs_merge *m, uint64_t offset, uint64_t length)
{
	uint32_t shift = cs_merge_shift(m);
	uint64_t chunk = offset >> shift, end = ((offset + length - 1) >> shift) + 1;

	if (end > cs_snapshot_chunks(m->snapshot))
		end = cs_snapshot_chunks(m->snapshot);
	/* Acquire: pairs with set_ready. */
	if (!atomic_load_explicit(&m->ready, memory_order_acquire))
		return false;
	return atomic_load_explicit(&m->ended, memory_order_relaxed) ||
	       !next_unsettled(m, &chunk, end);
}

/* Others need all of each chunk that is moved. */
static void widen(struct cs_save *save)
{
	struct cs_merge *m = merge_of(save);
	uint64_t mask = (UINT64_C(1) << cs_merge_shift(m)) - 1;
	uint64_t size = cs_origin_size(m->origin), end = save->op->offset + save->op->length;

	save->op->offset &= ~mask;
	end = (end + mask) & ~mask;
	save->op->length = (end < size ? end : size) - save->op->offset;
}

const struct cs_merge_ops cs_merge_ops = {.taken_back = taken_back,
	.is_settled = is_settled,
	.widen = widen,
	.prepare = prepare,
	.settle = settle};
