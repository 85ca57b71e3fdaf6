/* SPDX-License-Identifier: MIT
 *
 * cowsnap export: what the snapshot shows, as a file. The image is made in windows: each is put
 * together from the origin and the store and then written, zeroes left out.
 */
#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WINDOW_BYTES UINT64_C(1048576)

/* The origin, with its holes. */
struct source {
	const char *path;
	int fd;
	uint64_t size_bytes;
	bool no_holes;                /* it cannot tell */
	uint64_t data_from, data_end; /* the first data at or behind the last place looked at */
};

struct job {
	struct cli *cli;
	struct source origin;
	int store_fd;
	int hold_fd; /* of a block device: keeps others away */
	struct stat store_stat;
	uint64_t chunk_size_bytes;
	struct cli_runs runs;
	struct cowsnap_run run; /* the first that ends behind where we are */
	uint64_t run_from, run_end;
	struct cli_image image;
	struct cli_progress progress;
	uint8_t *window;
	uint64_t saved_bytes; /* of the image, from the store */
};

static int read_all(const char *path, int fd, uint8_t *data, uint64_t offset, uint64_t length)
{
	while (length) {
		ssize_t n = pread(fd, data, length, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			cli_error(path, "byte %llu cannot be read: %s", (unsigned long long)offset,
				n ? strerror(errno) : "the file has become shorter");
			return CLI_IO;
		}
		data += n;
		offset += (uint64_t)n;
		length -= (uint64_t)n;
	}
	return CLI_GOOD;
}

/* ---- Origin --------------------------------------------------------------------------------- */

static void look_for_data(struct source *source, uint64_t offset)
{
	off_t from, end;

	if (source->no_holes || offset < source->data_end)
		return;
	from = lseek(source->fd, (off_t)offset, SEEK_DATA);
	if (from < 0 && errno == ENXIO) {
		source->data_from = source->size_bytes;
		source->data_end = UINT64_MAX;
		return;
	}
	end = from < 0 ? -1 : lseek(source->fd, from, SEEK_HOLE);
	source->no_holes = end < 0;
	source->data_from = source->no_holes ? 0 : (uint64_t)from;
	source->data_end = source->no_holes ? UINT64_MAX : (uint64_t)end;
}

static int read_origin(struct source *source, uint8_t *data, uint64_t offset, uint64_t length)
{
	while (length) {
		uint64_t end;
		int status = CLI_GOOD;

		look_for_data(source, offset);
		end = offset < source->data_from ? source->data_from : source->data_end;
		if (end - offset > length)
			end = offset + length;
		if (offset < source->data_from)
			memset(data, 0, end - offset);
		else
			status = read_all(source->path, source->fd, data, offset, end - offset);
		if (status)
			return status;
		data += end - offset;
		length -= end - offset;
		offset = end;
	}
	return CLI_GOOD;
}

/* What is cut off looks like a hole, so it is asked for at the end. */
static int check_length(const struct source *source)
{
	struct stat st;

	if (fstat(source->fd, &st) == 0 &&
		(S_ISBLK(st.st_mode) || (uint64_t)st.st_size >= source->size_bytes))
		return CLI_GOOD;
	cli_error(source->path, "the file has become shorter");
	return CLI_IO;
}

