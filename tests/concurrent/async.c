/* SPDX-License-Identifier: MIT */
#include "concurrent/async.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

void loop_open(struct loop *l, struct scene *s, uint32_t depth)
{
	*l = (struct loop){.scene = s};
	cr_assert_eq(cowsnap_queue_create(s->ctx, depth, &l->queue), 0);
}

void loop_close(struct loop *l)
{
	cr_assert_eq(cowsnap_queue_close(l->queue), 0);
}

static bool readable_within(struct loop *l, int ms)
{
	struct pollfd p = {.fd = cowsnap_queue_fd(l->queue), .events = POLLIN};
	int n;

	do
		n = poll(&p, 1, ms);
	while (n < 0 && errno == EINTR);
	return n == 1;
}

bool loop_readable(struct loop *l)
{
	return readable_within(l, 0);
}

int loop_poll(struct loop *l)
{
	unsigned before = l->callbacks;
	int ran;

	l->poller = pthread_self();
	l->polling = true;
	ran = cowsnap_queue_poll(l->queue);
	l->polling = false;
	cr_assert_eq(ran, (int)(l->callbacks - before), "poll said %d callbacks", ran);
	return ran;
}

void loop_until(struct loop *l, struct async *a)
{
	while (!atomic_load(&a->calls)) {
		cr_assert(readable_within(l, ASYNC_WAIT_MS), "nothing happens any more");
		loop_poll(l);
	}
}

void loop_settle(struct loop *l)
{
	while (loop_readable(l))
		loop_poll(l);
}

static void called(struct cowsnap_op *op, void *user, int error)
{
	struct async *a = user;
	struct loop *l = a->loop;

	cr_assert_eq(op, &a->op);
	cr_assert_eq(atomic_load(&a->calls), 0, "called back twice");
	if (l) {
		cr_assert(l->polling, "called back outside of a poll");
		cr_assert(pthread_equal(l->poller, pthread_self()), "on another thread");
		l->callbacks++;
	}
	a->called_on = pthread_self();
	a->error = error;
	if (a->then)
		a->then(a);
	atomic_store(&a->calls, 1);
}

static int begin(struct async *a, struct scene *s, struct cowsnap_queue *queue)
{
	atomic_store(&a->calls, 0);
	a->error = 1;
	a->began = cowsnap_write_begin_async(s->origin[a->origin], queue, COWSNAP_WRITE, a->offset,
		a->length, &a->op, called, a);
	return a->began;
}

int async_begin(struct async *a, struct loop *l, unsigned origin, uint64_t offset, uint64_t length)
{
	bool polling = l->polling;
	int rc;

	a->loop = l;
	a->origin = origin;
	a->offset = offset;
	a->length = length;
	/* A callback inside of begin would be outside of a poll. */
	l->polling = false;
	rc = begin(a, l->scene, l->queue);
	l->polling = polling;
	cr_assert_eq(atomic_load(&a->calls), 0, "called back inside of begin");
	return rc;
}

int async_begin_on_worker(
	struct async *a, struct scene *s, unsigned origin, uint64_t offset, uint64_t length)
{
	a->loop = NULL;
	a->origin = origin;
	a->offset = offset;
	a->length = length;
	return begin(a, s, NULL);
}

void async_expect_pending(const struct async *a)
{
	cr_assert_eq(a->began, COWSNAP_PENDING, "begin returned %d", a->began);
	cr_assert_eq(atomic_load(&a->calls), 0);
}

void async_write(struct async *a, struct scene *s, uint8_t value)
{
	uint8_t *data = malloc(a->length);

	memset(data, value, a->length);
	cr_assert_eq(
		cowsnap_device_write(s->origin_device[a->origin], data, a->offset, a->length), 0);
	free(data);
	cowsnap_write_end(&a->op);
}

int async_cancel(struct async *a)
{
	cr_assert_eq(cowsnap_op_cancel(&a->op), 0);
	cr_assert_eq(atomic_load(&a->calls), 0, "called back inside of cancel");
	loop_until(a->loop, a);
	return a->error;
}
