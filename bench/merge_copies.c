/* SPDX-License-Identifier: MIT */
#include <stdlib.h>

#include "merge_bed.h"

#define COPIES_MAX   256u             /* at a time */
#define COPY_BYTES   UINT64_C(262144) /* of one copy, where chunks lie together */
/* More of these at a time are slower: their buffers leave the caches. */
#define LONG_COPIES  16u
/* What a merge does in one go when it is held back: a mover, or a batch; never longer than this. */
#define MOVER_CHUNKS 16u
#define BATCH_CHUNKS 256u
#define SPELL_NS     UINT64_C(10000000)

/* One copy of the bare copier, again and again. */
struct slot {
	struct merge_copies *copying;
	struct cowsnap_copy copy;
	struct cowsnap_copy_target target;
	struct cowsnap_op op;
	bool busy;
};

struct merge_copies {
	struct merge_queue *queue;
	uint64_t *chunk; /* in order */
	uint64_t *place; /* of each chunk among the saved ones, from 1 on; 0: it is not saved */
	uint64_t next;   /* of chunk */
	unsigned busy;
	int err;
	/* Of one that is held back: */
	bool held;
	uint64_t most;  /* chunks in one spell */
	uint64_t begun; /* in this one */
	uint64_t since_ns, rest_until_ns;
	struct slot slots[COPIES_MAX];
};

static void copied(struct cowsnap_op *op, void *user, int error)
{
	struct slot *slot = user;
	struct merge_copies *c = slot->copying;

	(void)op;
	slot->busy = false;
	c->busy--;
	if (!c->busy && c->held) {
		uint64_t now = bench_now_ns();

		c->rest_until_ns = now + (now - c->since_ns);
		c->begun = 0;
	}
	if (!c->err)
		c->err = error ? error : slot->target.error;
}

/* The chunks in the order in which a merge comes to them: that of the volume, or of the records. */
static void sort(struct merge_copies *c)
{
	const struct merge_bed *bed = c->queue->bed;

	c->place = bench_alloc(bed->chunks, sizeof(*c->place));
	c->chunk = bench_alloc(bed->saved, sizeof(*c->chunk));
	for (uint64_t i = 0; i < bed->saved; i++)
		c->place[bed->order[i]] = i + 1;
	for (uint64_t chunk = 0, n = 0; chunk < bed->chunks; chunk++) {
		if (c->place[chunk])
			c->chunk[n++] = chunk;
	}
	for (uint64_t i = 0; bed->persistent && bed->random && i < bed->saved; i++)
		c->chunk[i] = bed->order[bed->saved - 1 - i];
}

/* Where the store has a chunk: they were saved in their order. */
static uint64_t location(const struct merge_copies *c, uint64_t chunk)
{
	uint64_t i = c->place[chunk] - 1;

	return (c->queue->bed->persistent ? 2 + i + i / 256 : i) * c->queue->bed->chunk_bytes;
}

static int start(struct merge_copies *c, struct slot *slot)
{
	struct merge_bed *bed = c->queue->bed;
	uint64_t count = bed->random ? 1 : COPY_BYTES / bed->chunk_bytes;

	if (count > bed->saved - c->next)
		count = bed->saved - c->next;
	slot->copying = c;
	slot->target = (struct cowsnap_copy_target){.device = bed->devices[0],
		.offset = c->chunk[c->next] * bed->chunk_bytes,
		.source_offset = location(c, c->chunk[c->next]),
		.length = count * bed->chunk_bytes};
	slot->copy.source = bed->devices[1];
	slot->copy.targets = &slot->target;
	slot->copy.count = 1;
	slot->busy = true;
	if (!c->busy && c->held)
		c->since_ns = bench_now_ns();
	c->begun += count;
	c->next += count;
	c->busy++;
	return cowsnap_copier_copy_async(
		bed->copier, c->queue->queue, &slot->copy, &slot->op, copied, slot);
}

/* Half of the time, as cowsnap_ctx_throttle() has it: after each spell a rest that is as long. */
static bool may_start(const struct merge_copies *c)
{
	if (c->next == c->queue->bed->saved)
		return false;
	if (!c->held)
		return true;
	if (!c->busy)
		return bench_now_ns() >= c->rest_until_ns;
	return c->begun < c->most && bench_now_ns() - c->since_ns < SPELL_NS;
}

int merge_copies_run(struct merge_copies *c)
{
	struct merge_queue *queue = c->queue;
	bool small = queue->bed->random && queue->bed->chunk_bytes == 4096;
	unsigned most = small ? COPIES_MAX : LONG_COPIES;
	int err = 0;

	while ((c->next < queue->bed->saved || c->busy) && !err) {
		for (unsigned i = 0; i < most && !err && may_start(c); i++) {
			if (!c->slots[i].busy && start(c, &c->slots[i]) != COWSNAP_PENDING)
				err = -1;
		}
		if (!err)
			err = merge_queue_poll(queue);
	}
	if (!err)
		err = c->err;
	return bench_check(err, "cowsnap_copier_copy_async");
}

struct merge_copies *merge_copies_create(struct merge_queue *queue, bool held)
{
	const struct merge_bed *bed = queue->bed;
	struct merge_copies *c = bench_alloc(1, sizeof(*c));

	c->queue = queue;
	c->held = held;
	c->most = UINT64_MAX;
	if (bed->persistent)
		c->most = BATCH_CHUNKS;
	else if (!bed->simulated)
		c->most = MOVER_CHUNKS;
	sort(c);
	return c;
}

void merge_copies_destroy(struct merge_copies *c)
{
	free(c->chunk);
	free(c->place);
	free(c);
}
