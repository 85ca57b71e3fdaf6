/* SPDX-License-Identifier: MIT
 *
 * Stores of several kinds and chunk sizes on one origin, under load, while it grows: each image is
 * a consistent cut (support/cut.h). The kernel's 6d45d93ead31: snapshots of different chunk sizes
 * beside each other.
 *
 * The cut's origin 0 is the first half of the volume, its origin 1 what is added. Writers own
 * stripes of both, and the one that owns the seam also writes across it in one bracket.
 *
 * Locking: none; what threads share is atomic, or belongs to one of them until it is joined.
 */
#include <cowsnap.h>

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "support/cut.h"
#include "support/seed.h"
#include "support/test.h"
#include "support/test_device.h"

#define HALF     ((uint64_t)CUT_BYTES)
#define WRITERS  3u
#define STORES   4u
#define HELD     3u /* snapshots of a chain that are kept at a time */
#define STRIPE   4u
#define STRIPES  (CUT_BLOCKS / STRIPE) /* of a half */
#define VERSIONS 4096u
#define WRITES   24u /* at least, after each take */

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define TAKES 200u
#else
#define TAKES 1500u
#endif

struct image {
	struct cut_image cut;
	struct cowsnap_snapshot *snapshot;
	struct image *next;
};

struct mixed {
	struct cut cut;
	struct cowsnap_ctx *ctx;
	struct test_device *device;
	struct cowsnap_device *dm_device;
	struct cowsnap_origin *origin;
	struct cowsnap_store *store[STORES]; /* the first one is persistent */
	struct image *held[STORES][HELD];
	struct image *all;
	struct seed seed; /* the taker's */
	_Atomic unsigned taken;
	_Atomic uint64_t written; /* brackets */
	atomic_bool stop;
};

struct writer {
	struct mixed *m;
	pthread_t thread;
	unsigned number;
	struct seed seed;
};

/* Blocks of one half; a bracket has one or two that touch. */
struct part {
	unsigned half, first, count;
};

/* ---- Writers --------------------------------------------------------------------------------- */

/* Stripes 2k - 1 and 2k of both halves belong to one writer, so those at the seam do. Returns: how
 * many parts; 0: none this time. */
static unsigned choose(struct writer *w, struct part part[2])
{
	bool grown = cowsnap_origin_size(w->m->origin) > HALF;
	uint64_t pair =
		w->number + WRITERS * seed_below(&w->seed, (STRIPES - w->number) / WRITERS + 1);
	uint64_t stripe = pair ? 2 * pair - seed_below(&w->seed, 2) : 0;
	uint64_t into = seed_below(&w->seed, STRIPE);

	if (2 * pair == STRIPES && grown && seed_below(&w->seed, 2)) {
		part[0] = (struct part){0, CUT_BLOCKS - 1, 1};
		part[1] = (struct part){1, 0, 1};
		return 2;
	}
	if (stripe >= (grown ? 2 * STRIPES : STRIPES))
		return 0;
	part[0] = (struct part){.half = stripe >= STRIPES,
		.first = (unsigned)(stripe % STRIPES * STRIPE + into),
		.count = 1 + (unsigned)seed_below(&w->seed, STRIPE - into)};
	return 1;
}

static void write_parts(struct mixed *m, const struct part *part, unsigned count)
{
	uint64_t offset = part[0].half * HALF + (uint64_t)part[0].first * CUT_BLOCK;
	uint64_t blocks = part[0].count + (count > 1 ? part[1].count : 0);
	uint8_t data[2 * STRIPE * CUT_BLOCK], *at = data;
	struct cowsnap_op op;

	for (unsigned i = 0; i < count; i++) {
		if (!cut_begin(&m->cut, part[i].half, part[i].first, part[i].count))
			return;
	}
	cr_assert_eq(
		cowsnap_write_begin(m->origin, COWSNAP_WRITE, offset, blocks * CUT_BLOCK, &op), 0);
	for (unsigned i = 0; i < count; i++) {
		cut_stamp(&m->cut, part[i].half, part[i].first, part[i].count, at);
		at += part[i].count * CUT_BLOCK;
	}
	cr_assert_eq(
		cowsnap_device_write(test_device(m->device), data, offset, blocks * CUT_BLOCK), 0);
	cowsnap_write_end(&op);
	atomic_fetch_add(&m->written, 1);
	for (unsigned i = 0; i < count; i++)
		cut_end(&m->cut, part[i].half, part[i].first, part[i].count);
}

