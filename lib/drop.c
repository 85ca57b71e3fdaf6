/* SPDX-License-Identifier: MIT
 *
 * Dropping a snapshot for a thread that polls. The drop of a persistent store's snapshot waits
 * until nobody holds the store; who holds it may be a chain of requests that goes on only when this
 * thread, or another one that drops something, polls its queue. So the wait is a step.
 *
 * Invariants: it needs no record of its queue: those may all be held by writers that wait for the
 * space which this drop brings.
 *
 * Locking: none while it is parked.
 *
 * Failure: an error, and being cancelled before the store is held, leave the snapshot as it was.
 */
#include "op.h"
#include "origin.h"
#include "workers.h"

#include <errno.h>

static enum cs_step run(struct cs_op *op)
{
	struct cowsnap_snapshot *s = op->snapshot;

	if (op->cancelled) {
		op->error = -ECANCELED;
		return CS_DONE;
	}
	if (!cs_store_hold(s->chain->store, &op->task.waiter))
		return CS_PARK;
	op->error = cs_snapshot_end_held(s, false);
	if (!op->error)
		cs_origin_lost_one(s->chain->origin);
	return CS_DONE;
}

static void release(struct cs_op *op)
{
	(void)op; /* it has none */
}

static const struct cs_op_kind drop = {.go_on = run, .release = release};

int cowsnap_snapshot_drop_async(struct cowsnap_snapshot *snapshot, struct cowsnap_queue *queue,
	struct cowsnap_op *host_op, cowsnap_done *done, void *user)
{
	struct cs_op *op = cs_op_of(host_op);
	struct cowsnap_queue *to;
	int rc = cs_workers_route(snapshot->chain->ctx, queue, done, &to);

	if (rc)
		return rc;
	if (!cs_store_persistent(snapshot->chain->store))
		return cowsnap_snapshot_drop(snapshot);
	cs_op_init(op, to, &drop, done, user);
	op->snapshot = snapshot;
	op->turn.record = op; /* so that none is asked for */
	return queue ? cs_op_go(op) : cs_op_post(op);
}
