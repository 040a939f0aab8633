"""Kernel of the detector of missing flushes. Header: cpu/stale.pxd; for Python: cpu/missing_flushes.pyx."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from fastmmu.arch.bits cimport ONES, PS, A, D, level_shift
from fastmmu.arch.pferr cimport PF_P
from fastmmu.arch.types cimport (
    ACC_R, ACC_RW, ACC_W, FAULT_NONE, FAULT_PF, MODE_PAE, STEP_EPT, STEP_EPT_AD, STEP_GUEST, STEP_GUEST_AD, GuestPath,
    Step, Walk,
)
from fastmmu.paging.agile cimport Agile, walk_agile
from fastmmu.paging.guest cimport leaf_address, guest_level_shift, read_entry
from fastmmu.paging.hash_table cimport hash_find, hash_free, hash_put
from fastmmu.paging.memory cimport mem_holds, mem_read64
from fastmmu.paging.walk cimport load_pdptes, walk_path, walk_silent
from fastmmu.tlb.lookup cimport NO_EPT

cdef enum:
    GLOBAL = 0x1000             # in the place of a PCID
    EPT_LEVEL = 16              # + level: of an EPT entry

cdef inline uint64_t mixed(uint64_t x) noexcept nogil:
    x ^= x >> 31
    x *= <uint64_t> 0x9E3779B97F4A7C15
    return x ^ x >> 29


cdef uint64_t key_of(uint64_t vpid, uint64_t pcid, uint64_t eptrta, uint64_t level, uint64_t prefix) noexcept nogil:
    return mixed(mixed(mixed(vpid << 16 | pcid) ^ eptrta) ^ level << 58 ^ prefix) | 1


cdef uint64_t guest_key(const Tlb *t, uint64_t pcid, const Paging *g, int level, uint64_t la) noexcept nogil:
    return key_of(t.vpid, pcid, t.eptrta, level, la >> guest_level_shift(g, level))


cdef uint64_t ept_key(const Tlb *t, int level, uint64_t gpa) noexcept nogil:
    return key_of(0, 0, t.eptrta, EPT_LEVEL + level, gpa >> level_shift(level))


cdef Detector *stale_new() noexcept nogil:
    cdef Detector *d = <Detector *> calloc(1, sizeof(Detector))
    if d != NULL:
        d.seen.size = sizeof(Seen)
        d.stored.size = sizeof(Stored)
    return d


cdef void stale_free(Detector *d) noexcept nogil:
    if d != NULL:
        hash_free(&d.seen)
        hash_free(&d.stored)
        free(d)


cdef void stale_forgive(Detector *d) noexcept nogil:
    d.found -= 1
    d.by_kind[d.last_kind] -= 1
    d.by_owed[d.last_owed] -= 1
    d.examples -= d.last_kept


# ---- what walks read, what stores changed ---------------------------------------------------------------------

cdef void stale_stored(Detector *d, uint64_t at, uint64_t event) noexcept nogil:
    cdef Stored *stored = <Stored *> hash_put(&d.stored, (at & ~<uint64_t> 7) + 1)
    if stored != NULL:          # else the host has no memory, and this one is not kept
        stored.event = event


cdef void keep(Detector *d, uint64_t key, const Step *step, uint64_t gpa, uint64_t root, uint64_t event) noexcept nogil:
    cdef Seen *s = <Seen *> hash_put(&d.seen, key)
    if s != NULL:
        s.at = step.hpa
        s.gpa = gpa
        s.value = step.entry
        s.root = root
        s.event = event


cdef void stale_walked(Detector *d, const Tlb *t, const Paging *g, uint64_t la, const Steps *steps,
                       uint64_t event) noexcept nogil:
    cdef const Step *s
    cdef uint64_t key, gpa, pcid
    cdef bint nested = t.eptrta != NO_EPT, through = False
    cdef const Seen *old
    cdef int i, k
    for i in range(steps.n):
        s = &steps.step[i]
        if s.kind == STEP_EPT or s.kind == STEP_EPT_AD:
            through = True
            key = ept_key(t, s.level, s.gpa)
            keep(d, key, s, s.gpa, t.eptrta, event)
        elif s.kind == STEP_GUEST or s.kind == STEP_GUEST_AD:
            for k in range(2):
                pcid = GLOBAL if k else t.pcid
                key = guest_key(t, pcid, g, s.level, la)
                gpa = s.gpa
                if nested and not through:      # the table's address came from a cache: its gpa is not in the step
                    old = <const Seen *> hash_find(&d.seen, key)
                    if old != NULL and old.at == s.hpa:
                        gpa = old.gpa
                keep(d, key, s, gpa, g.root, event)


# ---- uses ------------------------------------------------------------------------------------------------------

cdef bint blame(Detector *d, const Seen *s, uint64_t now, uint64_t ignored, Stale *x) noexcept nogil:
    cdef const Stored *stored
    if not (s.value ^ now) & ~ignored:
        return False
    x.cached_by = s.event
    x.entry = s.at
    x.was = s.value
    x.now = now
    stored = <const Stored *> hash_find(&d.stored, (s.at & ~<uint64_t> 7) + 1)
    if stored != NULL:
        x.changed_by = stored.event
    return True


cdef bint blame_ept(Detector *d, Mem *m, const Tlb *t, const Ept *e, uint64_t gpa, Stale *x) noexcept nogil:
    # the EPT entries that a walk of gpa read, from the root down
    cdef const Seen *s
    cdef uint64_t now
    cdef int level
    for level in range(5, 0, -1):
        s = <const Seen *> hash_find(&d.seen, ept_key(t, level, gpa))
        if s == NULL:
            continue
        now = mem_read64(m, s.at) if mem_holds(m, s.at, 8) else 0
        if blame(d, s, now, e.accessed | (0 if x.kind == STALE_DIRTY else e.dirty), x):
            x.level = level
            x.ept = 1
            x.owed = OWED_INVEPT
            return True
        if level > 1 and s.value & PS:
            return False
    return False


cdef uint64_t find_change(Detector *d, Mem *m, const Tlb *t, const Paging *g, const Ept *e, uint64_t la, uint64_t pcid,
                          Stale *x) noexcept nogil:
    # what changed since the entries on the way were read; the root from which they were
    cdef const Seen *s
    cdef uint64_t root = g.root, now
    cdef bint nested = t.eptrta != NO_EPT, leaf
    cdef int level
    for level in range(g.levels, 0, -1):
        s = <const Seen *> hash_find(&d.seen, guest_key(t, pcid, g, level, la))
        if s == NULL:
            continue
        if nested and blame_ept(d, m, t, e, s.gpa, x):
            return root
        leaf = level == 1 or (s.value & PS and g.large_ok[level])
        now = read_entry(m, g, s.at) if mem_holds(m, s.at, <uint64_t> 1 << g.entry_shift) else 0
        if blame(d, s, now, A | (0 if leaf and x.kind == STALE_DIRTY else D), x):
            x.level = level
            x.owed = OWED_INVVPID if d.shadow else OWED_INVLPG
            return root
        x.cached_by = s.event
        root = s.root
        if leaf:
            if nested and blame_ept(d, m, t, e, leaf_address(g, s.value, la, guest_level_shift(g, level)), x):
                return root
            break
    if nested and not g.levels and blame_ept(d, m, t, e, la, x):
        return root
    # no entry is other than a walk last read it: the translation is another root's, or an upper entry was read since
    x.owed = OWED_INVVPID if d.shadow else OWED_CR3 if root != g.root else OWED_INVLPG
    return root


cdef bint clean(const GuestPath *path, const Walk *w, const Ept *e) noexcept nogil:
    # a write by this walk has a dirty flag to set
    return ((path.level <= path.top and not path.entry[path.level] & D)
            or (e != NULL and e.ad and not w.ept_entry & e.dirty))


cdef bint walk_either(Detector *d, Mem *m, const Paging *g, uint64_t la, int acc, Walk *w) noexcept nogil:
    # of agile paging; whether a write by this walk has a dirty flag to set
    cdef Agile a = d.agile[0]
    cdef bint write = acc == ACC_W or acc == ACC_RW, unset = False
    a.guest.write_ad = 0
    a.ept.write_ad = 0
    a.ept.pml_index = NULL
    if write and walk_agile(m, g, &a, NULL, la, ACC_R, w, NULL, &a.nested) == FAULT_NONE:
        unset = not w.leaf & D or (a.nested and a.ept.ad and not w.ept_entry & a.ept.dirty)
    walk_agile(m, g, &a, NULL, la, acc, w, NULL, &a.nested)
    return unset


cdef void stale_use(Detector *d, Mem *m, const Tlb *t, const Paging *g, const Ept *e, uint64_t la, int acc,
                    bint is_global, uint64_t pa, uint64_t event) noexcept nogil:
    cdef Paging paging = g[0]
    cdef Ept ept
    cdef GuestPath path
    cdef Walk walk
    cdef Stale x
    cdef uint64_t root
    cdef bint dirty
    d.uses += 1
    paging.write_ad = 0
    if e != NULL:
        ept = e[0]
        ept.write_ad = 0
        ept.pml_index = NULL
    if d.agile != NULL and g.levels >= 4:
        dirty = walk_either(d, m, &paging, la, acc, &walk)
    else:
        walk_path(m, &paging, &ept if e != NULL and d.agile == NULL else NULL, la, acc, &walk, &path)
        dirty = (acc == ACC_W or acc == ACC_RW) and clean(&path, &walk, e if d.agile == NULL else NULL)
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
    root = find_change(d, m, t, g, e, la, GLOBAL if is_global else t.pcid, &x)
    if is_global and x.entry == ONES and root != g.root:
        # a global page is the same from every root: this one's tables may lack it, or EPT may not map them yet
        paging.root = paging.cr3 = root
        if paging.mode == MODE_PAE and not (e != NULL and e.npt):
            load_pdptes(m, &paging, &ept if e != NULL else NULL, &walk, NULL)
        walk_silent(m, &paging, &ept if e != NULL else NULL, la, acc, &walk)
        if walk.fault == FAULT_NONE and walk.pa == pa:
            return
    if d.svm and x.owed >= OWED_INVVPID:
        x.owed = OWED_TLB_CONTROL
    d.found += 1
    d.by_kind[x.kind] += 1
    d.by_owed[x.owed] += 1
    d.last_kind = x.kind
    d.last_owed = x.owed
    d.last_kept = d.examples < STALE_EXAMPLES
    if d.last_kept:
        d.example[d.examples] = x
        d.examples += 1
