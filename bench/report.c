/* SPDX-License-Identifier: MIT
 *
 * The report of cowsnap-bench: a table for people, JSON for programs.
 */
#include "bench.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#define LINE_MAX_BYTES 160

#if defined(__clang__)
#define COMPILER "clang " __clang_version__
#else
#define COMPILER "gcc " __VERSION__
#endif

void bench_report_init(struct bench_report *report)
{
	report->first = NULL;
	report->last = &report->first;
}

void bench_report_free(struct bench_report *report)
{
	struct bench_group *group = report->first;

	while (group) {
		struct bench_group *next = group->next;

		for (size_t i = 0; i < group->variant_count; i++) {
			free(group->variants[i].samples.values);
			free(group->variants[i].rounds.values);
			for (size_t k = 0; k < group->detail_count; k++)
				free(group->variants[i].details[k].values);
		}
		for (size_t i = 0; i < group->ratio_count; i++)
			free(group->ratios[i].rounds.values);
		free(group);
		group = next;
	}
	bench_report_init(report);
}

/* The first line of a file that has the prefix, without it; "unknown" if there is none. */
static void file_line(const char *path, const char *prefix, char line[static LINE_MAX_BYTES])
{
	char text[LINE_MAX_BYTES];
	FILE *file = fopen(path, "re");

	strcpy(line, "unknown");
	while (file && fgets(text, sizeof(text), file)) {
		const char *from = text + strlen(prefix);

		if (strncmp(text, prefix, strlen(prefix)))
			continue;
		from += strspn(from, " \t:");
		snprintf(line, LINE_MAX_BYTES, "%.*s", (int)strcspn(from, "\n"), from);
		break;
	}
	if (file)
		fclose(file);
}

static json_t *machine_json(const struct bench_options *options)
{
	char cpu[LINE_MAX_BYTES];
	char huge[LINE_MAX_BYTES];
	char kernel[LINE_MAX_BYTES];
	double load = -1;
	struct utsname name;

	uname(&name);
	getloadavg(&load, 1);
	snprintf(kernel, sizeof(kernel), "%.30s %.100s", name.sysname, name.release);
	file_line("/proc/cpuinfo", "model name", cpu);
	file_line("/sys/kernel/mm/transparent_hugepage/enabled", "", huge);
	return json_pack("{s:i, s:f, s:s, s:s, s:s, s:s, s:s}", "cores",
		(int)sysconf(_SC_NPROCESSORS_ONLN), "load_1min", load, "cpu", cpu, "kernel", kernel,
		"compiler", COMPILER, "huge_pages", huge, "allocator", options->allocator_name);
}

static bool target_met(const struct bench_target *target, double value)
{
	return target->bound == BENCH_AT_MOST ? value <= target->value : value >= target->value;
}

/* ---- Table ---------------------------------------------------------------------------------- */

static int decimals(double value)
{
	if (value < 10)
		return 3;
	return value < 1000 ? 1 : 0;
}

/* NULL: of a ratio, which has none. */
static void print_details(const struct bench_group *group, const struct bench_variant *variant)
{
	for (size_t i = 0; i < group->detail_count; i++) {
		double value = variant ? bench_median(&variant->details[i]) : NAN;

		if (isnan(value))
			printf(" %10s", variant ? "-" : "");
		else
			printf(" %10.*f", decimals(value), value);
	}
}

static void print_figures(const struct bench_group *group, const struct bench_variant *variant,
	const char *name, const struct bench_samples *samples, const struct bench_target *target)
{
	double median = bench_median(samples);
	double least = bench_minimum(samples);
	double most = bench_maximum(samples);

	printf("  %-50s %10.*f %10.*f %10.*f", name, decimals(median), median, decimals(least),
		least, decimals(most), most);
	print_details(group, variant);
	if (target->bound != BENCH_NO_TARGET)
		printf("   %s %g %s", target->bound == BENCH_AT_MOST ? "<=" : ">=", target->value,
			target_met(target, median) ? "met" : "MISSED");
	putchar('\n');
}

static void print_group(const struct bench_group *group)
{
	bool any = false;

	for (size_t i = 0; i < group->variant_count; i++)
		any = any || group->variants[i].samples.count;
	if (!any)
		return;
	printf("\n%s: %s, %s\n", group->scenario, group->name, group->unit);
	printf("  %-50s %10s %10s %10s", "variant", "median", "min", "max");
	for (size_t i = 0; i < group->detail_count; i++)
		printf(" %10s", group->detail_names[i]);
	printf("   %s\n", "target");
	for (size_t i = 0; i < group->variant_count; i++) {
		const struct bench_variant *v = &group->variants[i];

		if (v->samples.count)
			print_figures(group, v, v->name, &v->samples, &v->target);
	}
	for (size_t i = 0; i < group->ratio_count; i++) {
		const struct bench_ratio *r = &group->ratios[i];

		if (r->rounds.count)
			print_figures(group, NULL, r->name, &r->rounds, &r->target);
	}
}

