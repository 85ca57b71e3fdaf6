/* SPDX-License-Identifier: MIT
 *
 * Requests to devices that are not waited for: checks, fallbacks, and completions inline, late, in
 * reverse, on another thread, and twice.
 */
#include "support/test.h"
#include "support/test_device_async.h"

#include "dev.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#define DEVICE_BYTES (1u << 20)
#define BLOCK        512u
#define MANY         64u

static char log_text[256];
static _Atomic int log_lines;

static void keep_log(void *user, enum cowsnap_log_level level, const char *message)
{
	(void)user;
	(void)level;
	snprintf(log_text, sizeof(log_text), "%s", message);
	atomic_fetch_add(&log_lines, 1);
}

static const struct cowsnap_log logger = {.size = sizeof(logger), .write = keep_log};

struct scene {
	struct cowsnap_ctx *ctx;
	struct cowsnap_queue *queue;
	struct test_async *async;
	struct cowsnap_device *device;
	struct test_device *rig;
};

struct request {
	struct cowsnap_io io;
	unsigned calls;
	int error;
	unsigned order;       /* when it ended */
	struct request *then; /* submitted in the callback */
	struct cowsnap_device *device;
};

static unsigned ended;

static void note(struct cowsnap_io *io, int error)
{
	struct request *r = io->user;

	r->calls++;
	r->error = error;
	r->order = ended++;
	if (r->then)
		cr_assert_eq(cowsnap_device_submit(r->device, io->queue, &r->then->io), 0);
}

static struct request request(
	enum cowsnap_io_kind kind, void *buffer, uint64_t offset, uint64_t length)
{
	struct request r = {.io = {.kind = kind,
				    .buffer = buffer,
				    .offset = offset,
				    .length = length,
				    .done = note}};

	return r;
}

static void open_scene(
	struct scene *s, const struct test_device_options *options, enum test_async_mode mode)
{
	struct cowsnap_ctx_options ctx_options = {
		.size = sizeof(ctx_options), .log = &logger, .engine = COWSNAP_ENGINE_LOOP};

	ended = 0;
	cr_assert_eq(cowsnap_ctx_create(&ctx_options, &s->ctx), 0);
	cr_assert_eq(cowsnap_queue_create(s->ctx, 8, &s->queue), 0);
	s->async = test_async_create(s->ctx, options, mode);
	cr_assert_not_null(s->async);
	s->device = test_async_device(s->async);
	s->rig = test_async_rig(s->async);
	log_lines = 0;
}

static void close_scene(struct scene *s)
{
	cr_assert_eq(cowsnap_queue_close(s->queue), 0);
	cr_assert_eq(test_async_destroy(s->async), 0);
	cr_assert_eq(cowsnap_ctx_destroy(s->ctx), 0);
}

static const struct test_device_options plain = {.size_bytes = DEVICE_BYTES, .block_size = BLOCK};

static void submit(struct scene *s, struct request *r)
{
	r->io.user = r;
	cr_assert_eq(cowsnap_device_submit(s->device, s->queue, &r->io), 0);
	cr_assert_eq(r->calls, 0, "never inside the call");
}

/* Polls, asleep in between, until it has ended. */
static void finish(struct scene *s, struct request *r)
{
	struct pollfd fd = {.fd = cowsnap_queue_fd(s->queue), .events = POLLIN};

	while (!r->calls) {
		cr_assert_eq(poll(&fd, 1, 30000), 1, "nothing to poll");
		cr_assert_geq(cowsnap_queue_poll(s->queue), 0);
	}
	cr_assert_eq(r->calls, 1);
}

static int done_with(struct scene *s, struct request r)
{
	struct cowsnap_io before = r.io;

	submit(s, &r);
	finish(s, &r);
	cr_assert_eq(r.io.kind, before.kind, "the words of the caller are as they were");
	cr_assert_eq(r.io.buffer, before.buffer);
	cr_assert_eq(r.io.offset, before.offset);
	cr_assert_eq(r.io.length, before.length);
	return r.error;
}

static bool all_are(struct scene *s, uint64_t offset, uint64_t length, uint8_t value)
{
	static uint8_t bytes[DEVICE_BYTES];

	cr_assert_eq(cowsnap_device_read(test_device_inner(s->rig), bytes, offset, length), 0);
	for (uint64_t i = 0; i < length; i++) {
		if (bytes[i] != value)
			return false;
	}
	return true;
}

