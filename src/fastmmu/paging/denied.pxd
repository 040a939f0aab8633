# Does memory deny, too, what a walk with caches was denied? As it mostly does: tables of 4 levels or 5 whose flags are
# set and whose entries allow everything, down to one that is not there. Anything else is left to the walk.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.bits cimport EPT_A, EPT_D, EPT_R, EPT_W, EPT_X, ONES, P, PS, RW, SUPPRESS_VE, US, XD, A, D
from fastmmu.arch.types cimport (
    ACC_RW, ACC_W, FAULT_EPT_VIOLATION, FAULT_NONE, MODE_4, Ept, Mem, Paging, Walk,
)
from fastmmu.paging.ept cimport (
    NEED_R, NEED_W, QUAL_GLA, QUAL_TRANSLATED, ept_bad_type, ept_violation, need_of, on_apic_page,
)
from fastmmu.paging.guest cimport is_leaf, key_of, leaf_address, page_fault, permission
from fastmmu.paging.memory cimport mem_read64

cdef enum:
    UNKNOWN = -1                # the walk has to say
    ALL = 7                     # EPT_R | EPT_W | EPT_X


cdef inline int ept_denies(const Mem *m, const Ept *e, uint64_t gpa, uint64_t need, uint64_t bits, uint64_t *hpa,
                           Walk *w) noexcept nogil:
    # FAULT_NONE: hpa; FAULT_EPT_VIOLATION; UNKNOWN
    cdef uint64_t table = e.root, entry, flags = EPT_A if e.ad else 0, last = m.nbytes - 4096, offset
    cdef int level = e.levels, shift
    while True:
        if table > last:
            return UNKNOWN
        shift = 9 * level + 3
        entry = mem_read64(m, table + ((gpa >> shift & 511) << 3))
        if not entry & ALL:
            w.gpa = gpa
            w.ept_entry = entry
            return ept_violation(w, need, 0, False, bits)
        if level == 1 or entry & PS:
            break
        if entry & e.rsvd[level][0] or (entry & (ALL | flags)) != ALL | flags:
            return UNKNOWN
        table = entry & e.frame
        level -= 1
    if entry & e.rsvd[level][1] or ept_bad_type(entry) or not entry & EPT_R:
        return UNKNOWN
    if need & ~entry:           # every entry above allows all
        w.gpa = gpa
        w.ept_entry = entry
        return ept_violation(w, need, entry, False, bits)
    if need & NEED_W:
        flags |= EPT_D if e.ad else 0
    if (entry & flags) != flags:
        return UNKNOWN
    offset = (<uint64_t> 1 << shift) - 1
    hpa[0] = (entry & e.frame & ~offset) | (gpa & offset)
    return FAULT_NONE


cdef inline int memory_denies(const Mem *m, const Paging *g, const Ept *e, uint64_t la, int acc,
                              Walk *w) noexcept nogil:
    # la is canonical. The fault, and what of w is read of one; UNKNOWN: nothing is said, and w may have changed
    cdef uint64_t table = g.root, gpa, hpa = 0, entry, every = ONES, some = 0, last = m.nbytes - 4096
    cdef uint64_t reading = NEED_R
    cdef uint32_t code
    cdef int level = g.levels, shift, fault
    if g.mode < MODE_4 or m.segments != NULL or m.nbytes < 4096:
        return UNKNOWN
    if e != NULL:
        if e.npt or e.mbec or e.spp:
            return UNKNOWN
        reading = NEED_R | NEED_W if e.ad else NEED_R
    w.pa = ONES
    w.ept_entry = SUPPRESS_VE if e != NULL else 0
    w.us = w.rw = w.xd = 0
    while True:
        shift = 9 * level + 3
        gpa = hpa = table + ((la >> shift & 511) << 3)
        if e != NULL:
            if gpa >> 48:
                return UNKNOWN
            fault = ept_denies(m, e, gpa, reading, QUAL_GLA, &hpa, w)
            if fault:
                w.fault = fault
                return fault
            if on_apic_page(e, hpa):
                return UNKNOWN
        if hpa > last:
            return UNKNOWN
        entry = mem_read64(m, hpa)
        if not entry & P:
            w.gpa = gpa
            w.fault = page_fault(g, w, acc, 0)
            return w.fault
        if entry & g.rsvd[level][entry >> 7 & 1] or not entry & A:
            return UNKNOWN
        every &= entry
        some |= entry
        if is_leaf(g, entry, level):
            break
        table = entry & g.frame
        level -= 1
    w.us = every & US != 0
    w.rw = every & RW != 0
    w.xd = some & XD != 0
    w.pkey = key_of(g, entry)
    w.gpa = gpa = leaf_address(g, entry, la, shift)
    if permission(g, w, acc, &code):
        w.fault = page_fault(g, w, acc, code)
        return w.fault
    if e == NULL or gpa >> 48:
        return UNKNOWN
    if e.ad_before_final and (acc == ACC_W or acc == ACC_RW) and not entry & D:
        return UNKNOWN
    w.fault = ept_denies(m, e, gpa, need_of(acc),
                         QUAL_GLA | QUAL_TRANSLATED | (w.us << 9 | w.rw << 10 | w.xd << 11 if e.adv_info else 0),
                         &hpa, w)
    return w.fault if w.fault == FAULT_EPT_VIOLATION else <int> UNKNOWN
