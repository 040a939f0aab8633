"""Kernel of the miss-ratio curves; header: study/curve/curve_kernel.pxd."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.ops cimport LAST_ACCESS, OP_FORK, OP_INVLPG, OP_MUNMAP, OP_PROTECT, OP_SWITCH, OP_UNMAP
from fastmmu.study.curve.stack_distance cimport (
    TREE_FILLED, TREE_FOUND, list_access, list_flush, list_follow, list_invalidate, tree_access, tree_flush,
    tree_follow, tree_invalidate,
)

from libc.stdlib cimport calloc, free, realloc

cdef enum:
    PROCESS_SHIFT = 45          # of a key: page numbers have 45 bits

cdef extern from *:
    """
    #define FM_DEAD (1ULL << 63)
    """
    const uint64_t DEAD "FM_DEAD"


# ---- levels -----------------------------------------------------------------------------------------------------

cdef inline bint level_access(Level *x, uint64_t key, uint32_t filter, uint32_t ways) noexcept nogil:
    # whether it misses an array of so many ways, of the sets of this list
    cdef uint32_t i
    cdef bint miss = False
    x.lookups += 1
    if key == x.last:
        x.repeats += 1
        return False
    x.last = key
    if x.cut:
        return access_of_part(x, key, filter, ways)
    for i in range(x.lists):
        if list_access(&x.list[i], key) >= ways and i == filter:
            miss = True
    tree_access(&x.tree, key)
    return miss


cdef bint access_of_part(Level *x, uint64_t key, uint32_t filter, uint32_t ways) noexcept nogil:
    # the same where what was before is unknown: what the part does not find is recorded
    cdef uint32_t i, distance
    cdef uint64_t how = 0
    cdef bint miss = False, found = False
    cdef int tree
    for i in range(x.lists):
        distance = list_access(&x.list[i], key)
        if distance < x.list[i].depth:
            found = True
        elif distance == x.list[i].depth + 1:
            how |= <uint64_t> 1 << (i & 63)
        if i == filter:
            miss = distance >= ways
    tree = tree_access(&x.tree, key) if x.tree.threshold else TREE_FOUND
    x.begun = True
    if not found and (tree != TREE_FOUND or x.tree.threshold >> 32 == 0):
        if tree == TREE_FILLED:
            how |= <uint64_t> 1 << 62
        # in one full list it is farther than that is deep, whatever was before
        if x.lists > 1 or x.tree.threshold or distance != x.list[0].depth + 2:
            miss = recorded(x, key, how, miss)
    return miss


cdef inline void one_access(Curve *c, int op, uint64_t page) noexcept nogil:
    cdef uint64_t key = c.process << PROCESS_SHIFT | page
    c.accesses += 1
    if c.first[op] == NO_LEVEL:
        return
    if level_access(&c.level[c.first[op]], key, c.filter[op], c.ways[op]) and c.second[op] != NO_LEVEL:
        level_access(&c.level[c.second[op]], key, 0, 1)


# ---- parts ------------------------------------------------------------------------------------------------------

cdef inline uint64_t *find_had(const Level *x, uint64_t key) noexcept nogil:
    cdef uint64_t i = (key ^ key >> 29) * <uint64_t> 0x9E3779B97F4A7C15 >> 24 & x.had_mask
    while x.had[i] and (x.had[i] & ~DEAD) != key + 1:
        i = (i + 1) & x.had_mask
    return &x.had[i]


cdef uint64_t *had(Level *x, uint64_t key) noexcept nogil:
    # its entry, or the free one where it is to stand; NULL: no memory
    cdef uint64_t *old = x.had
    cdef uint64_t i, n = x.had_mask + 1
    if x.had == NULL or 2 * x.n_had >= n:
        n = 1024 if x.had == NULL else 2 * n
        x.had = <uint64_t *> calloc(n, 8)
        if x.had == NULL:
            x.had = old
            x.failed = True
            return NULL
        if old != NULL:
            x.had_mask = n - 1
            for i in range(n // 2):
                if old[i]:
                    find_had(x, (old[i] & ~DEAD) - 1)[0] = old[i]
            free(old)
        x.had_mask = n - 1
    return find_had(x, key)


cdef void record(Level *x, uint64_t key, uint64_t how) noexcept nogil:
    cdef uint64_t room = 2 * x.room if x.room else 1024
    cdef Record *grown
    if x.records == x.room:
        grown = <Record *> realloc(x.record, room * sizeof(Record))
        if grown == NULL:
            x.failed = True
            return
        x.record, x.room = grown, room
    x.record[x.records].key = key
    x.record[x.records].how = how
    x.records += 1


cdef bint recorded(Level *x, uint64_t key, uint64_t how, bint miss) noexcept nogil:
    # An access that the part did not find in a list; whether it misses.
    cdef uint64_t *entry = had(x, key)
    cdef bint dead
    if entry == NULL or entry[0] == key + 1:    # it was here, so long ago that no list has it
        return miss
    dead = entry[0] != 0
    x.n_had += not dead
    entry[0] = key + 1
    record(x, key, how | (DEAD if dead else 0))
    if x.decides:
        return list_follow(&x.before, key, dead, how >> x.filter & 1) >= x.ways
    return miss


cdef void invalidated(Level *x, uint64_t key) noexcept nogil:
    cdef uint64_t *entry = had(x, key)
    if entry == NULL:
        return
    if not entry[0]:
        x.n_had += 1
        record(x, key | DEAD, 0)
        if x.decides:
            list_invalidate(&x.before, key)
    entry[0] = (key + 1) | DEAD


cdef void follow(Level *x, const uint64_t *key, const uint64_t *how, uint64_t n) noexcept nogil:
    # What a part asks of the order that was there before it.
    cdef uint64_t i, page
    cdef uint32_t j
    cdef bint dead, repeat
    for i in range(n):
        page = key[i] & ~DEAD
        if key[i] & DEAD:
            if x.last == page:
                x.last = NO_KEY
            for j in range(x.lists):
                list_invalidate(&x.list[j], page)
            tree_invalidate(&x.tree, page)
            continue
        dead, repeat = how[i] >> 63, page == x.last
        x.last = NO_KEY
        for j in range(x.lists):
            list_follow(&x.list[j], page, dead, how[i] >> (j & 63) & 1)
        tree_follow(&x.tree, page, dead, how[i] >> 62 & 1, repeat)


# ---- events -----------------------------------------------------------------------------------------------------

cdef void invalidate(Curve *c, uint64_t page) noexcept nogil:
    cdef uint64_t key = c.process << PROCESS_SHIFT | page
    cdef uint32_t i, j
    c.invalidations += 1
    for i in range(c.levels):
        if c.level[i].last == key:
            c.level[i].last = NO_KEY
        if c.level[i].cut:
            invalidated(&c.level[i], key)
        for j in range(c.level[i].lists):
            list_invalidate(&c.level[i].list[j], key)
        tree_invalidate(&c.level[i].tree, key)


cdef void flush(Curve *c) noexcept nogil:
    cdef uint32_t i, j
    c.flushes += 1
    for i in range(c.levels):
        c.level[i].last = NO_KEY
        c.level[i].cut = c.level[i].decides = False
        for j in range(c.level[i].lists):
            list_flush(&c.level[i].list[j])
        tree_flush(&c.level[i].tree)


cdef uint64_t passed(Curve *c, const uint8_t *op, const uint8_t *size, const uint64_t *addr, uint64_t n,
                     uint64_t i) noexcept nogil:
    # The first event from i on that may change an order: most are uses of the last page of their level, or of a level
    # that nobody asks for. One branch an event.
    cdef uint64_t last[4]
    cdef uint64_t wanted[4]
    cdef uint64_t other, o, process = c.process << PROCESS_SHIFT
    for o in range(4):
        wanted[o] = 0 if c.first[o] == NO_LEVEL else ~(<uint64_t> 0)
        last[o] = c.level[c.first[o]].last if wanted[o] else 0
    while i < n:
        o = op[i]
        if o > LAST_ACCESS:
            return i
        other = (process | addr[i] >> c.shift) ^ last[o] | ((addr[i] & 0xFFF) + size[i] > 0x1000)
        if other & wanted[o]:
            return i
        i += 1
    return n


cdef int curve_run(Curve *c, const uint8_t *op, const uint8_t *size, const uint64_t *addr, uint64_t n,
                   uint64_t *done) noexcept nogil:
    cdef uint64_t i = 0, la, page
    cdef uint32_t k, o
    while True:
        if c.orders_only:
            i = passed(c, op, size, addr, n, i)
        if i == n:
            break
        done[0] = i
        la = addr[i]
        o = op[i]
        if o <= LAST_ACCESS:
            if la >> 57:
                return CURVE_BAD_ADDRESS
            one_access(c, o, la >> c.shift)
            if (la & 0xFFF) + size[i] > 0x1000:
                la = (la | 0xFFF) + 1
                if la >> 57:
                    return CURVE_BAD_ADDRESS
                one_access(c, o, la >> c.shift)
        elif o == OP_SWITCH:
            if la >= (4095 if c.pcid else 1 << 18):
                return CURVE_BAD_PROCESS
            c.process = la
            if not c.pcid:
                flush(c)
        elif o == OP_INVLPG or o == OP_UNMAP:
            if not la >> 57:
                invalidate(c, la >> c.shift)
        elif o == OP_MUNMAP or o == OP_PROTECT:
            if not la >> 57:
                for page in range(la >> 12, (la >> 12) + (la & 0xFFF) + 1):
                    if not (page << 12 & (1ULL << c.shift) - 1) or page == la >> 12:
                        invalidate(c, page << 12 >> c.shift)
        elif o == OP_FORK:
            flush(c)
        i += 1
    done[0] = n
    for k in range(c.levels):
        if c.level[k].tree.failed or c.level[k].failed:
            return CURVE_NO_MEMORY
    return CURVE_OK
