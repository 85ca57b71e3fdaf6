/* SPDX-License-Identifier: MIT
 *
 * Drops by threads that poll. The devices of the persistent stores have flushes only, which can be
 * held back: while one is under way its store is held, by a queue.
 */
#include "support/test.h"

#include <cowsnap.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK       UINT64_C(4096)
#define STORE_BYTES (UINT64_C(256) << 10)
#define VOLUME      (UINT64_C(1) << 20)

/* A volume with a snapshot, and the queue that writes to it. */
struct side {
	uint8_t bytes[STORE_BYTES];
	bool hold;               /* flushes that are submitted from now on */
	struct cowsnap_io *held; /* the last one */
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *volume, *device;
	struct cowsnap_origin *origin;
	struct cowsnap_store *store;
	struct cowsnap_queue *queue;
	struct cowsnap_take_entry entry;
};

struct call {
	struct cowsnap_op op;
	bool done;
	int error;
};

static int device_read(void *user, void *buffer, uint64_t offset, uint64_t length)
{
	struct side *s = user;

	memcpy(buffer, s->bytes + offset, length);
	return 0;
}

static int device_write(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	struct side *s = user;

	memcpy(s->bytes + offset, buffer, length);
	return 0;
}

static int device_flush(void *user)
{
	(void)user;
	return 0;
}

static void device_submit(void *user, struct cowsnap_io *io)
{
	struct side *s = user;

	if (io->kind == COWSNAP_IO_FLUSH && s->hold) {
		s->held = io;
		return;
	}
	if (io->kind == COWSNAP_IO_READ)
		device_read(s, io->buffer, io->offset, io->length);
	else if (io->kind == COWSNAP_IO_WRITE)
		device_write(s, io->buffer, io->offset, io->length);
	cowsnap_io_complete(io, 0);
}

static struct side *open_side(struct cowsnap_ctx *ctx)
{
	struct side *s = calloc(1, sizeof(*s));
	const struct cowsnap_device_ops ops = {.size = sizeof(ops),
		.read = device_read,
		.write = device_write,
		.flush = device_flush,
		.submit = device_submit};
	const struct cowsnap_device_options device = {
		.size = sizeof(device), .size_bytes = STORE_BYTES};

	cr_assert_not_null(s);
	s->ctx = ctx;
	cr_assert_eq(cowsnap_device_memory(ctx, VOLUME, &s->volume), 0);
	cr_assert_eq(cowsnap_device_create(ctx, &ops, &device, s, &s->device), 0);
	cr_assert_eq(cowsnap_origin_open(ctx, s->volume, &s->origin), 0);
	cr_assert_eq(cowsnap_store_dm_create(ctx,
			     &(struct cowsnap_dm_options){.size = sizeof(struct cowsnap_dm_options),
				     .device = s->device},
			     &s->store),
		0);
	cr_assert_eq(cowsnap_queue_create(ctx, 8, &s->queue), 0);
	s->entry = (struct cowsnap_take_entry){.origin = s->origin, .store = s->store};
	cr_assert_eq(cowsnap_take(ctx, NULL, &s->entry, 1), 0);
	return s;
}

static void close_side(struct side *s)
{
	cowsnap_snapshot_unref(s->entry.snapshot);
	cr_assert_eq(cowsnap_queue_close(s->queue), 0);
	cr_assert_eq(cowsnap_store_close(s->store), 0);
	cr_assert_eq(cowsnap_origin_close(s->origin), 0);
	cr_assert_eq(cowsnap_device_close(s->volume), 0);
	cr_assert_eq(cowsnap_device_close(s->device), 0);
	free(s);
}

static struct cowsnap_ctx *open_ctx(uint32_t workers)
{
	struct cowsnap_ctx *ctx;

	cr_assert_eq(
		cowsnap_ctx_create(
			&(struct cowsnap_ctx_options){.size = sizeof(struct cowsnap_ctx_options),
				.engine = workers ? COWSNAP_ENGINE_WORKERS : COWSNAP_ENGINE_LOOP,
				.workers = workers},
			&ctx),
		0);
	return ctx;
}

