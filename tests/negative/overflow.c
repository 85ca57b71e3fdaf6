/* SPDX-License-Identifier: MIT
 *
 * Planted: a write behind the end of a block.
 */
#include "support/test.h"

#include "alloc.h"

Test(negative, overflow)
{
	char *memory = cs_alloc(cs_alloc_libc(), 100);
	volatile size_t end = 100;

	memory[end] = 1;
	cs_free(cs_alloc_libc(), memory, 100);
}
