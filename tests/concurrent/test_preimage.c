/* SPDX-License-Identifier: MIT
 *
 * Preimages from the host: what it is asked, what its answers do, and that what it hands over is
 * not read; zeroes without space; chunks of zeroes that were read and are not written.
 */
#include "concurrent/async.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "support/dm_scene.h"

#define CHUNK  SCENE_CHUNK
#define CHUNKS (SCENE_BYTES / SCENE_CHUNK)
#define OLD    1
#define NEW    2
#define GIVEN  3
#define ASKS   64

/* A host: answers the same each time, about at most `most` bytes, and knows what it was asked. */
struct host {
	struct cowsnap_preimage preimage;
	enum cowsnap_preimage_kind kind;
	uint64_t most; /* 0: all that is asked */
	bool none;     /* no data */
	uint8_t data[SCENE_BYTES];
	_Atomic unsigned asks;
	struct cowsnap_preimage_ask ask[ASKS];
};

static enum cowsnap_preimage_kind get(void *user, struct cowsnap_preimage_ask *ask)
{
	struct host *h = user;
	unsigned n = atomic_fetch_add(&h->asks, 1);

	cr_assert(n < ASKS);
	h->ask[n] = *ask;
	if (h->most && ask->length > h->most)
		ask->length = h->most;
	if (!h->none)
		ask->data = h->data + ask->offset;
	return h->kind;
}

static void host_init(struct host *h, enum cowsnap_preimage_kind kind)
{
	memset(h, 0, sizeof(*h));
	memset(h->data, GIVEN, sizeof(h->data));
	h->preimage.get = get;
	h->preimage.user = h;
	h->kind = kind;
}

static void expect_ask(const struct host *h, unsigned n, uint64_t offset, uint64_t length)
{
	cr_assert(n < atomic_load(&h->asks), "%u asks", atomic_load(&h->asks));
	cr_assert_eq(h->ask[n].offset, offset, "ask %u: offset %llu", n,
		(unsigned long long)h->ask[n].offset);
	cr_assert_eq(h->ask[n].length, length, "ask %u: length %llu", n,
		(unsigned long long)h->ask[n].length);
}

static void open_stage(struct scene *s, const struct scene_options *options, uint8_t value)
{
	scene_open(s, options);
	/* Without brackets, so that the origins have none yet. */
	for (unsigned o = 0; o < SCENE_ORIGINS; o++) {
		uint8_t *data = malloc(SCENE_BYTES);

		memset(data, value, SCENE_BYTES);
		cr_assert_eq(cowsnap_device_write(s->origin_device[o], data, 0, SCENE_BYTES), 0);
		free(data);
		test_device_reset(s->origin_test[o]);
	}
}

static int write_with(struct scene *s, struct host *h, uint64_t offset, uint64_t length)
{
	static const uint8_t data[SCENE_BYTES] = {0};
	struct cowsnap_op op;
	int rc = cowsnap_write_begin_with(
		s->origin[0], COWSNAP_WRITE, offset, length, h ? &h->preimage : NULL, &op);

	if (rc)
		return rc;
	cr_assert_eq(cowsnap_device_write(s->origin_device[0], data, offset, length), 0);
	cowsnap_write_end(&op);
	return 0;
}

static uint64_t reads(struct scene *s)
{
	return test_device_calls(s->origin_test[0], TEST_IO_READ);
}

static void expect_saved(struct cowsnap_snapshot *snapshot, uint64_t offset, uint64_t length)
{
	struct cowsnap_extent extent;

	cr_assert_eq(cowsnap_snapshot_extent(snapshot, offset, length, &extent), 0);
	cr_assert(extent.saved);
	cr_assert_eq(extent.length, length);
}

static uint64_t used(struct scene *s, unsigned store)
{
	return scene_usage(s, store).used_bytes / CHUNK;
}

/* ---- What is asked --------------------------------------------------------------------------- */

