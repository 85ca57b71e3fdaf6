/* SPDX-License-Identifier: MIT
 *
 * The volume's own reads, writes and flushes that do not wait: in a queue, inline, and on a worker;
 * with a merge and without one, of a store with records and of one without; when a device or an
 * allocation fails, and when they are cancelled.
 */
#include "concurrent/volume_io.h"

#include "support/fail_alloc.h"
#include "support/seed.h"

/* ---- Each form ------------------------------------------------------------------------------- */

static const struct {
	uint64_t offset, length;
} ranges[] = {
	{3 * CHUNK, CHUNK},                         /* whole */
	{4 * CHUNK + 100, 300},                     /* a part, less than a block */
	{5 * CHUNK + 512, 1024},                    /* whole blocks */
	{6 * CHUNK + 700, 3 * CHUNK},               /* both, and whole ones between */
	{11 * CHUNK, 2 * CHUNK},                    /* where the snapshot has nothing, too */
	{14 * CHUNK + 5, CHUNK},                    /* over zeroes without space */
	{17 * CHUNK, 100},                          /* what was not written since */
	{19 * CHUNK + 10, TAKEN - 19 * CHUNK - 10}, /* to the end of the snapshot */
	{20 * CHUNK, TAKEN - 20 * CHUNK},           /* all of its last chunk */
	{TAKEN, 200},                               /* behind it, in that chunk */
	{20 * CHUNK + 1000, CHUNK},                 /* over its end */
	{21 * CHUNK, ALL - 21 * CHUNK},             /* to the end of the volume */
	{CHUNK / 2, ALL - CHUNK},                   /* nearly all */
	{0, ALL},
};

#define RANGES (sizeof(ranges) / sizeof(ranges[0]))

static void each_form(enum where where, bool merges, bool records)
{
	for (enum what what = READ; what < WHATS; what++) {
		struct volume *v = volume_open(&(struct volume_options){
			.where = where, .records = records, .mode = TEST_ASYNC_REVERSE});

		if (merges)
			begin_merge(v);
		expect_volume(v);
		for (unsigned i = 0; i < RANGES; i++) {
			/* Bytes over zeroes without space, with records, wait for the merge; here
			 * they have space. */
			cr_assert_eq(do_one(v, what, ranges[i].offset, ranges[i].length,
					     (uint8_t)(10 + i)),
				0);
			expect_volume(v);
			expect_other(v);
		}
		cr_assert_eq(do_one(v, READ, 0, ALL, 0), 0);
		cr_assert_eq(is_merging(v), merges);
		volume_close(v);
	}
}

Test(origin_io, each_form_without_a_merge)
{
	for (enum where where = QUEUE; where < PLACES; where++)
		each_form(where, false, where == INLINE);
}

Test(origin_io, each_form_in_a_queue)
{
	each_form(QUEUE, true, false);
	each_form(QUEUE, true, true);
}

Test(origin_io, each_form_inline)
{
	each_form(INLINE, true, false);
	each_form(INLINE, true, true);
}

Test(origin_io, each_form_on_a_worker)
{
	each_form(WORKER, true, false);
	each_form(WORKER, true, true);
}

/* ---- Beside the merge, in its queue ---------------------------------------------------------- */

#define FLIGHTS 6u
#define PIECE   1000u

static struct request any_request(struct seed *seed, unsigned flight)
{
	/* One of its own pieces, or more of the pieces of one stretch than one chunk has. */
	uint64_t stretch = ALL / FLIGHTS, at = stretch * flight;
	uint64_t from = seed_below(seed, stretch - PIECE), length = 1 + seed_below(seed, PIECE);
	struct request r;

	if (!seed_below(seed, 4))
		length = 1 + seed_below(seed, stretch - from);
	request_init(&r, (enum what)seed_below(seed, WHATS), at + from, length,
		(uint8_t)seed_next(seed));
	if (r.what == WRITE)
		seed_fill(seed, r.data, length);
	return r;
}

