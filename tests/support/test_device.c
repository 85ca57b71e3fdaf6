/* SPDX-License-Identifier: MIT
 *
 * The bytes are a memory device of the library's. That keeps its rule for ThreadSanitizer: a reader
 * and a writer of the same bytes are no race to be reported. For the same reason counters are
 * relaxed atomics and the lock is only taken when a log, a fault or a hold point asks for it: a
 * lock in each call would order threads that nothing else orders, and hide their races.
 */
#include "support/test_device.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define HOLD_SECONDS 30

enum hold_state {
	HOLD_UNUSED,
	HOLD_ARMED,
	HOLD_REACHED,
	HOLD_RELEASED,
};

struct hold {
	enum hold_state state;
	enum test_io kind;
	enum test_hold_when when;
	uint64_t offset;
	uint64_t length;
};

struct fault {
	uint64_t countdown; /* calls until it strikes; 0: off */
	bool for_good;
	int error;
	uint64_t range_offset;
	uint64_t range_length;
	int range_error;
};

struct test_device {
	struct cowsnap_device *device;
	struct cowsnap_device *inner;
	struct cowsnap_device_identity identity;

	_Atomic uint64_t calls[TEST_IO_KINDS];
	_Atomic uint64_t bytes[TEST_IO_KINDS];
	_Atomic uint64_t closes;
	_Atomic uint64_t failed;
	atomic_bool watched; /* a log, a fault or a hold point: calls take the lock */

	pthread_mutex_t lock;
	pthread_cond_t changed; /* a hold point's state */
	bool log;
	struct fault fault[TEST_IO_KINDS];
	struct hold hold[TEST_DEVICE_HOLDS];
	size_t entries;
	struct test_device_entry entry[TEST_DEVICE_LOG_MAX];
};

/* A flush has no range: it touches each. */
static bool touches(const struct test_device_entry *call, uint64_t offset, uint64_t length)
{
	return call->kind == TEST_IO_FLUSH ||
	       (call->offset < offset + length && offset < call->offset + call->length);
}

/* ---- What happens in a call ------------------------------------------------------------------ */

/* Under the lock, which it gives up while it waits. */
static void stop_at_hold(
	struct test_device *t, const struct test_device_entry *call, enum test_hold_when when)
{
	for (int i = 0; i < TEST_DEVICE_HOLDS; i++) {
		struct hold *h = &t->hold[i];

		if (h->state != HOLD_ARMED || h->kind != call->kind || h->when != when ||
			!touches(call, h->offset, h->length))
			continue;
		h->state = HOLD_REACHED;
		pthread_cond_broadcast(&t->changed);
		while (h->state == HOLD_REACHED)
			pthread_cond_wait(&t->changed, &t->lock);
		h->state = HOLD_UNUSED;
		pthread_cond_broadcast(&t->changed);
		return;
	}
}

static int strike(struct test_device *t, const struct test_device_entry *call)
{
	struct fault *f = &t->fault[call->kind];

	if (f->range_length && touches(call, f->range_offset, f->range_length))
		return f->range_error;
	if (!f->countdown || --f->countdown)
		return 0;
	if (f->for_good)
		f->countdown = 1;
	return f->error;
}

/* Returns: the error of the call, 0 if it is to go on. */
static int before(struct test_device *t, enum test_io kind, uint64_t offset, uint64_t length)
{
	struct test_device_entry call = {kind, offset, length};
	int rc;

	atomic_fetch_add_explicit(&t->calls[kind], 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&t->bytes[kind], length, memory_order_relaxed);
	if (!atomic_load_explicit(&t->watched, memory_order_relaxed))
		return 0;
	pthread_mutex_lock(&t->lock);
	if (t->log && t->entries < TEST_DEVICE_LOG_MAX)
		t->entry[t->entries] = call;
	t->entries += t->log;
	stop_at_hold(t, &call, TEST_HOLD_BEFORE);
	rc = strike(t, &call);
	pthread_mutex_unlock(&t->lock);
	if (rc)
		atomic_fetch_add_explicit(&t->failed, 1, memory_order_relaxed);
	return rc;
}

static int after(struct test_device *t, enum test_io kind, uint64_t offset, uint64_t length, int rc)
{
	struct test_device_entry call = {kind, offset, length};

	if (!atomic_load_explicit(&t->watched, memory_order_relaxed))
		return rc;
	pthread_mutex_lock(&t->lock);
	stop_at_hold(t, &call, TEST_HOLD_AFTER);
	pthread_mutex_unlock(&t->lock);
	return rc;
}

