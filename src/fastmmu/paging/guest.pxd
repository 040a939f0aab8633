# The guest's own walk, in every paging mode, alone or over EPT (paging.md §2-§6, ept.md §5-§6).

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmmu.arch.bits cimport FRAME, ONES, A, D, EPT_W, G, P, PS, RW, US, XD
from fastmmu.arch.pferr cimport PF_ID, PF_P, PF_PK, PF_RSVD, PF_U, PF_W
from fastmmu.arch.types cimport (
    ACC_R, ACC_RW, ACC_W, ACC_X, FAULT_BUS, FAULT_GP, FAULT_NONE, FAULT_PF, MODE_4, MODE_32, MODE_NONE, MODE_PAE,
    STEP_DATA, STEP_GUEST, STEP_GUEST_AD, Ept, GuestPath, Mem, Paging, Steps, Walk,
)
from fastmmu.paging.ept cimport (
    NEED_R, NEED_W, QUAL_GLA, QUAL_TRANSLATED, EptLeaf, apic_access, ept_facts, ept_replace, ept_violation, ept_walk,
    need_of, on_apic_page, step,
)
from fastmmu.paging.memory cimport mem_holds, mem_read32, mem_read64, mem_write32, mem_write64
from fastmmu.paging.walk_caches cimport TABLE_WRITABLE, Cached, find_table, next_table
from fastmmu.tlb.lookup cimport tlb_psc_drop, tlb_psc_fills

cdef enum:
    PDPT = 0xFFFFFFE0           # CR3 of PAE paging: where the PDPTEs lie


cdef inline bint canonical(uint64_t la, int bits) noexcept nogil:
    cdef int64_t top = <int64_t> la >> (bits - 1)
    return top == 0 or top == -1


cdef inline bint reachable(uint64_t la, int bits) noexcept nogil:
    # an address that an instruction can name: 32 bits outside long mode, else a canonical one (paging.md §1.3)
    return la >> 32 == 0 if bits == 32 else canonical(la, bits)


cdef inline uint64_t pdpte_reserved(const Paging *g) noexcept nogil:
    # bits that must be 0 in a present PDPTE (paging.md §3.2)
    return 0x1E6 | ~(g.frame | 0xFFF)


cdef inline uint64_t root_address(const Paging *g, uint64_t cr3) noexcept nogil:
    # what CR3 points to (paging.md §2): the top table, with PAE paging the PDPTEs
    if g.mode >= MODE_4:
        return cr3 & g.frame
    return cr3 & (PDPT if g.mode == MODE_PAE else 0xFFFFF000U)


cdef inline int page_fault(const Paging *g, Walk *w, int acc, uint32_t code) noexcept nogil:
    if acc == ACC_W or acc == ACC_RW:
        code |= PF_W
    if g.user and not g.implicit:
        code |= PF_U
    if acc == ACC_X and g.id_bit:
        code |= PF_ID
    w.error_code = code
    return FAULT_PF


cdef inline int permission(const Paging *g, Walk *w, int acc, uint32_t *code) noexcept nogil:
    # paging.md §4.3; nonzero if denied, and then the P and PK bits of the error code
    cdef bint user = g.user and not g.implicit, write = acc == ACC_W or acc == ACC_RW
    cdef uint32_t key = (g.pkr_user if w.us else g.pkr_super) >> (2 * w.pkey)
    cdef bint pk = acc != ACC_X and (key & 1 or (key & 2 and write and (user or g.wp)))
    cdef bint denied = pk
    if user and not w.us:
        denied = True
    elif acc == ACC_X:
        denied = w.xd or (g.smep and not user and w.us)
    else:
        if write and not w.rw and (user or g.wp):
            denied = True
        if not user and w.us and g.smap and (g.implicit or not g.ac):
            denied = True
    code[0] = PF_P | (PF_PK if pk else 0)
    return denied


