/* SPDX-License-Identifier: MIT
 *
 * The persistent store: its space, its header, and its life from create or open to close. See
 * store_dm.h for the whole.
 *
 * Who changes the header and needs a flush for it holds the device: begin, invalidate and drop are
 * called so (hold in store.h), because whoever calls them may be an event loop, which must not wait
 * in them for a flush that it has under way itself. Where the device writes through, a header needs
 * no flush, and nobody waits.
 */
#include "store_dm.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "alloc.h"

#define CHUNK_SIZE_DEFAULT UINT64_C(4096)
#define BLOCK_MIN          512u /* a header is not written with less, and no disk writes less */
#define BLOCK_ALIGN        4096u
#define FIRST_DATA         2u /* chunk: behind the header and area 0 */
#define CHUNKS_MIN         3u /* with these there is room for one record */
#define MAGIC_BYTES        4u

/* ---- Space ---------------------------------------------------------------------------------- */

/* A run of chunks that were in use before. */
static uint64_t take_freed(struct cs_dm *dm, uint64_t want, uint64_t *location)
	CS_REQUIRES(dm->space_lock)
{
	uint64_t count;

	/* The lowest first: a kernel goes on behind the highest chunk in use. */
	dm->lowest = cs_runs_next(&dm->freed, dm->lowest);
	if (dm->lowest == CS_RUNS_NONE)
		return 0;
	*location = cs_runs_pick(&dm->freed, dm->lowest, want, &count);
	cs_runs_mark(&dm->freed, *location, count, false);
	return count;
}

/* A run of chunks that never were, up to the next area. Returns: 0, -ENOMEM. */
static int take_fresh(struct cs_dm *dm, uint64_t want, uint64_t *location, uint64_t *count)
	CS_REQUIRES(dm->space_lock)
{
	uint64_t stripe = dm->layout.area_records + 1;
	uint64_t first = dm->fresh + cs_format_dm_is_metadata(&dm->layout, dm->fresh);
	uint64_t room = stripe - (first - 1) % stripe;

	if (room > dm->layout.chunks - first)
		room = dm->layout.chunks - first;
	assert(first < dm->layout.chunks); /* D2 */
	*location = first;
	*count = want < room ? want : room;
	/* Now, so that a free cannot fail. */
	if (cs_runs_cover(&dm->freed, first + *count))
		return -ENOMEM;
	dm->fresh = first + *count;
	return 0;
}

static int dm_alloc(void *user, uint64_t want, uint64_t *location, uint64_t *count)
{
	struct cs_dm *dm = user;
	uint64_t used, limit;
	int rc;

	cs_mutex_lock(&dm->space_lock);
	/* Under the lock: what commits free that failed because the store is broken may have a
	 * record on the device. Whoever could get it must see that the store is broken. */
	rc = cs_dm_broken(dm);
	used = atomic_load_explicit(&dm->used, memory_order_relaxed);
	limit = atomic_load_explicit(&dm->limit, memory_order_relaxed);
	if (!rc && used >= limit)
		rc = -ENOSPC;
	if (!rc) {
		if (want > limit - used)
			want = limit - used;
		*count = take_freed(dm, want, location);
		if (!*count)
			rc = take_fresh(dm, want, location, count);
	}
	if (!rc)
		atomic_store_explicit(&dm->used, used + *count, memory_order_relaxed);
	cs_mutex_unlock(&dm->space_lock);
	return rc;
}

static void dm_free(void *user, uint64_t location, uint64_t count)
{
	struct cs_dm *dm = user;
	uint64_t changed = 0;

	cs_mutex_lock(&dm->space_lock);
	if (cs_dm_data_run(dm, dm->fresh, location, count)) {
		changed = cs_runs_mark(&dm->freed, location, count, true);
		if (location < dm->lowest)
			dm->lowest = location;
		atomic_fetch_sub_explicit(&dm->used, changed, memory_order_relaxed);
	}
	cs_mutex_unlock(&dm->space_lock);
	if (changed != count)
		cs_log(dm->base, COWSNAP_LOG_ERROR,
			"store on %s: free of %llu chunks at %llu, %llu of which are not in use",
			dm->device->name, (unsigned long long)count, (unsigned long long)location,
			(unsigned long long)(count - changed));
}

