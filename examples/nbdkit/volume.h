/* SPDX-License-Identifier: MIT
 *
 * The volume that the plug-in serves: a file as the origin, a store, and a table of named
 * snapshots. The library is used through cowsnap.h only.
 */
#ifndef EXAMPLE_VOLUME_H
#define EXAMPLE_VOLUME_H

#include "job.h"
#include "name.h"

#include <cowsnap.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

enum on_full {
	ON_FULL_INVALIDATE, /* the snapshot is given up, the write goes on */
	ON_FULL_FAIL,       /* the write fails with ENOSPC, the snapshot stays whole */
	ON_FULL_WAIT,       /* the write waits for space; then the snapshot is given up */
};

enum store_format {
	STORE_TRANSIENT, /* gone with the process */
	STORE_DM,        /* outlives it, holds one snapshot */
};

/* What an NBD client may do with a snapshot's export. */
enum snapshot_exports {
	SNAPSHOTS_READONLY, /* read */
	SNAPSHOTS_WRITABLE, /* write, too; nobody else sees it */
	SNAPSHOTS_RELEASE,  /* trim what it has read, and so give it up */
};

struct volume_options {
	const char *file;
	const char *store; /* NULL: memory; only if STORE_TRANSIENT */
	enum store_format store_format;
	const char *generation_file; /* NULL: none */
	uint64_t chunk_size_bytes;   /* 0: that of the store, or the library's default */
	uint64_t store_limit_bytes;  /* 0: the library's default */
	enum on_full on_full;
	uint64_t wait_ns; /* ON_FULL_WAIT */
	enum snapshot_exports snapshot_exports;
	const char *handover_file; /* NULL: the store is opened as it is */
};

struct named_snapshot {
	struct named_snapshot *next; /* taken after this one */
	struct cowsnap_snapshot *snapshot;
	char name[SNAPSHOT_NAME_MAX + 1];
};

struct volume {
	const struct volume_options *options;
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *device; /* the file */
	struct cowsnap_origin *origin;
	struct cowsnap_device *store_device; /* NULL: memory */
	struct cowsnap_store *store;
	int fd;              /* the file once more: its holes are asked for here */
	char *name_path;     /* STORE_DM: the file that keeps the name of its snapshot */
	char *merge_path;    /* STORE_DM: the file that says that this is being merged */
	uint64_t generation; /* what generation_file holds */
	struct cowsnap_log log;
	bool opening;
	char complaint[512]; /* while opening: the first error that the library logged */
	/* The table, oldest first. Only the control thread changes it, and then it holds the lock;
	 * so that thread may look without, every other one must hold it. */
	pthread_mutex_t lock;
	struct named_snapshot *snapshots;
	unsigned int connections; /* that nbdkit has open; under the lock */
	bool handed_over;         /* no client may connect any more; under the lock */
	/* The file may have holes: it is worth asking. */
	atomic_bool has_holes;
	/* Set: requests go through the library. */
	atomic_bool merging;
	/* The control thread's. */
	struct job merge;
	struct job detach;
	struct cowsnap_merge_info merge_info; /* as it was last seen */
	uint64_t throttle_bytes_per_s;
	unsigned int share_percent;
	int wake; /* an event: volume_jobs_poll() has something to do */
};

/*
 * volume_open - open the file and the store and make an origin of the file
 * Returns: 0, or a negative errno after nbdkit_error() said what is wrong.
 */
int volume_open(struct volume *volume, const struct volume_options *options);

/*
 * volume_begin - to be called once before the first write
 * Returns: 0, or a negative errno after nbdkit_error() said what is wrong.
 */
int volume_begin(struct volume *volume);

/* volume_close - close everything; no connection may be left. The snapshot of a persistent store
 * stays there, all others are dropped. */
void volume_close(struct volume *volume);

/*
 * volume_take - freeze the volume under a name that name_check() has accepted
 * @flags: of a cowsnap_take_entry
 * Returns: 0; -EEXIST, -EBUSY (the store holds one snapshot and has it, or one is being merged),
 *	what cowsnap_take() gave, or why the name could not be kept.
 */
int volume_take(struct volume *volume, const char *name, uint32_t flags,
	const struct named_snapshot **taken);

/*
 * volume_drop - delete a snapshot; connections to it go on, with errors
 * Returns: 0; -ENOENT, -EBUSY (it is being merged), or the error of a persistent store: the
 *	snapshot is as before.
 */
int volume_drop(struct volume *volume, const char *name);

