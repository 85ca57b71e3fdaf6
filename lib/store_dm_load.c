/* SPDX-License-Identifier: MIT
 *
 * The persistent store: reading a device that may hold anything.
 *
 * Areas are read one after the other up to the terminator, at most as many as the device has. Each
 * record is checked by itself, then against all others: store chunks with a bitmap, origin chunks
 * with the map that they go into. To name both records of a pair takes a second walk; only damaged
 * stores need it.
 *
 * Failure: nothing on the device is changed here, whatever is found. What was read of a refused
 * store is left in map and bitmap, for the caller to throw away.
 */
#include <errno.h>
#include <string.h>

#include "alloc.h"
#include "store_dm.h"

#define PIECE_BYTES   UINT64_C(1048576)
#define PIECE_ALIGN   4096u
#define HEADER_BYTES  (CS_FORMAT_DM_HEADER_BYTES + sizeof(uint64_t)) /* with the generation */
#define BATCH_ENTRIES 65536u /* no fewer than there are in a piece */
#define LOOK_AHEAD    16u

/* Walks over the list of records, a piece of an area at a time. */
struct walk {
	struct cs_dm_load *load;
	uint8_t *piece;
	uint64_t piece_bytes;
	uint64_t number; /* of the piece's first record */
	/* Told of a piece of the list. Returns: 0 to go on, or an error. */
	int (*records)(struct walk *walk, const uint8_t *slots, uint64_t count);
	struct cs_map_entry *entries; /* not in the map yet */
	size_t entries_count;
	/* Looking for the records that have something in common. */
	bool by_store;
	uint64_t wanted;
	uint64_t found[2];
	unsigned found_count;
};

/* ---- The header ----------------------------------------------------------------------------- */

static int error_of(const struct cs_format_dm_fault *fault)
{
	switch (fault->error) {
	case CS_FORMAT_DM_NO_STORE:
		return -ENOENT;
	case CS_FORMAT_DM_BAD_MAGIC:
	case CS_FORMAT_DM_BAD_VERSION:
		return -EMEDIUMTYPE;
	default:
		return -EBADMSG;
	}
}

static int refuse(struct cs_dm_load *load, enum cs_format_dm_error error, uint64_t record,
	uint64_t value, uint64_t limit)
{
	load->fault = (struct cs_format_dm_fault){error, record, value, limit};
	return error_of(&load->fault);
}

int cs_dm_load_header(struct cs_dm_load *load)
{
	struct cowsnap_device *device = load->device;
	uint64_t size = cs_dev_size(device);
	uint32_t block =
		device->block_size > load->block_size ? device->block_size : load->block_size;
	uint8_t bytes[HEADER_BYTES] = {0};
	int rc;

	if (size < CS_FORMAT_DM_HEADER_BYTES)
		return refuse(
			load, CS_FORMAT_DM_DEVICE_TOO_SHORT, 0, size, CS_FORMAT_DM_HEADER_BYTES);
	rc = cs_dev_read(device, bytes, 0, size < HEADER_BYTES ? size : HEADER_BYTES);
	if (rc)
		return rc;
	if (cs_format_dm_decode_header(bytes, &load->header, &load->fault))
		return error_of(&load->fault);
	load->generation = cs_format_dm_decode_generation(bytes);
	if (cs_format_dm_layout_init(&load->layout, load->header.chunk_size_bytes, block, size,
		    load->origin_bytes, &load->fault))
		return error_of(&load->fault);
	return 0;
}

/* ---- Walking -------------------------------------------------------------------------------- */

static int walk_begin(struct walk *walk)
{
	uint64_t chunk = walk->load->header.chunk_size_bytes;

	walk->piece_bytes = chunk < PIECE_BYTES ? chunk : PIECE_BYTES;
	walk->piece = cs_alloc_aligned(walk->load->base->alloc, walk->piece_bytes, PIECE_ALIGN);
	return walk->piece ? 0 : -ENOMEM;
}

static void walk_end(struct walk *walk)
{
	cs_free(walk->load->base->alloc, walk->piece, walk->piece_bytes);
}

/* What lies behind the terminator, from @slot of the piece at @offset to the end of the area. */
static int look_behind(struct walk *walk, uint64_t offset, uint64_t slot, uint64_t area_end)
{
	struct cs_dm_load *load = walk->load;
	uint64_t at = slot * CS_FORMAT_DM_RECORD_BYTES, last = 0;

	load->stale_offset = offset + at;
	for (;;) {
		uint64_t slots = (walk->piece_bytes - at) / CS_FORMAT_DM_RECORD_BYTES;
		const uint8_t *from = walk->piece + at;
		int rc;

		if (cs_format_dm_is_stale(from, slots)) {
			last = walk->piece_bytes;
			while (!walk->piece[last - 1])
				last--;
			last += offset;
		}
		offset += walk->piece_bytes;
		if (offset == area_end)
			break;
		rc = cs_dev_read(load->device, walk->piece, offset, walk->piece_bytes);
		if (rc)
			return rc;
		at = 0;
	}
	load->stale_bytes = last ? last - load->stale_offset : 0;
	return 0;
}

