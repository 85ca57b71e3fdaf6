/* SPDX-License-Identifier: MIT
 *
 * What the tests of the copier share: a source, two targets, and what should be in them.
 */
#ifndef CS_TEST_COPIER_RIG_H
#define CS_TEST_COPIER_RIG_H

#include "support/seed.h"
#include "support/test.h"
#include "support/test_device.h"

#include <string.h>

#define KIB  UINT64_C(1024)
#define MIB  (UINT64_C(1024) * 1024)
#define SIZE (4 * MIB)

/* A source of random bytes, two targets, and a copier. */
struct rig {
	struct cowsnap_ctx *ctx;
	struct cowsnap_copier *copier;
	struct test_device *source;
	struct test_device *to[2];
	uint8_t *bytes; /* of the source */
};

static inline void set_up_blocks(
	struct rig *r, uint64_t inflight_bytes, uint64_t job_bytes, uint32_t block_size)
{
	struct cowsnap_copier_options options = {
		.size = sizeof(options), .inflight_bytes = inflight_bytes, .job_bytes = job_bytes};
	struct test_device_options device = {.size_bytes = SIZE};
	struct seed seed = {42};

	memset(r, 0, sizeof(*r));
	cr_assert_eq(cowsnap_ctx_create(NULL, &r->ctx), 0);
	cr_assert_eq(cowsnap_copier_create(r->ctx, &options, &r->copier), 0);
	r->source = test_device_create(r->ctx, &device);
	device.size_bytes += 64 * KIB;
	device.block_size = block_size;
	for (int i = 0; i < 2; i++)
		r->to[i] = test_device_create(r->ctx, &device);
	cr_assert(r->source && r->to[0] && r->to[1]);
	r->bytes = malloc(SIZE);
	cr_assert_not_null(r->bytes);
	for (uint64_t i = 0; i < SIZE; i += 8) {
		uint64_t word = seed_next(&seed);

		memcpy(r->bytes + i, &word, 8);
	}
	cr_assert_eq(cowsnap_device_write(test_device_inner(r->source), r->bytes, 0, SIZE), 0);
	test_device_reset(r->source);
	test_device_reset(r->to[0]);
	test_device_reset(r->to[1]);
}

static inline void set_up(struct rig *r, uint64_t inflight_bytes, uint64_t job_bytes)
{
	set_up_blocks(r, inflight_bytes, job_bytes, 1);
}

static inline void tear_down(struct rig *r)
{
	cowsnap_copier_destroy(r->copier);
	cr_assert_eq(test_device_destroy(r->source), 0);
	cr_assert_eq(test_device_destroy(r->to[0]), 0);
	cr_assert_eq(test_device_destroy(r->to[1]), 0);
	cr_assert_eq(cowsnap_ctx_destroy(r->ctx), 0);
	free(r->bytes);
}

static inline struct cowsnap_copy_target target(
	const struct rig *r, int device, uint64_t source_offset, uint64_t length, uint64_t offset)
{
	return (struct cowsnap_copy_target){.device = test_device(r->to[device]),
		.offset = offset,
		.source_offset = source_offset,
		.length = length,
		.error = 1};
}

static inline int copy(struct rig *r, struct cowsnap_copy_target *targets, size_t count)
{
	struct cowsnap_copy copy = {
		.source = test_device(r->source), .targets = targets, .count = count};

	return cowsnap_copier_copy(r->copier, &copy);
}

static inline void expect_bytes(
	struct rig *r, int device, uint64_t source_offset, uint64_t length, uint64_t offset)
{
	uint8_t *got = malloc(length);

	cr_assert_eq(cowsnap_device_read(test_device_inner(r->to[device]), got, offset, length), 0);
	cr_assert_arr_eq(got, r->bytes + source_offset, length);
	free(got);
}

static inline bool untouched(struct rig *r, int device, uint64_t offset, uint64_t length)
{
	uint8_t *got = malloc(length);
	bool zero = true;

	cr_assert_eq(cowsnap_device_read(test_device_inner(r->to[device]), got, offset, length), 0);
	for (uint64_t i = 0; i < length; i++)
		zero &= got[i] == 0;
	free(got);
	return zero;
}

#endif