Test(preimage, what_is_given_is_not_read, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct cowsnap_stats stats;
	struct host h;
	struct scene s;

	open_stage(&s, NULL, OLD);
	host_init(&h, COWSNAP_PREIMAGE_GIVEN);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(write_with(&s, &h, 3 * CHUNK + 17, 4 * CHUNK), 0);
	cr_assert_eq(reads(&s), 0, "nothing is read");
	cr_assert_eq(atomic_load(&h.asks), 1);
	expect_ask(&h, 0, 3 * CHUNK, 5 * CHUNK);
	stats = scene_stats(&s);
	cr_assert_eq(stats.origin_reads, 0);
	cr_assert_eq(stats.origin_bytes, 0);
	cr_assert_eq(stats.copied_chunks, 5);
	cr_assert_eq(stats.given_bytes, 5 * CHUNK);
	cr_assert_eq(stats.zero_chunks, 0);
	scene_expect(snapshot, 0, 3 * CHUNK, OLD);
	scene_expect(snapshot, 3 * CHUNK, 5 * CHUNK, GIVEN);
	scene_expect(snapshot, 8 * CHUNK, SCENE_BYTES - 8 * CHUNK, OLD);
	scene_drop(snapshot);
	scene_close(&s);
}

Test(preimage, only_chunks_that_are_copied_are_asked_for, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct host h;
	struct scene s;

	open_stage(&s, NULL, OLD);
	host_init(&h, COWSNAP_PREIMAGE_GIVEN);
	cr_assert_eq(write_with(&s, &h, 0, CHUNK), 0);
	cr_assert_eq(atomic_load(&h.asks), 0, "no snapshot");
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(write_with(&s, NULL, 2 * CHUNK, 2 * CHUNK), 0);
	cr_assert_eq(write_with(&s, &h, 2 * CHUNK, 2 * CHUNK), 0);
	cr_assert_eq(atomic_load(&h.asks), 0, "all of it is done");
	cr_assert_eq(write_with(&s, &h, CHUNK, 5 * CHUNK), 0);
	cr_assert_eq(atomic_load(&h.asks), 2);
	expect_ask(&h, 0, CHUNK, CHUNK);
	expect_ask(&h, 1, 4 * CHUNK, 2 * CHUNK);
	cr_assert_eq(write_with(&s, &h, 0, 6 * CHUNK), 0);
	cr_assert_eq(atomic_load(&h.asks), 3);
	expect_ask(&h, 2, 0, CHUNK);
	scene_expect(snapshot, 2 * CHUNK, 2 * CHUNK, OLD);
	scene_expect(snapshot, 4 * CHUNK, 2 * CHUNK, GIVEN);
	scene_drop(snapshot);
	scene_close(&s);
}

Test(preimage, the_rest_of_a_partial_answer_is_asked_again, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct host h;
	struct scene s;

	open_stage(&s, NULL, OLD);
	host_init(&h, COWSNAP_PREIMAGE_GIVEN);
	h.most = 2 * CHUNK;
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(write_with(&s, &h, 0, 5 * CHUNK), 0);
	cr_assert_eq(atomic_load(&h.asks), 3);
	expect_ask(&h, 0, 0, 5 * CHUNK);
	expect_ask(&h, 1, 2 * CHUNK, 3 * CHUNK);
	expect_ask(&h, 2, 4 * CHUNK, CHUNK);
	cr_assert_eq(reads(&s), 0);
	scene_expect(snapshot, 0, 5 * CHUNK, GIVEN);
	scene_drop(snapshot);
	scene_close(&s);
}

static void try_bad(enum cowsnap_preimage_kind kind, uint64_t most, bool none)
{
	struct cowsnap_snapshot *snapshot;
	struct host h;
	struct scene s;

	open_stage(&s, NULL, OLD);
	host_init(&h, kind);
	h.most = most;
	h.none = none;
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(write_with(&s, &h, 0, 3 * CHUNK), 0);
	cr_assert_eq(atomic_load(&h.asks), 1);
	cr_assert_eq(reads(&s), 1);
	cr_assert_eq(used(&s, 0), 3);
	cr_assert_eq(scene_stats(&s).given_bytes, 0);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_drop(snapshot);
	scene_close(&s);
}

