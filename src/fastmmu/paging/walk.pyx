"""Kernel of the walks of one address. Header: paging/walk.pxd; the walk itself: paging/guest.pxd, paging/ept.pxd."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastmmu.arch.bits cimport P
from fastmmu.arch.types cimport FAULT_BUS, FAULT_GP, FAULT_NONE, STEP_GUEST
from fastmmu.paging.denied cimport UNKNOWN, memory_denies
from fastmmu.paging.ept cimport NEED_R, EptLeaf, apic_access, ept_walk, on_apic_page, step
from fastmmu.paging.guest cimport PDPT, guest_walk, pdpte_reserved
from fastmmu.paging.memory cimport mem_holds, mem_read64
from fastmmu.paging.walk_caches cimport Cached


cdef int walk_path(Mem *m, const Paging *g, const Ept *e, uint64_t la, int acc, Walk *w,
                   GuestPath *path) noexcept nogil:
    if e == NULL:               # each call specialised
        return guest_walk(m, g, NULL, NULL, la, acc, w, path, NULL)
    return guest_walk(m, g, e, NULL, la, acc, w, path, NULL)


cdef int walk_silent(Mem *m, const Paging *g, const Ept *e, uint64_t la, int acc, Walk *w) noexcept nogil:
    cdef GuestPath path
    return walk_path(m, g, e, la, acc, w, &path)


cdef int walk_steps(Mem *m, const Paging *g, const Ept *e, uint64_t la, int acc, Walk *w, Steps *steps) noexcept nogil:
    cdef GuestPath path
    return guest_walk(m, g, e, NULL, la, acc, w, &path, steps)


cdef int with_caches(Mem *m, const Paging *g, const Ept *e, Cached *c, uint64_t la, int acc, Walk *w,
                     Steps *steps) noexcept nogil:
    cdef GuestPath path
    if steps != NULL:
        return guest_walk(m, g, e, c, la, acc, w, &path, steps)
    if e == NULL:               # each call specialised
        return guest_walk(m, g, NULL, c, la, acc, w, &path, NULL)
    return guest_walk(m, g, e, c, la, acc, w, &path, NULL)


cdef int walk_cached(Mem *m, const Paging *g, const Ept *e, Tlb *t, uint64_t la, int acc, Walk *w,
                     Steps *steps) noexcept nogil:
    # A walk that fails after it used what was cached is made again from memory (tlb.md §1.1). Its references count
    # where it succeeds; a processor that fails at once has made those of the first walk alone. steps: all are recorded.
    cdef Cached c
    cdef uint32_t guest_refs, ept_refs, ad_writes
    c.tlb = t
    c.look = True
    c.used = False
    if with_caches(m, g, e, &c, la, acc, w, steps) == FAULT_NONE or not c.used:
        return w.fault
    guest_refs = w.guest_refs
    ept_refs = w.ept_refs
    ad_writes = w.ad_writes
    if steps == NULL and memory_denies(m, g, e, la, acc, w) != UNKNOWN:
        w.guest_refs = guest_refs
        w.ept_refs = ept_refs
        w.ad_writes = ad_writes
        return w.fault
    c.look = False
    if with_caches(m, g, e, &c, la, acc, w, steps):
        w.guest_refs = w.ept_refs = 0
    w.guest_refs += guest_refs
    w.ept_refs += ept_refs
    w.ad_writes += ad_writes
    return w.fault


cdef int load_pdptes(Mem *m, Paging *g, const Ept *e, Walk *w, Steps *steps) noexcept nogil:
    # as MOV to CR3 loads them (paging.md §3.2)
    cdef EptLeaf leaf
    cdef uint64_t gpa = g.cr3 & PDPT, hpa = gpa
    cdef uint64_t reserved = pdpte_reserved(g)
    cdef uint64_t loaded[4]
    cdef int i, fault
    memset(w, 0, sizeof(Walk))
    if e != NULL:
        fault = ept_walk(m, e, NULL, gpa, NEED_R, True, 0, 3, &leaf, w, steps)
        if fault:
            return fault
        hpa = leaf.hpa
        if on_apic_page(e, hpa):
            return apic_access(w, gpa, hpa)
    w.gpa = gpa
    for i in range(4):
        if not mem_holds(m, hpa + 8 * i, 8):
            return FAULT_BUS
        loaded[i] = mem_read64(m, hpa + 8 * i)
        if steps != NULL:
            step(steps, STEP_GUEST, 3, 3, hpa + 8 * i, gpa + 8 * i, loaded[i])
    for i in range(4):
        if loaded[i] & P and loaded[i] & reserved:
            return FAULT_GP
    memcpy(g.pdpte, loaded, sizeof(loaded))
    return FAULT_NONE
