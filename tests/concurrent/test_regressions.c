/* SPDX-License-Identifier: MIT
 *
 * One case for each bug that a review found in saving, in waiting for space and in the gate.
 */
#include "concurrent/scene.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "alloc.h"
#include "concurrent/host_store.h"
#include "gate.h"
#include "store.h"

#define CHUNK    SCENE_CHUNK
#define OLD      1
#define NEW      2
#define NEWER    3
#define FOR_EVER UINT64_MAX
#define MS       UINT64_C(1000000)

static const struct scene_options one_chunk = {.limit_chunks = 1};

static struct cowsnap_snapshot *take_entry(struct scene *s, struct cowsnap_take_entry entry)
{
	if (!entry.origin)
		entry.origin = s->origin[0];
	entry.store = s->store[0];
	cr_assert_eq(cowsnap_take(s->ctx, NULL, &entry, 1), 0);
	return entry.snapshot;
}

/* ---- Waiting for space ----------------------------------------------------------------------- */

struct meeting {
	struct cs_event here;
	struct cs_event go_on;
};

static enum cowsnap_decision hold_then_fail(void *user, const struct cowsnap_trouble *trouble)
{
	struct meeting *meeting = user;

	(void)trouble;
	cs_event_set(&meeting->here);
	cs_event_wait(&meeting->go_on);
	return COWSNAP_DECIDE_WRITE;
}

/* The host is asked inside the read gate. Space was dropped meanwhile, but who waited for it found
 * it held back by the one who asks, and that one left without a look for waiters. */
Test(regressions, asking_the_host_holds_space_back_until_its_end, .timeout = 60)
{
	struct cowsnap_snapshot *full, *asks, *waits;
	struct actor asker, waiter;
	struct meeting meeting;
	struct scene s;

	scene_open(&s, &one_chunk);
	cs_event_init(&meeting.here);
	cs_event_init(&meeting.go_on);
	full = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, OLD), 0, "the store is full now");
	asks = take_entry(&s,
		(struct cowsnap_take_entry){
			.on_full = COWSNAP_LOSER_ASK, .decide = hold_then_fail, .user = &meeting});
	waits = take_entry(&s, (struct cowsnap_take_entry){.origin = s.origin[1],
				       .on_full = COWSNAP_LOSER_WRITE,
				       .wait_ns = 10000 * MS});
	actor_write(&asker, &s, 0, CHUNK, CHUNK, NEW);
	cs_event_wait(&meeting.here);
	scene_drop(full);
	actor_write(&waiter, &s, 1, 0, CHUNK, NEW);
	while (!atomic_load(&s.store[0]->space_waiters))
		sched_yield();
	cs_event_set(&meeting.go_on);
	cr_assert_eq(actor_join(&asker), -ENOSPC);
	cr_assert_eq(actor_join(&waiter), 0, "nobody told the waiter");
	scene_drop(asks);
	scene_drop(waits);
	scene_close(&s);
}

/* The device of the store said that it has no space. That was taken for a full store: the write
 * tried again at once, thousands of times, since each failure gave space back. */
Test(regressions, device_without_space_is_a_failed_copy, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	scene_open(&s, NULL);
	snapshot = take_entry(&s,
		(struct cowsnap_take_entry){.on_full = COWSNAP_LOSER_WRITE, .wait_ns = 80 * MS});
	test_device_fail(s.store_test[0], TEST_IO_WRITE, 1, true, -ENOSPC);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEW), -ENOSPC);
	cr_assert(test_device_calls(s.store_test[0], TEST_IO_WRITE) <= 9, "%llu attempts",
		(unsigned long long)test_device_calls(s.store_test[0], TEST_IO_WRITE));
	cr_assert_eq(scene_stats(&s).space_waits, 0);
	cr_assert_eq(scene_count_events(&s, COWSNAP_EVENT_FULL), 0, "it is not the store");
	scene_drop(snapshot);
	scene_close(&s);
}

struct retries {
	struct test_device *device;
	unsigned asked;
	uint64_t calls[3]; /* when it was asked */
};

static enum cowsnap_decision retry_twice(void *user, const struct cowsnap_trouble *trouble)
{
	struct retries *retries = user;

	cr_assert_eq(trouble->attempt, ++retries->asked);
	retries->calls[trouble->attempt - 1] = test_device_calls(retries->device, TEST_IO_WRITE);
	return retries->asked < 3 ? COWSNAP_DECIDE_RETRY : COWSNAP_DECIDE_WRITE;
}

/* A host that answers "once more" got a new series of pauses, because the count of failures was
 * compared with its bound for equality only. */
