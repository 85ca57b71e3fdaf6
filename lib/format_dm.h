/* SPDX-License-Identifier: MIT
 *
 * The format of dm-snapshot's persistent store, version 1: the arithmetic of its layout, its header
 * and its records as bytes. docs/design/dm-format.md is the format; this is the code for it.
 *
 * Pure functions: no I/O, no memory, no state. What a device holds may be anything, so whatever
 * takes bytes or numbers that come from one accepts every value. What a caller makes up itself (a
 * header or record to encode) must be right, and is asserted.
 */
#ifndef CS_FORMAT_DM_H
#define CS_FORMAT_DM_H

#include <cowsnap.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CS_FORMAT_DM_HEADER_BYTES 16u
#define CS_FORMAT_DM_RECORD_BYTES 16u

/* The order is that of the checks. */
enum cs_format_dm_error {
	CS_FORMAT_DM_OK = 0,
	CS_FORMAT_DM_END, /* no error: this slot ends the list */
	CS_FORMAT_DM_NO_STORE,
	CS_FORMAT_DM_BAD_MAGIC,
	CS_FORMAT_DM_BAD_VERSION,
	CS_FORMAT_DM_CHUNK_SIZE_ZERO,
	CS_FORMAT_DM_CHUNK_SIZE_NOT_POWER_OF_TWO,
	CS_FORMAT_DM_CHUNK_SIZE_TOO_LARGE,
	CS_FORMAT_DM_CHUNK_SIZE_BELOW_BLOCK,
	CS_FORMAT_DM_DEVICE_TOO_SHORT,
	CS_FORMAT_DM_AREA_BEYOND_DEVICE,
	CS_FORMAT_DM_RECORD_IN_HEADER,
	CS_FORMAT_DM_RECORD_BEYOND_DEVICE,
	CS_FORMAT_DM_RECORD_IN_METADATA,
	CS_FORMAT_DM_RECORD_BEYOND_ORIGIN,
	CS_FORMAT_DM_DUPLICATE_ORIGIN, /* these two are found by who keeps the records */
	CS_FORMAT_DM_DUPLICATE_STORE,
	CS_FORMAT_DM_ERRORS, /* how many there are */
};

/* What is wrong, with its numbers. Set by whoever returns an error, and only then. */
struct cs_format_dm_fault {
	enum cs_format_dm_error error;
	uint64_t record; /* its number, from 0 */
	uint64_t value;  /* what was found */
	uint64_t limit;  /* what it was held against; for duplicates, the record that came first */
};

/* The name of an error in documents and tools, like "bad-magic"; never NULL. */
const char *cs_format_dm_name(enum cs_format_dm_error error);
/* A fault in words, cut off to fit into @bytes, at least 1. Returns: @text. */
const char *cs_format_dm_explain(const struct cs_format_dm_fault *fault, char *text, size_t bytes);

/* ---- Header --------------------------------------------------------------------------------- */

struct cs_format_dm_header {
	bool valid;
	uint64_t chunk_size_bytes; /* a power of two, COWSNAP_CHUNK_SIZE_MIN to _MAX */
};

/* @bytes: the first CS_FORMAT_DM_HEADER_BYTES of a device. @header is set if they are OK. */
enum cs_format_dm_error cs_format_dm_decode_header(
	const void *bytes, struct cs_format_dm_header *header, struct cs_format_dm_fault *fault);
void cs_format_dm_encode_header(const struct cs_format_dm_header *header, void *bytes);

/* The host's number, behind the header: bytes that kernels write as zeroes and ignore. @bytes: the
 * first CS_FORMAT_DM_HEADER_BYTES and as many as a u64 has. */
uint64_t cs_format_dm_decode_generation(const void *bytes);
void cs_format_dm_encode_generation(uint64_t generation, void *bytes);

/* ---- Layout --------------------------------------------------------------------------------- */

struct cs_format_dm_layout {
	uint32_t chunk_shift;
	uint64_t area_records;  /* E: records in one area, data chunks behind it; a power of two */
	uint64_t chunks;        /* N: of the store's device */
	uint64_t areas;         /* that lie on it */
	uint64_t records;       /* that fit, with their terminator */
	uint64_t origin_chunks; /* O */
};

/*
 * What lies where on a device.
 * @chunk_size_bytes: any value
 * @block_size: of which the chunk size must be a multiple: the larger one of both devices
 * @device_bytes, @origin_bytes: above COWSNAP_SIZE_MAX stands for that; 0 stands for an origin that
 *	is not known, and is as long as can be
 */
enum cs_format_dm_error cs_format_dm_layout_init(struct cs_format_dm_layout *layout,
	uint64_t chunk_size_bytes, uint32_t block_size, uint64_t device_bytes,
	uint64_t origin_bytes, struct cs_format_dm_fault *fault);

/* Does an area lie in this chunk? Of any number; the header is none. */
bool cs_format_dm_is_metadata(const struct cs_format_dm_layout *layout, uint64_t chunk);

/* Where area @area or data chunk number @number lies, both from 0. Returns: false if that is beyond
 * the device. */
bool cs_format_dm_area_chunk(
	const struct cs_format_dm_layout *layout, uint64_t area, uint64_t *chunk);
bool cs_format_dm_data_chunk(
	const struct cs_format_dm_layout *layout, uint64_t number, uint64_t *chunk);

/* How long a device must be for @records; the chunk size is one that layout_init accepts. Returns:
 * false if that is more than COWSNAP_SIZE_MAX. */
bool cs_format_dm_size(uint64_t chunk_size_bytes, uint64_t records, uint64_t *bytes);

/* ---- Records --------------------------------------------------------------------------------
 *
 * A slot is CS_FORMAT_DM_RECORD_BYTES of an area. Slots need not be aligned, nor a whole area:
 * areas can be larger than anybody wants to hold in memory.
 */

struct cs_format_dm_record {
	uint64_t origin; /* chunk */
	uint64_t store;  /* chunk */
};

/* @number: the record's, for the fault. @record is set to what the slot holds, in any case.
 * Returns: OK, END, or what is wrong with this record by itself. */
enum cs_format_dm_error cs_format_dm_decode_record(const struct cs_format_dm_layout *layout,
	const void *slot, uint64_t number, struct cs_format_dm_record *record,
	struct cs_format_dm_fault *fault);

void cs_format_dm_encode_record(const struct cs_format_dm_layout *layout,
	const struct cs_format_dm_record *record, void *slot);

/* The first of @count slots that is no record, or @count. To decode it tells whether it is an end
 * or damage. */
uint64_t cs_format_dm_find_end(const void *slots, uint64_t count);

/* Is there anything but zeroes in these slots? In those from the end on, that is a stale tail. */
bool cs_format_dm_is_stale(const void *slots, uint64_t count);

#endif
