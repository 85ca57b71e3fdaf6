/* SPDX-License-Identifier: MIT */
#include "support/test.h"

#include "obs.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct logged {
	int lines;
	enum cowsnap_log_level level;
	char text[512];
};

static void keep_line(void *user, enum cowsnap_log_level level, const char *message)
{
	struct logged *logged = user;

	logged->lines++;
	logged->level = level;
	snprintf(logged->text, sizeof(logged->text), "%s", message);
}

static struct logged logged;
static const struct cowsnap_log log_table = {
	.size = sizeof(log_table), .user = &logged, .write = keep_line};
static const struct cs_base loud = {.log = &log_table};
static const struct cs_base silent;

/* An options struct that has grown once. */
struct options_first {
	size_t size;
	uint32_t flags;
	uint32_t count;
};

struct options {
	size_t size;
	uint32_t flags;
	uint32_t count;
	uint64_t added;
};

struct options_later {
	struct options known;
	uint64_t later[2];
};

#define FIRST_SIZE sizeof(struct options_first)

Test(log, without_a_log_nothing_happens)
{
	cs_log(&silent, COWSNAP_LOG_ERROR, "unheard %d", 1);
}

Test(log, a_line_is_formatted)
{
	logged = (struct logged){0};
	cs_log(&loud, COWSNAP_LOG_WARNING, "store %s is full: %d of %d", "a", 3, 3);
	cr_assert_eq(logged.lines, 1);
	cr_assert_eq(logged.level, COWSNAP_LOG_WARNING);
	cr_assert_str_eq(logged.text, "store a is full: 3 of 3");
}

Test(log, a_long_line_is_cut_at_255_bytes)
{
	char name[1000];

	memset(name, 'n', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	logged = (struct logged){0};
	cs_log(&loud, COWSNAP_LOG_INFO, "%s", name);
	cr_assert_eq(strlen(logged.text), 255);
}

static uint64_t fixed_time(void *user)
{
	return *(uint64_t *)user;
}

Test(clock, the_hosts_clock_is_asked)
{
	uint64_t now_ns = 12345;
	const struct cowsnap_clock clock = {
		.size = sizeof(clock), .user = &now_ns, .now_ns = fixed_time};
	const struct cs_base base = {.clock = &clock};

	cr_assert_eq(cs_now_ns(&base), 12345);
	now_ns = 99;
	cr_assert_eq(cs_now_ns(&base), 99);
}

Test(clock, the_default_does_not_go_back)
{
	uint64_t before_ns = cs_now_ns(&silent);

	cr_assert_gt(before_ns, 0);
	cr_assert_geq(cs_now_ns(&silent), before_ns);
}

Test(options, none_means_defaults)
{
	struct options into = {0};

	cr_assert_eq(cs_options_copy(&loud, "o", &into, sizeof(into), NULL, FIRST_SIZE), 0);
	cr_assert_eq(into.size, 0);
}

Test(options, all_known_sizes_are_copied)
{
	struct options into = {0};
	const struct options whole = {.size = sizeof(whole), .flags = 1, .count = 2, .added = 3};
	const struct options_first old = {.size = sizeof(old), .flags = 4, .count = 5};

	cr_assert_eq(cs_options_copy(&loud, "o", &into, sizeof(into), &whole, FIRST_SIZE), 0);
	cr_assert_eq(into.flags, 1);
	cr_assert_eq(into.added, 3);
	into = (struct options){0};
	cr_assert_eq(cs_options_copy(&loud, "o", &into, sizeof(into), &old, FIRST_SIZE), 0);
	cr_assert_eq(into.count, 5);
	cr_assert_eq(into.added, 0, "what an old caller does not know keeps its default");
}

Test(options, too_small_is_refused_in_words)
{
	struct options into = {0};
	const size_t sizes[] = {0, 1, FIRST_SIZE - 1};

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		const struct options from = {.size = sizes[i], .flags = 1};

		logged = (struct logged){0};
		cr_assert_eq(cs_options_copy(
				     &loud, "take options", &into, sizeof(into), &from, FIRST_SIZE),
			-EINVAL);
		cr_assert_eq(logged.lines, 1);
		cr_assert_not_null(strstr(logged.text, "take options"), "%s", logged.text);
		cr_assert_eq(into.flags, 0, "nothing is copied");
	}
}

Test(options, a_larger_struct_may_have_a_zero_tail)
{
	struct options into = {0};
	struct options_later from = {.known = {.size = sizeof(from), .added = 9}};

	cr_assert_eq(cs_options_copy(&loud, "o", &into, sizeof(into), &from, FIRST_SIZE), 0);
	cr_assert_eq(into.added, 9);
}

Test(options, a_larger_struct_with_a_tail_is_refused)
{
	struct options into = {0};
	struct options_later from = {.known = {.size = sizeof(from), .added = 9}, .later = {0, 1}};

	logged = (struct logged){0};
	cr_assert_eq(cs_options_copy(&loud, "o", &into, sizeof(into), &from, FIRST_SIZE), -E2BIG);
	cr_assert_eq(into.added, 0);
	cr_assert_eq(logged.lines, 1);
}

Test(options, an_absurd_size_is_refused_unread)
{
	struct options into = {0};
	struct options from = {.added = 9};

	from.size = SIZE_MAX;
	cr_assert_eq(cs_options_copy(&loud, "o", &into, sizeof(into), &from, FIRST_SIZE), -E2BIG);
	from.size = 4097;
	cr_assert_eq(cs_options_copy(&loud, "o", &into, sizeof(into), &from, FIRST_SIZE), -E2BIG);
	cr_assert_eq(into.added, 0);
}

Test(result, no_more_than_the_callers_size_is_written)
{
	const struct options from = {.size = 1, .flags = 2, .count = 3, .added = 4};
	struct options to = {.added = 77};

	cr_assert_eq(cs_result_copy(&to, FIRST_SIZE, &from, sizeof(from)), 0);
	cr_assert_eq(to.count, 3);
	cr_assert_eq(to.added, 77);
	cr_assert_eq(cs_result_copy(&to, sizeof(to), &from, sizeof(from)), 0);
	cr_assert_eq(to.added, 4);
	cr_assert_eq(cs_result_copy(&to, 0, &from, sizeof(from)), -EINVAL);
	cr_assert_eq(cs_result_copy(&to, sizeof(to) + 1, &from, sizeof(from)), -EINVAL);
}

Test(range, each_way_to_be_wrong_has_its_error)
{
	cr_assert_eq(cs_range_check(0, 1, 1), 0);
	cr_assert_eq(cs_range_check(9, 1, 10), 0);
	cr_assert_eq(cs_range_check(0, 0, 10), -EINVAL);
	cr_assert_eq(cs_range_check(11, 0, 10), -EINVAL);
	cr_assert_eq(cs_range_check(10, 1, 10), -ERANGE);
	cr_assert_eq(cs_range_check(0, 11, 10), -ERANGE);
	cr_assert_eq(cs_range_check(UINT64_MAX, 1, 10), -EOVERFLOW);
	cr_assert_eq(cs_range_check(1, UINT64_MAX, 10), -EOVERFLOW);
	cr_assert_eq(cs_range_check(UINT64_MAX - 1, 1, UINT64_MAX), 0);
}