static void dm_space(void *user, struct cowsnap_store_space *space)
{
	const struct cs_dm *dm = user;

	space->used_chunks = atomic_load_explicit(&dm->used, memory_order_relaxed);
	space->limit_chunks = atomic_load_explicit(&dm->limit, memory_order_relaxed);
}

static int dm_set_limit(void *user, uint64_t limit_chunks)
{
	struct cs_dm *dm = user;
	struct cs_format_dm_layout now;
	struct cs_format_dm_fault fault;
	int rc = 0;

	cs_mutex_lock(&dm->space_lock);
	if (cs_format_dm_layout_init(&now, cs_dm_chunk_bytes(dm), 0, cs_dev_size(dm->device), 0,
		    &fault) == CS_FORMAT_DM_OK)
		dm->layout = now;
	if (!limit_chunks)
		limit_chunks = dm->layout.records;
	if (limit_chunks > dm->layout.records)
		rc = -ERANGE;
	else if (limit_chunks < atomic_load_explicit(&dm->used, memory_order_relaxed))
		rc = -EBUSY;
	else
		atomic_store_explicit(&dm->limit, limit_chunks, memory_order_relaxed);
	cs_mutex_unlock(&dm->space_lock);
	return rc;
}

/* Nothing is in use: begins at the bottom again. */
static void dm_emptied(void *user)
{
	struct cs_dm *dm = user;

	cs_mutex_lock(&dm->space_lock);
	if (!atomic_load_explicit(&dm->used, memory_order_relaxed)) {
		cs_runs_clear(&dm->freed);
		dm->fresh = dm->lowest = FIRST_DATA;
	}
	cs_mutex_unlock(&dm->space_lock);
}

/* ---- The header ----------------------------------------------------------------------------- */

/* Writes the first block as it is with this state. It is the header's own: records never come near
 * it. */
static int write_header(struct cs_dm *dm, enum cs_dm_header state, uint64_t generation)
	CS_REQUIRES(dm->header_lock)
{
	struct cs_format_dm_header header = {
		.valid = state == CS_DM_VALID, .chunk_size_bytes = cs_dm_chunk_bytes(dm)};
	int rc;

	memset(dm->header_block, 0, dm->block_bytes);
	if (state != CS_DM_NONE) {
		cs_format_dm_encode_header(&header, dm->header_block);
		cs_format_dm_encode_generation(generation, dm->header_block);
	}
	if (cs_dev_writes_through(dm->device))
		return cs_dev_write_durable(dm->device, dm->header_block, 0, dm->block_bytes);
	rc = cs_dev_write(dm->device, dm->header_block, 0, dm->block_bytes);
	return rc ? rc : cs_dm_flush(dm);
}

/* What fails may have come to the device all the same. Then it is put back: the host is told that
 * nothing has changed. */
static int change_header(struct cs_dm *dm, enum cs_dm_header state, uint64_t generation)
	CS_REQUIRES(dm->header_lock)
{
	int rc = write_header(dm, state, generation);

	if (!rc) {
		dm->header = state;
		dm->generation = generation;
	} else if (write_header(dm, dm->header, dm->generation)) {
		cs_dm_break(dm, rc, "to change the header");
	}
	return rc;
}

/* D4. The zeroes are written: a hole might find no space when a record comes. */
static int begin_list(struct cs_dm *dm) CS_REQUIRES(dm->header_lock)
{
	uint64_t chunk = cs_dm_chunk_bytes(dm);
	int rc = cs_dev_write_zeroes(dm->device, chunk, chunk);

	if (!rc)
		rc = cs_dm_flush(dm);
	if (!rc)
		rc = cs_dm_commit_open(dm, 0, NULL);
	if (rc)
		return rc;
	rc = change_header(dm, CS_DM_VALID, dm->generation);
	if (rc)
		cs_dm_commit_close(dm);
	return rc;
}

/* All that the new snapshot stands on is written from here on, so a store that is broken is whole
 * again. */
static int dm_begin(void *user)
{
	struct cs_dm *dm = user;
	/* Else the caller has it. */
	bool hold = cs_dev_writes_through(dm->device);
	int rc = hold ? cs_dm_hold_waiting(dm) : 0;

	if (rc)
		return rc;
	cs_mutex_lock(&dm->header_lock);
	if (dm->header != CS_DM_NONE) {
		bool valid = dm->header == CS_DM_VALID;

		cs_log(dm->base, COWSNAP_LOG_ERROR, "store on %s: it has a snapshot, which %s",
			dm->device->name, valid ? "was deactivated" : "is invalid");
		rc = valid ? -EEXIST : -ENOTSUP;
	}
	if (!rc) {
		atomic_store_explicit(&dm->broken, 0, memory_order_relaxed);
		rc = begin_list(dm);
	}
	cs_mutex_unlock(&dm->header_lock);
	if (hold)
		cs_dm_unhold(dm);
	return rc;
}

