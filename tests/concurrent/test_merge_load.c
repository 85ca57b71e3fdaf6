/* SPDX-License-Identifier: MIT
 *
 * Merges under load: threads that read, write, discard and zero, in brackets, in brackets that do
 * not wait, and through the library, each with a model of its own pieces of the volume; one that
 * reads the other snapshots; one that releases what writes and the merge save at the same time.
 *
 * COWSNAP_ROUNDS=n makes n rounds of each.
 */
#include "concurrent/merging.h"

#include "support/pending.h"
#include "support/seed.h"

#define PIECE   UINT64_C(1024) /* a part of a chunk, so that users share chunks */
#define USERS   3u
#define FLIGHTS 4u

struct stage {
	struct family f;
	struct cowsnap_snapshot *released; /* the youngest of store 0 */
	uint8_t *at_take;                  /* its content */
	uint8_t *model;                    /* the volume */
	bool *known;                       /* what was discarded is not */
	_Atomic bool stop;
};

struct user {
	struct stage *stage;
	struct cowsnap_queue *queue; /* NULL: its brackets wait */
	unsigned number;
	struct seed seed;
	pthread_t thread;
	unsigned ops;
};

/* ---- Users ----------------------------------------------------------------------------------- */

/* The n-th of a user's pieces. */
static uint64_t piece_of(const struct user *u, uint64_t n)
{
	return (n * USERS + u->number) * PIECE;
}

static uint64_t pieces(const struct user *u)
{
	return (ALL / PIECE - u->number + USERS - 1) / USERS;
}

static void expect_piece(struct user *u, uint64_t at)
{
	const struct stage *s = u->stage;
	uint8_t data[PIECE];

	cr_assert_eq(cowsnap_origin_read(s->f.s.origin[0], data, at, PIECE), 0);
	for (unsigned i = 0; i < PIECE; i++)
		cr_assert(!s->known[at + i] || data[i] == s->model[at + i],
			"byte %llu is %u, not %u", (unsigned long long)(at + i), data[i],
			s->model[at + i]);
}

struct change {
	enum cowsnap_write_kind kind;
	uint64_t offset, length;
};

static struct change any_change(struct user *u, uint64_t at)
{
	static const enum cowsnap_write_kind kinds[] = {
		COWSNAP_WRITE, COWSNAP_WRITE, COWSNAP_WRITE_ZEROES, COWSNAP_DISCARD};
	uint64_t from = seed_below(&u->seed, 4) ? seed_below(&u->seed, PIECE) : 0;

	return (struct change){.kind = kinds[seed_below(&u->seed, 4)],
		.offset = at + from,
		.length = 1 + seed_below(&u->seed, PIECE - from)};
}

/* The bytes of a write are in the model afterwards. */
static void change_model(struct user *u, const struct change *c)
{
	struct stage *s = u->stage;

	if (c->kind == COWSNAP_WRITE)
		seed_fill(&u->seed, s->model + c->offset, c->length);
	else if (c->kind == COWSNAP_WRITE_ZEROES)
		memset(s->model + c->offset, 0, c->length);
	for (uint64_t i = 0; i < c->length; i++)
		s->known[c->offset + i] = c->kind != COWSNAP_DISCARD;
}

static const void *bytes_of(const struct user *u, const struct change *c)
{
	return c->kind == COWSNAP_WRITE ? u->stage->model + c->offset : NULL;
}

/* The bracket has begun. */
static void change_device(struct user *u, const struct change *c)
{
	struct cowsnap_device *device = u->stage->f.s.origin_device[0];
	int rc;

	change_model(u, c);
	if (c->kind == COWSNAP_WRITE)
		rc = cowsnap_device_write(device, bytes_of(u, c), c->offset, c->length);
	else if (c->kind == COWSNAP_WRITE_ZEROES)
		rc = cowsnap_device_zero(device, c->offset, c->length);
	else
		rc = cowsnap_device_discard(device, c->offset, c->length);
	cr_assert_eq(rc, 0, "error %d", rc);
}

static void use_piece(struct user *u)
{
	struct cowsnap_origin *origin = u->stage->f.s.origin[0];
	uint64_t at = piece_of(u, seed_below(&u->seed, pieces(u)));
	struct change c = any_change(u, at);
	struct cowsnap_op op;
	int rc;

	expect_piece(u, at);
	if (seed_below(&u->seed, 2)) {
		change_model(u, &c);
		rc = cowsnap_origin_write(origin, c.kind, bytes_of(u, &c), c.offset, c.length);
		cr_assert_eq(rc, 0, "error %d", rc);
	} else {
		rc = cowsnap_write_begin(origin, c.kind, c.offset, c.length, &op);
		cr_assert_eq(rc, 0, "error %d", rc);
		change_device(u, &c);
		cowsnap_write_end(&op);
	}
	expect_piece(u, at);
}