static void fill(struct scene *s, uint8_t value)
{
	static uint8_t bytes[DEVICE_BYTES];

	memset(bytes, value, sizeof(bytes));
	cr_assert_eq(cowsnap_device_write(test_device_inner(s->rig), bytes, 0, DEVICE_BYTES), 0);
}

/* ---- Checks ---------------------------------------------------------------------------------- */

static int refused(struct scene *s, struct request r)
{
	r.io.user = &r;
	return cowsnap_device_submit(s->device, s->queue, &r.io);
}

Test(dev_io, what_is_wrong_is_refused_at_once)
{
	uint8_t b[BLOCK] = {0};
	struct scene s, other;
	struct request r = request(COWSNAP_IO_READ, b, 0, BLOCK);
	struct cowsnap_queue *closed;

	open_scene(&s, &plain, TEST_ASYNC_INLINE);
	cr_assert_eq(refused(&s, request(COWSNAP_IO_READ, b, 0, 0)), -EINVAL);
	cr_assert_eq(refused(&s, request(COWSNAP_IO_READ, b, DEVICE_BYTES, 1)), -ERANGE);
	cr_assert_eq(refused(&s, request(COWSNAP_IO_READ, b, UINT64_MAX, 2)), -EOVERFLOW);
	cr_assert_eq(refused(&s, request(COWSNAP_IO_WRITE, b, 1, BLOCK)), -EINVAL);
	cr_assert_eq(refused(&s, request(COWSNAP_IO_WRITE_DURABLE, b, 0, 1)), -EINVAL);
	cr_assert_eq(refused(&s, request(COWSNAP_IO_ZERO, NULL, 0, 1)), -EINVAL);
	cr_assert_eq(refused(&s, request(COWSNAP_IO_DISCARD, NULL, DEVICE_BYTES, 1)), -ERANGE);
	cr_assert_eq(refused(&s, request((enum cowsnap_io_kind)0, b, 0, BLOCK)), -EINVAL);
	cr_assert_eq(refused(&s, request((enum cowsnap_io_kind)7, b, 0, BLOCK)), -EINVAL);
	cr_assert_eq(cowsnap_device_submit(s.device, s.queue, NULL), -EINVAL);
	cr_assert_eq(cowsnap_device_submit(s.device, NULL, &r.io), -EINVAL);
	cr_assert_eq(cowsnap_device_submit(NULL, s.queue, &r.io), -EINVAL);
	r.io.done = NULL;
	cr_assert_eq(cowsnap_device_submit(s.device, s.queue, &r.io), -EINVAL);
	open_scene(&other, &plain, TEST_ASYNC_INLINE);
	r.io.done = note;
	cr_assert_eq(cowsnap_device_submit(s.device, other.queue, &r.io), -EXDEV);
	cr_assert_eq(cowsnap_queue_create(s.ctx, 1, &closed), 0);
	cr_assert_eq(cowsnap_queue_close(closed), 0);
	cr_assert_eq(cowsnap_device_submit(s.device, closed, &r.io), -EBADF);
	cr_assert_eq(cowsnap_device_close(s.device), 0);
	cr_assert_eq(refused(&s, r), -EBADF);
	cr_assert_eq(refused(&s, request(COWSNAP_IO_FLUSH, NULL, 0, 0)), -EBADF);
	cr_assert_eq(test_async_submitted(s.async), 0);
	close_scene(&other);
	close_scene(&s);
}

static int no_read(void *user, void *buffer, uint64_t offset, uint64_t length)
{
	(void)user, (void)buffer, (void)offset, (void)length;
	return -EIO;
}

static void no_submit(void *user, struct cowsnap_io *io)
{
	(void)user;
	cowsnap_io_complete(io, -EIO);
}

Test(dev_io, a_device_without_write_takes_reads_and_flushes)
{
	struct cowsnap_device_ops ops = {.size = sizeof(ops), .read = no_read, .submit = no_submit};
	struct cowsnap_device_options options = {.size = sizeof(options), .size_bytes = 4096};
	struct cowsnap_device *kept;
	struct scene s;
	uint8_t b[BLOCK];

	open_scene(&s, &plain, TEST_ASYNC_INLINE);
	kept = s.device;
	cr_assert_eq(cowsnap_device_create(s.ctx, &ops, &options, NULL, &s.device), 0);
	cr_assert_eq(refused(&s, request(COWSNAP_IO_WRITE, b, 0, BLOCK)), -EROFS);
	cr_assert_eq(refused(&s, request(COWSNAP_IO_ZERO, NULL, 0, BLOCK)), -EROFS);
	cr_assert_eq(refused(&s, request(COWSNAP_IO_DISCARD, NULL, 0, BLOCK)), -EROFS);
	cr_assert_eq(done_with(&s, request(COWSNAP_IO_READ, b, 0, BLOCK)), -EIO);
	cr_assert_eq(done_with(&s, request(COWSNAP_IO_FLUSH, NULL, 0, 0)), 0);
	cr_assert_eq(cowsnap_device_close(s.device), 0);
	s.device = kept;
	close_scene(&s);
}

