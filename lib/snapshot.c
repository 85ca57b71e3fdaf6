/* SPDX-License-Identifier: MIT
 *
 * Reading a snapshot.
 *
 * A range is resolved into *pieces*, each as long as it lies together in the store or in the
 * origin; each piece is one read. Pieces from the origin may have been overwritten while they were
 * read, so afterwards (full fence) they are looked up again: an origin write that could have
 * disturbed the read began only after the publication that this second look sees. What it finds is
 * read from the store instead. Locations stay good meanwhile, because all of this happens inside
 * the store's read gate (C4). At the end the state is looked at once more: what an invalid snapshot
 * gave is not handed out.
 *
 * Invariants: C2 to C5 of chain.h. A byte that is handed out was read from the store, or from the
 * origin before any write that the snapshot does not include could have changed it.
 *
 * Locking: none. Nobody waits for a reader.
 *
 * Failure: the first error ends the read.
 */
#include <assert.h>
#include <string.h>

#include "chain.h"
#include "dev.h"

#define PIECES      64u
#define LEAF_CHUNKS 64u

struct piece {
	uint64_t offset; /* in the snapshot */
	uint64_t length;
	uint64_t location; /* saved: byte offset in the store's device */
	bool saved;
};

struct reader {
	struct cowsnap_snapshot *snapshot;
	uint32_t shift;
	uint64_t offset; /* of the whole request */
	char *buffer;
	size_t count;
	struct piece piece[PIECES];
};

static int state_error(const struct cowsnap_snapshot *s)
{
	/* seq_cst: after the data was read; pairs with cs_snapshot_lose. */
	switch (atomic_load_explicit(&s->state, memory_order_seq_cst)) {
	case COWSNAP_SNAPSHOT_ACTIVE:
		return 0;
	case COWSNAP_SNAPSHOT_INVALID:
		return -ESTALE;
	default:
		return -EIDRM;
	}
}

uint64_t cs_snapshot_window(const struct cowsnap_snapshot *snapshot, uint64_t first, unsigned count,
	uint64_t locations[64])
{
	const struct cowsnap_snapshot *s = cs_chain_newest(snapshot->chain);
	uint64_t mask = 0;

	/* Oldest wins: each older map overwrites what a newer one said. A snapshot that was
	 * unlinked is not met; then the answer is of no use, and the state says so. */
	for (; s; s = cs_snapshot_older(s)) {
		mask |= cs_map_window(&s->map, first, count, locations);
		if (s == snapshot)
			break;
	}
	return mask;
}

/* Chunks of the leaf of @chunk from it on, at most up to @last. */
static unsigned window_count(uint64_t chunk, uint64_t last)
{
	uint64_t in_leaf = LEAF_CHUNKS - chunk % LEAF_CHUNKS;

	return (unsigned)(last - chunk + 1 < in_leaf ? last - chunk + 1 : in_leaf);
}

/* Returns: false if there is no room for another piece. */
static bool add_piece(struct reader *r, const struct piece *next)
{
	struct piece *last = r->count ? &r->piece[r->count - 1] : NULL;

	if (last && last->saved == next->saved &&
		(!next->saved || last->location + last->length == next->location)) {
		last->length += next->length;
		return true;
	}
	if (r->count == PIECES)
		return false;
	r->piece[r->count++] = *next;
	return true;
}

/* The piece that chunks [chunk, chunk + count) are of [offset, end). */
static struct piece clip(
	const struct reader *r, uint64_t chunk, uint64_t count, uint64_t offset, uint64_t end)
{
	uint64_t from = chunk << r->shift, to = (chunk + count) << r->shift;

	if (from < offset)
		from = offset;
	if (to > end)
		to = end;
	return (struct piece){.offset = from, .length = to - from};
}

/* How many of the chunks from bit 0 on are of one kind. */
static unsigned same_kind(uint64_t mask, unsigned count, bool saved)
{
	uint64_t other = saved ? ~mask : mask;
	unsigned run = other ? (unsigned)__builtin_ctzll(other) : LEAF_CHUNKS;

	return run < count ? run : count;
}

/* How many of them lie one after the other in the store. */
static unsigned together(const uint64_t *locations, unsigned count)
{
	unsigned run = 1;

	while (run < count && locations[run] == locations[0] + run)
		run++;
	return run;
}

/* Resolves [offset, end) as far as the pieces reach. Returns: 0, or the error of the state. */
static int resolve(struct reader *r, uint64_t offset, uint64_t end)
{
	uint64_t locations[LEAF_CHUNKS], last = (end - 1) >> r->shift;

	r->count = 0;
	for (uint64_t chunk = offset >> r->shift; chunk <= last;) {
		unsigned count = window_count(chunk, last), run;
		uint64_t mask = cs_snapshot_window(r->snapshot, chunk, count, locations);

		for (unsigned i = 0; i < count; i += run, chunk += run) {
			bool saved = mask >> i & 1;
			struct piece piece;

			run = same_kind(mask >> i, count - i, saved);
			if (saved)
				run = together(locations + i, run);
			piece = clip(r, chunk, run, offset, end);
			piece.saved = saved;
			if (saved && locations[i] == COWSNAP_LOCATION_NONE) {
				int rc = state_error(r->snapshot);

				/* C5: a live snapshot never ends at NONE. */
				return rc ? rc : -EIO;
			}
			if (saved)
				piece.location = (locations[i] << r->shift) +
						 (piece.offset - (chunk << r->shift));
			if (!add_piece(r, &piece))
				return 0;
		}
	}
	return 0;
}

