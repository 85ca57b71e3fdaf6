/* SPDX-License-Identifier: MIT
 *
 * Workloads of an event loop: many writes under way on one queue, the store submitted to, its
 * requests ending in any order. So data of some is written while records of others are, and while
 * a flush is under way that covers neither.
 */
#include "crash/workloads.h"
#include "support/test.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>

#define CHUNKS    256u
#define IN_FLIGHT 12u
#define WRITERS   4u

/* What else happens. */
#define RECORDS_FAIL 1u /* now and then */
#define THREADS      2u /* that write too, and wait */

struct loop;

struct looped_write {
	struct cowsnap_op op;
	struct loop *loop;
	uint64_t offset, length;
	bool busy;
};

struct loop {
	struct scenario *s;
	unsigned flags;
	struct looped_write write[IN_FLIGHT];
	unsigned begun, ended;
	int rc;
};

static bool tolerable(const struct loop *loop, int rc)
{
	return rc == -ENOSPC || (rc == -EIO && loop->flags & RECORDS_FAIL);
}

static void ready(struct cowsnap_op *op, void *user, int error)
{
	struct looped_write *w = user;
	struct loop *loop = w->loop;

	if (!error)
		error = rig_write_admitted(&loop->s->rig, op, w->offset, w->length);
	if (error && !tolerable(loop, error))
		loop->rc = error;
	w->busy = false;
	loop->ended++;
}

static void begin_write(struct loop *loop, struct looped_write *w)
{
	struct scenario *s = loop->s;
	uint64_t count = 1 + seed_below(&s->seed, 3);
	uint64_t size = s->workload->chunk_bytes;
	int rc;

	w->loop = loop;
	w->busy = true;
	w->offset = seed_below(&s->seed, CHUNKS - count) * size;
	w->length = count * size;
	loop->begun++;
	rc = cowsnap_write_begin_async(
		s->rig.origin, s->rig.queue, COWSNAP_WRITE, w->offset, w->length, &w->op, ready, w);
	if (rc != COWSNAP_PENDING)
		ready(&w->op, w, rc);
}

static void fail_records(struct scenario *s)
{
	power_fail_areas(&s->rig.power[POWER_STORE],
		(struct power_fault){
			.countdown = 1 + seed_below(&s->seed, 3),
			.error = -EIO,
			.effect = (enum power_effect)seed_below(&s->seed, POWER_EFFECTS),
		});
}

static void run_loop(struct loop *loop)
{
	struct scenario *s = loop->s;
	unsigned writes = s->variant * IN_FLIGHT;

	while (loop->ended < writes) {
		struct looped_write *w = &loop->write[seed_below(&s->seed, IN_FLIGHT)];
		struct pollfd fd = {.fd = cowsnap_queue_fd(s->rig.queue), .events = POLLIN};

		if (!w->busy && loop->begun < writes)
			begin_write(loop, w);
		if (loop->flags & RECORDS_FAIL && seed_below(&s->seed, 30) == 0)
			fail_records(s);
		if (seed_below(&s->seed, 3) == 0)
			power_step(&s->rig.power[POWER_STORE], seed_next(&s->seed));
		if (seed_below(&s->seed, 60) == 0)
			scenario_flush_origin(s);
		if (poll(&fd, 1, 0) > 0)
			cr_assert_geq(cowsnap_queue_poll(s->rig.queue), 0);
	}
	cr_assert_eq(loop->rc, 0, "%d", loop->rc);
}

struct writer {
	struct scenario *s;
	struct seed seed;
	pthread_t thread;
	int rc;
};

static void *write_much(void *argument)
{
	struct writer *writer = argument;

	for (unsigned i = 0; i < writer->s->variant && !writer->rc; i++) {
		uint64_t count = 1 + seed_below(&writer->seed, 3);
		uint64_t chunk = seed_below(&writer->seed, CHUNKS - count);

		writer->rc = scenario_write(writer->s, chunk, count);
		if (writer->rc == -ENOSPC)
			writer->rc = 0;
	}
	return NULL;
}

static void write_together(struct scenario *s, unsigned flags)
{
	struct loop loop = {.s = s, .flags = flags};
	struct writer writer[WRITERS];
	unsigned writers = flags & THREADS ? WRITERS : 0;

	for (unsigned i = 0; i < writers; i++) {
		writer[i] = (struct writer){.s = s, .seed = {seed_next(&s->seed)}};
		cr_assert_eq(pthread_create(&writer[i].thread, NULL, write_much, &writer[i]), 0);
	}
	run_loop(&loop);
	/* What they wait for is not led by a queue that nobody polls any more. */
	for (unsigned i = 0; i < writers; i++) {
		pthread_join(writer[i].thread, NULL);
		cr_assert_eq(writer[i].rc, 0, "%d", writer[i].rc);
	}
	cr_assert_not(power_step(&s->rig.power[POWER_STORE], 0));
}

static void begin(struct scenario *s, enum cowsnap_loser on_full)
{
	s->rig.looped = true;
	scenario_start(s);
	scenario_create(s, s->workload->chunk_bytes, 0, 0);
	scenario_take(s, on_full);
}

/* Twice, with a new process in between, and with a store that is too small in the end. */
static void run_twice(struct scenario *s, unsigned flags)
{
	begin(s, COWSNAP_LOSER_WRITE);
	write_together(s, flags);
	scenario_stop(s);
	scenario_start(s);
	scenario_attach(s, COWSNAP_LOSER_WRITE);
	write_together(s, flags);
	scenario_stop(s);
}

static void run_alone(struct scenario *s)
{
	run_twice(s, 0);
}

const struct workload workload_loop = {
	.name = "loop",
	.run = run_alone,
	.chunk_bytes = 512,
	.origin_bytes = CHUNKS * 512,
	.store_chunks = 200,
};
const struct workload workload_loop_large_chunks = {
	.name = "loop-large-chunks",
	.run = run_alone,
	.chunk_bytes = 2048,
	.origin_bytes = CHUNKS * 2048,
	.store_chunks = 220,
};

static void run_with_threads(struct scenario *s)
{
	run_twice(s, THREADS);
}

const struct workload workload_loop_and_threads = {
	.name = "loop-and-threads",
	.run = run_with_threads,
	.chunk_bytes = 512,
	.origin_bytes = CHUNKS * 512,
	.store_chunks = 200,
};

/* Those that find no room make the snapshot invalid, while others commit to it. */
static void run_invalidate(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_SNAPSHOT);
	scenario_promise(s, MAY_EXACT | MAY_INVALID);
	write_together(s, 0);
	scenario_promise(s, MAY_INVALID);
	scenario_stop(s);
}

const struct workload workload_loop_invalidate = {
	.name = "loop-invalidate",
	.run = run_invalidate,
	.chunk_bytes = 512,
	.origin_bytes = CHUNKS * 512,
	.store_chunks = 60,
};

/* A group fails, in whatever state its records are, and the next one uses its chunks. */
static void run_records_fail(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_WRITE);
	write_together(s, RECORDS_FAIL);
	scenario_stop(s);
}

const struct workload workload_loop_records_fail = {
	.name = "loop-records-fail",
	.run = run_records_fail,
	.chunk_bytes = 1024,
	.origin_bytes = CHUNKS * 1024,
	.store_chunks = 250,
};
