/* SPDX-License-Identifier: MIT
 *
 * Writing the volume as it is. Design in origin_io.c.
 *
 * A write goes on part by part:
 *
 *   no merge          all of it in a bracket
 *   without records   one bracket, in which nothing is moved, so that one that is refused has
 *                     changed nothing; in it run by run a claim, the write, and the run is settled.
 *                     A chunk of which only a part is written is moved first
 *   with records      chunk by chunk a claim, and the write in place; where that cannot be, a
 *                     bracket; what lies behind the snapshot's end in one in which nothing is moved
 *
 * The bracket is the operation's own, by the steps of save.c, inside the gate that was entered
 * before: M4.
 *
 * Invariants: a claim is held over I/O, never while waiting for a bracket or another claim.
 *
 * Locking: none. Failure: the claim and the bracket are given up; what was written before stays.
 */
#include <errno.h>
#include <string.h>

#include "alloc.h"
#include "origin_io.h"
#include "workers.h"

struct writing {
	struct cs_origin_io io;
	enum cowsnap_write_kind kind;
	const char *buffer;
	uint64_t offset; /* of the whole request */
	uint64_t end;
	uint64_t next;                                   /* what lies before is done */
	uint64_t length;                                 /* of the request under way */
	uint64_t stop;                                   /* of the part under way */
	enum cs_step (*opened)(struct cs_origin_io *io); /* the step inside the bracket */
	struct cowsnap_run run;                          /* claimed */
	struct cs_merge_claimant claimant;
	unsigned noted; /* of the first chunk and the last one */
	uint64_t place; /* of w->next, in the store */
	/* A block of the store's device that is written in part. */
	char *block;
	uint64_t block_bytes;
	struct cs_save save;
};

static struct writing *writing_of(struct cs_origin_io *io)
{
	return cs_container_of(io, struct writing, io);
}

static struct cowsnap_device *store_device(const struct writing *w)
{
	return w->io.merge->snapshot->chain->store->device;
}

static const char *bytes_of(const struct writing *w)
{
	return w->buffer ? w->buffer + (w->next - w->offset) : NULL;
}

/* The bytes from w->next on, to that place of a device. */
static enum cs_step write_bytes(struct writing *w, struct cowsnap_device *device, uint64_t to,
	uint64_t length, enum cs_step (*next)(struct cs_origin_io *io))
{
	static const enum cowsnap_io_kind kinds[] = {
		[COWSNAP_WRITE] = COWSNAP_IO_WRITE,
		[COWSNAP_DISCARD] = COWSNAP_IO_DISCARD,
		[COWSNAP_WRITE_ZEROES] = COWSNAP_IO_ZERO,
	};

	w->length = length;
	return cs_origin_io_request(&w->io, device, kinds[w->kind], bytes_of(w), to, length, next);
}

static enum cs_step next_part(struct cs_origin_io *io);

/* ---- In a bracket ---------------------------------------------------------------------------- */

static void close_bracket(struct writing *w)
{
	cs_gate_leave(&w->io.origin->gate, &w->io.op->pass);
}

static enum cs_step saving(struct cs_origin_io *io)
{
	struct writing *w = writing_of(io);

	if (cs_save_run(&w->save) == CS_PARK)
		return CS_PARK;
	io->op->abandon = NULL;
	if (io->op->error)
		return cs_origin_io_end(io, io->op->error);
	io->step = w->opened;
	return CS_GO_ON;
}

static void set_range(struct writing *w, uint64_t from, uint64_t stop)
{
	w->stop = stop;
	w->io.op->offset = from;
	w->io.op->length = stop - from;
}

static enum cs_step written(struct cs_origin_io *io)
{
	struct writing *w = writing_of(io);

	close_bracket(w);
	if (io->result)
		return cs_origin_io_end(io, io->result);
	w->next += w->length;
	return next_part(io);
}

static enum cs_step write_origin(struct cs_origin_io *io)
{
	struct writing *w = writing_of(io);

