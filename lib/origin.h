/* SPDX-License-Identifier: MIT
 *
 * Origins: the write bracket. origin.c has the fast way and the order of things; save.c copies what
 * has to be copied; trouble.c decides who loses when that fails; take.c changes what writes save.
 */
#ifndef CS_ORIGIN_H
#define CS_ORIGIN_H

#include <errno.h>

#include "chain.h"
#include "copier.h"
#include "dev.h"
#include "op.h"
#include "stats.h"

struct cs_save;

/* What brackets of an origin that is merged have done by merge.c. The steps end with CS_DONE. */
struct cs_merge_ops {
	/* It was begun in vain: who has entered with it enters anew. */
	bool (*taken_back)(const struct cs_merge *merge);
	bool (*is_settled)(const struct cs_merge *merge, uint64_t offset, uint64_t length);
	/* Makes the range whole chunks; before all else. */
	void (*widen)(struct cs_save *save);
	/* Before anything of the range is saved; and when all is. */
	enum cs_step (*prepare)(struct cs_save *save);
	enum cs_step (*settle)(struct cs_save *save);
};

struct cowsnap_origin {
	struct cs_handle handle;
	_Atomic uint64_t size_bytes;  /* may grow: cs_origin_size() */
	struct cs_chain *chains;      /* under ctx->admin */
	struct cs_chain *spare_chain; /* of no store, for the next one; under ctx->admin */
	struct cowsnap_device *device;
	/* What brackets of each slot save into; NULL: no snapshot. Set before the slot is switched
	 * to, kept until it is drained (cs_origin_sweep). */
	_Atomic(struct cs_heads *) heads[CS_GATE_SLOTS];
	uint32_t held; /* slots with heads, a bit each; under ctx->admin */

	/* Of the take in progress; under ctx->taking. */
	struct cowsnap_origin *plan_next;
	struct cs_heads *plan_heads;
	uint32_t plan_slot;
	uint32_t old_slot;
	bool planned;

	_Atomic(struct cs_merge *) merge; /* NULL: none */
	struct cs_merge *old_merges;      /* under ctx->admin */
	void (*free_merges)(struct cowsnap_origin *origin);

	/* To be pruned when the take in progress is over; under ctx->admin. */
	bool prune_queued;
	struct cowsnap_origin *prune_next;

	struct cowsnap_preimage preimage; /* for brackets that bring none; get NULL: none */
	struct cs_gate gate;              /* brackets; switches at ctx->epoch */
	struct cs_flow copies;            /* of its writers; in ctx->copier */
	struct cs_stats *stats;
	_Atomic uint32_t outside;    /* operations of queues that may come to the gate */
	struct cowsnap_origin *next; /* open ones of the context; under ctx->admin */
};

static inline uint64_t cs_origin_size(const struct cowsnap_origin *origin)
{
	return atomic_load_explicit(&origin->size_bytes, memory_order_relaxed);
}

static inline struct cs_merge *cs_origin_merge(const struct cowsnap_origin *origin)
{
	/* Acquire: pairs with set_origin_merge. */
	return atomic_load_explicit(&origin->merge, memory_order_acquire);
}

static inline struct cs_heads *cs_origin_heads(struct cowsnap_origin *origin, uint32_t slot)
{
	/* Acquire: pairs with cs_origin_set_heads. */
	return atomic_load_explicit(&origin->heads[slot], memory_order_acquire);
}

int cs_origin_init(struct cowsnap_origin *origin, struct cowsnap_device *device);
void cs_origin_fini(struct cowsnap_origin *origin);

/* What the slot's brackets save into; the slot takes over the caller's reference to @heads. Under
 * ctx->admin. */
void cs_origin_set_heads(struct cowsnap_origin *origin, uint32_t slot, struct cs_heads *heads);
/* Lets go of the heads of generations that have ended. Under ctx->admin. */
void cs_origin_sweep(struct cowsnap_origin *origin);
/* Stops saving into chains that have no live snapshot. May do nothing, if all slots are in use or
 * memory is short: the writers skip such chains anyway. Under ctx->admin; no take is under way, or
 * the caller is the one who takes and has planned nothing yet. */
