/* SPDX-License-Identifier: MIT
 *
 * The persistent store: the queue of commits, and who leads.
 *
 * A commit goes to the end of the queue. If nobody leads, its owner does: the *leader* has what
 * waits at the head of the queue written, a *group* at a time (store_dm_group.c), and then makes
 * the owner of the commit at the head the next leader, if there is one. So there is one group on
 * its way, and the next gathers meanwhile. Order on the device is that of the queue: the order in
 * which copies ended.
 *
 * A leader is a thread, which waits for its own commit: it leads until that is done, or a few quick
 * groups longer. Or it is a *chain*: the steps of a group as requests of a queue, which lead on as
 * long as a commit of the same queue is at the head. Then it is sure that the queue is there and
 * polled, and nobody works for others for ever.
 *
 * A commit with more records than go into a group is done when its last one is.
 *
 * On a device with slow flushes the writers of one group come back together, a moment after the
 * leader of the next began: two half groups would alternate for ever. So a leader waits a little,
 * until as many are queued as were under way when the last group ended, while they keep coming, and
 * for half a flush at the most.
 *
 * Invariants: those of store_dm.h, and:
 *  Q1 While somebody leads, the queue changes at its end only, but by the leader.
 *  Q2 Commits with `flushes_seen` below `flushed` have their data durable.
 *  Q4 What is the leader's passes with `leading` under queue_lock, or with the wake of the heir. A
 *     chain leads only while a commit of its queue is in the store's queue, or a merge that runs in
 *     its queue is answered.
 *  Q5 Who clears `gathering` wakes the leader's task, or is the leader.
 *
 * Locking: queue_lock, not over I/O. Waking is done without it, and is the last touch of a waiter.
 *
 * Failure: a group that failed fails the commits that had a record in it; if the store is broken,
 * all in the queue.
 */
#include <errno.h>
#include <pthread.h>

#include "store_dm.h"

/* Flushes slower than this are worth waiting for company. */
#define SLOW_FLUSH_NS  UINT64_C(100000)
/* For so much of a flush, and no longer than nobody has come for so much of one. */
#define GATHER_PART    2u
#define SILENCE_PART   16u
/* Where flushes are quick, who waits looks a few times before it goes to sleep: the leader is done
 * sooner. */
#define LOOKS          1000u
#define QUICK_GROUP_NS UINT64_C(20000)
#define EXTRA_GROUPS   16u

int cs_dm_commit_init(struct cs_dm *dm)
{
	int rc = cs_dm_group_init(dm);

	if (rc)
		return rc;
	cs_mutex_init(&dm->queue_lock);
	dm->last = &dm->first;
	return 0;
}

void cs_dm_commit_fini(struct cs_dm *dm)
{
	if (!dm->blocks)
		return;
	cs_mutex_fini(&dm->queue_lock);
	cs_dm_group_fini(dm);
}

