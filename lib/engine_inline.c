/* SPDX-License-Identifier: MIT
 *
 * The inline engine: the thread that needs the copy makes it, piece by piece; each is read into a
 * buffer once and written from there. Short copies use small buffers, one kept for each thread, so
 * that a 4 KiB copy stays in that thread's cache; long ones share a few large buffers.
 *
 * Invariants:
 *  E1 A target that has an error is not written any more.
 *
 * Locking: `buffer_lock` guards the list of large buffers; it is not held over I/O.
 *
 * Failure: without memory for a large buffer a copy goes on with a small one, without that it
 * fails as a whole with -ENOMEM before anything is read.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "alloc.h"
#include "engine.h"

struct loop {
	struct cowsnap_copier *copier;
	struct cs_copier_entry *entry; /* this thread's */
	uint8_t *buffer;
	uint64_t room; /* without its CS_PAD_ROOM */
	struct cs_plan plan;
	struct cs_copier_io io;
};

/* ---- Buffers --------------------------------------------------------------------------------- */

static uint8_t *get_small(struct loop *loop)
{
	/* Acquire: whoever used it is done; pairs with put_buffer. */
	uint8_t *buffer = atomic_exchange_explicit(&loop->entry->small, NULL, memory_order_acquire);

	loop->room = CS_SMALL_BYTES;
	if (buffer)
		return buffer;
	return cs_alloc_aligned(
		loop->copier->base->alloc, CS_SMALL_BYTES + CS_PAD_ROOM, CS_BUFFER_ALIGN);
}

static uint8_t *get_large(struct loop *loop)
{
	struct cowsnap_copier *c = loop->copier;
	uint8_t *buffer = NULL;

	cs_mutex_lock(&c->buffer_lock);
	if (c->large_count)
		buffer = c->large[--c->large_count];
	cs_mutex_unlock(&c->buffer_lock);
	loop->room = c->large_bytes;
	if (buffer)
		return buffer;
	return cs_alloc_aligned(c->base->alloc, c->large_bytes + CS_PAD_ROOM, CS_BUFFER_ALIGN);
}

static bool get_buffer(struct loop *loop)
{
	loop->buffer = NULL;
	if (loop->copier->large_bytes > CS_SMALL_BYTES && cs_plan_large(&loop->plan))
		loop->buffer = get_large(loop);
	if (!loop->buffer)
		loop->buffer = get_small(loop);
	return loop->buffer;
}

static void put_buffer(struct loop *loop)
{
	struct cowsnap_copier *c = loop->copier;
	uint8_t *spare = loop->buffer;

	if (loop->room == CS_SMALL_BYTES) {
		/* Another may be there: a device of the host's has copied meanwhile, or the entry
		 * is shared. Release: pairs with get_small. */
		spare = atomic_exchange_explicit(&loop->entry->small, spare, memory_order_acq_rel);
	} else {
		cs_mutex_lock(&c->buffer_lock);
		if (c->large_count < CS_COPIER_LARGE_KEPT) {
			c->large[c->large_count++] = spare;
			spare = NULL;
		}
		cs_mutex_unlock(&c->buffer_lock);
	}
	cs_free(c->base->alloc, spare, loop->room + CS_PAD_ROOM);
}

/* ---- Pieces ---------------------------------------------------------------------------------- */

static void count_write(struct loop *loop, uint64_t length)
{
	cs_copier_count(loop->copier, loop->entry, &loop->entry->writes, 1);
	cs_copier_count(loop->copier, loop->entry, &loop->entry->write_bytes, length);
}

static void write_part(struct loop *loop, struct cowsnap_copy_target *t, uint64_t piece,
	uint64_t from, uint64_t end)
{
	uint64_t pad;

	pad = cs_plan_padding(&loop->plan, t, from, end);
	if (cs_unlikely(pad)) {
		/* Nobody else wants what is behind the end of the source. */
		assert(end - piece + pad <= loop->room + CS_PAD_ROOM);
		memset(loop->buffer + (end - piece), 0, pad);
	}
	t->error = cs_dev_write(t->device, loop->buffer + (from - piece),
		t->offset + (from - t->source_offset), end - from + pad);
	count_write(loop, end - from + pad);
}

