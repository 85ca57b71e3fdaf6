/* SPDX-License-Identifier: MIT
 *
 * The persistent store: records that are forgotten because their chunks were merged into the
 * origin, the newest first.
 *
 * newest() reads what it needs from the device, of several areas side by side: nothing is kept of
 * records that are there, but for the block of the end. forget() zeroes the slots from the new end
 * on in its area, with one write; what lies in later areas cannot be reached any more, and is wiped
 * before it can be again, as the next area always is. So after a crash in the middle of it the list
 * is what it was, or a part of it from the beginning, and at least what was not to be forgotten: it
 * ends at the first slot that is zero, whichever sectors came to the device. What is left behind
 * that slot in its area is wiped at open, as after any crash.
 *
 * At one time they are at most what fits into blocks[] behind its first block, which are zero (Q3)
 * and are borrowed: so nothing is allocated here.
 *
 * Invariants: those of store_dm.h, and:
 *  M1 Who answers one of these calls leads, with nothing in the queue when he began. So a commit
 *     that comes all the same waits, and is written behind what is left.
 *  M2 After forget() the first of blocks[] is the block of the new end, as it is on the device.
 *
 * Locking: none over I/O. The device is held over the flush.
 *
 * Failure: what was zeroed in vain is written again, and flushed: the records are on the device as
 * before. If that fails, or a flush, the store is broken.
 */
#include <errno.h>
#include <string.h>

#include "store_dm.h"

/* To end at a block up to so much less is given: then nothing is read when it is forgotten. */
#define ROUND_PART 8u

static uint64_t block_records(const struct cs_dm *dm)
{
	return dm->block_bytes / CS_FORMAT_DM_RECORD_BYTES;
}

static uint64_t room(const struct cs_dm *dm)
{
	return dm->blocks_bytes - dm->block_bytes;
}

/* The records of the area of @first from there on, up to @end, in whole blocks. */
static void place_tail(const struct cs_dm *dm, struct cs_dm_tail *tail, uint64_t first,
	uint64_t end, uint8_t *blocks)
{
	uint64_t records = dm->shape.area_records, block = dm->block_bytes;
	uint64_t area = first / records, base = area * records;
	uint64_t from = (first - base) * CS_FORMAT_DM_RECORD_BYTES;
	uint64_t to = (end - base) * CS_FORMAT_DM_RECORD_BYTES;
	uint64_t start = from / block * block, stop = (to + block - 1) / block * block;

	tail->first = first;
	tail->records = end - first;
	tail->offset = cs_dm_area_offset(dm, area) + start;
	tail->bytes = stop - start;
	tail->blocks = blocks;
	tail->slots = blocks + (from - start);
}

/* Q3 */
static void give_back(struct cs_dm *dm)
{
	for (unsigned i = 0; i < dm->tails; i++)
		memset(dm->tail[i].blocks, 0, dm->tail[i].bytes);
	dm->tails = 0;
}

static int damaged(const struct cs_dm *dm, const struct cs_format_dm_fault *fault)
{
	char text[160];

	cs_log(dm->base, COWSNAP_LOG_ERROR, "store on %s: %s: %s", dm->device->name,
		cs_format_dm_name(fault->error), cs_format_dm_explain(fault, text, sizeof(text)));
	return -EBADMSG;
}

/* Record @number of those in the tail. An end, where there must be one, is damage too. */
static int decode(const struct cs_dm *dm, const struct cs_dm_tail *tail, uint64_t number,
	struct cs_format_dm_record *record)
{
	const uint8_t *slot = tail->slots + (number - tail->first) * CS_FORMAT_DM_RECORD_BYTES;
	struct cs_format_dm_fault fault = {0};
	enum cs_format_dm_error error =
		cs_format_dm_decode_record(&dm->shape, slot, number, record, &fault);

	if (error == CS_FORMAT_DM_END)
		fault = (struct cs_format_dm_fault){.error = error, .record = number};
	return error ? damaged(dm, &fault) : 0;
}

/* ---- The newest ------------------------------------------------------------------------------ */

static enum cs_step end_newest(struct cs_dm *dm, int error)
{
	struct cowsnap_newest *newest = dm->newest;

	give_back(dm);
	cs_dm_stop_leading(dm);
	newest->done(newest, error);
	return CS_DONE;
}

/* Adds a record in front of those that were found. As the kernel: a run is of records that follow
 * each other upwards. Returns: false: there is no room for it. */
static bool add(struct cowsnap_newest *newest, const struct cs_format_dm_record *record)
{
	struct cowsnap_run *run = newest->count ? &newest->runs[newest->count - 1] : NULL;

	if (run && record->origin + 1 == run->first && record->store + 1 == run->location) {
		run->first--;
		run->location--;
		run->count++;
		return true;
	}
	if (newest->count == newest->room)
		return false;
	newest->runs[newest->count++] = (struct cowsnap_run){
		.first = record->origin, .count = 1, .location = record->store};
	return true;
}

