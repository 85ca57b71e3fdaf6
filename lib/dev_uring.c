/* SPDX-License-Identifier: MIT
 *
 * A file or block device that is submitted to, through io_uring.
 *
 * A queue has one *ring* for all such devices, made when first needed: a source of the queue. A
 * request is put into the ring when it is submitted, and handed to the kernel with all others when
 * the poll ends. One request may take several turns: what is short goes on, what is not aligned
 * goes through a bounce buffer, what the kernel cannot do is done in another way.
 *
 * Neither files nor buffers are registered with the ring, and the kernel does not link a copy's
 * read and write: docs/adr/0006-linked-copies.md says why.
 *
 * Invariants:
 *  R1 A request is in the kernel, in the ring, or in `overflow`; its words for the device say what
 *     it is at.
 *  R2 After a poll, what is not handed over has `retry` posted for it.
 *
 * Locking: none; a ring is the polling thread's.
 *
 * Failure: where the kernel forbids rings, a device is a plain file device. A queue that cannot
 * have one calls the file instead. A request that the kernel gave up because its thread ended
 * begins anew.
 */
#include "dev_file.h"

#include <errno.h>
#include <string.h>

#if CS_WITH_URING

#include <fcntl.h>
#include <liburing.h>
#include <linux/falloc.h>

#include "alloc.h"

#define RING_ENTRIES_MIN 32u
#define RING_ENTRIES_MAX 512u
#define BATCH            64u
#define BATCHES          16u                 /* of one poll */
#define MOVE_BYTES       (UINT64_C(1) << 30) /* one read or write of the kernel's */

/* With these come all operations that are used here. */
#define FEATURES (IORING_FEAT_NODROP | IORING_FEAT_RW_CUR_POS)

struct ring {
	struct cs_queue_source source;
	struct cowsnap_queue *queue;
	struct io_uring uring;
	bool works;
	bool retrying;               /* `retry` is posted */
	struct cs_task retry;        /* only to have the queue polled again */
	struct cowsnap_io *overflow; /* what found no room */
	struct cowsnap_io **overflow_last;
};

enum step {
	STEP_MOVE,       /* a read or write */
	STEP_THROUGH,    /* a write through the cache */
	STEP_SYNC,       /* fdatasync */
	STEP_PUNCH,      /* a hole */
	STEP_ZERO_RANGE, /* where there are no holes */
};

/* In the words for the device. */
struct request {
	struct cowsnap_io *next; /* in overflow */
	struct cs_file *file;
	uint64_t done; /* bytes */
	uint8_t *bounce;
	uint32_t bounce_bytes;
	uint32_t step;
};
_Static_assert(
	sizeof(struct request) <= sizeof(((struct cowsnap_io *)NULL)->device_words), "it fits");

static const char ring_mark; /* the ring is found by it */

static struct request *request_of(struct cowsnap_io *io)
{
	return (struct request *)io->device_words;
}

/* ---- What the kernel is told ----------------------------------------------------------------- */

static bool misaligned(const struct cs_file *f, const struct cowsnap_io *io)
{
	return ((io->offset | io->length) & (f->block_size - 1)) ||
	       ((uintptr_t)io->buffer & (f->memory_align - 1));
}

static void prepare_read(struct io_uring_sqe *sqe, const struct cowsnap_io *io)
{
	const struct request *r = (const struct request *)io->device_words;
	uint64_t offset = io->offset + r->done, left = io->length - r->done;
	uint64_t mask = r->file->block_size - 1, skip = offset & mask;
	uint64_t ask = (skip + left + mask) & ~mask;

	if (!r->bounce) {
		left = left < MOVE_BYTES ? left : MOVE_BYTES;
		io_uring_prep_read(
			sqe, r->file->fd, (uint8_t *)io->buffer + r->done, (unsigned)left, offset);
		return;
	}
	ask = ask < r->bounce_bytes ? ask : r->bounce_bytes;
	io_uring_prep_read(sqe, r->file->fd, r->bounce, (unsigned)ask, offset - skip);
}

static void prepare_write(struct io_uring_sqe *sqe, const struct cowsnap_io *io)
{
	const struct request *r = (const struct request *)io->device_words;
	const uint8_t *from = (const uint8_t *)io->buffer + r->done;
	uint64_t left = io->length - r->done;

	if (r->bounce) {
		left = left < r->bounce_bytes ? left : r->bounce_bytes;
		memcpy(r->bounce, from, left);
		from = r->bounce;
	}
	left = left < MOVE_BYTES ? left : MOVE_BYTES;
	io_uring_prep_write(sqe, r->file->fd, from, (unsigned)left, io->offset + r->done);
	if (r->step == STEP_THROUGH)
		sqe->rw_flags = RWF_DSYNC;
}

