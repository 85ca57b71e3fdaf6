/* SPDX-License-Identifier: MIT
 *
 * The persistent store: a group of records on the device, in steps.
 *
 * store_dm_queue.c says who leads and what is in a group. A group is written so:
 *
 *   1. If it fills an area: zeroes over the next area.
 *   2. A flush, unless one that ended well began since the youngest of the group was queued (then
 *      its data was written before that flush), and the group fills no area.
 *   3. The blocks of the area that hold the records, durably: past the cache where the device can,
 *      else with a second flush. That one is also the flush of step 2 for those who queued before
 *      it began, so that under load each flush completes a group.
 *
 * A group lies in one area, so that there is one next area to be zeroed. A leader that is a thread
 * calls the device; one that is a chain of requests on a queue starts a request and parks, or goes
 * on if it has ended at once. The steps are the same.
 *
 * The device is *held* while it is flushed, or while its header changes: by one at a time, which
 * may be a thread or a chain.
 *
 * Invariants: those of store_dm.h, and:
 *  Q3 blocks[] is zero behind what is on the device, but from the encoding of a group to its end.
 *  H1 hold_list is empty unless `hold` is WANTED. Who gives the device up wakes all who wait, and
 *     each asks again. It is not handed over: somebody who was not yet woken would have it, and a
 *     thread that has to wake him might wait for it.
 *
 * Locking: hold_lock, over nothing but the list; queue_lock for the number of a flush. Neither over
 * I/O: a chain that holds the device holds no lock.
 *
 * Failure: if step 1 or 3 fails, what may have come to the device is wiped and flushed, the commits
 * that had a record in the group fail, and the store goes on. If that fails, or a flush, the store
 * is broken: after a failed flush nobody knows what the device has dropped, and a second one that
 * succeeds says nothing about it.
 */
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "alloc.h"
#include "store_dm.h"

#define GROUP_BYTES  (CS_DM_GROUP_RECORDS * CS_FORMAT_DM_RECORD_BYTES)
#define MEMORY_ALIGN 4096u
#define TIMED_ONE_IN 64u

int cs_dm_group_init(struct cs_dm *dm)
{
	dm->blocks_bytes = dm->block_bytes + GROUP_BYTES;
	dm->blocks_bytes =
		(dm->blocks_bytes + dm->block_bytes - 1) & ~(size_t)(dm->block_bytes - 1);
	dm->blocks = cs_alloc_aligned(dm->base->alloc, dm->blocks_bytes, MEMORY_ALIGN);
	if (!dm->blocks)
		return -ENOMEM;
	cs_mutex_init(&dm->hold_lock);
	return 0;
}

void cs_dm_group_fini(struct cs_dm *dm)
{
	if (!dm->blocks)
		return;
	cs_mutex_fini(&dm->hold_lock);
	cs_free(dm->base->alloc, dm->blocks, dm->blocks_bytes);
}

void cs_dm_group_open(struct cs_dm *dm, uint64_t end, const uint8_t *block)
{
	dm->end = dm->acked = end;
	memset(dm->blocks, 0, dm->blocks_bytes);
	if (block)
		memcpy(dm->blocks, block, dm->block_bytes);
}

int cs_dm_break(struct cs_dm *dm, int error, const char *what)
{
	if (!atomic_exchange_explicit(&dm->broken, error, memory_order_relaxed))
		cs_log(dm->base, COWSNAP_LOG_ERROR,
			"store on %s: %s failed, error %d: nothing more is saved in it",
			dm->device->name, what, error);
	return error;
}

/* ---- Holding the device ---------------------------------------------------------------------- */

enum { FREE, HELD, WANTED };

static bool seize(struct cs_dm *dm)
{
	uint32_t state = FREE;

	/* Acquire: what the holder of before has written, `broken` too; pairs with cs_dm_unhold. */
	return atomic_compare_exchange_strong_explicit(
		&dm->hold, &state, HELD, memory_order_acquire, memory_order_relaxed);
}

/* Returns: false if it has been given up meanwhile. */
static bool want(struct cs_dm *dm) CS_REQUIRES(dm->hold_lock)
{
	uint32_t state = HELD;

	return atomic_compare_exchange_strong_explicit(
		       &dm->hold, &state, WANTED, memory_order_relaxed, memory_order_relaxed) ||
	       state == WANTED;
}

