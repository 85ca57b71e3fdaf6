/* SPDX-License-Identifier: MIT
 *
 * Merging: the call that moves, in steps, and the end of a merge. Movers do the work, many at a
 * time where a queue is polled, one after the other where a thread waits: merge_move.c.
 *
 *   without records   next run; throttle; a mover for it; and on, until no mover is free
 *   with records      the newest records, as a batch of runs; throttle; a mover for each; when all
 *                     have arrived: flush the origin, forget the records, settle; and on
 *   the end           flush; the turn; hold the store; record the drop; heads without the merge;
 *                     drain; reclaiming goes on
 *
 * Invariants: those of merge.c, and:
 *  R1 The runs of a batch have no chunk in common: what is moved is what the newest record says.
 *  R2 With records nothing of a batch is given up before its records are gone or it has failed; all
 *     of it is saved for others, and the throttle asked, before the first claim. So who waits for
 *     a chunk of it waits for I/O.
 *  R3 The call ends when no mover is under way.
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

#define MOVE_CHUNKS  64u
#define MOVE_BYTES   UINT64_C(1048576)
#define BATCH_BYTES  UINT64_C(4194304)
/* Groups of 64 chunks that are looked at before the queue goes on with other things. */
#define LOOKS        16384u
/* More at a time are slower: their buffers leave the caches. */
#define FLIGHT_BYTES UINT64_C(4194304)
/* So much is begun before the queue goes on with other things. */
#define TURN_BYTES   UINT64_C(8388608)

static struct cowsnap_copier *copier_of(const struct cs_moving *moving)
{
	return moving->merge->origin->handle.ctx->copier;
}

static struct cowsnap_store *store_of(const struct cs_moving *moving)
{
	return moving->merge->snapshot->chain->store;
}

/* ---- Waiting --------------------------------------------------------------------------------- */

static enum cs_step go_to(struct cs_moving *moving, enum cs_step (*step)(struct cs_moving *moving))
{
	moving->step = step;
	return CS_GO_ON;
}

static enum cs_step throttled(struct cs_moving *moving);

static bool has_ended(const struct cs_moving *moving)
{
	return moving->error || moving->op->cancelled;
}

/* Is that all for this call? */
static bool stops(const struct cs_moving *moving)
{
	return has_ended(moving) || !moving->left;
}

/* It is cancelled, or a mover has failed. */
static void abandon(struct cs_op *op)
{
	struct cs_moving *moving = op->turn.record;

	if (moving->step == throttled &&
		cs_copier_unthrottle(copier_of(moving), &op->task.waiter)) {
		cs_queue_untime(&op->task);
		cs_task_wake(&op->task);
	}
	cs_movers_stop(moving);
}

/* R3 */
static enum cs_step when_movers_end(
	struct cs_moving *moving, enum cs_step (*step)(struct cs_moving *moving))
{
	if (has_ended(moving))
		cs_movers_stop(moving);
	moving->step = step;
	moving->waits = moving->open > 0;
	moving->op->abandon = moving->waits ? abandon : NULL;
	return moving->waits ? CS_PARK : CS_GO_ON;
}

/* Goes on with moving->admitted when the throttle lets admit_bytes go. */
static enum cs_step admit(struct cs_moving *moving)
{
	struct cs_op *op = moving->op;
	uint64_t until_ns =
		cs_copier_admit(copier_of(moving), moving->admit_bytes, &op->task.waiter);

	if (!until_ns)
		return go_to(moving, moving->admitted);
	moving->step = throttled;
	op->abandon = abandon;
	op->task.deadline_ns = until_ns;
	return CS_PARK;
}

static enum cs_step begin_more(struct cs_moving *moving);

static enum cs_step throttled(struct cs_moving *moving)
{
	struct cs_op *op = moving->op;

	op->abandon = NULL;
	if (op->task.timed_out && !cs_copier_unthrottle(copier_of(moving), &op->task.waiter)) {
		op->task.timed_out = false;
		return CS_PARK; /* the wake is on its way */
	}
	return stops(moving) ? begin_more(moving) : admit(moving);
}

/* Has it begun so much that others in the queue are to go on? */
static bool is_long(const struct cs_moving *moving)
{
	return moving->op->task.queue && moving->at_once >= TURN_BYTES;
}

