/* SPDX-License-Identifier: MIT
 *
 * Devices that are submitted to, for the tests of the copier: what is submitted is held until the
 * test completes it, or a thread does, or completes inside submit. And what the tests share: a
 * source, targets, a queue.
 */
#ifndef CS_TEST_COPIER_ASYNC_H
#define CS_TEST_COPIER_ASYNC_H

#include "support/seed.h"
#include "support/test.h"

#include <cowsnap.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define KIB     UINT64_C(1024)
#define MIB     (UINT64_C(1024) * 1024)
#define SIZE    (2 * MIB)
#define TARGETS 3
#define HELD    512

enum slow_mode {
	SLOW_HELD,   /* slow_complete() does it */
	SLOW_THREAD, /* a thread of the device does it, in any order */
	SLOW_INLINE,
};

struct slow_fault {
	bool set;
	enum cowsnap_io_kind kind;
	uint64_t offset; /* a request that has this byte fails */
	int error;
};

struct slow {
	struct cowsnap_device *device;
	uint8_t *bytes;
	enum slow_mode mode;
	pthread_mutex_t lock;
	pthread_cond_t come;
	pthread_t thread;
	bool stop;
	struct cowsnap_io *held[HELD];
	size_t count;
	size_t most;        /* that were held at a time */
	uint64_t longest;   /* request */
	uint64_t calls[6];  /* by kind, sync ones too */
	uint64_t called[6]; /* of these, not submitted */
	struct slow_fault fault;
};

static inline int slow_do(
	struct slow *s, enum cowsnap_io_kind kind, void *buffer, uint64_t offset, uint64_t length)
{
	int error = 0;

	pthread_mutex_lock(&s->lock);
	if (s->fault.set && s->fault.kind == kind && offset <= s->fault.offset &&
		s->fault.offset - offset < length)
		error = s->fault.error;
	pthread_mutex_unlock(&s->lock);
	if (error)
		return error;
	if (kind == COWSNAP_IO_READ)
		memcpy(buffer, s->bytes + offset, length);
	else if (kind == COWSNAP_IO_WRITE)
		memcpy(s->bytes + offset, buffer, length);
	else
		memset(s->bytes + offset, 0, length);
	return 0;
}

static inline void slow_count(struct slow *s, enum cowsnap_io_kind kind, uint64_t length, bool sync)
{
	s->calls[kind]++;
	s->called[kind] += sync;
	if (length > s->longest)
		s->longest = length;
}

static inline int slow_call(
	struct slow *s, enum cowsnap_io_kind kind, void *buffer, uint64_t offset, uint64_t length)
{
	pthread_mutex_lock(&s->lock);
	slow_count(s, kind, length, true);
	pthread_mutex_unlock(&s->lock);
	return slow_do(s, kind, buffer, offset, length);
}

static inline int slow_read(void *user, void *buffer, uint64_t offset, uint64_t length)
{
	return slow_call(user, COWSNAP_IO_READ, buffer, offset, length);
}

static inline int slow_write(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	return slow_call(user, COWSNAP_IO_WRITE, (void *)(uintptr_t)buffer, offset, length);
}

static inline int slow_zero(void *user, uint64_t offset, uint64_t length)
{
	return slow_call(user, COWSNAP_IO_ZERO, NULL, offset, length);
}

static inline void slow_end(struct slow *s, struct cowsnap_io *io)
{
	cowsnap_io_complete(io, slow_do(s, io->kind, io->buffer, io->offset, io->length));
}

static inline void slow_submit(void *user, struct cowsnap_io *io)
{
	struct slow *s = user;

	pthread_mutex_lock(&s->lock);
	slow_count(s, io->kind, io->length, false);
	if (s->mode != SLOW_INLINE) {
		cr_assert_lt(s->count, HELD);
		s->held[s->count++] = io;
		if (s->count > s->most)
			s->most = s->count;
		pthread_cond_signal(&s->come);
	}
	pthread_mutex_unlock(&s->lock);
	if (s->mode == SLOW_INLINE)
		slow_end(s, io);
}

/* Completes what was submitted as number @n of those that are held. */
static inline void slow_complete(struct slow *s, size_t n)
{
	struct cowsnap_io *io;

	pthread_mutex_lock(&s->lock);
	cr_assert_lt(n, s->count);
	io = s->held[n];
	s->count--;
	memmove(&s->held[n], &s->held[n + 1], (s->count - n) * sizeof(s->held[0]));
	pthread_mutex_unlock(&s->lock);
	slow_end(s, io);
}

