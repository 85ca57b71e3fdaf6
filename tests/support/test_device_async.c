/* SPDX-License-Identifier: MIT
 *
 * Requests wait in one of two lists, for a release or for the device's thread; their words for the
 * device link them. Nothing is locked while a request is completed.
 */
#include "support/test_device_async.h"

#include "dev.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#define HELD_SECONDS 30

/* In order. */
struct list {
	struct cowsnap_io *first;
	struct cowsnap_io **last;
	unsigned count;
};

struct test_async {
	struct test_device *rig;
	struct cowsnap_device *device;
	bool has_identity;
	struct cowsnap_device_identity identity;

	_Atomic int mode;
	atomic_bool twice;
	atomic_bool refuse_zero;
	_Atomic uint64_t submitted;

	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct list held;
	struct list foreign;
	bool started; /* the thread */
	bool ending;
	pthread_t thread;
};

/* ---- Lists ----------------------------------------------------------------------------------- */

_Static_assert(sizeof(struct cowsnap_io *) <= sizeof(uint64_t), "a word links");

static struct cowsnap_io **next_of(struct cowsnap_io *io)
{
	return (struct cowsnap_io **)(void *)&io->device_words[0];
}

static void list_init(struct list *list)
{
	list->first = NULL;
	list->last = &list->first;
	list->count = 0;
}

static void list_add(struct list *list, struct cowsnap_io *io)
{
	*next_of(io) = NULL;
	*list->last = io;
	list->last = next_of(io);
	list->count++;
}

static struct cowsnap_io *list_take(struct list *list, struct cowsnap_io **at)
{
	struct cowsnap_io *io = *at;

	*at = *next_of(io);
	if (!*at)
		list->last = at;
	list->count--;
	return io;
}

static struct cowsnap_io **list_end(struct list *list)
{
	struct cowsnap_io **at = &list->first;

	while (*next_of(*at))
		at = next_of(*at);
	return at;
}

/* ---- Requests -------------------------------------------------------------------------------- */

static int move(struct test_async *a, const struct cowsnap_io *io)
{
	struct cowsnap_device *to = test_device(a->rig);

	switch (io->kind) {
	case COWSNAP_IO_READ:
		return cs_dev_read(to, io->buffer, io->offset, io->length);
	case COWSNAP_IO_WRITE:
		return cs_dev_write(to, io->buffer, io->offset, io->length);
	case COWSNAP_IO_ZERO:
		if (atomic_load_explicit(&a->refuse_zero, memory_order_relaxed))
			return -EOPNOTSUPP;
		return cs_dev_zero(to, io->offset, io->length);
	case COWSNAP_IO_DISCARD:
		return cs_dev_discard(to, io->offset, io->length);
	case COWSNAP_IO_FLUSH:
		return cs_dev_flush(to);
	case COWSNAP_IO_WRITE_DURABLE:
		return cs_dev_write_durable(to, io->buffer, io->offset, io->length);
	}
	return -EINVAL;
}

static void complete(struct test_async *a, struct cowsnap_io *io)
{
	cowsnap_io_complete(io, move(a, io));
}

static void complete_here(struct test_async *a, struct cowsnap_io *io)
{
	bool twice = atomic_load_explicit(&a->twice, memory_order_relaxed);

	complete(a, io);
	if (twice)
		cowsnap_io_complete(io, -EIO);
}

static void async_submit(void *user, struct cowsnap_io *io)
{
	struct test_async *a = user;
	int mode = atomic_load_explicit(&a->mode, memory_order_relaxed);

	atomic_fetch_add_explicit(&a->submitted, 1, memory_order_relaxed);
	if (mode == TEST_ASYNC_INLINE) {
		complete_here(a, io);
		return;
	}
	pthread_mutex_lock(&a->lock);
	list_add(mode == TEST_ASYNC_HELD ? &a->held : &a->foreign, io);
	pthread_cond_broadcast(&a->changed);
	pthread_mutex_unlock(&a->lock);
}

static void *complete_elsewhere(void *user)
{
	struct test_async *a = user;

	pthread_mutex_lock(&a->lock);
	while (!a->ending || a->foreign.first) {
		struct list *list = &a->foreign;
		struct cowsnap_io *io;
		int mode;

		if (!list->first) {
			pthread_cond_wait(&a->changed, &a->lock);
			continue;
		}
		mode = atomic_load_explicit(&a->mode, memory_order_relaxed);
		io = list_take(list, mode == TEST_ASYNC_REVERSE ? list_end(list) : &list->first);
		pthread_mutex_unlock(&a->lock);
		complete(a, io);
		pthread_mutex_lock(&a->lock);
	}
	pthread_mutex_unlock(&a->lock);
	return NULL;
}

/* ---- Calls that wait ------------------------------------------------------------------------- */

static struct cowsnap_device *rig_of(void *user)
{
	return test_device(((struct test_async *)user)->rig);
}

static int async_read(void *user, void *buffer, uint64_t offset, uint64_t length)
{
	return cs_dev_read(rig_of(user), buffer, offset, length);
}

static int async_write(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	return cs_dev_write(rig_of(user), buffer, offset, length);
}

static int async_zero(void *user, uint64_t offset, uint64_t length)
{
	return cs_dev_zero(rig_of(user), offset, length);
}

static int async_discard(void *user, uint64_t offset, uint64_t length)
{
	return cs_dev_discard(rig_of(user), offset, length);
}

static int async_flush(void *user)
{
	return cs_dev_flush(rig_of(user));
}

static int async_write_durable(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	return cs_dev_write_durable(rig_of(user), buffer, offset, length);
}

static int async_length(void *user, uint64_t *size_bytes)
{
	int rc = cs_dev_refresh(rig_of(user));

	*size_bytes = cs_dev_size(rig_of(user));
	return rc;
}

