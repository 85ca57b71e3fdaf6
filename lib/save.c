/* SPDX-License-Identifier: MIT
 *
 * Saving: the slow way of a bracket, in steps. A caller that waits goes through the same steps as
 * an event loop: where one parks, the other sleeps.
 *
 *   enter      the gate; only after it was left, or not entered yet
 *   look       is the take that made this generation established? is there anything to save?
 *   record     chunks that nobody needs are noted as changed; if there are no others, that is all
 *   reserve    credits: at most what the range can take
 *   gather     for each head, claim the free runs of the range and get space for them: a run of
 *              chunks that lies together in both is one *job*. Busy chunks are passed over, so that
 *              everything that can be started is started before anybody waits.
 *   copy       one copy for all jobs; what two stores want is read once
 *   commit     each store records what succeeded
 *   settle     publish what succeeded, abort what failed, give the credits back
 *   after      trouble; or another look; or, if nothing was left to start, wait for a busy chunk
 *
 * Invariants:
 *  S1 Credits are taken before the first claim and given back after the last claim has ended: who
 *     holds a claim never waits for credits, so a bound of a single job works.
 *  S2 Each claim of a round has ended when the round ends, and before the host is told of
 *     anything. Whoever holds one waits for I/O and for a reclaimer, never for credits, space or a
 *     writer.
 *  S3 A queue's operation is in the gate only while it has a record. So nobody in an older
 *     generation waits for a record that is held by somebody who waits for the drain.
 *
 * Locking: none; ctx->admin to wait for the end of a drain.
 * Failure: the first difficulty of a round is left in the trouble record.
 */
#include <assert.h>
#include <string.h>

#include "origin.h"

static void no_space(
	struct cs_save *save, const struct cs_head *head, uint64_t chunk, uint64_t epoch)
{
	cs_save_note_trouble(save, head, chunk, -ENOSPC);
	save->trouble.no_space = true;
	save->trouble.space_epoch = epoch;
}

#define SIFT_CHUNKS 64u

/* While a merge is on, what the host sees of a range that was not moved is not what others need of
 * it: that is on the device. */
static bool asks_host(const struct cs_save *save)
{
	return save->preimage && !save->heads->merge;
}

/* Cuts the run to what one job is. */
static void begin_job(struct cs_save *save, struct cs_save_job *job, struct cowsnap_run *want)
{
	job->error = 0;
	job->low_water = false;
	job->zero = false;
	job->data = NULL;
	job->zeroes = 0;
	if (cs_unlikely(asks_host(save)))
		cs_save_ask(save, job->head, job, want);
	if (cs_store_sifts(job->head->chain->store) && want->count > SIFT_CHUNKS)
		want->count = SIFT_CHUNKS;
}

static int place_job(struct cowsnap_store *store, struct cs_save_job *job,
	const struct cowsnap_run *want, struct cowsnap_run *got)
{
	if (!cs_save_spaceless(job))
		return cs_reclaim_get_space(store, want, got, &job->low_water);
	*got = *want;
	got->location = COWSNAP_LOCATION_ZERO;
	return 0;
}

/* Makes jobs of a claimed run; what finds no room among the jobs or in the store is aborted. */
static void place(struct cs_save *save, const struct cs_head *head, struct cowsnap_run run)
{
	struct cowsnap_store *store = head->chain->store;
	uint64_t epoch = cs_store_space_epoch(store);

	while (run.count && save->count < CS_SAVE_JOBS && !save->trouble.head) {
		struct cs_save_job *job = &save->job[save->count];
		struct cowsnap_run *got = &save->run[save->count], want = run;
		uint64_t bytes;
		int rc;

		job->head = head;
		begin_job(save, job, &want);
		rc = place_job(store, job, &want, got);

		if (rc == -ENOSPC)
			no_space(save, head, run.first, epoch);
		else if (rc)
			cs_save_note_trouble(save, head, run.first, rc);
		if (rc)
			break;
		save->count++;
		bytes = got->count << store->chunk_shift;
		save->budget -= bytes < save->budget ? bytes : save->budget;
		run.first += got->count;
		run.count -= got->count;
	}
	if (run.count) {
		cowsnap_map_abort(&head->newest->map, &run);
		save->more = true;
	}
}

