/* SPDX-License-Identifier: MIT
 *
 * cowsnap: snapshots at full strength. Preimages that the host hands over, snapshots that are
 * written to, that release what was read, that only say what has changed, that are merged into
 * their origin or made independent of it; and the handover of a store to another process. A part of
 * Snapshots; included by cowsnap.h, where the rules for errors, threads and growth are.
 */
#ifndef COWSNAP_SNAPSHOTS_H
#define COWSNAP_SNAPSHOTS_H

#include <cowsnap.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Preimages from the host ----------------------------------------------------------------- */

enum cowsnap_preimage_kind {
	COWSNAP_PREIMAGE_READ = 0,  /* not at hand: it is read from the origin's device */
	COWSNAP_PREIMAGE_GIVEN = 1, /* it is at `data` */
	COWSNAP_PREIMAGE_ZERO = 2,  /* zeroes, or not allocated above: nobody misses what it held */
};

struct cowsnap_preimage_ask {
	uint64_t offset; /* what has to be saved: whole chunks, or up to the end of the origin */
	/* In: how much. Out: about how much of it, from offset on, the answer is: whole chunks, or
	 * all. */
	uint64_t length;
	const void *data; /* out, for GIVEN: that many bytes */
};

/* What the host knows of old content. */
struct cowsnap_preimage {
	/* Asked once for each run of chunks that is about to be copied, and for no other. Runs on
	 * the thread that carries the write on, with no lock held, but with the right to copy that
	 * others may be waiting for: it must not wait, nor call the library. What `data` points to
	 * must stay as it is until the bracket has begun: cowsnap_write_begin() has returned, or
	 * the callback of the asynchronous form was called. An answer that is not allowed (a length
	 * of 0, or of part of a chunk) is logged, and taken for READ. */
	enum cowsnap_preimage_kind (*get)(void *user, struct cowsnap_preimage_ask *ask);
	void *user;
};

/*
 * cowsnap_write_begin_with - cowsnap_write_begin() for a host that may have the preimage at hand
 * @preimage: NULL: as cowsnap_origin_set_preimage() says
 * Returns: as cowsnap_write_begin().
 * Context: as cowsnap_write_begin().
 * Lifetime: @preimage until the return; @op as for cowsnap_write_begin().
 */
COWSNAP_API int cowsnap_write_begin_with(struct cowsnap_origin *origin,
	enum cowsnap_write_kind kind, uint64_t offset, uint64_t length,
	const struct cowsnap_preimage *preimage, struct cowsnap_op *op);

/*
 * cowsnap_write_begin_with_async - the same without waiting
 * Returns: as cowsnap_write_begin_async().
 * Context: as cowsnap_write_begin_async().
 * Lifetime: @preimage until the return or, if pending, until @ready is called; @op as for
 *	cowsnap_write_begin_async().
 */
COWSNAP_API int cowsnap_write_begin_with_async(struct cowsnap_origin *origin,
	struct cowsnap_queue *queue, enum cowsnap_write_kind kind, uint64_t offset, uint64_t length,
	const struct cowsnap_preimage *preimage, struct cowsnap_op *op, cowsnap_done *ready,
	void *user);

/*
 * cowsnap_origin_set_preimage - what is asked for brackets that bring none of their own
 *
 * For a host that knows which ranges are unallocated, or whose cache is found without the bracket.
 * Merges and detaches ask for nothing.
 *
 * @preimage: copied; NULL: nothing is asked
 * Returns: 0; -EBADF (closed), -EINVAL (no get), -EBUSY (a bracket has begun on this origin).
 * Context: any thread, before the first bracket; does not block; may run in a callback.
 * Lifetime: @preimage->user must outlive the origin.
 */
COWSNAP_API int cowsnap_origin_set_preimage(
	struct cowsnap_origin *origin, const struct cowsnap_preimage *preimage);

/* ---- Origins --------------------------------------------------------------------------------- */

/*
 * cowsnap_origin_resize - make an origin longer, while snapshots live; each keeps its size
 *
 * The device has become longer before: see cowsnap_device_refresh().
 *
 * @size_bytes: 0: as long as its device
 * Returns: 0 (also if it has that size); -EBADF (closed), -ERANGE (longer than the device),
 *	-ENOTSUP (shorter than it is: snapshots need what would be cut off; the log says so).
 * Context: any thread, one at a time; brackets go on meanwhile; does not block; may run in a
 *	callback.
 * Lifetime: none.
 */
