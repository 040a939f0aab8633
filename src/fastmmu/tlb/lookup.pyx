"""Kernel of the tagged TLB: second-level lookups, fills. Header: tlb/lookup.pxd."""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.bits cimport ctz
from fastmmu.tlb.entries cimport (
    CTX_DEAD, K_EPSC, K_GPM, K_PSC, LOST_SOME, NO_WAY, TLB_PAGE, TlbContext, equal, insert, lost_rewalk, tlb_remove,
    way_of,
)
from fastmmu.tlb.replacement cimport on_hit, way_at

# ---- lookup -----------------------------------------------------------------------------------------------

cdef uint64_t tlb_l1_large(Tlb *t, TlbUnit *u, uint64_t la) noexcept nogil:
    cdef uint64_t value
    cdef int size
    for size in range(1, 3):
        if u.live[size]:
            value = tlb_find(t, u, size, la)
            if value:
                t.c.hits[u.id][size] += 1
                return value
    return 0


cdef inline uint64_t fracture(uint64_t value, uint64_t la, int size) noexcept nogil:
    # The part of a larger page that holds la, as an entry of the given size.
    cdef uint64_t rest = <uint64_t> ((3 << 8) | (3 << 10))
    return tlb_value(tlb_pa(value, la), size, value >> 10 & 3, value & ~(TLB_FRAME | rest))


cdef uint64_t install(Tlb *t, TlbUnit *u, uint64_t la, uint64_t value, int kind, bint fractures) noexcept nogil:
    # Caches in a unit, under the largest size it has that is not above the value's; 0 where it cannot.
    cdef int size = value >> 8 & 3
    if u.by[size] == NULL:
        if not fractures:
            return 0
        while u.by[size] == NULL:
            if size == 0:
                return 0
            size -= 1
        value = fracture(value, la, size)
    insert(t, u.by[size], kind, size, la, value)
    return value


cdef uint64_t tlb_l2(Tlb *t, int acc, uint64_t la) noexcept nogil:
    cdef TlbPort *p = &t.port[acc]
    cdef TlbUnit *u = p.l2
    cdef uint64_t value
    cdef int size
    t.c.misses[p.l1.id] += 1
    if u == NULL:
        return 0 if t.extension == NULL else t.beyond(t, acc, la)
    t.c.lookups[u.id] += 1
    for size in range(CLASSES):
        if u.live[size]:
            value = tlb_find(t, u, size, la)
            if value:
                t.c.hits[u.id][size] += 1
                return install(t, p.l1, la, value, K_GLOBAL if value & F_G else K_LOCAL, True)
    t.c.misses[u.id] += 1
    return 0 if t.extension == NULL else t.beyond(t, acc, la)


cdef inline uint64_t held(TlbArray *a, TlbSet *x, uint64_t key) noexcept nogil:
    # find() of one key
    cdef uint32_t way
    if x.key == key:
        return x.value
    way = way_of(a, x, key)
    if way == NO_WAY:
        return 0
    on_hit(a, x, way)
    return x.way[a.pad + way]


cdef uint64_t tlb_gpm(Tlb *t, uint64_t gpa) noexcept nogil:
    cdef TlbUnit *u = &t.unit[GPM]
    cdef uint64_t value, key
    cdef int size
    t.c.lookups[GPM] += 1
    for size in range(CLASSES):
        if u.live[size]:
            key = page_of(u.by[size], size, gpa) | t.key[K_GPM]
            value = held(u.by[size], set_of(u.by[size], size, gpa), key)
            if value:
                t.c.hits[GPM][size] += 1
                return value
    t.c.misses[GPM] += 1
    return 0


cdef uint64_t longest_prefix(Tlb *t, int unit, int kind, uint64_t la, int above, int *level) noexcept nogil:
    cdef TlbUnit *u = &t.unit[unit]
    cdef uint64_t value, key
    cdef int size
    t.c.lookups[unit] += 1
    for size in range(above - 2):
        if u.live[size]:
            key = page_of(u.by[size], size, la) | t.key[kind]
            value = held(u.by[size], set_of(u.by[size], size, la), key)
            if value:
                t.c.hits[unit][size] += 1
                level[0] = size + 2
                return value
    t.c.misses[unit] += 1
    return 0


cdef uint64_t tlb_psc(Tlb *t, uint64_t la, int above, int *level) noexcept nogil:
    return longest_prefix(t, PSC, K_PSC, la, above, level)


cdef uint64_t tlb_epsc(Tlb *t, uint64_t gpa, int above, int *level) noexcept nogil:
    return longest_prefix(t, EPSC, K_EPSC, gpa, above, level)


# ---- fills ------------------------------------------------------------------------------------------------