/* ---- Kinds and fallbacks --------------------------------------------------------------------- */

Test(dev_io, each_kind_goes_to_the_device)
{
	const struct test_device_options options = {
		.size_bytes = DEVICE_BYTES, .block_size = BLOCK, .durable = true};
	uint8_t b[BLOCK], back[BLOCK];
	struct scene s;

	memset(b, 7, sizeof(b));
	open_scene(&s, &options, TEST_ASYNC_INLINE);
	cr_assert_eq(done_with(&s, request(COWSNAP_IO_WRITE, b, BLOCK, BLOCK)), 0);
	cr_assert_eq(done_with(&s, request(COWSNAP_IO_READ, back, BLOCK, BLOCK)), 0);
	cr_assert_arr_eq(b, back, BLOCK);
	cr_assert_eq(done_with(&s, request(COWSNAP_IO_WRITE_DURABLE, b, 0, BLOCK)), 0);
	cr_assert_eq(test_device_calls(s.rig, TEST_IO_WRITE_DURABLE), 1);
	cr_assert_eq(done_with(&s, request(COWSNAP_IO_FLUSH, NULL, 0, 0)), 0);
	cr_assert_eq(test_device_calls(s.rig, TEST_IO_FLUSH), 1);
	cr_assert_eq(done_with(&s, request(COWSNAP_IO_ZERO, NULL, 0, BLOCK)), 0);
	cr_assert_eq(test_device_calls(s.rig, TEST_IO_ZERO), 1);
	cr_assert(all_are(&s, 0, BLOCK, 0) && all_are(&s, BLOCK, BLOCK, 7));
	cr_assert_eq(done_with(&s, request(COWSNAP_IO_DISCARD, NULL, BLOCK - 1, BLOCK + 2)), 0);
	cr_assert_eq(test_device_bytes(s.rig, TEST_IO_DISCARD), BLOCK, "whole blocks only");
	cr_assert_eq(done_with(&s, request(COWSNAP_IO_DISCARD, NULL, 1, BLOCK)), 0);
	cr_assert_eq(test_async_submitted(s.async), 6);
	close_scene(&s);
}

Test(dev_io, what_a_device_has_not_is_done_with_writes)
{
	const struct test_device_options options = {
		.size_bytes = DEVICE_BYTES, .block_size = BLOCK, .bare = true};
	const uint64_t length = 2 * CS_DEV_ZEROES_BYTES + BLOCK;
	uint8_t b[BLOCK] = {1};
	struct scene s;

	open_scene(&s, &options, TEST_ASYNC_INLINE);
	fill(&s, 9);
	cr_assert_eq(done_with(&s, request(COWSNAP_IO_ZERO, NULL, BLOCK, length)), 0);
	cr_assert(all_are(&s, 0, BLOCK, 9) && all_are(&s, BLOCK, length, 0));
	cr_assert(all_are(&s, BLOCK + length, BLOCK, 9));
	cr_assert_eq(test_async_submitted(s.async), 3);
	cr_assert_eq(done_with(&s, request(COWSNAP_IO_FLUSH, NULL, 0, 0)), 0);
	cr_assert_eq(done_with(&s, request(COWSNAP_IO_DISCARD, NULL, 0, length)), 0);
	cr_assert_eq(test_async_submitted(s.async), 3, "nothing to do");
	cr_assert_eq(done_with(&s, request(COWSNAP_IO_WRITE_DURABLE, b, 0, BLOCK)), 0);
	cr_assert_eq(test_async_submitted(s.async), 4, "there is no cache to flush");
	close_scene(&s);
}

