/* SPDX-License-Identifier: MIT
 *
 * Reclaiming: gives back what ghosts (dropped and invalid snapshots) hold and nobody can reach.
 *
 * An exception in the map of ghost g can be reached only by the nearest live snapshot that is older
 * than g, and only if no map between them has the chunk.
 *
 *  - No older live snapshot: everything in g is given up.
 *  - g is not the newest: each exception goes down into the next older map, or is given up if that
 *    one has the chunk. Then g is empty and is unlinked. So a chain never holds more ghosts than
 *    one for long.
 *  - g is the newest and an older one lives: g stays, because its map says what is saved. What the
 *    older one has already is given up in place (C5: COWSNAP_LOCATION_NONE).
 *  - No live snapshot in the chain, and no bracket that may still save into it: everything goes.
 *
 * Space that was given up and snapshots that were unlinked go to *limbo*: the store's read gate is
 * switched, and when everyone who was inside before has left, they are freed (C4). No step waits
 * for that: a later one looks again.
 *
 * The work is resumable: a cursor in limbo says how far the walk over a ghost's map has come.
 *
 * Invariants:
 *  R1 One thread reclaims a store at a time (upper->reclaiming).
 *  R2 Before a walk of LEAVES leaves limbo has room for all their exceptions.
 *  R3 Nothing is added to limbo between the switch of the read gate and the freeing: who entered
 *     after the switch may still see what is added then.
 *
 * Locking: reclaiming, then ctx->admin for short. No lock of a map is held while another is taken.
 *
 * Failure: moving needs memory in the older map; without it the step ends, and the next one goes
 * on. Giving up needs none, so a store whose snapshots are all dropped can always be closed.
 */
#include <assert.h>

#include "alloc.h"
#include "origin.h"

#define LEAVES       8u
#define LIMBO_RUNS   1024u
/* What a writer does before it looks for space again. */
#define SPACE_BUDGET 16384u

struct cs_limbo {
	bool switched; /* the read gate was switched for what is in here */
	size_t count;
	struct cowsnap_snapshot *unlinked; /* chained by ->limbo_next */
	const struct cowsnap_snapshot *walking;
	uint64_t cursor;
	uint32_t ghosted; /* of the chain, when the walk began */
	struct {
		uint64_t location;
		uint64_t count;
	} run[LIMBO_RUNS];
};

struct step {
	struct cowsnap_store *store;
	struct cs_limbo *limbo;
	struct cowsnap_snapshot *ghost;
	struct cowsnap_snapshot *below; /* the next older map; NULL: give everything up */
	bool in_place;
	bool failed; /* no memory */
	bool stuck;  /* limbo is full, or waits for readers */
	uint64_t visited;
};

/* ---- Limbo ---------------------------------------------------------------------------------- */

static void give_up(struct step *step, uint64_t location, uint64_t count)
{
	struct cs_limbo *limbo = step->limbo;
	size_t n = limbo->count;

	assert(!limbo->switched); /* R3 */
	atomic_fetch_add_explicit(&step->store->upper->limbo_chunks, count, memory_order_relaxed);
	if (n && limbo->run[n - 1].location + limbo->run[n - 1].count == location) {
		limbo->run[n - 1].count += count;
		return;
	}
	assert(n < LIMBO_RUNS);
	limbo->run[n].location = location;
	limbo->run[n].count = count;
	limbo->count++;
}

static void free_limbo(struct cowsnap_store *store, struct cs_limbo *limbo)
{
	for (size_t i = 0; i < limbo->count; i++)
		cs_store_free(store, limbo->run[i].location, limbo->run[i].count);
	atomic_store_explicit(&store->upper->limbo_chunks, 0, memory_order_relaxed);
	limbo->count = 0;
	/* Who drains the store waits for these too. */
	if (limbo->unlinked)
		cs_store_wake(store);
	while (limbo->unlinked) {
		struct cowsnap_snapshot *s = limbo->unlinked;

		limbo->unlinked = s->limbo_next;
		cs_map_fini(&s->map);
		s->map_freed = true;
		cs_snapshot_put(s);
	}
}

