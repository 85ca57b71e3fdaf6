/* SPDX-License-Identifier: MIT
 *
 * Waiting, for those who may sleep and for those who may not.
 *
 * A *waiter* is one wake-up that somebody waits for; whoever makes it come true takes waiters out
 * of a *list* under the lock of that list, and wakes them after unlocking. A *task* is something
 * that goes on, step by step: a step either goes on at once or *parks*, having left a waiter
 * somewhere. The task of a caller that waits sleeps on its thread; that of an event loop goes on in
 * its queue. The steps are the same.
 *
 * Invariants:
 *  W1 A waiter is in one list at most, and is woken at most once each time that it is put into one.
 *     Who takes it out wakes it, or, if that is its owner, needs no wake.
 *  W2 The wake is the last touch of a waiter: its memory may go as soon as it has begun.
 *
 * Locking: a list has that of its owner. Failure: none.
 */
#ifndef CS_TASK_H
#define CS_TASK_H

#include "sync.h"

struct cowsnap_queue;

struct cs_waiter {
	void (*wake)(struct cs_waiter *waiter); /* any thread, no lock held */
	struct cs_waiter *next;
	struct cs_waiter **link; /* what points to it; NULL: in no list */
};

struct cs_waitlist {
	struct cs_waiter *first;
	struct cs_waiter **last; /* NULL: as &first */
};

static inline void cs_waitlist_add(struct cs_waitlist *list, struct cs_waiter *waiter)
{
	struct cs_waiter **last = list->first ? list->last : &list->first;

	waiter->next = NULL;
	waiter->link = last;
	*last = waiter;
	list->last = &waiter->next;
}

/* Returns: false if it is not in the list any more: its wake has come or is on its way. */
static inline bool cs_waitlist_remove(struct cs_waitlist *list, struct cs_waiter *waiter)
{
	if (!waiter->link)
		return false;
	*waiter->link = waiter->next;
	if (waiter->next)
		waiter->next->link = waiter->link;
	else
		list->last = waiter->link;
	waiter->link = NULL;
	return true;
}

/* Empties the list. Returns: those who were in it, for cs_waiters_wake(). */
static inline struct cs_waiter *cs_waitlist_take(struct cs_waitlist *list)
{
	struct cs_waiter *all = list->first;

	for (struct cs_waiter *w = all; w; w = w->next)
		w->link = NULL;
	list->first = NULL;
	return all;
}

/* With no lock held. */
static inline void cs_waiters_wake(struct cs_waiter *all)
{
	while (all) {
		struct cs_waiter *next = all->next;

		all->wake(all); /* W2 */
		all = next;
	}
}

/* What a step says of its task. */
enum cs_step {
	CS_GO_ON, /* to the next step, at once */
	CS_PARK,  /* until it is woken, or its deadline */
	CS_DONE,
};

struct cs_task {
	struct cs_waiter waiter;
	struct cowsnap_queue *queue;       /* NULL: its thread waits */
	void (*run)(struct cs_task *task); /* goes on, on the queue's thread */
	/* Set by the step that parks; UINT64_MAX: none. When it has passed, timed_out is set and
	 * the task goes on: its waiter may still be in its list. */
	uint64_t deadline_ns;
	bool timed_out;
	struct cs_event woken;       /* of a thread that waits */
	struct cs_task *next;        /* the queue's */
	struct cs_task *timer_next;  /* the queue's */
	struct cs_task **timer_link; /* the queue's; NULL: not timed */
};

/* @queue: NULL for a thread that waits; then @run is not used. */
void cs_task_init(
	struct cs_task *task, struct cowsnap_queue *queue, void (*run)(struct cs_task *task));
/* Lets a parked task go on. Any thread; once for each time that it parks. */
void cs_task_wake(struct cs_task *task);
/* For the thread of a task without a queue that has parked. */
void cs_task_sleep(struct cs_task *task);

#endif
