/* SPDX-License-Identifier: MIT
 *
 * Any bytes as the image of a persistent store: looked at, opened, read, written to, opened again.
 *
 * Input: 4 bytes of choices (see struct choices), then the image; the device is as long as that.
 *
 * Held against: what a plain reading of the records here says; the image before and after; a bound
 * on what is read, and one on memory. A broken promise ends the process.
 */
#include <cowsnap.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz/fuzz.h"

/* A map, its store and one batch of records: the device's own length comes on top. */
#define MEMORY_MAX (UINT64_C(12) << 20)

#define MUST(condition)                                                                         \
	do {                                                                                    \
		if (!(condition)) {                                                             \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
			abort();                                                                \
		}                                                                               \
	} while (0)

struct choices {
	bool no_flush;
	bool durable;
	bool write_loses;
	bool write_all;
	uint64_t origin_bytes;
	uint8_t step; /* between chunks that are written */
};

struct memory {
	uint64_t live_bytes;
	uint64_t max_bytes;
};

struct bytes {
	uint8_t *data;
	uint64_t length;
	uint64_t read_bytes;
	uint64_t writes;
};

struct world {
	struct choices choices;
	struct memory memory;
	struct bytes store, origin;
	uint8_t *before;   /* the image as it came */
	uint8_t *expected; /* of the snapshot */
	uint8_t *scratch;
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *store_device, *origin_device;
	struct cowsnap_origin *host;
	struct cowsnap_store *opened;
	struct cowsnap_snapshot *snapshot;
};

/* ---- Tables ---------------------------------------------------------------------------------- */

static void *take_memory(void *user, size_t bytes, size_t align)
{
	struct memory *memory = user;
	void *block = NULL;

	memory->live_bytes += bytes;
	MUST(memory->live_bytes <= memory->max_bytes);
	MUST(posix_memalign(&block, align, bytes) == 0);
	return block;
}

static void give_memory(void *user, void *block, size_t bytes)
{
	struct memory *memory = user;

	memory->live_bytes -= bytes;
	free(block);
}

static int read_bytes(void *user, void *buffer, uint64_t offset, uint64_t length)
{
	struct bytes *bytes = user;

	MUST(offset < bytes->length && length <= bytes->length - offset);
	memcpy(buffer, bytes->data + offset, length);
	bytes->read_bytes += length;
	return 0;
}

static int write_bytes(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	struct bytes *bytes = user;

	MUST(offset < bytes->length && length <= bytes->length - offset);
	memcpy(bytes->data + offset, buffer, length);
	bytes->writes++;
	return 0;
}

static int flush_bytes(void *user)
{
	(void)user;
	return 0;
}

static struct cowsnap_device *make_device(struct world *w, struct bytes *bytes)
{
	struct cowsnap_device_ops ops = {
		.size = sizeof(ops),
		.read = read_bytes,
		.write = write_bytes,
		.flush = w->choices.no_flush ? NULL : flush_bytes,
		.write_durable = w->choices.durable ? write_bytes : NULL,
	};
	struct cowsnap_device_options options = {
		.size = sizeof(options), .size_bytes = bytes->length};
	struct cowsnap_device *device;

	MUST(cowsnap_device_create(w->ctx, &ops, &options, bytes, &device) == 0);
	return device;
}

/* ---- A plain reader of what was accepted ----------------------------------------------------- */

static uint64_t get(const uint8_t *at)
{
	uint64_t value = 0;

	for (int i = 7; i >= 0; i--)
		value = value << 8 | at[i];
	return value;
}

/* Puts what the records say into w->expected. Returns: how many there are. */
static uint64_t apply_records(struct world *w, uint64_t chunk)
{
	uint64_t in_area = chunk / 16, chunks = w->store.length / chunk;
	uint64_t origin_chunks = (w->choices.origin_bytes + chunk - 1) / chunk;

	memcpy(w->expected, w->origin.data, w->choices.origin_bytes);
	for (uint64_t n = 0;; n++) {
		uint64_t area = 1 + n / in_area * (in_area + 1);
		const uint8_t *slot = w->store.data + area * chunk + n % in_area * 16;
		uint64_t origin, store, length;

		MUST(area < chunks);
		origin = get(slot);
		store = get(slot + 8);
		if (!store) {
			MUST(!origin);
			return n;
		}
		MUST(store < chunks && store % (in_area + 1) != 1);
		MUST(origin < origin_chunks);
		length = w->choices.origin_bytes - origin * chunk;
		memcpy(w->expected + origin * chunk, w->store.data + store * chunk,
			length < chunk ? length : chunk);
	}
}

