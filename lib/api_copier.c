/* SPDX-License-Identifier: MIT
 *
 * The copier as a building block: a reservation and a copy in one call.
 *
 * Locking: none. Failure: what is wrong with the arguments is found before anything is copied.
 */
#include <errno.h>

#include "engine.h"
#include "op.h"
#include "workers.h"

int cowsnap_copier_create(struct cowsnap_ctx *ctx, const struct cowsnap_copier_options *options,
	struct cowsnap_copier **copier)
{
	int rc = cs_copier_create(&ctx->base, options, copier);

	if (!rc)
		(*copier)->ctx = ctx;
	return rc;
}

void cowsnap_copier_destroy(struct cowsnap_copier *copier)
{
	cs_copier_destroy(copier);
}

static int check_target(const struct cowsnap_copy_target *target)
{
	if (!target->device || !target->length || (target->zeroes && !target->part_bytes))
		return -EINVAL;
	if (target->offset > UINT64_MAX - target->length ||
		target->source_offset > UINT64_MAX - target->length)
		return -EOVERFLOW;
	return 0;
}

/* No less than the union of the ranges: what lies between them counts too, but nothing twice. */
static uint64_t bytes_wanted(const struct cowsnap_copy_target *targets, size_t count)
{
	uint64_t first = UINT64_MAX, end = 0, sum = 0;

	for (size_t i = 0; i < count; i++) {
		const struct cowsnap_copy_target *t = &targets[i];

		first = t->source_offset < first ? t->source_offset : first;
		end = t->source_offset + t->length > end ? t->source_offset + t->length : end;
		sum = t->length > UINT64_MAX - sum ? UINT64_MAX : sum + t->length;
	}
	return sum < end - first ? sum : end - first;
}

static int check_copy(const struct cowsnap_copy *copy)
{
	int rc = copy->targets && copy->count ? 0 : -EINVAL;

	for (size_t i = 0; !rc && i < copy->count; i++)
		rc = check_target(&copy->targets[i]);
	return rc;
}

/* Credits for all of it; a background copy takes its own. */
static bool reserve(struct cowsnap_copier *copier, struct cowsnap_copy *copy, struct cs_task *task)
{
	return copy->background ||
	       cs_copier_reserve(copier, cs_copier_flow(copier, copy->source, false),
		       &cs_run_of(copy)->credit, bytes_wanted(copy->targets, copy->count), task);
}

/* Returns: why nothing was copied, or not all. */
static int settle(struct cowsnap_copier *copier, struct cowsnap_copy *copy)
{
	if (!copy->background)
		cs_copier_release(copier, cs_run_of(copy)->credit.bytes);
	return cs_copier_read(copy).error;
}

int cowsnap_copier_copy(struct cowsnap_copier *copier, struct cowsnap_copy *copy)
{
	struct cs_task task;
	int rc = check_copy(copy);

	if (rc)
		return rc;
	cs_task_init(&task, NULL, NULL);
	if (!reserve(copier, copy, &task))
		cs_task_sleep(&task);
	cs_copier_start(copier, copy, &task);
	return settle(copier, copy);
}

/* ---- Without waiting ------------------------------------------------------------------------- */

/* Where a copy is, in op->offset. */
enum { STAGE_BEGINS, STAGE_RESERVES, STAGE_COPIES };

static struct cowsnap_copy *copy_of(const struct cs_op *op)
{
	return op->turn.record;
}

/* Nothing of it was copied. */
static void cancel_targets(struct cowsnap_copy *copy)
{
	for (size_t i = 0; i < copy->count; i++)
		copy->targets[i].error = -ECANCELED;
}

static void abandon_credits(struct cs_op *op)
{
	struct cowsnap_copy *copy = copy_of(op);

	if (!cs_copier_forsake(cs_run_of(copy)->copier, &cs_run_of(copy)->credit))
		return;
	cancel_targets(copy);
	cs_op_abandoned(op);
}

static void abandon_copy(struct cs_op *op)
{
	cs_copier_stop(copy_of(op));
}

static enum cs_step finished(struct cs_op *op)
{
	struct cowsnap_copy *copy = copy_of(op);

	op->error = settle(cs_run_of(copy)->copier, copy);
	return CS_DONE;
}

static enum cs_step reserved(struct cs_op *op)
{
	struct cowsnap_copy *copy = copy_of(op);
	struct cowsnap_copier *copier = cs_run_of(copy)->copier;

	if (op->cancelled) {
		if (!copy->background)
			cs_copier_release(copier, cs_run_of(copy)->credit.bytes);
		cancel_targets(copy);
		op->error = -ECANCELED;
		return CS_DONE;
	}
	op->offset = STAGE_COPIES;
	op->abandon = abandon_copy;
	return cs_copier_start(copier, copy, &op->task) ? finished(op) : CS_PARK;
}

static enum cs_step run_copy(struct cs_op *op)
{
	struct cowsnap_copy *copy = copy_of(op);

	op->abandon = NULL;
	if (op->offset == STAGE_COPIES)
		return finished(op);
	if (op->offset == STAGE_RESERVES)
		return reserved(op);
	op->offset = STAGE_RESERVES;
	op->abandon = abandon_credits;
	return reserve(cs_run_of(copy)->copier, copy, &op->task) ? reserved(op) : CS_PARK;
}

/* The record is the caller's. */
static void release_copy(struct cs_op *op)
{
	(void)op;
}

static const struct cs_op_kind copy_kind = {.go_on = run_copy, .release = release_copy};

int cowsnap_copier_copy_async(struct cowsnap_copier *copier, struct cowsnap_queue *queue,
	struct cowsnap_copy *copy, struct cowsnap_op *host_op, cowsnap_done *done, void *user)
{
	struct cs_op *op = cs_op_of(host_op);
	int rc = check_copy(copy);

	if (!rc)
		rc = cs_workers_route(copier->ctx, queue, done, &queue);
	if (rc)
		return rc;
	cs_op_init(op, queue, &copy_kind, done, user);
	op->turn.record = copy;
	op->offset = STAGE_BEGINS;
	cs_run_of(copy)->copier = copier;
	/* Nothing happens here: a host may start a thousand of them before it polls. */
	return cs_op_post(op);
}

/* ---- Throttle -------------------------------------------------------------------------------- */

int cowsnap_copier_throttle(
	struct cowsnap_copier *copier, uint64_t bytes_per_s, unsigned share_percent)
{
	if (!share_percent || share_percent > 100)
		return -EINVAL;
	cs_copier_set_throttle(copier, bytes_per_s, share_percent);
	return 0;
}
