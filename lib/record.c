/* SPDX-License-Identifier: MIT
 *
 * Recording: the part of a bracket's slow way that copies nothing. Of the chunks of its range it
 * tells those that somebody needs, which save.c copies, from those that have only to be known as
 * changed.
 *
 * Invariants: C5 to C7 of chain.h. A chunk that nobody needs is recorded without a claim and
 * without credits, whatever others do about it meanwhile.
 *
 * Locking: none; the store's read gate, in which nobody waits.
 *
 * Failure: without memory for a bit it is an entry of the map without data; without memory for that
 * either, the difficulty goes into the trouble record, if anybody must know of the change.
 */
#include "origin.h"

void cs_save_note_trouble(
	struct cs_save *save, const struct cs_head *head, uint64_t chunk, int reason)
{
	struct cs_trouble *trouble = &save->trouble;

	if (trouble->head)
		return;
	trouble->head = head;
	trouble->chunk = chunk;
	trouble->reason = reason;
	trouble->no_space = false;
	trouble->unrecorded = false;
}

static void note_unrecorded(
	struct cs_save *save, const struct cs_head *head, uint64_t chunk, int reason)
{
	if (save->trouble.head)
		return;
	cs_save_note_trouble(save, head, chunk, reason);
	save->trouble.unrecorded = true;
}

bool cs_save_needed(const struct cs_head *head, uint64_t chunk)
{
	bool wanted;

	if (cs_snapshot_needs(head->newest, chunk))
		return true;
	wanted = cs_chain_needs(head->chain, head->newest, chunk);
	cs_reclaim_after_reading(head->chain->store);
	return wanted;
}

void cs_save_note_busy(struct cs_save *save, const struct cs_head *head, uint64_t chunk)
{
	if (save->busy_map)
		return;
	save->busy_map = &head->newest->map;
	save->busy_chunk = chunk;
}

static void somebody(void *user, struct cowsnap_snapshot *snapshot)
{
	(void)snapshot;
	*(bool *)user = true;
}

/* Must somebody know that a chunk changes of which nothing says so yet? */
static bool must_be_known(const struct cs_head *head, uint64_t chunk)
{
	struct cs_gate *reads = &head->chain->store->upper->reads;
	struct cs_gate_pass pass;
	bool asked = false;

	cs_gate_enter(reads, &pass);
	cs_chain_each_needing(head->newest, chunk, true, somebody, &asked);
	cs_gate_leave(reads, &pass);
	return asked;
}

/* There is no memory for a bit: an entry of the map without data, if there is for that. Else those
 * who must know of it may lose; what nobody asks for is not recorded. */
static void record_chunk(struct cs_save *save, const struct cs_head *head, uint64_t chunk)
{
	struct cowsnap_run run;
	int rc = cowsnap_map_claim(&head->newest->map, chunk, 1, &run);

	if (rc == COWSNAP_CLAIM_MINE) {
		run.location = COWSNAP_LOCATION_NONE;
		cowsnap_map_publish(&head->newest->map, &run);
	} else if (rc == COWSNAP_CLAIM_BUSY) {
		cs_save_note_busy(save, head, chunk);
	} else if (rc < 0 && must_be_known(head, chunk)) {
		note_unrecorded(save, head, chunk, rc);
	}
}

/* Chunks that nobody needs (C5): bit i of @mask is @first + i, all in one group of 64. Without a
 * claim: whoever has one copies for nobody (C6). */
void cs_save_record(struct cs_save *save, const struct cs_head *head, uint64_t first, uint64_t mask)
{
	unsigned in_group = (unsigned)(first % 64);

	if (save->no_write)
		return;
	if (!cs_bits_set_mask(&head->newest->changed, first - in_group, mask << in_group))
		return;
	for (; mask && !save->trouble.head; mask &= mask - 1)
		record_chunk(save, head, first + (unsigned)__builtin_ctzll(mask));
}

/* Goes to the next chunk of [*chunk, end) that somebody needs and that is not done, and records
 * those that nobody needs on the way. Returns: how many chunks follow without one of these; 0 at
 * the end, or in trouble. Inside the store's read gate. */
static uint64_t next_needed(
	struct cs_save *save, const struct cs_head *head, uint64_t *chunk, uint64_t end)
{
	uint64_t count = 0;

	while (*chunk + count < end && !save->trouble.head) {
		uint64_t at = *chunk + count, open, wanted, rest;
		unsigned n = cs_window_count(at, end), skip = 0, run;

		open = ~cs_snapshot_done_mask(head->newest, at, n) & ~UINT64_C(0) >> (64 - n);
		wanted = open ? cs_chain_needs_mask(head->newest, at, n) & open : 0;
		if (!count)
			skip = wanted ? (unsigned)__builtin_ctzll(wanted) : n;
		rest = open & ~wanted;
		if (skip)
			cs_save_record(save, head, at, rest & ~UINT64_C(0) >> (64 - skip));
		*chunk += skip;
		if (skip == n)
			continue;
		rest >>= skip;
		run = rest ? (unsigned)__builtin_ctzll(rest) : n - skip;
		count += run;
		if (run < n - skip)
			break;
	}
	return save->trouble.head ? 0 : count;
}

uint64_t cs_save_find_needed(
	struct cs_save *save, const struct cs_head *head, uint64_t *chunk, uint64_t end)
{
	struct cowsnap_store *store = head->chain->store;
	struct cs_gate_pass pass;
	uint64_t count;

	cs_gate_enter(&store->upper->reads, &pass);
	count = next_needed(save, head, chunk, end);
	cs_gate_leave(&store->upper->reads, &pass);
	cs_reclaim_after_reading(store);
	return count;
}

bool cs_save_record_unneeded(struct cs_save *save)
{
	save->busy_map = NULL;
	save->trouble.head = NULL;
	for (size_t i = 0; i < save->heads->count; i++) {
		const struct cs_head *head = &save->heads->head[i];
		uint64_t chunk, end;

		if (!cs_save_chain_counts(head->chain))
			continue;
		if (cs_head_done(head, save->op->offset, save->op->length))
			continue;
		cs_save_range(save, head, &chunk, &end);
		if (cs_save_needed_run(save, head, &chunk, end) || save->trouble.head ||
			save->busy_map)
			return false;
	}
	return true;
}
