/* SPDX-License-Identifier: MIT
 *
 * The format's arithmetic against a layout that is made one chunk after the other, and its bytes
 * against those of the example in docs/design/dm-format.md.
 */
#include "support/seed.h"
#include "support/test.h"

#include "format_dm.h"

#include <string.h>

#define KIB UINT64_C(1024)
#define GIB (UINT64_C(1) << 30)

static struct cs_format_dm_fault fault;

static struct cs_format_dm_layout layout_of(uint64_t chunk, uint64_t device, uint64_t origin)
{
	struct cs_format_dm_layout layout;
	enum cs_format_dm_error error =
		cs_format_dm_layout_init(&layout, chunk, 512, device, origin, &fault);

	cr_assert_eq(error, CS_FORMAT_DM_OK, "%s", cs_format_dm_name(error));
	return layout;
}

/* ---- The layout, made by walking ------------------------------------------------------------- */

#define WALK_CHUNKS 1400u

enum kind {
	HEADER,
	AREA,
	DATA,
};

struct walk {
	uint64_t records_per_area;
	uint64_t count; /* chunks */
	uint64_t areas;
	uint64_t data;
	enum kind kind[WALK_CHUNKS];
	uint64_t area_at[WALK_CHUNKS];
	uint64_t data_at[WALK_CHUNKS];
};

/* Header; then again and again an area and as many data chunks as it has records. */
static void walk_init(struct walk *w, uint64_t records_per_area)
{
	memset(w, 0, sizeof(*w));
	w->records_per_area = records_per_area;
}

static void walk_step(struct walk *w)
{
	uint64_t c = w->count++;

	if (c == 0) {
		w->kind[c] = HEADER;
	} else if (w->data == w->areas * w->records_per_area) {
		w->kind[c] = AREA;
		w->area_at[w->areas++] = c;
	} else {
		w->kind[c] = DATA;
		w->data_at[w->data++] = c;
	}
}

/* How many records can be appended, one by one: each needs a data chunk, its slot, and a slot
 * behind it that lies on the device. */
static uint64_t walk_records(const struct walk *w)
{
	uint64_t n = 0;

	while (n < w->data && n + 1 < w->areas * w->records_per_area)
		n++;
	return n;
}

static void compare(const struct walk *w, uint64_t chunk_size)
{
	/* A piece of a chunk at the end counts as nothing. */
	struct cs_format_dm_layout l =
		layout_of(chunk_size, w->count * chunk_size + (w->count % 3) * (chunk_size / 3), 0);
	uint64_t chunk;

	cr_assert_eq(l.area_records, w->records_per_area);
	cr_assert_eq(l.chunks, w->count);
	cr_assert_eq(l.areas, w->areas, "%llu chunks", (unsigned long long)w->count);
	cr_assert_eq(l.records, walk_records(w), "%llu chunks", (unsigned long long)w->count);
	for (uint64_t c = 0; c < w->count; c++)
		cr_assert_eq(cs_format_dm_is_metadata(&l, c), w->kind[c] == AREA);
	for (uint64_t a = 0; a < w->areas; a++) {
		cr_assert(cs_format_dm_area_chunk(&l, a, &chunk));
		cr_assert_eq(chunk, w->area_at[a]);
	}
	for (uint64_t k = 0; k < w->data; k++) {
		cr_assert(cs_format_dm_data_chunk(&l, k, &chunk));
		cr_assert_eq(chunk, w->data_at[k]);
	}
	cr_assert_not(cs_format_dm_area_chunk(&l, w->areas, &chunk));
	cr_assert_not(cs_format_dm_data_chunk(&l, w->data, &chunk));
}

static void compare_all(uint64_t chunk_size, uint64_t chunks)
{
	static struct walk w;

	walk_init(&w, chunk_size / 16);
	walk_step(&w);
	while (w.count < chunks) {
		walk_step(&w);
		compare(&w, chunk_size);
	}
}

Test(format_dm, layout_of_every_device_of_small_chunks)
{
	compare_all(512, 300);
}

Test(format_dm, layout_of_every_device_of_4_kib_chunks)
{
	compare_all(4 * KIB, 800);
}

