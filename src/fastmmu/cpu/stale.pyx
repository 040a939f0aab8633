"""Kernel of the detector of missing flushes. Header: cpu/stale.pxd."""

from typing import NamedTuple

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from fastmmu.arch.bits cimport EPT_A, EPT_D, ONES, PS, A, D
from fastmmu.arch.pferr cimport PF_P
from fastmmu.arch.types cimport (
    ACC_RW, ACC_W, FAULT_NONE, FAULT_PF, MODE_PAE, STEP_EPT, STEP_EPT_AD, STEP_GUEST, STEP_GUEST_AD, GuestPath, Step,
    Walk,
)
from fastmmu.paging.guest cimport leaf_address
from fastmmu.paging.memory cimport mem_holds, mem_read32, mem_read64
from fastmmu.paging.walk cimport load_pdptes, walk_path, walk_silent
from fastmmu.tlb.lookup cimport NO_EPT
from fastmmu.errors import OutOfMemoryError

cdef enum:
    GLOBAL = 0x1000             # in the place of a PCID
    EPT_LEVEL = 16              # + level: of an EPT entry

cdef inline uint64_t mixed(uint64_t x) noexcept nogil:
    x ^= x >> 31
    x *= <uint64_t> 0x9E3779B97F4A7C15
    return x ^ x >> 29


cdef uint64_t key_of(uint64_t vpid, uint64_t pcid, uint64_t eptrta, uint64_t level, uint64_t prefix) noexcept nogil:
    return mixed(mixed(mixed(vpid << 16 | pcid) ^ eptrta) ^ level << 58 ^ prefix) | 1


cdef Watch *watch_new() noexcept nogil:
    cdef Watch *w = <Watch *> calloc(1, sizeof(Watch))
    if w == NULL:
        return NULL
    w.seen_mask = w.stored_mask = (1 << 12) - 1
    w.seen = <Seen *> calloc(w.seen_mask + 1, sizeof(Seen))
    w.stored = <Stored *> calloc(w.stored_mask + 1, sizeof(Stored))
    if w.seen == NULL or w.stored == NULL:
        watch_free(w)
        return NULL
    return w


cdef void watch_free(Watch *w) noexcept nogil:
    if w != NULL:
        free(w.seen)
        free(w.stored)
        free(w)


# ---- what walks read, what stores changed ---------------------------------------------------------------------

cdef Seen *place(Seen *table, uint64_t mask, uint64_t key) noexcept nogil:
    cdef uint64_t i = key >> 8 & mask
    while table[i].key and table[i].key != key:
        i = (i + 1) & mask
    return &table[i]


cdef Stored *stored_place(Stored *table, uint64_t mask, uint64_t at) noexcept nogil:
    cdef uint64_t i = mixed(at) >> 8 & mask
    while table[i].at and table[i].at != at:
        i = (i + 1) & mask
    return &table[i]


cdef Seen *to_write(Watch *w, uint64_t key) noexcept nogil:
    # NULL: the host has no memory, and this one is not kept
    cdef uint64_t mask = 2 * w.seen_mask + 1, i
    cdef Seen *more
    cdef Seen *found = place(w.seen, w.seen_mask, key)
    if found.key:
        return found
    if 2 * w.seen_used > w.seen_mask:
        more = <Seen *> calloc(mask + 1, sizeof(Seen))
        if more == NULL:
            return NULL
        for i in range(w.seen_mask + 1):
            if w.seen[i].key:
                place(more, mask, w.seen[i].key)[0] = w.seen[i]
        free(w.seen)
        w.seen = more
        w.seen_mask = mask
        found = place(w.seen, mask, key)
    w.seen_used += 1
    found.key = key
    return found


