/* SPDX-License-Identifier: MIT
 *
 * The context's list of handles.
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
