"""Kernel of CHiRP-like replacement. Header: tlb/chirp.pxd."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef void chirp_start(PolicySets *p) noexcept nogil:
    cdef uint32_t s
    for s in range(p.sets):
        recency_start(of_way(p, s, 0) + 3, p.ways, 4)


cdef inline uint8_t *counter(PolicySets *p, uint32_t of) noexcept nogil:
    return p.own + 8 * FETCHES + (of & (SIGNATURES - 1))


cdef inline uint32_t signature_of(const uint8_t *way) noexcept nogil:
    return way[0] | way[1] << 8


cdef inline void used_now(PolicySets *p, uint32_t set, uint32_t way, uint64_t key) noexcept nogil:
    cdef uint8_t *x = of_way(p, set, way)
    cdef uint32_t s = signature(p, key)
    x[0] = s & 0xFF
    x[1] = s >> 8
    x[2] = counter(p, s)[0] >= DEAD_FROM
    make_first(of_way(p, set, 0) + 3, p.ways, 4, way)


cdef void chirp_hit(PolicySets *p, uint32_t set, const uint64_t *key, uint32_t way) noexcept nogil:
    cdef uint8_t *n = counter(p, signature_of(of_way(p, set, way)))
    if n[0]:
        n[0] -= 1
    used_now(p, set, way, key[way])


cdef void chirp_fill(PolicySets *p, uint32_t set, const uint64_t *key, uint32_t way) noexcept nogil:
    used_now(p, set, way, key[way])


cdef uint32_t chirp_victim(PolicySets *p, uint32_t set, const uint64_t *key, uint64_t allowed) noexcept nogil:
    cdef uint64_t dead = 0, left = allowed
    cdef uint8_t *n
    cdef uint32_t way
    while left:
        way = ctzll(left)
        if of_way(p, set, way)[2]:
            dead |= <uint64_t> 1 << way
        left &= left - 1
    way = oldest(of_way(p, set, 0) + 3, 4, dead if dead else allowed)
    if not dead:
        n = counter(p, signature_of(of_way(p, set, way)))
        if n[0] < MOST:
            n[0] += 1
    return way


# ---- true LRU -------------------------------------------------------------------------------------------------

cdef void recency_begin(PolicySets *p) noexcept nogil:
    cdef uint32_t s
    for s in range(p.sets):
        recency_start(policy_set(p, s), p.ways, 1)


cdef void recency_told(PolicySets *p, uint32_t set, const uint64_t *key, uint32_t way) noexcept nogil:
    make_first(policy_set(p, set), p.ways, 1, way)


cdef uint32_t recency_victim(PolicySets *p, uint32_t set, const uint64_t *key, uint64_t allowed) noexcept nogil:
    return oldest(policy_set(p, set), 1, allowed)