static void write_target(
	struct loop *loop, struct cowsnap_copy_target *t, uint64_t piece, uint64_t piece_end)
{
	uint64_t from = piece, end = piece_end;

	while (from < piece_end && cs_target_wants(t, &from, &end) &&
		cs_target_sift(t, loop->buffer + (from - piece), &from, &end)) {
		write_part(loop, t, piece, from, end);
		from = end;
		end = piece_end;
	}
}

static void zero_target(
	struct loop *loop, struct cowsnap_copy_target *t, uint64_t from, uint64_t end)
{
	if (!cs_target_wants(t, &from, &end))
		return;
	t->error = cs_dev_zero(t->device, t->offset + (from - t->source_offset), end - from);
	count_write(loop, end - from);
}

static void copy_piece(struct loop *loop, uint64_t from, uint64_t length)
{
	struct cs_plan *plan = &loop->plan;
	uint64_t end = from + length;
	int rc;

	if (!plan->source) {
		for (size_t i = 0; i < plan->count; i++)
			zero_target(loop, &plan->targets[i], from, end);
		return;
	}
	rc = cs_dev_read(plan->source, loop->buffer, from, length);
	loop->io.reads++;
	loop->io.read_bytes += length;
	cs_copier_count(loop->copier, loop->entry, &loop->entry->reads, 1);
	cs_copier_count(loop->copier, loop->entry, &loop->entry->read_bytes, length);
	if (rc) {
		cs_plan_fail(plan, from, end, rc);
		return;
	}
	for (size_t i = plan->first; i < plan->count; i++) {
		if (cs_plan_over(plan, &plan->targets[i], end))
			break;
		write_target(loop, &plan->targets[i], from, end);
	}
}

/* ---- Background ------------------------------------------------------------------------------ */

/* Credits only after the wait for the throttle: nobody is to wait for one that is held back. */
static void copy_in_background(struct loop *loop, uint64_t from, uint64_t length)
{
	struct cowsnap_copier *c = loop->copier;
	struct cs_credit credit;
	struct cs_task task;

	cs_copier_pace(c, length);
	cs_task_init(&task, NULL, NULL);
	if (!cs_copier_reserve(
		    c, cs_copier_flow(c, loop->plan.source, true), &credit, length, &task))
		cs_task_sleep(&task);
	cs_copier_piece_begins(c);
	copy_piece(loop, from, length);
	cs_copier_piece_ends(c);
	cs_copier_release(c, credit.bytes);
}

/* ---- The loop -------------------------------------------------------------------------------- */

static void copy_pieces(struct loop *loop, bool background)
{
	struct cs_plan *plan = &loop->plan;
	uint64_t from;

	while (cs_plan_next(plan, &from)) {
		uint64_t length = cs_plan_length(plan, from);

		if (background)
			copy_in_background(loop, from, length);
		else
			copy_piece(loop, from, length);
		cs_plan_advance(plan, from + length);
	}
}

void cs_engine_inline(struct cowsnap_copier *copier, struct cowsnap_copy *copy)
{
	/* Member by member: to zero all of it costs more than the rest of this. */
	struct loop loop;

	loop.copier = copier;
	loop.entry = cs_copier_entry(copier);
	loop.room = UINT64_MAX;
	loop.io = (struct cs_copier_io){0};
	cs_plan_init(&loop.plan, copy);
	if (copy->source && !get_buffer(&loop)) {
		loop.io.error = -ENOMEM;
		cs_plan_fail(&loop.plan, 0, UINT64_MAX, -ENOMEM);
	} else {
		cs_plan_size(&loop.plan, copier->job_bytes, loop.room);
		copy_pieces(&loop, copy->background);
		if (copy->source)
			put_buffer(&loop);
	}
	cs_run_of(copy)->io = loop.io;
}
