/* SPDX-License-Identifier: MIT
 *
 * A persistent store goes from a running server to the next one without its records being read
 * again: the first one writes what it knows of them to a file and does no more requests.
 *
 * Invariant: no client is connected when the store is given away, and none can connect afterwards.
 * So no write of this server comes after that, which nobody would save.
 */
#define NBDKIT_API_VERSION 2
#include "volume.h"
#include "volume_store.h"

#include <errno.h>
#include <fcntl.h>
#include <nbdkit-plugin.h>
#include <string.h>
#include <unistd.h>

static int write_state(void *user, const void *data, size_t bytes)
{
	const int *fd = user;
	const char *next = data;

	while (bytes > 0) {
		ssize_t written = write(*fd, next, bytes);

		if (written < 0 && errno != EINTR)
			return -errno;
		if (written > 0) {
			next += written;
			bytes -= (size_t)written;
		}
	}
	return 0;
}

static int read_state(void *user, void *data, size_t bytes)
{
	const int *fd = user;
	char *next = data;

	while (bytes > 0) {
		ssize_t got = read(*fd, next, bytes);

		if (got < 0 && errno != EINTR)
			return -errno;
		if (got == 0)
			return -ENODATA;
		if (got > 0) {
			next += got;
			bytes -= (size_t)got;
		}
	}
	return 0;
}

/* False: clients are connected. */
static bool lock_out_clients(struct volume *volume)
{
	pthread_mutex_lock(&volume->lock);
	volume->handed_over = volume->connections == 0;
	pthread_mutex_unlock(&volume->lock);
	return volume->handed_over;
}

static void let_clients_in(struct volume *volume)
{
	pthread_mutex_lock(&volume->lock);
	volume->handed_over = false;
	pthread_mutex_unlock(&volume->lock);
}

/* The one snapshot is still this server's. */
static bool has_snapshot(const struct volume *volume)
{
	struct cowsnap_snapshot_info info;

	return cowsnap_snapshot_info(volume->snapshots->snapshot, &info, sizeof(info)) != 0 ||
	       info.state != COWSNAP_SNAPSHOT_DROPPED;
}

static int export_store(struct volume *volume, const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	int error;

	if (fd < 0)
		return -errno;
	error = cowsnap_store_export(volume->store, 0, write_state, &fd);
	if (close(fd) != 0 && error == 0)
		error = -errno;
	if (error != 0)
		unlink(path);
	return error;
}

int volume_handover(struct volume *volume, const char *path)
{
	int error;

	if (volume->options->store_format != STORE_DM)
		return -ENOTSUP;
	if (volume->snapshots == NULL)
		return -ENODATA;
	if (volume_has_merge(volume))
		return -EBUSY;
	if (!lock_out_clients(volume))
		return -EISCONN;
	error = export_store(volume, path);
	/* It may have come too far: then the store is on its device, for the next start. */
	if (error != 0 && has_snapshot(volume))
		let_clients_in(volume);
	else
		volume_forget(volume, volume->snapshots->name);
	return error;
}

int store_import(struct volume *volume, const struct cowsnap_dm_options *options,
	struct cowsnap_take_entry *entry)
{
	struct cowsnap_dm_options import = *options;
	const char *path = volume->options->handover_file;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int error;

	if (fd < 0) {
		error = -errno;
		nbdkit_error("handover-file=%s: %s", path, strerror(-error));
		return error;
	}
	/* Nobody has been at it since: its generation is no other one. */
	import.generation = volume->generation;
	error = cowsnap_store_dm_import(
		volume->ctx, &import, read_state, &fd, entry, &volume->store);
	close(fd);
	/* It is good for one start: later ones would find another store. */
	if (error == 0 || error == -ESTALE)
		unlink(path);
	else
		nbdkit_error("handover-file=%s: %s", path,
			*volume->complaint ? volume->complaint : strerror(-error));
	return error;
}
