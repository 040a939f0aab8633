"""The walks of a processor with agile paging. Header: paging/agile_walks.pxd; the walk itself: paging/agile.pyx."""

from libc.stdint cimport uint64_t

from fastmmu.arch.types cimport FAULT_NONE, Mem, Paging, Steps, Walk
from fastmmu.paging.agile cimport Agile, walk_agile
from fastmmu.paging.walk cimport walk_cached, walk_silent
from fastmmu.tlb.entries cimport Tlb


cdef int agile_cached(Mem *m, const Paging *hw, Agile *a, Tlb *t, uint64_t la, int acc, Walk *w, Steps *steps,
                      uint64_t *by_nested) noexcept nogil:
    a.nested = 0
    if hw.levels < 4:
        return walk_cached(m, hw, NULL, t, la, acc, w, steps)
    if walk_agile(m, hw, a, t, la, acc, w, steps, &a.nested) == FAULT_NONE:
        by_nested[a.nested] += 1
    return w.fault


cdef int agile_silent(Mem *m, const Paging *hw, Agile *a, uint64_t la, int acc, Walk *w) noexcept nogil:
    cdef Agile query = a[0]
    cdef Paging g = hw[0]
    g.write_ad = 0
    a.nested = 0
    if g.levels < 4:
        return walk_silent(m, &g, NULL, la, acc, w)
    query.guest.write_ad = 0
    query.ept.write_ad = 0
    return walk_agile(m, &g, &query, NULL, la, acc, w, NULL, &a.nested)
