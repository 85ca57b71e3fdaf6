/* SPDX-License-Identifier: MIT
 *
 * The simulated array. What is read is copied when a request ends, what is written when it begins:
 * a host that lets a write overtake a read of the same bytes gets the wrong ones.
 *
 * Invariants: a server's free_ns only rises. A port is touched by its thread only; common, under
 * the lock.
 *
 * Locking: `lock` for common. Between ports nothing is shared but `ticket` and the servers; relaxed
 * everywhere, since nothing is published through them.
 *
 * Failure: without memory the program ends.
 */
#include "sim_device.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>

#include "bench.h"

#define PORT_ROOM 1024u

/* ---- The model ------------------------------------------------------------------------------ */

static uint64_t scramble(uint64_t x)
{
	x += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

/* How long a server works on a request. */
static uint64_t service_ns(const struct sim_array *array, uint64_t ticket)
{
	uint64_t latency_ns = array->options.latency_ns;
	uint64_t random_ns = latency_ns * array->options.jitter_percent / 100;
	double unit;

	if (!random_ns)
		return latency_ns;
	unit = ((double)(scramble(ticket + array->options.seed) >> 11) + 1) * 0x1p-53;
	return latency_ns - random_ns + (uint64_t)((double)random_ns * -log(unit));
}

static uint64_t take_server(_Atomic uint64_t *free_ns, uint64_t now_ns, uint64_t work_ns)
{
	uint64_t was = atomic_load_explicit(free_ns, memory_order_relaxed);
	uint64_t until;

	do
		until = (was > now_ns ? was : now_ns) + work_ns;
	while (!atomic_compare_exchange_weak_explicit(
		free_ns, &was, until, memory_order_relaxed, memory_order_relaxed));
	return until;
}

/* When a request that is begun now has ended. */
static uint64_t serve(struct sim_array *array, enum cowsnap_io_kind kind, uint64_t length)
{
	uint64_t now_ns = bench_now_ns();
	uint64_t units = (length + array->options.unit_bytes - 1) / array->options.unit_bytes;
	uint64_t last_ns = now_ns;
	uint64_t ticket;

	if (kind == COWSNAP_IO_FLUSH)
		return take_server(&array->flush_free_ns, now_ns, array->options.flush_ns);
	ticket = atomic_fetch_add_explicit(&array->ticket, units, memory_order_relaxed);
	for (uint64_t i = 0; i < units; i++) {
		struct sim_server *server = &array->server[(ticket + i) % array->servers];
		uint64_t ns = take_server(&server->free_ns, now_ns, service_ns(array, ticket + i));

		last_ns = ns > last_ns ? ns : last_ns;
	}
	return last_ns;
}

double sim_bound_iops(const struct sim_array *array, double in_flight)
{
	double servers = array->servers;

	return (in_flight < servers ? in_flight : servers) * 1e9 /
	       (double)array->options.latency_ns;
}

/* ---- Ports ---------------------------------------------------------------------------------- */

static void port_init(struct sim_port *port, const struct cowsnap_queue *queue)
{
	port->queue = queue;
	port->count = 0;
	port->requests = 0;
	port->waiting = NULL;
	if (port->heap)
		return;
	port->room = PORT_ROOM;
	port->heap = bench_alloc(port->room, sizeof(*port->heap));
}

static void heap_push(struct sim_port *port, struct sim_due due)
{
	unsigned at = port->count++;

	if (at == port->room) {
		struct sim_due *larger = bench_alloc(2 * (size_t)port->room, sizeof(*larger));

		memcpy(larger, port->heap, port->room * sizeof(*larger));
		free(port->heap);
		port->heap = larger;
		port->room *= 2;
	}
	for (; at && port->heap[(at - 1) / 2].ns > due.ns; at = (at - 1) / 2)
		port->heap[at] = port->heap[(at - 1) / 2];
	port->heap[at] = due;
}

static struct cowsnap_io *heap_pop(struct sim_port *port)
{
	struct cowsnap_io *first = port->heap[0].io;
	struct sim_due last = port->heap[--port->count];
	unsigned at = 0;

	for (unsigned child = 1; child < port->count; child = 2 * at + 1) {
		if (child + 1 < port->count && port->heap[child + 1].ns < port->heap[child].ns)
			child++;
		if (last.ns <= port->heap[child].ns)
			break;
		port->heap[at] = port->heap[child];
		at = child;
	}
	port->heap[at] = last;
	return first;
}

static void start(struct sim_array *array, struct sim_port *port, struct cowsnap_io *io)
{
	port->requests++;
	heap_push(port, (struct sim_due){serve(array, io->kind, io->length), io});
}

static void port_submit(struct sim_array *array, struct sim_port *port, struct cowsnap_io *io)
{
	if (!array->options.depth || port->count < array->options.depth) {
		start(array, port, io);
		return;
	}
	io->device_words[0] = 0;
	if (port->waiting)
		port->waiting_last->device_words[0] = (uintptr_t)io;
	else
		port->waiting = io;
	port->waiting_last = io;
}

static struct cowsnap_io *next_waiting(struct sim_port *port)
{
	struct cowsnap_io *io = port->waiting;

	if (io)
		port->waiting = (struct cowsnap_io *)(uintptr_t)io->device_words[0];
	return io;
}

static void finish(struct cowsnap_io *io)
{
	const unsigned char *from = (const unsigned char *)(uintptr_t)io->device_words[1];

	if (io->kind == COWSNAP_IO_READ)
		memcpy(io->buffer, from, io->length);
	cowsnap_io_complete(io, 0);
}

unsigned sim_poll(struct sim_array *array, struct sim_port *port)
{
	uint64_t now_ns;
	unsigned done = 0;

	if (!port->count)
		return 0;
	now_ns = bench_now_ns();
	while (port->count && port->heap[0].ns <= now_ns) {
		struct cowsnap_io *next = next_waiting(port);

		finish(heap_pop(port));
		if (next)
			start(array, port, next);
		done++;
	}
	return done;
}

uint64_t sim_next_ns(const struct sim_port *port)
{
	return port->count ? port->heap[0].ns : UINT64_MAX;
}

struct sim_port *sim_attach(struct sim_array *array, const struct cowsnap_queue *queue)
{
	for (unsigned i = 0; i < SIM_PORTS_MAX; i++) {
		if (array->port[i].queue)
			continue;
		port_init(&array->port[i], queue);
		if (i >= array->ports)
			array->ports = i + 1;
		return &array->port[i];
	}
	return NULL;
}

void sim_detach(struct sim_port *port)
{
	if (port)
		port->queue = NULL;
}

static struct sim_port *port_of(struct sim_array *array, const struct cowsnap_queue *queue)
{
	for (unsigned i = 0; i < array->ports; i++) {
		if (array->port[i].queue == queue)
			return &array->port[i];
	}
	return NULL;
}

/* ---- The array's own thread ----------------------------------------------------------------- */

static struct timespec timespec_of(uint64_t ns)
{
	return (struct timespec){.tv_sec = (time_t)(ns / UINT64_C(1000000000)),
		.tv_nsec = (long)(ns % UINT64_C(1000000000))};
}

static void exact_sleeps(void)
{
	/* Else a sleep of 100 us lasts 150: the system may join the wake-ups of several. */
	(void)prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
}

static void *common_main(void *arg)
{
	struct sim_array *array = arg;

	exact_sleeps();
	pthread_mutex_lock(&array->lock);
	while (!array->ends) {
		uint64_t next_ns;

		/* A completion posts to a queue and runs no callback: the lock may be held. */
		sim_poll(array, &array->common);
		next_ns = sim_next_ns(&array->common);
		if (next_ns == UINT64_MAX) {
			pthread_cond_wait(&array->more, &array->lock);
		} else {
			struct timespec until = timespec_of(next_ns);

			pthread_cond_timedwait(&array->more, &array->lock, &until);
		}
	}
	pthread_mutex_unlock(&array->lock);
	return NULL;
}

static void common_submit(struct sim_array *array, struct cowsnap_io *io)
{
	uint64_t first_ns;

	pthread_mutex_lock(&array->lock);
	first_ns = sim_next_ns(&array->common);
	port_submit(array, &array->common, io);
	if (!array->started && !pthread_create(&array->thread, NULL, common_main, array))
		array->started = true;
	if (sim_next_ns(&array->common) < first_ns)
		pthread_cond_signal(&array->more);
	pthread_mutex_unlock(&array->lock);
}

/* ---- The device ----------------------------------------------------------------------------- */

static void sim_submit(void *user, struct cowsnap_io *io)
{
	struct sim_volume *volume = user;
	struct sim_array *array = volume->array;
	struct sim_port *port = port_of(array, io->queue);
	unsigned char *at = volume->pages + io->offset;

	io->device_words[1] = (uintptr_t)at;
	if (io->kind == COWSNAP_IO_WRITE)
		memcpy(at, io->buffer, io->length);
	else if (io->kind == COWSNAP_IO_ZERO)
		memset(at, 0, io->length);
	if (port)
		port_submit(array, port, io);
	else
		common_submit(array, io);
}

static void wait_for(struct sim_array *array, enum cowsnap_io_kind kind, uint64_t length)
{
	struct timespec until;

	if (atomic_load_explicit(&array->instant, memory_order_relaxed))
		return;
	until = timespec_of(serve(array, kind, length));
	exact_sleeps();
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
		;
}

static int sim_read(void *user, void *buffer, uint64_t offset, uint64_t length)
{
	const struct sim_volume *volume = user;

	wait_for(volume->array, COWSNAP_IO_READ, length);
	memcpy(buffer, volume->pages + offset, length);
	return 0;
}

static int sim_write(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	const struct sim_volume *volume = user;

	memcpy(volume->pages + offset, buffer, length);
	wait_for(volume->array, COWSNAP_IO_WRITE, length);
	return 0;
}

static int sim_zero(void *user, uint64_t offset, uint64_t length)
{
	const struct sim_volume *volume = user;

	memset(volume->pages + offset, 0, length);
	wait_for(volume->array, COWSNAP_IO_ZERO, length);
	return 0;
}

static int sim_flush(void *user)
{
	const struct sim_volume *volume = user;

	wait_for(volume->array, COWSNAP_IO_FLUSH, 0);
	return 0;
}

int sim_volume_device(
	struct sim_volume *volume, struct cowsnap_ctx *ctx, struct cowsnap_device **device)
{
	struct cowsnap_device_ops ops = {
		.size = sizeof(ops),
		.read = sim_read,
		.write = sim_write,
		.zero = sim_zero,
		.flush = volume->array->options.flush_ns ? sim_flush : NULL,
		.submit = sim_submit,
	};
	struct cowsnap_device_options options = {.size = sizeof(options),
		.block_size = 512,
		.size_bytes = volume->bytes,
		.name = "sim"};

	return bench_check(cowsnap_device_create(ctx, &ops, &options, volume, device),
		"cowsnap_device_create");
}

/* ---- Making --------------------------------------------------------------------------------- */

int sim_array_open(struct sim_array *array, const struct sim_options *options)
{
	pthread_condattr_t attr;
	uint64_t servers;

	memset(array, 0, sizeof(*array));
	array->options = *options;
	if (!array->options.iops)
		array->options.iops = 700000;
	if (!array->options.latency_ns)
		array->options.latency_ns = 350000;
	if (!array->options.unit_bytes)
		array->options.unit_bytes = 16384;
	servers = (array->options.iops * array->options.latency_ns + 500000000) / 1000000000;
	if (!servers || servers > SIM_SERVERS_MAX) {
		fprintf(stderr, "cowsnap-bench: a simulated array of %llu servers is not 1 to %u\n",
			(unsigned long long)servers, SIM_SERVERS_MAX);
		return -EINVAL;
	}
	array->servers = (unsigned)servers;
	array->server = aligned_alloc(64, servers * sizeof(*array->server));
	if (!array->server)
		return bench_check(-ENOMEM, "servers of a simulated array");
	memset(array->server, 0, servers * sizeof(*array->server));
	pthread_mutex_init(&array->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&array->more, &attr);
	pthread_condattr_destroy(&attr);
	port_init(&array->common, NULL);
	return 0;
}

void sim_array_close(struct sim_array *array)
{
	if (!array->server)
		return;
	pthread_mutex_lock(&array->lock);
	array->ends = true;
	pthread_cond_signal(&array->more);
	pthread_mutex_unlock(&array->lock);
	if (array->started)
		pthread_join(array->thread, NULL);
	pthread_cond_destroy(&array->more);
	pthread_mutex_destroy(&array->lock);
	for (unsigned i = 0; i < SIM_PORTS_MAX; i++)
		free(array->port[i].heap);
	free(array->common.heap);
	free(array->server);
	array->server = NULL;
}

int sim_volume_open(struct sim_volume *volume, struct sim_array *array, uint64_t bytes)
{
	void *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (pages == MAP_FAILED)
		return bench_check(-errno, "memory of a simulated volume");
	(void)madvise(pages, bytes, MADV_HUGEPAGE); /* as the library's memory devices */
	*volume = (struct sim_volume){.array = array, .pages = pages, .bytes = bytes};
	/* No page fault is left for what is timed. */
	memset(pages, 0x5a, bytes);
	return 0;
}

void sim_volume_close(struct sim_volume *volume)
{
	if (volume->pages)
		munmap(volume->pages, volume->bytes);
	volume->pages = NULL;
}
