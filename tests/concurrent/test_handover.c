/* SPDX-License-Identifier: MIT
 *
 * Handing a persistent store over while its origin is in use: whose bracket is waited for, what
 * begins meanwhile, who else wants to end the snapshot; and what others got wrong here.
 */
#include "concurrent/exporter.h"

#include <stdio.h>
#include <unistd.h>

/* ---- Brackets -------------------------------------------------------------------------------- */

Test(handover, an_open_bracket_is_in_the_way)
{
	struct cowsnap_op op;
	struct dm_scene s;

	begin(&s, NULL);
	/* Saved just now, and long ago. */
	for (uint64_t chunk = 4; chunk <= 5; chunk++) {
		bracket_begin(&s, chunk, &op);
		expect_refused(&s, -ETIMEDOUT);
		cr_assert_eq(dm_write(&s, 0, (chunk + 50) * CHUNK, CHUNK, 3), 0);
		bracket_end(&s, chunk, &op);
	}
	end(&s);
}

Test(handover, an_open_bracket_is_waited_for)
{
	struct exporter e;
	struct cowsnap_op op;
	struct dm_scene s;

	begin(&s, NULL);
	bracket_begin(&s, 5, &op);
	start(&e, &s);
	until_waiting(&e);
	bracket_end(&s, 5, &op);
	finish(&e);
	end(&s);
}

Test(handover, what_begins_during_the_wait_is_saved)
{
	struct cowsnap_op first, second;
	struct exporter e;
	struct dm_scene s;

	begin(&s, NULL);
	bracket_begin(&s, 5, &first);
	start(&e, &s);
	until_waiting(&e);
	/* None of these waits for the export, so a thread may have more than one open. */
	cr_assert_eq(dm_write(&s, 0, 61 * CHUNK, 3 * CHUNK, 5), 0);
	bracket_begin(&s, 71, &second);
	bracket_end(&s, 5, &first);
	until_waiting(&e);
	cr_assert_eq(dm_write(&s, 0, 81 * CHUNK, 3 * CHUNK, 5), 0);
	bracket_end(&s, 71, &second);
	finish(&e);
	end(&s);
}

Test(handover, takes_go_on_during_the_wait)
{
	struct dm_scene_options options = {.stores = 2};
	struct cowsnap_take_entry entry = {0};
	struct cowsnap_op op;
	struct exporter e;
	struct dm_scene s;

	begin(&s, &options);
	bracket_begin(&s, 5, &op);
	start(&e, &s);
	until_waiting(&e);
	cr_assert_eq(dm_drop(&s, 1), 0);
	entry.origin = s.at[1].origin;
	entry.store = s.at[1].store;
	memcpy(s.at[1].image, s.at[1].live, s.options.origin_bytes);
	cr_assert_eq(cowsnap_take(s.ctx, NULL, &entry, 1), 0);
	s.at[1].snapshot = entry.snapshot;
	s.at[1].promise = DM_ACTIVE;
	bracket_end(&s, 5, &op);
	finish(&e);
	dm_expect_exact(&s, 1, true);
	end(&s);
}

static int try_in_freeze(void *user)
{
	struct dm_scene *s = user;

	expect_refused(s, -ETIMEDOUT);
	return 0;
}

/* The freeze of a take of another origin: its turn is waited for as a bracket is. */
Test(handover, a_take_under_way_is_in_the_way)
{
	struct dm_scene_options options = {.stores = 2};
	struct cowsnap_take_options take = {.size = sizeof(take), .freeze = try_in_freeze};
	struct cowsnap_take_entry entry = {0};
	struct dm_scene s;

	begin(&s, &options);
	cr_assert_eq(dm_drop(&s, 1), 0);
	entry.origin = s.at[1].origin;
	entry.store = s.at[1].store;
	take.user = &s;
	cr_assert_eq(cowsnap_take(s.ctx, &take, &entry, 1), 0);
	s.at[1].snapshot = entry.snapshot;
	memcpy(s.at[1].image, s.at[1].live, s.options.origin_bytes);
	end(&s);
}

/* Linux b735fede8d95, 09ee96b21456 (4.0): handover while the origin still had pending exceptions,
 * which completed into the store that had been given away. */
