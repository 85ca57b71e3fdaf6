/* SPDX-License-Identifier: MIT
 *
 * Snapshots that are made independent of their origin.
 */
#include "concurrent/scene.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "support/dm_scene.h"

#define CHUNKS (SCENE_BYTES / SCENE_CHUNK)
#define ALL    UINT64_MAX

static struct cowsnap_snapshot_info info_of(struct cowsnap_snapshot *snapshot)
{
	struct cowsnap_snapshot_info info;

	cr_assert_eq(cowsnap_snapshot_info(snapshot, &info, sizeof(info)), 0);
	return info;
}

static struct cowsnap_snapshot *take(struct scene *s)
{
	return scene_take(s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
}

static void break_origin(struct scene *s)
{
	test_device_fail(s->origin_test[0], TEST_IO_READ, 1, true, -EIO);
}

Test(detach, the_origin_is_not_read_any_more)
{
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	scene_open(&s, NULL);
	snapshot = take(&s);
	cr_assert_eq(scene_write(&s, 0, 5 * SCENE_CHUNK, 3 * SCENE_CHUNK, 7), 0);
	cr_assert_eq(info_of(snapshot).detached, 0);
	cr_assert_eq(cowsnap_snapshot_detach(snapshot, ALL), 0);
	cr_assert_eq(info_of(snapshot).detached, 1);
	cr_assert_eq(info_of(snapshot).saved_chunks, CHUNKS);
	break_origin(&s);
	scene_expect(snapshot, 0, SCENE_BYTES, SCENE_BLANK);
	cr_assert_eq(cowsnap_snapshot_detach(snapshot, ALL), 0);
	/* All is saved: a write reads nothing either. */
	cr_assert_eq(scene_write(&s, 0, 0, SCENE_BYTES, 9), 0);
	scene_expect(snapshot, 0, SCENE_BYTES, SCENE_BLANK);
	scene_drop(snapshot);
	scene_close(&s);
}

Test(detach, step_by_step)
{
	struct cowsnap_snapshot *snapshot;
	unsigned steps = 0;
	struct scene s;
	int rc;

	scene_open(&s, NULL);
	snapshot = take(&s);
	do {
		rc = cowsnap_snapshot_detach(snapshot, 10 * SCENE_CHUNK);
		cr_assert_eq(info_of(snapshot).detached, rc == 0);
		cr_assert_eq(scene_write(&s, 0, steps * SCENE_CHUNK, 1, 3), 0);
		steps++;
	} while (rc == 1);
	cr_assert_eq(rc, 0);
	cr_assert(steps > 1 && steps <= CHUNKS);
	break_origin(&s);
	scene_expect(snapshot, 0, SCENE_BYTES, SCENE_BLANK);
	scene_drop(snapshot);
	scene_close(&s);
}

/* Each snapshot of a chain, while newer ones come; what is shared is saved once. */
Test(detach, an_older_one_of_a_chain)
{
	struct cowsnap_snapshot *snapshot[3];
	struct scene s;

	scene_open(&s, NULL);
	for (uint8_t i = 0; i < 3; i++) {
		snapshot[i] = take(&s);
		if (i == 1)
			cr_assert_eq(cowsnap_snapshot_detach(snapshot[0], 20 * SCENE_CHUNK), 1);
		cr_assert_eq(scene_write(&s, 0, i * SCENE_CHUNK, SCENE_CHUNK, i + 1), 0);
	}
	cr_assert_eq(cowsnap_snapshot_detach(snapshot[0], ALL), 0);
	cr_assert_eq(info_of(snapshot[2]).detached, 0);
	cr_assert_eq(cowsnap_snapshot_detach(snapshot[2], ALL), 0);
	cr_assert_eq(cowsnap_snapshot_detach(snapshot[1], ALL), 0);
	break_origin(&s);
	for (uint8_t i = 0; i < 3; i++) {
		for (uint8_t c = 0; c < 3; c++)
			scene_expect(snapshot[i], c * SCENE_CHUNK, SCENE_CHUNK,
				c < i ? c + 1 : SCENE_BLANK);
		scene_expect(
			snapshot[i], 3 * SCENE_CHUNK, SCENE_BYTES - 3 * SCENE_CHUNK, SCENE_BLANK);
	}
	scene_drop(snapshot[1]);
	scene_reclaim(&s);
	scene_drop(snapshot[2]);
	scene_reclaim(&s);
	scene_expect(snapshot[0], 0, SCENE_BYTES, SCENE_BLANK);
	scene_drop(snapshot[0]);
	scene_close(&s);
}

/* A full store, or a device that fails, is nobody's loss. */
Test(detach, failures_change_nothing)
{
	struct cowsnap_snapshot *snapshot;
	struct cowsnap_store_usage usage;
	struct scene s;

	scene_open(&s, &(struct scene_options){.limit_chunks = 10});
	snapshot = take(&s);
	cr_assert_eq(cowsnap_snapshot_detach(snapshot, ALL), -ENOSPC);
	scene_expect_state(snapshot, COWSNAP_SNAPSHOT_ACTIVE, 0);
	scene_expect(snapshot, 0, SCENE_BYTES, SCENE_BLANK);
	cr_assert_eq(info_of(snapshot).detached, 0);
	cr_assert_eq(scene_count_events(&s, COWSNAP_EVENT_INVALID), 0);
	cr_assert_eq(scene_stats(&s).failed_writes, 0);
	cr_assert_eq(cowsnap_store_set_limit(s.store[0], 4 * SCENE_BYTES), 0);
	break_origin(&s);
	cr_assert_eq(cowsnap_snapshot_detach(snapshot, ALL), -EIO);
	test_device_heal(s.origin_test[0]);
	usage = scene_usage(&s, 0);
	test_device_fail(s.store_test[0], TEST_IO_WRITE, 1, true, -EIO);
	cr_assert_eq(cowsnap_snapshot_detach(snapshot, ALL), -EIO);
	cr_assert_eq(scene_usage(&s, 0).used_bytes, usage.used_bytes);
	test_device_heal(s.store_test[0]);
	scene_expect_state(snapshot, COWSNAP_SNAPSHOT_ACTIVE, 0);
	cr_assert_eq(cowsnap_snapshot_detach(snapshot, ALL), 0);
	break_origin(&s);
	scene_expect(snapshot, 0, SCENE_BYTES, SCENE_BLANK);
	scene_drop(snapshot);
	scene_close(&s);
}

Test(detach, refused)
{
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	scene_open(&s, NULL);
	snapshot = take(&s);
	cr_assert_eq(cowsnap_snapshot_release(snapshot, 0, SCENE_CHUNK), 0);
	cr_assert_eq(cowsnap_snapshot_detach(snapshot, ALL), -ENODATA);
	cr_assert_eq(cowsnap_snapshot_downgrade(snapshot), 0);
	cr_assert_eq(cowsnap_snapshot_detach(snapshot, ALL), -ENODATA);
	cr_assert_eq(cowsnap_snapshot_drop(snapshot), 0);
	cr_assert_eq(cowsnap_snapshot_detach(snapshot, ALL), -EIDRM);
	cowsnap_snapshot_unref(snapshot);
	scene_close(&s);
}

struct detacher {
	struct cowsnap_snapshot *snapshot;
	int rc;
};

static void *detach_all(void *user)
{
	struct detacher *d = user;

	d->rc = cowsnap_snapshot_detach(d->snapshot, ALL);
	return NULL;
}

/* One thread at a time; a take does not wait for longer than for one range. */
Test(detach, beside_a_second_one_and_a_take)
{
	struct detacher d;
	struct actor taker;
	pthread_t thread;
	struct scene s;
	int hold;

	scene_open(&s, NULL);
	d.snapshot = take(&s);
	hold = scene_hold(s.origin_test[0], TEST_IO_READ, 0, SCENE_CHUNK);
	cr_assert_eq(pthread_create(&thread, NULL, detach_all, &d), 0);
	scene_wait_held(s.origin_test[0], hold);
	cr_assert_eq(cowsnap_snapshot_detach(d.snapshot, ALL), -EALREADY);
	actor_take(&taker, &s, 1, UINT64_C(60000000000));
	while (!atomic_load(&taker.thawed))
		sched_yield();
	test_device_release(s.origin_test[0], hold);
	cr_assert_eq(actor_join(&taker), 0);
	pthread_join(thread, NULL);
	cr_assert_eq(d.rc, 0);
	cr_assert_eq(scene_write(&s, 0, 0, SCENE_BYTES, 4), 0);
	scene_expect(d.snapshot, 0, SCENE_BYTES, SCENE_BLANK);
	scene_expect(taker.entry[0].snapshot, 0, SCENE_BYTES, SCENE_BLANK);
	scene_drop(taker.entry[0].snapshot);
	scene_drop(d.snapshot);
	scene_close(&s);
}

/* A take that drains keeps a detach out: what it makes may be withdrawn, or is, and then nothing
 * may have been saved there. */
static void detach_during_a_drain(uint64_t deadline_ns)
{
	struct cowsnap_op bracket;
	struct actor taker;
	struct detacher d;
	pthread_t thread;
	struct scene s;

	scene_open(&s, NULL);
	d.snapshot = take(&s);
	cr_assert_eq(cowsnap_write_begin(s.origin[0], COWSNAP_WRITE, 0, 1, &bracket), 0);
	actor_take(&taker, &s, 1, deadline_ns);
	while (!atomic_load(&taker.thawed))
		sched_yield();
	cr_assert_eq(pthread_create(&thread, NULL, detach_all, &d), 0);
	for (int i = 0; i < 1000 && !info_of(d.snapshot).detached; i++)
		sched_yield();
	if (deadline_ns == UINT64_MAX)
		cowsnap_write_end(&bracket);
	cr_assert_eq(actor_join(&taker), deadline_ns == UINT64_MAX ? 0 : -ETIMEDOUT);
	pthread_join(thread, NULL);
	if (deadline_ns != UINT64_MAX)
		cowsnap_write_end(&bracket);
	cr_assert_eq(d.rc, 0);
	break_origin(&s);
	scene_expect(d.snapshot, 0, SCENE_BYTES, SCENE_BLANK);
	if (deadline_ns == UINT64_MAX)
		scene_drop(taker.entry[0].snapshot);
	scene_drop(d.snapshot);
	scene_close(&s);
}

Test(detach, during_the_drain_of_a_take)
{
	detach_during_a_drain(UINT64_MAX);
}

Test(detach, during_a_take_that_is_withdrawn)
{
	detach_during_a_drain(200000000);
}

Test(detach, beside_writers_takes_and_drops)
{
	struct cowsnap_snapshot *other;
	pthread_t writer, detacher;
	struct detacher d;
	struct scene s;

	scene_open(&s, NULL);
	for (int round = 0; round < 5; round++) {
		cr_assert_eq(scene_write(&s, 0, 0, SCENE_BYTES, SCENE_BLANK), 0);
		d.snapshot = take(&s);
		cr_assert_eq(pthread_create(&writer, NULL, scene_write_on, &s), 0);
		cr_assert_eq(pthread_create(&detacher, NULL, detach_all, &d), 0);
		for (int i = 0; i < 4; i++) {
			other = take(&s);
			scene_drop(other);
			cowsnap_reclaim(s.ctx, 16);
		}
		pthread_join(detacher, NULL);
		cr_assert_eq(d.rc, 0);
		break_origin(&s);
		scene_expect(d.snapshot, 0, SCENE_BYTES, SCENE_BLANK);
		pthread_join(writer, NULL);
		test_device_heal(s.origin_test[0]);
		scene_expect(d.snapshot, 0, SCENE_BYTES, SCENE_BLANK);
		scene_drop(d.snapshot);
		scene_reclaim(&s);
	}
	scene_close(&s);
}

Test(detach, held_back)
{
	struct cowsnap_snapshot *snapshot;
	struct scene s;
	struct detacher d;
	pthread_t thread;

	scene_open(&s, NULL);
	cr_assert_eq(cowsnap_ctx_throttle(s.ctx, 0, 0), -EINVAL);
	cr_assert_eq(cowsnap_ctx_throttle(s.ctx, 0, 101), -EINVAL);
	/* The first range is paid for when it goes on, the next one would wait for days. */
	cr_assert_eq(cowsnap_ctx_throttle(s.ctx, 1, 100), 0);
	snapshot = take(&s);
	cr_assert_eq(scene_write(&s, 0, 0, SCENE_CHUNK, 1), 0);
	cr_assert_eq(scene_write(&s, 0, 4 * SCENE_CHUNK, SCENE_CHUNK, 1), 0);
	d.snapshot = snapshot;
	cr_assert_eq(pthread_create(&thread, NULL, detach_all, &d), 0);
	while (info_of(snapshot).saved_chunks < 5)
		sched_yield();
	/* It waits outside of the gate: a take goes on. */
	scene_drop(take(&s));
	cr_assert_eq(info_of(snapshot).detached, 0);
	cr_assert_eq(cowsnap_ctx_throttle(s.ctx, 0, 100), 0);
	pthread_join(thread, NULL);
	cr_assert_eq(d.rc, 0);
	cr_assert_eq(info_of(snapshot).detached, 1);
	scene_drop(snapshot);
	scene_close(&s);
}

Test(detach, persistent)
{
	struct dm_scene s;

	dm_open(&s, &(struct dm_scene_options){0});
	cr_assert_eq(dm_begin(&s), 0);
	cr_assert_eq(dm_write(&s, 0, 1000, 2000, 7), 0);
	cr_assert_eq(cowsnap_snapshot_detach(s.at[0].snapshot, ALL), 0);
	cr_assert_eq(dm_detach(&s, 0), 0);
	cr_assert_eq(dm_attach(&s, 0), 0);
	test_device_fail(s.at[0].origin_test, TEST_IO_READ, 1, true, -EIO);
	dm_expect_exact(&s, 0, true);
	cr_assert_eq(cowsnap_snapshot_detach(s.at[0].snapshot, ALL), 0);
	cr_assert_eq(info_of(s.at[0].snapshot).detached, 1);
	test_device_heal(s.at[0].origin_test);
	dm_expect_promise(&s, 0);
	cr_assert_eq(dm_drop(&s, 0), 0);
	dm_close(&s);
}

/* ---- Beside drops ---------------------------------------------------------------------------- */

#define DROPS 200

struct visitors {
	struct scene scene;
	pthread_mutex_t lock;
	struct cowsnap_snapshot *current; /* under lock; whoever uses it has a reference */
	_Atomic bool stop;
};

static struct cowsnap_snapshot *visit(struct visitors *v)
{
	struct cowsnap_snapshot *snapshot;

