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
#include "task.h"

/* What one copy asked of its source, failed reads included. */
struct cs_copier_io {
	uint64_t reads;
	uint64_t read_bytes;
	int error; /* 0; -ENOMEM: nothing was copied for want of a buffer; -ECANCELED: it was
		    * stopped before all had been started */
};

/* Those who are served in turn with others: the writers of one origin. Zeroes to begin with; under
 * the copier's lock. */
struct cs_flow {
	struct cs_flow *next;    /* with waiters, in a ring */
	struct cs_credit *first; /* NULL: it has none */
	struct cs_credit **last;
	int64_t surplus; /* bytes that it may have yet in its turn; below 0: it owes them */
	bool background;
};

/* One reservation. */
struct cs_credit {
	uint64_t bytes; /* wanted; then granted */
	struct cs_task *task;
	struct cs_flow *flow;
	struct cs_credit *next; /* in its flow */
	bool waits;             /* under the copier's lock */
};

int cs_copier_create(const struct cs_base *base, const struct cowsnap_copier_options *options,
	struct cowsnap_copier **copier);
void cs_copier_destroy(struct cowsnap_copier *copier); /* NULL is accepted */

/*
 * Takes credits for @want_bytes (at least 1), or for the whole bound if that is less, as soon as
 * they are free; first come, first served within a flow, the flows in turn. The caller holds no
 * lock and no claim. @flow: NULL for a background flow that such callers share.
 * Returns: true: credit->bytes are granted. False: they will be when @task is woken. They are given
 * back with cs_copier_release(). Whoever holds any may run copies of any length, one at a time.
 */
bool cs_copier_reserve(struct cowsnap_copier *copier, struct cs_flow *flow,
	struct cs_credit *credit, uint64_t want_bytes, struct cs_task *task);
/* Waits no longer. Returns: false if it does not wait: the credits were granted, and the wake is on
 * its way. */
bool cs_copier_forsake(struct cowsnap_copier *copier, struct cs_credit *credit);
void cs_copier_release(struct cowsnap_copier *copier, uint64_t bytes);
/* For those who bring no flow of their own. */
struct cs_flow *cs_copier_flow(struct cowsnap_copier *copier, const void *source, bool background);

/*
 * Copies: each byte of the union of the targets' source ranges is read once, in ascending order,
 * in pieces of at most the job length, and written to every target that wants it. A target whose
 * read or write fails keeps its first error and gets nothing more; the others go on. Without a
 * source nothing is read, and the ranges are zeroed.
 *
 * The end of a source need not be a whole block of a target. Where the target's device is a
 * store's, which is given out in whole chunks, the last block is filled up with zeroes.
 *
 * For a task of a thread that waits all is done when this returns; else pieces are submitted side
 * by side, and devices that cannot be submitted to are called.
 *
 * Credits are the caller's business, except for background copies: these wait for the throttle and
 * take credits themselves, for one piece at a time, so that nobody waits for one that is held back.
 *
 * @copy: lengths not 0 and offsets that do not wrap; error is set in each target. Without memory
 *	for a buffer nothing is read and each has -ENOMEM.
 * Returns: true if it is done. False: @task will be woken when it is.
 */
bool cs_copier_start(
	struct cowsnap_copier *copier, struct cowsnap_copy *copy, struct cs_task *task);
/* Begins no more pieces of a copy that is under way, on its queue's thread; what then has not got
 * all has -ECANCELED. The task is woken as ever. */
void cs_copier_stop(struct cowsnap_copy *copy);
/* Are these bytes zero? Mostly the first word says no. */
bool cs_copier_all_zero(const void *of, uint64_t count);
/* What became of a copy that is done. */
struct cs_copier_io cs_copier_read(const struct cowsnap_copy *copy);

/* Throttles background copies, as the public function says. */
void cs_copier_set_throttle(
	struct cowsnap_copier *copier, uint64_t bytes_per_s, unsigned share_percent);

/* Is it throttled at all? */
bool cs_copier_is_throttled(struct cowsnap_copier *copier);

/* For background work of other kinds, on a thread that waits: until the throttle lets it go on with
 * @bytes. The caller holds no credits, no claim and is in no gate. */
void cs_copier_pace(struct cowsnap_copier *copier, uint64_t bytes);
/* The same in steps. @waiter: put into a list unless it may go on. Returns: 0: it may. Else: it
 * waits, until it is woken or this moment. */
uint64_t cs_copier_admit(struct cowsnap_copier *copier, uint64_t bytes, struct cs_waiter *waiter);
/* Waits no longer for the throttle. Returns: false if the wake is on its way. */
bool cs_copier_unthrottle(struct cowsnap_copier *copier, struct cs_waiter *waiter);
/* A background piece begins, and ends: for the throttle's share of time. */
void cs_copier_piece_begins(struct cowsnap_copier *copier);
void cs_copier_piece_ends(struct cowsnap_copier *copier);

/* Which thread this is, counted from 0 in the order in which they asked, so that workers which copy
 * are not counted; any number for one beyond the first 255. */
unsigned cs_copier_thread(struct cowsnap_copier *copier);
/* Of the threads that have copied. Fills @threads with at most @count entries. Returns: how many
 * there are. */
size_t cs_copier_threads(
	struct cowsnap_copier *copier, struct cowsnap_thread_io *threads, size_t count);

#endif
