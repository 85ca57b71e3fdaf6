/* SPDX-License-Identifier: MIT
 *
 * Closed handles, things in use, and one thing under two names.
 */
#include "api/volume.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

Test(handles, null_is_accepted_where_the_header_says_so)
{
	cr_assert_eq(cowsnap_ctx_destroy(NULL), 0);
	cr_assert_eq(cowsnap_device_close(NULL), 0);
	cr_assert_eq(cowsnap_origin_close(NULL), 0);
	cr_assert_eq(cowsnap_store_close(NULL), 0);
	cowsnap_snapshot_unref(NULL);
	cowsnap_copier_destroy(NULL);
	cowsnap_map_destroy(NULL);
}

Test(handles, calls_after_close)
{
	struct cowsnap_origin *origin = NULL;
	struct cowsnap_store_usage usage;
	struct cowsnap_stats stats;
	struct cowsnap_op op;
	struct volume v;
	uint64_t location, count;
	char byte = 1;

	volume_open(&v);
	cr_assert_eq(cowsnap_origin_close(v.origin), 0);
	cr_assert_eq(cowsnap_origin_close(v.origin), -EBADF);
	cr_assert_eq(cowsnap_write_begin(v.origin, COWSNAP_WRITE, 0, 1, &op), -EBADF);
	cr_assert_eq(cowsnap_origin_stats(v.origin, &stats, sizeof(stats)), -EBADF);
	cr_assert_eq(cowsnap_store_close(v.store), 0);
	cr_assert_eq(cowsnap_store_close(v.store), -EBADF);
	cr_assert_eq(cowsnap_store_usage(v.store, &usage, sizeof(usage)), -EBADF);
	cr_assert_eq(cowsnap_store_set_limit(v.store, 4096), -EBADF);
	cr_assert_eq(cowsnap_store_alloc(v.store, 1, &location, &count), -EBADF);
	cr_assert_eq(cowsnap_device_close(v.device), 0);
	cr_assert_eq(cowsnap_device_close(v.device), -EBADF);
	cr_assert_eq(cowsnap_device_size(v.device), 0);
	cr_assert_eq(cowsnap_device_read(v.device, &byte, 0, 1), -EBADF);
	cr_assert_eq(cowsnap_device_write(v.device, &byte, 0, 1), -EBADF);
	cr_assert_eq(cowsnap_device_zero(v.device, 0, 1), -EBADF);
	cr_assert_eq(cowsnap_device_discard(v.device, 0, 1), -EBADF);
	cr_assert_eq(cowsnap_device_flush(v.device), -EBADF);
	cr_assert_eq(cowsnap_origin_open(v.ctx, v.device, &origin), -EBADF);
	cr_assert_null(origin);
	cr_assert_eq(cowsnap_ctx_stats(v.ctx, &stats, sizeof(stats)), 0);
	cr_assert_eq(cowsnap_ctx_destroy(v.ctx), 0);
}

Test(handles, take_of_closed_things)
{
	struct cowsnap_take_entry entry = {0};
	struct volume v;

	volume_open(&v);
	entry.origin = v.origin;
	entry.store = v.store;
	cr_assert_eq(cowsnap_store_close(v.store), 0);
	cr_assert_eq(cowsnap_take(v.ctx, NULL, &entry, 1), -EBADF);
	cr_assert_null(entry.snapshot);
	cr_assert_eq(cowsnap_store_transient(v.ctx, NULL, &v.store), 0);
	entry.store = v.store;
	cr_assert_eq(cowsnap_origin_close(v.origin), 0);
	cr_assert_eq(cowsnap_take(v.ctx, NULL, &entry, 1), -EBADF);
	cr_assert_eq(
		cowsnap_origin_open(v.ctx, v.device, &v.origin), 0, "the device is free again");
	volume_take(&v);
	volume_close(&v);
}

