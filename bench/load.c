/* SPDX-License-Identifier: MIT
 *
 * The load generator: one thread for each job, which begins requests, polls, and times them.
 *
 * Locking: none. Between threads goes `handed` only: a list that others push to and the thread
 * takes as a whole.
 *
 * Failure: the first error of a thread ends it when what it has in flight has ended.
 */
#include "load.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct load {
	const struct bench_options *options;
	const struct load_job *job;
	const struct load_target *target;
	struct load_thread *threads;
};

struct stamp {
	uint64_t number;
	uint64_t generation;
};

void load_stamp(unsigned char *block, uint64_t bytes, uint64_t number, uint64_t generation)
{
	struct stamp stamp = {number, generation};

	memcpy(block, &stamp, sizeof(stamp));
	memcpy(block + bytes - sizeof(stamp), &stamp, sizeof(stamp));
}

bool load_is_stamped(
	const unsigned char *block, uint64_t bytes, uint64_t number, uint64_t generation)
{
	struct stamp stamp = {number, generation};

	return !memcmp(block, &stamp, sizeof(stamp)) &&
	       !memcmp(block + bytes - sizeof(stamp), &stamp, sizeof(stamp));
}

/* ---- One request ---------------------------------------------------------------------------- */

static void put_slot(struct load_slot *slot)
{
	struct load_thread *thread = slot->thread;

	slot->next = thread->free;
	thread->free = slot;
	thread->busy--;
}

static void ended(struct load_slot *slot, int error)
{
	struct load_thread *thread = slot->thread;
	uint64_t ns = bench_now_ns() - slot->began_ns;

	if (error && !thread->error)
		thread->error = error;
	latency_record(slot->writes ? &thread->write : &thread->read, ns);
	put_slot(slot);
}

static void host_write_ended(struct load_slot *slot, int error)
{
	const struct load_gate *gate = &slot->thread->load->target->gate;

	if (gate->begin)
		gate->end(gate->user, slot);
	ended(slot, error);
}

static void io_done(struct cowsnap_io *io, int error)
{
	struct load_slot *slot = io->user;

	if (slot->writes)
		host_write_ended(slot, error);
	else
		ended(slot, error);
}

static void submit(struct load_slot *slot, enum cowsnap_io_kind kind)
{
	struct load_thread *thread = slot->thread;
	int err;

	slot->io.kind = kind;
	slot->io.buffer = slot->buffer;
	slot->io.offset = slot->offset;
	slot->io.length = thread->load->job->bs;
	slot->io.done = io_done;
	slot->io.user = slot;
	err = cowsnap_device_submit(thread->load->target->device, thread->queue, &slot->io);
	if (err)
		io_done(&slot->io, bench_check(err, "cowsnap_device_submit"));
}

/* The host's own write, which was admitted. */
static void write_now(struct load_slot *slot)
{
	struct load_thread *thread = slot->thread;
	const struct load_target *target = thread->load->target;
	uint64_t bs = thread->load->job->bs;

	if (target->generation)
		load_stamp(slot->buffer, bs, slot->offset / bs, target->generation);
	if (target->submits && thread->queue)
		submit(slot, COWSNAP_IO_WRITE);
	else
		host_write_ended(
			slot, cowsnap_device_write(target->device, slot->buffer, slot->offset, bs));
}

void load_admitted(struct load_slot *slot, int error)
{
	if (error)
		ended(slot, bench_check(error, "a write that waited"));
	else
		write_now(slot);
}

void load_hand_over(struct load_slot *slot, int error)
{
	struct load_thread *thread = slot->thread;
	struct load_slot *first = atomic_load_explicit(&thread->handed, memory_order_relaxed);

	slot->error = error;
	do
		slot->next = first;
	/* Release: pairs with take_handed. */
	while (!atomic_compare_exchange_weak_explicit(
		&thread->handed, &first, slot, memory_order_release, memory_order_relaxed));
}

static unsigned take_handed(struct load_thread *thread)
{
	struct load_slot *slot;
	unsigned count = 0;

	if (!atomic_load_explicit(&thread->handed, memory_order_relaxed))
		return 0;
	/* Acquire: pairs with load_hand_over. */
	slot = atomic_exchange_explicit(&thread->handed, NULL, memory_order_acquire);
	while (slot) {
		struct load_slot *next = slot->next;

		load_admitted(slot, slot->error);
		slot = next;
		count++;
	}
	return count;
}

static void snapshot_read_done(struct cowsnap_op *op, void *user, int error)
{
	(void)op;
	ended(user, bench_check(error, "a read of the snapshot"));
}

