/* SPDX-License-Identifier: MIT
 *
 * Credits and throttle, step by step: who is granted when, without a thread that sleeps.
 */
#include "support/seed.h"
#include "support/test.h"

#include "copier_parts.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct bank {
	struct cowsnap_ctx *ctx;
	struct cowsnap_copier *copier;
};

static void open_bank(struct bank *b, uint64_t bound, uint64_t job)
{
	struct cowsnap_copier_options options = {
		.size = sizeof(options), .inflight_bytes = bound, .job_bytes = job};

	cr_assert_eq(cowsnap_ctx_create(NULL, &b->ctx), 0);
	cr_assert_eq(cowsnap_copier_create(b->ctx, &options, &b->copier), 0);
}

static void close_bank(struct bank *b)
{
	cr_assert_eq(cs_copier_inflight(b->copier), 0);
	cr_assert_eq(atomic_load(&b->copier->waiting), 0);
	cowsnap_copier_destroy(b->copier);
	cr_assert_eq(cowsnap_ctx_destroy(b->ctx), 0);
}

/* One who wants credits. */
struct client {
	struct cs_credit credit;
	struct cs_task task;
	bool at_once;
};

static void want(struct bank *b, struct client *c, struct cs_flow *flow, uint64_t bytes)
{
	cs_task_init(&c->task, NULL, NULL);
	c->at_once = cs_copier_reserve(b->copier, flow, &c->credit, bytes, &c->task);
}

static bool has(struct client *c)
{
	return c->at_once || cs_event_is_set(&c->task.woken);
}

static void give(struct bank *b, struct client *c)
{
	cr_assert(has(c));
	cs_copier_release(b->copier, c->credit.bytes);
}

/* ---- Order ----------------------------------------------------------------------------------- */

Test(copier_credits, what_fits_is_granted_at_once)
{
	struct cs_flow flow = {0};
	struct client c[3];
	struct bank b;

	open_bank(&b, 100, 0);
	want(&b, &c[0], &flow, 60);
	want(&b, &c[1], &flow, 40);
	cr_assert(c[0].at_once && c[1].at_once);
	want(&b, &c[2], &flow, UINT64_MAX);
	cr_assert_not(has(&c[2]));
	give(&b, &c[0]);
	cr_assert_not(has(&c[2]), "a want over the bound is the whole bound");
	give(&b, &c[1]);
	cr_assert(has(&c[2]));
	cr_assert_eq(c[2].credit.bytes, 100);
	give(&b, &c[2]);
	close_bank(&b);
}

Test(copier_credits, a_large_want_is_not_passed_by_small_ones)
{
	struct cs_flow flow[2] = {0};
	struct client held[2], large, small[4];
	struct bank b;

	open_bank(&b, 100, 0);
	want(&b, &held[0], &flow[0], 50);
	want(&b, &held[1], &flow[0], 10);
	want(&b, &large, &flow[0], 80);
	/* They would fit, those of another flow too. */
	for (int i = 0; i < 4; i++)
		want(&b, &small[i], &flow[i % 2], 10);
	for (int i = 0; i < 4; i++)
		cr_assert_not(has(&small[i]));
	give(&b, &held[1]);
	cr_assert_not(has(&large) || has(&small[0]));
	give(&b, &held[0]);
	cr_assert(has(&large));
	cr_assert(has(&small[0]) && has(&small[2]), "the rest of the flow's turn");
	cr_assert_not(has(&small[1]), "100 are out");
	give(&b, &small[0]);
	cr_assert(has(&small[1]));
	give(&b, &large);
	for (int i = 0; i < 4; i++)
		cr_assert(has(&small[i]));
	for (int i = 1; i < 4; i++)
		give(&b, &small[i]);
	close_bank(&b);
}

Test(copier_credits, a_bound_of_one_goes_round)
{
	struct cs_flow flow[3] = {0};
	struct client c[9];
	struct bank b;

	open_bank(&b, 1, 0);
	for (int i = 0; i < 9; i++)
		want(&b, &c[i], &flow[i / 3], 4096);
	/* 0 has it; then each flow in its turn. */
	for (int n = 0; n < 9; n++) {
		static const int order[9] = {0, 1, 3, 6, 2, 4, 7, 5, 8};

		for (int i = n; i < 9; i++)
			cr_assert_eq(has(&c[order[i]]), i == n, "round %d", n);
		cr_assert_eq(c[order[n]].credit.bytes, 1);
		give(&b, &c[order[n]]);
	}
	close_bank(&b);
}

