/* SPDX-License-Identifier: MIT
 *
 * Operations: what the host's struct cowsnap_op holds. One goes on in steps, as its task says; when
 * the last one is done its callback runs, or the caller that waited returns.
 */
#ifndef CS_OP_H
#define CS_OP_H

#include "gate.h"
#include "queue.h"

struct cs_op;
struct cs_origin_io;

/* What kinds of operations have of their own. All run on the queue's thread. */
struct cs_op_kind {
	/* It has a record of its queue now, holding anything. NULL: it brings one of its own. */
	void (*begin)(struct cs_op *op);
	/* Goes on until it parks or is done: then op->error says how. */
	enum cs_step (*go_on)(struct cs_op *op);
	/* It ends without having had a record. NULL: that is nothing to it. */
	void (*forsaken)(struct cs_op *op);
	/* Gives up a record of its own. NULL: it is the queue's. */
	void (*release)(struct cs_op *op);
};

struct cs_op {
	union {
		struct cowsnap_origin *origin;     /* of a bracket */
		struct cowsnap_snapshot *snapshot; /* of a read */
	};
	struct cs_gate_pass pass; /* of a bracket */

	/* All that follows is set on the slow way only. */
	struct cs_task task;
	const struct cs_op_kind *kind;
	struct cs_queue_turn turn; /* of an operation with a queue; its record */
	cowsnap_done *done;
	void *user;
	uint64_t offset;
	uint64_t length;
	union {
		void *buffer;                            /* of a read */
		const struct cowsnap_preimage *preimage; /* of a bracket */
		struct cs_origin_io *io;                 /* of the volume's own */
	};
	int error;
	/* Of a parked operation that can be cancelled: takes its waiter out and ends it with
	 * -ECANCELED, or does nothing if the wake is on its way. NULL: it goes on to its end, or to
	 * the next look at `cancelled`. On the queue's thread. */
	void (*abandon)(struct cs_op *op);
	bool cancelled;
	_Atomic int cancel; /* op.c */
	struct cs_task nudge;
};
_Static_assert(sizeof(struct cs_op) <= sizeof(struct cowsnap_op), "op fits the host's words");

static inline struct cs_op *cs_op_of(struct cowsnap_op *host_op)
{
	return (struct cs_op *)host_op;
}

static inline struct cs_op *cs_op_of_task(struct cs_task *task)
{
	return cs_container_of(task, struct cs_op, task);
}

/* A caller that waits: @queue and @kind are NULL. Else the operation counts as begun in its queue,
 * and is set going by one of those that follow. */
void cs_op_init(struct cs_op *op, struct cowsnap_queue *queue, const struct cs_op_kind *kind,
	cowsnap_done *done, void *user);

/* A record of its queue for one that has none. On the queue's thread. */
static inline bool cs_op_get_record(struct cs_op *op)
{
	op->turn.record = cs_queue_get_record(op->task.queue);
	return op->turn.record != NULL;
}

/* Goes on at once, with a record that is set up. On the queue's thread. Returns: COWSNAP_PENDING,
 * or op->error: it has ended, and its callback will not run. */
int cs_op_go(struct cs_op *op);
/* Begins when there is a record for it. On the queue's thread. Returns: COWSNAP_PENDING. */
int cs_op_queue(struct cs_op *op);
/* The same from any thread; with a record of its own it goes on in a poll. */
int cs_op_post(struct cs_op *op);
/* Goes on at once with a record of its own. On the queue's thread. Returns: COWSNAP_PENDING: its
 * callback runs in a poll, also if it ends here. */
int cs_op_start(struct cs_op *op);

/* Its waiter was taken out: ends with -ECANCELED. */
void cs_op_abandoned(struct cs_op *op);

#endif
