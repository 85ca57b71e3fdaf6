/* SPDX-License-Identifier: MIT
 *
 * Devices whose power can fail, and the journal of what was done to them.
 *
 * A device keeps its bytes in memory and notes each write and flush in a journal that the origin
 * and the store share: when it started, when it ended, and what it wrote. A test notes in between
 * what the library has promised by then. Power does not fail while the journal is written: outage.h
 * makes from it what could have been found on both devices after a cut at any time.
 *
 * A device with a flush has a volatile cache: what is not covered by a flush that began after the
 * write had ended is pending. A device without one has none: a write that has ended is durable.
 *
 * Times are numbers in the journal, POWER_STEP apart, so that a mutation can put something between.
 */
#ifndef COWSNAP_TESTS_CRASH_POWER_H
#define COWSNAP_TESTS_CRASH_POWER_H

#include <cowsnap.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define POWER_ORIGIN    0
#define POWER_STORE     1
#define POWER_DEVICES   2
#define POWER_STEP      16
#define POWER_NEVER     UINT64_MAX
#define POWER_SUBMITTED 64u /* requests at one time */

enum power_kind {
	POWER_WRITE,
	POWER_DURABLE, /* write_durable */
	POWER_FLUSH,
};

struct power_op {
	enum power_kind kind;
	unsigned device;
	uint64_t start;
	uint64_t end; /* POWER_NEVER: it never did, or it failed */
	uint64_t offset;
	uint64_t length;
	size_t data; /* where in journal.data the bytes begin */
	bool lost;   /* a flush failed while this was pending: no later one makes it durable */
	/* Set by outage_prepare(): from when on it is sure to be there. */
	uint64_t durable_at;
};

/* What may be found after a cut. */
#define MAY_NONE    1u /* no store */
#define MAY_EXACT   2u /* the snapshot, with every byte that it had at the take */
#define MAY_INVALID 4u

struct promise {
	unsigned may;
	const uint8_t *image; /* with MAY_EXACT: the origin at the take */
	uint64_t chunk_bytes;
	uint64_t store_bytes;   /* how long the store's device is */
	uint64_t generation[2]; /* the store has one of the two */
};

struct power_note {
	uint64_t time;
	struct promise promise;
};

struct journal {
	pthread_mutex_t lock; /* of everything here, and of the bytes of its devices */
	bool recording;
	/* The process is killed: the n-th write or flush of the store from now on, and whatever
	 * comes then, does not happen; what was written before stays in the caches. */
	uint64_t kill_countdown;
	bool killed;
	uint64_t now; /* the time of what comes next */
	struct power_op *ops;
	size_t count, capacity;
	uint8_t *data;
	size_t data_bytes, data_capacity;
	struct power_note *notes;
	size_t note_count, note_capacity;
};

void journal_init(struct journal *journal);
void journal_fini(struct journal *journal);
/* Forgets everything. The memory stays for the next one. */
void journal_clear(struct journal *journal);
/* The process is killed before its @n-th write to or flush of the store. 0: the next one lives. */
void journal_kill(struct journal *journal, uint64_t n);
void journal_note(struct journal *journal, const struct promise *promise);

/* How a device is made. */
struct power_traits {
	const char *name;
	bool flush; /* has a volatile cache */
	bool durable;
	bool zero;           /* has a zero of its own */
	uint32_t block_size; /* what it asks for */
	uint32_t unit_bytes; /* what it writes as a whole */
};

/* What a write that fails has done. */
enum power_effect {
	POWER_NOTHING,
	POWER_ALL,
	POWER_REAR, /* its second half */
	POWER_EFFECTS,
};

struct power_fault {
	uint64_t countdown; /* the n-th from now on fails; 0: none does */
	bool for_good;
	int error;
	enum power_effect effect;
};

/* Called before a write or flush starts, with no lock held. */
struct power_hook {
	void (*call)(void *user, enum power_kind kind, uint64_t offset, uint64_t length);
	void *user;
};

struct power {
	struct journal *journal;
	unsigned number;
	const struct power_traits *traits;
	uint8_t *live;
	uint64_t size_bytes; /* at most what live has room for */
	struct power_fault write_fault;
	struct power_fault area_fault; /* of writes that begin at a chunk below */
	uint64_t area_chunk_bytes;     /* 0: none */
	struct power_fault flush_fault;
	struct power_hook hook;
	unsigned flush_yields; /* a slow flush: how often it gives the processor away */
	bool submits;          /* it can be submitted to; see power_step() */
	struct cowsnap_io *submitted[POWER_SUBMITTED];
	unsigned in_flight;
	uint64_t changes; /* writes that were asked for */
	uint64_t flushes;
};

/* Makes a device of it; what @power says must be set before. */
int power_open(struct power *power, struct cowsnap_ctx *ctx, struct cowsnap_device **device);
/* What its table has for write_durable; the public header has no call for it. */
int power_write_durable(void *power, const void *buffer, uint64_t offset, uint64_t length);
/* Sets area_fault while others write. */
void power_fail_areas(struct power *power, struct power_fault fault);
/* One of the requests that were submitted and have not ended ends: the @pick-th, modulo their
 * number. Returns: false if there is none. */
bool power_step(struct power *power, uint64_t pick);
/* It is longer from now on. */
void power_grow(struct power *power, uint64_t size_bytes);

/* ---- The layout, as the format page has it: enough to tell what a write is ---- */

/* Is this offset in an area, and not in the header or data? */
bool power_in_area(uint64_t chunk_bytes, uint64_t offset);
/* How many records a store of this length has room for. */
uint64_t power_record_limit(uint64_t chunk_bytes, uint64_t store_bytes);

#endif
