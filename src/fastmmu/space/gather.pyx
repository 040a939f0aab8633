"""Kernel of reads at linear addresses. Header: space/gather.pxd."""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memset

from fastmmu.arch.bits cimport ONES
from fastmmu.arch.types cimport FAULT_BUS, FAULT_GP, FAULT_NONE, MODE_4
from fastmmu.paging.batch cimport query_aside, translate_batch
from fastmmu.paging.segments cimport Span, placed_read

cdef extern from *:
    """
    #define FM_RARE(x) __builtin_expect(!!(x), 0)
    """
    bint rare "FM_RARE"(bint) noexcept nogil
    void prefetch "__builtin_prefetch"(const void *) noexcept nogil

cdef enum:
    PAGES = 64                  # translated at a time: a block of the batch walk


cdef void gather_init(Gather *s, Mem *m, Placed *placed, Paging *g, Ept *e) noexcept nogil:
    memset(s, 0, sizeof(Gather))
    query_aside(&s.query, m, g, e)
    s.query.region_bits = GATHER_REGION_BITS
    s.query.guest = s.guest
    s.query.ept = s.ept
    s.placed = placed
    s.end = ONES if g.mode >= MODE_4 else 0xFFFFFFFFU


cdef void missing(Gather *s, uint64_t start, uint64_t n, int fault) noexcept nogil:
    if s.n_holes and s.last == start and s.last_fault == fault:
        if s.n_holes <= s.room:
            s.hole[s.n_holes - 1].end = start + n
    else:
        if s.n_holes < s.room:
            s.hole[s.n_holes].start = start
            s.hole[s.n_holes].end = start + n
            s.hole[s.n_holes].fault = fault
        s.n_holes += 1
    s.last = start + n
    s.last_fault = fault


cdef inline const Span *span_behind(const Placed *p, uint64_t pa) noexcept nogil:
    # the first that ends behind an address; NULL: none does
    cdef uint64_t low = 0, high = p.n_spans, middle
    while low < high:
        middle = (low + high) >> 1
        if p.span[middle].end > pa:
            high = middle
        else:
            low = middle + 1
    return p.span + low if low < p.n_spans else NULL


cdef inline uint64_t physical(Gather *s, uint64_t pa, uint64_t n, uint8_t *out) noexcept nogil:
    # as far as memory goes
    cdef const Mem *m = s.query.m
    cdef const Span *span
    if s.placed == NULL:
        if rare(pa >= m.nbytes):
            return 0
        n = min(n, m.nbytes - pa)
        if not s.dry:
            memcpy(out, m.base + pa, n)
        return n
    if not s.dry:
        return placed_read(s.placed, pa, n, out)
    span = span_behind(s.placed, pa)
    return min(n, span.end - pa) if span != NULL and span.start <= pa else 0


cdef inline uint64_t no_memory(const Gather *s, uint64_t pa) noexcept nogil:
    # how far there is none, from an address on that is none, or whose page could not be had
    cdef const Span *span
    if s.placed == NULL:
        return ONES - pa
    span = span_behind(s.placed, pa)
    return ONES - pa if span == NULL else span.start - pa if span.start > pa else 8 - (pa & 7)


cdef uint64_t part(Gather *s, uint64_t va, uint64_t pa, uint64_t n, uint8_t *out) noexcept nogil:
    # bytes of one page, of which some may be no memory
    cdef uint64_t done = 0, had = 0, more
    while True:
        more = physical(s, pa + done, n - done, out + done)
        had += more
        done += more
        if done == n:
            return had
        more = min(n - done, no_memory(s, pa + done))
        if not s.dry:
            memset(out + done, s.pad, more)
        missing(s, va + done, more, FAULT_BUS)
        done += more
        if done == n:
            return had


cdef inline uint64_t within(const Gather *s, uint64_t va, uint64_t n) noexcept nogil:
    # how many of n bytes lie below the end of the address space
    if va > s.end or not n:
        return 0
    return min(n - 1, s.end - va) + 1


cdef uint64_t gather(Gather *s, uint64_t va, uint64_t n, uint8_t *out) noexcept nogil:
    cdef uint64_t address[PAGES]
    cdef uint64_t place[PAGES]
    cdef uint8_t fault[PAGES]
    cdef uint64_t had = 0, more, left = within(s, va, n), behind = n - left
    cdef int i, k
    while left:
        address[0] = va
        k = 1
        more = 4096 - (va & 0xFFF)
        while more < left and k < PAGES:
            address[k] = va + more
            more += 4096
            k += 1
        translate_batch(&s.query, address, place, fault, k)
        for i in range(k):
            more = min(left, 4096 - (va & 0xFFF))
            if fault[i] == FAULT_NONE:
                had += part(s, va, place[i], more, out)
            else:
                if not s.dry:
                    memset(out, s.pad, more)
                missing(s, va, more, fault[i])
            va += more
            if not s.dry:
                out += more
            left -= more
    if behind:
        if not s.dry:
            memset(out, s.pad, behind)
        missing(s, va, behind, FAULT_GP)
    return had


cdef uint64_t gather_many(Gather *s, const uint64_t *va, uint64_t k, uint64_t each, uint8_t *out,
                          uint8_t *fault) noexcept nogil:
    cdef uint64_t place[PAGES]
    cdef uint8_t code[PAGES]
    cdef Hole first
    cdef uint64_t i = 0, lacking = 0
    cdef int j, n
    s.hole = &first
    s.room = 1
    while i < k:
        n = <int> min(k - i, <uint64_t> PAGES)
        translate_batch(&s.query, va + i, place, code, n)
        if s.placed == NULL:
            for j in range(n):
                if code[j] == FAULT_NONE and place[j] < s.query.m.nbytes:
                    prefetch(s.query.m.base + place[j])
        for j in range(n):
            first.fault = FAULT_NONE
            if code[j] != FAULT_NONE or each > 4096 - (va[i + j] & 0xFFF) or va[i + j] > s.end \
                    or physical(s, place[j], each, out) < each:
                s.n_holes = 0           # over the border of a page, or some of it is missing
                gather(s, va[i + j], each, out)
                lacking += s.n_holes != 0
            if fault != NULL:
                fault[i + j] = <uint8_t> first.fault
            out += each
        i += n
    s.room = 0
    return lacking
