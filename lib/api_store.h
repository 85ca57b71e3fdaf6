/* SPDX-License-Identifier: MIT
 *
 * What the functions that open stores share.
 */
#ifndef CS_API_STORE_H
#define CS_API_STORE_H

#include "ctx.h"
#include "store.h"

/* The end of opening a store, which came to @rc: makes it one of the context, or takes back the
 * naming of its device (NULL: the store has its own). Returns: 0 with *@out set, or the error. */
int cs_api_store_opened(struct cowsnap_ctx *ctx, int rc, struct cowsnap_device *device,
	struct cowsnap_store *store, struct cowsnap_store **out);

#endif
