/* SPDX-License-Identifier: MIT
 *
 * Workloads of a process that is killed, and of the next one.
 */
#include "crash/workloads.h"
#include "support/test.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK 512u

static void begin(struct scenario *s, enum cowsnap_loser on_full)
{
	scenario_start(s);
	scenario_create(s, s->workload->chunk_bytes, 0, 0);
	scenario_take(s, on_full);
}

/* What a process that was killed has written and not flushed is there for the next one to see, and
 * is gone all the same if the power fails then. Whatever the next one believes because of what it
 * has seen, it must make durable first. */
static void revive(struct scenario *s)
{
	scenario_stop(s);
	journal_kill(&s->rig.journal, 0);
	scenario_start(s);
}

/* Overwrites what was saved, or not, in the first life. */
static void attach_and_write(struct scenario *s)
{
	scenario_attach(s, COWSNAP_LOSER_WRITE);
	scenario_promise(s, MAY_EXACT);
	cr_assert_eq(scenario_write(s, 4, 3), 0);
	scenario_touch(s, 2, 8);
}

static void run_killed_in_commit(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_WRITE);
	scenario_touch(s, 0, 2);
	journal_kill(&s->rig.journal, s->variant);
	(void)scenario_write(s, 4, 3);
	(void)scenario_write(s, 8, 1);
	revive(s);
	attach_and_write(s);
	scenario_stop(s);
}

const struct workload workload_killed_in_commit = {
	.name = "killed-in-commit",
	.run = run_killed_in_commit,
	.chunk_bytes = CHUNK,
	.origin_bytes = 16 * CHUNK,
	.store_chunks = 30,
};

/* Returns: what there is, which is so from now on. */
static unsigned find_out(struct scenario *s)
{
	int rc = rig_attach(&s->rig, s->promise.chunk_bytes, 0, COWSNAP_LOSER_WRITE);
	unsigned found = MAY_NONE;

	cr_assert(!rc || rc == -ENOENT, "%d", rc);
	if (!rc)
		found = rig_info(&s->rig).state == COWSNAP_SNAPSHOT_INVALID ? MAY_INVALID
									    : MAY_EXACT;
	cr_assert(s->promise.may & found);
	scenario_promise(s, found);
	return found;
}

static void run_killed_in_take(struct scenario *s)
{
	uint8_t *image = malloc(s->workload->origin_bytes);

	cr_assert_not_null(image);
	scenario_start(s);
	scenario_create(s, s->workload->chunk_bytes, 0, 0);
	memcpy(image, s->rig.live[POWER_ORIGIN], s->workload->origin_bytes);
	s->images[s->image_count++] = image;
	s->promise.image = image;
	scenario_promise(s, MAY_NONE | MAY_EXACT);
	journal_kill(&s->rig.journal, s->variant);
	(void)rig_take(&s->rig, COWSNAP_LOSER_WRITE);
	revive(s);
	if (find_out(s) == MAY_NONE) {
		scenario_touch(s, 0, 2);
		scenario_create(s, s->workload->chunk_bytes, 0, 0);
		scenario_take(s, COWSNAP_LOSER_WRITE);
	}
	cr_assert_eq(scenario_write(s, 4, 3), 0);
	scenario_touch(s, 2, 8);
	scenario_stop(s);
}

const struct workload workload_killed_in_take = {
	.name = "killed-in-take",
	.run = run_killed_in_take,
	.chunk_bytes = CHUNK,
	.origin_bytes = 16 * CHUNK,
	.store_chunks = 30,
};

static void run_killed_in_drop(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_WRITE);
	cr_assert_eq(scenario_write(s, 0, 4), 0);
	scenario_promise(s, MAY_EXACT | MAY_NONE);
	journal_kill(&s->rig.journal, s->variant);
	(void)rig_drop(&s->rig);
	revive(s);
	find_out(s);
	scenario_touch(s, 2, 8);
	scenario_stop(s);
}

const struct workload workload_killed_in_drop = {
	.name = "killed-in-drop",
	.run = run_killed_in_drop,
	.chunk_bytes = CHUNK,
	.origin_bytes = 16 * CHUNK,
	.store_chunks = 30,
};

/* The next one does not look first, and begins anew. */
static void run_killed_in_drop_created_again(struct scenario *s)
{
	int rc;

	begin(s, COWSNAP_LOSER_WRITE);
	cr_assert_eq(scenario_write(s, 0, 4), 0);
	scenario_promise(s, MAY_EXACT | MAY_NONE);
	journal_kill(&s->rig.journal, s->variant);
	(void)rig_drop(&s->rig);
	revive(s);
	rc = rig_create(&s->rig, CHUNK, 0, 0);
	cr_assert(!rc || rc == -EEXIST, "%d", rc);
	if (rc) {
		s->rig.store = NULL;
	} else {
		scenario_promise(s, MAY_NONE);
		scenario_touch(s, 2, 8);
		scenario_take(s, COWSNAP_LOSER_WRITE);
		scenario_touch(s, 3, 2);
	}
	scenario_stop(s);
}

const struct workload workload_killed_in_drop_created_again = {
	.name = "killed-in-drop-created-again",
	.run = run_killed_in_drop_created_again,
	.chunk_bytes = CHUNK,
	.origin_bytes = 16 * CHUNK,
	.store_chunks = 30,
};

static void run_killed_in_invalidation(struct scenario *s)
{
	begin(s, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scenario_write(s, 0, 6), 0);
	scenario_promise(s, MAY_EXACT | MAY_INVALID);
	journal_kill(&s->rig.journal, s->variant);
	(void)scenario_write(s, 7, 1);
	revive(s);
	if (find_out(s) == MAY_INVALID)
		scenario_touch(s, 7, 3);
	scenario_touch(s, 2, 2);
	scenario_stop(s);
}

const struct workload workload_killed_in_invalidation = {
	.name = "killed-in-invalidation",
	.run = run_killed_in_invalidation,
	.chunk_bytes = CHUNK,
	.origin_bytes = 16 * CHUNK,
	.store_chunks = 8,
};
