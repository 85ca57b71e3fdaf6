/* SPDX-License-Identifier: MIT
 *
 * Moving runs of a merging snapshot, many side by side: who moves one, and what they share. One
 * thread's: the caller's, or the one that polls the queue.
 */
#ifndef CS_MERGE_MOVE_H
#define CS_MERGE_MOVE_H

#include "merge.h"

#define CS_MOVERS      (CS_MERGE_BATCH + 64u) /* at most; see batch_chunks() */
#define CS_MOVER_PARTS 16u
#define CS_MOVER_SAVES 16u /* that save for others at the same time */

struct cs_moving;

enum cs_mover_stage {
	CS_MOVER_WORKS, /* or has ended */
	/* With records, it waits for the others of its batch: */
	CS_MOVER_SAVED,   /* others have what they need; it is in the gate, and has no claims */
	CS_MOVER_ARRIVED, /* it has moved all, and keeps its claims: the records are still there */
};

/* Who moves some of a run of chunks: parts of it, in order, each of which lies together in the
 * store; the rest of the run is not the snapshot's. */
struct cs_mover {
	struct cs_moving *moving;
	struct cs_mover *next; /* free, or waiting for a record */
	struct cowsnap_run run;
	struct cowsnap_run part[CS_MOVER_PARTS];
	unsigned parts;
	size_t batch; /* the run of the batch that it moves some of */
	enum cs_step (*step)(struct cs_mover *mover);
	struct cs_op op; /* its bracket: pass, range and task */
	bool inside;     /* in the gate */
	enum cs_mover_stage stage;
	struct cs_save *save;
	struct cs_credit credit;
	bool credited;
	uint64_t claimed;  /* chunks of the run, from the first on */
	unsigned at;       /* the part to go on with, ... */
	uint64_t at_chunk; /* ... from this chunk on */
	struct cs_merge_claimant claimant;
	struct cowsnap_copy copy; /* of these: */
	struct cowsnap_run moved[CS_MOVER_PARTS];
	struct cowsnap_copy_target target[CS_MOVER_PARTS];
};

/* What records say, the newest first. */
struct cs_merge_batch {
	size_t runs; /* 0: not known */
	uint64_t chunks;
	struct cowsnap_run run[CS_MERGE_BATCH];
};

/* One call of cowsnap_merge_run(), or its asynchronous form. */
struct cs_moving {
	struct cs_merge *merge;
	struct cs_op *op;
	enum cs_step (*step)(struct cs_moving *moving);
	uint64_t left; /* bytes that the caller wants */
	int error;     /* the first */
	bool all;      /* there is nothing more to be moved */
	bool stopped;  /* it failed or was cancelled: who saves for others gives that up */
	unsigned open; /* movers that are under way */
	uint64_t open_bytes;
	bool alone;    /* no other snapshot of the origin needs anything */
	bool waits;    /* the operation, for one of these to end */
	unsigned used; /* movers that were used so far; the others are as they were allocated */
	struct cs_mover *free;
	unsigned saves_used;
	struct cs_save *free_save[CS_MOVER_SAVES];
	unsigned free_saves;
	struct cs_mover *want_save; /* in order */
	struct cs_mover **want_save_last;
	struct cs_flow flow;  /* of their credits */
	uint64_t at_once;     /* bytes begun since the queue was last let go on */
	uint64_t admit_bytes; /* for the throttle */
	enum cs_step (*admitted)(struct cs_moving *moving);
	struct cowsnap_io io;
	int result;            /* of it */
	struct cs_mover *next; /* to be started, without records */
	/* With records: what is moved together, and by how many movers; and what comes then. */
	struct cs_merge_batch *now;
	struct cs_merge_batch *ahead;
	unsigned movers;
	struct cs_merge_batch batch[2];
	struct cs_mover mover[CS_MOVERS];
	struct cs_save save[CS_MOVER_SAVES];
};

void cs_movers_init(struct cs_moving *moving);
bool cs_mover_is_free(const struct cs_moving *moving);
/* One that is not at work, if there is one. Not for batches. */
struct cs_mover *cs_mover_get(struct cs_moving *moving);
/* One that was got and is not needed. */
void cs_mover_put(struct cs_mover *mover);
/* Sets it to work on mover->run. Where nobody polls it has ended, or waits for the others of its
 * batch, at the return. */
void cs_mover_start(struct cs_mover *mover);
/* Goes on with one that has saved. */
void cs_mover_go_on(struct cs_mover *mover);
/* Those who save for others, which may wait for a host, give that up. On the queue's thread. */
void cs_movers_stop(struct cs_moving *moving);
/* Gives up what one who has arrived holds, but for claims of chunks that are to stay claimed. */
void cs_mover_release(struct cs_mover *mover, bool keep_claims);

#endif
