/* SPDX-License-Identifier: MIT */
#include "sidecar.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int sidecar_read(const char *path, char *line, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t length;
	int error = 0;

	if (fd < 0)
		return -errno;
	/* A short file comes in one piece. */
	length = read(fd, line, size);
	if (length < 0)
		error = -errno;
	else if ((size_t)length == size)
		error = -EFBIG;
	close(fd);
	if (error != 0)
		return error;
	if (length > 0 && line[length - 1] == '\n')
		length--;
	line[length] = '\0';
	return 0;
}

/* A rename or a removal is durable once its directory is. */
static int sync_directory(const char *path)
{
	const char *slash = strrchr(path, '/');
	char directory[PATH_MAX];
	int error = 0;
	int fd;

	snprintf(directory, sizeof(directory), "%.*s", (int)(slash - path + 1), path);
	fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (fsync(fd) != 0)
		error = -errno;
	close(fd);
	return error;
}

static int write_file(const char *path, const char *line)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	int length = (int)strlen(line);
	int error = 0;

	if (fd < 0)
		return -errno;
	errno = ENOSPC; /* what a short write means */
	if (dprintf(fd, "%s\n", line) != length + 1 || fsync(fd) != 0)
		error = -errno;
	if (close(fd) != 0 && error == 0)
		error = -errno;
	return error;
}

int sidecar_write(const char *path, const char *line)
{
	char temporary[PATH_MAX];
	int length = snprintf(temporary, sizeof(temporary), "%s.new", path);
	int error;

	if (length < 0 || (size_t)length >= sizeof(temporary))
		return -ENAMETOOLONG;
	error = write_file(temporary, line);
	if (error == 0 && rename(temporary, path) != 0)
		error = -errno;
	if (error != 0) {
		unlink(temporary);
		return error;
	}
	return sync_directory(path);
}

int sidecar_remove(const char *path)
{
	if (unlink(path) != 0)
		return errno == ENOENT ? 0 : -errno;
	return sync_directory(path);
}
