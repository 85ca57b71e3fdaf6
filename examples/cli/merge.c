/* SPDX-License-Identifier: MIT
 *
 * cowsnap merge: rolls a volume back to its snapshot, which is used up by that. Newest records
 * first: each run is copied to the volume, the volume is flushed, and only then is the run gone
 * from the store. So it can be stopped, or killed, anywhere, and goes on when it is started again.
 * Until it has ended the volume alone is neither the one image nor the other.
 */
#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define STEP_BYTES UINT64_C(4194304) /* between two looks for signals */

struct job {
	struct cli *cli;
	struct cli_look look;
	uint64_t chunks;        /* that records stand for */
	uint64_t end_chunk;     /* behind the last of these in the volume */
	uint64_t records_bytes; /* of the volume, all told */
	int origin_fd;          /* keeps others away */
	int hold_fd;
	struct cowsnap_device *origin_device, *device;
	struct cowsnap_origin *origin;
	struct cowsnap_store *store;
	struct cowsnap_snapshot *snapshot;
	struct cli_progress progress;
};

static void count(void *user, uint64_t number, const struct cowsnap_run *run)
{
	struct job *job = user;

	(void)number;
	job->chunks += run->count;
	if (run->first + run->count > job->end_chunk)
		job->end_chunk = run->first + run->count;
}

/* The last chunk of the volume may be cut off by its end. */
static uint64_t bytes_of_records(const struct job *job)
{
	uint64_t chunk = job->look.report.chunk_size_bytes, size = job->look.origin_bytes;
	uint64_t end = job->end_chunk * chunk;

	return job->chunks * chunk - (end > size ? end - size : 0);
}

/* ---- Files ---------------------------------------------------------------------------------- */

/* Nobody else may have the volume: it is written to. */
static int hold_origin(struct job *job)
{
	const char *path = job->cli->origin;
	struct stat st;
	int status = cli_file_open(path, O_RDWR, &job->origin_fd, &st);

	if (!status && S_ISREG(st.st_mode))
		status = cli_file_lock(path, job->origin_fd, F_WRLCK);
	return status ? status : cli_device_hold(path, &st, &job->hold_fd);
}

static int open_store(struct job *job)
{
	struct cli *cli = job->cli;
	struct cowsnap_dm_options options = {.size = sizeof(options)};
	struct cowsnap_take_entry entry = {0};
	int status = cli_device_open(cli, cli->origin, true, &job->origin_device);
	int rc;

	if (!status)
		status = cli_device_open(cli, cli->store, true, &job->device);
	if (status)
		return status;
	rc = cowsnap_origin_open(cli->ctx, job->origin_device, &job->origin);
	if (rc)
		return cli_error_of(cli, cli->origin, "cannot be opened", rc);
	options.device = job->device;
	entry.origin = job->origin;
	rc = cowsnap_store_dm_open(cli->ctx, &options, &entry, &job->store);
	job->snapshot = entry.snapshot;
	return rc ? cli_error_of(cli, cli->store, "cannot be opened", rc) : CLI_GOOD;
}

/* What is not merged stays in the store. */
static void close_all(struct job *job)
{
	if (job->snapshot)
		cowsnap_snapshot_deactivate(job->snapshot);
	cowsnap_snapshot_unref(job->snapshot);
	cowsnap_store_close(job->store);
	cowsnap_origin_close(job->origin);
	cowsnap_device_close(job->device);
	cowsnap_device_close(job->origin_device);
	if (job->origin_fd >= 0)
		close(job->origin_fd);
	if (job->hold_fd >= 0)
		close(job->hold_fd);
}

/* ---- Merging -------------------------------------------------------------------------------- */

static int stopped(struct job *job, int rc)
{
	cli_progress_end(&job->progress, false);
	if (rc)
		return cli_error_of(
			job->cli, job->cli->store, "the merge has stopped; start it again", rc);
	cli_error(job->cli->store, "interrupted; start it again, the volume is merged in part");
	return CLI_IO;
}

static int merge(struct job *job)
{
	struct cowsnap_merge_info info = {0};
	int rc = cowsnap_merge_begin(job->snapshot);

	if (rc)
		return cli_error_of(job->cli, job->cli->store, "cannot be merged", rc);
	cowsnap_merge_info(job->snapshot, &info, sizeof(info));
	cli_progress_begin(&job->progress, job->cli->progress, "merge", info.total_bytes);
	do {
		if (cli_signals_came())
			return stopped(job, 0);
		job->cli->log[0] = '\0';
		rc = cowsnap_merge_run(job->snapshot, STEP_BYTES);
		if (rc < 0)
			return stopped(job, rc);
		if (cowsnap_merge_info(job->snapshot, &info, sizeof(info)) == 0)
			cli_progress_step(&job->progress, info.moved_bytes);
	} while (rc > 0);
	cli_progress_end(&job->progress, true);
	return CLI_GOOD;
}

static void report(const struct job *job)
{
	const struct cli *cli = job->cli;
	char size[CLI_SIZE_TEXT];
	json_t *document;

	if (!cli->json) {
		cli_out("%s: %s %s from %s%s\n", cli->origin,
			cli->dry_run ? "would get back" : "got back",
			cli_size_text(job->records_bytes, true, size), cli->store,
			cli->dry_run ? "" : ", which holds no snapshot any more");
		return;
	}
	document = cli_report_json(&job->look.report, CLI_GOOD);
	json_object_set_new(document, "path", cli_json_text(cli->store));
	json_object_set_new(document, "origin", cli_json_text(cli->origin));
	json_object_set_new(document, "dry_run", json_boolean(cli->dry_run));
	json_object_set_new(
		document, "merged_bytes", cli_json_number(cli->dry_run ? 0 : job->records_bytes));
	cli_json_out(document);
}

int cli_merge(struct cli *cli)
{
	struct job job = {.cli = cli, .origin_fd = -1, .hold_fd = -1};
	int status;

	cli_signals_catch();
	job.look.visit = count;
	job.look.visit_user = &job;
	status = cli_look(cli, &job.look);
	job.records_bytes = bytes_of_records(&job);
	if (!status && !cli->dry_run) {
		status = hold_origin(&job);
		if (!status)
			status = open_store(&job);
		if (!status)
			status = merge(&job);
	}
	close_all(&job);
	if (!status)
		report(&job);
	return status;
}
