/* SPDX-License-Identifier: MIT
 *
 * Planted: two threads add to a plain variable.
 */
#include "support/test.h"

#include <pthread.h>

static int shared;

static void *add(void *user)
{
	for (int i = 0; i < 1000; i++)
		shared++;
	return user;
}

Test(negative, race)
{
	pthread_t threads[2];

	for (int i = 0; i < 2; i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, add, NULL), 0);
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	cr_assert_gt(shared, 0);
}
