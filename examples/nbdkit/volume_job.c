/* SPDX-License-Identifier: MIT
 *
 * The volume's two jobs: it is rolled back to a snapshot, or a snapshot is made independent of it.
 *
 * Invariants:
 *  1. From before a merge begins until after it has ended, volume.merging is set: requests that
 *     come meanwhile go through the library. One that is older may still use the file alone; it is
 *     answered with what was there when it began.
 *  2. A merge into a persistent store has its mark in FILE.merging, durably, from before it begins
 *     until after the store has no snapshot any more. So whoever finds both a mark and a snapshot
 *     has to go on before anybody reads the volume: parts of it are older than others.
 * Failure: a merge that has failed stays, for merge-resume. There is no way back from it.
 */
#define NBDKIT_API_VERSION 2
#include "sidecar.h"
#include "volume.h"
#include "volume_store.h"

#include <errno.h>
#include <nbdkit-plugin.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* Of cowsnap_ctx_throttle(). */
static const unsigned int all_of_the_time = 100;

int volume_jobs_init(struct volume *volume)
{
	volume->share_percent = all_of_the_time;
	volume->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	job_init(&volume->merge, volume->wake, cowsnap_merge_run);
	job_init(&volume->detach, volume->wake, cowsnap_snapshot_detach);
	if (volume->wake >= 0)
		return 0;
	nbdkit_error("eventfd: %s", strerror(errno));
	return -errno;
}

bool volume_has_merge(const struct volume *volume)
{
	return volume->merge.snapshot != NULL;
}

/* ---- Merge ---------------------------------------------------------------------------------- */

static int begin_merge(struct volume *volume, struct named_snapshot *entry)
{
	int error;

	atomic_store(&volume->merging, true);
	error = cowsnap_merge_begin(entry->snapshot);
	if (error != 0) {
		atomic_store(&volume->merging, false);
		return error;
	}
	job_set(&volume->merge, entry->snapshot, entry->name);
	memset(&volume->merge_info, 0, sizeof(volume->merge_info));
	cowsnap_merge_info(entry->snapshot, &volume->merge_info, sizeof(volume->merge_info));
	return job_start(&volume->merge);
}

int volume_merge(struct volume *volume, const char *name)
{
	struct named_snapshot *entry = volume_entry(volume, name);
	int error;

	if (entry == NULL)
		return -ENOENT;
	if (volume_has_merge(volume))
		return -EBUSY;
	error = store_merge_mark(volume);
	if (error != 0)
		return error;
	error = begin_merge(volume, entry);
	if (error != 0 && !volume_has_merge(volume))
		store_merge_unmark(volume);
	return error;
}

int volume_merge_again(struct volume *volume)
{
	struct named_snapshot *entry = volume->snapshots;
	int error;

	if (volume->options->store_format != STORE_DM || !store_merge_marked(volume))
		return 0;
	if (entry == NULL)
		return store_merge_unmark(volume);
	error = begin_merge(volume, entry);
	if (error != 0)
		nbdkit_error(
			"the merge of snapshot %s was under way and cannot go on: %s; parts of "
			"file=%s are not what they must be. Remove %s to serve it as it is",
			entry->name, strerror(-error), volume->options->file, volume->merge_path);
	return error;
}

int volume_merge_stop(struct volume *volume)
{
	if (!volume_has_merge(volume))
		return -ESRCH;
	if (volume->merge.state != JOB_RUNNING || job_stopping(&volume->merge))
		return -EALREADY;
	job_stop(&volume->merge);
	return 0;
}

int volume_merge_resume(struct volume *volume)
{
	if (!volume_has_merge(volume))
		return -ESRCH;
	if (volume->merge.state == JOB_RUNNING && !job_stopping(&volume->merge))
		return -EALREADY;
	return job_start(&volume->merge);
}

static void merge_ended(struct volume *volume)
{
	volume->merge_info.moved_bytes = volume->merge_info.total_bytes;
	volume_forget(volume, volume->merge.name);
	job_clear(&volume->merge);
	atomic_store(&volume->merging, false);
	store_merge_unmark(volume);
	if (volume->options->store_format == STORE_DM)
		store_name_remove(volume);
}

/* ---- Detach --------------------------------------------------------------------------------- */

int volume_detach(struct volume *volume, const char *name)
{
	struct named_snapshot *entry = volume_entry(volume, name);

	if (entry == NULL)
		return -ENOENT;
	if (volume->detach.state == JOB_RUNNING) {
		if (strcmp(volume->detach.name, name) != 0)
			return -EBUSY;
		if (!job_stopping(&volume->detach))
			return -EALREADY;
		return job_start(&volume->detach);
	}
	job_set(&volume->detach, entry->snapshot, name);
	return job_start(&volume->detach);
}

int volume_detach_stop(struct volume *volume)
{
	if (volume->detach.state != JOB_RUNNING)
		return -ESRCH;
	if (job_stopping(&volume->detach))
		return -EALREADY;
	job_stop(&volume->detach);
	return 0;
}

/* ---- Both ----------------------------------------------------------------------------------- */

int volume_throttle(struct volume *volume, uint64_t bytes_per_s, unsigned int share_percent)
{
	int error = cowsnap_ctx_throttle(volume->ctx, bytes_per_s, share_percent);

	if (error != 0)
		return error;
	volume->throttle_bytes_per_s = bytes_per_s;
	volume->share_percent = share_percent;
	return 0;
}

void volume_jobs_poll(struct volume *volume)
{
	eventfd_t ended;

	eventfd_read(volume->wake, &ended);
	job_poll(&volume->merge);
	job_poll(&volume->detach);
	if (volume_has_merge(volume))
		cowsnap_merge_info(
			volume->merge.snapshot, &volume->merge_info, sizeof(volume->merge_info));
	if (volume_has_merge(volume) && volume->merge.state == JOB_ENDED)
		merge_ended(volume);
	if (volume->detach.state != JOB_RUNNING)
		job_clear(&volume->detach);
}

/* Without a persistent store nobody could go on with it: what is not moved now is lost. */
static void complete_merge(struct volume *volume)
{
	int error = 1;

	while (error > 0)
		error = cowsnap_merge_run(volume->merge.snapshot, UINT64_MAX);
	if (error == 0)
		volume->merge.state = JOB_ENDED;
	else
		nbdkit_error("the merge of snapshot %s has failed, and parts of file=%s are not "
			     "what they must be: %s",
			volume->merge.name, volume->options->file, strerror(-error));
}

void volume_jobs_end(struct volume *volume)
{
	bool persistent = volume->options->store_format == STORE_DM;

	if (volume->ctx != NULL)
		cowsnap_ctx_throttle(volume->ctx, 0, all_of_the_time);
	job_stop(&volume->detach);
	if (persistent)
		job_stop(&volume->merge);
	job_join(&volume->detach);
	job_join(&volume->merge);
	if (volume_has_merge(volume) && volume->merge.state != JOB_ENDED && !persistent)
		complete_merge(volume);
	if (volume_has_merge(volume) && volume->merge.state == JOB_ENDED)
		merge_ended(volume);
	job_destroy(&volume->detach);
	job_destroy(&volume->merge);
	if (volume->wake >= 0)
		close(volume->wake);
}
