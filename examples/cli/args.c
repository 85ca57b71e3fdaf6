/* SPDX-License-Identifier: MIT
 *
 * The command line: one parser for all options, and for each command a table of those it takes.
 */
#include "cli.h"

#include <argp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
	KEY_JSON = 'j',
	KEY_FORCE = 'f',
	KEY_DRY_RUN = 'n',
	KEY_ORIGIN = 256,
	KEY_ORIGIN_SIZE,
	KEY_SIZE,
	KEY_RECORDS,
	KEY_CHUNK_SIZE,
	KEY_OVERWRITE,
	KEY_GENERATION,
	KEY_PROGRESS,
	KEY_NO_PROGRESS,
};

#define JSON_OPTION                                                                  \
	{                                                                            \
		"json", KEY_JSON, NULL, 0, "One JSON document on standard output", 0 \
	}
#define ORIGIN_OPTIONS                                                                            \
	{"origin", KEY_ORIGIN, "FILE", 0,                                                         \
		"The volume: records beyond its end are refused, and its last chunk ends there",  \
		0},                                                                               \
	{                                                                                         \
		"origin-size", KEY_ORIGIN_SIZE, "SIZE", 0, "Its length, where it is not at hand", \
			0                                                                         \
	}

static const struct argp_option look_options[] = {ORIGIN_OPTIONS, JSON_OPTION, {0}};

static const struct argp_option create_options[] = {
	{"origin", KEY_ORIGIN, "FILE", 0, "The volume; needed", 0},
	{"size", KEY_SIZE, "SIZE|N%", 0,
		"How long a new STORE is; N%: room for that part of the origin", 0},
	{"records", KEY_RECORDS, "N", 0, "Instead: room for N chunks of the origin", 0},
	{"chunk-size", KEY_CHUNK_SIZE, "SIZE", 0,
		"Unit of copying, a power of two, 512 to 1G (default 4K)", 0},
	{"generation", KEY_GENERATION, "N", 0, "A number to find in the store again", 0},
	{"overwrite", KEY_OVERWRITE, NULL, 0, "Give up what is in STORE", 0},
	JSON_OPTION,
	{0},
};

static const struct argp_option export_options[] = {
	{"origin", KEY_ORIGIN, "FILE", 0, "The volume; needed", 0},
	{"force", KEY_FORCE, NULL, 0, "Replace IMAGE if it exists", 0},
	{"progress", KEY_PROGRESS, NULL, 0, "Say how far it is, also if nobody looks", 0},
	{"no-progress", KEY_NO_PROGRESS, NULL, 0, "Do not, also on a terminal", 0},
	JSON_OPTION,
	{0},
};

static const struct argp_option merge_options[] = {
	{"origin", KEY_ORIGIN, "FILE", 0, "The volume; needed, and written to", 0},
	{"dry-run", KEY_DRY_RUN, NULL, 0, "Only say what would be done", 0},
	{"progress", KEY_PROGRESS, NULL, 0, "Say how far it is, also if nobody looks", 0},
	{"no-progress", KEY_NO_PROGRESS, NULL, 0, "Do not, also on a terminal", 0},
	JSON_OPTION,
	{0},
};

static const struct argp_option repair_options[] = {
	{"dry-run", KEY_DRY_RUN, NULL, 0, "Only say what would be done", 0},
	JSON_OPTION,
	{0},
};

static const struct argp_option changes_options[] = {JSON_OPTION, {0}};

struct description {
	struct cli_command command;
	const char *does; /* one line, for the list */
	const struct argp_option *options;
	const char *operands;
	bool needs_origin;
	bool has_image; /* a second one; a third in brackets need not be given */
	const char *more;
};

static const struct description descriptions[] = {
	{{"info", cli_info}, "Show header and use of a store", look_options, "STORE", false, false,
		""},
	{{"check", cli_check}, "Say whether a store is good, and if not, why", look_options,
		"STORE", false, false, ""},
	{{"dump", cli_dump}, "List the records of a store in their order", look_options, "STORE",
		false, false, "A line for each: its number, origin chunk, store chunk."},
	{{"extents", cli_extents}, "List what has changed since the snapshot was taken",
		look_options, "STORE", false, false,
		"A line for each run, in order of the origin: offset and length in bytes."},
	{{"changes", cli_changes}, "List what differs between two snapshots of a server",
		changes_options, "SOCKET A [B]", false, true,
		"SOCKET is the server's control socket, A the older snapshot. Without B: what "
		"differs between A and the volume now. A line for each run: offset and length in "
		"bytes."},
	{{"create", cli_create}, "Take an empty snapshot of a volume that is not in use",
		create_options, "STORE", true, false,
		"A STORE that is missing is made. One that is there, or a block device, keeps its "
		"length."},
	{{"export", cli_export}, "Write what a snapshot shows to a new, sparse file",
		export_options, "STORE IMAGE", true, true,
		"IMAGE appears when it is whole and flushed."},
	{{"merge", cli_merge}, "Roll a volume that is not in use back to its snapshot",
		merge_options, "STORE", true, false,
		"What the volume holds now is lost, and so is the snapshot. One that was "
		"interrupted is started again."},
	{{"repair", cli_repair}, "Wipe what a crash left behind the last record", repair_options,
		"STORE", false, false,
		"Nothing else can be repaired without a loss; it is refused."},
};

