/* SPDX-License-Identifier: MIT
 *
 * The queue engine: pieces of a copy are under way side by side, on the queue of its task. Each is
 * one read, then the writes to all targets that want it, a few at a time, then it ends.
 *
 * A piece and its buffer are one allocation. Pieces not in use are kept in the queue's *pool*, one
 * for all copiers, which is a source of the queue without a descriptor: so it belongs to whatever
 * thread polls, needs no lock, and goes with the queue, whichever of copier and queue ends first.
 * The last one given back is used first, while it is in the cache. In the copier's table of threads
 * it could not be: nobody there could go on when a piece is given back.
 *
 * How many pieces are under way is bounded for each copy and each queue. A copy that has none and
 * finds none waits in the pool, first come, first served; one that has some goes on with these.
 *
 * A background copy waits for the throttle, then takes credits, then a piece, for each anew.
 *
 * Nothing calls itself: what ends inline comes back to the loop that started it.
 *
 * Invariants:
 *  E1 A target that has an error gets no new request.
 *  E2 A copy that waits for a piece has none. While any waits, a piece of the queue is under way,
 *     or serve_waiting() is about to run.
 *  E3 The task is woken once, as the last touch of the copy; not if the copy ended before
 *     cs_engine_queue() returned.
 *
 * Locking: none of its own; all is the thread's that polls.
 *
 * Failure: without memory a copy goes on with the pieces there are, whatever their length; with
 * -ENOMEM only if none is under way in all of the queue.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "alloc.h"
#include "engine.h"

#define PIECE_WRITES 4u   /* of a piece, side by side */
#define COPY_PIECES  8u   /* of a copy */
#define POOL_PIECES  256u /* of a queue; so many are kept as well, */
#define LARGE_KEPT   16u  /* but of the large ones no more than this */

struct slot {
	struct cowsnap_io io;
	struct cs_piece *piece;
	struct cowsnap_copy_target *target;
	struct slot *next;
};

struct cs_piece {
	struct cs_piece *next; /* in the pool */
	struct cs_run *run;
	uint8_t *buffer; /* where the allocation begins */
	uint64_t room;   /* of the buffer without its CS_PAD_ROOM; 0: there is none */
	uint64_t from;
	uint64_t end;
	uint64_t credit_bytes; /* of the background */
	size_t first;          /* target that may want something of it */
	size_t target;         /* the next to look at */
	uint64_t at;           /* what of it lies before is written or under way */
	unsigned open;         /* writes under way */
	struct slot *free;
	struct slot slot[PIECE_WRITES]; /* the first does the read */
};

enum { PIECE_BARE, PIECE_SMALL, PIECE_LARGE, PIECE_KINDS };

struct cs_piece_pool {
	struct cs_queue_source source;
	struct cowsnap_queue *queue;
	struct cs_piece *kept[PIECE_KINDS];
	unsigned kept_count[PIECE_KINDS];
	unsigned out; /* pieces under way */
	struct cs_run *waiting;
	struct cs_run **waiting_last;
};

static const char pool_mark; /* the pool is found by it */

/* ---- The pool -------------------------------------------------------------------------------- */

static size_t piece_bytes(uint64_t room)
{
	return (room ? room + CS_PAD_ROOM : 0) + sizeof(struct cs_piece);
}

static unsigned kind_of(uint64_t room)
{
	return !room ? PIECE_BARE : room == CS_SMALL_BYTES ? PIECE_SMALL : PIECE_LARGE;
}

static void free_piece(struct cs_piece_pool *pool, struct cs_piece *piece)
{
	cs_free(pool->queue->base->alloc, piece->buffer, piece_bytes(piece->room));
}

static void close_pool(struct cs_queue_source *source)
{
	struct cs_piece_pool *pool = cs_container_of(source, struct cs_piece_pool, source);

	assert(!pool->out && !pool->waiting);
	for (unsigned kind = 0; kind < PIECE_KINDS; kind++) {
		while (pool->kept[kind]) {
			struct cs_piece *piece = pool->kept[kind];

			pool->kept[kind] = piece->next;
			free_piece(pool, piece);
		}
	}
	cs_free(pool->queue->base->alloc, pool, sizeof(*pool));
}

