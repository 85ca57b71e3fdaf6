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
};

/* A snapshot. Its place in model.image is the order of the takes. */
struct model_image {
	enum model_state state;
	unsigned origin;
	unsigned store;
	uint64_t chunks;
	uint8_t *data; /* the volume as it was */
	uint32_t *
		copy; /* by chunk: number of the copy that holds its preimage; 0: still in origin */
	bool *spare;  /* by chunk: the copy may do without space, being of zeroes */
	void *user;
};

struct model_origin {
	uint8_t *data;
	uint64_t size_bytes;
};

struct model {
	struct model_origin origin[MODEL_ORIGINS];
	unsigned origins;
	uint64_t chunk_bytes[MODEL_STORES];
	unsigned stores;
	struct model_image *image[MODEL_IMAGES]; /* dropped ones leave at once */
	unsigned images;
	uint32_t copies;          /* how many preimages were ever saved */
	bool skips[MODEL_STORES]; /* the store looks for zeroes */
	bool told;                /* the host may tell of zeroes, in the present write */
};

void model_init(struct model *m);
void model_fini(struct model *m);
void model_add_origin(struct model *m, uint64_t size_bytes);
void model_add_store(struct model *m, uint64_t chunk_bytes);

/* Returns: NULL if there is no room for one more. */
struct model_image *model_take(struct model *m, unsigned origin, unsigned store, void *user);
void model_drop(struct model *m, struct model_image *image);

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

/* Preimages that a store holds for snapshots that can still be read; with those of invalid ones. */
uint64_t model_held(const struct model *m, unsigned store, bool invalid_too);
/* Those for snapshots that can be read that take space for sure. */
uint64_t model_held_surely(const struct model *m, unsigned store);

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