#define COMMANDS (sizeof(descriptions) / sizeof(descriptions[0]))

struct call {
	struct cli *cli;
	const struct description *description;
	int first; /* of the arguments that are the command's */
};

static uint64_t number(struct argp_state *state, const char *option, const char *text,
	uint64_t least, uint64_t most)
{
	uint64_t value;

	if (!cli_number_parse(text, &value) || value < least || value > most)
		argp_error(state, "%s: '%s' is not a number from %llu to %llu", option, text,
			(unsigned long long)least, (unsigned long long)most);
	return value;
}

static uint64_t size(struct argp_state *state, const char *option, const char *text)
{
	uint64_t value;

	if (!cli_size_parse(text, &value) || !value || value > COWSNAP_SIZE_MAX)
		argp_error(state, "%s: '%s' is not a size from 1 to 4194304T", option, text);
	return value;
}

static void set_room(struct argp_state *state, struct cli *cli, const char *text)
{
	size_t length = strlen(text);
	char digits[8] = "";

	if (cli->room_kind != CLI_ROOM_NONE)
		argp_error(state, "one of --size and --records, once");
	if (!length || text[length - 1] != '%') {
		cli->room_kind = CLI_ROOM_BYTES;
		cli->room = size(state, "--size", text);
		return;
	}
	if (length < sizeof(digits))
		memcpy(digits, text, length - 1);
	if (!cli_number_parse(digits, &cli->room) || !cli->room || cli->room > 100)
		argp_error(state, "--size: '%s' is not 1%% to 100%%", text);
	cli->room_kind = CLI_ROOM_PERCENT;
}

static void set_chunk_size(struct argp_state *state, struct cli *cli, const char *text)
{
	uint64_t bytes;

	if (!cli_size_parse(text, &bytes) || bytes < COWSNAP_CHUNK_SIZE_MIN ||
		bytes > COWSNAP_CHUNK_SIZE_MAX || (bytes & (bytes - 1)))
		argp_error(state, "--chunk-size: '%s' is not a power of two from 512 to 1G", text);
	cli->chunk_size_bytes = bytes;
}

static void set_operand(struct argp_state *state, struct call *call, const char *text)
{
	struct cli *cli = call->cli;

	if (!*text)
		argp_error(state, "an empty name");
	if (!cli->store)
		cli->store = text;
	else if (call->description->has_image && !cli->image)
		cli->image = text;
	else if (strchr(call->description->operands, '[') && !cli->image_to)
		cli->image_to = text;
	else
		argp_error(state, "one argument too many: '%s'", text);
}

/* @operands: their names, from the missing one on. */
static void ask_for(struct argp_state *state, const char *operands)
{
	argp_error(state, "which %.*s?", (int)strcspn(operands, " "), operands);
}

static void check_call(struct argp_state *state, const struct call *call)
{
	const char *operands = call->description->operands;
	const struct cli *cli = call->cli;

	if (!cli->store)
		ask_for(state, operands);
	if (call->description->has_image && !cli->image)
		ask_for(state, strchr(operands, ' ') + 1);
	if (call->description->needs_origin && !cli->origin)
		argp_error(state, "--origin FILE is needed");
	if (cli->origin && cli->origin_bytes)
		argp_error(state, "--origin and --origin-size exclude each other");
}

