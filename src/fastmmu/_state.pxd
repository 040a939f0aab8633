# The registers that paging depends on, derived once into the structs that the walkers read.

from fastmmu._types cimport Ept, Paging


cdef class GuestState:
    cdef Paging paging
    cdef readonly dict registers


cdef class Eptp:
    cdef Ept ept
    cdef readonly object value
    cdef readonly dict options


cdef Eptp as_eptp(object eptp)
cpdef int access_code(object access) except -1
