# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Records of DynamoRIO's drmemtrace to event columns: u16 type, u16 size, address of 8 bytes, or 4 of 32 bits.

    0 read, 1 write                            an access
    10..16, 30, 31, 48, 49                     an instruction: its length, its pc; a fetch
    17                                         more of them: `size` lengths in the bytes of the address
    2..9, 32..46                               prefetches: no accesses
    18..21, 25, 27, 29, 47                     flushes, header, hardware prefetch, not fetched again, encoding
    22, 24, 23, 26                             thread, process; a thread's end, footer
    28                                         a marker: `size` is its kind, the address its value
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastmmu.arch.ops cimport OP_FETCH, OP_WRITE
from fastmmu.trace.long_access cimport MOST_BYTES, next_part

cdef enum Marker:
    TIMESTAMP = 2
    SPLIT_VALUE = 8
    PHYSICAL_ADDRESS = 15
    VIRTUAL_ADDRESS = 17

cdef enum Kind:
    FIRST_INSTR = 10
    BUNDLE = 17
    THREAD = 22
    THREAD_EXIT = 23
    PID = 24
    HEADER = 25
    FOOTER = 26
    MARKER = 28
    LAST_KIND = 49


cdef inline bint is_instruction(uint16_t kind) noexcept nogil:
    return 10 <= kind <= 16 or kind == 30 or kind == 31 or kind == 48 or kind == 49


cdef int parse_records(const uint8_t **at, const uint8_t *end, int width, Stream *stream, uint8_t *op, uint8_t *size,
                       uint64_t *addr, Py_ssize_t *n, Py_ssize_t room) noexcept nogil:
    """Records of `width` bytes from *at until there is no room, no record, or a stop; *at, *n move along."""
    cdef const uint8_t *p = at[0]
    cdef Py_ssize_t i = n[0]
    cdef uint16_t kind, length
    cdef uint32_t narrow
    cdef uint64_t value
    cdef int stop = STOP_END
    while i < room:
        if stream.long_.left:
            next_part(&stream.long_, op + i, size + i, addr + i)
            i += 1
            continue
        if stream.bundled:
            op[i] = OP_FETCH
            size[i] = <uint8_t>(stream.bundle & 0xFF)
            addr[i] = stream.pc
            stream.pc += stream.bundle & 0xFF
            stream.bundle >>= 8
            stream.bundled -= 1
            i += 1
            continue
        if end - p < width:
            break
        memcpy(&kind, p, 2)
        memcpy(&length, p + 2, 2)
        if width == 12:
            memcpy(&value, p + 4, 8)
        else:
            memcpy(&narrow, p + 4, 4)
            value = narrow
        if stream.ended and kind != HEADER:
            stop = BAD_PAST_END
            break
        if kind <= OP_WRITE or is_instruction(kind) or kind == BUNDLE:
            if stream.tid != stream.seen_tid or stream.pid != stream.seen_pid:
                stop = STOP_WHO
                break
            p += width
            if kind == BUNDLE:
                if length > width - 4:
                    p -= width
                    stop = BAD_BUNDLE
                    break
                stream.bundle = value
                stream.bundled = length
                continue
            if is_instruction(kind):
                stream.pc = value + length
                kind = OP_FETCH
            if length > MOST_BYTES:
                stream.long_.left = length
                stream.long_.addr = value
                stream.long_.op = <uint8_t>kind
                continue
            op[i] = <uint8_t>kind
            size[i] = <uint8_t>length
            addr[i] = value
            i += 1
            continue
        if kind > LAST_KIND:
            stop = BAD_TYPE
            break
        p += width
        if kind == THREAD:
            stream.tid = value
        elif kind == PID:
            stream.pid = value
        elif kind == HEADER:
            stream.ended = False
        elif kind == FOOTER:
            stream.ended = True
        elif kind == MARKER:
            value |= stream.upper
            stream.upper = 0
            if length == TIMESTAMP:
                stream.time = value
                if stream.timed:
                    stop = STOP_TIME
                    break
            elif length == SPLIT_VALUE:
                stream.upper = value << 32
            elif length == PHYSICAL_ADDRESS:
                stream.physical = value
            elif length == VIRTUAL_ADDRESS:
                stream.virtual_page = value
                stop = STOP_PAGE
                break
    at[0] = p
    n[0] = i
    return stop
