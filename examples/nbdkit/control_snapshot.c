/* SPDX-License-Identifier: MIT
 *
 * Commands about snapshots. Their own errors, besides those of control_command.c:
 *
 *	EOPNOTSUPP  map-only, downgrade, release: a dm store's format cannot say it
 *	ESTALE      the snapshot is invalid
 *	EINVAL      release of nothing; changes: A is not older than B
 */
#include "control.h"

#include <errno.h>
#include <string.h>

enum {
	changes_page = 1024, /* runs in an answer, so that a line stays short */
	changes_calls = 16,  /* of the library for one answer, so that others are served */
};

static const char no_such_name[] = "no snapshot has that name";

/* The words for what several commands meet. */
static json_t *refuse(int error)
{
	switch (error) {
	case -ENOENT:
		return control_refusal(error, no_such_name);
	case -ENOTSUP:
		return control_refusal(error, "the format of a dm store cannot say that");
	case -EBUSY:
		return control_refusal(error, "the snapshot is being merged");
	case -ESTALE:
		return control_refusal(error, "the snapshot is invalid");
	case -ENODATA:
		return control_refusal(error, "the snapshot keeps no data");
	default:
		return control_refusal(error, NULL);
	}
}

/* ---- take and drop -------------------------------------------------------------------------- */

static json_t *refuse_take(const struct volume *volume, int error)
{
	if (error == -EEXIST)
		return control_refusal(error, "a snapshot of that name exists");
	if (error == -EBUSY && volume_has_merge(volume))
		return control_refusal(error, "a snapshot is being merged into the volume");
	if (error == -EBUSY)
		return control_refusal(error, "a dm store holds one snapshot; drop it first");
	if (error == -ETIMEDOUT)
		return control_refusal(
			error, "older writes did not end in time; nothing was taken");
	return refuse(error);
}

json_t *control_run_take(struct volume *volume, const struct control_words *words)
{
	bool map_only = control_is(words, 1, "map-only");
	const struct named_snapshot *taken = NULL;
	struct cowsnap_snapshot_info info;
	char name[SNAPSHOT_NAME_MAX + 1];
	json_t *answer = control_name(words, 0, name);
	int error;

	if (answer != NULL)
		return answer;
	if (words->count > 1 && !map_only)
		return control_refusal(
			-E2BIG, "after the name only map-only (a name has no space)");
	error = volume_take(volume, name, map_only ? COWSNAP_TAKE_MAP_ONLY : 0, &taken);
	if (error != 0)
		return refuse_take(volume, error);
	error = cowsnap_snapshot_info(taken->snapshot, &info, sizeof(info));
	if (error != 0)
		return control_refusal(error, NULL);
	answer = json_pack("{s:b,s:s,s:I,s:I}", "ok", 1, "name", name, "id", (json_int_t)info.id,
		"size_bytes", (json_int_t)info.size_bytes);
	if (!map_only)
		json_object_set_new(answer, "export", json_sprintf("@%s", name));
	return answer;
}

json_t *control_run_drop(struct volume *volume, const struct control_words *words)
{
	char name[SNAPSHOT_NAME_MAX + 1];
	json_t *answer = control_name(words, 0, name);
	int error;

	if (answer != NULL)
		return answer;
	error = volume_drop(volume, name);
	if (error != 0)
		return refuse(error);
	return json_pack("{s:b,s:s}", "ok", 1, "name", name);
}

/* ---- downgrade and release ------------------------------------------------------------------ */

json_t *control_run_downgrade(struct volume *volume, const struct control_words *words)
{
	const struct named_snapshot *entry;
	char name[SNAPSHOT_NAME_MAX + 1];
	json_t *answer = control_name(words, 0, name);
	int error;

	if (answer != NULL)
		return answer;
	entry = volume_entry(volume, name);
	error = entry != NULL ? cowsnap_snapshot_downgrade(entry->snapshot) : -ENOENT;
	if (error != 0)
		return refuse(error);
	return json_pack("{s:b,s:s}", "ok", 1, "name", name);
}