	pthread_mutex_lock(&v->lock);
	snapshot = v->current ? cowsnap_snapshot_ref(v->current) : NULL;
	pthread_mutex_unlock(&v->lock);
	return snapshot;
}

/* It may be dropped at any moment. */
static void *look_and_detach(void *argument)
{
	struct visitors *v = argument;

	for (unsigned i = 0; !atomic_load(&v->stop); i++) {
		struct cowsnap_snapshot *snapshot = visit(v);
		struct cowsnap_extent extent;
		uint8_t data[64];
		int rc = snapshot ? 0 : -EIDRM;

		for (uint64_t at = 0; at < SCENE_BYTES && !rc; at += 4 * SCENE_CHUNK) {
			memset(data, 7, sizeof(data));
			rc = cowsnap_snapshot_write(
				snapshot, COWSNAP_WRITE, data, at, sizeof(data));
			if (!rc)
				rc = cowsnap_snapshot_read(snapshot, data, at, sizeof(data));
			if (!rc)
				rc = cowsnap_snapshot_extent(
					snapshot, at, SCENE_BYTES - at, &extent);
			if (!rc)
				rc = cowsnap_snapshot_detach(snapshot, SCENE_CHUNK);
			/* Reclaiming may be behind: the store is full. */
			cr_assert(rc == 0 || rc == 1 || rc == -EIDRM || rc == -EALREADY ||
					  rc == -ENOSPC || rc == -ESTALE,
				"error %d", rc);
			rc = rc < 0 ? rc : 0;
		}
		cowsnap_snapshot_unref(snapshot);
	}
	return NULL;
}

static void *keep_reclaiming(void *argument)
{
	struct visitors *v = argument;

	while (!atomic_load(&v->stop))
		cr_assert_geq(cowsnap_reclaim(v->scene.ctx, 16), 0);
	return NULL;
}

/* What a dropped snapshot had goes when those who were inside have left: who comes later must not
 * look for it. */
Test(detach, beside_drops)
{
	struct visitors *v = calloc(1, sizeof(*v));
	pthread_t thread[3];

	scene_open(&v->scene, NULL);
	pthread_mutex_init(&v->lock, NULL);
	for (unsigned i = 0; i < 3; i++)
		cr_assert_eq(
			pthread_create(&thread[i], NULL, i ? look_and_detach : keep_reclaiming, v),
			0);
	for (unsigned i = 0; i <= DROPS; i++) {
		struct cowsnap_snapshot *next = i < DROPS ? take(&v->scene) : NULL, *before;

		pthread_mutex_lock(&v->lock);
		before = v->current;
		v->current = next;
		pthread_mutex_unlock(&v->lock);
		if (before)
			scene_drop(before);
		cr_assert_eq(scene_write(&v->scene, 0, i % 60 * SCENE_CHUNK, SCENE_CHUNK, 1), 0);
	}
	atomic_store(&v->stop, true);
	for (unsigned i = 0; i < 3; i++)
		pthread_join(thread[i], NULL);
	scene_close(&v->scene);
	pthread_mutex_destroy(&v->lock);
	free(v);
}
