/* SPDX-License-Identifier: MIT
 *
 * Reading a snapshot, in steps: on the stack of a caller that waits, or in a record of a queue.
 */
#ifndef CS_SNAPSHOT_H
#define CS_SNAPSHOT_H

#include "chain.h"
#include "dev.h"
#include "op.h"

#define CS_READ_PIECES 64u
#define CS_READ_IOS    22u /* so that a record stays below 8 KiB */

struct cs_read_piece {
	uint64_t offset; /* in the snapshot */
	uint64_t length;
	uint64_t location; /* saved: byte offset in the store's device */
	bool saved;
};

struct cs_read {
	struct cowsnap_snapshot *snapshot;
	struct cs_op *op;                           /* NULL: the caller waits */
	struct cowsnap_queue *queue;                /* to submit to; NULL: devices are called */
	enum cs_step (*step)(struct cs_read *read); /* the next one */
	struct cs_gate_pass pass;
	char *buffer;
	uint64_t offset; /* of the whole request */
	uint64_t end;
	uint64_t next; /* what is resolved next */
	uint32_t shift;
	uint32_t started; /* requests of this step */
	uint32_t open;    /* of these */
	int error;
	size_t count;
	size_t looked;  /* pieces that were looked at again */
	uint64_t chunk; /* of the next one: where to go on */
	struct cs_read_piece piece[CS_READ_PIECES];
	struct cowsnap_io io[CS_READ_IOS];
};
_Static_assert(sizeof(struct cs_read) <= 8192, "as the header says of a queue's depth");

/* Can it be read at all? Returns: 0, or the error of the state or the range. */
int cs_read_check(const struct cowsnap_snapshot *snapshot, uint64_t offset, uint64_t length);
/* Enters the read gate. @op: NULL for a caller that waits. */
void cs_read_begin(struct cs_read *read, struct cowsnap_snapshot *snapshot, struct cs_op *op,
	void *buffer, uint64_t offset, uint64_t length);
/* Goes on until it parks, which it does for an operation in a queue only, or is done: then the gate
 * was left, and read->error is set. */
enum cs_step cs_read_run(struct cs_read *read);

#endif
