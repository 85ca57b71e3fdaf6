/* SPDX-License-Identifier: MIT
 *
 * The store is full, or a copy fails, under each policy: who loses, what stays whole, who is told.
 */
#include "concurrent/scene.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK    SCENE_CHUNK
#define OLD      1
#define NEW      2
#define NEWER    3
#define FOR_EVER UINT64_MAX

static const struct scene_options one_chunk = {.limit_chunks = 1};

/* How a host answers when it is asked. */
struct answers {
	struct scene *scene;
	enum cowsnap_decision then;    /* after the attempts below */
	unsigned retries;              /* attempts answered with RETRY */
	uint64_t grow_chunks;          /* before each RETRY: the new limit of store 0; 0: none */
	struct cowsnap_snapshot *drop; /* before the first RETRY; NULL: none */
	bool heal;                     /* before each RETRY: the devices stop failing */
	_Atomic unsigned asked;
	struct cowsnap_trouble last;
};

static enum cowsnap_decision answer(void *user, const struct cowsnap_trouble *trouble)
{
	struct answers *a = user;

	cr_assert_eq(atomic_fetch_add(&a->asked, 1) + 1, trouble->attempt);
	a->last = *trouble;
	if (trouble->attempt > a->retries)
		return a->then;
	if (a->grow_chunks)
		cr_assert_eq(
			cowsnap_store_set_limit(a->scene->store[0], a->grow_chunks * CHUNK), 0);
	if (a->drop)
		scene_drop(a->drop);
	a->drop = NULL;
	if (a->heal)
		test_device_heal(a->scene->origin_test[0]);
	return COWSNAP_DECIDE_RETRY;
}

static struct cowsnap_snapshot *take_asking(struct scene *s, unsigned origin, struct answers *a)
{
	struct cowsnap_take_entry entry = {
		.origin = s->origin[origin],
		.store = s->store[0],
		.on_full = COWSNAP_LOSER_ASK,
		.decide = answer,
		.user = a,
	};

	a->scene = s;
	cr_assert_eq(cowsnap_take(s->ctx, NULL, &entry, 1), 0);
	cr_assert_eq(cowsnap_snapshot_user(entry.snapshot), (void *)a);
	return entry.snapshot;
}

static struct cowsnap_snapshot *take_waiting(
	struct scene *s, unsigned origin, enum cowsnap_loser on_full, uint64_t wait_ns)
{
	struct cowsnap_take_entry entry = {
		.origin = s->origin[origin],
		.store = s->store[0],
		.on_full = on_full,
		.wait_ns = wait_ns,
	};

	cr_assert_eq(cowsnap_take(s->ctx, NULL, &entry, 1), 0);
	return entry.snapshot;
}

static void fill(struct scene *s, unsigned origin, uint8_t value)
{
	cr_assert_eq(scene_write(s, origin, 0, SCENE_BYTES, value), 0);
}

static const struct cowsnap_event *find_event(struct scene *s, enum cowsnap_event_type type)
{
	for (unsigned i = 0; i < atomic_load(&s->events); i++) {
		if (s->event[i].type == type)
			return &s->event[i];
	}
	return NULL;
}

/* ---- Full ------------------------------------------------------------------------------------ */

