/* SPDX-License-Identifier: MIT
 *
 * Take and drop: changing what writes save.
 *
 * plan: check the entries, make the snapshots, gather them by origin; each origin gets new heads in
 *	a slot of its gate in which nobody is, and its gate is told to switch when the epoch comes.
 * publish: one store of ctx->epoch moves all these origins to their new slots. That is the instant.
 * drain: wait until nobody is left in the older slots of these origins.
 * establish: link the snapshots into their chains, let the writers that wait go on. Or, past the
 *	deadline, withdraw: one more store of the epoch moves the origins back to the slots of
 *	before; writers that wait look afresh.
 *
 * Why it is a consistent cut: if write A ended before write B began, and B is in the older
 * generation, then A's look at the gate came before B's, which came before the instant; so A is in
 * the older generation too, on whatever origin of the group it was.
 *
 * Invariants:
 *  T1 One take at a time (ctx->taking). Heads and gates of origins are switched by its holder, or
 *     under ctx->admin while nobody has it.
 *  T2 No snapshot of a take is in a chain, and nobody claims into its map, before the drain is
 *  over.
 *
 * Locking: ctx->admin, never across freeze, thaw or the drain.
 *
 * Failure: until the publication everything is undone; after it, the take is withdrawn as a whole.
 */
#include <assert.h>
#include <string.h>

#include "alloc.h"
#include "origin.h"

#define DEADLINE_DEFAULT_NS UINT64_C(5000000000)

struct take {
	struct cowsnap_ctx *ctx;
	struct cowsnap_take_entry *entries;
	size_t count;
	size_t made;                    /* entries that have their snapshot */
	struct cowsnap_origin *origins; /* linked by plan_next */
	uint64_t epoch;
	uint64_t deadline_ns;
};

/* ---- Checks --------------------------------------------------------------------------------- */

static int check_entry(struct cowsnap_ctx *ctx, const struct cowsnap_take_entry *entry)
{
	if (!entry->origin || !entry->store)
		return -EINVAL;
	if (entry->origin->handle.ctx != ctx || entry->store->handle.ctx != ctx)
		return -EXDEV;
	if (cs_handle_closed(&entry->origin->handle) || cs_handle_closed(&entry->store->handle))
		return -EBADF;
	if ((unsigned)entry->on_full > COWSNAP_LOSER_ASK)
		return -EINVAL;
	if (entry->on_full == COWSNAP_LOSER_ASK && !entry->decide)
		return -EINVAL;
	return 0;
}

static int check_entries(struct cowsnap_ctx *ctx, struct cowsnap_take_entry *entries, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		int rc = check_entry(ctx, &entries[i]);

		entries[i].snapshot = NULL;
		if (rc) {
			cs_log(&ctx->base, COWSNAP_LOG_ERROR, "take: entry %zu refused: error %d",
				i, rc);
			return rc;
		}
	}
	return count ? 0 : -EINVAL;
}

/* ---- Looking ahead --------------------------------------------------------------------------
 *
 * The first step of a take of a thousand origins walks over a megabyte that may be in no cache, and
 * does little with each line: it asks for the lines of later entries while it works on this one.
 */

#define LINE_BYTES 64

static void ask_for(const void *object, size_t bytes)
{
	for (size_t at = 0; object && at < bytes; at += LINE_BYTES)
		__builtin_prefetch((const char *)object + at, 1);
}

static const struct cs_chain *next_chain(const struct cowsnap_take_entry *entry)
{
	return entry->origin->chains ? entry->origin->chains : entry->origin->spare_chain;
}

