/* SPDX-License-Identifier: MIT
 *
 * Reading snapshots without waiting: side by side, against a writer, with errors, cancelled. And
 * what a read that never ends holds up.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "support/fail_alloc.h"
#include "support/pending.h"
#include "support/seed.h"
#include "support/shuffled_device.h"
#include "support/test.h"

#define CHUNK  UINT64_C(512)
#define CHUNKS 128u
#define BYTES  (CHUNK * CHUNKS)
#define OLD    0
#define NEW    7
#define UNREAD 0xee

/* One origin and its store, both slow. */
struct rig {
	struct cowsnap_ctx *ctx;
	struct cowsnap_queue *queue;
	struct shuffled origin_slow, store_slow;
	struct cowsnap_origin *origin;
	struct cowsnap_store *store;
	struct cowsnap_snapshot *snapshot;
	uint8_t data[BYTES];
};

static void rig_open(struct rig *r, enum cowsnap_engine engine, uint32_t depth)
{
	const struct cowsnap_ctx_options options = {.size = sizeof(options),
		.engine = engine,
		.workers = engine == COWSNAP_ENGINE_WORKERS ? 2 : 0};
	struct cowsnap_transient_options transient = {
		.size = sizeof(transient), .chunk_size_bytes = CHUNK};
	struct cowsnap_take_entry entry = {0};

	memset(r, 0, sizeof(*r));
	cr_assert_eq(cowsnap_ctx_create(&options, &r->ctx), 0);
	shuffled_open(&r->origin_slow, r->ctx, BYTES);
	shuffled_open(&r->store_slow, r->ctx, 4 * BYTES);
	cr_assert_eq(cowsnap_origin_open(r->ctx, r->origin_slow.device, &r->origin), 0);
	transient.device = r->store_slow.device;
	cr_assert_eq(cowsnap_store_transient(r->ctx, &transient, &r->store), 0);
	cr_assert_eq(cowsnap_queue_create(r->ctx, depth, &r->queue), 0);
	entry.origin = r->origin;
	entry.store = r->store;
	cr_assert_eq(cowsnap_take(r->ctx, NULL, &entry, 1), 0);
	r->snapshot = entry.snapshot;
	memset(r->data, UNREAD, sizeof(r->data));
}

static void rig_close(struct rig *r)
{
	int rc = cowsnap_snapshot_drop(r->snapshot);

	cr_assert(rc == 0 || rc == -EIDRM);
	cowsnap_snapshot_unref(r->snapshot);
	cr_assert_eq(cowsnap_store_drain(r->store, UINT64_MAX), 0);
	cr_assert_eq(cowsnap_queue_close(r->queue), 0);
	cr_assert_eq(cowsnap_store_close(r->store), 0);
	cr_assert_eq(cowsnap_origin_close(r->origin), 0);
	shuffled_close(&r->store_slow);
	shuffled_close(&r->origin_slow);
	cr_assert_eq(cowsnap_ctx_destroy(r->ctx), 0);
}

/* A whole bracket that waits: these chunks are NEW. */
static void overwrite(struct rig *r, unsigned first, unsigned count)
{
	struct cowsnap_op op;
	uint8_t data[BYTES];

	memset(data, NEW, sizeof(data));
	cr_assert_eq(
		cowsnap_write_begin(r->origin, COWSNAP_WRITE, first * CHUNK, count * CHUNK, &op),
		0);
	cr_assert_eq(
		cowsnap_device_write(r->origin_slow.inner, data, first * CHUNK, count * CHUNK), 0);
	cowsnap_write_end(&op);
}

/* Each second chunk of these is saved. */
static void overwrite_each_second(struct rig *r, unsigned count)
{
	for (unsigned i = 0; i < count; i += 2)
		overwrite(r, i, 1);
}

static int start(struct rig *r, struct pending_op *p, unsigned first, unsigned count)
{
	memset(p, 0, sizeof(*p));
	return cowsnap_snapshot_read_async(r->snapshot, r->queue, r->data + first * CHUNK,
		first * CHUNK, count * CHUNK, &p->op, pending_done, p);
}

