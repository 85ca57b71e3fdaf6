/* SPDX-License-Identifier: MIT
 *
 * The commands of the control socket. A line is a command, or a command, one space and a name.
 * Every refusal has an error of its own:
 *
 *	ENOSYS        unknown command          EEXIST        take: the name is in use
 *	EINVAL        the name is missing      ENOENT        drop: no such snapshot
 *	E2BIG         more than is wanted      ETIMEDOUT     take: older writes did not end
 *	ENODATA       the name is empty        EMSGSIZE      the line is too long
 *	ENAMETOOLONG  the name is too long     EPROTO        the last line has no end
 *	EILSEQ        the name is not UTF-8
 *	EBADMSG       a control character or a slash in the name
 *	EBUSY         take: a dm store holds one snapshot
 *	ENODEV        grow: the store is in memory
 *	ERANGE        grow: the store's file is shorter than it was
 *
 * Besides, take and drop hand on what a dm store's device says.
 */
#include "control.h"

#include <errno.h>
#include <string.h>

struct argument {
	const char *bytes; /* NULL: none was given */
	size_t length;
};

struct command {
	const char *name;
	const char *help;
	bool wants_name;
	json_t *(*run)(struct volume *volume, const char *name);
};

json_t *control_refusal(int error, const char *message)
{
	const char *name = strerrorname_np(-error);

	return json_pack("{s:b,s:s,s:s}", "ok", 0, "error", name ? name : "EIO", "message",
		message ? message : strerror(-error));
}

static json_t *run_take(struct volume *volume, const char *name)
{
	const struct named_snapshot *taken = NULL;
	struct cowsnap_snapshot_info info;
	int error = volume_take(volume, name, &taken);

	if (error == -EEXIST)
		return control_refusal(error, "a snapshot of that name exists");
	if (error == -EBUSY)
		return control_refusal(error, "a dm store holds one snapshot; drop it first");
	if (error == -ETIMEDOUT)
		return control_refusal(
			error, "older writes did not end in time; nothing was taken");
	if (error != 0)
		return control_refusal(error, NULL);
	error = cowsnap_snapshot_info(taken->snapshot, &info, sizeof(info));
	if (error != 0)
		return control_refusal(error, NULL);
	return json_pack("{s:b,s:s,s:I,s:I,s:o}", "ok", 1, "name", name, "id", (json_int_t)info.id,
		"size_bytes", (json_int_t)info.size_bytes, "export", json_sprintf("@%s", name));
}

static json_t *run_drop(struct volume *volume, const char *name)
{
	int error = volume_drop(volume, name);

	if (error == -ENOENT)
		return control_refusal(error, "no snapshot has that name");
	if (error != 0)
		return control_refusal(error, NULL);
	return json_pack("{s:b,s:s}", "ok", 1, "name", name);
}

static json_t *run_grow(struct volume *volume, const char *name)
{
	struct cowsnap_store_usage usage;
	int error = volume_grow(volume);

	(void)name;
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

static json_t *run_list(struct volume *volume, const char *name)
{
	(void)name;
	return json_pack("{s:b,s:o}", "ok", 1, "snapshots", control_snapshots(volume));
}

static json_t *run_status(struct volume *volume, const char *name)
{
	(void)name;
	return control_status(volume);
}

static json_t *run_help(struct volume *volume, const char *name);

static const struct command commands[] = {
	{"take", "take NAME: freeze the volume; read it as export @NAME", true, run_take},
	{"drop", "drop NAME: delete a snapshot", true, run_drop},
	{"grow", "grow: use all of the store's file, after it was made longer", false, run_grow},
	{"list", "list: the snapshots, oldest first", false, run_list},
	{"status", "status: volume, store, snapshots, counters", false, run_status},
	{"help", "help: this", false, run_help},
};

static const size_t commands_count = sizeof(commands) / sizeof(commands[0]);

static json_t *run_help(struct volume *volume, const char *name)
{
	json_t *texts = json_array();
	size_t i;

	(void)volume;
	(void)name;
	for (i = 0; i < commands_count; i++)
		json_array_append_new(texts, json_string(commands[i].help));
	return json_pack("{s:b,s:o}", "ok", 1, "commands", texts);
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

static json_t *run_named(
	struct volume *volume, const struct command *command, struct argument argument)
{
	char name[SNAPSHOT_NAME_MAX + 1];
	const char *message;
	int error;

	if (argument.bytes == NULL)
		return control_refusal(-EINVAL, "the command wants a name");
	error = name_check(argument.bytes, argument.length, &message);
	if (error != 0)
		return control_refusal(error, message);
	memcpy(name, argument.bytes, argument.length);
	name[argument.length] = '\0';
	return command->run(volume, name);
}

json_t *control_execute(struct volume *volume, const char *line, size_t length)
{
	const char *space = memchr(line, ' ', length);
	size_t word_length = space ? (size_t)(space - line) : length;
	const struct command *command = find_command(line, word_length);
	struct argument argument = {NULL, 0};

	if (command == NULL)
		return control_refusal(-ENOSYS, "unknown command; `help` lists them");
	if (space != NULL) {
		argument.bytes = space + 1;
		argument.length = length - word_length - 1;
	}
	if (command->wants_name)
		return run_named(volume, command, argument);
	if (argument.bytes != NULL)
		return control_refusal(-E2BIG, "the command takes no argument");
	return command->run(volume, NULL);
}
