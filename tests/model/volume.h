/* SPDX-License-Identifier: MIT
 *
 * What is below a device: bytes that outlive the context, and may become more.
 */
#ifndef COWSNAP_TESTS_MODEL_VOLUME_H
#define COWSNAP_TESTS_MODEL_VOLUME_H

#include <cowsnap.h>

struct driver;

enum volume_kind {
	VOLUME_FILE,
	VOLUME_HOST,   /* a device of the host's, which counts reads */
	VOLUME_MEMORY, /* the library's: its bytes end with the device, and it keeps its length */
};

struct volume;

struct volume *volume_create(
	struct driver *d, enum volume_kind kind, uint64_t size_bytes, uint64_t room_bytes);
void volume_destroy(struct volume *volume); /* NULL is accepted */
struct cowsnap_device *volume_open(struct driver *d, struct volume *volume);
/* Below the device, which is asked afterwards. */
void volume_grow(struct driver *d, struct volume *volume, uint64_t size_bytes);
/* How often it was read; 0: it does not count. */
uint64_t volume_reads(const struct volume *volume);

#endif
