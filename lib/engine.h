/* SPDX-License-Identifier: MIT
 *
 * The engines of the copier: how one copy is cut into pieces, which both share, and the two ways to
 * carry them out.
 */
#ifndef CS_ENGINE_H
#define CS_ENGINE_H

#include "copier_parts.h"

/* The pieces of a copy: the union of the source ranges of all targets that have no error, in
 * ascending order. */
struct cs_plan {
	struct cowsnap_device *source; /* NULL: zeroes */
	struct cowsnap_copy_target *targets;
	size_t count;
	uint64_t source_bytes; /* its length when the copy began */
	uint64_t at;           /* what lies before is done or under way */
	bool ordered;          /* each target's source lies behind that of the one before */
	size_t first;          /* targets before this one end at or before it, if so; else 0 */
	uint64_t align;        /* pieces end at multiples of it where they may */
	uint64_t piece_bytes;  /* the longest; what the buffer holds, or the job length */
};

struct cs_piece;
struct cs_piece_pool;

enum cs_run_wait {
	CS_RUN_GOES,
	CS_RUN_WAITS_THROTTLE,
	CS_RUN_WAITS_CREDIT,
	CS_RUN_WAITS_PIECE,
};

/* A copy. In its words; of a copy on a thread that waits only the first member is used. */
struct cs_run {
	struct cs_copier_io io;
	/* The caller's, or a background copy's for its next piece. */
	struct cs_credit credit;
	struct cowsnap_copier *copier;
	struct cs_task *task; /* who is woken at the end */
	struct cs_task again; /* goes on after a wait */
	struct cs_plan plan;
	struct cs_piece_pool *pool;
	struct cs_run *next; /* waits for a piece */
	enum cs_run_wait wait;
	unsigned open; /* pieces under way */
	unsigned most; /* of them */
	uint64_t room; /* that a piece should have; UINT64_MAX: it needs none */
	bool background;
	bool admitted; /* the next piece: by the throttle */
	bool credited; /* the next piece: credit is in hand */
	bool starting; /* the call that starts it has not returned */
	bool stopped;
	bool begun; /* a piece has */
	bool ended;
};
_Static_assert(sizeof(struct cs_run) <= sizeof(((struct cowsnap_copy *)NULL)->words), "it fits");

static inline struct cs_run *cs_run_of(struct cowsnap_copy *copy)
{
	return (struct cs_run *)copy->words;
}

/* As cs_copier_start(). */
void cs_engine_inline(struct cowsnap_copier *copier, struct cowsnap_copy *copy);
bool cs_engine_queue(
	struct cowsnap_copier *copier, struct cowsnap_copy *copy, struct cs_task *task);

/* ---- Pieces ---------------------------------------------------------------------------------- */

static inline uint64_t cs_target_end(const struct cowsnap_copy_target *target)
{
	return target->source_offset + target->length;
}

/* Does it want any of [*from, *end)? Then cuts that to what it wants. */
static inline bool cs_target_wants(
	const struct cowsnap_copy_target *target, uint64_t *from, uint64_t *end)
{
	uint64_t target_end = cs_target_end(target);

	if (target->error || target->source_offset >= *end || target_end <= *from)
		return false;
	if (target->source_offset > *from)
		*from = target->source_offset;
	if (target_end < *end)
		*end = target_end;
	return true;
}

/* Of what a target wants of a piece, [*from, *end) with the bytes at @bytes: cuts it to the first
 * part that is to be written, and notes zeroes that come before it. Returns: false if nothing is
 * left. */
bool cs_target_sift_zeroes(const struct cowsnap_copy_target *target, const uint8_t *bytes,
	uint64_t *from, uint64_t *end);

static inline bool cs_target_sift(const struct cowsnap_copy_target *target, const uint8_t *bytes,
	uint64_t *from, uint64_t *end)
{
	return cs_likely(!target->zeroes) || cs_target_sift_zeroes(target, bytes, from, end);
}

static inline void cs_target_fails(struct cowsnap_copy_target *target, int error)
{
	if (!target->error)
		target->error = error;
}

/* Forgets old errors. */
void cs_plan_init(struct cs_plan *plan, struct cowsnap_copy *copy);
/* Are there pieces that a small buffer does not hold? */
bool cs_plan_large(const struct cs_plan *plan);
/* The longest piece, for what a buffer holds. */
void cs_plan_size(struct cs_plan *plan, uint64_t job_bytes, uint64_t room_bytes);
/* The next piece begins at *@from. Returns: false if there is none. */
bool cs_plan_next(const struct cs_plan *plan, uint64_t *from);
/* The length of the piece that begins there: at most piece_bytes. Pieces that are followed by
 * others end at a multiple of the blocks of all targets. */
uint64_t cs_plan_length(const struct cs_plan *plan, uint64_t from);
/* What lies before @at is done, or under way. */
static inline void cs_plan_advance(struct cs_plan *plan, uint64_t at)
{
	plan->at = at;
	while (plan->ordered && plan->first < plan->count &&
		cs_target_end(&plan->targets[plan->first]) <= at)
		plan->first++;
}
/* Does no target from this one on want what lies before @end? */
static inline bool cs_plan_over(
	const struct cs_plan *plan, const struct cowsnap_copy_target *target, uint64_t end)
{
	return plan->ordered && target->source_offset >= end;
}

/* What a write to the target that ends at @end needs more, to be whole blocks. */
uint64_t cs_plan_padding(const struct cs_plan *plan, const struct cowsnap_copy_target *target,
	uint64_t from, uint64_t end);
/* Each target that wants something of it has the error. */
void cs_plan_fail(struct cs_plan *plan, uint64_t from, uint64_t end, int error);

#endif
