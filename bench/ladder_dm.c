/* SPDX-License-Identifier: MIT
 *
 * The lower rungs of the ladder. Design in ladder_dm.h.
 *
 * Invariants: a chunk has one pending exception at most. A pending exception belongs to the slot
 * that made it; that slot is handed back only after it was completed and taken out of the table.
 *
 * Locking, in this order: `origins`, for reading only (a take would write); `mutex` in DM_ONE_LOCK,
 * else `snapshot` for reading and then the bucket of the complete table and that of the pending
 * one; `allocation`. In DM_PARALLEL `order` comes before all of these: it serializes completions.
 *
 * Failure: an I/O error is handed to the write that waits; the load ends with it.
 */
#include "ladder_dm.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RUN_MAX 256u /* chunks of one exception */

struct exception {
	struct exception *next; /* in its bucket, by chunk */
	uint64_t chunk;
	uint64_t location;
	uint64_t count;
};

struct pending {
	struct pending *next; /* in its bucket, or among the jobs */
	struct pending *hash_next;
	uint64_t chunk;
	uint64_t location;
	uint64_t sequence;
	struct load_slot *waiters; /* by their first gate word */
	struct copier *copier;
	struct dm_snapshot *snapshot;
	struct cowsnap_io io;
	unsigned char *buffer;
	int error;
};

struct bucket {
	pthread_mutex_t lock; /* not in DM_ONE_LOCK */
	union {
		struct exception *complete;
		struct pending *pending;
	} first;
};

/* A thread that copies. */
struct copier {
	_Alignas(64) struct cowsnap_queue *queue; /* NULL: a load thread that has not copied yet */
	struct sim_port *port;
	struct dm_thread_io io;
};

struct dm_snapshot {
	struct dm_options options;
	struct bucket *complete;
	struct bucket *pending;
	uint64_t complete_mask;
	uint64_t pending_mask;
	struct exception *exceptions; /* one for each chunk, in the order of use */
	struct pending *slots;        /* one for each slot of the load */
	unsigned char *buffers;
	struct copier *copiers;    /* of the load threads, and of the copy thread */
	struct pending **finished; /* by sequence, modulo finished_mask + 1 */
	uint64_t finished_mask;
	pthread_t thread;
	bool started;

	_Alignas(64) pthread_rwlock_t origins;
	_Alignas(64) pthread_rwlock_t snapshot;
	_Alignas(64) pthread_mutex_t mutex;
	_Alignas(64) pthread_mutex_t allocation;
	uint64_t next_location; /* under it; also the next sequence */
	_Alignas(64) pthread_mutex_t order;
	uint64_t next_complete; /* under it, or the copy thread's; the sequence */
	_Alignas(64) _Atomic(struct pending *) jobs; /* the last one first */
	atomic_bool ends;
};

/* ---- The tables ----------------------------------------------------------------------------- */

static struct bucket *complete_bucket(const struct dm_snapshot *s, uint64_t chunk)
{
	return &s->complete[(chunk >> s->options.hash_shift) & s->complete_mask];
}

static struct bucket *pending_bucket(const struct dm_snapshot *s, uint64_t chunk)
{
	return &s->pending[chunk & s->pending_mask];
}

static void lock(struct dm_snapshot *s, uint64_t chunk)
{
	if (s->options.mode == DM_ONE_LOCK) {
		pthread_mutex_lock(&s->mutex);
		return;
	}
	pthread_rwlock_rdlock(&s->snapshot);
	pthread_mutex_lock(&complete_bucket(s, chunk)->lock);
	pthread_mutex_lock(&pending_bucket(s, chunk)->lock);
}

static void unlock(struct dm_snapshot *s, uint64_t chunk)
{
	if (s->options.mode == DM_ONE_LOCK) {
		pthread_mutex_unlock(&s->mutex);
		return;
	}
	pthread_mutex_unlock(&pending_bucket(s, chunk)->lock);
	pthread_mutex_unlock(&complete_bucket(s, chunk)->lock);
	pthread_rwlock_unlock(&s->snapshot);
}

