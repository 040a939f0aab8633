# The EPT walk: guest-physical to host-physical (ept.md §2-§4, §7); and that of AMD's nested paging, whose entries are
# other data of `Ept`, and what is none of paging/npt.pxd.

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmmu.arch.bits cimport (
    EPT_A, EPT_D, EPT_IPAT, EPT_R, EPT_SPP, EPT_W, EPT_X, EPT_XU, FRAME, PS, SPP_RESERVED, SUPPRESS_VE, level_shift,
    pt_index,
)
from fastmmu.arch.types cimport (
    ACC_R, ACC_W, ACC_X, FAULT_APIC, FAULT_BUS, FAULT_EPT_MISCONFIG, FAULT_EPT_VIOLATION, FAULT_NONE, FAULT_PML_FULL,
    FAULT_NPF, FAULT_SPP, MAX_STEPS, STEP_EPT, STEP_EPT_AD, STEP_SPP, Ept, Mem, PmlQuery, Steps, Walk,
)
from fastmmu.paging.memory cimport mem_holds, mem_read64, mem_write64
from fastmmu.paging.npt cimport npf_code, npt_entries, npt_rights, npt_type
from fastmmu.paging.walk_caches cimport Cached, EptLeaf, Mapping, find_ept_table, find_mapping, mapping_value
from fastmmu.tlb.lookup cimport tlb_epsc_drop, tlb_epsc_fill, tlb_gpm_drop, tlb_gpm_fill

cdef enum:
    NEED_R = 1              # the order of the entry's bits and of the qualification's
    NEED_W = 2
    NEED_X = 4
    QUAL_GLA = 1 << 7
    QUAL_TRANSLATED = 1 << 8
    QUAL_SPP_MISS = 1 << 11     # of exit 66: an invalid entry; 0: a reserved bit
    QUAL_APIC_PHYSICAL = 15 << 12   # of exit 44: a guest-physical access, not during event delivery

cdef enum Stop:                 # what stopped a walk
    ABSENT = 0
    MALFORMED = 1
    DENIED = 2

cdef enum EptpDefect:
    EPTP_VALID = 0
    EPTP_TYPE = 1
    EPTP_LENGTH = 2
    EPTP_AD = 3
    EPTP_RESERVED = 4
    EPTP_ADDRESS = 5


cdef inline int eptp_defect(uint64_t value, int maxphyaddr, bint ad_supported, bint five_levels) noexcept nogil:
    # what VM entry, INVEPT and VMFUNC refuse an EPTP for (ept.md §1)
    if value & 7 != 0 and value & 7 != 6:
        return EPTP_TYPE
    if value >> 3 & 7 != 3 and not (value >> 3 & 7 == 4 and five_levels):
        return EPTP_LENGTH
    if value & 0x40 and not ad_supported:
        return EPTP_AD
    if value & 0xF80:
        return EPTP_RESERVED
    if value >> maxphyaddr:
        return EPTP_ADDRESS
    return EPTP_VALID


cdef inline void ept_of(Ept *e, uint64_t eptp, int maxphyaddr, bint large_1g, bint mbec) noexcept nogil:
    # the walk that an EPTP stands for (ept.md §1, §3 rule 3); what it does not say is off
    cdef int level
    memset(e, 0, sizeof(Ept))
    e.frame = FRAME & ((1ULL << maxphyaddr) - 1)
    e.root = eptp & e.frame
    e.levels = (eptp >> 3 & 7) + 1
    e.ad = eptp >> 6 & 1
    e.accessed = EPT_A
    e.dirty = EPT_D
    e.mbec = mbec
    e.present = EPT_R | EPT_W | EPT_X | (EPT_XU if mbec else 0)      # ept.md §2
    e.large_ok[2] = 1
    e.large_ok[3] = large_1g
    for level in range(1, 6):
        e.rsvd[level][0] = FRAME & ~e.frame | (0x78 if level > 1 else 0)
        e.rsvd[level][1] = FRAME & ~e.frame
        if level > 1 and not e.large_ok[level]:
            e.rsvd[level][1] |= 0x78 | PS
    e.rsvd[2][1] |= 0x1FF000
    if large_1g:
        e.rsvd[3][1] |= 0x3FFFF000


cdef inline uint64_t need_of(int acc) noexcept nogil:
    # of a data access (ept.md §4)
    return NEED_X if acc == ACC_X else NEED_R if acc == ACC_R else NEED_W if acc == ACC_W else NEED_R | NEED_W


