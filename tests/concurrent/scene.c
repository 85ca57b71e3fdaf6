/* SPDX-License-Identifier: MIT */
#include "concurrent/scene.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

static void on_event(void *user, const struct cowsnap_event *event)
{
	struct scene *s = user;
	unsigned at = atomic_fetch_add(&s->events, 1);

	if (at < SCENE_EVENTS)
		s->event[at] = *event;
}

static struct cowsnap_device *make_device(struct scene *s, const struct scene_options *options,
	uint64_t size_bytes, struct test_async **async, struct test_device **rig)
{
	const struct test_device_options device = {.size_bytes = size_bytes};

	if (!options->submits) {
		*rig = test_device_create(s->ctx, &device);
		cr_assert_not_null(*rig);
		return test_device(*rig);
	}
	*async = test_async_create(s->ctx, &device, options->mode);
	cr_assert_not_null(*async);
	*rig = test_async_rig(*async);
	return test_async_device(*async);
}

static void end_device(struct test_async *async, struct test_device *rig)
{
	cr_assert_eq(async ? test_async_destroy(async) : test_device_destroy(rig), 0);
}

static void open_store(struct scene *s, unsigned i, const struct scene_options *options)
{
	struct cowsnap_transient_options transient = {
		.size = sizeof(transient),
		.flags = options->store_flags,
		.chunk_size_bytes = options->chunk_bytes[i] ? options->chunk_bytes[i] : SCENE_CHUNK,
		.low_water_bytes = options->low_water_chunks * SCENE_CHUNK,
	};

	if (i == 0)
		transient.limit_bytes = options->limit_chunks * transient.chunk_size_bytes;
	s->store_device[i] =
		make_device(s, options, 4 * SCENE_BYTES, &s->store_async[i], &s->store_test[i]);
	transient.device = s->store_device[i];
	cr_assert_eq(cowsnap_store_transient(s->ctx, &transient, &s->store[i]), 0);
}

void scene_open(struct scene *s, const struct scene_options *options)
{
	static const struct scene_options defaults;
	struct cowsnap_ctx_options ctx_options = {
		.size = sizeof(ctx_options), .event = on_event, .event_user = s};

	if (!options)
		options = &defaults;
	memset(s, 0, sizeof(*s));
	ctx_options.copy_inflight_bytes = options->copy_inflight_bytes;
	ctx_options.engine = options->engine;
	ctx_options.workers = options->workers;
	ctx_options.allocator = options->allocator;
	cr_assert_eq(cowsnap_ctx_create(&ctx_options, &s->ctx), 0);
	for (unsigned i = 0; i < SCENE_ORIGINS; i++) {
		s->origin_device[i] = make_device(
			s, options, SCENE_BYTES, &s->origin_async[i], &s->origin_test[i]);
		cr_assert_eq(cowsnap_origin_open(s->ctx, s->origin_device[i], &s->origin[i]), 0);
	}
	for (unsigned i = 0; i < SCENE_STORES; i++)
		open_store(s, i, options);
}

void scene_close(struct scene *s)
{
	scene_reclaim(s);
	for (unsigned i = 0; i < SCENE_STORES; i++) {
		cr_assert_eq(scene_usage(s, i).used_bytes, 0, "store %u is not empty", i);
		cr_assert_eq(cowsnap_store_close(s->store[i]), 0);
		end_device(s->store_async[i], s->store_test[i]);
	}
	for (unsigned i = 0; i < SCENE_ORIGINS; i++) {
		cr_assert_eq(cowsnap_origin_close(s->origin[i]), 0);
		end_device(s->origin_async[i], s->origin_test[i]);
	}
	cr_assert_eq(cowsnap_ctx_destroy(s->ctx), 0);
}

int scene_write(struct scene *s, unsigned origin, uint64_t offset, uint64_t length, uint8_t value)
{
	struct cowsnap_op op;
	uint8_t *data;
	int rc = cowsnap_write_begin(s->origin[origin], COWSNAP_WRITE, offset, length, &op);

	if (rc)
		return rc;
	data = malloc(length);
	memset(data, value, length);
	cr_assert_eq(cowsnap_device_write(s->origin_device[origin], data, offset, length), 0);
	free(data);
	cowsnap_write_end(&op);
	return 0;
}

void *scene_write_on(void *scene)
{
	const uint64_t chunks = SCENE_BYTES / SCENE_CHUNK;

	for (uint64_t i = 0; i < 3 * chunks; i++)
		cr_assert_eq(
			scene_write(scene, 0, i * 37 % chunks * SCENE_CHUNK + i, 100, (uint8_t)i),
			0);
	return NULL;
}

struct cowsnap_snapshot *scene_take(
	struct scene *s, unsigned origin, unsigned store, enum cowsnap_loser on_full)
{
	struct cowsnap_take_entry entry = {
		.origin = s->origin[origin],
		.store = s->store[store],
		.on_full = on_full,
	};

	cr_assert_eq(cowsnap_take(s->ctx, NULL, &entry, 1), 0);
	return entry.snapshot;
}

void scene_drop(struct cowsnap_snapshot *snapshot)
{
	cr_assert_eq(cowsnap_snapshot_drop(snapshot), 0);
	cowsnap_snapshot_unref(snapshot);
}

int scene_hold(struct test_device *device, enum test_io kind, uint64_t offset, uint64_t length)
{
	int hold = test_device_hold(device, kind, offset, length, TEST_HOLD_BEFORE);

	cr_assert(hold >= 0);
	return hold;
}

