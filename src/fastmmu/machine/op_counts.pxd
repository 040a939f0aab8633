# How many accesses of each kind a stretch of events has.

from libc.stdint cimport uint8_t, uint64_t

from fastmmu.arch.ops cimport LAST_ACCESS


cdef inline void count_ops(const uint8_t *op, uint64_t n, uint64_t *total) noexcept nogil:
    # total: [op], all of them operations of accesses
    cdef uint64_t i, k, found, begin
    cdef uint8_t few                # of a block so short that they fit: 16 operations at a time are compared
    for k in range(LAST_ACCESS + 1):
        found = 0
        for begin in range(0, n, 240):
            few = 0
            for i in range(begin, min(begin + 240, n)):
                few += op[i] == <uint8_t> k
            found += few
        total[k] = found
