/* SPDX-License-Identifier: MIT
 *
 * Brackets during a merge, above all those that do not wait: what they move, whom they wait for,
 * and what becomes of those that are cancelled meanwhile. In a queue, on a worker and on a thread;
 * with records and without.
 */
#include "concurrent/merging.h"

#include "concurrent/async.h"

static void fill(uint8_t *model, uint64_t offset, uint64_t length, uint8_t value)
{
	memset(model + offset, value, length);
}

static void expect_merged(struct family *f, const uint8_t *model)
{
	expect_device(f->s.origin_test[0], model, ALL);
	expect_family(f);
}

/* The merge has gone so far that nothing may stop it any more. */
static void finish_merge(struct family *f, uint8_t *model)
{
	struct mover mover;

	mover_start(&mover, f->merged, 0);
	cr_assert_eq(mover_join(&mover), 0);
	expect_merged(f, model);
}

static void async_wait(struct async *a)
{
	if (a->loop)
		loop_until(a->loop, a);
	else
		while (!atomic_load(&a->calls))
			sched_yield();
}

/* On a worker too. Returns: how it ended. */
static int cancel(struct async *a)
{
	if (a->loop)
		return async_cancel(a);
	cr_assert_eq(cowsnap_op_cancel(&a->op), 0);
	async_wait(a);
	return a->error;
}

static int begin_on(
	struct async *a, struct family *f, struct loop *l, uint64_t offset, uint64_t length)
{
	return l ? async_begin(a, l, 0, offset, length)
		 : async_begin_on_worker(a, &f->s, 0, offset, length);
}

static void go_on_and_write(struct async *a, struct family *f, uint8_t *model, uint8_t value)
{
	if (a->began == COWSNAP_PENDING) {
		async_wait(a);
		cr_assert_eq(a->error, 0, "error %d", a->error);
	} else {
		cr_assert_eq(a->began, 0, "error %d", a->began);
	}
	async_write(a, &f->s, value);
	fill(model, a->offset, a->length, value);
}

/* ---- What they move -------------------------------------------------------------------------- */

/* Of the family's merge chunks 8 and 16 to 47 are to be moved. */
static const struct {
	uint64_t offset, length;
} ranges[] = {
	{2 * CHUNK + 1, 3 * CHUNK},   /* nothing to move */
	{8 * CHUNK + 10, 20},         /* the first one */
	{12 * CHUNK + 7, 5 * CHUNK},  /* nothing, then something */
	{18 * CHUNK + 5, 12 * CHUNK}, /* a part may have been moved */
	{31 * CHUNK + 100, 50},       /* a part of one */
	{33 * CHUNK, 12 * CHUNK},     /* whole ones */
	{46 * CHUNK + 9, 8 * CHUNK},  /* something, then nothing */
	{ALL - CHUNK + 3, CHUNK - 3}, /* the end */
};
#define RANGES (sizeof(ranges) / sizeof(ranges[0]))

struct variant {
	bool records, submits;
	enum cowsnap_engine engine;
	enum test_async_mode mode;
};

static void use_all_ranges(const struct variant *v, uint64_t moved)
{
	const struct family_options options = {.records = v->records,
		.scene = {.submits = v->submits,
			.mode = v->mode,
			.engine = v->engine,
			.workers = v->engine == COWSNAP_ENGINE_WORKERS ? 2 : 0}};
	struct async async[RANGES] = {0};
	uint8_t *model = malloc(ALL);
	struct mover mover;
	struct family f;
	struct loop l;

	make_family_with(&f, &options);
	loop_open(&l, &f.s, 4);
	model_merged(model);
	cr_assert_eq(cowsnap_merge_begin(f.merged), 0);
	cr_assert_eq(cowsnap_merge_run(f.merged, moved), 1);
	for (unsigned i = 0; i < RANGES; i++)
		begin_on(&async[i], &f, v->engine == COWSNAP_ENGINE_WORKERS ? NULL : &l,
			ranges[i].offset, ranges[i].length);
	/* Without records each moves what it needs. */
	if (v->records)
		mover_start(&mover, f.merged, CHUNK);
	for (unsigned i = 0; i < RANGES; i++)
		go_on_and_write(&async[i], &f, model, (uint8_t)(10 + i));
	if (v->records)
		cr_assert_eq(mover_join(&mover), 0);
	else
		cr_assert_eq(cowsnap_merge_run(f.merged, WHOLE), 0);
	expect_merged(&f, model);
	loop_close(&l);
	end_family(&f);
	free(model);
}

