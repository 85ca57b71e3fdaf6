/* SPDX-License-Identifier: MIT */
#include "support/dm_scene.h"

#include "support/image.h"
#include "support/test.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t or_default(uint64_t value, uint64_t otherwise)
{
	return value ? value : otherwise;
}

static void on_log(void *user, enum cowsnap_log_level level, const char *message)
{
	struct dm_scene *s = user;

	if (level != COWSNAP_LOG_ERROR)
		return;
	atomic_fetch_add(&s->lines, 1);
	/* Without a lock, which would order threads that nothing else orders. */
	if (pthread_equal(pthread_self(), s->owner))
		snprintf(s->line, sizeof(s->line), "%s", message);
}

static void on_event(void *user, const struct cowsnap_event *event)
{
	struct dm_scene *s = user;

	atomic_fetch_add(&s->events[event->type], 1);
}

/* ---- Making and ending ----------------------------------------------------------------------- */

static void open_devices(struct dm_scene *s, unsigned i)
{
	const struct dm_scene_options *o = &s->options;
	struct dm_store *at = &s->at[i];
	const struct test_device_options origin = {.size_bytes = o->origin_bytes, .lockable = true};
	const struct test_device_options store = {
		.size_bytes = o->store_bytes,
		.max_bytes = o->max_bytes,
		.block_size = o->block_size,
		.durable = o->durable,
		.no_flush = o->no_flush,
		.lockable = true,
	};

	at->origin_test = test_device_create(s->ctx, &origin);
	at->store_test = test_device_create(s->ctx, &store);
	cr_assert_not_null(at->origin_test);
	cr_assert_not_null(at->store_test);
	at->origin_device = test_device(at->origin_test);
	at->store_device = test_device(at->store_test);
	at->live = malloc(o->origin_bytes);
	at->image = malloc(o->origin_bytes);
	for (uint64_t b = 0; b < o->origin_bytes; b++)
		at->live[b] = (uint8_t)(b / 512 * 7 + b % 251 + i);
	cr_assert_eq(cowsnap_device_write(
			     test_device_inner(at->origin_test), at->live, 0, o->origin_bytes),
		0);
	cr_assert_eq(cowsnap_origin_open(s->ctx, at->origin_device, &at->origin), 0);
}

void dm_open(struct dm_scene *s, const struct dm_scene_options *options)
{
	struct cowsnap_log log = {.size = sizeof(log), .user = s, .write = on_log};
	struct cowsnap_ctx_options ctx_options = {
		.size = sizeof(ctx_options), .log = &s->log, .event = on_event, .event_user = s};

	memset(s, 0, sizeof(*s));
	if (options)
		s->options = *options;
	s->log = log;
	s->owner = pthread_self();
	s->options.stores = (unsigned)or_default(s->options.stores, 1);
	s->options.chunk_bytes = or_default(s->options.chunk_bytes, 512);
	s->options.origin_bytes = or_default(s->options.origin_bytes, 64 * 1024);
	s->options.store_bytes = or_default(s->options.store_bytes, 96 * 1024);
	ctx_options.engine = s->options.engine;
	ctx_options.workers = s->options.workers;
	if (s->options.memory) {
		s->memory = fail_alloc_create(false);
		ctx_options.allocator = fail_alloc_table(s->memory);
	}
	cr_assert_eq(cowsnap_ctx_create(&ctx_options, &s->ctx), 0);
	for (unsigned i = 0; i < s->options.stores; i++)
		open_devices(s, i);
}

static void close_one(struct dm_scene *s, unsigned i)
{
	struct dm_store *at = &s->at[i];

	test_device_heal(at->origin_test);
	test_device_heal(at->store_test);
	if (at->snapshot) {
		/* A store that is broken stays so, also on a device that is well again. */
		if (dm_drop(s, i))
			cr_assert_eq(cowsnap_snapshot_deactivate(at->snapshot), 0);
		cowsnap_snapshot_unref(at->snapshot);
		at->snapshot = NULL;
	}
	cr_assert_eq(dm_close_store(s, i), 0);
	cr_assert_eq(test_device_locked(at->store_test), COWSNAP_LOCK_NONE);
	cr_assert_eq(cowsnap_origin_close(at->origin), 0);
	cr_assert_eq(test_device_destroy(at->store_test), 0);
	cr_assert_eq(test_device_destroy(at->origin_test), 0);
	free(at->live);
	free(at->image);
}

