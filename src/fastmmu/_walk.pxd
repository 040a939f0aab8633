# What a walk came to, for Python. Kernels walk by paging/walk.pxd.

from fastmmu.arch.types cimport Walk


cdef class WalkResult:
    cdef Walk walk
    cdef readonly object steps
    cdef readonly object la
    cdef readonly object access
    cdef int mt
    cdef readonly bint npt      # over nested page tables of AMD's