/* One flow wants 16 times as much at a time as the other: both get the same. */
Test(copier_credits, turns_are_counted_in_bytes)
{
	enum { LONG = 40, SHORT = 640 };
	static struct client l[LONG], s[SHORT];
	struct cs_flow flow[2] = {0};
	uint64_t got[2] = {0};
	int next[2] = {0};
	struct client all;
	struct bank b;

	open_bank(&b, 64 * 1024, 4096);
	want(&b, &all, &flow[0], 64 * 1024);
	for (int i = 0; i < LONG; i++)
		want(&b, &l[i], &flow[0], 64 * 1024);
	for (int i = 0; i < SHORT; i++)
		want(&b, &s[i], &flow[1], 4096);
	give(&b, &all);
	while (next[0] < LONG && next[1] < SHORT) {
		uint64_t apart;

		if (has(&l[next[0]])) {
			got[0] += 64 * 1024;
			give(&b, &l[next[0]++]);
		} else {
			cr_assert(has(&s[next[1]]));
			got[1] += 4096;
			give(&b, &s[next[1]++]);
		}
		apart = got[0] > got[1] ? got[0] - got[1] : got[1] - got[0];
		cr_assert_leq(apart, 2 * 64 * 1024, "%d and %d", next[0], next[1]);
	}
	while (next[0] < LONG)
		give(&b, &l[next[0]++]);
	while (next[1] < SHORT)
		give(&b, &s[next[1]++]);
	close_bank(&b);
}

Test(copier_credits, background_is_served_last_and_in_turn)
{
	struct client held, back[4], writer[3];
	struct cs_flow flow = {0};
	struct cs_flow *source[2];
	static char sources[64];
	struct bank b;
	int other = 1;

	open_bank(&b, 1, 0);
	source[0] = cs_copier_flow(b.copier, &sources[0], true);
	/* Two that do not fall together. */
	while (cs_copier_flow(b.copier, &sources[other], true) == source[0])
		other++;
	source[1] = cs_copier_flow(b.copier, &sources[other], true);
	cr_assert_neq(cs_copier_flow(b.copier, &sources[0], false), source[0]);
	want(&b, &held, NULL, 1);
	for (int i = 0; i < 4; i++)
		want(&b, &back[i], source[i / 2], 1);
	for (int i = 0; i < 3; i++)
		want(&b, &writer[i], &flow, 1);
	give(&b, &held);
	for (int i = 0; i < 3; i++) {
		cr_assert(has(&writer[i]));
		cr_assert_not(has(&back[0]) || has(&back[2]));
		give(&b, &writer[i]);
	}
	cr_assert(has(&back[0]) && !has(&back[1]) && !has(&back[2]));
	/* A writer that comes now passes those that wait. */
	want(&b, &writer[0], &flow, 1);
	give(&b, &back[0]);
	cr_assert(has(&writer[0]) && !has(&back[2]));
	give(&b, &writer[0]);
	cr_assert(has(&back[2]) && !has(&back[1]));
	give(&b, &back[2]);
	cr_assert(has(&back[1]));
	give(&b, &back[1]);
	cr_assert(has(&back[3]));
	give(&b, &back[3]);
	close_bank(&b);
}

/* A writer that fits is not kept waiting by a background copy that does not. */
Test(copier_credits, a_writer_passes_the_background_that_does_not_fit)
{
	struct client held, large, writer;
	struct cs_flow flow = {0};
	struct bank b;

	open_bank(&b, 100, 0);
	want(&b, &held, &flow, 50);
	want(&b, &large, NULL, 100);
	want(&b, &writer, &flow, 50);
	cr_assert(writer.at_once);
	cr_assert_not(has(&large));
	give(&b, &writer);
	give(&b, &held);
	cr_assert(has(&large));
	give(&b, &large);
	close_bank(&b);
}

/* ---- Forsaking ------------------------------------------------------------------------------- */

/* Each of a row of waiters, in one flow and in several. */
Test(copier_credits, anyone_in_line_can_be_forsaken)
{
	for (int flows = 1; flows <= 3; flows++) {
		for (int gone = 0; gone < 6; gone++) {
			struct cs_flow flow[3] = {0};
			struct client held, c[6];
			struct bank b;

			open_bank(&b, 1, 0);
			want(&b, &held, NULL, 1);
			for (int i = 0; i < 6; i++)
				want(&b, &c[i], &flow[i % flows], 1);
			cr_assert(cs_copier_forsake(b.copier, &c[gone].credit));
			cr_assert_not(cs_copier_forsake(b.copier, &c[gone].credit));
			cr_assert_not(cs_copier_forsake(b.copier, &held.credit));
			give(&b, &held);
			for (int n = 0; n < 5; n++) {
				int i = 0;

				while (i < 6 && (i == gone || !has(&c[i]) || !c[i].credit.bytes))
					i++;
				cr_assert_lt(i, 6);
				cr_assert_not(cs_copier_forsake(b.copier, &c[i].credit),
					"it was granted");
				give(&b, &c[i]);
				c[i].credit.bytes = 0;
			}
			cr_assert_not(has(&c[gone]));
			close_bank(&b);
		}
	}
}

