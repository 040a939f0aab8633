# Lines of text with a description of their columns to event columns.

from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    MOST_COLUMNS = 16

cdef enum Column:
    SKIP = 0
    OPERATION = 1               # a word for an operation
    DINERO_OPERATION = 2        # 0 read, 1 write, 2 fetch
    ADDR = 3                    # hexadecimal with 0x in front
    ADDR_HEX = 4                # hexadecimal, 0x or not
    ADDR_DEC = 5
    SIZE = 6                    # decimal, or with 0x in front
    UNTIL_TIME = 7              # words up to one like 12.345678:
    EVENT = 8                   # of perf: a store where it says so, else a load
    IP = 9                      # of perf: an address of the instruction itself is a fetch
    REST = 10                   # whatever follows

cdef struct Layout:
    uint8_t column[MOST_COLUMNS]
    int columns
    uint8_t separator           # 0: blanks

cdef int parse_text(const uint8_t **at, const uint8_t *end, bint last, const Layout *layout, uint8_t *op, uint8_t *size,
                    uint64_t *addr, Py_ssize_t *n, Py_ssize_t room, Py_ssize_t *lines) noexcept nogil
