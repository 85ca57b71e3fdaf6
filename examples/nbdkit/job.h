/* SPDX-License-Identifier: MIT
 *
 * What goes on in the background, on a thread of its own: a merge or a detach, in steps.
 */
#ifndef EXAMPLE_JOB_H
#define EXAMPLE_JOB_H

#include "name.h"

#include <cowsnap.h>
#include <pthread.h>

enum job_state {
	JOB_NONE,    /* there was none */
	JOB_RUNNING, /* or will stop as soon as its step is done */
	JOB_STOPPED,
	JOB_FAILED,
	JOB_ENDED,
};

struct job {
	/* The control thread's, like all calls below. */
	enum job_state state;
	int error;                         /* JOB_FAILED: why */
	struct cowsnap_snapshot *snapshot; /* a reference, as long as there is something to do */
	char name[SNAPSHOT_NAME_MAX + 1];
	pthread_t thread; /* JOB_RUNNING */
	/* Set at the beginning. */
	int (*step)(struct cowsnap_snapshot *snapshot, uint64_t max_bytes);
	int wake; /* an event to be told that the thread has come to its end */
	/* Under the lock. */
	pthread_mutex_t lock;
	bool stop;     /* asked for */
	bool finished; /* the thread ends, with this result: as step, but 1: it was stopped */
	int result;
	uint64_t steps; /* that it has done */
};

#define JOB_STEP_BYTES (UINT64_C(4) << 20)

void job_init(struct job *job, int wake,
	int (*step)(struct cowsnap_snapshot *snapshot, uint64_t max_bytes));

/* job_destroy - it has no thread */
void job_destroy(struct job *job);

/* job_set - what it is about; takes a reference */
void job_set(struct job *job, struct cowsnap_snapshot *snapshot, const char *name);

/* job_clear - gives the reference back */
void job_clear(struct job *job);

/* job_start - the thread, or go on if it was asked to stop and has not yet; returns 0, or a
 * negative errno: it has failed */
int job_start(struct job *job);

/* job_stop - ask it to stop after its step */
void job_stop(struct job *job);

/* job_stopping - it was asked to */
bool job_stopping(struct job *job);

/* job_steps - how many it has done since it was set */
uint64_t job_steps(struct job *job);

/* job_poll - find out whether it has come to an end; does not wait */
void job_poll(struct job *job);

/* job_join - wait until it has */
void job_join(struct job *job);

#endif
