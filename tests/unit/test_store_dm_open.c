/* SPDX-License-Identifier: MIT
 *
 * Opening a persistent store, and looking at one: each image that must be refused, with the name of
 * its fault and the value that was found, and unchanged; what is accepted and how; who may not.
 */
#include "support/dm_image.h"
#include "support/dm_scene.h"
#include "support/image.h"
#include "support/seed.h"
#include "support/test.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK  UINT64_C(512)
#define CHUNKS 80u /* of the store: header, three areas, 76 for data */
#define AREA   32u
#define ORIGIN 128u /* chunks of the origin */

/* A good store with a few records; the tests damage it. */
static void good_image(uint8_t *image)
{
	memset(image, 0, CHUNKS * CHUNK);
	dm_image_header(image, DM_IMAGE_MAGIC, 1, 1, 1);
	for (unsigned n = 0; n < 40; n++)
		dm_image_record(image, CHUNK, n, 100 - n, dm_image_data(CHUNK, n));
}

static void open_on(struct dm_scene *s, const uint8_t *image, uint64_t length)
{
	dm_open(s, &(struct dm_scene_options){.store_bytes = length});
	dm_put_bytes(s, 0, image, length);
	s->at[0].promise = DM_ACTIVE;
	memcpy(s->at[0].image, s->at[0].live, s->options.origin_bytes);
}

static void expect_unchanged(struct dm_scene *s, const uint8_t *image)
{
	uint64_t length;
	uint8_t *bytes = dm_bytes(s, 0, &length);

	cr_assert_arr_eq(bytes, image, length);
	free(bytes);
	cr_assert_eq(test_device_calls(s->at[0].store_test, TEST_IO_WRITE), 0);
	cr_assert_eq(test_device_calls(s->at[0].store_test, TEST_IO_ZERO), 0);
	cr_assert_eq(!s->at[0].store, test_device_locked(s->at[0].store_test) == COWSNAP_LOCK_NONE);
}

/* ---- Refused --------------------------------------------------------------------------------- */

struct damage {
	const char *name;
	int rc;
	uint64_t at; /* where the image is changed */
	uint64_t value;
	unsigned bytes;      /* of the value */
	uint64_t length;     /* of the device; 0: as it is */
	uint32_t block_size; /* of the device */
	const char *says;    /* part of the reason */
};

#define SLOT(n) dm_image_slot(CHUNK, n)

static void refuse(const struct damage *d, uint64_t value)
{
	uint64_t length = d->length ? d->length : CHUNKS * CHUNK;
	struct cowsnap_dm_inspect_options options = {
		.size = sizeof(options), .origin_bytes = ORIGIN * CHUNK};
	struct cowsnap_dm_report report;
	uint8_t image[CHUNKS * CHUNK];
	struct dm_scene s;

	good_image(image);
	dm_image_put(image + d->at, value, d->bytes);
	dm_open(&s, &(struct dm_scene_options){.store_bytes = length, .block_size = d->block_size});
	dm_put_bytes(&s, 0, image, length);
	cr_assert_eq(cowsnap_dm_inspect(s.at[0].store_device, &options, &report, sizeof(report)),
		d->rc, "%s: inspect", d->name);
	cr_assert_str_eq(report.fault, d->name);
	cr_assert(strstr(report.reason, d->says), "%s: \"%s\" does not say %s", d->name,
		report.reason, d->says);
	expect_unchanged(&s, image);
	cr_assert_eq(dm_attach(&s, 0), d->rc, "%s: open", d->name);
	cr_assert(strstr(s.line, d->says), "%s: the log says \"%s\", not %s", d->name, s.line,
		d->says);
	expect_unchanged(&s, image);
	/* The second reader knows nothing of this device's block. */
	if (d->block_size <= CHUNK)
		image_keep(test_device_inner(s.at[0].store_test),
			d->rc == -ENOENT ? IMAGE_ABSENT : IMAGE_REFUSED, ORIGIN * CHUNK);
	/* Nothing holds on to anything: a new one can be made. */
	cr_assert(length < 3 * CHUNK || d->block_size > CHUNK ||
		  dm_create(&s, 0, COWSNAP_DM_OVERWRITE) == 0);
	dm_close(&s);
}