/* Each step needs what the one before has brought. Under ctx->admin. */
static void ask_for_entry(const struct take *take, size_t i)
{
	const struct cowsnap_take_entry *entry = &take->entries[i];
	size_t left = take->count - i;

	if (left > 8)
		ask_for(entry[8].origin, sizeof(*entry->origin));
	if (left > 4) {
		const struct cs_gate *gate = &entry[4].origin->gate;

		ask_for(next_chain(&entry[4]), sizeof(struct cs_chain));
		for (uint32_t stripe = 0; stripe <= gate->stripe_mask; stripe++)
			ask_for(&gate->stripes[stripe], sizeof(gate->stripes->count));
	}
	if (left > 2 && next_chain(&entry[2]))
		ask_for(atomic_load_explicit(&next_chain(&entry[2])->spare, memory_order_relaxed),
			sizeof(struct cowsnap_snapshot));
}

/* ---- Plan ----------------------------------------------------------------------------------- */

static bool store_has_snapshot(const struct cowsnap_store *store)
{
	for (const struct cs_chain *chain = store->upper->chains; chain;
		chain = chain->next_of_store) {
		if (chain->taken || cs_chain_newest(chain))
			return true;
	}
	return false;
}

/* Under ctx->admin. */
static int plan_entry(struct take *take, struct cowsnap_take_entry *entry)
{
	struct cowsnap_origin *origin = entry->origin;
	struct cs_chain *chain;

	chain = cs_origin_chain(origin, entry->store);
	if (!chain)
		return -ENOMEM;
	if (chain->taken)
		return -EINVAL;
	if ((entry->store->flags & COWSNAP_STORE_ONE_SNAPSHOT) && store_has_snapshot(entry->store))
		return -ENOTSUP;
	chain->taken = cs_snapshot_create(chain, origin->size_bytes, entry);
	if (!chain->taken)
		return -ENOMEM;
	chain->taken->id = ++take->ctx->next_id;
	entry->snapshot = chain->taken;
	if (!origin->planned) {
		origin->planned = true;
		origin->plan_next = take->origins;
		take->origins = origin;
	}
	return 0;
}

static bool head_counts(const struct cs_chain *chain)
{
	return chain->taken || atomic_load_explicit(&chain->live, memory_order_relaxed) > 0;
}

static struct cowsnap_snapshot *head_snapshot(const struct cs_chain *chain)
{
	return chain->taken ? chain->taken : cs_chain_newest(chain);
}

/* The heads that this origin's writes get, in a slot where nobody is. Under ctx->admin. */
static int plan_origin(struct take *take, struct cowsnap_origin *origin)
{
	struct cs_heads *heads;
	size_t count = 0;

	cs_origin_sweep(origin);
	origin->old_slot = cs_gate_current(&origin->gate);
	origin->plan_slot = cs_gate_pick(&origin->gate);
	/* Writes of withdrawn takes still hold every generation: the drain would not end either. */
	if (origin->plan_slot == CS_GATE_SLOTS)
		return -ETIMEDOUT;
	for (struct cs_chain *c = origin->chains; c; c = c->next_of_origin)
		count += head_counts(c);
	if (count == 1 && origin->chains) {
		struct cs_chain *c = origin->chains;

		while (!c->taken)
			c = c->next_of_origin;
		heads = &c->taken->solo;
		heads->refs = 1;
		cs_snapshot_ref_unshared(c->taken);
	} else {
		heads = cs_heads_create(take->ctx, count);
		if (!heads)
			return -ENOMEM;
		for (struct cs_chain *c = origin->chains; c; c = c->next_of_origin) {
			if (head_counts(c) && heads->count < count)
				cs_heads_add(heads, c, head_snapshot(c));
		}
	}
	heads->epoch = take->epoch;
	origin->plan_heads = heads;
	/* Nothing comes of this before the epoch does. */
	cs_origin_set_heads(origin, origin->plan_slot, heads);
	cs_gate_switch(&origin->gate, origin->plan_slot, take->epoch);
	return 0;
}

/* Under ctx->admin. */
static void end_plan(struct cowsnap_origin *origin)
{
	origin->planned = false;
	origin->plan_heads = NULL;
	cs_origin_sweep(origin);
}

