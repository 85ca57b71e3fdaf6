/* SPDX-License-Identifier: MIT
 *
 * cowsnap: copy-on-write snapshots of live volumes, for storage engines to embed.
 *
 * A host owns a volume (the *origin*) and its write path. It brackets each write with
 * cowsnap_write_begin() and cowsnap_write_end(). From then on it can *take* a *snapshot* in
 * constant time and go on writing: the first write to a *chunk* after a take saves the old data
 * (the *preimage*) in a *store* before it is admitted; that the store has it is an *exception* in
 * the snapshot's *exception map*. A snapshot is read at any time with cowsnap_snapshot_read().
 * After the last cowsnap_snapshot_drop() the volume runs as before.
 *
 *     context -+- device ...   random-access bytes (memory, a file, the host's own)
 *              +- origin ...   a device whose writes the host brackets
 *              +- store ...    where preimages go; holds a chain of snapshots for each origin
 *              +- snapshot ... one instant of one origin, in one store
 *
 * Life cycle: create the context, then devices, then origins and stores on them; take; drop;
 * close stores and origins, then devices; destroy the context. A closed handle stays
 * recognisable (calls give -EBADF) until its context is destroyed.
 *
 * What the host promises: its origin device's read sees every write that has ended; no write
 * reaches the origin outside a bracket; the store's device is used by nobody else.
 *
 * Errors: 0 or a count on success, a negative errno on failure. Nothing is thread-local, nothing
 * is global, nothing is printed: the reason of a refusal goes in words to the context's log.
 *
 * Threads: any function may be called on any thread at any time unless its `Context:` says
 * otherwise. The library starts no thread, unless the host asks for workers. A handle must not be
 * closed or destroyed while another thread still uses it. Callbacks run on the calling thread with
 * no lock held; those that end an operation, on the thread that polls its queue, or on a worker.
 * After fork() only the parent may go on using a context: a child must not call the library with
 * anything that was made before, and has no workers.
 *
 * Units: offsets and lengths are bytes, durations nanoseconds of CLOCK_MONOTONIC.
 *
 * Growth: option and vtable structs begin with their size, set by the caller with sizeof; they
 * grow at the end; structs without a size do not grow. A member that is zero takes its documented
 * default. A size below that of the first release is -EINVAL, a larger one with a non-zero tail is
 * -E2BIG, an unknown flag is -EINVAL.
 *
 * The header has four parts: Snapshots (this file, and cowsnap/queues.h for hosts that do not
 * wait), Building blocks (cowsnap/blocks.h), Extending (cowsnap/extend.h) and Experimental (empty
 * in this release).
 */
#ifndef COWSNAP_H
#define COWSNAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define COWSNAP_VERSION_MAJOR 0
#define COWSNAP_VERSION_MINOR 1
#define COWSNAP_VERSION_PATCH 0

#define COWSNAP_CHUNK_SIZE_MIN UINT64_C(512)
#define COWSNAP_CHUNK_SIZE_MAX (UINT64_C(1) << 30)

/* The longest volume: what offsets of off_t can name. */
#define COWSNAP_SIZE_MAX (UINT64_C(1) << 62)

#if defined(COWSNAP_BUILDING)
#define COWSNAP_API __attribute__((visibility("default")))
#else
#define COWSNAP_API
#endif

struct cowsnap_ctx;
struct cowsnap_device;
struct cowsnap_queue;
struct cowsnap_origin;
struct cowsnap_store;
struct cowsnap_snapshot;
struct cowsnap_allocator;
struct cowsnap_log;
struct cowsnap_clock;
struct cowsnap_take_entry;
struct cowsnap_dm_options;

struct cowsnap_io;
struct cowsnap_op;

#define COWSNAP_PENDING 1 /* not ended yet: the callback will run, once */

/* @error: what the call would have returned: 0 or a negative errno. The operation is the host's
 * again. Runs with no lock held. It may call what says that it may run in a callback,
 * cowsnap_device_submit(), and every function whose name ends in _async; nothing that waits. */
typedef void cowsnap_done(struct cowsnap_op *op, void *user, int error);

/* One operation: see cowsnap/queues.h. The caller allocates it, on the stack if it waits; its words
 * are the library's. */
struct cowsnap_op {
	uint64_t words[40];
};

/*
 * cowsnap_version - the version of the library that is running, "0.1.0"
 * Returns: a static string.
 * Context: any thread; does not block; may run in a callback.
 * Lifetime: the string lives as long as the library is loaded.
 */
COWSNAP_API const char *cowsnap_version(void);

/* ---- Context -------------------------------------------------------------------------------- */

enum cowsnap_event_type {
	COWSNAP_EVENT_LOW_WATER = 1,    /* the store's free space fell below its low-water mark */
	COWSNAP_EVENT_FULL = 2,         /* the store could not take a preimage */
	COWSNAP_EVENT_INVALID = 3,      /* a snapshot was given up; `reason` says why */
	COWSNAP_EVENT_MERGED = 4,       /* a snapshot was merged into its origin, and is dropped */
	COWSNAP_EVENT_MERGE_FAILED = 5, /* a merge has stopped; `reason` says why */
};

