# Valgrind lackey text to event columns and back.

from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    MAX_LINE = 24               # bytes of the longest line that is written: 3 + 16 + 1 + 3 + 1

cdef struct Lackey:             # what is known of a file so far
    uint64_t pid                # of the process that Valgrind's lines name, 0: none yet
    bint skip                   # lines of the program itself are skipped
    Py_ssize_t skipped          # how many

cdef int parse_lines(const uint8_t **at, const uint8_t *end, bint last, uint8_t *op, uint8_t *size, uint64_t *addr,
                     Py_ssize_t *n, Py_ssize_t room, Py_ssize_t *lines,
                     Lackey *file) noexcept nogil
cdef Py_ssize_t print_lines(const uint8_t *op, const uint8_t *size, const uint64_t *addr, Py_ssize_t n,
                            char *out) noexcept nogil