Test(preimage, a_bad_answer_is_taken_for_read, .timeout = 60)
{
	try_bad((enum cowsnap_preimage_kind)3, 0, false);
	try_bad(COWSNAP_PREIMAGE_GIVEN, 0, true);
	try_bad(COWSNAP_PREIMAGE_GIVEN, CHUNK + 1, false);
	try_bad(COWSNAP_PREIMAGE_ZERO, CHUNK - 1, false);
}

static enum cowsnap_preimage_kind get_wrong_length(void *user, struct cowsnap_preimage_ask *ask)
{
	uint64_t *length = user;

	ask->length = *length;
	return COWSNAP_PREIMAGE_ZERO;
}

Test(preimage, a_length_that_cannot_be_is_taken_for_read, .timeout = 60)
{
	uint64_t length[] = {0, 2 * CHUNK, UINT64_MAX};
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	open_stage(&s, NULL, OLD);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	for (unsigned i = 0; i < 3; i++) {
		struct cowsnap_preimage p = {.get = get_wrong_length, .user = &length[i]};
		struct cowsnap_op op;

		cr_assert_eq(cowsnap_write_begin_with(
				     s.origin[0], COWSNAP_WRITE, i * CHUNK, CHUNK, &p, &op),
			0);
		cowsnap_write_end(&op);
		cr_assert_eq(reads(&s), i + 1);
	}
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_drop(snapshot);
	scene_close(&s);
}

Test(preimage, the_origin_knows_who_is_asked, .timeout = 60)
{
	const struct cowsnap_preimage bad = {0};
	struct cowsnap_snapshot *snapshot;
	struct host h, own;
	struct cowsnap_op op;
	struct scene s;

	open_stage(&s, NULL, OLD);
	host_init(&h, COWSNAP_PREIMAGE_ZERO);
	host_init(&own, COWSNAP_PREIMAGE_GIVEN);
	cr_assert_eq(cowsnap_origin_set_preimage(s.origin[0], &bad), -EINVAL);
	cr_assert_eq(
		cowsnap_write_begin_with(s.origin[0], COWSNAP_WRITE, 0, 1, &bad, &op), -EINVAL);
	cr_assert_eq(cowsnap_origin_set_preimage(s.origin[0], &h.preimage), 0);
	cr_assert_eq(cowsnap_origin_set_preimage(s.origin[0], NULL), 0);
	cr_assert_eq(cowsnap_origin_set_preimage(s.origin[0], &h.preimage), 0);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEW), 0);
	cr_assert_eq(write_with(&s, &own, CHUNK, CHUNK), 0, "its own comes first");
	cr_assert_eq(write_with(&s, NULL, 2 * CHUNK, CHUNK), 0);
	cr_assert_eq(atomic_load(&h.asks), 2);
	cr_assert_eq(atomic_load(&own.asks), 1);
	cr_assert_eq(reads(&s), 0);
	scene_expect(snapshot, 0, CHUNK, 0);
	scene_expect(snapshot, CHUNK, CHUNK, GIVEN);
	scene_expect(snapshot, 2 * CHUNK, CHUNK, 0);
	cr_assert_eq(cowsnap_origin_set_preimage(s.origin[0], NULL), -EBUSY);
	scene_drop(snapshot);
	cr_assert_eq(cowsnap_origin_set_preimage(s.origin[0], NULL), -EBUSY, "for ever");
	scene_close(&s);
}

/* ---- Zeroes ---------------------------------------------------------------------------------- */

Test(preimage, zeroes_take_no_space, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot, *older;
	struct host h;
	struct scene s;

	open_stage(&s, NULL, OLD);
	host_init(&h, COWSNAP_PREIMAGE_ZERO);
	older = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(write_with(&s, &h, 0, 40 * CHUNK), 0);
	cr_assert_eq(reads(&s), 0);
	cr_assert_eq(test_device_calls(s.store_test[0], TEST_IO_WRITE), 0);
	cr_assert_eq(used(&s, 0), 0);
	cr_assert_eq(scene_stats(&s).zero_chunks, 40);
	expect_saved(snapshot, 0, 40 * CHUNK);
	scene_expect(snapshot, 0, 40 * CHUNK, 0);
	scene_expect(older, 0, 40 * CHUNK, 0);
	scene_expect(older, 40 * CHUNK, SCENE_BYTES - 40 * CHUNK, OLD);
	scene_drop(snapshot);
	scene_reclaim(&s);
	scene_expect(older, 0, 40 * CHUNK, 0);
	scene_drop(older);
	scene_close(&s);
}

