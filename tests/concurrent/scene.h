/* SPDX-License-Identifier: MIT
 *
 * The stage for interleavings: two origins and two stores on test devices, actors that write, read
 * or take on threads of their own, and ways to wait for what they do that do not depend on luck: a
 * call held in a device, a counter that rises before its thread sleeps, the callbacks of a take.
 */
#ifndef COWSNAP_TESTS_SCENE_H
#define COWSNAP_TESTS_SCENE_H

#include <cowsnap.h>

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "support/test.h"
#include "support/test_device.h"
#include "support/test_device_async.h"

#define SCENE_BYTES   UINT64_C(262144)
#define SCENE_CHUNK   UINT64_C(4096)
#define SCENE_ORIGINS 2
#define SCENE_STORES  2
#define SCENE_EVENTS  64

/* What the chunks of an origin hold before anybody writes. */
#define SCENE_BLANK 0

struct scene_options {
	uint64_t chunk_bytes[SCENE_STORES]; /* 0: SCENE_CHUNK */
	uint64_t limit_chunks;              /* of store 0; 0: as long as its device */
	uint64_t low_water_chunks;
	uint64_t copy_inflight_bytes;
	enum cowsnap_engine engine;
	uint32_t workers;
	uint32_t store_flags;                      /* of all stores */
	const struct cowsnap_allocator *allocator; /* NULL: the default */
	bool submits;                              /* devices are submitted to, in this mode */
	enum test_async_mode mode;
};

struct scene {
	struct cowsnap_ctx *ctx;
	struct test_async *origin_async[SCENE_ORIGINS]; /* NULL unless devices are submitted to */
	struct test_async *store_async[SCENE_STORES];
	struct test_device *origin_test[SCENE_ORIGINS];
	struct test_device *store_test[SCENE_STORES];
	struct cowsnap_device *origin_device[SCENE_ORIGINS];
	struct cowsnap_device *store_device[SCENE_STORES];
	struct cowsnap_origin *origin[SCENE_ORIGINS];
	struct cowsnap_store *store[SCENE_STORES];
	struct cowsnap_event event[SCENE_EVENTS];
	_Atomic unsigned events;
};

/* Whoever does one call on a thread of its own. */
struct actor {
	struct scene *scene;
	pthread_t thread;
	_Atomic bool finished;
	int rc;
	/* a write */
	unsigned origin;
	uint64_t offset;
	uint64_t length;
	uint8_t value;
	/* a read */
	struct cowsnap_snapshot *snapshot;
	uint8_t *data;
	/* a take */
	struct cowsnap_take_entry entry[SCENE_ORIGINS];
	size_t entries;
	uint64_t deadline_ns;
	_Atomic bool frozen; /* freeze was called */
	_Atomic bool thawed; /* the instant has passed, the drain begins */
};

void scene_open(struct scene *s, const struct scene_options *options);
/* Everything must be dropped. Reclaims, checks that the stores are empty, closes. */
void scene_close(struct scene *s);

/* A whole bracket on this thread: length bytes of value. Returns what begin returned. */
int scene_write(struct scene *s, unsigned origin, uint64_t offset, uint64_t length, uint8_t value);
/* For a thread: brackets all over origin 0, some of them of parts of chunks. */
void *scene_write_on(void *scene);
struct cowsnap_snapshot *scene_take(
	struct scene *s, unsigned origin, unsigned store, enum cowsnap_loser on_full);
void scene_drop(struct cowsnap_snapshot *snapshot);
/* Does the snapshot hold @value at each byte of the range? Fails the test if not. */
void scene_expect(
	struct cowsnap_snapshot *snapshot, uint64_t offset, uint64_t length, uint8_t value);
void scene_expect_state(
	struct cowsnap_snapshot *snapshot, enum cowsnap_snapshot_state state, int reason);
/* The next call of this kind that touches the range stops before its bytes move. */
int scene_hold(struct test_device *device, enum test_io kind, uint64_t offset, uint64_t length);
void scene_wait_held(struct test_device *device, int hold);
struct cowsnap_stats scene_stats(struct scene *s);
struct cowsnap_store_usage scene_usage(struct scene *s, unsigned store);
void scene_reclaim(struct scene *s);
unsigned scene_count_events(struct scene *s, enum cowsnap_event_type type);

/* Waits until a counter of the context has reached @value. */
#define scene_until(s, member, value)                   \
	do {                                            \
		while (scene_stats(s).member < (value)) \
			sched_yield();                  \
	} while (0)

void actor_write(struct actor *a, struct scene *s, unsigned origin, uint64_t offset,
	uint64_t length, uint8_t value);
/* The actor's data becomes @length bytes; actor_join frees them unless they are taken out. */
void actor_read(
	struct actor *a, struct cowsnap_snapshot *snapshot, uint64_t offset, uint64_t length);
/* Takes origins 0 to count - 1 into store 0. */
void actor_take(struct actor *a, struct scene *s, size_t count, uint64_t deadline_ns);
/* Waits for the end of the actor. Returns: what its call returned. */
int actor_join(struct actor *a);
/* Fails the test if what a reader got is not @value everywhere. */
void actor_expect(const struct actor *a, uint8_t value);

#endif
