/* SPDX-License-Identifier: MIT
 *
 * One case for each bug that a review found in taking, dropping, reclaiming and closing. Where the
 * window has no hold point the case is a short race, for the sanitizers to judge.
 */
#include "concurrent/scene.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "concurrent/host_store.h"
#include "origin.h"

#define CHUNK  SCENE_CHUNK
#define OLD    1
#define NEW    2
#define NEWER  3
#define ROUNDS 150

/* ---- Limbo ----------------------------------------------------------------------------------- */

/* While limbo waited for readers of before a switch of the gate, more was put into it; it was freed
 * with the rest, under readers that came after the switch. */
Test(regressions, limbo_takes_nothing_in_after_the_switch, .timeout = 60)
{
	struct cowsnap_snapshot *gone[2];
	struct actor reader[2];
	struct scene s;
	int hold[2];

	scene_open(&s, NULL);
	for (unsigned i = 0; i < 2; i++) {
		gone[i] = scene_take(&s, i, 0, COWSNAP_LOSER_SNAPSHOT);
		cr_assert_eq(scene_write(&s, i, 0, CHUNK, NEW), 0);
	}
	for (unsigned i = 0; i < 2; i++) {
		hold[i] = scene_hold(s.store_test[0], TEST_IO_READ, 0, 4 * SCENE_BYTES);
		actor_read(&reader[i], cowsnap_snapshot_ref(gone[i]), 0, CHUNK);
		scene_wait_held(s.store_test[0], hold[i]);
		scene_drop(gone[i]);
		scene_reclaim(&s);
	}
	cr_assert_eq(scene_usage(&s, 0).used_bytes, 2 * CHUNK);
	for (unsigned i = 0; i < 2; i++) {
		test_device_release(s.store_test[0], hold[i]);
		cr_assert_eq(actor_join(&reader[i]), -EIDRM);
		scene_reclaim(&s);
		cr_assert_eq(scene_usage(&s, 0).used_bytes, (1 - i) * CHUNK);
		cowsnap_snapshot_unref(gone[i]);
		free(reader[i].data);
	}
	scene_close(&s);
}

/* ---- The chain ------------------------------------------------------------------------------- */

/* Ghosts make the walk long, and each that is dropped in its turn makes a round. */
#define GHOSTS 300
#define TURNS  150

struct race {
	struct scene *scene;
	struct cowsnap_snapshot *snapshot;
	_Atomic unsigned asked;
	_Atomic unsigned wrong;
	_Atomic bool stop;
	bool dropped;
};

/* As a write asks whose chunk is not in the newest map. */
static void *ask_and_ask(void *argument)
{
	struct race *race = argument;
	struct cowsnap_snapshot *newest = race->snapshot;

	while (!atomic_load(&race->stop)) {
		if (!cs_chain_needs(newest->chain, newest, 0))
			atomic_fetch_add(&race->wrong, 1);
		atomic_fetch_add(&race->asked, 1);
	}
	return NULL;
}

/* The chain was walked twice: to find the newest live snapshot, then down to it. When that one was
 * dropped and unlinked in between, the walk went past its end, to an older map that has the chunk,
 * and the write was let go without a preimage for those between. */
Test(regressions, drop_while_a_write_asks_who_needs_the_chunk, .timeout = 60)
{
	struct cowsnap_snapshot *oldest, *keeps, *turn[TURNS], *ghost[GHOSTS];
	struct race race = {0};
	pthread_t asker;
	struct scene s;

	scene_open(&s, NULL);
	oldest = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEW), 0);
	keeps = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	for (int i = 0; i < TURNS; i++)
		turn[i] = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	for (int i = 0; i < GHOSTS; i++)
		ghost[i] = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	race.snapshot = cowsnap_snapshot_ref(ghost[GHOSTS - 1]);
	for (int i = 0; i < GHOSTS; i++)
		scene_drop(ghost[i]);
	cr_assert_eq(pthread_create(&asker, NULL, ask_and_ask, &race), 0);
	for (int i = TURNS - 1; i >= 0; i--) {
		unsigned asked = atomic_load(&race.asked);

		while (atomic_load(&race.asked) == asked)
			sched_yield();
		scene_drop(turn[i]);
		/* The oldest ghost, which it is now, and no other. */
		cowsnap_reclaim(s.ctx, 1);
	}
	atomic_store(&race.stop, true);
	pthread_join(asker, NULL);
	cr_assert_eq(atomic_load(&race.wrong), 0, "%u wrong answers", atomic_load(&race.wrong));
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEWER), 0);
	scene_expect(keeps, 0, CHUNK, NEW);
	scene_expect(oldest, 0, CHUNK, SCENE_BLANK);
	cowsnap_snapshot_unref(race.snapshot);
	scene_drop(keeps);
	scene_drop(oldest);
	scene_close(&s);
}

