/* SPDX-License-Identifier: MIT
 *
 * Snapshots: reading, references, state and numbers.
 */
#include "origin.h"

int cowsnap_snapshot_read(
	struct cowsnap_snapshot *snapshot, void *buffer, uint64_t offset, uint64_t length)
{
	int rc = cs_snapshot_read(snapshot, buffer, offset, length);

	cs_reclaim_after_reading(snapshot->chain->store);
	return rc;
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
		info->map_bytes = cowsnap_map_memory(&s->map);
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
	};

	/* Acquire: the reason; pairs with cs_snapshot_lose. */
	info.state = (enum cowsnap_snapshot_state)atomic_load_explicit(
		&snapshot->state, memory_order_acquire);
	read_reason(snapshot, &info);
	read_own_map(snapshot, &info);
	return cs_result_copy(out, size, &info, sizeof(info));
}
