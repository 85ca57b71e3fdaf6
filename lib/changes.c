/* SPDX-License-Identifier: MIT
 *
 * What has changed between two snapshots.
 *
 * C7 of chain.h: all that was written since a snapshot was taken is in the maps and changed bits
 * from the newest to it. The chain of the older snapshot is asked, whatever chain the younger one
 * is in: there those snapshots count that were taken before the younger one.
 *
 * Invariants: whatever is asked for is looked at from newer to older, a window of 64 chunks at a
 * time, so what moves down meanwhile is met (C7). A run that was begun is not cut at the end of a
 * call, unless it is longer than what a call looks at.
 *
 * During a merge the volume shows what lies in the merging snapshot's store: that has changed for
 * all others. It is asked for before the maps, where it is when it was moved.
 *
 * Locking: none; the read gates of both snapshots' stores. What is asked about now is looked at
 * inside the origin's gate (M4 of merge.c), in which nobody waits here.
 *
 * Failure: states are looked at once more at the end: while both snapshots count nothing was
 * forgotten.
 */
#include <errno.h>

#include "merge.h"

#define LOOK_CHUNKS UINT64_C(1048576)

struct scan {
	const struct cowsnap_snapshot *from, *to;
	bool written;                 /* the younger image was written to */
	const struct cs_merge *merge; /* what now is depends on; NULL: on none */
	uint32_t shift;
	uint64_t begin;  /* bytes: where the call begins */
	uint64_t end;    /* bytes: of the longer image */
	uint64_t common; /* chunks that both have wholly; the others differ */
	struct cowsnap_change *runs;
	size_t room, count;
	uint64_t open; /* chunk at which the run began that has not ended; UINT64_MAX: none */
};

static int state_error(const struct cowsnap_snapshot *s)
{
	if (cs_snapshot_counts(s))
		return 0;
	/* Acquire: pairs with cs_snapshot_lose. */
	return atomic_load_explicit(&s->state, memory_order_acquire) == COWSNAP_SNAPSHOT_INVALID
		       ? -ESTALE
		       : -EIDRM;
}

static int states_error(const struct scan *scan)
{
	int rc = state_error(scan->from);

	return rc || !scan->to ? rc : state_error(scan->to);
}

/* Where writes to a snapshot are; in a store of a single one beside its preimages. */
static const struct cowsnap_map *written_map(const struct cowsnap_snapshot *s)
{
	return s->chain->store->flags & COWSNAP_STORE_ONE_SNAPSHOT ? &s->map : &s->own;
}

static bool was_written(const struct cowsnap_snapshot *s)
{
	return cowsnap_map_count(&s->own) ||
	       atomic_load_explicit(&s->written, memory_order_relaxed);
}

/* Which of these chunks were written to in the younger image alone, whose chunks may have another
 * size: a bit each. */
static uint64_t written_in_younger(const struct scan *scan, uint64_t first, unsigned count)
{
	const struct cowsnap_map *map = written_map(scan->to);
	uint32_t shift = scan->to->chain->store->chunk_shift;
	uint64_t mask = 0;

	for (unsigned i = 0; i < count; i++) {
		uint64_t from = (first + i) << scan->shift;
		uint64_t last = from + (UINT64_C(1) << scan->shift) - 1;
		struct cowsnap_run run;

		if (cowsnap_map_next(map, from >> shift, (last >> shift) + 1, &run))
			mask |= UINT64_C(1) << i;
	}
	return mask;
}

/* Has the merging snapshot a part of [from, last] for the volume? */
static bool is_unmoved(const struct cs_merge *m, uint64_t from, uint64_t last)
{
	uint64_t chunk = from >> cs_merge_shift(m), size = m->snapshot->size_bytes, end;
	uint64_t locations[64];
	unsigned n;

	/* What lies behind its end is the origin's, also of its last chunk. */
	if (from >= size)
		return false;
	end = ((last < size ? last : size - 1) >> cs_merge_shift(m)) + 1;
	for (; chunk < end; chunk += n) {
		n = cs_window_count(chunk, end);
		if (cs_merge_unmoved(m, chunk, n, locations))
			return true;
	}
	return false;
}

