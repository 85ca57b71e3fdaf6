/* SPDX-License-Identifier: MIT
 *
 * The commands of the control socket. A line is a command and its arguments, with one space before
 * each. Every refusal has an error of its own:
 *
 *	ENOSYS        unknown command          EEXIST        take: the name is in use
 *	EINVAL        an argument is missing   ENOENT        no snapshot has that name
 *	E2BIG         more than is wanted      ETIMEDOUT     older writes did not end
 *	ENODATA       the name is empty        EMSGSIZE      the line is too long
 *	ENAMETOOLONG  the name is too long     EPROTO        the last line has no end
 *	EILSEQ        the name is not UTF-8    EDOM          a number is wanted
 *	EBADMSG       a control character or a slash in the name; no path
 *	ESHUTDOWN     the volume has been handed over
 *	EBUSY         a dm store holds one snapshot; there is a merge
 *	ENODEV        grow: the store is in memory
 *	ERANGE        a file is shorter than it was; a range or a number is beyond its bounds
 *
 * The other files of commands say what else they may answer. What is not theirs is the library's
 * error, or that of a device.
 */
#include "control.h"

#include <errno.h>
#include <string.h>

struct command {
	const char *name;
	const char *help;
	size_t least; /* arguments */
	size_t most;
	control_run *run;
};

json_t *control_refusal(int error, const char *message)
{
	const char *name = strerrorname_np(-error);

	return json_pack("{s:b,s:s,s:s}", "ok", 0, "error", name ? name : "EIO", "message",
		message ? message : strerror(-error));
}

static json_t *run_grow(struct volume *volume, const struct control_words *words)
{
	struct cowsnap_store_usage usage;
	int error = volume_grow(volume);

	(void)words;
	if (error == -ENODEV)
		return control_refusal(error, "the store is in memory, it has no file to grow");
	if (error == -ERANGE)
		return control_refusal(error, "the store's file is shorter than it was");
	if (error == 0)
		error = cowsnap_store_usage(volume->store, &usage, sizeof(usage));
	if (error != 0)
		return control_refusal(error, NULL);
	return json_pack("{s:b,s:I}", "ok", 1, "limit_bytes", (json_int_t)usage.limit_bytes);
}

static json_t *run_resize(struct volume *volume, const struct control_words *words)
{
	int error = volume_resize(volume);

	(void)words;
	if (error == -ERANGE)
		return control_refusal(error, "the volume's file is shorter than it was");
	if (error != 0)
		return control_refusal(error, NULL);
	return json_pack("{s:b,s:I}", "ok", 1, "size_bytes",
		(json_int_t)cowsnap_origin_size(volume->origin));
}

static json_t *run_list(struct volume *volume, const struct control_words *words)
{
	(void)words;
	return json_pack("{s:b,s:o}", "ok", 1, "snapshots", control_snapshots(volume));
}

static json_t *run_status(struct volume *volume, const struct control_words *words)
{
	(void)words;
	return control_status(volume);
}

static json_t *run_help(struct volume *volume, const struct control_words *words);

static const struct command commands[] = {
	{"take",
		"take NAME [map-only]: freeze the volume, to be read as export @NAME; map-only: "
		"keep "
		"what has changed since, and no data",
		1, 2, control_run_take},
	{"drop", "drop NAME: delete a snapshot", 1, 1, control_run_drop},
	{"downgrade", "downgrade NAME: give up its data, keep what has changed since", 1, 1,
		control_run_downgrade},
	{"release", "release NAME OFFSET LENGTH: this was read and is not needed any more", 3, 3,
		control_run_release},
	{"changes",
		"changes A [B [OFFSET]]: what differs between two snapshots, from OFFSET on; "
		"without "
		"B, or with /now: between A and the volume",
		1, 3, control_run_changes},
	{"merge", "merge NAME: roll the volume back to a snapshot, while it is in use", 1, 1,
		control_run_merge},
	{"merge-status", "merge-status: how far it is", 0, 0, control_run_merge_status},
	{"merge-stop", "merge-stop: stop moving data; the volume shows the snapshot all the same",
		0, 0, control_run_merge_stop},
	{"merge-resume", "merge-resume: go on, after a stop or a failure", 0, 0,
		control_run_merge_resume},
	{"detach", "detach NAME: copy what a snapshot still has in the volume", 1, 1,
		control_run_detach},
	{"detach-stop", "detach-stop: stop that; detach it again to go on", 0, 0,
		control_run_detach_stop},
	{"throttle",
		"throttle BYTES SHARE: how much a second, 0 for no bound, and how many percent of "
		"the "
		"time a merge or detach may read",
		2, 2, control_run_throttle},
	{"resize", "resize: make the volume as long as its file, after that was made longer", 0, 0,
		run_resize},
	{"grow", "grow: use all of the store's file, after it was made longer", 0, 0, run_grow},
	{"handover",
		"handover PATH: give the dm store to a server that is started with "
		"handover-file=PATH; this one does nothing more",
		1, 1, control_run_handover},
	{"list", "list: the snapshots, oldest first", 0, 0, run_list},
	{"status", "status: volume, store, snapshots, jobs, counters", 0, 0, run_status},
	{"help", "help: this", 0, 0, run_help},
};

