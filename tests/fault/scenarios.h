/* SPDX-License-Identifier: MIT
 *
 * Short lives of a persistent store, each of which goes on as far as it can when a call fails.
 */
#ifndef COWSNAP_TESTS_FAULT_SCENARIOS_H
#define COWSNAP_TESTS_FAULT_SCENARIOS_H

#include "support/dm_scene.h"

struct scenario {
	const char *name;
	struct dm_scene_options options;
	void (*body)(struct dm_scene *s);
};

extern const struct scenario scenarios[];
extern const unsigned scenario_count;

/* The one of this name. */
const struct scenario *scenario_find(const char *name);

#endif