static int test_read(void *user, void *buffer, uint64_t offset, uint64_t length)
{
	struct test_device *t = user;
	int rc = before(t, TEST_IO_READ, offset, length);

	if (!rc)
		rc = cowsnap_device_read(t->inner, buffer, offset, length);
	return after(t, TEST_IO_READ, offset, length, rc);
}

static int test_write(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	struct test_device *t = user;
	int rc = before(t, TEST_IO_WRITE, offset, length);

	if (!rc)
		rc = cowsnap_device_write(t->inner, buffer, offset, length);
	return after(t, TEST_IO_WRITE, offset, length, rc);
}

static int test_zero(void *user, uint64_t offset, uint64_t length)
{
	struct test_device *t = user;
	int rc = before(t, TEST_IO_ZERO, offset, length);

	if (!rc)
		rc = cowsnap_device_zero(t->inner, offset, length);
	return after(t, TEST_IO_ZERO, offset, length, rc);
}

static int test_discard(void *user, uint64_t offset, uint64_t length)
{
	struct test_device *t = user;
	int rc = before(t, TEST_IO_DISCARD, offset, length);

	if (!rc)
		rc = cowsnap_device_discard(t->inner, offset, length);
	return after(t, TEST_IO_DISCARD, offset, length, rc);
}

static int test_flush(void *user)
{
	struct test_device *t = user;

	return after(t, TEST_IO_FLUSH, 0, 0, before(t, TEST_IO_FLUSH, 0, 0));
}

static int test_identity(void *user, struct cowsnap_device_identity *identity)
{
	struct test_device *t = user;

	*identity = t->identity;
	return 0;
}

static void test_close(void *user)
{
	struct test_device *t = user;

	atomic_fetch_add_explicit(&t->closes, 1, memory_order_relaxed);
}

/* ---- Making ---------------------------------------------------------------------------------- */

struct test_device *test_device_create(
	struct cowsnap_ctx *ctx, const struct test_device_options *options)
{
	struct cowsnap_device_ops ops = {
		.size = sizeof(ops),
		.read = test_read,
		.write = test_write,
		.zero = options->bare ? NULL : test_zero,
		.discard = options->bare ? NULL : test_discard,
		.flush = options->bare ? NULL : test_flush,
		.identity = options->identity ? test_identity : NULL,
		.close = test_close,
	};
	struct cowsnap_device_options device_options = {
		.size = sizeof(device_options),
		.block_size = options->block_size,
		.size_bytes = options->size_bytes,
		.name = "test",
	};
	struct test_device *t = calloc(1, sizeof(*t));
	pthread_condattr_t attr;

	if (!t)
		return NULL;
	if (options->identity)
		t->identity = *options->identity;
	t->log = options->log;
	atomic_init(&t->watched, options->log);
	if (cowsnap_device_memory(ctx, options->size_bytes, &t->inner)) {
		free(t);
		return NULL;
	}
	if (cowsnap_device_create(ctx, &ops, &device_options, t, &t->device)) {
		cowsnap_device_close(t->inner);
		free(t);
		return NULL;
	}
	pthread_mutex_init(&t->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&t->changed, &attr);
	pthread_condattr_destroy(&attr);
	return t;
}

int test_device_destroy(struct test_device *t)
{
	int rc;

	if (!t)
		return 0;
	for (int i = 0; i < TEST_DEVICE_HOLDS; i++)
		test_device_release(t, i);
	rc = cowsnap_device_close(t->device);
	if (rc && rc != -EBADF)
		return rc;
	cowsnap_device_close(t->inner);
	pthread_cond_destroy(&t->changed);
	pthread_mutex_destroy(&t->lock);
	free(t);
	return 0;
}

struct cowsnap_device *test_device(struct test_device *t)
{
	return t->device;
}

struct cowsnap_device *test_device_inner(struct test_device *t)
{
	return t->inner;
}

/* ---- Counting -------------------------------------------------------------------------------- */

uint64_t test_device_calls(const struct test_device *t, enum test_io kind)
{
	return atomic_load_explicit(&t->calls[kind], memory_order_relaxed);
}

uint64_t test_device_bytes(const struct test_device *t, enum test_io kind)
{
	return atomic_load_explicit(&t->bytes[kind], memory_order_relaxed);
}

