/* SPDX-License-Identifier: MIT */
#include "crash/live_merge.h"
#include "crash/rig.h"
#include "crash/scenario.h"
#include "support/test.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR       512u
#define CHUNKS       60u
#define STORE_CHUNKS 100u
#define CHANGES      512u
#define IMAGES       256u
#define UNDER_WAY    2 /* as a result; 1: a merge has more to do */

/* A write to the volume. */
struct change {
	uint64_t time; /* at which it began */
	uint64_t offset;
	uint64_t length;
	uint8_t *data;
};

struct live {
	const struct live_merge_options *options;
	struct live_merge_result *result;
	const struct power_traits *traits[POWER_DEVICES];
	struct rig rig;
	struct rig after; /* a cut */
	uint64_t bytes[POWER_DEVICES];
	uint8_t *base[POWER_DEVICES];
	uint8_t *model; /* what the volume holds */
	uint8_t *found;
	struct change changes[CHANGES];
	size_t change_count;
	uint8_t *images[IMAGES]; /* of the model, at flushes */
	size_t image_count;
	struct promise promise; /* image: what is durable; generation[0]: with so many changes */
	struct seed seed;
	uint64_t seen;
	/* In a queue. */
	struct cowsnap_op merge_op;
	int merged; /* the result of the last call */
};

