/* SPDX-License-Identifier: MIT
 *
 * Locking: each slot has a mutex for who is in it; a group's image does not change once the group
 * is in a slot. Everything else that threads share is atomic or belongs to one of them until it is
 * joined.
 */
#include "concurrent/load.h"
#include "support/cut.h"
#include "support/pending.h"
#include "support/shuffled_device.h"
#include "support/test.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define SLOTS         4
#define STRIPE        4 /* neighbouring blocks of one writer: a write is 1 to 4 of them */
#define VERSIONS      8192
#define DEADLINE_NS   UINT64_C(120000000000)
#define MESSAGE_BYTES 256

/* The snapshots of one take. */
struct group {
	struct cut_image image; /* first: the list of all images is one of groups */
	struct cowsnap_snapshot *snapshot[CUT_ORIGINS];
	bool lost[CUT_ORIGINS]; /* invalid: the image has nothing of it */
};

struct slot {
	pthread_mutex_t lock;
	struct group *group;
};

struct load;

struct pending {
	struct cowsnap_op op;
	unsigned origin, first, count;
};

/* A bracket that does not wait. Its writer's while it is idle, else its callback's. */
struct flight {
	struct pending pending; /* first */
	struct worker *worker;
	_Atomic bool flies;
};

struct worker {
	struct load *load;
	pthread_t thread;
	unsigned number;
	uint64_t random;
	bool async;
	struct cowsnap_queue *queue;    /* of one that does not wait; NULL: a worker's */
	_Atomic(struct pending *) mail; /* writers: a bracket for the ender */
	struct flight flight[LOAD_FLIGHTS];
};

struct load {
	const struct load_plan *plan;
	uint64_t seed;
	struct cut cut;
	struct cowsnap_ctx *ctx;
	struct cowsnap_device *device[CUT_ORIGINS];
	struct cowsnap_origin *origin[CUT_ORIGINS];
	struct cowsnap_store *store[LOAD_STORES];
	struct cowsnap_device *store_device[LOAD_STORES];
	struct shuffled slow[CUT_ORIGINS + LOAD_STORES];
	unsigned slow_devices;
	struct slot slot[SLOTS];
	_Atomic(struct cut_image *) images; /* all that were ever taken */
	atomic_bool stop;                   /* takes are done, or something failed */
	atomic_bool writers_ended;
	atomic_flag failed_once;
	char message[MESSAGE_BYTES];
	atomic_bool failed;
	struct worker worker[LOAD_WRITERS + LOAD_TAKERS + LOAD_READERS + 2];
	struct worker *writer, *taker, *reader, *keeper, *ender; /* parts of it */
};

static uint64_t below(struct worker *w, uint64_t bound)
{
	uint64_t z = w->random += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return (z ^ (z >> 31)) % bound;
}

/* The first failure counts; the main thread asserts. */
__attribute__((format(printf, 2, 3))) static void fail(struct load *load, const char *format, ...)
{
	va_list args;

	if (atomic_flag_test_and_set(&load->failed_once))
		return;
	va_start(args, format);
	vsnprintf(load->message, sizeof(load->message), format, args);
	va_end(args);
	atomic_store(&load->failed, true);
	atomic_store(&load->stop, true);
}

/* Returns: how the operation ended that has returned @rc. */
static int ended(struct worker *w, struct pending_op *p, int rc)
{
	if (rc != COWSNAP_PENDING)
		return rc;
	while (!w->queue && !atomic_load(&p->calls))
		sched_yield();
	if (w->queue && !pending_wait(w->queue, p))
		fail(w->load, "nothing happens any more");
	return p->error;
}

static int read_snapshot(struct worker *w, struct cowsnap_snapshot *snapshot, void *data,
	uint64_t offset, uint64_t length)
{
	struct pending_op p = {0};

	if (!w->async)
		return cowsnap_snapshot_read(snapshot, data, offset, length);
	return ended(w, &p,
		cowsnap_snapshot_read_async(
			snapshot, w->queue, data, offset, length, &p.op, pending_done, &p));
}

static int take(struct worker *w, struct cowsnap_take_entry *entries, size_t count)
{
	const struct cowsnap_take_options options = {
		.size = sizeof(options),
		.deadline_ns = DEADLINE_NS,
	};
	struct pending_op p = {0};

	if (!w->async)
		return cowsnap_take(w->load->ctx, &options, entries, count);
	return ended(w, &p,
		cowsnap_take_async(
			w->load->ctx, w->queue, &options, entries, count, &p.op, pending_done, &p));
}

