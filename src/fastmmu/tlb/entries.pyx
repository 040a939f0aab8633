"""Kernel of the tagged TLB: contexts, entries. Header: tlb/entries.pxd."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc
from libc.string cimport memset

from fastmmu.tlb.replacement cimport (
    LRU_LONG, key_came, key_goes, last_first, long_way, ordered, victim, way_at, way_back,
)

cdef inline bint is_live(const Tlb *t, uint64_t key) noexcept nogil:
    # whichever hyperthread's
    return t.state[key >> 2 & 0xFFFF] & 1


cdef inline bint is_dead(const Tlb *t, uint64_t key) noexcept nogil:
    return t.state[key >> 2 & 0xFFFF] == CTX_DEAD


# ---- contexts ---------------------------------------------------------------------------------------------

cdef uint32_t find_context(Tlb *t, int kind) noexcept nogil:
    # The context of this kind in force; NO_CONTEXT if it has no entries.
    cdef bint tagged = kind != K_GPM and kind != K_EPSC
    cdef uint32_t vpid = t.vpid if tagged else 0
    cdef uint32_t pcid = t.pcid if tagged and kind != K_GLOBAL else 0
    cdef uint32_t id = t.bucket[bucket_of(kind, vpid, pcid, t.eptrta)]
    cdef TlbContext *x
    while id:
        x = &t.ctx[id]
        if x.kind == kind and x.vpid == vpid and x.pcid == pcid and x.eptrta == t.eptrta:
            return id
        id = x.next
    return NO_CONTEXT


cdef void unlist(Tlb *t, uint32_t id) noexcept nogil:
    # A context that can no longer be found: its key, if in force, goes too.
    cdef TlbContext *x = &t.ctx[id]
    cdef uint16_t *link = &t.bucket[bucket_of(x.kind, x.vpid, x.pcid, x.eptrta)]
    while link[0] != id:
        link = &t.ctx[link[0]].next
    link[0] = x.next
    t.n_live -= 1
    t.live_ids[x.place] = t.live_ids[t.n_live]
    t.ctx[t.live_ids[x.place]].place = x.place
    if t.key[x.kind] == id << 2:
        t.key[x.kind] = NO_CONTEXT << 2


cdef inline void tell(Tlb *t, uint32_t id, uint8_t own, uint8_t theirs) noexcept nogil:
    # The state of a context, here and for the other hyperthreads.
    cdef uint32_t i
    t.state[id] = own
    for i in range(t.peers):
        t.peer[i].state[id] = theirs


cdef void tlb_release(Tlb *t, uint32_t id) noexcept nogil:
    # No entry left: a live context disappears, a dead one's number can be given out again.
    if t.state[id] == CTX_LIVE:
        unlist(t, id)
    tell(t, id, CTX_FREE, CTX_FREE)
    t.free_ids[t.n_free] = id
    t.n_free += 1


cdef uint64_t tlb_kill(Tlb *t, uint32_t id, int cause) noexcept nogil:
    # Flushes a live context; number of entries.
    cdef TlbContext *x = &t.ctx[id]
    cdef uint64_t total = 0
    cdef uint32_t n
    cdef int u, size
    for u in range(UNITS):
        if not (x.live[u][0] | x.live[u][1] | x.live[u][2] | x.live[u][3]):
            continue
        for size in range(CLASSES):
            n = x.live[u][size]
            if n:
                t.unit[u].live[size] -= n
                if size:
                    t.unit[u].large -= n
                t.unit[u].by[size].dead += n
                t.c.invalidated[cause][u] += n
                x.live[u][size] = 0
                total += n
    unlist(t, id)
    x.cause = cause
    tell(t, id, CTX_DEAD, CTX_DEAD)     # it had entries, as every live one; tlb_release() follows the last of them
    return total


cdef void sweep(Tlb *t) noexcept nogil:
    # Empties the ways of dead contexts, which frees their numbers.
    cdef TlbArray *a
    cdef uint32_t i, s, w
    for i in range(t.arrays):
        a = t.at[i]
        if a.dead:
            for s in range(a.sets):
                for w in range(a.ways):
                    if is_dead(t, set_at(a, s).way[w]):
                        tlb_remove(t, a, set_at(a, s), w, -1)


cdef void make_context(Tlb *t, int kind) noexcept nogil:
    # A number for the context of this kind in force, which has no entries yet.
    cdef bint tagged = kind != K_GPM and kind != K_EPSC
    cdef uint32_t id
    cdef TlbContext *x
    if t.n_free == 0 and t.next_id > t.max_id:
        sweep(t)
        if t.n_free == 0:       # every number has live entries; to forget too much is allowed
            t.c.flushes[BY_CONTEXTS] += 1
            tlb_kill(t, t.live_ids[0], BY_CONTEXTS)
            sweep(t)
    if t.n_free:
        t.n_free -= 1
        id = t.free_ids[t.n_free]
    else:
        id = t.next_id
        t.next_id += 1
    x = &t.ctx[id]
    x.kind = kind
    x.vpid = t.vpid if tagged else 0
    x.pcid = t.pcid if tagged and kind != K_GLOBAL else 0
    x.eptrta = t.eptrta
    x.owner = t
    x.total = 0
    x.place = t.n_live
    t.live_ids[t.n_live] = id
    t.n_live += 1
    tell(t, id, CTX_LIVE, CTX_SIBLINGS)
    cdef uint16_t *head = &t.bucket[bucket_of(kind, x.vpid, x.pcid, x.eptrta)]
    x.next = head[0]
    head[0] = id
    t.key[kind] = id << 2


cdef void tlb_switch(Tlb *t, uint32_t vpid, uint32_t pcid, uint64_t eptrta) noexcept nogil:
    cdef int kind
    if t.vpid == vpid and t.pcid == pcid and t.eptrta == eptrta:
        return
    t.vpid = vpid
    t.pcid = pcid
    t.eptrta = eptrta
    for kind in range(KINDS):
        t.key[kind] = <uint64_t> find_context(t, kind) << 2


# ---- entries ----------------------------------------------------------------------------------------------

cdef uint32_t first_of(const TlbArray *a, const TlbSet *x, uint64_t k, uint64_t g) noexcept nogil:
    # The more recent of the ways that hold either; else the lower way.
    cdef uint32_t place = 0, way = way_at(a, x, 0, 0)
    while x.way[way] != k and x.way[way] != g:
        place += 1
        way = way_at(a, x, place, way)
    return way


cdef uint64_t find_elsewhere(TlbArray *a, TlbSet *x, uint64_t k, uint64_t g) noexcept nogil:
    # The rest of find(): any other policy.
    cdef uint32_t j = 0, hits, n, way, found = NO_WAY
    if a.replacement == LRU_LONG:
        found = long_way(a, x, k, ~<uint64_t> 0)
        if k != g and g >> 2 & 0xFFFF != NO_CONTEXT:
            way = long_way(a, x, g, ~<uint64_t> 0)
            if found == NO_WAY or way == NO_WAY:
                found = min(found, way)
            else:
                found = first_of(a, x, k, g)
        j = a.pad
    while j < a.pad:
        n = min(a.pad - j, 32)
        hits = equal(x.way + j, n, k, g)
        if hits:
            way = j + ctz(hits)
            if found != NO_WAY or hits & (hits - 1):
                found = first_of(a, x, k, g)
                break
            found = way
            if k == g:
                break
        j += n
    if found == NO_WAY:
        return 0
    on_hit(a, x, found)
    return x.way[a.pad + found]


cdef uint32_t of_its_size(const Tlb *t, const TlbArray *a, const TlbSet *x, int size) noexcept nogil:
    # The way to replace among those of this size where they are as many as it may hold; else NO_WAY.
    cdef uint32_t place, way = 0, least = NO_WAY, n = 0
    cdef uint64_t same = 0
    for place in range(a.ways):
        way = way_at(a, x, place, way)
        if is_live(t, x.way[way]) and (x.way[way] & 3) == <uint64_t> size:
            n += 1
            same |= <uint64_t> 1 << (way & 63)
            least = way
    return NO_WAY if n < a.quota[size] else victim(a, x, same, least)


cdef uint32_t way_for(const Tlb *t, const TlbArray *a, const TlbSet *x, int size) noexcept nogil:
    # An empty way, or that of a dead context, before any live entry.
    cdef uint32_t way, place
    if a.quota[size] < a.ways:
        way = of_its_size(t, a, x, size)
        if way != NO_WAY:
            return way
    way = way_back(a, x, a.ways - 1, 0)
    if not ordered(a):
        for place in range(a.ways):
            if x.way[place] == 0 or is_dead(t, x.way[place]):
                return place
    elif a.dead and x.way[way]:
        place = a.ways
        while place > 0:
            place -= 1
            way = way_back(a, x, place, way)
            if is_dead(t, x.way[way]):
                return way
        way = way_back(a, x, a.ways - 1, 0)
    return victim(a, x, ~<uint64_t> 0, way)


cdef void tlb_fracture(Tlb *t, TlbArray *a, TlbSet *x, uint32_t way) noexcept nogil:
    cdef uint32_t *first = fractured_of(t, x.way[way] >> 18 << 12, x.way[a.pad + way] >> 10 & 3)
    cdef uint32_t slot = (<uint32_t> (<uint8_t *> x - a.base >> a.log)) * a.pad + way
    cdef uint32_t id = (a.index << SLOT_BITS | slot) + 1
    a.fractured += 1
    a.link[2 * slot] = first[0]
    a.link[2 * slot + 1] = 0
    if first[0]:
        id_links(t, first[0])[1] = id
    first[0] = id


cdef void tlb_unfracture(Tlb *t, TlbArray *a, TlbSet *x, uint32_t way) noexcept nogil:
    cdef uint32_t slot = (<uint32_t> (<uint8_t *> x - a.base >> a.log)) * a.pad + way
    cdef uint32_t next = a.link[2 * slot], previous = a.link[2 * slot + 1]
    a.fractured -= 1
    if next:
        id_links(t, next)[1] = previous
    if previous:
        id_links(t, previous)[0] = next
    else:
        fractured_of(t, x.way[way] >> 18 << 12, x.way[a.pad + way] >> 10 & 3)[0] = next


cdef void displace(Tlb *t, TlbArray *a, TlbSet *s, uint32_t way) noexcept nogil:
    # Another hyperthread's live entry leaves its way for one of this.
    cdef uint64_t key = s.way[way]
    cdef uint32_t id = key >> 2 & 0xFFFF
    cdef TlbContext *x = &t.ctx[id]
    cdef Tlb *owner = x.owner
    t.c.displaced[unit_of(a, x.kind)] += 1
    if (a.unit == L2 or a.unit == L2I) and (x.kind == K_LOCAL or x.kind == K_GLOBAL):
        lost_add(owner, a.unit, x, key, s.way[a.pad + way])
    tlb_forget(owner, a, s, way, -1)


cdef inline void charge(Tlb *t, TlbArray *a, int u, uint64_t key, TlbSet *s, uint32_t way) noexcept nogil:
    # Accounts for an entry that comes and the one whose way it takes.
    cdef TlbContext *x = &t.ctx[key >> 2 & 0xFFFF]
    cdef uint64_t old = s.way[way]
    cdef uint8_t state
    cdef int size = key & 3
    x.total += 1                # first: the old one may be this context's only entry
    x.live[u][size] += 1
    t.unit[u].live[size] += 1
    if size:
        t.unit[u].large += 1
    if old:
        state = t.state[old >> 2 & 0xFFFF]
        if state & 1:
            t.c.evictions[unit_of(a, t.ctx[old >> 2 & 0xFFFF].kind)] += 1
        if state == CTX_SIBLINGS:
            displace(t, a, s, way)
        else:
            tlb_forget(t, a, s, way, -1)


cdef void insert_elsewhere(Tlb *t, TlbArray *a, int kind, int size, uint64_t la, uint64_t value) noexcept nogil:
    # Into the way used least recently where that is empty, or holds an entry of the same context and size.
    cdef TlbSet *x = set_of(a, size, la)
    cdef uint64_t key = page_of(a, size, la) | t.key[kind], old
    cdef uint32_t way
    cdef int u = unit_of(a, kind)
    way = x.order >> a.last & 15 if a.replacement == LRU else <uint32_t> (x.order >> 16)
    if (a.aside or a.dead or a.quota[size] < a.ways or a.grows and x.way[way]
            or t.key[kind] == NO_CONTEXT << 2):
        insert_anywhere(t, a, kind, size, la, value)
        return
    old = x.way[way]
    if old and ((old ^ key) & CONTEXT or (a.unit <= GPM and (is_fractured(value) or is_fractured(x.way[a.pad + way])))):
        insert_anywhere(t, a, kind, size, la, value)
        return
    t.c.fills[u] += 1
    if old:
        t.c.evictions[u] += 1
    else:
        charge(t, a, u, key, x, way)
    if a.replacement == LRU:
        x.order = x.order & ~a.nibbles | (x.order << 4 & a.nibbles) | way
        x.way[way] = key
    else:
        last_first(a, x)
        if old:
            key_goes(a, x, way)
        x.way[way] = key
        key_came(a, x, way)
    x.key = key
    x.value = x.way[a.pad + way] = value
    if fractured_in(a, value):                      # the way was empty
        tlb_fracture(t, a, x, way)


cdef void insert_anywhere(Tlb *t, TlbArray *a, int kind, int size, uint64_t la, uint64_t value) noexcept nogil:
    cdef TlbSet *x = set_of(a, size, la)
    cdef uint32_t way
    cdef uint64_t key, old, room
    cdef int u = unit_of(a, kind)
    if t.key[kind] == NO_CONTEXT << 2:
        make_context(t, kind)
    key = page_of(a, size, la) | t.key[kind]
    if t.omit & LOST_SOME and a.shared:
        t.c.sibling_misses += lost_claim(t, u, kind, key)
    way = way_for(t, a, x, size)
    while a.grows and x.way[way] and is_live(t, x.way[way]):
        room = <uint64_t> a.sets * a.ways
        t.grow(t, a)
        if <uint64_t> a.sets * a.ways == room:      # as large as it can be
            break
        x = set_of(a, size, la)                     # full again, where all that was in it lies in one half
        way = way_for(t, a, x, size)
    old = x.way[way]
    t.c.fills[u] += 1
    charge(t, a, u, key, x, way)
    if a.replacement == LRU_LONG:
        if old:
            key_goes(a, x, way)
        x.way[way] = key
        key_came(a, x, way)
    x.way[way] = key
    x.way[a.pad + way] = value
    if fractured_in(a, value):
        tlb_fracture(t, a, x, way)
    on_fill(a, x, way)


# ---- what a hyperthread lost to another -----------------------------------------------------------------------

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
