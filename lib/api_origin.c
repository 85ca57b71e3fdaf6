/* SPDX-License-Identifier: MIT
 *
 * Origins: opening, closing, and their numbers.
 */
#include <string.h>

#include "alloc.h"
#include "api_device.h"
#include "origin.h"

static int make_origin(
	struct cowsnap_ctx *ctx, struct cowsnap_device *device, struct cowsnap_origin **out)
{
	struct cowsnap_origin *origin = cs_alloc_zeroed(ctx->base.alloc, sizeof(*origin));
	int rc = origin ? cs_dev_claim(device, CS_DEV_ORIGIN) : -ENOMEM;

	if (rc) {
		cs_free(ctx->base.alloc, origin, sizeof(*origin));
		return rc;
	}
	origin->handle.ctx = ctx;
	rc = cs_origin_init(origin, device);
	if (rc) {
		cs_dev_unclaim(device);
		cs_free(ctx->base.alloc, origin, sizeof(*origin));
		return rc;
	}
	*out = origin;
	return 0;
}

int cowsnap_origin_open(
	struct cowsnap_ctx *ctx, struct cowsnap_device *device, struct cowsnap_origin **out)
{
	struct cowsnap_origin *origin;
	int rc = cs_api_name_device(ctx, device);

	if (rc)
		return rc;
	rc = make_origin(ctx, device, &origin);
	if (rc) {
		cs_api_unname_device(device);
		return rc;
	}
	cs_ctx_adopt(ctx, &origin->handle, sizeof(*origin));
	cs_mutex_lock(&ctx->admin);
	origin->next = ctx->origins;
	ctx->origins = origin;
	cs_mutex_unlock(&ctx->admin);
	*out = origin;
	return 0;
}

/* Under ctx->admin. */
static bool in_use(struct cowsnap_origin *origin)
{
	/* Acquire, and before the gate: what is not outside any more is seen in the gate, or has
	 * left it; pairs with not_outside. */
	if (atomic_load_explicit(&origin->outside, memory_order_acquire) ||
		!cs_gate_empty(&origin->gate))
		return true;
	cs_origin_prune(origin);
	for (const struct cs_chain *c = origin->chains; c; c = c->next_of_origin) {
		if (!cs_chain_idle(c))
			return true;
	}
	return false;
}

/* Under ctx->admin. */
static bool pinned(const struct cowsnap_origin *origin)
{
	for (const struct cs_chain *c = origin->chains; c; c = c->next_of_origin) {
		if (c->pinned)
			return true;
	}
	return false;
}

/* Takes the origin out of the context. Returns: 0, -EBUSY. */
static int detach(struct cowsnap_origin *origin)
{
	struct cowsnap_ctx *ctx = origin->handle.ctx;
	struct cowsnap_origin **at = &ctx->origins;
	struct cs_task task;
	int rc = -EBUSY;

	cs_task_init(&task, NULL, NULL);
	cs_mutex_lock(&ctx->admin);
	/* A reclaimer stands on one of its chains; it waits for nobody. */
	while (pinned(origin)) {
		cs_waitlist_add(&ctx->unpinned, &task.waiter);
		cs_mutex_unlock(&ctx->admin);
		cs_task_sleep(&task);
		cs_mutex_lock(&ctx->admin);
	}
	if (!ctx->taking && !ctx->posted_takes && !in_use(origin)) {
		while (*at != origin)
			at = &(*at)->next;
		*at = origin->next;
		while (origin->chains)
			cs_origin_forget_chain(origin->chains);
		cs_stats_sum(ctx->closed_sum, origin->stats, cs_gate_entries(&origin->gate));
		rc = 0;
	}
	cs_mutex_unlock(&ctx->admin);
	return rc;
}

int cowsnap_origin_close(struct cowsnap_origin *origin)
{
	int rc;

	if (!origin)
		return 0;
	if (cs_handle_closed(&origin->handle))
		return -EBADF;
	/* What is left of dropped snapshots goes now, if nobody is in the way. */
	cowsnap_reclaim(origin->handle.ctx, UINT64_MAX);
	rc = detach(origin);
	if (rc) {
		cs_log(&origin->handle.ctx->base, COWSNAP_LOG_ERROR,
			"origin %s not closed: a snapshot, a bracket or a take is open",
			origin->device->name);
		return rc;
	}
	cs_ctx_retire(&origin->handle);
	cs_origin_fini(origin);
	cs_dev_unclaim(origin->device);
	cs_api_unname_device(origin->device);
	return 0;
}

int cowsnap_origin_stats(struct cowsnap_origin *origin, struct cowsnap_stats *stats, size_t size)
{
	struct cowsnap_stats report;
	struct cs_stats_sum sum;

	if (cs_handle_closed(&origin->handle))
		return -EBADF;
	memset(&sum, 0, sizeof(sum));
	cs_stats_sum(&sum, origin->stats, cs_gate_entries(&origin->gate));
	cs_stats_report(&sum, &report);
	return cs_result_copy(stats, size, &report, sizeof(report));
}

static int refuse_size(struct cowsnap_origin *origin, uint64_t size_bytes, int rc)
{
	cs_log(&origin->handle.ctx->base, COWSNAP_LOG_ERROR,
		"origin %s not resized from %llu to %llu bytes: %s", origin->device->name,
		(unsigned long long)cs_origin_size(origin), (unsigned long long)size_bytes,
		rc == -ERANGE ? "its device is shorter"
			      : "snapshots may need what would be cut off");
	return rc;
}

int cowsnap_origin_resize(struct cowsnap_origin *origin, uint64_t size_bytes)
{
	if (cs_handle_closed(&origin->handle))
		return -EBADF;
	if (!size_bytes)
		size_bytes = cs_dev_size(origin->device);
	if (size_bytes > cs_dev_size(origin->device))
		return refuse_size(origin, size_bytes, -ERANGE);
	if (size_bytes < cs_origin_size(origin))
		return refuse_size(origin, size_bytes, -ENOTSUP);
	/* Snapshots keep their size: what is written behind it is nobody's (cs_save_range()). */
	atomic_store_explicit(&origin->size_bytes, size_bytes, memory_order_relaxed);
	return 0;
}

uint64_t cowsnap_origin_size(const struct cowsnap_origin *origin)
{
	return cs_handle_closed(&origin->handle) ? 0 : cs_origin_size(origin);
}
