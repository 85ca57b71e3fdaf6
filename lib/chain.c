/* SPDX-License-Identifier: MIT
 *
 * Chains and snapshots: their making, their end, and the questions that are asked of a chain.
 * Design and invariants in chain.h.
 */
#include "chain.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "alloc.h"

static const struct cowsnap_allocator *allocator(const struct cs_chain *chain)
{
	return chain->ctx->base.alloc;
}

/* ---- Chains --------------------------------------------------------------------------------- */

struct cs_chain *cs_chain_create(struct cowsnap_ctx *ctx)
{
	struct cs_chain *chain = cs_alloc_zeroed(ctx->base.alloc, sizeof(*chain));
	struct cowsnap_snapshot *spare;

	if (!chain)
		return NULL;
	spare = cs_alloc_zeroed(ctx->base.alloc, sizeof(*spare));
	if (!spare) {
		cs_free(ctx->base.alloc, chain, sizeof(*chain));
		return NULL;
	}
	chain->ctx = ctx;
	atomic_init(&chain->spare, spare);
	return chain;
}

void cs_chain_destroy(struct cs_chain *chain)
{
	if (!chain)
		return;
	assert(cs_chain_idle(chain) && !cs_chain_newest(chain));
	cs_free(allocator(chain), atomic_load_explicit(&chain->spare, memory_order_relaxed),
		sizeof(struct cowsnap_snapshot));
	cs_free(allocator(chain), chain, sizeof(*chain));
}

void cs_chain_attach(struct cs_chain *chain, struct cowsnap_store *store)
{
	chain->store = store;
	chain->next_of_store = store->upper->chains;
	store->upper->chains = chain;
}

void cs_chain_detach(struct cs_chain *chain)
{
	struct cs_chain **at = &chain->store->upper->chains;

	while (*at != chain)
		at = &(*at)->next_of_store;
	*at = chain->next_of_store;
	chain->store = NULL;
}

void cs_chain_link(struct cs_chain *chain, struct cowsnap_snapshot *snapshot)
{
	atomic_store_explicit(&snapshot->older, cs_chain_newest(chain), memory_order_relaxed);
	cs_snapshot_ref_unshared(snapshot);
	atomic_fetch_add_explicit(&chain->live, 1, memory_order_relaxed);
	/* Release: the snapshot and its link; pairs with cs_chain_newest. */
	atomic_store_explicit(&chain->newest, snapshot, memory_order_release);
}

uint64_t cs_chain_needs_mask(
	const struct cowsnap_snapshot *snapshot, uint64_t first, unsigned count)
{
	uint64_t open = ~UINT64_C(0) >> (64 - count), needed = 0;

	/* In one pass, from newer to older as C3 asks: a snapshot that is dropped and unlinked
	 * meanwhile is then passed like any ghost. */
	for (const struct cowsnap_snapshot *s = snapshot; s && open; s = cs_snapshot_older(s)) {
		if (s != snapshot)
			open &= ~cs_map_done_mask(&s->map, first, count);
		needed |= open & cs_snapshot_needs_mask(s, first, count);
		open &= ~needed;
	}
	return needed;
}

bool cs_chain_needs(
	const struct cs_chain *chain, const struct cowsnap_snapshot *newest, uint64_t chunk)
{
	struct cs_gate *reads = &chain->store->upper->reads;
	struct cs_gate_pass pass;
	bool needed;

	cs_gate_enter(reads, &pass);
	needed = cs_chain_needs_mask(newest, chunk, 1);
	cs_gate_leave(reads, &pass);
	return needed;
}

void cs_chain_each_needing(struct cowsnap_snapshot *newest, uint64_t chunk, bool recorded,
	void (*visit)(void *user, struct cowsnap_snapshot *snapshot), void *user)
{
	uint64_t location;

	for (struct cowsnap_snapshot *s = newest; s; s = cs_snapshot_older(s)) {
		/* C8: older ones are no longer. */
		if (!cs_snapshot_inside_mask(s, chunk, 1))
			return;
		/* From here on, older ones find the chunk in this map. */
		if (cowsnap_map_lookup(&s->map, chunk, &location))
			return;
		if (recorded && cs_bits_test(&s->changed, chunk))
			return;
		if (recorded ? cs_snapshot_can_lose(s) : cs_snapshot_needs(s, chunk))
			visit(user, s);
	}
}

