/* SPDX-License-Identifier: MIT
 *
 * Opening the store, and the files that keep what a persistent store has no place for: the name of
 * its snapshot, and that it is being merged.
 *
 * Failure: every refusal says which parameter it is about and what is wrong with it. A file that
 * was there before is not changed by one.
 */
#define NBDKIT_API_VERSION 2
#include "volume_store.h"
#include "name.h"
#include "sidecar.h"

#include <errno.h>
#include <inttypes.h>
#include <nbdkit-plugin.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const uint64_t default_chunk_size_bytes = 4096;
static const uint64_t dm_record_bytes = 16;

/* ---- The device ----------------------------------------------------------------------------- */

static int open_device(struct volume *volume, bool create, uint64_t length_bytes)
{
	const struct cowsnap_file_options options = {
		.size = sizeof(options),
		.flags = create ? COWSNAP_FILE_CREATE : 0,
		.length_bytes = create ? length_bytes : 0,
	};

	return cowsnap_device_file(
		volume->ctx, volume->options->store, &options, &volume->store_device);
}

static void explain_device(const struct volume *volume, int error)
{
	const char *path = volume->options->store;

	if (error == -EINVAL)
		nbdkit_error("store=%s: not a file or block device of at least one byte", path);
	else if (error != 0)
		nbdkit_error("store=%s: %s", path, strerror(-error));
}

static void explain_chunk_size(uint64_t chunk_size_bytes)
{
	if (chunk_size_bytes < COWSNAP_CHUNK_SIZE_MIN || chunk_size_bytes > COWSNAP_CHUNK_SIZE_MAX)
		nbdkit_error("chunk-size=%" PRIu64 ": must be from %" PRIu64 " to %" PRIu64,
			chunk_size_bytes, COWSNAP_CHUNK_SIZE_MIN, COWSNAP_CHUNK_SIZE_MAX);
	else
		nbdkit_error("chunk-size=%" PRIu64 ": must be a power of two", chunk_size_bytes);
}

/* ---- A transient store ---------------------------------------------------------------------- */

static void explain_transient(const struct volume *volume, int error)
{
	const struct volume_options *options = volume->options;
	uint64_t chunk_size_bytes = options->chunk_size_bytes;
	const char *path = options->store ? options->store : "memory";

	if (error == -EBUSY)
		nbdkit_error("store=%s: this is the volume itself; its own preimages would "
			     "overwrite it",
			path);
	else if (error == -EINVAL)
		explain_chunk_size(chunk_size_bytes);
	else if (error == -ERANGE && chunk_size_bytes != 0 &&
		 (chunk_size_bytes < COWSNAP_CHUNK_SIZE_MIN ||
			 chunk_size_bytes > COWSNAP_CHUNK_SIZE_MAX))
		explain_chunk_size(chunk_size_bytes);
	else if (error == -ERANGE)
		nbdkit_error("store-limit=%" PRIu64 ": must be at least a chunk and no more than "
			     "store=%s has",
			options->store_limit_bytes, path);
	else
		nbdkit_error("store=%s: %s", path, strerror(-error));
}

/* What a transient store would write over is somebody's snapshot. */
static int refuse_persistent(struct volume *volume)
{
	char magic[4] = "";
	int error;

	if (cowsnap_device_size(volume->store_device) < sizeof(magic))
		return 0;
	error = cowsnap_device_read(volume->store_device, magic, 0, sizeof(magic));
	if (error != 0) {
		explain_device(volume, error);
		return error;
	}
	if (memcmp(magic, "SnAp", sizeof(magic)) != 0)
		return 0;
	nbdkit_error(
		"store=%s: holds a persistent store with a snapshot; store-format=dm opens it. "
		"Remove the file to give it up",
		volume->options->store);
	return -EEXIST;
}

static int open_transient(struct volume *volume)
{
	const struct volume_options *wanted = volume->options;
	struct cowsnap_transient_options options = {
		.size = sizeof(options),
		.chunk_size_bytes = wanted->chunk_size_bytes,
		.limit_bytes = wanted->store_limit_bytes,
		.flags = COWSNAP_TRANSIENT_SKIP_ZEROES,
	};
	int error = 0;

	if (wanted->store != NULL) {
		error = open_device(volume, true,
			wanted->store_limit_bytes ? wanted->store_limit_bytes
						  : cowsnap_device_size(volume->device));
		explain_device(volume, error);
		if (error == 0)
			error = refuse_persistent(volume);
	}
	if (error != 0)
		return error;
	options.device = volume->store_device;
	error = cowsnap_store_transient(volume->ctx, &options, &volume->store);
	if (error != 0)
		explain_transient(volume, error);
	return error;
}

/* ---- A persistent store --------------------------------------------------------------------- */

/* Before a file is made for it. */
static int check_chunk_size(uint64_t chunk_size_bytes)
{
	if (chunk_size_bytes >= COWSNAP_CHUNK_SIZE_MIN &&
		chunk_size_bytes <= COWSNAP_CHUNK_SIZE_MAX &&
		(chunk_size_bytes & (chunk_size_bytes - 1)) == 0)
		return 0;
	explain_chunk_size(chunk_size_bytes);
	return -EINVAL;
}

/* Room for store-limit, or for every chunk of the volume, and for what the format needs besides:
 * the header, and an area for each so many records and for the end of the list. */
