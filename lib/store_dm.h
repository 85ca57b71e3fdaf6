/* SPDX-License-Identifier: MIT
 *
 * The persistent store: dm-snapshot's format (format_dm.h, docs/design/dm-format.md) behind the
 * table of a store. store_dm.c has its space, its header and its life; store_dm_commit.c writes
 * records in groups; store_dm_load.c reads a device.
 *
 * The three have a lock and a state each, and none calls into another with its lock held.
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
 * Locking: space_lock, queue_lock, held one at a time and never over I/O. header_lock is held over
 * the I/O of the header, and flush_lock, perhaps under it, over a flush: a device says once that
 * its cache was lost, and not always to who wrote what is lost. So who flushes next must see that
 * the store is broken.
 *
 * Failure: see store_dm_commit.c for a failed group. A store is *broken* when it cannot know what
 * its device holds: each alloc and commit fails from then on with the error that broke it, until
 * the snapshot is dropped and another begins.
 */
#ifndef CS_STORE_DM_H
#define CS_STORE_DM_H

#include "format_dm.h"
#include "map.h"
#include "runs.h"
#include "store.h"

#define CS_DM_FLUSHES_TIMED 4u /* that are remembered */

enum cs_dm_header {
	CS_DM_NONE, /* no snapshot */
	CS_DM_VALID,
	CS_DM_INVALID,
};

struct cs_dm_waiting; /* a commit in the queue; see store_dm_commit.c */

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

	struct cs_mutex header_lock;
	enum cs_dm_header header;
	uint64_t generation;
	uint8_t *header_block;

	struct cs_mutex flush_lock; /* a flush is under way */
	uint64_t flush_took_ns[CS_DM_FLUSHES_TIMED];
	unsigned flushes_timed;

	struct cs_mutex queue_lock;
	struct cs_cond gathered; /* with queue_lock: as many wait as the leader waits for */
	struct cs_dm_waiting *first, **last;
	uint64_t queued;           /* commits in the queue */
	uint64_t active;           /* that were under way when the last group ended */
	bool open;                 /* there is, or was, a snapshot to record for */
	bool leading;              /* somebody leads */
	bool gathering;            /* and waits for others */
	uint64_t flushes_begun;    /* the number of the newest flush */
	uint64_t flushed;          /* that of the newest one that ended well */
	_Atomic uint64_t flush_ns; /* how long one takes, about */

	/* The leader's alone. */
	uint64_t end;    /* records on the device */
	uint64_t acked;  /* of these, those whose commits are done */
	uint8_t *blocks; /* room for a group; the first block is as on the device up to `end` */
	size_t blocks_bytes;
};

static inline uint64_t cs_dm_chunk_bytes(const struct cs_dm *dm)
{
	return UINT64_C(1) << dm->chunk_shift;
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

/* ---- store_dm_commit.c ---------------------------------------------------------------------- */

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
/* Flushes the device, as number @number; a failure breaks the store. What was written before a
 * flush that failed may be lost though this one succeeds. */
int cs_dm_flush(struct cs_dm *dm, uint64_t number);
/* Says in words that nothing is written any more. Returns: @error. */
int cs_dm_break(struct cs_dm *dm, int error, const char *what);

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