static void pending_exception(enum test_io kind)
{
	struct exporter e;
	struct dm_scene s;
	struct writer w = {.scene = &s, .chunk = 77};
	int hold;

	begin(&s, NULL);
	hold = test_device_hold(
		s.at[0].store_test, kind, 0, s.options.store_bytes, TEST_HOLD_BEFORE);
	cr_assert_eq(pthread_create(&w.thread, NULL, run_write, &w), 0);
	cr_assert(test_device_wait_held(s.at[0].store_test, hold));
	expect_refused(&s, -ETIMEDOUT);
	start(&e, &s);
	until_waiting(&e);
	test_device_release(s.at[0].store_test, hold);
	pthread_join(w.thread, NULL);
	cr_assert_eq(w.rc, 0);
	finish(&e);
	cr_assert_eq(dm_usage(&s, 0).used_bytes, 21 * CHUNK);
	end(&s);
}

Test(handover, linux_b735fede8d95_the_copy_of_a_pending_exception)
{
	pending_exception(TEST_IO_WRITE);
}

Test(handover, linux_09ee96b21456_the_record_of_a_pending_exception)
{
	pending_exception(TEST_IO_FLUSH);
}

/* A write that was refused leaves nothing behind: the space of its copy is free for the next
 * owner. */
Test(handover, a_bracket_that_fails_is_waited_for)
{
	struct dm_scene_options options = {.on_full = COWSNAP_LOSER_WRITE};
	struct exporter e;
	struct dm_scene s;
	struct writer w = {.scene = &s, .chunk = 77};
	int hold;

	begin(&s, &options);
	hold = test_device_hold(
		s.at[0].store_test, TEST_IO_WRITE, 0, s.options.store_bytes, TEST_HOLD_BEFORE);
	cr_assert_eq(pthread_create(&w.thread, NULL, run_write, &w), 0);
	cr_assert(test_device_wait_held(s.at[0].store_test, hold));
	start(&e, &s);
	until_waiting(&e);
	test_device_fail(s.at[0].store_test, TEST_IO_WRITE, 1, true, -EIO);
	test_device_release(s.at[0].store_test, hold);
	pthread_join(w.thread, NULL);
	test_device_heal(s.at[0].store_test);
	cr_assert_eq(w.rc == 0, dm_usage(&s, 0).used_bytes == 21 * CHUNK);
	finish(&e);
	end(&s);
}

/* ---- On their way ---------------------------------------------------------------------------- */

struct remote {
	struct cowsnap_op op;
	struct dm_scene *scene;
	unsigned store;
	uint64_t chunk;
	_Atomic bool done;
	int error;
};

static void remote_done(struct cowsnap_op *op, void *user, int error)
{
	struct remote *r = user;
	struct dm_store *at = &r->scene->at[r->store];

	r->error = error;
	if (!error) {
		memset(at->live + r->chunk * CHUNK, 0xdd, CHUNK);
		if (cowsnap_device_write(at->origin_device, at->live + r->chunk * CHUNK,
			    r->chunk * CHUNK, CHUNK))
			r->error = -EIO;
		cowsnap_write_end(op);
	}
	atomic_store(&r->done, true);
}

static int remote_begin(struct remote *r, struct dm_scene *s, unsigned store, uint64_t chunk,
	struct cowsnap_queue *queue)
{
	*r = (struct remote){.scene = s, .store = store, .chunk = chunk};
	return cowsnap_write_begin_async(s->at[store].origin, queue, COWSNAP_WRITE, chunk * CHUNK,
		CHUNK, &r->op, remote_done, r);
}

static void remote_until(struct remote *r, struct cowsnap_queue *queue)
{
	while (!atomic_load(&r->done)) {
		if (queue)
			cr_assert_geq(cowsnap_queue_poll(queue), 0);
		sched_yield();
	}
}

/* The only worker is busy with the other origin, so a bracket of this one has begun and is nowhere
 * yet: the gate is empty. */