static int create_device(struct volume *volume)
{
	const struct volume_options *wanted = volume->options;
	uint64_t chunk_size_bytes =
		wanted->chunk_size_bytes ? wanted->chunk_size_bytes : default_chunk_size_bytes;
	uint64_t records = wanted->store_limit_bytes / chunk_size_bytes;
	uint64_t chunks;
	int error;

	if (wanted->store_limit_bytes == 0)
		records = (cowsnap_device_size(volume->device) + chunk_size_bytes - 1) /
			  chunk_size_bytes;
	if (records == 0) {
		nbdkit_error("store-limit=%" PRIu64 ": must be at least a chunk of %" PRIu64,
			wanted->store_limit_bytes, chunk_size_bytes);
		return -ERANGE;
	}
	chunks = 1 + records + records / (chunk_size_bytes / dm_record_bytes) + 1;
	error = open_device(volume, true, chunks * chunk_size_bytes);
	explain_device(volume, error);
	return error;
}

static int open_dm_device(struct volume *volume)
{
	uint64_t chunk_size_bytes = volume->options->chunk_size_bytes;
	int error = chunk_size_bytes ? check_chunk_size(chunk_size_bytes) : 0;

	if (error != 0)
		return error;
	error = open_device(volume, false, 0);
	if (error == -ENOENT)
		return create_device(volume);
	explain_device(volume, error);
	return error;
}

/* The library has the words: which record has which value. */
static void explain_dm(const struct volume *volume, int error)
{
	const char *words = *volume->complaint ? volume->complaint : strerror(-error);

	if (error == -EBUSY)
		nbdkit_error("store=%s: another process uses it, or it is the volume itself: %s",
			volume->options->store, words);
	else
		nbdkit_error("store=%s: %s", volume->options->store, words);
}

static int open_dm(struct volume *volume, struct cowsnap_take_entry *entry)
{
	struct cowsnap_dm_options options = {
		.size = sizeof(options),
		.chunk_size_bytes = volume->options->chunk_size_bytes,
	};
	int error = open_dm_device(volume);

	if (error != 0)
		return error;
	options.device = volume->store_device;
	if (volume->options->handover_file != NULL) {
		error = store_import(volume, &options, entry);
		if (error != -ESTALE)
			return error;
	}
	error = generation_check(volume);
	if (error != 0)
		return error;
	*volume->complaint = '\0';
	error = cowsnap_store_dm_open(volume->ctx, &options, entry, &volume->store);
	if (error == -ENOENT) {
		*volume->complaint = '\0';
		error = cowsnap_store_dm_create(volume->ctx, &options, &volume->store);
	}
	if (error != 0)
		explain_dm(volume, error);
	return error;
}

static char *path_beside(const struct volume *volume, const char *ending)
{
	char *path;

	return asprintf(&path, "%s.%s", volume->options->store, ending) < 0 ? NULL : path;
}

int store_open(struct volume *volume, struct cowsnap_take_entry *entry)
{
	if (volume->options->store_format == STORE_TRANSIENT)
		return open_transient(volume);
	volume->name_path = path_beside(volume, "name");
	volume->merge_path = path_beside(volume, "merging");
	if (volume->name_path == NULL || volume->merge_path == NULL) {
		nbdkit_error("store=%s: %s", volume->options->store, strerror(ENOMEM));
		return -ENOMEM;
	}
	return open_dm(volume, entry);
}

/* ---- The name of its snapshot --------------------------------------------------------------- */

void store_name_read(struct volume *volume, char name[SNAPSHOT_NAME_MAX + 1])
{
	char line[SNAPSHOT_NAME_MAX + 2]; /* and its end */
	const char *message = NULL;
	int error = sidecar_read(volume->name_path, line, sizeof(line));

	if (error == 0)
		error = name_check(line, strlen(line), &message);
	if (error != 0) {
		nbdkit_debug("%s: %s: the snapshot is called \"reopened\"", volume->name_path,
			message ? message : strerror(-error));
		strcpy(line, "reopened");
	}
	strcpy(name, line);
}

int store_name_write(struct volume *volume, const char *name)
{
	int error = sidecar_write(volume->name_path, name);

	if (error != 0)
		nbdkit_error("%s: cannot keep the snapshot's name: %s", volume->name_path,
			strerror(-error));
	return error;
}

void store_name_remove(struct volume *volume)
{
	int error = sidecar_remove(volume->name_path);

	if (error != 0)
		nbdkit_error("%s: cannot be removed: %s", volume->name_path, strerror(-error));
}

/* ---- That it is being merged ---------------------------------------------------------------- */

int store_merge_mark(struct volume *volume)
{
	int error = volume->merge_path ? sidecar_write(volume->merge_path, "merging") : 0;

	if (error != 0)
		nbdkit_error("%s: cannot keep that the snapshot is being merged: %s",
			volume->merge_path, strerror(-error));
	return error;
}

int store_merge_unmark(struct volume *volume)
{
	int error = volume->merge_path ? sidecar_remove(volume->merge_path) : 0;

	if (error != 0)
		nbdkit_error("%s: cannot be removed: %s", volume->merge_path, strerror(-error));
	return error;
}

bool store_merge_marked(const struct volume *volume)
{
	return volume->merge_path != NULL && access(volume->merge_path, F_OK) == 0;
}