struct cowsnap_event {
	enum cowsnap_event_type type;
	int reason; /* INVALID, FULL and MERGE_FAILED: negative errno of the cause */
	struct cowsnap_store *store; /* always set */
	struct cowsnap_snapshot
		*snapshot;   /* not of LOW_WATER and FULL; valid during the callback */
	uint64_t used_bytes; /* of the store, when the event arose */
	uint64_t limit_bytes;
};

/* Who moves the bytes of a copy. A caller that waits (no callback) always does it itself, with
 * calls that block. An operation with a callback is carried on by the thread that polls its queue,
 * or by a worker. */
enum cowsnap_engine {
	/* ... which calls devices, and blocks while they work. */
	COWSNAP_ENGINE_INLINE = 0,
	/* ... which submits to devices that can be submitted to. What still blocks: devices that
	 * cannot; a persistent store that records that it has a snapshot, or has lost it. */
	COWSNAP_ENGINE_LOOP = 1,
	/* As LOOP for operations with a queue. Those without go to one of `workers` threads of the
	 * context: the same for each operation that one thread starts. Their callbacks run
	 * there. */
	COWSNAP_ENGINE_WORKERS = 2,
};

#define COWSNAP_WORKERS_MAX 256u

struct cowsnap_ctx_options {
	size_t size;
	uint32_t flags; /* none defined: 0 */
	uint32_t reserved;
	/* Bound on the bytes being copied at one time, over all origins; a writer that would exceed
	 * it waits. Default 64 MiB. One job always runs, however small the bound. */
	uint64_t copy_inflight_bytes;
	/* Longest single read or write of a copy. Default 1 MiB; from 4 KiB to 64 MiB. */
	uint64_t copy_job_bytes;
	const struct cowsnap_allocator *allocator; /* default: libc; must outlive the context */
	const struct cowsnap_log *log;             /* default: none; must outlive the context */
	const struct cowsnap_clock *clock;         /* default: CLOCK_MONOTONIC; must outlive it */
	/* Told of events. Runs on the thread that met them, which may be one that polls, or a
	 * worker, with no lock, claim or credit held. It may call what says that it may run in a
	 * callback, but close nothing. */
	void (*event)(void *event_user, const struct cowsnap_event *event);
	void *event_user;
	enum cowsnap_engine engine;
	uint32_t workers; /* of COWSNAP_ENGINE_WORKERS: 1 to COWSNAP_WORKERS_MAX; else 0 */
};

/*
 * cowsnap_ctx_create - make a context: the bound on copies, the memory, the log, the events
 * @options: NULL for all defaults
 * Returns: 0; -EINVAL (unknown flag, size or engine, a number of workers that does not go with the
 *	engine, job length out of bounds, incomplete table), -EAGAIN (no thread for a worker),
 *	-EMFILE or the like (no file descriptor for one), -E2BIG
 *	(options of a newer release), -ENOMEM.
 * Context: any thread; does not block; may run in a callback.
 * Lifetime: until cowsnap_ctx_destroy(); the options are copied.
 */
COWSNAP_API int cowsnap_ctx_create(
	const struct cowsnap_ctx_options *options, struct cowsnap_ctx **ctx);

/*
 * cowsnap_ctx_destroy - end a context and free what its closed handles left
 * Returns: 0; -EBUSY (a device, origin, store, snapshot or queue is still open, or a worker has an
 *	operation; nothing was done). NULL is accepted. Workers are ended.
 * Context: no other call on this context may be running; waits for its workers to end; not in a
 *	callback.
 * Lifetime: ends that of the context and of every handle made in it.
 */
COWSNAP_API int cowsnap_ctx_destroy(struct cowsnap_ctx *ctx);

/* ---- Devices -------------------------------------------------------------------------------- */

#define COWSNAP_FILE_DIRECT   (UINT32_C(1) << 0) /* O_DIRECT; writes must be aligned */
#define COWSNAP_FILE_READONLY (UINT32_C(1) << 1)
#define COWSNAP_FILE_CREATE   (UINT32_C(1) << 2) /* make the file, length_bytes long, if missing */

struct cowsnap_file_options {
	size_t size;
	uint32_t flags;
	uint32_t reserved;
	uint64_t length_bytes; /* with CREATE: the length of a new file; else 0 */
};

/*
 * cowsnap_device_file - open a file or block device with pread and pwrite
 * @path: a regular file or a block device; its length at this moment is the device's size
 * @options: NULL for read-write, buffered
 * Returns: 0; -EINVAL (unknown flag, neither file nor block device, no length), -E2BIG, -ENOMEM, or
 *	the errno of open, fstat or ftruncate (-ENOENT, -EACCES, -ENOSPC ...).
 * Context: any thread; blocks on the file system; may run in a callback.
 * Lifetime: until cowsnap_device_close().
 */
COWSNAP_API int cowsnap_device_file(struct cowsnap_ctx *ctx, const char *path,
	const struct cowsnap_file_options *options, struct cowsnap_device **device);

