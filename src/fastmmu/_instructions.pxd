# What a bare guest does.

from libc.stdint cimport uint64_t

from fastmmu._assembly cimport Assembly
from fastmmu._data cimport Data
from fastmmu._state cimport GuestState
from fastmmu._types cimport Paging


cdef class Instructions(Assembly):
    cdef const Paging *_paging(self) noexcept
    cdef _load_pdptes(self, Paging *paging)
    cdef int _load_state(self, GuestState state) except -2
    cdef _gpa(self, uint64_t hpa)
    cdef _begin(self, Data *d)
    cdef _came(self, Data *d)
    cdef _canonical(self, uint64_t la)
