/* SPDX-License-Identifier: MIT
 *
 * The format of dm-snapshot's persistent store. Numbers are checked before they are added or
 * multiplied: a device has fewer than 2^53 chunks, but a slot can hold any 64 bits.
 */
#include "format_dm.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#define MAGIC        UINT32_C(0x70416E53)
#define VERSION      1u
#define SECTOR_SHIFT 9
#define CHUNKS_MIN   2u /* header and area 0 */

/* A fault reads: [record N] before VALUE between LIMIT. */
struct words {
	const char *name;
	const char *before;
	const char *between; /* NULL: the value and the limit say nothing */
	bool of_record;
};

static const struct words words[CS_FORMAT_DM_ERRORS] = {
	[CS_FORMAT_DM_OK] = {"ok", "nothing is wrong", NULL, false},
	[CS_FORMAT_DM_END] = {"end", "ends the list", NULL, true},
	[CS_FORMAT_DM_NO_STORE] = {"no-store", "there is no store here: the magic is 0", NULL,
		false},
	[CS_FORMAT_DM_BAD_MAGIC] = {"bad-magic", "not a dm-snapshot store: the magic is ",
		", and should be ", false},
	[CS_FORMAT_DM_BAD_VERSION] = {"bad-version", "the version is ", ", and should be ", false},
	[CS_FORMAT_DM_CHUNK_SIZE_ZERO] = {"chunk-size-zero", "the chunk size is 0", NULL, false},
	[CS_FORMAT_DM_CHUNK_SIZE_NOT_POWER_OF_TWO] = {"chunk-size-not-power-of-two",
		"the chunk size in bytes is ", ", not a power of two from ", false},
	[CS_FORMAT_DM_CHUNK_SIZE_TOO_LARGE] = {"chunk-size-too-large",
		"the chunk size in bytes is ", ", more than ", false},
	[CS_FORMAT_DM_CHUNK_SIZE_BELOW_BLOCK] = {"chunk-size-below-block",
		"the chunk size in bytes is ", ", no multiple of the device's block, ", false},
	[CS_FORMAT_DM_DEVICE_TOO_SHORT] = {"device-too-short", "the device's size in bytes is ",
		", less than header and area 0 need, ", false},
	[CS_FORMAT_DM_AREA_BEYOND_DEVICE] = {"area-beyond-device",
		"the list of records has no end: it goes on in area ",
		", the device has areas below ", false},
	[CS_FORMAT_DM_RECORD_IN_HEADER] = {"record-in-header", "is for origin chunk ",
		" but lies in the header, chunk ", true},
	[CS_FORMAT_DM_RECORD_BEYOND_DEVICE] = {"record-beyond-device", "lies in chunk ",
		", the device has chunks below ", true},
	[CS_FORMAT_DM_RECORD_IN_METADATA] = {"record-in-metadata", "lies in chunk ",
		", which is that of area ", true},
	[CS_FORMAT_DM_RECORD_BEYOND_ORIGIN] = {"record-beyond-origin", "is for origin chunk ",
		", the origin has chunks below ", true},
	[CS_FORMAT_DM_DUPLICATE_ORIGIN] = {"duplicate-origin", "is for origin chunk ",
		", and so is record ", true},
	[CS_FORMAT_DM_DUPLICATE_STORE] = {"duplicate-store", "lies in chunk ",
		", and so does record ", true},
};

static uint32_t load_u32(const uint8_t *at)
{
	return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 |
	       (uint32_t)at[3] << 24;
}

static uint64_t load_u64(const uint8_t *at)
{
	return load_u32(at) | (uint64_t)load_u32(at + 4) << 32;
}

static void store_u32(uint8_t *at, uint32_t value)
{
	for (unsigned i = 0; i < 4; i++)
		at[i] = (uint8_t)(value >> (8 * i));
}

static void store_u64(uint8_t *at, uint64_t value)
{
	store_u32(at, (uint32_t)value);
	store_u32(at + 4, (uint32_t)(value >> 32));
}

static enum cs_format_dm_error refuse(struct cs_format_dm_fault *fault,
	enum cs_format_dm_error error, uint64_t record, uint64_t value, uint64_t limit)
{
	*fault = (struct cs_format_dm_fault){error, record, value, limit};
	return error;
}

static const struct words *words_of(enum cs_format_dm_error error)
{
	static const struct words unknown = {"unknown", "unknown fault", NULL, false};

	return (unsigned)error < CS_FORMAT_DM_ERRORS ? &words[error] : &unknown;
}

const char *cs_format_dm_name(enum cs_format_dm_error error)
{
	return words_of(error)->name;
}