/* The queue's; NULL: there is no memory. */
static struct cs_piece_pool *pool_of(struct cowsnap_queue *queue)
{
	struct cs_queue_source *source = cs_queue_find_source(queue, &pool_mark);
	struct cs_piece_pool *pool;

	if (source)
		return cs_container_of(source, struct cs_piece_pool, source);
	pool = cs_alloc_zeroed(queue->base->alloc, sizeof(*pool));
	if (!pool)
		return NULL;
	pool->queue = queue;
	pool->waiting_last = &pool->waiting;
	pool->source.owner = &pool_mark;
	pool->source.fd = -1;
	pool->source.close = close_pool;
	/* Without a descriptor it cannot fail. */
	cs_queue_add_source(queue, &pool->source);
	return pool;
}

static struct cs_piece *new_piece(struct cs_piece_pool *pool, uint64_t room)
{
	uint8_t *buffer =
		cs_alloc_aligned(pool->queue->base->alloc, piece_bytes(room), CS_BUFFER_ALIGN);
	struct cs_piece *piece;

	if (!buffer)
		return NULL;
	piece = (struct cs_piece *)(buffer + piece_bytes(room) - sizeof(*piece));
	memset(piece, 0, sizeof(*piece));
	piece->buffer = buffer;
	piece->room = room;
	for (unsigned i = 0; i < PIECE_WRITES; i++) {
		struct slot *slot = &piece->slot[i];

		slot->piece = piece;
		slot->next = piece->free;
		piece->free = slot;
	}
	return piece;
}

static struct cs_piece *kept_piece(struct cs_piece_pool *pool, unsigned kind)
{
	struct cs_piece *piece = pool->kept[kind];

	if (piece) {
		pool->kept[kind] = piece->next;
		pool->kept_count[kind]--;
	}
	return piece;
}

/* One with this room. */
static struct cs_piece *right_piece(struct cs_piece_pool *pool, uint64_t room)
{
	struct cs_piece *piece = kept_piece(pool, kind_of(room));

	/* Another copier's jobs may have another length. */
	if (piece && piece->room != room) {
		free_piece(pool, piece);
		piece = NULL;
	}
	return piece ? piece : new_piece(pool, room);
}

/* NULL: none can be had. */
static struct cs_piece *take_piece(struct cs_piece_pool *pool, const struct cs_run *run)
{
	uint64_t room = run->plan.source ? run->room : 0;
	struct cs_piece *piece = NULL;

	if (pool->out == POOL_PIECES)
		return NULL;
	piece = right_piece(pool, room);
	if (!piece && room > CS_SMALL_BYTES)
		piece = right_piece(pool, CS_SMALL_BYTES);
	/* Any buffer will do. */
	for (unsigned kind = room ? PIECE_SMALL : PIECE_BARE; !piece && kind < PIECE_KINDS; kind++)
		piece = kept_piece(pool, kind);
	if (piece)
		pool->out++;
	return piece;
}

static void put_piece(struct cs_piece_pool *pool, struct cs_piece *piece)
{
	unsigned kind = kind_of(piece->room);

	pool->out--;
	if (pool->kept_count[kind] == (kind == PIECE_LARGE ? LARGE_KEPT : POOL_PIECES)) {
		free_piece(pool, piece);
		return;
	}
	piece->next = pool->kept[kind];
	pool->kept[kind] = piece;
	pool->kept_count[kind]++;
}

static void await_piece(struct cs_piece_pool *pool, struct cs_run *run)
{
	run->wait = CS_RUN_WAITS_PIECE;
	run->next = NULL;
	*pool->waiting_last = run;
	pool->waiting_last = &run->next;
}

static void forsake_piece(struct cs_piece_pool *pool, struct cs_run *run)
{
	struct cs_run **at = &pool->waiting;

	while (*at != run)
		at = &(*at)->next;
	*at = run->next;
	if (!*at)
		pool->waiting_last = at;
	run->wait = CS_RUN_GOES;
}

/* ---- Requests -------------------------------------------------------------------------------- */

static void count_read(const struct cs_run *run, uint64_t length)
{
	struct cs_copier_entry *entry = cs_copier_entry(run->copier);

	cs_copier_count(run->copier, entry, &entry->reads, 1);
	cs_copier_count(run->copier, entry, &entry->read_bytes, length);
}

