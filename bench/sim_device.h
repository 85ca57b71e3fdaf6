/* SPDX-License-Identifier: MIT
 *
 * A simulated NVMe array: content in memory, times of a model. The array is a number of *servers*,
 * each of which works on one request for a fixed time; requests take the servers in turn. 245
 * servers of 350 us are 700,000 requests a second at 350 us, and what comes on top of 245 in flight
 * waits. All *volumes* of an array share its servers.
 *
 * A volume is a device of the library that can be submitted to. Who submits also looks for
 * completions: each thread has a *port*, on which requests of its queue wait for their time, and
 * calls sim_poll() beside cowsnap_queue_poll(). Threads share nothing but the servers. Requests of
 * queues without a port (those of the library's workers) are completed by a thread of the array.
 * Callers that wait sleep until their time.
 */
#ifndef COWSNAP_BENCH_SIM_DEVICE_H
#define COWSNAP_BENCH_SIM_DEVICE_H

#include <cowsnap.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define SIM_PORTS_MAX   64
#define SIM_SERVERS_MAX 4096

struct sim_options {
	uint64_t iops;       /* requests a second with all servers busy; default 700,000 */
	uint64_t latency_ns; /* of a request that finds a server free; default 350,000 */
	uint64_t unit_bytes; /* a longer request takes several servers; default 16 KiB */
	unsigned depth;      /* most requests of one port at a time, more wait; 0: no bound */
	/* Of the latency, how much is random: 0 to 100; exponential around the same mean. */
	unsigned jitter_percent;
	uint64_t seed;
	uint64_t flush_ns; /* flushes go one after the other; 0: they cost nothing */
};

struct sim_due {
	uint64_t ns;
	struct cowsnap_io *io;
};

/* Of one thread, or of the array's own. */
struct sim_port {
	_Alignas(64) const struct cowsnap_queue *queue;
	struct sim_due *heap; /* the earliest first */
	unsigned count;
	unsigned room;
	struct cowsnap_io *waiting; /* for the depth; by their first device word */
	struct cowsnap_io *waiting_last;
	uint64_t requests;
};

struct sim_server {
	_Alignas(64) _Atomic uint64_t free_ns; /* when it is free */
};

struct sim_array {
	struct sim_options options;
	unsigned servers;
	struct sim_server *server;
	_Alignas(64) _Atomic uint64_t ticket; /* the next one's server, modulo servers */
	_Atomic uint64_t flush_free_ns;
	atomic_bool instant; /* callers that wait do not: for what is not measured */
	_Alignas(64) struct sim_port port[SIM_PORTS_MAX];
	unsigned ports; /* that were ever used */

	/* For queues without a port. */
	pthread_mutex_t lock;
	pthread_cond_t more;
	struct sim_port common; /* under lock */
	pthread_t thread;
	bool started; /* under lock */
	bool ends;    /* under lock */
};

struct sim_volume {
	struct sim_array *array;
	unsigned char *pages;
	uint64_t bytes;
};

/* These return 0 or a negative errno whose cause they have reported. Zeroes in @options are
 * defaults; the servers follow from the rate and the latency. */
int sim_array_open(struct sim_array *array, const struct sim_options *options);
void sim_array_close(struct sim_array *array);
int sim_volume_open(struct sim_volume *volume, struct sim_array *array, uint64_t bytes);
/* No device of it may be open. Nothing to do if it was not opened. */
void sim_volume_close(struct sim_volume *volume);
int sim_volume_device(
	struct sim_volume *volume, struct cowsnap_ctx *ctx, struct cowsnap_device **device);

/* A port for a queue; while nothing is submitted to the array. NULL: there are too many. */
struct sim_port *sim_attach(struct sim_array *array, const struct cowsnap_queue *queue);
/* Nothing may be in flight. NULL is accepted. */
void sim_detach(struct sim_port *port);
/* Completes what is due. Returns how many. */
unsigned sim_poll(struct sim_array *array, struct sim_port *port);
/* When the next request of a port is due; UINT64_MAX: there is none. */
uint64_t sim_next_ns(const struct sim_port *port);

/* The most requests a second that the model allows with so many in flight. */
double sim_bound_iops(const struct sim_array *array, double in_flight);

#endif
