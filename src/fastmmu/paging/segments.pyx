"""Kernel of memory with holes: what is memory, and pages that are put in place. Header: segments.pxd."""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

cdef extern from *:
    """
    #define FM_LOCK(at) while (__atomic_exchange_n((at), 1, __ATOMIC_ACQUIRE)) {}
    #define FM_UNLOCK(at) __atomic_store_n((at), 0, __ATOMIC_RELEASE)
    #define FM_BIT_SET(word, bit) __atomic_fetch_or((word), (bit), __ATOMIC_RELEASE)
    #define FM_BITS(word) __atomic_load_n((word), __ATOMIC_ACQUIRE)
    """
    void lock "FM_LOCK"(int *at) noexcept nogil
    void unlock "FM_UNLOCK"(int *at) noexcept nogil
    void set_bits "FM_BIT_SET"(uint64_t *word, uint64_t bits) noexcept nogil
    uint64_t bits_of "FM_BITS"(const uint64_t *word) noexcept nogil


cdef inline bint has(const uint64_t *bitmap, uint64_t page) noexcept nogil:
    return bits_of(bitmap + (page >> 6)) >> (page & 63) & 1


cdef inline void mark(uint64_t *bitmap, uint64_t page) noexcept nogil:
    set_bits(bitmap + (page >> 6), <uint64_t> 1 << (page & 63))


cdef inline uint64_t ends_behind(const uint64_t *end, uint64_t words, uint64_t n, uint64_t pa) noexcept nogil:
    # the first of n rows, ascending, that ends behind an address; of each its `end`, so many words after the last
    cdef uint64_t low = 0, high = n, middle
    while low < high:
        middle = (low + high) >> 1
        if end[middle * words] > pa:
            high = middle
        else:
            low = middle + 1
    return low


cdef inline uint64_t first_behind(const Placed *s, uint64_t pa) noexcept nogil:
    # the first piece that ends behind an address
    return ends_behind(&s.piece[0].end, sizeof(Piece) // 8, s.n_pieces, pa)


cdef inline uint64_t covered_from(const Placed *s, uint64_t pa) noexcept nogil:
    # how many bytes from an address on are memory
    cdef uint64_t low = ends_behind(&s.span[0].end, sizeof(Span) // 8, s.n_spans, pa)
    return s.span[low].end - pa if low < s.n_spans and s.span[low].start <= pa else 0


cdef bint placed_covers(const Placed *s, uint64_t pa, uint64_t n) noexcept nogil:
    return covered_from(s, pa) >= n


# ---- pages put in place -----------------------------------------------------------------------------------

cdef bint compose(Placed *s, uint64_t at, uint64_t end, uint8_t *to, bint *zero) noexcept nogil:
    # the bytes at..end of a page out of the pieces that have some, `to` being zero there; False: they cannot be had
    cdef uint8_t fetched[4096]
    cdef uint64_t i = first_behind(s, at), first, last, page = at & ~(<uint64_t> 0xFFF)
    cdef const Piece *p
    cdef bint known = False
    while i < s.n_pieces and s.piece[i].start < end:
        p = s.piece + i
        first = max(p.start, at)
        last = min(p.end, end)
        if p.kind == PIECE_DATA:
            memcpy(to + (first - at), s.data + p.offset + (first - p.start), last - first)
            zero[0] = False
        elif p.kind == PIECE_FETCHED:
            if not known and s.fetch(s.context, page, fetched):
                return False
            known = True
            memcpy(to + (first - at), fetched + (first - page), last - first)
            zero[0] = False
        i += 1
    return True


cdef bint fill(Placed *s, uint64_t page) noexcept nogil:
    # a page of which some is memory
    cdef uint8_t bytes[4096]
    cdef uint64_t at = page << 12, i = first_behind(s, at), from_
    cdef bint whole = placed_covers(s, at, 4096), zero = True
    cdef const Span *span
    if s.piece[i].mapped <= page < s.piece[i].mapped_end:
        mark(s.filled, page)
        mark(s.head.ready, page)
        return True
    if s.copied >= s.most:
        s.full = True
        return False
    memset(bytes, 0, 4096)
    if not compose(s, at, at + 4096, bytes, &zero):
        return False
    if not whole:                       # what is no memory stays zero: tables are read whole
        from_ = at
        span = s.span
        while span < s.span + s.n_spans and span.start < at + 4096:
            if span.end > at:
                if span.start > from_:
                    memset(bytes + (from_ - at), 0, span.start - from_)
                from_ = min(span.end, at + 4096)
            span += 1
        memset(bytes + (from_ - at), 0, at + 4096 - from_)
    lock(&s.lock)
    if not has(s.filled, page):
        if not zero:
            memcpy(s.base + at, bytes, 4096)
            s.copied += 1
        mark(s.filled, page)
        if whole:
            mark(s.head.ready, page)
    unlock(&s.lock)
    return True


cdef bint hold(Segments *head, uint64_t pa, uint64_t n) noexcept nogil:
    cdef Placed *s = <Placed *> head
    cdef uint64_t page = pa >> 12
    if not placed_covers(s, pa, n):
        return False
    while page <= (pa + n - 1) >> 12:
        if not has(s.filled, page) and not fill(s, page):
            return False
        page += 1
    return True


# ---- bytes -----------------------------------------------------------------------------------------------

cdef uint64_t placed_read(Placed *s, uint64_t pa, uint64_t n, uint8_t *to) noexcept nogil:
    cdef uint64_t done = 0, more, i, at
    cdef const Piece *p
    cdef bint zero
    while done < n:
        at = pa + done
        more = min(n - done, covered_from(s, at))
        if not more:
            break
        i = first_behind(s, at)
        p = s.piece + i
        if p.kind == PIECE_DATA and not s.writable:     # no page of it was changed
            more = min(more, p.end - at)
            memcpy(to + done, s.data + p.offset + (at - p.start), more)
        else:
            more = min(more, 4096 - (at & 0xFFF))
            if has(s.filled, at >> 12):
                memcpy(to + done, s.base + at, more)
            else:
                zero = True
                memset(to + done, 0, more)
                if not compose(s, at, at + more, to + done, &zero):
                    break
        done += more
    return done


# ---- setting up ------------------------------------------------------------------------------------------

cdef int placed_init(Placed *s) noexcept nogil:
    cdef uint64_t i, start, end
    s.head.hold = hold
    s.span = <Span *> calloc(s.n_pieces + 1, sizeof(Span))
    if s.span == NULL:
        return -1
    i = 0
    while i < s.n_pieces:
        start = s.piece[i].start
        end = s.piece[i].end
        i += 1
        while i < s.n_pieces and s.piece[i].start == end:
            end = s.piece[i].end
            i += 1
        start = (start + 7) & ~(<uint64_t> 7)
        end &= ~(<uint64_t> 7)
        if start < end:
            s.span[s.n_spans].start = start
            s.span[s.n_spans].end = end
            s.n_spans += 1
    return 0


cdef void placed_free(Placed *s) noexcept nogil:
    free(s.piece)
    free(s.span)
    free(s)