Test(merge_brackets, of_every_kind_of_range)
{
	static const struct variant variants[] = {
		{false, false, COWSNAP_ENGINE_INLINE, 0},
		{false, true, COWSNAP_ENGINE_LOOP, TEST_ASYNC_INLINE},
		{false, true, COWSNAP_ENGINE_LOOP, TEST_ASYNC_FOREIGN},
		{false, true, COWSNAP_ENGINE_LOOP, TEST_ASYNC_REVERSE},
		{false, true, COWSNAP_ENGINE_WORKERS, TEST_ASYNC_FOREIGN},
		{true, false, COWSNAP_ENGINE_INLINE, 0},
		{true, true, COWSNAP_ENGINE_LOOP, TEST_ASYNC_REVERSE},
		{true, true, COWSNAP_ENGINE_WORKERS, TEST_ASYNC_FOREIGN},
		{true, false, COWSNAP_ENGINE_WORKERS, 0},
	};

	for (unsigned i = 0; i < sizeof(variants) / sizeof(variants[0]); i++) {
		use_all_ranges(&variants[i], 0);
		use_all_ranges(&variants[i], 7 * CHUNK);
		use_all_ranges(&variants[i], 20 * CHUNK);
	}
}

/* To move a chunk is to write all of it: what others with smaller chunks need of it is saved, not
 * only what is written. */
Test(merge_brackets, others_have_smaller_chunks)
{
	for (unsigned records = 0; records < 2; records++) {
		const struct family_options options = {.records = records, .large = true};
		uint8_t *model = malloc(ALL);
		struct mover mover;
		struct family f;

		make_family_with(&f, &options);
		model_merged(model);
		cr_assert_eq(cowsnap_merge_begin(f.merged), 0);
		if (records)
			mover_start(&mover, f.merged, CHUNK);
		cr_assert_eq(scene_write(&f.s, 0, 18 * CHUNK + 5, 1, 9), 0);
		fill(model, 18 * CHUNK + 5, 1, 9);
		expect_family(&f);
		cr_assert_eq(scene_write(&f.s, 0, 30 * CHUNK + 5, 3 * CHUNK, 9), 0);
		fill(model, 30 * CHUNK + 5, 3 * CHUNK, 9);
		expect_family(&f);
		if (records)
			cr_assert_eq(mover_join(&mover), 0);
		else
			cr_assert_eq(cowsnap_merge_run(f.merged, WHOLE), 0);
		expect_merged(&f, model);
		end_family(&f);
		free(model);
	}
}

/* What is settled is not read from the store again. */
Test(merge_brackets, a_chunk_is_moved_once)
{
	uint8_t *model = malloc(ALL);
	struct family f;
	uint64_t reads;

	make_family(&f);
	model_merged(model);
	cr_assert_eq(cowsnap_merge_begin(f.merged), 0);
	test_device_reset(f.s.store_test[0]);
	cr_assert_eq(scene_write(&f.s, 0, 18 * CHUNK + 10, 6 * CHUNK, 7), 0);
	fill(model, 18 * CHUNK + 10, 6 * CHUNK, 7);
	reads = test_device_bytes(f.s.store_test[0], TEST_IO_READ);
	cr_assert_eq(reads, 7 * CHUNK);
	cr_assert_eq(merge_info(f.merged).moved_bytes, 7 * CHUNK);
	cr_assert_eq(scene_write(&f.s, 0, 18 * CHUNK, 7 * CHUNK, 8), 0);
	fill(model, 18 * CHUNK, 7 * CHUNK, 8);
	cr_assert_eq(test_device_bytes(f.s.store_test[0], TEST_IO_READ), reads);
	cr_assert_eq(cowsnap_merge_run(f.merged, WHOLE), 0);
	cr_assert_eq(test_device_bytes(f.s.store_test[0], TEST_IO_READ), 33 * CHUNK);
	expect_merged(&f, model);
	end_family(&f);
	free(model);
}

/* The review of discards of 2019: a merge did not know them. Of a chunk in part, the rest is what
 * the snapshot had; what was discarded may read as anything. */
