/* SPDX-License-Identifier: MIT */
#include "crash/power.h"
#include "support/test.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

/* ---- Journal --------------------------------------------------------------------------------- */

void journal_init(struct journal *journal)
{
	memset(journal, 0, sizeof(*journal));
	pthread_mutex_init(&journal->lock, NULL);
	journal_clear(journal);
}

void journal_fini(struct journal *journal)
{
	free(journal->ops);
	free(journal->data);
	free(journal->notes);
	pthread_mutex_destroy(&journal->lock);
}

void journal_clear(struct journal *journal)
{
	journal->now = POWER_STEP;
	journal->count = 0;
	journal->data_bytes = 0;
	journal->note_count = 0;
	journal->recording = false;
	journal->killed = false;
	journal->kill_countdown = 0;
}

void journal_kill(struct journal *journal, uint64_t n)
{
	pthread_mutex_lock(&journal->lock);
	journal->kill_countdown = n;
	journal->killed = false;
	pthread_mutex_unlock(&journal->lock);
}

/* Room for @more after @used elements. */
static void *room_for(void *array, size_t *capacity, size_t used, size_t more, size_t size)
{
	size_t wanted = *capacity ? *capacity : 64;

	while (wanted < used + more)
		wanted *= 2;
	if (wanted == *capacity)
		return array;
	array = realloc(array, wanted * size);
	cr_assert_not_null(array);
	*capacity = wanted;
	return array;
}

static uint64_t tick(struct journal *journal)
{
	uint64_t now = journal->now;

	journal->now += POWER_STEP;
	return now;
}

void journal_note(struct journal *journal, const struct promise *promise)
{
	pthread_mutex_lock(&journal->lock);
	if (journal->recording) {
		journal->notes = room_for(journal->notes, &journal->note_capacity,
			journal->note_count, 1, sizeof(*journal->notes));
		journal->notes[journal->note_count++] =
			(struct power_note){tick(journal), *promise};
	}
	pthread_mutex_unlock(&journal->lock);
}

/* Returns: the op's number, for end_op(). Called with the lock. */
static size_t start_op(struct power *power, enum power_kind kind, const void *data, uint64_t offset,
	uint64_t length)
{
	struct journal *journal = power->journal;
	struct power_op op = {
		.kind = kind,
		.device = power->number,
		.end = POWER_NEVER,
		.offset = offset,
		.length = length,
	};

	if (!journal->recording)
		return 0;
	journal->ops = room_for(journal->ops, &journal->capacity, journal->count, 1, sizeof(op));
	journal->data = room_for(journal->data, &journal->data_capacity, journal->data_bytes,
		length, sizeof(*journal->data));
	op.start = tick(journal);
	op.data = journal->data_bytes;
	if (length)
		memcpy(journal->data + op.data, data, length);
	journal->data_bytes += length;
	journal->ops[journal->count] = op;
	return journal->count++;
}

static void end_op(struct power *power, size_t number)
{
	if (power->journal->recording)
		power->journal->ops[number].end = tick(power->journal);
}

/* A flush has failed: what no flush has covered until now may never become durable. */
static void lose_pending(struct power *power)
{
	struct journal *journal = power->journal;
	uint64_t covered = 0;

	for (size_t i = 0; i < journal->count; i++) {
		const struct power_op *op = &journal->ops[i];

		if (op->device == power->number && op->kind == POWER_FLUSH &&
			op->end != POWER_NEVER && op->start > covered)
			covered = op->start;
	}
	for (size_t i = 0; i < journal->count; i++) {
		struct power_op *op = &journal->ops[i];

		if (op->device == power->number && op->kind == POWER_WRITE && op->end > covered)
			op->lost = true;
	}
}

/* Called with the lock. */
static bool is_killed(struct power *power)
{
	struct journal *journal = power->journal;

	if (power->number == POWER_STORE && journal->kill_countdown > 0)
		journal->killed |= --journal->kill_countdown == 0;
	return journal->killed;
}

/* ---- Faults ---------------------------------------------------------------------------------- */

static bool strikes(struct power_fault *fault)
{
	if (fault->countdown == 0 || --fault->countdown > 0)
		return false;
	if (fault->for_good)
		fault->countdown = 1;
	return true;
}

