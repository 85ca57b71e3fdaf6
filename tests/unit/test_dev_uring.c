/* SPDX-License-Identifier: MIT
 *
 * Files through io_uring: all kinds, what is short, what is not aligned, what fails, many threads,
 * and a kernel that forbids it. Where it does, these run on plain files, and must pass as well.
 */
#include "support/fail_alloc.h"
#include "support/seed.h"
#include "support/test.h"

#include "dev.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define FILE_BYTES (1u << 20)
#define BLOCK      4096u
#define MANY       600u
#define THREADS    4u

static char path[64];
static char log_text[512];

static void keep_log(void *user, enum cowsnap_log_level level, const char *message)
{
	(void)user;
	(void)level;
	snprintf(log_text, sizeof(log_text), "%s", message);
}

static const struct cowsnap_log logger = {.size = sizeof(logger), .write = keep_log};

static void enter(void)
{
	int fd;

	log_text[0] = '\0';
	/* The working directory of a test is the build tree: a real file system, unlike some /tmp.
	 */
	snprintf(path, sizeof(path), "test_dev_uring.XXXXXX");
	fd = mkstemp(path);
	cr_assert_geq(fd, 0);
	cr_assert_eq(ftruncate(fd, FILE_BYTES), 0);
	close(fd);
}

static void leave(void)
{
	unlink(path);
}

TestSuite(dev_uring, .init = enter, .fini = leave);

struct scene {
	struct cowsnap_ctx *ctx;
	struct cowsnap_queue *queue;
	struct cowsnap_device *device;
};

struct request {
	struct cowsnap_io io;
	unsigned calls;
	int error;
};

static void note(struct cowsnap_io *io, int error)
{
	struct request *r = io->user;

	r->calls++;
	r->error = error;
}

static int make_ctx(const struct cowsnap_allocator *allocator, struct cowsnap_ctx **ctx)
{
	struct cowsnap_ctx_options options = {.size = sizeof(options),
		.log = &logger,
		.allocator = allocator,
		.engine = COWSNAP_ENGINE_LOOP};

	return cowsnap_ctx_create(&options, ctx);
}

static int open_device(struct cowsnap_ctx *ctx, uint32_t flags, struct cowsnap_device **device)
{
	struct cowsnap_file_options options = {.size = sizeof(options), .flags = flags};

	return cowsnap_device_uring(ctx, path, &options, device);
}

static void open_scene(struct scene *s, uint32_t flags)
{
	cr_assert_eq(make_ctx(NULL, &s->ctx), 0);
	cr_assert_eq(open_device(s->ctx, flags, &s->device), 0);
	cr_assert_eq(cowsnap_queue_create(s->ctx, 8, &s->queue), 0);
}

static void close_scene(struct scene *s)
{
	cr_assert_eq(cowsnap_device_close(s->device), 0);
	cr_assert_eq(cowsnap_queue_close(s->queue), 0);
	cr_assert_eq(cowsnap_ctx_destroy(s->ctx), 0);
}

static void set(struct request *r, enum cowsnap_io_kind kind, void *buffer, uint64_t offset,
	uint64_t length)
{
	*r = (struct request){.io = {.kind = kind,
				      .buffer = buffer,
				      .offset = offset,
				      .length = length,
				      .done = note,
				      .user = r}};
}

/* Polls once something is to be done. Returns: false if nothing was within 30 seconds. */
static bool wait_and_poll(struct cowsnap_queue *queue)
{
	struct pollfd fd = {.fd = cowsnap_queue_fd(queue), .events = POLLIN};
	int n;

	do
		n = poll(&fd, 1, 30000);
	while (n < 0 && errno == EINTR);
	return n == 1 && cowsnap_queue_poll(queue) >= 0;
}

/* Returns: how it ended; 1: it was not started, or does not end. */
static int do_on(struct cowsnap_queue *queue, struct cowsnap_device *device,
	enum cowsnap_io_kind kind, void *buffer, uint64_t offset, uint64_t length)
{
	struct request r;

	set(&r, kind, buffer, offset, length);
	if (cowsnap_device_submit(device, queue, &r.io) || r.calls)
		return 1;
	while (!r.calls) {
		if (!wait_and_poll(queue))
			return 1;
	}
	return r.calls == 1 ? r.error : 1;
}

static int do_one(
	struct scene *s, enum cowsnap_io_kind kind, void *buffer, uint64_t offset, uint64_t length)
{
	return do_on(s->queue, s->device, kind, buffer, offset, length);
}