/* ---- Snapshots ------------------------------------------------------------------------------ */

static struct cowsnap_snapshot *get_memory(struct cs_chain *chain)
{
	/* Acquire: the last use is over; pairs with give_memory. */
	struct cowsnap_snapshot *s =
		atomic_exchange_explicit(&chain->spare, NULL, memory_order_acquire);

	if (!s)
		return cs_alloc_zeroed(allocator(chain), sizeof(*s));
	memset(s, 0, sizeof(*s));
	return s;
}

static void give_memory(struct cs_chain *chain, struct cowsnap_snapshot *s)
{
	/* Release: pairs with get_memory. */
	s = atomic_exchange_explicit(&chain->spare, s, memory_order_acq_rel);
	cs_free(allocator(chain), s, sizeof(*s));
}

struct cowsnap_snapshot *cs_snapshot_create(
	struct cs_chain *chain, uint64_t size_bytes, const struct cowsnap_take_entry *entry)
{
	struct cowsnap_snapshot *s = get_memory(chain);

	if (!s)
		return NULL;
	s->chain = chain;
	s->size_bytes = size_bytes;
	atomic_init(&s->refs, 1);
	atomic_init(&s->state, entry->flags & COWSNAP_TAKE_MAP_ONLY ? COWSNAP_SNAPSHOT_MAP_ONLY
								    : COWSNAP_SNAPSHOT_ACTIVE);
	s->on_full = entry->on_full;
	s->wait_ns = entry->wait_ns;
	s->decide = entry->decide;
	s->user = entry->user;
	cs_map_init(&s->map, allocator(chain));
	cs_bits_init(&s->changed, allocator(chain));
	cs_bits_init(&s->released, allocator(chain));
	cs_map_init(&s->own, allocator(chain));
	cs_map_init(&s->rewriting, allocator(chain));
	s->solo_head = (struct cs_head){.chain = chain, .newest = s};
	s->solo.owner = s;
	s->solo.count = 1;
	s->solo.head = &s->solo_head;
	atomic_fetch_add_explicit(&chain->snapshots, 1, memory_order_relaxed);
	return s;
}

void cs_snapshot_free_maps(struct cowsnap_snapshot *s)
{
	cs_map_fini(&s->map);
	cs_bits_fini(&s->changed);
	cs_bits_fini(&s->released);
	cs_map_fini(&s->own);
	cs_map_fini(&s->rewriting);
	s->map_freed = true;
}

void cs_snapshot_put(struct cowsnap_snapshot *s)
{
	struct cs_chain *chain = s->chain;

	/* Acquire and release: the last one to let go sees what the others did; pairs with
	 * cs_snapshot_put on other threads. */
	if (atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) != 1)
		return;
	if (!s->map_freed)
		cs_snapshot_free_maps(s);
	give_memory(chain, s);
	/* Release: the last touch of the chain; pairs with cs_chain_idle. */
	atomic_fetch_sub_explicit(&chain->snapshots, 1, memory_order_release);
}

static void tell(struct cowsnap_ctx *ctx, struct cowsnap_event *event)
{
	struct cowsnap_store *store = event->store;
	struct cowsnap_store_space space;

	if (!ctx->event)
		return;
	cs_store_space(store, &space);
	event->used_bytes = space.used_chunks << store->chunk_shift;
	event->limit_bytes = space.limit_chunks << store->chunk_shift;
	ctx->event(ctx->event_user, event);
}

void cs_event_store(struct cowsnap_store *store, enum cowsnap_event_type type, int reason)
{
	struct cowsnap_event event = {.type = type, .reason = reason, .store = store};

	cs_log(store->base, COWSNAP_LOG_WARNING, "store on %s is %s", store->device->name,
		type == COWSNAP_EVENT_FULL ? "full" : "below its low-water mark");
	tell(store->handle.ctx, &event);
}

