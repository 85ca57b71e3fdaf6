/* SPDX-License-Identifier: MIT
 *
 * cowsnap: extending. The tables of functions through which a host brings its own device, store,
 * allocator, log and clock. Included by cowsnap.h, where the rules for errors, threads and growth
 * are.
 *
 * For every callback: it may be called on any thread that calls the library, many at once, and
 * never with a lock of the library held, unless its text says otherwise. A member that is NULL has
 * the fallback that its text names.
 */
#ifndef COWSNAP_EXTEND_H
#define COWSNAP_EXTEND_H

#include <cowsnap.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Device --------------------------------------------------------------------------------- */

/* Two devices are the same bytes if their identities are equal. */
struct cowsnap_device_identity {
	uint64_t words[4];
};

enum cowsnap_lock {
	COWSNAP_LOCK_NONE = 0,
	COWSNAP_LOCK_SHARED = 1,
	COWSNAP_LOCK_EXCLUSIVE = 2,
};

/* Ranges handed to these lie inside the device and are not empty. Each may block. Each returns 0 or
 * a negative errno; part of a range is a failure of all of it. */
struct cowsnap_device_ops {
	size_t size;
	int (*read)(void *user, void *buffer, uint64_t offset, uint64_t length);
	/* NULL: the device is read-only. */
	int (*write)(void *user, const void *buffer, uint64_t offset, uint64_t length);
	/* NULL, or -EOPNOTSUPP returned: zeroes are written. */
	int (*zero)(void *user, uint64_t offset, uint64_t length);
	/* NULL: a discard does nothing. */
	int (*discard)(void *user, uint64_t offset, uint64_t length);
	/* NULL: the device has no volatile cache. */
	int (*flush)(void *user);
	/* NULL: the device is like no other. Called once, when the device is created. */
	int (*identity)(void *user, struct cowsnap_device_identity *identity);
	/* NULL: nothing to do. Called once, when the device is closed. */
	void (*close)(void *user);
	/* A write that is durable when it returns (FUA), though writes before it need not be. Its
	 * error is about this write; if others may be lost too, the next flush must fail. NULL: it
	 * is written, then all is flushed. */
	int (*write_durable)(void *user, const void *buffer, uint64_t offset, uint64_t length);
	/* How long it is now. NULL: as long as it was. */
	int (*length)(void *user, uint64_t *size_bytes);
	/* Keep other processes away: -EBUSY if one is there. A store of the library's asks for
	 * EXCLUSIVE, who looks at one for SHARED. NULL: nobody else can get at it. */
	int (*lock)(void *user, enum cowsnap_lock lock);
	/* Start a request and do not wait for it. When it has ended, cowsnap_io_complete() is
	 * called, once, inline or later, on any thread, in any order. All kinds come, except those
	 * whose member above is NULL; ZERO may be completed with -EOPNOTSUPP. Called on the thread
	 * that polls io->queue. NULL: the members above are called, and block. */
	void (*submit)(void *user, struct cowsnap_io *io);
};

/*
 * cowsnap_io_complete - say that a request that a device was given has ended
 *
 * A second completion of a request that has ended is logged and ignored, as long as the request has
 * not been used again.
 *
 * Returns: nothing.
 * Context: any thread, also inside submit; does not block; runs no callback.
 * Lifetime: ends that of the request for the device.
 */
COWSNAP_API void cowsnap_io_complete(struct cowsnap_io *io, int error);

struct cowsnap_device_options {
	size_t size;
	uint32_t flags;      /* none defined: 0 */
	uint32_t block_size; /* writes are multiples of it; a power of two; default 1 */
	uint64_t size_bytes;
	const char *name; /* for the log; copied; default "device" */
};

/*
 * cowsnap_device_create - make a device of the host's functions
 * Returns: 0; -EINVAL (no read, size_bytes 0, block size not a power of two or above 64 KiB,
 *	unknown flag or size), -E2BIG, -EFBIG (above COWSNAP_SIZE_MAX), -ENOMEM, or identity's
 *	error.
 * Context: any thread; blocks as identity does; may run in a callback.
 * Lifetime: until cowsnap_device_close(); @ops is copied, @user must outlive the device.
 */
