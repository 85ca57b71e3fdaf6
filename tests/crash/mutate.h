/* SPDX-License-Identifier: MIT
 *
 * What a broken store would have done: a journal without one of the things that the real one did
 * for the sake of a power cut. A checker that is worth something finds each of them.
 */
#ifndef COWSNAP_TESTS_CRASH_MUTATE_H
#define COWSNAP_TESTS_CRASH_MUTATE_H

#include "crash/power.h"

enum mutation {
	MUTATION_NONE,
	MUTATION_NO_OPENING_FLUSH, /* before records are written */
	MUTATION_NO_CLOSING_FLUSH, /* after it; or their write goes not through the cache */
	MUTATION_NO_AREA_ZEROED,   /* the next one, before one is filled */
	MUTATION_AREA_ZEROED_LATE, /* after the records that filled the one before it */
	MUTATION_NO_TAIL_ZEROED,   /* at open; for the journal of one */
	MUTATION_NO_CREATE_FLUSH,  /* between area 0 and the header */
	MUTATION_NO_INVALID_FLUSH, /* after the header that says so */
	MUTATION_NO_DROP_FLUSH,    /* after the first block was zeroed */
	MUTATION_NO_SLOT_ZEROED,   /* of records whose write failed */
	MUTATION_NO_ORIGIN_FLUSH,  /* after the first records */
	MUTATIONS,
};

const char *mutation_name(enum mutation mutation);

/* Before outage_prepare(). Returns: how many places were changed. */
size_t mutate(struct journal *journal, uint64_t chunk_bytes, enum mutation mutation);

#endif
