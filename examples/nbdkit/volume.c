/* SPDX-License-Identifier: MIT
 *
 * Opening and closing the volume, and the table of its snapshots.
 *
 * Invariants:
 *  1. A name is in the table once.
 *  2. A snapshot in the table is not dropped, except for the end of volume_drop(); the table holds
 *     one reference to it.
 *  3. Whoever uses a snapshot outside the lock holds a reference of his own.
 * Locking: volume.lock for the table, held for no call that can block.
 * Failure: a volume that could not be opened completely is closed again completely. A snapshot that
 * was found in a persistent store is never dropped by that, only by volume_drop().
 */
#define NBDKIT_API_VERSION 2
#include "volume.h"
#include "volume_store.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <nbdkit-plugin.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A write that is longer under way than this makes a take fail instead of stopping the control
 * socket for all. */
static const uint64_t take_deadline_ns = UINT64_C(5000000000);

/* While the volume is opened, whoever calls says what is wrong, perhaps in the library's words.
 * Later, what it calls an error is worth a line in any case. */
static void log_write(void *user, enum cowsnap_log_level level, const char *message)
{
	struct volume *volume = user;

	if (level == COWSNAP_LOG_ERROR && volume->opening && *volume->complaint == '\0')
		snprintf(volume->complaint, sizeof(volume->complaint), "%s", message);
	if (level == COWSNAP_LOG_ERROR && !volume->opening)
		nbdkit_error("cowsnap: %s", message);
	else
		nbdkit_debug("cowsnap: %s", message);
}

/* The name under which nbdkit_error() may speak of it; it may be dropped at this moment. */
static void copy_name(
	struct volume *volume, const struct cowsnap_snapshot *snapshot, char name[], size_t size)
{
	const struct named_snapshot *entry;

	snprintf(name, size, "(being taken or dropped)");
	pthread_mutex_lock(&volume->lock);
	for (entry = volume->snapshots; entry != NULL; entry = entry->next) {
		if (entry->snapshot == snapshot)
			snprintf(name, size, "%s", entry->name);
	}
	pthread_mutex_unlock(&volume->lock);
}

/* Low water and full are told at debug level: `status` shows them. A snapshot that is lost is
 * worth a line in the log in any case. */
static void volume_event(void *user, const struct cowsnap_event *event)
{
	char name[SNAPSHOT_NAME_MAX + 1] = "";

	if (event->snapshot != NULL)
		copy_name(user, event->snapshot, name, sizeof(name));
	switch (event->type) {
	case COWSNAP_EVENT_INVALID:
		nbdkit_error("snapshot %s is invalid now: %s", name, strerror(-event->reason));
		return;
	case COWSNAP_EVENT_MERGED:
		nbdkit_debug("snapshot %s is merged", name);
		return;
	case COWSNAP_EVENT_MERGE_FAILED:
		nbdkit_error(
			"the merge of snapshot %s has stopped: %s", name, strerror(-event->reason));
		return;
	case COWSNAP_EVENT_LOW_WATER:
	case COWSNAP_EVENT_FULL:
		break;
	}
	nbdkit_debug("store %s: %" PRIu64 " of %" PRIu64 " bytes used",
		event->type == COWSNAP_EVENT_FULL ? "full" : "low on space", event->used_bytes,
		event->limit_bytes);
}

/* Of a file with all of its blocks each copy would ask in vain, until something is trimmed. */
static bool may_have_holes(int fd)
{
	struct stat found;

	return fstat(fd, &found) == 0 && S_ISREG(found.st_mode) &&
	       (uint64_t)found.st_blocks * 512 < (uint64_t)found.st_size;
}

static int open_origin(struct volume *volume)
{
	const char *file = volume->options->file;
	int error = cowsnap_device_file(volume->ctx, file, NULL, &volume->device);

	if (error == -EINVAL) {
		nbdkit_error("file=%s: not a file or block device of at least one byte", file);
		return error;
	}
	if (error != 0) {
		nbdkit_error("file=%s: %s", file, strerror(-error));
		return error;
	}
	volume->fd = open(file, O_RDONLY | O_CLOEXEC);
	if (volume->fd < 0) {
		error = -errno;
		nbdkit_error("file=%s: %s", file, strerror(-error));
		return error;
	}
	atomic_store(&volume->has_holes, may_have_holes(volume->fd));
	error = cowsnap_origin_open(volume->ctx, volume->device, &volume->origin);
	if (error != 0)
		nbdkit_error("file=%s: cannot be an origin: %s", file, strerror(-error));
	return error;
}

