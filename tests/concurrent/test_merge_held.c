/* SPDX-License-Identifier: MIT
 *
 * Merges whose requests are held in their devices.
 */
#include "concurrent/merging.h"
#include "support/pending.h"

TestSuite(merge_held, .timeout = 60);

#define SOME_RATE UINT64_C(50000000)

static unsigned held(struct family *f)
{
	unsigned sum = 0;

	for (unsigned i = 0; i < SCENE_ORIGINS; i++)
		sum += test_async_held(f->s.origin_async[i]);
	for (unsigned i = 0; i < SCENE_STORES; i++)
		sum += test_async_held(f->s.store_async[i]);
	return sum;
}

static void set_mode(struct family *f, enum test_async_mode mode)
{
	for (unsigned i = 0; i < SCENE_STORES; i++) {
		test_async_set_mode(f->s.origin_async[i], mode);
		test_async_set_mode(f->s.store_async[i], mode);
	}
}

/* One request, wherever it is. */
static void release_one(struct family *f)
{
	for (unsigned i = 0; i < SCENE_STORES; i++) {
		if (test_async_release(f->s.store_async[i], 1, TEST_RELEASE_FIRST) ||
			test_async_release(f->s.origin_async[i], 1, TEST_RELEASE_FIRST))
			return;
	}
}

/* A call that was cancelled while it was held back ended with the first of its movers, and freed
 * what the others were using. */
Test(merge_held, cancelled_while_held_back_with_movers_under_way)
{
	struct cowsnap_queue *queue;
	struct pending_op p = {0};
	struct family f;

	make_family_with(&f, &(struct family_options){
				     .scene = {.engine = COWSNAP_ENGINE_LOOP, .submits = true}});
	cr_assert_eq(cowsnap_queue_create(f.s.ctx, 8, &queue), 0);
	/* Backwards: each is a run, and has a mover. */
	for (uint64_t chunk = 63; chunk > 50; chunk--)
		cr_assert_eq(scene_write(&f.s, 0, chunk * CHUNK, CHUNK, 7), 0);
	cr_assert_eq(cowsnap_merge_begin(f.merged), 0);
	set_mode(&f, TEST_ASYNC_HELD);
	cr_assert_eq(cowsnap_ctx_throttle(f.s.ctx, SOME_RATE, 100), 0);
	cr_assert_eq(cowsnap_merge_run_async(f.merged, queue, WHOLE, &p.op, pending_done, &p),
		COWSNAP_PENDING);
	while (held(&f) < 3)
		cr_assert(pending_poll(queue, PENDING_WAIT_MS));
	cr_assert_eq(cowsnap_ctx_throttle(f.s.ctx, 1, 100), 0);
	pending_settle(queue);
	cowsnap_op_cancel(&p.op);
	pending_settle(queue);
	while (held(&f)) {
		cr_assert_eq(p.calls, 0, "something is under way");
		release_one(&f);
		pending_settle(queue);
	}
	cr_assert(pending_wait(queue, &p));
	cr_assert_eq(p.error, -ECANCELED);
	set_mode(&f, TEST_ASYNC_INLINE);
	cr_assert_eq(cowsnap_ctx_throttle(f.s.ctx, 0, 100), 0);
	cr_assert_eq(cowsnap_merge_run(f.merged, WHOLE), 0);
	expect_family(&f);
	cr_assert_eq(cowsnap_queue_close(queue), 0);
	end_family(&f);
}

struct asking {
	struct family f;
	_Atomic bool asked;
	_Atomic bool written;
};

static enum cowsnap_decision decide(void *user, const struct cowsnap_trouble *trouble)
{
	struct asking *a = user;

	(void)trouble;
	atomic_store(&a->asked, true);
	while (!atomic_load(&a->written))
		sched_yield();
	return COWSNAP_DECIDE_SNAPSHOT;
}

/* Those of a batch who had moved their chunks kept their claims while another one of it waited for
 * the space of a sibling: so who wrote to them waited for a host. */
