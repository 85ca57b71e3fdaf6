/* SPDX-License-Identifier: MIT
 *
 * Group commit: who waits for which flush. Each test holds a flush of the store's device, lets
 * writers come, and looks at who is done and how many flushes there were.
 */
#include "support/dm_scene.h"
#include "support/newest.h"
#include "support/test.h"

#include "store.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CHUNK   UINT64_C(512)
#define WRITERS 8

struct writer {
	struct dm_scene *scene;
	pthread_t thread;
	uint64_t chunk;
	_Atomic long tid;
	_Atomic bool done;
	int rc;
};

static void *write_one(void *argument)
{
	struct writer *w = argument;

	atomic_store(&w->tid, syscall(SYS_gettid));
	w->rc = dm_write(w->scene, 0, w->chunk * CHUNK, 1, 1);
	atomic_store(&w->done, true);
	return NULL;
}

static void start(struct writer *w, struct dm_scene *s, uint64_t chunk)
{
	*w = (struct writer){.scene = s, .chunk = chunk};
	cr_assert_eq(pthread_create(&w->thread, NULL, write_one, w), 0);
}

static int join(struct writer *w)
{
	pthread_join(w->thread, NULL);
	return w->rc;
}

/* Does the kernel say that the thread sleeps? */
static bool sleeps(long tid)
{
	char path[64], line[512] = "";
	const char *state;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/task/%ld/stat", tid);
	file = fopen(path, "r");
	if (!file)
		return false;
	state = fgets(line, sizeof(line), file) ? strrchr(line, ')') : NULL;
	fclose(file);
	return state && state[1] == ' ' && state[2] == 'S';
}

/* Waits until all of them sleep, several times in a row: then they are in the queue. A thread that
 * sleeps elsewhere for a moment may deceive it; who counts flushes therefore tries more than once.
 */
static void until_asleep(struct writer *w, unsigned count)
{
	for (unsigned quiet = 0; quiet < 20; quiet++) {
		for (unsigned i = 0; i < count; i++) {
			long tid = atomic_load(&w[i].tid);

			if (!tid || !sleeps(tid))
				quiet = 0;
		}
		sched_yield();
	}
}

static void until_done(struct writer *w)
{
	while (!atomic_load(&w->done))
		sched_yield();
}

static int hold_flush(struct dm_scene *s)
{
	int hold = test_device_hold(s->at[0].store_test, TEST_IO_FLUSH, 0, 1, TEST_HOLD_BEFORE);

	cr_assert_geq(hold, 0);
	return hold;
}

static void begin(struct dm_scene *s, const struct dm_scene_options *options)
{
	dm_open(s, options);
	cr_assert_eq(dm_begin(s), 0, "%s", s->line);
	test_device_reset(s->at[0].store_test);
}

static void end(struct dm_scene *s)
{
	dm_expect_exact(s, 0, true);
	dm_expect_promise(s, 0);
	dm_close(s);
}

/* One writer's flush is held, the others gather; the flush of its record serves as that of their
 * data, and one more makes all their records durable. Returns: flushes. */
static uint64_t gather(bool durable)
{
	struct writer first, other[WRITERS];
	struct dm_scene s;
	uint64_t flushes;
	int hold;

	begin(&s, &(struct dm_scene_options){.durable = durable});
	hold = hold_flush(&s);
	start(&first, &s, 0);
	cr_assert(test_device_wait_held(s.at[0].store_test, hold));
	for (unsigned i = 0; i < WRITERS; i++)
		start(&other[i], &s, 2 + 2 * i);
	until_asleep(other, WRITERS);
	test_device_release(s.at[0].store_test, hold);
	cr_assert_eq(join(&first), 0);
	for (unsigned i = 0; i < WRITERS; i++)
		cr_assert_eq(join(&other[i]), 0);
	flushes = test_device_calls(s.at[0].store_test, TEST_IO_FLUSH);
	end(&s);
	return flushes;
}

Test(store_dm_group, one_flush_covers_many, .timeout = 60)
{
	uint64_t flushes = UINT64_MAX;

	for (int i = 0; i < 20 && flushes > 3; i++)
		flushes = gather(false);
	cr_assert_eq(flushes, 3, "%llu flushes for 1 and 8 writers", (unsigned long long)flushes);
}