Test(preimage, zeroes_need_no_space, .timeout = 60)
{
	const struct scene_options one = {.limit_chunks = 1};
	struct cowsnap_snapshot *snapshot;
	struct host h;
	struct scene s;

	open_stage(&s, &one, OLD);
	host_init(&h, COWSNAP_PREIMAGE_ZERO);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_WRITE);
	cr_assert_eq(write_with(&s, NULL, 0, CHUNK), 0);
	cr_assert_eq(write_with(&s, NULL, CHUNK, CHUNK), -ENOSPC);
	cr_assert_eq(write_with(&s, &h, CHUNK, SCENE_BYTES - CHUNK), 0);
	scene_expect(snapshot, 0, CHUNK, OLD);
	scene_expect(snapshot, CHUNK, SCENE_BYTES - CHUNK, 0);
	scene_drop(snapshot);
	scene_close(&s);
}

Test(preimage, two_stores_of_two_chunk_sizes, .timeout = 60)
{
	const struct scene_options options = {.chunk_bytes = {CHUNK, 4 * CHUNK}};
	struct cowsnap_snapshot *a, *b;
	struct host h;
	struct scene s;

	open_stage(&s, &options, OLD);
	host_init(&h, COWSNAP_PREIMAGE_GIVEN);
	a = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	b = scene_take(&s, 0, 1, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(write_with(&s, &h, CHUNK, CHUNK), 0);
	cr_assert_eq(atomic_load(&h.asks), 2);
	cr_assert_eq(h.ask[0].length + h.ask[1].length, 5 * CHUNK);
	cr_assert_eq(reads(&s), 0);
	cr_assert_eq(scene_stats(&s).given_bytes, 5 * CHUNK);
	scene_expect(a, 0, CHUNK, OLD);
	scene_expect(a, CHUNK, CHUNK, GIVEN);
	scene_expect(b, 0, 4 * CHUNK, GIVEN);
	scene_expect(b, 4 * CHUNK, SCENE_BYTES - 4 * CHUNK, OLD);
	scene_drop(a);
	scene_drop(b);
	scene_close(&s);
}

/* Three kinds in one bracket. */
static enum cowsnap_preimage_kind get_by_place(void *user, struct cowsnap_preimage_ask *ask)
{
	struct host *h = user;

	ask->length = CHUNK;
	ask->data = h->data;
	return (enum cowsnap_preimage_kind)(ask->offset / CHUNK % 3);
}

static void expect_by_place(struct cowsnap_snapshot *snapshot, uint64_t chunks)
{
	static const uint8_t value[] = {OLD, GIVEN, 0};

	for (uint64_t i = 0; i < chunks; i++)
		scene_expect(snapshot, i * CHUNK, CHUNK, value[i % 3]);
}

Test(preimage, kinds_are_mixed_in_one_bracket, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct host h;
	struct scene s;

	open_stage(&s, NULL, OLD);
	host_init(&h, COWSNAP_PREIMAGE_READ);
	h.preimage.get = get_by_place;
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	/* More jobs than a round has. */
	cr_assert_eq(write_with(&s, &h, 0, SCENE_BYTES), 0);
	cr_assert_eq(scene_stats(&s).origin_bytes, (CHUNKS + 2) / 3 * CHUNK);
	cr_assert_eq(used(&s, 0), CHUNKS - CHUNKS / 3);
	expect_by_place(snapshot, CHUNKS);
	scene_drop(snapshot);
	scene_close(&s);
}

Test(preimage, zeroes_are_written_where_records_cannot_say_it, .timeout = 60)
{
	const struct dm_scene_options options = {0};
	struct cowsnap_snapshot *snapshot;
	struct dm_scene d;
	struct cowsnap_op op;
	struct host h;

	dm_open(&d, &options);
	host_init(&h, COWSNAP_PREIMAGE_ZERO);
	cr_assert_eq(dm_begin(&d), 0);
	snapshot = d.at[0].snapshot;
	cr_assert_eq(cowsnap_write_begin_with(
			     d.at[0].origin, COWSNAP_WRITE, 1024, 2048, &h.preimage, &op),
		0);
	cr_assert_eq(test_device_calls(d.at[0].origin_test, TEST_IO_READ), 0);
	cowsnap_write_end(&op);
	memset(d.at[0].image + 1024, 0, 2048);
	expect_saved(snapshot, 1024, 2048);
	scene_expect(snapshot, 1024, 2048, 0);
	dm_expect_exact(&d, 0, true);
	/* Opened anew. */
	dm_expect_promise(&d, 0);
	dm_close(&d);
}

/* ---- Failures -------------------------------------------------------------------------------- */

Test(preimage, a_failed_write_of_what_was_given, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct host h;
	struct scene s;

	open_stage(&s, NULL, OLD);
	host_init(&h, COWSNAP_PREIMAGE_GIVEN);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(write_with(&s, &h, 0, CHUNK), 0);
	test_device_fail(s.store_test[0], TEST_IO_WRITE, 1, true, -EIO);
	cr_assert_eq(write_with(&s, &h, CHUNK, CHUNK), 0);
	scene_expect_state(snapshot, COWSNAP_SNAPSHOT_INVALID, -EIO);
	cr_assert_eq(reads(&s), 0);
	test_device_heal(s.store_test[0]);
	scene_drop(snapshot);
	scene_close(&s);
}

Test(preimage, what_is_given_needs_no_origin, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct host h;
	struct scene s;

	open_stage(&s, NULL, OLD);
	host_init(&h, COWSNAP_PREIMAGE_GIVEN);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	test_device_fail(s.origin_test[0], TEST_IO_READ, 1, true, -EIO);
	cr_assert_eq(write_with(&s, &h, 0, SCENE_BYTES), 0);
	scene_expect(snapshot, 0, SCENE_BYTES, GIVEN);
	scene_drop(snapshot);
	scene_close(&s);
}

/* ---- In queues ------------------------------------------------------------------------------- */

static void called(struct cowsnap_op *op, void *user, int error)
{
	struct async *a = user;

	(void)op;
	a->error = error;
	if (a->loop)
		a->loop->callbacks++;
	atomic_fetch_add(&a->calls, 1);
}

static int begin_with(struct async *a, struct loop *l, struct host *h)
{
	a->loop = l;
	return cowsnap_write_begin_with_async(l->scene->origin[0], l->queue, COWSNAP_WRITE,
		a->offset, a->length, &h->preimage, &a->op, called, a);
}

static void in_a_loop(const struct scene_options *options)
{
	struct async a = {.offset = 0, .length = 30 * CHUNK},
		     b = {.offset = 30 * CHUNK, .length = CHUNK};
	struct cowsnap_snapshot *snapshot;
	struct host h;
	struct scene s;
	struct loop l;

	open_stage(&s, options, OLD);
	loop_open(&l, &s, 1);
	host_init(&h, COWSNAP_PREIMAGE_READ);
	h.preimage.get = get_by_place;
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(begin_with(&a, &l, &h), COWSNAP_PENDING);
	cr_assert_eq(begin_with(&b, &l, &h), COWSNAP_PENDING, "it has to wait for a record");
	loop_until(&l, &a);
	loop_until(&l, &b);
	cr_assert_eq(a.error, 0);
	cr_assert_eq(b.error, 0);
	cowsnap_write_end(&a.op);
	cowsnap_write_end(&b.op);
	cr_assert_eq(scene_stats(&s).origin_bytes, 11 * CHUNK);
	expect_by_place(snapshot, 31);
	scene_drop(snapshot);
	loop_close(&l);
	scene_close(&s);
}

Test(preimage, in_a_loop, .timeout = 60)
{
	const struct scene_options reverse = {
		.engine = COWSNAP_ENGINE_LOOP, .submits = true, .mode = TEST_ASYNC_REVERSE};
	struct scene_options skipping = reverse;

	in_a_loop(&reverse);
	skipping.store_flags = COWSNAP_TRANSIENT_SKIP_ZEROES;
	in_a_loop(&skipping);
}

Test(preimage, on_a_worker, .timeout = 60)
{
	const struct scene_options options = {.engine = COWSNAP_ENGINE_WORKERS, .workers = 1};
	struct async a = {.offset = 0};
	struct cowsnap_snapshot *snapshot;
	struct host h;
	struct scene s;

	open_stage(&s, &options, OLD);
	host_init(&h, COWSNAP_PREIMAGE_GIVEN);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(cowsnap_write_begin_with_async(s.origin[0], NULL, COWSNAP_WRITE, 0, CHUNK,
			     &h.preimage, &a.op, called, &a),
		COWSNAP_PENDING);
	while (!atomic_load(&a.calls))
		sched_yield();
	cowsnap_write_end(&a.op);
	cr_assert_eq(reads(&s), 0);
	scene_expect(snapshot, 0, CHUNK, GIVEN);
	scene_drop(snapshot);
	scene_close(&s);
}

/* ---- Chunks of zeroes that are read ---------------------------------------------------------- */

static const struct scene_options skipping = {.store_flags = COWSNAP_TRANSIENT_SKIP_ZEROES};

Test(preimage, a_volume_of_zeroes_takes_no_space, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	open_stage(&s, &skipping, 0);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scene_write(&s, 0, 0, SCENE_BYTES, NEW), 0);
	cr_assert_eq(used(&s, 0), 0);
	cr_assert_eq(test_device_calls(s.store_test[0], TEST_IO_WRITE), 0);
	cr_assert_eq(scene_stats(&s).zero_chunks, CHUNKS);
	cr_assert_eq(scene_stats(&s).origin_bytes, SCENE_BYTES);
	expect_saved(snapshot, 0, SCENE_BYTES);
	scene_expect(snapshot, 0, SCENE_BYTES, 0);
	scene_drop(snapshot);
	scene_close(&s);
}

