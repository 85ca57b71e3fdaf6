/* SPDX-License-Identifier: MIT
 *
 * Chains: the snapshots of one origin in one store, oldest to newest, and what is known about them.
 *
 * An origin write is saved once, into the map of the *newest* snapshot of each chain. An older one
 * finds it there on its way, because between its take and the newer one's nothing was written to a
 * chunk that the older map does not have. A dropped or invalid snapshot stays in the chain as a
 * *ghost* for as long as its map is the newest or an older live snapshot can reach something in it.
 *
 *     origin --+-- chain (store 1):  newest -> older -> ... -> oldest
 *              +-- chain (store 2):  newest -> ...
 *
 * Invariants:
 *  C1 Only the newest map of a chain is claimed and published into by writers; all others change
 *     only in reclaim.c, by one thread at a time (store->upper->reclaiming).
 *  C2 What a chunk was at snapshot s is: the location in the *oldest* map among s .. newest that
 *     has the chunk; if none has it, the origin's content.
 *
 *  C3 Reclaiming moves an exception to an older map only, and publishes it there before it removes
 *     it from the newer one. So a search that goes from newest to s and keeps its last hit cannot
 *     miss one.
 *
 *  C4 A snapshot that was unlinked, and space that was given up, are freed only after everyone who
 *     was inside the store's read gate then has left it.
 *
 *  C5 A chunk whose bit is in s->changed, or that is COWSNAP_LOCATION_NONE in its map (where there
 *     was no memory for the bit): it was written while s was the newest, and no snapshot as old as
 *     s or older will ever need its preimage from here: each either has it in s's map or an older
 *     one, or does not need it. So for a bracket it is done, as if it were in the map.
 *
 *  C6 A snapshot *needs* a chunk if it is live and has not released it. That is only ever lost:
 *     who finds that nobody needs a chunk may act on that later, and without a claim.
 *
 *  C7 Since snapshot s those chunks have changed that are in the map or the changed bits of one
 *     among s .. newest. What leaves a map is before that in the map or the bits of the same
 *     snapshot, or, where that one is a ghost, of the next older one. So a search that goes from
 *     newest to s cannot miss one. This holds for each s that is live or map-only.
 *
 *  C8 Of the chunks behind its end, because its origin has grown since, a snapshot needs and knows
 *     nothing. None is longer than a newer one of its chain.
 *
 * A *map-only* snapshot says what has changed (C7) and has no data: for reclaiming it is a ghost,
 * for brackets it keeps the chain going.
 *
 * Locking: the links, `next_*` and `live` change under ctx->admin. `newest` and `older` are read
 * without it inside the store's read gate or an origin's bracket, or under upper->reclaiming. Bits
 * of `changed` and `released` are set by any thread, inside one of these.
 *
 * Failure: a snapshot that loses a preimage becomes invalid for good, with its reason; the others
 * of its chain stay what they are.
 */
#ifndef CS_CHAIN_H
#define CS_CHAIN_H

#include "bits.h"
#include "ctx.h"
#include "gate.h"
#include "map.h"
#include "stats.h"
#include "store.h"

struct cowsnap_origin;
struct cs_chain;
struct cs_merge;
struct cs_merge_ops;

/* What a bracket of one generation must save into: for each chain, its newest snapshot then. */
struct cs_head {
	struct cs_chain *chain;
	struct cowsnap_snapshot *newest;
};

struct cs_heads {
	uint64_t epoch; /* of the take that made it */
	atomic_bool withdrawn;
	uint32_t refs;                  /* slots that hold it; under ctx->admin */
	struct cowsnap_snapshot *owner; /* it is inside this snapshot; NULL: allocated */
	struct cs_merge
		*merge; /* of the origin, while brackets of this generation enter; or NULL */
	const struct cs_merge_ops *merge_ops; /* with it; origin.h */
	size_t count;
	size_t room; /* heads allocated */
	struct cs_head *head;
};

