"""Kernel of the miss-ratio curves; header: _curve.pxd."""

import numpy as np

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memmove, memset

from fastmmu.errors import ConfigError, OutOfMemoryError, TraceError

cdef extern from *:
    """
    #define fm_popcount(x) __builtin_popcountll(x)
    """
    uint32_t popcount "fm_popcount"(uint64_t) noexcept nogil

cdef enum:
    NO_LEVEL = 255
    MOST_SLOTS = 1 << 30        # a slot has 32 bits
    PROCESS_SHIFT = 45          # of a key: page numbers have 45 bits
    OP_SWITCH = 16
    OP_INVLPG = 17
    OP_UNMAP = 18
    OK = 0
    BAD_PROCESS = 1
    BAD_ADDRESS = 2
    NO_MEMORY = 3

cdef uint64_t HOLE = ~(<uint64_t> 0)
cdef uint64_t NONE = ~(<uint64_t> 0) - 1


# ---- a list per set -------------------------------------------------------------------------------------------

cdef uint32_t list_access(List *l, uint64_t key) noexcept nogil:
    # distance - 1; depth: farther than that, or never before
    cdef uint64_t s = key & (l.sets - 1)
    cdef uint64_t *k = l.key + s * l.depth
    cdef uint32_t n = l.n[s], at = 0, hole, distance
    hole = n
    while at < n and k[at] != key:
        if k[at] == HOLE and hole == n:
            hole = at
        at += 1
    distance = at if at < n else l.depth
    l.hist[distance] += 1
    if hole < at:
        if at < n:
            k[at] = HOLE
        at = hole
    elif at == n and n < l.depth:
        l.n[s] += 1
    elif at == n:
        at -= 1
    memmove(k + 1, k, 8 * at)
    k[0] = key
    return distance


cdef void list_invalidate(List *l, uint64_t key) noexcept nogil:
    cdef uint64_t s = key & (l.sets - 1)
    cdef uint64_t *k = l.key + s * l.depth
    cdef uint32_t i
    for i in range(l.n[s]):
        if k[i] == key:
            k[i] = HOLE
            return


# ---- the tree: slots and their number -------------------------------------------------------------------------

cdef inline void add(Tree *t, uint64_t slot, int by) noexcept nogil:
    cdef uint64_t i = (slot >> 6) + 1
    t.word[slot >> 6] ^= <uint64_t> 1 << (slot & 63)
    t.used += by
    while i <= t.cap >> 6:
        t.fenwick[i] += by
        i += i & (~i + 1)


cdef inline uint64_t from_slot(const Tree *t, uint64_t slot) noexcept nogil:
    # slots in use at or above this one
    cdef uint64_t i = slot >> 6, n = 0
    n = popcount(t.word[i] & ((<uint64_t> 1 << (slot & 63)) - 1))
    while i:
        n += t.fenwick[i]
        i &= i - 1
    return t.used - n


cdef inline uint64_t mix(uint64_t x) noexcept nogil:
    x = (x ^ x >> 31) * <uint64_t> 0x9E3779B97F4A7C15
    x = (x ^ x >> 29) * <uint64_t> 0xBF58476D1CE4E5B9
    return x ^ x >> 32


cdef inline uint64_t find_page(const Tree *t, uint64_t key) noexcept nogil:
    # its place in the hash table, or the free one where it would stand
    cdef uint64_t i = mix(key) & t.mask
    while t.page[i] and t.page[i] != key + 1:
        i = (i + 1) & t.mask
    return i


cdef bint more_pages(Tree *t) noexcept nogil:
    cdef uint64_t *page = t.page
    cdef uint32_t *at = t.at
    cdef uint64_t i, j, size = t.mask + 1
    t.page = <uint64_t *> calloc(2 * size, 8)
    t.at = <uint32_t *> calloc(2 * size, 4)
    if t.page == NULL or t.at == NULL:
        free(t.page)
        free(t.at)
        t.page = page
        t.at = at
        return False
    t.mask = 2 * size - 1
    for i in range(size):
        if page[i]:
            j = find_page(t, page[i] - 1)
            t.page[j] = page[i]
            t.at[j] = at[i]
    free(page)
    free(at)
    return True