static void *write_always(void *argument)
{
	struct writer *w = argument;
	struct part part[2];

	while (!atomic_load(&w->m->stop)) {
		unsigned count = choose(w, part);

		if (count)
			write_parts(w->m, part, count);
		if (!seed_below(&w->seed, 16))
			sched_yield();
	}
	return NULL;
}

/* ---- The others ------------------------------------------------------------------------------ */

static void *reclaim_always(void *argument)
{
	struct mixed *m = argument;

	while (!atomic_load(&m->stop)) {
		cr_assert(cowsnap_reclaim(m->ctx, 50) >= 0);
		sched_yield();
	}
	return NULL;
}

static void *grow_once(void *argument)
{
	struct mixed *m = argument;

	while (atomic_load(&m->taken) < TAKES / 2)
		sched_yield();
	test_device_resize(m->device, 2 * HALF);
	cr_assert_eq(cowsnap_device_refresh(test_device(m->device)), 0);
	cr_assert_eq(cowsnap_origin_resize(m->origin, 0), 0);
	return NULL;
}

/* ---- Images ---------------------------------------------------------------------------------- */

static void read_image(struct cowsnap_snapshot *snapshot, struct cut_image *image)
{
	static uint8_t data[2 * HALF];
	struct cowsnap_snapshot_info info;

	cr_assert_eq(cowsnap_snapshot_info(snapshot, &info, sizeof(info)), 0);
	cr_assert_eq(info.state, COWSNAP_SNAPSHOT_ACTIVE);
	cr_assert_eq(cowsnap_snapshot_read(snapshot, data, 0, info.size_bytes), 0);
	for (unsigned half = 0; half < info.size_bytes / HALF; half++) {
		image->has[half] = true;
		for (unsigned b = 0; b < CUT_BLOCKS; b++)
			cr_assert(cut_decode(half, b, data + half * HALF + (size_t)b * CUT_BLOCK,
					  &image->version[half][b]),
				"half %u block %u is torn", half, b);
	}
}

static struct image *take(struct mixed *m, struct cowsnap_store *store)
{
	const struct cowsnap_take_options options = {
		.size = sizeof(options), .deadline_ns = UINT64_C(60000000000)};
	struct cowsnap_take_entry entry = {.origin = m->origin, .store = store};
	struct image *image = calloc(1, sizeof(*image));

	image->cut.called = cut_now(&m->cut);
	cr_assert_eq(cowsnap_take(m->ctx, &options, &entry, 1), 0);
	image->cut.returned = cut_now(&m->cut);
	image->snapshot = entry.snapshot;
	read_image(image->snapshot, &image->cut);
	image->next = m->all;
	m->all = image;
	return image;
}

/* It is what it was when it was read first. */
static void drop(struct image **at)
{
	struct cut_image now = {0};
	struct image *image = *at;

	*at = NULL;
	if (!image)
		return;
	read_image(image->snapshot, &now);
	cr_assert_eq(memcmp(now.has, image->cut.has, sizeof(now.has)), 0);
	cr_assert_eq(memcmp(now.version, image->cut.version, sizeof(now.version)), 0);
	cr_assert_eq(cowsnap_snapshot_drop(image->snapshot), 0);
	cowsnap_snapshot_unref(image->snapshot);
}

/* So that there is something to be wrong about between two takes. */
static void await_writes(struct mixed *m)
{
	uint64_t enough = atomic_load(&m->written) + WRITES;

	while (atomic_load(&m->written) < enough)
		sched_yield();
}

static void take_and_drop(struct mixed *m)
{
	for (unsigned i = 0; i < TAKES; i++) {
		unsigned s = (unsigned)seed_below(&m->seed, STORES);
		struct image **at = &m->held[s][s ? seed_below(&m->seed, HELD) : 0];

		drop(at);
		*at = take(m, m->store[s]);
		atomic_fetch_add(&m->taken, 1);
		await_writes(m);
	}
}

static void check_images(struct mixed *m)
{
	unsigned small = 0, large = 0;
	char message[256];

	for (struct image *image = m->all, *next; image; image = next) {
		const char *wrong = cut_check(&m->cut, &image->cut, message, sizeof(message));

		cr_assert_null(wrong, "%s", wrong);
		small += !image->cut.has[1];
		large += image->cut.has[1];
		next = image->next;
		free(image);
	}
	cr_assert(small >= TAKES / 2 - 1);
	cr_assert(large > 0);
}

