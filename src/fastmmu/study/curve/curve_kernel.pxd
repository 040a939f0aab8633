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

cdef enum:
    MOST_LISTS = 62             # of a level in a part: a bit each in a record

cdef struct Record:             # of a part: what the order before it has to be asked
    uint64_t key                # bit 63: an invalidation, else an access
    uint64_t how                # bit i: it took the place of a hole in list i; 62: in the tree; 63: it was invalidated

cdef struct Level:              # one array of the TLB, at every size
    List *list
    uint32_t lists
    Tree tree
    uint64_t lookups
    uint64_t last               # page of the last access, which is at distance 1 everywhere
    uint64_t repeats
    bint cut                    # there was something before, and no flush since
    bint begun                  # it had an access since the cut
    Record *record
    uint64_t records, room
    uint64_t *had               # hash table of pages since the cut: key + 1; bit 63: it is invalidated
    uint64_t had_mask, n_had
    List before                 # the first level's list that decides what misses, as it was at the cut: its ways
    bint decides
    uint32_t filter, ways
    bint failed                 # no memory

cdef struct Curve:
    Level level[5]
    uint32_t levels
    uint8_t first[4]            # [access] its first level; NO_LEVEL: it is not looked up
    uint8_t second[4]           # [access] where that one's misses go; NO_LEVEL: nowhere
    uint32_t filter[4]          # [access] the list of the first level that decides what misses, and its ways
    uint32_t ways[4]
    uint32_t shift              # log2 of the page size
    bint pcid
    bint orders_only            # no distance is asked for
    uint64_t process
    uint64_t accesses
    uint64_t flushes, invalidations

cdef int curve_run(Curve *c, const uint8_t *op, const uint8_t *size, const uint64_t *addr, uint64_t n,
                   uint64_t *done) noexcept nogil
cdef void follow(Level *x, const uint64_t *key, const uint64_t *how, uint64_t n) noexcept nogil
