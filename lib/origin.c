/* SPDX-License-Identifier: MIT
 *
 * Origins: the write bracket, and what the brackets of each generation save into.
 *
 * A bracket enters the gate. The slot that it gets names its *heads*: the newest snapshot of each
 * chain at the take that made this generation. No heads: ready. All chunks done in each: ready.
 * Else the slow way: the steps of save.c, on this thread or in a queue, until nothing is left.
 *
 * Invariants:
 *  O1 heads[slot] does not change while the slot is chosen or somebody is inside it, so a bracket
 *     may use it without a reference.
 *  O2 A bracket leaves begin with success only when each chunk of its range was, at some moment
 *     after it entered, done in each of its heads, or needed by no live snapshot.
 *  O3 Nobody claims into a snapshot before the drain of its take is over (ctx->established).
 *
 * Locking: none on the fast way. ctx->admin to wait for a drain.
 *
 * Failure: begin either returns 0 with the bracket open, or fails with the gate left again.
 */
#include "origin.h"

#include <assert.h>
#include <string.h>

#include "alloc.h"
#include "workers.h"

int cs_origin_init(struct cowsnap_origin *origin, struct cowsnap_device *device)
{
	struct cowsnap_ctx *ctx = origin->handle.ctx;
	int rc = cs_gate_init(&origin->gate, ctx->base.alloc, &ctx->epoch);

	if (rc)
		return rc;
	origin->device = device;
	atomic_init(&origin->size_bytes, cs_dev_size(device));
	origin->stats = cs_stats_create(ctx->base.alloc);
	origin->spare_chain = cs_chain_create(ctx);
	if (!origin->stats || !origin->spare_chain) {
		cs_origin_fini(origin);
		return -ENOMEM;
	}
	return 0;
}

void cs_origin_fini(struct cowsnap_origin *origin)
{
	struct cowsnap_ctx *ctx = origin->handle.ctx;

	if (origin->free_merges)
		origin->free_merges(origin);
	cs_chain_destroy(origin->spare_chain);
	origin->spare_chain = NULL;
	cs_stats_destroy(ctx->base.alloc, origin->stats);
	origin->stats = NULL;
	cs_gate_fini(&origin->gate, ctx->base.alloc);
}

/* ---- Chains --------------------------------------------------------------------------------- */

struct cs_chain *cs_origin_chain(struct cowsnap_origin *origin, struct cowsnap_store *store)
{
	struct cs_chain *chain = origin->chains;

	while (chain && chain->store != store)
		chain = chain->next_of_origin;
	if (chain)
		return chain;
	chain = origin->spare_chain ? origin->spare_chain : cs_chain_create(origin->handle.ctx);
	if (!chain)
		return NULL;
	origin->spare_chain = NULL;
	chain->origin = origin;
	chain->device = origin->device;
	chain->stats = origin->stats;
	chain->next_of_origin = origin->chains;
	origin->chains = chain;
	cs_chain_attach(chain, store);
	return chain;
}

void cs_origin_forget_chain(struct cs_chain *chain)
{
	struct cowsnap_origin *origin = chain->origin;
	struct cs_chain **at = &origin->chains;

	while (*at != chain)
		at = &(*at)->next_of_origin;
	*at = chain->next_of_origin;
	cs_chain_detach(chain);
	cs_chain_destroy(origin->spare_chain);
	origin->spare_chain = chain;
}

/* ---- Heads ---------------------------------------------------------------------------------- */

struct cs_heads *cs_heads_create(struct cowsnap_ctx *ctx, size_t room)
{
	struct cs_heads *heads =
		cs_alloc_zeroed(ctx->base.alloc, sizeof(*heads) + room * sizeof(struct cs_head));

	if (!heads)
		return NULL;
	heads->refs = 1;
	heads->room = room;
	heads->head = (struct cs_head *)(heads + 1);
	return heads;
}

void cs_heads_put(struct cowsnap_ctx *ctx, struct cs_heads *heads)
{
	if (!heads || --heads->refs)
		return;
	if (heads->owner) {
		cs_snapshot_put(heads->owner);
		return;
	}
	for (size_t i = 0; i < heads->count; i++)
		cs_snapshot_put(heads->head[i].newest);
	cs_free(ctx->base.alloc, heads, sizeof(*heads) + heads->room * sizeof(struct cs_head));
}

void cs_heads_add(struct cs_heads *heads, struct cs_chain *chain, struct cowsnap_snapshot *newest)
{
	assert(heads->count < heads->room);
	atomic_fetch_add_explicit(&newest->refs, 1, memory_order_relaxed);
	heads->head[heads->count++] = (struct cs_head){.chain = chain, .newest = newest};
}

