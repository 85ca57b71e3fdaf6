/* SPDX-License-Identifier: MIT
 *
 * A file or block device as a device, through pread and pwrite.
 *
 * With O_DIRECT the kernel wants offsets, lengths and buffer addresses that are aligned. Reads that
 * are not go through a bounce buffer, writes only where just the address is wrong: an unaligned
 * write would have to read what is beside it, and two of these would lose each other's bytes.
 *
 * Identity: a file is its device and inode number, a block device its device number. A loop device
 * is not recognised as the file behind it, nor a partition as part of its disk.
 *
 * Failure: an error of the kernel is passed on; an end of file inside the device is -EIO.
 */
#include "dev_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "alloc.h"

#define FLAGS_KNOWN (COWSNAP_FILE_DIRECT | COWSNAP_FILE_READONLY | COWSNAP_FILE_CREATE)
#define PROBE_BYTES 4096u

static void log_errno(const struct cs_file *f, const char *what, int error)
{
	char text[64];

	cs_log(f->base, COWSNAP_LOG_ERROR, "file '%s': %s: %s", f->path, what,
		strerror_r(error, text, sizeof(text)));
}

static int log_refusal(const struct cs_file *f, int rc, const char *why)
{
	cs_log(f->base, COWSNAP_LOG_ERROR, "file '%s': %s", f->path, why);
	return rc;
}

static int open_retry(const char *path, int flags, mode_t mode)
{
	int fd;

	do {
		fd = open(path, flags, mode);
	} while (fd < 0 && errno == EINTR);
	return fd < 0 ? -errno : fd;
}

/* ---- Input and output ----------------------------------------------------------------------- */

int cs_file_ended(const struct cs_file *f)
{
	return log_refusal(f, -EIO, "it ends before the device does: truncated?");
}

/* Reads up to @length bytes and returns 0 once it has @need of them. */
static int read_some(
	const struct cs_file *f, uint8_t *buffer, uint64_t offset, uint64_t length, uint64_t need)
{
	uint64_t have = 0;

	while (have < need) {
		ssize_t n = pread(f->fd, buffer + have, length - have, (off_t)(offset + have));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return cs_file_ended(f);
		have += (uint64_t)n;
	}
	return 0;
}