/* Several at once, of which one may be cancelled. */
static void use_queue(struct user *u)
{
	struct cowsnap_origin *origin = u->stage->f.s.origin[0];
	uint64_t first = seed_below(&u->seed, pieces(u) - FLIGHTS);
	struct pending_op pending[FLIGHTS] = {0};
	struct change c[FLIGHTS];
	int rc[FLIGHTS];

	for (unsigned i = 0; i < FLIGHTS; i++) {
		c[i] = any_change(u, piece_of(u, first + i));
		rc[i] = cowsnap_write_begin_async(origin, u->queue, c[i].kind, c[i].offset,
			c[i].length, &pending[i].op, pending_done, &pending[i]);
	}
	if (rc[1] == COWSNAP_PENDING && seed_below(&u->seed, 2))
		cr_assert_eq(cowsnap_op_cancel(&pending[1].op), 0);
	for (unsigned i = 0; i < FLIGHTS; i++) {
		if (rc[i] == COWSNAP_PENDING) {
			cr_assert(pending_wait(u->queue, &pending[i]), "nothing happens any more");
			rc[i] = pending[i].error;
		}
		cr_assert(rc[i] == 0 || (i == 1 && rc[i] == -ECANCELED), "%u: %d", i, rc[i]);
		if (rc[i])
			continue;
		change_device(u, &c[i]);
		cowsnap_write_end(&pending[i].op);
		expect_piece(u, piece_of(u, first + i));
	}
}

static void *user_body(void *argument)
{
	struct user *u = argument;

	for (; !atomic_load(&u->stage->stop) || u->ops < 20; u->ops++) {
		if (u->queue)
			use_queue(u);
		else
			use_piece(u);
	}
	return NULL;
}

/* ---- The other snapshots --------------------------------------------------------------------- */

static void *reader_body(void *argument)
{
	struct stage *s = argument;

	do
		expect_family(&s->f);
	while (!atomic_load(&s->stop));
	return NULL;
}

/* Each chunk is either what it was, or released. */
static void expect_released(struct stage *s)
{
	uint8_t data[CHUNK];

	for (uint64_t at = 0; at < ALL; at += CHUNK) {
		int rc = cowsnap_snapshot_read(s->released, data, at, CHUNK);

		cr_assert(rc == 0 || rc == -ENODATA, "error %d", rc);
		if (!rc)
			expect_bytes(data, s->at_take + at, CHUNK);
	}
}

static void *releaser_body(void *argument)
{
	struct stage *s = argument;

	for (uint64_t i = 0; i < ALL / CHUNK && !atomic_load(&s->stop); i += 2) {
		uint64_t at = i * 29 % (ALL / CHUNK) * CHUNK;

		cr_assert_eq(cowsnap_snapshot_release(s->released, at, CHUNK), 0);
		expect_released(s);
		cr_assert_geq(cowsnap_reclaim(s->f.s.ctx, 4), 0);
	}
	return NULL;
}

/* ---- One round ------------------------------------------------------------------------------- */

static void stage_open(struct stage *s, const struct family_options *options)
{
	memset(s, 0, sizeof(*s));
	make_family_with(&s->f, options);
	s->at_take = malloc(ALL);
	s->model = malloc(ALL);
	s->known = malloc(ALL * sizeof(*s->known));
	cr_assert_eq(cowsnap_origin_read(s->f.s.origin[0], s->at_take, 0, ALL), 0);
	model_merged(s->model);
	for (uint64_t i = 0; i < ALL; i++)
		s->known[i] = true;
	s->released = scene_take(&s->f.s, 0, 0, COWSNAP_LOSER_WRITE);
}

static void stage_close(struct stage *s)
{
	uint8_t *data = malloc(ALL);

	cr_assert_eq(
		cowsnap_device_read(test_device_inner(s->f.s.origin_test[0]), data, 0, ALL), 0);
	for (uint64_t i = 0; i < ALL; i++)
		cr_assert(!s->known[i] || data[i] == s->model[i], "byte %llu is %u, not %u",
			(unsigned long long)i, data[i], s->model[i]);
	expect_family(&s->f);
	expect_released(s);
	scene_drop(s->released);
	end_family(&s->f);
	free(data);
	free(s->at_take);
	free(s->model);
	free(s->known);
}

