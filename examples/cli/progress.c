/* SPDX-License-Identifier: MIT
 *
 * A progress bar on standard error: how much, how fast, how long it will take. A terminal has one
 * line that changes five times a second; anything else, if it was asked for, gets a line a second.
 */
#include "cli.h"

#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S UINT64_C(1000000000)
#define BAR_MAX  40u
/* Columns of the line that are not bar: the widest figures. */
#define FIGURES  64u

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

/* In one piece, so that a line is not torn. That it cannot be shown stops no job. */
static void put(const char *text, size_t length)
{
	ssize_t ignored = write(STDERR_FILENO, text, length);

	(void)ignored;
}

static void bar(const struct cli_progress *progress, double part, char *text)
{
	struct winsize window = {0};
	unsigned width = BAR_MAX, full;

	if (ioctl(STDERR_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col)
		width = window.ws_col > FIGURES ? window.ws_col - FIGURES : 0;
	if (width > BAR_MAX)
		width = BAR_MAX;
	if (!progress->terminal || width < 4) {
		text[0] = '\0';
		return;
	}
	full = (unsigned)(part * width);
	text[0] = '[';
	memset(text + 1, '#', full);
	memset(text + 1 + full, '-', width - full);
	memcpy(text + 1 + width, "] ", 3);
}

static void eta(uint64_t elapsed_ns, double part, char *text, size_t bytes)
{
	double left_s;

	if (part < 1 && (part <= 0 || elapsed_ns < NS_PER_S / 10)) {
		snprintf(text, bytes, "-:--");
		return;
	}
	left_s = (double)elapsed_ns / (double)NS_PER_S * (1 - part) / part;
	if (left_s > 359999)
		left_s = 359999;
	if (left_s >= 3600)
		snprintf(text, bytes, "%u:%02u:%02u", (unsigned)left_s / 3600,
			(unsigned)left_s / 60 % 60, (unsigned)left_s % 60);
	else
		snprintf(text, bytes, "%u:%02u", (unsigned)left_s / 60, (unsigned)left_s % 60);
}

static void show(struct cli_progress *progress, uint64_t done, uint64_t now)
{
	uint64_t elapsed_ns = now - progress->started_ns;
	double part = progress->total ? (double)done / (double)progress->total : 1;
	double rate = elapsed_ns ? (double)done * (double)NS_PER_S / (double)elapsed_ns : 0;
	char bar_text[BAR_MAX + 4], left[16];
	char line[256], of[CLI_SIZE_TEXT], have[CLI_SIZE_TEXT], speed[CLI_SIZE_TEXT];
	int length;

	bar(progress, part, bar_text);
	eta(elapsed_ns, part, left, sizeof(left));
	length = snprintf(line, sizeof(line), "%s%s: %s%3u %%  %s of %s  %s/s  %s left%s",
		progress->terminal ? "\r" : "", progress->what, bar_text, (unsigned)(part * 100),
		cli_size_text(done, false, have), cli_size_text(progress->total, false, of),
		cli_size_text((uint64_t)rate, false, speed), left,
		progress->terminal ? "\033[K" : "\n");
	progress->shown_ns = now;
	put(line, (size_t)length);
}

void cli_progress_begin(
	struct cli_progress *progress, enum cli_when when, const char *what, uint64_t total)
{
	*progress = (struct cli_progress){.what = what, .total = total};
	progress->terminal = isatty(STDERR_FILENO);
	progress->on = when == CLI_ALWAYS || (when == CLI_ON_TERMINAL && progress->terminal);
	progress->started_ns = now_ns();
	if (progress->on)
		show(progress, 0, progress->started_ns);
}

void cli_progress_step(struct cli_progress *progress, uint64_t done)
{
	uint64_t now;

	if (!progress->on)
		return;
	now = now_ns();
	if (now - progress->shown_ns >= (progress->terminal ? NS_PER_S / 5 : NS_PER_S))
		show(progress, done, now);
}

void cli_progress_end(struct cli_progress *progress, bool whole)
{
	if (!progress->on)
		return;
	if (whole)
		show(progress, progress->total, now_ns());
	if (progress->terminal)
		put(whole ? "\n" : "\r\033[K", whole ? 1 : 4);
	progress->on = false;
}