COWSNAP_API int cowsnap_origin_resize(struct cowsnap_origin *origin, uint64_t size_bytes);

/*
 * cowsnap_origin_size - how long an origin is
 * Returns: bytes; 0 if it is closed.
 * Context: any thread; does not block; may run in a callback.
 * Lifetime: none.
 */
COWSNAP_API uint64_t cowsnap_origin_size(const struct cowsnap_origin *origin);

/*
 * cowsnap_origin_read - read the volume as it is: the origin's device, or, during a merge, what the
 *	snapshot has for it
 * cowsnap_origin_write - the same for a write, a discard or zeroes, with their bracket
 * cowsnap_origin_flush - make durable what has returned; during a merge, in the store too
 *
 * For a host that has the library do its I/O, and for each host while one of its snapshots is
 * merged: then the origin's device alone is neither the one image nor the other.
 *
 * @buffer: of a write of kind COWSNAP_WRITE; else NULL
 * Returns: 0 (all of it was done); -EINVAL (length 0, unknown kind), -EOVERFLOW, -ERANGE (outside
 *	the origin), -EBADF (closed); write: also those of cowsnap_write_begin(); or the error of a
 *	device.
 * Context: any thread, many at once; as cowsnap_write_begin(), and blocks on the devices; not in a
 *	callback.
 * Lifetime: none.
 */
COWSNAP_API int cowsnap_origin_read(
	struct cowsnap_origin *origin, void *buffer, uint64_t offset, uint64_t length);
COWSNAP_API int cowsnap_origin_write(struct cowsnap_origin *origin, enum cowsnap_write_kind kind,
	const void *buffer, uint64_t offset, uint64_t length);
COWSNAP_API int cowsnap_origin_flush(struct cowsnap_origin *origin);

/*
 * cowsnap_origin_read_async - cowsnap_origin_read() without waiting
 * cowsnap_origin_write_async - cowsnap_origin_write() without waiting
 * cowsnap_origin_flush_async - cowsnap_origin_flush() without waiting
 *
 * A write that is cancelled, or fails, may have been done in part: from its beginning on, up to
 * somewhere.
 *
 * @queue: where it goes on; NULL: on a worker, if the context has them
 * Returns: COWSNAP_PENDING (@done will be called with 0 or an error of the form that waits, or
 *	-ECANCELED), or an error; beside those: -ENOMEM, and as cowsnap_write_begin_async().
 * Context: as cowsnap_write_begin_async(). During a merge the flush blocks on a persistent store's
 *	device, unless that has write_durable or needs no flush.
 * Lifetime: @buffer and @op stay in place until the end. The origin is not closed before (-EBUSY).
 */
COWSNAP_API int cowsnap_origin_read_async(struct cowsnap_origin *origin,
	struct cowsnap_queue *queue, void *buffer, uint64_t offset, uint64_t length,
	struct cowsnap_op *op, cowsnap_done *done, void *user);
COWSNAP_API int cowsnap_origin_write_async(struct cowsnap_origin *origin,
	struct cowsnap_queue *queue, enum cowsnap_write_kind kind, const void *buffer,
	uint64_t offset, uint64_t length, struct cowsnap_op *op, cowsnap_done *done, void *user);
COWSNAP_API int cowsnap_origin_flush_async(struct cowsnap_origin *origin,
	struct cowsnap_queue *queue, struct cowsnap_op *op, cowsnap_done *done, void *user);

/* ---- Writing to a snapshot ------------------------------------------------------------------- */

