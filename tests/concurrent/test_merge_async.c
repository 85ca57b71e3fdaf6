/* SPDX-License-Identifier: MIT
 *
 * Merges that do not wait: on queues whose devices are submitted to and end what they have in any
 * order, on queues whose devices are called, and on workers; in portions, cancelled and resumed,
 * held back, with each failure; beside brackets, reads and writes of the same thread and of others.
 */
#include "concurrent/merging.h"

#include "support/fail_alloc.h"
#include "support/newest.h"
#include "support/pending.h"
#include "support/seed.h"

/* ---- Ways to run ----------------------------------------------------------------------------- */

enum way { REVERSED, CALLED, INLINE, WORKER, WAYS };

static struct family_options options_of(enum way way, bool records)
{
	static const enum cowsnap_engine engines[WAYS] = {[REVERSED] = COWSNAP_ENGINE_LOOP,
		[CALLED] = COWSNAP_ENGINE_LOOP,
		[INLINE] = COWSNAP_ENGINE_INLINE,
		[WORKER] = COWSNAP_ENGINE_WORKERS};

	return (struct family_options){.records = records,
		.scene = {.engine = engines[way],
			.workers = way == WORKER ? 2 : 0,
			.submits = way == REVERSED,
			.mode = TEST_ASYNC_REVERSE}};
}

struct stage {
	struct family f;
	struct cowsnap_queue *queue; /* NULL: a worker */
	uint8_t *model;
};

static void stage_open(struct stage *s, const struct family_options *options)
{
	memset(s, 0, sizeof(*s));
	make_family_with(&s->f, options);
	if (!options->scene.workers)
		cr_assert_eq(cowsnap_queue_create(s->f.s.ctx, 8, &s->queue), 0);
	s->model = malloc(ALL);
	model_merged(s->model);
}

/* It was merged. */
static void stage_close(struct stage *s)
{
	expect_device(s->f.s.origin_test[0], s->model, ALL);
	expect_family(&s->f);
	if (s->queue)
		cr_assert_eq(cowsnap_queue_close(s->queue), 0);
	end_family(&s->f);
	free(s->model);
}

static int begin(struct stage *s, uint64_t max_bytes, struct pending_op *p)
{
	memset(p, 0, sizeof(*p));
	return cowsnap_merge_run_async(s->f.merged, s->queue, max_bytes, &p->op, pending_done, p);
}

static int wait_end(struct stage *s, struct pending_op *p)
{
	if (s->queue)
		cr_assert(pending_wait(s->queue, p), "nothing happens any more");
	while (!atomic_load(&p->calls))
		sched_yield();
	return p->error;
}

static int run(struct stage *s, uint64_t max_bytes)
{
	struct pending_op p;
	int rc = begin(s, max_bytes, &p);

	return rc == COWSNAP_PENDING ? wait_end(s, &p) : rc;
}

/* Once, whatever came before. */
static void expect_ended(struct stage *s)
{
	struct cowsnap_merge_info info;

	cr_assert_eq(scene_count_events(&s->f.s, COWSNAP_EVENT_MERGED), 1);
	cr_assert_eq(state_of(s->f.merged), COWSNAP_SNAPSHOT_DROPPED);
	cr_assert_eq(cowsnap_merge_info(s->f.merged, &info, sizeof(info)), -EINVAL);
	cr_assert_eq(run(s, WHOLE), -EINVAL);
}

static void write_model(struct stage *s, uint64_t at, uint64_t length, uint8_t value)
{
	memset(s->model + at, value, length);
	cr_assert_eq(put(s->f.s.origin[0], at, length, value), 0);
}

static void expect_shown(struct stage *s)
{
	uint8_t *data = malloc(ALL);

	cr_assert_eq(cowsnap_origin_read(s->f.s.origin[0], data, 0, ALL), 0);
	expect_bytes(data, s->model, ALL);
	free(data);
}

