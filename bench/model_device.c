/* SPDX-License-Identifier: MIT
 *
 * The model of a device with a cache. Its times are slept: a thread that waits for a disk leaves
 * the CPU to others, and that is what groups of commits are made of.
 *
 * Locking: flush_lock is held while a flush sleeps, so that flushes queue as those of a disk do.
 * All else is atomic. Relaxed everywhere: nothing is published through a counter.
 */
#include "model_device.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>

#include "bench.h"

static void pause_ns(uint64_t ns)
{
	struct timespec until;

	if (!ns)
		return;
	/* Else a sleep of 100 us lasts 150: the system may join the wake-ups of several. */
	(void)prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
	ns += bench_now_ns();
	until.tv_sec = (time_t)(ns / UINT64_C(1000000000));
	until.tv_nsec = (long)(ns % UINT64_C(1000000000));
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
		;
}

static void count_write(struct bench_model *model, uint64_t offset, uint64_t length)
{
	uint64_t chunk_bytes = model->options.counted_chunk;

	if (!chunk_bytes)
		return;
	atomic_fetch_add_explicit(&model->written_bytes, length, memory_order_relaxed);
	for (uint64_t chunk = offset / chunk_bytes; chunk <= (offset + length - 1) / chunk_bytes;
		chunk++)
		atomic_fetch_or_explicit(&model->chunk_bits[chunk / 64], UINT64_C(1) << chunk % 64,
			memory_order_relaxed);
}

static int model_read(void *user, void *buffer, uint64_t offset, uint64_t length)
{
	const struct bench_model *model = user;

	memcpy(buffer, model->pages + offset, length);
	return 0;
}

static int model_write(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	struct bench_model *model = user;

	memcpy(model->pages + offset, buffer, length);
	count_write(model, offset, length);
	return 0;
}

static int model_write_durable(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	const struct bench_model *model = user;

	model_write(user, buffer, offset, length);
	pause_ns(model->options.durable_ns);
	return 0;
}

static int model_flush(void *user)
{
	struct bench_model *model = user;

	atomic_fetch_add_explicit(&model->flushes, 1, memory_order_relaxed);
	if (!model->options.flush_ns)
		return 0;
	pthread_mutex_lock(&model->flush_lock);
	pause_ns(model->options.flush_ns);
	pthread_mutex_unlock(&model->flush_lock);
	return 0;
}

int bench_model_open(struct bench_model *model, const struct bench_model_options *options)
{
	void *pages = mmap(NULL, options->bytes, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (pages == MAP_FAILED)
		return bench_check(-errno, "memory of a model device");
	/* The same that the library does for its memory devices, or the opposite. Without huge
	 * pages in the system both fail and change nothing. */
	(void)madvise(
		pages, options->bytes, options->small_pages ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
	*model = (struct bench_model){.options = *options, .pages = pages};
	pthread_mutex_init(&model->flush_lock, NULL);
	if (options->counted_chunk)
		model->chunk_bits = bench_alloc(options->bytes / options->counted_chunk / 64 + 1,
			sizeof(*model->chunk_bits));
	return 0;
}

void bench_model_close(struct bench_model *model)
{
	if (!model->pages)
		return;
	munmap(model->pages, model->options.bytes);
	pthread_mutex_destroy(&model->flush_lock);
	free(model->chunk_bits);
	model->pages = NULL;
}

int bench_model_device(
	struct cowsnap_ctx *ctx, struct bench_model *model, struct cowsnap_device **device)
{
	struct cowsnap_device_ops ops = {
		.size = sizeof(ops),
		.read = model_read,
		.write = model_write,
		.flush = model->options.flush ? model_flush : NULL,
		.write_durable = model->options.write_durable ? model_write_durable : NULL,
	};
	struct cowsnap_device_options options = {
		.size = sizeof(options), .size_bytes = model->options.bytes, .name = "model"};

	return bench_check(
		cowsnap_device_create(ctx, &ops, &options, model, device), "cowsnap_device_create");
}

struct bench_model_counts bench_model_counts(const struct bench_model *model)
{
	uint64_t chunk_bytes = model->options.counted_chunk;
	uint64_t words = chunk_bytes ? model->options.bytes / chunk_bytes / 64 + 1 : 0;
	struct bench_model_counts counts = {
		.flushes = atomic_load_explicit(&model->flushes, memory_order_relaxed),
		.written_bytes = atomic_load_explicit(&model->written_bytes, memory_order_relaxed),
	};

	for (uint64_t i = 0; i < words; i++)
		counts.written_chunks += (uint64_t)__builtin_popcountll(
			atomic_load_explicit(&model->chunk_bits[i], memory_order_relaxed));
	return counts;
}
