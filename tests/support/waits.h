/* SPDX-License-Identifier: MIT
 *
 * Waits for a test's thread, which may sleep, until a deadline (UINT64_MAX: never).
 */
#ifndef CS_TEST_WAITS_H
#define CS_TEST_WAITS_H

#include "gate.h"
#include "store.h"

/* Returns: has everybody left? */
static inline bool wait_drained(struct cs_gate *gate, uint64_t deadline_ns)
{
	struct cs_task task;

	cs_task_init(&task, NULL, NULL);
	while (cs_gate_await_drain(gate, &task.waiter)) {
		task.deadline_ns = deadline_ns;
		cs_task_sleep(&task);
		if (!task.timed_out)
			continue;
		if (!cs_gate_forsake_drain(gate, &task.waiter))
			cs_task_sleep(&task); /* the wake is on its way */
		return cs_gate_drained(gate);
	}
	return true;
}

/* Returns: has there been a change since @seen_epoch? */
static inline bool wait_space(
	struct cowsnap_store *store, uint64_t seen_epoch, uint64_t deadline_ns)
{
	struct cs_task task;

	cs_task_init(&task, NULL, NULL);
	if (!cs_store_await_space(store, seen_epoch, &task.waiter))
		return true;
	task.deadline_ns = deadline_ns;
	cs_task_sleep(&task);
	if (task.timed_out && cs_store_forsake_space(store, &task.waiter))
		return false;
	if (task.timed_out)
		cs_task_sleep(&task);
	return true;
}

#endif