static const struct exception *find_complete(const struct dm_snapshot *s, uint64_t chunk)
{
	const struct exception *e = complete_bucket(s, chunk)->first.complete;

	while (e && e->chunk + e->count <= chunk)
		e = e->next;
	return e && e->chunk <= chunk ? e : NULL;
}

static struct pending *find_pending(const struct dm_snapshot *s, uint64_t chunk)
{
	struct pending *pe = pending_bucket(s, chunk)->first.pending;

	while (pe && pe->chunk != chunk)
		pe = pe->hash_next;
	return pe;
}

static bool same_bucket(const struct dm_snapshot *s, uint64_t a, uint64_t b)
{
	return complete_bucket(s, a) == complete_bucket(s, b);
}

/* Sorted, with runs of what follows each other in origin and store. */
static void insert_complete(struct dm_snapshot *s, const struct pending *pe)
{
	struct exception **at = &complete_bucket(s, pe->chunk)->first.complete;
	struct exception *e;

	for (; *at && (*at)->chunk <= pe->chunk; at = &(*at)->next) {
		e = *at;
		if (e->chunk + e->count == pe->chunk && e->location + e->count == pe->location &&
			e->count < RUN_MAX) {
			e->count++;
			return;
		}
	}
	e = *at;
	if (e && e->chunk == pe->chunk + 1 && e->location == pe->location + 1 &&
		e->count < RUN_MAX && same_bucket(s, e->chunk, pe->chunk)) {
		e->chunk--;
		e->location--;
		e->count++;
		return;
	}
	e = &s->exceptions[pe->sequence];
	*e = (struct exception){*at, pe->chunk, pe->location, 1};
	*at = e;
}

static void remove_pending(struct dm_snapshot *s, struct pending *pe)
{
	struct pending **at = &pending_bucket(s, pe->chunk)->first.pending;

	while (*at != pe)
		at = &(*at)->hash_next;
	*at = pe->hash_next;
}

/* ---- Completion ----------------------------------------------------------------------------- */

/* Looks at a write afresh: is there anything else that it must wait for? With one snapshot there is
 * not. */
static int look_again(struct dm_snapshot *s, uint64_t chunk)
{
	bool waits;

	pthread_rwlock_rdlock(&s->origins);
	lock(s, chunk);
	waits = find_pending(s, chunk) || !find_complete(s, chunk);
	unlock(s, chunk);
	pthread_rwlock_unlock(&s->origins);
	return waits ? -EPROTO : 0;
}

static void release(struct dm_snapshot *s, struct load_slot *waiters, uint64_t chunk, int error,
	const struct copier *copier)
{
	while (waiters) {
		struct load_slot *slot = waiters;
		int err = error ? error : look_again(s, chunk);

		waiters = slot->gate_words[0];
		if (s->options.mode == DM_PARALLEL && copier == &s->copiers[slot->thread->index])
			load_admitted(slot, err);
		else
			load_hand_over(slot, err);
	}
}

/* Returns: who waited for it. */
static struct load_slot *complete(struct dm_snapshot *s, struct pending *pe)
{
	struct load_slot *waiters;

	lock(s, pe->chunk);
	if (!pe->error)
		insert_complete(s, pe);
	remove_pending(s, pe);
	waiters = pe->waiters;
	unlock(s, pe->chunk);
	return waiters;
}

