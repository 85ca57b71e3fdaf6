/* SPDX-License-Identifier: MIT
 *
 * Stores: opening, closing, their numbers, and the calls of the building block.
 */
#include "api_store.h"
#include "alloc.h"
#include "api_device.h"
#include "origin.h"

/* Gives a new store what the snapshots need, and makes it one of the context. */
static int adopt(struct cowsnap_ctx *ctx, struct cowsnap_store *store)
{
	int rc = cs_store_upper_create(store);

	if (!rc) {
		rc = cs_reclaim_init(store);
		if (rc)
			cs_store_upper_destroy(store);
	}
	if (rc) {
		cs_store_destroy(store);
		return rc;
	}
	cs_ctx_adopt(ctx, &store->handle, store->handle.bytes);
	cs_mutex_lock(&ctx->admin);
	store->upper->store = store;
	store->upper->id = ++ctx->next_id;
	store->upper->next = ctx->stores;
	ctx->stores = store->upper;
	cs_mutex_unlock(&ctx->admin);
	return 0;
}

int cs_api_store_opened(struct cowsnap_ctx *ctx, int rc, struct cowsnap_device *device,
	struct cowsnap_store *store, struct cowsnap_store **out)
{
	if (!rc)
		rc = adopt(ctx, store);
	if (!rc)
		*out = store;
	else if (device)
		cs_api_unname_device(device);
	return rc;
}

int cowsnap_store_transient(struct cowsnap_ctx *ctx,
	const struct cowsnap_transient_options *options, struct cowsnap_store **out)
{
	struct cowsnap_device *device =
		options && options->size >= sizeof(*options) ? options->device : NULL;
	struct cowsnap_store *store = NULL;
	int rc = device ? cs_api_name_device(ctx, device) : 0;

	if (rc)
		return rc;
	rc = cs_store_transient(&ctx->base, options, &store);
	return cs_api_store_opened(ctx, rc, device, store, out);
}

int cowsnap_store_create(struct cowsnap_ctx *ctx, const struct cowsnap_store_ops *ops,
	const struct cowsnap_store_options *options, void *user, struct cowsnap_store **out)
{
	struct cowsnap_device *device =
		options && options->size >= sizeof(*options) ? options->device : NULL;
	struct cowsnap_store *store = NULL;
	int rc = device ? cs_api_name_device(ctx, device) : 0;

	if (rc)
		return rc;
	rc = cs_store_create(&ctx->base, ops, options, user, &store);
	return cs_api_store_opened(ctx, rc, device, store, out);
}

/* Forgets the chains, if no snapshot is in any, and takes the store out of the context. Under
 * ctx->admin and upper->reclaiming. Returns: 0, -EBUSY. */
static int detach(struct cowsnap_store *store)
{
	struct cowsnap_ctx *ctx = store->handle.ctx;
	struct cs_store_upper **at = &ctx->stores;
	bool busy = ctx->taking || ctx->posted_takes || !cs_gate_empty(&store->upper->reads);
	int rc = busy ? -EBUSY : 0;

	for (struct cs_chain *c = store->upper->chains; c && !rc; c = c->next_of_store) {
		cs_origin_prune(c->origin);
		if (!cs_chain_idle(c) || cs_origin_uses(c->origin, c))
			rc = -EBUSY;
	}
	if (rc)
		return rc;
	while (store->upper->chains)
		cs_origin_forget_chain(store->upper->chains);
	while (*at != store->upper)
		at = &(*at)->next;
	*at = store->upper->next;
	return 0;
}

