/* SPDX-License-Identifier: MIT
 *
 * cowsnap-bench: what the library costs. docs/bench.md says what each scenario means.
 */
#include "bench.h"

#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "load.h"

#ifdef BENCH_JEMALLOC
#include <cowsnap-jemalloc.h>
#endif

struct scenario {
	const char *name;
	int (*run)(struct bench_report *report, const struct bench_options *options);
};

static const struct scenario scenarios[] = {
	{"hook", bench_hook},
	{"first-touch", bench_first_touch},
	{"take", bench_take},
	{"snapread", bench_snapread},
	{"gate", bench_gate},
	{"map", bench_map},
	{"commit", bench_commit},
	{"persist", bench_persist},
	{"preimage", bench_preimage},
	{"open", bench_open},
	{"handover", bench_handover},
	{"uring", bench_uring},
	{"ladder", bench_ladder},
	{"changes", bench_changes},
	{"release", bench_release},
	{"drop", bench_drop_many},
	{"merge", bench_merge},
};

#define SCENARIO_COUNT (sizeof(scenarios) / sizeof(scenarios[0]))

struct arguments {
	struct bench_options options;
	struct load_command load; /* scenario load, which has a report of its own */
	const char *scenario;
	const char *json_path;
	bool json;
};

enum {
	KEY_OPS = 256,
	KEY_VARIANT,
	KEY_ALLOCATOR,
	KEY_NO_PIN,
	KEY_CPU_TIME,
	KEY_QUICK,
	KEY_IODEPTH,
};

static const struct argp_option option_table[] = {
	{"repeat", 'r', "N", 0, "Rounds that count, 1 to 1000 (default 7, with --quick 3)", 0},
	{"threads", 't', "N", 0,
		"Threads of the variants with several, 2 to 32 (default 2); ladder: the most", 0},
	{"iodepth", KEY_IODEPTH, "N", 0,
		"ladder, load: requests in flight of each thread, 1 to 4096", 0},
	{"ops", KEY_OPS, "N", 0,
		"hook, gate, commit: operations per thread and round; map, open: exceptions", 0},
	{"variant", KEY_VARIANT, "PATTERN", 0, "Only variants whose name matches", 0},
	{"allocator", KEY_ALLOCATOR, "libc|jemalloc", 0, "Memory of the library's objects", 0},
	{"quick", KEY_QUICK, NULL, 0, "Small sizes: does it run? The figures mean little", 0},
	{"cpu-time", KEY_CPU_TIME, NULL, 0,
		"hook, first-touch, snapread, gate, persist, open: count the time that threads had "
		"a CPU",
		0},
	{"no-pin", KEY_NO_PIN, NULL, 0, "Do not pin threads to CPUs", 0},
	{"json", 'j', "FILE", OPTION_ARG_OPTIONAL,
		"JSON on standard output, or to FILE with the table on standard output", 0},
	{0},
};

static uint64_t parse_number(
	struct argp_state *state, const char *what, const char *text, uint64_t least, uint64_t most)
{
	char *end;
	unsigned long long value;

	errno = 0;
	value = strtoull(text, &end, 10);
	if (text[0] < '0' || text[0] > '9' || *end || errno || value < least || value > most)
		argp_error(state, "%s: '%s' is not a number from %llu to %llu", what, text,
			(unsigned long long)least, (unsigned long long)most);
	return value;
}

static void set_allocator(struct argp_state *state, struct bench_options *options, const char *name)
{
	options->allocator_name = name;
	if (!strcmp(name, "libc")) {
		options->allocator = NULL;
		return;
	}
#ifdef BENCH_JEMALLOC
	if (!strcmp(name, "jemalloc")) {
		options->allocator = cowsnap_jemalloc();
		return;
	}
#endif
	argp_error(state, "--allocator: '%s' is not known to this build", name);
}

static void set_scenario(struct argp_state *state, struct arguments *args, const char *name)
{
	bool known = !strcmp(name, "all") || !strcmp(name, "load");

	if (args->scenario)
		argp_error(state, "one scenario at a time, not '%s' too", name);
	for (size_t i = 0; i < SCENARIO_COUNT; i++)
		known = known || !strcmp(name, scenarios[i].name);
	if (!known)
		argp_error(state, "no scenario is called '%s'", name);
	args->scenario = name;
}

