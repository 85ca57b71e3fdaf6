/* SPDX-License-Identifier: MIT
 *
 * Credits: how many bytes are under way at one time, and who is next.
 *
 * `inflight` is the bytes that are reserved. So that threads which copy side by side do not all
 * write that word, each CPU has some set aside in a *stripe*: they are reserved, but idle. While
 * nobody waits, a reservation is one compare-and-exchange there; or, if that has not enough, one of
 * `inflight`, which also fills the stripe up. What is released stays in the stripe, up to its
 * bound. Where the bound on bytes under way is small, stripes are not used.
 *
 * A reservation that does not fit is queued in its flow. While anybody waits, stripes are emptied.
 * There are two *lines* of flows, rings: the background's is served while nobody waits in the
 * other. In a line the flows are served in turn *by bytes*: a flow keeps its turn until it has had
 * `turn_bytes`, and what it has had over that it owes, and sits out turns. One credit each would
 * give an origin with long writes many times the bytes of one with short ones.
 *
 * Nobody sleeps here. Whoever releases grants to as many as fit, in their order, and wakes their
 * tasks after unlocking. The next in line is not passed: when it does not fit, what is released
 * adds up until it does. Only a credit that is not of the background passes those of the
 * background.
 *
 * Those who bring no flow share some of the copier's, found by their source: two sources may fall
 * together, and then count as one.
 *
 * Invariants:
 *  P1 inflight <= bound. No reservation is longer than the bound, so the next in line is served at
 *     the latest when all others have released.
 *  P2 Who waits has raised `waiting` before `inflight` is looked at and stripes are emptied; who
 *     releases lowers `inflight`, or adds to a stripe, before it looks at `waiting`. All
 *     sequentially consistent, so no credit is left waiting that would fit.
 *  P3 A flow is in the ring of its line if and only if it has waiters. After each change of a line
 *     or a release that saw a waiter, the next in line does not fit.
 *
 * Locking: `credit_lock` guards lines and flows. Tasks are woken without it.
 * Failure: none; all memory is the caller's.
 */
#include <assert.h>

#include "copier_parts.h"
#include "cpu.h"

enum { LINE_WRITERS, LINE_BACKGROUND };

/* At most so much of the bound is idle in all stripes, if all are full. */
#define LEASED_PART 8u
#define LEASE_MOST  (UINT64_C(256) << 10)
#define LEASE_LEAST (UINT64_C(16) << 10)

void cs_copier_init_credits(struct cowsnap_copier *c)
{
	uint64_t least = c->bound_bytes / 64;

	/* Not less, so that even the longest debt is paid off in 64 turns. */
	c->turn_bytes = c->job_bytes < c->bound_bytes ? c->job_bytes : c->bound_bytes;
	if (c->turn_bytes < least)
		c->turn_bytes = least;
	if (c->turn_bytes > INT64_MAX)
		c->turn_bytes = INT64_MAX;
	for (unsigned i = 0; i < CS_COPIER_FLOWS; i++)
		c->flows[LINE_BACKGROUND][i].background = true;
	c->stripe_mask = cs_cpu_stripes(CS_COPIER_STRIPES) - 1;
	c->lease_bytes = c->bound_bytes / LEASED_PART / (c->stripe_mask + 1);
	if (c->lease_bytes > LEASE_MOST)
		c->lease_bytes = LEASE_MOST;
	if (c->lease_bytes < LEASE_LEAST)
		c->lease_bytes = 0;
	cs_mutex_init(&c->credit_lock);
}

uint64_t cs_copier_inflight(const struct cowsnap_copier *c)
{
	uint64_t idle = 0;

	for (uint32_t i = 0; i <= c->stripe_mask; i++)
		idle += atomic_load_explicit(&c->stripe[i].idle, memory_order_relaxed);
	return atomic_load_explicit(&c->inflight, memory_order_relaxed) - idle;
}

void cs_copier_fini_credits(struct cowsnap_copier *c)
{
	assert(cs_copier_inflight(c) == 0);
	cs_mutex_fini(&c->credit_lock);
}

struct cs_flow *cs_copier_flow(struct cowsnap_copier *c, const void *source, bool background)
{
	uint64_t hash = (uint64_t)(uintptr_t)source * UINT64_C(0x9e3779b97f4a7c15);

	return &c->flows[background][(hash >> 32) % CS_COPIER_FLOWS];
}

