/* SPDX-License-Identifier: MIT
 *
 * What is a hole of the file: for clients, as base:allocation, which parts of a range are data and
 * which are holes that read as zeroes; and for the library, which preimages it need not read.
 * Calling data what is a hole costs time; calling a hole what is data costs the data. So in doubt
 * it is data.
 */
#define NBDKIT_API_VERSION 2
#include "volume.h"

#include <errno.h>
#include <nbdkit-plugin.h>
#include <stdatomic.h>
#include <unistd.h>

/* Answers may be shorter than the question: a client asks on. It bounds the time of one request on
 * a fragmented volume. */
static const unsigned int pieces_max = 4096;

struct piece {
	uint64_t length;
	bool hole;
};

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* What the file has at an offset, no further than length. Only file systems that know holes report
 * them; everything else is one piece of data. */
static struct piece file_piece(int fd, uint64_t offset, uint64_t length)
{
	struct piece piece = {.length = length, .hole = false};
	off_t data = lseek(fd, (off_t)offset, SEEK_DATA);
	off_t hole;

	if (data < 0 && errno == ENXIO) {
		piece.hole = true;
		return piece;
	}
	if (data < 0)
		return piece;
	if ((uint64_t)data > offset) {
		piece.hole = true;
		piece.length = min_u64(length, (uint64_t)data - offset);
		return piece;
	}
	hole = lseek(fd, (off_t)offset, SEEK_HOLE);
	if (hole > (off_t)offset)
		piece.length = min_u64(length, (uint64_t)hole - offset);
	return piece;
}

static int add(struct nbdkit_extents *extents, uint64_t offset, struct piece piece)
{
	uint32_t type = piece.hole ? NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO : 0;

	return nbdkit_add_extent(extents, offset, piece.length, type) == 0 ? 0 : -errno;
}

int volume_extents(struct volume *volume, uint64_t offset, uint64_t length, bool one,
	struct nbdkit_extents *extents)
{
	uint64_t end = offset + length;
	unsigned int pieces = one ? 1 : pieces_max;

	/* While a snapshot is merged the file alone does not tell. */
	if (atomic_load(&volume->merging))
		return add(extents, offset, (struct piece){.length = length});
	while (offset < end && pieces-- > 0) {
		struct piece piece = file_piece(volume->fd, offset, end - offset);
		int error = add(extents, offset, piece);

		if (error != 0)
			return error;
		offset += piece.length;
	}
	return 0;
}

/* What was released is gone, which is no hole; its end is not known, but it is one of a chunk. */
static struct piece released_piece(const struct volume *volume, uint64_t offset, uint64_t length)
{
	uint64_t chunk = cowsnap_store_chunk_size(volume->store);

	return (struct piece){.length = min_u64(length, chunk - offset % chunk)};
}

/*
 * What a snapshot has at an offset. A preimage in the store is data. For what is still in the
 * origin the file knows, but a writer may change the file between the question to the snapshot and
 * the question to the file: its discard would make a hole of what the snapshot has as data. So the
 * snapshot is asked again afterwards, in the way it reads data itself. What is still not saved then
 * had not been changed when the file was asked, as the preimage is published before the write. A
 * hole is reported only as far as that holds.
 */
static int snapshot_piece(struct volume *volume, struct cowsnap_snapshot *snapshot, uint64_t offset,
	uint64_t length, struct piece *piece)
{
	struct cowsnap_extent extent;
	int error = cowsnap_snapshot_extent(snapshot, offset, length, &extent);

	if (error == -ENODATA) {
		*piece = released_piece(volume, offset, length);
		return 0;
	}
	if (error != 0)
		return error;
	piece->length = extent.length;
	piece->hole = false;
	if (extent.saved)
		return 0;
	*piece = file_piece(volume->fd, offset, extent.length);
	if (!piece->hole)
		return 0;
	atomic_thread_fence(memory_order_seq_cst); /* the file's answer before the second look */
	error = cowsnap_snapshot_extent(snapshot, offset, piece->length, &extent);
	if (error == -ENODATA) {
		piece->hole = false;
		return 0;
	}
	if (error != 0)
		return error;
	piece->length = extent.length;
	piece->hole = !extent.saved;
	return 0;
}

int snapshot_extents(struct volume *volume, struct cowsnap_snapshot *snapshot, uint64_t offset,
	uint64_t length, bool one, struct nbdkit_extents *extents)
{
	uint64_t end = offset + length;
	unsigned int pieces = one ? 1 : pieces_max;

	while (offset < end && pieces-- > 0) {
		struct piece piece;
		int error = snapshot_piece(volume, snapshot, offset, end - offset, &piece);

		if (error == 0)
			error = add(extents, offset, piece);
		if (error != 0)
			return error;
		offset += piece.length;
	}
	return 0;
}

/*
 * What is asked for is about to be copied by this thread, and nobody changes it before its bracket
 * has begun. So what the file says stays true; other parts of the file may change meanwhile.
 */
enum cowsnap_preimage_kind volume_preimage(void *user, struct cowsnap_preimage_ask *ask)
{
	const struct volume *volume = user;
	uint64_t chunk = cowsnap_store_chunk_size(volume->store);
	struct piece piece;

	if (!atomic_load_explicit(&volume->has_holes, memory_order_relaxed))
		return COWSNAP_PREIMAGE_READ;
	piece = file_piece(volume->fd, ask->offset, ask->length);
	if (piece.length >= ask->length)
		return piece.hole ? COWSNAP_PREIMAGE_ZERO : COWSNAP_PREIMAGE_READ;
	/* A chunk of both is read, and so is each that has some data. */
	if (piece.hole && piece.length >= chunk) {
		ask->length = piece.length - piece.length % chunk;
		return COWSNAP_PREIMAGE_ZERO;
	}
	piece.length = piece.hole ? chunk : piece.length + chunk - 1;
	ask->length = min_u64(ask->length, piece.length - piece.length % chunk);
	return COWSNAP_PREIMAGE_READ;
}
