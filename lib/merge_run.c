/* SPDX-License-Identifier: MIT
 *
 * Merging: the call that moves, in steps, and the end of a merge. Movers do the work, many at a
 * time where a queue is polled, one after the other where a thread waits: merge_move.c.
 *
 *   without records   next run; throttle; a mover for it; and on, until no mover is free
 *   with records      merge_batch.c
 *   the end           flush; the turn; hold the store; record the drop; heads without the merge;
 *                     drain; reclaiming goes on
 *
 * Invariants: those of merge.c, and:
 *  R3 The call ends when no mover is under way, and nothing is asked of the store.
 *
 * Locking: none over a step.
 *
 * Failure: a mover that fails ends the call, as does being cancelled; what others have moved stays
 * moved, and those that save for others, which may wait for a host, give that up. The next call
 * begins with the chunk that failed.
 */
#include <errno.h>
#include <string.h>

#include "alloc.h"
#include "merge_move.h"
#include "snapshot.h"
#include "workers.h"

/* Groups of 64 chunks that are looked at before the queue goes on with other things. */
#define LOOKS      16384u
/* So much is begun before the queue goes on with other things. */
#define TURN_BYTES UINT64_C(8388608)

/* ---- Waiting --------------------------------------------------------------------------------- */

static enum cs_step throttled(struct cs_moving *moving);

/* It is cancelled, or a mover has failed. */
static void abandon(struct cs_op *op)
{
	struct cs_moving *moving = op->turn.record;

	if (moving->step == throttled &&
		cs_copier_unthrottle(cs_moving_copier(moving), &op->task.waiter)) {
		cs_queue_untime(&op->task);
		cs_task_wake(&op->task);
	}
	cs_movers_stop(moving);
}

/* R3 */
enum cs_step cs_moving_await(
	struct cs_moving *moving, enum cs_step (*step)(struct cs_moving *moving))
{
	if (cs_moving_has_ended(moving))
		cs_movers_stop(moving);
	moving->step = step;
	moving->waits = moving->open > 0;
	moving->op->abandon = moving->waits ? abandon : NULL;
	return moving->waits ? CS_PARK : CS_GO_ON;
}

static enum cs_step admit(struct cs_moving *moving)
{
	struct cs_op *op = moving->op;
	uint64_t until_ns =
		cs_copier_admit(cs_moving_copier(moving), moving->admit_bytes, &op->task.waiter);

	if (!until_ns)
		return cs_moving_go_to(moving, moving->admitted);
	moving->step = throttled;
	op->abandon = abandon;
	op->task.deadline_ns = until_ns;
	return CS_PARK;
}

enum cs_step cs_moving_admit(struct cs_moving *moving, uint64_t bytes,
	enum cs_step (*admitted)(struct cs_moving *moving))
{
	moving->admit_bytes = bytes;
	moving->admitted = admitted;
	return cs_moving_go_to(moving, admit);
}

static enum cs_step begin_more(struct cs_moving *moving);

static enum cs_step throttled(struct cs_moving *moving)
{
	struct cs_op *op = moving->op;

	op->abandon = NULL;
	if (op->task.timed_out &&
		!cs_copier_unthrottle(cs_moving_copier(moving), &op->task.waiter)) {
		op->task.timed_out = false;
		return CS_PARK; /* the wake is on its way */
	}
	return cs_moving_stops(moving) ? begin_more(moving) : admit(moving);
}

static enum cs_step rest(struct cs_moving *moving)
{
	moving->at_once = 0;
	cs_task_wake(&moving->op->task);
	return CS_PARK;
}

bool cs_moving_rests(struct cs_moving *moving)
{
	if (!moving->op->task.queue || moving->at_once < TURN_BYTES)
		return false;
	rest(moving);
	return true;
}

/* ---- Without records ------------------------------------------------------------------------- */

/* The chunks of a window, from that bit of the mask on, that lie together in the store. */
static uint64_t together(uint64_t mask, const uint64_t *locations, unsigned bit, uint64_t most)
{
	uint64_t count = 1, first = locations[bit];

	while (count < most && bit + count < 64 && mask >> (bit + count) & 1 &&
		locations[bit + count] == (first == COWSNAP_LOCATION_ZERO ? first : first + count))
		count++;
	return count;
}

