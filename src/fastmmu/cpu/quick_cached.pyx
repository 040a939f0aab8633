"""Kernel of quick walks whose references go through data caches. Header: cpu/quick_cached.pxd."""

from libc.stdint cimport uint64_t

from fastmmu.cache.hierarchy cimport WalkRefs, caches_ahead, caches_walk_refs
from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.paging.quick_walk cimport Quick, quick_walk
from fastmmu.tlb.held cimport MISSED
from fastmmu.tlb.lookup cimport tlb_pa


cdef uint64_t vcpu_quick_cached(Vcpu *v, const Quick *q, uint64_t la, int acc) noexcept nogil:
    cdef int refs = 0, ept_refs = 0
    cdef WalkRefs into
    cdef uint64_t value
    into.n, into.caches = 0, v.caches
    value = quick_walk(q, la, acc, &refs, &ept_refs, &into)
    if not value:
        return MISSED
    v.hw.user = 1
    v.hw.implicit = 0
    v.c.tlb_misses += 1
    v.c.walks += 1
    v.c.guest_walk_refs += refs
    v.c.ept_walk_refs += ept_refs
    caches_ahead(v.caches, tlb_pa(value, la))       # the access itself
    caches_walk_refs(v.caches, &into)
    return value