static void prepare_hole(struct io_uring_sqe *sqe, const struct cowsnap_io *io, int mode)
{
	const struct request *r = (const struct request *)io->device_words;
	uint64_t mask = r->file->sector_size - 1;
	uint64_t first = (io->offset + mask) & ~mask;
	uint64_t end = (io->offset + io->length) & ~mask;

	io_uring_prep_fallocate(
		sqe, r->file->fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)first, (off_t)(end - first));
}

static void prepare(struct io_uring_sqe *sqe, struct cowsnap_io *io)
{
	const struct request *r = request_of(io);

	switch ((enum step)r->step) {
	case STEP_MOVE:
	case STEP_THROUGH:
		if (io->kind == COWSNAP_IO_READ)
			prepare_read(sqe, io);
		else
			prepare_write(sqe, io);
		break;
	case STEP_SYNC:
		io_uring_prep_fsync(sqe, r->file->fd, IORING_FSYNC_DATASYNC);
		break;
	case STEP_PUNCH:
		prepare_hole(sqe, io, FALLOC_FL_PUNCH_HOLE);
		break;
	case STEP_ZERO_RANGE:
		prepare_hole(sqe, io, FALLOC_FL_ZERO_RANGE);
		break;
	}
	io_uring_sqe_set_data(sqe, io);
}

/* ---- What it says ---------------------------------------------------------------------------- */

/* Returns: how many bytes of the caller's a read or write has moved. */
static uint64_t gained(struct cowsnap_io *io, uint64_t moved)
{
	struct request *r = request_of(io);
	uint64_t offset = io->offset + r->done, left = io->length - r->done;
	uint64_t skip = offset & (r->file->block_size - 1);

	if (!r->bounce || io->kind != COWSNAP_IO_READ)
		return moved;
	if (moved <= skip)
		return 0;
	moved = moved - skip < left ? moved - skip : left;
	memcpy((uint8_t *)io->buffer + r->done, r->bounce + skip, moved);
	return moved;
}

/* Both return true if the request takes another turn; else *@error is its end. */
static bool move_goes_on(struct cowsnap_io *io, int result, int *error)
{
	struct request *r = request_of(io);
	uint64_t moved;

	*error = result;
	if (result < 0)
		return false;
	moved = gained(io, (uint64_t)result);
	*error = moved ? 0 : cs_file_ended(r->file);
	if (!moved)
		return false;
	r->done += moved;
	if (r->done < io->length)
		return true;
	r->step = STEP_SYNC;
	return io->kind == COWSNAP_IO_WRITE_DURABLE;
}

static bool goes_on(struct cowsnap_io *io, int result, int *error)
{
	struct request *r = request_of(io);

	/* Cancelled: the thread that handed it over has ended. */
	if (result == -EINTR || result == -EAGAIN || result == -ECANCELED)
		return true;
	*error = result;
	switch ((enum step)r->step) {
	case STEP_MOVE:
		return move_goes_on(io, result, error);
	case STEP_THROUGH:
		if (result >= 0 && (uint64_t)result == io->length)
			*error = 0;
		else if (result >= 0 || result == -EOPNOTSUPP)
			r->step = STEP_MOVE; /* part of it, or an old kernel */
		return r->step == STEP_MOVE;
	case STEP_SYNC:
		if (!result)
			*error = cs_file_flushed(r->file);
		return false;
	case STEP_PUNCH:
		if (result != -EOPNOTSUPP)
			return false;
		/* A discard is advice: nothing is lost where nobody takes it. */
		*error = 0;
		r->step = STEP_ZERO_RANGE;
		return io->kind == COWSNAP_IO_ZERO;
	case STEP_ZERO_RANGE:
		return false;
	}
	return false;
}

/* What is left to do at the end. Returns: the error. */
static int finish(struct cowsnap_io *io, int error)
{
	struct request *r = request_of(io);

	cs_free(r->file->base->alloc, r->bounce, r->bounce_bytes);
	if (io->kind == COWSNAP_IO_WRITE_DURABLE)
		return cs_file_written_through(r->file, error);
	return error;
}

