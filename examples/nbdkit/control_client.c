/* SPDX-License-Identifier: MIT
 *
 * One client of the control socket: bytes in, lines out of them, answers back.
 *
 * States: reading (waiting for the end of a line), answering (an answer is not sent completely;
 * nothing is read meanwhile, so a client that does not listen costs one buffer), skipping (reading
 * and throwing away the rest of a line that was too long), ended (has sent its last byte; is closed
 * after the answers to what it sent).
 *
 * Invariants:
 *  1. When it is read from, the input buffer holds no newline and has room.
 *  2. There is one answer at a time, and it is sent before the next line is looked at.
 * Locking: the control thread's alone.
 * Failure: any error on the socket ends the client and nothing else.
 */
#include "control_client.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct client *client_create(int fd)
{
	struct client *client = calloc(1, sizeof(*client));

	if (client != NULL)
		client->fd = fd;
	return client;
}

static bool has_line(const struct client *client)
{
	return memchr(client->input, '\n', client->used) != NULL;
}

static void consume(struct client *client, size_t length)
{
	client->used -= length;
	memmove(client->input, client->input + length, client->used);
}

/* Takes the reference to the object. */
static bool set_answer(struct client *client, json_t *object)
{
	char *text = json_dumps(object, JSON_COMPACT);

	json_decref(object);
	if (text == NULL)
		return false;
	client->answer_length = strlen(text) + 1;
	client->answer_sent = 0;
	client->answer = text;
	text[client->answer_length - 1] = '\n'; /* in the place of its NUL */
	return true;
}

static bool send_answer(struct client *client)
{
	while (client->answer_sent < client->answer_length) {
		ssize_t sent = send(client->fd, client->answer + client->answer_sent,
			client->answer_length - client->answer_sent, MSG_NOSIGNAL);

		if (sent < 0)
			return errno == EAGAIN || errno == EINTR;
		client->answer_sent += (size_t)sent;
	}
	free(client->answer);
	client->answer = NULL;
	return true;
}

static void skip_line(struct client *client)
{
	char *end = memchr(client->input, '\n', client->used);

	client->skipping = end == NULL;
	consume(client, end ? (size_t)(end - client->input) + 1 : client->used);
}

static bool receive(struct client *client)
{
	ssize_t received = recv(
		client->fd, client->input + client->used, sizeof(client->input) - client->used, 0);

	if (received < 0)
		return errno == EAGAIN || errno == EINTR;
	client->ended = received == 0;
	client->used += (size_t)received;
	if (client->skipping)
		skip_line(client);
	return true;
}

/* One command, or the refusal of what cannot become one. */
static bool run_line(struct client *client, struct volume *volume)
{
	char *end = memchr(client->input, '\n', client->used);
	json_t *object;

	if (end != NULL) {
		size_t length = (size_t)(end - client->input);

		object = control_execute(volume, client->input, length);
		consume(client, length + 1);
		return set_answer(client, object);
	}
	if (client->used == sizeof(client->input)) {
		object = control_refusal(-EMSGSIZE, "the line is longer than 4096 bytes");
		skip_line(client);
		return set_answer(client, object);
	}
	if (client->ended && client->used > 0) {
		object = control_refusal(-EPROTO, "the line has no end; it was not done");
		client->used = 0;
		return set_answer(client, object);
	}
	return !client->ended;
}

short client_events(const struct client *client)
{
	if (client->answer != NULL)
		return POLLOUT;
	return has_line(client) || client->ended ? 0 : POLLIN;
}

bool client_advance(struct client *client, short events, struct volume *volume)
{
	if (client->answer == NULL) {
		if (events != 0 && !client->ended && !has_line(client) && !receive(client))
			return false;
		if (!run_line(client, volume))
			return false;
	}
	return client->answer == NULL || send_answer(client);
}

void client_close(struct client *client)
{
	close(client->fd);
	free(client->answer);
	free(client);
}
