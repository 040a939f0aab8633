# A buddy allocator of page frames as Linux' (mm/page_alloc.c): lists of free chunks of 2**order frames, the last freed
# first; the lower half of a chunk that is split is given out; what comes back is joined with its buddy.

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    TOP_ORDER = 9               # chunks of 2 MB; none are larger
    ORDERS = 10
    BLOCK_FRAMES = 512
    MOST_FRAMES = 1 << 28       # 1 TB

cdef extern from *:
    """
    #define FM_NO_CHUNK 0xFFFFFFFFFFFFFFFFULL
    """
    const uint64_t NO_CHUNK "FM_NO_CHUNK"

cdef struct Buddy:
    uint64_t n                  # frames, a multiple of 512
    uint64_t spare              # of these free
    uint32_t *next              # [2 n] of each order its chunks: 0, not free; 1, the last of all; else the next + 2
    uint32_t *prev              # [2 n] 0, the first of its list; else the one before + 1
    uint64_t[10] head           # of each order, its number + 1; 0: there is none
    uint64_t[10] chunks         # how many

cdef int buddy_init(Buddy *b, uint64_t n) noexcept nogil         # nothing is free; -1: no memory
cdef void buddy_free(Buddy *b) noexcept nogil
cdef void buddy_empty(Buddy *b) noexcept nogil                   # nothing is free again
cdef void buddy_put(Buddy *b, int order, uint64_t chunk) noexcept nogil      # free now, not joined with others
cdef uint64_t buddy_take(Buddy *b, int order) noexcept nogil     # its first frame; NO_CHUNK: none is so large
cdef bint buddy_take_at(Buddy *b, uint64_t frame, int order) noexcept nogil  # this chunk, if all of it is free together
cdef void buddy_give(Buddy *b, uint64_t frame, int order) noexcept nogil
cdef void buddy_fragment(Buddy *b, double unusable, uint64_t seed) noexcept nogil


cdef inline uint64_t at_order(const Buddy *b, int order) noexcept nogil:
    # where the chunks of an order begin in the arrays
    return 2 * b.n - (2 * b.n >> order)


cdef inline bint chunk_free(const Buddy *b, int order, uint64_t chunk) noexcept nogil:
    return b.next[at_order(b, order) + chunk] != 0


cdef inline int order_free(const Buddy *b, uint64_t frame) noexcept nogil:
    # of the free chunk that has the frame; -1: it is in use
    cdef int order
    for order in range(ORDERS):
        if chunk_free(b, order, frame >> order):
            return order
    return -1