static _Alignas(BLOCK) uint8_t image[FILE_BYTES]; /* what the file should hold */
static _Alignas(BLOCK) uint8_t bytes[FILE_BYTES + BLOCK];

static void check_image(struct scene *s)
{
	cr_assert_eq(cowsnap_device_read(s->device, bytes, 0, FILE_BYTES), 0);
	cr_assert_arr_eq(bytes, image, FILE_BYTES);
}

/* ---- Kinds ----------------------------------------------------------------------------------- */

static void each_kind(uint32_t flags)
{
	struct seed random = {1};
	struct scene s;

	open_scene(&s, flags);
	seed_fill(&random, image, FILE_BYTES);
	cr_assert_eq(do_one(&s, COWSNAP_IO_WRITE, image, 0, FILE_BYTES), 0);
	cr_assert_eq(do_one(&s, COWSNAP_IO_READ, bytes, 0, FILE_BYTES), 0);
	cr_assert_arr_eq(bytes, image, FILE_BYTES);
	seed_fill(&random, image + BLOCK, 3 * BLOCK);
	cr_assert_eq(
		do_one(&s, COWSNAP_IO_WRITE_DURABLE, image + BLOCK, BLOCK, 3 * (uint64_t)BLOCK), 0);
	memset(image + 8 * BLOCK, 0, 2 * BLOCK);
	cr_assert_eq(
		do_one(&s, COWSNAP_IO_ZERO, NULL, 8 * (uint64_t)BLOCK, 2 * (uint64_t)BLOCK), 0);
	cr_assert_eq(do_one(&s, COWSNAP_IO_FLUSH, NULL, 0, 0), 0);
	check_image(&s);
	cr_assert_eq(
		do_one(&s, COWSNAP_IO_DISCARD, NULL, 16 * (uint64_t)BLOCK, 2 * (uint64_t)BLOCK), 0);
	memset(image + 16 * BLOCK, 0, 2 * BLOCK);
	check_image(&s);
	cr_assert_eq(do_one(&s, COWSNAP_IO_READ, bytes, FILE_BYTES, 1), 1, "outside");
	close_scene(&s);
}

Test(dev_uring, each_kind_in_the_page_cache)
{
	each_kind(0);
}

Test(dev_uring, each_kind_past_the_page_cache)
{
	each_kind(COWSNAP_FILE_DIRECT);
}

/* Ranges and buffers of any alignment, against the image. */
static void any_alignment(uint32_t flags)
{
	struct seed random = seed_for("dev_uring any_alignment");
	struct scene s;

	open_scene(&s, flags);
	seed_fill(&random, image, FILE_BYTES);
	cr_assert_eq(do_one(&s, COWSNAP_IO_WRITE, image, 0, FILE_BYTES), 0);
	for (unsigned i = 0; i < 150; i++) {
		uint64_t length = 1 + seed_next(&random) % (i % 8 ? 20000 : 700000);
		uint64_t offset = seed_next(&random) % (FILE_BYTES - length);
		uint64_t shift = seed_next(&random) % 3;
		uint64_t first = offset / BLOCK * BLOCK, end = (offset + length) / BLOCK * BLOCK;

		cr_assert_eq(do_one(&s, COWSNAP_IO_READ, bytes + shift, offset, length), 0);
		cr_assert_arr_eq(bytes + shift, image + offset, length);
		if (first == end)
			continue;
		seed_fill(&random, bytes + shift, end - first);
		memcpy(image + first, bytes + shift, end - first);
		cr_assert_eq(do_one(&s, i % 4 ? COWSNAP_IO_WRITE : COWSNAP_IO_WRITE_DURABLE,
				     bytes + shift, first, end - first),
			0);
	}
	check_image(&s);
	close_scene(&s);
}

Test(dev_uring, any_alignment_in_the_page_cache)
{
	any_alignment(0);
}

Test(dev_uring, any_alignment_past_the_page_cache)
{
	any_alignment(COWSNAP_FILE_DIRECT);
}

/* ---- Failures -------------------------------------------------------------------------------- */

