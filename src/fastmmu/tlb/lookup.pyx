"""Kernel of the tagged TLB: second-level lookups, fills, making one. Header: tlb/lookup.pxd."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from fastmmu._zeroed cimport zeroed, zeroed_free
from fastmmu.arch.bits cimport ctz
from fastmmu.arch.types cimport ACC_R, ACC_X
from fastmmu.tlb.entries cimport (
    BUCKETS, CTX_DEAD, K_EPSC, K_GPM, K_PSC, KINDS, LOST_SOME, MAX_ARRAYS, NO_CONTEXT, NO_WAY, SLOTS, TLB_PAGE,
    TlbContext, equal, fractured_in, insert, lost_rewalk, set_at, tlb_fracture, tlb_remove, tlb_unfracture, way_of,
)
from fastmmu.tlb.replacement cimport (
    IDENTITY, LRU, LRU_LONG, TAGGED, TREE_PLRU, key_came, long_order, on_fill, on_hit, plru_paths, way_at, way_back,
)

cdef enum:
    MOST_SETS = 1 << 20         # of an array that grows
    MOST_WAYS = 1 << 12

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
        return 0
    t.c.lookups[u.id] += 1
    for size in range(CLASSES):
        if u.live[size]:
            value = tlb_find(t, u, size, la)
            if value:
                t.c.hits[u.id][size] += 1
                return install(t, p.l1, la, value, K_GLOBAL if value & F_G else K_LOCAL, True)
    t.c.misses[u.id] += 1
    return 0


cdef inline uint64_t held(TlbArray *a, TlbSet *x, uint64_t key) noexcept nogil:
    # find() of one key
    cdef uint32_t way
    if x.key == key:
        return x.value
    way = way_of(a, x, key)
    if way == NO_WAY:
        return 0
    on_hit(a, x, way)
    return x.value


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


# ---- making -----------------------------------------------------------------------------------------------

cdef Tlb *tlb_new(uint32_t max_id) noexcept nogil:
    cdef Tlb *t = <Tlb *> calloc(1, sizeof(Tlb))
    cdef int i
    if t == NULL:
        return NULL
    t.max_id = max_id
    t.next_id = 1
    t.eptrta = NO_EPT
    t.grow = tlb_grow
    t.ctx = <TlbContext *> zeroed(max_id + 1, sizeof(TlbContext))
    t.state = <uint8_t *> zeroed(1 << 16, 1)
    t.free_ids = <uint16_t *> zeroed(max_id + 1, 2)
    t.live_ids = <uint16_t *> zeroed(max_id + 2, 2)
    t.bucket = <uint16_t *> zeroed(BUCKETS, 2)
    for i in range(KINDS):
        t.key[i] = NO_CONTEXT << 2
    for i in range(UNITS):
        t.unit[i].id = i
    if t.ctx == NULL or t.state == NULL or t.free_ids == NULL or t.live_ids == NULL or t.bucket == NULL:
        tlb_free(t)
        return NULL
    return t


cdef void tlb_free(Tlb *t) noexcept nogil:
    cdef uint32_t i
    if t == NULL:
        return
    for i in range(t.arrays):
        zeroed_free(t.array[i].memory)
    free(t.lost)
    zeroed_free(t.ctx)
    zeroed_free(t.state)
    zeroed_free(t.free_ids)
    zeroed_free(t.live_ids)
    zeroed_free(t.bucket)
    free(t)


cdef int make_array(TlbArray *a, int unit, int classes, uint32_t sets, uint32_t ways,
                    Replacement policy) noexcept nogil:
    # -1: no memory
    cdef uint64_t links
    cdef uint32_t i
    cdef int size
    memset(a, 0, sizeof(TlbArray))
    a.sets = sets
    a.mask = sets - 1
    a.ways = ways
    a.pad = (ways + 3) & ~<uint32_t> 3
    a.replacement = LRU_LONG if policy == LRU and ways > 16 else policy
    a.log = 6
    if a.replacement == LRU_LONG:
        if ways <= TAGGED:
            a.tags = (ways + 15) & ~<uint32_t> 15
        else:
            a.chains = 15
            while a.chains < ways:
                a.chains = 2 * a.chains + 1
    while <uint32_t> 1 << a.log < (32 + 16 * a.pad + (4 * a.pad + 2 * a.tags if a.tags else 0)
                                   + (6 * a.pad + 2 * a.chains + 2 if a.chains else 0)):
        a.log += 1
    a.plain = a.replacement == LRU
    a.aside = a.replacement == TREE_PLRU
    a.plain_long = a.replacement == LRU_LONG
    a.unit = unit
    a.classes = classes
    a.shift = 21 if unit == PSC or unit == EPSC else 12
    links = 2 * <uint64_t> sets * a.pad if unit <= GPM else 0
    if links > 2 * SLOTS:
        return -1
    a.memory = zeroed((<uint64_t> sets << a.log) + 64 + 2 * 64 * 8 + 4 * links, 1)
    if a.memory == NULL:
        return -1
    a.base = <uint8_t *> ((<uintptr_t> a.memory + 63) & ~<uintptr_t> 63)    # cache lines
    a.plru_and = <uint64_t *> (a.base + (<uint64_t> sets << a.log))
    a.plru_or = a.plru_and + 64
    a.link = <uint32_t *> (a.plru_or + 64)
    if a.replacement == LRU:
        a.last = 4 * (ways - 1)
        a.nibbles = ~<uint64_t> 0 >> (64 - 4 * ways)
        for i in range(sets):
            set_at(a, i).order = IDENTITY
    elif a.replacement == LRU_LONG:
        for i in range(sets):
            long_order(a, set_at(a, i))
    else:
        plru_paths(a)
    for size in range(CLASSES):
        a.quota[size] = ways
    return 0


cdef int tlb_add(Tlb *t, int unit, int classes, uint32_t sets, uint32_t ways, Replacement policy,
                 bint grows) noexcept nogil:
    # Index of the new array; -1: no memory, or too many.
    cdef TlbArray *a = &t.array[t.arrays]
    cdef int size
    if t.arrays == MAX_ARRAYS or make_array(a, unit, classes, sets, ways, policy):
        return -1
    a.grows = grows
    a.index = t.arrays
    t.at[t.arrays] = a
    a.plain = a.plain and not grows
    a.plain_long = a.plain_long and not grows
    for size in range(CLASSES):
        if classes >> size & 1:
            t.unit[unit].by[size] = a
    t.arrays += 1
    return t.arrays - 1


cdef inline void aim(TlbPort *p) noexcept nogil:
    p.base = p.l1.by[0].base
    p.mask = p.l1.by[0].mask
    p.log = p.l1.by[0].log


cdef void tlb_grow(Tlb *t, TlbArray *a) noexcept nogil:
    # More room, with everything in its order; where the host has no memory the array stays as it is. More ways where
    # one set alone is full, else more sets.
    cdef TlbArray new
    cdef TlbSet *x
    cdef TlbSet *to
    cdef uint64_t used = 0
    cdef uint32_t s, way, place, w = 0, sets = a.sets, ways = a.ways
    cdef int i
    for s in range(a.sets):
        for w in range(a.ways):
            used += set_at(a, s).way[w] != 0
    if 4 * used < <uint64_t> a.sets * a.ways or a.sets >= MOST_SETS:
        ways *= 2
    else:
        sets *= 2
    if ways > MOST_WAYS or make_array(&new, a.unit, a.classes, sets, ways, LRU):
        return
    new.grows = True
    new.index = a.index
    new.plain = new.plain_long = False
    new.dead = a.dead
    for s in range(a.sets):
        x = set_at(a, s)
        place = a.ways
        while place > 0:        # from the least recent on
            place -= 1
            w = way_back(a, x, place, w)
            if x.way[w]:
                if fractured_in(a, x.way[a.pad + w]):
                    tlb_unfracture(t, a, x, w)
                to = set_of(&new, x.way[w] & 3, x.way[w] >> 18 << 12)
                way = way_back(&new, to, new.ways - 1, 0)
                to.way[way] = x.way[w]
                to.way[new.pad + way] = x.way[a.pad + w]
                if new.replacement == LRU_LONG:
                    key_came(&new, to, way)
                on_fill(&new, to, way)
    zeroed_free(a.memory)
    a[0] = new
    for s in range(a.sets):
        for w in range(a.ways):
            if set_at(a, s).way[w] and fractured_in(a, set_at(a, s).way[a.pad + w]):
                tlb_fracture(t, a, set_at(a, s), w)
    for i in range(4):
        if t.port[i].l1 != NULL and t.port[i].l1.by[0] == a:
            aim(&t.port[i])


cdef int tlb_reshape(Tlb *t, uint32_t i, uint32_t sets, uint32_t ways) noexcept nogil:
    # An array that grows, empty, as it was in another TLB; -1: it does not, no memory, or it is never of this shape.
    cdef TlbArray *a = &t.array[i]
    cdef TlbArray new
    cdef int acc
    if sets == a.sets and ways == a.ways:
        return 0
    if not a.grows or not sets or sets & (sets - 1) or sets > MOST_SETS or not ways or ways > MOST_WAYS:
        return -1
    if make_array(&new, a.unit, a.classes, sets, ways, LRU):
        return -1
    new.index = a.index
    new.grows = True
    new.plain = new.plain_long = False
    zeroed_free(a.memory)
    a[0] = new
    for acc in range(4):
        if t.port[acc].l1 != NULL and t.port[acc].l1.by[0] == a:
            aim(&t.port[acc])
    return 0


cdef void tlb_ready(Tlb *t, bint l2_fetches, bint gpm_in_l2) noexcept nogil:
    # ACC_R, ACC_W, ACC_RW, ACC_X; a unit that was not added leaves its accesses to the next in line
    cdef TlbUnit *store = &t.unit[L1S] if t.unit[L1S].by[0] else &t.unit[L1D]
    cdef TlbUnit *l2 = &t.unit[L2] if t.unit[L2].by[0] else NULL
    cdef TlbUnit *l2i = &t.unit[L2I] if t.unit[L2I].by[0] else l2 if l2_fetches else NULL
    cdef TlbPort *p
    cdef uint32_t i
    cdef int acc, size
    for acc in range(4):
        p = &t.port[acc]
        p.l1 = &t.unit[L1I] if acc == ACC_X else &t.unit[L1D] if acc == ACC_R else store
        p.l2 = l2i if acc == ACC_X else l2
        aim(p)
    if gpm_in_l2:
        for size in range(CLASSES):
            t.unit[GPM].by[size] = t.unit[L2].by[size]
    for i in range(t.arrays):
        for size in range(CLASSES):
            if t.array[i].quota[size] < t.array[i].ways:
                t.array[i].plain = t.array[i].plain_long = False
    t.quick_on = not gpm_in_l2
    for i in range(t.arrays):
        if t.array[i].unit >= GPM:
            t.quick_on = t.quick_on and (t.array[i].plain or t.array[i].plain_long) and t.array[i].ways > 1
