/* SPDX-License-Identifier: MIT
 *
 * What is done with snapshots in the background, on an origin whose host knows of preimages. Only
 * brackets of the host's ask for them: the host knows the volume as it is, and a merge or a detach
 * wants what is on the device.
 */
#include "concurrent/scene.h"

#include <string.h>

#define CHUNKS 4
#define BYTES  (CHUNKS * SCENE_CHUNK)

struct host {
	uint8_t volume[BYTES]; /* as it is now */
	enum cowsnap_preimage_kind kind;
	unsigned asked;
};

static enum cowsnap_preimage_kind tell(void *user, struct cowsnap_preimage_ask *ask)
{
	struct host *host = user;

	host->asked++;
	if (ask->offset + ask->length > BYTES)
		return COWSNAP_PREIMAGE_READ;
	ask->data = host->volume + ask->offset;
	return host->kind;
}

static void open_with(struct scene *s, struct host *host, enum cowsnap_preimage_kind kind)
{
	const struct cowsnap_preimage preimage = {.get = tell, .user = host};

	memset(host, 0, sizeof(*host));
	host->kind = kind;
	scene_open(s, NULL);
	cr_assert_eq(cowsnap_origin_set_preimage(s->origin[0], &preimage), 0);
}

static void write_all(struct scene *s, struct host *host, uint8_t value)
{
	cr_assert_eq(scene_write(s, 0, 0, BYTES, value), 0);
	memset(host->volume, value, BYTES);
}

/* From the begin of a merge on the volume is what it was; other snapshots keep what is on the
 * device, of which the host knows nothing any more. */
static void merge_with(enum cowsnap_preimage_kind kind)
{
	struct cowsnap_snapshot *merged, *kept;
	struct host host;
	struct scene s;
	unsigned asked;

	open_with(&s, &host, COWSNAP_PREIMAGE_GIVEN);
	write_all(&s, &host, 1);
	merged = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	write_all(&s, &host, 2);
	cr_assert_gt(host.asked, 0, "by the bracket");
	kept = scene_take(&s, 0, 1, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(cowsnap_merge_begin(merged), 0);
	memset(host.volume, 1, BYTES);
	host.kind = kind;
	asked = host.asked;
	cr_assert_eq(cowsnap_merge_run(merged, UINT64_MAX), 0);
	cr_assert_eq(host.asked, asked);
	scene_expect(kept, 0, BYTES, 2);
	cowsnap_snapshot_unref(merged);
	scene_drop(kept);
	scene_close(&s);
}

Test(together, a_merge_saves_what_is_on_the_device)
{
	merge_with(COWSNAP_PREIMAGE_GIVEN);
	merge_with(COWSNAP_PREIMAGE_ZERO);
}

Test(together, a_detach_saves_what_is_on_the_device)
{
	struct cowsnap_snapshot *snapshot;
	struct host host;
	struct scene s;

	open_with(&s, &host, COWSNAP_PREIMAGE_ZERO);
	write_all(&s, &host, 1);
	snapshot = scene_take(&s, 0, 0, COWSNAP_LOSER_SNAPSHOT);
	cr_assert_eq(cowsnap_snapshot_detach(snapshot, UINT64_MAX), 0);
	cr_assert_eq(host.asked, 0);
	scene_expect(snapshot, 0, BYTES, 1);
	scene_drop(snapshot);
	scene_close(&s);
}
