# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""gem5's packets to event columns: messages of protocol buffers, each behind its length, a varint.

Fields: 2 command, 3 address, 4 size, 5 flags, all varints; those of other numbers are passed over by their wire type.
"""

from libc.stdint cimport uint8_t, uint64_t

from fastmmu.arch.ops cimport OP_FETCH, OP_READ, OP_WRITE
from fastmmu.trace.long_access cimport MOST_BYTES, next_part

cdef enum:
    READ_REQUEST = 1
    WRITE_REQUEST = 4
    INST_FETCH = 0x100
    LONGEST = 1 << 16           # bytes of a message

cdef enum Fault:                # trace/gem5.py words them
    BAD_VARINT = -1
    BAD_LENGTH = -2
    BAD_FIELD = -3
    BAD_PACKET = -4


cdef int varint(const uint8_t **at, const uint8_t *end, uint64_t *value) noexcept nogil:
    """1: a number, *at behind it. 0: it is not whole. BAD_VARINT: more than 64 bits."""
    cdef const uint8_t *p = at[0]
    cdef int shift = 0
    value[0] = 0
    while p < end:
        if shift == 63 and p[0] > 1:
            return BAD_VARINT
        value[0] |= <uint64_t>(p[0] & 0x7F) << shift
        p += 1
        if not (p - 1)[0] & 0x80:
            at[0] = p
            return 1
        shift += 7
    return 0


cdef int packet(const uint8_t *p, const uint8_t *end, uint64_t *command, uint64_t *addr, uint64_t *size,
                uint64_t *flags) noexcept nogil:
    """The fields of a message: 1, or a fault."""
    cdef uint64_t key, value
    cdef int needed = 0
    command[0] = size[0] = flags[0] = 0
    addr[0] = 0
    while p < end:
        if varint(&p, end, &key) != 1:
            return BAD_FIELD
        if key & 7 == 0:
            if varint(&p, end, &value) != 1:
                return BAD_FIELD
            if key >> 3 == 2:
                command[0] = value
                needed |= 1
            elif key >> 3 == 3:
                addr[0] = value
                needed |= 2
            elif key >> 3 == 4:
                size[0] = value
            elif key >> 3 == 5:
                flags[0] = value
        elif key & 7 == 1 or key & 7 == 5:
            value = 8 if key & 7 == 1 else 4
            if <uint64_t>(end - p) < value:
                return BAD_FIELD
            p += value
        elif key & 7 == 2:
            if varint(&p, end, &value) != 1 or value > <uint64_t>(end - p):
                return BAD_FIELD
            p += value
        else:
            return BAD_FIELD
    if needed & 1 and (needed & 2 or command[0] != READ_REQUEST and command[0] != WRITE_REQUEST):
        return 1
    return BAD_PACKET


cdef int parse_packets(const uint8_t **at, const uint8_t *end, Packets *file, uint8_t *op, uint8_t *size,
                       uint64_t *addr, Py_ssize_t *n, Py_ssize_t room) noexcept nogil:
    """Messages from *at until `room` events, a fault or the last whole one; *at, *n move along."""
    cdef const uint8_t *p
    cdef Py_ssize_t i = n[0]
    cdef uint64_t length, command, where, bytes, flags
    cdef int got, fault = 0
    while i < room:
        if file.long_.left:
            next_part(&file.long_, op + i, size + i, addr + i)
            i += 1
            continue
        p = at[0]
        got = varint(&p, end, &length)
        if got < 0:
            fault = got
            break
        if got == 0:
            break
        if length > LONGEST:
            fault = BAD_LENGTH
            break
        if <uint64_t>(end - p) < length:
            break
        got = packet(p, p + length, &command, &where, &bytes, &flags)
        if got < 0:
            fault = got
            break
        if bytes > LONGEST:
            fault = BAD_PACKET
            break
        at[0] = p + length
        if command != READ_REQUEST and command != WRITE_REQUEST:
            file.others += 1
            continue
        file.long_.op = OP_WRITE if command == WRITE_REQUEST else OP_FETCH if flags & INST_FETCH else OP_READ
        if bytes > MOST_BYTES:
            file.long_.left = bytes
            file.long_.addr = where
            continue
        op[i] = file.long_.op
        size[i] = <uint8_t>bytes
        addr[i] = where
        i += 1
    n[0] = i
    return fault