/* Chunk i has a byte that is not zero, its first, last or some other, if bit i % 8 of the pattern
 * is set. */
static uint64_t fill(uint8_t *image, uint64_t length, unsigned pattern)
{
	uint64_t dense = 0;

	memset(image, 0, length);
	for (uint64_t at = 0; at < length; at += CHUNK) {
		uint64_t chunk = at / CHUNK, last = (length - at < CHUNK ? length - at : CHUNK) - 1;
		const uint64_t place[] = {0, last, last / 2};

		if (!(pattern >> chunk % 8 & 1))
			continue;
		image[at + place[chunk % 3]] = 1;
		dense++;
	}
	return dense;
}

static void expect_image(struct cowsnap_snapshot *snapshot, const uint8_t *image, uint64_t length)
{
	uint8_t *data = malloc(length);

	cr_assert_eq(cowsnap_snapshot_read(snapshot, data, 0, length), 0);
	cr_assert_eq(memcmp(data, image, length), 0);
	free(data);
}

static void skip_some(unsigned pattern)
{
	uint8_t *image = malloc(SCENE_BYTES);
	struct cowsnap_snapshot *snapshot;
	uint64_t dense = fill(image, SCENE_BYTES, pattern);
	struct scene s;

	open_stage(&s, &skipping, 0);
	cr_assert_eq(cowsnap_device_write(s.origin_device[0], image, 0, SCENE_BYTES), 0);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scene_write(&s, 0, 0, SCENE_BYTES, NEW), 0);
	cr_assert_eq(used(&s, 0), dense, "%llu used, not %llu", (unsigned long long)used(&s, 0),
		(unsigned long long)dense);
	cr_assert_eq(test_device_bytes(s.store_test[0], TEST_IO_WRITE), dense * CHUNK);
	cr_assert_eq(scene_stats(&s).zero_chunks, CHUNKS - dense);
	expect_image(snapshot, image, SCENE_BYTES);
	scene_drop(snapshot);
	scene_close(&s);
	free(image);
}

