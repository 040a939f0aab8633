"""Kernel of the data caches: one reference, an access, a walk. Header: cache/hierarchy.pxd."""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu._zeroed cimport zeroed, zeroed_free
from fastmmu.arch.types cimport (
    ACC_R, ACC_RW, ACC_W, ACC_X, STEP_DATA, STEP_EPT_AD, STEP_GUEST, STEP_GUEST_AD, Step, Steps,
)
from fastmmu.cache.frame_map cimport frame_map_apply
from fastmmu.cache.sets cimport (
    K_DIRTY, K_FLAGS, KEY_SHIFT, LINE_SHIFT, CacheArray, cache_fill, cache_find, cache_take, cache_use, key_of,
    set_ahead,
)

# ---- lines that leave (caches.md §4) --------------------------------------------------------------------------------

cdef int memory(CachesShared *m, uint64_t key) noexcept nogil:
    # A line is read or written: its row is open afterwards. FOUND_ROW if it was before
    cdef uint64_t row = (key >> KEY_SHIFT << LINE_SHIFT) >> m.row_shift
    cdef uint64_t *open = m.open + (row & (m.banks - 1) if m.banks & (m.banks - 1) == 0 else row % m.banks)
    cdef bint hit = open[0] == row + 1
    open[0] = row + 1
    return FOUND_ROW if hit else FOUND_DRAM


cdef uint64_t out_of_cpus(CachesShared *m, uint64_t key) noexcept nogil:
    # inclusive: a line that leaves L3 leaves all above it; K_DIRTY where one of them had written it
    cdef uint64_t dirty = 0
    cdef uint32_t i
    cdef Caches *c
    for i in range(m.cpus):
        c = m.cpu[i]
        if c.l2.base != NULL:
            dirty |= cache_take(&c.l2, key)
        dirty |= cache_take(&c.l1d, key)
        cache_take(&c.l1i, key)
    return dirty & K_DIRTY


cdef void fill_l3(Caches *c, uint64_t key) noexcept nogil:
    cdef CachesShared *m = c.shared
    cdef uint64_t gone = cache_fill(&m.l3, key)
    if not gone:
        return
    if m.inclusive:
        gone |= out_of_cpus(m, gone)
    if gone & K_DIRTY:
        c.c.written[2] += 1
        c.c.written[3] += 1
        memory(m, gone)


cdef void below_l2(Caches *c, uint64_t gone) noexcept nogil:
    # a line that has left L2, or L1D where there is no L2, comes to L3 or to memory
    cdef CachesShared *m = c.shared
    if m.l3.base == NULL:
        c.c.written[3] += 1
        memory(m, gone)
    elif not cache_use(&m.l3, gone):
        fill_l3(c, gone)


cdef void out_of_l2(Caches *c, uint64_t gone) noexcept nogil:
    # L1 has it no more where L2 is inclusive; into an exclusive L3, or written back
    if c.l2_inclusive:
        gone |= cache_take(&c.l1d, gone) & K_DIRTY
        cache_take(&c.l1i, gone)
    if gone & K_DIRTY:
        c.c.written[1] += 1
        below_l2(c, gone)
    elif c.shared.exclusive:
        below_l2(c, gone)


cdef void fill_l2(Caches *c, uint64_t key) noexcept nogil:
    cdef uint64_t gone = cache_fill(&c.l2, key)
    if gone:
        out_of_l2(c, gone)


cdef void out_of_l1(Caches *c, uint64_t gone) noexcept nogil:
    # a line that was written has left L1D
    c.c.written[0] += 1
    if c.l2.base == NULL:
        below_l2(c, gone)
    elif not cache_use(&c.l2, gone):
        if c.shared.exclusive:
            gone |= cache_take(&c.shared.l3, gone) & K_FLAGS
        fill_l2(c, gone)


cdef void fill_l1(Caches *c, CacheArray *l1, uint64_t key) noexcept nogil:
    cdef uint64_t gone = cache_fill(l1, key)
    if gone & K_DIRTY:
        out_of_l1(c, gone)


# ---- several CPUs (caches.md §8) ------------------------------------------------------------------------------------

