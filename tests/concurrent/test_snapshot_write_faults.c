/* SPDX-License-Identifier: MIT
 *
 * Writing to snapshots: what is left when a device, an allocation or the host's patience fails at
 * each point of it.
 */
#include "concurrent/put.h"

#include <errno.h>

#include "concurrent/async.h"
#include "support/pending.h"

/* ---- Failures at each point ------------------------------------------------------------------ */

#define STEPS 5

static const struct {
	enum cowsnap_write_kind kind;
	uint64_t offset, length;
} sequence[STEPS] = {
	{COWSNAP_WRITE, 0, 2 * CHUNK},                     /* whole */
	{COWSNAP_WRITE, 4 * CHUNK + 10, CHUNK},            /* parts */
	{COWSNAP_WRITE, CHUNK / 2, CHUNK},                 /* in place */
	{COWSNAP_WRITE_ZEROES, 8 * CHUNK, 2 * CHUNK},      /* without space */
	{COWSNAP_WRITE, 8 * CHUNK + 5, CHUNK + CHUNK / 2}, /* over those */
};

static int sequence_step(struct cowsnap_snapshot *snapshot, unsigned i)
{
	if (sequence[i].kind == COWSNAP_WRITE)
		return put(snapshot, sequence[i].offset, sequence[i].length, (uint8_t)(MINE + i));
	return zero(snapshot, sequence[i].offset, sequence[i].length);
}

/* What a step that has failed leaves: old or new, byte by byte of a write in place, chunk by chunk
 * of others. */
static void sequence_check(struct cowsnap_snapshot *snapshot, uint8_t *image, unsigned i, int rc)
{
	uint64_t from = sequence[i].offset, to = from + sequence[i].length;
	uint8_t value = sequence[i].kind == COWSNAP_WRITE ? (uint8_t)(MINE + i) : 0;
	static uint8_t now[ALL];

	cr_assert_eq(cowsnap_snapshot_read(snapshot, now, 0, ALL), 0);
	for (uint64_t at = 0; at < ALL; at++) {
		bool inside = at >= from && at < to;

		if (inside && !rc)
			cr_assert_eq(
				now[at], value, "step %u byte %llu", i, (unsigned long long)at);
		else if (!inside || now[at] != value)
			cr_assert_eq(
				now[at], image[at], "step %u byte %llu", i, (unsigned long long)at);
		if (inside && i != 2 && at % CHUNK && at != from)
			cr_assert_eq(now[at] == value, now[at - 1] == value, "a chunk in part");
	}
	memcpy(image, now, ALL);
}

/* The device fails the @n-th call of a kind that the steps make. */
struct fault {
	struct test_device *device;
	enum test_io kind;
	uint64_t n; /* those to come; 0: it has failed */
	bool halfway;
};

static int faulty_step(struct fault *f, struct cowsnap_snapshot *snapshot, unsigned i)
{
	uint64_t before = test_device_calls(f->device, f->kind), calls;
	int rc;

	if (f->n && f->halfway)
		test_device_fail_short(f->device, f->kind, f->n, false, -EIO);
	else if (f->n)
		test_device_fail(f->device, f->kind, f->n, false, -EIO);
	rc = sequence_step(snapshot, i);
	calls = test_device_calls(f->device, f->kind) - before;
	cr_assert_eq(rc, f->n && calls >= f->n ? -EIO : 0);
	f->n -= calls < f->n ? calls : f->n;
	test_device_heal(f->device);
	return rc;
}

/* Returns: did anything fail? */
static bool device_sweep(bool store, struct fault f)
{
	static uint8_t image[ALL];
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	scene_open(&s, NULL);
	origin_write(&s, 0, ALL, OLD);
	memset(image, OLD, ALL);
	snapshot = take(&s);
	f.device = store ? s.store_test[0] : s.origin_test[0];
	for (unsigned i = 0; i < STEPS; i++) {
		int rc = faulty_step(&f, snapshot, i);

		sequence_check(snapshot, image, i, rc);
	}
	for (unsigned i = 0; i < STEPS; i++) {
		cr_assert_eq(sequence_step(snapshot, i), 0, "no claim is left");
		sequence_check(snapshot, image, i, 0);
	}
	cr_assert_eq(used_chunks(&s), 6);
	scene_drop(snapshot);
	scene_close(&s);
	return !f.n;
}