Test(format_dm, layout_is_the_same_for_all_chunk_sizes)
{
	for (uint64_t size = 512; size <= COWSNAP_CHUNK_SIZE_MAX; size *= 2) {
		struct cs_format_dm_layout l = layout_of(size, COWSNAP_SIZE_MAX, 0);
		uint64_t chunk, stripe = size / 16 + 1;

		cr_assert_eq(UINT64_C(1) << l.chunk_shift, size);
		cr_assert_eq(l.chunks, COWSNAP_SIZE_MAX / size);
		cr_assert_eq(l.origin_chunks, l.chunks);
		for (uint64_t a = l.areas - 2; a < l.areas; a++) {
			cr_assert(cs_format_dm_area_chunk(&l, a, &chunk));
			cr_assert_eq(chunk % stripe, 1);
			cr_assert_eq(chunk / stripe, a);
			cr_assert_lt(chunk, l.chunks);
			cr_assert(cs_format_dm_is_metadata(&l, chunk));
			cr_assert_not(cs_format_dm_is_metadata(&l, chunk - 1));
			cr_assert_not(cs_format_dm_is_metadata(&l, chunk + 1));
		}
		cr_assert_geq(chunk + stripe, l.chunks);
		cr_assert(cs_format_dm_data_chunk(&l, l.chunks - 2 - l.areas, &chunk));
		cr_assert_lt(chunk, l.chunks);
		cr_assert_not(cs_format_dm_data_chunk(&l, l.chunks - 1 - l.areas, &chunk));
	}
}

Test(format_dm, device_that_ends_with_a_whole_stripe_is_full_one_record_early)
{
	for (uint64_t m = 1; m < 40; m++) {
		uint64_t chunks = 1 + m * 33;

		cr_assert_eq(layout_of(512, (chunks - 1) * 512, 0).records, m * 32 - 1);
		cr_assert_eq(layout_of(512, chunks * 512, 0).records, m * 32 - 1);
		/* The next area makes the last data chunk of before of use. */
		cr_assert_eq(layout_of(512, (chunks + 1) * 512, 0).records, m * 32);
		cr_assert_eq(layout_of(512, (chunks + 2) * 512, 0).records, m * 32 + 1);
	}
}

/* ---- How long a device must be --------------------------------------------------------------- */

static void check_size(uint64_t chunk_size, uint64_t records)
{
	uint64_t bytes;

	cr_assert(cs_format_dm_size(chunk_size, records, &bytes));
	cr_assert_eq(bytes, (1 + records + records / (chunk_size / 16) + 1) * chunk_size);
	cr_assert_geq(layout_of(chunk_size, bytes, 0).records, records);
	if (records) {
		/* One chunk less is not enough. */
		cr_assert_lt(layout_of(chunk_size, bytes - chunk_size, 0).records, records);
	}
}

Test(format_dm, size_is_the_least_that_holds_the_records)
{
	for (uint64_t n = 0; n < 3000; n++) {
		check_size(512, n);
		check_size(4 * KIB, n);
		check_size(16 * KIB, n);
	}
	for (uint64_t n = 1; n < 20; n++) {
		check_size(GIB, n);
		check_size(4 * KIB, (UINT64_C(1) << 49) - n);
		check_size(512, (UINT64_C(1) << 52) + n);
	}
}

Test(format_dm, size_never_wraps)
{
	for (uint64_t size = 512; size <= COWSNAP_CHUNK_SIZE_MAX; size *= 2) {
		uint64_t good = 0, bad = UINT64_MAX, bytes;

		/* The largest number of records whose device can be. */
		while (bad - good > 1) {
			uint64_t n = good + (bad - good) / 2;

			if (cs_format_dm_size(size, n, &bytes))
				good = n;
			else
				bad = n;
		}
		cr_assert(cs_format_dm_size(size, good, &bytes));
		cr_assert_leq(bytes, COWSNAP_SIZE_MAX);
		cr_assert_gt(bytes, COWSNAP_SIZE_MAX - 3 * size);
		cr_assert_geq(layout_of(size, COWSNAP_SIZE_MAX, 0).records, good);
		/* With its areas this many would come to next to nothing. */
		for (uint64_t n = 0; n < 8; n++) {
			uint64_t wraps = UINT64_MAX - UINT64_MAX / (size / 16 + 1) + n - 3;

			cr_assert_not(cs_format_dm_size(size, wraps, &bytes));
		}
		for (unsigned bit = 54; bit < 64; bit++) {
			for (uint64_t n = 0; n < 3; n++) {
				cr_assert_not(
					cs_format_dm_size(size, (UINT64_C(1) << bit) + n, &bytes));
				cr_assert_not(cs_format_dm_size(size, UINT64_MAX - n, &bytes));
			}
		}
	}
}