bool cs_dm_hold(struct cs_dm *dm, struct cs_waiter *waiter)
{
	bool held = seize(dm);

	if (cs_likely(held))
		return true;
	cs_mutex_lock(&dm->hold_lock);
	do
		held = seize(dm);
	while (!held && !want(dm));
	if (!held)
		cs_waitlist_add(&dm->hold_list, waiter);
	cs_mutex_unlock(&dm->hold_lock);
	return held;
}

int cs_dm_hold_waiting(struct cs_dm *dm)
{
	struct cs_task task;

	if (seize(dm))
		return 0;
	/* If the leader is a chain that this thread has run, only this thread can change that. */
	if (atomic_load_explicit(&dm->chain_thread, memory_order_relaxed) ==
		(uintptr_t)pthread_self()) {
		cs_log(dm->base, COWSNAP_LOG_ERROR,
			"store on %s: records of a queue of this thread are on their way: poll, "
			"and try again",
			dm->device->name);
		return -EDEADLK;
	}
	cs_task_init(&task, NULL, NULL);
	if (cs_dm_hold(dm, &task.waiter))
		return 0;
	cs_task_sleep(&task);
	return cs_dm_hold_waiting(dm);
}

void cs_dm_unhold(struct cs_dm *dm)
{
	struct cs_waiter *waiters;
	uint32_t state = HELD;

	/* Release: pairs with seize. */
	if (cs_likely(atomic_compare_exchange_strong_explicit(
		    &dm->hold, &state, FREE, memory_order_release, memory_order_relaxed)))
		return;
	cs_mutex_lock(&dm->hold_lock);
	waiters = cs_waitlist_take(&dm->hold_list); /* H1 */
	/* Release: pairs with seize. */
	atomic_store_explicit(&dm->hold, FREE, memory_order_release);
	cs_mutex_unlock(&dm->hold_lock);
	cs_waiters_wake(waiters);
}

/* ---- Requests -------------------------------------------------------------------------------- */

static void requested(struct cowsnap_io *io, int error)
{
	struct cs_dm *dm = cs_container_of(io, struct cs_dm, io);

	dm->result = error;
	dm->task.run(&dm->task);
}

enum cs_step cs_dm_request(struct cs_dm *dm, enum cowsnap_io_kind kind, void *buffer,
	uint64_t offset, uint64_t length, enum cs_step (*next)(struct cs_dm *dm))
{
	struct cowsnap_io *io = &dm->io;

	dm->step = next;
	io->kind = kind;
	io->buffer = buffer;
	io->offset = offset;
	io->length = length;
	io->done = requested;
	if (dm->task.queue)
		return cs_dev_start(dm->device, dm->task.queue, io, &dm->result) ? CS_GO_ON
										 : CS_PARK;
	dm->result = cs_dev_call(dm->device, io);
	return CS_GO_ON;
}

static enum cs_step zero_on(struct cs_dm *dm)
{
	uint64_t room = dm->blocks_bytes - dm->block_bytes;
	uint64_t piece = dm->zero_bytes < room ? dm->zero_bytes : room;
	uint64_t offset = dm->zero_offset;

	if (dm->result || !piece)
		return dm->after(dm);
	dm->zero_offset += piece;
	dm->zero_bytes -= piece;
	return cs_dm_request(
		dm, COWSNAP_IO_WRITE, dm->blocks + dm->block_bytes, offset, piece, zero_on);
}

/* Writes zeroes, from behind the first of blocks[] (Q3). They are written, and no hole is made: a
 * record might find no space there. */
static enum cs_step zero(
	struct cs_dm *dm, uint64_t offset, uint64_t bytes, enum cs_step (*next)(struct cs_dm *dm))
{
	dm->after = next;
	dm->zero_offset = offset;
	dm->zero_bytes = bytes;
	dm->result = 0;
	return zero_on(dm);
}

/* ---- Flushes --------------------------------------------------------------------------------- */

/* The shortest of the last few: others were interrupted. */
static void note_flush(struct cs_dm *dm, uint64_t took_ns)
{
	uint64_t least_ns = UINT64_MAX;

	dm->flush_took_ns[dm->flushes_timed++ % CS_DM_FLUSHES_TIMED] = took_ns;
	for (unsigned i = 0; i < CS_DM_FLUSHES_TIMED && i < dm->flushes_timed; i++) {
		if (dm->flush_took_ns[i] < least_ns)
			least_ns = dm->flush_took_ns[i];
	}
	atomic_store_explicit(&dm->flush_ns, least_ns, memory_order_relaxed);
}

/* Where they are quick, to look at the clock costs as much as they do, and one in many says
 * enough. Returns: when it begins; 0: it is not timed. */
