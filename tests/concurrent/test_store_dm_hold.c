/* SPDX-License-Identifier: MIT
 *
 * The device of a persistent store is held: over a flush of a queue, and while the header says that
 * the snapshot is lost or dropped. Nobody must wait for a thing that only he can bring. The device
 * has flushes only, and its flushes can be held back.
 */
#include "support/test.h"

#include <cowsnap.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK       4096u
#define STORE_BYTES (256u << 10)
#define VOLUME      (1u << 20)

struct scene {
	uint8_t bytes[STORE_BYTES];
	bool fail_data;          /* writes of chunks fail; the header's and the records' do not */
	bool hold;               /* flushes that are submitted from now on */
	struct cowsnap_io *held; /* the last one */
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *volume, *device;
	struct cowsnap_origin *origin;
	struct cowsnap_store *store;
	struct cowsnap_queue *queue;
	struct cowsnap_take_entry entry;
	bool drops; /* the host, when it is told that the snapshot is lost */
	unsigned told;
	int drop_error;
};

struct write {
	struct cowsnap_op op;
	bool done;
	int error;
};

static int device_read(void *user, void *buffer, uint64_t offset, uint64_t length)
{
	struct scene *s = user;

	memcpy(buffer, s->bytes + offset, length);
	return 0;
}

static int device_write(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	struct scene *s = user;

	if (s->fail_data && offset >= 2 * CHUNK)
		return -EIO;
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
	struct scene *s = user;
	int error = 0;

	if (io->kind == COWSNAP_IO_FLUSH && s->hold) {
		s->held = io;
		return;
	}
	if (io->kind == COWSNAP_IO_READ)
		error = device_read(s, io->buffer, io->offset, io->length);
	else if (io->kind == COWSNAP_IO_WRITE)
		error = device_write(s, io->buffer, io->offset, io->length);
	cowsnap_io_complete(io, error);
}

static void on_event(void *user, const struct cowsnap_event *event)
{
	struct scene *s = user;

	if (event->type != COWSNAP_EVENT_INVALID)
		return;
	s->told++;
	if (s->drops)
		s->drop_error = cowsnap_snapshot_drop(event->snapshot);
}

static struct scene *open_scene(void)
{
	struct scene *s = calloc(1, sizeof(*s));
	const struct cowsnap_ctx_options options = {.size = sizeof(options),
		.event = on_event,
		.event_user = s,
		.engine = COWSNAP_ENGINE_LOOP};
	const struct cowsnap_device_ops ops = {.size = sizeof(ops),
		.read = device_read,
		.write = device_write,
		.flush = device_flush,
		.submit = device_submit};
	const struct cowsnap_device_options device = {
		.size = sizeof(device), .size_bytes = STORE_BYTES};

	cr_assert_not_null(s);
	cr_assert_eq(cowsnap_ctx_create(&options, &s->ctx), 0);
	cr_assert_eq(cowsnap_device_memory(s->ctx, VOLUME, &s->volume), 0);
	cr_assert_eq(cowsnap_device_create(s->ctx, &ops, &device, s, &s->device), 0);
	cr_assert_eq(cowsnap_origin_open(s->ctx, s->volume, &s->origin), 0);
	cr_assert_eq(cowsnap_store_dm_create(s->ctx,
			     &(struct cowsnap_dm_options){.size = sizeof(struct cowsnap_dm_options),
				     .device = s->device},
			     &s->store),
		0);
	cr_assert_eq(cowsnap_queue_create(s->ctx, 8, &s->queue), 0);
	s->entry = (struct cowsnap_take_entry){.origin = s->origin, .store = s->store};
	cr_assert_eq(cowsnap_take(s->ctx, NULL, &s->entry, 1), 0);
	return s;
}