/* Returns: how many have ended while the merge went on. */
static unsigned stream(struct volume *v, struct seed *seed, struct pending_op *merge, unsigned most)
{
	struct request flight[FLIGHTS] = {0};
	unsigned done = 0, beside = 0, open = 0;

	while (done < most || open) {
		for (unsigned i = 0; i < FLIGHTS; i++) {
			struct request *r = &flight[i];

			if (r->data && atomic_load(&r->p.calls)) {
				cr_assert_eq(r->p.error, 0, "error %d", r->p.error);
				request_check(v, r);
				free(r->data);
				r->data = NULL;
				open--;
				done++;
				beside += !atomic_load(&merge->calls);
			}
			if (!r->data && done + open < most) {
				*r = any_request(seed, i);
				cr_assert_eq(request_begin(v, r), COWSNAP_PENDING);
				open++;
			}
		}
		if (open)
			cr_assert(pending_poll(v->queue, PENDING_WAIT_MS), "it stands still");
	}
	return beside;
}

static unsigned rounds(void)
{
	const char *given = getenv("COWSNAP_ROUNDS");

	return given ? (unsigned)strtoul(given, NULL, 0) : 3;
}

static void beside_a_merge(struct volume_options options, const char *test)
{
	struct seed seed = seed_for(test);
	unsigned beside = 0;

	for (unsigned i = 0; i < rounds(); i++) {
		struct volume *v = volume_open(&options);
		struct pending_op merge = {0};

		begin_merge(v);
		do {
			memset(&merge, 0, sizeof(merge));
			cr_assert_eq(cowsnap_merge_run_async(v->merged, v->queue, 4 * CHUNK,
					     &merge.op, pending_done, &merge),
				COWSNAP_PENDING);
			beside += stream(v, &seed, &merge, 12);
			cr_assert(pending_wait(v->queue, &merge), "nothing happens any more");
		} while (merge.error == 1);
		cr_assert_eq(merge.error, 0);
		cr_assert_not(is_merging(v));
		expect_volume(v);
		volume_close(v);
	}
	cr_assert_gt(beside, 0);
}

Test(origin_io, beside_a_merge_in_its_queue)
{
	struct volume_options options = {.where = QUEUE, .mode = TEST_ASYNC_REVERSE};

	beside_a_merge(options, "origin_io.beside_a_merge_in_its_queue");
	options.records = true;
	beside_a_merge(options, "origin_io.beside_a_merge_in_its_queue, with records");
	options.copy_inflight_bytes = 4 * CHUNK;
	options.records = false;
	beside_a_merge(options, "origin_io.beside_a_merge_in_its_queue, few credits");
}

/* ---- Failures -------------------------------------------------------------------------------- */

/* A sequence for sweeps: part, whole, part in one write; a part; a read of all; a flush. */
static const struct {
	enum what what;
	uint64_t offset, length;
} sequence[] = {
	{WRITE, 6 * CHUNK + 700, 3 * CHUNK},
	{WRITE, 4 * CHUNK + 100, 300},
	{WRITE, 20 * CHUNK + 1000, CHUNK},
	{ZERO, 10 * CHUNK, CHUNK},
	{READ, 0, ALL},
	{FLUSH, 0, 1},
};

#define STEPS (sizeof(sequence) / sizeof(sequence[0]))

static int step(struct volume *v, unsigned i)
{
	return do_one(
		v, sequence[i].what, sequence[i].offset, sequence[i].length, (uint8_t)(20 + i));
}

/* After a failure all works: no claim, gate or credit was left behind. */
static void steps_again(struct volume *v)
{
	for (unsigned i = 0; i < STEPS; i++)
		cr_assert_eq(step(v, i), 0, "step %u", i);
	expect_volume(v);
}

/* Returns: did the n-th call fail? */
static bool device_fails(const struct volume_options *options, bool merges, unsigned which,
	enum test_io io, uint64_t n)
{
	struct volume *v = volume_open(options);
	unsigned failed = 0;

