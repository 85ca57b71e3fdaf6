/* SPDX-License-Identifier: MIT
 *
 * Files and block devices as devices: what the one with pread and pwrite and the one with io_uring
 * share.
 */
#ifndef CS_DEV_FILE_H
#define CS_DEV_FILE_H

#include <sys/stat.h>

#include "dev.h"

/* What is not aligned is read and written in pieces of so many bytes. */
#define CS_FILE_BOUNCE_BYTES UINT64_C(262144)
#define CS_FILE_BOUNCE_ALIGN 65536u /* not below any block size a device may have */

struct cs_file {
	int fd;
	_Atomic int lost; /* 0, or an error that the next flush has to tell */
	int lock_fd;      /* of a block device that is locked; else -1 */
	bool direct;
	bool block_device;
	uint32_t block_size;         /* of offsets and lengths; 1 if not direct */
	uint32_t memory_align;       /* of buffer addresses; 1 if not direct */
	uint32_t sector_size;        /* of discards; 1 for a regular file */
	_Atomic uint64_t size_bytes; /* the longest that it was known to be */
	struct stat stat;
	bool created; /* by this open: goes again if the open fails later on */
	const struct cs_base *base;
	size_t path_bytes;
	char path[];
};

/* A file device whose table has this submit; its user is the struct cs_file. NULL: it has none.
 * Errors as cs_dev_file(). */
int cs_file_open(const struct cs_base *base, const char *path,
	const struct cowsnap_file_options *options,
	void (*submit)(void *user, struct cowsnap_io *io), struct cowsnap_device **device);

/* Does what a request asks for, and blocks. */
int cs_file_call(struct cs_file *file, const struct cowsnap_io *io);
/* What a read or a write that moved nothing means. Logs. */
int cs_file_ended(const struct cs_file *file);
/* What a sync means that the kernel says is done: an older write may have failed, or the file may
 * have been cut. */
int cs_file_flushed(struct cs_file *file);
/* The same for a write through the cache, which has failed with @rc or has not. */
int cs_file_written_through(struct cs_file *file, int rc);

#endif
