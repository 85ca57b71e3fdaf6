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
 *  C5 COWSNAP_LOCATION_NONE in a map: no live snapshot needs this chunk from here; each that is
 *     this old has the chunk in an older map.
 *
 * Locking: the links, `next_*` and `live` change under ctx->admin. `newest` and `older` are read
 * without it inside the store's read gate or an origin's bracket.
 *
 * Failure: a snapshot that loses a preimage becomes invalid for good, with its reason; the others
 * of its chain stay what they are.
 */
#ifndef CS_CHAIN_H
#define CS_CHAIN_H

#include "ctx.h"
#include "gate.h"
#include "map.h"
#include "stats.h"
#include "store.h"

struct cowsnap_origin;
struct cs_chain;

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
	_Atomic uint32_t live;      /* ACTIVE snapshots; 0: writers need not save anything */
	_Atomic uint32_t ghosted;   /* snapshots that have become ghosts */
	bool pinned;                /* a reclaimer is at it; under ctx->admin */
	_Atomic uint32_t snapshots; /* that exist, linked or only held by the host */
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

/* Does a live snapshot need this chunk saved, given that @newest is where it would go and has not
 * got it? Inside a bracket. */
bool cs_chain_needs(
	const struct cs_chain *chain, const struct cowsnap_snapshot *newest, uint64_t chunk);

/* Calls @visit for each live snapshot that needs @chunk saved into @newest. Inside a bracket. */
void cs_chain_each_needing(struct cowsnap_snapshot *newest, uint64_t chunk,
	void (*visit)(void *user, struct cowsnap_snapshot *snapshot), void *user);

struct cowsnap_snapshot *cs_snapshot_create(
	struct cs_chain *chain, uint64_t size_bytes, const struct cowsnap_take_entry *entry);
void cs_snapshot_put(struct cowsnap_snapshot *snapshot);
/* Gives a live snapshot up for @reason, which its store has recorded; tells the host. Inside a
 * bracket. */
void cs_snapshot_lose(
	struct cowsnap_snapshot *snapshot, int reason, uint64_t offset, uint64_t length);
/* Its store said at open that it is invalid. */
void cs_snapshot_found_invalid(struct cowsnap_snapshot *snapshot);
/* No longer a snapshot. @record: a persistent store makes that durable first. Returns: 0, -EIDRM,
 * or the error of the store: then it is as before. */
int cs_snapshot_end(struct cowsnap_snapshot *snapshot, bool record);

/* A snapshot of the chain has become a ghost: there may be something to reclaim. */
void cs_chain_ghosted(struct cs_chain *chain);

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