/* Returns: true if limbo is empty now. */
static bool flush_limbo(struct cowsnap_store *store, struct cs_limbo *limbo)
{
	struct cs_gate *reads = &store->upper->reads;

	if (!limbo->count && !limbo->unlinked)
		return true;
	if (!limbo->switched) {
		uint32_t slot = cs_gate_pick(reads);

		if (slot == CS_GATE_SLOTS)
			return false;
		cs_gate_switch(reads, slot, 0);
		limbo->switched = true;
	}
	if (!cs_gate_drained(reads))
		return false;
	limbo->switched = false;
	free_limbo(store, limbo);
	return true;
}

/* ---- What to do with one run of a ghost ------------------------------------------------------ */

static void give_up_run(struct step *step, uint64_t first, uint64_t count, uint64_t location)
{
	if (location != COWSNAP_LOCATION_NONE)
		give_up(step, location, count);
	cowsnap_map_remove(&step->ghost->map, first, count);
}

/* C3: published below before it is removed here. */
static void move_down(struct step *step, const struct cowsnap_run *run)
{
	uint64_t chunk = run->first, end = run->first + run->count;

	while (chunk < end) {
		uint64_t location = run->location + (chunk - run->first);
		struct cowsnap_run free;
		int rc = cowsnap_map_claim(&step->below->map, chunk, end - chunk, &free);

		if (rc < 0 || rc == COWSNAP_CLAIM_BUSY) {
			step->failed = true;
			return;
		}
		if (rc == COWSNAP_CLAIM_NOTHING) {
			give_up_run(step, chunk, end - chunk, location);
			return;
		}
		if (free.first > chunk)
			give_up_run(step, chunk, free.first - chunk, location);
		free.location = run->location + (free.first - run->first);
		cowsnap_map_publish(&step->below->map, &free);
		cowsnap_map_remove(&step->ghost->map, free.first, free.count);
		chunk = free.first + free.count;
	}
}

/* The newest ghost: what the nearest live one finds in an older map is not needed here. */
static void give_up_in_place(struct step *step, const struct cowsnap_run *run)
{
	for (uint64_t i = 0; i < run->count; i++) {
		if (cs_chain_needs(step->ghost->chain, step->ghost, run->first + i))
			continue;
		if (!cowsnap_map_replace(&step->ghost->map, run->first + i, COWSNAP_LOCATION_NONE))
			give_up(step, run->location + i, 1);
	}
}

static void visit(void *user, const struct cowsnap_run *run)
{
	struct step *step = user;

	step->visited += run->count;
	if (step->failed)
		return;
	if (run->location == COWSNAP_LOCATION_NONE) {
		if (!step->in_place)
			give_up_run(step, run->first, run->count, run->location);
	} else if (step->in_place) {
		give_up_in_place(step, run);
	} else if (step->below) {
		move_down(step, run);
	} else {
		give_up_run(step, run->first, run->count, run->location);
	}
}

/* ---- One ghost ------------------------------------------------------------------------------ */

static void unlink_ghost(struct step *step)
{
	struct cowsnap_snapshot *ghost = step->ghost, *newer;
	struct cs_chain *chain = ghost->chain;

	cs_mutex_lock(&chain->ctx->admin);
	newer = cs_chain_newest(chain);
	if (newer == ghost) {
		/* Release: pairs with cs_chain_newest. */
		atomic_store_explicit(
			&chain->newest, cs_snapshot_older(ghost), memory_order_release);
	} else {
		while (cs_snapshot_older(newer) != ghost)
			newer = cs_snapshot_older(newer);
		/* Release: pairs with cs_snapshot_older. */
		atomic_store_explicit(
			&newer->older, cs_snapshot_older(ghost), memory_order_release);
	}
	cs_mutex_unlock(&chain->ctx->admin);
	/* Release: its map is going; pairs with read_own_map. */
	atomic_store_explicit(&ghost->unlinked, true, memory_order_release);
	ghost->limbo_next = step->limbo->unlinked;
	step->limbo->unlinked = ghost;
	/* A take may be waiting for the store to be empty. */
	cs_store_wake(step->store);
}

static uint32_t ghosted(const struct cs_chain *chain)
{
	return atomic_load_explicit(&chain->ghosted, memory_order_relaxed);
}