/* The older snapshot has the chunk in its own map: it does not need this preimage and stays. */
Test(trouble, full_store_invalidates_only_who_needs_it, .timeout = 60)
{
	struct cowsnap_snapshot *older, *newer, *elsewhere;
	struct cowsnap_snapshot_info info;
	const struct cowsnap_event *event;
	struct scene s;

	scene_open(&s, &one_chunk);
	fill(&s, 0, OLD);
	older = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	elsewhere = scene_take(&s, 0, 1, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scene_write(&s, 0, 3 * CHUNK, CHUNK, NEW), 0);
	newer = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scene_write(&s, 0, 3 * CHUNK, CHUNK, NEWER), 0, "the write goes on");
	scene_expect_state(newer, COWSNAP_SNAPSHOT_INVALID, -ENOSPC);
	scene_expect_state(older, COWSNAP_SNAPSHOT_ACTIVE, 0);
	scene_expect(older, 0, SCENE_BYTES, OLD);
	scene_expect(elsewhere, 0, SCENE_BYTES, OLD);
	cr_assert_eq(cowsnap_snapshot_info(newer, &info, sizeof(info)), 0);
	cr_assert_eq(info.reason_offset, 3 * CHUNK);
	cr_assert_eq(info.reason_length, CHUNK);
	cr_assert_eq(scene_count_events(&s, COWSNAP_EVENT_INVALID), 1);
	event = find_event(&s, COWSNAP_EVENT_INVALID);
	cr_assert_eq(event->snapshot, newer);
	cr_assert_eq(event->store, s.store[0]);
	cr_assert_eq(event->reason, -ENOSPC);
	event = find_event(&s, COWSNAP_EVENT_FULL);
	cr_assert_not_null(event);
	cr_assert_eq(event->store, s.store[0]);
	cr_assert_eq(event->limit_bytes, CHUNK);
	cr_assert_eq(event->used_bytes, CHUNK);
	cr_assert_eq(scene_write(&s, 0, 3 * CHUNK, CHUNK, OLD), 0);
	scene_expect(older, 0, SCENE_BYTES, OLD);
	cr_assert_eq(scene_count_events(&s, COWSNAP_EVENT_INVALID), 1, "nobody loses twice");
	scene_drop(newer);
	scene_drop(older);
	scene_drop(elsewhere);
	scene_close(&s);
}

/* Whoever shares the preimage shares the loss. */
Test(trouble, full_store_invalidates_all_who_need_it, .timeout = 60)
{
	struct cowsnap_snapshot *first, *second, *other;
	struct scene s;

	scene_open(&s, &one_chunk);
	fill(&s, 0, OLD);
	first = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	second = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	other = scene_take(&s, 1, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEW), 0);
	scene_expect(first, 0, SCENE_BYTES, OLD);
	scene_expect(second, 0, SCENE_BYTES, OLD);
	cr_assert_eq(scene_write(&s, 0, CHUNK, CHUNK, NEW), 0);
	scene_expect_state(first, COWSNAP_SNAPSHOT_INVALID, -ENOSPC);
	scene_expect_state(second, COWSNAP_SNAPSHOT_INVALID, -ENOSPC);
	scene_expect_state(other, COWSNAP_SNAPSHOT_ACTIVE, 0);
	cr_assert_eq(scene_count_events(&s, COWSNAP_EVENT_INVALID), 2);
	scene_drop(first);
	scene_drop(second);
	cr_assert_eq(scene_write(&s, 1, 0, CHUNK, NEW), 0, "their space serves others now");
	scene_expect_state(other, COWSNAP_SNAPSHOT_ACTIVE, 0);
	scene_expect(other, 0, CHUNK, SCENE_BLANK);
	scene_drop(other);
	scene_close(&s);
}

Test(trouble, full_store_fails_the_write, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct cowsnap_op op;
	struct scene s;
	uint8_t byte;

	scene_open(&s, &one_chunk);
	fill(&s, 0, OLD);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_WRITE);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEW), 0);
	for (int i = 0; i < 3; i++)
		cr_assert_eq(
			cowsnap_write_begin(s.origin[0], COWSNAP_DISCARD, CHUNK, 1, &op), -ENOSPC);
	cr_assert_eq(cowsnap_device_read(s.origin_device[0], &byte, CHUNK, 1), 0);
	cr_assert_eq(byte, OLD);
	scene_expect_state(snapshot, COWSNAP_SNAPSHOT_ACTIVE, 0);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	cr_assert_eq(scene_stats(&s).failed_writes, 3);
	cr_assert_eq(scene_count_events(&s, COWSNAP_EVENT_INVALID), 0);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEWER), 0, "what is saved can be written");
	cr_assert_eq(cowsnap_store_set_limit(s.store[0], 2 * CHUNK), 0);
	cr_assert_eq(scene_write(&s, 0, CHUNK, CHUNK, NEW), 0, "room again, no claim is stuck");
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_drop(snapshot);
	scene_close(&s);
}

