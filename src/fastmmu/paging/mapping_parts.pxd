# An enumeration in several threads: in parts, cut where one page table ends and another begins, so that no row and no
# fault is cut.
#
#   parts = parts_of(s, threads, owner)     of an enumeration that has not begun; None: one thread does as well
#   total = parts.count()                   rows, or over EPT perhaps too many
#   n = parts.fill(rows)                    into `total` rows; the first n are it
#   parts.faults()                          those of all parts, in order

from libc.stdint cimport uint64_t

from fastmmu.paging.leaf_rows cimport EptRegion, LeafRow, Leaves

cdef struct Part:               # with addresses of its own
    Leaves s
    uint64_t at, room, n        # its rows: place in the array, most, and how many there are


cdef class Parts:
    cdef Part *part
    cdef uint64_t n, next       # parts, and the one that is nobody's yet
    cdef uint64_t threads
    cdef LeafRow *out           # NULL: rows are counted
    cdef EptRegion *regions     # REGIONS of each thread; NULL: no EPT
    cdef bint stop
    cdef object owner           # of what the states point to
    cdef int add(self, const Leaves *s, uint64_t first, uint64_t last) except -1
    cdef bint step(self, int worker) noexcept nogil
    cdef int go(self) except -1
    cdef uint64_t count(self) except? 0
    cdef uint64_t fill(self, rows) except? 0
    cdef faults(self)


cdef Parts parts_of(const Leaves *s, uint64_t threads, owner)
