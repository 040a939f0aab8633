# What a TLB holds and has counted, as Python objects.

from fastmmu.tlb.entries cimport Tlb

cdef dict live_of(Tlb *t)
cdef list entries_of(Tlb *t)
cdef dict counters_of(Tlb *t)