/* A slot that ends the list may be none: a record that names chunk 0 is damage. */
static int check_end(struct walk *walk, const uint8_t *slot)
{
	struct cs_dm_load *load = walk->load;
	struct cs_format_dm_record record;

	if (cs_format_dm_decode_record(&load->layout, slot, walk->number, &record, &load->fault) ==
		CS_FORMAT_DM_END)
		return 0;
	return error_of(&load->fault);
}

/* Returns: 1 (the list ended here), 0 (it goes on in the next area), negative errno. */
static int walk_area(struct walk *walk, uint64_t chunk)
{
	struct cs_dm_load *load = walk->load;
	uint64_t begin = chunk << load->layout.chunk_shift;
	uint64_t end = begin + (UINT64_C(1) << load->layout.chunk_shift);
	uint64_t slots = walk->piece_bytes / CS_FORMAT_DM_RECORD_BYTES;

	for (uint64_t at = begin; at < end; at += walk->piece_bytes) {
		int rc = cs_dev_read(load->device, walk->piece, at, walk->piece_bytes);
		uint64_t count;

		if (rc)
			return rc;
		count = cs_format_dm_find_end(walk->piece, slots);
		rc = count ? walk->records(walk, walk->piece, count) : 0;
		if (rc)
			return rc;
		walk->number += count;
		if (count == slots)
			continue;
		rc = check_end(walk, walk->piece + count * CS_FORMAT_DM_RECORD_BYTES);
		if (!rc)
			rc = look_behind(walk, at, count, end);
		return rc ? rc : 1;
	}
	return 0;
}

static int walk_list(struct walk *walk)
{
	struct cs_dm_load *load = walk->load;
	uint64_t chunk;

	walk->number = 0;
	for (uint64_t area = 0; cs_format_dm_area_chunk(&load->layout, area, &chunk); area++) {
		int rc = walk_area(walk, chunk);

		if (rc)
			return rc < 0 ? rc : 0;
	}
	return refuse(load, CS_FORMAT_DM_AREA_BEYOND_DEVICE, walk->number, load->layout.areas,
		load->layout.areas);
}

/* ---- Pairs ---------------------------------------------------------------------------------- */

static int look_for(struct walk *walk, const uint8_t *slots, uint64_t count)
{
	struct cs_format_dm_fault ignored;
	struct cs_format_dm_record record;

	for (uint64_t i = 0; i < count && walk->found_count < 2; i++) {
		cs_format_dm_decode_record(&walk->load->layout,
			slots + i * CS_FORMAT_DM_RECORD_BYTES, walk->number + i, &record, &ignored);
		if ((walk->by_store ? record.store : record.origin) == walk->wanted)
			walk->found[walk->found_count++] = walk->number + i;
	}
	/* Any error ends the walk. */
	return walk->found_count < 2 ? 0 : -ECANCELED;
}

static int refuse_pair(struct cs_dm_load *load, bool by_store, uint64_t chunk)
{
	struct walk walk = {
		.load = load, .records = look_for, .by_store = by_store, .wanted = chunk};
	int rc = walk_begin(&walk);

	if (!rc)
		rc = walk_list(&walk);
	walk_end(&walk);
	if (rc != -ECANCELED && rc)
		return rc; /* also if the device reads otherwise than before */
	return refuse(load, by_store ? CS_FORMAT_DM_DUPLICATE_STORE : CS_FORMAT_DM_DUPLICATE_ORIGIN,
		walk.found[1], chunk, walk.found[0]);
}

/* ---- Records -------------------------------------------------------------------------------- */

/* Puts what has come together into the map. */
static int load_entries(struct walk *walk)
{
	uint64_t chunk;
	int rc = cs_map_load(walk->load->map, walk->entries, walk->entries_count, &chunk);

	walk->entries_count = 0;
	return rc == -EEXIST ? refuse_pair(walk->load, false, chunk) : rc;
}

/* Decodes records to the end of the entries. Returns: how many are good; where that is not all, the
 * fault is set. */
