/* SPDX-License-Identifier: MIT
 *
 * Queues: tasks posted from anywhere, run by the thread that polls. Design in queue.h.
 *
 * The fd is that of an epoll set: an eventfd for posts, a timerfd for the next deadline, the fds of
 * sources. Nothing is written to the eventfd while the owner is at work: a poll that ends leaves
 * the queue *at rest*, and only the first post after that pays for the system call.
 *
 * Invariants:
 *  N1 After a poll, `posted` is &at_rest, or exactly one write to the eventfd was begun since.
 *     Who takes &at_rest away makes that write; it is all that he does to the queue after that.
 *     The poll counts these writes in `owed` and reads as many, whenever they come: so the fd does
 *     not stay readable, and a queue that owes nothing is touched by nobody.
 *  N2 A task is in `posted` once at most (W1), and in `timers` only while it is parked.
 *  N3 There is no free record while somebody waits for one.
 *
 * Locking: none; `posted` is everybody's, all else is the polling thread's.
 *
 * Failure: all memory is got when the queue is made.
 */
#include "queue.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "alloc.h"

/* ---- Tasks ----------------------------------------------------------------------------------- */

static void wake_task(struct cs_waiter *waiter)
{
	cs_task_wake(cs_container_of(waiter, struct cs_task, waiter));
}

void cs_task_init(
	struct cs_task *task, struct cowsnap_queue *queue, void (*run)(struct cs_task *task))
{
	task->waiter.wake = wake_task;
	task->waiter.link = NULL;
	task->queue = queue;
	task->run = run;
	task->deadline_ns = UINT64_MAX;
	task->timed_out = false;
	task->timer_link = NULL;
	cs_event_init(&task->woken);
}

void cs_task_wake(struct cs_task *task)
{
	if (task->queue)
		cs_queue_post(task->queue, task);
	else
		cs_event_set(&task->woken);
}

void cs_task_sleep(struct cs_task *task)
{
	task->timed_out = !cs_event_wait_until(&task->woken, task->deadline_ns);
	task->deadline_ns = UINT64_MAX;
	if (!task->timed_out)
		cs_event_init(&task->woken);
}

/* ---- Making ---------------------------------------------------------------------------------- */

