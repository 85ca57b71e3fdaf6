/* SPDX-License-Identifier: MIT
 *
 * Bad options and tables: each is refused with its own error.
 */
#include "api/volume.h"

#include <errno.h>
#include <string.h>

/* The options of a newer release: known members, and more behind them. */
struct longer {
	union {
		struct cowsnap_ctx_options ctx;
		struct cowsnap_file_options file;
		struct cowsnap_transient_options transient;
		struct cowsnap_take_options take;
		struct cowsnap_device_options device;
		struct cowsnap_store_options store;
		struct cowsnap_copier_options copier;
		size_t size;
	};
	unsigned char more[64];
};

static int create_ctx(const void *options)
{
	struct cowsnap_ctx *ctx = NULL;
	int rc = cowsnap_ctx_create(options, &ctx);

	if (rc == 0)
		cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
	else
		cr_assert_null(ctx);
	return rc;
}

Test(options, context)
{
	struct cowsnap_ctx_options good = {.size = sizeof(good)};
	struct cowsnap_ctx_options bad;
	struct longer longer;

	cr_assert_eq(create_ctx(NULL), 0);
	cr_assert_eq(create_ctx(&good), 0);
	for (size_t size = 0; size < sizeof(good); size += 4) {
		bad = good;
		bad.size = size;
		cr_assert_eq(create_ctx(&bad), -EINVAL, "size %zu", size);
	}
	for (unsigned bit = 0; bit < 32; bit++) {
		bad = good;
		bad.flags = UINT32_C(1) << bit;
		cr_assert_eq(create_ctx(&bad), -EINVAL, "flag %u", bit);
	}
	memset(&longer, 0, sizeof(longer));
	longer.size = sizeof(good) + 8;
	cr_assert_eq(create_ctx(&longer), 0, "newer options that say nothing new");
	((unsigned char *)&longer)[sizeof(good) + 7] = 1;
	cr_assert_eq(create_ctx(&longer), -E2BIG);
	longer.size = sizeof(good) + 7;
	cr_assert_eq(create_ctx(&longer), 0, "what is beyond the size does not count");
}

Test(options, copy_job_length_has_bounds)
{
	static const uint64_t refused[] = {1, 511, 4095, (UINT64_C(64) << 20) + 1, UINT64_MAX};
	static const uint64_t accepted[] = {0, 4096, UINT64_C(64) << 20};
	struct cowsnap_ctx_options options = {.size = sizeof(options)};

	for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
		options.copy_job_bytes = refused[i];
		cr_assert_eq(create_ctx(&options), -EINVAL, "%zu", i);
	}
	for (size_t i = 0; i < sizeof(accepted) / sizeof(accepted[0]); i++) {
		options.copy_job_bytes = accepted[i];
		cr_assert_eq(create_ctx(&options), 0, "%zu", i);
	}
	options.copy_inflight_bytes = UINT64_MAX;
	cr_assert_eq(create_ctx(&options), 0);
}

static void *no_alloc(void *user, size_t bytes, size_t align)
{
	(void)user, (void)bytes, (void)align;
	return NULL;
}

static void no_free(void *user, void *memory, size_t bytes)
{
	(void)user, (void)memory, (void)bytes;
}

static void *no_arena(void *user)
{
	(void)user;
	return NULL;
}

Test(options, incomplete_tables)
{
	struct cowsnap_allocator allocator = {.size = sizeof(allocator)};
	struct cowsnap_log log = {.size = sizeof(log)};
	struct cowsnap_clock clock = {.size = sizeof(clock)};
	struct cowsnap_ctx_options options = {.size = sizeof(options)};

	options.allocator = &allocator;
	cr_assert_eq(create_ctx(&options), -EINVAL);
	allocator.alloc = no_alloc;
	cr_assert_eq(create_ctx(&options), -EINVAL);
	allocator.free = no_free;
	cr_assert_eq(create_ctx(&options), -ENOMEM);
	allocator.arena_create = no_arena;
	cr_assert_eq(create_ctx(&options), -EINVAL, "arena members come together");
	allocator.arena_create = NULL;
	allocator.size = 8;
	cr_assert_eq(create_ctx(&options), -EINVAL);
	options.allocator = NULL;
	options.log = &log;
	cr_assert_eq(create_ctx(&options), -EINVAL);
	options.log = NULL;
	options.clock = &clock;
	cr_assert_eq(create_ctx(&options), -EINVAL);
}

static int create_store(struct volume *v, const void *options)
{
	struct cowsnap_store *store = NULL;
	int rc = cowsnap_store_transient(v->ctx, options, &store);

	if (rc == 0)
		cr_assert_eq(cowsnap_store_close(store), 0);
	else
		cr_assert_null(store);
	return rc;
}

