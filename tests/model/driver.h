/* SPDX-License-Identifier: MIT
 *
 * The differential driver: one stream of random steps on the library and on the model side by side,
 * on one thread. What the library is free to choose (which copies still fit into a full store) is
 * taken over from it after checking that it was allowed; everything else is predicted.
 */
#ifndef COWSNAP_TESTS_MODEL_DRIVER_H
#define COWSNAP_TESTS_MODEL_DRIVER_H

#include <cowsnap.h>
#include <stdio.h>

#include "support/model.h"

#define DRIVER_OPEN_MAX 3

struct driver;

/* A snapshot of the library beside its model: the user pointer of both. */
struct driver_taken {
	struct driver *driver;
	struct model_image *image;
	struct cowsnap_snapshot *snapshot;
	enum cowsnap_loser on_full;
	int answer;        /* last decision in the present write; -1: was not asked */
	unsigned attempts; /* of the present write */
	unsigned invalid_events;
	unsigned merged_events;
	unsigned merge_failures;
	int event_reason;
	uint64_t moved_bytes; /* of a merge */
};

/* A bracket left open over other steps; its bytes are written already. */
struct driver_open {
	struct cowsnap_op op;
	bool used;
};

struct driver {
	struct model model;
	uint64_t seed;
	uint64_t random;
	unsigned step;
	char last[160]; /* what was being done, for the failure message */
	bool trace;

	struct cowsnap_ctx *ctx;
	struct cowsnap_device *origin_device[MODEL_ORIGINS];
	struct cowsnap_origin *origin[MODEL_ORIGINS];
	struct volume *volume[MODEL_ORIGINS];        /* what is below the device */
	struct driver_taken *merging[MODEL_ORIGINS]; /* NULL: none */
	bool restarts;                               /* may be closed and opened again */
	bool asks[MODEL_ORIGINS];                    /* brackets without a preimage ask for one */
	struct cowsnap_queue *queue;
	struct cowsnap_device *store_device[MODEL_STORES]; /* NULL: the store has memory */
	struct volume *store_volume[MODEL_STORES];
	struct cowsnap_store *store[MODEL_STORES];
	uint64_t limit_chunks[MODEL_STORES];
	uint64_t grow_chunks[MODEL_STORES]; /* the limit can be raised up to this */

	struct driver_open open[DRIVER_OPEN_MAX];
	bool exact;       /* every copy is known, so their number is */
	uint64_t copied;  /* that number */
	uint8_t *scratch; /* as long as the longest origin */
	uint64_t scratch_bytes;

	/* The write under way, for what its callbacks check; or the part of a merge. */
	bool writing;
	unsigned write_origin;
	uint64_t write_offset;
	uint64_t write_length;
	/* Of it, what the host changes: during a merge all of each chunk counts as written. */
	uint64_t host_offset;
	uint64_t host_length;
};

/* Runs one stream; fails the test with the seed and the step if anything differs. */
void driver_run(uint64_t seed, unsigned steps);

/* driver.c: common to the steps. */
uint64_t driver_below(struct driver *d, uint64_t bound); /* 0 to bound - 1 */
void driver_fill(struct driver *d, uint8_t *bytes, uint64_t length);
void driver_note(struct driver *d, const char *format, ...) __attribute__((format(printf, 2, 3)));
void driver_fail(struct driver *d, const char *file, int line, const char *what, long long value);
struct driver_taken *driver_pick(struct driver *d, bool active_only); /* NULL: there is none */
void driver_drop(struct driver *d, struct driver_taken *taken);
/* A call in the queue, with driver_done() and a place for its result that says DRIVER_UNDER_WAY.
 * Returns: as the call that waits. @rc: of its beginning. */
#define DRIVER_UNDER_WAY 2
void driver_done(struct cowsnap_op *op, void *user, int error);
int driver_await(struct driver *d, int rc, const int *error);
void driver_end_open(struct driver *d);
void driver_check_states(struct driver *d);

