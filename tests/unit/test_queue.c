/* SPDX-License-Identifier: MIT
 *
 * Queues: the fd is readable when there is something to do, and only then; timers; turns; what
 * cannot be made; who may close. And the waiters and tasks that all of it is made of.
 */
#include "queue.h"
#include "support/fail_alloc.h"
#include "support/test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define MS      UINT64_C(1000000)
#define SECONDS (1000 * MS)
#define DEPTH   4u

struct host {
	struct cowsnap_ctx *ctx;
	struct cowsnap_queue *queue;
};

static void open_host(struct host *h, uint32_t depth)
{
	cr_assert_eq(cowsnap_ctx_create(NULL, &h->ctx), 0);
	cr_assert_eq(cowsnap_queue_create(h->ctx, depth, &h->queue), 0);
}

static void close_host(struct host *h)
{
	cr_assert_eq(cowsnap_queue_close(h->queue), 0);
	cr_assert_eq(cowsnap_ctx_destroy(h->ctx), 0);
}

static bool readable_within(struct cowsnap_queue *queue, int ms)
{
	struct pollfd p = {.fd = cowsnap_queue_fd(queue), .events = POLLIN};
	int n;

	do
		n = poll(&p, 1, ms);
	while (n < 0 && errno == EINTR);
	return n == 1 && (p.revents & POLLIN);
}

static bool readable(struct cowsnap_queue *queue)
{
	return readable_within(queue, 0);
}

/* A task that notes that it ran. */
struct note {
	struct cs_task task;
	struct note **last; /* into the list of those that ran */
	struct note *next;
	unsigned runs;
	unsigned timeouts;
};

static void run_note(struct cs_task *task)
{
	struct note *note = cs_container_of(task, struct note, task);

	note->runs++;
	note->timeouts += task->timed_out;
	if (note->last) {
		note->next = *note->last;
		*note->last = note;
	}
}

static void init_note(struct note *note, struct cowsnap_queue *queue, struct note **last)
{
	memset(note, 0, sizeof(*note));
	cs_task_init(&note->task, queue, run_note);
	note->last = last;
}

/* ---- Waiters and tasks ----------------------------------------------------------------------- */

static struct cs_waiter *woken[8];
static unsigned woken_count;

static void note_wake(struct cs_waiter *waiter)
{
	woken[woken_count++] = waiter;
}

Test(queue, waiters_are_woken_once_and_in_order)
{
	struct cs_waitlist list = {0};
	struct cs_waiter w[5];

	woken_count = 0;
	for (int i = 0; i < 5; i++) {
		w[i] = (struct cs_waiter){.wake = note_wake};
		cs_waitlist_add(&list, &w[i]);
	}
	cr_assert(cs_waitlist_remove(&list, &w[0]), "the first");
	cr_assert(cs_waitlist_remove(&list, &w[2]), "one between");
	cr_assert(cs_waitlist_remove(&list, &w[4]), "the last");
	cr_assert(!cs_waitlist_remove(&list, &w[4]), "it is in no list");
	cs_waitlist_add(&list, &w[0]);
	cs_waiters_wake(cs_waitlist_take(&list));
	cr_assert_eq(woken_count, 3);
	cr_assert(woken[0] == &w[1] && woken[1] == &w[3] && woken[2] == &w[0]);
	for (int i = 0; i < 5; i++)
		cr_assert(!cs_waitlist_remove(&list, &w[i]), "its wake has come");
	cr_assert_null(cs_waitlist_take(&list));
	for (int i = 0; i < 5; i++)
		cs_waitlist_add(&list, &w[i]);
	for (int i = 0; i < 5; i++)
		cr_assert(cs_waitlist_remove(&list, &w[i]));
	cs_waitlist_add(&list, &w[3]);
	cs_waiters_wake(cs_waitlist_take(&list));
	cr_assert_eq(woken_count, 4);
}