static void admitted(struct cowsnap_op *op, void *user, int error)
{
	struct call *c = user;

	c->done = true;
	c->error = error;
	if (!error)
		cowsnap_write_end(op);
}

static void dropped(struct cowsnap_op *op, void *user, int error)
{
	struct call *c = user;

	(void)op;
	c->error = error;
	/* Release: of a worker; pairs with wait_for. */
	__atomic_store_n(&c->done, true, __ATOMIC_RELEASE);
}

static void wait_for(const struct call *c)
{
	while (!__atomic_load_n(&c->done, __ATOMIC_ACQUIRE))
		sched_yield();
}

/* A write of the queue that has its data on the device, and a flush for its record under way. */
static void hold_a_flush(struct side *s, struct call *w)
{
	memset(w, 0, sizeof(*w));
	s->hold = true;
	cr_assert_eq(cowsnap_write_begin_async(
			     s->origin, s->queue, COWSNAP_WRITE, 0, CHUNK, &w->op, admitted, w),
		COWSNAP_PENDING);
	for (unsigned i = 0; i < 1000 && !s->held; i++)
		cr_assert_geq(cowsnap_queue_poll(s->queue), 0);
	cr_assert_not_null(s->held);
}

static void let_go(struct side *s)
{
	s->hold = false;
	cowsnap_io_complete(s->held, 0);
}

static void pump(struct side *s, const struct call *c)
{
	while (!c->done) {
		cr_assert_geq(cowsnap_queue_poll(s->queue), 0);
		sched_yield();
	}
}

static enum cowsnap_snapshot_state state_of(const struct side *s)
{
	struct cowsnap_snapshot_info info;

	cr_assert_eq(cowsnap_snapshot_info(s->entry.snapshot, &info, sizeof(info)), 0);
	return info.state;
}

