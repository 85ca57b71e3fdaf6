/* SPDX-License-Identifier: MIT */
#ifndef EXAMPLE_CONTROL_CLIENT_H
#define EXAMPLE_CONTROL_CLIENT_H

#include "control.h"

struct client {
	int fd;
	bool skipping;
	bool ended;
	char *answer; /* NULL: reading */
	size_t answer_length;
	size_t answer_sent;
	size_t used; /* of input */
	char input[CONTROL_LINE_MAX + 1];
};

/* client_create - takes over the connected, non-blocking socket; NULL if there is no memory */
struct client *client_create(int fd);

/* client_close - closes the socket, frees the client */
void client_close(struct client *client);

/* client_events - what to poll for; 0: there is work that needs no poll */
short client_events(const struct client *client);

/*
 * client_advance - one round: at most one command done, at most one answer begun
 * @events: what poll reported
 * Returns: false when the client is to be closed.
 */
bool client_advance(struct client *client, short events, struct volume *volume);

#endif