static void expect(const struct rig *r, unsigned first, unsigned count, uint8_t value)
{
	for (uint64_t i = first * CHUNK; i < (first + count) * CHUNK; i++)
		cr_assert_eq(
			r->data[i], value, "byte %llu is %u", (unsigned long long)i, r->data[i]);
}

static size_t requests(struct rig *r)
{
	return shuffled_count(&r->origin_slow) + shuffled_count(&r->store_slow);
}

static size_t end_all(struct rig *r)
{
	return shuffled_end_all(&r->store_slow) + shuffled_end_all(&r->origin_slow);
}

/* Answers whatever is asked, last one first, until the read has ended. */
static void finish(struct rig *r, struct pending_op *p)
{
	while (!atomic_load(&p->calls)) {
		end_all(r);
		cr_assert(pending_poll(r->queue, PENDING_WAIT_MS), "nothing happens any more");
	}
	cr_assert_eq(atomic_load(&p->calls), 1);
	cr_assert_eq(requests(r), 0);
}

static struct cowsnap_stats stats_of(struct rig *r)
{
	struct cowsnap_stats stats;

	cr_assert_eq(cowsnap_origin_stats(r->origin, &stats, sizeof(stats)), 0);
	return stats;
}

/* ---- As it should be ------------------------------------------------------------------------- */

Test(async_read, where_devices_are_called_it_ends_inside_the_call)
{
	struct pending_op p;
	struct rig r;

	rig_open(&r, COWSNAP_ENGINE_INLINE, 1);
	overwrite_each_second(&r, CHUNKS);
	cr_assert_eq(start(&r, &p, 0, CHUNKS), 0);
	cr_assert_eq(atomic_load(&p.calls), 0);
	cr_assert_eq(requests(&r), 0);
	expect(&r, 0, CHUNKS, OLD);
	rig_close(&r);
}

Test(async_read, pieces_are_submitted_side_by_side_and_end_in_any_order)
{
	struct pending_op p;
	struct rig r;

	rig_open(&r, COWSNAP_ENGINE_LOOP, 1);
	overwrite_each_second(&r, 10);
	cr_assert_eq(start(&r, &p, 0, 10), COWSNAP_PENDING);
	cr_assert_eq(shuffled_count(&r.origin_slow), 5);
	cr_assert_eq(shuffled_count(&r.store_slow), 5);
	for (size_t left = 5; left; left--) {
		cr_assert(shuffled_end(&r.origin_slow, left / 2, 0));
		pending_settle(r.queue);
		cr_assert_eq(atomic_load(&p.calls), 0);
	}
	cr_assert_eq(shuffled_end_all(&r.store_slow), 5);
	cr_assert_eq(atomic_load(&p.calls), 0, "only in a poll");
	finish(&r, &p);
	cr_assert_eq(p.error, 0);
	expect(&r, 0, 10, OLD);
	rig_close(&r);
}

Test(async_read, more_pieces_than_a_record_has_room_for)
{
	struct pending_op p;
	struct rig r;

	rig_open(&r, COWSNAP_ENGINE_LOOP, 1);
	overwrite_each_second(&r, CHUNKS);
	cr_assert_eq(start(&r, &p, 0, CHUNKS), COWSNAP_PENDING);
	cr_assert_lt(requests(&r), CHUNKS);
	finish(&r, &p);
	cr_assert_eq(p.error, 0);
	expect(&r, 0, CHUNKS, OLD);
	cr_assert_eq(stats_of(&r).reread_chunks, 0);
	rig_close(&r);
}

/* The device answers with what was written meanwhile; the second look finds it saved. */
Test(async_read, what_is_overwritten_meanwhile_is_read_again)
{
	struct pending_op p;
	struct rig r;

	rig_open(&r, COWSNAP_ENGINE_LOOP, 1);
	cr_assert_eq(start(&r, &p, 0, 100), COWSNAP_PENDING);
	cr_assert_eq(requests(&r), 1);
	overwrite_each_second(&r, 100); /* more than there are requests */
	overwrite(&r, 90, 10);          /* and some that lie together */
	finish(&r, &p);
	cr_assert_eq(p.error, 0);
	expect(&r, 0, 100, OLD);
	cr_assert_eq(stats_of(&r).reread_chunks, 55);
	rig_close(&r);
}

