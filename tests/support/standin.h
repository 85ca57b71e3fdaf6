/* SPDX-License-Identifier: MIT
 *
 * The stand-in for Criterion: the same macros, all cases one after the other in this process, under
 * a plain main(). It stops at the first failed assertion, because the process is shared. Included
 * by support/test.h.
 */
#ifndef CS_STANDIN_H
#define CS_STANDIN_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

/* Messages are optional, and C17 has no word for a macro with no variable argument. */
#if defined(__clang__)
#pragma clang diagnostic ignored "-Wgnu-zero-variadic-macro-arguments"
#else
#pragma GCC system_header
#endif

/* The names of the members are Criterion's. */
struct cs_test_options {
	void (*init)(void);
	void (*fini)(void);
	double timeout; /* CTest's is used */
	bool disabled;
	const char *description;
	char sentinel_;
};

struct cs_test_case {
	const char *suite;
	const char *name; /* NULL: the options of a suite */
	void (*body)(void);
	struct cs_test_options options;
	struct cs_test_case *next;
};

void cs_test_register(struct cs_test_case *test);
void cs_test_fail(const char *file, int line, bool fatal, const char *what, const char *format, ...)
	__attribute__((format(printf, 5, 6)));
_Noreturn void cs_test_skip(const char *format, ...) __attribute__((format(printf, 1, 2)));
void cs_test_log(const char *format, ...) __attribute__((format(printf, 1, 2)));

#define CS_TEST_REGISTER(symbol, suite_text, name_text, body_function, ...) \
	__attribute__((constructor)) static void symbol(void)               \
	{                                                                   \
		static struct cs_test_case test = {                         \
			.suite = suite_text,                                \
			.name = name_text,                                  \
			.body = body_function,                              \
			.options = {__VA_ARGS__},                           \
		};                                                          \
		cs_test_register(&test);                                    \
	}

#define CS_TEST_BASE(suite, name, ...)                                                          \
	static void cs_body_##suite##_##name(void);                                             \
	CS_TEST_REGISTER(cs_register_##suite##_##name, #suite, #name, cs_body_##suite##_##name, \
		__VA_ARGS__)                                                                    \
	static void cs_body_##suite##_##name(void)
#define Test(...) CS_TEST_BASE(__VA_ARGS__, .sentinel_ = 0)

