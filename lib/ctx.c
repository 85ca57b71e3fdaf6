/* SPDX-License-Identifier: MIT
 *
 * The context's list of handles, and who waits for a take.
 */
#include "ctx.h"

void cs_ctx_adopt(struct cowsnap_ctx *ctx, struct cs_handle *handle, size_t bytes)
{
	handle->ctx = ctx;
	handle->bytes = bytes;
	cs_mutex_lock(&ctx->admin);
	handle->next = ctx->handles;
	ctx->handles = handle;
	ctx->open++;
	cs_mutex_unlock(&ctx->admin);
}

void cs_ctx_retire(struct cs_handle *handle)
{
	struct cowsnap_ctx *ctx = handle->ctx;

	cs_mutex_lock(&ctx->admin);
	atomic_store_explicit(&handle->closed, true, memory_order_relaxed);
	ctx->open--;
	cs_mutex_unlock(&ctx->admin);
}

struct cs_waiter *cs_ctx_establish(struct cowsnap_ctx *ctx, uint64_t epoch)
{
	/* Release: what the writers wait for; pairs with cs_ctx_is_established. */
	atomic_store_explicit(&ctx->established, epoch, memory_order_release);
	return cs_waitlist_take(&ctx->parked);
}

bool cs_ctx_await_established(struct cowsnap_ctx *ctx, uint64_t epoch, struct cs_waiter *waiter)
{
	bool parks;

	cs_mutex_lock(&ctx->admin);
	parks = !cs_ctx_is_established(ctx, epoch);
	if (parks)
		cs_waitlist_add(&ctx->parked, waiter);
	cs_mutex_unlock(&ctx->admin);
	return parks;
}

bool cs_ctx_forsake_established(struct cowsnap_ctx *ctx, struct cs_waiter *waiter)
{
	bool waited;

	cs_mutex_lock(&ctx->admin);
	waited = cs_waitlist_remove(&ctx->parked, waiter);
	cs_mutex_unlock(&ctx->admin);
	return waited;
}