static void read_now(struct load_slot *slot)
{
	struct load_thread *thread = slot->thread;
	const struct load_target *target = thread->load->target;
	uint64_t bs = thread->load->job->bs;
	int err;

	if (target->snapshot && thread->queue) {
		err = cowsnap_snapshot_read_async(target->snapshot, thread->queue, slot->buffer,
			slot->offset, bs, &slot->op, snapshot_read_done, slot);
		if (err == COWSNAP_PENDING)
			return;
	} else if (target->snapshot) {
		err = cowsnap_snapshot_read(target->snapshot, slot->buffer, slot->offset, bs);
	} else if (target->submits && thread->queue) {
		submit(slot, COWSNAP_IO_READ);
		return;
	} else {
		err = cowsnap_device_read(target->device, slot->buffer, slot->offset, bs);
	}
	ended(slot, bench_check(err, "read"));
}

static void begin(struct load_slot *slot)
{
	const struct load_gate *gate = &slot->thread->load->target->gate;
	int err = 0;

	slot->began_ns = bench_now_ns();
	if (!slot->writes) {
		read_now(slot);
		return;
	}
	if (gate->begin)
		err = gate->begin(gate->user, slot);
	if (err != COWSNAP_PENDING)
		load_admitted(slot, err);
}

/* ---- One job -------------------------------------------------------------------------------- */

/* Gives a slot its next place. Returns: is there one? */
static bool next_place(struct load_thread *thread, struct load_slot *slot)
{
	const struct load_job *job = thread->load->job;
	uint64_t block = thread->at % thread->blocks;

	if (thread->error || (job->number_ios && thread->at == job->number_ios))
		return false;
	if (thread->until_ns ? bench_now_ns() >= thread->until_ns : thread->at == thread->blocks)
		return false;
	if (thread->order)
		block = thread->order[block];
	thread->at++;
	slot->offset = (thread->first + block) * job->bs;
	slot->writes = job->writes;
	if (job->reads && job->writes) {
		thread->mix =
			thread->mix * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		slot->writes = (thread->mix >> 33) % 100 >= job->rwmixread;
	}
	return true;
}

/* Begins what can be begun, a few at a time. Returns how many. */
static unsigned begin_some(struct load_thread *thread, bool *more)
{
	unsigned most = thread->load->job->iodepth;
	unsigned count = 0;

	while (*more && thread->free && count < most) {
		struct load_slot *slot = thread->free;

		*more = next_place(thread, slot);
		if (!*more)
			break;
		thread->free = slot->next;
		thread->busy++;
		begin(slot);
		count++;
	}
	return count;
}

static int work_in_queue(struct load_thread *thread)
{
	const struct load_target *target = thread->load->target;
	bool more = true;

	while (more || thread->busy) {
		unsigned done = begin_some(thread, &more);
		int polled;

		if (thread->port)
			done += sim_poll(target->sim, thread->port);
		polled = cowsnap_queue_poll(thread->queue);
		if (polled < 0)
			return bench_check(polled, "cowsnap_queue_poll");
		done += (unsigned)polled + take_handed(thread);
		if (target->gate.poll)
			done += target->gate.poll(target->gate.user, thread);
		/* Others may have work for this CPU. */
		if (!done)
			sched_yield();
	}
	return thread->error;
}

static int work_waiting(struct load_thread *thread)
{
	struct load_slot *slot = thread->free;

	while (next_place(thread, slot)) {
		thread->free = NULL;
		thread->busy++;
		begin(slot);
	}
	return thread->error;
}

static int job_main(void *arg, unsigned index)
{
	struct load *load = arg;
	struct load_thread *thread = &load->threads[index];

	if (load->job->runtime_ns)
		thread->until_ns = bench_now_ns() + load->job->runtime_ns;
	return thread->queue ? work_in_queue(thread) : work_waiting(thread);
}

/* ---- All jobs ------------------------------------------------------------------------------- */

static void make_order(struct load_thread *thread)
{
	uint64_t state = UINT64_C(0x9e3779b97f4a7c15) * (thread->index + 1);

	thread->order = bench_alloc(thread->blocks, sizeof(*thread->order));
	for (uint64_t i = 0; i < thread->blocks; i++)
		thread->order[i] = (uint32_t)i;
	for (uint64_t i = thread->blocks; i > 1; i--) {
		uint32_t was = thread->order[i - 1];
		uint64_t j;

		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		j = state % i;
		thread->order[i - 1] = thread->order[j];
		thread->order[j] = was;
	}
}

static int thread_open(struct load_thread *thread)
{
	const struct load *load = thread->load;
	const struct load_job *job = load->job;
	unsigned depth = job->engine == LOAD_WAIT ? 1 : job->iodepth;
	int err;

	thread->blocks = job->size / job->bs / job->numjobs;
	thread->first = thread->index * thread->blocks;
	thread->mix = thread->index;
	latency_init(&thread->read);
	latency_init(&thread->write);
	if (job->random)
		make_order(thread);
	thread->slots = bench_alloc(depth, sizeof(*thread->slots));
	thread->buffers = aligned_alloc(4096, (depth * job->bs + 4095) & ~UINT64_C(4095));
	if (!thread->buffers)
		return bench_check(-ENOMEM, "buffers of a load");
	memset(thread->buffers, 1, depth * job->bs);
	thread->busy = depth;
	for (unsigned i = depth; i-- > 0;) {
		thread->slots[i].thread = thread;
		thread->slots[i].buffer = thread->buffers + i * job->bs;
		put_slot(&thread->slots[i]);
	}
	if (job->engine == LOAD_WAIT)
		return 0;
	err = cowsnap_queue_create(load->target->ctx, depth, &thread->queue);
	if (bench_check(err, "cowsnap_queue_create") < 0 || !load->target->sim)
		return err;
	thread->port = sim_attach(load->target->sim, thread->queue);
	return thread->port ? 0 : bench_check(-EMFILE, "ports of a simulated array");
}

