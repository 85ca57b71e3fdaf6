/* SPDX-License-Identifier: MIT
 *
 * Writes to snapshots, for tests of them: of one value, on this thread or another one.
 */
#ifndef COWSNAP_TESTS_PUT_H
#define COWSNAP_TESTS_PUT_H

#include "concurrent/scene.h"

#include <stdlib.h>
#include <string.h>

#include "support/dm_scene.h"

#define CHUNK SCENE_CHUNK
#define ALL   SCENE_BYTES
#define OLD   1
#define NEW   2
#define MINE  7

static inline struct cowsnap_snapshot *take(struct scene *s)
{
	return scene_take(s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
}

static inline void origin_write(struct scene *s, uint64_t offset, uint64_t length, uint8_t value)
{
	cr_assert_eq(scene_write(s, 0, offset, length, value), 0);
}

static inline int put(
	struct cowsnap_snapshot *snapshot, uint64_t offset, uint64_t length, uint8_t value)
{
	uint8_t *data = malloc(length);
	int rc;

	memset(data, value, length);
	rc = cowsnap_snapshot_write(snapshot, COWSNAP_WRITE, data, offset, length);
	free(data);
	return rc;
}

static inline int zero(struct cowsnap_snapshot *snapshot, uint64_t offset, uint64_t length)
{
	return cowsnap_snapshot_write(snapshot, COWSNAP_WRITE_ZEROES, NULL, offset, length);
}

static inline uint64_t used_chunks(struct scene *s)
{
	return scene_usage(s, 0).used_bytes / CHUNK;
}

static inline struct cowsnap_snapshot_info info_of(struct cowsnap_snapshot *snapshot)
{
	struct cowsnap_snapshot_info info;

	cr_assert_eq(cowsnap_snapshot_info(snapshot, &info, sizeof(info)), 0);
	return info;
}

/* A write on a thread of its own, some times, each time a step further. */
struct putter {
	struct cowsnap_snapshot *snapshot;
	uint64_t offset;
	uint64_t length;
	uint8_t value;
	unsigned times;
	uint64_t step;
	int rc;
	pthread_t thread;
};

static inline void *put_often(void *user)
{
	struct putter *p = user;

	for (unsigned i = 0; i < p->times && !p->rc; i++)
		p->rc = put(p->snapshot, p->offset + i * p->step, p->length, p->value);
	return NULL;
}

static inline void putter_start(struct putter *p)
{
	cr_assert_eq(pthread_create(&p->thread, NULL, put_often, p), 0);
}

static inline int putter_join(struct putter *p)
{
	pthread_join(p->thread, NULL);
	return p->rc;
}

/* The model of the scene goes along. */
static inline int dm_put(struct dm_scene *s, uint64_t offset, uint64_t length, uint8_t value)
{
	int rc = put(s->at[0].snapshot, offset, length, value);

	if (!rc)
		memset(s->at[0].image + offset, value, length);
	return rc;
}

#endif