Test(dev_uring, a_file_that_was_cut_is_an_error)
{
	struct scene s;

	open_scene(&s, 0);
	cr_assert_eq(truncate(path, FILE_BYTES / 2 + 100), 0);
	cr_assert_eq(do_one(&s, COWSNAP_IO_READ, bytes, FILE_BYTES / 2 - BLOCK, BLOCK + 100), 0);
	cr_assert_eq(do_one(&s, COWSNAP_IO_READ, bytes, FILE_BYTES / 2 - BLOCK, BLOCK + 101), -EIO,
		"short, and nothing more");
	cr_assert_not_null(strstr(log_text, "truncated"), "%s", log_text);
	cr_assert_eq(do_one(&s, COWSNAP_IO_READ, bytes, FILE_BYTES - 1, 1), -EIO);
	cr_assert_eq(do_one(&s, COWSNAP_IO_FLUSH, NULL, 0, 0), -EIO);
	close_scene(&s);
}

Test(dev_uring, a_read_behind_the_end_of_a_cut_file_past_the_page_cache)
{
	struct scene s;

	open_scene(&s, COWSNAP_FILE_DIRECT);
	cr_assert_eq(truncate(path, FILE_BYTES / 2 + 100), 0);
	cr_assert_eq(do_one(&s, COWSNAP_IO_READ, bytes, FILE_BYTES / 2, BLOCK), -EIO);
	cr_assert_eq(do_one(&s, COWSNAP_IO_READ, bytes + 1, FILE_BYTES / 2 + 50, 50), 0);
	cr_assert_eq(do_one(&s, COWSNAP_IO_READ, bytes + 1, FILE_BYTES / 2 + 50, 51), -EIO);
	close_scene(&s);
}

/* A limit on the size of files makes writes short, then makes them fail. */
Test(dev_uring, the_rest_of_a_short_write_fails)
{
	struct rlimit before, low;
	struct scene s;
	int rc[3];

	open_scene(&s, 0);
	signal(SIGXFSZ, SIG_IGN);
	cr_assert_eq(getrlimit(RLIMIT_FSIZE, &before), 0);
	low = before;
	low.rlim_cur = FILE_BYTES / 2;
	cr_assert_eq(setrlimit(RLIMIT_FSIZE, &low), 0);
	memset(bytes, 5, FILE_BYTES);
	rc[0] = do_one(&s, COWSNAP_IO_WRITE, bytes, FILE_BYTES / 2 - BLOCK, 2 * (uint64_t)BLOCK);
	rc[1] = do_one(&s, COWSNAP_IO_WRITE, bytes, FILE_BYTES / 2 - BLOCK, BLOCK);
	rc[2] = do_one(&s, COWSNAP_IO_WRITE, bytes, FILE_BYTES / 2, BLOCK);
	setrlimit(RLIMIT_FSIZE, &before);
	cr_assert_eq(rc[0], -EFBIG);
	cr_assert_eq(rc[1], 0);
	cr_assert_eq(rc[2], -EFBIG);
	close_scene(&s);
}

Test(dev_uring, to_read_only_is_enough_for_some)
{
	struct request r;
	struct scene s;

	open_scene(&s, COWSNAP_FILE_READONLY);
	cr_assert_eq(do_one(&s, COWSNAP_IO_READ, bytes, 0, FILE_BYTES), 0);
	cr_assert_eq(do_one(&s, COWSNAP_IO_FLUSH, NULL, 0, 0), 0);
	set(&r, COWSNAP_IO_WRITE, bytes, 0, BLOCK);
	cr_assert_eq(cowsnap_device_submit(s.device, s.queue, &r.io), -EROFS);
	cr_assert_eq(cowsnap_device_uring(s.ctx, NULL, NULL, &s.device), -EINVAL);
	cr_assert_eq(cowsnap_device_uring(s.ctx, "", NULL, &s.device), -ENOENT);
	close_scene(&s);
}

Test(dev_uring, each_allocation_may_fail)
{
	struct fail_alloc *mem = fail_alloc_create(false);
	bool failed = true;

	for (uint64_t n = 1; failed; n++) {
		struct cowsnap_ctx *ctx = NULL;
		struct cowsnap_device *device = NULL;
		struct cowsnap_queue *queue = NULL;
		int rc;

		fail_alloc_at(mem, n, false);
		rc = make_ctx(fail_alloc_table(mem), &ctx);
		if (!rc)
			rc = open_device(ctx, COWSNAP_FILE_DIRECT, &device);
		if (!rc)
			rc = cowsnap_queue_create(ctx, 2, &queue);
		if (!rc)
			rc = do_on(queue, device, COWSNAP_IO_READ, bytes + 1, 1, 5);
		if (!rc)
			rc = do_on(queue, device, COWSNAP_IO_WRITE, bytes + 1, 0, BLOCK);
		failed = fail_alloc_failed(mem);
		cr_assert(rc == 0 || (rc == -ENOMEM && failed), "allocation %llu: %d",
			(unsigned long long)n, rc);
		cr_assert_eq(cowsnap_queue_close(queue), 0);
		cr_assert_eq(cowsnap_device_close(device), 0);
		if (ctx)
			cr_assert_eq(cowsnap_ctx_destroy(ctx), 0);
		cr_assert_eq(fail_alloc_live(mem), 0);
	}
	fail_alloc_destroy(mem);
}

