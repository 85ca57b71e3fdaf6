/* SPDX-License-Identifier: MIT
 *
 * Handing a persistent store over: when its origin's brackets have ended its snapshot ends here,
 * and the next owner is told what this one knows (store_dm_state.c).
 *
 *   wait     until no bracket of the origin is open and none is on its way. Meanwhile all is as it
 *            was: what begins is saved.
 *   close    a new generation of brackets, with the same heads, but of an epoch that is not
 *            established: as during the drain of a take, who has to save something waits. It lasts
 *            for the look that nobody is in an older generation, or outside on his way into this
 *            one, or was here before.
 *   open     If somebody was: that epoch is withdrawn, he is saved for, and the wait goes on.
 *   end      Else the snapshot ends. Who has come since began after that, and saves nothing.
 *   write    the state. The map is kept from being reclaimed until then.
 *
 * The look goes from old to new, which is the way that a bracket goes: out of an older generation,
 * outside, into the new one. It is counted in the next place before it leaves the last. So one that
 * had begun before the gate was closed is met at one of the three. One that begins while it is
 * closed, and is met, is just let in again.
 *
 * Why it is closed: who got in behind the look would copy into a store that is another's by then.
 * Why nobody waits for brackets with the gate closed: the thread that has to end one may be about
 * to begin another.
 *
 * Invariants: T1 of take.c: the gate is switched, and ctx->epoch raised, by who has the turn. The
 * turn is not kept during the wait.
 *
 * Locking: ctx->admin for each step, not over I/O. With the reference to the snapshot neither store
 * nor origin can be closed.
 *
 * Failure: up to the end of the snapshot everything is as before. After it, only the state can be
 * lost, and the store is on its device to be opened.
 */
#include <errno.h>

#include "origin.h"

/* Of an attempt: records are on their way, of a bracket's or the host's own. */
#define RECORDS_COME 1

struct handover {
	struct cowsnap_store *store;
	struct cowsnap_origin *origin;
	struct cs_chain *chain;
	struct cowsnap_snapshot *snapshot; /* a reference */
	uint64_t deadline_ns;
	/* While the gate is closed. */
	struct cs_heads *heads;
	uint32_t old_slot;
	uint64_t epoch;
};

static int state_error(const struct cowsnap_snapshot *s)
{
	/* Acquire: pairs with cs_snapshot_lose and cowsnap_snapshot_drop. */
	switch (atomic_load_explicit(&s->state, memory_order_acquire)) {
	case COWSNAP_SNAPSHOT_ACTIVE:
		return 0;
	case COWSNAP_SNAPSHOT_MERGING:
		return -EBUSY;
	default:
		return -ENODATA;
	}
}

/* ---- What is handed over --------------------------------------------------------------------- */

/* Finds the snapshot, and takes a reference. */
static int find(struct handover *h)
{
	struct cowsnap_ctx *ctx = h->store->handle.ctx;
	int rc = -ENODATA;

	cs_mutex_lock(&ctx->admin);
	for (struct cs_chain *c = h->store->upper->chains; c; c = c->next_of_store) {
		struct cowsnap_snapshot *s = cs_chain_newest(c);

		if (!s || !cs_snapshot_keeps(s))
			continue;
		rc = state_error(s);
		h->snapshot = s;
		h->chain = c;
		h->origin = c->origin;
	}
	if (!rc)
		atomic_fetch_add_explicit(&h->snapshot->refs, 1, memory_order_relaxed);
	cs_mutex_unlock(&ctx->admin);
	return rc;
}

/* ---- Closed for a moment --------------------------------------------------------------------- */

/* Is no bracket open, or about to be? From old to new, if a new generation was begun. Under
 * ctx->admin, with the turn. */
static bool all_ended(struct cowsnap_origin *origin)
{
	if (!cs_gate_drained(&origin->gate))
		return false;
	/* Acquire: who is not outside any more is seen in the gate; pairs with not_outside. */
	if (atomic_load_explicit(&origin->outside, memory_order_acquire))
		return false;
	return cs_gate_empty(&origin->gate);
}

static struct cs_heads *copy_heads(struct cowsnap_ctx *ctx, const struct cs_heads *now)
{
	struct cs_heads *heads = cs_heads_create(ctx, now ? now->count : 0);

	for (size_t i = 0; heads && now && i < now->count; i++)
		cs_heads_add(heads, now->head[i].chain, now->head[i].newest);
	return heads;
}

