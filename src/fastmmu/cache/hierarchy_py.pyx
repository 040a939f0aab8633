"""The data caches of a CPU for Python: `CacheHierarchy`. Header: cache/hierarchy_py.pxd."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmmu._arguments cimport bytes_in, choice, flag, many, physical_address, shown, whole, words_in
from fastmmu._zeroed cimport zeroed
from fastmmu.arch.ops cimport LAST_ACCESS
from fastmmu.arch.types cimport (
    ACC_R, ACC_RW, ACC_W, ACC_X, MAX_STEPS, STEP_EPT, STEP_EPT_AD, STEP_GUEST, STEP_GUEST_AD, Step, Steps,
)
from fastmmu.cache.frame_map cimport frame_map_init
from fastmmu.cache.hierarchy cimport (
    CAUSE_EPT, CAUSE_FETCH, CAUSE_GUEST, CAUSE_READ, CAUSE_WRITE, CAUSES, FOUND, MOST_CPUS, CacheCounters, Caches,
    CachesShared, caches_access, caches_free, caches_new, caches_use, caches_walk,
)
from fastmmu.cache.sets cimport (
    CACHE_LRU, CACHE_PLRU, CACHE_SRRIP, K_DIRTY, K_MARK, KEY_SHIFT, LINE_SHIFT, CacheArray, keys_of,
)
from fastmmu.threads.turns cimport Pace, Turn, Turns, pace_begin

from fastmmu.cache.names import CAUSE_NAMES, LEVELS, walk_bins
from fastmmu.cache.text import caches as described
from fastmmu.errors import ConfigError, OutOfMemoryError, StateError, WrongTypeError

__all__ = ["CacheHierarchy"]

_POLICIES = {"lru": CACHE_LRU, "plru": CACHE_PLRU, "srrip": CACHE_SRRIP}
_ACCESS = {"r": ACC_R, "w": ACC_W, "rw": ACC_RW, "x": ACC_X}
_CAUSES = {name: i for i, name in CAUSE_NAMES.items()}


cdef class CacheHierarchy:
    """L1D, L1I, L2, L3 and memory of one CPU, empty at first, by host-physical address (docs/spec/caches.md).

    :param description: what :func:`fastmmu.cache.text.caches` takes: a preset's name, one with parts replaced as
        "skylake l3=16m/16", or a :class:`~fastmmu.cache.description.CacheDescription`; a :class:`CacheHierarchy`: one
        more CPU of its kind, on the same L3 and memory, coherent with all that are (caches.md §8), up to 64.
    :raises ConfigError: an unknown preset, an impossible cache, a CPU too many. :raises OutOfMemoryError: no memory for
        its sets.

    Threads: calls take turns. While :meth:`access` runs in another thread, those that change it are refused
    (PolicyError); counters can be read.
    """

    def __cinit__(self, description="skylake"):
        cdef CacheHierarchy other = description if isinstance(description, CacheHierarchy) else None
        d = self.description = described(description) if other is None else other.description
        if d is None:
            raise ConfigError("CacheHierarchy(None): there is nothing to make; give a preset, as 'skylake'")
        if other is not None and other.c.shared.cpus == MOST_CPUS:
            raise ConfigError(f"CacheHierarchy(): {MOST_CPUS} CPUs share this L3 already; make another one")
        self.turns = Turns() if other is None else other.turns
        self.c = caches_new(NULL if other is None else other.c.shared)
        if self.c == NULL:
            raise OutOfMemoryError("no memory for the caches")
        self.family = [] if other is None else other.family
        self.family.append(self)
        cdef Caches *c = self.c
        for i, part in enumerate((d.l1d, d.l2, d.l3)):
            c.latency[i] = part.latency if part is not None else 0
        c.latency[3], c.latency[4] = d.memory.row, d.memory.dram
        make_array(&c.l1d, d.l1d, False)
        make_array(&c.l1i, d.l1i, False)
        make_array(&c.l2, d.l2, "l2" in d.tables)
        c.l1d.hot = <uint64_t *> zeroed(c.l1d.sets, 8)
        c.l1i.hot = <uint64_t *> zeroed(c.l1i.sets, 8)
        if c.l1d.hot == NULL or c.l1i.hot == NULL:
            raise OutOfMemoryError("no memory for the caches")
        if other is None:
            make_shared(c.shared, d)
        else:
            c.map = other.c.map
        c.mark = K_MARK if d.tables else 0
        c.l2_inclusive = d.l2 is not None and d.l2_inclusive
        c.walks_l2 = d.walker == "l2"
        c.bypass_l1, c.bypass_l2, c.bypass_l3 = "l1" in d.bypass, "l2" in d.bypass, "l3" in d.bypass

    def __dealloc__(self):
        caches_free(self.c)

    def use_frames(self, text, nbytes, page=4096):
        """From now on host-physical addresses lie in memory as ``Config(host_frames=text)`` says (docs/frames.md), for
        all CPUs that share it.

        :param nbytes: of the host's memory. :param page: bytes of its pages, 4096 or 2097152, which stay whole.
        :raises ConfigError: a text that is none, another size of pages.
        """
        cdef Turn _turn = self.turns.alone()
        cdef uint32_t i
        page, nbytes = whole("page", page), whole("nbytes", nbytes)
        if page not in (1 << 12, 1 << 21) or not 0 <= nbytes <= 1 << 52:
            raise ConfigError(f"page={shown(page)}, nbytes={shown(nbytes)}: pages are of 4096 or 2097152 bytes, memory "
                              "has at most 2**52")
        frame_map_init(&self.c.map, text, nbytes, 12 if page == 1 << 12 else 21)
        for i in range(self.c.shared.cpus):
            self.c.shared.cpu[i].map = self.c.map

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
        {"l1", "l2", "l3": lines written back to the next level, "memory": to memory in all}; "invalidated", other CPUs
        that lost a line to a write of this one, "supplied", lines that another CPU wrote back for this one.
        """
        cdef Turn _turn = self.turns.take()
        cdef CacheCounters *k = &self.c.c
        cdef int cause, level
        found = {name: tuple([k.found[cause][level] for level in range(5)]) for cause, name in CAUSE_NAMES.items()}
        found = {name: counts for name, counts in found.items() if any(counts)}
        return {
            "references": found,
            "cycles": {name: cycles_of(self.c, cause) for cause, name in CAUSE_NAMES.items() if name in found},
            "walk_latency": walk_bins([k.walks[i] for i in range(128)]),
            "walks": sum([k.walks[i] for i in range(128)]),
            "walk_cycles": k.walk_cycles,
            "invalidated": k.invalidated,
            "supplied": k.supplied,
            "written": {name: k.written[i] for i, name in enumerate(("l1", "l2", "l3", "memory"))},
        }

    def reset_counters(self):
        """All counters to 0; the lines stay."""
        cdef Turn _turn = self.turns.apart()
        memset(&self.c.c, 0, sizeof(CacheCounters))


cdef uint64_t cycles_of(const Caches *c, int cause) noexcept nogil:
    # what its references took
    cdef uint64_t total = 0
    cdef int level
    for level in range(FOUND):
        total += c.c.found[cause][level] * c.latency[level]
    return total


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


cdef int make_shared(CachesShared *m, object d) except -1:
    make_array(&m.l3, d.l3, "l3" in d.tables)
    m.banks = d.memory.banks
    m.row_shift = (<int> d.memory.row_bytes.bit_length()) - 1
    m.open = <uint64_t *> zeroed(m.banks, 8)
    if m.open == NULL:
        raise OutOfMemoryError("no memory for the open rows")
    m.inclusive = d.l3 is not None and d.inclusion == "inclusive"
    m.exclusive = d.l3 is not None and d.inclusion == "exclusive"
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