static int write_all(
	const struct cs_file *f, const uint8_t *buffer, uint64_t offset, uint64_t length)
{
	while (length) {
		ssize_t n = pwrite(f->fd, buffer, length, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -EIO;
		buffer += n;
		offset += (uint64_t)n;
		length -= (uint64_t)n;
	}
	return 0;
}

static int read_bounced(const struct cs_file *f, uint8_t *buffer, uint64_t offset, uint64_t length)
{
	uint64_t mask = f->block_size - 1;
	uint64_t bytes = ((offset & mask) + length + mask) & ~mask;
	uint8_t *bounce;
	int rc = 0;

	if (bytes > CS_FILE_BOUNCE_BYTES)
		bytes = CS_FILE_BOUNCE_BYTES;
	bounce = cs_alloc_aligned(f->base->alloc, bytes, CS_FILE_BOUNCE_ALIGN);
	if (!bounce)
		return -ENOMEM;
	while (length) {
		uint64_t skip = offset & mask;
		uint64_t piece = length < bytes - skip ? length : bytes - skip;
		uint64_t ask = (skip + piece + mask) & ~mask;

		/* The last block of a file may be short: what is needed is there all the same. */
		rc = read_some(f, bounce, offset - skip, ask, skip + piece);
		if (rc)
			break;
		memcpy(buffer, bounce + skip, piece);
		buffer += piece;
		offset += piece;
		length -= piece;
	}
	cs_free(f->base->alloc, bounce, bytes);
	return rc;
}

static int write_bounced(
	const struct cs_file *f, const uint8_t *buffer, uint64_t offset, uint64_t length)
{
	uint64_t bytes = length < CS_FILE_BOUNCE_BYTES ? length : CS_FILE_BOUNCE_BYTES;
	uint8_t *bounce = cs_alloc_aligned(f->base->alloc, bytes, CS_FILE_BOUNCE_ALIGN);
	int rc = 0;

	if (!bounce)
		return -ENOMEM;
	while (length && !rc) {
		uint64_t piece = length < bytes ? length : bytes;

		memcpy(bounce, buffer, piece);
		rc = write_all(f, bounce, offset, piece);
		buffer += piece;
		offset += piece;
		length -= piece;
	}
	cs_free(f->base->alloc, bounce, bytes);
	return rc;
}

static int file_read(void *user, void *buffer, uint64_t offset, uint64_t length)
{
	const struct cs_file *f = user;

	if (((offset | length) & (f->block_size - 1)) ||
		((uintptr_t)buffer & (f->memory_align - 1)))
		return read_bounced(f, buffer, offset, length);
	return read_some(f, buffer, offset, length, length);
}

static int file_write(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	const struct cs_file *f = user;

	if ((uintptr_t)buffer & (f->memory_align - 1))
		return write_bounced(f, buffer, offset, length);
	return write_all(f, buffer, offset, length);
}

static int file_allocate(const struct cs_file *f, int mode, uint64_t offset, uint64_t length)
{
	int rc;

	do {
		rc = fallocate(f->fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length);
	} while (rc < 0 && errno == EINTR);
	return rc < 0 ? -errno : 0;
}

/* -EOPNOTSUPP: the caller writes zeroes. A block device refuses parts of sectors in its own way. */
static int file_zero(void *user, uint64_t offset, uint64_t length)
{
	const struct cs_file *f = user;
	int rc;

	if ((offset | length) & (f->sector_size - 1))
		return -EOPNOTSUPP;
	rc = file_allocate(f, FALLOC_FL_PUNCH_HOLE, offset, length);
	if (rc == -EOPNOTSUPP)
		rc = file_allocate(f, FALLOC_FL_ZERO_RANGE, offset, length);
	return rc;
}

static int file_discard(void *user, uint64_t offset, uint64_t length)
{
	const struct cs_file *f = user;
	uint64_t mask = f->sector_size - 1;
	uint64_t range[2] = {(offset + mask) & ~mask, (offset + length) & ~mask};
	int rc;

	if (!f->block_device) {
		rc = file_allocate(f, FALLOC_FL_PUNCH_HOLE, offset, length);
	} else if (range[0] < range[1]) {
		range[1] -= range[0];
		rc = ioctl(f->fd, BLKDISCARD, range) < 0 ? -errno : 0;
	} else {
		rc = 0;
	}
	/* A discard is advice: nothing is lost where nobody takes it. */
	return rc == -EOPNOTSUPP ? 0 : rc;
}

/* How long is it? */
static int measure(const struct cs_file *f, uint64_t *size_bytes)
{
	struct stat now;

	if (f->block_device)
		return ioctl(f->fd, BLKGETSIZE64, size_bytes) < 0 ? -errno : 0;
	if (fstat(f->fd, &now) < 0)
		return -errno;
	*size_bytes = (uint64_t)now.st_size;
	return 0;
}

static uint64_t known_bytes(const struct cs_file *f)
{
	return atomic_load_explicit(&f->size_bytes, memory_order_relaxed);
}

static int file_length(void *user, uint64_t *size_bytes)
{
	struct cs_file *f = user;
	int rc = measure(f, size_bytes);

	if (!rc && *size_bytes > known_bytes(f))
		atomic_store_explicit(&f->size_bytes, *size_bytes, memory_order_relaxed);
	return rc;
}

/* A write beyond the end would make a truncated file whole again, with zeroes where data was; this
 * is the moment at which somebody relies on it. */
static int check_whole(const struct cs_file *f)
{
	uint64_t now_bytes;
	int rc = measure(f, &now_bytes);

	if (rc || now_bytes >= known_bytes(f))
		return rc;
	return log_refusal(f, -EIO, "it is shorter than it was: truncated?");
}

int cs_file_flushed(struct cs_file *f)
{
	int rc = atomic_exchange_explicit(&f->lost, 0, memory_order_relaxed);

	return rc ? rc : check_whole(f);
}

static int file_flush(void *user)
{
	struct cs_file *f = user;
	int rc;

	do {
		rc = fdatasync(f->fd);
	} while (rc < 0 && errno == EINTR);
	return rc < 0 ? -errno : cs_file_flushed(f);
}

/* Past the page cache, the kernel makes this one write with FUA where the disk has it. (In the page
 * cache it would be a write and a flush, and a flush of the caller's covers more.) */
static int write_through(struct cs_file *f, const void *buffer, uint64_t offset, uint64_t length)
{
	struct iovec part = {(void *)buffer, length};
	ssize_t n;

	if (!((uintptr_t)buffer & (f->memory_align - 1))) {
		do {
			n = pwritev2(f->fd, &part, 1, (off_t)offset, RWF_DSYNC);
		} while (n < 0 && errno == EINTR);
		if (n == (ssize_t)length)
			return 0;
		if (n < 0 && errno != EOPNOTSUPP)
			return -errno;
	}
	/* Part of it, or an old kernel, or a buffer that it does not take. */
	n = file_write(f, buffer, offset, length);
	return n ? (int)n : file_flush(f);
}

/* The kernel may have flushed for it, and tells a failure of that once: it counts for what others
 * have written too, so the next flush tells it again. */
int cs_file_written_through(struct cs_file *f, int rc)
{
	if (!rc)
		rc = check_whole(f);
	if (rc)
		atomic_store_explicit(&f->lost, rc, memory_order_relaxed);
	return rc;
}

static int file_write_durable(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	struct cs_file *f = user;

	return cs_file_written_through(f, write_through(f, buffer, offset, length));
}

int cs_file_call(struct cs_file *f, const struct cowsnap_io *io)
{
	switch (io->kind) {
	case COWSNAP_IO_READ:
		return file_read(f, io->buffer, io->offset, io->length);
	case COWSNAP_IO_WRITE:
		return file_write(f, io->buffer, io->offset, io->length);
	case COWSNAP_IO_ZERO:
		return file_zero(f, io->offset, io->length);
	case COWSNAP_IO_DISCARD:
		return file_discard(f, io->offset, io->length);
	case COWSNAP_IO_FLUSH:
		return file_flush(f);
	case COWSNAP_IO_WRITE_DURABLE:
		return file_write_durable(f, io->buffer, io->offset, io->length);
	}
	return -EINVAL;
}

/* A file: a lock of the open file description, which no other open of it in this process shares
 * or gives up. A block device: an exclusive open, which also the kernel's own users respect. */
static int file_lock(void *user, enum cowsnap_lock lock)
{
	static const short kinds[] = {F_UNLCK, F_RDLCK, F_WRLCK};
	struct cs_file *f = user;
	struct flock range = {.l_type = kinds[lock], .l_whence = SEEK_SET};
	char path[32];

	if (!f->block_device) {
		if (fcntl(f->fd, F_OFD_SETLK, &range) == 0)
			return 0;
		if (errno == EAGAIN || errno == EACCES)
			return -EBUSY;
		/* Some file systems know no locks: not a reason to refuse a store. */
		log_errno(f, "lock", errno);
		return 0;
	}
	if (lock == COWSNAP_LOCK_NONE && f->lock_fd >= 0) {
		close(f->lock_fd);
		f->lock_fd = -1;
	}
	if (lock == COWSNAP_LOCK_NONE || f->lock_fd >= 0)
		return 0;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", f->fd);
	f->lock_fd = open_retry(path, O_RDONLY | O_EXCL | O_CLOEXEC, 0);
	return f->lock_fd < 0 ? f->lock_fd : 0;
}

static int file_identity(void *user, struct cowsnap_device_identity *identity)
{
	const struct cs_file *f = user;

	if (f->block_device)
		*identity = (struct cowsnap_device_identity){{S_IFBLK, f->stat.st_rdev}};
	else
		*identity =
			(struct cowsnap_device_identity){{S_IFREG, f->stat.st_dev, f->stat.st_ino}};
	return 0;
}

static void file_close(void *user)
{
	struct cs_file *f = user;

	if (f->lock_fd >= 0)
		close(f->lock_fd);
	if (f->fd >= 0)
		close(f->fd);
	cs_free(f->base->alloc, f, sizeof(*f) + f->path_bytes);
}

/* ---- Opening -------------------------------------------------------------------------------- */

static int open_new(struct cs_file *f, int flags, uint64_t length_bytes)
{
	int fd = open_retry(f->path, flags | O_CREAT | O_EXCL, 0600);
	int rc;

	if (fd < 0) {
		log_errno(f, "create", -fd);
		return fd;
	}
	f->fd = fd;
	f->created = true;
	if (ftruncate(fd, (off_t)length_bytes) < 0) {
		rc = -errno;
		log_errno(f, "set the length of the new file", -rc);
		return rc;
	}
	return 0;
}

static int open_path(struct cs_file *f, const struct cowsnap_file_options *options)
{
	int flags = O_CLOEXEC | O_NOCTTY;
	int fd;

	flags |= options->flags & COWSNAP_FILE_READONLY ? O_RDONLY : O_RDWR;
	if (options->flags & COWSNAP_FILE_DIRECT)
		flags |= O_DIRECT;
	/* Before the open, which would wait for the other end of a pipe. */
	if (stat(f->path, &f->stat) == 0 && !S_ISREG(f->stat.st_mode) && !S_ISBLK(f->stat.st_mode))
		return log_refusal(f, -EINVAL, "neither a regular file nor a block device");
	fd = open_retry(f->path, flags, 0);
	if (fd == -ENOENT && (options->flags & COWSNAP_FILE_CREATE)) {
		if (!options->length_bytes)
			return log_refusal(f, -EINVAL, "a new file needs length_bytes");
		return open_new(f, flags, options->length_bytes);
	}
	if (fd < 0) {
		log_errno(f, "open", -fd);
		return fd;
	}
	f->fd = fd;
	return 0;
}

static int look_at(struct cs_file *f)
{
	uint64_t size_bytes;
	int sector = 0, rc;

	if (fstat(f->fd, &f->stat) < 0) {
		rc = -errno;
		log_errno(f, "fstat", -rc);
		return rc;
	}
	f->block_device = S_ISBLK(f->stat.st_mode);
	if (!f->block_device && !S_ISREG(f->stat.st_mode))
		return log_refusal(f, -EINVAL, "neither a regular file nor a block device");
	rc = measure(f, &size_bytes);
	if (!rc && f->block_device && ioctl(f->fd, BLKSSZGET, &sector) < 0)
		rc = -errno;
	if (rc) {
		log_errno(f, "size of the file or block device", -rc);
		return rc;
	}
	atomic_init(&f->size_bytes, size_bytes);
	if (sector > 0)
		f->sector_size = (uint32_t)sector;
	if (!size_bytes)
		return log_refusal(f, -EINVAL, "it has no length");
	return 0;
}

/* Does the file take direct reads of 512 bytes? The second 512, where that would show. */
static bool takes_half_kib(const struct cs_file *f)
{
	uint8_t *buffer = cs_alloc_aligned(f->base->alloc, PROBE_BYTES, PROBE_BYTES);
	bool takes;

	if (!buffer)
		return false;
	takes = pread(f->fd, buffer, 512, known_bytes(f) >= 1024 ? 512 : 0) >= 0;
	cs_free(f->base->alloc, buffer, PROBE_BYTES);
	return takes;
}

static int find_alignment(struct cs_file *f)
{
#ifdef STATX_DIOALIGN
	struct statx x;

	if (statx(f->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &x) == 0 &&
		(x.stx_mask & STATX_DIOALIGN)) {
		if (!x.stx_dio_offset_align || !x.stx_dio_mem_align)
			return log_refusal(f, -EINVAL, "it does not take direct I/O");
		f->block_size = x.stx_dio_offset_align;
		f->memory_align = x.stx_dio_mem_align;
		return 0;
	}
#endif
	if (f->block_device)
		f->block_size = f->sector_size;
	else
		f->block_size = takes_half_kib(f) ? 512 : 4096;
	f->memory_align = f->block_size;
	return 0;
}

static int check_options(const struct cs_file *f, const struct cowsnap_file_options *options)
{
	bool create = options->flags & COWSNAP_FILE_CREATE;

	if (options->flags & ~FLAGS_KNOWN)
		return log_refusal(f, -EINVAL, "unknown flags");
	if (create && (options->flags & COWSNAP_FILE_READONLY))
		return log_refusal(f, -EINVAL, "to create and not to write exclude each other");
	if (!create && options->length_bytes)
		return log_refusal(f, -EINVAL, "length_bytes is for a file to create");
	return 0;
}

static int make_device(struct cs_file *f, bool readonly,
	void (*submit)(void *user, struct cowsnap_io *io), struct cowsnap_device **device)
{
	struct cowsnap_device_options options = {
		.size = sizeof(options),
		.size_bytes = known_bytes(f),
		.block_size = f->block_size,
		.name = f->path,
	};
	struct cowsnap_device_ops ops = {
		.size = sizeof(ops),
		.read = file_read,
		.write = file_write,
		.zero = file_zero,
		.discard = file_discard,
		.flush = file_flush,
		.identity = file_identity,
		.close = file_close,
		.write_durable = f->direct ? file_write_durable : NULL,
		.length = file_length,
		.lock = file_lock,
		.submit = submit,
	};

	if (readonly)
		ops.write = NULL, ops.zero = NULL, ops.discard = NULL, ops.flush = NULL;
	return cs_dev_create(f->base, &ops, &options, f, device);
}

int cs_file_open(const struct cs_base *base, const char *path,
	const struct cowsnap_file_options *user_options,
	void (*submit)(void *user, struct cowsnap_io *io), struct cowsnap_device **device)
{
	struct cowsnap_file_options options = {0};
	size_t path_bytes;
	struct cs_file *f;
	int rc = cs_options_copy(
		base, "file options", &options, sizeof(options), user_options, sizeof(options));

	if (rc)
		return rc;
	if (!path)
		return -EINVAL;
	path_bytes = strlen(path) + 1;
	f = cs_alloc_zeroed(base->alloc, sizeof(*f) + path_bytes);
	if (!f)
		return -ENOMEM;
	f->base = base;
	f->fd = f->lock_fd = -1;
	f->block_size = f->memory_align = f->sector_size = 1;
	f->path_bytes = path_bytes;
	memcpy(f->path, path, path_bytes);
	f->direct = options.flags & COWSNAP_FILE_DIRECT;
	rc = check_options(f, &options);
	if (!rc)
		rc = open_path(f, &options);
	if (!rc)
		rc = look_at(f);
	if (!rc && f->direct)
		rc = find_alignment(f);
	if (!rc)
		rc = make_device(f, options.flags & COWSNAP_FILE_READONLY, submit, device);
	if (rc && f->created)
		unlink(f->path);
	if (rc)
		file_close(f);
	return rc;
}

int cs_dev_file(const struct cs_base *base, const char *path,
	const struct cowsnap_file_options *options, struct cowsnap_device **device)
{
	return cs_file_open(base, path, options, NULL, device);
}
