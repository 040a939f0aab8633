# What a parser of traces is given from Python: bytes to read, and columns of events to fill.

from libc.stdint cimport uint8_t, uint64_t


cdef class _Columns:
    cdef const uint8_t[::1] data
    cdef uint8_t[::1] ops, sizes
    cdef uint64_t[::1] addrs
    cdef const uint8_t *base    # of the data; never NULL
    cdef uint8_t *op            # of these, NULL where there is no row
    cdef uint8_t *size
    cdef uint64_t *addr
    cdef Py_ssize_t start, stop     # of the data
    cdef Py_ssize_t row, room       # the next row, and how many there are


cdef _Columns columns(str name, data, start, stop, op, size, addr, n)
