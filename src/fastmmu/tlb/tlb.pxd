# The TLB of a physical CPU as a Python object; kernels use its `t`.

from fastmmu.tlb.entries cimport Tlb
from fastmmu.tlb.siblings cimport _Core
from fastmmu.threads.turns cimport Turns


cdef class TLB:
    cdef Tlb *t
    cdef _Core core              # of several hyperthreads; None: it is alone
    cdef readonly object geometry
    cdef Turns turns            # with those of the machine or host whose CPU it is of
