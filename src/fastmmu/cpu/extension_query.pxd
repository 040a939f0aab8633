# Queries of a TLB's extensions by a virtual CPU's tables (tlb/extension.pxd).

from libc.stdint cimport uint64_t

from fastmmu.tlb.extension cimport Queried
from fastmmu.tlb.lookup cimport Tlb

# walker: the Vcpu whose context is in force
cdef void vcpu_query(void *walker, Tlb *t, uint64_t la, Queried *out) noexcept nogil
