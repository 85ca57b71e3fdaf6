/* SPDX-License-Identifier: MIT
 *
 * Opening files and reading stores, with everything that can be wrong with them said in words.
 */
#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static int check_kind(const char *path, const struct stat *st)
{
	if (S_ISDIR(st->st_mode)) {
		cli_error(path, "%s", strerror(EISDIR));
		return CLI_IO;
	}
	if (!S_ISREG(st->st_mode) && !S_ISBLK(st->st_mode)) {
		cli_error(path, "it is neither a regular file nor a block device");
		return CLI_IO;
	}
	return CLI_GOOD;
}

static int look_at(const char *path, struct stat *st)
{
	if (stat(path, st) < 0) {
		cli_error(path, "%s", strerror(errno));
		return CLI_IO;
	}
	return check_kind(path, st);
}

static bool is_empty(const struct stat *st)
{
	return S_ISREG(st->st_mode) && st->st_size == 0;
}

int cli_device_open(
	struct cli *cli, const char *path, bool writable, struct cowsnap_device **device)
{
	struct cowsnap_file_options options = {
		.size = sizeof(options),
		.flags = writable ? 0 : COWSNAP_FILE_READONLY,
	};
	struct stat st;
	int status = look_at(path, &st);
	int rc;

	if (status)
		return status;
	if (is_empty(&st)) {
		cli_error(path, "the file is empty");
		return CLI_REFUSED;
	}
	cli->log[0] = '\0';
	rc = cowsnap_device_file(cli->ctx, path, &options, device);
	if (!rc)
		return CLI_GOOD;
	cli_error(path, "cannot be opened%s: %s", writable ? " for writing" : "", strerror(-rc));
	return CLI_IO;
}

int cli_file_open(const char *path, int flags, int *fd, struct stat *st)
{
	int status = look_at(path, st);

	if (status)
		return status;
	*fd = open(path, flags | O_CLOEXEC | O_NOCTTY);
	if (*fd < 0 || fstat(*fd, st) < 0) {
		cli_error(path, "cannot be opened%s: %s", flags & O_RDWR ? " for writing" : "",
			strerror(errno));
		if (*fd >= 0)
			close(*fd);
		return CLI_IO;
	}
	return check_kind(path, st);
}

int cli_file_lock(const char *path, int fd, short type)
{
	struct flock lock = {.l_type = type, .l_whence = SEEK_SET};

	/* Some file systems know no locks. The library goes on there, and so do we. */
	if (fcntl(fd, F_OFD_SETLK, &lock) == 0 || (errno != EAGAIN && errno != EACCES))
		return CLI_GOOD;
	cli_error(path, "it is in use by another process");
	return CLI_IO;
}

int cli_device_hold(const char *path, const struct stat *st, int *fd)
{
	if (!S_ISBLK(st->st_mode))
		return CLI_GOOD;
	*fd = open(path, O_RDONLY | O_EXCL | O_CLOEXEC | O_NOCTTY);
	if (*fd >= 0)
		return CLI_GOOD;
	if (errno == EBUSY)
		cli_error(path, "it is in use by another process");
	else
		cli_error(path, "cannot be opened: %s", strerror(errno));
	return CLI_IO;
}

bool cli_same_file(const struct stat *a, const struct stat *b)
{
	if (S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode))
		return a->st_rdev == b->st_rdev;
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

bool cli_same_path(const char *a, const char *b)
{
	struct stat x, y;

	return stat(a, &x) == 0 && stat(b, &y) == 0 && cli_same_file(&x, &y);
}

static int find_origin_bytes(struct cli *cli, uint64_t *bytes)
{
	struct cowsnap_device *device;
	int status;

	*bytes = cli->origin_bytes;
	if (!cli->origin)
		return CLI_GOOD;
	if (cli_same_path(cli->origin, cli->store)) {
		cli_error(cli->store, "it is the origin");
		return CLI_WRONG_CALL;
	}
	status = cli_device_open(cli, cli->origin, false, &device);
	if (status)
		return status;
	*bytes = cowsnap_device_size(device);
	cowsnap_device_close(device);
	return CLI_GOOD;
}

/* The library takes no device without a length; the format has a name for it all the same. */
static int refuse_empty(struct cli *cli, struct cowsnap_dm_report *report)
{
	snprintf(report->fault, sizeof(report->fault), "device-too-short");
	snprintf(report->reason, sizeof(report->reason), "the file is empty");
	cli_error(cli->store, "%s (%s)", report->reason, report->fault);
	return CLI_REFUSED;
}

static int say(struct cli *cli, int rc, const struct cowsnap_dm_report *report)
{
	if (!rc && report->valid)
		return CLI_GOOD;
	if (!rc) {
		cli_error(cli->store, "the snapshot is marked invalid: its image is lost");
		return CLI_INVALID;
	}
	if (!report->fault[0]) {
		cli_error_of(cli, cli->store, "cannot be read", rc);
		return CLI_IO;
	}
	cli_error(cli->store, "%s (%s)", report->reason, report->fault);
	return CLI_REFUSED;
}

int cli_look(struct cli *cli, struct cli_look *look)
{
	struct cowsnap_dm_inspect_options options = {
		.size = sizeof(options),
		.map = look->map,
		.visit = look->visit,
		.visit_user = look->visit_user,
	};
	struct cowsnap_device *device;
	struct stat st;
	int status = find_origin_bytes(cli, &look->origin_bytes);

	memset(&look->report, 0, sizeof(look->report));
	if (!status)
		status = look_at(cli->store, &st);
	if (status)
		return status;
	if (is_empty(&st))
		return refuse_empty(cli, &look->report);
	status = cli_device_open(cli, cli->store, false, &device);
	if (status)
		return status;
	cli->log[0] = '\0';
	options.origin_bytes = look->origin_bytes;
	status = say(cli, cowsnap_dm_inspect(device, &options, &look->report, sizeof(look->report)),
		&look->report);
	cowsnap_device_close(device);
	return status;
}

json_t *cli_report_json(const struct cowsnap_dm_report *report, int status)
{
	static const char *const verdicts[] = {
		[CLI_GOOD] = "good",
		[CLI_REFUSED] = "refused",
		[CLI_WRONG_CALL] = "unknown",
		[CLI_IO] = "unknown",
		[CLI_INVALID] = "invalid",
	};
	/* The host's number may be any of 64 bits, more than JSON's readers keep. */
	char generation[24];

	snprintf(generation, sizeof(generation), "%llu", (unsigned long long)report->generation);
	return json_pack("{s:s,s:s,s:s,s:b,s:o,s:o,s:s,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "verdict",
		verdicts[status], "fault", report->fault, "reason", report->reason, "valid",
		report->valid, "device_bytes", cli_json_number(report->device_bytes),
		"chunk_size_bytes", cli_json_number(report->chunk_size_bytes), "generation",
		generation, "chunks", cli_json_number(report->chunks), "areas",
		cli_json_number(report->areas), "record_limit",
		cli_json_number(report->record_limit), "record_count",
		cli_json_number(report->records), "highest_chunk",
		cli_json_number(report->highest_chunk), "stale_offset",
		cli_json_number(report->stale_offset), "stale_bytes",
		cli_json_number(report->stale_bytes));
}
