/* SPDX-License-Identifier: MIT
 *
 * A load generator, in process, in fio's terms: jobs, each on a thread and on a slice of its own,
 * keep a number of requests in flight and time each one. A request that writes is admitted by a
 * *gate* first: the library's bracket, one of the rungs of the ladder, or nothing.
 */
#ifndef COWSNAP_BENCH_LOAD_H
#define COWSNAP_BENCH_LOAD_H

#include "bench.h"
#include "latency.h"
#include "sim_device.h"

#define LOAD_DEPTH_MAX 4096u

struct load;
struct load_thread;

enum load_engine {
	LOAD_WAIT,    /* a thread has one request, and waits for it */
	LOAD_QUEUE,   /* a thread has a queue, and polls it */
	LOAD_WORKERS, /* the same, but the library saves on its workers */
};

/* fio's options of these names. */
struct load_job {
	const char *name;
	bool reads;
	bool writes;
	bool random;        /* each block once, in random order; else in order */
	unsigned rwmixread; /* with reads and writes: percentage of reads */
	uint64_t bs;
	unsigned iodepth; /* of LOAD_QUEUE and LOAD_WORKERS */
	unsigned numjobs;
	uint64_t size;       /* of all jobs together: each has an equal slice */
	uint64_t runtime_ns; /* 0: once over the slice. Else again and again until then */
	uint64_t number_ios; /* of each job; 0: no such bound */
	enum load_engine engine;
};

/* One request; it is somebody's in turn: waits to be used, is begun, admitted, ended. */
struct load_slot {
	struct cowsnap_io io; /* the host's own */
	struct cowsnap_op op;
	struct load_thread *thread;
	struct load_slot *next;
	unsigned char *buffer;
	uint64_t offset;
	uint64_t began_ns;
	bool writes;
	int error;
	void *gate_words[2]; /* the gate's */
};

/* What admits a write. */
struct load_gate {
	/* On the slot's thread. Returns 0: go on; COWSNAP_PENDING: load_admitted() or
	 * load_hand_over() will be called; or an error. NULL: all writes may go on. */
	int (*begin)(void *user, struct load_slot *slot);
	void (*end)(void *user, struct load_slot *slot);
	/* On each turn of a thread. Returns how much was done. NULL: nothing to do. */
	unsigned (*poll)(void *user, struct load_thread *thread);
	void *user;
};

struct load_target {
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *device;     /* reads and writes go here ... */
	struct cowsnap_snapshot *snapshot; /* ... but reads of a snapshot, if there is one */
	bool submits;                      /* the device can be submitted to */
	struct sim_array *sim;             /* what the device is, or NULL */
	struct load_gate gate;
	/* Each block that is written begins with its number and this; 0: no stamps. */
	uint64_t generation;
};

struct load_result {
	uint64_t ns; /* of the slowest job */
	struct latency read;
	struct latency write;
	uint64_t bs;
};

struct load_thread {
	struct load *load;
	unsigned index;
	struct cowsnap_queue *queue; /* NULL: LOAD_WAIT */
	struct sim_port *port;       /* NULL: not on a simulated array */
	struct load_slot *slots;
	unsigned char *buffers;
	struct load_slot *free;
	unsigned busy;   /* slots that are not free */
	uint32_t *order; /* of the slice's blocks; NULL: as they lie */
	uint64_t first;  /* block of the slice */
	uint64_t blocks; /* of the slice */
	uint64_t at;     /* requests begun */
	uint64_t until_ns;
	uint64_t mix; /* state of a generator */
	int error;
	struct latency read;
	struct latency write;
	_Alignas(64) _Atomic(struct load_slot *) handed; /* by other threads */
};

/* Returns 0 or the first error, which has been reported. */
int load_run(const struct bench_options *options, const struct load_job *job,
	const struct load_target *target, struct load_result *result);

/* A pending write was admitted (@error 0) or refused; on its thread. */
void load_admitted(struct load_slot *slot, int error);
/* The same on another thread. */
void load_hand_over(struct load_slot *slot, int error);

/* The library's own gate, for an origin; user: the origin. */
struct load_gate load_origin_gate(struct cowsnap_origin *origin, enum load_engine engine);

/* A stamp at both ends of a block. */
void load_stamp(unsigned char *block, uint64_t bytes, uint64_t number, uint64_t generation);
bool load_is_stamped(
	const unsigned char *block, uint64_t bytes, uint64_t number, uint64_t generation);
/* Stamps all of a device, in blocks of @bs. */
int load_stamp_all(struct cowsnap_device *device, uint64_t bytes, uint64_t bs, uint64_t generation);

/* ---- Names, the command line and the report (load_shapes.c, load_cli.c, load_json.c) -------- */

struct load_shape {
	const char *name;
	struct load_job job;
	bool snapshot; /* it reads the snapshot; else it goes to the origin */
};

/* A benchmark of the device-mapper test suite; NULL: there is none of this name. */
const struct load_shape *load_find_shape(const char *name);
/* All names, one after the other; NULL: there are no more. */
const char *load_shape_name(size_t index);

enum load_hook {
	LOAD_BARE,     /* the device without the library */
	LOAD_ORIGIN,   /* brackets, and no snapshot */
	LOAD_SNAPSHOT, /* a snapshot was taken just before */
};

/* What the command line says. */
struct load_command {
	struct load_job job;
	const char *target; /* memory, sim, or the path of a file */
	enum load_hook hook;
	bool reads_snapshot;
	bool uring;
	struct sim_options sim;
	bool any; /* an option of a load was given */
};

/* The options of a load; its input is a struct load_command, set up by load_command_init(). */
extern const struct argp load_argp;
void load_command_init(struct load_command *command);
/* Runs it and reports. Returns 0 or a negative errno whose cause it has reported. */
int load_command_run(const struct bench_options *options, struct load_command *command,
	const char *line, bool json, const char *json_path);

/* fio's JSON, of one job with group reporting. @more: the library's own part, or NULL; it is
 * consumed. Returns 0 or a negative errno whose cause it has reported. */
int load_report_json(const struct load_job *job, const struct load_result *result, const char *line,
	json_t *more, const char *path);
void load_report_text(const struct load_job *job, const struct load_result *result);

#endif