/* ---- Many ------------------------------------------------------------------------------------ */

/* Each thread has a queue and a part of the file, and a block under way in each request. */
struct part {
	struct scene *scene;
	unsigned index;
	int error;
	pthread_t thread;
};

static int run_requests(struct cowsnap_queue *queue, struct cowsnap_device *device,
	enum cowsnap_io_kind kind, uint8_t *at, uint64_t offset, unsigned count)
{
	struct request *r = calloc(count, sizeof(*r));
	unsigned calls = 0;
	int error = r ? 0 : -ENOMEM;

	for (unsigned i = 0; i < count && !error; i++) {
		set(&r[i], kind, at + i * 512, offset + i * 512, 512);
		error = cowsnap_device_submit(device, queue, &r[i].io);
	}
	while (!error && calls < count) {
		if (!wait_and_poll(queue))
			_exit(1); /* they are under way */
		calls = 0;
		for (unsigned i = 0; i < count; i++)
			calls += r[i].calls;
	}
	for (unsigned i = 0; i < count && !error; i++)
		error = r[i].error;
	free(r);
	return error;
}

static void *run_part(void *arg)
{
	struct part *p = arg;
	uint64_t at = p->index * (uint64_t)(FILE_BYTES / THREADS);
	struct cowsnap_queue *queue;

	p->error = cowsnap_queue_create(p->scene->ctx, 4, &queue);
	for (unsigned round = 0; round < 4 && !p->error; round++) {
		memset(image + at, (int)(p->index * 16 + round), FILE_BYTES / THREADS);
		p->error = run_requests(queue, p->scene->device, COWSNAP_IO_WRITE, image + at, at,
			FILE_BYTES / THREADS / 512);
		if (!p->error)
			p->error = run_requests(queue, p->scene->device, COWSNAP_IO_READ,
				bytes + at, at, FILE_BYTES / THREADS / 512);
		if (!p->error && memcmp(bytes + at, image + at, FILE_BYTES / THREADS) != 0)
			p->error = -EBADMSG;
	}
	if (!p->error)
		p->error = cowsnap_queue_close(queue);
	return NULL;
}

static void many_threads(uint32_t flags)
{
	struct part parts[THREADS];
	struct scene s;

	open_scene(&s, flags);
	for (unsigned i = 0; i < THREADS; i++) {
		parts[i] = (struct part){.scene = &s, .index = i};
		cr_assert_eq(pthread_create(&parts[i].thread, NULL, run_part, &parts[i]), 0);
	}
	for (unsigned i = 0; i < THREADS; i++) {
		pthread_join(parts[i].thread, NULL);
		cr_assert_eq(parts[i].error, 0);
	}
	close_scene(&s);
}

Test(dev_uring, several_queues_in_the_page_cache)
{
	many_threads(0);
}

Test(dev_uring, several_queues_past_the_page_cache)
{
	many_threads(COWSNAP_FILE_DIRECT);
}

/* ---- Threads and descriptors that go --------------------------------------------------------- */

static struct request left[MANY];

static void *start_and_go(void *arg)
{
	struct scene *s = arg;

	for (unsigned i = 0; i < MANY; i++) {
		set(&left[i], COWSNAP_IO_READ, bytes + i * 512, i * 512, 512);
		if (cowsnap_device_submit(s->device, s->queue, &left[i].io))
			return NULL;
		if (i % 50 == 0)
			cowsnap_queue_poll(s->queue);
	}
	cowsnap_queue_poll(s->queue);
	return arg;
}

