/* SPDX-License-Identifier: MIT
 *
 * cowsnap: persistent stores. A part of Snapshots; included by cowsnap.h, where the rules for
 * errors, threads and growth are.
 */
#ifndef COWSNAP_PERSISTENT_H
#define COWSNAP_PERSISTENT_H

#include <cowsnap.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * A persistent store holds one snapshot of one origin in the format of Linux dm-snapshot's
 * persistent store (docs/design/dm-format.md): it outlives the process, and a kernel can read,
 * extend and merge it. A write that is admitted has its preimage, and the record of it, on the
 * store's device, flushed. Records are committed in groups, in the order in which copies end.
 *
 * The format does not say which origin a store belongs to, nor whether that was written to while
 * nobody saved its preimages. A host that must be sure keeps a *generation*: a number that it
 * raises each time that it begins to write to the origin, and keeps in a place of its own and, with
 * cowsnap_store_dm_set_generation(), in the store. In this order: set the store's, flush the own
 * one, write. At the next start the two agree, or the store is one ahead (a crash came between the
 * two), or the origin was written to without the store and the snapshot is worthless.
 */
struct cowsnap_dm_options {
	size_t size;
	uint32_t flags; /* COWSNAP_DM_OVERWRITE, for create */
	uint32_t reserved;
	struct cowsnap_device *device;
	/* A power of two. create: default 4 KiB, or the device's block if that is longer. open: 0,
	 * or what the store must have. */
	uint64_t chunk_size_bytes;
	uint64_t low_water_bytes; /* event when less is free; default an eighth of the limit */
	uint64_t generation;      /* create: the store's. open: 0, or what the store must have */
};

#define COWSNAP_DM_OVERWRITE (UINT32_C(1) << 0) /* give up a store that is on the device */

/*
 * cowsnap_store_dm_create - make a device a persistent store without a snapshot
 *
 * A snapshot comes with cowsnap_take(), and only then is there a store for others to see. The
 * device's length is the limit; when it grows: cowsnap_device_refresh(), cowsnap_store_set_limit().
 *
 * Returns: 0; -EINVAL (unknown flag or size, no device, chunk size not a power of two or no
 *	multiple of the device's block), -E2BIG, -ERANGE (chunk size out of bounds; fewer than 3
 *	chunks on the device), -EEXIST (a store, or something else, begins on the device, and
 *	COWSNAP_DM_OVERWRITE was not given), -EBUSY (the device is an origin or a store already,
 *	also under another path, or another process has it), -EROFS, -EBADF (device closed), -EXDEV
 *	(device of another context), -ENOMEM, or the device's own error.
 * Context: any thread; blocks on the device; not in a callback.
 * Lifetime: until cowsnap_store_close(); the device must outlive it.
 */
COWSNAP_API int cowsnap_store_dm_create(struct cowsnap_ctx *ctx,
	const struct cowsnap_dm_options *options, struct cowsnap_store **store);

/*
 * cowsnap_store_dm_open - attach the snapshot of a persistent store to its origin again
 *
 * Reads all records and checks each; a store that is refused is not changed. What a crash left
 * behind the last record is wiped. From the return on the origin's writes are saved again. If the
 * store says that its snapshot is invalid, that is what it is (reason -EUCLEAN), for the host to
 * drop. The format does not say how long the snapshot is: it is as long as its origin is now.
 *
 * @entry: origin, on_full, wait_ns, decide and user are set as for cowsnap_take(); store and
 *	snapshot are set by the call
 * Returns: 0; -ENOENT (there is no store on the device), -EMEDIUMTYPE (something else is: its magic
 *	or version is unknown), -EBADMSG (the store is damaged, or does not fit this origin or
 *	device; the log names record and value), -EINVAL (it has another chunk size than asked for),
 *	-ESTALE (another generation), -EBUSY (as for create; or a write of this origin has begun: it
 *	could not be saved), -ETIMEDOUT (a take of another thread is under way for 5 s), or as for
 *	create.
 * Context: any thread; blocks on the device; no bracket of this origin may begin before the return;
 *	not in a callback.
 * Lifetime: the store until cowsnap_store_close(), the snapshot as after a take.
 */
COWSNAP_API int cowsnap_store_dm_open(struct cowsnap_ctx *ctx,
	const struct cowsnap_dm_options *options, struct cowsnap_take_entry *entry,
	struct cowsnap_store **store);

/*
 * cowsnap_store_dm_set_generation - keep a number of the host's in a persistent store
 * Returns: 0 (it is durable if there is a snapshot, else as soon as there is one); -EINVAL (a store
 *	of another kind), -EBADF, -EDEADLK (as for cowsnap_snapshot_drop()), or the device's own
 *	error.
 * Context: any thread; blocks on the device; not in a callback.
 * Lifetime: none.
 */
COWSNAP_API int cowsnap_store_dm_set_generation(struct cowsnap_store *store, uint64_t generation);

#ifdef __cplusplus
}
#endif

#endif
