/* SPDX-License-Identifier: MIT
 *
 * To be preloaded into nbdkit: a disk that fails. While the file that COWSNAP_FAIL names exists,
 * fdatasync() gives EIO.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

int fdatasync(int fd)
{
	const char *path = getenv("COWSNAP_FAIL");

	if (path != NULL && access(path, F_OK) == 0) {
		errno = EIO;
		return -1;
	}
	return (int)syscall(SYS_fdatasync, fd);
}
