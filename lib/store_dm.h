/* SPDX-License-Identifier: MIT
 *
 * The persistent store: dm-snapshot's format (format_dm.h, docs/design/dm-format.md) behind the
 * table of a store. store_dm.c has its space, its header and its life; store_dm_queue.c the queue
 * of commits and who leads; store_dm_group.c writes a group of records, and has the flushes;
 * store_dm_merge.c takes records off the end; store_dm_load.c reads a device; store_dm_state.c
 * hands one over.
 *
 * Invariants:
 *  D1 A chunk is given out once until it is freed, and freed only when no durable record names it,
 *     or nothing will ever read the records again (dropped, invalid, broken).
 *  D2 Each record has a chunk of its own, and the limit is no more than the records that fit with
 *     their terminator: so there is a slot for each record, and only alloc says -ENOSPC.
 *  D3 On the device, slots from `end` on in the area of `end` are zero, but while a group is being
 *     written. A crash that leaves it otherwise is mended at open.
 *  D4 The header on the device says VALID only if area 0 was durable before; it goes VALID ->
 *     INVALID -> none or VALID -> none, and back to VALID only by begin().
 *  D5 Whoever is told that a commit is done has its data and its record durable. Whoever is told
 *     that it failed has no record on the device, or the store is broken and writes no more.
 *
 * Locking: space_lock, queue_lock, hold_lock, one at a time and never over I/O; header_lock over
 * the I/O of the header, perhaps with hold_lock under it. Over a flush, and over a change of the
 * header if that needs one, the device is *held* (cs_dm_hold), which is no lock: who cannot have it
 * leaves a waiter. Nobody waits for it under a lock: a chain that holds it goes on only when its
 * queue is polled. Why one flush at a time: a device says once that its cache was lost,
 * and not always to who wrote what is lost, so who flushes next must see that the store is broken.
 *
 * Failure: see store_dm_group.c for a failed group. A store is *broken* when it cannot know what
 * its device holds: each alloc and commit fails from then on with the error that broke it, until
 * the snapshot is dropped and another begins.
 */
#ifndef CS_STORE_DM_H
#define CS_STORE_DM_H

#include "format_dm.h"
#include "map.h"
#include "runs.h"
#include "store.h"

#define CS_DM_FLUSHES_TIMED  4u /* that are remembered */
#define CS_DM_QUICK_FLUSH_NS UINT64_C(10000)
#define CS_DM_GROUP_RECORDS  4096u /* at most */
#define CS_DM_MARKS          3u    /* store_dm_state.c */
#define CS_DM_TAILS          16u   /* areas whose records are read at once */

enum cs_dm_header {
	CS_DM_NONE, /* no snapshot */
	CS_DM_VALID,
	CS_DM_INVALID,
};

/* A commit in the queue: what its words hold. */
struct cs_dm_waiting {
	struct cowsnap_commit *commit;
	struct cs_dm_waiting *next; /* in the queue; then among those to be woken */
	uint64_t flushes_seen;      /* flushes_begun when it was queued */
	uint64_t total;             /* records */
	uint64_t left;              /* of these, not on the device yet */
	size_t run;                 /* where those begin */
	uint64_t in_run;
	struct cs_event event; /* of a thread: it is finished, or leads */
	bool leads;
	bool finished;
	int error;
};
_Static_assert(
	sizeof(struct cs_dm_waiting) <= sizeof(((struct cowsnap_commit *)NULL)->words), "it fits");

/* Records that are written together. */
struct cs_dm_group {
	uint64_t area;
	uint64_t slot;
	uint64_t records;
	bool fills;       /* the area */
	uint64_t flush;   /* number of the one before the records; 0: none */
	uint64_t flushed; /* number of the last one that ended well; 0: none */
	int error;
};

/* What is wiped of one that failed: @bytes from @offset on, but for the first @keep. */
struct cs_dm_erase {
	uint64_t offset;
	uint64_t bytes;
	uint64_t keep;
};

/* store_dm_merge.c: records at the end of an area, and the blocks that hold them. */
struct cs_dm_tail {
	uint64_t first; /* record */
	uint64_t records;
	uint64_t offset; /* of the blocks, on the device */
	uint64_t bytes;
	uint8_t *blocks;
	uint8_t *slots; /* in these */
	struct cowsnap_io io;
};

struct cs_dm {
	const struct cs_base *base;
	struct cowsnap_device *device;
	uint32_t chunk_shift;
	uint32_t block_bytes;             /* what is written of the header and of an area at once */
	struct cs_format_dm_layout shape; /* of a device as long as can be: does not change */
	_Atomic int broken; /* 0, or the error after which nothing is written any more */

