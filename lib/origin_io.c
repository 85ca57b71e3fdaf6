/* SPDX-License-Identifier: MIT
 *
 * The volume as it is: reads, writes and flushes of an origin for a host that leaves them to the
 * library, and for each host while a snapshot of its volume is merged.
 *
 * Without a merge a read is one of the device, and a write a bracket around one. During a merge a
 * chunk that is not settled is where the snapshot has it. Of a store with records it is written
 * there, in place: see merge.c.
 *
 * Invariants: M1 and M4 of merge.c. A read needs no second look: a chunk that is settled meanwhile
 * held the same in both places when the read began, and what is written to it later is written
 * beside this read.
 *
 * Locking: none. Failure: what was done before an error stays done.
 */
#include <errno.h>
#include <string.h>

#include "merge.h"

static void leave(struct cowsnap_origin *origin, const struct cs_gate_pass *pass)
{
	cs_gate_cancel(&origin->gate, pass);
}

/* Enters as a bracket does. Returns: the merge of that generation, which is ready; NULL: none. One
 * that was taken back meanwhile says nothing of where the content is: the next generation does. */
static struct cs_merge *enter(struct cowsnap_origin *origin, struct cs_gate_pass *pass)
{
	for (;;) {
		struct cs_heads *heads;
		struct cs_merge *m;

		cs_gate_enter(&origin->gate, pass);
		heads = cs_origin_heads(origin, pass->slot);
		m = heads ? heads->merge : NULL;
		if (!m)
			return NULL;
		cs_merge_await_ready(m);
		/* Of one that was ready all is settled, or its host ends: then it stays true of
		 * this generation. */
		/* Acquire: pairs with set_ready. */
		if (atomic_load_explicit(&m->ready, memory_order_acquire))
			return m;
		leave(origin, pass);
	}
}

static int check(const struct cowsnap_origin *origin, uint64_t offset, uint64_t length)
{
	if (cs_handle_closed(&origin->handle))
		return -EBADF;
	return cs_range_check(offset, length, cs_origin_size(origin));
}

/* ---- Reading --------------------------------------------------------------------------------- */

/* One part of a range that lies together. */
struct part {
	uint64_t offset;
	uint64_t length;
	bool unmoved;
	uint64_t location; /* then */
};

/* The first part of [offset, end), within one window. */
static struct part first_part(const struct cs_merge *m, uint64_t offset, uint64_t end)
{
	uint32_t shift = cs_merge_shift(m);
	uint64_t chunk = offset >> shift, last = ((end - 1) >> shift) + 1, locations[64], stop;
	uint64_t chunks = cs_snapshot_chunks(m->snapshot), mask = 0, rest;
	unsigned count = cs_window_count(chunk, last), n = 1;
	struct part part = {.offset = offset};

	/* What lies behind the snapshot's end is the origin's. */
	if (chunk < chunks)
		mask = cs_merge_unmoved(m, chunk,
			chunks - chunk < count ? (unsigned)(chunks - chunk) : count, locations);
	part.unmoved = mask & 1;
	part.location = part.unmoved ? locations[0] : 0;
	rest = part.unmoved ? ~mask : mask;
	while (n < count && !(rest >> n & 1) &&
		(!part.unmoved ||
			locations[n] == (part.location > COWSNAP_LOCATION_MAX ? part.location
									      : part.location + n)))
		n++;
	stop = (chunk + n) << shift;
	part.length = (stop < end ? stop : end) - offset;
	return part;
}

static int read_part(const struct cs_merge *m, const struct part *part, char *to)
{
	uint32_t shift = cs_merge_shift(m);
	uint64_t inside = part->offset & ((UINT64_C(1) << shift) - 1);

	if (!part->unmoved)
		return cs_dev_read(m->origin->device, to, part->offset, part->length);
	if (part->location == COWSNAP_LOCATION_ZERO) {
		memset(to, 0, part->length);
		return 0;
	}
	return cs_dev_read(m->snapshot->chain->store->device, to,
		(part->location << shift) + inside, part->length);
}

static int read_merging(const struct cs_merge *m, char *buffer, uint64_t offset, uint64_t length)
{
	struct cowsnap_store *store = m->snapshot->chain->store;
	uint64_t end = offset + length;
	struct cs_gate_pass pass;
	int rc = 0;

	cs_gate_enter(&store->upper->reads, &pass);
	for (uint64_t at = offset; at < end && !rc;) {
		struct part part = first_part(m, at, end);

		rc = read_part(m, &part, buffer + (at - offset));
		at += part.length;
	}
	cs_gate_leave(&store->upper->reads, &pass);
	cs_reclaim_after_reading(store);
	return rc;
}

