"""Kernel of the scan for root tables. Header: space/scan.pxd."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport realloc

from fastmmu.paging.segments cimport placed_read

cdef extern from *:
    """
    #define FM_TAKE(next, n) __atomic_fetch_add((next), (n), __ATOMIC_RELAXED)
    """
    uint64_t take "FM_TAKE"(uint64_t *next, uint64_t n) noexcept nogil

cdef enum:
    BLOCK = 64                  # words between two looks whether a page can still be anything

cdef extern from *:
    const uint64_t TOP_BITS "0xFFF0000000000000ULL"


cdef void add(Candidates *found, uint64_t address, int form) noexcept nogil:
    cdef Candidate *row = found.row
    if found.n == found.room:
        row = <Candidate *> realloc(found.row, (2 * found.room + 64) * sizeof(Candidate))
        if row == NULL:
            found.failed = True
            return
        found.row = row
        found.room = 2 * found.room + 64
    row[found.n].address = address
    row[found.n].form = form
    found.n += 1


cdef inline uint64_t any_word(const uint64_t *w) noexcept nogil:
    cdef uint64_t any_ = 0
    cdef int i
    for i in range(512):
        any_ |= w[i]
    return any_


cdef inline bint is_top(const uint64_t *w, uint64_t must_be_0, int present_bits) noexcept nogil:
    # some entry is present, and none that is has one of these bits; present_bits, 1 or 7, is a constant at each call
    cdef uint64_t bad = 0, any_ = 0, p, x
    cdef int i, block
    for block in range(512 // BLOCK):
        for i in range(BLOCK * block, BLOCK * block + BLOCK):
            x = w[i]
            p = x & 1 if present_bits == 1 else (x | x >> 1 | x >> 2) & 1
            any_ |= p
            bad |= (0 - p) & x & must_be_0
        if bad:
            return False
    return any_ != 0


cdef inline bint is_directory(const uint32_t *w, uint32_t high) noexcept nogil:
    cdef uint32_t bad = 0, even = 0, odd = 0, x, y, large
    cdef int i, block
    for block in range(512 // BLOCK):
        for i in range(BLOCK * block, BLOCK * block + BLOCK):
            x = w[2 * i]
            y = w[2 * i + 1]
            even |= x
            odd |= y
            large = 0 - (x >> 7 & 1)
            bad |= (0 - (x & 1)) & x & ((~large & high) | (large & 0x200000))
            large = 0 - (y >> 7 & 1)
            bad |= (0 - (y & 1)) & y & ((~large & high) | (large & 0x200000))
        if bad:
            return False
    return even & odd & 1


cdef inline bint is_pdpte(uint64_t x, uint64_t must_be_0) noexcept nogil:
    return not x or (x & 1 and not x & must_be_0)


cdef void look(Scan *s, Candidates *found, const uint64_t *w, uint64_t address) noexcept nogil:
    cdef uint64_t pdpte = s.high | TOP_BITS | 0x1C6
    cdef int i
    if not any_word(w):
        return
    if s.forms & 1 << FORM_LONG and is_top(w, s.high | 0x80, 1):
        add(found, address, FORM_LONG)
    if s.forms & 1 << FORM_EPT and is_top(w, s.high | 0xF8, 7):
        add(found, address, FORM_EPT)
    if s.forms & 1 << FORM_TWO and address >> 32 == 0 and is_directory(<const uint32_t *> w,
                                                                       <uint32_t> s.high & 0xFFFFF000U):
        add(found, address, FORM_TWO)
    if s.forms & 1 << FORM_PAE and address >> 32 == 0:
        for i in range(0, 512, 4):
            if is_pdpte(w[i], pdpte) and is_pdpte(w[i + 1], pdpte) and is_pdpte(w[i + 2], pdpte) \
                    and is_pdpte(w[i + 3], pdpte) and (w[i] | w[i + 1] | w[i + 2] | w[i + 3]):
                add(found, address + 8 * i, FORM_PAE)


cdef inline uint64_t stretch_of(const Scan *s, uint64_t page) noexcept nogil:
    # the number of the stretch that has a page, counted over all of them
    cdef uint64_t low = 0, high = s.n_stretches, middle
    while high - low > 1:
        middle = (low + high) >> 1
        if s.stretch[middle].before <= page:
            low = middle
        else:
            high = middle
    return low


cdef bint scan_step(Scan *s, Candidates *found, uint8_t *buffer) noexcept nogil:
    cdef uint64_t page = take(&s.next, SCAN_BYTES >> 12), i, k, n, at, left = SCAN_BYTES >> 12
    cdef const Stretch *t
    if page >= s.pages or s.stopped:
        return False
    left = min(left, s.pages - page)
    i = stretch_of(s, page)
    while left:
        t = s.stretch + i
        at = t.start + (page - t.before << 12)
        n = min(left, t.before + t.pages - page)
        if s.placed == NULL:
            for k in range(n):
                look(s, found, <const uint64_t *> (s.m.base + at + (k << 12)), at + (k << 12))
        else:
            k = placed_read(s.placed, at, n << 12, buffer) >> 12
            for k in range(k):
                look(s, found, <const uint64_t *> (buffer + (k << 12)), at + (k << 12))
        page += n
        left -= n
        i += 1
    return True