Test(options, transient_store)
{
	struct cowsnap_transient_options good = {.size = sizeof(good)};
	struct cowsnap_transient_options bad;
	struct longer longer = {.transient = {.size = sizeof(longer)}};
	struct volume v;

	volume_open(&v);
	cr_assert_eq(cowsnap_store_chunk_size(v.store), 4096, "the default");
	cr_assert_eq(create_store(&v, &good), 0);
	bad = good;
	bad.size = sizeof(size_t);
	cr_assert_eq(create_store(&v, &bad), -EINVAL);
	bad = good;
	bad.flags = UINT32_C(1) << 31;
	cr_assert_eq(create_store(&v, &bad), -EINVAL);
	cr_assert_eq(create_store(&v, &longer), 0);
	longer.more[sizeof(longer.more) - 1] = 1;
	cr_assert_eq(create_store(&v, &longer), -E2BIG);
	volume_close(&v);
}

Test(options, chunk_sizes)
{
	static const struct {
		uint64_t bytes;
		int error;
	} cases[] = {
		{1, -ERANGE},
		{2, -ERANGE},
		{256, -ERANGE},
		{511, -EINVAL},
		{512, 0},
		{513, -EINVAL},
		{1536, -EINVAL},
		{4097, -EINVAL},
		{UINT64_C(1) << 20, 0},
		{(UINT64_C(1) << 20) + 512, -EINVAL},
		{UINT64_C(1) << 30, 0},
		{UINT64_C(3) << 29, -EINVAL},
		{UINT64_C(1) << 31, -ERANGE},
		{UINT64_C(1) << 63, -ERANGE},
		{UINT64_MAX, -EINVAL},
	};
	struct cowsnap_transient_options options = {
		.size = sizeof(options), .limit_bytes = UINT64_C(1) << 34};
	struct volume v;

	volume_open(&v);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		options.chunk_size_bytes = cases[i].bytes;
		cr_assert_eq(create_store(&v, &options), cases[i].error, "chunk %llu",
			(unsigned long long)cases[i].bytes);
	}
	volume_close(&v);
}

Test(options, store_limits)
{
	struct cowsnap_transient_options options = {.size = sizeof(options)};
	struct cowsnap_device *device = NULL;
	struct cowsnap_store *store = NULL;
	struct cowsnap_store_usage usage;
	struct volume v;

	volume_open(&v);
	options.limit_bytes = 4095;
	cr_assert_eq(create_store(&v, &options), -ERANGE);
	options.limit_bytes = 4096;
	cr_assert_eq(create_store(&v, &options), 0);
	cr_assert_eq(cowsnap_device_memory(v.ctx, 8192, &device), 0);
	options.device = device;
	options.limit_bytes = 8193;
	cr_assert_eq(create_store(&v, &options), -ERANGE);
	options.limit_bytes = 0;
	options.chunk_size_bytes = 16384;
	cr_assert_eq(create_store(&v, &options), -ERANGE, "the device is smaller than a chunk");
	options.chunk_size_bytes = 4096;
	cr_assert_eq(cowsnap_store_transient(v.ctx, &options, &store), 0);
	cr_assert_eq(cowsnap_store_set_limit(store, 4095), -ERANGE);
	cr_assert_eq(cowsnap_store_set_limit(store, 8193), -ERANGE);
	cr_assert_eq(cowsnap_store_set_limit(store, UINT64_MAX), -ERANGE);
	cr_assert_eq(cowsnap_store_set_limit(store, 4096), 0);
	cr_assert_eq(cowsnap_store_set_limit(store, 0), 0, "all of the device");
	cr_assert_eq(cowsnap_store_usage(store, &usage, sizeof(usage)), 0);
	cr_assert_eq(usage.limit_bytes, 8192);
	cr_assert_eq(cowsnap_store_close(store), 0);
	cr_assert_eq(cowsnap_store_set_limit(store, 8192), -EBADF);
	cr_assert_eq(cowsnap_device_close(device), 0);
	volume_close(&v);
}

static int host_read(void *user, void *buffer, uint64_t offset, uint64_t length)
{
	(void)user, (void)offset;
	memset(buffer, 0, length);
	return 0;
}

static int host_identity(void *user, struct cowsnap_device_identity *identity)
{
	if (!user)
		return -EIO;
	identity->words[0] = *(const uint64_t *)user;
	return 0;
}

static int create_device(
	struct volume *v, const struct cowsnap_device_ops *ops, const void *options, void *user)
{
	struct cowsnap_device *device = NULL;
	int rc = cowsnap_device_create(v->ctx, ops, options, user, &device);

	if (rc == 0)
		cr_assert_eq(cowsnap_device_close(device), 0);
	else
		cr_assert_null(device);
	return rc;
}

