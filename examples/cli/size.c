/* SPDX-License-Identifier: MIT
 *
 * Sizes and numbers, from text and to text.
 */
#include "cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char units[] = "KMGTPE";
static const char accepted[] = "KMGTkmgt";

bool cli_number_parse(const char *text, uint64_t *number)
{
	char *end;

	errno = 0;
	*number = strtoull(text, &end, 10);
	/* strtoull takes signs and blanks, and turns -1 into a large number. */
	return text[0] >= '0' && text[0] <= '9' && !*end && !errno;
}

bool cli_size_parse(const char *text, uint64_t *bytes)
{
	size_t length = strlen(text);
	char digits[24];
	unsigned shift = 0;

	if (!length || length >= sizeof(digits))
		return false;
	memcpy(digits, text, length + 1);
	if (digits[length - 1] < '0' || digits[length - 1] > '9') {
		const char *suffix = strchr(accepted, digits[length - 1]);

		if (!suffix)
			return false;
		shift = 10 * ((unsigned)(suffix - accepted) % 4 + 1);
		digits[length - 1] = '\0';
	}
	if (!cli_number_parse(digits, bytes))
		return false;
	if (*bytes > UINT64_MAX >> shift)
		return false;
	*bytes <<= shift;
	return true;
}

const char *cli_size_text(uint64_t bytes, bool exact, char *text)
{
	unsigned unit = 0;
	uint64_t tenths;
	int used;

	if (bytes < 1024) {
		snprintf(text, CLI_SIZE_TEXT, "%llu byte%s", (unsigned long long)bytes,
			bytes == 1 ? "" : "s");
		return text;
	}
	while (unit + 1 < sizeof(units) - 1 && bytes >> (10 * (unit + 2)))
		unit++;
	/* 2^64 tenths do not fit: divide first, then take the tenths from what is left. */
	tenths = (bytes >> (10 * (unit + 1))) * 10 + (((bytes >> (10 * unit)) & 1023) * 10 >> 10);
	used = snprintf(text, CLI_SIZE_TEXT, "%llu.%llu %ciB", (unsigned long long)(tenths / 10),
		(unsigned long long)(tenths % 10), units[unit]);
	if (exact)
		snprintf(text + used, CLI_SIZE_TEXT - (size_t)used, " (%llu bytes)",
			(unsigned long long)bytes);
	return text;
}
