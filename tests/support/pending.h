/* SPDX-License-Identifier: MIT
 *
 * An operation that does not wait, and a loop that polls until its callback has run.
 */
#ifndef CS_TEST_PENDING_H
#define CS_TEST_PENDING_H

#include <cowsnap.h>

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#define PENDING_WAIT_MS 30000

struct pending_op {
	struct cowsnap_op op;
	_Atomic unsigned calls;
	int error; /* what the callback was told */
	pthread_t called_on;
	void (*then)(struct pending_op *p); /* called by the callback; NULL: nothing */
	void *user;
};

static inline void pending_done(struct cowsnap_op *op, void *user, int error)
{
	struct pending_op *p = user;

	(void)op;
	p->error = error;
	p->called_on = pthread_self();
	if (p->then)
		p->then(p);
	atomic_fetch_add(&p->calls, 1);
}

/* Polls once if there is something to do within @ms. Returns: false if there is nothing. */
static inline bool pending_poll(struct cowsnap_queue *queue, int ms)
{
	struct pollfd fd = {.fd = cowsnap_queue_fd(queue), .events = POLLIN};
	int n;

	do
		n = poll(&fd, 1, ms);
	while (n < 0 && errno == EINTR);
	return n == 1 && cowsnap_queue_poll(queue) >= 0;
}

/* As long as there is anything to do at once. */
static inline void pending_settle(struct cowsnap_queue *queue)
{
	while (pending_poll(queue, 0))
		;
}

/* Returns: false if nothing happens any more. */
static inline bool pending_wait(struct cowsnap_queue *queue, struct pending_op *p)
{
	while (!atomic_load(&p->calls)) {
		if (!pending_poll(queue, PENDING_WAIT_MS))
			return false;
	}
	return true;
}

#endif
