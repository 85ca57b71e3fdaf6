/* SPDX-License-Identifier: MIT
 *
 * Devices: checks, and the fallbacks for members that a table leaves out.
 *
 * A device is open from its creation to cs_dev_fini(); while open it is idle, an origin, or a
 * store's.
 *
 * Invariants:
 *  D1 A table is called only while its device is open, with ranges that lie inside the device, and
 *     with writes and zeroes of whole blocks.
 *  D2 A device has one use at a time.
 *
 * Locking: none. The use is one atomic word, and so is the size, which only rises; next_named is
 * the context's.
 *
 * Failure: a table's error is passed on. A zero that failed may have been done in part.
 */
#include "dev.h"

#include <errno.h>
#include <string.h>

#include "alloc.h"
#include "sync.h"

#define BLOCK_SIZE_MAX CS_DEV_ZEROES_BYTES

const _Alignas(4096) uint8_t cs_dev_zeroes[CS_DEV_ZEROES_BYTES];

static int check_options(const struct cs_base *base, const struct cowsnap_device_ops *ops,
	const struct cowsnap_device_options *options)
{
	const char *name = options->name ? options->name : "device";
	uint32_t block = options->block_size;

	if (!ops->read) {
		cs_log(base, COWSNAP_LOG_ERROR, "%s: the table has no read", name);
		return -EINVAL;
	}
	if (options->flags) {
		cs_log(base, COWSNAP_LOG_ERROR, "%s: unknown device flags 0x%x", name,
			options->flags);
		return -EINVAL;
	}
	if (!options->size_bytes) {
		cs_log(base, COWSNAP_LOG_ERROR, "%s: a device of 0 bytes", name);
		return -EINVAL;
	}
	if ((block & (block - 1)) || block > BLOCK_SIZE_MAX) {
		cs_log(base, COWSNAP_LOG_ERROR, "%s: block size %u is not a power of two up to %u",
			name, block, BLOCK_SIZE_MAX);
		return -EINVAL;
	}
	if (options->size_bytes > COWSNAP_SIZE_MAX) {
		cs_log(base, COWSNAP_LOG_ERROR, "%s: %llu bytes are more than COWSNAP_SIZE_MAX",
			name, (unsigned long long)options->size_bytes);
		return -EFBIG;
	}
	return 0;
}

int cs_dev_create(const struct cs_base *base, const struct cowsnap_device_ops *user_ops,
	const struct cowsnap_device_options *user_options, void *user,
	struct cowsnap_device **device)
{
	struct cowsnap_device_ops ops = {0};
	struct cowsnap_device_options options = {0};
	struct cowsnap_device *dev;
	size_t bytes;
	int rc;

	rc = cs_options_copy(base, "device table", &ops, sizeof(ops), user_ops, sizeof(ops));
	if (!rc)
		rc = cs_options_copy(base, "device options", &options, sizeof(options),
			user_options, sizeof(options));
	if (!rc)
		rc = check_options(base, &ops, &options);
	if (rc)
		return rc;
	if (!options.name)
		options.name = "device";
	bytes = sizeof(*dev) + strlen(options.name) + 1;
	dev = cs_alloc_zeroed(base->alloc, bytes);
	if (!dev)
		return -ENOMEM;
	dev->handle.bytes = bytes;
	atomic_init(&dev->size_bytes, options.size_bytes);
	dev->block_size = options.block_size ? options.block_size : 1;
	dev->ops = ops;
	dev->user = user;
	dev->base = base;
	memcpy(dev->name, options.name, strlen(options.name) + 1);
	if (ops.identity) {
		rc = ops.identity(user, &dev->identity);
		if (rc) {
			cs_log(base, COWSNAP_LOG_ERROR, "%s: identity failed: error %d", dev->name,
				-rc);
			cs_free(base->alloc, dev, bytes);
			return rc;
		}
		dev->has_identity = true;
	}
	*device = dev;
	return 0;
}