cdef inline uint64_t ept_entry_address(uint64_t table, uint64_t gpa, int level) noexcept nogil:
    return table + 8 * pt_index(gpa, level)


cdef inline void step(Steps *steps, int kind, int level, int guest_level,
                      uint64_t hpa, uint64_t gpa, uint64_t entry) noexcept nogil:
    if steps.n < MAX_STEPS:
        steps.step[steps.n].hpa = hpa
        steps.step[steps.n].gpa = gpa
        steps.step[steps.n].entry = entry
        steps.step[steps.n].kind = kind
        steps.step[steps.n].level = level
        steps.step[steps.n].guest_level = guest_level
        steps.step[steps.n].pad = 0
        steps.n += 1


cdef inline uint64_t ept_bad_type(uint64_t leaf) noexcept nogil:
    # nonzero for the memory types 2, 3 and 7, which do not exist (ept.md §3); no branch, for loops over entries
    return leaf >> 4 & (~(leaf >> 5) | leaf >> 3) & 1


cdef inline bint ept_misconfigured(const Ept *e, uint64_t entry, int level, bint leaf) noexcept nogil:
    # of a present entry, each by its own bits (ept.md §3; of an NPT reserved ones alone, P being R)
    if entry & e.rsvd[level][leaf]:
        return True
    if not (entry & EPT_R) and (entry & EPT_W or not e.xo):
        return True
    return leaf and ept_bad_type(entry) and not e.npt


cdef inline uint64_t ept_rights(const Ept *e, uint64_t entries) noexcept nogil:
    # R, W, X and XU of entries that were flipped and ANDed, where an EPT entry has them
    return npt_rights(entries) if e.npt else entries


cdef inline int ept_violation(Walk *w, uint64_t need, uint64_t entries, bint mbec, uint64_t bits) noexcept nogil:
    w.qual = need | (entries & 7) << 3 | bits
    if mbec:
        w.qual |= (entries >> 10 & 1) << 6
    return FAULT_EPT_VIOLATION


cdef inline uint64_t ept_kept(const Ept *e, uint64_t rights) noexcept nogil:
    # those of them that caches keep
    return rights & (EPT_R | EPT_W | EPT_X | (EPT_XU if e.mbec else 0))


cdef inline int ept_stopped(const Ept *e, Walk *w, int why, uint64_t need, uint64_t entries,
                            uint64_t bits) noexcept nogil:
    # the fault of a walk; entries: the rights of those used
    if e.npt:
        w.qual = npf_code(e, need & NEED_W, need & NEED_X, bits & QUAL_TRANSLATED, why != ABSENT, why == MALFORMED)
        return FAULT_NPF
    if why == MALFORMED:
        return FAULT_EPT_MISCONFIG
    if why == ABSENT:
        return ept_violation(w, need, 0, False, bits)
    return ept_violation(w, need, entries, e.mbec, bits)


cdef inline uint64_t ept_denied(const Ept *e, uint64_t need, bint user, uint64_t entries) noexcept nogil:
    cdef uint64_t denied = need & ~entries & 3
    if need & NEED_X and not entries & (EPT_XU if e.mbec and user else EPT_X):
        denied |= NEED_X
    return denied


cdef inline bint on_apic_page(const Ept *e, uint64_t hpa) noexcept nogil:
    return hpa | 0xFFF == e.apic_access


cdef inline int apic_access(Walk *w, uint64_t gpa, uint64_t hpa) noexcept nogil:
    # a paging structure of the guest lies on the APIC-access page: an exit in place of the reference (apic.md §4)
    w.gpa = gpa
    w.qual = (hpa & 0xFFF) | QUAL_APIC_PHYSICAL
    return FAULT_APIC


cdef inline bint from_mapping(const Ept *e, Cached *c, uint64_t gpa, uint64_t need, bint user,
                              EptLeaf *out) noexcept nogil:
    # a guest-physical mapping that is cached and suffices; one that does not is dropped
    cdef Mapping held
    if not find_mapping(c, gpa, &held):
        return False
    if ept_denied(e, need, user, held.rights) or (need & NEED_W and not held.dirty):
        tlb_gpm_drop(c.tlb, gpa)
        return False
    c.used = True
    out.hpa = held.hpa
    out.entries = held.rights
    out.leaf = held.type
    out.shift = held.shift
    out.dirty = held.dirty
    return True