/*
 * cowsnap_device_uring - the same for a file or block device that is submitted to with io_uring
 *
 * Operations on a queue use a ring of that queue's; callers that wait use pread and pwrite. Where
 * the kernel forbids io_uring, or the library was built without it, it is a plain file device, and
 * the log says why.
 *
 * Returns: as cowsnap_device_file().
 * Context: any thread; blocks on the file system; may run in a callback.
 * Lifetime: until cowsnap_device_close().
 */
COWSNAP_API int cowsnap_device_uring(struct cowsnap_ctx *ctx, const char *path,
	const struct cowsnap_file_options *options, struct cowsnap_device **device);

/*
 * cowsnap_device_memory - a device of zeroes in memory; pages are used from their first write on
 * @size_bytes: 1 to COWSNAP_SIZE_MAX; a discard gives whole pages back
 * Returns: 0; -EINVAL (size 0), -EFBIG (size above COWSNAP_SIZE_MAX), -ENOMEM (no address space).
 * Context: any thread; does not block; may run in a callback.
 * Lifetime: until cowsnap_device_close().
 */
COWSNAP_API int cowsnap_device_memory(
	struct cowsnap_ctx *ctx, uint64_t size_bytes, struct cowsnap_device **device);

/*
 * cowsnap_device_close - give a device back; its file is closed, its memory freed
 * Returns: 0; -EBUSY (an origin or a store is on it), -EBADF (closed already). NULL is accepted.
 * Context: no call on this device may be running, no request or copy under way; may block on
 *	close(); not in a callback.
 * Lifetime: ends that of the device; the handle stays recognisable until the context ends.
 */
COWSNAP_API int cowsnap_device_close(struct cowsnap_device *device);

/*
 * cowsnap_device_size - length of a device
 * Returns: bytes; 0 if the device is closed.
 * Context: any thread; does not block; may run in a callback.
 * Lifetime: none.
 */
COWSNAP_API uint64_t cowsnap_device_size(const struct cowsnap_device *device);

/*
 * cowsnap_device_refresh - ask a device how long it is now
 *
 * A device that has become longer has its new size from here on: a store on it can then be given
 * more with cowsnap_store_set_limit(). Origins keep the size that they were opened with.
 *
 * Returns: 0 (also if nothing has changed); -ERANGE (it is shorter than it was: nothing changed;
 *	what lay beyond its end is lost), -EBADF (closed), or the device's own error.
 * Context: any thread; blocks as the device does; may run in a callback.
 * Lifetime: none.
 */
COWSNAP_API int cowsnap_device_refresh(struct cowsnap_device *device);

/*
 * cowsnap_device_read - read bytes of a device, of any alignment
 * cowsnap_device_write - write bytes; O_DIRECT files want multiples of the logical block
 * cowsnap_device_zero - make a range read as zeroes, giving up its space where that is cheap
 * cowsnap_device_discard - say that a range is not needed; it reads as anything afterwards
 * cowsnap_device_flush - make every write that has returned durable
 * Returns: 0 (all of it was done); -EINVAL (length 0, unaligned direct write), -EOVERFLOW (offset
 *	plus length wraps), -ERANGE (outside the device), -EROFS, -EBADF (closed), or the device's
 *	own error.
 * Context: any thread, many at once; blocks on the device; may run in a callback.
 * Lifetime: none.
 */
COWSNAP_API int cowsnap_device_read(
	struct cowsnap_device *device, void *buffer, uint64_t offset, uint64_t length);
COWSNAP_API int cowsnap_device_write(
	struct cowsnap_device *device, const void *buffer, uint64_t offset, uint64_t length);
COWSNAP_API int cowsnap_device_zero(
	struct cowsnap_device *device, uint64_t offset, uint64_t length);
COWSNAP_API int cowsnap_device_discard(
	struct cowsnap_device *device, uint64_t offset, uint64_t length);
COWSNAP_API int cowsnap_device_flush(struct cowsnap_device *device);

/* ---- Origins and the write bracket ---------------------------------------------------------- */

/*
 * cowsnap_origin_open - name a device as an origin; from now on each of its writes is bracketed
 * Returns: 0; -EINVAL (no device), -EBADF (device closed), -EBUSY (the device is an origin or a
 *	store already, also under another path), -EXDEV (device of another context), -ENOMEM.
 * Context: any thread; does not block; may run in a callback.
 * Lifetime: until cowsnap_origin_close(); the device must outlive it.
 */
COWSNAP_API int cowsnap_origin_open(
	struct cowsnap_ctx *ctx, struct cowsnap_device *device, struct cowsnap_origin **origin);

/*
 * cowsnap_origin_close - end an origin
 * Returns: 0; -EBUSY (somebody holds a snapshot of it, dropped or not, or a bracket is open; or,
 *	for a moment only, a take, a reclaim, or a read of another snapshot of the same store, is
 *	under way: try again), -EBADF (closed already). NULL is accepted.
 * Context: no other call on this origin may be running; reclaims what was dropped, which does not
 *	block on I/O but takes time; not in a callback.
 * Lifetime: ends that of the origin; the handle stays recognisable until the context ends.
 */
