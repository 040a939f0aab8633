# The memory type range registers as Python has them.

from fastmmu.arch.memtype cimport MtrrState


cdef class Mtrrs:
    cdef MtrrState state
    cdef readonly object registers      # read-only mapping