/* ---- The ring -------------------------------------------------------------------------------- */

static void retry_done(struct cs_task *task)
{
	cs_container_of(task, struct ring, retry)->retrying = false;
}

/* Returns: false if the kernel takes no more now. */
static bool hand_over(struct ring *ring)
{
	int rc;

	do {
		rc = io_uring_submit(&ring->uring);
	} while (rc == -EINTR);
	return rc > 0;
}

static void put(struct ring *ring, struct cowsnap_io *io)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->uring);

	if (cs_unlikely(!sqe) && hand_over(ring))
		sqe = io_uring_get_sqe(&ring->uring);
	if (cs_likely(sqe)) {
		prepare(sqe, io);
	} else {
		request_of(io)->next = NULL;
		*ring->overflow_last = io;
		ring->overflow_last = &request_of(io)->next;
	}
	cs_queue_touch(ring->queue);
}

static void put_overflow(struct ring *ring)
{
	struct io_uring_sqe *sqe;

	while (ring->overflow && (sqe = io_uring_get_sqe(&ring->uring))) {
		struct cowsnap_io *io = ring->overflow;

		ring->overflow = request_of(io)->next;
		if (!ring->overflow)
			ring->overflow_last = &ring->overflow;
		prepare(sqe, io);
	}
}

static void ring_kick(struct cs_queue_source *source)
{
	struct ring *ring = cs_container_of(source, struct ring, source);

	if (!ring->works)
		return;
	for (;;) {
		put_overflow(ring);
		if (!io_uring_sq_ready(&ring->uring))
			return;
		if (!hand_over(ring))
			break;
	}
	if (ring->retrying)
		return;
	ring->retrying = true;
	cs_queue_post(ring->queue, &ring->retry);
}

/* Whole batches are taken out before anybody is called, who may put more in. */
static unsigned take_batch(struct ring *ring, struct cowsnap_io **ios, int *results)
{
	struct io_uring_cqe *cqes[BATCH];
	unsigned count = io_uring_peek_batch_cqe(&ring->uring, cqes, BATCH);

	for (unsigned i = 0; i < count; i++) {
		ios[i] = io_uring_cqe_get_data(cqes[i]);
		results[i] = cqes[i]->res;
	}
	io_uring_cq_advance(&ring->uring, count);
	return count;
}

static unsigned ring_poll(struct cs_queue_source *source)
{
	struct ring *ring = cs_container_of(source, struct ring, source);
	struct cowsnap_io *ios[BATCH];
	int results[BATCH];
	unsigned count = ring->works ? BATCH : 0, total = 0;

	for (unsigned n = 0; n < BATCHES && count == BATCH; n++) {
		count = take_batch(ring, ios, results);
		for (unsigned i = 0; i < count; i++) {
			int error;

			if (goes_on(ios[i], results[i], &error))
				put(ring, ios[i]);
			else
				cs_io_finish(ios[i], finish(ios[i], error));
		}
		total += count;
	}
	return total;
}

static void ring_close(struct cs_queue_source *source)
{
	struct ring *ring = cs_container_of(source, struct ring, source);

	if (ring->works)
		io_uring_queue_exit(&ring->uring);
	cs_free(ring->queue->base->alloc, ring, sizeof(*ring));
}

static int set_up(struct io_uring *uring, unsigned entries)
{
	struct io_uring_params params = {
		.flags = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP, .cq_entries = 4 * entries};
	int rc = io_uring_queue_init_params(entries, uring, &params);

	if (rc)
		return rc;
	if ((params.features & FEATURES) == FEATURES)
		return 0;
	io_uring_queue_exit(uring);
	return -ENOSYS;
}

static void log_none(const struct cs_base *base, const char *whose, int error)
{
	char text[64];

	cs_log(base, COWSNAP_LOG_WARNING, "%s: no io_uring, it reads and writes instead: %s", whose,
		strerror_r(-error, text, sizeof(text)));
}

static int open_ring(struct ring *ring)
{
	unsigned entries = RING_ENTRIES_MIN;
	int rc;

	while (entries < RING_ENTRIES_MAX && entries < 2 * ring->queue->depth)
		entries *= 2;
	rc = set_up(&ring->uring, entries);
	if (rc)
		return rc;
	ring->source.fd = ring->uring.ring_fd;
	rc = cs_queue_add_source(ring->queue, &ring->source);
	if (rc) {
		io_uring_queue_exit(&ring->uring);
		ring->source.fd = -1;
	}
	return rc;
}

