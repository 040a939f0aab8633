"""Kernel of the data caches: one reference, an access, a walk; `CacheHierarchy`. Header: cache/hierarchy.pxd."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmmu._arguments cimport bytes_in, shown, words_in
from fastmmu._zeroed cimport zeroed, zeroed_free
from fastmmu.arch.ops cimport LAST_ACCESS
from fastmmu.arch.types cimport (
    ACC_R, ACC_RW, ACC_W, ACC_X, STEP_DATA, STEP_EPT, STEP_EPT_AD, STEP_GUEST, STEP_GUEST_AD, STEP_SPP, Step, Steps,
)
from fastmmu.cache.sets cimport (
    CACHE_LRU, CACHE_PLRU, CACHE_SRRIP, K_DIRTY, K_FLAGS, K_MARK, KEY_SHIFT, LINE_SHIFT, CacheArray, cache_fill,
    cache_take, cache_use, key_of,
)
from fastmmu.threads.turns cimport Pace, Turn, Turns, pace_begin

from fastmmu.cache.names import CAUSE_NAMES, walk_bins
from fastmmu.cache.text import caches as described
from fastmmu.errors import ConfigError, OutOfMemoryError, StateError

__all__ = ["CacheHierarchy"]

_POLICIES = {"lru": CACHE_LRU, "plru": CACHE_PLRU, "srrip": CACHE_SRRIP}

# ---- lines that leave (caches.md §4) --------------------------------------------------------------------------------

cdef void to_memory(CachesShared *m, uint64_t key) noexcept nogil:
    # a line is written: its row is open afterwards
    in_open_row(m, key)


cdef bint in_open_row(CachesShared *m, uint64_t key) noexcept nogil:
    # a line is read or written in memory: was its row the open one?
    cdef uint64_t row = (key >> KEY_SHIFT << LINE_SHIFT) >> m.row_shift
    cdef uint64_t *open = m.open + (row % m.banks)
    cdef bint hit = open[0] == row + 1
    open[0] = row + 1
    return hit


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
        to_memory(m, gone)


cdef void out_of_l2(Caches *c, uint64_t gone) noexcept nogil:
    # a line has left L2, and L1 where L2 is inclusive: into an exclusive L3, or written back
    cdef CachesShared *m = c.shared
    if c.l2_inclusive:
        gone |= cache_take(&c.l1d, gone) & K_DIRTY
        cache_take(&c.l1i, gone)
    if gone & K_DIRTY:
        c.c.written[1] += 1
    elif not m.exclusive:
        return
    if m.l3.base == NULL:
        c.c.written[3] += 1
        to_memory(m, gone)
    elif not cache_use(&m.l3, gone):
        fill_l3(c, gone)


cdef void fill_l2(Caches *c, uint64_t key) noexcept nogil:
    cdef uint64_t gone = cache_fill(&c.l2, key)
    if gone:
        out_of_l2(c, gone)


cdef void out_of_l1(Caches *c, uint64_t gone) noexcept nogil:
    # a line that was written has left L1D
    c.c.written[0] += 1
    if c.l2.base == NULL:
        out_of_l2(c, gone)
    elif not cache_use(&c.l2, gone):
        if c.shared.exclusive:
            gone |= cache_take(&c.shared.l3, gone) & K_FLAGS
        fill_l2(c, gone)


cdef void fill_l1(Caches *c, CacheArray *l1, uint64_t key) noexcept nogil:
    cdef uint64_t gone = cache_fill(l1, key)
    if gone & K_DIRTY:
        out_of_l1(c, gone)


# ---- one reference (caches.md §3) -----------------------------------------------------------------------------------

cdef uint32_t caches_use(Caches *c, uint64_t hpa, int acc, int cause) noexcept nogil:
    cdef CacheArray *l1 = &c.l1i if acc == ACC_X else &c.l1d
    cdef CachesShared *m = c.shared
    cdef bint walk = cause >= CAUSE_GUEST
    cdef uint64_t key = key_of(hpa), marked, dirty, moved
    cdef bint fills_l1 = not walk or not (c.walks_l2 or c.bypass_l1)
    cdef bint fills_l2 = c.l2.base != NULL and not (walk and c.bypass_l2)
    cdef bint fills_l3 = m.l3.base != NULL and not m.exclusive and not (walk and c.bypass_l3)
    cdef int found
    if walk:
        key |= c.mark
    dirty = K_DIRTY if acc == ACC_W or acc == ACC_RW else 0
    marked = key                    # what an outer level gets of it: a write is in the innermost that takes the line
    if not (walk and c.walks_l2) and cache_use(l1, key | dirty):
        found = FOUND_L1
    else:
        if c.l2.base != NULL and cache_use(&c.l2, marked if fills_l1 else key | dirty):
            found = FOUND_L2
        elif m.l3.base == NULL:
            found = FOUND_ROW if in_open_row(m, key) else FOUND_DRAM
            if fills_l2:
                fill_l2(c, marked if fills_l1 else key | dirty)
        else:
            if m.exclusive and fills_l2:
                moved = cache_take(&m.l3, key)
                found = FOUND_L3
                if not moved:
                    found = FOUND_ROW if in_open_row(m, key) else FOUND_DRAM
                marked |= moved & K_FLAGS
            elif cache_use(&m.l3, marked if fills_l1 or fills_l2 else key | dirty):
                found = FOUND_L3
            else:
                found = FOUND_ROW if in_open_row(m, key) else FOUND_DRAM
                if fills_l3:
                    fill_l3(c, marked if fills_l1 or fills_l2 else key | dirty)
            if fills_l2:
                fill_l2(c, marked if fills_l1 else marked | dirty)
        if fills_l1:
            fill_l1(c, l1, key | dirty)
    c.c.found[cause][found] += 1
    c.c.cycles[cause] += c.latency[found]
    return c.latency[found]


cdef void caches_lines(Caches *c, uint64_t hpa, uint32_t nbytes, int acc, int cause) noexcept nogil:
    cdef uint64_t line = hpa >> LINE_SHIFT, last = (hpa + (nbytes - 1 if nbytes else 0)) >> LINE_SHIFT
    while line <= last:
        caches_use(c, line << LINE_SHIFT, acc, cause)
        line += 1


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


# ---- made and freed -------------------------------------------------------------------------------------------------

cdef bint array_new(CacheArray *a, uint64_t sets, uint32_t ways, uint8_t policy, bint tables) noexcept nogil:
    a.sets, a.ways, a.policy, a.tables = sets, ways, policy, tables
    a.mask = 0 if sets & (sets - 1) else sets - 1
    a.all = (<uint64_t> 2 << (ways - 1)) - 1
    a.pad = (ways + 3) & ~<uint32_t> 3
    a.ranks = 16 if policy == CACHE_PLRU else (ways + 15) & ~<uint32_t> 15
    a.stride = a.ranks + 8 * a.pad
    a.base = <uint8_t *> zeroed(sets, a.stride)
    return a.base != NULL


cdef Caches *caches_new() noexcept nogil:
    # without a cache yet; NULL: no memory
    cdef Caches *c = <Caches *> zeroed(1, sizeof(Caches))
    if c == NULL:
        return NULL
    c.shared = <CachesShared *> zeroed(1, sizeof(CachesShared))
    if c.shared == NULL:
        zeroed_free(c)
        return NULL
    c.shared.cpu[0] = c
    c.shared.cpus = 1
    return c


cdef void caches_free(Caches *c) noexcept nogil:
    if c == NULL:
        return
    zeroed_free(c.l1d.base)
    zeroed_free(c.l1d.hot)
    zeroed_free(c.l1i.base)
    zeroed_free(c.l2.base)
    zeroed_free(c.shared.l3.base)
    zeroed_free(c.shared.open)
    zeroed_free(c.shared)
    zeroed_free(c)


# ---- for Python -----------------------------------------------------------------------------------------------------

cdef class CacheHierarchy:
    """L1D, L1I, L2, L3 and memory of one CPU, empty at first, by host-physical address (docs/spec/caches.md).

    :param description: what :func:`fastmmu.cache.text.caches` takes: a preset's name, one with parts replaced as
        "skylake l3=16m/16", or a :class:`~fastmmu.cache.description.CacheDescription`.
    :raises ConfigError: an unknown preset, an impossible cache. :raises OutOfMemoryError: no memory for its sets.

    Threads: calls take turns. While :meth:`access` runs in another thread, those that change it are refused
    (PolicyError); counters can be read.
    """

    def __cinit__(self, description="skylake"):
        d = self.description = described(description)
        if d is None:
            raise ConfigError("CacheHierarchy(None): there is nothing to make; give a preset, as 'skylake'")
        self.turns = Turns()
        self.c = caches_new()
        if self.c == NULL:
            raise OutOfMemoryError("no memory for the caches")
        cdef Caches *c = self.c
        for i, part in enumerate((d.l1d, d.l2, d.l3)):
            c.latency[i] = part.latency if part is not None else 0
        c.latency[3], c.latency[4] = d.memory.row, d.memory.dram
        make_array(&c.l1d, d.l1d, False)
        make_array(&c.l1i, d.l1i, False)
        make_array(&c.l2, d.l2, "l2" in d.tables)
        make_array(&c.shared.l3, d.l3, "l3" in d.tables)
        c.l1d.hot = <uint64_t *> zeroed(c.l1d.sets, 8)
        c.shared.banks = d.memory.banks
        c.shared.row_shift = (<int> d.memory.row_bytes.bit_length()) - 1
        c.shared.open = <uint64_t *> zeroed(c.shared.banks, 8)
        if c.l1d.hot == NULL or c.shared.open == NULL:
            raise OutOfMemoryError("no memory for the caches")
        c.shared.inclusive = d.l3 is not None and d.inclusion == "inclusive"
        c.shared.exclusive = d.l3 is not None and d.inclusion == "exclusive"
        c.mark = K_MARK if d.tables else 0
        c.l2_inclusive = d.l2 is not None and d.l2_inclusive
        c.walks_l2 = d.walker == "l2"
        c.bypass_l1, c.bypass_l2, c.bypass_l3 = "l1" in d.bypass, "l2" in d.bypass, "l3" in d.bypass

    def __dealloc__(self):
        caches_free(self.c)

    def access(self, hpa, op=None):
        """References, of 8 bytes or less each, one after the other.

        :param hpa: uint64 host-physical addresses, C-contiguous. :param op: uint8 of :class:`fastmmu.ops.Op`, READ,
            WRITE, MODIFY (which writes) or FETCH, as many; None: all are reads.
        :returns: how many were found at each of `LEVELS`, a tuple.
        :raises StateError: an array of another kind or length, an address of more than 52 bits, an operation that is no
            access; then nothing was done.
        """
        cdef const uint64_t[::1] at = words_in("hpa", hpa)
        cdef const uint8_t[::1] ops = None
        cdef Py_ssize_t n = at.shape[0], i = 0, end = 0
        cdef uint64_t before[5]
        cdef Pace pace
        if op is not None:
            ops = bytes_in("op", op)
            if ops.shape[0] != n:
                raise StateError(f"op has {ops.shape[0]} entries for {n} addresses; give one for each")
        cdef const uint8_t *kind = &ops[0] if op is not None and n else NULL
        self.turns.begin("CacheHierarchy.access()")
        try:
            with nogil:
                pace_begin(&pace)
                found_in(self.c, before)
                while i < n:
                    end = min(i + (1 << 20), n)
                    i = not_reference(at, kind, i, end)
                    if i < end or i < n and self.turns.between(&pace):
                        break
            self.turns.signals()
            if i < n:
                refuse(i, at[i], kind[i] if kind != NULL else 0)
            with nogil:
                pace_begin(&pace)
                end = 0
                while end < n:
                    i, end = end, min(end + <Py_ssize_t> pace.chunk, n)
                    references(self.c, at, kind, i, end)
                    if end < n and self.turns.between(&pace):
                        break
            self.turns.signals()
        finally:
            self.turns.end()
        cdef uint64_t after[5]
        found_in(self.c, after)
        return tuple([after[i] - before[i] for i in range(5)])

    def counters(self):
        """Everything counted so far.

        dict: "references" {cause: how many were found at each of `LEVELS`}, "cycles" {cause: cycles}, of causes that
        occurred; "walk_latency", tuples (low, high, walks) of latencies low..high; "walks", "walk_cycles"; "written"
        {"l1", "l2", "l3": lines written back to the next level, "memory": to memory in all}.
        """
        cdef Turn _turn = self.turns.take()
        cdef CacheCounters *k = &self.c.c
        cdef int cause, level
        found = {name: tuple([k.found[cause][level] for level in range(5)]) for cause, name in CAUSE_NAMES.items()}
        found = {name: counts for name, counts in found.items() if any(counts)}
        return {
            "references": found,
            "cycles": {name: k.cycles[cause] for cause, name in CAUSE_NAMES.items() if name in found},
            "walk_latency": walk_bins([k.walks[i] for i in range(128)]),
            "walks": sum([k.walks[i] for i in range(128)]),
            "walk_cycles": k.walk_cycles,
            "written": {name: k.written[i] for i, name in enumerate(("l1", "l2", "l3", "memory"))},
        }

    def reset_counters(self):
        """All counters to 0; the lines stay."""
        cdef Turn _turn = self.turns.apart()
        memset(&self.c.c, 0, sizeof(CacheCounters))


cdef int make_array(CacheArray *a, object part, bint tables) except -1:
    if part is not None and not array_new(a, part.sets, part.ways, _POLICIES[part.policy], tables):
        raise OutOfMemoryError(f"no memory for a cache of {part}; give a smaller one")
    return 0


cdef int refuse(Py_ssize_t i, uint64_t hpa, int op) except -1:
    if hpa >> 52:
        raise StateError(f"hpa[{i}]={hpa:#x} is no physical address; give less than 2**52")
    raise StateError(f"op[{i}]={op} is no access; give READ, WRITE, MODIFY or FETCH of fastmmu.ops.Op")


cdef Py_ssize_t not_reference(const uint64_t[::1] hpa, const uint8_t *op, Py_ssize_t first, Py_ssize_t end) noexcept nogil:
    # index of the first that is none, or the end
    cdef Py_ssize_t i
    for i in range(first, end):
        if hpa[i] >> 52 or op != NULL and op[i] > LAST_ACCESS:
            return i
    return end


cdef void references(Caches *c, const uint64_t[::1] hpa, const uint8_t *op, Py_ssize_t first, Py_ssize_t end) noexcept nogil:
    # operations of accesses are numbered as accesses are
    cdef Py_ssize_t i
    if op == NULL:
        for i in range(first, end):
            caches_access(c, hpa[i], 1, ACC_R, CAUSE_READ)
        return
    for i in range(first, end):
        caches_access(c, hpa[i], 1, op[i], CAUSE_READ if op[i] == ACC_R else CAUSE_FETCH if op[i] == ACC_X else CAUSE_WRITE)


cdef void found_in(const Caches *c, uint64_t *total) noexcept nogil:
    cdef int cause, level
    for level in range(5):
        total[level] = 0
        for cause in range(CAUSES):
            total[level] += c.c.found[cause][level]