static int async_lock(void *user, enum cowsnap_lock lock)
{
	return cs_dev_lock(rig_of(user), lock);
}

static int async_identity(void *user, struct cowsnap_device_identity *identity)
{
	*identity = ((struct test_async *)user)->identity;
	return 0;
}

/* ---- Making ---------------------------------------------------------------------------------- */

static int make_device(
	struct cowsnap_ctx *ctx, const struct test_device_options *options, struct test_async *a)
{
	struct cowsnap_device_ops ops = {
		.size = sizeof(ops),
		.read = async_read,
		.write = async_write,
		.zero = options->bare ? NULL : async_zero,
		.discard = options->bare ? NULL : async_discard,
		.flush = options->bare || options->no_flush ? NULL : async_flush,
		.identity = options->identity ? async_identity : NULL,
		.write_durable = options->durable ? async_write_durable : NULL,
		.length = options->max_bytes ? async_length : NULL,
		.lock = options->lockable ? async_lock : NULL,
		.submit = async_submit,
	};
	struct cowsnap_device_options device_options = {
		.size = sizeof(device_options),
		.block_size = options->block_size,
		.size_bytes = options->size_bytes,
		.name = "test-async",
	};
	struct test_device_options rig_options = *options;

	if (options->identity)
		a->identity = *options->identity;
	rig_options.identity = NULL;
	a->rig = test_device_create(ctx, &rig_options);
	if (!a->rig)
		return -ENOMEM;
	return cowsnap_device_create(ctx, &ops, &device_options, a, &a->device);
}

static void make_lock(struct test_async *a)
{
	pthread_condattr_t attr;

	pthread_mutex_init(&a->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&a->changed, &attr);
	pthread_condattr_destroy(&attr);
}

struct test_async *test_async_create(struct cowsnap_ctx *ctx,
	const struct test_device_options *options, enum test_async_mode mode)
{
	struct test_async *a = calloc(1, sizeof(*a));

	if (!a)
		return NULL;
	atomic_init(&a->mode, (int)mode);
	list_init(&a->held);
	list_init(&a->foreign);
	make_lock(a);
	if (make_device(ctx, options, a) ||
		pthread_create(&a->thread, NULL, complete_elsewhere, a)) {
		test_async_destroy(a);
		return NULL;
	}
	a->started = true;
	return a;
}

int test_async_destroy(struct test_async *a)
{
	int rc;

	if (!a)
		return 0;
	if (test_async_held(a))
		return -EBUSY;
	rc = a->device ? cowsnap_device_close(a->device) : 0;
	if (rc && rc != -EBADF)
		return rc;
	if (a->started) {
		pthread_mutex_lock(&a->lock);
		a->ending = true;
		pthread_cond_broadcast(&a->changed);
		pthread_mutex_unlock(&a->lock);
		pthread_join(a->thread, NULL);
	}
	test_device_destroy(a->rig);
	pthread_cond_destroy(&a->changed);
	pthread_mutex_destroy(&a->lock);
	free(a);
	return 0;
}

struct cowsnap_device *test_async_device(struct test_async *a)
{
	return a->device;
}

struct test_device *test_async_rig(struct test_async *a)
{
	return a->rig;
}

void test_async_set_mode(struct test_async *a, enum test_async_mode mode)
{
	atomic_store_explicit(&a->mode, (int)mode, memory_order_relaxed);
}

void test_async_set_twice(struct test_async *a, bool twice)
{
	atomic_store_explicit(&a->twice, twice, memory_order_relaxed);
}

void test_async_refuse_zero(struct test_async *a, bool refuse)
{
	atomic_store_explicit(&a->refuse_zero, refuse, memory_order_relaxed);
}

/* ---- Holding --------------------------------------------------------------------------------- */

uint64_t test_async_submitted(const struct test_async *a)
{
	return atomic_load_explicit(&a->submitted, memory_order_relaxed);
}

unsigned test_async_held(struct test_async *a)
{
	unsigned count;

	pthread_mutex_lock(&a->lock);
	count = a->held.count;
	pthread_mutex_unlock(&a->lock);
	return count;
}

bool test_async_wait_held(struct test_async *a, unsigned count)
{
	struct timespec deadline;
	int rc = 0;
	bool held;

	clock_gettime(CLOCK_MONOTONIC, &deadline);
	deadline.tv_sec += HELD_SECONDS;
	pthread_mutex_lock(&a->lock);
	while (a->held.count < count && !rc)
		rc = pthread_cond_timedwait(&a->changed, &a->lock, &deadline);
	held = a->held.count >= count;
	pthread_mutex_unlock(&a->lock);
	return held;
}

unsigned test_async_release(struct test_async *a, unsigned count, enum test_release order)
{
	unsigned released = 0;

	for (; released < count; released++) {
		struct list *list = &a->held;
		struct cowsnap_io *io = NULL;

		pthread_mutex_lock(&a->lock);
		if (list->first)
			io = list_take(
				list, order == TEST_RELEASE_LAST ? list_end(list) : &list->first);
		pthread_mutex_unlock(&a->lock);
		if (!io)
			break;
		complete_here(a, io);
	}
	return released;
}

unsigned test_async_release_kind(struct test_async *a, enum cowsnap_io_kind kind)
{
	unsigned released = 0;

	for (;; released++) {
		struct cowsnap_io **at = &a->held.first;
		struct cowsnap_io *io = NULL;

		pthread_mutex_lock(&a->lock);
		while (*at && (*at)->kind != kind)
			at = next_of(*at);
		if (*at)
			io = list_take(&a->held, at);
		pthread_mutex_unlock(&a->lock);
		if (!io)
			return released;
		complete_here(a, io);
	}
}
