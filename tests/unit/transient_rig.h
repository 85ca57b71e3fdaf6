/* SPDX-License-Identifier: MIT
 *
 * What the tests of the transient store share.
 */
#ifndef CS_TEST_TRANSIENT_RIG_H
#define CS_TEST_TRANSIENT_RIG_H

#include "support/seed.h"
#include "support/test.h"

#include "store.h"

#define CHUNK 4096u

static inline struct cowsnap_ctx *make_ctx(void)
{
	struct cowsnap_ctx *ctx = NULL;

	cr_assert_eq(cowsnap_ctx_create(NULL, &ctx), 0);
	return ctx;
}

static inline struct cowsnap_store *make(struct cowsnap_ctx *ctx, uint64_t limit_chunks)
{
	struct cowsnap_transient_options options = {.size = sizeof(options),
		.chunk_size_bytes = CHUNK,
		.limit_bytes = limit_chunks * CHUNK};
	struct cowsnap_store *store = NULL;

	cr_assert_eq(cowsnap_store_transient(ctx, &options, &store), 0);
	return store;
}

static inline void finish(struct cowsnap_ctx *ctx, struct cowsnap_store *store)
{
	cr_assert_eq(cowsnap_store_close(store), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

static inline uint64_t used(struct cowsnap_store *store)
{
	struct cowsnap_store_space space;

	cs_store_space(store, &space);
	return space.used_chunks;
}

/* Frees a random part of what a random run owns, as drops do. */
struct owned {
	uint64_t location;
	uint64_t count;
};

#define OWNED_MAX 512u

/* Frees one end of a run of the list, or all of it. Returns: what to free. */
static inline struct owned let_go(struct owned *list, size_t *length, struct seed *seed)
{
	size_t i = seed_below(seed, *length);
	struct owned part = list[i];

	if (seed_below(seed, 2) && part.count > 1) {
		part.count = 1 + seed_below(seed, part.count - 1);
		list[i].location += part.count;
		list[i].count -= part.count;
	} else {
		list[i] = list[--*length];
	}
	return part;
}

#endif