struct cowsnap_snapshot {
	struct cs_chain *chain; /* lives as long as this: chain->snapshots */
	_Atomic(struct cowsnap_snapshot *) older;
	_Atomic uint32_t refs;    /* the host's, the chain's, those of heads inside it */
	_Atomic int state;        /* enum cowsnap_snapshot_state */
	_Atomic uint32_t scanned; /* as newest ghost: at this count of chain->ghosted nothing
				   * unreachable was left in it; reclaim.c */
	bool map_freed;           /* reclaim.c */
	atomic_bool unlinked;     /* reclaim.c: the map is going */
	struct cowsnap_snapshot *limbo_next;
	uint64_t id;
	uint64_t size_bytes;

	int reason; /* of being invalid; under ctx->admin */
	uint64_t reason_offset;
	uint64_t reason_length;

	enum cowsnap_loser on_full;
	uint64_t wait_ns;
	enum cowsnap_decision (*decide)(void *user, const struct cowsnap_trouble *trouble);
	void *user;

	struct cowsnap_map map;
	struct cs_bits changed;  /* C5 */
	struct cs_bits released; /* by the host: read, and not needed any more */
	/* What was written to this snapshot, for it alone: found before the chain's maps. NONE: it
	 * was, and is not kept any more. Not in stores of a single snapshot. */
	struct cowsnap_map own;
	struct cowsnap_map rewriting; /* claims of chunks that get space of their own */
	_Atomic uint32_t writers;     /* to it, under way; snapshot_write.c */
	atomic_bool overflowed;       /* the last of them that wanted space found none */
	atomic_bool detaching;        /* a call is at it; detach.c */
	atomic_bool detached;         /* it needs its origin no more */
	uint64_t detach_next;         /* chunk; of who is detaching */
	atomic_bool written;          /* `map` may have what was written to it, beside preimages */
	struct cs_heads solo; /* the heads of its origin, where this chain is the only one */
	struct cs_head solo_head;
};

struct cs_chain {
	struct cowsnap_ctx *ctx;
	struct cowsnap_origin *origin;
	struct cowsnap_device *device; /* the origin's */
	struct cs_stats *stats;        /* the origin's */
	struct cowsnap_store *store;
	struct cs_chain *next_of_origin;
	struct cs_chain *next_of_store;
	_Atomic(struct cowsnap_snapshot *) newest;
	_Atomic uint32_t live;    /* that are neither dropped nor invalid; 0: writers need not save
				     * or record anything */
	_Atomic uint32_t ghosted; /* moments at which some snapshot came to need less */
	bool pinned;              /* a reclaimer is at it; under ctx->admin */
	bool merging;             /* nothing is reclaimed: one is merged; under upper->reclaiming */
	bool kept;                /* its newest map is being read, live or not; under ctx->admin */
	_Atomic uint32_t snapshots;               /* that exist, linked or only held by the host */
	_Atomic(struct cowsnap_snapshot *) spare; /* memory for the next one */
	struct cowsnap_snapshot *taken;           /* by the take in progress; under ctx->taking */
};

/* What level 3 keeps for a store. */
struct cs_store_upper {
	struct cowsnap_store *store;
	struct cs_store_upper *next; /* of the context; under ctx->admin */
	uint64_t id;                 /* rising */
	struct cs_gate reads;        /* snapshot reads; see C4 */
	struct cs_chain *chains;     /* under ctx->admin */
	/* Of a persistent store: held while it records a drop and the state changes, so that a
	 * second drop cannot meet the next snapshot. Nobody else waits for it. */
	struct cs_mutex ending;
	struct cs_mutex reclaiming;
	struct cs_limbo *limbo; /* under reclaiming; see reclaim.c */
	_Atomic uint64_t limbo_chunks;
	_Atomic uint32_t limbo_waiters; /* writers for whom a leaving reader empties limbo */
	_Atomic bool reclaimable; /* something was dropped since reclaiming last came to an end */
};

