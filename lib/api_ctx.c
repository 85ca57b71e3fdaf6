/* SPDX-License-Identifier: MIT
 *
 * Contexts: making and ending them, and what is asked of all their origins and stores together.
 *
 * Invariants: a context ends only when no handle of it is open; then the memory of all its closed
 * ones goes with it.
 * Locking: ctx->admin over each look at the lists. A store's reclaiming is only tried under it,
 * because reclaiming takes admin itself.
 * Failure: a context that cannot be made whole is freed again.
 */
#include <string.h>

#include "alloc.h"
#include "api_queue.h"
#include "copier.h"
#include "origin.h"
#include "workers.h"

const char *cowsnap_version(void)
{
	return COWSNAP_VERSION_TEXT;
}

static int check_tables(const struct cowsnap_ctx_options *options)
{
	if (options->flags)
		return -EINVAL;
	if (options->allocator && cs_alloc_check(options->allocator))
		return -EINVAL;
	if (options->log && (options->log->size < sizeof(*options->log) || !options->log->write))
		return -EINVAL;
	if (options->clock &&
		(options->clock->size < sizeof(*options->clock) || !options->clock->now_ns))
		return -EINVAL;
	return 0;
}

static int check_engine(const struct cs_base *base, const struct cowsnap_ctx_options *options)
{
	bool workers = options->engine == COWSNAP_ENGINE_WORKERS;

	if ((unsigned)options->engine > COWSNAP_ENGINE_WORKERS) {
		cs_log(base, COWSNAP_LOG_ERROR, "context: unknown engine %d", (int)options->engine);
		return -EINVAL;
	}
	if (workers ? options->workers - 1 < COWSNAP_WORKERS_MAX : !options->workers)
		return 0;
	cs_log(base, COWSNAP_LOG_ERROR, "context: %u workers with engine %d: 1 to %u of them",
		options->workers, (int)options->engine, COWSNAP_WORKERS_MAX);
	return -EINVAL;
}

static int make_parts(struct cowsnap_ctx *ctx, const struct cowsnap_ctx_options *options)
{
	struct cowsnap_copier_options copier = {.size = sizeof(copier),
		.inflight_bytes = options->copy_inflight_bytes,
		.job_bytes = options->copy_job_bytes};
	int rc;

	ctx->closed_sum = cs_alloc_zeroed(ctx->base.alloc, sizeof(*ctx->closed_sum));
	if (!ctx->closed_sum)
		return -ENOMEM;
	rc = cs_copier_create(&ctx->base, &copier, &ctx->copier);
	if (rc || options->engine != COWSNAP_ENGINE_WORKERS)
		return rc;
	return cs_workers_start(ctx, options->workers, cs_record_bytes());
}

static void free_ctx(struct cowsnap_ctx *ctx)
{
	const struct cowsnap_allocator *alloc = ctx->base.alloc;

	/* A worker may be on its way out of its last operation. */
	cs_workers_stop(ctx);
	while (ctx->handles) {
		struct cs_handle *handle = ctx->handles;

		ctx->handles = handle->next;
		cs_free(alloc, handle, handle->bytes);
	}
	cs_copier_destroy(ctx->copier);
	cs_free(alloc, ctx->closed_sum, sizeof(*ctx->closed_sum));
	cs_mutex_fini(&ctx->admin);
	cs_free(alloc, ctx, sizeof(*ctx));
}