static uint64_t unmoved_mask(const struct scan *scan, uint64_t first, unsigned count)
{
	uint64_t mask = 0;

	for (unsigned i = 0; i < count; i++) {
		uint64_t from = (first + i) << scan->shift;

		if (is_unmoved(scan->merge, from, from + (UINT64_C(1) << scan->shift) - 1))
			mask |= UINT64_C(1) << i;
	}
	return mask;
}

/* What a merge says of these chunks that no map may say. */
static uint64_t merge_mask(const struct scan *scan, uint64_t first, unsigned count)
{
	const struct cs_merge *m = scan->merge;

	if (m->snapshot != scan->from)
		return unmoved_mask(scan, first, count);
	/* Its chain gets no more records; what is written beside them is noted before. */
	return m->records ? cs_bits_window(&m->settled, first, count) : 0;
}

static uint64_t changed_mask(const struct scan *scan, uint64_t first, unsigned count)
{
	uint64_t mask = scan->merge ? merge_mask(scan, first, count) : 0;

	for (const struct cowsnap_snapshot *s = cs_chain_newest(scan->from->chain); s;
		s = cs_snapshot_older(s)) {
		if (!scan->to || s->id < scan->to->id) {
			cs_map_look_ahead(&s->map, first);
			mask |= cs_snapshot_done_mask(s, first, count);
		}
		if (s == scan->from)
			break;
	}
	mask |= cs_map_done_mask(&scan->from->own, first, count);
	return scan->written ? mask | written_in_younger(scan, first, count) : mask;
}

/* ---- Runs ------------------------------------------------------------------------------------ */

static uint64_t clip(const struct scan *scan, uint64_t chunk)
{
	uint64_t at = chunk << scan->shift;

	if (at < scan->begin)
		return scan->begin;
	return at < scan->end ? at : scan->end;
}

/* The run that was begun ends before @chunk. Its place is there: see add_window(). */
static void end_run(struct scan *scan, uint64_t chunk)
{
	struct cowsnap_change *run = &scan->runs[scan->count];

	if (scan->open == UINT64_MAX)
		return;
	run->offset = clip(scan, scan->open);
	run->length = clip(scan, chunk) - run->offset;
	scan->count += run->length > 0;
	scan->open = UINT64_MAX;
}

/* Returns: chunks that were taken; fewer than @count: the next run has no place. */
static unsigned add_window(struct scan *scan, uint64_t first, unsigned count, uint64_t mask)
{
	for (unsigned i = 0, n; i < count; i += n) {
		bool changed = mask >> i & 1;
		uint64_t rest = changed ? ~(mask >> i) : mask >> i;

		n = rest ? (unsigned)__builtin_ctzll(rest) : 64;
		n = n < count - i ? n : count - i;
		if (!changed) {
			end_run(scan, first + i);
			if (scan->count == scan->room)
				return i;
		} else if (scan->open == UINT64_MAX) {
			scan->open = first + i;
		}
	}
	return count;
}

/* Returns: the byte before which all was looked at. */
static uint64_t look(struct scan *scan)
{
	uint64_t first = scan->begin >> scan->shift, chunk = first;
	uint64_t end = scan->common, stop = first + LOOK_CHUNKS;

	if (stop < end)
		end = stop;
	while (chunk < end) {
		unsigned count = cs_window_count(chunk, end);
		unsigned took = add_window(scan, chunk, count, changed_mask(scan, chunk, count));

		chunk += took;
		if (took < count)
			return clip(scan, chunk);
	}
	if (chunk >= scan->common) {
		if (scan->open == UINT64_MAX)
			scan->open = chunk;
		end_run(scan, UINT64_MAX >> scan->shift);
		return scan->end;
	}
	/* The next call has it in one piece, if there is anything else in this one. */
	if (scan->open != UINT64_MAX && scan->open > first) {
		chunk = scan->open;
		scan->open = UINT64_MAX;
	}
	end_run(scan, chunk);
	return clip(scan, chunk);
}

