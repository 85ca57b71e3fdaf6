/* SPDX-License-Identifier: MIT
 *
 * nbdkit-cowsnap-plugin: serves a file as an NBD volume through cowsnap. What nbdkit calls is here;
 * the parameters are in parameters.c, the volume is in volume.c, the control socket in control.c.
 *
 * Export "" is the live volume, export @NAME the snapshot of that name: read-only, or as the
 * parameter snapshots= says.
 *
 * Life: .get_ready opens everything once and closes it again, as that is the last moment at which a
 * mistake can be shown to the user. nbdkit then goes into the background with fork(), and neither
 * threads nor a context may cross that. So .after_fork opens for good.
 */
#define NBDKIT_API_VERSION 2
#define THREAD_MODEL       NBDKIT_THREAD_MODEL_PARALLEL

#include "control.h"
#include "parameters.h"
#include "volume.h"

#include <errno.h>
#include <inttypes.h>
#include <nbdkit-plugin.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

/* What .open gives a connection. */
struct connection {
	struct connection *next;
	struct cowsnap_snapshot *snapshot; /* a reference; NULL: the live volume */
};

static struct volume volume;
static struct control *control;
static bool volume_is_open;
static int server_nice; /* of the thread that starts, and so of those that follow */

#define NICE_MOST 19

/* nbdkit does not call .close for connections that are open when it is told to end, but their
 * references would keep the store from being closed. Under volume.lock. */
static struct connection *connections;

/* ---- Start ---------------------------------------------------------------------------------- */

static int cowsnap_get_ready(void)
{
	/* What was handed over can be taken once. */
	if (parameters.volume.handover_file == NULL) {
		if (volume_open(&volume, &parameters.volume) != 0)
			return -1;
		volume_close(&volume);
	}
	if (parameters.control == NULL)
		return 0;
	return control_listen(parameters.control, &control) == 0 ? 0 : -1;
}

static int cowsnap_after_fork(void)
{
	int error;

	if (volume_open(&volume, &parameters.volume) != 0)
		return -1;
	volume_is_open = true;
	server_nice = getpriority(PRIO_PROCESS, 0);
	if (volume_begin(&volume) != 0)
		return -1;
	if (control == NULL)
		return 0;
	error = control_start(control, &volume);
	if (error != 0)
		nbdkit_error("control=%s: no thread: %s", parameters.control, strerror(-error));
	return error == 0 ? 0 : -1;
}

/* ---- Exports and connections ---------------------------------------------------------------- */

static const char *describe_snapshots(void)
{
	switch (parameters.volume.snapshot_exports) {
	case SNAPSHOTS_READONLY:
		break;
	case SNAPSHOTS_WRITABLE:
		return "snapshot, writable";
	case SNAPSHOTS_RELEASE:
		return "snapshot, trim releases what was read";
	}
	return "snapshot, read-only";
}

/* One that keeps no data, or is being merged, cannot be read. */
static bool is_readable(struct cowsnap_snapshot *snapshot)
{
	struct cowsnap_snapshot_info info;

	return cowsnap_snapshot_info(snapshot, &info, sizeof(info)) == 0 &&
	       info.state != COWSNAP_SNAPSHOT_MAP_ONLY && info.state != COWSNAP_SNAPSHOT_MERGING;
}

static int cowsnap_list_exports(int readonly, int is_tls, struct nbdkit_exports *exports)
{
	const struct named_snapshot *entry;
	int result = nbdkit_add_export(exports, "", "the live volume");

	(void)readonly;
	(void)is_tls;
	pthread_mutex_lock(&volume.lock);
	for (entry = volume.snapshots; entry != NULL && result == 0; entry = entry->next) {
		char name[SNAPSHOT_NAME_MAX + 2] = "@";

		strcpy(name + 1, entry->name);
		if (is_readable(entry->snapshot))
			result = nbdkit_add_export(exports, name, describe_snapshots());
	}
	pthread_mutex_unlock(&volume.lock);
	return result;
}

static const char *cowsnap_default_export(int readonly, int is_tls)
{
	(void)readonly;
	(void)is_tls;
	return "";
}

static struct cowsnap_snapshot *find_export(const char *name)
{
	struct cowsnap_snapshot *snapshot = *name == '@' ? volume_find(&volume, name + 1) : NULL;

	if (snapshot == NULL)
		nbdkit_error("no export \"%s\": it is \"\" for the live volume or @NAME for a "
			     "snapshot",
			name);
	if (snapshot == NULL || is_readable(snapshot))
		return snapshot;
	nbdkit_error("export \"%s\" cannot be read: the snapshot keeps no data, or is being merged",
		name);
	cowsnap_snapshot_unref(snapshot);
	return NULL;
}