static void close_scene(struct scene *s)
{
	cowsnap_snapshot_unref(s->entry.snapshot);
	cr_assert_eq(cowsnap_queue_close(s->queue), 0);
	cr_assert_eq(cowsnap_store_close(s->store), 0);
	cr_assert_eq(cowsnap_origin_close(s->origin), 0);
	cr_assert_eq(cowsnap_device_close(s->volume), 0);
	cr_assert_eq(cowsnap_device_close(s->device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(s->ctx), 0);
	free(s);
}

static void admitted(struct cowsnap_op *op, void *user, int error)
{
	struct write *w = user;

	w->done = true;
	w->error = error;
	if (!error)
		cowsnap_write_end(op);
}

static void start(struct scene *s, struct write *w, uint64_t chunk)
{
	memset(w, 0, sizeof(*w));
	cr_assert_eq(cowsnap_write_begin_async(s->origin, s->queue, COWSNAP_WRITE, chunk * CHUNK,
			     CHUNK, &w->op, admitted, w),
		COWSNAP_PENDING);
}

static void pump(struct scene *s, const bool *until)
{
	for (unsigned i = 0; i < 1000 && !*until; i++)
		cr_assert_geq(cowsnap_queue_poll(s->queue), 0);
	cr_assert(*until);
}

/* A write of the queue that has its data on the device, and a flush for its record under way. */
static void hold_a_flush(struct scene *s, struct write *w)
{
	s->hold = true;
	start(s, w, 0);
	for (unsigned i = 0; i < 1000 && !s->held; i++)
		cr_assert_geq(cowsnap_queue_poll(s->queue), 0);
	cr_assert_not_null(s->held);
}

/* Another one that cannot be saved: it wants the device, to record that the snapshot is lost. */
static void lose_the_snapshot(struct scene *s, struct write *w)
{
	s->fail_data = true;
	start(s, w, 2);
	for (unsigned i = 0; i < 20; i++)
		cr_assert_geq(cowsnap_queue_poll(s->queue), 0);
	s->fail_data = false;
	cr_assert_not(w->done);
}

static void let_go(struct scene *s)
{
	s->hold = false;
	cowsnap_io_complete(s->held, 0);
}

static enum cowsnap_snapshot_state state_of(const struct scene *s)
{
	struct cowsnap_snapshot_info info;

	cr_assert_eq(cowsnap_snapshot_info(s->entry.snapshot, &info, sizeof(info)), 0);
	return info.state;
}

/* The host was told while the device was held, and its drop waited for that. */
Test(store_dm_hold, a_host_that_is_told_of_a_lost_snapshot_drops_it, .timeout = 60)
{
	struct scene *s = open_scene();
	struct cowsnap_op op;

	s->drops = true;
	for (uint64_t chunk = 0; chunk < VOLUME / CHUNK; chunk++) {
		cr_assert_eq(
			cowsnap_write_begin(s->origin, COWSNAP_WRITE, chunk * CHUNK, CHUNK, &op),
			0);
		cowsnap_write_end(&op);
	}
	cr_assert_eq(s->told, 1);
	cr_assert_eq(s->drop_error, 0);
	cr_assert_eq(state_of(s), COWSNAP_SNAPSHOT_DROPPED);
	close_scene(s);
}

/* The device was handed over to an operation that had not run yet, and the drop waited for it. */
Test(store_dm_hold, a_drop_right_after_the_flush_that_others_waited_for, .timeout = 60)
{
	struct scene *s = open_scene();
	struct write first, second;

	hold_a_flush(s, &first);
	lose_the_snapshot(s, &second);
	cr_assert_eq(cowsnap_snapshot_drop(s->entry.snapshot), -EDEADLK);
	let_go(s);
	cr_assert_geq(cowsnap_queue_poll(s->queue), 0);
	/* Or the chain has another flush under way. */
	for (int rc = -EDEADLK; rc;) {
		rc = cowsnap_snapshot_drop(s->entry.snapshot);
		cr_assert(rc == 0 || rc == -EDEADLK || rc == -EIDRM);
		cr_assert_geq(cowsnap_queue_poll(s->queue), 0);
		if (rc == -EIDRM)
			break;
	}
	pump(s, &first.done);
	pump(s, &second.done);
	cr_assert_eq(state_of(s), COWSNAP_SNAPSHOT_DROPPED);
	close_scene(s);
}

static void *drop_it(void *argument)
{
	struct scene *s = argument;
	int rc = cowsnap_snapshot_drop(s->entry.snapshot);

	cr_assert(rc == 0 || rc == -EIDRM);
	return NULL;
}

/* A thread waited for the device with a lock held that the thread of the chain then waited for. */
Test(store_dm_hold, a_drop_elsewhere_does_not_keep_the_polling_thread, .timeout = 60)
{
	struct scene *s = open_scene();
	struct write first;
	pthread_t thread;

	hold_a_flush(s, &first);
	cr_assert_eq(pthread_create(&thread, NULL, drop_it, s), 0);
	for (unsigned i = 0; i < 1000; i++)
		cr_assert_eq(cowsnap_snapshot_drop(s->entry.snapshot), -EDEADLK);
	let_go(s);
	pump(s, &first.done);
	cr_assert_eq(pthread_join(thread, NULL), 0);
	cr_assert_eq(state_of(s), COWSNAP_SNAPSHOT_DROPPED);
	close_scene(s);
}

/* A write that is cancelled does not go on, and so takes nothing from the snapshot. */
Test(store_dm_hold, a_cancelled_write_loses_no_snapshot, .timeout = 60)
{
	struct scene *s = open_scene();
	struct write first, second;

	hold_a_flush(s, &first);
	lose_the_snapshot(s, &second);
	cr_assert_eq(cowsnap_op_cancel(&second.op), 0);
	cr_assert_geq(cowsnap_queue_poll(s->queue), 0);
	let_go(s);
	pump(s, &first.done);
	pump(s, &second.done);
	cr_assert_eq(first.error, 0);
	cr_assert_eq(second.error, -ECANCELED);
	cr_assert_eq(s->told, 0);
	cr_assert_eq(state_of(s), COWSNAP_SNAPSHOT_ACTIVE);
	cr_assert_eq(cowsnap_snapshot_drop(s->entry.snapshot), 0);
	close_scene(s);
}