static void end_write(struct load *load, struct pending *p)
{
	cowsnap_write_end(&p->op);
	cut_end(&load->cut, p->origin, p->first, p->count);
}

static bool mail_is_empty(struct worker *w)
{
	return !atomic_load_explicit(&w->mail, memory_order_acquire); /* pairs with ender_main */
}

static void choose(struct worker *w, struct pending *p)
{
	unsigned stripes = CUT_BLOCKS / STRIPE / LOAD_WRITERS;
	unsigned stripe = (unsigned)below(w, stripes) * LOAD_WRITERS + w->number;
	unsigned into = (unsigned)below(w, STRIPE);

	p->origin = (unsigned)below(w, w->load->plan->origins);
	p->first = stripe * STRIPE + into;
	p->count = 1 + (unsigned)below(w, STRIPE - into);
}

/* Returns: may the write go on, after begin or its callback has said @rc? */
static bool admitted(struct load *load, int rc)
{
	if (rc == -ENOSPC && load->plan->on_full == COWSNAP_LOSER_WRITE)
		return false;
	if (rc == -ECANCELED && load->plan->cancels)
		return false;
	if (rc)
		fail(load, "write_begin: %d", rc);
	return !rc;
}

static void write_blocks(struct load *load, struct pending *p)
{
	uint8_t data[STRIPE * CUT_BLOCK];
	int rc;

	cut_stamp(&load->cut, p->origin, p->first, p->count, data);
	rc = cowsnap_device_write(load->device[p->origin], data, (uint64_t)p->first * CUT_BLOCK,
		(uint64_t)p->count * CUT_BLOCK);
	if (rc)
		fail(load, "device_write: %d", rc);
}

static void write_once(struct worker *w, struct pending *p)
{
	struct load *load = w->load;

	choose(w, p);
	if (!cut_begin(&load->cut, p->origin, p->first, p->count)) {
		sched_yield();
		return;
	}
	if (!admitted(load, cowsnap_write_begin(load->origin[p->origin], COWSNAP_WRITE,
				    (uint64_t)p->first * CUT_BLOCK, (uint64_t)p->count * CUT_BLOCK,
				    &p->op)))
		return;
	write_blocks(load, p);
	if (load->plan->other_thread_ends)
		atomic_store_explicit(
			&w->mail, p, memory_order_release); /* pairs with ender_main */
	else
		end_write(load, p);
}

static void *writer_main(void *argument)
{
	struct worker *w = argument;
	struct pending pending;

	while (!atomic_load(&w->load->stop)) {
		if (mail_is_empty(w))
			write_once(w, &pending);
		else
			sched_yield();
	}
	while (!mail_is_empty(w))
		sched_yield();
	return NULL;
}

/* ---- Writers that do not wait ---------------------------------------------------------------- */

static bool flies(struct flight *f)
{
	return atomic_load_explicit(&f->flies, memory_order_acquire); /* pairs with land */
}

/* It is admitted, or refused: in a poll, on a worker, or in begin. */
static void land(struct flight *f, int rc)
{
	struct load *load = f->worker->load;

	if (admitted(load, rc)) {
		write_blocks(load, &f->pending);
		end_write(load, &f->pending);
	}
	/* Nothing of it may be touched by anybody else from here on. */
	memset(&f->pending.op, 0xa5, sizeof(f->pending.op));
	atomic_store_explicit(&f->flies, false, memory_order_release); /* pairs with flies */
}

static void landed(struct cowsnap_op *op, void *user, int error)
{
	(void)op;
	land(user, error);
}

/* A writer's writes of a block follow each other. */
static bool flies_there(struct worker *w, const struct pending *p)
{
	for (unsigned i = 0; i < LOAD_FLIGHTS; i++) {
		struct pending *other = &w->flight[i].pending;

		if (flies(&w->flight[i]) && other->origin == p->origin &&
			other->first / STRIPE == p->first / STRIPE)
			return true;
	}
	return false;
}

