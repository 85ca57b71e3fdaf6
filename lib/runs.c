/* SPDX-License-Identifier: MIT
 *
 * Sets of chunk numbers: see runs.h.
 */
#include "runs.h"

#include <errno.h>
#include <string.h>

#include "alloc.h"

#define RUNS_FIRST_WORDS UINT64_C(512)
#define NO_WORD          UINT64_MAX

/* Runs to look at for one that is long enough. */
#define TRIES 16u

static uint64_t segment_words(unsigned k)
{
	return RUNS_FIRST_WORDS << k;
}

/* The first word of segment k. */
static uint64_t segment_start(unsigned k)
{
	return (RUNS_FIRST_WORDS << k) - RUNS_FIRST_WORDS;
}

static unsigned segment_of(uint64_t word)
{
	return 63u - (unsigned)__builtin_clzll(word / RUNS_FIRST_WORDS + 1);
}

static size_t segment_bytes(unsigned k)
{
	return (size_t)(segment_words(k) + segment_words(k) / 64) * sizeof(uint64_t);
}

void cs_runs_init(struct cs_runs *runs, const struct cowsnap_allocator *alloc)
{
	*runs = (struct cs_runs){.alloc = alloc};
}

void cs_runs_fini(struct cs_runs *runs)
{
	for (unsigned k = 0; k < CS_RUNS_SEGMENTS && runs->segment[k].words; k++)
		cs_free(runs->alloc, runs->segment[k].words, segment_bytes(k));
}

int cs_runs_cover(struct cs_runs *runs, uint64_t end)
{
	while (runs->end < end) {
		unsigned k = segment_of(runs->end / 64);
		uint64_t *words = cs_alloc_zeroed(runs->alloc, segment_bytes(k));

		if (!words)
			return -ENOMEM;
		runs->segment[k].words = words;
		runs->segment[k].summary = words + segment_words(k);
		runs->end = segment_start(k + 1) * 64;
	}
	return 0;
}

void cs_runs_clear(struct cs_runs *runs)
{
	for (unsigned k = 0; k < CS_RUNS_SEGMENTS && runs->segment[k].words; k++)
		memset(runs->segment[k].words, 0, segment_bytes(k));
}

/* Writes @bits to a word and keeps invariant 1. */
static void store_word(struct cs_runs *runs, uint64_t word, uint64_t bits)
{
	unsigned k = segment_of(word);
	uint64_t at = word - segment_start(k);
	uint64_t mark = UINT64_C(1) << (at & 63);

	runs->segment[k].words[at] = bits;
	if (bits)
		runs->segment[k].summary[at / 64] |= mark;
	else
		runs->segment[k].summary[at / 64] &= ~mark;
}

static uint64_t load_word(const struct cs_runs *runs, uint64_t word)
{
	unsigned k = segment_of(word);

	return runs->segment[k].words[word - segment_start(k)];
}

/* The first word from @word on that is not zero. */
static uint64_t next_word(const struct cs_runs *runs, uint64_t word)
{
	uint64_t end = runs->end / 64;

	while (word < end) {
		unsigned k = segment_of(word);
		uint64_t at = word - segment_start(k);
		uint64_t marks = runs->segment[k].summary[at / 64] & (UINT64_MAX << (at & 63));

		if (marks)
			return word - (at & 63) + (unsigned)__builtin_ctzll(marks);
		word += 64 - (at & 63);
	}
	return NO_WORD;
}

uint64_t cs_runs_next(const struct cs_runs *runs, uint64_t from)
{
	uint64_t word = from / 64;
	uint64_t bits;

	if (from >= runs->end)
		return CS_RUNS_NONE;
	bits = load_word(runs, word) & (UINT64_MAX << (from & 63));
	if (!bits) {
		word = next_word(runs, word + 1);
		if (word == NO_WORD)
			return CS_RUNS_NONE;
		bits = load_word(runs, word);
	}
	return word * 64 + (unsigned)__builtin_ctzll(bits);
}

uint64_t cs_runs_length(const struct cs_runs *runs, uint64_t first, uint64_t most)
{
	uint64_t at = first;

	while (at < runs->end && at - first < most) {
		uint64_t out = ~load_word(runs, at / 64) >> (at & 63);

		if (out) {
			at += (unsigned)__builtin_ctzll(out);
			break;
		}
		at += 64 - (at & 63);
	}
	return at - first < most ? at - first : most;
}

uint64_t cs_runs_mark(struct cs_runs *runs, uint64_t first, uint64_t count, bool in)
{
	uint64_t end = first + count;
	uint64_t changed = 0;

	while (first < end) {
		uint64_t bits = load_word(runs, first / 64);
		uint64_t n = 64 - (first & 63) < end - first ? 64 - (first & 63) : end - first;
		uint64_t mask = (n == 64 ? UINT64_MAX : (UINT64_C(1) << n) - 1) << (first & 63);

		changed += (unsigned)__builtin_popcountll((in ? ~bits : bits) & mask);
		store_word(runs, first / 64, in ? bits | mask : bits & ~mask);
		first += n;
	}
	return changed;
}

bool cs_runs_add(struct cs_runs *runs, uint64_t number)
{
	uint64_t bits = load_word(runs, number / 64);
	uint64_t bit = UINT64_C(1) << (number & 63);

	if (bits & bit)
		return false;
	store_word(runs, number / 64, bits | bit);
	return true;
}

void cs_runs_prefetch(const struct cs_runs *runs, uint64_t number)
{
	unsigned k = segment_of(number / 64);

	__builtin_prefetch(&runs->segment[k].words[number / 64 - segment_start(k)], 1);
}

void cs_runs_invert(struct cs_runs *runs, uint64_t end)
{
	for (uint64_t word = 0; word < runs->end / 64; word++) {
		uint64_t below = word * 64 < end ? end - word * 64 : 0;
		uint64_t mask = below >= 64 ? UINT64_MAX : (UINT64_C(1) << below) - 1;

		store_word(runs, word, ~load_word(runs, word) & mask);
	}
}

uint64_t cs_runs_pick(const struct cs_runs *runs, uint64_t from, uint64_t want, uint64_t *count)
{
	uint64_t at = from, best = CS_RUNS_NONE;
	bool wrapped = false;

	*count = 0;
	for (unsigned i = 0; i < TRIES && *count < want; i++) {
		uint64_t first = cs_runs_next(runs, at);
		uint64_t n;

		if (first == CS_RUNS_NONE && !wrapped) {
			wrapped = true;
			first = cs_runs_next(runs, 0);
		}
		if (first == CS_RUNS_NONE || (wrapped && first >= from && best != CS_RUNS_NONE))
			break;
		n = cs_runs_length(runs, first, want);
		if (n > *count) {
			*count = n;
			best = first;
		}
		at = first + n;
	}
	return best;
}