cdef inline int set_flags(Mem *m, const Paging *g, const Ept *e, GuestPath *path, int level, uint64_t ept_leaf,
                          uint64_t want, uint64_t *now, Walk *w, Steps *steps) noexcept nogil:
    # A (and D) of the entry read at a level; `now` becomes its value. The update is a write to the guest's table: with
    # EPT A/D flags off only now is the right to write it needed (ept.md §4, §6). ept_leaf: the entry that denies it.
    cdef uint64_t hpa = path.hpa[level]
    cdef int i
    now[0] = path.entry[level]
    if (now[0] & want) == want:
        return FAULT_NONE
    for i in range(level + 1, path.top + 1):    # a table that is its own: the same entry at two levels
        if path.hpa[i] == hpa:
            now[0] |= A
    if (now[0] & want) == want:
        return FAULT_NONE
    if e != NULL and not e.ad and not path.ept[level] & EPT_W and not e.ad_unchecked:
        w.gpa = path.gpa[level]
        w.ept_entry = ept_leaf
        return ept_violation(w, NEED_R | NEED_W, path.ept[level], e.mbec, QUAL_GLA)
    now[0] |= want
    if g.write_ad:
        # a locked read-modify-write: the entry may have changed since it was read, being an EPT entry as well
        now[0] = want | read_entry(m, g, hpa)
        if g.entry_shift == 2:
            mem_write32(m, hpa, <uint32_t> now[0])
        else:
            mem_write64(m, hpa, now[0])
        path.updated |= <uint32_t> 1 << level
        w.ad_writes += 1
        if steps != NULL:
            step(steps, STEP_GUEST_AD, level, level, hpa, path.gpa[level], now[0])
    return FAULT_NONE


cdef inline int guest_level_shift(const Paging *g, int level) noexcept nogil:
    # log2 of what one entry of the level covers
    return 12 + g.index_bits * (level - 1)


cdef inline uint64_t entry_address(const Paging *g, uint64_t table, uint64_t la, int shift) noexcept nogil:
    return table + ((la >> shift & ((<uint64_t> 1 << g.index_bits) - 1)) << g.entry_shift)


cdef inline uint64_t read_entry(const Mem *m, const Paging *g, uint64_t hpa) noexcept nogil:
    return mem_read64(m, hpa) if g.entry_shift == 3 else mem_read32(m, hpa)


cdef inline bint is_leaf(const Paging *g, uint64_t entry, int level) noexcept nogil:
    return level == 1 or (entry & PS and g.large_ok[level])


cdef inline uint32_t pat_index(uint64_t leaf, int level) noexcept nogil:
    return (leaf >> 3 & 3) | (leaf >> (7 if level == 1 else 12) & 1) << 2


cdef inline uint32_t key_of(const Paging *g, uint64_t leaf) noexcept nogil:
    return leaf >> 59 & 15 if g.mode >= MODE_4 else 0


cdef inline uint64_t table_address(const Paging *g, uint64_t entry) noexcept nogil:
    return entry & g.frame & (0xFFFFF000U if g.mode == MODE_32 else ONES)


cdef inline uint64_t leaf_address(const Paging *g, uint64_t entry, uint64_t la, int shift) noexcept nogil:
    cdef uint64_t offset = (<uint64_t> 1 << shift) - 1
    if g.mode == MODE_32 and shift == 22:       # PSE-36 (paging.md §3.1)
        entry = (entry & 0xFFC00000U) | ((entry >> 13) & ((<uint64_t> 1 << (g.pse36_bits - 32)) - 1)) << 32
        return entry | (la & offset)
    return (entry & g.frame & ~offset) | (la & offset)


cdef inline int guest_walk(Mem *m, const Paging *g, const Ept *e, Cached *c, uint64_t la, int acc, Walk *w,
                           GuestPath *path, Steps *steps) noexcept nogil:
    # Returns and stores a FaultCode. The order of references and of faults is ept.md §5-§6. c: caches, or NULL; steps:
    # where each reference is recorded, or NULL.
    if c != NULL:
        c.top = c.n = 0
        c.lowest = 6
    w.fault = guest_walk_(m, g, e, c, la, acc, w, path, steps, 0, 0)
    if c != NULL and not c.look and w.fault == FAULT_NONE:
        if c.top:
            tlb_psc_drop(c.tlb, c.la)
        ept_replace(c, e)
    if c != NULL and c.lowest <= c.top and (c.look or w.fault == FAULT_NONE):
        tlb_psc_fills(c.tlb, c.la, c.top, c.lowest, c.link)
    if w.fault != FAULT_NONE:
        w.pa = ONES
    return w.fault


