"""A large TLB in memory, asked where the second level misses.

Ryoo, Gulur, Song, John, "Rethinking TLB Designs in Virtualized Environments: A Very Large Part-of-Memory TLB", ISCA
2017 (POM-TLB). Half of it is for pages of 4 KB, half for those of 2 MB, each of sets of 4 entries of 16 bytes, a
cache line: a lookup of one is one reference. 512 bits, by address bits 29:21, predict which half is asked first; the
other one follows where that misses. The set is that of the page's number XOR the VPID (the paper: VM ID) times
0x9E3B; LRU in the set. A walk leaves its translation there by one more reference.

Its lines have host-physical addresses of their own, from 2^46 on: `Extensions.reference` holds that of the last one.
A lookup waits for its references; a fill is a store, for which nothing waits.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from fastmmu._zeroed cimport zeroed, zeroed_free
from fastmmu.tlb.entries cimport F_G, TLB_LA, is_fractured
from fastmmu.tlb.extension cimport (
    POM_BASE, Extension, Extensions, extension_add, extension_tag, refer, sound_value, tag_live,
    tag_selected,
)
from fastmmu.tlb.which cimport Which, selects

cdef enum:
    WAYS = 4
    LINE = 64
    PREDICTIONS = 512

cdef struct PomEntry:
    uint64_t tag                # 0: empty
    uint64_t page
    uint64_t value
    uint64_t used

cdef struct Pom:
    uint64_t sets               # of each half
    uint64_t clock
    PomEntry *half[2]           # [size]
    uint8_t large[512]          # predictions


cdef inline uint64_t set_of(const Pom *p, int size, uint64_t page, uint32_t vpid) noexcept nogil:
    return (page ^ <uint64_t> vpid * 0x9E3B) & (p.sets - 1)


cdef inline PomEntry *asked(Extension *e, Extensions *x, const Pom *p, int size, uint64_t page,
                            uint32_t vpid, bint store) noexcept nogil:
    # the set, by one reference to memory
    cdef uint64_t s = set_of(p, size, page, vpid)
    refer(e, x, POM_BASE + (size * p.sets + s) * LINE, store, not store)
    return p.half[size] + s * WAYS


cdef uint64_t find(Extension *e, Extensions *x, int acc, uint64_t la) noexcept nogil:
    cdef Pom *p = <Pom *> e.self
    cdef uint64_t page, tag
    cdef PomEntry *row
    cdef uint32_t w
    cdef uint8_t *guess = &p.large[la >> 21 & (PREDICTIONS - 1)]
    cdef int i, _, size
    for i in range(2):
        size = guess[0] ^ i
        page = (la & TLB_LA) >> (12 + 9 * size)
        row = asked(e, x, p, size, page, x.tlb.vpid, False)
        tag = x.local
        for _ in range(2):
            if tag:
                for w in range(WAYS):
                    if row[w].tag == tag and row[w].page == page:
                        p.clock += 1
                        row[w].used = p.clock
                        guess[0] = size
                        return row[w].value
            tag = x.everywhere
    return 0


cdef void filled(Extension *e, Extensions *x, int acc, uint64_t la, uint64_t value) noexcept nogil:
    cdef Pom *p = <Pom *> e.self
    cdef int size = value >> 8 & 3
    cdef uint64_t page = (la & TLB_LA) >> (12 + 9 * size), tag
    cdef PomEntry *row
    cdef uint32_t w, victim = 0
    if size > 1 or is_fractured(value):
        return
    tag = extension_tag(x, value & F_G != 0)
    row = asked(e, x, p, size, page, x.tlb.vpid, True)
    p.large[la >> 21 & (PREDICTIONS - 1)] = size
    for w in range(WAYS):
        if row[w].tag == tag and row[w].page == page:
            victim = w
            break
    else:
        for w in range(WAYS):
            if not tag_live(x, row[w].tag):
                victim = w
                break
            if row[w].used < row[victim].used:
                victim = w
        else:
            e.c.evictions += 1
    e.c.fills += 1
    p.clock += 1
    row[victim].tag = tag
    row[victim].page = page
    row[victim].value = value
    row[victim].used = p.clock


cdef void drop_in(Extension *e, Extensions *x, Pom *p, uint32_t vpid, uint64_t la, const Which *q) noexcept nogil:
    cdef PomEntry *row
    cdef uint64_t page
    cdef uint32_t w
    cdef int size
    for size in range(2):
        page = (la & TLB_LA) >> (12 + 9 * size)
        row = p.half[size] + set_of(p, size, page, vpid) * WAYS
        for w in range(WAYS):
            if row[w].page == page and tag_selected(x, q, row[w].tag):
                row[w].tag = 0
                e.c.invalidated += 1


cdef void dropped(Extension *e, Extensions *x, uint64_t la, const Which *q) noexcept nogil:
    # the sets of the VPIDs that q selects; one that comes twice holds nothing the second time
    cdef uint32_t i
    for i in range(x.n_live):
        if selects(q, &x.space[x.live[i]].tags):
            drop_in(e, x, <Pom *> e.self, x.space[x.live[i]].tags.vpid, la, q)


cdef void *block(Extension *e, uint32_t i, uint64_t *nbytes) noexcept nogil:
    # Pom. Of the new one: sets
    cdef Pom *p = <Pom *> e.self
    nbytes[0] = sizeof(p.clock) if i == 0 else sizeof(p.large) if i == 1 else p.sets * WAYS * sizeof(PomEntry)
    if i == 0:
        return &p.clock
    return <void *> p.large if i == 1 else <void *> p.half[i - 2] if i < 4 else NULL


cdef bint sound(const Extension *e, const Extensions *x) noexcept nogil:
    cdef const Pom *p = <const Pom *> e.self
    cdef uint64_t i
    cdef int size
    for i in range(PREDICTIONS):
        if p.large[i] > 1:
            return False
    for size in range(2):
        for i in range(p.sets * WAYS):
            if p.half[size][i].tag and (not sound_value(p.half[size][i].value)
                                        or <int> (p.half[size][i].value >> 8 & 3) != size):
                return False
    return True


cdef void end(Extension *e) noexcept nogil:
    zeroed_free((<Pom *> e.self).half[0])
    zeroed_free((<Pom *> e.self).half[1])
    free(e.self)


cdef int pom_add(Extensions *x, uint64_t nbytes) noexcept nogil:
    cdef Pom *p = <Pom *> calloc(1, sizeof(Pom))
    cdef Extension *e = NULL
    cdef int size
    if p == NULL:
        return -1
    p.sets = nbytes // (2 * LINE)
    for size in range(2):
        p.half[size] = <PomEntry *> zeroed(p.sets * WAYS, sizeof(PomEntry))
    if p.half[0] != NULL and p.half[1] != NULL:
        e = extension_add(x, b"pom")
    if e == NULL:
        zeroed_free(p.half[0])
        zeroed_free(p.half[1])
        free(p)
        return -1
    e.self = p
    e.find = find
    e.filled = filled
    e.dropped = dropped
    e.end = end
    e.block = block
    e.sound = sound
    return 0
