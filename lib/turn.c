/* SPDX-License-Identifier: MIT
 *
 * Turns, and the wait for what dropped snapshots left.
 *
 * Whoever changes heads and gates of origins has the *turn*: takes, one after the other, in the
 * order in which they came. It is handed from one to the next.
 *
 * What a dropped snapshot left may be held up: by a write of before the drop that may still save
 * into it, by a reader that is inside. The first is waited for at the gate of the origin, the
 * second as for space. Each wake is followed by another look from the beginning, so nothing need
 * stay as it was during a wait.
 *
 * Invariants: T1 of take.c. ctx->taking stays set while the turn goes from hand to hand.
 *
 * Locking: ctx->admin for the list of those who wait for a turn.
 *
 * Failure: none. Reclaiming that lacks memory looks like a reader who stays.
 */
#include "origin.h"

bool cs_turn_await(struct cowsnap_ctx *ctx, struct cs_waiter *waiter)
{
	bool waits;

	cs_mutex_lock(&ctx->admin);
	waits = ctx->taking;
	if (waits)
		cs_waitlist_add(&ctx->turns, waiter);
	ctx->taking = true;
	cs_mutex_unlock(&ctx->admin);
	return waits;
}

bool cs_turn_forsake(struct cowsnap_ctx *ctx, struct cs_waiter *waiter)
{
	bool waited;

	cs_mutex_lock(&ctx->admin);
	waited = cs_waitlist_remove(&ctx->turns, waiter);
	cs_mutex_unlock(&ctx->admin);
	return waited;
}

bool cs_turn_wait(struct cowsnap_ctx *ctx, uint64_t deadline_ns)
{
	struct cs_task task;

	cs_task_init(&task, NULL, NULL);
	if (!cs_turn_await(ctx, &task.waiter))
		return true;
	task.deadline_ns = deadline_ns;
	cs_task_sleep(&task);
	if (task.timed_out && cs_turn_forsake(ctx, &task.waiter))
		return false;
	if (task.timed_out)
		cs_task_sleep(&task);
	return true;
}

void cs_turn_end(struct cowsnap_ctx *ctx)
{
	struct cs_waiter *next;

	cs_mutex_lock(&ctx->admin);
	while (ctx->prune) {
		struct cowsnap_origin *origin = ctx->prune;

		ctx->prune = origin->prune_next;
		origin->prune_queued = false;
		cs_origin_prune(origin);
	}
	next = ctx->turns.first;
	if (next)
		cs_waitlist_remove(&ctx->turns, next);
	else
		ctx->taking = false;
	cs_mutex_unlock(&ctx->admin);
	if (next)
		next->wake(next);
}

/* ---- Ghosts ---------------------------------------------------------------------------------- */

static void prune(struct cowsnap_origin *origin)
{
	cs_mutex_lock(&origin->handle.ctx->admin);
	cs_origin_prune(origin);
	cs_mutex_unlock(&origin->handle.ctx->admin);
}

static bool all_dropped(const struct cs_chain *chain)
{
	return cs_chain_newest(chain) && !atomic_load_explicit(&chain->live, memory_order_relaxed);
}

bool cs_ghosts_await(struct cs_ghosts *ghosts, struct cs_waiter *waiter)
{
	struct cowsnap_store *store = ghosts->store;
	uint64_t epoch = cs_store_space_epoch(store);

	/* Chains are neither made nor given up during a turn. */
	for (struct cs_chain *c = store->upper->chains; c; c = c->next_of_store) {
		if (!all_dropped(c))
			continue;
		prune(c->origin);
		ghosts->gate = &c->origin->gate;
		if (cs_gate_await_drain(ghosts->gate, waiter))
			return true;
		prune(c->origin);
	}
	while (cs_reclaim_for_space(store))
		;
	ghosts->gate = NULL;
	return cs_reclaim_left(store) && cs_reclaim_await(store, epoch, waiter);
}

void cs_ghosts_awaited(const struct cs_ghosts *ghosts)
{
	if (!ghosts->gate)
		cs_reclaim_awaited(ghosts->store);
}

bool cs_ghosts_forsake(const struct cs_ghosts *ghosts, struct cs_waiter *waiter)
{
	if (ghosts->gate)
		return cs_gate_forsake_drain(ghosts->gate, waiter);
	return cs_store_forsake_space(ghosts->store, waiter);
}

/* With the turn for the look only: takes go on during the wait. Returns: false if the deadline
 * passed first. */
static bool look_and_wait(struct cs_ghosts *ghosts, uint64_t deadline_ns)
{
	struct cowsnap_ctx *ctx = ghosts->store->handle.ctx;
	struct cs_task task;
	bool waits;

	cs_task_init(&task, NULL, NULL);
	if (!cs_turn_wait(ctx, deadline_ns))
		return false;
	waits = cs_ghosts_await(ghosts, &task.waiter);
	cs_turn_end(ctx);
	if (!waits)
		return true;
	task.deadline_ns = deadline_ns;
	cs_task_sleep(&task);
	waits = task.timed_out && cs_ghosts_forsake(ghosts, &task.waiter);
	if (task.timed_out && !waits)
		cs_task_sleep(&task);
	cs_ghosts_awaited(ghosts);
	return !waits;
}

int cowsnap_store_drain(struct cowsnap_store *store, uint64_t wait_ns)
{
	uint64_t deadline_ns = cs_deadline_ns(wait_ns);
	struct cs_ghosts ghosts = {.store = store};

	if (cs_handle_closed(&store->handle))
		return -EBADF;
	do {
		if (!look_and_wait(&ghosts, deadline_ns))
			return -ETIMEDOUT;
	} while (cs_reclaim_left(store));
	return 0;
}