static void count_write(const struct cs_run *run, uint64_t length)
{
	struct cs_copier_entry *entry = cs_copier_entry(run->copier);

	cs_copier_count(run->copier, entry, &entry->writes, 1);
	cs_copier_count(run->copier, entry, &entry->write_bytes, length);
}

/* Returns: false if it is under way. */
static bool start_write(struct slot *slot)
{
	const struct cs_run *run = slot->piece->run;
	int error;

	count_write(run, slot->io.length);
	if (!cs_dev_start(slot->target->device, run->task->queue, &slot->io, &error))
		return false;
	if (error)
		cs_target_fails(slot->target, error);
	return true;
}

static void end_write(struct slot *slot)
{
	struct cs_piece *piece = slot->piece;

	slot->next = piece->free;
	piece->free = slot;
	piece->open--;
}

static void piece_goes_on(struct cs_piece *piece);

static void write_done(struct cowsnap_io *io, int error)
{
	struct slot *slot = cs_container_of(io, struct slot, io);

	if (error)
		cs_target_fails(slot->target, error);
	end_write(slot);
	piece_goes_on(slot->piece);
}

static void set_write(
	struct slot *slot, struct cowsnap_copy_target *target, uint64_t from, uint64_t end)
{
	struct cs_piece *piece = slot->piece;
	const struct cs_plan *plan = &piece->run->plan;
	struct cowsnap_io *io = &slot->io;

	slot->target = target;
	io->done = write_done;
	io->offset = target->offset + (from - target->source_offset);
	io->length = end - from;
	if (plan->source) {
		io->kind = COWSNAP_IO_WRITE;
		io->buffer = piece->buffer + (from - piece->from);
		io->length += cs_plan_padding(plan, target, from, end);
	} else {
		io->kind = COWSNAP_IO_ZERO;
	}
}

/* ---- Pieces ---------------------------------------------------------------------------------- */

/* Starts as many writes as there is room for. Returns: true if the piece has ended. */
static bool write_piece(struct cs_piece *piece)
{
	const struct cs_plan *plan = &piece->run->plan;

	while (piece->free && piece->target < plan->count) {
		struct cowsnap_copy_target *target = &plan->targets[piece->target];
		uint64_t from = piece->at > piece->from ? piece->at : piece->from;
		uint64_t end = piece->end;
		struct slot *slot = piece->free;

		if (cs_plan_over(plan, target, end)) {
			piece->target = plan->count;
			break;
		}
		if (from >= end || !cs_target_wants(target, &from, &end) ||
			(plan->source &&
				!cs_target_sift(target, piece->buffer + (from - piece->from), &from,
					&end))) {
			piece->target++;
			piece->at = 0;
			continue;
		}
		piece->at = end;
		piece->free = slot->next;
		piece->open++;
		set_write(slot, target, from, end);
		if (start_write(slot))
			end_write(slot);
	}
	return !piece->open && piece->target == plan->count;
}

/* What lies behind the end of the source is zero for all: done before any of them looks at it. */
static void pad(struct cs_piece *piece)
{
	const struct cs_plan *plan = &piece->run->plan;
	uint64_t most = 0;

	if (piece->end != plan->source_bytes)
		return;
	for (size_t i = 0; i < plan->count; i++) {
		uint64_t from = piece->from, end = piece->end, bytes;

		if (!cs_target_wants(&plan->targets[i], &from, &end))
			continue;
		bytes = cs_plan_padding(plan, &plan->targets[i], from, end);
		most = bytes > most ? bytes : most;
	}
	assert(piece->end - piece->from + most <= piece->room + CS_PAD_ROOM);
	memset(piece->buffer + (piece->end - piece->from), 0, most);
}

static bool read_ended(struct cs_piece *piece, int error)
{
	struct cs_plan *plan = &piece->run->plan;

	if (error) {
		cs_plan_fail(plan, piece->from, piece->end, error);
		piece->target = plan->count;
	} else {
		pad(piece);
	}
	return write_piece(piece);
}

static void end_piece(struct cs_piece *piece);

static void read_done(struct cowsnap_io *io, int error)
{
	struct cs_piece *piece = cs_container_of(io, struct slot, io)->piece;

	if (read_ended(piece, error))
		end_piece(piece);
}