Test(options, host_device)
{
	struct cowsnap_device_ops ops = {.size = sizeof(ops), .read = host_read};
	struct cowsnap_device_options good = {.size = sizeof(good), .size_bytes = 4096};
	struct cowsnap_device_options bad;
	struct longer longer = {.device = {.size = sizeof(longer), .size_bytes = 4096}};
	struct volume v;

	volume_open(&v);
	cr_assert_eq(create_device(&v, &ops, &good, NULL), 0);
	cr_assert_eq(create_device(&v, &ops, NULL, NULL), -EINVAL, "no size");
	for (uint32_t block = 3; block < 70000; block = block * 2 - 1) {
		bad = good;
		bad.block_size = block;
		cr_assert_eq(create_device(&v, &ops, &bad, NULL), -EINVAL, "block %u", block);
	}
	bad = good;
	bad.block_size = UINT32_C(1) << 17;
	cr_assert_eq(create_device(&v, &ops, &bad, NULL), -EINVAL);
	bad = good;
	bad.flags = UINT32_C(1) << 31;
	cr_assert_eq(create_device(&v, &ops, &bad, NULL), -EINVAL);
	bad = good;
	bad.size_bytes = 0;
	cr_assert_eq(create_device(&v, &ops, &bad, NULL), -EINVAL);
	bad.size_bytes = COWSNAP_SIZE_MAX + 1;
	cr_assert_eq(create_device(&v, &ops, &bad, NULL), -EFBIG);
	longer.more[0] = 1;
	cr_assert_eq(create_device(&v, &ops, &longer, NULL), -E2BIG);
	ops.identity = host_identity;
	cr_assert_eq(create_device(&v, &ops, &good, NULL), -EIO, "the error of identity");
	ops.identity = NULL;
	ops.read = NULL;
	cr_assert_eq(create_device(&v, &ops, &good, NULL), -EINVAL);
	ops.read = host_read;
	ops.size = 8;
	cr_assert_eq(create_device(&v, &ops, &good, NULL), -EINVAL);
	volume_close(&v);
}

/* A device whose write function is missing is read-only. */
Test(options, read_only_device)
{
	const struct cowsnap_device_ops ops = {.size = sizeof(ops), .read = host_read};
	const struct cowsnap_device_options options = {.size = sizeof(options), .size_bytes = 4096};
	struct cowsnap_device *device = NULL;
	struct volume v;
	char byte = 1;

	volume_open(&v);
	cr_assert_eq(cowsnap_device_create(v.ctx, &ops, &options, NULL, &device), 0);
	cr_assert_eq(cowsnap_device_write(device, &byte, 0, 1), -EROFS);
	cr_assert_eq(cowsnap_device_zero(device, 0, 1), -EROFS);
	cr_assert_eq(cowsnap_device_read(device, &byte, 0, 1), 0);
	cr_assert_eq(byte, 0);
	cr_assert_eq(cowsnap_device_close(device), 0);
	volume_close(&v);
}

static int create_host_store(
	struct volume *v, const struct cowsnap_store_ops *ops, const void *options)
{
	struct cowsnap_store *store = NULL;
	int rc = cowsnap_store_create(v->ctx, ops, options, NULL, &store);

	if (rc == 0)
		cr_assert_eq(cowsnap_store_close(store), 0);
	else
		cr_assert_null(store);
	return rc;
}

static int store_alloc(void *user, uint64_t want, uint64_t *location, uint64_t *count)
{
	(void)user, (void)want, (void)location, (void)count;
	return -ENOSPC;
}

static void store_free(void *user, uint64_t location, uint64_t count)
{
	(void)user, (void)location, (void)count;
}

static void store_space(void *user, struct cowsnap_store_space *space)
{
	(void)user;
	*space = (struct cowsnap_store_space){.limit_chunks = 1};
}

Test(options, host_store)
{
	const struct cowsnap_store_ops good_ops = {.size = sizeof(good_ops),
		.alloc = store_alloc,
		.free = store_free,
		.space = store_space};
	struct cowsnap_store_ops ops = good_ops;
	struct cowsnap_store_options options = {.size = sizeof(options), .chunk_size_bytes = 4096};
	struct volume v;

	volume_open(&v);
	cr_assert_eq(create_host_store(&v, &ops, &options), -EINVAL, "no device");
	options.device = v.device;
	cr_assert_eq(create_host_store(&v, &ops, &options), -EBUSY, "an origin");
	cr_assert_eq(cowsnap_device_memory(v.ctx, 65536, &options.device), 0);
	cr_assert_eq(create_host_store(&v, &ops, &options), 0);
	ops.alloc = NULL;
	cr_assert_eq(create_host_store(&v, &ops, &options), -EINVAL);
	ops = good_ops;
	ops.free = NULL;
	cr_assert_eq(create_host_store(&v, &ops, &options), -EINVAL);
	ops = good_ops;
	ops.space = NULL;
	cr_assert_eq(create_host_store(&v, &ops, &options), -EINVAL);
	ops = good_ops;
	options.flags = UINT32_C(1) << 7;
	cr_assert_eq(create_host_store(&v, &ops, &options), -EINVAL);
	options.flags = 0;
	options.chunk_size_bytes = 5000;
	cr_assert_eq(create_host_store(&v, &ops, &options), -EINVAL);
	options.chunk_size_bytes = 256;
	cr_assert_eq(create_host_store(&v, &ops, &options), -ERANGE);
	options.chunk_size_bytes = 4096;
	options.size = 8;
	cr_assert_eq(create_host_store(&v, &ops, &options), -EINVAL);
	options.size = sizeof(options);
	cr_assert_eq(cowsnap_device_close(options.device), 0);
	cr_assert_eq(create_host_store(&v, &ops, &options), -EBADF);
	volume_close(&v);
}