Test(snapshot_write_faults, each_call_of_a_device_fails)
{
	unsigned failures = 0;

	struct fault f = {.kind = TEST_IO_WRITE, .n = 1};

	for (; device_sweep(true, f); f.n++)
		failures++;
	f.halfway = true;
	for (f.n = 1; device_sweep(true, f); f.n++)
		failures++;
	f.kind = TEST_IO_READ;
	for (f.n = 1; device_sweep(false, f); f.n++)
		failures++;
	cr_assert_geq(failures, 10);
}

/* d136f2efdf3a: on no way, whatever fails, is anything left behind. */
Test(snapshot_write_faults, each_allocation_fails, .timeout = 60)
{
	static uint8_t image[ALL];

	for (uint64_t n = 1;; n++) {
		struct fail_alloc *memory = fail_alloc_create(true);
		struct cowsnap_snapshot *snapshot;
		struct scene s;
		bool failed;

		scene_open(&s, &(struct scene_options){.allocator = fail_alloc_table(memory)});
		origin_write(&s, 0, ALL, OLD);
		memset(image, OLD, ALL);
		snapshot = take(&s);
		fail_alloc_at(memory, n, false);
		for (unsigned i = 0; i < STEPS; i++) {
			int rc = sequence_step(snapshot, i);

			cr_assert(rc == 0 || (rc == -ENOMEM && fail_alloc_failed(memory)));
			sequence_check(snapshot, image, i, rc);
		}
		failed = fail_alloc_failed(memory) > 0;
		fail_alloc_at(memory, 0, false);
		scene_drop(snapshot);
		scene_close(&s);
		fail_alloc_destroy(memory);
		if (!failed)
			return;
	}
}

/* ---- Cancelled at each point ----------------------------------------------------------------- */

static unsigned release_one(struct scene *s)
{
	return test_async_release(s->store_async[0], 1, TEST_RELEASE_FIRST) ||
	       test_async_release(s->origin_async[0], 1, TEST_RELEASE_FIRST);
}

static int begin_step(struct pending_op *p, struct cowsnap_snapshot *snapshot, struct loop *l,
	const uint8_t *data, unsigned i)
{
	memset(p, 0, sizeof(*p));
	return cowsnap_snapshot_write_async(snapshot, l->queue, sequence[i].kind,
		sequence[i].kind == COWSNAP_WRITE ? data : NULL, sequence[i].offset,
		sequence[i].length, &p->op, pending_done, p);
}

static void finish(struct scene *s, struct loop *l, struct pending_op *p)
{
	while (!atomic_load(&p->calls)) {
		release_one(s);
		pending_settle(l->queue);
	}
}

/* Cancels step @i after @after of its requests have ended. Returns: false if there were fewer. */
static bool cancel_step(struct scene *s, struct loop *l, struct cowsnap_snapshot *snapshot,
	uint8_t *image, unsigned i, unsigned after)
{
	static uint8_t data[2 * CHUNK];
	struct pending_op p;
	int rc;

	memset(data, (int)(MINE + i), sizeof(data));
	cr_assert_eq(begin_step(&p, snapshot, l, data, i), COWSNAP_PENDING);
	pending_settle(l->queue);
	for (; after && !atomic_load(&p.calls); after--) {
		release_one(s);
		pending_settle(l->queue);
	}
	if (atomic_load(&p.calls)) {
		sequence_check(snapshot, image, i, p.error);
		return false;
	}
	rc = cowsnap_op_cancel(&p.op);
	cr_assert_eq(rc, 0);
	finish(s, l, &p);
	cr_assert(p.error == -ECANCELED || p.error == 0, "error %d", p.error);
	cr_assert_eq(atomic_load(&p.calls), 1);
	sequence_check(snapshot, image, i, p.error);
	return true;
}

Test(snapshot_write_faults, cancelled_at_each_request)
{
	static uint8_t image[ALL];
	unsigned cancelled = 0;

	for (unsigned after = 0;; after++) {
		struct cowsnap_snapshot *snapshot;
		bool any = false;
		struct scene s;
		struct loop l;

		scene_open(&s, &(struct scene_options){.engine = COWSNAP_ENGINE_LOOP,
				       .submits = true,
				       .mode = TEST_ASYNC_HELD});
		cr_assert_eq(cowsnap_device_zero(s.origin_device[0], 0, ALL), 0);
		origin_write(&s, 0, ALL, OLD);
		memset(image, OLD, ALL);
		snapshot = take(&s);
		loop_open(&l, &s, 4);
		for (unsigned i = 0; i < STEPS; i++) {
			bool was = cancel_step(&s, &l, snapshot, image, i, after);

			any = any || was;
			cancelled += was;
		}
		loop_close(&l);
		for (unsigned i = 0; i < STEPS; i++) {
			cr_assert_eq(sequence_step(snapshot, i), 0, "no claim is left");
			sequence_check(snapshot, image, i, 0);
		}
		cr_assert_eq(used_chunks(&s), 6);
		scene_drop(snapshot);
		scene_close(&s);
		if (!any)
			break;
	}
	cr_assert_geq(cancelled, 8);
}

