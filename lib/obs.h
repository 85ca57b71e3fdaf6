/* SPDX-License-Identifier: MIT
 *
 * What every object needs from its context: memory, a log, a clock; and the check of option
 * structs that grow.
 */
#ifndef CS_OBS_H
#define CS_OBS_H

#include <cowsnap.h>

struct cs_base {
	const struct cowsnap_allocator *alloc;
	const struct cowsnap_log *log;     /* NULL: none */
	const struct cowsnap_clock *clock; /* NULL: CLOCK_MONOTONIC */
};

/* One line to the host's log, cut at 255 bytes. Names the thing and its value. */
void cs_log(const struct cs_base *base, enum cowsnap_log_level level, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

uint64_t cs_now_ns(const struct cs_base *base);

/*
 * Copies the caller's options over @into, which holds zeroes, by the growth rule of cowsnap.h.
 * @from may be NULL (all defaults). Both structs begin with size_t size.
 * Returns: 0, -EINVAL (size below @first_size), -E2BIG (non-zero beyond what is known). Logs.
 */
int cs_options_copy(const struct cs_base *base, const char *what, void *into, size_t into_size,
	const void *from, size_t first_size);

/* Copies a result struct out, no more than the caller's size. Returns: 0, -EINVAL (size 0 or larger
 * than known). */
int cs_result_copy(void *to, size_t to_size, const void *from, size_t from_size);

/* Returns: 0; -EINVAL (length 0), -EOVERFLOW (wraps), -ERANGE (beyond @size). */
int cs_range_check(uint64_t offset, uint64_t length, uint64_t size);

#endif