int cowsnap_origin_read(
	struct cowsnap_origin *origin, void *buffer, uint64_t offset, uint64_t length)
{
	struct cs_gate_pass pass;
	struct cs_merge *m;
	int rc = check(origin, offset, length);

	if (rc)
		return rc;
	m = enter(origin, &pass);
	if (m) {
		rc = read_merging(m, buffer, offset, length);
	} else {
		rc = cs_dev_read(origin->device, buffer, offset, length);
	}
	leave(origin, &pass);
	return rc;
}

/* ---- Writing --------------------------------------------------------------------------------- */

static int write_device(struct cowsnap_device *device, enum cowsnap_write_kind kind,
	const void *buffer, uint64_t offset, uint64_t length)
{
	switch (kind) {
	case COWSNAP_WRITE:
		return cs_dev_write(device, buffer, offset, length);
	case COWSNAP_WRITE_ZEROES:
		return cs_dev_zero(device, offset, length);
	case COWSNAP_DISCARD:
		return cs_dev_discard(device, offset, length);
	}
	return -EINVAL;
}

static int write_in_bracket(struct cowsnap_origin *origin, enum cowsnap_write_kind kind,
	const void *buffer, uint64_t offset, uint64_t length)
{
	struct cowsnap_op op;
	int rc = cowsnap_write_begin(origin, kind, offset, length, &op);

	if (rc)
		return rc;
	rc = write_device(origin->device, kind, buffer, offset, length);
	cowsnap_write_end(&op);
	return rc;
}

/* A part of one chunk, where the snapshot has it, if it still has. */
static int write_chunk(struct cs_merge *m, enum cowsnap_write_kind kind, const void *buffer,
	uint64_t offset, uint64_t length)
{
	uint32_t shift = cs_merge_shift(m);
	uint64_t chunk = offset >> shift, location;
	struct cowsnap_run run;
	int rc = cs_merge_claim(m, chunk, 1, &run);

	if (rc)
		return rc;
	if (!cs_merge_lookup(m, chunk, &location)) {
		cs_merge_unclaim(m, &run);
		return write_in_bracket(m->origin, kind, buffer, offset, length);
	}
	/* What is discarded may read as anything. */
	if (kind != COWSNAP_DISCARD)
		rc = write_device(m->snapshot->chain->store->device, kind, buffer,
			(location << shift) + (offset - (chunk << shift)), length);
	cs_merge_unclaim(m, &run);
	return rc;
}

static int write_merging(struct cs_merge *m, enum cowsnap_write_kind kind, const char *buffer,
	uint64_t offset, uint64_t length)
{
	uint64_t chunk_bytes = UINT64_C(1) << cs_merge_shift(m), end = offset + length;
	int rc = 0;

	for (uint64_t at = offset; at < end && !rc;) {
		uint64_t n = chunk_bytes - at % chunk_bytes;

		n = n < end - at ? n : end - at;
		rc = write_chunk(m, kind, buffer ? buffer + (at - offset) : NULL, at, n);
		at += n;
	}
	return rc;
}

int cowsnap_origin_write(struct cowsnap_origin *origin, enum cowsnap_write_kind kind,
	const void *buffer, uint64_t offset, uint64_t length)
{
	struct cs_gate_pass pass;
	struct cs_merge *m;
	int rc = check(origin, offset, length);

	if (!rc && ((unsigned)kind - COWSNAP_WRITE > COWSNAP_WRITE_ZEROES - COWSNAP_WRITE ||
			   (kind == COWSNAP_WRITE) != (buffer != NULL)))
		rc = -EINVAL;
	if (rc)
		return rc;
	m = enter(origin, &pass);
	if (m && m->records) {
		rc = write_merging(m, kind, buffer, offset, length);
		leave(origin, &pass);
		return rc;
	}
	leave(origin, &pass);
	return write_in_bracket(origin, kind, buffer, offset, length);
}

/* ---- Flushing -------------------------------------------------------------------------------- */

static int flush_store(struct cowsnap_store *store)
{
	int rc = cs_store_hold_waiting(store);

	if (rc)
		return rc;
	rc = store->flush ? store->flush(store->user) : cs_dev_flush(store->device);
	cs_store_unhold(store);
	return rc;
}

int cowsnap_origin_flush(struct cowsnap_origin *origin)
{
	struct cs_gate_pass pass;
	struct cs_merge *m;
	int rc = 0;

	if (cs_handle_closed(&origin->handle))
		return -EBADF;
	m = enter(origin, &pass);
	/* The store first: a chunk that is moved meanwhile comes to the origin before its flush. */
	if (m && m->records)
		rc = flush_store(m->snapshot->chain->store);
	leave(origin, &pass);
	return rc ? rc : cs_dev_flush(origin->device);
}