COWSNAP_API int cowsnap_origin_close(struct cowsnap_origin *origin);

enum cowsnap_write_kind {
	COWSNAP_WRITE = 1,
	COWSNAP_DISCARD = 2,
	COWSNAP_WRITE_ZEROES = 3,
};

/*
 * cowsnap_write_begin - ask that a range of the origin may be changed
 *
 * Returns once every snapshot that needs the old content has it. Cost: no snapshot, two uncontended
 * atomic additions for begin and end together; content saved already, one look-up per 64 chunks and
 * store, however many snapshots there are; else one copy of what is not saved.
 *
 * Returns: 0 (write now, then call cowsnap_write_end()). On failure there is no bracket to end:
 *	-EINVAL (length 0, unknown kind), -EOVERFLOW (offset plus length wraps), -ERANGE (outside
 *	the origin), -EBADF (origin closed); where the taker of a snapshot chose that the write
 *	loses: -ENOSPC (store full), -ENOMEM, or the error of the copy; and, whatever was chosen,
 *	the error of a persistent store that could not record that its snapshot became invalid: a
 *	write that went on would leave a wrong snapshot that looks right after a crash. Drop or
 *	deactivate that snapshot.
 * Context: any thread, many at once; waits for copies, for the drain of a take, for copy credits
 *	and as on_full says; not in a callback.
 * Lifetime: @op must stay in place until cowsnap_write_end() returns.
 */
COWSNAP_API int cowsnap_write_begin(struct cowsnap_origin *origin, enum cowsnap_write_kind kind,
	uint64_t offset, uint64_t length, struct cowsnap_op *op);

/*
 * cowsnap_write_begin_async - the same without waiting
 * @queue: where the operation goes on; NULL: on a worker, if the context has them
 * Returns: 0 (write now; no callback), COWSNAP_PENDING (@ready will be called with 0 or an error of
 *	cowsnap_write_begin(), or -ECANCELED; after 0 write, then call cowsnap_write_end()), or an
 *	error; beside those of cowsnap_write_begin(): -EINVAL (no queue and no workers, no
 *	callback), -EBADF (queue closed), -EXDEV (queue of another context).
 * Context: the thread that polls @queue, also in a callback; without a queue, any thread. With a
 *	queue it blocks on devices that cannot be submitted to, and on all with
 *	COWSNAP_ENGINE_INLINE; without one it does not.
 * Lifetime: @op must stay in place until cowsnap_write_end() returns, or @ready has told of an
 *	error.
 */
COWSNAP_API int cowsnap_write_begin_async(struct cowsnap_origin *origin,
	struct cowsnap_queue *queue, enum cowsnap_write_kind kind, uint64_t offset, uint64_t length,
	struct cowsnap_op *op, cowsnap_done *ready, void *user);

/*
 * cowsnap_write_end - say that the write of a bracket has ended, whether it succeeded or not
 * Returns: nothing.
 * Context: any thread, also another than began it; does not block; may run in a callback.
 * Lifetime: ends that of what @op holds.
 */
COWSNAP_API void cowsnap_write_end(struct cowsnap_op *op);

/* ---- Stores --------------------------------------------------------------------------------- */

#define COWSNAP_TRANSIENT_SKIP_ZEROES (UINT32_C(1) << 0) /* preimages of zeroes take no space */

struct cowsnap_transient_options {
	size_t size;
	uint32_t flags;
	uint32_t reserved;
	uint64_t chunk_size_bytes;     /* a power of two; default 4 KiB */
	struct cowsnap_device *device; /* NULL: memory, growing as it is used */
	uint64_t limit_bytes;          /* default: device: its size; memory: 1/4 of the machine's */
	uint64_t low_water_bytes;      /* event when less is free; default limit / 8 */
};

/*
 * cowsnap_store_transient - a store that lives as long as the process and writes no metadata
 * @options: NULL for all defaults
 * Returns: 0; -EINVAL (unknown flag, chunk size not a power of two), -E2BIG, -ERANGE (chunk size
 *	out of bounds, limit smaller than a chunk or larger than the device), -EBUSY (the device is
 *	an origin or a store already, also under another path, or another process has it), -EBADF
 *	(device closed), -EXDEV (device of another context), -ENOMEM.
 * Context: any thread; does not block; may run in a callback.
 * Lifetime: until cowsnap_store_close(); the device must outlive it.
 */
COWSNAP_API int cowsnap_store_transient(struct cowsnap_ctx *ctx,
	const struct cowsnap_transient_options *options, struct cowsnap_store **store);

/*
 * cowsnap_store_close - end a store
 * Returns: 0; -EBUSY (somebody holds, reads or writes for a snapshot of it, dropped or not; or, for
 *	a moment only, a take is under way: try again), -EBADF (closed already). NULL is accepted.
 * Context: no other call on this store may be running; reclaims what was dropped; may block on the
 *	device; not in a callback.
 * Lifetime: ends that of the store; the handle stays recognisable until the context ends.
 */
COWSNAP_API int cowsnap_store_close(struct cowsnap_store *store);

