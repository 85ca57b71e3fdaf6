/* SPDX-License-Identifier: MIT */
#include "fault/scenarios.h"

#include <pthread.h>
#include <string.h>

#define CHUNK UINT64_C(512)
#define AREA  32u /* records in one, with these chunks */

#define WRITERS 4

/* A few writes: of a part of a chunk, of several, of one that is saved already, of the last. */
static void write_some(struct dm_scene *s, unsigned i, uint8_t value)
{
	dm_write(s, i, 10, 20, value);
	dm_write(s, i, 5 * CHUNK + 100, 3 * CHUNK, value);
	dm_write(s, i, 6 * CHUNK, CHUNK, (uint8_t)(value + 1));
	dm_write(s, i, s->options.origin_bytes - 1, 1, value);
}

static void life(struct dm_scene *s)
{
	if (dm_begin(s))
		return;
	write_some(s, 0, 1);
	dm_expect_exact(s, 0, false);
	dm_drop(s, 0);
	dm_write(s, 0, 0, 20 * CHUNK, 3);
}

/* Records one by one up to the end of an area and over it, then many at once. */
static void areas(struct dm_scene *s)
{
	if (dm_begin(s))
		return;
	for (uint64_t c = 0; c < AREA + 2; c++)
		dm_write(s, 0, 2 * c * CHUNK, 1, 1);
	dm_write(s, 0, 70 * CHUNK, (AREA + 8) * CHUNK, 2);
	dm_expect_exact(s, 0, false);
}

static void reopen(struct dm_scene *s)
{
	if (dm_begin(s))
		return;
	write_some(s, 0, 1);
	if (dm_detach(s, 0) || dm_attach(s, 0))
		return;
	dm_write(s, 0, 40 * CHUNK, 4 * CHUNK, 2);
	dm_expect_exact(s, 0, false);
}

/* Two tries to open: what failed in the first must not be in the way of the second. */
static void reopen_again(struct dm_scene *s)
{
	if (dm_begin(s))
		return;
	dm_write(s, 0, 0, AREA * CHUNK, 1);
	if (dm_detach(s, 0) || (dm_attach(s, 0) && dm_attach(s, 0)))
		return;
	dm_write(s, 0, 40 * CHUNK, 4 * CHUNK, 2);
}

static void full(struct dm_scene *s)
{
	if (dm_begin(s))
		return;
	for (uint64_t c = 0; c < 10; c++)
		dm_write(s, 0, 3 * c * CHUNK, CHUNK, (uint8_t)c);
	dm_write(s, 0, 0, 40 * CHUNK, 1);
}

static void take_again(struct dm_scene *s)
{
	if (dm_begin(s))
		return;
	write_some(s, 0, 1);
	if (dm_drop(s, 0))
		return;
	cowsnap_reclaim(s->ctx, UINT64_MAX);
	write_some(s, 0, 3);
	if (dm_take(s))
		return;
	write_some(s, 0, 5);
	dm_expect_exact(s, 0, false);
}

/* A drop that failed, or not, is tried once more. */
static void drop_twice(struct dm_scene *s)
{
	if (dm_begin(s))
		return;
	write_some(s, 0, 1);
	if (dm_drop(s, 0))
		dm_drop(s, 0);
}

static void overwrite(struct dm_scene *s)
{
	if (dm_begin(s))
		return;
	dm_write(s, 0, 0, 40 * CHUNK, 1);
	if (dm_detach(s, 0))
		return;
	/* Whoever overwrites gives the old one up, from the call on. */
	s->at[0].maybe_absent = true;
	if (dm_create(s, 0, COWSNAP_DM_OVERWRITE))
		return;
	if (dm_take(s))
		return;
	write_some(s, 0, 3);
}

static void grow(struct dm_scene *s)
{
	if (dm_begin(s))
		return;
	dm_write(s, 0, 0, 8 * CHUNK, 1);
	if (dm_grow(s, 0, 80 * CHUNK))
		return;
	dm_write(s, 0, 20 * CHUNK, 50 * CHUNK, 2);
	dm_expect_exact(s, 0, false);
}