/*
 * cowsnap_snapshot_write - change what one snapshot shows, and nothing else
 *
 * Neither the origin nor any other snapshot sees it. What is written lies in the snapshot's store;
 * whole chunks are written without copying anything, of others the rest is copied first. What was
 * written before is written in place. In a persistent store a chunk's first write is durable at the
 * return, later ones after cowsnap_snapshot_flush().
 *
 * A write begins and ends at multiples of the block size of the store's device (1 for most), or at
 * the end of the snapshot; a discard may begin and end anywhere.
 *
 * @kind: COWSNAP_WRITE_ZEROES and COWSNAP_DISCARD make the range read as zeroes; a discard leaves
 *	alone what is not a whole chunk (the last one of the snapshot also if it is cut off by its
 *	end). Chunks that were not written before take no space then, except in a store that
 *	records and has not COWSNAP_STORE_ZEROES
 * @buffer: of COWSNAP_WRITE; else NULL. A chunk's first write, and later ones, may hand it to the
 *	store's device as it is: one that wants aligned memory wants it of the caller
 * Returns: 0 (all of it was done); -EINVAL (length 0, unknown kind; not a multiple of what the
 *	store's device writes at once), -EOVERFLOW, -ERANGE (outside the snapshot), -EIDRM
 *	(dropped), -ESTALE (invalid), -ENODATA (part of a range that was released, or a map-only
 *	snapshot), -EBUSY (being merged), -ENOSPC (the store is full: the snapshot
 *	stays as it is, and info says `overflowed`), -ENOMEM, or the error of a device. After an
 *	error a part may have been done.
 * Context: any thread, many at once; what is written to the same bytes at the same time is up to
 *	the host; blocks on the devices; not in a callback.
 * Lifetime: the caller holds a reference.
 */
COWSNAP_API int cowsnap_snapshot_write(struct cowsnap_snapshot *snapshot,
	enum cowsnap_write_kind kind, const void *buffer, uint64_t offset, uint64_t length);

/*
 * cowsnap_snapshot_write_async - the same without waiting
 * @queue: where the write goes on; NULL: on a worker, if the context has them
 * Returns: COWSNAP_PENDING (@done will be called with 0 or an error of cowsnap_snapshot_write(), or
 *	-ECANCELED), or an error; beside those: as cowsnap_write_begin_async().
 * Context: as cowsnap_write_begin_async().
 * Lifetime: the caller holds a reference, and @buffer and @op stay in place, until the end.
 */
COWSNAP_API int cowsnap_snapshot_write_async(struct cowsnap_snapshot *snapshot,
	struct cowsnap_queue *queue, enum cowsnap_write_kind kind, const void *buffer,
	uint64_t offset, uint64_t length, struct cowsnap_op *op, cowsnap_done *done, void *user);

/*
 * cowsnap_snapshot_flush - make durable what writes to a snapshot have returned
 * Returns: 0; -EIDRM, -ESTALE, -ENODATA, -EBUSY as a write, or the error of the store's device.
 * Context: any thread; blocks on the store's device; not in a callback.
 * Lifetime: the caller holds a reference.
 */
COWSNAP_API int cowsnap_snapshot_flush(struct cowsnap_snapshot *snapshot);

/* ---- Releasing ------------------------------------------------------------------------------- */

/*
 * cowsnap_snapshot_release - say that a range of a snapshot was read and is not needed any more
 *
 * Its space is given back as soon as no other snapshot needs it, and later writes of the origin
 * copy nothing there. Chunks that lie wholly in the range are released (the last one of the
 * snapshot also if it is cut off by its end). What has changed is still told: cowsnap_changes().
 *
 * Returns: 0; -EINVAL (length 0), -EOVERFLOW, -ERANGE, -EIDRM, -ESTALE as for a read, -EBUSY (being
 *	merged), -ENOTSUP (a persistent store: its format cannot say it), -ENOMEM (nothing, or a
 *	part, was released).
 * Context: any thread, also while others read or write; does not block on I/O; may run in a
 *	callback.
 * Lifetime: the caller holds a reference.
 */
COWSNAP_API int cowsnap_snapshot_release(
	struct cowsnap_snapshot *snapshot, uint64_t offset, uint64_t length);

/*
 * cowsnap_snapshot_downgrade - keep which chunks have changed since a snapshot, and no data
 *
 * It becomes what COWSNAP_TAKE_MAP_ONLY makes: reads fail with -ENODATA; its preimages are given
 * back (by cowsnap_reclaim(), as after a drop); writes copy nothing for it.
 *
 * Returns: 0 (also if it is one already); -EIDRM, -ESTALE, -EBUSY (being merged), -ENOTSUP (a
 *	persistent store).
 * Context: any thread; constant time; does not block on I/O; may run in a callback.
 * Lifetime: the caller holds a reference.
 */
COWSNAP_API int cowsnap_snapshot_downgrade(struct cowsnap_snapshot *snapshot);

/* ---- What has changed ------------------------------------------------------------------------ */

struct cowsnap_change {
	uint64_t offset;
	uint64_t length;
};