/*
 * cowsnap_store_drain - wait until nothing holds up what dropped snapshots left in a store
 *
 * A drop returns at once, also while a write of before it still copies for the snapshot, or
 * somebody reads it, on a device that may never answer. This waits for these, and reclaims what
 * they held up. After it, and when the host has given its references back, the store and its
 * origins can be closed. Writes and reads that began after the drop are not waited for, nor are
 * live snapshots.
 *
 * @wait_ns: how long; 0: only look; UINT64_MAX: for ever
 * Returns: 0; -ETIMEDOUT (something is still in use, another take has its turn, or there is no
 *	memory to reclaim with), -EBADF (closed).
 * Context: any thread, several at once; blocks up to @wait_ns; takes go on meanwhile; neither the
 *	store nor an origin with a snapshot in it may be closed meanwhile; not inside a bracket of
 *	such an origin, not in a callback.
 * Lifetime: none.
 */
COWSNAP_API int cowsnap_store_drain(struct cowsnap_store *store, uint64_t wait_ns);

/*
 * cowsnap_store_set_limit - grow a store, or shrink it to no less than what is used
 * @limit_bytes: of preimages; 0: as much as the device has room for at this moment
 * Returns: 0; -EBADF, -ERANGE (more than the device has, or less than a chunk), -EBUSY (less than
 *	is used), -ENOTSUP (a store of the host's that cannot).
 * Context: any thread; does not block; may run in a callback. Wakes writers that wait for space.
 * Lifetime: none.
 */
COWSNAP_API int cowsnap_store_set_limit(struct cowsnap_store *store, uint64_t limit_bytes);

struct cowsnap_store_usage {
	uint64_t chunk_size_bytes;
	uint64_t used_bytes; /* preimages that a snapshot can reach, or not yet reclaimed */
	uint64_t limit_bytes;
	uint64_t reclaimable_bytes; /* of these, at most: for cowsnap_reclaim() */
	uint64_t high_water_bytes;  /* the most that used_bytes has been */
	uint64_t map_bytes;         /* memory of the exception maps, and of what has changed */
	uint32_t snapshots;         /* live and map-only ones */
	uint32_t ghosts; /* dropped ones whose map is still needed or not yet reclaimed */
};

/*
 * cowsnap_store_usage - how full a store is
 * @usage: filled; the caller sets nothing
 * @size: sizeof(*usage); a smaller known size fills only what fits
 * Returns: 0; -EBADF (store closed), -EINVAL (size).
 * Context: any thread; does not block; may run in a callback.
 * Lifetime: none.
 */
COWSNAP_API int cowsnap_store_usage(
	struct cowsnap_store *store, struct cowsnap_store_usage *usage, size_t size);

/* ---- Take and drop -------------------------------------------------------------------------- */

/* Who loses when a preimage cannot be saved: the store is full, or a copy failed. Only snapshots
 * that need this preimage have a say; if one of them says that the write loses, none becomes
 * invalid. */
enum cowsnap_loser {
	COWSNAP_LOSER_SNAPSHOT = 0, /* the snapshot becomes invalid, the write goes on */
	COWSNAP_LOSER_WRITE = 1,    /* the write fails with the cause, the snapshot stays whole */
	COWSNAP_LOSER_ASK = 2,      /* ask the decide callback */
};

enum cowsnap_decision {
	COWSNAP_DECIDE_SNAPSHOT = 0,
	COWSNAP_DECIDE_WRITE = 1,
	COWSNAP_DECIDE_RETRY = 2, /* something was done about it: try the copy once more */
};

struct cowsnap_trouble {
	struct cowsnap_snapshot *snapshot;
	struct cowsnap_store *store;
	int reason;       /* -ENOSPC, or the error of the copy */
	uint32_t attempt; /* 1 for the first time that this write asks */
	uint64_t offset;  /* what could not be saved */
	uint64_t length;
};

/* The snapshot only says which chunks have changed since: no data is saved for it. */
#define COWSNAP_TAKE_MAP_ONLY (UINT32_C(1) << 0)

struct cowsnap_take_entry {
	struct cowsnap_origin *origin;
	struct cowsnap_store *store;
	enum cowsnap_loser on_full;
	uint32_t flags;
	/* Before anybody loses for want of space, the write waits this long for some, from its
	 * first difficulty on; 0: not at all; UINT64_MAX: for ever. A failed copy is tried again at
	 * most 8 times in that time, at most a second apart. While a write waits, takes of its
	 * origin wait for it. */
	uint64_t wait_ns;
	/* For COWSNAP_LOSER_ASK. Runs on the thread that carries the write on, the writer's own,
	 * one that polls or a worker, with no lock, claim or credit held. It may call what says
	 * that it may run in a callback, but close nothing. */
	enum cowsnap_decision (*decide)(void *user, const struct cowsnap_trouble *trouble);
	void *user;                        /* for decide, and cowsnap_snapshot_user() */
	struct cowsnap_snapshot *snapshot; /* out: the snapshot, one reference to it */
};

