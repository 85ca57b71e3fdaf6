/* SPDX-License-Identifier: MIT
 *
 * cowsnap-jemalloc: an allocator table on jemalloc, a component of its own (link with
 * -lcowsnap-jemalloc). For executables: jemalloc must be linked into the program itself, not come
 * in with a plug-in that is loaded later (its initial-exec TLS makes dlopen fail).
 */
#ifndef COWSNAP_JEMALLOC_H
#define COWSNAP_JEMALLOC_H

#include <cowsnap.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * cowsnap_jemalloc - the table: one jemalloc arena per map, so dropping a map is one arena reset
 * Returns: a static table, for cowsnap_ctx_options.allocator and cowsnap_map_create().
 * Context: any thread; does not block; may run in a callback.
 * Lifetime: as long as the library is loaded.
 */
COWSNAP_API const struct cowsnap_allocator *cowsnap_jemalloc(void);

#ifdef __cplusplus
}
#endif

#endif