/* Walks a ghost's map until its end or the budget's. Returns: true when the ghost is dealt with. */
static bool work_on(struct step *step, uint64_t *max_chunks)
{
	struct cs_limbo *limbo = step->limbo;
	bool more = true;

	if (limbo->walking != step->ghost) {
		limbo->walking = step->ghost;
		limbo->cursor = 0;
		limbo->ghosted = ghosted(step->ghost->chain);
	}
	while (more && *max_chunks && !step->failed) {
		bool room = !limbo->switched && limbo->count <= LIMBO_RUNS - LEAVES * 64;

		if (!room && !flush_limbo(step->store, limbo)) {
			step->stuck = true;
			return false;
		}
		step->visited = 1;
		more = cowsnap_map_walk(&step->ghost->map, &limbo->cursor, LEAVES, visit, step);
		*max_chunks -= step->visited < *max_chunks ? step->visited : *max_chunks;
	}
	if (more || step->failed)
		return false;
	limbo->walking = NULL;
	if (step->in_place)
		/* Of a drop since the walk began, another walk must take account. */
		atomic_store_explicit(&step->ghost->scanned, limbo->ghosted, memory_order_relaxed);
	else if (cowsnap_map_count(&step->ghost->map) == 0)
		unlink_ghost(step);
	return true;
}

/* Is there a bracket that may save into the newest map of a chain without live snapshots? */
static bool chain_in_use(struct cs_chain *chain)
{
	struct cowsnap_ctx *ctx = chain->ctx;
	bool used;

	cs_mutex_lock(&ctx->admin);
	if (!ctx->taking)
		cs_origin_prune(chain->origin);
	used = cs_origin_uses(chain->origin, chain);
	cs_mutex_unlock(&ctx->admin);
	return used;
}

/* Chooses the oldest ghost that something can be done about. Returns: false if there is none. */
static bool choose(struct step *step, struct cs_chain *chain)
{
	struct cowsnap_snapshot *newest = cs_chain_newest(chain), *older_live = NULL;

	step->ghost = NULL;
	step->in_place = false;
	for (struct cowsnap_snapshot *s = newest; s; s = cs_snapshot_older(s)) {
		if (cs_snapshot_live(s))
			older_live = s;
		else if (s != newest)
			step->ghost = s;
	}
	if (step->ghost) {
		/* It is the oldest ghost, so what is older is live, or there is nothing. */
		step->below = cs_snapshot_older(step->ghost);
		return true;
	}
	if (!newest || cs_snapshot_live(newest))
		return false;
	step->ghost = newest;
	step->below = NULL;
	step->in_place = older_live != NULL;
	if (step->in_place)
		return !cs_snapshot_scanned(newest);
	return !chain_in_use(chain);
}

/* ---- A store -------------------------------------------------------------------------------- */

/* Under ctx->admin. Returns: who waited for it, to be woken without the lock. */
static struct cs_waiter *let_go(struct cs_chain *chain)
{
	chain->pinned = false;
	return cs_waitlist_take(&chain->ctx->unpinned);
}

/* The next chain to work on, which its origin's closing waits for; NULL: no more. */
static struct cs_chain *next_chain(struct cowsnap_store *store, struct cs_chain *chain)
{
	struct cowsnap_ctx *ctx = store->handle.ctx;
	struct cs_waiter *waiters = NULL;
	struct cs_chain *next;

	cs_mutex_lock(&ctx->admin);
	next = chain ? chain->next_of_store : store->upper->chains;
	if (chain)
		waiters = let_go(chain);
	if (next)
		next->pinned = true;
	cs_mutex_unlock(&ctx->admin);
	cs_waiters_wake(waiters);
	return next;
}

static void unpin(struct cs_chain *chain)
{
	struct cowsnap_ctx *ctx = chain->ctx;
	struct cs_waiter *waiters;

	cs_mutex_lock(&ctx->admin);
	waiters = let_go(chain);
	cs_mutex_unlock(&ctx->admin);
	cs_waiters_wake(waiters);
}

/* Returns: true if the budget ended first. */
static bool reclaim_chains(struct step *step, uint64_t *max_chunks)
{
	struct cs_chain *chain = next_chain(step->store, NULL);

	while (chain) {
		bool chosen = choose(step, chain);

		if (chosen && (!*max_chunks || step->stuck)) {
			unpin(chain);
			return !step->stuck;
		}
		if (!chosen || !work_on(step, max_chunks)) {
			/* Else the budget ended in the middle of it, or limbo is stuck. */
			if (!chosen || step->failed)
				chain = next_chain(step->store, chain);
			step->failed = false;
		}
	}
	return false;
}

