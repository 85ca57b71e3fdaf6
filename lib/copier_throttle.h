/* SPDX-License-Identifier: MIT
 *
 * The throttle of background copies, as arithmetic: it is told the time and says when to go on.
 *
 * Rate: each piece is paid for when it is admitted, and the next one waits until the debt is paid
 * off. Share of time: from the first piece under way to the last one is a busy *spell*; after it
 * comes a rest that stands to it as the rest of the time to the share. A spell that is made longer
 * and longer by pieces that overlap is ended: after CS_THROTTLE_SPELL_NS no more are admitted.
 *
 * Locking: the caller's. Failure: none.
 */
#ifndef CS_COPIER_THROTTLE_H
#define CS_COPIER_THROTTLE_H

#include <stdint.h>

#define CS_THROTTLE_SPELL_NS UINT64_C(10000000)

struct cs_throttle {
	uint64_t bytes_per_s;   /* 0: no bound */
	unsigned share_percent; /* 1 to 100 */
	unsigned active;        /* pieces under way */
	uint64_t paid_ns;       /* when the debt of the rate is paid off */
	uint64_t busy_since_ns; /* with active: the beginning of the spell */
	uint64_t rest_until_ns;
};

/* From now on; what was owed is forgotten. */
void cs_throttle_set(struct cs_throttle *t, uint64_t bytes_per_s, unsigned share_percent);
/* May a piece of @bytes go on? Returns: 0: yes, and it is paid for. Else: ask again then. */
uint64_t cs_throttle_admit(struct cs_throttle *t, uint64_t now_ns, uint64_t bytes);
/* One that was admitted begins, and ends. */
void cs_throttle_begin(struct cs_throttle *t, uint64_t now_ns);
void cs_throttle_end(struct cs_throttle *t, uint64_t now_ns);

#endif