/* ---- Refusals of a layout -------------------------------------------------------------------- */

static enum cs_format_dm_error refusal(uint64_t chunk, uint32_t block, uint64_t device)
{
	struct cs_format_dm_layout layout;

	return cs_format_dm_layout_init(&layout, chunk, block, device, 0, &fault);
}

Test(format_dm, chunk_sizes)
{
	for (uint64_t size = 512; size <= COWSNAP_CHUNK_SIZE_MAX; size *= 2) {
		cr_assert_eq(refusal(size, 512, 2 * size), CS_FORMAT_DM_OK);
		cr_assert_eq(refusal(size + 512, 512, 8 * size),
			size == 512 ? CS_FORMAT_DM_OK : CS_FORMAT_DM_CHUNK_SIZE_NOT_POWER_OF_TWO);
		cr_assert_eq(
			refusal(size - 1, 1, 8 * size), CS_FORMAT_DM_CHUNK_SIZE_NOT_POWER_OF_TWO);
		cr_assert_eq(fault.value, size - 1);
	}
	for (uint64_t size = 1; size < 512; size *= 2)
		cr_assert_eq(refusal(size, 1, GIB), CS_FORMAT_DM_CHUNK_SIZE_NOT_POWER_OF_TWO);
	for (unsigned bit = 31; bit < 64; bit++) {
		cr_assert_eq(refusal(UINT64_C(1) << bit, 1, COWSNAP_SIZE_MAX),
			CS_FORMAT_DM_CHUNK_SIZE_TOO_LARGE);
		cr_assert_eq(fault.limit, COWSNAP_CHUNK_SIZE_MAX);
	}
	cr_assert_eq(refusal(0, 1, GIB), CS_FORMAT_DM_CHUNK_SIZE_ZERO);
	cr_assert_eq(refusal(UINT64_MAX, 1, GIB), CS_FORMAT_DM_CHUNK_SIZE_NOT_POWER_OF_TWO);
	cr_assert_eq(refusal(512, 4096, GIB), CS_FORMAT_DM_CHUNK_SIZE_BELOW_BLOCK);
	cr_assert_eq(fault.limit, 4096);
	cr_assert_eq(refusal(4096, 4096, GIB), CS_FORMAT_DM_OK);
}

Test(format_dm, devices_that_are_too_short)
{
	for (uint64_t size = 512; size <= COWSNAP_CHUNK_SIZE_MAX; size *= 2) {
		cr_assert_eq(refusal(size, 512, 0), CS_FORMAT_DM_DEVICE_TOO_SHORT);
		cr_assert_eq(refusal(size, 512, size), CS_FORMAT_DM_DEVICE_TOO_SHORT);
		cr_assert_eq(refusal(size, 512, 2 * size - 1), CS_FORMAT_DM_DEVICE_TOO_SHORT);
		cr_assert_eq(fault.value, 2 * size - 1);
		cr_assert_eq(fault.limit, 2 * size);
		cr_assert_eq(refusal(size, 512, 2 * size), CS_FORMAT_DM_OK);
		cr_assert_eq(layout_of(size, 2 * size, 0).records, 0);
		cr_assert_eq(layout_of(size, 3 * size, 0).records, 1);
	}
}

Test(format_dm, longer_than_possible_counts_as_the_longest)
{
	struct cs_format_dm_layout longest = layout_of(512, COWSNAP_SIZE_MAX, COWSNAP_SIZE_MAX);

	for (unsigned n = 0; n < 4; n++) {
		struct cs_format_dm_layout l = layout_of(512, UINT64_MAX - n, UINT64_MAX - n);

		cr_assert_eq(l.chunks, longest.chunks);
		cr_assert_eq(l.records, longest.records);
		cr_assert_eq(l.origin_chunks, longest.origin_chunks);
	}
}