static bool try_reserve(struct cowsnap_copier *c, uint64_t bytes)
{
	/* seq_cst: P2; pairs with cs_copier_release. */
	uint64_t inflight = atomic_load_explicit(&c->inflight, memory_order_seq_cst);

	while (bytes <= c->bound_bytes - inflight) {
		if (atomic_compare_exchange_weak_explicit(&c->inflight, &inflight, inflight + bytes,
			    memory_order_relaxed, memory_order_relaxed))
			return true;
	}
	return false;
}

/* ---- Stripes --------------------------------------------------------------------------------- */

static struct cs_copier_stripe *my_stripe(struct cowsnap_copier *c)
{
	return &c->stripe[cs_cpu_current() & c->stripe_mask];
}

static bool take_idle(struct cowsnap_copier *c, uint64_t bytes)
{
	struct cs_copier_stripe *stripe = my_stripe(c);
	uint64_t idle = atomic_load_explicit(&stripe->idle, memory_order_relaxed);

	while (idle >= bytes) {
		if (atomic_compare_exchange_weak_explicit(&stripe->idle, &idle, idle - bytes,
			    memory_order_relaxed, memory_order_relaxed))
			return true;
	}
	return false;
}

/* Without waiting. */
static bool reserve_now(struct cowsnap_copier *c, uint64_t bytes)
{
	if (bytes > c->lease_bytes)
		return try_reserve(c, bytes);
	if (take_idle(c, bytes))
		return true;
	if (!try_reserve(c, bytes + c->lease_bytes / 2))
		return try_reserve(c, bytes);
	cs_copier_release(c, c->lease_bytes / 2);
	return true;
}

/* Returns: false if the stripe has enough. */
static bool give_idle(struct cowsnap_copier *c, uint64_t bytes)
{
	struct cs_copier_stripe *stripe = my_stripe(c);

	if (atomic_load_explicit(&stripe->idle, memory_order_relaxed) + bytes > c->lease_bytes)
		return false;
	/* seq_cst: P2; pairs with end_leases. */
	atomic_fetch_add_explicit(&stripe->idle, bytes, memory_order_seq_cst);
	return true;
}

static void end_leases(struct cowsnap_copier *c)
{
	for (uint32_t i = 0; c->lease_bytes && i <= c->stripe_mask; i++) {
		/* seq_cst: P2; pairs with give_idle. */
		uint64_t idle =
			atomic_exchange_explicit(&c->stripe[i].idle, 0, memory_order_seq_cst);

		/* Under the lock: nobody but this thread looks whether somebody fits now. */
		if (idle)
			atomic_fetch_sub_explicit(&c->inflight, idle, memory_order_relaxed);
	}
}

/* ---- Lines ----------------------------------------------------------------------------------- */

static struct cs_copier_line *line_of(struct cowsnap_copier *c, const struct cs_flow *flow)
{
	return &c->line[flow->background ? LINE_BACKGROUND : LINE_WRITERS];
}

static void enqueue(struct cowsnap_copier *c, struct cs_credit *credit) CS_REQUIRES(c->credit_lock)
{
	struct cs_flow *flow = credit->flow;
	struct cs_copier_line *line = line_of(c, flow);

	credit->next = NULL;
	credit->waits = true;
	if (flow->first) {
		*flow->last = credit;
	} else {
		flow->first = credit;
		flow->next = line->last ? line->last->next : flow;
		if (line->last)
			line->last->next = flow;
		line->last = flow;
	}
	flow->last = &credit->next;
}

/* @at: what points to it. */
static void dequeue(struct cowsnap_copier *c, struct cs_credit **at) CS_REQUIRES(c->credit_lock)
{
	struct cs_credit *credit = *at;
	struct cs_flow *flow = credit->flow, *before;
	struct cs_copier_line *line = line_of(c, flow);

	credit->waits = false;
	*at = credit->next;
	if (!*at)
		flow->last = at;
	if (flow->first)
		return;
	/* What it owes it goes on owing. */
	if (flow->surplus > 0)
		flow->surplus = 0;
	for (before = line->last; before->next != flow;)
		before = before->next;
	before->next = flow->next;
	if (line->last == flow)
		line->last = before == flow ? NULL : before;
	flow->next = NULL;
}

/* The next in line; NULL if there is none. */
static struct cs_credit *next_in(struct cowsnap_copier *c, struct cs_copier_line *line)
	CS_REQUIRES(c->credit_lock)
{
	struct cs_flow *flow;

	if (!line->last)
		return NULL;
	for (flow = line->last->next; flow->surplus <= 0; flow = line->last->next) {
		flow->surplus += (int64_t)c->turn_bytes;
		/* Its turn has come, unless it still owes; then it goes to the end. */
		if (flow->surplus <= 0)
			line->last = flow;
	}
	return flow->first;
}