Test(async_read, unaligned_ends)
{
	struct pending_op p = {0};
	struct rig r;

	rig_open(&r, COWSNAP_ENGINE_LOOP, 4);
	overwrite_each_second(&r, 8);
	cr_assert_eq(cowsnap_snapshot_read_async(
			     r.snapshot, r.queue, r.data + 100, 100, 2000, &p.op, pending_done, &p),
		COWSNAP_PENDING);
	overwrite(&r, 1, 1);
	finish(&r, &p);
	cr_assert_eq(p.error, 0);
	cr_assert_eq(r.data[99], UNREAD);
	cr_assert_eq(r.data[2100], UNREAD);
	for (unsigned i = 100; i < 2100; i++)
		cr_assert_eq(r.data[i], OLD, "byte %u is %u", i, r.data[i]);
	rig_close(&r);
}

Test(async_read, many_in_a_queue_of_one_come_in_turn)
{
	struct pending_op p[40];
	struct rig r;

	rig_open(&r, COWSNAP_ENGINE_LOOP, 1);
	overwrite_each_second(&r, CHUNKS);
	for (unsigned i = 0; i < 40; i++)
		cr_assert_eq(start(&r, &p[i], i * 3, 3), COWSNAP_PENDING);
	cr_assert_eq(requests(&r), 3, "one at a time");
	for (unsigned i = 0; i < 40; i++) {
		while (!atomic_load(&p[i].calls)) {
			cr_assert_leq(end_all(&r), 3);
			cr_assert(pending_poll(r.queue, PENDING_WAIT_MS));
		}
		cr_assert_eq(p[i].error, 0);
		cr_assert_eq(i == 39 || !atomic_load(&p[i + 1].calls), true, "in order");
	}
	expect(&r, 0, 120, OLD);
	rig_close(&r);
}

static void start_next(struct pending_op *p)
{
	struct rig *r = p->user;

	/* The callback may start the next, in the record that this one had. */
	if (atomic_load(&p[1].calls) == 0)
		cr_assert_eq(cowsnap_snapshot_read_async(r->snapshot, r->queue, r->data, 0, CHUNK,
				     &p[1].op, pending_done, &p[1]),
			COWSNAP_PENDING);
}

Test(async_read, a_callback_starts_the_next)
{
	struct pending_op p[2];
	struct rig r;

	rig_open(&r, COWSNAP_ENGINE_LOOP, 1);
	memset(p, 0, sizeof(p));
	cr_assert_eq(start(&r, &p[0], 1, 1), COWSNAP_PENDING);
	p[0].then = start_next;
	p[0].user = &r;
	finish(&r, &p[0] + 1);
	cr_assert_eq(atomic_load(&p[0].calls), 1);
	expect(&r, 0, 2, OLD);
	rig_close(&r);
}

Test(async_read, on_workers)
{
	enum { READS = 64 };
	static struct pending_op p[READS];
	struct rig r;

	rig_open(&r, COWSNAP_ENGINE_WORKERS, 1);
	overwrite_each_second(&r, CHUNKS);
	shuffled_run(&r.origin_slow, 1);
	shuffled_run(&r.store_slow, 2);
	memset(p, 0, sizeof(p));
	for (unsigned i = 0; i < READS; i++)
		cr_assert_eq(cowsnap_snapshot_read_async(r.snapshot, NULL, r.data + i * 2 * CHUNK,
				     i * 2 * CHUNK, 2 * CHUNK, &p[i].op, pending_done, &p[i]),
			COWSNAP_PENDING);
	for (unsigned i = 0; i < READS; i++) {
		while (!atomic_load(&p[i].calls))
			sched_yield();
		cr_assert_eq(p[i].error, 0);
		cr_assert(!pthread_equal(p[i].called_on, pthread_self()));
	}
	expect(&r, 0, CHUNKS, OLD);
	while (cowsnap_store_drain(r.store, 0))
		sched_yield();
	rig_close(&r);
}