#define CS_SUITE_BASE(suite, ...)                                                    \
	CS_TEST_REGISTER(cs_register_suite_##suite, #suite, NULL, NULL, __VA_ARGS__) \
	struct cs_test_case /* takes the semicolon that follows */
#define TestSuite(...) CS_SUITE_BASE(__VA_ARGS__, .sentinel_ = 0)

/* The blank keeps the format from being empty when there is no message. */
#define CS_TEST_CHECK(fatal, condition, what, ...)                                      \
	do {                                                                            \
		if (!(condition))                                                       \
			cs_test_fail(__FILE__, __LINE__, fatal, what, " " __VA_ARGS__); \
	} while (0)
#define CS_TEST_BINARY(fatal, a, op, b, ...) \
	CS_TEST_CHECK(fatal, (a)op(b), #a " " #op " " #b, __VA_ARGS__)
#define CS_TEST_STRING(fatal, a, op, b, ...) \
	CS_TEST_CHECK(fatal, strcmp(a, b) op 0, "text " #a " " #op " " #b, __VA_ARGS__)
#define CS_TEST_BYTES(fatal, a, op, b, bytes, ...) \
	CS_TEST_CHECK(fatal, memcmp(a, b, bytes) op 0, "bytes " #a " " #op " " #b, __VA_ARGS__)

#define cr_assert(condition, ...) CS_TEST_CHECK(true, condition, #condition, __VA_ARGS__)
#define cr_assert_not(condition, ...) \
	CS_TEST_CHECK(true, !(condition), "not " #condition, __VA_ARGS__)
#define cr_assert_eq(a, b, ...)             CS_TEST_BINARY(true, a, ==, b, __VA_ARGS__)
#define cr_assert_neq(a, b, ...)            CS_TEST_BINARY(true, a, !=, b, __VA_ARGS__)
#define cr_assert_lt(a, b, ...)             CS_TEST_BINARY(true, a, <, b, __VA_ARGS__)
#define cr_assert_leq(a, b, ...)            CS_TEST_BINARY(true, a, <=, b, __VA_ARGS__)
#define cr_assert_gt(a, b, ...)             CS_TEST_BINARY(true, a, >, b, __VA_ARGS__)
#define cr_assert_geq(a, b, ...)            CS_TEST_BINARY(true, a, >=, b, __VA_ARGS__)
#define cr_assert_null(a, ...)              CS_TEST_BINARY(true, a, ==, NULL, __VA_ARGS__)
#define cr_assert_not_null(a, ...)          CS_TEST_BINARY(true, a, !=, NULL, __VA_ARGS__)
#define cr_assert_str_eq(a, b, ...)         CS_TEST_STRING(true, a, ==, b, __VA_ARGS__)
#define cr_assert_str_neq(a, b, ...)        CS_TEST_STRING(true, a, !=, b, __VA_ARGS__)
#define cr_assert_arr_eq(a, b, bytes, ...)  CS_TEST_BYTES(true, a, ==, b, bytes, __VA_ARGS__)
#define cr_assert_arr_neq(a, b, bytes, ...) CS_TEST_BYTES(true, a, !=, b, bytes, __VA_ARGS__)
#define cr_assert_fail(...)                 CS_TEST_CHECK(true, false, "fail", __VA_ARGS__)

#define cr_expect(condition, ...) CS_TEST_CHECK(false, condition, #condition, __VA_ARGS__)
#define cr_expect_not(condition, ...) \
	CS_TEST_CHECK(false, !(condition), "not " #condition, __VA_ARGS__)
#define cr_expect_eq(a, b, ...)             CS_TEST_BINARY(false, a, ==, b, __VA_ARGS__)
#define cr_expect_neq(a, b, ...)            CS_TEST_BINARY(false, a, !=, b, __VA_ARGS__)
#define cr_expect_lt(a, b, ...)             CS_TEST_BINARY(false, a, <, b, __VA_ARGS__)
#define cr_expect_leq(a, b, ...)            CS_TEST_BINARY(false, a, <=, b, __VA_ARGS__)
#define cr_expect_gt(a, b, ...)             CS_TEST_BINARY(false, a, >, b, __VA_ARGS__)
#define cr_expect_geq(a, b, ...)            CS_TEST_BINARY(false, a, >=, b, __VA_ARGS__)
#define cr_expect_null(a, ...)              CS_TEST_BINARY(false, a, ==, NULL, __VA_ARGS__)
#define cr_expect_not_null(a, ...)          CS_TEST_BINARY(false, a, !=, NULL, __VA_ARGS__)
#define cr_expect_str_eq(a, b, ...)         CS_TEST_STRING(false, a, ==, b, __VA_ARGS__)
#define cr_expect_str_neq(a, b, ...)        CS_TEST_STRING(false, a, !=, b, __VA_ARGS__)
#define cr_expect_arr_eq(a, b, bytes, ...)  CS_TEST_BYTES(false, a, ==, b, bytes, __VA_ARGS__)
#define cr_expect_arr_neq(a, b, bytes, ...) CS_TEST_BYTES(false, a, !=, b, bytes, __VA_ARGS__)
#define cr_expect_fail(...)                 CS_TEST_CHECK(false, false, "fail", __VA_ARGS__)

#define cr_skip_test(...) cs_test_skip(" " __VA_ARGS__)
#define cr_log_info(...)  cs_test_log(" " __VA_ARGS__)
#define cr_log_warn(...)  cs_test_log(" " __VA_ARGS__)
#define cr_log_error(...) cs_test_log(" " __VA_ARGS__)

#endif
