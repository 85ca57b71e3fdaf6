/* SPDX-License-Identifier: MIT
 *
 * To be preloaded into nbdkit: a hold point in lseek(SEEK_DATA). While the file that COWSNAP_HOLD
 * names exists, a call makes the file COWSNAP_HOLD.held and waits.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void hold_here(const char *path)
{
	const struct timespec pause = {.tv_nsec = 1000000};
	char held[4096];

	snprintf(held, sizeof(held), "%s.held", path);
	close(open(held, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
	while (access(path, F_OK) == 0)
		nanosleep(&pause, NULL);
}

off_t lseek(int fd, off_t offset, int whence)
{
	const char *path = getenv("COWSNAP_HOLD");

	if (whence == SEEK_DATA && path != NULL && access(path, F_OK) == 0)
		hold_here(path);
	return syscall(SYS_lseek, fd, offset, whence);
}
