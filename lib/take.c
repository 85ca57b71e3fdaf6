/* SPDX-License-Identifier: MIT
 *
 * Take and drop: changing what writes save.
 *
 * The same for a snapshot that a store has already and that is attached to its origin again: its
 * map is filled where a new one's store is told of it.
 *
 * plan: check the entries, make the snapshots, gather them by origin; each origin gets new heads in
 *	a slot of its gate in which nobody is, and its gate is told to switch when the epoch comes.
 * prepare: persistent stores record that they have a snapshot; freeze.
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
 * Locking: ctx->admin, never across I/O of a store, freeze, thaw or the drain.
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
	size_t begun;                   /* entries whose store knows of the snapshot */
	const struct cs_attach *attach; /* NULL: new snapshots */
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

/* ---- Room in a store that holds a single snapshot ----------------------------------------------
 *
 * It may still hold one that was dropped, because a write of before the drop may save into it, or a
 * reader is inside. They are waited for, as the drain of the take would. Chains are neither made
 * nor given up while there is a take.
 */

static bool only_ghosts(struct cowsnap_store *store)
{
	bool ghosts = false, live = false;

	cs_mutex_lock(&store->handle.ctx->admin);
	for (const struct cs_chain *c = store->upper->chains; c; c = c->next_of_store) {
		ghosts |= cs_chain_newest(c) != NULL;
		live |= atomic_load_explicit(&c->live, memory_order_relaxed) > 0;
	}
	cs_mutex_unlock(&store->handle.ctx->admin);
	return ghosts && !live;
}

static void prune(struct cowsnap_origin *origin)
{
	cs_mutex_lock(&origin->handle.ctx->admin);
	cs_origin_prune(origin);
	cs_mutex_unlock(&origin->handle.ctx->admin);
}

/* Returns: false if the deadline passed first. */
static bool clear_ghosts(struct cowsnap_store *store, uint64_t deadline_ns)
{
	uint64_t epoch = cs_store_space_epoch(store);

	for (struct cs_chain *c = store->upper->chains; c; c = c->next_of_store) {
		prune(c->origin);
		if (!cs_gate_drain(&c->origin->gate, deadline_ns))
			return false;
		prune(c->origin);
	}
	while (cs_reclaim_for_space(store))
		;
	return !only_ghosts(store) || cs_reclaim_wait(store, epoch, deadline_ns);
}

static int make_room(const struct take *take)
{
	for (size_t i = 0; i < take->count; i++) {
		struct cowsnap_store *store = take->entries[i].store;

		if (!(store->flags & COWSNAP_STORE_ONE_SNAPSHOT))
			continue;
		while (only_ghosts(store)) {
			if (!clear_ghosts(store, take->deadline_ns) && only_ghosts(store))
				return -ETIMEDOUT;
		}
	}
	return 0;
}

/* Has the stores know of their snapshots, before anybody else can. */
static int begin_stores(struct take *take)
{
	for (; take->begun < take->count; take->begun++) {
		int rc = cs_store_begin(take->entries[take->begun].store);

		if (rc)
			return rc;
	}
	return 0;
}

/* One that fails has said so to the log; the host sees the store's next failure. */
static void undo_begun(struct take *take)
{
	while (take->begun)
		cs_store_drop(take->entries[--take->begun].store);
}

/* Fills the map of a snapshot that its store has already. */
static int attach(struct take *take)
{
	struct cowsnap_take_entry *entry = take->entries;

	if (cs_gate_entries(&entry->origin->gate)) {
		cs_log(&take->ctx->base, COWSNAP_LOG_ERROR,
			"store on %s not attached: a write of its origin was not saved",
			entry->store->device->name);
		return -EBUSY;
	}
	return take->attach->load(take->attach->user, &entry->snapshot->map);
}

static int prepare(struct take *take, const struct cowsnap_take_options *options)
{
	int rc = take->attach ? attach(take) : begin_stores(take);

	if (!rc && options->freeze)
		rc = options->freeze(options->user);
	if (!rc)
		return 0;
	cs_mutex_lock(&take->ctx->admin);
	turn_back(take, 0);
	discard_plan(take);
	cs_mutex_unlock(&take->ctx->admin);
	undo_begun(take);
	return rc;
}

static int take_planned(struct take *take, const struct cowsnap_take_options *options)
{
	int rc = prepare(take, options);

	if (rc)
		return rc;
	/* seq_cst: the instant; pairs with cs_gate_current. */
	atomic_store_explicit(&take->ctx->epoch, take->epoch, memory_order_seq_cst);
	if (options->thaw)
		options->thaw(options->user);
	if (drain(take)) {
		establish(take);
		return 0;
	}
	withdraw(take);
	undo_begun(take);
	cs_log(&take->ctx->base, COWSNAP_LOG_ERROR,
		"take of %zu entries withdrawn: older writes did not end in time", take->count);
	return -ETIMEDOUT;
}

static int run_take(struct take *take, const struct cowsnap_take_options *options)
{
	uint64_t wait_ns = options->deadline_ns ? options->deadline_ns : DEADLINE_DEFAULT_NS;
	int rc;

	take->deadline_ns = cs_deadline_ns(wait_ns);
	if (!begin_taking(take->ctx, take->deadline_ns))
		return -ETIMEDOUT;
	rc = make_room(take);
	if (!rc)
		rc = plan(take);
	if (!rc)
		rc = take_planned(take, options);
	end_taking(take->ctx);
	return rc;
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
	return rc ? rc : run_take(&take, &options);
}

int cs_take_attach(
	struct cowsnap_ctx *ctx, struct cowsnap_take_entry *entry, const struct cs_attach *attach)
{
	static const struct cowsnap_take_options none = {0};
	struct take take = {.ctx = ctx, .entries = entry, .count = 1, .attach = attach};
	int rc = check_entries(ctx, entry, 1);

	return rc ? rc : run_take(&take, &none);
}

static int end_snapshot(struct cowsnap_snapshot *snapshot, bool record)
{
	int rc = cs_snapshot_end(snapshot, record);

	if (!rc)
		cs_origin_lost_one(snapshot->chain->origin);
	return rc;
}

int cowsnap_snapshot_drop(struct cowsnap_snapshot *snapshot)
{
	return end_snapshot(snapshot, true);
}

int cowsnap_snapshot_deactivate(struct cowsnap_snapshot *snapshot)
{
	if (!cs_store_persistent(snapshot->chain->store))
		return -ENOTSUP;
	return end_snapshot(snapshot, false);
}