Test(format_dm, part_of_an_origin_chunk_is_one)
{
	cr_assert_eq(layout_of(4096, GIB, 1).origin_chunks, 1);
	cr_assert_eq(layout_of(4096, GIB, 4095).origin_chunks, 1);
	cr_assert_eq(layout_of(4096, GIB, 4096).origin_chunks, 1);
	cr_assert_eq(layout_of(4096, GIB, 4097).origin_chunks, 2);
	cr_assert_eq(
		layout_of(4096, GIB, COWSNAP_SIZE_MAX - 1).origin_chunks, COWSNAP_SIZE_MAX / 4096);
}

/* ---- Header ---------------------------------------------------------------------------------- */

static const uint8_t example_header[16] = {
	0x53, 0x6e, 0x41, 0x70, 1, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0};

static enum cs_format_dm_error decode(const uint8_t *bytes, struct cs_format_dm_header *header)
{
	memset(&fault, 0xee, sizeof(fault));
	return cs_format_dm_decode_header(bytes, header, &fault);
}

Test(format_dm, header_of_the_example)
{
	struct cs_format_dm_header header;
	uint8_t bytes[16];

	cr_assert_eq(decode(example_header, &header), CS_FORMAT_DM_OK);
	cr_assert(header.valid);
	cr_assert_eq(header.chunk_size_bytes, 4096);
	cs_format_dm_encode_header(&header, bytes);
	cr_assert_arr_eq(bytes, example_header, 16);
}

Test(format_dm, header_of_each_chunk_size_there_and_back)
{
	for (uint64_t size = 512; size <= COWSNAP_CHUNK_SIZE_MAX; size *= 2) {
		for (int valid = 0; valid < 2; valid++) {
			struct cs_format_dm_header in = {valid, size}, out;
			uint8_t bytes[18] = {[0] = 0xaa, [17] = 0xbb};

			cs_format_dm_encode_header(&in, bytes + 1);
			cr_assert_eq(bytes[0], 0xaa);
			cr_assert_eq(bytes[17], 0xbb);
			cr_assert_eq(decode(bytes + 1, &out), CS_FORMAT_DM_OK);
			cr_assert_eq(out.valid, in.valid);
			cr_assert_eq(out.chunk_size_bytes, size);
		}
	}
}

static enum cs_format_dm_error decode_with(unsigned at, uint32_t word)
{
	struct cs_format_dm_header header;
	uint8_t bytes[16];

	memcpy(bytes, example_header, 16);
	for (unsigned i = 0; i < 4; i++)
		bytes[at + i] = (uint8_t)(word >> (8 * i));
	return decode(bytes, &header);
}

Test(format_dm, each_header_word_has_its_error)
{
	struct cs_format_dm_header header = {0};

	cr_assert_eq(decode_with(0, 0), CS_FORMAT_DM_NO_STORE);
	for (unsigned bit = 0; bit < 32; bit++) {
		uint32_t one = UINT32_C(1) << bit;

		cr_assert_eq(decode_with(0, 0x70416E53 ^ one), CS_FORMAT_DM_BAD_MAGIC);
		cr_assert_eq(fault.value, 0x70416E53 ^ one);
		cr_assert_eq(decode_with(4, one), CS_FORMAT_DM_OK);
		cr_assert_eq(decode_with(8, 1 ^ one), CS_FORMAT_DM_BAD_VERSION);
		cr_assert_eq(decode_with(12, one),
			bit <= 21 ? CS_FORMAT_DM_OK : CS_FORMAT_DM_CHUNK_SIZE_TOO_LARGE);
		if (bit)
			cr_assert_eq(
				decode_with(12, one | 1), CS_FORMAT_DM_CHUNK_SIZE_NOT_POWER_OF_TWO);
	}
	cr_assert_eq(decode_with(12, 0), CS_FORMAT_DM_CHUNK_SIZE_ZERO);
	cr_assert_eq(decode_with(12, UINT32_MAX), CS_FORMAT_DM_CHUNK_SIZE_NOT_POWER_OF_TWO);
	cr_assert_eq(fault.value, (uint64_t)UINT32_MAX * 512);
	/* Any word but 0 is valid. */
	memset(&header, 0, sizeof(header));
	cr_assert_eq(
		decode((const uint8_t *)"SnAp\0\0\0\x80\1\0\0\0\1\0\0", &header), CS_FORMAT_DM_OK);
	cr_assert(header.valid);
	cr_assert_eq(header.chunk_size_bytes, 512);
}

