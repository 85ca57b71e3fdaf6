/* SPDX-License-Identifier: MIT
 *
 * A device that is called and submitted to, whose requests, both kinds alike, wait until the test
 * lets them go: one after the other, in the order in which they came, and on the thread that the
 * test chooses. It lies over another device. (test_device_async.h holds what is submitted only.)
 */
#ifndef CS_TEST_SLOW_DEVICE_H
#define CS_TEST_SLOW_DEVICE_H

#include <cowsnap.h>
#include <pthread.h>
#include <stdbool.h>

#define SLOW_KINDS 7 /* indexed by enum cowsnap_io_kind */

struct slow_request;

struct slow_device {
	struct cowsnap_device *device, *inner;
	bool cached, durable;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool hold[SLOW_KINDS]; /* requests of this kind wait */
	unsigned calls[SLOW_KINDS];
	unsigned submitted;        /* of these, how many were not waited for */
	unsigned fail[SLOW_KINDS]; /* the n-th from now on fails; 0: none */
	int error;
	struct slow_request *first, **last;
	unsigned held; /* requests that wait */
	/* Set by slow_device_run(). */
	pthread_t thread;
	bool running;
};

/* @flush, @durable: whether the table has these. */
void slow_device_open(struct slow_device *d, struct cowsnap_ctx *ctx, struct cowsnap_device *inner,
	uint32_t block_size, bool flush, bool durable);
void slow_device_close(struct slow_device *d);

void slow_device_hold(struct slow_device *d, enum cowsnap_io_kind kind, bool hold);
void slow_device_fail(struct slow_device *d, enum cowsnap_io_kind kind, unsigned n, int error);
unsigned slow_device_calls(struct slow_device *d, enum cowsnap_io_kind kind);
void slow_device_reset(struct slow_device *d); /* counts */
/* Requests that wait now. */
unsigned slow_device_held(struct slow_device *d);
/* The first one that waits goes on, and ends before this returns unless it is a call of another
 * thread's. Returns: false if there is none. */
bool slow_device_release(struct slow_device *d);
/* From now on a thread of its own lets each go that waits; until stop. */
void slow_device_run(struct slow_device *d);
void slow_device_stop(struct slow_device *d);

#endif
