/* SPDX-License-Identifier: MIT
 *
 * A merge that is begun without waiting, by the thread that has brackets open or polls for what it
 * waits for.
 */
#include "concurrent/merging.h"
#include "support/fail_alloc.h"
#include "support/pending.h"

#include <limits.h>

TestSuite(merge_begin, .timeout = 60);

static void start(struct family *f, struct cowsnap_queue *queue, struct pending_op *p)
{
	*p = (struct pending_op){0};
	cr_assert_eq(cowsnap_merge_begin_async(f->merged, queue, &p->op, pending_done, p),
		COWSNAP_PENDING);
}

static void open_with(struct family *f, bool records, struct cowsnap_queue **queue)
{
	make_family_with(f, &(struct family_options){.records = records});
	cr_assert_eq(cowsnap_queue_create(f->s.ctx, 8, queue), 0);
}

/* It has begun: it goes to its end, and is what it should be. */
static void end_with(struct family *f, struct cowsnap_queue *queue)
{
	uint8_t *model = malloc(ALL);

	expect_volume_merged(f);
	cr_assert_eq(cowsnap_merge_run(f->merged, WHOLE), 0);
	model_merged(model);
	expect_device(f->s.origin_test[0], model, ALL);
	expect_family(f);
	free(model);
	cr_assert_eq(cowsnap_queue_close(queue), 0);
	end_family(f);
}

/* Nothing has begun: the snapshot is live, and can be merged. */
static void expect_untouched(struct family *f)
{
	struct cowsnap_merge_info info;

	cr_assert_eq(state_of(f->merged), COWSNAP_SNAPSHOT_ACTIVE);
	cr_assert_eq(cowsnap_merge_info(f->merged, &info, sizeof(info)), -EINVAL);
	scene_expect(f->merged, 0, ALL / 2, 2);
	scene_expect(f->merged, ALL / 2, ALL / 2, 1);
	expect_family(f);
}

/* It could only fail on the way, for ever, with the first chunk or the last one. */
Test(merge_begin, refused_where_the_device_cannot_write_a_chunk)
{
	static const struct {
		uint32_t block;
		uint64_t chunk, size;
		int rc;
	} cases[] = {{512, 512, 16384, 0}, {4096, 4096, 16384, 0}, {4096, 512, 16384, -ENOTSUP},
		{4096, 4096, 16384 + 512, -ENOTSUP}, {512, 4096, 16384 + 512, 0},
		{1, 4096, 16384 + 7, 0}};

	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct cowsnap_transient_options options = {
			.size = sizeof(options), .chunk_size_bytes = cases[i].chunk};
		struct cowsnap_take_entry entry = {0};
		struct test_device *device;
		struct cowsnap_ctx *ctx;

		cr_assert_eq(cowsnap_ctx_create(NULL, &ctx), 0);
		device = test_device_create(
			ctx, &(struct test_device_options){
				     .size_bytes = cases[i].size, .block_size = cases[i].block});
		cr_assert_eq(cowsnap_origin_open(ctx, test_device(device), &entry.origin), 0);
		cr_assert_eq(cowsnap_store_transient(ctx, &options, &entry.store), 0);
		cr_assert_eq(cowsnap_take(ctx, NULL, &entry, 1), 0);
		cr_assert_eq(cowsnap_merge_begin(entry.snapshot), cases[i].rc, "%u", i);
		if (cases[i].rc) {
			cr_assert_eq(state_of(entry.snapshot), COWSNAP_SNAPSHOT_ACTIVE);
			cr_assert_eq(cowsnap_snapshot_drop(entry.snapshot), 0);
		} else {
			cr_assert_eq(cowsnap_merge_run(entry.snapshot, WHOLE), 0);
		}
		cowsnap_snapshot_unref(entry.snapshot);
		while (cowsnap_reclaim(ctx, 64) == 1)
			;
		cr_assert_eq(cowsnap_store_close(entry.store), 0);
		cr_assert_eq(cowsnap_origin_close(entry.origin), 0);
		cr_assert_eq(test_device_destroy(device), 0);
		cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
	}
}

Test(merge_begin, in_a_queue_and_on_a_worker)
{
	for (unsigned i = 0; i < 4; i++) {
		struct family_options options = {.records = i & 1,
			.scene = {.engine = i & 2 ? COWSNAP_ENGINE_WORKERS : COWSNAP_ENGINE_INLINE,
				.workers = i & 2 ? 1 : 0}};
		struct cowsnap_queue *queue;
		struct pending_op p;
		struct family f;

		make_family_with(&f, &options);
		cr_assert_eq(cowsnap_queue_create(f.s.ctx, 1, &queue), 0);
		start(&f, i & 2 ? NULL : queue, &p);
		while (i & 2 && !atomic_load(&p.calls))
			sched_yield();
		cr_assert(pending_wait(queue, &p));
		cr_assert_eq(p.error, 0);
		end_with(&f, queue);
	}
}