void dm_close(struct dm_scene *s)
{
	if (s->memory)
		fail_alloc_at(s->memory, 0, false);
	for (unsigned i = 0; i < s->options.stores; i++)
		close_one(s, i);
	cr_assert_eq(cowsnap_ctx_destroy(s->ctx), 0);
	if (s->memory) {
		cr_assert_eq(fail_alloc_live(s->memory), 0, "%llu blocks leaked",
			(unsigned long long)fail_alloc_live(s->memory));
		fail_alloc_destroy(s->memory);
	}
}

/* ---- Calls ----------------------------------------------------------------------------------- */

static struct cowsnap_dm_options dm_options(struct dm_scene *s, unsigned i)
{
	return (struct cowsnap_dm_options){
		.size = sizeof(struct cowsnap_dm_options),
		.device = s->at[i].store_device,
		.chunk_size_bytes = s->options.chunk_bytes,
	};
}

int dm_create(struct dm_scene *s, unsigned i, uint32_t flags)
{
	struct cowsnap_dm_options options = dm_options(s, i);
	struct dm_store *at = &s->at[i];
	int rc;

	options.flags = flags;
	options.generation = s->options.generation;
	rc = cowsnap_store_dm_create(s->ctx, &options, &at->store);
	if (rc == 0)
		at->generation = s->options.generation;
	return rc;
}

static struct cowsnap_take_entry entry_of(struct dm_scene *s, unsigned i)
{
	return (struct cowsnap_take_entry){
		.origin = s->at[i].origin,
		.store = s->at[i].store,
		.on_full = s->options.on_full,
		.wait_ns = s->options.wait_ns,
	};
}

int dm_take(struct dm_scene *s)
{
	struct cowsnap_take_entry entry[DM_STORES];
	int rc;

	for (unsigned i = 0; i < s->options.stores; i++) {
		entry[i] = entry_of(s, i);
		memcpy(s->at[i].image, s->at[i].live, s->options.origin_bytes);
	}
	rc = cowsnap_take(s->ctx, NULL, entry, s->options.stores);
	for (unsigned i = 0; i < s->options.stores; i++) {
		struct dm_store *at = &s->at[i];

		cr_assert_eq(!entry[i].snapshot, rc != 0, "take: %d", rc);
		at->snapshot = entry[i].snapshot;
		at->promise = rc ? DM_NOTHING : DM_ACTIVE;
		at->maybe_absent = false;
		atomic_store(&at->maybe_invalid, false);
	}
	return rc;
}

int dm_begin(struct dm_scene *s)
{
	for (unsigned i = 0; i < s->options.stores; i++) {
		int rc = dm_create(s, i, 0);

		if (rc)
			return rc;
	}
	return dm_take(s);
}

int dm_attach(struct dm_scene *s, unsigned i)
{
	struct cowsnap_dm_options options = dm_options(s, i);
	struct cowsnap_take_entry entry = entry_of(s, i);
	struct dm_store *at = &s->at[i];
	int rc;

	options.chunk_size_bytes = 0;
	entry.store = NULL;
	rc = cowsnap_store_dm_open(s->ctx, &options, &entry, &at->store);
	if (rc)
		return rc;
	cr_assert_eq(entry.store, at->store);
	cr_assert_not_null(entry.snapshot);
	at->snapshot = entry.snapshot;
	return 0;
}

int dm_close_store(struct dm_scene *s, unsigned i)
{
	int rc = cowsnap_store_close(s->at[i].store);

	if (rc == 0)
		s->at[i].store = NULL;
	return rc;
}

int dm_renew_origin(struct dm_scene *s, unsigned i)
{
	int rc = cowsnap_origin_close(s->at[i].origin);

	s->at[i].origin = NULL;
	return rc ? rc : cowsnap_origin_open(s->ctx, s->at[i].origin_device, &s->at[i].origin);
}

int dm_detach(struct dm_scene *s, unsigned i)
{
	int rc;

	dm_note(s);
	rc = cowsnap_snapshot_deactivate(s->at[i].snapshot);

	if (rc)
		return rc;
	cowsnap_snapshot_unref(s->at[i].snapshot);
	s->at[i].snapshot = NULL;
	rc = dm_close_store(s, i);
	return rc ? rc : dm_renew_origin(s, i);
}

