/* SPDX-License-Identifier: MIT
 *
 * Merging: an origin becomes what one of its snapshots shows, while it is in use.
 *
 * To merge is to write the snapshot's content to the origin, for each chunk that the maps from it
 * to the newest have (or that was written to the snapshot itself). Such a write is an origin write
 * like others: other snapshots that need what it overwrites have it saved before, by the steps of
 * save.c. Snapshots that are older find the chunk where they always did.
 *
 * From the call on, a chunk is *settled* when the origin has what the volume shows there: it was
 * moved, or nobody had anything to move, which is noted before a bracket may save it into a map.
 *
 * A store without records: a bracket moves what its range needs itself, cowsnap_merge_run() the
 * rest. A store with records: as long as one is on the device, a crash leads to another merge,
 * which must not take back what was written to the origin since. So a bracket waits until the
 * record is gone, and cowsnap_origin_write() writes in place, to the store.
 *
 * It begins with heads that have the merge, without the chain of a store of one snapshot, and a
 * drain; then it is ready. How chunks are moved, and the end: merge_run.c.
 *
 * Invariants:
 *  M1 A chunk is settled for good. Who sees an unsettled chunk in a map while it is claimed in
 *     `busy` may move it: nobody else does, or writes it in place.
 *  M2 Nothing in the chain is reclaimed while it lasts (chain->merging): locations stay good.
 *  M3 Records are forgotten only after the origin was flushed, and a chunk is settled only after
 *     its record is gone.
 *  M4 Whoever uses a merge is inside the origin's gate in a generation that has it.
 *
 * Locking: the turn for heads; upper->reclaiming for chain->merging; `lock` for waiting brackets.
 *
 * Failure: what cannot begin has changed nothing. A host that ends leaves the rest to the next
 * start.
 */
#include "merge.h"

#include <errno.h>
#include <string.h>

#include "alloc.h"
#include "snapshot.h"
#include "workers.h"

#define DRAIN_NS UINT64_C(5000000000)

/* ---- What is to be moved --------------------------------------------------------------------- */

uint64_t cs_merge_unmoved(
	const struct cs_merge *m, uint64_t first, unsigned count, uint64_t locations[64])
{
	uint64_t mask = cs_snapshot_window(m->snapshot, first, count, locations);

	mask &= ~cs_bits_window(&m->settled, first, count);
	/* Acquire, after the look at the maps: brackets of the generation after it save into these
	 * and note nothing; pairs with cs_moving_over. */
	return mask && atomic_load_explicit(&m->moved, memory_order_acquire) ? 0 : mask;
}

bool cs_merge_lookup(const struct cs_merge *m, uint64_t chunk, uint64_t *location)
{
	struct cs_gate *reads = &m->snapshot->chain->store->upper->reads;
	uint64_t locations[64];
	struct cs_gate_pass pass;
	bool there;

	cs_gate_enter(reads, &pass);
	there = chunk < cs_snapshot_chunks(m->snapshot) && cs_merge_unmoved(m, chunk, 1, locations);
	cs_gate_leave(reads, &pass);
	if (there)
		*location = locations[0];
	return there;
}

static void claimant_woken(struct cowsnap_map_waiter *waiter)
{
	cs_task_wake(cs_container_of(waiter, struct cs_merge_claimant, waiter)->task);
}

int cs_merge_claim(struct cs_merge *m, uint64_t first, uint64_t count, struct cowsnap_run *run,
	struct cs_merge_claimant *claimant, enum cs_step *step)
{
	int rc = cowsnap_map_claim(&m->busy, first, count, run);

	if (rc != COWSNAP_CLAIM_BUSY)
		return rc < 0 ? rc : 0;
	claimant->waiter.wake = claimant_woken;
	*step = cowsnap_map_wait(&m->busy, run->first, &claimant->waiter) ? CS_GO_ON : CS_PARK;
	return rc;
}

