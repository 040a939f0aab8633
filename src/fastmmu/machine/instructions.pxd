# What a bare guest does.

from libc.stdint cimport uint64_t

from fastmmu.cpu.access cimport Data
from fastmmu.machine.assembly cimport Assembly


cdef uint64_t word(value, str name) except? 0xFFFFFFFFFFFFFFFFULL


cdef class Instructions(Assembly):
    cdef _gpa(self, uint64_t hpa)
    cdef _begin(self, Data *d)
    cdef _came(self, Data *d)
    cdef _canonical(self, uint64_t la)
