# Entries by page in the hands of a VMM in Python.

from libc.stdint cimport uint64_t

from fastmmu.mmu.tables_port cimport Tables


cdef class Entries(Tables):
    cdef bint by_hand               # of a VMM's own: no machine goes by it
    cdef bint busy                  # a call is under way without the GIL
    cdef object pages(self, str name, given, bint looked_up=*)
    cdef int direct(self) except -1
    cdef int own_pages(self, pfns, size_t n, int level) except -1
    cdef int ended(self, int end, str name, gfns, size_t done) except -1
    cdef object _lose(self, gfns, uint64_t shown_by, uint64_t bits)
