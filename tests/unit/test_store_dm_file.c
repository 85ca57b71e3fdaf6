/* SPDX-License-Identifier: MIT
 *
 * A persistent store in a file: locks against other processes, a file that cannot be written, that
 * grows, that is cut off while it is open, that has two names.
 */
#include "support/dm_image.h"
#include "support/test.h"

#include <cowsnap.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHUNK        UINT64_C(512)
#define ORIGIN_BYTES UINT64_C(65536)
#define STORE_BYTES  UINT64_C(32768)

struct rig {
	char path[256];
	char log[2048]; /* all lines, one after the other */
	struct cowsnap_log table;
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *origin_device, *device;
	struct cowsnap_origin *origin;
	struct cowsnap_store *store;
	struct cowsnap_snapshot *snapshot;
};

static void on_log(void *user, enum cowsnap_log_level level, const char *message)
{
	struct rig *r = user;

	(void)level;
	snprintf(r->log + strlen(r->log), sizeof(r->log) - strlen(r->log), "%s\n", message);
}

static void rig_open(struct rig *r)
{
	const char *folder = getenv("TMPDIR");
	struct cowsnap_ctx_options options = {.size = sizeof(options), .log = &r->table};
	int fd;

	memset(r, 0, sizeof(*r));
	r->table = (struct cowsnap_log){.size = sizeof(r->table), .user = r, .write = on_log};
	snprintf(r->path, sizeof(r->path), "%s/cowsnap-store-XXXXXX", folder ? folder : "/tmp");
	fd = mkstemp(r->path);
	cr_assert_geq(fd, 0);
	cr_assert_eq(ftruncate(fd, (off_t)STORE_BYTES), 0);
	close(fd);
	cr_assert_eq(cowsnap_ctx_create(&options, &r->ctx), 0);
	cr_assert_eq(cowsnap_device_memory(r->ctx, ORIGIN_BYTES, &r->origin_device), 0);
	cr_assert_eq(cowsnap_origin_open(r->ctx, r->origin_device, &r->origin), 0);
	cr_assert_eq(cowsnap_device_file(r->ctx, r->path, NULL, &r->device), 0);
}