static void in_portions(enum way way, const struct family_options *options, struct seed *seed)
{
	struct stage s;
	int rc;

	stage_open(&s, options);
	cr_assert_eq(cowsnap_merge_begin(s.f.merged), 0);
	do {
		uint64_t portion = 1 + seed_below(seed, ALL / 4);
		uint64_t at = seed_below(seed, ALL - 3 * CHUNK);

		write_model(&s, at, 1 + seed_below(seed, 3 * CHUNK), (uint8_t)seed_next(seed));
		rc = seed_below(seed, 4) ? run(&s, portion)
					 : cowsnap_merge_run(s.f.merged, portion);
		cr_assert(rc == 0 || rc == 1, "way %u: error %d", way, rc);
		expect_shown(&s);
		expect_family(&s.f);
	} while (rc);
	expect_ended(&s);
	stage_close(&s);
}

Test(merge_async, in_portions_each_way)
{
	struct seed seed = seed_for("merge_async.in_portions_each_way");

	for (unsigned i = 0; i < 4 * WAYS; i++) {
		struct family_options options = options_of(i / 4, i % 2);

		options.large = i % 4 / 2;
		in_portions(i / 4, &options, &seed);
	}
}

/* ---- Cancelled, and held back ---------------------------------------------------------------- */

/* Held requests are let go. */
static void let_go(struct stage *s, enum test_async_mode mode)
{
	test_async_set_mode(s->f.s.origin_async[0], mode);
	test_async_release(s->f.s.origin_async[0], UINT32_MAX, TEST_RELEASE_LAST);
}

static void cancel_movers(bool records)
{
	struct family_options options = options_of(REVERSED, records);
	struct pending_op p;
	struct stage s;

	options.scene.mode = TEST_ASYNC_FOREIGN;
	stage_open(&s, &options);
	test_async_set_mode(s.f.s.origin_async[0], TEST_ASYNC_HELD);
	cr_assert_eq(cowsnap_merge_begin(s.f.merged), 0);
	cr_assert_eq(begin(&s, WHOLE, &p), COWSNAP_PENDING);
	while (!test_async_held(s.f.s.origin_async[0]))
		cr_assert(pending_poll(s.queue, PENDING_WAIT_MS));
	cr_assert_eq(begin(&s, WHOLE, &(struct pending_op){0}), -EALREADY);
	cr_assert_eq(cowsnap_merge_run(s.f.merged, WHOLE), -EALREADY);
	cr_assert_eq(cowsnap_op_cancel(&p.op), 0);
	pending_settle(s.queue);
	cr_assert_eq(atomic_load(&p.calls), 0, "what is under way ends first");
	let_go(&s, TEST_ASYNC_INLINE);
	cr_assert_eq(wait_end(&s, &p), -ECANCELED);
	cr_assert_eq(merge_info(s.f.merged).running, 0);
	cr_assert_eq(merge_info(s.f.merged).error, 0);
	cr_assert_eq(scene_count_events(&s.f.s, COWSNAP_EVENT_MERGE_FAILED), 0);
	expect_shown(&s);
	expect_family(&s.f);
	cr_assert_eq(run(&s, WHOLE), 0);
	expect_ended(&s);
	stage_close(&s);
}

Test(merge_async, cancelled_while_it_moves)
{
	cancel_movers(false);
	cancel_movers(true);
}