static enum cs_step decode_all(struct cs_dm *dm)
{
	struct cs_format_dm_record record;

	if (dm->error)
		return end_newest(dm, dm->error);
	for (unsigned i = 0; i < dm->tails; i++) {
		const struct cs_dm_tail *tail = &dm->tail[i];

		for (uint64_t n = tail->first + tail->records; n-- > tail->first;) {
			int rc = decode(dm, tail, n, &record);

			if (rc)
				return end_newest(dm, rc);
			if (!add(dm->newest, &record))
				return end_newest(dm, 0);
		}
	}
	return end_newest(dm, 0);
}

/* Which blocks hold the records before @end, as many as are asked for and fit, by area. */
static void plan(struct cs_dm *dm, uint64_t end)
{
	uint64_t most = dm->newest->most, records = dm->shape.area_records;
	uint64_t from = most < end ? end - most : 0;
	uint64_t rounded = (from + block_records(dm) - 1) / block_records(dm) * block_records(dm);
	uint8_t *at = dm->blocks + dm->block_bytes, *limit = dm->blocks + dm->blocks_bytes;

	if (rounded - from <= most / ROUND_PART)
		from = rounded;
	while (end > from && dm->tails < CS_DM_TAILS && at < limit) {
		struct cs_dm_tail *tail = &dm->tail[dm->tails++];
		uint64_t base = (end - 1) / records * records, first = base > from ? base : from;
		uint64_t fit = (uint64_t)(limit - at) / CS_FORMAT_DM_RECORD_BYTES;
		uint64_t last = (end + block_records(dm) - 1) / block_records(dm);

		/* Whole blocks, of which the last one may not be full. */
		if (last * block_records(dm) > first + fit)
			first = last * block_records(dm) - fit;
		place_tail(dm, tail, first, end, at);
		at += tail->bytes;
		end = first;
	}
}

static void note_read(struct cs_dm *dm, int error)
{
	if (!dm->error)
		dm->error = error;
}

static void tail_read(struct cowsnap_io *io, int error)
{
	struct cs_dm *dm = io->user;

	note_read(dm, error);
	if (!--dm->reads_open)
		dm->task.run(&dm->task);
}

static enum cs_step read_tails(struct cs_dm *dm)
{
	uint64_t end = dm->end > dm->newest->skip ? dm->end - dm->newest->skip : 0;

	dm->error = cs_dm_broken(dm);
	if (dm->error)
		return end_newest(dm, dm->error);
	plan(dm, end);
	dm->step = decode_all;
	dm->reads_open = 0; /* none ends inside a start */
	for (unsigned i = 0; i < dm->tails; i++) {
		struct cs_dm_tail *tail = &dm->tail[i];
		int error = 0;

		tail->io = (struct cowsnap_io){.kind = COWSNAP_IO_READ,
			.buffer = tail->blocks,
			.offset = tail->offset,
			.length = tail->bytes,
			.done = tail_read,
			.user = dm};
		if (!dm->task.queue)
			error = cs_dev_call(dm->device, &tail->io);
		else if (!cs_dev_start(dm->device, dm->task.queue, &tail->io, &error))
			dm->reads_open++;
		note_read(dm, error);
	}
	return dm->reads_open ? CS_PARK : CS_GO_ON;
}

void cs_dm_newest(void *user, struct cowsnap_newest *newest)
{
	struct cs_dm *dm = user;
	int rc = cs_dm_lead(dm, newest->queue);

	newest->count = 0;
	if (rc) {
		newest->done(newest, rc);
		return;
	}
	dm->newest = newest;
	cs_dm_lead_on(dm, read_tails);
}

/* ---- Forgetting ------------------------------------------------------------------------------ */

static enum cs_step end_forget(struct cs_dm *dm, int error)
{
	struct cowsnap_commit *commit = dm->forgets;

	give_back(dm);
	cs_dm_stop_leading(dm);
	commit->done(commit, error);
	return CS_DONE;
}

/* The records from the new end on that lie in its block, which is known, must be those that are to
 * go. */
static int check_records(const struct cs_dm *dm, const struct cs_dm_tail *tail)
{
	uint64_t number = tail->first;
	uint64_t stop = (number / block_records(dm) + 1) * block_records(dm);

	if (stop > tail->first + tail->records)
		stop = tail->first + tail->records;
	for (size_t i = dm->forgets->count; i-- && number < stop;) {
		const struct cowsnap_run *run = &dm->forgets->runs[i];

		for (uint64_t k = 0; k < run->count && number < stop; k++, number++) {
			struct cs_format_dm_record record;
			int rc = decode(dm, tail, number, &record);

			if (rc)
				return rc;
			if (record.origin != run->first + k || record.store != run->location + k)
				return -EINVAL;
		}
	}
	return 0;
}

