/* SPDX-License-Identifier: MIT
 *
 * Writing to a snapshot.
 *
 * What is written lies in the snapshot's store, at locations that a map of the snapshot's own names
 * (s->own); it is looked at before the chain's maps and seen by no other snapshot. A store of a
 * single snapshot has nobody to hide it from, and its records are all that survives: there the
 * writes go into the one map, as the kernel's do.
 *
 * A write goes on run by run:
 *
 *   look     done and with space of its own: written in place, and on. Zeroes already, and zeroes
 *            to be: on. Else a claim is made: of a run of chunks that are written whole, or of one
 *            that is written in part.
 *   space    for the claimed run; none: the write fails, the snapshot stays what it is.
 *   whole    the caller's bytes, or zeroes, straight to the store
 *   part     what the snapshot shows is read piece by piece, except where all of a piece is the
 *            caller's; the caller's bytes are laid over it, and it is written
 *   commit   a store that records does so; then the run is published.
 *
 * Invariants:
 *  W1 A claim or a chunk in `rewriting` is held over I/O, never while waiting for space, a claim or
 *     credits. So an origin's writer who wants the same chunk of the one map waits for I/O only.
 *  W2 s->writers counts writes under way. Who has raised it and then found the snapshot live may
 *     use its maps: reclaiming looks at the state first and leaves a ghost alone while there are
 *     writers. So does a merge, which waits for them.
 *  W3 What is written in place is looked up and written inside the store's read gate: a release
 *     meanwhile takes the location out of the map, but it is freed later (C4). Who publishes looks
 *     after that whether the chunk was released, and who releases looks for what was published.
 *  W4 Only who holds the chunk in `rewriting` gives space to one that has none, and only a
 *     reclaimer takes it away.
 *
 * Locking: none. Failure: a claim is aborted, its space freed; what was written before stays.
 */
#include <errno.h>
#include <string.h>

#include "alloc.h"
#include "origin.h"
#include "snapshot.h"
#include "workers.h"

#define PIECE_BYTES UINT64_C(262144)
#define PIECE_ALIGN 4096u

struct writing {
	struct cowsnap_snapshot *snapshot;
	struct cs_op *op;
	enum cs_step (*step)(struct writing *w); /* the next one */
	enum cowsnap_write_kind kind;
	const char *buffer;
	uint64_t offset; /* of the whole request */
	uint64_t end;
	uint64_t next;   /* what lies before is done */
	uint64_t length; /* of it, in this run */
	uint64_t kept;   /* no chunk before this one was released when it was looked at */
	uint32_t shift;
	struct cowsnap_map *map;
	struct cs_gate_pass pass; /* W3 */
	bool replaces;            /* the chunk is done already, without space */
	bool low_water;
	struct cowsnap_run run;
	struct cowsnap_map_waiter busy;
	struct cowsnap_io io;
	int result; /* of the last request, or commit */
	struct cowsnap_commit commit;
	_Atomic uint32_t commit_open;
	/* Of a chunk that is written in part. */
	uint8_t *piece;
	uint64_t piece_bytes;
	uint64_t at; /* in the snapshot */
	struct cs_read read;
};

static struct cowsnap_store *store_of(const struct writing *w)
{
	return w->snapshot->chain->store;
}

static uint32_t block_of(const struct cowsnap_snapshot *s)
{
	return s->chain->store->device->block_size;
}

static struct cs_gate *reads_of(const struct writing *w)
{
	return &store_of(w)->upper->reads;
}

/* ---- Requests -------------------------------------------------------------------------------- */

static void requested(struct cowsnap_io *io, int error)
{
	struct writing *w = cs_container_of(io, struct writing, io);

	w->result = error;
	w->op->task.run(&w->op->task);
}

/* Goes on with @next when the request to the store's device has ended, with its w->result. */
static enum cs_step request(struct writing *w, enum cowsnap_io_kind kind, const void *buffer,
	uint64_t offset, uint64_t length, enum cs_step (*next)(struct writing *w))
{
	struct cowsnap_queue *queue = w->op->task.queue;
	struct cowsnap_io *io = &w->io;

	w->step = next;
	io->kind = kind;
	io->buffer = (void *)(uintptr_t)buffer;
	io->offset = offset;
	io->length = length;
	io->done = requested;
	if (queue && !queue->blocking)
		return cs_dev_start(store_of(w)->device, queue, io, &w->result) ? CS_GO_ON
										: CS_PARK;
	w->result = cs_dev_call(store_of(w)->device, io);
	return CS_GO_ON;
}

