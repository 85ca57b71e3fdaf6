/* SPDX-License-Identifier: MIT
 *
 * A workload under the journal, with what it promises on the way; then all its power cuts.
 *
 * Before a workload the origin is random bytes. The store's first block is zero, and the rest of it
 * is hostile: wherever an area may come to lie there are records that look right and are not.
 */
#ifndef COWSNAP_TESTS_CRASH_SCENARIO_H
#define COWSNAP_TESTS_CRASH_SCENARIO_H

#include "crash/check.h"

#define SCENARIO_IMAGES 8

struct scenario;

struct workload {
	const char *name;
	void (*run)(struct scenario *s);
	uint64_t chunk_bytes;
	uint64_t origin_bytes;
	uint64_t store_chunks;
	uint64_t grown_chunks; /* how long the store may become; 0: as it is */
};

struct scenario {
	const struct workload *workload;
	const struct power_traits *traits[POWER_DEVICES];
	struct rig rig;
	uint8_t *base[POWER_DEVICES];
	struct promise promise;
	uint8_t *images[SCENARIO_IMAGES];
	unsigned image_count;
	struct seed seed;
	enum power_effect effect; /* of faults */
	unsigned variant;         /* the workload's own */
};

/* ---- Steps of a workload; they assert that the library does as it is told ---- */

/* From now on this may be found. */
void scenario_promise(struct scenario *s, unsigned may);
void scenario_start(struct scenario *s);
void scenario_stop(struct scenario *s);
void scenario_create(struct scenario *s, uint64_t chunk_bytes, uint32_t flags, uint64_t generation);
/* Flushes the origin first: what is not durable at the take is not the library's to keep. */
void scenario_take(struct scenario *s, enum cowsnap_loser on_full);
void scenario_attach(struct scenario *s, enum cowsnap_loser on_full);
/* Chunks of the workload's size. Returns: what the bracket says. */
int scenario_write(struct scenario *s, uint64_t chunk, uint64_t count);
/* One chunk each, with a flush of the origin now and then. */
void scenario_touch(struct scenario *s, uint64_t chunk, uint64_t count);
void scenario_flush_origin(struct scenario *s);
void scenario_drop(struct scenario *s);
void scenario_generation(struct scenario *s, uint64_t generation);
void scenario_grow(struct scenario *s, uint64_t chunks);

/* ---- Running one ---- */

struct scenario_options {
	const struct power_traits *traits; /* of the store's device */
	struct outage_plan plan;
	enum power_effect effect;
	unsigned variant;
	enum mutation mutation;        /* done to the journal of the workload */
	enum mutation nested_mutation; /* and to what happens after a cut */
	bool stop;                     /* at the first violation */
	uint64_t stride;
	struct seed seed;
};

struct scenario_result {
	struct check_counts counts;
	uint64_t violations;
	uint64_t mutated; /* places that a mutation changed */
	char message[512];
};

void scenario_run(const struct workload *workload, const struct scenario_options *options,
	struct scenario_result *result);

void scenario_count(struct check_counts *sum, const struct check_counts *counts);
void scenario_print(const char *what, const struct check_counts *counts);

/* Devices of the store. */
extern const struct power_traits scenario_cached;     /* flush and write_durable */
extern const struct power_traits scenario_flush_only; /* flush, nothing else */
extern const struct power_traits scenario_cacheless;  /* neither */
extern const struct power_traits scenario_blocks;     /* a block of 4 KiB, torn in sectors */
extern const struct power_traits scenario_origin;

#endif
