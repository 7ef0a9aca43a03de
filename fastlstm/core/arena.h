/* arena.h - memory that a caller gave, handed out piece by piece. Without memory it only counts, so
 * that what tells a size and what fills it are the same code.
 */
#ifndef FL_ARENA_H
#define FL_ARENA_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    char *base;   /* aligned to 64 bytes; NULL: only count */
    size_t size;  /* bytes there are */
    size_t used;  /* SIZE_MAX once a size overflowed or there were too few */
} fl_arena;

/* count * size bytes from a multiple of 64 on, or NULL while counting, or where there are too few. */
static inline void *fl_take(fl_arena *arena, size_t count, size_t size) {
    const size_t at = arena->used;
    size_t bytes, end;
    if (__builtin_mul_overflow(count, size, &bytes) || __builtin_add_overflow(bytes, 63, &bytes) ||
        __builtin_add_overflow(at, bytes / 64 * 64, &end) || end > arena->size ||
        end >= SIZE_MAX / 2) {
        arena->used = SIZE_MAX;
        return NULL;
    }
    arena->used = end;
    return arena->base ? arena->base + at : NULL;
}

#endif