int cs_dm_commit_open(struct cs_dm *dm, uint64_t end, const uint8_t *block)
{
	int rc = 0;

	cs_mutex_lock(&dm->queue_lock);
	if (dm->leading) {
		rc = -EBUSY;
	} else {
		cs_dm_group_open(dm, end, block);
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

/* ---- Groups ---------------------------------------------------------------------------------- */

/* Q2 */
static bool data_durable(const struct cs_dm *dm, const struct cs_dm_waiting *w)
	CS_REQUIRES(dm->queue_lock)
{
	return !cs_dev_cached(dm->device) || w->flushes_seen < dm->flushed;
}

static struct cs_dm_group pick(struct cs_dm *dm) CS_REQUIRES(dm->queue_lock)
{
	uint64_t records = dm->shape.area_records;
	struct cs_dm_group group = {.area = dm->end / records, .slot = dm->end % records};
	uint64_t room = records - group.slot;
	uint64_t most = room < CS_DM_GROUP_RECORDS ? room : CS_DM_GROUP_RECORDS;
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
static struct cs_dm_waiting *settle(struct cs_dm *dm) CS_REQUIRES(dm->queue_lock)
{
	const struct cs_dm_group *group = &dm->group;
	struct cs_dm_waiting *done = NULL, **last = &done;
	uint64_t left = group->records, count = 0;
	int error = group->error;

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
		w->next = NULL;
		*last = w;
		last = &w->next;
		count++;
	}
	dm->active = count + dm->queued;
	return done;
}

/* ---- Gathering ------------------------------------------------------------------------------- */

static enum cs_step begin_group(struct cs_dm *dm) CS_RELEASE(dm->queue_lock)
{
	dm->group = pick(dm);
	cs_mutex_unlock(&dm->queue_lock);
	return cs_dm_group_write(dm);
}

static enum cs_step gathered(struct cs_dm *dm);

/* Parks until all have come, or for a moment. */
static enum cs_step await_company(struct cs_dm *dm, uint64_t now_ns) CS_RELEASE(dm->queue_lock)
{
	uint64_t flush_ns = atomic_load_explicit(&dm->flush_ns, memory_order_relaxed);

	dm->gathering = true;
	dm->gather_seen = dm->queued;
	dm->step = gathered;
	dm->task.deadline_ns = now_ns + flush_ns / SILENCE_PART;
	cs_mutex_unlock(&dm->queue_lock);
	if (dm->task.queue)
		cs_queue_time(dm->task.queue, &dm->task);
	return CS_PARK;
}

static enum cs_step gathered(struct cs_dm *dm)
{
	uint64_t now_ns;

	dm->task.deadline_ns = UINT64_MAX;
	cs_mutex_lock(&dm->queue_lock);
	if (dm->task.timed_out && !dm->gathering) {
		cs_mutex_unlock(&dm->queue_lock);
		return CS_PARK; /* Q5: the wake is on its way */
	}
	now_ns = dm->gathering ? cs_monotonic_ns() : 0;
	if (dm->gathering && dm->queued != dm->gather_seen && now_ns < dm->gather_end_ns)
		return await_company(dm, now_ns);
	dm->gathering = false;
	return begin_group(dm);
}

/* Waits for those who were under way when the last group ended, if there will be a flush. */
static enum cs_step gather_locked(struct cs_dm *dm) CS_RELEASE(dm->queue_lock)
{
	uint64_t flush_ns = atomic_load_explicit(&dm->flush_ns, memory_order_relaxed);
	uint64_t now_ns;

	if (dm->me)
		dm->group_began_ns = cs_monotonic_ns();
	if (flush_ns < SLOW_FLUSH_NS || dm->queued >= dm->active ||
		(data_durable(dm, dm->first) && cs_dev_writes_through(dm->device)))
		return begin_group(dm);
	now_ns = cs_monotonic_ns();
	dm->gather_end_ns = now_ns + flush_ns / GATHER_PART;
	return await_company(dm, now_ns);
}

static enum cs_step gather(struct cs_dm *dm)
{
	cs_mutex_lock(&dm->queue_lock);
	return gather_locked(dm);
}

/* ---- Leading --------------------------------------------------------------------------------- */

/* A chain goes on. */
static void lead_chain(struct cs_dm *dm, enum cs_step step)
{
	while (step == CS_GO_ON)
		step = dm->step(dm);
}

static void note_thread(struct cs_dm *dm)
{
	atomic_store_explicit(&dm->chain_thread, (uintptr_t)pthread_self(), memory_order_relaxed);
}

static void run_chain(struct cs_task *task)
{
	struct cs_dm *dm = cs_container_of(task, struct cs_dm, task);

	note_thread(dm);
	lead_chain(dm, CS_GO_ON);
}

/* Q4 */
static void become_leader(
	struct cs_dm *dm, struct cowsnap_queue *queue, const struct cs_dm_waiting *me)
{
	cs_task_init(&dm->task, queue, run_chain);
	dm->me = me;
	dm->extra_groups = 0;
	dm->step = gather;
}

static void lead_waiting(struct cs_dm *dm, enum cs_step step)
{
	for (; step != CS_DONE; step = dm->step(dm)) {
		if (step == CS_PARK)
			cs_task_sleep(&dm->task);
	}
}

static void lead_thread(struct cs_dm *dm, const struct cs_dm_waiting *me) CS_RELEASE(dm->queue_lock)
{
	become_leader(dm, NULL, me);
	lead_waiting(dm, gather_locked(dm));
}

/*
 * Does the leader lead on?
 *
 * Where a group takes less time than to wake the next leader, a thread that is awake goes on for a
 * few more: else threads that put each other to sleep and wake each other would be all there is.
 */
static bool leads_on(struct cs_dm *dm) CS_REQUIRES(dm->queue_lock)
{
	if (!dm->me)
		return dm->first && dm->first->commit->queue == dm->task.queue;
	return !dm->me->finished ||
	       (dm->first && dm->extra_groups++ < EXTRA_GROUPS &&
		       cs_monotonic_ns() - dm->group_began_ns <= QUICK_GROUP_NS);
}

/* Returns: the next leader, who is to be woken; NULL: nobody leads. */
static struct cs_dm_waiting *hand_over(struct cs_dm *dm) CS_REQUIRES(dm->queue_lock)
{
	dm->leading = dm->first != NULL;
	if (dm->first)
		dm->first->leads = true;
	return dm->first;
}

static void wake_heir(struct cs_dm *dm, struct cs_dm_waiting *heir)
{
	struct cowsnap_queue *queue = heir->commit->queue;

	if (!queue) {
		cs_event_set(&heir->event);
		return;
	}
	become_leader(dm, queue, NULL);
	cs_queue_post(queue, &dm->task);
}

static void wake_all(struct cs_dm_waiting *done, const struct cs_dm_waiting *me)
{
	while (done) {
		struct cs_dm_waiting *w = done;

		done = w->next;
		if (w->commit->queue)
			w->commit->done(w->commit, w->error);
		else if (w != me)
			cs_event_set(&w->event);
	}
}

enum cs_step cs_dm_group_ended(struct cs_dm *dm)
{
	const struct cs_dm_waiting *me = dm->me;
	struct cs_dm_waiting *done, *heir = NULL;
	bool on;

	cs_mutex_lock(&dm->queue_lock);
	done = settle(dm);
	on = leads_on(dm);
	if (on)
		dm->step = gather;
	else
		heir = hand_over(dm);
	if (!on && !me)
		atomic_store_explicit(&dm->chain_thread, 0, memory_order_relaxed);
	cs_mutex_unlock(&dm->queue_lock);
	wake_all(done, me);
	if (heir)
		wake_heir(dm, heir);
	return on ? CS_GO_ON : CS_DONE;
}

/* ---- Leading without a commit ---------------------------------------------------------------- */

int cs_dm_lead(struct cs_dm *dm, struct cowsnap_queue *queue)
{
	bool busy;

	cs_mutex_lock(&dm->queue_lock);
	busy = dm->leading;
	dm->leading = true;
	cs_mutex_unlock(&dm->queue_lock);
	if (busy)
		return -EBUSY;
	become_leader(dm, queue, NULL);
	if (queue)
		note_thread(dm);
	return 0;
}

void cs_dm_lead_on(struct cs_dm *dm, enum cs_step (*first)(struct cs_dm *dm))
{
	dm->step = first;
	if (dm->task.queue)
		lead_chain(dm, CS_GO_ON);
	else
		lead_waiting(dm, CS_GO_ON);
}

void cs_dm_stop_leading(struct cs_dm *dm)
{
	struct cs_dm_waiting *heir;

	cs_mutex_lock(&dm->queue_lock);
	heir = hand_over(dm);
	atomic_store_explicit(&dm->chain_thread, 0, memory_order_relaxed);
	cs_mutex_unlock(&dm->queue_lock);
	if (heir)
		wake_heir(dm, heir);
}

/* ---- Commit ---------------------------------------------------------------------------------- */

/* Returns: does its owner lead? */
static bool enqueue(struct cs_dm *dm, struct cs_dm_waiting *w) CS_REQUIRES(dm->queue_lock)
{
	bool leads = !dm->leading;

	w->flushes_seen = dm->flushes_begun;
	w->leads = leads;
	dm->leading = true;
	*dm->last = w;
	dm->last = &w->next;
	dm->queued++;
	return leads;
}

/* Q5. Returns: are all there that the leader waits for? */
static bool completes(struct cs_dm *dm) CS_REQUIRES(dm->queue_lock)
{
	if (!dm->gathering || dm->queued < dm->active)
		return false;
	dm->gathering = false;
	return true;
}

static void wait_turn(const struct cs_dm *dm, struct cs_dm_waiting *w)
{
	bool quick = cs_dm_quick_flush(dm);

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

/* On the thread of its queue. It may be done, and gone, when this returns. */
static void commit_queued(struct cs_dm *dm, struct cs_dm_waiting *w) CS_RELEASE(dm->queue_lock)
{
	struct cowsnap_queue *queue = w->commit->queue;
	bool leads = enqueue(dm, w), completed = completes(dm);

	if (leads) {
		become_leader(dm, queue, NULL);
		note_thread(dm);
		lead_chain(dm, gather_locked(dm));
		return;
	}
	cs_mutex_unlock(&dm->queue_lock);
	if (completed)
		cs_task_wake(&dm->task);
}

/* On a thread that waits. Returns: how it ended. */
static int commit_waiting(struct cs_dm *dm, struct cs_dm_waiting *w) CS_RELEASE(dm->queue_lock)
{
	bool completed;

	cs_event_init(&w->event);
	if (enqueue(dm, w)) {
		lead_thread(dm, w);
		return w->error;
	}
	completed = completes(dm);
	cs_mutex_unlock(&dm->queue_lock);
	if (completed)
		cs_task_wake(&dm->task);
	wait_turn(dm, w);
	if (w->leads) {
		cs_mutex_lock(&dm->queue_lock);
		lead_thread(dm, w);
	}
	return w->error;
}

void cs_dm_commit(void *user, struct cowsnap_commit *commit)
{
	struct cs_dm_waiting *w = (struct cs_dm_waiting *)commit->words;
	struct cs_dm *dm = user;
	int rc;

	*w = (struct cs_dm_waiting){.commit = commit};
	w->total = w->left = count_records(dm, commit);
	cs_mutex_lock(&dm->queue_lock);
	rc = refuse(dm, w->total);
	if (rc) {
		cs_mutex_unlock(&dm->queue_lock);
	} else if (commit->queue) {
		commit_queued(dm, w);
		return;
	} else {
		rc = commit_waiting(dm, w);
	}
	commit->done(commit, rc);
}
