# Point walks as compiled functions, for the kernels above.

from libc.stdint cimport uint64_t

from fastmmu.arch.types cimport Ept, Mem, Paging, Steps, Walk
from fastmmu.paging.memory cimport PhysicalMemory
from fastmmu.paging.state cimport GuestState
from fastmmu.tlb.lookup cimport Tlb


cdef class WalkResult:
    cdef Walk walk
    cdef readonly object steps
    cdef readonly object la
    cdef readonly object access
    cdef int mt


cdef int walk_silent(Mem *m, const Paging *g, const Ept *e, uint64_t la, int acc, Walk *w) noexcept nogil
# An access, which uses and fills the caches of `t`.
cdef int walk_cached(Mem *m, const Paging *g, const Ept *e, Tlb *t, uint64_t la, int acc, Walk *w,
                     Steps *steps) noexcept nogil
cdef int walk_steps(Mem *m, const Paging *g, const Ept *e, uint64_t la, int acc, Walk *w, Steps *steps) noexcept nogil
cdef int load_pdptes(Mem *m, Paging *g, const Ept *e, Walk *w, Steps *steps) noexcept nogil
cdef int prepare(PhysicalMemory mem, GuestState state, object eptp, object set_ad, bint log, Paging *paging,
                 Ept *ept, Walk *w) except -1
cdef uint64_t linear_address(object va) except? 0