static inline bool cs_snapshot_live(const struct cowsnap_snapshot *s)
{
	/* Acquire: pairs with cs_snapshot_lose and cowsnap_snapshot_drop. */
	return atomic_load_explicit(&s->state, memory_order_acquire) == COWSNAP_SNAPSHOT_ACTIVE;
}

/* Returns: 0; why the content of a snapshot in this state is not to be had. */
static inline int cs_snapshot_state_error(const struct cowsnap_snapshot *s)
{
	/* seq_cst: after data was read; pairs with cs_snapshot_lose. And after being counted as
	 * somebody who writes to it; pairs with busy_elsewhere. */
	switch (atomic_load_explicit(&s->state, memory_order_seq_cst)) {
	case COWSNAP_SNAPSHOT_ACTIVE:
		return 0;
	case COWSNAP_SNAPSHOT_INVALID:
		return -ESTALE;
	case COWSNAP_SNAPSHOT_MAP_ONLY:
		return -ENODATA;
	case COWSNAP_SNAPSHOT_MERGING:
		return -EBUSY;
	default:
		return -EIDRM;
	}
}

/* Does it need to be told of writes: live, map-only or being merged? */
static inline bool cs_snapshot_counts(const struct cowsnap_snapshot *s)
{
	/* Acquire: pairs with cs_snapshot_lose and cowsnap_snapshot_drop. */
	int state = atomic_load_explicit(&s->state, memory_order_acquire);

	return state != COWSNAP_SNAPSHOT_INVALID && state != COWSNAP_SNAPSHOT_DROPPED;
}

/* How many chunks the image of a snapshot has. */
static inline uint64_t cs_snapshot_chunks(const struct cowsnap_snapshot *s)
{
	return ((s->size_bytes - 1) >> s->chain->store->chunk_shift) + 1;
}

/* Those of these chunks that the image of @s has: its origin may have grown since (C8). */
static inline uint64_t cs_snapshot_inside_mask(
	const struct cowsnap_snapshot *s, uint64_t first, unsigned count)
{
	uint64_t chunks = cs_snapshot_chunks(s);

	if (first >= chunks)
		return 0;
	if (count > chunks - first)
		count = (unsigned)(chunks - first);
	return ~UINT64_C(0) >> (64 - count);
}

/* C6: a bit for each of these chunks that @s needs; they are of one group of 64. */
static inline uint64_t cs_snapshot_needs_mask(
	const struct cowsnap_snapshot *s, uint64_t first, unsigned count)
{
	uint64_t all = cs_snapshot_inside_mask(s, first, count);

	if (!cs_snapshot_live(s))
		return 0;
	if (cs_likely(!cs_bits_any(&s->released)))
		return all;
	return all & ~cs_bits_window(&s->released, first, count);
}

static inline bool cs_snapshot_needs(const struct cowsnap_snapshot *s, uint64_t chunk)
{
	return cs_snapshot_needs_mask(s, chunk, 1);
}

/* Is all that its map lacks to be saved, without a look at single chunks? */
static inline bool cs_snapshot_plain(const struct cowsnap_snapshot *s)
{
	return cs_snapshot_live(s) && !cs_bits_any(&s->changed) && !cs_bits_any(&s->released);
}

/* Of these chunks, of one group of 64, those that are done: a bit each. The map first: what leaves
 * it has its bit before that. */
static inline uint64_t cs_snapshot_done_mask(
	const struct cowsnap_snapshot *s, uint64_t first, unsigned count)
{
	uint64_t mask = cs_map_done_mask(&s->map, first, count);

	return cs_bits_any(&s->changed) ? mask | cs_bits_window(&s->changed, first, count) : mask;
}

