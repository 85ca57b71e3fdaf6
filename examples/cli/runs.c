/* SPDX-License-Identifier: MIT
 *
 * The runs of a map in order of the origin. cowsnap_map_next() looks at each 64 chunks on its way,
 * and a store whose origin is not known may have records 2^53 chunks apart: so the groups of 64
 * that hold anything are found first.
 */
#include "cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define GROUP 64u

static void add(struct cli_runs *runs, uint64_t group)
{
	if (runs->failed || (runs->count && runs->groups[runs->count - 1] == group))
		return;
	if (runs->count == runs->room) {
		size_t room = runs->room ? 2 * runs->room : 1024;
		uint64_t *groups = reallocarray(runs->groups, room, sizeof(*groups));

		if (!groups) {
			runs->failed = true;
			return;
		}
		runs->groups = groups;
		runs->room = room;
	}
	runs->groups[runs->count++] = group;
}

static void visit(void *user, const struct cowsnap_run *run)
{
	for (uint64_t group = run->first / GROUP; group <= (run->first + run->count - 1) / GROUP;
		group++)
		add(user, group);
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

int cli_runs_init(struct cli_runs *runs, const struct cowsnap_map *map)
{
	uint64_t cursor = 0;
	size_t kept = 0;

	*runs = (struct cli_runs){.map = map};
	while (cowsnap_map_walk(map, &cursor, UINT64_MAX, visit, runs))
		;
	if (runs->failed) {
		cli_runs_free(runs);
		return -ENOMEM;
	}
	if (runs->count)
		qsort(runs->groups, runs->count, sizeof(*runs->groups), compare);
	for (size_t i = 0; i < runs->count; i++)
		if (!kept || runs->groups[kept - 1] != runs->groups[i])
			runs->groups[kept++] = runs->groups[i];
	runs->count = kept;
	return 0;
}

/* The next groups that follow each other. */
static bool next_span(struct cli_runs *runs)
{
	size_t i = runs->next;

	if (i == runs->count)
		return false;
	runs->first = runs->groups[i] * GROUP;
	while (i + 1 < runs->count && runs->groups[i + 1] == runs->groups[i] + 1)
		i++;
	runs->end = (runs->groups[i] + 1) * GROUP;
	runs->next = i + 1;
	return true;
}

bool cli_runs_next(struct cli_runs *runs, struct cowsnap_run *run)
{
	do {
		if (runs->first < runs->end &&
			cowsnap_map_next(runs->map, runs->first, runs->end, run)) {
			runs->first = run->first + run->count;
			return true;
		}
	} while (next_span(runs));
	runs->first = runs->end;
	return false;
}

void cli_runs_free(struct cli_runs *runs)
{
	free(runs->groups);
	runs->groups = NULL;
}
