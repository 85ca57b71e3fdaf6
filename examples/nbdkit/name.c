/* SPDX-License-Identifier: MIT */
#include "name.h"

#include <errno.h>
#include <jansson.h>
#include <string.h>

int name_check(const char *bytes, size_t length, const char **message)
{
	json_t *text;
	size_t i;

	*message = "the name is empty";
	if (length == 0)
		return -ENODATA;
	*message = "the name is longer than 255 bytes";
	if (length > SNAPSHOT_NAME_MAX)
		return -ENAMETOOLONG;
	*message = "more arguments than the command takes (a name has no space)";
	if (memchr(bytes, ' ', length) != NULL)
		return -E2BIG;
	*message = "the name is not UTF-8";
	text = json_stringn(bytes, length);
	if (text == NULL)
		return -EILSEQ;
	json_decref(text);
	*message = "the name has a control character or a slash";
	for (i = 0; i < length; i++) {
		unsigned char byte = (unsigned char)bytes[i];
		unsigned char before = i > 0 ? (unsigned char)bytes[i - 1] : 0;

		/* C2 80 to C2 9F are the control characters U+0080 to U+009F. */
		if (byte < 0x20 || byte == 0x7f || byte == '/' || (before == 0xc2 && byte < 0xa0))
			return -EBADMSG;
	}
	return 0;
}
