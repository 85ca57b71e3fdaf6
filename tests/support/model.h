/* SPDX-License-Identifier: MIT
 *
 * The reference model: what snapshots mean, said with plain arrays. One full copy of the volume per
 * snapshot, no concurrency, no I/O, no errors. It knows nothing of maps, ghosts and locations: only
 * which chunks of a snapshot a store must hold by now, and which snapshots share one preimage.
 */
#ifndef COWSNAP_TESTS_MODEL_H
#define COWSNAP_TESTS_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MODEL_ORIGINS 3
#define MODEL_STORES  3
#define MODEL_IMAGES  64

enum model_state {
	MODEL_ACTIVE = 1,
	MODEL_INVALID = 2,
	MODEL_DROPPED = 3,
	MODEL_MAP_ONLY = 4,
	MODEL_MERGING = 5,
};

/* What was written to a chunk of the snapshot itself. */
enum model_own {
	MODEL_OWN_NO = 0,
	MODEL_OWN_ZERO, /* zeroes, without space */
	MODEL_OWN_SPACE,
};

struct model_chunk {
	uint32_t copy; /* number of the copy that holds its preimage; 0: still in origin */
	uint8_t own;   /* enum model_own */
	bool spare;    /* the copy may do without space, being of zeroes */
	bool maybe;    /* nobody can tell whether there is a copy; `copy` is 0 */
	bool released;
	bool touched; /* the volume may have changed while this was the newest of its chain */
};

/* A snapshot. Its place in model.image is the order of the takes. */
struct model_image {
	enum model_state state;
	unsigned origin;
	unsigned store;
	uint64_t size_bytes;
	uint64_t known_bytes; /* since the take: what lies behind is something else by now */
	uint64_t chunks;
	uint8_t *data; /* the volume as it was, and what was written to it since */
	struct model_chunk *chunk;
	bool overflowed;
	bool detached;
	bool written; /* its copies may be what was written to it */
	void *user;
};

struct model_origin {
	uint8_t *data; /* what the volume shows, during a merge too */
	uint64_t size_bytes;
	uint64_t room_bytes; /* it may grow to */
};

struct model {
	struct model_origin origin[MODEL_ORIGINS];
	unsigned origins;
	uint64_t chunk_bytes[MODEL_STORES];
	unsigned stores;
	struct model_image *image[MODEL_IMAGES]; /* dropped ones leave at once */
	unsigned images;
	uint32_t copies;          /* the last number that a copy was given */
	bool skips[MODEL_STORES]; /* the store looks for zeroes */
	/* It has one snapshot, and records: what is written to that lies beside its preimages. */
	bool records[MODEL_STORES];
	bool told;   /* the host may tell of zeroes, in the present write */
	bool moving; /* what is saved is not what the volume shows: a merge */
};

void model_init(struct model *m);
void model_fini(struct model *m);
void model_add_origin(struct model *m, uint64_t size_bytes, uint64_t room_bytes);
void model_add_store(struct model *m, uint64_t chunk_bytes);

/* Returns: NULL if there is no room for one more. */
struct model_image *model_take(
	struct model *m, unsigned origin, unsigned store, bool map_only, void *user);
void model_drop(struct model *m, struct model_image *image);
unsigned model_index(const struct model *m, const struct model_image *image);

/* The bytes change. Their preimages must have been saved before. */
void model_write(
	struct model *m, unsigned origin, const void *data, uint64_t offset, uint64_t length);

/* Must this chunk be saved before it changes? */
bool model_needs(const struct model_image *image, uint64_t chunk);
bool model_needs_range(
	const struct model *m, const struct model_image *image, uint64_t offset, uint64_t length);

/* Does any snapshot of a store need this chunk? */
bool model_wanted(const struct model *m, unsigned origin, unsigned store, uint64_t chunk);
/* Copies that a write of a range makes in one store: one a chunk, however many snapshots want it.
 */
uint64_t model_copies_wanted(
	const struct model *m, unsigned origin, unsigned store, uint64_t offset, uint64_t length);
/* One chunk is saved for all that need it. */
void model_save_chunk(struct model *m, unsigned origin, unsigned store, uint64_t chunk);
/* All chunks of a range are saved in every store. */
void model_save(struct model *m, unsigned origin, uint64_t offset, uint64_t length);

/* Is all of a chunk zero now, as far as the origin goes? */
bool model_zero(const struct model *m, unsigned origin, unsigned store, uint64_t chunk);

/* Chunks that a store holds for snapshots that can still be read; with those of invalid ones. */
uint64_t model_held(const struct model *m, unsigned store, bool invalid_too);
/* Those for snapshots that can be read that take space for sure. */
uint64_t model_held_surely(const struct model *m, unsigned store);

/* ---- Written to a snapshot, released, changed ------------------------------------------------ */

/* A write to a snapshot; a discard is one of zeroes, of whole chunks. */
struct model_put {
	const uint8_t *data; /* of @offset; NULL: zeroes */
	uint64_t offset;
	uint64_t end;
};

/* Does one chunk of it want space? */
bool model_put_wants(const struct model *m, const struct model_image *image,
	const struct model_put *put, uint64_t chunk);
void model_put_chunk(
	struct model *m, struct model_image *image, const struct model_put *put, uint64_t chunk);

bool model_any_released(
	const struct model *m, const struct model_image *image, uint64_t offset, uint64_t length);

/* A range of the volume is about to change, or may be said to have changed. */
void model_touch(struct model *m, unsigned origin, uint64_t offset, uint64_t length);
void model_touch_chunk(struct model *m, unsigned origin, unsigned store, uint64_t chunk);
/* May this chunk, of those of the store of @from, be told as changed between the two? @to NULL:
 * now. */
bool model_may_differ(const struct model *m, const struct model_image *from,
	const struct model_image *to, uint64_t chunk);

/* The volume shows what the snapshot has, from now on. */
void model_merge(struct model *m, struct model_image *image);

static inline uint64_t model_first_chunk(const struct model *m, unsigned store, uint64_t offset)
{
	return offset / m->chunk_bytes[store];
}

static inline uint64_t model_last_chunk(
	const struct model *m, unsigned store, uint64_t offset, uint64_t length)
{
	return (offset + length - 1) / m->chunk_bytes[store];
}

#endif