static bool wrong(struct live *live, const struct outage_state *state, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

static bool wrong(struct live *live, const struct outage_state *state, const char *format, ...)
{
	struct live_merge_result *result = live->result;
	va_list args;
	int used;

	if (result->violations++ > 0)
		return false;
	used = snprintf(result->message, sizeof(result->message),
		"time %llu, %u of %u pending units kept: ", (unsigned long long)state->time,
		state->kept, state->pending);
	va_start(args, format);
	vsnprintf(result->message + used, sizeof(result->message) - (size_t)used, format, args);
	va_end(args);
	return false;
}

/* ---- In a queue ------------------------------------------------------------------------------ */

static void store_result(struct cowsnap_op *op, void *user, int error)
{
	(void)op;
	*(int *)user = error;
}

/* Something that was submitted ends, or the merge goes on. */
static void poll_queue(struct live *live)
{
	int rc = COWSNAP_PENDING;

	if (live->merged == 1) {
		live->merged = UNDER_WAY;
		rc = cowsnap_merge_run_async(live->rig.snapshot, live->rig.queue,
			SECTOR * (1 + seed_below(&live->seed, 60)), &live->merge_op, store_result,
			&live->merged);
	}
	cr_assert_eq(rc, COWSNAP_PENDING, "%d", rc);
	if (seed_below(&live->seed, 3) == 0)
		power_step(&live->rig.power[POWER_STORE], seed_next(&live->seed));
	cr_assert_geq(cowsnap_queue_poll(live->rig.queue), 0);
}

/* @rc: of the call that was to begin it. */
static void await(struct live *live, int rc, const int *result)
{
	while (rc == COWSNAP_PENDING && *result == UNDER_WAY)
		poll_queue(live);
	if (rc == COWSNAP_PENDING)
		rc = *result;
	cr_assert_eq(rc, 0, "%d", rc);
}

/* ---- The volume in use ----------------------------------------------------------------------- */

static uint64_t now(struct live *live)
{
	uint64_t time;

	pthread_mutex_lock(&live->rig.journal.lock);
	time = live->rig.journal.now;
	pthread_mutex_unlock(&live->rig.journal.lock);
	return time;
}

/* All that was written is durable. */
static void promise(struct live *live)
{
	uint8_t *image = malloc(live->bytes[POWER_ORIGIN]);

	cr_assert(image && live->image_count < IMAGES);
	memcpy(image, live->model, live->bytes[POWER_ORIGIN]);
	live->images[live->image_count++] = image;
	live->promise.image = image;
	live->promise.generation[0] = live->change_count;
	journal_note(&live->rig.journal, &live->promise);
}

static void flush_volume(struct live *live)
{
	int result = UNDER_WAY;
	struct cowsnap_op op;

	if (live->options->queue)
		await(live,
			cowsnap_origin_flush_async(
				live->rig.origin, live->rig.queue, &op, store_result, &result),
			&result);
	else
		cr_assert_eq(cowsnap_origin_flush(live->rig.origin), 0);
	promise(live);
}

static void write_bytes(
	struct live *live, enum cowsnap_write_kind kind, const struct change *change)
{
	const void *data = kind == COWSNAP_WRITE ? change->data : NULL;
	int result = UNDER_WAY, rc;
	struct cowsnap_op op;

	if (live->options->queue) {
		rc = cowsnap_origin_write_async(live->rig.origin, live->rig.queue, kind, data,
			change->offset, change->length, &op, store_result, &result);
		await(live, rc, &result);
		return;
	}
	rc = cowsnap_origin_write(live->rig.origin, kind, data, change->offset, change->length);
	cr_assert_eq(rc, 0, "%d", rc);
}

static void write_volume(struct live *live)
{
	uint64_t sectors = live->bytes[POWER_ORIGIN] / SECTOR;
	uint64_t first = seed_below(&live->seed, sectors);
	uint64_t count = 1 + seed_below(&live->seed, seed_below(&live->seed, 4) ? 3 : 24);
	enum cowsnap_write_kind kind =
		seed_below(&live->seed, 8) ? COWSNAP_WRITE : COWSNAP_WRITE_ZEROES;
	struct change *change = &live->changes[live->change_count];

	if (count > sectors - first)
		count = sectors - first;
	cr_assert_lt(live->change_count, CHANGES);
	*change = (struct change){
		.offset = first * SECTOR, .length = count * SECTOR, .time = now(live)};
	change->data = calloc(1, change->length);
	cr_assert_not_null(change->data);
	if (kind == COWSNAP_WRITE)
		seed_fill(&live->seed, change->data, change->length);
	live->change_count++;
	write_bytes(live, kind, change);
	memcpy(live->model + change->offset, change->data, change->length);
}

static void read_volume(struct live *live)
{
	uint64_t bytes = live->bytes[POWER_ORIGIN];
	int result = UNDER_WAY;
	struct cowsnap_op op;

	if (live->options->queue)
		await(live,
			cowsnap_origin_read_async(live->rig.origin, live->rig.queue, live->found, 0,
				bytes, &op, store_result, &result),
			&result);
	else
		cr_assert_eq(cowsnap_origin_read(live->rig.origin, live->found, 0, bytes), 0);
	cr_assert_arr_eq(live->found, live->model, live->bytes[POWER_ORIGIN]);
}

static void use_volume(struct live *live)
{
	write_volume(live);
	if (seed_below(&live->seed, 3) == 0)
		read_volume(live);
	if (seed_below(&live->seed, 4) == 0)
		flush_volume(live);
}

static void *merge_on(void *argument)
{
	struct rig *rig = argument;
	int rc;

	do
		rc = cowsnap_merge_run(rig->snapshot, 3 * SECTOR);
	while (rc > 0);
	cr_assert_eq(rc, 0, "%d", rc);
	return NULL;
}

static void merge_with_thread(struct live *live)
{
	pthread_t thread;

	cr_assert_eq(pthread_create(&thread, NULL, merge_on, &live->rig), 0);
	for (unsigned i = 0; i < live->options->writes; i++)
		use_volume(live);
	pthread_join(thread, NULL);
}

static void merge_in_turn(struct live *live)
{
	unsigned writes = live->options->writes;
	int rc;

	do {
		rc = cowsnap_merge_run(
			live->rig.snapshot, SECTOR * (1 + seed_below(&live->seed, 12)));
		cr_assert_geq(rc, 0, "%d", rc);
		for (uint64_t n = writes ? seed_below(&live->seed, 4) : 0; n && writes; n--) {
			use_volume(live);
			writes--;
		}
	} while (rc > 0);
}

static void merge_in_queue(struct live *live)
{
	live->merged = 1;
	for (unsigned i = 0; i < live->options->writes; i++) {
		use_volume(live);
		for (uint64_t polls = seed_below(&live->seed, 6); polls; polls--)
			poll_queue(live);
	}
	while (live->merged > 0)
		poll_queue(live);
	cr_assert_eq(live->merged, 0, "%d", live->merged);
}

/* ---- The journal ----------------------------------------------------------------------------- */

/* A snapshot with runs and single chunks, over more than one area where the chunks are small. */
static void fill_store(struct live *live)
{
	static const struct {
		uint8_t first, count;
	} runs[] = {{20, 16}, {3, 1}, {50, 2}, {59, 1}, {36, 8}, {4, 3}, {45, 1}, {44, 1}, {10, 6}};
	uint64_t chunk = live->options->chunk_bytes;

	cr_assert_eq(rig_create(&live->rig, chunk, 0, 0), 0);
	cr_assert_eq(rig_take(&live->rig, COWSNAP_LOSER_WRITE), 0);
	memcpy(live->model, live->rig.live[POWER_ORIGIN], live->bytes[POWER_ORIGIN]);
	for (unsigned i = 0; i < sizeof(runs) / sizeof(*runs); i++) {
		uint64_t end = (uint64_t)(runs[i].first + runs[i].count) * chunk;

		if (end > live->bytes[POWER_ORIGIN])
			end = live->bytes[POWER_ORIGIN];
		cr_assert_eq(
			rig_write(&live->rig, runs[i].first * chunk, end - runs[i].first * chunk),
			0);
	}
	cr_assert_eq(cowsnap_device_flush(live->rig.device[POWER_ORIGIN]), 0);
}

static void record(struct live *live)
{
	seed_fill(&live->seed, live->rig.live[POWER_ORIGIN], live->bytes[POWER_ORIGIN]);
	cr_assert_eq(rig_start(&live->rig, live->traits, live->bytes[POWER_ORIGIN],
			     live->bytes[POWER_STORE]),
		0);
	fill_store(live);
	for (unsigned i = 0; i < POWER_DEVICES; i++) {
		live->base[i] = malloc(live->bytes[i]);
		cr_assert_not_null(live->base[i]);
		memcpy(live->base[i], live->rig.live[i], live->bytes[i]);
	}
	live->rig.journal.recording = true;
	promise(live);
	cr_assert_eq(cowsnap_merge_begin(live->rig.snapshot), 0);
	live->rig.power[POWER_ORIGIN].flush_yields = live->options->threads ? 20 : 0;
	if (live->options->queue)
		merge_in_queue(live);
	else if (live->options->threads)
		merge_with_thread(live);
	else
		merge_in_turn(live);
	/* Whatever comes now goes to the origin alone. */
	for (unsigned i = 0; live->options->writes && i < 3; i++)
		use_volume(live);
	live->rig.journal.recording = false;
	cr_assert_arr_eq(live->rig.live[POWER_ORIGIN], live->model, live->bytes[POWER_ORIGIN]);
	cowsnap_snapshot_unref(live->rig.snapshot);
	live->rig.snapshot = NULL;
	cr_assert_eq(rig_stop(&live->rig), 0);
}

/* ---- After a cut ----------------------------------------------------------------------------- */

/* Is this sector what was durable, or what was written to it since? */
static bool sector_allowed(
	const struct live *live, const struct outage_state *state, uint64_t offset)
{
	const uint8_t *is = live->found + offset;

	if (memcmp(is, state->promise->image + offset, SECTOR) == 0)
		return true;
	for (size_t i = state->promise->generation[0]; i < live->change_count; i++) {
		const struct change *change = &live->changes[i];

		if (change->time > state->time)
			break;
		if (offset >= change->offset && offset < change->offset + change->length &&
			memcmp(is, change->data + (offset - change->offset), SECTOR) == 0)
			return true;
	}
	return false;
}

static bool verify(struct live *live, const struct outage_state *state, const char *when)
{
	for (uint64_t at = 0; at < live->bytes[POWER_ORIGIN]; at += SECTOR)
		if (!sector_allowed(live, state, at))
			return wrong(live, state,
				"%s: the volume is wrong at byte %llu, chunk %llu", when,
				(unsigned long long)at,
				(unsigned long long)(at / live->options->chunk_bytes));
	return true;
}

static bool verify_origin(struct live *live, const struct outage_state *state, const char *when)
{
	memcpy(live->found, live->after.live[POWER_ORIGIN], live->bytes[POWER_ORIGIN]);
	return verify(live, state, when);
}

static int start_again(struct live *live)
{
	int rc = rig_start(
		&live->after, live->traits, live->bytes[POWER_ORIGIN], live->bytes[POWER_STORE]);

	return rc ? rc : rig_attach(&live->after, 0, 0, COWSNAP_LOSER_WRITE);
}

/* Half of the time it is killed once more on the way; then the next one goes on. */
static int merge_again(struct live *live)
{
	struct rig *rig = &live->after;
	int rc = cowsnap_merge_begin(rig->snapshot);

	if (!rc && live->result->states % 2) {
		rc = cowsnap_merge_run(rig->snapshot, 8 * SECTOR);
		if (rc <= 0)
			return rc;
		rc = rig_stop(rig);
		rc = rc ? rc : start_again(live);
		rc = rc ? rc : cowsnap_merge_begin(rig->snapshot);
	}
	return rc ? rc : cowsnap_merge_run(rig->snapshot, UINT64_MAX);
}

static bool examine(struct live *live, const struct outage_state *state)
{
	struct rig *rig = &live->after;
	int rc = start_again(live);

	live->result->states++;
	if (rc == -ENOENT) {
		live->result->merged++;
		return verify_origin(live, state, "merged");
	}
	if (rc)
		return wrong(live, state, "opening: %d", rc);
	rc = cowsnap_snapshot_read(rig->snapshot, live->found, 0, live->bytes[POWER_ORIGIN]);
	if (rc)
		return wrong(live, state, "reading: %d", rc);
	if (!verify(live, state, "opened"))
		return false;
	live->result->again++;
	rc = merge_again(live);
	if (rc)
		return wrong(live, state, "merging again: %d", rc);
	return verify_origin(live, state, "merged again");
}

static bool visit(void *user, const struct outage_state *state)
{
	struct live *live = user;
	struct rig *rig = &live->after;

	if (live->options->stride && live->seen++ % live->options->stride)
		return true;
	examine(live, state);
	if (rig->snapshot && rig_info(rig).state == COWSNAP_SNAPSHOT_DROPPED) {
		cowsnap_snapshot_unref(rig->snapshot);
		rig->snapshot = NULL;
	}
	cr_assert_eq(rig_stop(rig), 0);
	return !live->result->violations;
}

static void cut_everywhere(struct live *live)
{
	struct outage_source source = {
		.journal = &live->rig.journal,
		.base = {live->base[POWER_ORIGIN], live->base[POWER_STORE]},
		.bytes = {live->bytes[POWER_ORIGIN], live->bytes[POWER_STORE]},
		.traits = {live->traits[POWER_ORIGIN], live->traits[POWER_STORE]},
		.chunk_bytes = live->options->chunk_bytes,
	};
	struct outage_visitor visitor = {
		.visit = visit,
		.user = live,
		.target = {live->after.live[POWER_ORIGIN], live->after.live[POWER_STORE]},
	};

	live->result->mutated =
		mutate(&live->rig.journal, live->options->chunk_bytes, live->options->mutation);
	outage_prepare(&source);
	outage_run(&source, &live->options->plan, &live->seed, &visitor);
}

void live_merge_run(const struct live_merge_options *options, struct live_merge_result *result)
{
	struct live *live = calloc(1, sizeof(*live));
	uint64_t chunk = options->chunk_bytes;

	cr_assert_not_null(live);
	*result = (struct live_merge_result){0};
	live->options = options;
	live->result = result;
	live->traits[POWER_ORIGIN] = &scenario_origin;
	live->traits[POWER_STORE] = options->traits;
	live->bytes[POWER_ORIGIN] = CHUNKS * chunk - (chunk > SECTOR ? SECTOR : 0);
	live->bytes[POWER_STORE] = STORE_CHUNKS * chunk;
	live->seed = options->seed;
	live->promise.chunk_bytes = chunk;
	live->model = malloc(live->bytes[POWER_ORIGIN]);
	live->found = malloc(live->bytes[POWER_ORIGIN]);
	cr_assert(live->model && live->found);
	rig_init(&live->rig, live->bytes[POWER_ORIGIN], live->bytes[POWER_STORE]);
	rig_init(&live->after, live->bytes[POWER_ORIGIN], live->bytes[POWER_STORE]);
	live->rig.looped = options->queue;
	record(live);
	cut_everywhere(live);
	for (size_t i = 0; i < live->change_count; i++)
		free(live->changes[i].data);
	for (size_t i = 0; i < live->image_count; i++)
		free(live->images[i]);
	for (unsigned i = 0; i < POWER_DEVICES; i++)
		free(live->base[i]);
	free(live->model);
	free(live->found);
	rig_fini(&live->rig);
	rig_fini(&live->after);
	free(live);
}