Test(store_dm_open, refuses_bad_headers)
{
	static const struct damage damages[] = {
		{"no-store", -ENOENT, 0, 0, 4, 0, 0, ""},
		{"bad-magic", -EMEDIUMTYPE, 0, 0x70416E54, 4, 0, 0, "70416e54"},
		{"bad-version", -EMEDIUMTYPE, 8, 0, 4, 0, 0, "0"},
		{"bad-version", -EMEDIUMTYPE, 8, 77, 4, 0, 0, "77"},
		{"chunk-size-zero", -EBADMSG, 12, 0, 4, 0, 0, "0"},
		{"chunk-size-not-power-of-two", -EBADMSG, 12, 12, 4, 0, 0, "6144"},
		{"chunk-size-too-large", -EBADMSG, 12, 1 << 22, 4, 0, 0, "2147483648"},
		{"chunk-size-below-block", -EBADMSG, 12, 1, 4, 0, 1024, "1024"},
		{"device-too-short", -EBADMSG, 12, 128, 4, 0, 0, "131072"},
		{"device-too-short", -EBADMSG, 12, 1, 4, 512, 0, "1"},
	};

	for (unsigned i = 0; i < sizeof(damages) / sizeof(damages[0]); i++)
		refuse(&damages[i], damages[i].value);
}

Test(store_dm_open, refuses_bad_records)
{
	const struct damage damages[] = {
		{"record-in-header", -EBADMSG, SLOT(33) + 8, 0, 8, 0, 0, "record 33"},
		{"record-beyond-device", -EBADMSG, SLOT(33) + 8, 80, 8, 0, 0, "80"},
		{"record-beyond-device", -EBADMSG, SLOT(0) + 8, UINT64_MAX, 8, 0, 0,
			"18446744073709551615"},
		{"record-beyond-device", -EBADMSG, SLOT(7) + 15, 1, 1, 0, 0, "record 7"},
		{"record-in-metadata", -EBADMSG, SLOT(33) + 8, 67, 8, 0, 0, "67"},
		{"record-in-metadata", -EBADMSG, SLOT(39) + 8, 1, 8, 0, 0, "record 39"},
		{"record-beyond-origin", -EBADMSG, SLOT(5), 128, 8, 0, 0, "128"},
		{"record-beyond-origin", -EBADMSG, SLOT(5), UINT64_MAX, 8, 0, 0, "record 5"},
		{"duplicate-origin", -EBADMSG, SLOT(38), 100, 8, 0, 0, "record 38"},
		{"duplicate-store", -EBADMSG, SLOT(38) + 8, 2, 8, 0, 0, "record 38"},
		{"record-beyond-device", -EBADMSG, 0, 0x70416E53, 4, 30 * CHUNK, 0, "30"},
		/* The device ends behind the first stripe, so its area must hold a terminator. */
		{"area-beyond-device", -EBADMSG, 0, 0x70416E53, 4, 34 * CHUNK, 0, "1"},
	};

	for (unsigned i = 0; i < sizeof(damages) / sizeof(damages[0]); i++)
		refuse(&damages[i], damages[i].value);
}

/* The bounds of origin chunks are checked only against an origin that is known. */
Test(store_dm_open, inspect_without_an_origin)
{
	uint8_t image[CHUNKS * CHUNK];
	struct cowsnap_dm_report report;
	struct dm_scene s;

	good_image(image);
	dm_image_record(image, CHUNK, 5, UINT64_C(1) << 50, dm_image_data(CHUNK, 5));
	open_on(&s, image, sizeof(image));
	cr_assert_eq(cowsnap_dm_inspect(s.at[0].store_device, NULL, &report, sizeof(report)), 0);
	cr_assert_eq(report.records, 40);
	cr_assert_str_eq(report.fault, "");
	cr_assert_eq(dm_attach(&s, 0), -EBADMSG);
	expect_unchanged(&s, image);
	dm_close(&s);
}

