/* SPDX-License-Identifier: MIT
 *
 * The volume as it is: reads, writes and flushes of an origin for a host that leaves them to the
 * library, and for each host while a snapshot of its volume is merged.
 *
 * Without a merge a read is one of the device, and a write a bracket around one. During a merge a
 * chunk that is not settled is where the snapshot has it. Of a store with records it is written
 * there, in place: see merge.c. Else a write of all of it settles it, and only a part of it has it
 * moved first.
 *
 * Each goes on in steps, a caller that waits through the same ones as an event loop:
 *
 *   enter    the gate; if that generation has a merge, wait until it is ready
 *   read     origin_io_read.c
 *   write    origin_io_write.c
 *   flush    with records the store, then the origin
 *
 * One in a queue brings a record of its own: it holds gates and claims over I/O, and must not wait
 * for a record of the queue meanwhile.
 *
 * Invariants: M1 and M4 of merge.c. A read needs no second look: a chunk that is settled meanwhile
 * held the same in both places when the read began, and what is written to it later is written
 * beside this read.
 *
 * Locking: none. Failure: what was done before an error, or being cancelled, stays done.
 */
#include "origin_io.h"

#include <errno.h>

#include "alloc.h"
#include "workers.h"

int cs_origin_io_check(const struct cowsnap_origin *origin, uint64_t offset, uint64_t length)
{
	if (cs_handle_closed(&origin->handle))
		return -EBADF;
	return cs_range_check(offset, length, cs_origin_size(origin));
}

/* ---- Entering -------------------------------------------------------------------------------- */

void cs_origin_io_leave(struct cs_origin_io *io)
{
	if (io->inside)
		cs_gate_cancel(&io->origin->gate, &io->pass);
	io->inside = false;
}

static enum cs_step enter(struct cs_origin_io *io);

static enum cs_step is_ready(struct cs_origin_io *io)
{
	struct cs_merge *m = io->merge;

	io->op->abandon = NULL;
	if (io->op->cancelled)
		return cs_origin_io_end(io, -ECANCELED);
	/* Of one that was ready all is settled, or its host ends: then it stays true of this
	 * generation. One that was taken back says nothing of where the content is: the next
	 * generation does. */
	/* Acquire: pairs with set_ready. */
	if (atomic_load_explicit(&m->ready, memory_order_acquire)) {
		io->step = io->entered;
		return CS_GO_ON;
	}
	cs_origin_io_leave(io);
	io->step = enter;
	return CS_GO_ON;
}

static void abandon_ready(struct cs_op *op)
{
	if (cs_merge_forsake(op->io->merge, &op->task.waiter))
		cs_op_abandoned(op);
}

/* As a bracket does. */
static enum cs_step enter(struct cs_origin_io *io)
{
	struct cs_heads *heads;

	if (io->op->cancelled)
		return cs_origin_io_end(io, -ECANCELED);
	cs_gate_enter(&io->origin->gate, &io->pass);
	io->inside = true;
	heads = cs_origin_heads(io->origin, io->pass.slot);
	io->merge = heads ? heads->merge : NULL;
	io->step = io->merge ? is_ready : io->entered;
	if (!io->merge || !cs_merge_await_ready(io->merge, &io->op->task.waiter))
		return CS_GO_ON;
	io->op->abandon = abandon_ready;
	return CS_PARK;
}

void cs_origin_io_enter_anew(struct cs_origin_io *io)
{
	io->step = enter;
}

void cs_origin_io_init(struct cs_origin_io *io, struct cowsnap_origin *origin, struct cs_op *op,
	enum cs_step (*entered)(struct cs_origin_io *io))
{
	op->origin = origin;
	op->io = io;
	io->op = op;
	io->origin = origin;
	io->step = enter;
	io->entered = entered;
	io->inside = false;
	io->merge = NULL;
	io->result = 0;
}

/* ---- Requests -------------------------------------------------------------------------------- */

static void requested(struct cowsnap_io *request, int error)
{
	struct cs_origin_io *io = cs_container_of(request, struct cs_origin_io, request);

	io->result = error;
	io->op->task.run(&io->op->task);
}

enum cs_step cs_origin_io_request(struct cs_origin_io *io, struct cowsnap_device *device,
	enum cowsnap_io_kind kind, const void *buffer, uint64_t offset, uint64_t length,
	enum cs_step (*next)(struct cs_origin_io *io))
{
	struct cowsnap_io *request = &io->request;

	io->step = next;
	request->kind = kind;
	request->buffer = (void *)(uintptr_t)buffer;
	request->offset = offset;
	request->length = length;
	request->done = requested;
	if (cs_origin_io_submits(io))
		return cs_dev_start(device, io->op->task.queue, request, &io->result) ? CS_GO_ON
										      : CS_PARK;
	io->result = cs_dev_call(device, request);
	return CS_GO_ON;
}

