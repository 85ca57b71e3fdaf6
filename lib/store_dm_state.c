/* SPDX-License-Identifier: MIT
 *
 * The persistent store: its state as a stream of bytes, for the next owner, who then need not read
 * the records.
 *
 * All are 64-bit words, little endian:
 *
 *     header   HEADER_WORDS words, the last one a checksum
 *     part     how many runs, 1 to PART_RUNS; two words each: chunk and length, location; checksum
 *     ...
 *     end      0; checksum
 *
 * Each checksum is of all words before it but checksums, so nothing is used before it was checked,
 * and what a reader sets aside is in proportion to what came. That another version can read it is
 * not promised: the version tells, and the store can be opened instead.
 *
 * The checksum finds damage, not malice: for each word a multiplication and a rotation, which can
 * be undone, so that one wrong word is always found, and others but for one time in 2^64. What a
 * liar could write in a state, he could write on the device. It needs no other library, and costs
 * next to nothing beside the map.
 *
 * That the device is still what was exported is seen from its header and from its *marks*: the
 * checksums of the pieces of the list of records that hold the first record, the last one, and the
 * terminator. Who has the lock between the two owners could append records, or begin another list:
 * both change these. That he writes other records with the same beginning and end is what the
 * generation is for.
 *
 * Locking: the exporter leads (store_dm_queue.c) from cs_store_dm_export_begin() on, so nothing is
 * recorded; header_lock to change what the store is. Of an import nobody else knows.
 *
 * Failure: until the export proper nothing has changed. Then the store is not this process's any
 * more, whatever becomes of the state.
 */
#include <endian.h>
#include <errno.h>
#include <string.h>

#include "alloc.h"
#include "store_dm.h"

#define MAGIC         UINT64_C(0x31564f4857435f43)
#define VERSION       UINT64_C(1)
#define FLAG_WRITTEN  UINT64_C(1)
#define PRIME         UINT64_C(0x9e3779b97f4a7c15)
#define PART_RUNS     4096u
#define PART_BYTES    ((1 + 2 * PART_RUNS + 1) * sizeof(uint64_t))
#define PIECE_BYTES   UINT64_C(4096)
#define CHUNK_BITS    56u
#define RUN_MOST      (UINT64_C(1) << (64 - CHUNK_BITS))
#define BATCH_ENTRIES 32768u /* several hundred are loaded faster than one by one */

enum {
	WORD_MAGIC,
	WORD_VERSION,
	WORD_CHUNK_BYTES,
	WORD_DEVICE_BYTES,
	WORD_ORIGIN_BYTES,
	WORD_SNAPSHOT_BYTES,
	WORD_GENERATION,
	WORD_RECORDS,
	WORD_MARKS,
	WORD_FLAGS = WORD_MARKS + CS_DM_MARKS,
	WORD_RESERVED, /* zero, as those behind it */
	WORD_CHECKSUM = 15,
	HEADER_WORDS,
};

/* What came of a state that was read. */
struct cs_dm_state {
	const struct cs_base *base;
	uint64_t header[HEADER_WORDS];
	struct cs_format_dm_layout layout;
	struct cowsnap_map map;
	struct cs_runs used;
	uint64_t highest;
	uint64_t records; /* that came */
};

static uint64_t mix(uint64_t sum, const uint64_t *words, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		sum = (sum ^ words[i]) * PRIME;
		sum = sum << 29 | sum >> 35;
	}
	return sum;
}

static struct cs_dm *dm_of(const struct cowsnap_store *store)
{
	return store->ops.commit == cs_dm_commit ? store->user : NULL;
}

/* ---- Marks ----------------------------------------------------------------------------------- */

/* The checksum of the piece of the list that slot @number lies in. */
static int mark(struct cs_dm *dm, uint64_t number, uint64_t *sum)
{
	uint64_t chunk_bytes = cs_dm_chunk_bytes(dm), records = dm->shape.area_records, chunk;
	uint64_t bytes = chunk_bytes < PIECE_BYTES ? chunk_bytes : PIECE_BYTES;
	uint64_t at = number % records * CS_FORMAT_DM_RECORD_BYTES / bytes * bytes;
	uint64_t words[PIECE_BYTES / sizeof(uint64_t)];
	int rc;

	if (!cs_format_dm_area_chunk(&dm->layout, number / records, &chunk))
		return -EBADMSG;
	rc = cs_dev_read(dm->device, words, (chunk << dm->chunk_shift) + at, bytes);
	for (size_t i = 0; !rc && i < bytes / sizeof(words[0]); i++)
		words[i] = le64toh(words[i]);
	if (!rc)
		*sum = mix(number, words, bytes / sizeof(words[0]));
	return rc;
}