static void launch(struct worker *w, struct flight *f)
{
	struct load *load = w->load;
	struct pending next, *p = &f->pending;
	int rc;

	choose(w, &next);
	if (flies_there(w, &next) || !cut_begin(&load->cut, next.origin, next.first, next.count))
		return;
	*p = next;
	f->worker = w;
	atomic_store_explicit(&f->flies, true, memory_order_relaxed);
	rc = cowsnap_write_begin_async(load->origin[p->origin], w->queue, COWSNAP_WRITE,
		(uint64_t)p->first * CUT_BLOCK, (uint64_t)p->count * CUT_BLOCK, &p->op, landed, f);
	if (rc != COWSNAP_PENDING)
		land(f, rc);
	/* Only in its own event loop does the writer know that it is still pending. */
	else if (load->plan->cancels && w->queue && below(w, 8) == 0)
		cowsnap_op_cancel(&p->op);
}

static unsigned count_flights(struct worker *w)
{
	unsigned count = 0;

	for (unsigned i = 0; i < LOAD_FLIGHTS; i++)
		count += flies(&w->flight[i]);
	return count;
}

static void poll_once(struct worker *w, int epoll)
{
	bool waits = w->queue && !w->load->plan->busy_hosts && count_flights(w) == LOAD_FLIGHTS;
	struct epoll_event event;

	if (!waits)
		sched_yield();
	else if (epoll_wait(epoll, &event, 1, 60000) == 0)
		fail(w->load, "a wake-up was lost");
	if (w->queue && cowsnap_queue_poll(w->queue) < 0)
		fail(w->load, "poll");
}

static void fly(struct worker *w, int epoll)
{
	while (!atomic_load(&w->load->stop)) {
		for (unsigned i = 0; i < LOAD_FLIGHTS; i++) {
			if (!flies(&w->flight[i]))
				launch(w, &w->flight[i]);
		}
		poll_once(w, epoll);
	}
	while (count_flights(w))
		poll_once(w, epoll);
}

static void *async_writer_main(void *argument)
{
	struct worker *w = argument;
	const struct load_plan *plan = w->load->plan;
	struct epoll_event event = {.events = EPOLLIN};
	int epoll = epoll_create1(EPOLL_CLOEXEC);

	if (!plan->workers) {
		cr_assert_eq(cowsnap_queue_create(w->load->ctx,
				     plan->depth ? plan->depth : LOAD_FLIGHTS, &w->queue),
			0);
		cr_assert_eq(
			epoll_ctl(epoll, EPOLL_CTL_ADD, cowsnap_queue_fd(w->queue), &event), 0);
	}
	fly(w, epoll);
	cr_assert_eq(cowsnap_queue_close(w->queue), 0);
	w->queue = NULL;
	close(epoll);
	return NULL;
}

/* ---- The others ------------------------------------------------------------------------------ */

static void *ender_main(void *argument)
{
	struct worker *ender = argument;
	struct load *load = ender->load;

	while (!atomic_load(&load->writers_ended)) {
		for (unsigned i = 0; i < LOAD_WRITERS; i++) {
			struct worker *w = &load->writer[i];
			/* pairs with write_once */
			struct pending *p = atomic_load_explicit(&w->mail, memory_order_acquire);

			if (!p)
				continue;
			end_write(load, p);
			/* pairs with mail_is_empty */
			atomic_store_explicit(&w->mail, NULL, memory_order_release);
		}
		sched_yield();
	}
	return NULL;
}

/* Returns: false if the snapshot lost, or the run failed. */
static bool read_blocks(struct worker *w, struct cowsnap_snapshot *snapshot, unsigned o,
	unsigned first, unsigned count, uint32_t *version)
{
	struct load *load = w->load;
	uint8_t data[CUT_BYTES];
	int rc = read_snapshot(
		w, snapshot, data, (uint64_t)first * CUT_BLOCK, (uint64_t)count * CUT_BLOCK);

	if (rc == -EIDRM)
		return false;
	if (rc == -ESTALE && load->plan->limit_chunks &&
		load->plan->on_full == COWSNAP_LOSER_SNAPSHOT)
		return false;
	if (rc) {
		fail(load, "snapshot_read: %d", rc);
		return false;
	}
	for (unsigned i = 0; i < count; i++) {
		if (!cut_decode(o, first + i, data + (size_t)i * CUT_BLOCK, &version[i])) {
			fail(load, "origin %u block %u is torn", o, first + i);
			return false;
		}
	}
	return true;
}

static void compare_blocks(struct worker *w, const struct group *group,
	struct cowsnap_snapshot *snapshot, unsigned o, unsigned first, unsigned count)
{
	struct load *load = w->load;
	uint32_t version[CUT_BLOCKS];

