/* SPDX-License-Identifier: MIT
 *
 * Planted: signed overflow.
 */
#include "support/test.h"

#include <limits.h>

Test(negative, undefined)
{
	volatile int most = INT_MAX;
	volatile int more = most + 1;

	cr_assert_neq(more, 0);
}