static void piece_goes_on(struct cs_piece *piece)
{
	if (write_piece(piece))
		end_piece(piece);
}

/* Returns: true if it has ended. */
static bool start_piece(struct cs_piece *piece)
{
	struct cs_run *run = piece->run;
	struct cowsnap_io *io = &piece->slot[0].io;
	int error;

	piece->target = piece->first;
	piece->at = 0;
	if (!run->plan.source)
		return write_piece(piece);
	io->kind = COWSNAP_IO_READ;
	io->buffer = piece->buffer;
	io->offset = piece->from;
	io->length = piece->end - piece->from;
	io->done = read_done;
	run->io.reads++;
	run->io.read_bytes += io->length;
	count_read(run, io->length);
	return cs_dev_start(run->plan.source, run->task->queue, io, &error) &&
	       read_ended(piece, error);
}

/* ---- Copies ---------------------------------------------------------------------------------- */

/* What a background copy waits for before each piece. Returns: false if it waits. */
static bool permitted(struct cs_run *run, uint64_t length)
{
	struct cowsnap_copier *c = run->copier;

	if (!run->admitted) {
		uint64_t until_ns = cs_copier_admit(c, length, &run->again.waiter);

		if (until_ns) {
			run->wait = CS_RUN_WAITS_THROTTLE;
			run->again.deadline_ns = until_ns;
			cs_queue_time(run->again.queue, &run->again);
			return false;
		}
		run->admitted = true;
	}
	if (!run->credited) {
		struct cs_flow *flow = cs_copier_flow(c, run->plan.source, true);

		run->credited = cs_copier_reserve(c, flow, &run->credit, length, &run->again);
		if (!run->credited) {
			run->wait = CS_RUN_WAITS_CREDIT;
			return false;
		}
	}
	return true;
}

static void no_memory(struct cs_run *run)
{
	if (!run->begun)
		run->io.error = -ENOMEM;
	cs_plan_fail(&run->plan, run->plan.at, UINT64_MAX, -ENOMEM);
}

/* NULL: it waits, or has failed, or goes on when one of its pieces ends. */
static struct cs_piece *find_piece(struct cs_run *run)
{
	struct cs_piece_pool *pool = run->pool;
	struct cs_piece *piece = pool->waiting ? NULL : take_piece(pool, run);

	if (piece || run->open)
		return piece;
	if (pool->out || pool->waiting)
		await_piece(pool, run);
	else
		no_memory(run);
	return NULL;
}

static void begin_piece(struct cs_run *run, struct cs_piece *piece, uint64_t from)
{
	if (piece->room && piece->room < run->room)
		cs_plan_size(&run->plan, run->copier->job_bytes, piece->room);
	piece->run = run;
	piece->from = from;
	piece->end = from + cs_plan_length(&run->plan, from);
	piece->first = run->plan.first;
	cs_plan_advance(&run->plan, piece->end);
	run->open++;
	run->begun = true;
	if (!run->background)
		return;
	piece->credit_bytes = run->credit.bytes;
	run->admitted = run->credited = false;
	cs_copier_piece_begins(run->copier);
}

static void finish_piece(struct cs_piece *piece)
{
	struct cs_run *run = piece->run;

	run->open--;
	if (run->background) {
		cs_copier_piece_ends(run->copier);
		cs_copier_release(run->copier, piece->credit_bytes);
	}
	put_piece(run->pool, piece);
}

/* Begins pieces. @piece: NULL, or one for the first of them. */
static void go_on(struct cs_run *run, struct cs_piece *piece)
{
	uint64_t from;

	while (run->wait == CS_RUN_GOES && !run->stopped && run->open < run->most &&
		cs_plan_next(&run->plan, &from)) {
		cs_plan_size(&run->plan, run->copier->job_bytes, run->room);
		if (run->background && !permitted(run, cs_plan_length(&run->plan, from)))
			break;
		if (!piece)
			piece = find_piece(run);
		if (!piece)
			break;
		begin_piece(run, piece, from);
		if (start_piece(piece))
			finish_piece(piece);
		piece = NULL;
	}
	if (piece)
		put_piece(run->pool, piece);
}

static void cancel_rest(struct cs_run *run)
{
	for (size_t i = 0; i < run->plan.count; i++) {
		struct cowsnap_copy_target *t = &run->plan.targets[i];

		if (t->error || cs_target_end(t) <= run->plan.at)
			continue;
		t->error = -ECANCELED;
		run->io.error = -ECANCELED;
	}
}

