/* SPDX-License-Identifier: MIT
 *
 * Trouble: a chunk could not be saved. Who loses?
 *
 * Only the snapshots that need this preimage have a say. First the write waits, for as long as the
 * most patient of them allows: for space, or to try a failed copy again. Then those that want to be
 * asked are asked. One that chose "the write loses" decides for all of them, since a write that
 * fails hurts no snapshot; else each becomes invalid. A persistent store that cannot record that
 * makes the write fail in any case: after a crash the snapshot would look whole.
 *
 * Invariants: no claim and no credits are held here, whatever the wait. A snapshot is given up only
 * if it needs the chunk, and before the write is released.
 *
 * Locking: none held across the host's callbacks. The store's read gate is: it keeps the snapshots
 * that are walked over in memory.
 *
 * Failure: this is where it is dealt with; it leads back to another look, or to the write's error.
 */
#include "origin.h"

#define RETRIES_MAX  8u
#define PAUSE_MAX_NS UINT64_C(1000000000)

struct verdict {
	const struct cs_trouble *trouble;
	uint64_t offset;
	uint64_t length;
	uint64_t wait_ns;
	bool needed; /* by somebody */
	bool asked;
	bool write_loses;
	bool retry;
};

/* How much of it the snapshot has, which may be shorter than its origin is now. */
static uint64_t length_in(const struct cowsnap_snapshot *snapshot, const struct verdict *verdict)
{
	uint64_t left = snapshot->size_bytes - verdict->offset;

	return verdict->length < left ? verdict->length : left;
}

static void longest_wait(void *user, struct cowsnap_snapshot *snapshot)
{
	struct verdict *verdict = user;

	verdict->needed = true;
	if (snapshot->wait_ns > verdict->wait_ns)
		verdict->wait_ns = snapshot->wait_ns;
}

static void ask(void *user, struct cowsnap_snapshot *snapshot)
{
	struct verdict *verdict = user;
	struct cowsnap_trouble trouble = {.snapshot = snapshot,
		.store = snapshot->chain->store,
		.reason = verdict->trouble->reason,
		.attempt = verdict->trouble->asks + 1,
		.offset = verdict->offset,
		.length = length_in(snapshot, verdict)};

	if (snapshot->on_full == COWSNAP_LOSER_WRITE)
		verdict->write_loses = true;
	if (snapshot->on_full != COWSNAP_LOSER_ASK)
		return;
	verdict->asked = true;
	switch (snapshot->decide(snapshot->user, &trouble)) {
	case COWSNAP_DECIDE_WRITE:
		verdict->write_loses = true;
		break;
	case COWSNAP_DECIDE_RETRY:
		verdict->retry = true;
		break;
	case COWSNAP_DECIDE_SNAPSHOT:
		break;
	}
}

static void lose(void *user, struct cowsnap_snapshot *snapshot)
{
	const struct verdict *verdict = user;

	/* It may have become map-only meanwhile. */
	if (!verdict->trouble->unrecorded && !cs_snapshot_keeps(snapshot))
		return;
	cs_snapshot_lose(
		snapshot, verdict->trouble->reason, verdict->offset, length_in(snapshot, verdict));
}

static void each_needing(const struct cs_trouble *trouble,
	void (*visit)(void *user, struct cowsnap_snapshot *snapshot), struct verdict *verdict)
{
	struct cs_chain *chain = trouble->head->chain;
	struct cs_gate_pass pass;

	cs_gate_enter(&chain->store->upper->reads, &pass);
	cs_chain_each_needing(
		trouble->head->newest, trouble->chunk, trouble->unrecorded, visit, verdict);
	cs_gate_leave(&chain->store->upper->reads, &pass);
	cs_reclaim_after_reading(chain->store);
}

static struct verdict begin_verdict(const struct cs_save *save)
{
	const struct cs_trouble *trouble = &save->trouble;
	struct verdict verdict = {.trouble = trouble};

	verdict.offset = trouble->chunk << trouble->head->chain->store->chunk_shift;
	verdict.length = cs_store_chunk_bytes(trouble->head->chain->store);
	return verdict;
}

static uint64_t later(uint64_t from_ns, uint64_t by_ns)
{
	return by_ns > UINT64_MAX - from_ns ? UINT64_MAX : from_ns + by_ns;
}

/* ---- Deciding -------------------------------------------------------------------------------- */

static struct cowsnap_store *store_of(const struct cs_save *save)
{
	return save->trouble.head->chain->store;
}

/* Durable before anybody can see it and let a write go on because of it. The store is held, and
 * given up before the host is told: it may drop the snapshot then. If somebody drops it meanwhile,
 * no other can begin in this store before the bracket ends. */
static int record_invalid(struct cs_save *save)
{
	struct cowsnap_store *store = store_of(save);
	struct verdict verdict = begin_verdict(save);
	int rc = 0;

	each_needing(&save->trouble, longest_wait, &verdict);
	if (verdict.needed)
		rc = cs_store_invalidate(store, save->trouble.reason);
	cs_store_unhold(store);
	if (rc)
		cs_log(store->base, COWSNAP_LOG_ERROR,
			"store on %s: that its snapshot is invalid could not be recorded: error %d",
			store->device->name, rc);
	return rc;
}

/* The store is held. */
static enum cs_step give_up(struct cs_save *save)
{
	struct verdict verdict = begin_verdict(save);
	int rc;