struct cowsnap_take_options {
	size_t size;
	uint32_t flags; /* none defined: 0 */
	uint32_t reserved;
	/* Longest wait, for other takes and for older writes; default 5 s; UINT64_MAX: for ever. */
	uint64_t deadline_ns;
	/* Called just before and just after the instant of the take, for a host that wants to
	 * quiesce what is above it. An error of freeze gives up the take and is returned; thaw is
	 * called whenever freeze succeeded. */
	int (*freeze)(void *user);
	void (*thaw)(void *user);
	void *user;
};

/*
 * cowsnap_take - freeze one or many origins at one instant
 *
 * Every write that began before the instant is in the snapshots, none that began after it. Writers
 * are not stopped: only one that begins after the instant and needs a copy waits until the writes
 * that were under way have ended (the drain). The call returns after the drain. If that takes
 * longer than the deadline the take is withdrawn as a whole.
 *
 * @options: NULL for all defaults
 * @entries: one for each origin and store; several stores of one origin are several entries
 * Returns: 0 (each entry's snapshot is set); -EINVAL (no entries, unknown flag or size, LOSER_ASK
 *	without decide, unknown on_full, an origin and store named twice), -E2BIG, -EBADF (closed
 *	handle), -EXDEV (an origin or a store of another context), -ENOTSUP (the store holds one
 *	snapshot and has it; a persistent store, and MAP_ONLY), -EBUSY (a snapshot of the origin is
 *	being merged), -ETIMEDOUT (deadline), -ENOMEM, freeze's error, or that of a
 *	persistent store that could not record the snapshot (-EDEADLK: as for
 *	cowsnap_snapshot_drop()). Nothing was taken then. That a store is on its origin was refused
 *	when the second of them was opened.
 * Context: any thread, several at once (they go one after the other); blocks up to the deadline;
 *	not inside a bracket of one of these origins (it would wait for itself until the deadline);
 *	not in a callback.
 * Lifetime: each snapshot until cowsnap_snapshot_drop() and cowsnap_snapshot_unref().
 */
COWSNAP_API int cowsnap_take(struct cowsnap_ctx *ctx, const struct cowsnap_take_options *options,
	struct cowsnap_take_entry *entries, size_t count);

/*
 * cowsnap_take_async - the same without waiting for other takes and for the drain
 * @queue: where the take goes on; NULL: on a worker, if the context has them
 * The deadline counts from the call.
 *
 * Returns: COWSNAP_PENDING (@done will be called with 0 or an error of cowsnap_take(), or
 *	-ECANCELED: the take was withdrawn), or the error of an argument; beside those of
 *	cowsnap_take(): as cowsnap_write_begin_async().
 * Context: as cowsnap_write_begin_async(). The instant may be inside the call or in a poll; freeze
 *	and thaw run there. A persistent store blocks while it records that it has a snapshot, or
 *	that it has none after all. Once it is this take's turn others wait for its end, and so does
 *	the closing of origins and stores: go on polling. Where NULL is given, on a worker.
 * Lifetime: @options is copied; @entries and @op must stay in place until @done has been called.
 */
COWSNAP_API int cowsnap_take_async(struct cowsnap_ctx *ctx, struct cowsnap_queue *queue,
	const struct cowsnap_take_options *options, struct cowsnap_take_entry *entries,
	size_t count, struct cowsnap_op *op, cowsnap_done *done, void *user);

/*
 * cowsnap_snapshot_drop - delete a snapshot; writes no longer copy for it, reads of it fail
 *
 * Constant time. What only this snapshot needed is given back by cowsnap_reclaim(), and by a write
 * that would else find the store full. The caller's reference stays: release it with
 * cowsnap_snapshot_unref(). A persistent store records the drop first, so that the snapshot does
 * not come back after a crash.
 *
 * Returns: 0; -EIDRM (dropped already), or the error of a persistent store that could not record
 *	it: the snapshot is as before. -EDEADLK: the store's device cannot write durably without a
 *	flush, and one is under way in a queue that this thread polls: try again after a poll, in a
 *	callback of that queue not before it has returned.
 * Context: any thread, also while others read this snapshot or write to the origin; does not block
 *	on writers, nor on I/O unless the store is persistent; may run in a callback. Two threads
 *	that poll, and each drop a persistent snapshot that the other's queue writes for, may wait
 *	for each other: where several poll, drop these on a thread that does not.
 * Lifetime: the handle stays valid until its last reference goes.
 */
COWSNAP_API int cowsnap_snapshot_drop(struct cowsnap_snapshot *snapshot);

/*
 * cowsnap_snapshot_deactivate - end a snapshot in this process, and leave it in its store
 *
 * For a host that ends and wants its snapshot at the next start: see cowsnap_store_dm_open(). Also
 * for one whose store's device has failed, so that a drop cannot be recorded, and whose writes must
 * go on: what is on the device is then worthless, and only the host knows. Afterwards the store is
 * good for nothing but to be closed. Let no bracket be open, and write no more to the origin: that
 * is not saved any more.
 *
 * A merge that was begun is left where it is: it is begun again at the next start.
 *
 * Returns: 0; -ENOTSUP (the store is not persistent), -EIDRM (dropped or deactivated already),
 *	-EBUSY (its merge begins, or a call that moves is under way), -ENOMEM (of a merge).
 * Context: any thread; waits for a drop of it that is under way; may run in a callback. During a
 *	merge it waits for takes, and for all brackets, reads and writes of the origin that are
 *	under way: then not on a thread that has any of these, and not in a callback.
 * Lifetime: as for a drop; the state is COWSNAP_SNAPSHOT_DROPPED.
 */
