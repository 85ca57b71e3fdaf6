/* SPDX-License-Identifier: MIT
 *
 * The copier: making it, who issues its I/O, and the throttle's lock. Credits are in
 * copier_credits.c; the copying itself is the engines'.
 *
 * Counters: a table of threads, found by their pthread_self(). An entry is claimed once and never
 * given up; only its thread adds to it. Entry 0 is shared by all who find the table full.
 *
 * Invariants: who waits for the throttle is in `throttled`; a change of the throttle empties it.
 *
 * Locking: `throttle_lock` guards the throttle and who waits for it, `buffer_lock` the large
 * buffers. Neither is held over I/O, and never both.
 *
 * Failure: a copier is made whole or not at all.
 */
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "alloc.h"
#include "copier_parts.h"

#define INFLIGHT_DEFAULT (UINT64_C(64) << 20)
#define JOB_DEFAULT      (UINT64_C(1) << 20)
#define JOB_MIN          (UINT64_C(4) << 10)
#define JOB_MAX          (UINT64_C(64) << 20)

/* ---- Making ---------------------------------------------------------------------------------- */

int cs_copier_create(const struct cs_base *base, const struct cowsnap_copier_options *user_options,
	struct cowsnap_copier **out)
{
	struct cowsnap_copier_options options = {0};
	struct cowsnap_copier *c;
	int rc = cs_options_copy(
		base, "copier options", &options, sizeof(options), user_options, sizeof(options));

	if (rc)
		return rc;
	if (!options.inflight_bytes)
		options.inflight_bytes = INFLIGHT_DEFAULT;
	if (!options.job_bytes)
		options.job_bytes = JOB_DEFAULT;
	if (options.flags || options.job_bytes < JOB_MIN || options.job_bytes > JOB_MAX) {
		cs_log(base, COWSNAP_LOG_ERROR, "copier: flags 0x%x or job length %llu is refused",
			options.flags, (unsigned long long)options.job_bytes);
		return -EINVAL;
	}
	c = cs_alloc_aligned(base->alloc, sizeof(*c), CS_CACHE_BYTES);
	if (!c)
		return -ENOMEM;
	memset(c, 0, sizeof(*c));
	c->base = base;
	c->bound_bytes = options.inflight_bytes;
	c->job_bytes = options.job_bytes;
	c->large_bytes =
		(options.job_bytes + CS_BUFFER_ALIGN - 1) & ~(uint64_t)(CS_BUFFER_ALIGN - 1);
	cs_copier_init_credits(c);
	cs_throttle_set(&c->throttle, 0, 100);
	cs_mutex_init(&c->throttle_lock);
	cs_mutex_init(&c->buffer_lock);
	*out = c;
	return 0;
}

void cs_copier_destroy(struct cowsnap_copier *c)
{
	if (!c)
		return;
	for (unsigned i = 0; i < CS_COPIER_THREADS; i++)
		cs_free(c->base->alloc,
			atomic_load_explicit(&c->entry[i].small, memory_order_relaxed),
			CS_SMALL_BYTES + CS_PAD_ROOM);
	for (unsigned i = 0; i < c->large_count; i++)
		cs_free(c->base->alloc, c->large[i], c->large_bytes + CS_PAD_ROOM);
	cs_mutex_fini(&c->buffer_lock);
	cs_mutex_fini(&c->throttle_lock);
	cs_copier_fini_credits(c);
	cs_free(c->base->alloc, c, sizeof(*c));
}

/* ---- Threads --------------------------------------------------------------------------------- */

static struct cs_copier_entry *claim_entry(struct cowsnap_copier *c, unsigned i, uintptr_t self)
{
	uintptr_t nobody = 0;

	if (!atomic_compare_exchange_strong_explicit(
		    &c->key[i], &nobody, self, memory_order_relaxed, memory_order_relaxed))
		return NULL;
	/* Release: pairs with cs_copier_threads. */
	atomic_store_explicit(
		&c->entry[i].thread, (uint64_t)syscall(SYS_gettid), memory_order_release);
	return &c->entry[i];
}

struct cs_copier_entry *cs_copier_entry(struct cowsnap_copier *c)
{
	uintptr_t self = (uintptr_t)pthread_self();
	/* Entries 1 to 255, from a place that depends on all bits. */
	unsigned at = (unsigned)(((uint64_t)self * UINT64_C(0x9e3779b97f4a7c15)) >> 32) %
		      (CS_COPIER_THREADS - 1);