int dm_drop(struct dm_scene *s, unsigned i)
{
	struct dm_store *at = &s->at[i];
	int rc = cowsnap_snapshot_drop(at->snapshot);

	if (rc) {
		at->maybe_absent = true;
		return rc;
	}
	at->promise = DM_ABSENT;
	cowsnap_snapshot_unref(at->snapshot);
	at->snapshot = NULL;
	return 0;
}

int dm_write(struct dm_scene *s, unsigned i, uint64_t offset, uint64_t length, uint8_t value)
{
	struct dm_store *at = &s->at[i];
	struct cowsnap_op op;
	int rc = cowsnap_write_begin(at->origin, COWSNAP_WRITE, offset, length, &op);

	if (rc) {
		atomic_fetch_add(&s->failed_writes, 1);
		if (s->options.on_full == COWSNAP_LOSER_SNAPSHOT)
			atomic_store(&at->maybe_invalid, true);
		return rc;
	}
	memset(at->live + offset, value, length);
	/* Should the write itself fail, the content is whatever it left. */
	if (cowsnap_device_write(at->origin_device, at->live + offset, offset, length))
		cr_assert_eq(cowsnap_device_read(test_device_inner(at->origin_test),
				     at->live + offset, offset, length),
			0);
	cowsnap_write_end(&op);
	return 0;
}

int dm_grow(struct dm_scene *s, unsigned i, uint64_t store_bytes)
{
	int rc;

	test_device_resize(s->at[i].store_test, store_bytes);
	rc = cowsnap_device_refresh(s->at[i].store_device);
	return rc ? rc : cowsnap_store_set_limit(s->at[i].store, 0);
}

int dm_set_generation(struct dm_scene *s, unsigned i, uint64_t generation)
{
	int rc = cowsnap_store_dm_set_generation(s->at[i].store, generation);

	if (rc)
		s->at[i].maybe_generation = true;
	else
		s->at[i].generation = generation;
	return rc;
}

enum cowsnap_snapshot_state dm_state(struct dm_scene *s, unsigned i, int *reason)
{
	struct cowsnap_snapshot_info info;

	cr_assert_eq(cowsnap_snapshot_info(s->at[i].snapshot, &info, sizeof(info)), 0);
	if (reason)
		*reason = info.reason;
	return info.state;
}

struct cowsnap_store_usage dm_usage(struct dm_scene *s, unsigned i)
{
	struct cowsnap_store_usage usage;

	cr_assert_eq(cowsnap_store_usage(s->at[i].store, &usage, sizeof(usage)), 0);
	return usage;
}

void dm_note(struct dm_scene *s)
{
	for (unsigned i = 0; i < s->options.stores; i++) {
		if (s->at[i].snapshot && dm_state(s, i, NULL) == COWSNAP_SNAPSHOT_INVALID)
			s->at[i].promise = DM_INVALID;
	}
}

uint8_t *dm_bytes(struct dm_scene *s, unsigned i, uint64_t *length)
{
	uint8_t *bytes;

	*length = cowsnap_device_size(s->at[i].store_device);
	bytes = malloc(*length);
	cr_assert_eq(
		cowsnap_device_read(test_device_inner(s->at[i].store_test), bytes, 0, *length), 0);
	return bytes;
}

void dm_put_bytes(struct dm_scene *s, unsigned i, const void *bytes, uint64_t length)
{
	cr_assert_eq(
		cowsnap_device_write(test_device_inner(s->at[i].store_test), bytes, 0, length), 0);
}

/* ---- Checks ---------------------------------------------------------------------------------- */

static void expect_same(const uint8_t *is, const uint8_t *must, uint64_t length, const char *what)
{
	uint64_t b = 0;

	while (b < length && is[b] == must[b])
		b++;
	cr_assert(b == length, "%s: byte %llu is %u, not %u", what, (unsigned long long)b,
		b < length ? is[b] : 0, b < length ? must[b] : 0);
}

void dm_expect_exact(struct dm_scene *s, unsigned i, bool healthy)
{
	uint64_t length = s->options.origin_bytes;
	uint8_t *data = malloc(length);
	int rc = cowsnap_snapshot_read(s->at[i].snapshot, data, 0, length);

	cr_assert(rc == 0 || !healthy, "read: %d", rc);
	/* The caller may not have looked whether it is still there. */
	if (rc == -ESTALE && !healthy)
		cr_assert_eq(dm_state(s, i, NULL), COWSNAP_SNAPSHOT_INVALID);
	else
		cr_assert(rc != -ESTALE && rc != -EIDRM, "read: %d", rc);
	if (rc == 0)
		expect_same(data, s->at[i].image, length, "snapshot");
	free(data);
}

