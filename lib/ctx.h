/* SPDX-License-Identifier: MIT
 *
 * The context: what all its origins and stores share. Higher-level things appear here as pointers
 * only.
 *
 * Invariants: `handles` only grows until the context ends. `established` <= `epoch`.
 *
 * Locking: `admin` guards the list of handles, the topology (which chains an origin and a store
 * have, which snapshot follows which), and `taking`. It is held for short, never during I/O, a
 * drain, or a callback of the host. The write path takes it only to wait
 * for the end of a drain, and when it has given a snapshot up.
 *
 * Failure: none here.
 */
#ifndef CS_CTX_H
#define CS_CTX_H

#include "handle.h"
#include "obs.h"
#include "task.h"

struct cowsnap_device;
struct cowsnap_origin;
struct cs_stats_sum;
struct cs_store_upper;
struct cs_workers;

struct cowsnap_ctx {
	struct cs_base base;
	void (*event)(void *event_user, const struct cowsnap_event *event);
	void *event_user;
	struct cowsnap_copier *copier;
	enum cowsnap_engine engine;
	struct cs_workers *workers;      /* NULL: none */
	struct cs_stats_sum *closed_sum; /* what closed origins had counted; under admin */

	struct cs_mutex admin;
	struct cs_waitlist turns;       /* who waits for `taking`, in order; under admin */
	struct cs_waitlist unpinned;    /* who waits for a reclaimer; under admin */
	struct cs_waitlist parked;      /* who waits for `established` to rise; under admin */
	struct cs_handle *handles;      /* open and closed */
	size_t open;                    /* handles that are open */
	bool taking;                    /* one take at a time */
	int posted_takes;               /* on their way to a worker; under admin */
	struct cowsnap_origin *prune;   /* origins to prune after it */
	struct cowsnap_device *named;   /* devices that are origins or stores */
	struct cowsnap_origin *origins; /* open ones */
	struct cs_store_upper *stores;  /* of open stores, newest first */
	uint64_t next_id;

	/* The instant: one store of it moves every origin of a take to its new generation. Read by
	 * each bracket, so on a line of its own. */
	_Alignas(CS_CACHE_BYTES) _Atomic uint64_t epoch;
	/* The newest epoch whose take is established or withdrawn. */
	_Alignas(CS_CACHE_BYTES) _Atomic uint64_t established;
};

/* The object, of @bytes, is open: its memory is the context's until the end. */
void cs_ctx_adopt(struct cowsnap_ctx *ctx, struct cs_handle *handle, size_t bytes);
/* The object was closed. */
void cs_ctx_retire(struct cs_handle *handle);

/* Is the take of this epoch established, or withdrawn? An acquire of what it did before. */
static inline bool cs_ctx_is_established(const struct cowsnap_ctx *ctx, uint64_t epoch)
{
	/* Acquire: pairs with cs_ctx_establish. */
	return atomic_load_explicit(&ctx->established, memory_order_acquire) >= epoch;
}
/* Returns: who waited for it, to be woken without the lock. */
struct cs_waiter *cs_ctx_establish(struct cowsnap_ctx *ctx, uint64_t epoch) CS_REQUIRES(ctx->admin);
/* Returns: false if it is. True: @waiter will be woken when one is; then look again. */
bool cs_ctx_await_established(struct cowsnap_ctx *ctx, uint64_t epoch, struct cs_waiter *waiter);
/* Waits no longer. Returns: false if the wake has come or is on its way. */
bool cs_ctx_forsake_established(struct cowsnap_ctx *ctx, struct cs_waiter *waiter);

#endif
