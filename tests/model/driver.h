/* SPDX-License-Identifier: MIT
 *
 * The differential driver: one stream of random steps on the library and on the model side by side,
 * on one thread. What the library is free to choose (which copies still fit into a full store) is
 * taken over from it after checking that it was allowed; everything else is predicted.
 */
#ifndef COWSNAP_TESTS_MODEL_DRIVER_H
#define COWSNAP_TESTS_MODEL_DRIVER_H

#include <cowsnap.h>
#include <stdio.h>

#include "support/model.h"

#define DRIVER_OPEN_MAX 3

struct driver;

/* A snapshot of the library beside its model: the user pointer of both. */
struct driver_taken {
	struct driver *driver;
	struct model_image *image;
	struct cowsnap_snapshot *snapshot;
	enum cowsnap_loser on_full;
	int answer;        /* last decision in the present write; -1: was not asked */
	unsigned attempts; /* of the present write */
	unsigned invalid_events;
	int event_reason;
};

/* A bracket left open over other steps; its bytes are written already. */
struct driver_open {
	struct cowsnap_op op;
	bool used;
};

struct driver {
	struct model model;
	uint64_t seed;
	uint64_t random;
	unsigned step;
	char last[160]; /* what was being done, for the failure message */
	bool trace;

	struct cowsnap_ctx *ctx;
	struct cowsnap_device *origin_device[MODEL_ORIGINS];
	struct cowsnap_origin *origin[MODEL_ORIGINS];
	struct cowsnap_device *store_device[MODEL_STORES]; /* NULL: the store has memory */
	struct cowsnap_store *store[MODEL_STORES];
	uint64_t limit_chunks[MODEL_STORES];
	uint64_t grow_chunks[MODEL_STORES]; /* the limit can be raised up to this */

	struct driver_open open[DRIVER_OPEN_MAX];
	bool exact;       /* no copy has failed yet: the number of copies is known */
	uint64_t copied;  /* that number */
	uint8_t *scratch; /* as long as the longest origin */
	uint64_t scratch_bytes;

	/* The write under way, for what its callbacks check. */
	bool writing;
	unsigned write_origin;
	uint64_t write_offset;
	uint64_t write_length;
};

/* Runs one stream; fails the test with the seed and the step if anything differs. */
void driver_run(uint64_t seed, unsigned steps);

/* driver.c: common to the steps. */
uint64_t driver_below(struct driver *d, uint64_t bound); /* 0 to bound - 1 */
void driver_fill(struct driver *d, uint8_t *bytes, uint64_t length);
void driver_note(struct driver *d, const char *format, ...) __attribute__((format(printf, 2, 3)));
void driver_fail(struct driver *d, const char *file, int line, const char *what, long long value);
struct driver_taken *driver_pick(struct driver *d, bool active_only); /* NULL: there is none */
void driver_drop(struct driver *d, struct driver_taken *taken);
void driver_end_open(struct driver *d);
void driver_check_states(struct driver *d);

#define want(d, condition)                                                   \
	do {                                                                 \
		if (!(condition))                                            \
			driver_fail((d), __FILE__, __LINE__, #condition, 0); \
	} while (0)

#define want_eq(d, value, expected)                                                             \
	do {                                                                                    \
		long long want_value_ = (long long)(value);                                     \
		if (want_value_ != (long long)(expected))                                       \
			driver_fail(                                                            \
				(d), __FILE__, __LINE__, #value " == " #expected, want_value_); \
	} while (0)

/* rig.c: the context, devices, origins and stores of a stream. */
void rig_open(struct driver *d);
void rig_close(struct driver *d);

/* write.c: the write, and what may happen when a store is full. */
void write_step(struct driver *d);
enum cowsnap_decision write_decide(void *user, const struct cowsnap_trouble *trouble);

#endif