/* The blocking form would wait for what only this thread can end. */
Test(merge_begin, with_a_bracket_of_its_own_open)
{
	for (unsigned records = 0; records < 2; records++) {
		struct cowsnap_queue *queue;
		struct cowsnap_op bracket;
		struct pending_op p;
		struct family f;

		open_with(&f, records, &queue);
		cr_assert_eq(cowsnap_write_begin(
				     f.s.origin[0], COWSNAP_WRITE, 60 * CHUNK, CHUNK, &bracket),
			0);
		start(&f, queue, &p);
		pending_settle(queue);
		cr_assert_eq(p.calls, 0);
		cowsnap_write_end(&bracket);
		cr_assert(pending_wait(queue, &p));
		cr_assert_eq(p.error, 0);
		end_with(&f, queue);
	}
}

Test(merge_begin, cancelled_while_it_waits_for_a_bracket)
{
	for (unsigned records = 0; records < 2; records++) {
		struct cowsnap_queue *queue;
		struct cowsnap_op bracket;
		struct pending_op p;
		struct family f;

		open_with(&f, records, &queue);
		cr_assert_eq(cowsnap_write_begin(
				     f.s.origin[0], COWSNAP_WRITE, 60 * CHUNK, CHUNK, &bracket),
			0);
		start(&f, queue, &p);
		pending_settle(queue);
		cowsnap_op_cancel(&p.op);
		cr_assert(pending_wait(queue, &p));
		cr_assert_eq(p.error, -ECANCELED);
		cowsnap_write_end(&bracket);
		expect_untouched(&f);
		cr_assert_eq(cowsnap_merge_begin(f.merged), 0);
		end_with(&f, queue);
	}
}

/* The bracket that it waits for is itself one that waits, in the same queue. */
Test(merge_begin, behind_a_bracket_that_is_saved_for)
{
	struct pending_op bracket = {0}, p;
	struct cowsnap_queue *queue;
	struct family f;

	make_family_with(&f, &(struct family_options){
				     .scene = {.engine = COWSNAP_ENGINE_LOOP, .submits = true}});
	for (unsigned i = 0; i < SCENE_STORES; i++)
		test_async_set_mode(f.s.store_async[i], TEST_ASYNC_HELD);
	cr_assert_eq(cowsnap_queue_create(f.s.ctx, 8, &queue), 0);
	cr_assert_eq(cowsnap_write_begin_async(f.s.origin[0], queue, COWSNAP_WRITE, 62 * CHUNK,
			     CHUNK, &bracket.op, pending_done, &bracket),
		COWSNAP_PENDING);
	start(&f, queue, &p);
	pending_settle(queue);
	cr_assert_eq(p.calls, 0);
	while (!atomic_load(&bracket.calls)) {
		for (unsigned i = 0; i < SCENE_STORES; i++)
			test_async_release(f.s.store_async[i], UINT_MAX, TEST_RELEASE_FIRST);
		pending_settle(queue);
	}
	for (unsigned i = 0; i < SCENE_STORES; i++)
		test_async_set_mode(f.s.store_async[i], TEST_ASYNC_INLINE);
	cr_assert_eq(bracket.error, 0);
	cr_assert_eq(p.calls, 0);
	cowsnap_write_end(&bracket.op);
	cr_assert(pending_wait(queue, &p));
	cr_assert_eq(p.error, 0);
	end_with(&f, queue);
}

/* A take of another origin has the turn. */
Test(merge_begin, cancelled_while_another_has_the_turn)
{
	struct cowsnap_take_entry entry = {.on_full = COWSNAP_LOSER_WRITE};
	struct pending_op take = {0}, p;
	struct cowsnap_queue *queue;
	struct cowsnap_op bracket;
	struct family f;

	open_with(&f, false, &queue);
	entry.origin = f.s.origin[1];
	entry.store = f.s.store[0];
	cr_assert_eq(cowsnap_write_begin(f.s.origin[1], COWSNAP_WRITE, 0, CHUNK, &bracket), 0);
	cr_assert_eq(
		cowsnap_take_async(f.s.ctx, queue, NULL, &entry, 1, &take.op, pending_done, &take),
		COWSNAP_PENDING);
	start(&f, queue, &p);
	pending_settle(queue);
	cr_assert_eq(p.calls, 0);
	cowsnap_op_cancel(&p.op);
	cr_assert(pending_wait(queue, &p));
	cr_assert_eq(p.error, -ECANCELED);
	expect_untouched(&f);
	start(&f, queue, &p);
	pending_settle(queue);
	cr_assert_eq(p.calls, 0);
	cowsnap_write_end(&bracket);
	cr_assert(pending_wait(queue, &take));
	cr_assert_eq(take.error, 0);
	cr_assert(pending_wait(queue, &p));
	cr_assert_eq(p.error, 0);
	scene_drop(entry.snapshot);
	end_with(&f, queue);
}

