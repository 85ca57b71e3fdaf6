/* SPDX-License-Identifier: MIT
 *
 * The copier: credits, and the copying itself, on the thread that asks.
 *
 * Credits: `inflight` is the bytes that are reserved. A reservation that fits is one compare-and-
 * exchange. One that does not takes a ticket and sleeps until its turn has come and it fits; while
 * anybody has a ticket, newcomers take one too, so that a long copy is not passed by short ones for
 * ever.
 *
 * Copying: the pieces of the union of all targets' source ranges, in ascending order; each is read
 * into a buffer once and written from there. Short copies use small buffers, one kept for each
 * thread, so that a 4 KiB copy stays in that thread's cache; long ones share a few large buffers.
 *
 * Counters: a table of threads, found by their pthread_self(). An entry is claimed once and never
 * given up; only its thread adds to it. Entry 0 is shared by all who find the table full.
 *
 * Invariants:
 *  P1 inflight <= bound. No reservation is longer than the bound, so the first in line is served
 *     when all others have released.
 *  P2 A thread that waits has raised `waiting` before it looks at `inflight`; one that releases
 *     lowers `inflight` before it looks at `waiting`. Both are sequentially consistent, so no
 *     wake-up is lost.
 *  P3 A target that has an error is not written any more.
 *
 * Locking: `credit_lock` guards the tickets; it is held by threads that sleep or wake sleepers.
 * `buffer_lock` guards the list of large buffers. Neither is held over I/O, and never both.
 *
 * Failure: without memory for a large buffer a copy goes on with a small one, without that it
 * fails as a whole with -ENOMEM before anything is read.
 */
#include "copier.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "alloc.h"
#include "sync.h"

#define INFLIGHT_DEFAULT (UINT64_C(64) << 20)
#define JOB_DEFAULT      (UINT64_C(1) << 20)
#define JOB_MIN          (UINT64_C(4) << 10)
#define JOB_MAX          (UINT64_C(64) << 20)

/* Also the largest block of a device: a buffer always holds a whole one. */
#define SMALL_BYTES  UINT64_C(65536)
#define PAD_ROOM     UINT64_C(65536) /* behind each buffer, to fill up the last block of a target */
#define BUFFER_ALIGN 4096u
#define LARGE_KEPT   16u /* large buffers that are kept when not in use */

#define THREADS 256u /* entries; 0 is shared */

struct thread_entry {
	_Alignas(CS_CACHE_BYTES) _Atomic uint64_t reads;
	_Atomic uint64_t read_bytes;
	_Atomic uint64_t writes;
	_Atomic uint64_t write_bytes;
	_Atomic uint64_t thread;  /* gettid at the first copy */
	_Atomic(uint8_t *) small; /* a small buffer not in use */
};

struct cowsnap_copier {
	const struct cs_base *base;
	uint64_t bound_bytes;
	uint64_t job_bytes;
	uint64_t large_bytes; /* length of a large buffer, without its PAD_ROOM */

	_Alignas(CS_CACHE_BYTES) _Atomic uint64_t inflight;
	_Atomic uint32_t waiting; /* threads with a ticket */
	struct cs_mutex credit_lock;
	struct cs_cond credit_freed;
	uint64_t next_ticket; /* under credit_lock */
	uint64_t serving;     /* under credit_lock */

	struct cs_mutex buffer_lock;
	uint8_t *large[LARGE_KEPT]; /* under buffer_lock */
	unsigned large_count;       /* under buffer_lock */

	_Alignas(
		CS_CACHE_BYTES) _Atomic uintptr_t key[THREADS]; /* pthread_self(), 0: not claimed */
	struct thread_entry entry[THREADS];
};

/* One run of the engine. */
struct run {
	struct cowsnap_copier *copier;
	struct thread_entry *thread;
	struct cowsnap_device *source;
	struct cowsnap_copy_target *targets;
	size_t count;
	uint8_t *buffer;
	uint64_t buffer_bytes; /* without its PAD_ROOM */
	uint64_t piece_bytes;  /* most to read at once */
	uint64_t align;        /* pieces end at multiples of it where they may */
	struct cs_copier_io io;
};

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
	c->large_bytes = (options.job_bytes + BUFFER_ALIGN - 1) & ~(uint64_t)(BUFFER_ALIGN - 1);
	cs_mutex_init(&c->credit_lock);
	cs_cond_init(&c->credit_freed);
	cs_mutex_init(&c->buffer_lock);
	*out = c;
	return 0;
}