Test(handover, a_bracket_on_its_way_is_waited_for)
{
	const struct dm_scene_options options = {
		.stores = 2, .engine = COWSNAP_ENGINE_WORKERS, .workers = 1};
	struct remote busy, late;
	struct exporter e;
	struct dm_scene s;
	int hold;

	begin(&s, &options);
	hold = test_device_hold(
		s.at[1].store_test, TEST_IO_WRITE, 0, s.options.store_bytes, TEST_HOLD_BEFORE);
	cr_assert_eq(remote_begin(&busy, &s, 1, 3, NULL), COWSNAP_PENDING);
	cr_assert(test_device_wait_held(s.at[1].store_test, hold));
	cr_assert_eq(remote_begin(&late, &s, 0, 99, NULL), COWSNAP_PENDING);
	cr_assert(cs_gate_empty(&s.at[0].origin->gate));
	expect_refused(&s, -ETIMEDOUT);
	start(&e, &s);
	until_waiting(&e);
	test_device_release(s.at[1].store_test, hold);
	remote_until(&busy, NULL);
	remote_until(&late, NULL);
	cr_assert_eq(busy.error, 0);
	cr_assert_eq(late.error, 0);
	finish(&e);
	cr_assert_eq(dm_usage(&s, 0).used_bytes, 21 * CHUNK);
	end(&s);
}

/* The same in a queue whose only record is with a write of the other origin. */
Test(handover, a_cancelled_bracket_ends_the_wait)
{
	const struct dm_scene_options options = {.stores = 2};
	struct cowsnap_queue *queue;
	struct remote first, late;
	struct exporter e;
	struct dm_scene s;
	struct writer w = {.scene = &s, .store = 1, .chunk = 3};
	int hold;

	begin(&s, &options);
	cr_assert_eq(cowsnap_queue_create(s.ctx, 1, &queue), 0);
	hold = test_device_hold(
		s.at[1].store_test, TEST_IO_WRITE, 0, s.options.store_bytes, TEST_HOLD_BEFORE);
	cr_assert_eq(pthread_create(&w.thread, NULL, run_write, &w), 0);
	cr_assert(test_device_wait_held(s.at[1].store_test, hold));
	cr_assert_eq(remote_begin(&first, &s, 1, 3, queue), COWSNAP_PENDING);
	cr_assert_eq(remote_begin(&late, &s, 0, 99, queue), COWSNAP_PENDING);
	cr_assert(cs_gate_empty(&s.at[0].origin->gate));
	expect_refused(&s, -ETIMEDOUT);
	start(&e, &s);
	until_waiting(&e);
	cr_assert_eq(cowsnap_op_cancel(&late.op), 0);
	remote_until(&late, queue);
	cr_assert_eq(late.error, -ECANCELED);
	/* The other one is where it was. */
	pthread_join(e.thread, NULL);
	e.joined = true;
	test_device_release(s.at[1].store_test, hold);
	remote_until(&first, queue);
	pthread_join(w.thread, NULL);
	cr_assert_eq(w.rc, 0);
	finish(&e);
	cr_assert_eq(dm_usage(&s, 0).used_bytes, 20 * CHUNK);
	cr_assert_eq(cowsnap_queue_close(queue), 0);
	end(&s);
}

/* ---- Again and again ------------------------------------------------------------------------- */

/* Linux 2c945820cab9 (3.14): a loader that kept no copy of the last area, so that the next commit
 * wiped it. */
Test(handover, linux_2c945820cab9_reload_one_write_reload)
{
	struct handed h = {0};
	struct dm_scene s;

	dm_open(&s, NULL);
	cr_assert_eq(dm_begin(&s), 0);
	for (uint64_t chunk = 0; chunk < 100; chunk++) {
		cr_assert_eq(handed_out(&s, 0, 0, &h), 0);
		cr_assert_eq(handed_in(&s, 0, &h), 0);
		handed_free(&h);
		cr_assert_eq(dm_usage(&s, 0).used_bytes, chunk * CHUNK);
		cr_assert_eq(dm_write(&s, 0, chunk * CHUNK, CHUNK, 9), 0);
		cr_assert_eq(handed_out(&s, 0, 0, &h), 0);
		cr_assert_eq(handed_in(&s, 0, &h), 0);
		handed_free(&h);
		dm_expect_exact(&s, 0, true);
		if (chunk % 8 == 0)
			dm_expect_promise(&s, 0);
	}
	end(&s);
}

