"""Kernel of what a hyperthread lost to another. Header: tlb/lost.pxd."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc
from libc.string cimport memset

from fastmmu.tlb.entries cimport K_GLOBAL, LOST_SOME, TLB_LA, TLB_PAGE


cdef Lost *lost_new(uint32_t room) noexcept nogil:
    cdef uint64_t buckets = 16
    cdef Lost *lost
    while buckets < room:
        buckets *= 2
    lost = <Lost *> calloc(1, sizeof(Lost) + room * sizeof(LostEntry) + buckets * sizeof(uint32_t))
    if lost == NULL:
        return NULL
    lost.room = room
    lost.mask = <uint32_t> (buckets - 1)
    lost.entry = <LostEntry *> (lost + 1)
    lost.head = <uint32_t *> (lost.entry + room)
    return lost


cdef inline uint32_t *bucket(Lost *lost, uint64_t page) noexcept nogil:
    return &lost.head[(page * <uint64_t> 0x9E3779B97F4A7C15) >> 32 & lost.mask]


cdef void lost_remove(Tlb *t, uint32_t i) noexcept nogil:
    cdef Lost *lost = t.lost
    cdef uint32_t *link = bucket(lost, lost.entry[i].page)
    while link[0] != i + 1:
        link = &lost.entry[link[0] - 1].next
    link[0] = lost.entry[i].next
    lost.entry[i].used = False
    lost.n -= 1
    if lost.n == 0:
        t.omit &= ~<uint32_t> LOST_SOME


cdef void lost_add(Tlb *t, uint32_t unit, const TlbContext *x, uint64_t key, uint64_t value) noexcept nogil:
    cdef Lost *lost = t.lost
    cdef LostEntry *e = &lost.entry[lost.at]
    cdef uint32_t *head
    if e.used:
        lost_remove(t, lost.at)
    memset(e, 0, sizeof(LostEntry))
    e.page = key & (TLB_PAGE | 3)
    e.value = value
    e.tags.kind = x.kind
    e.tags.vpid = x.vpid
    e.tags.pcid = x.pcid
    e.tags.eptrta = x.eptrta
    e.unit = unit
    e.used = True
    head = bucket(lost, e.page)
    e.next = head[0]
    head[0] = lost.at + 1
    lost.at = (lost.at + 1) % lost.room
    lost.n += 1
    t.omit |= LOST_SOME


cdef inline bint in_force(const Tlb *t, const TlbContext *x) noexcept nogil:
    return x.vpid == t.vpid and x.eptrta == t.eptrta and (x.kind == K_GLOBAL or x.pcid == t.pcid)


cdef uint64_t lost_claim(Tlb *t, uint32_t unit, int kind, uint64_t key) noexcept nogil:
    cdef uint64_t page = key & (TLB_PAGE | 3)
    cdef uint32_t i = bucket(t.lost, page)[0]
    cdef LostEntry *e
    while i:
        e = &t.lost.entry[i - 1]
        if e.page == page and e.unit == unit and e.tags.kind == kind and in_force(t, &e.tags):
            lost_remove(t, i - 1)
            return 1
        i = e.next
    return 0


cdef void lost_rewalk(Tlb *t, uint32_t unit, uint64_t la) noexcept nogil:
    cdef LostEntry *e
    cdef uint32_t i
    for i in range(t.lost.room):
        e = &t.lost.entry[i]
        if (e.used and e.unit == unit and in_force(t, &e.tags)
                and ((e.page >> 18 << 12) ^ (la & TLB_LA)) >> (12 + 9 * (e.page & 3)) == 0):
            lost_remove(t, i)
