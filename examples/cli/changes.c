/* SPDX-License-Identifier: MIT
 *
 * cowsnap changes: what differs between two snapshots of a volume that is in use. The server knows
 * it, and answers on its control socket (examples/nbdkit/README.md), a page at a time.
 */
#include "cli.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct changes {
	struct cli *cli;
	FILE *stream;
	struct cowsnap_change *runs;
	size_t count;
	size_t room;
	uint64_t next;
	uint64_t size_bytes;
	bool complete;
};

static int io_error(struct cli *cli, const char *what)
{
	cli_error(cli->store, "%s: %s", what, strerror(errno));
	return CLI_IO;
}

static int dial(struct changes *changes)
{
	struct cli *cli = changes->cli;
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	size_t length = strlen(cli->store);
	int fd;

	if (length >= sizeof(address.sun_path)) {
		cli_error(cli->store, "longer than the path of a socket");
		return CLI_IO;
	}
	memcpy(address.sun_path, cli->store, length);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return io_error(cli, "socket");
	if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0)
		changes->stream = fdopen(fd, "r");
	if (changes->stream)
		return CLI_GOOD;
	io_error(cli, "no server can be reached");
	close(fd);
	return CLI_IO;
}

/* NULL: that is said. */
static json_t *ask(struct changes *changes)
{
	struct cli *cli = changes->cli;
	json_t *answer = NULL;
	size_t room = 0;
	char *line = NULL;
	int length;

	length = asprintf(&line, "changes %s %s %llu\n", cli->image,
		cli->image_to ? cli->image_to : "/now", (unsigned long long)changes->next);
	if (length < 0 ||
		send(fileno(changes->stream), line, (size_t)length, MSG_NOSIGNAL) != length) {
		io_error(cli, "cannot be asked");
		free(length < 0 ? NULL : line);
		return NULL;
	}
	free(line);
	line = NULL;
	if (getline(&line, &room, changes->stream) > 0)
		answer = json_loads(line, 0, NULL);
	free(line);
	if (!answer)
		cli_error(cli->store, "the server does not answer");
	return answer;
}

static int append(struct changes *changes, uint64_t offset, uint64_t length)
{
	struct cowsnap_change *last = changes->count ? &changes->runs[changes->count - 1] : NULL;

	/* The last run of a page and the first one of the next may touch. */
	if (last && last->offset + last->length == offset) {
		last->length += length;
		return CLI_GOOD;
	}
	if (changes->count == changes->room) {
		size_t room = changes->room ? changes->room * 2 : 1024;

		last = reallocarray(changes->runs, room, sizeof(*last));
		if (!last)
			return io_error(changes->cli, "changes");
		changes->runs = last;
		changes->room = room;
	}
	changes->runs[changes->count++] = (struct cowsnap_change){offset, length};
	return CLI_GOOD;
}

static int bad_answer(const struct changes *changes)
{
	cli_error(changes->cli->store, "the server's answer cannot be understood");
	return CLI_IO;
}

static int take_page(struct changes *changes, json_t *answer)
{
	json_int_t next, size, offset, length;
	int complete;
	json_t *list, *item;
	size_t i;

	if (json_unpack(answer, "{s:o,s:I,s:I,s:b}", "changes", &list, "next", &next, "size", &size,
		    "complete", &complete))
		return bad_answer(changes);
	json_array_foreach(list, i, item)
	{
		int status;

		if (json_unpack(item, "[I,I]", &offset, &length))
			return bad_answer(changes);
		status = append(changes, (uint64_t)offset, (uint64_t)length);
		if (status)
			return status;
	}
	if (!complete && (uint64_t)next <= changes->next)
		return bad_answer(changes);
	changes->next = (uint64_t)next;
	changes->size_bytes = (uint64_t)size;
	changes->complete = complete;
	return CLI_GOOD;
}

static int one_page(struct changes *changes)
{
	json_t *answer = ask(changes);
	const char *message = NULL;
	int status;

	if (!answer)
		return CLI_IO;
	json_unpack(answer, "{s:s}", "message", &message);
	if (message)
		cli_error(changes->cli->store, "%s", message);
	status = message ? CLI_REFUSED : take_page(changes, answer);
	json_decref(answer);
	return status;
}

static void print(const struct changes *changes)
{
	struct cli_list list = {
		.path = changes->cli->store,
		.name = "changes",
		.title = "# offset length",
		.json = changes->cli->json,
	};
	uint64_t changed_bytes = 0;

	for (size_t i = 0; i < changes->count; i++) {
		cli_list_item(&list);
		cli_out(list.json ? "{\"offset\": %llu, \"length\": %llu}" : "%llu %llu\n",
			(unsigned long long)changes->runs[i].offset,
			(unsigned long long)changes->runs[i].length);
		changed_bytes += changes->runs[i].length;
	}
	cli_list_end(
		&list, json_pack("{s:o,s:o}", "size_bytes", cli_json_number(changes->size_bytes),
			       "changed_bytes", cli_json_number(changed_bytes)));
}

/* What a server would take for two arguments, or two commands. */
static bool is_no_name(const char *name)
{
	return name && name[strcspn(name, " \n")];
}

int cli_changes(struct cli *cli)
{
	struct changes changes = {.cli = cli};
	int status;

	if (is_no_name(cli->image) || is_no_name(cli->image_to)) {
		cli_error(cli->store, "a name has no spaces");
		return CLI_WRONG_CALL;
	}
	status = dial(&changes);

	/* Half of what changed is worse than nothing: a copy made by it would be wrong. */
	while (!status && !changes.complete)
		status = one_page(&changes);
	if (!status)
		print(&changes);
	if (changes.stream)
		fclose(changes.stream);
	free(changes.runs);
	return status;
}
