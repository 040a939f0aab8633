# Records of DynamoRIO's drmemtrace to event columns.

from libc.stdint cimport uint8_t, uint16_t, uint64_t

from fastmmu.trace.long_access cimport LongAccess

cdef struct Stream:             # what is known of a file so far
    uint64_t pc                 # behind the last instruction: where that of a bundle is
    uint64_t bundle             # lengths of the instructions that are left of one, a byte each
    int bundled                 # how many
    LongAccess long_
    uint64_t tid, pid           # as the records said last
    uint64_t seen_tid           # as the caller knows them
    uint64_t seen_pid
    uint64_t time               # of the last time stamp, microseconds
    uint64_t upper              # of the next marker's value, in traces of 32 bits
    uint64_t physical           # of the page that the next marker names
    uint64_t virtual_page
    bint timed                  # a time stamp ends the call
    bint ended                  # the footer was there

cdef enum Stop:
    STOP_END = 0                # no whole record is left, or no room
    STOP_TIME = 1               # a time stamp
    STOP_WHO = 2                # the next event is of another thread or process
    STOP_PAGE = 3               # `physical` is where `virtual_page` lies
    BAD_TYPE = -1
    BAD_BUNDLE = -2
    BAD_PAST_END = -3

cdef int parse_records(const uint8_t **at, const uint8_t *end, int width, Stream *stream, uint8_t *op, uint8_t *size,
                       uint64_t *addr, Py_ssize_t *n, Py_ssize_t room) noexcept nogil