static enum cs_step rest(struct cs_moving *moving)
{
	moving->at_once = 0;
	cs_task_wake(&moving->op->task);
	return CS_PARK;
}

static void count_down(struct cs_moving *moving, uint64_t bytes)
{
	moving->left -= bytes < moving->left ? bytes : moving->left;
}

/* ---- Without records ------------------------------------------------------------------------- */

/* How many chunks one mover has at most. */
static uint64_t at_once(const struct cs_moving *moving)
{
	uint64_t bytes = moving->left < MOVE_BYTES ? moving->left : MOVE_BYTES;
	uint64_t chunks = bytes >> cs_merge_shift(moving->merge);

	if (chunks > MOVE_CHUNKS)
		return MOVE_CHUNKS;
	return chunks ? chunks : 1;
}

/* The chunks of a window, from that bit of the mask on, that lie together in the store. */
static uint64_t together(uint64_t mask, const uint64_t *locations, unsigned bit, uint64_t most)
{
	uint64_t count = 1, first = locations[bit];

	while (count < most && bit + count < 64 && mask >> (bit + count) & 1 &&
		locations[bit + count] == (first == COWSNAP_LOCATION_ZERO ? first : first + count))
		count++;
	return count;
}

/* Parts for a mover: chunks of a window that begins at @first. Where others may need what lies
 * between, one part only. Returns: how many chunks. */
static uint64_t find_parts(struct cs_moving *moving, struct cs_mover *mover, uint64_t first,
	uint64_t mask, const uint64_t *locations)
{
	unsigned most = moving->alone ? CS_MOVER_PARTS : 1;
	uint64_t left = at_once(moving), chunks = 0;

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
	return chunks;
}

/* What comes next at or behind the cursor, which goes behind what was looked at. Returns: how many
 * chunks; 0: none so far. */
static uint64_t find_next(struct cs_moving *moving, struct cs_mover *mover)
{
	struct cs_merge *m = moving->merge;
	struct cs_gate *reads = &store_of(moving)->upper->reads;
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
	cs_reclaim_after_reading(store_of(moving));
	return found;
}

static enum cs_step over(struct cs_moving *moving);
static enum cs_step fill(struct cs_moving *moving);

static enum cs_step start_next(struct cs_moving *moving)
{
	struct cs_mover *mover = moving->next;

	moving->next = NULL;
	moving->at_once += moving->admit_bytes;
	count_down(moving, moving->admit_bytes);
	cs_copier_piece_begins(copier_of(moving));
	cs_mover_start(mover);
	return go_to(moving, fill);
}

static enum cs_step fill(struct cs_moving *moving)
{
	uint64_t chunks;

	if (stops(moving) || moving->all)
		return when_movers_end(moving, moving->open ? fill : over);
	if (moving->open_bytes >= FLIGHT_BYTES || !cs_mover_is_free(moving))
		return when_movers_end(moving, fill);
	if (is_long(moving))
		return rest(moving);
	moving->next = cs_mover_get(moving);
	chunks = find_next(moving, moving->next);
	if (!chunks) {
		cs_mover_put(moving->next);
		moving->next = NULL;
		moving->all = moving->merge->cursor >= cs_snapshot_chunks(moving->merge->snapshot);
		return moving->op->task.queue && !moving->all ? rest(moving) : CS_GO_ON;
	}
	moving->admit_bytes = chunks << cs_merge_shift(moving->merge);
	moving->admitted = start_next;
	return go_to(moving, admit);
}

/* ---- With records ---------------------------------------------------------------------------- */

static enum cs_step batch(struct cs_moving *moving);

/* Ends a batch. @keep: of this run of it and those behind it claims are kept. */
static void end_batch(struct cs_moving *moving, size_t keep)
{
	struct cs_merge *m = moving->merge;

	for (unsigned i = 0; i < moving->movers; i++) {
		struct cs_mover *mover = &moving->mover[i];

		if (mover->stage == CS_MOVER_ARRIVED)
			cs_mover_release(mover, mover->batch >= keep);
	}
	cs_copier_piece_ends(copier_of(moving));
	cs_merge_wake_waiting(m);
}

