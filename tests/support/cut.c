/* SPDX-License-Identifier: MIT */
#include "support/cut.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORDS (CUT_BLOCK / sizeof(uint64_t))

void cut_init(struct cut *cut, uint32_t capacity)
{
	memset(cut, 0, sizeof(*cut));
	cut->capacity = capacity;
	for (unsigned o = 0; o < CUT_ORIGINS; o++) {
		for (unsigned b = 0; b < CUT_BLOCKS; b++) {
			struct cut_block *block = &cut->block[o][b];

			block->writes = calloc(capacity + 1, sizeof(*block->writes));
			if (!block->writes)
				abort();
		}
	}
}

void cut_fini(struct cut *cut)
{
	for (unsigned o = 0; o < CUT_ORIGINS; o++) {
		for (unsigned b = 0; b < CUT_BLOCKS; b++)
			free(cut->block[o][b].writes);
	}
}

/* Sequentially consistent: one order that all threads agree on is what a clock is. */
uint64_t cut_now(struct cut *cut)
{
	return atomic_fetch_add(&cut->clock, 1) + 1;
}

bool cut_begin(struct cut *cut, unsigned origin, unsigned first, unsigned count)
{
	struct cut_block *block = &cut->block[origin][first];
	uint64_t now;

	for (unsigned i = 0; i < count; i++) {
		if (block[i].version == cut->capacity)
			return false;
	}
	now = cut_now(cut);
	for (unsigned i = 0; i < count; i++) {
		block[i].writes[block[i].version + 1].begin = now;
		block[i].writes[block[i].version + 1].end = CUT_NEVER;
	}
	return true;
}

static uint64_t mix(unsigned origin, unsigned block, uint32_t version, uint64_t at)
{
	uint64_t z = version + ((uint64_t)block << 32) + ((uint64_t)origin << 48) +
		     (at + 1) * UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 29)) * UINT64_C(0xbf58476d1ce4e5b9);
	return z ^ (z >> 32);
}

void cut_fill(unsigned origin, unsigned block, uint32_t version, void *data)
{
	uint64_t words[WORDS];

	words[0] = version;
	for (uint64_t i = 1; i < WORDS; i++)
		words[i] = mix(origin, block, version, i);
	memcpy(data, words, sizeof(words));
}

bool cut_decode(unsigned origin, unsigned block, const void *data, uint32_t *version)
{
	uint64_t words[WORDS];

	memcpy(words, data, sizeof(words));
	*version = (uint32_t)words[0];
	for (uint64_t i = 1; i < WORDS; i++) {
		if (words[i] != mix(origin, block, *version, i))
			return false;
	}
	return words[0] == *version;
}

void cut_stamp(struct cut *cut, unsigned origin, unsigned first, unsigned count, void *data)
{
	for (unsigned i = 0; i < count; i++) {
		uint32_t version = ++cut->block[origin][first + i].version;

		cut_fill(origin, first + i, version, (char *)data + (size_t)i * CUT_BLOCK);
	}
}

void cut_end(struct cut *cut, unsigned origin, unsigned first, unsigned count)
{
	uint64_t now = cut_now(cut);

	for (unsigned i = 0; i < count; i++) {
		struct cut_block *block = &cut->block[origin][first + i];

		block->writes[block->version].end = now;
	}
}

/* The moment that the included writes need: the latest begin of them, or the call of the take. */
static uint64_t needed_moment(const struct cut *cut, const struct cut_image *image)
{
	uint64_t moment = image->called;

	for (unsigned o = 0; o < CUT_ORIGINS; o++) {
		for (unsigned b = 0; image->has[o] && b < CUT_BLOCKS; b++) {
			uint64_t begin = cut->block[o][b].writes[image->version[o][b]].begin;

			if (begin > moment)
				moment = begin;
		}
	}
	return moment;
}

static const char *check_block(const struct cut *cut, const struct cut_image *image, unsigned o,
	unsigned b, uint64_t moment, char *message, size_t message_bytes)
{
	const struct cut_block *block = &cut->block[o][b];
	uint32_t version = image->version[o][b];

	if (version > block->version) {
		snprintf(message, message_bytes, "origin %u block %u: version %u of %u", o, b,
			version, block->version);
		return message;
	}
	if (version > 0 && block->writes[version].begin > image->returned) {
		snprintf(message, message_bytes,
			"origin %u block %u: version %u began at %llu, after the take's return "
			"%llu",
			o, b, version, (unsigned long long)block->writes[version].begin,
			(unsigned long long)image->returned);
		return message;
	}
	/* The first version left out ended first: a block has one writer. */
	if (version < block->version && block->writes[version + 1].end < moment) {
		snprintf(message, message_bytes,
			"origin %u block %u: version %u is left out, it ended at %llu, before %llu "
			"(take called at %llu)",
			o, b, version + 1, (unsigned long long)block->writes[version + 1].end,
			(unsigned long long)moment, (unsigned long long)image->called);
		return message;
	}
	return NULL;
}

const char *cut_check(
	const struct cut *cut, const struct cut_image *image, char *message, size_t message_bytes)
{
	uint64_t moment;

	for (unsigned o = 0; o < CUT_ORIGINS; o++) {
		for (unsigned b = 0; image->has[o] && b < CUT_BLOCKS; b++) {
			if (image->version[o][b] > cut->capacity)
				return "a version that nobody wrote";
		}
	}
	moment = needed_moment(cut, image);
	for (unsigned o = 0; o < CUT_ORIGINS; o++) {
		for (unsigned b = 0; image->has[o] && b < CUT_BLOCKS; b++) {
			const char *wrong =
				check_block(cut, image, o, b, moment, message, message_bytes);

			if (wrong)
				return wrong;
		}
	}
	return NULL;
}
