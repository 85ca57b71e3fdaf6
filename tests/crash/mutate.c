/* SPDX-License-Identifier: MIT */
#include "crash/mutate.h"

#include <string.h>

#define NOWHERE SIZE_MAX

struct header {
	uint32_t magic, valid;
};

/* What a write to the store is, by where it lies and what it writes. */
enum purpose {
	NO_WRITE,
	HEADER_NONE, /* the first block zeroed */
	HEADER_VALID,
	HEADER_INVALID,
	AREA_ZERO,
	AREA_RECORDS,
	DATA,
};

const char *mutation_name(enum mutation mutation)
{
	static const char *const names[MUTATIONS] = {
		[MUTATION_NONE] = "none",
		[MUTATION_NO_OPENING_FLUSH] = "no flush before records",
		[MUTATION_NO_CLOSING_FLUSH] = "no flush after records",
		[MUTATION_NO_AREA_ZEROED] = "next area not zeroed",
		[MUTATION_AREA_ZEROED_LATE] = "next area zeroed too late",
		[MUTATION_NO_TAIL_ZEROED] = "stale tail not zeroed",
		[MUTATION_NO_CREATE_FLUSH] = "no flush between area 0 and header",
		[MUTATION_NO_INVALID_FLUSH] = "no flush after an invalid header",
		[MUTATION_NO_DROP_FLUSH] = "no flush after a drop",
		[MUTATION_NO_SLOT_ZEROED] = "slots of a failed write not zeroed",
		[MUTATION_NO_ORIGIN_FLUSH] = "the origin not flushed",
	};

	return names[mutation];
}

static bool is_zero(const uint8_t *bytes, uint64_t length)
{
	for (uint64_t i = 0; i < length; i++)
		if (bytes[i])
			return false;
	return true;
}

static enum purpose purpose_of(
	const struct journal *journal, const struct power_op *op, uint64_t chunk_bytes)
{
	const uint8_t *bytes = journal->data + op->data;
	struct header header;

	if (op->kind == POWER_FLUSH || op->device != POWER_STORE)
		return NO_WRITE;
	if (power_in_area(chunk_bytes, op->offset))
		return is_zero(bytes, op->length) ? AREA_ZERO : AREA_RECORDS;
	if (op->offset > 0)
		return DATA;
	memcpy(&header, bytes, sizeof(header));
	if (header.magic == 0)
		return HEADER_NONE;
	return header.valid ? HEADER_VALID : HEADER_INVALID;
}

/* A flush that never ends does nothing. */
static void take_out(struct power_op *op)
{
	op->kind = POWER_FLUSH;
	op->end = POWER_NEVER;
}

static bool is_store_flush(const struct power_op *op)
{
	return op->kind == POWER_FLUSH && op->device == POWER_STORE && op->end != POWER_NEVER;
}

static size_t flush_before(const struct journal *journal, size_t at)
{
	for (size_t i = at; i > 0; i--)
		if (is_store_flush(&journal->ops[i - 1]))
			return i - 1;
	return NOWHERE;
}

static size_t flush_after(const struct journal *journal, size_t at)
{
	for (size_t i = at + 1; i < journal->count; i++)
		if (is_store_flush(&journal->ops[i]) &&
			journal->ops[i].start > journal->ops[at].end)
			return i;
	return NOWHERE;
}

static size_t take_out_flush(struct journal *journal, size_t at)
{
	if (at == NOWHERE)
		return 0;
	take_out(&journal->ops[at]);
	return 1;
}

/* It may be lost until somebody flushes for a reason of his own. */
static size_t make_pending(struct journal *journal, size_t at)
{
	if (journal->ops[at].kind == POWER_DURABLE) {
		journal->ops[at].kind = POWER_WRITE;
		return 1;
	}
	return take_out_flush(journal, flush_after(journal, at));
}

static size_t next_records(const struct journal *journal, size_t at, uint64_t chunk_bytes)
{
	for (size_t i = at + 1; i < journal->count; i++)
		if (purpose_of(journal, &journal->ops[i], chunk_bytes) == AREA_RECORDS)
			return i;
	return NOWHERE;
}

