# What is asked of the rows of an enumeration (paging/leaf_rows.pxd: LeafRow).
#
# The reverse index: the numbers of all rows, grouped by the size of their page, within a size in the order of their
# physical addresses, which are multiples of it. So whoever maps an address is found by one search a size.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.paging.leaf_rows cimport LeafRow

cdef enum:
    SIZES = 64                  # log2 of the bytes of a page

cdef struct Reverse:
    uint64_t *key               # [n] physical address >> log2 of the size
    uint32_t *row               # [n]
    uint64_t start[SIZES + 1]   # where the rows of a size begin

cdef int reverse_build(Reverse *r, const LeafRow *rows, uint64_t n) noexcept nogil     # -1: no memory
cdef void reverse_free(Reverse *r) noexcept nogil
# Rows that map some of the addresses first..last: how many; the first `room` of them into `out`, size by size.
cdef uint64_t reverse_find(const Reverse *r, uint64_t first, uint64_t last, uint32_t *out, uint64_t room) noexcept nogil
# Two enumerations side by side, by address and size of each page. Numbers of rows: what only the second has, what only
# the first has, what both have and differs, a pair each; `n`: how many of each. `software`: bits of the leaf that
# hardware ignores count, and accessed and dirty flags.
cdef void rows_compare(const LeafRow *old, uint64_t n_old, const LeafRow *new, uint64_t n_new, bint software,
                       uint32_t *added, uint32_t *gone, uint32_t *changed, uint64_t *n) noexcept nogil