void cs_copier_destroy(struct cowsnap_copier *c)
{
	if (!c)
		return;
	assert(atomic_load_explicit(&c->inflight, memory_order_relaxed) == 0);
	for (unsigned i = 0; i < THREADS; i++)
		cs_free(c->base->alloc,
			atomic_load_explicit(&c->entry[i].small, memory_order_relaxed),
			SMALL_BYTES + PAD_ROOM);
	for (unsigned i = 0; i < c->large_count; i++)
		cs_free(c->base->alloc, c->large[i], c->large_bytes + PAD_ROOM);
	cs_mutex_fini(&c->buffer_lock);
	cs_cond_fini(&c->credit_freed);
	cs_mutex_fini(&c->credit_lock);
	cs_free(c->base->alloc, c, sizeof(*c));
}

/* ---- Credits --------------------------------------------------------------------------------- */

static bool try_reserve(struct cowsnap_copier *c, uint64_t bytes)
{
	/* seq_cst: P2; pairs with cs_copier_release. */
	uint64_t inflight = atomic_load_explicit(&c->inflight, memory_order_seq_cst);

	while (bytes <= c->bound_bytes - inflight) {
		if (atomic_compare_exchange_weak_explicit(&c->inflight, &inflight, inflight + bytes,
			    memory_order_relaxed, memory_order_relaxed))
			return true;
	}
	return false;
}

static void reserve_in_turn(struct cowsnap_copier *c, uint64_t bytes)
{
	uint64_t ticket;

	cs_mutex_lock(&c->credit_lock);
	ticket = c->next_ticket++;
	/* seq_cst: P2; pairs with cs_copier_release. */
	atomic_fetch_add_explicit(&c->waiting, 1, memory_order_seq_cst);
	while (c->serving != ticket || !try_reserve(c, bytes))
		cs_cond_wait_until(&c->credit_freed, &c->credit_lock, UINT64_MAX);
	c->serving++;
	atomic_fetch_sub_explicit(&c->waiting, 1, memory_order_relaxed);
	/* The next in line may fit as well. */
	if (c->serving != c->next_ticket)
		cs_cond_broadcast(&c->credit_freed);
	cs_mutex_unlock(&c->credit_lock);
}

uint64_t cs_copier_reserve(struct cowsnap_copier *c, uint64_t want_bytes, bool *waited)
{
	uint64_t bytes = want_bytes < c->bound_bytes ? want_bytes : c->bound_bytes;

	assert(bytes > 0);
	*waited = false;
	if (cs_likely(!atomic_load_explicit(&c->waiting, memory_order_relaxed)) &&
		try_reserve(c, bytes))
		return bytes;
	*waited = true;
	reserve_in_turn(c, bytes);
	return bytes;
}

void cs_copier_release(struct cowsnap_copier *c, uint64_t bytes)
{
	/* seq_cst: P2; pairs with reserve_in_turn and try_reserve. */
	uint64_t before = atomic_fetch_sub_explicit(&c->inflight, bytes, memory_order_seq_cst);

	assert(before >= bytes);
	(void)before;
	if (!atomic_load_explicit(&c->waiting, memory_order_seq_cst))
		return;
	cs_mutex_lock(&c->credit_lock);
	cs_cond_broadcast(&c->credit_freed);
	cs_mutex_unlock(&c->credit_lock);
}

/* ---- Threads --------------------------------------------------------------------------------- */

static struct thread_entry *claim_entry(struct cowsnap_copier *c, unsigned i, uintptr_t self)
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

static struct thread_entry *find_thread(struct cowsnap_copier *c)
{
	uintptr_t self = (uintptr_t)pthread_self();
	/* Entries 1 to 255, from a place that depends on all bits. */
	unsigned at =
		(unsigned)(((uint64_t)self * UINT64_C(0x9e3779b97f4a7c15)) >> 32) % (THREADS - 1);