void cs_dev_fini(struct cowsnap_device *dev)
{
	atomic_store_explicit(&dev->handle.closed, true, memory_order_relaxed);
	if (dev->ops.close)
		dev->ops.close(dev->user);
}

void cs_dev_destroy(struct cowsnap_device *dev)
{
	if (!dev)
		return;
	cs_dev_fini(dev);
	cs_free(dev->base->alloc, dev, dev->handle.bytes);
}

int cs_dev_claim(struct cowsnap_device *dev, enum cs_dev_use use)
{
	int idle = CS_DEV_IDLE;

	if (cs_handle_closed(&dev->handle))
		return -EBADF;
	/* Acquire: what the last use wrote is over; pairs with cs_dev_unclaim. */
	if (!atomic_compare_exchange_strong_explicit(
		    &dev->claimed, &idle, use, memory_order_acquire, memory_order_relaxed))
		return -EBUSY;
	return 0;
}

void cs_dev_unclaim(struct cowsnap_device *dev)
{
	/* Release: pairs with cs_dev_claim. */
	atomic_store_explicit(&dev->claimed, CS_DEV_IDLE, memory_order_release);
}

bool cs_dev_claimed(const struct cowsnap_device *dev)
{
	return atomic_load_explicit(&dev->claimed, memory_order_relaxed) != CS_DEV_IDLE;
}

bool cs_dev_same(const struct cowsnap_device *a, const struct cowsnap_device *b)
{
	if (a == b)
		return true;
	return a->has_identity && b->has_identity &&
	       memcmp(&a->identity, &b->identity, sizeof(a->identity)) == 0;
}

static inline int check_range(const struct cowsnap_device *dev, uint64_t offset, uint64_t length)
{
	uint64_t size = cs_dev_size(dev);

	if (cs_unlikely(cs_handle_closed(&dev->handle)))
		return -EBADF;
	/* Also false for length 0, which wraps. */
	if (cs_likely(length - 1 < size && offset <= size - length))
		return 0;
	return cs_range_check(offset, length, size);
}

static inline int check_change(const struct cowsnap_device *dev, uint64_t offset, uint64_t length)
{
	int rc = check_range(dev, offset, length);

	if (cs_unlikely(rc))
		return rc;
	return cs_likely(dev->ops.write) ? 0 : -EROFS;
}

static inline bool aligned(const struct cowsnap_device *dev, uint64_t offset, uint64_t length)
{
	return ((offset | length) & (dev->block_size - 1)) == 0;
}

int cs_dev_check(const struct cowsnap_device *dev, enum cowsnap_io_kind kind, uint64_t offset,
	uint64_t length)
{
	int rc;

	switch (kind) {
	case COWSNAP_IO_READ:
		return check_range(dev, offset, length);
	case COWSNAP_IO_WRITE:
	case COWSNAP_IO_ZERO:
	case COWSNAP_IO_WRITE_DURABLE:
		rc = check_change(dev, offset, length);
		if (cs_unlikely(rc))
			return rc;
		return cs_likely(aligned(dev, offset, length)) ? 0 : -EINVAL;
	case COWSNAP_IO_DISCARD:
		return check_change(dev, offset, length);
	case COWSNAP_IO_FLUSH:
		return cs_handle_closed(&dev->handle) ? -EBADF : 0;
	}
	return -EINVAL;
}

int cs_dev_read(struct cowsnap_device *dev, void *buffer, uint64_t offset, uint64_t length)
{
	int rc = check_range(dev, offset, length);

	if (cs_unlikely(rc))
		return rc;
	return dev->ops.read(dev->user, buffer, offset, length);
}

int cs_dev_write(struct cowsnap_device *dev, const void *buffer, uint64_t offset, uint64_t length)
{
	int rc = check_change(dev, offset, length);

	if (cs_unlikely(rc))
		return rc;
	if (cs_unlikely(!aligned(dev, offset, length)))
		return -EINVAL;
	return dev->ops.write(dev->user, buffer, offset, length);
}