void cs_origin_set_heads(struct cowsnap_origin *origin, uint32_t slot, struct cs_heads *heads)
{
	struct cs_heads *before = cs_origin_heads(origin, slot);

	if (heads)
		origin->held |= UINT32_C(1) << slot;
	else
		origin->held &= ~(UINT32_C(1) << slot);
	/* Release: pairs with cs_origin_heads. */
	atomic_store_explicit(&origin->heads[slot], heads, memory_order_release);
	cs_heads_put(origin->handle.ctx, before);
}

void cs_origin_sweep(struct cowsnap_origin *origin)
{
	for (uint32_t rest = origin->held; rest; rest &= rest - 1) {
		uint32_t slot = (uint32_t)__builtin_ctz(rest);

		if (cs_gate_slot_drained(&origin->gate, slot))
			cs_origin_set_heads(origin, slot, NULL);
	}
}

static bool heads_use(const struct cs_heads *heads, const struct cs_chain *chain)
{
	for (size_t i = 0; heads && i < heads->count; i++) {
		if (heads->head[i].chain == chain)
			return true;
	}
	return false;
}

bool cs_origin_uses(struct cowsnap_origin *origin, const struct cs_chain *chain)
{
	for (uint32_t slot = 0; slot < CS_GATE_SLOTS; slot++) {
		if (heads_use(cs_origin_heads(origin, slot), chain))
			return true;
	}
	return false;
}

static bool chain_live(const struct cs_chain *chain)
{
	return atomic_load_explicit(&chain->live, memory_order_relaxed) > 0;
}

static size_t heads_live(const struct cs_heads *heads)
{
	size_t live = 0;

	for (size_t i = 0; heads && i < heads->count; i++)
		live += chain_live(heads->head[i].chain);
	return live;
}

void cs_origin_prune(struct cowsnap_origin *origin)
{
	struct cowsnap_ctx *ctx = origin->handle.ctx;
	struct cs_heads *now = cs_origin_heads(origin, cs_gate_current(&origin->gate));
	size_t live = heads_live(now);
	struct cs_heads *then = NULL;
	uint32_t slot;

	cs_origin_sweep(origin);
	slot = cs_gate_pick(&origin->gate);
	if (!now || live == now->count || slot == CS_GATE_SLOTS)
		return;
	if (live > 0 || now->merge) {
		then = cs_heads_create(ctx, live);
		if (!then)
			return;
		then->epoch = now->epoch;
		then->merge = now->merge;
		then->merge_ops = now->merge_ops;
		/* Chains may lose their last snapshot meanwhile; none comes to life without a take.
		 * */
		for (size_t i = 0; i < now->count; i++) {
			if (chain_live(now->head[i].chain))
				cs_heads_add(then, now->head[i].chain, now->head[i].newest);
		}
	}
	if (then && !then->count && !then->merge) {
		cs_heads_put(ctx, then);
		then = NULL;
	}
	cs_origin_set_heads(origin, slot, then);
	cs_gate_switch(&origin->gate, slot, 0);
	cs_origin_sweep(origin);
}

void cs_origin_lost_one(struct cowsnap_origin *origin)
{
	struct cowsnap_ctx *ctx = origin->handle.ctx;

	cs_mutex_lock(&ctx->admin);
	if (!ctx->taking) {
		cs_origin_prune(origin);
	} else if (!origin->prune_queued) {
		origin->prune_queued = true;
		origin->prune_next = ctx->prune;
		ctx->prune = origin;
	}
	cs_mutex_unlock(&ctx->admin);
}

/* ---- The bracket ---------------------------------------------------------------------------- */

/* Not all of the range is in the map. What lies behind the end of the snapshot, because the origin
 * has grown since, is nobody's. */
static __attribute__((noinline)) bool done_or_changed(
	const struct cowsnap_snapshot *s, uint64_t chunk, uint64_t end)
{
	uint64_t chunks = cs_snapshot_chunks(s);

	if (end > chunks)
		return chunk >= chunks || cowsnap_map_done(&s->map, chunk, chunks - chunk) ||
		       done_or_changed(s, chunk, chunks);
	if (!cs_bits_any(&s->changed))
		return false;
	while (chunk < end) {
		unsigned n = cs_window_count(chunk, end);

		if (cs_snapshot_done_mask(s, chunk, n) != ~UINT64_C(0) >> (64 - n))
			return false;
		chunk += n;
	}
	return true;
}

/* The usual case, without a stack frame: it was not written since the take. */
static __attribute__((noinline)) bool done_outside_map(
	const struct cowsnap_snapshot *s, uint64_t chunk, uint64_t end)
{
	if (cs_likely(!cs_bits_any(&s->changed) && end <= cs_snapshot_chunks(s)))
		return false;
	return done_or_changed(s, chunk, end);
}

