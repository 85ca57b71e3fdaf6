/* SPDX-License-Identifier: MIT
 *
 * Queues: what an event loop of the host polls, or a worker of the library. All that is started on
 * a queue goes on, and calls back, inside cs_queue_poll(), on the thread that polls.
 *
 * Operations need *records*, of which there are as many as the queue is deep: an operation that
 * finds none waits for its turn, outside of every gate, so that nobody waits for it.
 */
#ifndef CS_QUEUE_H
#define CS_QUEUE_H

#include <cowsnap.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "handle.h"
#include "obs.h"
#include "task.h"

#define CS_QUEUE_DEPTH_MAX 4096u

/* Something beside tasks that a queue looks after: a ring of io_uring, or memory that is kept for
 * what goes on in it. */
struct cs_queue_source {
	struct cs_queue_source *next;
	const void *owner; /* by which it is found again */
	int fd;            /* readable when poll has something to do; -1: none */
	/* NULL: nothing. Collects completions and calls back. Returns: how many. */
	unsigned (*poll)(struct cs_queue_source *source);
	/* NULL: nothing. Hands over what was started since the last time. */
	void (*kick)(struct cs_queue_source *source);
	void (*close)(struct cs_queue_source *source);
};

/* Who waits for a record. */
struct cs_queue_turn {
	struct cs_queue_turn *next;
	struct cs_task *task;
	void *record;
};

struct cowsnap_queue {
	struct cs_handle handle;
	const struct cs_base *base;
	bool blocking; /* its context's engine is inline: devices are called, not submitted to */
	int fd;        /* of epoll: the two below, and those of sources */
	int event_fd;
	int timer_fd;

	/* The thread's that uses the queue. */
	uint32_t depth;
	_Atomic uint32_t inflight; /* operations, waiting ones included; begun on any thread */
	uint64_t callbacks;        /* that were run since it was made */
	uint32_t owed;             /* writes to event_fd that have begun and are not read yet */
	uint64_t timer_set_ns;
	struct cs_task *timers; /* by deadline */
	struct cs_queue_source *sources;
	size_t record_bytes;
	void *records;
	void *free_record;             /* each begins with a pointer to the next */
	struct cs_queue_turn *waiting; /* for a record, in order */
	struct cs_queue_turn **waiting_last;

	atomic_bool polling;
	struct cs_task at_rest; /* not a task: the value of `posted` below */
	/* Tasks to go on with, last one first. At rest, that is after a poll that left nothing to
	 * do: &at_rest, and whoever puts something else there makes the fd readable. */
	_Alignas(CS_CACHE_BYTES) _Atomic(struct cs_task *) posted;
};

/* @record_bytes: of each of @depth records. Returns: 0; -EINVAL (depth), -ENOMEM, or the errno of
 * epoll_create1, eventfd or timerfd_create (-EMFILE ...). */
int cs_queue_init(struct cowsnap_queue *queue, const struct cs_base *base, uint32_t depth,
	size_t record_bytes, bool blocking);
/* Nothing is in flight. Waits for who has posted the last task to be done with the queue. */
void cs_queue_fini(struct cowsnap_queue *queue);

/* Any thread. The last touch of @task; and of the queue, as far as its owner can tell. */
void cs_queue_post(struct cowsnap_queue *queue, struct cs_task *task);
/* To be called by whoever has left something for kick: the fd becomes readable. */
void cs_queue_touch(struct cowsnap_queue *queue);
/* As cowsnap_queue_poll(). */
int cs_queue_poll(struct cowsnap_queue *queue);

/* For a task that has parked with a deadline, or none. The timer goes when the task is woken. */
void cs_queue_time(struct cowsnap_queue *queue, struct cs_task *task);
/* For one that will not be woken: it was taken out of its list. */
void cs_queue_untime(struct cs_task *task);

/* A record, holding anything; NULL: none is free. */
void *cs_queue_get_record(struct cowsnap_queue *queue);
/* Has @turn->record set, and @turn->task woken, when there is one for it. */
void cs_queue_await_record(struct cowsnap_queue *queue, struct cs_queue_turn *turn);
/* Returns: false if it does not wait any more: it has a record. */
bool cs_queue_forsake_record(struct cowsnap_queue *queue, struct cs_queue_turn *turn);
void cs_queue_put_record(struct cowsnap_queue *queue, void *record);

/* An operation begins; it ends, with its callback or without one. */
static inline void cs_queue_began(struct cowsnap_queue *queue)
{
	atomic_fetch_add_explicit(&queue->inflight, 1, memory_order_relaxed);
}

static inline void cs_queue_dropped(struct cowsnap_queue *queue)
{
	/* Release: who finds the queue idle may end it; pairs with cs_queue_idle. */
	atomic_fetch_sub_explicit(&queue->inflight, 1, memory_order_release);
}

static inline void cs_queue_ended(struct cowsnap_queue *queue)
{
	cs_queue_dropped(queue);
	queue->callbacks++;
}

static inline bool cs_queue_idle(const struct cowsnap_queue *queue)
{
	/* Acquire: pairs with cs_queue_dropped. */
	return !atomic_load_explicit(&queue->inflight, memory_order_acquire);
}

struct cs_queue_source *cs_queue_find_source(struct cowsnap_queue *queue, const void *owner);
/* Returns: 0, or the errno of epoll_ctl. */
int cs_queue_add_source(struct cowsnap_queue *queue, struct cs_queue_source *source);

#endif
