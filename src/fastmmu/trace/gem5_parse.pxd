# gem5's packet messages to event columns.

from libc.stdint cimport uint8_t, uint64_t

from fastmmu.trace.long_access cimport LongAccess

cdef struct Packets:            # what is known of a file so far
    LongAccess long_
    Py_ssize_t others           # packets that are neither read nor write requests

cdef int parse_packets(const uint8_t **at, const uint8_t *end, Packets *file, uint8_t *op, uint8_t *size,
                       uint64_t *addr, Py_ssize_t *n, Py_ssize_t room) noexcept nogil