/* volume_forget - the snapshot of that name is dropped: take it out of the table */
void volume_forget(struct volume *volume, const char *name);

/* volume_entry - for the control thread; NULL: there is none of that name */
struct named_snapshot *volume_entry(struct volume *volume, const char *name);

/*
 * volume_grow - let the store use all of its file, which may have become longer
 * Returns: 0; -ENODEV (the store is in memory), -ERANGE (the file is shorter than it was), or the
 *	device's error.
 */
int volume_grow(struct volume *volume);

/*
 * volume_resize - make the volume as long as its file, which may have become longer
 * Returns: 0; -ERANGE (the file is shorter than it was), or what the library gave.
 */
int volume_resize(struct volume *volume);

/*
 * volume_handover - give a persistent store to the next server
 * @path: a new file for what is known of it
 * Returns: 0; -ENOTSUP (the store is not persistent), -ENODATA (it has no snapshot), -EBUSY (that
 *	is being merged), -EISCONN (clients are connected), or the error of the file or of
 *	cowsnap_store_export().
 */
int volume_handover(struct volume *volume, const char *path);

/* volume_find - a reference to the snapshot of that name, or NULL */
struct cowsnap_snapshot *volume_find(struct volume *volume, const char *name);

/* volume_connections - how many NBD connections are open */
unsigned int volume_connections(struct volume *volume);

/* volume_all_reclaimed - nothing that a drop left waits to be given back */
bool volume_all_reclaimed(struct volume *volume);

/* ---- volume_io.c: requests to the live volume; return 0 or a negative errno ---- */

int volume_read(struct volume *volume, void *buffer, uint64_t offset, uint64_t length);
int volume_write(struct volume *volume, enum cowsnap_write_kind kind, const void *buffer,
	uint64_t offset, uint64_t length);
int volume_flush(struct volume *volume);

/* ---- volume_job.c: for the control thread ---- */

/* volume_jobs_init - returns 0, or a negative errno after nbdkit_error() said what is wrong */
int volume_jobs_init(struct volume *volume);

/* volume_jobs_poll - see to jobs that have come to an end */
void volume_jobs_poll(struct volume *volume);

/* volume_jobs_end - stop them. A merge that nobody could go on with is completed instead. */
void volume_jobs_end(struct volume *volume);

/* volume_has_merge - one is under way, stopped or has failed */
bool volume_has_merge(const struct volume *volume);

/*
 * volume_merge - roll the volume back to a snapshot, in the background
 * volume_merge_again - if one was under way in the process before, go on with it
 * volume_merge_stop - after the step that it is at
 * volume_merge_resume - one that was stopped or has failed
 * Returns: 0; -ENOENT, -EBUSY (there is one), -ESRCH (there is none), -EALREADY (it is stopped, or
 *	going), what cowsnap_merge_begin() gave, or the error of the thread or of the mark. Again:
 *	after nbdkit_error() said what is wrong.
 */
int volume_merge(struct volume *volume, const char *name);
int volume_merge_again(struct volume *volume);
int volume_merge_stop(struct volume *volume);
int volume_merge_resume(struct volume *volume);

/*
 * volume_detach - make a snapshot independent of the volume, in the background
 * volume_detach_stop - after the step that it is at; detach it again to go on
 * Returns: 0; -ENOENT, -EBUSY (another one is being detached), -ESRCH (none is), -EALREADY (it is
 *	stopped, or going), or the error of the thread.
 */
int volume_detach(struct volume *volume, const char *name);
int volume_detach_stop(struct volume *volume);

/* volume_throttle - of both; as cowsnap_ctx_throttle() */
int volume_throttle(struct volume *volume, uint64_t bytes_per_s, unsigned int share_percent);

/* ---- extents.c: what is a hole ---- */

struct cowsnap_preimage_ask;

/* volume_preimage - for cowsnap_origin_set_preimage(): what is a hole need not be read */
enum cowsnap_preimage_kind volume_preimage(void *user, struct cowsnap_preimage_ask *ask);

struct nbdkit_extents;

/*
 * volume_extents, snapshot_extents - tell nbdkit what in a range is data and what is a hole
 * @snapshot: of @volume
 * @one: the first extent is enough
 * Returns: 0, or a negative errno.
 */
int volume_extents(struct volume *volume, uint64_t offset, uint64_t length, bool one,
	struct nbdkit_extents *extents);
int snapshot_extents(struct volume *volume, struct cowsnap_snapshot *snapshot, uint64_t offset,
	uint64_t length, bool one, struct nbdkit_extents *extents);

#endif