Test(store_dm_open, a_device_of_zeroes_is_no_store)
{
	static uint8_t image[CHUNKS * CHUNK];
	struct cowsnap_dm_report report;
	struct dm_scene s;

	open_on(&s, image, sizeof(image));
	cr_assert_eq(dm_attach(&s, 0), -ENOENT);
	cr_assert_eq(
		cowsnap_dm_inspect(s.at[0].store_device, NULL, &report, sizeof(report)), -ENOENT);
	cr_assert_eq(report.chunk_size_bytes, 0);
	cr_assert_eq(report.device_bytes, sizeof(image));
	expect_unchanged(&s, image);
	dm_close(&s);
}

/* ---- Garbage --------------------------------------------------------------------------------- */

static uint64_t bytes_read(struct dm_scene *s)
{
	return test_device_bytes(s->at[0].store_test, TEST_IO_READ);
}

/* As bounded as the device: no area is read twice, nothing behind its end. */
static void expect_bounded(struct dm_scene *s, uint64_t areas)
{
	cr_assert_leq(bytes_read(s), (areas + 2) * CHUNK + 4096, "%llu bytes were read",
		(unsigned long long)bytes_read(s));
	cr_assert_leq(test_device_calls(s->at[0].store_test, TEST_IO_READ), areas + 4);
}

Test(store_dm_open, random_garbage_in_every_area)
{
	struct seed seed = seed_for("random_garbage_in_every_area");
	static uint8_t image[CHUNKS * CHUNK];

	for (unsigned i = 0; i < 100; i++) {
		struct dm_scene s;

		seed_fill(&seed, image, sizeof(image));
		dm_image_header(image, DM_IMAGE_MAGIC, 1, 1, 1);
		open_on(&s, image, sizeof(image));
		test_device_reset(s.at[0].store_test);
		cr_assert_eq(dm_attach(&s, 0), -EBADMSG);
		expect_bounded(&s, 3);
		expect_unchanged(&s, image);
		dm_close(&s);
	}
}

/* Each area is full of what looks like records, to the end of a long device: only its end says that
 * something is wrong. */
Test(store_dm_open, plausible_garbage_in_every_area)
{
	const uint64_t areas = 40, chunks = 1 + areas * (AREA + 1);
	uint8_t *image = calloc(chunks, CHUNK);
	struct dm_scene s;

	dm_image_header(image, DM_IMAGE_MAGIC, 1, 1, 1);
	for (uint64_t n = 0; n < areas * AREA; n++)
		dm_image_record(image, CHUNK, n, n, dm_image_data(CHUNK, n));
	dm_open(&s, &(struct dm_scene_options){
			    .store_bytes = chunks * CHUNK, .origin_bytes = chunks * CHUNK});
	dm_put_bytes(&s, 0, image, chunks * CHUNK);
	test_device_reset(s.at[0].store_test);
	cr_assert_eq(dm_attach(&s, 0), -EBADMSG);
	cr_assert(strstr(s.line, "40"), "%s", s.line);
	expect_bounded(&s, areas);
	expect_unchanged(&s, image);
	dm_close(&s);
	free(image);
}

/* ---- Accepted -------------------------------------------------------------------------------- */

