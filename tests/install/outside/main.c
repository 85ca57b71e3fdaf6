/* SPDX-License-Identifier: MIT
 *
 * A host outside the tree: a volume, a snapshot, a write after it, the old content read back.
 */
#include <cowsnap.h>
#if defined(OUTSIDE_JEMALLOC)
#include <cowsnap-jemalloc.h>
#endif

#include <stdio.h>
#include <string.h>

static const uint64_t volume_bytes = UINT64_C(1) << 20;

static int check(int result, const char *what)
{
	if (result != 0)
		fprintf(stderr, "outside: %s: %s\n", what, strerror(-result));
	return result;
}

static int bracketed_write(
	struct cowsnap_origin *origin, struct cowsnap_device *device, const char *text)
{
	struct cowsnap_op op;
	int result = cowsnap_write_begin(origin, COWSNAP_WRITE, 0, strlen(text) + 1, &op);

	if (result != 0)
		return check(result, "write_begin");
	result = cowsnap_device_write(device, text, 0, strlen(text) + 1);
	cowsnap_write_end(&op);
	return check(result, "device_write");
}

static int take_write_read(
	struct cowsnap_ctx *ctx, struct cowsnap_origin *origin, struct cowsnap_device *device)
{
	struct cowsnap_transient_options in_memory = {.size = sizeof(in_memory)};
	struct cowsnap_take_options options = {.size = sizeof(options)};
	struct cowsnap_store *store = NULL;
	struct cowsnap_take_entry entry = {.origin = origin};
	char frozen[16] = "";

	if (bracketed_write(origin, device, "before") ||
		check(cowsnap_store_transient(ctx, &in_memory, &store), "store_transient"))
		return 1;
	entry.store = store;
	if (check(cowsnap_take(ctx, &options, &entry, 1), "take") ||
		bracketed_write(origin, device, "after") ||
		check(cowsnap_snapshot_read(entry.snapshot, frozen, 0, sizeof(frozen)), "read") ||
		check(cowsnap_snapshot_drop(entry.snapshot), "drop"))
		return 1;
	cowsnap_snapshot_unref(entry.snapshot);
	while (cowsnap_reclaim(ctx, UINT64_MAX) == 1)
		;
	if (check(cowsnap_store_close(store), "store_close"))
		return 1;
	return strcmp(frozen, "before") != 0;
}

int main(void)
{
	struct cowsnap_ctx_options options = {.size = sizeof(options)};
	struct cowsnap_ctx *ctx = NULL;
	struct cowsnap_device *device = NULL;
	struct cowsnap_origin *origin = NULL;
	int failed;

#if defined(OUTSIDE_JEMALLOC)
	options.allocator = cowsnap_jemalloc();
#endif
	if (check(cowsnap_ctx_create(&options, &ctx), "ctx_create") ||
		check(cowsnap_device_memory(ctx, volume_bytes, &device), "device_memory") ||
		check(cowsnap_origin_open(ctx, device, &origin), "origin_open"))
		return 1;
	failed = take_write_read(ctx, origin, device);
	if (check(cowsnap_origin_close(origin), "origin_close") ||
		check(cowsnap_device_close(device), "device_close") ||
		check(cowsnap_ctx_destroy(ctx), "ctx_destroy"))
		return 1;
	puts(failed ? "outside: the snapshot is wrong" : cowsnap_version());
	return failed;
}
