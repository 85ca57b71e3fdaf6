/* SPDX-License-Identifier: MIT
 *
 * Take and drop: changing what writes save.
 *
 * The same for a snapshot that a store has already and that is attached to its origin again: its
 * map is filled where a new one's store is told of it.
 *
 * A take goes on in steps, on the thread that waits for it or in a queue:
 *
 * turn: wait for other takes; then for room in stores of a single snapshot.
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
 *  T1 One take at a time (ctx->taking; turn.c). Heads and gates of origins are switched by who has
 *     the turn, or under ctx->admin while nobody has it.
 *  T2 No snapshot of a take is in a chain, and nobody claims into its map, before the drain is
 *  over.
 *
 * Locking: ctx->admin, never across I/O of a store, freeze, thaw or the drain.
 *
 * Failure: until the publication everything is undone; after it, the take is withdrawn as a whole.
 * Being cancelled is a failure like others.
 */
#include <assert.h>
#include <string.h>

#include "alloc.h"
#include "origin.h"
#include "workers.h"

#define DEADLINE_DEFAULT_NS UINT64_C(5000000000)

struct take {
	struct cs_op *op;
	enum cs_step (*step)(struct take *take); /* the next one */
	struct cowsnap_take_options options;
	struct cowsnap_ctx *ctx;
	struct cowsnap_take_entry *entries;
	size_t count;
	bool posted;                    /* to a worker, which has not come to it yet */
	size_t roomy;                   /* entries whose store has room */
	struct cs_ghosts ghosts;        /* of the next one */
	size_t made;                    /* entries that have their snapshot */
	struct cowsnap_origin *origins; /* linked by plan_next */
	size_t begun;                   /* entries whose store knows of the snapshot */
	size_t drained;                 /* entries whose origin is */
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
	if (entry->flags & ~COWSNAP_TAKE_MAP_ONLY)
		return -EINVAL;
	if (entry->flags && (cs_store_persistent(entry->store) || cs_store_records(entry->store)))
		return -ENOTSUP;
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

	if (cs_origin_merge(origin))
		return -EBUSY;
	chain = cs_origin_chain(origin, entry->store);
	if (!chain)
		return -ENOMEM;
	if (chain->taken)
		return -EINVAL;
	if ((entry->store->flags & COWSNAP_STORE_ONE_SNAPSHOT) && store_has_snapshot(entry->store))
		return -ENOTSUP;
	chain->taken = cs_snapshot_create(chain, cs_origin_size(origin), entry);
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
		/* Release: pairs with established. */
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

/* Returns: the writers who are to look again, to be woken without the lock. Under ctx->admin. */
static void establish(struct take *take)
{
	struct cs_waiter *parked;

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
	parked = cs_ctx_establish(take->ctx, take->epoch);
	cs_mutex_unlock(&take->ctx->admin);
	cs_waiters_wake(parked);
}

static void withdraw(struct take *take)
{
	struct cowsnap_ctx *ctx = take->ctx;
	struct cs_waiter *parked;

	cs_mutex_lock(&ctx->admin);
	turn_back(take, take->epoch + 1);
	/* seq_cst: pairs with cs_gate_current. */
	atomic_store_explicit(&ctx->epoch, take->epoch + 1, memory_order_seq_cst);
	for (struct cowsnap_origin *o = take->origins; o; o = o->plan_next)
		cs_gate_switch(&o->gate, o->old_slot, 0);
	discard_plan(take);
	parked = cs_ctx_establish(ctx, take->epoch + 1);
	cs_mutex_unlock(&ctx->admin);
	cs_waiters_wake(parked);
}

/* ---- Preparing ------------------------------------------------------------------------------ */

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
	/* Which of its records are preimages, they do not say. */
	atomic_store_explicit(&entry->snapshot->written, true, memory_order_relaxed);
	return take->attach->load(take->attach->user, &entry->snapshot->map);
}