cdef void watch_stored(Watch *w, uint64_t at, uint64_t event) noexcept nogil:
    cdef uint64_t mask = 2 * w.stored_mask + 1, i, word = (at & ~<uint64_t> 7) + 1
    cdef Stored *more
    cdef Stored *found = stored_place(w.stored, w.stored_mask, word)
    if not found.at:
        if 2 * w.stored_used > w.stored_mask:
            more = <Stored *> calloc(mask + 1, sizeof(Stored))
            if more == NULL:
                return
            for i in range(w.stored_mask + 1):
                if w.stored[i].at:
                    stored_place(more, mask, w.stored[i].at)[0] = w.stored[i]
            free(w.stored)
            w.stored = more
            w.stored_mask = mask
            found = stored_place(w.stored, mask, word)
        w.stored_used += 1
        found.at = word
    found.event = event


cdef inline int shift_of(const Paging *g, int level) noexcept nogil:
    return 12 + g.index_bits * (level - 1)


cdef void keep(Watch *w, uint64_t key, const Step *step, uint64_t gpa, uint64_t root, uint64_t event) noexcept nogil:
    cdef Seen *s = to_write(w, key)
    if s != NULL:
        s.at = step.hpa
        s.gpa = gpa
        s.value = step.entry
        s.root = root
        s.event = event


cdef void watch_walked(Watch *w, const Tlb *t, const Paging *g, uint64_t la, const Steps *steps,
                       uint64_t event) noexcept nogil:
    cdef const Step *s
    cdef uint64_t key, gpa, pcid
    cdef bint nested = t.eptrta != NO_EPT, through = False
    cdef Seen *old
    cdef int i, k
    for i in range(steps.n):
        s = &steps.step[i]
        if s.kind == STEP_EPT or s.kind == STEP_EPT_AD:
            through = True
            key = key_of(0, 0, t.eptrta, EPT_LEVEL + s.level, s.gpa >> (12 + 9 * (s.level - 1)))
            keep(w, key, s, s.gpa, t.eptrta, event)
        elif s.kind == STEP_GUEST or s.kind == STEP_GUEST_AD:
            for k in range(2):
                pcid = GLOBAL if k else t.pcid
                key = key_of(t.vpid, pcid, t.eptrta, s.level, la >> shift_of(g, s.level))
                gpa = s.gpa
                if nested and not through:      # the table's address came from a cache: its gpa is not in the step
                    old = place(w.seen, w.seen_mask, key)
                    if old.key and old.at == s.hpa:
                        gpa = old.gpa
                keep(w, key, s, gpa, g.root, event)


# ---- uses ------------------------------------------------------------------------------------------------------

cdef uint64_t entry_at(Mem *m, const Paging *g, uint64_t at, bint guest) noexcept nogil:
    cdef uint64_t size = 4 if guest and g.entry_shift == 2 else 8
    if not mem_holds(m, at, size):
        return 0
    return mem_read32(m, at) if size == 4 else mem_read64(m, at)


cdef bint blame(Watch *w, const Seen *s, uint64_t now, uint64_t ignored, Stale *x) noexcept nogil:
    cdef const Stored *stored
    if not (s.value ^ now) & ~ignored:
        return False
    x.cached_by = s.event
    x.entry = s.at
    x.was = s.value
    x.now = now
    stored = stored_place(w.stored, w.stored_mask, (s.at & ~<uint64_t> 7) + 1)
    if stored.at:
        x.changed_by = stored.event
    return True


cdef bint blame_ept(Watch *w, Mem *m, const Tlb *t, const Paging *g, uint64_t gpa, Stale *x) noexcept nogil:
    # the EPT entries that a walk of gpa read, from the root down
    cdef const Seen *s
    cdef int level
    for level in range(5, 0, -1):
        s = place(w.seen, w.seen_mask, key_of(0, 0, t.eptrta, EPT_LEVEL + level, gpa >> (12 + 9 * (level - 1))))
        if not s.key:
            continue
        if blame(w, s, entry_at(m, g, s.at, False), EPT_A | (0 if x.kind == STALE_DIRTY else EPT_D), x):
            x.level = level
            x.ept = 1
            x.owed = OWED_INVEPT
            return True
        if level > 1 and s.value & PS:
            return False
    return False