Test(dev_io, a_zero_that_the_device_refuses_is_written)
{
	const uint64_t length = 3 * CS_DEV_ZEROES_BYTES;
	struct scene s;

	open_scene(&s, &plain, TEST_ASYNC_HELD);
	test_async_refuse_zero(s.async, true);
	fill(&s, 9);
	for (int fail = 0; fail < 2; fail++) {
		struct request r = request(COWSNAP_IO_ZERO, NULL, BLOCK, length);

		test_device_reset(s.rig);
		test_device_fail(s.rig, TEST_IO_WRITE, fail ? 2 : 0, false, -ENOSPC);
		submit(&s, &r);
		while (!r.calls) {
			cr_assert_eq(test_async_held(s.async), 1, "one after the other");
			test_async_release(s.async, 1, TEST_RELEASE_FIRST);
			cowsnap_queue_poll(s.queue);
		}
		cr_assert_eq(r.error, fail ? -ENOSPC : 0);
		cr_assert_eq(test_device_calls(s.rig, TEST_IO_WRITE), fail ? 2 : 3);
		cr_assert_eq(r.io.kind, COWSNAP_IO_ZERO);
	}
	cr_assert(all_are(&s, BLOCK, length, 0));
	cr_assert_eq(test_async_held(s.async), 0);
	close_scene(&s);
}

Test(dev_io, a_durable_write_is_a_write_and_a_flush)
{
	struct scene s;
	uint8_t b[BLOCK] = {1};

	open_scene(&s, &plain, TEST_ASYNC_INLINE);
	cr_assert_eq(done_with(&s, request(COWSNAP_IO_WRITE_DURABLE, b, 0, BLOCK)), 0);
	cr_assert_eq(test_device_calls(s.rig, TEST_IO_WRITE), 1);
	cr_assert_eq(test_device_calls(s.rig, TEST_IO_FLUSH), 1);
	test_device_fail(s.rig, TEST_IO_FLUSH, 1, false, -EIO);
	cr_assert_eq(done_with(&s, request(COWSNAP_IO_WRITE_DURABLE, b, 0, BLOCK)), -EIO);
	test_device_fail(s.rig, TEST_IO_WRITE, 1, false, -ENOSPC);
	cr_assert_eq(done_with(&s, request(COWSNAP_IO_WRITE_DURABLE, b, 0, BLOCK)), -ENOSPC);
	cr_assert_eq(test_device_calls(s.rig, TEST_IO_FLUSH), 2, "none after a failed write");
	close_scene(&s);
}

Test(dev_io, without_submit_the_device_is_called)
{
	struct cowsnap_device *kept;
	uint8_t b[BLOCK] = {1};
	struct scene s;

	open_scene(&s, &plain, TEST_ASYNC_HELD);
	kept = s.device;
	s.device = test_device(s.rig);
	cr_assert_eq(done_with(&s, request(COWSNAP_IO_WRITE, b, 0, BLOCK)), 0);
	test_device_fail(s.rig, TEST_IO_READ, 1, false, -EIO);
	cr_assert_eq(done_with(&s, request(COWSNAP_IO_READ, b, 0, BLOCK)), -EIO);
	/* An error that would begin a fallback, had it been submitted. */
	test_device_fail(s.rig, TEST_IO_ZERO, 1, false, -EOPNOTSUPP);
	test_device_fail(s.rig, TEST_IO_WRITE, 1, false, -EOPNOTSUPP);
	cr_assert_eq(done_with(&s, request(COWSNAP_IO_ZERO, NULL, 0, BLOCK)), -EOPNOTSUPP);
	cr_assert_eq(test_async_submitted(s.async), 0);
	s.device = kept;
	close_scene(&s);
}

/* ---- Ends ------------------------------------------------------------------------------------ */

Test(dev_io, a_queue_is_busy_until_its_requests_have_ended)
{
	uint8_t b[BLOCK] = {1};
	struct scene s;
	struct request r = request(COWSNAP_IO_WRITE, b, 0, BLOCK);

	open_scene(&s, &plain, TEST_ASYNC_HELD);
	submit(&s, &r);
	cr_assert_eq(cowsnap_queue_poll(s.queue), 0);
	cr_assert_eq(cowsnap_queue_close(s.queue), -EBUSY);
	cr_assert_eq(test_async_destroy(s.async), -EBUSY);
	test_async_release(s.async, 1, TEST_RELEASE_FIRST);
	cr_assert_eq(cowsnap_queue_close(s.queue), -EBUSY, "its callback has not run");
	cr_assert_eq(cowsnap_queue_poll(s.queue), 1);
	cr_assert_eq(r.calls, 1);
	/* One that ended inline counts as well. */
	test_async_set_mode(s.async, TEST_ASYNC_INLINE);
	r.calls = 0;
	submit(&s, &r);
	cr_assert_eq(cowsnap_queue_close(s.queue), -EBUSY);
	cr_assert_eq(cowsnap_queue_poll(s.queue), 1);
	cr_assert_eq(r.calls, 1);
	close_scene(&s);
}