/* Of a list of @records. */
static int find_marks(struct cs_dm *dm, uint64_t records, uint64_t marks[CS_DM_MARKS])
{
	const uint64_t numbers[CS_DM_MARKS] = {0, records ? records - 1 : 0, records};
	int rc = 0;

	for (unsigned i = 0; i < CS_DM_MARKS && !rc; i++)
		rc = mark(dm, numbers[i], &marks[i]);
	return rc;
}

/* ---- Export ---------------------------------------------------------------------------------- */

static int check_whole(struct cs_dm *dm, const struct cowsnap_map *map)
{
	int rc = cs_dm_broken(dm);

	if (rc)
		return rc;
	cs_mutex_lock(&dm->header_lock);
	rc = dm->header == CS_DM_VALID ? 0 : -ENODATA;
	cs_mutex_unlock(&dm->header_lock);
	/* Else a record is on its way into the map, or is the host's own. */
	if (!rc && (dm->acked != dm->end || cowsnap_map_count(map) != dm->end))
		rc = -EBUSY;
	return rc;
}

int cs_store_dm_export_begin(struct cowsnap_store *store, const struct cowsnap_map *map)
{
	struct cs_dm *dm = dm_of(store);
	int rc = dm ? cs_dm_lead(dm, NULL) : -ENOTSUP;

	if (rc)
		return rc;
	rc = check_whole(dm, map);
	if (!rc)
		rc = find_marks(dm, dm->end, dm->marks);
	if (!rc) {
		dm->part = cs_alloc(dm->base->alloc, PART_BYTES);
		rc = dm->part ? 0 : -ENOMEM;
	}
	if (rc)
		cs_dm_stop_leading(dm);
	return rc;
}

static void free_part(struct cs_dm *dm)
{
	cs_free(dm->base->alloc, dm->part, PART_BYTES);
	dm->part = NULL;
}

void cs_store_dm_export_cancel(struct cowsnap_store *store)
{
	struct cs_dm *dm = store->user;

	free_part(dm);
	cs_dm_stop_leading(dm);
}

bool cs_store_dm_is(const struct cowsnap_store *store)
{
	return dm_of(store) != NULL;
}

struct writer {
	const struct cs_dm *dm;
	const struct cs_dm_export *to;
	uint64_t sum;
	uint64_t records;
	int rc;
	uint64_t *words; /* of the next part */
	uint64_t runs;
};

static void put(struct writer *w, uint64_t *words, size_t count)
{
	w->sum = mix(w->sum, words, count);
	words[count++] = w->sum;
	for (size_t i = 0; i < count; i++)
		words[i] = htole64(words[i]);
	if (!w->rc)
		w->rc = w->to->write(w->to->user, words, count * sizeof(*words));
	if (w->rc > 0)
		w->rc = -EIO;
}

static void put_part(struct writer *w)
{
	w->words[0] = w->runs;
	put(w, w->words, 1 + 2 * w->runs);
	w->runs = 0;
}

static void put_run(void *user, const struct cowsnap_run *run)
{
	struct writer *w = user;

	if (w->rc)
		return;
	if (run->count > RUN_MOST ||
		!cs_dm_data_run(w->dm, w->dm->layout.chunks, run->location, run->count)) {
		w->rc = -EIO;
		return;
	}
	w->words[1 + 2 * w->runs] = run->first | (run->count - 1) << CHUNK_BITS;
	w->words[2 + 2 * w->runs] = run->location;
	w->records += run->count;
	if (++w->runs == PART_RUNS)
		put_part(w);
}

