/* SPDX-License-Identifier: MIT
 *
 * Locks, conditions and fences, with the annotations that clang's thread-safety analysis checks
 * (preset clang-tsa). Lock and unlock are explicit and stay in one short function: the analysis
 * does not follow clean-up attributes.
 */
#ifndef CS_SYNC_H
#define CS_SYNC_H

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#if defined(__clang__)
#define CS_TSA(x) __attribute__((x))
#else
#define CS_TSA(x)
#endif
#define CS_CAPABILITY(name) CS_TSA(capability(name))
#define CS_ACQUIRE(...)     CS_TSA(acquire_capability(__VA_ARGS__))
#define CS_TRY_ACQUIRE(...) CS_TSA(try_acquire_capability(__VA_ARGS__))
#define CS_RELEASE(...)     CS_TSA(release_capability(__VA_ARGS__))
#define CS_REQUIRES(...)    CS_TSA(requires_capability(__VA_ARGS__))
#define CS_EXCLUDES(...)    CS_TSA(locks_excluded(__VA_ARGS__))
#define CS_NO_TSA           CS_TSA(no_thread_safety_analysis)

#if defined(__SANITIZE_THREAD__)
#define CS_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define CS_TSAN 1
#endif
#endif
#ifndef CS_TSAN
#define CS_TSAN 0
#endif

/* Two lines: the adjacent-line prefetcher makes neighbours share. */
#define CS_CACHE_BYTES                     128
#define cs_container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))
#define cs_likely(x)                       __builtin_expect(!!(x), 1)
#define cs_unlikely(x)                     __builtin_expect(!!(x), 0)

struct CS_CAPABILITY("mutex") cs_mutex {
	pthread_mutex_t mutex;
};

static inline void cs_mutex_init(struct cs_mutex *m)
{
	pthread_mutex_init(&m->mutex, NULL);
}

static inline void cs_mutex_fini(struct cs_mutex *m)
{
	pthread_mutex_destroy(&m->mutex);
}

static inline void cs_mutex_lock(struct cs_mutex *m) CS_ACQUIRE(*m) CS_NO_TSA
{
	pthread_mutex_lock(&m->mutex);
}

static inline bool cs_mutex_trylock(struct cs_mutex *m) CS_TRY_ACQUIRE(true, *m) CS_NO_TSA
{
	return pthread_mutex_trylock(&m->mutex) == 0;
}

static inline void cs_mutex_unlock(struct cs_mutex *m) CS_RELEASE(*m) CS_NO_TSA
{
	pthread_mutex_unlock(&m->mutex);
}

struct cs_cond {
	pthread_cond_t cond;
};

static inline void cs_cond_init(struct cs_cond *c)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&c->cond, &attr);
	pthread_condattr_destroy(&attr);
}

static inline void cs_cond_fini(struct cs_cond *c)
{
	pthread_cond_destroy(&c->cond);
}

static inline void cs_cond_broadcast(struct cs_cond *c)
{
	pthread_cond_broadcast(&c->cond);
}

static inline uint64_t cs_monotonic_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

/* The moment @wait_ns from now; UINT64_MAX stands for never. */
static inline uint64_t cs_deadline_ns(uint64_t wait_ns)
{
	uint64_t now = cs_monotonic_ns();

	return wait_ns > UINT64_MAX - now ? UINT64_MAX : now + wait_ns;
}

/* Later than time_t can say is never: a 64-bit deadline does not wrap. */
static inline bool cs_is_never(uint64_t deadline_ns)
{
	return deadline_ns / UINT64_C(1000000000) > (uint64_t)INT32_MAX;
}

static inline struct timespec cs_timespec(uint64_t ns)
{
	return (struct timespec){.tv_sec = (time_t)(ns / UINT64_C(1000000000)),
		.tv_nsec = (long)(ns % UINT64_C(1000000000))};
}

/* Waits until broadcast or @deadline_ns (UINT64_MAX: never). Returns false once it has passed. */
static inline bool cs_cond_wait_until(struct cs_cond *c, struct cs_mutex *m, uint64_t deadline_ns)
	CS_REQUIRES(*m)
{
	struct timespec t = cs_timespec(deadline_ns);

	if (cs_is_never(deadline_ns)) {
		pthread_cond_wait(&c->cond, &m->mutex);
		return true;
	}
	return pthread_cond_timedwait(&c->cond, &m->mutex, &t) != ETIMEDOUT;
}

/* One wake-up. The waiter may return, and the memory go, as soon as the set is visible: a late
 * futex wake on memory that is no longer an event wakes nobody who minds. */
enum { CS_EVENT_UNSET, CS_EVENT_SET, CS_EVENT_SLEPT_FOR };

struct cs_event {
	_Atomic uint32_t state;
};

static inline void cs_event_init(struct cs_event *e)
{
	atomic_init(&e->state, CS_EVENT_UNSET);
}

static inline bool cs_event_is_set(struct cs_event *e)
{
	/* Acquire: pairs with cs_event_set. */
	return atomic_load_explicit(&e->state, memory_order_acquire) == CS_EVENT_SET;
}

static inline void cs_event_set(struct cs_event *e)
{
	/* Release: what led to the event; pairs with cs_event_is_set and cs_event_wait. */
	if (atomic_exchange_explicit(&e->state, CS_EVENT_SET, memory_order_release) ==
		CS_EVENT_SLEPT_FOR)
		syscall(SYS_futex, &e->state, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

/* Sleeps once, at the longest until @until (of CLOCK_MONOTONIC; NULL: for ever). */
static inline bool cs_event_sleep(struct cs_event *e, const struct timespec *until)
{
	uint32_t unset = CS_EVENT_UNSET;

	atomic_compare_exchange_strong_explicit(
		&e->state, &unset, CS_EVENT_SLEPT_FOR, memory_order_relaxed, memory_order_relaxed);
	return syscall(SYS_futex, &e->state, FUTEX_WAIT_BITSET_PRIVATE, CS_EVENT_SLEPT_FOR, until,
		       NULL, FUTEX_BITSET_MATCH_ANY) == 0 ||
	       errno != ETIMEDOUT;
}

static inline void cs_event_wait(struct cs_event *e)
{
	/* Acquire: pairs with cs_event_set. */
	while (!cs_event_is_set(e))
		cs_event_sleep(e, NULL);
}

/* Returns: false once @deadline_ns (UINT64_MAX: never) has passed and it is not set. */
static inline bool cs_event_wait_until(struct cs_event *e, uint64_t deadline_ns)
{
	struct timespec until = cs_timespec(deadline_ns);
	bool in_time = true;

	if (cs_is_never(deadline_ns)) {
		cs_event_wait(e);
		return true;
	}
	/* Acquire: pairs with cs_event_set. */
	while (!cs_event_is_set(e)) {
		if (!in_time)
			return false;
		in_time = cs_event_sleep(e, &until);
	}
	return true;
}

/* Full fence. ThreadSanitizer does not model fences; a read-modify-write it does. */
static inline void cs_full_fence(void)
{
#if CS_TSAN
	static _Atomic int fence;
	atomic_fetch_add(&fence, 1);
#else
	atomic_thread_fence(memory_order_seq_cst);
#endif
}

#endif
