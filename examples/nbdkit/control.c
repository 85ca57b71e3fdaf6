/* SPDX-License-Identifier: MIT
 *
 * The control socket's server: one thread with poll() for any number of clients, for giving back
 * what drops left, and for jobs that end.
 *
 * Invariants:
 *  1. In a round each client gets at most one command done, so none can starve the others.
 *  2. polled has room for as many entries as clients has, and three more.
 * Locking: everything belongs to the thread, from control_start() to the join in control_stop().
 * Failure: an error on a client's socket closes that client. With no descriptors left for a new
 * client it waits in the backlog, and accept is tried again a little later.
 */
#define NBDKIT_API_VERSION 2
#include "control.h"
#include "control_client.h"

#include <errno.h>
#include <nbdkit-plugin.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum {
	retry_ms = 100,
	reclaim_step_chunks = 65536,
	polled_before_clients = 3, /* the stop event, the listener and the jobs' event */
};

struct control {
	struct sockaddr_un address;
	struct stat created; /* the socket file, to remove no other one */
	int listener;
	int stop_event;
	bool running;
	pthread_t thread;
	struct volume *volume;
	struct client **clients;
	struct pollfd *polled;
	size_t clients_count;
	size_t clients_room;
	bool accept_failed; /* out of descriptors: not polled for one round */
};

/* ---- The thread ----------------------------------------------------------------------------- */

static bool make_room(struct control *control)
{
	size_t room = control->clients_room ? control->clients_room * 2 : 8;
	struct client **clients;
	struct pollfd *polled;

	if (control->clients_count < control->clients_room)
		return true;
	clients = reallocarray(control->clients, room, sizeof(*clients));
	if (clients == NULL)
		return false;
	control->clients = clients;
	polled = reallocarray(control->polled, room + polled_before_clients, sizeof(*polled));
	if (polled == NULL)
		return false;
	control->polled = polled;
	control->clients_room = room;
	return true;
}