Test(handles, things_in_use_are_not_closed)
{
	struct cowsnap_op op;
	struct volume v;

	volume_open(&v);
	cr_assert_eq(cowsnap_device_close(v.device), -EBUSY, "an origin is on it");
	cr_assert_eq(cowsnap_ctx_destroy(v.ctx), -EBUSY);
	volume_take(&v);
	cr_assert_eq(cowsnap_origin_close(v.origin), -EBUSY, "it has a snapshot");
	cr_assert_eq(cowsnap_store_close(v.store), -EBUSY, "a snapshot is in it");
	cr_assert_eq(cowsnap_ctx_destroy(v.ctx), -EBUSY);
	volume_drop(&v);
	cr_assert_eq(cowsnap_write_begin(v.origin, COWSNAP_WRITE, 0, 1, &op), 0);
	cr_assert_eq(cowsnap_origin_close(v.origin), -EBUSY, "a bracket is open");
	cowsnap_write_end(&op);
	volume_close(&v);
}

Test(handles, each_open_thing_holds_the_context)
{
	struct cowsnap_device *device = NULL;
	struct cowsnap_store *store = NULL;
	struct cowsnap_ctx *ctx = NULL;

	cr_assert_eq(cowsnap_ctx_create(NULL, &ctx), 0);
	cr_assert_eq(cowsnap_device_memory(ctx, 4096, &device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), -EBUSY);
	cr_assert_eq(cowsnap_device_close(device), 0);
	cr_assert_eq(cowsnap_store_transient(ctx, NULL, &store), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), -EBUSY);
	cr_assert_eq(cowsnap_store_close(store), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

Test(handles, store_device_in_use)
{
	struct cowsnap_transient_options options = {.size = sizeof(options)};
	struct cowsnap_store *store = NULL, *second = NULL;
	struct cowsnap_origin *origin = NULL;
	struct volume v;

	volume_open(&v);
	options.device = v.device;
	cr_assert_eq(cowsnap_store_transient(v.ctx, &options, &store), -EBUSY, "it is an origin");
	cr_assert_eq(cowsnap_device_memory(v.ctx, 65536, &options.device), 0);
	cr_assert_eq(cowsnap_store_transient(v.ctx, &options, &store), 0);
	cr_assert_eq(cowsnap_store_transient(v.ctx, &options, &second), -EBUSY);
	cr_assert_eq(cowsnap_origin_open(v.ctx, options.device, &origin), -EBUSY);
	cr_assert_eq(cowsnap_origin_open(v.ctx, v.device, &origin), -EBUSY, "open already");
	cr_assert_eq(cowsnap_device_close(options.device), -EBUSY);
	cr_assert_null(second);
	cr_assert_null(origin);
	cr_assert_eq(cowsnap_store_close(store), 0);
	cr_assert_eq(cowsnap_device_close(options.device), 0);
	cr_assert_eq(cowsnap_store_transient(v.ctx, &options, &store), -EBADF);
	volume_check_untouched(&v);
	volume_close(&v);
}

Test(handles, dropped_snapshots)
{
	struct cowsnap_snapshot_info info;
	struct cowsnap_extent extent;
	struct volume v;
	char byte;

	volume_open(&v);
	volume_take(&v);
	cr_assert_eq(cowsnap_snapshot_drop(v.snapshot), 0);
	cr_assert_eq(cowsnap_snapshot_drop(v.snapshot), -EIDRM);
	cr_assert_eq(cowsnap_snapshot_read(v.snapshot, &byte, 0, 1), -EIDRM);
	cr_assert_eq(cowsnap_snapshot_extent(v.snapshot, 0, 1, &extent), -EIDRM);
	cr_assert_eq(cowsnap_snapshot_info(v.snapshot, &info, sizeof(info)), 0);
	cr_assert_eq(info.state, COWSNAP_SNAPSHOT_DROPPED);
	cr_assert_null(cowsnap_snapshot_user(v.snapshot));
	cowsnap_snapshot_unref(v.snapshot);
	v.snapshot = NULL;
	volume_close(&v);
}

/* What a drop left need not be reclaimed before everything is closed, in either order. */
Test(handles, close_without_reclaim)
{
	for (int order = 0; order < 2; order++) {
		struct volume v;
		char data[VOLUME_CHUNK * 3] = {1};

		volume_open(&v);
		for (int i = 0; i < 3; i++) {
			volume_take(&v);
			cr_assert_eq(volume_write(&v, data, VOLUME_CHUNK, sizeof(data)), 0);
			volume_drop(&v);
		}
		if (order) {
			cr_assert_eq(cowsnap_store_close(v.store), 0);
			cr_assert_eq(cowsnap_origin_close(v.origin), 0);
		} else {
			cr_assert_eq(cowsnap_origin_close(v.origin), 0);
			cr_assert_eq(cowsnap_store_close(v.store), 0);
		}
		cr_assert_eq(cowsnap_device_close(v.device), 0);
		cr_assert_eq(cowsnap_ctx_destroy(v.ctx), 0);
	}
}

/* ---- Files ---------------------------------------------------------------------------------- */

static char folder[200];

static const char *in_folder(const char *name)
{
	static char path[2][512];
	static unsigned turn;

	turn = !turn;
	snprintf(path[turn], sizeof(path[turn]), "%s/%s", folder, name);
	return path[turn];
}

static void make_folder(void)
{
	const char *parent = getenv("TMPDIR");

	snprintf(folder, sizeof(folder), "%s/cowsnap-api-XXXXXX", parent ? parent : "/tmp");
	cr_assert_not_null(mkdtemp(folder));
}

static void make_file(const char *name, off_t length)
{
	int fd = open(in_folder(name), O_CREAT | O_RDWR | O_EXCL, 0600);

	cr_assert(fd >= 0);
	cr_assert_eq(ftruncate(fd, length), 0);
	close(fd);
}

static int open_file(struct volume *v, const char *path, uint32_t flags, uint64_t length)
{
	struct cowsnap_file_options options = {
		.size = sizeof(options), .flags = flags, .length_bytes = length};
	struct cowsnap_device *device = NULL;
	int rc = cowsnap_device_file(v->ctx, path, &options, &device);

	if (rc == 0)
		cr_assert_eq(cowsnap_device_close(device), 0);
	else
		cr_assert_null(device);
	return rc;
}

Test(handles, names_of_files)
{
	struct volume v;
	char name[5000];

	volume_open(&v);
	make_folder();
	make_file("file", 8192);
	make_file("empty", 0);
	memset(name, 'x', sizeof(name));
	name[sizeof(name) - 1] = '\0';
	cr_assert_eq(open_file(&v, "", 0, 0), -ENOENT);
	cr_assert_eq(open_file(&v, name, 0, 0), -ENAMETOOLONG);
	cr_assert_eq(open_file(&v, in_folder("missing"), 0, 0), -ENOENT);
	cr_assert_eq(open_file(&v, in_folder("\xff\xfe\xc3("), 0, 0), -ENOENT);
	cr_assert_eq(open_file(&v, in_folder("file/below"), 0, 0), -ENOTDIR);
	cr_assert_eq(open_file(&v, in_folder("empty"), 0, 0), -EINVAL, "no length");
	cr_assert_eq(open_file(&v, folder, COWSNAP_FILE_READONLY, 0), -EINVAL, "a folder");
	cr_assert_eq(open_file(&v, "/dev/null", 0, 0), -EINVAL);
	cr_assert_eq(open_file(&v, in_folder("file"), UINT32_C(1) << 20, 0), -EINVAL);
	cr_assert_eq(open_file(&v, in_folder("missing"), COWSNAP_FILE_CREATE, 0), -EINVAL);
	cr_assert_neq(access(in_folder("missing"), F_OK), 0, "nothing is left behind");
	cr_assert_eq(open_file(&v, in_folder("file"), 0, 0), 0);
	cr_assert_eq(open_file(&v, in_folder("\xff"), COWSNAP_FILE_CREATE, 4096), 0);
	unlink(in_folder("\xff"));
	unlink(in_folder("file"));
	unlink(in_folder("empty"));
	cr_assert_eq(rmdir(folder), 0);
	volume_close(&v);
}

Test(handles, read_only_file)
{
	const struct cowsnap_file_options options = {
		.size = sizeof(options), .flags = COWSNAP_FILE_READONLY};
	struct cowsnap_device *device = NULL;
	struct volume v;
	char byte = 1;

	volume_open(&v);
	make_folder();
	make_file("file", 8192);
	cr_assert_eq(cowsnap_device_file(v.ctx, in_folder("file"), &options, &device), 0);
	cr_assert_eq(cowsnap_device_size(device), 8192);
	cr_assert_eq(cowsnap_device_write(device, &byte, 0, 1), -EROFS);
	cr_assert_eq(cowsnap_device_zero(device, 0, 1), -EROFS);
	cr_assert_eq(cowsnap_device_read(device, &byte, 8191, 1), 0);
	cr_assert_eq(byte, 0);
	cr_assert_eq(cowsnap_device_close(device), 0);
	unlink(in_folder("file"));
	rmdir(folder);
	volume_close(&v);
}

/* An origin's file must not become a store, by whatever name it comes. */
Test(handles, one_file_under_several_names)
{
	static const char *const names[] = {"file", "symbolic", "hard", "./file", "down/../file"};
	struct cowsnap_device *device[5] = {NULL};
	struct cowsnap_origin *origin = NULL, *second = NULL;
	struct cowsnap_store *store = NULL;
	struct volume v;

	volume_open(&v);
	make_folder();
	make_file("file", 65536);
	cr_assert_eq(mkdir(in_folder("down"), 0700), 0);
	cr_assert_eq(symlink("file", in_folder("symbolic")), 0);
	cr_assert_eq(link(in_folder("file"), in_folder("hard")), 0);
	for (int i = 0; i < 5; i++)
		cr_assert_eq(cowsnap_device_file(v.ctx, in_folder(names[i]), NULL, &device[i]), 0);
	cr_assert_eq(cowsnap_origin_open(v.ctx, device[0], &origin), 0);
	for (int i = 0; i < 5; i++) {
		struct cowsnap_transient_options options = {
			.size = sizeof(options), .device = device[i]};

		cr_assert_eq(
			cowsnap_store_transient(v.ctx, &options, &store), -EBUSY, "%s", names[i]);
		cr_assert_eq(
			cowsnap_origin_open(v.ctx, device[i], &second), -EBUSY, "%s", names[i]);
		cr_assert_null(store);
		cr_assert_null(second);
	}
	cr_assert_eq(cowsnap_origin_close(origin), 0);
	for (int i = 0; i < 5; i++) {
		cr_assert_eq(cowsnap_origin_open(v.ctx, device[i], &origin), 0, "free again");
		cr_assert_eq(cowsnap_origin_close(origin), 0);
		cr_assert_eq(cowsnap_device_close(device[i]), 0);
	}
	unlink(in_folder("symbolic"));
	unlink(in_folder("hard"));
	unlink(in_folder("file"));
	rmdir(in_folder("down"));
	cr_assert_eq(rmdir(folder), 0);
	volume_close(&v);
}

/* ---- The host's own identities -------------------------------------------------------------- */

static int host_read(void *user, void *buffer, uint64_t offset, uint64_t length)
{
	(void)user, (void)offset;
	memset(buffer, 0, length);
	return 0;
}

static int host_write(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	(void)user, (void)buffer, (void)offset, (void)length;
	return 0;
}

static int host_identity(void *user, struct cowsnap_device_identity *identity)
{
	memset(identity, 0, sizeof(*identity));
	identity->words[3] = *(const uint64_t *)user;
	return 0;
}

Test(handles, one_host_device_under_two_names)
{
	const struct cowsnap_device_ops ops = {.size = sizeof(ops),
		.read = host_read,
		.write = host_write,
		.identity = host_identity};
	const struct cowsnap_device_options options = {
		.size = sizeof(options), .size_bytes = 65536};
	struct cowsnap_transient_options transient = {.size = sizeof(transient)};
	struct cowsnap_device *device[3] = {NULL};
	struct cowsnap_origin *origin = NULL;
	struct cowsnap_store *store = NULL;
	uint64_t identity[3] = {1, 1, 2};
	struct volume v;

	volume_open(&v);
	for (int i = 0; i < 3; i++)
		cr_assert_eq(
			cowsnap_device_create(v.ctx, &ops, &options, &identity[i], &device[i]), 0);
	cr_assert_eq(cowsnap_origin_open(v.ctx, device[0], &origin), 0);
	transient.device = device[1];
	cr_assert_eq(cowsnap_store_transient(v.ctx, &transient, &store), -EBUSY);
	transient.device = device[2];
	cr_assert_eq(cowsnap_store_transient(v.ctx, &transient, &store), 0);
	cr_assert_eq(cowsnap_origin_close(origin), 0);
	cr_assert_eq(cowsnap_store_close(store), 0);
	for (int i = 0; i < 3; i++)
		cr_assert_eq(cowsnap_device_close(device[i]), 0);
	volume_close(&v);
}
