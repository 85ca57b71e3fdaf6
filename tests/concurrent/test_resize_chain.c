/* SPDX-License-Identifier: MIT
 *
 * Chains of snapshots of an origin that has grown between their takes: what lies behind the end of
 * an older one is nothing to it. It keeps no space for it, has no say about it, and does not lose
 * by it.
 */
#include "concurrent/scene.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK  UINT64_C(4096)
#define SMALL  UINT64_C(100000) /* ends in chunk 24 */
#define LARGE  UINT64_C(200000)
#define BEHIND (25 * CHUNK) /* the first chunk that SMALL has nothing of */

/* An origin with a snapshot from before it grew, and one from after it. */
struct grown {
	struct cowsnap_ctx *ctx;
	struct test_device *device;
	struct cowsnap_origin *origin;
	struct cowsnap_store *store;
	struct cowsnap_snapshot *small, *large;
};

static struct cowsnap_snapshot *take(struct grown *g, enum cowsnap_loser on_full)
{
	struct cowsnap_take_entry entry = {
		.origin = g->origin, .store = g->store, .on_full = on_full};

	cr_assert_eq(cowsnap_take(g->ctx, NULL, &entry, 1), 0);
	return entry.snapshot;
}

static void small_open(struct grown *g, uint64_t limit_chunks, enum cowsnap_loser on_full_of_small)
{
	const struct cowsnap_transient_options options = {
		.size = sizeof(options), .limit_bytes = limit_chunks * CHUNK};

	memset(g, 0, sizeof(*g));
	cr_assert_eq(cowsnap_ctx_create(NULL, &g->ctx), 0);
	g->device = test_device_create(
		g->ctx, &(struct test_device_options){.size_bytes = SMALL, .max_bytes = LARGE});
	cr_assert_not_null(g->device);
	cr_assert_eq(cowsnap_origin_open(g->ctx, test_device(g->device), &g->origin), 0);
	cr_assert_eq(cowsnap_store_transient(g->ctx, &options, &g->store), 0);
	g->small = take(g, on_full_of_small);
	test_device_resize(g->device, LARGE);
	cr_assert_eq(cowsnap_device_refresh(test_device(g->device)), 0);
	cr_assert_eq(cowsnap_origin_resize(g->origin, 0), 0);
}

static void grown_open(struct grown *g, uint64_t limit_chunks, enum cowsnap_loser on_full_of_small)
{
	small_open(g, limit_chunks, on_full_of_small);
	g->large = take(g, COWSNAP_LOSER_SNAPSHOT);
}

static void drop(struct cowsnap_snapshot **snapshot)
{
	if (*snapshot)
		scene_drop(*snapshot);
	*snapshot = NULL;
}

static void reclaim(struct grown *g)
{
	while (cowsnap_reclaim(g->ctx, UINT64_MAX) == 1)
		;
}

