/* SPDX-License-Identifier: MIT
 *
 * The volume that the plug-in serves: a file as the origin, a store, and a table of named
 * snapshots. The library is used through cowsnap.h only.
 */
#ifndef EXAMPLE_VOLUME_H
#define EXAMPLE_VOLUME_H

#include <cowsnap.h>
#include <pthread.h>
#include <stdint.h>

#define SNAPSHOT_NAME_MAX 255

enum on_full {
	ON_FULL_INVALIDATE, /* the snapshot is given up, the write goes on */
	ON_FULL_FAIL,       /* the write fails with ENOSPC, the snapshot stays whole */
	ON_FULL_WAIT,       /* the write waits for space; then the snapshot is given up */
};

struct volume_options {
	const char *file;
	const char *store; /* NULL: memory */
	uint64_t chunk_size_bytes;
	uint64_t store_limit_bytes; /* 0: the library's default */
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
	int fd; /* the file once more: its holes are asked for here */
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

/* volume_close - drop every snapshot and close everything; no connection may be left */
void volume_close(struct volume *volume);

/*
 * volume_take - freeze the volume under a name that volume_check_name() has accepted
 * Returns: 0; -EEXIST, or what cowsnap_take() gave.
 */
int volume_take(struct volume *volume, const char *name, const struct named_snapshot **taken);

/*
 * volume_drop - delete a snapshot; connections to it go on, with errors
 * Returns: 0; -ENOENT.
 */
int volume_drop(struct volume *volume, const char *name);

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