cdef void claim_ghost(Tlb *t, TlbUnit *u, uint64_t la, uint64_t value) noexcept nogil:
    # The flushed entry of the same context and page, if nothing has overwritten it: this walk is the flush's doing.
    cdef int size = value >> 8 & 3, kind = K_GLOBAL if value & F_G else K_LOCAL
    cdef TlbArray *a = u.by[size]
    cdef TlbContext *c
    cdef TlbSet *x
    cdef uint64_t key
    cdef uint32_t place, way = 0
    if a == NULL or a.dead == 0:
        return
    x = set_of(a, size, la)
    for place in range(a.ways):
        way = way_at(a, x, place, way)
        key = x.way[way]
        if (key & (TLB_PAGE | 3)) == page_of(a, size, la) and t.state[key >> 2 & 0xFFFF] == CTX_DEAD:
            c = &t.ctx[key >> 2 & 0xFFFF]
            if (c.kind == kind and c.vpid == t.vpid and c.eptrta == t.eptrta and c.owner == t
                    and (kind == K_GLOBAL or c.pcid == t.pcid)):
                t.c.refill_misses[c.cause] += 1
                tlb_remove(t, a, x, way, -1)
                return


cdef uint64_t tlb_fill(Tlb *t, int acc, uint64_t la, uint64_t value) noexcept nogil:
    cdef TlbPort *p = &t.port[acc]
    cdef int kind = K_GLOBAL if value & F_G else K_LOCAL
    claim_ghost(t, p.l2 if p.l2 else p.l1, la, value)
    if p.l2:
        install(t, p.l2, la, value, kind, t.l2_fractures)
    return install(t, p.l1, la, value, kind, True)


cdef uint64_t tlb_found(Tlb *t, int acc, uint64_t la, uint64_t value) noexcept nogil:
    cdef TlbPort *p = &t.port[acc]
    cdef int kind = K_GLOBAL if value & F_G else K_LOCAL
    if p.l2:
        install(t, p.l2, la, value, kind, t.l2_fractures)
    return install(t, p.l1, la, value, kind, True)


cdef void drop(Tlb *t, TlbUnit *u, uint64_t la, uint64_t k, uint64_t g) noexcept nogil:
    # Everything in a unit that la would hit; k, g: contexts.
    cdef TlbSet *x
    cdef uint64_t page
    cdef uint32_t first, hits
    cdef int size
    for size in range(CLASSES):
        if u.live[size]:
            x = set_of(u.by[size], size, la)
            page = page_of(u.by[size], size, la)
            for first in range(0, u.by[size].pad, 32):
                hits = equal(x.way + first, min(u.by[size].pad - first, 32), page | k, page | g)
                while hits:
                    tlb_remove(t, u.by[size], x, first + ctz(hits), BY_REWALK)
                    hits &= hits - 1


cdef uint64_t tlb_refill(Tlb *t, int acc, uint64_t la, uint64_t value) noexcept nogil:
    t.c.flushes[BY_REWALK] += 1
    drop(t, t.port[acc].l1, la, t.key[K_LOCAL], t.key[K_GLOBAL])
    if t.port[acc].l2:
        if t.omit & LOST_SOME:
            lost_rewalk(t, t.port[acc].l2.id, la)
        drop(t, t.port[acc].l2, la, t.key[K_LOCAL], t.key[K_GLOBAL])
    return tlb_fill(t, acc, la, value)


cdef void tlb_gpm_fill(Tlb *t, uint64_t gpa, uint64_t value) noexcept nogil:
    install(t, &t.unit[GPM], gpa, value, K_GPM, True)


cdef void tlb_psc_fill(Tlb *t, uint64_t la, int level, uint64_t value) noexcept nogil:
    if t.unit[PSC].by[level - 2]:
        insert(t, t.unit[PSC].by[level - 2], K_PSC, level - 2, la, value)


cdef void tlb_psc_fills(Tlb *t, uint64_t la, int top, int lowest, const uint64_t *values) noexcept nogil:
    cdef int i
    for i in range(top, lowest - 1, -1):
        if t.unit[PSC].by[i - 2]:
            insert(t, t.unit[PSC].by[i - 2], K_PSC, i - 2, la, values[i])


cdef void tlb_epsc_fill(Tlb *t, uint64_t gpa, int level, uint64_t value) noexcept nogil:
    if t.unit[EPSC].by[level - 2]:
        insert(t, t.unit[EPSC].by[level - 2], K_EPSC, level - 2, gpa, value)


cdef inline void drop_class(Tlb *t, TlbUnit *u, int size, uint64_t la, uint64_t k) noexcept nogil:
    # what a lookup of one size would hit, which is one entry at most
    cdef TlbSet *x
    cdef uint32_t way
    if u.live[size]:
        x = set_of(u.by[size], size, la)
        way = way_of(u.by[size], x, page_of(u.by[size], size, la) | k)
        if way != NO_WAY:
            tlb_remove(t, u.by[size], x, way, BY_REWALK)


cdef void drop_classes(Tlb *t, int unit, int kind, uint64_t la) noexcept nogil:
    cdef int size
    for size in range(CLASSES):
        drop_class(t, &t.unit[unit], size, la, t.key[kind])


cdef void tlb_gpm_drop(Tlb *t, uint64_t gpa) noexcept nogil:
    drop_classes(t, GPM, K_GPM, gpa)


cdef void tlb_psc_drop(Tlb *t, uint64_t la) noexcept nogil:
    drop_classes(t, PSC, K_PSC, la)


cdef void tlb_epsc_drop(Tlb *t, uint64_t gpa) noexcept nogil:
    drop_classes(t, EPSC, K_EPSC, gpa)
