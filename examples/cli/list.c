/* SPDX-License-Identifier: MIT
 *
 * cowsnap dump, cowsnap extents: what a store holds, as a list of any length.
 */
#include "cli.h"

static void dump_run(void *user, uint64_t number, const struct cowsnap_run *run)
{
	struct cli_list *list = user;

	for (uint64_t i = 0; i < run->count; i++) {
		cli_list_item(list);
		cli_out(list->json ? "{\"record\": %llu, \"origin\": %llu, \"store\": %llu}"
				   : "%llu %llu %llu\n",
			(unsigned long long)(number + i), (unsigned long long)(run->first + i),
			(unsigned long long)(run->location + i));
	}
}

/* The end of a list: what the report says, and @name: @bytes if there is one. */
static void end_list(struct cli_list *list, const struct cli_look *look, int status,
	const char *name, uint64_t bytes)
{
	json_t *tail = cli_report_json(&look->report, status);

	if (name)
		json_object_set_new(tail, name, cli_json_number(bytes));
	cli_list_end(list, tail);
}

int cli_dump(struct cli *cli)
{
	struct cli_list list = {
		.path = cli->store,
		.name = "records",
		.title = "# record origin store",
		.json = cli->json,
	};
	struct cli_look look = {.visit = dump_run, .visit_user = &list};
	int status = cli_look(cli, &look);

	/* What has begun is ended, so that it is a document. */
	if (list.begun || (status != CLI_IO && status != CLI_WRONG_CALL))
		end_list(&list, &look, status, NULL, 0);
	return status;
}

struct extents {
	struct cli_list list;
	uint64_t chunk_size_bytes;
	uint64_t origin_bytes;
	uint64_t changed_bytes;
	uint64_t first, end; /* chunks of the one that is being put together; end 0: none */
};

static void out_extent(struct extents *extents)
{
	uint64_t offset = extents->first * extents->chunk_size_bytes;
	uint64_t end = extents->end * extents->chunk_size_bytes;

	if (!extents->end)
		return;
	/* The last chunk of an origin may be cut short. */
	if (extents->origin_bytes && end > extents->origin_bytes)
		end = extents->origin_bytes;
	extents->changed_bytes += end - offset;
	cli_list_item(&extents->list);
	cli_out(extents->list.json ? "{\"offset\": %llu, \"length\": %llu}" : "%llu %llu\n",
		(unsigned long long)offset, (unsigned long long)(end - offset));
}

static int out_extents(struct extents *extents, const struct cowsnap_map *map)
{
	struct cowsnap_run run;
	struct cli_runs runs;
	int rc = cli_runs_init(&runs, map);

	if (rc)
		return rc;
	while (cli_runs_next(&runs, &run)) {
		if (!extents->end || run.first != extents->end) {
			out_extent(extents);
			extents->first = run.first;
		}
		extents->end = run.first + run.count;
	}
	out_extent(extents);
	cli_runs_free(&runs);
	return 0;
}

int cli_extents(struct cli *cli)
{
	struct extents extents = {.list = {
					  .path = cli->store,
					  .name = "extents",
					  .title = "# offset length",
					  .json = cli->json,
				  }};
	struct cli_look look = {0};
	int status;
	int rc = cowsnap_map_create(cli->allocator, &look.map);

	if (rc)
		return cli_error_of(cli, cli->store, "extents", rc);
	status = cli_look(cli, &look);
	extents.chunk_size_bytes = look.report.chunk_size_bytes;
	extents.origin_bytes = look.origin_bytes;
	/* Half of what changed is worse than nothing: a copy made by it would be wrong. */
	if (!status)
		rc = out_extents(&extents, look.map);
	if (rc)
		status = cli_error_of(cli, cli->store, "extents", rc);
	cowsnap_map_destroy(look.map);
	if (status != CLI_IO && status != CLI_WRONG_CALL)
		end_list(&extents.list, &look, status, "changed_bytes", extents.changed_bytes);
	return status;
}