/* Undoes what was planned for the origins, back to the slots of before; what is in them is the same
 * generation still. Under ctx->admin. */
static void turn_back(struct take *take, uint64_t epoch)
{
	for (struct cowsnap_origin *o = take->origins; o; o = o->plan_next) {
		if (!o->plan_heads)
			continue;
		/* Release: pairs with wait_established. */
		atomic_store_explicit(&o->plan_heads->withdrawn, true, memory_order_release);
		cs_gate_switch(&o->gate, o->old_slot, epoch);
	}
}

/* Forgets the whole plan. Under ctx->admin. */
static void discard_plan(struct take *take)
{
	for (struct cowsnap_origin *o = take->origins; o; o = o->plan_next)
		end_plan(o);
	for (size_t i = 0; i < take->made; i++) {
		take->entries[i].snapshot->chain->taken = NULL;
		cs_snapshot_put(take->entries[i].snapshot);
		take->entries[i].snapshot = NULL;
	}
}

static int plan(struct take *take)
{
	int rc = 0;

	cs_mutex_lock(&take->ctx->admin);
	take->epoch = atomic_load_explicit(&take->ctx->epoch, memory_order_relaxed) + 1;
	while (!rc && take->made < take->count) {
		ask_for_entry(take, take->made);
		rc = plan_entry(take, &take->entries[take->made]);
		take->made += !rc;
	}
	for (size_t i = 0; i < take->count && !rc; i++) {
		if (!take->entries[i].origin->plan_heads)
			rc = plan_origin(take, take->entries[i].origin);
	}
	if (rc) {
		turn_back(take, 0);
		discard_plan(take);
	}
	cs_mutex_unlock(&take->ctx->admin);
	return rc;
}

/* ---- Publish, drain, establish or withdraw --------------------------------------------------- */

static bool drain(struct take *take)
{
	for (size_t i = 0; i < take->count; i++) {
		if (!cs_gate_drain(&take->entries[i].origin->gate, take->deadline_ns))
			return false;
	}
	return true;
}

/* Lets the writers that wait look again. Under ctx->admin. */
static void set_established(struct cowsnap_ctx *ctx, uint64_t epoch)
{
	/* Release: what the writers wait for; pairs with wait_established. */
	atomic_store_explicit(&ctx->established, epoch, memory_order_release);
	cs_cond_broadcast(&ctx->changed);
}

static void establish(struct take *take)
{
	cs_mutex_lock(&take->ctx->admin);
	for (size_t i = 0; i < take->count; i++) {
		struct cowsnap_snapshot *s = take->entries[i].snapshot;
		struct cowsnap_origin *o = take->entries[i].origin;

		cs_chain_link(s->chain, s);
		s->chain->taken = NULL;
		/* What was the newest may be a ghost that was kept for being that. */
		if (cs_snapshot_older(s))
			atomic_store_explicit(
				&s->chain->store->upper->reclaimable, true, memory_order_relaxed);
		if (o->planned) {
			cs_gate_switch(&o->gate, o->plan_slot, 0);
			end_plan(o);
		}
	}
	set_established(take->ctx, take->epoch);
	cs_mutex_unlock(&take->ctx->admin);
}

static void withdraw(struct take *take)
{
	struct cowsnap_ctx *ctx = take->ctx;

	cs_mutex_lock(&ctx->admin);
	turn_back(take, take->epoch + 1);
	/* seq_cst: pairs with cs_gate_current. */
	atomic_store_explicit(&ctx->epoch, take->epoch + 1, memory_order_seq_cst);
	for (struct cowsnap_origin *o = take->origins; o; o = o->plan_next)
		cs_gate_switch(&o->gate, o->old_slot, 0);
	discard_plan(take);
	set_established(ctx, take->epoch + 1);
	cs_mutex_unlock(&ctx->admin);
}

/* ---- The calls ------------------------------------------------------------------------------ */