static int read_piece(const struct reader *r, const struct piece *piece)
{
	struct cs_chain *chain = r->snapshot->chain;
	char *to = r->buffer + (piece->offset - r->offset);

	if (piece->saved)
		return cs_dev_read(chain->store->device, to, piece->location, piece->length);
	return cs_dev_read(chain->device, to, piece->offset, piece->length);
}

/* The second look at a piece that was read from the origin. */
static int recheck(struct reader *r, const struct piece *piece)
{
	uint64_t locations[LEAF_CHUNKS], end = piece->offset + piece->length;
	uint64_t last = (end - 1) >> r->shift;

	for (uint64_t chunk = piece->offset >> r->shift; chunk <= last;) {
		unsigned count = window_count(chunk, last);
		uint64_t mask = cs_snapshot_window(r->snapshot, chunk, count, locations);

		for (; mask; mask &= mask - 1) {
			unsigned i = (unsigned)__builtin_ctzll(mask);
			struct piece saved = clip(r, chunk + i, 1, piece->offset, end);
			int rc;

			if (locations[i] == COWSNAP_LOCATION_NONE)
				return state_error(r->snapshot) ? state_error(r->snapshot) : -EIO;
			saved.saved = true;
			saved.location = (locations[i] << r->shift) +
					 (saved.offset - ((chunk + i) << r->shift));
			rc = read_piece(r, &saved);
			if (rc)
				return rc;
			cs_stats_add(r->snapshot->chain->stats, CS_STAT_REREAD_CHUNKS, 1);
		}
		chunk += count;
	}
	return 0;
}

/* Reads what resolve() planned. */
static int read_pieces(struct reader *r)
{
	int rc = 0;

	for (size_t i = 0; i < r->count && !rc; i++)
		rc = read_piece(r, &r->piece[i]);
	/* The data first, then the maps; pairs with the publication in settle. */
	cs_full_fence();
	for (size_t i = 0; i < r->count && !rc; i++) {
		if (!r->piece[i].saved)
			rc = recheck(r, &r->piece[i]);
	}
	return rc;
}

static int read_all(struct reader *r, uint64_t length)
{
	uint64_t offset = r->offset, end = r->offset + length;

	while (offset < end) {
		const struct piece *last;
		int rc = resolve(r, offset, end);

		if (!rc)
			rc = read_pieces(r);
		if (rc)
			return rc;
		last = &r->piece[r->count - 1];
		offset = last->offset + last->length;
	}
	return 0;
}

int cs_snapshot_read(
	struct cowsnap_snapshot *snapshot, void *buffer, uint64_t offset, uint64_t length)
{
	struct cs_chain *chain = snapshot->chain;
	struct reader reader;
	struct cs_gate_pass pass;
	int rc = state_error(snapshot), state;

	if (!rc)
		rc = cs_range_check(offset, length, snapshot->size_bytes);
	if (rc)
		return rc;
	reader.snapshot = snapshot;
	reader.shift = chain->store->chunk_shift;
	reader.offset = offset;
	reader.buffer = buffer;
	cs_stats_add(chain->stats, CS_STAT_SNAPSHOT_READS, 1);
	cs_gate_enter(&chain->store->upper->reads, &pass);
	rc = read_all(&reader, length);
	state = state_error(snapshot);
	cs_gate_leave(&chain->store->upper->reads, &pass);
	return state ? state : rc;
}

int cs_snapshot_extent(struct cowsnap_snapshot *snapshot, uint64_t offset, uint64_t limit,
	struct cowsnap_extent *extent)
{
	struct cs_chain *chain = snapshot->chain;
	uint32_t shift;
	uint64_t locations[LEAF_CHUNKS], chunk, last, end;
	struct cs_gate_pass pass;
	bool first = true;
	int rc = state_error(snapshot);

	if (!rc)
		rc = cs_range_check(offset, limit, snapshot->size_bytes);
	if (rc)
		return rc;
	shift = chain->store->chunk_shift;
	chunk = offset >> shift;
	last = (offset + limit - 1) >> shift;
	cs_gate_enter(&chain->store->upper->reads, &pass);
	while (chunk <= last) {
		unsigned count = window_count(chunk, last), run;
		uint64_t mask = cs_snapshot_window(snapshot, chunk, count, locations);

		if (first)
			extent->saved = mask & 1;
		first = false;
		run = same_kind(mask, count, extent->saved);
		chunk += run;
		if (run < count)
			break;
	}
	cs_gate_leave(&chain->store->upper->reads, &pass);
	end = chunk << shift;
	extent->offset = offset;
	extent->length = (end < offset + limit ? end : offset + limit) - offset;
	return state_error(snapshot);
}
