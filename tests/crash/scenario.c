/* SPDX-License-Identifier: MIT */
#include "crash/scenario.h"
#include "support/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HOSTILE_RECORDS 6
#define FLUSH_EACH      4

const struct power_traits scenario_cached = {
	.name = "cached",
	.flush = true,
	.durable = true,
	.zero = true,
	.block_size = 512,
	.unit_bytes = 512,
};
const struct power_traits scenario_flush_only = {
	.name = "flush only",
	.flush = true,
	.block_size = 512,
	.unit_bytes = 512,
};
const struct power_traits scenario_cacheless = {
	.name = "cacheless",
	.unit_bytes = 512,
};
const struct power_traits scenario_blocks = {
	.name = "blocks of 4 KiB",
	.flush = true,
	.durable = true,
	.block_size = 4096,
	.unit_bytes = 512,
};
const struct power_traits scenario_origin = {
	.name = "origin",
	.flush = true,
	.block_size = 512,
	.unit_bytes = 512,
};

/* ---- Steps ----------------------------------------------------------------------------------- */

void scenario_promise(struct scenario *s, unsigned may)
{
	s->promise.may = may;
	journal_note(&s->rig.journal, &s->promise);
}

void scenario_start(struct scenario *s)
{
	cr_assert_eq(
		rig_start(&s->rig, s->traits, s->workload->origin_bytes, s->promise.store_bytes),
		0);
	s->rig.power[POWER_STORE].area_chunk_bytes = s->workload->chunk_bytes;
}

void scenario_stop(struct scenario *s)
{
	cr_assert_eq(rig_stop(&s->rig), 0);
}

void scenario_create(struct scenario *s, uint64_t chunk_bytes, uint32_t flags, uint64_t generation)
{
	if (s->promise.may != MAY_NONE)
		scenario_promise(s, s->promise.may | MAY_NONE);
	cr_assert_eq(rig_create(&s->rig, chunk_bytes, flags, generation), 0);
	s->promise.chunk_bytes = chunk_bytes;
	s->promise.generation[0] = generation;
	s->promise.generation[1] = generation;
	scenario_promise(s, MAY_NONE);
}

void scenario_take(struct scenario *s, enum cowsnap_loser on_full)
{
	uint8_t *image = malloc(s->workload->origin_bytes);
	int rc;

	cr_assert(image && s->image_count < SCENARIO_IMAGES);
	scenario_flush_origin(s);
	memcpy(image, s->rig.live[POWER_ORIGIN], s->workload->origin_bytes);
	s->images[s->image_count++] = image;
	s->promise.image = image;
	scenario_promise(s, MAY_NONE | MAY_EXACT);
	rc = rig_take(&s->rig, on_full);
	cr_assert_eq(rc, 0, "%d", rc);
	scenario_promise(s, MAY_EXACT);
}

void scenario_attach(struct scenario *s, enum cowsnap_loser on_full)
{
	cr_assert_eq(rig_attach(&s->rig, s->promise.chunk_bytes, 0, on_full), 0);
}

int scenario_write(struct scenario *s, uint64_t chunk, uint64_t count)
{
	uint64_t size = s->workload->chunk_bytes;
	uint64_t length = count * size;

	if (chunk * size + length > s->workload->origin_bytes)
		length = s->workload->origin_bytes - chunk * size;
	return rig_write(&s->rig, chunk * size, length);
}

void scenario_touch(struct scenario *s, uint64_t chunk, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++) {
		cr_assert_eq(scenario_write(s, chunk + i, 1), 0);
		if (i % FLUSH_EACH == FLUSH_EACH - 1)
			scenario_flush_origin(s);
	}
}

void scenario_flush_origin(struct scenario *s)
{
	cr_assert_eq(cowsnap_device_flush(s->rig.device[POWER_ORIGIN]), 0);
}

void scenario_drop(struct scenario *s)
{
	scenario_promise(s, s->promise.may | MAY_NONE);
	cr_assert_eq(rig_drop(&s->rig), 0);
	scenario_promise(s, MAY_NONE);
}

void scenario_generation(struct scenario *s, uint64_t generation)
{
	s->promise.generation[1] = generation;
	scenario_promise(s, s->promise.may);
	cr_assert_eq(cowsnap_store_dm_set_generation(s->rig.store, generation), 0);
	s->promise.generation[0] = generation;
	scenario_promise(s, s->promise.may);
}

/* The host has made sure that its device stays as long as it has become. */
void scenario_grow(struct scenario *s, uint64_t chunks)
{
	s->promise.store_bytes = chunks * s->workload->chunk_bytes;
	scenario_promise(s, s->promise.may);
	power_grow(&s->rig.power[POWER_STORE], s->promise.store_bytes);
	cr_assert_eq(cowsnap_device_refresh(s->rig.device[POWER_STORE]), 0);
	cr_assert_eq(cowsnap_store_set_limit(s->rig.store, 0), 0);
}

/* ---- Before ---------------------------------------------------------------------------------- */

/* Records of the last chunks of the origin, which no workload touches early, with data chunks at
 * the end of the store; no two areas have one in common. */