/* What is held back has nothing, so that writes go on meanwhile. */
static void hold_back(enum way way, bool records, bool cancels)
{
	const struct family_options options = options_of(way, records);
	struct pending_op p;
	struct stage s;
	uint64_t moved;

	stage_open(&s, &options);
	cr_assert_eq(cowsnap_merge_begin(s.f.merged), 0);
	cr_assert_eq(cowsnap_ctx_throttle(s.f.s.ctx, 1, 100), 0);
	/* The first is let go on. */
	cr_assert_eq(run(&s, CHUNK), 1);
	moved = merge_info(s.f.merged).moved_bytes;
	cr_assert_eq(begin(&s, WHOLE, &p), COWSNAP_PENDING);
	if (s.queue)
		pending_settle(s.queue);
	write_model(&s, 30 * CHUNK + 5, CHUNK, 9);
	expect_shown(&s);
	cr_assert_eq(atomic_load(&p.calls), 0);
	cr_assert_lt(merge_info(s.f.merged).moved_bytes, moved + 4 * CHUNK);
	if (cancels) {
		cr_assert_eq(cowsnap_op_cancel(&p.op), 0);
		cr_assert_eq(wait_end(&s, &p), -ECANCELED);
		cr_assert_eq(cowsnap_ctx_throttle(s.f.s.ctx, 0, 100), 0);
		cr_assert_eq(run(&s, WHOLE), 0);
	} else {
		cr_assert_eq(cowsnap_ctx_throttle(s.f.s.ctx, 0, 100), 0);
		cr_assert_eq(wait_end(&s, &p), 0);
	}
	expect_ended(&s);
	stage_close(&s);
}

Test(merge_async, held_back_cancelled_and_let_go)
{
	for (unsigned i = 0; i < 4 * WAYS; i++)
		hold_back(i / 4, i % 2, i % 4 / 2);
}

/* Before it begins, or anywhere: nothing is lost by it. */
Test(merge_async, cancelled_on_a_worker)
{
	for (unsigned i = 0; i < 16; i++) {
		const struct family_options options = options_of(WORKER, i % 2);
		struct pending_op p;
		struct stage s;
		int rc;

		stage_open(&s, &options);
		cr_assert_eq(cowsnap_merge_begin(s.f.merged), 0);
		cr_assert_eq(begin(&s, i % 3 ? WHOLE : 9 * CHUNK, &p), COWSNAP_PENDING);
		cr_assert_eq(cowsnap_op_cancel(&p.op), 0);
		rc = wait_end(&s, &p);
		cr_assert(rc == 0 || rc == 1 || rc == -ECANCELED, "error %d", rc);
		if (rc)
			cr_assert_eq(run(&s, WHOLE), 0);
		expect_ended(&s);
		stage_close(&s);
	}
}

/* A failure was told when the throttle let the next piece go, which may be next year. */
Test(merge_async, a_failure_is_told_though_it_is_held_back)
{
	const struct family_options options = options_of(REVERSED, false);
	struct pending_op p;
	struct stage s;

	stage_open(&s, &options);
	test_async_set_mode(s.f.s.origin_async[0], TEST_ASYNC_HELD);
	cr_assert_eq(cowsnap_merge_begin(s.f.merged), 0);
	/* Enough for one more than its first. */
	cr_assert_eq(cowsnap_ctx_throttle(s.f.s.ctx, 1, 100), 0);
	cr_assert_eq(begin(&s, WHOLE, &p), COWSNAP_PENDING);
	while (!test_async_held(s.f.s.origin_async[0]))
		cr_assert(pending_poll(s.queue, PENDING_WAIT_MS));
	test_device_fail(s.f.s.origin_test[0], TEST_IO_WRITE, 1, false, -EIO);
	let_go(&s, TEST_ASYNC_INLINE);
	cr_assert_eq(wait_end(&s, &p), -EIO);
	test_device_heal(s.f.s.origin_test[0]);
	cr_assert_eq(cowsnap_ctx_throttle(s.f.s.ctx, 0, 100), 0);
	expect_shown(&s);
	cr_assert_eq(run(&s, WHOLE), 0);
	cr_assert_eq(scene_count_events(&s.f.s, COWSNAP_EVENT_MERGE_FAILED), 1);
	expect_ended(&s);
	stage_close(&s);
}

/* ---- Failures -------------------------------------------------------------------------------- */

static void expect_stopped(struct stage *s, int rc)
{
	struct cowsnap_merge_info info = merge_info(s->f.merged);

	cr_assert_eq(scene_count_events(&s->f.s, COWSNAP_EVENT_MERGE_FAILED), 1);
	cr_assert_eq(scene_count_events(&s->f.s, COWSNAP_EVENT_MERGED), 0);
	cr_assert_eq(info.error, rc);
	cr_assert_eq(info.running, 0);
	cr_assert_leq(info.moved_bytes, info.total_bytes);
	expect_shown(s);
	expect_family(&s->f);
}