Test(preimage, runs_of_zeroes_between_others, .timeout = 60)
{
	for (unsigned pattern = 0; pattern < 256; pattern += 17)
		skip_some(pattern);
	skip_some(0x96);
	skip_some(0x7e);
}

Test(preimage, runs_of_zeroes_in_a_loop, .timeout = 60)
{
	const struct scene_options reverse = {.engine = COWSNAP_ENGINE_LOOP,
		.submits = true,
		.store_flags = COWSNAP_TRANSIENT_SKIP_ZEROES,
		.mode = TEST_ASYNC_REVERSE};
	uint8_t *image = malloc(SCENE_BYTES);
	struct cowsnap_snapshot *snapshot;
	struct async a = {0};
	uint64_t dense = fill(image, SCENE_BYTES, 0xb2);
	struct scene s;
	struct loop l;

	open_stage(&s, &reverse, 0);
	loop_open(&l, &s, 1);
	cr_assert_eq(cowsnap_device_write(s.origin_device[0], image, 0, SCENE_BYTES), 0);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(async_begin(&a, &l, 0, 0, SCENE_BYTES), COWSNAP_PENDING);
	loop_until(&l, &a);
	cr_assert_eq(a.error, 0);
	async_write(&a, &s, NEW);
	cr_assert_eq(used(&s, 0), dense);
	expect_image(snapshot, image, SCENE_BYTES);
	scene_drop(snapshot);
	loop_close(&l);
	scene_close(&s);
	free(image);
}

