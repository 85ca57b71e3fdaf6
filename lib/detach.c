/* SPDX-License-Identifier: MIT
 *
 * Making a snapshot independent of its origin: each chunk that no map from it to the newest one has
 * is saved, as if it were about to be written.
 *
 * It goes over the image once, in ranges, in steps:
 *
 *   look     the next run of chunks that are still in the origin
 *   admit    the throttle
 *   enter    the origin's gate, as a bracket does
 *   save     by the steps of save.c with one head, that of the snapshot's chain
 *
 * What lies behind has been seen to, whatever happens: writes save, and nothing that a live
 * snapshot needs leaves the maps.
 *
 * Invariants: detach_next changes under `detaching`. Nobody loses by it: no trouble is resolved
 * here, an error is the caller's.
 *
 * Locking: none; ctx->admin to wait for the end of a drain, outside of the gate.
 *
 * Failure: claims are given up, the snapshot is as before, and the next call begins with the range
 * that failed. So it is with one that is cancelled.
 */
#include <errno.h>
#include <string.h>

#include "alloc.h"
#include "origin.h"
#include "snapshot.h"
#include "workers.h"

#define RANGE_BYTES (UINT64_C(1) << 20)
/* Groups of 64 chunks that are looked at before the queue goes on with other things. */
#define LOOKS       16384u

/* One call. */
struct detach {
	struct cowsnap_snapshot *snapshot;
	struct cs_op *op;
	enum cs_step (*step)(struct detach *d);
	uint64_t first; /* chunk */
	uint64_t most;  /* chunks to be looked at */
	unsigned looks;
	bool saves;            /* a range is under way */
	uint64_t chunk;        /* of it */
	uint64_t count;        /* in one group of 64 */
	struct cs_heads heads; /* the chain's only */
	struct cs_head head;
	struct cs_save save;
};

static struct cowsnap_copier *copier_of(const struct detach *d)
{
	return d->snapshot->chain->ctx->copier;
}

static struct detach *detach_of(const struct cs_op *op)
{
	return cs_container_of(op->turn.record, struct detach, save);
}

static enum cs_step ended(struct detach *d)
{
	(void)d;
	return CS_DONE;
}

static enum cs_step end(struct detach *d, int result)
{
	d->op->error = result;
	d->step = ended;
	return CS_DONE;
}

static enum cs_step park(
	struct detach *d, enum cs_step (*step)(struct detach *d), void (*abandon)(struct cs_op *op))
{
	d->step = step;
	d->op->abandon = abandon;
	return CS_PARK;
}

/* ---- One range ------------------------------------------------------------------------------- */

static enum cs_step look(struct detach *d);

static void range_ends(struct detach *d)
{
	if (d->saves)
		cs_copier_piece_ends(copier_of(d));
	d->saves = false;
}

static enum cs_step saving(struct detach *d)
{
	struct cs_op *op = d->op;

	if (cs_save_run(&d->save) == CS_PARK)
		return CS_PARK;
	op->abandon = NULL;
	cs_gate_cancel(&op->origin->gate, &op->pass);
	range_ends(d);
	if (op->error)
		return end(d, op->error);
	d->snapshot->detach_next = d->chunk + d->count;
	d->step = look;
	return CS_GO_ON;
}

/* ---- The gate -------------------------------------------------------------------------------- */

static enum cs_step enter(struct detach *d);

static void abandon_outside(struct cs_op *op)
{
	if (cs_ctx_forsake_established(op->origin->handle.ctx, &op->task.waiter))
		cs_op_abandoned(op);
}

/* The take that made these heads is not over, or withdrawn: out of the gate until it is. */
static enum cs_step wait_outside(struct detach *d, uint64_t epoch)
{
	struct cs_op *op = d->op;
	bool parks = cs_ctx_await_established(d->snapshot->chain->ctx, epoch, &op->task.waiter);

	cs_gate_cancel(&op->origin->gate, &op->pass);
	d->step = enter;
	return parks ? park(d, enter, abandon_outside) : CS_GO_ON;
}

/* Acquire: being withdrawn; pairs with turn_back. */
static bool usable(const struct cowsnap_ctx *ctx, const struct cs_heads *heads)
{
	return cs_ctx_is_established(ctx, heads->epoch) &&
	       !atomic_load_explicit(&heads->withdrawn, memory_order_acquire);
}