/* A scene of the same devices, after a crash. */
static void restart(struct dm_scene *to, struct dm_scene *from, unsigned i)
{
	struct dm_scene_options options = from->options;
	uint64_t length;
	uint8_t *bytes = dm_bytes(from, i, &length);

	options.stores = 1;
	options.memory = false;
	options.store_bytes = length;
	dm_open(to, &options);
	dm_put_bytes(to, 0, bytes, length);
	free(bytes);
	to->at[0].promise = from->at[i].promise;
	memcpy(to->at[0].image, from->at[i].image, options.origin_bytes);
	cr_assert_eq(cowsnap_device_read(test_device_inner(from->at[i].origin_test), to->at[0].live,
			     0, options.origin_bytes),
		0);
	cr_assert_eq(cowsnap_device_write(test_device_inner(to->at[0].origin_test), to->at[0].live,
			     0, options.origin_bytes),
		0);
}

static void expect_invalid(struct dm_scene *s, const struct dm_store *was)
{
	int reason;

	cr_assert(was->promise == DM_INVALID || was->maybe_invalid,
		"the store is marked invalid, and nobody said so");
	cr_assert_eq(dm_attach(s, 0), 0);
	cr_assert_eq(dm_state(s, 0, &reason), COWSNAP_SNAPSHOT_INVALID);
	cr_assert_eq(reason, -EUCLEAN);
	s->at[0].promise = DM_INVALID;
}

static void expect_active(struct dm_scene *s, const struct dm_store *was)
{
	cr_assert(was->promise == DM_ACTIVE || was->promise == DM_NOTHING,
		"an active snapshot, where %d was promised", (int)was->promise);
	if (was->promise == DM_NOTHING)
		memcpy(s->at[0].image, s->at[0].live, s->options.origin_bytes);
	cr_assert_eq(dm_attach(s, 0), 0, "%s", s->line);
	cr_assert_eq(dm_state(s, 0, NULL), COWSNAP_SNAPSHOT_ACTIVE);
	dm_expect_exact(s, 0, true);
	s->at[0].promise = DM_ACTIVE;
	/* It goes on: each chunk is saved, or refused, and the image stays. */
	for (uint64_t at = 0; at < s->options.origin_bytes; at += 3 * s->options.chunk_bytes) {
		if (dm_state(s, 0, NULL) == COWSNAP_SNAPSHOT_ACTIVE)
			dm_write(s, 0, at, 1, 0xee);
	}
	if (dm_state(s, 0, NULL) == COWSNAP_SNAPSHOT_ACTIVE)
		dm_expect_exact(s, 0, true);
	else
		s->at[0].promise = DM_INVALID;
}

static void expect_once(struct dm_scene *from, unsigned i, unsigned again)
{
	const struct dm_store *was = &from->at[i];
	struct cowsnap_dm_report report;
	struct dm_scene s;
	int rc;

	restart(&s, from, i);
	rc = cowsnap_dm_inspect(s.at[0].store_device, NULL, &report, sizeof(report));
	if (rc == -ENOENT) {
		cr_assert(was->promise == DM_ABSENT || was->promise == DM_NOTHING ||
				  was->maybe_absent,
			"the store is gone, where %d was promised", (int)was->promise);
		cr_assert_eq(dm_attach(&s, 0), -ENOENT);
		image_keep(s.at[0].store_device, IMAGE_ABSENT, s.options.origin_bytes);
		dm_close(&s);
		return;
	}
	cr_assert_eq(rc, 0, "%d: %s: %s", rc, report.fault, report.reason);
	cr_assert(was->promise != DM_ABSENT, "a dropped snapshot is back");
	cr_assert(report.generation == was->generation || was->maybe_generation,
		"generation %llu, not %llu", (unsigned long long)report.generation,
		(unsigned long long)was->generation);
	s.at[0].generation = report.generation;
	image_keep(s.at[0].store_device, report.valid ? IMAGE_GOOD : IMAGE_INVALID,
		s.options.origin_bytes);
	if (report.valid)
		expect_active(&s, was);
	else
		expect_invalid(&s, was);
	if (again > 0)
		expect_once(&s, 0, again - 1);
	dm_close(&s);
}

void dm_expect_promise(struct dm_scene *s, unsigned i)
{
	dm_note(s);
	expect_once(s, i, 1);
}