/* The caller's bytes for [w->next, w->next + w->length), to that place of the store. */
static enum cs_step write_bytes(
	struct writing *w, uint64_t to, enum cs_step (*next)(struct writing *w))
{
	if (w->kind == COWSNAP_WRITE)
		return request(w, COWSNAP_IO_WRITE, w->buffer + (w->next - w->offset), to,
			w->length, next);
	return request(w, COWSNAP_IO_ZERO, NULL, to, w->length, next);
}

/* ---- The end --------------------------------------------------------------------------------- */

/* The last one who leaves a ghost lets reclaiming have it. */
static void end_writing(struct cowsnap_snapshot *s)
{
	/* seq_cst: leave, then look; pairs with busy_elsewhere. */
	if (atomic_fetch_sub_explicit(&s->writers, 1, memory_order_seq_cst) != 1 ||
		cs_snapshot_live(s))
		return;
	atomic_store_explicit(&s->chain->store->upper->reclaimable, true, memory_order_relaxed);
	cs_store_wake(s->chain->store);
}

/* W2. Returns: what is wrong with writing to it. */
static int begin_writing(struct cowsnap_snapshot *s)
{
	int rc;

	/* seq_cst: announce, then look; pairs with busy_elsewhere. */
	atomic_fetch_add_explicit(&s->writers, 1, memory_order_seq_cst);
	rc = cs_snapshot_state_error(s);
	if (rc)
		end_writing(s);
	return rc;
}

static enum cs_step end(struct writing *w, int rc)
{
	struct cowsnap_snapshot *s = w->snapshot;
	int state = cs_snapshot_state_error(s);

	cs_free(s->chain->ctx->base.alloc, w->piece, w->piece_bytes);
	w->piece = NULL;
	w->op->error = state ? state : rc;
	end_writing(s);
	return CS_DONE;
}

/* ---- The end of a run ------------------------------------------------------------------------ */

static enum cs_step look(struct writing *w);

static void give_back_claim(struct writing *w)
{
	cowsnap_map_abort(w->replaces ? &w->snapshot->rewriting : w->map, &w->run);
}

/* The claim has ended. */
static void tell_low_water(const struct writing *w)
{
	if (w->low_water)
		cs_event_store(store_of(w), COWSNAP_EVENT_LOW_WATER, 0);
}

static enum cs_step run_failed(struct writing *w)
{
	if (w->run.location <= COWSNAP_LOCATION_MAX)
		cs_store_free(store_of(w), w->run.location, w->run.count);
	give_back_claim(w);
	tell_low_water(w);
	return end(w, w->result);
}

/* Where there is one map, it does not say what of it was written. */
static void note_written(struct writing *w)
{
	/* Relaxed: who sees the entry, or asks when the write has returned, sees this. */
	if (w->map == &w->snapshot->map)
		atomic_store_explicit(&w->snapshot->written, true, memory_order_relaxed);
}

static void publish(struct writing *w)
{
	note_written(w);
	if (!w->replaces) {
		cowsnap_map_publish(w->map, &w->run);
		return;
	}
	cowsnap_map_replace(w->map, w->run.first, w->run.location);
	give_back_claim(w);
}

/* W3 */
static void give_back_released(struct writing *w)
{
	struct cowsnap_snapshot *s = w->snapshot;

	/* The entry first, then the bits; pairs with the fence in cs_reclaim_released. */
	cs_full_fence();
	if (cs_bits_any(&s->released))
		cs_reclaim_released(s, w->run.first, w->run.first + w->run.count);
}

static enum cs_step settle(struct writing *w)
{
	if (w->result)
		return run_failed(w);
	publish(w);
	give_back_released(w);
	tell_low_water(w);
	w->next += w->length;
	w->step = look;
	return CS_GO_ON;
}