void cs_origin_prune(struct cowsnap_origin *origin);
/* One of its snapshots is a ghost now: prunes, at once or after the take in progress. */
void cs_origin_lost_one(struct cowsnap_origin *origin);
/* The chain in @store, made if need be. Under ctx->admin. NULL: no memory. */
struct cs_chain *cs_origin_chain(struct cowsnap_origin *origin, struct cowsnap_store *store);
/* Gives up a chain that no snapshot is in and no bracket uses. Under ctx->admin. */
void cs_origin_forget_chain(struct cs_chain *chain);
/* May a bracket still save into this chain? Under ctx->admin. */
bool cs_origin_uses(struct cowsnap_origin *origin, const struct cs_chain *chain);
void cs_heads_put(struct cowsnap_ctx *ctx, struct cs_heads *heads);
struct cs_heads *cs_heads_create(struct cowsnap_ctx *ctx, size_t room);
/* Takes a reference to @newest, which goes with the heads. */
void cs_heads_add(struct cs_heads *heads, struct cs_chain *chain, struct cowsnap_snapshot *newest);

/* What one bracket knows of its difficulties, from round to round. */
struct cs_trouble {
	const struct cs_head *head; /* NULL: none in this round */
	uint64_t chunk;
	int reason;
	bool no_space;   /* the store had none; else a copy failed */
	bool unrecorded; /* nobody needs the chunk, but that it changes must be known */
	const struct cowsnap_store *full_told; /* the host was told of this one, in this bracket */
	uint64_t space_epoch;                  /* of the store, before it was asked for space */
	uint32_t asks;                         /* times that callbacks were asked */
	uint32_t failures;                     /* failed copies tried again */
	uint64_t since_ns;                     /* when the first difficulty arose; 0: none yet */
	uint64_t pause_until_ns;               /* of a failed copy */
};

#define CS_SAVE_JOBS    32u
#define CS_SAVE_COMMITS 8u
#define CS_SAVE_GIFTS   8u

/* A run of chunks that lies together in origin and store. */
struct cs_save_job {
	const struct cs_head *head;
	int error;
	bool low_water;   /* its space crossed the store's mark */
	bool zero;        /* the host says so: nothing is read */
	const void *data; /* the host has it: nothing is read; NULL: it is */
	uint64_t zeroes;  /* chunks that were found to be, and were not written; a bit each */
};

struct cs_save;

/* A write of what the host gave, for one job. */
struct cs_save_gift {
	struct cowsnap_io io;
	struct cs_save *save;
	size_t job;
};

/* One commit of a round. */
struct cs_save_commit {
	struct cowsnap_commit commit;
	struct cs_save *save;
	size_t first, end; /* jobs */
};

/* A bracket on its slow way: on the stack of a caller that waits, or a record of a queue. */
struct cs_save {
	struct cs_op *op;
	struct cs_heads *heads;
	enum cs_step (*step)(struct cs_save *save); /* the next one */
	/* Nobody writes: an error is only op->error, nobody loses, the gate is not left and nothing
	 * is recorded as changed that is not saved. */
	bool no_write;
	/* The end of one that was abandoned; NULL: that of its operation. */
	void (*abandoned)(struct cs_save *save);
	struct cs_trouble trouble;
	struct cs_credit credit;
	const struct cowsnap_preimage *preimage; /* NULL: nobody is asked */
	/* Of a round. */
	bool moving;                                 /* for a merge, which knows what it does */
	bool copy_ran;                               /* something was read */
	size_t giving;                               /* the next job to look at */
	uint32_t idle_gifts;                         /* a bit each */
	enum cs_step (*given)(struct cs_save *save); /* the step after */
	uint64_t began_ns;
	uint64_t budget; /* credits not yet spent */
	bool more;       /* credits or jobs ran out before the range did */
	struct cowsnap_map *busy_map;
	uint64_t busy_chunk;
	struct cowsnap_map_waiter busy;
	size_t count;
	struct cs_save_job job[CS_SAVE_JOBS];
	struct cowsnap_copy copy;
	struct cowsnap_copy_target target[CS_SAVE_JOBS];
	struct cowsnap_run run[CS_SAVE_JOBS];
	_Atomic uint32_t commits_open;
	struct cs_save_commit commits[CS_SAVE_COMMITS];
	struct cs_save_gift gift[CS_SAVE_GIFTS];
};

/* Begins the bracket of @op, which has its origin and range. Returns: true: it is open. False:
 * @save was set up to be run. */
bool cs_origin_begin_write(struct cs_op *op, struct cs_save *save);
/* An operation of a queue begins that is in the gate and out of it again. @origin is not closed
 * before it has gone. */
void cs_origin_comes(struct cowsnap_origin *origin);
void cs_origin_gone(struct cowsnap_origin *origin);

/* One that begins with @step; no bracket of the host's, and nothing is asked of it. @op has its
 * range. */
void cs_save_init(struct cs_save *save, struct cs_op *op, struct cs_heads *heads,
	enum cs_step (*step)(struct cs_save *save));
