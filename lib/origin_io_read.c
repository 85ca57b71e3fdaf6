/* SPDX-License-Identifier: MIT
 *
 * Reading the volume as it is. Design in origin_io.c.
 *
 * During a merge the range is read in parts, each as long as it lies together; in a queue some side
 * by side. All of it happens inside the store's read gate: locations stay good. The gate is entered
 * with a record in hand, as in snapshot.c.
 *
 * Locking: none. Failure: the first error ends the read, when all that was submitted has ended.
 */
#include <errno.h>
#include <string.h>

#include "alloc.h"
#include "origin_io.h"
#include "workers.h"

#define REQUESTS 8u

struct reading {
	struct cs_origin_io io;
	char *buffer;
	uint64_t offset; /* of the whole request */
	uint64_t end;
	/* During a merge. */
	uint64_t next;            /* what is read next */
	struct cs_gate_pass pass; /* the store's */
	uint32_t started;         /* requests of this step */
	uint32_t open;            /* of these */
	struct cowsnap_io request[REQUESTS];
};

static struct reading *reading_of(struct cs_origin_io *io)
{
	return cs_container_of(io, struct reading, io);
}

static struct cowsnap_store *store_of(const struct reading *r)
{
	return r->io.merge->snapshot->chain->store;
}

/* One part of a range that lies together. */
struct part {
	uint64_t offset;
	uint64_t length;
	bool unmoved;
	uint64_t location; /* then */
};

/* The first part of [offset, end), within one window. */
static struct part first_part(const struct cs_merge *m, uint64_t offset, uint64_t end)
{
	uint32_t shift = cs_merge_shift(m);
	uint64_t chunk = offset >> shift, locations[64], size = m->snapshot->size_bytes;
	struct part part = {.offset = offset, .length = end - offset};
	uint64_t mask, rest, stop;
	unsigned count, n = 1;

	/* What lies behind the snapshot's end is the origin's, also of its last chunk. */
	if (offset >= size)
		return part;
	if (end > size)
		end = size;
	count = cs_window_count(chunk, ((end - 1) >> shift) + 1);
	mask = cs_merge_unmoved(m, chunk, count, locations);
	part.unmoved = mask & 1;
	part.location = part.unmoved ? locations[0] : 0;
	rest = part.unmoved ? ~mask : mask;
	while (n < count && !(rest >> n & 1) &&
		(!part.unmoved ||
			locations[n] == (part.location > COWSNAP_LOCATION_MAX ? part.location
									      : part.location + n)))
		n++;
	stop = (chunk + n) << shift;
	part.length = (stop < end ? stop : end) - offset;
	return part;
}

static void note_error(struct reading *r, int error)
{
	if (error && !r->io.result)
		r->io.result = error;
}

static void part_read(struct cowsnap_io *request, int error)
{
	struct reading *r = request->user;

	note_error(r, error);
	if (!--r->open)
		r->io.op->task.run(&r->io.op->task);
}

static void submit(
	struct reading *r, struct cowsnap_device *device, void *to, uint64_t from, uint64_t length)
{
	struct cowsnap_io *request = &r->request[r->started++];
	int error;

	request->kind = COWSNAP_IO_READ;
	request->buffer = to;
	request->offset = from;
	request->length = length;
	request->done = part_read;
	request->user = r;
	r->open++;
	if (cs_dev_start(device, r->io.op->task.queue, request, &error)) {
		r->open--;
		note_error(r, error);
	}
}

static void read_part(struct reading *r, const struct part *part)
{
	uint32_t shift = cs_merge_shift(r->io.merge);
	uint64_t inside = part->offset & ((UINT64_C(1) << shift) - 1), from = part->offset;
	struct cowsnap_device *device = r->io.origin->device;
	char *to = r->buffer + (part->offset - r->offset);

	if (part->unmoved && part->location == COWSNAP_LOCATION_ZERO) {
		memset(to, 0, part->length);
		return;
	}
	if (part->unmoved) {
		device = store_of(r)->device;
		from = (part->location << shift) + inside;
	}
	if (cs_origin_io_submits(&r->io))
		submit(r, device, to, from, part->length);
	else
		note_error(r, cs_dev_read(device, to, from, part->length));
}