Test(regressions, retry_is_a_single_one, .timeout = 60)
{
	struct retries retries = {0};
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	scene_open(&s, NULL);
	retries.device = s.store_test[0];
	snapshot = take_entry(&s, (struct cowsnap_take_entry){.on_full = COWSNAP_LOSER_ASK,
					  .wait_ns = 200 * MS,
					  .decide = retry_twice,
					  .user = &retries});
	test_device_fail(s.store_test[0], TEST_IO_WRITE, 1, true, -EIO);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEW), -EIO);
	cr_assert_eq(retries.asked, 3);
	cr_assert(retries.calls[0] <= 9);
	cr_assert_eq(retries.calls[1], retries.calls[0] + 1);
	cr_assert_eq(retries.calls[2], retries.calls[1] + 1);
	scene_drop(snapshot);
	scene_close(&s);
}

/* Whoever waits for ever paused for a ninth part of for ever after a failed copy. */
Test(regressions, failed_copy_is_tried_again_by_who_waits_for_ever, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	scene_open(&s, NULL);
	snapshot = take_entry(&s,
		(struct cowsnap_take_entry){.on_full = COWSNAP_LOSER_WRITE, .wait_ns = FOR_EVER});
	test_device_fail(s.store_test[0], TEST_IO_WRITE, 1, false, -EIO);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEW), 0);
	cr_assert_eq(test_device_calls(s.store_test[0], TEST_IO_WRITE), 2);
	scene_expect(snapshot, 0, CHUNK, SCENE_BLANK);
	scene_drop(snapshot);
	scene_close(&s);
}

/* Each change of the store's space ended the pause before the next attempt, so the failures of
 * others burnt a write's attempts in no time. */
Test(regressions, changes_of_space_do_not_burn_retries, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct actor writer;
	struct scene s;

	scene_open(&s, NULL);
	snapshot = take_entry(&s,
		(struct cowsnap_take_entry){.on_full = COWSNAP_LOSER_WRITE, .wait_ns = FOR_EVER});
	test_device_fail(s.store_test[0], TEST_IO_WRITE, 1, true, -EIO);
	actor_write(&writer, &s, 0, 0, CHUNK, NEW);
	while (!atomic_load(&s.store[0]->space_waiters))
		sched_yield();
	for (unsigned i = 0; i < 2000 && !atomic_load(&writer.finished); i++) {
		cr_assert_eq(cowsnap_store_set_limit(s.store[0], (16 + i % 2) * CHUNK), 0);
		sched_yield();
	}
	cr_assert(!atomic_load(&writer.finished), "eight pauses of a second are not over");
	/* Nobody waits for a snapshot that is dropped. */
	scene_drop(snapshot);
	cr_assert_eq(actor_join(&writer), 0);
	scene_close(&s);
}

/* ---- Telling the host ------------------------------------------------------------------------ */

struct told {
	struct scene *scene;
	struct cowsnap_snapshot *snapshot;
	_Atomic unsigned times;
	struct actor other;
};

static struct told told;

static void write_when_told(void *user, const struct cowsnap_event *event)
{
	struct cowsnap_extent extent;

	(void)user;
	if (event->type != COWSNAP_EVENT_LOW_WATER || atomic_fetch_add(&told.times, 1))
		return;
	cr_assert_eq(cowsnap_snapshot_extent(told.snapshot, 0, CHUNK, &extent), 0);
	cr_assert(extent.saved, "the writer that tells still holds a claim");
	actor_write(&told.other, told.scene, 0, 0, CHUNK, NEWER);
	cr_assert_eq(actor_join(&told.other), 0);
}

/* The host was told that space is low while the writer held a claim: a host that then waited for
 * another writer of the chunk waited for ever. */
Test(regressions, low_water_is_told_without_a_claim, .timeout = 60)
{
	const struct cowsnap_ctx_options options = {
		.size = sizeof(options), .event = write_when_told};
	struct cowsnap_transient_options transient = {.size = sizeof(transient),
		.chunk_size_bytes = CHUNK,
		.limit_bytes = 8 * CHUNK,
		.low_water_bytes = 8 * CHUNK};
	struct scene s;

	memset(&s, 0, sizeof(s));
	memset(&told, 0, sizeof(told));
	cr_assert_eq(cowsnap_ctx_create(&options, &s.ctx), 0);
	cr_assert_eq(cowsnap_device_memory(s.ctx, SCENE_BYTES, &s.origin_device[0]), 0);
	cr_assert_eq(cowsnap_origin_open(s.ctx, s.origin_device[0], &s.origin[0]), 0);
	cr_assert_eq(cowsnap_store_transient(s.ctx, &transient, &s.store[0]), 0);
	told.scene = &s;
	told.snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEW), 0);
	cr_assert_eq(atomic_load(&told.times), 1);
	scene_expect(told.snapshot, 0, CHUNK, SCENE_BLANK);
	scene_drop(told.snapshot);
	cr_assert_eq(cowsnap_store_close(s.store[0]), 0);
	cr_assert_eq(cowsnap_origin_close(s.origin[0]), 0);
	cr_assert_eq(cowsnap_device_close(s.origin_device[0]), 0);
	cr_assert_eq(cowsnap_ctx_destroy(s.ctx), 0);
}