Test(merge_held, a_batch_has_no_claims_while_a_sibling_is_saved_for)
{
	struct cowsnap_transient_options small = {
		.size = sizeof(small), .chunk_size_bytes = CHUNK, .limit_bytes = 2 * CHUNK};
	struct cowsnap_take_entry entry = {.on_full = COWSNAP_LOSER_ASK, .decide = decide};
	static struct asking a;
	struct cowsnap_store *store;
	struct mover mover;

	memset(&a, 0, sizeof(a));
	make_family_with(&a.f, &(struct family_options){.records = true});
	cr_assert_eq(cowsnap_store_transient(a.f.s.ctx, &small, &store), 0);
	/* Records that do not follow each other, the newest last: two of them fit. */
	for (uint64_t chunk = 60; chunk > 50; chunk -= 2)
		cr_assert_eq(scene_write(&a.f.s, 0, chunk * CHUNK, CHUNK, 7), 0);
	entry.origin = a.f.s.origin[0];
	entry.store = store;
	entry.user = &a;
	cr_assert_eq(cowsnap_take(a.f.s.ctx, NULL, &entry, 1), 0);
	cr_assert_eq(cowsnap_merge_begin(a.f.merged), 0);
	mover_start(&mover, a.f.merged, 0);
	while (!atomic_load(&a.asked))
		sched_yield();
	cr_assert_eq(put(a.f.s.origin[0], 52 * CHUNK, 512, 9), 0);
	atomic_store(&a.written, true);
	cr_assert_eq(mover_join(&mover), 0);
	cr_assert_eq(state_of(entry.snapshot), COWSNAP_SNAPSHOT_INVALID);
	expect_family(&a.f);
	scene_drop(entry.snapshot);
	scene_reclaim(&a.f.s);
	cr_assert_eq(cowsnap_store_close(store), 0);
	end_family(&a.f);
}

/* A write of a part of a chunk that nobody had to move saved it for others, and then moved it.
 * If the merge ended meanwhile, somebody else's write to that chunk was overwritten. */
Test(merge_held, a_write_that_lasts_beyond_the_end)
{
	struct cowsnap_merge_info info;
	struct putter putter;
	struct mover mover;
	struct family f;
	int hold;

	make_family(&f);
	cr_assert_eq(cowsnap_merge_begin(f.merged), 0);
	hold = test_device_hold(
		f.s.origin_test[0], TEST_IO_WRITE, 3 * CHUNK, CHUNK, TEST_HOLD_BEFORE);
	putter_start(&putter, f.s.origin[0], 3 * CHUNK + 10, 100, 8);
	cr_assert(test_device_wait_held(f.s.origin_test[0], hold));
	mover_start(&mover, f.merged, 0);
	while (cowsnap_merge_info(f.merged, &info, sizeof(info)) == 0)
		sched_yield();
	cr_assert_eq(put(f.s.origin[0], 3 * CHUNK + 2000, 100, 9), 0);
	test_device_release(f.s.origin_test[0], hold);
	cr_assert_eq(putter_join(&putter), 0);
	cr_assert_eq(mover_join(&mover), 0);
	expect_volume(f.s.origin[0], 3 * CHUNK + 10, 100, 8);
	expect_volume(f.s.origin[0], 3 * CHUNK + 2000, 100, 9);
	expect_family(&f);
	end_family(&f);
}

/* A call that was cancelled, or had failed, ended only when a sibling's store had space: perhaps
 * never. */
Test(merge_held, cancelled_while_a_sibling_waits_for_space)
{
	for (unsigned records = 0; records < 2; records++) {
		struct cowsnap_transient_options small = {
			.size = sizeof(small), .chunk_size_bytes = CHUNK, .limit_bytes = 2 * CHUNK};
		struct cowsnap_take_entry entry = {
			.on_full = COWSNAP_LOSER_SNAPSHOT, .wait_ns = UINT64_MAX};
		struct cowsnap_queue *queue;
		struct cowsnap_store *store;
		struct pending_op p = {0};
		struct family f;

		make_family_with(&f, &(struct family_options){.records = records,
					     .scene = {.engine = COWSNAP_ENGINE_LOOP}});
		cr_assert_eq(cowsnap_queue_create(f.s.ctx, 8, &queue), 0);
		cr_assert_eq(cowsnap_store_transient(f.s.ctx, &small, &store), 0);
		for (uint64_t chunk = 60; chunk > 50; chunk -= 2)
			cr_assert_eq(scene_write(&f.s, 0, chunk * CHUNK, CHUNK, 7), 0);
		entry.origin = f.s.origin[0];
		entry.store = store;
		cr_assert_eq(cowsnap_take(f.s.ctx, NULL, &entry, 1), 0);
		cr_assert_eq(cowsnap_merge_begin(f.merged), 0);
		cr_assert_eq(
			cowsnap_merge_run_async(f.merged, queue, WHOLE, &p.op, pending_done, &p),
			COWSNAP_PENDING);
		pending_settle(queue);
		cr_assert_eq(p.calls, 0, "it waits for space");
		cowsnap_op_cancel(&p.op);
		cr_assert(pending_wait(queue, &p));
		cr_assert_eq(p.error, -ECANCELED);
		cr_assert_eq(scene_count_events(&f.s, COWSNAP_EVENT_MERGE_FAILED), 0);
		cr_assert_eq(state_of(entry.snapshot), COWSNAP_SNAPSHOT_ACTIVE);
		scene_drop(entry.snapshot);
		cr_assert_eq(cowsnap_merge_run(f.merged, WHOLE), 0);
		expect_family(&f);
		scene_reclaim(&f.s);
		cr_assert_eq(cowsnap_store_close(store), 0);
		cr_assert_eq(cowsnap_queue_close(queue), 0);
		end_family(&f);
	}
}