static bool find_head(struct detach *d, const struct cs_heads *heads)
{
	for (size_t i = 0; heads && i < heads->count; i++) {
		if (heads->head[i].chain != d->snapshot->chain)
			continue;
		d->head = heads->head[i];
		d->heads = (struct cs_heads){
			.epoch = heads->epoch, .count = 1, .room = 1, .head = &d->head};
		return true;
	}
	return false;
}

static enum cs_step enter(struct detach *d)
{
	struct cowsnap_origin *origin = d->snapshot->chain->origin;
	uint32_t shift = d->snapshot->chain->store->chunk_shift;
	struct cs_op *op = d->op;
	struct cs_heads *heads;

	op->abandon = NULL;
	if (op->cancelled)
		return end(d, -ECANCELED);
	cs_gate_enter(&origin->gate, &op->pass);
	heads = cs_origin_heads(origin, op->pass.slot);
	if (heads && !usable(origin->handle.ctx, heads))
		return wait_outside(d, heads->epoch);
	if (!find_head(d, heads)) {
		cs_gate_cancel(&origin->gate, &op->pass);
		return end(d, -EIDRM); /* the chain has no snapshot any more */
	}
	op->offset = d->chunk << shift;
	op->length = d->count << shift;
	cs_save_init(&d->save, op, &d->heads, cs_save_look);
	d->save.no_write = true;
	d->saves = true;
	cs_copier_piece_begins(copier_of(d));
	d->step = saving;
	return CS_GO_ON;
}

/* ---- The throttle ---------------------------------------------------------------------------- */

static void abandon_throttle(struct cs_op *op)
{
	if (cs_copier_unthrottle(copier_of(detach_of(op)), &op->task.waiter))
		cs_op_abandoned(op);
}

static enum cs_step throttled(struct detach *d);

static enum cs_step admit(struct detach *d)
{
	uint64_t bytes = d->count << d->snapshot->chain->store->chunk_shift;
	uint64_t until_ns = cs_copier_admit(copier_of(d), bytes, &d->op->task.waiter);

	d->step = enter;
	if (!until_ns)
		return CS_GO_ON;
	d->op->task.deadline_ns = until_ns;
	return park(d, throttled, abandon_throttle);
}

static enum cs_step throttled(struct detach *d)
{
	struct cs_task *task = &d->op->task;
	bool timed_out = task->timed_out;

	d->op->abandon = NULL;
	task->timed_out = false;
	task->deadline_ns = UINT64_MAX;
	if (timed_out && !cs_copier_unthrottle(copier_of(d), &task->waiter))
		return CS_PARK; /* the wake is on its way */
	d->step = admit;
	return d->op->cancelled ? end(d, -ECANCELED) : CS_GO_ON;
}

/* ---- Looking --------------------------------------------------------------------------------- */

/* Is there anything to be detached: live, and with all its data? */
static int check(const struct cowsnap_snapshot *s)
{
	int rc = cs_read_check(s, 0, 1);

	return !rc && cs_bits_any(&s->released) ? -ENODATA : rc;
}

/* From detach_next on: the next run of chunks that are still in the origin, in the group of 64 and
 * short enough: of at most @left. Goes over what is saved. Returns: 1; 0 (there is none in this
 * group), or what became of the snapshot: inside the read gate a live one keeps its maps. */
static int next_range(struct detach *d, uint64_t left)
{
	struct cowsnap_snapshot *s = d->snapshot;
	struct cowsnap_store *store = s->chain->store;
	uint64_t locations[64], most = RANGE_BYTES >> store->chunk_shift;
	uint64_t chunks = cs_snapshot_chunks(s), next = s->detach_next;
	unsigned count = cs_window_count(next, left < chunks - next ? next + left : chunks);
	struct cs_gate_pass pass;
	uint64_t saved = 0, open;
	int rc;

	cs_gate_enter(&store->upper->reads, &pass);
	rc = cs_read_check(s, 0, 1);
	if (!rc)
		saved = cs_snapshot_window(s, next, count, locations);
	cs_gate_leave(&store->upper->reads, &pass);
	cs_reclaim_after_reading(store);
	if (rc)
		return rc;
	open = ~saved & ~UINT64_C(0) >> (64 - count);
	if (!open) {
		s->detach_next += count;
		return 0;
	}
	s->detach_next += (unsigned)__builtin_ctzll(open);
	saved = ~(open >> __builtin_ctzll(open));
	d->chunk = s->detach_next;
	d->count = saved ? (unsigned)__builtin_ctzll(saved) : 64;
	if (!most)
		most = 1;
	if (d->count > most)
		d->count = most;
	return 1;
}

static enum cs_step rest(struct detach *d)
{
	d->looks = 0;
	cs_task_wake(&d->op->task);
	return CS_PARK;
}

