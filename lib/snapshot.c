/* SPDX-License-Identifier: MIT
 *
 * Reading a snapshot.
 *
 * A range is resolved into *pieces*, each as long as it lies together in the store or in the
 * origin; each piece is one read. Pieces from the origin may have been overwritten while they were
 * read, so afterwards (full fence) they are looked up again: an origin write that could have
 * disturbed the read began only after the publication that this second look sees. What it finds is
 * read from the store instead. Locations stay good meanwhile, because all of this happens inside
 * the store's read gate (C4). The state is looked at inside it: one that was dropped before may
 * lose its maps and bits any time. At the end it is looked at once more: what an invalid snapshot
 * gave is not handed out.
 *
 *   resolve    pieces for as much of the range as there is room for
 *   read       all of them; in a queue, side by side
 *   look       again, at those that came from the origin
 *   reread     what is saved now, as many requests at a time as there is room for
 *
 * A caller that waits, and a queue whose devices are called, does one request after the other and
 * never parks. In a queue the read gate is entered with a record in hand: nobody who waits for it
 * to drain waits for somebody who waits for a record.
 *
 * Invariants: C2 to C5 of chain.h. A byte that is handed out was read from the store, or from the
 * origin before any write that the snapshot does not include could have changed it.
 *
 * Locking: none. Nobody waits for a reader.
 *
 * Failure: the first error ends the read, when all that was submitted has ended.
 */
#include "snapshot.h"

#include <assert.h>
#include <string.h>

#define LEAF_CHUNKS 64u
#define ZEROES      UINT64_MAX /* where pieces of zeroes lie */

/* Was one of these chunks released? Inside the read gate. */
static bool any_released(const struct cowsnap_snapshot *s, uint64_t chunk, uint64_t end)
{
	if (cs_likely(!cs_bits_any(&s->released)))
		return false;
	while (chunk < end) {
		unsigned count = cs_window_count(chunk, end);

		if (cs_bits_window(&s->released, chunk, count))
			return true;
		chunk += count;
	}
	return false;
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
	return mask | cs_map_window(&snapshot->own, first, count, locations);
}

/* Chunks of the leaf of @chunk from it on, at most up to @last. */
static unsigned window_count(uint64_t chunk, uint64_t last)
{
	uint64_t in_leaf = LEAF_CHUNKS - chunk % LEAF_CHUNKS;

	return (unsigned)(last - chunk + 1 < in_leaf ? last - chunk + 1 : in_leaf);
}

/* How many pieces are read in one go: those that are submitted need a request each. */
static size_t room(const struct cs_read *r)
{
	return r->queue ? CS_READ_IOS : CS_READ_PIECES;
}

/* Does the piece go on where the last one ends? */
static bool goes_on(const struct cs_read_piece *last, const struct cs_read_piece *next)
{
	if (last->saved != next->saved)
		return false;
	if (!next->saved)
		return true;
	if (last->location == ZEROES || next->location == ZEROES)
		return last->location == next->location;
	return last->location + last->length == next->location;
}

/* Returns: false if there is no room for another piece. */
static bool add_piece(struct cs_read *r, const struct cs_read_piece *next)
{
	struct cs_read_piece *last = r->count ? &r->piece[r->count - 1] : NULL;

	if (last && goes_on(last, next)) {
		last->length += next->length;
		return true;
	}
	if (r->count == room(r))
		return false;
	r->piece[r->count++] = *next;
	return true;
}

/* The piece that chunks [chunk, chunk + count) are of [offset, end). */
static struct cs_read_piece clip(
	const struct cs_read *r, uint64_t chunk, uint64_t count, uint64_t offset, uint64_t end)
{
	uint64_t from = chunk << r->shift, to = (chunk + count) << r->shift;

	if (from < offset)
		from = offset;
	if (to > end)
		to = end;
	return (struct cs_read_piece){.offset = from, .length = to - from};
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
	unsigned run = 1, step = locations[0] <= COWSNAP_LOCATION_MAX;

	while (run < count && locations[run] == locations[0] + run * step)
		run++;
	return run;
}

/* Where @piece, which begins in @chunk at @location, lies. Returns: 0, or what is wrong. */
static int locate(struct cs_read *r, struct cs_read_piece *piece, uint64_t chunk, uint64_t location)
{
	int rc;

	piece->saved = true;
	piece->location = (location << r->shift) + (piece->offset - (chunk << r->shift));
	if (location == COWSNAP_LOCATION_ZERO)
		piece->location = ZEROES;
	if (location != COWSNAP_LOCATION_NONE)
		return 0;
	/* C5: a live snapshot ends at NONE only where it was released. */
	rc = cs_snapshot_state_error(r->snapshot);
	if (!rc)
		rc = any_released(r->snapshot, chunk, chunk + 1) ? -ENODATA : -EIO;
	return rc;
}

