/* SPDX-License-Identifier: MIT
 *
 * The persistent store: records, written in groups.
 *
 * A commit goes to the end of the queue. If nobody leads, its thread does: the *leader* writes what
 * waits at the head of the queue, a *group* at a time, until its own commit is done; then, or a few
 * quick groups later, it makes the thread of the next one the leader, if there is one. So there is
 * one group on its way, and the next gathers meanwhile. Order on the device is that of the queue:
 * the order in which copies ended.
 *
 * A group is written so:
 *
 *   1. If it fills an area: zeroes over the next area.
 *   2. A flush, unless one that ended well began since the youngest of the group was queued (then
 *      its data was written before that flush), and the group fills no area.
 *   3. The blocks of the area that hold the records, durably: past the cache where the device can,
 *      else with a second flush. That one is also the flush of step 2 for those who queued before
 *      it began, so that under load each flush completes a group.
 *
 * A group lies in one area, so that there is one next area to be zeroed. A commit with more records
 * than go into a group is done when its last one is.
 *
 * On a device with slow flushes the writers of one group come back together, a moment after the
 * leader of the next began: two half groups would alternate for ever. So a leader waits a little,
 * until as many are queued as were under way when the last group ended, while they keep coming, and
 * for half a flush at the most.
 *
 * Invariants: those of store_dm.h, and:
 *  Q1 While somebody leads, the queue changes at its end only, but by the leader.
 *  Q2 Commits with `flushes_seen` below `flushed` have their data durable.
 *  Q3 blocks[] is zero behind what is on the device.
 *
 * Locking: queue_lock, not over I/O. Waking is done without it, and is the last touch of a waiter.
 *
 * Failure: if step 1 or 3 fails, what may have come to the device is wiped and flushed, the commits
 * that had a record in the group fail, and the store goes on. If that fails, or a flush, the store
 * is broken: after a failed flush nobody knows what the device has dropped, and a second one that
 * succeeds says nothing about it.
 */
#include <errno.h>
#include <string.h>

#include "alloc.h"
#include "store_dm.h"

#define GROUP_RECORDS 4096u
#define GROUP_BYTES   (GROUP_RECORDS * CS_FORMAT_DM_RECORD_BYTES)
#define MEMORY_ALIGN  4096u

/* Flushes slower than this are worth waiting for company. */
#define SLOW_FLUSH_NS  UINT64_C(100000)
/* For so much of a flush, and no longer than nobody has come for so much of one. */
#define GATHER_PART    2u
#define SILENCE_PART   16u
/* Below it, who waits looks a few times before it goes to sleep: the leader is done sooner. */
#define QUICK_FLUSH_NS UINT64_C(10000)
#define LOOKS          1000u
#define QUICK_GROUP_NS UINT64_C(20000)
#define EXTRA_GROUPS   16u
#define TIMED_ONE_IN   64u

struct cs_dm_waiting {
	struct cowsnap_commit *commit;
	struct cs_dm_waiting *next; /* in the queue; then among those to be woken */
	uint64_t flushes_seen;      /* flushes_begun when it was queued */
	uint64_t total;             /* records */
	uint64_t left;              /* of these, not on the device yet */
	size_t run;                 /* where those begin */
	uint64_t in_run;
	struct cs_event event; /* finished, or leads */
	bool leads;
	bool finished;
	int error;
};

struct group {
	uint64_t area;
	uint64_t slot;
	uint64_t records;
	bool fills;       /* the area */
	uint64_t flush;   /* number of the one before the records; 0: none */
	uint64_t flushed; /* number of the last one that ended well; 0: none */
};

int cs_dm_commit_init(struct cs_dm *dm)
{
	dm->blocks_bytes = dm->block_bytes + GROUP_BYTES;
	dm->blocks_bytes =
		(dm->blocks_bytes + dm->block_bytes - 1) & ~(size_t)(dm->block_bytes - 1);
	dm->blocks = cs_alloc_aligned(dm->base->alloc, dm->blocks_bytes, MEMORY_ALIGN);
	if (!dm->blocks)
		return -ENOMEM;
	cs_mutex_init(&dm->flush_lock);
	cs_mutex_init(&dm->queue_lock);
	cs_cond_init(&dm->gathered);
	dm->last = &dm->first;
	return 0;
}

