/* SPDX-License-Identifier: MIT
 *
 * The stage for handing a persistent store over: exports and writes on threads of their own.
 */
#ifndef COWSNAP_TESTS_EXPORTER_H
#define COWSNAP_TESTS_EXPORTER_H

#include "support/handed.h"
#include "support/test.h"

#include "origin.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK UINT64_C(512)

#if CS_TSAN
#define SOME(n) ((n) / 4)
#else
#define SOME(n) (n)
#endif

/* An export on a thread of its own. */
struct exporter {
	struct dm_scene *scene;
	pthread_t thread;
	struct handed state;
	_Atomic bool done;
	bool joined;
	int rc;
};

static inline void *run_export(void *argument)
{
	struct exporter *e = argument;

	e->rc = cowsnap_store_export(e->scene->at[0].store, UINT64_MAX, handed_write, &e->state);
	atomic_store(&e->done, true);
	return NULL;
}

static inline void start(struct exporter *e, struct dm_scene *s)
{
	*e = (struct exporter){.scene = s};
	cr_assert_eq(pthread_create(&e->thread, NULL, run_export, e), 0);
}

/* Until it has looked, in vain, and waits for somebody to leave. */
static inline void until_waiting(const struct exporter *e)
{
	struct cowsnap_origin *origin = e->scene->at[0].origin;
	struct cowsnap_ctx *ctx = e->scene->ctx;
	unsigned quiet = 0;

	while (quiet < 100) {
		cs_mutex_lock(&ctx->admin);
		quiet = !ctx->taking && atomic_load(&origin->gate.drainers) ? quiet + 1 : 0;
		cs_mutex_unlock(&ctx->admin);
		sched_yield();
	}
	cr_assert_not(atomic_load(&e->done));
}

/* It went well: the store is closed here, and taken over again. */
static inline void finish(struct exporter *e)
{
	struct dm_scene *s = e->scene;

	if (!e->joined)
		pthread_join(e->thread, NULL);
	cr_assert_eq(e->rc, 0);
	cowsnap_snapshot_unref(s->at[0].snapshot);
	s->at[0].snapshot = NULL;
	cr_assert_eq(dm_close_store(s, 0), 0);
	cr_assert_eq(dm_renew_origin(s, 0), 0);
	cr_assert_eq(handed_in(s, 0, &e->state), 0);
	handed_free(&e->state);
}

static inline void begin(struct dm_scene *s, const struct dm_scene_options *options)
{
	dm_open(s, options);
	cr_assert_eq(dm_begin(s), 0, "%s", s->line);
	for (uint64_t chunk = 0; chunk < 40; chunk += 2)
		cr_assert_eq(dm_write(s, 0, chunk * CHUNK, CHUNK, (uint8_t)chunk), 0);
}

/* It reads as at its take, from here and from its device, now and after more was written. */
static inline void end(struct dm_scene *s)
{
	dm_expect_exact(s, 0, true);
	dm_expect_promise(s, 0);
	for (uint64_t chunk = 0; chunk < 128; chunk++)
		cr_assert_eq(dm_write(s, 0, chunk * CHUNK, CHUNK, 201), 0);
	dm_expect_exact(s, 0, true);
	dm_expect_promise(s, 0);
	dm_close(s);
}

/* No export, and nothing has changed. */
static inline void expect_refused(struct dm_scene *s, int expected)
{
	struct handed h = {0};

	cr_assert_eq(cowsnap_store_export(s->at[0].store, 0, handed_write, &h), expected);
	cr_assert_eq(h.bytes, 0);
	cr_assert_eq(dm_state(s, 0, NULL), COWSNAP_SNAPSHOT_ACTIVE);
	cr_assert_eq(test_device_locked(s->at[0].store_test), COWSNAP_LOCK_EXCLUSIVE);
}

static inline void bracket_begin(struct dm_scene *s, uint64_t chunk, struct cowsnap_op *op)
{
	cr_assert_eq(
		cowsnap_write_begin(s->at[0].origin, COWSNAP_WRITE, chunk * CHUNK, CHUNK, op), 0);
}

static inline void bracket_end(struct dm_scene *s, uint64_t chunk, struct cowsnap_op *op)
{
	struct dm_store *at = &s->at[0];

	memset(at->live + chunk * CHUNK, 0xee, CHUNK);
	cr_assert_eq(cowsnap_device_write(
			     at->origin_device, at->live + chunk * CHUNK, chunk * CHUNK, CHUNK),
		0);
	cowsnap_write_end(op);
}

struct writer {
	struct dm_scene *scene;
	pthread_t thread;
	unsigned store;
	uint64_t chunk;
	int rc;
};

static inline void *run_write(void *argument)
{
	struct writer *w = argument;

	w->rc = dm_write(w->scene, w->store, w->chunk * CHUNK, CHUNK, 7);
	return NULL;
}

#endif
