# An access of more bytes than an event can be: it becomes several.

from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    EVENT_BYTES = 128           # of each but the last
    MOST_BYTES = 255            # an event of so many is one

cdef struct LongAccess:         # what is left of one
    uint64_t left               # bytes; 0: nothing
    uint64_t addr
    uint8_t op


cdef inline void next_part(LongAccess *access, uint8_t *op, uint8_t *size, uint64_t *addr) noexcept nogil:
    op[0] = access.op
    size[0] = <uint8_t>(access.left if access.left < EVENT_BYTES else EVENT_BYTES)
    addr[0] = access.addr
    access.left -= size[0]
    access.addr += size[0]