/* Ends the copy if it has no piece and waits for nothing: then there is nothing to begin. */
static void settle(struct cs_run *run)
{
	if (run->open || run->wait != CS_RUN_GOES)
		return;
	if (run->credited)
		cs_copier_release(run->copier, run->credit.bytes);
	if (run->stopped)
		cancel_rest(run);
	run->ended = true;
	if (!run->starting)
		cs_task_wake(run->task);
}

/* A piece has been given back: to those who wait. */
static void serve_waiting(struct cs_piece_pool *pool)
{
	while (pool->waiting) {
		struct cs_run *run = pool->waiting;
		struct cs_piece *piece = take_piece(pool, run);

		if (!piece && pool->out)
			return;
		forsake_piece(pool, run);
		if (piece)
			go_on(run, piece);
		else
			no_memory(run);
		settle(run);
	}
}

static void end_piece(struct cs_piece *piece)
{
	struct cs_run *run = piece->run;
	struct cs_piece_pool *pool = run->pool;

	finish_piece(piece);
	serve_waiting(pool);
	go_on(run, NULL);
	settle(run);
	serve_waiting(pool);
}

/* After the throttle, or with credits. */
static void run_again(struct cs_task *task)
{
	struct cs_run *run = cs_container_of(task, struct cs_run, again);
	struct cs_piece_pool *pool = run->pool;

	if (run->wait == CS_RUN_WAITS_CREDIT)
		run->credited = true;
	/* If it is not in the list any more, the wake is on its way. */
	else if (task->timed_out && !cs_copier_unthrottle(run->copier, &task->waiter))
		return;
	run->wait = CS_RUN_GOES;
	go_on(run, NULL);
	settle(run);
	serve_waiting(pool);
}

static void init(struct cs_run *run, struct cowsnap_copier *copier, struct cowsnap_copy *copy,
	struct cs_task *task)
{
	uint64_t pieces;

	run->io = (struct cs_copier_io){0};
	run->copier = copier;
	run->task = task;
	cs_task_init(&run->again, task->queue, run_again);
	cs_plan_init(&run->plan, copy);
	run->room = UINT64_MAX;
	if (copy->source)
		run->room = copier->large_bytes > CS_SMALL_BYTES && cs_plan_large(&run->plan)
				    ? copier->large_bytes
				    : CS_SMALL_BYTES;
	cs_plan_size(&run->plan, copier->job_bytes, run->room);
	/* So that they stay within the bound. */
	pieces = copier->bound_bytes / run->plan.piece_bytes;
	run->most = pieces > COPY_PIECES ? COPY_PIECES : pieces ? (unsigned)pieces : 1;
	run->open = 0;
	run->wait = CS_RUN_GOES;
	run->background = copy->background;
	run->admitted = run->credited = run->stopped = run->begun = run->ended = false;
}

bool cs_engine_queue(struct cowsnap_copier *copier, struct cowsnap_copy *copy, struct cs_task *task)
{
	struct cs_run *run = cs_run_of(copy);

	init(run, copier, copy, task);
	run->pool = pool_of(task->queue);
	if (!run->pool) {
		no_memory(run);
		return true;
	}
	run->starting = true;
	go_on(run, NULL);
	settle(run);
	serve_waiting(run->pool);
	run->starting = false;
	return run->ended;
}

void cs_copier_stop(struct cowsnap_copy *copy)
{
	struct cs_run *run = cs_run_of(copy);

	if (run->ended)
		return;
	run->stopped = true;
	switch (run->wait) {
	case CS_RUN_GOES:
		/* The end of a piece settles it. */
		return;
	case CS_RUN_WAITS_THROTTLE:
		if (!cs_copier_unthrottle(run->copier, &run->again.waiter))
			return;
		cs_queue_untime(&run->again);
		break;
	case CS_RUN_WAITS_CREDIT:
		if (!cs_copier_forsake(run->copier, &run->credit))
			return;
		break;
	case CS_RUN_WAITS_PIECE:
		forsake_piece(run->pool, run);
		break;
	}
	run->wait = CS_RUN_GOES;
	settle(run);
}