static int thread_close(struct load_thread *thread)
{
	int err = bench_check(cowsnap_queue_close(thread->queue), "cowsnap_queue_close");

	sim_detach(thread->port);
	free(thread->slots);
	free(thread->buffers);
	free(thread->order);
	return err;
}

static int check_job(const struct load_job *job)
{
	bool good = job->numjobs && job->numjobs <= BENCH_THREADS_MAX && job->bs &&
		    job->size / job->bs >= job->numjobs && job->iodepth &&
		    job->iodepth <= LOAD_DEPTH_MAX && job->size / job->bs <= UINT32_MAX &&
		    (job->reads || job->writes);

	return good ? 0 : bench_check(-EINVAL, "a load of this size, depth and number of jobs");
}

int load_run(const struct bench_options *options, const struct load_job *job,
	const struct load_target *target, struct load_result *result)
{
	struct load load = {options, job, target, NULL};
	unsigned opened = 0;
	int err = check_job(job);

	if (err)
		return err;
	latency_init(&result->read);
	latency_init(&result->write);
	result->bs = job->bs;
	load.threads = aligned_alloc(64, job->numjobs * sizeof(*load.threads));
	if (!load.threads)
		return bench_check(-ENOMEM, "threads of a load");
	memset(load.threads, 0, job->numjobs * sizeof(*load.threads));
	for (; opened < job->numjobs && !err; opened++) {
		load.threads[opened].load = &load;
		load.threads[opened].index = opened;
		err = thread_open(&load.threads[opened]);
	}
	if (!err)
		err = bench_threads(options, job->numjobs, job_main, &load, &result->ns);
	for (unsigned i = 0; i < opened; i++) {
		int close_err = thread_close(&load.threads[i]);

		err = err ? err : close_err;
		latency_add(&result->read, &load.threads[i].read);
		latency_add(&result->write, &load.threads[i].write);
	}
	free(load.threads);
	return err;
}

/* ---- The library's gate --------------------------------------------------------------------- */

static void ready(struct cowsnap_op *op, void *user, int error)
{
	(void)op;
	load_admitted(user, error);
}

static void ready_on_worker(struct cowsnap_op *op, void *user, int error)
{
	(void)op;
	load_hand_over(user, error);
}

static int begin_waiting(void *user, struct load_slot *slot)
{
	return cowsnap_write_begin(
		user, COWSNAP_WRITE, slot->offset, slot->thread->load->job->bs, &slot->op);
}

static int begin_in_queue(void *user, struct load_slot *slot)
{
	return cowsnap_write_begin_async(user, slot->thread->queue, COWSNAP_WRITE, slot->offset,
		slot->thread->load->job->bs, &slot->op, ready, slot);
}

static int begin_on_worker(void *user, struct load_slot *slot)
{
	return cowsnap_write_begin_async(user, NULL, COWSNAP_WRITE, slot->offset,
		slot->thread->load->job->bs, &slot->op, ready_on_worker, slot);
}

static void end_bracket(void *user, struct load_slot *slot)
{
	(void)user;
	cowsnap_write_end(&slot->op);
}

struct load_gate load_origin_gate(struct cowsnap_origin *origin, enum load_engine engine)
{
	struct load_gate gate = {.end = end_bracket, .user = origin};

	gate.begin = engine == LOAD_WAIT    ? begin_waiting
		     : engine == LOAD_QUEUE ? begin_in_queue
					    : begin_on_worker;
	return gate;
}

int load_stamp_all(struct cowsnap_device *device, uint64_t bytes, uint64_t bs, uint64_t generation)
{
	uint64_t step = bs > UINT64_C(1) << 20 ? bs : (UINT64_C(1) << 20) / bs * bs;
	unsigned char *buffer = bench_alloc(1, step);
	int err = 0;

	for (uint64_t at = 0; at < bytes && !err; at += step) {
		uint64_t length = bytes - at < step ? bytes - at : step;

		for (uint64_t i = 0; i + bs <= length; i += bs)
			load_stamp(buffer + i, bs, (at + i) / bs, generation);
		err = bench_check(
			cowsnap_device_write(device, buffer, at, length), "cowsnap_device_write");
	}
	free(buffer);
	return err;
}