static void put_header(struct writer *w)
{
	const struct cs_dm *dm = w->dm;
	uint64_t words[HEADER_WORDS] = {
		[WORD_MAGIC] = MAGIC,
		[WORD_VERSION] = VERSION,
		[WORD_CHUNK_BYTES] = cs_dm_chunk_bytes(dm),
		[WORD_DEVICE_BYTES] = cs_dev_size(dm->device),
		[WORD_ORIGIN_BYTES] = w->to->origin_bytes,
		[WORD_SNAPSHOT_BYTES] = w->to->snapshot_bytes,
		[WORD_GENERATION] = dm->generation,
		[WORD_RECORDS] = dm->end,
		[WORD_FLAGS] = w->to->written ? FLAG_WRITTEN : 0,
	};

	memcpy(&words[WORD_MARKS], dm->marks, sizeof(dm->marks));
	put(w, words, WORD_CHECKSUM);
}

/* Up to what tells the next owner that the device is free. */
static void put_all(struct writer *w)
{
	uint64_t cursor = 0;

	put_header(w);
	while (!w->rc && cowsnap_map_walk(w->to->map, &cursor, PART_RUNS, put_run, w))
		;
	if (w->runs)
		put_part(w);
	if (!w->rc && w->records != w->dm->end)
		w->rc = -EIO;
}

/* From here on it is a store that does nothing, but has its header: nothing can begin in it. */
void cs_store_dm_export_end(struct cowsnap_store *store)
{
	struct cs_dm *dm = store->user;

	cs_mutex_lock(&dm->header_lock);
	dm->exported = true;
	atomic_store_explicit(&dm->broken, -EBADF, memory_order_relaxed);
	cs_mutex_unlock(&dm->header_lock);
	cs_dm_stop_leading(dm);
}

int cs_store_dm_export(struct cowsnap_store *store, const struct cs_dm_export *to)
{
	struct cs_dm *dm = store->user;
	struct writer w = {.dm = dm, .to = to, .words = dm->part};
	uint64_t end[2] = {0};

	put_all(&w);
	free_part(dm);
	cs_dev_lock(dm->device, COWSNAP_LOCK_NONE);
	if (!w.rc)
		put(&w, end, 1);
	return w.rc;
}

/* ---- Import: reading ------------------------------------------------------------------------- */

struct reader {
	struct cs_dm_state *state;
	const struct cs_dm_import *from;
	uint64_t sum;
	uint64_t *words; /* of a part */
	struct cs_map_entry *entries;
	size_t count;
};

static int refuse(const struct cs_dm_state *state, int rc, const char *what)
{
	cs_log(state->base, COWSNAP_LOG_ERROR, "state of a store: %s", what);
	return rc;
}

static int get(struct reader *r, uint64_t *words, size_t count)
{
	int rc = r->from->read(r->from->user, words, count * sizeof(*words));

	if (rc == -ENODATA)
		return refuse(r->state, -EBADMSG, "it ends too early");
	if (rc)
		return rc < 0 ? rc : -EIO;
	for (size_t i = 0; i < count; i++)
		words[i] = le64toh(words[i]);
	return 0;
}

static int check_sum(struct reader *r, uint64_t sum)
{
	return sum == r->sum ? 0 : refuse(r->state, -EBADMSG, "a checksum is wrong");
}

/* Does it go together? */
static int check_header(struct cs_dm_state *state)
{
	const uint64_t *h = state->header;
	uint64_t unknown = h[WORD_FLAGS] & ~FLAG_WRITTEN;
	struct cs_format_dm_fault fault;

	if (cs_format_dm_layout_init(&state->layout, h[WORD_CHUNK_BYTES], 0, h[WORD_DEVICE_BYTES],
		    h[WORD_ORIGIN_BYTES], &fault))
		return refuse(state, -EBADMSG, "no store is like this");
	for (unsigned i = WORD_RESERVED; i < WORD_CHECKSUM; i++)
		unknown |= h[i];
	if (unknown)
		return refuse(state, -EBADMSG, "it says what is not known here");
	if (!h[WORD_SNAPSHOT_BYTES] || h[WORD_SNAPSHOT_BYTES] > h[WORD_ORIGIN_BYTES] ||
		h[WORD_RECORDS] > state->layout.records ||
		h[WORD_RECORDS] > state->layout.origin_chunks)
		return refuse(state, -EBADMSG, "its numbers do not go together");
	return 0;
}

