/* SPDX-License-Identifier: MIT
 *
 * A file of one short line beside another file, replaced as a whole: after a crash it holds the old
 * line or the new one. Paths are absolute.
 */
#ifndef EXAMPLE_SIDECAR_H
#define EXAMPLE_SIDECAR_H

#include <stddef.h>

/*
 * sidecar_read - the line without its end
 * @line: @size bytes; ends with a zero byte
 * Returns: 0; -ENOENT (no such file), -EFBIG (more than @size - 1 bytes), or another negative
 *	errno.
 */
int sidecar_read(const char *path, char *line, size_t size);

/* sidecar_write - make it hold this line, durably; returns 0 or a negative errno */
int sidecar_write(const char *path, const char *line);

/* sidecar_remove - durably; returns 0, also if there is none, or a negative errno */
int sidecar_remove(const char *path);

#endif