/* The records are gone. A chunk that has an older one too counts once. */
static enum cs_step settle_batch(struct cs_moving *moving)
{
	struct cs_merge *m = moving->merge;
	size_t settled = 0;
	int rc = 0;

	while (settled < moving->now->runs && !rc) {
		rc = cs_merge_settle_over(m, &moving->now->run[settled]);
		settled += !rc;
	}
	/* What is not settled nobody may write in place any more: it stays claimed until there is
	 * memory. */
	m->forgotten_count = moving->now->runs - settled;
	memcpy(m->forgotten, &moving->now->run[settled],
		m->forgotten_count * sizeof(*m->forgotten));
	if (rc)
		moving->error = rc;
	end_batch(moving, settled);
	return go_to(moving, batch);
}

static enum cs_step batch_failed(struct cs_moving *moving, int error)
{
	moving->error = error;
	end_batch(moving, moving->now->runs);
	return go_to(moving, over);
}

/* M3 */
static enum cs_step forget(struct cs_moving *moving)
{
	int rc = moving->result;

	if (!rc)
		rc = cs_store_forget(store_of(moving), moving->now->run, moving->now->runs);
	if (rc)
		return batch_failed(moving, rc);
	count_down(moving, moving->now->chunks << cs_merge_shift(moving->merge));
	return settle_batch(moving);
}

static void flushed(struct cowsnap_io *io, int error)
{
	struct cs_moving *moving = cs_container_of(io, struct cs_moving, io);

	moving->result = error;
	moving->op->task.run(&moving->op->task);
}

/* Goes on with @step when the origin is flushed, with moving->result. */
static enum cs_step flush(struct cs_moving *moving, enum cs_step (*step)(struct cs_moving *moving))
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

/* Somebody has failed. The newest runs before his, of which all have come to @stage, can go on; the
 * others are given up. */
static void cut_batch(struct cs_moving *moving, enum cs_mover_stage stage)
{
	moving->ahead->runs = 0;
	for (unsigned i = 0; i < moving->movers; i++) {
		const struct cs_mover *mover = &moving->mover[i];

		if (mover->stage != stage && mover->batch < moving->now->runs)
			moving->now->runs = mover->batch;
	}
	for (unsigned i = 0; i < moving->movers; i++) {
		struct cs_mover *mover = &moving->mover[i];

		if (mover->stage == stage && mover->batch >= moving->now->runs) {
			cs_mover_release(mover, false);
			mover->stage = CS_MOVER_WORKS;
		}
	}
}

static enum cs_step batch_moved(struct cs_moving *moving)
{
	if (moving->open)
		return when_movers_end(moving, batch_moved);
	if (moving->error)
		cut_batch(moving, CS_MOVER_ARRIVED);
	return moving->now->runs ? flush(moving, forget) : batch_failed(moving, moving->error);
}

/* R1. A chunk may have two records: zeroes, and then space. */
static bool meets(const struct cs_merge_batch *b, size_t i)
{
	const struct cowsnap_run *run = &b->run[i];

	for (const struct cowsnap_run *newer = b->run; newer < run; newer++) {
		if (run->first < newer->first + newer->count &&
			newer->first < run->first + run->count)
			return true;
	}
	return false;
}

/* How many chunks of a run of a batch one mover has at most. */
static uint64_t mover_chunks(const struct cs_moving *moving)
{
	uint64_t chunks = MOVE_BYTES >> cs_merge_shift(moving->merge);

	if (chunks > MOVE_CHUNKS)
		return MOVE_CHUNKS;
	return chunks ? chunks : 1;
}

/* How many chunks a batch has at most. There are movers for them: one for each run, and for each
 * part that a run is cut into. */
static uint64_t batch_chunks(const struct cs_moving *moving)
{
	uint64_t bytes = moving->left < BATCH_BYTES ? moving->left : BATCH_BYTES;
	uint64_t chunks = bytes >> cs_merge_shift(moving->merge);
	uint64_t most = (CS_MOVERS - CS_MERGE_BATCH) * mover_chunks(moving);

	if (chunks > most)
		return most;
	return chunks ? chunks : 1;
}

