"""Kernel of the walk of agile paging: shadow tables above, the guest's own over EPT below. Header: paging/agile.pxd."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from fastmmu.arch.bits cimport FRAME, ONES, A, D, G, P, RW, US, XD
from fastmmu.arch.pferr cimport PF_P, PF_RSVD
from fastmmu.arch.types cimport (
    ACC_RW, ACC_W, FAULT_BUS, FAULT_GP, FAULT_NONE, STEP_GUEST, GuestPath,
)
from fastmmu.paging.ept cimport ept_replace, step
from fastmmu.paging.guest cimport (
    canonical, entry_address, final, guest_level_shift, guest_walk_, is_leaf, key_of, leaf_address, page_fault,
    pat_index, permission, read_entry, set_flags, table_address,
)
from fastmmu.paging.memory cimport mem_holds
from fastmmu.paging.walk_caches cimport TABLE_NESTED, Cached, find_table, next_table
from fastmmu.tlb.lookup cimport tlb_psc_drop, tlb_psc_fills


cdef struct Down:               # the way down the shadow tables
    int top, lowest             # levels of the entries to be cached, from - to; lowest > top: none
    int level                   # of the table at which the walk goes on
    uint64_t way                # to it, as paging-structure caches have it; 0: the walk ended in the shadow tables
    int nested                  # levels that are the guest's own


cdef int shadow_levels(Mem *m, const Paging *g, Cached *c, uint64_t la, int acc, Walk *w, GuestPath *path,
                       Steps *steps, Down *d) noexcept nogil:
    # from the root, or what is cached, to the leaf or to where the walk switches
    cdef uint64_t table = g.root, every = ONES, any_ = 0, hpa, entry, now, cached = 0
    cdef uint32_t code
    cdef int level = g.levels, shift, fault
    if c != NULL:
        cached = find_table(c, la, g.levels, &level)
    d.top = path.top = level
    d.lowest = level + 1
    d.level = level
    d.way = 0
    if cached:
        if cached & TABLE_NESTED:
            d.way = cached
            return FAULT_NONE
        table = cached & FRAME
        every = cached | ~(US | RW)
        any_ = cached & XD
    while True:
        shift = guest_level_shift(g, level)
        hpa = entry_address(g, table, la, shift)
        w.gpa = hpa
        if not mem_holds(m, hpa, 8):
            return FAULT_BUS
        entry = read_entry(m, g, hpa)
        path.level = level
        path.hpa[level] = path.gpa[level] = hpa
        path.entry[level] = entry
        path.ept[level] = ONES
        w.guest_refs += 1
        if steps != NULL:
            step(steps, STEP_GUEST, level, level, hpa, hpa, entry)
        if not entry & P:
            return page_fault(g, w, acc, 0)
        if entry & g.rsvd[level][entry >> 7 & 1]:
            return page_fault(g, w, acc, PF_P | PF_RSVD)
        every &= entry
        any_ |= entry
        if is_leaf(g, entry, level):
            break
        if not entry & A:
            fault = set_flags(m, g, NULL, path, level, 0, A, &now, w, steps)
            if fault:
                return fault
        table = table_address(g, entry)
        if c != NULL:
            c.link[level] = next_table(table, every, any_, True) | (TABLE_NESTED if entry & AGILE_SWITCH else 0)
            d.lowest = level
        level -= 1
        d.level = level
        if entry & AGILE_SWITCH:
            d.way = next_table(table, every, any_, True)
            return FAULT_NONE

    w.us = every & US != 0
    w.rw = every & RW != 0
    w.xd = any_ & XD != 0
    w.guest_shift = shift
    w.leaf = entry
    w.global_page = g.pge and entry & G != 0
    w.pat = pat_index(entry, level)
    w.pkey = key_of(g, entry)
    w.gpa = leaf_address(g, entry, la, shift)
    if permission(g, w, acc, &code):
        return page_fault(g, w, acc, code)
    hpa = w.gpa
    fault = set_flags(m, g, NULL, path, level, 0, A | (D if acc == ACC_W or acc == ACC_RW else 0), &now, w, steps)
    if fault:
        return fault
    w.leaf = now
    w.dirty = now & D != 0
    return final(m, g, NULL, NULL, la, hpa, acc, True, w, steps)


cdef int nested_levels(Mem *m, Agile *a, Cached *c, uint64_t la, int acc, Walk *w, GuestPath *path, Steps *steps,
                       const Down *d) noexcept nogil:
    # the guest's own, from a table known in host memory; what the shadow levels read is added
    cdef uint32_t refs = w.guest_refs, writes = w.ad_writes
    cdef int fault = guest_walk_(m, &a.guest, &a.ept, c, la, acc, w, path, steps, d.way, d.level)
    w.guest_refs += refs
    w.ad_writes += writes
    return fault


cdef int walk_from(Mem *m, const Paging *hw, Agile *a, Cached *c, uint64_t la, int acc, Walk *w, Steps *steps,
                   int *nested) noexcept nogil:
    cdef GuestPath path
    cdef Down d
    cdef int fault, i
    memset(w, 0, sizeof(Walk))
    memset(&d, 0, sizeof(Down))
    path.top = 0
    path.level = 1
    path.updated = 0
    nested[0] = 0
    d.lowest = 1
    if c != NULL:
        c.la = la
        c.top = c.n = 0
        c.lowest = 6
    if not canonical(la, hw.la_bits):
        return FAULT_GP
    if a.root == ROOT_SHADOW:
        fault = shadow_levels(m, hw, c, la, acc, w, &path, steps, &d)
    else:
        fault = FAULT_NONE
        d.level = a.guest.levels
        d.way = next_table(a.root_hpa, ONES, 0, True)
        if c != NULL:
            d.way = find_table(c, la, a.guest.levels, &d.level) or d.way
    if fault == FAULT_NONE and d.way:
        nested[0] = d.level
        fault = nested_levels(m, a, c, la, acc, w, &path, steps, &d)
        if c != NULL:
            for i in range(c.lowest, c.top + 1):
                c.link[i] |= TABLE_NESTED
    if c != NULL and d.lowest <= d.top:         # from the shadow tables' root on
        c.top = d.top
        c.lowest = min(c.lowest, d.lowest)
    return fault


cdef int walked(Mem *m, const Paging *hw, Agile *a, Cached *c, uint64_t la, int acc, Walk *w, Steps *steps,
                int *nested) noexcept nogil:
    # what the walk leaves in the caches, as in guest_walk() of paging/guest.pxd
    w.fault = walk_from(m, hw, a, c, la, acc, w, steps, nested)
    if c != NULL and not c.look and w.fault == FAULT_NONE:
        if c.top:
            tlb_psc_drop(c.tlb, c.la)
        ept_replace(c, &a.ept)
    if c != NULL and c.lowest <= c.top and (c.look or w.fault == FAULT_NONE):
        tlb_psc_fills(c.tlb, c.la, c.top, c.lowest, c.link)
    if w.fault != FAULT_NONE:
        w.pa = ONES
    return w.fault


cdef int walk_agile(Mem *m, const Paging *hw, Agile *a, Tlb *t, uint64_t la, int acc, Walk *w, Steps *steps,
                    int *nested) noexcept nogil:
    # A walk that fails after it used what was cached is made again from memory, as walk_cached() makes it.
    cdef Cached c
    cdef uint32_t guest_refs, ept_refs, ad_writes
    a.guest.user, a.guest.implicit, a.guest.ac = hw.user, hw.implicit, hw.ac
    a.guest.pkr_user, a.guest.pkr_super = hw.pkr_user, hw.pkr_super
    if t == NULL:
        return walked(m, hw, a, NULL, la, acc, w, steps, nested)
    c.tlb = t
    c.look = True
    c.used = False
    if walked(m, hw, a, &c, la, acc, w, steps, nested) == FAULT_NONE or not c.used:
        return w.fault
    guest_refs, ept_refs, ad_writes = w.guest_refs, w.ept_refs, w.ad_writes
    c.look = False
    if walked(m, hw, a, &c, la, acc, w, steps, nested):
        w.guest_refs = w.ept_refs = 0
    w.guest_refs += guest_refs
    w.ept_refs += ept_refs
    w.ad_writes += ad_writes
    return w.fault