/* With durable writes a flush is for the data only: one for the first, one for the others. */
Test(store_dm_group, one_flush_covers_many_with_durable_writes, .timeout = 60)
{
	uint64_t flushes = UINT64_MAX;

	for (int i = 0; i < 20 && flushes > 2; i++)
		flushes = gather(true);
	cr_assert_eq(flushes, 2, "%llu flushes for 1 and 8 writers", (unsigned long long)flushes);
}

/* The first writer's record is durable, the next group stands still in its flush. */
Test(store_dm_group, who_is_durable_need_not_wait_for_the_next_group, .timeout = 60)
{
	struct writer first, other[WRITERS];
	struct dm_scene s;
	int data, record, next;

	begin(&s, NULL);
	data = hold_flush(&s);
	start(&first, &s, 0);
	cr_assert(test_device_wait_held(s.at[0].store_test, data));
	for (unsigned i = 0; i < WRITERS; i++)
		start(&other[i], &s, 2 + 2 * i);
	until_asleep(other, WRITERS);
	record = hold_flush(&s);
	test_device_release(s.at[0].store_test, data);
	cr_assert(test_device_wait_held(s.at[0].store_test, record));
	cr_assert_not(atomic_load(&first.done), "its record is not flushed");
	next = hold_flush(&s);
	test_device_release(s.at[0].store_test, record);
	cr_assert(test_device_wait_held(s.at[0].store_test, next));
	cr_assert_eq(join(&first), 0);
	for (unsigned i = 0; i < WRITERS; i++)
		cr_assert_not(atomic_load(&other[i].done), "writer %u", i);
	test_device_release(s.at[0].store_test, next);
	for (unsigned i = 0; i < WRITERS; i++)
		cr_assert_eq(join(&other[i]), 0);
	end(&s);
}

/* The same for a follower: a group of several, and one behind it. */
Test(store_dm_group, followers_are_released_with_their_group, .timeout = 60)
{
	struct writer first, other[WRITERS], late;
	struct dm_scene s;
	int hold, next;

	begin(&s, NULL);
	hold = hold_flush(&s);
	start(&first, &s, 0);
	cr_assert(test_device_wait_held(s.at[0].store_test, hold));
	for (unsigned i = 0; i < WRITERS; i++)
		start(&other[i], &s, 2 + 2 * i);
	until_asleep(other, WRITERS);
	next = hold_flush(&s);
	test_device_release(s.at[0].store_test, hold);
	cr_assert(test_device_wait_held(s.at[0].store_test, next), "the record of the first");
	hold = hold_flush(&s);
	test_device_release(s.at[0].store_test, next);
	cr_assert(test_device_wait_held(s.at[0].store_test, hold), "the records of the others");
	start(&late, &s, 100);
	until_asleep(&late, 1);
	next = hold_flush(&s);
	test_device_release(s.at[0].store_test, hold);
	cr_assert(test_device_wait_held(s.at[0].store_test, next), "the late one's");
	cr_assert_eq(join(&first), 0);
	/* Some may have missed the group; whoever was in it is done now. */
	for (unsigned i = 0; i < WRITERS; i++)
		until_done(&other[i]);
	cr_assert_not(atomic_load(&late.done));
	test_device_release(s.at[0].store_test, next);
	for (unsigned i = 0; i < WRITERS; i++)
		cr_assert_eq(join(&other[i]), 0);
	cr_assert_eq(join(&late), 0);
	end(&s);
}

Test(store_dm_group, a_device_without_cache_pays_no_flush, .timeout = 60)
{
	struct writer writer[WRITERS];
	struct dm_scene s;

	begin(&s, &(struct dm_scene_options){.no_flush = true});
	for (unsigned i = 0; i < WRITERS; i++)
		start(&writer[i], &s, 2 * i);
	for (unsigned i = 0; i < WRITERS; i++)
		cr_assert_eq(join(&writer[i]), 0);
	cr_assert_eq(test_device_calls(s.at[0].store_test, TEST_IO_FLUSH), 0);
	end(&s);
}

