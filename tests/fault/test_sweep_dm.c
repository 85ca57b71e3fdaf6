/* SPDX-License-Identifier: MIT
 *
 * Each call of a device fails in turn, and each allocation, in short lives of a persistent store:
 * the first call of a kind, then the second, and so on until a run passes untouched; one alone, or
 * all from there on; with nothing moved, or half of it. After each run: the policy was respected,
 * what reads is exact, nothing leaks, nobody waits for ever, and what is on the device, opened
 * again where all is well, is what was promised.
 */
#include "fault/scenarios.h"
#include "support/test.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SWEEP_MAX 5000 /* calls; many more than any run has: the sweep itself must end */

/* Sanitizers are slow, and look for races and memory, not at each state. */
#if defined(CS_TEST_STANDIN)
#define STEP 8
#elif defined(__SANITIZE_ADDRESS__)
#define STEP 5
#else
#define STEP 1
#endif

enum where {
	ON_ORIGIN,
	ON_STORE,
	ON_MEMORY,
};

struct blow {
	enum where where;
	enum test_io kind;
	uint64_t n;
	bool for_good;
	bool halfway;
	int error;
};

/* The run under way, for whoever reads of an assertion that failed somewhere below. */
static const struct scenario *now;
static struct blow now_struck;

static void tell(void)
{
	static const char *const kinds[] = {
		"read", "write", "zero", "discard", "flush", "durable write", "length", "lock"};
	static const char *const places[] = {"origin", "store", "memory"};
	const struct blow *b = &now_struck;

	if (now)
		fprintf(stderr, "sweep: %s: %s of %s, number %llu%s%s, error %d\n", now->name,
			b->where == ON_MEMORY ? "allocation" : kinds[b->kind], places[b->where],
			(unsigned long long)b->n, b->for_good ? " and all later ones" : "",
			b->halfway ? ", halfway" : "", b->error);
}

/* ---- One run --------------------------------------------------------------------------------- */

static struct test_device *struck_device(struct dm_scene *s, const struct blow *b, unsigned i)
{
	return b->where == ON_ORIGIN ? s->at[i].origin_test : s->at[i].store_test;
}

static void arm(struct dm_scene *s, const struct blow *b)
{
	if (b->where == ON_MEMORY) {
		fail_alloc_at(s->memory, b->n, b->for_good);
		return;
	}
	/* With two stores it is the second one's devices that fail: the first was begun before. */
	struct test_device *t = struck_device(s, b, s->options.stores - 1);

	if (b->halfway)
		test_device_fail_short(t, b->kind, b->n, b->for_good, b->error);
	else
		test_device_fail(t, b->kind, b->n, b->for_good, b->error);
}

static bool struck(struct dm_scene *s, const struct blow *b)
{
	if (b->where == ON_MEMORY)
		return fail_alloc_failed(s->memory) > 0;
	return test_device_failed(struck_device(s, b, s->options.stores - 1)) > 0;
}

static void heal(struct dm_scene *s)
{
	if (s->memory)
		fail_alloc_at(s->memory, 0, false);
	for (unsigned i = 0; i < s->options.stores; i++) {
		test_device_heal(s->at[i].origin_test);
		test_device_heal(s->at[i].store_test);
	}
}

static void expect_policy(struct dm_scene *s, const struct blow *b)
{
	for (unsigned i = 0; i < s->options.stores; i++) {
		enum cowsnap_snapshot_state state;
		int reason;

		if (!s->at[i].snapshot)
			continue;
		state = dm_state(s, i, &reason);
		cr_assert(state != COWSNAP_SNAPSHOT_DROPPED);
		if (state == COWSNAP_SNAPSHOT_ACTIVE)
			continue;
		cr_assert(s->options.on_full == COWSNAP_LOSER_SNAPSHOT,
			"the write was to lose, not the snapshot");
		/* -EUCLEAN: it became so before a reopen. */
		cr_assert(reason == b->error || reason == -ENOSPC || reason == -EUCLEAN,
			"reason %d", reason);
	}
	/* A write fails for a snapshot that loses only if its loss cannot be recorded. */
	if (s->options.on_full == COWSNAP_LOSER_SNAPSHOT && b->where != ON_STORE)
		cr_assert_eq(s->failed_writes, 0);
}

/* Returns: whether a call failed. */
static bool run(const struct scenario *c, const struct blow *b)
{
	struct dm_scene_options options = c->options;
	struct dm_scene s;
	bool hit;

	now = c;
	now_struck = *b;
#if defined(CS_TEST_STANDIN)
	tell(); /* it has nothing that runs after a failure */
#endif
	options.memory = b->where == ON_MEMORY;
	dm_open(&s, &options);
	arm(&s, b);
	c->body(&s);
	hit = struck(&s, b);
	expect_policy(&s, b);
	for (unsigned i = 0; i < s.options.stores; i++) {
		if (s.at[i].snapshot && dm_state(&s, i, NULL) == COWSNAP_SNAPSHOT_ACTIVE)
			dm_expect_exact(&s, i, false);
	}
	heal(&s);
	for (unsigned i = 0; i < s.options.stores; i++) {
		if (s.at[i].snapshot && dm_state(&s, i, NULL) == COWSNAP_SNAPSHOT_ACTIVE)
			dm_expect_exact(&s, i, true);
		dm_expect_promise(&s, i);
	}
	dm_close(&s);
	now = NULL;
	return hit;
}

