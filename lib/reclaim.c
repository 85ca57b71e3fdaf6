/* SPDX-License-Identifier: MIT
 *
 * Reclaiming: gives back what ghosts (dropped and invalid snapshots) hold and nobody can reach.
 *
 * An exception in the map of ghost g can be reached only by the nearest live snapshot that is older
 * than g, and only if no map between them has the chunk.
 *
 *  - No older live snapshot: everything in g is given up.
 *  - g is not the newest: each exception goes down into the next older map, or is given up if that
 *    one has the chunk or nobody there needs it. Then what it knows of changes goes down too, and
 *    it is unlinked. So a chain never holds more ghosts than one for long.
 *  - g is the newest and an older one counts: g stays, because its map says what is saved. What
 *    nobody needs is given up in place: its bit in g->changed says that it is done (C5).
 *  - No snapshot of the chain counts, and no bracket may still save into it: everything goes.
 *
 * Map-only snapshots, and live ones that have released chunks, are looked through in place whenever
 * some snapshot came to need less: what older ones need stays, or they would seem to have changed
 * earlier than they did.
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
 *  R3 What is added to limbo is freed only after a switch of the read gate that comes later, and
 *     when all who were inside then have left. Limbo has two halves for that: one waits for them,
 *     the other is filled meanwhile.
 *  R4 Before an exception leaves a map, what C7 asks for is there: a bit, or the entry below.
 *
 * Locking: reclaiming, then ctx->admin for short. No lock of a map is held while another is taken.
 *
 * Failure: moving needs memory in the older map; without it the step ends, and the next one goes
 * on. Giving up needs none, so a store whose snapshots are all dropped can always be closed.
 */
#include <assert.h>
#include <string.h>

#include "alloc.h"
#include "origin.h"

#define LEAVES       8u
#define LIMBO_RUNS   1024u
/* What a writer does before it looks for space again. */
#define SPACE_BUDGET 16384u
#define SPACE_TRIES  16u

struct half {
	size_t count;
	struct cowsnap_snapshot *unlinked; /* chained by ->limbo_next */
	struct {
		uint64_t location;
		uint64_t count;
	} run[LIMBO_RUNS];
};

struct cs_limbo {
	bool switched;    /* the read gate was switched for the half that waits */
	unsigned filling; /* which half is filled */
	struct half half[2];
	const struct cowsnap_snapshot *walking;
	uint64_t cursor;
	bool own;         /* what was written to it was walked; the cursor is one over its map */
	bool bits;        /* so was the map; the cursor is one over changed bits */
	uint32_t ghosted; /* of the chain, when the walk began */
};

struct step {
	struct cowsnap_store *store;
	struct cs_limbo *limbo;
	struct cowsnap_snapshot *ghost;
	struct cowsnap_snapshot *below; /* the next older map; NULL: give everything up */
	bool in_place;                  /* nothing moves */
	bool failed;                    /* no memory */
	bool stuck;                     /* limbo is full */
	uint64_t visited;
};

/* ---- Limbo ---------------------------------------------------------------------------------- */