/* Before anything is set aside for it: is it of these devices? */
static int check_sizes(const struct cs_dm_state *state, const struct cs_dm_import *from)
{
	if (state->header[WORD_DEVICE_BYTES] != cs_dev_size(from->device))
		return refuse(state, -ESTALE, "the device has another length");
	if (state->header[WORD_ORIGIN_BYTES] != cs_dev_size(from->origin))
		return refuse(state, -ESTALE, "the origin has another size");
	return 0;
}

static int get_header(struct reader *r)
{
	uint64_t *h = r->state->header;
	int rc = get(r, h, HEADER_WORDS);

	if (rc)
		return rc;
	if (h[WORD_MAGIC] != MAGIC)
		return refuse(r->state, -EBADMSG, "it is none");
	r->sum = mix(r->sum, h, WORD_CHECKSUM);
	rc = check_sum(r, h[WORD_CHECKSUM]);
	if (rc)
		return rc;
	if (h[WORD_VERSION] != VERSION)
		return refuse(r->state, -EBADMSG, "another version of this library wrote it");
	rc = check_header(r->state);
	return rc ? rc : check_sizes(r->state, r->from);
}

static int load_entries(struct reader *r)
{
	uint64_t chunk;
	int rc = cs_map_load(&r->state->map, r->entries, r->count, &chunk);

	r->count = 0;
	return rc == -EEXIST ? refuse(r->state, -EBADMSG, "a chunk is saved twice") : rc;
}

static bool run_sane(const struct cs_dm_state *state, const struct cowsnap_run *run)
{
	const struct cs_format_dm_layout *l = &state->layout;
	uint64_t stripe = l->area_records + 1;

	if (run->first >= l->origin_chunks || run->count > l->origin_chunks - run->first)
		return false;
	if (run->location < 2 || run->location >= l->chunks ||
		run->count > l->chunks - run->location)
		return false;
	if (!((run->location - 1) % stripe) || run->count > stripe - (run->location - 1) % stripe)
		return false;
	return run->count <= state->header[WORD_RECORDS] - state->records;
}

static int take_run(struct reader *r, const struct cowsnap_run *run)
{
	struct cs_dm_state *state = r->state;
	int rc = 0;

	if (!run_sane(state, run))
		return refuse(state, -EBADMSG, "a run lies outside");
	if (run->location + run->count - 1 > state->highest)
		state->highest = run->location + run->count - 1;
	rc = cs_runs_cover(&state->used, state->highest + 1);
	if (!rc && cs_runs_mark(&state->used, run->location, run->count, true) != run->count)
		rc = refuse(state, -EBADMSG, "a location is used twice");
	if (!rc && r->count + run->count > BATCH_ENTRIES)
		rc = load_entries(r);
	if (rc)
		return rc;
	for (uint64_t i = 0; i < run->count; i++)
		r->entries[r->count++] = (struct cs_map_entry){run->first + i, run->location + i};
	state->records += run->count;
	return 0;
}

/* Returns: 1; 0 at the end; negative errno. */
static int get_part(struct reader *r)
{
	uint64_t runs, *words = r->words;
	int rc = get(r, &runs, 1);

	if (rc)
		return rc;
	if (runs > PART_RUNS)
		return refuse(r->state, -EBADMSG, "a part is too long");
	rc = get(r, words, 2 * runs + 1);
	if (rc)
		return rc;
	r->sum = mix(mix(r->sum, &runs, 1), words, 2 * runs);
	rc = check_sum(r, words[2 * runs]);
	for (uint64_t i = 0; i < runs && !rc; i++) {
		const struct cowsnap_run run = {
			.first = words[2 * i] & ((UINT64_C(1) << CHUNK_BITS) - 1),
			.count = (words[2 * i] >> CHUNK_BITS) + 1,
			.location = words[2 * i + 1],
		};

		rc = take_run(r, &run);
	}
	return rc ? rc : runs != 0;
}

static int get_all(struct reader *r)
{
	int rc = get_header(r);

	if (rc)
		return rc;
	do
		rc = get_part(r);
	while (rc > 0);
	if (!rc)
		rc = load_entries(r);
	if (!rc && r->state->records != r->state->header[WORD_RECORDS])
		rc = refuse(r->state, -EBADMSG, "not all records are in it");
	return rc;
}