/* M2 */
static enum cs_step shorten(struct cs_dm *dm)
{
	const struct cs_dm_tail *tail = &dm->tail[0];
	uint64_t gone = dm->end - tail->first;

	memcpy(dm->blocks, tail->blocks, dm->block_bytes);
	dm->end -= gone;
	dm->acked -= gone;
	return end_forget(dm, 0);
}

static enum cs_step put_back(struct cs_dm *dm)
{
	if (dm->result)
		cs_dm_break(dm, dm->result, "to put back records");
	return end_forget(dm, dm->error);
}

static enum cs_step write_tail(struct cs_dm *dm, enum cs_step (*next)(struct cs_dm *dm))
{
	const struct cs_dm_tail *tail = &dm->tail[0];

	return cs_dm_write_durable(dm, tail->blocks, tail->offset, tail->bytes, next);
}

/* Those of the area of the new end: the others were not touched. */
static enum cs_step begin_to_put_back(struct cs_dm *dm)
{
	const struct cs_dm_tail *tail = &dm->tail[0];
	uint64_t left = tail->records;
	uint8_t *slot = tail->slots;

	dm->error = dm->result;
	if (cs_dm_broken(dm))
		return end_forget(dm, dm->error);
	for (size_t i = dm->forgets->count; i-- && left;) {
		const struct cowsnap_run *run = &dm->forgets->runs[i];

		for (uint64_t k = 0; k < run->count && left; k++, left--) {
			const struct cs_format_dm_record record = {
				run->first + k, run->location + k};

			cs_format_dm_encode_record(&dm->shape, &record, slot);
			slot += CS_FORMAT_DM_RECORD_BYTES;
		}
	}
	return write_tail(dm, put_back);
}

static enum cs_step erased(struct cs_dm *dm)
{
	return dm->result ? begin_to_put_back(dm) : shorten(dm);
}

static enum cs_step erase(struct cs_dm *dm)
{
	const struct cs_dm_tail *tail = &dm->tail[0];

	memset(tail->slots, 0, tail->bytes - (size_t)(tail->slots - tail->blocks));
	return write_tail(dm, erased);
}

static enum cs_step check_and_erase(struct cs_dm *dm)
{
	int rc = dm->result ? dm->result : check_records(dm, &dm->tail[0]);

	return rc ? end_forget(dm, rc) : erase(dm);
}

/* Returns: how many records; 0: that many there are not. */
static uint64_t count_records(const struct cs_dm *dm)
{
	const struct cowsnap_commit *commit = dm->forgets;
	uint64_t count = 0;

	for (size_t i = 0; i < commit->count; i++) {
		if (!commit->runs[i].count || commit->runs[i].count > dm->end - count)
			return 0;
		count += commit->runs[i].count;
	}
	return count;
}

/* The block of the new end is in the first of blocks[] if it is that of the end too, and need not
 * be known if nothing of it stays. */
static enum cs_step begin_forget(struct cs_dm *dm)
{
	uint64_t count = count_records(dm), end = dm->end - count;
	uint64_t area_end = (end / dm->shape.area_records + 1) * dm->shape.area_records;
	struct cs_dm_tail *tail = &dm->tail[0];
	int rc = cs_dm_broken(dm);

	if (rc || !count)
		return end_forget(dm, rc ? rc : -EINVAL);
	place_tail(dm, tail, end, area_end < dm->end ? area_end : dm->end,
		dm->blocks + dm->block_bytes);
	if (tail->bytes > room(dm))
		return end_forget(dm, -EINVAL); /* more than newest() gives */
	dm->tails = 1;
	dm->result = 0;
	if (end / block_records(dm) == dm->end / block_records(dm)) {
		memcpy(tail->blocks, dm->blocks, dm->block_bytes);
		return check_and_erase(dm);
	}
	if (end % block_records(dm) == 0)
		return erase(dm);
	return cs_dm_request(
		dm, COWSNAP_IO_READ, tail->blocks, tail->offset, dm->block_bytes, check_and_erase);
}

void cs_dm_forget(void *user, struct cowsnap_commit *commit)
{
	struct cs_dm *dm = user;
	int rc = cs_dm_lead(dm, commit->queue);

	if (rc) {
		commit->done(commit, rc);
		return;
	}
	dm->forgets = commit;
	cs_dm_lead_on(dm, begin_forget);
}
