/* SPDX-License-Identifier: MIT
 *
 * Wrong calls of what does not wait: each is refused with its own error, and nothing happens.
 */
#include "api/volume.h"

#include <errno.h>
#include <string.h>

static void must_not_run(struct cowsnap_op *ended, void *user, int error)
{
	(void)ended;
	(void)user;
	cr_assert_fail("called back, with error %d", error);
}

static struct cowsnap_op op;

static int begin(struct volume *v, struct cowsnap_queue *queue, cowsnap_done *done)
{
	return cowsnap_write_begin_async(
		v->origin, queue, COWSNAP_WRITE, 0, VOLUME_CHUNK, &op, done, NULL);
}

/* ---- The context ----------------------------------------------------------------------------- */

static int create(int engine, uint32_t workers)
{
	const struct cowsnap_ctx_options options = {
		.size = sizeof(options), .engine = (enum cowsnap_engine)engine, .workers = workers};
	struct cowsnap_ctx *ctx = NULL;
	int rc = cowsnap_ctx_create(&options, &ctx);

	cr_assert(rc ? !ctx : cowsnap_ctx_destroy(ctx) == 0);
	return rc;
}

Test(async_calls, engines_and_workers)
{
	cr_assert_eq(create(COWSNAP_ENGINE_INLINE, 0), 0);
	cr_assert_eq(create(COWSNAP_ENGINE_LOOP, 0), 0);
	cr_assert_eq(create(COWSNAP_ENGINE_WORKERS, 1), 0);
	cr_assert_eq(create(COWSNAP_ENGINE_WORKERS, 4), 0);
	cr_assert_eq(create(COWSNAP_ENGINE_WORKERS, 0), -EINVAL);
	cr_assert_eq(create(COWSNAP_ENGINE_WORKERS, COWSNAP_WORKERS_MAX + 1), -EINVAL);
	cr_assert_eq(create(COWSNAP_ENGINE_WORKERS, UINT32_MAX), -EINVAL);
	cr_assert_eq(create(COWSNAP_ENGINE_INLINE, 1), -EINVAL);
	cr_assert_eq(create(COWSNAP_ENGINE_LOOP, 2), -EINVAL);
	cr_assert_eq(create(COWSNAP_ENGINE_WORKERS + 1, 0), -EINVAL);
	cr_assert_eq(create(-1, 0), -EINVAL);
}

/* As many as there may be: all start, and all end. */
Test(async_calls, the_most_workers, .timeout = 60)
{
	int rc = create(COWSNAP_ENGINE_WORKERS, COWSNAP_WORKERS_MAX);

	/* Three descriptors each, and a thread. */
	cr_assert(rc == 0 || rc == -EMFILE || rc == -EAGAIN, "error %d", rc);
}

/* ---- Operations ------------------------------------------------------------------------------ */

Test(async_calls, callback_and_queue_are_needed)
{
	struct cowsnap_queue *queue;
	struct volume v;

	volume_open(&v);
	cr_assert_eq(cowsnap_queue_create(v.ctx, 1, &queue), 0);
	cr_assert_eq(begin(&v, queue, NULL), -EINVAL);
	cr_assert_eq(begin(&v, NULL, must_not_run), -EINVAL, "there are no workers");
	cr_assert_eq(begin(&v, NULL, NULL), -EINVAL);
	cr_assert_eq(cowsnap_queue_poll(queue), 0);
	volume_check_untouched(&v);
	cr_assert_eq(begin(&v, queue, must_not_run), 0);
	cr_assert_eq(cowsnap_queue_close(queue), 0, "nothing is pending");
	cr_assert_eq(cowsnap_origin_close(v.origin), -EBUSY, "the bracket is open");
	cr_assert_eq(begin(&v, queue, must_not_run), -EBADF, "the queue is closed");
	cowsnap_write_end(&op);
	volume_close(&v);
}

Test(async_calls, ranges_are_checked_before_anything_else)
{
	const struct {
		int kind;
		uint64_t offset, length;
		int error;
	} wrong[] = {
		{COWSNAP_WRITE, 0, 0, -EINVAL},
		{COWSNAP_WRITE, 0, VOLUME_BYTES + 1, -ERANGE},
		{COWSNAP_DISCARD, VOLUME_BYTES, 1, -ERANGE},
		{COWSNAP_WRITE_ZEROES, UINT64_MAX, 2, -EOVERFLOW},
		{0, 0, 1, -EINVAL},
		{COWSNAP_WRITE_ZEROES + 1, 0, 1, -EINVAL},
	};
	struct cowsnap_queue *queue;
	struct volume v;

	volume_open(&v);
	cr_assert_eq(cowsnap_queue_create(v.ctx, 1, &queue), 0);
	for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++)
		cr_assert_eq(cowsnap_write_begin_async(v.origin, queue,
				     (enum cowsnap_write_kind)wrong[i].kind, wrong[i].offset,
				     wrong[i].length, &op, must_not_run, NULL),
			wrong[i].error, "case %zu", i);
	volume_check_untouched(&v);
	cr_assert_eq(cowsnap_origin_close(v.origin), 0);
	cr_assert_eq(begin(&v, queue, must_not_run), -EBADF, "the origin is closed");
	cr_assert_eq(cowsnap_queue_close(queue), 0);
	cr_assert_eq(cowsnap_store_close(v.store), 0);
	cr_assert_eq(cowsnap_device_close(v.device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(v.ctx), 0);
}

Test(async_calls, queue_of_another_context)
{
	struct cowsnap_queue *queue;
	struct cowsnap_ctx *ctx;
	struct volume v;

	volume_open(&v);
	cr_assert_eq(cowsnap_ctx_create(NULL, &ctx), 0);
	cr_assert_eq(cowsnap_queue_create(ctx, 1, &queue), 0);
	cr_assert_eq(begin(&v, queue, must_not_run), -EXDEV);
	volume_check_untouched(&v);
	cr_assert_eq(cowsnap_queue_close(queue), 0);
	cr_assert_eq(begin(&v, queue, must_not_run), -EXDEV);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
	volume_close(&v);
}

/* ---- Ends ------------------------------------------------------------------------------------ */

Test(async_calls, a_context_with_an_open_queue_does_not_end)
{
	struct cowsnap_queue *queue[2];
	struct cowsnap_ctx *ctx;

	cr_assert_eq(cowsnap_ctx_create(NULL, &ctx), 0);
	for (int i = 0; i < 2; i++)
		cr_assert_eq(cowsnap_queue_create(ctx, 8, &queue[i]), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), -EBUSY);
	cr_assert_eq(cowsnap_queue_poll(queue[0]), 0, "nothing was done");
	cr_assert_eq(cowsnap_queue_close(queue[0]), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), -EBUSY);
	cr_assert_eq(cowsnap_queue_close(queue[0]), -EBADF);
	cr_assert_eq(cowsnap_queue_close(queue[1]), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
}
