/* SPDX-License-Identifier: MIT
 *
 * What nbdkit tells clients as base:allocation: which parts of a range are data and which are
 * holes that read as zeroes. Calling data what is a hole costs a client time; calling a hole what
 * is data costs it the data. So in doubt it is data.
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

	while (offset < end && pieces-- > 0) {
		struct piece piece = file_piece(volume->fd, offset, end - offset);
		int error = add(extents, offset, piece);

		if (error != 0)
			return error;
		offset += piece.length;
	}
	return 0;
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
