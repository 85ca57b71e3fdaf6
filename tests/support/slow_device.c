/* SPDX-License-Identifier: MIT */
#include "support/slow_device.h"

#include "support/test.h"

#include <errno.h>
#include <string.h>

struct slow_request {
	struct slow_request *next;
	struct cowsnap_io *io; /* NULL: a call, whose thread waits for released */
	bool released;
};
_Static_assert(sizeof(struct slow_request) <= 5 * sizeof(uint64_t), "the last word is its error");

static int perform(struct slow_device *d, const struct cowsnap_io *io)
{
	switch (io->kind) {
	case COWSNAP_IO_READ:
		return cowsnap_device_read(d->inner, io->buffer, io->offset, io->length);
	case COWSNAP_IO_WRITE:
	case COWSNAP_IO_WRITE_DURABLE:
		return cowsnap_device_write(d->inner, io->buffer, io->offset, io->length);
	case COWSNAP_IO_ZERO:
		return -EOPNOTSUPP;
	default:
		return 0;
	}
}

/* With the lock. */
static int count(struct slow_device *d, enum cowsnap_io_kind kind)
{
	d->calls[kind]++;
	return d->fail[kind] && --d->fail[kind] == 0 ? d->error : 0;
}

/* With the lock. */
static void put_in(struct slow_device *d, struct slow_request *request, struct cowsnap_io *io)
{
	*request = (struct slow_request){.io = io};
	*d->last = request;
	d->last = &request->next;
	d->held++;
	pthread_cond_broadcast(&d->changed);
}

/* With the lock. */
static struct slow_request *take_out(struct slow_device *d)
{
	struct slow_request *request = d->first;

	d->first = request->next;
	if (!d->first)
		d->last = &d->first;
	d->held--;
	return request;
}

/* ---- The table ------------------------------------------------------------------------------- */

static int call(struct slow_device *d, const struct cowsnap_io *io)
{
	struct slow_request request;
	int rc;

	pthread_mutex_lock(&d->lock);
	rc = count(d, io->kind);
	if (d->hold[io->kind]) {
		put_in(d, &request, NULL);
		while (!request.released)
			pthread_cond_wait(&d->changed, &d->lock);
	}
	pthread_mutex_unlock(&d->lock);
	return rc ? rc : perform(d, io);
}

static int slow_read(void *user, void *buffer, uint64_t offset, uint64_t length)
{
	return call(user, &(struct cowsnap_io){.kind = COWSNAP_IO_READ,
				  .buffer = buffer,
				  .offset = offset,
				  .length = length});
}

static int slow_write(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	return call(user, &(struct cowsnap_io){.kind = COWSNAP_IO_WRITE,
				  .buffer = (void *)buffer,
				  .offset = offset,
				  .length = length});
}

static int slow_write_durable(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	return call(user, &(struct cowsnap_io){.kind = COWSNAP_IO_WRITE_DURABLE,
				  .buffer = (void *)buffer,
				  .offset = offset,
				  .length = length});
}

static int slow_flush(void *user)
{
	return call(user, &(struct cowsnap_io){.kind = COWSNAP_IO_FLUSH});
}

static void slow_submit(void *user, struct cowsnap_io *io)
{
	struct slow_device *d = user;
	int rc;

	pthread_mutex_lock(&d->lock);
	d->submitted++;
	rc = count(d, io->kind);
	if (d->hold[io->kind]) {
		io->device_words[5] = (uint64_t)(int64_t)rc;
		put_in(d, (struct slow_request *)io->device_words, io);
		io = NULL;
	}
	pthread_mutex_unlock(&d->lock);
	if (io)
		cowsnap_io_complete(io, rc ? rc : perform(d, io));
}

/* ---- Making and ending ----------------------------------------------------------------------- */

void slow_device_open(struct slow_device *d, struct cowsnap_ctx *ctx, struct cowsnap_device *inner,
	uint32_t block_size, bool flush, bool durable)
{
	struct cowsnap_device_options options = {.size = sizeof(options),
		.block_size = block_size,
		.size_bytes = cowsnap_device_size(inner),
		.name = "slow"};
	struct cowsnap_device_ops ops = {.size = sizeof(ops),
		.read = slow_read,
		.write = slow_write,
		.flush = flush ? slow_flush : NULL,
		.write_durable = durable ? slow_write_durable : NULL,
		.submit = slow_submit};

	memset(d, 0, sizeof(*d));
	d->inner = inner;
	d->last = &d->first;
	pthread_mutex_init(&d->lock, NULL);
	pthread_cond_init(&d->changed, NULL);
	cr_assert_eq(cowsnap_device_create(ctx, &ops, &options, d, &d->device), 0);
}

void slow_device_close(struct slow_device *d)
{
	cr_assert_eq(d->held, 0);
	cr_assert_eq(cowsnap_device_close(d->device), 0);
	pthread_cond_destroy(&d->changed);
	pthread_mutex_destroy(&d->lock);
}

/* ---- The test's ------------------------------------------------------------------------------ */

void slow_device_hold(struct slow_device *d, enum cowsnap_io_kind kind, bool hold)
{
	pthread_mutex_lock(&d->lock);
	d->hold[kind] = hold;
	pthread_mutex_unlock(&d->lock);
}

void slow_device_fail(struct slow_device *d, enum cowsnap_io_kind kind, unsigned n, int error)
{
	pthread_mutex_lock(&d->lock);
	d->fail[kind] = n;
	d->error = error;
	pthread_mutex_unlock(&d->lock);
}

unsigned slow_device_calls(struct slow_device *d, enum cowsnap_io_kind kind)
{
	unsigned calls;

	pthread_mutex_lock(&d->lock);
	calls = d->calls[kind];
	pthread_mutex_unlock(&d->lock);
	return calls;
}

void slow_device_reset(struct slow_device *d)
{
	pthread_mutex_lock(&d->lock);
	memset(d->calls, 0, sizeof(d->calls));
	d->submitted = 0;
	pthread_mutex_unlock(&d->lock);
}

unsigned slow_device_held(struct slow_device *d)
{
	unsigned held;

	pthread_mutex_lock(&d->lock);
	held = d->held;
	pthread_mutex_unlock(&d->lock);
	return held;
}

bool slow_device_release(struct slow_device *d)
{
	struct slow_request *request;
	struct cowsnap_io *io = NULL;
	int rc = 0;

	pthread_mutex_lock(&d->lock);
	request = d->first ? take_out(d) : NULL;
	if (request) {
		io = request->io;
		request->released = true;
		pthread_cond_broadcast(&d->changed);
	}
	pthread_mutex_unlock(&d->lock);
	if (io) {
		rc = (int)(int64_t)io->device_words[5];
		cowsnap_io_complete(io, rc ? rc : perform(d, io));
	}
	return request;
}

static void *run(void *user)
{
	struct slow_device *d = user;

	pthread_mutex_lock(&d->lock);
	while (d->running || d->first) {
		if (!d->first) {
			pthread_cond_wait(&d->changed, &d->lock);
			continue;
		}
		pthread_mutex_unlock(&d->lock);
		slow_device_release(d);
		pthread_mutex_lock(&d->lock);
	}
	pthread_mutex_unlock(&d->lock);
	return NULL;
}

void slow_device_run(struct slow_device *d)
{
	d->running = true;
	cr_assert_eq(pthread_create(&d->thread, NULL, run, d), 0);
}

void slow_device_stop(struct slow_device *d)
{
	pthread_mutex_lock(&d->lock);
	d->running = false;
	pthread_cond_broadcast(&d->changed);
	pthread_mutex_unlock(&d->lock);
	pthread_join(d->thread, NULL);
}