bool cs_head_done(const struct cs_head *head, uint64_t offset, uint64_t length)
{
	uint32_t shift = head->chain->store->chunk_shift;
	uint64_t first = offset >> shift;
	uint64_t last = (offset + length - 1) >> shift;

	return cowsnap_map_done(&head->newest->map, first, last - first + 1) ||
	       done_outside_map(head->newest, first, last + 1);
}

bool cs_heads_done(const struct cs_heads *heads, uint64_t offset, uint64_t length)
{
	for (size_t i = 0; i < heads->count; i++) {
		if (!cs_head_done(&heads->head[i], offset, length))
			return false;
	}
	return cs_likely(!heads->merge) ||
	       heads->merge_ops->is_settled(heads->merge, offset, length);
}

static int refuse(struct cowsnap_origin *origin, int rc, enum cowsnap_write_kind kind,
	uint64_t offset, uint64_t length)
{
	cs_log(&origin->handle.ctx->base, COWSNAP_LOG_ERROR,
		"write_begin: kind %d, offset %llu, length %llu refused: origin of %llu bytes",
		(int)kind, (unsigned long long)offset, (unsigned long long)length,
		(unsigned long long)cs_origin_size(origin));
	return rc;
}

static inline __attribute__((always_inline)) int check_write(struct cowsnap_origin *origin,
	enum cowsnap_write_kind kind, uint64_t offset, uint64_t length)
{
	int rc;

	if (cs_unlikely(cs_handle_closed(&origin->handle)))
		return -EBADF;
	if (cs_unlikely((unsigned)kind - COWSNAP_WRITE > COWSNAP_WRITE_ZEROES - COWSNAP_WRITE))
		return refuse(origin, -EINVAL, kind, offset, length);
	rc = cs_range_check(offset, length, cs_origin_size(origin));
	return cs_unlikely(rc) ? refuse(origin, rc, kind, offset, length) : 0;
}

/* The fast way. Returns: NULL: the write is admitted; what it saves into otherwise. */
static inline __attribute__((always_inline)) struct cs_heads *enter(
	struct cowsnap_origin *origin, struct cs_op *op, uint64_t offset, uint64_t length)
{
	struct cs_heads *heads;

	op->origin = origin;
	cs_gate_enter(&origin->gate, &op->pass);
	heads = cs_origin_heads(origin, op->pass.slot);
	return heads && !cs_heads_done(heads, offset, length) ? heads : NULL;
}

static const struct cowsnap_preimage *origin_preimage(const struct cowsnap_origin *origin)
{
	return origin->preimage.get ? &origin->preimage : NULL;
}

static void begin_save(struct cs_save *save, struct cs_op *op, struct cs_heads *heads,
	const struct cowsnap_preimage *preimage, enum cs_step (*step)(struct cs_save *save))
{
	cs_save_init(save, op, heads, step);
	save->preimage = preimage ? preimage : origin_preimage(op->origin);
	cs_stats_add(op->origin->stats, CS_STAT_SLOW_WRITES, 1);
}

static int save_and_wait(struct cs_op *op, struct cs_heads *heads, uint64_t offset, uint64_t length,
	const struct cowsnap_preimage *preimage)
{
	struct cs_save save;

	cs_op_init(op, NULL, NULL, NULL, NULL);
	op->offset = offset;
	op->length = length;
	begin_save(&save, op, heads, preimage, cs_save_look);
	while (cs_save_run(&save) == CS_PARK)
		cs_task_sleep(&op->task);
	return op->error;
}

int cowsnap_write_begin_with(struct cowsnap_origin *origin, enum cowsnap_write_kind kind,
	uint64_t offset, uint64_t length, const struct cowsnap_preimage *preimage,
	struct cowsnap_op *host_op)
{
	struct cs_op *op = cs_op_of(host_op);
	struct cs_heads *heads;
	int rc = check_write(origin, kind, offset, length);

	if (cs_unlikely(rc))
		return rc;
	if (cs_unlikely(preimage && !preimage->get))
		return -EINVAL;
	heads = enter(origin, op, offset, length);
	return cs_likely(!heads) ? 0 : save_and_wait(op, heads, offset, length, preimage);
}

int cowsnap_write_begin(struct cowsnap_origin *origin, enum cowsnap_write_kind kind,
	uint64_t offset, uint64_t length, struct cowsnap_op *host_op)
{
	struct cs_op *op = cs_op_of(host_op);
	struct cs_heads *heads;
	int rc = check_write(origin, kind, offset, length);

	if (cs_unlikely(rc))
		return rc;
	heads = enter(origin, op, offset, length);
	return cs_likely(!heads) ? 0 : save_and_wait(op, heads, offset, length, NULL);
}