static int prepare(struct take *take)
{
	const struct cowsnap_take_options *options = &take->options;
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

/* ---- Steps ---------------------------------------------------------------------------------- */

/* With the turn. */
static enum cs_step end(struct take *take, int rc)
{
	take->op->abandon = NULL;
	take->op->error = rc;
	cs_turn_end(take->ctx);
	return CS_DONE;
}

/* Has left its waiter somewhere; when that has come, or the deadline, it goes on with @next. */
static enum cs_step park(struct take *take, enum cs_step (*next)(struct take *take),
	void (*abandon)(struct cs_op *op))
{
	take->step = next;
	take->op->abandon = abandon;
	take->op->task.deadline_ns = take->deadline_ns;
	return CS_PARK;
}

static struct cs_gate *next_gate(const struct take *take)
{
	return &take->entries[take->drained].origin->gate;
}

static enum cs_step give_up(struct take *take, int rc)
{
	withdraw(take);
	undo_begun(take);
	cs_log(&take->ctx->base, COWSNAP_LOG_ERROR, "take of %zu entries withdrawn: %s",
		take->count,
		rc == -ECANCELED ? "it was cancelled" : "older writes did not end in time");
	return end(take, rc);
}

static void abandon_drain(struct cs_op *op)
{
	struct take *take = op->turn.record;

	if (!cs_gate_forsake_drain(next_gate(take), &op->task.waiter))
		return;
	give_up(take, -ECANCELED);
	cs_op_abandoned(op);
}

static enum cs_step had_drain(struct take *take);

static enum cs_step drain(struct take *take)
{
	for (; take->drained < take->count; take->drained++) {
		if (cs_gate_await_drain(next_gate(take), &take->op->task.waiter))
			return park(take, had_drain, abandon_drain);
	}
	establish(take);
	return end(take, 0);
}

static enum cs_step had_drain(struct take *take)
{
	struct cs_op *op = take->op;

	if (op->task.timed_out && !cs_gate_forsake_drain(next_gate(take), &op->task.waiter))
		return CS_PARK; /* the wake is on its way */
	if (op->cancelled)
		return give_up(take, -ECANCELED);
	if (op->task.timed_out && !cs_gate_drained(next_gate(take)))
		return give_up(take, -ETIMEDOUT);
	return drain(take);
}

static enum cs_step publish(struct take *take)
{
	int rc = plan(take);

	if (!rc)
		rc = prepare(take);
	if (rc)
		return end(take, rc);
	/* seq_cst: the instant; pairs with cs_gate_current. */
	atomic_store_explicit(&take->ctx->epoch, take->epoch, memory_order_seq_cst);
	if (take->options.thaw)
		take->options.thaw(take->options.user);
	return drain(take);
}

/* A store that holds a single snapshot may still hold one that was dropped, because a write of
 * before the drop may save into it, or a reader is inside. They are waited for, as the drain would.
 */
static bool only_ghosts(struct cowsnap_store *store)
{
	bool ghosts = false, live = false;

	if (!(store->flags & COWSNAP_STORE_ONE_SNAPSHOT))
		return false;
	cs_mutex_lock(&store->handle.ctx->admin);
	for (const struct cs_chain *c = store->upper->chains; c; c = c->next_of_store) {
		ghosts |= cs_chain_newest(c) != NULL;
		live |= atomic_load_explicit(&c->live, memory_order_relaxed) > 0;
	}
	cs_mutex_unlock(&store->handle.ctx->admin);
	return ghosts && !live;
}

static void abandon_room(struct cs_op *op)
{
	struct take *take = op->turn.record;

	if (!cs_ghosts_forsake(&take->ghosts, &op->task.waiter))
		return;
	cs_ghosts_awaited(&take->ghosts);
	end(take, -ECANCELED);
	cs_op_abandoned(op);
}

static enum cs_step had_room(struct take *take);

static enum cs_step make_room(struct take *take)
{
	if (take->op->cancelled)
		return end(take, -ECANCELED);
	for (; take->roomy < take->count; take->roomy++) {
		take->ghosts.store = take->entries[take->roomy].store;
		while (only_ghosts(take->ghosts.store)) {
			if (cs_ghosts_await(&take->ghosts, &take->op->task.waiter))
				return park(take, had_room, abandon_room);
		}
	}
	return publish(take);
}

static enum cs_step had_room(struct take *take)
{
	struct cs_task *task = &take->op->task;

	if (task->timed_out && !cs_ghosts_forsake(&take->ghosts, &task->waiter))
		return CS_PARK; /* the wake is on its way */
	cs_ghosts_awaited(&take->ghosts);
	if (task->timed_out && only_ghosts(take->ghosts.store))
		return end(take, -ETIMEDOUT);
	return make_room(take);
}

static void abandon_turn(struct cs_op *op)
{
	struct take *take = op->turn.record;

	if (cs_turn_forsake(take->ctx, &op->task.waiter))
		cs_op_abandoned(op);
}

static enum cs_step had_turn(struct take *take)
{
	struct cs_op *op = take->op;

	if (!op->task.timed_out)
		return make_room(take);
	if (!cs_turn_forsake(take->ctx, &op->task.waiter))
		return CS_PARK; /* the wake is on its way */
	op->error = -ETIMEDOUT;
	return CS_DONE;
}

static enum cs_step await_turn(struct take *take)
{
	if (cs_turn_await(take->ctx, &take->op->task.waiter))
		return park(take, had_turn, abandon_turn);
	return make_room(take);
}

static enum cs_step ended(struct take *take)
{
	(void)take;
	return CS_DONE;
}

static enum cs_step run(struct take *take)
{
	enum cs_step step = take->step(take);

	if (step == CS_DONE)
		take->step = ended;
	return step;
}

/* ---- The calls ------------------------------------------------------------------------------ */

static void begin(struct take *take, struct cs_op *op)
{
	uint64_t wait_ns = take->options.deadline_ns;

	take->op = op;
	take->step = await_turn;
	take->deadline_ns = cs_deadline_ns(wait_ns ? wait_ns : DEADLINE_DEFAULT_NS);
}

static int take_and_wait(struct take *take)
{
	struct cs_op op;

	cs_op_init(&op, NULL, NULL, NULL, NULL);
	begin(take, &op);
	while (run(take) == CS_PARK)
		cs_task_sleep(&op.task);
	return op.error;
}

/* Fills @take in. Returns: 0, or what is wrong. */
static int check_take(struct take *take, struct cowsnap_ctx *ctx,
	const struct cowsnap_take_options *options, struct cowsnap_take_entry *entries,
	size_t count)
{
	int rc;

	*take = (struct take){.ctx = ctx, .entries = entries, .count = count};
	rc = cs_options_copy(&ctx->base, "take options", &take->options, sizeof(take->options),
		options, sizeof(take->options));
	if (!rc && take->options.flags)
		rc = -EINVAL;
	return rc ? rc : check_entries(ctx, entries, count);
}

int cowsnap_take(struct cowsnap_ctx *ctx, const struct cowsnap_take_options *options,
	struct cowsnap_take_entry *entries, size_t count)
{
	struct take take;
	int rc = check_take(&take, ctx, options, entries, count);

	return rc ? rc : take_and_wait(&take);
}

int cs_take_attach(
	struct cowsnap_ctx *ctx, struct cowsnap_take_entry *entry, const struct cs_attach *attach)
{
	struct take take;
	int rc = check_take(&take, ctx, NULL, entry, 1);

	take.attach = attach;
	return rc ? rc : take_and_wait(&take);
}

static void count_posted(struct take *take, bool posted)
{
	cs_mutex_lock(&take->ctx->admin);
	take->ctx->posted_takes += posted ? 1 : -1;
	cs_mutex_unlock(&take->ctx->admin);
	take->posted = posted;
}

static enum cs_step run_op(struct cs_op *op)
{
	struct take *take = op->turn.record;
	enum cs_step step = run(take);

	/* It has the turn now, or waits for it: that keeps handles open. */
	if (take->posted)
		count_posted(take, false);
	return step;
}

static void release_op(struct cs_op *op)
{
	struct take *take = op->turn.record;

	cs_free(take->ctx->base.alloc, take, sizeof(*take));
}

static const struct cs_op_kind take_kind = {.go_on = run_op, .release = release_op};

int cowsnap_take_async(struct cowsnap_ctx *ctx, struct cowsnap_queue *queue,
	const struct cowsnap_take_options *options, struct cowsnap_take_entry *entries,
	size_t count, struct cowsnap_op *host_op, cowsnap_done *done, void *user)
{
	struct cs_op *op = cs_op_of(host_op);
	struct cowsnap_queue *to;
	struct take take, *record;
	int rc = check_take(&take, ctx, options, entries, count);

	if (!rc)
		rc = cs_workers_route(ctx, queue, done, &to);
	if (rc)
		return rc;
	/* Not a record of the queue's: writes that the drain waits for may need these. */
	record = cs_alloc_zeroed(ctx->base.alloc, sizeof(*record));
	if (!record)
		return -ENOMEM;
	*record = take;
	cs_op_init(op, to, &take_kind, done, user);
	op->turn.record = record;
	begin(record, op);
	if (queue)
		return cs_op_start(op);
	count_posted(record, true);
	return cs_op_post(op);
}

/* ---- The end of a snapshot ------------------------------------------------------------------ */

int cowsnap_snapshot_drop(struct cowsnap_snapshot *snapshot)
{
	int rc = cs_snapshot_end(snapshot, true, false);

	if (!rc)
		cs_origin_lost_one(snapshot->chain->origin);
	return rc;
}