static uint64_t begin_timing(const struct cs_dm *dm, uint64_t number)
{
	if (dm->flushes_timed && cs_dm_quick_flush(dm) && number % TIMED_ONE_IN)
		return 0;
	return cs_monotonic_ns();
}

static int end_flush(struct cs_dm *dm, uint64_t began_ns, int rc)
{
	if (began_ns)
		note_flush(dm, cs_monotonic_ns() - began_ns);
	return rc ? cs_dm_break(dm, rc, "a flush") : 0;
}

int cs_dm_flush(struct cs_dm *dm)
{
	uint64_t began_ns = cs_monotonic_ns();

	return end_flush(dm, began_ns, cs_dev_flush(dm->device));
}

static enum cs_step flushed(struct cs_dm *dm)
{
	dm->result = end_flush(dm, dm->flush_began_ns, dm->result);
	cs_dm_unhold(dm);
	/* One of before may have been told of what this one was to make durable. */
	if (!dm->result)
		dm->result = cs_dm_broken(dm);
	if (!dm->result)
		dm->group.flushed = dm->flush;
	return dm->after(dm);
}

static enum cs_step flush_held(struct cs_dm *dm)
{
	dm->flush_began_ns = begin_timing(dm, dm->flush);
	return cs_dm_request(dm, COWSNAP_IO_FLUSH, NULL, 0, 0, flushed);
}

static enum cs_step hold_for_flush(struct cs_dm *dm)
{
	return cs_dm_hold(dm, &dm->task.waiter) ? flush_held(dm) : CS_PARK;
}

/* Flushes, as number @number. That it ended well is seen when the group is settled. */
static enum cs_step flush(struct cs_dm *dm, uint64_t number, enum cs_step (*next)(struct cs_dm *dm))
{
	dm->flush = number;
	dm->after = next;
	dm->step = hold_for_flush;
	return hold_for_flush(dm);
}

/* A flush that is for those too who queue until it begins. */
static enum cs_step flush_late(struct cs_dm *dm, enum cs_step (*next)(struct cs_dm *dm))
{
	uint64_t number;

	if (!cs_dev_cached(dm->device))
		return next(dm);
	cs_mutex_lock(&dm->queue_lock);
	number = ++dm->flushes_begun;
	cs_mutex_unlock(&dm->queue_lock);
	return flush(dm, number, next);
}

static enum cs_step written(struct cs_dm *dm)
{
	if (dm->result || cs_dev_writes_through(dm->device))
		return dm->durable(dm);
	return flush_late(dm, dm->durable);
}

enum cs_step cs_dm_write_durable(struct cs_dm *dm, void *buffer, uint64_t offset, uint64_t length,
	enum cs_step (*next)(struct cs_dm *dm))
{
	bool through = cs_dev_cached(dm->device) && cs_dev_writes_through(dm->device);

	dm->durable = next;
	return cs_dm_request(dm, through ? COWSNAP_IO_WRITE_DURABLE : COWSNAP_IO_WRITE, buffer,
		offset, length, written);
}

/* ---- Records --------------------------------------------------------------------------------- */

/* Puts the next @count records of a commit into slots. Returns: behind them. */
static uint8_t *encode(
	const struct cs_dm *dm, struct cs_dm_waiting *w, uint64_t count, uint8_t *slot)
{
	const struct cowsnap_run *runs = w->commit->runs;

	for (; count; count--, slot += CS_FORMAT_DM_RECORD_BYTES) {
		struct cs_format_dm_record record;

		while (w->in_run == runs[w->run].count)
			w->run++, w->in_run = 0;
		record.origin = runs[w->run].first + w->in_run;
		record.store = runs[w->run].location + w->in_run;
		cs_format_dm_encode_record(&dm->shape, &record, slot);
		w->in_run++;
	}
	return slot;
}

static void encode_group(struct cs_dm *dm)
{
	const struct cs_dm_group *group = &dm->group;
	uint64_t place = group->slot * CS_FORMAT_DM_RECORD_BYTES % dm->block_bytes;
	uint8_t *slot = dm->blocks + place;
	struct cs_dm_waiting *w = dm->first;
	uint64_t left = group->records;

	for (;;) {
		uint64_t count = w->left < left ? w->left : left;

		slot = encode(dm, w, count, slot);
		left -= count;
		/* Q1: what follows the last one of the group may be changing. */
		if (!left)
			return;
		w = w->next;
	}
}

