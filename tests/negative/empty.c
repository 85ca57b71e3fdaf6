/* SPDX-License-Identifier: MIT
 *
 * A single good case, run with a filter that does not match it, or where two are asked for.
 */
#include "support/test.h"

Test(negative, lonely)
{
	cr_assert(true);
}