const char *cs_format_dm_explain(const struct cs_format_dm_fault *fault, char *text, size_t bytes)
{
	const struct words *w = words_of(fault->error);
	char record[40] = "", numbers[120] = "";
	unsigned long long value = fault->value, limit = fault->limit;

	if (w->of_record)
		snprintf(record, sizeof(record), "record %llu ", (unsigned long long)fault->record);
	if (fault->error == CS_FORMAT_DM_BAD_MAGIC)
		snprintf(numbers, sizeof(numbers), "0x%08llx%s0x%08llx", value, w->between, limit);
	else if (w->between)
		snprintf(numbers, sizeof(numbers), "%llu%s%llu", value, w->between, limit);
	snprintf(text, bytes, "%s%s%s", record, w->before, numbers);
	return text;
}

/* ---- Header --------------------------------------------------------------------------------- */

static enum cs_format_dm_error check_chunk_size(uint64_t bytes, struct cs_format_dm_fault *fault)
{
	if (!bytes)
		return refuse(fault, CS_FORMAT_DM_CHUNK_SIZE_ZERO, 0, 0, COWSNAP_CHUNK_SIZE_MIN);
	if ((bytes & (bytes - 1)) || bytes < COWSNAP_CHUNK_SIZE_MIN)
		return refuse(fault, CS_FORMAT_DM_CHUNK_SIZE_NOT_POWER_OF_TWO, 0, bytes,
			COWSNAP_CHUNK_SIZE_MIN);
	if (bytes > COWSNAP_CHUNK_SIZE_MAX)
		return refuse(
			fault, CS_FORMAT_DM_CHUNK_SIZE_TOO_LARGE, 0, bytes, COWSNAP_CHUNK_SIZE_MAX);
	return CS_FORMAT_DM_OK;
}

enum cs_format_dm_error cs_format_dm_decode_header(
	const void *bytes, struct cs_format_dm_header *header, struct cs_format_dm_fault *fault)
{
	const uint8_t *at = bytes;
	uint32_t magic = load_u32(at), version = load_u32(at + 8);
	uint64_t chunk_size_bytes = (uint64_t)load_u32(at + 12) << SECTOR_SHIFT;
	enum cs_format_dm_error error;

	if (!magic)
		return refuse(fault, CS_FORMAT_DM_NO_STORE, 0, 0, MAGIC);
	if (magic != MAGIC)
		return refuse(fault, CS_FORMAT_DM_BAD_MAGIC, 0, magic, MAGIC);
	if (version != VERSION)
		return refuse(fault, CS_FORMAT_DM_BAD_VERSION, 0, version, VERSION);
	error = check_chunk_size(chunk_size_bytes, fault);
	if (error)
		return error;
	header->valid = load_u32(at + 4) != 0;
	header->chunk_size_bytes = chunk_size_bytes;
	return CS_FORMAT_DM_OK;
}

void cs_format_dm_encode_header(const struct cs_format_dm_header *header, void *bytes)
{
	struct cs_format_dm_fault fault;
	uint8_t *at = bytes;

	(void)fault;
	assert(!check_chunk_size(header->chunk_size_bytes, &fault));
	store_u32(at, MAGIC);
	store_u32(at + 4, header->valid);
	store_u32(at + 8, VERSION);
	store_u32(at + 12, (uint32_t)(header->chunk_size_bytes >> SECTOR_SHIFT));
}

uint64_t cs_format_dm_decode_generation(const void *bytes)
{
	return load_u64((const uint8_t *)bytes + CS_FORMAT_DM_HEADER_BYTES);
}

void cs_format_dm_encode_generation(uint64_t generation, void *bytes)
{
	store_u64((uint8_t *)bytes + CS_FORMAT_DM_HEADER_BYTES, generation);
}

/* ---- Layout --------------------------------------------------------------------------------- */

static uint64_t at_most(uint64_t value, uint64_t most)
{
	return value < most ? value : most;
}

/* In one stripe there are an area and E data chunks. */
static uint64_t stripe(const struct cs_format_dm_layout *layout)
{
	return layout->area_records + 1;
}