/* Goes on until it parks or is done: then op->error is 0 and the bracket is open, or an error and
 * the gate was left. */
enum cs_step cs_save_run(struct cs_save *save);
/* The gate was not entered yet, or left again: enters it and looks. */
enum cs_step cs_save_enter(struct cs_save *save);
/* The gate was entered, and the slow way is necessary. */
enum cs_step cs_save_look(struct cs_save *save);
/* Gives the bracket up. */
enum cs_step cs_save_fail(struct cs_save *save, int error);
/* Its waiter was taken out: ends the operation with -ECANCELED. */
void cs_save_abandoned(struct cs_save *save);
/* The wake of save->busy: the task goes on. */
void cs_save_busy_woken(struct cowsnap_map_waiter *waiter);
/* What the host knows of the first part of a run that is about to be copied: @run is cut to what
 * the answer is about, and the job has it. */
void cs_save_ask(struct cs_save *save, const struct cs_head *head, struct cs_save_job *job,
	struct cowsnap_run *run);
/* Does a job need no space: zeroes, where the store has a word for them? */
bool cs_save_spaceless(const struct cs_save_job *job);
/* Writes what the host has given; then goes on with @next. */
enum cs_step cs_save_give(struct cs_save *save, enum cs_step (*next)(struct cs_save *save));

/* Is nothing left to save of the range, for one head, for all? */
bool cs_head_done(const struct cs_head *head, uint64_t offset, uint64_t length);
bool cs_heads_done(const struct cs_heads *heads, uint64_t offset, uint64_t length);

/* record.c: the first difficulty, the first busy chunk of a round. */
void cs_save_note_trouble(
	struct cs_save *save, const struct cs_head *head, uint64_t chunk, int reason);
void cs_save_note_busy(struct cs_save *save, const struct cs_head *head, uint64_t chunk);
/* The chunks of the range: from *chunk on, before *end. */
static inline void cs_save_range(
	const struct cs_save *save, const struct cs_head *head, uint64_t *chunk, uint64_t *end)
{
	uint32_t shift = head->chain->store->chunk_shift;

	*chunk = save->op->offset >> shift;
	*end = ((save->op->offset + save->op->length - 1) >> shift) + 1;
	/* The origin may have grown since. */
	if (*end > cs_snapshot_chunks(head->newest))
		*end = cs_snapshot_chunks(head->newest);
	if (*chunk > *end)
		*chunk = *end;
}

/* Does anybody need a chunk that the newest map has not got? */
bool cs_save_needed(const struct cs_head *head, uint64_t chunk);
/* Goes to the next chunk of [*chunk, end) that somebody needs and that is not done, and records
 * those that nobody needs on the way. Returns: how many chunks follow without one of these; 0 at
 * the end, or in trouble. */
uint64_t cs_save_find_needed(
	struct cs_save *save, const struct cs_head *head, uint64_t *chunk, uint64_t end);

static inline uint64_t cs_save_needed_run(
	struct cs_save *save, const struct cs_head *head, uint64_t *chunk, uint64_t end)
{
	if (cs_likely(cs_snapshot_plain(head->newest)))
		return end - *chunk;
	return cs_save_find_needed(save, head, chunk, end);
}

/* Chunks that nobody needs (C5): bit i of @mask is @first + i, all in one group of 64. */
void cs_save_record(
	struct cs_save *save, const struct cs_head *head, uint64_t first, uint64_t mask);

static inline bool cs_save_chain_counts(const struct cs_chain *chain)
{
	/* Relaxed: who misses the end of the last snapshot copies once too often. */
	return atomic_load_explicit(&chain->live, memory_order_relaxed);
}

/* Is the range done when those chunks are recorded that nobody needs? Needs no credits. */
bool cs_save_record_unneeded(struct cs_save *save);

static inline bool cs_save_nothing_needed(struct cs_save *save)
{
	const struct cs_head *first = save->heads->head;

	/* The usual case: whatever it lacks is needed. */
	if (cs_likely(save->heads->count && cs_save_chain_counts(first->chain) &&
		      cs_snapshot_plain(first->newest)))
		return false;
	return cs_save_record_unneeded(save);
}

/* A chunk could not be saved: wait, ask, give up snapshots or the write, as their takers chose. No
 * claim and no credits are held. A step: it leads back to cs_save_look(), or fails. */
enum cs_step cs_trouble_resolve(struct cs_save *save);

/* The right to change heads and gates of origins (T1 of take.c). Returns: false: the caller has it.
 * True: it has it when @waiter is woken. It ends with cs_turn_end(). */