/* A refused write of many chunks leaves no bracket and no busy chunk behind. */
Test(trouble, refused_write_of_many_chunks, .timeout = 60)
{
	const struct scene_options options = {.limit_chunks = 5};
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	scene_open(&s, &options);
	fill(&s, 0, OLD);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_WRITE);
	cr_assert_eq(scene_write(&s, 0, 100, 10 * CHUNK, NEW), -ENOSPC);
	cr_assert_eq(scene_write(&s, 0, 100, 10 * CHUNK, NEW), -ENOSPC);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	cr_assert_eq(cowsnap_store_set_limit(s.store[0], 20 * CHUNK), 0);
	cr_assert_eq(scene_write(&s, 0, 100, 10 * CHUNK, NEW), 0);
	cr_assert_eq(scene_stats(&s).copied_chunks, 11, "each chunk once");
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_drop(snapshot);
	scene_close(&s);
}

/* One snapshot would rather be given up, the other must stay: a failed write hurts neither. */
Test(trouble, write_loses_if_one_of_them_says_so, .timeout = 60)
{
	struct cowsnap_snapshot *gives_up, *stays;
	struct scene s;

	scene_open(&s, &one_chunk);
	fill(&s, 0, OLD);
	gives_up = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	stays = scene_take(&s, 0, 0, COWSNAP_LOSER_WRITE);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEW), 0);
	cr_assert_eq(scene_write(&s, 0, CHUNK, CHUNK, NEW), -ENOSPC);
	scene_expect_state(stays, COWSNAP_SNAPSHOT_ACTIVE, 0);
	scene_expect(stays, 0, SCENE_BYTES, OLD);
	scene_drop(stays);
	cr_assert_eq(scene_write(&s, 0, CHUNK, CHUNK, NEW), 0);
	scene_expect_state(gives_up, COWSNAP_SNAPSHOT_INVALID, -ENOSPC);
	scene_drop(gives_up);
	scene_close(&s);
}

Test(trouble, waiting_for_space_ends_with_a_loser, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	scene_open(&s, &one_chunk);
	fill(&s, 0, OLD);
	snapshot = take_waiting(&s, 0, COWSNAP_LOSER_WRITE, 5000000);
	cr_assert_eq(scene_write(&s, 0, 0, 2 * CHUNK, NEW), -ENOSPC);
	cr_assert(scene_stats(&s).space_waits >= 1);
	scene_expect_state(snapshot, COWSNAP_SNAPSHOT_ACTIVE, 0);
	scene_drop(snapshot);
	snapshot = take_waiting(&s, 0, COWSNAP_LOSER_SNAPSHOT, 5000000);
	cr_assert_eq(scene_write(&s, 0, 0, 2 * CHUNK, NEW), 0);
	scene_expect_state(snapshot, COWSNAP_SNAPSHOT_INVALID, -ENOSPC);
	scene_drop(snapshot);
	scene_close(&s);
}

Test(trouble, waiting_for_space_is_satisfied_by_a_larger_limit, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct actor writer[2];
	struct scene s;

	scene_open(&s, &one_chunk);
	fill(&s, 0, OLD);
	snapshot = take_waiting(&s, 0, COWSNAP_LOSER_SNAPSHOT, FOR_EVER);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEW), 0);
	for (unsigned i = 0; i < 2; i++)
		actor_write(&writer[i], &s, 0, (i + 4) * CHUNK, CHUNK, NEW);
	scene_until(&s, space_waits, 2);
	cr_assert(!atomic_load(&writer[0].finished));
	cr_assert_eq(cowsnap_store_set_limit(s.store[0], 3 * CHUNK), 0);
	for (unsigned i = 0; i < 2; i++)
		cr_assert_eq(actor_join(&writer[i]), 0);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_drop(snapshot);
	scene_close(&s);
}

/* The writer waits for ever; another snapshot of the store, then one of the writer's own chain, is
 * dropped and reclaimed. */
Test(trouble, waiting_for_space_is_satisfied_by_a_drop, .timeout = 60)
{
	for (unsigned origin = 0; origin < 2; origin++) {
		struct cowsnap_snapshot *holder, *snapshot;
		struct actor writer;
		struct scene s;

		scene_open(&s, &one_chunk);
		fill(&s, 0, OLD);
		holder = scene_take(&s, origin, 0, COWSNAP_LOSER_SNAPSHOT);
		cr_assert_eq(scene_write(&s, origin, 0, CHUNK, OLD), 0);
		snapshot = take_waiting(&s, 0, COWSNAP_LOSER_SNAPSHOT, FOR_EVER);
		actor_write(&writer, &s, 0, 0, CHUNK, NEW);
		scene_until(&s, space_waits, 1);
		cr_assert(!atomic_load(&writer.finished));
		scene_drop(holder);
		while (!atomic_load(&writer.finished)) {
			cowsnap_reclaim(s.ctx, UINT64_MAX);
			sched_yield();
		}
		cr_assert_eq(actor_join(&writer), 0);
		scene_expect(snapshot, 0, SCENE_BYTES, OLD);
		scene_drop(snapshot);
		scene_close(&s);
	}
}

