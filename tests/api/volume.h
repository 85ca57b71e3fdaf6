/* SPDX-License-Identifier: MIT
 *
 * The smallest thing that can be used wrongly: a context with one origin and one store on memory
 * devices.
 */
#ifndef COWSNAP_TESTS_VOLUME_H
#define COWSNAP_TESTS_VOLUME_H

#include <cowsnap.h>

#include "support/test.h"

#define VOLUME_BYTES UINT64_C(65536)
#define VOLUME_CHUNK UINT64_C(4096)

struct volume {
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *device;
	struct cowsnap_origin *origin;
	struct cowsnap_store *store;
	struct cowsnap_snapshot *snapshot; /* volume_take */
};

static inline void volume_open(struct volume *v)
{
	*v = (struct volume){0};
	cr_assert_eq(cowsnap_ctx_create(NULL, &v->ctx), 0);
	cr_assert_eq(cowsnap_device_memory(v->ctx, VOLUME_BYTES, &v->device), 0);
	cr_assert_eq(cowsnap_origin_open(v->ctx, v->device, &v->origin), 0);
	cr_assert_eq(cowsnap_store_transient(v->ctx, NULL, &v->store), 0);
}

static inline void volume_take(struct volume *v)
{
	struct cowsnap_take_entry entry = {.origin = v->origin, .store = v->store};

	cr_assert_eq(cowsnap_take(v->ctx, NULL, &entry, 1), 0);
	v->snapshot = entry.snapshot;
}

static inline void volume_drop(struct volume *v)
{
	if (!v->snapshot)
		return;
	cr_assert_eq(cowsnap_snapshot_drop(v->snapshot), 0);
	cowsnap_snapshot_unref(v->snapshot);
	v->snapshot = NULL;
}

static inline void volume_close(struct volume *v)
{
	volume_drop(v);
	cr_assert_eq(cowsnap_origin_close(v->origin), 0);
	cr_assert_eq(cowsnap_store_close(v->store), 0);
	cr_assert_eq(cowsnap_device_close(v->device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(v->ctx), 0);
}

/* A whole bracket. */
static inline int volume_write(struct volume *v, const void *data, uint64_t offset, uint64_t length)
{
	struct cowsnap_op op;
	int rc = cowsnap_write_begin(v->origin, COWSNAP_WRITE, offset, length, &op);

	if (rc)
		return rc;
	rc = cowsnap_device_write(v->device, data, offset, length);
	cowsnap_write_end(&op);
	return rc;
}

static inline uint32_t volume_snapshots(struct volume *v)
{
	struct cowsnap_store_usage usage;

	cr_assert_eq(cowsnap_store_usage(v->store, &usage, sizeof(usage)), 0);
	return usage.snapshots;
}

/* What must stay as it is when a call is refused. */
static inline void volume_check_untouched(struct volume *v)
{
	static const uint8_t zeroes[VOLUME_BYTES];
	static uint8_t data[VOLUME_BYTES];
	struct cowsnap_stats stats;

	cr_assert_eq(cowsnap_device_read(v->device, data, 0, VOLUME_BYTES), 0);
	cr_assert_arr_eq(data, zeroes, sizeof(data));
	cr_assert_eq(cowsnap_origin_stats(v->origin, &stats, sizeof(stats)), 0);
	cr_assert_eq(stats.writes, 0);
	cr_assert_eq(stats.copied_chunks, 0);
}

#endif