Test(queue, a_thread_sleeps_until_its_wake_or_its_deadline)
{
	struct cs_task task;

	cs_task_init(&task, NULL, NULL);
	cs_task_wake(&task);
	cs_task_sleep(&task);
	cr_assert(!task.timed_out, "a wake that came first counts");
	task.deadline_ns = cs_monotonic_ns() + MS;
	cs_task_sleep(&task);
	cr_assert(task.timed_out);
	cr_assert_eq(task.deadline_ns, UINT64_MAX, "a deadline is for once");
	cs_task_wake(&task);
	cs_task_sleep(&task);
	cr_assert(!task.timed_out, "a wake that comes after the deadline is not lost");
	task.deadline_ns = 0;
	cs_task_sleep(&task);
	cr_assert(task.timed_out, "all of the past is the same");
}

/* ---- Posting --------------------------------------------------------------------------------- */

Test(queue, the_descriptor_is_readable_when_there_is_something_to_do)
{
	struct note a, b, *ran = NULL;
	struct host h;

	open_host(&h, DEPTH);
	init_note(&a, h.queue, &ran);
	init_note(&b, h.queue, &ran);
	cr_assert(!readable(h.queue), "nothing to do yet");
	cr_assert_eq(cowsnap_queue_poll(h.queue), 0);
	cs_task_wake(&a.task);
	cs_task_wake(&b.task);
	cr_assert(readable(h.queue));
	cr_assert(readable(h.queue), "level-triggered");
	cr_assert_eq(cowsnap_queue_poll(h.queue), 0, "tasks are no callbacks");
	cr_assert(a.runs == 1 && b.runs == 1);
	cr_assert(ran == &b && b.next == &a, "in the order of the posts");
	cr_assert(!readable(h.queue));
	cs_queue_touch(h.queue);
	cr_assert(readable(h.queue), "I/O to hand over");
	cs_task_wake(&a.task);
	cr_assert_eq(cowsnap_queue_poll(h.queue), 0);
	cr_assert_eq(a.runs, 2);
	cr_assert(!readable(h.queue));
	close_host(&h);
}

struct chain {
	struct cs_task task;
	struct note *next;
};

static void run_chain(struct cs_task *task)
{
	cs_task_wake(&cs_container_of(task, struct chain, task)->next->task);
}

Test(queue, what_is_posted_in_a_poll_keeps_the_descriptor_readable)
{
	struct chain chain;
	struct note note;
	struct host h;

	open_host(&h, DEPTH);
	init_note(&note, h.queue, NULL);
	cs_task_init(&chain.task, h.queue, run_chain);
	chain.next = &note;
	cs_task_wake(&chain.task);
	cowsnap_queue_poll(h.queue);
	cr_assert_eq(note.runs, 0, "a poll does what there is, once");
	cr_assert(readable(h.queue));
	cowsnap_queue_poll(h.queue);
	cr_assert_eq(note.runs, 1);
	cr_assert(!readable(h.queue));
	close_host(&h);
}

/* Stands for a thread that has posted, and is held up just before it writes to the eventfd. */
static void take_rest_away(struct cowsnap_queue *queue)
{
	struct cs_task *rest = &queue->at_rest;

	cr_assert(atomic_compare_exchange_strong(&queue->posted, &rest, NULL));
}

static void write_late(struct cowsnap_queue *queue)
{
	const uint64_t one = 1;

	cr_assert_eq(write(queue->event_fd, &one, sizeof(one)), (ssize_t)sizeof(one));
}

/* Once it was taken for the write of another: then it was never read, and a host that waits for the
 * descriptor went round and round. */
