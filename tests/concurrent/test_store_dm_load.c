/* SPDX-License-Identifier: MIT
 *
 * Writers and a reader on a persistent store, with drops, takes and reopens between rounds, against
 * a model: what the origin held at each take.
 */
#include "support/dm_scene.h"
#include "support/seed.h"
#include "support/test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK   UINT64_C(512)
#define CHUNKS  256u
#define WRITERS 4u

struct load {
	struct dm_scene scene;
	pthread_t writer[WRITERS], reader;
	uint64_t seed[WRITERS];
	_Atomic unsigned next; /* writer to begin */
	atomic_bool stop;      /* for the reader */
	unsigned writes;       /* of each writer, in a round */
};

/* Each has chunks of its own, so that the model's copy of the origin has no two writers. Ranges
 * begin and end inside chunks all the same, and the copies of neighbours meet in one area. */
static void *write_own(void *argument)
{
	struct load *load = argument;
	unsigned number = atomic_fetch_add(&load->next, 1);
	struct seed seed = {load->seed[number]};

	for (unsigned i = 0; i < load->writes; i++) {
		uint64_t first = seed_below(&seed, CHUNKS / WRITERS / 4) * 4 * WRITERS + 4 * number;
		uint64_t from = seed_below(&seed, 2 * CHUNK),
			 length = 1 + seed_below(&seed, 2 * CHUNK);

		cr_assert_eq(dm_write(&load->scene, 0, first * CHUNK + from, length,
				     (uint8_t)seed_next(&seed)),
			0);
	}
	load->seed[number] = seed.state;
	return NULL;
}

static void *read_all(void *argument)
{
	struct load *load = argument;

	do
		dm_expect_exact(&load->scene, 0, true);
	while (!atomic_load(&load->stop));
	return NULL;
}

static void round_of(struct load *load)
{
	atomic_store(&load->next, 0);
	atomic_store(&load->stop, false);
	cr_assert_eq(pthread_create(&load->reader, NULL, read_all, load), 0);
	for (unsigned i = 0; i < WRITERS; i++)
		cr_assert_eq(pthread_create(&load->writer[i], NULL, write_own, load), 0);
	for (unsigned i = 0; i < WRITERS; i++)
		pthread_join(load->writer[i], NULL);
	atomic_store(&load->stop, true);
	pthread_join(load->reader, NULL);
}

/* What happens between two rounds. */
static void change(struct load *load, struct seed *seed)
{
	struct dm_scene *s = &load->scene;

	switch (seed_below(seed, 4)) {
	case 0:
		cr_assert_eq(dm_drop(s, 0), 0);
		if (seed_below(seed, 2))
			cowsnap_reclaim(s->ctx, seed_below(seed, 100));
		cr_assert_eq(dm_take(s), 0);
		break;
	case 1:
		cr_assert_eq(dm_drop(s, 0), 0);
		cr_assert_eq(dm_close_store(s, 0), 0);
		dm_expect_promise(s, 0);
		cr_assert_eq(dm_begin(s), 0);
		break;
	case 2:
		cr_assert_eq(dm_detach(s, 0), 0);
		cr_assert_eq(dm_attach(s, 0), 0);
		break;
	default:
		dm_expect_promise(s, 0);
		break;
	}
}

static void run(const struct dm_scene_options *options, const char *name)
{
	const char *rounds = getenv("COWSNAP_ROUNDS");
	struct seed seed = seed_for(name);
	struct load *load = calloc(1, sizeof(*load));

	dm_open(&load->scene, options);
	for (unsigned i = 0; i < WRITERS; i++)
		load->seed[i] = seed_next(&seed);
	cr_assert_eq(dm_begin(&load->scene), 0);
	for (unsigned i = rounds ? (unsigned)strtoul(rounds, NULL, 0) : 25; i > 0; i--) {
		load->writes = 1 + (unsigned)seed_below(&seed, 60);
		round_of(load);
		change(load, &seed);
	}
	dm_expect_promise(&load->scene, 0);
	dm_close(&load->scene);
	free(load);
}

static const struct dm_scene_options volumes = {
	.origin_bytes = CHUNKS * CHUNK, .store_bytes = (CHUNKS + 16) * CHUNK};

Test(store_dm_load, writers_reader_drops_reopens, .timeout = 120)
{
	run(&volumes, "writers_reader_drops_reopens");
}

Test(store_dm_load, with_durable_writes, .timeout = 120)
{
	struct dm_scene_options options = volumes;

	options.durable = true;
	run(&options, "with_durable_writes");
}

Test(store_dm_load, without_flushes, .timeout = 120)
{
	struct dm_scene_options options = volumes;

	options.no_flush = true;
	options.on_full = COWSNAP_LOSER_WRITE;
	run(&options, "without_flushes");
}

/* A drop in the middle of writes: they go on, and what was to be saved is not. */
static void *drop_it(void *argument)
{
	struct load *load = argument;

	cr_assert_eq(cowsnap_snapshot_drop(load->scene.at[0].snapshot), 0);
	return NULL;
}

Test(store_dm_load, drop_under_load, .timeout = 120)
{
	struct seed seed = seed_for("drop_under_load");
	struct load *load = calloc(1, sizeof(*load));

	load->writes = 40;
	dm_open(&load->scene, &volumes);
	cr_assert_eq(dm_create(&load->scene, 0, 0), 0);
	for (int i = 0; i < 20; i++) {
		int rc = dm_take(&load->scene);

		cr_assert_eq(rc, 0, "round %d: %d: %s", i, rc, load->scene.line);
		atomic_store(&load->next, 0);
		for (unsigned w = 0; w < WRITERS; w++) {
			load->seed[w] = seed_next(&seed);
			cr_assert_eq(pthread_create(&load->writer[w], NULL, write_own, load), 0);
		}
		cr_assert_eq(pthread_create(&load->reader, NULL, drop_it, load), 0);
		pthread_join(load->reader, NULL);
		for (unsigned w = 0; w < WRITERS; w++)
			pthread_join(load->writer[w], NULL);
		cowsnap_snapshot_unref(load->scene.at[0].snapshot);
		load->scene.at[0].snapshot = NULL;
		load->scene.at[0].promise = DM_ABSENT;
		dm_expect_promise(&load->scene, 0);
	}
	dm_close(&load->scene);
	free(load);
}