static size_t make_late(struct journal *journal, size_t at, uint64_t chunk_bytes)
{
	size_t records = next_records(journal, at, chunk_bytes);
	size_t flush;

	if (records == NOWHERE)
		return 0;
	flush = journal->ops[records].kind == POWER_DURABLE ? records
							    : flush_after(journal, records);
	if (flush == NOWHERE)
		return 0;
	journal->ops[at].start = journal->ops[flush].end + 1;
	journal->ops[at].end = journal->ops[flush].end + 2;
	return 1;
}

/* Zeroes in an area that are neither the area as a whole nor at an open: a clean-up. */
static bool is_slot_clean_up(const struct journal *journal, size_t at, uint64_t chunk_bytes)
{
	const struct power_op *op = &journal->ops[at];

	for (size_t i = at; i > 0; i--) {
		const struct power_op *before = &journal->ops[i - 1];
		enum purpose purpose = purpose_of(journal, before, chunk_bytes);

		if (purpose == AREA_RECORDS)
			return before->offset < op->offset + op->length &&
			       op->offset < before->offset + before->length;
		if (purpose != NO_WRITE)
			return false;
	}
	return false;
}

static size_t change(
	struct journal *journal, size_t at, uint64_t chunk_bytes, enum mutation mutation)
{
	struct power_op *op = &journal->ops[at];
	enum purpose purpose = purpose_of(journal, op, chunk_bytes);

	if (mutation == MUTATION_NO_OPENING_FLUSH && purpose == AREA_RECORDS)
		return take_out_flush(journal, flush_before(journal, at));
	if (mutation == MUTATION_NO_CLOSING_FLUSH && purpose == AREA_RECORDS)
		return make_pending(journal, at);
	if (mutation == MUTATION_AREA_ZEROED_LATE && purpose == AREA_ZERO &&
		op->offset > chunk_bytes)
		return make_late(journal, at, chunk_bytes);
	if (mutation == MUTATION_NO_CREATE_FLUSH && purpose == HEADER_VALID)
		return take_out_flush(journal, flush_before(journal, at));
	if (mutation == MUTATION_NO_INVALID_FLUSH && purpose == HEADER_INVALID)
		return make_pending(journal, at);
	if (mutation == MUTATION_NO_DROP_FLUSH && purpose == HEADER_NONE)
		return make_pending(journal, at);
	if (mutation == MUTATION_NO_AREA_ZEROED && purpose == AREA_ZERO &&
		op->offset > chunk_bytes) {
		take_out(op);
		return 1;
	}
	if (mutation == MUTATION_NO_SLOT_ZEROED &&
		(purpose == AREA_ZERO || purpose == AREA_RECORDS) &&
		is_slot_clean_up(journal, at, chunk_bytes)) {
		take_out(op);
		return 1;
	}
	return 0;
}

/* Whatever is written to an area before any copy of data is there. */
static size_t take_out_tail(struct journal *journal, uint64_t chunk_bytes)
{
	size_t changed = 0;

	for (size_t i = 0; i < journal->count; i++) {
		enum purpose purpose = purpose_of(journal, &journal->ops[i], chunk_bytes);

		if (purpose == DATA)
			break;
		if (purpose != AREA_ZERO && purpose != AREA_RECORDS)
			continue;
		take_out(&journal->ops[i]);
		changed++;
	}
	return changed;
}

static size_t take_out_origin_flushes(struct journal *journal, uint64_t chunk_bytes)
{
	size_t changed = 0, i = next_records(journal, 0, chunk_bytes);

	for (; i < journal->count; i++) {
		struct power_op *op = &journal->ops[i];

		if (op->device != POWER_ORIGIN || op->kind != POWER_FLUSH)
			continue;
		take_out(op);
		changed++;
	}
	return changed;
}

size_t mutate(struct journal *journal, uint64_t chunk_bytes, enum mutation mutation)
{
	size_t changed = 0;

	if (mutation == MUTATION_NO_TAIL_ZEROED)
		return take_out_tail(journal, chunk_bytes);
	if (mutation == MUTATION_NO_ORIGIN_FLUSH)
		return take_out_origin_flushes(journal, chunk_bytes);
	for (size_t i = 0; i < journal->count; i++)
		changed += change(journal, i, chunk_bytes, mutation);
	return changed;
}