	if (group->lost[o] || !read_blocks(w, snapshot, o, first, count, version))
		return;
	for (unsigned i = 0; i < count; i++) {
		if (version[i] != group->image.version[o][first + i])
			fail(load, "origin %u block %u changed in the snapshot: %u, then %u", o,
				first + i, group->image.version[o][first + i], version[i]);
	}
}

static struct group *take_group(struct worker *w)
{
	struct load *load = w->load;
	struct cowsnap_take_entry entries[CUT_ORIGINS] = {0};
	struct group *group = calloc(1, sizeof(*group));
	unsigned from[CUT_ORIGINS];
	size_t count = 0;
	int rc;

	for (unsigned o = 0; o < load->plan->origins; o++) {
		if (!(load->plan->taker_origins[w->number] >> o & 1))
			continue;
		entries[count].origin = load->origin[o];
		entries[count].store = load->store[below(w, load->plan->stores)];
		entries[count].on_full = load->plan->on_full;
		from[count++] = o;
	}
	group->image.called = cut_now(&load->cut);
	rc = take(w, entries, count);
	group->image.returned = cut_now(&load->cut);
	if (rc) {
		fail(load, "take: %d", rc);
		free(group);
		return NULL;
	}
	for (size_t i = 0; i < count; i++)
		group->snapshot[from[i]] = entries[i].snapshot;
	return group;
}

/* From now on the image is what every reader must see. */
static void read_group(struct worker *w, struct group *group)
{
	struct load *load = w->load;
	struct cut_image *head = atomic_load(&load->images);

	for (unsigned o = 0; o < CUT_ORIGINS; o++) {
		if (!group->snapshot[o])
			continue;
		group->image.has[o] = read_blocks(
			w, group->snapshot[o], o, 0, CUT_BLOCKS, group->image.version[o]);
		group->lost[o] = !group->image.has[o];
	}
	do
		group->image.next = head;
	while (!atomic_compare_exchange_weak(&load->images, &head, &group->image));
}

static void drop_group(struct worker *w, struct group *group)
{
	struct load *load = w->load;

	for (unsigned o = 0; o < CUT_ORIGINS; o++) {
		struct cowsnap_snapshot *snapshot = group->snapshot[o];
		int rc;

		if (!snapshot)
			continue;
		compare_blocks(w, group, snapshot, o, 0, CUT_BLOCKS);
		rc = cowsnap_snapshot_drop(snapshot);
		if (rc)
			fail(load, "drop: %d", rc);
		cowsnap_snapshot_unref(snapshot);
	}
}

static struct group *exchange(struct slot *slot, struct group *group)
{
	struct group *before;

	pthread_mutex_lock(&slot->lock);
	before = slot->group;
	slot->group = group;
	pthread_mutex_unlock(&slot->lock);
	return before;
}

static void *taker_main(void *argument)
{
	struct worker *w = argument;
	struct load *load = w->load;

	for (unsigned i = 0; i < load->plan->takes && !atomic_load(&load->stop); i++) {
		struct group *group = take_group(w);
		struct group *before;

		if (!group)
			break;
		read_group(w, group);
		before = exchange(&load->slot[below(w, SLOTS)], group);
		if (before)
			drop_group(w, before);
	}
	return NULL;
}

static void *reader_main(void *argument)
{
	struct worker *w = argument;
	struct load *load = w->load;

	while (!atomic_load(&load->stop)) {
		struct slot *slot = &load->slot[below(w, SLOTS)];
		struct cowsnap_snapshot *snapshot = NULL;
		unsigned o = (unsigned)below(w, load->plan->origins);
		unsigned first = (unsigned)below(w, CUT_BLOCKS);
		struct group *group;

		pthread_mutex_lock(&slot->lock);
		group = slot->group;
		if (group && group->snapshot[o])
			snapshot = cowsnap_snapshot_ref(group->snapshot[o]);
		pthread_mutex_unlock(&slot->lock);
		if (!snapshot) {
			sched_yield();
			continue;
		}
		compare_blocks(
			w, group, snapshot, o, first, 1 + (unsigned)below(w, CUT_BLOCKS - first));
		cowsnap_snapshot_unref(snapshot);
	}
	return NULL;
}

