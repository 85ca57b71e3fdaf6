/* SPDX-License-Identifier: MIT
 *
 * Writes that do not wait, for scenes: each knows its callback, and that it may come only inside a
 * poll, on the thread that polls, once.
 */
#ifndef COWSNAP_TESTS_ASYNC_H
#define COWSNAP_TESTS_ASYNC_H

#include "concurrent/scene.h"

/* One event loop. */
struct loop {
	struct scene *scene;
	struct cowsnap_queue *queue;
	pthread_t poller; /* who is in a poll */
	bool polling;
	unsigned callbacks;
};

struct async {
	struct cowsnap_op op;
	struct loop *loop; /* NULL: a worker */
	unsigned origin;
	uint64_t offset;
	uint64_t length;
	int began; /* what begin returned */
	int error; /* what the callback was told */
	_Atomic unsigned calls;
	pthread_t called_on;
	void (*then)(struct async *a); /* called by the callback; NULL: nothing */
	void *user;
};

#define ASYNC_WAIT_MS 30000

void loop_open(struct loop *l, struct scene *s, uint32_t depth);
void loop_close(struct loop *l);
bool loop_readable(struct loop *l);
/* Polls once, and checks that it says how many callbacks ran. */
int loop_poll(struct loop *l);
/* Polls when the descriptor is readable, until the write's callback has run. */
void loop_until(struct loop *l, struct async *a);
/* Polls as long as there is anything to do at once. */
void loop_settle(struct loop *l);

/* Returns: what begin returned. */
int async_begin(struct async *a, struct loop *l, unsigned origin, uint64_t offset, uint64_t length);
/* The same on a worker. */
int async_begin_on_worker(
	struct async *a, struct scene *s, unsigned origin, uint64_t offset, uint64_t length);
/* Fails the test unless it is pending and has not been called back. */
void async_expect_pending(const struct async *a);
/* Writes and ends the bracket. */
void async_write(struct async *a, struct scene *s, uint8_t value);
/* Cancels it, and polls until it has ended. Returns: how. */
int async_cancel(struct async *a);

#endif