cdef bint new_slots(Tree *t, uint64_t cap) noexcept nogil:
    # Slots are numbered anew, from 1 on and in order, into arrays for `cap`; number 0 is never used.
    cdef uint64_t *word = <uint64_t *> calloc(cap >> 6, 8)
    cdef uint32_t *fenwick = <uint32_t *> calloc((cap >> 6) + 1, 4)
    cdef uint64_t *slot = <uint64_t *> calloc(cap, 8)
    cdef uint64_t i, j, n = 1
    if word == NULL or fenwick == NULL or slot == NULL:
        free(word)
        free(fenwick)
        free(slot)
        return False
    t.n_holes = 0
    memset(t.at, 0, 4 * (t.mask + 1))           # also of pages that were flushed
    for i in range(t.first, t.next):
        if t.word[i >> 6] >> (i & 63) & 1:
            slot[n] = t.slot[i]
            word[n >> 6] |= <uint64_t> 1 << (n & 63)
            if t.slot[i] == HOLE:
                t.hole[t.n_holes] = n
                t.n_holes += 1
            else:
                t.at[find_page(t, t.slot[i])] = n
            n += 1
    for i in range(t.n_holes // 2):             # the largest first is a heap
        j = t.hole[i]
        t.hole[i] = t.hole[t.n_holes - 1 - i]
        t.hole[t.n_holes - 1 - i] = j
    for i in range(1, (cap >> 6) + 1):
        fenwick[i] += popcount(word[i - 1])
        j = i + (i & (~i + 1))
        if j <= cap >> 6:
            fenwick[j] += fenwick[i]
    free(t.word)
    free(t.fenwick)
    free(t.slot)
    t.word = word
    t.fenwick = fenwick
    t.slot = slot
    t.cap = cap
    t.first = 1
    t.next = n
    t.used = n - 1
    return True


cdef void push(Tree *t, uint64_t key) noexcept nogil:
    # the most recent one in the tree, just out of the front
    cdef uint64_t i
    if t.next == t.cap:
        if t.cap > MOST_SLOTS or not new_slots(t, t.cap if 2 * t.used < t.cap else 2 * t.cap):
            t.failed = True
            return
    if key == HOLE:
        push_hole(t, t.next)
    else:
        i = find_page(t, key)
        t.at[i] = t.next
    t.slot[t.next] = key
    add(t, t.next, 1)
    t.next += 1


cdef void push_hole(Tree *t, uint64_t slot) noexcept nogil:
    cdef uint64_t i, size = 2 * t.max_holes
    cdef uint32_t *hole
    if t.n_holes == t.max_holes:
        hole = <uint32_t *> realloc(t.hole, 4 * size)
        if hole == NULL:
            t.failed = True
            return
        t.hole = hole
        t.max_holes = size
    i = t.n_holes
    t.n_holes += 1
    while i and t.hole[(i - 1) // 2] < slot:
        t.hole[i] = t.hole[(i - 1) // 2]
        i = (i - 1) // 2
    t.hole[i] = slot


cdef void pop_hole(Tree *t) noexcept nogil:
    cdef uint64_t i = 0, child
    cdef uint32_t last
    t.n_holes -= 1
    last = t.hole[t.n_holes]
    while True:
        child = 2 * i + 1
        if child >= t.n_holes:
            break
        if child + 1 < t.n_holes and t.hole[child + 1] > t.hole[child]:
            child += 1
        if t.hole[child] <= last:
            break
        t.hole[i] = t.hole[child]
        i = child
    t.hole[i] = last


# ---- the tree: accesses ---------------------------------------------------------------------------------------

cdef inline void to_front(Tree *t, uint32_t at, uint64_t key) noexcept nogil:
    memmove(t.front + 1, t.front, 8 * at)
    t.front[0] = key


cdef void tree_access(Tree *t, uint64_t key) noexcept nogil:
    cdef uint64_t hash = mix(key), distance = 0, slot = 0, i
    cdef uint64_t *hist
    cdef uint32_t at = 0, n = t.n_front, hole = t.n_front
    if hash >> 32 >= t.threshold or t.failed:
        return
    hist = t.hist + (hash >> 29 & 7) * (t.limit + 1)
    if t.holes_in_front:
        while at < n and t.front[at] != key:
            if t.front[at] == HOLE and hole == n:
                hole = at
            at += 1
    else:
        while at < n and t.front[at] != key:
            at += 1
    if at < n:
        distance = at + 1
        hist[distance if distance <= t.limit else 0] += 1
        if hole < at:
            t.front[at] = HOLE                  # holes_in_front stays
            at = hole
        to_front(t, at, key)
        return
    i = find_page(t, key)
    if not t.page[i]:
        if 2 * t.pages >= t.mask:
            if not more_pages(t):
                t.failed = True
                return
            i = find_page(t, key)
        t.page[i] = key + 1
        t.pages += 1
    slot = t.at[i]
    if slot < t.first:                          # flushed, or in the front once
        slot = 0
    if slot:
        distance = n + from_slot(t, slot)
    hist[distance if distance <= t.limit else 0] += 1
    t.at[i] = 0
    if hole < n:                                # in the front: what is below stays, with a hole where the page was
        to_front(t, hole, key)
        t.holes_in_front -= 1
        if slot:
            t.slot[slot] = HOLE
            push_hole(t, slot)
        return
    if n < FRONT:                               # nothing in the tree
        t.n_front = n + 1
        to_front(t, n, key)
        return
    if t.n_holes and t.hole[0] > slot:
        i = t.hole[0]
        pop_hole(t)
        add(t, i, -1)
        if slot:
            t.slot[slot] = HOLE
            push_hole(t, slot)
    elif slot:
        add(t, slot, -1)
    i = t.front[FRONT - 1]
    to_front(t, FRONT - 1, key)
    push(t, i)


cdef void tree_invalidate(Tree *t, uint64_t key) noexcept nogil:
    cdef uint32_t at
    cdef uint64_t i
    if mix(key) >> 32 >= t.threshold or t.failed:
        return
    for at in range(t.n_front):
        if t.front[at] == key:
            t.front[at] = HOLE
            t.holes_in_front += 1
            t.at[find_page(t, key)] = 0
            return
    i = find_page(t, key)
    if t.page[i] and t.at[i] >= t.first:
        t.slot[t.at[i]] = HOLE
        push_hole(t, t.at[i])
        t.at[i] = 0


cdef void tree_flush(Tree *t) noexcept nogil:
    t.n_front = t.holes_in_front = 0
    t.n_holes = t.used = 0
    t.first = t.next
    # a rank is counted from the newest slot down; the bits below `first` must not be
    if t.next > 1:
        memset(t.word, 0, (t.cap >> 6) * 8)
        memset(t.fenwick, 0, ((t.cap >> 6) + 1) * 4)


# ---- levels -----------------------------------------------------------------------------------------------------

cdef inline void level_access(Level *x, uint64_t key) noexcept nogil:
    cdef uint32_t i
    x.lookups += 1
    if key == x.last:
        x.repeats += 1
        return
    x.last = key
    for i in range(x.lists):
        list_access(&x.list[i], key)
    tree_access(&x.tree, key)


cdef inline void one_access(Curve *c, int op, uint64_t page) noexcept nogil:
    cdef Level *x = &c.level[c.first[op]]
    cdef uint64_t key = c.process << PROCESS_SHIFT | page
    cdef uint32_t i
    cdef bint miss = False
    c.accesses += 1
    x.lookups += 1
    if key == x.last:
        x.repeats += 1
        return
    x.last = key
    for i in range(x.lists):
        if list_access(&x.list[i], key) >= c.ways[op] and i == c.filter[op]:
            miss = True
    tree_access(&x.tree, key)
    if miss and c.second[op] != NO_LEVEL:
        level_access(&c.level[c.second[op]], key)


cdef void invalidate(Curve *c, uint64_t page) noexcept nogil:
    cdef uint64_t key = c.process << PROCESS_SHIFT | page
    cdef uint32_t i, j
    c.invalidations += 1
    for i in range(c.levels):
        if c.level[i].last == key:
            c.level[i].last = NONE
        for j in range(c.level[i].lists):
            list_invalidate(&c.level[i].list[j], key)
        tree_invalidate(&c.level[i].tree, key)


cdef void flush(Curve *c) noexcept nogil:
    cdef uint32_t i, j
    c.flushes += 1
    for i in range(c.levels):
        c.level[i].last = NONE
        for j in range(c.level[i].lists):
            memset(c.level[i].list[j].n, 0, 4 * <uint64_t> c.level[i].list[j].sets)
        tree_flush(&c.level[i].tree)


cdef int run(Curve *c, const uint8_t *op, const uint8_t *size, const uint64_t *addr, uint64_t n,
             uint64_t *done) noexcept nogil:
    cdef uint64_t i, la
    cdef uint32_t k
    for i in range(n):
        done[0] = i
        la = addr[i]
        if op[i] < 4:
            if la >> 57:
                return BAD_ADDRESS
            one_access(c, op[i], la >> c.shift)
            if (la & 0xFFF) + size[i] > 0x1000:
                la = (la | 0xFFF) + 1
                if la >> 57:
                    return BAD_ADDRESS
                one_access(c, op[i], la >> c.shift)
        elif op[i] == OP_SWITCH:
            if la >= (4095 if c.pcid else 1 << 18):
                return BAD_PROCESS
            c.process = la
            if not c.pcid:
                flush(c)
        elif op[i] == OP_INVLPG or op[i] == OP_UNMAP:
            if not la >> 57:
                invalidate(c, la >> c.shift)
    done[0] = n
    for k in range(c.levels):
        if c.level[k].tree.failed:
            return NO_MEMORY
    return OK


# ---- for Python -------------------------------------------------------------------------------------------------

cdef int make_list(List *l, uint32_t sets, uint32_t depth) except -1:
    l.sets = sets
    l.depth = depth
    l.key = <uint64_t *> calloc(<uint64_t> sets * depth, 8)
    l.n = <uint32_t *> calloc(sets, 4)
    l.hist = <uint64_t *> calloc(depth + 1, 8)
    if l.key == NULL or l.n == NULL or l.hist == NULL:
        raise OutOfMemoryError(f"no memory for the curves of {sets} sets; give fewer")
    return 0


cdef int make_tree(Tree *t, uint64_t limit, uint64_t threshold) except -1:
    t.limit = limit
    t.threshold = threshold
    t.mask = (1 << 12) - 1
    t.max_holes = 1 << 8
    t.first = t.next = 1
    t.page = <uint64_t *> calloc(t.mask + 1, 8)
    t.at = <uint32_t *> calloc(t.mask + 1, 4)
    t.hole = <uint32_t *> calloc(t.max_holes, 4)
    t.hist = <uint64_t *> calloc(GROUPS * (limit + 1), 8)
    if t.page == NULL or t.at == NULL or t.hole == NULL or t.hist == NULL or not new_slots(t, 1 << 12):
        raise OutOfMemoryError(f"no memory for curves of up to {limit} entries; give a lower limit")
    return 0


cdef class StackDistances:
    """Distances of every access in every level of a TLB, from events that come batch by batch.

    :param levels: for each level its (numbers of sets, depth of their lists).
    :param ports: for reads, writes, modifies, fetches: (first level, its list that decides what misses, ways of that
        list, second level or None).
    :param shift: log2 of the page size. :param pcid: a SWITCH flushes nothing.
    :param limit: farthest distance in a tree that is told from infinity. :param threshold: pages whose 32-bit hash is
        below it go through the trees; 2**32: all.
    """

    cdef Curve c
    cdef uint64_t events

    def __cinit__(self, levels, ports, int shift, bint pcid, uint64_t limit, uint64_t threshold):
        cdef Level *x
        if not 1 <= len(levels) <= 5 or len(ports) != 4:
            raise ConfigError(f"{len(levels)} levels, {len(ports)} ports; there are 1..5 levels and 4 ports")
        self.c.shift, self.c.pcid = shift, pcid
        for sets, depth in levels:
            x = &self.c.level[self.c.levels]
            self.c.levels += 1
            x.last = NONE
            x.list = <List *> calloc(len(sets), sizeof(List))
            if x.list == NULL:
                raise OutOfMemoryError("no memory for the curves")
            for number in sets:
                if number & (number - 1) or not 1 <= number <= 1 << 20 or not 1 <= depth <= 1 << 12:
                    raise ConfigError(f"{number} sets of {depth} ways: sets are a power of two up to 1048576, ways up "
                                      "to 4096")
                x.lists += 1
                make_list(&x.list[x.lists - 1], number, depth)
            make_tree(&x.tree, limit, threshold)
        for op, (first, chosen, ways, second) in enumerate(ports):
            if not (0 <= first < self.c.levels and 0 <= chosen < self.c.level[<int> first].lists
                    and (second is None or 0 <= second < self.c.levels)):
                raise ConfigError(f"port {op}: ({first}, {chosen}, {ways}, {second}) names a level or list that "
                                  "is none")
            if not 1 <= ways <= self.c.level[<int> first].list[<int> chosen].depth:
                raise ConfigError(f"port {op}: a first level of {ways} ways needs lists as deep")
            self.c.first[<int> op], self.c.filter[<int> op], self.c.ways[<int> op] = first, chosen, ways
            self.c.second[<int> op] = NO_LEVEL if second is None else second

    def __dealloc__(self):
        cdef uint32_t i, j
        cdef Tree *t
        for i in range(self.c.levels):
            for j in range(self.c.level[i].lists):
                free(self.c.level[i].list[j].key)
                free(self.c.level[i].list[j].n)
                free(self.c.level[i].list[j].hist)
            free(self.c.level[i].list)
            t = &self.c.level[i].tree
            free(t.word)
            free(t.fenwick)
            free(t.slot)
            free(t.page)
            free(t.at)
            free(t.hole)
            free(t.hist)

    def feed(self, const uint8_t[::1] op not None, const uint8_t[::1] size not None,
             const uint64_t[::1] addr not None):
        """Events of a trace; all arrays have one length.

        :raises TraceError: an address of more than 57 bits, a process number too large.
        """
        cdef uint64_t n = addr.shape[0], done = 0
        cdef int outcome
        if <uint64_t> op.shape[0] != n or <uint64_t> size.shape[0] != n:
            raise TraceError(f"op, size and addr have different lengths: {op.shape[0]}, {size.shape[0]}, {n}")
        if n == 0:
            return
        with nogil:
            outcome = run(&self.c, &op[0], &size[0], &addr[0], n, &done)
        if outcome == BAD_ADDRESS:
            raise TraceError(f"event {self.events + done}: {addr[done]:#x} has more than 57 bits")
        if outcome == BAD_PROCESS:
            raise TraceError(f"event {self.events + done}: process number {addr[done]} is not below "
                             f"{4095 if self.c.pcid else 1 << 18}; number processes from 0")
        if outcome == NO_MEMORY:
            raise OutOfMemoryError("no memory for the order of so many pages; sample them (sample=0.01)")
        self.events += n

    def counts(self):
        """dict of int: accesses, flushes (SWITCH), invalidations (INVLPG, UNMAP)."""
        return {"accesses": self.c.accesses, "flushes": self.c.flushes, "invalidations": self.c.invalidations}

    def lookups(self, unsigned int level):
        """Number of lookups of a level."""
        return self._level(level).lookups

    def of_list(self, unsigned int level, unsigned int number):
        """Lookups by distance in a list: int64 (depth + 1,); [i] of distance i + 1, the last: farther or never."""
        cdef Level *x = self._level(level)
        cdef uint32_t i
        if number >= x.lists:
            raise ConfigError(f"level {level} has {x.lists} lists, no number {number}")
        found = np.zeros(x.list[number].depth + 1, np.int64)
        cdef int64_t[::1] to = found
        for i in range(x.list[number].depth + 1):
            to[i] = x.list[number].hist[i]
        to[0] += x.repeats
        return found

    def of_tree(self, unsigned int level):
        """Sampled lookups by distance: int64 (8 groups, limit + 1); [:, 0]: farther than the limit, or never.

        An access to the same page as the one before it, which hits at every size, is not among them.
        """
        cdef Level *x = self._level(level)
        cdef uint64_t i, w = x.tree.limit + 1
        cdef int g
        found = np.zeros((GROUPS, w), np.int64)
        cdef int64_t[:, ::1] to = found
        for g in range(GROUPS):
            for i in range(w):
                to[g, i] = x.tree.hist[g * w + i]
        return found

    def pages(self, unsigned int level):
        """Distinct pages that went through the tree of a level."""
        return self._level(level).tree.pages

    cdef Level *_level(self, unsigned int level) except NULL:
        if level >= self.c.levels:
            raise ConfigError(f"there are {self.c.levels} levels, no number {level}")
        return &self.c.level[level]
