# Where root tables of address spaces may lie: each page is looked at by itself.
#
#   LONG   the top table of 4- and 5-level paging: PS is 0 in every present entry
#   EPT    of the EPT: bits 7:3 are 0
#   TWO    the page directory of 32-bit paging; entries at odd and at even places, else it is a table of 8-byte entries
#   PAE    four entries at a multiple of 32 bytes, present or all 0: bits 8:6, 2:1 and 63:52 are 0 (QEMU sets bit 5,
#          which is reserved, too, in those that it used)
#
# In each some entry is present, and all that are and lead to a table lead below the end of memory.

from libc.stdint cimport uint8_t, uint64_t

from fastmmu.arch.types cimport Mem
from fastmmu.paging.segments cimport Placed

cdef enum Form:
    FORM_LONG = 0
    FORM_PAE = 1
    FORM_TWO = 2
    FORM_EPT = 3
    FORMS = 4

cdef struct Candidate:
    uint64_t address
    uint64_t form

cdef struct Candidates:         # one thread's
    Candidate *row
    uint64_t n
    uint64_t room
    bint failed                 # no memory for one more

cdef struct Stretch:            # pages of memory in a row
    uint64_t start              # physical address
    uint64_t pages
    uint64_t before             # pages of the stretches before

cdef struct Scan:
    const Mem *m
    Placed *placed              # NULL: memory without holes
    const Stretch *stretch
    uint64_t n_stretches
    uint64_t pages              # of all of them
    uint64_t next               # page that no thread has taken
    uint64_t high               # address bits that no table has: it would lie behind the end of memory
    uint64_t forms              # bit n: form n is looked for
    bint stopped

# Some pages more, into `found`; buffer: SCAN_BYTES of the thread's own, for memory with holes. False: none was left.
cdef enum:
    SCAN_BYTES = 1 << 18
cdef bint scan_step(Scan *s, Candidates *found, uint8_t *buffer) noexcept nogil
