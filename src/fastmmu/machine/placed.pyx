"""Pages of processes whose physical addresses a trace says: a table by process and page. Header: placed.pxd."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

cdef uint64_t NONE = ~(<uint64_t> 0)


cdef inline uint64_t key_of(uint64_t process, uint64_t la, bint large) noexcept nogil:
    # processes have 20 bits, pages of 4 KB 35
    return 1ULL << 63 | process << 40 | (la >> 21 << 1 | 1 if large else la >> 12 << 1)


cdef inline uint64_t slot_of(const PlacedPages *p, uint64_t key) noexcept nogil:
    # where a key is, or the free place where it would be
    cdef uint64_t at = (key * 0x9E3779B97F4A7C15ULL >> 20) & (p.room - 1)
    while p.key[at] and p.key[at] != key:
        at = (at + 1) & (p.room - 1)
    return at


cdef int grow(PlacedPages *p) noexcept nogil:
    cdef PlacedPages wide = p[0]
    cdef uint64_t i, at
    wide.room = 2 * p.room if p.room else 256
    wide.key = <uint64_t *> calloc(wide.room, sizeof(uint64_t))
    wide.frame = <uint64_t *> calloc(wide.room, sizeof(uint64_t))
    if wide.key == NULL or wide.frame == NULL:
        free(wide.key)
        free(wide.frame)
        return -1
    for i in range(p.room):
        if p.key[i]:
            at = slot_of(&wide, p.key[i])
            wide.key[at] = p.key[i]
            wide.frame[at] = p.frame[i]
    free(p.key)
    free(p.frame)
    p[0] = wide
    return 0


cdef int placed_put(PlacedPages *p, uint64_t process, uint64_t la, bint large, uint64_t frame) noexcept nogil:
    cdef uint64_t at, key = key_of(process, la, large)
    if 2 * (p.n + 1) > p.room and grow(p):
        return -1
    at = slot_of(p, key)
    p.n += not p.key[at]
    p.key[at] = key
    p.frame[at] = frame
    p.end = max(p.end, frame + (1 << 21 if large else 1 << 12))
    return 0


cdef uint64_t placed_frame(const PlacedPages *p, uint64_t process, uint64_t la, bint *large) noexcept nogil:
    cdef uint64_t at
    if not p.n:
        return NONE
    at = slot_of(p, key_of(process, la, False))
    if p.key[at]:
        large[0] = False
        return p.frame[at]
    at = slot_of(p, key_of(process, la, True))
    if p.key[at]:
        large[0] = True
        return p.frame[at]
    return NONE


cdef void placed_free(PlacedPages *p) noexcept nogil:
    free(p.key)
    free(p.frame)
    memset(p, 0, sizeof(PlacedPages))