static void make_hostile(const struct workload *workload, uint8_t *store, uint64_t bytes)
{
	uint64_t chunk = workload->chunk_bytes;
	uint64_t per_area = chunk / 16;
	uint64_t origin = (workload->origin_bytes + chunk - 1) / chunk;
	uint64_t data = workload->store_chunks;

	for (uint64_t area = 1; (area + 1) * chunk <= bytes; area += per_area + 1) {
		uint8_t *slot = store + area * chunk;

		memset(slot, 0, chunk);
		for (unsigned i = 0; i < HOSTILE_RECORDS && origin > 0 && data > 2; i++) {
			uint64_t record[2];

			do {
				data--;
			} while (data % (per_area + 1) == 1);
			record[0] = --origin;
			record[1] = data;
			memcpy(slot + (size_t)i * sizeof(record), record, sizeof(record));
		}
	}
}

static void make_bases(struct scenario *s)
{
	const struct workload *workload = s->workload;
	uint64_t store_bytes = s->rig.capacity[POWER_STORE];

	for (unsigned i = 0; i < POWER_DEVICES; i++) {
		s->base[i] = malloc(s->rig.capacity[i]);
		cr_assert_not_null(s->base[i]);
		seed_fill(&s->seed, s->base[i], s->rig.capacity[i]);
	}
	make_hostile(workload, s->base[POWER_STORE], store_bytes);
	memset(s->base[POWER_STORE], 0,
		workload->chunk_bytes < 4096 ? workload->chunk_bytes : 4096);
	for (unsigned i = 0; i < POWER_DEVICES; i++)
		memcpy(s->rig.live[i], s->base[i], s->rig.capacity[i]);
}

/* ---- Running --------------------------------------------------------------------------------- */

static uint64_t capacity_of(const struct workload *workload)
{
	uint64_t chunks = workload->store_chunks > workload->grown_chunks ? workload->store_chunks
									  : workload->grown_chunks;

	return chunks * workload->chunk_bytes;
}

static void record(struct scenario *s)
{
	make_bases(s);
	s->rig.journal.recording = true;
	scenario_promise(s, MAY_NONE);
	s->workload->run(s);
	s->rig.journal.recording = false;
}

static void cut_everywhere(
	struct scenario *s, const struct scenario_options *options, struct scenario_result *result)
{
	struct check check = {
		.traits = {s->traits[POWER_ORIGIN], s->traits[POWER_STORE]},
		.origin_bytes = s->workload->origin_bytes,
		.seed = {seed_next(&s->seed)},
		.mutation = options->nested_mutation,
		.stop = options->stop,
		.name = s->workload->name,
		.stride = options->stride,
	};
	struct outage_source source = {
		.journal = &s->rig.journal,
		.base = {s->base[POWER_ORIGIN], s->base[POWER_STORE]},
		.bytes = {s->workload->origin_bytes, s->rig.capacity[POWER_STORE]},
		.traits = {s->traits[POWER_ORIGIN], s->traits[POWER_STORE]},
		.chunk_bytes = s->workload->chunk_bytes,
	};
	struct outage_visitor visitor;

	check_init(&check, s->rig.capacity[POWER_STORE]);
	visitor = check_visitor(&check);
	result->mutated = mutate(&s->rig.journal, s->workload->chunk_bytes, options->mutation);
	outage_prepare(&source);
	outage_run(&source, &options->plan, &check.seed, &visitor);
	result->counts = check.counts;
	result->violations = check.violations;
	result->mutated += check.mutated;
	memcpy(result->message, check.message, sizeof(result->message));
	check_fini(&check);
}

void scenario_run(const struct workload *workload, const struct scenario_options *options,
	struct scenario_result *result)
{
	struct scenario *s = calloc(1, sizeof(*s));

	cr_assert_not_null(s);
	s->workload = workload;
	s->traits[POWER_ORIGIN] = &scenario_origin;
	s->traits[POWER_STORE] = options->traits;
	s->seed = options->seed;
	s->effect = options->effect;
	s->variant = options->variant;
	s->promise.chunk_bytes = workload->chunk_bytes;
	s->promise.store_bytes = workload->store_chunks * workload->chunk_bytes;
	rig_init(&s->rig, workload->origin_bytes, capacity_of(workload));
	record(s);
	cut_everywhere(s, options, result);
	for (unsigned i = 0; i < POWER_DEVICES; i++)
		free(s->base[i]);
	for (unsigned i = 0; i < s->image_count; i++)
		free(s->images[i]);
	rig_fini(&s->rig);
	free(s);
}

void scenario_count(struct check_counts *sum, const struct check_counts *counts)
{
	sum->states += counts->states;
	sum->none += counts->none;
	sum->exact += counts->exact;
	sum->invalid += counts->invalid;
	sum->stale += counts->stale;
	sum->reopened += counts->reopened;
	sum->continued += counts->continued;
	sum->filled += counts->filled;
	sum->dropped += counts->dropped;
	sum->recreated += counts->recreated;
	sum->nested += counts->nested;
}

void scenario_print(const char *what, const struct check_counts *counts)
{
	fprintf(stderr,
		"%s: %llu states: %llu exact, %llu invalid, %llu without a store, %llu stale tails;"
		" %llu opened twice, %llu continued, %llu filled, %llu dropped, %llu made anew,"
		" %llu cut twice\n",
		what, (unsigned long long)counts->states, (unsigned long long)counts->exact,
		(unsigned long long)counts->invalid, (unsigned long long)counts->none,
		(unsigned long long)counts->stale, (unsigned long long)counts->reopened,
		(unsigned long long)counts->continued, (unsigned long long)counts->filled,
		(unsigned long long)counts->dropped, (unsigned long long)counts->recreated,
		(unsigned long long)counts->nested);
}