Test(dev_uring, requests_outlive_the_thread_that_started_them)
{
	struct seed random = {3};
	unsigned calls = 0;
	pthread_t thread;
	struct scene s;
	void *started;

	open_scene(&s, COWSNAP_FILE_DIRECT);
	seed_fill(&random, image, FILE_BYTES);
	cr_assert_eq(do_one(&s, COWSNAP_IO_WRITE, image, 0, FILE_BYTES), 0);
	cr_assert_eq(pthread_create(&thread, NULL, start_and_go, &s), 0);
	pthread_join(thread, &started);
	cr_assert_not_null(started);
	while (calls < MANY) {
		calls = 0;
		for (unsigned i = 0; i < MANY; i++)
			calls += left[i].calls;
		if (calls < MANY)
			cr_assert(wait_and_poll(s.queue));
	}
	for (unsigned i = 0; i < MANY; i++)
		cr_assert_eq(left[i].error, 0);
	cr_assert_arr_eq(bytes, image, MANY * 512);
	close_scene(&s);
}

static unsigned open_fds(void)
{
	DIR *folder = opendir("/proc/self/fd");
	unsigned count = 0;

	cr_assert_not_null(folder);
	while (readdir(folder))
		count++;
	closedir(folder);
	return count;
}

Test(dev_uring, a_ring_is_closed_with_its_queue)
{
	struct scene s;
	unsigned before;

	cr_assert_eq(make_ctx(NULL, &s.ctx), 0);
	before = open_fds();
	for (unsigned i = 0; i < 3; i++) {
		cr_assert_eq(open_device(s.ctx, 0, &s.device), 0);
		cr_assert_eq(cowsnap_queue_create(s.ctx, 8, &s.queue), 0);
		cr_assert_eq(do_one(&s, COWSNAP_IO_READ, bytes, 0, FILE_BYTES), 0);
		cr_assert_eq(cowsnap_device_close(s.device), 0);
		/* The queue lives on, for other devices. */
		cr_assert_eq(open_device(s.ctx, 0, &s.device), 0);
		cr_assert_eq(do_one(&s, COWSNAP_IO_READ, bytes, 0, FILE_BYTES), 0);
		cr_assert_eq(cowsnap_queue_close(s.queue), 0);
		cr_assert_eq(cowsnap_device_close(s.device), 0);
		cr_assert_eq(open_fds(), before);
	}
	cr_assert_eq(cowsnap_ctx_destroy(s.ctx), 0);
}

/* ---- With a snapshot ------------------------------------------------------------------------- */

#define TOUCHES (FILE_BYTES / BLOCK)

struct touch {
	struct cowsnap_op op;
	struct cowsnap_io io;
	struct cowsnap_device *device;
	unsigned *open;
	int error;
};

static void touch_written(struct cowsnap_io *io, int error)
{
	struct touch *t = io->user;

	cowsnap_write_end(&t->op);
	t->error = error;
	--*t->open;
}

static void touch_admitted(struct cowsnap_op *op, void *user, int error)
{
	struct touch *t = user;

	(void)op;
	t->error = error ? error : cowsnap_device_submit(t->device, t->io.queue, &t->io);
	if (t->error)
		--*t->open;
}

/* All blocks are written at once. Returns: the first error. */
static int touch_all(struct scene *s, struct cowsnap_origin *origin, const uint8_t *data)
{
	static struct touch touches[TOUCHES];
	unsigned open = TOUCHES;

	for (unsigned i = 0; i < TOUCHES; i++) {
		struct touch *t = &touches[i];
		int rc;

		*t = (struct touch){.device = s->device, .open = &open};
		t->io = (struct cowsnap_io){.kind = COWSNAP_IO_WRITE,
			.buffer = (void *)(uintptr_t)data,
			.offset = i * (uint64_t)BLOCK,
			.length = BLOCK,
			.done = touch_written,
			.user = t,
			.queue = s->queue};
		rc = cowsnap_write_begin_async(origin, s->queue, COWSNAP_WRITE, t->io.offset, BLOCK,
			&t->op, touch_admitted, t);
		if (rc != COWSNAP_PENDING)
			touch_admitted(&t->op, t, rc);
	}
	while (open)
		cr_assert(wait_and_poll(s->queue));
	for (unsigned i = 0; i < TOUCHES; i++) {
		if (touches[i].error)
			return touches[i].error;
	}
	return 0;
}

