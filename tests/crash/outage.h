/* SPDX-License-Identifier: MIT
 *
 * What a power cut can leave: from the content of two devices before a journal, and the journal,
 * all the images that could be found after a cut at a given time.
 *
 * At a cut a write is durable, or not begun, or pending. A pending one is split into the units that
 * the device writes as a whole, and each unit is there or is not, whatever the others are.
 */
#ifndef COWSNAP_TESTS_CRASH_OUTAGE_H
#define COWSNAP_TESTS_CRASH_OUTAGE_H

#include "crash/power.h"
#include "support/seed.h"

struct outage_source {
	struct journal *journal;
	const uint8_t *base[POWER_DEVICES]; /* before the journal */
	uint64_t bytes[POWER_DEVICES];      /* how long these are */
	const struct power_traits *traits[POWER_DEVICES];
	uint64_t chunk_bytes; /* of the store */
};

/* How thoroughly. */
struct outage_plan {
	unsigned exhaustive_units; /* all subsets where no more than this are pending */
	unsigned singles;          /* else at most so many with one unit kept, and one dropped */
	unsigned randoms;          /* and so many at random */
	uint64_t positions;        /* cut at so many places at random, half of them in a write of
				     records or where a promise changes; 0: everywhere */
};

struct outage_state {
	const struct promise *promise;
	uint64_t time;
	unsigned pending; /* units */
	unsigned kept;
};

/* The images are in the target when it is called, and it may do with them what it likes. Returns:
 * false: that is enough. */
struct outage_visitor {
	bool (*visit)(void *user, const struct outage_state *state);
	void *user;
	uint8_t *target[POWER_DEVICES];
};

/* Sorts the journal and finds out when each write became durable. After the last write or mutation,
 * before the first run. */
void outage_prepare(const struct outage_source *source);

/* Visits the states. There are none before the first note. Returns: how many were visited. */
uint64_t outage_run(const struct outage_source *source, const struct outage_plan *plan,
	struct seed *seed, const struct outage_visitor *visitor);

#endif
