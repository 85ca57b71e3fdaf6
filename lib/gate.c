/* SPDX-License-Identifier: MIT
 *
 * The gate: who is inside, by generation. Design and invariants in gate.h.
 */
#include "gate.h"

#include <assert.h>
#include <string.h>

#include "alloc.h"

#define STRIPES_MAX 256u

static const _Atomic uint64_t no_epoch;

int cs_gate_init(
	struct cs_gate *gate, const struct cowsnap_allocator *alloc, const _Atomic uint64_t *epoch)
{
	uint32_t stripes = cs_cpu_stripes(STRIPES_MAX);

	gate->stripes = cs_alloc_aligned(alloc, stripes * sizeof(*gate->stripes), CS_CACHE_BYTES);
	if (!gate->stripes)
		return -ENOMEM;
	memset(gate->stripes, 0, stripes * sizeof(*gate->stripes));
	gate->stripe_mask = stripes - 1;
	gate->epoch = epoch ? epoch : &no_epoch;
	atomic_init(&gate->select, 0);
	gate->old = 0;
	atomic_init(&gate->drainers, 0);
	atomic_init(&gate->entries, 0);
	cs_mutex_init(&gate->lock);
	gate->left.first = NULL;
	return 0;
}

void cs_gate_fini(struct cs_gate *gate, const struct cowsnap_allocator *alloc)
{
	cs_mutex_fini(&gate->lock);
	cs_free(alloc, gate->stripes, (gate->stripe_mask + 1) * sizeof(*gate->stripes));
	gate->stripes = NULL;
}

/* Who waits holds `lock` from his look until he is in the list, so this cannot fall between. */
void cs_gate_wake(struct cs_gate *gate)
{
	struct cs_waiter *waiters;

	cs_mutex_lock(&gate->lock);
	waiters = cs_waitlist_take(&gate->left);
	atomic_store_explicit(&gate->drainers, 0, memory_order_relaxed);
	cs_mutex_unlock(&gate->lock);
	cs_waiters_wake(waiters);
}

static bool slot_idle(const struct cs_gate *gate, uint32_t slot)
{
	for (uint32_t i = 0; i <= gate->stripe_mask; i++) {
		/* seq_cst: G2; pairs with cs_gate_enter. An acquire of what was done inside; pairs
		 * with cs_gate_take_back. */
		uint64_t count =
			atomic_load_explicit(&gate->stripes[i].count[slot], memory_order_seq_cst);
		if (count & CS_GATE_INSIDE_MASK)
			return false;
	}
	return true;
}

bool cs_gate_empty(const struct cs_gate *gate)
{
	for (uint32_t slot = 0; slot < CS_GATE_SLOTS; slot++) {
		if (!slot_idle(gate, slot))
			return false;
	}
	return true;
}

bool cs_gate_slot_drained(struct cs_gate *gate, uint32_t slot)
{
	uint32_t bit = UINT32_C(1) << slot;

	if ((gate->old & bit) && slot_idle(gate, slot))
		gate->old &= ~bit; /* G3 */
	return !(gate->old & bit) && slot != cs_gate_current(gate);
}

bool cs_gate_drained(struct cs_gate *gate)
{
	for (uint32_t rest = gate->old; rest; rest &= rest - 1)
		cs_gate_slot_drained(gate, (uint32_t)__builtin_ctz(rest));
	return gate->old == 0;
}

bool cs_gate_await_drain(struct cs_gate *gate, struct cs_waiter *waiter)
{
	bool drained = cs_gate_drained(gate);

	if (drained)
		return false;
	cs_mutex_lock(&gate->lock);
	/* seq_cst: announce, then look; pairs with cs_gate_take_back. */
	atomic_fetch_add_explicit(&gate->drainers, 1, memory_order_seq_cst);
	drained = cs_gate_drained(gate);
	if (drained)
		atomic_fetch_sub_explicit(&gate->drainers, 1, memory_order_relaxed);
	else
		cs_waitlist_add(&gate->left, waiter);
	cs_mutex_unlock(&gate->lock);
	return !drained;
}

void cs_gate_await_leave(struct cs_gate *gate, struct cs_waiter *waiter)
{
	cs_mutex_lock(&gate->lock);
	/* seq_cst: announce, then look; pairs with cs_gate_take_back. */
	atomic_fetch_add_explicit(&gate->drainers, 1, memory_order_seq_cst);
	cs_waitlist_add(&gate->left, waiter);
	cs_mutex_unlock(&gate->lock);
}

bool cs_gate_forsake_drain(struct cs_gate *gate, struct cs_waiter *waiter)
{
	bool waited;

	cs_mutex_lock(&gate->lock);
	waited = cs_waitlist_remove(&gate->left, waiter);
	if (waited)
		atomic_fetch_sub_explicit(&gate->drainers, 1, memory_order_relaxed);
	cs_mutex_unlock(&gate->lock);
	return waited;
}

uint32_t cs_gate_pick(struct cs_gate *gate)
{
	for (uint32_t slot = 0; slot < CS_GATE_SLOTS; slot++) {
		if (cs_gate_slot_drained(gate, slot))
			return slot;
	}
	return CS_GATE_SLOTS;
}

/* Keeps what a slot has counted so far, and makes room for the next count. Only the entries are
 * taken away: somebody who is about to take back a mistaken entry may be inside. */
static void slot_restart(struct cs_gate *gate, uint32_t slot)
{
	for (uint32_t i = 0; i <= gate->stripe_mask; i++) {
		_Atomic uint64_t *count = &gate->stripes[i].count[slot];
		/* Signed: a mistaken entry of before the last restart may be taken back after it.
		 * */
		int64_t entries = (int64_t)atomic_load_explicit(count, memory_order_relaxed) >> 24;

		if (!entries)
			continue;
		atomic_fetch_sub_explicit(count, (uint64_t)entries << 24, memory_order_relaxed);
		atomic_fetch_add_explicit(&gate->entries, (uint64_t)entries, memory_order_relaxed);
	}
}

void cs_gate_switch(struct cs_gate *gate, uint32_t slot, uint64_t epoch)
{
	uint32_t current = cs_gate_current(gate);

	assert(slot < CS_GATE_SLOTS);
	if (slot != current) {
		slot_restart(gate, slot);
		gate->old |= UINT32_C(1) << current;
	}
	gate->old &= ~(UINT32_C(1) << slot);
	if (slot == current && !epoch) {
		/* Nothing changes for anybody: what was chosen by an epoch is so from now on. */
		atomic_store_explicit(&gate->select, slot | slot << 3, memory_order_relaxed);
		return;
	}
	/* seq_cst: the switch of G2 where epoch is 0; pairs with cs_gate_current. */
	atomic_store_explicit(
		&gate->select, current | slot << 3 | epoch << 6, memory_order_seq_cst);
}

uint64_t cs_gate_entries(const struct cs_gate *gate)
{
	uint64_t entries = atomic_load_explicit(&gate->entries, memory_order_relaxed);

	for (uint32_t i = 0; i <= gate->stripe_mask; i++) {
		for (uint32_t slot = 0; slot < CS_GATE_SLOTS; slot++) {
			int64_t count = (int64_t)atomic_load_explicit(
				&gate->stripes[i].count[slot], memory_order_relaxed);

			entries += (uint64_t)(count >> 24);
		}
	}
	return entries;
}