	struct cs_mutex space_lock;
	struct cs_format_dm_layout layout; /* grows with the device */
	struct cs_runs freed;              /* chunks below fresh that are not in use */
	uint64_t lowest;                   /* none below it is freed */
	uint64_t fresh;                    /* from here on no chunk was ever given out */
	_Atomic uint64_t used;             /* chunks; written under space_lock */
	_Atomic uint64_t limit;            /* the same */

	struct cs_mutex header_lock; /* held over the I/O of the header */
	enum cs_dm_header header;
	uint64_t generation;
	bool exported; /* the device is another's: nothing is written any more */
	uint8_t *header_block;

	_Atomic uint32_t hold; /* store_dm_group.c */
	struct cs_mutex hold_lock;
	struct cs_waitlist hold_list; /* under hold_lock: who waits to hold the device */
	/* The holder's alone. */
	uint64_t flush_took_ns[CS_DM_FLUSHES_TIMED];
	unsigned flushes_timed;

	struct cs_mutex queue_lock;
	struct cs_dm_waiting *first, **last;
	uint64_t queued;           /* commits in the queue */
	uint64_t active;           /* that were under way when the last group ended */
	bool open;                 /* there is, or was, a snapshot to record for */
	bool leading;              /* somebody leads */
	bool gathering;            /* and has parked to wait for others */
	uint64_t flushes_begun;    /* the number of the newest flush */
	uint64_t flushed;          /* that of the newest one that ended well */
	_Atomic uint64_t flush_ns; /* how long one takes, about */

	/* The leader's alone. */
	_Atomic uintptr_t chain_thread; /* on which a chain ran last; 0: no chain leads */
	struct cs_task task;            /* without a queue: a thread leads */
	const struct cs_dm_waiting *me; /* of the thread; NULL: a chain leads */
	enum cs_step (*step)(struct cs_dm *dm);
	enum cs_step (*after)(struct cs_dm *dm);   /* a flush, or zeroes */
	enum cs_step (*durable)(struct cs_dm *dm); /* what was written */
	struct cowsnap_io io;
	int result; /* of the last request */
	struct cs_dm_group group;
	struct cs_dm_erase erase;
	uint64_t zero_offset, zero_bytes; /* still to be written */
	uint64_t flush;                   /* number */
	uint64_t flush_began_ns;          /* 0: it is not timed */
	uint64_t gather_seen;             /* queued when it last looked */
	uint64_t gather_end_ns;
	uint64_t group_began_ns;
	unsigned extra_groups;
	uint64_t end;    /* records on the device */
	uint64_t acked;  /* of these, those whose commits are done */
	uint8_t *blocks; /* room for a group; the first block is as on the device up to `end` */
	size_t blocks_bytes;
	/* The same, while it answers a merge: store_dm_merge.c. */
	struct cowsnap_newest *newest;
	struct cowsnap_commit *forgets;
	struct cs_dm_tail tail[CS_DM_TAILS];
	unsigned tails;
	unsigned reads_open;
	int error;
	/* store_dm_state.c: of an export. */
	uint64_t marks[CS_DM_MARKS];
	uint64_t *part;
};

static inline uint64_t cs_dm_chunk_bytes(const struct cs_dm *dm)
{
	return UINT64_C(1) << dm->chunk_shift;
}

/* Where slot 0 of an area is. */
static inline uint64_t cs_dm_area_offset(const struct cs_dm *dm, uint64_t area)
{
	return (1 + area * (dm->shape.area_records + 1)) << dm->chunk_shift;
}

/* Do these chunks, of a device of @chunks, hold data and nothing else? */
static inline bool cs_dm_data_run(
	const struct cs_dm *dm, uint64_t chunks, uint64_t location, uint64_t count)
{
	uint64_t stripe = dm->shape.area_records + 1;

	/* Chunk 0 is the header, 1 + n stripes an area; behind each come the data chunks. */
	if (location < 2 || location >= chunks || !count || count > chunks - location)
		return false;
	return (location - 1) % stripe && count <= stripe - (location - 1) % stripe;
}

static inline int cs_dm_broken(const struct cs_dm *dm)
{
	return atomic_load_explicit(&dm->broken, memory_order_relaxed);
}

/* Is it not worth while to sleep while somebody flushes? */
static inline bool cs_dm_quick_flush(const struct cs_dm *dm)
{
	return atomic_load_explicit(&dm->flush_ns, memory_order_relaxed) < CS_DM_QUICK_FLUSH_NS;
}

/* ---- store_dm.c ----------------------------------------------------------------------------- */

/* Its records are in a map, and the chunks that they name, up to @highest, in dm->freed: makes it
 * ready for more. @block: as for cs_dm_commit_open(). */
int cs_dm_attached(struct cs_dm *dm, uint64_t records, uint64_t highest, const uint8_t *block);