Test(format_dm, garbage_headers_are_decoded_or_refused_alike)
{
	struct seed seed = seed_for("garbage headers");

	for (unsigned i = 0; i < 200000; i++) {
		struct cs_format_dm_header header;
		uint8_t bytes[16], again[16];

		memcpy(bytes, example_header, 16);
		/* Random words, so that some pass. */
		for (unsigned at = 0; at < 16; at += 4) {
			if (seed_below(&seed, 4) == 0)
				seed_fill(&seed, bytes + at, 4);
		}
		if (decode(bytes, &header))
			continue;
		cs_format_dm_encode_header(&header, again);
		again[4] = bytes[4];
		again[5] = bytes[5];
		again[6] = bytes[6];
		again[7] = bytes[7];
		cr_assert_arr_eq(bytes, again, 16);
	}
}

/* ---- Records --------------------------------------------------------------------------------- */

static const uint8_t example_area[48] = {
	5, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0,    /**/
	0xbc, 2, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, /**/
};

Test(format_dm, records_of_the_example)
{
	struct cs_format_dm_layout l = layout_of(4096, 16384, 0);
	struct cs_format_dm_record r;
	uint8_t area[48] = {0};

	cr_assert_eq(l.records, 2);
	cr_assert_eq(cs_format_dm_find_end(example_area, 3), 2);
	cr_assert_eq(cs_format_dm_decode_record(&l, example_area, 0, &r, &fault), CS_FORMAT_DM_OK);
	cr_assert(r.origin == 5 && r.store == 2);
	cs_format_dm_encode_record(&l, &r, area);
	cr_assert_eq(
		cs_format_dm_decode_record(&l, example_area + 16, 1, &r, &fault), CS_FORMAT_DM_OK);
	cr_assert(r.origin == 700 && r.store == 3);
	cs_format_dm_encode_record(&l, &r, area + 16);
	cr_assert_eq(
		cs_format_dm_decode_record(&l, example_area + 32, 2, &r, &fault), CS_FORMAT_DM_END);
	cr_assert_arr_eq(area, example_area, 48);
}

static void put(uint8_t *slot, uint64_t origin, uint64_t store)
{
	for (unsigned i = 0; i < 8; i++) {
		slot[i] = (uint8_t)(origin >> (8 * i));
		slot[8 + i] = (uint8_t)(store >> (8 * i));
	}
}

static enum cs_format_dm_error decode_slot(
	const struct cs_format_dm_layout *l, uint64_t origin, uint64_t store)
{
	struct cs_format_dm_record r;
	uint8_t slot[17]; /* not aligned */
	enum cs_format_dm_error error;

	put(slot + 1, origin, store);
	memset(&fault, 0xee, sizeof(fault));
	error = cs_format_dm_decode_record(l, slot + 1, 77, &r, &fault);
	cr_assert(r.origin == origin && r.store == store);
	if (error > CS_FORMAT_DM_END) {
		cr_assert_eq(fault.error, error);
		cr_assert_eq(fault.record, 77);
	}
	return error;
}

/* What the walk says of this record. */
static enum cs_format_dm_error expected(
	const struct walk *w, uint64_t origins, uint64_t origin, uint64_t store)
{
	if (!store)
		return origin ? CS_FORMAT_DM_RECORD_IN_HEADER : CS_FORMAT_DM_END;
	if (store >= w->count)
		return CS_FORMAT_DM_RECORD_BEYOND_DEVICE;
	if (w->kind[store] == AREA)
		return CS_FORMAT_DM_RECORD_IN_METADATA;
	return origin < origins ? CS_FORMAT_DM_OK : CS_FORMAT_DM_RECORD_BEYOND_ORIGIN;
}