/* In the order of the sequence; others wait until it is their turn. */
static void copied(struct dm_snapshot *s, struct pending *done)
{
	const struct copier *copier = done->copier;
	bool locks = s->options.mode == DM_PARALLEL;
	struct pending **place;

	if (s->options.mode == DM_BARE) {
		load_admitted(done->waiters, done->error);
		return;
	}
	if (locks)
		pthread_mutex_lock(&s->order);
	s->finished[done->sequence & s->finished_mask] = done;
	while (*(place = &s->finished[s->next_complete & s->finished_mask])) {
		struct pending *pe = *place;
		uint64_t chunk = pe->chunk;
		int error = pe->error;
		struct load_slot *waiters = complete(s, pe);

		*place = NULL;
		s->next_complete++;
		/* The host's write, which may begin another copy, is not this lock's business. */
		if (locks)
			pthread_mutex_unlock(&s->order);
		release(s, waiters, chunk, error, copier);
		if (locks)
			pthread_mutex_lock(&s->order);
	}
	if (locks)
		pthread_mutex_unlock(&s->order);
}

/* ---- Copies --------------------------------------------------------------------------------- */

static void write_done(struct cowsnap_io *io, int error)
{
	struct pending *pe = io->user;

	pe->error = error;
	copied(pe->snapshot, pe);
}

static void prepare(struct pending *pe, enum cowsnap_io_kind kind, uint64_t chunk,
	void (*done)(struct cowsnap_io *io, int error))
{
	uint64_t bytes = pe->snapshot->options.chunk_bytes;

	pe->io.kind = kind;
	pe->io.buffer = pe->buffer;
	pe->io.offset = chunk * bytes;
	pe->io.length = bytes;
	pe->io.done = done;
	pe->io.user = pe;
}

static void read_done(struct cowsnap_io *io, int error)
{
	struct pending *pe = io->user;
	const struct dm_options *options = &pe->snapshot->options;

	if (!error) {
		pe->copier->io.writes++;
		prepare(pe, COWSNAP_IO_WRITE, pe->location, write_done);
		error = cowsnap_device_submit(options->store, pe->copier->queue, &pe->io);
	}
	if (error)
		write_done(io, bench_check(error, "copy"));
}

static void copy(struct dm_snapshot *s, struct copier *copier, struct pending *pe)
{
	const struct dm_options *options = &s->options;
	uint64_t bytes = options->chunk_bytes;
	int err;

	pe->copier = copier;
	copier->io.reads++;
	if (options->sim) {
		prepare(pe, COWSNAP_IO_READ, pe->chunk, read_done);
		err = cowsnap_device_submit(options->origin, copier->queue, &pe->io);
		if (err)
			write_done(&pe->io, bench_check(err, "copy"));
		return;
	}
	copier->io.writes++;
	err = cowsnap_device_read(options->origin, pe->buffer, pe->chunk * bytes, bytes);
	if (!err)
		err = cowsnap_device_write(options->store, pe->buffer, pe->location * bytes, bytes);
	pe->error = bench_check(err, "copy");
	copied(s, pe);
}

static unsigned take_jobs(struct dm_snapshot *s, struct copier *copier)
{
	struct pending *in_order = NULL;
	struct pending *pe;
	unsigned count = 0;

	if (!atomic_load_explicit(&s->jobs, memory_order_relaxed))
		return 0;
	/* Acquire: pairs with give_job. */
	pe = atomic_exchange_explicit(&s->jobs, NULL, memory_order_acquire);
	while (pe) {
		struct pending *next = pe->next;

		pe->next = in_order;
		in_order = pe;
		pe = next;
	}
	while (in_order) {
		pe = in_order;
		in_order = pe->next;
		copy(s, copier, pe);
		count++;
	}
	return count;
}

static void give_job(struct dm_snapshot *s, struct pending *pe)
{
	struct pending *first = atomic_load_explicit(&s->jobs, memory_order_relaxed);

	do
		pe->next = first;
	/* Release: pairs with take_jobs. */
	while (!atomic_compare_exchange_weak_explicit(
		&s->jobs, &first, pe, memory_order_release, memory_order_relaxed));
}

