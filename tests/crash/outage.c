/* SPDX-License-Identifier: MIT */
#include "crash/outage.h"
#include "support/test.h"

#include <stdlib.h>
#include <string.h>

/* One unit of a write that may be there or not. */
struct unit {
	size_t op;
	uint64_t offset; /* on the device, cut to the write */
	uint64_t length;
};

struct run {
	const struct outage_source *source;
	const struct outage_plan *plan;
	const struct outage_visitor *visitor;
	struct seed *seed;
	/* Before floor_op everything on this device is durable, and applied to floor. */
	uint8_t *floor[POWER_DEVICES];
	size_t floor_op[POWER_DEVICES];
	struct unit *units;
	bool *keep; /* by unit */
	size_t count, capacity;
	size_t note;
	uint64_t time;
	uint64_t visited;
	bool stopped;
};

/* ---- When is what durable -------------------------------------------------------------------- */

static int by_start(const void *a, const void *b)
{
	const struct power_op *left = a, *right = b;

	return left->start < right->start ? -1 : left->start > right->start;
}

/* Goes from the last op to the first. Flushes that come later start later, so the earliest end of
 * those that began after a write is found by looking on from there. */
static uint64_t covered_at(const struct journal *journal, size_t from)
{
	const struct power_op *op = &journal->ops[from];
	uint64_t found = POWER_NEVER;

	if (op->lost || op->end == POWER_NEVER)
		return POWER_NEVER;
	for (size_t i = from + 1; i < journal->count; i++) {
		const struct power_op *flush = &journal->ops[i];

		/* None that starts later can end earlier. */
		if (flush->start > found)
			break;
		if (flush->kind == POWER_FLUSH && flush->device == op->device &&
			flush->start > op->end && flush->end < found)
			found = flush->end;
	}
	return found;
}

void outage_prepare(const struct outage_source *source)
{
	struct journal *journal = source->journal;

	if (journal->count)
		qsort(journal->ops, journal->count, sizeof(*journal->ops), by_start);
	for (size_t i = 0; i < journal->count; i++) {
		struct power_op *op = &journal->ops[i];

		if (op->kind == POWER_FLUSH)
			op->durable_at = op->end;
		else if (op->kind == POWER_DURABLE || !source->traits[op->device]->flush)
			op->durable_at = op->end;
		else
			op->durable_at = covered_at(journal, i);
	}
}

/* ---- One cut --------------------------------------------------------------------------------- */

static const struct power_op *op_at(const struct run *run, size_t i)
{
	return &run->source->journal->ops[i];
}

static void apply(const struct run *run, uint8_t *image, const struct power_op *op, uint64_t offset,
	uint64_t length)
{
	memcpy(image + offset, run->source->journal->data + op->data + (offset - op->offset),
		length);
}

static void raise_floor(struct run *run, unsigned device)
{
	const struct journal *journal = run->source->journal;

	for (; run->floor_op[device] < journal->count; run->floor_op[device]++) {
		const struct power_op *op = op_at(run, run->floor_op[device]);

		if (op->start >= run->time)
			break;
		if (op->kind == POWER_FLUSH || op->device != device)
			continue;
		if (op->durable_at >= run->time)
			break;
		apply(run, run->floor[device], op, op->offset, op->length);
	}
}

static void add_unit(struct run *run, struct unit unit)
{
	if (run->count == run->capacity) {
		run->capacity = run->capacity ? 2 * run->capacity : 256;
		run->units = realloc(run->units, run->capacity * sizeof(*run->units));
		run->keep = realloc(run->keep, run->capacity * sizeof(*run->keep));
		cr_assert(run->units && run->keep);
	}
	run->units[run->count++] = unit;
}

static void find_units(struct run *run, unsigned device)
{
	uint32_t unit = run->source->traits[device]->unit_bytes;

	for (size_t i = run->floor_op[device]; i < run->source->journal->count; i++) {
		const struct power_op *op = op_at(run, i);
		uint64_t end = op->offset + op->length;

		if (op->start >= run->time)
			break;
		if (op->kind == POWER_FLUSH || op->device != device || op->durable_at < run->time)
			continue;
		for (uint64_t at = op->offset; at < end;) {
			uint64_t next = (at / unit + 1) * unit;

			next = next < end ? next : end;
			add_unit(run, (struct unit){i, at, next - at});
			at = next;
		}
	}
}