static bool last_commit(struct writing *w)
{
	/* Acquire and release: the result; pairs with last_commit on another thread. */
	return atomic_fetch_sub_explicit(&w->commit_open, 1, memory_order_acq_rel) == 1;
}

static void committed(struct cowsnap_commit *commit, int error)
{
	struct writing *w = cs_container_of(commit, struct writing, commit);

	w->result = error;
	if (last_commit(w))
		cs_task_wake(&w->op->task);
}

static enum cs_step commit(struct writing *w)
{
	if (w->result)
		return run_failed(w);
	if (!cs_store_records(store_of(w)))
		return settle(w);
	w->commit.runs = &w->run;
	w->commit.count = 1;
	w->commit.done = committed;
	w->commit.queue = w->op->task.queue;
	/* One for this step, so that nobody wakes the task before it parks. */
	atomic_store_explicit(&w->commit_open, 2, memory_order_relaxed);
	w->step = settle;
	cs_store_start_commit(store_of(w), &w->commit);
	return last_commit(w) ? CS_GO_ON : CS_PARK;
}

/* ---- A part of a chunk ----------------------------------------------------------------------- */

static enum cs_step copy_piece(struct writing *w);

static enum cs_step piece_written(struct writing *w)
{
	if (w->result)
		return run_failed(w);
	w->at += w->piece_bytes;
	return copy_piece(w);
}

static bool get_piece(struct writing *w)
{
	const struct cowsnap_allocator *alloc = w->snapshot->chain->ctx->base.alloc;

	if (!w->piece) {
		w->piece_bytes = UINT64_C(1) << w->shift;
		if (w->piece_bytes > PIECE_BYTES)
			w->piece_bytes = PIECE_BYTES;
		w->piece = cs_alloc_aligned(alloc, w->piece_bytes, PIECE_ALIGN);
	}
	return w->piece != NULL;
}

/* Lays the caller's bytes over the piece that begins at w->at. */
static void overlay(struct writing *w)
{
	uint64_t from = w->next, to = w->next + w->length, stop = w->at + w->piece_bytes;

	if (from < w->at)
		from = w->at;
	if (to > stop)
		to = stop;
	if (from >= to)
		return;
	if (w->kind == COWSNAP_WRITE)
		memcpy(w->piece + (from - w->at), w->buffer + (from - w->offset), to - from);
	else
		memset(w->piece + (from - w->at), 0, to - from);
}

static enum cs_step write_piece(struct writing *w)
{
	uint64_t chunk = w->run.first << w->shift;

	overlay(w);
	return request(w, COWSNAP_IO_WRITE, w->piece,
		(w->run.location << w->shift) + (w->at - chunk), w->piece_bytes, piece_written);
}

static enum cs_step read_piece(struct writing *w)
{
	if (cs_read_run(&w->read) == CS_PARK)
		return CS_PARK;
	cs_reclaim_after_reading(store_of(w));
	w->result = w->read.error;
	return w->result ? run_failed(w) : write_piece(w);
}

static enum cs_step copy_piece(struct writing *w)
{
	struct cowsnap_snapshot *s = w->snapshot;
	struct cs_op *op = w->op->task.queue ? w->op : NULL;
	uint64_t stop = (w->run.first + 1) << w->shift, length = w->piece_bytes;

	if (w->at >= stop || w->at >= s->size_bytes)
		return commit(w);
	if (length > s->size_bytes - w->at) {
		length = s->size_bytes - w->at;
		memset(w->piece + length, 0, w->piece_bytes - length);
	}
	if (w->next <= w->at && w->at + length <= w->next + w->length)
		return write_piece(w);
	w->step = read_piece;
	cs_read_begin(&w->read, s, op, w->piece, w->at, length);
	return read_piece(w);
}

static enum cs_step write_part(struct writing *w)
{
	if (!get_piece(w)) {
		w->result = -ENOMEM;
		return run_failed(w);
	}
	w->at = w->run.first << w->shift;
	return copy_piece(w);
}

/* ---- Space ----------------------------------------------------------------------------------- */

/* Need whole chunks none, because they are to be zeroes and the store can say that? */
static bool spaceless(const struct writing *w)
{
	const struct cowsnap_store *store = store_of(w);

	return w->kind != COWSNAP_WRITE &&
	       (!cs_store_records(store) || store->flags & COWSNAP_STORE_ZEROES);
}