/*
 * cowsnap_changes - what differs between a snapshot and a later one, or between it and now
 *
 * Never leaves out what differs; may name what does not: whole chunks, and what was written with
 * what it held. Runs come in order, none touches the next one. To go over a whole volume: begin
 * with *@offset 0, and call again until it is the length of the longer image.
 *
 * @from, @to: of one origin, @to the younger; @to NULL: now, as cowsnap_origin_read() has it.
 *	Either may be map-only, or have released ranges
 * @offset: in: where to begin; out: what lies before was looked at
 * @changes: filled with at most @count (at least 1) runs
 * Returns: the number of runs, 0 if there are none up to *@offset; -EINVAL (count 0, @from is not
 *	older than @to), -EXDEV (of different origins), -ERANGE (*@offset beyond the end), -EIDRM
 *	(one was dropped), -ESTALE (one is invalid: what is known is not complete).
 * Context: any thread; does not block; may run in a callback. One call looks at no more than
 *	1,048,576 chunks.
 * Lifetime: the caller holds references.
 */
COWSNAP_API int cowsnap_changes(struct cowsnap_snapshot *from, struct cowsnap_snapshot *to,
	uint64_t *offset, struct cowsnap_change *changes, size_t count);

/* ---- Merging --------------------------------------------------------------------------------- */

/*
 * cowsnap_merge_begin - roll an origin back to one of its snapshots
 *
 * From the return on cowsnap_origin_read() and cowsnap_origin_write() see the snapshot's content,
 * and cowsnap_merge_run() moves it. A bracket whose range is not merged yet has it merged first;
 * with a persistent store it waits until cowsnap_merge_run() has come to it, while
 * cowsnap_origin_write() does not wait, unless it is for bytes over zeroes that take no space in
 * the store. Other snapshots keep their content. The merging snapshot cannot be read, written,
 * released or dropped until the merge has ended.
 *
 * Returns: 0; -EIDRM, -ESTALE (dropped, invalid), -ENODATA (map-only, or a range was released),
 *	-EBUSY (the origin has a merge, or a take was under way for 5 s), -ETIMEDOUT (writes to the
 *	origin or to the snapshot that began before did not end within 5 s; nothing has changed),
 *	-ENOTSUP (a persistent store of the host's that cannot forget records; the store's chunks,
 *	or the snapshot, are no whole blocks of the origin's device: the log says which), -ENOMEM.
 * Context: any thread; waits for brackets that began before; not inside a bracket of this origin;
 *	not in a callback. Until the end no take of this origin is possible (-EBUSY).
 * Lifetime: the caller holds a reference until the end of the merge.
 */
COWSNAP_API int cowsnap_merge_begin(struct cowsnap_snapshot *snapshot);

/*
 * cowsnap_merge_begin_async - the same without waiting, for a thread that has brackets open
 * @queue: where it goes on; NULL: on a worker, if the context has them
 * Returns: COWSNAP_PENDING (@done will be called with 0 or an error of cowsnap_merge_begin(), or
 *	-ECANCELED: nothing has changed), or an error; beside those: as cowsnap_write_begin_async().
 * Context: as cowsnap_write_begin_async().
 * Lifetime: the caller holds a reference until the end of the merge; @op stays in place until @done
 *	is called.
 */
COWSNAP_API int cowsnap_merge_begin_async(struct cowsnap_snapshot *snapshot,
	struct cowsnap_queue *queue, struct cowsnap_op *op, cowsnap_done *done, void *user);

/*
 * cowsnap_merge_run - move some of a merging snapshot into its origin
 *
 * Reads run after run from the store, newest records first where there are records; has other
 * snapshots save their preimages; writes the origin; flushes it before records are forgotten. Held
 * back as cowsnap_ctx_throttle() says. To stop, do not call it; to resume, call it. When all is
 * moved the snapshot is dropped, and COWSNAP_EVENT_MERGED told. After a crash: open the store, and
 * begin again.
 *
 * @max_bytes: return after about so much; UINT64_MAX: at the end
 * Returns: 1 (there is more to do), 0 (merged: the snapshot is COWSNAP_SNAPSHOT_DROPPED), -EINVAL
 *	(it is not being merged), -EALREADY (another thread is at it), or the error that stopped
 *	it: COWSNAP_EVENT_MERGE_FAILED was told, info has it as the reason, and this may be called
 *	again.
 * Context: any thread, one at a time; blocks on the devices, and as cowsnap_write_begin(); at the
 *	end it waits for brackets, so not inside one of this origin; not in a callback.
 * Lifetime: the caller holds a reference.
 */