/* Returns: whether the n-th call failed. */
static bool fails_once(enum way way, bool records, bool store, enum test_io kind, uint64_t n)
{
	const struct family_options options = options_of(way, records);
	struct test_device *device;
	struct stage s;
	bool failed;
	int rc;

	stage_open(&s, &options);
	device = !store ? s.f.s.origin_test[0] : records ? s.f.records_test : s.f.s.store_test[0];
	cr_assert_eq(cowsnap_merge_begin(s.f.merged), 0);
	test_device_fail(device, kind, n, false, -EIO);
	rc = run(&s, WHOLE);
	failed = test_device_failed(device) > 0;
	test_device_heal(device);
	cr_assert_eq(rc, failed ? -EIO : 0, "call %llu: %d", (unsigned long long)n, rc);
	if (failed) {
		expect_stopped(&s, -EIO);
		cr_assert_eq(run(&s, WHOLE), 0);
	}
	expect_ended(&s);
	stage_close(&s);
	return failed;
}

/* But for a flush of a store with records, which breaks it: see merge_faults. */
Test(merge_async, each_device_call_fails_once)
{
	static const enum test_io kinds[] = {TEST_IO_READ, TEST_IO_WRITE, TEST_IO_FLUSH};

	for (unsigned i = 0; i < 2 * 2 * 2 * 3; i++) {
		enum way way = i / 12 ? CALLED : REVERSED;
		bool records = i / 6 % 2, store = i / 3 % 2;
		enum test_io kind = kinds[i % 3];
		uint64_t n = 1;

		if (store && kind == TEST_IO_FLUSH)
			continue;
		while (fails_once(way, records, store, kind, n))
			n = test_sweep_next(n);
		cr_assert(n > 1 || (!records && kind == TEST_IO_WRITE && store),
			"%u: nothing was tried", i);
	}
}

static bool without_memory(enum way way, bool records, uint64_t n)
{
	struct fail_alloc *memory = fail_alloc_create(true);
	struct family_options options = options_of(way, records);
	struct stage s;
	bool failed;
	int rc;

	options.scene.allocator = fail_alloc_table(memory);
	stage_open(&s, &options);
	cr_assert_eq(cowsnap_merge_begin(s.f.merged), 0);
	fail_alloc_at(memory, n, false);
	rc = run(&s, WHOLE);
	failed = fail_alloc_failed(memory) > 0;
	fail_alloc_at(memory, 0, false);
	cr_assert(
		!rc || (failed && rc == -ENOMEM), "allocation %llu: %d", (unsigned long long)n, rc);
	if (rc) {
		expect_stopped(&s, -ENOMEM);
		cr_assert_eq(run(&s, WHOLE), 0);
	}
	expect_ended(&s);
	stage_close(&s);
	cr_assert_eq(fail_alloc_live(memory), 0);
	fail_alloc_destroy(memory);
	return failed;
}

Test(merge_async, each_allocation_fails_once)
{
	for (unsigned i = 0; i < 4; i++) {
		uint64_t n = 1;

		while (n < 300 && without_memory(i / 2 ? CALLED : REVERSED, i % 2, n))
			n = test_sweep_next(n);
		cr_assert(n > 3 && n < 300);
	}
}

/* ---- Beside others --------------------------------------------------------------------------- */

#define PIECE    UINT64_C(1024)
#define WRITERS  2u
#define BRACKETS 3u

/* Each has every fourth piece of the volume: two threads, and brackets of the queue. */
struct user {
	struct stage *stage;
	unsigned number;
	struct seed seed;
	pthread_t thread;
	_Atomic bool *stop;
	unsigned ops;
};

static uint64_t any_piece(struct user *u)
{
	return (seed_below(&u->seed, ALL / PIECE / 4) * 4 + u->number) * PIECE;
}

