/* SPDX-License-Identifier: MIT
 *
 * Making a snapshot independent of its origin: each chunk that no map from it to the newest one has
 * is saved, as if it were about to be written.
 *
 * It goes over the image once, in ranges. For each it waits for the throttle, enters the origin's
 * gate as a bracket does, and takes the steps of save.c with one head, that of the snapshot's
 * chain. What lies behind has been seen to, whatever happens: writes save, and nothing that a live
 * snapshot needs leaves the maps.
 *
 * Invariants: detach_next changes under `detaching`. Nobody loses by it: no trouble is resolved
 * here, an error is the caller's.
 *
 * Locking: none; ctx->admin to wait for the end of a drain, outside of the gate.
 *
 * Failure: claims are given up, the snapshot is as before, and the next call begins with the range
 * that failed.
 */
#include <errno.h>
#include <string.h>

#include "origin.h"
#include "snapshot.h"

#define RANGE_BYTES (UINT64_C(1) << 20)

struct range {
	struct cowsnap_snapshot *snapshot;
	uint64_t chunk;
	uint64_t count; /* in one group of 64 */
	struct cs_op op;
	struct cs_heads heads; /* its chain's only */
	struct cs_head head;
	struct cs_save save;
};

/* ---- The gate -------------------------------------------------------------------------------- */

/* The take that made these heads is not over, or withdrawn: out of the gate until it is. */
static void wait_outside(struct range *r, uint64_t epoch)
{
	struct cowsnap_ctx *ctx = r->snapshot->chain->ctx;
	bool parks;

	cs_mutex_lock(&ctx->admin);
	parks = atomic_load_explicit(&ctx->established, memory_order_relaxed) < epoch;
	if (parks)
		cs_waitlist_add(&ctx->parked, &r->op.task.waiter);
	cs_mutex_unlock(&ctx->admin);
	cs_gate_cancel(&r->op.origin->gate, &r->op.pass);
	if (parks)
		cs_task_sleep(&r->op.task);
}

/* Acquire: the drain, and being withdrawn; pairs with set_established and turn_back. */
static bool usable(const struct cowsnap_ctx *ctx, const struct cs_heads *heads)
{
	return atomic_load_explicit(&ctx->established, memory_order_acquire) >= heads->epoch &&
	       !atomic_load_explicit(&heads->withdrawn, memory_order_acquire);
}

static bool find_head(struct range *r, const struct cs_heads *heads)
{
	for (size_t i = 0; heads && i < heads->count; i++) {
		if (heads->head[i].chain != r->snapshot->chain)
			continue;
		r->head = heads->head[i];
		r->heads = (struct cs_heads){
			.epoch = heads->epoch, .count = 1, .room = 1, .head = &r->head};
		return true;
	}
	return false;
}

/* Returns: 0, in the gate with a head; -EIDRM: the chain has no snapshot any more. */
static int enter(struct range *r)
{
	struct cowsnap_origin *origin = r->op.origin;
	struct cs_heads *heads;

	for (;;) {
		cs_gate_enter(&origin->gate, &r->op.pass);
		heads = cs_origin_heads(origin, r->op.pass.slot);
		if (!heads || usable(origin->handle.ctx, heads))
			break;
		wait_outside(r, heads->epoch);
	}
	if (find_head(r, heads))
		return 0;
	cs_gate_cancel(&origin->gate, &r->op.pass);
	return -EIDRM;
}

/* ---- One range ------------------------------------------------------------------------------- */

static int save_range(struct range *r)
{
	struct cs_save *save = &r->save;
	uint32_t shift = r->snapshot->chain->store->chunk_shift;
	int rc;

	cs_op_init(&r->op, NULL, NULL, NULL, NULL);
	r->op.origin = r->snapshot->chain->origin;
	r->op.offset = r->chunk << shift;
	r->op.length = r->count << shift;
	rc = enter(r);
	if (rc)
		return rc;
	cs_save_init(save, &r->op, &r->heads, cs_save_look);
	save->no_write = true;
	while (cs_save_run(save) == CS_PARK)
		cs_task_sleep(&r->op.task);
	cs_gate_cancel(&r->op.origin->gate, &r->op.pass);
	return r->op.error;
}

