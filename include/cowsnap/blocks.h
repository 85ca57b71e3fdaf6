/* SPDX-License-Identifier: MIT
 *
 * cowsnap: the building blocks. The exception map, the store and the copier, each usable by
 * itself. Included by cowsnap.h, where the rules for errors, threads and growth are.
 *
 * Here, and only here, chunks have numbers: chunk n is bytes [n * chunk size, (n + 1) * chunk size)
 * of an origin, location n the same of a store's device.
 */
#ifndef COWSNAP_BLOCKS_H
#define COWSNAP_BLOCKS_H

#include <cowsnap.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- The exception map -----------------------------------------------------------------------
 *
 * chunk -> location, for one snapshot. A chunk is *free*, *busy* (claimed by one writer, who copies
 * it) or *done* (published: it has a location). free -> busy by claim; busy -> done by publish;
 * busy -> free by abort; done -> free by remove.
 *
 * Which operations may run at the same time on one map, on overlapping chunks too:
 *
 *                    done  lookup  claim  publish  abort  wait  replace  remove  walk
 *   done, lookup      x      x       x       x       x      x      x        x      x
 *   claim, wait       x      x       x       x       x      x      x        x      x
 *   publish, abort    x      x       x       o       o      x      x        x      x
 *   replace, remove   x      x       x       x       x      x      r        r      r
 *   walk              x      x       x       x       x      x      r        r      x
 *
 *   x  may run together      o  one claim is ended once, by whoever holds it
 *   r  may run together, except on the same chunk: the caller orders these
 *
 * done, lookup and walk are wait-free: they take no lock and write nothing. The others lock one
 * part in 64 of the map for a few hundred nanoseconds; never two, never while allocating.
 */

struct cowsnap_map;

#define COWSNAP_LOCATION_MAX  ((UINT64_C(1) << 56) - 3)
#define COWSNAP_LOCATION_ZERO ((UINT64_C(1) << 56) - 2) /* done: zeroes, without space of its own */
#define COWSNAP_LOCATION_NONE ((UINT64_C(1) << 56) - 1) /* done, but without data of its own */
#define COWSNAP_CHUNK_MAX     ((UINT64_C(1) << 62) - 1)

struct cowsnap_run {
	uint64_t first;    /* chunk */
	uint64_t count;    /* chunks */
	uint64_t location; /* of the first; the others follow, or are all NONE or all ZERO.
			    * Meaningless for runs not done */
};

/*
 * cowsnap_map_create - make an empty map; its size does not depend on any volume
 * @allocator: NULL for libc; must outlive the map. With arenas the map has one of its own.
 * Returns: 0; -EINVAL (incomplete table), -ENOMEM.
 * Context: any thread; does not block; may run in a callback.
 * Lifetime: until cowsnap_map_destroy().
 */
COWSNAP_API int cowsnap_map_create(
	const struct cowsnap_allocator *allocator, struct cowsnap_map **map);

/*
 * cowsnap_map_destroy - free a map; NULL is accepted
 * Returns: nothing.
 * Context: no other operation on this map may be running, no waiter may be queued; does not block.
 * Lifetime: ends that of the map.
 */
COWSNAP_API void cowsnap_map_destroy(struct cowsnap_map *map);

/*
 * cowsnap_map_done - are all chunks of a range done?
 * Returns: true if each was done at some moment during the call. An acquire: what was written to
 *	the store before the publication is visible to a caller that got true.
 * Context: any thread; wait-free; one look-up per 64 chunks; may run in a callback.
 * Lifetime: none.
 */
COWSNAP_API bool cowsnap_map_done(const struct cowsnap_map *map, uint64_t first, uint64_t count);

/*
 * cowsnap_map_lookup - where is a chunk?
 * @location: set if the chunk is done
 * Returns: true if it is done. An acquire, as cowsnap_map_done().
 * Context: any thread; wait-free; may run in a callback.
 * Lifetime: the location stays that of the chunk until a replace or remove of it.
 */
COWSNAP_API bool cowsnap_map_lookup(
	const struct cowsnap_map *map, uint64_t chunk, uint64_t *location);

enum cowsnap_claim {
	COWSNAP_CLAIM_NOTHING = 0, /* every chunk of the range is done */
	COWSNAP_CLAIM_MINE = 1,    /* @run is claimed: publish or abort each of its chunks once */
	COWSNAP_CLAIM_BUSY = 2, /* @run begins the range's first chunk not done; another has it */
};