cdef inline EptLeaf *ept_leaf_for(Cached *c, uint64_t gpa, EptLeaf *own) noexcept nogil:
    # where a walk of EPT puts what it found
    if c == NULL or c.look:
        return own
    c.gpa[c.n] = gpa
    c.n += 1
    return &c.walked[c.n - 1]


cdef inline int guest_walk_(Mem *m, const Paging *g, const Ept *e, Cached *c, uint64_t la, int acc, Walk *w,
                            GuestPath *path, Steps *steps, uint64_t start, int start_level) noexcept nogil:
    # start: the way to a table of start_level at which the walk begins, as paging-structure caches have it; 0: at the
    # root, or with what is cached (a constant 0 in the walks of paging/walk.pyx)
    cdef EptLeaf own
    cdef EptLeaf *found
    cdef uint64_t ept_leaf[6]   # the last of the EPT entries behind path.ept
    cdef uint64_t table, cached = 0, gpa, hpa, entry = 0, every = ONES, any_ = 0, want, now
    cdef uint64_t size = <uint64_t> 1 << g.entry_shift
    cdef uint32_t code
    cdef int level = g.levels, top, shift = 0, fault, i, lazy = 0
    cdef bint caches = c != NULL and g.index_bits == 9

    memset(w, 0, sizeof(Walk))
    path.top = 0
    path.level = 1
    path.updated = 0
    if g.mode >= MODE_4:
        if not canonical(la, g.la_bits):
            return FAULT_GP
    else:
        la &= 0xFFFFFFFFU
    if g.mode == MODE_NONE:
        w.us = w.rw = w.dirty = 1
        return final(m, g, e, c, la, la, acc, True, w, steps)
    table = g.root
    if g.mode == MODE_PAE and (e == NULL or not e.npt):
        table = g.pdpte[la >> 30 & 3]
        if not table & P:
            return page_fault(g, w, acc, 0)
        table &= g.frame
    if start:
        cached = start
        level = start_level
    elif caches:
        cached = find_table(c, la, g.levels, &level)
    if cached:
        table = cached & FRAME
        every = cached | ~(US | RW)
        any_ = cached & XD
    top = path.top = level
    path.level = top + 1
    if caches:
        c.la = la
        c.top = top
    if g.mode == MODE_PAE and not cached and e != NULL and e.npt:
        fault = pdpte_in_memory(m, g, e, c, la, acc, &table, w, steps)
        if fault:
            return fault

    while True:
        shift = guest_level_shift(g, level)
        gpa = entry_address(g, table, la, shift)
        hpa = gpa
        path.ept[level] = ONES
        ept_leaf[level] = 0
        if cached:              # the table's host-physical address; its guest-physical one matters to faults alone
            path.ept[level] = EPT_W if cached & TABLE_WRITABLE else 0
            cached = 0
        elif e != NULL:
            found = ept_leaf_for(c, gpa, &own)
            fault = ept_walk(m, e, c, gpa, NEED_R | NEED_W if e.ad else NEED_R, True, QUAL_GLA, level, found, w, steps)
            if fault:
                return fault
            hpa = found.hpa
            path.ept[level] = found.entries
            ept_leaf[level] = found.leaf
        if e != NULL and on_apic_page(e, hpa):
            return apic_access(w, gpa, hpa)
        if caches and level < top:
            c.link[level + 1] = next_table(hpa, every, any_, path.ept[level] & EPT_W != 0)
            if not lazy:
                c.lowest = level + 1
        if not mem_holds(m, hpa, size):
            w.gpa = gpa
            return FAULT_BUS
        entry = read_entry(m, g, hpa)
        path.level = level
        path.hpa[level] = hpa
        path.gpa[level] = gpa
        path.entry[level] = entry
        w.guest_refs += 1
        if steps != NULL:
            step(steps, STEP_GUEST, level, level, hpa, gpa, entry)
        if not entry & P:
            w.gpa = gpa
            return page_fault(g, w, acc, 0)
        if entry & g.rsvd[level][entry >> 7 & 1]:
            w.gpa = gpa
            return page_fault(g, w, acc, PF_P | PF_RSVD)
        every &= entry
        any_ |= entry
        if is_leaf(g, entry, level):
            break
        if not g.lazy_upper_a and not entry & A:
            fault = set_flags(m, g, e, path, level, ept_leaf[level], A, &now, w, steps)
            if fault:
                return fault
        if g.lazy_upper_a and not entry & A and not lazy:
            lazy = level        # from here on nothing may be cached before A is set (tlb.md R2)
        table = table_address(g, entry)
        level -= 1

    w.us = every & US != 0
    w.rw = every & RW != 0
    w.xd = any_ & XD != 0
    w.guest_shift = shift
    w.leaf = entry
    w.global_page = g.pge and entry & G != 0
    w.pat = pat_index(entry, level)
    w.pkey = key_of(g, entry)
    w.gpa = gpa = leaf_address(g, entry, la, shift)
    if permission(g, w, acc, &code):
        return page_fault(g, w, acc, code)

    want = A | (D if acc == ACC_W or acc == ACC_RW else 0)
    if e != NULL and not e.ad_before_final:
        fault = final(m, g, e, c, la, gpa, acc, False, w, steps)
        if fault:
            return fault
    if g.lazy_upper_a:
        for i in range(top, level, -1):
            fault = set_flags(m, g, e, path, i, ept_leaf[i], A, &now, w, steps)
            if fault:
                return fault
            if caches and i <= lazy:
                c.lowest = i
    fault = set_flags(m, g, e, path, level, ept_leaf[level], want, &now, w, steps)
    if fault:
        return fault
    w.leaf = now
    w.dirty = w.leaf & D != 0
    if e != NULL and not e.ad_before_final:
        w.gpa = gpa
        if steps != NULL:
            step(steps, STEP_DATA, 0, 0, w.pa, gpa, 0)
        return FAULT_NONE
    return final(m, g, e, c, la, gpa, acc, True, w, steps)