Test(queue, a_write_that_comes_late_does_not_stay)
{
	struct note note;
	struct host h;

	open_host(&h, DEPTH);
	init_note(&note, h.queue, NULL);
	take_rest_away(h.queue);
	cowsnap_queue_poll(h.queue);
	cr_assert(!readable(h.queue));
	cs_task_wake(&note.task);
	cr_assert(readable(h.queue));
	cowsnap_queue_poll(h.queue);
	cr_assert_eq(note.runs, 1);
	cr_assert(!readable(h.queue));
	write_late(h.queue);
	cr_assert(readable(h.queue), "this cannot be helped");
	cowsnap_queue_poll(h.queue);
	cr_assert(!readable(h.queue), "once is enough");
	take_rest_away(h.queue);
	cowsnap_queue_poll(h.queue);
	take_rest_away(h.queue);
	cowsnap_queue_poll(h.queue);
	write_late(h.queue);
	write_late(h.queue);
	cowsnap_queue_poll(h.queue);
	cr_assert(!readable(h.queue));
	close_host(&h);
}

struct late {
	struct cowsnap_queue *queue;
	_Atomic bool writes;
};

static void *late_main(void *argument)
{
	struct late *late = argument;

	sched_yield();
	atomic_store(&late->writes, true);
	write_late(late->queue);
	return NULL;
}

/* The descriptor may be another's by then. */
Test(queue, nobody_writes_to_the_descriptor_of_a_closed_queue)
{
	struct late late = {0};
	pthread_t thread;
	struct host h;

	open_host(&h, DEPTH);
	late.queue = h.queue;
	take_rest_away(h.queue);
	cowsnap_queue_poll(h.queue);
	cr_assert_eq(pthread_create(&thread, NULL, late_main, &late), 0);
	cr_assert_eq(cowsnap_queue_close(h.queue), 0);
	cr_assert(atomic_load(&late.writes), "the close has waited for the write");
	pthread_join(thread, NULL);
	cr_assert_eq(cowsnap_ctx_destroy(h.ctx), 0);
}

/* ---- Many who post --------------------------------------------------------------------------- */

#define PRODUCERS 4
#define TASKS     3
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define POSTS 3000
#else
#define POSTS 30000
#endif

struct posted {
	struct cs_task task;
	_Atomic bool idle;
	unsigned runs;
};

struct producer {
	pthread_t thread;
	struct posted task[TASKS];
};

static void run_posted_task(struct cs_task *task)
{
	struct posted *posted = cs_container_of(task, struct posted, task);

	posted->runs++;
	atomic_store(&posted->idle, true);
}

static void *producer_main(void *argument)
{
	struct producer *p = argument;

	for (unsigned i = 0; i < POSTS; i++) {
		struct posted *posted = &p->task[i % TASKS];

		while (!atomic_load(&posted->idle))
			sched_yield();
		atomic_store(&posted->idle, false);
		cs_task_wake(&posted->task);
	}
	return NULL;
}

static unsigned runs_of(const struct producer *producers)
{
	unsigned runs = 0;

	for (unsigned i = 0; i < PRODUCERS * TASKS; i++)
		runs += producers[i / TASKS].task[i % TASKS].runs;
	return runs;
}

/* The host does nothing unless the descriptor is readable: a lost wake-up would stop it. */
Test(queue, no_wake_is_lost_with_many_who_post, .timeout = 120)
{
	static struct producer producers[PRODUCERS];
	struct host h;

	open_host(&h, DEPTH);
	memset(producers, 0, sizeof(producers));
	for (unsigned i = 0; i < PRODUCERS; i++) {
		for (unsigned t = 0; t < TASKS; t++) {
			cs_task_init(&producers[i].task[t].task, h.queue, run_posted_task);
			atomic_store(&producers[i].task[t].idle, true);
		}
		cr_assert_eq(
			pthread_create(&producers[i].thread, NULL, producer_main, &producers[i]),
			0);
	}
	while (runs_of(producers) < PRODUCERS * POSTS) {
		cr_assert(readable_within(h.queue, 30000), "a wake-up was lost after %u",
			runs_of(producers));
		cowsnap_queue_poll(h.queue);
	}
	for (unsigned i = 0; i < PRODUCERS; i++)
		pthread_join(producers[i].thread, NULL);
	/* Late writers may have left one more. */
	cowsnap_queue_poll(h.queue);
	cr_assert(!readable(h.queue), "the descriptor stays readable");
	close_host(&h);
}

#define LIVES (POSTS / 30)