static void generation(struct dm_scene *s)
{
	if (dm_create(s, 0, 0))
		return;
	dm_set_generation(s, 0, 7);
	if (dm_take(s))
		return;
	dm_set_generation(s, 0, 8);
	dm_write(s, 0, 0, CHUNK, 1);
	dm_set_generation(s, 0, 9);
	dm_write(s, 0, 2 * CHUNK, CHUNK, 1);
}

static void two(struct dm_scene *s)
{
	if (dm_begin(s))
		return;
	for (unsigned i = 0; i < 2; i++)
		write_some(s, i, 1);
	dm_drop(s, 1);
	write_some(s, 0, 2);
}

struct writer {
	struct dm_scene *scene;
	pthread_t thread;
	unsigned number;
};

static void *write_own(void *argument)
{
	struct writer *w = argument;

	for (uint64_t c = 0; c < 12; c++)
		dm_write(w->scene, 0, (c * WRITERS + w->number) * CHUNK, CHUNK, 1);
	return NULL;
}

static void writers(struct dm_scene *s)
{
	struct writer writer[WRITERS];

	if (dm_begin(s))
		return;
	for (unsigned i = 0; i < WRITERS; i++) {
		writer[i] = (struct writer){.scene = s, .number = i};
		pthread_create(&writer[i].thread, NULL, write_own, &writer[i]);
	}
	for (unsigned i = 0; i < WRITERS; i++)
		pthread_join(writer[i].thread, NULL);
}

#define LOSES(who) .on_full = COWSNAP_LOSER_##who

const struct scenario scenarios[] = {
	{"life", {LOSES(WRITE)}, life},
	{"life, durable writes", {LOSES(SNAPSHOT), .durable = true}, life},
	{"life, no flush", {LOSES(SNAPSHOT), .no_flush = true}, life},
	{"areas", {LOSES(WRITE)}, areas},
	{"areas, snapshot", {LOSES(SNAPSHOT), .durable = true}, areas},
	{"reopen", {LOSES(WRITE)}, reopen},
	{"reopen, snapshot", {LOSES(SNAPSHOT)}, reopen},
	{"reopen again", {LOSES(WRITE)}, reopen_again},
	{"full", {LOSES(WRITE), .store_bytes = 10 * CHUNK}, full},
	{"full, snapshot", {LOSES(SNAPSHOT), .store_bytes = 10 * CHUNK}, full},
	{"full, snapshot, no flush", {LOSES(SNAPSHOT), .store_bytes = 10 * CHUNK, .no_flush = true},
		full},
	{"full area", {LOSES(SNAPSHOT), .store_bytes = (AREA + 2) * CHUNK}, full},
	{"take again", {LOSES(WRITE)}, take_again},
	{"take again, snapshot", {LOSES(SNAPSHOT)}, take_again},
	{"drop twice", {LOSES(WRITE)}, drop_twice},
	{"overwrite", {LOSES(WRITE)}, overwrite},
	{"grow", {LOSES(WRITE), .store_bytes = 12 * CHUNK, .max_bytes = 100 * CHUNK}, grow},
	{"grow, snapshot", {LOSES(SNAPSHOT), .store_bytes = 12 * CHUNK, .max_bytes = 100 * CHUNK},
		grow},
	{"generation", {LOSES(WRITE), .generation = 5}, generation},
	{"generation, snapshot", {LOSES(SNAPSHOT), .durable = true}, generation},
	{"two", {LOSES(WRITE), .stores = 2}, two},
	{"two, snapshot", {LOSES(SNAPSHOT), .stores = 2}, two},
	{"writers", {LOSES(WRITE)}, writers},
	{"writers, snapshot", {LOSES(SNAPSHOT)}, writers},
};
const unsigned scenario_count = sizeof(scenarios) / sizeof(scenarios[0]);

const struct scenario *scenario_find(const char *name)
{
	for (unsigned i = 0; i < scenario_count; i++) {
		if (strcmp(scenarios[i].name, name) == 0)
			return &scenarios[i];
	}
	return NULL;
}