/* T1. Returns: false if the deadline passed first. */
static bool begin_taking(struct cowsnap_ctx *ctx, uint64_t deadline_ns)
{
	bool mine;

	cs_mutex_lock(&ctx->admin);
	while (ctx->taking) {
		if (!cs_cond_wait_until(&ctx->changed, &ctx->admin, deadline_ns))
			break;
	}
	mine = !ctx->taking;
	if (mine)
		ctx->taking = true;
	cs_mutex_unlock(&ctx->admin);
	return mine;
}

static void end_taking(struct cowsnap_ctx *ctx)
{
	cs_mutex_lock(&ctx->admin);
	ctx->taking = false;
	while (ctx->prune) {
		struct cowsnap_origin *origin = ctx->prune;

		ctx->prune = origin->prune_next;
		origin->prune_queued = false;
		cs_origin_prune(origin);
	}
	cs_cond_broadcast(&ctx->changed);
	cs_mutex_unlock(&ctx->admin);
}

/* A store that holds a single snapshot may still hold one that was dropped. */
static void make_room(const struct take *take)
{
	for (size_t i = 0; i < take->count; i++) {
		struct cowsnap_store *store = take->entries[i].store;

		while ((store->flags & COWSNAP_STORE_ONE_SNAPSHOT) && cs_reclaim_for_space(store))
			;
	}
}

static int take_planned(struct take *take, const struct cowsnap_take_options *options)
{
	int rc = options->freeze ? options->freeze(options->user) : 0;

	if (rc) {
		cs_mutex_lock(&take->ctx->admin);
		turn_back(take, 0);
		discard_plan(take);
		cs_mutex_unlock(&take->ctx->admin);
		return rc;
	}
	/* seq_cst: the instant; pairs with cs_gate_current. */
	atomic_store_explicit(&take->ctx->epoch, take->epoch, memory_order_seq_cst);
	if (options->thaw)
		options->thaw(options->user);
	if (drain(take)) {
		establish(take);
		return 0;
	}
	withdraw(take);
	cs_log(&take->ctx->base, COWSNAP_LOG_ERROR,
		"take of %zu entries withdrawn: older writes did not end in time", take->count);
	return -ETIMEDOUT;
}

int cowsnap_take(struct cowsnap_ctx *ctx, const struct cowsnap_take_options *host_options,
	struct cowsnap_take_entry *entries, size_t count)
{
	struct cowsnap_take_options options = {0};
	struct take take = {.ctx = ctx, .entries = entries, .count = count};
	int rc = cs_options_copy(&ctx->base, "take options", &options, sizeof(options),
		host_options, sizeof(options));

	if (!rc && options.flags)
		rc = -EINVAL;
	if (!rc)
		rc = check_entries(ctx, entries, count);
	if (rc)
		return rc;
	take.deadline_ns =
		cs_deadline_ns(options.deadline_ns ? options.deadline_ns : DEADLINE_DEFAULT_NS);
	if (!begin_taking(ctx, take.deadline_ns))
		return -ETIMEDOUT;
	make_room(&take);
	rc = plan(&take);
	if (!rc)
		rc = take_planned(&take, &options);
	end_taking(ctx);
	return rc;
}

int cowsnap_snapshot_drop(struct cowsnap_snapshot *snapshot)
{
	struct cs_chain *chain = snapshot->chain;
	/* Release: pairs with cs_snapshot_live. */
	int before = atomic_exchange_explicit(
		&snapshot->state, COWSNAP_SNAPSHOT_DROPPED, memory_order_acq_rel);

	if (before == COWSNAP_SNAPSHOT_DROPPED)
		return -EIDRM;
	if (before == COWSNAP_SNAPSHOT_ACTIVE)
		atomic_fetch_sub_explicit(&chain->live, 1, memory_order_relaxed);
	cs_chain_ghosted(chain);
	cs_origin_lost_one(chain->origin);
	return 0;
}
