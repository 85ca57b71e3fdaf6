/* SPDX-License-Identifier: MIT
 *
 * Load for the cut checker: writers that never stop, threads that take and drop, readers, one that
 * reclaims and watches the numbers. A plan says how many of each; a run makes a context, loads it,
 * stops when all takes are done, and checks every image against the history.
 */
#ifndef COWSNAP_TESTS_LOAD_H
#define COWSNAP_TESTS_LOAD_H

#include <cowsnap.h>

#include <stdbool.h>
#include <stdint.h>

#define LOAD_STORES  2
#define LOAD_WRITERS 4
#define LOAD_TAKERS  2
#define LOAD_READERS 2
#define LOAD_FLIGHTS 6

enum load_device {
	LOAD_MEMORY,
	LOAD_FILE,
	LOAD_SLOW, /* requests are submitted, and ended in any order by a thread of the device */
};

struct load_plan {
	unsigned origins; /* 1 to CUT_ORIGINS */
	unsigned stores;  /* 1 to LOAD_STORES; a take puts each origin into any of them */
	uint64_t chunk_bytes[LOAD_STORES];
	enum load_device device;      /* of origins and stores */
	uint64_t limit_chunks;        /* of each store; 0: enough */
	uint64_t copy_inflight_bytes; /* 0: the default */
	enum cowsnap_loser on_full;
	unsigned takes; /* of each taker */
	/* Bit o: this taker takes origin o, all of its origins at one instant. 0: no such taker. */
	unsigned taker_origins[LOAD_TAKERS];
	bool other_thread_ends; /* brackets are ended by another thread than began them */
	/* Each second taker and reader does not wait: it has a queue of its own, or workers. */
	bool async;
	/* So many of the writers do not wait, and have up to LOAD_FLIGHTS brackets pending. With
	 * workers those have no queue. */
	unsigned async_writers;
	enum cowsnap_engine engine;
	unsigned workers;
	uint32_t depth;  /* of their queues; 0: LOAD_FLIGHTS */
	bool busy_hosts; /* poll all the time; else when epoll says so */
	bool cancels;    /* now and then one is cancelled */
};

/* Fails the test if any image is no cut, or a reader saw other bytes than the first one. */
void load_run(const struct load_plan *plan);

#endif