static void grown_close(struct grown *g)
{
	drop(&g->large);
	drop(&g->small);
	reclaim(g);
	cr_assert_eq(cowsnap_store_close(g->store), 0);
	cr_assert_eq(cowsnap_origin_close(g->origin), 0);
	cr_assert_eq(test_device_destroy(g->device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(g->ctx), 0);
}

static int write_bytes(struct grown *g, uint64_t offset, uint64_t length, int value)
{
	struct cowsnap_op op;
	int rc = cowsnap_write_begin(g->origin, COWSNAP_WRITE, offset, length, &op);
	uint8_t *data;

	if (rc)
		return rc;
	data = malloc(length);
	memset(data, value, length);
	rc = cowsnap_device_write(test_device(g->device), data, offset, length);
	cowsnap_write_end(&op);
	free(data);
	return rc;
}

static struct cowsnap_snapshot_info info_of(struct cowsnap_snapshot *snapshot)
{
	struct cowsnap_snapshot_info info;

	cr_assert_eq(cowsnap_snapshot_info(snapshot, &info, sizeof(info)), 0);
	return info;
}

static uint64_t used_chunks(struct grown *g)
{
	struct cowsnap_store_usage usage;

	cr_assert_eq(cowsnap_store_usage(g->store, &usage, sizeof(usage)), 0);
	return usage.used_bytes / usage.chunk_size_bytes;
}

/* By one bracket, which is then met by a longer one. */
Test(resize_chain, a_write_across_the_end_saves_what_lies_before_it)
{
	for (uint64_t before = 1; before <= 3; before++) {
		for (uint64_t behind = 0; behind <= 3; behind++) {
			struct grown g;

			small_open(&g, 0, COWSNAP_LOSER_SNAPSHOT);
			cr_assert_eq(write_bytes(&g, BEHIND - before * CHUNK,
					     (before + behind) * CHUNK, 1),
				0);
			cr_assert_eq(used_chunks(&g), before);
			cr_assert_eq(write_bytes(&g, BEHIND - 4 * CHUNK, 8 * CHUNK, 2), 0);
			cr_assert_eq(used_chunks(&g), 4);
			scene_expect(g.small, 0, SMALL, 0);
			grown_close(&g);
		}
	}
}

Test(resize_chain, a_shorter_snapshot_keeps_no_space_behind_its_end)
{
	struct grown g;

	grown_open(&g, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(write_bytes(&g, BEHIND - 2 * CHUNK, 6 * CHUNK, 1), 0);
	cr_assert_eq(used_chunks(&g), 6);
	drop(&g.large);
	reclaim(&g);
	cr_assert_eq(
		used_chunks(&g), 2, "%llu chunks are kept", (unsigned long long)used_chunks(&g));
	scene_expect(g.small, 0, SMALL, 0);
	grown_close(&g);
}

/* The same where the ghost has a newer one, so that what it has goes down into the shorter one. */
Test(resize_chain, what_goes_down_is_cut_off_at_the_end)
{
	struct cowsnap_snapshot *newer;
	struct grown g;

	grown_open(&g, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(write_bytes(&g, BEHIND - 2 * CHUNK, 6 * CHUNK, 1), 0);
	newer = take(&g, COWSNAP_LOSER_SNAPSHOT);
	drop(&g.large);
	reclaim(&g);
	cr_assert_eq(
		used_chunks(&g), 2, "%llu chunks are kept", (unsigned long long)used_chunks(&g));
	cr_assert_eq(info_of(g.small).saved_chunks, 2);
	scene_expect(g.small, 0, SMALL, 0);
	scene_expect(newer, BEHIND, 4 * CHUNK, 1);
	drop(&newer);
	grown_close(&g);
}

Test(resize_chain, nothing_is_copied_for_a_dropped_one_behind_the_end)
{
	struct grown g;

	grown_open(&g, 0, COWSNAP_LOSER_SNAPSHOT);
	drop(&g.large);
	cr_assert_eq(write_bytes(&g, BEHIND - 2 * CHUNK, 6 * CHUNK, 1), 0);
	cr_assert_eq(used_chunks(&g), 2, "%llu were saved", (unsigned long long)used_chunks(&g));
	scene_expect(g.small, 0, SMALL, 0);
	grown_close(&g);
}

Test(resize_chain, a_shorter_snapshot_does_not_lose_behind_its_end)
{
	struct cowsnap_snapshot_info info;
	struct grown g;

	grown_open(&g, 2, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(write_bytes(&g, 0, 2 * CHUNK, 1), 0);
	cr_assert_eq(write_bytes(&g, BEHIND, LARGE - BEHIND, 1), 0);
	info = info_of(g.large);
	cr_assert_eq(info.state, COWSNAP_SNAPSHOT_INVALID);
	cr_assert_eq(info.reason, -ENOSPC);
	cr_assert_eq(info_of(g.small).state, COWSNAP_SNAPSHOT_ACTIVE);
	scene_expect(g.small, 0, SMALL, 0);
	grown_close(&g);
}

Test(resize_chain, a_shorter_snapshot_has_no_say_behind_its_end)
{
	struct grown g;

	grown_open(&g, 2, COWSNAP_LOSER_WRITE);
	cr_assert_eq(write_bytes(&g, 0, 2 * CHUNK, 1), 0);
	cr_assert_eq(write_bytes(&g, BEHIND - CHUNK, 1, 1), -ENOSPC, "the small one has a say");
	cr_assert_eq(info_of(g.large).state, COWSNAP_SNAPSHOT_ACTIVE);
	cr_assert_eq(write_bytes(&g, BEHIND, 1, 1), 0);
	cr_assert_eq(info_of(g.large).state, COWSNAP_SNAPSHOT_INVALID);
	cr_assert_eq(info_of(g.small).state, COWSNAP_SNAPSHOT_ACTIVE);
	grown_close(&g);
}

/* The chunk in which it ends: it loses by that one, of which it has only the beginning. */
Test(resize_chain, what_was_lost_lies_within_the_snapshot)
{
	struct cowsnap_snapshot_info info;
	struct grown g;

	grown_open(&g, 2, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(write_bytes(&g, 0, 2 * CHUNK, 1), 0);
	cr_assert_eq(write_bytes(&g, BEHIND - CHUNK, 1, 1), 0);
	info = info_of(g.small);
	cr_assert_eq(info.state, COWSNAP_SNAPSHOT_INVALID);
	cr_assert_eq(info.reason_offset, BEHIND - CHUNK);
	cr_assert_eq(info.reason_length, SMALL - (BEHIND - CHUNK));
	info = info_of(g.large);
	cr_assert_eq(info.reason_offset, BEHIND - CHUNK);
	cr_assert_eq(info.reason_length, CHUNK);
	grown_close(&g);
}

/* Each is good for itself when its origin cannot be read any more. */
Test(resize_chain, detached_whatever_their_sizes)
{
	struct cowsnap_snapshot *newer;
	struct grown g;

	grown_open(&g, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(write_bytes(&g, BEHIND - 2 * CHUNK, 4 * CHUNK, 1), 0);
	newer = take(&g, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(cowsnap_snapshot_detach(g.small, UINT64_MAX), 0);
	cr_assert_eq(info_of(g.small).detached, 1);
	cr_assert_eq(used_chunks(&g), 4 + 23, "nothing is copied behind its end");
	cr_assert_eq(cowsnap_snapshot_detach(g.large, UINT64_MAX), 0);
	test_device_fail(g.device, TEST_IO_READ, 1, true, -EIO);
	scene_expect(g.small, 0, SMALL, 0);
	scene_expect(g.large, 0, LARGE, 0);
	drop(&newer);
	drop(&g.large);
	reclaim(&g);
	cr_assert_eq(used_chunks(&g), 25);
	scene_expect(g.small, 0, SMALL, 0);
	grown_close(&g);
}