/* ---- Gathering ------------------------------------------------------------------------------- */

/* The first chunk that is not done: the one that a claim failed on. */
static uint64_t first_open(const struct cs_head *head, uint64_t chunk, uint64_t end)
{
	while (chunk < end && cs_snapshot_done_mask(head->newest, chunk, 1))
		chunk++;
	return chunk;
}

/* A claimed run, of which a part may have been released and recorded before the claim. */
static void place_open(struct cs_save *save, const struct cs_head *head, struct cowsnap_run run)
{
	uint64_t end = run.first + run.count;
	struct cowsnap_snapshot *s = head->newest;

	if (cs_likely(!cs_bits_any(&s->changed))) {
		place(save, head, run);
		return;
	}
	while (run.first < end) {
		bool changed = cs_bits_test(&s->changed, run.first);

		run.count = 1;
		while (run.first + run.count < end &&
			cs_bits_test(&s->changed, run.first + run.count) == changed)
			run.count++;
		if (changed)
			cowsnap_map_abort(&s->map, &run);
		else
			place(save, head, run);
		run.first += run.count;
	}
}

/* No memory to claim @chunk, or a later one. Returns: where to go on. */
static uint64_t not_claimed(
	struct cs_save *save, const struct cs_head *head, uint64_t chunk, uint64_t end, int rc)
{
	chunk = first_open(head, chunk, end);
	if (chunk == end)
		return end;
	if (cs_save_needed(head, chunk))
		cs_save_note_trouble(save, head, chunk, rc);
	else
		cs_save_record(save, head, chunk, 1);
	cs_reclaim_after_reading(head->chain->store);
	return chunk + !save->trouble.head;
}

/* Returns: the end of what it came to. */
static uint64_t gather_run(
	struct cs_save *save, const struct cs_head *head, uint64_t chunk, uint64_t end)
{
	uint32_t shift = head->chain->store->chunk_shift;

	while (chunk < end && save->count < CS_SAVE_JOBS && !save->trouble.head) {
		uint64_t most = save->budget >> shift;
		struct cowsnap_run run;
		int rc;

		if (!most && save->count)
			break;
		if (!most)
			most = 1;
		if (most > end - chunk)
			most = end - chunk;
		rc = cowsnap_map_claim(&head->newest->map, chunk, most, &run);
		if (rc < 0) {
			chunk = not_claimed(save, head, chunk, end, rc);
			continue;
		}
		if (rc == COWSNAP_CLAIM_NOTHING) {
			chunk += most;
			continue;
		}
		chunk = run.first + run.count;
		if (rc == COWSNAP_CLAIM_BUSY)
			cs_save_note_busy(save, head, run.first);
		else
			place_open(save, head, run);
	}
	return chunk;
}

static void gather(struct cs_save *save, const struct cs_head *head)
{
	uint64_t chunk, end;

	if (!cs_save_chain_counts(head->chain))
		return;
	cs_save_range(save, head, &chunk, &end);
	while (chunk < end && save->count < CS_SAVE_JOBS && !save->trouble.head) {
		uint64_t stop = cs_save_needed_run(save, head, &chunk, end);

		stop += chunk;
		if (stop == chunk)
			break;
		chunk = gather_run(save, head, chunk, stop);
		if (chunk < stop)
			break;
	}
	save->more |= chunk < end;
}

static enum cs_step settle(struct cs_save *save);
static enum cs_step after(struct cs_save *save);

/* ---- Copy ------------------------------------------------------------------------------------ */

static enum cs_step commit(struct cs_save *save);

/* Jobs that are read from the origin have a target each, in their order. */
static bool is_read(const struct cs_save_job *job)
{
	return !job->data && !job->zero;
}

static enum cs_step copied(struct cs_save *save)
{
	size_t n = 0;

	for (size_t i = 0; i < save->count; i++) {
		if (is_read(&save->job[i]))
			save->job[i].error = save->target[n++].error;
	}
	return commit(save);
}