static error_t parse_option(int key, char *text, struct argp_state *state)
{
	struct arguments *args = state->input;
	struct bench_options *options = &args->options;

	switch (key) {
	case 'r':
		options->repeat = (unsigned)parse_number(state, "--repeat", text, 1, 1000);
		return 0;
	case 't':
		options->threads = (unsigned)parse_number(state, "--threads", text, 2, 32);
		options->threads_given = true;
		return 0;
	case KEY_OPS:
		options->ops = parse_number(state, "--ops", text, 1, UINT64_C(1) << 40);
		return 0;
	case KEY_IODEPTH:
		options->iodepth = (unsigned)parse_number(state, "--iodepth", text, 1, 4096);
		return 0;
	case KEY_VARIANT:
		options->variant = text;
		return 0;
	case KEY_ALLOCATOR:
		set_allocator(state, options, text);
		return 0;
	case KEY_QUICK:
		options->quick = true;
		return 0;
	case KEY_CPU_TIME:
		options->cpu_time = true;
		return 0;
	case KEY_NO_PIN:
		options->pin = false;
		return 0;
	case 'j':
		args->json = true;
		args->json_path = text;
		return 0;
	case ARGP_KEY_ARG:
		set_scenario(state, args, text);
		return 0;
	case ARGP_KEY_INIT:
		state->child_inputs[0] = &args->load;
		return 0;
	case ARGP_KEY_END:
		if (!args->scenario)
			argp_error(state, "which scenario?");
		if (args->load.any && strcmp(args->scenario, "load"))
			argp_error(state, "'%s' has no options of load", args->scenario);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static const char scenario_help[] =
	"Measure what cowsnap costs.\v"
	"SCENARIO is one of hook, first-touch, take, snapread, gate, map, commit, persist, open, "
	"handover, uring, ladder, changes, preimage, release, drop, merge, load, all. Exit status: "
	"0; 1 if the library or the "
	"machine failed; 64 for "
	"wrong arguments. A "
	"missed target is not a failure.";

static char *join_command(int argc, char **argv)
{
	size_t bytes = 1;
	char *command;

	for (int i = 0; i < argc; i++)
		bytes += strlen(argv[i]) + 1;
	command = bench_alloc(1, bytes);
	for (int i = 0; i < argc; i++) {
		strcat(command, argv[i]);
		if (i + 1 < argc)
			strcat(command, " ");
	}
	return command;
}

static bool any_figures(const struct bench_report *report)
{
	for (const struct bench_group *group = report->first; group; group = group->next)
		for (size_t i = 0; i < group->variant_count; i++)
			if (group->variants[i].samples.count)
				return true;
	return false;
}

/* One that fails, for want of fio perhaps, does not cost the figures of the others. */
static int run_scenarios(const struct arguments *args, struct bench_report *report)
{
	int first_err = 0;

	for (size_t i = 0; i < SCENARIO_COUNT; i++) {
		int err;

		if (strcmp(args->scenario, "all") && strcmp(args->scenario, scenarios[i].name))
			continue;
		err = scenarios[i].run(report, &args->options);
		if (err)
			fprintf(stderr, "cowsnap-bench: scenario %s: %s\n", scenarios[i].name,
				strerror(-err));
		first_err = first_err ? first_err : err;
	}
	return first_err;
}

static int measure(const struct arguments *args, const char *command)
{
	struct bench_report report;
	int err;

	bench_report_init(&report);
	err = run_scenarios(args, &report);
	if (!err && !any_figures(&report)) {
		fprintf(stderr, "cowsnap-bench: no variant matches '%s'\n", args->options.variant);
		err = -ENOENT;
	}
	if (any_figures(&report)) {
		int rc = 0;

		if (!args->json || args->json_path)
			bench_report_table(&report, command, &args->options);
		if (args->json)
			rc = bench_report_json(&report, command, &args->options, args->json_path);
		err = err ? err : rc;
	}
	bench_report_free(&report);
	return err;
}

int main(int argc, char **argv)
{
	static const struct argp_child children[] = {{&load_argp, 0, NULL, 10}, {0}};
	static const struct argp argp = {
		.options = option_table,
		.parser = parse_option,
		.args_doc = "SCENARIO",
		.doc = scenario_help,
		.children = children,
	};
	struct arguments args = {.options = {.threads = 2, .pin = true}};
	char *command = join_command(argc, argv);
	int err;

	load_command_init(&args.load);
	argp_err_exit_status = EX_USAGE;
#ifdef BENCH_JEMALLOC
	args.options.allocator_name = "jemalloc";
	args.options.allocator = cowsnap_jemalloc();
#else
	args.options.allocator_name = "libc";
#endif
	argp_parse(&argp, argc, argv, 0, NULL, &args);
	if (!args.options.repeat)
		args.options.repeat = args.options.quick ? 3 : 7;
	if (!strcmp(args.scenario, "load"))
		err = load_command_run(
			&args.options, &args.load, command, args.json, args.json_path);
	else
		err = measure(&args, command);
	free(command);
	return err ? EXIT_FAILURE : EXIT_SUCCESS;
}