static void expect_piece(struct user *u, uint64_t at)
{
	uint8_t data[PIECE];

	cr_assert_eq(cowsnap_origin_read(u->stage->f.s.origin[0], data, at, PIECE), 0);
	expect_bytes(data, u->stage->model + at, PIECE);
}

static void *user_body(void *argument)
{
	struct user *u = argument;

	for (; !atomic_load(u->stop) || u->ops < 20; u->ops++) {
		uint64_t at = any_piece(u);

		expect_piece(u, at);
		write_model(u->stage, at + 7, 1 + seed_below(&u->seed, PIECE - 7),
			(uint8_t)seed_next(&u->seed));
		expect_piece(u, at);
	}
	return NULL;
}

static void *reader_body(void *argument)
{
	struct user *u = argument;

	do
		expect_family(&u->stage->f);
	while (!atomic_load(u->stop));
	return NULL;
}

struct bracket {
	struct pending_op p;
	uint64_t at;
	int rc;
	bool open;
};

/* Of the queue that the merge is on. */
static void go_on(struct user *u, struct bracket *b)
{
	struct family *f = &u->stage->f;

	if (b->open && b->rc == COWSNAP_PENDING && !atomic_load(&b->p.calls))
		return;
	if (b->open) {
		cr_assert_eq(b->rc == COWSNAP_PENDING ? b->p.error : b->rc, 0);
		memset(u->stage->model + b->at, (int)u->ops, PIECE / 2);
		cr_assert_eq(cowsnap_device_write(test_device_inner(f->s.origin_test[0]),
				     u->stage->model + b->at, b->at, PIECE / 2),
			0);
		cowsnap_write_end(&b->p.op);
	}
	b->open = !atomic_load(u->stop);
	if (!b->open)
		return;
	memset(&b->p, 0, sizeof(b->p));
	b->rc = cowsnap_write_begin_async(f->s.origin[0], u->stage->queue, COWSNAP_WRITE, b->at,
		PIECE / 2, &b->p.op, pending_done, &b->p);
	u->ops++;
}

static void poll_beside(struct user *u, struct bracket *brackets, struct pending_op *merge)
{
	do {
		for (unsigned i = 0; i < BRACKETS; i++)
			go_on(u, &brackets[i]);
		pending_poll(u->stage->queue, 0);
	} while (merge && !atomic_load(&merge->calls));
}

/* Portions, of which each third is cancelled. */
static void merge_beside(struct user *u, struct bracket *brackets)
{
	int rc = 1;

	for (unsigned i = 0; rc; i++) {
		struct pending_op p;

		rc = begin(u->stage, 1 + seed_below(&u->seed, ALL / 8), &p);
		cr_assert_eq(rc, COWSNAP_PENDING);
		if (i % 3 == 2)
			cr_assert_eq(cowsnap_op_cancel(&p.op), 0);
		poll_beside(u, brackets, &p);
		rc = p.error;
		cr_assert(rc == 0 || rc == 1 || rc == -ECANCELED, "error %d", rc);
	}
}

static bool any_open(const struct bracket *brackets)
{
	for (unsigned i = 0; i < BRACKETS; i++) {
		if (brackets[i].open)
			return true;
	}
	return false;
}

static void beside_others(const struct family_options *options, struct seed *seed)
{
	struct bracket brackets[BRACKETS] = {0};
	struct user user[WRITERS + 2];
	_Atomic bool stop = false;
	struct stage s;

	stage_open(&s, options);
	cr_assert_eq(cowsnap_merge_begin(s.f.merged), 0);
	for (unsigned i = 0; i < WRITERS + 2; i++) {
		user[i] = (struct user){
			.stage = &s, .number = i, .seed = {seed_next(seed)}, .stop = &stop};
		if (i < WRITERS + 1)
			cr_assert_eq(pthread_create(&user[i].thread, NULL,
					     i < WRITERS ? user_body : reader_body, &user[i]),
				0);
	}
	for (unsigned i = 0; i < BRACKETS; i++)
		brackets[i].at = (i * 17 * 4 + WRITERS + 1) * PIECE;
	merge_beside(&user[WRITERS + 1], brackets);
	atomic_store(&stop, true);
	while (any_open(brackets))
		poll_beside(&user[WRITERS + 1], brackets, NULL);
	for (unsigned i = 0; i < WRITERS + 1; i++)
		pthread_join(user[i].thread, NULL);
	expect_ended(&s);
	stage_close(&s);
}