/*
 * cowsnap_map_claim - claim the first free run of a range
 *
 * Passes over what is done. If the first chunk that is not done is free, claims from there as many
 * free chunks as follow each other in the range; else reports the busy run. Memory for the
 * publication is set aside now, so that publishing cannot fail.
 *
 * Returns: enum cowsnap_claim, with @run set unless NOTHING; -EINVAL (count 0), -EOVERFLOW (beyond
 *	COWSNAP_CHUNK_MAX), -ENOMEM (nothing is claimed; what was claimed before memory ran out is
 *	MINE).
 * Context: any thread; locks one part of the map at a time; may run in a callback.
 * Lifetime: a claim lasts until each of its chunks is published or aborted, by any thread.
 */
COWSNAP_API int cowsnap_map_claim(
	struct cowsnap_map *map, uint64_t first, uint64_t count, struct cowsnap_run *run);

/*
 * cowsnap_map_publish - end claims: these chunks are done and lie at @run->location onwards
 * cowsnap_map_abort - end claims: these chunks are free again
 * Returns: nothing. Publishing is a release: see cowsnap_map_done().
 * Context: any thread; locks one part of the map at a time; wakes waiters on this thread after
 *	unlocking; may run in a callback.
 * Lifetime: @run is part or all of one or several runs got from cowsnap_map_claim(), not ended yet;
 *	chunks in it that are not busy are left alone.
 */
COWSNAP_API void cowsnap_map_publish(struct cowsnap_map *map, const struct cowsnap_run *run);
COWSNAP_API void cowsnap_map_abort(struct cowsnap_map *map, const struct cowsnap_run *run);

/* The caller's; must stay in place until wake has been called. */
struct cowsnap_map_waiter {
	void (*wake)(struct cowsnap_map_waiter *waiter); /* any thread; no lock held */
	struct cowsnap_map_waiter *next;                 /* the map's */
	uint64_t chunk;                                  /* the map's */
};

/*
 * cowsnap_map_wait - be woken when a busy chunk's claim ends
 * Returns: 0 (wake will be called exactly once, from the publish or abort of this chunk or of one
 *	of the 63 around it; look again then), -EAGAIN (the chunk is not busy; wake will not be
 *	called).
 * Context: any thread; locks one part of the map; may run in a callback.
 * Lifetime: @waiter is the map's until wake begins.
 */
COWSNAP_API int cowsnap_map_wait(
	struct cowsnap_map *map, uint64_t chunk, struct cowsnap_map_waiter *waiter);

/*
 * cowsnap_map_replace - give a done chunk another location
 * Returns: 0; -ENOENT (the chunk is not done).
 * Context: any thread, one at a time per chunk; locks one part of the map; may run in a callback.
 * Lifetime: a reader may hold the old location: see design/map.md.
 */
COWSNAP_API int cowsnap_map_replace(struct cowsnap_map *map, uint64_t chunk, uint64_t location);

/*
 * cowsnap_map_remove - forget what is done in a range
 * Returns: the number of chunks that were done and are free now.
 * Context: any thread, one at a time per chunk; locks one part of the map at a time; may run in a
 *	callback.
 * Lifetime: a reader may hold the old locations.
 */
COWSNAP_API uint64_t cowsnap_map_remove(struct cowsnap_map *map, uint64_t first, uint64_t count);

/*
 * cowsnap_map_next - the next run of done chunks, in order of chunks
 * @run: the longest run at or after @first, before @end, whose locations follow each other
 * Returns: true if there is one.
 * Context: any thread; wait-free; one look-up per 64 chunks passed over; may run in a callback.
 * Lifetime: none.
 */
COWSNAP_API bool cowsnap_map_next(
	const struct cowsnap_map *map, uint64_t first, uint64_t end, struct cowsnap_run *run);

/*
 * cowsnap_map_walk - visit runs in no order, a bounded number at a time
 * @cursor: 0 to begin; holds the place between calls
 * @max_leaves: groups of 64 neighbouring chunks to visit at most
 * @visit: called with each run; it may remove and replace chunks of that run
 * Returns: true if there is more. A chunk that is done throughout the walk is visited at least
 *	once; one that is moved, published or removed meanwhile may be missed or visited twice.
 * Context: any thread; visit runs with no lock held.
 * Lifetime: a cursor means nothing to another map.
 */
COWSNAP_API bool cowsnap_map_walk(const struct cowsnap_map *map, uint64_t *cursor,
	uint64_t max_leaves, void (*visit)(void *user, const struct cowsnap_run *run), void *user);

/*
 * cowsnap_map_count - chunks that are done
 * cowsnap_map_memory - bytes of memory that the map holds
 * Returns: that number.
 * Context: any thread; does not block; may run in a callback.
 * Lifetime: none.
 */
COWSNAP_API uint64_t cowsnap_map_count(const struct cowsnap_map *map);
COWSNAP_API uint64_t cowsnap_map_memory(const struct cowsnap_map *map);