/* ---- Trouble --------------------------------------------------------------------------------- */

Test(async_read, arguments)
{
	struct cowsnap_ctx *other;
	struct cowsnap_queue *foreign;
	struct pending_op p = {0};
	struct rig r;

	rig_open(&r, COWSNAP_ENGINE_LOOP, 1);
	cr_assert_eq(cowsnap_ctx_create(NULL, &other), 0);
	cr_assert_eq(cowsnap_queue_create(other, 1, &foreign), 0);
	cr_assert_eq(start(&r, &p, 0, 0), -EINVAL);
	cr_assert_eq(start(&r, &p, CHUNKS, 1), -ERANGE);
	cr_assert_eq(cowsnap_snapshot_read_async(
			     r.snapshot, r.queue, r.data, UINT64_MAX, 2, &p.op, pending_done, &p),
		-EOVERFLOW);
	cr_assert_eq(
		cowsnap_snapshot_read_async(r.snapshot, r.queue, r.data, 0, 1, &p.op, NULL, &p),
		-EINVAL);
	cr_assert_eq(cowsnap_snapshot_read_async(
			     r.snapshot, NULL, r.data, 0, 1, &p.op, pending_done, &p),
		-EINVAL, "no workers");
	cr_assert_eq(cowsnap_snapshot_read_async(
			     r.snapshot, foreign, r.data, 0, 1, &p.op, pending_done, &p),
		-EXDEV);
	cr_assert_eq(cowsnap_queue_close(foreign), 0);
	cr_assert_eq(cowsnap_ctx_destroy(other), 0);
	cr_assert_eq(cowsnap_snapshot_drop(r.snapshot), 0);
	cr_assert_eq(start(&r, &p, 0, 1), -EIDRM);
	cr_assert_eq(atomic_load(&p.calls), 0);
	rig_close(&r);
}

Test(async_read, an_error_of_any_piece_ends_it_when_all_have_ended)
{
	enum { PIECES = 8 };
	struct pending_op p;
	struct rig r;

	rig_open(&r, COWSNAP_ENGINE_LOOP, 1);
	overwrite_each_second(&r, PIECES);
	for (unsigned bad = 0; bad < PIECES; bad++) {
		struct shuffled *device = bad % 2 ? &r.origin_slow : &r.store_slow;

		cr_assert_eq(start(&r, &p, 0, PIECES), COWSNAP_PENDING);
		cr_assert(shuffled_end(device, bad / 2, -EREMOTEIO));
		pending_settle(r.queue);
		cr_assert_eq(atomic_load(&p.calls), 0, "the buffer is still written to");
		cr_assert_eq(end_all(&r), PIECES - 1);
		finish(&r, &p);
		cr_assert_eq(p.error, -EREMOTEIO);
	}
	rig_close(&r);
}

Test(async_read, an_error_of_what_is_read_again)
{
	struct pending_op p;
	struct rig r;

	rig_open(&r, COWSNAP_ENGINE_LOOP, 1);
	cr_assert_eq(start(&r, &p, 0, CHUNKS), COWSNAP_PENDING);
	overwrite_each_second(&r, 8);
	cr_assert_eq(shuffled_end_all(&r.origin_slow), 1);
	pending_settle(r.queue);
	cr_assert_eq(shuffled_count(&r.store_slow), 4);
	cr_assert(shuffled_end(&r.store_slow, 2, -EREMOTEIO));
	finish(&r, &p);
	cr_assert_eq(p.error, -EREMOTEIO);
	rig_close(&r);
}

Test(async_read, dropped_meanwhile)
{
	struct pending_op p;
	struct rig r;

	rig_open(&r, COWSNAP_ENGINE_LOOP, 1);
	overwrite(&r, 0, 4);
	cr_assert_eq(start(&r, &p, 0, 8), COWSNAP_PENDING);
	cr_assert_eq(cowsnap_snapshot_drop(r.snapshot), 0);
	finish(&r, &p);
	cr_assert_eq(p.error, -EIDRM);
	rig_close(&r);
}

