"""Range entries: base, limit, offset and rights of any number of pages, beside the second level.

Karakostas, Gandhi, Ayar, Cristal, Hill, McKinley, Nemirovsky, Swift, Unsal, "Redundant Memory Mappings for Fast
Access to Large Memories", ISCA 2015. The range TLB is small and fully associative; a miss of it walks a range table,
which the OS keeps. Here the table is not in memory: it is what the tables say, as an OS would keep it that maps
ranges eagerly. The range of a page is found at its walk: pages of its size on both sides of it, up to 512 each way,
while the translation goes on (of guest and EPT combined), all else is equal (rights, D, G, key, memory type) and
every accessed flag is set. A range of one page is none. A range that the new one meets or touches ends in it where
its offset and all else are the same, and makes room for it where they are not.

A walk of the range table is charged 2 references: a B-tree whose nodes of 4 KB hold 124 ranges has two levels for 15
000. It goes on beside the walk of the page tables, which serves the access: nothing waits for it. An invalidation of an
address ends the whole range that covers it.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from fastmmu.tlb.entries cimport F_G, TLB_FRAME, TLB_LA, is_fractured
from fastmmu.tlb.extension cimport (
    Extension, Extensions, Queried, RANGE_BASE, SPACES, extension_add, extension_tag, query, read_arrays,
    refer, sound_value, tag_live, tag_selected,
)
from fastmmu.tlb.which cimport Which

cdef enum:
    BOUND = 512                 # pages, each way

cdef struct Range:
    uint64_t tag                # 0: empty
    uint64_t first, last        # pages of 4K
    uint64_t value              # of the first
    uint64_t used

cdef struct Ranges:
    uint32_t entries
    uint64_t clock
    Range *entry


cdef uint64_t find(Extension *e, Extensions *x, int acc, uint64_t la) noexcept nogil:
    cdef Ranges *r = <Ranges *> e.self
    cdef uint64_t page = (la & TLB_LA) >> 12, tag = x.local
    cdef Range *a
    cdef uint32_t i
    cdef int _, log
    read_arrays(e, x, 1)
    for _ in range(2):
        if tag:
            for i in range(r.entries):
                a = &r.entry[i]
                if a.tag == tag and a.first <= page <= a.last:
                    r.clock += 1
                    a.used = r.clock
                    log = 9 * (a.value >> 8 & 3)
                    return a.value + ((page - a.first) >> log << log << 12)
        tag = x.everywhere
    return 0


cdef uint64_t reach(Extension *e, Extensions *x, uint64_t la, uint64_t value, int64_t step) noexcept nogil:
    # pages that go on from la in steps of a page
    cdef uint64_t n = 0, shift = 12 + 9 * (value >> 8 & 3)
    cdef int64_t by = step * (<int64_t> 1 << shift)
    cdef uint64_t at = la
    cdef Queried other
    while n < BOUND:
        if step > 0 and (at & TLB_LA) + by > TLB_LA or step < 0 and (at & TLB_LA) < <uint64_t> -by:
            break
        at += by
        query(x, at, &other)
        e.c.queries += 1
        value += by
        if other.value != value or (value & TLB_FRAME) == 0:
            break
        n += 1
    return n


cdef void walk_table(Extension *e, Extensions *x, uint64_t la) noexcept nogil:
    # of the context in force, 2**28 bytes each: a line of the root by bits 47:42 of the address, of a leaf by 41:21
    cdef uint64_t table = RANGE_BASE + ((extension_tag(x, False) & (SPACES - 1)) << 28)
    refer(e, x, table + (la >> 42 & 63) * 64, False, False)
    refer(e, x, table + (1 << 27) + (la >> 21 & 0x1FFFFF) * 64, False, False)


cdef void filled(Extension *e, Extensions *x, int acc, uint64_t la, uint64_t value) noexcept nogil:
    cdef Ranges *r = <Ranges *> e.self
    cdef Range *a
    cdef Queried own
    cdef uint64_t page, below, above, first, last, base, tag
    cdef uint32_t i, victim = 0
    cdef int log = 9 * (value >> 8 & 3)
    if is_fractured(value):
        return
    walk_table(e, x, la)
    la = la >> (12 + log) << (12 + log)
    query(x, la, &own)
    e.c.queries += 1
    if own.value != value:
        return
    above = reach(e, x, la, value, 1)
    below = reach(e, x, la, value, -1)
    if above + below == 0:
        return
    page = (la & TLB_LA) >> 12
    first = page - (below << log)
    last = page + ((above + 1) << log) - 1
    tag = extension_tag(x, value & F_G != 0)
    base = value - (below << log << 12)
    for i in range(r.entries):
        a = &r.entry[i]
        if a.tag == tag and a.first <= last + 1 and first <= a.last + 1:
            a.tag = 0
            if a.value - (a.first << 12) == base - (first << 12):
                if a.first < first:
                    base = a.value
                    first = a.first
                last = max(last, a.last)
    for i in range(r.entries):
        if not tag_live(x, r.entry[i].tag):
            victim = i
            break
        if r.entry[i].used < r.entry[victim].used:
            victim = i
    else:
        e.c.evictions += 1
    e.c.fills += 1
    r.clock += 1
    a = &r.entry[victim]
    a.tag = tag
    a.first = first
    a.last = last
    a.value = base
    a.used = r.clock


cdef void dropped(Extension *e, Extensions *x, uint64_t la, const Which *q) noexcept nogil:
    cdef Ranges *r = <Ranges *> e.self
    cdef uint64_t page = (la & TLB_LA) >> 12
    cdef uint32_t i
    for i in range(r.entries):
        if r.entry[i].first <= page <= r.entry[i].last and tag_selected(x, q, r.entry[i].tag):
            r.entry[i].tag = 0
            e.c.invalidated += 1


cdef void *block(Extension *e, uint32_t i, uint64_t *nbytes) noexcept nogil:
    # Ranges. Of the new one: entries
    cdef Ranges *r = <Ranges *> e.self
    if i == 0:
        nbytes[0] = sizeof(r.clock)
        return &r.clock
    nbytes[0] = r.entries * sizeof(Range)
    return r.entry if i == 1 else NULL


cdef bint sound(const Extension *e, const Extensions *x) noexcept nogil:
    # a value of which all pages have one
    cdef const Ranges *r = <const Ranges *> e.self
    cdef const Range *a
    cdef uint64_t i
    for i in range(r.entries):
        a = &r.entry[i]
        if a.tag and (a.first > a.last or a.last > TLB_LA >> 12 or not sound_value(a.value)
                      or (a.value & TLB_FRAME) + (a.last - a.first << 12) > TLB_FRAME):
            return False
    return True


cdef void end(Extension *e) noexcept nogil:
    free((<Ranges *> e.self).entry)
    free(e.self)


cdef int ranges_add(Extensions *x, uint32_t entries) noexcept nogil:
    cdef Ranges *r = <Ranges *> calloc(1, sizeof(Ranges))
    cdef Extension *e
    if r == NULL:
        return -1
    r.entries = entries
    r.entry = <Range *> calloc(entries, sizeof(Range))
    e = extension_add(x, b"range") if r.entry != NULL else NULL
    if e == NULL:
        free(r.entry)
        free(r)
        return -1
    e.self = r
    e.find = find
    e.filled = filled
    e.dropped = dropped
    e.end = end
    e.block = block
    e.sound = sound
    return 0
