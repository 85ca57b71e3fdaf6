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
	bool halfway; /* half of the bytes move first */
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
	_Atomic uint64_t size_bytes; /* that length tells */
	_Atomic int locked;
	atomic_bool busy;
	atomic_bool watched; /* a log, a fault or a hold point: calls take the lock */

	pthread_mutex_t lock;
	pthread_cond_t changed; /* a hold point's state */
	bool log;
	test_device_watcher *watcher;
	void *watcher_user;
	struct fault fault[TEST_IO_KINDS];
	struct hold hold[TEST_DEVICE_HOLDS];
	size_t entries;
	struct test_device_entry entry[TEST_DEVICE_LOG_MAX];
};

/* A flush has no range: it touches each. So with length and lock. */
static bool touches(const struct test_device_entry *call, uint64_t offset, uint64_t length)
{
	return call->kind == TEST_IO_FLUSH || call->kind == TEST_IO_LENGTH ||
	       call->kind == TEST_IO_LOCK ||
	       (call->offset < offset + length && offset < call->offset + call->length);
}

/* ---- What happens in a call ------------------------------------------------------------------ */

static _Atomic uint64_t numbers;

static uint64_t next_number(void)
{
	return atomic_fetch_add_explicit(&numbers, 1, memory_order_relaxed) + 1;
}

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

/* A call on its way: what it does to the bytes, and what it says. */
struct call {
	struct test_device_entry entry;
	uint64_t move_bytes; /* of entry.length */
	int error;
	size_t logged; /* where; what is not in the log there is not this call */
};

/* Under the lock. */
static void log_call(struct test_device *t, struct call *call)
{
	call->logged = t->entries;
	if (!t->log)
		return;
	call->entry.began = next_number();
	if (t->entries < TEST_DEVICE_LOG_MAX)
		t->entry[t->entries] = call->entry;
	t->entries++;
}

/* Under the lock. The log may have been forgotten meanwhile. */
static void log_end(struct test_device *t, const struct call *call, int error)
{
	size_t at = call->logged;

	if (at >= t->entries || at >= TEST_DEVICE_LOG_MAX ||
		t->entry[at].began != call->entry.began)
		return;
	t->entry[at].error = error;
	t->entry[at].ended = next_number();
}

/* Under the lock. */
static void strike(struct test_device *t, struct call *call)
{
	struct fault *f = &t->fault[call->entry.kind];

	if (f->range_length && touches(&call->entry, f->range_offset, f->range_length)) {
		call->error = f->range_error;
		call->move_bytes = 0;
		return;
	}
	if (!f->countdown || --f->countdown)
		return;
	if (f->for_good)
		f->countdown = 1;
	call->error = f->error;
	call->move_bytes = f->halfway ? call->entry.length / 2 / 16 * 16 : 0;
}

static struct call before_write(struct test_device *t, enum test_io kind, const void *data,
	uint64_t offset, uint64_t length)
{
	struct call call = {
		.entry = {.kind = kind, .offset = offset, .length = length}, .move_bytes = length};

	atomic_fetch_add_explicit(&t->calls[kind], 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&t->bytes[kind], length, memory_order_relaxed);
	if (!atomic_load_explicit(&t->watched, memory_order_relaxed))
		return call;
	pthread_mutex_lock(&t->lock);
	log_call(t, &call);
	stop_at_hold(t, &call.entry, TEST_HOLD_BEFORE);
	strike(t, &call);
	if (t->watcher)
		t->watcher(t->watcher_user, &call.entry, data);
	pthread_mutex_unlock(&t->lock);
	if (call.error)
		atomic_fetch_add_explicit(&t->failed, 1, memory_order_relaxed);
	return call;
}

static struct call before(
	struct test_device *t, enum test_io kind, uint64_t offset, uint64_t length)
{
	return before_write(t, kind, NULL, offset, length);
}

/* @rc: of the bytes that moved. Returns: what the call returns. */
static int after(struct test_device *t, const struct call *call, int rc)
{
	int error = call->error ? call->error : rc;

	if (atomic_load_explicit(&t->watched, memory_order_relaxed)) {
		pthread_mutex_lock(&t->lock);
		stop_at_hold(t, &call->entry, TEST_HOLD_AFTER);
		log_end(t, call, error);
		pthread_mutex_unlock(&t->lock);
	}
	return error;
}

static int test_read(void *user, void *buffer, uint64_t offset, uint64_t length)
{
	struct test_device *t = user;
	struct call call = before(t, TEST_IO_READ, offset, length);
	int rc = 0;

	if (call.move_bytes)
		rc = cowsnap_device_read(t->inner, buffer, offset, call.move_bytes);
	return after(t, &call, rc);
}

