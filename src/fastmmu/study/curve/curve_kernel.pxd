# Miss-ratio curves of TLBs under LRU, every size from one pass; the orders: study/curve/stack_distance.pxd.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.study.curve.stack_distance cimport List, Tree

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