static error_t parse_switch(int key, struct cli *cli)
{
	switch (key) {
	case KEY_JSON:
		cli->json = true;
		return 0;
	case KEY_FORCE:
		cli->force = true;
		return 0;
	case KEY_DRY_RUN:
		cli->dry_run = true;
		return 0;
	case KEY_OVERWRITE:
		cli->overwrite = true;
		return 0;
	case KEY_PROGRESS:
		cli->progress = CLI_ALWAYS;
		return 0;
	case KEY_NO_PROGRESS:
		cli->progress = CLI_NEVER;
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static error_t parse_command(int key, char *text, struct argp_state *state)
{
	struct call *call = state->input;
	struct cli *cli = call->cli;

	switch (key) {
	case KEY_ORIGIN:
		cli->origin = text;
		return 0;
	case KEY_ORIGIN_SIZE:
		cli->origin_bytes = size(state, "--origin-size", text);
		return 0;
	case KEY_SIZE:
		set_room(state, cli, text);
		return 0;
	case KEY_RECORDS:
		if (cli->room_kind != CLI_ROOM_NONE)
			argp_error(state, "one of --size and --records, once");
		cli->room_kind = CLI_ROOM_RECORDS;
		cli->room = number(state, "--records", text, 1, COWSNAP_SIZE_MAX / 512);
		return 0;
	case KEY_CHUNK_SIZE:
		set_chunk_size(state, cli, text);
		return 0;
	case KEY_GENERATION:
		cli->generation = number(state, "--generation", text, 1, UINT64_MAX);
		return 0;
	case ARGP_KEY_ARG:
		set_operand(state, call, text);
		return 0;
	case ARGP_KEY_END:
		check_call(state, call);
		return 0;
	default:
		return parse_switch(key, cli);
	}
}

/* ---- Which command -------------------------------------------------------------------------- */

static error_t parse_first(int key, char *text, struct argp_state *state)
{
	struct call *call = state->input;

	switch (key) {
	case ARGP_KEY_ARG:
		for (size_t i = 0; i < COMMANDS; i++)
			if (!strcmp(text, descriptions[i].command.name))
				call->description = &descriptions[i];
		if (!call->description)
			argp_error(state, "no command is called '%s'", text);
		call->first = state->next;
		/* The rest is the command's. */
		state->next = state->argc;
		return 0;
	case ARGP_KEY_NO_ARGS:
		argp_error(state, "which command?");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static void print_version(FILE *stream, struct argp_state *state)
{
	(void)state;
	fprintf(stream, "cowsnap %s\n", cowsnap_version());
}

static const char exit_statuses[] =
	"Exit status: 0 good; 1 the store is refused, or what is in the files does not allow it; 2 "
	"wrong call; 3 a file cannot be read or written, or is in use; 4 the snapshot is marked "
	"invalid.";

/* A text that is put together; ends the process if there is no memory for it. */
struct text {
	char *bytes;
	size_t length;
	FILE *stream;
};

static void text_begin(struct text *text)
{
	text->stream = open_memstream(&text->bytes, &text->length);
	if (!text->stream) {
		perror("cowsnap");
		exit(CLI_IO);
	}
}

static const char *text_end(struct text *text)
{
	if (fclose(text->stream) == 0)
		return text->bytes;
	perror("cowsnap");
	exit(CLI_IO);
}

static void find_command(struct call *call, int argc, char **argv)
{
	struct argp argp = {.parser = parse_first, .args_doc = "COMMAND [ARGUMENT...]"};
	struct text doc;

	text_begin(&doc);
	fputs("Look at copy-on-write snapshots in the persistent format of dm-snapshot, make them "
	      "and export them.\vCommands:\n",
		doc.stream);
	for (size_t i = 0; i < COMMANDS; i++)
		fprintf(doc.stream, "  %-9s%s\n", descriptions[i].command.name,
			descriptions[i].does);
	fprintf(doc.stream, "\n'cowsnap COMMAND --help' tells the options of a command.\n\n%s",
		exit_statuses);
	argp.doc = text_end(&doc);
	argp_parse(&argp, argc, argv, ARGP_IN_ORDER, NULL, call);
	free(doc.bytes);
}

void cli_parse(struct cli *cli, int argc, char **argv)
{
	struct call call = {.cli = cli};
	struct argp argp = {.parser = parse_command};
	struct text name, doc;

	argp_program_version_hook = print_version;
	argp_err_exit_status = CLI_WRONG_CALL;
	find_command(&call, argc, argv);
	cli->command = &call.description->command;
	text_begin(&name);
	fprintf(name.stream, "cowsnap %s", cli->command->name);
	text_end(&name);
	text_begin(&doc);
	fprintf(doc.stream, "%s.\v%s%s%s", call.description->does, call.description->more,
		*call.description->more ? "\n\n" : "", exit_statuses);
	argp.options = call.description->options;
	argp.args_doc = call.description->operands;
	argp.doc = text_end(&doc);
	/* What a message begins with. */
	argv[call.first - 1] = name.bytes;
	argp_parse(&argp, argc - call.first + 1, argv + call.first - 1, 0, NULL, &call);
	free(doc.bytes);
	free(name.bytes);
}
