"""Kernel of quick walks. Header: cpu/quick.pxd."""

from libc.stdint cimport uint64_t

from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.paging.quick_walk cimport Quick, quick_walk
from fastmmu.tlb.held cimport MISSED


cdef uint64_t vcpu_quick(Vcpu *v, const Quick *q, uint64_t la, int acc) noexcept nogil:
    cdef int refs = 0, ept_refs = 0
    cdef uint64_t value = quick_walk(q, la, acc, &refs, &ept_refs, NULL)
    if not value:
        return MISSED
    v.hw.user = 1
    v.hw.implicit = 0
    v.c.tlb_misses += 1
    v.c.walks += 1
    v.c.guest_walk_refs += refs
    v.c.ept_walk_refs += ept_refs
    return value