static int dm_invalidate(void *user, int reason)
{
	struct cs_dm *dm = user;
	int rc = 0;

	(void)reason;
	cs_mutex_lock(&dm->header_lock);
	if (dm->header == CS_DM_VALID)
		rc = change_header(dm, CS_DM_INVALID, dm->generation);
	cs_mutex_unlock(&dm->header_lock);
	return rc;
}

static int dm_drop(void *user)
{
	struct cs_dm *dm = user;
	int rc = 0;

	cs_mutex_lock(&dm->header_lock);
	if (dm->header != CS_DM_NONE)
		rc = change_header(dm, CS_DM_NONE, dm->generation);
	/* Commits go on: a writer that finds the snapshot live must not fail, and where there is no
	 * header a record does no harm. */
	cs_mutex_unlock(&dm->header_lock);
	return rc;
}

static bool dm_hold(void *user, struct cs_waiter *waiter)
{
	struct cs_dm *dm = user;

	return cs_dev_writes_through(dm->device) || cs_dm_hold(dm, waiter);
}

static int dm_hold_waiting(void *user)
{
	struct cs_dm *dm = user;

	return cs_dev_writes_through(dm->device) ? 0 : cs_dm_hold_waiting(dm);
}

static int dm_is_broken(void *user)
{
	return cs_dm_broken(user);
}

/* For who holds it. One that fails may have lost what was written to the list of records. */
static int dm_flush(void *user)
{
	struct cs_dm *dm = user;
	int rc = cs_dm_flush(dm);

	return rc ? rc : cs_dm_broken(dm);
}

static void dm_unhold(void *user)
{
	struct cs_dm *dm = user;

	if (!cs_dev_writes_through(dm->device))
		cs_dm_unhold(dm);
}

static int set_generation(struct cs_dm *dm, uint64_t generation)
{
	int rc = 0;

	cs_mutex_lock(&dm->header_lock);
	if (dm->exported)
		rc = -EBADF;
	else if (dm->header != CS_DM_NONE)
		rc = change_header(dm, dm->header, generation);
	else
		dm->generation = generation;
	cs_mutex_unlock(&dm->header_lock);
	return rc;
}

/* ---- Making and ending ---------------------------------------------------------------------- */

/* What is acknowledged is durable, so there is nothing to write: closed and killed are the same. */
static void dm_close(void *user)
{
	struct cs_dm *dm = user;

	cs_dm_commit_fini(dm);
	cs_runs_fini(&dm->freed);
	cs_mutex_fini(&dm->space_lock);
	cs_mutex_fini(&dm->header_lock);
	cs_free(dm->base->alloc, dm->header_block, dm->block_bytes);
	if (!dm->exported)
		cs_dev_lock(dm->device, COWSNAP_LOCK_NONE);
	cs_free(dm->base->alloc, dm, sizeof(*dm));
}

static const struct cowsnap_store_ops dm_ops = {
	.size = sizeof(dm_ops),
	.alloc = dm_alloc,
	.free = dm_free,
	.space = dm_space,
	.commit = cs_dm_commit,
	.invalidate = dm_invalidate,
	.set_limit = dm_set_limit,
	.emptied = dm_emptied,
	.close = dm_close,
	.begin = dm_begin,
	.drop = dm_drop,
	.newest = cs_dm_newest,
	.forget = cs_dm_forget,
};

static int check_dm_options(
	const struct cs_base *base, const struct cowsnap_dm_options *options, uint32_t known_flags)
{
	if (options->flags & ~known_flags) {
		cs_log(base, COWSNAP_LOG_ERROR, "persistent store: unknown flags 0x%x",
			options->flags);
		return -EINVAL;
	}
	if (!options->device) {
		cs_log(base, COWSNAP_LOG_ERROR, "persistent store: no device");
		return -EINVAL;
	}
	if (cs_handle_closed(&options->device->handle))
		return -EBADF;
	if (!cs_dev_writable(options->device)) {
		cs_log(base, COWSNAP_LOG_ERROR, "store on %s: the device is read-only",
			options->device->name);
		return -EROFS;
	}
	return 0;
}