/* ---- The store ------------------------------------------------------------------------------
 *
 * Alloc and free, commit and read may all run at the same time, in any order.
 */

/*
 * cowsnap_store_alloc - get a run of free space
 * @want: chunks, at least 1
 * @location: first location of the run
 * @count: its length, 1 to @want
 * Returns: 0; -ENOSPC, -ENOMEM, -EBADF (closed), -EINVAL (want 0), or the store's own error.
 * Context: any thread; does not block on I/O; may run in a callback.
 * Lifetime: the space is the caller's until cowsnap_store_free().
 */
COWSNAP_API int cowsnap_store_alloc(
	struct cowsnap_store *store, uint64_t want, uint64_t *location, uint64_t *count);

/*
 * cowsnap_store_free - give a run of space back; nobody may still read it
 * Returns: nothing.
 * Context: any thread; does not block on I/O; may run in a callback.
 * Lifetime: ends that of the space.
 */
COWSNAP_API void cowsnap_store_free(struct cowsnap_store *store, uint64_t location, uint64_t count);

/*
 * cowsnap_store_commit - record that runs of an origin are saved; returns when that is durable
 * @runs: what was written to the store's device before
 * Returns: 0, -EBADF (closed), -ESRCH (a persistent store before its first snapshot), or the
 *	store's error. A transient store has nothing to do.
 * Context: any thread, many at once; blocks on the store's device; not in a callback.
 * Lifetime: none.
 */
COWSNAP_API int cowsnap_store_commit(
	struct cowsnap_store *store, const struct cowsnap_run *runs, size_t count);

/*
 * cowsnap_store_device - where the store's locations are: location n begins at byte n * chunk size
 * cowsnap_store_chunk_size - that chunk size in bytes
 * Returns: the device; the size.
 * Context: any thread; does not block; may run in a callback.
 * Lifetime: the store's.
 */
COWSNAP_API struct cowsnap_device *cowsnap_store_device(struct cowsnap_store *store);
COWSNAP_API uint64_t cowsnap_store_chunk_size(const struct cowsnap_store *store);

/* ---- The persistent format ------------------------------------------------------------------
 *
 * Looking at a persistent store that nobody uses.
 */

struct cowsnap_dm_inspect_options {
	size_t size;
	uint32_t flags; /* none defined: 0 */
	uint32_t reserved;
	uint64_t origin_bytes; /* 0: not known, and origin chunks may be any */
	/* Filled with the records: origin chunk -> store chunk. Empty, and nobody else uses it.
	 * NULL: one is made and thrown away. */
	struct cowsnap_map *map;
	/* Told of the records in their order, as far as they are good: @number is that of the
	 * first of @run->count ones that follow each other in origin and store. NULL: nobody. */
	void (*visit)(void *visit_user, uint64_t number, const struct cowsnap_run *run);
	void *visit_user;
};

struct cowsnap_dm_report {
	uint64_t device_bytes;
	uint64_t chunk_size_bytes; /* 0: the header is not good, and nothing below is set */
	bool valid;                /* false: the snapshot is marked invalid, no record was read */
	uint64_t generation;       /* the host's; 0: none */
	uint64_t chunks;           /* on the device */
	uint64_t areas;
	uint64_t record_limit;  /* how many fit */
	uint64_t records;       /* good ones that were read */
	uint64_t highest_chunk; /* that a record names; 0: none */
	uint64_t stale_offset; /* bytes that a crash left behind the last record and that are not */
	uint64_t stale_bytes;  /* zero; 0: none. To wipe and flush them is safe */
	/* Why the store is refused; empty if it is not. */
	char fault[32];   /* a name of docs/design/dm-format.md, like "record-beyond-device" */
	char reason[160]; /* in words, with record and value */
};

/*
 * cowsnap_dm_inspect - read and check a persistent store; changes nothing
 * @options: NULL for all defaults
 * @report: filled as far as the reading came, also on failure
 * @size: sizeof(*report); a smaller known size fills only what fits
 * Returns: 0 (it is good, or marked invalid); -EINVAL (unknown flag or size, map not empty),
 *	-E2BIG; -ENOENT, -EMEDIUMTYPE, -EBADMSG as cowsnap_store_dm_open(); -EBUSY (the device is
 *	an origin or a store, or another process writes to it), -EBADF (closed), -ENOMEM, or the
 *	device's own error.
 * Context: any thread; blocks on the device; not in a callback.
 * Lifetime: none.
 */
COWSNAP_API int cowsnap_dm_inspect(struct cowsnap_device *device,
	const struct cowsnap_dm_inspect_options *options, struct cowsnap_dm_report *report,
	size_t size);