Test(merge_async, beside_brackets_reads_and_writes)
{
	struct seed seed = seed_for("merge_async.beside_brackets_reads_and_writes");

	for (unsigned i = 0; i < 8; i++) {
		struct family_options options = options_of(i % 4 / 2 ? CALLED : REVERSED, i % 2);

		options.large = i / 4;
		options.scene.copy_inflight_bytes = i / 4 ? 4 * CHUNK : 0;
		beside_others(&options, &seed);
	}
}

/* Of a whole chunk: until it is written it shows what the snapshot has, never what the device had,
 * and so it does when that fails. */
Test(merge_async, whole_chunks_are_written_over)
{
	const struct family_options options = options_of(CALLED, false);
	struct putter putter;
	struct stage s;
	int hold;

	stage_open(&s, &options);
	cr_assert_eq(cowsnap_merge_begin(s.f.merged), 0);
	hold = scene_hold(s.f.s.origin_test[0], TEST_IO_WRITE, 20 * CHUNK, CHUNK);
	putter_start(&putter, s.f.s.origin[0], 20 * CHUNK, 4 * CHUNK, 9);
	scene_wait_held(s.f.s.origin_test[0], hold);
	expect_shown(&s);
	test_device_fail(s.f.s.origin_test[0], TEST_IO_WRITE, 1, false, -EIO);
	test_device_release(s.f.s.origin_test[0], hold);
	if (!putter_join(&putter)) {
		cr_assert_eq(put(s.f.s.origin[0], 20 * CHUNK, 4 * CHUNK, 8), -EIO);
		memset(s.model + 20 * CHUNK, 9, 4 * CHUNK);
	}
	test_device_heal(s.f.s.origin_test[0]);
	expect_shown(&s);
	expect_family(&s.f);
	write_model(&s, 40 * CHUNK, 2 * CHUNK, 7);
	cr_assert_eq(run(&s, WHOLE), 0);
	expect_ended(&s);
	stage_close(&s);
}

/* ---- Long ones ------------------------------------------------------------------------------- */

#define LONG_CHUNK UINT64_C(65536)
#define LONG_BYTES (UINT64_C(20) << 20) /* more than it does at once, twice */

