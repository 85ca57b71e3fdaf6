/* SPDX-License-Identifier: MIT
 *
 * A file that appears when it is whole. It is written beside its place under another name, made
 * durable and then given its own, so that nobody takes half of it for all of it.
 */
#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fail(const char *path, const char *what)
{
	cli_error(path, "%s: %s", what, strerror(errno));
	return CLI_IO;
}

int cli_image_begin(struct cli_image *image, const char *path, mode_t mode, uint64_t size_bytes)
{
	static const char ending[] = ".part-XXXXXX";
	mode_t mask = umask(0);
	size_t length = strlen(path);

	umask(mask);
	*image = (struct cli_image){.path = path, .fd = -1};
	image->temporary = malloc(length + sizeof(ending));
	if (!image->temporary)
		return fail(path, "cannot be made");
	memcpy(image->temporary, path, length);
	memcpy(image->temporary + length, ending, sizeof(ending));
	image->fd = mkostemp(image->temporary, O_CLOEXEC);
	if (image->fd < 0) {
		int status = fail(path, "cannot be made");

		free(image->temporary);
		image->temporary = NULL;
		return status;
	}
	if (fchmod(image->fd, mode & ~mask) < 0 || ftruncate(image->fd, (off_t)size_bytes) < 0)
		return fail(path, "cannot be made that long");
	return CLI_GOOD;
}

static bool is_zero(const uint8_t *data, size_t length)
{
	/* Each byte is the same as the one before it, and the first is zero. */
	return !data[0] && (length == 1 || !memcmp(data, data + 1, length - 1));
}

static int write_all(struct cli_image *image, const uint8_t *data, uint64_t offset, uint64_t length)
{
	while (length) {
		ssize_t n = pwrite(image->fd, data, length, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			errno = n ? errno : EIO;
			return fail(image->path, "cannot be written");
		}
		data += n;
		offset += (uint64_t)n;
		length -= (uint64_t)n;
		image->written_bytes += (uint64_t)n;
	}
	return CLI_GOOD;
}

/* Up to the next multiple of a block in the file. */
static uint64_t block_at(uint64_t offset, uint64_t length)
{
	uint64_t block = CLI_IMAGE_BLOCK - offset % CLI_IMAGE_BLOCK;

	return block < length ? block : length;
}

int cli_image_write(struct cli_image *image, const uint8_t *data, uint64_t offset, uint64_t length)
{
	uint64_t done = 0, pending = 0; /* data[done - pending .. done) is to be written */
	int status = CLI_GOOD;

	while (done < length && !status) {
		uint64_t block = block_at(offset + done, length - done);

		if (!is_zero(data + done, block)) {
			pending += block;
		} else if (pending) {
			status = write_all(
				image, data + done - pending, offset + done - pending, pending);
			pending = 0;
		}
		done += block;
	}
	if (pending && !status)
		status = write_all(image, data + done - pending, offset + done - pending, pending);
	return status;
}

int cli_sync_directory_of(const char *path)
{
	char *copy = strdup(path);
	int fd = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	int status = CLI_GOOD;

	/* Some file systems cannot; they have no need to. */
	if (fd < 0 || (fsync(fd) < 0 && errno != EINVAL && errno != EROFS))
		status = fail(path, "its directory cannot be flushed");
	if (fd >= 0)
		close(fd);
	free(copy);
	return status;
}

static int give_name(const struct cli_image *image, bool replace)
{
	if (replace)
		return rename(image->temporary, image->path);
	if (renameat2(AT_FDCWD, image->temporary, AT_FDCWD, image->path, RENAME_NOREPLACE) == 0)
		return 0;
	if (errno != EINVAL && errno != ENOSYS)
		return -1;
	if (link(image->temporary, image->path) < 0)
		return -1;
	return unlink(image->temporary);
}

int cli_image_finish(struct cli_image *image, bool replace)
{
	int fd = image->fd;

	if (fsync(fd) < 0)
		return fail(image->path, "cannot be flushed");
	image->fd = -1;
	if (close(fd) < 0)
		return fail(image->path, "cannot be closed");
	if (give_name(image, replace) < 0)
		return fail(image->path, "cannot be given its name");
	free(image->temporary);
	image->temporary = NULL;
	return cli_sync_directory_of(image->path);
}

void cli_image_end(struct cli_image *image)
{
	if (image->fd >= 0)
		close(image->fd);
	if (image->temporary)
		unlink(image->temporary);
	free(image->temporary);
	image->temporary = NULL;
}
