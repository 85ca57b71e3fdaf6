/* SPDX-License-Identifier: MIT
 *
 * What a test includes. Normally that is Criterion, with one addition: under AddressSanitizer each
 * case looks for leaks when its body has ended and fails if there are some (Criterion ignores what
 * LeakSanitizer says at the exit of its worker). With CS_TEST_STANDIN it is the in-process
 * stand-in, because Criterion cannot start under ThreadSanitizer. Test authors need to do nothing
 * for either.
 *
 * In both: Test(suite, name, .init, .fini, .timeout, .disabled), TestSuite, cr_assert,
 * cr_assert_not, cr_assert_eq, _neq, _lt, _leq, _gt, _geq, _null, _not_null, _str_eq, _str_neq,
 * _arr_eq, _fail, the same as cr_expect, cr_skip_test, cr_log_info, _warn, _error. Messages are
 * printf's and optional.
 *
 * Free what a body allocates in the body, or keep it in a static and free it in .fini. A child
 * process must end with _exit(): an assertion in a forked child hangs Criterion.
 */
#ifndef CS_TEST_H
#define CS_TEST_H

#include <stdint.h>

/* The call that fails next in a sweep over all of them. ThreadSanitizer is slow, and looks for
 * races, not at each state. */
static inline uint64_t test_sweep_next(uint64_t n)
{
#if defined(__SANITIZE_THREAD__)
	return n + (n < 8 ? 1 : 8);
#else
	return n + 1;
#endif
}

#if defined(CS_TEST_STANDIN)
#include "support/standin.h"
#else
#include <criterion/criterion.h>

#if defined(__SANITIZE_ADDRESS__)
#define CS_TEST_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CS_TEST_ASAN 1
#endif
#endif

#if defined(CS_TEST_ASAN)
#include <sanitizer/lsan_interface.h>

static inline void cs_test_check_leaks(void)
{
	cr_assert_eq(__lsan_do_recoverable_leak_check(), 0, "this test leaks memory");
}

#define CS_TEST_WITH_LEAK_CHECK(suite, name, ...)                             \
	__attribute__((noinline)) static void cs_body_##suite##_##name(void); \
	CR_TEST_BASE(suite, name, __VA_ARGS__)                                \
	{                                                                     \
		cs_body_##suite##_##name();                                   \
		cs_test_check_leaks();                                        \
	}                                                                     \
	static void cs_body_##suite##_##name(void)

#undef Test
#define Test(...) CR_EXPAND(CS_TEST_WITH_LEAK_CHECK(__VA_ARGS__, .sentinel_ = 0))
#endif /* CS_TEST_ASAN */

#endif /* CS_TEST_STANDIN */

#endif