/* ---- Sweeps ---------------------------------------------------------------------------------- */

static void sweep(const struct scenario *c, struct blow b)
{
	for (b.n = 1; b.n < SWEEP_MAX; b.n += b.n < 8 ? 1 : STEP) {
		if (!run(c, &b))
			return;
	}
	cr_assert_fail("%s: the sweep does not end", c->name);
}

static const struct {
	int error;
	bool halfway;
} ways[] = {
	{-EIO, false},
#if !defined(CS_TEST_STANDIN)
	{-ENOSPC, false},
	{-EIO, true},
#endif
};

static void sweep_kind(const struct scenario *c, enum where where, enum test_io kind)
{
	for (unsigned w = 0; w < sizeof(ways) / sizeof(ways[0]); w++) {
		for (int for_good = 0; for_good < 2; for_good++)
			sweep(c, (struct blow){.where = where,
					 .kind = kind,
					 .for_good = for_good,
					 .halfway = ways[w].halfway,
					 .error = ways[w].error});
	}
}

/* COWSNAP_SCENARIO names a single one. ThreadSanitizer finds nothing where there is one thread. */
static bool chosen(const struct scenario *c)
{
	const char *only = getenv("COWSNAP_SCENARIO");

	if (only)
		return strcmp(only, c->name) == 0;
#if defined(CS_TEST_STANDIN)
	return strncmp(c->name, "writers", 7) == 0;
#else
	return true;
#endif
}

static void sweep_all(enum where where, enum test_io kind)
{
	for (unsigned i = 0; i < scenario_count; i++) {
		if (chosen(&scenarios[i]))
			sweep_kind(&scenarios[i], where, kind);
	}
}

#define SWEEP(name, where, kind)                           \
	Test(sweep_dm, name, .timeout = 600, .fini = tell) \
	{                                                  \
		sweep_all(where, kind);                    \
	}                                                  \
	struct dm_scene /* takes the semicolon that follows */

SWEEP(store_read, ON_STORE, TEST_IO_READ);
SWEEP(store_write, ON_STORE, TEST_IO_WRITE);
SWEEP(store_write_durable, ON_STORE, TEST_IO_WRITE_DURABLE);
SWEEP(store_zero, ON_STORE, TEST_IO_ZERO);
SWEEP(store_flush, ON_STORE, TEST_IO_FLUSH);
SWEEP(store_length, ON_STORE, TEST_IO_LENGTH);
SWEEP(store_lock, ON_STORE, TEST_IO_LOCK);
SWEEP(origin_read, ON_ORIGIN, TEST_IO_READ);
SWEEP(origin_write, ON_ORIGIN, TEST_IO_WRITE);
SWEEP(origin_flush, ON_ORIGIN, TEST_IO_FLUSH);
SWEEP(origin_lock, ON_ORIGIN, TEST_IO_LOCK);

static void sweep_memory(bool for_good)
{
	for (unsigned i = 0; i < scenario_count; i++) {
		if (chosen(&scenarios[i]))
			sweep(&scenarios[i], (struct blow){.where = ON_MEMORY,
						     .for_good = for_good,
						     .error = -ENOMEM});
	}
}

Test(sweep_dm, one_allocation, .timeout = 600, .fini = tell)
{
	sweep_memory(false);
}

Test(sweep_dm, no_memory_from_then_on, .timeout = 600, .fini = tell)
{
	sweep_memory(true);
}

/* Without a failure each life ends as it should: the sweeps would not notice one that does nothing.
 */
Test(sweep_dm, untouched, .timeout = 60)
{
	static const struct {
		const char *name;
		enum dm_promise promise;
	} ends[] = {
		{"life", DM_ABSENT},
		{"areas", DM_ACTIVE},
		{"reopen", DM_ACTIVE},
		{"reopen again", DM_ACTIVE},
		{"full", DM_ACTIVE},
		{"full, snapshot", DM_INVALID},
		{"full area", DM_INVALID},
		{"take again", DM_ACTIVE},
		{"drop twice", DM_ABSENT},
		{"overwrite", DM_ACTIVE},
		{"grow", DM_ACTIVE},
		{"generation", DM_ACTIVE},
		{"two", DM_ACTIVE},
		{"writers", DM_ACTIVE},
	};

	for (unsigned i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
		const struct scenario *c = scenario_find(ends[i].name);
		struct dm_scene s;

		cr_assert_not_null(c);
		dm_open(&s, &c->options);
		c->body(&s);
		dm_expect_promise(&s, 0);
		cr_assert_eq(s.at[0].promise, ends[i].promise, "%s", c->name);
		cr_assert_eq(s.failed_writes > 0, strcmp(c->name, "full") == 0, "%s", c->name);
		dm_close(&s);
	}
}