/* Alone: one flush for the data and one for the record, or one and a durable write. */
Test(store_dm_group, what_a_single_copy_pays)
{
	for (unsigned durable = 0; durable < 2; durable++) {
		struct dm_scene s;

		begin(&s, &(struct dm_scene_options){.durable = durable});
		cr_assert_eq(dm_write(&s, 0, 0, 1, 1), 0);
		cr_assert_eq(test_device_calls(s.at[0].store_test, TEST_IO_FLUSH), 2 - durable);
		cr_assert_eq(test_device_calls(s.at[0].store_test, TEST_IO_WRITE), 2 - durable);
		cr_assert_eq(test_device_calls(s.at[0].store_test, TEST_IO_WRITE_DURABLE), durable);
		/* Many chunks in one write of the origin: still one group. */
		test_device_reset(s.at[0].store_test);
		cr_assert_eq(dm_write(&s, 0, 10 * CHUNK, 16 * CHUNK, 1), 0);
		cr_assert_leq(test_device_calls(s.at[0].store_test, TEST_IO_FLUSH), 2 - durable);
		end(&s);
	}
}

/* A flush fails with a group behind it: all are told, nobody is left waiting. */
Test(store_dm_group, a_failed_flush_wakes_all, .timeout = 60)
{
	struct writer first, other[WRITERS];
	struct dm_scene s;
	int hold;

	begin(&s, &(struct dm_scene_options){.on_full = COWSNAP_LOSER_WRITE});
	hold = hold_flush(&s);
	start(&first, &s, 0);
	cr_assert(test_device_wait_held(s.at[0].store_test, hold));
	for (unsigned i = 0; i < WRITERS; i++)
		start(&other[i], &s, 2 + 2 * i);
	until_asleep(other, WRITERS);
	test_device_fail(s.at[0].store_test, TEST_IO_FLUSH, 1, false, -EIO);
	test_device_release(s.at[0].store_test, hold);
	cr_assert_eq(join(&first), -EIO);
	for (unsigned i = 0; i < WRITERS; i++)
		cr_assert_eq(join(&other[i]), -EIO);
	end(&s);
}

/* A device says once that it has lost what was in its cache, to whoever asks first. If that is who
 * flushes the header, the records that were on their way may be lost all the same. */
Test(store_dm_group, a_failed_flush_of_the_header_counts_for_records, .timeout = 60)
{
	struct writer first;
	struct dm_scene s;
	int record;

	begin(&s, &(struct dm_scene_options){.on_full = COWSNAP_LOSER_WRITE});
	/* Area 0 is chunk 1. */
	record = test_device_hold(s.at[0].store_test, TEST_IO_WRITE, CHUNK, CHUNK, TEST_HOLD_AFTER);
	start(&first, &s, 0);
	cr_assert(test_device_wait_held(s.at[0].store_test, record));
	test_device_fail(s.at[0].store_test, TEST_IO_FLUSH, 1, false, -EIO);
	cr_assert_eq(dm_set_generation(&s, 0, 1), -EIO);
	test_device_release(s.at[0].store_test, record);
	cr_assert_eq(join(&first), -EIO, "its record was written before a flush that failed");
	cr_assert_eq(dm_write(&s, 0, 4 * CHUNK, 1, 1), -EIO);
	end(&s);
}

/* A writer whose data is on its way when the snapshot is dropped. */
Test(store_dm_group, a_write_meets_a_drop, .timeout = 60)
{
	struct writer first;
	struct dm_scene s;
	int data;

	begin(&s, &(struct dm_scene_options){.on_full = COWSNAP_LOSER_WRITE});
	/* The first data chunk is behind the header and area 0. */
	data = test_device_hold(
		s.at[0].store_test, TEST_IO_WRITE, 2 * CHUNK, CHUNK, TEST_HOLD_AFTER);
	start(&first, &s, 0);
	cr_assert(test_device_wait_held(s.at[0].store_test, data));
	cr_assert_eq(dm_drop(&s, 0), 0);
	test_device_release(s.at[0].store_test, data);
	cr_assert_eq(join(&first), 0);
	dm_expect_promise(&s, 0);
	cr_assert_eq(dm_take(&s), 0, "the next one begins");
	cr_assert_eq(dm_write(&s, 0, 0, 1, 2), 0);
	end(&s);
}

/* The device says already that there is no snapshot, and who looks at the snapshot still finds it
 * live: a commit that were refused now would fail the write, or lose the snapshot. */
