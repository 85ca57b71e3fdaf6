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
 * begin    heads with the merge, without the chain of a store of one snapshot; drain; ready
 * run      pace; save for others; claim; copy; flush the origin; forget the records; settled
 * end      drop recorded; heads without it; drain
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
 * Failure: a step that fails ends the run, with the claim given back and nothing settled; the next
 * run begins there again.
 */
#include "merge.h"

#include <errno.h>
#include <string.h>

#include "alloc.h"
#include "snapshot.h"

#define DRAIN_NS    UINT64_C(5000000000)
#define MOVE_CHUNKS 64u
#define MOVE_BYTES  UINT64_C(1048576)

/* ---- What is to be moved --------------------------------------------------------------------- */

uint64_t cs_merge_unmoved(
	const struct cs_merge *m, uint64_t first, unsigned count, uint64_t locations[64])
{
	uint64_t mask = cs_snapshot_window(m->snapshot, first, count, locations);

	return mask & ~cs_bits_window(&m->settled, first, count);
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

/* What the copy of a chunk is, from where the snapshot has it. */
void cs_merge_set_copy(const struct cs_merge *m, const struct cowsnap_run *run,
	struct cowsnap_copy *copy, struct cowsnap_copy_target *target)
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

static void wake_waiting(struct cs_merge *m)
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

static bool await_drain(struct cowsnap_origin *origin, uint64_t deadline_ns)
{
	struct cs_task task;

	cs_task_init(&task, NULL, NULL);
	while (cs_gate_await_drain(&origin->gate, &task.waiter)) {
		task.deadline_ns = deadline_ns;
		cs_task_sleep(&task);
		if (!task.timed_out)
			continue;
		if (!cs_gate_forsake_drain(&origin->gate, &task.waiter))
			cs_task_sleep(&task); /* the wake is on its way */
		return cs_gate_drained(&origin->gate);
	}
	return true;
}

/* And lets go of the heads of those who have left. With the turn. */
static bool drain(struct cowsnap_origin *origin, uint64_t deadline_ns)
{
	bool drained = await_drain(origin, deadline_ns);

	cs_mutex_lock(&origin->handle.ctx->admin);
	cs_origin_sweep(origin);
	cs_mutex_unlock(&origin->handle.ctx->admin);
	return drained;
}

/* ---- Begin ----------------------------------------------------------------------------------- */

static int state_error(const struct cowsnap_snapshot *s)
{
	/* Acquire: pairs with cs_snapshot_lose. */
	switch (atomic_load_explicit(&s->state, memory_order_acquire)) {
	case COWSNAP_SNAPSHOT_ACTIVE:
		return cs_bits_any(&s->released) ? -ENODATA : 0;
	case COWSNAP_SNAPSHOT_INVALID:
		return -ESTALE;
	case COWSNAP_SNAPSHOT_MAP_ONLY:
		return -ENODATA;
	case COWSNAP_SNAPSHOT_MERGING:
		return -EBUSY;
	default:
		return -EIDRM;
	}
}

/* M2. Returns: 0, or what became of the snapshot. */
static int set_merging(struct cowsnap_snapshot *s, bool merging)
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

static struct cs_merge *create(struct cowsnap_snapshot *snapshot)
{
	const struct cowsnap_allocator *alloc = snapshot->chain->ctx->base.alloc;
	struct cs_merge *m = cs_alloc_zeroed(alloc, sizeof(*m));

	if (!m)
		return NULL;
	m->snapshot = snapshot;
	m->origin = snapshot->chain->origin;
	m->records = cs_store_records(snapshot->chain->store);
	cs_bits_init(&m->settled, alloc);
	cs_map_init(&m->busy, alloc);
	cs_mutex_init(&m->lock);
	return m;
}

static void destroy(struct cs_merge *m)
{
	const struct cowsnap_allocator *alloc = m->origin->handle.ctx->base.alloc;

	if (m->spare)
		cs_heads_put(m->origin->handle.ctx, m->spare);
	cs_bits_fini(&m->settled);
	cs_map_fini(&m->busy);
	cs_mutex_fini(&m->lock);
	cs_free(alloc, m, sizeof(*m));
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

static void give_up_forgotten(struct cs_merge *m)
{
	if (m->forgotten.count)
		cs_merge_unclaim(m, &m->forgotten);
	m->forgotten.count = 0;
	wake_waiting(m);
}

/* Brackets go on without it, and it goes when the origin does: who entered with it may still be
 * inside, so the caller drains before he gives up M2. With the turn. */
static int retire(struct cs_merge *m)
{
	struct cowsnap_origin *origin = m->origin;
	int rc = publish_locked(m, false);

	if (rc)
		return rc;
	/* Release: the new heads; pairs with taken_back. */
	atomic_store_explicit(&m->ended, true, memory_order_release);
	wake_waiting(m);
	cs_mutex_lock(&origin->handle.ctx->admin);
	set_origin_merge(origin, NULL);
	origin->free_merges = free_all;
	m->next = origin->old_merges;
	origin->old_merges = m;
	cs_mutex_unlock(&origin->handle.ctx->admin);
	return 0;
}

static void set_ready(struct cs_merge *m)
{
	/* Release: the drain; pairs with cs_merge_is_ready. */
	atomic_store_explicit(&m->ready, true, memory_order_release);
	wake_waiting(m);
}

/* Everybody who enters waits, and nobody who began before is left: what the snapshot needed until
 * now it has. Returns: 0; -ETIMEDOUT, or what became of it meanwhile. */
static int take_over(struct cs_merge *m)
{
	struct cowsnap_snapshot *s = m->snapshot;
	int rc = set_merging(s, true);

	if (rc)
		return rc;
	/* Who found the snapshot live before may still be writing to it. */
	if (cs_snapshot_await_writers(s, cs_deadline_ns(DRAIN_NS))) {
		m->total_bytes = chunks_in_chain(s) << cs_merge_shift(m);
		return 0;
	}
	/* Release: pairs with cs_snapshot_live. */
	atomic_store_explicit(&s->state, COWSNAP_SNAPSHOT_ACTIVE, memory_order_release);
	set_merging(s, false);
	return -ETIMEDOUT;
}

/* With the turn. Frees @m unless it is the origin's. The snapshot is live until all have left who
 * began before: they save what it needs, and if they do not leave it is as it was. */
static int begin(struct cs_merge *m)
{
	int rc = cs_origin_merge(m->origin) ? -EBUSY : publish_locked(m, true);

	if (rc) {
		destroy(m);
		return rc;
	}
	set_origin_merge(m->origin, m);
	/* Where no generation is free to take it back, it is waited for. */
	while (!drain(m->origin, cs_deadline_ns(DRAIN_NS))) {
		if (!retire(m))
			return -ETIMEDOUT;
	}
	rc = take_over(m);
	/* That finds a generation, as all were left, and has its memory. */
	if (rc)
		retire(m);
	else
		set_ready(m);
	return rc;
}

int cowsnap_merge_begin(struct cowsnap_snapshot *snapshot)
{
	struct cowsnap_ctx *ctx = snapshot->chain->ctx;
	struct cowsnap_store *store = snapshot->chain->store;
	struct cs_merge *m;
	int rc = state_error(snapshot);

	if (!rc && (cs_store_records(store) || cs_store_persistent(store)) &&
		!cs_store_forgets(store))
		rc = -ENOTSUP;
	if (rc)
		return rc;
	m = create(snapshot);
	if (!m)
		return -ENOMEM;
	if (!cs_turn_wait(ctx, cs_deadline_ns(DRAIN_NS))) {
		destroy(m);
		return -EBUSY;
	}
	rc = begin(m);
	cs_turn_end(ctx);
	return rc;
}

/* ---- Moving ---------------------------------------------------------------------------------- */

/* Copies one run whose claim is held and whose others' preimages are saved. */
static int move(struct cs_merge *m, const struct cowsnap_run *run)
{
	struct cowsnap_copy_target target;
	struct cowsnap_copy copy;
	struct cs_task task;

	cs_task_init(&task, NULL, NULL);
	cs_merge_set_copy(m, run, &copy, &target);
	if (!cs_copier_start(m->origin->handle.ctx->copier, &copy, &task))
		cs_task_sleep(&task);
	return target.error;
}

static int settle_run(struct cs_merge *m, const struct cowsnap_run *run)
{
	int rc = cs_bits_set(&m->settled, run->first, run->count);

	if (!rc)
		cs_merge_count(m, run->count);
	return rc;
}

/* What of a claimed run is still to be moved, as runs that lie together. */
static int move_claimed(struct cs_merge *m, const struct cowsnap_run *claimed)
{
	uint64_t end = claimed->first + claimed->count;
	int rc = 0;

	for (uint64_t chunk = claimed->first; chunk < end && !rc;) {
		struct cowsnap_run run = {.first = chunk, .count = 1};
		uint64_t next;

		if (!cs_merge_lookup(m, chunk, &run.location)) {
			chunk++;
			continue;
		}
		while (chunk + run.count < end && cs_merge_lookup(m, chunk + run.count, &next) &&
			next == (run.location > COWSNAP_LOCATION_MAX ? run.location
								     : run.location + run.count))
			run.count++;
		rc = move(m, &run);
		if (!rc)
			rc = settle_run(m, &run);
		chunk += run.count;
	}
	return rc;
}

static int with_claim(struct cs_merge *m, uint64_t first, uint64_t count,
	int (*call)(struct cs_merge *m, const struct cowsnap_run *run))
{
	uint64_t end = first + count;
	int rc = 0;

	while (first < end && !rc) {
		struct cowsnap_run run;

		rc = cs_merge_claim(m, first, end - first, &run);
		if (rc)
			return rc;
		rc = call(m, &run);
		cs_merge_unclaim(m, &run);
		first = run.first + run.count;
	}
	return rc;
}

/* Has what others need of these chunks saved, and holds the bracket open. */
static int open_bracket(struct cs_merge *m, uint64_t first, uint64_t count, struct cs_op *op)
{
	uint32_t shift = cs_merge_shift(m);
	uint64_t at = first << shift, length = count << shift;

	if (length > m->snapshot->size_bytes - at)
		length = m->snapshot->size_bytes - at;
	cs_copier_pace(m->origin->handle.ctx->copier, length);
	cs_copier_piece_begins(m->origin->handle.ctx->copier);
	return cs_origin_begin_moving(m->origin, at, length, op);
}

static void close_bracket(struct cs_merge *m, struct cs_op *op)
{
	cs_gate_leave(&m->origin->gate, &op->pass);
	cs_copier_piece_ends(m->origin->handle.ctx->copier);
}

static int move_run(struct cs_merge *m, uint64_t first, uint64_t count)
{
	struct cs_op op;
	int rc = open_bracket(m, first, count, &op);

	if (rc) {
		cs_copier_piece_ends(m->origin->handle.ctx->copier);
		return rc;
	}
	rc = with_claim(m, first, count, move_claimed);
	close_bracket(m, &op);
	return rc;
}

/* How many chunks are moved at once, of @left bytes that the caller wants. */
static uint64_t at_once(const struct cs_merge *m, uint64_t left)
{
	uint64_t chunks = (left < MOVE_BYTES ? left : MOVE_BYTES) >> cs_merge_shift(m);

	if (chunks > MOVE_CHUNKS)
		return MOVE_CHUNKS;
	return chunks ? chunks : 1;
}

/* The next run at or after the cursor; *count 0: there is none. */
static void next_run(struct cs_merge *m, uint64_t most, uint64_t *first, uint64_t *count)
{
	uint64_t end = cs_snapshot_chunks(m->snapshot), locations[64];
	struct cs_gate *reads = &m->snapshot->chain->store->upper->reads;
	struct cs_gate_pass pass;

	*count = 0;
	cs_gate_enter(reads, &pass);
	while (m->cursor < end && !*count) {
		unsigned n = cs_window_count(m->cursor, end), skip;
		uint64_t mask = cs_merge_unmoved(m, m->cursor, n, locations), rest;

		skip = mask ? (unsigned)__builtin_ctzll(mask) : n;
		m->cursor += skip;
		if (skip == n)
			continue;
		rest = ~(mask >> skip);
		*first = m->cursor;
		*count = rest ? (uint64_t)__builtin_ctzll(rest) : 64;
		if (*count > most)
			*count = most;
	}
	cs_gate_leave(reads, &pass);
	cs_reclaim_after_reading(m->snapshot->chain->store);
}

static int step_in_order(struct cs_merge *m, uint64_t left, uint64_t *moved)
{
	uint64_t first = 0, count;
	int rc;

	next_run(m, at_once(m, left), &first, &count);
	m->moved_all = !count;
	*moved = count << cs_merge_shift(m);
	if (!count)
		return 0;
	rc = move_run(m, first, count);
	if (!rc)
		m->cursor = first + count;
	return rc;
}

/* ---- Moving what has records ----------------------------------------------------------------- */

static int claim_all(struct cs_merge *m, const struct cowsnap_run *run, uint64_t *claimed)
{
	int rc = 0;

	for (*claimed = 0; *claimed < run->count && !rc;) {
		struct cowsnap_run got;

		rc = cs_merge_claim(m, run->first + *claimed, run->count - *claimed, &got);
		if (!rc)
			*claimed = got.first + got.count - run->first;
	}
	return rc;
}

/* M3 */
static int move_recorded(struct cs_merge *m, const struct cowsnap_run *run)
{
	struct cowsnap_store *store = m->snapshot->chain->store;
	int rc = move(m, run);

	if (!rc)
		rc = cs_dev_flush(m->origin->device);
	if (!rc)
		rc = cs_store_forget(store, run);
	if (rc)
		return rc;
	rc = settle_run(m, run);
	/* No record any more, so nobody may write in place: it stays claimed until there is memory
	 * for the bits. */
	if (rc)
		m->forgotten = *run;
	return rc;
}

static int settle_forgotten(struct cs_merge *m)
{
	int rc = m->forgotten.count ? settle_run(m, &m->forgotten) : 0;

	if (!rc)
		give_up_forgotten(m);
	return rc;
}

static int step_by_records(struct cs_merge *m, uint64_t left, uint64_t *moved)
{
	struct cowsnap_run run, held;
	uint64_t claimed;
	struct cs_op op;
	int rc = settle_forgotten(m);

	if (!rc)
		rc = cs_store_newest(m->snapshot->chain->store, at_once(m, left), &run);
	if (rc)
		return rc;
	m->moved_all = !run.count;
	*moved = run.count << cs_merge_shift(m);
	if (!run.count)
		return 0;
	if (run.first + run.count > cs_snapshot_chunks(m->snapshot))
		return -EIO;
	rc = open_bracket(m, run.first, run.count, &op);
	if (rc) {
		cs_copier_piece_ends(m->origin->handle.ctx->copier);
		return rc;
	}
	rc = claim_all(m, &run, &claimed);
	if (!rc)
		rc = move_recorded(m, &run);
	held = (struct cowsnap_run){.first = run.first, .count = claimed};
	if (claimed && !m->forgotten.count)
		cs_merge_unclaim(m, &held);
	close_bracket(m, &op);
	wake_waiting(m);
	return rc;
}

/* ---- The end --------------------------------------------------------------------------------- */

/* All is moved. */
static int finish(struct cs_merge *m)
{
	struct cowsnap_snapshot *s = m->snapshot;
	struct cowsnap_ctx *ctx = s->chain->ctx;
	int rc = 0;

	/* What was moved without records must be durable before the snapshot goes. */
	if (!m->records)
		rc = cs_dev_flush(m->origin->device);
	if (rc)
		return rc;
	if (!cs_turn_wait(ctx, UINT64_MAX))
		return -EBUSY;
	if (!m->dropped)
		rc = cs_snapshot_end(s, true, true);
	m->dropped |= !rc;
	if (!rc)
		rc = retire(m);
	if (!rc) {
		drain(m->origin, UINT64_MAX);
		set_merging(s, false);
	}
	cs_turn_end(ctx);
	if (rc)
		return rc;
	cs_origin_lost_one(m->origin);
	cs_event_snapshot(s, COWSNAP_EVENT_MERGED, 0);
	return 0;
}

static int run_until(struct cs_merge *m, uint64_t max_bytes)
{
	uint64_t done = 0, moved;
	int rc = 0;

	while (!rc && !m->moved_all && done < max_bytes) {
		uint64_t left = max_bytes - done;

		rc = m->records ? step_by_records(m, left, &moved) : step_in_order(m, left, &moved);
		done += moved;
	}
	if (rc)
		return rc;
	if (!m->moved_all)
		return 1;
	return finish(m);
}

int cowsnap_merge_run(struct cowsnap_snapshot *snapshot, uint64_t max_bytes)
{
	struct cs_merge *m = cs_origin_merge(snapshot->chain->origin);
	int rc;

	if (!m || m->snapshot != snapshot)
		return -EINVAL;
	/* Acquire: what the last who ran it did; pairs with the release below. */
	if (atomic_exchange_explicit(&m->running, true, memory_order_acquire))
		return -EALREADY;
	atomic_store_explicit(&m->error, 0, memory_order_relaxed);
	rc = run_until(m, max_bytes);
	if (rc < 0) {
		atomic_store_explicit(&m->error, rc, memory_order_relaxed);
		cs_event_snapshot(snapshot, COWSNAP_EVENT_MERGE_FAILED, rc);
	}
	/* Release: pairs with cowsnap_merge_run. */
	atomic_store_explicit(&m->running, false, memory_order_release);
	return rc;
}

/* The host ends, and leaves the rest of the merge to the next start. Nobody runs it any more. */
static int leave(struct cowsnap_snapshot *s)
{
	struct cowsnap_ctx *ctx = s->chain->ctx;
	struct cs_merge *m = cs_origin_merge(s->chain->origin);
	int rc = -EBUSY;

	if (!m || m->snapshot != s)
		return -EBUSY; /* it is about to begin, or to end */
	/* Acquire: pairs with cowsnap_merge_run. */
	if (atomic_exchange_explicit(&m->running, true, memory_order_acquire))
		return -EBUSY;
	if (cs_turn_wait(ctx, UINT64_MAX)) {
		rc = retire(m);
		if (!rc) {
			give_up_forgotten(m);
			drain(m->origin, UINT64_MAX);
		}
		cs_turn_end(ctx);
	}
	/* Release: pairs with cowsnap_merge_run. */
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
	/* Acquire: pairs with set_merging. */
	merging = atomic_load_explicit(&snapshot->state, memory_order_acquire) ==
		  COWSNAP_SNAPSHOT_MERGING;
	if (merging)
		rc = leave(snapshot);
	if (!rc)
		rc = cs_snapshot_end(snapshot, false, merging);
	if (!rc && merging)
		set_merging(snapshot, false);
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
		info.error = atomic_load_explicit(&m->error, memory_order_relaxed);
		info.running = atomic_load_explicit(&m->running, memory_order_relaxed);
	} else {
		m = NULL;
	}
	cs_mutex_unlock(&ctx->admin);
	return m ? cs_result_copy(out, size, &info, sizeof(info)) : -EINVAL;
}