Test(store_dm_open, a_good_store_is_read_and_left_alone)
{
	struct cowsnap_extent extent;
	uint8_t image[CHUNKS * CHUNK];
	struct dm_scene s;
	uint8_t data[CHUNK];

	good_image(image);
	memset(image + 2 * CHUNK, 0x77, CHUNK);
	dm_image_put(image + 16, 99, 8);
	open_on(&s, image, sizeof(image));
	cr_assert_eq(dm_attach(&s, 0), 0, "%s", s.line);
	cr_assert_eq(test_device_locked(s.at[0].store_test), COWSNAP_LOCK_EXCLUSIVE);
	cr_assert_eq(test_device_calls(s.at[0].store_test, TEST_IO_WRITE), 0);
	cr_assert_eq(dm_usage(&s, 0).used_bytes, 40 * CHUNK);
	cr_assert_eq(cowsnap_snapshot_read(s.at[0].snapshot, data, 100 * CHUNK, CHUNK), 0);
	cr_assert_arr_eq(data, image + 2 * CHUNK, CHUNK);
	cr_assert_eq(
		cowsnap_snapshot_extent(s.at[0].snapshot, 0, s.options.origin_bytes, &extent), 0);
	cr_assert_not(extent.saved);
	cr_assert_eq(extent.length, 61 * CHUNK);
	dm_close(&s);
}

/* What lies behind the list is nobody's: other areas, and the rest of the header's chunk. */
Test(store_dm_open, the_rest_may_be_anything)
{
	uint8_t image[CHUNKS * CHUNK];
	struct dm_scene s;

	good_image(image);
	memset(image + 24, 0xff, CHUNK - 24);
	memset(image + 67 * CHUNK, 0xff, CHUNK);
	dm_image_put(image + 4, UINT32_C(0x80000000), 4);
	open_on(&s, image, sizeof(image));
	cr_assert_eq(dm_attach(&s, 0), 0, "%s", s.line);
	expect_unchanged(&s, image);
	dm_close(&s);
}

static void stale_tail(uint64_t records, uint64_t stale_slot)
{
	struct cowsnap_dm_report report;
	uint8_t image[CHUNKS * CHUNK] = {0}, clean[CHUNKS * CHUNK];
	uint64_t length;
	uint8_t *bytes;
	struct dm_scene s;

	dm_image_header(image, DM_IMAGE_MAGIC, 1, 1, 1);
	for (uint64_t n = 0; n < records; n++)
		dm_image_record(image, CHUNK, n, n, dm_image_data(CHUNK, n));
	memcpy(clean, image, sizeof(image));
	dm_image_record(image, CHUNK, stale_slot, 3, 4);
	open_on(&s, image, sizeof(image));
	cr_assert_eq(cowsnap_dm_inspect(s.at[0].store_device, NULL, &report, sizeof(report)), 0);
	cr_assert_eq(report.records, records);
	cr_assert_eq(report.stale_offset, dm_image_slot(CHUNK, records));
	cr_assert_gt(report.stale_bytes, dm_image_slot(CHUNK, stale_slot) - report.stale_offset);
	expect_unchanged(&s, image);
	test_device_reset(s.at[0].store_test);
	cr_assert_eq(dm_attach(&s, 0), 0, "%s", s.line);
	cr_assert_geq(test_device_calls(s.at[0].store_test, TEST_IO_FLUSH), 1);
	bytes = dm_bytes(&s, 0, &length);
	cr_assert_arr_eq(bytes, clean, length);
	free(bytes);
	dm_close(&s);
}

Test(store_dm_open, a_stale_tail_is_wiped)
{
	stale_tail(0, 1);
	stale_tail(0, 31);
	stale_tail(5, 7);
	stale_tail(30, 31);
	stale_tail(32, 33);
	stale_tail(40, 63);
}

/* If that fails, the store is not opened: new records would lead up to the old ones. */
Test(store_dm_open, a_stale_tail_that_cannot_be_wiped)
{
	static const enum test_io kinds[] = {TEST_IO_WRITE, TEST_IO_FLUSH};

	for (unsigned i = 0; i < 2; i++) {
		uint8_t image[CHUNKS * CHUNK];
		struct dm_scene s;

		good_image(image);
		dm_image_record(image, CHUNK, 50, 3, 70);
		open_on(&s, image, sizeof(image));
		test_device_fail(s.at[0].store_test, kinds[i], 1, false, -EIO);
		cr_assert_eq(dm_attach(&s, 0), -EIO);
		cr_assert_eq(dm_attach(&s, 0), 0);
		dm_close(&s);
	}
}