int cowsnap_ctx_create(const struct cowsnap_ctx_options *host_options, struct cowsnap_ctx **out)
{
	struct cowsnap_ctx_options options = {0};
	struct cs_base base = {.alloc = cs_alloc_libc()};
	struct cowsnap_ctx *ctx;
	int rc = cs_options_copy(
		&base, "context options", &options, sizeof(options), host_options, sizeof(options));

	if (!rc)
		rc = check_tables(&options);
	if (rc)
		return rc;
	base.log = options.log;
	base.clock = options.clock;
	if (options.allocator)
		base.alloc = options.allocator;
	rc = check_engine(&base, &options);
	if (rc)
		return rc;
	ctx = cs_alloc_aligned(base.alloc, sizeof(*ctx), _Alignof(struct cowsnap_ctx));
	if (!ctx)
		return -ENOMEM;
	memset(ctx, 0, sizeof(*ctx));
	ctx->base = base;
	ctx->event = options.event;
	ctx->event_user = options.event_user;
	ctx->engine = options.engine;
	cs_mutex_init(&ctx->admin);
	rc = make_parts(ctx, &options);
	if (rc) {
		free_ctx(ctx);
		return rc;
	}
	*out = ctx;
	return 0;
}

int cowsnap_ctx_destroy(struct cowsnap_ctx *ctx)
{
	size_t open;

	if (!ctx)
		return 0;
	cs_mutex_lock(&ctx->admin);
	open = ctx->open;
	cs_mutex_unlock(&ctx->admin);
	if (open) {
		cs_log(&ctx->base, COWSNAP_LOG_ERROR, "context not destroyed: %zu handles are open",
			open);
		return -EBUSY;
	}
	if (!cs_workers_idle(ctx)) {
		cs_log(&ctx->base, COWSNAP_LOG_ERROR,
			"context not destroyed: a worker has an operation");
		return -EBUSY;
	}
	free_ctx(ctx);
	return 0;
}

/* The open store with the largest id below @id; its reclaiming is locked. NULL: none is left. */
static struct cowsnap_store *lock_store_below(struct cowsnap_ctx *ctx, uint64_t *id) CS_NO_TSA
{
	struct cowsnap_store *store = NULL;

	cs_mutex_lock(&ctx->admin);
	for (struct cs_store_upper *u = ctx->stores; u && !store; u = u->next) {
		if (u->id < *id && cs_mutex_trylock(&u->reclaiming)) {
			store = u->store;
			*id = u->id;
		}
	}
	cs_mutex_unlock(&ctx->admin);
	return store;
}

#define SLICE_CHUNKS 4096u

/* The lock goes from one function to the next, which the analysis cannot follow. */
int cowsnap_reclaim(struct cowsnap_ctx *ctx, uint64_t max_chunks) CS_NO_TSA
{
	uint64_t id = UINT64_MAX;
	struct cowsnap_store *store;
	bool more = false;

	while (!more && (store = lock_store_below(ctx, &id))) {
		/* Writers that find the store full wait for the lock: let them in between. */
		uint64_t slice = max_chunks < SLICE_CHUNKS ? max_chunks : SLICE_CHUNKS;
		uint64_t left = slice;

		more = cs_reclaim_locked_store(store, &left);
		max_chunks -= slice - left;
		if (more && max_chunks && !left) {
			more = false;
			id++; /* the same store again */
		}
	}
	return more;
}

int cowsnap_ctx_stats(struct cowsnap_ctx *ctx, struct cowsnap_stats *stats, size_t size)
{
	struct cowsnap_stats report;
	struct cs_stats_sum sum;

	cs_mutex_lock(&ctx->admin);
	sum = *ctx->closed_sum;
	for (struct cowsnap_origin *o = ctx->origins; o; o = o->next)
		cs_stats_sum(&sum, o->stats, cs_gate_entries(&o->gate));
	cs_mutex_unlock(&ctx->admin);
	cs_stats_report(&sum, &report);
	return cs_result_copy(stats, size, &report, sizeof(report));
}

int cowsnap_ctx_thread_io(struct cowsnap_ctx *ctx, struct cowsnap_thread_io *threads, size_t count)
{
	return (int)cs_copier_threads(ctx->copier, threads, count);
}

int cowsnap_ctx_throttle(struct cowsnap_ctx *ctx, uint64_t bytes_per_s, unsigned share_percent)
{
	return cowsnap_copier_throttle(ctx->copier, bytes_per_s, share_percent);
}
