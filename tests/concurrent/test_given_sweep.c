/* SPDX-License-Identifier: MIT
 *
 * Preimages from the host, and zeroes, where anything may fail: each allocation, each request to a
 * device, one of them or all from there on. A host that tells the truth, two stores of two chunk
 * sizes, a caller that waits and an event loop. An image that reads must be right, and whatever was
 * claimed must be free again.
 */
#include "concurrent/async.h"

#include "support/fail_alloc.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK     SCENE_CHUNK
#define CHUNKS    (SCENE_BYTES / CHUNK)
#define LARGE     (4 * CHUNK)
#define TAKES     2
#define SWEEP_MAX 2000

struct life {
	struct scene scene;
	struct loop loop;
	struct fail_alloc *memory;
	struct cowsnap_preimage preimage;
	struct cowsnap_snapshot *snapshot[TAKES][SCENE_STORES];
	bool loops;
	int error; /* what may go wrong */
	uint8_t live[SCENE_BYTES];
	uint8_t image[TAKES][SCENE_BYTES];
};

/* Chunks of zeroes between others, and many in a row. */
static void fill(uint8_t *bytes, uint8_t value)
{
	for (uint64_t c = 0; c < CHUNKS; c++)
		memset(bytes + c * CHUNK, c % 3 == 0 || (c >= 20 && c < 40) ? 0 : value, CHUNK);
}

static bool all_zero(const uint8_t *bytes, uint64_t length)
{
	return !bytes[0] && !memcmp(bytes, bytes + 1, length - 1);
}

/* The truth, about all of it or about a half. */
static enum cowsnap_preimage_kind tell(void *user, struct cowsnap_preimage_ask *ask)
{
	struct life *l = user;

	if (ask->length >= 2 * LARGE && ask->offset / LARGE % 2)
		ask->length = ask->length / 2 / LARGE * LARGE;
	ask->data = l->live + ask->offset;
	if (ask->offset / CHUNK % 5 == 0)
		return COWSNAP_PREIMAGE_READ;
	return all_zero(ask->data, ask->length) ? COWSNAP_PREIMAGE_ZERO : COWSNAP_PREIMAGE_GIVEN;
}

static bool done(const struct life *l, int rc)
{
	cr_assert(rc == 0 || rc == l->error, "error %d, not %d", rc, l->error);
	return rc == 0;
}

static void take_both(struct life *l, unsigned number)
{
	struct cowsnap_take_entry entries[SCENE_STORES] = {
		{.origin = l->scene.origin[0], .store = l->scene.store[0]},
		{.origin = l->scene.origin[0],
			.store = l->scene.store[1],
			.on_full = COWSNAP_LOSER_WRITE},
	};

	memcpy(l->image[number], l->live, SCENE_BYTES);
	if (!done(l, cowsnap_take(l->scene.ctx, NULL, entries, SCENE_STORES)))
		return;
	for (unsigned i = 0; i < SCENE_STORES; i++)
		l->snapshot[number][i] = entries[i].snapshot;
}

static void called(struct cowsnap_op *op, void *user, int error)
{
	struct async *a = user;

	(void)op;
	a->error = error;
	a->loop->callbacks++;
	atomic_fetch_add(&a->calls, 1);
}

static int begin(struct life *l, struct async *a, uint64_t offset, uint64_t length)
{
	struct cowsnap_origin *origin = l->scene.origin[0];
	int rc;

	if (!l->loops)
		return cowsnap_write_begin_with(
			origin, COWSNAP_WRITE, offset, length, &l->preimage, &a->op);
	a->loop = &l->loop;
	rc = cowsnap_write_begin_with_async(origin, l->loop.queue, COWSNAP_WRITE, offset, length,
		&l->preimage, &a->op, called, a);
	if (rc != COWSNAP_PENDING)
		return rc;
	loop_until(&l->loop, a);
	return a->error;
}

static void write_some(struct life *l, uint64_t offset, uint64_t length, uint8_t value)
{
	struct async a = {0};

	if (!done(l, begin(l, &a, offset, length)))
		return;
	memset(l->live + offset, value, length);
	cr_assert_eq(cowsnap_device_write(test_device_inner(l->scene.origin_test[0]),
			     l->live + offset, offset, length),
		0);
	cowsnap_write_end(&a.op);
}

static void live(struct life *l)
{
	take_both(l, 0);
	write_some(l, CHUNK / 2, 10 * CHUNK, 7);
	write_some(l, 30 * CHUNK, CHUNK, 8);
	take_both(l, 1);
	write_some(l, 8 * CHUNK, 40 * CHUNK, 0);
	write_some(l, 0, SCENE_BYTES, 9);
}

static void check(struct life *l, unsigned number, unsigned store)
{
	struct cowsnap_snapshot *snapshot = l->snapshot[number][store];
	uint8_t *data = malloc(SCENE_BYTES);
	struct cowsnap_snapshot_info info;
	int rc = cowsnap_snapshot_read(snapshot, data, 0, SCENE_BYTES);

	if (rc == -ESTALE) {
		cr_assert_eq(cowsnap_snapshot_info(snapshot, &info, sizeof(info)), 0);
		cr_assert_eq(info.reason, l->error);
	} else {
		cr_assert_eq(rc, 0);
		cr_assert_arr_eq(data, l->image[number], SCENE_BYTES);
	}
	free(data);
}

