/* SPDX-License-Identifier: MIT
 *
 * Images that are taken under full load are consistent cuts. Each plan is a few hundred takes and
 * drops with writers, readers and the reclaimer running; COWSNAP_TAKES multiplies them.
 */
#include "concurrent/load.h"
#include "support/cut.h"
#include "support/test.h"

#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_THREAD__)
#define TAKES 60
#elif defined(__SANITIZE_ADDRESS__)
#define TAKES 100
#else
#define TAKES 600
#endif

static unsigned takes(void)
{
	const char *factor = getenv("COWSNAP_TAKES");

	return TAKES * (factor ? (unsigned)strtoul(factor, NULL, 0) : 1);
}

/* Chunks of eight blocks: a copy saves neighbours that others are writing. */
Test(cut, one_origin_under_load, .timeout = 300)
{
	const struct load_plan plan = {
		.origins = 1,
		.stores = 1,
		.chunk_bytes = {4096},
		.takes = takes(),
		.taker_origins = {1, 1},
	};

	load_run(&plan);
}

Test(cut, group_of_origins_is_one_instant, .timeout = 300)
{
	const struct load_plan plan = {
		.origins = 3,
		.stores = 1,
		.chunk_bytes = {2048},
		.takes = takes(),
		.taker_origins = {7, 7},
	};

	load_run(&plan);
}

Test(cut, stores_with_different_chunks, .timeout = 300)
{
	const struct load_plan plan = {
		.origins = 2,
		.stores = 2,
		.chunk_bytes = {512, 16384},
		.takes = takes(),
		.taker_origins = {3, 3},
	};

	load_run(&plan);
}

Test(cut, files, .timeout = 300)
{
	const struct load_plan plan = {
		.origins = 2,
		.stores = 2,
		.chunk_bytes = {4096, 1024},
		.device = LOAD_FILE,
		.takes = takes() / 2,
		.taker_origins = {3, 1},
	};

	load_run(&plan);
}

Test(cut, brackets_ended_by_another_thread, .timeout = 300)
{
	const struct load_plan plan = {
		.origins = 2,
		.stores = 1,
		.chunk_bytes = {4096},
		.takes = takes() / 2,
		.taker_origins = {3, 2},
		.other_thread_ends = true,
	};

	load_run(&plan);
}

/* A chunk that is longer than the volume: every copy is of all of it. */
Test(cut, one_chunk_for_everything, .timeout = 300)
{
	const struct load_plan plan = {
		.origins = 1,
		.stores = 1,
		.chunk_bytes = {1 << 17},
		.takes = takes(),
		.taker_origins = {1, 1},
	};

	load_run(&plan);
}

Test(cut, full_store_never_hands_out_wrong_data, .timeout = 300)
{
	const struct load_plan plan = {
		.origins = 2,
		.stores = 1,
		.chunk_bytes = {1024},
		.limit_chunks = 150,
		.takes = takes(),
		.taker_origins = {3, 1},
	};

	load_run(&plan);
}

Test(cut, full_store_that_refuses_writes, .timeout = 300)
{
	const struct load_plan plan = {
		.origins = 1,
		.stores = 2,
		.chunk_bytes = {1024, 4096},
		.limit_chunks = 100,
		.on_full = COWSNAP_LOSER_WRITE,
		.takes = takes(),
		.taker_origins = {1, 1},
	};

	load_run(&plan);
}

/* The kernel's deadlock of 2019: one copy in flight, many writers, and takes and drops of an origin
 * that has nothing to do with them. */
Test(cut, one_copy_in_flight_and_takes_of_another_origin, .timeout = 300)
{
	const struct load_plan plan = {
		.origins = 2,
		.stores = 2,
		.chunk_bytes = {4096, 512},
		.copy_inflight_bytes = 1,
		.takes = takes(),
		.taker_origins = {1, 2},
	};

	load_run(&plan);
}

/* ---- Threads that wait and loops that do not ------------------------------------------------- */

Test(cut, loops, .timeout = 300)
{
	const struct load_plan plan = {
		.origins = 3,
		.stores = 2,
		.chunk_bytes = {2048, 512},
		.takes = takes() / 2,
		.taker_origins = {7, 3},
		.async = true,
		.async_writers = LOAD_WRITERS / 2,
		.engine = COWSNAP_ENGINE_LOOP,
	};

	load_run(&plan);
}

Test(cut, loops_and_devices_that_are_submitted_to, .timeout = 300)
{
	const struct load_plan plan = {
		.origins = 2,
		.stores = 2,
		.chunk_bytes = {4096, 1024},
		.device = LOAD_SLOW,
		.takes = takes() / 3,
		.taker_origins = {3, 3},
		.async = true,
		.async_writers = LOAD_WRITERS / 2,
		.engine = COWSNAP_ENGINE_LOOP,
	};

	load_run(&plan);
}

Test(cut, workers_that_lack_space_and_credits, .timeout = 300)
{
	const struct load_plan plan = {
		.origins = 2,
		.stores = 1,
		.chunk_bytes = {1024},
		.device = LOAD_SLOW,
		.limit_chunks = 150,
		.copy_inflight_bytes = 1,
		.takes = takes() / 3,
		.taker_origins = {3, 1},
		.async = true,
		.async_writers = LOAD_WRITERS / 2,
		.engine = COWSNAP_ENGINE_WORKERS,
		.workers = 2,
	};

	load_run(&plan);
}

/* ---- The checker itself: what it must call wrong -------------------------------------------- */

static void write_block(struct cut *cut, unsigned o, unsigned b, uint8_t *data)
{
	cr_assert(cut_begin(cut, o, b, 1));
	cut_stamp(cut, o, b, 1, data);
	cut_end(cut, o, b, 1);
}

Test(cut, checker_finds_what_is_wrong)
{
	struct cut cut;
	struct cut_image image = {.called = 1000, .returned = 2000};
	uint8_t data[CUT_BLOCK];
	char message[256];
	uint32_t version;

	cut_init(&cut, 8);
	write_block(&cut, 0, 5, data); /* begins at 1, ends at 2 */
	cr_assert(cut_decode(0, 5, data, &version));
	cr_assert_eq(version, 1);
	cr_assert(!cut_decode(1, 5, data, &version));
	data[CUT_BLOCK - 1] ^= 1;
	cr_assert(!cut_decode(0, 5, data, &version));

	write_block(&cut, 1, 7, data); /* 3, 4 */
	image.has[0] = image.has[1] = true;
	cr_assert(cut_check(&cut, &image, message, sizeof(message)), "both ended before the take");
	image.called = 0;
	cr_assert_null(cut_check(&cut, &image, message, sizeof(message)));
	image.version[0][5] = 1;
	cr_assert_null(cut_check(&cut, &image, message, sizeof(message)));
	image.version[1][7] = 1;
	cr_assert_null(cut_check(&cut, &image, message, sizeof(message)));
	image.version[0][5] = 0;
	cr_assert(
		cut_check(&cut, &image, message, sizeof(message)), "the effect without its cause");
	image.version[0][5] = 2;
	cr_assert(cut_check(&cut, &image, message, sizeof(message)), "a version nobody wrote");
	image.version[0][5] = 1;
	image.returned = 2;
	cr_assert(cut_check(&cut, &image, message, sizeof(message)), "a write of the future");
	cut_fini(&cut);
}