static int open_origin(struct cli *cli, struct source *source)
{
	struct cowsnap_device *device;
	struct stat st;
	int status = cli_device_open(cli, cli->origin, false, &device);

	if (status)
		return status;
	*source = (struct source){.path = cli->origin, .fd = -1};
	source->size_bytes = cowsnap_device_size(device);
	cowsnap_device_close(device);
	status = cli_file_open(cli->origin, O_RDONLY, &source->fd, &st);
	if (!status)
		posix_fadvise(source->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
	return status;
}

/* ---- Image ---------------------------------------------------------------------------------- */

/* The run that offset is in or before. */
static void find_run(struct job *job, uint64_t offset)
{
	while (job->run_end <= offset) {
		if (!cli_runs_next(&job->runs, &job->run)) {
			job->run_from = job->run_end = UINT64_MAX;
			return;
		}
		job->run_from = job->run.first * job->chunk_size_bytes;
		job->run_end = job->run_from + job->run.count * job->chunk_size_bytes;
	}
}

static int fill_window(struct job *job, uint64_t offset, uint64_t length)
{
	uint8_t *data = job->window;
	int status = CLI_GOOD;

	while (length && !status) {
		uint64_t end, piece;

		find_run(job, offset);
		end = offset < job->run_from ? job->run_from : job->run_end;
		piece = end - offset < length ? end - offset : length;
		if (offset < job->run_from) {
			status = read_origin(&job->origin, data, offset, piece);
		} else {
			status = read_all(job->cli->store, job->store_fd, data,
				job->run.location * job->chunk_size_bytes +
					(offset - job->run_from),
				piece);
			job->saved_bytes += piece;
		}
		data += piece;
		offset += piece;
		length -= piece;
	}
	return status;
}

/* Where there is something next. The image is one hole at first, as long as the origin. */
static uint64_t skip_hole(struct job *job, uint64_t offset)
{
	uint64_t next;

	find_run(job, offset);
	look_for_data(&job->origin, offset);
	next = job->run_from < job->origin.data_from ? job->run_from : job->origin.data_from;
	next -= next % CLI_IMAGE_BLOCK;
	if (next > job->origin.size_bytes)
		next = job->origin.size_bytes;
	return next > offset ? next : offset;
}

static int copy(struct job *job)
{
	uint64_t size_bytes = job->origin.size_bytes;
	int status = CLI_GOOD;

	for (uint64_t offset = 0; !status;) {
		uint64_t length;

		if (cli_signals_came()) {
			cli_progress_end(&job->progress, false);
			cli_error(job->image.path, "interrupted; it was not made");
			return CLI_IO;
		}
		offset = skip_hole(job, offset);
		cli_progress_step(&job->progress, offset);
		if (offset >= size_bytes)
			return check_length(&job->origin);
		length = WINDOW_BYTES - offset % WINDOW_BYTES;
		if (length > size_bytes - offset)
			length = size_bytes - offset;
		status = fill_window(job, offset, length);
		if (!status)
			status = cli_image_write(&job->image, job->window, offset, length);
		offset += length;
	}
	return status;
}

static int make_image(struct job *job)
{
	struct stat st;
	mode_t mode = 0600;
	int status;

	/* What the origin does not show to others its image does not either. */
	if (fstat(job->origin.fd, &st) == 0 && S_ISREG(st.st_mode))
		mode = st.st_mode & 0666;
	job->window = malloc(WINDOW_BYTES);
	if (!job->window || cli_runs_init(&job->runs, job->runs.map)) {
		cli_error(job->cli->image, "%s", strerror(ENOMEM));
		return CLI_IO;
	}
	status = cli_image_begin(&job->image, job->cli->image, mode, job->origin.size_bytes);
	if (!status) {
		cli_progress_begin(
			&job->progress, job->cli->progress, "export", job->origin.size_bytes);
		status = copy(job);
	}
	cli_progress_end(&job->progress, !status);
	if (!status)
		status = cli_image_finish(&job->image, job->cli->force);
	cli_image_end(&job->image);
	return status;
}

static void report(const struct job *job)
{
	char size[CLI_SIZE_TEXT], saved[CLI_SIZE_TEXT], written[CLI_SIZE_TEXT];

	if (job->cli->json) {
		cli_json_out(json_pack("{s:o,s:o,s:o,s:o,s:o,s:o}", "path",
			cli_json_text(job->cli->store), "origin", cli_json_text(job->cli->origin),
			"image", cli_json_text(job->cli->image), "size_bytes",
			cli_json_number(job->origin.size_bytes), "saved_bytes",
			cli_json_number(job->saved_bytes), "written_bytes",
			cli_json_number(job->image.written_bytes)));
		return;
	}
	cli_out("%s: %s, of these from the store %s; written %s\n", job->cli->image,
		cli_size_text(job->origin.size_bytes, true, size),
		cli_size_text(job->saved_bytes, false, saved),
		cli_size_text(job->image.written_bytes, false, written));
}

/* ---- Command -------------------------------------------------------------------------------- */

static int check_paths(const struct cli *cli)
{
	struct stat st;

	if (cli_same_path(cli->image, cli->origin) || cli_same_path(cli->image, cli->store)) {
		cli_error(cli->image, "it is the %s",
			cli_same_path(cli->image, cli->origin) ? "origin" : "store");
		return CLI_WRONG_CALL;
	}
	if (lstat(cli->image, &st) < 0)
		return CLI_GOOD;
	if (!cli->force) {
		cli_error(cli->image, "it exists; --force replaces it");
		return CLI_IO;
	}
	if (!S_ISREG(st.st_mode)) {
		cli_error(cli->image, "it is not a regular file, so it is not replaced");
		return CLI_IO;
	}
	return CLI_GOOD;
}

/* Held to the end of the copy: nobody opens the snapshot and goes on with it. */
static int lock_store(struct job *job)
{
	int status = cli_file_open(job->cli->store, O_RDONLY, &job->store_fd, &job->store_stat);

	if (!status)
		status = cli_file_lock(job->cli->store, job->store_fd, F_RDLCK);
	return status;
}

static void close_fds(const struct job *job)
{
	const int fds[] = {job->origin.fd, job->store_fd, job->hold_fd};

	for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
		if (fds[i] >= 0)
			close(fds[i]);
}

int cli_export(struct cli *cli)
{
	struct job job = {
		.cli = cli,
		.store_fd = -1,
		.hold_fd = -1,
		.origin = {.fd = -1},
		.image = {.fd = -1},
	};
	struct cli_look look = {0};
	int status = check_paths(cli);

	cli_signals_catch();
	if (!status && cowsnap_map_create(cli->allocator, &look.map)) {
		cli_error(cli->store, "%s", strerror(ENOMEM));
		status = CLI_IO;
	}
	if (!status)
		status = lock_store(&job);
	if (!status)
		status = cli_look(cli, &look);
	if (!status)
		status = cli_device_hold(cli->store, &job.store_stat, &job.hold_fd);
	job.chunk_size_bytes = look.report.chunk_size_bytes;
	job.runs.map = look.map;
	if (!status)
		status = open_origin(cli, &job.origin);
	if (!status)
		status = make_image(&job);
	if (!status)
		report(&job);
	close_fds(&job);
	cli_runs_free(&job.runs);
	cowsnap_map_destroy(look.map);
	free(job.window);
	return status;
}