	for (unsigned i = 0; i < THREADS - 1; i++) {
		unsigned index = 1 + (at + i) % (THREADS - 1);
		uintptr_t key = atomic_load_explicit(&c->key[index], memory_order_relaxed);
		struct thread_entry *mine;

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

static void count_up(const struct run *run, _Atomic uint64_t *counter, uint64_t n)
{
	/* An entry is added to by one thread, so that a plain sum will do; but for the shared one.
	 */
	if (run->thread != &run->copier->entry[0])
		atomic_store_explicit(counter,
			atomic_load_explicit(counter, memory_order_relaxed) + n,
			memory_order_relaxed);
	else
		atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

size_t cs_copier_threads(struct cowsnap_copier *c, struct cowsnap_thread_io *threads, size_t count)
{
	size_t known = 0;

	/* The shared entry comes last. */
	for (unsigned i = 1; i <= THREADS; i++) {
		struct thread_entry *e = &c->entry[i % THREADS];
		struct cowsnap_thread_io io = {
			/* Acquire: pairs with claim_entry. */
			.thread = atomic_load_explicit(&e->thread, memory_order_acquire),
			.reads = atomic_load_explicit(&e->reads, memory_order_relaxed),
			.read_bytes = atomic_load_explicit(&e->read_bytes, memory_order_relaxed),
			.writes = atomic_load_explicit(&e->writes, memory_order_relaxed),
			.write_bytes = atomic_load_explicit(&e->write_bytes, memory_order_relaxed),
		};

		if (!io.thread && !io.reads)
			continue;
		if (known < count)
			threads[known] = io;
		known++;
	}
	return known;
}

/* ---- Buffers --------------------------------------------------------------------------------- */

static uint8_t *get_small(struct run *run)
{
	/* Acquire: whoever used it is done; pairs with put_buffer. */
	uint8_t *buffer = atomic_exchange_explicit(&run->thread->small, NULL, memory_order_acquire);

	run->buffer_bytes = SMALL_BYTES;
	if (buffer)
		return buffer;
	return cs_alloc_aligned(run->copier->base->alloc, SMALL_BYTES + PAD_ROOM, BUFFER_ALIGN);
}

static uint8_t *get_large(struct run *run)
{
	struct cowsnap_copier *c = run->copier;
	uint8_t *buffer = NULL;

	cs_mutex_lock(&c->buffer_lock);
	if (c->large_count)
		buffer = c->large[--c->large_count];
	cs_mutex_unlock(&c->buffer_lock);
	run->buffer_bytes = c->large_bytes;
	if (buffer)
		return buffer;
	return cs_alloc_aligned(c->base->alloc, c->large_bytes + PAD_ROOM, BUFFER_ALIGN);
}

static bool get_buffer(struct run *run, uint64_t longest)
{
	run->buffer = NULL;
	if (longest > SMALL_BYTES && run->copier->large_bytes > SMALL_BYTES)
		run->buffer = get_large(run);
	if (!run->buffer)
		run->buffer = get_small(run);
	return run->buffer;
}

static void put_buffer(struct run *run)
{
	struct cowsnap_copier *c = run->copier;
	uint8_t *spare = run->buffer;

	if (run->buffer_bytes == SMALL_BYTES) {
		/* Another may be there: a device of the host's has copied meanwhile, or the entry
		 * is shared. Release: pairs with get_small. */
		spare = atomic_exchange_explicit(&run->thread->small, spare, memory_order_acq_rel);
	} else {
		cs_mutex_lock(&c->buffer_lock);
		if (c->large_count < LARGE_KEPT) {
			c->large[c->large_count++] = spare;
			spare = NULL;
		}
		cs_mutex_unlock(&c->buffer_lock);
	}
	cs_free(c->base->alloc, spare, run->buffer_bytes + PAD_ROOM);
}

/* ---- The engine ------------------------------------------------------------------------------ */

static uint64_t target_end(const struct cowsnap_copy_target *target)
{
	return target->source_offset + target->length;
}

/* The first byte from @at on that a target still wants. Returns: false if there is none. */
static bool next_wanted(const struct run *run, uint64_t at, uint64_t *from)
{
	bool found = false;

	for (size_t i = 0; i < run->count; i++) {
		const struct cowsnap_copy_target *t = &run->targets[i];
		uint64_t first = t->source_offset > at ? t->source_offset : at;

		if (t->error || first >= target_end(t) || (found && first >= *from))
			continue;
		*from = first;
		found = true;
	}
	return found;
}

/* How far the union goes on from @from without a hole, up to @most bytes. */
static uint64_t wanted_length(const struct run *run, uint64_t from, uint64_t most)
{
	uint64_t end = from;
	bool grew = true;

	while (grew && end - from < most) {
		grew = false;
		for (size_t i = 0; i < run->count; i++) {
			const struct cowsnap_copy_target *t = &run->targets[i];

			if (t->error || t->source_offset > end || target_end(t) <= end)
				continue;
			end = target_end(t);
			grew = true;
		}
	}
	return end - from < most ? end - from : most;
}

/* Pieces that are followed by others end at a multiple of the blocks of all targets. */
static uint64_t piece_length(const struct run *run, uint64_t from)
{
	uint64_t length = wanted_length(run, from, run->piece_bytes);
	uint64_t end = (from + length) & ~(run->align - 1);

	return length == run->piece_bytes && end > from ? end - from : length;
}

/* The end of a source need not be a block of the target: see copier.h. */
static uint64_t padding(const struct run *run, const struct cowsnap_copy_target *t, uint64_t length,
	uint64_t source_end)
{
	const struct cowsnap_device *device = t->device;
	uint64_t over = length & (device->block_size - 1);

	if (!over || source_end != run->source->size_bytes ||
		atomic_load_explicit(&device->claimed, memory_order_relaxed) != CS_DEV_STORE)
		return 0;
	return device->block_size - over;
}

static void write_target(
	struct run *run, struct cowsnap_copy_target *t, uint64_t from, uint64_t end)
{
	uint64_t first = t->source_offset > from ? t->source_offset : from;
	uint64_t last = target_end(t) < end ? target_end(t) : end;
	uint8_t *bytes = run->buffer + (first - from);
	uint64_t pad;

	if (t->error || first >= last)
		return;
	pad = padding(run, t, last - first, last);
	if (pad) {
		/* Nobody else wants what is behind the end of the source. */
		assert(last - from + pad <= run->buffer_bytes + PAD_ROOM);
		memset(run->buffer + (last - from), 0, pad);
	}
	t->error = cs_dev_write(
		t->device, bytes, t->offset + (first - t->source_offset), last - first + pad);
	count_up(run, &run->thread->writes, 1);
	count_up(run, &run->thread->write_bytes, last - first + pad);
}

static void copy_piece(struct run *run, uint64_t from, uint64_t length)
{
	uint64_t end = from + length;
	int rc = cs_dev_read(run->source, run->buffer, from, length);

	run->io.reads++;
	run->io.read_bytes += length;
	count_up(run, &run->thread->reads, 1);
	count_up(run, &run->thread->read_bytes, length);
	for (size_t i = 0; i < run->count; i++) {
		struct cowsnap_copy_target *t = &run->targets[i];

		if (!rc)
			write_target(run, t, from, end);
		else if (!t->error && t->source_offset < end && target_end(t) > from)
			t->error = rc;
	}
}

/* The blocks of the devices, and what the buffer holds of them. */
static void size_pieces(struct run *run)
{
	uint64_t align = 1;

	for (size_t i = 0; i < run->count; i++) {
		if (run->targets[i].device->block_size > align)
			align = run->targets[i].device->block_size;
	}
	run->align = align;
	run->piece_bytes = run->copier->job_bytes;
	if (run->piece_bytes > run->buffer_bytes)
		run->piece_bytes = run->buffer_bytes;
	run->piece_bytes &= ~(align - 1);
	if (!run->piece_bytes)
		run->piece_bytes = align;
	assert(run->piece_bytes <= run->buffer_bytes);
}

struct cs_copier_io cs_copier_run(struct cowsnap_copier *copier, struct cowsnap_device *source,
	struct cowsnap_copy_target *targets, size_t count)
{
	struct run run = {.copier = copier, .source = source, .targets = targets, .count = count};
	uint64_t at = 0, longest = 0;

	run.thread = find_thread(copier);
	for (size_t i = 0; i < count; i++)
		targets[i].error = 0;
	while (longest <= SMALL_BYTES && next_wanted(&run, at, &at)) {
		uint64_t length = wanted_length(&run, at, SMALL_BYTES + 1);

		longest = length > longest ? length : longest;
		at += length;
	}
	if (!get_buffer(&run, longest)) {
		for (size_t i = 0; i < count; i++)
			targets[i].error = -ENOMEM;
		return run.io;
	}
	size_pieces(&run);
	for (at = 0; next_wanted(&run, at, &at);) {
		uint64_t length = piece_length(&run, at);

		copy_piece(&run, at, length);
		at += length;
	}
	put_buffer(&run);
	return run.io;
}