void cs_merge_set_target(
	const struct cs_merge *m, const struct cowsnap_run *run, struct cowsnap_copy_target *target)
{
	uint32_t shift = cs_merge_shift(m);
	uint64_t at = run->first << shift, length = run->count << shift;
	bool zero = run->location == COWSNAP_LOCATION_ZERO;

	if (length > m->snapshot->size_bytes - at)
		length = m->snapshot->size_bytes - at;
	*target = (struct cowsnap_copy_target){.device = m->origin->device,
		.offset = at,
		.source_offset = zero ? at : run->location << shift,
		.length = length};
}

void cs_merge_set_copy(const struct cs_merge *m, const struct cowsnap_run *run,
	struct cowsnap_copy *copy, struct cowsnap_copy_target *target)
{
	bool zero = run->location == COWSNAP_LOCATION_ZERO;

	cs_merge_set_target(m, run, target);
	copy->source = zero ? NULL : m->snapshot->chain->store->device;
	copy->targets = target;
	copy->count = 1;
	copy->background = false;
}

void cs_merge_count(struct cs_merge *m, uint64_t chunks)
{
	atomic_fetch_add_explicit(
		&m->moved_bytes, chunks << cs_merge_shift(m), memory_order_relaxed);
}

int cs_merge_settle(struct cs_merge *m, const struct cowsnap_run *run)
{
	int rc = cs_bits_set(&m->settled, run->first, run->count);

	if (!rc)
		cs_merge_count(m, run->count);
	return rc;
}

int cs_merge_settle_mask(struct cs_merge *m, uint64_t first, uint64_t mask)
{
	int rc = mask ? cs_bits_set_mask(&m->settled, first, mask) : 0;

	if (!rc)
		cs_merge_count(m, (unsigned)__builtin_popcountll(mask));
	return rc;
}

int cs_merge_settle_over(struct cs_merge *m, const struct cowsnap_run *run)
{
	struct cs_gate *reads = &m->snapshot->chain->store->upper->reads;
	uint64_t end = run->first + run->count, locations[64], moved = 0;
	struct cs_gate_pass pass;
	int rc;

	cs_gate_enter(reads, &pass);
	for (uint64_t chunk = run->first; chunk < end;) {
		unsigned n = cs_window_count(chunk, end);

		moved += (unsigned)__builtin_popcountll(cs_merge_unmoved(m, chunk, n, locations));
		chunk += n;
	}
	cs_gate_leave(reads, &pass);
	rc = cs_bits_set(&m->settled, run->first, run->count);
	if (!rc)
		cs_merge_count(m, moved);
	return rc;
}

int cs_merge_settle_forgotten(struct cs_merge *m)
{
	while (m->forgotten_count) {
		const struct cowsnap_run *run = &m->forgotten[m->forgotten_count - 1];
		int rc = cs_merge_settle_over(m, run);

		if (rc)
			return rc;
		cs_merge_unclaim(m, run);
		m->forgotten_count--;
	}
	cs_merge_wake_waiting(m);
	return 0;
}

bool cs_merge_others_need(const struct cs_heads *heads, uint64_t offset, uint64_t length)
{
	for (size_t i = 0; heads && i < heads->count; i++) {
		if (!cs_head_done(&heads->head[i], offset, length))
			return true;
	}
	return false;
}

void cs_merge_wake_waiting(struct cs_merge *m)
{
	struct cs_waiter *waiters;

	cs_mutex_lock(&m->lock);
	waiters = cs_waitlist_take(&m->waiting);
	cs_mutex_unlock(&m->lock);
	cs_waiters_wake(waiters);
}

/* ---- Heads ----------------------------------------------------------------------------------- */

/* New heads for the origin, with @m or without; the old generation is left. With the turn, under
 * ctx->admin. */
