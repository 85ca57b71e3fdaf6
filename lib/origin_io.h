/* SPDX-License-Identifier: MIT
 *
 * The volume's own reads, writes and flushes, in steps: on the stack of a caller that waits, or in
 * a record of their own. Design in origin_io.c.
 */
#ifndef CS_ORIGIN_IO_H
#define CS_ORIGIN_IO_H

#include "merge.h"

/* What all three have. */
struct cs_origin_io {
	struct cs_op *op;
	struct cowsnap_origin *origin;
	enum cs_step (*step)(struct cs_origin_io *io);    /* the next one */
	enum cs_step (*entered)(struct cs_origin_io *io); /* the first one inside the gate */
	struct cs_gate_pass pass;
	bool inside;
	struct cs_merge *merge; /* of the generation that was entered; NULL: none */
	struct cowsnap_io request;
	int result; /* of it */
};

int cs_origin_io_check(const struct cowsnap_origin *origin, uint64_t offset, uint64_t length);
/* Enters the gate, waits until a merge of that generation is ready, and goes on with @entered. @op
 * was set up before. */
void cs_origin_io_init(struct cs_origin_io *io, struct cowsnap_origin *origin, struct cs_op *op,
	enum cs_step (*entered)(struct cs_origin_io *io));
enum cs_step cs_origin_io_run(struct cs_origin_io *io);
/* All of it, for a thread that waits. Returns: how it ended. */
int cs_origin_io_wait(struct cs_origin_io *io);
/* Sets one in a queue going, whose operation has its record. @queue: as the host gave it. Returns:
 * COWSNAP_PENDING. */
int cs_origin_io_start(struct cs_origin_io *io, struct cowsnap_queue *queue);
/* The end of the one in a queue, before its record is freed. */
void cs_origin_io_release(struct cs_origin_io *io);

/* Steps. A request: goes on with @next when it has ended, with io->result. */
enum cs_step cs_origin_io_request(struct cs_origin_io *io, struct cowsnap_device *device,
	enum cowsnap_io_kind kind, const void *buffer, uint64_t offset, uint64_t length,
	enum cs_step (*next)(struct cs_origin_io *io));
void cs_origin_io_leave(struct cs_origin_io *io);
/* From the gate on, outside of it. */
void cs_origin_io_enter_anew(struct cs_origin_io *io);
enum cs_step cs_origin_io_end(struct cs_origin_io *io, int error);

/* Are its requests submitted? Else devices are called. */
static inline bool cs_origin_io_submits(const struct cs_origin_io *io)
{
	const struct cowsnap_queue *queue = io->op->task.queue;

	return queue && !queue->blocking;
}

static inline const struct cowsnap_allocator *cs_origin_io_alloc(
	const struct cowsnap_origin *origin)
{
	return origin->handle.ctx->base.alloc;
}

#endif
