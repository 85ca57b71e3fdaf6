/* SPDX-License-Identifier: MIT
 *
 * cowsnap info, cowsnap check: one store, what it is and whether it is good.
 */
#include "cli.h"

static int out_json(struct cli *cli, const struct cli_look *look, int status)
{
	json_t *document = cli_report_json(&look->report, status);

	json_object_set_new(document, "path", cli_json_text(cli->store));
	cli_json_out(document);
	return status;
}

static double percent(uint64_t part, uint64_t whole)
{
	return whole ? 100 * (double)part / (double)whole : 100;
}

static void out_records(const struct cowsnap_dm_report *report)
{
	char saved[CLI_SIZE_TEXT];

	cli_out("records:        %llu of %llu (%.1f %%)\n", (unsigned long long)report->records,
		(unsigned long long)report->record_limit,
		percent(report->records, report->record_limit));
	cli_out("saved:          %s\n",
		cli_size_text(report->records * report->chunk_size_bytes, true, saved));
	if (report->highest_chunk)
		cli_out("highest chunk:  %llu\n", (unsigned long long)report->highest_chunk);
	else
		cli_out("highest chunk:  none\n");
	if (report->stale_bytes)
		cli_out("stale tail:     %llu bytes at byte %llu\n",
			(unsigned long long)report->stale_bytes,
			(unsigned long long)report->stale_offset);
	else
		cli_out("stale tail:     none\n");
}

static void out_header(const struct cowsnap_dm_report *report)
{
	char size[CLI_SIZE_TEXT];

	cli_out("snapshot:       %s\n", report->valid ? "valid" : "marked invalid");
	cli_out("chunk size:     %s\n", cli_size_text(report->chunk_size_bytes, true, size));
	cli_out("chunks:         %llu\n", (unsigned long long)report->chunks);
	cli_out("areas:          %llu\n", (unsigned long long)report->areas);
	if (report->generation)
		cli_out("generation:     %llu\n", (unsigned long long)report->generation);
	else
		cli_out("generation:     none\n");
}

int cli_info(struct cli *cli)
{
	struct cli_look look = {0};
	int status = cli_look(cli, &look);
	const struct cowsnap_dm_report *report = &look.report;
	char size[CLI_SIZE_TEXT];

	if (status == CLI_IO || status == CLI_WRONG_CALL)
		return status;
	if (cli->json)
		return out_json(cli, &look, status);
	cli_out("store:          %s\n", cli->store);
	cli_out("length:         %s\n", cli_size_text(report->device_bytes, true, size));
	if (report->chunk_size_bytes)
		out_header(report);
	if (report->chunk_size_bytes && report->valid)
		out_records(report);
	if (status == CLI_REFUSED)
		cli_out("refused:        %s (%s)\n", report->reason, report->fault);
	return status;
}

int cli_check(struct cli *cli)
{
	struct cli_look look = {0};
	int status = cli_look(cli, &look);
	const struct cowsnap_dm_report *report = &look.report;
	char size[CLI_SIZE_TEXT];

	if (status == CLI_IO || status == CLI_WRONG_CALL)
		return status;
	if (cli->json)
		return out_json(cli, &look, status);
	if (status)
		return status;
	cli_out("%s: good, %llu records of %llu, chunk size %s\n", cli->store,
		(unsigned long long)report->records, (unsigned long long)report->record_limit,
		cli_size_text(report->chunk_size_bytes, false, size));
	if (report->stale_bytes)
		cli_out("%s: a crash left %llu bytes behind the last record, at byte %llu; the "
			"next open wipes them, and so does 'cowsnap repair'\n",
			cli->store, (unsigned long long)report->stale_bytes,
			(unsigned long long)report->stale_offset);
	return status;
}