Test(merge_brackets, discards_and_zeroes)
{
	for (unsigned records = 0; records < 2; records++) {
		uint8_t *model = malloc(ALL), *data = malloc(ALL);
		struct cowsnap_op op;
		struct mover mover;
		struct family f;

		make_family_with(&f, &(struct family_options){.records = records});
		model_merged(model);
		cr_assert_eq(cowsnap_merge_begin(f.merged), 0);
		cr_assert_eq(cowsnap_origin_write(f.s.origin[0], COWSNAP_DISCARD, NULL,
				     16 * CHUNK + 8, 4 * CHUNK),
			0);
		cr_assert_eq(cowsnap_origin_write(f.s.origin[0], COWSNAP_WRITE_ZEROES, NULL,
				     22 * CHUNK + 7, 2 * CHUNK),
			0);
		fill(model, 22 * CHUNK + 7, 2 * CHUNK, 0);
		mover_start(&mover, f.merged, CHUNK);
		cr_assert_eq(cowsnap_write_begin(f.s.origin[0], COWSNAP_DISCARD, 30 * CHUNK + 8,
				     4 * CHUNK, &op),
			0);
		cr_assert_eq(
			cowsnap_device_discard(f.s.origin_device[0], 30 * CHUNK + 8, 4 * CHUNK), 0);
		cowsnap_write_end(&op);
		cr_assert_eq(cowsnap_write_begin(f.s.origin[0], COWSNAP_WRITE_ZEROES,
				     40 * CHUNK + 8, 4 * CHUNK, &op),
			0);
		cr_assert_eq(
			cowsnap_device_zero(f.s.origin_device[0], 40 * CHUNK + 8, 4 * CHUNK), 0);
		cowsnap_write_end(&op);
		fill(model, 40 * CHUNK + 8, 4 * CHUNK, 0);
		cr_assert_eq(mover_join(&mover), 0);
		cr_assert_eq(cowsnap_origin_read(f.s.origin[0], data, 0, ALL), 0);
		memcpy(model + 16 * CHUNK + 8, data + 16 * CHUNK + 8, 4 * CHUNK);
		memcpy(model + 30 * CHUNK + 8, data + 30 * CHUNK + 8, 4 * CHUNK);
		expect_merged(&f, model);
		end_family(&f);
		free(model);
		free(data);
	}
}

/* With a bound of one chunk for copies under way: nobody waits for credits with a claim. */
Test(merge_brackets, with_the_fewest_credits)
{
	for (unsigned records = 0; records < 2; records++) {
		const struct family_options options = {
			.records = records, .scene = {.copy_inflight_bytes = CHUNK}};
		uint8_t *model = malloc(ALL);
		struct actor writer[4];
		struct mover mover;
		struct family f;

		make_family_with(&f, &options);
		model_merged(model);
		cr_assert_eq(cowsnap_merge_begin(f.merged), 0);
		mover_start(&mover, f.merged, 0);
		for (unsigned i = 0; i < 4; i++)
			actor_write(&writer[i], &f.s, 0, (16 + i) * CHUNK + 1, 12 * CHUNK, 9);
		for (unsigned i = 0; i < 4; i++)
			cr_assert_eq(actor_join(&writer[i]), 0);
		fill(model, 16 * CHUNK + 1, 15 * CHUNK, 9);
		cr_assert_eq(mover_join(&mover), 0);
		expect_merged(&f, model);
		end_family(&f);
		free(model);
	}
}

/* ---- Whom they wait for ---------------------------------------------------------------------- */

/* The mover stands on a chunk: who writes there waits for it, and nobody else; and what was
 * cancelled meanwhile ends so. */