static int make(const struct cs_base *base, const struct cowsnap_dm_options *options,
	const struct cs_format_dm_layout *layout, struct cs_dm **out)
{
	struct cowsnap_device *device = options->device;
	struct cs_dm *dm = cs_alloc_zeroed(base->alloc, sizeof(*dm));
	struct cs_format_dm_fault fault;

	if (!dm)
		return -ENOMEM;
	dm->base = base;
	dm->device = device;
	dm->chunk_shift = layout->chunk_shift;
	dm->block_bytes = device->block_size > BLOCK_MIN ? device->block_size : BLOCK_MIN;
	dm->layout = *layout;
	cs_format_dm_layout_init(&dm->shape, cs_dm_chunk_bytes(dm), 0, COWSNAP_SIZE_MAX, 0, &fault);
	dm->generation = options->generation;
	dm->fresh = dm->lowest = FIRST_DATA;
	atomic_init(&dm->limit, layout->records);
	cs_runs_init(&dm->freed, base->alloc);
	cs_mutex_init(&dm->space_lock);
	cs_mutex_init(&dm->header_lock);
	dm->header_block = cs_alloc_aligned(base->alloc, dm->block_bytes, BLOCK_ALIGN);
	if (!dm->header_block || cs_dm_commit_init(dm)) {
		dm_close(dm);
		return -ENOMEM;
	}
	*out = dm;
	return 0;
}

/* The device is locked. */
static int make_store(const struct cs_base *base, const struct cowsnap_dm_options *options,
	const struct cs_format_dm_layout *layout, struct cowsnap_store **store)
{
	struct cowsnap_store_options generic = {.size = sizeof(generic),
		.flags = COWSNAP_STORE_ONE_SNAPSHOT,
		.chunk_size_bytes = UINT64_C(1) << layout->chunk_shift,
		.device = options->device,
		.low_water_bytes = options->low_water_bytes
					   ? options->low_water_bytes
					   : (layout->records << layout->chunk_shift) / 8};
	struct cs_dm *dm;
	int rc = make(base, options, layout, &dm);

	if (rc) {
		cs_dev_lock(options->device, COWSNAP_LOCK_NONE);
		return rc;
	}
	rc = cs_store_create(base, &dm_ops, &generic, dm, store);
	if (rc) {
		dm_close(dm);
		return rc;
	}
	(*store)->broken = dm_is_broken;
	(*store)->hold = dm_hold;
	(*store)->hold_waiting = dm_hold_waiting;
	if (!cs_dev_writes_through(dm->device))
		(*store)->flush = dm_flush;
	(*store)->unhold = dm_unhold;
	return 0;
}

/* ---- Create --------------------------------------------------------------------------------- */

static int new_layout(const struct cs_base *base, const struct cowsnap_dm_options *options,
	struct cs_format_dm_layout *layout)
{
	struct cowsnap_device *device = options->device;
	uint64_t chunk = options->chunk_size_bytes;
	struct cs_format_dm_fault fault;
	char text[160];

	if (!chunk)
		chunk = device->block_size > CHUNK_SIZE_DEFAULT ? device->block_size
								: CHUNK_SIZE_DEFAULT;
	if (!(chunk & (chunk - 1)) &&
		(chunk < COWSNAP_CHUNK_SIZE_MIN || chunk > COWSNAP_CHUNK_SIZE_MAX)) {
		cs_log(base, COWSNAP_LOG_ERROR, "store on %s: chunk size %llu is out of bounds",
			device->name, (unsigned long long)chunk);
		return -ERANGE;
	}
	if (cs_format_dm_layout_init(
		    layout, chunk, device->block_size, cs_dev_size(device), 0, &fault)) {
		cs_log(base, COWSNAP_LOG_ERROR, "store on %s: %s", device->name,
			cs_format_dm_explain(&fault, text, sizeof(text)));
		return fault.error == CS_FORMAT_DM_DEVICE_TOO_SHORT ? -ERANGE : -EINVAL;
	}
	if (layout->chunks >= CHUNKS_MIN)
		return 0;
	cs_log(base, COWSNAP_LOG_ERROR,
		"store on %s: %llu chunks of %llu are too few for one record: %u are needed",
		device->name, (unsigned long long)layout->chunks, (unsigned long long)chunk,
		CHUNKS_MIN);
	return -ERANGE;
}

