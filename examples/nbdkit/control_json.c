/* SPDX-License-Identifier: MIT
 *
 * What `list` and `status` show, as JSON. A part that cannot be had is null: jansson's functions
 * take the NULL of a failed one and pass it on.
 */
#include "control.h"

#include <string.h>

static json_t *number(uint64_t value)
{
	return json_integer((json_int_t)value);
}

static const char *state_name(enum cowsnap_snapshot_state state)
{
	switch (state) {
	case COWSNAP_SNAPSHOT_ACTIVE:
		return "active";
	case COWSNAP_SNAPSHOT_INVALID:
		return "invalid";
	case COWSNAP_SNAPSHOT_DROPPED:
		return "dropped";
	case COWSNAP_SNAPSHOT_MAP_ONLY:
		return "map-only";
	case COWSNAP_SNAPSHOT_MERGING:
		return "merging";
	}
	return "unknown";
}

static json_t *snapshot_object(const struct named_snapshot *entry)
{
	struct cowsnap_snapshot_info info;
	json_t *object;

	if (cowsnap_snapshot_info(entry->snapshot, &info, sizeof(info)) != 0)
		return NULL;
	object = json_pack("{s:s,s:s,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:b,s:b}", "name", entry->name,
		"state", state_name(info.state), "id", number(info.id), "size_bytes",
		number(info.size_bytes), "chunk_size_bytes", number(info.chunk_size_bytes),
		"saved_chunks", number(info.saved_chunks), "map_bytes", number(info.map_bytes),
		"written_chunks", number(info.written_chunks), "released_chunks",
		number(info.released_chunks), "overflowed", info.overflowed != 0, "detached",
		info.detached != 0);
	if (info.state != COWSNAP_SNAPSHOT_INVALID)
		return object;
	json_object_set_new(object, "reason", json_string(strerrorname_np(-info.reason)));
	json_object_set_new(object, "reason_offset", number(info.reason_offset));
	json_object_set_new(object, "reason_length", number(info.reason_length));
	return object;
}

json_t *control_snapshots(const struct volume *volume)
{
	const struct named_snapshot *entry;
	json_t *array = json_array();

	for (entry = volume->snapshots; entry != NULL; entry = entry->next)
		json_array_append_new(array, snapshot_object(entry));
	return array;
}

static const char *store_kind(const struct volume *volume)
{
	if (volume->options->store_format == STORE_DM)
		return "dm";
	return volume->store_device ? "file" : "memory";
}

static json_t *store_object(const struct volume *volume)
{
	struct cowsnap_store_usage usage;
	json_t *object;

	if (cowsnap_store_usage(volume->store, &usage, sizeof(usage)) != 0)
		return json_null();
	object = json_pack("{s:s,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "kind", store_kind(volume),
		"chunk_size_bytes", number(usage.chunk_size_bytes), "used_bytes",
		number(usage.used_bytes), "limit_bytes", number(usage.limit_bytes),
		"high_water_bytes", number(usage.high_water_bytes), "reclaimable_bytes",
		number(usage.reclaimable_bytes), "map_bytes", number(usage.map_bytes), "snapshots",
		number(usage.snapshots), "ghosts", number(usage.ghosts));
	if (volume->options->store_format != STORE_DM)
		return object;
	/* A record for each chunk. */
	json_object_set_new(object, "records", number(usage.used_bytes / usage.chunk_size_bytes));
	json_object_set_new(
		object, "record_limit", number(usage.limit_bytes / usage.chunk_size_bytes));
	return object;
}

