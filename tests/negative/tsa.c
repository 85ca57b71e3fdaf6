/* SPDX-License-Identifier: MIT
 *
 * Planted, with PLANTED defined: a call without the lock that it requires.
 */
#include "sync.h"

void cs_negative_count(struct cs_mutex *lock, int *counter);

static void count_locked(struct cs_mutex *lock, int *counter) CS_REQUIRES(*lock)
{
	(void)lock;
	++*counter;
}

void cs_negative_count(struct cs_mutex *lock, int *counter)
{
#if !defined(PLANTED)
	cs_mutex_lock(lock);
#endif
	count_locked(lock, counter);
#if !defined(PLANTED)
	cs_mutex_unlock(lock);
#endif
}