static bool read_released(const struct cs_read *r)
{
	return any_released(r->snapshot, r->offset >> r->shift, ((r->end - 1) >> r->shift) + 1);
}

/* Resolves [r->next, r->end) as far as the pieces reach. Returns: 0, -ENODATA (released), or the
 * error of the state. */
static int resolve(struct cs_read *r)
{
	uint64_t locations[LEAF_CHUNKS], last = (r->end - 1) >> r->shift;
	int state = cs_snapshot_state_error(r->snapshot);

	r->count = 0;
	if (state)
		return state;
	if (read_released(r))
		return -ENODATA;
	for (uint64_t chunk = r->next >> r->shift; chunk <= last;) {
		unsigned count = window_count(chunk, last), run;
		uint64_t mask = cs_snapshot_window(r->snapshot, chunk, count, locations);

		for (unsigned i = 0; i < count; i += run, chunk += run) {
			bool saved = mask >> i & 1;
			struct cs_read_piece piece;
			int rc = 0;

			run = same_kind(mask >> i, count - i, saved);
			if (saved)
				run = together(locations + i, run);
			piece = clip(r, chunk, run, r->next, r->end);
			if (saved)
				rc = locate(r, &piece, chunk, locations[i]);
			if (rc)
				return rc;
			if (!add_piece(r, &piece))
				return 0;
		}
	}
	return 0;
}

/* ---- Reading --------------------------------------------------------------------------------- */

static void note_error(struct cs_read *r, int error)
{
	if (error && !r->error)
		r->error = error;
}

static void piece_done(struct cowsnap_io *io, int error)
{
	struct cs_read *r = io->user;

	note_error(r, error);
	if (!--r->open)
		r->op->task.run(&r->op->task);
}

static void start(struct cs_read *r, const struct cs_read_piece *piece)
{
	struct cs_chain *chain = r->snapshot->chain;
	struct cowsnap_device *device = piece->saved ? chain->store->device : chain->device;
	uint64_t from = piece->saved ? piece->location : piece->offset;
	char *to = r->buffer + (piece->offset - r->offset);
	struct cowsnap_io *io;
	int error;

	if (piece->saved && from == ZEROES) {
		memset(to, 0, piece->length);
		return;
	}
	if (!r->queue) {
		note_error(r, cs_dev_read(device, to, from, piece->length));
		return;
	}
	io = &r->io[r->started++];
	io->kind = COWSNAP_IO_READ;
	io->buffer = to;
	io->offset = from;
	io->length = piece->length;
	io->done = piece_done;
	io->user = r;
	r->open++;
	if (cs_dev_start(device, r->queue, io, &error)) {
		r->open--;
		note_error(r, error);
	}
}

/* Goes on with @step when all that was started has ended. */
static enum cs_step join(struct cs_read *r, enum cs_step (*step)(struct cs_read *r))
{
	r->step = step;
	return r->open ? CS_PARK : CS_GO_ON;
}

static enum cs_step end(struct cs_read *r, int rc)
{
	int state = cs_snapshot_state_error(r->snapshot);

	/* What was released meanwhile may have been written since. The fence of look_again() was
	 * after the data; pairs with who writes a chunk because it is released. */
	if (!rc && read_released(r))
		rc = -ENODATA;
	cs_gate_leave(&r->snapshot->chain->store->upper->reads, &r->pass);
	r->error = state ? state : rc;
	return CS_DONE;
}

/* Starts to read again what was saved of a piece since it was read from the origin, from r->chunk
 * on. Returns: false if there are no more requests: go on from r->chunk. */
static bool reread_piece(struct cs_read *r, const struct cs_read_piece *piece)
{
	uint64_t locations[LEAF_CHUNKS], end = piece->offset + piece->length;
	uint64_t last = (end - 1) >> r->shift;

	if (r->chunk < piece->offset >> r->shift)
		r->chunk = piece->offset >> r->shift;
	while (r->chunk <= last) {
		unsigned count = window_count(r->chunk, last), i, run;
		uint64_t mask = cs_snapshot_window(r->snapshot, r->chunk, count, locations);
		struct cs_read_piece saved;

		if (!mask) {
			r->chunk += count;
			continue;
		}
		if (r->started == CS_READ_IOS)
			return false;
		i = (unsigned)__builtin_ctzll(mask);
		run = together(locations + i, same_kind(mask >> i, count - i, true));
		saved = clip(r, r->chunk + i, run, piece->offset, end);
		note_error(r, locate(r, &saved, r->chunk + i, locations[i]));
		if (!r->error)
			start(r, &saved);
		if (r->error)
			return true;
		cs_stats_add(r->snapshot->chain->stats, CS_STAT_REREAD_CHUNKS, run);
		r->chunk += i + run;
	}
	return true;
}

