# Which frame of the host's memory stands behind a host-physical address: a permutation of its pages, at the caches'
# door.
#
# The simulated memory of a host is linear, and a guest lies in it as one piece; so the host's own fragmentation is no
# matter of its tables, but of what the caches are told. Whatever works on host-physical addresses of that kind (caches,
# clustered or range entries of a TLB) asks frame_map_apply.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.permutation cimport Permutation, permuted

cdef struct FrameMap:           # all zero: linear
    uint64_t nbytes             # of whole pages; behind them nothing moves. 0: linear
    uint32_t shift              # log2 of a page, 12 or 21
    uint64_t broken             # 4 KB pages of blocks of 2 MB that are no blocks any more; these blocks come first
    Permutation blocks          # of the 2 MB blocks
    Permutation pages           # of the pages of those that are broken


cdef inline uint64_t frame_map_apply(const FrameMap *m, uint64_t hpa) noexcept nogil:
    # A bijection of host-physical addresses; the last 12 bits stay, of whole blocks the last 21.
    cdef uint64_t page
    if hpa >= m.nbytes:
        return hpa
    page = permuted(&m.blocks, hpa >> 21) << 9 | (hpa >> 12 & 511)
    if page < m.broken:
        page = permuted(&m.pages, page)
    return page << 12 | (hpa & 0xFFF)

cdef int frame_map_init(FrameMap *m, object text, uint64_t nbytes, uint32_t shift) except -1