enum cs_format_dm_error cs_format_dm_layout_init(struct cs_format_dm_layout *layout,
	uint64_t chunk_size_bytes, uint32_t block_size, uint64_t device_bytes,
	uint64_t origin_bytes, struct cs_format_dm_fault *fault)
{
	enum cs_format_dm_error error = check_chunk_size(chunk_size_bytes, fault);
	uint64_t data;

	if (error)
		return error;
	if (block_size && chunk_size_bytes % block_size)
		return refuse(fault, CS_FORMAT_DM_CHUNK_SIZE_BELOW_BLOCK, 0, chunk_size_bytes,
			block_size);
	device_bytes = at_most(device_bytes, COWSNAP_SIZE_MAX);
	origin_bytes = at_most(origin_bytes, COWSNAP_SIZE_MAX);
	if (!origin_bytes)
		origin_bytes = COWSNAP_SIZE_MAX;
	layout->chunk_shift = (uint32_t)__builtin_ctzll(chunk_size_bytes);
	layout->area_records = chunk_size_bytes / CS_FORMAT_DM_RECORD_BYTES;
	layout->chunks = device_bytes >> layout->chunk_shift;
	layout->origin_chunks = ((origin_bytes - 1) >> layout->chunk_shift) + 1;
	if (layout->chunks < CHUNKS_MIN)
		return refuse(fault, CS_FORMAT_DM_DEVICE_TOO_SHORT, 0, device_bytes,
			CHUNKS_MIN * chunk_size_bytes);
	layout->areas = (layout->chunks - 2) / stripe(layout) + 1;
	data = layout->chunks - 1 - layout->areas;
	/* The last slot of the last area is for the terminator. */
	layout->records = at_most(data, layout->areas * layout->area_records - 1);
	return CS_FORMAT_DM_OK;
}

bool cs_format_dm_is_metadata(const struct cs_format_dm_layout *layout, uint64_t chunk)
{
	return chunk % stripe(layout) == 1;
}

bool cs_format_dm_area_chunk(
	const struct cs_format_dm_layout *layout, uint64_t area, uint64_t *chunk)
{
	if (area >= layout->areas)
		return false;
	*chunk = 1 + area * stripe(layout);
	return true;
}

bool cs_format_dm_data_chunk(
	const struct cs_format_dm_layout *layout, uint64_t number, uint64_t *chunk)
{
	if (number >= layout->chunks - 1 - layout->areas)
		return false;
	*chunk = 2 + number + number / layout->area_records;
	return true;
}

bool cs_format_dm_size(uint64_t chunk_size_bytes, uint64_t records, uint64_t *bytes)
{
	uint64_t most = COWSNAP_SIZE_MAX / chunk_size_bytes;
	uint64_t areas = records / (chunk_size_bytes / CS_FORMAT_DM_RECORD_BYTES) + 1;

	/* One by one, so that no sum wraps. */
	if (records > most || areas + 1 > most - records)
		return false;
	*bytes = (1 + records + areas) * chunk_size_bytes;
	return true;
}

/* ---- Records -------------------------------------------------------------------------------- */

static enum cs_format_dm_error check_record(const struct cs_format_dm_layout *layout,
	const struct cs_format_dm_record *record, uint64_t number, struct cs_format_dm_fault *fault)
{
	if (!record->store)
		return refuse(fault, CS_FORMAT_DM_RECORD_IN_HEADER, number, record->origin, 0);
	if (record->store >= layout->chunks)
		return refuse(fault, CS_FORMAT_DM_RECORD_BEYOND_DEVICE, number, record->store,
			layout->chunks);
	if (cs_format_dm_is_metadata(layout, record->store))
		return refuse(fault, CS_FORMAT_DM_RECORD_IN_METADATA, number, record->store,
			record->store / stripe(layout));
	if (record->origin >= layout->origin_chunks)
		return refuse(fault, CS_FORMAT_DM_RECORD_BEYOND_ORIGIN, number, record->origin,
			layout->origin_chunks);
	return CS_FORMAT_DM_OK;
}

enum cs_format_dm_error cs_format_dm_decode_record(const struct cs_format_dm_layout *layout,
	const void *slot, uint64_t number, struct cs_format_dm_record *record,
	struct cs_format_dm_fault *fault)
{
	const uint8_t *at = slot;

	record->origin = load_u64(at);
	record->store = load_u64(at + 8);
	if (!record->origin && !record->store)
		return CS_FORMAT_DM_END;
	return check_record(layout, record, number, fault);
}

void cs_format_dm_encode_record(const struct cs_format_dm_layout *layout,
	const struct cs_format_dm_record *record, void *slot)
{
	struct cs_format_dm_fault fault;
	uint8_t *at = slot;

	(void)layout;
	(void)fault;
	assert(!check_record(layout, record, 0, &fault));
	store_u64(at, record->origin);
	store_u64(at + 8, record->store);
}

uint64_t cs_format_dm_find_end(const void *slots, uint64_t count)
{
	const uint8_t *at = slots;
	uint64_t slot = 0;

	while (slot < count && load_u64(at + slot * CS_FORMAT_DM_RECORD_BYTES + 8))
		slot++;
	return slot;
}

bool cs_format_dm_is_stale(const void *slots, uint64_t count)
{
	const uint8_t *at = slots;

	for (uint64_t i = 0; i < count * CS_FORMAT_DM_RECORD_BYTES; i += 8) {
		if (load_u64(at + i))
			return true;
	}
	return false;
}
