/* SPDX-License-Identifier: MIT
 *
 * The transient store under threads: no chunk has two owners, none is lost, nobody is told that the
 * store is full when it is not.
 */
#include "unit/transient_rig.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#define THREADS 6u
#define SHARE   200u /* no thread owns more, so that nobody may find the store full */

struct crowd {
	struct cowsnap_store *store;
	_Atomic uint32_t *owner;
	uint64_t chunks;
	atomic_bool stop;
	_Atomic uint32_t failed; /* the first thing that went wrong */
	struct {
		struct seed seed;
		pthread_t thread;
		struct crowd *crowd;
		uint32_t number;
	} member[THREADS];
};

static void own(struct crowd *crowd, struct owned run, uint32_t from, uint32_t to)
{
	for (uint64_t c = run.location; c < run.location + run.count; c++) {
		uint32_t expected = from;

		/* Relaxed: the store has to order an owner after the one before. */
		if (c >= crowd->chunks ||
			!atomic_compare_exchange_strong_explicit(&crowd->owner[c], &expected, to,
				memory_order_relaxed, memory_order_relaxed))
			atomic_store(&crowd->failed, 1);
	}
}

static void *join_in(void *argument)
{
	struct crowd *crowd = *(struct crowd **)argument;
	uint32_t number = 0;
	struct owned list[SHARE];
	uint64_t in_use = 0;
	size_t length = 0;
	struct seed *seed;

	while (&crowd->member[number].crowd != argument)
		number++;
	seed = &crowd->member[number].seed;
	for (int step = 0; step < 6000 && !atomic_load(&crowd->failed); step++) {
		struct owned run;

		if (in_use < SHARE && seed_below(seed, 2)) {
			uint64_t want = 1 + seed_below(seed, SHARE - in_use);

			if (cowsnap_store_alloc(crowd->store, want, &run.location, &run.count) ||
				run.count > want) {
				atomic_store(&crowd->failed, 2);
				break;
			}
			own(crowd, run, 0, number + 1);
			list[length++] = run;
			in_use += run.count;
		} else if (length) {
			run = let_go(list, &length, seed);
			own(crowd, run, number + 1, 0);
			in_use -= run.count;
			cowsnap_store_free(crowd->store, run.location, run.count);
		}
	}
	while (length--) {
		own(crowd, list[length], number + 1, 0);
		cowsnap_store_free(crowd->store, list[length].location, list[length].count);
	}
	return NULL;
}

static void *meddle(void *argument)
{
	struct crowd *crowd = argument;

	for (uint64_t i = 0; !atomic_load(&crowd->stop); i++) {
		cs_store_emptied(crowd->store);
		/* From just enough to more than enough. */
		if (cowsnap_store_set_limit(
			    crowd->store, (THREADS * SHARE + i % 50) * UINT64_C(4096)))
			atomic_store(&crowd->failed, 3);
	}
	return NULL;
}