Test(format_dm, every_store_chunk_of_a_device_as_the_walk_has_it)
{
	static const uint64_t origins[] = {0, 1, 99, 100, 101, UINT64_MAX};
	static struct walk w;

	walk_init(&w, 32);
	while (w.count < 140) {
		walk_step(&w);
		if (w.count < 2)
			continue;
		struct cs_format_dm_layout l = layout_of(512, w.count * 512, 100 * 512);

		for (uint64_t store = 0; store < w.count + 40; store++) {
			for (unsigned i = 0; i < 6; i++)
				cr_assert_eq(decode_slot(&l, origins[i], store),
					expected(&w, 100, origins[i], store));
		}
	}
}

Test(format_dm, hostile_records_are_refused)
{
	struct cs_format_dm_layout l = layout_of(4096, GIB, GIB);
	struct cs_format_dm_layout largest = layout_of(512, COWSNAP_SIZE_MAX, 0);

	for (unsigned bit = 18; bit < 64; bit++) {
		for (uint64_t n = 0; n < 600; n++) {
			uint64_t far = (UINT64_C(1) << bit) + n;

			cr_assert_eq(decode_slot(&l, 0, far), CS_FORMAT_DM_RECORD_BEYOND_DEVICE);
			cr_assert_eq(fault.value, far);
			cr_assert_eq(decode_slot(&l, far, 2), CS_FORMAT_DM_RECORD_BEYOND_ORIGIN);
			cr_assert_eq(fault.limit, GIB / 4096);
		}
	}
	for (unsigned bit = 53; bit < 64; bit++) {
		uint64_t far = UINT64_C(1) << bit;

		cr_assert_eq(decode_slot(&largest, 0, far), CS_FORMAT_DM_RECORD_BEYOND_DEVICE);
		cr_assert_eq(decode_slot(&largest, far, 2), CS_FORMAT_DM_RECORD_BEYOND_ORIGIN);
	}
	cr_assert_eq(decode_slot(&l, 0, UINT64_MAX), CS_FORMAT_DM_RECORD_BEYOND_DEVICE);
	cr_assert_eq(decode_slot(&l, UINT64_MAX, UINT64_MAX), CS_FORMAT_DM_RECORD_BEYOND_DEVICE);
	cr_assert_eq(decode_slot(&l, UINT64_MAX, 0), CS_FORMAT_DM_RECORD_IN_HEADER);
	/* Only the lower half would be right. */
	cr_assert_eq(
		decode_slot(&l, 0, (UINT64_C(1) << 56) | 2), CS_FORMAT_DM_RECORD_BEYOND_DEVICE);
	cr_assert_eq(decode_slot(&l, 0, 1 + 3 * 257), CS_FORMAT_DM_RECORD_IN_METADATA);
	cr_assert_eq(fault.limit, 3);
}

Test(format_dm, records_there_and_back)
{
	struct seed seed = seed_for("records there and back");

	for (unsigned i = 0; i < 20000; i++) {
		uint64_t chunk_size = UINT64_C(512) << seed_below(&seed, 22);
		uint64_t device = 3 * chunk_size + seed_below(&seed, COWSNAP_SIZE_MAX);
		struct cs_format_dm_layout l =
			layout_of(chunk_size, device, 1 + seed_below(&seed, COWSNAP_SIZE_MAX));
		struct cs_format_dm_record in = {.origin = seed_below(&seed, l.origin_chunks)}, out;
		uint8_t slot[18] = {[0] = 0xaa, [17] = 0xbb};

		cr_assert(cs_format_dm_data_chunk(
			&l, seed_below(&seed, l.chunks - 1 - l.areas), &in.store));
		cs_format_dm_encode_record(&l, &in, slot + 1);
		cr_assert_eq(slot[0], 0xaa);
		cr_assert_eq(slot[17], 0xbb);
		cr_assert_eq(
			cs_format_dm_decode_record(&l, slot + 1, 0, &out, &fault), CS_FORMAT_DM_OK);
		cr_assert_eq(out.origin, in.origin);
		cr_assert_eq(out.store, in.store);
	}
}

/* ---- End and tail ---------------------------------------------------------------------------- */