static int watch(struct cowsnap_queue *queue, int fd)
{
	struct epoll_event event = {.events = EPOLLIN};

	return epoll_ctl(queue->fd, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

static int open_fds(struct cowsnap_queue *queue)
{
	int rc;

	queue->fd = epoll_create1(EPOLL_CLOEXEC);
	if (queue->fd < 0)
		return -errno;
	queue->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (queue->event_fd < 0)
		return -errno;
	queue->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (queue->timer_fd < 0)
		return -errno;
	rc = watch(queue, queue->event_fd);
	return rc ? rc : watch(queue, queue->timer_fd);
}

static void close_fd(int fd)
{
	if (fd >= 0)
		close(fd);
}

static int make_records(struct cowsnap_queue *queue)
{
	char *record;

	queue->records = cs_alloc_aligned(
		queue->base->alloc, queue->depth * queue->record_bytes, CS_CACHE_BYTES);
	if (!queue->records)
		return -ENOMEM;
	record = queue->records;
	for (uint32_t i = 0; i < queue->depth; i++, record += queue->record_bytes) {
		*(void **)record = queue->free_record;
		queue->free_record = record;
	}
	return 0;
}

int cs_queue_init(struct cowsnap_queue *queue, const struct cs_base *base, uint32_t depth,
	size_t record_bytes, bool blocking)
{
	int rc;

	queue->base = base;
	queue->fd = queue->event_fd = queue->timer_fd = -1;
	queue->depth = depth;
	queue->blocking = blocking;
	queue->timer_set_ns = UINT64_MAX;
	queue->record_bytes = (record_bytes + CS_CACHE_BYTES - 1) & ~(size_t)(CS_CACHE_BYTES - 1);
	queue->waiting_last = &queue->waiting;
	queue->owed = 0;
	atomic_init(&queue->posted, &queue->at_rest);
	if (!depth || depth > CS_QUEUE_DEPTH_MAX) {
		cs_log(base, COWSNAP_LOG_ERROR, "queue: depth %u is not 1 to %u", depth,
			CS_QUEUE_DEPTH_MAX);
		return -EINVAL;
	}
	rc = open_fds(queue);
	if (rc)
		cs_log(base, COWSNAP_LOG_ERROR, "queue: no file descriptor, error %d", -rc);
	if (!rc)
		rc = make_records(queue);
	if (rc)
		cs_queue_fini(queue);
	return rc;
}

struct cs_queue_source *cs_queue_find_source(struct cowsnap_queue *queue, const void *owner)
{
	struct cs_queue_source *source = queue->sources;

	while (source && source->owner != owner)
		source = source->next;
	return source;
}

int cs_queue_add_source(struct cowsnap_queue *queue, struct cs_queue_source *source)
{
	int rc = source->fd >= 0 ? watch(queue, source->fd) : 0;

	if (rc)
		return rc;
	source->next = queue->sources;
	queue->sources = source;
	return 0;
}

/* ---- Posting --------------------------------------------------------------------------------- */

static void fire(struct cowsnap_queue *queue)
{
	const uint64_t one = 1;
	ssize_t n = write(queue->event_fd, &one, sizeof(one));

	/* It can only be full, and then it is readable. */
	(void)n;
}

void cs_queue_touch(struct cowsnap_queue *queue)
{
	struct cs_task *rest = &queue->at_rest;

	if (atomic_compare_exchange_strong_explicit(
		    &queue->posted, &rest, NULL, memory_order_relaxed, memory_order_relaxed))
		fire(queue);
}

void cs_queue_post(struct cowsnap_queue *queue, struct cs_task *task)
{
	struct cs_task *first = atomic_load_explicit(&queue->posted, memory_order_relaxed);

	do
		task->next = first == &queue->at_rest ? NULL : first;
	/* Release: what the task is to see; pairs with run_posted. */
	while (!atomic_compare_exchange_weak_explicit(
		&queue->posted, &first, task, memory_order_release, memory_order_relaxed));
	if (first == &queue->at_rest)
		fire(queue);
}

/* Who took the rest away may not have written yet: then it is read next time. */
static void read_owed(struct cowsnap_queue *queue)
{
	uint64_t count;

	if (queue->owed && read(queue->event_fd, &count, sizeof(count)) == sizeof(count))
		queue->owed -= (uint32_t)count;
}

/* From now on nobody fires. */
static void rise(struct cowsnap_queue *queue)
{
	struct cs_task *rest = &queue->at_rest;

	if (!atomic_compare_exchange_strong_explicit(
		    &queue->posted, &rest, NULL, memory_order_relaxed, memory_order_relaxed))
		queue->owed++;
	read_owed(queue);
}

static void rest(struct cowsnap_queue *queue)
{
	struct cs_task *nothing = NULL;

	if (!atomic_compare_exchange_strong_explicit(&queue->posted, &nothing, &queue->at_rest,
		    memory_order_relaxed, memory_order_relaxed))
		fire(queue);
}

/* ---- Timers ---------------------------------------------------------------------------------- */

void cs_queue_time(struct cowsnap_queue *queue, struct cs_task *task)
{
	struct cs_task **at = &queue->timers;

	if (cs_is_never(task->deadline_ns))
		return;
	while (*at && (*at)->deadline_ns <= task->deadline_ns)
		at = &(*at)->timer_next;
	task->timer_next = *at;
	task->timer_link = at;
	if (*at)
		(*at)->timer_link = &task->timer_next;
	*at = task;
	/* The timerfd is set when the poll ends; if none is under way, one is asked for. */
	cs_queue_touch(queue);
}

void cs_queue_untime(struct cs_task *task)
{
	if (!task->timer_link)
		return;
	*task->timer_link = task->timer_next;
	if (task->timer_next)
		task->timer_next->timer_link = task->timer_link;
	task->timer_link = NULL;
	task->deadline_ns = UINT64_MAX;
}

static void run_timers(struct cowsnap_queue *queue)
{
	uint64_t now_ns;

	if (!queue->timers)
		return;
	now_ns = cs_monotonic_ns();
	while (queue->timers && queue->timers->deadline_ns <= now_ns) {
		struct cs_task *task = queue->timers;

		cs_queue_untime(task);
		task->timed_out = true;
		task->run(task);
	}
}

static void set_timer(struct cowsnap_queue *queue)
{
	uint64_t next_ns = queue->timers ? queue->timers->deadline_ns : UINT64_MAX;
	struct itimerspec spec = {0};

	if (next_ns == queue->timer_set_ns)
		return;
	/* 0 would disarm it; all of the past is the same to it. */
	if (queue->timers)
		spec.it_value = cs_timespec(next_ns ? next_ns : 1);
	timerfd_settime(queue->timer_fd, TFD_TIMER_ABSTIME, &spec, NULL);
	queue->timer_set_ns = next_ns;
}

/* ---- Polling --------------------------------------------------------------------------------- */

static void run_posted(struct cowsnap_queue *queue)
{
	/* Acquire: pairs with cs_queue_post. */
	struct cs_task *task = atomic_exchange_explicit(&queue->posted, NULL, memory_order_acquire);
	struct cs_task *in_order = NULL;

	while (task) {
		struct cs_task *next = task->next;

		task->next = in_order;
		in_order = task;
		task = next;
	}
	while (in_order) {
		task = in_order;
		in_order = task->next;
		cs_queue_untime(task);
		task->timed_out = false;
		task->run(task);
	}
}

int cs_queue_poll(struct cowsnap_queue *queue)
{
	uint64_t before, ran;

	/* Acquire: what the poll before has left, if another thread's; pairs with
	 * cs_queue_poll. */
	if (atomic_exchange_explicit(&queue->polling, true, memory_order_acquire)) {
		cs_log(queue->base, COWSNAP_LOG_ERROR,
			"queue: poll inside a poll, or on two threads at once");
		return -EDEADLK;
	}
	before = queue->callbacks;
	rise(queue);
	for (struct cs_queue_source *s = queue->sources; s; s = s->next) {
		if (s->poll)
			s->poll(s);
	}
	run_timers(queue);
	run_posted(queue);
	for (struct cs_queue_source *s = queue->sources; s; s = s->next) {
		if (s->kick)
			s->kick(s);
	}
	set_timer(queue);
	rest(queue);
	ran = queue->callbacks - before;
	/* Release: pairs with cs_queue_poll. */
	atomic_store_explicit(&queue->polling, false, memory_order_release);
	return (int)ran;
}

/* ---- Ending ---------------------------------------------------------------------------------- */

/* N1: waits for the writes that have begun; who makes them waits for nothing. */
static void settle(struct cowsnap_queue *queue)
{
	struct pollfd written = {.fd = queue->event_fd, .events = POLLIN};

	for (rise(queue); queue->owed; read_owed(queue))
		poll(&written, 1, -1);
}

void cs_queue_fini(struct cowsnap_queue *queue)
{
	settle(queue);
	while (queue->sources) {
		struct cs_queue_source *source = queue->sources;

		queue->sources = source->next;
		source->close(source);
	}
	close_fd(queue->timer_fd);
	close_fd(queue->event_fd);
	close_fd(queue->fd);
	cs_free(queue->base->alloc, queue->records, queue->depth * queue->record_bytes);
	queue->records = NULL;
}

/* ---- Records --------------------------------------------------------------------------------- */

void *cs_queue_get_record(struct cowsnap_queue *queue)
{
	void *record = queue->free_record;

	if (record)
		queue->free_record = *(void **)record;
	return record;
}

void cs_queue_await_record(struct cowsnap_queue *queue, struct cs_queue_turn *turn)
{
	turn->next = NULL;
	turn->record = NULL;
	*queue->waiting_last = turn;
	queue->waiting_last = &turn->next;
}

bool cs_queue_forsake_record(struct cowsnap_queue *queue, struct cs_queue_turn *turn)
{
	struct cs_queue_turn **at = &queue->waiting;

	while (*at && *at != turn)
		at = &(*at)->next;
	if (!*at)
		return false;
	*at = turn->next;
	if (!*at)
		queue->waiting_last = at;
	return true;
}

void cs_queue_put_record(struct cowsnap_queue *queue, void *record)
{
	struct cs_queue_turn *turn = queue->waiting;

	if (!turn) {
		*(void **)record = queue->free_record;
		queue->free_record = record;
		return;
	}
	queue->waiting = turn->next;
	if (!queue->waiting)
		queue->waiting_last = &queue->waiting;
	turn->record = record;
	cs_task_wake(turn->task);
}
