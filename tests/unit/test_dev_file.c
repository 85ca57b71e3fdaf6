/* SPDX-License-Identifier: MIT
 *
 * Files as devices: opening and its refusals, reads and writes buffered and direct, discards,
 * identity under other paths, block devices.
 */
#include "support/fail_alloc.h"
#include "support/seed.h"
#include "support/test.h"

#include "dev.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_BYTES 200000u

static char folder[64];
static char paths[8][128];
static int path_count;
static char log_text[1024];

static void keep_log(void *user, enum cowsnap_log_level level, const char *message)
{
	(void)user;
	(void)level;
	snprintf(log_text, sizeof(log_text), "%s", message);
}

static const struct cowsnap_log logger = {.size = sizeof(logger), .write = keep_log};

static void enter(void)
{
	path_count = 0;
	log_text[0] = '\0';
	/* The working directory of a test is the build tree: a real file system, unlike some /tmp.
	 */
	snprintf(folder, sizeof(folder), "test_dev_file.XXXXXX");
	cr_assert_not_null(mkdtemp(folder));
}

static void leave(void)
{
	for (int i = 0; i < path_count; i++)
		unlink(paths[i]);
	rmdir(folder);
}

TestSuite(dev_file, .init = enter, .fini = leave);

/* Paths are removed in .fini. */
static const char *path_of(const char *name)
{
	char *path = paths[path_count++];

	snprintf(path, sizeof(paths[0]), "%s/%s", folder, name);
	return path;
}

static const char *make_file(const char *name, off_t bytes)
{
	const char *path = path_of(name);
	int fd = open(path, O_CREAT | O_EXCL | O_RDWR, 0600);

	cr_assert_geq(fd, 0);
	cr_assert_eq(ftruncate(fd, bytes), 0);
	close(fd);
	return path;
}

static struct cowsnap_ctx *make_ctx(void)
{
	struct cowsnap_ctx_options options = {.size = sizeof(options), .log = &logger};
	struct cowsnap_ctx *ctx = NULL;

	cr_assert_eq(cowsnap_ctx_create(&options, &ctx), 0);
	return ctx;
}

static int open_with(struct cowsnap_ctx *ctx, const char *path, uint32_t flags,
	uint64_t length_bytes, struct cowsnap_device **device)
{
	struct cowsnap_file_options options = {
		.size = sizeof(options), .flags = flags, .length_bytes = length_bytes};

	return cowsnap_device_file(ctx, path, &options, device);
}

/* ---- Opening --------------------------------------------------------------------------------- */