static void *post_once(void *argument)
{
	cs_task_wake(argument);
	return NULL;
}

/* Who posts the last task may still be at it when all is over for the host. */
Test(queue, a_queue_ends_right_after_its_last_task, .timeout = 120)
{
	for (unsigned i = 0; i < LIVES; i++) {
		struct note *note = malloc(sizeof(*note));
		pthread_t thread;
		struct host h;

		open_host(&h, 1);
		init_note(note, h.queue, NULL);
		cr_assert_eq(pthread_create(&thread, NULL, post_once, &note->task), 0);
		while (!note->runs)
			cowsnap_queue_poll(h.queue);
		free(note);
		close_host(&h);
		pthread_join(thread, NULL);
	}
}

/* ---- Timers ---------------------------------------------------------------------------------- */

static void park_until(struct note *note, uint64_t deadline_ns)
{
	note->task.deadline_ns = deadline_ns;
	cs_queue_time(note->task.queue, &note->task);
}

static void poll_until_run(struct host *h, struct note *note, unsigned runs)
{
	while (note->runs < runs) {
		cr_assert(readable_within(h->queue, 30000), "the timer does not wake");
		cowsnap_queue_poll(h->queue);
	}
}

Test(queue, timers_expire_in_the_order_of_their_deadlines, .timeout = 60)
{
	struct note a, b, c, d, *ran = NULL;
	uint64_t now_ns;
	struct host h;

	open_host(&h, DEPTH);
	init_note(&a, h.queue, &ran);
	init_note(&b, h.queue, &ran);
	init_note(&c, h.queue, &ran);
	init_note(&d, h.queue, &ran);
	now_ns = cs_monotonic_ns();
	park_until(&b, now_ns + 2 * MS);
	park_until(&a, now_ns + MS);
	park_until(&c, now_ns + 2 * MS);
	park_until(&d, now_ns + 3600 * SECONDS);
	cr_assert(readable(h.queue), "a poll is to set the timer");
	cowsnap_queue_poll(h.queue);
	poll_until_run(&h, &c, 1);
	cr_assert(a.timeouts == 1 && b.timeouts == 1 && c.timeouts == 1 && d.runs == 0);
	cr_assert(ran == &c && c.next == &b && b.next == &a, "equal ones in the order of parking");
	cr_assert(cs_monotonic_ns() >= now_ns + 2 * MS);
	cr_assert(!readable(h.queue), "an hour to the next one");
	cs_task_wake(&d.task);
	cowsnap_queue_poll(h.queue);
	cr_assert(d.runs == 1 && d.timeouts == 0);
	cr_assert_null(h.queue->timers);
	cr_assert(!readable(h.queue));
	close_host(&h);
}

Test(queue, a_woken_task_has_no_timer_any_more, .timeout = 60)
{
	struct note a, b;
	struct host h;

	open_host(&h, DEPTH);
	init_note(&a, h.queue, NULL);
	init_note(&b, h.queue, NULL);
	park_until(&a, cs_monotonic_ns() + 5 * MS);
	cowsnap_queue_poll(h.queue);
	cs_task_wake(&a.task);
	cowsnap_queue_poll(h.queue);
	cr_assert(a.runs == 1 && a.timeouts == 0);
	cr_assert_eq(a.task.deadline_ns, UINT64_MAX);
	park_until(&b, cs_monotonic_ns() + 10 * MS);
	poll_until_run(&h, &b, 1);
	cr_assert_eq(b.timeouts, 1);
	cr_assert_eq(a.runs, 1, "its time has passed, and nothing came of it");
	cr_assert(!readable(h.queue));
	close_host(&h);
}

/* The wake is on its way when the deadline passes: the task is told of both, the deadline first. */
Test(queue, a_deadline_does_not_swallow_a_wake)
{
	struct note a;
	struct host h;

	open_host(&h, DEPTH);
	init_note(&a, h.queue, NULL);
	park_until(&a, 1);
	cs_task_wake(&a.task);
	cowsnap_queue_poll(h.queue);
	cr_assert_eq(a.runs, 2);
	cr_assert_eq(a.timeouts, 1);
	cr_assert(!a.task.timed_out);
	close_host(&h);
}

