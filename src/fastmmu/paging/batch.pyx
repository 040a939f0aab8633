"""The batch walk: blocks of addresses, and what the upper levels say of a region."""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset

from fastmmu.arch.bits cimport EPT_R, EPT_W, EPT_X, EPT_XU, FRAME, ONES, A, D, P, PS, RW, US, XD
from fastmmu.arch.types cimport (
    FAULT_BUS, FAULT_EPT_MISCONFIG, FAULT_GP, FAULT_NONE, FAULT_PF, MODE_4, MODE_NONE, MODE_PAE, Ept, GuestPath, Paging,
    Walk,
)
from fastmmu.paging.ept cimport NEED_R, EptLeaf, ept_walk
from fastmmu.paging.guest cimport (
    canonical, entry_address, is_leaf, key_of, leaf_address, level_shift, read_entry, table_address,
)
from fastmmu.paging.memory cimport mem_holds
from fastmmu.paging.walk cimport walk_path, walk_silent


# ---- regions ----------------------------------------------------------------------------------------------

cdef uint64_t native_region(Query *q, uint64_t la) noexcept nogil:
    # Without EPT the tables say it themselves; what happens at the PTE is asked for each address.
    cdef const Paging *g = q.g
    cdef uint64_t every = ONES, any_ = 0, table = g.root, value = 0, entry, at
    cdef int level = g.levels, shift
    if g.mode >= MODE_4 and not canonical(la, g.la_bits):
        return no_region(FAULT_GP)
    if g.mode == MODE_PAE:
        table = g.pdpte[la >> 30 & 3]
        if not table & P:
            return no_region(FAULT_PF)
        table &= g.frame
    while level > 1 and not value:
        shift = level_shift(g, level)
        at = entry_address(g, table, la, shift)
        if not mem_holds(q.m, at, <uint64_t> 1 << g.entry_shift):
            return no_region(FAULT_BUS)
        entry = read_entry(q.m, g, at)
        if not entry & P or entry & g.rsvd[level][entry >> 7 & 1]:
            return no_region(FAULT_PF)
        every &= entry
        any_ |= entry
        if is_leaf(g, entry, level):
            value = leaf_address(g, entry, la, shift) >> q.region_shift << q.region_shift
            value |= PS | P | <uint64_t> key_of(g, entry) << 59
        table = table_address(g, entry)
        level -= 1
    if not value:
        if not mem_holds(q.m, table, 4096):
            return no_region(FAULT_BUS)
        value = table | P
    return value | (every & (US | RW)) | (any_ & XD) | A | D


cdef uint64_t guest_region(Query *q, uint64_t la) noexcept nogil:
    # What the path of one exact walk tells of its region: it got to the PTE only if every entry above, and every EPT
    # translation of a table, is in order.
    cdef const Paging *g = q.g
    cdef Walk w
    cdef GuestPath path
    cdef uint64_t every = ONES, any_ = 0, entry, table, value
    cdef int level
    if q.e == NULL:
        return native_region(q, la)
    walk_path(q.m, g, q.e, la, q.acc, &w, &path)
    for level in range(path.top, path.level, -1):
        every &= path.entry[level]
        any_ |= path.entry[level]
    level = path.level
    if level > path.top:
        return no_region(w.fault)
    entry = path.entry[level]
    table = path.hpa[level] & FRAME
    if g.lazy_upper_a and q.want and not every & A:
        return no_region(FAULT_NONE)    # whether A may be set above is asked after the PTE has been judged
    if level == 1:
        if not mem_holds(q.m, table, 4096):
            return no_region(FAULT_BUS)
        value = table | P
    elif entry & P and entry & PS and g.large_ok[level] and w.fault != FAULT_PF:
        every &= entry
        any_ |= entry
        value = leaf_address(g, entry, la, level_shift(g, level)) >> q.region_shift << q.region_shift
        value |= PS | P | (entry & (A | D)) | <uint64_t> key_of(g, entry) << 59
    else:
        return no_region(w.fault)
    value |= (every & (US | RW)) | (any_ & XD)
    if not q.want or path.ept[level] & EPT_W:
        value |= A | D
    return value