Test(drop_async, at_once_where_nothing_is_recorded)
{
	struct cowsnap_ctx *ctx = open_ctx(0);
	struct side *s = open_side(ctx);
	struct cowsnap_store *store;
	struct cowsnap_take_entry entry = {.origin = s->origin};
	struct call drop = {0};

	cr_assert_eq(cowsnap_store_transient(ctx, NULL, &store), 0);
	entry.store = store;
	cr_assert_eq(cowsnap_take(ctx, NULL, &entry, 1), 0);
	cr_assert_eq(cowsnap_snapshot_drop_async(entry.snapshot, s->queue, &drop.op, NULL, NULL),
		-EINVAL);
	cr_assert_eq(cowsnap_snapshot_drop_async(entry.snapshot, NULL, &drop.op, dropped, &drop),
		-EINVAL);
	for (int i = 0; i < 2; i++)
		cr_assert_eq(cowsnap_snapshot_drop_async(
				     entry.snapshot, s->queue, &drop.op, dropped, &drop),
			i ? -EIDRM : 0);
	cr_assert_not(drop.done);
	cowsnap_snapshot_unref(entry.snapshot);
	cr_assert_eq(
		cowsnap_snapshot_drop_async(s->entry.snapshot, s->queue, &drop.op, dropped, &drop),
		0, "nobody holds the store");
	close_side(s);
	cr_assert_eq(cowsnap_store_close(store), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

/* cowsnap_snapshot_drop() is -EDEADLK here. */
Test(drop_async, by_the_thread_whose_queue_flushes, .timeout = 60)
{
	struct cowsnap_ctx *ctx = open_ctx(0);
	struct side *s = open_side(ctx);
	struct call write, drop = {0}, again = {0};

	hold_a_flush(s, &write);
	cr_assert_eq(
		cowsnap_snapshot_drop_async(s->entry.snapshot, s->queue, &drop.op, dropped, &drop),
		COWSNAP_PENDING);
	cr_assert_eq(cowsnap_snapshot_drop_async(
			     s->entry.snapshot, s->queue, &again.op, dropped, &again),
		COWSNAP_PENDING);
	for (unsigned i = 0; i < 20; i++)
		cr_assert_geq(cowsnap_queue_poll(s->queue), 0);
	cr_assert(!drop.done && !again.done);
	let_go(s);
	pump(s, &write);
	pump(s, &drop);
	pump(s, &again);
	cr_assert_eq(write.error, 0);
	cr_assert_eq(drop.error + again.error, -EIDRM, "one of the two drops it");
	cr_assert_eq(state_of(s), COWSNAP_SNAPSHOT_DROPPED);
	close_side(s);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

Test(drop_async, cancelled_while_it_waits, .timeout = 60)
{
	struct cowsnap_ctx *ctx = open_ctx(0);
	struct side *s = open_side(ctx);
	struct call write, drop = {0};

	hold_a_flush(s, &write);
	cr_assert_eq(
		cowsnap_snapshot_drop_async(s->entry.snapshot, s->queue, &drop.op, dropped, &drop),
		COWSNAP_PENDING);
	cr_assert_eq(cowsnap_op_cancel(&drop.op), 0);
	cr_assert_geq(cowsnap_queue_poll(s->queue), 0);
	let_go(s);
	pump(s, &write);
	pump(s, &drop);
	cr_assert_eq(drop.error, -ECANCELED);
	cr_assert_eq(state_of(s), COWSNAP_SNAPSHOT_ACTIVE);
	cr_assert_eq(cowsnap_snapshot_drop(s->entry.snapshot), 0);
	close_side(s);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

Test(drop_async, on_a_worker, .timeout = 60)
{
	struct cowsnap_ctx *ctx = open_ctx(1);
	struct side *s = open_side(ctx);
	struct call write, drop = {0};

	hold_a_flush(s, &write);
	cr_assert_eq(cowsnap_snapshot_drop_async(s->entry.snapshot, NULL, &drop.op, dropped, &drop),
		COWSNAP_PENDING);
	let_go(s);
	pump(s, &write);
	wait_for(&drop);
	cr_assert_eq(drop.error, 0);
	cr_assert_eq(state_of(s), COWSNAP_SNAPSHOT_DROPPED);
	close_side(s);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

struct poller {
	struct side *mine, *others;
	pthread_barrier_t *both;
	pthread_t thread;
};

static void *poll_and_drop(void *user)
{
	struct poller *p = user;
	struct call write, drop = {0};

	hold_a_flush(p->mine, &write);
	pthread_barrier_wait(p->both);
	cr_assert_eq(cowsnap_snapshot_drop_async(
			     p->others->entry.snapshot, p->mine->queue, &drop.op, dropped, &drop),
		COWSNAP_PENDING);
	pthread_barrier_wait(p->both);
	let_go(p->mine);
	pump(p->mine, &write);
	pump(p->mine, &drop);
	cr_assert_eq(write.error, 0);
	cr_assert_eq(drop.error, 0);
	return NULL;
}

/* With cowsnap_snapshot_drop() each would wait for the queue that only the other one polls. */
Test(drop_async, two_pollers_drop_what_the_other_one_writes_for, .timeout = 60)
{
	struct cowsnap_ctx *ctx = open_ctx(0);
	pthread_barrier_t both;
	struct side *side[2];
	struct poller poller[2];

	pthread_barrier_init(&both, NULL, 2);
	for (int i = 0; i < 2; i++)
		side[i] = open_side(ctx);
	for (int i = 0; i < 2; i++) {
		poller[i] = (struct poller){side[i], side[!i], &both, 0};
		cr_assert_eq(pthread_create(&poller[i].thread, NULL, poll_and_drop, &poller[i]), 0);
	}
	for (int i = 0; i < 2; i++)
		pthread_join(poller[i].thread, NULL);
	for (int i = 0; i < 2; i++) {
		cr_assert_eq(state_of(side[i]), COWSNAP_SNAPSHOT_DROPPED);
		close_side(side[i]);
	}
	pthread_barrier_destroy(&both);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}
