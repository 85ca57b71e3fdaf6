/* SPDX-License-Identifier: MIT
 *
 * A device in memory that can have what a disk has: a flush that takes time, a durable write, and
 * counters of what was done. The memory outlives the device handles that are made of it, so that
 * one context after the other can open what it holds.
 */
#ifndef COWSNAP_BENCH_MODEL_DEVICE_H
#define COWSNAP_BENCH_MODEL_DEVICE_H

#include <cowsnap.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct bench_model_options {
	uint64_t bytes;
	bool flush;          /* false: it has no volatile cache */
	uint64_t flush_ns;   /* flushes go one after the other; 0: nothing is waited for */
	bool write_durable;  /* it has durable writes; these overlap with each other and flushes */
	uint64_t durable_ns; /* of one durable write; 0: nothing is waited for */
	uint64_t
		counted_chunk; /* count writes, and which chunks of this size were written; 0: no */
	bool small_pages;      /* memory only for the pages that are written: no huge pages */
};

struct bench_model_counts {
	uint64_t flushes;
	uint64_t written_bytes;  /* both kinds of writes; only with counted_chunk */
	uint64_t written_chunks; /* distinct ones since the opening; only with counted_chunk */
};

struct bench_model {
	struct bench_model_options options;
	unsigned char *pages;
	pthread_mutex_t flush_lock;
	_Atomic uint64_t flushes;
	_Atomic uint64_t written_bytes;
	_Atomic uint64_t *chunk_bits; /* one for each chunk that was written */
};

/* Returns 0 or a negative errno whose cause it has reported. */
int bench_model_open(struct bench_model *model, const struct bench_model_options *options);
/* No device of it may be open. Nothing to do if the opening failed or never was. */
void bench_model_close(struct bench_model *model);
/* As cowsnap_device_create(). */
int bench_model_device(
	struct cowsnap_ctx *ctx, struct bench_model *model, struct cowsnap_device **device);
struct bench_model_counts bench_model_counts(const struct bench_model *model);

#endif
