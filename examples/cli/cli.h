/* SPDX-License-Identifier: MIT
 *
 * What the files of the tool share. docs/cowsnap-tool.md is the manual.
 *
 * A command is a function that gets the arguments in a struct cli and returns an exit status. What
 * went wrong it has said by then, on standard error, with cli_error().
 */
#ifndef COWSNAP_CLI_H
#define COWSNAP_CLI_H

#include <cowsnap.h>
#include <jansson.h>
#include <sys/stat.h>

enum cli_status {
	CLI_GOOD = 0,
	CLI_REFUSED = 1, /* the store is none or damaged, or the job failed on what files hold */
	CLI_WRONG_CALL = 2,
	CLI_IO = 3, /* a file cannot be read or written, or is in use */
	CLI_INVALID = 4,
};

enum cli_room {
	CLI_ROOM_NONE = 0,
	CLI_ROOM_BYTES,
	CLI_ROOM_PERCENT,
	CLI_ROOM_RECORDS,
};

enum cli_when {
	CLI_ON_TERMINAL = 0,
	CLI_ALWAYS,
	CLI_NEVER,
};

struct cli;

struct cli_command {
	const char *name;
	int (*run)(struct cli *cli);
};

struct cli {
	const struct cli_command *command;
	struct cowsnap_ctx *ctx;
	const struct cowsnap_allocator *allocator;
	char log[256]; /* the library's last line that says what is wrong */
	/* The arguments. */
	const char *store;
	const char *image;
	const char *image_to; /* NULL: not given */
	const char *origin;
	uint64_t origin_bytes; /* --origin-size; 0: not given */
	enum cli_room room_kind;
	uint64_t room;
	uint64_t chunk_size_bytes; /* 0: not given */
	uint64_t generation;
	enum cli_when progress;
	bool json;
	bool overwrite;
	bool force;
	bool dry_run;
};

int cli_info(struct cli *cli);
int cli_check(struct cli *cli);
int cli_dump(struct cli *cli);
int cli_extents(struct cli *cli);
int cli_changes(struct cli *cli);
int cli_create(struct cli *cli);
int cli_export(struct cli *cli);
int cli_repair(struct cli *cli);
int cli_merge(struct cli *cli);

/* ---- args.c: ends the process if the call is wrong ---- */

void cli_parse(struct cli *cli, int argc, char **argv);

/* ---- size.c ---- */

#define CLI_SIZE_TEXT 64

/* A whole number with one of the suffixes K M G T, which are powers of 1024. */
bool cli_size_parse(const char *text, uint64_t *bytes);
bool cli_number_parse(const char *text, uint64_t *number);
/* "4.0 MiB", or with @exact "4.0 MiB (4194304 bytes)". Returns: @text, of CLI_SIZE_TEXT bytes. */
const char *cli_size_text(uint64_t bytes, bool exact, char *text);

/* ---- say.c: what goes out ---- */

