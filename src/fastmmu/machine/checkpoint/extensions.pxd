# What is asked between a miss of both levels and the walk, written and read.

from fastmmu.machine.checkpoint.archive cimport _Archive
from fastmmu.tlb.entries cimport Tlb

cdef int keep_extensions(_Archive a, Tlb *t) except -1