bool cs_origin_begin_write(struct cs_op *op, struct cs_save *save)
{
	struct cs_heads *heads = enter(op->origin, op, op->offset, op->length);

	if (heads)
		begin_save(save, op, heads, NULL, cs_save_look);
	return !heads;
}

void cowsnap_write_end(struct cowsnap_op *host_op)
{
	struct cs_op *op = cs_op_of(host_op);

	cs_gate_leave(&op->origin->gate, &op->pass);
}

/* ---- The bracket in a queue ------------------------------------------------------------------ */

void cs_origin_comes(struct cowsnap_origin *origin)
{
	atomic_fetch_add_explicit(&origin->outside, 1, memory_order_relaxed);
}

/* Out of the gate, without the origin being closed meanwhile. */
static void leave_for_now(struct cs_op *op)
{
	cs_origin_comes(op->origin);
	cs_gate_cancel(&op->origin->gate, &op->pass);
}

/* It is in the gate now, or has ended. */
static void not_outside(struct cowsnap_origin *origin)
{
	/* Release: the gate says the rest; pairs with in_use. */
	atomic_fetch_sub_explicit(&origin->outside, 1, memory_order_release);
}

/* It is not in the gate, and never will be. Who waits for all of them looks when one leaves. */
void cs_origin_gone(struct cowsnap_origin *origin)
{
	struct cs_gate_pass pass;

	cs_gate_enter(&origin->gate, &pass);
	not_outside(origin);
	cs_gate_cancel(&origin->gate, &pass);
}

static enum cs_step enter_again(struct cs_save *save)
{
	enum cs_step step = cs_save_enter(save);

	not_outside(save->op->origin);
	return step;
}

static void begin_record(struct cs_op *op)
{
	begin_save(op->turn.record, op, NULL, op->preimage, enter_again);
}

static enum cs_step run_record(struct cs_op *op)
{
	return cs_save_run(op->turn.record);
}

static void forsaken(struct cs_op *op)
{
	cs_origin_gone(op->origin);
}

static const struct cs_op_kind bracket = {
	.begin = begin_record,
	.go_on = run_record,
	.forsaken = forsaken,
};

void cs_save_abandoned(struct cs_save *save)
{
	cs_save_fail(save, -ECANCELED);
	if (save->abandoned)
		save->abandoned(save);
	else
		cs_op_abandoned(save->op);
}

int cowsnap_write_begin_with_async(struct cowsnap_origin *origin, struct cowsnap_queue *queue,
	enum cowsnap_write_kind kind, uint64_t offset, uint64_t length,
	const struct cowsnap_preimage *preimage, struct cowsnap_op *host_op, cowsnap_done *ready,
	void *user)
{
	struct cs_op *op = cs_op_of(host_op);
	struct cowsnap_queue *to;
	struct cs_heads *heads;
	int rc = check_write(origin, kind, offset, length);

	if (!rc)
		rc = cs_workers_route(origin->handle.ctx, queue, ready, &to);
	if (cs_unlikely(rc))
		return rc;
	if (preimage && !preimage->get)
		return -EINVAL;
	heads = enter(origin, op, offset, length);
	if (cs_likely(!heads))
		return 0;
	cs_op_init(op, to, &bracket, ready, user);
	op->offset = offset;
	op->length = length;
	op->preimage = preimage;
	if (queue && cs_op_get_record(op)) {
		begin_save(op->turn.record, op, heads, preimage, cs_save_look);
		return cs_op_go(op);
	}
	leave_for_now(op); /* S3 of save.c */
	return queue ? cs_op_queue(op) : cs_op_post(op);
}

int cowsnap_write_begin_async(struct cowsnap_origin *origin, struct cowsnap_queue *queue,
	enum cowsnap_write_kind kind, uint64_t offset, uint64_t length, struct cowsnap_op *host_op,
	cowsnap_done *ready, void *user)
{
	return cowsnap_write_begin_with_async(
		origin, queue, kind, offset, length, NULL, host_op, ready, user);
}

/* ---- Preimages from the host ----------------------------------------------------------------- */

int cowsnap_origin_set_preimage(
	struct cowsnap_origin *origin, const struct cowsnap_preimage *preimage)
{
	if (cs_handle_closed(&origin->handle))
		return -EBADF;
	if (preimage && !preimage->get)
		return -EINVAL;
	if (cs_gate_entries(&origin->gate))
		return -EBUSY;
	origin->preimage = preimage ? *preimage : (struct cowsnap_preimage){0};
	return 0;
}