static int publish(struct cs_merge *m, bool with)
{
	struct cowsnap_origin *origin = m->origin;
	struct cowsnap_ctx *ctx = origin->handle.ctx;
	struct cs_heads *heads;
	size_t count = 0;
	uint32_t slot;

	cs_origin_sweep(origin);
	slot = cs_gate_pick(&origin->gate);
	if (slot == CS_GATE_SLOTS)
		return -EBUSY;
	for (const struct cs_chain *c = origin->chains; c; c = c->next_of_origin)
		count++;
	heads = with || !m->spare || m->spare->room < count ? cs_heads_create(ctx, count)
							    : m->spare;
	if (!heads)
		return -ENOMEM;
	if (with)
		m->spare = cs_heads_create(ctx, count);
	else if (heads == m->spare)
		m->spare = NULL;
	if (with && !m->spare) {
		cs_heads_put(ctx, heads);
		return -ENOMEM;
	}
	heads->epoch = atomic_load_explicit(&ctx->established, memory_order_relaxed);
	heads->merge = with ? m : NULL;
	heads->merge_ops = with ? &cs_merge_ops : NULL;
	for (struct cs_chain *c = origin->chains; c; c = c->next_of_origin) {
		/* A store with records saves nothing more for a snapshot that is merged. */
		bool skip = c == m->snapshot->chain && with && m->records;

		if (!skip && cs_chain_newest(c) &&
			atomic_load_explicit(&c->live, memory_order_relaxed))
			cs_heads_add(heads, c, cs_chain_newest(c));
	}
	if (!heads->count && !with) {
		cs_heads_put(ctx, heads);
		heads = NULL;
	}
	cs_origin_set_heads(origin, slot, heads);
	cs_gate_switch(&origin->gate, slot, 0);
	cs_origin_sweep(origin);
	return 0;
}

static int publish_locked(struct cs_merge *m, bool with)
{
	int rc;

	cs_mutex_lock(&m->origin->handle.ctx->admin);
	rc = publish(m, with);
	cs_mutex_unlock(&m->origin->handle.ctx->admin);
	return rc;
}

/* Waits until all who entered before have left, and lets go of their heads. With the turn. */
static void drain(struct cowsnap_origin *origin)
{
	struct cs_task task;

	cs_task_init(&task, NULL, NULL);
	while (cs_gate_await_drain(&origin->gate, &task.waiter))
		cs_task_sleep(&task);
	cs_mutex_lock(&origin->handle.ctx->admin);
	cs_origin_sweep(origin);
	cs_mutex_unlock(&origin->handle.ctx->admin);
}

/* ---- Begin ----------------------------------------------------------------------------------- */

static int state_error(const struct cowsnap_snapshot *s)
{
	int rc = cs_snapshot_state_error(s);

	return !rc && cs_bits_any(&s->released) ? -ENODATA : rc;
}

int cs_merge_set_merging(struct cowsnap_snapshot *s, bool merging)
{
	struct cs_chain *chain = s->chain;
	struct cs_mutex *reclaiming = &chain->store->upper->reclaiming;
	int state = COWSNAP_SNAPSHOT_ACTIVE, rc = 0;

	cs_mutex_lock(reclaiming);
	if (merging)
		rc = state_error(s);
	/* Release: pairs with cs_snapshot_live. seq_cst: pairs with begin_writing. */
	if (!rc && merging &&
		!atomic_compare_exchange_strong_explicit(&s->state, &state,
			COWSNAP_SNAPSHOT_MERGING, memory_order_seq_cst, memory_order_relaxed))
		rc = state_error(s);
	if (!rc)
		chain->merging = merging;
	cs_mutex_unlock(reclaiming);
	if (!rc && !merging)
		cs_chain_ghosted(chain);
	return rc;
}

static uint64_t chunks_in_chain(const struct cowsnap_snapshot *snapshot)
{
	uint64_t chunks = cowsnap_map_count(&snapshot->own);

	for (const struct cowsnap_snapshot *s = cs_chain_newest(snapshot->chain); s;
		s = cs_snapshot_older(s)) {
		chunks += cowsnap_map_count(&s->map);
		if (s == snapshot)
			break;
	}
	return chunks;
}

