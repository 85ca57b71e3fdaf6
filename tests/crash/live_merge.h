/* SPDX-License-Identifier: MIT
 *
 * A merge while the volume is in use, cut off everywhere: after each cut the merge is begun again
 * and brought to its end, and the volume must hold what the snapshot held, with all writes that
 * were flushed, and perhaps some of those that were not.
 */
#ifndef COWSNAP_TESTS_CRASH_LIVE_MERGE_H
#define COWSNAP_TESTS_CRASH_LIVE_MERGE_H

#include "crash/mutate.h"
#include "crash/outage.h"

struct live_merge_options {
	const struct power_traits *traits; /* of the store's device */
	struct outage_plan plan;
	enum mutation mutation;
	unsigned writes; /* about how many there are while it is merged */
	bool threads;    /* the merge has one of its own */
	bool queue;      /* the merge is the asynchronous form, and so are the writes beside it */
	uint64_t stride; /* look at each n-th state only; 0: at all */
	uint64_t chunk_bytes;
	struct seed seed;
};

struct live_merge_result {
	uint64_t states;
	uint64_t merged; /* of these, without a store any more */
	uint64_t again;  /* merged on after the cut */
	uint64_t mutated;
	uint64_t violations;
	char message[256]; /* the first */
};

void live_merge_run(const struct live_merge_options *options, struct live_merge_result *result);

#endif
