/* SPDX-License-Identifier: MIT
 *
 * key=value of the command line.
 */
#define NBDKIT_API_VERSION 2
#include "parameters.h"

#include <nbdkit-plugin.h>
#include <stdlib.h>
#include <string.h>

struct parameters parameters = {.snapshot_nice = 10};

static unsigned int wait_seconds = 30;
static bool wait_given;

static int parse_size(const char *key, const char *value, uint64_t *size_bytes)
{
	int64_t size = nbdkit_parse_size(value);

	if (size < 0)
		return -1;
	if (size == 0) {
		nbdkit_error("%s=%s: must be more than 0", key, value);
		return -1;
	}
	*size_bytes = (uint64_t)size;
	return 0;
}

static int parse_on_full(const char *value)
{
	if (strcmp(value, "invalidate") == 0)
		parameters.volume.on_full = ON_FULL_INVALIDATE;
	else if (strcmp(value, "fail") == 0)
		parameters.volume.on_full = ON_FULL_FAIL;
	else if (strcmp(value, "wait") == 0)
		parameters.volume.on_full = ON_FULL_WAIT;
	else {
		nbdkit_error("on-full=%s: must be invalidate, fail or wait", value);
		return -1;
	}
	return 0;
}

static int parse_store_format(const char *value)
{
	if (strcmp(value, "transient") == 0)
		parameters.volume.store_format = STORE_TRANSIENT;
	else if (strcmp(value, "dm") == 0)
		parameters.volume.store_format = STORE_DM;
	else {
		nbdkit_error("store-format=%s: must be transient or dm", value);
		return -1;
	}
	return 0;
}

static int parse_snapshots(const char *value)
{
	if (strcmp(value, "readonly") == 0)
		parameters.volume.snapshot_exports = SNAPSHOTS_READONLY;
	else if (strcmp(value, "writable") == 0)
		parameters.volume.snapshot_exports = SNAPSHOTS_WRITABLE;
	else if (strcmp(value, "release") == 0)
		parameters.volume.snapshot_exports = SNAPSHOTS_RELEASE;
	else {
		nbdkit_error("snapshots=%s: must be readonly, writable or release", value);
		return -1;
	}
	return 0;
}

static int parse_nice(const char *key, const char *value)
{
	if (nbdkit_parse_unsigned(key, value, &parameters.snapshot_nice) != 0)
		return -1;
	if (parameters.snapshot_nice > 19) {
		nbdkit_error("%s=%s: must be from 0 to 19", key, value);
		return -1;
	}
	return 0;
}

/* nbdkit changes to / when it goes into the background. Kept until .unload. */
static int parse_path(const char *key, const char *value, const char **path)
{
	if (*value == '\0') {
		nbdkit_error("%s=: the path is empty", key);
		return -1;
	}
	free((char *)*path);
	*path = nbdkit_absolute_path(value);
	return *path ? 0 : -1;
}

int parameters_set(const char *key, const char *value)
{
	if (strcmp(key, "file") == 0)
		return parse_path(key, value, &parameters.volume.file);
	if (strcmp(key, "control") == 0)
		return parse_path(key, value, &parameters.control);
	if (strcmp(key, "store") == 0 && strcmp(value, "memory") != 0)
		return parse_path(key, value, &parameters.volume.store);
	if (strcmp(key, "store") == 0) {
		free((char *)parameters.volume.store);
		parameters.volume.store = NULL;
		return 0;
	}
	if (strcmp(key, "store-format") == 0)
		return parse_store_format(value);
	if (strcmp(key, "generation-file") == 0)
		return parse_path(key, value, &parameters.volume.generation_file);
	if (strcmp(key, "handover-file") == 0)
		return parse_path(key, value, &parameters.volume.handover_file);
	if (strcmp(key, "chunk-size") == 0)
		return parse_size(key, value, &parameters.volume.chunk_size_bytes);
	if (strcmp(key, "store-limit") == 0)
		return parse_size(key, value, &parameters.volume.store_limit_bytes);
	if (strcmp(key, "on-full") == 0)
		return parse_on_full(value);
	if (strcmp(key, "on-full-wait") == 0) {
		wait_given = true;
		return nbdkit_parse_unsigned(key, value, &wait_seconds);
	}
	if (strcmp(key, "snapshots") == 0)
		return parse_snapshots(value);
	if (strcmp(key, "snapshot-nice") == 0)
		return parse_nice(key, value);
	nbdkit_error("unknown parameter '%s'", key);
	return -1;
}

int parameters_complete(void)
{
	if (parameters.volume.file == NULL) {
		nbdkit_error("file=PATH is missing: which file is the volume?");
		return -1;
	}
	if (parameters.volume.store_format == STORE_DM && parameters.volume.store == NULL) {
		nbdkit_error("store-format=dm wants store=FILE: what is in memory does not outlive "
			     "the process");
		return -1;
	}
	if (parameters.volume.store_format == STORE_DM &&
		parameters.volume.snapshot_exports == SNAPSHOTS_RELEASE) {
		nbdkit_error("snapshots=release: the format of store-format=dm cannot say what was "
			     "released");
		return -1;
	}
	if (parameters.volume.store_format != STORE_DM && parameters.volume.handover_file != NULL) {
		nbdkit_error("handover-file= has a meaning only with store-format=dm");
		return -1;
	}
	if (wait_given && parameters.volume.on_full != ON_FULL_WAIT) {
		nbdkit_error("on-full-wait= has a meaning only with on-full=wait");
		return -1;
	}
	parameters.volume.wait_ns = wait_seconds * UINT64_C(1000000000);
	return 0;
}

void parameters_free(void)
{
	free((char *)parameters.volume.file);
	free((char *)parameters.volume.store);
	free((char *)parameters.volume.generation_file);
	free((char *)parameters.volume.handover_file);
	free((char *)parameters.control);
}
