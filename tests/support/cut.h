/* SPDX-License-Identifier: MIT
 *
 * The consistent-cut checker. Writers stamp blocks and note when each write began and ended, on one
 * clock; an image that was taken under load must be a cut of that history.
 *
 * Each block of each origin belongs to one writer, who numbers its writes of it: version 1, 2, ...
 * (0 is the content before the first). An image holds one version of each block. Included are the
 * writes up to that version, left out are the later ones. The image is consistent if
 *
 *   1. each block is whole and holds a version of its own history;
 *   2. no write that is left out ended before one that is included began, on any origin;
 *   3. no write that is left out ended before the take was called;
 *   4. no write that is included began after the take had returned.
 *
 * begin is noted before cowsnap_write_begin() and end after cowsnap_write_end(), so that what the
 * checker calls "before" was before.
 */
#ifndef COWSNAP_TESTS_CUT_H
#define COWSNAP_TESTS_CUT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CUT_BLOCK   512
#define CUT_ORIGINS 3
#define CUT_BLOCKS  128
#define CUT_BYTES   (CUT_BLOCK * CUT_BLOCKS)
#define CUT_NEVER   UINT64_MAX

struct cut_write {
	uint64_t begin;
	uint64_t end;
};

/* Only the writer of a block touches its part; the checker reads after the writers have ended. */
struct cut_block {
	uint32_t version; /* the last one begun */
	struct cut_write *writes;
};

struct cut {
	_Atomic uint64_t clock;
	uint32_t capacity; /* versions of a block */
	struct cut_block block[CUT_ORIGINS][CUT_BLOCKS];
};

/* What was read of the snapshots of one take. */
struct cut_image {
	struct cut_image *next; /* the caller's */
	uint64_t called;        /* clock before and after the take */
	uint64_t returned;
	bool has[CUT_ORIGINS];
	uint32_t version[CUT_ORIGINS][CUT_BLOCKS];
};

void cut_init(struct cut *cut, uint32_t capacity);
void cut_fini(struct cut *cut);
uint64_t cut_now(struct cut *cut);

/* Before the bracket. Returns: false if a block's history is full; choose another. */
bool cut_begin(struct cut *cut, unsigned origin, unsigned first, unsigned count);
/* In the bracket: the new content of these blocks. Without it the write did not happen. */
void cut_stamp(struct cut *cut, unsigned origin, unsigned first, unsigned count, void *data);
/* After the bracket. */
void cut_end(struct cut *cut, unsigned origin, unsigned first, unsigned count);

/* The content of one block in one version. */
void cut_fill(unsigned origin, unsigned block, uint32_t version, void *data);
/* Returns: false if the block is torn or not this block. */
bool cut_decode(unsigned origin, unsigned block, const void *data, uint32_t *version);

/* Returns: NULL, or what is wrong, in @message. */
const char *cut_check(
	const struct cut *cut, const struct cut_image *image, char *message, size_t message_bytes);

#endif
