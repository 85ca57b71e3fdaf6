/* SPDX-License-Identifier: MIT */
#include "bits.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "support/fail_alloc.h"
#include "support/seed.h"
#include "support/test.h"

#define GROUP CS_BITS_GROUP

static struct fail_alloc *memory;

static void open_bits(struct cs_bits *bits)
{
	memory = fail_alloc_create(false);
	cs_bits_init(bits, fail_alloc_table(memory));
}

static void open_dense(struct cs_bits *bits)
{
	memory = fail_alloc_create(false);
	cs_bits_init_dense(bits, fail_alloc_table(memory));
}

static void close_bits(struct cs_bits *bits)
{
	cs_bits_fini(bits);
	cr_assert_eq(fail_alloc_live(memory), 0);
	fail_alloc_destroy(memory);
}

Test(bits, an_empty_one_costs_nothing)
{
	struct cs_bits bits;

	open_bits(&bits);
	cr_assert(!cs_bits_any(&bits));
	cr_assert(!cs_bits_test(&bits, 0));
	cr_assert_eq(cs_bits_window(&bits, 64, 64), 0);
	cr_assert_eq(cs_bits_count(&bits), 0);
	cr_assert_eq(cs_bits_memory(&bits), 0);
	cr_assert_eq(cs_bits_set(&bits, 5, 0), 0);
	cr_assert_eq(fail_alloc_live(memory), 0);
	close_bits(&bits);
}

static void grow_a_group(struct cs_bits *bits)
{
	for (uint64_t i = 0; i < GROUP; i++) {
		uint64_t n = i * 7 % GROUP;

		cr_assert(!cs_bits_test(bits, GROUP + n));
		cr_assert_eq(cs_bits_set(bits, GROUP + n, 1), 0);
		cr_assert_eq(cs_bits_set(bits, GROUP + n, 1), 0);
		cr_assert(cs_bits_test(bits, GROUP + n));
		cr_assert_eq(cs_bits_count(bits), i + 1);
	}
	cr_assert(!cs_bits_test(bits, GROUP - 1));
	cr_assert(!cs_bits_test(bits, 2 * GROUP));
	cr_assert_eq(cs_bits_set(bits, 4 * GROUP, GROUP), 0);
	cr_assert_eq(cs_bits_set(bits, 4 * GROUP + 3, 1), 0);
	cr_assert_eq(cs_bits_window(bits, 4 * GROUP + 448, 64), ~UINT64_C(0));
	cr_assert_eq(cs_bits_count(bits), 2 * GROUP);
}

/* Few numbers, a line, all of a group: each by itself and by way of those before. */
Test(bits, a_group_grows)
{
	struct cs_bits bits;

	open_bits(&bits);
	grow_a_group(&bits);
	close_bits(&bits);
}

Test(bits, a_group_of_a_dense_one_grows)
{
	struct cs_bits bits;

	open_dense(&bits);
	grow_a_group(&bits);
	close_bits(&bits);
}

Test(bits, the_ends_of_what_can_be_numbered)
{
	struct cs_bits bits;

	open_bits(&bits);
	cr_assert_eq(cs_bits_set(&bits, 0, 1), 0);
	cr_assert_eq(cs_bits_set(&bits, COWSNAP_CHUNK_MAX, 1), 0);
	cr_assert(cs_bits_test(&bits, 0));
	cr_assert(cs_bits_test(&bits, COWSNAP_CHUNK_MAX));
	cr_assert(!cs_bits_test(&bits, COWSNAP_CHUNK_MAX - 1));
	cr_assert_eq(cs_bits_window(&bits, COWSNAP_CHUNK_MAX - 62, 63), UINT64_C(1) << 62);
	close_bits(&bits);
}

#define NUMBERS 20000u

static void check_all(const struct cs_bits *bits, const bool *want)
{
	uint64_t count = 0;

	for (uint64_t n = 0; n < NUMBERS; n += 64) {
		unsigned width = NUMBERS - n < 64 ? (unsigned)(NUMBERS - n) : 64;
		uint64_t mask = cs_bits_window(bits, n, width);

		for (unsigned i = 0; i < width; i++) {
			cr_assert_eq(mask >> i & 1, want[n + i], "number %u", (unsigned)(n + i));
			count += want[n + i];
		}
		cr_assert_eq(width == 64 ? 0 : mask >> width, 0);
	}
	cr_assert_eq(cs_bits_count(bits), count);
}

static void set_random(struct seed *seed, struct cs_bits *bits, bool *want)
{
	uint64_t first = seed_below(seed, NUMBERS);
	uint64_t count = 1 + seed_below(seed, seed_below(seed, 20) ? 8 : 2 * GROUP);

	if (count > NUMBERS - first)
		count = NUMBERS - first;
	if (first / 64 == (first + count - 1) / 64)
		cr_assert_eq(cs_bits_set_mask(bits, first / 64 * 64,
				     (~UINT64_C(0) >> (64 - count)) << first % 64),
			0);
	else
		cr_assert_eq(cs_bits_set(bits, first, count), 0);
	memset(want + first, 1, count);
}

