/* SPDX-License-Identifier: MIT
 *
 * The stage for tests of the persistent store: up to two origins, each with a store of its own, on
 * test devices; a model of what the origins hold and what the snapshots must hold; and what the
 * devices hold, looked at again in a context that knows nothing of the first.
 *
 * Calls return what the library returned and keep the model in step with it, so that a sweep can go
 * on after a failure. What begins with dm_expect fails the test.
 */
#ifndef COWSNAP_TESTS_DM_SCENE_H
#define COWSNAP_TESTS_DM_SCENE_H

#include <cowsnap.h>

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "support/fail_alloc.h"
#include "support/test_device.h"

#define DM_STORES 2

struct dm_scene_options {
	unsigned stores;       /* 0: 1 */
	uint64_t chunk_bytes;  /* 0: 512, so that an area has 32 records */
	uint64_t origin_bytes; /* 0: 64 KiB */
	uint64_t store_bytes;  /* 0: 96 KiB */
	uint64_t max_bytes;    /* a store's device may grow to; 0: it cannot */
	uint32_t block_size;   /* of the store's device; 0: 1 */
	bool no_flush;         /* of the store's device */
	bool durable;
	enum cowsnap_loser on_full;
	uint64_t generation;
	uint64_t wait_ns;
	bool memory; /* the context's allocator is a fail_alloc */
	enum cowsnap_engine engine;
	uint32_t workers;
};

/* What a store's device must show after a crash at this moment. */
enum dm_promise {
	DM_NOTHING, /* no snapshot was recorded: none, or one that is the same as the origin */
	DM_ACTIVE,
	DM_INVALID,
	DM_ABSENT,
};

struct dm_store {
	struct test_device *origin_test;
	struct test_device *store_test;
	struct cowsnap_device *origin_device;
	struct cowsnap_device *store_device;
	struct cowsnap_origin *origin;
	struct cowsnap_store *store;
	struct cowsnap_snapshot *snapshot; /* NULL: none */
	uint8_t *live;
	uint8_t *image; /* at the take */
	enum dm_promise promise;
	bool maybe_absent; /* a drop has failed: it may have reached the device all the same */
	_Atomic bool maybe_invalid; /* the same of an invalidation */
	uint64_t generation;
	bool maybe_generation; /* another one was tried */
};

struct dm_scene {
	struct dm_scene_options options;
	struct fail_alloc *memory;
	struct cowsnap_log log;
	struct cowsnap_ctx *ctx;
	struct dm_store at[DM_STORES];
	_Atomic unsigned failed_writes; /* brackets that were refused */
	_Atomic unsigned events[8];     /* by type */
	_Atomic unsigned lines;         /* of the log, errors only */
	char line[512];                 /* the last of them that the thread of dm_open() caused */
	pthread_t owner;
};

/* Makes context, devices and origins; the origins hold bytes that depend on their place. */
void dm_open(struct dm_scene *s, const struct dm_scene_options *options);
/* Ends it all: drops what is there, and deactivates what cannot be dropped. Fails the test if
 * something does not close or leaks. */
void dm_close(struct dm_scene *s);

int dm_create(struct dm_scene *s, unsigned i, uint32_t flags);
/* One take of all. The stores must be there. */
int dm_take(struct dm_scene *s);
/* Both for store 0, up to a snapshot. */
int dm_begin(struct dm_scene *s);
int dm_attach(struct dm_scene *s, unsigned i);
/* Deactivates, closes the store, and opens the origin anew: a store is attached only to one that
 * nobody has written to. */
int dm_detach(struct dm_scene *s, unsigned i);
int dm_renew_origin(struct dm_scene *s, unsigned i);
int dm_drop(struct dm_scene *s, unsigned i);
int dm_close_store(struct dm_scene *s, unsigned i);
/* Several threads may write, each to chunks of its own. */
int dm_write(struct dm_scene *s, unsigned i, uint64_t offset, uint64_t length, uint8_t value);
int dm_grow(struct dm_scene *s, unsigned i, uint64_t store_bytes);
int dm_set_generation(struct dm_scene *s, unsigned i, uint64_t generation);

enum cowsnap_snapshot_state dm_state(struct dm_scene *s, unsigned i, int *reason);
struct cowsnap_store_usage dm_usage(struct dm_scene *s, unsigned i);
/* The snapshot reads as at its take. @healthy: no error is allowed; else one is, but no wrong byte.
 */
void dm_expect_exact(struct dm_scene *s, unsigned i, bool healthy);
/* Takes note of snapshots that became invalid: that is promised from now on. */
void dm_note(struct dm_scene *s);
/* What the devices hold now, opened again in a context of its own, is what was promised. Then the
 * same again, and with further writes to it. */
void dm_expect_promise(struct dm_scene *s, unsigned i);

/* A copy of the bytes of a store's device, as long as the device says it is. Free it. */
uint8_t *dm_bytes(struct dm_scene *s, unsigned i, uint64_t *length);
void dm_put_bytes(struct dm_scene *s, unsigned i, const void *bytes, uint64_t length);

#endif