Test(copier_credits, who_forsakes_lets_others_fit)
{
	struct client held, large, small[3];
	struct cs_flow flow = {0};
	struct bank b;

	open_bank(&b, 100, 0);
	want(&b, &held, &flow, 70);
	want(&b, &large, &flow, 90);
	for (int i = 0; i < 3; i++)
		want(&b, &small[i], &flow, 15);
	cr_assert_not(has(&small[0]));
	cr_assert(cs_copier_forsake(b.copier, &large.credit));
	cr_assert(has(&small[0]) && has(&small[1]));
	cr_assert_not(has(&small[2]));
	give(&b, &held);
	cr_assert(has(&small[2]));
	for (int i = 0; i < 3; i++)
		give(&b, &small[i]);
	close_bank(&b);
}

/* ---- Threads --------------------------------------------------------------------------------- */

#define CROWD  6
#define ROUNDS 3000

struct crowd {
	struct bank bank;
	struct cs_flow flow[2];
	_Atomic uint64_t inside;
	atomic_bool broken;
	_Atomic int number;
};

/* Reserves; half of the time gives up at once when it has to wait; releases what another thread has
 * reserved as well as its own. */
static void *come_and_go(void *argument)
{
	struct crowd *crowd = argument;
	struct cowsnap_copier *copier = crowd->bank.copier;
	int number = atomic_fetch_add(&crowd->number, 1);
	struct seed seed = {(uint64_t)number + 1};

	for (int i = 0; i < ROUNDS; i++) {
		struct cs_flow *flow =
			number < 4 ? &crowd->flow[number % 2] : cs_copier_flow(copier, crowd, true);
		struct cs_credit credit;
		struct cs_task task;

		cs_task_init(&task, NULL, NULL);
		if (!cs_copier_reserve(copier, flow, &credit, 1 + seed_below(&seed, 150), &task)) {
			if (seed_below(&seed, 2) && cs_copier_forsake(copier, &credit))
				continue;
			cs_task_sleep(&task);
		}
		if (atomic_fetch_add(&crowd->inside, credit.bytes) + credit.bytes > 100)
			atomic_store(&crowd->broken, true);
		atomic_fetch_sub(&crowd->inside, credit.bytes);
		cs_copier_release(copier, credit.bytes);
	}
	return NULL;
}

/* A credit left behind hangs the test. */
Test(copier_credits, many_threads_come_and_go)
{
	struct crowd crowd = {0};
	pthread_t thread[CROWD];

	open_bank(&crowd.bank, 100, 0);
	for (int i = 0; i < CROWD; i++)
		cr_assert_eq(pthread_create(&thread[i], NULL, come_and_go, &crowd), 0);
	for (int i = 0; i < CROWD; i++)
		pthread_join(thread[i], NULL);
	cr_assert_not(crowd.broken);
	close_bank(&crowd.bank);
}

static void *release_one(void *argument)
{
	cs_copier_release(argument, 1);
	return NULL;
}

Test(copier_credits, any_thread_may_release)
{
	struct client held, waits;
	struct cs_flow flow = {0};
	pthread_t thread;
	struct bank b;

	open_bank(&b, 1, 0);
	want(&b, &held, &flow, 1);
	want(&b, &waits, &flow, 1);
	cr_assert_eq(pthread_create(&thread, NULL, release_one, b.copier), 0);
	cs_task_sleep(&waits.task);
	pthread_join(thread, NULL);
	cs_copier_release(b.copier, 1);
	close_bank(&b);
}

/* Threads are numbered as they come, so that they spread evenly. */
static void *number_of(void *argument)
{
	struct bank *b = argument;

	return (void *)(uintptr_t)cs_copier_thread(b->copier);
}

Test(copier_credits, threads_are_numbered_as_they_come)
{
	pthread_t thread;
	struct bank b;

	open_bank(&b, 1, 0);
	cr_assert_eq(cs_copier_thread(b.copier), 0);
	for (int i = 0; i < 5; i++) {
		void *number;

		cr_assert_eq(pthread_create(&thread, NULL, number_of, &b), 0);
		pthread_join(thread, &number);
		/* A thread that comes after another has ended may be taken for it. */
		cr_assert_leq((uintptr_t)number, (uintptr_t)i + 1);
	}
	cr_assert_eq(cs_copier_thread(b.copier), 0);
	cr_assert_eq(cs_copier_threads(b.copier, NULL, 0), 0, "none of them has copied");
	close_bank(&b);
}

