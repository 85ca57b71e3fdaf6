/* SPDX-License-Identifier: MIT */
#include "support/test.h"

#include "alloc.h"
#include "hist.h"

#include <pthread.h>
#include <string.h>

static struct cs_hist *new_hist(void)
{
	struct cs_hist *hist = cs_alloc(cs_alloc_libc(), sizeof(*hist));

	cr_assert_not_null(hist);
	memset(hist, 0xff, sizeof(*hist));
	cs_hist_init(hist);
	return hist;
}

static void free_hist(struct cs_hist *hist)
{
	cs_free(cs_alloc_libc(), hist, sizeof(*hist));
}

Test(hist, nothing_recorded_is_zero)
{
	struct cs_hist *hist = new_hist();
	struct cs_hist_sum sum = {0};

	cs_hist_add(&sum, hist);
	cr_assert_eq(sum.count, 0);
	cr_assert_eq(sum.max_ns, 0);
	cr_assert_eq(cs_hist_percentile_ns(&sum, 500), 0);
	cr_assert_eq(cs_hist_percentile_ns(&sum, 1000), 0);
	free_hist(hist);
}

/* One value beside a huge one: the median names the value's step, at most 1/16 too high. */
static void check_value(struct cs_hist *hist, uint64_t value_ns)
{
	struct cs_hist_sum sum = {0};
	uint64_t found_ns;

	cs_hist_init(hist);
	cs_hist_record(hist, value_ns);
	cs_hist_record(hist, UINT64_MAX);
	cs_hist_add(&sum, hist);
	found_ns = cs_hist_percentile_ns(&sum, 500);
	cr_assert_geq(found_ns, value_ns, "value %llu", (unsigned long long)value_ns);
	cr_assert_leq(
		found_ns - value_ns, value_ns / 16, "value %llu", (unsigned long long)value_ns);
}

Test(hist, every_size_is_within_a_sixteenth)
{
	struct cs_hist *hist = new_hist();

	for (uint64_t value = 0; value < 5000; value++)
		check_value(hist, value);
	for (unsigned int bit = 12; bit < CS_HIST_MAX_BITS; bit++) {
		uint64_t power = UINT64_C(1) << bit;

		check_value(hist, power - 1);
		check_value(hist, power);
		check_value(hist, power + 1);
		check_value(hist, power + power / 3);
		check_value(hist, power + (power - 1));
	}
	free_hist(hist);
}

Test(hist, the_maximum_is_exact_and_bounds_all)
{
	struct cs_hist *hist = new_hist();
	struct cs_hist_sum sum = {0};

	cs_hist_record(hist, 1000003);
	cs_hist_record(hist, 7);
	cs_hist_add(&sum, hist);
	cr_assert_eq(sum.max_ns, 1000003);
	cr_assert_eq(cs_hist_percentile_ns(&sum, 1000), 1000003);
	free_hist(hist);
}

Test(hist, longer_than_the_range_still_counts)
{
	struct cs_hist *hist = new_hist();
	struct cs_hist_sum sum = {0};
	const uint64_t long_ns = UINT64_C(1) << 50;

	cs_hist_record(hist, long_ns);
	cs_hist_record(hist, long_ns + 1);
	cs_hist_add(&sum, hist);
	cr_assert_eq(sum.count, 2);
	cr_assert_eq(cs_hist_percentile_ns(&sum, 500), long_ns + 1);
	free_hist(hist);
}

Test(hist, percentiles_of_a_known_row)
{
	struct cs_hist *hist = new_hist();
	struct cs_hist_sum sum = {0};

	/* 1 to 1000 us: the n-th per mille is n us. */
	for (uint64_t us = 1; us <= 1000; us++)
		cs_hist_record(hist, us * 1000);
	cs_hist_add(&sum, hist);
	for (uint32_t per_mille = 1; per_mille <= 1000; per_mille++) {
		uint64_t found_ns = cs_hist_percentile_ns(&sum, per_mille);
		uint64_t true_ns = UINT64_C(1000) * per_mille;

		cr_assert_geq(found_ns, true_ns, "per mille %u", per_mille);
		cr_assert_leq(found_ns, true_ns + true_ns / 16, "per mille %u", per_mille);
	}
	cr_assert_eq(cs_hist_percentile_ns(&sum, 0), cs_hist_percentile_ns(&sum, 1));
	free_hist(hist);
}

Test(hist, several_are_summed)
{
	struct cs_hist *a = new_hist();
	struct cs_hist *b = new_hist();
	struct cs_hist_sum sum = {0};

	for (int i = 0; i < 10; i++)
		cs_hist_record(a, 5);
	for (int i = 0; i < 30; i++)
		cs_hist_record(b, 9);
	cs_hist_add(&sum, a);
	cs_hist_add(&sum, b);
	cr_assert_eq(sum.count, 40);
	cr_assert_eq(sum.max_ns, 9);
	cr_assert_eq(cs_hist_percentile_ns(&sum, 250), 5);
	cr_assert_eq(cs_hist_percentile_ns(&sum, 251), 9);
	free_hist(a);
	free_hist(b);
}

#define RECORDS_PER_THREAD 20000
#define THREADS            4

static void *record_many(void *user)
{
	for (uint64_t i = 1; i <= RECORDS_PER_THREAD; i++)
		cs_hist_record(user, i);
	return NULL;
}

Test(hist, threads_lose_no_record)
{
	struct cs_hist *hist = new_hist();
	struct cs_hist_sum sum = {0};
	struct cs_hist_sum early = {0};
	pthread_t threads[THREADS];

	for (int i = 0; i < THREADS; i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, record_many, hist), 0);
	cs_hist_add(&early, hist);
	cr_assert_leq(early.count, (uint64_t)RECORDS_PER_THREAD * THREADS);
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	cs_hist_add(&sum, hist);
	cr_assert_eq(sum.count, (uint64_t)RECORDS_PER_THREAD * THREADS);
	cr_assert_eq(sum.max_ns, RECORDS_PER_THREAD);
	free_hist(hist);
}
