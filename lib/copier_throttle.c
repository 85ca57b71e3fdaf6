/* SPDX-License-Identifier: MIT
 *
 * The throttle's arithmetic: see the header.
 *
 * Invariants: a deadline that is handed out lies after the time that was told.
 * Locking: the caller's. Failure: none; sums that do not fit end at UINT64_MAX.
 */
#include "copier_throttle.h"

#define SECOND_NS UINT64_C(1000000000)

static uint64_t add(uint64_t a, uint64_t b)
{
	return b > UINT64_MAX - a ? UINT64_MAX : a + b;
}

/* @value * @by / @over without overflow, where the result fits. */
static uint64_t scale(uint64_t value, uint64_t by, uint64_t over)
{
	__extension__ typedef unsigned __int128 wide;
	wide result = (wide)value * by / over;

	return result > UINT64_MAX ? UINT64_MAX : (uint64_t)result;
}

static uint64_t rest_ns(const struct cs_throttle *t, uint64_t now_ns)
{
	return scale(now_ns - t->busy_since_ns, 100 - t->share_percent, t->share_percent);
}

void cs_throttle_set(struct cs_throttle *t, uint64_t bytes_per_s, unsigned share_percent)
{
	t->bytes_per_s = bytes_per_s;
	t->share_percent = share_percent;
	t->paid_ns = 0;
	t->rest_until_ns = 0;
}

uint64_t cs_throttle_admit(struct cs_throttle *t, uint64_t now_ns, uint64_t bytes)
{
	if (t->paid_ns > now_ns)
		return t->paid_ns;
	if (t->share_percent < 100) {
		if (t->rest_until_ns > now_ns)
			return t->rest_until_ns;
		/* When the spell will end is not known; by then there is this much to rest. */
		if (t->active && now_ns - t->busy_since_ns >= CS_THROTTLE_SPELL_NS)
			return add(now_ns, rest_ns(t, now_ns) + 1);
	}
	if (t->bytes_per_s)
		t->paid_ns = add(now_ns, scale(bytes, SECOND_NS, t->bytes_per_s));
	return 0;
}

void cs_throttle_begin(struct cs_throttle *t, uint64_t now_ns)
{
	if (!t->active++)
		t->busy_since_ns = now_ns;
}

void cs_throttle_end(struct cs_throttle *t, uint64_t now_ns)
{
	if (--t->active)
		return;
	t->rest_until_ns = add(now_ns, rest_ns(t, now_ns));
}
