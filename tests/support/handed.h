/* SPDX-License-Identifier: MIT
 *
 * The state of a store, on its way from one owner to the next, in memory; and, with none of the
 * library's code, what its checksums must be.
 */
#ifndef COWSNAP_TESTS_HANDED_H
#define COWSNAP_TESTS_HANDED_H

#include "support/dm_image.h"
#include "support/dm_scene.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define HANDED_HEADER 128u

struct handed {
	uint8_t *data;
	size_t bytes;
	size_t at;                /* read so far */
	unsigned calls;           /* of either */
	unsigned fail_at;         /* the call that fails; 0: none */
	bool beyond;              /* it was read behind its end */
	void (*then)(void *user); /* called in each write, before it */
	void *user;
};

static inline int handed_write(void *user, const void *data, size_t bytes)
{
	struct handed *h = user;

	if (h->then)
		h->then(h->user);
	if (++h->calls == h->fail_at)
		return -EPIPE;
	h->data = realloc(h->data, h->bytes + bytes);
	memcpy(h->data + h->bytes, data, bytes);
	h->bytes += bytes;
	return 0;
}

static inline int handed_read(void *user, void *data, size_t bytes)
{
	struct handed *h = user;

	if (++h->calls == h->fail_at)
		return -ECONNRESET;
	if (bytes > h->bytes - h->at) {
		h->beyond = true;
		return -ENODATA;
	}
	memcpy(data, h->data + h->at, bytes);
	h->at += bytes;
	return 0;
}

static inline void handed_free(struct handed *h)
{
	free(h->data);
	memset(h, 0, sizeof(*h));
}

static inline uint64_t handed_mix(uint64_t sum, const uint8_t *at, size_t words)
{
	for (size_t i = 0; i < words; i++) {
		sum = (sum ^ dm_image_get(at + 8 * i, 8)) * UINT64_C(0x9e3779b97f4a7c15);
		sum = sum << 29 | sum >> 35;
	}
	return sum;
}

/* Makes the checksums right, as far as the parts can be told from each other. */
static inline void handed_seal(uint8_t *data, size_t bytes)
{
	uint64_t sum = handed_mix(0, data, HANDED_HEADER / 8 - 1);
	size_t at = HANDED_HEADER;

	dm_image_put(data + HANDED_HEADER - 8, sum, 8);
	while (at + 16 <= bytes) {
		uint64_t words = 1 + 2 * dm_image_get(data + at, 8);

		if (words > (bytes - at) / 8 - 1)
			return;
		sum = handed_mix(sum, data + at, words);
		dm_image_put(data + at + 8 * words, sum, 8);
		at += 8 * (words + 1);
	}
}

/* ---- On the stage of dm_scene ---------------------------------------------------------------- */

/* Exports store @i; then it is closed, and the origin opened anew. */
static inline int handed_out(struct dm_scene *s, unsigned i, uint64_t wait_ns, struct handed *h)
{
	struct dm_store *at = &s->at[i];
	int rc = cowsnap_store_export(at->store, wait_ns, handed_write, h);

	if (rc)
		return rc;
	cowsnap_snapshot_unref(at->snapshot);
	at->snapshot = NULL;
	rc = dm_close_store(s, i);
	return rc ? rc : dm_renew_origin(s, i);
}

static inline int handed_in(struct dm_scene *s, unsigned i, struct handed *h)
{
	struct cowsnap_dm_options options = {
		.size = sizeof(options), .device = s->at[i].store_device};
	struct cowsnap_take_entry entry = {.origin = s->at[i].origin,
		.on_full = s->options.on_full,
		.wait_ns = s->options.wait_ns};
	int rc;

	h->at = 0;
	h->calls = 0;
	rc = cowsnap_store_dm_import(s->ctx, &options, handed_read, h, &entry, &s->at[i].store);
	if (rc) {
		s->at[i].store = NULL;
		return rc;
	}
	s->at[i].snapshot = entry.snapshot;
	return 0;
}

#endif
