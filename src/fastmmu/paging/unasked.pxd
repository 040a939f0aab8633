# What a processor may cache of an address that nobody asked for: queries of a TLB's extensions (tlb/extension.pxd).

from libc.stdint cimport uint64_t

from fastmmu.arch.types cimport Ept, Mem, Paging
from fastmmu.cache.hierarchy cimport Caches
from fastmmu.tlb.extension cimport Queried

# g, e: as for a walk; e NULL: no EPT
# caches: its references go through these (CAUSE_BACKGROUND); NULL: it makes none
cdef void walk_unasked(Mem *m, const Paging *g, const Ept *e, bint mbec, uint64_t la, Queried *out,
                       Caches *caches) noexcept nogil
