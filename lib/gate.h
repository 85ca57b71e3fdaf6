/* SPDX-License-Identifier: MIT
 *
 * The gate: who is inside, by generation.
 *
 * A thread *enters* and later *leaves*, perhaps on another thread. The gate's owner *switches* to a
 * new *generation*; from then on it can ask, without blocking anybody, whether everyone who entered
 * an older one has left. Origins have a gate for brackets (a take switches it), stores have one for
 * snapshot reads (reclaiming switches it before space is given out again).
 *
 * A generation is one of 8 *slots*. A slot is counted in stripes, one for each CPU, each on its own
 * cache line, so that threads share no written line. Entering is one atomic addition, then a look
 * whether the generation is still the current one; if not, the addition is taken back.
 *
 * `select` names the slots before and after a switch, and the epoch that decides between them:
 * gates that share an epoch word switch at the same instant, by one store to it. A gate that
 * switches alone uses switch epoch 0.
 *
 * Invariants:
 *  G1 A slot is chosen for a switch only when everyone who validated it has left.
 *  G2 Whoever validated slot s before the switch away from s is seen by every later look at s:
 *     both sides do a store, then a load, all sequentially consistent (Dekker).
 *  G3 A slot that was left behind and is seen idle once stays so until it is chosen again: whoever
 *     counts himself in it later sees the switch and takes that back.
 *  G4 The low 24 bits of a count are those inside; the rest counts entries since the slot was last
 *     chosen. More than 2^24 - 1 open brackets on one CPU and origin would break G2.
 *
 * Who waits for a drain leaves a waiter, in one step with his last look (`lock`). Whoever leaves
 * the gate meanwhile wakes him and does not look himself: that is the owner's. Once woken he looks
 * again, and may have to wait again.
 *
 * Locking: switching, picking and looking for the drained are the owner's, by one thread at a time.
 * `lock` is for waiters only; it may be taken under any other lock.
 *
 * Failure: without memory a gate is not made. Entering, leaving and switching cannot fail.
 */
#ifndef CS_GATE_H
#define CS_GATE_H

#include "cpu.h"
#include "sync.h"
#include "task.h"

#define CS_GATE_SLOTS       8u
#define CS_GATE_ENTRY       ((UINT64_C(1) << 24) + 1) /* one more entry, one more inside */
#define CS_GATE_INSIDE_MASK ((UINT64_C(1) << 24) - 1)

struct cowsnap_allocator;

struct cs_gate_stripe {
	_Alignas(CS_CACHE_BYTES) _Atomic uint64_t count[CS_GATE_SLOTS];
};

struct cs_gate {
	_Atomic uint64_t select; /* before : 3, after : 3, switch epoch : 58 */
	const _Atomic uint64_t *epoch;
	struct cs_gate_stripe *stripes;
	uint32_t stripe_mask;
	uint32_t old; /* slots left behind and not seen idle since, a bit each; the owner's */
	_Atomic uint64_t entries;  /* of generations that are gone */
	_Atomic uint32_t drainers; /* in the list; changed under lock */
	struct cs_mutex lock;
	struct cs_waitlist left; /* who is woken when somebody leaves; under lock */
};

struct cs_gate_pass {
	struct cs_gate_stripe *stripe;
	uint32_t slot;
};

/* @epoch: NULL for a gate that switches alone. Returns: 0, -ENOMEM. */
int cs_gate_init(
	struct cs_gate *gate, const struct cowsnap_allocator *alloc, const _Atomic uint64_t *epoch);
void cs_gate_fini(struct cs_gate *gate, const struct cowsnap_allocator *alloc);

/* The current slot, for whoever is entering or owns the gate. */
static inline uint32_t cs_gate_current(const struct cs_gate *gate)
{
	/* seq_cst: half of G2; pairs with cs_gate_switch and with the epoch store of
	 * take_planned. select before epoch: an epoch that is too new for this select only ever
	 * picks the older generation, and then this load preceded the switch. */
	uint64_t select = atomic_load_explicit(&gate->select, memory_order_seq_cst);
	uint64_t epoch = atomic_load_explicit(gate->epoch, memory_order_seq_cst);

	return epoch >= select >> 6 ? (uint32_t)(select >> 3) & 7 : (uint32_t)select & 7;
}

void cs_gate_wake(struct cs_gate *gate);

/* Takes @what away from a count. A drainer that saw the count must look again, also where it was a
 * mistaken entry that is taken back. */
static inline void cs_gate_take_back(struct cs_gate *gate, _Atomic uint64_t *count, uint64_t what)
{
	/* A release of all that was done inside; pairs with slot_idle. seq_cst with the
	 * load of drainers: either the drainer sees the count fall or this sees the drainer; pairs
	 * with cs_gate_await_drain. */
	atomic_fetch_sub_explicit(count, what, memory_order_seq_cst);
	if (cs_unlikely(atomic_load_explicit(&gate->drainers, memory_order_seq_cst) != 0))
		cs_gate_wake(gate);
}

static inline void cs_gate_enter(struct cs_gate *gate, struct cs_gate_pass *pass)
{
	struct cs_gate_stripe *stripe = &gate->stripes[cs_cpu_current() & gate->stripe_mask];
	uint32_t slot;

	for (;;) {
		slot = cs_gate_current(gate);
		/* seq_cst: G2; pairs with slot_idle. */
		atomic_fetch_add_explicit(
			&stripe->count[slot], CS_GATE_ENTRY, memory_order_seq_cst);
		if (cs_likely(cs_gate_current(gate) == slot))
			break;
		cs_gate_take_back(gate, &stripe->count[slot], CS_GATE_ENTRY);
	}
	pass->stripe = stripe;
	pass->slot = slot;
}

static inline void cs_gate_leave(struct cs_gate *gate, const struct cs_gate_pass *pass)
{
	cs_gate_take_back(gate, &pass->stripe->count[pass->slot], 1);
}

/* Leaves as if it had never entered. */
static inline void cs_gate_cancel(struct cs_gate *gate, const struct cs_gate_pass *pass)
{
	cs_gate_take_back(gate, &pass->stripe->count[pass->slot], CS_GATE_ENTRY);
}

/* Is nobody inside, in whatever generation? */
bool cs_gate_empty(const struct cs_gate *gate);
/* Has everybody left the slots that were left behind? */
bool cs_gate_drained(struct cs_gate *gate);
/* The same of one slot; the current one is never drained. */
bool cs_gate_slot_drained(struct cs_gate *gate, uint32_t slot);
/* To wait until cs_gate_drained(). Returns: false if it is. True: @waiter will be woken, once, when
 * it may be; then look again. The owner's, as the look is. */
bool cs_gate_await_drain(struct cs_gate *gate, struct cs_waiter *waiter);
/* @waiter will be woken, once, when somebody leaves, of whatever generation. Look afterwards, and
 * sleep if it was in vain. Any thread. */
void cs_gate_await_leave(struct cs_gate *gate, struct cs_waiter *waiter);
/* Ends either wait. Any thread. Returns: false if the wake has come or is on its way. */
bool cs_gate_forsake_drain(struct cs_gate *gate, struct cs_waiter *waiter);

/* A slot to switch to. Returns: CS_GATE_SLOTS if somebody is in each. */
uint32_t cs_gate_pick(struct cs_gate *gate);
/* Go over to @slot once the epoch reaches @epoch; 0: now. */
void cs_gate_switch(struct cs_gate *gate, uint32_t slot, uint64_t epoch);

/* Entries since the gate was made. */
uint64_t cs_gate_entries(const struct cs_gate *gate);

#endif
