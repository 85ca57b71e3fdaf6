/* SPDX-License-Identifier: MIT
 *
 * The control socket: one command a line, one line of JSON as the answer.
 */
#ifndef EXAMPLE_CONTROL_H
#define EXAMPLE_CONTROL_H

#include "volume.h"

#include <jansson.h>
#include <stddef.h>

#define CONTROL_LINE_MAX 4096

struct control;

/*
 * control_listen - make the socket, mode 0600
 *
 * A socket that a dead server left is removed; anything else at that path is not touched.
 *
 * Returns: 0, or a negative errno after nbdkit_error() said what is wrong.
 */
int control_listen(const char *path, struct control **control);

/* control_start - serve the socket on a thread of its own; returns 0 or a negative errno */
int control_start(struct control *control, struct volume *volume);

/* control_stop - end the thread if there is one, close all clients, remove the socket */
void control_stop(struct control *control);

/*
 * control_execute - do what one line asks
 * @line: without its newline; any bytes
 * Returns: the answer; NULL if there is no memory for one.
 */
json_t *control_execute(struct volume *volume, const char *line, size_t length);

/* control_refusal - {"ok":false,"error":"EXXX","message":...} for a negative errno */
json_t *control_refusal(int error, const char *message);

/* control_snapshots - the array of all snapshots with state and numbers */
json_t *control_snapshots(const struct volume *volume);

/* control_status - volume, store, snapshots, counters, I/O by thread */
json_t *control_status(struct volume *volume);

#endif
