# The registers that paging depends on, derived once into the structs that the walkers read.

from libc.stdint cimport uint16_t, uint64_t

from fastmmu._memtype cimport Mtrrs
from fastmmu._types cimport Ept, Paging


cdef class GuestState:
    cdef Paging paging
    cdef readonly dict registers
    cdef readonly Mtrrs mtrrs


cdef class Pml:
    cdef uint16_t next
    cdef readonly uint64_t base


cdef class Eptp:
    cdef Ept ept
    cdef readonly object value
    cdef readonly dict options
    cdef readonly Pml pml


cdef Eptp as_eptp(object eptp)
cpdef int access_code(object access) except -1