/* Has it data of its own that must stay: live, or being merged? */
static inline bool cs_snapshot_keeps(const struct cowsnap_snapshot *s)
{
	/* Acquire: pairs with cs_snapshot_lose and cowsnap_snapshot_drop. */
	int state = atomic_load_explicit(&s->state, memory_order_acquire);

	return state == COWSNAP_SNAPSHOT_ACTIVE || state == COWSNAP_SNAPSHOT_MERGING;
}

/* May it be given up: live or map-only? */
static inline bool cs_snapshot_can_lose(const struct cowsnap_snapshot *s)
{
	/* Acquire: pairs with cs_snapshot_lose and cowsnap_snapshot_drop. */
	int state = atomic_load_explicit(&s->state, memory_order_acquire);

	return state == COWSNAP_SNAPSHOT_ACTIVE || state == COWSNAP_SNAPSHOT_MAP_ONLY;
}

static inline uint64_t cs_snapshot_map_bytes(const struct cowsnap_snapshot *s)
{
	return cowsnap_map_memory(&s->map) + cowsnap_map_memory(&s->own) - sizeof(s->own) +
	       cs_bits_memory(&s->changed) + cs_bits_memory(&s->released);
}

/* How many of the chunks from @chunk on, and before @end, are in its group of 64. */
static inline unsigned cs_window_count(uint64_t chunk, uint64_t end)
{
	uint64_t in_group = 64 - chunk % 64;

	return (unsigned)(end - chunk < in_group ? end - chunk : in_group);
}

/* A reference to a snapshot of a take in progress, which no other thread counts for. */
static inline void cs_snapshot_ref_unshared(struct cowsnap_snapshot *s)
{
	uint32_t refs = atomic_load_explicit(&s->refs, memory_order_relaxed);

	atomic_store_explicit(&s->refs, refs + 1, memory_order_relaxed);
}

static inline struct cowsnap_snapshot *cs_snapshot_older(const struct cowsnap_snapshot *s)
{
	/* Acquire: pairs with cs_chain_link and with the unlinking in reclaim.c. */
	return atomic_load_explicit(&s->older, memory_order_acquire);
}

static inline struct cowsnap_snapshot *cs_chain_newest(const struct cs_chain *chain)
{
	/* Acquire: pairs with cs_chain_link. */
	return atomic_load_explicit(&chain->newest, memory_order_acquire);
}

int cs_store_upper_create(struct cowsnap_store *store);
void cs_store_upper_destroy(struct cowsnap_store *store);

/* An empty chain of no store; the caller fills in the origin's side. It comes with the memory of
 * its first snapshot, and keeps that of its last, so that takes need not ask for any. NULL: no
 * memory. */
struct cs_chain *cs_chain_create(struct cowsnap_ctx *ctx);
/* Frees a chain that is in no store; NULL is accepted. */
void cs_chain_destroy(struct cs_chain *chain);
/* Puts a chain into a store, or takes it out: no snapshot is in it. Under ctx->admin. */
void cs_chain_attach(struct cs_chain *chain, struct cowsnap_store *store);
void cs_chain_detach(struct cs_chain *chain);
/* Makes @snapshot the newest. Under ctx->admin. */
void cs_chain_link(struct cs_chain *chain, struct cowsnap_snapshot *snapshot);
static inline bool cs_snapshot_scanned(const struct cowsnap_snapshot *ghost)
{
	return atomic_load_explicit(&ghost->scanned, memory_order_relaxed) ==
	       atomic_load_explicit(&ghost->chain->ghosted, memory_order_relaxed);
}

/* Has nobody a snapshot of this chain? */
static inline bool cs_chain_idle(const struct cs_chain *chain)
{
	/* Acquire: pairs with cs_snapshot_put. */
	return atomic_load_explicit(&chain->snapshots, memory_order_acquire) == 0;
}

/* Of these chunks, of one group of 64, those that some snapshot needs from the map of @snapshot,
 * given that this has not got them: @snapshot itself, or an older one. Inside the store's read
 * gate, or under upper->reclaiming. */
