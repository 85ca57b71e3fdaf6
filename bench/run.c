/* SPDX-License-Identifier: MIT
 *
 * Time, memory and threads of cowsnap-bench.
 */
#include "bench.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t read_clock(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

uint64_t bench_now_ns(void)
{
	return read_clock(CLOCK_MONOTONIC);
}

uint64_t bench_timer(const struct bench_options *options)
{
	return read_clock(options->cpu_time ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC);
}

void *bench_alloc(size_t count, size_t bytes)
{
	void *memory = calloc(count, bytes);

	if (!memory && count && bytes) {
		fprintf(stderr, "cowsnap-bench: no memory for %zu times %zu bytes\n", count, bytes);
		exit(EXIT_FAILURE);
	}
	return memory;
}

int bench_check(int err, const char *what)
{
	if (err < 0)
		fprintf(stderr, "cowsnap-bench: %s: %s\n", what, strerror(-err));
	return err;
}

/* The CPUs of the process, read before anything is pinned. */
static const cpu_set_t *allowed_cpus(void)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static cpu_set_t allowed;
	static bool known;

	pthread_mutex_lock(&lock);
	if (!known && sched_getaffinity(0, sizeof(allowed), &allowed)) {
		CPU_ZERO(&allowed);
		CPU_SET(0, &allowed);
	}
	known = true;
	pthread_mutex_unlock(&lock);
	return &allowed;
}

void bench_pin(const struct bench_options *options, unsigned index)
{
	const cpu_set_t *allowed = allowed_cpus();
	unsigned left = index % (unsigned)CPU_COUNT(allowed);
	cpu_set_t one;
	int cpu = 0;

	if (!options->pin)
		return;
	while (!CPU_ISSET(cpu, allowed) || left-- > 0)
		cpu++;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (pthread_setaffinity_np(pthread_self(), sizeof(one), &one))
		fprintf(stderr, "cowsnap-bench: cannot pin a thread to CPU %d\n", cpu);
}

void bench_shuffle(uint64_t *order, uint64_t count)
{
	uint64_t state = UINT64_C(0x9e3779b97f4a7c15);

	for (uint64_t i = 0; i < count; i++)
		order[i] = i;
	for (uint64_t i = count; i > 1; i--) {
		uint64_t j;
		uint64_t was = order[i - 1];

		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		j = state % i;
		order[i - 1] = order[j];
		order[j] = was;
	}
}

struct thread_job {
	const struct bench_options *options;
	int (*work)(void *arg, unsigned index);
	void *arg;
	pthread_barrier_t *start;
	unsigned index;
	uint64_t ns;
	int error;
};

static void *thread_main(void *arg)
{
	struct thread_job *job = arg;
	uint64_t began;

	bench_pin(job->options, job->index);
	pthread_barrier_wait(job->start);
	began = bench_timer(job->options);
	job->error = job->work(job->arg, job->index);
	job->ns = bench_timer(job->options) - began;
	return NULL;
}

static void thread_start(pthread_t *thread, void *(*run)(void *), void *arg)
{
	int err = pthread_create(thread, NULL, run, arg);

	if (err) {
		fprintf(stderr, "cowsnap-bench: cannot start a thread: %s\n", strerror(err));
		exit(EXIT_FAILURE);
	}
}

int bench_threads(const struct bench_options *options, unsigned count,
	int (*work)(void *arg, unsigned index), void *arg, uint64_t *ns)
{
	struct thread_job jobs[BENCH_THREADS_MAX];
	pthread_t threads[BENCH_THREADS_MAX];
	pthread_barrier_t start;
	int err = 0;

	pthread_barrier_init(&start, NULL, count);
	for (unsigned i = 0; i < count; i++)
		jobs[i] = (struct thread_job){options, work, arg, &start, i, 0, 0};
	for (unsigned i = 1; i < count; i++)
		thread_start(&threads[i], thread_main, &jobs[i]);
	thread_main(&jobs[0]);
	*ns = jobs[0].ns;
	err = jobs[0].error;
	for (unsigned i = 1; i < count; i++) {
		pthread_join(threads[i], NULL);
		*ns = jobs[i].ns > *ns ? jobs[i].ns : *ns;
		err = err ? err : jobs[i].error;
	}
	pthread_barrier_destroy(&start);
	return err;
}

static void *load_main(void *arg)
{
	struct bench_load *load = arg;
	unsigned index = atomic_fetch_add_explicit(&load->next_index, 1, memory_order_relaxed);
	int err;

	bench_pin(load->options, index + 1);
	err = load->step(load->arg, index);
	pthread_barrier_wait(&load->ready);
	while (!err && index < load->busy &&
		!atomic_load_explicit(&load->stop, memory_order_relaxed))
		err = load->step(load->arg, index);
	if (err)
		atomic_store_explicit(&load->error, err, memory_order_relaxed);
	pthread_barrier_wait(&load->done);
	return NULL;
}

void bench_load_start(struct bench_load *load)
{
	unsigned count = load->busy + load->idle;

	atomic_init(&load->next_index, 0);
	atomic_init(&load->stop, false);
	atomic_init(&load->error, 0);
	pthread_barrier_init(&load->ready, NULL, count + 1);
	pthread_barrier_init(&load->done, NULL, count + 1);
	for (unsigned i = 0; i < count; i++)
		thread_start(&load->threads[i], load_main, load);
	pthread_barrier_wait(&load->ready);
}

int bench_load_stop(struct bench_load *load)
{
	atomic_store_explicit(&load->stop, true, memory_order_relaxed);
	pthread_barrier_wait(&load->done);
	for (unsigned i = 0; i < load->busy + load->idle; i++)
		pthread_join(load->threads[i], NULL);
	pthread_barrier_destroy(&load->ready);
	pthread_barrier_destroy(&load->done);
	return atomic_load_explicit(&load->error, memory_order_relaxed);
}
