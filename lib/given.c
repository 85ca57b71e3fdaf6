/* SPDX-License-Identifier: MIT
 *
 * Preimages that the host has at hand: asked for when a run is about to be copied, written to the
 * store from where they lie, or not at all where they are zero.
 *
 * Invariants: the host is asked for what this bracket has claimed, and for nothing else. What it
 * gives stays in place until the bracket has begun, so it is written before the claim ends.
 *
 * Locking: none. Failure: an answer that is not allowed is logged, and the preimage read.
 */
#include "origin.h"

static uint64_t length_of(const struct cs_save *save, const struct cowsnap_run *run, uint32_t shift)
{
	uint64_t from = run->first << shift, length = run->count << shift;
	uint64_t size = cs_origin_size(save->op->origin);

	return length < size - from ? length : size - from;
}

/* Returns: how many chunks the answer is about; 0: it is not allowed. */
static uint64_t chunks_of(const struct cowsnap_preimage_ask *ask, uint64_t asked,
	const struct cowsnap_run *run, uint32_t shift)
{
	if (ask->length == asked)
		return run->count;
	if (ask->length > asked || ask->length & ((UINT64_C(1) << shift) - 1))
		return 0;
	return ask->length >> shift;
}

static void refuse(const struct cs_save *save, const struct cowsnap_preimage_ask *ask, int kind)
{
	cs_log(&save->op->origin->handle.ctx->base, COWSNAP_LOG_ERROR,
		"preimage at %llu: answer %d about %llu bytes is not allowed; it is read",
		(unsigned long long)ask->offset, kind, (unsigned long long)ask->length);
}

/* The last chunk may be cut off by the end of the origin, and a store wants whole blocks: then it
 * is read, which fills it up. */
static bool fits(const struct cs_save_job *job, uint64_t length, uint32_t shift)
{
	uint32_t block = job->head->chain->store->device->block_size;

	return length % block == 0 || length % (UINT64_C(1) << shift) == 0;
}

/* Chunk @i of what was given; the last one may be a part of one. */
static bool zero_chunk(const uint8_t *data, uint64_t i, uint64_t length, uint32_t shift)
{
	uint64_t at = i << shift, rest = length - at, chunk = UINT64_C(1) << shift;

	return cs_copier_all_zero(data + at, rest < chunk ? rest : chunk);
}

/* Zeroes that are given need no space either: cuts the run to chunks of one kind. */
static void sift(struct cs_save_job *job, struct cowsnap_run *run, uint64_t length, uint32_t shift)
{
	const uint8_t *data = job->data;
	uint64_t n = 1;

	job->zero = zero_chunk(data, 0, length, shift);
	if (job->zero)
		job->data = NULL;
	while (n < run->count && zero_chunk(data, n, length, shift) == job->zero)
		n++;
	run->count = n;
}

void cs_save_ask(struct cs_save *save, const struct cs_head *head, struct cs_save_job *job,
	struct cowsnap_run *run)
{
	uint32_t shift = head->chain->store->chunk_shift;
	uint64_t asked = length_of(save, run, shift), chunks;
	struct cowsnap_preimage_ask ask = {.offset = run->first << shift, .length = asked};
	enum cowsnap_preimage_kind kind = save->preimage->get(save->preimage->user, &ask);

	ask.offset = run->first << shift;
	chunks = chunks_of(&ask, asked, run, shift);
	if (!chunks || (unsigned)kind > COWSNAP_PREIMAGE_ZERO ||
		(kind == COWSNAP_PREIMAGE_GIVEN && !ask.data)) {
		refuse(save, &ask, (int)kind);
		return;
	}
	run->count = chunks;
	job->zero = kind == COWSNAP_PREIMAGE_ZERO;
	if (kind != COWSNAP_PREIMAGE_GIVEN)
		return;
	if (fits(job, ask.length, shift))
		job->data = ask.data;
	else if (--run->count)
		job->data = ask.data;
	else
		run->count = 1;
	if (job->data && cs_store_sifts(head->chain->store))
		sift(job, run, ask.length, shift);
}

bool cs_save_spaceless(const struct cs_save_job *job)
{
	const struct cowsnap_store *store = job->head->chain->store;

	return job->zero && (!cs_store_records(store) || store->flags & COWSNAP_STORE_ZEROES);
}

/* ---- Writing what was given ------------------------------------------------------------------ */

#define ALL_IDLE ((UINT32_C(1) << CS_SAVE_GIFTS) - 1)

static enum cs_step give_on(struct cs_save *save);

static struct cs_save_gift *begin_gift(struct cs_save *save)
{
	unsigned i = (unsigned)__builtin_ctz(save->idle_gifts);
	struct cs_save_gift *gift = &save->gift[i];

	save->idle_gifts &= save->idle_gifts - 1;
	gift->save = save;
	gift->job = save->giving++;
	return gift;
}

static void end_gift(struct cs_save_gift *gift, int error)
{
	struct cs_save *save = gift->save;

	save->job[gift->job].error = error;
	save->idle_gifts |= UINT32_C(1) << (gift - save->gift);
}

static void given(struct cowsnap_io *io, int error)
{
	struct cs_save_gift *gift = cs_container_of(io, struct cs_save_gift, io);
	struct cs_save *save = gift->save;

	end_gift(gift, error);
	save->op->task.run(&save->op->task);
}

static void give(struct cs_save *save, const struct cs_save_job *job)
{
	const struct cowsnap_run *run = &save->run[save->giving];
	struct cowsnap_store *store = job->head->chain->store;
	struct cowsnap_queue *queue = save->op->task.queue;
	struct cs_save_gift *gift = begin_gift(save);
	struct cowsnap_io *io = &gift->io;
	int error;

	io->kind = job->zero ? COWSNAP_IO_ZERO : COWSNAP_IO_WRITE;
	io->buffer = (void *)(uintptr_t)job->data;
	io->offset = run->location << store->chunk_shift;
	io->length = job->zero ? run->count << store->chunk_shift
			       : length_of(save, run, store->chunk_shift);
	io->done = given;
	if (!queue || queue->blocking)
		end_gift(gift, cs_dev_call(store->device, io));
	else if (cs_dev_start(store->device, queue, io, &error))
		end_gift(gift, error);
}

/* Starts as many writes as there is room for, side by side. */
static enum cs_step give_on(struct cs_save *save)
{
	while (save->giving < save->count && save->idle_gifts) {
		const struct cs_save_job *job = &save->job[save->giving];

		if (job->data || (job->zero && !cs_save_spaceless(job)))
			give(save, job);
		else
			save->giving++;
	}
	return save->idle_gifts == ALL_IDLE ? save->given(save) : CS_PARK;
}

enum cs_step cs_save_give(struct cs_save *save, enum cs_step (*next)(struct cs_save *save))
{
	save->giving = 0;
	save->idle_gifts = ALL_IDLE;
	save->given = next;
	save->step = give_on;
	return give_on(save);
}
