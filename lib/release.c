/* SPDX-License-Identifier: MIT
 *
 * Giving up the content of a snapshot: ranges that were read, or all of it.
 *
 * Invariants: a chunk is released for good, and before anything is given up because of it; who
 * writes it without saving it has seen that it is released, so who reads it and looks afterwards
 * sees that too.
 *
 * Locking: the store's read gate, then (after it) upper->reclaiming, in bounded steps.
 *
 * Failure: without memory for the bits of a range its first part is released, or nothing.
 */
#include <errno.h>

#include "origin.h"

/* Returns: 0; what is wrong with giving up content of a snapshot in this state. */
static int state_error(const struct cowsnap_snapshot *s, bool map_only_will_do)
{
	int rc = cs_snapshot_state_error(s);

	return rc == -ENODATA && map_only_will_do ? 0 : rc;
}

static bool can_forget(const struct cowsnap_snapshot *s)
{
	const struct cowsnap_store *store = s->chain->store;

	return !cs_store_persistent(store) && !cs_store_records(store);
}

/* Inside the read gate a snapshot that is not dropped keeps its bits (C4). */
static int set_released(struct cowsnap_snapshot *s, uint64_t first, uint64_t end)
{
	struct cs_gate *reads = &s->chain->store->upper->reads;
	struct cs_gate_pass pass;
	int rc;

	cs_gate_enter(reads, &pass);
	rc = state_error(s, true);
	if (!rc)
		rc = cs_bits_set(&s->released, first, end - first);
	cs_gate_leave(reads, &pass);
	cs_reclaim_after_reading(s->chain->store);
	return rc;
}

int cowsnap_snapshot_release(struct cowsnap_snapshot *snapshot, uint64_t offset, uint64_t length)
{
	uint32_t shift = snapshot->chain->store->chunk_shift;
	uint64_t first, end;
	int rc = state_error(snapshot, true);

	if (!rc)
		rc = cs_range_check(offset, length, snapshot->size_bytes);
	if (rc)
		return rc;
	if (!can_forget(snapshot))
		return -ENOTSUP;
	first = (offset + (UINT64_C(1) << shift) - 1) >> shift;
	end = (offset + length) >> shift;
	if (offset + length == snapshot->size_bytes)
		end = ((snapshot->size_bytes - 1) >> shift) + 1;
	/* A map-only snapshot has nothing to release. */
	if (first >= end || !cs_snapshot_live(snapshot))
		return 0;
	rc = set_released(snapshot, first, end);
	if (!rc)
		cs_reclaim_released(snapshot, first, end);
	return rc;
}

int cowsnap_snapshot_downgrade(struct cowsnap_snapshot *snapshot)
{
	int state = COWSNAP_SNAPSHOT_ACTIVE;

	if (!can_forget(snapshot))
		return -ENOTSUP;
	/* seq_cst: a read that sees what comes of it sees this; pairs with
	 * cs_snapshot_state_error. */
	if (!atomic_compare_exchange_strong_explicit(&snapshot->state, &state,
		    COWSNAP_SNAPSHOT_MAP_ONLY, memory_order_seq_cst, memory_order_relaxed))
		return state_error(snapshot, true);
	cs_chain_ghosted(snapshot->chain);
	return 0;
}