static void set_target(struct cs_save *save, size_t i, struct cowsnap_copy_target *target)
{
	struct cowsnap_store *store = save->job[i].head->chain->store;
	uint64_t size = cs_dev_size(save->op->origin->device);
	uint64_t from = save->run[i].first << store->chunk_shift;
	uint64_t length = save->run[i].count << store->chunk_shift;

	/* The last chunk may be cut off by the end of the device; what lies between that and the
	 * origin's, which may be shorter, is copied too: a store wants whole blocks. */
	if (length > size - from)
		length = size - from;
	*target = (struct cowsnap_copy_target){.device = store->device,
		.offset = save->run[i].location << store->chunk_shift,
		.source_offset = from,
		.length = length};
	if (cs_store_sifts(store)) {
		target->zeroes = &save->job[i].zeroes;
		target->part_bytes = cs_store_chunk_bytes(store);
	}
}

static enum cs_step copy(struct cs_save *save)
{
	struct cowsnap_origin *origin = save->op->origin;
	size_t n = 0;

	for (size_t i = 0; i < save->count; i++) {
		if (is_read(&save->job[i]))
			set_target(save, i, &save->target[n++]);
	}
	save->copy_ran = n > 0;
	if (!n)
		return commit(save);
	save->copy.source = origin->device;
	save->copy.targets = save->target;
	save->copy.count = n;
	save->copy.background = false;
	save->step = copied;
	if (cs_copier_start(origin->handle.ctx->copier, &save->copy, &save->op->task))
		return copied(save);
	return CS_PARK;
}

/* What the host has at hand, then what has to be read. */
static enum cs_step fill(struct cs_save *save)
{
	return save->preimage ? cs_save_give(save, copy) : copy(save);
}

/* ---- Commit ---------------------------------------------------------------------------------- */

static bool last_commit(struct cs_save *save)
{
	/* Acquire and release: the errors of all; pairs with last_commit. */
	return atomic_fetch_sub_explicit(&save->commits_open, 1, memory_order_acq_rel) == 1;
}

static void committed(struct cowsnap_commit *commit, int error)
{
	struct cs_save_commit *c = cs_container_of(commit, struct cs_save_commit, commit);
	struct cs_save *save = c->save;

	for (size_t i = c->first; error && i < c->end; i++) {
		if (!save->job[i].error)
			save->job[i].error = error;
	}
	if (last_commit(save))
		cs_task_wake(&save->op->task);
}

/* The runs of jobs [first, end), all of one head, that succeeded. Those are moved to the front, and
 * the others behind them. Returns: how many. */
static size_t sort_jobs(struct cs_save *save, size_t first, size_t end)
{
	size_t good = first;

	for (size_t i = first; i < end; i++) {
		struct cs_save_job job = save->job[i];
		struct cowsnap_run run = save->run[i];

		if (job.error)
			continue;
		save->job[i] = save->job[good];
		save->run[i] = save->run[good];
		save->job[good] = job;
		save->run[good++] = run;
	}
	return good - first;
}

/* Jobs of one head follow each other. Returns: behind the last one of the head of job @from. */
static size_t jobs_of_head(const struct cs_save *save, size_t from)
{
	size_t to = from;

	while (to < save->count && save->job[to].head == save->job[from].head)
		to++;
	return to;
}

static void make_commit(struct cs_save *save, struct cs_save_commit *c, size_t from, size_t to)
{
	size_t good = sort_jobs(save, from, to);

	c->save = save;
	c->first = from;
	c->end = from + good;
	c->commit.runs = &save->run[from];
	c->commit.count = good;
	c->commit.done = committed;
	c->commit.queue = save->op->task.queue;
}

/* One commit for all jobs of a head that succeeded, if its store records anything. */
static enum cs_step commit(struct cs_save *save)
{
	uint32_t n = 0;

	for (size_t from = 0, to; from < save->count; from = to) {
		to = jobs_of_head(save, from);
		if (cs_store_records(save->job[from].head->chain->store))
			make_commit(save, &save->commits[n++], from, to);
	}
	if (!n)
		return settle(save);
	/* One for this step, so that nobody wakes the task before all are started. */
	atomic_store_explicit(&save->commits_open, n + 1, memory_order_relaxed);
	save->step = settle;
	for (uint32_t i = 0; i < n; i++) {
		struct cs_save_commit *c = &save->commits[i];

		cs_store_start_commit(save->job[c->first].head->chain->store, &c->commit);
	}
	return last_commit(save) ? CS_GO_ON : CS_PARK;
}

