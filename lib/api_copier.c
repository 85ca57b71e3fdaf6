/* SPDX-License-Identifier: MIT
 *
 * The copier as a building block: a reservation and a run in one call.
 */
#include <errno.h>

#include "copier.h"
#include "ctx.h"

int cowsnap_copier_create(struct cowsnap_ctx *ctx, const struct cowsnap_copier_options *options,
	struct cowsnap_copier **copier)
{
	return cs_copier_create(&ctx->base, options, copier);
}

void cowsnap_copier_destroy(struct cowsnap_copier *copier)
{
	cs_copier_destroy(copier);
}

static int check_target(const struct cowsnap_copy_target *target)
{
	if (!target->device || !target->length)
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

int cowsnap_copier_copy(struct cowsnap_copier *copier, struct cowsnap_device *source,
	struct cowsnap_copy_target *targets, size_t count)
{
	struct cs_copier_io io;
	uint64_t granted;
	bool waited;

	if (!source || !targets || !count)
		return -EINVAL;
	for (size_t i = 0; i < count; i++) {
		int rc = check_target(&targets[i]);

		if (rc)
			return rc;
	}
	granted = cs_copier_reserve(copier, bytes_wanted(targets, count), &waited);
	io = cs_copier_run(copier, source, targets, count);
	cs_copier_release(copier, granted);
	/* Only the want of a buffer keeps it from reading at all. */
	return io.reads ? 0 : -ENOMEM;
}