/* It waits for ever for a snapshot that is dropped meanwhile: nobody needs the space any more. */
Test(trouble, waiting_for_space_ends_when_the_snapshot_is_dropped, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct actor writer;
	struct scene s;

	scene_open(&s, &one_chunk);
	snapshot = take_waiting(&s, 0, COWSNAP_LOSER_WRITE, FOR_EVER);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEW), 0);
	actor_write(&writer, &s, 0, CHUNK, CHUNK, NEW);
	scene_until(&s, space_waits, 1);
	scene_drop(snapshot);
	cr_assert_eq(actor_join(&writer), 0);
	scene_close(&s);
}

/* Nobody can take while it waits, but the take gives up and the wait goes on. */
Test(trouble, take_while_a_writer_waits_for_space, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct actor writer, take;
	struct scene s;

	scene_open(&s, &one_chunk);
	fill(&s, 0, OLD);
	snapshot = take_waiting(&s, 0, COWSNAP_LOSER_SNAPSHOT, FOR_EVER);
	actor_write(&writer, &s, 0, 0, 2 * CHUNK, NEW);
	scene_until(&s, space_waits, 1);
	actor_take(&take, &s, 1, 1000000);
	cr_assert_eq(actor_join(&take), -ETIMEDOUT);
	actor_take(&take, &s, 1, FOR_EVER);
	while (!atomic_load(&take.thawed))
		sched_yield();
	cr_assert_eq(cowsnap_store_set_limit(s.store[0], 2 * CHUNK), 0);
	cr_assert_eq(actor_join(&writer), 0);
	cr_assert_eq(actor_join(&take), 0);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_expect(take.entry[0].snapshot, 0, 2 * CHUNK, NEW);
	scene_drop(take.entry[0].snapshot);
	scene_drop(snapshot);
	scene_close(&s);
}

/* A reader is on its way while its snapshot becomes invalid: it gets nothing. */
Test(trouble, read_of_a_snapshot_that_becomes_invalid, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct actor reader;
	struct scene s;
	int hold;

	scene_open(&s, &one_chunk);
	fill(&s, 0, OLD);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	hold = scene_hold(s.origin_test[0], TEST_IO_READ, 7 * CHUNK, CHUNK);
	actor_read(&reader, snapshot, 7 * CHUNK, CHUNK);
	scene_wait_held(s.origin_test[0], hold);
	cr_assert_eq(scene_write(&s, 0, 0, 2 * CHUNK, NEW), 0);
	test_device_release(s.origin_test[0], hold);
	cr_assert_eq(actor_join(&reader), -ESTALE);
	free(reader.data);
	scene_expect_state(snapshot, COWSNAP_SNAPSHOT_INVALID, -ENOSPC);
	scene_drop(snapshot);
	scene_close(&s);
}

/* ---- Asked ----------------------------------------------------------------------------------- */

Test(trouble, asked_and_the_store_is_grown, .timeout = 60)
{
	struct answers answers = {.retries = 1, .grow_chunks = 4};
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	scene_open(&s, &one_chunk);
	fill(&s, 0, OLD);
	snapshot = take_asking(&s, 0, &answers);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEW), 0);
	cr_assert_eq(answers.asked, 0);
	cr_assert_eq(scene_write(&s, 0, CHUNK, CHUNK, NEW), 0);
	cr_assert_eq(answers.asked, 1);
	cr_assert_eq(answers.last.snapshot, snapshot);
	cr_assert_eq(answers.last.store, s.store[0]);
	cr_assert_eq(answers.last.reason, -ENOSPC);
	cr_assert_eq(answers.last.offset, CHUNK);
	cr_assert_eq(answers.last.length, CHUNK);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_drop(snapshot);
	scene_close(&s);
}