/* Result structs: a smaller one that an older host knows is filled as far as it goes. */
Test(options, sizes_of_results)
{
	struct cowsnap_store_usage usage;
	struct cowsnap_stats stats;
	struct cowsnap_snapshot_info info;
	struct volume v;

	volume_open(&v);
	volume_take(&v);
	cr_assert_eq(cowsnap_store_usage(v.store, &usage, 0), -EINVAL);
	cr_assert_eq(cowsnap_store_usage(v.store, &usage, sizeof(usage) + 8), -EINVAL);
	cr_assert_eq(cowsnap_origin_stats(v.origin, &stats, 0), -EINVAL);
	cr_assert_eq(cowsnap_origin_stats(v.origin, &stats, sizeof(stats) + 8), -EINVAL);
	cr_assert_eq(cowsnap_ctx_stats(v.ctx, &stats, 0), -EINVAL);
	cr_assert_eq(cowsnap_ctx_stats(v.ctx, &stats, sizeof(stats) + 8), -EINVAL);
	cr_assert_eq(cowsnap_snapshot_info(v.snapshot, &info, 0), -EINVAL);
	cr_assert_eq(cowsnap_snapshot_info(v.snapshot, &info, sizeof(info) + 8), -EINVAL);
	memset(&usage, 0x5a, sizeof(usage));
	cr_assert_eq(cowsnap_store_usage(v.store, &usage, 8), 0);
	cr_assert_eq(usage.chunk_size_bytes, 4096);
	cr_assert_eq(usage.used_bytes, UINT64_C(0x5a5a5a5a5a5a5a5a));
	memset(&info, 0x5a, sizeof(info));
	cr_assert_eq(cowsnap_snapshot_info(v.snapshot, &info, sizeof(int)), 0);
	cr_assert_eq(info.state, COWSNAP_SNAPSHOT_ACTIVE);
	cr_assert_eq(info.reason, 0x5a5a5a5a);
	cr_assert_eq(cowsnap_ctx_thread_io(v.ctx, NULL, 0), 0);
	volume_close(&v);
}

static int create_copier(struct volume *v, const void *options)
{
	struct cowsnap_copier *copier = NULL;
	int rc = cowsnap_copier_create(v->ctx, options, &copier);

	cowsnap_copier_destroy(copier);
	return rc;
}

Test(options, copier)
{
	struct cowsnap_copier_options options = {.size = sizeof(options)};
	struct cowsnap_copier *copier = NULL;
	struct cowsnap_copy_target target = {0};
	struct cowsnap_copy copy = {.targets = &target};
	struct volume v;

	volume_open(&v);
	cr_assert_eq(create_copier(&v, NULL), 0);
	options.flags = 4;
	cr_assert_eq(create_copier(&v, &options), -EINVAL);
	options.flags = 0;
	options.job_bytes = 100;
	cr_assert_eq(create_copier(&v, &options), -EINVAL);
	options.job_bytes = 0;
	options.size = 4;
	cr_assert_eq(create_copier(&v, &options), -EINVAL);
	cr_assert_eq(cowsnap_copier_create(v.ctx, NULL, &copier), 0);
	target.device = copy.source = v.device;
	cr_assert_eq(cowsnap_copier_copy(copier, &copy), -EINVAL);
	copy.count = 1;
	cr_assert_eq(cowsnap_copier_copy(copier, &copy), -EINVAL, "length 0");
	target.length = UINT64_MAX;
	target.source_offset = 2;
	cr_assert_eq(cowsnap_copier_copy(copier, &copy), -EOVERFLOW);
	cr_assert_eq(cowsnap_copier_throttle(copier, 0, 0), -EINVAL);
	cr_assert_eq(cowsnap_copier_throttle(copier, 0, 101), -EINVAL);
	cr_assert_eq(cowsnap_copier_throttle(copier, UINT64_MAX, 100), 0);
	cowsnap_copier_destroy(copier);
	volume_check_untouched(&v);
	volume_close(&v);
}