/* Under ctx->admin. */
static void raise_epoch(struct cowsnap_ctx *ctx, uint64_t epoch)
{
	/* seq_cst: as for a take; pairs with cs_gate_current. */
	atomic_store_explicit(&ctx->epoch, epoch, memory_order_seq_cst);
}

/* Under ctx->admin. Returns: 0; -EAGAIN (somebody is in each slot), -ENOMEM. */
static int close_gate(struct handover *h)
{
	struct cowsnap_ctx *ctx = h->store->handle.ctx;
	struct cs_gate *gate = &h->origin->gate;
	uint32_t slot;

	cs_origin_sweep(h->origin);
	slot = cs_gate_pick(gate);
	if (slot == CS_GATE_SLOTS)
		return -EAGAIN;
	h->old_slot = cs_gate_current(gate);
	h->heads = copy_heads(ctx, cs_origin_heads(h->origin, h->old_slot));
	if (!h->heads)
		return -ENOMEM;
	h->epoch = atomic_load_explicit(&ctx->epoch, memory_order_relaxed) + 1;
	h->heads->epoch = h->epoch;
	cs_origin_set_heads(h->origin, slot, h->heads);
	cs_gate_switch(gate, slot, h->epoch);
	raise_epoch(ctx, h->epoch);
	cs_gate_switch(gate, slot, 0);
	return 0;
}

/* Back to the generation of before. Returns: who waits, and is saved for. */
static struct cs_waiter *reopen_gate(struct cowsnap_ctx *ctx, struct handover *h)
	CS_REQUIRES(ctx->admin)
{
	/* Release: pairs with established. */
	atomic_store_explicit(&h->heads->withdrawn, true, memory_order_release);
	cs_gate_switch(&h->origin->gate, h->old_slot, h->epoch + 1);
	raise_epoch(ctx, h->epoch + 1);
	cs_gate_switch(&h->origin->gate, h->old_slot, 0);
	cs_origin_sweep(h->origin);
	return cs_ctx_establish(ctx, h->epoch + 1);
}

static void reopen(struct handover *h)
{
	struct cowsnap_ctx *ctx = h->store->handle.ctx;
	struct cs_waiter *parked;

	cs_mutex_lock(&ctx->admin);
	parked = reopen_gate(ctx, h);
	h->chain->kept = false;
	cs_mutex_unlock(&ctx->admin);
	cs_waiters_wake(parked);
}

/* Returns: 0: nobody is inside, and who comes and has something to save waits; -EAGAIN, -ENOMEM. */
static int shut(struct handover *h)
{
	struct cowsnap_ctx *ctx = h->store->handle.ctx;
	struct cs_waiter *parked = NULL;
	int rc;

	cs_mutex_lock(&ctx->admin);
	rc = all_ended(h->origin) ? close_gate(h) : -EAGAIN;
	if (!rc && !all_ended(h->origin)) {
		parked = reopen_gate(ctx, h);
		rc = -EAGAIN;
	}
	h->chain->kept = !rc;
	cs_mutex_unlock(&ctx->admin);
	cs_waiters_wake(parked);
	return rc;
}

/* The snapshot has ended. */
static void let_go(struct handover *h)
{
	struct cowsnap_ctx *ctx = h->store->handle.ctx;
	struct cs_waiter *parked;

	cs_mutex_lock(&ctx->admin);
	parked = cs_ctx_establish(ctx, h->epoch);
	cs_mutex_unlock(&ctx->admin);
	cs_waiters_wake(parked);
	cs_origin_lost_one(h->origin);
}

/* With the turn. Returns: 0: the snapshot has ended here, and its map is kept; -EAGAIN (not yet),
 * RECORDS_COME, or an error: all is as before. */
static int end_here(struct handover *h)
{
	int rc;

	/* I/O, so before the gate is closed. Of a bracket that begins during it the gate tells. */
	rc = cs_store_dm_export_begin(h->store, &h->snapshot->map);
	if (rc)
		return rc == -EBUSY ? RECORDS_COME : rc;
	rc = shut(h);
	if (!rc) {
		rc = cs_snapshot_hand_over(h->snapshot);
		if (rc)
			reopen(h);
	}
	if (rc)
		cs_store_dm_export_cancel(h->store);
	else
		let_go(h);
	return rc;
}

/* ---- Waiting --------------------------------------------------------------------------------- */

