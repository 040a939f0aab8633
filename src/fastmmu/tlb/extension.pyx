"""Kernel of what is asked between a miss of both levels and the walk. Header: tlb/extension.pxd."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport strncpy

from fastmmu.arch.types cimport ACC_X
from fastmmu.tlb.entries cimport (
    CLASSES, CTX_LIVE, EXTENDED, K_GLOBAL, K_LOCAL, NO_WAY, TlbArray, TlbContext, TlbPort, TlbSet,
    TlbUnit, page_of, set_of, way_of,
)
from fastmmu.tlb.lookup cimport tlb_fill, tlb_found, tlb_refill
from fastmmu.tlb.making cimport tlb_aim
from fastmmu.tlb.which cimport GLOBAL, LOCAL, THIS_PCID, THIS_ROOT, THIS_VPID


# ---- tags -------------------------------------------------------------------------------------------------

cdef uint64_t tag_of(const Extensions *x, int kind, uint32_t vpid, uint32_t pcid, uint64_t eptrta) noexcept nogil:
    cdef const TlbContext *c
    cdef uint32_t i
    for i in range(x.n_live):
        c = &x.space[x.live[i]].tags
        if c.kind == kind and c.vpid == vpid and c.eptrta == eptrta and (kind == K_GLOBAL or c.pcid == pcid):
            return x.space[x.live[i]].tag
    return 0


cdef void retire(Extensions *x, uint32_t at) noexcept nogil:
    cdef Space *s = &x.space[at]
    x.n_live -= 1
    x.live[s.place] = x.live[x.n_live]
    x.space[x.live[s.place]].place = s.place
    x.free[x.n_free] = at
    x.n_free += 1
    s.tag = 0
    x.known = False


cdef uint64_t make_tag(Extensions *x, int kind, uint32_t vpid, uint32_t pcid, uint64_t eptrta) noexcept nogil:
    cdef uint64_t tag = tag_of(x, kind, vpid, pcid, eptrta)
    cdef uint32_t at
    cdef Space *s
    if tag:
        return tag
    if x.n_live == SPACES:      # to forget too much is allowed
        while x.n_live:
            retire(x, x.live[x.n_live - 1])
    if x.n_free:
        x.n_free -= 1
        at = x.free[x.n_free]
    else:
        at = x.next
        x.next += 1
    x.serial += 1
    s = &x.space[at]
    s.tag = x.serial << SPACE_BITS | at
    s.tags.kind = kind
    s.tags.vpid = vpid
    s.tags.pcid = 0 if kind == K_GLOBAL else pcid
    s.tags.eptrta = eptrta
    s.place = x.n_live
    x.live[x.n_live] = at
    x.n_live += 1
    x.known = False
    return s.tag


cdef void in_force(Extensions *x) noexcept nogil:
    cdef Tlb *t = x.tlb
    if x.known and x.vpid == t.vpid and x.pcid == t.pcid and x.eptrta == t.eptrta:
        return
    x.vpid = t.vpid
    x.pcid = t.pcid
    x.eptrta = t.eptrta
    x.local = tag_of(x, K_LOCAL, t.vpid, t.pcid, t.eptrta)
    x.everywhere = tag_of(x, K_GLOBAL, t.vpid, 0, t.eptrta)
    x.known = True


cdef uint64_t extension_tag(Extensions *x, bint everywhere) noexcept nogil:
    cdef Tlb *t = x.tlb
    in_force(x)
    if not (x.everywhere if everywhere else x.local):
        make_tag(x, K_GLOBAL if everywhere else K_LOCAL, t.vpid, t.pcid, t.eptrta)
        in_force(x)
    return x.everywhere if everywhere else x.local


# ---- invalidations ----------------------------------------------------------------------------------------

cdef void extension_flush(Tlb *t, const Which *q) noexcept nogil:
    cdef Extensions *x = extensions_of(t)
    cdef uint32_t i = x.n_live
    while i > 0:
        i -= 1
        if selects(q, &x.space[x.live[i]].tags):
            retire(x, x.live[i])


cdef void extension_drop(Tlb *t, uint64_t la, const Which *q, bint whole) noexcept nogil:
    cdef Extension *e = extensions_of(t).first
    extensions_of(t).whole = whole
    while e != NULL:
        e.dropped(e, extensions_of(t), la, q)
        e = e.next


cdef void drop_here(Tlb *t, uint64_t la) noexcept nogil:
    # what la would find: its rights, or D, did not suffice
    cdef Which q
    q.kinds = LOCAL | GLOBAL
    q.condition = THIS_VPID | THIS_PCID | THIS_ROOT
    q.vpid = t.vpid
    q.pcid = t.pcid
    q.eptrta = t.eptrta
    extension_drop(t, la, &q, False)


# ---- lookups and fills ------------------------------------------------------------------------------------

cdef inline TlbArray *second_of(Tlb *t, int acc, uint64_t value) noexcept nogil:
    # where the second level puts it; NULL: nowhere
    cdef TlbUnit *u = t.port[acc].l2
    cdef int size = value >> 8 & 3
    if u == NULL:
        return NULL
    while u.by[size] == NULL:
        if not t.l2_fractures or size == 0:
            return NULL
        size -= 1
    return u.by[size]


cdef uint64_t watched(Extensions *x, int acc, uint64_t la, uint64_t value, bint found) noexcept nogil:
    # a fill, after which extensions hear which page of the second level made room
    cdef Tlb *t = x.tlb
    cdef TlbArray *a = second_of(t, acc, value)
    cdef TlbSet *set
    cdef TlbContext *c
    cdef Extension *e
    cdef uint64_t key, tag
    cdef uint32_t w
    cdef int size
    if a == NULL or a.grows:
        return tlb_found(t, acc, la, value) if found else tlb_fill(t, acc, la, value)
    size = value >> 8 & 3
    while t.port[acc].l2.by[size] != a:
        size -= 1
    set = set_of(a, size, la)
    for w in range(a.ways):
        key = set.way[w]
        x.was[w] = key if t.state[key >> 2 & 0xFFFF] == CTX_LIVE else 0
    value = tlb_found(t, acc, la, value) if found else tlb_fill(t, acc, la, value)
    for w in range(a.ways):
        key = x.was[w]
        c = &t.ctx[key >> 2 & 0xFFFF]
        if key and set.way[w] != key and (c.kind == K_LOCAL or c.kind == K_GLOBAL):
            tag = make_tag(x, c.kind, c.vpid, c.pcid, c.eptrta)
            in_force(x)
            e = x.first
            while e != NULL:
                if e.evicted != NULL:
                    e.evicted(e, x, tag, key >> 18 << 12, key & 3)
                e = e.next
    return value


cdef uint64_t lookup(Tlb *t, int acc, uint64_t la) noexcept nogil:
    cdef Extensions *x = extensions_of(t)
    cdef Extension *e = x.first
    cdef uint64_t value
    in_force(x)
    x.lookups += 1
    while e != NULL:
        e.c.lookups += 1
        value = e.find(e, x, acc, la)
        if value:
            e.c.hits += 1
            e.c.hits_by[value >> 8 & 3] += 1
            x.hits += 1
            return watched(x, acc, la, value, True) if x.watched else tlb_found(t, acc, la, value)
        e = e.next
    return 0


cdef uint64_t extension_fill(Tlb *t, int acc, uint64_t la, uint64_t value, bint again) noexcept nogil:
    cdef Extensions *x = extensions_of(t)
    cdef Extension *e = x.first
    cdef uint64_t held
    if again:
        drop_here(t, la)
        held = tlb_refill(t, acc, la, value)
    elif x.watched:
        held = watched(x, acc, la, value, False)
    else:
        held = tlb_fill(t, acc, la, value)
    in_force(x)
    while e != NULL:
        e.filled(e, x, acc, la, value)
        e = e.next
    return held


cdef bint extension_cached(const Tlb *t, int acc, uint64_t la) noexcept nogil:
    cdef const TlbPort *p = &t.port[acc]
    cdef const TlbUnit *u = p.l1
    cdef const TlbArray *a
    cdef const TlbSet *x
    cdef uint64_t page
    cdef int size, _
    for _ in range(2):
        if u != NULL:
            for size in range(CLASSES):
                if u.live[size]:
                    a = u.by[size]
                    x = set_of(a, size, la)
                    page = page_of(a, size, la)
                    if way_of(a, x, page | t.key[K_LOCAL]) != NO_WAY or way_of(a, x, page | t.key[K_GLOBAL]) != NO_WAY:
                        return True
        u = p.l2
    return False


cdef void pages_query(void *walker, Tlb *t, uint64_t la, Queried *out) noexcept nogil:
    cdef const Pages *p = <const Pages *> walker
    cdef uint64_t low = 0, high = p.n, middle, page = la >> 12 << 12
    while low < high:
        middle = (low + high) >> 1
        if p.la[middle] < page:
            low = middle + 1
        else:
            high = middle
    if low < p.n and p.la[low] == page:
        out.value = p.value[low]
        out.gpa = p.gpa[low]


# ---- which instruction it is ------------------------------------------------------------------------------

cdef void look_back(Extensions *x, uint64_t end) noexcept nogil:
    # for the last fetch before this event, no further than where that was known
    cdef uint64_t i = min(end, x.end_event)
    end = max(i, x.known_to)
    while i > x.known_to:
        i -= 1
        if x.op[i - x.first_event] == ACC_X:
            x.pc = x.addr[i - x.first_event]
            break
    x.known_to = end


cdef void extension_events(Tlb *t, const uint8_t *op, const uint64_t *addr, uint64_t first, uint64_t n) noexcept nogil:
    cdef Extensions *x = extensions_of(t)
    if not x.by_code:
        return
    if op == NULL:
        if x.op != NULL:
            look_back(x, first + n)
        x.op = NULL
        return
    x.op = op
    x.addr = addr
    x.first_event = x.known_to = x.event = first
    x.end_event = first + n


cdef uint64_t last_fetch(Extensions *x) noexcept nogil:
    if x.op != NULL:
        look_back(x, x.event + 1)
    return x.pc


cdef void prefetch_walk(Extension *e, Extensions *x, uint64_t la, Queried *out) noexcept nogil:
    x.prefetching = True
    query(x, la, out)
    x.prefetching = False
    e.c.prefetch_walks += 1
    e.c.prefetch_guest_refs += out.guest_refs
    e.c.prefetch_ept_refs += out.ept_refs
    x.tlb.c.background_refs += out.guest_refs + out.ept_refs


# ---- making -----------------------------------------------------------------------------------------------

cdef Extensions *extensions_new(Tlb *t) noexcept nogil:
    cdef Extensions *x = <Extensions *> calloc(1, sizeof(Extensions))
    if x != NULL:
        x.tlb = t
    return x


cdef Extension *extension_add(Extensions *x, const char *name) noexcept nogil:
    cdef Extension *e = <Extension *> calloc(1, sizeof(Extension))
    cdef Extension **link = &x.first
    if e == NULL:
        return NULL
    strncpy(e.name, name, sizeof(e.name) - 1)
    while link[0] != NULL:
        link = &link[0].next
    link[0] = e
    return e


cdef int extensions_ready(Extensions *x) noexcept nogil:
    cdef Tlb *t = x.tlb
    cdef Extension *e = x.first
    cdef uint32_t i, most = 1
    if t.peers:                 # what hyperthreads share has no extension
        return -1
    x.watched = False
    while e != NULL:
        if e.evicted != NULL:
            x.watched = True
        e = e.next
    for i in range(t.arrays):
        most = max(most, t.at[i].ways)
    if x.was == NULL:
        x.was = <uint64_t *> calloc(most, sizeof(uint64_t))
    if x.was == NULL:
        return -1
    t.extension = x
    tlb_aim(t)                  # misses of both levels come to it
    t.beyond = lookup
    t.omit |= EXTENDED
    t.quick_on = False          # walks come to extension_fill()
    return 0


cdef void extensions_free(Extensions *x) noexcept nogil:
    cdef Extension *e
    if x == NULL:
        return
    while x.first != NULL:
        e = x.first
        x.first = e.next
        if e.end != NULL and e.self != NULL:
            e.end(e)
        free(e)
    free(x.was)
    free(x.pages.la)
    free(x.pages.value)
    free(x.pages.gpa)
    free(x)
