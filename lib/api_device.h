/* SPDX-License-Identifier: MIT
 *
 * Which devices of a context are origins or stores: no two of them may be the same bytes.
 */
#ifndef CS_API_DEVICE_H
#define CS_API_DEVICE_H

#include "ctx.h"
#include "dev.h"

/* Returns: 0; -EINVAL (NULL), -EXDEV (of another context), -EBADF (closed), -EBUSY (it, or another
 * one of the same bytes, is an origin or a store). */
int cs_api_name_device(struct cowsnap_ctx *ctx, struct cowsnap_device *device);
void cs_api_unname_device(struct cowsnap_device *device);

#endif
