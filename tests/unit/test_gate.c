/* SPDX-License-Identifier: MIT
 *
 * The gate: slots, switches, drains; and under threads, that nobody is inside an older generation
 * unseen.
 */
#include "support/test.h"
#include "support/waits.h"

#include <pthread.h>
#include <sched.h>
#include <string.h>

#include "alloc.h"
#include "gate.h"

static struct cs_gate gate;

static void make_gate(const _Atomic uint64_t *epoch)
{
	cr_assert_eq(cs_gate_init(&gate, cs_alloc_libc(), epoch), 0);
}

static void free_gate(void)
{
	cs_gate_fini(&gate, cs_alloc_libc());
}

Test(gate, counts_who_is_inside)
{
	struct cs_gate_pass a, b;

	make_gate(NULL);
	cr_assert(cs_gate_empty(&gate));
	cs_gate_enter(&gate, &a);
	cs_gate_enter(&gate, &b);
	cr_assert_eq(a.slot, b.slot);
	cr_assert_not(cs_gate_empty(&gate));
	cs_gate_leave(&gate, &a);
	cr_assert_not(cs_gate_empty(&gate));
	cs_gate_leave(&gate, &b);
	cr_assert(cs_gate_empty(&gate));
	cr_assert_eq(cs_gate_entries(&gate), 2);
	free_gate();
}

Test(gate, a_switch_leaves_the_old_ones_where_they_are)
{
	struct cs_gate_pass old, new;
	uint32_t slot;

	make_gate(NULL);
	cs_gate_enter(&gate, &old);
	slot = cs_gate_pick(&gate);
	cr_assert_neq(slot, old.slot);
	cs_gate_switch(&gate, slot, 0);
	cs_gate_enter(&gate, &new);
	cr_assert_eq(new.slot, slot);
	cr_assert_not(cs_gate_drained(&gate));
	cs_gate_leave(&gate, &old);
	cr_assert(cs_gate_drained(&gate));
	cs_gate_leave(&gate, &new);
	free_gate();
}

Test(gate, pick_passes_over_slots_in_use)
{
	struct cs_gate_pass pass[CS_GATE_SLOTS];
	uint32_t slot;

	make_gate(NULL);
	for (uint32_t i = 0; i + 1 < CS_GATE_SLOTS; i++) {
		cs_gate_enter(&gate, &pass[i]);
		slot = cs_gate_pick(&gate);
		cr_assert_neq(slot, CS_GATE_SLOTS);
		cs_gate_switch(&gate, slot, 0);
	}
	cr_assert_eq(cs_gate_pick(&gate), CS_GATE_SLOTS);
	cs_gate_leave(&gate, &pass[3]);
	cr_assert_eq(cs_gate_pick(&gate), pass[3].slot);
	for (uint32_t i = 0; i + 1 < CS_GATE_SLOTS; i++) {
		if (i != 3)
			cs_gate_leave(&gate, &pass[i]);
	}
	free_gate();
}

Test(gate, entries_survive_the_reuse_of_a_slot)
{
	struct cs_gate_pass pass;

	make_gate(NULL);
	for (int i = 0; i < 100; i++) {
		cs_gate_enter(&gate, &pass);
		cs_gate_leave(&gate, &pass);
		cs_gate_switch(&gate, cs_gate_pick(&gate), 0);
	}
	cr_assert_eq(cs_gate_entries(&gate), 100);
	free_gate();
}

Test(gate, an_epoch_switches_many_gates_at_once)
{
	static _Atomic uint64_t epoch;
	struct cs_gate other;
	uint32_t a, b;

	make_gate(&epoch);
	cr_assert_eq(cs_gate_init(&other, cs_alloc_libc(), &epoch), 0);
	a = cs_gate_pick(&gate);
	b = cs_gate_pick(&other);
	cs_gate_switch(&gate, a, 1);
	cs_gate_switch(&other, b, 1);
	cr_assert_neq(cs_gate_current(&gate), a);
	cr_assert_neq(cs_gate_current(&other), b);
	atomic_store(&epoch, 1);
	cr_assert_eq(cs_gate_current(&gate), a);
	cr_assert_eq(cs_gate_current(&other), b);
	cs_gate_fini(&other, cs_alloc_libc());
	free_gate();
}

Test(gate, a_drain_gives_up_at_its_deadline)
{
	struct cs_gate_pass old;
	uint32_t slot;

	make_gate(NULL);
	cs_gate_enter(&gate, &old);
	slot = cs_gate_pick(&gate);
	cs_gate_switch(&gate, slot, 0);
	cr_assert_not(wait_drained(&gate, cs_deadline_ns(1000000)));
	cs_gate_leave(&gate, &old);
	cr_assert(wait_drained(&gate, UINT64_MAX));
	free_gate();
}

/* ---- Waiting without sleeping ---------------------------------------------------------------- */

struct wait {
	struct cs_waiter waiter;
	_Atomic unsigned woken;
};

static void wake(struct cs_waiter *waiter)
{
	atomic_fetch_add(&cs_container_of(waiter, struct wait, waiter)->woken, 1);
}

static void switch_gate(void)
{
	uint32_t slot = cs_gate_pick(&gate);

	cr_assert_neq(slot, CS_GATE_SLOTS);
	cs_gate_switch(&gate, slot, 0);
}

