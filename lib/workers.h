/* SPDX-License-Identifier: MIT
 *
 * Workers: the threads that a context was asked to have, each with a queue of its own. What one
 * thread of the host starts without a queue goes to one worker.
 */
#ifndef CS_WORKERS_H
#define CS_WORKERS_H

#include "ctx.h"
#include "queue.h"

struct cs_workers;

/* Returns: 0; -EAGAIN (no thread), -ENOMEM, or as cs_queue_init(). */
int cs_workers_start(struct cowsnap_ctx *ctx, unsigned count, size_t record_bytes);
/* No operation is in flight. Nothing is done if there are none. */
void cs_workers_stop(struct cowsnap_ctx *ctx);
/* Has none of them an operation? */
bool cs_workers_idle(const struct cowsnap_ctx *ctx);

/* Where an operation goes that was given @queue. Returns: 0; -EINVAL (no callback; no queue and no
 * workers), -EBADF, -EXDEV. */
int cs_workers_route(struct cowsnap_ctx *ctx, struct cowsnap_queue *queue, cowsnap_done *done,
	struct cowsnap_queue **to);

#endif
