/* SPDX-License-Identifier: MIT
 *
 * What the files of the copier and its engines see of it, and nobody else.
 */
#ifndef CS_COPIER_PARTS_H
#define CS_COPIER_PARTS_H

#include "copier.h"
#include "copier_throttle.h"

/* Also the largest block of a device: a buffer always holds a whole one. */
#define CS_SMALL_BYTES  UINT64_C(65536)
/* Behind each buffer, to fill up the last block of a target. */
#define CS_PAD_ROOM     UINT64_C(65536)
#define CS_BUFFER_ALIGN 4096u

#define CS_COPIER_THREADS    256u /* entries; 0 is shared */
#define CS_COPIER_LARGE_KEPT 16u  /* large buffers that are kept when not in use */
#define CS_COPIER_FLOWS      16u  /* of those who bring none */
#define CS_COPIER_STRIPES    64u

struct cs_copier_entry {
	_Alignas(CS_CACHE_BYTES) _Atomic uint64_t reads;
	_Atomic uint64_t read_bytes;
	_Atomic uint64_t writes;
	_Atomic uint64_t write_bytes;
	_Atomic uint64_t thread;  /* gettid at the first copy */
	_Atomic(uint8_t *) small; /* a small buffer not in use */
	_Atomic uint32_t number;  /* its thread's, from 1 on; 0: nobody has asked for it */
};

/* Credits set aside for a CPU. */
struct cs_copier_stripe {
	_Alignas(CS_CACHE_BYTES) _Atomic uint64_t idle; /* reserved, and not in use */
};

/* Flows with waiters, in a ring. */
struct cs_copier_line {
	struct cs_flow *last; /* the next of it is the first; NULL: nobody waits */
};

struct cowsnap_copier {
	const struct cs_base *base;
	struct cowsnap_ctx *ctx; /* of one that a host made; else NULL */
	uint64_t bound_bytes;
	uint64_t job_bytes;
	uint64_t large_bytes; /* length of a large buffer, without its CS_PAD_ROOM */
	uint64_t turn_bytes;  /* what a flow gets in its turn */
	uint64_t lease_bytes; /* the most that is idle in a stripe; 0: stripes are not used */
	uint32_t stripe_mask;

	/* Read by each copy, written by those who wait. */
	_Alignas(CS_CACHE_BYTES) _Atomic uint32_t waiting; /* credits in the lines */
	_Alignas(CS_CACHE_BYTES) _Atomic uint64_t inflight;
	struct cs_mutex credit_lock;
	struct cs_copier_line line[2]; /* the others', background's; under credit_lock */
	struct cs_flow flows[2][CS_COPIER_FLOWS];

	struct cs_mutex throttle_lock;
	struct cs_throttle throttle;  /* under throttle_lock */
	struct cs_waitlist throttled; /* under throttle_lock */

	struct cs_mutex buffer_lock;
	uint8_t *large[CS_COPIER_LARGE_KEPT]; /* under buffer_lock */
	unsigned large_count;                 /* under buffer_lock */

	struct cs_copier_stripe stripe[CS_COPIER_STRIPES];
	_Alignas(CS_CACHE_BYTES) _Atomic uint32_t thread_count;            /* those with a number */
	_Alignas(CS_CACHE_BYTES) _Atomic uintptr_t key[CS_COPIER_THREADS]; /* pthread_self(), 0: not
									    * claimed */
	struct cs_copier_entry entry[CS_COPIER_THREADS];
};

void cs_copier_init_credits(struct cowsnap_copier *copier);
void cs_copier_fini_credits(struct cowsnap_copier *copier);
/* Credits in use. */
uint64_t cs_copier_inflight(const struct cowsnap_copier *copier);

/* The calling thread's. */
struct cs_copier_entry *cs_copier_entry(struct cowsnap_copier *copier);

static inline void cs_copier_count(const struct cowsnap_copier *copier,
	const struct cs_copier_entry *entry, _Atomic uint64_t *counter, uint64_t n)
{
	/* An entry is added to by one thread, so that a plain sum will do; but for the shared one.
	 */
	if (entry != &copier->entry[0])
		atomic_store_explicit(counter,
			atomic_load_explicit(counter, memory_order_relaxed) + n,
			memory_order_relaxed);
	else
		atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

#endif
