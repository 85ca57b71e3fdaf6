/* SPDX-License-Identifier: MIT
 *
 * The engines' common part: which of them a copy goes to, and how it is cut into pieces.
 *
 * Invariants: no byte is in two pieces; none is in one that no target without an error wants.
 * Locking: none. Failure: none.
 */
#include "engine.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

struct cs_copier_io cs_copier_read(const struct cowsnap_copy *copy)
{
	return *(const struct cs_copier_io *)copy->words;
}

bool cs_copier_start(struct cowsnap_copier *copier, struct cowsnap_copy *copy, struct cs_task *task)
{
	/* With a queue whose devices are called anyway, buffers of the thread do; only what may
	 * be held back must not hold up the queue. */
	if (task->queue && (!task->queue->blocking || copy->background))
		return cs_engine_queue(copier, copy, task);
	cs_engine_inline(copier, copy);
	return true;
}

/* ---- Pieces ---------------------------------------------------------------------------------- */

void cs_plan_init(struct cs_plan *plan, struct cowsnap_copy *copy)
{
	plan->source = copy->source;
	plan->targets = copy->targets;
	plan->count = copy->count;
	plan->source_bytes = copy->source ? cs_dev_size(copy->source) : 0;
	plan->at = 0;
	plan->ordered = true;
	plan->first = 0;
	plan->align = 1;
	plan->piece_bytes = UINT64_MAX;
	for (size_t i = 0; i < copy->count; i++) {
		struct cowsnap_copy_target *t = &copy->targets[i];

		t->error = 0;
		if (i && t->source_offset < cs_target_end(t - 1))
			plan->ordered = false;
		if (t->device->block_size > plan->align)
			plan->align = t->device->block_size;
	}
}

/* The first byte from @at on that a target still wants. Returns: false if there is none. */
static bool next_wanted(const struct cs_plan *plan, uint64_t at, uint64_t *from)
{
	bool found = false;

	for (size_t i = plan->first; i < plan->count; i++) {
		const struct cowsnap_copy_target *t = &plan->targets[i];
		uint64_t first = t->source_offset > at ? t->source_offset : at;

		if (t->error || first >= cs_target_end(t) || (found && first >= *from))
			continue;
		*from = first;
		found = true;
		if (plan->ordered)
			break;
	}
	return found;
}

bool cs_plan_next(const struct cs_plan *plan, uint64_t *from)
{
	return next_wanted(plan, plan->at, from);
}

/* How far the union goes on from @from without a hole, up to @most bytes. */
static uint64_t wanted_length(const struct cs_plan *plan, uint64_t from, uint64_t most)
{
	uint64_t end = from;
	bool grew;

	do {
		grew = false;
		for (size_t i = plan->first; i < plan->count; i++) {
			const struct cowsnap_copy_target *t = &plan->targets[i];

			if (plan->ordered && t->source_offset > end)
				break;
			if (t->error || t->source_offset > end || cs_target_end(t) <= end)
				continue;
			end = cs_target_end(t);
			grew = !plan->ordered;
		}
	} while (grew && end - from < most);
	return end - from < most ? end - from : most;
}

uint64_t cs_plan_length(const struct cs_plan *plan, uint64_t from)
{
	uint64_t length = wanted_length(plan, from, plan->piece_bytes);
	uint64_t end = (from + length) & ~(plan->align - 1);

	return length == plan->piece_bytes && end > from ? end - from : length;
}

bool cs_copier_all_zero(const void *of, uint64_t count)
{
	const uint8_t *bytes = of;
	uint64_t word;

	if (count < sizeof(word))
		return count == 0 || (!bytes[0] && !memcmp(bytes, bytes + 1, count - 1));
	memcpy(&word, bytes, sizeof(word));
	return !word && !memcmp(bytes, bytes + sizeof(word), count - sizeof(word));
}

/* Is the part that begins at @at, and has the bytes from there to @end before it, zero, and one of
 * those that are looked at? Gets where it ends. */
static bool zero_part(const struct cowsnap_copy_target *t, const uint8_t *bytes, uint64_t at,
	uint64_t end, uint64_t *part_end)
{
	uint64_t i = (at - t->source_offset) / t->part_bytes;
	uint64_t begin = t->source_offset + i * t->part_bytes;

	*part_end = begin + t->part_bytes;
	if (*part_end > cs_target_end(t))
		*part_end = cs_target_end(t);
	return i < 64 && begin == at && *part_end <= end &&
	       cs_copier_all_zero(bytes, *part_end - at);
}

bool cs_target_sift_zeroes(
	const struct cowsnap_copy_target *t, const uint8_t *bytes, uint64_t *from, uint64_t *end)
{
	uint64_t begin = *from, at = *from, stop;

	while (at < *end && zero_part(t, bytes + (at - begin), at, *end, &stop)) {
		*t->zeroes |= UINT64_C(1) << (at - t->source_offset) / t->part_bytes;
		at = stop;
	}
	*from = at;
	for (stop = at; at < *end; at = stop) {
		if (zero_part(t, bytes + (at - begin), at, *end, &stop) && at > *from) {
			*end = at;
			return true;
		}
	}
	return *from < *end;
}

static bool ordered_large(const struct cs_plan *plan)
{
	uint64_t begin = 0, end = 0;

	for (size_t i = 0; i < plan->count; i++) {
		const struct cowsnap_copy_target *t = &plan->targets[i];

		if (t->source_offset != end)
			begin = t->source_offset;
		end = cs_target_end(t);
		if (end - begin > CS_SMALL_BYTES)
			return true;
	}
	return false;
}

bool cs_plan_large(const struct cs_plan *plan)
{
	uint64_t at = 0;

	if (plan->ordered)
		return ordered_large(plan);
	while (next_wanted(plan, at, &at)) {
		uint64_t length = wanted_length(plan, at, CS_SMALL_BYTES + 1);

		if (length > CS_SMALL_BYTES)
			return true;
		at += length;
	}
	return false;
}

void cs_plan_size(struct cs_plan *plan, uint64_t job_bytes, uint64_t room_bytes)
{
	uint64_t most = job_bytes < room_bytes ? job_bytes : room_bytes;

	most &= ~(plan->align - 1);
	plan->piece_bytes = most ? most : plan->align;
	assert(plan->piece_bytes <= room_bytes);
}

/* The end of a source need not be a block of the target: see copier.h. */
uint64_t cs_plan_padding(const struct cs_plan *plan, const struct cowsnap_copy_target *target,
	uint64_t from, uint64_t end)
{
	const struct cowsnap_device *device = target->device;
	uint64_t over = (end - from) & (device->block_size - 1);

	if (!over || end != plan->source_bytes ||
		atomic_load_explicit(&device->claimed, memory_order_relaxed) != CS_DEV_STORE)
		return 0;
	return device->block_size - over;
}

void cs_plan_fail(struct cs_plan *plan, uint64_t from, uint64_t end, int error)
{
	for (size_t i = 0; i < plan->count; i++) {
		struct cowsnap_copy_target *t = &plan->targets[i];

		if (t->source_offset < end && cs_target_end(t) > from)
			cs_target_fails(t, error);
	}
}