/* Durable and kept, in the order in which they were written. */
static void build(const struct run *run, unsigned device)
{
	uint8_t *image = run->visitor->target[device];
	size_t at = 0;

	memcpy(image, run->floor[device], run->source->bytes[device]);
	while (at < run->count && op_at(run, run->units[at].op)->device != device)
		at++;
	for (size_t i = run->floor_op[device]; i < run->source->journal->count; i++) {
		const struct power_op *op = op_at(run, i);

		if (op->start >= run->time)
			break;
		if (op->kind == POWER_FLUSH || op->device != device)
			continue;
		if (op->durable_at < run->time)
			apply(run, image, op, op->offset, op->length);
		for (; at < run->count && run->units[at].op == i; at++)
			if (run->keep[at])
				apply(run, image, op, run->units[at].offset, run->units[at].length);
	}
}

static void visit(struct run *run)
{
	struct outage_state state = {
		.promise = &run->source->journal->notes[run->note].promise,
		.time = run->time,
		.pending = (unsigned)run->count,
	};

	if (run->stopped)
		return;
	for (size_t i = 0; i < run->count; i++)
		state.kept += run->keep[i];
	for (unsigned device = 0; device < POWER_DEVICES; device++)
		build(run, device);
	run->visited++;
	run->stopped = !run->visitor->visit(run->visitor->user, &state);
}

/* ---- Which subsets --------------------------------------------------------------------------- */

static void keep_all(struct run *run, bool kept)
{
	for (size_t i = 0; i < run->count; i++)
		run->keep[i] = kept;
}

static void all_subsets(struct run *run, size_t from, size_t count)
{
	for (uint64_t mask = 0; mask < UINT64_C(1) << count && !run->stopped; mask++) {
		for (size_t i = 0; i < count; i++)
			run->keep[from + i] = mask >> i & 1;
		visit(run);
	}
}

/* Each write as a whole kept, dropped, or torn: tears of many units at once would nearly never
 * leave one of many writes whole. */
static void random_subset(struct run *run)
{
	uint64_t odds = 1 + seed_below(run->seed, 7);

	for (size_t i = 0; i < run->count;) {
		size_t op = run->units[i].op;
		bool torn = seed_below(run->seed, 3) == 0;
		bool kept = seed_below(run->seed, 8) < odds;

		for (; i < run->count && run->units[i].op == op; i++)
			run->keep[i] = torn ? seed_below(run->seed, 2) : kept;
	}
}

static void single(struct run *run, size_t i, bool kept)
{
	keep_all(run, !kept);
	run->keep[i] = kept;
	visit(run);
}

static void samples(struct run *run)
{
	size_t step = run->plan->singles ? (run->count - 1) / run->plan->singles + 1 : run->count;
	size_t first = seed_below(run->seed, step);

	keep_all(run, true);
	visit(run);
	keep_all(run, false);
	visit(run);
	for (size_t i = first; run->plan->singles && i < run->count; i += step) {
		single(run, i, false);
		single(run, i, true);
	}
	for (unsigned i = 0; i < run->plan->randoms; i++) {
		random_subset(run);
		visit(run);
	}
}

/* An origin write that was dropped hides a preimage that was lost, so that all of them kept is the
 * hardest case, and the subsets of the store's are what matters. */
static void cut(struct run *run)
{
	size_t origin_units;

	for (unsigned device = 0; device < POWER_DEVICES; device++)
		raise_floor(run, device);
	run->count = 0;
	find_units(run, POWER_ORIGIN);
	origin_units = run->count;
	find_units(run, POWER_STORE);
	if (run->count <= run->plan->exhaustive_units) {
		all_subsets(run, 0, run->count);
	} else if (run->count - origin_units <= run->plan->exhaustive_units) {
		keep_all(run, true);
		all_subsets(run, origin_units, run->count - origin_units);
		random_subset(run);
		visit(run);
	} else {
		samples(run);
	}
}