/* How this volume's snapshots are taken. */
static struct cowsnap_take_entry make_take_entry(const struct volume *volume)
{
	const struct volume_options *options = volume->options;

	return (struct cowsnap_take_entry){
		.origin = volume->origin,
		.store = volume->store,
		.on_full = options->on_full == ON_FULL_FAIL ? COWSNAP_LOSER_WRITE
							    : COWSNAP_LOSER_SNAPSHOT,
		.wait_ns = options->on_full == ON_FULL_WAIT ? options->wait_ns : 0,
	};
}

static int open_store(struct volume *volume)
{
	struct cowsnap_take_entry found = make_take_entry(volume);
	struct named_snapshot *entry = calloc(1, sizeof(*entry));
	int error;

	if (entry == NULL) {
		nbdkit_error("calloc: %s", strerror(errno));
		return -ENOMEM;
	}
	error = store_open(volume, &found);
	if (error != 0 || found.snapshot == NULL) {
		free(entry);
		return error;
	}
	entry->snapshot = found.snapshot;
	store_name_read(volume, entry->name);
	volume->snapshots = entry;
	return 0;
}

static int create_context(struct volume *volume)
{
	struct cowsnap_ctx_options options = {
		.size = sizeof(options),
		.log = &volume->log,
		.event = volume_event,
		.event_user = volume,
	};
	int error = cowsnap_ctx_create(&options, &volume->ctx);

	if (error != 0)
		nbdkit_error("cowsnap: %s", strerror(-error));
	return error;
}

static int offer_holes(struct volume *volume)
{
	const struct cowsnap_preimage preimage = {.get = volume_preimage, .user = volume};
	int error = cowsnap_origin_set_preimage(volume->origin, &preimage);

	if (error != 0)
		nbdkit_error("file=%s: %s", volume->options->file, strerror(-error));
	return error;
}

int volume_open(struct volume *volume, const struct volume_options *options)
{
	int error;

	memset(volume, 0, sizeof(*volume));
	volume->options = options;
	volume->fd = -1;
	volume->log = (struct cowsnap_log){
		.size = sizeof(volume->log), .user = volume, .write = log_write};
	volume->opening = true;
	pthread_mutex_init(&volume->lock, NULL);
	error = volume_jobs_init(volume);
	if (error == 0)
		error = create_context(volume);
	if (error == 0)
		error = open_origin(volume);
	if (error == 0)
		error = generation_read(volume);
	if (error == 0)
		error = open_store(volume);
	if (error == 0)
		error = offer_holes(volume);
	volume->opening = false;
	if (error != 0)
		volume_close(volume);
	return error;
}

int volume_begin(struct volume *volume)
{
	int error = generation_raise(volume);

	return error == 0 ? volume_merge_again(volume) : error;
}

static void close_failed(const char *what, int error)
{
	if (error != 0)
		nbdkit_error("cannot close the %s: %s", what, strerror(-error));
}

static void forget_snapshots(struct volume *volume)
{
	while (volume->snapshots != NULL) {
		struct named_snapshot *entry = volume->snapshots;

		volume->snapshots = entry->next;
		if (volume->options->store_format == STORE_DM)
			cowsnap_snapshot_deactivate(entry->snapshot);
		else
			cowsnap_snapshot_drop(entry->snapshot);
		cowsnap_snapshot_unref(entry->snapshot);
		free(entry);
	}
}

void volume_close(struct volume *volume)
{
	volume_jobs_end(volume);
	forget_snapshots(volume);
	if (volume->ctx != NULL)
		cowsnap_reclaim(volume->ctx, UINT64_MAX);
	close_failed("store", cowsnap_store_close(volume->store));
	close_failed("origin", cowsnap_origin_close(volume->origin));
	close_failed("device of the store", cowsnap_device_close(volume->store_device));
	close_failed("file", cowsnap_device_close(volume->device));
	close_failed("context", cowsnap_ctx_destroy(volume->ctx));
	if (volume->fd >= 0)
		close(volume->fd);
	free(volume->name_path);
	free(volume->merge_path);
	pthread_mutex_destroy(&volume->lock);
}

/* The link that points to the entry of that name, or the one at the end. */
static struct named_snapshot **find_link(struct volume *volume, const char *name)
{
	struct named_snapshot **link = &volume->snapshots;

