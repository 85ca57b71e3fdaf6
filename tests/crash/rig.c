/* SPDX-License-Identifier: MIT */
#include "crash/rig.h"
#include "support/test.h"

#include <stdlib.h>
#include <string.h>

#define PIECE       4096
#define QUEUE_DEPTH 16u

void rig_init(struct rig *rig, uint64_t origin_capacity, uint64_t store_capacity)
{
	memset(rig, 0, sizeof(*rig));
	journal_init(&rig->journal);
	rig->capacity[POWER_ORIGIN] = origin_capacity;
	rig->capacity[POWER_STORE] = store_capacity;
	for (unsigned i = 0; i < POWER_DEVICES; i++) {
		rig->live[i] = calloc(1, rig->capacity[i]);
		cr_assert_not_null(rig->live[i]);
	}
}

void rig_fini(struct rig *rig)
{
	for (unsigned i = 0; i < POWER_DEVICES; i++)
		free(rig->live[i]);
	journal_fini(&rig->journal);
}

int rig_start(struct rig *rig, const struct power_traits *const traits[POWER_DEVICES],
	uint64_t origin_bytes, uint64_t store_bytes)
{
	const uint64_t bytes[POWER_DEVICES] = {origin_bytes, store_bytes};
	struct cowsnap_ctx_options options = {.size = sizeof(options),
		.engine = rig->looped ? COWSNAP_ENGINE_LOOP : COWSNAP_ENGINE_INLINE};
	int rc = cowsnap_ctx_create(&options, &rig->ctx);

	if (!rc && rig->looped)
		rc = cowsnap_queue_create(rig->ctx, QUEUE_DEPTH, &rig->queue);

	for (unsigned i = 0; i < POWER_DEVICES && !rc; i++) {
		rig->power[i] = (struct power){
			.journal = &rig->journal,
			.number = i,
			.traits = traits[i],
			.live = rig->live[i],
			.size_bytes = bytes[i],
			.submits = rig->looped && i == POWER_STORE,
		};
		cr_assert_leq(bytes[i], rig->capacity[i]);
		rc = power_open(&rig->power[i], rig->ctx, &rig->device[i]);
	}
	if (!rc)
		rc = cowsnap_origin_open(rig->ctx, rig->device[POWER_ORIGIN], &rig->origin);
	return rc;
}

int rig_create(struct rig *rig, uint64_t chunk_bytes, uint32_t flags, uint64_t generation)
{
	struct cowsnap_dm_options options = {
		.size = sizeof(options),
		.flags = flags,
		.device = rig->device[POWER_STORE],
		.chunk_size_bytes = chunk_bytes,
		.generation = generation,
	};

	return cowsnap_store_dm_create(rig->ctx, &options, &rig->store);
}

int rig_take(struct rig *rig, enum cowsnap_loser on_full)
{
	struct cowsnap_take_entry entry = {
		.origin = rig->origin,
		.store = rig->store,
		.on_full = on_full,
	};
	int rc = cowsnap_take(rig->ctx, NULL, &entry, 1);

	rig->snapshot = rc ? NULL : entry.snapshot;
	return rc;
}

int rig_attach(
	struct rig *rig, uint64_t chunk_bytes, uint64_t generation, enum cowsnap_loser on_full)
{
	struct cowsnap_dm_options options = {
		.size = sizeof(options),
		.device = rig->device[POWER_STORE],
		.chunk_size_bytes = chunk_bytes,
		.generation = generation,
	};
	struct cowsnap_take_entry entry = {.origin = rig->origin, .on_full = on_full};
	int rc = cowsnap_store_dm_open(rig->ctx, &options, &entry, &rig->store);

	rig->snapshot = rc ? NULL : entry.snapshot;
	if (rc)
		rig->store = NULL;
	return rc;
}

int rig_inspect(struct rig *rig, struct cowsnap_dm_report *report)
{
	struct cowsnap_dm_inspect_options options = {
		.size = sizeof(options),
		.origin_bytes = rig->power[POWER_ORIGIN].size_bytes,
	};

	return cowsnap_dm_inspect(rig->device[POWER_STORE], &options, report, sizeof(*report));
}

static void fill(uint8_t *data, uint64_t length, uint64_t stamp)
{
	uint64_t word = stamp * UINT64_C(0x9e3779b97f4a7c15);

	for (uint64_t i = 0; i + sizeof(word) <= length; i += sizeof(word), word += stamp)
		memcpy(data + i, &word, sizeof(word));
}

int rig_write_admitted(struct rig *rig, struct cowsnap_op *op, uint64_t offset, uint64_t length)
{
	uint8_t data[PIECE];
	uint64_t stamp = atomic_fetch_add_explicit(&rig->stamp, 1, memory_order_relaxed) + 1;
	int rc = 0;

	fill(data, sizeof(data), stamp);
	while (length > 0 && !rc) {
		uint64_t piece = length < sizeof(data) ? length : sizeof(data);

		rc = cowsnap_device_write(rig->device[POWER_ORIGIN], data, offset, piece);
		offset += piece;
		length -= piece;
	}
	cowsnap_write_end(op);
	return rc;
}

int rig_write(struct rig *rig, uint64_t offset, uint64_t length)
{
	struct cowsnap_op op;
	int rc = cowsnap_write_begin(rig->origin, COWSNAP_WRITE, offset, length, &op);

	return rc ? rc : rig_write_admitted(rig, &op, offset, length);
}

int rig_drop(struct rig *rig)
{
	int rc = cowsnap_snapshot_drop(rig->snapshot);

	if (rc)
		return rc;
	cowsnap_snapshot_unref(rig->snapshot);
	rig->snapshot = NULL;
	return 0;
}

int rig_stop(struct rig *rig)
{
	int rc = 0, last;

	if (rig->snapshot) {
		rc = cowsnap_snapshot_deactivate(rig->snapshot);
		cowsnap_snapshot_unref(rig->snapshot);
	}
	last = cowsnap_queue_close(rig->queue);
	rc = rc ? rc : last;
	rig->queue = NULL;
	last = cowsnap_store_close(rig->store);
	rc = rc ? rc : last;
	last = cowsnap_origin_close(rig->origin);
	rc = rc ? rc : last;
	for (unsigned i = 0; i < POWER_DEVICES; i++) {
		last = cowsnap_device_close(rig->device[i]);
		rc = rc ? rc : last;
		rig->device[i] = NULL;
	}
	last = cowsnap_ctx_destroy(rig->ctx);
	rc = rc ? rc : last;
	rig->snapshot = NULL;
	rig->store = NULL;
	rig->origin = NULL;
	rig->ctx = NULL;
	return rc;
}

struct cowsnap_snapshot_info rig_info(const struct rig *rig)
{
	struct cowsnap_snapshot_info info = {0};

	cr_assert_eq(cowsnap_snapshot_info(rig->snapshot, &info, sizeof(info)), 0);
	return info;
}

struct cowsnap_store_usage rig_usage(const struct rig *rig)
{
	struct cowsnap_store_usage usage = {0};

	cr_assert_eq(cowsnap_store_usage(rig->store, &usage, sizeof(usage)), 0);
	return usage;
}
