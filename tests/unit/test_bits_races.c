/* SPDX-License-Identifier: MIT
 *
 * Look-ups in a list whose slips are used again meanwhile, as test_map_races.c has it: at the k-th
 * atomic load of a look-up the change is made, for k = 0, 1, 2 ... No threads, no luck.
 */
#include "support/test.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

static struct {
	bool armed;
	unsigned at; /* points still to pass */
	void (*action)(void);
} hook;

static void hook_point(void)
{
	if (!hook.armed)
		return;
	if (hook.at-- > 0)
		return;
	hook.armed = false;
	hook.action();
}

/* Those of the map are not points. */
#include "map.h"
#include "pool.h"

#undef atomic_load_explicit
#if defined(__clang__)
#define atomic_load_explicit(object, order) (hook_point(), __c11_atomic_load(object, order))
#else
#define atomic_load_explicit(object, order)         \
	__extension__({                             \
		__auto_type at_ = (object);         \
		__typeof__((void)0, *at_) value_;   \
		hook_point();                       \
		__atomic_load(at_, &value_, order); \
		value_;                             \
	})
#endif

#include "alloc.h"
#include "bits.c"

#define LIST_NUMBERS (SLIPS_MAX * (SLIP_WORDS - 1) * WORD_NUMBERS)

static struct cs_bits bits;

static uint64_t number_of(uint64_t i)
{
	return i * 17;
}

static void prepare(void)
{
	cs_bits_init(&bits, cs_alloc_libc());
	for (uint64_t i = 0; i < LIST_NUMBERS; i++)
		cr_assert_eq(cs_bits_set(&bits, number_of(i), 1), 0);
}

/* The list becomes a node, and its slips bitmaps of another group of the stripe. */
static void become_a_node(void)
{
	uint64_t other = (uint64_t)STRIPES * CS_BITS_GROUP;

	cr_assert_eq(cs_bits_set(&bits, 1, 1), 0);
	cr_assert_eq(cs_bits_set(&bits, other + 1, CS_BITS_GROUP - 2), 0);
}

/* Another one before the others: the rest stays where it is. */
static void become_longer(void)
{
	cr_assert_eq(cs_bits_set(&bits, 1, 1), 0);
}

static void in_each_place(void (*change)(void), uint64_t number, bool is_in)
{
	for (unsigned k = 0, passed = 1; passed; k++) {
		prepare();
		hook.at = k;
		hook.action = change;
		hook.armed = true;
		cr_assert_eq(cs_bits_test(&bits, number), is_in, "number %u, change at load %u",
			(unsigned)number, k);
		passed = !hook.armed;
		hook.armed = false;
		cs_bits_fini(&bits);
	}
}

Test(bits_races, a_list_becomes_a_node)
{
	in_each_place(become_a_node, number_of(0), true);
	in_each_place(become_a_node, number_of(LIST_NUMBERS / 2), true);
	in_each_place(become_a_node, number_of(LIST_NUMBERS - 1), true);
	in_each_place(become_a_node, 2, false);
	in_each_place(become_a_node, CS_BITS_GROUP - 1, false);
}

Test(bits_races, a_list_becomes_longer)
{
	in_each_place(become_longer, number_of(0), true);
	in_each_place(become_longer, 2, false);
}
