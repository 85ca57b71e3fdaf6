/* SPDX-License-Identifier: MIT
 *
 * A host in one page, for tests that are not written in C: opens an origin and a store in files,
 * says what it sees, writes, and leaves the store on its device.
 *
 *     continue ORIGIN STORE COMMAND...
 *
 *     create=CHUNK_BYTES     a new store, and a snapshot of the origin in it
 *     open[=GENERATION]      the snapshot that is there
 *     write=OFFSET,LENGTH,BYTE   a bracket
 *     generation=N
 *     image=FILE             what the snapshot holds
 *     usage                  prints used and limit, in bytes
 *     drop                   the snapshot
 *     deactivate             the end, with the snapshot left in its store; also without the word
 *     die                    the same, in the middle: no call of the library any more
 *
 * Exit: 0; 1 and a line on stderr, with the errno's name: a call failed; 2: wrong call.
 */
#include <cowsnap.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct cowsnap_ctx *ctx;
static struct cowsnap_device *origin_device, *store_device;
static struct cowsnap_origin *origin;
static struct cowsnap_store *store;
static struct cowsnap_snapshot *snapshot;

static void say(void *user, enum cowsnap_log_level level, const char *message)
{
	(void)user;
	(void)level;
	fprintf(stderr, "continue: %s\n", message);
}

static void must(int rc, const char *what)
{
	if (rc >= 0)
		return;
	fprintf(stderr, "continue: %s: %s\n", what, strerrorname_np(-rc));
	exit(1);
}

static void create(const char *argument)
{
	struct cowsnap_dm_options options = {.size = sizeof(options), .device = store_device};
	struct cowsnap_take_entry entry = {.origin = origin, .on_full = COWSNAP_LOSER_WRITE};

	options.chunk_size_bytes = strtoull(argument, NULL, 0);
	must(cowsnap_store_dm_create(ctx, &options, &store), "create");
	entry.store = store;
	must(cowsnap_take(ctx, NULL, &entry, 1), "take");
	snapshot = entry.snapshot;
}

static void attach(const char *argument)
{
	struct cowsnap_dm_options options = {.size = sizeof(options), .device = store_device};
	struct cowsnap_take_entry entry = {.origin = origin, .on_full = COWSNAP_LOSER_WRITE};

	options.generation = strtoull(argument, NULL, 0);
	must(cowsnap_store_dm_open(ctx, &options, &entry, &store), "open");
	snapshot = entry.snapshot;
}

static void write_bytes(const char *argument)
{
	uint64_t offset, length;
	unsigned value;
	struct cowsnap_op op;
	char *data;

	if (sscanf(argument, "%lu,%lu,%u", &offset, &length, &value) != 3)
		exit(2);
	data = malloc(length);
	if (!data)
		exit(1);
	memset(data, (int)value, length);
	must(cowsnap_write_begin(origin, COWSNAP_WRITE, offset, length, &op), "write_begin");
	must(cowsnap_device_write(origin_device, data, offset, length), "write");
	cowsnap_write_end(&op);
	free(data);
}

static void set_generation(const char *argument)
{
	must(cowsnap_store_dm_set_generation(store, strtoull(argument, NULL, 0)), "generation");
}

static void save_image(const char *argument)
{
	uint64_t length = cowsnap_device_size(origin_device);
	char *data = malloc(length);
	FILE *file = fopen(argument, "wb");

	if (!data || !file)
		exit(1);
	must(cowsnap_snapshot_read(snapshot, data, 0, length), "read");
	if (fwrite(data, 1, length, file) != length || fclose(file) != 0)
		exit(1);
	free(data);
}

static void print_usage(const char *argument)
{
	struct cowsnap_store_usage usage;

	(void)argument;
	must(cowsnap_store_usage(store, &usage, sizeof(usage)), "usage");
	printf("%lu %lu\n", usage.used_bytes, usage.limit_bytes);
}

static void drop(const char *argument)
{
	(void)argument;
	must(cowsnap_snapshot_drop(snapshot), "drop");
	cowsnap_snapshot_unref(snapshot);
	snapshot = NULL;
}

static void deactivate(const char *argument)
{
	(void)argument;
	must(cowsnap_snapshot_deactivate(snapshot), "deactivate");
	cowsnap_snapshot_unref(snapshot);
	snapshot = NULL;
}

static void die(const char *argument)
{
	(void)argument;
	fflush(NULL);
	_exit(0);
}

static const struct {
	const char *name;
	void (*run)(const char *argument);
} commands[] = {
	{"create", create},
	{"open", attach},
	{"write", write_bytes},
	{"generation", set_generation},
	{"image", save_image},
	{"usage", print_usage},
	{"drop", drop},
	{"deactivate", deactivate},
	{"die", die},
};

static void run(char *word)
{
	char *argument = strchr(word, '=');

	if (argument)
		*argument++ = '\0';
	for (unsigned i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		if (strcmp(word, commands[i].name) == 0) {
			commands[i].run(argument ? argument : "0");
			return;
		}
	}
	fprintf(stderr, "continue: what is %s?\n", word);
	exit(2);
}

int main(int argc, char **argv)
{
	struct cowsnap_log log = {.size = sizeof(log), .write = say};
	struct cowsnap_ctx_options options = {.size = sizeof(options), .log = &log};

	if (argc < 3)
		return 2;
	must(cowsnap_ctx_create(&options, &ctx), "ctx");
	must(cowsnap_device_file(ctx, argv[1], NULL, &origin_device), argv[1]);
	must(cowsnap_device_file(ctx, argv[2], NULL, &store_device), argv[2]);
	must(cowsnap_origin_open(ctx, origin_device, &origin), "origin");
	for (int i = 3; i < argc; i++)
		run(argv[i]);
	if (snapshot)
		deactivate(NULL);
	must(cowsnap_store_close(store), "store_close");
	must(cowsnap_origin_close(origin), "origin_close");
	must(cowsnap_device_close(store_device), "device_close");
	must(cowsnap_device_close(origin_device), "device_close");
	must(cowsnap_ctx_destroy(ctx), "ctx_destroy");
	return 0;
}