cdef uint64_t find_change(Watch *w, Mem *m, const Tlb *t, const Paging *g, uint64_t la, uint64_t pcid,
                          Stale *x) noexcept nogil:
    # what changed since the entries on the way were read; the root from which they were
    cdef const Seen *s
    cdef uint64_t root = g.root
    cdef bint nested = t.eptrta != NO_EPT, leaf
    cdef int level
    for level in range(g.levels, 0, -1):
        s = place(w.seen, w.seen_mask, key_of(t.vpid, pcid, t.eptrta, level, la >> shift_of(g, level)))
        if not s.key:
            continue
        if nested and blame_ept(w, m, t, g, s.gpa, x):
            return root
        leaf = level == 1 or (s.value & PS and g.large_ok[level])
        if blame(w, s, entry_at(m, g, s.at, True), A | (0 if leaf and x.kind == STALE_DIRTY else D), x):
            x.level = level
            x.owed = OWED_INVVPID if w.shadow else OWED_INVLPG
            return root
        x.cached_by = s.event
        root = s.root
        if leaf:
            if nested and blame_ept(w, m, t, g, leaf_address(g, s.value, la, shift_of(g, level)), x):
                return root
            break
    if nested and not g.levels and blame_ept(w, m, t, g, la, x):
        return root
    # no entry is other than a walk last read it: the translation is another root's, or an upper entry was read since
    x.owed = OWED_INVVPID if w.shadow else OWED_CR3 if root != g.root else OWED_INVLPG
    return root


cdef bint clean(const GuestPath *path, const Walk *w, bint ept_ad) noexcept nogil:
    # a write by this walk has a dirty flag to set
    return (path.level <= path.top and not path.entry[path.level] & D) or (ept_ad and not w.ept_entry & EPT_D)


cdef void watch_use(Watch *w, Mem *m, const Tlb *t, const Paging *g, const Ept *e, uint64_t la, int acc, bint is_global,
                    uint64_t pa, uint64_t event) noexcept nogil:
    cdef Paging paging = g[0]
    cdef Ept ept
    cdef GuestPath path
    cdef Walk walk
    cdef Stale x
    cdef uint64_t root
    cdef bint dirty
    w.uses += 1
    paging.write_ad = 0
    if e != NULL:
        ept = e[0]
        ept.write_ad = 0
        ept.pml_index = NULL
    walk_path(m, &paging, &ept if e != NULL else NULL, la, acc, &walk, &path)
    dirty = (acc == ACC_W or acc == ACC_RW) and clean(&path, &walk, e != NULL and e.ad)
    if walk.fault == FAULT_NONE and walk.pa == pa and not dirty:
        return
    memset(&x, 0, sizeof(x))
    x.kind = STALE_DIRTY
    if walk.fault != FAULT_NONE:
        x.kind = STALE_GONE
        if walk.fault == FAULT_PF and walk.error_code & PF_P or walk.fault != FAULT_PF and walk.qual >> 3 & 7:
            x.kind = STALE_RIGHTS
    elif walk.pa != pa:
        x.kind = STALE_ADDRESS
    x.event = event
    x.la = la
    x.cached = pa
    x.backed = walk.pa
    x.cached_by = x.changed_by = x.entry = ONES
    x.vpid = t.vpid
    x.pcid = t.pcid
    x.access = acc
    root = find_change(w, m, t, g, la, GLOBAL if is_global else t.pcid, &x)
    if is_global and x.entry == ONES and root != g.root:
        # a global page is the same from every root: this one's tables may lack it, or EPT may not map them yet
        paging.root = paging.cr3 = root
        if paging.mode == MODE_PAE:
            load_pdptes(m, &paging, &ept if e != NULL else NULL, &walk, NULL)
        walk_silent(m, &paging, &ept if e != NULL else NULL, la, acc, &walk)
        if walk.fault == FAULT_NONE and walk.pa == pa:
            return
    w.found += 1
    w.by_kind[x.kind] += 1
    w.by_owed[x.owed] += 1
    if w.examples < STALE_EXAMPLES:
        w.example[w.examples] = x
        w.examples += 1


