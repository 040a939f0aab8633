"""A buddy allocator, and the fragmentation that it begins with; header: buddy.pxd.

How fragmented free memory is, is the unusable free space index of an order j (Gorman and Whitcroft, "Measuring the
Impact of the Linux Memory Manager", 2005; Linux' /sys/kernel/debug/extfrag/unusable_index), which later papers call the
free memory fragmentation index, FMFI (Ingens, Kwon et al., OSDI 2016):

    FMFI(j) = (free frames - sum over i >= j of 2**i * chunks(i)) / free frames
"""

from libc.math cimport floor
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from fastmmu._zeroed cimport zeroed, zeroed_free
from fastmmu.arch.permutation cimport Permutation, permutation_init, permuted, seeded


cdef int buddy_init(Buddy *b, uint64_t n) noexcept nogil:
    memset(b, 0, sizeof(Buddy))
    b.n = n
    b.next = <uint32_t *> zeroed(2 * n, sizeof(uint32_t))
    b.prev = <uint32_t *> zeroed(2 * n, sizeof(uint32_t))
    return 0 if b.next != NULL and b.prev != NULL else -1


cdef void buddy_free(Buddy *b) noexcept nogil:
    zeroed_free(b.next)
    zeroed_free(b.prev)
    memset(b, 0, sizeof(Buddy))


cdef void buddy_empty(Buddy *b) noexcept nogil:
    cdef int order
    for order in range(ORDERS):
        while b.head[order]:
            remove(b, order, b.head[order] - 1)


cdef void buddy_put(Buddy *b, int order, uint64_t chunk) noexcept nogil:
    cdef uint64_t at = at_order(b, order), first = b.head[order]
    b.next[at + chunk] = <uint32_t> first + 1
    b.prev[at + chunk] = 0
    if first:
        b.prev[at + first - 1] = <uint32_t> chunk + 1
    b.head[order] = chunk + 1
    b.chunks[order] += 1
    b.spare += <uint64_t> 1 << order


cdef void remove(Buddy *b, int order, uint64_t chunk) noexcept nogil:
    cdef uint64_t at = at_order(b, order), next = b.next[at + chunk], prev = b.prev[at + chunk]
    if prev:
        b.next[at + prev - 1] = <uint32_t> next
    else:
        b.head[order] = next - 1
    if next > 1:
        b.prev[at + next - 2] = <uint32_t> prev
    b.next[at + chunk] = b.prev[at + chunk] = 0
    b.chunks[order] -= 1
    b.spare -= <uint64_t> 1 << order


cdef uint64_t buddy_take(Buddy *b, int order) noexcept nogil:
    cdef int found = order
    cdef uint64_t chunk
    while not b.head[found]:
        found += 1
        if found > TOP_ORDER:
            return NO_CHUNK
    chunk = b.head[found] - 1
    remove(b, found, chunk)
    while found > order:                        # expand()
        found -= 1
        chunk *= 2
        buddy_put(b, found, chunk + 1)
    return chunk << order


cdef bint buddy_take_at(Buddy *b, uint64_t frame, int order) noexcept nogil:
    # what is left of the chunk that it is in is put back from the largest part down
    cdef int found = order
    cdef uint64_t want
    while not chunk_free(b, found, frame >> found):
        found += 1
        if found > TOP_ORDER:
            return False
    remove(b, found, frame >> found)
    while found > order:
        found -= 1
        want = frame >> found
        buddy_put(b, found, want ^ 1)
    return True


cdef void buddy_give(Buddy *b, uint64_t frame, int order) noexcept nogil:
    cdef uint64_t chunk = frame >> order
    while order < TOP_ORDER and chunk_free(b, order, chunk ^ 1):
        remove(b, order, chunk ^ 1)
        order += 1
        chunk >>= 1
    buddy_put(b, order, chunk)


cdef void buddy_fragment(Buddy *b, double unusable, uint64_t seed) noexcept nogil:
    # All frames become free, but for half of those of some blocks, so that FMFI(9) is what is asked for: with x of B
    # blocks so, 256 x / (256 x + 512 (B - x)), as near as a block allows. A fragmented block has free chunks of one
    # order, 0 to 8, as many of each, of each pair of buddies one. unusable < 0: no block is, and they are
    # in the order of their addresses; else in an order by the seed.
    cdef uint64_t blocks = b.n >> TOP_ORDER, i = blocks, j, block, broken = 0, pairs
    cdef Permutation p
    cdef int order
    permutation_init(&p, blocks, seed)
    if unusable > 0:
        broken = min(blocks, <uint64_t> floor(2 * unusable * <double> blocks / (1 + unusable) + 0.5))
    while i:
        i -= 1
        block = permuted(&p, i) if unusable >= 0 else i
        if i >= broken:
            buddy_put(b, TOP_ORDER, block)
            continue
        order = <int> (seeded(seed, block << 10) % 9)
        pairs = <uint64_t> 256 >> order
        j = pairs
        while j:
            j -= 1
            buddy_put(b, order, (block * pairs + j) * 2 + (seeded(seed, block << 10 | 1 + j) & 1))
