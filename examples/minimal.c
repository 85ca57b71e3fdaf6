/* SPDX-License-Identifier: MIT
 *
 * The smallest complete host: a volume in memory, a snapshot, a backup of it under writes.
 */
#include <cowsnap.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(int error, const char *what)
{
	if (error < 0) {
		fprintf(stderr, "%s: %s\n", what, strerror(-error));
		exit(1);
	}
}

/* The host's write path: its own write, in a bracket. */
static void host_write(struct cowsnap_origin *origin, struct cowsnap_device *volume,
	uint64_t offset, const char *text)
{
	size_t length = strlen(text) + 1;
	struct cowsnap_op op;

	check(cowsnap_write_begin(origin, COWSNAP_WRITE, offset, length, &op), "write_begin");
	int error = cowsnap_device_write(volume, text, offset, length);
	cowsnap_write_end(&op);
	check(error, "write");
}

int main(void)
{
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *volume;
	struct cowsnap_origin *origin;
	struct cowsnap_store *store;
	char now[32], then[32];

	check(cowsnap_ctx_create(NULL, &ctx), "ctx_create");
	check(cowsnap_device_memory(ctx, 1 << 20, &volume), "device_memory");
	check(cowsnap_origin_open(ctx, volume, &origin), "origin_open");
	check(cowsnap_store_transient(ctx, NULL, &store), "store_transient");
	host_write(origin, volume, 5000, "written before the take");

	struct cowsnap_take_entry entry = {.origin = origin, .store = store};
	check(cowsnap_take(ctx, NULL, &entry, 1), "take");
	host_write(origin, volume, 5000, "written after the take");

	check(cowsnap_device_read(volume, now, 5000, sizeof(now)), "read");
	check(cowsnap_snapshot_read(entry.snapshot, then, 5000, sizeof(then)), "snapshot_read");
	printf("volume:   %s\nsnapshot: %s\n", now, then);

	check(cowsnap_snapshot_drop(entry.snapshot), "drop");
	cowsnap_snapshot_unref(entry.snapshot);
	check(cowsnap_reclaim(ctx, UINT64_MAX), "reclaim");
	check(cowsnap_store_close(store), "store_close");
	check(cowsnap_origin_close(origin), "origin_close");
	check(cowsnap_device_close(volume), "device_close");
	check(cowsnap_ctx_destroy(ctx), "ctx_destroy");
	return strcmp(then, "written before the take") != 0;
}
