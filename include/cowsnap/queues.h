/* SPDX-License-Identifier: MIT
 *
 * cowsnap: queues, for hosts that do not wait: operations, the queues on which they go on, requests
 * to devices. A part of Snapshots; included by cowsnap.h, where the rules for errors, threads and
 * growth are.
 */
#ifndef COWSNAP_QUEUES_H
#define COWSNAP_QUEUES_H

#include <cowsnap.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Operations and queues -------------------------------------------------------------------
 *
 * What can wait has two forms. One waits: it returns when all is done. The other, whose name ends
 * in _async, does not: if it cannot end at once, it returns COWSNAP_PENDING, and a callback tells
 * of the end. Both may be used on one origin, at the same time.
 *
 * A *queue* is where such operations go on: an event loop of the host waits until the queue's file
 * descriptor is readable, or does not wait, and polls. A thread that submits I/O of its own has a
 * queue of its own: copies are then read, written and completed on that thread.
 *
 * A thread should not use the waiting forms while operations of a queue that only it polls are
 * pending: it may wait for one of them, for ever. Let them end first, or start the other form.
 */

/*
 * cowsnap_queue_create - make a queue; the engine of its context says whether it submits or calls
 * @depth: 1 to 4096: how many of its operations can be at work at one time; more may be started,
 *	and wait for their turn. It sets aside about 8 KiB for each. Writes that wait for space keep
 *	theirs: where the taker chose that they may wait long, read backups in another queue.
 * Returns: 0; -EINVAL (depth), -ENOMEM, -EMFILE or -ENFILE (three file descriptors).
 * Context: any thread; does not block; may run in a callback.
 * Lifetime: until cowsnap_queue_close().
 */
COWSNAP_API int cowsnap_queue_create(
	struct cowsnap_ctx *ctx, uint32_t depth, struct cowsnap_queue **queue);

/*
 * cowsnap_queue_close - end a queue
 * Returns: 0; -EBUSY (operations of it have not ended: poll until they have; or it is being
 *	polled; nothing was done), -EBADF (closed already). NULL is accepted.
 * Context: no other call on this queue may be running; does not block; not in a callback.
 * Lifetime: ends that of the queue; the handle stays recognisable until the context ends.
 */
COWSNAP_API int cowsnap_queue_close(struct cowsnap_queue *queue);

/*
 * cowsnap_queue_fd - what to wait on, with poll, epoll or whatever the event loop has
 * Returns: a file descriptor, readable (level-triggered) when cowsnap_queue_poll() has something to
 *	do, deadlines included; -EBADF (closed). Do not read from it.
 * Context: any thread; does not block; may run in a callback.
 * Lifetime: the queue's.
 */
COWSNAP_API int cowsnap_queue_fd(const struct cowsnap_queue *queue);

/*
 * cowsnap_queue_poll - go on with the operations of a queue, and call back those that have ended
 *
 * Does what can be done now, once, and returns. I/O that was submitted since the last poll is
 * handed to the kernel.
 *
 * Returns: how many callbacks ran, 0 or more; -EDEADLK (from inside a callback of this queue; or
 *	two threads poll it), -EBADF (closed).
 * Context: one thread at a time, the one that also starts operations on this queue, or with the
 *	host's own care that they alternate; blocks on devices that cannot be submitted to; not in a
 *	callback.
 * Lifetime: none.
 */
COWSNAP_API int cowsnap_queue_poll(struct cowsnap_queue *queue);

/*
 * cowsnap_op_cancel - have a pending operation end soon
 *
 * What waits for credits, space, a drain, another take or its turn ends with -ECANCELED. What has
 * I/O under way ends when that has ended: with -ECANCELED if more was to be done, else as it would
 * have. Cancelling a write gives its bracket up: there is none to end. A copy that has been made is
 * kept.
 *
 * Returns: 0: the callback will run, or is running. Twice is as once.
 * Context: any thread; does not block; may run in a callback, but not in that of the operation.
 * Lifetime: @op must be pending: its callback must not have returned.
 */
COWSNAP_API int cowsnap_op_cancel(struct cowsnap_op *op);

/* ---- Requests to devices --------------------------------------------------------------------- */

enum cowsnap_io_kind {
	COWSNAP_IO_READ = 1,
	COWSNAP_IO_WRITE = 2,
	COWSNAP_IO_ZERO = 3,
	COWSNAP_IO_DISCARD = 4,
	COWSNAP_IO_FLUSH = 5,
	COWSNAP_IO_WRITE_DURABLE = 6, /* see cowsnap_device_ops.write_durable */
};

/* One request to a device. The caller allocates it and sets what is above the line. */
struct cowsnap_io {
	enum cowsnap_io_kind kind;
	uint32_t reserved;
	void *buffer;    /* READ and the writes */
	uint64_t offset; /* not FLUSH */
	uint64_t length;
	/* Runs inside cowsnap_queue_poll(), and may call what a cowsnap_done may; @error is 0 or
	 * negative, for all of the range. */
	void (*done)(struct cowsnap_io *io, int error);
	void *user;
	/* ---- */
	struct cowsnap_queue *queue; /* where it goes on; a device may look at it */
	uint64_t device_words[6];    /* the device's, from submit to completion */
	uint64_t words[18];          /* the library's */
};

/*
 * cowsnap_device_submit - start a request; cowsnap_io.done tells of its end
 *
 * COWSNAP_IO_FLUSH is a flush that is not waited for.
 * A device that has no submit is called at once, and blocks.
 *
 * Returns: 0 (done will be called), or what is wrong with the request, as cowsnap_device_read()
 *	says; -EINVAL also for an unknown kind or without done; -EBADF (device or queue closed),
 *	-EXDEV (queue of another context).
 * Context: the thread that polls @queue, also in a callback; blocks on a device without submit.
 * Lifetime: @io and its buffer must stay in place until done is called; then they are the caller's.
 *	The device must not be closed before.
 */
COWSNAP_API int cowsnap_device_submit(
	struct cowsnap_device *device, struct cowsnap_queue *queue, struct cowsnap_io *io);

#ifdef __cplusplus
}
#endif

#endif
