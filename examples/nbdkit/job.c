/* SPDX-License-Identifier: MIT
 *
 * A job: the library's call in steps, so that it can be stopped between two of them.
 *
 * Invariants:
 *  1. There is a thread as long as the state is JOB_RUNNING.
 *  2. A thread that was told to go on before it has said that it ends does not end.
 * Locking: job.lock for what both threads look at, held for no call that can block.
 * Failure: the error of a step ends the thread; the job can be started again.
 */
#include "job.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>

void job_init(struct job *job, int wake,
	int (*step)(struct cowsnap_snapshot *snapshot, uint64_t max_bytes))
{
	memset(job, 0, sizeof(*job));
	job->wake = wake;
	job->step = step;
	pthread_mutex_init(&job->lock, NULL);
}

void job_destroy(struct job *job)
{
	job_clear(job);
	pthread_mutex_destroy(&job->lock);
}

void job_set(struct job *job, struct cowsnap_snapshot *snapshot, const char *name)
{
	job_clear(job);
	job->snapshot = cowsnap_snapshot_ref(snapshot);
	strcpy(job->name, name);
	job->steps = 0;
	job->error = 0;
}

void job_clear(struct job *job)
{
	cowsnap_snapshot_unref(job->snapshot);
	job->snapshot = NULL;
}

/* True: the thread ends. The decision is made under the lock: see invariant 2. */
static bool end_here(struct job *job, int result)
{
	bool end;

	pthread_mutex_lock(&job->lock);
	end = result <= 0 || job->stop;
	job->steps++;
	job->finished = end;
	job->result = result;
	pthread_mutex_unlock(&job->lock);
	return end;
}

static void *run(void *user)
{
	struct job *job = user;
	int result;

	do
		result = job->step(job->snapshot, JOB_STEP_BYTES);
	while (!end_here(job, result));
	eventfd_write(job->wake, 1);
	return NULL;
}

/* False: it has said that it ends. */
static bool go_on(struct job *job)
{
	bool going;

	pthread_mutex_lock(&job->lock);
	going = !job->finished;
	if (going)
		job->stop = false;
	pthread_mutex_unlock(&job->lock);
	return going;
}

int job_start(struct job *job)
{
	sigset_t all;
	sigset_t before;
	int error;

	if (job->state == JOB_RUNNING) {
		if (go_on(job))
			return 0;
		job_join(job);
		if (job->state == JOB_ENDED)
			return 0;
	}
	job->stop = false;
	job->finished = false;
	/* Signals are nbdkit's business: its threads get them. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&job->thread, NULL, run, job);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	job->state = error == 0 ? JOB_RUNNING : JOB_FAILED;
	job->error = -error;
	return -error;
}

void job_stop(struct job *job)
{
	pthread_mutex_lock(&job->lock);
	job->stop = true;
	pthread_mutex_unlock(&job->lock);
}

bool job_stopping(struct job *job)
{
	bool stopping;

	pthread_mutex_lock(&job->lock);
	stopping = job->stop;
	pthread_mutex_unlock(&job->lock);
	return stopping;
}

uint64_t job_steps(struct job *job)
{
	uint64_t steps;

	pthread_mutex_lock(&job->lock);
	steps = job->steps;
	pthread_mutex_unlock(&job->lock);
	return steps;
}

void job_join(struct job *job)
{
	if (job->state != JOB_RUNNING)
		return;
	pthread_join(job->thread, NULL);
	job->state = job->result == 0 ? JOB_ENDED : job->result > 0 ? JOB_STOPPED : JOB_FAILED;
	job->error = job->result < 0 ? job->result : 0;
}

void job_poll(struct job *job)
{
	bool finished;

	pthread_mutex_lock(&job->lock);
	finished = job->finished;
	pthread_mutex_unlock(&job->lock);
	if (finished)
		job_join(job);
}