/* ---- Settle ---------------------------------------------------------------------------------- */

/* Was it copied for nobody, because what needed it was released meanwhile? Then that is noted. */
static bool in_vain(const struct cs_head *head, const struct cowsnap_run *run)
{
	struct cs_gate *reads = &head->chain->store->upper->reads;
	struct cowsnap_snapshot *s = head->newest;
	uint64_t chunk = run->first, end = run->first + run->count;
	struct cs_gate_pass pass;
	bool vain = true;

	/* Where a store records there are no releases, and this was recorded. */
	if (cs_snapshot_plain(s) || cs_store_records(head->chain->store))
		return false;
	cs_gate_enter(reads, &pass);
	for (unsigned n; vain && chunk < end; chunk += n) {
		n = cs_window_count(chunk, end);
		vain = !cs_chain_needs_mask(s, chunk, n);
	}
	cs_gate_leave(reads, &pass);
	cs_reclaim_after_reading(head->chain->store);
	return vain && !cs_bits_set(&s->changed, run->first, run->count);
}

/* Zeroes were not written: their space goes back. */
static void settle_sifted(const struct cs_save_job *job, const struct cowsnap_run *run)
{
	for (uint64_t i = 0, n; i < run->count; i += n) {
		bool zero = job->zeroes >> i & 1;
		struct cowsnap_run part = {.first = run->first + i, .location = run->location + i};

		n = 1;
		while (i + n < run->count && (job->zeroes >> (i + n) & 1) == zero)
			n++;
		part.count = n;
		if (zero) {
			cs_store_free(job->head->chain->store, part.location, n);
			part.location = COWSNAP_LOCATION_ZERO;
		}
		cowsnap_map_publish(&job->head->newest->map, &part);
	}
}

static void settle_job(struct cs_save *save, size_t i, struct cs_stats_round *round)
{
	const struct cs_save_job *job = &save->job[i];
	const struct cowsnap_run *run = &save->run[i];
	struct cowsnap_store *store = job->head->chain->store;
	struct cowsnap_map *map = &job->head->newest->map;

	if (job->error) {
		if (run->location <= COWSNAP_LOCATION_MAX)
			cs_store_free(store, run->location, run->count);
		cowsnap_map_abort(map, run);
		cs_save_note_trouble(save, job->head, run->first, job->error);
		return;
	}
	round->chunks += run->count;
	round->bytes += run->count << store->chunk_shift;
	if (job->data)
		round->given_bytes += run->count << store->chunk_shift;
	if (run->location == COWSNAP_LOCATION_ZERO)
		round->zero_chunks += run->count;
	else if (cs_unlikely(job->zeroes))
		round->zero_chunks += (uint64_t)__builtin_popcountll(job->zeroes);
	if (in_vain(job->head, run)) {
		if (run->location <= COWSNAP_LOCATION_MAX)
			cs_store_free(store, run->location, run->count);
		cowsnap_map_abort(map, run);
		return;
	}
	if (cs_likely(!job->zeroes))
		cowsnap_map_publish(map, run);
	else
		settle_sifted(job, run);
}

static enum cs_step settle(struct cs_save *save)
{
	struct cowsnap_origin *origin = save->op->origin;
	struct cowsnap_ctx *ctx = origin->handle.ctx;
	struct cs_copier_io io =
		save->copy_ran ? cs_copier_read(&save->copy) : (struct cs_copier_io){0};
	struct cs_stats_round round = {.origin_reads = io.reads, .origin_bytes = io.read_bytes};

	for (size_t i = 0; i < save->count; i++)
		settle_job(save, i, &round);
	round.took_ns = cs_now_ns(&ctx->base) - save->began_ns;
	cs_stats_copied(ctx->base.alloc, origin->stats, &round);
	return after(save);
}

/* ---- After a round --------------------------------------------------------------------------- */

