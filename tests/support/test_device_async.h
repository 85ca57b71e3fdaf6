/* SPDX-License-Identifier: MIT
 *
 * A device for tests that is submitted to. Beneath it is a test device (test_device.h), where the
 * bytes move when a request is completed: its counts, faults, log and hold points work as ever.
 * When, in which order, and on which thread requests are completed is up to the mode.
 *
 *     struct test_async *a = test_async_create(ctx, &(struct test_device_options){
 *             .size_bytes = 1 << 20}, TEST_ASYNC_HELD);
 *     ... start operations on test_async_device(a), poll ...
 *     cr_assert(test_async_wait_held(a, 2));
 *     test_async_release(a, 1, TEST_RELEASE_LAST);    now the bytes of the younger one move
 *     test_async_rig(a)                               for test_device_fail() and the like
 *
 * Calls that wait (cowsnap_device_read() and so on) go to the test device at once, in each mode. A
 * request that is to end never is one that is held and not released; release it before the queue is
 * closed. Any thread may call anything at any time, but for create and destroy.
 */
#ifndef CS_TEST_DEVICE_ASYNC_H
#define CS_TEST_DEVICE_ASYNC_H

#include "support/test_device.h"

enum test_async_mode {
	TEST_ASYNC_INLINE,  /* completed inside submit */
	TEST_ASYNC_HELD,    /* until released, on the releasing thread; or for ever */
	TEST_ASYNC_FOREIGN, /* on a thread of the device's, in order */
	/* On a thread of the device's: those that are there, last one first. */
	TEST_ASYNC_REVERSE,
};

enum test_release {
	TEST_RELEASE_FIRST, /* in order */
	TEST_RELEASE_LAST,  /* last one first */
};

struct test_async;

/* NULL if a device, or its thread, could not be made. */
struct test_async *test_async_create(struct cowsnap_ctx *ctx,
	const struct test_device_options *options, enum test_async_mode mode);
/* Waits for what the device's thread has. Returns: as test_device_destroy(); -EBUSY also if
 * requests are held. When that fails, nothing is freed. */
int test_async_destroy(struct test_async *a);

/* What is under test. */
struct cowsnap_device *test_async_device(struct test_async *a);
/* Where the bytes are: counts, faults, the log, hold points. */
struct test_device *test_async_rig(struct test_async *a);

/* For requests from now on. */
void test_async_set_mode(struct test_async *a, enum test_async_mode mode);
/* Each request that ends inside submit, or is released, is completed twice, the second time with
 * -EIO. (Release it on the thread that polls: its memory must not be used again meanwhile.) */
void test_async_set_twice(struct test_async *a, bool twice);
/* Each ZERO is completed with -EOPNOTSUPP. */
void test_async_refuse_zero(struct test_async *a, bool refuse);

/* Requests that were submitted since create, in any mode. */
uint64_t test_async_submitted(const struct test_async *a);
/* Requests that are held now. */
unsigned test_async_held(struct test_async *a);
/* Waits until @count are. Returns: false if they were not within 30 seconds. */
bool test_async_wait_held(struct test_async *a, unsigned count);
/* Completes at most @count of those that are held. Returns: how many. */
unsigned test_async_release(struct test_async *a, unsigned count, enum test_release order);
/* The same for those of one kind, in order: reads before writes, or the other way round. */
unsigned test_async_release_kind(struct test_async *a, enum cowsnap_io_kind kind);

#endif