/* The queue's; NULL: it can have none. */
static struct ring *ring_of(struct cowsnap_queue *queue)
{
	struct cs_queue_source *source = cs_queue_find_source(queue, &ring_mark);
	struct ring *ring;
	int rc;

	if (cs_likely(source)) {
		ring = cs_container_of(source, struct ring, source);
		return ring->works ? ring : NULL;
	}
	ring = cs_alloc_zeroed(queue->base->alloc, sizeof(*ring));
	if (!ring)
		return NULL;
	ring->queue = queue;
	ring->overflow_last = &ring->overflow;
	cs_task_init(&ring->retry, queue, retry_done);
	ring->source.owner = &ring_mark;
	ring->source.fd = -1;
	ring->source.poll = ring_poll;
	ring->source.kick = ring_kick;
	ring->source.close = ring_close;
	rc = open_ring(ring);
	ring->works = !rc;
	if (!rc)
		return ring;
	log_none(queue->base, "queue", rc);
	/* So that it is not tried again; without a descriptor it cannot fail. */
	cs_queue_add_source(queue, &ring->source);
	return NULL;
}

/* ---- The device ------------------------------------------------------------------------------ */

/* What the request begins with. Returns: true if it has ended with *@error. */
static bool begin(struct cs_file *f, struct cowsnap_io *io, int *error)
{
	struct request *r = request_of(io);
	uint64_t mask = f->sector_size - 1, bytes;

	*r = (struct request){.file = f, .step = STEP_MOVE};
	*error = 0;
	switch (io->kind) {
	case COWSNAP_IO_READ:
	case COWSNAP_IO_WRITE:
	case COWSNAP_IO_WRITE_DURABLE:
		break;
	case COWSNAP_IO_FLUSH:
		r->step = STEP_SYNC;
		return false;
	case COWSNAP_IO_ZERO:
		r->step = STEP_PUNCH;
		*error = (io->offset | io->length) & mask ? -EOPNOTSUPP : 0;
		return *error;
	case COWSNAP_IO_DISCARD:
		r->step = STEP_PUNCH;
		return ((io->offset + mask) & ~mask) >= ((io->offset + io->length) & ~mask);
	}
	if (cs_likely(!misaligned(f, io))) {
		if (io->kind == COWSNAP_IO_WRITE_DURABLE)
			r->step = STEP_THROUGH;
		return false;
	}
	bytes = io->length + 2 * (uint64_t)f->block_size;
	bytes = (bytes < CS_FILE_BOUNCE_BYTES ? bytes : CS_FILE_BOUNCE_BYTES) &
		~(uint64_t)(f->block_size - 1);
	r->bounce = cs_alloc_aligned(f->base->alloc, bytes, CS_FILE_BOUNCE_ALIGN);
	r->bounce_bytes = (uint32_t)bytes;
	*error = r->bounce ? 0 : -ENOMEM;
	return *error;
}

static void uring_submit(void *user, struct cowsnap_io *io)
{
	struct cs_file *f = user;
	struct ring *ring = ring_of(io->queue);
	int error;

	if (cs_unlikely(!ring))
		cowsnap_io_complete(io, cs_file_call(f, io));
	else if (cs_unlikely(begin(f, io, &error)))
		cowsnap_io_complete(io, error);
	else
		put(ring, io);
}

static int forbidden(void)
{
	struct io_uring uring;
	int rc = set_up(&uring, 1);

	if (!rc)
		io_uring_queue_exit(&uring);
	return rc;
}

int cs_dev_uring(const struct cs_base *base, const char *path,
	const struct cowsnap_file_options *options, struct cowsnap_device **device)
{
	int why = forbidden();
	int rc = cs_file_open(base, path, options, why ? NULL : uring_submit, device);

	if (why && !rc)
		log_none(base, (*device)->name, why);
	return rc;
}

#else /* CS_WITH_URING */

int cs_dev_uring(const struct cs_base *base, const char *path,
	const struct cowsnap_file_options *options, struct cowsnap_device **device)
{
	int rc = cs_dev_file(base, path, options, device);

	if (!rc)
		cs_log(base, COWSNAP_LOG_WARNING,
			"%s: no io_uring, it reads and writes instead: built without it",
			(*device)->name);
	return rc;
}

#endif