COWSNAP_API int cowsnap_device_create(struct cowsnap_ctx *ctx, const struct cowsnap_device_ops *ops,
	const struct cowsnap_device_options *options, void *user, struct cowsnap_device **device);

/* ---- Store ---------------------------------------------------------------------------------- */

struct cowsnap_run;

/* A commit under way. The store gets it in commit() and gives it back with done(), once, inline or
 * later, on any thread, in any order; until then it and what it points to stay in place. */
struct cowsnap_commit {
	const struct cowsnap_run *runs;
	size_t count;
	void (*done)(struct cowsnap_commit *commit, int error);
	struct cowsnap_commit *next; /* the store's, for its queue */
	/* On whose thread it was started; NULL: that of a caller that waits. */
	struct cowsnap_queue *queue;
	uint64_t words[32]; /* the store's, until done */
};

/* A question for the newest records under way, as a commit is. */
struct cowsnap_newest {
	uint64_t skip;            /* so many of the newest records are not asked for */
	uint64_t most;            /* chunks in all, at least 1 */
	struct cowsnap_run *runs; /* the store's until done: the answer, the newest run first */
	size_t room;              /* for so many, at least 1 */
	size_t count; /* of the answer, set by the store; 0: there are no such records */
	void (*done)(struct cowsnap_newest *newest, int error);
	/* On whose thread it was started; NULL: that of a caller that waits. */
	struct cowsnap_queue *queue;
	uint64_t words[8]; /* the store's, until done */
};

struct cowsnap_store_space {
	uint64_t used_chunks;
	uint64_t limit_chunks;
};

struct cowsnap_store_ops {
	size_t size;
	/* A run of 1 to @want free chunks. 0, -ENOSPC or -ENOMEM. Does not block on I/O. */
	int (*alloc)(void *user, uint64_t want, uint64_t *location, uint64_t *count);
	/* Space that nobody reads or will read. Does not block on I/O. Called with the lock of the
	 * reclaimer held: must not call the library. */
	void (*free)(void *user, uint64_t location, uint64_t count);
	/* How full it is. Does not block. */
	void (*space)(void *user, struct cowsnap_store_space *space);
	/* Record these runs; they were written to the device, not flushed. May return before it is
	 * done; may block until it is only if no queue is set. A commit that fails has left nothing
	 * behind when done says so: its chunks are freed then. The table does not say of which
	 * origin or snapshot they are: a store that records anything holds one snapshot. NULL:
	 * nothing is recorded. */
	void (*commit)(void *user, struct cowsnap_commit *commit);
	/* Make it durable that the snapshot is invalid, before anybody can see that it is. If that
	 * fails, the write that would have spoiled the snapshot fails with this error. May be
	 * called more than once. Blocks. NULL: nothing survives anyway. */
	int (*invalidate)(void *user, int reason);
	/* A new limit; 0: as much as the device has. Returns 0, -ERANGE or -EBUSY. Does not block.
	 * NULL: -ENOTSUP. */
	int (*set_limit)(void *user, uint64_t limit_chunks);
	/* The last snapshot is gone and its space freed; but a new one may have got some since.
	 * NULL: nothing to do. Called with the lock of the reclaimer held: must not call the
	 * library. */
	void (*emptied)(void *user);
	/* NULL: nothing to do. Called once, when the store is closed. May block. */
	void (*close)(void *user);
	/* A snapshot is about to be taken, and nobody can see it before this has returned: make it
	 * durable that there is one, with no records. Its error gives up the take. Blocks. NULL:
	 * nothing to do. */
	int (*begin)(void *user);
	/* Make it durable that there is no snapshot, before writes stop being saved for it. Its
	 * error gives up the drop. Also called when a take is given up after begin. Blocks; with a
	 * lock held that makes drops of this store wait: must not drop. NULL: nothing survives
	 * anyway, and a snapshot cannot be deactivated. */
	int (*drop)(void *user);
	/* For merges, in stores with commit. The newest of the durable records, but for the newest
	 * @skip, as runs in which records follow each other in origin and store, or those of zeroes
	 * in the origin. run->location is that of run->first. No chunk is in two records, but for
	 * COWSNAP_STORE_ZEROES. No commit is under way. May return before it is done; may block
	 * until it is only if no queue is set. NULL: its snapshot cannot be merged. */
	void (*newest)(void *user, struct cowsnap_newest *newest);
	/* Make it durable that the records of these runs are gone: the first that newest() gave,
	 * with a skip of 0; of the last of them it may be the last part only. Their chunks are
	 * freed then. If it fails they are there as before. No commit is under way. Returns as
	 * commit. NULL as newest. */
	void (*forget)(void *user, struct cowsnap_commit *commit);
};