void bench_report_table(
	const struct bench_report *report, const char *command, const struct bench_options *options)
{
	json_t *machine = machine_json(options);
	const char *key;
	json_t *value;

	printf("command: %s\n", command);
	printf("machine:");
	json_object_foreach(machine, key, value)
	{
		if (json_is_integer(value))
			printf(" %lld %s;", (long long)json_integer_value(value), key);
		else if (json_is_real(value))
			printf(" %s %.2f;", key, json_real_value(value));
		else
			printf(" %s %s;", key, json_string_value(value));
	}
	printf(" cowsnap %s\n", cowsnap_version());
	printf("rounds: %u, after one that warms up; variants in turn%s%s\n", options->repeat,
		options->cpu_time ? "; CPU time, but for takes and drains" : "",
		options->quick ? "; --quick: sizes too small for figures" : "");
	json_decref(machine);
	for (const struct bench_group *group = report->first; group; group = group->next)
		print_group(group);
}

/* ---- JSON ----------------------------------------------------------------------------------- */

static json_t *figures_json(
	const char *name, const struct bench_samples *samples, const struct bench_target *target)
{
	double median = bench_median(samples);
	json_t *object = json_pack("{s:s, s:f, s:f, s:f, s:I}", "name", name, "median", median,
		"min", bench_minimum(samples), "max", bench_maximum(samples), "samples",
		(json_int_t)samples->count);

	if (target->bound == BENCH_NO_TARGET)
		return object;
	json_object_set_new(object, "target",
		json_pack("{s:s, s:f}", "bound",
			target->bound == BENCH_AT_MOST ? "at most" : "at least", "value",
			target->value));
	json_object_set_new(object, "met", json_boolean(target_met(target, median)));
	return object;
}

static json_t *variant_json(const struct bench_group *group, const struct bench_variant *v)
{
	json_t *object = figures_json(v->name, &v->samples, &v->target);
	json_t *details;

	if (!group->detail_count)
		return object;
	details = json_object();
	for (size_t i = 0; i < group->detail_count; i++) {
		double value = bench_median(&v->details[i]);

		if (!isnan(value))
			json_object_set_new(details, group->detail_names[i], json_real(value));
	}
	json_object_set_new(object, "details", details);
	return object;
}

static json_t *group_json(const struct bench_group *group)
{
	json_t *variants = json_array();
	json_t *ratios = json_array();

	for (size_t i = 0; i < group->variant_count; i++) {
		const struct bench_variant *v = &group->variants[i];

		if (v->samples.count)
			json_array_append_new(variants, variant_json(group, v));
	}
	for (size_t i = 0; i < group->ratio_count; i++) {
		const struct bench_ratio *r = &group->ratios[i];

		if (r->rounds.count)
			json_array_append_new(
				ratios, figures_json(r->name, &r->rounds, &r->target));
	}
	return json_pack("{s:s, s:s, s:s, s:o, s:o}", "scenario", group->scenario, "name",
		group->name, "unit", group->unit, "variants", variants, "ratios", ratios);
}

int bench_report_json(const struct bench_report *report, const char *command,
	const struct bench_options *options, const char *path)
{
	json_t *groups = json_array();
	json_t *root;
	int err;

	for (const struct bench_group *group = report->first; group; group = group->next)
		json_array_append_new(groups, group_json(group));
	root = json_pack("{s:s, s:s, s:s, s:i, s:b, s:b, s:o, s:o}", "program", "cowsnap-bench",
		"version", cowsnap_version(), "command", command, "rounds", (int)options->repeat,
		"quick", options->quick, "cpu_time", options->cpu_time, "machine",
		machine_json(options), "groups", groups);
	if (!root) {
		fprintf(stderr, "cowsnap-bench: cannot make the report\n");
		return -ENOMEM;
	}
	if (path)
		err = json_dump_file(root, path, JSON_INDENT(2));
	else
		err = json_dumpf(root, stdout, JSON_INDENT(2)) || putchar('\n') == EOF ||
		      fflush(stdout);
	json_decref(root);
	if (err) {
		fprintf(stderr, "cowsnap-bench: cannot write %s\n", path ? path : "the report");
		return -EIO;
	}
	return 0;
}