/* An origin that ends inside of a chunk, on a store that writes blocks. */
struct odd {
	struct cowsnap_ctx *ctx;
	struct test_device *origin_test, *store_test;
	struct cowsnap_origin *origin;
	struct cowsnap_store *store;
	struct cowsnap_snapshot *snapshot;
};

#define ODD_BYTES (2 * CHUNK + 100)

static void odd_open(struct odd *o, uint32_t block_size, uint32_t flags, const uint8_t *image)
{
	struct cowsnap_transient_options options = {.size = sizeof(options), .flags = flags};
	struct cowsnap_take_entry entry = {0};

	cr_assert_eq(cowsnap_ctx_create(NULL, &o->ctx), 0);
	o->origin_test =
		test_device_create(o->ctx, &(struct test_device_options){.size_bytes = ODD_BYTES});
	o->store_test = test_device_create(o->ctx,
		&(struct test_device_options){.size_bytes = 1 << 20, .block_size = block_size});
	options.device = test_device(o->store_test);
	cr_assert_eq(cowsnap_store_transient(o->ctx, &options, &o->store), 0);
	cr_assert_eq(cowsnap_device_write(test_device(o->origin_test), image, 0, ODD_BYTES), 0);
	cr_assert_eq(cowsnap_origin_open(o->ctx, test_device(o->origin_test), &o->origin), 0);
	entry.origin = o->origin;
	entry.store = o->store;
	cr_assert_eq(cowsnap_take(o->ctx, NULL, &entry, 1), 0);
	o->snapshot = entry.snapshot;
	test_device_reset(o->origin_test);
}

static void odd_close(struct odd *o)
{
	scene_drop(o->snapshot);
	cr_assert_eq(cowsnap_origin_close(o->origin), 0);
	cr_assert_eq(cowsnap_store_close(o->store), 0);
	cr_assert_eq(test_device_destroy(o->origin_test), 0);
	cr_assert_eq(test_device_destroy(o->store_test), 0);
	cr_assert_eq(cowsnap_ctx_destroy(o->ctx), 0);
}

static void odd_write(struct odd *o, struct host *h)
{
	static const uint8_t data[ODD_BYTES] = {NEW};
	struct cowsnap_op op;

	cr_assert_eq(cowsnap_write_begin_with(
			     o->origin, COWSNAP_WRITE, 0, ODD_BYTES, h ? &h->preimage : NULL, &op),
		0);
	cr_assert_eq(cowsnap_device_write(test_device(o->origin_test), data, 0, ODD_BYTES), 0);
	cowsnap_write_end(&op);
}