COWSNAP_API int cowsnap_snapshot_deactivate(struct cowsnap_snapshot *snapshot);

/*
 * cowsnap_snapshot_ref - one more reference, so that a reader may outlive the drop
 * cowsnap_snapshot_unref - give a reference back; NULL is accepted
 * Returns: ref: the snapshot. unref: nothing.
 * Context: any thread; does not block; may run in a callback.
 * Lifetime: the handle ends with its last reference. Giving it back does not drop: drop first.
 */
COWSNAP_API struct cowsnap_snapshot *cowsnap_snapshot_ref(struct cowsnap_snapshot *snapshot);
COWSNAP_API void cowsnap_snapshot_unref(struct cowsnap_snapshot *snapshot);

/*
 * cowsnap_reclaim - give back what dropped snapshots left, in bounded steps
 * @max_chunks: about how many exceptions to look at; UINT64_MAX: all there are; 0: only ask
 * Returns: 1 (there is more to do), 0 (nothing left, or what is left waits for a reader or a write
 *	that is under way, or another thread is at it).
 * Context: any thread; does not block on I/O, readers or writers; may run in a callback. Call it
 *	when idle, or after a drop; never needed for correctness.
 * Lifetime: none.
 */
COWSNAP_API int cowsnap_reclaim(struct cowsnap_ctx *ctx, uint64_t max_chunks);

/* ---- Reading a snapshot --------------------------------------------------------------------- */

/*
 * cowsnap_snapshot_read - read the frozen image
 *
 * Lock-free against writers: nobody waits for a reader. Data is handed out only if the snapshot is
 * still valid after all of it was read.
 *
 * Returns: 0 (all of it was read); -EINVAL (length 0), -EOVERFLOW, -ERANGE (outside the snapshot),
 *	-EIDRM (dropped), -ESTALE (invalid; cowsnap_snapshot_info() has the reason), -ENODATA (part
 *	of it was released, or the snapshot is map-only), -EBUSY (being merged), -ENOMEM, or the
 *	error of the origin's or the store's device. After an error @buffer holds nothing of use.
 * Context: any thread, many at once; blocks on the devices; not in a callback.
 * Lifetime: the caller holds a reference.
 */
COWSNAP_API int cowsnap_snapshot_read(
	struct cowsnap_snapshot *snapshot, void *buffer, uint64_t offset, uint64_t length);

/*
 * cowsnap_snapshot_read_async - the same without waiting
 * @queue: where the read goes on; NULL: on a worker, if the context has them
 * Returns: 0 (it is done; no callback), COWSNAP_PENDING (@done will be called with 0 or an error of
 *	cowsnap_snapshot_read(), or -ECANCELED), or an error; beside those of
 *	cowsnap_snapshot_read(): as cowsnap_write_begin_async().
 * Context: as cowsnap_write_begin_async().
 * Lifetime: the caller holds a reference, and @buffer and @op stay in place, until the end.
 */
COWSNAP_API int cowsnap_snapshot_read_async(struct cowsnap_snapshot *snapshot,
	struct cowsnap_queue *queue, void *buffer, uint64_t offset, uint64_t length,
	struct cowsnap_op *op, cowsnap_done *done, void *user);

struct cowsnap_extent {
	uint64_t offset;
	uint64_t length;
	bool saved; /* a preimage in the store; else the content is still in the origin */
};

/*
 * cowsnap_snapshot_extent - where the content at an offset comes from, and for how long
 * @limit: look no further than offset + limit; the extent ends there at the latest. The call takes
 *	one look-up for each 64 chunks and map, so bound it.
 * Returns: 0; -EINVAL (limit 0), -EOVERFLOW, -ERANGE (offset + limit beyond the end), -EIDRM,
 *	-ESTALE, -EBUSY as for a read, -ENODATA (what is at @offset was released, or the snapshot
 *	is map-only). An extent ends before what was released.
 * Context: any thread; does not block; may run in a callback. A writer may turn origin into saved
 *	at any moment, never the other way round.
 * Lifetime: the caller holds a reference.
 */
COWSNAP_API int cowsnap_snapshot_extent(struct cowsnap_snapshot *snapshot, uint64_t offset,
	uint64_t limit, struct cowsnap_extent *extent);

enum cowsnap_snapshot_state {
	COWSNAP_SNAPSHOT_ACTIVE = 1,
	COWSNAP_SNAPSHOT_INVALID = 2,
	COWSNAP_SNAPSHOT_DROPPED = 3,
	COWSNAP_SNAPSHOT_MAP_ONLY = 4, /* says what has changed, and cannot be read */
	COWSNAP_SNAPSHOT_MERGING = 5,  /* read the origin instead: cowsnap_origin_read() */
};

