/* SPDX-License-Identifier: MIT
 *
 * Planted: an assertion that fails.
 */
#include "support/test.h"

Test(negative, failing_assertion)
{
	cr_assert_eq(1 + 1, 3, "this is the planted failure");
}
