/* SPDX-License-Identifier: MIT
 *
 * Memory runs out. Each scenario runs again and again, with the first allocation failing, then the
 * second, and so on, until it runs without a failure; once with that one failing, once with all
 * later ones failing too. Every call must either do its work or refuse with -ENOMEM; what could be
 * opened must close; nothing may leak; and nobody may wait for ever.
 */
#include <cowsnap.h>

#include "support/fail_alloc.h"
#include "support/test.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define BYTES  UINT64_C(262144)
#define CHUNK  UINT64_C(4096)
#define TAKES  3
#define STORES 2

/* Many more than any scenario allocates: the sweep itself must end. */
#define SWEEP_MAX 20000

struct scene {
	struct fail_alloc *memory;
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *device;
	struct cowsnap_origin *origin;
	struct cowsnap_store *store[STORES];
	struct cowsnap_snapshot *snapshot[TAKES * STORES];
	uint8_t live[BYTES];
	uint8_t image[TAKES][BYTES]; /* at each take */
};

/* Nothing but -ENOMEM may be wrong. */
static bool done(int rc)
{
	cr_assert(rc == 0 || rc == -ENOMEM, "error %d", rc);
	return rc == 0;
}

static bool scene_open(struct scene *s)
{
	struct cowsnap_ctx_options options = {
		.size = sizeof(options), .allocator = fail_alloc_table(s->memory)};
	struct cowsnap_transient_options transient = {.size = sizeof(transient)};

	if (!done(cowsnap_ctx_create(&options, &s->ctx)) ||
		!done(cowsnap_device_memory(s->ctx, BYTES, &s->device)) ||
		!done(cowsnap_origin_open(s->ctx, s->device, &s->origin)))
		return false;
	for (unsigned i = 0; i < STORES; i++) {
		transient.chunk_size_bytes = CHUNK << (2 * i);
		if (!done(cowsnap_store_transient(s->ctx, &transient, &s->store[i])))
			return false;
	}
	return true;
}