static void run_crowd(uint64_t device_chunks, bool meddling)
{
	struct seed seed = seed_for("store_transient crowd");
	struct cowsnap_ctx *ctx = make_ctx();
	struct cowsnap_transient_options options = {.size = sizeof(options),
		.chunk_size_bytes = CHUNK,
		.limit_bytes = THREADS * SHARE * CHUNK};
	static struct crowd crowd;
	pthread_t meddler;

	memset(&crowd, 0, sizeof(crowd));
	cr_assert_eq(cowsnap_device_memory(ctx, device_chunks * CHUNK, &options.device), 0);
	cr_assert_eq(cowsnap_store_transient(ctx, &options, &crowd.store), 0);
	crowd.chunks = device_chunks;
	crowd.owner = calloc(device_chunks, sizeof(*crowd.owner));
	for (uint32_t i = 0; i < THREADS; i++) {
		crowd.member[i].crowd = &crowd;
		crowd.member[i].seed.state = seed_next(&seed);
		cr_assert_eq(pthread_create(&crowd.member[i].thread, NULL, join_in,
				     &crowd.member[i].crowd),
			0);
	}
	if (meddling)
		cr_assert_eq(pthread_create(&meddler, NULL, meddle, &crowd), 0);
	for (uint32_t i = 0; i < THREADS; i++)
		pthread_join(crowd.member[i].thread, NULL);
	atomic_store(&crowd.stop, true);
	if (meddling)
		pthread_join(meddler, NULL);
	cr_assert_eq(crowd.failed, 0, "1: two owners; 2: full; 3: limit: %u", crowd.failed);
	cr_assert_eq(used(crowd.store), 0);
	free((void *)crowd.owner);
	cr_assert_eq(cowsnap_store_close(crowd.store), 0);
	cr_assert_eq(cowsnap_device_close(options.device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

Test(store_transient_threads, one_owner_at_a_time_under_threads)
{
	run_crowd(THREADS * SHARE, false);
}

Test(store_transient_threads, one_owner_at_a_time_while_limits_change)
{
	run_crowd(THREADS * SHARE + 50, true);
}

#define TIGHT_THREADS 4u
#define TIGHT_SHARE   3u

struct tight {
	struct cowsnap_store *store;
	pthread_barrier_t barrier;
	uint64_t want;    /* of one allocation */
	uint32_t share;   /* chunks to get in a round */
	bool may_be_full; /* else the store is large enough for all */
	bool anew;        /* each round begins with fresh chunks */
	_Atomic uint32_t refused;
};

#define TIGHT_ROUNDS 3000

/* All at once take what they can, then all give it back. */
static void *squeeze(void *argument)
{
	struct tight *tight = argument;

	for (int round = 0; round < TIGHT_ROUNDS; round++) {
		struct owned run[64];
		uint32_t runs = 0, got = 0;

		pthread_barrier_wait(&tight->barrier);
		while (got < tight->share) {
			uint64_t left = tight->share - got;

			if (cowsnap_store_alloc(tight->store,
				    left < tight->want ? left : tight->want, &run[runs].location,
				    &run[runs].count)) {
				atomic_fetch_add(&tight->refused, !tight->may_be_full);
				break;
			}
			got += (uint32_t)run[runs++].count;
		}
		pthread_barrier_wait(&tight->barrier);
		while (runs--)
			cowsnap_store_free(tight->store, run[runs].location, run[runs].count);
		if (pthread_barrier_wait(&tight->barrier) == PTHREAD_BARRIER_SERIAL_THREAD &&
			tight->anew)
			cs_store_emptied(tight->store);
	}
	return NULL;
}

static void run_tight(struct tight *tight, uint64_t device_chunks, uint64_t limit_chunks)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct cowsnap_transient_options options = {
		.size = sizeof(options), .limit_bytes = limit_chunks * CHUNK};
	uint64_t location, count, all = 0;
	pthread_t thread[TIGHT_THREADS];

	pthread_barrier_init(&tight->barrier, NULL, TIGHT_THREADS);
	cr_assert_eq(cowsnap_device_memory(ctx, device_chunks * CHUNK, &options.device), 0);
	cr_assert_eq(cowsnap_store_transient(ctx, &options, &tight->store), 0);
	for (uint32_t i = 0; i < TIGHT_THREADS; i++)
		cr_assert_eq(pthread_create(&thread[i], NULL, squeeze, tight), 0);
	for (uint32_t i = 0; i < TIGHT_THREADS; i++)
		pthread_join(thread[i], NULL);
	cr_assert_eq(tight->refused, 0, "there was room for everybody");
	cr_assert_eq(used(tight->store), 0);
	/* No place was lost. */
	cr_assert_eq(cowsnap_store_set_limit(tight->store, device_chunks * CHUNK), 0);
	while (!cowsnap_store_alloc(tight->store, device_chunks, &location, &count))
		all += count;
	cr_assert_eq(all, device_chunks);
	cowsnap_store_free(tight->store, 0, device_chunks);
	cr_assert_eq(cowsnap_store_close(tight->store), 0);
	cr_assert_eq(cowsnap_device_close(options.device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
	pthread_barrier_destroy(&tight->barrier);
}

Test(store_transient_threads, exactly_enough_for_all)
{
	struct tight tight = {.want = 2, .share = TIGHT_SHARE, .anew = true};

	run_tight(&tight, TIGHT_THREADS * TIGHT_SHARE, TIGHT_THREADS * TIGHT_SHARE);
}

Test(store_transient_threads, too_little_for_all_loses_no_place)
{
	struct tight tight = {.want = 30, .share = 60, .may_be_full = true};

	run_tight(&tight, 60000, 100);
}

/* Who finds no place while another has one that it has not counted yet waits for that, no longer.
 */
Test(store_transient_threads, too_few_places_hang_nobody)
{
	struct tight tight = {.want = 30, .share = 60, .may_be_full = true, .anew = true};

	run_tight(&tight, 100, 100);
}

/* Often empty, so that going back to the beginning meets allocations under way. */
static void *come_and_go(void *argument)
{
	struct crowd *crowd = argument;
	uint8_t chunk[CHUNK], again[CHUNK];

	memset(chunk, 0x3c, CHUNK);
	for (int step = 0; step < 4000; step++) {
		struct cowsnap_device *d = cowsnap_store_device(crowd->store);
		struct owned run;

		if (cowsnap_store_alloc(crowd->store, 1, &run.location, &run.count)) {
			atomic_store(&crowd->failed, 2);
			break;
		}
		own(crowd, run, 0, 1);
		cowsnap_device_write(d, chunk, run.location * CHUNK, CHUNK);
		if (step % 7 == 0)
			cs_store_emptied(crowd->store);
		cowsnap_device_read(d, again, run.location * CHUNK, CHUNK);
		if (memcmp(chunk, again, CHUNK) != 0)
			atomic_store(&crowd->failed, 4);
		own(crowd, run, 1, 0);
		cowsnap_store_free(crowd->store, run.location, run.count);
		cs_store_emptied(crowd->store);
	}
	return NULL;
}

Test(store_transient_threads, memory_in_use_is_never_given_back)
{
	struct cowsnap_ctx *ctx = make_ctx();
	static struct crowd crowd;
	pthread_t thread[4];

	memset(&crowd, 0, sizeof(crowd));
	crowd.store = make(ctx, 64);
	/* Places are limited by the memory that was reserved, not by the limit. */
	crowd.chunks = 1 << 16;
	crowd.owner = calloc(crowd.chunks, sizeof(*crowd.owner));
	for (int i = 0; i < 4; i++)
		cr_assert_eq(pthread_create(&thread[i], NULL, come_and_go, &crowd), 0);
	for (int i = 0; i < 4; i++)
		pthread_join(thread[i], NULL);
	cr_assert_eq(crowd.failed, 0, "1: two owners; 2: full; 4: lost bytes: %u", crowd.failed);
	cr_assert_eq(used(crowd.store), 0);
	free((void *)crowd.owner);
	finish(ctx, crowd.store);
}

/* ---- Leases --------------------------------------------------------------------------------- */

#define LEASED 40000u       /* chunks: enough that leases are begun, few enough to be used up */
#define PLACES (4 * LEASED) /* the limit is on a number of chunks, not on where they lie */

struct taker {
	struct cowsnap_store *store;
	_Atomic uint32_t *owner;
	uint64_t taken;
	bool twice;
	pthread_t thread;
};

static void *take_all(void *argument)
{
	struct taker *taker = argument;
	uint64_t location, count;

	while (!taker->twice && !cowsnap_store_alloc(taker->store, 1, &location, &count)) {
		taker->twice |=
			location >= PLACES || atomic_exchange(&taker->owner[location], 1) != 0;
		taker->taken++;
	}
	return NULL;
}

Test(store_transient_threads, what_is_left_in_leases_is_given_out_before_the_store_is_full)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct cowsnap_store *store = make(ctx, LEASED);
	struct taker taker[THREADS] = {0};
	uint64_t taken = 0;
	_Atomic uint32_t *owner = calloc(PLACES, sizeof(*owner));

	cr_assert_not_null(owner);
	for (unsigned i = 0; i < THREADS; i++) {
		taker[i].store = store;
		taker[i].owner = owner;
		cr_assert_eq(pthread_create(&taker[i].thread, NULL, take_all, &taker[i]), 0);
	}
	for (unsigned i = 0; i < THREADS; i++) {
		cr_assert_eq(pthread_join(taker[i].thread, NULL), 0);
		cr_assert_not(taker[i].twice);
		taken += taker[i].taken;
	}
	cr_assert_eq(taken, LEASED);
	cr_assert_eq(used(store), LEASED);
	for (uint64_t i = 0; i < PLACES; i++) {
		if (owner[i])
			cowsnap_store_free(store, i, 1);
	}
	cr_assert_eq(used(store), 0);
	free((void *)owner);
	finish(ctx, store);
}

Test(store_transient_threads, what_is_set_aside_is_not_used)
{
	struct cowsnap_ctx *ctx = make_ctx();
	struct cowsnap_store *store = make(ctx, LEASED);
	uint64_t location, count;

	cr_assert_eq(cowsnap_store_alloc(store, 1, &location, &count), 0);
	cr_assert_eq(used(store), 1);
	cr_assert_eq(cowsnap_store_alloc(store, 3, &location, &count), 0);
	cr_assert_eq(used(store), 1 + count);
	/* A lease does not keep the limit from coming down to what is used. */
	cr_assert_eq(cowsnap_store_set_limit(store, used(store) * CHUNK), 0);
	cr_assert_eq(cowsnap_store_alloc(store, 1, &location, &count), -ENOSPC);
	finish(ctx, store);
}
