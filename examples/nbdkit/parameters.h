/* SPDX-License-Identifier: MIT */
#ifndef EXAMPLE_PARAMETERS_H
#define EXAMPLE_PARAMETERS_H

#include "volume.h"

struct parameters {
	struct volume_options volume;
	const char *control;        /* NULL: no socket */
	unsigned int snapshot_nice; /* of the threads that read snapshots */
};

/* nbdkit hands parameters over before there is a handle to keep them in, so they are global. */
extern struct parameters parameters;

/* nbdkit's .config and .config_complete: 0, or -1 after nbdkit_error() said what is wrong. */
int parameters_set(const char *key, const char *value);
int parameters_complete(void);
void parameters_free(void);

#define PARAMETERS_HELP                                                                           \
	"[file=]PATH              (required) The file or block device to serve.\n"                \
	"chunk-size=SIZE          Unit of copying, a power of two (default 4K, or what the\n"     \
	"                         persistent store has).\n"                                       \
	"store=memory|FILE        Where preimages go (default memory).\n"                         \
	"store-format=transient|dm   Whether snapshots end with the process (default), or the\n"  \
	"                         one that FILE holds is kept there and served again at the\n"    \
	"                         next start.\n"                                                  \
	"store-limit=SIZE         Most that the store may hold. A new FILE gets this size\n"      \
	"                         (default: the size of the volume), for dm and what the\n"       \
	"                         format needs besides.\n"                                        \
	"generation-file=PATH     Keep a number there and in the dm store, and refuse a store\n"  \
	"                         whose volume was written to without it.\n"                      \
	"handover-file=PATH       Take the dm store over from a server that was told `handover\n" \
	"                         PATH`, without reading its records.\n"                          \
	"on-full=invalidate|fail|wait   What happens when it is full: the snapshot becomes\n"     \
	"                         invalid (default), the write fails, or the write waits and\n"   \
	"                         then the snapshot becomes invalid.\n"                           \
	"on-full-wait=SECONDS     How long it waits (default 30).\n"                              \
	"snapshots=readonly|writable|release   What clients may do with exports of snapshots:\n"  \
	"                         read (default); write, which nobody else sees; or trim what\n"  \
	"                         they have read, whose space is then given back.\n"              \
	"snapshot-nice=0..19      How far reads of snapshots step back behind the volume's own\n" \
	"                         requests when processors are short (default 10; 0: not).\n"     \
	"control=PATH             Make a Unix socket for commands; `help` lists them."

#endif