static inline void *slow_work(void *user)
{
	struct slow *s = user;
	struct seed seed = {(uintptr_t)user};

	pthread_mutex_lock(&s->lock);
	while (!s->stop) {
		struct cowsnap_io *io;
		size_t n;

		if (!s->count) {
			pthread_cond_wait(&s->come, &s->lock);
			continue;
		}
		n = seed_below(&seed, s->count);
		io = s->held[n];
		s->held[n] = s->held[--s->count];
		pthread_mutex_unlock(&s->lock);
		slow_end(s, io);
		pthread_mutex_lock(&s->lock);
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

struct slow_options {
	enum slow_mode mode;
	uint64_t size_bytes;
	uint32_t block_size;
	bool no_zero;   /* the table has no zero */
	bool no_submit; /* nor submit */
};

static inline void slow_open(
	struct slow *s, struct cowsnap_ctx *ctx, const struct slow_options *options)
{
	struct cowsnap_device_ops ops = {.size = sizeof(ops),
		.read = slow_read,
		.write = slow_write,
		.zero = options->no_zero ? NULL : slow_zero,
		.submit = options->no_submit ? NULL : slow_submit};
	struct cowsnap_device_options device = {.size = sizeof(device),
		.block_size = options->block_size,
		.size_bytes = options->size_bytes};

	memset(s, 0, sizeof(*s));
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->come, NULL);
	s->mode = options->mode;
	s->bytes = calloc(1, options->size_bytes);
	cr_assert_not_null(s->bytes);
	cr_assert_eq(cowsnap_device_create(ctx, &ops, &device, s, &s->device), 0);
	if (s->mode == SLOW_THREAD)
		cr_assert_eq(pthread_create(&s->thread, NULL, slow_work, s), 0);
}

static inline void slow_close(struct slow *s)
{
	if (s->mode == SLOW_THREAD) {
		pthread_mutex_lock(&s->lock);
		s->stop = true;
		pthread_cond_signal(&s->come);
		pthread_mutex_unlock(&s->lock);
		pthread_join(s->thread, NULL);
	}
	cr_assert_eq(s->count, 0);
	cr_assert_eq(cowsnap_device_close(s->device), 0);
	free(s->bytes);
	pthread_cond_destroy(&s->come);
	pthread_mutex_destroy(&s->lock);
}

/* ---- A source, targets, a queue -------------------------------------------------------------- */

struct setting {
	enum slow_mode mode;
	enum cowsnap_engine engine; /* INLINE is taken for LOOP unless `blocking` */
	bool blocking;
	uint32_t workers;
	uint64_t inflight_bytes;
	uint64_t job_bytes;
	uint32_t block_size;
	uint64_t source_bytes;
	const struct cowsnap_allocator *alloc;
	bool no_zero;
	bool no_submit;
};

struct scene {
	struct cowsnap_ctx *ctx;
	struct cowsnap_copier *copier;
	struct cowsnap_queue *queue;
	struct slow source;
	struct slow to[TARGETS];
};

static inline void scene_open(struct scene *s, const struct setting *setting)
{
	struct cowsnap_ctx_options ctx = {.size = sizeof(ctx),
		.allocator = setting->alloc,
		.engine = setting->engine,
		.workers = setting->workers};
	struct cowsnap_copier_options copier = {.size = sizeof(copier),
		.inflight_bytes = setting->inflight_bytes,
		.job_bytes = setting->job_bytes};
	struct slow_options device = {.mode = setting->mode,
		.size_bytes = setting->source_bytes ? setting->source_bytes : SIZE,
		.no_zero = setting->no_zero,
		.no_submit = setting->no_submit};
	struct seed seed = {4};

	memset(s, 0, sizeof(*s));
	if (ctx.engine == COWSNAP_ENGINE_INLINE && !setting->blocking)
		ctx.engine = COWSNAP_ENGINE_LOOP;
	cr_assert_eq(cowsnap_ctx_create(&ctx, &s->ctx), 0);
	cr_assert_eq(cowsnap_copier_create(s->ctx, &copier, &s->copier), 0);
	cr_assert_eq(cowsnap_queue_create(s->ctx, 8, &s->queue), 0);
	slow_open(&s->source, s->ctx, &device);
	seed_fill(&seed, s->source.bytes, device.size_bytes);
	device.size_bytes = SIZE;
	device.block_size = setting->block_size;
	for (int i = 0; i < TARGETS; i++) {
		slow_open(&s->to[i], s->ctx, &device);
		memset(s->to[i].bytes, 0xee, SIZE);
	}
}

static inline void scene_close(struct scene *s)
{
	cr_assert_eq(cowsnap_queue_close(s->queue), 0);
	cowsnap_copier_destroy(s->copier);
	slow_close(&s->source);
	for (int i = 0; i < TARGETS; i++)
		slow_close(&s->to[i]);
	cr_assert_eq(cowsnap_ctx_destroy(s->ctx), 0);
}

/* A copy without waiting, and its end. */
struct job {
	struct cowsnap_copy copy;
	struct cowsnap_copy_target target[16];
	struct cowsnap_op op;
	atomic_int calls;
	int error;
	pthread_t thread; /* of the callback */
};

static inline void job_done(struct cowsnap_op *op, void *user, int error)
{
	struct job *job = user;

	cr_assert_eq(op, &job->op);
	job->error = error;
	job->thread = pthread_self();
	atomic_fetch_add(&job->calls, 1);
}

static inline void job_add(struct job *job, const struct scene *s, int device,
	uint64_t source_offset, uint64_t length, uint64_t offset)
{
	cr_assert_lt(job->copy.count, 16);
	job->target[job->copy.count++] =
		(struct cowsnap_copy_target){.device = s->to[device].device,
			.offset = offset,
			.source_offset = source_offset,
			.length = length,
			.error = 1};
	job->copy.targets = job->target;
	job->copy.source = s->source.device;
}

static inline void job_start(struct job *job, struct scene *s)
{
	/* Whatever the words hold. */
	memset(job->copy.words, 0x5a, sizeof(job->copy.words));
	cr_assert_eq(
		cowsnap_copier_copy_async(s->copier, s->queue, &job->copy, &job->op, job_done, job),
		COWSNAP_PENDING);
	cr_assert_eq(atomic_load(&job->calls), 0, "never inside the call");
}

/* Polls until nothing more happens by itself. */
static inline void settle_queue(struct scene *s)
{
	struct pollfd fd = {.fd = cowsnap_queue_fd(s->queue), .events = POLLIN};

	do
		cr_assert_geq(cowsnap_queue_poll(s->queue), 0);
	while (poll(&fd, 1, 0) == 1);
}

static inline void wait_for(struct scene *s, struct job *job)
{
	struct pollfd fd = {.fd = cowsnap_queue_fd(s->queue), .events = POLLIN};

	for (;;) {
		cr_assert_geq(cowsnap_queue_poll(s->queue), 0);
		if (atomic_load(&job->calls))
			break;
		cr_assert_eq(poll(&fd, 1, 30000), 1, "nothing comes");
	}
	cr_assert_eq(atomic_load(&job->calls), 1);
}

/* Completes all that is held, the first or the last first, until the job has ended. */
static inline void finish_by(struct scene *s, struct job *job, bool first)
{
	for (settle_queue(s); !atomic_load(&job->calls); settle_queue(s)) {
		size_t held = s->source.count;

		if (s->source.count)
			slow_complete(&s->source, first ? 0 : s->source.count - 1);
		for (int i = 0; i < TARGETS; i++) {
			held += s->to[i].count;
			if (s->to[i].count)
				slow_complete(&s->to[i], first ? 0 : s->to[i].count - 1);
		}
		cr_assert_gt(held, 0, "it hangs");
	}
	cr_assert_eq(atomic_load(&job->calls), 1);
}

static inline void finish(struct scene *s, struct job *job)
{
	finish_by(s, job, false);
}

static inline void expect_copied(const struct scene *s, const struct job *job, size_t n)
{
	const struct cowsnap_copy_target *t = &job->target[n];

	for (int i = 0; i < TARGETS; i++) {
		if (t->device == s->to[i].device)
			cr_assert_arr_eq(s->to[i].bytes + t->offset,
				s->source.bytes + t->source_offset, t->length);
	}
}

static inline void expect_all(const struct scene *s, const struct job *job)
{
	cr_assert_eq(job->error, 0);
	for (size_t i = 0; i < job->copy.count; i++) {
		cr_assert_eq(job->target[i].error, 0);
		expect_copied(s, job, i);
	}
}

static inline bool is_all(const uint8_t *bytes, uint8_t value, uint64_t length)
{
	for (uint64_t i = 0; i < length; i++) {
		if (bytes[i] != value)
			return false;
	}
	return true;
}

#endif