#define SMALL_CHUNK UINT64_C(512)
#define SMALL_BYTES (2048 * SMALL_CHUNK)

static void *drop_it(void *argument)
{
	struct race *race = argument;

	scene_drop(race->snapshot);
	return NULL;
}

/* Another thread drops, and the reclaimer stands still until it has. */
static void drop_meanwhile(void *user)
{
	struct race *race = user;
	pthread_t thread;

	if (race->dropped)
		return;
	race->dropped = true;
	cr_assert_eq(pthread_create(&thread, NULL, drop_it, race), 0);
	pthread_join(thread, NULL);
}

static struct cowsnap_snapshot *take_of(struct cowsnap_origin *origin, struct cowsnap_store *store)
{
	struct cowsnap_take_entry entry = {.origin = origin, .store = store};

	cr_assert_eq(cowsnap_take(store->handle.ctx, NULL, &entry, 1), 0);
	return entry.snapshot;
}

static void touch(struct cowsnap_origin *origin, uint64_t offset, uint64_t length)
{
	struct cowsnap_op op;

	cr_assert_eq(cowsnap_write_begin(origin, COWSNAP_WRITE, offset, length, &op), 0);
	cowsnap_write_end(&op);
}

/* The last live snapshot was dropped while the newest ghost was walked. The walk then marked that
 * ghost as looked through, for ever; with a bracket open, nobody came back for its space. */
Test(regressions, drop_while_the_newest_ghost_is_walked, .timeout = 60)
{
	struct race race = {0};
	/* Space that does not lie together fills limbo, so that it is freed in mid-walk. */
	struct host_store host = {.stride = 2, .freed = drop_meanwhile, .user = &race};
	struct cowsnap_device *device;
	struct cowsnap_origin *origin;
	struct cowsnap_snapshot *newest;
	struct cowsnap_op op;
	struct scene s;

	scene_open(&s, NULL);
	host_store_open(&host, s.ctx, SMALL_CHUNK, 16384, 0);
	cr_assert_eq(cowsnap_device_memory(s.ctx, SMALL_BYTES, &device), 0);
	cr_assert_eq(cowsnap_origin_open(s.ctx, device, &origin), 0);
	/* The older one lacks the first chunk, so the newest must keep that. */
	race.snapshot = take_of(origin, host.store);
	touch(origin, SMALL_CHUNK, SMALL_BYTES - SMALL_CHUNK);
	newest = take_of(origin, host.store);
	touch(origin, 0, SMALL_BYTES);
	cr_assert_eq(cowsnap_write_begin(origin, COWSNAP_WRITE, 0, 1, &op), 0);
	scene_drop(newest);
	for (int i = 0; i < 3; i++)
		cr_assert_eq(cowsnap_reclaim(s.ctx, UINT64_MAX), 0);
	cr_assert(race.dropped);
	cowsnap_write_end(&op);
	scene_reclaim(&s);
	cr_assert_eq(atomic_load(&host.used), 0, "%llu chunks are lost",
		(unsigned long long)atomic_load(&host.used));
	host_store_close(&host);
	cr_assert_eq(cowsnap_origin_close(origin), 0);
	cr_assert_eq(cowsnap_device_close(device), 0);
	scene_close(&s);
}

/* ---- Heads ----------------------------------------------------------------------------------- */

struct inside {
	struct cowsnap_origin *origin;
	struct cs_gate_pass pass;
};

/* As a write does that goes no further for a while: it has entered, and knows its heads. */
static void enter_in_thaw(void *user)
{
	struct inside *inside = user;

	cs_gate_enter(&inside->origin->gate, &inside->pass);
}

/* The heads of a take of two stores held no reference to the snapshots in them. When the take was
 * withdrawn these were freed, under a write that had entered and looked at their maps. */
