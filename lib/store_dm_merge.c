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
 * A run is at most what fits into blocks[] behind its first block, which are zero (Q3) and are
 * borrowed: so nothing is allocated here.
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

/* So much of the tail is read first: most runs are short. */
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

/* The tail of the area, as much of it as lies in @most bytes of blocks, from record @from on at the
 * least if that is nearer. There is a record. */
static struct tail place_tail(const struct cs_dm *dm, uint64_t from, uint64_t most)
{
	uint64_t records = dm->shape.area_records, block = dm->block_bytes;
	uint64_t area = (dm->end - 1) / records, base = area * records;
	uint64_t end = (dm->end - base) * CS_FORMAT_DM_RECORD_BYTES;
	uint64_t first = from > base ? (from - base) * CS_FORMAT_DM_RECORD_BYTES : 0;
	struct tail tail = {.blocks = dm->blocks + block};
	uint64_t start = first / block * block, stop = (end + block - 1) / block * block;

	if (stop - start > most)
		start = first = stop - most;
	tail.first = base + first / CS_FORMAT_DM_RECORD_BYTES;
	tail.records = dm->end - tail.first;
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

/* The run that the last record ends, as far as the tail has it. */
static int find_run(const struct cs_dm *dm, const struct tail *tail, struct cowsnap_run *run)
{
	struct cs_format_dm_record record;
	uint64_t number = dm->end - 1;
	int rc = decode(dm, tail, number, &record);

	if (rc)
		return rc;
	*run = (struct cowsnap_run){.first = record.origin, .count = 1, .location = record.store};
	/* As the kernel: only records that follow each other upwards. */
	while (number > tail->first) {
		rc = decode(dm, tail, --number, &record);
		if (rc)
			return rc;
		if (record.origin + 1 != run->first || record.store + 1 != run->location)
			break;
		run->first--;
		run->location--;
		run->count++;
	}
	return 0;
}

static int look(struct cs_dm *dm, const struct tail *tail, struct cowsnap_run *run)
{
	int rc = cs_dev_read(dm->device, tail->blocks, tail->offset, tail->bytes);

	if (!rc)
		rc = find_run(dm, tail, run);
	give_back(tail);
	return rc;
}

static int find_newest(struct cs_dm *dm, uint64_t most, struct cowsnap_run *run)
{
	uint64_t from = most < dm->end ? dm->end - most : 0;
	uint64_t first_look = dm->block_bytes > FIRST_LOOK ? dm->block_bytes : FIRST_LOOK;
	struct tail tail = place_tail(dm, from, first_look);
	int rc = look(dm, &tail, run);

	if (rc || run->count < tail.records || tail.bytes < first_look)
		return rc;
	tail = place_tail(dm, from, room(dm));
	return look(dm, &tail, run);
}

int cs_dm_newest(void *user, uint64_t most, struct cowsnap_run *run)
{
	struct cs_dm *dm = user;
	int rc;

	*run = (struct cowsnap_run){0};
	if (!most)
		return -EINVAL;
	rc = cs_dm_lead(dm);
	if (rc)
		return rc;
	rc = cs_dm_broken(dm);
	if (!rc && dm->end)
		rc = find_newest(dm, most, run);
	if (!rc && run->count > most) {
		run->first += run->count - most;
		run->location += run->count - most;
		run->count = most;
	}
	cs_dm_stop_leading(dm);
	return rc;
}

/* ---- Forgetting ------------------------------------------------------------------------------ */

/* Are they the last ones? They are read for the sake of those before them in their block. */
static int check_records(
	const struct cs_dm *dm, const struct tail *tail, const struct cowsnap_run *run)
{
	for (uint64_t i = 0; i < run->count; i++) {
		struct cs_format_dm_record record;
		int rc = decode(dm, tail, tail->first + i, &record);

		if (rc)
			return rc;
		if (record.origin != run->first + i || record.store != run->location + i)
			return -EINVAL;
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

static void put_back(struct cs_dm *dm, const struct tail *tail, const struct cowsnap_run *run)
{
	uint8_t *slot = tail->slots;
	int rc;

	for (uint64_t i = 0; i < run->count; i++, slot += CS_FORMAT_DM_RECORD_BYTES) {
		const struct cs_format_dm_record record = {run->first + i, run->location + i};

		cs_format_dm_encode_record(&dm->shape, &record, slot);
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

static int forget_last(struct cs_dm *dm, const struct cowsnap_run *run)
{
	struct tail tail = place_tail(dm, dm->end - run->count, room(dm));
	int rc;

	if (tail.records != run->count)
		return -EINVAL; /* of two areas, or more than newest() gives */
	rc = cs_dev_read(dm->device, tail.blocks, tail.offset, tail.bytes);
	if (!rc)
		rc = check_records(dm, &tail, run);
	if (!rc) {
		memset(tail.slots, 0, run->count * CS_FORMAT_DM_RECORD_BYTES);
		rc = write_tail(dm, &tail);
		if (rc)
			put_back(dm, &tail, run);
		else
			shorten(dm, &tail, run->count);
	}
	give_back(&tail);
	return rc;
}

int cs_dm_forget(void *user, const struct cowsnap_run *run)
{
	struct cs_dm *dm = user;
	int rc = cs_dm_lead(dm);

	if (rc)
		return rc;
	rc = cs_dm_broken(dm);
	if (!rc && (!run->count || run->count > dm->end))
		rc = -EINVAL;
	if (!rc)
		rc = forget_last(dm, run);
	cs_dm_stop_leading(dm);
	return rc;
}