json_t *control_run_release(struct volume *volume, const struct control_words *words)
{
	const struct named_snapshot *entry;
	struct cowsnap_snapshot_info info = {.released_chunks = 0};
	char name[SNAPSHOT_NAME_MAX + 1];
	uint64_t offset;
	uint64_t length;
	json_t *answer = control_name(words, 0, name);
	int error;

	if (answer == NULL)
		answer = control_number(words, 1, &offset);
	if (answer == NULL)
		answer = control_number(words, 2, &length);
	if (answer != NULL)
		return answer;
	entry = volume_entry(volume, name);
	error = entry != NULL ? cowsnap_snapshot_release(entry->snapshot, offset, length) : -ENOENT;
	if (error == -EOVERFLOW || error == -ERANGE)
		return control_refusal(-ERANGE, "the range is not within the snapshot");
	if (error == -EINVAL)
		return control_refusal(error, "the length is 0");
	if (error == 0)
		error = cowsnap_snapshot_info(entry->snapshot, &info, sizeof(info));
	if (error != 0)
		return refuse(error);
	return json_pack("{s:b,s:s,s:I}", "ok", 1, "name", name, "released_chunks",
		(json_int_t)info.released_chunks);
}

/* ---- changes -------------------------------------------------------------------------------- */

/* A question and its answer so far. */
struct page {
	struct cowsnap_snapshot *from;
	struct cowsnap_snapshot *to; /* NULL: now */
	uint64_t offset;             /* where the next page begins */
	uint64_t size;               /* where the last one ends */
	struct cowsnap_change changes[changes_page];
	size_t count;
};

static void append(struct page *page, const struct cowsnap_change *changes, size_t count)
{
	size_t i;

	for (i = 0; i < count; i++) {
		struct cowsnap_change *next = &page->changes[page->count];

		/* One call's last run and the next one's first may touch. */
		if (page->count > 0 && next[-1].offset + next[-1].length == changes[i].offset)
			next[-1].length += changes[i].length;
		else
			page->changes[page->count++] = changes[i];
	}
}

static int fill(struct page *page)
{
	struct cowsnap_change changes[changes_page];
	unsigned int calls = changes_calls;

	while (page->offset < page->size && page->count < changes_page && calls-- > 0) {
		int count = cowsnap_changes(
			page->from, page->to, &page->offset, changes, changes_page - page->count);

		if (count < 0)
			return count;
		append(page, changes, (size_t)count);
	}
	return 0;
}

static uint64_t size_of(const struct volume *volume, struct cowsnap_snapshot *snapshot)
{
	struct cowsnap_snapshot_info info;

	if (snapshot == NULL)
		return cowsnap_origin_size(volume->origin);
	if (cowsnap_snapshot_info(snapshot, &info, sizeof(info)) != 0)
		return 0;
	return info.size_bytes;
}

/* The words of a line as a page. NULL, or the refusal. */
static json_t *understand(
	struct volume *volume, const struct control_words *words, struct page *page)
{
	const struct named_snapshot *entry;
	char name[SNAPSHOT_NAME_MAX + 1];
	json_t *answer = control_name(words, 0, name);

	if (answer != NULL)
		return answer;
	entry = volume_entry(volume, name);
	if (entry == NULL)
		return refuse(-ENOENT);
	page->from = entry->snapshot;
	if (words->count > 1 && !control_is(words, 1, "/now")) {
		answer = control_name(words, 1, name);
		if (answer != NULL)
			return answer;
		entry = volume_entry(volume, name);
		if (entry == NULL)
			return refuse(-ENOENT);
		page->to = entry->snapshot;
	}
	page->size = size_of(volume, page->to);
	if (size_of(volume, page->from) > page->size)
		page->size = size_of(volume, page->from);
	return words->count > 2 ? control_number(words, 2, &page->offset) : NULL;
}

static json_t *page_object(const struct page *page)
{
	json_t *array = json_array();
	size_t i;

	for (i = 0; i < page->count; i++)
		json_array_append_new(array, json_pack("[I,I]", (json_int_t)page->changes[i].offset,
						     (json_int_t)page->changes[i].length));
	return json_pack("{s:b,s:o,s:I,s:I,s:b}", "ok", 1, "changes", array, "next",
		(json_int_t)page->offset, "size", (json_int_t)page->size, "complete",
		page->offset >= page->size);
}

json_t *control_run_changes(struct volume *volume, const struct control_words *words)
{
	struct page page = {.count = 0};
	json_t *answer = understand(volume, words, &page);
	int error;

	if (answer != NULL)
		return answer;
	error = page.offset <= page.size ? fill(&page) : -ERANGE;
	if (error == -ERANGE)
		return control_refusal(error, "the offset is beyond the end");
	if (error == -EINVAL)
		return control_refusal(error, "the first snapshot is not older than the second");
	if (error == -ESTALE)
		return control_refusal(
			error, "a snapshot is invalid: what is known is not complete");
	if (error != 0)
		return refuse(error);
	return page_object(&page);
}
