/* SPDX-License-Identifier: MIT
 *
 * Random numbers that can be had again: a test prints its seed, and COWSNAP_SEED=n gives it back.
 */
#ifndef CS_TEST_SEED_H
#define CS_TEST_SEED_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

struct seed {
	uint64_t state;
};

static inline struct seed seed_for(const char *test)
{
	const char *given = getenv("COWSNAP_SEED");
	struct timespec now;
	uint64_t seed;

	clock_gettime(CLOCK_REALTIME, &now);
	seed = given ? strtoull(given, NULL, 0)
		     : (uint64_t)now.tv_sec * 1000003 ^ (uint64_t)now.tv_nsec;
	fprintf(stderr, "%s: seed %llu; to replay: COWSNAP_SEED=%llu\n", test,
		(unsigned long long)seed, (unsigned long long)seed);
	return (struct seed){seed};
}

/* splitmix64 */
static inline uint64_t seed_next(struct seed *s)
{
	uint64_t z = (s->state += UINT64_C(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/* 0 to @end - 1. */
static inline uint64_t seed_below(struct seed *s, uint64_t end)
{
	return seed_next(s) % end;
}

static inline void seed_fill(struct seed *s, void *buffer, size_t bytes)
{
	uint8_t *at = buffer;

	for (size_t i = 0; i < bytes; i++)
		at[i] = (uint8_t)(seed_next(s) >> 32);
}

#endif
