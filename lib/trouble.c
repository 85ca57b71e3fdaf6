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
 * Failure: this is where it is dealt with; what comes back is "look again" or the write's error.
 */
#include "origin.h"

#define RETRIES_MAX  8u
#define PAUSE_MAX_NS UINT64_C(1000000000)

struct verdict {
	struct cowsnap_origin *origin;
	const struct cs_trouble *trouble;
	uint64_t offset;
	uint64_t length;
	uint64_t wait_ns;
	bool needed; /* by somebody */
	bool asked;
	bool write_loses;
	bool retry;
	int error; /* of a store that could not record that its snapshot is invalid */
};

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
		.length = verdict->length};

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
	struct verdict *verdict = user;
	int rc = cs_snapshot_lose(
		snapshot, verdict->trouble->reason, verdict->offset, verdict->length);

	if (rc)
		verdict->error = rc;
}

static void each_needing(const struct cs_trouble *trouble,
	void (*visit)(void *user, struct cowsnap_snapshot *snapshot), struct verdict *verdict)
{
	struct cs_chain *chain = trouble->head->chain;
	struct cs_gate_pass pass;

	cs_gate_enter(&chain->store->upper->reads, &pass);
	cs_chain_each_needing(trouble->head->newest, trouble->chunk, visit, verdict);
	cs_gate_leave(&chain->store->upper->reads, &pass);
	cs_reclaim_after_reading(chain->store);
}

/* Lets some time pass before a failed copy is tried again, however often space comes and goes; but
 * nobody waits for a snapshot that was dropped meanwhile. */
static void pause_copy(const struct cs_trouble *trouble, struct verdict *verdict, uint64_t until_ns)
{
	struct cowsnap_store *store = trouble->head->chain->store;
	uint64_t epoch;

	do {
		epoch = cs_store_space_epoch(store);
		verdict->needed = false;
		each_needing(trouble, longest_wait, verdict);
	} while (verdict->needed && cs_store_wait_space(store, epoch, until_ns));
}

static uint64_t later(uint64_t from_ns, uint64_t by_ns)
{
	return by_ns > UINT64_MAX - from_ns ? UINT64_MAX : from_ns + by_ns;
}

/* Returns: true if it is worth another try. */
static bool waited(struct cs_trouble *trouble, struct verdict *verdict)
{
	struct cowsnap_store *store = trouble->head->chain->store;
	uint64_t now = cs_monotonic_ns(), deadline, pause = verdict->wait_ns / RETRIES_MAX;

	if (!verdict->wait_ns)
		return false;
	if (!trouble->since_ns)
		trouble->since_ns = now;
	deadline = later(trouble->since_ns, verdict->wait_ns);
	if (now >= deadline)
		return false;
	if (trouble->no_space) {
		cs_stats_add(verdict->origin->stats, CS_STAT_SPACE_WAITS, 1);
		return cs_reclaim_wait(store, trouble->space_epoch, deadline);
	}
	if (trouble->failures >= RETRIES_MAX)
		return false;
	trouble->failures++;
	pause_copy(trouble, verdict, later(now, pause < PAUSE_MAX_NS ? pause : PAUSE_MAX_NS));
	return true;
}

int cs_trouble_resolve(struct cowsnap_origin *origin, struct cs_trouble *trouble)
{
	struct cowsnap_store *store = trouble->head->chain->store;
	struct verdict verdict = {.origin = origin, .trouble = trouble};

	verdict.offset = trouble->chunk << store->chunk_shift;
	verdict.length = UINT64_C(1) << store->chunk_shift;
	if (verdict.length > origin->size_bytes - verdict.offset)
		verdict.length = origin->size_bytes - verdict.offset;

	each_needing(trouble, longest_wait, &verdict);
	/* Before the wait: the host may be the only one who can help. */
	if (trouble->no_space && verdict.needed && trouble->full_told != store) {
		trouble->full_told = store;
		cs_event_store(store, COWSNAP_EVENT_FULL, trouble->reason);
	}
	if (waited(trouble, &verdict))
		return 1;
	each_needing(trouble, ask, &verdict);
	trouble->asks += verdict.asked;
	if (verdict.retry)
		return 1;
	if (verdict.write_loses)
		return trouble->reason;
	each_needing(trouble, lose, &verdict);
	cs_origin_lost_one(origin);
	return verdict.error ? verdict.error : 1;
}
