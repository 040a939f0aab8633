# Lookups that change nothing, for who has to know all of them before the first one counts.
#
#   value = peek(t, unit, kind, size, la, &p)   what a lookup would find in an array of a walk's; 0: nothing
#   used(&p)                                    it was one
#   put(t, unit, kind, size, la, value)         a fill
#
# The caller counts the lookup.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.tlb.entries cimport NO_WAY, Tlb, TlbArray, TlbSet, insert, insert_long, page_of, set_of, way_of
from fastmmu.tlb.replacement cimport on_hit, way_at, way_back

cdef struct Place:
    TlbArray *array
    TlbSet *set
    uint32_t way


cdef inline uint64_t peek(Tlb *t, int unit, int kind, int size, uint64_t la, Place *p) noexcept nogil:
    cdef TlbArray *a
    cdef TlbSet *x
    cdef uint64_t key
    if not t.unit[unit].live[size]:
        return 0
    a = t.unit[unit].by[size]
    x = set_of(a, size, la)
    key = page_of(a, size, la) | t.key[kind]
    p.array = a
    p.set = x
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
    if a != NULL and not insert_long(t, a, kind, size, la, value):
        insert(t, a, kind, size, la, value)
