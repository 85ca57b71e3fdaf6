/* SPDX-License-Identifier: MIT
 *
 * Devices: opening, closing, and the plain calls.
 */
#include "api_device.h"

static int adopt(
	struct cowsnap_ctx *ctx, int rc, struct cowsnap_device *device, struct cowsnap_device **out)
{
	if (rc)
		return rc;
	cs_ctx_adopt(ctx, &device->handle, device->handle.bytes);
	*out = device;
	return 0;
}

int cowsnap_device_file(struct cowsnap_ctx *ctx, const char *path,
	const struct cowsnap_file_options *options, struct cowsnap_device **out)
{
	struct cowsnap_device *device = NULL;
	int rc = cs_dev_file(&ctx->base, path, options, &device);

	return adopt(ctx, rc, device, out);
}

int cowsnap_device_uring(struct cowsnap_ctx *ctx, const char *path,
	const struct cowsnap_file_options *options, struct cowsnap_device **out)
{
	struct cowsnap_device *device = NULL;
	int rc = cs_dev_uring(&ctx->base, path, options, &device);

	return adopt(ctx, rc, device, out);
}

int cowsnap_device_memory(struct cowsnap_ctx *ctx, uint64_t size_bytes, struct cowsnap_device **out)
{
	struct cowsnap_device *device = NULL;
	int rc = cs_dev_memory(&ctx->base, size_bytes, &device);

	return adopt(ctx, rc, device, out);
}

int cowsnap_device_create(struct cowsnap_ctx *ctx, const struct cowsnap_device_ops *ops,
	const struct cowsnap_device_options *options, void *user, struct cowsnap_device **out)
{
	struct cowsnap_device *device = NULL;
	int rc = cs_dev_create(&ctx->base, ops, options, user, &device);

	return adopt(ctx, rc, device, out);
}

int cs_api_name_device(struct cowsnap_ctx *ctx, struct cowsnap_device *device)
{
	int rc = 0;

	if (!device)
		return -EINVAL;
	if (cs_handle_closed(&device->handle))
		return -EBADF;
	if (cs_dev_claimed(device))
		return -EBUSY; /* also the memory that a store made for itself */
	if (device->handle.ctx != ctx)
		return -EXDEV;
	cs_mutex_lock(&ctx->admin);
	for (struct cowsnap_device *d = ctx->named; d && !rc; d = d->next_named) {
		if (cs_dev_same(d, device))
			rc = -EBUSY;
	}
	if (!rc) {
		device->next_named = ctx->named;
		ctx->named = device;
	}
	cs_mutex_unlock(&ctx->admin);
	if (rc)
		cs_log(&ctx->base, COWSNAP_LOG_ERROR,
			"device %s is an origin or a store already, perhaps under another path",
			device->name);
	return rc;
}

void cs_api_unname_device(struct cowsnap_device *device)
{
	struct cowsnap_ctx *ctx = device->handle.ctx;
	struct cowsnap_device **at = &ctx->named;

	cs_mutex_lock(&ctx->admin);
	while (*at != device)
		at = &(*at)->next_named;
	*at = device->next_named;
	cs_mutex_unlock(&ctx->admin);
}

int cowsnap_device_close(struct cowsnap_device *device)
{
	if (!device)
		return 0;
	if (cs_handle_closed(&device->handle))
		return -EBADF;
	if (cs_dev_claimed(device)) {
		cs_log(device->base, COWSNAP_LOG_ERROR,
			"device %s not closed: an origin or a store is on it", device->name);
		return -EBUSY;
	}
	cs_ctx_retire(&device->handle);
	cs_dev_fini(device);
	return 0;
}

uint64_t cowsnap_device_size(const struct cowsnap_device *device)
{
	return cs_handle_closed(&device->handle) ? 0 : cs_dev_size(device);
}

int cowsnap_device_refresh(struct cowsnap_device *device)
{
	return cs_dev_refresh(device);
}

int cowsnap_device_read(
	struct cowsnap_device *device, void *buffer, uint64_t offset, uint64_t length)
{
	return cs_dev_read(device, buffer, offset, length);
}

int cowsnap_device_write(
	struct cowsnap_device *device, const void *buffer, uint64_t offset, uint64_t length)
{
	return cs_dev_write(device, buffer, offset, length);
}

int cowsnap_device_zero(struct cowsnap_device *device, uint64_t offset, uint64_t length)
{
	return cs_dev_zero(device, offset, length);
}

int cowsnap_device_discard(struct cowsnap_device *device, uint64_t offset, uint64_t length)
{
	return cs_dev_discard(device, offset, length);
}

int cowsnap_device_flush(struct cowsnap_device *device)
{
	return cs_dev_flush(device);
}

int cowsnap_device_submit(
	struct cowsnap_device *device, struct cowsnap_queue *queue, struct cowsnap_io *io)
{
	int rc;

	if (!device || !queue || !io || !io->done)
		return -EINVAL;
	if (cs_handle_closed(&queue->handle))
		return -EBADF;
	rc = cs_dev_check(device, io->kind, io->offset, io->length);
	if (rc)
		return rc;
	if (queue->handle.ctx != device->handle.ctx)
		return -EXDEV;
	cs_dev_submit(device, queue, io);
	return 0;
}