/* What comes when the newest @skip records are gone. Returns: how many runs, 0 or an error. */
static int find_batch(struct cs_moving *moving, struct cs_merge_batch *b, uint64_t skip)
{
	struct cs_merge *m = moving->merge;
	uint64_t chunks = cs_snapshot_chunks(m->snapshot);
	int count = cs_store_newest(
		store_of(moving), skip, batch_chunks(moving), b->run, CS_MERGE_BATCH);

	b->runs = 0;
	b->chunks = 0;
	if (count < 0)
		return count;
	while (b->runs < (size_t)count && !meets(b, b->runs)) {
		const struct cowsnap_run *run = &b->run[b->runs++];

		if (run->first >= chunks || run->count > chunks - run->first)
			return -EIO;
		b->chunks += run->count;
	}
	return (int)b->runs;
}

/* While movers are at work. An error is met again when its turn comes. */
static void look_ahead(struct cs_moving *moving)
{
	if (moving->open && find_batch(moving, moving->ahead, moving->now->chunks) < 0)
		moving->ahead->runs = 0;
}

static int next_batch(struct cs_moving *moving)
{
	struct cs_merge_batch *before = moving->now;

	if (!moving->ahead->runs)
		return find_batch(moving, moving->now, 0);
	moving->now = moving->ahead;
	moving->ahead = before;
	before->runs = 0;
	return (int)moving->now->runs;
}

/* Movers for one run of a batch. There are enough: see batch_chunks(). */
static void start_run(struct cs_moving *moving, size_t batch)
{
	const struct cowsnap_run *run = &moving->now->run[batch];
	uint64_t most = mover_chunks(moving), count;

	/* After a failure nobody else is asked for anything. */
	for (uint64_t done = 0; done < run->count && !moving->error; done += count) {
		struct cs_mover *mover = &moving->mover[moving->movers++];

		count = run->count - done < most ? run->count - done : most;
		mover->batch = batch;
		mover->run = *run;
		mover->run.first += done;
		mover->run.count = count;
		if (run->location != COWSNAP_LOCATION_ZERO)
			mover->run.location += done;
		mover->part[0] = mover->run;
		mover->parts = 1;
		mover->moving = moving;
		cs_mover_start(mover);
	}
}

/* R2 */
static enum cs_step batch_saved(struct cs_moving *moving)
{
	if (moving->open)
		return when_movers_end(moving, batch_saved);
	if (moving->op->cancelled)
		moving->now->runs = 0;
	if (has_ended(moving))
		cut_batch(moving, CS_MOVER_SAVED);
	for (unsigned i = 0; i < moving->movers; i++) {
		if (moving->mover[i].stage == CS_MOVER_SAVED)
			cs_mover_go_on(&moving->mover[i]);
	}
	look_ahead(moving);
	return go_to(moving, batch_moved);
}

static enum cs_step start_batch(struct cs_moving *moving)
{
	cs_copier_piece_begins(copier_of(moving));
	moving->movers = 0;
	moving->at_once += moving->admit_bytes;
	for (size_t i = 0; i < moving->now->runs; i++)
		start_run(moving, i);
	return go_to(moving, batch_saved);
}

static enum cs_step batch(struct cs_moving *moving)
{
	int count;

	if (stops(moving))
		return go_to(moving, over);
	if (is_long(moving))
		return rest(moving);
	count = cs_merge_settle_forgotten(moving->merge);
	if (!count)
		count = next_batch(moving);
	if (count < 0)
		moving->error = count;
	moving->all = !count;
	if (count <= 0)
		return go_to(moving, over);
	moving->admit_bytes = moving->now->chunks << cs_merge_shift(moving->merge);
	moving->admitted = start_batch;
	return go_to(moving, admit);
}

/* ---- Both ------------------------------------------------------------------------------------ */

static enum cs_step begin_more(struct cs_moving *moving)
{
	return go_to(moving, moving->merge->records ? batch : fill);
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
	struct cowsnap_store *store = store_of(moving);
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
	return rc ? end_turn(moving, rc) : go_to(moving, drained);
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

static enum cs_step over(struct cs_moving *moving)
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
	return moving->merge->records ? take_turn(moving) : flush(moving, take_turn);
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
	moving->ahead->runs = 0;
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