/* ---- Throttle -------------------------------------------------------------------------------- */

#define MS UINT64_C(1000000)

Test(copier_credits, the_rate_is_a_debt)
{
	struct cs_throttle t = {0};

	cs_throttle_set(&t, 0, 100);
	for (int i = 0; i < 5; i++)
		cr_assert_eq(cs_throttle_admit(&t, 7, UINT64_MAX), 0, "no bound");
	cs_throttle_set(&t, 1000000, 100);
	cr_assert_eq(cs_throttle_admit(&t, 1000 * MS, 5000), 0, "the first pays afterwards");
	cr_assert_eq(cs_throttle_admit(&t, 1000 * MS, 1), 1005 * MS);
	cr_assert_eq(cs_throttle_admit(&t, 1005 * MS - 1, 1), 1005 * MS);
	cr_assert_eq(cs_throttle_admit(&t, 1005 * MS, 1000), 0);
	cr_assert_eq(cs_throttle_admit(&t, 1005 * MS, 1), 1006 * MS);
	/* Time in which nobody wanted anything is not saved up. */
	cr_assert_eq(cs_throttle_admit(&t, 9000 * MS, 1000), 0);
	cr_assert_eq(cs_throttle_admit(&t, 9000 * MS, 1000), 9001 * MS);
	/* A change forgets what was owed. */
	cs_throttle_set(&t, 1, 100);
	cr_assert_eq(cs_throttle_admit(&t, 9000 * MS, UINT64_MAX), 0);
	cr_assert_eq(cs_throttle_admit(&t, 9000 * MS, 1), UINT64_MAX, "for ever");
	cs_throttle_set(&t, UINT64_MAX, 100);
	cr_assert_eq(cs_throttle_admit(&t, 9000 * MS, 1), 0);
	cr_assert_eq(cs_throttle_admit(&t, 9000 * MS, 1), 0);
}

Test(copier_credits, a_rest_follows_each_spell)
{
	struct cs_throttle t = {0};

	cs_throttle_set(&t, 0, 25);
	cr_assert_eq(cs_throttle_admit(&t, 100 * MS, 1), 0);
	cs_throttle_begin(&t, 100 * MS);
	cr_assert_eq(cs_throttle_admit(&t, 101 * MS, 1), 0, "one more joins");
	cs_throttle_begin(&t, 101 * MS);
	cs_throttle_end(&t, 102 * MS);
	cr_assert_eq(cs_throttle_admit(&t, 103 * MS, 1), 0);
	cs_throttle_end(&t, 104 * MS);
	/* 4 ms were busy: 12 ms of rest. */
	cr_assert_eq(cs_throttle_admit(&t, 104 * MS, 1), 116 * MS);
	cr_assert_eq(cs_throttle_admit(&t, 116 * MS - 1, 1), 116 * MS);
	cr_assert_eq(cs_throttle_admit(&t, 116 * MS, 1), 0);
	/* Nobody joins a spell for ever. */
	cs_throttle_begin(&t, 200 * MS);
	cr_assert_eq(cs_throttle_admit(&t, 200 * MS + CS_THROTTLE_SPELL_NS - 1, 1), 0);
	cr_assert_gt(cs_throttle_admit(&t, 200 * MS + CS_THROTTLE_SPELL_NS, 1),
		200 * MS + CS_THROTTLE_SPELL_NS);
	cs_throttle_set(&t, 0, 100);
	cr_assert_eq(cs_throttle_admit(&t, 900 * MS, 1), 0, "all of the time");
	cs_throttle_end(&t, 900 * MS);
	cr_assert_eq(cs_throttle_admit(&t, 900 * MS, 1), 0);
}

/* Over a simulated second the share holds, whatever the lengths of the pieces. */
Test(copier_credits, the_share_of_time_holds)
{
	struct seed seed = seed_for("the_share_of_time_holds");

	for (unsigned share = 10; share <= 90; share += 20) {
		struct cs_throttle t = {0};
		uint64_t now = 1, busy = 0;

		cs_throttle_set(&t, 0, share);
		while (now < 10000 * MS) {
			uint64_t until = cs_throttle_admit(&t, now, 1);
			uint64_t takes = 1 + seed_below(&seed, 5 * MS);

			if (until) {
				cr_assert_gt(until, now);
				now = until;
				continue;
			}
			cs_throttle_begin(&t, now);
			now += takes;
			busy += takes;
			cs_throttle_end(&t, now);
		}
		cr_assert_geq(busy * 100 / now + 1, share);
		cr_assert_leq(busy * 100 / now, share + 1);
	}
}
