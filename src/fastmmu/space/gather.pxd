# Bytes at linear addresses: pages are translated with rights left aside, and copied from where they lie.
#
# What cannot be had is a hole: addresses that do not translate, or translate to what is no memory. Its bytes are `pad`.

from libc.stdint cimport uint8_t, uint64_t

from fastmmu.arch.types cimport Ept, Mem, Paging
from fastmmu.paging.batch cimport Query, Region
from fastmmu.paging.segments cimport Placed

cdef enum:
    GATHER_REGION_BITS = 4

cdef struct Hole:               # side by side with one cause: one hole
    uint64_t start
    uint64_t end                # 0: the end of the address space
    uint64_t fault              # a FaultCode

cdef struct Gather:
    Query query
    Placed *placed              # NULL: memory without holes
    uint64_t end                # last linear address there is
    uint8_t pad
    bint dry                    # only holes are wanted: nothing is copied
    Hole *hole                  # where the first `room` holes go
    uint64_t room
    uint64_t n_holes            # all of them
    uint64_t last               # address behind the last hole
    int last_fault
    Region guest[1 << GATHER_REGION_BITS]
    Region ept[1 << GATHER_REGION_BITS]

# `g`, `e` (NULL without EPT) and `m` are kept; of the first two rights are taken away (query_aside).
cdef void gather_init(Gather *s, Mem *m, Placed *placed, Paging *g, Ept *e) noexcept nogil
# n bytes from a linear address on; how many are not in holes.
cdef uint64_t gather(Gather *s, uint64_t va, uint64_t n, uint8_t *out) noexcept nogil
# `each` bytes at each of k addresses; fault: of the first byte that is missing, 0 where none is; or NULL. How many
# addresses lack some.
cdef uint64_t gather_many(Gather *s, const uint64_t *va, uint64_t k, uint64_t each, uint8_t *out,
                          uint8_t *fault) noexcept nogil
