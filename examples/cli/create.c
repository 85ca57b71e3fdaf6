/* SPDX-License-Identifier: MIT
 *
 * cowsnap create: an empty, valid snapshot of an origin that nobody writes to at the moment. A
 * kernel or another host goes on with it.
 */
#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define CHUNK_SIZE_DEFAULT UINT64_C(4096)
#define RECORD_BYTES       16u
#define CHUNKS_MIN         3u

struct creation {
	struct cli *cli;
	uint64_t chunk_size_bytes; /* that the length is reckoned with */
	uint64_t length_bytes;     /* wanted; 0: as long as the file is */
	bool made;                 /* the file is ours to remove */
	struct cowsnap_device *origin_device, *device;
	struct cowsnap_origin *origin;
	struct cowsnap_store *store;
};

/* The length of a store for some records: header, areas, data, a slot for the end of the list. */
static bool length_of(uint64_t chunk_size_bytes, uint64_t records, uint64_t *bytes)
{
	uint64_t chunks = 1 + records + records / (chunk_size_bytes / RECORD_BYTES) + 1;

	if (records > COWSNAP_SIZE_MAX / chunk_size_bytes || chunks < records ||
		chunks > COWSNAP_SIZE_MAX / chunk_size_bytes)
		return false;
	if (chunks < CHUNKS_MIN)
		chunks = CHUNKS_MIN;
	*bytes = chunks * chunk_size_bytes;
	return true;
}

static uint64_t share(uint64_t whole, uint64_t percent)
{
	/* In two parts: whole * percent may not fit. Rounded up. */
	return whole / 100 * percent + (whole % 100 * percent + 99) / 100;
}

static int reckon_length(struct creation *creation)
{
	const struct cli *cli = creation->cli;
	uint64_t chunk = creation->chunk_size_bytes;
	uint64_t origin_chunks = (cowsnap_device_size(creation->origin_device) - 1) / chunk + 1;
	bool fits = true;

	switch (cli->room_kind) {
	case CLI_ROOM_NONE:
		break;
	case CLI_ROOM_BYTES:
		creation->length_bytes = cli->room;
		fits = cli->room <= COWSNAP_SIZE_MAX;
		break;
	case CLI_ROOM_PERCENT:
		fits = length_of(chunk, share(origin_chunks, cli->room), &creation->length_bytes);
		break;
	case CLI_ROOM_RECORDS:
		fits = length_of(chunk, cli->room, &creation->length_bytes);
		break;
	}
	if (!fits) {
		cli_error(cli->store, "no store can be that long");
		return CLI_WRONG_CALL;
	}
	if (creation->length_bytes && creation->length_bytes / chunk < CHUNKS_MIN) {
		cli_error(cli->store,
			"%llu bytes are too few: a store has %u chunks at least, of %llu bytes",
			(unsigned long long)creation->length_bytes, CHUNKS_MIN,
			(unsigned long long)chunk);
		return CLI_WRONG_CALL;
	}
	return CLI_GOOD;
}

/* It holds what was in the volume: for nobody else to read. */
static int make_file(struct creation *creation)
{
	const char *path = creation->cli->store;
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	int status = CLI_GOOD;

	if (fd < 0) {
		cli_error(path, "cannot be made: %s", strerror(errno));
		return CLI_IO;
	}
	creation->made = true;
	if (ftruncate(fd, (off_t)creation->length_bytes) < 0) {
		cli_error(path, "cannot be made that long: %s", strerror(errno));
		status = CLI_IO;
	}
	close(fd);
	return status;
}

static int check_file(struct creation *creation)
{
	struct cli *cli = creation->cli;
	uint64_t bytes = cowsnap_device_size(creation->device);

	if (!creation->length_bytes || creation->length_bytes == bytes)
		return CLI_GOOD;
	cli_error(cli->store,
		"it is there and has %llu bytes, not %llu; without a size it is taken as it is",
		(unsigned long long)bytes, (unsigned long long)creation->length_bytes);
	return CLI_WRONG_CALL;
}

