/* SPDX-License-Identifier: MIT
 *
 * cowsnap: a tool for stores in the persistent format. docs/cowsnap-tool.md is its manual.
 */
#include "cli.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef CLI_JEMALLOC
#include <cowsnap-jemalloc.h>
#endif

/* A file that is opened must not become standard output, and be written to as such. One that was
 * closed fails when it is used. */
static void fill_standard_files(void)
{
	for (int fd = 0; fd <= 2; fd++)
		if (fcntl(fd, F_GETFD) < 0 &&
			open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) < 0)
			_exit(CLI_IO);
}

static void remember(void *user, enum cowsnap_log_level level, const char *message)
{
	struct cli *cli = user;

	if (level == COWSNAP_LOG_ERROR)
		snprintf(cli->log, sizeof(cli->log), "%s", message);
}

int main(int argc, char **argv)
{
	struct cli cli = {0};
	struct cowsnap_log log = {.size = sizeof(log), .user = &cli, .write = remember};
	struct cowsnap_ctx_options options = {.size = sizeof(options), .log = &log};
	int status, rc;

	fill_standard_files();
	/* A file that may not become longer is an error like others. */
	signal(SIGXFSZ, SIG_IGN);
	atexit(cli_out_end);
	cli_parse(&cli, argc, argv);
#ifdef CLI_JEMALLOC
	cli.allocator = cowsnap_jemalloc();
#endif
	options.allocator = cli.allocator;
	rc = cowsnap_ctx_create(&options, &cli.ctx);
	if (rc)
		return cli_error_of(&cli, cli.command->name, "cannot begin", rc);
	status = cli.command->run(&cli);
	cowsnap_ctx_destroy(cli.ctx);
	cli_signals_die();
	return status;
}