Test(format_dm, end_of_each_length_of_list)
{
	uint8_t area[32 * 16];

	for (unsigned n = 0; n <= 32; n++) {
		memset(area, 0, sizeof(area));
		for (unsigned i = 0; i < n; i++)
			put(area + 16 * i, i % 2, UINT64_C(1) << (i * 2));
		cr_assert_eq(cs_format_dm_find_end(area, 32), n);
		cr_assert_not(cs_format_dm_is_stale(area + 16 * n, 32 - n));
		/* Fewer slots than there are records. */
		for (unsigned count = 0; count <= n; count++)
			cr_assert_eq(cs_format_dm_find_end(area, count), count);
		/* A hole ends the list, whatever follows. */
		for (unsigned hole = 0; hole < n; hole++) {
			uint8_t kept[16];

			memcpy(kept, area + 16 * hole, 16);
			memset(area + 16 * hole, 0, 16);
			cr_assert_eq(cs_format_dm_find_end(area, 32), hole);
			cr_assert_eq(
				cs_format_dm_is_stale(area + 16 * hole, 32 - hole), hole + 1 < n);
			memcpy(area + 16 * hole, kept, 16);
		}
	}
}

Test(format_dm, each_bit_of_a_tail_is_seen)
{
	uint8_t area[32 * 16] = {0};

	cr_assert_not(cs_format_dm_is_stale(area, 32));
	cr_assert_not(cs_format_dm_is_stale(area, 0));
	for (unsigned byte = 0; byte < sizeof(area); byte++) {
		for (unsigned bit = 0; bit < 8; bit++) {
			area[byte] = (uint8_t)(1 << bit);
			cr_assert(cs_format_dm_is_stale(area, 32));
			cr_assert_not(cs_format_dm_is_stale(area, byte / 16));
			cr_assert_eq(cs_format_dm_is_stale(area + 16, 31), byte >= 16);
			/* The store chunk alone makes a record. */
			cr_assert_eq(cs_format_dm_find_end(area, 32), byte >= 8 && byte < 16);
		}
		area[byte] = 0;
	}
}

/* ---- Words ----------------------------------------------------------------------------------- */

Test(format_dm, each_error_has_a_name_and_words)
{
	char text[200], other[200];

	for (unsigned e = 0; e < CS_FORMAT_DM_ERRORS; e++) {
		struct cs_format_dm_fault f = {(enum cs_format_dm_error)e, 1234567, 89, 1011};

		cr_assert_gt(strlen(cs_format_dm_name(f.error)), 1, "error %u", e);
		cr_assert_gt(strlen(cs_format_dm_explain(&f, text, sizeof(text))), 5);
		cr_assert_lt(strlen(text), sizeof(text) - 40);
		if (e >= CS_FORMAT_DM_RECORD_IN_HEADER)
			cr_assert(strstr(text, "record 1234567 ") && strstr(text, "89"));
		for (unsigned o = 0; o < e; o++) {
			struct cs_format_dm_fault g = f;

			g.error = (enum cs_format_dm_error)o;
			cr_assert_str_neq(cs_format_dm_name(g.error), cs_format_dm_name(f.error));
			cr_assert_str_neq(cs_format_dm_explain(&g, other, sizeof(other)), text);
		}
	}
	cr_assert_str_eq(cs_format_dm_name((enum cs_format_dm_error)999), "unknown");
}

Test(format_dm, words_with_their_numbers)
{
	struct cs_format_dm_layout l = layout_of(4096, GIB, 0);
	char text[200];

	cr_assert_eq(decode_slot(&l, 9, 258), CS_FORMAT_DM_RECORD_IN_METADATA);
	cr_assert_str_eq(cs_format_dm_explain(&fault, text, sizeof(text)),
		"record 77 lies in chunk 258, which is that of area 1");
	cr_assert_eq(decode_with(0, 0xfeed), CS_FORMAT_DM_BAD_MAGIC);
	cr_assert_str_eq(cs_format_dm_explain(&fault, text, sizeof(text)),
		"not a dm-snapshot store: the magic is 0x0000feed, and should be 0x70416e53");
	fault = (struct cs_format_dm_fault){
		CS_FORMAT_DM_DUPLICATE_STORE, UINT64_MAX, UINT64_MAX, UINT64_MAX};
	cr_assert_str_eq(cs_format_dm_explain(&fault, text, sizeof(text)),
		"record 18446744073709551615 lies in chunk 18446744073709551615, and so does "
		"record 18446744073709551615");
	cr_assert_str_eq(cs_format_dm_explain(&fault, text, 8), "record ");
	cr_assert_str_eq(cs_format_dm_explain(&fault, text, 1), "");
}
