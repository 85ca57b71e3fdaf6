/* SPDX-License-Identifier: MIT
 *
 * Short workloads, one for each thing that a store does; a random one; and some with many writers.
 * Sizes are as small as they can be, so that each can be cut off everywhere.
 */
#ifndef COWSNAP_TESTS_CRASH_WORKLOADS_H
#define COWSNAP_TESTS_CRASH_WORKLOADS_H

#include "crash/scenario.h"

extern const struct workload workload_create_take;
extern const struct workload workload_first_touches;
extern const struct workload workload_area_crossing;
extern const struct workload workload_spanning_groups;
extern const struct workload workload_torn_area; /* areas of 2 sectors */
extern const struct workload workload_torn_large_area;
extern const struct workload workload_reopen;
extern const struct workload workload_reopen_full_areas; /* variant: how many records first */
/* A process that is killed; the next one finds what is in the caches. Variant: before which of its
 * writes and flushes. */
extern const struct workload workload_killed_in_commit;
extern const struct workload workload_killed_in_take;
extern const struct workload workload_killed_in_drop;
extern const struct workload workload_killed_in_drop_created_again;
extern const struct workload workload_killed_in_invalidation;
extern const struct workload workload_grow;
extern const struct workload workload_full_invalidates;
extern const struct workload workload_full_write_loses;
extern const struct workload workload_data_write_fails;
extern const struct workload workload_record_write_fails;
extern const struct workload workload_record_write_fails_write_loses;
extern const struct workload workload_flush_fails; /* variant: which one */
extern const struct workload workload_flush_fails_write_loses;
extern const struct workload workload_spanning_commit_fails; /* variant: which of its writes */
extern const struct workload workload_areas_fail_write_loses;
extern const struct workload workload_invalidation_fails;
extern const struct workload workload_drop_fails;
extern const struct workload workload_take_fails; /* variant: at which flush */
extern const struct workload workload_drop;
extern const struct workload workload_drop_take_again;
extern const struct workload workload_overwrite;
extern const struct workload workload_generation;
extern const struct workload workload_merge_by_hand; /* merge.c */
extern const struct workload workload_merge_by_hand_torn;
extern const struct workload workload_odd_end; /* an origin that ends inside a chunk */
extern const struct workload workload_random;  /* single-threaded, from the seed */
extern const struct workload workload_random_faults;
extern const struct workload workload_threads; /* many writers; variant: how many writes each */
extern const struct workload workload_threads_large_chunks;
extern const struct workload workload_threads_invalidate;
extern const struct workload workload_threads_drop;
extern const struct workload workload_threads_records_fail;
/* Writers on a queue, whose store is submitted to; variant: how many writes. */
extern const struct workload workload_loop;
extern const struct workload workload_loop_large_chunks;
extern const struct workload workload_loop_and_threads;
extern const struct workload workload_loop_invalidate;
extern const struct workload workload_loop_records_fail;

#endif
