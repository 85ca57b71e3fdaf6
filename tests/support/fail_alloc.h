/* SPDX-License-Identifier: MIT
 *
 * An allocator table that counts, finds leaks and wrong sizes, and fails on request. For failure
 * sweeps: run the same body with n = 1, 2, 3 ... until fail_alloc_failed() says that no call
 * failed.
 *
 *     struct fail_alloc *mem = fail_alloc_create(true);
 *     fail_alloc_at(mem, n, false);
 *     ... what is tested, with fail_alloc_table(mem) ...
 *     cr_assert_eq(fail_alloc_live(mem), 0);
 *     fail_alloc_destroy(mem);
 *
 * Any thread may use the table at any time. Each block carries its size, alignment and arena; a
 * free that names another size or arena ends the process with a message.
 */
#ifndef CS_FAIL_ALLOC_H
#define CS_FAIL_ALLOC_H

#include <cowsnap.h>

struct fail_alloc;

/* @arenas: whether the table has the arena members. */
struct fail_alloc *fail_alloc_create(bool arenas);
/* Ends the process with a message if something is still allocated. */
void fail_alloc_destroy(struct fail_alloc *mem);
const struct cowsnap_allocator *fail_alloc_table(struct fail_alloc *mem);

/* From now on the @n-th allocation (alloc, arena_alloc or arena_create; 1 is the next) fails, and
 * with @for_good every one after it. 0: none. */
void fail_alloc_at(struct fail_alloc *mem, uint64_t n, bool for_good);
/* Allocations that failed on request since fail_alloc_at(). */
uint64_t fail_alloc_failed(const struct fail_alloc *mem);
/* Allocations asked for since fail_alloc_at(), failed ones included. */
uint64_t fail_alloc_calls(const struct fail_alloc *mem);
/* Blocks and arenas that are allocated now; bytes of the blocks; the most bytes there have been. */
uint64_t fail_alloc_live(const struct fail_alloc *mem);
uint64_t fail_alloc_live_bytes(const struct fail_alloc *mem);
uint64_t fail_alloc_peak_bytes(const struct fail_alloc *mem);

#endif
