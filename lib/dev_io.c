/* SPDX-License-Identifier: MIT
 *
 * Requests to devices that are not waited for.
 *
 * Whatever thread a device completes a request on, its callback runs on the thread that polls the
 * queue: the completion is posted there, or its source calls cs_io_finish() in its poll. A device
 * without submit is called instead, and the request has ended when the start of it returns.
 *
 * Members that a table leaves out have the fallbacks of dev.c, without blocking: one request of the
 * caller's becomes several of the device's, one after the other. For these the caller's words are
 * changed, and set back before the callback.
 *
 * Invariants: a request is IDLE, or SUBMITTED to a device once; a completion takes it to COMPLETED,
 * and the queue back to IDLE, just before the callback or the next step. A completion that finds
 * anything but SUBMITTED is one too many.
 *
 * Locking: none; the state is one atomic word, the rest is the polling thread's.
 *
 * Failure: the device's error is the request's; the steps after it are left out.
 */
#include <errno.h>
#include <string.h>

#include "dev.h"

enum { IO_IDLE, IO_SUBMITTED, IO_COMPLETED };

/* What the device has been given. */
enum step {
	STEP_WHOLE,   /* the request */
	STEP_ZEROES,  /* a write of zeroes, of a ZERO */
	STEP_WRITE,   /* the write of a WRITE_DURABLE */
	STEP_FLUSH,   /* the flush after it */
	STEP_DISCARD, /* its whole blocks */
	STEP_ENDED,   /* nothing: it has ended inside the call that started it */
};

struct io_state {
	struct cs_task task;
	struct cowsnap_device *device;
	_Atomic int state;
	int error;
	/* The caller's, once a step has changed them. */
	void *buffer;
	uint64_t offset;
	uint64_t length;
	uint8_t step;
	bool counts; /* as an operation of the queue */
};
_Static_assert(sizeof(struct io_state) <= sizeof(((struct cowsnap_io *)NULL)->words), "it fits");

static struct io_state *state_of(struct cowsnap_io *io)
{
	return (struct io_state *)io->words;
}

static struct cowsnap_io *io_of(struct cs_task *task)
{
	struct io_state *state = cs_container_of(task, struct io_state, task);

	return (struct cowsnap_io *)((char *)state - offsetof(struct cowsnap_io, words));
}

/* ---- Steps ----------------------------------------------------------------------------------- */

static void hand_over(struct cowsnap_io *io)
{
	struct io_state *state = state_of(io);

	atomic_store_explicit(&state->state, IO_SUBMITTED, memory_order_relaxed);
	state->device->ops.submit(state->device->user, io);
}

static void set_step(struct cowsnap_io *io, enum step step)
{
	struct io_state *state = state_of(io);

	if (state->step == STEP_WHOLE) {
		state->buffer = io->buffer;
		state->offset = io->offset;
		state->length = io->length;
	}
	state->step = step;
}

static void set_zeroes(struct cowsnap_io *io, uint64_t offset)
{
	struct io_state *state = state_of(io);
	uint64_t left;

	set_step(io, STEP_ZEROES);
	left = state->offset + state->length - offset;
	io->kind = COWSNAP_IO_WRITE;
	io->buffer = (void *)(uintptr_t)cs_dev_zeroes;
	io->offset = offset;
	io->length = left < CS_DEV_ZEROES_BYTES ? left : CS_DEV_ZEROES_BYTES;
}

static void set_back(struct cowsnap_io *io)
{
	static const enum cowsnap_io_kind kinds[] = {
		[STEP_ZEROES] = COWSNAP_IO_ZERO,
		[STEP_WRITE] = COWSNAP_IO_WRITE_DURABLE,
		[STEP_FLUSH] = COWSNAP_IO_WRITE_DURABLE,
		[STEP_DISCARD] = COWSNAP_IO_DISCARD,
	};
	const struct io_state *state = state_of(io);

	if (cs_likely(state->step == STEP_WHOLE) || state->step == STEP_ENDED)
		return;
	io->kind = kinds[state->step];
	io->buffer = state->buffer;
	io->offset = state->offset;
	io->length = state->length;
}

/* A step has ended. Returns: true if another is set, to be handed over. */
static bool next_step(struct cowsnap_io *io, int error)
{
	struct io_state *state = state_of(io);

	switch ((enum step)state->step) {
	case STEP_WHOLE:
		if (cs_likely(io->kind != COWSNAP_IO_ZERO || error != -EOPNOTSUPP))
			return false;
		set_zeroes(io, io->offset);
		return true;
	case STEP_ZEROES:
		if (error || io->offset + io->length == state->offset + state->length)
			return false;
		set_zeroes(io, io->offset + io->length);
		return true;
	case STEP_WRITE:
		if (error || !cs_dev_cached(state->device))
			return false;
		set_step(io, STEP_FLUSH);
		io->kind = COWSNAP_IO_FLUSH;
		return true;
	case STEP_FLUSH:
	case STEP_DISCARD:
	case STEP_ENDED:
		break;
	}
	return false;
}