static void accept_client(struct control *control)
{
	int fd = accept4(control->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct client *client;

	if (fd < 0) {
		control->accept_failed = errno != EAGAIN && errno != EINTR;
		return;
	}
	client = make_room(control) ? client_create(fd) : NULL;
	if (client == NULL) {
		close(fd);
		return;
	}
	control->clients[control->clients_count++] = client;
}

/* Returns how many were polled; *at_once if there is work that no descriptor will announce. */
static size_t fill_polled(struct control *control, bool *at_once)
{
	struct pollfd *polled = control->polled;
	size_t i;

	polled[0] = (struct pollfd){.fd = control->stop_event, .events = POLLIN};
	polled[1] = (struct pollfd){
		.fd = control->accept_failed ? -1 : control->listener, .events = POLLIN};
	polled[2] = (struct pollfd){.fd = control->volume->wake, .events = POLLIN};
	polled += polled_before_clients;
	for (i = 0; i < control->clients_count; i++) {
		const struct client *client = control->clients[i];

		polled[i] = (struct pollfd){.fd = client->fd, .events = client_events(client)};
		if (polled[i].events == 0)
			*at_once = true;
	}
	return control->clients_count + polled_before_clients;
}

static void advance_clients(struct control *control)
{
	size_t kept = 0;
	size_t i;

	for (i = 0; i < control->clients_count; i++) {
		struct client *client = control->clients[i];
		short events = control->polled[i + polled_before_clients].revents;

		if (client_advance(client, events, control->volume))
			control->clients[kept++] = client;
		else
			client_close(client);
	}
	control->clients_count = kept;
}

/* What drops left is given back a step at a time between commands. Returns how long poll may wait:
 * what a reader still holds back is looked at again a little later. */
static int reclaim_step(struct control *control)
{
	if (cowsnap_reclaim(control->volume->ctx, reclaim_step_chunks) > 0)
		return 0;
	return volume_all_reclaimed(control->volume) ? -1 : retry_ms;
}

static void *serve(void *user)
{
	struct control *control = user;

	for (;;) {
		int timeout_ms = reclaim_step(control);
		bool at_once = false;
		size_t count = fill_polled(control, &at_once);

		if (at_once)
			timeout_ms = 0;
		else if (control->accept_failed && timeout_ms < 0)
			timeout_ms = retry_ms;
		control->accept_failed = false;
		if (poll(control->polled, count, timeout_ms) < 0)
			continue;
		if (control->polled[0].revents != 0)
			return NULL;
		if (control->polled[2].revents != 0)
			volume_jobs_poll(control->volume);
		advance_clients(control);
		if (control->polled[1].revents != 0)
			accept_client(control);
	}
}

/* ---- Start and stop ------------------------------------------------------------------------- */

/* Makes way for a new socket, but only where nobody answers on the old one. */
static int remove_stale(const struct sockaddr_un *address)
{
	struct stat found;
	int fd;
	int error;

	if (lstat(address->sun_path, &found) != 0)
		return 0;
	if (!S_ISSOCK(found.st_mode)) {
		nbdkit_error("control=%s: exists and is not a socket", address->sun_path);
		return -EEXIST;
	}
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	error = connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0 ? 0 : errno;
	close(fd);
	if (error != ECONNREFUSED) {
		nbdkit_error("control=%s: another server uses this socket", address->sun_path);
		return -EADDRINUSE;
	}
	unlink(address->sun_path);
	return 0;
}

static int bind_listener(struct control *control)
{
	const struct sockaddr_un *address = &control->address;

	control->stop_event = eventfd(0, EFD_CLOEXEC);
	control->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (control->stop_event < 0 || control->listener < 0)
		return -errno;
	/* The mode that the file gets from bind(), so that it is never open to others. */
	if (fchmod(control->listener, 0600) != 0)
		return -errno;
	if (bind(control->listener, (const struct sockaddr *)address, sizeof(*address)) != 0)
		return -errno;
	if (stat(address->sun_path, &control->created) != 0)
		return -errno;
	return listen(control->listener, SOMAXCONN) == 0 ? 0 : -errno;
}

int control_listen(const char *path, struct control **result)
{
	struct control *control = calloc(1, sizeof(*control));
	int error;

	if (control == NULL)
		return -ENOMEM;
	control->listener = -1;
	control->stop_event = -1;
	control->address.sun_family = AF_UNIX;
	if (strlen(path) >= sizeof(control->address.sun_path)) {
		nbdkit_error("control=%s: longer than the %zu bytes of a socket's path", path,
			sizeof(control->address.sun_path) - 1);
		control_stop(control);
		return -ENAMETOOLONG;
	}
	strcpy(control->address.sun_path, path);
	error = remove_stale(&control->address);
	if (error == 0) {
		error = bind_listener(control);
		if (error != 0)
			nbdkit_error("control=%s: %s", path, strerror(-error));
	}
	if (error != 0) {
		control_stop(control);
		return error;
	}
	*result = control;
	return 0;
}

int control_start(struct control *control, struct volume *volume)
{
	sigset_t all;
	sigset_t before;
	int error;

	control->volume = volume;
	if (!make_room(control))
		return -ENOMEM;
	/* Signals are nbdkit's business: its threads get them. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&control->thread, NULL, serve, control);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	control->running = error == 0;
	return -error;
}

static void remove_socket(const struct control *control)
{
	struct stat found;

	if (control->created.st_ino == 0 || lstat(control->address.sun_path, &found) != 0)
		return;
	if (found.st_dev == control->created.st_dev && found.st_ino == control->created.st_ino)
		unlink(control->address.sun_path);
}

void control_stop(struct control *control)
{
	size_t i;

	if (control->running) {
		eventfd_write(control->stop_event, 1);
		pthread_join(control->thread, NULL);
	}
	for (i = 0; i < control->clients_count; i++)
		client_close(control->clients[i]);
	remove_socket(control);
	if (control->listener >= 0)
		close(control->listener);
	if (control->stop_event >= 0)
		close(control->stop_event);
	free(control->clients);
	free(control->polled);
	free(control);
}