/* ---- The copier -----------------------------------------------------------------------------
 *
 * Moves bytes from one device to others on the thread that asks: many copies at once, bounded in
 * bytes, in pieces as long as the job length allows. With a queue the pieces of a copy are under
 * way side by side.
 *
 * Credits: the bytes that are under way at one time are bounded; over the bound a copy waits. First
 * the copies that a write waits for are served, those of different origins in turn, then the
 * background ones, those of different sources in turn. A copy that is longer than the bound has all
 * of it, alone; but a background copy takes credits for one piece at a time, and none while it is
 * throttled, so that it holds up nobody for longer than a piece takes.
 */

struct cowsnap_copier;

struct cowsnap_copier_options {
	size_t size;
	uint32_t flags; /* none defined: 0 */
	uint32_t reserved;
	uint64_t inflight_bytes; /* default 64 MiB */
	uint64_t job_bytes;      /* default 1 MiB; 4 KiB to 64 MiB */
};

struct cowsnap_copy_target {
	struct cowsnap_device *device;
	uint64_t offset;        /* in device */
	uint64_t source_offset; /* what to copy: [source_offset, source_offset + length) */
	uint64_t length;
	int error; /* out: 0, or why this target did not get all of it */
	uint32_t reserved;
	/* NULL: all is written. Else those of the target's first 64 parts of part_bytes each that
	 * the source has as zeroes are not written, as far as one piece holds them whole: their
	 * bits are set here (bit i for part i), and the caller begins with 0. */
	uint64_t *zeroes;
	uint64_t part_bytes;
};

/* One copy. The caller allocates it and sets what is above the line. */
struct cowsnap_copy {
	struct cowsnap_device *source; /* NULL: zeroes */
	struct cowsnap_copy_target *targets;
	size_t count;
	bool background; /* served after others, in credits of a piece at a time, and throttled */
	/* ---- */
	uint64_t words[48];
};

/*
 * cowsnap_copier_create - make a copier; it must not outlive its context
 * Returns: 0; -EINVAL, -E2BIG, -ENOMEM.
 * Context: any thread; does not block; may run in a callback.
 * Lifetime: until cowsnap_copier_destroy().
 */
COWSNAP_API int cowsnap_copier_create(struct cowsnap_ctx *ctx,
	const struct cowsnap_copier_options *options, struct cowsnap_copier **copier);

/*
 * cowsnap_copier_destroy - free a copier; NULL is accepted
 * Returns: nothing.
 * Context: no copy may be running or pending, which is not checked; does not block.
 * Lifetime: ends that of the copier.
 */
COWSNAP_API void cowsnap_copier_destroy(struct cowsnap_copier *copier);

/*
 * cowsnap_copier_throttle - hold background copies back, from the next piece on
 * @bytes_per_s: how fast all of them together may read; 0: no bound
 * @share_percent: of the time, that at least one of them may be under way: 1 to 100
 * Returns: 0; -EINVAL (share).
 * Context: any thread; does not block; may run in a callback.
 * Lifetime: none.
 */
COWSNAP_API int cowsnap_copier_throttle(
	struct cowsnap_copier *copier, uint64_t bytes_per_s, unsigned share_percent);

/*
 * cowsnap_copier_copy - copy ranges of one device to others; each byte is read once
 *
 * What targets have in common is read once and written to each. A target that fails does not stop
 * the others. Without a source the ranges are made to read as zeroes.
 *
 * Returns: 0 (look at each target's error), -EINVAL (no targets, a length of 0), -EOVERFLOW,
 *	-ENOMEM (nothing was copied).
 * Context: any thread, many at once; waits for credits and for the throttle, and blocks on the
 *	devices; not in a callback.
 * Lifetime: none.
 */
COWSNAP_API int cowsnap_copier_copy(struct cowsnap_copier *copier, struct cowsnap_copy *copy);

/*
 * cowsnap_copier_copy_async - the same without waiting
 * @queue: where the copy goes on; NULL: on a worker, if the context has them
 * Returns: COWSNAP_PENDING (@done will be called with what cowsnap_copier_copy() would have
 *	returned, or with -ECANCELED: what was under way has ended, no more is copied, and targets
 *	that did not get all have that error), or the error of an argument; beside those of
 *	cowsnap_copier_copy(): -EINVAL (no queue and no workers, no callback), -EBADF (queue
 *	closed), -EXDEV (queue of another context).
 * Context: any thread; does not block; may run in a callback. The copy goes on in polls, which
 *	block on devices that cannot be submitted to.
 * Lifetime: @copy, its targets and @op must stay in place until @done is called.
 */
COWSNAP_API int cowsnap_copier_copy_async(struct cowsnap_copier *copier,
	struct cowsnap_queue *queue, struct cowsnap_copy *copy, struct cowsnap_op *op,
	cowsnap_done *done, void *user);

#ifdef __cplusplus
}
#endif

#endif
