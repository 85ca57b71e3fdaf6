/* SPDX-License-Identifier: MIT
 *
 * An allocator table over another one, that knows how many bytes are out and the most that were.
 */
#ifndef COWSNAP_BENCH_COUNTING_H
#define COWSNAP_BENCH_COUNTING_H

#include <cowsnap.h>
#include <stdatomic.h>

struct bench_counting {
	struct cowsnap_allocator table; /* for the context; has arenas if the other one has */
	struct cowsnap_allocator inner;
	_Atomic uint64_t bytes; /* as asked for */
	_Atomic uint64_t peak_bytes;
};

/* @inner: NULL for libc. @counting must stay in place as long as the table is used. */
void bench_counting_init(struct bench_counting *counting, const struct cowsnap_allocator *inner);
uint64_t bench_counting_bytes(const struct bench_counting *counting);
/* Returns the peak so far, and lets a new one begin at what is out now. */
uint64_t bench_counting_peak(struct bench_counting *counting);

#endif
