/* SPDX-License-Identifier: MIT
 *
 * What device, origin and store have in common: they belong to a context, are open or closed, and
 * their memory stays until the context ends, so that a call on a closed handle is refused instead
 * of touching freed memory.
 */
#ifndef CS_HANDLE_H
#define CS_HANDLE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

struct cowsnap_ctx;

struct cs_handle {
	struct cowsnap_ctx *ctx;
	struct cs_handle *next; /* all handles of the context; under its admin lock */
	size_t bytes;           /* of the object, for the allocator */
	atomic_bool closed;
};

static inline bool cs_handle_closed(const struct cs_handle *h)
{
	return atomic_load_explicit(&h->closed, memory_order_relaxed);
}

#endif
