/* SPDX-License-Identifier: MIT
 *
 * The fio benchmarks of the device-mapper test suite, plug-in "snapshot": 4 KiB at random, 256 KiB
 * in order; throughput with 32 in flight, latency with one. Its jobs are 1, 2, 4 and
 * 8: numjobs is to be given. "iod" is about which threads issue I/O, which each report of ours
 * says. Those that write to a snapshot are missing: ours are read only.
 */
#include <string.h>

#include "load.h"

#define RANDOM_BS UINT64_C(4096)
#define IN_ORDER  UINT64_C(262144)
#define ONCE      .numjobs = 1, .size = UINT64_C(256) << 20

/* clang-format off */
static const struct load_shape shapes[] = {
	{"fio_origin_randwrite_throughput", {"origin_randwrite", .writes = true, .random = true,
		.bs = RANDOM_BS, .iodepth = 32, .engine = LOAD_QUEUE, ONCE}, false},
	{"fio_origin_randwrite_iod", {"origin_randwrite", .writes = true, .random = true,
		.bs = RANDOM_BS, .iodepth = 32, .engine = LOAD_QUEUE, ONCE}, false},
	{"fio_origin_randwrite_latency", {"origin_randwrite", .writes = true, .random = true,
		.bs = RANDOM_BS, .iodepth = 1, .engine = LOAD_WAIT, ONCE}, false},
	{"fio_origin_seqwrite_throughput", {"origin_seqwrite", .writes = true,
		.bs = IN_ORDER, .iodepth = 32, .engine = LOAD_QUEUE, ONCE}, false},
	{"fio_origin_seqwrite_iod", {"origin_seqwrite", .writes = true,
		.bs = IN_ORDER, .iodepth = 32, .engine = LOAD_QUEUE, ONCE}, false},
	{"fio_snapshot_randread_throughput", {"snapshot_randread", .reads = true, .random = true,
		.bs = RANDOM_BS, .iodepth = 32, .engine = LOAD_QUEUE, ONCE}, true},
	{"fio_snapshot_randread_latency", {"snapshot_randread", .reads = true, .random = true,
		.bs = RANDOM_BS, .iodepth = 1, .engine = LOAD_WAIT, ONCE}, true},
	{"fio_snapshot_seqread_throughput", {"snapshot_seqread", .reads = true,
		.bs = IN_ORDER, .iodepth = 32, .engine = LOAD_QUEUE, ONCE}, true},
};
/* clang-format on */

#define SHAPES (sizeof(shapes) / sizeof(shapes[0]))

const struct load_shape *load_find_shape(const char *name)
{
	for (size_t i = 0; i < SHAPES; i++) {
		if (!strcmp(shapes[i].name, name))
			return &shapes[i];
	}
	return NULL;
}

const char *load_shape_name(size_t index)
{
	return index < SHAPES ? shapes[index].name : NULL;
}