static void open_life(struct life *l, bool loops, uint32_t flags)
{
	const struct scene_options options = {.chunk_bytes = {CHUNK, LARGE},
		.engine = loops ? COWSNAP_ENGINE_LOOP : COWSNAP_ENGINE_INLINE,
		.submits = loops,
		.mode = TEST_ASYNC_REVERSE,
		.allocator = fail_alloc_table(l->memory),
		.store_flags = flags};

	scene_open(&l->scene, &options);
	l->loops = loops;
	l->preimage = (struct cowsnap_preimage){.get = tell, .user = l};
	fill(l->live, 1);
	cr_assert_eq(cowsnap_device_write(
			     test_device_inner(l->scene.origin_test[0]), l->live, 0, SCENE_BYTES),
		0);
	if (loops)
		loop_open(&l->loop, &l->scene, 1);
}

/* Nothing fails any more. */
static void close_life(struct life *l)
{
	for (unsigned i = 0; i < TAKES * SCENE_STORES; i++) {
		struct cowsnap_snapshot *snapshot = l->snapshot[i / SCENE_STORES][i % SCENE_STORES];

		if (!snapshot)
			continue;
		check(l, i / SCENE_STORES, i % SCENE_STORES);
		scene_drop(snapshot);
	}
	if (l->loops)
		loop_close(&l->loop);
	scene_close(&l->scene);
}

/* ---- Memory ---------------------------------------------------------------------------------- */

static bool run_without_memory(uint64_t n, bool for_good, bool loops, uint32_t flags)
{
	struct life *l = calloc(1, sizeof(*l));
	bool failed;

	l->memory = fail_alloc_create(false);
	l->error = -ENOMEM;
	open_life(l, loops, flags);
	fail_alloc_at(l->memory, n, for_good);
	live(l);
	failed = fail_alloc_failed(l->memory) > 0;
	fail_alloc_at(l->memory, 0, false);
	close_life(l);
	fail_alloc_destroy(l->memory);
	free(l);
	return failed;
}

static uint64_t next(uint64_t n)
{
	cr_assert_lt(n, SWEEP_MAX);
	return test_sweep_next(n);
}

static void sweep_memory(bool loops, uint32_t flags)
{
	for (unsigned for_good = 0; for_good < 2; for_good++) {
		uint64_t n = 1;

		while (run_without_memory(n, for_good, loops, flags))
			n = next(n);
		cr_assert(n > 10, "only %llu allocations", (unsigned long long)n - 1);
	}
}

Test(given_sweep, no_memory, .timeout = 120)
{
	sweep_memory(false, 0);
	sweep_memory(false, COWSNAP_TRANSIENT_SKIP_ZEROES);
}

Test(given_sweep, no_memory_in_a_loop, .timeout = 120)
{
	sweep_memory(true, 0);
	sweep_memory(true, COWSNAP_TRANSIENT_SKIP_ZEROES);
}

/* ---- Devices --------------------------------------------------------------------------------- */

/* @what: read the origin; write, zero store 0; the same of store 1. */
static bool run_with_fault(unsigned what, uint64_t n, bool for_good, bool loops, uint32_t flags)
{
	static const enum test_io kind[] = {
		TEST_IO_READ, TEST_IO_WRITE, TEST_IO_ZERO, TEST_IO_WRITE, TEST_IO_ZERO};
	struct life *l = calloc(1, sizeof(*l));
	struct test_device *device;
	bool failed;

	l->memory = fail_alloc_create(false);
	l->error = -EIO;
	open_life(l, loops, flags);
	device = what ? l->scene.store_test[(what - 1) / 2] : l->scene.origin_test[0];
	test_device_fail(device, kind[what], n, for_good, -EIO);
	live(l);
	failed = test_device_failed(device) > 0;
	test_device_heal(device);
	close_life(l);
	fail_alloc_destroy(l->memory);
	free(l);
	return failed;
}

static void sweep_devices(bool loops, uint32_t flags)
{
	uint64_t most = 0;

	for (unsigned what = 0; what < 10; what++) {
		uint64_t n = 1;

		while (run_with_fault(what / 2, n, what % 2, loops, flags))
			n = next(n);
		most = n > most ? n : most;
	}
	cr_assert(most > 3, "at most %llu requests", (unsigned long long)most - 1);
}

Test(given_sweep, failing_devices, .timeout = 120)
{
	sweep_devices(false, 0);
	sweep_devices(false, COWSNAP_TRANSIENT_SKIP_ZEROES);
}

Test(given_sweep, failing_devices_in_a_loop, .timeout = 120)
{
	sweep_devices(true, 0);
	sweep_devices(true, COWSNAP_TRANSIENT_SKIP_ZEROES);
}
