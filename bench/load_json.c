/* SPDX-License-Identifier: MIT
 *
 * The report of a load: fio's JSON, for the tools that read it, and a few lines for people.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "load.h"

static const double percentiles[] = {
	1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 99.5, 99.9, 99.95, 99.99};

static json_t *latency_json(const struct latency *latency, bool with_percentiles)
{
	uint64_t least = latency->count ? latency->min_ns : 0;
	json_t *object = json_pack("{s:I, s:I, s:f, s:f, s:I}", "min", (json_int_t)least, "max",
		(json_int_t)latency->max_ns, "mean", latency_mean_ns(latency), "stddev",
		latency_stddev_ns(latency), "N", (json_int_t)latency->count);
	json_t *table;

	if (!with_percentiles || !latency->count)
		return object;
	table = json_object();
	for (size_t i = 0; i < sizeof(percentiles) / sizeof(percentiles[0]); i++) {
		char name[16];

		snprintf(name, sizeof(name), "%.6f", percentiles[i]);
		json_object_set_new(table, name,
			json_integer((json_int_t)latency_percentile_ns(latency, percentiles[i])));
	}
	json_object_set_new(object, "percentile", table);
	return object;
}

/* Reads, writes or trims of all jobs. */
static json_t *direction_json(
	const struct load_result *result, const struct latency *latency, const struct latency *none)
{
	uint64_t bytes = latency->count * result->bs;
	double seconds = (double)result->ns / 1e9;
	double rate = latency->count ? (double)bytes / seconds : 0;

	return json_pack("{s:I, s:I, s:I, s:I, s:f, s:I, s:I, s:i, s:i, s:o, s:o, s:o}", "io_bytes",
		(json_int_t)bytes, "io_kbytes", (json_int_t)(bytes / 1024), "bw_bytes",
		(json_int_t)rate, "bw", (json_int_t)(rate / 1024), "iops",
		latency->count ? (double)latency->count / seconds : 0, "runtime",
		(json_int_t)(latency->count ? result->ns / 1000000 : 0), "total_ios",
		(json_int_t)latency->count, "short_ios", 0, "drop_ios", 0, "slat_ns",
		latency_json(none, false), "clat_ns", latency_json(latency, true), "lat_ns",
		latency_json(latency, false));
}

static const char *rw_name(const struct load_job *job)
{
	static const char *const names[2][3] = {
		{"read", "write", "rw"}, {"randread", "randwrite", "randrw"}};

	return names[job->random][job->reads ? (job->writes ? 2 : 0) : 1];
}

static void set_number(json_t *object, const char *name, uint64_t value)
{
	char text[32];

	snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
	json_object_set_new(object, name, json_string(text));
}

static json_t *options_json(const struct load_job *job)
{
	static const char *const engines[] = {"waiting", "queue", "workers"};
	json_t *object = json_pack("{s:s, s:s, s:s}", "name", job->name, "rw", rw_name(job),
		"ioengine", engines[job->engine]);

	set_number(object, "bs", job->bs);
	set_number(object, "iodepth", job->engine == LOAD_WAIT ? 1 : job->iodepth);
	set_number(object, "numjobs", job->numjobs);
	set_number(object, "size", job->size / job->numjobs);
	if (job->reads && job->writes)
		set_number(object, "rwmixread", job->rwmixread);
	if (job->runtime_ns)
		set_number(object, "runtime", job->runtime_ns / 1000000000);
	if (job->number_ios)
		set_number(object, "number_ios", job->number_ios);
	json_object_set_new(object, "group_reporting", json_string("1"));
	return object;
}

static json_t *job_json(const struct load_job *job, const struct load_result *result)
{
	struct latency *none = bench_alloc(1, sizeof(*none));
	json_t *object;

	latency_init(none);
	object = json_pack("{s:s, s:i, s:i, s:i, s:I, s:o, s:o, s:o, s:o, s:I}", "jobname",
		job->name, "groupid", 0, "error", 0, "eta", 0, "elapsed",
		(json_int_t)(result->ns / 1000000000 + 1), "job options", options_json(job), "read",
		direction_json(result, &result->read, none), "write",
		direction_json(result, &result->write, none), "trim",
		direction_json(result, none, none), "job_runtime",
		(json_int_t)(result->ns / 1000000));
	free(none);
	return object;
}

int load_report_json(const struct load_job *job, const struct load_result *result, const char *line,
	json_t *more, const char *path)
{
	char version[64];
	json_t *root;
	int err;

	snprintf(version, sizeof(version), "cowsnap-bench-%s", cowsnap_version());
	root = json_pack("{s:s, s:I, s:s, s:[o], s:o*}", "fio version", version, "timestamp",
		(json_int_t)time(NULL), "command", line, "jobs", job_json(job, result), "cowsnap",
		more);
	if (!root)
		return bench_check(-ENOMEM, "the report");
	err = path ? json_dump_file(root, path, JSON_INDENT(2))
		   : json_dumpf(root, stdout, JSON_INDENT(2)) || putchar('\n') == EOF ||
			      fflush(stdout);
	json_decref(root);
	return err ? bench_check(-EIO, path ? path : "the report") : 0;
}

static void direction_text(
	const char *name, const struct load_result *result, const struct latency *latency)
{
	double seconds = (double)result->ns / 1e9;

	if (!latency->count)
		return;
	printf("  %s: IOPS=%.0f, BW=%.1fMiB/s (%llu requests in %.3fs)\n", name,
		(double)latency->count / seconds,
		(double)(latency->count * result->bs) / seconds / 1048576,
		(unsigned long long)latency->count, seconds);
	printf("    lat (usec): min=%.1f, max=%.1f, avg=%.2f, stdev=%.2f\n",
		(double)latency->min_ns / 1e3, (double)latency->max_ns / 1e3,
		latency_mean_ns(latency) / 1e3, latency_stddev_ns(latency) / 1e3);
	printf("    lat percentiles (usec): 50=%.1f, 90=%.1f, 99=%.1f, 99.9=%.1f, 99.99=%.1f\n",
		(double)latency_percentile_ns(latency, 50) / 1e3,
		(double)latency_percentile_ns(latency, 90) / 1e3,
		(double)latency_percentile_ns(latency, 99) / 1e3,
		(double)latency_percentile_ns(latency, 99.9) / 1e3,
		(double)latency_percentile_ns(latency, 99.99) / 1e3);
}

void load_report_text(const struct load_job *job, const struct load_result *result)
{
	printf("%s: rw=%s, bs=%llu, iodepth=%u, jobs=%u\n", job->name, rw_name(job),
		(unsigned long long)job->bs, job->engine == LOAD_WAIT ? 1 : job->iodepth,
		job->numjobs);
	direction_text("read", result, &result->read);
	direction_text("write", result, &result->write);
}