struct cowsnap_snapshot_info {
	enum cowsnap_snapshot_state state;
	int reason;             /* INVALID: negative errno of the cause, for ever */
	uint64_t reason_offset; /* INVALID: what could not be saved */
	uint64_t reason_length;
	uint64_t id;         /* unique in the context, rising with the time of the take */
	uint64_t size_bytes; /* of the origin at the take */
	uint64_t chunk_size_bytes;
	uint64_t saved_chunks; /* in this snapshot's own map; newer maps may hold more for it */
	uint64_t map_bytes;
	uint64_t written_chunks;  /* that only this snapshot sees: cowsnap_snapshot_write() */
	uint64_t released_chunks; /* cowsnap_snapshot_release() */
	uint32_t overflowed;      /* 1: the last write to it that wanted space found none */
	uint32_t detached;        /* 1: it needs its origin no more */
};

/*
 * cowsnap_snapshot_info - state, reason and numbers of a snapshot
 * @size: sizeof(*info); a smaller known size fills only what fits
 * Returns: 0; -EINVAL (size).
 * Context: any thread; does not block; may run in a callback.
 * Lifetime: the caller holds a reference.
 */
COWSNAP_API int cowsnap_snapshot_info(
	struct cowsnap_snapshot *snapshot, struct cowsnap_snapshot_info *info, size_t size);

/*
 * cowsnap_snapshot_user - the user pointer of the take entry
 * Returns: that pointer.
 * Context: any thread; does not block; may run in a callback.
 * Lifetime: the host's.
 */
COWSNAP_API void *cowsnap_snapshot_user(const struct cowsnap_snapshot *snapshot);

/* ---- Statistics ----------------------------------------------------------------------------- */

struct cowsnap_stats {
	uint64_t writes;         /* brackets begun */
	uint64_t fast_writes;    /* of these, admitted without a copy or a wait */
	uint64_t copied_chunks;  /* preimages saved; one that goes to two stores counts twice */
	uint64_t copied_bytes;   /* these in bytes, the last chunk of an origin counted whole */
	uint64_t origin_reads;   /* reads of an origin for copies */
	uint64_t origin_bytes;   /* bytes of these: one read serves all stores */
	uint64_t claim_waits;    /* waits for another writer's copy */
	uint64_t drain_waits;    /* waits for the drain of a take */
	uint64_t credit_waits;   /* waits for the bound on bytes in flight */
	uint64_t space_waits;    /* waits for store space */
	uint64_t failed_writes;  /* brackets refused because the taker chose so */
	uint64_t snapshot_reads; /* reads of snapshots, of both kinds */
	uint64_t reread_chunks;  /* origin chunks saved during a read, hence read again */
	uint64_t copies;         /* copies timed: from the claim to the publication */
	uint64_t copy_ns_p50;    /* percentiles of their duration, within 1/16 */
	uint64_t copy_ns_p90;
	uint64_t copy_ns_p99;
	uint64_t copy_ns_p999;
	uint64_t copy_ns_max;
	uint64_t given_bytes; /* preimages that the host handed over, once for each store */
	uint64_t zero_chunks; /* of copied_chunks, those that take no space, being zeroes */
};

/*
 * cowsnap_origin_stats - the counters of one origin since it was opened
 * cowsnap_ctx_stats - the same summed over all origins of a context, closed ones too
 * @size: sizeof(*stats); a smaller known size fills only what fits
 * Returns: 0; -EBADF (origin closed), -EINVAL (size).
 * Context: any thread; does not block; may run in a callback. Counters are read one by one.
 * Lifetime: none.
 */
COWSNAP_API int cowsnap_origin_stats(
	struct cowsnap_origin *origin, struct cowsnap_stats *stats, size_t size);
COWSNAP_API int cowsnap_ctx_stats(
	struct cowsnap_ctx *ctx, struct cowsnap_stats *stats, size_t size);

struct cowsnap_thread_io {
	uint64_t thread; /* number of the thread in the system (gettid) at its first copy */
	uint64_t reads;  /* reads and writes that this thread issued for copies */
	uint64_t read_bytes;
	uint64_t writes;
	uint64_t write_bytes;
};

/*
 * cowsnap_ctx_thread_io - the copy I/O by issuing thread: is the load spread?
 * @count: how many @threads has room for
 * Returns: the number of threads known (it may exceed @count; the first @count are filled). Thread
 *	0 gathers those beyond the first 255.
 * Context: any thread; does not block; may run in a callback.
 * Lifetime: none.
 */
COWSNAP_API int cowsnap_ctx_thread_io(
	struct cowsnap_ctx *ctx, struct cowsnap_thread_io *threads, size_t count);

#ifdef __cplusplus
}
#endif

#include <cowsnap/blocks.h>
#include <cowsnap/extend.h>
#include <cowsnap/persistent.h>
#include <cowsnap/queues.h>
#include <cowsnap/snapshots.h>

#endif