/* ---- Steps ----------------------------------------------------------------------------------- */

static int look(struct world *w, struct cowsnap_dm_report *report)
{
	struct cowsnap_dm_inspect_options options = {
		.size = sizeof(options), .origin_bytes = w->choices.origin_bytes};

	return cowsnap_dm_inspect(w->store_device, &options, report, sizeof(*report));
}

static int attach(struct world *w)
{
	struct cowsnap_dm_options options = {.size = sizeof(options), .device = w->store_device};
	struct cowsnap_take_entry entry = {.origin = w->host,
		.on_full = w->choices.write_loses ? COWSNAP_LOSER_WRITE : COWSNAP_LOSER_SNAPSHOT};
	int rc = cowsnap_store_dm_open(w->ctx, &options, &entry, &w->opened);

	if (rc == 0)
		w->snapshot = entry.snapshot;
	return rc;
}

static enum cowsnap_snapshot_state state(struct world *w)
{
	struct cowsnap_snapshot_info info;

	MUST(cowsnap_snapshot_info(w->snapshot, &info, sizeof(info)) == 0);
	return info.state;
}

static void check_snapshot(struct world *w)
{
	int rc = cowsnap_snapshot_read(w->snapshot, w->scratch, 0, w->choices.origin_bytes);

	if (state(w) == COWSNAP_SNAPSHOT_INVALID) {
		MUST(rc == -ESTALE);
		return;
	}
	MUST(rc == 0);
	MUST(memcmp(w->scratch, w->expected, w->choices.origin_bytes) == 0);
}

static void write_some(struct world *w, uint64_t chunk)
{
	uint64_t step = chunk * (w->choices.write_all ? 1 : 1 + w->choices.step);

	for (uint64_t at = w->choices.step; at < w->choices.origin_bytes; at += step) {
		struct cowsnap_op op;
		int rc = cowsnap_write_begin(w->host, COWSNAP_WRITE, at, 1, &op);

		if (rc) {
			MUST(rc == -ENOSPC && w->choices.write_loses);
			continue;
		}
		w->origin.data[at] ^= 0xff;
		cowsnap_write_end(&op);
	}
}

static void detach(struct world *w)
{
	MUST(cowsnap_snapshot_deactivate(w->snapshot) == 0);
	cowsnap_snapshot_unref(w->snapshot);
	MUST(cowsnap_store_close(w->opened) == 0);
	MUST(cowsnap_origin_close(w->host) == 0);
	MUST(cowsnap_origin_open(w->ctx, w->origin_device, &w->host) == 0);
	w->opened = NULL;
}

/* Nothing but the stale tail has changed. */
static void check_wiped(const struct world *w, const struct cowsnap_dm_report *report)
{
	uint64_t from = report->stale_bytes ? report->stale_offset : 0;
	uint64_t to = from + report->stale_bytes;

	MUST(memcmp(w->before, w->store.data, from) == 0);
	MUST(memcmp(w->before + to, w->store.data + to, w->store.length - to) == 0);
	for (uint64_t b = from; b < to; b++)
		MUST(w->store.data[b] == 0);
}

static void check_refused(struct world *w, int rc, const struct cowsnap_dm_report *report)
{
	MUST(rc == -ENOENT || rc == -EMEDIUMTYPE || rc == -EBADMSG);
	MUST(report->fault[0] && report->reason[0]);
	MUST(attach(w) == rc);
	MUST(!w->store.writes);
	MUST(memcmp(w->before, w->store.data, w->store.length) == 0);
}