static bool all_zero(const uint8_t *bytes, size_t count)
{
	return count == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, count - 1) == 0);
}

/* The first block is zero afterwards, and durably: an old header would stand over what comes next.
 */
static int clear_device(struct cs_dm *dm, bool overwrite)
{
	uint8_t *block = dm->header_block;
	int rc = cs_dev_flush(dm->device);

	if (!rc)
		rc = cs_dev_read(dm->device, block, 0, dm->block_bytes);
	if (rc || all_zero(block, dm->block_bytes))
		return rc;
	if (!all_zero(block, MAGIC_BYTES) && !overwrite) {
		cs_log(dm->base, COWSNAP_LOG_ERROR,
			"store on %s not created: something is there, it begins with "
			"%02x%02x%02x%02x",
			dm->device->name, block[0], block[1], block[2], block[3]);
		return -EEXIST;
	}
	cs_mutex_lock(&dm->header_lock);
	rc = write_header(dm, CS_DM_NONE, 0);
	cs_mutex_unlock(&dm->header_lock);
	return rc;
}

int cs_store_dm_create(const struct cs_base *base, const struct cowsnap_dm_options *user_options,
	struct cowsnap_store **store)
{
	struct cowsnap_dm_options options = {0};
	struct cs_format_dm_layout layout;
	int rc = cs_options_copy(base, "persistent store options", &options, sizeof(options),
		user_options, sizeof(options));

	if (!rc)
		rc = check_dm_options(base, &options, COWSNAP_DM_OVERWRITE);
	if (!rc)
		rc = new_layout(base, &options, &layout);
	if (!rc)
		rc = cs_dev_lock(options.device, COWSNAP_LOCK_EXCLUSIVE);
	if (!rc)
		rc = make_store(base, &options, &layout, store);
	if (rc)
		return rc;
	rc = clear_device((*store)->user, options.flags & COWSNAP_DM_OVERWRITE);
	if (rc)
		cs_store_destroy(*store);
	return rc;
}

/* ---- Open ----------------------------------------------------------------------------------- */

static void log_fault(const struct cs_dm_load *load, int rc)
{
	char text[160];

	if (rc && load->fault.error)
		cs_log(load->base, COWSNAP_LOG_ERROR, "store on %s: %s: %s", load->device->name,
			cs_format_dm_name(load->fault.error),
			cs_format_dm_explain(&load->fault, text, sizeof(text)));
	else if (rc)
		cs_log(load->base, COWSNAP_LOG_ERROR, "store on %s: not read: error %d",
			load->device->name, rc);
}

static void set_origin(struct cs_dm_load *load, const struct cowsnap_device *origin)
{
	load->origin_bytes = cs_dev_size(origin);
	load->block_size = origin->block_size;
}

/* Does the header say what the caller expects? */
static int check_expected(const struct cs_dm_load *load, const struct cowsnap_dm_options *options)
{
	if (options->chunk_size_bytes &&
		options->chunk_size_bytes != load->header.chunk_size_bytes) {
		cs_log(load->base, COWSNAP_LOG_ERROR,
			"store on %s: its chunk size is %llu, not %llu", load->device->name,
			(unsigned long long)load->header.chunk_size_bytes,
			(unsigned long long)options->chunk_size_bytes);
		return -EINVAL;
	}
	if (options->generation && options->generation != load->generation) {
		cs_log(load->base, COWSNAP_LOG_ERROR,
			"store on %s: its generation is %llu, not %llu", load->device->name,
			(unsigned long long)load->generation,
			(unsigned long long)options->generation);
		return -ESTALE;
	}
	return 0;
}