COWSNAP_API int cowsnap_merge_run(struct cowsnap_snapshot *snapshot, uint64_t max_bytes);

/*
 * cowsnap_merge_run_async - the same without waiting, many runs side by side
 *
 * Where a queue's devices can be submitted to this is the fast form. A persistent store blocks
 * while it records the drop, at the end.
 *
 * @queue: where it goes on; NULL: on a worker, if the context has them
 * Returns: COWSNAP_PENDING (@done will be called with 1, 0 or an error of cowsnap_merge_run(), or
 *	-ECANCELED: what is being copied ends first, and the merge can be resumed), or -EINVAL,
 *	-EALREADY, -ENOMEM; beside those: as cowsnap_write_begin_async().
 * Context: as cowsnap_write_begin_async(), one at a time.
 * Lifetime: the caller holds a reference, and @op stays in place, until the end.
 */
COWSNAP_API int cowsnap_merge_run_async(struct cowsnap_snapshot *snapshot,
	struct cowsnap_queue *queue, uint64_t max_bytes, struct cowsnap_op *op, cowsnap_done *done,
	void *user);

struct cowsnap_merge_info {
	uint64_t total_bytes; /* to be moved, when it began */
	uint64_t moved_bytes; /* of these; chunks that were overwritten instead count too */
	int error;            /* the last failure; 0: none since it was last resumed */
	uint32_t running;     /* 1: a call that moves is under way */
};

/*
 * cowsnap_merge_info - how far a merge has come
 * @size: sizeof(*info); a smaller known size fills only what fits
 * Returns: 0; -EINVAL (size; the snapshot is not being merged).
 * Context: any thread; does not block; may run in a callback.
 * Lifetime: the caller holds a reference.
 */
COWSNAP_API int cowsnap_merge_info(
	struct cowsnap_snapshot *snapshot, struct cowsnap_merge_info *info, size_t size);

/* ---- Detaching ------------------------------------------------------------------------------- */

/*
 * cowsnap_snapshot_detach - copy what a snapshot still has in its origin, so that it needs it no
 *	more
 *
 * Held back as cowsnap_ctx_throttle() says. To stop, do not call it; to resume, call it. For
 * cowsnap_changes() what was copied has changed.
 *
 * @max_bytes: return after having looked at about so much; UINT64_MAX: at the end
 * Returns: 1 (there is more to do), 0 (detached: no read of it touches the origin any more, and
 *	info says so), -EIDRM, -ESTALE, -ENODATA (map-only, or a range was released), -EBUSY
 *	(being merged), -EALREADY (another thread is at it), -ENOSPC, -ENOMEM, or the error of a
 *	device: the snapshot is as before.
 * Context: any thread; blocks on the devices; not in a callback.
 * Lifetime: the caller holds a reference.
 */
COWSNAP_API int cowsnap_snapshot_detach(struct cowsnap_snapshot *snapshot, uint64_t max_bytes);

/*
 * cowsnap_snapshot_detach_async - the same without waiting
 * @queue: where it goes on; NULL: on a worker, if the context has them
 * Returns: COWSNAP_PENDING (@done will be called with what cowsnap_snapshot_detach() would have
 *	returned, or -ECANCELED: the next call goes on behind what was copied), or an error; beside
 *	those: as cowsnap_write_begin_async().
 * Context: as cowsnap_write_begin_async().
 * Lifetime: as cowsnap_snapshot_detach(), until @done is called; @op stays in place until then.
 */
COWSNAP_API int cowsnap_snapshot_detach_async(struct cowsnap_snapshot *snapshot,
	struct cowsnap_queue *queue, uint64_t max_bytes, struct cowsnap_op *op, cowsnap_done *done,
	void *user);

/*
 * cowsnap_ctx_throttle - hold back background work of a context: merges and detaches
 * @bytes_per_s, @share_percent: as cowsnap_copier_throttle()
 * Returns: 0; -EINVAL (share).
 * Context: any thread; does not block; may run in a callback.
 * Lifetime: none.
 */
