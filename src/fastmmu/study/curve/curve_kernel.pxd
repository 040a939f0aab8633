# Miss-ratio curves of TLBs under LRU, every size from one pass; the orders: study/curve/stack_distance.pxd.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.study.curve.stack_distance cimport List, Tree

cdef enum:
    NO_LEVEL = 255

cdef enum CurveOutcome:
    CURVE_OK = 0
    CURVE_BAD_PROCESS = 1
    CURVE_BAD_ADDRESS = 2
    CURVE_NO_MEMORY = 3

cdef extern from *:
    """
    #define FM_NO_KEY (~0ULL - 1)
    """
    const uint64_t NO_KEY "FM_NO_KEY"           # of no page

cdef struct Level:              # one array of the TLB, at every size
    List *list
    uint32_t lists
    Tree tree
    uint64_t lookups
    uint64_t last               # page of the last access, which is at distance 1 everywhere
    uint64_t repeats

cdef struct Curve:
    Level level[5]
    uint32_t levels
    uint8_t first[4]            # [access] its first level
    uint8_t second[4]           # [access] where that one's misses go; NO_LEVEL: nowhere
    uint32_t filter[4]          # [access] the list of the first level that decides what misses, and its ways
    uint32_t ways[4]
    uint32_t shift              # log2 of the page size
    bint pcid
    uint64_t process
    uint64_t accesses
    uint64_t flushes, invalidations

cdef int curve_run(Curve *c, const uint8_t *op, const uint8_t *size, const uint64_t *addr, uint64_t n,
                   uint64_t *done) noexcept nogil