/* In the order of the store, in which they are copied. */
static void sort_parts(struct cs_mover *mover)
{
	for (unsigned i = 1; i < mover->parts; i++) {
		struct cowsnap_run part = mover->part[i];
		unsigned at = i;

		for (; at && mover->part[at - 1].location > part.location; at--)
			mover->part[at] = mover->part[at - 1];
		mover->part[at] = part;
	}
}

/* Parts for a mover: chunks of a window that begins at @first. Where others may need what lies
 * between, one part only. Returns: how many chunks. */
static uint64_t find_parts(struct cs_moving *moving, struct cs_mover *mover, uint64_t first,
	uint64_t mask, const uint64_t *locations)
{
	unsigned most = moving->alone ? CS_MOVER_PARTS : 1;
	uint64_t left = cs_mover_chunks(moving, moving->left), chunks = 0;

	mover->parts = 0;
	while (mask && left && mover->parts < most) {
		struct cowsnap_run *part = &mover->part[mover->parts++];
		unsigned bit = (unsigned)__builtin_ctzll(mask);

		part->first = first + bit;
		part->location = locations[bit];
		part->count = together(mask, locations, bit, left);
		chunks += part->count;
		left -= part->count;
		mover->run.first = mover->parts == 1 ? part->first : mover->run.first;
		mover->run.count = part->first + part->count - mover->run.first;
		bit += (unsigned)part->count;
		mask = bit < 64 ? mask & ~UINT64_C(0) << bit : 0;
	}
	sort_parts(mover);
	return chunks;
}

/* What comes next at or behind the cursor, which goes behind what was looked at. Returns: how many
 * chunks; 0: none so far. */
static uint64_t find_next(struct cs_moving *moving, struct cs_mover *mover)
{
	struct cs_merge *m = moving->merge;
	struct cs_gate *reads = &cs_moving_store(moving)->upper->reads;
	uint64_t end = cs_snapshot_chunks(m->snapshot), locations[64], found = 0;
	struct cs_gate_pass pass;

	cs_gate_enter(reads, &pass);
	for (unsigned looks = LOOKS; looks && m->cursor < end && !found; looks--) {
		unsigned n = cs_window_count(m->cursor, end);
		uint64_t mask = cs_merge_unmoved(m, m->cursor, n, locations);

		found = find_parts(moving, mover, m->cursor, mask, locations);
		m->cursor = found ? mover->run.first + mover->run.count : m->cursor + n;
	}
	cs_gate_leave(reads, &pass);
	cs_reclaim_after_reading(cs_moving_store(moving));
	return found;
}

static enum cs_step fill(struct cs_moving *moving);

static enum cs_step start_next(struct cs_moving *moving)
{
	struct cs_mover *mover = moving->next;

	moving->next = NULL;
	moving->at_once += moving->admit_bytes;
	cs_moving_count_down(moving, moving->admit_bytes);
	cs_copier_piece_begins(cs_moving_copier(moving));
	cs_mover_start(mover);
	return cs_moving_go_to(moving, fill);
}

static enum cs_step fill(struct cs_moving *moving)
{
	uint64_t chunks;

	if (cs_moving_stops(moving) || moving->all)
		return cs_moving_await(moving, moving->open ? fill : cs_moving_over);
	if (moving->open_bytes >= CS_MOVERS_BYTES || !cs_mover_is_free(moving))
		return cs_moving_await(moving, fill);
	if (cs_moving_rests(moving))
		return CS_PARK;
	moving->next = cs_mover_get(moving);
	chunks = find_next(moving, moving->next);
	if (!chunks) {
		cs_mover_put(moving->next);
		moving->next = NULL;
		moving->all = moving->merge->cursor >= cs_snapshot_chunks(moving->merge->snapshot);
		return moving->op->task.queue && !moving->all ? rest(moving) : CS_GO_ON;
	}
	return cs_moving_admit(moving, chunks << cs_merge_shift(moving->merge), start_next);
}

static enum cs_step begin_more(struct cs_moving *moving)
{
	return cs_moving_go_to(moving, moving->merge->records ? cs_merge_batch : fill);
}

/* ---- Flushes --------------------------------------------------------------------------------- */

static void flushed(struct cowsnap_io *io, int error)
{
	struct cs_moving *moving = cs_container_of(io, struct cs_moving, io);

	moving->result = error;
	moving->op->task.run(&moving->op->task);
}