/* Two writes of one chunk: the second waits for the claim of the first. */
Test(snapshot_write_faults, cancelled_while_it_waits_for_another)
{
	static const uint8_t data[100] = {MINE, MINE, MINE};
	struct pending_op first = {0}, second = {0};
	struct cowsnap_snapshot *snapshot;
	struct scene s;
	struct loop l;

	scene_open(&s,
		&(struct scene_options){
			.engine = COWSNAP_ENGINE_LOOP, .submits = true, .mode = TEST_ASYNC_HELD});
	snapshot = take(&s);
	loop_open(&l, &s, 4);
	cr_assert_eq(cowsnap_snapshot_write_async(snapshot, l.queue, COWSNAP_WRITE, data, 0, 3,
			     &first.op, pending_done, &first),
		COWSNAP_PENDING);
	cr_assert_eq(cowsnap_snapshot_write_async(snapshot, l.queue, COWSNAP_WRITE, data, 200, 3,
			     &second.op, pending_done, &second),
		COWSNAP_PENDING);
	pending_settle(l.queue);
	cr_assert_eq(cowsnap_op_cancel(&second.op), 0);
	pending_settle(l.queue);
	finish(&s, &l, &first);
	finish(&s, &l, &second);
	cr_assert_eq(first.error, 0);
	cr_assert_eq(second.error, -ECANCELED);
	scene_expect(snapshot, 0, 3, MINE);
	scene_expect(snapshot, 3, CHUNK, SCENE_BLANK);
	loop_close(&l);
	scene_drop(snapshot);
	scene_close(&s);
}

/* ---- The persistent store -------------------------------------------------------------------- */

/* What the failed write of [offset, offset + length) has left after a crash: all of it, or nothing:
 * its record may have reached the device before the error. Then that is the image. */
static void dm_adopt(struct dm_scene *s, uint64_t offset, uint64_t length, uint8_t value)
{
	uint8_t now[512], all[512];

	cr_assert_eq(dm_detach(s, 0), 0);
	cr_assert_eq(dm_attach(s, 0), 0);
	memset(all, value, length);
	cr_assert_eq(cowsnap_snapshot_read(s->at[0].snapshot, now, offset, length), 0);
	if (memcmp(now, all, length) == 0)
		memset(s->at[0].image + offset, value, length);
}

static void dm_place(uint64_t i, uint64_t *offset, uint64_t *length)
{
	*offset = i * 8192 + i % 2 * 100;
	*length = i % 2 ? 100 : 512;
}

/* Each call of the store's device fails in turn. Returns: did it? */
static bool dm_sweep(enum test_io kind, uint64_t n)
{
	uint64_t i = 0, offset, length;
	struct dm_scene s;
	int rc = 0;
	bool failed;

	dm_open(&s, &(struct dm_scene_options){.on_full = COWSNAP_LOSER_WRITE});
	cr_assert_eq(dm_begin(&s), 0);
	test_device_fail(s.at[0].store_test, kind, n, false, -EIO);
	for (; i < 4 && !rc; i++) {
		dm_place(i, &offset, &length);
		rc = dm_put(&s, offset, length, (uint8_t)(MINE + i));
		cr_assert(rc == 0 || test_device_failed(s.at[0].store_test), "error %d", rc);
	}
	failed = test_device_failed(s.at[0].store_test) > 0;
	test_device_heal(s.at[0].store_test);
	dm_expect_exact(&s, 0, true);
	if (rc)
		dm_adopt(&s, offset, length, (uint8_t)(MINE + i - 1));
	dm_expect_exact(&s, 0, true);
	dm_expect_promise(&s, 0);
	dm_close(&s);
	return failed;
}

Test(snapshot_write_faults, each_call_of_a_persistent_store_fails, .timeout = 60)
{
	static const enum test_io kinds[] = {TEST_IO_WRITE, TEST_IO_FLUSH};
	unsigned failures = 0;

	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		for (uint64_t n = 1; dm_sweep(kinds[i], n); n++)
			failures++;
	}
	cr_assert_geq(failures, 8);
}
