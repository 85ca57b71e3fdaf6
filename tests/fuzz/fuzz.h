/* SPDX-License-Identifier: MIT
 *
 * What a fuzz target has in common with who drives it: libFuzzer, or replay.c.
 */
#ifndef COWSNAP_TESTS_FUZZ_H
#define COWSNAP_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

/* Bytes of an input in front of the image. */
#define FUZZ_CHOICES 4u

/* Returns: 0. A finding ends the process. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* libFuzzer calls these where they exist. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

#endif
