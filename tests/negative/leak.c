/* SPDX-License-Identifier: MIT
 *
 * Planted: a leak in a case that is otherwise good.
 */
#include "support/test.h"

#include "alloc.h"

Test(negative, leak)
{
	char *volatile memory = cs_alloc(cs_alloc_libc(), 100);

	cr_assert_not_null(memory);
	memory = NULL;
}