/* Reclaims in small steps and reads all numbers, which must make sense at any moment. */
static void *keeper_main(void *argument)
{
	struct worker *w = argument;
	struct load *load = w->load;

	while (!atomic_load(&load->stop)) {
		struct cowsnap_store_usage usage;
		struct cowsnap_stats stats;
		int rc = cowsnap_reclaim(load->ctx, 1 + below(w, 64));

		if (rc != 0 && rc != 1)
			fail(load, "reclaim: %d", rc);
		for (unsigned s = 0; s < load->plan->stores; s++) {
			rc = cowsnap_store_usage(load->store[s], &usage, sizeof(usage));
			if (rc || usage.used_bytes > usage.limit_bytes ||
				usage.snapshots > (SLOTS + LOAD_TAKERS) * CUT_ORIGINS)
				fail(load, "usage: %d, %llu of %llu used, %u snapshots", rc,
					(unsigned long long)usage.used_bytes,
					(unsigned long long)usage.limit_bytes, usage.snapshots);
		}
		rc = cowsnap_ctx_stats(load->ctx, &stats, sizeof(stats));
		if (rc || (load->plan->limit_chunks == 0 && stats.failed_writes))
			fail(load, "stats: %d", rc);
		sched_yield();
	}
	return NULL;
}

static struct cowsnap_device *open_device(struct load *load, uint64_t size_bytes)
{
	struct cowsnap_device *device = NULL;
	const char *folder = getenv("TMPDIR");
	char path[256];
	int fd;

	if (load->plan->device == LOAD_MEMORY) {
		cr_assert_eq(cowsnap_device_memory(load->ctx, size_bytes, &device), 0);
		return device;
	}
	if (load->plan->device == LOAD_SLOW) {
		struct shuffled *slow = &load->slow[load->slow_devices++];

		shuffled_open(slow, load->ctx, size_bytes);
		shuffled_run(slow, load->seed);
		return slow->device;
	}
	snprintf(path, sizeof(path), "%s/cowsnap-load-XXXXXX", folder ? folder : "/tmp");
	fd = mkstemp(path);
	cr_assert(fd >= 0);
	cr_assert_eq(ftruncate(fd, (off_t)size_bytes), 0);
	cr_assert_eq(cowsnap_device_file(load->ctx, path, NULL, &device), 0);
	unlink(path);
	close(fd);
	return device;
}

static void open_origin(struct load *load, unsigned o)
{
	uint8_t data[CUT_BLOCK];

	load->device[o] = open_device(load, CUT_BYTES);
	for (unsigned b = 0; b < CUT_BLOCKS; b++) {
		cut_fill(o, b, 0, data);
		cr_assert_eq(cowsnap_device_write(
				     load->device[o], data, (uint64_t)b * CUT_BLOCK, CUT_BLOCK),
			0);
	}
	cr_assert_eq(cowsnap_origin_open(load->ctx, load->device[o], &load->origin[o]), 0);
}

static void open_store(struct load *load, unsigned s)
{
	struct cowsnap_transient_options options = {
		.size = sizeof(options),
		.chunk_size_bytes = load->plan->chunk_bytes[s],
	};

	options.limit_bytes = load->plan->limit_chunks * load->plan->chunk_bytes[s];
	if (load->plan->device != LOAD_MEMORY) {
		load->store_device[s] = open_device(load, UINT64_C(1) << 26);
		options.device = load->store_device[s];
	}
	cr_assert_eq(cowsnap_store_transient(load->ctx, &options, &load->store[s]), 0);
}

static void load_open(struct load *load, const struct load_plan *plan)
{
	const struct cowsnap_ctx_options options = {
		.size = sizeof(options),
		.copy_inflight_bytes = plan->copy_inflight_bytes,
		.engine = plan->engine,
		.workers = plan->workers,
	};

	load->plan = plan;
	load->writer = load->worker;
	load->taker = load->writer + LOAD_WRITERS;
	load->reader = load->taker + LOAD_TAKERS;
	load->keeper = load->reader + LOAD_READERS;
	load->ender = load->keeper + 1;
	atomic_flag_clear(&load->failed_once);
	cut_init(&load->cut, VERSIONS);
	cr_assert_eq(cowsnap_ctx_create(&options, &load->ctx), 0);
	for (unsigned o = 0; o < plan->origins; o++)
		open_origin(load, o);
	for (unsigned s = 0; s < plan->stores; s++)
		open_store(load, s);
	for (unsigned i = 0; i < SLOTS; i++)
		pthread_mutex_init(&load->slot[i].lock, NULL);
}