/* Q3, after a group: the block that the next record goes to comes to the front. */
static void keep_last_block(struct cs_dm *dm)
{
	const struct cs_dm_group *group = &dm->group;
	size_t block = dm->block_bytes;
	size_t first = (size_t)(group->slot * CS_FORMAT_DM_RECORD_BYTES % block);
	size_t end = first + (size_t)group->records * CS_FORMAT_DM_RECORD_BYTES;
	size_t last = end / block * block;

	if (!last)
		return;
	memcpy(dm->blocks, dm->blocks + last, end - last);
	memset(dm->blocks + (end - last), 0, end - (end - last));
}

/* ---- Taking a group back --------------------------------------------------------------------- */

/* What was written of it is wiped, or the store is broken. */
static enum cs_step erased(struct cs_dm *dm)
{
	if (dm->result)
		cs_dm_break(dm, dm->result, "to take back records");
	dm->end = dm->acked;
	return cs_dm_group_ended(dm);
}

static enum cs_step rest_wiped(struct cs_dm *dm)
{
	return dm->result ? erased(dm) : flush_late(dm, erased);
}

static enum cs_step first_wiped(struct cs_dm *dm)
{
	const struct cs_dm_erase *e = &dm->erase;

	if (dm->result)
		return erased(dm);
	return zero(dm, e->offset + dm->block_bytes, e->bytes - dm->block_bytes, rest_wiped);
}

/* The first block, of which a part is kept, is in blocks[]. */
static enum cs_step wipe(struct cs_dm *dm)
{
	memset(dm->blocks + dm->erase.keep, 0, dm->blocks_bytes - dm->erase.keep);
	if (dm->result)
		return erased(dm);
	return cs_dm_request(
		dm, COWSNAP_IO_WRITE, dm->blocks, dm->erase.offset, dm->block_bytes, first_wiped);
}

/* Wipes the records of commits that are not done: from slot `acked` on, in its area. What lies in
 * later areas cannot be reached any more, and is wiped before it can be again. */
static enum cs_step erase(struct cs_dm *dm)
{
	const struct cs_dm_group *group = &dm->group;
	struct cs_dm_erase *e = &dm->erase;
	uint64_t records = dm->shape.area_records;
	uint64_t area = dm->acked / records, slot = dm->acked % records;
	uint64_t end = area == group->area ? group->slot + group->records : records;
	uint64_t block = dm->block_bytes;
	uint64_t from = slot * CS_FORMAT_DM_RECORD_BYTES / block * block;
	uint64_t to = (end * CS_FORMAT_DM_RECORD_BYTES + block - 1) / block * block;

	e->keep = slot * CS_FORMAT_DM_RECORD_BYTES - from;
	e->offset = cs_dm_area_offset(dm, area) + from;
	e->bytes = to - from;
	dm->result = 0;
	if (e->keep)
		return cs_dm_request(dm, COWSNAP_IO_READ, dm->blocks, e->offset, block, wipe);
	return wipe(dm);
}

/* ---- A group --------------------------------------------------------------------------------- */

static enum cs_step failed(struct cs_dm *dm)
{
	dm->group.error = dm->result;
	return cs_dm_broken(dm) ? cs_dm_group_ended(dm) : erase(dm);
}

static enum cs_step recorded(struct cs_dm *dm)
{
	if (dm->result)
		return failed(dm);
	keep_last_block(dm);
	return cs_dm_group_ended(dm);
}

static enum cs_step write_records(struct cs_dm *dm)
{
	const struct cs_dm_group *group = &dm->group;
	uint64_t first = group->slot * CS_FORMAT_DM_RECORD_BYTES;
	uint64_t end = first + group->records * CS_FORMAT_DM_RECORD_BYTES;
	uint64_t block = dm->block_bytes;
	uint64_t from = first / block * block, to = (end + block - 1) / block * block;

	if (dm->result)
		return failed(dm);
	encode_group(dm);
	return cs_dm_write_durable(
		dm, dm->blocks, cs_dm_area_offset(dm, group->area) + from, to - from, recorded);
}

static enum cs_step make_data_durable(struct cs_dm *dm)
{
	if (dm->result)
		return failed(dm);
	return dm->group.flush ? flush(dm, dm->group.flush, write_records) : write_records(dm);
}

enum cs_step cs_dm_group_write(struct cs_dm *dm)
{
	dm->result = cs_dm_broken(dm);
	if (dm->result || !dm->group.fills)
		return make_data_durable(dm);
	return zero(dm, cs_dm_area_offset(dm, dm->group.area + 1), cs_dm_chunk_bytes(dm),
		make_data_durable);
}