struct durable {
	struct cs_event go_on;
	_Atomic unsigned inside; /* invalidate() */
	_Atomic bool done;
};

static void hold_invalidate(void *user)
{
	struct durable *durable = user;

	atomic_fetch_add(&durable->inside, 1);
	cs_event_wait(&durable->go_on);
	atomic_store(&durable->done, true);
}

static void until_inside(struct durable *durable, unsigned count, const struct actor *actor)
{
	while (atomic_load(&durable->inside) < count && !atomic_load(&actor->finished))
		sched_yield();
}

/* A snapshot could be seen to be invalid before the store had made that durable, and another write
 * was admitted because of it. A crash then would have left a snapshot that looks whole. */
Test(regressions, no_write_before_the_loss_is_durable, .timeout = 60)
{
	struct durable durable = {0};
	struct host_store host = {.lost = hold_invalidate, .user = &durable};
	struct cowsnap_take_entry entry = {0};
	struct actor first, second;
	struct scene s;

	scene_open(&s, NULL);
	cs_event_init(&durable.go_on);
	host_store_open(&host, s.ctx, CHUNK, 64, 0);
	entry.origin = s.origin[0];
	entry.store = host.store;
	cr_assert_eq(cowsnap_take(s.ctx, NULL, &entry, 1), 0);
	atomic_store(&host.full, true);
	actor_write(&first, &s, 0, 0, CHUNK, NEW);
	until_inside(&durable, 1, &first);
	/* It says so itself, or it waits; in no case it goes on. */
	actor_write(&second, &s, 0, CHUNK, CHUNK, NEW);
	until_inside(&durable, 2, &second);
	cr_assert(!atomic_load(&first.finished) && !atomic_load(&second.finished));
	cs_event_set(&durable.go_on);
	cr_assert_eq(actor_join(&first), 0);
	cr_assert_eq(actor_join(&second), 0);
	cr_assert(atomic_load(&durable.done));
	scene_expect_state(entry.snapshot, COWSNAP_SNAPSHOT_INVALID, -ENOSPC);
	scene_drop(entry.snapshot);
	host_store_close(&host);
	scene_close(&s);
}

/* ---- Sizes ----------------------------------------------------------------------------------- */

static int blank_read(void *user, void *buffer, uint64_t offset, uint64_t length)
{
	(void)user;
	(void)offset;
	memset(buffer, 0, length);
	return 0;
}

static int blank_write(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	(void)user;
	(void)buffer;
	(void)offset;
	(void)length;
	return 0;
}