static struct power_fault *fault_of_write(struct power *power, uint64_t offset)
{
	if (power->area_chunk_bytes && power_in_area(power->area_chunk_bytes, offset) &&
		strikes(&power->area_fault))
		return &power->area_fault;
	return strikes(&power->write_fault) ? &power->write_fault : NULL;
}

/* ---- The device ------------------------------------------------------------------------------ */

static int power_read(void *user, void *buffer, uint64_t offset, uint64_t length)
{
	struct power *power = user;

	pthread_mutex_lock(&power->journal->lock);
	memcpy(buffer, power->live + offset, length);
	pthread_mutex_unlock(&power->journal->lock);
	return 0;
}

/* A write under way: what it does, and what will be said of it. */
struct writing {
	size_t op;
	bool noted;
	int error;
};

/* With the lock. */
static struct writing start_change(struct power *power, enum power_kind kind, const uint8_t *data,
	uint64_t offset, uint64_t length)
{
	const struct power_fault *fault;
	struct writing writing = {.error = -EIO};

	if (is_killed(power))
		return writing;
	power->changes++;
	fault = fault_of_write(power, offset);
	writing.error = fault ? fault->error : 0;
	if (fault && fault->effect == POWER_REAR) {
		uint64_t front = length / 2 / power->traits->unit_bytes * power->traits->unit_bytes;

		data += front;
		offset += front;
		length -= front;
	}
	if (fault)
		kind = POWER_WRITE;
	if (!fault || fault->effect != POWER_NOTHING) {
		writing.op = start_op(power, kind, data, offset, length);
		writing.noted = true;
		memcpy(power->live + offset, data, length);
	}
	return writing;
}

static int change(struct power *power, enum power_kind kind, const uint8_t *data, uint64_t offset,
	uint64_t length)
{
	struct writing writing;

	if (power->hook.call)
		power->hook.call(power->hook.user, kind, offset, length);
	pthread_mutex_lock(&power->journal->lock);
	writing = start_change(power, kind, data, offset, length);
	if (writing.noted && power->flush_yields) {
		pthread_mutex_unlock(&power->journal->lock);
		sched_yield();
		pthread_mutex_lock(&power->journal->lock);
	}
	if (writing.noted)
		end_op(power, writing.op);
	pthread_mutex_unlock(&power->journal->lock);
	return writing.error;
}

static int power_write(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	return change(user, POWER_WRITE, buffer, offset, length);
}

int power_write_durable(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	return change(user, POWER_DURABLE, buffer, offset, length);
}

static int power_zero(void *user, uint64_t offset, uint64_t length)
{
	uint8_t *zeroes = calloc(1, length);
	int rc;

	cr_assert_not_null(zeroes);
	rc = change(user, POWER_WRITE, zeroes, offset, length);
	free(zeroes);
	return rc;
}

static int power_flush(void *user)
{
	struct power *power = user;
	bool fails;
	size_t op;

	if (power->hook.call)
		power->hook.call(power->hook.user, POWER_FLUSH, 0, 0);
	pthread_mutex_lock(&power->journal->lock);
	if (is_killed(power)) {
		pthread_mutex_unlock(&power->journal->lock);
		return -EIO;
	}
	power->flushes++;
	op = start_op(power, POWER_FLUSH, NULL, 0, 0);
	if (power->flush_yields) {
		pthread_mutex_unlock(&power->journal->lock);
		for (unsigned i = 0; i < power->flush_yields; i++)
			sched_yield();
		pthread_mutex_lock(&power->journal->lock);
	}
	fails = strikes(&power->flush_fault);
	if (fails)
		lose_pending(power);
	else
		end_op(power, op);
	pthread_mutex_unlock(&power->journal->lock);
	return fails ? power->flush_fault.error : 0;
}

/* ---- Submitted to ---------------------------------------------------------------------------- */

/* What a request that was submitted keeps until power_step(). */
enum { WORD_OP, WORD_NOTED, WORD_ERROR };