# ---- for Python ------------------------------------------------------------------------------------------------

KINDS = ("address", "rights", "gone", "dirty")
"""What is stale of a use: it leads to another place; memory refuses the access; memory does not map the page; memory
has a dirty flag to set."""

OWED = ("unknown", "INVLPG", "MOV CR3", "INVVPID", "INVEPT")
"""The invalidation that is missing. INVLPG stands for any that takes this address: INVPCID, a CR3 write."""

_TABLES = {True: "EPT", False: "guest"}


class StaleUse(NamedTuple):
    """A use of a cached translation that memory no longer backs.

    event: number of the trace's event, record or instruction. address: linear. access: 0 read, 1 write, 2
    read-modify-write, 3 fetch. kind: of KINDS. cached, backed: host-physical address by the cache, and by memory (None:
    it faults). cached_by: event whose walk read the entry that has changed since. table, level, entry, was, now: that
    entry, of the "guest", "shadow" or "EPT" tables, its address and values; entry None: no entry changed, another root
    is in force, or an upper entry has been read again since. changed_by: event of the store, None where the VMM made
    it. owed: of OWED. vpid, pcid: in force.
    """

    event: int
    address: int
    access: int
    kind: str
    cached: int
    backed: int | None
    cached_by: int | None
    table: str
    level: int
    entry: int | None
    was: int
    now: int
    changed_by: int | None
    owed: str
    vpid: int
    pcid: int

    def __str__(self):
        entry = "another root is in force" if self.entry is None else (
            f"{self.table} entry of level {self.level} at {self.entry:#x} was {self.was:#x}, is {self.now:#x}")
        since = "" if self.changed_by is None else f" since event {self.changed_by}"
        there = "nowhere" if self.backed is None else f"{self.backed:#x}"
        return (f"event {self.event}: {self.address:#x} used as {self.cached:#x}, memory says {there} ({self.kind}); "
                f"cached by event {self.cached_by}; {entry}{since}; {self.owed} owed")


def _known(value):
    return None if value == ONES else value


cdef class MissingFlushes:
    """Compares every use of a cached translation with memory. For a TLB that keeps all it may, preset "strict"."""

    def __cinit__(self, *, bint shadow=False):
        self.w = watch_new()
        if self.w == NULL:
            raise OutOfMemoryError("no memory for the detector of missing flushes")
        self.w.shadow = shadow

    def __dealloc__(self):
        watch_free(self.w)

    @property
    def uses(self):
        """Uses compared."""
        return self.w.uses

    @property
    def found(self):
        """Uses that memory did not back."""
        return self.w.found

    def counters(self):
        """dict: uses, stale, and stale by kind and by what is owed."""
        return {"uses": self.w.uses, "stale": self.w.found,
                "by_kind": {name: self.w.by_kind[i] for i, name in enumerate(KINDS)},
                "by_owed": {name: self.w.by_owed[i] for i, name in enumerate(OWED)}}

    def examples(self):
        """The first stale uses: list of :class:`StaleUse`, at most 64."""
        cdef Stale *x
        cdef uint64_t i
        found = []
        for i in range(self.w.examples):
            x = &self.w.example[i]
            table = "shadow" if self.w.shadow else _TABLES[bool(x.ept)]
            found.append(StaleUse(x.event, x.la, x.access, KINDS[x.kind], x.cached, _known(x.backed),
                                  _known(x.cached_by), table, x.level, _known(x.entry), x.was, x.now,
                                  _known(x.changed_by), OWED[x.owed], x.vpid, x.pcid))
        return found
