"""Arrays that hold pages of 4 KB, 2 MB and 1 GB together, in the place of a second level (`stlb="none"`) or behind it.

skewed  Seznec, "Concurrent Support of Multiple Page Sizes on a Skewed Associative TLB", IEEE TC 2004. Each way has an
        index of its own, and which size it holds is a function of the address: a lookup reads each way once, all
        at a time. Of an address's ways a sixth, but one at least, are for 1 GB, by bits 56:30; of the others every
        second one is for 4 KB and for 2 MB, by bit 21, so that the next 2 MB have them the other way round. Of the
        ways that a page may be in, that used least recently makes room
rehash  hash-rehash: each size has its index in one array, which is read once for each size until the page is found. The
        first is the one that 512 predictions by address bits 29:21 say, the last size found or filled there
        (Papadopoulou, Tong, Seznec, Moshovos, "Prediction-Based Superpage-Friendly TLB Designs", HPCA 2015, predict by
        registers and instructions, which traces do not have); then those of which anything was ever filled, the
        smallest first. `ascending`: 4 KB first, always
mix     MIX TLB: Cox, Bhattacharjee, "Efficient Address Translation for Architectures with Multiple Page Sizes", ASPLOS
        2017. One index, that of 4 KB pages, serves all: a lookup reads the array once. A larger page lies in every set,
        as its 4 KB parts have them all; to be worth that an entry is of up to 8 neighbours of an aligned group whose
        frames follow each other, as the line of the table that the walk read has them, with equal rights. Over EPT
        their guest-physical frames are of one group, too

Unlike other extensions they hold pieces of larger pages of the guest: what invalidates one of them looks at all.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from fastmmu.tlb.entries cimport F_G, NO_EPT, TLB_LA, is_fractured
from fastmmu.tlb.extension cimport (
    Extension, Extensions, Queried, extension_add, extension_tag, query, read_arrays, sound_value, tag_live,
    tag_selected,
)
from fastmmu.tlb.which cimport Which

cdef enum:
    MIXED_SIZES = 3
    GROUP = 8                   # pages of an entry of MIX that are larger than 4 KB
    MIXED_GUESSES = 512

cdef struct MixedEntry:
    uint64_t tag                # 0: empty
    uint64_t page               # number by its size; of a group its first
    uint64_t value              # of that page
    uint64_t used
    uint32_t size
    uint32_t held               # of a group: bit i, its i-th page

cdef struct Mixed:
    int kind
    uint32_t sets, ways, log
    uint64_t clock
    bint filled[3]              # by size: ever
    bint pieces                 # one was ever filled
    MixedEntry *entry           # [set * ways + way]
    uint8_t guess[512]


cdef inline uint64_t page_at(uint64_t la, int size) noexcept nogil:
    return (la & TLB_LA) >> (12 + 9 * size)


# ---- where a page may be ----------------------------------------------------------------------------------

cdef inline int size_of_way(const Mixed *m, uint32_t way, uint64_t la) noexcept nogil:
    # SKEWED: the size that it holds for an address
    cdef uint32_t huge = m.ways // 6 if m.ways >= 6 else 1
    cdef uint32_t place = (way + (page_at(la, 2) % m.ways)) % m.ways
    if place < huge:
        return 2
    return (place - huge + page_at(la, 1)) & 1


cdef inline uint32_t skewed_set(const Mixed *m, uint32_t way, uint64_t page) noexcept nogil:
    # the page's low bits, XOR a hash of the others that is the way's own
    cdef uint64_t rest = page >> m.log
    return <uint32_t> ((page ^ (rest * (2 * way + 1) * <uint64_t> 0x9E3779B97F4A7C15 >> 40)) & (m.sets - 1))


cdef inline MixedEntry *row_of(const Mixed *m, uint64_t page) noexcept nogil:
    return m.entry + (page & (m.sets - 1)) * m.ways


cdef inline MixedEntry *place_of(const Mixed *m, uint32_t way, int size, uint64_t la) noexcept nogil:
    # where this way may hold the page of this size; NULL: nowhere
    if m.kind != SKEWED:
        return row_of(m, page_at(la, size)) + way
    if size_of_way(m, way, la) != size:
        return NULL
    return m.entry + <uint64_t> skewed_set(m, way, page_at(la, size)) * m.ways + way


cdef inline bint holds(const MixedEntry *e, uint64_t la) noexcept nogil:
    # whatever its tag
    cdef uint64_t page = page_at(la, e.size)
    return page - e.page < GROUP and e.held >> (page - e.page) & 1


cdef inline uint64_t value_at(const MixedEntry *e, uint64_t la) noexcept nogil:
    return e.value + (page_at(la, e.size) - e.page << (12 + 9 * e.size))


# ---- lookups ----------------------------------------------------------------------------------------------

cdef MixedEntry *found(Mixed *m, Extensions *x, int size, uint64_t la) noexcept nogil:
    # by the index of one size; SKEWED, MIX: of any size
    cdef MixedEntry *e
    cdef uint64_t tag = x.local
    cdef uint32_t w
    cdef int _
    for _ in range(2):
        if tag:
            for w in range(m.ways):
                e = place_of(m, w, size_of_way(m, w, la) if m.kind == SKEWED else size, la)
                if e.tag == tag and (m.kind < REHASH or m.kind == MIX or e.size == <uint32_t> size) and holds(e, la):
                    return e
        tag = x.everywhere
    return NULL


cdef uint64_t find(Extension *e, Extensions *x, int acc, uint64_t la) noexcept nogil:
    cdef Mixed *m = <Mixed *> e.self
    cdef uint8_t *guess = &m.guess[la >> 21 & (MIXED_GUESSES - 1)]
    cdef MixedEntry *it = NULL
    cdef int i, size, first = guess[0]
    if m.kind == SKEWED or m.kind == MIX:
        read_arrays(e, x, 1)
        it = found(m, x, 0, la)
    else:
        for i in range(-1, MIXED_SIZES):
            size = first if i < 0 else i
            if i < 0 or i != first and m.filled[i]:
                read_arrays(e, x, 1)
                it = found(m, x, size, la)
                if it != NULL:
                    if m.kind == REHASH:
                        guess[0] = size
                    break
    if it == NULL:
        return 0
    m.clock += 1
    it.used = m.clock
    return value_at(it, la)


# ---- fills ------------------------------------------------------------------------------------------------

cdef MixedEntry *victim(const Extensions *x, MixedEntry *best, MixedEntry *other) noexcept nogil:
    # of two places: an empty one before one that was used, the first before the second
    if best == NULL or not tag_live(x, best.tag):
        return other if best == NULL else best
    if not tag_live(x, other.tag) or other.used < best.used:
        return other
    return best


cdef void put(Mixed *m, Extension *e, Extensions *x, MixedEntry *at, const MixedEntry *new) noexcept nogil:
    if tag_live(x, at.tag):
        e.c.evictions += 1
    m.clock += 1
    at[0] = new[0]
    at.used = m.clock


cdef void put_single(Mixed *m, Extension *e, Extensions *x, uint64_t la, const MixedEntry *new) noexcept nogil:
    # in the place of an entry of the same page, or of another one
    cdef MixedEntry *at
    cdef MixedEntry *to = NULL
    cdef uint32_t w
    for w in range(m.ways):
        at = place_of(m, w, new.size, la)
        if at != NULL and at.tag == new.tag and at.size == new.size and at.page == new.page:
            at.tag = 0
            to = at
            break
    else:
        for w in range(m.ways):
            at = place_of(m, w, new.size, la)
            if at != NULL:
                to = victim(x, to, at)
    put(m, e, x, to, new)


cdef void put_group(Mixed *m, Extension *e, Extensions *x, MixedEntry *row, const MixedEntry *new) noexcept nogil:
    # into one set: what continues it becomes one with it, what held any of its pages does so no more
    cdef MixedEntry both = new[0]
    cdef MixedEntry *to = NULL
    cdef uint32_t w
    for w in range(m.ways):
        if row[w].tag == new.tag and row[w].size == new.size and row[w].page == new.page:
            if row[w].value == new.value:
                both.held |= row[w].held
                row[w].tag = 0
            else:
                row[w].held &= ~new.held
                if not row[w].held:
                    row[w].tag = 0
    for w in range(m.ways):
        to = victim(x, to, &row[w])
    put(m, e, x, to, &both)


cdef uint32_t neighbours(Extension *e, Extensions *x, uint64_t la, uint64_t value, uint32_t at) noexcept nogil:
    # pages of the group, as bits, whose frames follow each other through the one `at` it; without a gap
    cdef Queried own, other
    cdef uint32_t held = 1U << at, shift = 12 + 9 * (value >> 8 & 3)
    cdef int64_t i, apart
    cdef int step
    query(x, la, &own)
    e.c.queries += 1
    if own.value != value:
        return held
    for step in range(-1, 2, 2):
        i = <int64_t> at + step
        while 0 <= i < GROUP:
            apart = (i - <int64_t> at) * (<int64_t> 1 << shift)
            query(x, la + <uint64_t> apart, &other)
            e.c.queries += 1
            if other.value == 0 or other.value != value + <uint64_t> apart:
                break
            if x.tlb.eptrta != NO_EPT and (other.gpa ^ own.gpa) >> (shift + 3):
                break
            held |= 1U << i
            i += step
    return held


cdef void filled(Extension *e, Extensions *x, int acc, uint64_t la, uint64_t value) noexcept nogil:
    cdef Mixed *m = <Mixed *> e.self
    cdef MixedEntry new
    cdef uint32_t at, s
    cdef int size = value >> 8 & 3
    new.tag = extension_tag(x, value & F_G != 0)
    new.size = size
    new.page = page_at(la, size)
    new.value = value
    new.held = 1
    new.used = 0
    m.filled[size] = True
    m.guess[la >> 21 & (MIXED_GUESSES - 1)] = size if m.kind == REHASH else 0
    if is_fractured(value):
        m.pieces = True
    e.c.fills += 1
    if m.kind != MIX or size == 0:
        put_single(m, e, x, la, &new)
        return
    if not is_fractured(value):
        at = new.page & (GROUP - 1)
        new.held = neighbours(e, x, la, value, at)
        new.page -= at
        new.value -= <uint64_t> at << (12 + 9 * size)
    for s in range(m.sets):
        put_group(m, e, x, m.entry + <uint64_t> s * m.ways, &new)
    e.c.mirrors += m.sets - 1


# ---- invalidations ----------------------------------------------------------------------------------------

cdef inline bint of_page(const MixedEntry *e, uint64_t la) noexcept nogil:
    # a piece of the guest's page that la is in
    cdef int page = e.value >> 10 & 3
    cdef int shift = 22 if page == 3 else 12 + 9 * page
    return page > <int> e.size and ((e.page << (12 + 9 * e.size)) ^ (la & TLB_LA)) >> shift == 0


cdef void forget(Extension *e, Extensions *x, MixedEntry *it, uint64_t la, const Which *q) noexcept nogil:
    if it == NULL or not tag_selected(x, q, it.tag):
        return
    if x.whole and of_page(it, la):
        e.c.invalidated += 1
        it.tag = 0
    elif holds(it, la):
        e.c.invalidated += 1
        it.held &= ~(1U << (page_at(la, it.size) - it.page))
        if not it.held:
            it.tag = 0


cdef void dropped(Extension *e, Extensions *x, uint64_t la, const Which *q) noexcept nogil:
    cdef Mixed *m = <Mixed *> e.self
    cdef uint64_t i
    cdef uint32_t w
    cdef int size
    if x.whole and m.pieces or m.kind == MIX and (m.filled[1] or m.filled[2]):
        for i in range(<uint64_t> m.sets * m.ways):
            forget(e, x, &m.entry[i], la, q)
        return
    for size in range(MIXED_SIZES):
        if m.filled[size]:
            for w in range(m.ways):
                forget(e, x, place_of(m, w, size, la), la, q)


# ---- made and freed ---------------------------------------------------------------------------------------

cdef void *block(Extension *e, uint32_t i, uint64_t *nbytes) noexcept nogil:
    # Mixed. Of the new one: kind sets ways log
    cdef Mixed *m = <Mixed *> e.self
    cdef void *part[5]
    cdef uint64_t size[5]
    part[0], size[0] = &m.clock, sizeof(m.clock)
    part[1], size[1] = <void *> m.filled, sizeof(m.filled)
    part[2], size[2] = &m.pieces, sizeof(m.pieces)
    part[3], size[3] = <void *> m.guess, sizeof(m.guess)
    part[4], size[4] = m.entry, <uint64_t> m.sets * m.ways * sizeof(MixedEntry)
    if i > 4:
        return NULL
    nbytes[0] = size[i]
    return part[i]


cdef bint sound(const Extension *e, const Extensions *x) noexcept nogil:
    cdef const Mixed *m = <const Mixed *> e.self
    cdef const MixedEntry *it
    cdef uint64_t i, value
    cdef int j
    for i in range(MIXED_GUESSES):
        if m.guess[i] >= MIXED_SIZES:
            return False
    for i in range(<uint64_t> m.sets * m.ways):
        it = &m.entry[i]
        if it.size >= MIXED_SIZES or it.held >> GROUP:
            return False
        for j in range(GROUP):
            value = it.value + (<uint64_t> j << (12 + 9 * it.size))
            if it.held >> j & 1 and (not sound_value(value) or value >> 8 & 3 != it.size):
                return False
    return True


cdef void end(Extension *e) noexcept nogil:
    free((<Mixed *> e.self).entry)
    free(e.self)


cdef int mixed_add(Extensions *x, int kind, uint32_t sets, uint32_t ways) noexcept nogil:
    cdef Mixed *m = <Mixed *> calloc(1, sizeof(Mixed))
    cdef Extension *e
    if m == NULL:
        return -1
    m.kind = kind
    m.sets = sets
    m.ways = ways
    while 1U << m.log < sets:
        m.log += 1
    m.entry = <MixedEntry *> calloc(<uint64_t> sets * ways, sizeof(MixedEntry))
    e = NULL
    if m.entry != NULL:
        e = extension_add(x, b"skewed" if kind == SKEWED else b"mix" if kind == MIX else b"rehash")
    if e == NULL:
        free(m.entry)
        free(m)
        return -1
    e.self = m
    e.find = find
    e.filled = filled
    e.dropped = dropped
    e.end = end
    e.block = block
    e.sound = sound
    return 0