void cs_dm_commit_fini(struct cs_dm *dm)
{
	if (!dm->blocks)
		return;
	cs_cond_fini(&dm->gathered);
	cs_mutex_fini(&dm->queue_lock);
	cs_mutex_fini(&dm->flush_lock);
	cs_free(dm->base->alloc, dm->blocks, dm->blocks_bytes);
}

int cs_dm_commit_open(struct cs_dm *dm, uint64_t end, const uint8_t *block)
{
	int rc = 0;

	cs_mutex_lock(&dm->queue_lock);
	if (dm->leading) {
		rc = -EBUSY;
	} else {
		dm->end = dm->acked = end;
		memset(dm->blocks, 0, dm->blocks_bytes);
		if (block)
			memcpy(dm->blocks, block, dm->block_bytes);
		dm->open = true;
	}
	cs_mutex_unlock(&dm->queue_lock);
	return rc;
}

void cs_dm_commit_close(struct cs_dm *dm)
{
	cs_mutex_lock(&dm->queue_lock);
	dm->open = false;
	cs_mutex_unlock(&dm->queue_lock);
}

int cs_dm_break(struct cs_dm *dm, int error, const char *what)
{
	if (!atomic_exchange_explicit(&dm->broken, error, memory_order_relaxed))
		cs_log(dm->base, COWSNAP_LOG_ERROR,
			"store on %s: %s failed, error %d: nothing more is saved in it",
			dm->device->name, what, error);
	return error;
}

/* ---- A group on the device ------------------------------------------------------------------ */

static uint64_t area_records(const struct cs_dm *dm)
{
	return dm->shape.area_records;
}

/* Where slot 0 of an area is. */
static uint64_t area_offset(const struct cs_dm *dm, uint64_t area)
{
	return (1 + area * (area_records(dm) + 1)) << dm->chunk_shift;
}

static bool quick_flush(const struct cs_dm *dm)
{
	return atomic_load_explicit(&dm->flush_ns, memory_order_relaxed) < QUICK_FLUSH_NS;
}

/* The shortest of the last few: others were interrupted. */
static void note_flush(struct cs_dm *dm, uint64_t took_ns) CS_REQUIRES(dm->flush_lock)
{
	uint64_t least_ns = UINT64_MAX;

	dm->flush_took_ns[dm->flushes_timed++ % CS_DM_FLUSHES_TIMED] = took_ns;
	for (unsigned i = 0; i < CS_DM_FLUSHES_TIMED && i < dm->flushes_timed; i++) {
		if (dm->flush_took_ns[i] < least_ns)
			least_ns = dm->flush_took_ns[i];
	}
	atomic_store_explicit(&dm->flush_ns, least_ns, memory_order_relaxed);
}

/* Flushes, and times it. Where they are quick, to look at the clock costs as much as they do, and
 * one in many says enough. */
static int timed_flush(struct cs_dm *dm, uint64_t number) CS_REQUIRES(dm->flush_lock)
{
	uint64_t began_ns;
	int rc;

	if (dm->flushes_timed && quick_flush(dm) && number % TIMED_ONE_IN)
		return cs_dev_flush(dm->device);
	began_ns = cs_monotonic_ns();
	rc = cs_dev_flush(dm->device);
	note_flush(dm, cs_monotonic_ns() - began_ns);
	return rc;
}

int cs_dm_flush(struct cs_dm *dm, uint64_t number)
{
	int rc;

	cs_mutex_lock(&dm->flush_lock);
	rc = timed_flush(dm, number);
	if (rc)
		cs_dm_break(dm, rc, "a flush");
	cs_mutex_unlock(&dm->flush_lock);
	return rc;
}

/* Flushes, as number @number. That it ended well is seen when the group is settled. */
static int flush(struct cs_dm *dm, struct group *group, uint64_t number)
{
	int rc = cs_dm_flush(dm, number);

	/* One of before may have been told of what this one was to make durable. */
	if (!rc)
		rc = cs_dm_broken(dm);
	if (!rc)
		group->flushed = number;
	return rc;
}