Test(async_read, invalid_meanwhile)
{
	struct pending_op p;
	struct rig r;

	rig_open(&r, COWSNAP_ENGINE_LOOP, 1);
	cr_assert_eq(cowsnap_store_set_limit(r.store, CHUNK), 0);
	overwrite(&r, 0, 1);
	cr_assert_eq(start(&r, &p, 0, 8), COWSNAP_PENDING);
	overwrite(&r, 5, 1); /* there is no room for it */
	finish(&r, &p);
	cr_assert_eq(p.error, -ESTALE);
	rig_close(&r);
}

/* ---- Cancelled ------------------------------------------------------------------------------- */

Test(async_read, cancelled_while_it_waits_for_its_turn)
{
	struct pending_op first, second, third;
	struct rig r;

	rig_open(&r, COWSNAP_ENGINE_LOOP, 1);
	cr_assert_eq(start(&r, &first, 0, 1), COWSNAP_PENDING);
	cr_assert_eq(start(&r, &second, 1, 1), COWSNAP_PENDING);
	cr_assert_eq(start(&r, &third, 2, 1), COWSNAP_PENDING);
	cr_assert_eq(cowsnap_op_cancel(&second.op), 0);
	cr_assert_eq(cowsnap_op_cancel(&second.op), 0, "twice is as once");
	cr_assert(pending_wait(r.queue, &second));
	cr_assert_eq(second.error, -ECANCELED);
	finish(&r, &first);
	finish(&r, &third);
	cr_assert_eq(third.error, 0);
	expect(&r, 1, 1, UNREAD);
	expect(&r, 2, 1, OLD);
	rig_close(&r);
}

Test(async_read, cancelled_with_requests_under_way)
{
	struct pending_op p;
	struct rig r;

	rig_open(&r, COWSNAP_ENGINE_LOOP, 1);
	overwrite_each_second(&r, CHUNKS);
	cr_assert_eq(start(&r, &p, 0, 4), COWSNAP_PENDING);
	cr_assert_eq(cowsnap_op_cancel(&p.op), 0);
	pending_settle(r.queue);
	cr_assert_eq(atomic_load(&p.calls), 0);
	finish(&r, &p);
	cr_assert_eq(p.error, 0, "nothing more was to be done");
	cr_assert_eq(start(&r, &p, 0, CHUNKS), COWSNAP_PENDING);
	cr_assert_eq(cowsnap_op_cancel(&p.op), 0);
	pending_settle(r.queue);
	finish(&r, &p);
	cr_assert_eq(p.error, -ECANCELED);
	rig_close(&r);
}

/* ---- A read that never ends ------------------------------------------------------------------ */

Test(async_read, a_drain_waits_for_what_a_drop_does_not, .timeout = 60)
{
	struct pending_op p;
	struct cowsnap_store_usage usage;
	struct rig r;

	rig_open(&r, COWSNAP_ENGINE_LOOP, 1);
	cr_assert_eq(cowsnap_store_drain(r.store, 0), 0, "nothing was dropped");
	overwrite(&r, 0, 4);
	cr_assert_eq(start(&r, &p, 0, 8), COWSNAP_PENDING);
	cr_assert_eq(cowsnap_snapshot_drop(r.snapshot), 0);
	cr_assert_eq(cowsnap_store_drain(r.store, 0), -ETIMEDOUT);
	cr_assert_eq(cowsnap_store_drain(r.store, 1000000), -ETIMEDOUT);
	cr_assert_eq(cowsnap_store_usage(r.store, &usage, sizeof(usage)), 0);
	cr_assert_eq(usage.used_bytes, 4 * CHUNK);
	cr_assert_eq(cowsnap_store_close(r.store), -EBUSY);
	finish(&r, &p);
	cr_assert_eq(cowsnap_store_drain(r.store, 0), 0);
	cr_assert_eq(cowsnap_store_usage(r.store, &usage, sizeof(usage)), 0);
	cr_assert_eq(usage.used_bytes, 0);
	rig_close(&r);
}

