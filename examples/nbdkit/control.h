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

/* control_merge - how far it is */
json_t *control_merge(struct volume *volume);

/* control_status - volume, store, snapshots, jobs, counters, I/O by thread */
json_t *control_status(struct volume *volume);

/* ---- Words of a line ---- */

#define CONTROL_WORDS_MAX 3

struct control_word {
	const char *bytes;
	size_t length;
};

struct control_words {
	struct control_word word[CONTROL_WORDS_MAX];
	size_t count;
};

/* Each returns NULL, or the refusal of that word. */
json_t *control_name(
	const struct control_words *words, size_t index, char name[SNAPSHOT_NAME_MAX + 1]);
json_t *control_number(const struct control_words *words, size_t index, uint64_t *number);

json_t *control_path(const struct control_words *words, size_t index, char **path);

/* control_is - the word is this one */
bool control_is(const struct control_words *words, size_t index, const char *text);

/* ---- control_snapshot.c, control_job.c: commands ---- */

typedef json_t *control_run(struct volume *volume, const struct control_words *words);

control_run control_run_take;
control_run control_run_drop;
control_run control_run_downgrade;
control_run control_run_release;
control_run control_run_changes;
control_run control_run_merge;
control_run control_run_merge_status;
control_run control_run_merge_stop;
control_run control_run_merge_resume;
control_run control_run_detach;
control_run control_run_detach_stop;
control_run control_run_throttle;
control_run control_run_handover;

#endif
