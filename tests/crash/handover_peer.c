/* SPDX-License-Identifier: MIT
 *
 * One owner of a persistent store in a row of processes, each of which takes it over from the one
 * before, writes to its origin from several threads, and hands it on while they do:
 *
 *     handover_peer first ORIGIN STORE | handover_peer next ORIGIN STORE | handover_peer last ...
 *
 * Both files are there. The origin holds, at the take, bytes that depend on their place alone: that
 * is what the snapshot must read as, whoever has it.
 *
 * With a fourth argument the process kills itself at a point: "begun"
 * (it has the store), "write:N" and "half:N" (in the N-th piece of the state that it writes, before
 * it or halfway), "read:N", "written". Who gets no whole state opens the store.
 *
 * Exits with 0; 1 and a line if something is wrong.
 */
#include <cowsnap.h>

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CHUNK   UINT64_C(512)
#define CHUNKS  UINT64_C(1024)
#define BYTES   (CHUNK * CHUNKS)
#define WRITERS 3
#define WRITES  100u /* of all, before it is handed on */
#define WAIT_S  30

#define MUST(condition)                                                                      \
	do {                                                                                 \
		if (!(condition)) {                                                          \
			fprintf(stderr, "%s: %s:%d: not so: %s\n", role, __FILE__, __LINE__, \
				#condition);                                                 \
			_exit(1);                                                            \
		}                                                                            \
	} while (0)

static const char *role;
static const char *kill_point;

static struct cowsnap_ctx *ctx;
static struct cowsnap_device *origin_device, *device;
static struct cowsnap_take_entry entry = {.on_full = COWSNAP_LOSER_WRITE};

static void die_at(const char *point)
{
	if (kill_point && strcmp(kill_point, point) == 0)
		raise(SIGKILL);
}

static void die_in(const char *kind, unsigned number)
{
	char point[32];

	snprintf(point, sizeof(point), "%s:%u", kind, number);
	die_at(point);
}

static uint8_t image(uint64_t at)
{
	return (uint8_t)(at / CHUNK * 7 + at % 251);
}

/* ---- The pipe -------------------------------------------------------------------------------- */

static void write_all(const uint8_t *data, size_t bytes)
{
	while (bytes) {
		ssize_t n = write(STDOUT_FILENO, data, bytes);

		MUST(n > 0 || errno == EPIPE);
		if (n < 0)
			return;
		data += n;
		bytes -= (size_t)n;
	}
}

static int send_state(void *user, const void *data, size_t bytes)
{
	unsigned *calls = user;

	die_in("write", ++*calls);
	write_all(data, bytes / 2);
	die_in("half", *calls);
	write_all((const uint8_t *)data + bytes / 2, bytes - bytes / 2);
	return 0;
}

static int receive_state(void *user, void *data, size_t bytes)
{
	unsigned *calls = user;
	uint8_t *to = data;

	die_in("read", ++*calls);
	while (bytes) {
		ssize_t n = read(STDIN_FILENO, to, bytes);

		MUST(n >= 0);
		if (!n)
			return -ENODATA;
		to += n;
		bytes -= (size_t)n;
	}
	return 0;
}

/* ---- Coming by the store --------------------------------------------------------------------- */

static void open_devices(const char *origin, const char *store)
{
	MUST(cowsnap_ctx_create(NULL, &ctx) == 0);
	MUST(cowsnap_device_file(ctx, origin, NULL, &origin_device) == 0);
	MUST(cowsnap_device_file(ctx, store, NULL, &device) == 0);
	MUST(cowsnap_origin_open(ctx, origin_device, &entry.origin) == 0);
}

static void begin(void)
{
	struct cowsnap_dm_options options = {
		.size = sizeof(options), .device = device, .chunk_size_bytes = CHUNK};

	MUST(cowsnap_store_dm_create(ctx, &options, &entry.store) == 0);
	MUST(cowsnap_take(ctx, NULL, &entry, 1) == 0);
}

/* The last owner may be dying. */
static void open_store(void)
{
	struct cowsnap_dm_options options = {.size = sizeof(options), .device = device};
	time_t end = time(NULL) + WAIT_S;
	struct cowsnap_store *store;
	int rc;

	do
		rc = cowsnap_store_dm_open(ctx, &options, &entry, &store);
	while (rc == -EBUSY && time(NULL) < end && !sched_yield());
	MUST(rc == 0);
}

static void take_over(void)
{
	struct cowsnap_dm_options options = {.size = sizeof(options), .device = device};
	struct cowsnap_store *store;
	unsigned calls = 0;
	int rc = cowsnap_store_dm_import(ctx, &options, receive_state, &calls, &entry, &store);

	MUST(rc == 0 || rc == -EBADMSG);
	fprintf(stderr, "%s: %s\n", role, rc ? "no whole state: opens the store" : "taken over");
	if (rc)
		open_store();
}

/* ---- Having it ------------------------------------------------------------------------------- */

static pthread_rwlock_t handing = PTHREAD_RWLOCK_INITIALIZER; /* for reading: to begin a write */
static bool handed;                                           /* under it */
static _Atomic unsigned writes;

static bool write_one(uint64_t chunk, uint8_t value)
{
	uint8_t bytes[2 * CHUNK];
	struct cowsnap_op op;

	pthread_rwlock_rdlock(&handing);
	if (handed) {
		pthread_rwlock_unlock(&handing);
		return false;
	}
	MUST(cowsnap_write_begin(entry.origin, COWSNAP_WRITE, chunk * CHUNK, sizeof(bytes), &op) ==
		0);
	pthread_rwlock_unlock(&handing);
	memset(bytes, value, sizeof(bytes));
	MUST(cowsnap_device_write(origin_device, bytes, chunk * CHUNK, sizeof(bytes)) == 0);
	cowsnap_write_end(&op);
	return true;
}

static void *run_writer(void *argument)
{
	unsigned number = *(unsigned *)argument;
	uint64_t seed = (uint64_t)getpid() * 31 + number;

	do {
		seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
		atomic_fetch_add(&writes, 1);
	} while (write_one((seed >> 33) % (CHUNKS - 1), (uint8_t)(seed >> 20)));
	return NULL;
}

static void check(void)
{
	static uint8_t bytes[BYTES];

	MUST(cowsnap_snapshot_read(entry.snapshot, bytes, 0, sizeof(bytes)) == 0);
	for (uint64_t at = 0; at < BYTES; at++)
		MUST(bytes[at] == image(at));
}

static void use_and_hand_on(void)
{
	unsigned number[WRITERS], calls = 0;
	pthread_t threads[WRITERS];

	for (unsigned i = 0; i < WRITERS; i++) {
		number[i] = i;
		MUST(pthread_create(&threads[i], NULL, run_writer, &number[i]) == 0);
	}
	while (atomic_load(&writes) < WRITES)
		sched_yield();
	check();
	pthread_rwlock_wrlock(&handing);
	handed = true;
	pthread_rwlock_unlock(&handing);
	/* Brackets may be open still. */
	MUST(cowsnap_store_export(entry.store, UINT64_MAX, send_state, &calls) == 0);
	die_at("written");
	for (unsigned i = 0; i < WRITERS; i++)
		pthread_join(threads[i], NULL);
}

/* Everything is saved that is not yet, and it still reads the same. */
static void use_up(void)
{
	for (uint64_t chunk = 0; chunk < CHUNKS; chunk += 2)
		MUST(write_one(chunk, 0x55));
	check();
	MUST(cowsnap_snapshot_deactivate(entry.snapshot) == 0);
}

static void close_all(void)
{
	cowsnap_snapshot_unref(entry.snapshot);
	MUST(cowsnap_store_close(entry.store) == 0);
	MUST(cowsnap_origin_close(entry.origin) == 0);
	MUST(cowsnap_device_close(device) == 0);
	MUST(cowsnap_device_close(origin_device) == 0);
	MUST(cowsnap_ctx_destroy(ctx) == 0);
}

int main(int argc, char **argv)
{
	bool last;

	if (argc < 4 || argc > 5) {
		fprintf(stderr, "usage: %s first|next|last ORIGIN STORE [POINT]\n", argv[0]);
		return 2;
	}
	role = argv[1];
	kill_point = argv[4];
	last = strcmp(role, "last") == 0;
	signal(SIGPIPE, SIG_IGN);
	open_devices(argv[2], argv[3]);
	if (strcmp(role, "first") == 0)
		begin();
	else
		take_over();
	die_at("begun");
	check();
	if (last)
		use_up();
	else
		use_and_hand_on();
	close_all();
	return 0;
}