static void live_on(struct world *w, const struct cowsnap_dm_report *first)
{
	struct cowsnap_dm_report second;
	uint64_t records;
	bool invalid;

	write_some(w, first->chunk_size_bytes);
	check_snapshot(w);
	invalid = state(w) == COWSNAP_SNAPSHOT_INVALID;
	detach(w);
	MUST(look(w, &second) == 0);
	MUST(second.valid == !invalid);
	MUST(second.generation == first->generation);
	MUST(second.chunk_size_bytes == first->chunk_size_bytes);
	if (second.valid) {
		MUST(second.stale_bytes == 0);
		MUST(second.records >= first->records);
		memcpy(w->scratch, w->expected, w->choices.origin_bytes);
		records = apply_records(w, second.chunk_size_bytes);
		MUST(records == second.records);
		MUST(memcmp(w->scratch, w->expected, w->choices.origin_bytes) == 0);
	}
	MUST(attach(w) == 0);
	MUST((state(w) == COWSNAP_SNAPSHOT_INVALID) == invalid);
	check_snapshot(w);
	MUST(cowsnap_snapshot_drop(w->snapshot) == 0);
	cowsnap_snapshot_unref(w->snapshot);
	MUST(cowsnap_store_close(w->opened) == 0);
	w->opened = NULL;
	MUST(look(w, &second) == -ENOENT);
}

static void run(struct world *w)
{
	struct cowsnap_dm_report report;
	/* Header and areas once, and once more to name both of a pair. */
	uint64_t most = 2 * w->store.length + 64;
	int rc = look(w, &report);

	MUST(w->store.read_bytes <= most);
	w->store.read_bytes = 0;
	MUST(!w->store.writes);
	MUST(report.device_bytes == w->store.length);
	if (rc) {
		check_refused(w, rc, &report);
		MUST(w->store.read_bytes <= most);
		return;
	}
	MUST(!report.fault[0]);
	MUST(attach(w) == 0);
	MUST(w->store.read_bytes <= most);
	check_wiped(w, &report);
	if (report.valid) {
		MUST(apply_records(w, report.chunk_size_bytes) == report.records);
		MUST(report.records <= report.record_limit);
	}
	MUST(report.valid == (state(w) == COWSNAP_SNAPSHOT_ACTIVE));
	check_snapshot(w);
	live_on(w, &report);
}

/* ---- An input -------------------------------------------------------------------------------- */

static struct choices choose(const uint8_t *data)
{
	return (struct choices){
		.no_flush = data[0] & 1,
		.durable = data[0] & 2,
		.write_loses = data[0] & 4,
		.write_all = data[0] & 8,
		.origin_bytes = 1 + ((uint64_t)data[1] | (uint64_t)data[2] << 8) % 65536 * 2,
		.step = data[3],
	};
}

static void *must_have(size_t bytes)
{
	void *block = calloc(1, bytes);

	MUST(block);
	return block;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct world w = {0};
	struct cowsnap_allocator table = {.size = sizeof(table),
		.user = &w.memory,
		.alloc = take_memory,
		.free = give_memory};
	struct cowsnap_ctx_options options = {.size = sizeof(options), .allocator = &table};

	if (size <= FUZZ_CHOICES)
		return 0;
	w.choices = choose(data);
	w.memory.max_bytes = MEMORY_MAX + 64 * size;
	w.store.length = size - FUZZ_CHOICES;
	w.store.data = must_have(w.store.length);
	memcpy(w.store.data, data + FUZZ_CHOICES, w.store.length);
	w.before = must_have(w.store.length);
	memcpy(w.before, w.store.data, w.store.length);
	w.origin.length = w.choices.origin_bytes;
	w.origin.data = must_have(w.origin.length);
	w.expected = must_have(w.origin.length);
	w.scratch = must_have(w.origin.length);
	for (uint64_t b = 0; b < w.origin.length; b++)
		w.origin.data[b] = (uint8_t)(b % 251 + b / 512);

	MUST(cowsnap_ctx_create(&options, &w.ctx) == 0);
	w.store_device = make_device(&w, &w.store);
	w.origin_device = make_device(&w, &w.origin);
	MUST(cowsnap_origin_open(w.ctx, w.origin_device, &w.host) == 0);
	run(&w);
	MUST(cowsnap_origin_close(w.host) == 0);
	MUST(cowsnap_device_close(w.store_device) == 0);
	MUST(cowsnap_device_close(w.origin_device) == 0);
	MUST(cowsnap_ctx_destroy(w.ctx) == 0);
	MUST(w.memory.live_bytes == 0);
	free(w.store.data);
	free(w.origin.data);
	free(w.before);
	free(w.expected);
	free(w.scratch);
	return 0;
}