static enum cs_step look(struct detach *d)
{
	struct cowsnap_snapshot *s = d->snapshot;
	uint64_t seen = s->detach_next - d->first;
	int rc = check(s);

	if (rc || s->detach_next >= cs_snapshot_chunks(s))
		return end(d, rc);
	if (d->op->cancelled)
		return end(d, -ECANCELED);
	if (seen && seen >= d->most)
		return end(d, 1);
	if (d->op->task.queue && d->looks++ >= LOOKS)
		return rest(d);
	rc = next_range(d, seen < d->most ? d->most - seen : 1);
	if (rc > 0)
		d->step = admit;
	return rc < 0 ? end(d, rc) : CS_GO_ON;
}

/* ---- The call -------------------------------------------------------------------------------- */

static enum cs_step run(struct detach *d)
{
	enum cs_step step;

	do
		step = d->step(d);
	while (step == CS_GO_ON);
	return step;
}

/* A live snapshot keeps its origin open, and then the call does. */
static int hold_origin(struct cowsnap_snapshot *s)
{
	struct cs_mutex *admin = &s->chain->ctx->admin;
	int rc;

	cs_mutex_lock(admin);
	rc = check(s);
	if (!rc)
		cs_origin_comes(s->chain->origin);
	cs_mutex_unlock(admin);
	return rc;
}

static void stop(struct cowsnap_snapshot *s)
{
	/* Release: the cursor; pairs with begin. */
	atomic_store_explicit(&s->detaching, false, memory_order_release);
}

/* Returns: 0, -EALREADY, or what became of the snapshot. */
static int begin(struct detach *d, struct cowsnap_snapshot *s, struct cs_op *op, uint64_t max_bytes)
{
	int rc;

	/* Acquire: the cursor; pairs with stop. */
	if (atomic_exchange_explicit(&s->detaching, true, memory_order_acquire))
		return -EALREADY;
	rc = hold_origin(s);
	if (rc) {
		stop(s);
		return rc;
	}
	d->snapshot = s;
	d->op = op;
	d->step = look;
	d->first = s->detach_next;
	d->most = max_bytes >> s->chain->store->chunk_shift;
	d->looks = 0;
	d->saves = false;
	op->origin = s->chain->origin;
	return 0;
}

static void finish(struct detach *d)
{
	struct cowsnap_snapshot *s = d->snapshot;

	range_ends(d);
	cs_origin_gone(s->chain->origin);
	/* Release: the maps; pairs with cowsnap_snapshot_info. */
	if (!d->op->error)
		atomic_store_explicit(&s->detached, true, memory_order_release);
	stop(s);
}

int cowsnap_snapshot_detach(struct cowsnap_snapshot *s, uint64_t max_bytes)
{
	struct detach d;
	struct cs_op op;
	int rc;

	cs_op_init(&op, NULL, NULL, NULL, NULL);
	rc = begin(&d, s, &op, max_bytes);
	if (rc)
		return rc;
	while (run(&d) == CS_PARK)
		cs_task_sleep(&op.task);
	finish(&d);
	return op.error;
}

static enum cs_step run_op(struct cs_op *op)
{
	return run(detach_of(op));
}

static void release_op(struct cs_op *op)
{
	struct detach *d = detach_of(op);
	const struct cowsnap_allocator *alloc = d->snapshot->chain->ctx->base.alloc;

	finish(d);
	cs_free(alloc, d, sizeof(*d));
}

static const struct cs_op_kind detach_kind = {.go_on = run_op, .release = release_op};

int cowsnap_snapshot_detach_async(struct cowsnap_snapshot *s, struct cowsnap_queue *queue,
	uint64_t max_bytes, struct cowsnap_op *host_op, cowsnap_done *done, void *user)
{
	const struct cowsnap_allocator *alloc = s->chain->ctx->base.alloc;
	struct cs_op *op = cs_op_of(host_op);
	struct cowsnap_queue *to;
	struct detach *d;
	int rc = cs_workers_route(s->chain->ctx, queue, done, &to);

	if (rc)
		return rc;
	d = cs_alloc(alloc, sizeof(*d));
	if (!d)
		return -ENOMEM;
	rc = begin(d, s, op, max_bytes);
	if (rc) {
		cs_free(alloc, d, sizeof(*d));
		return rc;
	}
	cs_op_init(op, to, &detach_kind, done, user);
	op->turn.record = &d->save; /* as the steps of a bracket want it */
	return queue ? cs_op_start(op) : cs_op_post(op);
}
