/* SPDX-License-Identifier: MIT */
#include "crash/check.h"
#include "crash/sample.h"
#include "support/test.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define CONTINUE_CHUNKS 40

static const uint8_t empty_slot[16];

/* One state under examination. */
struct look {
	struct check *check;
	struct rig *rig;
	const struct outage_state *state;
	const struct promise *promise;
	unsigned depth;
	bool sampled;
	bool tail;      /* there is something behind the last record */
	uint64_t saved; /* records that were found */
	struct cowsnap_dm_report report;
};

/* What is done with a state that holds its promise. */
enum use {
	USE_NOTHING,
	USE_REOPEN,
	USE_CONTINUE,
	USE_FILL,
	USE_NESTED,
};

static bool wrong(const struct look *look, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

static bool wrong(const struct look *look, const char *format, ...)
{
	struct check *check = look->check;
	va_list args;
	int used;

	if (check->violations++ > 0)
		return false;
	used = snprintf(check->message, sizeof(check->message),
		"%s, state %llu, depth %u, time %llu, %u of %u pending units kept: ", check->name,
		(unsigned long long)check->counts.states, look->depth,
		(unsigned long long)look->state->time, look->state->kept, look->state->pending);
	va_start(args, format);
	vsnprintf(check->message + used, sizeof(check->message) - (size_t)used, format, args);
	va_end(args);
	return false;
}

/* ---- A process comes and goes ---------------------------------------------------------------- */

static bool start(struct look *look)
{
	int rc = rig_start(look->rig, look->check->traits, look->check->origin_bytes,
		look->promise->store_bytes);

	return rc ? wrong(look, "starting: %d", rc) : true;
}

static bool stop(struct look *look)
{
	uint64_t changes = look->rig->power[POWER_STORE].changes;
	int rc = rig_stop(look->rig);

	if (rc)
		return wrong(look, "closing: %d", rc);
	if (look->rig->power[POWER_STORE].changes != changes)
		return wrong(look, "closing has written to the store");
	return true;
}

/* ---- What is there --------------------------------------------------------------------------- */

static bool verify_image(struct look *look, const char *when)
{
	struct check *check = look->check;
	uint64_t bytes = check->origin_bytes;
	int rc = cowsnap_snapshot_read(look->rig->snapshot, check->read, 0, bytes);

	if (rc)
		return wrong(look, "%s: reading the snapshot: %d", when, rc);
	if (memcmp(check->read, look->promise->image, bytes) == 0)
		return true;
	for (uint64_t at = 0; at < bytes; at++)
		if (check->read[at] != look->promise->image[at])
			return wrong(look,
				"%s: the snapshot is wrong from byte %llu on, in chunk %llu", when,
				(unsigned long long)at,
				(unsigned long long)(at / look->promise->chunk_bytes));
	return false;
}

static bool verify_usage(struct look *look, uint64_t saved, const char *when)
{
	struct cowsnap_store_usage usage = rig_usage(look->rig);
	struct cowsnap_snapshot_info info = rig_info(look->rig);
	uint64_t chunk = look->promise->chunk_bytes;
	uint64_t limit = power_record_limit(chunk, look->promise->store_bytes);

	if (info.saved_chunks != saved)
		return wrong(look, "%s: %llu chunks are saved, not %llu", when,
			(unsigned long long)info.saved_chunks, (unsigned long long)saved);
	if (usage.used_bytes != saved * chunk || usage.limit_bytes != limit * chunk)
		return wrong(look, "%s: %llu of %llu bytes are used, not %llu of %llu", when,
			(unsigned long long)usage.used_bytes, (unsigned long long)usage.limit_bytes,
			(unsigned long long)(saved * chunk), (unsigned long long)(limit * chunk));
	if (usage.chunk_size_bytes != chunk || info.size_bytes != look->check->origin_bytes)
		return wrong(look, "%s: chunk size or length of the snapshot", when);
	return true;
}

/* The image that is known, whatever has happened since; and it is so a second time. */
static bool verify_again(struct look *look, uint64_t saved, const char *when)
{
	int rc;

	if (!stop(look) || !start(look))
		return false;
	rc = rig_attach(look->rig, look->promise->chunk_bytes, 0, COWSNAP_LOSER_WRITE);
	if (rc)
		return wrong(look, "%s: opening again: %d", when, rc);
	if (look->rig->power[POWER_STORE].changes)
		return wrong(look, "%s: opening again has changed the store", when);
	if (rig_info(look->rig).state != COWSNAP_SNAPSHOT_ACTIVE)
		return wrong(look, "%s: invalid when opened again", when);
	return verify_usage(look, saved, when) && verify_image(look, when);
}

/* ---- Uses ------------------------------------------------------------------------------------ */

static bool write_chunks(struct look *look, uint64_t first, uint64_t count)
{
	uint64_t chunk = look->promise->chunk_bytes;
	uint64_t offset = first * chunk;
	uint64_t length = count * chunk;
	int rc;

	if (offset + length > look->check->origin_bytes)
		length = look->check->origin_bytes - offset;
	rc = rig_write(look->rig, offset, length);
	if (rc && rc != -ENOSPC)
		return wrong(look, "going on: a write failed: %d", rc);
	return true;
}

static uint64_t origin_chunks(const struct look *look)
{
	uint64_t chunk = look->promise->chunk_bytes;

	return (look->check->origin_bytes + chunk - 1) / chunk;
}

static bool is_saved(const struct look *look, uint64_t chunk)
{
	struct cowsnap_extent extent = {0};
	int rc = cowsnap_snapshot_extent(
		look->rig->snapshot, chunk * look->promise->chunk_bytes, 1, &extent);

	return !rc && extent.saved;
}

/* One write, if there are as many in a row that are not saved. From the end on, because workloads
 * begin at the front: the same chunks again would be copied to the same places. */
static bool touch_row(struct look *look, uint64_t count)
{
	uint64_t row = 0;

	for (uint64_t i = origin_chunks(look); i > 0; i--) {
		row = is_saved(look, i - 1) ? 0 : row + 1;
		if (row == count)
			return write_chunks(look, i - 1, count);
	}
	return true;
}

/* What would make a tail that was left come alive: the gap in front of it is filled exactly, and
 * its chunks are used by others, whose records a second cut takes away. */
static bool fill_gap(struct look *look)
{
	return touch_row(look, 32 - look->saved % 32) && touch_row(look, 12) && touch_row(look, 1);
}

/* Half of the time so many first touches that they end where a sector of records does: that is
 * where what lies behind would be found. */
static bool go_on(struct look *look)
{
	struct seed *seed = &look->check->seed;
	uint64_t chunks = origin_chunks(look);
	uint64_t wanted = 1 + seed_below(seed, 6);

	if (seed_below(seed, 2))
		wanted = 32 - look->saved % 32;
	for (uint64_t i = 0; i < chunks && wanted > 0; i++) {
		if (is_saved(look, i))
			continue;
		if (!write_chunks(look, i, 1))
			return false;
		wanted--;
	}
	if (seed_below(seed, 2)) {
		uint64_t first = seed_below(seed, chunks);
		uint64_t count = 1 + seed_below(seed, CONTINUE_CHUNKS);

		return write_chunks(look, first, count < chunks - first ? count : chunks - first);
	}
	return true;
}

static bool use_continue(struct look *look)
{
	uint64_t saved;

	look->check->counts.continued++;
	if (!go_on(look) || !verify_image(look, "after more writes"))
		return false;
	saved = rig_info(look->rig).saved_chunks;
	return verify_usage(look, saved, "after more writes") &&
	       verify_again(look, saved, "after more writes");
}

/* All the room that the store has can be had. */
static bool use_fill(struct look *look)
{
	uint64_t chunks = origin_chunks(look);
	uint64_t limit = power_record_limit(look->promise->chunk_bytes, look->promise->store_bytes);
	uint64_t saved = chunks < limit ? chunks : limit;

	look->check->counts.filled++;
	for (uint64_t i = 0; i < chunks; i++)
		if (!write_chunks(look, i, 1))
			return false;
	return verify_usage(look, saved, "filled") && verify_image(look, "filled") &&
	       verify_again(look, saved, "filled");
}

static bool check_state(struct check *check, unsigned depth, const struct outage_state *state);

static bool visit_nested(void *user, const struct outage_state *state)
{
	struct check *check = user;

	check_state(check, 1, state);
	return !(check->stop && check->violations);
}

static void cut_nested(struct look *look)
{
	static const struct outage_plan plan = {
		.exhaustive_units = 3,
		.singles = 3,
		.randoms = 3,
		.positions = 8,
	};
	struct check *check = look->check;
	struct journal *journal = &look->rig->journal;
	struct outage_source source = {
		.journal = journal,
		.base = {check->base[POWER_ORIGIN], check->base[POWER_STORE]},
		.bytes = {check->origin_bytes, look->promise->store_bytes},
		.traits = {check->traits[POWER_ORIGIN], check->traits[POWER_STORE]},
		.chunk_bytes = look->promise->chunk_bytes,
	};
	struct outage_visitor visitor = {
		.visit = visit_nested,
		.user = check,
		.target = {check->rig[1].live[POWER_ORIGIN], check->rig[1].live[POWER_STORE]},
	};

	check->mutated += mutate(journal, look->promise->chunk_bytes, check->mutation);
	outage_prepare(&source);
	outage_run(&source, &plan, &check->seed, &visitor);
}

/* The power fails again, while the store is opened and used. And it fails at the very end. */
static bool use_nested(struct look *look)
{
	bool good;

	look->check->counts.nested++;
	good = (look->report.stale_bytes ? fill_gap(look) : go_on(look)) &&
	       verify_image(look, "before the second cut");
	look->rig->journal.recording = false;
	if (good)
		cut_nested(look);
	journal_clear(&look->rig->journal);
	return good;
}

static bool use_nothing(struct look *look)
{
	(void)look;
	return true;
}

static bool use_reopen(struct look *look)
{
	look->check->counts.reopened++;
	return verify_again(look, look->saved, "opened twice");
}

static bool (*const uses[])(struct look *look) = {
	[USE_NOTHING] = use_nothing,
	[USE_REOPEN] = use_reopen,
	[USE_CONTINUE] = use_continue,
	[USE_FILL] = use_fill,
	[USE_NESTED] = use_nested,
};

/* Is there something behind the first slot that is empty? Asked before the store is opened. */
static bool has_tail(const struct look *look)
{
	const uint8_t *store = look->rig->live[POWER_STORE];
	uint64_t chunk = look->promise->chunk_bytes;
	uint64_t stripe = (chunk / 16 + 1) * chunk;
	bool ended = false;

	for (uint64_t area = chunk; !ended && area + chunk <= look->promise->store_bytes;
		area += stripe) {
		for (uint64_t at = area; at < area + chunk; at += 16) {
			bool empty = memcmp(store + at, empty_slot, sizeof(empty_slot)) == 0;

			if (ended && !empty)
				return true;
			ended = ended || empty;
		}
	}
	return false;
}

static enum use choose_use(const struct look *look)
{
	uint64_t n = look->check->calls;

	if (look->depth == 0 && (n % 32 == 5 || look->tail))
		return USE_NESTED;
	if (n % 32 == 17)
		return USE_FILL;
	if (n % 8 == 3)
		return USE_CONTINUE;
	return n % 4 == 2 ? USE_REOPEN : USE_NOTHING;
}

/* ---- What was found, against what was promised ----------------------------------------------- */

static bool found_exact(struct look *look, enum use use)
{
	look->saved = rig_info(look->rig).saved_chunks;
	look->check->counts.exact++;
	if (!(look->promise->may & MAY_EXACT))
		return wrong(look, "there is a snapshot");
	if (look->saved != look->report.records)
		return wrong(look, "%llu records were inspected, %llu opened",
			(unsigned long long)look->report.records, (unsigned long long)look->saved);
	return verify_usage(look, look->saved, "opened") && verify_image(look, "opened") &&
	       uses[use](look);
}

/* It says why, saves nothing, and can be dropped for good. */
static bool found_invalid(struct look *look)
{
	struct cowsnap_snapshot_info info = rig_info(look->rig);
	int rc;

	look->check->counts.invalid++;
	if (!(look->promise->may & MAY_INVALID))
		return wrong(look, "the snapshot is invalid");
	if (look->rig->power[POWER_STORE].changes)
		return wrong(look, "opening an invalid snapshot has changed the store");
	if (info.reason != -EUCLEAN)
		return wrong(look, "the reason of an invalid snapshot: %d", info.reason);
	rc = cowsnap_snapshot_read(look->rig->snapshot, look->check->read, 0, 1);
	if (rc != -ESTALE)
		return wrong(look, "reading an invalid snapshot: %d", rc);
	if (look->check->calls % 4)
		return true;
	look->check->counts.dropped++;
	rc = rig_write(look->rig, 0, look->promise->chunk_bytes);
	if (rc)
		return wrong(look, "a write failed for an invalid snapshot: %d", rc);
	rc = rig_drop(look->rig);
	if (rc)
		return wrong(look, "dropping an invalid snapshot: %d", rc);
	if (!stop(look) || !start(look))
		return false;
	rc = rig_attach(look->rig, 0, 0, COWSNAP_LOSER_WRITE);
	return rc == -ENOENT ? true : wrong(look, "opening after a drop: %d", rc);
}

/* A new one can be made there at once, and is not disturbed by what the old one left. */
static bool recreate(struct look *look)
{
	struct promise promise = *look->promise;
	const struct promise *old = look->promise;
	uint8_t *image = malloc(look->check->origin_bytes);
	uint64_t saved;
	bool good;
	int rc;

	cr_assert_not_null(image);
	look->check->counts.recreated++;
	memcpy(image, look->rig->live[POWER_ORIGIN], look->check->origin_bytes);
	promise.image = image;
	look->promise = &promise;
	rc = rig_create(look->rig, promise.chunk_bytes, 0, 0);
	rc = rc ? rc : rig_take(look->rig, COWSNAP_LOSER_WRITE);
	good = rc ? wrong(look, "making a new store: %d", rc) : go_on(look);
	if (good) {
		saved = rig_info(look->rig).saved_chunks;
		good = verify_usage(look, saved, "made anew") && verify_image(look, "made anew") &&
		       verify_again(look, saved, "made anew");
	}
	look->promise = old;
	free(image);
	return good;
}

static bool found_none(struct look *look)
{
	look->check->counts.none++;
	if (!(look->promise->may & MAY_NONE))
		return wrong(look, "there is no store");
	if (look->rig->power[POWER_STORE].changes)
		return wrong(look, "opening has changed a device without a store");
	return look->check->calls % 4 ? true : recreate(look);
}

static bool inspect(struct look *look)
{
	const uint64_t *generation = look->promise->generation;
	int rc = rig_inspect(look->rig, &look->report);

	if (rc && rc != -ENOENT)
		return wrong(
			look, "refused: %d, %s: %s", rc, look->report.fault, look->report.reason);
	if (look->rig->power[POWER_STORE].changes)
		return wrong(look, "an inspection has changed the store");
	if (!rc && look->report.valid && look->report.generation != generation[0] &&
		look->report.generation != generation[1])
		return wrong(look, "generation %llu", (unsigned long long)look->report.generation);
	look->check->counts.stale += !rc && look->report.stale_bytes > 0;
	return true;
}

static void write_sample(const struct look *look, int rc)
{
	const char *verdict = rc == -ENOENT ? "no-store" : look->report.fault;

	if (!rc)
		verdict =
			rig_info(look->rig).state == COWSNAP_SNAPSHOT_INVALID ? "invalid" : "good";
	sample_write(&(struct sample){
		.workload = look->check->name,
		.store = look->check->base[POWER_STORE],
		.store_bytes = look->promise->store_bytes,
		.origin_bytes = look->check->origin_bytes,
		.verdict = verdict,
		.records = look->report.records,
		.stale = look->report.stale_bytes > 0,
	});
}

static bool examine(struct look *look, enum use use)
{
	const struct promise *promise = look->promise;
	int rc;

	if (!inspect(look))
		return false;
	rc = rig_attach(look->rig, look->report.chunk_size_bytes, look->report.generation,
		COWSNAP_LOSER_WRITE);
	if (look->sampled)
		write_sample(look, rc);
	if (rc == -ENOENT)
		return found_none(look);
	if (rc)
		return wrong(look, "opening: %d", rc);
	if (rig_info(look->rig).state == COWSNAP_SNAPSHOT_INVALID)
		return found_invalid(look);
	if (look->report.chunk_size_bytes != promise->chunk_bytes)
		return wrong(
			look, "chunk size %llu", (unsigned long long)look->report.chunk_size_bytes);
	return found_exact(look, use);
}

static bool check_state(struct check *check, unsigned depth, const struct outage_state *state)
{
	struct look look = {
		.check = check,
		.rig = &check->rig[depth],
		.state = state,
		.promise = state->promise,
		.depth = depth,
	};
	struct journal *journal = &look.rig->journal;
	struct promise nested = *state->promise;
	enum use use;
	bool good;

	check->counts.states++;
	check->calls++;
	look.tail = has_tail(&look);
	use = choose_use(&look);
	look.sampled = depth == 0 && sample_wanted(look.tail);
	if (use == USE_NESTED || look.sampled) {
		memcpy(check->base[POWER_ORIGIN], look.rig->live[POWER_ORIGIN],
			check->origin_bytes);
		memcpy(check->base[POWER_STORE], look.rig->live[POWER_STORE],
			look.promise->store_bytes);
	}
	journal->recording = use == USE_NESTED;
	nested.may = MAY_EXACT;
	journal_note(journal, &nested);
	good = start(&look) && examine(&look, use);
	journal_clear(journal);
	if (!look.rig->ctx)
		return good;
	return stop(&look) && good;
}

/* ---- From outside ---------------------------------------------------------------------------- */

static bool visit(void *user, const struct outage_state *state)
{
	struct check *check = user;

	if (check->stride && check->seen++ % check->stride)
		return true;
	check_state(check, 0, state);
	return !(check->stop && check->violations);
}

void check_init(struct check *check, uint64_t store_capacity)
{
	for (unsigned depth = 0; depth < CHECK_DEPTHS; depth++)
		rig_init(&check->rig[depth], check->origin_bytes, store_capacity);
	check->base[POWER_ORIGIN] = malloc(check->origin_bytes);
	check->base[POWER_STORE] = malloc(store_capacity);
	check->read = malloc(check->origin_bytes);
	cr_assert(check->base[POWER_ORIGIN] && check->base[POWER_STORE] && check->read);
	/* Other content than that of the writes before the cut. */
	for (unsigned depth = 0; depth < CHECK_DEPTHS; depth++)
		atomic_store(&check->rig[depth].stamp, UINT64_C(1) << 40 << depth);
}

void check_fini(struct check *check)
{
	for (unsigned depth = 0; depth < CHECK_DEPTHS; depth++)
		rig_fini(&check->rig[depth]);
	free(check->base[POWER_ORIGIN]);
	free(check->base[POWER_STORE]);
	free(check->read);
}

struct outage_visitor check_visitor(struct check *check)
{
	return (struct outage_visitor){
		.visit = visit,
		.user = check,
		.target = {check->rig[0].live[POWER_ORIGIN], check->rig[0].live[POWER_STORE]},
	};
}