static void merge_under_load(const struct family_options *options, uint64_t step, struct seed *seed)
{
	struct stage *s = malloc(sizeof(*s));
	struct user user[USERS] = {0};
	pthread_t reader, releaser;
	struct mover mover;

	stage_open(s, options);
	cr_assert_eq(cowsnap_merge_begin(s->f.merged), 0);
	for (unsigned i = 0; i < USERS; i++) {
		user[i] = (struct user){.stage = s, .number = i, .seed = {seed_next(seed)}};
		if (i == 0)
			cr_assert_eq(cowsnap_queue_create(s->f.s.ctx, 3, &user[i].queue), 0);
		cr_assert_eq(pthread_create(&user[i].thread, NULL, user_body, &user[i]), 0);
	}
	cr_assert_eq(pthread_create(&reader, NULL, reader_body, s), 0);
	cr_assert_eq(pthread_create(&releaser, NULL, releaser_body, s), 0);
	mover_start(&mover, s->f.merged, step);
	cr_assert_eq(mover_join(&mover), 0);
	atomic_store(&s->stop, true);
	for (unsigned i = 0; i < USERS; i++)
		pthread_join(user[i].thread, NULL);
	pthread_join(reader, NULL);
	pthread_join(releaser, NULL);
	cr_assert_eq(cowsnap_queue_close(user[0].queue), 0);
	stage_close(s);
	free(s);
}

static unsigned rounds(void)
{
	const char *given = getenv("COWSNAP_ROUNDS");

	return given ? (unsigned)strtoul(given, NULL, 0) : 4;
}

static void merge_rounds(struct family_options options, const char *test)
{
	static const uint64_t steps[] = {1, 3 * CHUNK, WHOLE};
	struct seed seed = seed_for(test);

	for (unsigned i = 0; i < rounds(); i++) {
		options.large = i % 2;
		merge_under_load(&options, steps[i % 3], &seed);
	}
}

Test(merge_load, every_kind_of_write)
{
	merge_rounds((struct family_options){0}, "merge_load.every_kind_of_write");
}

Test(merge_load, every_kind_of_write_with_records)
{
	merge_rounds((struct family_options){.records = true},
		"merge_load.every_kind_of_write_with_records");
}

Test(merge_load, on_devices_that_are_submitted_to)
{
	struct family_options options = {.scene = {.engine = COWSNAP_ENGINE_LOOP,
						 .submits = true,
						 .mode = TEST_ASYNC_REVERSE}};

	merge_rounds(options, "merge_load.on_devices_that_are_submitted_to");
	options.records = true;
	merge_rounds(options, "merge_load.on_devices_that_are_submitted_to, with records");
}

/* ---- Whoever comes first --------------------------------------------------------------------- */

struct dropper {
	struct cowsnap_snapshot *snapshot;
	pthread_barrier_t ready;
	pthread_t thread;
	int rc;
};

static void *dropper_body(void *argument)
{
	struct dropper *d = argument;

	pthread_barrier_wait(&d->ready);
	d->rc = cowsnap_snapshot_drop(d->snapshot);
	return NULL;
}

/* One of the two is refused, and the other one is done. */
static void meets_a_drop(bool records)
{
	struct cowsnap_snapshot *held;
	struct dropper dropper;
	struct family f;
	int rc;

	make_family_with(&f, &(struct family_options){.records = records});
	held = cowsnap_snapshot_ref(f.merged);
	dropper.snapshot = f.merged;
	cr_assert_eq(pthread_barrier_init(&dropper.ready, NULL, 2), 0);
	cr_assert_eq(pthread_create(&dropper.thread, NULL, dropper_body, &dropper), 0);
	pthread_barrier_wait(&dropper.ready);
	rc = cowsnap_merge_begin(held);
	pthread_join(dropper.thread, NULL);
	pthread_barrier_destroy(&dropper.ready);
	cr_assert_eq(dropper.rc, rc ? 0 : -EBUSY, "%d, %d", rc, dropper.rc);
	cr_assert(rc == 0 || rc == -EIDRM, "error %d", rc);
	if (!rc)
		cr_assert_eq(cowsnap_merge_run(f.merged, WHOLE), 0);
	cr_assert_eq(cowsnap_merge_begin(held), -EIDRM);
	cowsnap_snapshot_unref(held);
	expect_family(&f);
	end_family(&f);
}

Test(merge_load, begins_beside_a_drop)
{
	for (unsigned i = 0; i < 4 * rounds(); i++)
		meets_a_drop(i % 2);
}