static int get_space(struct writing *w)
{
	struct cowsnap_run got, rest = w->run;
	int rc = cs_reclaim_get_space(store_of(w), &w->run, &got, &w->low_water);

	atomic_store_explicit(&w->snapshot->overflowed, rc == -ENOSPC, memory_order_relaxed);
	if (rc)
		return rc;
	rest.first += got.count;
	rest.count -= got.count;
	if (rest.count)
		cowsnap_map_abort(w->map, &rest);
	w->run = got;
	return 0;
}

/* A run was claimed; @whole: all of its chunks are written as a whole. */
static enum cs_step place(struct writing *w, bool whole)
{
	uint64_t run_end;

	w->low_water = false;
	w->run.location = COWSNAP_LOCATION_ZERO;
	w->result = whole && spaceless(w) ? 0 : get_space(w);
	run_end = (w->run.first + w->run.count) << w->shift;
	w->length = (run_end < w->end ? run_end : w->end) - w->next;
	if (w->result)
		return run_failed(w);
	if (w->run.location == COWSNAP_LOCATION_ZERO)
		return commit(w);
	return whole ? write_bytes(w, w->run.location << w->shift, commit) : write_part(w);
}

/* ---- Looking --------------------------------------------------------------------------------- */

static void busy_wake(struct cowsnap_map_waiter *waiter)
{
	struct writing *w = cs_container_of(waiter, struct writing, busy);

	cs_task_wake(&w->op->task);
}

static enum cs_step wait_for(struct writing *w, struct cowsnap_map *map, uint64_t chunk)
{
	w->step = look;
	w->busy.wake = busy_wake;
	return cowsnap_map_wait(map, chunk, &w->busy) ? CS_GO_ON : CS_PARK;
}

static void leave_gate(struct writing *w)
{
	cs_gate_leave(reads_of(w), &w->pass);
	cs_reclaim_after_reading(store_of(w));
}

static enum cs_step written_in_place(struct writing *w)
{
	leave_gate(w);
	if (w->result)
		return end(w, w->result);
	w->next += w->length;
	w->step = look;
	return CS_GO_ON;
}

/* The end of the snapshot lies in the block; what is beyond it in the store is nobody's. */
static enum cs_step write_last_block(struct writing *w, uint64_t to)
{
	if (!get_piece(w)) {
		leave_gate(w);
		return end(w, -ENOMEM);
	}
	memset(w->piece, 0, block_of(w->snapshot));
	w->at = w->next;
	overlay(w);
	return request(w, COWSNAP_IO_WRITE, w->piece, to, block_of(w->snapshot), written_in_place);
}

/* The chunk has space of its own, and perhaps those that follow, one after the other. W3 */
static enum cs_step write_in_place(struct writing *w, uint64_t chunk, uint64_t location)
{
	uint64_t last = (w->end - 1) >> w->shift, count = 1, next, stop, to, tail;

	note_written(w);
	while (chunk + count <= last && chunk + count < w->kept &&
		cowsnap_map_lookup(w->map, chunk + count, &next) && next == location + count)
		count++;
	stop = (chunk + count) << w->shift;
	w->length = (stop < w->end ? stop : w->end) - w->next;
	to = (location << w->shift) + (w->next - (chunk << w->shift));
	tail = w->length & (block_of(w->snapshot) - 1);
	if (tail && tail == w->length)
		return write_last_block(w, to);
	w->length -= tail;
	return write_bytes(w, to, written_in_place);
}

/* How many whole chunks of the range follow from its next byte on. */
static uint64_t whole_chunks(const struct writing *w)
{
	uint64_t mask = (UINT64_C(1) << w->shift) - 1, end = w->end;

	/* What is beyond the end of the snapshot may as well be zeroes. */
	if (end == w->snapshot->size_bytes && !w->replaces && spaceless(w))
		end = (end + mask) & ~mask;
	return w->next & mask ? 0 : (end - w->next) >> w->shift;
}