enum cs_step cs_moving_flush(
	struct cs_moving *moving, enum cs_step (*step)(struct cs_moving *moving))
{
	struct cowsnap_queue *queue = moving->op->task.queue;
	struct cowsnap_device *device = moving->merge->origin->device;

	moving->step = step;
	moving->io = (struct cowsnap_io){.kind = COWSNAP_IO_FLUSH, .done = flushed};
	if (queue && !queue->blocking)
		return cs_dev_start(device, queue, &moving->io, &moving->result) ? CS_GO_ON
										 : CS_PARK;
	moving->result = cs_dev_flush(device);
	return CS_GO_ON;
}

/* ---- The end --------------------------------------------------------------------------------- */

static enum cs_step ended(struct cs_moving *moving)
{
	(void)moving;
	return CS_DONE;
}

/* @result: of the call. */
static enum cs_step end(struct cs_moving *moving, int result)
{
	moving->op->error = result;
	moving->step = ended;
	return CS_DONE;
}

static enum cs_step end_turn(struct cs_moving *moving, int result)
{
	cs_turn_end(moving->merge->origin->handle.ctx);
	return end(moving, result);
}

/* M4: whoever entered with the merge has left. */
static enum cs_step drained(struct cs_moving *moving)
{
	struct cs_merge *m = moving->merge;
	struct cowsnap_origin *origin = m->origin;

	if (cs_gate_await_drain(&origin->gate, &moving->op->task.waiter))
		return CS_PARK;
	cs_mutex_lock(&origin->handle.ctx->admin);
	cs_origin_sweep(origin);
	cs_mutex_unlock(&origin->handle.ctx->admin);
	cs_merge_empty(m);
	cs_merge_set_merging(m->snapshot, false);
	return end_turn(moving, 0);
}

static enum cs_step drop(struct cs_moving *moving)
{
	struct cs_merge *m = moving->merge;
	struct cowsnap_store *store = cs_moving_store(moving);
	int rc = 0;

	if (!m->dropped && cs_store_persistent(store)) {
		if (!cs_store_hold(store, &moving->op->task.waiter))
			return CS_PARK;
		rc = cs_snapshot_end_held(m->snapshot, true);
	} else if (!m->dropped) {
		rc = cs_snapshot_end(m->snapshot, true, true);
	}
	m->dropped |= !rc;
	if (!rc)
		rc = cs_merge_retire(m);
	return rc ? end_turn(moving, rc) : cs_moving_go_to(moving, drained);
}

static enum cs_step take_turn(struct cs_moving *moving)
{
	moving->step = drop;
	if (moving->result)
		return end(moving, moving->result);
	return cs_turn_await(moving->merge->origin->handle.ctx, &moving->op->task.waiter)
		       ? CS_PARK
		       : CS_GO_ON;
}

enum cs_step cs_moving_over(struct cs_moving *moving)
{
	moving->op->abandon = NULL;
	/* What was found, but not begun, is found again. */
	if (moving->next && moving->merge->cursor > moving->next->run.first)
		moving->merge->cursor = moving->next->run.first;
	if (moving->error)
		return end(moving, moving->error);
	if (moving->op->cancelled)
		return end(moving, -ECANCELED);
	if (!moving->all)
		return end(moving, 1);
	/* Release: before there are heads without the merge; pairs with cs_merge_unmoved. */
	atomic_store_explicit(&moving->merge->moved, true, memory_order_release);
	/* What was moved without records must be durable before the snapshot goes. */
	moving->result = 0;
	return moving->merge->records ? take_turn(moving) : cs_moving_flush(moving, take_turn);
}

/* ---- The call -------------------------------------------------------------------------------- */

static enum cs_step run(struct cs_moving *moving)
{
	enum cs_step step;

	do
		step = moving->step(moving);
	while (step == CS_GO_ON);
	return step;
}

/* Relaxed: takes are refused while it lasts, so others only go. */
static bool is_alone(const struct cs_merge *m)
{
	struct cowsnap_origin *origin = m->origin;
	uint32_t live = 0;

	cs_mutex_lock(&origin->handle.ctx->admin);
	for (const struct cs_chain *c = origin->chains; c; c = c->next_of_origin)
		live += atomic_load_explicit(&c->live, memory_order_relaxed);
	cs_mutex_unlock(&origin->handle.ctx->admin);
	return live == 1;
}