cdef uint64_t ept_region(Query *q, uint64_t gpa) noexcept nogil:
    # as above; a region without translations has no rights, and the exact walk then says why
    cdef const Ept *e = q.e
    cdef EptLeaf leaf
    cdef Walk w
    cdef uint64_t every, entry, table, offset
    cdef int level, fault
    memset(&w, 0, sizeof(w))
    fault = ept_walk(q.m, e, NULL, gpa, NEED_R, True, 0, 0, &leaf, &w, NULL)
    level = leaf.level
    if level > leaf.top:
        return PS
    entry = leaf.entry[level]
    table = leaf.at[level] & FRAME
    every = leaf.every[level + 1] if level < leaf.top else ONES
    if level == 1 and mem_holds(q.m, table, 4096):
        return table | (every & (EPT_R | EPT_W | EPT_X | EPT_XU))
    if level > 1 and entry & PS and fault != FAULT_EPT_MISCONFIG:
        every &= entry
        offset = (<uint64_t> 1 << (12 + 9 * (level - 1))) - 1
        return (((entry & e.frame & ~offset) | (gpa & offset)) >> EPT_REGION_SHIFT << EPT_REGION_SHIFT
                | PS | (every & (EPT_R | EPT_W | EPT_X | EPT_XU)))
    return PS


# ---- blocks -----------------------------------------------------------------------------------------------

cdef inline void exact(Query *q, uint64_t la, uint64_t *pa, uint8_t *fault) noexcept nogil:
    cdef Walk w
    walk_silent(q.m, q.g, q.e, la, q.acc, &w)
    pa[0] = w.pa
    fault[0] = w.fault


cdef inline void block(Query *q, const uint64_t *va, uint64_t *pa, uint8_t *fault, int n, int entry_shift,
                       bint nested) noexcept nogil:
    # entry_shift 0: paging is off
    cdef uint64_t gpa[LANES]
    cdef uint64_t held[LANES]
    cdef uint64_t odd[LANES]
    cdef uint64_t ept_odd[LANES]
    cdef uint64_t amiss = 0, ept_amiss = 0
    cdef int code, j
    for j in range(n):
        fault[j] = FAULT_NONE
    if entry_shift:
        amiss = guest_stage(q, va, &gpa[0] if nested else pa, held, odd, n, entry_shift, nested)
        if nested and rare(amiss != 0):
            for j in range(n):
                if odd[j]:
                    gpa[j] = 0
    else:
        for j in range(n):
            gpa[j] = va[j] & q.la_mask
            odd[j] = 0
    if nested:
        ept_amiss = ept_stage(q, gpa, pa, ept_odd, n)
    if rare((amiss | ept_amiss) != 0):
        for j in range(n):
            if odd[j]:
                code = FAULT_PF if odd[j] & ~(A | D) else FAULT_NONE
                if held[j] & PS and not held[j] & P:
                    code = held[j] >> CODE_SHIFT & 0xFF
                if code:
                    pa[j] = ONES
                    fault[j] = <uint8_t> code
                else:
                    exact(q, va[j], pa + j, fault + j)
            elif nested and ept_odd[j]:
                exact(q, va[j], pa + j, fault + j)


cdef inline void blocks(Query *q, const uint64_t *va, uint64_t *pa, uint8_t *fault, uint64_t n, int entry_shift,
                        bint nested) noexcept nogil:
    cdef uint64_t i = 0
    while i + LANES <= n:
        block(q, va + i, pa + i, fault + i, LANES, entry_shift, nested)
        i += LANES
    if i < n:
        block(q, va + i, pa + i, fault + i, <int> (n - i), entry_shift, nested)


cdef void translate_batch(Query *q, const uint64_t *va, uint64_t *pa, uint8_t *fault, uint64_t n) noexcept nogil:
    # one body for each size of entry, with and without EPT
    cdef uint64_t i
    if q.g.mode == MODE_NONE:
        if q.e != NULL:
            blocks(q, va, pa, fault, n, 0, True)
        else:
            for i in range(n):
                exact(q, va[i], pa + i, fault + i)
    elif q.g.entry_shift == 3:
        if q.e != NULL:
            blocks(q, va, pa, fault, n, 3, True)
        else:
            blocks(q, va, pa, fault, n, 3, False)
    elif q.e != NULL:
        blocks(q, va, pa, fault, n, 2, True)
    else:
        blocks(q, va, pa, fault, n, 2, False)
