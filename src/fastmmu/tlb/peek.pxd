# Lookups that change nothing, for who has to know all of them before the first one counts.
#
#   value = peek(t, unit, kind, size, la, &p)           what a lookup would find in an array of a walk's; 0: nothing
#   used(&p)                                            it was one
#   put(t, unit, kind, size, la, value)                 a fill
#   put_at(t, unit, kind, size, la, &p, value)          the same where peek() had found nothing
#
# The caller counts the lookup. `unit` is that of walks: PSC, EPSC, or GPM where it has an array of its own.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.tlb.entries cimport (
    EPSC, NO_WAY, PSC, TLB_LA, Tlb, TlbArray, TlbSet, insert, insert_long, page_of, set_at, set_of, way_of,
)
from fastmmu.tlb.replacement cimport on_hit, way_at, way_back

cdef struct Place:
    TlbArray *array
    TlbSet *set                 # NULL: not looked at
    uint64_t key
    uint32_t way


cdef inline uint64_t peek(Tlb *t, int unit, int kind, int size, uint64_t la, Place *p) noexcept nogil:
    # as set_of() and page_of(), with shifts that are constants where the size is one
    cdef int shift = (21 if unit == PSC or unit == EPSC else 12) + 9 * size
    cdef TlbArray *a = t.unit[unit].by[size]
    cdef TlbSet *x
    cdef uint64_t key = ((la & TLB_LA) >> shift << shift) << 6 | size | t.key[kind]
    p.set = NULL
    if not t.unit[unit].live[size]:
        return 0
    x = set_at(a, la >> shift & a.mask)
    p.array = a
    p.set = x
    p.key = key
    if x.key == key:
        p.way = way_at(a, x, 0, 0)
        return x.value
    p.way = way_of(a, x, key)
    return x.way[a.pad + p.way] if p.way != NO_WAY else 0


cdef inline void used(Place *p) noexcept nogil:
    on_hit(p.array, p.set, p.way)


cdef inline bint makes_room(const Place *p) noexcept nogil:
    # for the next entry of its set, where no way is empty
    return p.way == way_back(p.array, p.set, p.array.ways - 1, 0)


cdef inline void put(Tlb *t, int unit, int kind, int size, uint64_t la, uint64_t value) noexcept nogil:
    cdef TlbArray *a = t.unit[unit].by[size]
    if a != NULL and not (a.plain_long and insert_long(t, a, set_of(a, size, la), unit,
                                                       page_of(a, size, la) | t.key[kind], value)):
        insert(t, a, kind, size, la, value)


cdef inline void put_at(Tlb *t, int unit, int kind, int size, uint64_t la, const Place *p,
                        uint64_t value) noexcept nogil:
    if p.set == NULL or not insert_long(t, p.array, p.set, unit, p.key, value):
        put(t, unit, kind, size, la, value)