	save->step = cs_save_look;
	if (save->op->cancelled) {
		cs_store_unhold(store_of(save));
		return CS_GO_ON;
	}
	rc = record_invalid(save);
	if (rc)
		return cs_save_fail(save, rc);
	each_needing(&save->trouble, lose, &verdict);
	cs_origin_lost_one(save->op->origin);
	return CS_GO_ON;
}

static enum cs_step hold_store(struct cs_save *save)
{
	return cs_store_hold(store_of(save), &save->op->task.waiter) ? give_up(save) : CS_PARK;
}

static enum cs_step decide(struct cs_save *save)
{
	struct cs_trouble *trouble = &save->trouble;
	struct verdict verdict = begin_verdict(save);

	save->step = cs_save_look;
	each_needing(trouble, ask, &verdict);
	trouble->asks += verdict.asked;
	if (verdict.retry)
		return CS_GO_ON;
	if (verdict.write_loses)
		return cs_save_fail(save, trouble->reason);
	save->step = hold_store;
	return hold_store(save);
}

/* ---- Waiting --------------------------------------------------------------------------------- */

/* Parks until there may be space, or @deadline_ns, and then goes on with @next. */
static enum cs_step park(struct cs_save *save, uint64_t deadline_ns,
	enum cs_step (*next)(struct cs_save *save), void (*abandon)(struct cs_op *op))
{
	save->step = next;
	save->op->abandon = abandon;
	save->op->task.deadline_ns = deadline_ns;
	return CS_PARK;
}

static bool forsake(struct cs_save *save)
{
	return cs_store_forsake_space(store_of(save), &save->op->task.waiter);
}

/* Has the wait ended, in one way or the other? Else its wake is still to come. */
static bool has_waited(struct cs_save *save)
{
	if (save->op->task.timed_out && !forsake(save))
		return false;
	save->op->abandon = NULL;
	return true;
}

static enum cs_step had_space(struct cs_save *save)
{
	if (!has_waited(save))
		return CS_PARK;
	cs_reclaim_awaited(store_of(save));
	save->step = save->op->task.timed_out ? decide : cs_save_look;
	return CS_GO_ON;
}

static void abandon_space(struct cs_op *op)
{
	struct cs_save *save = op->turn.record;

	if (!forsake(save))
		return;
	cs_reclaim_awaited(store_of(save));
	cs_save_abandoned(save);
}

static enum cs_step wait_for_space(struct cs_save *save, uint64_t deadline_ns)
{
	cs_stats_add(save->op->origin->stats, CS_STAT_SPACE_WAITS, 1);
	if (cs_reclaim_await(store_of(save), save->trouble.space_epoch, &save->op->task.waiter))
		return park(save, deadline_ns, had_space, abandon_space);
	save->step = cs_save_look;
	return CS_GO_ON;
}

static enum cs_step pause_copy(struct cs_save *save);

static enum cs_step has_paused(struct cs_save *save)
{
	if (!has_waited(save))
		return CS_PARK;
	save->step = save->op->task.timed_out ? cs_save_look : pause_copy;
	return CS_GO_ON;
}

static void abandon_pause(struct cs_op *op)
{
	struct cs_save *save = op->turn.record;

	if (forsake(save))
		cs_save_abandoned(save);
}

/* Lets some time pass before a failed copy is tried again, however often space comes and goes; but
 * nobody waits for a snapshot that was dropped meanwhile, which is told like space. */
static enum cs_step pause_copy(struct cs_save *save)
{
	uint64_t epoch = cs_store_space_epoch(store_of(save));
	struct verdict verdict = begin_verdict(save);

	each_needing(&save->trouble, longest_wait, &verdict);
	save->step = verdict.needed ? pause_copy : cs_save_look;
	if (verdict.needed && cs_store_await_space(store_of(save), epoch, &save->op->task.waiter))
		return park(save, save->trouble.pause_until_ns, has_paused, abandon_pause);
	return CS_GO_ON;
}

/* Waits if that is worth it. Returns: the step; CS_DONE: it is not. */
static enum cs_step wait(struct cs_save *save, uint64_t wait_ns)
{
	struct cs_trouble *trouble = &save->trouble;
	uint64_t now_ns = cs_monotonic_ns(), deadline_ns, pause_ns = wait_ns / RETRIES_MAX;

	if (!wait_ns)
		return CS_DONE;
	if (!trouble->since_ns)
		trouble->since_ns = now_ns;
	deadline_ns = later(trouble->since_ns, wait_ns);
	if (now_ns >= deadline_ns)
		return CS_DONE;
	if (trouble->no_space)
		return wait_for_space(save, deadline_ns);
	if (trouble->failures >= RETRIES_MAX)
		return CS_DONE;
	trouble->failures++;
	trouble->pause_until_ns = later(now_ns, pause_ns < PAUSE_MAX_NS ? pause_ns : PAUSE_MAX_NS);
	return pause_copy(save);
}

enum cs_step cs_trouble_resolve(struct cs_save *save)
{
	struct cs_trouble *trouble = &save->trouble;
	struct cowsnap_store *store = store_of(save);
	struct verdict verdict = begin_verdict(save);
	enum cs_step step;

	each_needing(trouble, longest_wait, &verdict);
	/* Before the wait: the host may be the only one who can help. */
	if (trouble->no_space && verdict.needed && trouble->full_told != store) {
		trouble->full_told = store;
		cs_event_store(store, COWSNAP_EVENT_FULL, trouble->reason);
	}
	step = wait(save, verdict.wait_ns);
	return step == CS_DONE ? decide(save) : step;
}