Test(queue, timers_that_never_come)
{
	struct note a, b, c;
	struct host h;

	open_host(&h, DEPTH);
	init_note(&a, h.queue, NULL);
	init_note(&b, h.queue, NULL);
	init_note(&c, h.queue, NULL);
	park_until(&a, UINT64_MAX);
	park_until(&b, UINT64_MAX / 2);
	cr_assert_null(h.queue->timers, "never needs no timer");
	cr_assert(!readable(h.queue));
	park_until(&c, cs_monotonic_ns() + MS);
	cs_queue_untime(&c.task);
	cs_queue_untime(&c.task);
	cr_assert_null(h.queue->timers);
	cowsnap_queue_poll(h.queue);
	park_until(&c, 0);
	cr_assert(readable(h.queue));
	cowsnap_queue_poll(h.queue);
	cr_assert(a.runs == 0 && b.runs == 0 && c.timeouts == 1);
	close_host(&h);
}

/* ---- Records --------------------------------------------------------------------------------- */

struct turn {
	struct note note;
	struct cs_queue_turn turn;
};

static void await(struct turn *t, struct cowsnap_queue *queue)
{
	init_note(&t->note, queue, NULL);
	t->turn.task = &t->note.task;
	cs_queue_await_record(queue, &t->turn);
}

Test(queue, records_are_given_in_turn)
{
	void *record[DEPTH];
	struct turn t[5];
	struct host h;

	open_host(&h, DEPTH);
	for (unsigned i = 0; i < DEPTH; i++) {
		record[i] = cs_queue_get_record(h.queue);
		cr_assert_not_null(record[i]);
		cr_assert_eq((uintptr_t)record[i] % CS_CACHE_BYTES, 0);
		memset(record[i], 0xee, h.queue->record_bytes);
	}
	cr_assert_null(cs_queue_get_record(h.queue));
	for (int i = 0; i < 5; i++)
		await(&t[i], h.queue);
	cr_assert(cs_queue_forsake_record(h.queue, &t[4].turn), "the last");
	cr_assert(cs_queue_forsake_record(h.queue, &t[1].turn), "one between");
	cr_assert(!cs_queue_forsake_record(h.queue, &t[1].turn));
	await(&t[4], h.queue);
	cs_queue_put_record(h.queue, record[2]);
	cr_assert_eq(t[0].turn.record, record[2]);
	cr_assert_null(cs_queue_get_record(h.queue), "nobody passes those who wait");
	cr_assert(!cs_queue_forsake_record(h.queue, &t[0].turn), "it has one");
	cr_assert(readable(h.queue));
	cowsnap_queue_poll(h.queue);
	cr_assert_eq(t[0].note.runs, 1);
	cs_queue_put_record(h.queue, record[0]);
	cs_queue_put_record(h.queue, record[1]);
	cowsnap_queue_poll(h.queue);
	cr_assert(t[1].note.runs == 0 && t[2].note.runs == 1 && t[3].note.runs == 1);
	cr_assert(cs_queue_forsake_record(h.queue, &t[4].turn), "the only one");
	cs_queue_put_record(h.queue, record[2]);
	cr_assert_eq(cs_queue_get_record(h.queue), record[2]);
	await(&t[1], h.queue);
	cs_queue_put_record(h.queue, record[3]);
	cr_assert_eq(t[1].turn.record, record[3]);
	cowsnap_queue_poll(h.queue);
	for (unsigned i = 0; i < DEPTH; i++)
		cs_queue_put_record(h.queue, record[i]);
	close_host(&h);
}

/* ---- Misuse ---------------------------------------------------------------------------------- */

struct nested {
	struct cs_task task;
	int polled, closed;
};

