/* SPDX-License-Identifier: MIT
 *
 * Log lines, the clock, the growth rule of option structs, the check of ranges.
 */
#include "obs.h"
#include "sync.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void cs_log(const struct cs_base *base, enum cowsnap_log_level level, const char *format, ...)
{
	char line[256];
	va_list args;

	if (!base->log)
		return;
	va_start(args, format);
	if (vsnprintf(line, sizeof(line), format, args) < 0)
		line[0] = '\0';
	va_end(args);
	base->log->write(base->log->user, level, line);
}

uint64_t cs_now_ns(const struct cs_base *base)
{
	return base->clock ? base->clock->now_ns(base->clock->user) : cs_monotonic_ns();
}

/* No release will have larger options. A larger size is not one, and nobody knows what may be read
 * behind it. */
#define OPTIONS_BYTES_MAX 4096

static bool all_zero(const unsigned char *bytes, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		if (bytes[i] != 0)
			return false;
	}
	return true;
}

int cs_options_copy(const struct cs_base *base, const char *what, void *into, size_t into_size,
	const void *from, size_t first_size)
{
	size_t size;

	assert(first_size <= into_size && into_size <= OPTIONS_BYTES_MAX);
	if (!from)
		return 0;
	memcpy(&size, from, sizeof(size));
	if (size < first_size) {
		cs_log(base, COWSNAP_LOG_ERROR, "%s: size %zu is less than %zu", what, size,
			first_size);
		return -EINVAL;
	}
	if (size > OPTIONS_BYTES_MAX ||
		(size > into_size &&
			!all_zero((const unsigned char *)from + into_size, size - into_size))) {
		cs_log(base, COWSNAP_LOG_ERROR,
			"%s: size %zu: options of a newer release, known are %zu", what, size,
			into_size);
		return -E2BIG;
	}
	memcpy(into, from, size < into_size ? size : into_size);
	return 0;
}

int cs_result_copy(void *to, size_t to_size, const void *from, size_t from_size)
{
	if (to_size == 0 || to_size > from_size)
		return -EINVAL;
	memcpy(to, from, to_size);
	return 0;
}

int cs_range_check(uint64_t offset, uint64_t length, uint64_t size)
{
	if (length == 0)
		return -EINVAL;
	if (offset > UINT64_MAX - length)
		return -EOVERFLOW;
	if (offset + length > size)
		return -ERANGE;
	return 0;
}
