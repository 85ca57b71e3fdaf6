/* SPDX-License-Identifier: MIT
 *
 * A store of the host's on a memory device: it counts what it gives, and calls the test when it
 * takes space back or is told of an invalid snapshot.
 */
#ifndef COWSNAP_TESTS_HOST_STORE_H
#define COWSNAP_TESTS_HOST_STORE_H

#include <cowsnap.h>

#include <errno.h>
#include <stdatomic.h>

#include "support/test.h"

struct host_store {
	struct cowsnap_device *device;
	struct cowsnap_store *store;
	uint64_t chunks; /* of its device */
	uint64_t stride; /* between what it gives; 0: 1 */
	_Atomic bool full;
	_Atomic uint64_t next;
	_Atomic uint64_t used;
	void (*freed)(void *user); /* NULL: not told */
	void (*lost)(void *user);
	void *user;
};

static inline int host_store_alloc(void *user, uint64_t want, uint64_t *location, uint64_t *count)
{
	struct host_store *h = user;

	(void)want;
	if (atomic_load(&h->full))
		return -ENOSPC;
	*location = atomic_fetch_add(&h->next, 1) * (h->stride ? h->stride : 1);
	*count = 1;
	atomic_fetch_add(&h->used, 1);
	return 0;
}

static inline void host_store_free(void *user, uint64_t location, uint64_t count)
{
	struct host_store *h = user;

	(void)location;
	atomic_fetch_sub(&h->used, count);
	if (h->freed)
		h->freed(h->user);
}

static inline void host_store_space(void *user, struct cowsnap_store_space *space)
{
	struct host_store *h = user;

	space->used_chunks = atomic_load(&h->used);
	space->limit_chunks = h->chunks;
}

static inline int host_store_invalidate(void *user, int reason)
{
	struct host_store *h = user;

	(void)reason;
	if (h->lost)
		h->lost(h->user);
	return 0;
}

/* The caller has set what is not of this header, or zero. */
static inline void host_store_open(struct host_store *h, struct cowsnap_ctx *ctx,
	uint64_t chunk_bytes, uint64_t chunks, uint32_t flags)
{
	const struct cowsnap_store_ops ops = {
		.size = sizeof(ops),
		.alloc = host_store_alloc,
		.free = host_store_free,
		.space = host_store_space,
		.invalidate = host_store_invalidate,
	};
	struct cowsnap_store_options options = {
		.size = sizeof(options),
		.flags = flags,
		.chunk_size_bytes = chunk_bytes,
	};

	h->chunks = chunks;
	cr_assert_eq(cowsnap_device_memory(ctx, chunk_bytes * chunks, &h->device), 0);
	options.device = h->device;
	cr_assert_eq(cowsnap_store_create(ctx, &ops, &options, h, &h->store), 0);
}

static inline void host_store_close(struct host_store *h)
{
	cr_assert_eq(cowsnap_store_close(h->store), 0);
	cr_assert_eq(atomic_load(&h->used), 0, "the store got back what it gave");
	cr_assert_eq(cowsnap_device_close(h->device), 0);
}

#endif