cdef inline int pdpte_in_memory(Mem *m, const Paging *g, const Ept *e, Cached *c, uint64_t la, int acc, uint64_t *table,
                                Walk *w, Steps *steps) noexcept nogil:
    # nested paging of AMD has no PDPTE registers: each walk reads the entry (npt.md §3)
    cdef EptLeaf own
    cdef uint64_t gpa = (g.cr3 & PDPT) + 8 * (la >> 30 & 3), entry
    cdef EptLeaf *leaf = ept_leaf_for(c, gpa, &own)
    cdef int fault = ept_walk(m, e, c, gpa, NEED_R | NEED_W, True, QUAL_GLA, 3, leaf, w, steps)
    if fault:
        return fault
    w.gpa = gpa
    if not mem_holds(m, leaf.hpa, 8):
        return FAULT_BUS
    entry = mem_read64(m, leaf.hpa)
    w.guest_refs += 1
    if steps != NULL:
        step(steps, STEP_GUEST, 3, 3, leaf.hpa, gpa, entry)
    if not entry & P:
        return page_fault(g, w, acc, 0)
    if entry & pdpte_reserved(g):
        return page_fault(g, w, acc, PF_P | PF_RSVD)
    table[0] = entry & g.frame
    return FAULT_NONE


cdef inline int final(Mem *m, const Paging *g, const Ept *e, Cached *c, uint64_t la, uint64_t gpa, int acc, bint access,
                      Walk *w, Steps *steps) noexcept nogil:
    # from the guest-physical address of the data to its host-physical address; access: it follows at once
    cdef EptLeaf own
    cdef EptLeaf *leaf
    cdef int fault
    w.gpa = w.pa = gpa
    w.ept_rights = 15
    w.ept_dirty = 1
    if e != NULL:
        leaf = ept_leaf_for(c, gpa, &own)
        fault = ept_walk(m, e, c, gpa, need_of(acc), w.us,
                         QUAL_GLA | QUAL_TRANSLATED | (w.us << 9 | w.rw << 10 | w.xd << 11 if e.adv_info else 0),
                         0, leaf, w, steps)
        if fault:
            return fault
        w.pa = leaf.hpa
        ept_facts(w, leaf)
    if access and steps != NULL:
        step(steps, STEP_DATA, 0, 0, w.pa, gpa, 0)
    return FAULT_NONE
