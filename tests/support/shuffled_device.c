/* SPDX-License-Identifier: MIT */
#include "support/shuffled_device.h"

#include <errno.h>
#include <string.h>

#include "support/test.h"

static int shuffled_read(void *user, void *buffer, uint64_t offset, uint64_t length)
{
	return cowsnap_device_read(((struct shuffled *)user)->inner, buffer, offset, length);
}

static int shuffled_write(void *user, const void *buffer, uint64_t offset, uint64_t length)
{
	return cowsnap_device_write(((struct shuffled *)user)->inner, buffer, offset, length);
}

static int move(struct shuffled *s, const struct cowsnap_io *io)
{
	switch (io->kind) {
	case COWSNAP_IO_READ:
		return shuffled_read(s, io->buffer, io->offset, io->length);
	case COWSNAP_IO_WRITE:
		return shuffled_write(s, io->buffer, io->offset, io->length);
	default:
		return -EOPNOTSUPP;
	}
}

static void shuffled_submit(void *user, struct cowsnap_io *io)
{
	struct shuffled *s = user;

	pthread_mutex_lock(&s->lock);
	cr_assert_lt(s->count, SHUFFLED_REQUESTS);
	s->io[s->count++] = io;
	pthread_cond_signal(&s->came);
	pthread_mutex_unlock(&s->lock);
}

void shuffled_open(struct shuffled *s, struct cowsnap_ctx *ctx, uint64_t size_bytes)
{
	static const struct cowsnap_device_ops ops = {
		.size = sizeof(ops),
		.read = shuffled_read,
		.write = shuffled_write,
		.submit = shuffled_submit,
	};
	const struct cowsnap_device_options options = {
		.size = sizeof(options), .size_bytes = size_bytes, .name = "slow"};

	memset(s, 0, sizeof(*s));
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->came, NULL);
	cr_assert_eq(cowsnap_device_memory(ctx, size_bytes, &s->inner), 0);
	cr_assert_eq(cowsnap_device_create(ctx, &ops, &options, s, &s->device), 0);
}

void shuffled_close(struct shuffled *s)
{
	if (s->threaded) {
		pthread_mutex_lock(&s->lock);
		s->stop = true;
		pthread_cond_signal(&s->came);
		pthread_mutex_unlock(&s->lock);
		pthread_join(s->thread, NULL);
	}
	cr_assert_eq(s->count, 0, "%zu requests have not ended", s->count);
	cr_assert_eq(cowsnap_device_close(s->device), 0);
	cr_assert_eq(cowsnap_device_close(s->inner), 0);
	pthread_cond_destroy(&s->came);
	pthread_mutex_destroy(&s->lock);
}

size_t shuffled_count(struct shuffled *s)
{
	size_t count;

	pthread_mutex_lock(&s->lock);
	count = s->count;
	pthread_mutex_unlock(&s->lock);
	return count;
}

/* Under the lock. */
static struct cowsnap_io *take_out(struct shuffled *s, size_t which)
{
	struct cowsnap_io *io = s->io[which];

	s->count--;
	memmove(&s->io[which], &s->io[which + 1], (s->count - which) * sizeof(s->io[0]));
	return io;
}

bool shuffled_end(struct shuffled *s, size_t which, int error)
{
	struct cowsnap_io *io = NULL;

	pthread_mutex_lock(&s->lock);
	if (which < s->count)
		io = take_out(s, which);
	pthread_mutex_unlock(&s->lock);
	if (!io)
		return false;
	cowsnap_io_complete(io, error ? error : move(s, io));
	return true;
}

size_t shuffled_end_all(struct shuffled *s)
{
	size_t ended = 0;

	for (size_t count = shuffled_count(s); count; count--)
		ended += shuffled_end(s, count - 1, 0);
	return ended;
}

static void *end_at_random(void *argument)
{
	struct shuffled *s = argument;

	pthread_mutex_lock(&s->lock);
	while (!s->stop || s->count) {
		struct cowsnap_io *io;

		if (!s->count) {
			pthread_cond_wait(&s->came, &s->lock);
			continue;
		}
		s->random = s->random * UINT64_C(6364136223846793005) + 1442695040888963407;
		io = take_out(s, (s->random >> 33) % s->count);
		pthread_mutex_unlock(&s->lock);
		cowsnap_io_complete(io, move(s, io));
		pthread_mutex_lock(&s->lock);
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

void shuffled_run(struct shuffled *s, uint64_t seed)
{
	s->random = seed;
	s->threaded = true;
	cr_assert_eq(pthread_create(&s->thread, NULL, end_at_random, s), 0);
}