Test(bits, as_an_array_would, .timeout = 30)
{
	struct seed seed = seed_for("bits");
	bool *want = calloc(2, NUMBERS);
	struct cs_bits bits[2];
	uint64_t cursor = 0;
	int rc = 1;

	open_bits(&bits[0]);
	cs_bits_init_dense(&bits[1], fail_alloc_table(memory));
	for (unsigned i = 0; i < 2; i++) {
		for (unsigned n = 0; n < 400; n++)
			set_random(&seed, &bits[i], want + i * NUMBERS);
		check_all(&bits[i], want + i * NUMBERS);
	}
	while (rc == 1)
		rc = cs_bits_or(&bits[0], &bits[1], &cursor, 1);
	cr_assert_eq(rc, 0);
	for (unsigned n = 0; n < NUMBERS; n++)
		want[n] |= want[NUMBERS + n];
	check_all(&bits[0], want);
	cs_bits_fini(&bits[1]);
	close_bits(&bits[0]);
	free(want);
}

static void fail_each(void (*open)(struct cs_bits *bits))
{
	for (unsigned n = 1, failed = 1; failed; n++) {
		struct cs_bits bits, more;
		uint64_t cursor = 0;
		int rc;

		open(&bits);
		cs_bits_init(&more, fail_alloc_table(memory));
		fail_alloc_at(memory, n, false);
		for (uint64_t i = 0; i < 100; i++) {
			while ((rc = cs_bits_set(&bits, i * i * 64, 1 + i % 9)) == -ENOMEM)
				;
			cr_assert_eq(rc, 0);
			cr_assert(cs_bits_test(&bits, i * i * 64));
		}
		while ((rc = cs_bits_or(&more, &bits, &cursor, 2)) != 0)
			cr_assert(rc == 1 || rc == -ENOMEM);
		cr_assert_eq(cs_bits_count(&more), cs_bits_count(&bits));
		failed = fail_alloc_failed(memory) > 0;
		cs_bits_fini(&more);
		close_bits(&bits);
	}
}

/* Each allocation fails in its turn: what was said to be in is in, and trying again works. */
Test(bits, without_memory)
{
	fail_each(open_bits);
	fail_each(open_dense);
}

/* A number that is not asked for as a part of a volume costs no more for its being far away. */
Test(bits, memory_follows_what_is_set)
{
	struct cs_bits bits;
	uint64_t before;

	open_bits(&bits);
	cr_assert_eq(cs_bits_set(&bits, 0, UINT64_C(1) << 20), 0);
	cr_assert_lt(cs_bits_memory(&bits), (UINT64_C(1) << 20) / 8, "all set: next to nothing");
	before = cs_bits_memory(&bits);
	for (uint64_t i = 0; i < 1 << 19; i++)
		cr_assert_eq(cs_bits_set(&bits, (UINT64_C(1) << 40) + 2 * i, 1), 0);
	cr_assert_lt(cs_bits_memory(&bits) - before, (UINT64_C(1) << 20) / 4, "every other one");
	cr_assert_leq(fail_alloc_live_bytes(memory), cs_bits_memory(&bits));
	close_bits(&bits);
}

/* A node and all of its slips, and what is set aside. */
Test(bits, memory_of_a_dense_one)
{
	struct cs_bits bits;
	uint64_t groups = 4096;

	open_dense(&bits);
	for (uint64_t i = 0; i < groups * GROUP; i += GROUP / 16)
		cr_assert_eq(cs_bits_set(&bits, i, 1), 0);
	cr_assert_lt(cs_bits_memory(&bits), groups * 700);
	close_bits(&bits);
}

/* ---- At the same time ------------------------------------------------------------------------ */

#define THREADS    4
#define PER_THREAD 3000u

struct race {
	struct cs_bits bits;
	_Atomic unsigned begun;
	_Atomic uint32_t told[THREADS]; /* numbers each has put in, in its order */
};

struct racer {
	struct race *race;
	unsigned index;
};

/* The threads' numbers lie side by side, so they meet in words, groups and stripes. */
static uint64_t number_of(unsigned thread, unsigned i)
{
	return (uint64_t)i * 37 % PER_THREAD * THREADS + thread;
}

static void *put_in(void *argument)
{
	const struct racer *racer = argument;
	struct race *race = racer->race;

	for (unsigned i = 0; i < PER_THREAD; i++) {
		unsigned other = (racer->index + i) % THREADS;
		uint32_t told = atomic_load(&race->told[other]);

		cr_assert_eq(cs_bits_set(&race->bits, number_of(racer->index, i), 1), 0);
		atomic_store(&race->told[racer->index], i + 1);
		for (uint32_t k = told > 20 ? told - 20 : 0; k < told; k++)
			cr_assert(cs_bits_test(&race->bits, number_of(other, k)));
	}
	return NULL;
}

Test(bits, threads, .timeout = 60)
{
	struct race *race = calloc(1, sizeof(*race));
	struct racer racer[THREADS];
	pthread_t thread[THREADS];

	open_bits(&race->bits);
	for (unsigned i = 0; i < THREADS; i++) {
		racer[i] = (struct racer){race, i};
		cr_assert_eq(pthread_create(&thread[i], NULL, put_in, &racer[i]), 0);
	}
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	cr_assert_eq(cs_bits_count(&race->bits), THREADS * PER_THREAD);
	for (uint64_t n = 0; n < (uint64_t)THREADS * PER_THREAD; n++)
		cr_assert(cs_bits_test(&race->bits, n));
	close_bits(&race->bits);
	free(race);
}