Test(store_dm_open, an_invalid_store_is_what_it_says)
{
	uint8_t image[CHUNKS * CHUNK];
	struct cowsnap_dm_report report;
	struct dm_scene s;
	int reason;

	good_image(image);
	dm_image_put(image + 4, 0, 4);
	memset(image + CHUNK, 0xff, CHUNK);
	open_on(&s, image, sizeof(image));
	s.at[0].promise = DM_INVALID;
	cr_assert_eq(cowsnap_dm_inspect(s.at[0].store_device, NULL, &report, sizeof(report)), 0);
	cr_assert_not(report.valid);
	cr_assert_eq(report.records, 0);
	cr_assert_eq(dm_attach(&s, 0), 0);
	cr_assert_eq(dm_state(&s, 0, &reason), COWSNAP_SNAPSHOT_INVALID);
	cr_assert_eq(reason, -EUCLEAN);
	cr_assert_eq(dm_write(&s, 0, 0, 20 * CHUNK, 1), 0);
	cr_assert_eq(test_device_calls(s.at[0].store_test, TEST_IO_WRITE), 0, "its areas stay");
	dm_expect_promise(&s, 0);
	cr_assert_eq(dm_drop(&s, 0), 0);
	dm_expect_promise(&s, 0);
	/* And a new one in its place. */
	cr_assert_eq(dm_take(&s), 0);
	cr_assert_eq(dm_write(&s, 0, 0, 20 * CHUNK, 2), 0);
	dm_expect_promise(&s, 0);
	dm_close(&s);
}

/* ---- Refusals that are not the image's ------------------------------------------------------- */

static int attach_with(
	struct dm_scene *s, struct cowsnap_dm_options options, struct cowsnap_take_entry entry)
{
	struct cowsnap_store *store = NULL;
	int rc;

	options.size = options.size ? options.size : sizeof(options);
	rc = cowsnap_store_dm_open(s->ctx, &options, &entry, &store);
	if (rc)
		return rc;
	cr_assert_eq(cowsnap_snapshot_deactivate(entry.snapshot), 0);
	cowsnap_snapshot_unref(entry.snapshot);
	cr_assert_eq(cowsnap_store_close(store), 0);
	return 0;
}

#define OPTIONS(...) ((struct cowsnap_dm_options){__VA_ARGS__})
#define ENTRY(...)   ((struct cowsnap_take_entry){__VA_ARGS__})

Test(store_dm_open, refuses_bad_options)
{
	uint8_t image[CHUNKS * CHUNK];
	struct cowsnap_device *device;
	struct cowsnap_origin *origin;
	struct dm_scene s;

	good_image(image);
	dm_image_put(image + 16, 7, 8);
	open_on(&s, image, sizeof(image));
	device = s.at[0].store_device;
	origin = s.at[0].origin;
	cr_assert_eq(attach_with(&s, OPTIONS(.size = 8), ENTRY(.origin = origin)), -EINVAL);
	cr_assert_eq(attach_with(&s, OPTIONS(.device = NULL), ENTRY(.origin = origin)), -EINVAL);
	cr_assert_eq(attach_with(&s, OPTIONS(.device = device, .flags = UINT32_C(1) << 30),
			     ENTRY(.origin = origin)),
		-EINVAL);
	cr_assert_eq(attach_with(&s, OPTIONS(.device = device, .chunk_size_bytes = 1000),
			     ENTRY(.origin = origin)),
		-EINVAL);
	cr_assert_eq(attach_with(&s, OPTIONS(.device = device, .chunk_size_bytes = 1024),
			     ENTRY(.origin = origin)),
		-EINVAL);
	cr_assert_eq(attach_with(&s, OPTIONS(.device = device, .generation = 8),
			     ENTRY(.origin = origin)),
		-ESTALE);
	cr_assert_eq(attach_with(&s, OPTIONS(.device = device), ENTRY(.origin = NULL)), -EINVAL);
	cr_assert_eq(attach_with(&s, OPTIONS(.device = device),
			     ENTRY(.origin = origin, .on_full = (enum cowsnap_loser)9)),
		-EINVAL);
	cr_assert_eq(attach_with(&s, OPTIONS(.device = device),
			     ENTRY(.origin = origin, .on_full = COWSNAP_LOSER_ASK)),
		-EINVAL);
	expect_unchanged(&s, image);
	cr_assert_eq(
		attach_with(&s, OPTIONS(.device = device, .generation = 7, .chunk_size_bytes = 512),
			ENTRY(.origin = origin)),
		0);
	dm_close(&s);
}