	if (merges)
		begin_merge(v);
	test_device_fail(v->rig[which], io, n, false, -EIO);
	for (unsigned i = 0; i < STEPS; i++) {
		int rc = step(v, i);

		cr_assert(rc == 0 || rc == -EIO, "error %d", rc);
		failed += rc != 0;
	}
	cr_assert_eq(failed, test_device_failed(v->rig[which]), "each failure is told");
	test_device_heal(v->rig[which]);
	steps_again(v);
	volume_close(v);
	return failed;
}

static unsigned sweep_devices(const struct volume_options *options, bool merges)
{
	static const enum test_io ios[] = {
		TEST_IO_READ, TEST_IO_WRITE, TEST_IO_ZERO, TEST_IO_FLUSH};
	unsigned failures = 0;

	for (unsigned d = 0; d < DEVICES; d++) {
		for (unsigned k = 0; k < sizeof(ios) / sizeof(ios[0]); k++) {
			/* A flush that fails breaks a persistent store. */
			if (d == STORE && ios[k] == TEST_IO_FLUSH && options->records)
				continue;
			for (uint64_t n = 1; device_fails(options, merges, d, ios[k], n);
				n = test_sweep_next(n))
				failures++;
		}
	}
	return failures;
}

Test(origin_io, each_device_call_fails_once)
{
	struct volume_options options = {.where = QUEUE, .mode = TEST_ASYNC_INLINE};

	cr_assert_geq(sweep_devices(&options, false), 8);
	cr_assert_geq(sweep_devices(&options, true), 15);
	options.where = INLINE;
	options.records = true;
	cr_assert_geq(sweep_devices(&options, true), 15);
}

/* Returns: did the n-th allocation fail? */
static bool memory_fails(struct volume_options options, bool merges, uint64_t n)
{
	struct fail_alloc *memory = fail_alloc_create(true);
	struct volume *v;
	bool failed;

	options.allocator = fail_alloc_table(memory);
	v = volume_open(&options);
	if (merges)
		begin_merge(v);
	fail_alloc_at(memory, n, false);
	for (unsigned i = 0; i < STEPS; i++) {
		int rc = step(v, i);

		cr_assert(rc == 0 || (rc == -ENOMEM && fail_alloc_failed(memory)), "error %d", rc);
	}
	failed = fail_alloc_failed(memory) > 0;
	fail_alloc_at(memory, 0, false);
	steps_again(v);
	volume_close(v);
	fail_alloc_destroy(memory);
	return failed;
}

Test(origin_io, each_allocation_fails_once)
{
	for (unsigned i = 0; i < 3; i++) {
		uint64_t n = 1;

		while (memory_fails(
			(struct volume_options){
				.where = QUEUE, .records = i == 2, .mode = TEST_ASYNC_INLINE},
			i > 0, n))
			n++;
		cr_assert_geq(n, STEPS, "a record for each");
	}
}

/* ---- Cancelling ------------------------------------------------------------------------------ */

static void *begin_body(void *argument)
{
	struct volume *v = argument;

	cr_assert_eq(cowsnap_merge_begin(v->merged), 0);
	return NULL;
}

/* A merge that waits for a bracket of before: whoever comes now waits until it is ready. */
static void hold_merge(struct volume *v, struct cowsnap_op *before, pthread_t *thread)
{
	cr_assert_eq(cowsnap_write_begin(v->origin, COWSNAP_WRITE, 0, 1, before), 0);
	cr_assert_eq(pthread_create(thread, NULL, begin_body, v), 0);
	while (!is_merging(v))
		sched_yield();
}