/* What the device is to be given. Returns: false if there is nothing to do. */
static bool first_step(struct cowsnap_io *io, const struct cowsnap_device *device)
{
	switch (io->kind) {
	case COWSNAP_IO_READ:
	case COWSNAP_IO_WRITE:
		break;
	case COWSNAP_IO_ZERO:
		if (!device->ops.zero)
			set_zeroes(io, io->offset);
		break;
	case COWSNAP_IO_DISCARD:
		if (!device->ops.discard)
			return false;
		set_step(io, STEP_DISCARD);
		if (!cs_dev_whole_blocks(device, &io->offset, &io->length))
			return false;
		break;
	case COWSNAP_IO_FLUSH:
		return cs_dev_cached(device);
	case COWSNAP_IO_WRITE_DURABLE:
		if (cs_dev_cached(device) && device->ops.write_durable)
			break;
		set_step(io, STEP_WRITE);
		io->kind = COWSNAP_IO_WRITE;
		break;
	}
	return true;
}

/* ---- Ends ------------------------------------------------------------------------------------ */

static void ended(struct cowsnap_io *io, int error)
{
	struct io_state *state = state_of(io);

	atomic_store_explicit(&state->state, IO_IDLE, memory_order_relaxed);
	if (next_step(io, error)) {
		hand_over(io);
		return;
	}
	set_back(io);
	if (state->counts)
		cs_queue_ended(io->queue);
	io->done(io, error);
}

static void run_done(struct cs_task *task)
{
	struct cowsnap_io *io = io_of(task);

	ended(io, state_of(io)->error);
}

void cs_io_finish(struct cowsnap_io *io, int error)
{
	ended(io, error);
}

void cowsnap_io_complete(struct cowsnap_io *io, int error)
{
	struct io_state *state = state_of(io);
	int submitted = IO_SUBMITTED;

	if (!atomic_compare_exchange_strong_explicit(&state->state, &submitted, IO_COMPLETED,
		    memory_order_relaxed, memory_order_relaxed)) {
		cs_log(state->device->base, COWSNAP_LOG_ERROR,
			"%s: a request was completed twice, the second time with error %d",
			state->device->name, -error);
		return;
	}
	state->error = error;
	cs_queue_post(io->queue, &state->task);
}

/* ---- Starts ---------------------------------------------------------------------------------- */

int cs_dev_call(struct cowsnap_device *device, const struct cowsnap_io *io)
{
	switch (io->kind) {
	case COWSNAP_IO_READ:
		return cs_dev_read(device, io->buffer, io->offset, io->length);
	case COWSNAP_IO_WRITE:
		return cs_dev_write(device, io->buffer, io->offset, io->length);
	case COWSNAP_IO_ZERO:
		return cs_dev_zero(device, io->offset, io->length);
	case COWSNAP_IO_DISCARD:
		return cs_dev_discard(device, io->offset, io->length);
	case COWSNAP_IO_FLUSH:
		return cs_dev_flush(device);
	case COWSNAP_IO_WRITE_DURABLE:
		return cs_dev_write_durable(device, io->buffer, io->offset, io->length);
	}
	return -EINVAL;
}

static bool start(struct cowsnap_device *device, struct cowsnap_queue *queue, struct cowsnap_io *io,
	bool counts, int *error)
{
	struct io_state *state = state_of(io);

	io->queue = queue;
	cs_task_init(&state->task, queue, run_done);
	state->device = device;
	state->counts = counts;
	state->step = STEP_WHOLE;
	atomic_store_explicit(&state->state, IO_IDLE, memory_order_relaxed);
	if (queue->blocking || !device->ops.submit) {
		*error = cs_dev_call(device, io);
		return true;
	}
	*error = cs_dev_check(device, io->kind, io->offset, io->length);
	if (cs_unlikely(*error))
		return true;
	if (!first_step(io, device)) {
		set_back(io);
		return true;
	}
	hand_over(io);
	return false;
}

bool cs_dev_start(struct cowsnap_device *device, struct cowsnap_queue *queue, struct cowsnap_io *io,
	int *error)
{
	return start(device, queue, io, false, error);
}

void cs_dev_submit(
	struct cowsnap_device *device, struct cowsnap_queue *queue, struct cowsnap_io *io)
{
	struct io_state *state = state_of(io);
	int error;

	cs_queue_began(queue);
	if (!start(device, queue, io, true, &error))
		return;
	/* Never inside the call: whoever calls may hold what done needs. */
	atomic_store_explicit(&state->state, IO_COMPLETED, memory_order_relaxed);
	state->error = error;
	state->step = STEP_ENDED;
	cs_queue_post(queue, &state->task);
}
