/* SPDX-License-Identifier: MIT
 *
 * What the groups of the scenario merge share: an origin and a store on two devices, a snapshot of
 * which chunks were saved, and a queue on which it is merged.
 */
#ifndef COWSNAP_BENCH_MERGE_BED_H
#define COWSNAP_BENCH_MERGE_BED_H

#include "bench.h"
#include "sim_device.h"

struct merge_bed {
	const struct bench_options *options;
	uint64_t chunk_bytes;
	uint64_t chunks; /* of the volume */
	bool simulated;  /* an array; else memory */
	bool persistent; /* the store */
	bool random;     /* one chunk in two, in random order; else all of them as they lie */
	unsigned users;
	struct sim_array array;
	struct sim_volume volumes[2]; /* origin, store */
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *devices[2];
	struct cowsnap_origin *origin;
	struct cowsnap_store *store;
	struct cowsnap_copier *copier;
	struct cowsnap_snapshot *snapshot;
	uint64_t *order; /* of the saved chunks */
	uint64_t saved;
};

/* A queue and who polls it. */
struct merge_queue {
	struct merge_bed *bed;
	struct cowsnap_queue *queue;
	struct sim_port *port;
};

/* What was opened before a failure stays for the other. Several may use one bed. */
int merge_bed_open(struct merge_bed *bed);
int merge_bed_close(struct merge_bed *bed);
/* A snapshot, and all of bed->order saved for it: what a merge moves. Not timed. */
int merge_bed_take(struct merge_bed *bed);
int merge_bed_drop(struct merge_bed *bed);

int merge_queue_open(struct merge_bed *bed, struct merge_queue *queue);
int merge_queue_close(struct merge_queue *queue);
/* Once. Returns 0 or a negative errno. */
int merge_queue_poll(struct merge_queue *queue);
/* All of the snapshot, which ends. */
int merge_all(struct merge_queue *queue);

/* What a merge would move, copied by nothing but the copier: in the same order, as many at a time
 * as it pleases. @held: to half of the time, in spells as those of a merge. */
struct merge_copies *merge_copies_create(struct merge_queue *queue, bool held);
int merge_copies_run(struct merge_copies *copies);
void merge_copies_destroy(struct merge_copies *copies);

int merge_latency_groups(struct bench_report *report, const struct bench_options *options);

#endif