	while (*link != NULL && strcmp((*link)->name, name) != 0)
		link = &(*link)->next;
	return link;
}

/* A persistent store's snapshot has its name kept before it is there, and as long as it is. */
static int take_snapshot(struct volume *volume, const char *name, struct cowsnap_take_entry *entry)
{
	const struct cowsnap_take_options options = {
		.size = sizeof(options),
		.deadline_ns = take_deadline_ns,
	};
	bool persistent = volume->options->store_format == STORE_DM;
	int error = 0;

	if (volume_has_merge(volume))
		return -EBUSY;
	if (persistent && entry->flags == 0 && volume->snapshots != NULL)
		return -EBUSY;
	if (persistent)
		error = store_merge_unmark(volume);
	if (persistent && error == 0)
		error = store_name_write(volume, name);
	if (error != 0)
		return error;
	error = cowsnap_take(volume->ctx, &options, entry, 1);
	if (error != 0 && persistent)
		store_name_remove(volume);
	/* The one snapshot was dropped, but a reader still has it. */
	return error == -ENOTSUP && entry->flags == 0 ? -EBUSY : error;
}

int volume_take(struct volume *volume, const char *name, uint32_t flags,
	const struct named_snapshot **taken)
{
	struct cowsnap_take_entry frozen = make_take_entry(volume);
	struct named_snapshot **link = find_link(volume, name);
	struct named_snapshot *entry;
	int error;

	if (*link != NULL)
		return -EEXIST;
	entry = calloc(1, sizeof(*entry));
	if (entry == NULL)
		return -ENOMEM;
	strcpy(entry->name, name);
	frozen.flags = flags;
	error = take_snapshot(volume, name, &frozen);
	if (error != 0) {
		free(entry);
		return error;
	}
	entry->snapshot = frozen.snapshot;
	pthread_mutex_lock(&volume->lock);
	*link = entry;
	pthread_mutex_unlock(&volume->lock);
	*taken = entry;
	return 0;
}

struct named_snapshot *volume_entry(struct volume *volume, const char *name)
{
	return *find_link(volume, name);
}

void volume_forget(struct volume *volume, const char *name)
{
	struct named_snapshot **link = find_link(volume, name);
	struct named_snapshot *entry = *link;

	if (entry == NULL)
		return;
	pthread_mutex_lock(&volume->lock);
	*link = entry->next;
	pthread_mutex_unlock(&volume->lock);
	cowsnap_snapshot_unref(entry->snapshot);
	free(entry);
}

int volume_drop(struct volume *volume, const char *name)
{
	const struct named_snapshot *entry = volume_entry(volume, name);
	int error;

	if (entry == NULL)
		return -ENOENT;
	error = cowsnap_snapshot_drop(entry->snapshot);
	if (error != 0)
		return error;
	volume_forget(volume, name);
	if (volume->options->store_format == STORE_DM)
		store_name_remove(volume);
	return 0;
}

int volume_grow(struct volume *volume)
{
	int error;

	if (volume->store_device == NULL)
		return -ENODEV;
	error = cowsnap_device_refresh(volume->store_device);
	return error == 0 ? cowsnap_store_set_limit(volume->store, 0) : error;
}

int volume_resize(struct volume *volume)
{
	int error = cowsnap_device_refresh(volume->device);

	if (error == 0)
		error = cowsnap_origin_resize(volume->origin, 0);
	/* What is new has not been written to. */
	if (error == 0)
		atomic_store(&volume->has_holes, may_have_holes(volume->fd));
	return error;
}

struct cowsnap_snapshot *volume_find(struct volume *volume, const char *name)
{
	struct cowsnap_snapshot *snapshot = NULL;
	const struct named_snapshot *entry;

	pthread_mutex_lock(&volume->lock);
	entry = *find_link(volume, name);
	if (entry != NULL)
		snapshot = cowsnap_snapshot_ref(entry->snapshot);
	pthread_mutex_unlock(&volume->lock);
	return snapshot;
}

unsigned int volume_connections(struct volume *volume)
{
	unsigned int connections;

	pthread_mutex_lock(&volume->lock);
	connections = volume->connections;
	pthread_mutex_unlock(&volume->lock);
	return connections;
}

bool volume_all_reclaimed(struct volume *volume)
{
	struct cowsnap_store_usage usage;

	if (cowsnap_store_usage(volume->store, &usage, sizeof(usage)) != 0)
		return true;
	return usage.reclaimable_bytes == 0;
}