static void scene_close(struct scene *s)
{
	for (unsigned i = 0; i < TAKES * STORES; i++) {
		if (!s->snapshot[i])
			continue;
		cr_assert_eq(cowsnap_snapshot_drop(s->snapshot[i]), 0, "a drop needs no memory");
		cowsnap_snapshot_unref(s->snapshot[i]);
	}
	if (s->ctx) {
		for (int i = 0; i < 1000 && cowsnap_reclaim(s->ctx, 16) == 1; i++)
			;
	}
	for (unsigned i = 0; i < STORES; i++)
		cr_assert_eq(cowsnap_store_close(s->store[i]), 0, "store %u", i);
	cr_assert_eq(cowsnap_origin_close(s->origin), 0);
	cr_assert_eq(cowsnap_device_close(s->device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(s->ctx), 0);
}

static void write_some(struct scene *s, uint64_t offset, uint64_t length, uint8_t value)
{
	struct cowsnap_op op;

	if (!done(cowsnap_write_begin(s->origin, COWSNAP_WRITE, offset, length, &op)))
		return;
	memset(s->live + offset, value, length);
	cr_assert_eq(cowsnap_device_write(s->device, s->live + offset, offset, length), 0);
	cowsnap_write_end(&op);
}

static void take_both(struct scene *s, unsigned number)
{
	struct cowsnap_take_entry entries[STORES] = {
		{.origin = s->origin, .store = s->store[0]},
		{.origin = s->origin, .store = s->store[1]},
	};

	memcpy(s->image[number], s->live, BYTES);
	if (!done(cowsnap_take(s->ctx, NULL, entries, STORES))) {
		cr_assert_null(entries[0].snapshot);
		cr_assert_null(entries[1].snapshot);
		return;
	}
	for (unsigned i = 0; i < STORES; i++)
		s->snapshot[number * STORES + i] = entries[i].snapshot;
}

/* The write was refused or its copy lost for want of memory; an image that reads must be right. */
static void check_images(struct scene *s)
{
	static uint8_t data[BYTES];

	for (unsigned i = 0; i < TAKES * STORES; i++) {
		struct cowsnap_snapshot_info info;
		int rc;

		if (!s->snapshot[i])
			continue;
		rc = cowsnap_snapshot_read(s->snapshot[i], data, 0, BYTES);
		if (rc == -ESTALE) {
			cr_assert_eq(cowsnap_snapshot_info(s->snapshot[i], &info, sizeof(info)), 0);
			cr_assert_eq(info.reason, -ENOMEM);
			continue;
		}
		if (done(rc))
			cr_assert_arr_eq(data, s->image[i / STORES], BYTES);
	}
}

/* The main job, from beginning to end. */
static void whole_life(struct scene *s)
{
	if (!scene_open(s))
		return;
	write_some(s, 0, BYTES, 1);
	for (unsigned i = 0; i < TAKES; i++) {
		take_both(s, i);
		write_some(s, i * 3 * CHUNK + 100, 2 * CHUNK, (uint8_t)(10 + i));
		write_some(s, BYTES - CHUNK, CHUNK, (uint8_t)(20 + i));
	}
	check_images(s);
	if (s->snapshot[STORES]) {
		cr_assert_eq(cowsnap_snapshot_drop(s->snapshot[STORES]), 0);
		cowsnap_snapshot_unref(s->snapshot[STORES]);
		s->snapshot[STORES] = NULL;
	}
	cowsnap_reclaim(s->ctx, 8);
	write_some(s, 0, BYTES, 99);
	check_images(s);
}

/* Two writers on the same fresh chunks: one copies, one waits; whoever fails must wake the other.
 */
static void *write_all(void *argument)
{
	struct scene *s = argument;
	struct cowsnap_op op;

	for (uint64_t offset = 0; offset < BYTES; offset += 2 * CHUNK) {
		if (done(cowsnap_write_begin(s->origin, COWSNAP_WRITE, offset, 3 * CHUNK / 2, &op)))
			cowsnap_write_end(&op);
	}
	return NULL;
}

static void two_writers(struct scene *s)
{
	pthread_t thread[2];

	if (!scene_open(s))
		return;
	take_both(s, 0);
	for (int i = 0; i < 2; i++)
		cr_assert_eq(pthread_create(&thread[i], NULL, write_all, s), 0);
	for (int i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	check_images(s);
}

/* Returns: whether an allocation failed. */
static bool run_once(void (*scenario)(struct scene *), uint64_t n, bool for_good, bool arenas)
{
	struct scene *s = calloc(1, sizeof(*s));
	bool failed;

	s->memory = fail_alloc_create(arenas);
	fail_alloc_at(s->memory, n, for_good);
	scenario(s);
	scene_close(s);
	failed = fail_alloc_failed(s->memory) > 0;
	cr_assert_eq(fail_alloc_live(s->memory), 0, "allocation %llu failed: %llu blocks leaked",
		(unsigned long long)n, (unsigned long long)fail_alloc_live(s->memory));
	fail_alloc_destroy(s->memory);
	free(s);
	return failed;
}

static void sweep(void (*scenario)(struct scene *), bool for_good, bool arenas)
{
	uint64_t n = 1;

	while (run_once(scenario, n, for_good, arenas)) {
		n++;
		cr_assert(n < SWEEP_MAX);
	}
	cr_assert(
		n > 10, "only %llu allocations: the table is not used", (unsigned long long)n - 1);
}

Test(sweep, whole_life_one_failure, .timeout = 120)
{
	sweep(whole_life, false, false);
}

Test(sweep, whole_life_no_memory_from_then_on, .timeout = 120)
{
	sweep(whole_life, true, false);
}

Test(sweep, whole_life_with_arenas, .timeout = 120)
{
	sweep(whole_life, false, true);
	sweep(whole_life, true, true);
}

Test(sweep, two_writers_one_failure, .timeout = 120)
{
	sweep(two_writers, false, false);
}

Test(sweep, two_writers_no_memory_from_then_on, .timeout = 120)
{
	sweep(two_writers, true, false);
}
