# What a processor may cache of an address that nobody asked for: queries of a TLB's extensions (tlb/extension.pxd).

from libc.stdint cimport uint64_t

from fastmmu.arch.types cimport Ept, Mem, Paging
from fastmmu.tlb.extension cimport Queried

# g, e: as for a walk; e NULL: no EPT
cdef void walk_unasked(Mem *m, const Paging *g, const Ept *e, bint mbec, uint64_t la, Queried *out) noexcept nogil