uint64_t test_device_closes(const struct test_device *t)
{
	return atomic_load_explicit(&t->closes, memory_order_relaxed);
}

uint64_t test_device_failed(const struct test_device *t)
{
	return atomic_load_explicit(&t->failed, memory_order_relaxed);
}

void test_device_reset(struct test_device *t)
{
	for (int kind = 0; kind < TEST_IO_KINDS; kind++) {
		atomic_store_explicit(&t->calls[kind], 0, memory_order_relaxed);
		atomic_store_explicit(&t->bytes[kind], 0, memory_order_relaxed);
	}
	pthread_mutex_lock(&t->lock);
	t->entries = 0;
	t->log = true;
	atomic_store_explicit(&t->watched, true, memory_order_relaxed);
	pthread_mutex_unlock(&t->lock);
}

size_t test_device_log(struct test_device *t, struct test_device_entry *entries, size_t room)
{
	size_t count, kept;

	pthread_mutex_lock(&t->lock);
	count = t->entries;
	kept = count < TEST_DEVICE_LOG_MAX ? count : TEST_DEVICE_LOG_MAX;
	if (entries && room)
		memcpy(entries, t->entry, (kept < room ? kept : room) * sizeof(*entries));
	pthread_mutex_unlock(&t->lock);
	return count;
}

/* ---- Faults ---------------------------------------------------------------------------------- */

void test_device_fail(
	struct test_device *t, enum test_io kind, uint64_t n, bool for_good, int error)
{
	pthread_mutex_lock(&t->lock);
	t->fault[kind].countdown = n;
	t->fault[kind].for_good = for_good;
	t->fault[kind].error = error;
	atomic_store_explicit(&t->watched, true, memory_order_relaxed);
	pthread_mutex_unlock(&t->lock);
}

void test_device_fail_range(
	struct test_device *t, enum test_io kind, uint64_t offset, uint64_t length, int error)
{
	pthread_mutex_lock(&t->lock);
	t->fault[kind].range_offset = offset;
	t->fault[kind].range_length = length;
	t->fault[kind].range_error = error;
	atomic_store_explicit(&t->watched, true, memory_order_relaxed);
	pthread_mutex_unlock(&t->lock);
}

void test_device_heal(struct test_device *t)
{
	pthread_mutex_lock(&t->lock);
	memset(t->fault, 0, sizeof(t->fault));
	pthread_mutex_unlock(&t->lock);
}

/* ---- Hold points ----------------------------------------------------------------------------- */

int test_device_hold(struct test_device *t, enum test_io kind, uint64_t offset, uint64_t length,
	enum test_hold_when when)
{
	int found = -1;

	pthread_mutex_lock(&t->lock);
	for (int i = 0; i < TEST_DEVICE_HOLDS && found < 0; i++) {
		if (t->hold[i].state != HOLD_UNUSED)
			continue;
		t->hold[i] = (struct hold){HOLD_ARMED, kind, when, offset, length};
		found = i;
	}
	atomic_store_explicit(&t->watched, true, memory_order_relaxed);
	pthread_mutex_unlock(&t->lock);
	return found;
}

bool test_device_wait_held(struct test_device *t, int hold)
{
	struct timespec deadline;
	int rc = 0;
	bool held;

	clock_gettime(CLOCK_MONOTONIC, &deadline);
	deadline.tv_sec += HOLD_SECONDS;
	pthread_mutex_lock(&t->lock);
	while (t->hold[hold].state == HOLD_ARMED && !rc)
		rc = pthread_cond_timedwait(&t->changed, &t->lock, &deadline);
	held = t->hold[hold].state == HOLD_REACHED;
	pthread_mutex_unlock(&t->lock);
	return held;
}

void test_device_release(struct test_device *t, int hold)
{
	struct hold *h = &t->hold[hold];

	pthread_mutex_lock(&t->lock);
	if (h->state == HOLD_ARMED)
		h->state = HOLD_UNUSED;
	if (h->state == HOLD_REACHED)
		h->state = HOLD_RELEASED;
	pthread_cond_broadcast(&t->changed);
	/* Until the call has seen it: the number may be given out again afterwards. */
	while (h->state == HOLD_RELEASED)
		pthread_cond_wait(&t->changed, &t->lock);
	pthread_mutex_unlock(&t->lock);
}
