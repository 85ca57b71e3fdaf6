/* SPDX-License-Identifier: MIT
 *
 * A host without threads: an event loop with epoll, a volume in a file, and a backup of a snapshot
 * while writes go on. Nothing here waits but epoll_wait().
 *
 * A real host's loop has its sockets in the same epoll set, and its requests come from there. Where
 * io_uring cannot be had, files are called instead, and everything ends at once.
 */
#include <cowsnap.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define VOLUME_BYTES (1 << 20)
#define BLOCK_BYTES  4096
#define BLOCKS       (VOLUME_BYTES / BLOCK_BYTES)
#define WRITERS      16 /* writes under way at one time */

struct host;

/* One write under way: block after block, until all are done. */
struct writer {
	struct host *host;
	struct cowsnap_op op; /* must stay in place: the library knows where it is */
	struct cowsnap_io io; /* the host's own write: as well */
	unsigned block;
};

struct host {
	struct cowsnap_ctx *ctx;
	struct cowsnap_queue *queue;
	struct cowsnap_device *volume, *space;
	struct cowsnap_origin *origin;
	struct cowsnap_store *store;
	struct cowsnap_take_entry entry;
	struct cowsnap_op take_op, backup_op;
	struct writer writer[WRITERS];
	char data[BLOCK_BYTES];
	char backup[VOLUME_BYTES];
	unsigned next_block, written, waited;
	int epoll;
	bool backed_up;
};

static void check(int error, const char *what)
{
	if (error < 0) {
		fprintf(stderr, "%s: %s\n", what, strerror(-error));
		exit(1);
	}
}

/* ---- Writing: ask, write, say that it has ended ---------------------------------------------- */

static void next_write(struct writer *writer);

static void has_written(struct cowsnap_io *io, int error)
{
	struct writer *writer = io->user;

	check(error, "write");
	cowsnap_write_end(&writer->op);
	writer->host->written++;
	next_write(writer);
}

static void write_block(struct writer *writer)
{
	struct host *host = writer->host;

	writer->io = (struct cowsnap_io){.kind = COWSNAP_IO_WRITE,
		.buffer = host->data,
		.offset = (uint64_t)writer->block * BLOCK_BYTES,
		.length = BLOCK_BYTES,
		.done = has_written,
		.user = writer};
	check(cowsnap_device_submit(host->volume, host->queue, &writer->io), "submit");
}

/* The preimage is saved. */
static void may_write(struct cowsnap_op *op, void *user, int error)
{
	struct writer *writer = user;

	(void)op;
	check(error, "write_begin");
	writer->host->waited++;
	write_block(writer);
}

static void next_write(struct writer *writer)
{
	struct host *host = writer->host;
	int rc;

	if (host->next_block == BLOCKS)
		return;
	writer->block = host->next_block++;
	rc = cowsnap_write_begin_async(host->origin, host->queue, COWSNAP_WRITE,
		(uint64_t)writer->block * BLOCK_BYTES, BLOCK_BYTES, &writer->op, may_write, writer);
	check(rc, "write_begin");
	if (rc != COWSNAP_PENDING)
		write_block(writer); /* at once: may_write() is not called */
}

/* ---- Taking and reading ---------------------------------------------------------------------- */

static void has_backup(struct cowsnap_op *op, void *user, int error)
{
	struct host *host = user;

	(void)op;
	check(error, "snapshot_read");
	host->backed_up = true;
}

/* From here on the image stands still, whatever is written. */
static void has_taken(struct cowsnap_op *op, void *user, int error)
{
	struct host *host = user;
	int rc;

	(void)op;
	check(error, "take");
	for (unsigned i = 0; i < WRITERS; i++)
		next_write(&host->writer[i]);
	rc = cowsnap_snapshot_read_async(host->entry.snapshot, host->queue, host->backup, 0,
		VOLUME_BYTES, &host->backup_op, has_backup, host);
	check(rc, "snapshot_read");
	host->backed_up = rc != COWSNAP_PENDING;
}

/* ---- The loop -------------------------------------------------------------------------------- */

static struct cowsnap_device *open_file(struct host *host)
{
	const struct cowsnap_file_options options = {.size = sizeof(options),
		.flags = COWSNAP_FILE_CREATE,
		.length_bytes = VOLUME_BYTES};
	char path[] = "/tmp/cowsnap-loop-XXXXXX";
	struct cowsnap_device *device;
	int fd = mkstemp(path);

	if (fd < 0) {
		perror(path);
		exit(1);
	}
	close(fd);
	unlink(path);
	check(cowsnap_device_uring(host->ctx, path, &options, &device), path);
	unlink(path);
	return device;
}

static void open_host(struct host *host)
{
	const struct cowsnap_ctx_options options = {
		.size = sizeof(options), .engine = COWSNAP_ENGINE_LOOP};
	struct cowsnap_transient_options space = {.size = sizeof(space)};
	struct epoll_event readable = {.events = EPOLLIN};

	check(cowsnap_ctx_create(&options, &host->ctx), "ctx_create");
	check(cowsnap_queue_create(host->ctx, 2 * WRITERS, &host->queue), "queue_create");
	host->volume = open_file(host);
	host->space = space.device = open_file(host);
	check(cowsnap_origin_open(host->ctx, host->volume, &host->origin), "origin_open");
	check(cowsnap_store_transient(host->ctx, &space, &host->store), "store_transient");
	host->epoll = epoll_create1(EPOLL_CLOEXEC);
	epoll_ctl(host->epoll, EPOLL_CTL_ADD, cowsnap_queue_fd(host->queue), &readable);
	for (unsigned i = 0; i < WRITERS; i++)
		host->writer[i].host = host;
	memset(host->data, 'b', BLOCK_BYTES);
}

static void close_host(struct host *host)
{
	check(cowsnap_snapshot_drop(host->entry.snapshot), "drop");
	cowsnap_snapshot_unref(host->entry.snapshot);
	check(cowsnap_store_close(host->store), "store_close");
	check(cowsnap_origin_close(host->origin), "origin_close");
	check(cowsnap_device_close(host->volume), "device_close");
	check(cowsnap_device_close(host->space), "device_close");
	check(cowsnap_queue_close(host->queue), "queue_close");
	check(cowsnap_ctx_destroy(host->ctx), "ctx_destroy");
	close(host->epoll);
}

int main(void)
{
	static struct host host;
	unsigned stale = 0;

	open_host(&host);
	host.entry.origin = host.origin;
	host.entry.store = host.store;
	check(cowsnap_take_async(
		      host.ctx, host.queue, NULL, &host.entry, 1, &host.take_op, has_taken, &host),
		"take");
	while (host.written < BLOCKS || !host.backed_up) {
		struct epoll_event event;

		epoll_wait(host.epoll, &event, 1, -1);
		check(cowsnap_queue_poll(host.queue), "queue_poll");
	}
	for (unsigned i = 0; i < VOLUME_BYTES; i++)
		stale += host.backup[i] != 0;
	close_host(&host);
	printf("%u blocks written, %u of them after a wait; %u bytes backed up, %u of them wrong\n",
		host.written, host.waited, VOLUME_BYTES, stale);
	return stale != 0;
}