cdef inline int ept_walk(Mem *m, const Ept *e, Cached *c, uint64_t gpa, uint64_t need, bint user, uint64_t bits,
                         int guest_level, EptLeaf *out, Walk *w, Steps *steps) noexcept nogil:
    # need: NEED_* of the access; user: user-mode linear address (MBEC); bits: qualification bits 7..11 of a violation.
    # Top-down; the first not-present or malformed entry decides, rights are judged at the leaf (ept.md §4).
    # c: caches, or NULL.
    w.gpa = gpa
    w.ept_entry = SUPPRESS_VE
    out.top = 0
    out.level = 1
    if e.levels == 4 and gpa >> 48:
        return ept_stopped(e, w, ABSENT, need, 0, bits)
    return ept_walk_(m, e, c, gpa, need, user, bits, guest_level, out, w, steps)


cdef inline void ept_keep(Cached *c, const Ept *e, uint64_t gpa, const EptLeaf *found) noexcept nogil:
    # in the caches, that a walk of gpa led there
    cdef uint64_t rights
    cdef int i
    for i in range(found.top, found.level, -1):
        rights = ept_kept(e, ept_rights(e, found.every[i]))
        tlb_epsc_fill(c.tlb, gpa, i, (found.entry[i] & FRAME) | rights | <uint64_t> 1 << 63)
    rights = ept_kept(e, found.entries)
    tlb_gpm_fill(c.tlb, gpa, mapping_value(found.hpa, (found.shift - 12) // 9, rights, found.leaf, found.dirty))


cdef inline void ept_replace(Cached *c, const Ept *e) noexcept nogil:
    # the same of all walks that one from memory made
    cdef int i
    for i in range(c.n):
        tlb_gpm_drop(c.tlb, c.gpa[i])
        tlb_epsc_drop(c.tlb, c.gpa[i])
        ept_keep(c, e, c.gpa[i], &c.walked[i])


cdef inline int ept_walk_(Mem *m, const Ept *e, Cached *c, uint64_t gpa, uint64_t need, bint user, uint64_t bits,
                          int guest_level, EptLeaf *out, Walk *w, Steps *steps) noexcept nogil:
    cdef uint64_t table = e.root, entry, ptr, entries = ~(<uint64_t> 0), want, offset, cached = 0
    cdef uint64_t present = e.present, flip = e.flip, allowed, denied
    cdef int level = e.levels, top, shift, i
    cdef bint leaf
    cdef uint16_t index

    want = (e.accessed | (e.dirty if need & NEED_W else 0)) if e.ad else 0
    if c != NULL and c.look:
        if from_mapping(e, c, gpa, need, user, out):
            return FAULT_NONE
        cached = find_ept_table(c, gpa, e.levels, &level)
        if cached:
            table = cached & e.frame
            entries = npt_entries(cached) if e.npt else cached | ~(<uint64_t> 7 | EPT_XU)
    top = out.top = level
    out.level = top + 1
    while True:
        ptr = ept_entry_address(table, gpa, level)
        if not mem_holds(m, ptr, 8):
            w.pa = ptr
            return FAULT_BUS
        entry = mem_read64(m, ptr)
        w.ept_refs += 1
        if steps != NULL:
            step(steps, STEP_EPT, level, guest_level, ptr, gpa, entry)
        w.ept_entry = entry
        entries &= entry ^ flip
        out.level = level
        out.at[level] = ptr
        out.entry[level] = entry
        out.every[level] = entries
        if not entry & present:
            return ept_stopped(e, w, ABSENT, need, 0, bits)
        leaf = level == 1 or entry & PS
        if ept_misconfigured(e, entry, level, leaf):
            return ept_stopped(e, w, MALFORMED, need, 0, bits)
        if leaf:
            break
        table = entry & e.frame
        level -= 1

    allowed = ept_rights(e, entries)
    denied = ept_denied(e, need, user, allowed)
    if denied:
        if not (e.spp and denied == NEED_W and level == 1 and entry & EPT_SPP and entries & EPT_R
                and bits & QUAL_TRANSLATED):
            return ept_stopped(e, w, DENIED, need, entries, bits)
        i = spp_walk(m, e, gpa, w, steps)
        if i != SPP_WRITABLE:
            return ept_violation(w, need, entries, e.mbec, bits) if i == FAULT_NONE else i

    if e.ad:
        if not entries & e.accessed or (entry & want) != want:
            if e.pml_query != NULL:
                if query_log(e, out, want):
                    return FAULT_PML_FULL
            elif e.pml_index != NULL and e.pml_index[0] > 511:
                return FAULT_PML_FULL
            if e.write_ad:
                for i in range(top, level, -1):
                    if not out.entry[i] & e.accessed and not used_above(out, i, top):
                        ept_set(m, w, steps, out.at[i], out.entry[i] | e.accessed, i, guest_level, gpa)
                if (entry & want) != want and not (want == e.accessed and used_above(out, level, top)):
                    ept_set(m, w, steps, out.at[level], entry | want, level, guest_level, gpa)
                    if e.pml_index != NULL and want & ~entry & EPT_D:
                        index = e.pml_index[0]
                        if not mem_holds(m, e.pml_base + 8 * index, 8):
                            w.pa = e.pml_base + 8 * index
                            return FAULT_BUS
                        mem_write64(m, e.pml_base + 8 * index, gpa & ~(<uint64_t> 0xFFF))
                        e.pml_index[0] = index - 1
            entry |= want

    shift = level_shift(level)
    offset = (<uint64_t> 1 << shift) - 1
    out.hpa = (entry & e.frame & ~offset) | (gpa & offset)
    out.entries = allowed
    out.leaf = npt_type(e, entry, level) << 3 if e.npt else entry
    out.shift = shift
    out.dirty = not e.ad or entry & e.dirty != 0
    if c != NULL and c.look:
        ept_keep(c, e, gpa, out)
    return FAULT_NONE


cdef enum:
    SPP_WRITABLE = -1


cdef inline int spp_walk(Mem *m, const Ept *e, uint64_t gpa, Walk *w, Steps *steps) noexcept nogil:
    # may the 128-byte sub-page be written (ept.md §10)? SPP_WRITABLE, FAULT_NONE for no, or the fault
    cdef uint64_t table = e.spptp & e.frame, entry = 0, ptr
    cdef int level
    for level in range(4, 0, -1):
        ptr = ept_entry_address(table, gpa, level)
        if not mem_holds(m, ptr, 8):
            w.pa = ptr
            return FAULT_BUS
        entry = mem_read64(m, ptr)
        if steps != NULL:
            step(steps, STEP_SPP, level, 0, ptr, gpa, entry)
        if level > 1:
            if not entry & 1:
                w.qual = QUAL_SPP_MISS
                return FAULT_SPP
            if entry & ~(e.frame | 1):
                w.qual = 0
                return FAULT_SPP
            table = entry & e.frame
    if entry & SPP_RESERVED:
        w.qual = 0
        return FAULT_SPP
    return SPP_WRITABLE if entry >> (2 * (gpa >> 7 & 31)) & 1 else FAULT_NONE


cdef inline bint query_log(const Ept *e, const EptLeaf *found, uint64_t want) noexcept nogil:
    # would the page-modification log be full at this point of the access?
    cdef PmlQuery *q = e.pml_query
    cdef uint64_t missing[6]
    cdef bint update = False
    cdef int i, leaf = found.level
    cdef uint32_t k
    for i in range(leaf, e.levels + 1):
        missing[i] = (want if i == leaf else EPT_A) & ~found.entry[i]
        for k in range(q.n):
            if q.hpa[k] == found.at[i]:
                missing[i] &= ~q.flags[k]
        update = update or missing[i]
    if not update:
        return False
    if <uint16_t> (e.pml_index[0] - q.logged) > 511:
        return True
    for i in range(leaf, e.levels + 1):
        if missing[i] and q.n < 40:
            q.hpa[q.n] = found.at[i]
            q.flags[q.n] = missing[i]
            q.n += 1
    q.logged += missing[leaf] & EPT_D != 0
    return False


cdef inline bint used_above(const EptLeaf *found, int level, int top) noexcept nogil:
    # a table that is its own: the entry of this level is that of an upper one, too, and A is set in it
    cdef int i
    for i in range(level + 1, top + 1):
        if found.at[i] == found.at[level]:
            return True
    return False


cdef inline void ept_set(Mem *m, Walk *w, Steps *steps, uint64_t ptr, uint64_t entry, int level, int guest_level,
                         uint64_t gpa) noexcept nogil:
    mem_write64(m, ptr, entry)
    w.ad_writes += 1
    if steps != NULL:
        step(steps, STEP_EPT_AD, level, guest_level, ptr, gpa, entry)


cdef inline void ept_facts(Walk *w, const EptLeaf *leaf) noexcept nogil:
    # what the final translation says of the page
    w.ept_shift = leaf.shift
    w.ept_rights = (leaf.entries & 7) | (leaf.entries >> 10 & 1) << 3
    w.ept_dirty = leaf.dirty
    w.ept_mt = leaf.leaf >> 3 & 7
    w.ept_ipat = leaf.leaf & EPT_IPAT != 0