/* ---- Where to cut ---------------------------------------------------------------------------- */

struct position {
	uint64_t time;
	bool focus; /* a write of records has begun just before, or a promise is about to change */
};

static int by_time(const void *a, const void *b)
{
	const struct position *left = a, *right = b;

	return left->time < right->time ? -1 : left->time > right->time;
}

static void focus_on_changes(
	const struct journal *journal, struct position *positions, size_t count)
{
	size_t note = 0;

	for (size_t i = 0; i < count && journal->note_count; i++) {
		unsigned may;

		while (note + 1 < journal->note_count &&
			journal->notes[note + 1].time < positions[i].time)
			note++;
		may = journal->notes[note].promise.may;
		positions[i].focus |= (may & (may - 1)) != 0;
	}
}

/* Only what can change the outcome: the start of a write, that something became durable, and a
 * promise. Returns: how many, each once. */
static size_t find_positions(const struct run *run, struct position *positions)
{
	const struct journal *journal = run->source->journal;
	size_t count = 0, unique = 0;

	for (size_t i = 0; i < journal->count; i++) {
		const struct power_op *op = &journal->ops[i];
		bool records = op->device == POWER_STORE &&
			       power_in_area(run->source->chunk_bytes, op->offset);

		if (op->kind != POWER_FLUSH)
			positions[count++] = (struct position){op->start + 1, records};
		if (op->kind != POWER_FLUSH && op->durable_at != POWER_NEVER)
			positions[count++] = (struct position){op->durable_at + 1, false};
	}
	for (size_t i = 0; i < journal->note_count; i++)
		positions[count++] = (struct position){journal->notes[i].time + 1, false};
	qsort(positions, count, sizeof(*positions), by_time);
	for (size_t i = 0; i < count; i++) {
		if (unique == 0 || positions[unique - 1].time != positions[i].time)
			positions[unique++] = positions[i];
		positions[unique - 1].focus |= positions[i].focus;
	}
	focus_on_changes(journal, positions, unique);
	return unique;
}

static size_t choose(const struct run *run, struct position *positions, size_t count)
{
	size_t wanted = run->plan->positions;

	if (!wanted || wanted >= count)
		return count;
	for (size_t i = 0; i < wanted; i++) {
		size_t other = i + seed_below(run->seed, count - i);
		struct position held = positions[i];

		for (size_t tries = 0; i % 2 && !positions[other].focus && tries < count; tries++)
			other = other + 1 < count ? other + 1 : i;
		positions[i] = positions[other];
		positions[other] = held;
	}
	qsort(positions, wanted, sizeof(*positions), by_time);
	return wanted;
}

static void cut_all(struct run *run, const struct position *positions, size_t count)
{
	const struct journal *journal = run->source->journal;

	for (size_t i = 0; i < count && !run->stopped; i++) {
		if (!journal->note_count || journal->notes[0].time >= positions[i].time)
			continue;
		run->time = positions[i].time;
		while (run->note + 1 < journal->note_count &&
			journal->notes[run->note + 1].time < run->time)
			run->note++;
		cut(run);
	}
}

uint64_t outage_run(const struct outage_source *source, const struct outage_plan *plan,
	struct seed *seed, const struct outage_visitor *visitor)
{
	const struct journal *journal = source->journal;
	struct run run = {.source = source, .plan = plan, .visitor = visitor, .seed = seed};
	struct position *positions =
		malloc((2 * journal->count + journal->note_count + 1) * sizeof(*positions));

	cr_assert_not_null(positions);
	for (unsigned device = 0; device < POWER_DEVICES; device++) {
		run.floor[device] = malloc(source->bytes[device]);
		cr_assert_not_null(run.floor[device]);
		memcpy(run.floor[device], source->base[device], source->bytes[device]);
	}
	cut_all(&run, positions, choose(&run, positions, find_positions(&run, positions)));
	for (unsigned device = 0; device < POWER_DEVICES; device++)
		free(run.floor[device]);
	free(run.units);
	free(run.keep);
	free(positions);
	return run.visited;
}