void scene_wait_held(struct test_device *device, int hold)
{
	cr_assert(test_device_wait_held(device, hold), "nobody came to the hold point");
}

static void expect_bytes(const uint8_t *data, uint64_t offset, uint64_t length, uint8_t value)
{
	/* Mostly they are, and to look at each takes long. */
	if (length && data[0] == value && memcmp(data, data + 1, length - 1) == 0)
		return;
	for (uint64_t i = 0; i < length; i++)
		cr_assert(data[i] == value, "byte %llu is %u, not %u",
			(unsigned long long)(offset + i), data[i], value);
}

void scene_expect(
	struct cowsnap_snapshot *snapshot, uint64_t offset, uint64_t length, uint8_t value)
{
	uint8_t *data = malloc(length);

	cr_assert_eq(cowsnap_snapshot_read(snapshot, data, offset, length), 0);
	expect_bytes(data, offset, length, value);
	free(data);
}

void scene_expect_state(
	struct cowsnap_snapshot *snapshot, enum cowsnap_snapshot_state state, int reason)
{
	struct cowsnap_snapshot_info info;
	char byte;

	cr_assert_eq(cowsnap_snapshot_info(snapshot, &info, sizeof(info)), 0);
	cr_assert_eq(info.state, state);
	cr_assert_eq(info.reason, reason, "reason %d", info.reason);
	cr_assert_eq(cowsnap_snapshot_read(snapshot, &byte, 0, 1),
		state == COWSNAP_SNAPSHOT_INVALID ? -ESTALE : 0);
}

struct cowsnap_stats scene_stats(struct scene *s)
{
	struct cowsnap_stats stats;

	cr_assert_eq(cowsnap_ctx_stats(s->ctx, &stats, sizeof(stats)), 0);
	return stats;
}

struct cowsnap_store_usage scene_usage(struct scene *s, unsigned store)
{
	struct cowsnap_store_usage usage;

	cr_assert_eq(cowsnap_store_usage(s->store[store], &usage, sizeof(usage)), 0);
	return usage;
}

void scene_reclaim(struct scene *s)
{
	int more = 1;

	for (int i = 0; more == 1; i++) {
		cr_assert(i < 100000, "reclaiming does not end");
		more = cowsnap_reclaim(s->ctx, 16);
	}
	cr_assert_eq(more, 0);
}

unsigned scene_count_events(struct scene *s, enum cowsnap_event_type type)
{
	unsigned count = 0;

	for (unsigned i = 0; i < atomic_load(&s->events); i++)
		count += s->event[i].type == type;
	return count;
}

/* ---- Actors --------------------------------------------------------------------------------- */

static void run(struct actor *a, void *(*body)(void *))
{
	cr_assert_eq(pthread_create(&a->thread, NULL, body, a), 0);
}

static void *write_body(void *argument)
{
	struct actor *a = argument;

	a->rc = scene_write(a->scene, a->origin, a->offset, a->length, a->value);
	atomic_store(&a->finished, true);
	return NULL;
}

void actor_write(struct actor *a, struct scene *s, unsigned origin, uint64_t offset,
	uint64_t length, uint8_t value)
{
	*a = (struct actor){
		.scene = s, .origin = origin, .offset = offset, .length = length, .value = value};
	run(a, write_body);
}

static void *read_body(void *argument)
{
	struct actor *a = argument;

	a->rc = cowsnap_snapshot_read(a->snapshot, a->data, a->offset, a->length);
	atomic_store(&a->finished, true);
	return NULL;
}

void actor_read(
	struct actor *a, struct cowsnap_snapshot *snapshot, uint64_t offset, uint64_t length)
{
	*a = (struct actor){.snapshot = snapshot, .offset = offset, .length = length};
	a->data = malloc(length);
	memset(a->data, 0xee, length);
	run(a, read_body);
}

static int on_freeze(void *user)
{
	struct actor *a = user;

	cr_assert(!atomic_load(&a->frozen) && !atomic_load(&a->thawed), "freeze comes first, once");
	atomic_store(&a->frozen, true);
	return 0;
}

static void on_thaw(void *user)
{
	struct actor *a = user;

	cr_assert(atomic_load(&a->frozen) && !atomic_load(&a->thawed), "thaw comes second, once");
	atomic_store(&a->thawed, true);
}

static void *take_body(void *argument)
{
	struct actor *a = argument;
	const struct cowsnap_take_options options = {
		.size = sizeof(options),
		.deadline_ns = a->deadline_ns,
		.freeze = on_freeze,
		.thaw = on_thaw,
		.user = a,
	};

	a->rc = cowsnap_take(a->scene->ctx, &options, a->entry, a->entries);
	atomic_store(&a->finished, true);
	return NULL;
}

void actor_take(struct actor *a, struct scene *s, size_t count, uint64_t deadline_ns)
{
	*a = (struct actor){.scene = s, .entries = count, .deadline_ns = deadline_ns};
	for (size_t i = 0; i < count; i++) {
		a->entry[i].origin = s->origin[i];
		a->entry[i].store = s->store[0];
	}
	run(a, take_body);
}

int actor_join(struct actor *a)
{
	pthread_join(a->thread, NULL);
	return a->rc;
}

void actor_expect(const struct actor *a, uint8_t value)
{
	cr_assert_eq(a->rc, 0, "the read returned %d", a->rc);
	expect_bytes(a->data, a->offset, a->length, value);
}
