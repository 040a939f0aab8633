"""Entries for several neighbouring pages, beside the second level.

Clustered: Pham, Bhattacharjee, Eckert, Loh, "Increasing TLB Reach by Exploiting Clustering in Page Translations",
HPCA 2014. An entry holds up to 8 pages of an aligned group whose frames lie in one aligned group, too, in any order,
with equal rights. Coalesced: Pham, Vaidyanathan, Jaleel, Bhattacharjee, "CoLT: Coalesced Large-Reach TLBs", MICRO
2012: the frames follow each other as the pages do, wherever they begin.

A walk reads a cache line of the last table, 8 entries. Of those that are of the walk's group, present, with every
accessed flag set and all else equal (rights, D, G, key, memory type), an entry is made where there are two or more.
Over EPT it is the combined translation that has to be clustered, and the guest-physical frames of an entry must lie
in one group of 8 as well: then their EPT entries, too, are in the one line that the walk read.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free


from fastmmu.tlb.entries cimport F_G, NO_EPT, TLB_FRAME, TLB_LA
from fastmmu.tlb.extension cimport (
    Extension, Extensions, Queried, extension_add, extension_tag, query, read_arrays,
    sound_value, tag_live, tag_selected,
)
from fastmmu.tlb.which cimport Which

cdef enum:
    SIZES = 15 << 8             # of a value: of page and entry; 0: both 4K
    LINE = 15                   # log2 of what a line of a table maps

cdef struct Cluster:
    uint64_t tag                # 0: empty
    uint64_t first              # number of the group's first page
    uint64_t used               # time
    uint64_t value[8]           # [page], 0: not held

cdef struct Clusters:
    uint32_t pages, log, sets, ways
    bint contiguous
    uint64_t clock
    Cluster *entry


cdef inline Cluster *row_of(const Clusters *c, uint64_t first) noexcept nogil:
    return c.entry + (first >> c.log & (c.sets - 1)) * c.ways


cdef uint64_t find(Extension *e, Extensions *x, int acc, uint64_t la) noexcept nogil:
    cdef Clusters *c = <Clusters *> e.self
    cdef uint64_t page = (la & TLB_LA) >> 12, first = page & ~<uint64_t> (c.pages - 1), tag = x.local
    cdef Cluster *row = row_of(c, first)
    cdef uint32_t w
    cdef int _
    read_arrays(e, x, 1)
    for _ in range(2):
        if tag:
            for w in range(c.ways):
                if row[w].tag == tag and row[w].first == first and row[w].value[page - first]:
                    c.clock += 1
                    row[w].used = c.clock
                    return row[w].value[page - first]
        tag = x.everywhere
    return 0


cdef inline bint of_group(const Clusters *c, const Queried *own, const Queried *other, int64_t apart,
                          bint nested) noexcept nogil:
    # apart: pages from the one to the other
    if other.value == 0 or (other.value ^ own.value) & ~TLB_FRAME:
        return False
    if nested and (other.gpa ^ own.gpa) >> LINE:
        return False
    if c.contiguous:
        return (other.value & TLB_FRAME) - (own.value & TLB_FRAME) == <uint64_t> apart << 12 \
            and (other.gpa >> 12) - (own.gpa >> 12) == <uint64_t> apart
    return ((other.value ^ own.value) & TLB_FRAME) >> (12 + c.log) == 0


cdef void learn(const Clusters *c, Extension *e, Extensions *x, uint64_t la, uint32_t at, const Queried *own,
                uint64_t *values) noexcept nogil:
    # the pages of the group that share an entry with la's
    cdef Queried other
    cdef int64_t i
    cdef int step
    cdef bint nested = x.tlb.eptrta != NO_EPT
    values[at] = own.value
    for step in range(-1, 2, 2):
        i = <int64_t> at + step
        while 0 <= i < <int64_t> c.pages:
            query(x, la + (<uint64_t> (i - <int64_t> at) << 12), &other)
            e.c.queries += 1
            if of_group(c, own, &other, i - <int64_t> at, nested):
                values[i] = other.value
            elif c.contiguous:
                break
            i += step


cdef inline bint empty(const Cluster *c, uint32_t pages) noexcept nogil:
    cdef uint32_t i
    for i in range(pages):
        if c.value[i]:
            return False
    return True


cdef void filled(Extension *e, Extensions *x, int acc, uint64_t la, uint64_t value) noexcept nogil:
    cdef Clusters *c = <Clusters *> e.self
    cdef uint64_t page = (la & TLB_LA) >> 12, first = page & ~<uint64_t> (c.pages - 1), tag
    cdef uint64_t values[8]
    cdef Cluster *row = row_of(c, first)
    cdef Queried own
    cdef uint32_t i, w, n = 0, victim = 0
    if value & SIZES:
        return
    query(x, la, &own)
    e.c.queries += 1
    if own.value != value:
        return
    for i in range(8):
        values[i] = 0
    learn(c, e, x, la, <uint32_t> (page - first), &own, values)
    for i in range(c.pages):
        n += values[i] != 0
    if n < 2:
        return
    tag = extension_tag(x, value & F_G != 0)
    for w in range(c.ways):     # what it holds now is no other entry's any more
        if row[w].tag == tag and row[w].first == first:
            for i in range(c.pages):
                if values[i]:
                    row[w].value[i] = 0
            if empty(&row[w], c.pages):
                row[w].tag = 0
    for w in range(c.ways):
        if not tag_live(x, row[w].tag):
            victim = w
            break
        if row[w].used < row[victim].used:
            victim = w
    else:
        e.c.evictions += 1
    e.c.fills += 1
    c.clock += 1
    row[victim].tag = tag
    row[victim].first = first
    row[victim].used = c.clock
    for i in range(8):
        row[victim].value[i] = values[i]


cdef void dropped(Extension *e, Extensions *x, uint64_t la, const Which *q) noexcept nogil:
    cdef Clusters *c = <Clusters *> e.self
    cdef uint64_t page = (la & TLB_LA) >> 12, first = page & ~<uint64_t> (c.pages - 1)
    cdef Cluster *row = row_of(c, first)
    cdef uint32_t w
    for w in range(c.ways):
        if row[w].first == first and row[w].value[page - first] and tag_selected(x, q, row[w].tag):
            row[w].value[page - first] = 0
            e.c.invalidated += 1
            if empty(&row[w], c.pages):
                row[w].tag = 0


cdef void *block(Extension *e, uint32_t i, uint64_t *nbytes) noexcept nogil:
    # Clusters. Of the new one: pages log sets ways contiguous
    cdef Clusters *c = <Clusters *> e.self
    if i == 0:
        nbytes[0] = sizeof(c.clock)
        return &c.clock
    nbytes[0] = <uint64_t> c.sets * c.ways * sizeof(Cluster)
    return c.entry if i == 1 else NULL


cdef bint sound(const Extension *e, const Extensions *x) noexcept nogil:
    cdef const Clusters *c = <const Clusters *> e.self
    cdef uint64_t i, j
    for i in range(<uint64_t> c.sets * c.ways):
        for j in range(8):
            if not sound_value(c.entry[i].value[j]):
                return False
    return True


cdef void end(Extension *e) noexcept nogil:
    free((<Clusters *> e.self).entry)
    free(e.self)


cdef int clustered_add(Extensions *x, uint32_t pages, uint32_t sets, uint32_t ways, bint contiguous) noexcept nogil:
    cdef Clusters *c = <Clusters *> calloc(1, sizeof(Clusters))
    cdef Extension *e
    if c == NULL:
        return -1
    c.pages = pages
    while 1U << c.log < pages:
        c.log += 1
    c.sets = sets
    c.ways = ways
    c.contiguous = contiguous
    c.entry = <Cluster *> calloc(<uint64_t> sets * ways, sizeof(Cluster))
    e = extension_add(x, b"coalesced" if contiguous else b"clustered") if c.entry != NULL else NULL
    if e == NULL:
        free(c.entry)
        free(c)
        return -1
    e.self = c
    e.find = find
    e.filled = filled
    e.dropped = dropped
    e.end = end
    e.block = block
    e.sound = sound
    return 0