static void rig_close(struct rig *r)
{
	if (r->snapshot) {
		if (cowsnap_snapshot_drop(r->snapshot))
			cr_assert_eq(cowsnap_snapshot_deactivate(r->snapshot), 0);
		cowsnap_snapshot_unref(r->snapshot);
	}
	cr_assert_eq(cowsnap_store_close(r->store), 0);
	cr_assert_eq(cowsnap_device_close(r->device), 0);
	cr_assert_eq(cowsnap_origin_close(r->origin), 0);
	cr_assert_eq(cowsnap_device_close(r->origin_device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(r->ctx), 0);
	unlink(r->path);
}

static int create(struct rig *r, uint32_t flags)
{
	struct cowsnap_dm_options options = {.size = sizeof(options),
		.flags = flags,
		.device = r->device,
		.chunk_size_bytes = CHUNK};

	return cowsnap_store_dm_create(r->ctx, &options, &r->store);
}

static void take(struct rig *r)
{
	struct cowsnap_take_entry entry = {
		.origin = r->origin, .store = r->store, .on_full = COWSNAP_LOSER_WRITE};

	cr_assert_eq(cowsnap_take(r->ctx, NULL, &entry, 1), 0);
	r->snapshot = entry.snapshot;
}

static int attach(struct rig *r)
{
	struct cowsnap_dm_options options = {.size = sizeof(options), .device = r->device};
	struct cowsnap_take_entry entry = {.origin = r->origin, .on_full = COWSNAP_LOSER_WRITE};
	int rc = cowsnap_store_dm_open(r->ctx, &options, &entry, &r->store);

	if (rc == 0)
		r->snapshot = entry.snapshot;
	return rc;
}

static void detach(struct rig *r)
{
	cr_assert_eq(cowsnap_snapshot_deactivate(r->snapshot), 0);
	cowsnap_snapshot_unref(r->snapshot);
	r->snapshot = NULL;
	cr_assert_eq(cowsnap_store_close(r->store), 0);
	r->store = NULL;
	/* A store is attached only to an origin that nobody has written to. */
	cr_assert_eq(cowsnap_origin_close(r->origin), 0);
	cr_assert_eq(cowsnap_origin_open(r->ctx, r->origin_device, &r->origin), 0);
}

static int inspect(struct rig *r)
{
	struct cowsnap_dm_report report;

	return cowsnap_dm_inspect(r->device, NULL, &report, sizeof(report));
}

static int write_chunks(struct rig *r, uint64_t first, uint64_t count)
{
	struct cowsnap_op op;
	int rc = cowsnap_write_begin(r->origin, COWSNAP_WRITE, first * CHUNK, count * CHUNK, &op);

	if (rc == 0)
		cowsnap_write_end(&op);
	return rc;
}

static bool lock_by(int fd, short type)
{
	struct flock lock = {.l_type = type, .l_whence = SEEK_SET};

	return fcntl(fd, F_OFD_SETLK, &lock) == 0;
}

/* ---- Locks ----------------------------------------------------------------------------------- */

/* A lock of another open file is what one of another process is. */
Test(store_dm_file, a_file_that_another_has_is_busy)
{
	struct rig r;
	int fd;

	rig_open(&r);
	cr_assert_eq(create(&r, 0), 0);
	take(&r);
	detach(&r);
	fd = open(r.path, O_RDWR);
	cr_assert(lock_by(fd, F_WRLCK));
	cr_assert_eq(create(&r, COWSNAP_DM_OVERWRITE), -EBUSY);
	cr_assert(strstr(r.log, r.path) && strstr(r.log, "in use"), "%s", r.log);
	r.log[0] = 0;
	cr_assert_eq(attach(&r), -EBUSY);
	cr_assert(strstr(r.log, r.path), "%s", r.log);
	cr_assert_eq(inspect(&r), -EBUSY);
	/* Who only looks is in the way of who writes, not of who looks. */
	cr_assert(lock_by(fd, F_RDLCK));
	cr_assert_eq(attach(&r), -EBUSY);
	cr_assert_eq(inspect(&r), 0);
	cr_assert(lock_by(fd, F_UNLCK));
	cr_assert_eq(attach(&r), 0);
	cr_assert_not(lock_by(fd, F_RDLCK), "an open store is locked");
	detach(&r);
	cr_assert(lock_by(fd, F_WRLCK), "a closed one is not");
	close(fd);
	rig_close(&r);
}

Test(store_dm_file, a_store_without_snapshot_is_locked_too)
{
	struct rig r;
	int fd;

	rig_open(&r);
	fd = open(r.path, O_RDWR);
	cr_assert_eq(create(&r, 0), 0);
	cr_assert_not(lock_by(fd, F_RDLCK));
	cr_assert_eq(cowsnap_store_close(r.store), 0);
	r.store = NULL;
	cr_assert(lock_by(fd, F_WRLCK));
	cr_assert(lock_by(fd, F_UNLCK));
	cr_assert_eq(inspect(&r), -ENOENT);
	cr_assert(lock_by(fd, F_WRLCK), "a look has ended");
	close(fd);
	rig_close(&r);
}

/* Another process, for once: it opens the file anew and must be told no. Only system calls between
 * fork and _exit. */
Test(store_dm_file, another_process_is_kept_away)
{
	struct rig r;
	int status;
	pid_t child;

	rig_open(&r);
	cr_assert_eq(create(&r, 0), 0);
	take(&r);
	child = fork();
	if (child == 0) {
		int fd = open(r.path, O_RDWR);

		_exit(fd < 0 ? 2 : lock_by(fd, F_WRLCK) ? 1 : errno == EAGAIN ? 0 : 3);
	}
	cr_assert_eq(waitpid(child, &status, 0), child);
	cr_assert(WIFEXITED(status));
	cr_assert_eq(WEXITSTATUS(status), 0);
	rig_close(&r);
}

Test(store_dm_file, one_file_under_two_names)
{
	struct rig r;
	struct cowsnap_device *other;
	struct cowsnap_store *store;
	struct cowsnap_dm_options options = {.size = sizeof(options)};
	char path[300];

	rig_open(&r);
	snprintf(path, sizeof(path), "%s-link", r.path);
	cr_assert_eq(link(r.path, path), 0);
	cr_assert_eq(create(&r, 0), 0);
	cr_assert_eq(cowsnap_device_file(r.ctx, path, NULL, &other), 0);
	options.device = other;
	cr_assert_eq(cowsnap_store_dm_create(r.ctx, &options, &store), -EBUSY);
	cr_assert_eq(cowsnap_device_close(other), 0);
	unlink(path);
	rig_close(&r);
}

/* ---- Files that do not do ------------------------------------------------------------------- */

Test(store_dm_file, a_readonly_file_can_be_looked_at)
{
	struct cowsnap_file_options readonly = {
		.size = sizeof(readonly), .flags = COWSNAP_FILE_READONLY};
	struct rig r;

	rig_open(&r);
	cr_assert_eq(create(&r, 0), 0);
	take(&r);
	cr_assert_eq(write_chunks(&r, 0, 3), 0);
	detach(&r);
	cr_assert_eq(cowsnap_device_close(r.device), 0);
	cr_assert_eq(cowsnap_device_file(r.ctx, r.path, &readonly, &r.device), 0);
	cr_assert_eq(create(&r, COWSNAP_DM_OVERWRITE), -EROFS);
	cr_assert_eq(attach(&r), -EROFS);
	cr_assert_eq(inspect(&r), 0);
	rig_close(&r);
}

Test(store_dm_file, a_file_that_grows)
{
	struct cowsnap_store_usage usage;
	struct rig r;

	rig_open(&r);
	cr_assert_eq(create(&r, 0), 0);
	take(&r);
	cr_assert_eq(write_chunks(&r, 0, 61), 0);
	cr_assert_eq(write_chunks(&r, 61, 1), -ENOSPC);
	cr_assert_eq(truncate(r.path, 2 * (off_t)STORE_BYTES), 0);
	cr_assert_eq(cowsnap_device_refresh(r.device), 0);
	cr_assert_eq(cowsnap_store_set_limit(r.store, 0), 0);
	cr_assert_eq(write_chunks(&r, 61, 60), 0);
	cr_assert_eq(cowsnap_store_usage(r.store, &usage, sizeof(usage)), 0);
	cr_assert_eq(usage.limit_bytes, (128 - 1 - 4) * CHUNK);
	detach(&r);
	cr_assert_eq(attach(&r), 0, "%s", r.log);
	rig_close(&r);
}

/* What was cut off is gone, and a write there would make a hole that reads as zeroes: it is noticed
 * before a record is acknowledged. */
Test(store_dm_file, a_file_that_is_cut_off)
{
	struct rig r;

	rig_open(&r);
	cr_assert_eq(create(&r, 0), 0);
	take(&r);
	cr_assert_eq(write_chunks(&r, 0, 10), 0);
	cr_assert_eq(truncate(r.path, 4096), 0);
	cr_assert_eq(write_chunks(&r, 20, 1), -EIO);
	cr_assert_eq(cowsnap_device_refresh(r.device), -ERANGE);
	rig_close(&r);
}

Test(store_dm_file, a_file_that_was_cut_off_before)
{
	struct rig r;

	rig_open(&r);
	cr_assert_eq(create(&r, 0), 0);
	take(&r);
	cr_assert_eq(write_chunks(&r, 0, 10), 0);
	detach(&r);
	cr_assert_eq(cowsnap_device_close(r.device), 0);
	cr_assert_eq(truncate(r.path, 4096), 0);
	cr_assert_eq(cowsnap_device_file(r.ctx, r.path, NULL, &r.device), 0);
	cr_assert_eq(attach(&r), -EBADMSG);
	cr_assert(strstr(r.log, "record 6"), "%s", r.log);
	rig_close(&r);
}

Test(store_dm_file, life_in_a_file)
{
	uint8_t old[8 * CHUNK], new[8 * CHUNK], got[8 * CHUNK];
	struct cowsnap_op op;
	struct rig r;

	memset(old, 1, sizeof(old));
	memset(new, 2, sizeof(new));
	rig_open(&r);
	cr_assert_eq(cowsnap_device_write(r.origin_device, old, 0, sizeof(old)), 0);
	cr_assert_eq(create(&r, 0), 0);
	take(&r);
	cr_assert_eq(cowsnap_write_begin(r.origin, COWSNAP_WRITE, 0, sizeof(new), &op), 0);
	cr_assert_eq(cowsnap_device_write(r.origin_device, new, 0, sizeof(new)), 0);
	cowsnap_write_end(&op);
	detach(&r);
	cr_assert_eq(cowsnap_device_close(r.device), 0);
	cr_assert_eq(cowsnap_device_file(r.ctx, r.path, NULL, &r.device), 0);
	cr_assert_eq(attach(&r), 0, "%s", r.log);
	cr_assert_eq(cowsnap_snapshot_read(r.snapshot, got, 0, sizeof(got)), 0);
	cr_assert_arr_eq(got, old, sizeof(got));
	rig_close(&r);
}
