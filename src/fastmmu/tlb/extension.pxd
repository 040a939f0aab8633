# What is asked for a translation between a miss of both levels and the walk: an interface for structures beyond the
# second level. Those of fastmmu: tlb/clustered.pyx, tlb/ranges.pyx, tlb/pom.pyx, tlb/prefetch.pyx; one's own:
# docs/tlb-extensions.md.
#
# An Extension holds translations as values of entries (tlb/entries.pxd), each with a tag:
#
#   find(e, x, acc, la)             both levels lack la: the value of its page, or 0. What it finds fills both levels
#   filled(e, x, acc, la, value)    a walk found this, and both levels hold it now
#   evicted(e, x, tag, la, size)    the second level gave this page up for another one; NULL: not asked
#   dropped(e, x, la, q)            an invalidation of la: forget the entries that cover it and that q selects
#   end(e)                          frees e.self
#   block(e, i, n)                  the i-th part of its state for a checkpoint, of n bytes; NULL: there are no more
#   sound(e, x)                     parts that were read are a state of it; both NULL: it is in no checkpoint
#
# Tags stand for contexts: (VPID, EPT root), for local translations with the PCID. `x.local` and `x.everywhere` are
# those of the context in force; an entry is found where its tag is one of them. A flush of whole contexts retires their
# tags, which are never given out again: no extension has anything to do, and entries of retired tags (`tag_live`) are
# free places. So what is sound for entries of the TLB is sound here, under three rules:
#
#   - a value is what filled() brought, or what a query finds, cached under extension_tag(x, value & F_G);
#   - pieces of a larger page of the guest (is_fractured()) are not kept, so that dropped() is about one page; or
#     where x.whole is set dropped() forgets all of the guest's page that la is in;
#   - dropped() forgets every entry from which find() could answer la under a tag that q selects.
#
# Arrays that a lookup reads are told by read_arrays(), references to memory by refer(), which says whether the access
# waits for them: the cost model prices these, and data caches see them.
#
# A query is a walk that changes nothing, of any address in the context in force. It finds what a processor may cache
# unasked: entries that are present with every accessed flag set (tlb.md R2), whatever the rights; it never faults, sets
# no flag and causes no VM exit. A prefetch is a query whose references count: prefetch_walk().

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmmu.tlb.entries cimport Tlb, TlbContext
from fastmmu.tlb.lookup cimport tlb_fill, tlb_refill
from fastmmu.tlb.which cimport Which, selects

cdef enum:
    SPACES = 4096               # tags in use; where they run out all are retired
    SPACE_BITS = 12

cdef extern from *:
    """
    #define FM_POM_BASE   (1ULL << 46)
    #define FM_RANGE_BASE (FM_POM_BASE + (1ULL << 40))
    #define FM_LINK_BASE  (FM_POM_BASE + (1ULL << 41))
    """
    # host-physical addresses of what extensions keep in memory, 2**40 bytes each: no other memory is there
    const uint64_t POM_BASE "FM_POM_BASE"
    const uint64_t RANGE_BASE "FM_RANGE_BASE"
    const uint64_t LINK_BASE "FM_LINK_BASE"

cdef struct Queried:
    uint64_t value              # as a walk caches it; 0: nothing that may be cached
    uint64_t gpa                # guest-physical address; natively that of the page
    uint32_t guest_refs, ept_refs

ctypedef void (*PageQuery)(void *walker, Tlb *t, uint64_t la, Queried *out) noexcept nogil
# a reference to what an extension keeps in memory, of the data caches; store: it is one
ctypedef void (*ReferenceTold)(void *walker, uint64_t hpa, bint store, bint waited) noexcept nogil

cdef struct Extensions

cdef struct ExtensionCounters:
    uint64_t lookups, hits, fills, evictions
    uint64_t invalidated        # by address: those of flushed contexts are not counted
    uint64_t prefetch_walks     # walks that no access waited for
    uint64_t prefetch_guest_refs, prefetch_ept_refs
    uint64_t memory_refs        # of a structure in memory
    uint64_t waited_refs        # of these, those that an access waits for
    uint64_t reads              # arrays that lookups read
    uint64_t mirrors            # copies of an entry in other sets
    uint64_t hits_by[3]         # by page size
    uint64_t queries            # free of cost: of what the walk's own cache line holds, or software keeps

cdef struct Extension:
    void *self
    uint64_t (*find)(Extension *e, Extensions *x, int acc, uint64_t la) noexcept nogil
    void (*filled)(Extension *e, Extensions *x, int acc, uint64_t la, uint64_t value) noexcept nogil
    void (*evicted)(Extension *e, Extensions *x, uint64_t tag, uint64_t la, int size) noexcept nogil
    void (*dropped)(Extension *e, Extensions *x, uint64_t la, const Which *q) noexcept nogil
    void (*end)(Extension *e) noexcept nogil
    void *(*block)(Extension *e, uint32_t i, uint64_t *nbytes) noexcept nogil
    bint (*sound)(const Extension *e, const Extensions *x) noexcept nogil
    ExtensionCounters c
    char name[16]
    Extension *next

cdef struct Space:
    uint64_t tag                # serial << 12 | index; 0: none
    TlbContext tags             # kind, VPID, PCID, EPT root; nothing else
    uint32_t place              # in live

cdef struct Pages:              # what queries of a TLB without a processor find
    uint64_t n
    uint64_t *la                # sorted, of 4K
    uint64_t *value
    uint64_t *gpa