/* ---- store_dm_group.c ----------------------------------------------------------------------- */

int cs_dm_group_init(struct cs_dm *dm);
void cs_dm_group_fini(struct cs_dm *dm);
/* Nobody leads. */
void cs_dm_group_open(struct cs_dm *dm, uint64_t end, const uint8_t *block);
/* Writes dm->group, of what is at the head of the queue; then goes on with cs_dm_group_ended(). */
enum cs_step cs_dm_group_write(struct cs_dm *dm);
/* Goes on with @next when the request has ended, with the result in dm->result. */
enum cs_step cs_dm_request(struct cs_dm *dm, enum cowsnap_io_kind kind, void *buffer,
	uint64_t offset, uint64_t length, enum cs_step (*next)(struct cs_dm *dm));
/* Writes past the cache where the device can; else with a flush, for those too who queue until it
 * begins. */
enum cs_step cs_dm_write_durable(struct cs_dm *dm, void *buffer, uint64_t offset, uint64_t length,
	enum cs_step (*next)(struct cs_dm *dm));
/* To hold the device. Returns: false: @waiter is woken when it may be free. */
bool cs_dm_hold(struct cs_dm *dm, struct cs_waiter *waiter);
/* For a thread that may sleep. Returns: 0; -EDEADLK (it would wait for a chain that it runs). */
int cs_dm_hold_waiting(struct cs_dm *dm);
void cs_dm_unhold(struct cs_dm *dm);
/* Flushes the device, which the caller holds, and blocks; a failure breaks the store. What was
 * written before a flush that failed may be lost though this one succeeds. */
int cs_dm_flush(struct cs_dm *dm);
/* Says in words that nothing is written any more. Returns: @error. */
int cs_dm_break(struct cs_dm *dm, int error, const char *what);

/* ---- store_dm_queue.c ----------------------------------------------------------------------- */

int cs_dm_commit_init(struct cs_dm *dm);
void cs_dm_commit_fini(struct cs_dm *dm);
/* The list of records begins anew, or goes on behind @end records. @block is the block that holds
 * slot @end, with zeroes from it on; NULL: all zeroes. Returns: 0, -EBUSY (commits are under way).
 */
int cs_dm_commit_open(struct cs_dm *dm, uint64_t end, const uint8_t *block);
/* No snapshot came of it: commits fail. */
void cs_dm_commit_close(struct cs_dm *dm);
/* The member of a store's table. */
void cs_dm_commit(void *user, struct cowsnap_commit *commit);
/* The leader's step after dm->group. */
enum cs_step cs_dm_group_ended(struct cs_dm *dm);
/* For a caller that has no commit, and needs what is the leader's. @queue: NULL: it waits. Returns:
 * 0, -EBUSY (commits are under way). Commits that come meanwhile go on afterwards. */
int cs_dm_lead(struct cs_dm *dm, struct cowsnap_queue *queue);
/* Then: steps, of which the last one stops leading. Without a queue it is done at the return. */
void cs_dm_lead_on(struct cs_dm *dm, enum cs_step (*first)(struct cs_dm *dm));
void cs_dm_stop_leading(struct cs_dm *dm);

/* ---- store_dm_merge.c ----------------------------------------------------------------------- */

/* The members of a store's table. */
void cs_dm_newest(void *user, struct cowsnap_newest *newest);
void cs_dm_forget(void *user, struct cowsnap_commit *commit);

/* ---- store_dm_load.c ------------------------------------------------------------------------ */

struct cs_dm_load {
	/* Set by the caller. */
	const struct cs_base *base;
	struct cowsnap_device *device;
	uint64_t origin_bytes; /* 0: not known */
	uint32_t block_size;   /* of the origin; 0: not known */
	struct cowsnap_map *map;
	struct cs_runs *used; /* gets the chunks that records name; it is empty */
	void (*visit)(void *user, uint64_t number, const struct cowsnap_run *run);
	void *user;
	/* What was found. */
	struct cs_format_dm_header header;
	uint64_t generation;
	struct cs_format_dm_layout layout;
	uint64_t records;
	uint64_t highest;      /* chunk that a record names; 0: none */
	uint64_t stale_offset; /* of the terminator */
	uint64_t stale_bytes;  /* from there to the last byte that is not zero */
	struct cs_format_dm_fault fault;
};

/* Reads the header and works out the layout. Returns: 0; -ENOENT, -EMEDIUMTYPE or -EBADMSG with the
 * fault set; or the device's error. */
int cs_dm_load_header(struct cs_dm_load *load);
/* Reads all records of a valid store. Returns: 0; -EBADMSG with the fault set; -ENOMEM; or the
 * device's error. */
int cs_dm_load_records(struct cs_dm_load *load);

#endif