Test(store_dm_open, refuses_handles_that_do_not_fit)
{
	uint8_t image[CHUNKS * CHUNK];
	struct cowsnap_device *foreign_device, *idle_device, *closed_device;
	struct cowsnap_origin *foreign, *closed;
	struct cowsnap_ctx *ctx;
	struct dm_scene s;

	good_image(image);
	open_on(&s, image, sizeof(image));
	cr_assert_eq(cowsnap_ctx_create(NULL, &ctx), 0);
	cr_assert_eq(cowsnap_device_memory(ctx, ORIGIN * CHUNK, &foreign_device), 0);
	cr_assert_eq(cowsnap_device_memory(ctx, ORIGIN * CHUNK, &idle_device), 0);
	cr_assert_eq(cowsnap_origin_open(ctx, foreign_device, &foreign), 0);
	cr_assert_eq(cowsnap_device_memory(s.ctx, ORIGIN * CHUNK, &closed_device), 0);
	cr_assert_eq(cowsnap_origin_open(s.ctx, closed_device, &closed), 0);
	cr_assert_eq(cowsnap_origin_close(closed), 0);
	cr_assert_eq(
		attach_with(&s, OPTIONS(.device = s.at[0].store_device), ENTRY(.origin = foreign)),
		-EXDEV);
	cr_assert_eq(
		attach_with(&s, OPTIONS(.device = idle_device), ENTRY(.origin = s.at[0].origin)),
		-EXDEV);
	cr_assert_eq(
		attach_with(&s, OPTIONS(.device = s.at[0].store_device), ENTRY(.origin = closed)),
		-EBADF);
	cr_assert_eq(cowsnap_device_close(closed_device), 0);
	cr_assert_eq(
		attach_with(&s, OPTIONS(.device = closed_device), ENTRY(.origin = s.at[0].origin)),
		-EBADF);
	cr_assert_eq(attach_with(&s, OPTIONS(.device = s.at[0].origin_device),
			     ENTRY(.origin = s.at[0].origin)),
		-EBUSY, "the store is the origin");
	expect_unchanged(&s, image);
	cr_assert_eq(cowsnap_origin_close(foreign), 0);
	cr_assert_eq(cowsnap_device_close(foreign_device), 0);
	cr_assert_eq(cowsnap_device_close(idle_device), 0);
	cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
	dm_close(&s);
}

