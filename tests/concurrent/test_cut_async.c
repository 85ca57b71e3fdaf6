/* SPDX-License-Identifier: MIT
 *
 * The same as test_cut.c, with writers among the others that do not wait: event loops that wait
 * for their queue's descriptor, that poll all the time, and workers. COWSNAP_TAKES multiplies the
 * takes.
 */
#include "concurrent/load.h"
#include "support/test.h"

#include <stdlib.h>

#if defined(__SANITIZE_THREAD__)
#define TAKES 40
#elif defined(__SANITIZE_ADDRESS__)
#define TAKES 60
#else
#define TAKES 150
#endif

static unsigned takes(void)
{
	const char *factor = getenv("COWSNAP_TAKES");

	return TAKES * (factor ? (unsigned)strtoul(factor, NULL, 0) : 1);
}

Test(cut_async, event_loops_and_waiting_writers, .timeout = 300)
{
	const struct load_plan plan = {
		.origins = 2,
		.stores = 2,
		.chunk_bytes = {4096, 1024},
		.takes = takes(),
		.taker_origins = {3, 1},
		.async_writers = 2,
		.engine = COWSNAP_ENGINE_LOOP,
	};

	load_run(&plan);
}

/* Fewer records than operations: some wait for their turn, outside of the gate. */
Test(cut_async, event_loops_with_a_single_record, .timeout = 300)
{
	const struct load_plan plan = {
		.origins = 3,
		.stores = 1,
		.chunk_bytes = {2048},
		.takes = takes(),
		.taker_origins = {7, 2},
		.async_writers = 4,
		.engine = COWSNAP_ENGINE_LOOP,
		.depth = 1,
	};

	load_run(&plan);
}

Test(cut_async, event_loops_with_the_inline_engine, .timeout = 300)
{
	const struct load_plan plan = {
		.origins = 2,
		.stores = 1,
		.chunk_bytes = {4096},
		.takes = takes(),
		.taker_origins = {3, 3},
		.async_writers = 3,
		.engine = COWSNAP_ENGINE_INLINE,
	};

	load_run(&plan);
}

Test(cut_async, hosts_that_poll_all_the_time_and_cancel, .timeout = 300)
{
	const struct load_plan plan = {
		.origins = 2,
		.stores = 2,
		.chunk_bytes = {512, 8192},
		.takes = takes(),
		.taker_origins = {3, 3},
		.async_writers = 3,
		.engine = COWSNAP_ENGINE_LOOP,
		.depth = 3,
		.busy_hosts = true,
		.cancels = true,
	};

	load_run(&plan);
}

Test(cut_async, workers, .timeout = 300)
{
	const struct load_plan plan = {
		.origins = 2,
		.stores = 2,
		.chunk_bytes = {4096, 1024},
		.takes = takes(),
		.taker_origins = {3, 1},
		.async_writers = 3,
		.engine = COWSNAP_ENGINE_WORKERS,
		.workers = 2,
	};

	load_run(&plan);
}

Test(cut_async, event_loops_that_submit, .timeout = 300)
{
	const struct load_plan plan = {
		.origins = 2,
		.stores = 2,
		.chunk_bytes = {4096, 1024},
		.device = LOAD_SLOW,
		.async = true,
		.takes = takes() / 2,
		.taker_origins = {3, 1},
		.async_writers = 3,
		.engine = COWSNAP_ENGINE_LOOP,
		.depth = 4,
		.cancels = true,
	};

	load_run(&plan);
}

Test(cut_async, workers_that_submit, .timeout = 300)
{
	const struct load_plan plan = {
		.origins = 2,
		.stores = 1,
		.chunk_bytes = {2048},
		.device = LOAD_SLOW,
		.async = true,
		.takes = takes() / 2,
		.taker_origins = {3, 1},
		.async_writers = 3,
		.engine = COWSNAP_ENGINE_WORKERS,
		.workers = 2,
	};

	load_run(&plan);
}

/* The same deadlock, where the one copy is under way while its event loop does other things. */
Test(cut_async, one_copy_in_flight_that_is_submitted, .timeout = 300)
{
	const struct load_plan plan = {
		.origins = 2,
		.stores = 2,
		.chunk_bytes = {4096, 512},
		.device = LOAD_SLOW,
		.async = true,
		.copy_inflight_bytes = 1,
		.takes = takes() / 2,
		.taker_origins = {1, 2},
		.async_writers = 2,
		.engine = COWSNAP_ENGINE_LOOP,
		.depth = 2,
		.cancels = true,
	};

	load_run(&plan);
}

Test(cut_async, full_store_never_hands_out_wrong_data, .timeout = 300)
{
	const struct load_plan plan = {
		.origins = 2,
		.stores = 1,
		.chunk_bytes = {1024},
		.limit_chunks = 150,
		.takes = takes(),
		.taker_origins = {3, 1},
		.async_writers = 2,
		.engine = COWSNAP_ENGINE_LOOP,
	};

	load_run(&plan);
}

Test(cut_async, full_store_that_refuses_writes, .timeout = 300)
{
	const struct load_plan plan = {
		.origins = 1,
		.stores = 2,
		.chunk_bytes = {1024, 4096},
		.limit_chunks = 100,
		.on_full = COWSNAP_LOSER_WRITE,
		.takes = takes(),
		.taker_origins = {1, 1},
		.async_writers = 3,
		.engine = COWSNAP_ENGINE_LOOP,
		.depth = 2,
		.cancels = true,
	};

	load_run(&plan);
}

/* The kernel's deadlock of 2019 once more: one copy in flight, writers of all kinds at that limit,
 * takes and drops of an origin that has nothing to do with them. */
Test(cut_async, one_copy_in_flight_and_takes_of_another_origin, .timeout = 300)
{
	const struct load_plan plan = {
		.origins = 2,
		.stores = 2,
		.chunk_bytes = {4096, 512},
		.copy_inflight_bytes = 1,
		.takes = takes(),
		.taker_origins = {1, 2},
		.async_writers = 2,
		.engine = COWSNAP_ENGINE_LOOP,
		.depth = 2,
	};

	load_run(&plan);
}

Test(cut_async, one_copy_in_flight_on_workers, .timeout = 300)
{
	const struct load_plan plan = {
		.origins = 2,
		.stores = 1,
		.chunk_bytes = {1024},
		.copy_inflight_bytes = 1,
		.takes = takes(),
		.taker_origins = {1, 2},
		.async_writers = 3,
		.engine = COWSNAP_ENGINE_WORKERS,
		.workers = 1,
	};

	load_run(&plan);
}