static void wait_for_the_mover(bool records)
{
	const struct family_options options = {
		.records = records, .scene = {.engine = COWSNAP_ENGINE_WORKERS, .workers = 1}};
	uint8_t *model = malloc(ALL);
	struct async async[4] = {0};
	struct actor writer;
	struct mover mover;
	struct family f;
	struct loop l;
	int hold;

	make_family_with(&f, &options);
	model_merged(model);
	loop_open(&l, &f.s, 4);
	cr_assert_eq(cowsnap_merge_begin(f.merged), 0);
	hold = scene_hold(f.s.origin_test[0], TEST_IO_WRITE, 30 * CHUNK, 1);
	mover_start(&mover, f.merged, CHUNK);
	scene_wait_held(f.s.origin_test[0], hold);
	cr_assert_eq(merge_info(f.merged).running, 1);
	for (unsigned i = 0; i < 4; i++)
		cr_assert_eq(begin_on(&async[i], &f, i % 2 ? &l : NULL, 30 * CHUNK + i, 1),
			COWSNAP_PENDING);
	actor_write(&writer, &f.s, 0, 30 * CHUNK + 9, 1, 9);
	fill(model, 30 * CHUNK + 9, 1, 9);
	cr_assert_eq(scene_write(&f.s, 0, 60 * CHUNK, CHUNK, 9), 0);
	fill(model, 60 * CHUNK, CHUNK, 9);
	expect_volume(f.s.origin[0], 30 * CHUNK, 2 * CHUNK, 2);
	loop_settle(&l);
	for (unsigned i = 0; i < 4; i++)
		async_expect_pending(&async[i]);
	for (unsigned i = 0; i < 2; i++)
		cr_assert_eq(cowsnap_op_cancel(&async[i].op), 0);
	cr_assert_not(atomic_load(&writer.finished));
	test_device_release(f.s.origin_test[0], hold);
	for (unsigned i = 0; i < 4; i++) {
		async_wait(&async[i]);
		/* A worker may have come to the first one only now. */
		if (i == 1 || (i == 0 && async[i].error))
			cr_assert_eq(async[i].error, -ECANCELED, "%u: %d", i, async[i].error);
		else
			cr_assert_eq(async[i].error, 0, "%u: %d", i, async[i].error);
		if (async[i].error)
			continue;
		async_write(&async[i], &f.s, 9);
		fill(model, 30 * CHUNK + i, 1, 9);
	}
	cr_assert_eq(actor_join(&writer), 0);
	cr_assert_eq(mover_join(&mover), 0);
	expect_merged(&f, model);
	loop_close(&l);
	end_family(&f);
	free(model);
}

Test(merge_brackets, that_wait_for_the_mover)
{
	wait_for_the_mover(false);
	wait_for_the_mover(true);
}

/* With records they wait until theirs is gone, also over a run that fails. */
Test(merge_brackets, that_wait_for_a_record)
{
	const struct family_options options = {
		.records = true, .scene = {.engine = COWSNAP_ENGINE_WORKERS, .workers = 1}};
	uint8_t *model = malloc(ALL);
	struct async async[4] = {0};
	struct actor writer;
	struct mover mover;
	struct family f;
	struct loop l;

	make_family_with(&f, &options);
	model_merged(model);
	loop_open(&l, &f.s, 4);
	cr_assert_eq(cowsnap_merge_begin(f.merged), 0);
	for (unsigned i = 0; i < 4; i++)
		cr_assert_eq(begin_on(&async[i], &f, i % 2 ? &l : NULL, 16 * CHUNK + i, 1),
			COWSNAP_PENDING);
	actor_write(&writer, &f.s, 0, 16 * CHUNK + 9, 1, 9);
	fill(model, 16 * CHUNK + 9, 1, 9);
	cr_assert_eq(put(f.s.origin[0], 16 * CHUNK + 5, 1, 8), 0, "this one does not");
	fill(model, 16 * CHUNK + 5, 1, 8);
	for (unsigned i = 0; i < 2; i++)
		cr_assert_eq(cancel(&async[i]), -ECANCELED);
	test_device_fail_range(f.s.origin_test[0], TEST_IO_WRITE, 16 * CHUNK, 1, -EIO);
	while (cowsnap_merge_run(f.merged, CHUNK) != -EIO)
		;
	cr_assert_eq(scene_count_events(&f.s, COWSNAP_EVENT_MERGE_FAILED), 1);
	loop_settle(&l);
	async_expect_pending(&async[2]);
	async_expect_pending(&async[3]);
	cr_assert_not(atomic_load(&writer.finished));
	test_device_heal(f.s.origin_test[0]);
	mover_start(&mover, f.merged, CHUNK);
	go_on_and_write(&async[2], &f, model, 6);
	go_on_and_write(&async[3], &f, model, 7);
	cr_assert_eq(actor_join(&writer), 0);
	cr_assert_eq(mover_join(&mover), 0);
	expect_merged(&f, model);
	loop_close(&l);
	end_family(&f);
	free(model);
}

