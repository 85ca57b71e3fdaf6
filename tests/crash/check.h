/* SPDX-License-Identifier: MIT
 *
 * Is what a power cut left what was promised? Each state is opened as a new process would, compared
 * with the promise, and then used in one of several ways: opened again, written to, filled,
 * dropped, made anew, or cut off a second time while it is opened and used.
 *
 * The checker gives a verdict and does not assert, so that mutations can be shown to be caught.
 */
#ifndef COWSNAP_TESTS_CRASH_CHECK_H
#define COWSNAP_TESTS_CRASH_CHECK_H

#include "crash/mutate.h"
#include "crash/outage.h"
#include "crash/rig.h"

#define CHECK_DEPTHS 2

struct check_counts {
	uint64_t states; /* all, those of second cuts too */
	uint64_t none, exact, invalid;
	uint64_t stale; /* with a stale tail */
	uint64_t reopened, continued, filled, dropped, recreated, nested;
};

struct check {
	const struct power_traits *traits[POWER_DEVICES];
	uint64_t origin_bytes;
	struct seed seed;
	/* Done to what happens after the first cut. Its promises hold for the second one. */
	enum mutation mutation;
	uint64_t mutated; /* places */
	bool stop;        /* at the first violation */
	const char *name; /* for messages and files */
	uint64_t stride;  /* look at each n-th state only; 0: at all */

	struct check_counts counts;
	uint64_t violations;
	char message[512]; /* the first one */

	/* The checker's own. */
	struct rig rig[CHECK_DEPTHS];
	uint8_t *base[POWER_DEVICES]; /* the state, for a second cut */
	uint8_t *read;
	uint64_t seen, calls;
};

/* Sets what the checker owns; the caller has set traits, origin_bytes, seed, name. */
void check_init(struct check *check, uint64_t store_capacity);
void check_fini(struct check *check);
/* The images for states of the first cut go here. */
struct outage_visitor check_visitor(struct check *check);

#endif