static void tell_invalid(struct cowsnap_snapshot *s, int reason)
{
	struct cowsnap_event event = {.type = COWSNAP_EVENT_INVALID,
		.reason = reason,
		.store = s->chain->store,
		.snapshot = s};

	cs_log(&s->chain->ctx->base, COWSNAP_LOG_WARNING,
		"snapshot %llu is invalid: error %d at offset %llu", (unsigned long long)s->id,
		reason, (unsigned long long)s->reason_offset);
	tell(s->chain->ctx, &event);
}

void cs_event_snapshot(struct cowsnap_snapshot *s, enum cowsnap_event_type type, int reason)
{
	struct cowsnap_event event = {
		.type = type, .reason = reason, .store = s->chain->store, .snapshot = s};

	cs_log(&s->chain->ctx->base, reason ? COWSNAP_LOG_ERROR : COWSNAP_LOG_INFO,
		"snapshot %llu: merge %s, error %d", (unsigned long long)s->id,
		reason ? "stopped" : "finished", reason);
	tell(s->chain->ctx, &event);
}

void cs_chain_ghosted(struct cs_chain *chain)
{
	atomic_fetch_add_explicit(&chain->ghosted, 1, memory_order_relaxed);
	atomic_store_explicit(&chain->store->upper->reclaimable, true, memory_order_relaxed);
	/* A writer may be waiting for space that only this snapshot wanted. */
	cs_store_wake(chain->store);
}

/* Returns: false if it was dropped or invalid before. */
static bool make_invalid(struct cowsnap_snapshot *s, int reason, uint64_t offset, uint64_t length)
{
	int state;
	bool lost = false;

	cs_mutex_lock(&s->chain->ctx->admin);
	state = atomic_load_explicit(&s->state, memory_order_relaxed);
	/* Again if it becomes map-only meanwhile. */
	while (cs_snapshot_can_lose(s) && !lost) {
		s->reason = reason;
		s->reason_offset = offset;
		s->reason_length = length;
		/* Release: the reason; pairs with cs_snapshot_live. seq_cst: before the origin
		 * write that spoils the snapshot; pairs with
		 * cs_snapshot_state_error. */
		lost = atomic_compare_exchange_strong_explicit(&s->state, &state,
			COWSNAP_SNAPSHOT_INVALID, memory_order_seq_cst, memory_order_relaxed);
		if (!lost)
			s->reason = 0;
	}
	cs_mutex_unlock(&s->chain->ctx->admin);
	return lost;
}

/* It counted and does not any more. */
static void count_out(struct cowsnap_snapshot *s)
{
	atomic_fetch_sub_explicit(&s->chain->live, 1, memory_order_relaxed);
	cs_chain_ghosted(s->chain);
}

void cs_snapshot_lose(struct cowsnap_snapshot *s, int reason, uint64_t offset, uint64_t length)
{
	if (!make_invalid(s, reason, offset, length))
		return;
	count_out(s);
	tell_invalid(s, reason);
}

void cs_snapshot_found_invalid(struct cowsnap_snapshot *s)
{
	if (make_invalid(s, -EUCLEAN, 0, 0))
		count_out(s);
}

static bool dropped(const struct cowsnap_snapshot *s)
{
	return atomic_load_explicit(&s->state, memory_order_relaxed) == COWSNAP_SNAPSHOT_DROPPED;
}

/* Returns: the state before; -EBUSY: it is being merged, and stays so. */
static int set_dropped(struct cowsnap_snapshot *s, bool merging)
{
	int state = atomic_load_explicit(&s->state, memory_order_relaxed);

	do {
		if (state == COWSNAP_SNAPSHOT_MERGING && !merging)
			return -EBUSY;
		/* Release: pairs with cs_snapshot_live. seq_cst: pairs with begin_writing. */
	} while (!atomic_compare_exchange_weak_explicit(&s->state, &state, COWSNAP_SNAPSHOT_DROPPED,
		memory_order_seq_cst, memory_order_relaxed));
	return state;
}

static bool is_merging(const struct cowsnap_snapshot *s)
{
	return atomic_load_explicit(&s->state, memory_order_relaxed) == COWSNAP_SNAPSHOT_MERGING;
}

/* @record: the store is held, and given up here. Returns: the state before, or a negative errno:
 * then it is as it was. */
