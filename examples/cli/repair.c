/* SPDX-License-Identifier: MIT
 *
 * cowsnap repair: wipes what a crash left behind the last record. That is what the next open would
 * do, and what a kernel does not: to it the tail may come alive. Nothing else can be repaired
 * without losing something, so nothing else is.
 */
#include "cli.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define PIECE_BYTES 65536u

/* Nobody but us has the store: our lock is exclusive, and was shared while it was read. */
static int wipe(struct cli *cli, const struct cowsnap_dm_report *report)
{
	static const uint8_t zeroes[PIECE_BYTES];
	struct cowsnap_device *device;
	uint64_t offset = report->stale_offset, left = report->stale_bytes;
	int status = cli_device_open(cli, cli->store, true, &device);
	int rc = 0;

	if (status)
		return status;
	while (left && !rc) {
		uint64_t piece = left < PIECE_BYTES ? left : PIECE_BYTES;

		rc = cowsnap_device_write(device, zeroes, offset, piece);
		offset += piece;
		left -= piece;
	}
	if (!rc)
		rc = cowsnap_device_flush(device);
	cowsnap_device_close(device);
	if (!rc)
		return CLI_GOOD;
	cli_error(cli->store, "cannot be written: %s", strerror(-rc));
	return CLI_IO;
}

static void report_out(const struct cli *cli, const struct cowsnap_dm_report *report)
{
	const char *what = cli->dry_run ? "would wipe" : "wiped";
	json_t *document;

	if (cli->json) {
		document = cli_report_json(report, CLI_GOOD);
		json_object_set_new(document, "path", cli_json_text(cli->store));
		json_object_set_new(document, "dry_run", json_boolean(cli->dry_run));
		json_object_set_new(document, "wiped_bytes",
			cli_json_number(cli->dry_run ? 0 : report->stale_bytes));
		cli_json_out(document);
	} else if (!report->stale_bytes) {
		cli_out("%s: good, nothing to repair\n", cli->store);
	} else {
		cli_out("%s: %s %llu bytes at byte %llu, left by a crash behind the last record\n",
			cli->store, what, (unsigned long long)report->stale_bytes,
			(unsigned long long)report->stale_offset);
	}
}

static int repair(struct cli *cli, int fd, const struct stat *st)
{
	struct cli_look look = {0};
	int hold_fd = -1;
	int status = cli_file_lock(cli->store, fd, F_RDLCK);

	if (!status)
		status = cli_look(cli, &look);
	if (!status && look.report.stale_bytes && !cli->dry_run) {
		/* From shared to exclusive in one step: nobody gets in between. */
		status = cli_file_lock(cli->store, fd, F_WRLCK);
		if (!status)
			status = cli_device_hold(cli->store, st, &hold_fd);
		if (!status)
			status = wipe(cli, &look.report);
		if (hold_fd >= 0)
			close(hold_fd);
	}
	if (!status)
		report_out(cli, &look.report);
	return status;
}

int cli_repair(struct cli *cli)
{
	struct stat st;
	int fd = -1;
	int status;

	status = cli_file_open(cli->store, cli->dry_run ? O_RDONLY : O_RDWR, &fd, &st);
	if (status)
		return status;
	status = repair(cli, fd, &st);
	close(fd);
	return status;
}
