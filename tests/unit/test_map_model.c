/* SPDX-License-Identifier: MIT
 *
 * The exception map beside a plain array: the same random operations on both, the same answers. The
 * seed is printed; COWSNAP_SEED=n replays it.
 */
#include "support/test.h"

#include "map.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

enum { MODEL_CHUNKS = 1500, MODEL_FREE = 0, MODEL_BUSY = 1, MODEL_DONE = 2 };

struct model {
	unsigned char state[MODEL_CHUNKS];
	uint64_t location[MODEL_CHUNKS];
	uint64_t random;
	struct cowsnap_map *map;
	uint64_t walked;
};

static uint64_t draw(struct model *model, uint64_t below)
{
	model->random ^= model->random << 13;
	model->random ^= model->random >> 7;
	model->random ^= model->random << 17;
	return model->random % below;
}

static void model_claim(struct model *model, unsigned first, unsigned count)
{
	struct cowsnap_run run;
	int state = cowsnap_map_claim(model->map, first, count, &run);
	unsigned end = first + count;
	unsigned expect;

	while (first < end && model->state[first] == MODEL_DONE)
		first++;
	if (first == end) {
		cr_assert_eq(state, COWSNAP_CLAIM_NOTHING);
		return;
	}
	cr_assert_eq(run.first, first);
	if (model->state[first] == MODEL_BUSY) {
		cr_assert_eq(state, COWSNAP_CLAIM_BUSY);
		cr_assert(run.count >= 1 && run.first + run.count <= end);
		for (unsigned i = 0; i < run.count; i++)
			cr_assert_eq(model->state[first + i], MODEL_BUSY);
		return;
	}
	cr_assert_eq(state, COWSNAP_CLAIM_MINE);
	for (expect = first; expect < end && model->state[expect] == MODEL_FREE; expect++)
		model->state[expect] = MODEL_BUSY;
	cr_assert_eq(run.count, expect - first);
}

static void model_end(struct model *model, unsigned first, unsigned count, bool publish)
{
	uint64_t location = draw(model, UINT64_C(1) << 55);
	struct cowsnap_run run = {.first = first, .location = location};

	while (run.count < count && model->state[first + run.count] == MODEL_BUSY) {
		model->state[first + run.count] = publish ? MODEL_DONE : MODEL_FREE;
		model->location[first + run.count] = location + run.count;
		run.count++;
	}
	if (!run.count)
		return;
	if (publish)
		cowsnap_map_publish(model->map, &run);
	else
		cowsnap_map_abort(model->map, &run);
}

static void model_remove(struct model *model, unsigned first, unsigned count)
{
	uint64_t removed = 0;

	for (unsigned i = first; i < first + count; i++) {
		removed += model->state[i] == MODEL_DONE;
		if (model->state[i] == MODEL_DONE)
			model->state[i] = MODEL_FREE;
	}
	cr_assert_eq(cowsnap_map_remove(model->map, first, count), removed);
}

static void model_replace(struct model *model, unsigned chunk)
{
	uint64_t location = draw(model, COWSNAP_LOCATION_MAX);
	bool done = model->state[chunk] == MODEL_DONE;

	cr_assert_eq(cowsnap_map_replace(model->map, chunk, location), done ? 0 : -ENOENT);
	if (done)
		model->location[chunk] = location;
}

static void check_chunk(const struct model *model, unsigned chunk)
{
	uint64_t location = UINT64_MAX;
	bool done = model->state[chunk] == MODEL_DONE;

	cr_assert_eq(cowsnap_map_lookup(model->map, chunk, &location), done, "chunk %u", chunk);
	cr_assert_eq(location, done ? model->location[chunk] : UINT64_MAX, "chunk %u", chunk);
}

static void count_run(void *user, const struct cowsnap_run *run)
{
	struct model *model = user;

	for (uint64_t i = 0; i < run->count; i++) {
		cr_assert_eq(model->state[run->first + i], MODEL_DONE);
		cr_assert_eq(model->location[run->first + i], run->location + i);
	}
	model->walked += run->count;
}

static void check_walk(struct model *model)
{
	uint64_t cursor = 0;

	model->walked = 0;
	while (cowsnap_map_walk(model->map, &cursor, 3, count_run, model))
		;
	cr_assert_eq(model->walked, cowsnap_map_count(model->map));
}

static void model_check(const struct model *model)
{
	uint64_t done = 0;
	uint64_t next = 0;
	struct cowsnap_run run = {0};

	for (unsigned i = 0; i < MODEL_CHUNKS; i++) {
		done += model->state[i] == MODEL_DONE;
		check_chunk(model, i);
	}
	cr_assert_eq(cowsnap_map_count(model->map), done);
	while (cowsnap_map_next(model->map, next, MODEL_CHUNKS, &run)) {
		for (; next < run.first; next++)
			cr_assert_neq(model->state[next], MODEL_DONE);
		for (uint64_t i = 0; i < run.count; i++, next++) {
			cr_assert_eq(model->state[next], MODEL_DONE);
			cr_assert_eq(model->location[next], run.location + i);
		}
		done -= run.count;
	}
	cr_assert_eq(done, 0);
}

static void model_done(const struct model *model, unsigned first, unsigned count)
{
	bool all = true;

	for (unsigned i = first; i < first + count; i++)
		all = all && model->state[i] == MODEL_DONE;
	cr_assert_eq(cowsnap_map_done(model->map, first, count), all);
}

static void model_step(struct model *model)
{
	unsigned first = (unsigned)draw(model, MODEL_CHUNKS);
	unsigned limit = draw(model, 4) ? 8 : 200;
	unsigned count = 1 + (unsigned)draw(model, limit);

	if (count > MODEL_CHUNKS - first)
		count = MODEL_CHUNKS - first;
	switch (draw(model, 9)) {
	case 0:
	case 1:
	case 2:
		model_claim(model, first, count);
		break;
	case 3:
	case 4:
		model_end(model, first, count, true);
		break;
	case 5:
		model_end(model, first, count, false);
		break;
	case 6:
		model_remove(model, first, draw(model, 4) ? count / 8 : count);
		break;
	case 7:
		model_replace(model, first);
		break;
	default:
		model_done(model, first, count);
	}
}

Test(map_model, compared_with_a_plain_array)
{
	const char *given = getenv("COWSNAP_SEED");
	uint64_t seed = given ? strtoull(given, NULL, 0) : 20190219;
	struct model *model = calloc(1, sizeof(*model));

	fprintf(stderr, "seed %llu; to replay: COWSNAP_SEED=%llu\n", (unsigned long long)seed,
		(unsigned long long)seed);
	cr_assert_eq(cowsnap_map_create(NULL, &model->map), 0);
	model->random = seed * 2 + 1;
	for (unsigned step = 0; step < 60000; step++) {
		model_step(model);
		if (step % 500 == 0) {
			model_check(model);
			check_walk(model);
		}
	}
	model_check(model);
	cowsnap_map_destroy(model->map);
	free(model);
}
