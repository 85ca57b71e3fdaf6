/* SPDX-License-Identifier: MIT
 *
 * Which CPU this is, so that what every thread writes can be split by CPU. Only a hint: a thread
 * may be moved at any moment.
 */
#ifndef CS_CPU_H
#define CS_CPU_H

#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#if defined(__has_include) && defined(__has_builtin)
#if __has_include(<sys/rseq.h>) && __has_builtin(__builtin_thread_pointer)
#include <sys/rseq.h>
#define CS_CPU_RSEQ 1
#endif
#endif

/* glibc's rseq area says it in one load; where it is not registered, the call does the same and
 * costs a few nanoseconds more. */
static inline uint32_t cs_cpu_current(void)
{
#if defined(CS_CPU_RSEQ)
	if (__builtin_expect(__rseq_size != 0, 1)) {
		const char *area = (const char *)__builtin_thread_pointer() + __rseq_offset;

		return *(const volatile uint32_t *)(area + offsetof(struct rseq, cpu_id_start));
	}
#endif
	return (uint32_t)sched_getcpu();
}

/* How many stripes to split something into: a power of two, no more than @most. */
static inline uint32_t cs_cpu_stripes(uint32_t most)
{
	long cpus = sysconf(_SC_NPROCESSORS_CONF);
	uint32_t stripes = 1;

	while (stripes < most && (long)stripes < cpus)
		stripes *= 2;
	return stripes;
}

#endif