static void start(struct load *load, struct worker *w, unsigned number, void *(*body)(void *))
{
	w->load = load;
	w->number = number;
	w->random = load->seed * 64 + (uint64_t)(w - load->worker);
	w->async = load->plan->async && number % 2 == 0 && w >= load->taker;
	if (w->async && !load->plan->workers)
		cr_assert_eq(cowsnap_queue_create(load->ctx, 2, &w->queue), 0);
	cr_assert_eq(pthread_create(&w->thread, NULL, body, w), 0);
}

static void run_threads(struct load *load)
{
	for (unsigned i = 0; i < LOAD_WRITERS; i++)
		start(load, &load->writer[i], i,
			i < load->plan->async_writers ? async_writer_main : writer_main);
	for (unsigned i = 0; i < LOAD_READERS; i++)
		start(load, &load->reader[i], i, reader_main);
	start(load, load->keeper, 0, keeper_main);
	start(load, load->ender, 0, ender_main);
	for (unsigned i = 0; i < LOAD_TAKERS; i++) {
		if (load->plan->taker_origins[i])
			start(load, &load->taker[i], i, taker_main);
	}
	for (unsigned i = 0; i < LOAD_TAKERS; i++) {
		if (load->plan->taker_origins[i])
			pthread_join(load->taker[i].thread, NULL);
	}
	atomic_store(&load->stop, true);
	for (unsigned i = 0; i < LOAD_WRITERS; i++)
		pthread_join(load->writer[i].thread, NULL);
	atomic_store(&load->writers_ended, true);
	pthread_join(load->ender->thread, NULL);
	for (unsigned i = 0; i < LOAD_READERS; i++)
		pthread_join(load->reader[i].thread, NULL);
	pthread_join(load->keeper->thread, NULL);
}

static void check_images(struct load *load)
{
	struct cut_image *image = atomic_load(&load->images);
	char message[MESSAGE_BYTES];

	while (image) {
		struct cut_image *next = image->next;
		const char *wrong = cut_check(&load->cut, image, message, sizeof(message));

		if (wrong)
			fail(load, "%s", wrong);
		free(image);
		image = next;
	}
}

static void load_close(struct load *load)
{
	for (size_t i = 0; i < sizeof(load->worker) / sizeof(load->worker[0]); i++)
		cr_assert_eq(cowsnap_queue_close(load->worker[i].queue), 0);
	for (unsigned i = 0; i < SLOTS; i++)
		pthread_mutex_destroy(&load->slot[i].lock);
	for (unsigned s = 0; s < load->plan->stores; s++) {
		struct cowsnap_store_usage usage;

		cr_assert_eq(cowsnap_store_usage(load->store[s], &usage, sizeof(usage)), 0);
		cr_assert_eq(usage.used_bytes, 0, "store %u keeps %llu bytes", s,
			(unsigned long long)usage.used_bytes);
		cr_assert_eq(cowsnap_store_close(load->store[s]), 0);
		if (load->plan->device != LOAD_SLOW)
			cr_assert_eq(cowsnap_device_close(load->store_device[s]), 0);
	}
	for (unsigned o = 0; o < load->plan->origins; o++) {
		cr_assert_eq(cowsnap_origin_close(load->origin[o]), 0);
		if (load->plan->device != LOAD_SLOW)
			cr_assert_eq(cowsnap_device_close(load->device[o]), 0);
	}
	while (load->slow_devices)
		shuffled_close(&load->slow[--load->slow_devices]);
	cr_assert_eq(cowsnap_ctx_destroy(load->ctx), 0);
	cut_fini(&load->cut);
	free(load);
}

void load_run(const struct load_plan *plan)
{
	struct load *load = calloc(1, sizeof(*load));
	const char *seed = getenv("COWSNAP_SEED");
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	load->seed = seed ? strtoull(seed, NULL, 0) : (uint64_t)t.tv_nsec;
	fprintf(stderr, "load: COWSNAP_SEED=%llu (threads: a replay need not fail again)\n",
		(unsigned long long)load->seed);
	load_open(load, plan);
	run_threads(load);
	for (unsigned i = 0; i < SLOTS; i++) {
		struct group *group = exchange(&load->slot[i], NULL);

		if (group)
			drop_group(load->keeper, group);
	}
	check_images(load);
	cr_assert(!atomic_load(&load->failed), "%s", load->message);
	while (cowsnap_reclaim(load->ctx, UINT64_MAX) == 1)
		;
	load_close(load);
}
