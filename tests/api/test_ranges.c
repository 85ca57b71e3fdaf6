/* SPDX-License-Identifier: MIT
 *
 * Bad ranges and bad takes: refused, with nothing changed.
 */
#include "api/volume.h"

#include <errno.h>
#include <string.h>

static const struct bad_range {
	uint64_t offset;
	uint64_t length;
	int error;
} bad_ranges[] = {
	{0, 0, -EINVAL},
	{VOLUME_BYTES, 0, -EINVAL},
	{UINT64_MAX, 0, -EINVAL},
	{0, VOLUME_BYTES + 1, -ERANGE},
	{VOLUME_BYTES, 1, -ERANGE},
	{VOLUME_BYTES - 1, 2, -ERANGE},
	{1, VOLUME_BYTES, -ERANGE},
	{UINT64_C(1) << 62, 1, -ERANGE},
	{UINT64_MAX - 1, 1, -ERANGE},
	{0, UINT64_MAX, -ERANGE},
	{1, UINT64_MAX, -EOVERFLOW},
	{UINT64_MAX, UINT64_MAX, -EOVERFLOW},
	{UINT64_MAX, 2, -EOVERFLOW},
	{VOLUME_BYTES - 1, UINT64_MAX, -EOVERFLOW},
};
#define BAD_RANGES (sizeof(bad_ranges) / sizeof(bad_ranges[0]))

Test(ranges, of_devices)
{
	struct volume v;
	char byte = 1;

	volume_open(&v);
	for (size_t i = 0; i < BAD_RANGES; i++) {
		const struct bad_range *bad = &bad_ranges[i];

		cr_assert_eq(cowsnap_device_read(v.device, &byte, bad->offset, bad->length),
			bad->error, "read %zu", i);
		cr_assert_eq(cowsnap_device_write(v.device, &byte, bad->offset, bad->length),
			bad->error, "write %zu", i);
		cr_assert_eq(cowsnap_device_zero(v.device, bad->offset, bad->length), bad->error,
			"zero %zu", i);
		cr_assert_eq(cowsnap_device_discard(v.device, bad->offset, bad->length), bad->error,
			"discard %zu", i);
	}
	cr_assert_eq(byte, 1);
	volume_check_untouched(&v);
	volume_close(&v);
}

Test(ranges, of_brackets)
{
	static const enum cowsnap_write_kind kinds[] = {
		COWSNAP_WRITE, COWSNAP_DISCARD, COWSNAP_WRITE_ZEROES};
	struct volume v;
	struct cowsnap_op op;

	volume_open(&v);
	for (int round = 0; round < 2; round++) {
		for (size_t i = 0; i < BAD_RANGES * 3; i++) {
			const struct bad_range *bad = &bad_ranges[i / 3];

			cr_assert_eq(cowsnap_write_begin(
					     v.origin, kinds[i % 3], bad->offset, bad->length, &op),
				bad->error, "range %zu", i / 3);
		}
		cr_assert_eq(cowsnap_write_begin(v.origin, (enum cowsnap_write_kind)0, 0, 1, &op),
			-EINVAL);
		cr_assert_eq(cowsnap_write_begin(v.origin, (enum cowsnap_write_kind)4, 0, 1, &op),
			-EINVAL);
		volume_check_untouched(&v);
		if (round == 0)
			volume_take(&v);
	}
	volume_close(&v);
}

Test(ranges, of_snapshots)
{
	struct volume v;
	struct cowsnap_extent extent;
	char byte = 1;

	volume_open(&v);
	volume_take(&v);
	for (size_t i = 0; i < BAD_RANGES; i++) {
		const struct bad_range *bad = &bad_ranges[i];

		cr_assert_eq(cowsnap_snapshot_read(v.snapshot, &byte, bad->offset, bad->length),
			bad->error, "read %zu", i);
	}
	cr_assert_eq(cowsnap_snapshot_extent(v.snapshot, 0, 0, &extent), -EINVAL);
	cr_assert_eq(cowsnap_snapshot_extent(v.snapshot, VOLUME_BYTES, 1, &extent), -ERANGE);
	cr_assert_eq(cowsnap_snapshot_extent(v.snapshot, 2, UINT64_MAX, &extent), -EOVERFLOW);
	volume_check_untouched(&v);
	volume_close(&v);
}

/* ---- Takes ---------------------------------------------------------------------------------- */

static int freezes, thaws;

static int freeze(void *user)
{
	freezes++;
	return user ? *(const int *)user : 0;
}

static void thaw(void *user)
{
	(void)user;
	thaws++;
}

static int take(
	struct volume *v, const void *options, struct cowsnap_take_entry *entries, size_t count)
{
	int rc = cowsnap_take(v->ctx, options, entries, count);

	cr_assert_eq(volume_snapshots(v), 0, "nothing was taken");
	for (size_t i = 0; i < count; i++)
		cr_assert_null(entries[i].snapshot);
	return rc;
}