/* ---- The call -------------------------------------------------------------------------------- */

static int check(
	const struct cowsnap_snapshot *from, const struct cowsnap_snapshot *to, size_t count)
{
	if (!count)
		return -EINVAL;
	if (to && to->chain->origin != from->chain->origin)
		return -EXDEV;
	return to && to->id <= from->id ? -EINVAL : 0;
}

/* Returns: 0, or what is wrong. */
static int begin(struct scan *scan, uint64_t offset)
{
	uint64_t from = scan->from->size_bytes;
	uint64_t to = scan->to ? scan->to->size_bytes : cs_origin_size(scan->from->chain->origin);
	uint64_t shorter = from < to ? from : to;

	scan->shift = scan->from->chain->store->chunk_shift;
	scan->begin = offset;
	scan->end = from > to ? from : to;
	/* A last chunk that is cut off in both is a whole one. */
	scan->common = from == to ? ((shorter - 1) >> scan->shift) + 1 : shorter >> scan->shift;
	scan->open = UINT64_MAX;
	scan->written = scan->to && was_written(scan->to);
	return offset > scan->end ? -ERANGE : 0;
}

/* Returns: the merge of the origin; NULL: none. Inside its gate. */
static const struct cs_merge *merge_of(
	struct cowsnap_origin *origin, const struct cs_gate_pass *pass)
{
	const struct cs_heads *heads = cs_origin_heads(origin, pass->slot);
	const struct cs_merge *m = heads ? heads->merge : NULL;

	/* Acquire: pairs with set_ready. */
	return m && atomic_load_explicit(&m->ready, memory_order_acquire) ? m : NULL;
}

/* Returns: 0, or what is wrong. */
static int look_inside(struct scan *scan, struct cowsnap_store *younger, uint64_t *offset)
{
	struct cowsnap_store *older = scan->from->chain->store;
	struct cs_gate_pass pass, pass_younger;
	uint64_t looked = 0;
	int rc;

	cs_gate_enter(&older->upper->reads, &pass);
	cs_gate_enter(&younger->upper->reads, &pass_younger);
	rc = states_error(scan);
	if (!rc)
		rc = begin(scan, *offset);
	if (!rc) {
		looked = *offset < scan->end ? look(scan) : scan->end;
		rc = states_error(scan);
	}
	cs_gate_leave(&younger->upper->reads, &pass_younger);
	cs_gate_leave(&older->upper->reads, &pass);
	cs_reclaim_after_reading(older);
	cs_reclaim_after_reading(younger);
	if (!rc)
		*offset = looked;
	return rc;
}

static int look_at_now(struct scan *scan, uint64_t *offset)
{
	struct cowsnap_origin *origin = scan->from->chain->origin;
	struct cs_gate_pass pass;
	int rc;

	cs_gate_enter(&origin->gate, &pass);
	scan->merge = merge_of(origin, &pass);
	rc = look_inside(scan,
		scan->merge ? scan->merge->snapshot->chain->store : scan->from->chain->store,
		offset);
	cs_gate_cancel(&origin->gate, &pass);
	return rc;
}

int cowsnap_changes(struct cowsnap_snapshot *from, struct cowsnap_snapshot *to, uint64_t *offset,
	struct cowsnap_change *changes, size_t count)
{
	struct scan scan = {.from = from, .to = to, .runs = changes, .room = count};
	int rc = check(from, to, count);

	if (!rc)
		rc = to ? look_inside(&scan, to->chain->store, offset) : look_at_now(&scan, offset);
	return rc ? rc : (int)scan.count;
}