cdef struct Extensions:
    Tlb *tlb
    Extension *first
    PageQuery query               # of the access under way; NULL: nothing is found
    ReferenceTold refer           # NULL: no data caches
    void *walker
    bint prefetching            # the query under way is a prefetch
    bint whole                  # of dropped(): all of the guest's page
    bint by_code                # an extension asks which instruction it is
    const uint8_t *op           # events under way, of which the first has this number: where fetches stand
    const uint64_t *addr
    uint64_t first_event, end_event
    uint64_t event, known_to    # of the access under way; all before known_to were looked at
    uint64_t pc                 # of the last fetch looked at
    uint64_t local, everywhere  # tags in force; 0: no entries
    bint known                  # they are those of:
    uint32_t vpid, pcid
    uint64_t eptrta
    uint64_t serial
    uint32_t n_live, next, n_free
    uint16_t live[4096]
    uint16_t free[4096]
    Space space[4096]
    uint64_t *was               # keys of a set of the second level before a fill
    bint watched                # an extension wants evictions
    uint64_t lookups, hits
    uint64_t reference          # host-physical address of the last reference to a structure in memory
    Pages pages

cdef Extensions *extensions_new(Tlb *t) noexcept nogil          # NULL: no memory
cdef void extensions_free(Extensions *x) noexcept nogil
cdef Extension *extension_add(Extensions *x, const char *name) noexcept nogil   # behind the others; NULL: no memory
cdef int extensions_ready(Extensions *x) noexcept nogil         # after the last: in use; -1: no memory, or hyperthreads

cdef uint64_t extension_tag(Extensions *x, bint everywhere) noexcept nogil      # of the context in force, for an entry
cdef void extension_drop(Tlb *t, uint64_t la, const Which *q, bint whole) noexcept nogil
cdef void extension_flush(Tlb *t, const Which *q) noexcept nogil
# What tlb_fill() does, or where `again` tlb_refill(), with what extensions do at a fill.
cdef uint64_t extension_fill(Tlb *t, int acc, uint64_t la, uint64_t value, bint again) noexcept nogil
cdef void pages_query(void *walker, Tlb *t, uint64_t la, Queried *out) noexcept nogil
# Events that a loop is about to do; op NULL: it has done them.
cdef void extension_events(Tlb *t, const uint8_t *op, const uint64_t *addr, uint64_t first, uint64_t n) noexcept nogil
cdef uint64_t last_fetch(Extensions *x) noexcept nogil         # address of the instruction; 0: no fetch was seen
cdef void prefetch_walk(Extension *e, Extensions *x, uint64_t la, Queried *out) noexcept nogil
cdef bint extension_cached(const Tlb *t, int acc, uint64_t la) noexcept nogil   # one of both levels holds it


cdef inline Extensions *extensions_of(const Tlb *t) noexcept nogil:
    return <Extensions *> t.extension


cdef inline bint tag_live(const Extensions *x, uint64_t tag) noexcept nogil:
    return tag != 0 and x.space[tag & (SPACES - 1)].tag == tag


cdef inline bint tag_selected(const Extensions *x, const Which *q, uint64_t tag) noexcept nogil:
    return tag_live(x, tag) and selects(q, &x.space[tag & (SPACES - 1)].tags)


cdef inline bint sound_value(uint64_t value) noexcept nogil:
    # of an entry, or 0
    return value >> 60 == 0 and value >> 8 & 3 != 3


cdef inline void query(Extensions *x, uint64_t la, Queried *out) noexcept nogil:
    out.value = out.gpa = 0
    out.guest_refs = out.ept_refs = 0
    if x.query != NULL:
        x.query(x.walker, x.tlb, la, out)


cdef inline uint64_t fill_walked(Tlb *t, int acc, uint64_t la, uint64_t value, bint again) noexcept nogil:
    # what a walk found; again: an entry that did not suffice is cached
    if t.extension != NULL:
        return extension_fill(t, acc, la, value, again)
    return tlb_refill(t, acc, la, value) if again else tlb_fill(t, acc, la, value)


cdef inline void read_arrays(Extension *e, Extensions *x, uint32_t n) noexcept nogil:
    e.c.reads += n
    x.tlb.c.extension_reads += n


cdef inline void refer(Extension *e, Extensions *x, uint64_t hpa, bint store, bint waited) noexcept nogil:
    e.c.memory_refs += 1
    if waited:
        e.c.waited_refs += 1
        x.tlb.c.extension_refs += 1
    else:
        x.tlb.c.background_refs += 1
    x.reference = hpa
    if x.refer != NULL:
        x.refer(x.walker, hpa, store, waited)


cdef inline void aim_queries(Tlb *t, PageQuery how, ReferenceTold refer, void *walker, uint64_t event) noexcept nogil:
    # event: number of the access under way, as in extension_events()
    if t.extension != NULL:
        extensions_of(t).query = how
        extensions_of(t).refer = refer
        extensions_of(t).walker = walker
        extensions_of(t).event = event


cdef inline void events_begin(Tlb *t, const uint8_t *op, const uint64_t *addr, uint64_t first,
                              uint64_t n) noexcept nogil:
    if t.extension != NULL:
        extension_events(t, op, addr, first, n)


cdef inline void events_end(Tlb *t, uint64_t first, uint64_t done) noexcept nogil:
    if t.extension != NULL:
        extension_events(t, NULL, NULL, first, done)


cdef inline void aim_at_pages(Tlb *t) noexcept nogil:
    # calls from Python: no processor
    if t.extension != NULL:
        extensions_of(t).query = pages_query
        extensions_of(t).refer = NULL
        extensions_of(t).walker = &extensions_of(t).pages
