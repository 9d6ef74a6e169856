/* Positions of a ring with one producer thread and one consumer thread; the entries live elsewhere. */

#ifndef RING_H
#define RING_H

#include <stdalign.h>
#include <stdatomic.h>
#include <stdint.h>

struct ring {
    alignas(64) _Atomic uint32_t produced;
    alignas(64) _Atomic uint32_t consumed;
    uint32_t mask; /* entries - 1 */
};

static inline uint32_t ring_filled(struct ring *ring)
{
    return atomic_load_explicit(&ring->produced, memory_order_acquire) -
           atomic_load_explicit(&ring->consumed, memory_order_acquire);
}

/* Index of the next entry to take; only for the consumer, when something is there. */
static inline uint32_t ring_first(struct ring *ring)
{
    return atomic_load_explicit(&ring->consumed, memory_order_relaxed) & ring->mask;
}

/* Index of the next entry to fill; only for the producer, when there is room. */
static inline uint32_t ring_next(struct ring *ring)
{
    return atomic_load_explicit(&ring->produced, memory_order_relaxed) & ring->mask;
}

static inline void ring_produce(struct ring *ring, uint32_t count)
{
    atomic_fetch_add_explicit(&ring->produced, count, memory_order_release);
}

static inline void ring_consume(struct ring *ring, uint32_t count)
{
    atomic_fetch_add_explicit(&ring->consumed, count, memory_order_release);
}

#endif
