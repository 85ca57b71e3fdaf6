/* SPDX-License-Identifier: MIT
 *
 * Workloads of many writers: while one group of records is made durable the next one gathers, so
 * that a record write holds several of them, in the order in which the copies ended, and data of
 * other writers is pending beside it.
 */
#include "crash/workloads.h"
#include "support/test.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>

#define WRITERS       12
#define FLUSH_YIELDS  24
#define LINGER_YIELDS 200
#define CHUNKS        256u

/* What goes wrong while they write. */
enum trouble {
	NO_TROUBLE,
	RECORDS_FAIL, /* now and then */
};

struct writer {
	struct scenario *s;
	enum trouble trouble;
	struct seed seed;
	pthread_t thread;
	int rc;
};

static void fail_records(struct writer *writer)
{
	power_fail_areas(&writer->s->rig.power[POWER_STORE],
		(struct power_fault){
			.countdown = 1 + seed_below(&writer->seed, 3),
			.error = -EIO,
			.effect = (enum power_effect)seed_below(&writer->seed, POWER_EFFECTS),
		});
}

static void *write_much(void *argument)
{
	struct writer *writer = argument;
	struct scenario *s = writer->s;

	for (unsigned i = 0; i < s->variant && !writer->rc; i++) {
		uint64_t count = 1 + seed_below(&writer->seed, 3);
		uint64_t chunk = seed_below(&writer->seed, CHUNKS - count);

		if (writer->trouble == RECORDS_FAIL && seed_below(&writer->seed, 12) == 0)
			fail_records(writer);
		writer->rc = scenario_write(s, chunk, count);
		if (writer->rc == -ENOSPC || (writer->rc == -EIO && writer->trouble))
			writer->rc = 0;
		if (!writer->rc && seed_below(&writer->seed, 8) == 0)
			writer->rc = cowsnap_device_flush(s->rig.device[POWER_ORIGIN]);
	}
	return NULL;
}

static void start_writers(struct scenario *s, struct writer *writers, enum trouble trouble)
{
	s->rig.power[POWER_STORE].flush_yields = FLUSH_YIELDS;
	for (unsigned i = 0; i < WRITERS; i++) {
		writers[i] =
			(struct writer){.s = s, .trouble = trouble, .seed = {seed_next(&s->seed)}};
		cr_assert_eq(pthread_create(&writers[i].thread, NULL, write_much, &writers[i]), 0);
	}
}

static void join_writers(struct scenario *s, struct writer *writers)
{
	for (unsigned i = 0; i < WRITERS; i++)
		pthread_join(writers[i].thread, NULL);
	for (unsigned i = 0; i < WRITERS; i++)
		cr_assert_eq(writers[i].rc, 0, "%d", writers[i].rc);
	s->rig.power[POWER_STORE].flush_yields = 0;
}

static void write_together(struct scenario *s, enum trouble trouble)
{
	struct writer writers[WRITERS];

	start_writers(s, writers, trouble);
	join_writers(s, writers);
}

static void begin(struct scenario *s, enum cowsnap_loser on_full)
{
	scenario_start(s);
	scenario_create(s, s->workload->chunk_bytes, 0, 0);
	scenario_take(s, on_full);
}

/* Twice, with a new process in between, and with a store that is too small in the end. */
static void run_threads(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_WRITE);
	write_together(s, NO_TROUBLE);
	scenario_stop(s);
	scenario_start(s);
	scenario_attach(s, COWSNAP_LOSER_WRITE);
	write_together(s, NO_TROUBLE);
	scenario_stop(s);
}

const struct workload workload_threads = {
	.name = "threads",
	.run = run_threads,
	.chunk_bytes = 512,
	.origin_bytes = CHUNKS * 512,
	.store_chunks = 200,
};
const struct workload workload_threads_large_chunks = {
	.name = "threads-large-chunks",
	.run = run_threads,
	.chunk_bytes = 2048,
	.origin_bytes = CHUNKS * 2048,
	.store_chunks = 220,
};

/* Those that find no room make the snapshot invalid, while others commit to it. */
static void run_threads_invalidate(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_SNAPSHOT);
	scenario_promise(s, MAY_EXACT | MAY_INVALID);
	write_together(s, NO_TROUBLE);
	scenario_promise(s, MAY_INVALID);
	scenario_stop(s);
}

const struct workload workload_threads_invalidate = {
	.name = "threads-invalidate",
	.run = run_threads_invalidate,
	.chunk_bytes = 512,
	.origin_bytes = CHUNKS * 512,
	.store_chunks = 60,
};

/* Gives the writers time to do what they must not do yet. */
static void linger(void *user, enum power_kind kind, uint64_t offset, uint64_t length)
{
	(void)user;
	(void)length;
	for (unsigned i = 0; kind != POWER_FLUSH && offset == 0 && i < LINGER_YIELDS; i++)
		sched_yield();
}

/* No write may pass that was not saved, before it is durable that there is no snapshot. */
static void run_threads_drop(struct scenario *s)
{
	struct writer writers[WRITERS];

	begin(s, COWSNAP_LOSER_WRITE);
	s->rig.power[POWER_STORE].hook.call = linger;
	start_writers(s, writers, NO_TROUBLE);
	cr_assert_eq(scenario_write(s, 0, 1), 0);
	cr_assert_eq(scenario_write(s, 1, 1), 0);
	scenario_drop(s);
	join_writers(s, writers);
	scenario_take(s, COWSNAP_LOSER_WRITE);
	write_together(s, NO_TROUBLE);
	scenario_stop(s);
}

const struct workload workload_threads_drop = {
	.name = "threads-drop",
	.run = run_threads_drop,
	.chunk_bytes = 512,
	.origin_bytes = CHUNKS * 512,
	.store_chunks = 300,
};

/* A group fails, in whatever state its records are, and the next one uses its chunks. */
static void run_threads_records_fail(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_WRITE);
	write_together(s, RECORDS_FAIL);
	scenario_stop(s);
}

const struct workload workload_threads_records_fail = {
	.name = "threads-records-fail",
	.run = run_threads_records_fail,
	.chunk_bytes = 1024,
	.origin_bytes = CHUNKS * 1024,
	.store_chunks = 250,
};
