/* SPDX-License-Identifier: MIT
 *
 * The stand-in for Criterion: the list of cases, the run, the verdict. See support/standin.h.
 *
 *     PROGRAM [--filter SUITE/NAME] [--list]     the pattern as in Criterion: * ? [] @(a|b)
 *
 * Exit status: 0 if at least one case ran and none failed.
 */
#include "support/standin.h"

#include <fnmatch.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static struct cs_test_case *first_case;
static struct cs_test_case **last_link = &first_case;
static const struct cs_test_case *running;
static atomic_uint failed_checks;
static jmp_buf skip_return;

void cs_test_register(struct cs_test_case *test)
{
	*last_link = test;
	last_link = &test->next;
}

void cs_test_fail(const char *file, int line, bool fatal, const char *what, const char *format, ...)
{
	va_list args;

	atomic_fetch_add(&failed_checks, 1);
	flockfile(stderr);
	fprintf(stderr, "[FAIL] %s/%s: %s:%d: %s:", running->suite, running->name, file, line,
		what);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	funlockfile(stderr);
	/* Other threads of the case may be running: there is no way back into a sane process. */
	if (fatal) {
		fprintf(stderr, "[====] Stopped at the first failure\n");
		fflush(NULL);
		_exit(1);
	}
}

void cs_test_skip(const char *format, ...)
{
	va_list args;

	fprintf(stderr, "[SKIP] %s/%s:", running->suite, running->name);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	longjmp(skip_return, 1);
}

void cs_test_log(const char *format, ...)
{
	va_list args;

	flockfile(stderr);
	fputs("[----]", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	funlockfile(stderr);
}

static const struct cs_test_options *suite_options(const char *suite)
{
	static const struct cs_test_options none;

	for (const struct cs_test_case *t = first_case; t; t = t->next) {
		if (!t->name && strcmp(t->suite, suite) == 0)
			return &t->options;
	}
	return &none;
}

static bool selected(const struct cs_test_case *test, const char *filter)
{
	char path[256];

	if (!test->name)
		return false;
	snprintf(path, sizeof(path), "%s/%s", test->suite, test->name);
	return fnmatch(filter, path, FNM_EXTMATCH) == 0;
}

static void call(void (*function)(void))
{
	if (function)
		function();
}

/* Returns: false if the case asked to be skipped. */
static bool run_case(const struct cs_test_case *test)
{
	const struct cs_test_options *suite = suite_options(test->suite);

	running = test;
	fprintf(stderr, "[RUN ] %s/%s\n", test->suite, test->name);
	if (setjmp(skip_return) != 0)
		return false;
	call(suite->init);
	call(test->options.init);
	test->body();
	call(test->options.fini);
	call(suite->fini);
	return true;
}

static int usage(const char *program)
{
	fprintf(stderr, "usage: %s [--list] [--filter SUITE/NAME]\n", program);
	return 2;
}

int main(int argc, char **argv)
{
	const char *filter = "*";
	bool list = false;
	unsigned int tested = 0;
	unsigned int skipped = 0;
	unsigned int failing = 0;

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--list") == 0)
			list = true;
		else if (strcmp(argv[i], "--filter") == 0 && i + 1 < argc)
			filter = argv[++i];
		else
			return usage(argv[0]);
	}
	for (const struct cs_test_case *t = first_case; t; t = t->next) {
		unsigned int before = atomic_load(&failed_checks);

		if (!selected(t, filter))
			continue;
		if (list)
			printf("%s/%s\n", t->suite, t->name);
		else if (t->options.disabled || suite_options(t->suite)->disabled || !run_case(t))
			skipped++;
		else
			tested++;
		failing += atomic_load(&failed_checks) != before;
	}
	if (list)
		return 0;
	fprintf(stderr, "[====] Synthesis: Tested: %u | Passing: %u | Failing: %u | Crashing: 0\n",
		tested, tested - failing, failing);
	if (skipped > 0)
		fprintf(stderr, "[====] Skipped: %u\n", skipped);
	if (tested == 0)
		fprintf(stderr, "[====] No test ran\n");
	return tested > 0 && failing == 0 ? 0 : 1;
}