static void run_nested(struct cs_task *task)
{
	struct nested *nested = cs_container_of(task, struct nested, task);

	nested->polled = cowsnap_queue_poll(task->queue);
	nested->closed = cowsnap_queue_close(task->queue);
}

Test(queue, poll_and_close_inside_a_callback_are_refused)
{
	struct nested nested = {0};
	struct host h;

	open_host(&h, DEPTH);
	cs_task_init(&nested.task, h.queue, run_nested);
	cs_task_wake(&nested.task);
	cr_assert_eq(cowsnap_queue_poll(h.queue), 0);
	cr_assert_eq(nested.polled, -EDEADLK);
	cr_assert_eq(nested.closed, -EBUSY);
	cs_task_wake(&nested.task);
	cr_assert(readable(h.queue), "nothing came of it");
	cr_assert_eq(cowsnap_queue_poll(h.queue), 0);
	close_host(&h);
}

static void *poller_main(void *argument)
{
	struct cowsnap_queue *queue = argument;

	for (unsigned i = 0; i < POSTS; i++) {
		int rc = cowsnap_queue_poll(queue);

		cr_assert(rc == 0 || rc == -EDEADLK, "error %d", rc);
	}
	return NULL;
}

/* Who comes second is sent away, and does no harm. */
Test(queue, two_threads_poll_at_once, .timeout = 120)
{
	static struct producer producer;
	pthread_t thread[2];
	struct host h;

	open_host(&h, DEPTH);
	memset(&producer, 0, sizeof(producer));
	for (unsigned t = 0; t < TASKS; t++) {
		cs_task_init(&producer.task[t].task, h.queue, run_posted_task);
		atomic_store(&producer.task[t].idle, true);
	}
	cr_assert_eq(pthread_create(&producer.thread, NULL, producer_main, &producer), 0);
	for (int i = 0; i < 2; i++)
		cr_assert_eq(pthread_create(&thread[i], NULL, poller_main, h.queue), 0);
	for (int i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	while (producer.task[0].runs + producer.task[1].runs + producer.task[2].runs < POSTS)
		cowsnap_queue_poll(h.queue);
	pthread_join(producer.thread, NULL);
	close_host(&h);
}

Test(queue, close_waits_for_nobody_and_twice_is_refused)
{
	struct host h;

	open_host(&h, DEPTH);
	cs_queue_began(h.queue);
	cs_queue_began(h.queue);
	cs_queue_dropped(h.queue);
	cr_assert_eq(cowsnap_queue_close(h.queue), -EBUSY);
	cr_assert_eq(cowsnap_ctx_destroy(h.ctx), -EBUSY);
	cr_assert_geq(cowsnap_queue_fd(h.queue), 0, "nothing was done");
	cr_assert_eq(cowsnap_queue_poll(h.queue), 0);
	cs_queue_dropped(h.queue);
	cr_assert_eq(cowsnap_ctx_destroy(h.ctx), -EBUSY, "it is open");
	cr_assert_eq(cowsnap_queue_close(h.queue), 0);
	cr_assert_eq(cowsnap_queue_close(h.queue), -EBADF);
	cr_assert_eq(cowsnap_queue_poll(h.queue), -EBADF);
	cr_assert_eq(cowsnap_queue_fd(h.queue), -EBADF);
	cr_assert_eq(cowsnap_queue_close(NULL), 0);
	cr_assert_eq(cowsnap_ctx_destroy(h.ctx), 0);
}

/* ---- Making ---------------------------------------------------------------------------------- */

static unsigned open_descriptors(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned count = 0;

	cr_assert_not_null(dir);
	while (readdir(dir))
		count++;
	closedir(dir);
	return count;
}

Test(queue, depth_is_checked)
{
	const uint32_t wrong[] = {0, 4097, UINT32_MAX};
	struct cowsnap_queue *queue = NULL;
	unsigned before;
	struct host h;

	open_host(&h, 4096);
	before = open_descriptors();
	for (int i = 0; i < 3; i++) {
		cr_assert_eq(cowsnap_queue_create(h.ctx, wrong[i], &queue), -EINVAL);
		cr_assert_null(queue);
	}
	cr_assert_eq(open_descriptors(), before);
	cr_assert_eq(cowsnap_queue_create(h.ctx, 1, &queue), 0);
	cr_assert_eq(fcntl(cowsnap_queue_fd(queue), F_GETFD), FD_CLOEXEC);
	cr_assert_eq(cowsnap_queue_close(queue), 0);
	cr_assert_eq(open_descriptors(), before);
	close_host(&h);
}

Test(queue, every_allocation_fails)
{
	struct fail_alloc *memory = fail_alloc_create(false);
	struct cowsnap_ctx_options options = {
		.size = sizeof(options), .allocator = fail_alloc_table(memory)};
	struct cowsnap_queue *queue = NULL;
	struct cowsnap_ctx *ctx;
	unsigned before, n = 1;
	uint64_t live;

	cr_assert_eq(cowsnap_ctx_create(&options, &ctx), 0);
	before = open_descriptors();
	live = fail_alloc_live(memory);
	for (;; n++) {
		int rc;

		fail_alloc_at(memory, n, false);
		rc = cowsnap_queue_create(ctx, 64, &queue);
		if (!rc)
			break;
		cr_assert_eq(rc, -ENOMEM);
		cr_assert_null(queue);
		cr_assert_eq(fail_alloc_live(memory), live);
		cr_assert_eq(open_descriptors(), before);
	}
	cr_assert_gt(n, 2);
	cr_assert_eq(fail_alloc_failed(memory), 0);
	fail_alloc_at(memory, 0, false);
	cr_assert_eq(cowsnap_queue_close(queue), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
	cr_assert_eq(fail_alloc_live(memory), 0);
	fail_alloc_destroy(memory);
}

static int lowest_free_descriptor(void)
{
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	cr_assert(fd >= 0);
	close(fd);
	return fd;
}

/* Room for @spare more descriptors. Numbers below the lowest free one are all in use, others above
 * it may be: those do not count, as the limit is of numbers. */
static void limit_descriptors(int spare)
{
	struct rlimit limit;

	cr_assert_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
	limit.rlim_cur = (rlim_t)(lowest_free_descriptor() + spare);
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

/* The descriptors that a queue needs run out, one after the other. */
Test(queue, every_descriptor_is_missing)
{
	struct cowsnap_queue *queue = NULL;
	struct rlimit limit;
	struct host h;
	int refused = 0;

	open_host(&h, DEPTH);
	cr_assert_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
	for (int spare = 0; !queue && spare < 16; spare++) {
		unsigned before = open_descriptors();
		int rc;

		limit_descriptors(spare);
		rc = cowsnap_queue_create(h.ctx, DEPTH, &queue);
		cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
		if (!rc)
			break;
		refused++;
		cr_assert_eq(rc, -EMFILE, "error %d", rc);
		cr_assert_null(queue);
		cr_assert_eq(open_descriptors(), before);
	}
	cr_assert_geq(refused, 3);
	cr_assert_eq(cowsnap_queue_close(queue), 0);
	close_host(&h);
}

/* The same for workers: all of them, or none. */
Test(queue, workers_without_descriptors_are_refused)
{
	struct cowsnap_ctx_options options = {
		.size = sizeof(options), .engine = COWSNAP_ENGINE_WORKERS, .workers = 3};
	struct cowsnap_ctx *ctx = NULL;
	struct rlimit limit;
	int refused = 0;

	cr_assert_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
	for (int spare = 0; !ctx && spare < 32; spare++) {
		unsigned before = open_descriptors();
		int rc;

		limit_descriptors(spare);
		rc = cowsnap_ctx_create(&options, &ctx);
		cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
		if (!rc)
			break;
		refused++;
		cr_assert_eq(rc, -EMFILE, "error %d", rc);
		cr_assert_null(ctx);
		cr_assert_eq(open_descriptors(), before, "workers were left behind");
	}
	cr_assert_geq(refused, 9, "%d refused", refused);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}