struct drainer {
	struct cowsnap_store *store;
	pthread_t thread;
	int rc;
};

static void *drain_main(void *argument)
{
	struct drainer *d = argument;

	d->rc = cowsnap_store_drain(d->store, UINT64_MAX);
	return NULL;
}

/* Nothing was saved: what is held up is the memory of the snapshot only. Takes go on meanwhile. */
Test(async_read, the_last_reader_wakes_the_drain, .timeout = 60)
{
	for (unsigned saved = 0; saved < 2; saved++) {
		struct cowsnap_take_entry entry = {0};
		struct pending_op p;
		struct drainer d;
		struct rig r;

		rig_open(&r, COWSNAP_ENGINE_LOOP, 1);
		overwrite(&r, 0, saved + 1);
		cr_assert_eq(start(&r, &p, saved ? 0 : 20, 8), COWSNAP_PENDING);
		cr_assert_eq(cowsnap_snapshot_drop(r.snapshot), 0);
		d.store = r.store;
		cr_assert_eq(pthread_create(&d.thread, NULL, drain_main, &d), 0);
		entry.origin = r.origin;
		entry.store = r.store;
		cr_assert_eq(cowsnap_take(r.ctx, NULL, &entry, 1), 0);
		cr_assert_eq(cowsnap_snapshot_drop(entry.snapshot), 0);
		cowsnap_snapshot_unref(entry.snapshot);
		finish(&r, &p);
		pthread_join(d.thread, NULL);
		cr_assert_eq(d.rc, 0);
		rig_close(&r);
	}
}

/* ---- Load ------------------------------------------------------------------------------------ */

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define ROUNDS 20
#else
#define ROUNDS 60
#endif
#define LOAD_READS 8

struct writer {
	struct rig *rig;
	pthread_t thread;
	_Atomic bool stop;
	struct seed seed;
};

/* Overwrites what is OLD, chunk by chunk, in any order, while it is read. */
static void *writer_main(void *argument)
{
	struct writer *w = argument;

	while (!atomic_load(&w->stop)) {
		unsigned first = (unsigned)seed_below(&w->seed, CHUNKS);

		overwrite(w->rig, first, 1 + (unsigned)seed_below(&w->seed, 4) % (CHUNKS - first));
	}
	return NULL;
}

Test(async_read, against_a_writer, .timeout = 120)
{
	static uint8_t data[LOAD_READS][BYTES];
	struct seed seed = seed_for("async_read");
	struct writer w = {.seed = {seed_next(&seed)}};
	struct rig r;

	for (unsigned round = 0; round < ROUNDS; round++) {
		struct pending_op p[LOAD_READS];
		uint64_t from[LOAD_READS];
		unsigned open = 0;

		rig_open(&r, COWSNAP_ENGINE_LOOP, 3);
		shuffled_run(&r.origin_slow, seed_next(&seed));
		shuffled_run(&r.store_slow, seed_next(&seed));
		w.rig = &r;
		atomic_store(&w.stop, false);
		cr_assert_eq(pthread_create(&w.thread, NULL, writer_main, &w), 0);
		memset(p, 0, sizeof(p));
		for (unsigned i = 0; i < LOAD_READS; i++, open++) {
			from[i] = seed_below(&seed, BYTES);
			memset(data[i], UNREAD, BYTES);
			cr_assert_eq(
				cowsnap_snapshot_read_async(r.snapshot, r.queue, data[i] + from[i],
					from[i], BYTES - from[i], &p[i].op, pending_done, &p[i]),
				COWSNAP_PENDING);
		}
		while (open) {
			cr_assert(pending_wait(r.queue, &p[--open]));
			cr_assert_eq(p[open].error, 0);
			for (uint64_t b = 0; b < BYTES; b++)
				cr_assert(data[open][b] == (b < from[open] ? UNREAD : OLD),
					"read %u, byte %llu", open, (unsigned long long)b);
		}
		atomic_store(&w.stop, true);
		pthread_join(w.thread, NULL);
		rig_close(&r);
	}
}