static void free_forgotten(struct cs_merge *m)
{
	if (m->forgotten)
		cs_free(m->origin->handle.ctx->base.alloc, m->forgotten,
			CS_MERGE_BATCH * sizeof(*m->forgotten));
	m->forgotten = NULL;
}

static void destroy(struct cs_merge *m)
{
	const struct cowsnap_allocator *alloc = m->origin->handle.ctx->base.alloc;

	if (m->spare)
		cs_heads_put(m->origin->handle.ctx, m->spare);
	free_forgotten(m);
	cs_bits_fini(&m->settled);
	cs_map_fini(&m->busy);
	cs_mutex_fini(&m->lock);
	cs_free(alloc, m, sizeof(*m));
}

static struct cs_merge *create(struct cowsnap_snapshot *snapshot)
{
	const struct cowsnap_allocator *alloc = snapshot->chain->ctx->base.alloc;
	struct cs_merge *m = cs_alloc_zeroed(alloc, sizeof(*m));

	if (!m)
		return NULL;
	m->snapshot = snapshot;
	m->origin = snapshot->chain->origin;
	m->records = cs_store_records(snapshot->chain->store);
	cs_bits_init_dense(&m->settled, alloc);
	cs_map_init(&m->busy, alloc);
	cs_mutex_init(&m->lock);
	if (!m->records)
		return m;
	m->forgotten = cs_alloc(alloc, CS_MERGE_BATCH * sizeof(*m->forgotten));
	if (m->forgotten)
		return m;
	destroy(m);
	return NULL;
}

static void free_all(struct cowsnap_origin *origin)
{
	cs_origin_sweep(origin);
	while (origin->old_merges) {
		struct cs_merge *m = origin->old_merges;

		origin->old_merges = m->next;
		destroy(m);
	}
}

static void set_origin_merge(struct cowsnap_origin *origin, struct cs_merge *m)
{
	/* Release: pairs with cs_origin_merge. */
	atomic_store_explicit(&origin->merge, m, memory_order_release);
}

int cs_merge_retire(struct cs_merge *m)
{
	struct cowsnap_origin *origin = m->origin;
	int rc = publish_locked(m, false);

	if (rc)
		return rc;
	/* Release: the new heads; pairs with taken_back. */
	atomic_store_explicit(&m->ended, true, memory_order_release);
	cs_merge_wake_waiting(m);
	cs_mutex_lock(&origin->handle.ctx->admin);
	set_origin_merge(origin, NULL);
	origin->free_merges = free_all;
	m->next = origin->old_merges;
	origin->old_merges = m;
	cs_mutex_unlock(&origin->handle.ctx->admin);
	return 0;
}

static bool is_ready(const struct cs_merge *m)
{
	/* Acquire: pairs with set_ready. */
	return atomic_load_explicit(&m->ready, memory_order_acquire);
}

void cs_merge_empty(struct cs_merge *m)
{
	const struct cowsnap_allocator *alloc = m->origin->handle.ctx->base.alloc;

	cs_bits_fini(&m->settled);
	cs_bits_init_dense(&m->settled, alloc);
	cs_map_fini(&m->busy);
	cs_map_init(&m->busy, alloc);
	free_forgotten(m);
}

static void set_ready(struct cs_merge *m)
{
	/* Release: the drain; pairs with cs_merge_is_ready. */
	atomic_store_explicit(&m->ready, true, memory_order_release);
	cs_merge_wake_waiting(m);
}

/* ---- Begin, in steps ------------------------------------------------------------------------- */

static enum cs_step begun(struct cs_merge *m)
{
	(void)m;
	return CS_DONE;
}

static enum cs_step end_begin(struct cs_merge *m, int rc)
{
	cs_turn_end(m->origin->handle.ctx);
	m->begin.op->error = rc;
	m->begin.step = begun;
	return CS_DONE;
}

/* What the caller waits for was taken out of its list: the step looks again. */
static void look_again(struct cs_op *op)
{
	cs_queue_untime(&op->task);
	cs_task_wake(&op->task);
}

