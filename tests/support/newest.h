/* SPDX-License-Identifier: MIT
 *
 * What a merge asks of a store, for tests that wait for the answer.
 */
#ifndef TEST_SUPPORT_NEWEST_H
#define TEST_SUPPORT_NEWEST_H

#include "store.h"
#include "sync.h"

struct store_answer {
	struct cowsnap_newest newest;
	struct cowsnap_commit commit;
	struct cs_event given;
	int error;
};

static inline void store_newest_done(struct cowsnap_newest *newest, int error)
{
	struct store_answer *answer = cs_container_of(newest, struct store_answer, newest);

	answer->error = error;
	cs_event_set(&answer->given);
}

static inline void store_forget_done(struct cowsnap_commit *commit, int error)
{
	struct store_answer *answer = cs_container_of(commit, struct store_answer, commit);

	answer->error = error;
	cs_event_set(&answer->given);
}

/* Returns: how many runs, or an error. */
static inline int store_newest(struct cowsnap_store *store, uint64_t skip, uint64_t most,
	struct cowsnap_run *runs, size_t room)
{
	struct store_answer answer = {.newest = {.skip = skip,
					      .most = most,
					      .runs = runs,
					      .room = room,
					      .done = store_newest_done}};

	cs_event_init(&answer.given);
	cs_store_start_newest(store, &answer.newest);
	cs_event_wait(&answer.given);
	if (!answer.error)
		answer.error = cs_store_check_newest(store, &answer.newest);
	return answer.error ? answer.error : (int)answer.newest.count;
}

static inline int store_forget(
	struct cowsnap_store *store, const struct cowsnap_run *runs, size_t count)
{
	struct store_answer answer = {
		.commit = {.runs = runs, .count = count, .done = store_forget_done}};

	cs_event_init(&answer.given);
	cs_store_start_forget(store, &answer.commit);
	cs_event_wait(&answer.given);
	return answer.error;
}

/* What a table of the host's answers that keeps records of one chunk each in a list. */
static inline void newest_of(
	struct cowsnap_newest *newest, const struct cowsnap_run *records, size_t count)
{
	size_t at = count > newest->skip ? count - newest->skip : 0;
	struct cowsnap_run *run = newest->runs;

	newest->count = 0;
	for (uint64_t most = newest->most; at && most; at--, most--) {
		const struct cowsnap_run *one = &records[at - 1];
		bool space = one->location <= COWSNAP_LOCATION_MAX;

		if (newest->count && one->first + 1 == run->first &&
			one->location + space == run->location) {
			run->first--;
			run->location = one->location;
			run->count++;
			continue;
		}
		if (newest->count == newest->room)
			break;
		run = &newest->runs[newest->count++];
		*run = *one;
	}
}

#endif