/* It could be run before it had begun: the origin was written beside brackets of before, and the
 * merge ended twice. */
Test(merge_begin, cannot_be_run_before_it_has_begun)
{
	for (unsigned records = 0; records < 2; records++) {
		struct cowsnap_queue *queue;
		struct cowsnap_op bracket;
		struct pending_op p, run = {0};
		struct family f;

		open_with(&f, records, &queue);
		cr_assert_eq(cowsnap_write_begin(
				     f.s.origin[0], COWSNAP_WRITE, 60 * CHUNK, CHUNK, &bracket),
			0);
		start(&f, queue, &p);
		pending_settle(queue);
		cr_assert_eq(cowsnap_merge_run(f.merged, WHOLE), -EINVAL);
		cr_assert_eq(cowsnap_merge_run_async(
				     f.merged, queue, WHOLE, &run.op, pending_done, &run),
			-EINVAL);
		cowsnap_write_end(&bracket);
		cr_assert(pending_wait(queue, &p));
		cr_assert_eq(p.error, 0);
		end_with(&f, queue);
	}
}

/* Of two only one begins, also if both were asked for before either could. */
Test(merge_begin, twice)
{
	struct cowsnap_queue *queue;
	struct cowsnap_op bracket;
	struct pending_op p[2];
	struct family f;

	open_with(&f, false, &queue);
	cr_assert_eq(
		cowsnap_write_begin(f.s.origin[0], COWSNAP_WRITE, 60 * CHUNK, CHUNK, &bracket), 0);
	start(&f, queue, &p[0]);
	start(&f, queue, &p[1]);
	cowsnap_write_end(&bracket);
	cr_assert(pending_wait(queue, &p[0]));
	cr_assert(pending_wait(queue, &p[1]));
	cr_assert_eq(p[0].error, 0);
	cr_assert_eq(p[1].error, -EBUSY);
	cr_assert_eq(
		cowsnap_merge_begin_async(f.merged, queue, &p[1].op, pending_done, &p[1]), -EBUSY);
	end_with(&f, queue);
}

Test(merge_begin, refuses_what_cannot_be)
{
	struct pending_op p = {0};
	struct cowsnap_queue *queue;
	struct family f;

	open_with(&f, false, &queue);
	cr_assert_eq(cowsnap_merge_begin_async(f.merged, queue, &p.op, NULL, NULL), -EINVAL);
	cr_assert_eq(cowsnap_merge_begin_async(f.merged, NULL, &p.op, pending_done, &p), -EINVAL);
	cr_assert_eq(cowsnap_snapshot_downgrade(f.newer), 0);
	cr_assert_eq(cowsnap_merge_begin_async(f.newer, queue, &p.op, pending_done, &p), -ENODATA);
	cr_assert_eq(cowsnap_snapshot_drop(f.newer), 0);
	cr_assert_eq(cowsnap_merge_begin_async(f.newer, queue, &p.op, pending_done, &p), -EIDRM);
	cr_assert_eq(p.calls, 0);
	cowsnap_snapshot_unref(f.newer);
	f.newer = scene_take(&f.s, 0, 0, COWSNAP_LOSER_WRITE);
	cr_assert_eq(cowsnap_queue_close(queue), 0);
	scene_drop(f.merged);
	f.merged = f.newer;
	scene_drop(f.older);
	scene_drop(f.other_old);
	scene_drop(f.other_new);
	cr_assert_eq(cowsnap_snapshot_drop(f.merged), 0);
	close_family(&f);
}

/* Without memory at any point nothing has changed. */
Test(merge_begin, without_memory)
{
	struct fail_alloc *memory = fail_alloc_create(false);
	bool failed = true;

	for (uint64_t n = 1; failed; n++) {
		struct family_options options = {.scene = {.allocator = fail_alloc_table(memory)}};
		struct cowsnap_queue *queue;
		struct pending_op p = {0};
		struct family f;
		int rc;

		make_family_with(&f, &options);
		cr_assert_eq(cowsnap_queue_create(f.s.ctx, 8, &queue), 0);
		fail_alloc_at(memory, n, false);
		rc = cowsnap_merge_begin_async(f.merged, queue, &p.op, pending_done, &p);
		if (rc == COWSNAP_PENDING) {
			cr_assert(pending_wait(queue, &p));
			rc = p.error;
		}
		failed = fail_alloc_failed(memory) > 0;
		fail_alloc_at(memory, 0, false);
		cr_assert_eq(rc, failed ? -ENOMEM : 0);
		if (failed) {
			expect_untouched(&f);
			cr_assert_eq(cowsnap_merge_begin(f.merged), 0);
		}
		end_with(&f, queue);
		cr_assert_lt(n, 100);
	}
	fail_alloc_destroy(memory);
}