static enum cs_step park(struct cs_merge *m, void (*abandon)(struct cs_op *op))
{
	m->begin.op->abandon = abandon;
	m->begin.op->task.deadline_ns = m->begin.deadline_ns;
	return CS_PARK;
}

/* Is it in vain to wait on? If the time is over, it may be in its list still; if it was
 * cancelled it was taken out. */
static bool gives_up(struct cs_merge *m, bool *timed_out)
{
	struct cs_op *op = m->begin.op;

	*timed_out = op->task.timed_out;
	op->task.timed_out = false;
	op->abandon = NULL;
	return *timed_out || op->cancelled;
}

static void abandon_writers(struct cs_op *op)
{
	const struct cs_merge *m = op->turn.record;

	if (cs_store_forsake_space(m->snapshot->chain->store, &op->task.waiter))
		look_again(op);
}

/* With nobody left who found the snapshot live before, and may still be writing to it. */
static enum cs_step await_writers(struct cs_merge *m)
{
	struct cowsnap_snapshot *s = m->snapshot;
	struct cowsnap_store *store = s->chain->store;
	struct cs_waiter *waiter = &m->begin.op->task.waiter;
	bool timed_out;

	if (gives_up(m, &timed_out)) {
		if (timed_out && !cs_store_forsake_space(store, waiter))
			return CS_PARK;
		/* Release: pairs with cs_snapshot_live. */
		atomic_store_explicit(&s->state, COWSNAP_SNAPSHOT_ACTIVE, memory_order_release);
		cs_merge_set_merging(s, false);
		/* That finds a generation, as all were left, and has its memory. */
		cs_merge_retire(m);
		return end_begin(m, timed_out ? -ETIMEDOUT : -ECANCELED);
	}
	for (;;) {
		uint64_t epoch = cs_store_space_epoch(store);

		if (!cs_snapshot_has_writers(s))
			break;
		if (cs_store_await_space(store, epoch, waiter))
			return park(m, abandon_writers);
	}
	cs_mutex_lock(&m->origin->handle.ctx->admin);
	m->total_bytes = chunks_in_chain(s) << cs_merge_shift(m);
	cs_mutex_unlock(&m->origin->handle.ctx->admin);
	set_ready(m);
	return end_begin(m, 0);
}

/* Everybody who enters waits, and nobody who began before is left: what the snapshot needed until
 * now it has. */
static enum cs_step take_over(struct cs_merge *m)
{
	int rc;

	cs_mutex_lock(&m->origin->handle.ctx->admin);
	cs_origin_sweep(m->origin);
	cs_mutex_unlock(&m->origin->handle.ctx->admin);
	rc = cs_merge_set_merging(m->snapshot, true);
	if (rc) {
		cs_merge_retire(m);
		return end_begin(m, rc);
	}
	m->begin.deadline_ns = cs_deadline_ns(DRAIN_NS);
	m->begin.step = await_writers;
	return CS_GO_ON;
}

static void abandon_drain(struct cs_op *op)
{
	const struct cs_merge *m = op->turn.record;

	if (cs_gate_forsake_drain(&m->origin->gate, &op->task.waiter))
		look_again(op);
}

/* The snapshot is live until all have left who began before: they save what it needs, and if they
 * do not leave it is as it was. */
static enum cs_step await_leavers(struct cs_merge *m)
{
	struct cs_gate *gate = &m->origin->gate;
	struct cs_waiter *waiter = &m->begin.op->task.waiter;
	bool timed_out;

	if (gives_up(m, &timed_out)) {
		if (timed_out && !cs_gate_forsake_drain(gate, waiter))
			return CS_PARK;
		if (!cs_gate_drained(gate) && !cs_merge_retire(m))
			return end_begin(m, timed_out ? -ETIMEDOUT : -ECANCELED);
		/* Where no generation is free to take it back, it is waited for. */
		m->begin.deadline_ns = cs_deadline_ns(DRAIN_NS);
	}
	if (cs_gate_await_drain(gate, waiter))
		return park(m, abandon_drain);
	return take_over(m);
}