static int open_files(struct creation *creation)
{
	struct cli *cli = creation->cli;
	struct stat st;
	bool missing = stat(cli->store, &st) < 0 && errno == ENOENT;
	int status;

	if (!missing && cli_same_path(cli->store, cli->origin)) {
		cli_error(cli->store, "it is the origin");
		return CLI_WRONG_CALL;
	}
	if (missing && cli->room_kind == CLI_ROOM_NONE) {
		cli_error(cli->store, "it is not there: a new one needs --size or --records");
		return CLI_WRONG_CALL;
	}
	status = cli_device_open(cli, cli->origin, false, &creation->origin_device);
	if (!status)
		status = reckon_length(creation);
	if (!status && missing)
		status = make_file(creation);
	if (!status)
		status = cli_device_open(cli, cli->store, true, &creation->device);
	if (!status)
		status = check_file(creation);
	return status;
}

static int fail(struct creation *creation, int rc)
{
	struct cli *cli = creation->cli;

	if (rc == -EEXIST) {
		cli_error(cli->store, "a store, or something else, begins there; --overwrite gives "
				      "it up");
		return CLI_REFUSED;
	}
	return cli_error_of(cli, cli->store, "no snapshot was made", rc);
}

static int take(struct creation *creation)
{
	struct cli *cli = creation->cli;
	struct cowsnap_dm_options options = {
		.size = sizeof(options),
		.flags = cli->overwrite ? COWSNAP_DM_OVERWRITE : 0,
		.device = creation->device,
		.chunk_size_bytes = cli->chunk_size_bytes,
		.generation = cli->generation,
	};
	struct cowsnap_take_entry entry = {0};
	int rc = cowsnap_store_dm_create(cli->ctx, &options, &creation->store);

	if (!rc)
		rc = cowsnap_origin_open(cli->ctx, creation->origin_device, &creation->origin);
	entry.origin = creation->origin;
	entry.store = creation->store;
	if (!rc)
		rc = cowsnap_take(cli->ctx, NULL, &entry, 1);
	if (rc)
		return fail(creation, rc);
	if (cli_signals_came()) {
		cli_error(cli->store, "interrupted; the snapshot was dropped");
		rc = cowsnap_snapshot_drop(entry.snapshot);
	} else {
		rc = cowsnap_snapshot_deactivate(entry.snapshot);
	}
	cowsnap_snapshot_unref(entry.snapshot);
	if (rc)
		return fail(creation, rc);
	return cli_signals_came() ? CLI_IO : CLI_GOOD;
}

static int close_all(struct creation *creation)
{
	int rc = cowsnap_store_close(creation->store);
	int status = CLI_GOOD;

	if (rc)
		status = fail(creation, rc);
	cowsnap_origin_close(creation->origin);
	cowsnap_device_close(creation->device);
	cowsnap_device_close(creation->origin_device);
	return status;
}

/* Read again, as whoever goes on with it will. */
static int report(struct cli *cli)
{
	struct cli_look look = {0};
	int status = cli_look(cli, &look);
	char length[CLI_SIZE_TEXT], chunk[CLI_SIZE_TEXT];
	json_t *document;

	if (status)
		return status;
	if (!cli->json) {
		cli_out("%s: %s, room for %llu record%s, chunk size %s\n", cli->store,
			cli_size_text(look.report.device_bytes, true, length),
			(unsigned long long)look.report.record_limit,
			look.report.record_limit == 1 ? "" : "s",
			cli_size_text(look.report.chunk_size_bytes, false, chunk));
		return CLI_GOOD;
	}
	document = cli_report_json(&look.report, status);
	json_object_set_new(document, "path", cli_json_text(cli->store));
	json_object_set_new(document, "origin", cli_json_text(cli->origin));
	cli_json_out(document);
	return CLI_GOOD;
}

int cli_create(struct cli *cli)
{
	struct creation creation = {
		.cli = cli,
		.chunk_size_bytes =
			cli->chunk_size_bytes ? cli->chunk_size_bytes : CHUNK_SIZE_DEFAULT,
	};
	int status, closed;

	cli_signals_catch();
	status = open_files(&creation);
	cli->log[0] = '\0';
	if (!status)
		status = take(&creation);
	closed = close_all(&creation);
	if (!status)
		status = closed;
	if (!status && creation.made)
		status = cli_sync_directory_of(cli->store);
	if (!status)
		status = report(cli);
	if (status && creation.made)
		unlink(cli->store);
	return status;
}