Test(dev_io, requests_end_in_the_order_of_their_completion)
{
	static uint8_t b[MANY][BLOCK];
	static struct request r[MANY];
	struct scene s;

	open_scene(&s, &plain, TEST_ASYNC_HELD);
	for (unsigned i = 0; i < MANY; i++) {
		memset(b[i], (int)i, BLOCK);
		r[i] = request(COWSNAP_IO_WRITE, b[i], i * BLOCK, BLOCK);
		submit(&s, &r[i]);
	}
	cr_assert_eq(test_async_release(s.async, MANY + 1, TEST_RELEASE_LAST), MANY);
	cr_assert_eq(cowsnap_queue_poll(s.queue), MANY);
	for (unsigned i = 0; i < MANY; i++) {
		cr_assert_eq(r[i].calls, 1);
		cr_assert_eq(r[i].order, MANY - 1 - i);
		cr_assert(all_are(&s, i * BLOCK, BLOCK, (uint8_t)i));
	}
	close_scene(&s);
}

Test(dev_io, a_second_completion_is_logged_and_ignored)
{
	uint8_t b[BLOCK] = {1};
	struct scene s;
	struct request r = request(COWSNAP_IO_WRITE, b, 0, BLOCK);

	open_scene(&s, &plain, TEST_ASYNC_INLINE);
	test_async_set_twice(s.async, true);
	cr_assert_eq(done_with(&s, r), 0);
	cr_assert_eq(log_lines, 1);
	cr_assert_not_null(strstr(log_text, "twice"), "%s", log_text);
	test_async_set_mode(s.async, TEST_ASYNC_HELD);
	submit(&s, &r);
	test_async_release(s.async, 1, TEST_RELEASE_FIRST);
	finish(&s, &r);
	cr_assert_eq(r.error, 0);
	cr_assert_eq(log_lines, 2);
	/* Also after its callback, as long as its memory is not used again. */
	cowsnap_io_complete(&r.io, -EIO);
	cr_assert_eq(log_lines, 3);
	cr_assert_eq(cowsnap_queue_poll(s.queue), 0);
	cr_assert_eq(r.calls, 1);
	close_scene(&s);
}

static void run_chain(enum test_async_mode mode)
{
	static uint8_t b[MANY][BLOCK];
	static struct request r[MANY];
	struct scene s;

	open_scene(&s, &plain, mode);
	for (unsigned i = 0; i < MANY; i++) {
		memset(b[i], (int)i + 1, BLOCK);
		r[i] = request(COWSNAP_IO_WRITE, b[i], i * BLOCK, BLOCK);
		r[i].io.user = &r[i];
		r[i].device = s.device;
		/* Two chains. */
		r[i].then = i + 2 < MANY ? &r[i + 2] : NULL;
	}
	submit(&s, &r[0]);
	submit(&s, &r[1]);
	finish(&s, &r[MANY - 1]);
	finish(&s, &r[MANY - 2]);
	for (unsigned i = 0; i < MANY; i++) {
		cr_assert_eq(r[i].calls, 1);
		cr_assert_eq(r[i].error, 0);
		cr_assert(all_are(&s, i * BLOCK, BLOCK, (uint8_t)(i + 1)));
	}
	cr_assert_eq(log_lines, 0);
	close_scene(&s);
}

Test(dev_io, callbacks_submit_more)
{
	run_chain(TEST_ASYNC_INLINE);
}

Test(dev_io, another_thread_completes)
{
	run_chain(TEST_ASYNC_FOREIGN);
}

Test(dev_io, another_thread_completes_in_reverse)
{
	run_chain(TEST_ASYNC_REVERSE);
}

Test(dev_io, fallbacks_go_on_from_another_thread)
{
	const uint64_t length = 4 * CS_DEV_ZEROES_BYTES;
	uint8_t b[BLOCK] = {1};
	struct scene s;

	open_scene(&s, &plain, TEST_ASYNC_FOREIGN);
	test_async_refuse_zero(s.async, true);
	fill(&s, 9);
	cr_assert_eq(done_with(&s, request(COWSNAP_IO_ZERO, NULL, 0, length)), 0);
	cr_assert(all_are(&s, 0, length, 0));
	cr_assert_eq(done_with(&s, request(COWSNAP_IO_WRITE_DURABLE, b, 0, BLOCK)), 0);
	cr_assert_eq(test_device_calls(s.rig, TEST_IO_FLUSH), 1);
	close_scene(&s);
}