uint64_t cs_chain_needs_mask(
	const struct cowsnap_snapshot *snapshot, uint64_t first, unsigned count);
/* The same for one chunk and the newest snapshot, inside a bracket. */
bool cs_chain_needs(
	const struct cs_chain *chain, const struct cowsnap_snapshot *newest, uint64_t chunk);

/* Calls @visit for each snapshot that needs @chunk saved into @newest; @recorded: for each that
 * needs to know at least that it has changed. Inside the store's read gate. */
void cs_chain_each_needing(struct cowsnap_snapshot *newest, uint64_t chunk, bool recorded,
	void (*visit)(void *user, struct cowsnap_snapshot *snapshot), void *user);

/* Frees maps and bits of a snapshot in which nobody looks any more. */
void cs_snapshot_free_maps(struct cowsnap_snapshot *snapshot);

struct cowsnap_snapshot *cs_snapshot_create(
	struct cs_chain *chain, uint64_t size_bytes, const struct cowsnap_take_entry *entry);
void cs_snapshot_put(struct cowsnap_snapshot *snapshot);
/* Gives a snapshot up for @reason, which its store has recorded; tells the host. Inside a
 * bracket. */
void cs_snapshot_lose(
	struct cowsnap_snapshot *snapshot, int reason, uint64_t offset, uint64_t length);
/* Its store said at open that it is invalid. */
void cs_snapshot_found_invalid(struct cowsnap_snapshot *snapshot);
/* No longer a snapshot. @record: a persistent store makes that durable first. @merging: also if it
 * is being merged. Returns: 0, -EIDRM, -EBUSY (it is), or the error of the store: then it is as
 * before. */
int cs_snapshot_end(struct cowsnap_snapshot *snapshot, bool record, bool merging);
/* The same, recorded, for who holds its persistent store, which is given up. */
int cs_snapshot_end_held(struct cowsnap_snapshot *snapshot, bool merging);

/* The same of one that is live, and without a record: somebody else goes on with it. Returns: 0;
 * -EBUSY (being merged), -ENODATA (not live). */
int cs_snapshot_hand_over(struct cowsnap_snapshot *snapshot);

/* Is somebody writing to a snapshot that lets no more begin? The last one wakes the store. */
static inline bool cs_snapshot_has_writers(const struct cowsnap_snapshot *snapshot)
{
	/* seq_cst, after the state; pairs with begin_writing. */
	return atomic_load_explicit(&snapshot->writers, memory_order_seq_cst) > 0;
}

/* Waits for writes to a snapshot that lets no more begin. Returns: false: there are some still. */
bool cs_snapshot_await_writers(struct cowsnap_snapshot *snapshot, uint64_t deadline_ns);

/* A snapshot of the chain has become a ghost: there may be something to reclaim. */
void cs_chain_ghosted(struct cs_chain *chain);

/* Tells the host of the end of a merge. */
void cs_event_snapshot(struct cowsnap_snapshot *snapshot, enum cowsnap_event_type type, int reason);
/* Tells the host that the store is low or full. */
void cs_event_store(struct cowsnap_store *store, enum cowsnap_event_type type, int reason);

/*
 * For @count (1 to 64) chunks from @first, all in one leaf: which are saved for @snapshot, and
 * where. Inside the store's read gate. By C2 and C3, from newest to @snapshot.
 */
uint64_t cs_snapshot_window(const struct cowsnap_snapshot *snapshot, uint64_t first, unsigned count,
	uint64_t locations[64]);

/* As the public functions of the same name; afterwards the caller looks whether a writer waits for
 * this reader to leave. */
int cs_snapshot_read(
	struct cowsnap_snapshot *snapshot, void *buffer, uint64_t offset, uint64_t length);
int cs_snapshot_extent(struct cowsnap_snapshot *snapshot, uint64_t offset, uint64_t limit,
	struct cowsnap_extent *extent);

#endif