/* May there be something to reclaim later? */
static bool chain_has_ghosts(const struct cs_chain *chain)
{
	struct cowsnap_snapshot *newest = cs_chain_newest(chain);
	bool live = false;

	for (struct cowsnap_snapshot *s = newest; s; s = cs_snapshot_older(s)) {
		if (cs_snapshot_live(s))
			live = true;
		else if (s != newest)
			return true;
	}
	return newest && !cs_snapshot_live(newest) && !(live && cs_snapshot_scanned(newest));
}

enum left { LEFT_NOTHING, LEFT_SNAPSHOTS, LEFT_GHOSTS };

static enum left what_is_left(struct cowsnap_store *store)
{
	struct cowsnap_ctx *ctx = store->handle.ctx;
	enum left left = LEFT_NOTHING;

	cs_mutex_lock(&ctx->admin);
	for (const struct cs_chain *c = store->upper->chains; c; c = c->next_of_store) {
		if (cs_chain_newest(c) && left == LEFT_NOTHING)
			left = LEFT_SNAPSHOTS;
		if (chain_has_ghosts(c))
			left = LEFT_GHOSTS;
	}
	cs_mutex_unlock(&ctx->admin);
	return left;
}

static bool reclaim_locked(struct cowsnap_store *store, uint64_t *max_chunks)
	CS_REQUIRES(store->upper->reclaiming)
{
	struct cs_store_upper *upper = store->upper;
	struct step step = {.store = store, .limbo = upper->limbo};
	bool more, empty;
	enum left left;

	/* Before the work, so that a drop during it is not forgotten. */
	atomic_store_explicit(&upper->reclaimable, false, memory_order_relaxed);
	empty = flush_limbo(store, step.limbo);
	more = empty && reclaim_chains(&step, max_chunks);
	empty = empty && flush_limbo(store, step.limbo);
	left = what_is_left(store);
	if (!empty || more || left == LEFT_GHOSTS)
		atomic_store_explicit(&upper->reclaimable, true, memory_order_relaxed);
	else if (left == LEFT_NOTHING)
		cs_store_emptied(store);
	return more;
}

bool cs_reclaim_locked_store(struct cowsnap_store *store, uint64_t *max_chunks)
{
	bool more = false;

	if (atomic_load_explicit(&store->upper->reclaimable, memory_order_relaxed))
		more = reclaim_locked(store, max_chunks);
	cs_mutex_unlock(&store->upper->reclaiming);
	return more;
}

bool cs_reclaim_for_space(struct cowsnap_store *store)
{
	uint64_t epoch = cs_store_space_epoch(store), budget = SPACE_BUDGET;
	bool more = false;

	cs_mutex_lock(&store->upper->reclaiming);
	if (atomic_load_explicit(&store->upper->reclaimable, memory_order_relaxed))
		more = reclaim_locked(store, &budget);
	cs_mutex_unlock(&store->upper->reclaiming);
	return more || cs_store_space_epoch(store) != epoch;
}

bool cs_reclaim_await(struct cowsnap_store *store, uint64_t seen_epoch, struct cs_waiter *waiter)
{
	/* seq_cst: announce, then look; pairs with cs_reclaim_after_reading. */
	atomic_fetch_add_explicit(&store->upper->limbo_waiters, 1, memory_order_seq_cst);
	cs_reclaim_for_space(store);
	if (cs_store_await_space(store, seen_epoch, waiter))
		return true;
	cs_reclaim_awaited(store);
	return false;
}

void cs_reclaim_awaited(struct cowsnap_store *store)
{
	atomic_fetch_sub_explicit(&store->upper->limbo_waiters, 1, memory_order_relaxed);
}

bool cs_reclaim_left(const struct cowsnap_store *store)
{
	return atomic_load_explicit(&store->upper->reclaimable, memory_order_relaxed);
}

void cs_reclaim_everything(struct cowsnap_store *store)
{
	uint64_t everything = UINT64_MAX;

	if (atomic_load_explicit(&store->upper->reclaimable, memory_order_relaxed))
		reclaim_locked(store, &everything);
}

int cs_reclaim_init(struct cowsnap_store *store)
{
	store->upper->limbo = cs_alloc_zeroed(store->base->alloc, sizeof(struct cs_limbo));
	return store->upper->limbo ? 0 : -ENOMEM;
}

void cs_reclaim_fini(struct cowsnap_store *store)
{
	cs_free(store->base->alloc, store->upper->limbo, sizeof(*store->upper->limbo));
	store->upper->limbo = NULL;
}
