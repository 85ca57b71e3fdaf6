/* SPDX-License-Identifier: MIT
 *
 * cowsnap-bench-sharing: two threads that do what sharing.py watches under valgrind. Each has its
 * own chunks. What is watched lies between two stores to a thread's mark, the first when a phase
 * begins and the second when it has ended. Before that it has done the same a few times.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "load.h"

#define THREADS     2u
#define CHUNK_BYTES UINT64_C(4096)
#define SHARE       UINT64_C(4096) /* chunks of each thread: no leaf of the map is shared */
#define WARM_UP     64u
#define WATCHED     64u
#define DEPTH       8u

struct sharing {
	struct bench_options options;
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *device;
	struct cowsnap_device *store_device;
	struct cowsnap_origin *origin;
	struct cowsnap_store *store;
	struct cowsnap_snapshot *snapshot;
	pthread_barrier_t together;
	struct cowsnap_queue *queues[THREADS];
};

/* A line of its own for each thread: the marks must not be what is found. */
struct mark {
	_Alignas(64) volatile uint32_t phase;
};

static struct mark marks[THREADS];

enum phase { NO_SNAPSHOT, SAVED, SAVED_IN_QUEUE, FIRST_TOUCH, FIRST_TOUCH_IN_QUEUE, PHASES };

static const char *const names[PHASES] = {"begin and end, no snapshot", "begin and end, saved",
	"begin and end in a queue, saved", "first touch, waiting", "first touch, in a queue"};

static void nothing(struct cowsnap_op *op, void *user, int error)
{
	(void)op;
	*(int *)user = error;
}

static int bracket(struct sharing *s, struct cowsnap_queue *queue, uint64_t chunk)
{
	uint64_t offset = chunk * CHUNK_BYTES;
	struct cowsnap_op op;
	int result = COWSNAP_PENDING;
	int err;

	if (!queue) {
		err = cowsnap_write_begin(s->origin, COWSNAP_WRITE, offset, CHUNK_BYTES, &op);
	} else {
		err = cowsnap_write_begin_async(s->origin, queue, COWSNAP_WRITE, offset,
			CHUNK_BYTES, &op, nothing, &result);
		while (err == COWSNAP_PENDING && result == COWSNAP_PENDING)
			cowsnap_queue_poll(queue);
		err = err == COWSNAP_PENDING ? result : err;
	}
	if (!err)
		cowsnap_write_end(&op);
	return err;
}

static int do_phase(struct sharing *s, unsigned index, enum phase phase)
{
	bool in_queue = phase == SAVED_IN_QUEUE || phase == FIRST_TOUCH_IN_QUEUE;
	struct cowsnap_queue *queue = in_queue ? s->queues[index] : NULL;
	uint64_t chunk = index * SHARE;
	int err = 0;

	/* The chunks that the last phase saved are not touched first any more. */
	if (phase >= FIRST_TOUCH)
		chunk += SHARE / 4 * (uint64_t)phase / 2;
	for (unsigned i = 0; i < WARM_UP + WATCHED && !err; i++) {
		if (i == WARM_UP)
			marks[index].phase = 2 * phase + 1;
		err = bracket(s, queue, chunk + i);
	}
	marks[index].phase = 2 * phase + 2;
	return bench_check(err, names[phase]);
}

static int sharing_main(void *arg, unsigned index)
{
	struct sharing *s = arg;
	int err = do_phase(s, index, NO_SNAPSHOT);

	pthread_barrier_wait(&s->together);
	if (!index && !err) {
		struct cowsnap_take_entry entry = {.origin = s->origin, .store = s->store};

		err = bench_check(cowsnap_take(s->ctx, NULL, &entry, 1), "cowsnap_take");
		s->snapshot = entry.snapshot;
	}
	pthread_barrier_wait(&s->together);
	/* Both threads have their first copies behind them, and these chunks are saved. */
	for (uint64_t i = 0; i < WARM_UP + WATCHED && !err; i++)
		err = bracket(s, NULL, index * SHARE + i);
	for (enum phase phase = SAVED; phase < PHASES; phase++) {
		pthread_barrier_wait(&s->together);
		if (!err)
			err = do_phase(s, index, phase);
	}
	return err;
}

static int sharing_open(struct sharing *s)
{
	uint64_t bytes = THREADS * SHARE * CHUNK_BYTES;
	struct bench_rig_options what = {.chunk_bytes = CHUNK_BYTES, .store_bytes = bytes};
	int err = bench_context_engine(&s->options, COWSNAP_ENGINE_LOOP, 0, &s->ctx);

	if (!err)
		err = cowsnap_device_memory(s->ctx, bytes, &s->device);
	if (!err)
		err = cowsnap_device_memory(s->ctx, bytes, &s->store_device);
	if (!err)
		err = cowsnap_origin_open(s->ctx, s->device, &s->origin);
	if (!err)
		err = bench_store_open(s->ctx, &what, s->store_device, &s->store);
	for (unsigned i = 0; i < THREADS && !err; i++)
		err = cowsnap_queue_create(s->ctx, DEPTH, &s->queues[i]);
	return bench_check(err, "what the threads need");
}

static int sharing_close(struct sharing *s)
{
	int err = bench_drop(s->snapshot);

	for (unsigned i = 0; i < THREADS && !err; i++)
		err = cowsnap_queue_close(s->queues[i]);
	if (!err)
		err = cowsnap_store_close(s->store);
	if (!err)
		err = cowsnap_origin_close(s->origin);
	if (!err)
		err = cowsnap_device_close(s->device);
	if (!err)
		err = cowsnap_device_close(s->store_device);
	if (!err)
		err = cowsnap_ctx_destroy(s->ctx);
	return bench_check(err, "closing");
}

int main(void)
{
	static struct sharing sharing;
	char line[512];
	FILE *maps = fopen("/proc/self/maps", "re");
	uint64_t ns;
	int err;

	printf("marks %lx %zu\n", (unsigned long)(uintptr_t)marks, sizeof(marks[0]));
	for (unsigned i = 0; i < PHASES; i++)
		printf("phase %u %s\n", i, names[i]);
	while (maps && fgets(line, sizeof(line), maps))
		printf("map %s", line);
	if (maps)
		fclose(maps);
	fflush(stdout);
	sharing.options = (struct bench_options){.pin = true, .repeat = 1};
	pthread_barrier_init(&sharing.together, NULL, THREADS);
	err = sharing_open(&sharing);
	if (!err)
		err = bench_threads(&sharing.options, THREADS, sharing_main, &sharing, &ns);
	return err || sharing_close(&sharing) ? EXIT_FAILURE : EXIT_SUCCESS;
}