static int end_recorded(struct cowsnap_snapshot *s, bool record, bool merging)
{
	struct cowsnap_store *store = s->chain->store;
	int rc = 0;

	cs_mutex_lock(&store->upper->ending);
	/* Whoever was here before may have ended it, and the next have begun since. */
	if (dropped(s))
		rc = -EIDRM;
	else if (is_merging(s) && !merging)
		rc = -EBUSY;
	else if (record)
		rc = cs_store_drop_held(store);
	if (!rc)
		rc = set_dropped(s, merging);
	cs_mutex_unlock(&store->upper->ending);
	if (record)
		cs_store_unhold(store);
	return rc;
}

/* @before: what it was, or an error. */
static int ended(struct cowsnap_snapshot *s, int before)
{
	if (before < 0)
		return before;
	if (before == COWSNAP_SNAPSHOT_DROPPED)
		return -EIDRM;
	if (before != COWSNAP_SNAPSHOT_INVALID)
		count_out(s);
	else
		cs_chain_ghosted(s->chain);
	return 0;
}

int cs_snapshot_end(struct cowsnap_snapshot *s, bool record, bool merging)
{
	struct cowsnap_store *store = s->chain->store;
	int rc = 0;

	if (dropped(s))
		return -EIDRM;
	if (!cs_store_persistent(store))
		return ended(s, set_dropped(s, merging));
	/* First: who holds the store may be a queue of a thread that waits for the lock. */
	if (record)
		rc = cs_store_hold_waiting(store);
	return rc ? rc : ended(s, end_recorded(s, record, merging));
}

int cs_snapshot_end_held(struct cowsnap_snapshot *s, bool merging)
{
	return ended(s, end_recorded(s, true, merging));
}

int cs_snapshot_hand_over(struct cowsnap_snapshot *s)
{
	struct cs_mutex *ending = &s->chain->store->upper->ending;
	int state = COWSNAP_SNAPSHOT_ACTIVE;
	bool ended;

	/* With `ending`: a drop that has its record on the way ends first. */
	cs_mutex_lock(ending);
	/* Release: pairs with cs_snapshot_live. */
	ended = atomic_compare_exchange_strong_explicit(&s->state, &state, COWSNAP_SNAPSHOT_DROPPED,
		memory_order_acq_rel, memory_order_relaxed);
	cs_mutex_unlock(ending);
	if (!ended)
		return state == COWSNAP_SNAPSHOT_MERGING ? -EBUSY : -ENODATA;
	count_out(s);
	return 0;
}

bool cs_snapshot_await_writers(struct cowsnap_snapshot *s, uint64_t deadline_ns)
{
	struct cowsnap_store *store = s->chain->store;
	uint64_t epoch = cs_store_space_epoch(store);

	while (cs_snapshot_has_writers(s)) {
		struct cs_task task;

		cs_task_init(&task, NULL, NULL);
		task.deadline_ns = deadline_ns;
		if (cs_store_await_space(store, epoch, &task.waiter)) {
			cs_task_sleep(&task);
			if (task.timed_out && cs_store_forsake_space(store, &task.waiter))
				return false;
			if (task.timed_out)
				cs_task_sleep(&task); /* the wake is on its way */
		}
		epoch = cs_store_space_epoch(store);
	}
	return true;
}

/* ---- What a store has for level 3 ----------------------------------------------------------- */

int cs_store_upper_create(struct cowsnap_store *store)
{
	const struct cowsnap_allocator *alloc = store->base->alloc;
	struct cs_store_upper *upper = cs_alloc_zeroed(alloc, sizeof(*upper));
	int rc;

	if (!upper)
		return -ENOMEM;
	rc = cs_gate_init(&upper->reads, alloc, NULL);
	if (rc) {
		cs_free(alloc, upper, sizeof(*upper));
		return rc;
	}
	cs_mutex_init(&upper->ending);
	cs_mutex_init(&upper->reclaiming);
	store->upper = upper;
	return 0;
}

void cs_store_upper_destroy(struct cowsnap_store *store)
{
	const struct cowsnap_allocator *alloc = store->base->alloc;
	struct cs_store_upper *upper = store->upper;

	cs_mutex_fini(&upper->reclaiming);
	cs_mutex_fini(&upper->ending);
	cs_gate_fini(&upper->reads, alloc);
	cs_free(alloc, upper, sizeof(*upper));
	store->upper = NULL;
}
