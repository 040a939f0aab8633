# Walks of one address as compiled functions: a query or an access, by `write_ad` of the registers given.
# e: NULL without EPT. Each returns a FaultCode, which is w.fault too.

from libc.stdint cimport uint64_t

from fastmmu.arch.types cimport Ept, GuestPath, Mem, Paging, Steps, Walk
from fastmmu.tlb.lookup cimport Tlb


cdef int walk_silent(Mem *m, const Paging *g, const Ept *e, uint64_t la, int acc, Walk *w) noexcept nogil
cdef int walk_path(Mem *m, const Paging *g, const Ept *e, uint64_t la, int acc, Walk *w, GuestPath *path) noexcept nogil
cdef int walk_steps(Mem *m, const Paging *g, const Ept *e, uint64_t la, int acc, Walk *w, Steps *steps) noexcept nogil
# An access, which uses and fills the caches of `t`; steps: NULL where they are not recorded.
cdef int walk_cached(Mem *m, const Paging *g, const Ept *e, Tlb *t, uint64_t la, int acc, Walk *w,
                     Steps *steps) noexcept nogil
# The PDPTE registers of `g` from memory at its CR3; w.fault is left alone.
cdef int load_pdptes(Mem *m, Paging *g, const Ept *e, Walk *w, Steps *steps) noexcept nogil