Test(trouble, asked_and_another_snapshot_is_dropped, .timeout = 60)
{
	for (unsigned origin = 0; origin < 2; origin++) {
		struct answers answers = {.retries = 1};
		struct cowsnap_snapshot *snapshot;
		struct scene s;

		scene_open(&s, &one_chunk);
		fill(&s, 0, OLD);
		answers.drop = scene_take(&s, origin, 0, COWSNAP_LOSER_SNAPSHOT);
		cr_assert_eq(scene_write(&s, origin, 0, CHUNK, OLD), 0);
		snapshot = take_asking(&s, 0, &answers);
		cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEW), 0);
		cr_assert_eq(answers.asked, 1);
		scene_expect(snapshot, 0, SCENE_BYTES, OLD);
		scene_drop(snapshot);
		scene_close(&s);
	}
}

/* The host drops the very snapshot that it is asked about. */
Test(trouble, asked_and_the_snapshot_itself_is_dropped, .timeout = 60)
{
	static const enum cowsnap_decision then[] = {
		COWSNAP_DECIDE_SNAPSHOT, COWSNAP_DECIDE_WRITE, COWSNAP_DECIDE_RETRY};

	for (unsigned i = 0; i < 3; i++) {
		struct answers answers = {.retries = 1};
		struct scene s;

		scene_open(&s, &one_chunk);
		answers.then = then[i];
		answers.drop = take_asking(&s, 0, &answers);
		cr_assert_eq(scene_write(&s, 0, 0, 3 * CHUNK, NEW), 0, "nobody needs a copy");
		cr_assert_eq(answers.asked, 1);
		scene_close(&s);
	}
}

Test(trouble, asked_again_and_again, .timeout = 60)
{
	static const enum cowsnap_decision then[] = {COWSNAP_DECIDE_SNAPSHOT, COWSNAP_DECIDE_WRITE};

	for (unsigned i = 0; i < 2; i++) {
		struct answers answers = {.retries = 5, .then = then[i]};
		struct cowsnap_snapshot *snapshot;
		struct scene s;

		scene_open(&s, &one_chunk);
		fill(&s, 0, OLD);
		snapshot = take_asking(&s, 0, &answers);
		cr_assert_eq(scene_write(&s, 0, 0, 2 * CHUNK, NEW),
			then[i] == COWSNAP_DECIDE_WRITE ? -ENOSPC : 0);
		cr_assert_eq(answers.asked, 6);
		if (then[i] == COWSNAP_DECIDE_WRITE)
			scene_expect(snapshot, 0, SCENE_BYTES, OLD);
		else
			scene_expect_state(snapshot, COWSNAP_SNAPSHOT_INVALID, -ENOSPC);
		scene_drop(snapshot);
		scene_close(&s);
	}
}

/* ---- Copies that fail ------------------------------------------------------------------------ */

Test(trouble, failed_store_write_costs_that_stores_snapshots, .timeout = 60)
{
	struct cowsnap_snapshot *here, *elsewhere;
	struct scene s;

	scene_open(&s, NULL);
	fill(&s, 0, OLD);
	here = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	elsewhere = scene_take(&s, 0, 1, COWSNAP_LOSER_WRITE);
	test_device_fail_range(s.store_test[0], TEST_IO_WRITE, 0, 4 * SCENE_BYTES, -EIO);
	cr_assert_eq(scene_write(&s, 0, CHUNK, 3 * CHUNK, NEW), 0);
	scene_expect_state(here, COWSNAP_SNAPSHOT_INVALID, -EIO);
	scene_expect_state(elsewhere, COWSNAP_SNAPSHOT_ACTIVE, 0);
	scene_expect(elsewhere, 0, SCENE_BYTES, OLD);
	cr_assert_eq(scene_count_events(&s, COWSNAP_EVENT_INVALID), 1);
	cr_assert_eq(find_event(&s, COWSNAP_EVENT_INVALID)->reason, -EIO);
	cr_assert_eq(scene_count_events(&s, COWSNAP_EVENT_FULL), 0);
	scene_drop(here);
	scene_drop(elsewhere);
	scene_close(&s);
}