COWSNAP_API int cowsnap_ctx_throttle(
	struct cowsnap_ctx *ctx, uint64_t bytes_per_s, unsigned share_percent);

/*
 * cowsnap_snapshot_drop_async - cowsnap_snapshot_drop() for a thread that polls
 *
 * Waits for nobody: where a persistent store's device is being flushed in a queue, the drop goes on
 * when that has ended.
 *
 * @queue: where the drop goes on; NULL: on a worker, if the context has them
 * Returns: 0 (dropped; no callback), COWSNAP_PENDING (@done will be called with 0 or an error of
 *	cowsnap_snapshot_drop(), or -ECANCELED), or an error; beside those: as
 *	cowsnap_write_begin_async().
 * Context: as cowsnap_write_begin_async(); a persistent store blocks while it records the drop.
 * Lifetime: the caller holds a reference, and @op stays in place, until the end.
 */
COWSNAP_API int cowsnap_snapshot_drop_async(struct cowsnap_snapshot *snapshot,
	struct cowsnap_queue *queue, struct cowsnap_op *op, cowsnap_done *done, void *user);

/* ---- Handover -------------------------------------------------------------------------------- */

/*
 * cowsnap_store_export - end a persistent store here, and say all that its next owner must know
 *
 * Waits until no bracket of the origin is open or pending; what begins meanwhile is saved as ever.
 * Then the snapshot is deactivated and the state written: another process, or another context,
 * takes the store over with cowsnap_store_dm_import(), without reading the records. It has the
 * device from the moment on at which all of the state is written. Afterwards the store is good for
 * nothing but to be closed. The host hands its origin over too: a bracket that begins when the
 * snapshot has ended is not saved. So it first sees to it that none is begun here any more.
 *
 * @write: called in order, with a few hundred KiB at most; returns 0 or a negative errno, which
 *	ends the export: the store is on its device all the same, for cowsnap_store_dm_open()
 * @wait_ns: for brackets, and for takes that are under way; 0: only look; UINT64_MAX: for ever
 * Returns: 0; -EBADF (closed), -EINVAL (no @write), -ENOTSUP (a store of another kind), -ENODATA
 *	(it has no live snapshot), -EBUSY (its snapshot, or another one of the origin, is being
 *	merged; a write to the snapshot, or cowsnap_store_commit(), is under way, or has left
 *	records of the host's own), -ETIMEDOUT (a bracket is open), -ENOMEM, the device's error, or
 *	that which broke the store: with all of these nothing has changed. Or the error of @write;
 *	-EIO (the state is not what it should be).
 * Context: any thread, but not one that has a bracket open, or polls a queue that has one; blocks
 *	on the device, and as @write does; not in a callback.
 * Lifetime: the origin and the store must not be closed meanwhile: that is -EBUSY.
 */
COWSNAP_API int cowsnap_store_export(struct cowsnap_store *store, uint64_t wait_ns,
	int (*write)(void *user, const void *data, size_t bytes), void *user);

/*
 * cowsnap_store_dm_import - cowsnap_store_dm_open() with the state from cowsnap_store_export()
 *
 * The state may come from anywhere: it is checked before it is used, and takes memory as it comes.
 * Of the device a few blocks are read, to see that it is what it was; a host that cannot exclude
 * that somebody else had it between the two owners keeps a generation.
 *
 * @read: fills all of @bytes, in order; returns 0 or a negative errno (-ENODATA: the end), which
 *	ends the import. Not called behind the end of the state
 * @entry, @store: as for cowsnap_store_dm_open()
 * Returns: as cowsnap_store_dm_open(); beside those: -EBADMSG (the state is damaged, or ends too
 *	early, or is of another version of the library), -ESTALE (the device has changed since the
 *	export, or is another one, or the origin has another size): open it instead; or the error of
 *	@read. Nothing on the device has changed then.
 * Context: as cowsnap_store_dm_open(), and blocks as @read does, which may run any time before the
 *	store is there.
 * Lifetime: as cowsnap_store_dm_open().
 */
COWSNAP_API int cowsnap_store_dm_import(struct cowsnap_ctx *ctx,
	const struct cowsnap_dm_options *options, int (*read)(void *user, void *data, size_t bytes),
	void *user, struct cowsnap_take_entry *entry, struct cowsnap_store **store);

#ifdef __cplusplus
}
#endif

#endif
