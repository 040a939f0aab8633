"""Prefetchers, and the buffer that they fill beside the second level.

A miss of both levels asks the buffer; what it has moves into the TLB. Then, hit or not, the prefetcher hears of it:

    sequential   the next page
    distance     Kandiraju, Sivasubramaniam, "Going the Distance for TLB Prefetching: An Application-Driven Study", ISCA
                 2002. A table of 256 rows by distance, in pages, from the miss before: the last 2 distances that
                 followed it. The pages at those of the present distance
    recency      Saulsbury, Dahlgren, Stenström, "Recency-based TLB Preloading", ISCA 2000. Pages that the second level
                 gave up lie on a stack; a miss takes its page out, and its two neighbours there, given up just before
                 and after it, are prefetched. The stack's links lie beside the entries of the tables: taking out and
                 pushing are 2 references each, for which nothing waits. Of 65536 pages at most: the oldest leaves
    stride       ASP, "arbitrary stride", of Kandiraju and Sivasubramaniam; after Chen, Baer, "Effective Hardware-Based
                 Data Prefetching for High-Performance Processors", IEEE TC 1995. A table of 256 rows by instruction:
                 the page that it missed last, and the distance to it. The page at that distance, where an instruction
                 has it for the second time in a row. Which instruction it is the last fetch of the trace says; without
                 fetches, and in system traces, all accesses are of one
    markov       MP, of the same; after Joseph, Grunwald, "Prefetching using Markov Predictors", ISCA 1997. A table of
                 256 rows by page: the last 2 pages that were missed next after it, which are prefetched

What is in the TLB or the buffer is not prefetched. A prefetch walks, from the root and without the paging-structure
caches: its references, an upper bound, are counted apart from those of walks that accesses wait for. It sets no flag
and never faults; only pages whose accessed flags are set come into the buffer (tlb.md R2): the oldest makes room.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from fastmmu.tlb.entries cimport F_G, TLB_LA, is_fractured
from fastmmu.tlb.extension cimport (
    LINK_BASE, SPACES, Extension, Extensions, Queried, extension_add, extension_cached, extension_tag, last_fetch,
    prefetch_walk, read_arrays, refer, sound_value, tag_live, tag_selected,
)
from fastmmu.tlb.which cimport Which

cdef enum:
    MOST = 64                   # entries of a buffer
    DISTANCES = 256             # rows of the table
    NODES = 65536

cdef struct Buffered:
    uint64_t tag                # 0: empty
    uint64_t page               # number of its page, by its size
    uint64_t value
    uint64_t came

cdef struct Row:
    int64_t distance
    int64_t next[2]             # the later one first
    uint32_t n                  # of them; 0 and of no distance: an empty row

cdef struct Code:               # of an instruction
    uint64_t pc, page
    int64_t distance
    bint known                  # else: an empty row
    bint twice                  # it had this distance before, too

cdef struct Node:               # of the stack
    uint64_t tag, page          # in pages of 4K
    uint32_t above, below       # index; 0: none
    uint32_t chain              # of its bucket

cdef struct Stack:
    uint32_t top, bottom, n, free
    uint32_t head[65536]
    Node node[65537]

cdef struct Prefetches:
    int kind
    uint32_t entries
    uint64_t clock
    Buffered buffer[64]
    bint any                    # there was a miss before
    bint second                 # and one before that
    uint64_t last
    int64_t distance
    Row row[256]                # markov: by page, in the place of a distance
    Code code[256]
    Stack *stack


# ---- the buffer -------------------------------------------------------------------------------------------

cdef inline uint64_t page_at(uint64_t la, uint64_t value) noexcept nogil:
    return (la & TLB_LA) >> (12 + 9 * (value >> 8 & 3))


cdef Buffered *held(Prefetches *p, Extensions *x, uint64_t la) noexcept nogil:
    cdef Buffered *b
    cdef uint64_t tag = x.local
    cdef uint32_t i
    cdef int _
    for _ in range(2):
        if tag:
            for i in range(p.entries):
                b = &p.buffer[i]
                if b.tag == tag and b.page == page_at(la, b.value):
                    return b
        tag = x.everywhere
    return NULL


cdef void prefetch(Prefetches *p, Extension *e, Extensions *x, int acc, uint64_t la) noexcept nogil:
    cdef Queried found
    cdef uint64_t tag
    cdef uint32_t i, victim = 0
    if held(p, x, la) != NULL or extension_cached(x.tlb, acc, la):
        return
    prefetch_walk(e, x, la, &found)
    if found.value == 0 or is_fractured(found.value):
        return
    tag = extension_tag(x, found.value & F_G != 0)
    for i in range(p.entries):
        if not tag_live(x, p.buffer[i].tag):
            victim = i
            break
        if p.buffer[i].came < p.buffer[victim].came:
            victim = i
    else:
        e.c.evictions += 1
    e.c.fills += 1
    p.clock += 1
    p.buffer[victim].tag = tag
    p.buffer[victim].page = page_at(la, found.value)
    p.buffer[victim].value = found.value
    p.buffer[victim].came = p.clock


# ---- the stack --------------------------------------------------------------------------------------------

cdef inline uint32_t *bucket(Stack *s, uint64_t tag, uint64_t page) noexcept nogil:
    return &s.head[((page * 8191 + tag) * <uint64_t> 0x9E3779B97F4A7C15) >> 48]


cdef uint32_t node_of(Stack *s, uint64_t tag, uint64_t page) noexcept nogil:
    cdef uint32_t i = bucket(s, tag, page)[0]
    while i and (s.node[i].tag != tag or s.node[i].page != page):
        i = s.node[i].chain
    return i


cdef void take_out(Stack *s, uint32_t i) noexcept nogil:
    cdef Node *node = &s.node[i]
    cdef uint32_t *link = bucket(s, node.tag, node.page)
    while link[0] != i:
        link = &s.node[link[0]].chain
    link[0] = node.chain
    if node.above:
        s.node[node.above].below = node.below
    else:
        s.top = node.below
    if node.below:
        s.node[node.below].above = node.above
    else:
        s.bottom = node.above
    node.chain = s.free
    s.free = i
    s.n -= 1


cdef void refer_link(Extension *e, Extensions *x, uint64_t tag, uint64_t page) noexcept nogil:
    # 16 bytes a page, beside the entry of a table that follows the pages; a context's tables lie apart from another's
    refer(e, x, LINK_BASE + ((page + ((tag & (SPACES - 1)) << 24) & 0xFFFFFFFFFULL) << 4), True, False)


cdef void refer_links(Extension *e, Extensions *x, uint32_t i) noexcept nogil:
    # of the neighbours of one that is taken out; its own where there are none
    cdef Stack *s = (<Prefetches *> e.self).stack
    cdef Node *node = &s.node[i]
    cdef Node *above = &s.node[node.above] if node.above else node
    cdef Node *below = &s.node[node.below] if node.below else node
    refer_link(e, x, above.tag, above.page)
    refer_link(e, x, below.tag, below.page)


cdef void evicted(Extension *e, Extensions *x, uint64_t tag, uint64_t la, int size) noexcept nogil:
    # onto the top
    cdef Stack *s = (<Prefetches *> e.self).stack
    cdef uint64_t page = (la & TLB_LA) >> (12 + 9 * size) << (9 * size)
    cdef uint32_t i = node_of(s, tag, page)
    cdef uint32_t *head
    if i:
        take_out(s, i)
    elif s.n == NODES:
        take_out(s, s.bottom)
    i = s.free
    s.free = s.node[i].chain
    refer_link(e, x, tag, page)
    if s.top:
        refer_link(e, x, s.node[s.top].tag, s.node[s.top].page)
    else:
        refer_link(e, x, tag, page)
    head = bucket(s, tag, page)
    s.node[i].tag = tag
    s.node[i].page = page
    s.node[i].chain = head[0]
    head[0] = i
    s.node[i].above = 0
    s.node[i].below = s.top
    if s.top:
        s.node[s.top].above = i
    else:
        s.bottom = i
    s.top = i
    s.n += 1


cdef inline uint64_t signed(uint64_t page) noexcept nogil:
    # the canonical address of a page of 57 bits
    return <uint64_t> (<int64_t> (page << 19) >> 7)


cdef void recent(Prefetches *p, Extension *e, Extensions *x, int acc, uint64_t la, uint64_t value) noexcept nogil:
    cdef Stack *s = p.stack
    cdef int log = 9 * (value >> 8 & 3)
    cdef uint64_t page = (la & TLB_LA) >> (12 + log) << log, tag = x.everywhere if value & F_G else x.local
    cdef uint64_t near[2]
    cdef uint32_t i = node_of(s, tag, page), n = 0, j, other
    if not i:
        return
    for j in range(2):
        other = s.node[i].below if j else s.node[i].above
        if other and (s.node[other].tag == x.local or s.node[other].tag == x.everywhere):
            near[n] = signed(s.node[other].page)
            n += 1
    refer_links(e, x, i)
    take_out(s, i)
    for j in range(n):
        prefetch(p, e, x, acc, near[j])


# ---- distances --------------------------------------------------------------------------------------------

cdef inline Row *row_of(Prefetches *p, int64_t distance) noexcept nogil:
    return &p.row[<uint64_t> distance & (DISTANCES - 1)]


cdef void follow(Row *row, int64_t of, int64_t what) noexcept nogil:
    # `what` followed `of`; the last 2 are kept
    if row.distance != of:
        row.distance = of
        row.n = 0
    if not (row.n and row.next[0] == what):
        row.next[1] = row.next[0]
        row.next[0] = what
        row.n = min(row.n + 1, 2)


cdef void distant(Prefetches *p, Extension *e, Extensions *x, int acc, uint64_t la) noexcept nogil:
    cdef uint64_t page = (la & TLB_LA) >> 12
    cdef int64_t distance = <int64_t> page - <int64_t> p.last, after[2]
    cdef Row *row
    cdef uint32_t i, n = 0
    if p.second:                # what followed the distance before
        follow(row_of(p, p.distance), p.distance, distance)
    if p.any:
        row = row_of(p, distance)
        if row.distance == distance:
            n = row.n
            for i in range(n):
                after[i] = row.next[i]
        p.second = True
        p.distance = distance
    p.any = True
    p.last = page
    for i in range(n):
        prefetch(p, e, x, acc, (la >> 12 << 12) + (<uint64_t> after[i] << 12))


# ---- strides of an instruction, pages that follow pages -------------------------------------------------------

cdef void strides(Prefetches *p, Extension *e, Extensions *x, int acc, uint64_t la) noexcept nogil:
    cdef uint64_t page = (la & TLB_LA) >> 12, pc = last_fetch(x)
    cdef Code *code = &p.code[pc & (DISTANCES - 1)]
    cdef int64_t distance = <int64_t> page - <int64_t> code.page
    if not code.known or code.pc != pc:
        code.known = True
        code.pc = pc
        code.twice = False
        code.distance = 0
    else:
        code.twice = distance == code.distance
        code.distance = distance
    code.page = page
    if code.distance and code.twice:
        prefetch(p, e, x, acc, (la >> 12 << 12) + (<uint64_t> distance << 12))


cdef void markov(Prefetches *p, Extension *e, Extensions *x, int acc, uint64_t la) noexcept nogil:
    cdef int64_t page = <int64_t> ((la & TLB_LA) >> 12), after[2]
    cdef Row *row
    cdef uint32_t i, n = 0
    if p.any:
        follow(row_of(p, <int64_t> p.last), <int64_t> p.last, page)
    row = row_of(p, page)
    if row.distance == page:
        n = row.n
        for i in range(n):
            after[i] = row.next[i]
    p.any = True
    p.last = <uint64_t> page
    for i in range(n):
        prefetch(p, e, x, acc, signed(<uint64_t> after[i]))


# ---- misses -----------------------------------------------------------------------------------------------

cdef void missed(Prefetches *p, Extension *e, Extensions *x, int acc, uint64_t la, uint64_t value) noexcept nogil:
    cdef uint64_t size = <uint64_t> 1 << (12 + 9 * (value >> 8 & 3))
    if p.kind == SEQUENTIAL:
        prefetch(p, e, x, acc, (la & ~(size - 1)) + size)
    elif p.kind == DISTANCE:
        distant(p, e, x, acc, la)
    elif p.kind == STRIDE:
        strides(p, e, x, acc, la)
    elif p.kind == MARKOV:
        markov(p, e, x, acc, la)
    else:
        recent(p, e, x, acc, la, value)


cdef uint64_t find(Extension *e, Extensions *x, int acc, uint64_t la) noexcept nogil:
    cdef Prefetches *p = <Prefetches *> e.self
    cdef Buffered *b = held(p, x, la)
    cdef uint64_t value
    read_arrays(e, x, 1)
    if b == NULL:
        return 0
    value = b.value
    b.tag = 0
    missed(p, e, x, acc, la, value)
    return value


cdef void filled(Extension *e, Extensions *x, int acc, uint64_t la, uint64_t value) noexcept nogil:
    cdef Prefetches *p = <Prefetches *> e.self
    cdef Buffered *b = held(p, x, la)
    if b != NULL:               # its rights did not suffice, or came with the walk of another page of its size
        b.tag = 0
    missed(p, e, x, acc, la, value)


cdef void dropped(Extension *e, Extensions *x, uint64_t la, const Which *q) noexcept nogil:
    cdef Prefetches *p = <Prefetches *> e.self
    cdef Buffered *b
    cdef uint32_t i
    for i in range(p.entries):
        b = &p.buffer[i]
        if b.tag and b.page == page_at(la, b.value) and tag_selected(x, q, b.tag):
            b.tag = 0
            e.c.invalidated += 1


cdef void *block(Extension *e, uint32_t i, uint64_t *nbytes) noexcept nogil:
    # Prefetches. Of the new one: kind entries
    cdef Prefetches *p = <Prefetches *> e.self
    cdef void *part[9]
    cdef uint64_t size[9]
    part[0], size[0] = &p.clock, sizeof(p.clock)
    part[1], size[1] = <void *> p.buffer, sizeof(p.buffer)
    part[2], size[2] = &p.any, sizeof(p.any)
    part[3], size[3] = &p.second, sizeof(p.second)
    part[4], size[4] = &p.last, sizeof(p.last)
    part[5], size[5] = &p.distance, sizeof(p.distance)
    part[6], size[6] = <void *> p.row, sizeof(p.row)
    part[7], size[7] = <void *> p.code, sizeof(p.code)
    part[8], size[8] = p.stack, sizeof(Stack)
    if i > 8:
        return NULL
    nbytes[0] = size[i]
    return part[i]


cdef bint sound(const Extension *e, const Extensions *x) noexcept nogil:
    cdef const Prefetches *p = <const Prefetches *> e.self
    cdef uint32_t i
    for i in range(MOST):
        if not sound_value(p.buffer[i].value):
            return False
    for i in range(DISTANCES):
        if p.row[i].n > 2:
            return False
    return p.stack == NULL or sound_stack(p.stack)


cdef bint sound_stack(const Stack *s) noexcept nogil:
    cdef uint8_t *seen = <uint8_t *> calloc(NODES + 1, 1)
    cdef bint good = seen != NULL and lists_are_sound(s, seen)
    free(seen)
    return good


cdef bint lists_are_sound(const Stack *s, uint8_t *seen) noexcept nogil:
    # each node once: on the stack and in the chain of its page, or on the list of those that are free
    cdef uint32_t i, at = s.top, last = 0, n = 0, vacant = 0
    if s.n > NODES:
        return False
    while at:
        if at > NODES or seen[at] or s.node[at].above != last:
            return False
        seen[at] = 1
        n += 1
        last = at
        at = s.node[at].below
    if n != s.n or s.bottom != last:
        return False
    for i in range(65536):
        at = s.head[i]
        while at:
            if at > NODES or seen[at] != 1 or bucket(<Stack *> s, s.node[at].tag, s.node[at].page) != &s.head[i]:
                return False
            seen[at] = 2
            n -= 1
            at = s.node[at].chain
    at = s.free
    while at:
        if at > NODES or seen[at]:
            return False
        seen[at] = 3
        vacant += 1
        at = s.node[at].chain
    return n == 0 and vacant == NODES - s.n


cdef void end(Extension *e) noexcept nogil:
    free((<Prefetches *> e.self).stack)
    free(e.self)


cdef int prefetch_add(Extensions *x, int kind, uint32_t entries) noexcept nogil:
    cdef Prefetches *p = <Prefetches *> calloc(1, sizeof(Prefetches))
    cdef Extension *e = NULL
    cdef uint32_t i
    if p == NULL:
        return -1
    p.kind = kind
    p.entries = min(entries, MOST)
    x.by_code = x.by_code or kind == STRIDE
    if kind == RECENCY:
        p.stack = <Stack *> calloc(1, sizeof(Stack))
    if kind != RECENCY or p.stack != NULL:
        e = extension_add(x, b"prefetch")
    if e == NULL:
        free(p.stack)
        free(p)
        return -1
    if kind == RECENCY:
        for i in range(1, NODES + 1):
            p.stack.node[i].chain = i + 1 if i < NODES else 0
        p.stack.free = 1
    e.self = p
    e.find = find
    e.filled = filled
    if kind == RECENCY:
        e.evicted = evicted
    e.dropped = dropped
    e.end = end
    e.block = block
    e.sound = sound
    return 0