/* Where devices are called a merge with records went to its end before the call returned. */
Test(merge_async, with_records_others_go_on)
{
	struct cowsnap_ctx_options with = {.size = sizeof(with), .engine = COWSNAP_ENGINE_LOOP};
	struct cowsnap_dm_options dm = {.size = sizeof(dm), .chunk_size_bytes = LONG_CHUNK};
	struct cowsnap_device *device;
	struct cowsnap_take_entry entry = {.on_full = COWSNAP_LOSER_WRITE};
	struct cowsnap_queue *queue;
	struct test_device *store;
	struct pending_op p = {0};
	struct cowsnap_ctx *ctx;

	cr_assert_eq(cowsnap_ctx_create(&with, &ctx), 0);
	cr_assert_eq(cowsnap_device_memory(ctx, LONG_BYTES, &device), 0);
	store = test_device_create(
		ctx, &(struct test_device_options){.size_bytes = 2 * LONG_BYTES, .lockable = true});
	dm.device = test_device(store);
	cr_assert_eq(cowsnap_queue_create(ctx, 4, &queue), 0);
	cr_assert_eq(cowsnap_origin_open(ctx, device, &entry.origin), 0);
	cr_assert_eq(cowsnap_store_dm_create(ctx, &dm, &entry.store), 0);
	cr_assert_eq(cowsnap_take(ctx, NULL, &entry, 1), 0);
	cr_assert_eq(put(entry.origin, 0, LONG_BYTES, 2), 0);
	cr_assert_eq(cowsnap_merge_begin(entry.snapshot), 0);
	cr_assert_eq(cowsnap_merge_run_async(entry.snapshot, queue, WHOLE, &p.op, pending_done, &p),
		COWSNAP_PENDING);
	cr_assert_eq(cowsnap_op_cancel(&p.op), 0);
	cr_assert(pending_wait(queue, &p));
	cr_assert_eq(p.error, -ECANCELED);
	cr_assert_lt(merge_info(entry.snapshot).moved_bytes, LONG_BYTES);
	cr_assert_eq(cowsnap_merge_run(entry.snapshot, WHOLE), 0);
	expect_volume(entry.origin, 0, LONG_BYTES, 0);
	cowsnap_snapshot_unref(entry.snapshot);
	cr_assert_eq(cowsnap_queue_close(queue), 0);
	cr_assert_eq(cowsnap_store_close(entry.store), 0);
	cr_assert_eq(cowsnap_origin_close(entry.origin), 0);
	cr_assert_eq(cowsnap_device_close(device), 0);
	cr_assert_eq(test_device_destroy(store), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}

/* ---- Many runs ------------------------------------------------------------------------------- */

#define SHORT     UINT64_C(512) /* a chunk */
#define LISTED    8192u
#define SINGLES   132u
#define LONGER    124u
#define PER_RUN   65u
#define LIST_SIZE ((UINT64_C(2) * SINGLES + LONGER * (PER_RUN + 1)) * SHORT)

/* Records of a store of the host's, of one chunk each, in order. */
struct list {
	struct cowsnap_run run[LISTED];
	size_t count;
	uint64_t next, used;
};

static int list_alloc(void *user, uint64_t want, uint64_t *location, uint64_t *count)
{
	struct list *l = user;

	*location = l->next;
	*count = want;
	l->next += want;
	l->used += want;
	return 0;
}

static void list_free(void *user, uint64_t location, uint64_t count)
{
	(void)location;
	((struct list *)user)->used -= count;
}

static void list_space(void *user, struct cowsnap_store_space *space)
{
	space->used_chunks = ((struct list *)user)->used;
	space->limit_chunks = 2 * LISTED;
}

static void list_commit(void *user, struct cowsnap_commit *commit)
{
	struct list *l = user;

	for (size_t i = 0; i < commit->count; i++) {
		const struct cowsnap_run *run = &commit->runs[i];

		for (uint64_t k = 0; k < run->count; k++, l->count++) {
			cr_assert_lt(l->count, LISTED);
			l->run[l->count] = (struct cowsnap_run){.first = run->first + k,
				.count = 1,
				.location = run->location +
					    (run->location <= COWSNAP_LOCATION_MAX ? k : 0)};
		}
	}
	commit->done(commit, 0);
}

static void list_newest(void *user, struct cowsnap_newest *newest)
{
	const struct list *l = user;

	newest_of(newest, l->run, l->count);
	newest->done(newest, 0);
}

static void list_forget(void *user, struct cowsnap_commit *commit)
{
	struct list *l = user;

	for (size_t i = 0; i < commit->count; i++)
		l->count -= commit->runs[i].count;
	commit->done(commit, 0);
}

struct listed {
	struct list list;
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *device, *store_device;
	struct cowsnap_take_entry entry;
};

static void listed_open(struct listed *l, uint32_t flags)
{
	const struct cowsnap_store_ops ops = {.size = sizeof(ops),
		.alloc = list_alloc,
		.free = list_free,
		.space = list_space,
		.commit = list_commit,
		.newest = list_newest,
		.forget = list_forget};
	struct cowsnap_store_options options = {.size = sizeof(options),
		.flags = COWSNAP_STORE_ONE_SNAPSHOT | flags,
		.chunk_size_bytes = SHORT};

	memset(l, 0, sizeof(*l));
	l->entry.on_full = COWSNAP_LOSER_WRITE;
	cr_assert_eq(cowsnap_ctx_create(NULL, &l->ctx), 0);
	cr_assert_eq(cowsnap_device_memory(l->ctx, LIST_SIZE, &l->device), 0);
	cr_assert_eq(cowsnap_device_memory(l->ctx, 2 * LISTED * SHORT, &l->store_device), 0);
	options.device = l->store_device;
	cr_assert_eq(cowsnap_store_create(l->ctx, &ops, &options, &l->list, &l->entry.store), 0);
	cr_assert_eq(cowsnap_origin_open(l->ctx, l->device, &l->entry.origin), 0);
	cr_assert_eq(cowsnap_take(l->ctx, NULL, &l->entry, 1), 0);
}

static void listed_close(struct listed *l)
{
	expect_volume(l->entry.origin, 0, LIST_SIZE, 0);
	cowsnap_snapshot_unref(l->entry.snapshot);
	while (cowsnap_reclaim(l->ctx, 64) == 1)
		;
	cr_assert_eq(cowsnap_store_close(l->entry.store), 0);
	cr_assert_eq(cowsnap_origin_close(l->entry.origin), 0);
	cr_assert_eq(cowsnap_device_close(l->device), 0);
	cr_assert_eq(cowsnap_device_close(l->store_device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(l->ctx), 0);
}

/* A batch of short chunks was cut into more parts than there were movers. */
Test(merge_async, more_runs_than_fit)
{
	struct listed *l = malloc(sizeof(*l));
	uint64_t at = 0;

	listed_open(l, 0);
	for (unsigned i = 0; i < SINGLES; i++, at += 2 * SHORT)
		cr_assert_eq(put(l->entry.origin, at, SHORT, 2), 0);
	for (unsigned i = 0; i < LONGER; i++, at += (PER_RUN + 1) * SHORT)
		cr_assert_eq(put(l->entry.origin, at, PER_RUN * SHORT, 2), 0);
	cr_assert_eq(cowsnap_merge_begin(l->entry.snapshot), 0);
	cr_assert_eq(cowsnap_merge_run(l->entry.snapshot, WHOLE), 0);
	listed_close(l);
	free(l);
}

static enum cowsnap_preimage_kind all_zeroes(void *user, struct cowsnap_preimage_ask *ask)
{
	(void)user;
	(void)ask;
	return COWSNAP_PREIMAGE_ZERO;
}

/* First zero, and then written to the snapshot: it was moved twice, the number said. */
Test(merge_async, a_chunk_of_two_records_counts_once)
{
	const struct cowsnap_preimage preimage = {.get = all_zeroes};
	struct listed *l = malloc(sizeof(*l));
	uint8_t zero[64] = {0};
	struct cowsnap_merge_info info;
	struct cowsnap_op op;
	int rc;

	listed_open(l, COWSNAP_STORE_ZEROES);
	cr_assert_eq(cowsnap_write_begin_with(
			     l->entry.origin, COWSNAP_WRITE, 0, 4 * SHORT, &preimage, &op),
		0);
	cowsnap_write_end(&op);
	cr_assert_eq(put(l->entry.origin, 0, 4 * SHORT, 2), 0);
	for (unsigned i = 0; i < 4; i++)
		cr_assert_eq(cowsnap_snapshot_write(l->entry.snapshot, COWSNAP_WRITE, zero,
				     i * SHORT, sizeof(zero)),
			0);
	cr_assert_eq(l->list.count, 8);
	cr_assert_eq(cowsnap_merge_begin(l->entry.snapshot), 0);
	while ((rc = cowsnap_merge_run(l->entry.snapshot, SHORT)) == 1) {
		info = merge_info(l->entry.snapshot);
		cr_assert_leq(info.moved_bytes, info.total_bytes);
	}
	cr_assert_eq(rc, 0);
	listed_close(l);
	free(l);
}