/* The chunk is done, and has no space. Others may want to give it some, too. */
static enum cs_step claim_rewriting(struct writing *w, uint64_t chunk)
{
	struct cowsnap_map *rewriting = &w->snapshot->rewriting;
	uint64_t location;
	int rc = cowsnap_map_claim(rewriting, chunk, 1, &w->run);

	if (rc == COWSNAP_CLAIM_BUSY)
		return wait_for(w, rewriting, chunk);
	if (rc < 0)
		return end(w, rc);
	w->replaces = true;
	if (cowsnap_map_lookup(w->map, chunk, &location) && location <= COWSNAP_LOCATION_MAX) {
		give_back_claim(w);
		w->step = look;
		return CS_GO_ON;
	}
	return place(w, whole_chunks(w) > 0);
}

static enum cs_step claim(struct writing *w, uint64_t chunk)
{
	uint64_t whole;
	int rc;

	w->replaces = false;
	whole = whole_chunks(w);
	if (whole > w->kept - chunk)
		whole = w->kept - chunk;
	rc = cowsnap_map_claim(w->map, chunk, whole ? whole : 1, &w->run);
	if (rc < 0)
		return end(w, rc);
	if (rc == COWSNAP_CLAIM_BUSY && w->run.first == chunk)
		return wait_for(w, w->map, chunk);
	if (rc == COWSNAP_CLAIM_MINE && w->run.first == chunk)
		return place(w, whole > 0);
	/* It has become done meanwhile. */
	if (rc == COWSNAP_CLAIM_MINE)
		give_back_claim(w);
	w->step = look;
	return CS_GO_ON;
}

/* Zeroes over zeroes. */
static enum cs_step pass_over(struct writing *w, uint64_t chunk)
{
	uint64_t stop = (chunk + 1) << w->shift;

	w->next = stop < w->end ? stop : w->end;
	w->step = look;
	return CS_GO_ON;
}

/* Was the chunk released? Else w->kept says up to where none was. */
static bool is_released(struct writing *w, uint64_t chunk)
{
	const struct cs_bits *released = &w->snapshot->released;
	uint64_t end = ((w->end - 1) >> w->shift) + 1;

	if (cs_likely(!cs_bits_any(released))) {
		w->kept = end;
		return false;
	}
	if (chunk < w->kept)
		return cs_bits_test(released, chunk);
	for (w->kept = chunk; w->kept < end && !cs_bits_test(released, w->kept);)
		w->kept++;
	return w->kept == chunk;
}

static enum cs_step look(struct writing *w)
{
	uint64_t chunk = w->next >> w->shift, location;
	int rc = cs_snapshot_state_error(w->snapshot);

	if (!rc && w->op->cancelled)
		rc = -ECANCELED;
	if (rc || w->next == w->end)
		return end(w, rc);
	if (is_released(w, chunk))
		return end(w, -ENODATA);
	cs_gate_enter(reads_of(w), &w->pass);
	if (!cowsnap_map_lookup(w->map, chunk, &location)) {
		leave_gate(w);
		return claim(w, chunk);
	}
	if (location <= COWSNAP_LOCATION_MAX)
		return write_in_place(w, chunk, location);
	leave_gate(w);
	if (location == COWSNAP_LOCATION_ZERO && w->kind != COWSNAP_WRITE)
		return pass_over(w, chunk);
	return claim_rewriting(w, chunk);
}

/* It has ended inside the call that began it; the callback comes in a poll. */
static enum cs_step ended(struct writing *w)
{
	(void)w;
	return CS_DONE;
}

static enum cs_step run(struct writing *w)
{
	enum cs_step step;

	do
		step = w->step(w);
	while (step == CS_GO_ON);
	if (step == CS_DONE)
		w->step = ended;
	return step;
}

/* ---- The calls ------------------------------------------------------------------------------- */

static int check(const struct cowsnap_snapshot *s, enum cowsnap_write_kind kind, const void *buffer,
	uint64_t offset, uint64_t length)
{
	uint64_t mask = block_of(s) - 1;
	int rc;

	if ((unsigned)kind - COWSNAP_WRITE > COWSNAP_WRITE_ZEROES - COWSNAP_WRITE)
		return -EINVAL;
	if ((kind == COWSNAP_WRITE) != (buffer != NULL))
		return -EINVAL;
	rc = cs_range_check(offset, length, s->size_bytes);
	if (rc || kind == COWSNAP_DISCARD)
		return rc;
	/* Also where it would do now: the chunk is not written in place only the first time. */
	if (offset & mask || ((offset + length) & mask && offset + length != s->size_bytes))
		return -EINVAL;
	return 0;
}

