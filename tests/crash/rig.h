/* SPDX-License-Identifier: MIT
 *
 * One life of a process: a context, an origin and a store on two devices whose bytes outlive it.
 */
#ifndef COWSNAP_TESTS_CRASH_RIG_H
#define COWSNAP_TESTS_CRASH_RIG_H

#include "crash/power.h"

#include <stdatomic.h>

struct rig {
	struct journal journal;
	struct power power[POWER_DEVICES];
	uint8_t *live[POWER_DEVICES];
	uint64_t capacity[POWER_DEVICES];
	/* The store's device is submitted to, and there is a queue. */
	bool looped;
	struct cowsnap_ctx *ctx;
	struct cowsnap_queue *queue;
	struct cowsnap_device *device[POWER_DEVICES];
	struct cowsnap_origin *origin;
	struct cowsnap_store *store;
	struct cowsnap_snapshot *snapshot;
	_Atomic uint64_t stamp; /* no two writes have the same content */
};

void rig_init(struct rig *rig, uint64_t origin_capacity, uint64_t store_capacity);
void rig_fini(struct rig *rig);

/* These return what the library says. */

/* A process starts: context, devices, origin. */
int rig_start(struct rig *rig, const struct power_traits *const traits[POWER_DEVICES],
	uint64_t origin_bytes, uint64_t store_bytes);
int rig_create(struct rig *rig, uint64_t chunk_bytes, uint32_t flags, uint64_t generation);
int rig_take(struct rig *rig, enum cowsnap_loser on_full);
int rig_attach(
	struct rig *rig, uint64_t chunk_bytes, uint64_t generation, enum cowsnap_loser on_full);
int rig_inspect(struct rig *rig, struct cowsnap_dm_report *report);
/* One bracket with new content. */
int rig_write(struct rig *rig, uint64_t offset, uint64_t length);
/* The write itself and the end of its bracket. */
int rig_write_admitted(struct rig *rig, struct cowsnap_op *op, uint64_t offset, uint64_t length);
int rig_drop(struct rig *rig);
/* The process ends. The snapshot stays in the store: nothing is written, which is why this stands
 * for a kill as well. */
int rig_stop(struct rig *rig);

struct cowsnap_snapshot_info rig_info(const struct rig *rig);
struct cowsnap_store_usage rig_usage(const struct rig *rig);

#endif