void cs_save_busy_woken(struct cowsnap_map_waiter *waiter)
{
	struct cs_save *save = cs_container_of(waiter, struct cs_save, busy);

	cs_task_wake(&save->op->task);
}

/* There was no space, and then some was given back, because zeroes were found. */
static bool found_space(const struct cs_save *save)
{
	for (size_t i = 0; save->trouble.no_space && i < save->count; i++) {
		const struct cs_save_job *job = &save->job[i];

		if (job->head == save->trouble.head && job->zeroes && !job->error)
			return true;
	}
	return false;
}

static enum cs_step after(struct cs_save *save)
{
	struct cowsnap_origin *origin = save->op->origin;

	cs_copier_release(origin->handle.ctx->copier, save->credit.bytes);
	for (size_t i = 0; i < save->count; i++) {
		if (save->job[i].low_water)
			cs_event_store(save->job[i].head->chain->store, COWSNAP_EVENT_LOW_WATER, 0);
	}
	save->step = cs_save_look;
	if (save->trouble.head && found_space(save))
		return CS_GO_ON;
	if (save->trouble.head && save->no_write) {
		save->op->error = save->trouble.reason;
		return CS_DONE;
	}
	if (save->trouble.head)
		return cs_trouble_resolve(save);
	if (save->more)
		return CS_GO_ON;
	if (!save->busy_map)
		return CS_DONE;
	if (save->count)
		return CS_GO_ON;
	save->busy.wake = cs_save_busy_woken;
	if (cowsnap_map_wait(save->busy_map, save->busy_chunk, &save->busy))
		return CS_GO_ON;
	cs_stats_add(origin->stats, CS_STAT_CLAIM_WAITS, 1);
	return CS_PARK;
}

/* ---- Credits --------------------------------------------------------------------------------- */

/* The most that the range can take: whole chunks of each store. */
static uint64_t bytes_wanted(const struct cs_heads *heads, uint64_t offset, uint64_t length)
{
	uint64_t want = 0;

	for (size_t i = 0; i < heads->count; i++) {
		uint32_t shift = heads->head[i].chain->store->chunk_shift;

		uint64_t chunks = ((offset + length - 1) >> shift) - (offset >> shift) + 1;

		if (chunks << shift > UINT64_MAX - want)
			return UINT64_MAX;
		want += chunks << shift;
	}
	return want;
}

static enum cs_step begin_round(struct cs_save *save)
{
	struct cs_heads *heads = save->heads;
	unsigned heads_used = 0;

	save->op->abandon = NULL;
	save->budget = save->credit.bytes;
	save->began_ns = cs_now_ns(&save->op->origin->handle.ctx->base);
	for (size_t i = 0; i < heads->count; i++) {
		size_t before = save->count;

		if (heads_used == CS_SAVE_COMMITS) {
			save->more = true;
			break;
		}
		gather(save, &heads->head[i]);
		heads_used += save->count > before;
	}
	return save->count ? fill(save) : after(save);
}

static void abandon_credits(struct cs_op *op)
{
	struct cs_save *save = op->turn.record;

	if (cs_copier_forsake(op->origin->handle.ctx->copier, &save->credit))
		cs_save_abandoned(save);
}

static enum cs_step reserve(struct cs_save *save)
{
	struct cs_op *op = save->op;
	struct cowsnap_origin *origin = op->origin;
	uint64_t want = bytes_wanted(save->heads, op->offset, op->length);

	save->busy_map = NULL;
	save->trouble.head = NULL;
	save->more = false;
	save->count = 0;
	save->step = begin_round;
	op->abandon = abandon_credits;
	if (cs_copier_reserve(
		    origin->handle.ctx->copier, &origin->copies, &save->credit, want, &op->task))
		return begin_round(save);
	cs_stats_add(origin->stats, CS_STAT_CREDIT_WAITS, 1);
	return CS_PARK;
}

/* ---- The drain ------------------------------------------------------------------------------- */

/* Its entry is counted where it ends up. Into the gate before out of it, and the first under the
 * lock, so that who closes the origin sees one of the two. */