static int put(struct test_device *t, enum test_io kind, const void *buffer, uint64_t offset,
	uint64_t length)
{
	struct call call = before_write(t, kind, buffer, offset, length);
	int rc = 0;

	if (call.move_bytes)
		rc = cowsnap_device_write(t->inner, buffer, offset, call.move_bytes);
	return after(t, &call, rc);
}

static int test_write(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	return put(user, TEST_IO_WRITE, buffer, offset, length);
}

static int test_write_durable(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	return put(user, TEST_IO_WRITE_DURABLE, buffer, offset, length);
}

static int test_zero(void *user, uint64_t offset, uint64_t length)
{
	struct test_device *t = user;
	struct call call = before(t, TEST_IO_ZERO, offset, length);
	int rc = 0;

	if (call.move_bytes)
		rc = cowsnap_device_zero(t->inner, offset, call.move_bytes);
	return after(t, &call, rc);
}

static int test_discard(void *user, uint64_t offset, uint64_t length)
{
	struct test_device *t = user;
	struct call call = before(t, TEST_IO_DISCARD, offset, length);
	int rc = 0;

	if (call.move_bytes)
		rc = cowsnap_device_discard(t->inner, offset, call.move_bytes);
	return after(t, &call, rc);
}

static int test_flush(void *user)
{
	struct test_device *t = user;
	struct call call = before(t, TEST_IO_FLUSH, 0, 0);

	return after(t, &call, 0);
}

static int test_length(void *user, uint64_t *size_bytes)
{
	struct test_device *t = user;
	struct call call = before(t, TEST_IO_LENGTH, 0, 0);

	if (!call.error)
		*size_bytes = atomic_load(&t->size_bytes);
	return after(t, &call, 0);
}

static int test_lock(void *user, enum cowsnap_lock lock)
{
	struct test_device *t = user;
	struct call call = before(t, TEST_IO_LOCK, 0, 0);
	int rc = 0;

	if (lock != COWSNAP_LOCK_NONE && atomic_load(&t->busy))
		rc = -EBUSY;
	/* To give a lock back cannot fail, whatever is said about it. */
	if ((!call.error && !rc) || lock == COWSNAP_LOCK_NONE)
		atomic_store(&t->locked, (int)lock);
	return after(t, &call, rc);
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
		.flush = options->bare || options->no_flush ? NULL : test_flush,
		.identity = options->identity ? test_identity : NULL,
		.close = test_close,
		.write_durable = options->durable ? test_write_durable : NULL,
		.length = options->max_bytes ? test_length : NULL,
		.lock = options->lockable ? test_lock : NULL,
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
	atomic_init(&t->size_bytes, options->size_bytes);
	if (cowsnap_device_memory(ctx,
		    options->max_bytes ? options->max_bytes : options->size_bytes, &t->inner)) {
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

void test_device_resize(struct test_device *t, uint64_t size_bytes)
{
	atomic_store(&t->size_bytes, size_bytes);
}

void test_device_set_busy(struct test_device *t, bool busy)
{
	atomic_store(&t->busy, busy);
}

enum cowsnap_lock test_device_locked(const struct test_device *t)
{
	return (enum cowsnap_lock)atomic_load(&t->locked);
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

void test_device_watch(struct test_device *t, test_device_watcher *watcher, void *user)
{
	pthread_mutex_lock(&t->lock);
	t->watcher = watcher;
	t->watcher_user = user;
	atomic_store_explicit(&t->watched, true, memory_order_relaxed);
	pthread_mutex_unlock(&t->lock);
}

/* ---- Faults ---------------------------------------------------------------------------------- */

static void arm(struct test_device *t, enum test_io kind, const struct fault *fault)
{
	struct fault *f = &t->fault[kind];

	pthread_mutex_lock(&t->lock);
	f->countdown = fault->countdown;
	f->for_good = fault->for_good;
	f->halfway = fault->halfway;
	f->error = fault->error;
	atomic_store_explicit(&t->watched, true, memory_order_relaxed);
	pthread_mutex_unlock(&t->lock);
}

void test_device_fail(
	struct test_device *t, enum test_io kind, uint64_t n, bool for_good, int error)
{
	const struct fault fault = {.countdown = n, .for_good = for_good, .error = error};

	arm(t, kind, &fault);
}

void test_device_fail_short(
	struct test_device *t, enum test_io kind, uint64_t n, bool for_good, int error)
{
	const struct fault fault = {
		.countdown = n, .for_good = for_good, .error = error, .halfway = true};

	arm(t, kind, &fault);
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
