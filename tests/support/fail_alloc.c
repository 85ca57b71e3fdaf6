/* SPDX-License-Identifier: MIT
 *
 * See support/fail_alloc.h. Each block is preceded by a header as long as its alignment (at least
 * that of the header), so that a block keeps the alignment that was asked for and a sanitizer still
 * sees its end.
 */
#include "support/fail_alloc.h"

#include <pthread.h>
#include <stdalign.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_MAGIC UINT64_C(0x636f77736e617021)

struct arena {
	struct block *blocks;
};

struct block {
	uint64_t magic;
	size_t bytes;
	size_t lead_bytes; /* from what malloc gave to the block */
	struct arena *arena;
	struct block *next; /* of the arena */
	struct block **link;
};

struct fail_alloc {
	pthread_mutex_t lock;
	struct cowsnap_allocator table;
	uint64_t countdown; /* 0: off */
	bool for_good;
	uint64_t calls;
	uint64_t failed;
	uint64_t live;
	uint64_t live_bytes;
	uint64_t peak_bytes;
};

_Noreturn static void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Not an assertion of the test frame: it may come from any thread. */
_Noreturn static void die(const char *format, ...)
{
	va_list args;

	fputs("fail_alloc: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	abort();
}

/* Returns: whether this allocation is to fail. */
static bool count_call(struct fail_alloc *mem)
{
	bool fail = false;

	pthread_mutex_lock(&mem->lock);
	mem->calls++;
	if (mem->countdown == 1) {
		fail = true;
		mem->countdown = mem->for_good ? 1 : 0;
	} else if (mem->countdown > 1) {
		mem->countdown--;
	}
	mem->failed += fail;
	pthread_mutex_unlock(&mem->lock);
	return fail;
}

static struct block *block_of(void *memory)
{
	return (struct block *)((char *)memory - sizeof(struct block));
}

static void link_block(struct fail_alloc *mem, struct block *block, struct arena *arena)
{
	pthread_mutex_lock(&mem->lock);
	block->arena = arena;
	if (arena) {
		block->next = arena->blocks;
		block->link = &arena->blocks;
		if (block->next)
			block->next->link = &block->next;
		arena->blocks = block;
	}
	mem->live++;
	mem->live_bytes += block->bytes;
	if (mem->live_bytes > mem->peak_bytes)
		mem->peak_bytes = mem->live_bytes;
	pthread_mutex_unlock(&mem->lock);
}

static void *allocate(struct fail_alloc *mem, struct arena *arena, size_t bytes, size_t align)
{
	size_t lead;
	char *start = NULL;
	struct block *block;

	if (align < sizeof(void *) || (align & (align - 1)) != 0)
		die("alignment %zu", align);
	if (bytes == 0)
		die("an allocation of 0 bytes");
	if (count_call(mem))
		return NULL;
	if (align < alignof(max_align_t))
		align = alignof(max_align_t);
	lead = (sizeof(struct block) + align - 1) / align * align;
	if (posix_memalign((void **)&start, align, lead + bytes) != 0)
		return NULL;
	/* Nobody may rely on fresh memory being zero. */
	memset(start, 0xa5, lead + bytes);
	block = block_of(start + lead);
	*block = (struct block){.magic = BLOCK_MAGIC, .bytes = bytes, .lead_bytes = lead};
	link_block(mem, block, arena);
	return start + lead;
}

/* Under the lock. */
static void forget_block(struct fail_alloc *mem, struct block *block)
{
	if (block->arena) {
		*block->link = block->next;
		if (block->next)
			block->next->link = block->link;
	}
	mem->live--;
	mem->live_bytes -= block->bytes;
	block->magic = 0;
}

static void release(struct fail_alloc *mem, struct arena *arena, void *memory, size_t bytes)
{
	struct block *block;

	if (!memory)
		die("a free of NULL");
	block = block_of(memory);
	if (block->magic != BLOCK_MAGIC)
		die("a free of %p, which is not a block", memory);
	if (block->bytes != bytes)
		die("a free of %zu bytes, allocated were %zu", bytes, block->bytes);
	if (block->arena != arena)
		die("a free into another arena");
	pthread_mutex_lock(&mem->lock);
	forget_block(mem, block);
	pthread_mutex_unlock(&mem->lock);
	free((char *)memory - block->lead_bytes);
}

static void *table_alloc(void *user, size_t bytes, size_t align)
{
	return allocate(user, NULL, bytes, align);
}

static void table_free(void *user, void *memory, size_t bytes)
{
	release(user, NULL, memory, bytes);
}

static void *table_arena_create(void *user)
{
	struct fail_alloc *mem = user;
	struct arena *arena;

	if (count_call(mem))
		return NULL;
	arena = calloc(1, sizeof(*arena));
	if (!arena)
		return NULL;
	pthread_mutex_lock(&mem->lock);
	mem->live++;
	pthread_mutex_unlock(&mem->lock);
	return arena;
}

static void *table_arena_alloc(void *user, void *arena, size_t bytes, size_t align)
{
	if (!arena)
		die("an allocation in no arena");
	return allocate(user, arena, bytes, align);
}

static void table_arena_free(void *user, void *arena, void *memory, size_t bytes)
{
	if (!arena)
		die("a free in no arena");
	release(user, arena, memory, bytes);
}

static void table_arena_destroy(void *user, void *arena_pointer)
{
	struct fail_alloc *mem = user;
	struct arena *arena = arena_pointer;

	pthread_mutex_lock(&mem->lock);
	while (arena->blocks) {
		struct block *block = arena->blocks;

		forget_block(mem, block);
		free((char *)block + sizeof(*block) - block->lead_bytes);
	}
	mem->live--;
	pthread_mutex_unlock(&mem->lock);
	free(arena);
}

struct fail_alloc *fail_alloc_create(bool arenas)
{
	struct fail_alloc *mem = calloc(1, sizeof(*mem));

	if (!mem)
		die("no memory");
	pthread_mutex_init(&mem->lock, NULL);
	mem->table = (struct cowsnap_allocator){
		.size = sizeof(mem->table),
		.user = mem,
		.alloc = table_alloc,
		.free = table_free,
	};
	if (arenas) {
		mem->table.arena_create = table_arena_create;
		mem->table.arena_alloc = table_arena_alloc;
		mem->table.arena_free = table_arena_free;
		mem->table.arena_destroy = table_arena_destroy;
	}
	return mem;
}

void fail_alloc_destroy(struct fail_alloc *mem)
{
	if (mem->live != 0)
		die("%llu blocks or arenas, %llu bytes, were not freed",
			(unsigned long long)mem->live, (unsigned long long)mem->live_bytes);
	pthread_mutex_destroy(&mem->lock);
	free(mem);
}

const struct cowsnap_allocator *fail_alloc_table(struct fail_alloc *mem)
{
	return &mem->table;
}

void fail_alloc_at(struct fail_alloc *mem, uint64_t n, bool for_good)
{
	pthread_mutex_lock(&mem->lock);
	mem->countdown = n;
	mem->for_good = for_good;
	mem->calls = 0;
	mem->failed = 0;
	pthread_mutex_unlock(&mem->lock);
}

static uint64_t read_counter(const struct fail_alloc *mem, const uint64_t *counter)
{
	pthread_mutex_t *lock = (pthread_mutex_t *)&mem->lock;
	uint64_t value;

	pthread_mutex_lock(lock);
	value = *counter;
	pthread_mutex_unlock(lock);
	return value;
}

uint64_t fail_alloc_failed(const struct fail_alloc *mem)
{
	return read_counter(mem, &mem->failed);
}

uint64_t fail_alloc_calls(const struct fail_alloc *mem)
{
	return read_counter(mem, &mem->calls);
}

uint64_t fail_alloc_live(const struct fail_alloc *mem)
{
	return read_counter(mem, &mem->live);
}

uint64_t fail_alloc_live_bytes(const struct fail_alloc *mem)
{
	return read_counter(mem, &mem->live_bytes);
}

uint64_t fail_alloc_peak_bytes(const struct fail_alloc *mem)
{
	return read_counter(mem, &mem->peak_bytes);
}