/* Writers that keep to the host's part of the contract go on through many owners. */
struct host {
	struct dm_scene scene;
	pthread_rwlock_t lock; /* to begin, who has it for reading; to hand over, for writing */
	_Atomic bool stop;
};

struct guest {
	struct host *host;
	pthread_t thread;
	unsigned number;
	unsigned writes;
};

static void *run_guest(void *argument)
{
	struct guest *g = argument;
	struct host *host = g->host;
	struct dm_store *at = &host->scene.at[0];

	while (!atomic_load(&host->stop)) {
		uint64_t chunk = (g->number + 4 * (g->writes++ * 7 % 32)) % 128;
		struct cowsnap_op op;
		int rc;

		pthread_rwlock_rdlock(&host->lock);
		rc = cowsnap_write_begin(at->origin, COWSNAP_WRITE, chunk * CHUNK, CHUNK, &op);
		pthread_rwlock_unlock(&host->lock);
		cr_assert_eq(rc, 0);
		bracket_end(&host->scene, chunk, &op);
		sched_yield();
	}
	return NULL;
}

Test(handover, writers_go_on_through_many_owners)
{
	struct host host = {.lock = PTHREAD_RWLOCK_INITIALIZER};
	struct dm_scene *s = &host.scene;
	struct guest guests[4];

	begin(s, NULL);
	for (unsigned i = 0; i < 4; i++) {
		guests[i] = (struct guest){.host = &host, .number = i};
		cr_assert_eq(pthread_create(&guests[i].thread, NULL, run_guest, &guests[i]), 0);
	}
	for (unsigned round = 0; round < SOME(200); round++) {
		struct handed h = {0};

		pthread_rwlock_wrlock(&host.lock);
		cr_assert_eq(handed_out(s, 0, UINT64_MAX, &h), 0);
		cr_assert_eq(handed_in(s, 0, &h), 0);
		dm_expect_exact(s, 0, true);
		if (round % 10 == 0) {
			cr_assert_eq(dm_drop(s, 0), 0);
			cr_assert_eq(dm_take(s), 0);
		}
		pthread_rwlock_unlock(&host.lock);
		handed_free(&h);
		sched_yield();
	}
	atomic_store(&host.stop, true);
	for (unsigned i = 0; i < 4; i++)
		pthread_join(guests[i].thread, NULL);
	end(s);
}

/* ---- Two contexts ---------------------------------------------------------------------------- */

struct side {
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *origin_device, *device;
	struct cowsnap_take_entry entry;
};

static void side_open(struct side *side, const char *origin, const char *store)
{
	memset(side, 0, sizeof(*side));
	cr_assert_eq(cowsnap_ctx_create(NULL, &side->ctx), 0);
	cr_assert_eq(cowsnap_device_file(side->ctx, origin, NULL, &side->origin_device), 0);
	cr_assert_eq(cowsnap_device_file(side->ctx, store, NULL, &side->device), 0);
	cr_assert_eq(cowsnap_origin_open(side->ctx, side->origin_device, &side->entry.origin), 0);
}

