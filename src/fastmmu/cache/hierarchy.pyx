"""Kernel of the data caches: one reference, an access, a walk; `CacheHierarchy`. Header: cache/hierarchy.pxd."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmmu._arguments cimport bytes_in, choice, flag, many, physical_address, shown, whole, words_in
from fastmmu._zeroed cimport zeroed, zeroed_free
from fastmmu.arch.ops cimport LAST_ACCESS
from fastmmu.arch.types cimport (
    ACC_R, ACC_RW, ACC_W, ACC_X, MAX_STEPS, STEP_DATA, STEP_EPT, STEP_EPT_AD, STEP_GUEST, STEP_GUEST_AD, Step,
    Steps,
)
from fastmmu.cache.frame_map cimport frame_map_apply, frame_map_init
from fastmmu.cache.sets cimport (
    CACHE_LRU, CACHE_PLRU, CACHE_SRRIP, K_DIRTY, K_FLAGS, K_MARK, KEY_SHIFT, LINE_SHIFT, CacheArray, cache_fill,
    cache_take, cache_use, key_of, keys_of, set_ahead,
)
from fastmmu.threads.turns cimport Pace, Turn, Turns, pace_begin

from fastmmu.cache.names import CAUSE_NAMES, LEVELS, walk_bins
from fastmmu.cache.text import caches as described
from fastmmu.errors import ConfigError, OutOfMemoryError, StateError, WrongTypeError

__all__ = ["CacheHierarchy"]

_POLICIES = {"lru": CACHE_LRU, "plru": CACHE_PLRU, "srrip": CACHE_SRRIP}
_ACCESS = {"r": ACC_R, "w": ACC_W, "rw": ACC_RW, "x": ACC_X}
_CAUSES = {name: i for i, name in CAUSE_NAMES.items()}

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


# ---- one reference (caches.md §3) -----------------------------------------------------------------------------------

cdef uint32_t caches_use(Caches *c, uint64_t hpa, int acc, int cause) noexcept nogil:
    cdef CacheArray *l1 = &c.l1i if acc == ACC_X else &c.l1d
    cdef bint walk = cause >= CAUSE_GUEST
    cdef uint64_t key = key_of(frame_map_apply(&c.map, hpa) if c.map.nbytes else hpa) | (c.mark if walk else 0)
    cdef uint64_t dirty = K_DIRTY if acc == ACC_W or acc == ACC_RW else 0
    cdef int found = FOUND_L1
    if walk and c.walks_l2 or not cache_use(l1, key | dirty):
        found = behind_l1(c, l1, key, dirty, walk)
    c.c.found[cause][found] += 1
    c.c.cycles[cause] += c.latency[found]
    return c.latency[found]


cdef int behind_l1(Caches *c, CacheArray *l1, uint64_t key, uint64_t dirty, bint walk) noexcept nogil:
    # A write is in the innermost cache that has the line afterwards: `dirty` goes no further out than to that.
    cdef CachesShared *m = c.shared
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
    a.leaves = 1
    while a.leaves < ways:
        a.leaves *= 2
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
    zeroed_free(c.l1i.hot)
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
        c.l1i.hot = <uint64_t *> zeroed(c.l1i.sets, 8)
        c.shared.banks = d.memory.banks
        c.shared.row_shift = (<int> d.memory.row_bytes.bit_length()) - 1
        c.shared.open = <uint64_t *> zeroed(c.shared.banks, 8)
        if c.l1d.hot == NULL or c.l1i.hot == NULL or c.shared.open == NULL:
            raise OutOfMemoryError("no memory for the caches")
        c.shared.inclusive = d.l3 is not None and d.inclusion == "inclusive"
        c.shared.exclusive = d.l3 is not None and d.inclusion == "exclusive"
        c.mark = K_MARK if d.tables else 0
        c.l2_inclusive = d.l2 is not None and d.l2_inclusive
        c.walks_l2 = d.walker == "l2"
        c.bypass_l1, c.bypass_l2, c.bypass_l3 = "l1" in d.bypass, "l2" in d.bypass, "l3" in d.bypass

    def __dealloc__(self):
        caches_free(self.c)

    def use_frames(self, text, nbytes, page=4096):
        """From now on host-physical addresses lie in memory as ``Config(host_frames=text)`` says (docs/frames.md).

        :param nbytes: of the host's memory. :param page: bytes of its pages, 4096 or 2097152, which stay whole.
        :raises ConfigError: a text that is none, another size of pages.
        """
        cdef Turn _turn = self.turns.alone()
        page, nbytes = whole("page", page), whole("nbytes", nbytes)
        if page not in (1 << 12, 1 << 21) or not 0 <= nbytes <= 1 << 52:
            raise ConfigError(f"page={shown(page)}, nbytes={shown(nbytes)}: pages are of 4096 or 2097152 bytes, memory "
                              "has at most 2**52")
        frame_map_init(&self.c.map, text, nbytes, 12 if page == 1 << 12 else 21)

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

    def use(self, hpa, access="r", cause=None):
        """One reference, of 8 bytes or less that a line holds: the name of the level where it was found.

        :param hpa: host-physical address. :param access: "r", "w", "rw" or "x". :param cause: a name of
            :data:`fastmmu.cache.names.CAUSE_NAMES`; None: what `access` is in a trace.
        """
        cdef Turn _turn = self.turns.apart()
        cdef uint64_t at = physical_address("hpa", hpa)
        cdef int acc = choice("access", access, _ACCESS), i
        cdef int why = cause_of(acc) if cause is None else <int> choice("cause", cause, _CAUSES)
        cdef uint64_t before[5]
        for i in range(5):
            before[i] = self.c.c.found[why][i]
        caches_use(self.c, at, acc, why)
        for i in range(5):
            if self.c.c.found[why][i] != before[i]:
                return LEVELS[i]

    def walk(self, references):
        """The references of one walk, in turn: its cycles, which go into the histogram.

        :param references: (cause, hpa) of each entry read, or (cause, hpa, True) of one written; causes "guest1" to
            "guest5", "ept0.1" to "ept5.5". At most 96.
        """
        cdef Turn _turn = self.turns.apart()
        cdef Steps steps
        cdef Step *s
        cdef int why
        listed = many("references", references)
        if len(listed) > MAX_STEPS:
            raise StateError(f"a walk of {len(listed)} references; give at most {MAX_STEPS}")
        memset(&steps, 0, sizeof(steps))
        for each in listed:
            if not isinstance(each, (tuple, list)) or not 2 <= len(each) <= 3:
                raise WrongTypeError(f"a reference is (cause, hpa) or (cause, hpa, writes), not {shown(each)}")
            why = choice("cause", each[0], _CAUSES)
            if why < CAUSE_GUEST:
                raise StateError(f"cause={each[0]!r} is no walk's; give guest1..guest5 or ept0.1..ept5.5")
            s = &steps.step[steps.n]
            s.hpa, s.level = physical_address("hpa", each[1]), why & 7
            s.kind = STEP_GUEST if why < CAUSE_EPT else STEP_EPT
            if len(each) == 3 and flag("writes", each[2]):
                s.kind = STEP_GUEST_AD if why < CAUSE_EPT else STEP_EPT_AD
            s.guest_level = (why - CAUSE_EPT) >> 3 if why >= CAUSE_EPT else 0
            steps.n += 1
        return caches_walk(self.c, &steps)

    def lines(self):
        """All lines that are held: list of (cache, set, way, host-physical address, written, has table entries).

        `cache`: "l1d", "l1i", "l2" or "l3". Table entries are known where they are preferred (`tables=`) alone.
        """
        cdef Turn _turn = self.turns.take()
        cdef list held = []
        lines_of(held, "l1d", &self.c.l1d)
        lines_of(held, "l1i", &self.c.l1i)
        lines_of(held, "l2", &self.c.l2)
        lines_of(held, "l3", &self.c.shared.l3)
        return held

    def open_rows(self):
        """dict of bank -> its open row, of banks that were used; `row` begins at `row * row_bytes`."""
        cdef Turn _turn = self.turns.take()
        cdef CachesShared *m = self.c.shared
        cdef uint64_t i
        return {i: m.open[i] - 1 for i in range(m.banks) if m.open[i]}

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


cdef int lines_of(list held, str name, const CacheArray *a) except -1:
    cdef const uint64_t *keys
    cdef uint64_t i
    cdef uint32_t way
    if a.base == NULL:
        return 0
    for i in range(a.sets):
        keys = keys_of(a, i)
        for way in range(a.ways):
            if keys[way]:
                held.append((name, i, way, keys[way] >> KEY_SHIFT << LINE_SHIFT, bool(keys[way] & K_DIRTY),
                             bool(keys[way] & K_MARK)))
    return 0


cdef int make_array(CacheArray *a, object part, bint tables) except -1:
    if part is not None and not array_new(a, part.sets, part.ways, _POLICIES[part.policy], tables):
        raise OutOfMemoryError(f"no memory for a cache of {part}; give a smaller one")
    return 0


cdef inline int cause_of(int acc) noexcept nogil:
    return CAUSE_READ if acc == ACC_R else CAUSE_FETCH if acc == ACC_X else CAUSE_WRITE


cdef int refuse(Py_ssize_t i, uint64_t hpa, int op) except -1:
    if hpa >> 52:
        raise StateError(f"hpa[{i}]={hpa:#x} is no physical address; give less than 2**52")
    raise StateError(f"op[{i}]={op} is no access; give READ, WRITE, MODIFY or FETCH of fastmmu.ops.Op")


cdef Py_ssize_t not_reference(const uint64_t[::1] hpa, const uint8_t *op, Py_ssize_t first,
                              Py_ssize_t end) noexcept nogil:
    # index of the first that is none, or the end
    cdef Py_ssize_t i
    for i in range(first, end):
        if hpa[i] >> 52 or op != NULL and op[i] > LAST_ACCESS:
            return i
    return end


cdef void references(Caches *c, const uint64_t[::1] hpa, const uint8_t *op, Py_ssize_t first,
                     Py_ssize_t end) noexcept nogil:
    # operations of accesses are numbered as accesses are
    cdef Py_ssize_t i
    if op == NULL:
        for i in range(first, end):
            caches_access(c, hpa[i], 1, ACC_R, CAUSE_READ)
        return
    for i in range(first, end):
        caches_access(c, hpa[i], 1, op[i], cause_of(op[i]))


cdef void found_in(const Caches *c, uint64_t *total) noexcept nogil:
    cdef int cause, level
    for level in range(5):
        total[level] = 0
        for cause in range(CAUSES):
            total[level] += c.c.found[cause][level]
