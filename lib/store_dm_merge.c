/* SPDX-License-Identifier: MIT
 *
 * The persistent store: records that are forgotten because their chunks were merged into the
 * origin, the newest first.
 *
 * Both calls read what they need of the tail area from the device: nothing is kept of records that
 * are there. What is zeroed are the last slots of the list, of one area, so after a crash in the
 * middle of it the list is what it was, or a part of it from the beginning, and at least what was
 * not to be forgotten: it ends at the first slot that is zero, whichever sectors came to the
 * device. What is left behind that slot is wiped at open, as after any crash.
 *
 * At one time they are of one area, and at most what fits into blocks[] behind its first block,
 * which are zero (Q3) and are borrowed: so nothing is allocated here.
 *
 * Invariants: those of store_dm.h, and:
 *  M1 Who is in one of these calls leads, with nothing in the queue when he began. So a commit that
 *     comes all the same waits, and is written behind what is left.
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

/* So much of the tail is read first: all of an area of chunks of 4 KiB. */
#define FIRST_LOOK 4096u

/* Slots at the tail of the area that holds the last record, and the blocks that hold them. */
struct tail {
	uint64_t first;   /* record */
	uint64_t records; /* up to the end */
	uint64_t offset;  /* of its blocks, on the device */
	uint64_t bytes;
	uint8_t *blocks;
	uint8_t *slots; /* in these */
};

/* The tail of the area of the record before @end_record, as much of it as lies in @most bytes
 * of blocks, from record @from on at the least if that is nearer. There is such a record. */
static struct tail place_tail(
	const struct cs_dm *dm, uint64_t end_record, uint64_t from, uint64_t most)
{
	uint64_t records = dm->shape.area_records, block = dm->block_bytes;
	uint64_t area = (end_record - 1) / records, base = area * records;
	uint64_t end = (end_record - base) * CS_FORMAT_DM_RECORD_BYTES;
	uint64_t first = from > base ? (from - base) * CS_FORMAT_DM_RECORD_BYTES : 0;
	struct tail tail = {.blocks = dm->blocks + block};
	uint64_t start = first / block * block, stop = (end + block - 1) / block * block;

	if (stop - start > most)
		start = first = stop - most;
	tail.first = base + first / CS_FORMAT_DM_RECORD_BYTES;
	tail.records = end_record - tail.first;
	tail.offset = ((1 + area * (records + 1)) << dm->chunk_shift) + start;
	tail.bytes = stop - start;
	tail.slots = tail.blocks + (first - start);
	return tail;
}

static uint64_t room(const struct cs_dm *dm)
{
	return dm->blocks_bytes - dm->block_bytes;
}

/* Q3 */
static void give_back(const struct tail *tail)
{
	memset(tail->blocks, 0, tail->bytes);
}

static int damaged(const struct cs_dm *dm, const struct cs_format_dm_fault *fault)
{
	char text[160];

	cs_log(dm->base, COWSNAP_LOG_ERROR, "store on %s: %s: %s", dm->device->name,
		cs_format_dm_name(fault->error), cs_format_dm_explain(fault, text, sizeof(text)));
	return -EBADMSG;
}