/* Grants to as many as fit. Returns: they, to be woken. */
static struct cs_credit *grant(struct cowsnap_copier *c) CS_REQUIRES(c->credit_lock)
{
	struct cs_credit *granted = NULL, **last = &granted;

	end_leases(c);
	for (;;) {
		struct cs_credit *next = next_in(c, &c->line[LINE_WRITERS]);
		struct cs_flow *flow;

		if (!next)
			next = next_in(c, &c->line[LINE_BACKGROUND]);
		if (!next || !try_reserve(c, next->bytes))
			break;
		flow = next->flow;
		flow->surplus -= next->bytes < INT64_MAX ? (int64_t)next->bytes : INT64_MAX;
		dequeue(c, &flow->first);
		/* Its turn is over: to the end. */
		if (flow->first && flow->surplus <= 0)
			line_of(c, flow)->last = flow;
		atomic_fetch_sub_explicit(&c->waiting, 1, memory_order_relaxed);
		next->next = NULL;
		*last = next;
		last = &next->next;
	}
	return granted;
}

/* With no lock held. @but: not this one. */
static void wake_granted(struct cs_credit *granted, const struct cs_credit *but)
{
	while (granted) {
		struct cs_credit *next = granted->next;

		/* The wake is the last touch of it. */
		if (granted != but)
			cs_task_wake(granted->task);
		granted = next;
	}
}

/* ---- Reserving ------------------------------------------------------------------------------- */

static bool reserve_in_turn(struct cowsnap_copier *c, struct cs_credit *credit)
{
	struct cs_credit *granted;
	bool waits;

	cs_mutex_lock(&c->credit_lock);
	/* seq_cst: P2; pairs with cs_copier_release. */
	atomic_fetch_add_explicit(&c->waiting, 1, memory_order_seq_cst);
	enqueue(c, credit);
	granted = grant(c);
	waits = credit->waits;
	cs_mutex_unlock(&c->credit_lock);
	/* If it waits it may be gone by now. */
	wake_granted(granted, waits ? NULL : credit);
	return !waits;
}

bool cs_copier_reserve(struct cowsnap_copier *c, struct cs_flow *flow, struct cs_credit *credit,
	uint64_t want_bytes, struct cs_task *task)
{
	uint64_t bytes = want_bytes < c->bound_bytes ? want_bytes : c->bound_bytes;

	assert(bytes > 0);
	credit->bytes = bytes;
	credit->waits = false;
	if (cs_likely(!atomic_load_explicit(&c->waiting, memory_order_relaxed)) &&
		reserve_now(c, bytes))
		return true;
	credit->task = task;
	credit->flow = flow ? flow : &c->flows[LINE_BACKGROUND][0];
	return reserve_in_turn(c, credit);
}

bool cs_copier_forsake(struct cowsnap_copier *c, struct cs_credit *credit)
{
	struct cs_credit *granted = NULL;
	bool waited;

	cs_mutex_lock(&c->credit_lock);
	waited = credit->waits;
	if (waited) {
		struct cs_credit **at = &credit->flow->first;

		while (*at != credit)
			at = &(*at)->next;
		dequeue(c, at);
		atomic_fetch_sub_explicit(&c->waiting, 1, memory_order_relaxed);
		/* Those behind it may fit. */
		granted = grant(c);
	}
	cs_mutex_unlock(&c->credit_lock);
	wake_granted(granted, NULL);
	return waited;
}

void cs_copier_release(struct cowsnap_copier *c, uint64_t bytes)
{
	struct cs_credit *granted;

	if (bytes > c->lease_bytes || !give_idle(c, bytes)) {
		/* seq_cst: P2; pairs with reserve_in_turn and try_reserve. */
		uint64_t before =
			atomic_fetch_sub_explicit(&c->inflight, bytes, memory_order_seq_cst);

		assert(before >= bytes);
		(void)before;
	}
	/* seq_cst: P2; pairs with reserve_in_turn. */
	if (!atomic_load_explicit(&c->waiting, memory_order_seq_cst))
		return;
	cs_mutex_lock(&c->credit_lock);
	granted = grant(c);
	cs_mutex_unlock(&c->credit_lock);
	wake_granted(granted, NULL);
}