static void waits_for_the_merge(struct volume_options options)
{
	struct volume *v = volume_open(&options);
	struct request r[WHATS], again[WHATS];
	struct cowsnap_op before;
	pthread_t thread;

	hold_merge(v, &before, &thread);
	for (enum what what = READ; what < WHATS; what++) {
		request_init(&r[what], what, 3 * CHUNK + what * 200, 100, 9);
		request_init(&again[what], what, 3 * CHUNK + 100 + what * 200, 100, 9);
		cr_assert_eq(request_begin(v, &r[what]), COWSNAP_PENDING);
		cr_assert_eq(request_begin(v, &again[what]), COWSNAP_PENDING);
	}
	if (v->queue)
		pending_settle(v->queue);
	for (enum what what = READ; what < WHATS; what++) {
		cr_assert_eq(atomic_load(&r[what].p.calls), 0);
		cr_assert_eq(cowsnap_op_cancel(&r[what].p.op), 0);
		cr_assert_eq(request_wait(v, &r[what]), -ECANCELED);
		free(r[what].data);
	}
	cr_assert_eq(cowsnap_origin_close(v->origin), -EBUSY);
	for (enum what what = READ; what < WHATS; what++)
		cr_assert_eq(atomic_load(&again[what].p.calls), 0);
	cowsnap_write_end(&before);
	pthread_join(thread, NULL);
	memcpy(v->model, v->merging, ALL);
	for (enum what what = READ; what < WHATS; what++) {
		cr_assert_eq(request_wait(v, &again[what]), 0);
		request_check(v, &again[what]);
		free(again[what].data);
	}
	volume_close(v);
}

Test(origin_io, cancelled_while_the_merge_is_not_ready)
{
	for (enum where where = QUEUE; where < PLACES; where++)
		waits_for_the_merge((struct volume_options){
			.where = where, .records = where == QUEUE, .mode = TEST_ASYNC_INLINE});
}

static unsigned release_one(struct volume *v)
{
	unsigned released = 0;

	for (unsigned d = 0; d < DEVICES && !released; d++)
		released = test_async_release(v->async[d], 1, TEST_RELEASE_LAST);
	return released;
}

static void finish(struct volume *v, struct request *r)
{
	pending_settle(v->queue);
	while (!atomic_load(&r->p.calls)) {
		cr_assert(release_one(v) || pending_poll(v->queue, PENDING_WAIT_MS));
		pending_settle(v->queue);
	}
}

/* Cancels a step after @after of its requests have ended. Returns: false if there were fewer. */
static bool cancel_step(struct volume *v, unsigned i, unsigned after)
{
	bool cancelled;
	struct request r;

	request_init(&r, sequence[i].what, sequence[i].offset, sequence[i].length, 7);
	cr_assert_eq(request_begin(v, &r), COWSNAP_PENDING);
	pending_settle(v->queue);
	for (; after && !atomic_load(&r.p.calls); after--) {
		release_one(v);
		pending_settle(v->queue);
	}
	cancelled = !atomic_load(&r.p.calls);
	if (cancelled)
		cr_assert_eq(cowsnap_op_cancel(&r.p.op), 0);
	finish(v, &r);
	cr_assert(r.p.error == 0 || (cancelled && r.p.error == -ECANCELED));
	if (r.p.error)
		request_forget(v, &r);
	else
		request_check(v, &r);
	free(r.data);
	return cancelled;
}

static void set_mode(struct volume *v, enum test_async_mode mode)
{
	for (unsigned d = 0; d < DEVICES; d++)
		test_async_set_mode(v->async[d], mode);
}

static unsigned cancel_at_each_request(bool merges, bool records)
{
	unsigned cancelled = 0;
	bool any = true;

	for (unsigned after = 0; any; after++) {
		struct volume *v = volume_open(&(struct volume_options){
			.where = QUEUE, .records = records, .mode = TEST_ASYNC_INLINE});

		any = false;
		if (merges)
			begin_merge(v);
		set_mode(v, TEST_ASYNC_HELD);
		for (unsigned i = 0; i < STEPS; i++) {
			bool was = cancel_step(v, i, after);

			any = any || was;
			cancelled += was;
		}
		set_mode(v, TEST_ASYNC_INLINE);
		steps_again(v);
		volume_close(v);
	}
	return cancelled;
}

