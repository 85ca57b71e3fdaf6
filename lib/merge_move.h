/* SPDX-License-Identifier: MIT
 *
 * Moving runs of a merging snapshot, many side by side: who moves one, and what they share. One
 * thread's: the caller's, or the one that polls the queue.
 */
#ifndef CS_MERGE_MOVE_H
#define CS_MERGE_MOVE_H

#include "merge.h"

#define CS_MOVERS       320u /* at most */
#define CS_MOVER_PARTS  16u
#define CS_MOVER_SAVES  16u               /* that save for others at the same time */
#define CS_MOVER_BYTES  UINT64_C(1048576) /* of one mover, at most */
/* More at a time are slower: their buffers leave the caches. */
#define CS_MOVERS_BYTES UINT64_C(4194304)

struct cs_moving;

enum cs_mover_stage {
	CS_MOVER_WORKS, /* or has ended */
	/* With records, it waits for the others of its batch: */
	CS_MOVER_SAVED,   /* others have what they need; it is in the gate, and has no claims */
	CS_MOVER_ARRIVED, /* it has moved all, and keeps its claims: the records are still there */
};

/* Who moves some chunks: parts, each of which lies together in the store. Without records they are
 * parts of one run, in the store's order, and the rest of that is not the snapshot's; with records
 * they may be anywhere. */
struct cs_mover {
	struct cs_moving *moving;
	struct cs_mover *next; /* free, or waiting for a record */
	struct cowsnap_run run;
	struct cowsnap_run part[CS_MOVER_PARTS];
	unsigned parts;
	uint64_t chunks; /* with records, of all parts */
	uint64_t bytes;  /* to be copied, about */
	/* With records: the run of the batch that the last part is of. If there are more, each is
	 * the next run of it, so the oldest is the first. */
	size_t batch;
	enum cs_step (*step)(struct cs_mover *mover);
	struct cs_op op; /* its bracket: pass, range and task */
	bool inside;     /* in the gate */
	enum cs_mover_stage stage;
	struct cs_save *save;
	struct cs_credit credit;
	bool credited;
	unsigned claims;   /* parts that are claimed, or the run; ... */
	uint64_t claimed;  /* ... and so much of the next one, from its first chunk on */
	unsigned at;       /* the part to go on with, ... */
	uint64_t at_chunk; /* ... from this chunk on */
	struct cs_merge_claimant claimant;
	struct cowsnap_copy copy; /* of these: */
	struct cowsnap_run moved[CS_MOVER_PARTS];
	struct cowsnap_copy_target target[CS_MOVER_PARTS];
};

/* What records say, the newest first. */
struct cs_merge_batch {
	size_t runs;
	uint64_t chunks;
	struct cowsnap_run run[CS_MERGE_BATCH];
};

/* What a store was asked by a step that goes on without waiting for it. */
struct cs_merge_answer {
	_Atomic int state;
	int error;
	struct cs_task *task;
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
	unsigned started; /* of these */
	bool save_failed;
	uint64_t began_ns, arrived_ns;
	bool looks; /* the store was asked for what goes to `ahead` */
	struct cowsnap_newest newest;
	struct cs_merge_answer found;
	struct cowsnap_commit commit; /* what is forgotten */
	struct cs_merge_answer forgot;
	struct cs_merge_batch batch[2];
	size_t seen_slots;                 /* a power of two */
	uint64_t seen[2 * CS_MERGE_BATCH]; /* chunks of a batch, plus one; 0: free */
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
/* Gives up what one holds who waits for the others of his batch. His first @keep parts, which are
 * the oldest, stay claimed. */
void cs_mover_release(struct cs_mover *mover, unsigned keep);

/* ---- The call, in steps: merge_run.c --------------------------------------------------------- */

static inline struct cowsnap_copier *cs_moving_copier(const struct cs_moving *moving)
{
	return moving->merge->origin->handle.ctx->copier;
}

static inline struct cowsnap_store *cs_moving_store(const struct cs_moving *moving)
{
	return moving->merge->snapshot->chain->store;
}

static inline enum cs_step cs_moving_go_to(
	struct cs_moving *moving, enum cs_step (*step)(struct cs_moving *moving))
{
	moving->step = step;
	return CS_GO_ON;
}

static inline bool cs_moving_has_ended(const struct cs_moving *moving)
{
	return moving->error || moving->op->cancelled;
}

/* Is that all for this call? */
static inline bool cs_moving_stops(const struct cs_moving *moving)
{
	return cs_moving_has_ended(moving) || !moving->left;
}

static inline void cs_moving_count_down(struct cs_moving *moving, uint64_t bytes)
{
	moving->left -= bytes < moving->left ? bytes : moving->left;
}

/* How many chunks one mover has at most, of @bytes. */
static inline uint64_t cs_mover_chunks(const struct cs_moving *moving, uint64_t bytes)
{
	uint64_t most = bytes < CS_MOVER_BYTES ? bytes : CS_MOVER_BYTES;
	uint64_t chunks = most >> cs_merge_shift(moving->merge);

	if (chunks > 64)
		return 64;
	return chunks ? chunks : 1;
}

/* Goes on with @step when a mover has ended, or at once if none is under way. */
enum cs_step cs_moving_await(
	struct cs_moving *moving, enum cs_step (*step)(struct cs_moving *moving));
/* Goes on with @admitted when the throttle lets so much go; with what comes next if the call is to
 * end. */
enum cs_step cs_moving_admit(struct cs_moving *moving, uint64_t bytes,
	enum cs_step (*admitted)(struct cs_moving *moving));
/* Has it begun so much that others in the queue are to go on? Then it parks, and is woken. */
bool cs_moving_rests(struct cs_moving *moving);
/* Goes on with @step when the origin is flushed, with moving->result. */
enum cs_step cs_moving_flush(
	struct cs_moving *moving, enum cs_step (*step)(struct cs_moving *moving));
/* The step after the last mover. */
enum cs_step cs_moving_over(struct cs_moving *moving);

/* The step that begins a batch, or ends the call: merge_batch.c. */
enum cs_step cs_merge_batch(struct cs_moving *moving);

#endif
