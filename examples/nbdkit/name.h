/* SPDX-License-Identifier: MIT
 *
 * What a snapshot may be called.
 */
#ifndef EXAMPLE_NAME_H
#define EXAMPLE_NAME_H

#include <stddef.h>

#define SNAPSHOT_NAME_MAX 255

/*
 * name_check - a name travels in NBD export names, URIs, logs and JSON, so it must be text
 * @message: why it is refused
 * Returns: 0; -ENODATA (empty), -ENAMETOOLONG, -E2BIG (a space), -EILSEQ (not UTF-8), -EBADMSG (a
 *	control character or a slash).
 */
int name_check(const char *bytes, size_t length, const char **message);

#endif