static int write_zeroes(struct cowsnap_device *dev, uint64_t offset, uint64_t length)
{
	while (length) {
		uint64_t piece = length < sizeof(cs_dev_zeroes) ? length : sizeof(cs_dev_zeroes);
		int rc = dev->ops.write(dev->user, cs_dev_zeroes, offset, piece);

		if (rc)
			return rc;
		offset += piece;
		length -= piece;
	}
	return 0;
}

int cs_dev_write_zeroes(struct cowsnap_device *dev, uint64_t offset, uint64_t length)
{
	int rc = check_change(dev, offset, length);

	if (rc)
		return rc;
	return aligned(dev, offset, length) ? write_zeroes(dev, offset, length) : -EINVAL;
}

int cs_dev_zero(struct cowsnap_device *dev, uint64_t offset, uint64_t length)
{
	int rc = check_change(dev, offset, length);

	if (rc)
		return rc;
	if (!aligned(dev, offset, length))
		return -EINVAL;
	if (dev->ops.zero) {
		rc = dev->ops.zero(dev->user, offset, length);
		/* A file finds out only now that its file system cannot. */
		if (rc != -EOPNOTSUPP)
			return rc;
	}
	return write_zeroes(dev, offset, length);
}

bool cs_dev_whole_blocks(const struct cowsnap_device *dev, uint64_t *offset, uint64_t *length)
{
	uint64_t mask = dev->block_size - 1;
	uint64_t first = (*offset + mask) & ~mask;
	uint64_t end = (*offset + *length) & ~mask;

	if (first >= end)
		return false;
	*offset = first;
	*length = end - first;
	return true;
}

int cs_dev_discard(struct cowsnap_device *dev, uint64_t offset, uint64_t length)
{
	int rc = check_change(dev, offset, length);

	if (rc || !dev->ops.discard || !cs_dev_whole_blocks(dev, &offset, &length))
		return rc;
	return dev->ops.discard(dev->user, offset, length);
}

int cs_dev_flush(struct cowsnap_device *dev)
{
	if (cs_handle_closed(&dev->handle))
		return -EBADF;
	return dev->ops.flush ? dev->ops.flush(dev->user) : 0;
}

int cs_dev_write_durable(
	struct cowsnap_device *dev, const void *buffer, uint64_t offset, uint64_t length)
{
	int rc = check_change(dev, offset, length);

	if (rc)
		return rc;
	if (!aligned(dev, offset, length))
		return -EINVAL;
	if (cs_dev_cached(dev) && dev->ops.write_durable)
		return dev->ops.write_durable(dev->user, buffer, offset, length);
	rc = dev->ops.write(dev->user, buffer, offset, length);
	return rc ? rc : cs_dev_flush(dev);
}

int cs_dev_lock(struct cowsnap_device *dev, enum cowsnap_lock lock)
{
	int rc = dev->ops.lock ? dev->ops.lock(dev->user, lock) : 0;

	if (rc)
		cs_log(dev->base, COWSNAP_LOG_ERROR, "%s: %s, error %d", dev->name,
			rc == -EBUSY ? "it is in use by another process" : "it cannot be locked",
			rc);
	return rc;
}

int cs_dev_refresh(struct cowsnap_device *dev)
{
	uint64_t now_bytes, before_bytes = cs_dev_size(dev);
	int rc;

	if (cs_handle_closed(&dev->handle))
		return -EBADF;
	if (!dev->ops.length)
		return 0;
	rc = dev->ops.length(dev->user, &now_bytes);
	if (rc)
		return rc;
	if (now_bytes > COWSNAP_SIZE_MAX)
		now_bytes = COWSNAP_SIZE_MAX;
	while (now_bytes > before_bytes &&
		!atomic_compare_exchange_weak_explicit(&dev->size_bytes, &before_bytes, now_bytes,
			memory_order_relaxed, memory_order_relaxed))
		;
	if (now_bytes >= before_bytes)
		return 0;
	cs_log(dev->base, COWSNAP_LOG_ERROR, "%s: it has %llu bytes now, and had %llu", dev->name,
		(unsigned long long)now_bytes, (unsigned long long)before_bytes);
	return -ERANGE;
}