static void give_up(struct step *step, uint64_t location, uint64_t count)
{
	struct half *limbo = &step->limbo->half[step->limbo->filling];
	size_t n = limbo->count;

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

static void free_half(struct cowsnap_store *store, struct half *half)
{
	for (size_t i = 0; i < half->count; i++) {
		atomic_fetch_sub_explicit(
			&store->upper->limbo_chunks, half->run[i].count, memory_order_relaxed);
		cs_store_free(store, half->run[i].location, half->run[i].count);
	}
	half->count = 0;
	/* Who drains the store waits for these too. */
	if (half->unlinked)
		cs_store_wake(store);
	while (half->unlinked) {
		struct cowsnap_snapshot *s = half->unlinked;

		half->unlinked = s->limbo_next;
		cs_snapshot_free_maps(s);
		cs_snapshot_put(s);
	}
}

/* Frees what can be. Returns: true if limbo is empty now. */
static bool flush_limbo(struct cowsnap_store *store, struct cs_limbo *limbo)
{
	struct cs_gate *reads = &store->upper->reads;

	for (;;) {
		const struct half *filling = &limbo->half[limbo->filling];
		uint32_t slot;

		if (limbo->switched) {
			if (!cs_gate_drained(reads))
				return false;
			limbo->switched = false;
			free_half(store, &limbo->half[!limbo->filling]);
		}
		if (!filling->count && !filling->unlinked)
			return true;
		slot = cs_gate_pick(reads);
		if (slot == CS_GATE_SLOTS)
			return false;
		limbo->filling = !limbo->filling;
		cs_gate_switch(reads, slot, 0);
		limbo->switched = true;
	}
}

/* R2. If not, frees what can be first. */
static bool limbo_has_room(struct cowsnap_store *store, struct cs_limbo *limbo)
{
	const size_t most = LIMBO_RUNS - LEAVES * 64;

	if (limbo->half[limbo->filling].count > most)
		flush_limbo(store, limbo);
	return limbo->half[limbo->filling].count <= most;
}

/* ---- What to do with one run of a ghost ------------------------------------------------------ */

/* The @count lowest chunks of @mask that follow each other; @mask is not 0. */
static unsigned first_run(uint64_t mask, unsigned *count)
{
	unsigned at = (unsigned)__builtin_ctzll(mask);
	uint64_t rest = ~(mask >> at);

	*count = rest ? (unsigned)__builtin_ctzll(rest) : 64;
	return at;
}

/* Has what lies there a place in the store? */
static bool has_space(uint64_t location)
{
	return location <= COWSNAP_LOCATION_MAX;
}

static int set_bits(struct cowsnap_snapshot *s, uint64_t first, uint64_t mask)
{
	unsigned in_group = (unsigned)(first % 64);

	return cs_bits_set_mask(&s->changed, first - in_group, mask << in_group);
}

static uint64_t run_mask(const struct cowsnap_run *run)
{
	assert(run->first % 64 + run->count <= 64); /* runs of a walk are of one leaf */
	return ~UINT64_C(0) >> (64 - run->count);
}

/* Bit i of @mask is run->first + i. */
static void drop_entries(struct step *step, const struct cowsnap_run *run, uint64_t mask)
{
	while (mask) {
		unsigned count, at = first_run(mask, &count);

		if (has_space(run->location))
			give_up(step, run->location + at, count);
		cowsnap_map_remove(&step->ghost->map, run->first + at, count);
		mask &= ~(~UINT64_C(0) >> (64 - count) << at);
	}
}

/* R4 */
static bool note_changed(struct step *step, const struct cowsnap_run *run, uint64_t mask)
{
	struct cowsnap_snapshot *s = step->in_place ? step->ghost : step->below;

	if (mask && s && set_bits(s, run->first, mask))
		step->failed = true;
	return !step->failed;
}

/* C3: published below before it is removed here. */
static void move_entries(struct step *step, const struct cowsnap_run *run, uint64_t mask)
{
	while (mask) {
		unsigned count, at = first_run(mask, &count);
		struct cowsnap_run free;
		int rc = cowsnap_map_claim(&step->below->map, run->first + at, count, &free);

		if (rc != COWSNAP_CLAIM_MINE) {
			step->failed = true;
			return;
		}
		free.location = run->location;
		if (has_space(run->location))
			free.location += free.first - run->first;
		cowsnap_map_publish(&step->below->map, &free);
		cowsnap_map_remove(&step->ghost->map, free.first, free.count);
		at = (unsigned)(free.first - run->first);
		mask &= ~(~UINT64_C(0) >> (64 - free.count) << at);
	}
}

/* What the map below has, or nobody needs there, is given up; the rest goes there. */
static void move_down(struct step *step, const struct cowsnap_run *run)
{
	unsigned count = (unsigned)run->count;
	uint64_t all = run_mask(run);
	uint64_t inside = cs_snapshot_inside_mask(step->below, run->first, count);
	uint64_t known = cs_snapshot_done_mask(step->below, run->first, count);
	uint64_t needed = all & ~known;

	if (run->location == COWSNAP_LOCATION_NONE)
		needed = 0;
	else if (!cs_snapshot_plain(step->below) || inside != all)
		needed &= cs_chain_needs_mask(step->below, run->first, count);
	/* Where the one below gets the entry, that says it. */
	if (!note_changed(step, run, inside & ~known & ~needed))
		return;
	drop_entries(step, run, all & ~needed);
	move_entries(step, run, needed);
}

/* It stays where it is, without what nobody needs. */
static void give_up_in_place(struct step *step, const struct cowsnap_run *run)
{
	uint64_t mask = run_mask(run);

	if (run->location != COWSNAP_LOCATION_NONE)
		mask &= ~cs_chain_needs_mask(step->ghost, run->first, (unsigned)run->count);
	if (!mask || note_changed(step, run, mask)) {
		drop_entries(step, run, mask);
		return;
	}
	step->failed = false;
	/* No memory: an entry without data says it as well. */
	for (; mask && has_space(run->location); mask &= mask - 1) {
		unsigned at = (unsigned)__builtin_ctzll(mask);

		if (!cowsnap_map_replace(&step->ghost->map, run->first + at, COWSNAP_LOCATION_NONE))
			give_up(step, run->location + at, 1);
	}
}

static void visit(void *user, const struct cowsnap_run *run)
{
	struct step *step = user;

	step->visited += run->count;
	if (step->failed)
		return;
	if (step->in_place)
		give_up_in_place(step, run);
	else if (step->below)
		move_down(step, run);
	else if (note_changed(step, run, run_mask(run)))
		drop_entries(step, run, run_mask(run));
}

/* What was written to a snapshot and nobody can read any more. It is still told that it was. */
static void give_up_own(
	struct step *step, struct cowsnap_snapshot *s, const struct cowsnap_run *run)
{
	uint64_t mask = run_mask(run);

	if (cs_snapshot_keeps(s))
		mask &= cs_bits_window(&s->released, run->first, (unsigned)run->count);
	for (; mask && has_space(run->location); mask &= mask - 1) {
		unsigned at = (unsigned)__builtin_ctzll(mask);

		if (!cowsnap_map_replace(&s->own, run->first + at, COWSNAP_LOCATION_NONE))
			give_up(step, run->location + at, 1);
	}
}

static void visit_own(void *user, const struct cowsnap_run *run)
{
	struct step *step = user;

	step->visited += run->count;
	give_up_own(step, step->ghost, run);
	if (!cs_snapshot_counts(step->ghost))
		cowsnap_map_remove(&step->ghost->own, run->first, run->count);
}

/* ---- One ghost ------------------------------------------------------------------------------ */

static void unlink_ghost(struct step *step)
{
	struct half *limbo = &step->limbo->half[step->limbo->filling];
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
	ghost->limbo_next = limbo->unlinked;
	limbo->unlinked = ghost;
	/* A take may be waiting for the store to be empty. */
	cs_store_wake(step->store);
}

static uint32_t ghosted(const struct cs_chain *chain)
{
	return atomic_load_explicit(&chain->ghosted, memory_order_relaxed);
}

/* A part of the walk over the map. Returns: is there more of it? */
static bool walk_map(struct step *step)
{
	if (!limbo_has_room(step->store, step->limbo)) {
		step->stuck = true;
		return true;
	}
	return cowsnap_map_walk(&step->ghost->map, &step->limbo->cursor, LEAVES, visit, step);
}

/* A part of the walk over what was written to it. */
static bool walk_own(struct step *step)
{
	if (cs_snapshot_keeps(step->ghost) && !cs_bits_any(&step->ghost->released))
		return false;
	if (!limbo_has_room(step->store, step->limbo)) {
		step->stuck = true;
		return true;
	}
	return cowsnap_map_walk(&step->ghost->own, &step->limbo->cursor, LEAVES, visit_own, step);
}

static void own_walked(struct cs_limbo *limbo)
{
	limbo->own = true;
	limbo->cursor = 0;
}

/* A part of what a ghost that goes knows of changes, into the next older one (C7). */
static bool walk_bits(struct step *step)
{
	int rc = 0;

	step->visited = LEAVES * 64;
	if (step->below)
		rc = cs_bits_or(
			&step->below->changed, &step->ghost->changed, &step->limbo->cursor, LEAVES);
	step->failed = rc < 0;
	return rc > 0;
}

/* The map was walked to its end. Returns: true when the ghost is dealt with; else the bits come. */
static bool map_walked(struct step *step)
{
	struct cs_limbo *limbo = step->limbo;

	if (step->in_place)
		/* Of a drop since the walk began, another walk must take account. */
		atomic_store_explicit(&step->ghost->scanned, limbo->ghosted, memory_order_relaxed);
	else if (cowsnap_map_count(&step->ghost->map) == 0)
		/* If it was dropped since the walk began, what was written to it is there still. */
		limbo->bits = cowsnap_map_count(&step->ghost->own) == 0;
	limbo->cursor = 0;
	if (limbo->bits)
		return false;
	limbo->walking = NULL;
	return true;
}

/* Walks over a ghost until its end or the budget's. Returns: true when it is dealt with. */
static bool work_on(struct step *step, uint64_t *max_chunks)
{
	struct cs_limbo *limbo = step->limbo;

	if (limbo->walking != step->ghost) {
		limbo->walking = step->ghost;
		limbo->cursor = 0;
		limbo->own = limbo->bits = false;
		limbo->ghosted = ghosted(step->ghost->chain);
	}
	while (*max_chunks && !step->failed && !step->stuck) {
		bool more, own = !limbo->own, bits = limbo->bits;

		step->visited = 1;
		more = own ? walk_own(step) : bits ? walk_bits(step) : walk_map(step);
		*max_chunks -= step->visited < *max_chunks ? step->visited : *max_chunks;
		if (more || step->failed)
			continue;
		if (own) {
			own_walked(limbo);
			continue;
		}
		if (bits) {
			limbo->walking = NULL;
			unlink_ghost(step);
			return true;
		}
		if (map_walked(step))
			return true;
	}
	return false;
}

/* Is there a bracket that may save into the newest map of a chain without live snapshots, or who
 * reads it? */
static bool chain_in_use(struct cs_chain *chain)
{
	struct cowsnap_ctx *ctx = chain->ctx;
	bool used;

	cs_mutex_lock(&ctx->admin);
	if (!ctx->taking)
		cs_origin_prune(chain->origin);
	used = chain->kept || cs_origin_uses(chain->origin, chain);
	cs_mutex_unlock(&ctx->admin);
	return used;
}

/* Must it be left alone, because somebody else still changes it? */
static bool busy_elsewhere(const struct cowsnap_snapshot *s)
{
	/* seq_cst, after a look at the state; pairs with begin_writing. */
	return !cs_snapshot_live(s) && atomic_load_explicit(&s->writers, memory_order_seq_cst) > 0;
}

enum todo { TODO_NOTHING, TODO_GOES, TODO_IN_PLACE };

/* What is to be done about one snapshot of a chain; @counts: does any of the chain? */
static enum todo what_to_do(
	const struct cowsnap_snapshot *s, const struct cowsnap_snapshot *newest, bool counts)
{
	if (busy_elsewhere(s))
		return TODO_NOTHING;
	if (cs_snapshot_keeps(s) && !cs_bits_any(&s->released))
		return TODO_NOTHING;
	if (cs_snapshot_counts(s) || (s == newest && counts))
		return cs_snapshot_scanned(s) ? TODO_NOTHING : TODO_IN_PLACE;
	return TODO_GOES;
}

static bool any_counts(const struct cowsnap_snapshot *newest)
{
	for (const struct cowsnap_snapshot *s = newest; s; s = cs_snapshot_older(s)) {
		if (cs_snapshot_counts(s))
			return true;
	}
	return false;
}

/* Chooses the oldest snapshot that something can be done about, the newest ghost last. Returns:
 * false if there is none. */
static bool choose(struct step *step, struct cs_chain *chain)
{
	struct cowsnap_snapshot *newest = cs_chain_newest(chain);
	bool counts = any_counts(newest);
	enum todo todo = TODO_NOTHING;

	step->ghost = NULL;
	if (chain->merging)
		return false;
	for (struct cowsnap_snapshot *s = newest; s; s = cs_snapshot_older(s)) {
		enum todo now = what_to_do(s, newest, counts);

		if (now == TODO_NOTHING)
			continue;
		step->ghost = s;
		todo = now;
	}
	if (!step->ghost)
		return false;
	step->in_place = todo == TODO_IN_PLACE;
	/* Where no snapshot counts, nobody needs anything and nobody asks what has changed. */
	step->below = counts ? cs_snapshot_older(step->ghost) : NULL;
	return step->ghost != newest || counts || !chain_in_use(chain);
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
	bool counts = any_counts(newest);

	for (struct cowsnap_snapshot *s = newest; s; s = cs_snapshot_older(s)) {
		if (what_to_do(s, newest, counts) != TODO_NOTHING)
			return true;
	}
	return false;
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

/* ---- What was released ----------------------------------------------------------------------- */

/* Whose map serves @snapshot: for each of the chunks the oldest that has it; NULL: none. */
static void find_serving(struct cowsnap_snapshot *snapshot, uint64_t first, unsigned count,
	struct cowsnap_snapshot *serving[64])
{
	memset(serving, 0, 64 * sizeof(serving[0]));
	for (struct cowsnap_snapshot *s = cs_chain_newest(snapshot->chain); s;
		s = cs_snapshot_older(s)) {
		uint64_t mask = cs_map_done_mask(&s->map, first, count);

		for (; mask; mask &= mask - 1)
			serving[__builtin_ctzll(mask)] = s;
		if (s == snapshot)
			break;
	}
}

/* Chunks of one group of 64 that @snapshot has released: what served it is given up if it serves
 * nobody else. */
static void give_up_released(
	struct step *step, struct cowsnap_snapshot *snapshot, uint64_t first, unsigned count)
{
	struct cowsnap_snapshot *serving[64];
	struct cowsnap_run own = {.first = first};

	while (cowsnap_map_next(&snapshot->own, own.first + own.count, first + count, &own))
		give_up_own(step, snapshot, &own);
	find_serving(snapshot, first, count, serving);
	for (unsigned i = 0, n; i < count; i += n) {
		uint64_t end = first + i;
		struct cowsnap_run run;

		n = 1;
		if (!serving[i])
			continue;
		while (i + n < count && serving[i + n] == serving[i])
			n++;
		step->ghost = serving[i];
		while (cowsnap_map_next(&step->ghost->map, end, first + i + n, &run)) {
			end = run.first + run.count;
			give_up_in_place(step, &run);
		}
	}
}

/* Returns: where it came to; less than @end if limbo is full. */
static uint64_t reclaim_released(struct cowsnap_store *store, struct cowsnap_snapshot *snapshot,
	uint64_t first, uint64_t end, uint64_t *budget) CS_REQUIRES(store->upper->reclaiming)
{
	struct step step = {.store = store, .limbo = store->upper->limbo, .in_place = true};

	if (snapshot->chain->merging)
		return end;
	while (first < end && *budget) {
		unsigned count = cs_window_count(first, end);

		if (!limbo_has_room(store, step.limbo))
			break;
		give_up_released(&step, snapshot, first, count);
		first += count;
		*budget -= count < *budget ? count : *budget;
	}
	return first;
}

void cs_reclaim_released(struct cowsnap_snapshot *snapshot, uint64_t first, uint64_t end)
{
	struct cowsnap_store *store = snapshot->chain->store;
	bool stuck = false;

	/* The bits first, then the maps; pairs with give_back_released. */
	cs_full_fence();
	while (first < end && !stuck) {
		uint64_t budget = SPACE_BUDGET;

		cs_mutex_lock(&store->upper->reclaiming);
		/* Relaxed: who unlinks it holds the lock. */
		if (atomic_load_explicit(&snapshot->unlinked, memory_order_relaxed))
			first = end;
		first = first < end ? reclaim_released(store, snapshot, first, end, &budget) : end;
		stuck = first < end && budget;
		if (!flush_limbo(store, store->upper->limbo))
			atomic_store_explicit(
				&store->upper->reclaimable, true, memory_order_relaxed);
		cs_mutex_unlock(&store->upper->reclaiming);
	}
	/* The rest is found by who looks through its chain. */
	if (stuck)
		cs_chain_ghosted(snapshot->chain);
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

int cs_reclaim_make_space(
	struct cowsnap_store *store, uint64_t want, struct cowsnap_run *run, bool *low_water)
{
	int rc = -ENOSPC;

	for (unsigned tries = 1;
		rc == -ENOSPC && tries < SPACE_TRIES && cs_reclaim_for_space(store); tries++)
		rc = cs_store_alloc(store, want, &run->location, &run->count, low_water);
	return rc;
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
