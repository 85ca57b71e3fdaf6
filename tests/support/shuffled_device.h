/* SPDX-License-Identifier: MIT
 *
 * A device that requests are submitted to, and that ends them when and in which order it is told:
 * by the test, or by a thread of its own that picks them at random. The bytes move when a request
 * is ended. Calls that wait are done at once.
 */
#ifndef CS_TEST_SHUFFLED_DEVICE_H
#define CS_TEST_SHUFFLED_DEVICE_H

#include <cowsnap.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define SHUFFLED_REQUESTS 1024u

struct shuffled {
	struct cowsnap_device *device; /* what is under test */
	struct cowsnap_device *inner;  /* the bytes */
	pthread_mutex_t lock;
	pthread_cond_t came;
	size_t count; /* requests that have not been ended; in the order in which they came */
	struct cowsnap_io *io[SHUFFLED_REQUESTS];
	pthread_t thread;
	bool threaded;
	bool stop;
	uint64_t random;
};

/* Fails the test if it cannot be made. */
void shuffled_open(struct shuffled *s, struct cowsnap_ctx *ctx, uint64_t size_bytes);
/* Nothing may be open. */
void shuffled_close(struct shuffled *s);

size_t shuffled_count(struct shuffled *s);
/* Ends request @which of those that are there: does it, or not, if @error is not 0. Returns: false
 * if there are not so many. */
bool shuffled_end(struct shuffled *s, size_t which, int error);
/* Ends all that are there, last one first. Returns: how many. */
size_t shuffled_end_all(struct shuffled *s);

/* A thread that ends what comes, in an order that depends on @seed, until shuffled_close(). */
void shuffled_run(struct shuffled *s, uint64_t seed);

#endif