static enum cs_step leave_store(struct cs_origin_io *io)
{
	struct reading *r = reading_of(io);

	cs_gate_leave(&store_of(r)->upper->reads, &r->pass);
	cs_reclaim_after_reading(store_of(r));
	return cs_origin_io_end(io, io->result);
}

static enum cs_step read_parts(struct cs_origin_io *io)
{
	struct reading *r = reading_of(io);

	if (r->next < r->end && io->op->cancelled)
		note_error(r, -ECANCELED);
	r->started = 0;
	while (r->next < r->end && !io->result && r->started < REQUESTS) {
		struct part part = first_part(io->merge, r->next, r->end);

		read_part(r, &part);
		r->next += part.length;
	}
	io->step = r->next == r->end || io->result ? leave_store : read_parts;
	return r->open ? CS_PARK : CS_GO_ON;
}

static enum cs_step all_read(struct cs_origin_io *io)
{
	return cs_origin_io_end(io, io->result);
}

static enum cs_step entered(struct cs_origin_io *io)
{
	struct reading *r = reading_of(io);

	if (!io->merge)
		return cs_origin_io_request(io, io->origin->device, COWSNAP_IO_READ, r->buffer,
			r->offset, r->end - r->offset, all_read);
	cs_gate_enter(&store_of(r)->upper->reads, &r->pass);
	return read_parts(io);
}

/* ---- The calls ------------------------------------------------------------------------------- */

static void begin(struct reading *r, struct cowsnap_origin *origin, struct cs_op *op, void *buffer,
	uint64_t offset, uint64_t length)
{
	cs_origin_io_init(&r->io, origin, op, entered);
	r->buffer = buffer;
	r->offset = offset;
	r->end = offset + length;
	r->next = offset;
	r->open = 0;
}

int cowsnap_origin_read(
	struct cowsnap_origin *origin, void *buffer, uint64_t offset, uint64_t length)
{
	struct reading r;
	struct cs_op op;
	int rc = cs_origin_io_check(origin, offset, length);

	if (rc)
		return rc;
	cs_op_init(&op, NULL, NULL, NULL, NULL);
	begin(&r, origin, &op, buffer, offset, length);
	return cs_origin_io_wait(&r.io);
}

static enum cs_step run_op(struct cs_op *op)
{
	return cs_origin_io_run(op->io);
}

static void release_op(struct cs_op *op)
{
	struct reading *r = reading_of(op->io);
	const struct cowsnap_allocator *alloc = cs_origin_io_alloc(r->io.origin);

	cs_origin_io_release(&r->io);
	cs_free(alloc, r, sizeof(*r));
}

static const struct cs_op_kind read_kind = {.go_on = run_op, .release = release_op};

int cowsnap_origin_read_async(struct cowsnap_origin *origin, struct cowsnap_queue *queue,
	void *buffer, uint64_t offset, uint64_t length, struct cowsnap_op *host_op,
	cowsnap_done *done, void *user)
{
	struct cs_op *op = cs_op_of(host_op);
	struct cowsnap_queue *to;
	struct reading *r;
	int rc = cs_origin_io_check(origin, offset, length);

	if (!rc)
		rc = cs_workers_route(origin->handle.ctx, queue, done, &to);
	if (rc)
		return rc;
	r = cs_alloc(cs_origin_io_alloc(origin), sizeof(*r));
	if (!r)
		return -ENOMEM;
	cs_op_init(op, to, &read_kind, done, user);
	begin(r, origin, op, buffer, offset, length);
	op->turn.record = r;
	return cs_origin_io_start(&r->io, queue);
}