Test(dev_uring, first_touches_leave_the_snapshot_as_it_was)
{
	struct cowsnap_file_options file = {.size = sizeof(file),
		.flags = COWSNAP_FILE_DIRECT | COWSNAP_FILE_CREATE,
		.length_bytes = FILE_BYTES};
	struct cowsnap_transient_options options = {
		.size = sizeof(options), .chunk_size_bytes = BLOCK, .limit_bytes = FILE_BYTES};
	static _Alignas(BLOCK) uint8_t data[BLOCK];
	struct cowsnap_take_entry entry = {0};
	struct seed random = {5};
	char store_path[80];
	struct scene s;

	open_scene(&s, COWSNAP_FILE_DIRECT);
	seed_fill(&random, image, FILE_BYTES);
	memset(data, 0xaa, BLOCK);
	cr_assert_eq(do_one(&s, COWSNAP_IO_WRITE, image, 0, FILE_BYTES), 0);
	snprintf(store_path, sizeof(store_path), "%s.store", path);
	cr_assert_eq(cowsnap_device_uring(s.ctx, store_path, &file, &options.device), 0);
	unlink(store_path);
	cr_assert_eq(cowsnap_origin_open(s.ctx, s.device, &entry.origin), 0);
	cr_assert_eq(cowsnap_store_transient(s.ctx, &options, &entry.store), 0);
	cr_assert_eq(cowsnap_take(s.ctx, NULL, &entry, 1), 0);
	cr_assert_eq(touch_all(&s, entry.origin, data), 0);
	cr_assert_eq(cowsnap_snapshot_read(entry.snapshot, bytes, 0, FILE_BYTES), 0);
	cr_assert_arr_eq(bytes, image, FILE_BYTES);
	cr_assert_eq(cowsnap_device_read(s.device, bytes, FILE_BYTES - BLOCK, BLOCK), 0);
	cr_assert_arr_eq(bytes, data, BLOCK);
	cr_assert_eq(cowsnap_snapshot_drop(entry.snapshot), 0);
	cowsnap_snapshot_unref(entry.snapshot);
	cr_assert_eq(cowsnap_store_close(entry.store), 0);
	cr_assert_eq(cowsnap_origin_close(entry.origin), 0);
	cr_assert_eq(cowsnap_device_close(options.device), 0);
	close_scene(&s);
}

/* ---- A kernel that forbids it ---------------------------------------------------------------- */

static bool forbid(int error)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t)error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {.len = sizeof(code) / sizeof(code[0]), .filter = code};

	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
	       prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/* In a child. Returns: its exit status: 0, or which step went wrong. */
static int work_without(int error, bool forbid_late)
{
	static const uint8_t zeroes[BLOCK];
	struct scene s;

	if (!forbid_late && !forbid(error))
		return 77;
	if (make_ctx(NULL, &s.ctx) || open_device(s.ctx, COWSNAP_FILE_DIRECT, &s.device))
		return 1;
	if (forbid_late && !forbid(error))
		return 77;
	if (cowsnap_queue_create(s.ctx, 8, &s.queue))
		return 2;
	memset(bytes, 9, 2 * BLOCK);
	if (do_one(&s, COWSNAP_IO_WRITE, bytes, 0, 2 * BLOCK))
		return 3;
	if (!strstr(log_text, "no io_uring"))
		return 4;
	if (do_one(&s, COWSNAP_IO_ZERO, NULL, BLOCK, BLOCK) ||
		do_one(&s, COWSNAP_IO_FLUSH, NULL, 0, 0) ||
		do_one(&s, COWSNAP_IO_WRITE_DURABLE, bytes, 2 * BLOCK, BLOCK) ||
		do_one(&s, COWSNAP_IO_DISCARD, NULL, 3 * BLOCK, BLOCK))
		return 5;
	if (do_one(&s, COWSNAP_IO_READ, bytes, 0, 2 * BLOCK) || bytes[0] != 9 ||
		memcmp(bytes + BLOCK, zeroes, BLOCK) != 0)
		return 6;
	if (cowsnap_device_close(s.device) || cowsnap_queue_close(s.queue) ||
		cowsnap_ctx_destroy(s.ctx))
		return 7;
	return 0;
}

static void run_child(int error, bool forbid_late)
{
	pid_t child = fork();
	int status;

	if (child == 0)
		_exit(work_without(error, forbid_late));
	cr_assert_gt(child, 0);
	cr_assert_eq(waitpid(child, &status, 0), child);
	cr_assert(WIFEXITED(status));
	if (WEXITSTATUS(status) == 77)
		cr_skip_test("no seccomp here");
	cr_assert_eq(WEXITSTATUS(status), 0, "step %d", WEXITSTATUS(status));
}

Test(dev_uring, where_it_is_forbidden_the_file_is_called)
{
	run_child(EPERM, false);
	run_child(ENOSYS, false);
	run_child(ENOMEM, false);
}

Test(dev_uring, where_a_queue_can_have_no_ring_the_file_is_called)
{
	run_child(ENOMEM, true);
}