Test(store_dm_open, refuses_while_others_are_there)
{
	uint8_t image[CHUNKS * CHUNK];
	struct cowsnap_dm_report report;
	struct cowsnap_op op;
	struct dm_scene s;

	good_image(image);
	open_on(&s, image, sizeof(image));
	test_device_set_busy(s.at[0].store_test, true);
	cr_assert_eq(dm_attach(&s, 0), -EBUSY);
	cr_assert_gt(s.lines, 0, "nothing was said");
	cr_assert_eq(
		cowsnap_dm_inspect(s.at[0].store_device, NULL, &report, sizeof(report)), -EBUSY);
	test_device_set_busy(s.at[0].store_test, false);
	/* A bracket that is open writes, and nobody saved what it writes over. */
	cr_assert_eq(cowsnap_write_begin(s.at[0].origin, COWSNAP_WRITE, 0, CHUNK, &op), 0);
	cr_assert_eq(dm_attach(&s, 0), -EBUSY);
	cowsnap_write_end(&op);
	cr_assert_eq(dm_attach(&s, 0), -EBUSY, "it has been written all the same");
	expect_unchanged(&s, image);
	cr_assert_eq(dm_renew_origin(&s, 0), 0);
	cr_assert_eq(dm_attach(&s, 0), 0);
	cr_assert_eq(attach_with(&s, OPTIONS(.device = s.at[0].store_device),
			     ENTRY(.origin = s.at[0].origin)),
		-EBUSY, "it is open already");
	cr_assert_eq(
		cowsnap_dm_inspect(s.at[0].store_device, NULL, &report, sizeof(report)), -EBUSY);
	cr_assert_eq(
		cowsnap_dm_inspect(s.at[0].origin_device, NULL, &report, sizeof(report)), -EBUSY);
	dm_close(&s);
}

Test(store_dm_open, passes_on_errors_of_the_device)
{
	for (unsigned n = 1; n < 10; n++) {
		uint8_t image[CHUNKS * CHUNK];
		struct cowsnap_dm_report report;
		struct dm_scene s;
		bool hit;

		good_image(image);
		open_on(&s, image, sizeof(image));
		test_device_fail(s.at[0].store_test, TEST_IO_READ, n, false, -ENXIO);
		hit = dm_attach(&s, 0) == -ENXIO;
		cr_assert_eq(hit, test_device_failed(s.at[0].store_test) > 0);
		cr_assert(hit || n > 2, "fewer reads than header and areas");
		if (hit) {
			test_device_fail(
				s.at[0].store_test, TEST_IO_READ, (n + 1) / 2, false, -ENXIO);
			cr_assert_eq(cowsnap_dm_inspect(
					     s.at[0].store_device, NULL, &report, sizeof(report)),
				-ENXIO);
			expect_unchanged(&s, image);
		}
		dm_close(&s);
		if (!hit)
			return;
	}
	cr_assert_fail("reading does not end");
}

/* ---- Inspect --------------------------------------------------------------------------------- */

struct seen {
	uint64_t records;
	uint64_t runs;
};

static void see(void *user, uint64_t number, const struct cowsnap_run *run)
{
	struct seen *seen = user;

	cr_assert_eq(number, seen->records);
	for (uint64_t n = number; n < number + run->count; n++) {
		cr_assert_eq(run->first + (n - number), n * 2 - n % 2);
		cr_assert_eq(run->location + (n - number), dm_image_data(CHUNK, n));
	}
	seen->records += run->count;
	seen->runs++;
}

Test(store_dm_open, inspect_reports)
{
	struct seen seen = {0};
	struct cowsnap_dm_inspect_options options = {.size = sizeof(options),
		.origin_bytes = ORIGIN * CHUNK,
		.visit = see,
		.visit_user = &seen};
	uint8_t image[CHUNKS * CHUNK] = {0};
	struct cowsnap_dm_report report;
	uint64_t location;
	struct dm_scene s;

	dm_image_header(image, DM_IMAGE_MAGIC, 1, 1, 1);
	dm_image_put(image + 16, UINT64_C(1) << 63, 8);
	for (uint64_t n = 0; n < 40; n++)
		dm_image_record(image, CHUNK, n, n * 2 - n % 2, dm_image_data(CHUNK, n));
	open_on(&s, image, sizeof(image));
	cr_assert_eq(cowsnap_map_create(NULL, &options.map), 0);
	cr_assert_eq(cowsnap_dm_inspect(s.at[0].store_device, &options, &report, sizeof(report)), 0,
		"%s", report.reason);
	cr_assert_eq(report.device_bytes, sizeof(image));
	cr_assert_eq(report.chunk_size_bytes, CHUNK);
	cr_assert(report.valid);
	cr_assert_eq(report.generation, UINT64_C(1) << 63);
	cr_assert_eq(report.chunks, CHUNKS);
	cr_assert_eq(report.areas, 3);
	cr_assert_eq(report.record_limit, 76);
	cr_assert_eq(report.records, 40);
	cr_assert_eq(report.highest_chunk, dm_image_data(CHUNK, 39));
	cr_assert_eq(report.stale_bytes, 0);
	cr_assert_eq(seen.records, 40);
	cr_assert_eq(cowsnap_map_count(options.map), 40);
	cr_assert(cowsnap_map_lookup(options.map, 77, &location));
	cr_assert_eq(location, dm_image_data(CHUNK, 39));
	cr_assert_eq(cowsnap_dm_inspect(s.at[0].store_device, &options, &report, sizeof(report)),
		-EINVAL, "the map is not empty");
	cowsnap_map_destroy(options.map);
	expect_unchanged(&s, image);
	dm_close(&s);
}

