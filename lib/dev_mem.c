/* SPDX-License-Identifier: MIT
 *
 * A device in memory: reserved address space, zero until written.
 */
#include "dev.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "alloc.h"
#include "sync.h"

struct memory {
	uint8_t *pages;
	uint64_t size_bytes;
	uint64_t page_bytes;
	const struct cs_base *base;
};

/*
 * A snapshot reader may read a page of an origin while the host writes it. That race is by design:
 * the reader looks afterwards whether the chunk has been saved meanwhile, and if so drops what it
 * read. ThreadSanitizer cannot know, so for it every access to a device's bytes is atomic, in words
 * where they are whole. (Relaxed: no order is made up that the real program does not have.)
 */
#if CS_TSAN
static void get_bytes(void *buffer, const uint8_t *from, uint64_t length)
{
	uint8_t *to = buffer;

	while (length) {
		if (((uintptr_t)from & 7) == 0 && length >= 8) {
			uint64_t word = atomic_load_explicit(
				(const _Atomic uint64_t *)from, memory_order_relaxed);

			memcpy(to, &word, 8);
			to += 8, from += 8, length -= 8;
		} else {
			*to = atomic_load_explicit(
				(const _Atomic uint8_t *)from, memory_order_relaxed);
			to++, from++, length--;
		}
	}
}

/* @buffer NULL: zeroes. */
static void put_bytes(uint8_t *to, const void *buffer, uint64_t length)
{
	const uint8_t *from = buffer;

	for (uint64_t step; length; to += step, length -= step) {
		uint64_t word = 0;

		step = ((uintptr_t)to & 7) == 0 && length >= 8 ? 8 : 1;
		if (from) {
			memcpy(&word, from, step);
			from += step;
		}
		if (step == 8)
			atomic_store_explicit((_Atomic uint64_t *)to, word, memory_order_relaxed);
		else
			atomic_store_explicit(
				(_Atomic uint8_t *)to, *(uint8_t *)&word, memory_order_relaxed);
	}
}
#else
static inline void get_bytes(void *buffer, const uint8_t *from, uint64_t length)
{
	memcpy(buffer, from, length);
}

static inline void put_bytes(uint8_t *to, const void *buffer, uint64_t length)
{
	if (buffer)
		memcpy(to, buffer, length);
	else
		memset(to, 0, length);
}
#endif

static int memory_read(void *user, void *buffer, uint64_t offset, uint64_t length)
{
	const struct memory *m = user;

	get_bytes(buffer, m->pages + offset, length);
	return 0;
}

static int memory_write(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	struct memory *m = user;

	put_bytes(m->pages + offset, buffer, length);
	return 0;
}

/* Discards too: whole pages cost nothing afterwards, and only their edges are touched. */
static int memory_zero(void *user, uint64_t offset, uint64_t length)
{
	struct memory *m = user;
	uint64_t end = offset + length;
	uint64_t first_page = (offset + m->page_bytes - 1) / m->page_bytes * m->page_bytes;
	uint64_t end_page = end / m->page_bytes * m->page_bytes;

	if (first_page >= end_page) {
		put_bytes(m->pages + offset, NULL, length);
		return 0;
	}
	put_bytes(m->pages + offset, NULL, first_page - offset);
	cs_pages_discard(m->pages, first_page, end_page - first_page);
	put_bytes(m->pages + end_page, NULL, end - end_page);
	return 0;
}

static void memory_close(void *user)
{
	struct memory *m = user;

	cs_pages_release(m->pages, m->size_bytes);
	cs_free(m->base->alloc, m, sizeof(*m));
}

static const struct cowsnap_device_ops memory_ops = {
	.size = sizeof(memory_ops),
	.read = memory_read,
	.write = memory_write,
	.zero = memory_zero,
	.discard = memory_zero,
	.close = memory_close,
};

int cs_dev_memory(const struct cs_base *base, uint64_t size_bytes, struct cowsnap_device **device)
{
	struct cowsnap_device_options options = {
		.size = sizeof(options), .size_bytes = size_bytes, .name = "memory"};
	struct memory *m;
	int rc;

	if (!size_bytes || size_bytes > COWSNAP_SIZE_MAX) {
		cs_log(base, COWSNAP_LOG_ERROR, "memory device: size %llu",
			(unsigned long long)size_bytes);
		return size_bytes ? -EFBIG : -EINVAL;
	}
	m = cs_alloc_zeroed(base->alloc, sizeof(*m));
	if (!m)
		return -ENOMEM;
	m->base = base;
	m->size_bytes = size_bytes;
	m->page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
	m->pages = cs_pages_reserve(size_bytes);
	if (!m->pages) {
		cs_log(base, COWSNAP_LOG_ERROR, "memory device: no address space for %llu bytes",
			(unsigned long long)size_bytes);
		cs_free(base->alloc, m, sizeof(*m));
		return -ENOMEM;
	}
	rc = cs_dev_create(base, &memory_ops, &options, m, device);
	if (rc)
		memory_close(m);
	return rc;
}