Test(trouble, failed_origin_read_costs_all_stores_snapshots, .timeout = 60)
{
	struct cowsnap_snapshot *first, *second, *fresh;
	struct scene s;

	scene_open(&s, NULL);
	fill(&s, 0, OLD);
	first = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	second = scene_take(&s, 0, 1, COWSNAP_LOSER_SNAPSHOT);
	test_device_fail_range(s.origin_test[0], TEST_IO_READ, CHUNK, CHUNK, -EIO);
	cr_assert_eq(scene_write(&s, 0, CHUNK, CHUNK, NEW), 0);
	test_device_heal(s.origin_test[0]);
	scene_expect_state(first, COWSNAP_SNAPSHOT_INVALID, -EIO);
	scene_expect_state(second, COWSNAP_SNAPSHOT_INVALID, -EIO);
	fresh = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scene_write(&s, 0, 0, 4 * CHUNK, NEWER), 0);
	scene_expect(fresh, 0, CHUNK, OLD);
	scene_expect(fresh, CHUNK, CHUNK, NEW);
	scene_drop(first);
	scene_drop(second);
	scene_drop(fresh);
	scene_close(&s);
}

Test(trouble, failed_copy_fails_the_write, .timeout = 60)
{
	for (unsigned i = 0; i < 2; i++) {
		struct cowsnap_snapshot *snapshot;
		struct scene s;

		scene_open(&s, NULL);
		fill(&s, 0, OLD);
		snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_WRITE);
		if (i)
			test_device_fail_range(
				s.origin_test[0], TEST_IO_READ, 2 * CHUNK, CHUNK, -EIO);
		else
			test_device_fail_range(
				s.store_test[0], TEST_IO_WRITE, 0, 4 * SCENE_BYTES, -EIO);
		cr_assert_eq(scene_write(&s, 0, CHUNK, 3 * CHUNK, NEW), -EIO);
		cr_assert_eq(scene_write(&s, 0, CHUNK, 3 * CHUNK, NEW), -EIO);
		scene_expect_state(snapshot, COWSNAP_SNAPSHOT_ACTIVE, 0);
		test_device_heal(s.origin_test[0]);
		test_device_heal(s.store_test[0]);
		scene_expect(snapshot, 0, SCENE_BYTES, OLD);
		cr_assert_eq(scene_write(&s, 0, CHUNK, 3 * CHUNK, NEW), 0);
		scene_expect(snapshot, 0, SCENE_BYTES, OLD);
		cr_assert_eq(scene_usage(&s, 0).used_bytes, 3 * CHUNK,
			"the space of failed copies is free again");
		cr_assert_eq(scene_stats(&s).failed_writes, 2);
		scene_drop(snapshot);
		scene_close(&s);
	}
}

/* Copies that fail give their credits back (the kernel's counter never reached zero again). */
Test(trouble, failed_copies_leave_no_credits_behind, .timeout = 60)
{
	const struct scene_options options = {.copy_inflight_bytes = 1};
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	scene_open(&s, &options);
	fill(&s, 0, OLD);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_WRITE);
	test_device_fail_range(s.origin_test[0], TEST_IO_READ, 0, SCENE_BYTES, -EIO);
	for (int i = 0; i < 100; i++)
		cr_assert_eq(scene_write(&s, 0, 0, 5 * CHUNK, NEW), -EIO);
	test_device_heal(s.origin_test[0]);
	cr_assert_eq(scene_write(&s, 0, 0, SCENE_BYTES, NEW), 0);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_drop(snapshot);
	scene_close(&s);
}

/* The device fails three times and recovers within the time that the snapshot waits. */
Test(trouble, failed_copy_is_tried_again, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct actor writer;
	struct scene s;

	scene_open(&s, NULL);
	fill(&s, 0, OLD);
	snapshot = take_waiting(&s, 0, COWSNAP_LOSER_SNAPSHOT, UINT64_C(3600000000));
	test_device_fail_range(s.store_test[0], TEST_IO_WRITE, 0, 4 * SCENE_BYTES, -EIO);
	actor_write(&writer, &s, 0, 0, CHUNK, NEW);
	while (test_device_failed(s.store_test[0]) < 3)
		sched_yield();
	test_device_heal(s.store_test[0]);
	cr_assert_eq(actor_join(&writer), 0);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	cr_assert_eq(scene_count_events(&s, COWSNAP_EVENT_INVALID), 0);
	scene_drop(snapshot);
	scene_close(&s);
}