int cowsnap_store_close(struct cowsnap_store *store)
{
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *device;
	int rc;

	if (!store)
		return 0;
	if (cs_handle_closed(&store->handle))
		return -EBADF;
	ctx = store->handle.ctx;
	/* What is left of dropped snapshots goes now, if nobody is in the way; and from then on no
	 * other thread may begin to reclaim. */
	cs_mutex_lock(&store->upper->reclaiming);
	cs_reclaim_everything(store);
	cs_mutex_lock(&ctx->admin);
	rc = detach(store);
	cs_mutex_unlock(&ctx->admin);
	cs_mutex_unlock(&store->upper->reclaiming);
	if (rc) {
		cs_log(&ctx->base, COWSNAP_LOG_ERROR,
			"store on %s not closed: a snapshot, a reader, a write or a take is open",
			store->device->name);
		return rc;
	}
	device = store->device->handle.ctx ? store->device : NULL;
	cs_reclaim_fini(store);
	cs_store_upper_destroy(store);
	cs_ctx_retire(&store->handle);
	cs_store_fini(store);
	if (device)
		cs_api_unname_device(device);
	return 0;
}

int cowsnap_store_set_limit(struct cowsnap_store *store, uint64_t limit_bytes)
{
	if (cs_handle_closed(&store->handle))
		return -EBADF;
	return cs_store_set_limit(store, limit_bytes);
}

/* Returns: chunks that may be given back; an upper bound. */
static uint64_t count_snapshots(struct cowsnap_store *store, struct cowsnap_store_usage *usage)
{
	struct cowsnap_ctx *ctx = store->handle.ctx;
	uint64_t reclaimable =
		atomic_load_explicit(&store->upper->limbo_chunks, memory_order_relaxed);

	cs_mutex_lock(&ctx->admin);
	for (struct cs_chain *c = store->upper->chains; c; c = c->next_of_store) {
		for (struct cowsnap_snapshot *s = cs_chain_newest(c); s; s = cs_snapshot_older(s)) {
			usage->map_bytes += cs_snapshot_map_bytes(s);
			if (cs_snapshot_counts(s))
				usage->snapshots++;
			else
				usage->ghosts++;
			if (!cs_snapshot_keeps(s) && !cs_snapshot_scanned(s))
				reclaimable +=
					cowsnap_map_count(&s->map) + cowsnap_map_count(&s->own);
		}
	}
	cs_mutex_unlock(&ctx->admin);
	return reclaimable;
}

int cowsnap_store_usage(struct cowsnap_store *store, struct cowsnap_store_usage *out, size_t size)
{
	struct cowsnap_store_usage usage = {0};
	struct cowsnap_store_space space;

	if (cs_handle_closed(&store->handle))
		return -EBADF;
	cs_store_space(store, &space);
	usage.chunk_size_bytes = cs_store_chunk_bytes(store);
	usage.used_bytes = space.used_chunks << store->chunk_shift;
	usage.limit_bytes = space.limit_chunks << store->chunk_shift;
	usage.high_water_bytes = cs_store_high_water(store) << store->chunk_shift;
	usage.reclaimable_bytes = count_snapshots(store, &usage) << store->chunk_shift;
	if (usage.reclaimable_bytes > usage.used_bytes)
		usage.reclaimable_bytes = usage.used_bytes;
	return cs_result_copy(out, size, &usage, sizeof(usage));
}

int cowsnap_store_alloc(
	struct cowsnap_store *store, uint64_t want, uint64_t *location, uint64_t *count)
{
	bool low_water = false;
	int rc;

	if (cs_handle_closed(&store->handle))
		return -EBADF;
	rc = cs_store_alloc(store, want, location, count, &low_water);
	if (low_water)
		cs_event_store(store, COWSNAP_EVENT_LOW_WATER, 0);
	return rc;
}

void cowsnap_store_free(struct cowsnap_store *store, uint64_t location, uint64_t count)
{
	if (!cs_handle_closed(&store->handle))
		cs_store_free(store, location, count);
}

int cowsnap_store_commit(struct cowsnap_store *store, const struct cowsnap_run *runs, size_t count)
{
	if (cs_handle_closed(&store->handle))
		return -EBADF;
	return cs_store_commit(store, runs, count);
}

struct cowsnap_device *cowsnap_store_device(struct cowsnap_store *store)
{
	return store->device;
}

uint64_t cowsnap_store_chunk_size(const struct cowsnap_store *store)
{
	return cs_store_chunk_bytes(store);
}