/* With the turn. */
static enum cs_step show(struct cs_merge *m)
{
	int rc = cs_origin_merge(m->origin) ? -EBUSY : publish_locked(m, true);

	if (rc)
		return end_begin(m, rc);
	m->begin.shown = true;
	set_origin_merge(m->origin, m);
	m->begin.deadline_ns = cs_deadline_ns(DRAIN_NS);
	m->begin.step = await_leavers;
	return CS_GO_ON;
}

static void abandon_turn(struct cs_op *op)
{
	const struct cs_merge *m = op->turn.record;

	if (cs_turn_forsake(m->origin->handle.ctx, &op->task.waiter))
		cs_op_abandoned(op);
}

static enum cs_step got_turn(struct cs_merge *m)
{
	struct cs_op *op = m->begin.op;
	bool timed_out;

	if (gives_up(m, &timed_out) && timed_out) {
		if (!cs_turn_forsake(m->origin->handle.ctx, &op->task.waiter))
			return CS_PARK;
		op->error = -EBUSY;
		m->begin.step = begun;
		return CS_DONE;
	}
	return op->cancelled ? end_begin(m, -ECANCELED) : show(m);
}

static enum cs_step await_turn(struct cs_merge *m)
{
	m->begin.step = got_turn;
	m->begin.deadline_ns = cs_deadline_ns(DRAIN_NS);
	if (!cs_turn_await(m->origin->handle.ctx, &m->begin.op->task.waiter))
		return CS_GO_ON;
	return park(m, abandon_turn);
}

static enum cs_step run_begin(struct cs_op *op)
{
	struct cs_merge *m = op->turn.record;
	enum cs_step step;

	do
		step = m->begin.step(m);
	while (step == CS_GO_ON);
	return step;
}

/* If nobody has seen it, it goes. */
static void release_begin(struct cs_op *op)
{
	struct cs_merge *m = op->turn.record;

	if (!m->begin.shown)
		destroy(m);
}

/* ---- The call -------------------------------------------------------------------------------- */

/* Each chunk is written to the origin by itself, and the last one up to the snapshot's end.
 * Returns: 0, -ENOTSUP. */
static int check_blocks(const struct cowsnap_snapshot *snapshot)
{
	const struct cowsnap_device *device = snapshot->chain->origin->device;
	uint64_t chunk = cs_store_chunk_bytes(snapshot->chain->store), size = snapshot->size_bytes;
	uint64_t block = device->block_size;

	if (chunk % block == 0 && size % block == 0)
		return 0;
	cs_log(&snapshot->chain->ctx->base, COWSNAP_LOG_ERROR,
		"origin %s: not merged: its device writes blocks of %llu bytes, and the %s %llu",
		device->name, (unsigned long long)block,
		chunk % block ? "store's chunks have" : "snapshot has",
		(unsigned long long)(chunk % block ? chunk : size));
	return -ENOTSUP;
}

static int prepare(struct cowsnap_snapshot *snapshot, struct cs_op *op, struct cs_merge **m)
{
	struct cowsnap_store *store = snapshot->chain->store;
	int rc = state_error(snapshot);

	if (!rc && (cs_store_records(store) || cs_store_persistent(store)) &&
		!cs_store_forgets(store))
		rc = -ENOTSUP;
	if (!rc)
		rc = check_blocks(snapshot);
	if (rc)
		return rc;
	*m = create(snapshot);
	if (!*m)
		return -ENOMEM;
	(*m)->begin.op = op;
	(*m)->begin.step = await_turn;
	return 0;
}

int cowsnap_merge_begin(struct cowsnap_snapshot *snapshot)
{
	struct cs_merge *m;
	struct cs_op op;
	int rc = prepare(snapshot, &op, &m);

	if (rc)
		return rc;
	cs_op_init(&op, NULL, NULL, NULL, NULL);
	op.turn.record = m;
	while (run_begin(&op) == CS_PARK)
		cs_task_sleep(&op.task);
	release_begin(&op);
	return op.error;
}