/* A discard leaves alone what is no whole chunk; the last one of the snapshot may be cut off. */
static void cut_to_chunks(const struct cowsnap_snapshot *s, uint64_t *offset, uint64_t *end)
{
	uint64_t chunk = cs_store_chunk_bytes(s->chain->store);

	*offset = (*offset + chunk - 1) & ~(chunk - 1);
	if (*end != s->size_bytes)
		*end &= ~(chunk - 1);
	if (*end < *offset)
		*end = *offset;
}

static void begin(struct writing *w, struct cowsnap_snapshot *s, enum cowsnap_write_kind kind,
	const void *buffer, uint64_t offset, uint64_t length)
{
	struct cowsnap_store *store = s->chain->store;

	w->snapshot = s;
	w->step = look;
	w->kind = kind;
	w->buffer = buffer;
	w->offset = offset;
	w->end = offset + length;
	if (kind == COWSNAP_DISCARD)
		cut_to_chunks(s, &w->offset, &w->end);
	w->next = w->offset;
	w->kept = 0;
	w->shift = store->chunk_shift;
	w->map = store->flags & COWSNAP_STORE_ONE_SNAPSHOT ? &s->map : &s->own;
	w->piece = NULL;
	w->piece_bytes = 0;
}

int cowsnap_snapshot_write(struct cowsnap_snapshot *snapshot, enum cowsnap_write_kind kind,
	const void *buffer, uint64_t offset, uint64_t length)
{
	struct writing w;
	struct cs_op op;
	int rc = check(snapshot, kind, buffer, offset, length);

	if (!rc)
		rc = begin_writing(snapshot);
	if (rc)
		return rc;
	cs_op_init(&op, NULL, NULL, NULL, NULL);
	begin(&w, snapshot, kind, buffer, offset, length);
	w.op = &op;
	while (run(&w) == CS_PARK)
		cs_task_sleep(&op.task);
	return op.error;
}

static enum cs_step run_op(struct cs_op *op)
{
	return run(op->turn.record);
}

static void release_op(struct cs_op *op)
{
	struct writing *w = op->turn.record;

	cs_free(w->snapshot->chain->ctx->base.alloc, w, sizeof(*w));
}

static const struct cs_op_kind write_kind = {.go_on = run_op, .release = release_op};

int cowsnap_snapshot_write_async(struct cowsnap_snapshot *snapshot, struct cowsnap_queue *queue,
	enum cowsnap_write_kind kind, const void *buffer, uint64_t offset, uint64_t length,
	struct cowsnap_op *host_op, cowsnap_done *done, void *user)
{
	struct cs_op *op = cs_op_of(host_op);
	const struct cowsnap_allocator *alloc = snapshot->chain->ctx->base.alloc;
	struct cowsnap_queue *to;
	struct writing *w;
	int rc = check(snapshot, kind, buffer, offset, length);

	if (!rc)
		rc = cs_workers_route(snapshot->chain->ctx, queue, done, &to);
	if (rc)
		return rc;
	/* Not a record of the queue's: it holds claims over I/O, and waits for others'. */
	w = cs_alloc_zeroed(alloc, sizeof(*w));
	rc = w ? begin_writing(snapshot) : -ENOMEM;
	if (rc) {
		cs_free(alloc, w, sizeof(*w));
		return rc;
	}
	begin(w, snapshot, kind, buffer, offset, length);
	w->op = op;
	cs_op_init(op, to, &write_kind, done, user);
	op->turn.record = w;
	return queue ? cs_op_start(op) : cs_op_post(op);
}

int cowsnap_snapshot_flush(struct cowsnap_snapshot *snapshot)
{
	int rc = begin_writing(snapshot);

	if (rc)
		return rc;
	rc = cs_dev_flush(snapshot->chain->store->device);
	end_writing(snapshot);
	return rc;
}