static void *copy_main(void *arg)
{
	struct dm_snapshot *s = arg;
	struct copier *copier = &s->copiers[s->options.threads];

	while (!atomic_load_explicit(&s->ends, memory_order_relaxed)) {
		unsigned done = take_jobs(s, copier);

		if (s->options.sim) {
			done += sim_poll(s->options.sim, copier->port);
			if (done)
				cowsnap_queue_poll(copier->queue);
		}
		if (!done)
			sched_yield();
	}
	return NULL;
}

/* ---- The gate ------------------------------------------------------------------------------- */

static struct pending *pending_of(struct dm_snapshot *s, const struct load_slot *slot)
{
	const struct load_thread *thread = slot->thread;

	return &s->slots[thread->index * s->options.depth + (size_t)(slot - thread->slots)];
}

static struct pending *new_pending(
	struct dm_snapshot *s, const struct load_slot *slot, uint64_t chunk)
{
	struct bucket *bucket = pending_bucket(s, chunk);
	struct pending *pe = pending_of(s, slot);

	pe->chunk = chunk;
	pe->waiters = NULL;
	pe->error = 0;
	pthread_mutex_lock(&s->allocation);
	pe->location = pe->sequence = s->next_location++;
	pthread_mutex_unlock(&s->allocation);
	pe->hash_next = bucket->first.pending;
	bucket->first.pending = pe;
	return pe;
}

/* On the submitting thread. */
static int copy_here(struct dm_snapshot *s, const struct load_slot *slot, struct pending *pe)
{
	struct copier *copier = &s->copiers[slot->thread->index];

	copier->queue = slot->thread->queue;
	copy(s, copier, pe);
	return COWSNAP_PENDING;
}

static int bare_begin(void *user, struct load_slot *slot)
{
	struct dm_snapshot *s = user;
	struct pending *pe = pending_of(s, slot);

	pe->chunk = slot->offset / s->options.chunk_bytes;
	/* As a store would give it out, as long as all threads are equally fast. */
	pe->location = slot->thread->first + slot->thread->at - 1;
	pe->waiters = slot;
	return copy_here(s, slot, pe);
}

static int gate_begin(void *user, struct load_slot *slot)
{
	struct dm_snapshot *s = user;
	uint64_t chunk = slot->offset / s->options.chunk_bytes;
	struct pending *fresh = NULL;
	struct pending *pe;
	bool done;

	pthread_rwlock_rdlock(&s->origins);
	lock(s, chunk);
	pe = find_pending(s, chunk);
	done = !pe && find_complete(s, chunk);
	if (!pe && !done)
		pe = fresh = new_pending(s, slot, chunk);
	if (!done) {
		slot->gate_words[0] = pe->waiters;
		pe->waiters = slot;
	}
	unlock(s, chunk);
	pthread_rwlock_unlock(&s->origins);
	if (done)
		return 0;
	if (fresh && s->options.mode == DM_PARALLEL)
		return copy_here(s, slot, fresh);
	if (fresh)
		give_job(s, fresh);
	return COWSNAP_PENDING;
}

static void gate_end(void *user, struct load_slot *slot)
{
	(void)user;
	(void)slot;
}

struct load_gate dm_gate(struct dm_snapshot *s)
{
	return (struct load_gate){.begin = s->options.mode == DM_BARE ? bare_begin : gate_begin,
		.end = gate_end,
		.user = s};
}

/* ---- Making --------------------------------------------------------------------------------- */

static uint64_t power_of_two(uint64_t least)
{
	uint64_t n = 64;

	while (n < least)
		n *= 2;
	return n;
}

static struct bucket *make_buckets(uint64_t count)
{
	struct bucket *buckets = bench_alloc(count, sizeof(*buckets));

	for (uint64_t i = 0; i < count; i++)
		pthread_mutex_init(&buckets[i].lock, NULL);
	return buckets;
}