	return write_bytes(w, io->origin->device, w->next, w->stop - w->next, written);
}

static enum cs_step write_in_bracket(struct writing *w, uint64_t stop)
{
	set_range(w, w->next, stop);
	w->opened = write_origin;
	w->io.step = cs_origin_begin_write(w->io.op, &w->save) ? write_origin : saving;
	return CS_GO_ON;
}

/* A bracket in which others have what they need of a range, and nothing is moved. */
static enum cs_step write_unmoved(struct writing *w, uint64_t from, uint64_t stop,
	enum cs_step (*opened)(struct cs_origin_io *io))
{
	struct cs_op *op = w->io.op;
	struct cs_heads *heads;

	set_range(w, from, stop);
	w->opened = w->io.step = opened;
	cs_gate_enter(&op->origin->gate, &op->pass);
	heads = cs_origin_heads(op->origin, op->pass.slot);
	if (!cs_merge_others_need(heads, op->offset, op->length))
		return CS_GO_ON;
	cs_save_init(&w->save, op, heads, cs_save_look);
	w->save.moving = true;
	w->io.step = saving;
	return CS_GO_ON;
}

/* ---- Claims ---------------------------------------------------------------------------------- */

static void unclaim(struct writing *w)
{
	cs_merge_unclaim(w->io.merge, &w->run);
}

/* The first chunks of a range. Returns: 0; COWSNAP_CLAIM_BUSY: io->step is to look again, at once
 * or when it is woken, as *step says; or an error. */
static int claim(struct writing *w, uint64_t first, uint64_t count, enum cs_step *step)
{
	w->claimant.task = &w->io.op->task;
	return cs_merge_claim(w->io.merge, first, count, &w->run, &w->claimant, step);
}

/* ---- With records ---------------------------------------------------------------------------- */

static enum cs_step end_in_place(struct writing *w, int error)
{
	unclaim(w);
	return error ? cs_origin_io_end(&w->io, error) : next_part(&w->io);
}

static enum cs_step write_in_place(struct cs_origin_io *io);

static enum cs_step placed(struct cs_origin_io *io)
{
	struct writing *w = writing_of(io);

	if (io->result)
		return end_in_place(w, io->result);
	w->next += w->length;
	w->place += w->length;
	return write_in_place(io);
}

static enum cs_step patch(struct cs_origin_io *io)
{
	struct writing *w = writing_of(io);
	uint64_t inside = w->place & (w->block_bytes - 1);

	if (io->result)
		return end_in_place(w, io->result);
	if (w->buffer)
		memcpy(w->block + inside, bytes_of(w), w->length);
	else
		memset(w->block + inside, 0, w->length);
	return cs_origin_io_request(io, store_device(w), COWSNAP_IO_WRITE, w->block,
		w->place - inside, w->block_bytes, placed);
}

/* A part of one block of the store's device: the rest of it is read before. */
static enum cs_step patch_block(struct writing *w, uint64_t length)
{
	uint64_t size = store_device(w)->block_size;

	if (!w->block) {
		w->block = cs_alloc_aligned(cs_origin_io_alloc(w->io.origin), size,
			size > CS_CACHE_BYTES ? size : CS_CACHE_BYTES);
		w->block_bytes = size;
	}
	if (!w->block)
		return end_in_place(w, -ENOMEM);
	w->length = length;
	return cs_origin_io_request(&w->io, store_device(w), COWSNAP_IO_READ, w->block,
		w->place & ~(size - 1), size, patch);
}

/* At w->place in the store, whose device may write more at once than the origin's. The chunk is
 * claimed, so nobody else writes into its blocks. */
static enum cs_step write_in_place(struct cs_origin_io *io)
{
	struct writing *w = writing_of(io);
	uint64_t size = store_device(w)->block_size, left = w->stop - w->next;
	uint64_t before_end = size - (w->place & (size - 1));

	if (!left)
		return end_in_place(w, 0);
	if (before_end < size || left < size)
		return patch_block(w, left < before_end ? left : before_end);
	return write_bytes(w, store_device(w), w->place, left & ~(size - 1), placed);
}

