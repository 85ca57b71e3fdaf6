/* SPDX-License-Identifier: MIT
 *
 * Threads that write to each block of a volume once after a take, with the store on a model device:
 * what the scenarios commit and persist have in common.
 */
#ifndef COWSNAP_BENCH_WRITERS_H
#define COWSNAP_BENCH_WRITERS_H

#include "bench.h"
#include "model_device.h"

#define WRITERS_CHUNK_BYTES  UINT64_C(4096)
#define WRITERS_AREA_RECORDS (WRITERS_CHUNK_BYTES / 16) /* of one area of a persistent store */

struct writers {
	const struct bench_options *options;
	struct bench_model_options device; /* of the store; bytes is set by writers_open() */
	bool persistent;
	unsigned threads;
	uint64_t writes;      /* of each thread in one round; together they cover the volume */
	uint64_t write_bytes; /* one chunk: random order; more: as they lie */
	/* writers.c's */
	struct bench_rig rig;
	struct bench_model model;
	uint64_t *order;
	unsigned char *data;
	uint64_t volume_bytes;
};

struct writers_round {
	uint64_t ns;                      /* of the slowest thread */
	uint64_t writes;                  /* of all threads */
	uint64_t records;                 /* chunks that were saved, each once */
	struct bench_model_counts device; /* flushes and bytes of this round, chunks since ever */
};

/* What was opened before a failure stays for writers_close(). */
int writers_open(struct writers *writers);
int writers_close(struct writers *writers);
/* Take, write, drop. Only the writing is timed and counted. */
int writers_run(struct writers *writers, struct writers_round *round);

/* Chunks of a persistent store with n records: header, data, areas, one of them with the end of the
 * list. */
static inline uint64_t writers_format_chunks(uint64_t records)
{
	return 1 + records + records / WRITERS_AREA_RECORDS + 1;
}

#endif