/* A flush that is for those too who queue until it begins. */
static int flush_late(struct cs_dm *dm, struct group *group)
{
	uint64_t number;

	if (!cs_dev_cached(dm->device))
		return 0;
	cs_mutex_lock(&dm->queue_lock);
	number = ++dm->flushes_begun;
	cs_mutex_unlock(&dm->queue_lock);
	return flush(dm, group, number);
}

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

static void encode_group(struct cs_dm *dm, const struct group *group)
{
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

static int write_records(struct cs_dm *dm, struct group *group)
{
	uint64_t first = group->slot * CS_FORMAT_DM_RECORD_BYTES;
	uint64_t end = first + group->records * CS_FORMAT_DM_RECORD_BYTES;
	uint64_t block = dm->block_bytes;
	uint64_t from = first / block * block, to = (end + block - 1) / block * block;
	uint64_t offset = area_offset(dm, group->area) + from;
	int rc;

	if (cs_dev_writes_through(dm->device))
		return cs_dev_write_durable(dm->device, dm->blocks, offset, to - from);
	rc = cs_dev_write(dm->device, dm->blocks, offset, to - from);
	return rc ? rc : flush_late(dm, group);
}

static int write_group(struct cs_dm *dm, struct group *group)
{
	int rc = 0;

	if (group->fills)
		rc = cs_dev_write_zeroes(
			dm->device, area_offset(dm, group->area + 1), cs_dm_chunk_bytes(dm));
	if (!rc && group->flush)
		rc = flush(dm, group, group->flush);
	if (rc)
		return rc;
	encode_group(dm, group);
	return write_records(dm, group);
}

/* Q3, after a group: the block that the next record goes to comes to the front. */
static void keep_last_block(struct cs_dm *dm, const struct group *group)
{
	size_t block = dm->block_bytes;
	size_t first = (size_t)(group->slot * CS_FORMAT_DM_RECORD_BYTES % block);
	size_t end = first + (size_t)group->records * CS_FORMAT_DM_RECORD_BYTES;
	size_t last = end / block * block;

	if (!last)
		return;
	memcpy(dm->blocks, dm->blocks + last, end - last);
	memset(dm->blocks + (end - last), 0, end - (end - last));
}

/* Wipes the records of commits that are not done: from slot `acked` on, in its area. What lies in
 * later areas cannot be reached any more, and is wiped before it can be again. */
static void erase(struct cs_dm *dm, struct group *group)
{
	uint64_t area = dm->acked / area_records(dm), slot = dm->acked % area_records(dm);
	uint64_t end = area == group->area ? group->slot + group->records : area_records(dm);
	uint64_t block = dm->block_bytes;
	uint64_t from = slot * CS_FORMAT_DM_RECORD_BYTES / block * block;
	uint64_t to = (end * CS_FORMAT_DM_RECORD_BYTES + block - 1) / block * block;
	uint64_t keep = slot * CS_FORMAT_DM_RECORD_BYTES - from;
	uint64_t offset = area_offset(dm, area) + from;
	int rc = 0;

	if (keep)
		rc = cs_dev_read(dm->device, dm->blocks, offset, block);
	memset(dm->blocks + keep, 0, dm->blocks_bytes - keep);
	if (!rc)
		rc = cs_dev_write(dm->device, dm->blocks, offset, block);
	if (!rc && to - from > block)
		rc = cs_dev_write_zeroes(dm->device, offset + block, to - from - block);
	if (!rc)
		rc = flush_late(dm, group);
	if (rc)
		cs_dm_break(dm, rc, "to take back records");
	dm->end = dm->acked;
}

/* ---- The queue ------------------------------------------------------------------------------ */

/* Q2 */
static bool data_durable(const struct cs_dm *dm, const struct cs_dm_waiting *w)
	CS_REQUIRES(dm->queue_lock)
{
	return !cs_dev_cached(dm->device) || w->flushes_seen < dm->flushed;
}

/* Waits for those who were under way when the last group ended, if there will be a flush. */
static void gather(struct cs_dm *dm) CS_REQUIRES(dm->queue_lock)
{
	uint64_t flush_ns = atomic_load_explicit(&dm->flush_ns, memory_order_relaxed);
	uint64_t now_ns, end_ns;

	if (flush_ns < SLOW_FLUSH_NS || dm->queued >= dm->active ||
		(data_durable(dm, dm->first) && cs_dev_writes_through(dm->device)))
		return;
	now_ns = cs_monotonic_ns();
	end_ns = now_ns + flush_ns / GATHER_PART;
	dm->gathering = true;
	while (dm->queued < dm->active && now_ns < end_ns) {
		uint64_t queued = dm->queued;

		if (!cs_cond_wait_until(
			    &dm->gathered, &dm->queue_lock, now_ns + flush_ns / SILENCE_PART) &&
			dm->queued == queued)
			break;
		now_ns = cs_monotonic_ns();
	}
	dm->gathering = false;
}

static struct group pick(struct cs_dm *dm) CS_REQUIRES(dm->queue_lock)
{
	struct group group = {
		.area = dm->end / area_records(dm), .slot = dm->end % area_records(dm)};
	uint64_t room = area_records(dm) - group.slot;
	uint64_t most = room < GROUP_RECORDS ? room : GROUP_RECORDS;
	bool durable = data_durable(dm, dm->first);

	/* Without a flush only those whose data is durable; with one, all who are there. */
	for (const struct cs_dm_waiting *w = dm->first; w && group.records < most; w = w->next) {
		if (durable && !data_durable(dm, w))
			break;
		group.records += w->left;
	}
	if (group.records > most)
		group.records = most;
	group.fills = group.records == room;
	if (cs_dev_cached(dm->device) && (!durable || group.fills))
		group.flush = ++dm->flushes_begun;
	return group;
}

static struct cs_dm_waiting *pop(struct cs_dm *dm, int error) CS_REQUIRES(dm->queue_lock)
{
	struct cs_dm_waiting *w = dm->first;

	dm->first = w->next;
	if (!dm->first)
		dm->last = &dm->first;
	dm->queued--;
	w->finished = true;
	w->error = error;
	return w;
}

/* Takes those out of the queue that the group has finished, in whatever way. Returns: them. */
static struct cs_dm_waiting *settle(struct cs_dm *dm, const struct group *group, int error)
	CS_REQUIRES(dm->queue_lock)
{
	struct cs_dm_waiting *done = NULL;
	uint64_t left = group->records, count = 0;

	if (group->flushed)
		dm->flushed = group->flushed;
	if (!error)
		dm->end += group->records;
	while (dm->first && (left || (error && cs_dm_broken(dm)))) {
		uint64_t records = dm->first->left < left ? dm->first->left : left;
		struct cs_dm_waiting *w;

		left -= records;
		dm->first->left -= records;
		if (!error && dm->first->left)
			break;
		w = pop(dm, error);
		if (!error)
			dm->acked += w->total;
		w->next = done;
		done = w;
		count++;
	}
	dm->active = count + dm->queued;
	return done;
}

static void wake_all(struct cs_dm_waiting *done, const struct cs_dm_waiting *me)
{
	while (done) {
		struct cs_dm_waiting *w = done;

		done = w->next;
		if (w != me)
			cs_event_set(&w->event);
	}
}

/* One group, of what is at the head of the queue. Returns: those whom it has finished. */
static struct cs_dm_waiting *lead_group(struct cs_dm *dm) CS_REQUIRES(dm->queue_lock)
{
	struct group group;
	int rc;

	gather(dm);
	group = pick(dm);
	cs_mutex_unlock(&dm->queue_lock);
	rc = cs_dm_broken(dm);
	if (!rc)
		rc = write_group(dm, &group);
	if (!rc)
		keep_last_block(dm, &group);
	else if (!cs_dm_broken(dm))
		erase(dm, &group);
	cs_mutex_lock(&dm->queue_lock);
	return settle(dm, &group, rc);
}

/*
 * Writes groups until @me is finished. Returns: those who are still to be woken.
 *
 * Where a group takes less time than to wake the next leader, the one that is awake goes on for a
 * few more: else threads that put each other to sleep and wake each other would be all there is.
 */
static struct cs_dm_waiting *lead(struct cs_dm *dm, const struct cs_dm_waiting *me)
	CS_REQUIRES(dm->queue_lock)
{
	for (unsigned extra = 0;;) {
		uint64_t began_ns = cs_monotonic_ns();
		struct cs_dm_waiting *done = lead_group(dm);

		if (me->finished && (!dm->first || extra++ == EXTRA_GROUPS ||
					    cs_monotonic_ns() - began_ns > QUICK_GROUP_NS))
			return done;
		cs_mutex_unlock(&dm->queue_lock);
		wake_all(done, me);
		cs_mutex_lock(&dm->queue_lock);
	}
}

/* Returns: the next leader, who is to be woken; NULL: nobody leads. */
static struct cs_dm_waiting *hand_over(struct cs_dm *dm) CS_REQUIRES(dm->queue_lock)
{
	dm->leading = dm->first != NULL;
	if (dm->first)
		dm->first->leads = true;
	return dm->first;
}

/* Returns: is its thread the leader? */
static bool enqueue(struct cs_dm *dm, struct cs_dm_waiting *w) CS_REQUIRES(dm->queue_lock)
{
	bool leads = !dm->leading;

	w->flushes_seen = dm->flushes_begun;
	w->leads = leads;
	dm->leading = true;
	*dm->last = w;
	dm->last = &w->next;
	dm->queued++;
	if (dm->gathering && dm->queued >= dm->active)
		cs_cond_broadcast(&dm->gathered);
	return leads;
}

static void wait_turn(const struct cs_dm *dm, struct cs_dm_waiting *w)
{
	bool quick = quick_flush(dm);

	for (unsigned i = 0; quick && i < LOOKS; i++) {
		if (cs_event_is_set(&w->event))
			return;
	}
	cs_event_wait(&w->event);
}

/* What a host hands in itself may be anything. Returns: how many records; 0 if one of them cannot
 * be written. */
static uint64_t count_records(const struct cs_dm *dm, const struct cowsnap_commit *commit)
{
	uint64_t chunks = cs_dev_size(dm->device) >> dm->chunk_shift, total = 0;

	for (size_t i = 0; i < commit->count; i++) {
		const struct cowsnap_run *run = &commit->runs[i];

		if (!cs_dm_data_run(dm, chunks, run->location, run->count) ||
			run->first > dm->shape.origin_chunks - run->count)
			return 0;
		total += run->count;
	}
	return total;
}

static int refuse(struct cs_dm *dm, uint64_t total) CS_REQUIRES(dm->queue_lock)
{
	if (!total)
		return -EINVAL;
	if (cs_dm_broken(dm))
		return cs_dm_broken(dm);
	return dm->open ? 0 : -ESRCH;
}

static void lead_until_done(struct cs_dm *dm, struct cs_dm_waiting *me) CS_RELEASE(dm->queue_lock)
{
	struct cs_dm_waiting *done = lead(dm, me);
	struct cs_dm_waiting *heir = hand_over(dm);

	cs_mutex_unlock(&dm->queue_lock);
	wake_all(done, me);
	if (heir)
		cs_event_set(&heir->event);
}

void cs_dm_commit(void *user, struct cowsnap_commit *commit)
{
	struct cs_dm *dm = user;
	struct cs_dm_waiting w = {.commit = commit};
	int rc;

	w.total = w.left = count_records(dm, commit);
	cs_event_init(&w.event);
	cs_mutex_lock(&dm->queue_lock);
	rc = refuse(dm, w.total);
	if (rc) {
		cs_mutex_unlock(&dm->queue_lock);
		commit->done(commit, rc);
		return;
	}
	if (enqueue(dm, &w)) {
		lead_until_done(dm, &w);
	} else {
		cs_mutex_unlock(&dm->queue_lock);
		wait_turn(dm, &w);
		if (w.leads) {
			cs_mutex_lock(&dm->queue_lock);
			lead_until_done(dm, &w);
		}
	}
	commit->done(commit, w.error);
}