Test(regressions, withdrawn_snapshots_stay_for_who_looks_at_them, .timeout = 60)
{
	struct cowsnap_take_options options = {.size = sizeof(options), .deadline_ns = 1};
	struct cowsnap_snapshot *older[2], *dropped;
	struct cowsnap_take_entry entry = {0};
	struct cowsnap_op stuck;
	struct cs_heads *heads;
	struct inside inside;
	struct scene s;

	scene_open(&s, NULL);
	dropped = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	for (unsigned i = 0; i < 2; i++)
		older[i] = scene_take(&s, 0, i, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(cowsnap_write_begin(s.origin[0], COWSNAP_WRITE, 0, CHUNK, &stuck), 0);
	entry.origin = s.origin[0];
	entry.store = s.store[0];
	inside.origin = s.origin[0];
	options.thaw = enter_in_thaw;
	options.user = &inside;
	cr_assert_eq(cowsnap_take(s.ctx, &options, &entry, 1), -ETIMEDOUT);
	heads = cs_origin_heads(s.origin[0], inside.pass.slot);
	/* Its memory takes the place of what the take gave back. */
	scene_drop(dropped);
	scene_reclaim(&s);
	cr_assert_eq(heads->count, 2);
	for (size_t i = 0; i < heads->count; i++) {
		cr_assert_gt(atomic_load(&heads->head[i].newest->refs), 0);
		cowsnap_map_done(&heads->head[i].newest->map, 0, 1);
	}
	cs_gate_leave(&s.origin[0]->gate, &inside.pass);
	cowsnap_write_end(&stuck);
	for (unsigned i = 0; i < 2; i++) {
		scene_expect(older[i], CHUNK, CHUNK, SCENE_BLANK);
		scene_drop(older[i]);
	}
	scene_close(&s);
}

struct counted {
	_Atomic int64_t blocks;
	_Atomic bool armed;
	bool fired;
	struct cowsnap_snapshot *snapshot;
	pthread_t thread;
};

static void *drop_counted(void *argument)
{
	struct counted *counted = argument;

	cowsnap_snapshot_drop(counted->snapshot);
	return NULL;
}

/* With the lock of the context held: the other thread gets as far as its snapshot is not live. */
static void *counted_alloc(void *user, size_t bytes, size_t align)
{
	struct counted *counted = user;
	void *memory;

	if (atomic_exchange(&counted->armed, false)) {
		counted->fired = true;
		pthread_create(&counted->thread, NULL, drop_counted, counted);
		while (atomic_load(&counted->snapshot->chain->live))
			sched_yield();
	}
	if (posix_memalign(&memory, align < sizeof(void *) ? sizeof(void *) : align, bytes))
		return NULL;
	atomic_fetch_add(&counted->blocks, 1);
	return memory;
}

static void counted_free(void *user, void *memory, size_t bytes)
{
	struct counted *counted = user;

	(void)bytes;
	if (memory)
		atomic_fetch_sub(&counted->blocks, 1);
	free(memory);
}

/* Heads without the chain of a drop were being made when the other chain lost its snapshot too:
 * the new heads had nothing in them, and nobody freed them. */
Test(regressions, heads_with_nothing_in_them_are_not_kept, .timeout = 60)
{
	struct counted counted = {0};
	const struct cowsnap_allocator allocator = {.size = sizeof(allocator),
		.user = &counted,
		.alloc = counted_alloc,
		.free = counted_free};
	const struct cowsnap_ctx_options options = {
		.size = sizeof(options), .allocator = &allocator};
	struct cowsnap_take_entry entry[2];
	struct cowsnap_device *device;
	struct cowsnap_origin *origin;
	struct cowsnap_ctx *ctx;

	memset(entry, 0, sizeof(entry));
	cr_assert_eq(cowsnap_ctx_create(&options, &ctx), 0);
	cr_assert_eq(cowsnap_device_memory(ctx, SCENE_BYTES, &device), 0);
	cr_assert_eq(cowsnap_origin_open(ctx, device, &origin), 0);
	for (int i = 0; i < 2; i++) {
		cr_assert_eq(cowsnap_store_transient(ctx, NULL, &entry[i].store), 0);
		entry[i].origin = origin;
	}
	cr_assert_eq(cowsnap_take(ctx, NULL, entry, 2), 0);
	counted.snapshot = entry[1].snapshot;
	atomic_store(&counted.armed, true);
	cr_assert_eq(cowsnap_snapshot_drop(entry[0].snapshot), 0);
	cr_assert(counted.fired, "no heads were made");
	pthread_join(counted.thread, NULL);
	for (int i = 0; i < 2; i++)
		cowsnap_snapshot_unref(entry[i].snapshot);
	for (int i = 0; i < 2; i++)
		cr_assert_eq(cowsnap_store_close(entry[i].store), 0);
	cr_assert_eq(cowsnap_origin_close(origin), 0);
	cr_assert_eq(cowsnap_device_close(device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
	cr_assert_eq(atomic_load(&counted.blocks), 0);
}

/* ---- Closing --------------------------------------------------------------------------------- */

static void *reclaim_and_reclaim(void *argument)
{
	struct race *race = argument;

	while (!atomic_load(&race->stop))
		cowsnap_reclaim(race->scene->ctx, UINT64_MAX);
	return NULL;
}

/* A reclaimer that had found the store in the context went on with it after it was closed. */
Test(regressions, store_is_not_closed_under_a_reclaimer, .timeout = 60)
{
	struct race race = {0};
	pthread_t reclaimer;
	struct scene s;

	scene_open(&s, NULL);
	race.scene = &s;
	cr_assert_eq(pthread_create(&reclaimer, NULL, reclaim_and_reclaim, &race), 0);
	for (int i = 0; i < 4 * ROUNDS; i++) {
		struct cowsnap_store *store;

		cr_assert_eq(cowsnap_store_transient(s.ctx, NULL, &store), 0);
		scene_drop(take_of(s.origin[0], store));
		cr_assert_eq(cowsnap_store_close(store), 0);
	}
	atomic_store(&race.stop, true);
	pthread_join(reclaimer, NULL);
	scene_close(&s);
}

#define CLOSERS 8

/* One life of some origins, of which each leaves something for the reclaimer. */
static void open_and_close(struct scene *s, struct cowsnap_device **device)
{
	struct cowsnap_take_entry entry[CLOSERS];

	memset(entry, 0, sizeof(entry));
	for (int i = 0; i < CLOSERS; i++) {
		entry[i].store = s->store[0];
		cr_assert_eq(cowsnap_origin_open(s->ctx, device[i], &entry[i].origin), 0);
	}
	cr_assert_eq(cowsnap_take(s->ctx, NULL, entry, CLOSERS), 0);
	for (int i = 0; i < CLOSERS; i++) {
		touch(entry[i].origin, 0, CHUNK);
		scene_drop(entry[i].snapshot);
	}
	for (int i = 0; i < CLOSERS; i++) {
		int rc;

		/* -EBUSY while the other thread is in the middle of it. */
		while ((rc = cowsnap_origin_close(entry[i].origin)) == -EBUSY)
			sched_yield();
		cr_assert_eq(rc, 0);
	}
}

/* A reclaimer stood on a chain of an origin when that origin was closed, and its chains with it, by
 * a thread that saw its snapshots gone. */
Test(regressions, origin_is_not_closed_under_a_reclaimer, .timeout = 60)
{
	struct cowsnap_device *device[CLOSERS];
	struct race race = {0};
	pthread_t reclaimer;
	struct scene s;

	scene_open(&s, NULL);
	race.scene = &s;
	for (int i = 0; i < CLOSERS; i++)
		cr_assert_eq(cowsnap_device_memory(s.ctx, SCENE_BYTES, &device[i]), 0);
	cr_assert_eq(pthread_create(&reclaimer, NULL, reclaim_and_reclaim, &race), 0);
	for (int i = 0; i < ROUNDS; i++)
		open_and_close(&s, device);
	atomic_store(&race.stop, true);
	pthread_join(reclaimer, NULL);
	for (int i = 0; i < CLOSERS; i++)
		cr_assert_eq(cowsnap_device_close(device[i]), 0);
	scene_close(&s);
}

/* ---- A store for one snapshot ---------------------------------------------------------------- */

/* It was called full until somebody happened to reclaim, though its snapshot was dropped. */
Test(regressions, one_snapshot_store_is_free_after_the_drop, .timeout = 60)
{
	struct host_store host = {0};
	struct cowsnap_take_entry entry = {0};
	struct scene s;

	scene_open(&s, NULL);
	host_store_open(&host, s.ctx, CHUNK, 64, COWSNAP_STORE_ONE_SNAPSHOT);
	entry.origin = s.origin[0];
	entry.store = host.store;
	for (int i = 0; i < 3; i++) {
		struct cowsnap_snapshot *snapshot = take_of(s.origin[0], host.store);

		cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEW), 0);
		cr_assert_eq(cowsnap_take(s.ctx, NULL, &entry, 1), -ENOTSUP, "it lives");
		scene_drop(snapshot);
	}
	host_store_close(&host);
	scene_close(&s);
}

/* A take that waited for a reader to leave slept to its deadline when what the reader had held back
 * was a snapshot and no space. */
Test(regressions, take_wakes_when_a_store_without_space_to_free_is_empty, .timeout = 60)
{
	struct host_store host = {0};
	struct cowsnap_snapshot *read;
	struct cowsnap_store *store;
	struct actor reader, taker;
	struct scene s;
	int hold;

	scene_open(&s, NULL);
	host_store_open(&host, s.ctx, CHUNK, 64, COWSNAP_STORE_ONE_SNAPSHOT);
	read = take_of(s.origin[0], host.store);
	hold = scene_hold(s.origin_test[0], TEST_IO_READ, 0, CHUNK);
	actor_read(&reader, cowsnap_snapshot_ref(read), 0, CHUNK);
	scene_wait_held(s.origin_test[0], hold);
	scene_drop(read);
	scene_drop(take_of(s.origin[0], host.store));
	store = s.store[0];
	s.store[0] = host.store;
	actor_take(&taker, &s, 1, UINT64_MAX);
	s.store[0] = store;
	while (!atomic_load(&host.store->space_waiters) && !atomic_load(&taker.finished))
		sched_yield();
	test_device_release(s.origin_test[0], hold);
	cr_assert_eq(actor_join(&reader), -EIDRM);
	cowsnap_snapshot_unref(read);
	free(reader.data);
	cr_assert_eq(actor_join(&taker), 0);
	scene_drop(taker.entry[0].snapshot);
	host_store_close(&host);
	scene_close(&s);
}

/* An origin and a store named twice were refused with another error on such a store. */
Test(regressions, pair_named_twice_on_a_one_snapshot_store, .timeout = 60)
{
	struct host_store host = {0};
	struct cowsnap_take_entry entry[2];
	struct scene s;

	scene_open(&s, NULL);
	host_store_open(&host, s.ctx, CHUNK, 64, COWSNAP_STORE_ONE_SNAPSHOT);
	memset(entry, 0, sizeof(entry));
	for (int i = 0; i < 2; i++) {
		entry[i].origin = s.origin[0];
		entry[i].store = host.store;
	}
	cr_assert_eq(cowsnap_take(s.ctx, NULL, entry, 2), -EINVAL);
	scene_drop(take_of(s.origin[0], host.store));
	host_store_close(&host);
	scene_close(&s);
}

/* A host's table that names space outside its device was believed: only the device found out, and
 * its -ERANGE became the reason of the snapshot's loss. */
Test(regressions, location_outside_the_store_is_an_error, .timeout = 60)
{
	struct host_store host = {.stride = 1000};
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	scene_open(&s, NULL);
	host_store_open(&host, s.ctx, CHUNK, 64, 0);
	snapshot = take_of(s.origin[0], host.store);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEW), 0, "location 0 exists");
	cr_assert_eq(scene_write(&s, 0, CHUNK, CHUNK, NEW), 0);
	scene_expect_state(snapshot, COWSNAP_SNAPSHOT_INVALID, -EIO);
	scene_drop(snapshot);
	scene_reclaim(&s);
	cr_assert_eq(atomic_fetch_sub(&host.used, 1), 1, "what it gave wrongly is its own");
	host_store_close(&host);
	scene_close(&s);
}

/* What a later drop made reclaimable in a newest ghost that had been looked through was left out of
 * the upper bound. */
Test(regressions, what_a_later_drop_leaves_is_reclaimable, .timeout = 60)
{
	struct cowsnap_snapshot *oldest, *middle, *newest;
	struct cowsnap_store_usage before, after;
	struct scene s;

	scene_open(&s, NULL);
	oldest = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scene_write(&s, 0, 0, SCENE_CHUNK, 1), 0);
	middle = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	newest = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scene_write(&s, 0, 0, SCENE_CHUNK, 2), 0);
	scene_drop(newest);
	while (cowsnap_reclaim(s.ctx, UINT64_MAX) == 1)
		;
	scene_drop(middle);
	cr_assert_eq(cowsnap_store_usage(s.store[0], &before, sizeof(before)), 0);
	while (cowsnap_reclaim(s.ctx, UINT64_MAX) == 1)
		;
	cr_assert_eq(cowsnap_store_usage(s.store[0], &after, sizeof(after)), 0);
	cr_assert_lt(after.used_bytes, before.used_bytes);
	cr_assert_geq(before.reclaimable_bytes, before.used_bytes - after.used_bytes);
	scene_drop(oldest);
	scene_close(&s);
}
