/* SPDX-License-Identifier: MIT
 *
 * Some of the images that the checker sees, written to files, for the second implementation to have
 * a look at: check_images.py. COWSNAP_CRASH_IMAGES names the directory; without it there are none.
 */
#ifndef COWSNAP_TESTS_CRASH_SAMPLE_H
#define COWSNAP_TESTS_CRASH_SAMPLE_H

#include <stdbool.h>
#include <stdint.h>

/* Counts states, those with a stale tail apart, because they are rare. Returns: whether this is one
 * to write down. */
bool sample_wanted(bool stale);

/* What the library says of an image. */
struct sample {
	const char *workload;
	const uint8_t *store;
	uint64_t store_bytes;
	uint64_t origin_bytes;
	const char *verdict; /* "good", "invalid", "no-store", or the name of a fault */
	uint64_t records;
	bool stale;
};

void sample_write(const struct sample *sample);

#endif