/* ---- Going on -------------------------------------------------------------------------------- */

/* It has ended inside the call that began it; the callback comes in a poll. */
static enum cs_step ended(struct cs_origin_io *io)
{
	(void)io;
	return CS_DONE;
}

enum cs_step cs_origin_io_end(struct cs_origin_io *io, int error)
{
	cs_origin_io_leave(io);
	io->op->error = error;
	io->step = ended;
	return CS_DONE;
}

enum cs_step cs_origin_io_run(struct cs_origin_io *io)
{
	enum cs_step step;

	do
		step = io->step(io);
	while (step == CS_GO_ON);
	return step;
}

int cs_origin_io_wait(struct cs_origin_io *io)
{
	while (cs_origin_io_run(io) == CS_PARK)
		cs_task_sleep(&io->op->task);
	return io->op->error;
}

int cs_origin_io_start(struct cs_origin_io *io, struct cowsnap_queue *queue)
{
	cs_origin_comes(io->origin);
	return queue ? cs_op_start(io->op) : cs_op_post(io->op);
}

void cs_origin_io_release(struct cs_origin_io *io)
{
	cs_origin_io_leave(io);
	cs_origin_gone(io->origin);
}

/* ---- Flushing -------------------------------------------------------------------------------- */

static enum cs_step flush_device(struct cs_origin_io *io, struct cowsnap_device *device,
	enum cs_step (*next)(struct cs_origin_io *io))
{
	return cs_origin_io_request(io, device, COWSNAP_IO_FLUSH, NULL, 0, 0, next);
}

static enum cs_step origin_flushed(struct cs_origin_io *io)
{
	return cs_origin_io_end(io, io->result);
}

static enum cs_step store_flushed(struct cs_origin_io *io)
{
	/* What was written in place is of use only with its record. */
	if (!io->result && io->merge && io->merge->records)
		io->result = cs_store_broken(io->merge->snapshot->chain->store);
	if (io->result)
		return cs_origin_io_end(io, io->result);
	cs_origin_io_leave(io);
	return flush_device(io, io->origin->device, origin_flushed);
}

/* A store that must hear of it has its device flushed at once: others of this thread, who wait in a
 * call until nobody holds it, could not have a request end. */
static enum cs_step flush_held(struct cs_origin_io *io)
{
	struct cowsnap_store *store = io->merge->snapshot->chain->store;
	struct cs_task *task = &io->op->task;

	if (io->op->cancelled)
		return cs_origin_io_end(io, -ECANCELED);
	if (!task->queue)
		io->result = cs_store_hold_waiting(store);
	else if (!cs_store_hold(store, &task->waiter))
		return CS_PARK;
	if (!io->result) {
		io->result = store->flush(store->user);
		cs_store_unhold(store);
	}
	return store_flushed(io);
}

/* The store first: a chunk that is moved meanwhile comes to the origin before its flush. */
static enum cs_step flush(struct cs_origin_io *io)
{
	struct cowsnap_store *store;

	if (!io->merge || !io->merge->records)
		return store_flushed(io);
	store = io->merge->snapshot->chain->store;
	io->step = flush_held;
	return store->flush ? CS_GO_ON : flush_device(io, store->device, store_flushed);
}

int cowsnap_origin_flush(struct cowsnap_origin *origin)
{
	struct cs_origin_io io;
	struct cs_op op;

	if (cs_handle_closed(&origin->handle))
		return -EBADF;
	cs_op_init(&op, NULL, NULL, NULL, NULL);
	cs_origin_io_init(&io, origin, &op, flush);
	return cs_origin_io_wait(&io);
}

static enum cs_step run_op(struct cs_op *op)
{
	return cs_origin_io_run(op->io);
}

static void release_op(struct cs_op *op)
{
	struct cs_origin_io *io = op->io;
	const struct cowsnap_allocator *alloc = cs_origin_io_alloc(io->origin);

	cs_origin_io_release(io);
	cs_free(alloc, io, sizeof(*io));
}

static const struct cs_op_kind flush_kind = {.go_on = run_op, .release = release_op};

int cowsnap_origin_flush_async(struct cowsnap_origin *origin, struct cowsnap_queue *queue,
	struct cowsnap_op *host_op, cowsnap_done *done, void *user)
{
	struct cs_op *op = cs_op_of(host_op);
	struct cs_origin_io *io;
	struct cowsnap_queue *to;
	int rc = cs_handle_closed(&origin->handle) ? -EBADF : 0;

	if (!rc)
		rc = cs_workers_route(origin->handle.ctx, queue, done, &to);
	if (rc)
		return rc;
	io = cs_alloc(cs_origin_io_alloc(origin), sizeof(*io));
	if (!io)
		return -ENOMEM;
	cs_op_init(op, to, &flush_kind, done, user);
	cs_origin_io_init(io, origin, op, flush);
	op->turn.record = io;
	return cs_origin_io_start(io, queue);
}