/* A part of one chunk, where the snapshot has it, if it still has. Zeroes without space have no
 * place for other bytes: who writes such there waits until they were moved. */
static enum cs_step write_chunk(struct cs_origin_io *io)
{
	struct writing *w = writing_of(io);
	struct cs_merge *m = io->merge;
	uint32_t shift = cs_merge_shift(m);
	uint64_t chunk = w->next >> shift, location;
	enum cs_step step;
	int rc = io->op->cancelled ? -ECANCELED : claim(w, chunk, 1, &step);

	if (rc == COWSNAP_CLAIM_BUSY)
		return step;
	if (rc)
		return cs_origin_io_end(io, rc);
	if (!cs_merge_lookup(m, chunk, &location) ||
		(location == COWSNAP_LOCATION_ZERO && w->kind == COWSNAP_WRITE)) {
		unclaim(w);
		return write_in_bracket(w, w->stop);
	}
	/* What is discarded may read as anything. */
	if (w->kind == COWSNAP_DISCARD || location == COWSNAP_LOCATION_ZERO) {
		w->next = w->stop;
		return end_in_place(w, 0);
	}
	rc = cs_store_broken(m->snapshot->chain->store);
	if (rc)
		return end_in_place(w, rc);
	w->place = (location << shift) + (w->next - (chunk << shift));
	return write_in_place(io);
}

/* Behind the end of the snapshot there is nothing to move, nor a place in its store. A bracket of
 * the host's would wait for its last chunk, which may end there. */
static enum cs_step next_with_records(struct writing *w)
{
	uint64_t chunk_bytes = UINT64_C(1) << cs_merge_shift(w->io.merge);
	uint64_t size = w->io.merge->snapshot->size_bytes;
	uint64_t stop = w->end < size ? w->end : size, left = chunk_bytes - w->next % chunk_bytes;

	if (w->next >= stop)
		return write_unmoved(w, w->next, w->end, write_origin);
	w->stop = left < stop - w->next ? w->next + left : stop;
	w->io.step = write_chunk;
	return CS_GO_ON;
}

/* ---- Without records ------------------------------------------------------------------------- */

static enum cs_step end_over(struct writing *w, int error)
{
	close_bracket(w);
	return cs_origin_io_end(&w->io, error);
}

static enum cs_step write_over(struct cs_origin_io *io);

static enum cs_step written_over(struct cs_origin_io *io)
{
	struct writing *w = writing_of(io);
	int rc = io->result;

	if (!rc)
		rc = cs_merge_settle_over(io->merge, &w->run);
	unclaim(w);
	if (rc)
		return end_over(w, rc);
	w->next += w->length;
	io->step = write_over;
	return CS_GO_ON;
}

/* Of the claimed run, as far as it is to be written. */
static enum cs_step write_run(struct writing *w)
{
	uint64_t end = (w->run.first + w->run.count) << cs_merge_shift(w->io.merge);

	return write_bytes(w, w->io.origin->device, w->next,
		(end < w->stop ? end : w->stop) - w->next, written_over);
}

static enum cs_step moved(struct cs_origin_io *io)
{
	struct writing *w = writing_of(io);
	int rc = w->save.target[0].error;

	if (!rc)
		rc = cs_merge_settle(io->merge, &w->run);
	if (!rc)
		return write_run(w);
	unclaim(w);
	return end_over(w, rc);
}

/* Of the one chunk that is claimed only a part is written. */
static enum cs_step move_first(struct writing *w)
{
	struct cs_merge *m = w->io.merge;
	struct cowsnap_copy *copy = &w->save.copy; /* the bracket is open, and needs it no more */

	if (!cs_merge_lookup(m, w->run.first, &w->run.location))
		return write_run(w);
	cs_merge_set_copy(m, &w->run, copy, w->save.target);
	w->io.step = moved;
	return cs_copier_start(w->io.origin->handle.ctx->copier, copy, &w->io.op->task) ? CS_GO_ON
											: CS_PARK;
}

