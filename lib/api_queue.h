/* SPDX-License-Identifier: MIT
 *
 * What api_ctx.c needs for the queues of workers.
 */
#ifndef CS_API_QUEUE_H
#define CS_API_QUEUE_H

#include <stddef.h>

/* The largest of what operations keep in a record of their queue. */
size_t cs_record_bytes(void);

#endif