Test(gate, who_leaves_wakes_who_waits_and_he_looks_again)
{
	struct wait w = {.waiter.wake = wake};
	struct cs_gate_pass first, second, younger;

	make_gate(NULL);
	cr_assert_not(cs_gate_await_drain(&gate, &w.waiter), "nobody is inside");
	cs_gate_enter(&gate, &first);
	cs_gate_enter(&gate, &second);
	switch_gate();
	cs_gate_enter(&gate, &younger);
	cr_assert(cs_gate_await_drain(&gate, &w.waiter));
	cs_gate_leave(&gate, &first);
	cr_assert_eq(w.woken, 1);
	cs_gate_leave(&gate, &younger);
	cr_assert_eq(w.woken, 1, "once for each time that he waits");
	cr_assert(cs_gate_await_drain(&gate, &w.waiter), "the second one is inside");
	cs_gate_cancel(&gate, &second);
	cr_assert_eq(w.woken, 2, "whatever way he leaves");
	cr_assert_not(cs_gate_await_drain(&gate, &w.waiter));
	cr_assert_eq(gate.drainers, 0);
	free_gate();
}

Test(gate, who_gives_up_is_not_woken)
{
	struct wait a = {.waiter.wake = wake}, b = {.waiter.wake = wake};
	struct cs_gate_pass pass;

	make_gate(NULL);
	cs_gate_enter(&gate, &pass);
	switch_gate();
	cr_assert(cs_gate_await_drain(&gate, &a.waiter));
	cr_assert(cs_gate_await_drain(&gate, &b.waiter));
	cr_assert(cs_gate_forsake_drain(&gate, &a.waiter));
	cr_assert_not(cs_gate_forsake_drain(&gate, &a.waiter));
	cs_gate_leave(&gate, &pass);
	cr_assert_eq(a.woken, 0);
	cr_assert_eq(b.woken, 1);
	cr_assert_not(cs_gate_forsake_drain(&gate, &b.waiter), "its wake has come");
	free_gate();
}

static void *no_memory(void *user, size_t bytes, size_t align)
{
	(void)user;
	(void)bytes;
	(void)align;
	return NULL;
}

Test(gate, no_memory_is_an_error)
{
	struct cowsnap_allocator none = *cs_alloc_libc();

	none.alloc = no_memory;
	cr_assert_eq(cs_gate_init(&gate, &none, NULL), -ENOMEM);
}

/*
 * Threads enter, note in which generation they think they are, look at a value that the owner
 * changes after each drain, and leave. Somebody inside an older generation unseen would see the
 * value of a newer one.
 */
#define THREADS  4
#define SWITCHES 2000

static uint64_t generation_of_slot[CS_GATE_SLOTS]; /* plain: the gate orders it */
static atomic_bool stop;

static void *visitor(void *arg)
{
	uint64_t *mistakes = arg;
	struct cs_gate_pass pass;

	while (!atomic_load(&stop)) {
		cs_gate_enter(&gate, &pass);
		/* Whoever is in generation g keeps g from being drained away. */
		*mistakes += generation_of_slot[pass.slot] == UINT64_MAX;
		cs_gate_leave(&gate, &pass);
	}
	return NULL;
}

Test(gate, nobody_is_inside_an_old_generation_unseen, .timeout = 120)
{
	pthread_t thread[THREADS];
	uint64_t mistakes[THREADS] = {0};

	make_gate(NULL);
	memset(generation_of_slot, 0, sizeof(generation_of_slot));
	atomic_store(&stop, false);
	for (int i = 0; i < THREADS; i++)
		cr_assert_eq(pthread_create(&thread[i], NULL, visitor, &mistakes[i]), 0);
	for (uint64_t g = 1; g <= SWITCHES; g++) {
		uint32_t old = cs_gate_current(&gate);
		uint32_t slot = cs_gate_pick(&gate);

		cr_assert_neq(slot, CS_GATE_SLOTS);
		generation_of_slot[slot] = g;
		cs_gate_switch(&gate, slot, 0);
		cr_assert(wait_drained(&gate, cs_deadline_ns(UINT64_C(60000000000))));
		/* All gone: what they looked at may be spoilt. TSan sees a visitor that is left. */
		generation_of_slot[old] = UINT64_MAX;
	}
	atomic_store(&stop, true);
	for (int i = 0; i < THREADS; i++) {
		pthread_join(thread[i], NULL);
		cr_assert_eq(mistakes[i], 0);
	}
	free_gate();
}

/*
 * The owner waits for each drain, and now and then gives up at the moment at which the last one
 * leaves. A wake that is lost leaves it waiting for ever; one too many is counted.
 */
Test(gate, no_wake_is_lost, .timeout = 120)
{
	pthread_t thread[THREADS];
	uint64_t mistakes[THREADS] = {0};
	struct wait w = {.waiter.wake = wake};
	unsigned waited = 0;

	make_gate(NULL);
	memset(generation_of_slot, 0, sizeof(generation_of_slot));
	atomic_store(&stop, false);
	for (int i = 0; i < THREADS; i++)
		cr_assert_eq(pthread_create(&thread[i], NULL, visitor, &mistakes[i]), 0);
	for (uint64_t g = 1; g <= SWITCHES; g++) {
		switch_gate();
		while (cs_gate_await_drain(&gate, &w.waiter)) {
			waited++;
			if (g % 4 == 0 && cs_gate_forsake_drain(&gate, &w.waiter)) {
				waited--;
				continue;
			}
			while (atomic_load(&w.woken) < waited)
				sched_yield();
			cr_assert_eq(atomic_load(&w.woken), waited);
		}
	}
	atomic_store(&stop, true);
	for (int i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	cr_assert_eq(atomic_load(&w.woken), waited);
	cr_assert_eq(gate.drainers, 0);
	free_gate();
}