/* Without I/O, for the many times that somebody is inside. */
static bool worth_it(struct handover *h)
{
	struct cowsnap_ctx *ctx = h->store->handle.ctx;
	bool ended;

	cs_mutex_lock(&ctx->admin);
	ended = all_ended(h->origin);
	cs_mutex_unlock(&ctx->admin);
	return ended;
}

/* By somebody who is not waited for: a merge of another snapshot, or a write to this one. */
static bool in_use(const struct handover *h)
{
	/* seq_cst: pairs with end_writing. Who begins behind this look is met by end_writers. */
	return cs_origin_merge(h->origin) ||
	       atomic_load_explicit(&h->snapshot->writers, memory_order_seq_cst);
}

static int attempt(struct handover *h)
{
	struct cowsnap_ctx *ctx = h->store->handle.ctx;
	int rc;

	if (!cs_turn_wait(ctx, h->deadline_ns))
		return -ETIMEDOUT;
	rc = state_error(h->snapshot);
	if (!rc && in_use(h))
		rc = -EBUSY;
	if (!rc)
		rc = worth_it(h) ? end_here(h) : -EAGAIN;
	cs_turn_end(ctx);
	return rc;
}

/* Attempts, and waits for a bracket to end if that was in vain. */
static int attempt_and_wait(struct handover *h)
{
	struct cs_gate *gate = &h->origin->gate;
	struct cs_task task;
	bool waited;
	int rc;

	cs_task_init(&task, NULL, NULL);
	cs_gate_await_leave(gate, &task.waiter);
	rc = attempt(h);
	if (rc == RECORDS_COME && !worth_it(h))
		rc = -EAGAIN;
	if (rc == -EAGAIN) {
		task.deadline_ns = h->deadline_ns;
		cs_task_sleep(&task);
		if (!task.timed_out)
			return -EAGAIN;
		rc = -ETIMEDOUT;
	}
	waited = cs_gate_forsake_drain(gate, &task.waiter);
	if (!waited)
		cs_task_sleep(&task);
	if (rc != RECORDS_COME)
		return rc;
	/* Nobody was inside, and nobody has left meanwhile: they are no bracket's. */
	if (waited)
		return -EBUSY;
	return cs_monotonic_ns() < h->deadline_ns ? -EAGAIN : -ETIMEDOUT;
}

/* ---- The call -------------------------------------------------------------------------------- */

/* A write to the snapshot that began just before its end: nothing of it is recorded any more, but
 * it may be on its way to the device, which is kept until then. */
static void end_writers(const struct handover *h)
{
	cs_store_dm_export_end(h->store);
	cs_snapshot_await_writers(h->snapshot, UINT64_MAX);
}

static int write_state(const struct handover *h,
	int (*write)(void *user, const void *data, size_t bytes), void *user)
{
	const struct cs_dm_export to = {
		.map = &h->snapshot->map,
		.origin_bytes = cs_dev_size(h->origin->device),
		.snapshot_bytes = h->snapshot->size_bytes,
		.written = atomic_load_explicit(&h->snapshot->written, memory_order_relaxed),
		.write = write,
		.user = user,
	};

	return cs_store_dm_export(h->store, &to);
}

/* What is left of the snapshot may be reclaimed. */
static void end_keeping(struct handover *h)
{
	struct cowsnap_ctx *ctx = h->store->handle.ctx;

	cs_mutex_lock(&ctx->admin);
	h->chain->kept = false;
	cs_mutex_unlock(&ctx->admin);
	atomic_store_explicit(&h->store->upper->reclaimable, true, memory_order_relaxed);
	cs_store_wake(h->store);
}

int cowsnap_store_export(struct cowsnap_store *store, uint64_t wait_ns,
	int (*write)(void *user, const void *data, size_t bytes), void *user)
{
	struct handover h = {.store = store, .deadline_ns = cs_deadline_ns(wait_ns)};
	int rc;

	if (cs_handle_closed(&store->handle))
		return -EBADF;
	if (!write)
		return -EINVAL;
	if (!cs_store_dm_is(store))
		return -ENOTSUP;
	rc = find(&h);
	if (rc)
		return rc;
	do
		rc = attempt_and_wait(&h);
	while (rc == -EAGAIN);
	if (!rc) {
		end_writers(&h);
		rc = write_state(&h, write, user);
		end_keeping(&h);
	}
	cs_snapshot_put(h.snapshot);
	return rc;
}