static uint64_t decode_records(struct walk *walk, const uint8_t *slots, uint64_t count)
{
	struct cs_map_entry *entries = walk->entries + walk->entries_count;
	struct cs_dm_load *load = walk->load;
	uint64_t i;

	for (i = 0; i < count; i++) {
		struct cs_format_dm_record record;

		if (cs_format_dm_decode_record(&load->layout, slots + i * CS_FORMAT_DM_RECORD_BYTES,
			    walk->number + i, &record, &load->fault))
			break;
		entries[i] = (struct cs_map_entry){record.origin, record.store};
		if (record.store > load->highest)
			load->highest = record.store;
	}
	return i;
}

/* Marks the store chunks of the last @count entries. Returns: how many of them nobody else had. */
static uint64_t use_chunks(struct walk *walk, uint64_t count)
{
	const struct cs_map_entry *entries = walk->entries + walk->entries_count;
	struct cs_runs *used = walk->load->used;

	for (uint64_t i = 0; i < count; i++) {
		/* They may lie anywhere, and each would be waited for. */
		if (i + LOOK_AHEAD < count)
			cs_runs_prefetch(used, entries[i + LOOK_AHEAD].location);
		if (!cs_runs_add(used, entries[i].location))
			return i;
	}
	return count;
}

static int check_records(struct walk *walk, const uint8_t *slots, uint64_t count)
{
	struct cs_dm_load *load = walk->load;
	uint64_t good, alone;
	int rc = walk->entries_count + count > BATCH_ENTRIES ? load_entries(walk) : 0;

	if (rc)
		return rc;
	good = decode_records(walk, slots, count);
	rc = cs_runs_cover(load->used, load->highest + 1);
	if (rc)
		return rc;
	alone = use_chunks(walk, good);
	if (alone < good)
		rc = refuse_pair(load, true, walk->entries[walk->entries_count + alone].location);
	else if (good < count)
		rc = error_of(&load->fault);
	walk->entries_count += alone;
	return rc;
}

/* The records that follow each other from slot @i on; they are good. */
static struct cowsnap_run next_run(
	struct walk *walk, const uint8_t *slots, uint64_t i, uint64_t count)
{
	struct cs_format_dm_fault ignored;
	struct cs_format_dm_record record;
	struct cowsnap_run run = {0};

	for (; i < count; i++, run.count++) {
		cs_format_dm_decode_record(&walk->load->layout,
			slots + i * CS_FORMAT_DM_RECORD_BYTES, walk->number + i, &record, &ignored);
		if (!run.count)
			run = (struct cowsnap_run){record.origin, 0, record.store};
		else if (record.origin != run.first + run.count ||
			 record.store != run.location + run.count)
			break;
	}
	return run;
}

static void tell_records(struct walk *walk, const uint8_t *slots, uint64_t count)
{
	struct cowsnap_run run;

	for (uint64_t i = 0; i < count; i += run.count) {
		run = next_run(walk, slots, i, count);
		walk->load->visit(walk->load->user, walk->number + i, &run);
	}
}

/* What is not in the map yet goes there. If something came to be wrong, @rc, a pair among these
 * records came before it, and the first that is wrong is what counts. */
static int settle(struct walk *walk, int rc)
{
	struct cs_format_dm_fault fault = walk->load->fault;
	int pair;

	if (rc && rc != -EBADMSG)
		return rc;
	pair = load_entries(walk);
	if (pair)
		return pair;
	walk->load->fault = fault;
	return rc;
}

/* Takes a piece of the list. Who is told of records is told of good ones only. */
static int take_records(struct walk *walk, const uint8_t *slots, uint64_t count)
{
	struct cs_dm_load *load = walk->load;
	uint64_t end = walk->number + count;
	int rc = check_records(walk, slots, count);

	if (load->visit)
		rc = settle(walk, rc);
	if (rc)
		end = rc == -EBADMSG ? load->fault.record : walk->number;
	load->records = end;
	if (load->visit && end > walk->number)
		tell_records(walk, slots, end - walk->number);
	return rc;
}

int cs_dm_load_records(struct cs_dm_load *load)
{
	const struct cowsnap_allocator *alloc = load->base->alloc;
	size_t entries_bytes = BATCH_ENTRIES * sizeof(struct cs_map_entry);
	struct walk walk = {.load = load, .records = take_records};
	int rc = walk_begin(&walk);

	walk.entries = cs_alloc(alloc, entries_bytes);
	if (!rc && !walk.entries)
		rc = -ENOMEM;
	if (!rc)
		rc = settle(&walk, walk_list(&walk));
	if (rc == -EBADMSG && load->fault.record < load->records)
		load->records = load->fault.record;
	cs_free(alloc, walk.entries, entries_bytes);
	walk_end(&walk);
	return rc;
}