static const size_t commands_count = sizeof(commands) / sizeof(commands[0]);

static json_t *run_help(struct volume *volume, const struct control_words *words)
{
	json_t *texts = json_array();
	size_t i;

	(void)volume;
	(void)words;
	for (i = 0; i < commands_count; i++)
		json_array_append_new(texts, json_string(commands[i].help));
	return json_pack("{s:b,s:o}", "ok", 1, "commands", texts);
}

/* ---- Words ---------------------------------------------------------------------------------- */

bool control_is(const struct control_words *words, size_t index, const char *text)
{
	const struct control_word *word = &words->word[index];

	return index < words->count && word->length == strlen(text) &&
	       memcmp(word->bytes, text, word->length) == 0;
}

json_t *control_name(
	const struct control_words *words, size_t index, char name[SNAPSHOT_NAME_MAX + 1])
{
	const struct control_word *word = &words->word[index];
	const char *message;
	int error = name_check(word->bytes, word->length, &message);

	if (error != 0)
		return control_refusal(error, message);
	memcpy(name, word->bytes, word->length);
	name[word->length] = '\0';
	return NULL;
}

json_t *control_path(const struct control_words *words, size_t index, char **path)
{
	const struct control_word *word = &words->word[index];

	*path = NULL;
	if (word->length == 0 || *word->bytes != '/' || memchr(word->bytes, '\0', word->length))
		return control_refusal(-EBADMSG, "a path is wanted that begins with a slash");
	*path = strndup(word->bytes, word->length);
	return *path == NULL ? control_refusal(-ENOMEM, NULL) : NULL;
}

json_t *control_number(const struct control_words *words, size_t index, uint64_t *number)
{
	const struct control_word *word = &words->word[index];
	size_t i;

	*number = 0;
	for (i = 0; i < word->length; i++) {
		unsigned int digit = (unsigned char)word->bytes[i] - (unsigned int)'0';

		if (digit > 9)
			return control_refusal(-EDOM, "a number of bytes or percent is wanted");
		if (__builtin_mul_overflow(*number, UINT64_C(10), number) ||
			__builtin_add_overflow(*number, (uint64_t)digit, number))
			return control_refusal(-ERANGE, "the number is too large");
	}
	return NULL;
}

static const struct command *find_command(const char *word, size_t length)
{
	size_t i;

	for (i = 0; i < commands_count; i++) {
		if (strlen(commands[i].name) == length &&
			memcmp(commands[i].name, word, length) == 0)
			return &commands[i];
	}
	return NULL;
}

/* False: there are more words than a command can take, or one of several is empty. */
static bool split(const char *text, size_t length, struct control_words *words)
{
	const char *end = text + length;

	for (;;) {
		const char *space = memchr(text, ' ', (size_t)(end - text));
		const char *word_end = space ? space : end;

		if (words->count == CONTROL_WORDS_MAX)
			return false;
		if (word_end == text && (space != NULL || words->count > 0))
			return false;
		words->word[words->count++] =
			(struct control_word){text, (size_t)(word_end - text)};
		if (space == NULL)
			return true;
		text = space + 1;
	}
}

json_t *control_execute(struct volume *volume, const char *line, size_t length)
{
	const char *space = memchr(line, ' ', length);
	size_t word_length = space ? (size_t)(space - line) : length;
	const struct command *command = find_command(line, word_length);
	struct control_words words = {.count = 0};

	if (command == NULL)
		return control_refusal(-ENOSYS, "unknown command; `help` lists them");
	if (space != NULL &&
		(command->most == 0 || !split(space + 1, length - word_length - 1, &words) ||
			words.count > command->most))
		return control_refusal(-E2BIG, "more arguments than the command takes, or more "
					       "than one space (a name has none)");
	if (words.count < command->least)
		return control_refusal(-EINVAL, command->help);
	if (volume->handed_over && command->run != run_list && command->run != run_status &&
		command->run != run_help)
		return control_refusal(-ESHUTDOWN, "the volume has been handed over");
	volume_jobs_poll(volume);
	return command->run(volume, &words);
}
