"""Kernel of the tagged TLB: contexts, second-level lookups, fills. Header, and how it all fits: _tlb.pxd."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free

from fastmmu._types cimport ACC_R, ACC_X

cdef enum:
    BUCKETS = 4096


# ---- contexts ---------------------------------------------------------------------------------------------

cdef inline uint32_t bucket_of(int kind, uint32_t vpid, uint32_t pcid, uint64_t eptrta) noexcept nogil:
    # Without the EPT root for the kinds that have a VPID: MOV CR3 finds the contexts of all roots in one chain.
    cdef uint64_t h = <uint64_t> vpid << 12 | pcid
    if kind == K_GPM or kind == K_EPSC:
        h = eptrta >> 12
    return ((h * 8 + kind) * <uint64_t> 0x9E3779B97F4A7C15) >> 52


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


cdef void release(Tlb *t, uint32_t id) noexcept nogil:
    # No entry left: a live context disappears, a dead one's number can be given out again.
    if t.state[id] == CTX_LIVE:
        unlist(t, id)
    t.state[id] = CTX_FREE
    t.free_ids[t.n_free] = id
    t.n_free += 1


cdef uint64_t tlb_kill(Tlb *t, uint32_t id, int cause) noexcept nogil:
    # Flushes a live context; number of entries.
    cdef TlbContext *x = &t.ctx[id]
    cdef uint64_t total = 0
    cdef uint32_t n
    cdef int u, size
    for u in range(UNITS):
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
    t.state[id] = CTX_DEAD
    if x.total == 0:
        release(t, id)
    return total


cdef void sweep(Tlb *t) noexcept nogil:
    # Empties the ways of dead contexts, which frees their numbers.
    cdef TlbArray *a
    cdef uint32_t i, s, w
    for i in range(t.arrays):
        a = &t.array[i]
        if a.dead:
            for s in range(a.sets):
                w = a.ways
                while w > 0:
                    w -= 1
                    if t.state[a.row[s * a.stride + w] >> 2 & 0xFFFF] == CTX_DEAD:
                        tlb_remove(t, a, s, w, -1)


cdef uint32_t make_context(Tlb *t, int kind) noexcept nogil:
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
    x.total = 0
    x.place = t.n_live
    t.live_ids[t.n_live] = id
    t.n_live += 1
    t.state[id] = CTX_LIVE
    cdef uint16_t *head = &t.bucket[bucket_of(kind, x.vpid, x.pcid, x.eptrta)]
    x.next = head[0]
    head[0] = id
    t.key[kind] = id << 2
    return id


cdef void tlb_switch(Tlb *t, uint32_t vpid, uint32_t pcid, uint64_t eptrta) noexcept nogil:
    cdef int kind
    if t.vpid == vpid and t.pcid == pcid and t.eptrta == eptrta:
        return
    t.vpid = vpid
    t.pcid = pcid
    t.eptrta = eptrta
    for kind in range(KINDS):
        t.key[kind] = <uint64_t> find_context(t, kind) << 2


# ---- arrays -----------------------------------------------------------------------------------------------

cdef inline uint32_t set_of(const TlbArray *a, int size, uint64_t la) noexcept nogil:
    return la >> (a.shift + 9 * size) & a.mask


cdef inline uint64_t page_of(const TlbArray *a, int size, uint64_t la) noexcept nogil:
    cdef int shift = a.shift + 9 * size
    return ((la & TLB_LA) >> shift << shift) << 6


cdef inline void plru_touch(TlbArray *a, uint32_t s, uint32_t way) noexcept nogil:
    a.tree[s] = a.tree[s] & a.plru_and[way] | a.plru_or[way]


cdef uint64_t find(TlbArray *a, int size, uint64_t la, uint64_t key, uint64_t global_key) noexcept nogil:
    # Value, or 0. A hit becomes the most recent.
    cdef uint32_t s = set_of(a, size, la), w
    cdef uint64_t *row = a.row + <uint64_t> s * a.stride
    cdef uint64_t page = page_of(a, size, la) | size
    if not a.plru:
        return tlb_find_lru(row, a.ways, page | key, page | global_key)
    for w in range(a.ways):
        if row[w] == (page | key) or row[w] == (page | global_key):
            plru_touch(a, s, w)
            return row[a.ways + w]
    return 0


cdef inline bint is_piece(const TlbArray *a, uint64_t value) noexcept nogil:
    return a.unit <= GPM and (value >> 10 & 3) > (value >> 8 & 3)


cdef inline int unit_of(const TlbArray *a, int kind) noexcept nogil:
    return GPM if kind == K_GPM else a.unit     # guest-physical mappings may share the second level


cdef void forget(Tlb *t, TlbArray *a, uint64_t key, uint64_t value, int cause) noexcept nogil:
    # Accounts for an entry that leaves its way; cause -1: not an invalidation.
    cdef uint32_t id = key >> 2 & 0xFFFF
    cdef int size = key & 3
    cdef TlbContext *x = &t.ctx[id]
    cdef int u = unit_of(a, x.kind)
    a.pieces -= is_piece(a, value)
    if t.state[id] == CTX_DEAD:
        a.dead -= 1
    else:
        x.live[u][size] -= 1
        t.unit[u].live[size] -= 1
        if size:
            t.unit[u].large -= 1
        if cause >= 0:
            t.c.invalidated[cause][u] += 1
    x.total -= 1
    if x.total == 0:
        release(t, id)


cdef void tlb_remove(Tlb *t, TlbArray *a, uint32_t s, uint32_t way, int cause) noexcept nogil:
    # Empties a way. LRU order keeps empty ways last.
    cdef uint64_t *row = a.row + <uint64_t> s * a.stride
    cdef uint32_t w = way
    forget(t, a, row[way], row[a.ways + way], cause)
    if not a.plru:
        while w + 1 < a.ways and row[w + 1]:
            row[w] = row[w + 1]
            row[a.ways + w] = row[a.ways + w + 1]
            w += 1
    row[w] = 0
    row[a.ways + w] = 0


cdef uint32_t plru_victim(TlbArray *a, uint32_t s, uint64_t allowed) noexcept nogil:
    # Follows the tree, where a half holds no allowed way takes the other. allowed: bit per way, not 0.
    cdef uint32_t leaves = 1, half, first = 0, node = 1
    cdef bint right
    while leaves < a.ways:
        leaves *= 2
    half = leaves // 2
    while half:
        right = a.tree[s] >> node & 1
        if not (allowed >> (first + half * right) & ((<uint64_t> 1 << half) - 1)):
            right = not right
        first += half * right
        node = 2 * node + right
        half //= 2
    return first


cdef uint32_t victim(Tlb *t, TlbArray *a, uint32_t s, int size) noexcept nogil:
    # An empty way, or that of a dead context, before any live entry.
    cdef uint64_t *row = a.row + <uint64_t> s * a.stride
    cdef uint32_t w, n = 0
    cdef uint64_t same = 0
    if a.quota[size] < a.ways:
        for w in range(a.ways):
            if row[w] and (row[w] & 3) == <uint64_t> size and t.state[row[w] >> 2 & 0xFFFF] == CTX_LIVE:
                n += 1
                same |= <uint64_t> 1 << (w & 63)
        if n >= a.quota[size]:
            if a.plru:
                return plru_victim(a, s, same)
            w = a.ways - 1
            while not (row[w] and (row[w] & 3) == <uint64_t> size and t.state[row[w] >> 2 & 0xFFFF] == CTX_LIVE):
                w -= 1
            return w
    if a.plru:
        for w in range(a.ways):
            if row[w] == 0 or t.state[row[w] >> 2 & 0xFFFF] == CTX_DEAD:
                return w
        return plru_victim(a, s, (<uint64_t> 2 << (a.ways - 1)) - 1)
    if a.dead and row[a.ways - 1]:
        w = a.ways
        while w > 0:
            w -= 1
            if t.state[row[w] >> 2 & 0xFFFF] == CTX_DEAD:
                return w
    return a.ways - 1


cdef void insert(Tlb *t, TlbArray *a, int kind, int size, uint64_t la, uint64_t value) noexcept nogil:
    cdef uint32_t id = t.key[kind] >> 2
    cdef uint32_t s = set_of(a, size, la), w
    cdef uint64_t *row = a.row + <uint64_t> s * a.stride
    cdef int u = unit_of(a, kind)
    cdef uint64_t old
    if id == NO_CONTEXT:
        id = make_context(t, kind)
    t.ctx[id].total += 1        # before the victim goes: it may be this context's only entry
    t.ctx[id].live[u][size] += 1
    t.unit[u].live[size] += 1
    if size:
        t.unit[u].large += 1
    a.pieces += is_piece(a, value)
    w = victim(t, a, s, size)
    old = row[w]
    if old:
        if t.state[old >> 2 & 0xFFFF] == CTX_LIVE:
            t.c.evictions[unit_of(a, t.ctx[old >> 2 & 0xFFFF].kind)] += 1
        forget(t, a, old, row[a.ways + w], -1)
    if a.plru:
        plru_touch(a, s, w)
    else:
        while w > 0:
            row[w] = row[w - 1]
            row[a.ways + w] = row[a.ways + w - 1]
            w -= 1
    row[w] = page_of(a, size, la) | <uint64_t> (id << 2) | size
    row[a.ways + w] = value
    t.c.fills[u] += 1


# ---- lookup -----------------------------------------------------------------------------------------------

cdef uint64_t tlb_l1_rest(Tlb *t, int acc, uint64_t la) noexcept nogil:
    # All of a PLRU unit; under LRU the large pages only.
    cdef TlbUnit *u = t.port[acc].l1
    cdef uint64_t value
    cdef int size
    for size in range(0 if t.port[acc].plru else 1, CLASSES):
        if u.live[size]:
            value = find(u.by[size], size, la, t.key[K_LOCAL], t.key[K_GLOBAL])
            if value:
                if size:
                    t.c.hits[u.id][size] += 1
                return value
    return 0


cdef inline uint64_t piece(uint64_t value, uint64_t la, int size) noexcept nogil:
    # The part of a larger page that holds la, as an entry of the given size.
    cdef uint64_t rest = <uint64_t> ((3 << 8) | (3 << 10))
    return tlb_value(tlb_pa(value, la), size, value >> 10 & 3, value & ~(TLB_FRAME | rest))


cdef uint64_t install(Tlb *t, TlbUnit *u, uint64_t la, uint64_t value, int kind, bint in_pieces) noexcept nogil:
    # Caches in a unit, under the largest size it has that is not above the value's; 0 where it cannot.
    cdef int size = value >> 8 & 3
    if u.by[size] == NULL:
        if not in_pieces:
            return 0
        while u.by[size] == NULL:
            if size == 0:
                return 0
            size -= 1
        value = piece(value, la, size)
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
            value = find(u.by[size], size, la, t.key[K_LOCAL], t.key[K_GLOBAL])
            if value:
                t.c.hits[u.id][size] += 1
                return install(t, p.l1, la, value, K_GLOBAL if value & F_G else K_LOCAL, True)
    t.c.misses[u.id] += 1
    return 0


cdef uint64_t tlb_gpm(Tlb *t, uint64_t gpa) noexcept nogil:
    cdef TlbUnit *u = &t.unit[GPM]
    cdef uint64_t value
    cdef int size
    t.c.lookups[GPM] += 1
    for size in range(CLASSES):
        if u.live[size]:
            value = find(u.by[size], size, gpa, t.key[K_GPM], t.key[K_GPM])
            if value:
                t.c.hits[GPM][size] += 1
                return value
    t.c.misses[GPM] += 1
    return 0


cdef uint64_t longest_prefix(Tlb *t, int unit, int kind, uint64_t la, int above, int *level) noexcept nogil:
    cdef TlbUnit *u = &t.unit[unit]
    cdef uint64_t value
    cdef int size
    t.c.lookups[unit] += 1
    for size in range(above - 2):
        if u.live[size]:
            value = find(u.by[size], size, la, t.key[kind], t.key[kind])
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
    cdef TlbContext *x
    cdef uint64_t *row
    cdef uint32_t s, w
    if a == NULL or a.dead == 0:
        return
    s = set_of(a, size, la)
    row = a.row + <uint64_t> s * a.stride
    for w in range(a.ways):
        if (row[w] & (TLB_PAGE | 3)) == (page_of(a, size, la) | size) and t.state[row[w] >> 2 & 0xFFFF] == CTX_DEAD:
            x = &t.ctx[row[w] >> 2 & 0xFFFF]
            if x.kind == kind and x.vpid == t.vpid and x.eptrta == t.eptrta and (kind == K_GLOBAL or x.pcid == t.pcid):
                t.c.refill_misses[x.cause] += 1
                tlb_remove(t, a, s, w, -1)
                return


cdef uint64_t tlb_fill(Tlb *t, int acc, uint64_t la, uint64_t value) noexcept nogil:
    cdef TlbPort *p = &t.port[acc]
    cdef int kind = K_GLOBAL if value & F_G else K_LOCAL
    claim_ghost(t, p.l2 if p.l2 else p.l1, la, value)
    if p.l2:
        install(t, p.l2, la, value, kind, t.smash)
    return install(t, p.l1, la, value, kind, True)


cdef void drop(Tlb *t, TlbUnit *u, uint64_t la) noexcept nogil:
    # Everything in a unit that la would hit.
    cdef TlbArray *a
    cdef uint64_t page, key
    cdef uint32_t s, w
    cdef int size
    for size in range(CLASSES):
        if u.live[size]:
            a = u.by[size]
            s = set_of(a, size, la)
            page = page_of(a, size, la) | size
            w = a.ways
            while w > 0:
                w -= 1
                key = a.row[s * a.stride + w]
                if key == (page | t.key[K_LOCAL]) or key == (page | t.key[K_GLOBAL]):
                    tlb_remove(t, a, s, w, BY_REWALK)


cdef uint64_t tlb_refill(Tlb *t, int acc, uint64_t la, uint64_t value) noexcept nogil:
    t.c.flushes[BY_REWALK] += 1
    drop(t, t.port[acc].l1, la)
    if t.port[acc].l2:
        drop(t, t.port[acc].l2, la)
    return tlb_fill(t, acc, la, value)


cdef void tlb_gpm_fill(Tlb *t, uint64_t gpa, uint64_t value) noexcept nogil:
    install(t, &t.unit[GPM], gpa, value, K_GPM, True)


cdef void tlb_psc_fill(Tlb *t, uint64_t la, int level, uint64_t value) noexcept nogil:
    if t.unit[PSC].by[level - 2]:
        insert(t, t.unit[PSC].by[level - 2], K_PSC, level - 2, la, value)


cdef void tlb_epsc_fill(Tlb *t, uint64_t gpa, int level, uint64_t value) noexcept nogil:
    if t.unit[EPSC].by[level - 2]:
        insert(t, t.unit[EPSC].by[level - 2], K_EPSC, level - 2, gpa, value)


# ---- making -----------------------------------------------------------------------------------------------

cdef Tlb *tlb_new(uint32_t max_id) noexcept nogil:
    cdef Tlb *t = <Tlb *> calloc(1, sizeof(Tlb))
    cdef int i
    if t == NULL:
        return NULL
    t.max_id = max_id
    t.next_id = 1
    t.eptrta = NO_EPT
    t.ctx = <TlbContext *> calloc(max_id + 1, sizeof(TlbContext))
    t.state = <uint8_t *> calloc(1 << 16, 1)
    t.free_ids = <uint16_t *> calloc(max_id + 1, 2)
    t.live_ids = <uint16_t *> calloc(max_id + 2, 2)
    t.bucket = <uint16_t *> calloc(BUCKETS, 2)
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
        free(t.array[i].memory)
    free(t.ctx)
    free(t.state)
    free(t.free_ids)
    free(t.live_ids)
    free(t.bucket)
    free(t)


cdef int tlb_add(Tlb *t, int unit, int classes, uint32_t sets, uint32_t ways, bint plru) noexcept nogil:
    # Index of the new array; -1: no memory, or too many.
    cdef TlbArray *a = &t.array[t.arrays]
    cdef uint32_t w, node, leaves = 1
    cdef int size
    cdef uint64_t words
    if t.arrays == MAX_ARRAYS:
        return -1
    a.sets = sets
    a.mask = sets - 1
    a.ways = ways
    a.stride = 2 * ways
    a.plru = plru
    a.unit = unit
    a.classes = classes
    a.shift = 21 if unit == PSC or unit == EPSC else 12
    words = <uint64_t> sets * a.stride
    a.memory = calloc(words + sets + 2 * 64 + 8, 8)
    if a.memory == NULL:
        return -1
    a.row = <uint64_t *> ((<uintptr_t> a.memory + 63) & ~<uintptr_t> 63)     # four ways = one cache line
    a.tree = a.row + words
    a.plru_and = a.tree + sets
    a.plru_or = a.plru_and + 64
    while leaves < ways:
        leaves *= 2
    if plru:
        for w in range(ways):
            a.plru_and[w] = ~<uint64_t> 0
            node = leaves + w
            while node > 1:
                a.plru_and[w] &= ~(<uint64_t> 1 << (node >> 1))
                if not node & 1:
                    a.plru_or[w] |= <uint64_t> 1 << (node >> 1)
                node >>= 1
    for size in range(CLASSES):
        a.quota[size] = ways
        if classes >> size & 1:
            t.unit[unit].by[size] = a
    t.arrays += 1
    return t.arrays - 1


cdef void tlb_ready(Tlb *t, bint l2_fetches, bint gpm_in_l2) noexcept nogil:
    # ACC_R, ACC_W, ACC_RW, ACC_X; a unit that was not added leaves its accesses to the next in line
    cdef TlbUnit *store = &t.unit[L1S] if t.unit[L1S].by[0] else &t.unit[L1D]
    cdef TlbUnit *l2 = &t.unit[L2] if t.unit[L2].by[0] else NULL
    cdef TlbUnit *l2i = &t.unit[L2I] if t.unit[L2I].by[0] else l2 if l2_fetches else NULL
    cdef TlbPort *p
    cdef int acc, size
    for acc in range(4):
        p = &t.port[acc]
        p.l1 = &t.unit[L1I] if acc == ACC_X else &t.unit[L1D] if acc == ACC_R else store
        p.l2 = l2i if acc == ACC_X else l2
        p.row = p.l1.by[0].row
        p.mask = p.l1.by[0].mask
        p.stride = p.l1.by[0].stride
        p.ways = p.l1.by[0].ways
        p.plru = p.l1.by[0].plru
    if gpm_in_l2:
        for size in range(CLASSES):
            t.unit[GPM].by[size] = t.unit[L2].by[size]
