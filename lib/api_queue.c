/* SPDX-License-Identifier: MIT
 *
 * Queues: making, polling and closing them.
 *
 * Locking: ctx->admin for the list of handles. Failure: a queue is made whole or not at all.
 */
#include "api_queue.h"

#include <string.h>

#include "alloc.h"
#include "origin.h"
#include "snapshot.h"

size_t cs_record_bytes(void)
{
	return sizeof(struct cs_save) > sizeof(struct cs_read) ? sizeof(struct cs_save)
							       : sizeof(struct cs_read);
}

int cowsnap_queue_create(struct cowsnap_ctx *ctx, uint32_t depth, struct cowsnap_queue **out)
{
	struct cowsnap_queue *queue =
		cs_alloc_aligned(ctx->base.alloc, sizeof(*queue), _Alignof(struct cowsnap_queue));
	int rc;

	if (!queue)
		return -ENOMEM;
	memset(queue, 0, sizeof(*queue));
	rc = cs_queue_init(
		queue, &ctx->base, depth, cs_record_bytes(), ctx->engine == COWSNAP_ENGINE_INLINE);
	if (rc) {
		cs_free(ctx->base.alloc, queue, sizeof(*queue));
		return rc;
	}
	cs_ctx_adopt(ctx, &queue->handle, sizeof(*queue));
	*out = queue;
	return 0;
}

int cowsnap_queue_close(struct cowsnap_queue *queue)
{
	if (!queue)
		return 0;
	if (cs_handle_closed(&queue->handle))
		return -EBADF;
	/* Acquire: what the last poll has left; pairs with cs_queue_poll. */
	if (!cs_queue_idle(queue) || atomic_load_explicit(&queue->polling, memory_order_acquire)) {
		cs_log(queue->base, COWSNAP_LOG_ERROR,
			"queue not closed: %u operations have not ended",
			atomic_load_explicit(&queue->inflight, memory_order_relaxed));
		return -EBUSY;
	}
	cs_ctx_retire(&queue->handle);
	cs_queue_fini(queue);
	return 0;
}

int cowsnap_queue_fd(const struct cowsnap_queue *queue)
{
	return cs_handle_closed(&queue->handle) ? -EBADF : queue->fd;
}

int cowsnap_queue_poll(struct cowsnap_queue *queue)
{
	return cs_handle_closed(&queue->handle) ? -EBADF : cs_queue_poll(queue);
}
