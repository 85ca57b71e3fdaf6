/* SPDX-License-Identifier: MIT
 *
 * Operations: from their beginning in a queue to their end, and having them end sooner.
 *
 * One needs a record: of its queue, for which it may have to wait, or of its own. With it, it goes
 * on in steps until one parks; whatever wakes it has it go on in a poll. The queue's record is
 * given back before the callback runs, so that the callback can start the next operation.
 *
 * To cancel one posts a second task of it, the *nudge*, to its queue; all that matters happens
 * there, on one thread. An operation that ends while its nudge is under way calls back only when
 * that has come: until then it is not the host's again.
 *
 * Invariants: `cancel` goes from NONE to NUDGED to CAME or ENDED, or from NONE to ENDED.
 * Locking: none. Failure: none.
 */
#include "op.h"

#include <errno.h>

enum { CANCEL_NONE, CANCEL_NUDGED, CANCEL_CAME, CANCEL_ENDED };

static void call_back(struct cs_op *op)
{
	cs_queue_ended(op->task.queue);
	op->done((struct cowsnap_op *)op, op->user, op->error);
}

static void nudged(struct cs_task *nudge)
{
	struct cs_op *op = cs_container_of(nudge, struct cs_op, nudge);
	int state = CANCEL_NUDGED;

	if (!atomic_compare_exchange_strong_explicit(
		    &op->cancel, &state, CANCEL_CAME, memory_order_relaxed, memory_order_relaxed)) {
		call_back(op);
		return;
	}
	op->cancelled = true;
	if (op->abandon)
		op->abandon(op);
}

void cs_op_init(struct cs_op *op, struct cowsnap_queue *queue, const struct cs_op_kind *kind,
	cowsnap_done *done, void *user)
{
	cs_task_init(&op->task, queue, NULL);
	op->kind = kind;
	op->done = done;
	op->user = user;
	op->error = 0;
	op->abandon = NULL;
	op->cancelled = false;
	if (!queue)
		return;
	op->turn.record = NULL;
	op->turn.task = &op->task;
	atomic_init(&op->cancel, CANCEL_NONE);
	cs_task_init(&op->nudge, queue, nudged);
	cs_queue_began(queue);
}

/* ---- The end --------------------------------------------------------------------------------- */

static void release(struct cs_op *op)
{
	if (op->kind->release)
		op->kind->release(op);
	else if (op->turn.record)
		cs_queue_put_record(op->task.queue, op->turn.record);
}

/* Calls back. The last touch of @op. */
static void finish(struct cs_op *op)
{
	release(op);
	if (atomic_exchange_explicit(&op->cancel, CANCEL_ENDED, memory_order_relaxed) !=
		CANCEL_NUDGED)
		call_back(op);
}

void cs_op_abandoned(struct cs_op *op)
{
	cs_queue_untime(&op->task);
	op->error = -ECANCELED;
	finish(op);
}

/* ---- Going on -------------------------------------------------------------------------------- */

/* Returns: is it done? */
static bool go_on(struct cs_op *op)
{
	if (op->kind->go_on(op) == CS_DONE)
		return true;
	cs_queue_time(op->task.queue, &op->task);
	return false;
}

static void run_on(struct cs_task *task)
{
	struct cs_op *op = cs_op_of_task(task);

	if (go_on(op))
		finish(op);
}

int cs_op_go(struct cs_op *op)
{
	op->task.run = run_on;
	if (!go_on(op))
		return COWSNAP_PENDING;
	release(op);
	cs_queue_dropped(op->task.queue);
	return op->error;
}

static void abandon_turn(struct cs_op *op)
{
	if (!cs_queue_forsake_record(op->task.queue, &op->turn))
		return;
	if (op->kind->forsaken)
		op->kind->forsaken(op);
	cs_op_abandoned(op);
}

/* It has its turn, or comes to its queue for the first time. */
static void run_first(struct cs_task *task)
{
	struct cs_op *op = cs_op_of_task(task);

	if (!op->turn.record && !cs_op_get_record(op)) {
		cs_op_queue(op);
		return;
	}
	op->abandon = NULL;
	op->task.run = run_on;
	if (op->kind->begin)
		op->kind->begin(op);
	run_on(task);
}

int cs_op_queue(struct cs_op *op)
{
	op->task.run = run_first;
	op->abandon = abandon_turn;
	cs_queue_await_record(op->task.queue, &op->turn);
	return COWSNAP_PENDING;
}

int cs_op_start(struct cs_op *op)
{
	op->task.run = run_on;
	if (go_on(op))
		cs_queue_post(op->task.queue, &op->task);
	return COWSNAP_PENDING;
}

int cs_op_post(struct cs_op *op)
{
	op->task.run = run_first;
	cs_queue_post(op->task.queue, &op->task);
	return COWSNAP_PENDING;
}

/* ---- Cancelling ------------------------------------------------------------------------------ */

int cowsnap_op_cancel(struct cowsnap_op *host_op)
{
	struct cs_op *op = cs_op_of(host_op);
	int state = CANCEL_NONE;

	if (atomic_compare_exchange_strong_explicit(
		    &op->cancel, &state, CANCEL_NUDGED, memory_order_relaxed, memory_order_relaxed))
		cs_queue_post(op->task.queue, &op->nudge);
	return 0;
}