static enum cs_step written_behind(struct cs_origin_io *io)
{
	return end_over(writing_of(io), io->result);
}

/* Run by run: a chunk of which a part is written alone, others together. Until it has been written
 * all of a chunk shows what the snapshot has. */
static enum cs_step write_over(struct cs_origin_io *io)
{
	struct writing *w = writing_of(io);
	uint32_t shift = cs_merge_shift(io->merge);
	uint64_t mask = (UINT64_C(1) << shift) - 1, size = io->merge->snapshot->size_bytes;
	uint64_t whole, chunk = w->next >> shift;
	enum cs_step step;
	bool part;
	int rc;

	if (w->next == w->end || io->op->cancelled)
		return end_over(w, w->next == w->end ? 0 : -ECANCELED);
	/* Behind the snapshot's end there is nothing to move. */
	if (w->next >= size)
		return write_bytes(
			w, io->origin->device, w->next, w->end - w->next, written_behind);
	w->stop = w->end < size ? w->end : size;
	whole = w->stop == size ? size : w->stop & ~mask;
	part = w->next & mask || w->next >= whole;
	rc = claim(w, chunk, part ? 1 : ((whole - 1) >> shift) - chunk + 1, &step);
	if (rc == COWSNAP_CLAIM_BUSY)
		return step;
	if (rc)
		return end_over(w, rc);
	return part ? move_first(w) : write_run(w);
}

/* Others need all of each chunk. */
static enum cs_step begin_over(struct writing *w)
{
	uint64_t mask = (UINT64_C(1) << cs_merge_shift(w->io.merge)) - 1;
	uint64_t size = cs_origin_size(w->io.origin), end = (w->end + mask) & ~mask;

	return write_unmoved(w, w->offset & ~mask, end < size ? end : size, write_over);
}

/* Returns: 0; or COWSNAP_CLAIM_BUSY or an error, as claim(). */
static int note_chunk(struct writing *w, uint64_t chunk, enum cs_step *step)
{
	struct cs_merge *m = w->io.merge;
	uint64_t location;
	int rc;

	if (cs_bits_test(&m->settled, chunk) || cs_merge_lookup(m, chunk, &location))
		return 0;
	rc = claim(w, chunk, 1, step);
	if (rc)
		return rc;
	if (!cs_merge_lookup(m, chunk, &location))
		rc = cs_bits_set(&m->settled, chunk, 1);
	unclaim(w);
	return rc;
}

/* A chunk that nobody has to move is noted as settled before it is saved for others: then it
 * would look like one that is to be moved, here, where only a part of it is written; and a
 * merge that ends meanwhile does not wait for that, so somebody else may write to it. */
static enum cs_step note(struct cs_origin_io *io)
{
	struct writing *w = writing_of(io);
	uint32_t shift = cs_merge_shift(io->merge);
	enum cs_step step = CS_PARK;

	if (io->op->cancelled)
		return cs_origin_io_end(io, -ECANCELED);
	for (; w->noted < 2; w->noted++) {
		uint64_t at = w->noted ? w->end - 1 : w->offset;
		int rc = at < io->merge->snapshot->size_bytes ? note_chunk(w, at >> shift, &step)
							      : 0;

		if (rc == COWSNAP_CLAIM_BUSY)
			return step;
		if (rc)
			return cs_origin_io_end(io, rc);
	}
	return begin_over(w);
}

/* ---- Part by part ---------------------------------------------------------------------------- */

static enum cs_step next_part(struct cs_origin_io *io)
{
	struct writing *w = writing_of(io);

	if (w->next == w->end)
		return cs_origin_io_end(io, 0);
	if (io->op->cancelled)
		return cs_origin_io_end(io, -ECANCELED);
	if (io->merge->records)
		return next_with_records(w);
	w->noted = 0;
	io->step = note;
	return CS_GO_ON;
}