/* It does not recover: tried again at most 8 times. */
Test(trouble, failed_copy_is_not_tried_for_ever, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	uint64_t before;
	struct scene s;

	scene_open(&s, NULL);
	snapshot = take_waiting(&s, 0, COWSNAP_LOSER_SNAPSHOT, 45000000);
	test_device_fail_range(s.store_test[0], TEST_IO_WRITE, 0, 4 * SCENE_BYTES, -EIO);
	before = test_device_calls(s.store_test[0], TEST_IO_WRITE);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEW), 0);
	before = test_device_calls(s.store_test[0], TEST_IO_WRITE) - before;
	cr_assert(before >= 2 && before <= 9, "%llu attempts", (unsigned long long)before);
	scene_expect_state(snapshot, COWSNAP_SNAPSHOT_INVALID, -EIO);
	scene_drop(snapshot);
	scene_close(&s);
}

Test(trouble, asked_about_a_failed_copy, .timeout = 60)
{
	struct answers answers = {.retries = 2, .heal = true};
	struct cowsnap_snapshot *snapshot;
	struct scene s;

	scene_open(&s, NULL);
	fill(&s, 0, OLD);
	snapshot = take_asking(&s, 0, &answers);
	test_device_fail_range(s.origin_test[0], TEST_IO_READ, 0, SCENE_BYTES, -EIO);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEW), 0);
	cr_assert_eq(answers.asked, 1);
	cr_assert_eq(answers.last.reason, -EIO);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_drop(snapshot);
	scene_close(&s);
}

/* A reader meets the device's error: it is the reader's alone. */
Test(trouble, failed_read_harms_only_the_reader, .timeout = 60)
{
	struct cowsnap_snapshot *snapshot;
	struct scene s;
	uint8_t byte;

	scene_open(&s, NULL);
	fill(&s, 0, OLD);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(scene_write(&s, 0, 0, CHUNK, NEW), 0);
	test_device_fail(s.store_test[0], TEST_IO_READ, 1, false, -EIO);
	test_device_fail(s.origin_test[0], TEST_IO_READ, 1, false, -EIO);
	cr_assert_eq(cowsnap_snapshot_read(snapshot, &byte, 0, 1), -EIO);
	cr_assert_eq(cowsnap_snapshot_read(snapshot, &byte, CHUNK, 1), -EIO);
	scene_expect_state(snapshot, COWSNAP_SNAPSHOT_ACTIVE, 0);
	scene_expect(snapshot, 0, SCENE_BYTES, OLD);
	scene_drop(snapshot);
	scene_close(&s);
}

/* ---- Low water ------------------------------------------------------------------------------- */

Test(trouble, low_water_once_for_each_crossing, .timeout = 60)
{
	const struct scene_options options = {.limit_chunks = 8, .low_water_chunks = 4};
	struct cowsnap_snapshot *snapshot;
	const struct cowsnap_event *event;
	struct scene s;

	scene_open(&s, &options);
	for (unsigned round = 1; round <= 3; round++) {
		snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
		for (uint64_t i = 0; i < 4; i++)
			cr_assert_eq(scene_write(&s, 0, i * CHUNK, CHUNK, NEW), 0);
		cr_assert_eq(scene_count_events(&s, COWSNAP_EVENT_LOW_WATER), round - 1);
		for (uint64_t i = 4; i < 8; i++) {
			cr_assert_eq(scene_write(&s, 0, i * CHUNK, CHUNK, NEW), 0);
			cr_assert_eq(scene_count_events(&s, COWSNAP_EVENT_LOW_WATER), round);
		}
		scene_drop(snapshot);
		scene_reclaim(&s);
	}
	event = find_event(&s, COWSNAP_EVENT_LOW_WATER);
	cr_assert_eq(event->store, s.store[0]);
	cr_assert_eq(event->used_bytes, 5 * CHUNK);
	cr_assert_eq(event->limit_bytes, 8 * CHUNK);
	cr_assert_eq(scene_count_events(&s, COWSNAP_EVENT_FULL), 0);
	scene_close(&s);
}