/* ---- The run --------------------------------------------------------------------------------- */

static void open_origin(struct mixed *m)
{
	uint8_t data[CUT_BLOCK];

	m->device = test_device_create(
		m->ctx, &(struct test_device_options){.size_bytes = HALF, .max_bytes = 2 * HALF});
	cr_assert_not_null(m->device);
	for (unsigned b = 0; b < 2 * CUT_BLOCKS; b++) {
		cut_fill(b / CUT_BLOCKS, b % CUT_BLOCKS, 0, data);
		cr_assert_eq(cowsnap_device_write(test_device_inner(m->device), data,
				     (uint64_t)b * CUT_BLOCK, CUT_BLOCK),
			0);
	}
	cr_assert_eq(cowsnap_origin_open(m->ctx, test_device(m->device), &m->origin), 0);
}

/* The chunks of the last one are longer than the volume is at first: it ends within one. */
static void open_stores(struct mixed *m)
{
	static const uint64_t chunk_bytes[STORES] = {1024, 512, 8192, 2 * HALF};
	struct cowsnap_transient_options options = {.size = sizeof(options)};
	struct cowsnap_dm_options dm = {.size = sizeof(dm), .chunk_size_bytes = chunk_bytes[0]};

	cr_assert_eq(cowsnap_device_memory(m->ctx, 1 << 20, &m->dm_device), 0);
	dm.device = m->dm_device;
	cr_assert_eq(cowsnap_store_dm_create(m->ctx, &dm, &m->store[0]), 0);
	for (unsigned i = 1; i < STORES; i++) {
		options.chunk_size_bytes = chunk_bytes[i];
		cr_assert_eq(cowsnap_store_transient(m->ctx, &options, &m->store[i]), 0);
	}
}

static void close_all(struct mixed *m)
{
	for (unsigned i = 0; i < STORES; i++) {
		struct cowsnap_store_usage usage;

		for (unsigned h = 0; h < HELD; h++)
			drop(&m->held[i][h]);
		while (cowsnap_reclaim(m->ctx, UINT64_MAX) == 1)
			;
		cr_assert_eq(cowsnap_store_usage(m->store[i], &usage, sizeof(usage)), 0);
		cr_assert_eq(usage.snapshots, 0);
		cr_assert_eq(cowsnap_store_close(m->store[i]), 0);
	}
	cr_assert_eq(cowsnap_origin_close(m->origin), 0);
	cr_assert_eq(test_device_destroy(m->device), 0);
	cr_assert_eq(cowsnap_device_close(m->dm_device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(m->ctx), 0);
	cut_fini(&m->cut);
	free(m);
}

/* 6d45d93ead31 */
Test(mixed, stores_of_all_kinds_while_their_origin_grows, .timeout = 120)
{
	struct mixed *m = calloc(1, sizeof(*m));
	struct writer writer[WRITERS];
	pthread_t reclaimer, grower;

	m->seed = seed_for("mixed load (threads: a replay need not fail again)");
	cut_init(&m->cut, VERSIONS);
	cr_assert_eq(cowsnap_ctx_create(NULL, &m->ctx), 0);
	open_origin(m);
	open_stores(m);
	for (unsigned i = 0; i < WRITERS; i++) {
		writer[i] = (struct writer){.m = m, .number = i, .seed = {seed_next(&m->seed)}};
		cr_assert_eq(pthread_create(&writer[i].thread, NULL, write_always, &writer[i]), 0);
	}
	cr_assert_eq(pthread_create(&reclaimer, NULL, reclaim_always, m), 0);
	cr_assert_eq(pthread_create(&grower, NULL, grow_once, m), 0);
	take_and_drop(m);
	pthread_join(grower, NULL);
	atomic_store(&m->stop, true);
	for (unsigned i = 0; i < WRITERS; i++)
		pthread_join(writer[i].thread, NULL);
	pthread_join(reclaimer, NULL);
	for (unsigned i = 0; i < STORES; i++)
		for (unsigned h = 0; h < HELD; h++)
			drop(&m->held[i][h]);
	check_images(m);
	close_all(m);
}