static void side_close(struct side *side)
{
	if (side->entry.snapshot)
		cowsnap_snapshot_unref(side->entry.snapshot);
	cr_assert_eq(cowsnap_store_close(side->entry.store), 0);
	cr_assert_eq(cowsnap_origin_close(side->entry.origin), 0);
	cr_assert_eq(cowsnap_device_close(side->device), 0);
	cr_assert_eq(cowsnap_device_close(side->origin_device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(side->ctx), 0);
}

static int side_import(struct side *side, struct handed *h)
{
	struct cowsnap_dm_options options = {.size = sizeof(options), .device = side->device};
	struct cowsnap_store *store = NULL;
	int rc;

	h->at = 0;
	rc = cowsnap_store_dm_import(side->ctx, &options, handed_read, h, &side->entry, &store);
	side->entry.store = store;
	return rc;
}

static void make_file(char path[64], uint64_t bytes)
{
	const char *folder = getenv("TMPDIR");
	int fd;

	snprintf(path, 64, "%.40s/cowsnap-XXXXXX", folder ? folder : "/tmp");
	fd = mkstemp(path);
	cr_assert_geq(fd, 0);
	cr_assert_eq(ftruncate(fd, (off_t)bytes), 0);
	close(fd);
}

static void side_write(struct side *side, uint64_t chunk)
{
	uint8_t bytes[CHUNK];
	struct cowsnap_op op;

	memset(bytes, 1, sizeof(bytes));
	cr_assert_eq(
		cowsnap_write_begin(side->entry.origin, COWSNAP_WRITE, chunk * CHUNK, CHUNK, &op),
		0);
	cr_assert_eq(cowsnap_device_write(side->origin_device, bytes, chunk * CHUNK, CHUNK), 0);
	cowsnap_write_end(&op);
}

static void side_expect_zeroes(struct side *side)
{
	uint8_t bytes[64 * CHUNK];

	cr_assert_eq(cowsnap_snapshot_read(side->entry.snapshot, bytes, 0, sizeof(bytes)), 0);
	for (size_t b = 0; b < sizeof(bytes); b++)
		cr_assert_eq(bytes[b], 0);
}

/* The next owner tries before he may, and while the last one is still there. */
struct eager {
	struct side *next;
	struct handed *state;
	unsigned refused;
};

static void try_early(void *user)
{
	struct eager *eager = user;
	struct cowsnap_dm_options options = {
		.size = sizeof(options), .device = eager->next->device};
	int rc = cowsnap_store_dm_open(
		eager->next->ctx, &options, &eager->next->entry, &eager->next->entry.store);

	/* From the end of the state on he could. */
	if (rc == -EBUSY)
		eager->refused++;
	else
		cr_assert_eq(dm_image_get(eager->state->data, 8) != 0, true);
	if (rc == 0) {
		cr_assert_eq(cowsnap_snapshot_deactivate(eager->next->entry.snapshot), 0);
		cowsnap_snapshot_unref(eager->next->entry.snapshot);
		eager->next->entry.snapshot = NULL;
		cr_assert_eq(cowsnap_store_close(eager->next->entry.store), 0);
	}
	eager->next->entry.store = NULL;
}

Test(handover, another_context_takes_over)
{
	char origin[64], path[64];
	struct side last, next;
	struct handed h = {0};
	struct eager eager = {.next = &next, .state = &h};
	struct cowsnap_dm_options options = {.size = sizeof(options), .chunk_size_bytes = CHUNK};

	make_file(origin, 64 * CHUNK);
	make_file(path, 128 * CHUNK);
	side_open(&last, origin, path);
	side_open(&next, origin, path);
	options.device = last.device;
	cr_assert_eq(cowsnap_store_dm_create(last.ctx, &options, &last.entry.store), 0);
	cr_assert_eq(cowsnap_take(last.ctx, NULL, &last.entry, 1), 0);
	for (uint64_t chunk = 0; chunk < 40; chunk += 3)
		side_write(&last, chunk);
	h.then = try_early;
	h.user = &eager;
	cr_assert_eq(cowsnap_store_export(last.entry.store, 0, handed_write, &h), 0);
	cr_assert_eq(eager.refused, 2); /* header, and runs; then the end */
	/* The last owner is still there, and closes only later. */
	cr_assert_eq(side_import(&next, &h), 0);
	for (uint64_t chunk = 0; chunk < 64; chunk++)
		side_write(&next, chunk);
	side_close(&last);
	side_expect_zeroes(&next);
	/* Who comes with the state once more, is refused; and it is old by now. */
	side_open(&last, origin, path);
	cr_assert_eq(side_import(&last, &h), -EBUSY);
	cr_assert_eq(cowsnap_snapshot_deactivate(next.entry.snapshot), 0);
	side_close(&next);
	cr_assert_eq(side_import(&last, &h), -ESTALE);
	options.device = last.device;
	cr_assert_eq(cowsnap_store_dm_open(last.ctx, &options, &last.entry, &last.entry.store), 0);
	side_expect_zeroes(&last);
	cr_assert_eq(cowsnap_snapshot_drop(last.entry.snapshot), 0);
	side_close(&last);
	handed_free(&h);
	unlink(origin);
	unlink(path);
}