/* False: this server serves nobody any more. */
static bool add_connection(struct connection *connection)
{
	bool added;

	pthread_mutex_lock(&volume.lock);
	added = !volume.handed_over;
	if (added) {
		connection->next = connections;
		connections = connection;
		volume.connections++;
	}
	pthread_mutex_unlock(&volume.lock);
	return added;
}

static void *cowsnap_open(int readonly)
{
	const char *name = nbdkit_export_name();
	struct connection *connection;

	(void)readonly;
	if (name == NULL)
		return NULL;
	connection = calloc(1, sizeof(*connection));
	if (connection == NULL) {
		nbdkit_error("calloc: %s", strerror(errno));
		return NULL;
	}
	if (*name != '\0') {
		connection->snapshot = find_export(name);
		if (connection->snapshot == NULL) {
			free(connection);
			return NULL;
		}
	}
	if (add_connection(connection))
		return connection;
	nbdkit_error("the volume has been handed over to another server");
	cowsnap_snapshot_unref(connection->snapshot);
	free(connection);
	return NULL;
}

static void cowsnap_close(void *handle)
{
	struct connection *connection = handle;
	struct connection **link = &connections;

	pthread_mutex_lock(&volume.lock);
	while (*link != connection)
		link = &(*link)->next;
	*link = connection->next;
	volume.connections--;
	pthread_mutex_unlock(&volume.lock);
	cowsnap_snapshot_unref(connection->snapshot);
	free(connection);
}

static int64_t cowsnap_get_size(void *handle)
{
	const struct connection *connection = handle;
	struct cowsnap_snapshot_info info;

	if (connection->snapshot == NULL)
		return (int64_t)cowsnap_origin_size(volume.origin);
	if (cowsnap_snapshot_info(connection->snapshot, &info, sizeof(info)) != 0)
		return -1;
	return (int64_t)info.size_bytes;
}

static bool allows(const struct connection *connection, enum snapshot_exports wanted)
{
	return connection->snapshot == NULL || parameters.volume.snapshot_exports == wanted;
}

static int takes_writes(void *handle)
{
	return allows(handle, SNAPSHOTS_WRITABLE);
}

/* Of a read-only export NBD knows no trim. So one where trim releases says that it is writable, and
 * refuses all writes. */
static int takes_trims(void *handle)
{
	return takes_writes(handle) || allows(handle, SNAPSHOTS_RELEASE);
}

static int cowsnap_block_size(
	void *handle, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum)
{
	(void)handle;
	*minimum = 1;
	*preferred = 4096;
	*maximum = 0xffffffff;
	return 0;
}

/* ---- Requests ------------------------------------------------------------------------------- */

/* NBD knows few errors and nbdkit turns all others into EINVAL, which would blame the client. */
static int nbd_error(int error)
{
	switch (error) {
	case -EINVAL:
	case -ENOMEM:
	case -ENOSPC:
	case -EPERM:
	case -EROFS:
		return -error;
	default:
		return EIO; /* a snapshot that was dropped or became invalid, too */
	}
}

static const char *words(int error)
{
	switch (error) {
	case -EIDRM:
		return "the snapshot was dropped";
	case -ESTALE:
		return "the snapshot is invalid";
	case -ENODATA:
		return "it was released, or the snapshot keeps no data";
	case -EBUSY:
		return "the snapshot is being merged";
	default:
		return strerror(-error);
	}
}

static int finish(const char *what, int error, uint64_t offset, uint32_t length)
{
	if (error == 0)
		return 0;
	nbdkit_error(
		"%s of %" PRIu32 " bytes at %" PRIu64 ": %s", what, length, offset, words(error));
	nbdkit_set_error(nbd_error(error));
	return -1;
}

/* A backup must not push the volume's own requests from the processors. nbdkit gives a connection
 * threads of its own, so one that uses a snapshot never does anything else. If the system says no,
 * it goes on as it was. */
static void step_back(void)
{
	int to = server_nice + (int)parameters.snapshot_nice;

	to = to < NICE_MOST ? to : NICE_MOST;
	/* In Linux both are about this thread only. */
	if (getpriority(PRIO_PROCESS, 0) < to)
		setpriority(PRIO_PROCESS, 0, to);
}

static int cowsnap_pread(
	void *handle, void *buffer, uint32_t length, uint64_t offset, uint32_t flags)
{
	const struct connection *connection = handle;
	int error;

	(void)flags;
	if (connection->snapshot != NULL) {
		step_back();
		error = cowsnap_snapshot_read(connection->snapshot, buffer, offset, length);
	} else {
		error = volume_read(&volume, buffer, offset, length);
	}
	return finish("read", error, offset, length);
}

