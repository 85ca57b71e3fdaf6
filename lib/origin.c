/* SPDX-License-Identifier: MIT
 *
 * Origins: the write bracket, and what the brackets of each generation save into.
 *
 * A bracket enters the gate. The slot that it gets names its *heads*: the newest snapshot of each
 * chain at the take that made this generation. No heads: ready. All chunks done in each: ready.
 * Else the slow way: wait for the drain of that take, then rounds of cs_save_round() until nothing
 * is left.
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

int cs_origin_init(struct cowsnap_origin *origin, struct cowsnap_device *device)
{
	struct cowsnap_ctx *ctx = origin->handle.ctx;
	int rc = cs_gate_init(&origin->gate, ctx->base.alloc, &ctx->epoch);

	if (rc)
		return rc;
	origin->device = device;
	origin->size_bytes = cs_dev_size(device);
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
	if (live > 0) {
		then = cs_heads_create(ctx, live);
		if (!then)
			return;
		then->epoch = now->epoch;
		/* Chains may lose their last snapshot meanwhile; none comes to life without a take.
		 * */
		for (size_t i = 0; i < now->count; i++) {
			if (chain_live(now->head[i].chain))
				cs_heads_add(then, now->head[i].chain, now->head[i].newest);
		}
	}
	if (then && !then->count) {
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

static bool head_done(const struct cs_head *head, uint64_t offset, uint64_t length)
{
	uint32_t shift = head->chain->store->chunk_shift;
	uint64_t first = offset >> shift;
	uint64_t last = (offset + length - 1) >> shift;

	return cowsnap_map_done(&head->newest->map, first, last - first + 1);
}

static bool heads_done(const struct cs_heads *heads, uint64_t offset, uint64_t length)
{
	for (size_t i = 0; i < heads->count; i++) {
		if (!head_done(&heads->head[i], offset, length))
			return false;
	}
	return true;
}

/* O3. Returns: false if the take was withdrawn and the bracket must look afresh. */
static bool wait_established(struct cowsnap_origin *origin, const struct cs_heads *heads)
{
	struct cowsnap_ctx *ctx = origin->handle.ctx;

	/* Acquire: the drain of the take; pairs with the stores of established in take.c. */
	if (atomic_load_explicit(&ctx->established, memory_order_acquire) < heads->epoch) {
		cs_stats_add(origin->stats, CS_STAT_DRAIN_WAITS, 1);
		cs_mutex_lock(&ctx->admin);
		while (atomic_load_explicit(&ctx->established, memory_order_relaxed) < heads->epoch)
			cs_cond_wait_until(&ctx->changed, &ctx->admin, UINT64_MAX);
		cs_mutex_unlock(&ctx->admin);
	}
	/* Acquire: pairs with turn_back. */
	return !atomic_load_explicit(&heads->withdrawn, memory_order_acquire);
}

static int save_all(
	struct cowsnap_origin *origin, struct cs_gate_pass *pass, uint64_t offset, uint64_t length)
{
	struct cs_heads *heads = cs_origin_heads(origin, pass->slot);
	struct cs_trouble trouble = {0};
	int rc;

	cs_stats_add(origin->stats, CS_STAT_SLOW_WRITES, 1);
	do {
		while (heads && !wait_established(origin, heads)) {
			/* Its entry is counted where it ends up. */
			cs_gate_cancel(&origin->gate, pass);
			cs_gate_enter(&origin->gate, pass);
			heads = cs_origin_heads(origin, pass->slot);
		}
		if (!heads)
			return 0;
		rc = cs_save_round(origin, heads, offset, length, &trouble);
		if (rc == 1 && trouble.head)
			rc = cs_trouble_resolve(origin, &trouble);
	} while (rc == 1);
	if (rc) {
		cs_stats_add(origin->stats, CS_STAT_FAILED_WRITES, 1);
		cs_gate_leave(&origin->gate, pass);
	}
	return rc;
}

static int refuse(struct cowsnap_origin *origin, int rc, enum cowsnap_write_kind kind,
	uint64_t offset, uint64_t length)
{
	cs_log(&origin->handle.ctx->base, COWSNAP_LOG_ERROR,
		"write_begin: kind %d, offset %llu, length %llu refused: origin of %llu bytes",
		(int)kind, (unsigned long long)offset, (unsigned long long)length,
		(unsigned long long)origin->size_bytes);
	return rc;
}

int cowsnap_write_begin(struct cowsnap_origin *origin, enum cowsnap_write_kind kind,
	uint64_t offset, uint64_t length, struct cowsnap_op *host_op)
{
	struct cs_op *op = (struct cs_op *)host_op;
	const struct cs_heads *heads;
	int rc;

	if (cs_unlikely(cs_handle_closed(&origin->handle)))
		return -EBADF;
	if (cs_unlikely((unsigned)kind - COWSNAP_WRITE > COWSNAP_WRITE_ZEROES - COWSNAP_WRITE))
		return refuse(origin, -EINVAL, kind, offset, length);
	rc = cs_range_check(offset, length, origin->size_bytes);
	if (cs_unlikely(rc))
		return refuse(origin, rc, kind, offset, length);

	op->origin = origin;
	cs_gate_enter(&origin->gate, &op->pass);
	heads = cs_origin_heads(origin, op->pass.slot);
	if (!heads || heads_done(heads, offset, length))
		return 0;
	return save_all(origin, &op->pass, offset, length);
}

void cowsnap_write_end(struct cowsnap_op *host_op)
{
	struct cs_op *op = (struct cs_op *)host_op;

	cs_gate_leave(&op->origin->gate, &op->pass);
}