Test(origin_io, cancelled_at_each_request)
{
	cr_assert_geq(cancel_at_each_request(false, false), 6);
	cr_assert_geq(cancel_at_each_request(true, false), 12);
	cr_assert_geq(cancel_at_each_request(true, true), 12);
}

/* A write whose copy is under way has all the credits; the next one waits for them. */
Test(origin_io, cancelled_while_it_waits_for_credits)
{
	for (unsigned merges = 0; merges < 2; merges++) {
		struct volume *v = volume_open(&(struct volume_options){
			.where = QUEUE, .mode = TEST_ASYNC_INLINE, .copy_inflight_bytes = CHUNK});
		struct request first, second;

		if (merges)
			begin_merge(v);
		set_mode(v, TEST_ASYNC_HELD);
		request_init(&first, WRITE, 8 * CHUNK, CHUNK, 8);
		request_init(&second, WRITE, 17 * CHUNK + 1, 300, 9);
		cr_assert_eq(request_begin(v, &first), COWSNAP_PENDING);
		cr_assert_eq(request_begin(v, &second), COWSNAP_PENDING);
		pending_settle(v->queue);
		cr_assert_eq(cowsnap_op_cancel(&second.p.op), 0);
		pending_settle(v->queue);
		cr_assert_eq(atomic_load(&second.p.calls), 1, "it waited for nothing else");
		cr_assert_eq(second.p.error, -ECANCELED);
		cr_assert_eq(atomic_load(&first.p.calls), 0);
		finish(v, &first);
		cr_assert_eq(first.p.error, 0);
		request_check(v, &first);
		set_mode(v, TEST_ASYNC_INLINE);
		expect_volume(v);
		free(first.data);
		free(second.data);
		volume_close(v);
	}
}

/* ---- Arguments ------------------------------------------------------------------------------- */

static void nothing(struct cowsnap_op *op, void *user, int error)
{
	(void)op;
	(void)user;
	(void)error;
}

Test(origin_io, what_is_refused)
{
	struct volume *v = volume_open(&(struct volume_options){.where = INLINE});
	struct cowsnap_queue *queue = v->queue;
	struct cowsnap_op op;
	uint8_t byte = 0;

	cr_assert_eq(cowsnap_origin_read_async(v->origin, queue, &byte, 0, 0, &op, nothing, NULL),
		-EINVAL);
	cr_assert_eq(cowsnap_origin_read_async(v->origin, queue, &byte, ALL, 1, &op, nothing, NULL),
		-ERANGE);
	cr_assert_eq(cowsnap_origin_read_async(v->origin, NULL, &byte, 0, 1, &op, nothing, NULL),
		-EINVAL, "no workers");
	cr_assert_eq(cowsnap_origin_read_async(v->origin, queue, &byte, 0, 1, &op, NULL, NULL),
		-EINVAL, "no callback");
	cr_assert_eq(cowsnap_origin_write_async(
			     v->origin, queue, COWSNAP_WRITE, NULL, 0, 1, &op, nothing, NULL),
		-EINVAL);
	cr_assert_eq(cowsnap_origin_write_async(
			     v->origin, queue, COWSNAP_DISCARD, &byte, 0, 1, &op, nothing, NULL),
		-EINVAL);
	cr_assert_eq(cowsnap_origin_write_async(v->origin, queue, (enum cowsnap_write_kind)77,
			     &byte, 0, 1, &op, nothing, NULL),
		-EINVAL);
	cr_assert_eq(cowsnap_origin_write_async(
			     v->origin, NULL, COWSNAP_WRITE, &byte, 0, 1, &op, nothing, NULL),
		-EINVAL);
	cr_assert_eq(cowsnap_origin_flush_async(v->origin, NULL, &op, nothing, NULL), -EINVAL);
	volume_close(v);
}