cdef uint64_t lost_by(Caches *c, uint64_t key) noexcept nogil:
    # the line leaves all that is this CPU's own; its key with all flags, or 0
    cdef uint64_t gone = cache_take(&c.l1d, key) | cache_take(&c.l1i, key)
    return gone | cache_take(&c.l2, key) if c.l2.base != NULL else gone


cdef uint64_t cleaned(CacheArray *a, uint64_t key) noexcept nogil:
    # the line is dirty here no more; its key as it was, or 0
    cdef uint64_t s = 0, was
    cdef uint32_t way = 0
    cdef uint64_t *at = cache_find(a, key, &s, &way)
    if at == NULL:
        return 0
    was = at[0]
    at[0] &= ~<uint64_t> K_DIRTY
    if a.hot != NULL and not (a.hot[s] ^ was) & ~<uint64_t> K_FLAGS:
        a.hot[s] = 0
    return was


cdef void supplied(Caches *c, uint64_t gone) noexcept nogil:
    c.c.supplied += 1
    c.c.written[1] += 1
    below_l2(c, gone)


cdef bint claimed(Caches *c, uint64_t key) noexcept nogil:
    # before a write: all others lose the line; one of them had it
    cdef CachesShared *m = c.shared
    cdef uint64_t s = 0, gone
    cdef uint64_t *at
    cdef uint32_t i, way = 0
    cdef bint any_ = False
    at = cache_find(&c.l1d, key, &s, &way)
    if at != NULL and at[0] & K_DIRTY:
        return False
    for i in range(m.cpus):
        if m.cpu[i] == c:
            continue
        gone = lost_by(m.cpu[i], key)
        if gone:
            any_ = True
            c.c.invalidated += 1
            if gone & K_DIRTY:
                supplied(c, gone)
    return any_


cdef void asked(Caches *c, uint64_t key) noexcept nogil:
    # before a read that goes to L3: who has the line dirty writes it back
    cdef CachesShared *m = c.shared
    cdef uint64_t was
    cdef uint32_t i
    for i in range(m.cpus):
        if m.cpu[i] == c:
            continue
        was = cleaned(&m.cpu[i].l1d, key)
        if m.cpu[i].l2.base != NULL:
            was |= cleaned(&m.cpu[i].l2, key)
        if was & K_DIRTY:
            supplied(c, was)


# ---- one reference (caches.md §3) -----------------------------------------------------------------------------------

cdef uint32_t caches_use(Caches *c, uint64_t hpa, int acc, int cause) noexcept nogil:
    return c.latency[caches_find(c, hpa, acc, cause)]


cdef int caches_find(Caches *c, uint64_t hpa, int acc, int cause) noexcept nogil:
    cdef CacheArray *l1 = &c.l1i if acc == ACC_X else &c.l1d
    cdef bint walk = cause >= CAUSE_GUEST
    cdef uint64_t key = key_of(frame_map_apply(&c.map, hpa) if c.map.nbytes else hpa) | (c.mark if walk else 0)
    cdef uint64_t dirty = K_DIRTY if acc == ACC_W or acc == ACC_RW else 0
    cdef int found = FOUND_L1
    cdef bint taken = c.shared.cpus > 1 and dirty and claimed(c, key)
    if walk and c.walks_l2 or not cache_use(l1, key | dirty):
        found = behind_l1(c, l1, key, dirty, walk)
    if taken and found < FOUND_L3 and c.shared.l3.base != NULL:
        found = FOUND_L3
    c.c.found[cause][found] += 1
    return found


