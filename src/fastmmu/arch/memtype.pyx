"""Memory types: what the PAT, the MTRRs and the EPT make of one access; header: arch/memtype.pxd."""

from libc.stdint cimport uint64_t

from fastmmu.arch.types cimport MODE_NONE, Ept, Paging, Walk


cdef int combined_type(int below, int pat) noexcept nogil:
    # the table of paging.md §8; `below`: the MTRRs' type, or that of the EPT leaf
    if pat == MT_UC:
        return MT_UC
    if pat == MT_WC:
        return MT_WC
    if pat == MT_UC_MINUS:
        return MT_WC if below == MT_WC or below == MT_WP else MT_UC
    if below == MT_UC:
        return MT_UC
    if below == MT_WC:
        return MT_WC if pat == MT_WB else MT_UC
    return below if pat == MT_WB else pat


cdef int nested_type(int host, int pat) noexcept nogil:
    # the table of npt.md §6: the guest's PAT over the host's; MTRRs of the host that say write-back
    if pat == MT_UC or pat == MT_WC:
        return pat
    if host == MT_UC or host == MT_UC_MINUS:
        return MT_UC
    if host == MT_WC:
        return MT_WC
    if pat == MT_UC_MINUS:
        return MT_UC
    if host == MT_WB or host == pat:
        return pat
    return host if pat == MT_WB else MT_UC


cdef int mtrr_type(const MtrrState *s, uint64_t pa) noexcept nogil:
    cdef int i, found = -1, kind
    if not s.enabled:
        return MT_UC
    if pa < 0x100000 and s.fixed_enabled:
        if pa < 0x80000:
            return s.fixed[pa >> 16]
        if pa < 0xC0000:
            return s.fixed[8 + ((pa - 0x80000) >> 14)]
        return s.fixed[24 + ((pa - 0xC0000) >> 12)]
    for i in range(s.n):
        if pa & s.mask[i] & ~(<uint64_t> 0xFFF) != s.base[i] & s.mask[i] & ~(<uint64_t> 0xFFF):
            continue
        kind = s.base[i] & 0xFF
        if found == -1 or found == kind:
            found = kind
        elif (found == MT_WT and kind == MT_WB) or (found == MT_WB and kind == MT_WT):
            found = MT_WT
        else:
            found = MT_UC                       # one of them UC, or undefined: UC
    return s.default_type if found == -1 else found


cdef int effective_type(const Paging *g, const MtrrState *s, const Walk *w, const Ept *e) noexcept nogil:
    # of the data access of a walk that translated; e: NULL without tables of a VMM
    cdef int pat
    if g.cd:
        return MT_UC
    if e != NULL and w.ept_ipat:
        return w.ept_mt
    pat = MT_WB if g.mode == MODE_NONE else g.pat >> (8 * w.pat) & 0xFF
    if e != NULL and e.npt:
        return nested_type(w.ept_mt, pat)
    return combined_type(w.ept_mt if e != NULL else mtrr_type(s, w.pa), pat)