Test(store_dm_open, inspect_refuses_bad_options)
{
	struct cowsnap_dm_inspect_options options = {.size = sizeof(options)};
	struct cowsnap_dm_report report;
	struct cowsnap_device *closed;
	struct dm_scene s;

	dm_open(&s, NULL);
	options.flags = 1;
	cr_assert_eq(cowsnap_dm_inspect(s.at[0].store_device, &options, &report, sizeof(report)),
		-EINVAL);
	options.flags = 0;
	options.size = 4;
	cr_assert_eq(cowsnap_dm_inspect(s.at[0].store_device, &options, &report, sizeof(report)),
		-EINVAL);
	cr_assert_eq(cowsnap_dm_inspect(s.at[0].store_device, NULL, &report, 0), -EINVAL);
	cr_assert_eq(cowsnap_dm_inspect(s.at[0].store_device, NULL, &report, sizeof(report) + 1),
		-EINVAL);
	cr_assert_eq(cowsnap_device_memory(s.ctx, 65536, &closed), 0);
	cr_assert_eq(cowsnap_device_close(closed), 0);
	cr_assert_eq(cowsnap_dm_inspect(closed, NULL, &report, sizeof(report)), -EBADF);
	dm_close(&s);
}

static void *inspect_once(void *user)
{
	struct dm_scene *s = user;
	struct cowsnap_dm_report report;

	return (void *)(intptr_t)cowsnap_dm_inspect(
		s->at[0].store_device, NULL, &report, sizeof(report));
}

/* An inspection takes its lock away when it has ended: that must not be the one of a store that was
 * made meanwhile of the same handle. */
Test(store_dm_open, no_store_is_made_of_a_device_that_is_looked_at, .timeout = 60)
{
	struct test_device *t;
	struct dm_scene s;
	pthread_t looker;
	void *rc;
	int hold;

	dm_open(&s, NULL);
	t = s.at[0].store_test;
	hold = test_device_hold(t, TEST_IO_READ, 0, CHUNK, TEST_HOLD_BEFORE);
	cr_assert_eq(pthread_create(&looker, NULL, inspect_once, &s), 0);
	cr_assert(test_device_wait_held(t, hold));
	cr_assert_eq(dm_create(&s, 0, 0), -EBUSY);
	cr_assert_eq(test_device_locked(t), COWSNAP_LOCK_SHARED);
	test_device_release(t, hold);
	pthread_join(looker, &rc);
	cr_assert_eq((intptr_t)rc, -ENOENT);
	cr_assert_eq(test_device_locked(t), COWSNAP_LOCK_NONE);
	/* And the other way round. */
	cr_assert_eq(dm_create(&s, 0, 0), 0, "%s", s.line);
	cr_assert_eq((intptr_t)inspect_once(&s), -EBUSY);
	cr_assert_eq(test_device_locked(t), COWSNAP_LOCK_EXCLUSIVE);
	dm_close(&s);
}