	for (unsigned i = 0; i < CS_COPIER_THREADS - 1; i++) {
		unsigned index = 1 + (at + i) % (CS_COPIER_THREADS - 1);
		uintptr_t key = atomic_load_explicit(&c->key[index], memory_order_relaxed);
		struct cs_copier_entry *mine;

		if (key == self)
			return &c->entry[index];
		if (key)
			continue;
		mine = claim_entry(c, index, self);
		if (mine)
			return mine;
	}
	return &c->entry[0];
}

unsigned cs_copier_thread(struct cowsnap_copier *c)
{
	struct cs_copier_entry *entry = cs_copier_entry(c);
	uint32_t number = atomic_load_explicit(&entry->number, memory_order_relaxed);

	if (entry == &c->entry[0])
		return (unsigned)((uintptr_t)pthread_self() >> 12);
	if (!number) {
		number = 1 + atomic_fetch_add_explicit(&c->thread_count, 1, memory_order_relaxed);
		atomic_store_explicit(&entry->number, number, memory_order_relaxed);
	}
	return number - 1;
}

size_t cs_copier_threads(struct cowsnap_copier *c, struct cowsnap_thread_io *threads, size_t count)
{
	size_t known = 0;

	/* The shared entry comes last. */
	for (unsigned i = 1; i <= CS_COPIER_THREADS; i++) {
		struct cs_copier_entry *e = &c->entry[i % CS_COPIER_THREADS];
		struct cowsnap_thread_io io = {
			/* Acquire: pairs with claim_entry. */
			.thread = atomic_load_explicit(&e->thread, memory_order_acquire),
			.reads = atomic_load_explicit(&e->reads, memory_order_relaxed),
			.read_bytes = atomic_load_explicit(&e->read_bytes, memory_order_relaxed),
			.writes = atomic_load_explicit(&e->writes, memory_order_relaxed),
			.write_bytes = atomic_load_explicit(&e->write_bytes, memory_order_relaxed),
		};

		if (!io.reads && !io.writes)
			continue;
		if (known < count)
			threads[known] = io;
		known++;
	}
	return known;
}

/* ---- Throttle -------------------------------------------------------------------------------- */

void cs_copier_set_throttle(struct cowsnap_copier *c, uint64_t bytes_per_s, unsigned share_percent)
{
	struct cs_waiter *all;

	cs_mutex_lock(&c->throttle_lock);
	cs_throttle_set(&c->throttle, bytes_per_s, share_percent);
	all = cs_waitlist_take(&c->throttled);
	cs_mutex_unlock(&c->throttle_lock);
	/* They ask again. */
	cs_waiters_wake(all);
}

uint64_t cs_copier_admit(struct cowsnap_copier *c, uint64_t bytes, struct cs_waiter *waiter)
{
	uint64_t until_ns;

	cs_mutex_lock(&c->throttle_lock);
	until_ns = cs_throttle_admit(&c->throttle, cs_monotonic_ns(), bytes);
	if (until_ns)
		cs_waitlist_add(&c->throttled, waiter);
	cs_mutex_unlock(&c->throttle_lock);
	return until_ns;
}

bool cs_copier_is_throttled(struct cowsnap_copier *c)
{
	bool throttled;

	cs_mutex_lock(&c->throttle_lock);
	throttled = c->throttle.bytes_per_s || c->throttle.share_percent < 100;
	cs_mutex_unlock(&c->throttle_lock);
	return throttled;
}

bool cs_copier_unthrottle(struct cowsnap_copier *c, struct cs_waiter *waiter)
{
	bool waited;

	cs_mutex_lock(&c->throttle_lock);
	waited = cs_waitlist_remove(&c->throttled, waiter);
	cs_mutex_unlock(&c->throttle_lock);
	return waited;
}

void cs_copier_pace(struct cowsnap_copier *c, uint64_t bytes)
{
	struct cs_task task;
	uint64_t until_ns;

	cs_task_init(&task, NULL, NULL);
	while ((until_ns = cs_copier_admit(c, bytes, &task.waiter))) {
		task.deadline_ns = until_ns;
		cs_task_sleep(&task);
		/* If it is not in the list any more, its wake is on its way. */
		if (task.timed_out && !cs_copier_unthrottle(c, &task.waiter))
			cs_task_sleep(&task);
	}
}

void cs_copier_piece_begins(struct cowsnap_copier *c)
{
	cs_mutex_lock(&c->throttle_lock);
	cs_throttle_begin(&c->throttle, cs_monotonic_ns());
	cs_mutex_unlock(&c->throttle_lock);
}

void cs_copier_piece_ends(struct cowsnap_copier *c)
{
	cs_mutex_lock(&c->throttle_lock);
	cs_throttle_end(&c->throttle, cs_monotonic_ns());
	cs_mutex_unlock(&c->throttle_lock);
}