Test(preimage, the_last_chunk_is_a_part_of_one, .timeout = 60)
{
	static const uint32_t block[] = {1, 512};
	uint8_t image[ODD_BYTES], zeroes[ODD_BYTES] = {0};
	struct host h;
	struct odd o;

	memset(image, OLD, sizeof(image));
	for (unsigned i = 0; i < 2; i++) {
		odd_open(&o, block[i], 0, image);
		host_init(&h, COWSNAP_PREIMAGE_GIVEN);
		memset(h.data, OLD, sizeof(h.data));
		odd_write(&o, &h);
		expect_ask(&h, 0, 0, ODD_BYTES);
		/* Data that ends in a part of a block is not written as it is. */
		cr_assert_eq(test_device_bytes(o.origin_test, TEST_IO_READ), i ? 100 : 0);
		expect_image(o.snapshot, image, ODD_BYTES);
		odd_close(&o);

		odd_open(&o, block[i], 0, image);
		host_init(&h, COWSNAP_PREIMAGE_ZERO);
		odd_write(&o, &h);
		cr_assert_eq(test_device_calls(o.origin_test, TEST_IO_READ), 0);
		expect_image(o.snapshot, zeroes, ODD_BYTES);
		odd_close(&o);
	}
}

Test(preimage, a_last_chunk_of_zeroes_is_skipped, .timeout = 60)
{
	static const uint32_t block[] = {1, 512};
	struct cowsnap_store_usage usage;
	uint8_t image[ODD_BYTES];
	struct odd o;

	for (unsigned pattern = 0; pattern < 16; pattern++) {
		uint64_t dense = fill(image, ODD_BYTES, pattern / 2);

		odd_open(&o, block[pattern % 2], COWSNAP_TRANSIENT_SKIP_ZEROES, image);
		odd_write(&o, NULL);
		cr_assert_eq(cowsnap_store_usage(o.store, &usage, sizeof(usage)), 0);
		cr_assert_eq(usage.used_bytes, dense * CHUNK);
		expect_image(o.snapshot, image, ODD_BYTES);
		odd_close(&o);
	}
}

/* ---- Many ------------------------------------------------------------------------------------ */

#define WRITERS 4

struct writer {
	pthread_t thread;
	struct scene *scene;
	struct host *host;
	unsigned number;
};

static void *write_all(void *user)
{
	struct writer *w = user;

	for (uint64_t i = 0; i < CHUNKS; i++) {
		uint64_t chunk = (i * 5 + w->number * 7) % CHUNKS;
		struct cowsnap_op op;

		cr_assert_eq(cowsnap_write_begin_with(w->scene->origin[0], COWSNAP_WRITE,
				     chunk * CHUNK, CHUNK, &w->host->preimage, &op),
			0);
		cowsnap_write_end(&op);
	}
	return NULL;
}

Test(preimage, several_writers, .timeout = 60)
{
	for (unsigned round = 0; round < 8; round++) {
		struct writer w[WRITERS];
		struct cowsnap_snapshot *snapshot;
		struct host h;
		struct scene s;

		open_stage(&s, round % 2 ? &skipping : NULL, OLD);
		host_init(&h, COWSNAP_PREIMAGE_READ);
		h.preimage.get = get_by_place;
		snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
		for (unsigned i = 0; i < WRITERS; i++) {
			w[i] = (struct writer){.scene = &s, .host = &h, .number = i};
			cr_assert_eq(pthread_create(&w[i].thread, NULL, write_all, &w[i]), 0);
		}
		for (unsigned i = 0; i < WRITERS; i++)
			cr_assert_eq(pthread_join(w[i].thread, NULL), 0);
		cr_assert_eq(scene_stats(&s).copied_chunks, CHUNKS);
		cr_assert_eq(scene_stats(&s).origin_bytes, (CHUNKS + 2) / 3 * CHUNK);
		expect_by_place(snapshot, CHUNKS);
		scene_drop(snapshot);
		scene_close(&s);
	}
}