Test(store_dm_group, a_write_meets_a_drop_half_way)
{
	struct dm_scene s;

	for (unsigned loser = 0; loser < 2; loser++) {
		begin(&s, &(struct dm_scene_options){
				  .on_full = loser ? COWSNAP_LOSER_WRITE : COWSNAP_LOSER_SNAPSHOT});
		cr_assert_eq(cs_store_drop(s.at[0].store), 0);
		cr_assert_eq(dm_write(&s, 0, 0, 1, 1), 0);
		cr_assert_eq(dm_state(&s, 0, NULL), COWSNAP_SNAPSHOT_ACTIVE);
		dm_expect_exact(&s, 0, true);
		cr_assert_eq(dm_drop(&s, 0), 0);
		dm_expect_promise(&s, 0);
		dm_close(&s);
	}
}

/* Two stores do not wait for each other. */
Test(store_dm_group, stores_are_independent, .timeout = 60)
{
	struct writer first;
	struct dm_scene s;
	int hold;

	begin(&s, &(struct dm_scene_options){.stores = 2});
	hold = hold_flush(&s);
	start(&first, &s, 0);
	cr_assert(test_device_wait_held(s.at[0].store_test, hold));
	cr_assert_eq(dm_write(&s, 1, 0, 40 * CHUNK, 1), 0);
	cr_assert_not(atomic_load(&first.done));
	test_device_release(s.at[0].store_test, hold);
	cr_assert_eq(join(&first), 0);
	dm_expect_promise(&s, 1);
	end(&s);
}

/* ---- A merge takes records off --------------------------------------------------------------- */

static void *forget_newest(void *argument)
{
	struct writer *w = argument;
	struct cowsnap_run run;

	w->rc = store_newest(w->scene->at[0].store, 0, 1, &run, 1);
	if (w->rc == 1)
		w->rc = store_forget(w->scene->at[0].store, &run, 1);
	if (!w->rc)
		cs_store_free(w->scene->at[0].store, run.location, run.count);
	return NULL;
}

static void *commit_one(void *argument)
{
	struct writer *w = argument;
	struct cowsnap_run run = {.first = w->chunk};

	atomic_store(&w->tid, syscall(SYS_gettid));
	w->rc = cowsnap_store_alloc(w->scene->at[0].store, 1, &run.location, &run.count);
	if (!w->rc)
		w->rc = cowsnap_store_commit(w->scene->at[0].store, &run, 1);
	return NULL;
}

static void begin_thread(struct writer *w, struct dm_scene *s, void *(*body)(void *))
{
	*w = (struct writer){.scene = s, .chunk = 9};
	cr_assert_eq(pthread_create(&w->thread, NULL, body, w), 0);
}

/* A commit that comes while records are forgotten waits, and then goes on behind what is left; and
 * nothing is forgotten while a commit is under way. */
Test(store_dm_group, forgetting_and_committing_exclude_each_other, .timeout = 60)
{
	struct writer merge, other, busy;
	struct cowsnap_run run;
	struct dm_scene s;
	int hold;

	begin(&s, NULL);
	cr_assert_eq(dm_write(&s, 0, 3 * CHUNK, 2 * CHUNK, 1), 0);
	hold = hold_flush(&s);
	begin_thread(&merge, &s, forget_newest);
	cr_assert(test_device_wait_held(s.at[0].store_test, hold));
	begin_thread(&other, &s, commit_one);
	until_asleep(&other, 1);
	cr_assert_eq(store_newest(s.at[0].store, 0, 1, &run, 1), -EBUSY);
	test_device_release(s.at[0].store_test, hold);
	cr_assert_eq(join(&merge), 0);
	cr_assert_eq(join(&other), 0);
	cr_assert_eq(store_newest(s.at[0].store, 0, 1, &run, 1), 1);
	cr_assert_eq(run.first, 9);
	hold = hold_flush(&s);
	begin_thread(&busy, &s, commit_one);
	cr_assert(test_device_wait_held(s.at[0].store_test, hold));
	cr_assert_eq(store_forget(s.at[0].store, &run, 1), -EBUSY);
	test_device_release(s.at[0].store_test, hold);
	cr_assert_eq(join(&busy), 0);
	dm_close(&s);
}