Test(ranges, take_arguments)
{
	struct cowsnap_take_options options = {.size = sizeof(options), .freeze = freeze};
	struct cowsnap_take_options bad;
	struct cowsnap_take_entry entry = {0};
	struct volume v;

	freezes = 0;
	volume_open(&v);
	entry.origin = v.origin;
	entry.store = v.store;
	cr_assert_eq(take(&v, NULL, NULL, 0), -EINVAL);
	cr_assert_eq(take(&v, NULL, &entry, 0), -EINVAL);
	bad = options;
	bad.flags = UINT32_C(1) << 31;
	cr_assert_eq(take(&v, &bad, &entry, 1), -EINVAL);
	bad = options;
	bad.size = sizeof(size_t);
	cr_assert_eq(take(&v, &bad, &entry, 1), -EINVAL);
	entry.on_full = (enum cowsnap_loser)3;
	cr_assert_eq(take(&v, &options, &entry, 1), -EINVAL);
	entry.on_full = COWSNAP_LOSER_ASK;
	cr_assert_eq(take(&v, &options, &entry, 1), -EINVAL, "no decide");
	cr_assert_eq(freezes, 0, "the host is not frozen for a take that is refused");
	volume_check_untouched(&v);
	volume_close(&v);
}

Test(ranges, take_names_an_origin_and_store_twice)
{
	struct cowsnap_device *device = NULL;
	struct cowsnap_origin *origin = NULL;
	struct cowsnap_take_entry entries[3] = {0};
	struct volume v;

	volume_open(&v);
	cr_assert_eq(cowsnap_device_memory(v.ctx, 4096, &device), 0);
	cr_assert_eq(cowsnap_origin_open(v.ctx, device, &origin), 0);
	for (int i = 0; i < 3; i++)
		entries[i] = (struct cowsnap_take_entry){.origin = v.origin, .store = v.store};
	cr_assert_eq(take(&v, NULL, entries, 2), -EINVAL);
	entries[1].origin = origin;
	cr_assert_eq(take(&v, NULL, entries, 3), -EINVAL);
	cr_assert_eq(cowsnap_origin_close(origin), 0);
	cr_assert_eq(take(&v, NULL, entries, 2), -EBADF, "one closed origin refuses all");
	cr_assert_eq(cowsnap_device_close(device), 0);
	volume_check_untouched(&v);
	volume_close(&v);
}

Test(ranges, take_of_another_context)
{
	struct cowsnap_take_entry entry = {0};
	struct volume v, other;

	volume_open(&v);
	volume_open(&other);
	entry.origin = other.origin;
	entry.store = v.store;
	cr_assert_eq(take(&v, NULL, &entry, 1), -EXDEV);
	entry.origin = v.origin;
	entry.store = other.store;
	cr_assert_eq(take(&v, NULL, &entry, 1), -EXDEV);
	cr_assert_eq(volume_snapshots(&other), 0);
	volume_check_untouched(&other);
	volume_close(&other);
	volume_close(&v);
}

Test(ranges, freeze_refuses_the_take)
{
	int error = -EAGAIN;
	struct cowsnap_take_options options = {
		.size = sizeof(options), .freeze = freeze, .thaw = thaw, .user = &error};
	struct cowsnap_take_entry entry = {0};
	struct volume v;

	freezes = thaws = 0;
	volume_open(&v);
	entry.origin = v.origin;
	entry.store = v.store;
	cr_assert_eq(take(&v, &options, &entry, 1), -EAGAIN);
	cr_assert_eq(freezes, 1);
	cr_assert_eq(thaws, 0, "thaw follows a freeze that succeeded");
	error = 0;
	cr_assert_eq(cowsnap_take(v.ctx, &options, &entry, 1), 0);
	cr_assert_eq(freezes, 2);
	cr_assert_eq(thaws, 1);
	v.snapshot = entry.snapshot;
	volume_close(&v);
}

/* ---- After a take that was refused, everything works ----------------------------------------- */

Test(ranges, a_refused_take_leaves_the_origin_usable)
{
	struct cowsnap_take_entry twice[2] = {0};
	struct volume v;
	char data[100], seen[100];

	volume_open(&v);
	twice[0].origin = twice[1].origin = v.origin;
	twice[0].store = twice[1].store = v.store;
	cr_assert_eq(take(&v, NULL, twice, 2), -EINVAL);
	memset(data, 7, sizeof(data));
	cr_assert_eq(volume_write(&v, data, 4000, sizeof(data)), 0);
	volume_take(&v);
	memset(data, 8, sizeof(data));
	cr_assert_eq(volume_write(&v, data, 4000, sizeof(data)), 0);
	cr_assert_eq(cowsnap_snapshot_read(v.snapshot, seen, 4000, sizeof(seen)), 0);
	memset(data, 7, sizeof(data));
	cr_assert_arr_eq(seen, data, sizeof(data));
	volume_close(&v);
}
