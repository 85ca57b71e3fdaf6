/* SPDX-License-Identifier: MIT */
#include "crash/sample.h"
#include "support/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define EACH       150u
#define EACH_STALE 10u

bool sample_wanted(bool stale)
{
	static uint64_t counts[2];
	uint64_t each = stale ? EACH_STALE : EACH;

	return getenv("COWSNAP_CRASH_IMAGES") && counts[stale]++ % each == each / 2;
}

/* One line for each image in index: file, verdict, records, whether there is a stale tail, bytes
 * of the origin. */
void sample_write(const struct sample *sample)
{
	static unsigned number;
	const char *directory = getenv("COWSNAP_CRASH_IMAGES");
	char name[128], path[1024];
	FILE *file;

	/* Criterion runs each test in a process of its own. */
	snprintf(name, sizeof(name), "%s-%d-%u.img", sample->workload, (int)getpid(), number++);
	snprintf(path, sizeof(path), "%s/%s", directory, name);
	file = fopen(path, "wb");
	cr_assert_not_null(file, "%s", path);
	cr_assert_eq(fwrite(sample->store, 1, sample->store_bytes, file), sample->store_bytes);
	cr_assert_eq(fclose(file), 0);
	snprintf(path, sizeof(path), "%s/index", directory);
	file = fopen(path, "ab");
	cr_assert_not_null(file, "%s", path);
	fprintf(file, "%s %s %llu %d %llu\n", name, sample->verdict,
		(unsigned long long)sample->records, sample->stale,
		(unsigned long long)sample->origin_bytes);
	cr_assert_eq(fclose(file), 0);
}