static const struct cs_op_kind begin_kind = {.go_on = run_begin, .release = release_begin};

int cowsnap_merge_begin_async(struct cowsnap_snapshot *snapshot, struct cowsnap_queue *queue,
	struct cowsnap_op *host_op, cowsnap_done *done, void *user)
{
	struct cs_op *op = cs_op_of(host_op);
	struct cowsnap_queue *to;
	struct cs_merge *m;
	int rc = cs_workers_route(snapshot->chain->ctx, queue, done, &to);

	if (!rc)
		rc = prepare(snapshot, op, &m);
	if (rc)
		return rc;
	cs_op_init(op, to, &begin_kind, done, user);
	op->turn.record = m;
	return queue ? cs_op_start(op) : cs_op_post(op);
}

/* ---- The end --------------------------------------------------------------------------------- */

/* The host ends, and leaves the rest of the merge to the next start. Nobody runs it any more. */
static int leave(struct cowsnap_snapshot *s)
{
	struct cowsnap_ctx *ctx = s->chain->ctx;
	struct cs_merge *m = cs_origin_merge(s->chain->origin);
	int rc = -EBUSY;

	if (!m || m->snapshot != s)
		return -EBUSY; /* it is about to begin, or to end */
	/* Acquire: pairs with finish. */
	if (atomic_exchange_explicit(&m->running, true, memory_order_acquire))
		return -EBUSY;
	if (cs_turn_wait(ctx, UINT64_MAX)) {
		/* It may have been given up before it was ready. And who waits for a claim must not
		 * write in place where there is no record any more. */
		if (cs_origin_merge(m->origin) == m && is_ready(m))
			rc = cs_merge_settle_forgotten(m);
		if (!rc)
			rc = cs_merge_retire(m);
		if (!rc) {
			drain(m->origin);
			cs_merge_empty(m);
		}
		cs_turn_end(ctx);
	}
	/* Release: pairs with begin. */
	if (rc)
		atomic_store_explicit(&m->running, false, memory_order_release);
	return rc;
}

int cowsnap_snapshot_deactivate(struct cowsnap_snapshot *snapshot)
{
	bool merging;
	int rc = 0;

	if (!cs_store_persistent(snapshot->chain->store))
		return -ENOTSUP;
	/* Acquire: pairs with cs_merge_set_merging. */
	merging = atomic_load_explicit(&snapshot->state, memory_order_acquire) ==
		  COWSNAP_SNAPSHOT_MERGING;
	if (merging)
		rc = leave(snapshot);
	if (!rc)
		rc = cs_snapshot_end(snapshot, false, merging);
	if (!rc && merging)
		cs_merge_set_merging(snapshot, false);
	if (!rc)
		cs_origin_lost_one(snapshot->chain->origin);
	return rc;
}

int cowsnap_merge_info(
	struct cowsnap_snapshot *snapshot, struct cowsnap_merge_info *out, size_t size)
{
	struct cowsnap_ctx *ctx = snapshot->chain->ctx;
	struct cowsnap_merge_info info = {0};
	struct cs_merge *m;

	cs_mutex_lock(&ctx->admin);
	m = cs_origin_merge(snapshot->chain->origin);
	if (m && m->snapshot == snapshot) {
		info.total_bytes = m->total_bytes;
		info.moved_bytes = atomic_load_explicit(&m->moved_bytes, memory_order_relaxed);
		/* What was saved for others since it began, and overwritten, is counted too. */
		if (info.moved_bytes > info.total_bytes)
			info.moved_bytes = info.total_bytes;
		info.error = atomic_load_explicit(&m->error, memory_order_relaxed);
		info.running = atomic_load_explicit(&m->running, memory_order_relaxed);
	} else {
		m = NULL;
	}
	cs_mutex_unlock(&ctx->admin);
	return m ? cs_result_copy(out, size, &info, sizeof(info)) : -EINVAL;
}