static json_t *stats_object(const struct volume *volume)
{
	struct cowsnap_stats stats;
	const struct {
		const char *name;
		const uint64_t *value;
	} fields[] = {
		{"writes", &stats.writes},
		{"fast_writes", &stats.fast_writes},
		{"copied_chunks", &stats.copied_chunks},
		{"copied_bytes", &stats.copied_bytes},
		{"origin_reads", &stats.origin_reads},
		{"origin_bytes", &stats.origin_bytes},
		{"claim_waits", &stats.claim_waits},
		{"drain_waits", &stats.drain_waits},
		{"credit_waits", &stats.credit_waits},
		{"space_waits", &stats.space_waits},
		{"failed_writes", &stats.failed_writes},
		{"snapshot_reads", &stats.snapshot_reads},
		{"reread_chunks", &stats.reread_chunks},
		{"copies", &stats.copies},
		{"copy_ns_p50", &stats.copy_ns_p50},
		{"copy_ns_p90", &stats.copy_ns_p90},
		{"copy_ns_p99", &stats.copy_ns_p99},
		{"copy_ns_p999", &stats.copy_ns_p999},
		{"copy_ns_max", &stats.copy_ns_max},
	};
	json_t *object;
	size_t i;

	if (cowsnap_origin_stats(volume->origin, &stats, sizeof(stats)) != 0)
		return json_null();
	object = json_object();
	for (i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
		json_object_set_new(object, fields[i].name, number(*fields[i].value));
	return object;
}

static json_t *threads_array(const struct volume *volume)
{
	struct cowsnap_thread_io threads[256];
	int count = cowsnap_ctx_thread_io(volume->ctx, threads, 256);
	json_t *array = json_array();
	int i;

	for (i = 0; i < count && i < 256; i++) {
		json_array_append_new(array,
			json_pack("{s:o,s:o,s:o,s:o,s:o}", "thread", number(threads[i].thread),
				"reads", number(threads[i].reads), "read_bytes",
				number(threads[i].read_bytes), "writes", number(threads[i].writes),
				"write_bytes", number(threads[i].write_bytes)));
	}
	return array;
}

static const char *on_full_name(enum on_full on_full)
{
	switch (on_full) {
	case ON_FULL_INVALIDATE:
		return "invalidate";
	case ON_FULL_FAIL:
		return "fail";
	case ON_FULL_WAIT:
		return "wait";
	}
	return "unknown";
}

static const char *exports_name(enum snapshot_exports exports)
{
	switch (exports) {
	case SNAPSHOTS_READONLY:
		return "readonly";
	case SNAPSHOTS_WRITABLE:
		return "writable";
	case SNAPSHOTS_RELEASE:
		return "release";
	}
	return "unknown";
}

/* ---- Jobs ----------------------------------------------------------------------------------- */

static const char *job_name(struct job *job, const char *ended)
{
	switch (job->state) {
	case JOB_NONE:
		break;
	case JOB_RUNNING:
		return job_stopping(job) ? "stopping" : "running";
	case JOB_STOPPED:
		return "stopped";
	case JOB_FAILED:
		return "failed";
	case JOB_ENDED:
		return ended;
	}
	return "none";
}

static json_t *job_object(struct job *job, const char *ended)
{
	json_t *object = json_pack("{s:s}", "state", job_name(job, ended));

	if (job->state == JOB_NONE)
		return object;
	json_object_set_new(object, "name", json_string(job->name));
	if (job->state == JOB_FAILED)
		json_object_set_new(object, "error", json_string(strerrorname_np(-job->error)));
	return object;
}

json_t *control_merge(struct volume *volume)
{
	json_t *object = job_object(&volume->merge, "merged");

	if (volume->merge.state == JOB_NONE)
		return object;
	json_object_set_new(object, "total_bytes", number(volume->merge_info.total_bytes));
	json_object_set_new(object, "moved_bytes", number(volume->merge_info.moved_bytes));
	return object;
}

static json_t *detach_object(struct volume *volume)
{
	json_t *object = job_object(&volume->detach, "detached");

	if (volume->detach.state != JOB_NONE)
		json_object_set_new(
			object, "seen_bytes", number(job_steps(&volume->detach) * JOB_STEP_BYTES));
	return object;
}

static json_t *throttle_object(const struct volume *volume)
{
	return json_pack("{s:o,s:o}", "bytes_per_s", number(volume->throttle_bytes_per_s),
		"share_percent", number(volume->share_percent));
}

json_t *control_status(struct volume *volume)
{
	return json_pack("{s:b,s:s,s:o,s:s,s:s,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "ok", 1,
		"version", cowsnap_version(), "size_bytes",
		number(cowsnap_origin_size(volume->origin)), "on_full",
		on_full_name(volume->options->on_full), "snapshot_exports",
		exports_name(volume->options->snapshot_exports), "connections",
		number(volume_connections(volume)), "store", store_object(volume), "snapshots",
		control_snapshots(volume), "merge", control_merge(volume), "detach",
		detach_object(volume), "throttle", throttle_object(volume), "stats",
		stats_object(volume), "threads", threads_array(volume));
}