Test(dev_file, what_is_no_volume_is_refused)
{
	struct cowsnap_ctx *ctx = make_ctx();
	const char *missing = path_of("missing");
	const char *pipe = path_of("pipe");
	const char *empty = make_file("empty", 0);
	struct cowsnap_device *d = NULL;

	cr_assert_eq(cowsnap_device_file(ctx, missing, NULL, &d), -ENOENT);
	cr_assert_not_null(strstr(log_text, missing), "the log names the path: %s", log_text);
	cr_assert_not_null(strstr(log_text, strerror(ENOENT)), "and the reason: %s", log_text);
	cr_assert_eq(cowsnap_device_file(ctx, NULL, NULL, &d), -EINVAL);
	cr_assert_eq(cowsnap_device_file(ctx, "", NULL, &d), -ENOENT);
	cr_assert_eq(cowsnap_device_file(ctx, folder, NULL, &d), -EINVAL);
	cr_assert_eq(open_with(ctx, folder, COWSNAP_FILE_READONLY, 0, &d), -EINVAL);
	cr_assert_eq(cowsnap_device_file(ctx, "/dev/null", NULL, &d), -EINVAL);
	cr_assert_eq(mkfifo(pipe, 0600), 0);
	cr_assert_eq(open_with(ctx, pipe, COWSNAP_FILE_READONLY, 0, &d), -EINVAL, "nor waited for");
	cr_assert_eq(cowsnap_device_file(ctx, empty, NULL, &d), -EINVAL);
	cr_assert_eq(open_with(ctx, empty, COWSNAP_FILE_CREATE, 4096, &d), -EINVAL,
		"an existing file keeps its length");
	cr_assert_null(d);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

Test(dev_file, bad_options_are_refused)
{
	struct cowsnap_ctx *ctx = make_ctx();
	const char *path = make_file("volume", 4096);
	const char *missing = path_of("missing");
	struct {
		struct cowsnap_file_options known;
		uint64_t unknown;
	} options = {.known = {.size = sizeof(options)}, .unknown = 1};
	struct cowsnap_device *d = NULL;

	cr_assert_eq(open_with(ctx, path, 1u << 3, 0, &d), -EINVAL);
	cr_assert_eq(open_with(ctx, path, 0, 1, &d), -EINVAL, "a length but nothing to create");
	cr_assert_eq(open_with(ctx, missing, COWSNAP_FILE_CREATE, 0, &d), -EINVAL);
	cr_assert_eq(open_with(ctx, missing, COWSNAP_FILE_CREATE | COWSNAP_FILE_READONLY, 1, &d),
		-EINVAL);
	cr_assert_eq(cowsnap_device_file(ctx, path, &options.known, &d), -E2BIG);
	options.known.size = sizeof(options.known) - 1;
	cr_assert_eq(cowsnap_device_file(ctx, path, &options.known, &d), -EINVAL);
	cr_assert_null(d);
	cr_assert_neq(access(missing, F_OK), 0, "no file came of it");
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

Test(dev_file, create_makes_a_file_once)
{
	struct cowsnap_ctx *ctx = make_ctx();
	const char *path = path_of("new");
	const char *huge = path_of("huge");
	struct cowsnap_device *d = NULL;
	struct stat stat_of_it;

	cr_assert_eq(open_with(ctx, path, COWSNAP_FILE_CREATE, 10001, &d), 0);
	cr_assert_eq(cowsnap_device_size(d), 10001);
	cr_assert_eq(cowsnap_device_write(d, "kept", 9997, 4), 0);
	cr_assert_eq(cowsnap_device_close(d), 0);
	cr_assert_eq(open_with(ctx, path, COWSNAP_FILE_CREATE, 5, &d), 0);
	cr_assert_eq(cowsnap_device_size(d), 10001, "it was there already");
	cr_assert_eq(cowsnap_device_close(d), 0);
	cr_assert_eq(stat(path, &stat_of_it), 0);
	cr_assert_eq(stat_of_it.st_mode & 0777, 0600);
	d = NULL;
	cr_assert_lt(open_with(ctx, huge, COWSNAP_FILE_CREATE, COWSNAP_SIZE_MAX, &d), 0);
	cr_assert_null(d);
	cr_assert_neq(access(huge, F_OK), 0, "a file whose length was refused is not left behind");
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

Test(dev_file, without_memory_nothing_is_left_behind)
{
	struct fail_alloc *mem = fail_alloc_create(false);
	struct cs_base base = {.alloc = fail_alloc_table(mem)};
	struct cowsnap_file_options options = {
		.size = sizeof(options), .flags = COWSNAP_FILE_CREATE, .length_bytes = 4096};
	const char *path = path_of("new");
	int fd_before = dup(0), fd_after;
	uint64_t n = 0;
	int rc;

	close(fd_before);
	do {
		struct cowsnap_device *d = NULL;

		fail_alloc_at(mem, ++n, false);
		rc = cs_dev_file(&base, path, &options, &d);
		cr_assert(rc == 0 || rc == -ENOMEM);
		cr_assert_eq(access(path, F_OK) == 0, rc == 0, "a file that was not opened");
		cs_dev_destroy(d);
		cr_assert_eq(fail_alloc_live(mem), 0);
	} while (rc);
	cr_assert_gt(n, 2);
	fd_after = dup(0);
	close(fd_after);
	cr_assert_eq(fd_before, fd_after, "a descriptor is still open");
	fail_alloc_destroy(mem);
}

/* ---- Reading and writing --------------------------------------------------------------------- */

/* Random calls on the device and on an array; @block: what writes are multiples of. */
static void compare_with_array(struct cowsnap_device *d, struct seed *seed, uint64_t block)
{
	uint64_t size = cowsnap_device_size(d);
	uint8_t *model = calloc(1, size);
	uint8_t *memory = malloc(size + 64);

	cr_assert(model && memory);
	for (int step = 0; step < 400; step++) {
		uint64_t kind = seed_below(seed, 4);
		uint64_t grain = kind < 2 ? block : 1;
		uint64_t offset = seed_below(seed, size / grain) * grain;
		uint64_t length =
			(1 + seed_below(seed, step % 8 ? 20000 / grain : size / grain)) * grain;
		uint8_t *buffer = memory + seed_below(seed, 64);

		if (length > size - offset)
			length = (size - offset) / grain * grain;
		if (kind == 0) {
			seed_fill(seed, buffer, length);
			memcpy(model + offset, buffer, length);
			cr_assert_eq(cowsnap_device_write(d, buffer, offset, length), 0);
		} else if (kind == 1) {
			memset(model + offset, 0, length);
			cr_assert_eq(cowsnap_device_zero(d, offset, length), 0);
		} else {
			cr_assert_eq(cowsnap_device_read(d, buffer, offset, length), 0);
			cr_assert_arr_eq(buffer, model + offset, length, "step %d", step);
		}
	}
	cr_assert_eq(cowsnap_device_flush(d), 0);
	cr_assert_eq(cowsnap_device_read(d, memory, 0, size), 0);
	cr_assert_arr_eq(memory, model, size);
	free(memory);
	free(model);
}

Test(dev_file, buffered_agrees_with_an_array)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct seed seed = seed_for("buffered_agrees_with_an_array");
	struct cowsnap_device *d;

	cr_assert_eq(cowsnap_device_file(ctx, make_file("volume", FILE_BYTES + 13), NULL, &d), 0);
	compare_with_array(d, &seed, 1);
	cr_assert_eq(cowsnap_device_close(d), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

/* NULL: the file system has no direct I/O. */
static struct cowsnap_device *open_direct(struct cowsnap_ctx *ctx, const char *path)
{
	struct cowsnap_device *d = NULL;

	return open_with(ctx, path, COWSNAP_FILE_DIRECT, 0, &d) ? NULL : d;
}

Test(dev_file, direct_agrees_with_an_array)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct seed seed = seed_for("direct_agrees_with_an_array");
	struct cowsnap_device *d = open_direct(ctx, make_file("volume", 327680));

	if (d) {
		compare_with_array(d, &seed, d->block_size);
		cr_assert_eq(cowsnap_device_close(d), 0);
	}
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
	if (!d)
		cr_skip_test("no direct I/O here");
}

Test(dev_file, direct_knows_its_block)
{
	struct cowsnap_ctx *ctx = make_ctx();
	const char *path = make_file("volume", 65536 + 77);
	struct cowsnap_device *d = open_direct(ctx, path), *buffered;
	uint8_t *bytes = calloc(1, 65536);
	uint8_t tail[77], again[77];

	if (d) {
		uint64_t block = d->block_size;

		cr_assert(block >= 512 && block <= 65536 && !(block & (block - 1)));
		cr_assert_eq(cowsnap_device_write(d, bytes, 1, block), -EINVAL);
		cr_assert_eq(cowsnap_device_write(d, bytes, 0, block - 1), -EINVAL);
		cr_assert_eq(cowsnap_device_write(d, bytes + 1, 0, block), 0, "any address");
		cr_assert_eq(cowsnap_device_zero(d, block, 1), -EINVAL);
		cr_assert_eq(cowsnap_device_discard(d, block + 1, 1), 0);
		/* The end of a file that is no multiple of its block can be read. */
		memset(tail, 0x42, sizeof(tail));
		cr_assert_eq(cowsnap_device_file(ctx, path, NULL, &buffered), 0);
		cr_assert_eq(cowsnap_device_write(buffered, tail, 65536, 77), 0);
		cr_assert_eq(cowsnap_device_flush(buffered), 0);
		cr_assert_eq(cowsnap_device_read(d, again, 65536, 77), 0);
		cr_assert_arr_eq(again, tail, 77);
		cr_assert_eq(cowsnap_device_read(d, again, 65540, 73), 0);
		cr_assert_arr_eq(again, tail, 73);
		cr_assert_eq(cowsnap_device_close(buffered), 0);
		cr_assert_eq(cowsnap_device_close(d), 0);
	}
	free(bytes);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
	if (!d)
		cr_skip_test("no direct I/O here");
}

Test(dev_file, direct_without_memory_for_a_bounce_buffer)
{
	struct fail_alloc *mem = fail_alloc_create(false);
	struct cs_base base = {.alloc = fail_alloc_table(mem)};
	struct cowsnap_file_options options = {
		.size = sizeof(options), .flags = COWSNAP_FILE_DIRECT};
	struct cowsnap_device *d = NULL;
	uint8_t bytes[8] = {0};
	int rc = cs_dev_file(&base, make_file("volume", 65536), &options, &d);

	if (!rc) {
		fail_alloc_at(mem, 1, false);
		cr_assert_eq(cs_dev_read(d, bytes, 3, 8), -ENOMEM);
		cr_assert_eq(cs_dev_read(d, bytes, 3, 8), 0);
		cs_dev_destroy(d);
	}
	fail_alloc_destroy(mem);
	if (rc)
		cr_skip_test("no direct I/O here");
}

/* The kernel may have flushed for it, and tells of what was lost once: whoever flushes next must
 * hear of it. */
Test(dev_file, a_failed_durable_write_fails_the_next_flush)
{
	static _Alignas(4096) uint8_t block[4096];
	struct cowsnap_ctx *ctx = make_ctx();
	struct cowsnap_device *d = open_direct(ctx, make_file("volume", 327680));
	void (*before)(int) = signal(SIGXFSZ, SIG_IGN);
	struct rlimit limit, short_limit;
	int rc;

	if (!d) {
		cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
		cr_skip_test("no direct I/O here");
	}
	cr_assert_eq(cs_dev_write_durable(d, block, 65536, sizeof(block)), 0);
	cr_assert_eq(cowsnap_device_flush(d), 0);
	cr_assert_eq(getrlimit(RLIMIT_FSIZE, &limit), 0);
	short_limit = limit;
	short_limit.rlim_cur = 32768;
	cr_assert_eq(setrlimit(RLIMIT_FSIZE, &short_limit), 0);
	rc = cs_dev_write_durable(d, block, 65536, sizeof(block));
	cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
	signal(SIGXFSZ, before);
	cr_assert_eq(rc, -EFBIG, "%d", rc);
	cr_assert_eq(cowsnap_device_flush(d), -EFBIG);
	cr_assert_eq(cowsnap_device_flush(d), 0, "it was told");
	cr_assert_eq(cowsnap_device_close(d), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

Test(dev_file, read_only_stays_as_it_is)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct cowsnap_device *d;
	uint8_t byte = 1;

	cr_assert_eq(open_with(ctx, make_file("volume", 100), COWSNAP_FILE_READONLY, 0, &d), 0);
	cr_assert_eq(cowsnap_device_read(d, &byte, 99, 1), 0);
	cr_assert_eq(byte, 0);
	cr_assert_eq(cowsnap_device_write(d, &byte, 0, 1), -EROFS);
	cr_assert_eq(cowsnap_device_zero(d, 0, 1), -EROFS);
	cr_assert_eq(cowsnap_device_discard(d, 0, 1), -EROFS);
	cr_assert_eq(cowsnap_device_flush(d), 0);
	cr_assert_eq(cowsnap_device_close(d), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

Test(dev_file, a_file_that_was_cut_off_is_an_error)
{
	struct cowsnap_ctx *ctx = make_ctx();
	const char *path = make_file("volume", 10000);
	struct cowsnap_device *d;
	uint8_t bytes[100];

	cr_assert_eq(cowsnap_device_file(ctx, path, NULL, &d), 0);
	cr_assert_eq(truncate(path, 5000), 0);
	cr_assert_eq(cowsnap_device_size(d), 10000);
	cr_assert_eq(cowsnap_device_read(d, bytes, 4900, 100), 0);
	cr_assert_eq(cowsnap_device_read(d, bytes, 4950, 100), -EIO, "half of it");
	cr_assert_eq(cowsnap_device_read(d, bytes, 6000, 100), -EIO);
	cr_assert_eq(cowsnap_device_close(d), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

Test(dev_file, a_discard_gives_space_back)
{
	struct cowsnap_ctx *ctx = make_ctx();
	const char *path = make_file("volume", 1 << 20);
	uint8_t *bytes = malloc(1 << 20);
	struct cowsnap_device *d;
	struct stat before, after;

	memset(bytes, 1, 1 << 20);
	cr_assert_eq(cowsnap_device_file(ctx, path, NULL, &d), 0);
	cr_assert_eq(cowsnap_device_write(d, bytes, 0, 1 << 20), 0);
	cr_assert_eq(cowsnap_device_flush(d), 0);
	cr_assert_eq(stat(path, &before), 0);
	cr_assert_eq(cowsnap_device_discard(d, 65536, 1 << 19), 0);
	cr_assert_eq(stat(path, &after), 0);
	cr_assert_eq(after.st_size, 1 << 20);
	cr_assert_eq(cowsnap_device_read(d, bytes, 0, 1 << 20), 0);
	for (size_t i = 0; i < 1 << 20; i++) {
		if (i < 65536 || i >= 65536 + (1 << 19))
			cr_assert_eq(bytes[i], 1, "byte %zu is outside", i);
	}
	free(bytes);
	cr_assert_eq(cowsnap_device_close(d), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
	if (after.st_blocks >= before.st_blocks)
		cr_skip_test("no holes here");
}

/* ---- Identity -------------------------------------------------------------------------------- */

Test(dev_file, one_file_under_other_paths)
{
	struct cowsnap_ctx *ctx = make_ctx();
	const char *path = make_file("volume", 65536);
	const char *copy = make_file("copy", 65536);
	const char *soft = path_of("soft");
	const char *hard = path_of("hard");
	char dotted[256];
	struct cowsnap_device *d[5];
	const char *all[5] = {path, soft, hard, dotted, copy};
	struct cowsnap_origin *origin, *second;
	struct cowsnap_store *store;

	snprintf(dotted, sizeof(dotted), "%s/../%s", folder, path);
	cr_assert_eq(symlink("volume", soft), 0);
	cr_assert_eq(link(path, hard), 0);
	for (int i = 0; i < 5; i++)
		cr_assert_eq(cowsnap_device_file(ctx, all[i], NULL, &d[i]), 0, "%s", all[i]);
	for (int i = 1; i < 5; i++)
		cr_assert_eq(cs_dev_same(d[0], d[i]), i != 4, "%s", all[i]);
	cr_assert_eq(cowsnap_origin_open(ctx, d[0], &origin), 0);
	for (int i = 1; i < 4; i++) {
		struct cowsnap_transient_options options = {
			.size = sizeof(options), .device = d[i]};

		cr_assert_eq(cowsnap_origin_open(ctx, d[i], &second), -EBUSY, "%s", all[i]);
		cr_assert_eq(cowsnap_store_transient(ctx, &options, &store), -EBUSY, "%s", all[i]);
	}
	cr_assert_eq(cowsnap_origin_open(ctx, d[4], &second), 0);
	cr_assert_eq(cowsnap_origin_close(second), 0);
	cr_assert_eq(cowsnap_origin_close(origin), 0);
	cr_assert_eq(cowsnap_origin_open(ctx, d[1], &second), 0, "free again");
	cr_assert_eq(cowsnap_origin_close(second), 0);
	for (int i = 0; i < 5; i++)
		cr_assert_eq(cowsnap_device_close(d[i]), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

/* ---- Block devices --------------------------------------------------------------------------- */

/* A loop device over a file, gone when its descriptor is closed. Returns: -1 without the right. */
static int open_loop(const char *path, char *name, size_t name_bytes)
{
	struct loop_config config = {.info.lo_flags = LO_FLAGS_AUTOCLEAR};
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	int file = open(path, O_RDWR | O_CLOEXEC);
	int fd = -1;

	config.fd = (uint32_t)file;
	for (int attempt = 0; control >= 0 && file >= 0 && fd < 0 && attempt < 10; attempt++) {
		snprintf(name, name_bytes, "/dev/loop%d", ioctl(control, LOOP_CTL_GET_FREE));
		fd = open(name, O_RDWR | O_CLOEXEC);
		if (fd >= 0 && ioctl(fd, LOOP_CONFIGURE, &config) < 0) {
			close(fd);
			fd = -1;
		}
	}
	if (file >= 0)
		close(file);
	if (control >= 0)
		close(control);
	return fd;
}

static void use_block_device(struct cowsnap_ctx *ctx, const char *name)
{
	struct seed seed = seed_for("a_block_device");
	struct cowsnap_device *d, *again;
	uint8_t bytes[12288];

	cr_assert_eq(cowsnap_device_file(ctx, name, NULL, &d), 0);
	cr_assert_eq(cowsnap_device_size(d), 1 << 20);
	compare_with_array(d, &seed, 1);
	memset(bytes, 0x77, sizeof(bytes));
	cr_assert_eq(cowsnap_device_write(d, bytes, 0, sizeof(bytes)), 0);
	cr_assert_eq(cowsnap_device_discard(d, 1000, 7001), 0);
	cr_assert_eq(cowsnap_device_discard(d, 1, 2), 0, "less than a sector");
	cr_assert_eq(cowsnap_device_read(d, bytes, 0, sizeof(bytes)), 0);
	for (size_t i = 0; i < sizeof(bytes); i++) {
		if (i < 1000 || i >= 8001)
			cr_assert_eq(bytes[i], 0x77, "byte %zu is outside", i);
	}
	cr_assert_eq(open_with(ctx, name, COWSNAP_FILE_DIRECT, 0, &again), 0);
	cr_assert(cs_dev_same(d, again));
	cr_assert_eq(cowsnap_device_zero(again, 0, 1 << 20), 0);
	compare_with_array(again, &seed, again->block_size);
	cr_assert_eq(cowsnap_device_close(again), 0);
	cr_assert_eq(cowsnap_device_close(d), 0);
}

Test(dev_file, a_block_device)
{
	struct cowsnap_ctx *ctx = make_ctx();
	char name[64];
	int fd = open_loop(make_file("disk", 1 << 20), name, sizeof(name));

	if (fd >= 0) {
		use_block_device(ctx, name);
		close(fd);
	}
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
	if (fd < 0)
		cr_skip_test("no right to make a loop device");
}