/* Returns: 0, -EINVAL, -EALREADY, -ENOMEM. */
static int begin(struct cowsnap_snapshot *snapshot, uint64_t max_bytes, struct cs_op *op,
	struct cs_moving **out)
{
	struct cs_merge *m = cs_origin_merge(snapshot->chain->origin);
	struct cs_moving *moving;

	/* Acquire: the drain; pairs with set_ready. */
	if (!m || m->snapshot != snapshot || !atomic_load_explicit(&m->ready, memory_order_acquire))
		return -EINVAL;
	/* Acquire: what the last who ran it did; pairs with finish and leave. */
	if (atomic_exchange_explicit(&m->running, true, memory_order_acquire))
		return -EALREADY;
	/* Not zeroed: most of it is not used by most calls. */
	moving = cs_alloc(snapshot->chain->ctx->base.alloc, sizeof(*moving));
	*out = moving;
	if (!moving)
		return -ENOMEM;
	atomic_store_explicit(&m->error, 0, memory_order_relaxed);
	cs_movers_init(moving);
	moving->merge = m;
	moving->op = op;
	moving->left = max_bytes;
	moving->all = false;
	moving->at_once = 0;
	moving->next = NULL;
	moving->now = &moving->batch[0];
	moving->ahead = &moving->batch[1];
	moving->looks = false;
	moving->alone = is_alone(m);
	moving->step = begin_more;
	return 0;
}

/* With the result, 1, 0 or an error. After 0 the merge may be gone as soon as the host is told. */
static void finish(struct cowsnap_snapshot *snapshot, struct cs_merge *m, int result)
{
	if (!result) {
		cs_origin_lost_one(snapshot->chain->origin);
		cs_event_snapshot(snapshot, COWSNAP_EVENT_MERGED, 0);
		return;
	}
	if (result < 0 && result != -ECANCELED) {
		atomic_store_explicit(&m->error, result, memory_order_relaxed);
		cs_event_snapshot(snapshot, COWSNAP_EVENT_MERGE_FAILED, result);
	}
	/* Release: pairs with begin and leave. */
	atomic_store_explicit(&m->running, false, memory_order_release);
}

static void end_call(struct cs_moving *moving, int result)
{
	struct cs_merge *m = moving->merge;
	struct cowsnap_snapshot *snapshot = m->snapshot;

	cs_free(snapshot->chain->ctx->base.alloc, moving, sizeof(*moving));
	finish(snapshot, m, result);
}

/* As a step that fails. */
static int without_memory(struct cowsnap_snapshot *snapshot)
{
	finish(snapshot, cs_origin_merge(snapshot->chain->origin), -ENOMEM);
	return -ENOMEM;
}

int cowsnap_merge_run(struct cowsnap_snapshot *snapshot, uint64_t max_bytes)
{
	struct cs_moving *moving;
	struct cs_op op;
	int rc;

	cs_op_init(&op, NULL, NULL, NULL, NULL);
	rc = begin(snapshot, max_bytes, &op, &moving);
	if (rc)
		return rc == -ENOMEM ? without_memory(snapshot) : rc;
	while (run(moving) == CS_PARK)
		cs_task_sleep(&op.task);
	end_call(moving, op.error);
	return op.error;
}

static enum cs_step run_op(struct cs_op *op)
{
	return run(op->turn.record);
}

static void release_op(struct cs_op *op)
{
	end_call(op->turn.record, op->error);
}

static const struct cs_op_kind merge_kind = {.go_on = run_op, .release = release_op};

int cowsnap_merge_run_async(struct cowsnap_snapshot *snapshot, struct cowsnap_queue *queue,
	uint64_t max_bytes, struct cowsnap_op *host_op, cowsnap_done *done, void *user)
{
	struct cs_op *op = cs_op_of(host_op);
	struct cs_moving *moving;
	struct cowsnap_queue *to;
	int rc = cs_workers_route(snapshot->chain->ctx, queue, done, &to);

	if (!rc)
		rc = begin(snapshot, max_bytes, op, &moving);
	if (rc)
		return rc == -ENOMEM ? without_memory(snapshot) : rc;
	cs_op_init(op, to, &merge_kind, done, user);
	op->turn.record = moving;
	return queue ? cs_op_start(op) : cs_op_post(op);
}
