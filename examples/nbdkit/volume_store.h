/* SPDX-License-Identifier: MIT
 *
 * What the volume does about its store: opening one of either format, the snapshot's name and the
 * host's generation, which the persistent format has no place for or no use of.
 */
#ifndef EXAMPLE_VOLUME_STORE_H
#define EXAMPLE_VOLUME_STORE_H

#include "volume.h"

/*
 * store_open - open the device of the store and the store
 * @entry: origin and on_full are set; if a persistent store holds a snapshot, that is set
 * Returns: 0, or a negative errno after nbdkit_error() said what is wrong.
 */
int store_open(struct volume *volume, struct cowsnap_take_entry *entry);

/*
 * The name of a persistent store's snapshot, in FILE.name. Written before a take and removed after
 * a drop, so that no snapshot is without one; one without a snapshot means nothing.
 */

/* store_name_read - the name of the snapshot that was found: "reopened" if none was kept */
void store_name_read(struct volume *volume, char name[SNAPSHOT_NAME_MAX + 1]);

/* store_name_write - returns 0, or a negative errno after nbdkit_error() said what is wrong */
int store_name_write(struct volume *volume, const char *name);

void store_name_remove(struct volume *volume);

/*
 * That the snapshot of a persistent store is being merged, in FILE.merging. Each does nothing for
 * another store.
 */

/* store_merge_mark, store_merge_unmark - returns 0, or a negative errno after nbdkit_error() said
 * what is wrong */
int store_merge_mark(struct volume *volume);
int store_merge_unmark(struct volume *volume);

bool store_merge_marked(const struct volume *volume);

/*
 * store_import - open a persistent store with what volume_handover() of another server has left
 * Returns: 0; -ESTALE (it has changed since: open it), or a negative errno after nbdkit_error()
 *	said what is wrong.
 */
int store_import(struct volume *volume, const struct cowsnap_dm_options *options,
	struct cowsnap_take_entry *entry);

/*
 * generation_read - read volume.generation from its file; 0 if there is none
 * generation_check - refuse a store whose snapshot missed writes to the volume
 * generation_raise - before the first write: the next number into the store, then into the file
 *
 * In this order, so that after a crash between the two the store is one ahead. Each does nothing if
 * there is no generation-file.
 *
 * Returns: 0, or a negative errno after nbdkit_error() said what is wrong.
 */
int generation_read(struct volume *volume);
int generation_check(struct volume *volume);
int generation_raise(struct volume *volume);

#endif
