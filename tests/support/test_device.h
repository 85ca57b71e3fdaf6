/* SPDX-License-Identifier: MIT
 *
 * A device for tests: a memory device behind a host's table that counts calls, logs them, fails on
 * request, and stops calls at hold points, so that interleavings are made and not waited for. Built
 * on the public header alone.
 *
 *     struct test_device *t = test_device_create(ctx, &(struct test_device_options){
 *             .size_bytes = 1 << 20});
 *     int hold = test_device_hold(t, TEST_IO_READ, 0, 4096, TEST_HOLD_BEFORE);
 *     ... another thread reads ...
 *     cr_assert(test_device_wait_held(t, hold));
 *     ... it stands still before the bytes move; do what must happen now ...
 *     test_device_release(t, hold);
 *
 * Any thread may call anything at any time, but for create and destroy.
 */
#ifndef CS_TEST_DEVICE_H
#define CS_TEST_DEVICE_H

#include <cowsnap.h>

enum test_io {
	TEST_IO_READ,
	TEST_IO_WRITE,
	TEST_IO_ZERO,
	TEST_IO_DISCARD,
	TEST_IO_FLUSH,
	TEST_IO_WRITE_DURABLE,
	TEST_IO_LENGTH,
	TEST_IO_LOCK,
	TEST_IO_KINDS,
};

enum test_hold_when {
	TEST_HOLD_BEFORE, /* the bytes move */
	TEST_HOLD_AFTER,
};

struct test_device_options {
	uint64_t size_bytes;
	uint32_t block_size;                            /* 0: 1 */
	const struct cowsnap_device_identity *identity; /* NULL: none */
	bool bare;     /* the table has nothing but read and write */
	bool log;      /* keep a log of calls from the beginning */
	bool durable;  /* the table has write_durable */
	bool no_flush; /* the table has no flush: the device has no volatile cache */
	bool lockable; /* the table has lock */
	/* The table has length, and test_device_resize() may set it up to here. 0: it has not. */
	uint64_t max_bytes;
};

struct test_device;

/* NULL if a device could not be made. */
struct test_device *test_device_create(
	struct cowsnap_ctx *ctx, const struct test_device_options *options);
/* Releases what is held, closes the device if that has not happened, and frees the rest. Returns:
 * what cowsnap_device_close() said (0 if it was closed before); when that fails, nothing is freed.
 */
int test_device_destroy(struct test_device *t);

/* What is under test. */
struct cowsnap_device *test_device(struct test_device *t);
/* The bytes behind it: a device whose calls are neither counted, nor held, nor failed. */
struct cowsnap_device *test_device_inner(struct test_device *t);

/* What length() says from now on. */
void test_device_resize(struct test_device *t, uint64_t size_bytes);
/* Another process has the device: to lock it is -EBUSY. */
void test_device_set_busy(struct test_device *t, bool busy);
/* How the device is locked now. */
enum cowsnap_lock test_device_locked(const struct test_device *t);

/* ---- Counting ---- */

/* Calls, and their bytes, since create or the last reset; failed ones too. */
uint64_t test_device_calls(const struct test_device *t, enum test_io kind);
uint64_t test_device_bytes(const struct test_device *t, enum test_io kind);
/* Calls of the table's close. */
uint64_t test_device_closes(const struct test_device *t);
/* Forgets counts and log, and logs from here on. */
void test_device_reset(struct test_device *t);

struct test_device_entry {
	enum test_io kind;
	uint64_t offset;
	uint64_t length;
	/* Numbers that rise over all devices of the process, so that logs can be put in order. */
	uint64_t began;
	uint64_t ended; /* 0: not yet */
	int error;      /* how */
};

#define TEST_DEVICE_LOG_MAX 4096u

/* Returns: how many calls were logged since the reset (only the first TEST_DEVICE_LOG_MAX are
 * kept); copies at most @room. */
size_t test_device_log(struct test_device *t, struct test_device_entry *entries, size_t room);

/* Is told of each call before its bytes move, one at a time. @data: of a write. The bytes are what
 * test_device_inner() has; nothing else of this device may be called. */
typedef void test_device_watcher(
	void *user, const struct test_device_entry *call, const void *data);

/* NULL: nobody. */
void test_device_watch(struct test_device *t, test_device_watcher *watcher, void *user);

/* ---- Faults ---- */

/* From now on the @n-th call of this kind (1 is the next) fails with @error (negative errno), and
 * with @for_good each one after it. A failing call does not touch the bytes. 0: none. */
void test_device_fail(
	struct test_device *t, enum test_io kind, uint64_t n, bool for_good, int error);
/* The same, but a failing call first moves the first half of its bytes, in whole 16. One of no
 * bytes is done in full. */
void test_device_fail_short(
	struct test_device *t, enum test_io kind, uint64_t n, bool for_good, int error);
/* Each call of this kind that touches the range fails. Length 0: none. */
void test_device_fail_range(
	struct test_device *t, enum test_io kind, uint64_t offset, uint64_t length, int error);
/* Takes all faults back. */
void test_device_heal(struct test_device *t);
/* Calls that failed on request. */
uint64_t test_device_failed(const struct test_device *t);

/* ---- Hold points ---- */

#define TEST_DEVICE_HOLDS 16

/* The next call of this kind that touches the range stops. Returns: the number of the hold point,
 * or -1 if all are in use. */
int test_device_hold(struct test_device *t, enum test_io kind, uint64_t offset, uint64_t length,
	enum test_hold_when when);
/* Waits until a call stands at the hold point. Returns: false if none came within 30 seconds. */
bool test_device_wait_held(struct test_device *t, int hold);
/* Lets the call go on; a hold point that nobody reached is taken away. */
void test_device_release(struct test_device *t, int hold);

#endif