/* nbdkit follows FUA with a flush. */
static int change(const struct connection *connection, enum cowsnap_write_kind kind,
	const void *buffer, uint64_t offset, uint64_t length)
{
	if (connection->snapshot == NULL)
		return volume_write(&volume, kind, buffer, offset, length);
	if (!allows(connection, SNAPSHOTS_WRITABLE))
		return -EPERM;
	step_back();
	return cowsnap_snapshot_write(connection->snapshot, kind, buffer, offset, length);
}

static int cowsnap_pwrite(
	void *handle, const void *buffer, uint32_t length, uint64_t offset, uint32_t flags)
{
	(void)flags;
	return finish(
		"write", change(handle, COWSNAP_WRITE, buffer, offset, length), offset, length);
}

static int cowsnap_flush(void *handle, uint32_t flags)
{
	const struct connection *connection = handle;
	int error;

	(void)flags;
	if (connection->snapshot != NULL)
		error = cowsnap_snapshot_flush(connection->snapshot);
	else
		error = volume_flush(&volume);
	return finish("flush", error, 0, 0);
}

static int cowsnap_trim(void *handle, uint32_t length, uint64_t offset, uint32_t flags)
{
	const struct connection *connection = handle;
	int error;

	(void)flags;
	if (connection->snapshot != NULL && allows(connection, SNAPSHOTS_RELEASE))
		error = cowsnap_snapshot_release(connection->snapshot, offset, length);
	else
		error = change(connection, COWSNAP_DISCARD, NULL, offset, length);
	return finish("trim", error, offset, length);
}

static int cowsnap_zero(void *handle, uint32_t length, uint64_t offset, uint32_t flags)
{
	/* A client that wants no hole gets zeroes written: nbdkit does that after this error. */
	if ((flags & NBDKIT_FLAG_MAY_TRIM) == 0) {
		nbdkit_set_error(EOPNOTSUPP);
		return -1;
	}
	return finish(
		"zero", change(handle, COWSNAP_WRITE_ZEROES, NULL, offset, length), offset, length);
}

static int cowsnap_extents(void *handle, uint32_t length, uint64_t offset, uint32_t flags,
	struct nbdkit_extents *extents)
{
	const struct connection *connection = handle;
	bool one = (flags & NBDKIT_FLAG_REQ_ONE) != 0;
	int error;

	if (connection->snapshot != NULL)
		error = snapshot_extents(
			&volume, connection->snapshot, offset, length, one, extents);
	else
		error = volume_extents(&volume, offset, length, one, extents);
	return finish("block status", error, offset, length);
}

/* ---- End ------------------------------------------------------------------------------------ */

/* The control thread goes first: it takes and drops. No request is running any more. */
static void cowsnap_cleanup(void)
{
	if (control != NULL)
		control_stop(control);
	control = NULL;
	while (connections != NULL)
		cowsnap_close(connections);
	if (volume_is_open)
		volume_close(&volume);
	volume_is_open = false;
}

static void cowsnap_unload(void)
{
	cowsnap_cleanup(); /* nbdkit skips .cleanup when .after_fork failed */
	parameters_free();
}

static int always(void *handle)
{
	(void)handle;
	return 1;
}

static struct nbdkit_plugin plugin = {
	.name = "cowsnap",
	.longname = "cowsnap: a file with copy-on-write snapshots",
	.version = "0.1.0",
	.unload = cowsnap_unload,
	.config = parameters_set,
	.config_complete = parameters_complete,
	.config_help = PARAMETERS_HELP,
	.magic_config_key = "file",
	.get_ready = cowsnap_get_ready,
	.after_fork = cowsnap_after_fork,
	.cleanup = cowsnap_cleanup,
	.list_exports = cowsnap_list_exports,
	.default_export = cowsnap_default_export,
	.open = cowsnap_open,
	.close = cowsnap_close,
	.get_size = cowsnap_get_size,
	.block_size = cowsnap_block_size,
	.can_write = takes_trims,
	.can_trim = takes_trims,
	.can_zero = takes_writes,
	.can_flush = takes_writes,
	.can_extents = always,
	/* A flush on one connection covers the writes of all: they are on one file, or in one
	 * snapshot. */
	.can_multi_conn = always,
	.pread = cowsnap_pread,
	.pwrite = cowsnap_pwrite,
	.flush = cowsnap_flush,
	.trim = cowsnap_trim,
	.zero = cowsnap_zero,
	.extents = cowsnap_extents,
};

/* The header's macro defines it without a prototype. */
NBDKIT_DLL_PUBLIC struct nbdkit_plugin *plugin_init(void);

NBDKIT_REGISTER_PLUGIN(plugin)