int cs_store_dm_open(const struct cs_base *base, const struct cowsnap_dm_options *user_options,
	const struct cowsnap_device *origin, struct cowsnap_store **store)
{
	struct cowsnap_dm_options options = {0};
	struct cs_dm_load load = {.base = base};
	int rc = cs_options_copy(base, "persistent store options", &options, sizeof(options),
		user_options, sizeof(options));

	if (!rc)
		rc = check_dm_options(base, &options, 0);
	if (rc)
		return rc;
	load.device = options.device;
	set_origin(&load, origin);
	rc = cs_dev_lock(options.device, COWSNAP_LOCK_EXCLUSIVE);
	if (rc)
		return rc;
	/* What a process that was killed wrote last is read from the cache, and must not be gone
	 * after a power cut when others have relied on it. */
	rc = cs_dev_flush(options.device);
	if (!rc)
		rc = cs_dm_load_header(&load);
	log_fault(&load, rc);
	if (!rc)
		rc = check_expected(&load, &options);
	if (rc) {
		cs_dev_lock(options.device, COWSNAP_LOCK_NONE);
		return rc;
	}
	options.generation = load.generation;
	rc = make_store(base, &options, &load.layout, store);
	if (!rc)
		((struct cs_dm *)(*store)->user)->header =
			load.header.valid ? CS_DM_VALID : CS_DM_INVALID;
	return rc;
}

/* Wipes what a crash left behind the terminator. Gets the block that the next record goes to. */
static int wipe_tail(struct cs_dm *dm, const struct cs_dm_load *load, uint8_t *block)
{
	uint64_t bytes = dm->block_bytes;
	uint64_t from = load->stale_offset / bytes * bytes;
	uint64_t to = (load->stale_offset + load->stale_bytes + bytes - 1) / bytes * bytes;
	uint64_t keep = load->stale_offset - from;
	int rc = cs_dev_read(dm->device, block, from, bytes);

	memset(block + keep, 0, bytes - keep);
	if (rc || !load->stale_bytes)
		return rc;
	cs_log(dm->base, COWSNAP_LOG_WARNING,
		"store on %s: %llu bytes behind record %llu are wiped: a crash left them",
		dm->device->name, (unsigned long long)load->stale_bytes,
		(unsigned long long)load->records);
	rc = cs_dev_write(dm->device, block, from, bytes);
	if (!rc && to - from > bytes)
		rc = cs_dev_write_zeroes(dm->device, from + bytes, to - from - bytes);
	return rc ? rc : cs_dev_flush(dm->device);
}

/* What is not used is free: what lies below the highest chunk in use was freed, or lost by a crash,
 * which is the same. */
static void find_free(struct cs_dm *dm, uint64_t records, uint64_t highest)
{
	uint64_t fresh = highest >= FIRST_DATA ? highest + 1 : FIRST_DATA;
	uint64_t stripe = dm->layout.area_records + 1;

	cs_mutex_lock(&dm->space_lock);
	cs_runs_invert(&dm->freed, fresh);
	if (fresh > FIRST_DATA) {
		cs_runs_mark(&dm->freed, 0, 1, false);
		for (uint64_t area = 1; area < fresh; area += stripe)
			cs_runs_mark(&dm->freed, area, 1, false);
	}
	dm->fresh = fresh;
	dm->lowest = FIRST_DATA;
	atomic_store_explicit(&dm->used, records, memory_order_relaxed);
	cs_mutex_unlock(&dm->space_lock);
}

int cs_dm_attached(struct cs_dm *dm, uint64_t records, uint64_t highest, const uint8_t *block)
{
	int rc = cs_dm_commit_open(dm, records, block);

	if (!rc)
		find_free(dm, records, highest);
	return rc;
}

int cs_store_dm_attach(struct cowsnap_store *store, const struct cowsnap_device *origin,
	struct cowsnap_map *map, bool *valid)
{
	struct cs_dm *dm = store->user;
	struct cs_dm_load load = {
		.base = dm->base, .device = dm->device, .map = map, .used = &dm->freed};
	int rc;

	set_origin(&load, origin);
	rc = cs_dm_load_header(&load);
	*valid = load.header.valid;
	if (!rc && *valid)
		rc = cs_dm_load_records(&load);
	log_fault(&load, rc);
	if (rc || !*valid)
		return rc;
	/* Nothing was written before all of it was accepted. */
	rc = wipe_tail(dm, &load, dm->header_block);
	return rc ? rc : cs_dm_attached(dm, load.records, load.highest, dm->header_block);
}

int cs_store_dm_set_generation(struct cowsnap_store *store, uint64_t generation)
{
	int rc;

	if (store->ops.commit != cs_dm_commit)
		return -EINVAL;
	rc = cs_store_hold_waiting(store);
	if (rc)
		return rc;
	rc = set_generation(store->user, generation);
	cs_store_unhold(store);
	return rc;
}