static void power_submit(void *user, struct cowsnap_io *io)
{
	struct power *power = user;
	struct writing w = {.error = 0};

	pthread_mutex_lock(&power->journal->lock);
	switch (io->kind) {
	case COWSNAP_IO_READ:
		memcpy(io->buffer, power->live + io->offset, io->length);
		break;
	case COWSNAP_IO_WRITE:
		w = start_change(power, POWER_WRITE, io->buffer, io->offset, io->length);
		break;
	case COWSNAP_IO_WRITE_DURABLE:
		w = start_change(power, POWER_DURABLE, io->buffer, io->offset, io->length);
		break;
	case COWSNAP_IO_FLUSH:
		power->flushes++;
		w.error = is_killed(power) ? -EIO : 0;
		w.noted = !w.error;
		w.op = w.noted ? start_op(power, POWER_FLUSH, NULL, 0, 0) : 0;
		break;
	default:
		w.error = -EOPNOTSUPP;
	}
	io->device_words[WORD_OP] = w.op;
	io->device_words[WORD_NOTED] = w.noted;
	io->device_words[WORD_ERROR] = (uint64_t)(int64_t)w.error;
	cr_assert_lt(power->in_flight, POWER_SUBMITTED);
	power->submitted[power->in_flight++] = io;
	pthread_mutex_unlock(&power->journal->lock);
}

/* With the lock. Returns: how it ended. */
static int end_request(struct power *power, const struct cowsnap_io *io)
{
	int error = (int)(int64_t)io->device_words[WORD_ERROR];

	if (io->kind == COWSNAP_IO_FLUSH && !error && strikes(&power->flush_fault)) {
		lose_pending(power);
		return power->flush_fault.error;
	}
	if (io->device_words[WORD_NOTED])
		end_op(power, io->device_words[WORD_OP]);
	return error;
}

bool power_step(struct power *power, uint64_t pick)
{
	struct cowsnap_io *io = NULL;
	int error = 0;

	pthread_mutex_lock(&power->journal->lock);
	if (power->in_flight) {
		struct cowsnap_io **at = &power->submitted[pick % power->in_flight];

		io = *at;
		*at = power->submitted[--power->in_flight];
		error = end_request(power, io);
	}
	pthread_mutex_unlock(&power->journal->lock);
	if (io)
		cowsnap_io_complete(io, error);
	return io;
}

/* ---- Making one ------------------------------------------------------------------------------ */

static int power_length(void *user, uint64_t *size_bytes)
{
	struct power *power = user;

	pthread_mutex_lock(&power->journal->lock);
	*size_bytes = power->size_bytes;
	pthread_mutex_unlock(&power->journal->lock);
	return 0;
}

int power_open(struct power *power, struct cowsnap_ctx *ctx, struct cowsnap_device **device)
{
	struct cowsnap_device_ops ops = {
		.size = sizeof(ops),
		.read = power_read,
		.write = power_write,
		.zero = power->traits->zero ? power_zero : NULL,
		.flush = power->traits->flush ? power_flush : NULL,
		.write_durable = power->traits->durable ? power_write_durable : NULL,
		.length = power_length,
		.submit = power->submits ? power_submit : NULL,
	};
	struct cowsnap_device_options options = {
		.size = sizeof(options),
		.block_size = power->traits->block_size,
		.size_bytes = power->size_bytes,
		.name = power->number == POWER_ORIGIN ? "origin" : "store",
	};

	return cowsnap_device_create(ctx, &ops, &options, power, device);
}

void power_fail_areas(struct power *power, struct power_fault fault)
{
	pthread_mutex_lock(&power->journal->lock);
	power->area_fault = fault;
	pthread_mutex_unlock(&power->journal->lock);
}

void power_grow(struct power *power, uint64_t size_bytes)
{
	pthread_mutex_lock(&power->journal->lock);
	power->size_bytes = size_bytes;
	pthread_mutex_unlock(&power->journal->lock);
}

/* ---- Layout ---------------------------------------------------------------------------------- */

bool power_in_area(uint64_t chunk_bytes, uint64_t offset)
{
	uint64_t chunk = offset / chunk_bytes;

	return chunk > 0 && chunk % (chunk_bytes / 16 + 1) == 1;
}

uint64_t power_record_limit(uint64_t chunk_bytes, uint64_t store_bytes)
{
	uint64_t per_area = chunk_bytes / 16;
	uint64_t chunks = store_bytes / chunk_bytes;
	uint64_t areas = (chunks - 1 + per_area) / (per_area + 1);
	uint64_t data = chunks - 1 - areas;

	return data < areas * per_area - 1 ? data : areas * per_area - 1;
}
