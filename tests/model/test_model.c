/* SPDX-License-Identifier: MIT
 *
 * Random streams against the reference model.
 *
 * COWSNAP_SEED=n      only the stream with this seed (printed when one fails)
 * COWSNAP_STEPS=n     steps of a stream
 * COWSNAP_STREAMS=n   how many streams; thousands for a long run
 * COWSNAP_TRACE=1     print each step
 */
#include "model/driver.h"
#include "support/test.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t setting(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 0) : otherwise;
}

static uint64_t fresh_seed(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return ((uint64_t)t.tv_sec << 20 ^ (uint64_t)t.tv_nsec) % 1000000000;
}

Test(model, random_streams_agree, .timeout = 3600)
{
	bool one = getenv("COWSNAP_SEED");
	uint64_t seed = setting("COWSNAP_SEED", fresh_seed());
	uint64_t streams = setting("COWSNAP_STREAMS", one ? 1 : 180);
	unsigned steps = (unsigned)setting("COWSNAP_STEPS", 150);

	fprintf(stderr, "model: COWSNAP_SEED=%llu COWSNAP_STREAMS=%llu COWSNAP_STEPS=%u\n",
		(unsigned long long)seed, (unsigned long long)streams, steps);
	for (uint64_t i = 0; i < streams; i++)
		driver_run(seed + i, steps);
}

/* Seeds that found something once. They stay. */
Test(model, earlier_finds_stay_fixed, .timeout = 600)
{
	static const uint64_t seeds[] = {1, 2, 3, 105, 118, 122, 128, 640700848};

	for (size_t i = 0; i < sizeof(seeds) / sizeof(seeds[0]); i++)
		driver_run(seeds[i], 400);
}

/* The model itself: what it says of shared preimages, on paper. */
Test(model, the_model_counts_one_copy_for_all_snapshots_that_share_it)
{
	struct model m;
	struct model_image *first, *second;

	model_init(&m);
	model_add_origin(&m, 4096 + 1, 4096 + 1);
	model_add_store(&m, 1024);
	first = model_take(&m, 0, 0, false, NULL);
	cr_assert_eq(first->chunks, 5);
	cr_assert_eq(model_copies_wanted(&m, 0, 0, 1023, 2), 2);
	model_save(&m, 0, 1023, 2);
	second = model_take(&m, 0, 0, false, NULL);
	model_save(&m, 0, 0, 4097);
	cr_assert(!model_needs(first, 4));
	cr_assert(!model_needs(second, 4));
	/* Chunks 0 and 1 twice, 2 to 4 once for both. */
	cr_assert_eq(model_held(&m, 0, true), 7);
	model_drop(&m, first);
	cr_assert_eq(model_held(&m, 0, true), 5);
	second->state = MODEL_INVALID;
	cr_assert_eq(model_held(&m, 0, false), 0);
	cr_assert_eq(model_held(&m, 0, true), 5);
	model_fini(&m);
}
