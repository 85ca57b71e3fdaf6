/* SPDX-License-Identifier: MIT
 *
 * Devices: random-access bytes behind a table of functions. This is the one place that checks
 * ranges, so that no table is ever handed one that lies outside its device.
 */
#ifndef CS_DEV_H
#define CS_DEV_H

#include <cowsnap.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "handle.h"
#include "obs.h"
#include "queue.h"

/* What a device serves as. One thing at a time: a store on an origin would eat itself. */
enum cs_dev_use {
	CS_DEV_IDLE = 0,
	CS_DEV_ORIGIN = 1,
	CS_DEV_STORE = 2,
};

struct cowsnap_device {
	struct cs_handle handle;
	_Atomic uint64_t size_bytes; /* it may grow: read it with cs_dev_size() */
	uint32_t block_size;         /* writes are multiples of it; a power of two */
	bool has_identity;
	_Atomic int claimed;               /* enum cs_dev_use */
	struct cowsnap_device *next_named; /* of the context; see api_device.c */
	struct cowsnap_device_ops ops;
	void *user;
	const struct cs_base *base;
	struct cowsnap_device_identity identity;
	char name[]; /* for the log */
};

/* Each makes an open device whose handle.bytes is set; give it back with cs_dev_destroy(), or with
 * cs_dev_fini() if its memory is somebody else's to free. Errors as the public function of the
 * same name. */
int cs_dev_create(const struct cs_base *base, const struct cowsnap_device_ops *ops,
	const struct cowsnap_device_options *options, void *user, struct cowsnap_device **device);
int cs_dev_memory(const struct cs_base *base, uint64_t size_bytes, struct cowsnap_device **device);
int cs_dev_file(const struct cs_base *base, const char *path,
	const struct cowsnap_file_options *options, struct cowsnap_device **device);
int cs_dev_uring(const struct cs_base *base, const char *path,
	const struct cowsnap_file_options *options, struct cowsnap_device **device);

/* Marks it closed and calls the table's close. No call may be running on it. */
void cs_dev_fini(struct cowsnap_device *device);
/* The same, and frees it; NULL is accepted. */
void cs_dev_destroy(struct cowsnap_device *device);

/* Takes the device for one use. Returns: 0, -EBADF (closed), -EBUSY (it has a use already). That
 * another handle may name the same bytes is the caller's to check with cs_dev_same(). */
int cs_dev_claim(struct cowsnap_device *device, enum cs_dev_use use);
void cs_dev_unclaim(struct cowsnap_device *device);
bool cs_dev_claimed(const struct cowsnap_device *device);

/* Are these the same bytes, as far as anybody can tell? */
bool cs_dev_same(const struct cowsnap_device *a, const struct cowsnap_device *b);

static inline uint64_t cs_dev_size(const struct cowsnap_device *device)
{
	return atomic_load_explicit(&device->size_bytes, memory_order_relaxed);
}

static inline bool cs_dev_writable(const struct cowsnap_device *device)
{
	return device->ops.write != NULL;
}

/* Has it a volatile cache? Without one each write is durable when it returns. */
static inline bool cs_dev_cached(const struct cowsnap_device *device)
{
	return device->ops.flush != NULL;
}

/* Can it write a few blocks durably without flushing all that is in its cache? */
static inline bool cs_dev_writes_through(const struct cowsnap_device *device)
{
	return !cs_dev_cached(device) || device->ops.write_durable != NULL;
}

/* As the public functions of the same name. */
int cs_dev_refresh(struct cowsnap_device *device);
int cs_dev_read(struct cowsnap_device *device, void *buffer, uint64_t offset, uint64_t length);
int cs_dev_write(
	struct cowsnap_device *device, const void *buffer, uint64_t offset, uint64_t length);
int cs_dev_zero(struct cowsnap_device *device, uint64_t offset, uint64_t length);
int cs_dev_discard(struct cowsnap_device *device, uint64_t offset, uint64_t length);
int cs_dev_flush(struct cowsnap_device *device);
/* The one of them that a request asks for. */
int cs_dev_call(struct cowsnap_device *device, const struct cowsnap_io *io);

/* What no table needs to see: a closed device, a range outside, a write to what cannot be written,
 * parts of blocks, an unknown kind. Returns: 0 or what the function for that kind returns. */
int cs_dev_check(const struct cowsnap_device *device, enum cowsnap_io_kind kind, uint64_t offset,
	uint64_t length);
/* Cuts a range to its whole blocks: what lies beside it in a block is still needed. Returns: false
 * if there are none. */
bool cs_dev_whole_blocks(const struct cowsnap_device *device, uint64_t *offset, uint64_t *length);

/* What is written where a table cannot zero. As long as the largest block, and aligned. */
#define CS_DEV_ZEROES_BYTES 65536u
extern const uint8_t cs_dev_zeroes[CS_DEV_ZEROES_BYTES];

/*
 * Starts a request whose kind, buffer, offset, length and done are set. On the thread that polls
 * @queue.
 * Returns: true: it has ended with *@error, and done is not called. False: done will be called in a
 * poll, never inside this.
 */
bool cs_dev_start(struct cowsnap_device *device, struct cowsnap_queue *queue, struct cowsnap_io *io,
	int *error);
/* The same for one that has passed cs_dev_check() and counts as an operation of the queue until its
 * end; done is always called. */
void cs_dev_submit(
	struct cowsnap_device *device, struct cowsnap_queue *queue, struct cowsnap_io *io);
/* As cowsnap_io_complete() by a source of the request's queue, from its poll: goes on at once. */
void cs_io_finish(struct cowsnap_io *io, int error);

/* Writes, and flushes if the device cannot write through its cache. */
int cs_dev_write_durable(
	struct cowsnap_device *device, const void *buffer, uint64_t offset, uint64_t length);
/* Writes zeroes, which keeps the space that a range has; cs_dev_zero() may give it up. */
int cs_dev_write_zeroes(struct cowsnap_device *device, uint64_t offset, uint64_t length);
/* Returns: 0, or -EBUSY (another process is there). */
int cs_dev_lock(struct cowsnap_device *device, enum cowsnap_lock lock);

#endif