/* What a write of the longest volume wants of four stores is 2 to the 64: the sum was 0. */
Test(regressions, wanted_bytes_do_not_wrap, .timeout = 60)
{
	const struct cowsnap_device_ops ops = {
		.size = sizeof(ops), .read = blank_read, .write = blank_write};
	const struct cowsnap_device_options options = {
		.size = sizeof(options), .size_bytes = COWSNAP_SIZE_MAX};
	const struct cowsnap_transient_options transient = {
		.size = sizeof(transient), .chunk_size_bytes = CHUNK, .limit_bytes = CHUNK};
	struct cowsnap_take_entry entry[4];
	struct cowsnap_device *device;
	struct cowsnap_origin *origin;
	struct cowsnap_ctx *ctx;
	struct cowsnap_op op;

	memset(entry, 0, sizeof(entry));
	cr_assert_eq(cowsnap_ctx_create(NULL, &ctx), 0);
	cr_assert_eq(cowsnap_device_create(ctx, &ops, &options, NULL, &device), 0);
	cr_assert_eq(cowsnap_origin_open(ctx, device, &origin), 0);
	for (int i = 0; i < 4; i++) {
		cr_assert_eq(cowsnap_store_transient(ctx, &transient, &entry[i].store), 0);
		entry[i].origin = origin;
		entry[i].on_full = COWSNAP_LOSER_WRITE;
	}
	cr_assert_eq(cowsnap_take(ctx, NULL, entry, 4), 0);
	cr_assert_eq(
		cowsnap_write_begin(origin, COWSNAP_DISCARD, 0, COWSNAP_SIZE_MAX, &op), -ENOSPC);
	for (int i = 0; i < 4; i++)
		scene_drop(entry[i].snapshot);
	for (int i = 0; i < 4; i++)
		cr_assert_eq(cowsnap_store_close(entry[i].store), 0);
	cr_assert_eq(cowsnap_origin_close(origin), 0);
	cr_assert_eq(cowsnap_device_close(device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

/* ---- Counting -------------------------------------------------------------------------------- */

/* Who entered a slot by mistake takes that back, perhaps after the slot was chosen anew: its count
 * of entries is below zero then, and was read as a huge one. */
Test(regressions, entry_taken_back_after_the_slot_was_chosen)
{
	_Atomic uint64_t epoch = 0, *count;
	struct cs_gate gate;
	struct cs_gate_pass pass;

	cr_assert_eq(cs_gate_init(&gate, cs_alloc_libc(), &epoch), 0);
	cs_gate_enter(&gate, &pass);
	cs_gate_leave(&gate, &pass);
	count = &gate.stripes[0].count[1];
	atomic_fetch_add(count, CS_GATE_ENTRY);
	cs_gate_switch(&gate, 1, 1);
	cs_gate_take_back(&gate, count, CS_GATE_ENTRY);
	cr_assert_eq(cs_gate_entries(&gate), 1);
	atomic_store(&epoch, 1);
	cs_gate_switch(&gate, 1, 0);
	cr_assert_eq(cs_gate_entries(&gate), 1);
	cs_gate_switch(&gate, 2, 0);
	cs_gate_switch(&gate, 1, 0);
	cr_assert_eq(cs_gate_entries(&gate), 1);
	cs_gate_fini(&gate, cs_alloc_libc());
}

static void write_in_thaw(void *user)
{
	struct actor *writer = user;

	actor_write(writer, writer->scene, 0, CHUNK, CHUNK, NEW);
	scene_until(writer->scene, drain_waits, 1);
}

/* A write that waited for a take which was withdrawn entered twice, and was counted twice. */
Test(regressions, write_behind_a_withdrawn_take_counts_once, .timeout = 60)
{
	struct cowsnap_take_options options = {.size = sizeof(options), .deadline_ns = 1};
	struct cowsnap_take_entry entry = {0};
	struct cowsnap_op stuck;
	struct actor writer;
	struct scene s;

	scene_open(&s, NULL);
	entry.origin = s.origin[0];
	entry.store = s.store[0];
	writer.scene = &s;
	options.thaw = write_in_thaw;
	options.user = &writer;
	cr_assert_eq(cowsnap_write_begin(s.origin[0], COWSNAP_WRITE, 0, CHUNK, &stuck), 0);
	cr_assert_eq(cowsnap_take(s.ctx, &options, &entry, 1), -ETIMEDOUT);
	cr_assert_eq(actor_join(&writer), 0);
	cowsnap_write_end(&stuck);
	cr_assert_eq(scene_stats(&s).writes, 2);
	cr_assert_eq(scene_stats(&s).fast_writes, 1);
	scene_close(&s);
}

static struct cowsnap_store *told_of[4];
static unsigned told_count;

static void note_full(void *user, const struct cowsnap_event *event)
{
	(void)user;
	if (event->type == COWSNAP_EVENT_FULL && told_count < 4)
		told_of[told_count++] = event->store;
}

/* One write that finds two stores full told the host of the first only. */
Test(regressions, each_full_store_is_told_of, .timeout = 60)
{
	struct cowsnap_ctx_options options = {.size = sizeof(options), .event = note_full};
	struct cowsnap_transient_options small = {.size = sizeof(small), .limit_bytes = 4096};
	struct cowsnap_take_entry entry[2] = {{0}};
	struct cowsnap_origin *origin;
	struct cowsnap_device *device;
	struct cowsnap_store *store[2];
	struct cowsnap_ctx *ctx;
	struct cowsnap_op op;

	told_count = 0;
	cr_assert_eq(cowsnap_ctx_create(&options, &ctx), 0);
	cr_assert_eq(cowsnap_device_memory(ctx, 65536, &device), 0);
	cr_assert_eq(cowsnap_origin_open(ctx, device, &origin), 0);
	for (int i = 0; i < 2; i++) {
		cr_assert_eq(cowsnap_store_transient(ctx, &small, &store[i]), 0);
		entry[i].origin = origin;
		entry[i].store = store[i];
	}
	cr_assert_eq(cowsnap_take(ctx, NULL, entry, 2), 0);
	for (uint64_t chunk = 0; chunk < 2; chunk++) {
		cr_assert_eq(
			cowsnap_write_begin(origin, COWSNAP_WRITE, chunk * 4096, 4096, &op), 0);
		cowsnap_write_end(&op);
	}
	cr_assert_eq(told_count, 2);
	cr_assert_neq(told_of[0], told_of[1]);
	for (int i = 0; i < 2; i++) {
		cr_assert_eq(cowsnap_snapshot_drop(entry[i].snapshot), 0);
		cowsnap_snapshot_unref(entry[i].snapshot);
	}
	for (int i = 0; i < 2; i++)
		cr_assert_eq(cowsnap_store_close(store[i]), 0);
	cr_assert_eq(cowsnap_origin_close(origin), 0);
	cr_assert_eq(cowsnap_device_close(device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}
