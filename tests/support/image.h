/* SPDX-License-Identifier: MIT
 *
 * Store images for the second reader. With COWSNAP_KEEP_IMAGES=folder a test program leaves there
 * what its stores looked like, as PROCESS-NUMBER.ORIGIN_BYTES.KIND; without it nothing happens.
 * tests/interop/test_images.py runs the programs and reads the images.
 */
#ifndef COWSNAP_TESTS_IMAGE_H
#define COWSNAP_TESTS_IMAGE_H

#include <cowsnap.h>

#include <stdint.h>

enum image_kind {
	IMAGE_GOOD,
	IMAGE_INVALID,
	IMAGE_ABSENT,
	IMAGE_REFUSED,
};

/* @device: what holds the store; nobody may be writing. @origin_bytes: 0: not known. Only so many
 * are kept for each process that a folder stays small. */
void image_keep(struct cowsnap_device *device, enum image_kind kind, uint64_t origin_bytes);

#endif
