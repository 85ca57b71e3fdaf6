/* SPDX-License-Identifier: MIT
 *
 * The copier: moves bytes between devices on the thread that asks, and bounds how many are under
 * way. Credits are taken first and apart, because they must be in hand before chunks are claimed:
 * a claim once made can then always finish.
 */
#ifndef CS_COPIER_H
#define CS_COPIER_H

#include <cowsnap.h>
#include <stdbool.h>

#include "dev.h"
#include "obs.h"

/* What one run asked of its source, failed reads included. */
struct cs_copier_io {
	uint64_t reads;
	uint64_t read_bytes;
};

int cs_copier_create(const struct cs_base *base, const struct cowsnap_copier_options *options,
	struct cowsnap_copier **copier);
void cs_copier_destroy(struct cowsnap_copier *copier); /* NULL is accepted */

/*
 * Takes credits for @want_bytes (at least 1), or for the whole bound if that is less, as soon as
 * they are free; first come, first served. The caller holds no lock and no claim. @waited is set
 * to whether it had to wait. Returns: the credits taken, to be given back with
 * cs_copier_release(). Whoever holds any may run jobs of any length, one at a time.
 */
uint64_t cs_copier_reserve(struct cowsnap_copier *copier, uint64_t want_bytes, bool *waited);
void cs_copier_release(struct cowsnap_copier *copier, uint64_t bytes);

/*
 * Copies: each byte of the union of the targets' source ranges is read once, in ascending order,
 * in pieces of at most the job length, and written to every target that wants it. A target whose
 * read or write fails keeps its first error and gets nothing more; the others go on.
 *
 * The end of a source need not be a whole block of a target. Where the target's device is a
 * store's, which is given out in whole chunks, the last block is filled up with zeroes.
 *
 * @targets: lengths not 0 and offsets that do not wrap; error is set in each. Without memory for a
 *	buffer nothing is read and each has -ENOMEM.
 */
struct cs_copier_io cs_copier_run(struct cowsnap_copier *copier, struct cowsnap_device *source,
	struct cowsnap_copy_target *targets, size_t count);

/* Fills @threads with at most @count entries. Returns: how many there are. */
size_t cs_copier_threads(
	struct cowsnap_copier *copier, struct cowsnap_thread_io *threads, size_t count);

#endif
