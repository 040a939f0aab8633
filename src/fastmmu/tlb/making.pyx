"""Kernel that makes a TLB. Header: tlb/making.pxd."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from fastmmu._zeroed cimport zeroed, zeroed_free
from fastmmu.arch.types cimport ACC_R, ACC_X
from fastmmu.tlb.entries cimport (
    BUCKETS, CLASSES, EPSC, GPM, KINDS, L1D, L1I, L1S, L2, L2I, MAX_ARRAYS, NO_CONTEXT, NO_EPT, PSC, SLOTS, TlbArray,
    TlbContext, TlbPort, TlbSet, TlbUnit, UNITS, fractured_in, set_at, set_of, tlb_fracture, tlb_unfracture,
)
from fastmmu.tlb.policies cimport policy_of
from fastmmu.tlb.policy cimport NO_PAGE
from fastmmu.tlb.replacement cimport (
    BY_POLICY, IDENTITY, LRU, LRU_LONG, TAGGED, TREE_PLRU, key_came, long_order, on_fill, plru_paths, way_back,
)
from fastmmu.errors import OutOfMemoryError
from fastmmu.tlb.arrays import PAGES, TABLES, Array, replacement_of
from fastmmu.tlb.policies import RECENCY_NAME

cdef enum:
    MOST_SETS = 1 << 20         # of an array that grows
    MOST_WAYS = 1 << 12

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


cdef uint64_t policy_bytes(const TlbArray *a) noexcept nogil:
    # of its own and of all sets
    return ((a.policy.policy.own_bytes + 7 & ~<uint32_t> 7)
            + <uint64_t> a.policy.sets * a.policy.set_bytes)


cdef int make_array(TlbArray *a, int unit, int classes, uint32_t sets, uint32_t ways,
                    Replacement replacement, const Replacer *policy) noexcept nogil:
    # policy: of BY_POLICY. -1: no memory
    cdef uint64_t links, states = 0
    cdef uint32_t i
    cdef int size
    memset(a, 0, sizeof(TlbArray))
    a.sets = sets
    a.mask = sets - 1
    a.ways = ways
    a.pad = (ways + 3) & ~<uint32_t> 3
    a.replacement = LRU_LONG if replacement == LRU and ways > 16 else replacement
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
    a.aside = a.replacement == TREE_PLRU or a.replacement == BY_POLICY
    a.plain_long = a.replacement == LRU_LONG
    a.unit = unit
    a.classes = classes
    a.shift = 21 if unit == PSC or unit == EPSC else 12
    links = 2 * <uint64_t> sets * a.pad if unit <= GPM else 0
    if links > 2 * SLOTS:
        return -1
    if a.replacement == BY_POLICY:
        a.policy.policy = policy
        a.policy.sets = sets
        a.policy.ways = ways
        a.policy.set_bytes = policy.set_bytes + policy.way_bytes * ways
        states = policy_bytes(a)
    a.memory = zeroed((<uint64_t> sets << a.log) + 64 + 2 * 64 * 8 + 4 * links + states, 1)
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
    elif a.replacement == TREE_PLRU:
        plru_paths(a)
    else:
        a.policy.own = <uint8_t *> (a.link + links)
        a.policy.state = a.policy.own + (policy.own_bytes + 7 & ~<uint32_t> 7)
    for size in range(CLASSES):
        a.quota[size] = ways
    return 0


cdef int tlb_add(Tlb *t, int unit, int classes, uint32_t sets, uint32_t ways, Replacement replacement,
                 const Replacer *policy, uint64_t parameter, bint grows) noexcept nogil:
    # Index of the new array; -1: no memory, or too many.
    cdef TlbArray *a = &t.array[t.arrays]
    cdef int size
    if t.arrays == MAX_ARRAYS or make_array(a, unit, classes, sets, ways, replacement, policy):
        return -1
    if a.replacement == BY_POLICY:
        a.policy.index = t.arrays
        a.policy.parameter = parameter
        if policy.fetches:
            (<uint64_t *> a.policy.own)[0] = NO_PAGE
        if policy.start != NULL:
            policy.start(&a.policy)
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


cdef void tlb_aim(Tlb *t) noexcept nogil:
    cdef TlbPort *p
    cdef TlbArray *a
    cdef int acc
    for acc in range(4):
        p = &t.port[acc]
        if p.l1 == NULL:
            continue
        a = p.l1.by[0]
        p.base = a.base
        p.mask = a.mask
        p.log = a.log
        p.ways = a.pad if a.replacement == LRU else 0
        p.second = NULL
        if p.l2 != NULL and a.plain and t.extension == NULL:
            a = p.l2.by[0]
            if a != NULL and a.replacement == LRU:
                p.second = a


cdef void tlb_grow(Tlb *t, TlbArray *a) noexcept nogil:
    # More room, with everything in its order; where the host has no memory the array stays as it is. More ways where
    # one set alone is full, else more sets.
    cdef TlbArray new
    cdef TlbSet *x
    cdef TlbSet *to
    cdef uint64_t used = 0
    cdef uint32_t s, way, place, w = 0, sets = a.sets, ways = a.ways
    for s in range(a.sets):
        for w in range(a.ways):
            used += set_at(a, s).way[w] != 0
    if 4 * used < <uint64_t> a.sets * a.ways or a.sets >= MOST_SETS:
        ways *= 2
    else:
        sets *= 2
    if ways > MOST_WAYS or make_array(&new, a.unit, a.classes, sets, ways, LRU, NULL):
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
    tlb_aim(t)


cdef int tlb_reshape(Tlb *t, uint32_t i, uint32_t sets, uint32_t ways) noexcept nogil:
    # An array that grows, empty, as it was in another TLB; -1: it does not, no memory, or it is never of this shape.
    cdef TlbArray *a = &t.array[i]
    cdef TlbArray new
    if sets == a.sets and ways == a.ways:
        return 0
    if not a.grows or not sets or sets & (sets - 1) or sets > MOST_SETS or not ways or ways > MOST_WAYS:
        return -1
    if make_array(&new, a.unit, a.classes, sets, ways, LRU, NULL):
        return -1
    new.index = a.index
    new.grows = True
    new.plain = new.plain_long = False
    zeroed_free(a.memory)
    a[0] = new
    tlb_aim(t)
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
    if gpm_in_l2:
        for size in range(CLASSES):
            t.unit[GPM].by[size] = t.unit[L2].by[size]
    for i in range(t.arrays):
        for size in range(CLASSES):
            if t.array[i].quota[size] < t.array[i].ways:
                t.array[i].plain = t.array[i].plain_long = False
    tlb_aim(t)
    t.quick_on = not gpm_in_l2
    for i in range(t.arrays):
        if t.array[i].unit >= GPM:
            t.quick_on = t.quick_on and (t.array[i].plain or t.array[i].plain_long) and t.array[i].ways > 1
    tlb_note_fetches(t)


cdef void tlb_note_fetches(Tlb *t) noexcept nogil:
    # In the last array whose policy looks at them, so of the second level where that has one.
    cdef TlbArray *a
    cdef uint64_t *fetches = NULL
    cdef uint32_t i
    for i in range(t.arrays):
        a = t.at[i]
        if a.replacement == BY_POLICY and a.policy.policy.fetches:
            fetches = <uint64_t *> a.policy.own
    for i in range(t.arrays):
        a = t.at[i]
        if a.replacement == BY_POLICY and a.policy.policy.fetches:
            a.policy.fetches = fetches
        if a.replacement == BY_POLICY and a.unit == L1I:
            a.fetches = fetches


cdef int tlb_arrays_of(Tlb *t, object g) except -1:
    cdef int index, kind
    cdef const Replacer *policy
    first, second = g.replacement
    gpm = (g.gpm,) if isinstance(g.gpm, Array) else ()
    for unit, arrays, word, names in (
        (L1I, g.l1i, fetching(first, second), PAGES), (L1D, g.l1d, first, PAGES), (L1S, g.l1s, first, PAGES),
        (L2I, g.l2i, second, PAGES), (L2, g.l2, second, PAGES), (GPM, gpm, "lru", PAGES), (PSC, g.psc, "lru", TABLES),
        (EPSC, g.epsc, "lru", TABLES),
    ):
        name, parameter = replacement_of(word) if word != RECENCY_NAME else (word, 0)
        kind = LRU if name == "lru" else TREE_PLRU if name == "plru" else BY_POLICY
        policy = policy_of(name) if kind == BY_POLICY else NULL
        for array in arrays:
            classes = [names.index(size) for size in array.sizes]
            index = tlb_add(t, unit, sum([1 << c for c in classes]), array.sets, array.ways, <Replacement> kind, policy,
                            parameter, g.unbounded)
            if index < 0:
                raise OutOfMemoryError(f"no memory for the TLB array {array}; give a smaller one")
            for c, quota in zip(classes, array.quota or ()):
                t.array[index].quota[c] = quota
    t.l2_fractures = g.smash
    tlb_ready(t, g.l2_fetches, g.gpm == "shared")
    return 0


cdef object fetching(str first, str second):
    # The policy of the first level for instructions: where fetches are noted, LRU by functions that are told of each.
    names = [replacement_of(word)[0] for word in (first, second)]
    looks = any([name not in ("lru", "plru") and policy_of(name).fetches for name in names])
    return RECENCY_NAME if looks and first == "lru" else first
