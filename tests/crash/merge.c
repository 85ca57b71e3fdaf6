/* SPDX-License-Identifier: MIT
 *
 * A merge by hand: what it asks of the store, in the order that a merge must keep. The snapshot
 * keeps its image all the while: what is forgotten is in the origin by then.
 */
#include "crash/workloads.h"
#include "support/newest.h"
#include "support/test.h"

#include "store.h"

#include <stdlib.h>

static void move(struct scenario *s, const struct cowsnap_run *run)
{
	uint64_t chunk = s->workload->chunk_bytes, length = run->count * chunk;
	uint8_t *data = malloc(length);

	cr_assert_not_null(data);
	cr_assert_eq(cowsnap_device_read(
			     s->rig.device[POWER_STORE], data, run->location * chunk, length),
		0);
	if (run->first * chunk + length > s->workload->origin_bytes)
		length = s->workload->origin_bytes - run->first * chunk;
	cr_assert_eq(
		cowsnap_device_write(s->rig.device[POWER_ORIGIN], data, run->first * chunk, length),
		0);
	free(data);
}

/* At most @batches of at most @most chunks each, in three runs at most. Returns: are there more? */
static bool merge(struct scenario *s, unsigned batches, uint64_t most)
{
	struct cowsnap_store *store = s->rig.store;
	struct cowsnap_run run[3];

	for (unsigned i = 0; i < batches; i++) {
		int count = store_newest(store, 0, most, run, 3);

		cr_assert_geq(count, 0);
		if (!count)
			return false;
		for (int k = 0; k < count; k++)
			move(s, &run[k]);
		scenario_flush_origin(s);
		cr_assert_eq(store_forget(store, run, (size_t)count), 0);
		for (int k = 0; k < count; k++)
			cowsnap_store_free(store, run[k].location, run[k].count);
	}
	return true;
}

static void next_life(struct scenario *s)
{
	scenario_stop(s);
	scenario_start(s);
	scenario_attach(s, COWSNAP_LOSER_WRITE);
}

static void run_merge_by_hand(struct scenario *s)
{
	scenario_start(s);
	scenario_create(s, s->workload->chunk_bytes, 0, 0);
	scenario_take(s, COWSNAP_LOSER_WRITE);
	cr_assert_eq(scenario_write(s, 20, 28), 0);
	scenario_touch(s, 3, 3);
	cr_assert_eq(scenario_write(s, 49, 1), 0);
	cr_assert_eq(scenario_write(s, 10, 7), 0);
	merge(s, 2, 4);
	merge(s, 2, 100);
	/* Into space that was just given back. */
	scenario_touch(s, 60, 4);
	next_life(s);
	merge(s, 2, 100);
	next_life(s);
	cr_assert_eq(scenario_write(s, 2, 6), 0);
	cr_assert_not(merge(s, 100, 10));
	scenario_drop(s);
	scenario_stop(s);
}

const struct workload workload_merge_by_hand = {
	.name = "merge-by-hand",
	.run = run_merge_by_hand,
	.chunk_bytes = 512,
	.origin_bytes = 64 * 512,
	.store_chunks = 100,
};
const struct workload workload_merge_by_hand_torn = {
	.name = "merge-by-hand-torn",
	.run = run_merge_by_hand,
	.chunk_bytes = 4096,
	.origin_bytes = 63 * 4096 + 512,
	.store_chunks = 90,
};