static enum cs_step resolve_more(struct cs_read *r);

static enum cs_step reread(struct cs_read *r)
{
	const struct cs_read_piece *last = &r->piece[r->count - 1];

	r->started = 0;
	for (; r->looked < r->count && !r->error; r->looked++) {
		const struct cs_read_piece *piece = &r->piece[r->looked];

		if (!piece->saved && !reread_piece(r, piece))
			return join(r, reread);
	}
	r->next = last->offset + last->length;
	return join(r, resolve_more);
}

static enum cs_step look_again(struct cs_read *r)
{
	r->looked = 0;
	r->chunk = 0;
	/* The data first, then the maps; pairs with the publication in settle. */
	cs_full_fence();
	return r->error ? end(r, r->error) : reread(r);
}

static enum cs_step resolve_more(struct cs_read *r)
{
	int rc = r->error;

	if (rc || r->next == r->end)
		return end(r, rc);
	if (r->op && r->op->cancelled)
		return end(r, -ECANCELED);
	rc = resolve(r);
	if (rc)
		return end(r, rc);
	r->started = 0;
	for (size_t i = 0; i < r->count && !r->error; i++)
		start(r, &r->piece[i]);
	return join(r, look_again);
}

/* ---- The calls ------------------------------------------------------------------------------- */

int cs_read_check(const struct cowsnap_snapshot *snapshot, uint64_t offset, uint64_t length)
{
	int rc = cs_snapshot_state_error(snapshot);

	return rc ? rc : cs_range_check(offset, length, snapshot->size_bytes);
}

void cs_read_begin(struct cs_read *r, struct cowsnap_snapshot *snapshot, struct cs_op *op,
	void *buffer, uint64_t offset, uint64_t length)
{
	struct cs_chain *chain = snapshot->chain;

	r->snapshot = snapshot;
	r->op = op;
	r->queue = op && !op->task.queue->blocking ? op->task.queue : NULL;
	r->step = resolve_more;
	r->buffer = buffer;
	r->offset = offset;
	r->end = offset + length;
	r->next = offset;
	r->shift = chain->store->chunk_shift;
	r->started = 0;
	r->open = 0;
	r->error = 0;
	cs_stats_add(chain->stats, CS_STAT_SNAPSHOT_READS, 1);
	cs_gate_enter(&chain->store->upper->reads, &r->pass);
}

enum cs_step cs_read_run(struct cs_read *r)
{
	enum cs_step step;

	do
		step = r->step(r);
	while (step == CS_GO_ON);
	return step;
}

int cs_snapshot_read(
	struct cowsnap_snapshot *snapshot, void *buffer, uint64_t offset, uint64_t length)
{
	struct cs_read read;
	int rc = cs_read_check(snapshot, offset, length);

	if (rc)
		return rc;
	cs_read_begin(&read, snapshot, NULL, buffer, offset, length);
	cs_read_run(&read);
	return read.error;
}

int cs_snapshot_extent(struct cowsnap_snapshot *snapshot, uint64_t offset, uint64_t limit,
	struct cowsnap_extent *extent)
{
	struct cs_chain *chain = snapshot->chain;
	uint32_t shift;
	uint64_t locations[LEAF_CHUNKS], chunk, last, end;
	struct cs_gate_pass pass;
	bool first = true;
	int state, rc = cs_snapshot_state_error(snapshot);

	if (!rc)
		rc = cs_range_check(offset, limit, snapshot->size_bytes);
	if (rc)
		return rc;
	shift = chain->store->chunk_shift;
	chunk = offset >> shift;
	last = (offset + limit - 1) >> shift;
	cs_gate_enter(&chain->store->upper->reads, &pass);
	rc = cs_snapshot_state_error(snapshot);
	if (!rc && any_released(snapshot, chunk, chunk + 1))
		rc = -ENODATA;
	while (!rc && chunk <= last) {
		unsigned count = window_count(chunk, last), run;
		uint64_t mask = cs_snapshot_window(snapshot, chunk, count, locations);
		uint64_t released = cs_bits_window(&snapshot->released, chunk, count);

		if (first)
			extent->saved = mask & 1;
		first = false;
		run = same_kind(mask, count, extent->saved);
		if (released && (unsigned)__builtin_ctzll(released) < run)
			run = (unsigned)__builtin_ctzll(released);
		chunk += run;
		if (run < count)
			break;
	}
	cs_gate_leave(&chain->store->upper->reads, &pass);
	end = chunk << shift;
	extent->offset = offset;
	extent->length = (end < offset + limit ? end : offset + limit) - offset;
	state = cs_snapshot_state_error(snapshot);
	return state ? state : rc;
}