/* A queue of one record: who waits for the mover has it, and whoever is behind has it next. */
Test(merge_brackets, in_a_queue_of_one_record)
{
	for (unsigned cancels = 0; cancels < 2; cancels++) {
		uint8_t *model = malloc(ALL);
		struct async async[3] = {0};
		struct mover mover;
		struct family f;
		struct loop l;

		make_family_with(&f, &(struct family_options){.records = true});
		model_merged(model);
		loop_open(&l, &f.s, 1);
		cr_assert_eq(cowsnap_merge_begin(f.merged), 0);
		async_begin(&async[0], &l, 0, 20 * CHUNK, 1);
		async_begin(&async[1], &l, 0, 21 * CHUNK, 1);
		async_begin(&async[2], &l, 0, 60 * CHUNK, CHUNK);
		loop_settle(&l);
		for (unsigned i = 0; i < 3; i++)
			async_expect_pending(&async[i]);
		if (cancels) {
			cr_assert_eq(async_cancel(&async[1]), -ECANCELED);
			cr_assert_eq(async_cancel(&async[0]), -ECANCELED);
			go_on_and_write(&async[2], &f, model, 9);
		}
		mover_start(&mover, f.merged, 0);
		for (unsigned i = 0; i < 3 && !cancels; i++)
			go_on_and_write(&async[i], &f, model, 9);
		cr_assert_eq(mover_join(&mover), 0);
		expect_merged(&f, model);
		loop_close(&l);
		end_family(&f);
		free(model);
	}
}

static void *deactivate(void *argument)
{
	struct family *f = argument;

	cr_assert_eq(cowsnap_snapshot_deactivate(f->merged), 0);
	return NULL;
}

/* The host ends in the middle of it: who waits goes on. What it writes to what was not merged is
 * lost: the next start merges that. */
Test(merge_brackets, go_on_when_the_host_ends)
{
	const struct family_options options = {
		.records = true, .scene = {.engine = COWSNAP_ENGINE_WORKERS, .workers = 1}};
	uint8_t *model = malloc(ALL);
	struct async async[3] = {0};
	pthread_t thread;
	struct family f;
	struct loop l;

	make_family_with(&f, &options);
	drop_siblings(&f);
	model_merged(model);
	loop_open(&l, &f.s, 4);
	cr_assert_eq(cowsnap_merge_begin(f.merged), 0);
	cr_assert_eq(cowsnap_merge_run(f.merged, 4 * CHUNK), 1);
	for (unsigned i = 0; i < 3; i++)
		cr_assert_eq(begin_on(&async[i], &f, i % 2 ? &l : NULL, 20 * CHUNK + i, 1),
			COWSNAP_PENDING);
	cr_assert_eq(cancel(&async[0]), -ECANCELED);
	cr_assert_eq(pthread_create(&thread, NULL, deactivate, &f), 0);
	for (unsigned i = 1; i < 3; i++)
		go_on_and_write(&async[i], &f, model, 9);
	pthread_join(thread, NULL);
	cr_assert_eq(cowsnap_merge_run(f.merged, 1), -EINVAL);
	loop_close(&l);
	family_attach(&f);
	cr_assert_eq(cowsnap_merge_run(f.merged, WHOLE), 0);
	model_merged(model);
	expect_device(f.s.origin_test[0], model, ALL);
	close_family(&f);
	free(model);
}

/* ---- When it begins -------------------------------------------------------------------------- */

/* Writes of before are rolled back, also those to chunks that nobody had saved; those of after wait
 * for them, or are cancelled, and stay. */
