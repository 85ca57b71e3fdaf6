/* SPDX-License-Identifier: MIT */
#include "support/image.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define KEEP_MAX       200u
#define KEEP_BYTES_MAX (UINT64_C(4) << 20)

static void save(const char *path, const void *bytes, size_t length)
{
	FILE *file = fopen(path, "wb");

	if (!file || fwrite(bytes, 1, length, file) != length || fclose(file) != 0) {
		perror(path);
		abort();
	}
}

void image_keep(struct cowsnap_device *device, enum image_kind kind, uint64_t origin_bytes)
{
	static const char *const kinds[] = {"good", "invalid", "absent", "refused"};
	static atomic_uint kept;
	const char *folder = getenv("COWSNAP_KEEP_IMAGES");
	uint64_t length = cowsnap_device_size(device);
	char path[512];
	unsigned number;
	void *bytes;

	if (!folder || length > KEEP_BYTES_MAX)
		return;
	number = atomic_fetch_add(&kept, 1);
	if (number >= KEEP_MAX)
		return;
	bytes = malloc(length);
	if (!bytes || cowsnap_device_read(device, bytes, 0, length) != 0)
		abort();
	snprintf(path, sizeof(path), "%s/%ld-%u.%llu.%s", folder, (long)getpid(), number,
		(unsigned long long)origin_bytes, kinds[kind]);
	save(path, bytes, length);
	free(bytes);
}
