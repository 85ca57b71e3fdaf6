/* SPDX-License-Identifier: MIT
 *
 * Workers: threads that poll a queue and sleep on its fd. The only threads that the library starts.
 *
 * Locking: none; a worker is told to end by a task like any other.
 * Failure: all of them start, or none is left.
 */
#include "workers.h"

#include <poll.h>
#include <signal.h>
#include <string.h>

#include "alloc.h"
#include "copier.h"

#define WORKER_DEPTH 256u

struct worker {
	struct cowsnap_queue queue;
	pthread_t thread;
	struct cs_task stop;
	bool stopped;
};

struct cs_workers {
	size_t bytes; /* of this */
	unsigned count;
	struct worker worker[];
};

static void *work(void *user)
{
	struct worker *worker = user;
	struct pollfd wait = {.fd = worker->queue.fd, .events = POLLIN};

	while (!worker->stopped) {
		if (!cs_queue_poll(&worker->queue) && !worker->stopped)
			poll(&wait, 1, -1);
	}
	return NULL;
}

static void stop_worker(struct cs_task *task)
{
	cs_container_of(task, struct worker, stop)->stopped = true;
}

/* Signals are the host's threads' business. */
static int start_thread(struct worker *worker)
{
	sigset_t all, before;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = pthread_create(&worker->thread, NULL, work, worker);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return -rc;
}

static int start_worker(struct cowsnap_ctx *ctx, struct worker *worker, size_t record_bytes)
{
	int rc = cs_queue_init(&worker->queue, &ctx->base, WORKER_DEPTH, record_bytes, false);

	if (rc)
		return rc;
	worker->queue.handle.ctx = ctx;
	cs_task_init(&worker->stop, &worker->queue, stop_worker);
	rc = start_thread(worker);
	if (rc) {
		cs_log(&ctx->base, COWSNAP_LOG_ERROR, "worker: no thread, error %d", -rc);
		cs_queue_fini(&worker->queue);
	}
	return rc;
}

int cs_workers_start(struct cowsnap_ctx *ctx, unsigned count, size_t record_bytes)
{
	size_t bytes = sizeof(struct cs_workers) + count * sizeof(struct worker);
	struct cs_workers *workers =
		cs_alloc_aligned(ctx->base.alloc, bytes, _Alignof(struct cs_workers));
	int rc = 0;

	if (!workers)
		return -ENOMEM;
	memset(workers, 0, bytes);
	workers->bytes = bytes;
	ctx->workers = workers;
	while (!rc && workers->count < count) {
		rc = start_worker(ctx, &workers->worker[workers->count], record_bytes);
		workers->count += !rc;
	}
	if (rc)
		cs_workers_stop(ctx);
	return rc;
}

void cs_workers_stop(struct cowsnap_ctx *ctx)
{
	struct cs_workers *workers = ctx->workers;

	if (!workers)
		return;
	for (unsigned i = 0; i < workers->count; i++) {
		struct worker *worker = &workers->worker[i];

		cs_task_wake(&worker->stop);
		pthread_join(worker->thread, NULL);
		cs_queue_fini(&worker->queue);
	}
	cs_free(ctx->base.alloc, workers, workers->bytes);
	ctx->workers = NULL;
}

bool cs_workers_idle(const struct cowsnap_ctx *ctx)
{
	const struct cs_workers *workers = ctx->workers;

	for (unsigned i = 0; workers && i < workers->count; i++) {
		if (!cs_queue_idle(&workers->worker[i].queue))
			return false;
	}
	return true;
}

int cs_workers_route(struct cowsnap_ctx *ctx, struct cowsnap_queue *queue, cowsnap_done *done,
	struct cowsnap_queue **to)
{
	struct cs_workers *workers = ctx->workers;

	if (!done || (!queue && !workers)) {
		cs_log(&ctx->base, COWSNAP_LOG_ERROR, "operation refused: no %s",
			done ? "queue, and no workers" : "callback");
		return -EINVAL;
	}
	*to = queue;
	if (!queue) {
		*to = &workers->worker[cs_copier_thread(ctx->copier) % workers->count].queue;
		return 0;
	}
	if (queue->handle.ctx != ctx)
		return -EXDEV;
	return cs_handle_closed(&queue->handle) ? -EBADF : 0;
}