/* "cowsnap: PATH: ..." and an end of line. */
void cli_error(const char *path, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* An error of the library, with what its log says. Returns the exit status for it. */
int cli_error_of(struct cli *cli, const char *path, const char *what, int rc);
void cli_out(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Standard output is written to its end, or that is said and the process ends. */
void cli_out_end(void);
json_t *cli_json_number(uint64_t value);
/* Also of a name that is no UTF-8. */
json_t *cli_json_text(const char *text);
/* Prints it and gives it back. */
void cli_json_out(json_t *document);

/* A list that may be longer than memory: as lines, or as JSON, {"path": ..., NAME: [items], and
 * what comes at the end}. Nothing is printed before the first item or the end. */
struct cli_list {
	const char *path;
	const char *name;
	const char *title; /* first line, if it is none of JSON */
	bool json;
	bool begun;
	uint64_t count;
};

/* Before each item. */
void cli_list_item(struct cli_list *list);
/* @tail: an object that is not empty; given back. */
void cli_list_end(struct cli_list *list, json_t *tail);

/* ---- signals.c: a job that is interrupted tidies up ---- */

void cli_signals_catch(void);
bool cli_signals_came(void);
/* Dies of the signal that came, if one did. */
void cli_signals_die(void);

/* ---- look.c: reading a store ---- */

/* Says what is wrong. @bytes: its length. Returns: a status. */
int cli_device_open(
	struct cli *cli, const char *path, bool writable, struct cowsnap_device **device);
/* Regular files and block devices only. Says what is wrong. Returns: a status. */
int cli_file_open(const char *path, int flags, int *fd, struct stat *st);
/* A lock of the whole file, as the library's: F_RDLCK or F_WRLCK. Says what is wrong. */
int cli_file_lock(const char *path, int fd, short type);
/* The same for a block device, after it was looked at: only one may hold it, and for the looking
 * that is the library. A @fd that was opened is the caller's. Nothing to do for a file. */
int cli_device_hold(const char *path, const struct stat *st, int *fd);
bool cli_same_file(const struct stat *a, const struct stat *b);
bool cli_same_path(const char *a, const char *b);

struct cli_look {
	struct cowsnap_map *map; /* NULL, or empty: gets the records */
	void (*visit)(void *visit_user, uint64_t number, const struct cowsnap_run *run);
	void *visit_user;
	/* out */
	struct cowsnap_dm_report report; /* unless the status is CLI_IO */
	uint64_t origin_bytes;           /* 0: not known */
};

/* Reads the store named in the arguments, checks it and says what is wrong with it. Returns:
 * CLI_GOOD, CLI_REFUSED, CLI_INVALID or CLI_IO. */
int cli_look(struct cli *cli, struct cli_look *look);
json_t *cli_report_json(const struct cowsnap_dm_report *report, int status);

/* ---- runs.c: the records in order of the origin ---- */

struct cli_runs {
	const struct cowsnap_map *map;
	uint64_t *groups; /* of 64 chunks that hold any, in order */
	size_t count;
	size_t room;
	size_t next;         /* group behind those below */
	uint64_t first, end; /* chunks still to be looked at */
	bool failed;
};

/* Time and memory go by the records, not by how far apart they are. Returns: 0 or -ENOMEM. */
int cli_runs_init(struct cli_runs *runs, const struct cowsnap_map *map);
bool cli_runs_next(struct cli_runs *runs, struct cowsnap_run *run);
void cli_runs_free(struct cli_runs *runs);

/* ---- progress.c: a bar on standard error ---- */

struct cli_progress {
	const char *what;
	bool on;
	bool terminal;
	uint64_t total;
	uint64_t started_ns;
	uint64_t shown_ns;
};

void cli_progress_begin(
	struct cli_progress *progress, enum cli_when when, const char *what, uint64_t total);
void cli_progress_step(struct cli_progress *progress, uint64_t done);
/* The bar goes away, or its last state stays if @whole. */
void cli_progress_end(struct cli_progress *progress, bool whole);

/* ---- image.c: a file that appears when it is whole ---- */

#define CLI_IMAGE_BLOCK 4096u

struct cli_image {
	const char *path;
	char *temporary; /* NULL: none */
	int fd;
	uint64_t written_bytes;
};

/* Says what is wrong. Each returns a status. */
int cli_image_begin(struct cli_image *image, const char *path, mode_t mode, uint64_t size_bytes);
/* Blocks of zeroes become holes. Each range is written once. */
int cli_image_write(struct cli_image *image, const uint8_t *data, uint64_t offset, uint64_t length);
/* Makes it durable and gives it its name. */
int cli_image_finish(struct cli_image *image, bool replace);
/* Removes what is not finished. */
void cli_image_end(struct cli_image *image);
/* Makes the name of a new file durable. */
int cli_sync_directory_of(const char *path);

#endif