static void enter_anew(struct cs_op *op)
{
	struct cowsnap_ctx *ctx = op->origin->handle.ctx;
	struct cs_gate_pass before = op->pass;

	cs_mutex_lock(&ctx->admin);
	cs_gate_enter(&op->origin->gate, &op->pass);
	cs_mutex_unlock(&ctx->admin);
	cs_gate_cancel(&op->origin->gate, &before);
}

static enum cs_step look_inside(struct cs_save *save);

static enum cs_step begin_saving(struct cs_save *save)
{
	return cs_save_nothing_needed(save) ? CS_DONE : reserve(save);
}

/* Does a merge of the origin have a say? */
static bool merges(const struct cs_save *save)
{
	return cs_unlikely(save->heads->merge != NULL) && !save->moving;
}

static enum cs_step prepare_merge(struct cs_save *save)
{
	const struct cs_merge_ops *ops = save->heads->merge_ops;
	enum cs_step step;

	ops->widen(save);
	step = ops->prepare(save);
	return step == CS_DONE && !save->op->error ? begin_saving(save) : step;
}

/* All is saved: is there something that a merge has to move first? With an error the gate was left,
 * and the heads may be gone. */
static bool unsettled(const struct cs_save *save)
{
	return !save->op->error && save->heads && merges(save) &&
	       !save->heads->merge_ops->is_settled(
		       save->heads->merge, save->op->offset, save->op->length);
}

static enum cs_step established(struct cs_save *save)
{
	save->op->abandon = NULL;
	/* Acquire: pairs with turn_back. */
	if (!atomic_load_explicit(&save->heads->withdrawn, memory_order_acquire) &&
		!(merges(save) && save->heads->merge_ops->taken_back(save->heads->merge)))
		return merges(save) ? prepare_merge(save) : begin_saving(save);
	enter_anew(save->op);
	return look_inside(save);
}

static void abandon_drain(struct cs_op *op)
{
	if (cs_ctx_forsake_established(op->origin->handle.ctx, &op->task.waiter))
		cs_save_abandoned(op->turn.record);
}

/* O3 */
enum cs_step cs_save_look(struct cs_save *save)
{
	struct cs_op *op = save->op;
	struct cowsnap_ctx *ctx = op->origin->handle.ctx;
	uint64_t epoch = save->heads->epoch;

	if (op->cancelled)
		return cs_save_fail(save, -ECANCELED);
	if (cs_ctx_is_established(ctx, epoch))
		return established(save);
	cs_stats_add(op->origin->stats, CS_STAT_DRAIN_WAITS, 1);
	save->step = established;
	op->abandon = abandon_drain;
	return cs_ctx_await_established(ctx, epoch, &op->task.waiter) ? CS_PARK : CS_GO_ON;
}

/* ---- Begin and end --------------------------------------------------------------------------- */

void cs_save_init(struct cs_save *save, struct cs_op *op, struct cs_heads *heads,
	enum cs_step (*step)(struct cs_save *save))
{
	save->op = op;
	save->heads = heads;
	save->step = step;
	save->preimage = NULL;
	save->moving = false;
	save->no_write = false;
	save->abandoned = NULL;
	memset(&save->trouble, 0, sizeof(save->trouble));
}

static enum cs_step look_inside(struct cs_save *save)
{
	struct cs_op *op = save->op;

	save->heads = cs_origin_heads(op->origin, op->pass.slot);
	if (!save->heads || cs_heads_done(save->heads, op->offset, op->length))
		return CS_DONE;
	return cs_save_look(save);
}

enum cs_step cs_save_enter(struct cs_save *save)
{
	cs_gate_enter(&save->op->origin->gate, &save->op->pass);
	return look_inside(save);
}

enum cs_step cs_save_fail(struct cs_save *save, int error)
{
	struct cs_op *op = save->op;

	op->error = error;
	if (error != -ECANCELED)
		cs_stats_add(op->origin->stats, CS_STAT_FAILED_WRITES, 1);
	cs_gate_leave(&op->origin->gate, &op->pass);
	return CS_DONE;
}

enum cs_step cs_save_run(struct cs_save *save)
{
	enum cs_step step;

	do {
		step = save->step(save);
		while (step == CS_DONE && unsettled(save))
			step = save->heads->merge_ops->settle(save);
	} while (step == CS_GO_ON);
	return step;
}