static void make_slots(struct dm_snapshot *s)
{
	size_t count = (size_t)s->options.threads * s->options.depth;

	s->slots = bench_alloc(count, sizeof(*s->slots));
	s->buffers = bench_alloc(count + 1, s->options.chunk_bytes);
	memset(s->buffers, 1, (count + 1) * s->options.chunk_bytes);
	for (size_t i = 0; i < count; i++) {
		s->slots[i].snapshot = s;
		s->slots[i].buffer = s->buffers + i * s->options.chunk_bytes;
	}
	s->finished_mask = power_of_two(count) - 1;
	s->finished = bench_alloc(s->finished_mask + 1, sizeof(struct pending *));
}

static int start_thread(struct dm_snapshot *s)
{
	struct copier *copier = &s->copiers[s->options.threads];
	int err;

	if (s->options.mode == DM_PARALLEL || s->options.mode == DM_BARE)
		return 0;
	err = cowsnap_queue_create(s->options.ctx, 4096, &copier->queue);
	if (bench_check(err, "cowsnap_queue_create") < 0)
		return err;
	if (s->options.sim)
		copier->port = sim_attach(s->options.sim, copier->queue);
	if (s->options.sim && !copier->port)
		return bench_check(-EMFILE, "ports of a simulated array");
	err = -pthread_create(&s->thread, NULL, copy_main, s);
	s->started = !err;
	return bench_check(err, "a copy thread");
}

int dm_open(const struct dm_options *options, struct dm_snapshot **out)
{
	struct dm_snapshot *s = aligned_alloc(64, sizeof(*s));
	size_t copiers = (options->threads + 1) * sizeof(struct copier);

	if (!s)
		return bench_check(-ENOMEM, "a rung of the ladder");
	memset(s, 0, sizeof(*s));
	s->options = *options;
	/* The kernel's sizes: as many buckets as chunks, in 2 MiB of 8 bytes; an eighth of it. */
	s->complete_mask = power_of_two(options->chunks < 262144 ? options->chunks : 262144) - 1;
	s->pending_mask = power_of_two((s->complete_mask + 1) / 8) - 1;
	s->complete = make_buckets(s->complete_mask + 1);
	s->pending = make_buckets(s->pending_mask + 1);
	s->exceptions = bench_alloc(options->chunks, sizeof(*s->exceptions));
	s->copiers = aligned_alloc(64, copiers);
	if (!s->copiers)
		return bench_check(-ENOMEM, "a rung of the ladder");
	memset(s->copiers, 0, copiers);
	memset(s->exceptions, 1, options->chunks * sizeof(*s->exceptions));
	make_slots(s);
	pthread_rwlock_init(&s->origins, NULL);
	pthread_rwlock_init(&s->snapshot, NULL);
	pthread_mutex_init(&s->mutex, NULL);
	pthread_mutex_init(&s->allocation, NULL);
	pthread_mutex_init(&s->order, NULL);
	*out = s;
	return start_thread(s);
}

int dm_close(struct dm_snapshot *s)
{
	struct copier *copier;
	int err;

	if (!s)
		return 0;
	copier = &s->copiers[s->options.threads];
	atomic_store_explicit(&s->ends, true, memory_order_relaxed);
	if (s->started)
		pthread_join(s->thread, NULL);
	err = bench_check(cowsnap_queue_close(copier->queue), "cowsnap_queue_close");
	sim_detach(copier->port);
	free(s->complete);
	free(s->pending);
	free(s->exceptions);
	free(s->slots);
	free(s->buffers);
	free(s->copiers);
	free(s->finished);
	free(s);
	return err;
}

bool dm_lookup(struct dm_snapshot *s, uint64_t chunk, uint64_t *location)
{
	const struct exception *e = find_complete(s, chunk);

	if (e)
		*location = e->location + (chunk - e->chunk);
	return e;
}

uint64_t dm_completed(const struct dm_snapshot *s)
{
	return s->next_complete;
}

struct dm_thread_io dm_thread_io(const struct dm_snapshot *s, unsigned index)
{
	return s->copiers[index].io;
}