/* Record @number of those in the tail. An end, where there must be one, is damage too. */
static int decode(const struct cs_dm *dm, const struct tail *tail, uint64_t number,
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

/* What newest() is asked for, and what it has found of it. */
struct wanted {
	uint64_t end;  /* record: those before it */
	uint64_t most; /* records */
	struct cowsnap_run *runs;
	size_t room;
	size_t count; /* of runs */
	uint64_t records;
};

/* The runs that the last records make, as far as the tail has them. As the kernel: only records
 * that follow each other upwards. */
static int find_runs(const struct cs_dm *dm, const struct tail *tail, struct wanted *w)
{
	struct cs_format_dm_record record;

	w->count = 0;
	for (w->records = 0; w->records < tail->records && w->records < w->most; w->records++) {
		struct cowsnap_run *run = w->count ? &w->runs[w->count - 1] : NULL;
		int rc = decode(dm, tail, w->end - 1 - w->records, &record);

		if (rc)
			return rc;
		if (run && record.origin + 1 == run->first && record.store + 1 == run->location) {
			run->first--;
			run->location--;
			run->count++;
			continue;
		}
		if (w->count == w->room)
			break;
		w->runs[w->count++] = (struct cowsnap_run){
			.first = record.origin, .count = 1, .location = record.store};
	}
	return 0;
}

static int look(struct cs_dm *dm, const struct tail *tail, struct wanted *w)
{
	int rc = cs_dev_read(dm->device, tail->blocks, tail->offset, tail->bytes);

	if (!rc)
		rc = find_runs(dm, tail, w);
	give_back(tail);
	return rc;
}

static int find_newest(struct cs_dm *dm, struct wanted *w)
{
	uint64_t from = w->most < w->end ? w->end - w->most : 0;
	uint64_t first_look = dm->block_bytes > FIRST_LOOK ? dm->block_bytes : FIRST_LOOK;
	struct tail tail = place_tail(dm, w->end, from, first_look);
	int rc = look(dm, &tail, w);

	if (rc || w->records < tail.records || tail.bytes < first_look)
		return rc;
	tail = place_tail(dm, w->end, from, room(dm));
	return look(dm, &tail, w);
}

int cs_dm_newest(void *user, uint64_t skip, uint64_t most, struct cowsnap_run *runs, size_t room)
{
	struct cs_dm *dm = user;
	struct wanted w = {.most = most, .runs = runs, .room = room};
	int rc = cs_dm_lead(dm);

	if (rc)
		return rc;
	rc = cs_dm_broken(dm);
	w.end = dm->end > skip ? dm->end - skip : 0;
	if (!rc && w.end)
		rc = find_newest(dm, &w);
	cs_dm_stop_leading(dm);
	return rc ? rc : (int)w.count;
}

/* ---- Forgetting ------------------------------------------------------------------------------ */

/* Runs, the newest first, and how many records they are in all. */
struct gone {
	const struct cowsnap_run *runs;
	size_t count;
	uint64_t records;
};

/* Are they the last ones? They are read for the sake of those before them in their block. */
static int check_records(const struct cs_dm *dm, const struct tail *tail, const struct gone *gone)
{
	uint64_t number = dm->end;

	for (size_t i = 0; i < gone->count; i++) {
		const struct cowsnap_run *run = &gone->runs[i];

		for (uint64_t k = run->count; k--;) {
			struct cs_format_dm_record record;
			int rc = decode(dm, tail, --number, &record);

			if (rc)
				return rc;
			if (record.origin != run->first + k || record.store != run->location + k)
				return -EINVAL;
		}
	}
	return 0;
}

/* Others may have been told of what this flush was to make durable. */
static int flush(struct cs_dm *dm)
{
	int rc = cs_dm_hold_waiting(dm);

	if (rc)
		return rc;
	rc = cs_dm_flush(dm);
	if (!rc)
		rc = cs_dm_broken(dm);
	cs_dm_unhold(dm);
	return rc;
}

static int write_tail(struct cs_dm *dm, const struct tail *tail)
{
	int rc;

	if (cs_dev_writes_through(dm->device))
		return cs_dev_write_durable(dm->device, tail->blocks, tail->offset, tail->bytes);
	rc = cs_dev_write(dm->device, tail->blocks, tail->offset, tail->bytes);
	return rc ? rc : flush(dm);
}

static void put_back(struct cs_dm *dm, const struct tail *tail, const struct gone *gone)
{
	uint8_t *slot = tail->slots + gone->records * CS_FORMAT_DM_RECORD_BYTES;
	int rc;

	for (size_t i = 0; i < gone->count; i++) {
		const struct cowsnap_run *run = &gone->runs[i];

		for (uint64_t k = run->count; k--;) {
			const struct cs_format_dm_record record = {
				run->first + k, run->location + k};

			slot -= CS_FORMAT_DM_RECORD_BYTES;
			cs_format_dm_encode_record(&dm->shape, &record, slot);
		}
	}
	rc = cs_dm_broken(dm) ? 0 : write_tail(dm, tail);
	if (rc)
		cs_dm_break(dm, rc, "to put back records");
}

/* M2 */
static void shorten(struct cs_dm *dm, const struct tail *tail, uint64_t count)
{
	memcpy(dm->blocks, tail->blocks, dm->block_bytes);
	dm->end -= count;
	dm->acked -= count;
}

static int forget_last(struct cs_dm *dm, const struct gone *gone)
{
	struct tail tail = place_tail(dm, dm->end, dm->end - gone->records, room(dm));
	int rc;

	if (tail.records != gone->records)
		return -EINVAL; /* of two areas, or more than newest() gives */
	rc = cs_dev_read(dm->device, tail.blocks, tail.offset, tail.bytes);
	if (!rc)
		rc = check_records(dm, &tail, gone);
	if (!rc) {
		memset(tail.slots, 0, gone->records * CS_FORMAT_DM_RECORD_BYTES);
		rc = write_tail(dm, &tail);
		if (rc)
			put_back(dm, &tail, gone);
		else
			shorten(dm, &tail, gone->records);
	}
	give_back(&tail);
	return rc;
}

/* Returns: false: that many there are not. */
static bool count_records(const struct cs_dm *dm, struct gone *gone)
{
	for (size_t i = 0; i < gone->count; i++) {
		if (!gone->runs[i].count || gone->runs[i].count > dm->end - gone->records)
			return false;
		gone->records += gone->runs[i].count;
	}
	return true;
}

int cs_dm_forget(void *user, const struct cowsnap_run *runs, size_t count)
{
	struct cs_dm *dm = user;
	struct gone gone = {.runs = runs, .count = count};
	int rc = cs_dm_lead(dm);

	if (rc)
		return rc;
	rc = cs_dm_broken(dm);
	if (!rc)
		rc = count_records(dm, &gone) ? forget_last(dm, &gone) : -EINVAL;
	cs_dm_stop_leading(dm);
	return rc;
}
