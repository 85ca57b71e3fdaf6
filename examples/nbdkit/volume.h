/* SPDX-License-Identifier: MIT
 *
 * The volume that the plug-in serves: a file as the origin, a store, and a table of named
 * snapshots. The library is used through cowsnap.h only.
 */
#ifndef EXAMPLE_VOLUME_H
#define EXAMPLE_VOLUME_H

#include "name.h"

#include <cowsnap.h>
#include <pthread.h>
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

struct volume_options {
	const char *file;
	const char *store; /* NULL: memory; only if STORE_TRANSIENT */
	enum store_format store_format;
	const char *generation_file; /* NULL: none */
	uint64_t chunk_size_bytes;   /* 0: that of the store, or the library's default */
	uint64_t store_limit_bytes;  /* 0: the library's default */
	enum on_full on_full;
	uint64_t wait_ns; /* ON_FULL_WAIT */
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
	uint64_t generation; /* what generation_file holds */
	struct cowsnap_log log;
	bool opening;
	char complaint[512]; /* while opening: the first error that the library logged */
	/* The table, oldest first. Only the control thread changes it, and then it holds the lock;
	 * so that thread may look without, every other one must hold it. */
	pthread_mutex_t lock;
	struct named_snapshot *snapshots;
	unsigned int connections; /* that nbdkit has open; under the lock */
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
 * Returns: 0; -EEXIST, -EBUSY (the store holds one snapshot and has it), what cowsnap_take() gave,
 *	or why the name could not be kept.
 */
int volume_take(struct volume *volume, const char *name, const struct named_snapshot **taken);

/*
 * volume_drop - delete a snapshot; connections to it go on, with errors
 * Returns: 0; -ENOENT, or the error of a persistent store: the snapshot is as before.
 */
int volume_drop(struct volume *volume, const char *name);

/*
 * volume_grow - let the store use all of its file, which may have become longer
 * Returns: 0; -ENODEV (the store is in memory), -ERANGE (the file is shorter than it was), or the
 *	device's error.
 */
int volume_grow(struct volume *volume);

/* volume_find - a reference to the snapshot of that name, or NULL */
struct cowsnap_snapshot *volume_find(struct volume *volume, const char *name);

/* volume_connections - how many NBD connections are open */
unsigned int volume_connections(struct volume *volume);

/* volume_all_reclaimed - nothing that a drop left waits to be given back */
bool volume_all_reclaimed(struct volume *volume);

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
