/* SPDX-License-Identifier: MIT
 *
 * Signals that end a job: it stops at the next step, removes what is half made, and dies of the
 * signal as if nobody had caught it, so that a shell sees what happened.
 */
#include "cli.h"

#include <signal.h>

static const int ends[] = {SIGINT, SIGTERM, SIGHUP};
static volatile sig_atomic_t came;

static void remember(int number)
{
	came = number;
}

void cli_signals_catch(void)
{
	struct sigaction catch = {.sa_handler = remember};
	struct sigaction before;

	sigemptyset(&catch.sa_mask);
	for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
		/* Whoever started it with nohup wants it to go on. */
		if (sigaction(ends[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN)
			sigaction(ends[i], &catch, NULL);
}

bool cli_signals_came(void)
{
	return came != 0;
}

void cli_signals_die(void)
{
	int number = came;

	if (!number)
		return;
	signal(number, SIG_DFL);
	raise(number);
}