static int read_into(struct cs_dm_state *state, const struct cs_dm_import *from)
{
	const struct cowsnap_allocator *alloc = state->base->alloc;
	struct reader r = {.state = state, .from = from};
	int rc = -ENOMEM;

	r.words = cs_alloc(alloc, PART_BYTES);
	r.entries = cs_alloc(alloc, BATCH_ENTRIES * sizeof(*r.entries));
	if (r.words && r.entries)
		rc = get_all(&r);
	cs_free(alloc, r.entries, BATCH_ENTRIES * sizeof(*r.entries));
	cs_free(alloc, r.words, PART_BYTES);
	return rc;
}

int cs_dm_state_read(
	const struct cs_base *base, const struct cs_dm_import *from, struct cs_dm_state **out)
{
	struct cs_dm_state *state = cs_alloc_zeroed(base->alloc, sizeof(*state));
	int rc;

	if (!state)
		return -ENOMEM;
	state->base = base;
	cs_map_init(&state->map, base->alloc);
	cs_runs_init(&state->used, base->alloc);
	rc = read_into(state, from);
	if (rc)
		cs_dm_state_free(state);
	else
		*out = state;
	return rc;
}

void cs_dm_state_free(struct cs_dm_state *state)
{
	const struct cowsnap_allocator *alloc;

	if (!state)
		return;
	alloc = state->base->alloc;
	cs_map_fini(&state->map);
	cs_runs_fini(&state->used);
	cs_free(alloc, state, sizeof(*state));
}

uint64_t cs_dm_state_snapshot_bytes(const struct cs_dm_state *state)
{
	return state->header[WORD_SNAPSHOT_BYTES];
}

bool cs_dm_state_written(const struct cs_dm_state *state)
{
	return state->header[WORD_FLAGS] & FLAG_WRITTEN;
}

/* ---- Import: attaching ----------------------------------------------------------------------- */

static bool all_zero(const uint8_t *bytes, size_t count)
{
	return count == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, count - 1) == 0);
}

/* The block that the next record goes to. */
static int get_tail(struct cs_dm *dm, uint64_t records, uint8_t *block)
{
	uint64_t slots = dm->shape.area_records, bytes = dm->block_bytes, chunk;
	uint64_t at = records % slots * CS_FORMAT_DM_RECORD_BYTES, from = at / bytes * bytes;
	int rc;

	if (!cs_format_dm_area_chunk(&dm->layout, records / slots, &chunk))
		return -ESTALE;
	rc = cs_dev_read(dm->device, block, (chunk << dm->chunk_shift) + from, bytes);
	if (!rc && !all_zero(block + (at - from), bytes - (at - from)))
		rc = -ESTALE;
	return rc;
}

/* The device is locked. */
static int check_device(struct cs_dm *dm, const struct cs_dm_state *state)
{
	uint64_t marks[CS_DM_MARKS], records = state->header[WORD_RECORDS];
	int rc;

	if (dm->header != CS_DM_VALID || dm->generation != state->header[WORD_GENERATION] ||
		cs_dm_chunk_bytes(dm) != state->header[WORD_CHUNK_BYTES] ||
		cs_dev_size(dm->device) != state->header[WORD_DEVICE_BYTES])
		return -ESTALE;
	rc = find_marks(dm, records, marks);
	if (!rc && memcmp(marks, &state->header[WORD_MARKS], sizeof(marks)) != 0)
		rc = -ESTALE;
	return rc ? rc : get_tail(dm, records, dm->header_block);
}

int cs_store_dm_attach_state(
	struct cowsnap_store *store, struct cs_dm_state *state, struct cowsnap_map *map)
{
	struct cs_dm *dm = store->user;
	int rc = check_device(dm, state);

	if (rc == -ESTALE)
		cs_log(dm->base, COWSNAP_LOG_ERROR,
			"store on %s: it is not what it was when its state was written",
			dm->device->name);
	if (rc)
		return rc;
	cs_map_move(map, &state->map);
	cs_mutex_lock(&dm->space_lock);
	dm->freed = state->used;
	cs_mutex_unlock(&dm->space_lock);
	cs_runs_init(&state->used, dm->base->alloc);
	return cs_dm_attached(dm, state->header[WORD_RECORDS], state->highest, dm->header_block);
}