/* From detach_next on: the next run of chunks that are still in the origin, in the group of 64 and
 * short enough: of at most @left. Goes over what is saved. Returns: 1; 0 (there is none in this
 * group), or what became of the snapshot: inside the read gate a live one keeps its maps. */
static int next_range(struct range *r, uint64_t left)
{
	struct cowsnap_snapshot *s = r->snapshot;
	struct cowsnap_store *store = s->chain->store;
	uint64_t locations[64], most = RANGE_BYTES >> store->chunk_shift;
	uint64_t chunks = cs_snapshot_chunks(s), next = s->detach_next;
	unsigned count = cs_window_count(next, left < chunks - next ? next + left : chunks);
	struct cs_gate_pass pass;
	uint64_t saved = 0, open;
	int rc;

	cs_gate_enter(&store->upper->reads, &pass);
	rc = cs_read_check(s, 0, 1);
	if (!rc)
		saved = cs_snapshot_window(s, next, count, locations);
	cs_gate_leave(&store->upper->reads, &pass);
	cs_reclaim_after_reading(store);
	if (rc)
		return rc;
	open = ~saved & ~UINT64_C(0) >> (64 - count);
	if (!open) {
		s->detach_next += count;
		return 0;
	}
	s->detach_next += (unsigned)__builtin_ctzll(open);
	saved = ~(open >> __builtin_ctzll(open));
	r->chunk = s->detach_next;
	r->count = saved ? (unsigned)__builtin_ctzll(saved) : 64;
	if (!most)
		most = 1;
	if (r->count > most)
		r->count = most;
	return 1;
}

static int detach_range(struct range *r)
{
	struct cowsnap_copier *copier = r->snapshot->chain->ctx->copier;
	int rc;

	cs_copier_pace(copier, r->count << r->snapshot->chain->store->chunk_shift);
	cs_copier_piece_begins(copier);
	rc = save_range(r);
	cs_copier_piece_ends(copier);
	if (!rc)
		r->snapshot->detach_next = r->chunk + r->count;
	return rc;
}

/* ---- The call -------------------------------------------------------------------------------- */

/* Is there anything to be detached: live, and with all its data? */
static int check(const struct cowsnap_snapshot *s)
{
	int rc = cs_read_check(s, 0, 1);

	return !rc && cs_bits_any(&s->released) ? -ENODATA : rc;
}

/* Returns: 1, 0 or an error, as the call. */
static int detach(struct cowsnap_snapshot *s, uint64_t max_bytes)
{
	uint64_t first = s->detach_next, chunks = cs_snapshot_chunks(s);
	uint64_t most = max_bytes >> s->chain->store->chunk_shift;
	struct range range;
	int rc = check(s);

	range.snapshot = s;
	while (!rc && s->detach_next < chunks) {
		uint64_t seen = s->detach_next - first;

		if (seen && seen >= most)
			return 1;
		rc = next_range(&range, seen < most ? most - seen : 1);
		if (rc > 0)
			rc = detach_range(&range);
		if (!rc)
			rc = check(s);
	}
	return rc;
}

int cowsnap_snapshot_detach(struct cowsnap_snapshot *s, uint64_t max_bytes)
{
	int rc;

	/* Acquire: the cursor; pairs with the release below. */
	if (atomic_exchange_explicit(&s->detaching, true, memory_order_acquire))
		return -EALREADY;
	rc = detach(s, max_bytes);
	/* Release: the maps; pairs with cowsnap_snapshot_info. */
	if (!rc)
		atomic_store_explicit(&s->detached, true, memory_order_release);
	/* Release: the cursor; pairs with the exchange of cowsnap_snapshot_detach. */
	atomic_store_explicit(&s->detaching, false, memory_order_release);
	return rc;
}
