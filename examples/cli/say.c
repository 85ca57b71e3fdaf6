/* SPDX-License-Identifier: MIT
 *
 * What the tool says: errors, text, JSON.
 */
#include "cli.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int out_error; /* errno of the first thing that could not be printed */

void cli_error(const char *path, const char *format, ...)
{
	char text[1024];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	/* What was printed before comes before. */
	fflush(stdout);
	fprintf(stderr, "cowsnap: %s: %s\n", path, text);
}

static int status_of(int rc)
{
	switch (-rc) {
	case EBADMSG:
	case EMEDIUMTYPE:
	case ENOENT:
	case EEXIST:
	case ESTALE:
	case ERANGE:
	case EINVAL:
		return CLI_REFUSED;
	default:
		return CLI_IO;
	}
}

int cli_error_of(struct cli *cli, const char *path, const char *what, int rc)
{
	if (rc == -EBUSY)
		cli_error(path, "it is in use by another process");
	else if (cli->log[0] && status_of(rc) == CLI_REFUSED)
		cli_error(path, "%s: %s", what, cli->log);
	else if (cli->log[0])
		cli_error(path, "%s: %s (%s)", what, strerror(-rc), cli->log);
	else
		cli_error(path, "%s: %s", what, strerror(-rc));
	return status_of(rc);
}

static void note(bool failed)
{
	if (failed && !out_error)
		out_error = errno ? errno : EIO;
}

void cli_out(const char *format, ...)
{
	va_list arguments;

	/* After a failure the rest is of no use to anybody. */
	if (out_error)
		return;
	va_start(arguments, format);
	note(vprintf(format, arguments) < 0);
	va_end(arguments);
}

void cli_out_end(void)
{
	errno = 0;
	note(fflush(stdout) != 0 || ferror(stdout));
	if (!out_error)
		return;
	fprintf(stderr, "cowsnap: standard output: %s\n", strerror(out_error));
	_exit(CLI_IO);
}

/* ---- JSON ----------------------------------------------------------------------------------- */

json_t *cli_json_number(uint64_t value)
{
	return json_integer((json_int_t)value);
}

json_t *cli_json_text(const char *text)
{
	json_t *value = json_string(text);
	char *copy;

	if (value)
		return value;
	copy = strdup(text);
	if (!copy)
		return NULL;
	for (char *at = copy; *at; at++)
		if (*at & 0x80)
			*at = '?';
	value = json_string(copy);
	free(copy);
	return value;
}

/* NULL is an object that memory was short for. */
static char *dump(json_t *value, size_t flags)
{
	char *text = value ? json_dumps(value, flags | JSON_ENCODE_ANY) : NULL;

	json_decref(value);
	if (!text) {
		fputs("cowsnap: JSON: out of memory\n", stderr);
		exit(CLI_IO);
	}
	return text;
}

void cli_json_out(json_t *document)
{
	char *text = dump(document, JSON_INDENT(2));

	cli_out("%s\n", text);
	free(text);
}

static void begin(struct cli_list *list)
{
	char *path;

	list->begun = true;
	if (!list->json) {
		cli_out("%s\n", list->title);
		return;
	}
	path = dump(cli_json_text(list->path), 0);
	cli_out("{\n\"path\": %s,\n\"%s\": [", path, list->name);
	free(path);
}

void cli_list_item(struct cli_list *list)
{
	if (!list->begun)
		begin(list);
	if (list->json)
		cli_out(list->count ? ",\n" : "\n");
	list->count++;
}

void cli_list_end(struct cli_list *list, json_t *tail)
{
	char *text = dump(tail, JSON_INDENT(0) | JSON_COMPACT);

	if (!list->begun)
		begin(list);
	/* The members of the object, without its opening brace. */
	if (list->json)
		cli_out("%s],\n%s\n", list->count ? "\n" : "", text + 1);
	free(text);
}