bool cs_turn_await(struct cowsnap_ctx *ctx, struct cs_waiter *waiter);
/* Waits no longer. Returns: false if the turn is the caller's, once its wake has come. */
bool cs_turn_forsake(struct cowsnap_ctx *ctx, struct cs_waiter *waiter);
/* For a thread that may sleep. Returns: false if @deadline_ns passed first. */
bool cs_turn_wait(struct cowsnap_ctx *ctx, uint64_t deadline_ns);
void cs_turn_end(struct cowsnap_ctx *ctx);

/* A wait for what dropped snapshots of a store left. */
struct cs_ghosts {
	struct cowsnap_store *store;
	struct cs_gate *gate; /* where it waits; NULL: for readers */
};

/* Reclaims what can be; in a turn. Returns: true: @waiter will be woken when more can be. False:
 * nothing is held up, or so it may be: look. */
bool cs_ghosts_await(struct cs_ghosts *ghosts, struct cs_waiter *waiter);
/* The end of each wait, in a turn or not; first, if it is cut short, the waiter is taken out.
 * Forsake returns: false if the wake has come or is on its way. */
bool cs_ghosts_forsake(const struct cs_ghosts *ghosts, struct cs_waiter *waiter);
void cs_ghosts_awaited(const struct cs_ghosts *ghosts);

/* How a snapshot comes that its store has already: load fills its map, with I/O. */
struct cs_attach {
	int (*load)(void *user, struct cowsnap_map *map);
	void *user;
};

/* As a take of one entry, but for a snapshot that is there. -EBUSY: a bracket of the origin has
 * begun before. */
int cs_take_attach(
	struct cowsnap_ctx *ctx, struct cowsnap_take_entry *entry, const struct cs_attach *attach);

/* Frees what dropped snapshots of @store left; at most about *max_chunks exceptions, which it
 * counts down. The caller has locked upper->reclaiming; this unlocks it. Returns: is there more
 * that can be done? */
bool cs_reclaim_locked_store(struct cowsnap_store *store, uint64_t *max_chunks)
	CS_RELEASE(store->upper->reclaiming);
/* The same for a writer that finds the store full: a bounded step; waits for a thread that is at
 * it, which never waits for a writer. Returns: is it worth looking for space again? */
bool cs_reclaim_for_space(struct cowsnap_store *store);
/* The same again and again, but not for ever, until there is space, which it takes. */
int cs_reclaim_make_space(
	struct cowsnap_store *store, uint64_t want, struct cowsnap_run *run, bool *low_water);
/* Space for a run, if need be from what dropped snapshots left. Not for ever: others may be as
 * quick to use what was freed, and the caller holds a claim. Returns: as cs_store_alloc(). */
static inline int cs_reclaim_get_space(struct cowsnap_store *store, const struct cowsnap_run *want,
	struct cowsnap_run *run, bool *low_water)
{
	int rc = cs_store_alloc(store, want->count, &run->location, &run->count, low_water);

	run->first = want->first;
	if (cs_likely(rc != -ENOSPC))
		return rc;
	return cs_reclaim_make_space(store, want->count, run, low_water);
}

/* @snapshot has released chunks @first to @end - 1: gives back what nobody else needs. */
void cs_reclaim_released(struct cowsnap_snapshot *snapshot, uint64_t first, uint64_t end);

/* As cs_store_await_space(), for a writer who wants space that only a reader may hold back: it is
 * freed by that reader when he leaves, if he sees that somebody waits; else the look at limbo here
 * comes after he left. The end of each wait is told by cs_reclaim_awaited(). */
bool cs_reclaim_await(struct cowsnap_store *store, uint64_t seen_epoch, struct cs_waiter *waiter);
void cs_reclaim_awaited(struct cowsnap_store *store);

/* Is there something that could not be reclaimed yet, or was not tried? */
bool cs_reclaim_left(const struct cowsnap_store *store);
/* All that can be done, for a caller that has locked upper->reclaiming. */
void cs_reclaim_everything(struct cowsnap_store *store) CS_REQUIRES(store->upper->reclaiming);

/* To be called by whoever has left a store's read gate: a writer may be waiting for space that only
 * this reader held back. */
static inline void cs_reclaim_after_reading(struct cowsnap_store *store)
{
	/* seq_cst, after leaving the gate; pairs with cs_reclaim_await. */
	if (cs_unlikely(atomic_load_explicit(&store->upper->limbo_waiters, memory_order_seq_cst)))
		cs_reclaim_for_space(store);
}
int cs_reclaim_init(struct cowsnap_store *store); /* 0, -ENOMEM */
void cs_reclaim_fini(struct cowsnap_store *store);

#endif