/* A merge may have begun since the look at it: that is entered anew, for a bracket would wait
 * for it where this need not. */
static enum cs_step write_without_merge(struct writing *w)
{
	struct cs_op *op = w->io.op;

	set_range(w, w->next, w->end);
	w->opened = w->io.step = write_origin;
	if (cs_origin_begin_write(op, &w->save))
		return CS_GO_ON;
	w->io.step = saving;
	if (w->save.heads->merge) {
		cs_gate_cancel(&op->origin->gate, &op->pass);
		cs_origin_io_enter_anew(&w->io);
	}
	return CS_GO_ON;
}

static enum cs_step entered(struct cs_origin_io *io)
{
	struct writing *w = writing_of(io);

	if (io->merge)
		return next_part(io);
	cs_origin_io_leave(io);
	return write_without_merge(w);
}

/* ---- The calls ------------------------------------------------------------------------------- */

static int check(const struct cowsnap_origin *origin, enum cowsnap_write_kind kind,
	const void *buffer, uint64_t offset, uint64_t length)
{
	int rc = cs_origin_io_check(origin, offset, length);

	if (!rc && ((unsigned)kind - COWSNAP_WRITE > COWSNAP_WRITE_ZEROES - COWSNAP_WRITE ||
			   (kind == COWSNAP_WRITE) != (buffer != NULL)))
		rc = -EINVAL;
	return rc;
}

static void begin(struct writing *w, struct cowsnap_origin *origin, struct cs_op *op,
	enum cowsnap_write_kind kind, const void *buffer, uint64_t offset, uint64_t length)
{
	cs_origin_io_init(&w->io, origin, op, entered);
	w->kind = kind;
	w->buffer = buffer;
	w->offset = offset;
	w->end = offset + length;
	w->next = offset;
	w->block = NULL;
	w->block_bytes = 0;
}

static void end(struct writing *w)
{
	cs_free(cs_origin_io_alloc(w->io.origin), w->block, w->block_bytes);
}

int cowsnap_origin_write(struct cowsnap_origin *origin, enum cowsnap_write_kind kind,
	const void *buffer, uint64_t offset, uint64_t length)
{
	struct writing w;
	struct cs_op op;
	int rc = check(origin, kind, buffer, offset, length);

	if (rc)
		return rc;
	cs_op_init(&op, NULL, NULL, NULL, NULL);
	begin(&w, origin, &op, kind, buffer, offset, length);
	rc = cs_origin_io_wait(&w.io);
	end(&w);
	return rc;
}

static enum cs_step run_op(struct cs_op *op)
{
	return cs_origin_io_run(op->io);
}

static void release_op(struct cs_op *op)
{
	struct writing *w = writing_of(op->io);
	const struct cowsnap_allocator *alloc = cs_origin_io_alloc(w->io.origin);

	end(w);
	cs_origin_io_release(&w->io);
	cs_free(alloc, w, sizeof(*w));
}

static const struct cs_op_kind write_kind = {.go_on = run_op, .release = release_op};

int cowsnap_origin_write_async(struct cowsnap_origin *origin, struct cowsnap_queue *queue,
	enum cowsnap_write_kind kind, const void *buffer, uint64_t offset, uint64_t length,
	struct cowsnap_op *host_op, cowsnap_done *done, void *user)
{
	struct cs_op *op = cs_op_of(host_op);
	struct cowsnap_queue *to;
	struct writing *w;
	int rc = check(origin, kind, buffer, offset, length);

	if (!rc)
		rc = cs_workers_route(origin->handle.ctx, queue, done, &to);
	if (rc)
		return rc;
	w = cs_alloc(cs_origin_io_alloc(origin), sizeof(*w));
	if (!w)
		return -ENOMEM;
	cs_op_init(op, to, &write_kind, done, user);
	begin(w, origin, op, kind, buffer, offset, length);
	op->turn.record = &w->save; /* as the steps of a bracket want it */
	return cs_origin_io_start(&w->io, queue);
}
