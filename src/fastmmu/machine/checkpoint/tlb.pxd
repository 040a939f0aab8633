# The TLB of a physical CPU, written and read.

from fastmmu.machine.checkpoint.archive cimport _Archive
from fastmmu.tlb.lookup cimport Tlb

cdef int keep_tlb(_Archive a, Tlb *t) except -1
