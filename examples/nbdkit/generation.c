/* SPDX-License-Identifier: MIT
 *
 * How the plug-in tells that a volume was written to while its snapshot's store was not there: a
 * number that is raised at each start, in a file of its own and in the store.
 *
 * Invariant: no write is served before both hold the new number, durably. So at the next start they
 * agree, or the store is one ahead; anything else means that the volume was served without it.
 */
#define NBDKIT_API_VERSION 2
#include "sidecar.h"
#include "volume_store.h"

#include <errno.h>
#include <inttypes.h>
#include <nbdkit-plugin.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int generation_read(struct volume *volume)
{
	const char *path = volume->options->generation_file;
	char line[32];
	char *end;
	int error;

	if (path == NULL)
		return 0;
	error = sidecar_read(path, line, sizeof(line));
	if (error == -ENOENT)
		return 0;
	if (error != 0 && error != -EFBIG) {
		nbdkit_error("generation-file=%s: %s", path, strerror(-error));
		return error;
	}
	errno = 0;
	if (error == 0)
		volume->generation = strtoull(line, &end, 10);
	if (error != 0 || *line < '0' || *line > '9' || *end != '\0' || errno != 0 ||
		volume->generation == UINT64_MAX) {
		nbdkit_error("generation-file=%s: does not hold a number", path);
		return -EINVAL;
	}
	return 0;
}

int generation_check(struct volume *volume)
{
	const struct volume_options *options = volume->options;
	struct cowsnap_dm_report report;
	int error;

	if (options->generation_file == NULL)
		return 0;
	/* A store that cannot be read is for cowsnap_store_dm_open() to speak of. */
	error = cowsnap_dm_inspect(volume->store_device, NULL, &report, sizeof(report));
	if (error != 0 || report.generation == volume->generation ||
		report.generation == volume->generation + 1)
		return 0;
	nbdkit_error(
		"store=%s: its generation is %" PRIu64 ", that of generation-file=%s is %" PRIu64
		": the volume was written to without this store, whose snapshot is worthless now",
		options->store, report.generation, options->generation_file, volume->generation);
	return -ESTALE;
}

int generation_raise(struct volume *volume)
{
	const struct volume_options *options = volume->options;
	uint64_t next = volume->generation + 1;
	char line[32];
	int error = 0;

	if (options->generation_file == NULL)
		return 0;
	if (options->store_format == STORE_DM)
		error = cowsnap_store_dm_set_generation(volume->store, next);
	if (error != 0) {
		nbdkit_error("store=%s: cannot set its generation to %" PRIu64 ": %s",
			options->store, next, strerror(-error));
		return error;
	}
	snprintf(line, sizeof(line), "%" PRIu64, next);
	error = sidecar_write(options->generation_file, line);
	if (error != 0) {
		nbdkit_error("generation-file=%s: %s", options->generation_file, strerror(-error));
		return error;
	}
	volume->generation = next;
	return 0;
}
