# The TLB of a physical CPU as a Python object; kernels use its `t`.

from fastmmu.tlb.entries cimport Tlb


cdef class TLB:
    cdef Tlb *t
    cdef readonly object geometry
