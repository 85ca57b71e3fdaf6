/* SPDX-License-Identifier: MIT
 *
 * Snapshots: reading, references, state and numbers.
 */
#include "origin.h"
#include "snapshot.h"
#include "workers.h"

int cowsnap_snapshot_read(
	struct cowsnap_snapshot *snapshot, void *buffer, uint64_t offset, uint64_t length)
{
	int rc = cs_snapshot_read(snapshot, buffer, offset, length);

	cs_reclaim_after_reading(snapshot->chain->store);
	return rc;
}

static void begin_read(struct cs_op *op)
{
	cs_read_begin(op->turn.record, op->snapshot, op, op->buffer, op->offset, op->length);
}

static enum cs_step run_read(struct cs_op *op)
{
	struct cs_read *read = op->turn.record;

	if (cs_read_run(read) == CS_PARK)
		return CS_PARK;
	op->error = read->error;
	cs_reclaim_after_reading(op->snapshot->chain->store);
	return CS_DONE;
}

static const struct cs_op_kind read_kind = {.begin = begin_read, .go_on = run_read};

int cowsnap_snapshot_read_async(struct cowsnap_snapshot *snapshot, struct cowsnap_queue *queue,
	void *buffer, uint64_t offset, uint64_t length, struct cowsnap_op *host_op,
	cowsnap_done *done, void *user)
{
	struct cs_op *op = cs_op_of(host_op);
	struct cowsnap_queue *to;
	int rc = cs_read_check(snapshot, offset, length);

	if (!rc)
		rc = cs_workers_route(snapshot->chain->ctx, queue, done, &to);
	if (rc)
		return rc;
	cs_op_init(op, to, &read_kind, done, user);
	op->snapshot = snapshot;
	op->buffer = buffer;
	op->offset = offset;
	op->length = length;
	if (!queue)
		return cs_op_post(op);
	if (!cs_op_get_record(op))
		return cs_op_queue(op);
	begin_read(op);
	return cs_op_go(op);
}

int cowsnap_snapshot_extent(struct cowsnap_snapshot *snapshot, uint64_t offset, uint64_t limit,
	struct cowsnap_extent *extent)
{
	int rc = cs_snapshot_extent(snapshot, offset, limit, extent);

	cs_reclaim_after_reading(snapshot->chain->store);
	return rc;
}

struct cowsnap_snapshot *cowsnap_snapshot_ref(struct cowsnap_snapshot *snapshot)
{
	atomic_fetch_add_explicit(&snapshot->refs, 1, memory_order_relaxed);
	return snapshot;
}

void cowsnap_snapshot_unref(struct cowsnap_snapshot *snapshot)
{
	if (snapshot)
		cs_snapshot_put(snapshot);
}

void *cowsnap_snapshot_user(const struct cowsnap_snapshot *snapshot)
{
	return snapshot->user;
}

static void read_reason(struct cowsnap_snapshot *s, struct cowsnap_snapshot_info *info)
{
	cs_mutex_lock(&s->chain->ctx->admin);
	info->reason = s->reason;
	info->reason_offset = s->reason_offset;
	info->reason_length = s->reason_length;
	cs_mutex_unlock(&s->chain->ctx->admin);
}

/* The map of a snapshot that was unlinked is going; inside the read gate it stays (C4). */
static void read_own_map(struct cowsnap_snapshot *s, struct cowsnap_snapshot_info *info)
{
	struct cs_gate *reads = &s->chain->store->upper->reads;
	struct cs_gate_pass pass;

	cs_gate_enter(reads, &pass);
	/* Acquire: pairs with unlink_ghost. */
	if (!atomic_load_explicit(&s->unlinked, memory_order_acquire)) {
		info->saved_chunks = cowsnap_map_count(&s->map);
		info->map_bytes = cs_snapshot_map_bytes(s);
		info->released_chunks = cs_bits_count(&s->released);
		info->written_chunks = cowsnap_map_count(&s->own);
	}
	cs_gate_leave(reads, &pass);
	cs_reclaim_after_reading(s->chain->store);
}

int cowsnap_snapshot_info(
	struct cowsnap_snapshot *snapshot, struct cowsnap_snapshot_info *out, size_t size)
{
	struct cowsnap_snapshot_info info = {
		.id = snapshot->id,
		.size_bytes = snapshot->size_bytes,
		.chunk_size_bytes = cs_store_chunk_bytes(snapshot->chain->store),
		.overflowed = atomic_load_explicit(&snapshot->overflowed, memory_order_relaxed),
		/* Acquire: what it needs is in the maps; pairs with finish. */
		.detached = atomic_load_explicit(&snapshot->detached, memory_order_acquire),
	};

	/* Acquire: the reason; pairs with cs_snapshot_lose. */
	info.state = (enum cowsnap_snapshot_state)atomic_load_explicit(
		&snapshot->state, memory_order_acquire);
	read_reason(snapshot, &info);
	read_own_map(snapshot, &info);
	return cs_result_copy(out, size, &info, sizeof(info));
}