static void wait_for_the_beginning(bool records)
{
	const struct family_options options = {
		.records = records, .scene = {.engine = COWSNAP_ENGINE_WORKERS, .workers = 1}};
	uint8_t *model = malloc(ALL), data[CHUNK];
	struct async async[6] = {0};
	struct beginner beginner;
	struct actor writer;
	struct mover mover;
	struct cowsnap_op op;
	struct family f;
	struct loop l;

	make_family_with(&f, &options);
	model_merged(model);
	loop_open(&l, &f.s, 4);
	cr_assert_eq(cowsnap_write_begin(f.s.origin[0], COWSNAP_WRITE, 60 * CHUNK, CHUNK, &op), 0);
	beginner_start(&beginner, f.merged);
	cr_assert_eq(state_of(f.merged), COWSNAP_SNAPSHOT_ACTIVE, "nothing has happened yet");
	scene_expect(f.merged, ALL / 2, ALL / 2, 1);
	for (unsigned i = 0; i < 6; i++)
		cr_assert_eq(begin_on(&async[i], &f, i % 2 ? &l : NULL,
				     (i < 4 ? 20 : 50) * CHUNK + i, 1),
			COWSNAP_PENDING);
	actor_write(&writer, &f.s, 0, 61 * CHUNK, CHUNK, 9);
	fill(model, 61 * CHUNK, CHUNK, 9);
	loop_settle(&l);
	for (unsigned i = 0; i < 2; i++)
		cr_assert_eq(cancel(&async[i]), -ECANCELED);
	for (unsigned i = 2; i < 6; i++)
		async_expect_pending(&async[i]);
	cr_assert_not(atomic_load(&beginner.finished));
	cr_assert_not(atomic_load(&writer.finished));
	memset(data, 99, CHUNK);
	cr_assert_eq(cowsnap_device_write(f.s.origin_device[0], data, 60 * CHUNK, CHUNK), 0);
	cowsnap_write_end(&op);
	cr_assert_eq(beginner_join(&beginner), 0);
	cr_assert_eq(actor_join(&writer), 0);
	expect_volume(f.s.origin[0], 60 * CHUNK, CHUNK, 1);
	mover_start(&mover, f.merged, CHUNK);
	for (unsigned i = 2; i < 6; i++)
		go_on_and_write(&async[i], &f, model, 9);
	cr_assert_eq(mover_join(&mover), 0);
	expect_merged(&f, model);
	loop_close(&l);
	end_family(&f);
	free(model);
}

Test(merge_brackets, that_wait_for_the_beginning)
{
	wait_for_the_beginning(false);
	wait_for_the_beginning(true);
}

/* ---- Cancelled at each point ----------------------------------------------------------------- */

static struct test_async *const *device_of(struct family *f, unsigned which)
{
	return which ? &f->s.store_async[which - 1] : &f->s.origin_async[0];
}

/* Lets one request of each device go. Returns: was there anything to do? */
static bool pump(struct family *f, struct loop *l)
{
	bool any = loop_readable(l);

	if (any)
		loop_poll(l);
	for (unsigned d = 0; d < 3; d++)
		any |= test_async_release(*device_of(f, d), 1, TEST_RELEASE_LAST) > 0;
	return any;
}

/* Cancels when it was let go on @steps times. Returns: did that make a difference? */
static bool cancel_after(bool records, unsigned steps)
{
	const struct family_options options = {.records = records,
		.scene = {.engine = COWSNAP_ENGINE_LOOP, .submits = true, .mode = TEST_ASYNC_HELD}};
	uint8_t *model = malloc(ALL);
	struct async async = {0};
	unsigned went = 0;
	struct family f;
	struct loop l;

	make_family_with(&f, &options);
	model_merged(model);
	loop_open(&l, &f.s, 4);
	cr_assert_eq(cowsnap_merge_begin(f.merged), 0);
	cr_assert_eq(async_begin(&async, &l, 0, 19 * CHUNK + 5, 2 * CHUNK), COWSNAP_PENDING);
	while (went < steps && !atomic_load(&async.calls) && pump(&f, &l))
		went++;
	if (!atomic_load(&async.calls))
		cr_assert_eq(cowsnap_op_cancel(&async.op), 0);
	while (!atomic_load(&async.calls))
		cr_assert(pump(&f, &l), "a cancelled bracket does not end");
	cr_assert(async.error == 0 || async.error == -ECANCELED, "error %d", async.error);
	if (!async.error)
		go_on_and_write(&async, &f, model, 9);
	for (unsigned d = 0; d < 3; d++) {
		test_async_set_mode(*device_of(&f, d), TEST_ASYNC_INLINE);
		cr_assert_eq(test_async_held(*device_of(&f, d)), 0);
	}
	cr_assert_eq(cowsnap_queue_poll(l.queue), 0);
	finish_merge(&f, model);
	loop_close(&l);
	end_family(&f);
	free(model);
	return went == steps;
}

/* The claims that a bracket has when it is cancelled are given back, and what it has moved stays.
 */
Test(merge_brackets, cancelled_at_each_point)
{
	for (unsigned records = 0; records < 2; records++) {
		unsigned steps = 0;

		while (cancel_after(records, steps))
			cr_assert_lt(++steps, 100);
		cr_assert_gt(steps, 2, "%u", steps);
	}
}