cdef int behind_l1(Caches *c, CacheArray *l1, uint64_t key, uint64_t dirty, bint walk) noexcept nogil:
    # A write is in the innermost cache that has the line afterwards: `dirty` goes no further out than to that.
    cdef CachesShared *m = c.shared
    cdef bint reads = not dirty
    cdef bint fills_l1 = not walk or not (c.walks_l2 or c.bypass_l1)
    cdef bint fills_l2 = c.l2.base != NULL and not (walk and c.bypass_l2)
    cdef bint fills_l3 = m.l3.base != NULL and not m.exclusive and not (walk and c.bypass_l3)
    cdef uint64_t in_l2 = key if fills_l1 else key | dirty, in_l3 = key if fills_l2 else in_l2
    cdef int found = FOUND_L3
    if m.l3.base != NULL:
        set_ahead(&m.l3, key)
    if c.l2.base != NULL and cache_use(&c.l2, in_l2):
        found = FOUND_L2
    else:
        if m.cpus > 1 and reads:
            asked(c, key)
        if m.l3.base != NULL and m.exclusive and fills_l2:
            in_l3 = cache_take(&m.l3, key)
            in_l2 |= in_l3 & K_FLAGS
            if not in_l3:
                found = memory(m, key)
        elif m.l3.base == NULL or not cache_use(&m.l3, in_l3):
            found = memory(m, key)
            if fills_l3:
                fill_l3(c, in_l3)
        if fills_l2:
            fill_l2(c, in_l2)
    if fills_l1:
        fill_l1(c, l1, key | dirty)
    return found


cdef void caches_lines(Caches *c, uint64_t hpa, uint32_t nbytes, int acc, int cause) noexcept nogil:
    cdef uint64_t line = hpa >> LINE_SHIFT, last = (hpa + (nbytes - 1 if nbytes else 0)) >> LINE_SHIFT
    while line <= last:
        caches_use(c, line << LINE_SHIFT, acc, cause)
        line += 1


cdef void caches_touch(Caches *c, uint64_t hpa, uint32_t nbytes, int acc, int cause) noexcept nogil:
    caches_access(c, hpa, nbytes, acc, cause)


# ---- a walk (caches.md §5) ------------------------------------------------------------------------------------------

cdef uint32_t caches_walk(Caches *c, const Steps *steps) noexcept nogil:
    cdef const Step *s
    cdef uint32_t latency = 0
    cdef int i
    for i in range(steps.n):
        s = &steps.step[i]
        if s.kind == STEP_GUEST or s.kind == STEP_GUEST_AD:
            latency += caches_use(c, s.hpa, ACC_W if s.kind == STEP_GUEST_AD else ACC_R, CAUSE_GUEST + (s.level & 7))
        elif s.kind != STEP_DATA:
            latency += caches_use(c, s.hpa, ACC_W if s.kind == STEP_EPT_AD else ACC_R,
                                  CAUSE_EPT + 8 * (s.guest_level if s.guest_level <= 5 else 5) + (s.level & 7))
    c.c.walks[walk_bin(latency)] += 1
    c.c.walk_cycles += latency
    return latency


cdef uint32_t caches_walk_refs(Caches *c, const WalkRefs *refs) noexcept nogil:
    cdef uint32_t latency = 0
    cdef int i
    for i in range(refs.n):
        latency += caches_use(c, refs.hpa[i], ACC_R, refs.cause[i])
    c.c.walks[walk_bin(latency)] += 1
    c.c.walk_cycles += latency
    return latency


# ---- made and freed -------------------------------------------------------------------------------------------------

cdef Caches *caches_new(CachesShared *shared) noexcept nogil:
    cdef Caches *c = <Caches *> zeroed(1, sizeof(Caches))
    if c == NULL:
        return NULL
    c.shared = shared if shared != NULL else <CachesShared *> zeroed(1, sizeof(CachesShared))
    if c.shared == NULL or c.shared.cpus == MOST_CPUS:
        zeroed_free(c)
        return NULL
    c.shared.cpu[c.shared.cpus] = c
    c.shared.cpus += 1
    return c


cdef void caches_free(Caches *c) noexcept nogil:
    cdef CachesShared *m
    cdef uint32_t i, kept = 0
    if c == NULL:
        return
    m = c.shared
    for i in range(m.cpus):
        m.cpu[kept] = m.cpu[i]
        kept += m.cpu[i] != c
    m.cpus = kept
    zeroed_free(c.l1d.base)
    zeroed_free(c.l1d.hot)
    zeroed_free(c.l1i.base)
    zeroed_free(c.l1i.hot)
    zeroed_free(c.l2.base)
    if not kept:
        zeroed_free(m.l3.base)
        zeroed_free(m.open)
        zeroed_free(m)
    zeroed_free(c)
