/* SPDX-License-Identifier: MIT
 *
 * The lower rungs of the ladder: how dm-snapshot saves, in our own words, on the same devices. What
 * is serialized is what the kernel serializes; nothing is slower than it has to be.
 *
 *   (-) DM_BARE         no tables and no order: the same reads and writes, which is what can be had
 *   (a) DM_ONE_LOCK     before 5.2: one mutex over the exception tables; one copy thread
 *   (b) DM_FINE_LOCKS   since 5.2: a lock for each bucket, one for the allocation; one copy thread
 *   (c) DM_PARALLEL     step two of the plan of 2019: (b) with copies on the submitting threads
 *
 * In all of them: an exception that is not complete is *pending*, and whoever writes to its chunk
 * waits for it; it gets its place in the store and a number under one lock; exceptions are
 * completed in the order of their numbers; a write that waited is looked at afresh.
 *
 * As in the kernel: two hash tables, lists in the buckets, sorted, with runs; the table of complete
 * exceptions drops the low 8 bits of the chunk number, so that neighbours share a bucket
 * (hash_shift; 0 is what a better table would do).
 *
 * Better than in the kernel: the host's write is issued by the submitting thread, not by the copy
 * thread; no memory is allocated for a copy; nobody is woken, all look by themselves; copies are
 * not limited, since there are never more than requests in flight.
 */
#ifndef COWSNAP_BENCH_LADDER_DM_H
#define COWSNAP_BENCH_LADDER_DM_H

#include "load.h"

enum dm_mode {
	DM_BARE,
	DM_ONE_LOCK,
	DM_FINE_LOCKS,
	DM_PARALLEL,
};

struct dm_options {
	enum dm_mode mode;
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *origin;
	struct cowsnap_device *store;
	struct sim_array *sim; /* NULL: the devices are not submitted to, but called */
	uint64_t chunk_bytes;
	uint64_t chunks;  /* of the origin, and of the store */
	unsigned threads; /* of the load */
	unsigned depth;   /* of each */
	unsigned hash_shift;
	const struct bench_options *bench;
};

struct dm_snapshot;

struct dm_thread_io {
	uint64_t reads;
	uint64_t writes;
};

/* Returns 0 or a negative errno whose cause it has reported. A copy thread is running then. */
int dm_open(const struct dm_options *options, struct dm_snapshot **snapshot);
/* The load has ended. NULL is accepted. */
int dm_close(struct dm_snapshot *snapshot);
struct load_gate dm_gate(struct dm_snapshot *snapshot);

/* Where a chunk was saved. Returns: is it? */
bool dm_lookup(struct dm_snapshot *snapshot, uint64_t chunk, uint64_t *location);
uint64_t dm_completed(const struct dm_snapshot *snapshot);
/* Of load thread @index; of the copy thread: @index is the number of load threads. */
struct dm_thread_io dm_thread_io(const struct dm_snapshot *snapshot, unsigned index);

#endif