#define want(d, condition)                                                   \
	do {                                                                 \
		if (!(condition))                                            \
			driver_fail((d), __FILE__, __LINE__, #condition, 0); \
	} while (0)

#define want_eq(d, value, expected)                                                             \
	do {                                                                                    \
		long long want_value_ = (long long)(value);                                     \
		if (want_value_ != (long long)(expected))                                       \
			driver_fail(                                                            \
				(d), __FILE__, __LINE__, #value " == " #expected, want_value_); \
	} while (0)

/* The bytes of the snapshot, or why there are none. */
int driver_read_error(
	const struct driver *d, const struct model_image *image, uint64_t offset, uint64_t length);
/* What a take, or an attach, is asked with. */
struct cowsnap_take_entry driver_take_entry(
	struct driver *d, struct driver_taken *taken, unsigned origin);
struct cowsnap_snapshot_info driver_info(struct driver *d, const struct driver_taken *taken);
/* Has d->scratch these bytes of @data? Fails the test, with the offset, if not. */
void driver_same(
	struct driver *d, const char *what, const uint8_t *data, uint64_t offset, uint64_t length);
/* Reads a range, and fails the test if it is not what the model has. */
void driver_compare(struct driver *d, struct driver_taken *taken, uint64_t offset, uint64_t length);
/* A random range of @size bytes, often of a few chunks only. */
void driver_range(struct driver *d, uint64_t size, uint64_t *offset, uint64_t *length);

/* rig.c: the context, devices, origins and stores of a stream. */
void rig_open(struct driver *d);
void rig_close(struct driver *d);
/* A part of these: context, queue and origins; stores, but for those that are attached; all. */
void rig_begin(struct driver *d);
void rig_open_stores(struct driver *d, const bool * not );
void rig_end(struct driver *d);
/* Opens a persistent store with its snapshot; @read NULL: without the state of an export. */
int rig_attach(struct driver *d, unsigned s, struct cowsnap_take_entry *entry,
	int (*read)(void *user, void *data, size_t bytes), void *user);
/* Makes the device of an origin longer. Returns: false if it cannot become longer. */
bool rig_grow(struct driver *d, unsigned o, uint64_t size_bytes);
/* How often the device of an origin was read; 0: it does not count. */
uint64_t rig_reads(const struct driver *d, unsigned o);

/* write.c: the write, and what may happen when a store is full. */
void write_step(struct driver *d);
enum cowsnap_decision write_decide(void *user, const struct cowsnap_trouble *trouble);
enum cowsnap_preimage_kind write_tell(void *user, struct cowsnap_preimage_ask *ask);

/* full.c: who loses when a store is full, and what was saved all the same. */
/* A write of d->write_* begins: nobody was asked yet. */
void full_begin(struct driver *d);
/* Could the store be too small for so many more chunks? */
bool full_possible(struct driver *d, unsigned s, uint64_t wanted);
/* What came of it. Returns: whether anybody lost. */
bool full_settle(struct driver *d, int rc, const bool *may_fail);
/* Learns what was saved of d->write_*. Returns: copies. */
uint64_t full_adopt(struct driver *d);

/* space.c: what a store says that it holds; reclaiming; limits. */
void space_check(struct driver *d, unsigned s, bool reclaimed);
void space_reclaim_step(struct driver *d);
void space_limit_step(struct driver *d);

/* snapshots.c: writes to snapshots, releases, detaching. */
void snapshots_write_step(struct driver *d);
void snapshots_release_step(struct driver *d);
void snapshots_downgrade_step(struct driver *d);
void snapshots_detach_step(struct driver *d);
void snapshots_check_info(struct driver *d, const struct model_image *image,
	const struct cowsnap_snapshot_info *info);

/* restart.c: persistent stores are closed or handed over, and opened in another context. */
void restart_step(struct driver *d);

/* changes.c */
void changes_step(struct driver *d);

/* origins.c: the volumes' own reads, and making them longer. */
void origins_read_step(struct driver *d);
void origins_resize_step(struct driver *d);
void origins_check(struct driver *d);

/* merge.c */
void merge_step(struct driver *d);
void merge_begin(struct driver *d, struct driver_taken *taken);
/* Runs one to its end; who cannot be saved for is dropped. */
void merge_end(struct driver *d, unsigned o);
/* Drops some of what is not merged, and ends all merges. */
void merge_end_all(struct driver *d);

#endif