#define COWSNAP_STORE_ONE_SNAPSHOT (UINT32_C(1) << 0) /* the format holds a single snapshot */
/* Runs at COWSNAP_LOCATION_ZERO may be committed: preimages of zeroes take no space. A chunk for
 * which that was done may be committed once more, with space, when its snapshot is written to. */
#define COWSNAP_STORE_ZEROES       (UINT32_C(1) << 1)

struct cowsnap_store_options {
	size_t size;
	uint32_t flags;
	uint32_t reserved;
	uint64_t chunk_size_bytes;     /* a power of two, a multiple of the device's block size */
	struct cowsnap_device *device; /* where locations are; must outlive the store */
	uint64_t low_water_bytes;      /* event when less is free; 0: no event */
};

/*
 * cowsnap_store_create - make a store of the host's functions
 * Returns: 0; -EINVAL (alloc, free or space missing, no device, unknown flag or size, chunk size
 *	not a power of two), -E2BIG, -ERANGE (chunk size out of bounds), -EBUSY (the device is an
 *	origin or a store already), -EBADF (device closed), -EXDEV (device of another context),
 *	-ENOMEM.
 * Context: any thread; does not block; may run in a callback.
 * Lifetime: until cowsnap_store_close(); @ops is copied, @user must outlive the store.
 */
COWSNAP_API int cowsnap_store_create(struct cowsnap_ctx *ctx, const struct cowsnap_store_ops *ops,
	const struct cowsnap_store_options *options, void *user, struct cowsnap_store **store);

/* ---- Allocator ------------------------------------------------------------------------------ */

/* May be called with locks of the library held; must not call back into the library. The arena
 * members are all set or all NULL; without them maps share the heap. */
struct cowsnap_allocator {
	size_t size;
	void *user;
	/* @align is a power of two, at least that of a pointer. NULL on failure. */
	void *(*alloc)(void *user, size_t bytes, size_t align);
	void (*free)(void *user, void *memory, size_t bytes);
	/* A heap of its own, freed as a whole. NULL on failure. */
	void *(*arena_create)(void *user);
	void *(*arena_alloc)(void *user, void *arena, size_t bytes, size_t align);
	void (*arena_free)(void *user, void *arena, void *memory, size_t bytes);
	void (*arena_destroy)(void *user, void *arena); /* frees what is left in it */
};

/* ---- Log and clock -------------------------------------------------------------------------- */

enum cowsnap_log_level {
	COWSNAP_LOG_ERROR = 1,
	COWSNAP_LOG_WARNING = 2,
	COWSNAP_LOG_INFO = 3,
};

/* @message is one line without its end, valid during the call. Must not call the library. */
struct cowsnap_log {
	size_t size;
	void *user;
	void (*write)(void *user, enum cowsnap_log_level level, const char *message);
};

/* What time it is, in nanoseconds that never go back. Used to time copies; deadlines and waits go
 * by the system's CLOCK_MONOTONIC. */
struct cowsnap_clock {
	size_t size;
	void *user;
	uint64_t (*now_ns)(void *user);
};

#ifdef __cplusplus
}
#endif

#endif
